//! What goes into the state machine and what comes out: plain data, the same on every server.

use crate::row::{Fields, RowError, RowWriter};
use crate::types::{AccountId, ClientId, LogIndex, Member, MessageId, RequestId, RequestNumber, ServerId};

/// The fields of an operation in a log row after `kind`, `index`, `view` and `time_ms`: see [`Operation::write_fields`].
pub const OPERATION_FIELDS: [&str; 7] =
    ["request", "acknowledged", "account", "subject", "text", "extra", "fork"];

/// What one log entry does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    /// The first entry of a view (V8): everything before it commits with it.
    View {
        /// Who leads.
        primary: ServerId,
        /// The in-sync set.
        members: Vec<Member>,
        /// The configured servers that are not in it, ascending: while there are any, applied ids are kept for them (R8).
        absent: Vec<ServerId>,
    },
    /// The last entry before an orderly stop of all members: any of them may start alone.
    Closed,
    /// Sessions unused since before this time are forgotten, at most
    /// [`SESSIONS_EXPIRED_AT_ONCE_MAX`](crate::config::SESSIONS_EXPIRED_AT_ONCE_MAX) (X2). Milliseconds since 1970.
    Expire {
        /// Sessions last used before this moment go.
        before_unix_ms: u64,
    },
    /// A client's command.
    Command(ClientCommand),
    /// A command from a log that has parted from this one, proposed again (R3). Its entry has the time of the first one.
    Rebased {
        /// The last index that the two logs share.
        fork: LogIndex,
        /// As it stands in the other log.
        command: ClientCommand,
    },
}

/// A client's command with all that it needs to be applied alike everywhere (N3).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientCommand {
    /// Names the command; a retry has the same (N2).
    pub request: RequestId,
    /// The client has the replies to all its requests up to this number; they may be forgotten.
    pub acknowledged: RequestNumber,
    /// Who acts. For [`Command::Register`] the account to be, named after the request.
    pub account: AccountId,
    /// What to do.
    pub command: Command,
}

/// SHA-256 of a session's token.
pub type TokenHash = [u8; 32];

/// What a client can change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Creates the account and logs its creator in.
    Register {
        /// As typed; unique without case.
        name: String,
        /// A PHC string (`$argon2id$…`), salted and hashed once, by the primary.
        password: String,
        /// All zero: the session can't be resumed.
        token: TokenHash,
    },
    /// Logs in; the password was checked before the entry existed.
    Login {
        /// Which password was checked: [`super::Account::password_set`].
        checked: RequestId,
        /// All zero: the session can't be resumed.
        token: TokenHash,
    },
    /// Ends this session, or all sessions of the account.
    Logout {
        /// All of them.
        everywhere: bool,
    },
    /// Deletes the account, its sessions and its waiting mail; the password was checked before the entry existed.
    DeleteAccount {
        /// Which password was checked.
        checked: RequestId,
    },
    /// Replaces the password; ends all other sessions of the account.
    ChangePassword {
        /// Which password was checked.
        checked: RequestId,
        /// The new one's PHC string.
        password: String,
    },
    /// Sends a message.
    Send {
        /// To whom.
        to: AccountId,
        /// 1 to 8,192 bytes.
        text: String,
    },
    /// Takes messages out of the own mailbox: the recipient's client has them (X4).
    Acknowledge {
        /// Which; unknown ones are passed over.
        messages: Vec<MessageId>,
    },
    /// Deletes messages that the account sent or received, for both sides.
    Delete {
        /// Which.
        messages: Vec<MessageId>,
    },
}

