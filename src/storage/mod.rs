//! CSV files on a disk: the log, the tables of checkpoints, and recovery from whatever a crash has left of them.
//!
//! - `disk`: what a directory must be able to do, and the real one; `memory_disk`: one for tests and the simulator.
//! - `record`: the rows of `server_log.csv`, encoded and read.
//! - `lines`, `index`: a file line by line; where each entry stands.
//! - `scan`: one pass over a log, which finds where each entry stands and what is damaged (D4).
//! - `commit_log`: the writer (D1-D3, R2); `log_reader`: reads entries back while the log is written (T1).
//! - `checkpoint`: tables, two generations, one link (T5, D6).
//! - `diverged`: rows that were moved aside, to be proposed again (R2, R7).
//! - `recovery`: [`open`] puts these together when a server starts.
//!
//! **Invariant:** everything here is synchronous and deterministic; nothing reads a clock or knows the network. A large
//! checkpoint is read by two threads, which do the same each time. After a failed write nothing else is attempted (D2).
//!
//! **Invariant:** names change only in an order in which a crash at any point leaves one whole state.

mod checkpoint;
mod commit_log;
mod disk;
mod diverged;
mod error;
mod index;
mod lines;
mod log_reader;
mod memory_disk;
mod record;
mod recovery;
mod scan;

pub use checkpoint::{CheckpointReader, Checkpoints};
pub use commit_log::CommitLog;
pub use disk::{Disk, DiskFile, OsDisk, OsFile};
pub use diverged::read_diverged;
pub use error::StorageError;
pub use log_reader::LogReader;
pub use memory_disk::{MemoryDisk, MemoryFile};
pub use recovery::{Opened, open, open_with};

/// The size at which the live segment of the log is sealed, in bytes.
pub const SEGMENT_BYTES_MAX: u64 = 64 * 1024 * 1024;
