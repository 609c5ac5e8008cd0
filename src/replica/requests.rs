//! Clients: sessions bound to connections, exact dedupe (N2), and what a primary answers.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use sha2::{Digest, Sha256};

use crate::chat::command::{ClientCommand, Command, Operation, Outcome, Refusal, Reply, TokenHash};
use crate::chat::{Known, valid_name, valid_password, valid_text};
use crate::config::{
    IDS_PER_REQUEST_MAX, REQUEST_WINDOW, SESSION_EXPIRY, UNCOMMITTED_ENTRIES_MAX, UNSYNCED_BYTES_MAX,
};
use crate::message::{Entry, ErrorCode, ErrorResponse, Push, Request, Response};
use crate::time::Instant;
use crate::types::{AccountId, ClientId, ConnectionId, MessageId, RequestId, RequestNumber};

use super::flights::{Flight, Flights, Waiters};
use super::reads::{Answer, WaitingRead};
use super::{Effect, HashId, HashJob, Hashed, Replica, Role};

/// Most requests held while a view changes; beyond it `busy`.
pub(super) const WAITING_MAX: usize = 16_384;
/// How often a primary looks for sessions that have expired (X2).
const EXPIRY_LOOKED_FOR_EVERY: Duration = Duration::from_secs(60);

/// What a server knows of its clients.
#[derive(Debug, Default)]
pub(super) struct Requests {
    connections: BTreeMap<ConnectionId, Connection>,
    by_client: BTreeMap<ClientId, BTreeSet<ConnectionId>>,
    subscribed: BTreeMap<AccountId, BTreeSet<ConnectionId>>,
    flights: Flights,
    jobs: BTreeMap<HashId, Job>,
    next_job: u64,
    /// What came while the view changed.
    waiting: Vec<WaitingRead>,
    expiry_looked_for: Option<Instant>,
}

#[derive(Debug, Default)]
struct Connection {
    bound: Option<(ClientId, AccountId)>,
    acknowledged: RequestNumber,
    subscribed: bool,
}

/// A command that waits for a password job.
#[derive(Debug)]
struct Job {
    id: RequestId,
    next: AfterHash,
}

#[derive(Debug)]
enum AfterHash {
    Register { name: String, token: TokenHash },
    Login { account: AccountId, checked: RequestId, token: TokenHash },
    RefuseLogin,
    DeleteAccount { account: AccountId, checked: RequestId },
    VerifyThenChange { connection: ConnectionId, account: AccountId, checked: RequestId, new: String },
    Change { account: AccountId, checked: RequestId },
}

impl Requests {
    pub(super) fn on_disconnected(&mut self, connection: ConnectionId) {
        self.unbind(connection);
        self.connections.remove(&connection);
    }

    /// How many requests wait for the view to change.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    fn bind(&mut self, connection: ConnectionId, client: ClientId, account: AccountId) {
        self.unbind(connection);
        let Some(known) = self.connections.get_mut(&connection) else { return }; // It is gone already.
        known.bound = Some((client, account));
        self.by_client.entry(client).or_default().insert(connection);
    }

    fn unbind(&mut self, connection: ConnectionId) {
        let Some(known) = self.connections.get_mut(&connection) else { return };
        let Some((client, account)) = known.bound.take() else { return };
        known.subscribed = false;
        remove(&mut self.by_client, client, connection);
        remove(&mut self.subscribed, account, connection);
    }

    fn bound(&self, connection: ConnectionId) -> Option<(ClientId, AccountId)> {
        self.connections.get(&connection)?.bound
    }
}

fn remove<K: Ord>(index: &mut BTreeMap<K, BTreeSet<ConnectionId>>, key: K, connection: ConnectionId) {
    if let Some(connections) = index.get_mut(&key) {
        connections.remove(&connection);
        if connections.is_empty() {
            index.remove(&key);
        }
    }
}

fn hash_token(token: &[u8; 32]) -> TokenHash {
    if token.iter().all(|byte| *byte == 0) { [0; 32] } else { Sha256::digest(token).into() }
}