/// The outcome of a command; kept in the session until the client has acknowledged it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// The account exists and is logged in.
    Registered {
        /// Its id.
        account: AccountId,
    },
    /// Logged in.
    LoggedIn {
        /// The account.
        account: AccountId,
        /// How many messages wait for it.
        waiting: u64,
    },
    /// The session is, or all are, ended.
    LoggedOut,
    /// The account is gone.
    AccountDeleted,
    /// The password is replaced.
    PasswordChanged,
    /// The message is queued for its recipient.
    Sent {
        /// Its id.
        message: MessageId,
        /// When the primary took it in, milliseconds since 1970.
        unix_ms: u64,
    },
    /// Messages are taken out of the mailbox.
    Acknowledged {
        /// How many of those named were still waiting.
        count: u64,
    },
    /// Messages are deleted.
    Deleted {
        /// How many of those named existed and were the account's to delete.
        count: u64,
    },
    /// Nothing was changed.
    Refused(Refusal),
}

/// Why a command changed nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Refusal {
    /// Another account has the name.
    NameTaken,
    /// Another account used this client id first (X1).
    ClientIdTaken,
    /// The recipient, or the own account, does not exist (any more).
    NoSuchAccount,
    /// None of the messages exists, or none is this account's.
    NoSuchMessage,
    /// The recipient has 100,000 messages waiting.
    MailboxFull,
    /// The session does not exist or has ended (N2).
    SessionExpired,
    /// The password was changed after it had been checked.
    PasswordChanged,
    /// It was given on the other side of a split and does not fit what was done here; `conflicts.csv` has it (R6).
    Conflict,
}

impl Refusal {
    const ALL: [(Self, &'static str); 8] = [
        (Self::NameTaken, "name_taken"),
        (Self::ClientIdTaken, "client_id_taken"),
        (Self::NoSuchAccount, "no_such_account"),
        (Self::NoSuchMessage, "no_such_message"),
        (Self::MailboxFull, "mailbox_full"),
        (Self::SessionExpired, "session_expired"),
        (Self::PasswordChanged, "password_changed"),
        (Self::Conflict, "conflict"),
    ];

    /// The keyword for it in files.
    #[must_use]
    pub fn keyword(self) -> &'static str {
        Self::ALL.iter().find(|(refusal, _)| *refusal == self).expect("every refusal is listed").1
    }

    /// The refusal with this keyword.
    #[must_use]
    pub fn from_keyword(keyword: &str) -> Option<Self> {
        Self::ALL.iter().find(|(_, k)| *k == keyword).map(|(refusal, _)| *refusal)
    }
}

/// What was decided about a command from the other side of a split (R6).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ConflictReason {
    /// Not applied: nobody knows any more whether it was applied here before (R8).
    Undecidable,
    /// Not applied: the recipient was deleted here.
    NoSuchRecipient,
    /// Not applied: the account was deleted here.
    NoSuchAccount,
    /// An account was not deleted: it did something on this side of the split.
    AccountActive,
    /// Not applied: the password was changed here.
    PasswordChanged,
    /// A client did not log in: here another account used its id first (X1).
    ClientIdTaken,
    /// Two accounts were created with the same name; the later has another one now.
    Renamed,
    /// Not applied: it was refused here, and the other side may have carried it out.
    Refused,
}

impl ConflictReason {
    const ALL: [(Self, &'static str); 8] = [
        (Self::Undecidable, "undecidable"),
        (Self::NoSuchRecipient, "no_such_recipient"),
        (Self::NoSuchAccount, "no_such_account"),
        (Self::AccountActive, "account_active"),
        (Self::PasswordChanged, "password_changed"),
        (Self::ClientIdTaken, "client_id_taken"),
        (Self::Renamed, "renamed"),
        (Self::Refused, "refused"),
    ];

    /// The keyword for it in files.
    #[must_use]
    pub fn keyword(self) -> &'static str {
        Self::ALL.iter().find(|(reason, _)| *reason == self).expect("every reason is listed").1
    }

    /// The reason with this keyword.
    #[must_use]
    pub fn from_keyword(keyword: &str) -> Option<Self> {
        Self::ALL.iter().find(|(_, k)| *k == keyword).map(|(reason, _)| *reason)
    }
}

