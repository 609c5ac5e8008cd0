//! The client that survives crashes of servers: one method for each command, each carried out once.

use super::connection::{Connection, OpenError, PUSHES_MAX};
use super::error::ClientError;
use super::policy::{Failure, Policy};
use super::session_store::{Lease, SessionStore, StoreError, StoredSession, Told};
use crate::chat::command::{AccountPage, ConflictPage, ConflictView, MessagePage, MessageView, Reply};
use crate::message::{ErrorCode, ErrorResponse, Push, Request, Response, Status};
use crate::time;
use crate::types::{AccountId, ClientId, MessageId, ViewNumber};
use std::collections::{HashSet, VecDeque};
use std::future::Future;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout, timeout_at};

/// How long one attempt to connect may take.
pub const CONNECT_TIMEOUT: Duration = Duration::from_millis(250);
/// A request that is not answered for so long makes the client ask the other servers whether they lead by now. Twice as
/// long is more than it takes them to find a silent primary dead and to go on without it.
pub const PATIENCE: Duration = Duration::from_millis(350);
/// After so many times [`PATIENCE`], some 5 s, a connection is given up although no other server leads.
pub(super) const PATIENCE_TIMES_MAX: u32 = 14;
/// How long a server may take to say how it is.
pub const STATUS_TIMEOUT: Duration = Duration::from_secs(1);
/// How often a listening client asks whether its connection still lives.
pub(super) const PING_INTERVAL: Duration = Duration::from_secs(10);
/// Messages whose ids are remembered so that they are not delivered again (R9).
const DELIVERED_IDS_MAX: usize = 200_000;
/// Most servers a client remembers.
const SERVERS_MAX: usize = 16;
/// Read requests carry numbers from here on: servers don't store their replies, so that the numbers need no lease.
pub(super) const READ_NUMBER_FIRST: u32 = 1 << 31;

const _: () = assert!(CONNECT_TIMEOUT.as_millis() < PATIENCE.as_millis());

/// A password. It can't be printed by accident.
#[derive(Clone)]
pub struct Password(String);

impl Password {
    /// Wraps what was typed.
    #[must_use]
    pub fn new(password: String) -> Self {
        Self(password)
    }
}

impl std::fmt::Debug for Password {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Password(…)")
    }
}

/// What a client has to know.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The servers' addresses, `host:port`. Servers that these name as primary are added.
    pub servers: Vec<String>,
    /// Who acts; none: whoever logged in last.
    pub user: Option<String>,
    /// With it the client logs in by itself when it has no session.
    pub password: Option<Password>,
    /// How long a request may be retried; none: until it succeeds.
    pub timeout: Option<Duration>,
}

/// What a person who waits may want to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// A whole round of attempts has failed; the next one begins soon.
    Retrying {
        /// How soon.
        wait: Duration,
        /// How the last attempt failed.
        reason: String,
    },
    /// A server that leads has answered after such a failure.
    Connected {
        /// Which.
        server: String,
    },
}

/// A reply, and how safely it is stored (N10).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Done<T> {
    /// What came of it.
    pub value: T,
    /// On how many disks it is.
    pub copies: u8,
    /// How many servers are configured.
    pub configured: u8,
}

/// A sent message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sent {
    /// Its id.
    pub message: MessageId,
    /// When the primary took it in, milliseconds since 1970.
    pub unix_ms: u64,
}

/// The session that a login began.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoggedIn {
    /// The account's name.
    pub name: String,
    /// How many messages wait.
    pub waiting: u64,
}

/// A client of the cluster.
pub struct Client {
    servers: Vec<String>,
    policy: Policy,
    store: SessionStore,
    user: Option<String>,
    password: Option<Password>,
    timeout: Option<Duration>,
    session: Option<StoredSession>,
    /// The account of the session, once a server has said it.
    account: Option<Account>,
    link: Option<Link>,
    pushes: (mpsc::Sender<Push>, mpsc::Receiver<Push>),
    notices: Option<mpsc::Sender<Notice>>,
    /// The highest view heard of (N1).
    view: ViewNumber,
    /// The session has all replies up to here (N2).
    acknowledged: u32,
    next_read_number: u32,
    started: Instant,
    /// A round has failed since the last success.
    troubled: bool,
    backlog: VecDeque<MessageView>,
    /// Waiting messages after this cursor have not been read yet.
    unread_after: Option<u64>,
    delivered: RecentIds,
}

