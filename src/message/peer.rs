//! What servers say to each other.

use std::sync::Arc;

use bytes::Bytes;

use super::{Entry, Position, Standing, View, ViewTable};
use crate::types::{ClusterId, Incarnation, LogIndex, Member, ServerId, ViewNumber};

/// What a server says of itself when asked to take part in a view change (V2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Its current life.
    pub incarnation: Incarnation,
    /// The first of its lives since which its disk has forgotten nothing (V6).
    pub born: Incarnation,
    /// The highest view number it has promised.
    pub promised: ViewNumber,
    /// The highest number promised to each candidate since its last installed view.
    pub outstanding: Vec<ViewNumber>,
    /// The view it has installed last; [`View::exists`] is false if none.
    pub installed: View,
    /// The end of its log, as far as it is synced.
    pub last: Position,
    /// How far its disk can be trusted.
    pub standing: Standing,
    /// The same process since it installed that view, not told that it was dropped, not paused, and in touch with
    /// its primary until the end (V2).
    pub continuous: bool,
    /// The same, if whoever has gone on without it has waited for 3 s more: a minority (V11).
    pub nearly_continuous: bool,
    /// It has never belonged to a cluster, or its log is being repaired or replaced: that starts no view.
    pub empty: bool,
    /// Its log ends with a committed `closed` entry of that view.
    pub closed: bool,
    /// It has rows that must be proposed again before it may become a member (R7, T4).
    pub rebasing: bool,
}

/// How a server appears to the others, said in every heartbeat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standpoint {
    /// Leads the view it has installed, and every member has acknowledged it.
    Primary,
    /// Follows as a member of the installed view.
    Backup,
    /// Follows without being counted.
    Learner,
    /// Looks for or negotiates a view.
    Waiting,
    /// Has never belonged to a cluster.
    Empty,
}

/// What is said about the sender in both directions of a heartbeat.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pulse {
    /// The sender's cluster; none if it has none yet.
    pub cluster: Option<ClusterId>,
    /// The sender's life.
    pub incarnation: Incarnation,
    /// The highest incarnation the sender has seen of the receiver (V6); 0 if none.
    pub known_incarnation: Incarnation,
    /// What the sender is.
    pub standpoint: Standpoint,
    /// The view it has installed.
    pub view: ViewNumber,
    /// Whether the receiver, in the life the sender knows, is a member of that view.
    pub member: bool,
    /// Who leads, as far as the sender knows.
    pub primary: Option<ServerId>,
    /// The end of the sender's log.
    pub last: LogIndex,
    /// How far the sender's log is synced.
    pub synced: LogIndex,
    /// How far the sender knows entries to be committed.
    pub commit: LogIndex,
    /// Milliseconds since the sender's oldest unfinished sync began; 0 if none is under way (N9).
    pub sync_age_ms: u32,
    /// The sender is not continuous (V2): a new view would make it so.
    pub broken: bool,
    /// The sender's disk is nearly full: new writes should be refused (D3).
    pub disk_low: bool,
    /// The sender wants to stop in order.
    pub leaving: bool,
    /// The sender has rows that must be proposed again before it may become a member (R7, T4).
    pub rebasing: bool,
    /// The receiver has answered the sender within half the suspicion timeout: it is not about to be dropped (V2).
    pub answered: bool,
    /// Nothing of any user is in the sender's log: its cluster yields to another one that holds something.
    pub blank: bool,
    /// How the sender's state was of late; all zero if it can't tell yet (D7).
    pub mark: Mark,
}

/// How a state was after an entry: equal logs must give equal states (D7).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mark {
    /// The entry.
    pub index: LogIndex,
    /// Its chain: which log.
    pub chain: u32,
    /// [`crate::chat::State::digest`].
    pub digest: [u8; 32],
}