/// A conflict as one of those whom it concerns sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConflictView {
    /// Where it stands in the order of all; a cursor for paging.
    pub cursor: u64,
    /// The request that could not be applied as it was.
    pub request: RequestId,
    /// When it was taken in, milliseconds since 1970.
    pub unix_ms: u64,
    /// What was decided: the keyword of a [`ConflictReason`].
    pub reason: String,
    /// What the request asked: a keyword as in the log.
    pub command: String,
    /// The name of who asked, or of who was renamed; or `[deleted]`.
    pub account: String,
    /// The name of the other whom it concerns, or `[deleted]`; empty: nobody.
    pub other: String,
    /// A message's text, a name, or ids of messages.
    pub text: String,
}

/// A page of conflicts, oldest first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConflictPage {
    /// The page.
    pub conflicts: Vec<ConflictView>,
    /// Whether there are later ones.
    pub more: bool,
}

/// A message as one of its two accounts sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MessageView {
    /// The message.
    pub id: MessageId,
    /// The sender's name, or `[deleted]`.
    pub from: String,
    /// The recipient's name, or `[deleted]`.
    pub to: String,
    /// When the primary took it in, milliseconds since 1970.
    pub unix_ms: u64,
    /// Whether the recipient's client has acknowledged it.
    pub delivered: bool,
    /// Whether it comes from a log that had parted from this one: it stands later in the order than its time says (R10).
    pub late: bool,
    /// Where it stands in the order of all messages; a cursor for paging.
    pub cursor: u64,
    /// The text.
    pub text: String,
}

/// What is shown instead of the name of an account that no longer exists. No account can have this name.
pub const DELETED_NAME: &str = "[deleted]";

/// A page of messages, oldest first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MessagePage {
    /// The page.
    pub messages: Vec<MessageView>,
    /// Whether there are more beyond it: later ones for a mailbox, earlier ones for a history.
    pub more: bool,
}

/// A page of account names, in the order of their lower-case forms.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AccountPage {
    /// The page. May be shorter than asked although there is more: a page looks at a bounded number of accounts.
    pub names: Vec<String>,
    /// Where the next page starts (a name to pass as `after`); none at the end.
    pub next: Option<String>,
}

/// What applying one entry has brought about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The reply to a client's command; none for the other operations.
    pub reply: Option<Reply>,
    /// A message that now waits for an account, to be pushed to its subscribed connections (X4).
    pub queued: Option<(AccountId, MessageId)>,
    /// Sessions that ended with this entry: connections bound to them are no longer logged in.
    pub ended: Vec<ClientId>,
}

impl Operation {
    /// What to propose of a row of a log that shares only what is up to `fork` (R3); none of rows that are no commands.
    ///
    /// What was proposed again there already keeps the earlier fork: since that one its id may be known here.
    #[must_use]
    pub fn proposed_again(self, fork: LogIndex) -> Option<Self> {
        match self {
            Self::Command(command) => Some(Self::Rebased { fork, command }),
            Self::Rebased { fork: earlier, command } => {
                Some(Self::Rebased { fork: fork.min(earlier), command })
            }
            Self::View { .. } | Self::Closed | Self::Expire { .. } => None,
        }
    }