fn failure(code: ErrorCode, text: impl Into<String>) -> ErrorResponse {
    ErrorResponse { code, maybe_executed: false, text: text.into(), primary: String::new() }
}

impl Replica {
    pub(super) fn on_request(&mut self, connection: ConnectionId, request: u32, body: Request) {
        self.requests.connections.entry(connection).or_default();
        match body {
            Request::Ping => self.respond(connection, request, Response::Pong),
            Request::Status => {
                let status = self.status(self.now);
                self.respond(connection, request, Response::Status(status));
            }
            Request::Seen { acknowledged, view } => {
                let known = self.requests.connections.entry(connection).or_default();
                known.acknowledged = known.acknowledged.max(RequestNumber(u64::from(acknowledged)));
                self.on_view_hint(view);
            }
            body => self.take_up(WaitingRead { connection, request, answer: Answer::Request(body) }),
        }
    }

    /// Carries a request out, holds it while the view changes, or says who leads (N6: who is not primary never
    /// replies ok).
    fn take_up(&mut self, read: WaitingRead) {
        let holds = match &self.role {
            Role::Primary(primary) if primary.is_serving(self.commit) => return self.execute(read, false),
            Role::Primary(_) => true,
            Role::Candidate(candidate) => candidate.was_primary,
            _ => false,
        };
        if !holds {
            let error = self.not_primary();
            self.fail(read.connection, read.request, error);
        } else if self.requests.waiting.len() < WAITING_MAX {
            self.requests.waiting.push(read);
        } else {
            let text = format!("more than {WAITING_MAX} requests wait for a view change");
            self.fail(read.connection, read.request, failure(ErrorCode::Busy, text));
        }
    }

    pub(super) fn take_up_waiting(&mut self) {
        for read in std::mem::take(&mut self.requests.waiting) {
            self.take_up(read);
        }
    }

    /// The reads that wait for a barrier of this view are taken up in the next one.
    pub(super) fn hold_reads(&mut self) {
        let reads = self.take_waiting_reads();
        self.requests.waiting.extend(reads);
    }

    fn not_primary(&self) -> ErrorResponse {
        match self.leader().filter(|leader| *leader != self.me) {
            Some(leader) => {
                let primary = self.config.servers[usize::from(leader.0) - 1].clone();
                let text = format!("this server is a backup; {primary} leads");
                ErrorResponse { primary, ..failure(ErrorCode::NotPrimary, text) }
            }
            None => failure(ErrorCode::NoPrimary, "no server leads at the moment"),
        }
    }

    fn respond(&mut self, connection: ConnectionId, request: u32, response: Response) {
        self.effects.push_back(Effect::Respond { connection, request, response });
    }

    fn fail(&mut self, connection: ConnectionId, request: u32, error: ErrorResponse) {
        self.respond(connection, request, Response::Error(error));
    }

    /// Tells every waiting client that this server leads no more, and closes the connections of those logged in:
    /// they find the next primary by connecting anew.
    pub(super) fn stop_leading(&mut self) {
        let led = match &self.role {
            Role::Primary(_) => true,
            Role::Candidate(candidate) => candidate.was_primary,
            _ => false,
        };
        if !led {
            return;
        }
        self.flush_batch();
        self.hold_reads();
        self.interrupt_requests();
        for (connection, known) in std::mem::take(&mut self.requests.connections) {
            if known.bound.is_some() {
                self.effects.push_back(Effect::Close { connection });
            } else {
                self.requests.connections.insert(connection, known);
            }
        }
        self.requests.by_client.clear();
        self.requests.subscribed.clear();
    }

    pub(super) fn interrupt_requests(&mut self) {
        for read in std::mem::take(&mut self.requests.waiting) {
            let error =
                failure(ErrorCode::NoPrimary, "this server has stopped leading; the request was not begun");
            self.fail(read.connection, read.request, error);
        }
        self.requests.jobs.clear();
        for flight in self.requests.flights.land_all() {
            for (connection, request) in flight.waiters {
                let text = "this server stopped leading before the request was answered";
                let error =
                    ErrorResponse { maybe_executed: flight.logged, ..failure(ErrorCode::Interrupted, text) };
                self.fail(connection, request, error);
            }
        }
    }

