//! A simulated client: the real failover policy, and around it what the real client does: one session, numbered
//! requests, the same number on a retry, a resumed session on a new connection (X1-X3).

use std::collections::VecDeque;
use std::time::Duration;

use lastword::chat::command::Reply;
use lastword::client::policy::{Failure, Policy};
use lastword::config::PAGE_MAX;
use lastword::message::{ErrorCode, ErrorResponse, Request, Response};
use lastword::prng::Prng;
use lastword::time::Instant;
use lastword::types::{AccountId, ClientId, ConnectionId, MessageId, RequestId, RequestNumber, ViewNumber};

use crate::faults::Fault;
use crate::world::{Action, Life, World, trace};

/// How long a client tries before it says "outcome unknown".
const DEADLINE: Duration = Duration::from_secs(10);
/// How long one attempt may take.
const ATTEMPT_MAX: Duration = Duration::from_secs(1);

/// What a client wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Op {
    /// Create the account.
    Register,
    /// Log in again, after a logout.
    Login,
    /// End the session.
    Logout,
    /// Send a message to the account of this client.
    Send { to: usize, text: String },
    /// Look at the waiting messages.
    Read,
    /// Take these out of the mailbox.
    Acknowledge(Vec<MessageId>),
    /// Delete these.
    Delete(Vec<MessageId>),
    /// Look at what was exchanged with this client.
    History { with: usize },
    /// List all accounts.
    List,
}

/// How it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// With this answer.
    Answered(Response),
    /// With an error that says no.
    Refused(ErrorCode),
    /// Nobody answered in time: the outcome is unknown.
    Unknown,
}

/// When a client goes on by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wake {
    /// With its next wish.
    Next,
    /// With another attempt.
    Attempt,
    /// Because an attempt took too long.
    TimedOut,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Waiting,
    Connecting,
    Resuming { number: u32 },
    Asked,
}

/// A wish under way.
#[derive(Clone, Debug)]
pub(crate) struct Job {
    /// What.
    pub op: Op,
    /// Its request number.
    pub number: u32,
    /// When it was first wished for.
    pub since: Instant,
    /// How often it was sent.
    pub sent: u32,
    phase: Phase,
}

#[derive(Clone, Copy, Debug)]
struct Connection {
    server: usize,
    life: Life,
    id: ConnectionId,
    bound: bool,
}

/// A client with one account.
#[derive(Debug)]
pub(crate) struct Client {
    /// Its account's name.
    pub name: String,
    password: String,
    prng: Prng,
    policy: Policy,
    /// Its own id; a new one with some logins.
    pub id: ClientId,
    token: [u8; 32],
    next_number: u32,
    acknowledged: u32,
    view: ViewNumber,
    /// Its account, once the registration was acknowledged.
    pub account: Option<AccountId>,
    /// Whether it has a session that it has not asked to end.
    pub has_session: bool,
    connection: Option<Connection>,
    epoch: u64,
    wake_token: u64,
    /// What it is doing.
    pub job: Option<Job>,
    /// What it does next; when empty and `lively`, it thinks of something.
    pub wishes: VecDeque<Op>,
    /// The only server it can reach, if there is but one.
    pub pinned: Option<usize>,
    /// Whether it thinks of something to do by itself.
    pub lively: bool,
    /// What came of its wishes, in order.
    pub ended: Vec<(Op, Ended)>,
    /// Message ids it has seen waiting and not acknowledged.
    seen: Vec<MessageId>,
    sends: u32,
    last_arrival: Instant,
}

impl Client {
    /// Whether nothing is under way and nothing is wished for.
    pub(crate) fn is_idle(&self) -> bool {
        self.job.is_none() && self.wishes.is_empty()
    }

    /// What a server says on a connection arrives in order.
    pub(crate) fn arrival_after(&mut self, at: Instant) -> Instant {
        self.last_arrival = self.last_arrival.max(at);
        self.last_arrival
    }

    fn draw_identity(&mut self) {
        self.id = ClientId(self.prng.next_u64() | 1);
        for chunk in self.token.chunks_mut(8) {
            chunk.copy_from_slice(&self.prng.next_u64().to_be_bytes());
        }
        self.next_number = 1;
        self.acknowledged = 0;
    }

    fn take_number(&mut self) -> u32 {
        self.next_number += 1;
        self.next_number - 1
    }

