//! What clients ask and are answered.

use crate::chat::command::{AccountPage, ConflictPage, MessagePage, MessageView, Reply};
use crate::types::{AccountId, ClientId, MessageId, ViewNumber};

/// What a client asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Creates an account and logs in.
    Register {
        /// The account's name.
        name: String,
        /// Its password.
        password: String,
        /// The client's own id; [`ClientId::NONE`] lets the server draw one.
        client: ClientId,
        /// With it the session can be resumed; all zero: it can't.
        token: [u8; 32],
    },
    /// Logs in with a password.
    Login {
        /// The account's name.
        name: String,
        /// Its password.
        password: String,
        /// As in [`Request::Register`].
        client: ClientId,
        /// As in [`Request::Register`].
        token: [u8; 32],
    },
    /// Binds the connection to a session that exists (X1).
    Resume {
        /// Whose session.
        client: ClientId,
        /// The token given at login.
        token: [u8; 32],
    },
    /// Ends the session, or all of the account's.
    Logout {
        /// All of them.
        everywhere: bool,
    },
    /// Deletes the own account.
    DeleteAccount {
        /// Its password, once more.
        password: String,
    },
    /// Changes the own password.
    ChangePassword {
        /// The present one.
        password: String,
        /// The next one.
        new_password: String,
    },
    /// Lists account names.
    List {
        /// A pattern with `*` and `?`, without case; empty: all.
        pattern: String,
        /// Names after this one; empty: from the beginning.
        after: String,
        /// How many at most; 0: the default.
        limit: u16,
    },
    /// Sends a message.
    Send {
        /// The recipient's name.
        to: String,
        /// The text.
        text: String,
    },
    /// Reads waiting messages, oldest first. They stay until acknowledged.
    Read {
        /// After this cursor; 0: from the oldest.
        after: u64,
        /// How many at most; 0: the default.
        limit: u16,
    },
    /// The client has these messages; they need not wait any longer.
    Acknowledge {
        /// Which.
        messages: Vec<MessageId>,
    },
    /// Deletes messages for both sides.
    Delete {
        /// Which.
        messages: Vec<MessageId>,
    },
    /// Reads the messages exchanged with one account, latest page first, each page oldest first.
    History {
        /// The other account's name.
        with: String,
        /// Before this cursor; 0: the latest.
        before: u64,
        /// How many at most; 0: the default.
        limit: u16,
    },
    /// Reads what concerns the account among what could not be applied as it was after a split (R6), oldest first.
    Conflicts {
        /// After this cursor; 0: from the oldest.
        after: u64,
        /// How many at most; 0: the default.
        limit: u16,
    },
    /// Asks for new messages to be pushed to this connection (X4).
    Subscribe,
    /// Asks how the server is; needs no login and no primary.
    Status,
    /// Asks for an answer.
    Ping,
    /// What the client knows; not answered. Travels in front of other requests.
    Seen {
        /// It has the replies to all its requests up to this number (N2).
        acknowledged: u32,
        /// The highest view it has heard of (N1).
        view: ViewNumber,
    },
}

/// A server's answer to one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Response {
    /// A command was carried out: on disk at every member of the view, and applied (§1).
    Done {
        /// Its outcome; never [`Reply::Refused`], which is an error.
        reply: Reply,
        /// The client id the connection is now bound to; [`ClientId::NONE`] after a logout.
        client: ClientId,
        /// In which view it was acknowledged.
        view: ViewNumber,
        /// On how many disks it is (N10).
        copies: u8,
        /// How many servers are configured.
        configured: u8,
    },
    /// The connection is bound to the session.
    Resumed {
        /// The account's id.
        account: AccountId,
        /// Its name.
        name: String,
        /// How many messages wait.
        waiting: u64,
        /// The view.
        view: ViewNumber,
    },
    /// Messages.
    Messages(MessagePage),
    /// Names.
    Accounts(AccountPage),
    /// What could not be applied as it was.
    Conflicts(ConflictPage),
    /// New messages will be pushed.
    Subscribed,
    /// How the server is.
    Status(Status),
    /// The answer to a ping.
    Pong,
    /// The request failed.
    Error(ErrorResponse),
}

/// Something a server says without being asked, on a connection that subscribed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Push {
    /// A message was queued for the account.
    Message(MessageView),
    /// The session has ended: logged out elsewhere, expired, or its account deleted.
    SessionEnded,
}

/// Why a request failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ErrorResponse {
    /// The kind of failure.
    pub code: ErrorCode,
    /// Whether the request may have been executed although it failed.
    pub maybe_executed: bool,
    /// For a person: what was found and what was expected.
    pub text: String,
    /// For [`ErrorCode::NotPrimary`]: the primary's address, or empty if none is known.
    pub primary: String,
}

