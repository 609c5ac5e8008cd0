//! Builds the state from the rows of a checkpoint.

use std::collections::HashMap;
use std::fmt::Display;

use super::accounts::Handle;
use super::command::Reply;
use super::conflicts::Conflict;
use super::mailboxes::{Mailboxes, Message};
use super::table::SnapshotTable;
use super::table_row::{Kind, MessageRow, TableRow};
use super::{Account, Session, State, Table};
use crate::row::RowError;
use crate::types::{AccountId, ClientId, LogIndex, RequestId};

/// A state under construction. Rows come table by table in the order of [`Table::ALL`], in file order.
#[derive(Debug)]
pub struct Restore {
    state: State,
    /// The accounts that exist and those that messages name: most rows name two, in no order.
    known: HashMap<AccountId, Known>,
}

/// An account of which a row was seen.
#[derive(Clone, Copy, Debug)]
struct Known {
    handle: Handle,
    /// Whether it exists; a row of a message may name one that is deleted.
    exists: bool,
}

/// What does not fit together though each row by itself is right.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// A row contradicts another one.
    #[error("row {row} of {}: {error}", .table.file_name())]
    Row {
        /// In which table.
        table: Table,
        /// Which row, counted from 1.
        row: u64,
        /// What is wrong with it.
        error: RowError,
    },
    /// Several rows together are wrong.
    #[error("{0}")]
    Rows(String),
}

impl Restore {
    /// Starts an empty state as of `index`; `digest` is what [`State::digest`] was then.
    #[must_use]
    pub fn new(index: LogIndex, digest: [u8; 32]) -> Self {
        Self { state: State { index, digest, ..State::default() }, known: HashMap::new() }
    }

    /// Takes one row.
    ///
    /// # Errors
    /// What was found in which field, and what was expected beside the rows before.
    pub fn add(&mut self, row: TableRow) -> Result<(), RowError> {
        match row.0 {
            Kind::Account(id, account, active) => self.account(id, account, active),
            Kind::Message(message) => self.message(message),
            Kind::Session(client, session) => self.session(client, session),
            Kind::Reply(request, reply) => self.reply(request, reply),
            Kind::Applied(row) => {
                let State { applied, index, .. } = &mut self.state;
                applied.restore(*index, row).or_else(|expected| ensure(false, 1, row.at(), expected))
            }
            Kind::Conflict(order, conflict) => self.conflict(order, conflict),
        }
    }

    /// Ends the tables and gives the state.
    ///
    /// # Errors
    /// What does not fit together.
    pub fn finish(mut self) -> Result<State, Unfit> {
        drop(self.known);
        let State { directory, mailboxes, sessions, .. } = &mut self.state;
        directory.pack();
        sessions.pack();
        mailboxes.build_lookups(directory).map_err(|orders| same_id(mailboxes, orders))?;
        self.state.check_restored().map_err(Unfit::Rows)?;
        Ok(self.state)
    }

    fn account(&mut self, id: AccountId, account: Account, active: LogIndex) -> Result<(), RowError> {
        let directory = &mut self.state.directory;
        ensure(directory.accounts.last_key() < Some(id), 0, id, "an id above that of the row before")?;
        let free = directory.named(&account.name).is_none();
        ensure(free, 1, &account.name, "a name that no other account has")?;
        directory.add(id, account, true);
        directory.note_active(id, active);
        let handle = directory.handle(id).expect("it was just added");
        self.known.insert(id, Known { handle, exists: true });
        Ok(())
    }