    fn request_of(&self, op: &Op, names: &[String]) -> Request {
        let (name, password) = (self.name.clone(), self.password.clone());
        let (client, token) = (self.id, self.token);
        let limit = u16::try_from(PAGE_MAX).expect("small");
        match op {
            Op::Register => Request::Register { name, password, client, token },
            Op::Login => Request::Login { name, password, client, token },
            Op::Logout => Request::Logout { everywhere: false },
            Op::Send { to, text } => Request::Send { to: names[*to].clone(), text: text.clone() },
            Op::Read => Request::Read { after: 0, limit },
            Op::Acknowledge(messages) => Request::Acknowledge { messages: messages.clone() },
            Op::Delete(messages) => Request::Delete { messages: messages.clone() },
            Op::History { with } => Request::History { with: names[*with].clone(), before: 0, limit },
            Op::List => Request::List { pattern: String::new(), after: String::new(), limit },
        }
    }
}

/// Waits for what is not an outcome: another server, another moment.
fn failure_of(error: &ErrorResponse, addresses: &[String]) -> Option<Failure> {
    match error.code {
        ErrorCode::NotPrimary => {
            let hint = addresses.iter().position(|address| *address == error.primary);
            Some(Failure::NotPrimary { hint })
        }
        ErrorCode::NoPrimary | ErrorCode::Interrupted => Some(Failure::NoPrimary),
        ErrorCode::Busy | ErrorCode::TooFewCopies | ErrorCode::DiskFull => Some(Failure::Busy),
        _ => None,
    }
}

impl World {
    /// One more client; it begins with its registration as soon as the world runs.
    pub(crate) fn add_client(&mut self) -> usize {
        let at = self.clients.len();
        let mut prng = self.prng.fork();
        let mut client = Client {
            name: format!("user{at}"),
            password: format!("password of {at}"),
            policy: Policy::new(self.servers.len(), prng.next_u64()),
            prng,
            id: ClientId::NONE,
            token: [0; 32],
            next_number: 1,
            acknowledged: 0,
            view: ViewNumber::NONE,
            account: None,
            has_session: false,
            connection: None,
            epoch: 0,
            wake_token: 0,
            job: None,
            wishes: VecDeque::from([Op::Register]),
            pinned: None,
            lively: false,
            ended: Vec::new(),
            seen: Vec::new(),
            sends: 0,
            last_arrival: Instant::ZERO,
        };
        client.draw_identity();
        self.oracle.add_account(&client.name);
        self.clients.push(client);
        self.wake_client(at, Duration::ZERO, Wake::Next);
        at
    }

    /// A client does this when it has done everything it wished for before.
    pub(crate) fn wish(&mut self, at: usize, op: Op) {
        self.clients[at].wishes.push_back(op);
        if self.clients[at].job.is_none() {
            self.wake_client(at, Duration::ZERO, Wake::Next);
        }
    }

    /// Lets the world run until the client has done all it wished for, and gives what came of the last wish.
    pub(crate) fn wait_for_client(&mut self, at: usize, max: Duration) -> Option<Ended> {
        let done = self.run_until(max, |world| world.clients[at].is_idle());
        done.then(|| self.clients[at].ended.last().expect("it wished for something").1.clone())
    }

    fn wake_client(&mut self, at: usize, delay: Duration, wake: Wake) {
        let client = &mut self.clients[at];
        client.wake_token += 1;
        let token = client.wake_token;
        self.after(delay, Action::ClientWake { client: at, token, wake });
    }

    /// A client goes on, unless something else has happened to it since.
    pub(crate) fn on_client_wake(&mut self, at: usize, token: u64, wake: Wake) {
        if self.clients[at].wake_token != token {
            return;
        }
        match wake {
            Wake::Next => self.begin_job(at),
            Wake::Attempt => self.attempt(at),
            Wake::TimedOut => {
                self.close_connection(at);
                self.on_failure(at, Failure::TimedOut);
            }
        }
    }

    fn begin_job(&mut self, at: usize) {
        if self.clients[at].job.is_some() {
            return;
        }
        let Some(op) = self.next_op(at) else { return };
        let client = &mut self.clients[at];
        if op == Op::Login && client.prng.chance(1, 2) {
            client.draw_identity();
            self.close_connection(at);
        }
        let client = &mut self.clients[at];
        let number = client.take_number();
        let request = RequestId { client: client.id, number: RequestNumber(u64::from(number)) };
        trace!(self, "client {at} wishes {number}: {op:?}");
        self.oracle.on_invoked(self.now, at, request, &op);
        let since = self.now;
        self.clients[at].job = Some(Job { op, number, since, sent: 0, phase: Phase::Waiting });
        self.attempt(at);
    }

