//! One row of a checkpoint, read by itself: whether it fits the others is another matter, and another thread's.

use super::applied::{AppliedRow, Fate, Run};
use super::command::{Command, ConflictReason, Reply, parse_hash};
use super::conflicts::Conflict;
use super::validate::valid_given_name;
use super::{Account, Session, Table};
use crate::row::{Fields, RowError};
use crate::types::{AccountId, ClientId, LogIndex, MessageId, RequestId, RequestNumber, ServerId};

/// One row of a checkpoint.
#[derive(Debug)]
pub struct TableRow(pub(super) Kind);

#[derive(Debug)]
pub(super) enum Kind {
    /// With the index of the last command of those of its sessions that have ended.
    Account(AccountId, Account, LogIndex),
    Message(MessageRow),
    Session(ClientId, Session),
    Reply(RequestId, Reply),
    Applied(AppliedRow),
    /// With its order.
    Conflict(u64, Conflict),
}

/// A message, its accounts named as in the file.
#[derive(Debug)]
pub(super) struct MessageRow {
    pub(super) id: MessageId,
    pub(super) order: u64,
    pub(super) from: AccountId,
    pub(super) to: AccountId,
    pub(super) unix_ms: u64,
    pub(super) late: bool,
    pub(super) text: Box<str>,
    pub(super) delivered: bool,
}

impl TableRow {
    /// Reads the fields of [`Table::header`].
    ///
    /// # Errors
    /// What was found in which field, and what was expected.
    pub fn parse(table: Table, fields: &Fields) -> Result<Self, RowError> {
        let expected = table.header().len();
        if fields.len() != expected {
            return Err(RowError::FieldCount { found: fields.len(), expected });
        }
        let kind = match table {
            Table::Users => account(fields),
            Table::Queued => message(fields, false),
            Table::Delivered => message(fields, true),
            Table::Sessions => session(fields),
            Table::Replies => reply(fields),
            Table::Applied => applied(fields).map(Kind::Applied),
            Table::Conflicts => conflict(fields),
        };
        kind.map(Self)
    }
}

fn account(fields: &Fields) -> Result<Kind, RowError> {
    let id = AccountId(fields.value(0, "an account id")?);
    let name = fields.text(1)?;
    if !valid_given_name(&name) {
        return Err(fields.error(1, "a name of 1 to 32 of A-Z a-z 0-9 _ . -, or one with ~NUMBER"));
    }
    let account = Account {
        name,
        password: fields.text(2)?,
        password_set: fields.value(3, "the id of the request that set the password")?,
        created_unix_ms: fields.value(4, "milliseconds since 1970")?,
    };
    Ok(Kind::Account(id, account, LogIndex(fields.value(5, "an index")?)))
}

fn message(fields: &Fields, delivered: bool) -> Result<Kind, RowError> {
    Ok(Kind::Message(MessageRow {
        id: MessageId(fields.value(0, "a message id")?),
        order: fields.value(1, "the message's place in the order of all")?,
        from: AccountId(fields.value(2, "an account id")?),
        to: AccountId(fields.value(3, "an account id")?),
        unix_ms: fields.value(4, "milliseconds since 1970")?,
        late: match fields.raw(5) {
            "" => false,
            "late" => true,
            _ => return Err(fields.error(5, "late or nothing")),
        },
        text: fields.text(6)?.into(),
        delivered,
    }))
}

fn session(fields: &Fields) -> Result<Kind, RowError> {
    let session = Session {
        account: AccountId(fields.value(1, "an account id")?),
        token: parse_hash(fields.raw(2)).ok_or_else(|| fields.error(2, "64 hexadecimal digits"))?,
        acknowledged: RequestNumber(fields.value(3, "a request number")?),
        last_used_unix_ms: fields.value(4, "milliseconds since 1970")?,
        active: LogIndex(fields.value(5, "an index")?),
    };
    Ok(Kind::Session(client_id(fields, 0)?, session))
}

fn reply(fields: &Fields) -> Result<Kind, RowError> {
    let number = RequestNumber(fields.value(1, "a request number")?);
    let request = RequestId { client: client_id(fields, 0)?, number };
    Ok(Kind::Reply(request, Reply::read_fields(2, fields)?))
}

fn applied(fields: &Fields) -> Result<AppliedRow, RowError> {
    let at = LogIndex(fields.value(1, "an index, or the number of a generation")?);
    Ok(match fields.raw(0) {
        "from" => AppliedRow::From(at),
        "absent" => AppliedRow::Absent(ServerId(fields.value(2, "a server's number")?), at),
        kind @ ("ids" | "refused") => {
            let fate = if kind == "ids" { Fate::CarriedOut } else { Fate::Refused };
            let number = RequestNumber(fields.value(3, "a request number")?);
            let first = RequestId { client: client_id(fields, 2)?, number };
            let last = RequestNumber(fields.value(4, "a request number")?);
            AppliedRow::Run(at.0, Run { fate, first, last })
        }
        _ => return Err(fields.error(0, "from, absent, ids or refused")),
    })
}

fn conflict(fields: &Fields) -> Result<Kind, RowError> {
    let order = fields.value(0, "the conflict's place in the order of all")?;
    let reason = ConflictReason::from_keyword(fields.raw(1))
        .ok_or_else(|| fields.error(1, "the reason of a conflict"))?;
    let command = Command::kind_from(fields.raw(2)).ok_or_else(|| fields.error(2, "a command's keyword"))?;
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
    Ok(Kind::Conflict(order, conflict))
}

fn client_id(fields: &Fields, field: usize) -> Result<ClientId, RowError> {
    let text = fields.raw(field);
    let id = u64::from_str_radix(text, 16).ok().filter(|id| ClientId(*id).to_string() == text);
    id.map(ClientId).ok_or_else(|| fields.error(field, "a client id of 16 hexadecimal digits"))
}