    /// The keyword in the log's `kind` column.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::View { .. } => "view",
            Self::Closed => "closed",
            Self::Expire { .. } => "expire",
            Self::Command(command) => command.command.kind(),
            Self::Rebased { command, .. } => command.command.rebased_kind(),
        }
    }

    /// Appends the fields [`OPERATION_FIELDS`]; those that a kind does not use are empty.
    pub fn write_fields(&self, row: &mut RowWriter) {
        match self {
            Self::Command(command) => return command.write_fields(None, row),
            Self::Rebased { fork, command } => return command.write_fields(Some(*fork), row),
            _ => {}
        }
        for _ in 0..3 {
            row.encoded(b"");
        }
        match self {
            Self::View { primary, members, absent } => {
                row.number(u64::from(primary.0));
                row.plain(format_members(members));
                row.plain(Joined(absent));
            }
            Self::Expire { before_unix_ms } => {
                row.number(*before_unix_ms);
                row.encoded(b"");
                row.encoded(b"");
            }
            _ => {
                for _ in 0..3 {
                    row.encoded(b"");
                }
            }
        }
        row.encoded(b"");
    }

    /// Reads an operation from its `kind` and the fields that start at field `first`.
    ///
    /// # Errors
    /// [`RowError::Field`] with the field that does not fit.
    pub fn read_fields(kind: usize, first: usize, fields: &Fields) -> Result<Self, RowError> {
        let [subject, text, extra, fork] = std::array::from_fn(|at| first + 3 + at);
        match fields.raw(kind) {
            "view" => Ok(Self::View {
                primary: ServerId(fields.value(subject, "a server's number")?),
                members: parse_members(fields.raw(text))
                    .ok_or_else(|| fields.error(text, "members as SERVER:INCARNATION"))?,
                absent: parse_joined(fields.raw(extra), |id| id.parse().ok().map(ServerId))
                    .ok_or_else(|| fields.error(extra, "servers' numbers"))?,
            }),
            "closed" => Ok(Self::Closed),
            "expire" => {
                Ok(Self::Expire { before_unix_ms: fields.value(subject, "milliseconds since 1970")? })
            }
            other => match other.strip_prefix(REBASED) {
                None => Ok(Self::Command(ClientCommand::read_fields(kind, other, first, fields)?)),
                Some(command) => Ok(Self::Rebased {
                    fork: LogIndex(fields.value(fork, "the index of a fork")?),
                    command: ClientCommand::read_fields(kind, command, first, fields)?,
                }),
            },
        }
    }
}

impl ClientCommand {
    /// Appends the fields; the fork is that of a command proposed again.
    fn write_fields(&self, fork: Option<LogIndex>, row: &mut RowWriter) {
        let Self { request, acknowledged, account, command } = self;
        row.id(*request);
        row.number(acknowledged.0);
        if account.0 == *request {
            row.encoded(b""); // A new account is named after the request that stands two fields before.
        } else {
            row.id(account.0);
        }
        match command {
            Command::Register { name, password, token } => {
                row.text(name);
                row.text(password);
                row.plain(Hex(token));
            }
            Command::Login { checked, token } => {
                row.id(*checked);
                row.encoded(b"");
                row.plain(Hex(token));
            }
            Command::Logout { everywhere } => {
                row.plain(if *everywhere { "everywhere" } else { "here" });
                row.encoded(b"");
                row.encoded(b"");
            }
            Command::DeleteAccount { checked } => {
                row.id(*checked);
                row.encoded(b"");
                row.encoded(b"");
            }
            Command::ChangePassword { checked, password } => {
                row.id(*checked);
                row.text(password);
                row.encoded(b"");
            }
            Command::Send { to, text } => {
                row.id(to.0);
                row.text(text);
                row.encoded(b"");
            }
            Command::Acknowledge { messages } | Command::Delete { messages } => {
                row.encoded(b"");
                row.plain(Joined(messages));
                row.encoded(b"");
            }
        }
        match fork {
            Some(fork) => row.number(fork.0),
            None => row.encoded(b""),
        }
    }