    fn next_op(&mut self, at: usize) -> Option<Op> {
        let count = self.clients.len() as u64;
        let client = &mut self.clients[at];
        if let Some(op) = client.wishes.pop_front() {
            return Some(op);
        }
        if !client.lively {
            return None;
        }
        if !client.has_session {
            return Some(if client.account.is_some() { Op::Login } else { Op::Register });
        }
        let other = usize::try_from(client.prng.below(count)).expect("few clients");
        Some(match client.prng.below(100) {
            0..50 => {
                client.sends += 1;
                let padding = "=".repeat(usize::try_from(client.prng.below(40)).expect("small"));
                Op::Send { to: other, text: format!("{} \"{}\", {padding}\n#", client.name, client.sends) }
            }
            50..64 => Op::Read,
            64..74 if !client.seen.is_empty() => {
                let count = client.seen.len().min(1 + usize::try_from(client.prng.below(5)).expect("small"));
                Op::Acknowledge(client.seen.drain(..count).collect())
            }
            64..74 => Op::Read,
            74..86 => Op::History { with: other },
            86..92 => match self.oracle.deletable(at, &mut client.prng) {
                Some(message) => Op::Delete(vec![message]),
                None => Op::List,
            },
            92..98 => Op::List,
            _ => Op::Logout,
        })
    }

    fn attempt(&mut self, at: usize) {
        let target = self.clients[at].pinned.unwrap_or(self.clients[at].policy.target());
        let client = &mut self.clients[at];
        if client.job.is_none() {
            return;
        }
        if let Some(connection) = client.connection {
            if connection.server == target {
                self.ask(at);
                return;
            }
            self.close_connection(at);
        }
        let client = &mut self.clients[at];
        client.job.as_mut().expect("checked above").phase = Phase::Connecting;
        client.epoch += 1;
        let epoch = client.epoch;
        let delay = self.delay();
        self.after(delay, Action::ClientConnect { client: at, epoch, server: target });
        self.wake_client(at, ATTEMPT_MAX, Wake::TimedOut);
    }

    /// Sends the request, or what must go before it, on the connection that stands.
    fn ask(&mut self, at: usize) {
        let names: Vec<String> = self.clients.iter().map(|client| client.name.clone()).collect();
        let client = &mut self.clients[at];
        let connection = client.connection.expect("asked on a connection");
        let needs_session = !matches!(client.job.as_ref().expect("a job asks").op, Op::Register | Op::Login);
        let mut requests = Vec::new();
        if needs_session && !connection.bound {
            let number = client.take_number();
            client.job.as_mut().expect("a job asks").phase = Phase::Resuming { number };
            requests.push((number, Request::Resume { client: client.id, token: client.token }));
        } else {
            if connection.bound && client.prng.chance(1, 2) {
                requests.push((0, Request::Seen { acknowledged: client.acknowledged, view: client.view }));
            }
            let job = client.job.as_mut().expect("a job asks");
            job.phase = Phase::Asked;
            job.sent += 1;
            if job.sent > 1 {
                self.faults.count(Fault::RequestRetried);
            }
            let (number, op) = (job.number, job.op.clone());
            requests.push((number, client.request_of(&op, &names)));
        }
        let arrival = self.now + self.delay();
        for (request, body) in requests {
            let Connection { server, life, id: connection, .. } = connection;
            self.queue
                .push(arrival, Action::Request { server, life, connection, request, body: Box::new(body) });
        }
        self.wake_client(at, ATTEMPT_MAX, Wake::TimedOut);
    }

    /// A connection stands.
    pub(crate) fn on_client_connected(
        &mut self,
        at: usize,
        epoch: u64,
        server: usize,
        life: Life,
        id: ConnectionId,
    ) {
        let client = &mut self.clients[at];
        if client.epoch != epoch || client.connection.is_some() {
            let delay = self.delay();
            self.after(delay, Action::Disconnected { server, life, connection: id });
            return;
        }
        client.connection = Some(Connection { server, life, id, bound: false });
        if self.servers[server].life() == Some(life) {
            self.ask(at);
        } else {
            self.on_client_closed(at, epoch);
        }
    }

    /// Nobody listens there.
    pub(crate) fn on_client_refused(&mut self, at: usize, epoch: u64) {
        if self.clients[at].epoch == epoch {
            self.on_failure(at, Failure::Refused);
        }
    }

    /// The connection has ended.
    pub(crate) fn on_client_closed(&mut self, at: usize, epoch: u64) {
        let client = &mut self.clients[at];
        if client.epoch != epoch {
            return;
        }
        client.connection = None;
        client.epoch += 1;
        if client.job.as_ref().is_some_and(|job| job.phase != Phase::Waiting) {
            self.on_failure(at, Failure::Closed);
        }
    }

    fn close_connection(&mut self, at: usize) {
        let client = &mut self.clients[at];
        client.epoch += 1;
        if let Some(Connection { server, life, id: connection, .. }) = client.connection.take() {
            let delay = self.delay();
            self.after(delay, Action::Disconnected { server, life, connection });
        }
    }

