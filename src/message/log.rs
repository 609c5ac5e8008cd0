//! The log: entries, positions, views, and what must never be forgotten beside them.

use std::cell::RefCell;

use bytes::Bytes;

use crate::chat::command::Operation;
use crate::row::{Fields, RowError, RowWriter};
use crate::types::{ClusterId, Incarnation, LogIndex, Member, ServerId, ViewNumber};

/// The columns of an entry's replicated bytes.
pub const ENTRY_FIELDS: [&str; 11] = [
    "kind",
    "index",
    "view",
    "time_ms",
    "request",
    "acknowledged",
    "account",
    "subject",
    "text",
    "extra",
    "fork",
];

thread_local! {
    /// Where entries are encoded, all in the same space: each keeps a copy of the right size, since it stays in memory
    /// for a while.
    static ROW: RefCell<RowWriter> = RefCell::new(RowWriter::new());
}

/// One entry of the log. Its bytes are encoded once, by the primary, and are the same on every disk and every link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its position in the log.
    pub index: LogIndex,
    /// The view in which it was appended.
    pub view: ViewNumber,
    /// The primary's clock when it took the command in, milliseconds since 1970.
    pub unix_ms: u64,
    /// What it does.
    pub operation: Operation,
    /// The CSV fields [`ENTRY_FIELDS`], without a checksum.
    pub bytes: Bytes,
    /// CRC-32 over `bytes`, seeded by the previous entry's chain: equal chains mean equal logs up to here.
    pub chain: u32,
}

impl Entry {
    /// Encodes an entry that follows one with the chain `previous_chain`.
    #[must_use]
    pub fn new(
        index: LogIndex,
        view: ViewNumber,
        unix_ms: u64,
        operation: Operation,
        previous_chain: u32,
    ) -> Self {
        let bytes = ROW.with_borrow_mut(|row| {
            row.clear();
            row.encoded(operation.kind().as_bytes());
            row.number(index.0);
            row.view(view);
            row.number(unix_ms);
            operation.write_fields(row);
            Bytes::copy_from_slice(row.row())
        });
        let chain = chain_after(previous_chain, &bytes);
        Self { index, view, unix_ms, operation, bytes, chain }
    }

    /// Reads an entry from its replicated bytes.
    ///
    /// # Errors
    /// What is wrong with them. The chain is computed, not checked: whoever has one to compare does that.
    pub fn decode(bytes: Bytes, previous_chain: u32, fields: &mut Fields) -> Result<Self, RowError> {
        fields.parse(&bytes, ENTRY_FIELDS.len())?;
        let operation = Operation::read_fields(0, 4, fields)?;
        Ok(Self {
            index: LogIndex(fields.value(1, "an index")?),
            view: fields.value(2, "a view as COUNTER.SERVER")?,
            unix_ms: fields.value(3, "milliseconds since 1970")?,
            operation,
            chain: chain_after(previous_chain, &bytes),
            bytes,
        })
    }

    /// Where the log stands with this entry as its last.
    #[must_use]
    pub fn position(&self) -> Position {
        Position { index: self.index, view: self.view, chain: self.chain }
    }
}

/// The chain of an entry with these bytes after one with the chain `previous`.
#[must_use]
pub fn chain_after(previous: u32, bytes: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new_with_initial(previous);
    hasher.update(bytes);
    hasher.finalize()
}

/// An entry's place and identity: equal positions mean equal logs up to here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Position {
    /// The entry's index.
    pub index: LogIndex,
    /// Its view.
    pub view: ViewNumber,
    /// Its chain.
    pub chain: u32,
}

/// Where each view of a log starts, oldest first: with it two servers find the last point they share (KIP-101).
pub type ViewTable = Vec<ViewStart>;

/// Where one view of a log starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ViewStart {
    /// The view.
    pub view: ViewNumber,
    /// The index of its first entry.
    pub start: LogIndex,
}

/// A numbered configuration. Whoever has persisted it has *installed* it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct View {
    /// Its number.
    pub number: ViewNumber,
    /// The in-sync set, ascending: without every one of them nothing commits (N6).
    pub members: Vec<Member>,
}

impl View {
    /// Who leads it.
    #[must_use]
    pub fn primary(&self) -> ServerId {
        self.number.proposer
    }

    /// Whether there is a view at all: none has been installed, or the last one has lost and is forgotten but for its members.
    #[must_use]
    pub fn exists(&self) -> bool {
        self.number != ViewNumber::NONE
    }

    /// A server's membership.
    #[must_use]
    pub fn member(&self, server: ServerId) -> Option<Member> {
        self.members.iter().copied().find(|member| member.server == server)
    }
}

/// How far a server's disk can be trusted to hold every row it has ever acknowledged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Standing {
    /// It holds all of them.
    Whole,
    /// A complete last row was damaged and cut (D4): no source while a server with a whole disk answers.
    Suspect,
    /// New, wiped, restored or damaged (V6, D5): never a source until it has caught up in a view.
    #[default]
    Partial,
    /// Its tables or its log are known to be wrong (D7), or can't be brought back to what it shares with the others, or
    /// its cluster has yielded: at the next start everything is fetched anew. Never said to anyone.
    Distrusted,
}

/// What a server must never forget, besides its log and its installed view.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HardState {
    /// Whose directory this is; none in an empty one.
    pub server: Option<ServerId>,
    /// Which cluster it belongs to; none before it has joined or created one.
    pub cluster: Option<ClusterId>,
    /// How often the server has started here (V6).
    pub incarnation: Incarnation,
    /// The first of its starts since which this disk has forgotten nothing (V6).
    pub born: Incarnation,
    /// No lower view is acknowledged any more (V2).
    pub promised: ViewNumber,
    /// The highest number promised to each candidate since the last installed view (V2), ascending.
    pub outstanding: Vec<ViewNumber>,
    /// Whether this disk holds all it should.
    pub standing: Standing,
    /// The highest incarnation seen of each other server (V6), ascending.
    pub incarnations: Vec<Member>,
    /// The addresses of all configured servers, as they were when the directory was first used.
    pub servers: Vec<String>,
}
