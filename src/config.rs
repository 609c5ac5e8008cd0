//! Limits and timings: each with its unit, and how they relate.

use std::time::Duration;

/// Longest account name, in bytes.
pub const NAME_BYTES_MAX: usize = 32;
/// Shortest password, in bytes.
pub const PASSWORD_BYTES_MIN: usize = 8;
/// Longest password, in bytes.
pub const PASSWORD_BYTES_MAX: usize = 1024;
/// Longest text of a message, in bytes of UTF-8.
pub const TEXT_BYTES_MAX: usize = 8192;
/// Most messages waiting in one mailbox.
pub const MAILBOX_MESSAGES_MAX: usize = 100_000;
/// Most sessions of one account; a further login ends the one that was not used for longest.
pub const SESSIONS_PER_ACCOUNT_MAX: usize = 32;
/// A session expires when it was not used for so long.
pub const SESSION_EXPIRY: Duration = Duration::from_secs(30 * 24 * 60 * 60);
/// Most sessions that one entry lets expire: after a month of standstill all of them are due.
pub const SESSIONS_EXPIRED_AT_ONCE_MAX: usize = 1024;
/// How far a client's request numbers may run ahead of the oldest unanswered one (N2).
pub const REQUEST_WINDOW: u64 = 1024;
/// Most ids in one acknowledge or delete request.
pub const IDS_PER_REQUEST_MAX: usize = 1024;
/// Entries on a page of messages or names unless the client says otherwise.
pub const PAGE_DEFAULT: usize = 50;
/// Most entries on a page.
pub const PAGE_MAX: usize = 500;
/// Most bytes of texts and names on a page, so that a response fits into a frame; at least one entry is always there.
pub const PAGE_BYTES_MAX: usize = 48 * 1024;
/// Most accounts that one page of a listing looks at.
pub const LIST_SCAN_MAX: usize = 10_000;

/// Longest frame of a client that is not logged in, in bytes after the length.
pub const FRAME_BEFORE_LOGIN_BYTES_MAX: usize = 4 * 1024;
/// Longest frame of a client, in bytes after the length.
pub const FRAME_CLIENT_BYTES_MAX: usize = 64 * 1024;
/// Longest frame between servers, in bytes after the length.
pub const FRAME_PEER_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Most bytes waiting to be sent to one client; beyond it the connection is closed.
pub const OUTGOING_BYTES_MAX: usize = 1024 * 1024;
/// Most requests of one connection under way; beyond it `busy`.
pub const IN_FLIGHT_MAX: usize = 1024;
/// Most connections of one server.
pub const CONNECTIONS_MAX: usize = 10_000;

/// How often servers say that they live.
pub const HEARTBEAT: Duration = Duration::from_millis(50);
/// Silence of this length counts as a crash (V11).
pub const SUSPICION: Duration = Duration::from_millis(500);
/// Added to [`SUSPICION`] for whoever reaches less than a majority of the configured servers (V11).
pub const MINORITY_GRACE: Duration = Duration::from_secs(3);
/// How long a starting server waits for one that does not answer at all.
pub const COLD_START_SILENCE: Duration = Duration::from_secs(1);
/// How long a server that may create the cluster waits for others that could know one.
pub const BOOTSTRAP_WAIT: Duration = Duration::from_secs(10);
/// Head start of each better placed candidate (V1).
pub const CANDIDATE_STAGGER: Duration = Duration::from_millis(100);
/// A server that was told to stop exits within this time regardless.
pub const ORDERLY_STOP_MAX: Duration = Duration::from_secs(5);

/// Most entries in one batch to a peer.
pub const BATCH_ENTRIES_MAX: usize = 4096;
/// Most bytes of entries in one batch to a peer; one more entry must still fit into a frame.
pub const BATCH_BYTES_MAX: usize = 1024 * 1024;
/// Most bytes given to the disk and not yet synced (D2).
pub const UNSYNCED_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Rows in one slice of a checkpoint.
pub const CHECKPOINT_SLICE_ROWS: usize = 1024;
/// While the tables are smaller than this, a checkpoint is also taken after a second of quiet, in bytes.
pub const SMALL_STATE_BYTES: u64 = 4 * 1024 * 1024;
/// Log bytes since the last checkpoint that make the next one due, at least.
pub const CHECKPOINT_LOG_BYTES_MIN: u64 = 64 * 1024 * 1024;

/// Most entries of a view that some member may not hold when the view ends; beyond it `busy`.
pub const UNCOMMITTED_ENTRIES_MAX: u64 = 65_536;
/// The ids of so many applied entries are kept at most while a configured server is absent (R8).
pub const APPLIED_ENTRIES_MAX: u64 = 10_000_000;

const _: () = assert!(UNCOMMITTED_ENTRIES_MAX < APPLIED_ENTRIES_MAX);
const _: () = assert!(HEARTBEAT.as_millis() * 4 <= SUSPICION.as_millis());
const _: () = assert!(BATCH_BYTES_MAX + 4 * FRAME_CLIENT_BYTES_MAX < FRAME_PEER_BYTES_MAX);
const _: () = assert!(TEXT_BYTES_MAX * 2 < FRAME_CLIENT_BYTES_MAX);
const _: () = assert!(IDS_PER_REQUEST_MAX * 16 < FRAME_CLIENT_BYTES_MAX);
const _: () = assert!(PASSWORD_BYTES_MAX + NAME_BYTES_MAX + 64 < FRAME_BEFORE_LOGIN_BYTES_MAX);