    fn on_failure(&mut self, at: usize, failure: Failure) {
        let now = self.now;
        let client = &mut self.clients[at];
        let next = client.policy.on_failure(now, failure);
        let Some(job) = &mut client.job else { return };
        job.phase = Phase::Waiting;
        // Without an account there is nothing else to do, so a registration is tried for ever.
        let patient = matches!(job.op, Op::Register | Op::Login);
        if !patient && now.since(job.since) >= DEADLINE {
            self.end_job(at, Ended::Unknown);
        } else {
            self.wake_client(at, next.wait, Wake::Attempt);
        }
    }

    /// A reply arrives.
    pub(crate) fn on_response(&mut self, at: usize, epoch: u64, request: u32, response: Response) {
        let client = &mut self.clients[at];
        if client.epoch != epoch {
            return;
        }
        let Some(job) = &client.job else { return };
        trace!(self, "client {at} hears {request}: {response:?}");
        match job.phase {
            Phase::Resuming { number } if number == request => self.on_resumed(at, response),
            Phase::Asked if job.number == request => self.on_answer(at, response),
            _ => {}
        }
    }

    fn on_resumed(&mut self, at: usize, response: Response) {
        let client = &mut self.clients[at];
        match response {
            Response::Resumed { account, .. } => {
                assert_eq!(client.account, Some(account), "client {at} resumed as somebody else");
                client.connection.as_mut().expect("it answered on one").bound = true;
                self.ask(at);
            }
            Response::Error(error) => self.on_error(at, &error),
            other => panic!("client {at} asked to resume and was answered {other:?}"),
        }
    }

    fn on_answer(&mut self, at: usize, response: Response) {
        match response {
            Response::Error(error) => self.on_error(at, &error),
            response => self.end_job(at, Ended::Answered(response)),
        }
    }

    fn on_error(&mut self, at: usize, error: &ErrorResponse) {
        if let Some(failure) = failure_of(error, &self.servers[0].config.servers) {
            self.on_failure(at, failure);
            return;
        }
        let client = &mut self.clients[at];
        let job = client.job.as_ref().expect("an error answers a job");
        match error.code {
            ErrorCode::SessionExpired | ErrorCode::NotLoggedIn if job.op == Op::Logout => {
                // A logout whose reply was lost leaves no session to resume.
                assert!(
                    job.sent > 1 || client.connection.is_some_and(|c| !c.bound),
                    "client {at}: session lost"
                );
                self.end_job(at, Ended::Refused(error.code));
            }
            ErrorCode::SessionExpired | ErrorCode::NotLoggedIn | ErrorCode::ClientIdTaken => {
                panic!("client {at} has a session that was acknowledged, and is told: {error:?}")
            }
            code => self.end_job(at, Ended::Refused(code)),
        }
    }

    fn end_job(&mut self, at: usize, ended: Ended) {
        let client = &mut self.clients[at];
        let job = client.job.take().expect("a job ends");
        let request = RequestId { client: client.id, number: RequestNumber(u64::from(job.number)) };
        if ended != Ended::Unknown {
            client.policy.on_success();
        }
        client.acknowledged = client.next_number - 1;
        if let Ended::Answered(Response::Done { view, .. } | Response::Resumed { view, .. }) = &ended {
            client.view = client.view.max(*view);
        }
        self.apply_to_session(at, &job.op, &ended);
        self.oracle.on_ended(self.now, at, request, &job, &ended);
        self.clients[at].ended.push((job.op, ended));
        let client = &mut self.clients[at];
        let nanos = u64::try_from(self.swarm.think.as_nanos()).expect("short");
        let think = if client.wishes.is_empty() { client.prng.below(2 * nanos) } else { 0 };
        self.wake_client(at, Duration::from_nanos(think), Wake::Next);
    }

    fn apply_to_session(&mut self, at: usize, op: &Op, ended: &Ended) {
        let client = &mut self.clients[at];
        match (op, ended) {
            (Op::Register | Op::Login, Ended::Answered(Response::Done { reply, client: id, .. })) => {
                let account = match reply {
                    Reply::Registered { account } | Reply::LoggedIn { account, .. } => *account,
                    other => panic!("client {at} asked for {op:?} and was answered {other:?}"),
                };
                assert_eq!(*id, client.id, "client {at} is bound to another client's id");
                assert!(
                    client.account.is_none_or(|known| known == account),
                    "client {at} has changed its account"
                );
                client.account = Some(account);
                client.has_session = true;
                client.connection.as_mut().expect("it answered on one").bound = true;
            }
            (Op::Register | Op::Login, other) => panic!("client {at}: {op:?} ended as {other:?}"),
            (Op::Logout, _) => {
                client.has_session = false;
                self.close_connection(at);
            }
            (Op::Read, Ended::Answered(Response::Messages(page))) => {
                client.seen = page.messages.iter().map(|message| message.id).collect();
            }
            _ => {}
        }
    }
}