macro_rules! error_codes {
    ($($(#[doc = $doc:literal])* $name:ident = $code:literal, $keyword:literal, $retriable:literal;)*) => {
        /// The kinds of failure, as on the wire.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u16)]
        pub enum ErrorCode { $($(#[doc = $doc])* $name = $code,)* }

        impl ErrorCode {
            /// Every code.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// The number on the wire.
            #[must_use]
            pub const fn number(self) -> u16 { match self { $(Self::$name => $code,)* } }

            /// The code with this number.
            #[must_use]
            pub const fn from_number(number: u16) -> Option<Self> {
                match number { $($code => Some(Self::$name),)* _ => None }
            }

            /// One word for programs.
            #[must_use]
            pub const fn keyword(self) -> &'static str { match self { $(Self::$name => $keyword,)* } }

            /// Whether the same request may succeed later or at another server.
            #[must_use]
            pub const fn retriable(self) -> bool { match self { $(Self::$name => $retriable,)* } }
        }
    };
}

error_codes! {
    /// The frame's body can't be read. The connection stays open: its framing is intact.
    Malformed = 1, "malformed", false;
    /// No request has this opcode.
    UnknownOpcode = 2, "unknown_opcode", false;
    /// The frame is longer than allowed; the connection is closed.
    FrameTooLong = 3, "frame_too_long", false;
    /// The request needs a login first.
    NotLoggedIn = 10, "not_logged_in", false;
    /// No account has this name, or it has another password.
    WrongPassword = 11, "wrong_password", false;
    /// Too many wrong passwords; the text says how long to wait.
    TooManyAttempts = 12, "too_many_attempts", false;
    /// The session does not exist, has ended, or has another token.
    SessionExpired = 13, "session_expired", false;
    /// Another account used this client id first.
    ClientIdTaken = 14, "client_id_taken", false;
    /// Another account has the name.
    NameTaken = 20, "name_taken", false;
    /// The name is out of bounds; the text says which.
    InvalidName = 21, "invalid_name", false;
    /// The password is out of bounds; the text says which.
    InvalidPassword = 22, "invalid_password", false;
    /// The message's text is out of bounds; the text says which.
    InvalidText = 23, "invalid_text", false;
    /// Another argument is out of bounds; the text says which.
    InvalidArgument = 24, "invalid_argument", false;
    /// No account has this name.
    NoSuchAccount = 30, "no_such_account", false;
    /// None of these messages exists, or none is the account's.
    NoSuchMessage = 31, "no_such_message", false;
    /// The recipient has too many messages waiting.
    MailboxFull = 32, "mailbox_full", false;
    /// Another server leads; `primary` says which.
    NotPrimary = 40, "not_primary", true;
    /// No server leads at the moment.
    NoPrimary = 41, "no_primary", true;
    /// Too many requests under way; or the request number is too far ahead of the oldest unanswered one.
    Busy = 42, "busy", true;
    /// Fewer servers hold copies than `--min-copies` asks for.
    TooFewCopies = 43, "too_few_copies", true;
    /// A disk is nearly full; nothing is written until there is space.
    DiskFull = 44, "disk_full", true;
    /// The server stops or stopped leading while the request was under way.
    Interrupted = 45, "interrupted", true;
    /// The request's number was acknowledged, or is so old that its reply is forgotten.
    ReplyForgotten = 46, "reply_forgotten", false;
    /// The request was carried out on one side of a split, and does not fit what was done on the other (R6).
    Conflict = 47, "conflict", false;
}

/// How a server is, for people and monitoring.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// Its advertised address.
    pub server: String,
    /// `primary`, `backup`, `learner` or `waiting`.
    pub role: String,
    /// Its installed view.
    pub view: ViewNumber,
    /// Who leads, as an address; empty if nobody is known to.
    pub primary: String,
    /// The addresses of the view's members.
    pub members: Vec<String>,
    /// The addresses of all configured servers.
    pub configured: Vec<String>,
    /// The end of its log.
    pub last: u64,
    /// How far its log is synced.
    pub synced: u64,
    /// How far it knows entries to be committed.
    pub commit: u64,
    /// How far they are applied.
    pub applied: u64,
    /// How many entries it is behind the primary, as far as it knows.
    pub lag: u64,
    /// Milliseconds since it took this role.
    pub since_ms: u64,
    /// What a person should know: whom it waits for, what is wrong; empty if nothing is.
    pub note: String,
}