    // -- Carrying out -----------------------------------------------------------------------------------------------

    /// A barrier has shown that this server still leads.
    pub(super) fn answer_read(&mut self, read: WaitingRead) {
        self.execute(read, true);
    }

    /// Carries a request out. What is a statement about the state, a failure too, is made only when a barrier that
    /// began after the request has `confirmed` that this server still leads (N8).
    fn execute(&mut self, read: WaitingRead, confirmed: bool) {
        let WaitingRead { connection, request, answer } = read;
        let body = match answer {
            Answer::Request(body) => body,
            Answer::Failure(error) if confirmed => return self.fail(connection, request, error),
            Answer::Failure(error) => return self.fail_after_barrier(connection, request, error),
        };
        let call = Call { connection, request, confirmed };
        match body {
            Request::Register { name, password, client, token } => {
                self.register(call, name, password, client, token);
            }
            Request::Login { name, password, client, token } => {
                self.log_in(call, name, password, client, token)
            }
            body @ (Request::List { .. }
            | Request::Read { .. }
            | Request::History { .. }
            | Request::Conflicts { .. }
            | Request::Resume { .. }
            | Request::Subscribe) => {
                if confirmed || removed!("N8-barrier") {
                    self.read(connection, request, body);
                } else {
                    self.wait_for_barrier(connection, request, Answer::Request(body));
                }
            }
            body => self.command(call, body),
        }
    }

    fn wait_for_barrier(&mut self, connection: ConnectionId, request: u32, answer: Answer) {
        if !self.read_after_barrier(WaitingRead { connection, request, answer }) {
            self.fail(connection, request, failure(ErrorCode::Busy, "too many reads wait"));
        }
    }

    fn fail_after_barrier(&mut self, connection: ConnectionId, request: u32, error: ErrorResponse) {
        self.wait_for_barrier(connection, request, Answer::Failure(error));
    }

    /// A failure that says something about the state.
    fn deny(&mut self, call: &Call, code: ErrorCode, text: impl Into<String>) {
        let error = failure(code, text);
        if call.confirmed {
            self.fail(call.connection, call.request, error);
        } else {
            self.fail_after_barrier(call.connection, call.request, error);
        }
    }

    // -- Reads ------------------------------------------------------------------------------------------------------

    fn read(&mut self, connection: ConnectionId, request: u32, body: Request) {
        let response = self.read_state(connection, body).unwrap_or_else(Response::Error);
        self.respond(connection, request, response);
    }

    fn read_state(&mut self, connection: ConnectionId, body: Request) -> Result<Response, ErrorResponse> {
        if let Request::Resume { client, token } = body {
            return self.resume(connection, client, &token);
        }
        let (client, account) = self
            .requests
            .bound(connection)
            .ok_or_else(|| failure(ErrorCode::NotLoggedIn, "log in first, or resume a session"))?;
        if self.state.session(client).is_none_or(|session| session.account != account) {
            return Err(expired());
        }
        Ok(match body {
            Request::List { pattern, after, limit } => {
                Response::Accounts(self.state.list(&pattern, &after, usize::from(limit)))
            }
            Request::Read { after, limit } => {
                Response::Messages(self.state.waiting(account, after, usize::from(limit)))
            }
            Request::History { with, before, limit } => Response::Messages(
                self.state.history(account, &with, before, usize::from(limit)).ok_or_else(|| {
                    failure(ErrorCode::NoSuchAccount, format!("no account is named {with:?}"))
                })?,
            ),
            Request::Conflicts { after, limit } => {
                Response::Conflicts(self.state.conflicts(account, after, usize::from(limit)))
            }
            Request::Subscribe => {
                self.requests.connections.entry(connection).or_default().subscribed = true;
                self.requests.subscribed.entry(account).or_default().insert(connection);
                Response::Subscribed
            }
            _ => unreachable!("only reads wait for a barrier to be carried out"),
        })
    }

