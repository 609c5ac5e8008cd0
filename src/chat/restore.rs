//! Builds the state from the rows of a checkpoint.

use super::command::{Reply, parse_hash};
use super::mailboxes::Message;
use super::{Account, Session, State, Table};
use crate::row::{Fields, RowError};
use crate::types::{AccountId, ClientId, LogIndex, MessageId, RequestId, RequestNumber};

/// A state under construction. Rows come table by table in the order of [`Table::ALL`], in file order.
#[derive(Debug)]
pub struct Restore {
    state: State,
    /// The table of the row before.
    table: Table,
}

impl Restore {
    /// Starts an empty state as of `index`; `digest` is what [`State::digest`] was then.
    #[must_use]
    pub fn new(index: LogIndex, digest: [u8; 32]) -> Self {
        Self { state: State { index, digest, ..State::default() }, table: Table::Users }
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
        }
    }

    /// Ends the tables and gives the state.
    ///
    /// # Errors
    /// What does not fit together.
    pub fn finish(self) -> Result<State, String> {
        self.state.check_restored()?;
        Ok(self.state)
    }

    fn account(&mut self, fields: &Fields) -> Result<(), RowError> {
        let id = AccountId(fields.value(0, "an account id")?);
        let directory = &mut self.state.directory;
        ensure(directory.accounts.last_key() < Some(id), fields, 0, "an id above that of the row before")?;
        let name = fields.text(1)?;
        ensure(super::valid_name(&name).is_ok(), fields, 1, "a name of 1 to 32 of A-Z a-z 0-9 _ . -")?;
        ensure(directory.named(&name).is_none(), fields, 1, "a name that no other account has")?;
        let account = Account {
            name,
            password: fields.text(2)?,
            password_set: fields.value(3, "the id of the request that set the password")?,
            created_unix_ms: fields.value(4, "milliseconds since 1970")?,
        };
        directory.add(id, account, true);
        Ok(())
    }

    fn message(&mut self, fields: &Fields, delivered: bool) -> Result<(), RowError> {
        let State { directory, mailboxes, index, .. } = &mut self.state;
        let id = MessageId(fields.value(0, "a message id")?);
        ensure(mailboxes.order(id).is_none(), fields, 0, "an id that no other message has")?;
        let order: u64 = fields.value(1, "the message's place in the order of all")?;
        let table = if delivered { &mailboxes.delivered } else { &mailboxes.queued };
        ensure(table.last_key() < Some(order), fields, 1, "an order above that of the row before")?;
        ensure(mailboxes.message(order).is_none(), fields, 1, "an order that no queued message has")?;
        ensure((1..=index.0).contains(&order), fields, 1, "an order up to the checkpoint's index")?;
        let from = AccountId(fields.value(2, "an account id")?);
        let to = AccountId(fields.value(3, "an account id")?);
        if delivered {
            let known = directory.accounts.contains(from) || directory.accounts.contains(to);
            ensure(known, fields, 3, "the sender or the recipient in user_table.csv")?;
        } else {
            ensure(directory.accounts.contains(to), fields, 3, "the id of an account in user_table.csv")?;
        }
        let unix_ms = fields.value(4, "milliseconds since 1970")?;
        let text = fields.text(5)?.into();
        let [from, to] =
            [from, to].map(|id| directory.handle(id).unwrap_or_else(|| directory.restore_deleted(id)));
        mailboxes.add(directory, order, Message { id, from, to, unix_ms, text }, delivered);
        Ok(())
    }

    fn session(&mut self, fields: &Fields) -> Result<(), RowError> {
        let client = client_id(fields)?;
        let sessions = &mut self.state.sessions;
        let ascending = sessions.sessions.last_key() < Some(client);
        ensure(ascending, fields, 0, "a client id above that of the row before")?;
        let account = AccountId(fields.value(1, "an account id")?);
        let known = self.state.directory.accounts.contains(account);
        ensure(known, fields, 1, "the id of an account in user_table.csv")?;
        let token = parse_hash(fields.raw(2)).ok_or_else(|| fields.error(2, "64 hexadecimal digits"))?;
        let acknowledged = RequestNumber(fields.value(3, "a request number")?);
        let last_used_unix_ms = fields.value(4, "milliseconds since 1970")?;
        sessions.add(client, Session { account, token, acknowledged, last_used_unix_ms });
        Ok(())
    }

    fn reply(&mut self, fields: &Fields) -> Result<(), RowError> {
        let client = client_id(fields)?;
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
        sessions.replies.insert(request, Reply::read_fields(2, fields)?);
        Ok(())
    }
}

fn client_id(fields: &Fields) -> Result<ClientId, RowError> {
    let text = fields.raw(0);
    let id = u64::from_str_radix(text, 16).ok().filter(|id| ClientId(*id).to_string() == text);
    id.map(ClientId).ok_or_else(|| fields.error(0, "a client id of 16 hexadecimal digits"))
}

fn ensure(holds: bool, fields: &Fields, field: usize, expected: &'static str) -> Result<(), RowError> {
    if holds { Ok(()) } else { Err(fields.error(field, expected)) }
}

impl State {
    /// Bounds that concern several rows of a checkpoint.
    fn check_restored(&self) -> Result<(), String> {
        let sessions_max = crate::config::SESSIONS_PER_ACCOUNT_MAX;
        let waiting_max = crate::config::MAILBOX_MESSAGES_MAX as u64;
        for (id, row) in self.directory.accounts.iter() {
            let sessions = self.sessions.clients(id).count();
            if sessions > sessions_max {
                return Err(format!(
                    "found {sessions} sessions of account {id}, expected at most {sessions_max}"
                ));
            }
            let waiting = self.directory.waiting(row.handle);
            if waiting > waiting_max {
                return Err(format!(
                    "found {waiting} messages queued for {id}, expected at most {waiting_max}"
                ));
            }
        }
        Ok(())
    }
}
