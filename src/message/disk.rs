//! What the core asks of a disk, and what a disk answers.

use std::sync::Arc;

use bytes::Bytes;

use super::{Entry, HardState, Position, View, ViewTable};
use crate::chat::{Slice, State};
use crate::types::LogIndex;

/// One write to `server_log.csv`. File order is effect order.
#[derive(Clone, Debug, PartialEq)]
pub enum Write {
    /// Rows for entries that follow the last one.
    Append(Vec<Arc<Entry>>),
    /// The entries above `after` are no longer part of the log. Their rows are moved to a synced file of their own
    /// before this takes effect (R2, V7). If the log begins above `after`, that is all that happens.
    Truncate {
        /// The last entry that stays.
        after: LogIndex,
    },
    /// Replaces the hard state.
    HardState(HardState),
    /// Installs a view.
    View(View),
    /// All rows of this file of diverged ones are committed elsewhere: it goes (R7).
    Forget {
        /// [`DivergedPlace::file`].
        file: String,
    },
    /// A hint for recovery: everything up to here was committed. Nothing waits for it.
    Commit(LogIndex),
}

/// What recovery found on the own disk.
#[derive(Debug)]
pub struct Recovered {
    /// The hard state; the default in an empty directory.
    pub hard: HardState,
    /// The installed view; not existing in an empty directory.
    pub view: View,
    /// The state, with every entry applied that is known to be committed and in the log.
    pub state: State,
    /// The position of the last entry that is applied to `state`.
    pub applied: Position,
    /// The entries after it, oldest first, without a gap.
    pub tail: Vec<Arc<Entry>>,
    /// Whether the last applied entry is `closed`: an orderly stop of all members.
    pub closed: bool,
    /// Where each view of the log starts, up to the log's end.
    pub views: ViewTable,
    /// The position before the first entry that can be read from the log.
    pub base: Position,
    /// The newest checkpoint that can be given to others; [`LogIndex::ZERO`] if none.
    pub checkpoint: LogIndex,
    /// Rotten rows (D4): the entry before each gap, and the last missing index. `tail` ends before the first gap
    /// that concerns it.
    pub gaps: Vec<(Position, LogIndex)>,
    /// There are files of diverged rows to be proposed again (R3).
    pub diverged: bool,
}

/// A place in the files of diverged rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DivergedPlace {
    /// The file.
    pub file: String,
    /// The byte.
    pub offset: u64,
}

/// Some rows of a log that lost against another one (R2).
#[derive(Clone, Debug, PartialEq)]
pub struct DivergedRows {
    /// The last index that this log shares with the one that won.
    pub fork: LogIndex,
    /// The clients' commands among them.
    pub entries: Vec<Arc<Entry>>,
    /// What comes next.
    pub next: DivergedPlace,
    /// These are the last ones of the file.
    pub ends: bool,
    /// At the beginning of a file: how many commands there are from here on, in all files.
    pub total: Option<u64>,
}

/// What to read from the disk for a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Read {
    /// Entries from `first` on, at most `through`, as many as fit into a batch.
    Entries {
        /// The first one.
        first: LogIndex,
        /// The last one, at most.
        through: LogIndex,
    },
    /// Part of a checkpoint, as one stream of bytes.
    Checkpoint {
        /// Which.
        index: LogIndex,
        /// The first byte.
        offset: u64,
    },
    /// Diverged rows: from a place on, or from the first of the newest file.
    Diverged(Option<DivergedPlace>),
}

/// What a read brought.
#[derive(Clone, Debug, PartialEq)]
pub enum ReadResult {
    /// Entries, with what stands before the first; none if the log does not have them (any more).
    Entries {
        /// The entry before the first.
        previous: Position,
        /// The entries, without a gap.
        entries: Vec<Arc<Entry>>,
    },
    /// Part of a checkpoint.
    Checkpoint {
        /// The length of the whole, in bytes; 0 if there is no such checkpoint.
        total: u64,
        /// The part.
        bytes: Bytes,
    },
    /// Diverged rows; none if there are no more files.
    Diverged(Option<DivergedRows>),
    /// The disk failed.
    Failed(String),
}

/// One step of a checkpoint. Steps are done in order, beside the log; each is answered by
/// `Event::CheckpointDone`.
#[derive(Debug)]
pub enum CheckpointStep {
    /// Start writing the state as of `position`.
    Begin {
        /// As of which entry.
        position: Position,
        /// The views up to it.
        views: ViewTable,
        /// [`State::digest`].
        digest: [u8; 32],
    },
    /// Some more rows.
    Rows(Slice),
    /// Sync everything and make it the current checkpoint (T5, D6).
    Finish,
    /// Put a part of another server's checkpoint in its place.
    Receive {
        /// Which.
        index: LogIndex,
        /// Where the part starts.
        offset: u64,
        /// The part.
        bytes: Bytes,
    },
    /// All parts are there: check them, make it current, let the log start after it, and load the state (T5).
    /// The log's rows so far go to a synced file of their own first (R2).
    Install {
        /// Which.
        index: LogIndex,
    },
    /// Give up the checkpoint under way.
    Abandon,
}

/// What a step of a checkpoint brought.
#[derive(Debug)]
pub enum CheckpointResult {
    /// The step is done.
    Ok,
    /// The checkpoint is complete and current.
    Finished {
        /// As of which entry.
        index: LogIndex,
        /// Its size in bytes.
        bytes: u64,
    },
    /// The received checkpoint is current; the log is empty after it.
    Installed(Box<Installed>),
    /// It failed: nothing has changed.
    Failed(String),
}

/// A checkpoint from another server, loaded.
#[derive(Debug)]
pub struct Installed {
    /// The state.
    pub state: State,
    /// The position of the last entry in it.
    pub position: Position,
    /// The views up to it.
    pub views: ViewTable,
}