    /// X1: resuming needs the token, no password and no hashing.
    fn resume(
        &mut self,
        connection: ConnectionId,
        client: ClientId,
        token: &[u8; 32],
    ) -> Result<Response, ErrorResponse> {
        let hash = hash_token(token);
        let session = self.state.session(client).filter(|session| session.token == hash && hash != [0; 32]);
        let account = session.ok_or_else(expired)?.account;
        let name = self.state.account(account).ok_or_else(expired)?.name.clone();
        self.requests.bind(connection, client, account);
        let waiting = self.state.waiting_count(account);
        Ok(Response::Resumed { account, name, waiting, view: self.view.number })
    }

    // -- Commands ---------------------------------------------------------------------------------------------------

    fn command(&mut self, call: Call, body: Request) {
        let Some((client, account)) = self.requests.bound(call.connection) else {
            let error = failure(ErrorCode::NotLoggedIn, "log in first, or resume a session");
            return self.fail(call.connection, call.request, error);
        };
        let id = self.name_request(client, call.request);
        if self.is_known(&call, id, None) {
            return;
        }
        if self.state.session(client).is_none_or(|session| session.account != account) {
            return self.deny(&call, ErrorCode::SessionExpired, expired().text);
        }
        let command = match body {
            Request::Send { to, text } => match self.prepare_send(&call, &to, text) {
                Some(command) => command,
                None => return,
            },
            Request::Acknowledge { messages } => match self.check_ids(&call, messages) {
                Some(messages) => Command::Acknowledge { messages },
                None => return,
            },
            Request::Delete { messages } => match self.check_ids(&call, messages) {
                Some(messages) => Command::Delete { messages },
                None => return,
            },
            Request::Logout { everywhere } => Command::Logout { everywhere },
            Request::DeleteAccount { password } => {
                return self.verify_then(&call, id, account, password, |checked| AfterHash::DeleteAccount {
                    account,
                    checked,
                });
            }
            Request::ChangePassword { password, new_password } => {
                if let Err(text) = valid_password(&new_password) {
                    return self.fail(
                        call.connection,
                        call.request,
                        failure(ErrorCode::InvalidPassword, text),
                    );
                }
                let connection = call.connection;
                return self.verify_then(&call, id, account, password, |checked| {
                    AfterHash::VerifyThenChange { connection, account, checked, new: new_password }
                });
            }
            _ => unreachable!("every other request is a read or a login"),
        };
        self.fly(&call, id, None);
        self.log_command(id, account, command);
    }

    /// N3: the recipient is resolved before the entry exists. That nobody has the name is a statement about the state.
    fn prepare_send(&mut self, call: &Call, to: &str, text: String) -> Option<Command> {
        if let Err(reason) = valid_text(&text) {
            self.fail(call.connection, call.request, failure(ErrorCode::InvalidText, reason));
            return None;
        }
        if let Some(to) = self.state.account_named(to) {
            return Some(Command::Send { to, text });
        }
        if call.confirmed {
            let error = failure(ErrorCode::NoSuchAccount, format!("no account is named {to:?}"));
            self.fail(call.connection, call.request, error);
        } else {
            let again = Request::Send { to: to.to_owned(), text };
            self.wait_for_barrier(call.connection, call.request, Answer::Request(again));
        }
        None
    }

    fn check_ids(&mut self, call: &Call, messages: Vec<MessageId>) -> Option<Vec<MessageId>> {
        if (1..=IDS_PER_REQUEST_MAX).contains(&messages.len()) {
            return Some(messages);
        }
        let text = format!("found {} message ids, expected 1 to {IDS_PER_REQUEST_MAX}", messages.len());
        self.fail(call.connection, call.request, failure(ErrorCode::InvalidArgument, text));
        None
    }

