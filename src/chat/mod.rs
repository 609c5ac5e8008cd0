//! The replicated state machine: accounts, mailboxes, sessions. Commands in, replies out; deterministic.
//!
//! **Invariant:** nothing here reads a clock, draws a random number or iterates over a randomly seeded map. Equal logs
//! give equal states, equal replies, equal digests and, byte for byte, equal checkpoints (D6, D7).
//!
//! | file | holds |
//! |---|---|
//! | `command` | what goes in and what comes out |
//! | `accounts`, `mailboxes`, `conversations`, `sessions` | the state and the orders in which it is looked up |
//! | `applied`, `conflicts` | what becoming one again after a split needs: ids of applied commands, and what did not fit |
//! | `apply`, `rebase` | what each command does, here or coming from another log |
//! | `queries` | pages of names and messages |
//! | `rows`, `table`, `checkpoint`, `table_row`, `restore` | the state as rows, as of one index, and back |
//!
//! The cost of a command or a page does not depend on how many accounts and messages there are, but for the
//! logarithm of an ordered map; only deleting an account costs as much as its own mailbox.

mod accounts;
mod applied;
mod apply;
mod checkpoint;
pub mod command;
mod conflicts;
mod conversations;
mod glob;
mod mailboxes;
mod queries;
mod rebase;
mod reply;
mod restore;
mod rows;
mod sessions;
mod table;
mod table_row;
#[cfg(test)]
mod tests;
mod validate;

pub use checkpoint::{Slice, Table};
pub use restore::{AtOnce, InTurn, Restore, Unfit};
pub use table_row::TableRow;
pub use validate::{valid_name, valid_password, valid_text};

use crate::types::{AccountId, ClientId, LogIndex, RequestId, RequestNumber};
use accounts::Directory;
use applied::AppliedIds;
use checkpoint::Emission;
use command::{Reply, TokenHash};
use conflicts::Conflicts;
use mailboxes::Mailboxes;
use sessions::Sessions;

/// An account, as the front of the server needs to see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// As it was typed at creation.
    pub name: String,
    /// A PHC string.
    pub password: String,
    /// The request that set the password. Unlike a count of changes it differs on both sides of a split.
    pub password_set: RequestId,
    /// When it was created, milliseconds since 1970.
    pub created_unix_ms: u64,
}

/// A session: what makes a retry harmless (N2, X1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    /// Whose.
    pub account: AccountId,
    /// SHA-256 of the token; all zero: can't be resumed.
    pub token: TokenHash,
    /// Replies up to this number are forgotten.
    pub acknowledged: RequestNumber,
    /// When it was last used by a command, milliseconds since 1970.
    pub last_used_unix_ms: u64,
    /// The index of its last command that was not proposed again.
    pub active: LogIndex,
}

/// What a session knows of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Known {
    /// It was applied; this is its reply.
    Applied(Reply),
    /// Its number is at or below what the client has acknowledged, or too far behind the newest (N2).
    Forgotten,
    /// It was not applied.
    New,
}

/// The state as of one index.
#[derive(Clone, Default)]
pub struct State {
    index: LogIndex,
    digest: [u8; 32],
    /// Space for a reply's fields on their way into the digest.
    spent: Vec<u8>,
    directory: Directory,
    mailboxes: Mailboxes,
    sessions: Sessions,
    applied: AppliedIds,
    conflicts: Conflicts,
    emission: Option<Emission>,
}

impl State {
    /// The state before the first entry.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The index of the last applied entry.
    #[must_use]
    pub fn index(&self) -> LogIndex {
        self.index
    }

    /// D7: a running SHA-256 over (entry, reply).
    #[must_use]
    pub fn digest(&self) -> [u8; 32] {
        self.digest
    }

    /// The account that has a name, in whatever case.
    #[must_use]
    pub fn account_named(&self, name: &str) -> Option<AccountId> {
        self.directory.named(name)
    }

    /// An account.
    #[must_use]
    pub fn account(&self, id: AccountId) -> Option<&Account> {
        self.directory.accounts.row(id).map(|row| &row.account)
    }

    /// Whether there is any account.
    #[must_use]
    pub fn has_accounts(&self) -> bool {
        self.directory.accounts.len() > 0
    }

    /// The session of a client.
    #[must_use]
    pub fn session(&self, client: ClientId) -> Option<&Session> {
        self.sessions.session(client)
    }

    /// What the client's session knows of a request. Without a session everything is new: ask for the session first.
    #[must_use]
    pub fn known(&self, request: RequestId) -> Known {
        self.sessions.known(request)
    }

    /// The ids of all commands applied from this index on are known (R8): rows of another log that parts from this one at
    /// or after it are told apart from what was applied here.
    #[must_use]
    pub fn applied_from(&self) -> LogIndex {
        self.applied.from()
    }

    /// Whether a session has not been used since before this time.
    #[must_use]
    pub fn has_sessions_unused_since(&self, unix_ms: u64) -> bool {
        self.sessions.has_unused_since(unix_ms)
    }

    /// Roughly how many bytes a checkpoint takes.
    #[must_use]
    pub fn bytes_estimate(&self) -> u64 {
        let exchanged = self.mailboxes.bytes() + self.conflicts.bytes();
        self.directory.bytes() + exchanged + self.sessions.bytes() + self.applied.bytes()
    }

    /// Compares everything that is kept in more than one place. Costs as much as the whole state: for tests.
    ///
    /// # Errors
    /// What does not agree.
    pub fn check_invariants(&self) -> Result<(), String> {
        self.directory.check(&self.mailboxes.check(&self.directory)?)?;
        self.sessions.check(&self.directory)?;
        self.applied.check(self.index)?;
        self.conflicts.check()
    }
}

impl std::fmt::Debug for State {
    /// Sizes, not contents: a state may be large, and has other people's messages in it.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State")
            .field("index", &self.index)
            .field("accounts", &self.directory.accounts.len())
            .field("messages", &self.mailboxes.len())
            .field("sessions", &self.sessions.sessions.len())
            .finish_non_exhaustive()
    }
}
