//! The replicated state machine: accounts, mailboxes, sessions. Commands in, replies out; deterministic.

pub mod command;
mod restore;
mod tables;
mod validate;

pub use restore::Restore;
pub use tables::{Slice, Table};
pub use validate::{valid_name, valid_password, valid_text};

use crate::types::{AccountId, ClientId, LogIndex, MessageId, RequestId, RequestNumber};
use command::{AccountPage, MessagePage, MessageView, Operation, Outcome, Reply, TokenHash};

/// An account, as the front of the server needs to see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// As it was typed at creation.
    pub name: String,
    /// A PHC string.
    pub password: String,
    /// Counts changes of the password, from 0.
    pub password_generation: u32,
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
#[derive(Clone, Debug, Default)]
pub struct State {}

#[allow(unused_variables, clippy::todo, missing_docs)]
impl State {
    pub fn new() -> Self {
        todo!()
    }
    /// Applies the entry after the last applied one. `chain` is the entry's chain: it goes into the digest.
    pub fn apply(&mut self, index: LogIndex, unix_ms: u64, chain: u32, operation: &Operation) -> Outcome {
        todo!()
    }
    /// The index of the last applied entry.
    pub fn index(&self) -> LogIndex {
        todo!()
    }
    /// D7: a running SHA-256 over (entry, reply).
    pub fn digest(&self) -> [u8; 32] {
        todo!()
    }
    pub fn account_named(&self, name: &str) -> Option<AccountId> {
        todo!()
    }
    pub fn account(&self, id: AccountId) -> Option<&Account> {
        todo!()
    }
    pub fn session(&self, client: ClientId) -> Option<&Session> {
        todo!()
    }
    pub fn known(&self, request: RequestId) -> Known {
        todo!()
    }
    /// How many messages wait for an account.
    pub fn waiting_count(&self, account: AccountId) -> u64 {
        todo!()
    }
    pub fn message(&self, id: MessageId) -> Option<MessageView> {
        todo!()
    }
    pub fn list(&self, pattern: &str, after: &str, limit: usize) -> AccountPage {
        todo!()
    }
    pub fn waiting(&self, account: AccountId, after: u64, limit: usize) -> MessagePage {
        todo!()
    }
    /// None: nobody has this name.
    pub fn history(&self, account: AccountId, with: &str, before: u64, limit: usize) -> Option<MessagePage> {
        todo!()
    }
    /// Whether a session has not been used since before this time.
    pub fn has_sessions_unused_since(&self, unix_ms: u64) -> bool {
        todo!()
    }
    /// Roughly how many bytes a checkpoint takes.
    pub fn bytes_estimate(&self) -> u64 {
        todo!()
    }
    /// From now on slices show the state as it is now, whatever is applied meanwhile.
    pub fn begin_checkpoint(&mut self) {
        todo!()
    }
    /// The next rows of the checkpoint under way; none when it is finished.
    pub fn next_slice(&mut self, rows_max: usize) -> Option<Slice> {
        todo!()
    }
}