    fn register(&mut self, call: Call, name: String, password: String, client: ClientId, token: [u8; 32]) {
        let invalid =
            valid_name(&name).map_err(|text| failure(ErrorCode::InvalidName, text)).and_then(|()| {
                valid_password(&password).map_err(|text| failure(ErrorCode::InvalidPassword, text))
            });
        if let Err(error) = invalid {
            return self.fail(call.connection, call.request, error);
        }
        let token = hash_token(&token);
        let client = self.name_client(client);
        let id = self.name_request(client, call.request);
        if self.is_known(&call, id, Some(token)) {
            return;
        }
        if self.state.account_named(&name).is_some() {
            return self.deny(&call, ErrorCode::NameTaken, format!("an account named {name:?} exists"));
        }
        if self.state.session(client).is_some() {
            return self.deny(&call, ErrorCode::ClientIdTaken, "an account uses this client id already");
        }
        self.fly(&call, id, Some(token));
        let shown = name.clone();
        self.hash(call.connection, shown, HashJob::New { password }, id, AfterHash::Register { name, token });
    }

    fn log_in(&mut self, call: Call, name: String, password: String, client: ClientId, token: [u8; 32]) {
        let token = hash_token(&token);
        let client = self.name_client(client);
        let id = self.name_request(client, call.request);
        if self.is_known(&call, id, Some(token)) {
            return;
        }
        let found = self.state.account_named(&name).and_then(|id| Some((id, self.state.account(id)?)));
        if let (Some((account, _)), Some(session)) = (&found, self.state.session(client))
            && session.account != *account
        {
            return self.deny(&call, ErrorCode::ClientIdTaken, "another account uses this client id already");
        }
        let hash = found.map(|(_, known)| known.password.clone());
        let next = found.map_or(AfterHash::RefuseLogin, |(account, known)| AfterHash::Login {
            account,
            checked: known.password_set,
            token,
        });
        self.fly(&call, id, Some(token));
        self.hash(call.connection, name, HashJob::Verify { password, hash }, id, next);
    }

    fn verify_then(
        &mut self,
        call: &Call,
        id: RequestId,
        account: AccountId,
        password: String,
        next: impl FnOnce(RequestId) -> AfterHash,
    ) {
        let Some(known) = self.state.account(account) else {
            return self.deny(call, ErrorCode::SessionExpired, expired().text);
        };
        let (name, hash, next) = (known.name.clone(), known.password.clone(), next(known.password_set));
        self.fly(call, id, None);
        self.hash(call.connection, name, HashJob::Verify { password, hash: Some(hash) }, id, next);
    }

    fn hash(&mut self, connection: ConnectionId, name: String, job: HashJob, id: RequestId, next: AfterHash) {
        self.requests.next_job += 1;
        let job_id = HashId(self.requests.next_job);
        self.requests.jobs.insert(job_id, Job { id, next });
        self.effects.push_back(Effect::Hash { id: job_id, connection, name, job });
    }

    pub(super) fn on_hashed(&mut self, job: HashId, result: Hashed) {
        let Some(Job { id, next }) = self.requests.jobs.remove(&job) else { return };
        let error = match (result, next) {
            (Hashed::New(password), AfterHash::Register { name, token }) => {
                let command = Command::Register { name, password, token };
                return self.log_command(id, AccountId(id), command);
            }
            (Hashed::Verified(true), AfterHash::Login { account, checked, token }) => {
                let command = Command::Login { checked, token };
                return self.log_command(id, account, command);
            }
            (Hashed::Verified(true), AfterHash::DeleteAccount { account, checked }) => {
                let command = Command::DeleteAccount { checked };
                return self.log_command(id, account, command);
            }
            (Hashed::Verified(true), AfterHash::VerifyThenChange { connection, account, checked, new }) => {
                let job = HashJob::New { password: new };
                return self.hash(connection, String::new(), job, id, AfterHash::Change { account, checked });
            }
            (Hashed::New(password), AfterHash::Change { account, checked }) => {
                let command = Command::ChangePassword { checked, password };
                return self.log_command(id, account, command);
            }
            (Hashed::Verified(_), _) => return self.refuse_password(id),
            (Hashed::Throttled { seconds }, _) => {
                let text = format!("too many wrong passwords: wait {seconds} s");
                failure(ErrorCode::TooManyAttempts, text)
            }
            (Hashed::Failed(text), _) => failure(ErrorCode::Interrupted, format!("no password hash: {text}")),
            (Hashed::New(_), _) => unreachable!("a new hash was made for a command that has no use for one"),
        };
        for (connection, request) in self.land(id) {
            self.fail(connection, request, error.clone());
        }
    }