    fn message(&mut self, row: MessageRow) -> Result<(), RowError> {
        let State { directory, mailboxes, index, .. } = &mut self.state;
        let MessageRow { id, order, from, to, unix_ms, late, text, delivered } = row;
        let table = if delivered { &mailboxes.delivered } else { &mailboxes.queued };
        ensure(table.last_key() < Some(order), 1, order, "an order above that of the row before")?;
        let free = !delivered || !mailboxes.queued.contains(order);
        ensure(free, 1, order, "an order that no queued message has")?;
        ensure((1..=index.0).contains(&order), 1, order, "an order up to the checkpoint's index")?;
        let accounts = [from, to].map(|id| self.known.get(&id).copied());
        let [from_exists, to_exists] = accounts.map(|known| known.is_some_and(|known| known.exists));
        if delivered {
            let known = from_exists || to_exists;
            ensure(known, 3, to, "the sender or the recipient in user_table.csv")?;
        } else {
            ensure(to_exists, 3, to, "the id of an account in user_table.csv")?;
        }
        let mut deleted = |id| {
            let handle = directory.handle_of_any(id, true);
            self.known.insert(id, Known { handle, exists: false });
            handle
        };
        let [from, to] = [(accounts[0], from), (accounts[1], to)]
            .map(|(known, id)| known.map_or_else(|| deleted(id), |known| known.handle));
        mailboxes.add_row(order, Message { id, from, to, unix_ms, late, text }, delivered);
        Ok(())
    }

    fn session(&mut self, client: ClientId, session: Session) -> Result<(), RowError> {
        let State { sessions, directory, .. } = &mut self.state;
        let ascending = sessions.sessions.last_key() < Some(client);
        ensure(ascending, 0, client, "a client id above that of the row before")?;
        let known = directory.accounts.contains(session.account);
        ensure(known, 1, session.account, "the id of an account in user_table.csv")?;
        sessions.add(directory, client, session);
        Ok(())
    }

    fn reply(&mut self, request: RequestId, reply: Reply) -> Result<(), RowError> {
        let sessions = &mut self.state.sessions;
        let session = sessions.session(request.client);
        ensure(session.is_some(), 0, request.client, "the client id of a session in sessions.csv")?;
        let acknowledged = session.map(|session| session.acknowledged);
        let kept = request.number.is_chosen_by_client() && Some(request.number) > acknowledged;
        let expected = "a 32-bit request number above what the session has acknowledged";
        ensure(kept, 1, request.number, expected)?;
        let ascending = sessions.replies.last_key() < Some(request);
        ensure(ascending, 1, request.number, "a request above that of the row before")?;
        sessions.add_reply(request, reply);
        Ok(())
    }

    fn conflict(&mut self, order: u64, conflict: Conflict) -> Result<(), RowError> {
        let State { conflicts, index, .. } = &mut self.state;
        ensure(conflicts.rows.last_key() < Some(order), 0, order, "an order above that of the row before")?;
        ensure((1..=index.0).contains(&order), 0, order, "an order up to the checkpoint's index")?;
        conflicts.add(order, conflict);
        Ok(())
    }
}

/// Which row says that two messages have the same id: the later one of the checkpoint.
fn same_id(mailboxes: &Mailboxes, orders: [u64; 2]) -> Unfit {
    let later = |table| orders.into_iter().filter(|order| SnapshotTable::contains(table, *order)).max();
    let (table, rows, order) = match later(&mailboxes.delivered) {
        Some(order) => (Table::Delivered, &mailboxes.delivered, order),
        None => (Table::Queued, &mailboxes.queued, orders[1]),
    };
    let before = rows.iter().take_while(|(other, _)| *other < order).count() as u64;
    let found = rows.row(order).map(|message| message.id.to_string()).unwrap_or_default();
    let error = RowError::Field { field: 1, found, expected: "an id that no other message has" };
    Unfit::Row { table, row: before + 1, error }
}

fn ensure(holds: bool, field: usize, found: impl Display, expected: &'static str) -> Result<(), RowError> {
    let error = || RowError::Field { field: field + 1, found: found.to_string(), expected };
    if holds { Ok(()) } else { Err(error()) }
}

impl State {
    /// Bounds that concern several rows of a checkpoint.
    fn check_restored(&self) -> Result<(), String> {
        let sessions_max = crate::config::SESSIONS_PER_ACCOUNT_MAX;
        for (id, _) in self.directory.accounts.iter() {
            let sessions = self.sessions.clients(id).count();
            if sessions > sessions_max {
                return Err(format!(
                    "found {sessions} sessions of account {id}, expected at most {sessions_max}"
                ));
            }
        }
        Ok(())
    }
}