/// The account that a client acts for.
struct Account {
    id: AccountId,
    /// After a split it may have another name than the one that was logged in with.
    name: String,
}

/// A connection, and what the server at its other end has been told.
struct Link {
    connection: Connection,
    server: String,
    /// Bound to the session of this client id.
    bound_to: Option<ClientId>,
    subscribed: bool,
    told: (u32, ViewNumber),
}

/// One request on its way through attempts.
struct Call<'a> {
    request: &'a Request,
    number: u32,
    needs_session: bool,
    /// Whether it changes anything: only then "outcome unknown" means anything.
    changes: bool,
    /// The session and its number, if the number was leased.
    lease: Option<(StoredSession, Lease)>,
    /// An attempt ended in a way that leaves open whether the request was carried out.
    uncertain: bool,
    /// An attempt is under way.
    in_flight: bool,
    deadline: Option<Instant>,
    /// What the last attempt found.
    last: String,
    /// The last retriable error that is not about who leads.
    last_error: Option<ErrorResponse>,
}

/// How an attempt failed.
enum Failed {
    /// Try again, there or elsewhere.
    Again(Failure, String),
    /// Trying again is of no use.
    Finally(ClientError),
    /// The session is unknown to the servers, or over.
    NoSession(String),
}

impl Call<'_> {
    fn error_at_deadline(&mut self, timeout: Duration) -> ClientError {
        if self.changes && (self.uncertain || self.in_flight) {
            let reason = format!("no server answered within {} s", timeout.as_secs_f64());
            return ClientError::OutcomeUnknown { reason };
        }
        match self.last_error.take() {
            Some(error) => ClientError::Refused(error),
            None => ClientError::NoServer { timeout, last: std::mem::take(&mut self.last) },
        }
    }

    /// The session is over: final, and if an earlier attempt may have succeeded, nobody can tell any more.
    fn error_without_session(&self, text: String) -> ClientError {
        if self.changes && self.uncertain {
            ClientError::OutcomeUnknown { reason: format!("then the session had ended: {text}") }
        } else {
            ClientError::NotLoggedIn(text)
        }
    }
}

impl Client {
    /// A client that has not connected yet.
    ///
    /// # Errors
    /// [`ClientError::Store`] if the session can't be read.
    ///
    /// # Panics
    /// If there is no server.
    pub fn new(settings: Settings, store: SessionStore) -> Result<Self, ClientError> {
        let session = store.load(settings.user.as_deref())?;
        let mut policy = Policy::new(settings.servers.len(), rand::random());
        if let Some(session) = &session
            && let Some(primary) = settings.servers.iter().position(|server| *server == session.primary)
        {
            policy.prefer(primary);
        }
        Ok(Self {
            servers: settings.servers,
            policy,
            store,
            user: settings.user.or_else(|| session.as_ref().map(|session| session.name.clone())),
            password: settings.password,
            timeout: settings.timeout,
            session,
            account: None,
            link: None,
            pushes: mpsc::channel(PUSHES_MAX),
            notices: None,
            view: ViewNumber::NONE,
            acknowledged: 0,
            next_read_number: READ_NUMBER_FIRST,
            started: Instant::now(),
            troubled: false,
            backlog: VecDeque::new(),
            unread_after: Some(0),
            delivered: RecentIds::default(),
        })
    }

    /// From now on tells what a waiting person may want to know; a notice that nobody takes is dropped.
    pub fn notify(&mut self, notices: mpsc::Sender<Notice>) {
        self.notices = Some(notices);
    }

    /// Changes how long a request may be retried.
    pub fn set_timeout(&mut self, timeout: Option<Duration>) {
        self.timeout = timeout;
    }