    /// A wrong name and a wrong password give the same error.
    fn refuse_password(&mut self, id: RequestId) {
        for (connection, request) in self.land(id) {
            let error = failure(ErrorCode::WrongPassword, "no account has this name and this password");
            self.take_up(WaitingRead { connection, request, answer: Answer::Failure(error) });
        }
    }

    // -- Dedupe and the log (N2) ------------------------------------------------------------------------------------

    /// A client without an id gets one (X1).
    fn name_client(&mut self, client: ClientId) -> ClientId {
        if client == ClientId::NONE { ClientId(self.prng.next_u64().max(1)) } else { client }
    }

    /// An unnumbered request gets a number that no client can choose, so that what it creates has an id (R5).
    fn name_request(&mut self, client: ClientId, request: u32) -> RequestId {
        let number = if request == 0 { (1 << 32) + self.prng.below(1 << 62) } else { u64::from(request) };
        RequestId { client, number: RequestNumber(number) }
    }

    /// N2: answers or attaches a request that was seen before, by its exact id. Entries inherited from earlier views
    /// are applied before this server answers anyone, so they are among the stored replies.
    fn is_known(&mut self, call: &Call, id: RequestId, token: Option<TokenHash>) -> bool {
        let Call { connection, request, .. } = *call;
        if let Some(flight) = self.requests.flights.get_mut(id) {
            if flight.token.as_deref() == token.as_ref() {
                flight.waiters.add(connection, request);
            } else {
                self.fail(connection, request, expired());
            }
            return true;
        }
        match self.state.known(id) {
            Known::New => return self.is_beyond_window(call, id),
            Known::Forgotten => {
                let text = format!(
                    "the reply to request {} is forgotten: it was acknowledged or is too old",
                    id.number
                );
                let error =
                    ErrorResponse { maybe_executed: true, ..failure(ErrorCode::ReplyForgotten, text) };
                self.fail(connection, request, error);
            }
            Known::Applied(reply) => {
                // X1: a retried login is answered without a password, so its token must be the session's.
                let session = self.state.session(id.client);
                if token.is_some_and(|token| session.is_none_or(|known| known.token != token)) {
                    self.fail(connection, request, expired());
                } else {
                    self.reply(connection, request, id.client, reply);
                }
            }
        }
        true
    }

    /// N2: a client may run ahead of its oldest unanswered request by so much.
    fn is_beyond_window(&mut self, call: &Call, id: RequestId) -> bool {
        let Some(oldest) = self.requests.flights.oldest(id.client) else { return false };
        if !id.number.is_chosen_by_client() || id.number.0 < oldest.0 + REQUEST_WINDOW {
            return false;
        }
        let text = format!("request {} runs ahead of unanswered request {oldest}", id.number);
        self.fail(call.connection, call.request, failure(ErrorCode::Busy, text));
        true
    }

    fn fly(&mut self, call: &Call, id: RequestId, token: Option<TokenHash>) {
        let waiters = Waiters::one(call.connection, call.request);
        let token = token.map(Box::new);
        self.requests.flights.add(id, Flight { waiters, token, logged: false, rebased: false });
    }

