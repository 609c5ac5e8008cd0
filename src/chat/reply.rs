//! Replies as fields of a row.

use super::command::{Refusal, Reply};
use crate::row::{Fields, RowError, RowWriter};
use crate::types::{AccountId, MessageId};

impl Reply {
    /// The keyword in the `reply` column.
    #[must_use]
    pub fn keyword(&self) -> &'static str {
        match self {
            Self::Registered { .. } => "registered",
            Self::LoggedIn { .. } => "logged_in",
            Self::LoggedOut => "logged_out",
            Self::AccountDeleted => "account_deleted",
            Self::PasswordChanged => "password_changed",
            Self::Sent { .. } => "sent",
            Self::Acknowledged { .. } => "acknowledged",
            Self::Deleted { .. } => "deleted",
            Self::Refused(_) => "refused",
        }
    }

    /// Appends three fields: keyword, subject (an id or the reason of a refusal) and value (a count or a time).
    pub fn write_fields(&self, row: &mut RowWriter) {
        row.encoded(self.keyword().as_bytes());
        match self {
            Self::Registered { account } | Self::LoggedIn { account, .. } => row.id(account.0),
            Self::Sent { message, .. } => row.id(message.0),
            Self::Refused(refusal) => row.encoded(refusal.keyword().as_bytes()),
            _ => row.encoded(b""),
        }
        match self {
            Self::LoggedIn { waiting: value, .. }
            | Self::Sent { unix_ms: value, .. }
            | Self::Acknowledged { count: value }
            | Self::Deleted { count: value } => row.number(*value),
            _ => row.encoded(b""),
        }
    }

    /// Reads a reply from the three fields that start at field `first`.
    ///
    /// # Errors
    /// [`RowError::Field`] with the field that does not fit.
    pub fn read_fields(first: usize, fields: &Fields) -> Result<Self, RowError> {
        let (subject, value) = (first + 1, first + 2);
        let account = || Ok(AccountId(fields.value(subject, "an account id")?));
        let count = || fields.value(value, "a count");
        Ok(match fields.raw(first) {
            "registered" => Self::Registered { account: account()? },
            "logged_in" => Self::LoggedIn { account: account()?, waiting: count()? },
            "logged_out" => Self::LoggedOut,
            "account_deleted" => Self::AccountDeleted,
            "password_changed" => Self::PasswordChanged,
            "sent" => Self::Sent {
                message: MessageId(fields.value(subject, "a message id")?),
                unix_ms: fields.value(value, "milliseconds since 1970")?,
            },
            "acknowledged" => Self::Acknowledged { count: count()? },
            "deleted" => Self::Deleted { count: count()? },
            "refused" => Self::Refused(
                Refusal::from_keyword(fields.raw(subject))
                    .ok_or_else(|| fields.error(subject, "the reason of a refusal"))?,
            ),
            _ => return Err(fields.error(first, "the keyword of a reply")),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{ClientId, RequestId, RequestNumber};

    #[test]
    fn every_reply_reads_back_from_its_fields() {
        let id = RequestId { client: ClientId(0xfeed), number: RequestNumber(7) };
        let mut replies = vec![
            Reply::Registered { account: AccountId(id) },
            Reply::LoggedIn { account: AccountId(id), waiting: 3 },
            Reply::LoggedOut,
            Reply::AccountDeleted,
            Reply::PasswordChanged,
            Reply::Sent { message: MessageId(id), unix_ms: u64::MAX },
            Reply::Acknowledged { count: 0 },
            Reply::Deleted { count: 1024 },
        ];
        replies
            .extend([Refusal::NameTaken, Refusal::MailboxFull, Refusal::PasswordChanged].map(Reply::Refused));
        for reply in replies {
            let mut row = RowWriter::new();
            row.plain("x");
            reply.write_fields(&mut row);
            let mut fields = Fields::new();
            fields.parse(row.row(), 4).unwrap();
            assert_eq!(Reply::read_fields(1, &fields), Ok(reply));
        }
    }

    #[test]
    fn an_unknown_reply_is_an_error_that_shows_it() {
        let mut fields = Fields::new();
        fields.parse(b"x,shrugged,,", 4).unwrap();
        let error = Reply::read_fields(1, &fields).unwrap_err().to_string();
        assert_eq!(error, "found \"shrugged\" in field 2, expected the keyword of a reply");
    }
}
