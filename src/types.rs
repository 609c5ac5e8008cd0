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
        const EXPECTED: &str = "expected COUNTER.SERVER";
        // The dot is near: no search made for long texts.
        let dot = text.bytes().position(|byte| byte == b'.').ok_or(EXPECTED)?;
        Ok(Self {
            counter: text[..dot].parse().map_err(|_| EXPECTED)?,
            proposer: ServerId(text[dot + 1..].parse().map_err(|_| EXPECTED)?),
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

    /// Its first bits, as a number: of clients that draw them, each number has as many.
    ///
    /// # Panics
    /// Unless there are 1 to 32 of them.
    #[must_use]
    pub fn first_bits(self, count: u32) -> usize {
        assert!((1..=32).contains(&count), "found {count} bits, expected 1 to 32");
        usize::try_from(self.0 >> (u64::BITS - count)).expect("32 bits fit")
    }
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
        let (client, rest) = text.as_bytes().split_first_chunk::<16>().ok_or(EXPECTED)?;
        let number = text.get(17..).filter(|_| rest[0] == b'-').ok_or(EXPECTED)?;
        if number.starts_with('+') {
            return Err(EXPECTED); // What Rust takes for a number.
        }
        let (mut id, mut digits) = (0, 0);
        for digit in client {
            let value = HEX_VALUES[usize::from(*digit)];
            id = id << 4 | u64::from(value & 15);
            digits |= value;
        }
        if digits == NO_DIGIT {
            return Err(EXPECTED);
        }
        Ok(Self { client: ClientId(id), number: RequestNumber(number.parse().map_err(|_| EXPECTED)?) })
    }
}

/// What is no hexadecimal digit is worth this: all bits, so that it stays when values are put together by `|`.
const NO_DIGIT: u8 = 0xff;

/// What each byte is worth as a hexadecimal digit.
const HEX_VALUES: [u8; 256] = {
    let mut values = [NO_DIGIT; 256];
    let mut value = 0;
    while value < 16 {
        let digit = b"0123456789abcdef"[value as usize];
        values[digit as usize] = value;
        values[digit.to_ascii_uppercase() as usize] = value;
        value += 1;
    }
    values
};

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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// An id as the standard library reads its parts.
    fn slow(text: &str) -> Option<RequestId> {
        let (client, number) = (text.get(..16)?, text.get(16..)?.strip_prefix('-')?);
        let digits = client.bytes().all(|byte| byte.is_ascii_hexdigit())
            && number.bytes().all(|byte| byte.is_ascii_digit());
        let client = u64::from_str_radix(client, 16).ok().filter(|_| digits)?;
        Some(RequestId { client: ClientId(client), number: RequestNumber(number.parse().ok()?) })
    }

    #[test]
    fn an_id_is_read_in_its_own_form_only() {
        let client = "0123456789abcDEF";
        for number in ["0", "7", "007", "18446744073709551615", "00000000000000000000000000001"] {
            let text = format!("{client}-{number}");
            assert_eq!(text.parse::<RequestId>().ok(), slow(&text));
            assert_eq!(text.parse::<RequestId>().unwrap().client, ClientId(0x0123_4567_89ab_cdef));
        }
        for number in ["", "+7", "-7", " 7", "7 ", "18446744073709551616", "7a", "é"] {
            assert!(format!("{client}-{number}").parse::<RequestId>().is_err(), "{number}");
        }
        for text in [
            "",
            client,
            "0123456789abcdefé7",
            "0123456789abcde-7",
            "0123456789abcdef_7",
            "+123456789abcdef-7",
        ] {
            assert!(text.parse::<RequestId>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_view_is_read_in_its_own_form_only() {
        assert_eq!("4294967295.255".parse(), Ok(ViewNumber { counter: u32::MAX, proposer: ServerId(255) }));
        for text in ["", ".", "1.", ".1", "1", "1.2.3", "1.256", "4294967296.1", "1,2", "é.1", "1.é"] {
            assert!(text.parse::<ViewNumber>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn ids_read_as_the_standard_library_reads_their_parts(
            client in any::<u64>(), number in any::<u64>(), bits in 0..64, at in any::<prop::sample::Index>(), other in ".",
        ) {
            let id = RequestId { client: ClientId(client), number: RequestNumber(number >> bits) };
            let mut text = id.to_string();
            prop_assert_eq!(text.parse(), Ok(id));
            let at = at.index(text.len());
            text.replace_range(at..=at, &other);
            prop_assert_eq!(text.parse::<RequestId>().ok(), slow(&text));
        }
    }
}