    /// N2: a command that is proposed again is in the log, so a retry waits for it. One that is in flight already has an
    /// entry of its own, before this one or after a password job: whichever is applied first counts.
    pub(super) fn note_proposed_again(&mut self, command: &ClientCommand) {
        let token = match &command.command {
            Command::Register { token, .. } | Command::Login { token, .. } => Some(Box::new(*token)),
            _ => None,
        };
        let flight = Flight { waiters: Waiters::default(), token, logged: true, rebased: true };
        self.requests.flights.add(command.request, flight);
    }

    /// A command was proposed again and brought no reply: it was applied before, or has become a conflict. Whoever has
    /// retried it meanwhile asks once more, and is then answered by what is known of it.
    fn land_without_reply(&mut self, id: RequestId) {
        if !self.requests.flights.get_mut(id).is_some_and(|flight| flight.rebased) {
            return;
        }
        for (connection, request) in self.land(id) {
            let text = "the request was proposed again after a split; ask again";
            let error = ErrorResponse { maybe_executed: true, ..failure(ErrorCode::Interrupted, text) };
            self.fail(connection, request, error);
        }
    }

    fn land(&mut self, id: RequestId) -> Waiters {
        self.requests.flights.land(id).map(|flight| flight.waiters).unwrap_or_default()
    }

    /// Appends a command's entry, unless nothing may be written now.
    fn log_command(&mut self, id: RequestId, account: AccountId, command: Command) {
        if let Some(error) = self.write_refused() {
            for (connection, request) in self.land(id) {
                self.fail(connection, request, error.clone());
            }
            return;
        }
        let Some(flight) = self.requests.flights.get_mut(id) else { return };
        flight.logged = true;
        let acknowledged = flight
            .waiters
            .iter()
            .filter_map(|(connection, _)| self.requests.connections.get(connection))
            .map(|known| known.acknowledged)
            .max()
            .unwrap_or_default();
        let acknowledged = acknowledged.min(RequestNumber(id.number.0.saturating_sub(1)));
        let command = ClientCommand { request: id, acknowledged, account, command };
        self.append(Operation::Command(command));
    }

    fn write_refused(&self) -> Option<ErrorResponse> {
        if !self.is_serving() {
            return Some(failure(ErrorCode::Interrupted, "the view changed while the password was hashed"));
        }
        if self.is_closing() {
            return Some(failure(ErrorCode::Interrupted, "the servers are stopping"));
        }
        let copies = self.view.members.len();
        if copies < usize::from(self.config.min_copies) {
            let text =
                format!("{copies} servers hold copies, --min-copies asks for {}", self.config.min_copies);
            return Some(failure(ErrorCode::TooFewCopies, text));
        }
        if self.disk_failed || self.is_disk_low() {
            let text = "a server's disk is nearly full or has failed: nothing can be written";
            return Some(failure(ErrorCode::DiskFull, text));
        }
        // R8: no more than this may be uncommitted when a view ends, since no more ids than that are kept for certain.
        let uncommitted = self.commit.distance_to(self.log.last().index);
        if self.log.bytes_after(self.commit) > UNSYNCED_BYTES_MAX || uncommitted >= UNCOMMITTED_ENTRIES_MAX {
            return Some(failure(ErrorCode::Busy, "too much waits for the disks"));
        }
        None
    }

    /// D3: the disk of this server or of another member is nearly full.
    pub(super) fn is_disk_low(&self) -> bool {
        let low = |member: &crate::types::Member| {
            self.peers.get(&member.server).and_then(|p| p.pulse.as_ref()).is_some_and(|pulse| pulse.disk_low)
        };
        self.disk_low || self.view.members.iter().any(low)
    }

    /// X2: sessions expire by a logged entry, never by a local clock.
    pub(super) fn maybe_expire_sessions(&mut self) {
        let due =
            self.requests.expiry_looked_for.is_none_or(|at| self.now.since(at) >= EXPIRY_LOOKED_FOR_EVERY);
        if !due || !self.is_serving() || self.unix_ms == 0 {
            return;
        }
        self.requests.expiry_looked_for = Some(self.now);
        let expiry = u64::try_from(SESSION_EXPIRY.as_millis()).expect("a month fits");
        let before_unix_ms = self.unix_ms.saturating_sub(expiry);
        if self.state.has_sessions_unused_since(before_unix_ms) {
            self.append(Operation::Expire { before_unix_ms });
        }
    }

