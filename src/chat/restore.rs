//! Builds the state from the rows of a checkpoint.

use std::collections::HashMap;

use super::accounts::Handle;
use super::applied::{AppliedRow, Run};
use super::command::{Command, ConflictReason, Reply, parse_hash};
use super::conflicts::Conflict;
use super::mailboxes::{Mailboxes, Message};
use super::table::SnapshotTable;
use super::{Account, Session, State, Table};
use crate::row::{Fields, RowError};
use crate::types::{AccountId, ClientId, LogIndex, MessageId, RequestId, RequestNumber, ServerId};

/// A state under construction. Rows come table by table in the order of [`Table::ALL`], in file order.
#[derive(Debug)]
pub struct Restore {
    state: State,
    /// The table of the row before.
    table: Table,
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
        Self {
            state: State { index, digest, ..State::default() },
            table: Table::Users,
            known: HashMap::new(),
        }
    }

    /// Takes one row, parsed into the fields of [`Table::header`], without its checksum.
    ///
    /// # Errors
    /// What was found in which field, and what was expected.
    ///
    /// # Panics
    /// If the tables don't come in the order of [`Table::ALL`].
    pub fn row(&mut self, table: Table, fields: &Fields) -> Result<(), RowError> {
        assert!(table >= self.table, "rows of {table:?} come after rows of {:?}", self.table);
        self.table = table;
        let expected = table.header().len();
        if fields.len() != expected {
            return Err(RowError::FieldCount { found: fields.len(), expected });
        }
        match table {
            Table::Users => self.account(fields),
            Table::Queued => self.message(fields, false),
            Table::Delivered => self.message(fields, true),
            Table::Sessions => self.session(fields),
            Table::Replies => self.reply(fields),
            Table::Applied => self.applied(fields),
            Table::Conflicts => self.conflict(fields),
        }
    }

    /// Ends the tables and gives the state.
    ///
    /// # Errors
    /// What does not fit together.
    pub fn finish(mut self) -> Result<State, Unfit> {
        let State { directory, mailboxes, .. } = &mut self.state;
        mailboxes.build_lookups(directory).map_err(|orders| same_id(mailboxes, orders))?;
        self.state.check_restored().map_err(Unfit::Rows)?;
        Ok(self.state)
    }

    fn account(&mut self, fields: &Fields) -> Result<(), RowError> {
        let id = AccountId(fields.value(0, "an account id")?);
        let directory = &mut self.state.directory;
        ensure(directory.accounts.last_key() < Some(id), fields, 0, "an id above that of the row before")?;
        let name = fields.text(1)?;
        ensure(
            super::validate::valid_given_name(&name),
            fields,
            1,
            "a name of 1 to 32 of A-Z a-z 0-9 _ . -, or one with ~NUMBER",
        )?;
        ensure(directory.named(&name).is_none(), fields, 1, "a name that no other account has")?;
        let account = Account {
            name,
            password: fields.text(2)?,
            password_set: fields.value(3, "the id of the request that set the password")?,
            created_unix_ms: fields.value(4, "milliseconds since 1970")?,
        };
        directory.add(id, account, true);
        directory.note_active(id, LogIndex(fields.value(5, "an index")?));
        let handle = directory.handle(id).expect("it was just added");
        self.known.insert(id, Known { handle, exists: true });
        Ok(())
    }

    fn message(&mut self, fields: &Fields, delivered: bool) -> Result<(), RowError> {
        let State { directory, mailboxes, index, .. } = &mut self.state;
        let id = MessageId(fields.value(0, "a message id")?);
        let order: u64 = fields.value(1, "the message's place in the order of all")?;
        let table = if delivered { &mailboxes.delivered } else { &mailboxes.queued };
        ensure(table.last_key() < Some(order), fields, 1, "an order above that of the row before")?;
        let free = !delivered || !mailboxes.queued.contains(order);
        ensure(free, fields, 1, "an order that no queued message has")?;
        ensure((1..=index.0).contains(&order), fields, 1, "an order up to the checkpoint's index")?;
        let from = AccountId(fields.value(2, "an account id")?);
        let to = AccountId(fields.value(3, "an account id")?);
        let accounts = [from, to].map(|id| self.known.get(&id).copied());
        let [from_exists, to_exists] = accounts.map(|known| known.is_some_and(|known| known.exists));
        if delivered {
            let known = from_exists || to_exists;
            ensure(known, fields, 3, "the sender or the recipient in user_table.csv")?;
        } else {
            ensure(to_exists, fields, 3, "the id of an account in user_table.csv")?;
        }
        let unix_ms = fields.value(4, "milliseconds since 1970")?;
        let late = match fields.raw(5) {
            "" => false,
            "late" => true,
            _ => return Err(fields.error(5, "late or nothing")),
        };
        let text = fields.text(6)?.into();
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

    fn session(&mut self, fields: &Fields) -> Result<(), RowError> {
        let client = client_id(fields, 0)?;
        let sessions = &mut self.state.sessions;
        let ascending = sessions.sessions.last_key() < Some(client);
        ensure(ascending, fields, 0, "a client id above that of the row before")?;
        let account = AccountId(fields.value(1, "an account id")?);
        let known = self.state.directory.accounts.contains(account);
        ensure(known, fields, 1, "the id of an account in user_table.csv")?;
        let token = parse_hash(fields.raw(2)).ok_or_else(|| fields.error(2, "64 hexadecimal digits"))?;
        let acknowledged = RequestNumber(fields.value(3, "a request number")?);
        let last_used_unix_ms = fields.value(4, "milliseconds since 1970")?;
        let active = LogIndex(fields.value(5, "an index")?);
        sessions.add(
            &self.state.directory,
            client,
            Session { account, token, acknowledged, last_used_unix_ms, active },
        );
        Ok(())
    }

    fn reply(&mut self, fields: &Fields) -> Result<(), RowError> {
        let client = client_id(fields, 0)?;
        let request = RequestId { client, number: RequestNumber(fields.value(1, "a request number")?) };
        let sessions = &mut self.state.sessions;
        let Some(session) = sessions.session(client) else {
            return Err(fields.error(0, "the client id of a session in sessions.csv"));
        };
        let kept = request.number.is_chosen_by_client() && request.number > session.acknowledged;
        ensure(kept, fields, 1, "a 32-bit request number above what the session has acknowledged")?;
        ensure(
            sessions.replies.last_key() < Some(request),
            fields,
            1,
            "a request above that of the row before",
        )?;
        sessions.add_reply(request, Reply::read_fields(2, fields)?);
        Ok(())
    }

    fn applied(&mut self, fields: &Fields) -> Result<(), RowError> {
        let row = match fields.raw(0) {
            "from" => AppliedRow::From(LogIndex(fields.value(1, "an index")?)),
            "absent" => AppliedRow::Absent(
                ServerId(fields.value(2, "a server's number")?),
                LogIndex(fields.value(1, "an index")?),
            ),
            "ids" => {
                let number = RequestNumber(fields.value(3, "a request number")?);
                let first = RequestId { client: client_id(fields, 2)?, number };
                let last = RequestNumber(fields.value(4, "a request number")?);
                AppliedRow::Run(fields.value(1, "the number of a generation")?, Run { first, last })
            }
            _ => return Err(fields.error(0, "from, absent or ids")),
        };
        let State { applied, index, .. } = &mut self.state;
        applied.restore(*index, row).map_err(|expected| fields.error(1, expected))
    }

    fn conflict(&mut self, fields: &Fields) -> Result<(), RowError> {
        let State { conflicts, index, .. } = &mut self.state;
        let order: u64 = fields.value(0, "the conflict's place in the order of all")?;
        ensure(conflicts.rows.last_key() < Some(order), fields, 0, "an order above that of the row before")?;
        ensure((1..=index.0).contains(&order), fields, 0, "an order up to the checkpoint's index")?;
        let reason = ConflictReason::from_keyword(fields.raw(1))
            .ok_or_else(|| fields.error(1, "the reason of a conflict"))?;
        let command =
            Command::kind_from(fields.raw(2)).ok_or_else(|| fields.error(2, "a command's keyword"))?;
        let other = (!fields.raw(6).is_empty()).then(|| fields.value(6, "an account id")).transpose()?;
        let conflict = Conflict {
            reason,
            command,
            request: fields.value(3, "a request id")?,
            unix_ms: fields.value(4, "milliseconds since 1970")?,
            account: AccountId(fields.value(5, "an account id")?),
            other: other.map(AccountId),
            text: fields.text(7)?,
        };
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

fn client_id(fields: &Fields, field: usize) -> Result<ClientId, RowError> {
    let text = fields.raw(field);
    let id = u64::from_str_radix(text, 16).ok().filter(|id| ClientId(*id).to_string() == text);
    id.map(ClientId).ok_or_else(|| fields.error(field, "a client id of 16 hexadecimal digits"))
}

fn ensure(holds: bool, fields: &Fields, field: usize, expected: &'static str) -> Result<(), RowError> {
    if holds { Ok(()) } else { Err(fields.error(field, expected)) }
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