    /// Who is logged in, as far as the client knows.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        let session = self.session.as_ref()?;
        Some(self.account.as_ref().map_or(session.name.as_str(), |account| account.name.as_str()))
    }

    /// The session, for whoever keeps it elsewhere or drives it by a [`super::Pipeline`].
    #[must_use]
    pub fn session(&self) -> Option<&StoredSession> {
        self.session.as_ref()
    }

    /// Who acts, logged in or not.
    #[must_use]
    pub fn user(&self) -> Option<&str> {
        self.user.as_deref()
    }

    /// The servers known so far.
    #[must_use]
    pub fn servers(&self) -> &[String] {
        &self.servers
    }

    /// Creates an account and logs in.
    ///
    /// # Errors
    /// [`ClientError`]; an existing name is [`ErrorCode::NameTaken`].
    pub async fn register(&mut self, name: &str, password: &Password) -> Result<LoggedIn, ClientError> {
        self.begin_session(name, password, true).await
    }

    /// Logs in; an earlier session of the user on this machine is forgotten.
    ///
    /// # Errors
    /// [`ClientError`]; a wrong name or password is [`ErrorCode::WrongPassword`].
    pub async fn login(&mut self, name: &str, password: &Password) -> Result<LoggedIn, ClientError> {
        self.begin_session(name, password, false).await
    }

    /// Makes sure that there is a session, logging in if a user and a password are known.
    ///
    /// # Errors
    /// [`ClientError::NotLoggedIn`], or what the login brings.
    pub async fn ensure_session(&mut self) -> Result<(), ClientError> {
        if self.session.is_none()
            && let Some(user) = &self.user
        {
            // Another process of the user may have logged in meanwhile.
            self.session = self.store.load(Some(user))?;
        }
        if self.session.is_some() {
            return Ok(());
        }
        match (self.user.clone(), self.password.clone()) {
            (Some(user), Some(password)) => self.login(&user, &password).await.map(|_| ()),
            (Some(user), None) => Err(ClientError::NotLoggedIn(format!("{user} is not logged in"))),
            (None, _) => Err(ClientError::NotLoggedIn("nobody is logged in".to_owned())),
        }
    }

    /// Ends the session, or all of the account's.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn logout(&mut self, everywhere: bool) -> Result<(), ClientError> {
        let done = match self.command(&Request::Logout { everywhere }).await {
            // The end of the session was asked for, and has come: by the first attempt, or without it.
            Err(ClientError::OutcomeUnknown { .. }) if self.session.is_none() => None,
            done => Some(done?),
        };
        if let Some(done) = done
            && done.value != Reply::LoggedOut
        {
            return Err(self.unexpected(&format!("{:?}", done.value), "logged out"));
        }
        self.end_session()
    }

    /// Deletes the own account.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn delete_account(&mut self, password: &Password) -> Result<(), ClientError> {
        let request = Request::DeleteAccount { password: password.0.clone() };
        match self.command(&request).await?.value {
            Reply::AccountDeleted => self.end_session(),
            other => Err(self.unexpected(&format!("{other:?}"), "account deleted")),
        }
    }

    /// Changes the own password; ends all other sessions of the account.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn change_password(&mut self, old: &Password, new: &Password) -> Result<(), ClientError> {
        let request = Request::ChangePassword { password: old.0.clone(), new_password: new.0.clone() };
        match self.command(&request).await?.value {
            Reply::PasswordChanged => Ok(()),
            other => Err(self.unexpected(&format!("{other:?}"), "password changed")),
        }
    }

    /// One page of account names that match a pattern with `*` and `?`; an empty pattern matches all.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn list(&mut self, pattern: &str, after: &str, limit: u16) -> Result<AccountPage, ClientError> {
        let request = Request::List { pattern: pattern.to_owned(), after: after.to_owned(), limit };
        match self.question(&request).await? {
            Response::Accounts(page) => Ok(page),
            other => Err(self.unexpected(kind(&other), "account names")),
        }
    }

    /// Sends a message.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn send(&mut self, to: &str, text: &str) -> Result<Done<Sent>, ClientError> {
        let request = Request::Send { to: to.to_owned(), text: text.to_owned() };
        let done = self.command(&request).await?;
        match done.value {
            Reply::Sent { message, unix_ms } => Ok(Done {
                value: Sent { message, unix_ms },
                copies: done.copies,
                configured: done.configured,
            }),
            other => Err(self.unexpected(&format!("{other:?}"), "sent")),
        }
    }

    /// One page of waiting messages after a cursor, oldest first. They stay until acknowledged.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn read(&mut self, after: u64, limit: u16) -> Result<MessagePage, ClientError> {
        match self.question(&Request::Read { after, limit }).await? {
            Response::Messages(page) => Ok(page),
            other => Err(self.unexpected(kind(&other), "messages")),
        }
    }

    /// Takes messages out of the own mailbox; it is harmless to do so twice.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn acknowledge(&mut self, messages: &[MessageId]) -> Result<(), ClientError> {
        for part in messages.chunks(crate::config::IDS_PER_REQUEST_MAX) {
            let request = Request::Acknowledge { messages: part.to_vec() };
            self.ensure_session().await?;
            let mut call = self.new_call(&request, 0);
            call.changes = false;
            match self.carry_out(&mut call).await? {
                Response::Done { reply: Reply::Acknowledged { .. }, .. } => {}
                other => return Err(self.unexpected(kind(&other), "acknowledged")),
            }
        }
        Ok(())
    }

    /// Deletes messages for both sides; says how many.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn delete(&mut self, messages: &[MessageId]) -> Result<Done<u64>, ClientError> {
        let done = self.command(&Request::Delete { messages: messages.to_vec() }).await?;
        match done.value {
            Reply::Deleted { count } => {
                Ok(Done { value: count, copies: done.copies, configured: done.configured })
            }
            other => Err(self.unexpected(&format!("{other:?}"), "deleted")),
        }
    }

    /// One page of the messages exchanged with an account, before a cursor (0: the latest), oldest first.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn history(&mut self, with: &str, before: u64, limit: u16) -> Result<MessagePage, ClientError> {
        match self.question(&Request::History { with: with.to_owned(), before, limit }).await? {
            Response::Messages(page) => Ok(page),
            other => Err(self.unexpected(kind(&other), "messages")),
        }
    }

    /// One page of what could not be applied as it was after a split and concerns the account, after a cursor, oldest
    /// first.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn conflicts(&mut self, after: u64, limit: u16) -> Result<ConflictPage, ClientError> {
        match self.question(&Request::Conflicts { after, limit }).await? {
            Response::Conflicts(page) => Ok(page),
            other => Err(self.unexpected(kind(&other), "conflicts")),
        }
    }

    /// The first page of those conflicts that the user has not been told of on this machine; say with
    /// [`Client::note_told`] up to where they are.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn new_conflicts(&mut self, limit: u16) -> Result<ConflictPage, ClientError> {
        self.ensure_session().await?;
        let user = self.session.as_ref().map(|session| session.name.clone()).unwrap_or_default();
        let Some(told) = self.store.told(&user)? else { return self.conflicts(0, limit).await };
        let page = self.conflicts(told.cursor.saturating_sub(1), 1).await?;
        let known = |found: &ConflictView| (found.cursor, found.request) == (told.cursor, told.request);
        let is_same = self.account.as_ref().is_some_and(|account| account.id == told.account)
            && page.conflicts.first().is_some_and(known);
        self.conflicts(if is_same { told.cursor } else { 0 }, limit).await
    }

    /// Remembers on this machine that the user has been told of the conflicts up to this one.
    ///
    /// # Errors
    /// [`ClientError::Store`].
    pub fn note_told(&mut self, last: &ConflictView) -> Result<(), ClientError> {
        if let (Some(session), Some(account)) = (&self.session, &self.account) {
            let told = Told { account: account.id, cursor: last.cursor, request: last.request };
            self.store.note_told(&session.name, told)?;
        }
        Ok(())
    }

    /// The next message for the account: first those that wait, then new ones as they come. Each comes once, also
    /// over a failover (R9), and should be acknowledged when it was shown. Reconnects by itself. Dropping the
    /// future loses nothing.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn next_message(&mut self) -> Result<MessageView, ClientError> {
        loop {
            while let Some(message) = self.backlog.pop_front() {
                if self.delivered.insert(message.id) {
                    return Ok(message);
                }
            }
            self.maybe_subscribe().await?;
            if let Some(after) = self.unread_after {
                self.read_waiting(after).await?;
                continue;
            }
            let link = self.link.as_ref().expect("subscribed to it above");
            let connection = link.connection.clone();
            tokio::select! {
                push = self.pushes.1.recv() => match push.expect("the client holds a sender itself") {
                    Push::Message(message) => self.backlog.push_back(message),
                    Push::SessionEnded => return Err(self.on_session_ended()),
                },
                () = connection.closed() => {}
                () = sleep(PING_INTERVAL) => {
                    self.question(&Request::Ping).await?;
                }
            }
        }
    }

    /// Whether [`Client::next_message`] has messages at hand, and returns the next one without waiting for the network.
    #[must_use]
    pub fn has_messages_at_hand(&self) -> bool {
        !self.backlog.is_empty()
    }

    /// Subscribes again when the connection is another one; then everything that waits has to be read again.
    async fn maybe_subscribe(&mut self) -> Result<(), ClientError> {
        if let Some(link) = self.link.as_ref().filter(|link| link.subscribed && !link.connection.is_closed())
        {
            if link.connection.take_pushes_missed() {
                self.unread_after = Some(0);
            }
            return Ok(());
        }
        match self.question(&Request::Subscribe).await? {
            Response::Subscribed => {}
            other => return Err(self.unexpected(kind(&other), "subscribed")),
        }
        self.link.as_mut().expect("it has just answered").subscribed = true;
        self.unread_after = Some(0);
        Ok(())
    }

    async fn read_waiting(&mut self, after: u64) -> Result<(), ClientError> {
        let page = self.read(after, 0).await?;
        self.unread_after = page.messages.last().filter(|_| page.more).map(|last| last.cursor);
        self.backlog.extend(page.messages);
        Ok(())
    }

    fn on_session_ended(&mut self) -> ClientError {
        let text = "the session has ended: logged out elsewhere, expired, or its account deleted".to_owned();
        match self.end_session() {
            Ok(()) => ClientError::NotLoggedIn(text),
            Err(error) => error,
        }
    }

    async fn begin_session(
        &mut self,
        name: &str,
        password: &Password,
        new: bool,
    ) -> Result<LoggedIn, ClientError> {
        // X1: the client draws its id and token, so that a retry is recognised.
        let client = ClientId(rand::random::<u64>().max(1));
        let token: [u8; 32] = rand::random();
        let (name, password) = (name.to_owned(), password.0.clone());
        let request = if new {
            Request::Register { name: name.clone(), password, client, token }
        } else {
            Request::Login { name: name.clone(), password, client, token }
        };
        self.link = None; // A connection may be bound to another session.
        let mut call = self.new_call(&request, 1);
        call.needs_session = false;
        call.changes = true;
        let response = self.carry_out(&mut call).await?;
        let (account, waiting) = match response {
            Response::Done { reply: Reply::Registered { account }, .. } => (account, 0),
            Response::Done { reply: Reply::LoggedIn { account, waiting }, .. } => (account, waiting),
            other => return Err(self.unexpected(kind(&other), "logged in")),
        };
        let session = StoredSession { name: name.clone(), client, token, primary: self.target().to_owned() };
        self.store.remember(&session, 1)?;
        if let Some(link) = &mut self.link {
            link.bound_to = Some(client);
        }
        self.session = Some(session);
        self.account = Some(Account { id: account, name: name.clone() });
        self.user = Some(name.clone());
        self.acknowledged = 1;
        Ok(LoggedIn { name, waiting })
    }

    fn end_session(&mut self) -> Result<(), ClientError> {
        self.link = None;
        self.account = None;
        if let Some(session) = self.session.take() {
            self.store.forget(&session)?;
        }
        Ok(())
    }

    /// Carries out a request that changes something: under a leased number, so that it is done once (X3).
    async fn command(&mut self, request: &Request) -> Result<Done<Reply>, ClientError> {
        self.ensure_session().await?;
        let mut result = self.command_in_session(request).await;
        if self.may_begin_again(&result) {
            self.ensure_session().await?;
            result = self.command_in_session(request).await;
        }
        match result? {
            Response::Done { reply, copies, configured, .. } => Ok(Done { value: reply, copies, configured }),
            other => Err(self.unexpected(kind(&other), "a reply to a command")),
        }
    }

    async fn command_in_session(&mut self, request: &Request) -> Result<Response, ClientError> {
        let session = self.session.clone().expect("made sure of by the caller");
        let lease = match self.store.lease(&session) {
            Err(StoreError::Replaced { user }) => {
                self.link = None;
                self.account = None;
                self.session = None;
                return Err(ClientError::NotLoggedIn(format!(
                    "{user} has logged in or out elsewhere meanwhile"
                )));
            }
            lease => lease?,
        };
        self.acknowledged = lease.acknowledged;
        let mut call = self.new_call(request, lease.number);
        call.changes = true;
        call.lease = Some((session.clone(), lease));
        let result = self.carry_out(&mut call).await;
        match self.store.release(&session, lease, self.target()) {
            Ok(()) | Err(StoreError::Replaced { .. }) => {}
            // The lease then runs out by itself: what came of the request matters more.
            Err(error) => tracing::debug!("{error}"),
        }
        result
    }

    /// Carries out a request that changes nothing. Its number only connects it with its answer.
    async fn question(&mut self, request: &Request) -> Result<Response, ClientError> {
        self.ensure_session().await?;
        let number = self.read_number();
        let mut call = self.new_call(request, number);
        let result = self.carry_out(&mut call).await;
        if self.may_begin_again(&result) {
            self.ensure_session().await?;
            let mut call = self.new_call(request, number);
            return self.carry_out(&mut call).await;
        }
        result
    }

    /// Whether the session was over before the request was carried out, for certain, and a new one may begin.
    fn may_begin_again(&self, result: &Result<Response, ClientError>) -> bool {
        let ended = matches!(result, Err(ClientError::NotLoggedIn(_))) && self.session.is_none();
        let Some(user) = self.user.as_deref().filter(|_| ended) else { return false };
        self.password.is_some() || self.store.load(Some(user)).is_ok_and(|session| session.is_some())
    }

    fn new_call<'a>(&self, request: &'a Request, number: u32) -> Call<'a> {
        Call {
            request,
            number,
            needs_session: true,
            changes: false,
            lease: None,
            uncertain: false,
            in_flight: false,
            deadline: self.timeout.map(|timeout| Instant::now() + timeout),
            last: String::from("none"),
            last_error: None,
        }
    }

    fn read_number(&mut self) -> u32 {
        let number = self.next_read_number;
        self.next_read_number = number.checked_add(1).unwrap_or(READ_NUMBER_FIRST);
        number
    }

    /// Tries until there is an answer, or none is to be had before the deadline.
    async fn carry_out(&mut self, call: &mut Call<'_>) -> Result<Response, ClientError> {
        loop {
            if let Some((session, lease)) = &mut call.lease {
                // Without the renewal a server may take the number for forgotten: unknown at worst, never doubled.
                if let Err(error) = self.store.renew(session, lease) {
                    tracing::debug!("{error}");
                }
            }
            let deadline = call.deadline;
            let Some(outcome) = until(deadline, self.attempt(call)).await else {
                self.link = None;
                return Err(call.error_at_deadline(self.timeout.unwrap_or_default()));
            };
            match outcome {
                Ok(response) => {
                    self.on_answer();
                    return Ok(response);
                }
                Err(Failed::Finally(error)) => {
                    self.on_answer();
                    return Err(error);
                }
                Err(Failed::NoSession(text)) => {
                    self.on_answer();
                    self.end_session()?;
                    return Err(call.error_without_session(text));
                }
                Err(Failed::Again(failure, text)) => {
                    let wait = self.on_failure(failure, &text);
                    call.last = text;
                    if !wait.is_zero() && until(deadline, sleep(wait)).await.is_none() {
                        return Err(call.error_at_deadline(self.timeout.unwrap_or_default()));
                    }
                }
            }
        }
    }

    fn on_answer(&mut self) {
        self.policy.on_success();
        if std::mem::take(&mut self.troubled) {
            self.notice(Notice::Connected { server: self.target().to_owned() });
        }
    }

    fn on_failure(&mut self, failure: Failure, text: &str) -> Duration {
        tracing::debug!("{text}");
        if failure != Failure::Busy {
            self.link = None;
        }
        let now = u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX);
        let next = self.policy.on_failure(time::Instant::from_nanos(now), failure);
        if !next.wait.is_zero() {
            self.troubled = true;
            self.notice(Notice::Retrying { wait: next.wait, reason: text.to_owned() });
        }
        next.wait
    }

    fn notice(&self, notice: Notice) {
        if let Some(notices) = &self.notices {
            // A person who is behind with reading needs no more of these.
            let _ = notices.try_send(notice);
        }
    }

    /// Asks the present target once.
    async fn attempt(&mut self, call: &mut Call<'_>) -> Result<Response, Failed> {
        self.connect(call.needs_session).await?;
        let link = self.link.as_mut().expect("connected above");
        let server = link.server.clone();
        let news = (self.acknowledged, self.view);
        if call.needs_session && link.told != news {
            link.told = news;
            let seen = Request::Seen { acknowledged: news.0, view: news.1 };
            link.connection.tell(0, &seen).await.map_err(|_| Failed::closed(&server))?;
        }
        let sent = link.connection.send(call.number, call.request).await;
        let reply = sent.map_err(|_| Failed::closed(&server))?;
        call.in_flight = true;
        let response = self.await_reply(reply, &server).await;
        call.in_flight = false;
        match response {
            Ok(Response::Error(error)) => {
                call.uncertain |= error.maybe_executed;
                if error.code == ErrorCode::ReplyForgotten {
                    return Err(Failed::Finally(ClientError::OutcomeUnknown { reason: error.text }));
                }
                let failed = self.judge(&error);
                let busy = matches!(failed, Failed::Again(Failure::Busy, _));
                call.last_error = busy.then_some(error);
                Err(failed)
            }
            Ok(response) => {
                if let Response::Done { view, .. } = response {
                    self.view = self.view.max(view);
                }
                Ok(response)
            }
            Err(failed) => {
                call.uncertain = true;
                call.last_error = None;
                Err(failed)
            }
        }
    }

    /// Makes sure of a connection to the target, bound to the session if the request needs one.
    async fn connect(&mut self, needs_session: bool) -> Result<(), Failed> {
        if self.link.as_ref().is_none_or(|link| link.connection.is_closed()) {
            self.link = None;
            let server = self.target().to_owned();
            // Pushes of the old connection may speak of an old session; what they brought still waits.
            self.pushes = mpsc::channel(PUSHES_MAX);
            let opened = Connection::open(&server, CONNECT_TIMEOUT, self.pushes.0.clone()).await;
            let connection = opened.map_err(|error| match &error {
                OpenError::TimedOut { .. } => Failed::Again(Failure::TimedOut, error.to_string()),
                _ => Failed::Again(Failure::Refused, error.to_string()),
            })?;
            let told = (0, ViewNumber::NONE);
            self.link = Some(Link { connection, server, bound_to: None, subscribed: false, told });
        }
        if needs_session { self.maybe_resume().await } else { Ok(()) }
    }

    /// Binds the connection to the session by its token (X1).
    async fn maybe_resume(&mut self) -> Result<(), Failed> {
        let session = self.session.as_ref().expect("a request that needs a session is made in one");
        let link = self.link.as_ref().expect("called with a connection");
        if link.bound_to == Some(session.client) {
            return Ok(());
        }
        let (client, server) = (session.client, link.server.clone());
        let request = Request::Resume { client, token: session.token };
        let connection = link.connection.clone();
        let number = self.read_number();
        let reply = connection.send(number, &request).await.map_err(|_| Failed::closed(&server))?;
        match self.await_reply(reply, &server).await? {
            Response::Resumed { account: id, name, view, .. } => {
                self.account = Some(Account { id, name });
                self.view = self.view.max(view);
                self.link.as_mut().expect("still the same").bound_to = Some(client);
                Ok(())
            }
            Response::Error(error) => Err(self.judge(&error)),
            other => Err(Failed::Finally(self.unexpected(kind(&other), "resumed"))),
        }
    }

    /// What an error means for the search.
    fn judge(&mut self, error: &ErrorResponse) -> Failed {
        let text = format!("{}: {}", self.target(), error.text);
        match error.code {
            ErrorCode::NotPrimary => {
                Failed::Again(Failure::NotPrimary { hint: self.place_of(&error.primary) }, text)
            }
            ErrorCode::Busy | ErrorCode::TooFewCopies | ErrorCode::DiskFull => {
                Failed::Again(Failure::Busy, text)
            }
            code if code.retriable() => Failed::Again(Failure::NoPrimary, text),
            ErrorCode::NotLoggedIn | ErrorCode::SessionExpired => Failed::NoSession(error.text.clone()),
            _ => Failed::Finally(ClientError::Refused(error.clone())),
        }
    }

    /// Waits for a reply; when it takes long, asks around whether another server leads by now.
    async fn await_reply(
        &mut self,
        mut reply: oneshot::Receiver<Response>,
        server: &str,
    ) -> Result<Response, Failed> {
        for _ in 0..PATIENCE_TIMES_MAX {
            if let Ok(response) = timeout(PATIENCE, &mut reply).await {
                return response.map_err(|_| Failed::closed(server));
            }
            tokio::select! {
                response = &mut reply => return response.map_err(|_| Failed::closed(server)),
                leader = find_other_leader(&self.servers, self.policy.target(), self.view) => {
                    if let Some(leader) = leader {
                        let text = format!("{server} does not answer, {} leads", self.servers[leader]);
                        return Err(Failed::Again(Failure::NotPrimary { hint: Some(leader) }, text));
                    }
                }
            }
        }
        Err(Failed::Again(Failure::TimedOut, format!("{server} does not answer")))
    }

    /// The place of a server in the list, where it is added if it is new.
    fn place_of(&mut self, server: &str) -> Option<usize> {
        if let Some(place) = self.servers.iter().position(|known| known == server) {
            return Some(place);
        }
        if server.is_empty() || self.servers.len() >= SERVERS_MAX {
            return None;
        }
        self.servers.push(server.to_owned());
        Some(self.policy.add_server())
    }

    fn target(&self) -> &str {
        &self.servers[self.policy.target()]
    }

    fn unexpected(&self, found: &str, expected: &'static str) -> ClientError {
        ClientError::Unexpected { server: self.target().to_owned(), found: found.to_owned(), expected }
    }
}

