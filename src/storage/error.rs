//! What can go wrong on disk: each error says where, what was found, and what was expected.

use std::io;

use crate::row::RowError;

/// Why storage can't go on. After one of these from a write nothing more is attempted (D2).
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// The system refused an operation.
    #[error("{path}: can't {operation}: {source}")]
    Io {
        /// What was attempted: `write`, `sync`, ….
        operation: &'static str,
        /// On which file or directory.
        path: String,
        /// What the system said.
        source: io::Error,
    },
    /// The disk is full (D3). What had been written is cut back to the last whole row.
    #[error("{path}: can't {operation}: no space is left on the disk")]
    NoSpace {
        /// What was attempted.
        operation: &'static str,
        /// On which file or directory.
        path: String,
    },
    /// A row can't be read.
    #[error("{path}, line {line}: {error}")]
    Row {
        /// In which file.
        path: String,
        /// Which line, counted from 1; the header is line 1.
        line: u64,
        /// What is wrong with it.
        error: RowError,
    },
    /// A line says something else than it should.
    #[error("{path}, line {line}: found {found}, expected {expected}")]
    Line {
        /// In which file.
        path: String,
        /// Which line, counted from 1; the header is line 1.
        line: u64,
        /// What stands there.
        found: String,
        /// What should.
        expected: String,
    },
    /// A file or directory is not as it should be.
    #[error("{path}: found {found}, expected {expected}")]
    File {
        /// Which.
        path: String,
        /// What it is.
        found: String,
        /// What it should be.
        expected: String,
    },
    /// Another process works on the data directory.
    #[error("the data directory {path} is in use by another process, expected it to be free")]
    InUse {
        /// Which directory.
        path: String,
    },
    /// An earlier write failed, so nothing more is attempted (D2).
    #[error("nothing more is written after an earlier failure: {0}")]
    Poisoned(String),
}

impl StorageError {
    /// Whether the disk is full, which a person can mend.
    #[must_use]
    pub fn is_no_space(&self) -> bool {
        matches!(self, Self::NoSpace { .. })
    }

    /// An error of the system, about a file.
    pub(crate) fn io(operation: &'static str, path: String, source: io::Error) -> Self {
        if source.kind() == io::ErrorKind::StorageFull {
            Self::NoSpace { operation, path }
        } else {
            Self::Io { operation, path, source }
        }
    }
}
