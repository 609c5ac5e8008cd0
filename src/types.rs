//! Newtypes: a number with a meaning has a type, and its arithmetic a name.

use std::fmt;
use std::str::FromStr;

/// A server's place in the cluster list, counted from 1. The order of the list is the priority to lead.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServerId(pub u8);

impl fmt::Display for ServerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Which start of a server on its data directory this is (V6): bumped and synced at every start. The first one draws
/// a random number, so that a directory that was wiped is not taken for the one it was.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Incarnation(pub u32);

/// Tells one cluster from another; drawn at random when the cluster is created.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClusterId(pub u64);

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// One member of a view: the server, and which of its lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Member {
    /// Which server.
    pub server: ServerId,
    /// Which of its starts; another incarnation of the same server is another member.
    pub incarnation: Incarnation,
}

/// The number of a view: it fences every peer frame, log row and effect. Ordered by counter, then by proposer,
/// so that two servers that bump at once still differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ViewNumber {
    /// Counts view changes.
    pub counter: u32,
    /// Who proposed the view and leads it.
    pub proposer: ServerId,
}

impl ViewNumber {
    /// Below every real view.
    pub const NONE: Self = Self { counter: 0, proposer: ServerId(0) };
}

impl Default for ViewNumber {
    fn default() -> Self {
        Self::NONE
    }
}

impl fmt::Display for ViewNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.counter, self.proposer)
    }
}

impl FromStr for ViewNumber {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (counter, proposer) = text.split_once('.').ok_or("expected COUNTER.SERVER")?;
        Ok(Self {
            counter: counter.parse().map_err(|_| "expected COUNTER.SERVER")?,
            proposer: ServerId(proposer.parse().map_err(|_| "expected COUNTER.SERVER")?),
        })
    }
}

/// A position in the log; 0 is before the first entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LogIndex(pub u64);

impl LogIndex {
    /// Before the first entry.
    pub const ZERO: Self = Self(0);

    /// The position after this one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }

    /// The position before this one.
    ///
    /// # Panics
    /// At [`LogIndex::ZERO`].
    #[must_use]
    pub const fn previous(self) -> Self {
        Self(self.0 - 1)
    }

    /// How many entries lie between this position and a later one; 0 if `later` is not later.
    #[must_use]
    pub const fn distance_to(self, later: Self) -> u64 {
        later.0.saturating_sub(self.0)
    }
}

impl fmt::Display for LogIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Names one write of one process to its disk; never reused within the process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WriteId(pub u64);

/// Names one client connection of one process; never reused within the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId(pub u64);

/// A client's own name, 64 random bits that the client draws (X1). All zero: the client has none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClientId(pub u64);

impl ClientId {
    /// A client without a name of its own.
    pub const NONE: Self = Self(0);
}

impl fmt::Display for ClientId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// A client's number for one of its requests (X3). The wire carries 32 bits, 0 meaning *not numbered*; to such a
/// request the primary gives a random number above `u32::MAX`, so that every request has an id.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestNumber(pub u64);

impl RequestNumber {
    /// Whether a client chose this number, so that a retry can be recognised.
    #[must_use]
    pub const fn is_chosen_by_client(self) -> bool {
        self.0 != 0 && self.0 <= u32::MAX as u64
    }
}

impl fmt::Display for RequestNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Names one request for ever: `CLIENT16HEX-NUMBER`. What a request creates is named after it (R5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RequestId {
    /// Who asked.
    pub client: ClientId,
    /// Which of its requests.
    pub number: RequestNumber,
}

impl Ord for RequestId {
    /// By client, then by number; as one comparison, since ordered maps by id do little else.
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        let key = |id: &Self| u128::from(id.client.0) << 64 | u128::from(id.number.0);
        key(self).cmp(&key(other))
    }
}

impl PartialOrd for RequestId {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.client, self.number)
    }
}

impl FromStr for RequestId {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const EXPECTED: &str = "expected an id of the form CLIENT16HEX-NUMBER";
        // A log row has three of these: no pass over the text more than there must be.
        let (client, rest) = text.as_bytes().split_at_checked(16).ok_or(EXPECTED)?;
        let (dash, number) = rest.split_first().ok_or(EXPECTED)?;
        if *dash != b'-' || number.is_empty() {
            return Err(EXPECTED);
        }
        let hex = |id: u64, digit: &u8| -> Result<u64, Self::Err> {
            let value = char::from(*digit).to_digit(16).ok_or(EXPECTED)?;
            Ok(id << 4 | u64::from(value))
        };
        let decimal = |number: u64, digit: &u8| -> Result<u64, Self::Err> {
            let value = digit.checked_sub(b'0').filter(|value| *value < 10).ok_or(EXPECTED)?;
            number.checked_mul(10).and_then(|tens| tens.checked_add(u64::from(value))).ok_or(EXPECTED)
        };
        Ok(Self {
            client: ClientId(client.iter().try_fold(0, hex)?),
            number: RequestNumber(number.iter().try_fold(0, decimal)?),
        })
    }
}

/// Names an account: the request that created it (N3). A name may change hands, an id never.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AccountId(pub RequestId);

impl fmt::Display for AccountId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Names a message: the request that sent it (R5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MessageId(pub RequestId);

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