impl Failed {
    fn closed(server: &str) -> Self {
        Self::Again(Failure::Closed, format!("{server} closed the connection"))
    }
}

/// Waits for something until a deadline, if there is one; none: it has passed.
async fn until<T>(deadline: Option<Instant>, future: impl Future<Output = T>) -> Option<T> {
    match deadline {
        Some(deadline) => timeout_at(deadline, future).await.ok(),
        None => Some(future.await),
    }
}

/// One word for a response, for errors.
fn kind(response: &Response) -> &'static str {
    match response {
        Response::Done { .. } => "done",
        Response::Resumed { .. } => "resumed",
        Response::Messages(_) => "messages",
        Response::Accounts(_) => "account names",
        Response::Conflicts(_) => "conflicts",
        Response::Subscribed => "subscribed",
        Response::Status(_) => "status",
        Response::Pong => "pong",
        Response::Error(_) => "an error",
    }
}

/// Asks one server how it is; needs no login.
///
/// # Errors
/// Why there is no answer, for a person.
pub async fn status_of(server: &str, limit: Duration) -> Result<Status, String> {
    let ask = async {
        let (pushes, _) = mpsc::channel(1);
        let connection = Connection::open(server, limit, pushes).await.map_err(|error| error.to_string())?;
        let closed = |_| format!("{server} closed the connection");
        let reply = connection.send(READ_NUMBER_FIRST, &Request::Status).await;
        match reply.map_err(|_| format!("{server} closed the connection"))?.await.map_err(closed)? {
            Response::Status(status) => Ok(status),
            Response::Error(error) => Err(format!("{server}: {}", error.text)),
            other => Err(format!("{server} answered {}, expected status", kind(&other))),
        }
    };
    match timeout(limit, ask).await {
        Ok(result) => result,
        Err(_) => Err(format!("{server} does not answer")),
    }
}