    // -- Outcomes ---------------------------------------------------------------------------------------------------

    /// Tells clients what an applied entry has brought about. Only a primary has clients to tell.
    pub(super) fn on_applied(&mut self, entry: &Entry, outcome: Outcome) {
        for client in outcome.ended {
            self.end_session(client);
        }
        match (&entry.operation, outcome.reply) {
            (Operation::Command(command) | Operation::Rebased { command, .. }, Some(reply)) => {
                for (connection, request) in self.land(command.request) {
                    self.reply(connection, request, command.request.client, reply.clone());
                }
            }
            (Operation::Rebased { command, .. }, None) => self.land_without_reply(command.request),
            _ => {}
        }
        if let Some((account, message)) = outcome.queued {
            self.push_message(account, message);
        }
    }

    fn end_session(&mut self, client: ClientId) {
        for connection in self.requests.by_client.get(&client).cloned().unwrap_or_default() {
            if self.requests.connections.get(&connection).is_some_and(|known| known.subscribed) {
                self.effects.push_back(Effect::Push { connection, push: Push::SessionEnded });
            }
            self.requests.unbind(connection);
        }
    }

    /// X4: every subscribed connection of the account is pushed to.
    fn push_message(&mut self, account: AccountId, message: MessageId) {
        let Some(connections) = self.requests.subscribed.get(&account) else { return };
        let Some(view) = self.state.message(message) else { return };
        for connection in connections {
            let push = Push::Message(view.clone());
            self.effects.push_back(Effect::Push { connection: *connection, push });
        }
    }

    fn reply(&mut self, connection: ConnectionId, request: u32, client: ClientId, reply: Reply) {
        let mut client = client;
        match reply {
            Reply::Registered { account } | Reply::LoggedIn { account, .. } => {
                self.requests.bind(connection, client, account);
            }
            Reply::LoggedOut | Reply::AccountDeleted => client = ClientId::NONE,
            Reply::Refused(refusal) => return self.fail(connection, request, refused(refusal)),
            _ => {}
        }
        let count = |len: usize| u8::try_from(len).unwrap_or(u8::MAX);
        let (copies, configured) = (count(self.view.members.len()), count(self.configured.len()));
        let view = self.view.number;
        self.respond(connection, request, Response::Done { reply, client, view, copies, configured });
    }
}

/// One request on its way through.
#[derive(Clone, Copy, Debug)]
struct Call {
    connection: ConnectionId,
    request: u32,
    confirmed: bool,
}

fn expired() -> ErrorResponse {
    failure(ErrorCode::SessionExpired, "the session does not exist, has ended, or has another token")
}

fn refused(refusal: Refusal) -> ErrorResponse {
    match refusal {
        Refusal::NameTaken => failure(ErrorCode::NameTaken, "an account with this name exists"),
        Refusal::ClientIdTaken => {
            failure(ErrorCode::ClientIdTaken, "another account uses this client id already")
        }
        Refusal::NoSuchAccount => failure(ErrorCode::NoSuchAccount, "the account no longer exists"),
        Refusal::NoSuchMessage => {
            failure(ErrorCode::NoSuchMessage, "none of these messages exists, or none is this account's")
        }
        Refusal::MailboxFull => failure(
            ErrorCode::MailboxFull,
            format!("the recipient has {} messages waiting", crate::config::MAILBOX_MESSAGES_MAX),
        ),
        Refusal::SessionExpired => expired(),
        Refusal::PasswordChanged => failure(ErrorCode::WrongPassword, "the password was changed meanwhile"),
        Refusal::Conflict => failure(
            ErrorCode::Conflict,
            "it was done on the other side of a split, and does not fit what was done on this one: see the conflicts",
        ),
    }
}
