//! Builds the state from the rows of a checkpoint.

use std::collections::HashMap;
use std::fmt::Display;

use super::accounts::{Directory, Handle};
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
    /// Most rows name two, in no order.
    existing: Existing,
    /// Accounts that messages name and that are deleted.
    deleted: HashMap<AccountId, Handle>,
}

/// The handles of the accounts that exist. A table by hash would take more space, and longer with more accounts than the
/// processor's caches hold.
#[derive(Debug, Default)]
struct Existing {
    /// Ascending, as their rows are.
    accounts: Vec<(AccountId, Handle)>,
    /// How many of them come before those whose ids have these first bits. Clients choose their ids at random: few share
    /// so many bits.
    below: Vec<u32>,
}

impl Existing {
    /// How many first bits of an id the index goes by.
    fn bits(&self) -> u32 {
        self.below.len().ilog2()
    }

    /// Builds the index, after the last account.
    fn index(&mut self) {
        const OF_EACH: usize = 4;
        let firsts = (self.accounts.len() / OF_EACH).next_power_of_two().max(2);
        self.below = vec![0; firsts];
        let bits = self.bits();
        for (id, _) in &self.accounts {
            self.below[id.0.client.first_bits(bits)] += 1;
        }
        let mut total = 0;
        for below in &mut self.below {
            total += std::mem::replace(below, total);
        }
    }

    fn handle(&self, id: AccountId) -> Option<Handle> {
        let first = id.0.client.first_bits(self.bits());
        let end = self.below.get(first + 1).map_or(self.accounts.len(), |below| *below as usize);
        let among = &self.accounts[self.below[first] as usize..end];
        among.binary_search_by_key(&id, |(id, _)| *id).ok().map(|at| among[at].1)
    }
}

/// Does two things that have nothing to do with each other: at once, where there are threads.
pub trait AtOnce {
    /// Does both, and gives what they give.
    fn both<A: Send, B>(&self, first: impl FnOnce() -> A + Send, second: impl FnOnce() -> B) -> (A, B);
}

/// Does one thing after the other.
#[derive(Clone, Copy, Debug)]
pub struct InTurn;

impl AtOnce for InTurn {
    fn both<A: Send, B>(&self, first: impl FnOnce() -> A + Send, second: impl FnOnce() -> B) -> (A, B) {
        (first(), second())
    }
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
        Self {
            state: State { index, digest, ..State::default() },
            existing: Existing::default(),
            deleted: HashMap::new(),
        }
    }

    /// Takes rows that follow each other.
    ///
    /// # Errors
    /// Which one, counted from 0, does not fit those before it: what was found in which field, and what was expected.
    pub fn add(&mut self, rows: Vec<TableRow>) -> Result<(), (usize, RowError)> {
        if self.existing.below.is_empty() && !matches!(rows[..], [TableRow(Kind::Account(..)), ..]) {
            self.existing.index();
        }
        // Looked for together: of a million accounts hardly one is in a cache, and the processor waits for several at once.
        let named: Vec<_> = rows.iter().map(|row| self.named(row)).collect();
        let mut rows = rows.into_iter().zip(named).enumerate();
        rows.try_for_each(|(at, (row, named))| self.add_row(row, named).map_err(|error| (at, error)))
    }

    /// The two accounts that a message names, those that exist.
    fn named(&self, row: &TableRow) -> [Option<Handle>; 2] {
        match &row.0 {
            Kind::Message(message) => [message.from, message.to].map(|id| self.existing.handle(id)),
            _ => [None; 2],
        }
    }

    fn add_row(&mut self, row: TableRow, named: [Option<Handle>; 2]) -> Result<(), RowError> {
        match row.0 {
            Kind::Account(id, account, active) => self.account(id, account, active),
            Kind::Message(message) => self.message(message, named),
            Kind::Session(client, session) => self.session(client, session),
            Kind::Reply(request, reply) => self.reply(request, reply),
            Kind::Applied(row) => {
                let State { applied, index, .. } = &mut self.state;
                applied.restore(*index, row).or_else(|expected| ensure(false, 1, row.at(), expected))
            }
            Kind::Conflict(order, conflict) => self.conflict(order, conflict),
        }
    }

    /// Ends the tables and gives the state. What is looked up is put together by twos.
    ///
    /// # Errors
    /// What does not fit together.
    pub fn finish(mut self, work: &impl AtOnce) -> Result<State, Unfit> {
        drop(self.existing);
        let State { directory, mailboxes, sessions, .. } = &mut self.state;
        directory.pack();
        sessions.pack();
        let (by_name_and_id, by_account) = work.both(
            || (directory.names_of_rows(), mailboxes.ids_of_rows()),
            || mailboxes.accounts_of_rows(directory),
        );
        let (names, ids) = by_name_and_id;
        let names = names.map_err(|later| same_name(directory, later))?;
        let ids = ids.map_err(|orders| same_id(mailboxes, orders))?;
        directory.names = names;
        mailboxes.set_lookups(directory, ids, by_account);
        self.state.check_restored().map_err(Unfit::Rows)?;
        Ok(self.state)
    }

    fn account(&mut self, id: AccountId, account: Account, active: LogIndex) -> Result<(), RowError> {
        let directory = &mut self.state.directory;
        ensure(directory.accounts.last_key() < Some(id), 0, id, "an id above that of the row before")?;
        let handle = directory.add_row(id, account, active, true);
        self.existing.accounts.push((id, handle));
        Ok(())
    }

    fn message(&mut self, row: MessageRow, named: [Option<Handle>; 2]) -> Result<(), RowError> {
        let State { directory, mailboxes, index, .. } = &mut self.state;
        let MessageRow { id, order, from, to, unix_ms, late, text, delivered } = row;
        let table = if delivered { &mailboxes.delivered } else { &mailboxes.queued };
        ensure(table.last_key() < Some(order), 1, order, "an order above that of the row before")?;
        let free = !delivered || !mailboxes.queued.contains(order);
        ensure(free, 1, order, "an order that no queued message has")?;
        ensure((1..=index.0).contains(&order), 1, order, "an order up to the checkpoint's index")?;
        if delivered {
            let known = named != [None; 2];
            ensure(known, 3, to, "the sender or the recipient in user_table.csv")?;
        } else {
            ensure(named[1].is_some(), 3, to, "the id of an account in user_table.csv")?;
        }
        let mut of_deleted =
            |id| *self.deleted.entry(id).or_insert_with(|| directory.handle_of_any(id, true));
        let [from, to] = [(named[0], from), (named[1], to)]
            .map(|(existing, id)| existing.unwrap_or_else(|| of_deleted(id)));
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

/// Which row says that two accounts have the same name.
fn same_name(directory: &Directory, later: AccountId) -> Unfit {
    let before = directory.accounts.iter().take_while(|(id, _)| *id != later).count() as u64;
    let found = directory.accounts.row(later).map(|row| row.account.name.clone()).unwrap_or_default();
    let error = RowError::Field { field: 2, found, expected: "a name that no other account has" };
    Unfit::Row { table: Table::Users, row: before + 1, error }
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