/// Begins to ask servers how they are, all at once; each answer comes with the server's place in the list.
fn ask_all<'a>(
    servers: impl Iterator<Item = (usize, &'a String)>,
    limit: Duration,
) -> JoinSet<(usize, Result<Status, String>)> {
    let mut asking = JoinSet::new();
    for (place, server) in servers {
        let server = server.clone();
        asking.spawn(async move { (place, status_of(&server, limit).await) });
    }
    asking
}

/// Asks all servers at once how they are; the answers stand in the order of the servers.
pub async fn status_of_all(servers: &[String], limit: Duration) -> Vec<Result<Status, String>> {
    let mut asking = ask_all(servers.iter().enumerate(), limit);
    let mut answers: Vec<_> = servers.iter().map(|server| Err(format!("{server} does not answer"))).collect();
    while let Some(joined) = asking.join_next().await {
        let (place, answer) = joined.expect("asking for a status doesn't panic");
        answers[place] = answer;
    }
    answers
}

/// Which server but the silent one leads, by its own account and not in an earlier view than was `seen`; the first that
/// says so.
pub(super) async fn find_other_leader(servers: &[String], silent: usize, seen: ViewNumber) -> Option<usize> {
    let others = servers.iter().enumerate().filter(|(place, _)| *place != silent);
    let mut asking = ask_all(others, CONNECT_TIMEOUT);
    while let Some(joined) = asking.join_next().await {
        let (place, answer) = joined.expect("asking for a status doesn't panic");
        if answer.is_ok_and(|status| status.role == "primary" && status.view >= seen) {
            return Some(place);
        }
    }
    None
}

/// The ids of the last messages that were delivered to the caller.
#[derive(Default)]
struct RecentIds {
    known: HashSet<MessageId>,
    order: VecDeque<MessageId>,
}

impl RecentIds {
    /// Whether the id is new.
    fn insert(&mut self, id: MessageId) -> bool {
        if !self.known.insert(id) {
            return false;
        }
        self.order.push_back(id);
        if self.order.len() > DELIVERED_IDS_MAX {
            let oldest = self.order.pop_front().expect("it is longer than its bound");
            self.known.remove(&oldest);
        }
        true
    }
}