    /// Reads a command with this keyword.
    fn read_fields(kind: usize, keyword: &str, first: usize, fields: &Fields) -> Result<Self, RowError> {
        let [request, acknowledged, account, subject, text, extra] = std::array::from_fn(|at| first + at);
        let request_id: RequestId = fields.value(request, "a request id")?;
        let checked = || fields.value(subject, "the id of the request that set the password");
        let token =
            || parse_hash(fields.raw(extra)).ok_or_else(|| fields.error(extra, "64 hexadecimal digits"));
        let messages = || {
            parse_joined(fields.raw(text), |id| id.parse().ok().map(MessageId))
                .ok_or_else(|| fields.error(text, "message ids"))
        };
        let command = match keyword {
            "register" => Command::Register {
                name: fields.text(subject)?,
                password: fields.text(text)?,
                token: token()?,
            },
            "login" => Command::Login { checked: checked()?, token: token()? },
            "logout" => match fields.raw(subject) {
                "everywhere" => Command::Logout { everywhere: true },
                "here" => Command::Logout { everywhere: false },
                _ => return Err(fields.error(subject, "here or everywhere")),
            },
            "delete_account" => Command::DeleteAccount { checked: checked()? },
            "change_password" => {
                Command::ChangePassword { checked: checked()?, password: fields.text(text)? }
            }
            "send" => Command::Send {
                to: AccountId(fields.value(subject, "an account id")?),
                text: fields.text(text)?,
            },
            "acknowledge" => Command::Acknowledge { messages: messages()? },
            "delete" => Command::Delete { messages: messages()? },
            _ => return Err(fields.error(kind, "the kind of an entry")),
        };
        Ok(Self {
            request: request_id,
            acknowledged: RequestNumber(fields.value(acknowledged, "a request number")?),
            account: if fields.raw(account).is_empty() {
                AccountId(request_id)
            } else {
                AccountId(fields.value(account, "an account id")?)
            },
            command,
        })
    }
}

/// What the kind of a command that is proposed again begins with.
const REBASED: &str = "rebased_";

impl Command {
    /// The keyword in files.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        &self.rebased_kind()[REBASED.len()..]
    }

    /// The keyword of a command, as it stands in the log.
    pub(crate) fn kind_from(keyword: &str) -> Option<&'static str> {
        const KINDS: [&str; 8] = [
            "register",
            "login",
            "logout",
            "delete_account",
            "change_password",
            "send",
            "acknowledge",
            "delete",
        ];
        KINDS.into_iter().find(|kind| *kind == keyword)
    }

    fn rebased_kind(&self) -> &'static str {
        match self {
            Self::Register { .. } => "rebased_register",
            Self::Login { .. } => "rebased_login",
            Self::Logout { .. } => "rebased_logout",
            Self::DeleteAccount { .. } => "rebased_delete_account",
            Self::ChangePassword { .. } => "rebased_change_password",
            Self::Send { .. } => "rebased_send",
            Self::Acknowledge { .. } => "rebased_acknowledge",
            Self::Delete { .. } => "rebased_delete",
        }
    }
}

/// Members as `SERVER:INCARNATION`, separated by blanks.
#[must_use]
pub fn format_members(members: &[Member]) -> String {
    members.iter().map(|m| format!("{}:{}", m.server, m.incarnation.0)).collect::<Vec<_>>().join(" ")
}

/// The reverse of [`format_members`].
#[must_use]
pub fn parse_members(text: &str) -> Option<Vec<Member>> {
    text.split_ascii_whitespace()
        .map(|member| {
            let (server, incarnation) = member.split_once(':')?;
            Some(Member {
                server: ServerId(server.parse().ok()?),
                incarnation: crate::types::Incarnation(incarnation.parse().ok()?),
            })
        })
        .collect()
}

/// Bytes as lower-case hexadecimal digits.
pub(crate) struct Hex<'a>(pub(crate) &'a [u8]);

impl std::fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Reads 32 bytes from 64 hexadecimal digits.
pub(crate) fn parse_hash(text: &str) -> Option<[u8; 32]> {
    if text.len() != 64 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    let mut hash = [0; 32];
    for (at, byte) in hash.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[at * 2..at * 2 + 2], 16).ok()?;
    }
    Some(hash)
}

/// Words separated by blanks.
struct Joined<'a, T>(&'a [T]);

impl<T: std::fmt::Display> std::fmt::Display for Joined<'_, T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (at, id) in self.0.iter().enumerate() {
            if at > 0 {
                f.write_str(" ")?;
            }
            id.fmt(f)?;
        }
        Ok(())
    }
}

/// The reverse of [`Joined`].
fn parse_joined<T>(text: &str, parse: impl Fn(&str) -> Option<T>) -> Option<Vec<T>> {
    text.split_ascii_whitespace().map(parse).collect()
}
