//! What goes into the core and what comes out: plain data.

use std::sync::Arc;
use std::time::Duration;

use crate::message::{
    CheckpointResult, CheckpointStep, Entry, PeerMessage, Position, Push, Read, ReadResult, Request,
    Response, Write,
};
use crate::time::Instant;
use crate::types::{ClusterId, ConnectionId, LogIndex, ServerId, WriteId};

/// The role a server was given on its command line; it matters in an empty directory only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FirstRole {
    /// Creates the cluster if there is none.
    Primary,
    /// Waits for a primary.
    Secondary,
}

/// What the core must be told about its place in the world.
#[derive(Clone, Debug)]
pub struct Config {
    /// Which server this is.
    pub me: ServerId,
    /// The addresses of all configured servers, in the order of their ids (the first is server 1).
    pub servers: Vec<String>,
    /// Only this role creates a cluster.
    pub first_role: FirstRole,
    /// A cluster known to exist beside this directory: an empty directory only joins it.
    pub known_cluster: Option<ClusterId>,
    /// Writes are refused in smaller views (N10).
    pub min_copies: u8,
    /// After this long a cold start goes on with everyone who answers; none: it waits for ever.
    pub cold_wait: Option<Duration>,
    /// Whether a refused connection proves a crash (V11); off behind forwarders.
    pub evidence: bool,
    /// Log bytes since the last checkpoint that make the next one due, at least.
    pub checkpoint_log_bytes_min: u64,
}

/// How a link to a peer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkState {
    /// Connected, and the peer has proved that it knows the key.
    Up,
    /// An established link has ended: suspicion only (V11).
    Closed,
    /// A fresh connection was refused: the host answers, and no process listens (V11).
    Refused {
        /// When the attempt was begun, by the clock of whoever tells.
        begun: Instant,
    },
    /// A fresh connection was not answered within the suspicion timeout, or the host can't be reached.
    Silent,
}

/// Names one read from the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ReadId(pub u64);

/// Names one password job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HashId(pub u64);

/// A password job: slow, so it is done outside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HashJob {
    /// Salt and hash a new password.
    New {
        /// In clear.
        password: String,
    },
    /// Compare a password with a stored hash. With no hash to compare, take as long as if there were one.
    Verify {
        /// In clear.
        password: String,
        /// A PHC string.
        hash: Option<String>,
    },
}

/// What a password job brought.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hashed {
    /// The PHC string of a new password.
    New(String),
    /// Whether the password is right.
    Verified(bool),
    /// Too many wrong passwords were tried: wait.
    Throttled {
        /// How long.
        seconds: u64,
    },
    /// The hash could not be computed.
    Failed(String),
}

/// What happens to a replica.
#[derive(Debug)]
pub enum Event {
    /// A client asks something.
    Request {
        /// On which connection.
        connection: ConnectionId,
        /// The frame's request id; 0: not numbered.
        request: u32,
        /// What.
        body: Request,
        /// The wall clock, milliseconds since 1970.
        unix_ms: u64,
    },
    /// A client's connection is gone; nothing more will be sent to it.
    Disconnected {
        /// Which.
        connection: ConnectionId,
    },
    /// A peer says something. It has proved that it knows the key, and that it is `from`.
    Message {
        /// Who.
        from: ServerId,
        /// What.
        message: PeerMessage,
    },
    /// A link has changed.
    Link {
        /// To whom.
        peer: ServerId,
        /// How it is now.
        state: LinkState,
    },
    /// All writes up to this one are on disk.
    Synced {
        /// The last of them.
        through: WriteId,
    },
    /// A write or its sync failed (D2): nothing from it on is on disk for certain, and nothing will be tried again.
    WriteFailed {
        /// What went wrong.
        error: String,
    },
    /// A read is done.
    ReadDone {
        /// Which.
        id: ReadId,
        /// What it brought.
        result: ReadResult,
    },
    /// A password job is done.
    Hashed {
        /// Which.
        id: HashId,
        /// What it brought.
        result: Hashed,
    },
    /// A step of a checkpoint is done; the oldest one that is under way.
    CheckpointDone(CheckpointResult),
    /// Rows are filled in (D4).
    Repaired {
        /// None: they are on disk. Otherwise what went wrong.
        error: Option<String>,
        /// Whether the rows behind them follow them. If not, nothing was done.
        fits: bool,
    },
    /// The disk is nearly full, or no longer so (D3).
    DiskSpace {
        /// Whether it is.
        low: bool,
    },
    /// The process was asked to stop in order.
    Stop,
}

/// What a replica wants done, in this order.
#[derive(Debug)]
pub enum Effect {
    /// Send a message; it may get lost.
    Send {
        /// To whom.
        to: ServerId,
        /// What.
        message: PeerMessage,
    },
    /// Answer a client's request.
    Respond {
        /// On which connection.
        connection: ConnectionId,
        /// The request's id.
        request: u32,
        /// The answer.
        response: Response,
    },
    /// Close a client's connection, after what was said on it: this server no longer leads, and the client finds
    /// the one that does by connecting anew.
    Close {
        /// Which.
        connection: ConnectionId,
    },
    /// Say something to a client unasked.
    Push {
        /// On which connection.
        connection: ConnectionId,
        /// What.
        push: Push,
    },
    /// Write to the log; [`Event::Synced`] says when it is on disk.
    Write {
        /// Ascending, never reused.
        id: WriteId,
        /// What.
        write: Write,
    },
    /// Log files that hold only entries up to here may go (T3).
    Cut {
        /// The last entry that is no longer needed.
        through: LogIndex,
    },
    /// Read from the disk; answered by [`Event::ReadDone`].
    Read {
        /// Its name.
        id: ReadId,
        /// What.
        read: Read,
    },
    /// Do a password job; answered by [`Event::Hashed`].
    Hash {
        /// Its name.
        id: HashId,
        /// From which connection, for throttling by address.
        connection: ConnectionId,
        /// For which account name, for throttling.
        name: String,
        /// What.
        job: HashJob,
    },
    /// Do a step of a checkpoint; answered by [`Event::CheckpointDone`].
    Checkpoint(CheckpointStep),
    /// Fill in rotten rows (D4); answered by [`Event::Repaired`].
    Repair {
        /// The entry before them.
        after: Position,
        /// The rows.
        entries: Vec<Arc<Entry>>,
    },
    /// Connect to a peer afresh and report how that went (V11).
    Probe {
        /// Whom.
        peer: ServerId,
    },
    /// Close all links to peers and connect anew (V2): this process did not run for a while.
    ResetLinks,
    /// The cluster's id, to be kept beside the key (bootstrap).
    RecordCluster(ClusterId),
    /// Something that a person should read.
    Notice(Notice),
    /// End the process.
    Exit(Exit),
}

/// Something that a person should read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// Whether it is bad news.
    pub warning: bool,
    /// One sentence.
    pub text: String,
    /// The server serves or follows now: `ready` is said once.
    pub ready: bool,
}

/// Why a process ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Exit {
    /// It was asked to: exit code 0.
    Stopped,
    /// Recover from the disk again, within this process: what is on it was mended (D4).
    Recover,
    /// It must not go on: exit code 1.
    Refused(String),
    /// Its disk failed: exit code 3.
    Disk(String),
}