/// A message between two proven servers.
#[derive(Clone, Debug, PartialEq)]
pub enum PeerMessage {
    /// Says that the sender lives, and how it is; from everyone to everyone (N7, N9, V2).
    Heartbeat {
        /// Comes back in the answer.
        nonce: u64,
        /// The sender.
        pulse: Pulse,
    },
    /// Answers a heartbeat at once.
    HeartbeatOk {
        /// From the heartbeat.
        nonce: u64,
        /// The answering server.
        pulse: Pulse,
    },
    /// New entries from the primary of an active view (N4).
    Prepare {
        /// The view.
        view: ViewNumber,
        /// What stands before the first entry.
        previous: Position,
        /// The entries.
        entries: Vec<Arc<Entry>>,
        /// The commit index.
        commit: LogIndex,
    },
    /// The sender's log is synced up to here (N5).
    PrepareOk {
        /// In which view.
        view: ViewNumber,
        /// The sender's life.
        incarnation: Incarnation,
        /// How far.
        synced: LogIndex,
    },
    /// Asks whether the view still stands, before a read is answered (N8).
    Barrier {
        /// Which view.
        view: ViewNumber,
        /// Comes back in the answer.
        nonce: u64,
    },
    /// The view still stands as far as the sender is concerned (N8).
    BarrierOk {
        /// Which view.
        view: ViewNumber,
        /// From the barrier.
        nonce: u64,
        /// The sender's life.
        incarnation: Incarnation,
    },
    /// Asks whether a view change would be in order (V1).
    PreVote {
        /// Names the attempt.
        nonce: u64,
    },
    /// Answers a pre-vote.
    PreVoteOk {
        /// From the pre-vote.
        nonce: u64,
        /// The sender reaches its primary: no view change is needed.
        veto: bool,
        /// What it would answer to a proposal.
        report: Report,
    },
    /// Asks everyone to promise a view number (V1). The sender has synced its own promise.
    Propose {
        /// The number.
        number: ViewNumber,
        /// Live members that the sender means to drop (V10); they answer from memory.
        dropping: Vec<ServerId>,
    },
    /// The number is promised, and the promise synced (V2); or, if the sender is being dropped, noted (V10).
    Promise {
        /// The number.
        number: ViewNumber,
        /// The sender.
        report: Report,
    },
    /// A proposal or a new view came with too low a number.
    Refuse {
        /// What was refused.
        number: ViewNumber,
        /// The sender's own promise.
        promised: ViewNumber,
    },
    /// The view to install (V7).
    NewView {
        /// The cluster, for those who join it.
        cluster: ClusterId,
        /// The view. A receiver that is not among the members becomes a learner.
        view: View,
        /// The end of the log the view starts with.
        start: Position,
        /// The latest part of the leader's table of views, to find the point of divergence.
        views: ViewTable,
        /// The latest lives of others that the leader knows (V6), ascending.
        lives: Vec<Member>,
    },
    /// The sender has installed the view: log fetched, view synced (V7).
    NewViewOk {
        /// The view.
        number: ViewNumber,
        /// The sender's life.
        incarnation: Incarnation,
    },
    /// Asks for the entries after `last` (T1, N5, V7).
    Fetch {
        /// The view the receiver leads, or the number with which it is installing one, or (from a leader that still
        /// collects its log) the number the receiver has promised.
        view: ViewNumber,
        /// The end of the sender's log.
        last: Position,
        /// The latest part of the sender's table of views.
        views: ViewTable,
    },
    /// Entries that were asked for.
    Fetched {
        /// From the request.
        view: ViewNumber,
        /// What stands before the first entry.
        previous: Position,
        /// The entries; none if there are none yet.
        entries: Vec<Arc<Entry>>,
        /// The commit index.
        commit: LogIndex,
        /// The end of the answering server's log, to see how much is left.
        last: LogIndex,
    },
    /// The asking log diverges: what lies above `shared` is not part of the log (T2).
    Diverged {
        /// From the request.
        view: ViewNumber,
        /// From the request: an answer to another one is void.
        last: Position,
        /// The end of the last view both share.
        shared: LogIndex,
    },
    /// The entries asked for are no longer in the log; start from a checkpoint (T3).
    UseCheckpoint {
        /// From the request.
        view: ViewNumber,
        /// From the request: an answer to another one is void.
        last: Position,
    },
    /// Asks for a part of a checkpoint.
    FetchCheckpoint {
        /// The view the receiver leads.
        view: ViewNumber,
        /// Which checkpoint.
        index: LogIndex,
        /// The first byte wanted.
        offset: u64,
    },
    /// A part of a checkpoint.
    CheckpointPart {
        /// The view.
        view: ViewNumber,
        /// Which checkpoint.
        index: LogIndex,
        /// Where the part starts, in bytes.
        offset: u64,
        /// How long the checkpoint is, in bytes; 0 if it no longer exists.
        total: u64,
        /// The part.
        bytes: Bytes,
    },
    /// Asks for single entries, to fill in rows that have rotted (D4); works without a view.
    FetchRows {
        /// The entry before the first one wanted.
        after: Position,
        /// The last one wanted.
        through: LogIndex,
    },
    /// Entries to fill in: they follow `after`. None if the sender has not got them.
    Rows {
        /// From the request.
        after: Position,
        /// The entries.
        entries: Vec<Arc<Entry>>,
    },
    /// The receiver has applied the same log as the others and answered otherwise: it must stop (D7).
    Differs {
        /// The view the sender leads.
        view: ViewNumber,
        /// The sender's own mark.
        mark: Mark,
    },
    /// Rows of a log that has lost against the primary's, to be proposed again (R3).
    Rebase {
        /// The view the receiver leads.
        view: ViewNumber,
        /// The sender's life.
        incarnation: Incarnation,
        /// Names the batch, within that life.
        nonce: u64,
        /// The last index that the two logs share.
        fork: LogIndex,
        /// The rows as they stood in the sender's log, in their order.
        rows: Vec<Arc<Entry>>,
    },
    /// All rows of a batch are committed in this view (R7).
    RebaseOk {
        /// The view.
        view: ViewNumber,
        /// From the batch.
        nonce: u64,
    },
}
