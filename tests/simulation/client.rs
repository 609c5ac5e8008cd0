//! A simulated client: the real failover policy, and around it what the real client does: one session, numbered
//! requests, the same number on a retry, a resumed session on a new connection (X1-X3).
//!
//! A lively client draws a character first: some ask one thing after the other, some pipeline, some are further devices
//! of an account, some are netcats without an id, who can neither retry nor resume, and some stop reading for a while.

use std::collections::VecDeque;
use std::time::Duration;

use lastword::chat::command::Reply;
use lastword::client::policy::{Failure, Policy};
use lastword::config::PAGE_MAX;
use lastword::message::{ErrorCode, ErrorResponse, Push, Request, Response};
use lastword::prng::Prng;
use lastword::time::Instant;
use lastword::types::{AccountId, ClientId, ConnectionId, MessageId, RequestId, RequestNumber, ViewNumber};

use crate::check::account::Password;
use crate::faults::Fault;
use crate::world::{Action, Life, World, trace};

/// How long a client tries before it says "outcome unknown".
const DEADLINE: Duration = Duration::from_secs(10);
/// How long one attempt may take.
const ATTEMPT_MAX: Duration = Duration::from_secs(1);
/// Message ids that a client remembers to acknowledge, at most.
const SEEN_MAX: usize = 64;

/// What a client wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Op {
    /// Create the account.
    Register,
    /// Log in again, after a logout.
    Login,
    /// End the session.
    Logout,
    /// End all sessions of the account.
    LogoutEverywhere,
    /// Send a message to the account of this client.
    Send { to: usize, text: String },
    /// Look at the waiting messages.
    Read,
    /// Look at so many of the waiting messages.
    ReadSome(u16),
    /// Take these out of the mailbox.
    Acknowledge(Vec<MessageId>),
    /// Delete these.
    Delete(Vec<MessageId>),
    /// Look at what was exchanged with this client.
    History { with: usize },
    /// List all accounts.
    List,
    /// List the accounts that fit a pattern.
    Find(String),
    /// Replace the password; the client believes in the old one.
    ChangePassword { old: Password, new: Password },
    /// Delete the account; the client believes in the password.
    DeleteAccount(Password),
    /// Have new messages pushed.
    Subscribe,
}

impl Op {
    /// Whether it needs a session.
    fn needs_session(&self) -> bool {
        !matches!(self, Self::Register | Self::Login)
    }

    /// Whether it is done while nothing else is: it begins or ends sessions.
    fn is_alone(&self) -> bool {
        !self.needs_session() || matches!(self, Self::Logout) || self.ends_sessions()
    }

    /// Whether it ends sessions of other devices.
    pub(crate) fn ends_sessions(&self) -> bool {
        matches!(self, Self::LogoutEverywhere | Self::ChangePassword { .. } | Self::DeleteAccount(_))
    }
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
    /// Because an attempt may have taken too long.
    TimedOut,
}

/// A wish under way.
#[derive(Clone, Debug)]
pub(crate) struct Job {
    /// What.
    pub op: Op,
    /// Its request number.
    pub number: u32,
    /// Names it for the oracle.
    pub serial: u64,
    /// When it was first wished for.
    pub since: Instant,
    /// How often it was sent.
    pub sent: u32,
    /// The password that a login or a registration uses.
    pub password: Password,
    /// When it was sent on the connection that stands; none: it waits to be sent.
    asked: Option<Instant>,
}

#[derive(Clone, Copy, Debug)]
struct Connection {
    server: usize,
    life: Life,
    id: ConnectionId,
    bound: bool,
    /// When the last request sent on it arrives: they arrive in order.
    arrival: Instant,
}

/// A resumption under way: its number, when it was sent, and its name for the oracle.
#[derive(Clone, Copy, Debug)]
struct Resuming {
    number: u32,
    asked: Instant,
    serial: u64,
}

/// A client with one account.
#[derive(Debug)]
pub(crate) struct Client {
    /// Its account's name.
    pub name: String,
    /// Which client's account it uses: its own, unless it is a further device.
    pub owner: usize,
    prng: Prng,
    policy: Policy,
    /// Its own id; a new one with some logins. None: it is a netcat.
    pub id: ClientId,
    token: [u8; 32],
    next_number: u32,
    view: ViewNumber,
    /// Its account, once a registration or login was acknowledged.
    pub account: Option<AccountId>,
    /// Whether it has a session that it has not asked to end.
    pub has_session: bool,
    /// The oracle's moment at which the login of this session was wished for.
    session_since: u64,
    connection: Option<Connection>,
    connecting: Option<Instant>,
    resuming: Option<Resuming>,
    epoch: u64,
    wake_tokens: [u64; 3],
    timing: bool,
    /// What it is doing.
    pub jobs: Vec<Job>,
    /// How much it does at once.
    window: usize,
    /// What it does next; when empty and `lively`, it thinks of something.
    pub wishes: VecDeque<Op>,
    /// The only server it can reach, if there is but one.
    pub pinned: Option<usize>,
    /// Whether it thinks of something to do by itself.
    pub lively: bool,
    settled: bool,
    netcat: bool,
    /// How often in a thousand answers it stops reading.
    deaf_permille: u64,
    deaf_until: Instant,
    /// How many passwords in a row were wrong.
    guesses: usize,
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
        self.jobs.is_empty() && self.wishes.is_empty()
    }

    /// What a server says on a connection arrives in order.
    pub(crate) fn arrival_after(&mut self, at: Instant) -> Instant {
        self.last_arrival = self.last_arrival.max(at);
        self.last_arrival
    }

    fn draw_identity(&mut self) {
        self.next_number = 1;
        if self.netcat {
            (self.id, self.token) = (ClientId::NONE, [0; 32]);
            return;
        }
        self.id = ClientId(self.prng.next_u64() | 1);
        for chunk in self.token.chunks_mut(8) {
            chunk.copy_from_slice(&self.prng.next_u64().to_be_bytes());
        }
    }

    /// A netcat does not number its requests.
    fn take_number(&mut self) -> u32 {
        self.next_number += 1;
        if self.netcat { 0 } else { self.next_number - 1 }
    }

    /// It has the replies to all its requests up to this number, or never asks for them again (N2).
    fn acknowledged(&self) -> u32 {
        let oldest = self.jobs.iter().map(|job| job.number).min();
        oldest.unwrap_or(self.next_number).saturating_sub(1)
    }

    fn request_of(&self, job: &Job, names: &[String]) -> Request {
        let (name, password) = (self.name.clone(), job.password.to_string());
        let (client, token) = (self.id, self.token);
        let limit = u16::try_from(PAGE_MAX).expect("small");
        match &job.op {
            Op::Register => Request::Register { name, password, client, token },
            Op::Login => Request::Login { name, password, client, token },
            Op::Logout => Request::Logout { everywhere: false },
            Op::LogoutEverywhere => Request::Logout { everywhere: true },
            Op::Send { to, text } => Request::Send { to: names[*to].clone(), text: text.clone() },
            Op::Read => Request::Read { after: 0, limit },
            Op::ReadSome(limit) => Request::Read { after: 0, limit: *limit },
            Op::Acknowledge(messages) => Request::Acknowledge { messages: messages.clone() },
            Op::Delete(messages) => Request::Delete { messages: messages.clone() },
            Op::History { with } => Request::History { with: names[*with].clone(), before: 0, limit },
            Op::List => Request::List { pattern: String::new(), after: String::new(), limit },
            Op::Find(pattern) => Request::List { pattern: pattern.clone(), after: String::new(), limit },
            Op::ChangePassword { old, new } => {
                Request::ChangePassword { password: old.to_string(), new_password: new.to_string() }
            }
            Op::DeleteAccount(password) => Request::DeleteAccount { password: password.to_string() },
            Op::Subscribe => Request::Subscribe,
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
            owner: at,
            policy: Policy::new(self.servers.len(), prng.next_u64()),
            prng,
            id: ClientId::NONE,
            token: [0; 32],
            next_number: 1,
            view: ViewNumber::NONE,
            account: None,
            has_session: false,
            session_since: 0,
            connection: None,
            connecting: None,
            resuming: None,
            epoch: 0,
            wake_tokens: [0; 3],
            timing: false,
            jobs: Vec::new(),
            window: 1,
            wishes: VecDeque::from([Op::Register]),
            pinned: None,
            lively: false,
            settled: false,
            netcat: false,
            deaf_permille: 0,
            deaf_until: Instant::ZERO,
            guesses: 0,
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
        if self.clients[at].jobs.is_empty() {
            self.wake_client(at, Duration::ZERO, Wake::Next);
        }
    }

    /// Lets the world run until the client has done all it wished for, and gives what came of the last wish.
    pub(crate) fn wait_for_client(&mut self, at: usize, max: Duration) -> Option<Ended> {
        let done = self.run_until(max, |world| world.clients[at].is_idle());
        done.then(|| self.clients[at].ended.last().expect("it wished for something").1.clone())
    }

    fn wake_client(&mut self, at: usize, delay: Duration, wake: Wake) {
        let token = &mut self.clients[at].wake_tokens[wake as usize];
        *token += 1;
        let token = *token;
        self.after(delay, Action::ClientWake { client: at, token, wake });
    }

    /// A client goes on, unless something else has happened to it since.
    pub(crate) fn on_client_wake(&mut self, at: usize, token: u64, wake: Wake) {
        if self.clients[at].wake_tokens[wake as usize] != token {
            return;
        }
        match wake {
            Wake::Next => self.begin_job(at),
            Wake::Attempt => self.attempt(at),
            Wake::TimedOut => self.on_time(at),
        }
    }

    /// Draws what kind of client this is.
    fn settle(&mut self, at: usize) {
        let client = &mut self.clients[at];
        client.settled = true;
        if client.next_number > 1 {
            return; // It has an id already, and an account that goes with it.
        }
        match client.prng.below(10) {
            0..4 => {}
            4..7 => client.window = 2 + usize::try_from(client.prng.below(5)).expect("small"),
            7 if at > 0 => {
                client.owner = 0;
                client.name = "user0".into();
                client.wishes = VecDeque::from([Op::Login]);
            }
            8 => {
                client.netcat = true;
                client.draw_identity();
            }
            _ => client.deaf_permille = 40,
        }
    }

    fn begin_job(&mut self, at: usize) {
        if self.clients[at].lively && !self.clients[at].settled {
            self.settle(at);
        }
        let client = &self.clients[at];
        let alone = client.jobs.iter().any(|job| job.op.is_alone());
        if alone || client.jobs.len() >= client.window {
            return;
        }
        let Some(op) = self.next_op(at) else { return };
        if op.is_alone() && !self.clients[at].jobs.is_empty() {
            self.clients[at].wishes.push_front(op);
            return;
        }
        let client = &mut self.clients[at];
        if op == Op::Register || op == Op::Login && client.prng.chance(1, 2) {
            client.draw_identity();
            self.close_connection(at);
        }
        let client = &mut self.clients[at];
        let number = client.take_number();
        let request = RequestId { client: client.id, number: RequestNumber(u64::from(number)) };
        trace!(self, "client {at} wishes {number}: {op:?}");
        let (owner, guesses) = (client.owner, client.guesses);
        let password = match op {
            Op::Register => self.oracle.new_password(owner),
            _ => self.oracle.likely_password(owner, guesses),
        };
        let serial = self.oracle.on_invoked(owner, (number != 0).then_some(request), &op, password);
        let job = Job { op, number, serial, since: self.now, sent: 0, password, asked: None };
        let client = &mut self.clients[at];
        client.jobs.push(job);
        if client.window > client.jobs.len() {
            self.think(at);
        }
        self.attempt(at);
    }

    /// Sets when the next wish comes.
    fn think(&mut self, at: usize) {
        let nanos = u64::try_from(self.swarm.think.as_nanos()).expect("short");
        let client = &mut self.clients[at];
        let think = if client.wishes.is_empty() { client.prng.below(2 * nanos) } else { 0 };
        // Whoever pipelines comes in bursts.
        let think = if client.window > 1 && client.prng.chance(3, 4) { think / 50 } else { think };
        self.wake_client(at, Duration::from_nanos(think), Wake::Next);
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
        let owner = client.owner;
        if !client.has_session {
            let guesses = self.oracle.passwords(owner);
            let registers = guesses == 0 || client.guesses > 0 && client.guesses.is_multiple_of(guesses + 1);
            return Some(if registers && owner == at { Op::Register } else { Op::Login });
        }
        let other = usize::try_from(client.prng.below(count)).expect("few clients");
        let other = self.clients[other].owner;
        let client = &mut self.clients[at];
        Some(match client.prng.below(200) {
            0..96 => {
                client.sends += 1;
                let padding = "=".repeat(usize::try_from(client.prng.below(40)).expect("small"));
                Op::Send { to: other, text: format!("{at} \"{}\", {padding}\n#", client.sends) }
            }
            96..116 => Op::Read,
            116..122 => Op::ReadSome(1 + u16::try_from(client.prng.below(5)).expect("small")),
            122..146 if !client.seen.is_empty() => {
                let count = client.seen.len().min(1 + usize::try_from(client.prng.below(5)).expect("small"));
                Op::Acknowledge(client.seen.drain(..count).collect())
            }
            122..146 => Op::Read,
            146..164 => Op::History { with: other },
            164..174 => match self.oracle.deletable(owner, other, &mut client.prng) {
                Some(messages) => Op::Delete(messages),
                None => Op::List,
            },
            174..180 => Op::List,
            180..186 => Op::Find(["user?", "USER*", "*1", "nobody*", "u*2"][other % 5].into()),
            186..190 => Op::Subscribe,
            190..192 => Op::LogoutEverywhere,
            192..195 => {
                let guess = usize::from(client.prng.chance(1, 4));
                let old = self.oracle.likely_password(owner, guess);
                Op::ChangePassword { old, new: self.oracle.new_password(owner) }
            }
            195 => {
                let guess = usize::from(client.prng.chance(1, 3));
                Op::DeleteAccount(self.oracle.likely_password(owner, guess))
            }
            _ => Op::Logout,
        })
    }

    fn attempt(&mut self, at: usize) {
        let target = self.clients[at].pinned.unwrap_or(self.clients[at].policy.target());
        if self.clients[at].jobs.is_empty() || self.clients[at].connecting.is_some() {
            return;
        }
        if let Some(connection) = self.clients[at].connection {
            if connection.server == target {
                self.ask(at);
                return;
            }
            self.close_connection(at);
            self.give_up_unnumbered(at);
            if self.clients[at].jobs.is_empty() {
                return;
            }
        }
        let client = &mut self.clients[at];
        client.connecting = Some(self.now);
        client.epoch += 1;
        let epoch = client.epoch;
        let delay = self.delay();
        self.after(delay, Action::ClientConnect { client: at, epoch, server: target });
        self.watch_time(at, ATTEMPT_MAX);
    }

    /// Has the client look after its attempts, unless it does already.
    fn watch_time(&mut self, at: usize, wait: Duration) {
        if !std::mem::replace(&mut self.clients[at].timing, true) {
            self.wake_client(at, wait, Wake::TimedOut);
        }
    }

    /// Ends the connection if something has waited on it for too long.
    fn on_time(&mut self, at: usize) {
        let client = &mut self.clients[at];
        client.timing = false;
        let asked = client.jobs.iter().filter_map(|job| job.asked);
        let resuming = client.resuming.map(|resuming| resuming.asked);
        let Some(oldest) = asked.chain(resuming).chain(client.connecting).min() else { return };
        let waited = self.now.since(oldest);
        if waited < ATTEMPT_MAX {
            self.watch_time(at, ATTEMPT_MAX.saturating_sub(waited));
            return;
        }
        self.close_connection(at);
        self.on_failure(at, Failure::TimedOut);
    }

    /// Sends all requests that wait, or what must go before them, on the connection that stands.
    fn ask(&mut self, at: usize) {
        let now = self.now;
        let names: Vec<String> = self.clients.iter().map(|client| client.name.clone()).collect();
        let client = &mut self.clients[at];
        let connection = client.connection.expect("asked on a connection");
        let mut requests = Vec::new();
        if client.resuming.is_some() {
            return;
        }
        if !connection.bound && client.jobs.iter().any(|job| job.op.needs_session()) {
            let number = client.take_number();
            let serial = self.oracle.on_resuming();
            client.resuming = Some(Resuming { number, asked: now, serial });
            requests.push((number, Request::Resume { client: client.id, token: client.token }));
        } else {
            if connection.bound && !client.netcat && client.prng.chance(1, 2) {
                let acknowledged = client.acknowledged();
                requests.push((0, Request::Seen { acknowledged, view: client.view }));
            }
            for place in 0..client.jobs.len() {
                let job = &mut client.jobs[place];
                if job.asked.is_some() {
                    continue;
                }
                job.asked = Some(now);
                job.sent += 1;
                if job.sent > 1 {
                    self.faults.count(Fault::RequestRetried);
                }
                let job = &client.jobs[place];
                requests.push((job.number, client.request_of(job, &names)));
            }
        }
        let delay = self.delay();
        let connection = self.clients[at].connection.as_mut().expect("checked above");
        connection.arrival = connection.arrival.max(now + delay);
        let Connection { server, life, id: connection, arrival, .. } = *connection;
        for (request, body) in requests {
            self.queue
                .push(arrival, Action::Request { server, life, connection, request, body: Box::new(body) });
        }
        self.watch_time(at, ATTEMPT_MAX);
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
        client.connecting = None;
        client.connection = Some(Connection { server, life, id, bound: false, arrival: self.now });
        if self.servers[server].life() == Some(life) {
            self.ask(at);
        } else {
            self.on_client_closed(at, epoch);
        }
    }

    /// Nobody listens there.
    pub(crate) fn on_client_refused(&mut self, at: usize, epoch: u64) {
        if self.clients[at].epoch == epoch {
            self.clients[at].connecting = None;
            self.on_failure(at, Failure::Refused);
        }
    }

    /// The connection has ended.
    pub(crate) fn on_client_closed(&mut self, at: usize, epoch: u64) {
        if self.clients[at].epoch == epoch {
            self.forget_connection(at);
            self.on_failure(at, Failure::Closed);
        }
    }

    fn forget_connection(&mut self, at: usize) -> Option<Connection> {
        let client = &mut self.clients[at];
        client.epoch += 1;
        (client.connecting, client.resuming) = (None, None);
        if client.netcat {
            client.has_session = false;
        } else {
            // They are sent again, with their numbers.
            client.jobs.iter_mut().for_each(|job| job.asked = None);
        }
        client.connection.take()
    }

    fn close_connection(&mut self, at: usize) {
        if let Some(Connection { server, life, id: connection, .. }) = self.forget_connection(at) {
            let delay = self.delay();
            self.after(delay, Action::Disconnected { server, life, connection });
        }
    }

    /// A request without a number can't be sent again, nor can its session be resumed.
    fn give_up_unnumbered(&mut self, at: usize) {
        let client = &self.clients[at];
        if client.netcat && client.connection.is_none() {
            let lost = |job: &&Job| job.asked.is_some() || job.op.needs_session();
            let lost: Vec<u64> = client.jobs.iter().filter(lost).map(|job| job.serial).collect();
            for serial in lost {
                self.end_job(at, serial, Ended::Unknown);
            }
        }
    }

    fn on_failure(&mut self, at: usize, failure: Failure) {
        let now = self.now;
        self.give_up_unnumbered(at);
        let client = &mut self.clients[at];
        if client.jobs.is_empty() {
            return;
        }
        let next = client.policy.on_failure(now, failure);
        // Without an account there is nothing else to do, so a registration is tried for ever.
        let late =
            |job: &&Job| job.asked.is_none() && job.op.needs_session() && now.since(job.since) >= DEADLINE;
        let late: Vec<u64> = client.jobs.iter().filter(late).map(|job| job.serial).collect();
        for serial in late {
            self.end_job(at, serial, Ended::Unknown);
        }
        self.wake_client(at, next.wait, Wake::Attempt);
    }

    /// A reply arrives.
    pub(crate) fn on_response(&mut self, at: usize, epoch: u64, request: u32, response: Response) {
        let now = self.now;
        let client = &mut self.clients[at];
        if client.epoch != epoch {
            return;
        }
        if now >= client.deaf_until && !self.healed && client.prng.chance(client.deaf_permille, 1000) {
            client.deaf_until = now + Duration::from_millis(100 + client.prng.below(2_500));
        }
        if now < client.deaf_until {
            // It lies in the socket until somebody reads on.
            let until = client.deaf_until;
            client.last_arrival = client.last_arrival.max(until);
            let response = Box::new(response);
            self.queue.push(until, Action::Response { client: at, epoch, request, response });
            return;
        }
        trace!(self, "client {at} hears {request}: {response:?}");
        if let Some(resuming) = client.resuming {
            if resuming.number == request {
                self.on_resumed(at, resuming, response);
            }
            return;
        }
        let job = client.jobs.iter().find(|job| job.asked.is_some() && job.number == request);
        let Some(serial) = job.map(|job| job.serial) else { return };
        match response {
            Response::Error(error) => self.on_error(at, serial, &error),
            response => self.end_job(at, serial, Ended::Answered(response)),
        }
    }

    fn on_resumed(&mut self, at: usize, resuming: Resuming, response: Response) {
        let client = &mut self.clients[at];
        client.resuming = None;
        match response {
            Response::Resumed { account, waiting, .. } => {
                // X1: two accounts of one name, each on its side, may both have been logged in to with one client id.
                let same = self.oracle.split || client.account == Some(account);
                assert!(same, "client {at} of {:?} resumed as {account}", client.account);
                client.account = Some(account);
                client.connection.as_mut().expect("it answered on one").bound = true;
                let owner = client.owner;
                self.oracle.on_resumed(owner, resuming.serial, account, waiting);
                self.ask(at);
            }
            Response::Error(error) => {
                if let Some(failure) = failure_of(&error, &self.servers[0].config.servers) {
                    self.on_failure(at, failure);
                } else {
                    self.on_session_lost(at, error.code, None);
                }
            }
            other => panic!("client {at} asked to resume and was answered {other:?}"),
        }
    }

    /// The session has ended, which somebody must have asked for; with it goes what needs it. Only the request that was
    /// answered so was certainly not carried out in its last attempt.
    fn on_session_lost(&mut self, at: usize, code: ErrorCode, answered: Option<u64>) {
        let client = &mut self.clients[at];
        assert!(
            self.oracle.split || matches!(code, ErrorCode::SessionExpired | ErrorCode::NotLoggedIn),
            "client {at} asked to resume and was told {code:?}"
        );
        let logged_out = client.jobs.iter().any(|job| job.op == Op::Logout);
        let (owner, since) = (client.owner, client.session_since);
        assert!(
            self.oracle.split // It may be known on the other side only, until its row is proposed again.
                || client.netcat || !client.has_session || logged_out || self.oracle.may_end_sessions(owner, since),
            "session lost: client {at} has one that was acknowledged and that nobody ended, and is told {code:?}"
        );
        let client = &mut self.clients[at];
        client.has_session = false;
        if let Some(connection) = &mut client.connection {
            connection.bound = false;
        }
        let lost = client.jobs.iter().filter(|job| job.op.needs_session());
        let lost: Vec<_> = lost.map(|job| (job.serial, job.sent)).collect();
        for (serial, sent) in lost {
            let refused = sent == 0 || answered == Some(serial);
            self.end_job(at, serial, if refused { Ended::Refused(code) } else { Ended::Unknown });
        }
        self.close_connection(at);
        if self.clients[at].jobs.is_empty() {
            self.think(at);
        }
    }

    fn on_error(&mut self, at: usize, serial: u64, error: &ErrorResponse) {
        let client = &mut self.clients[at];
        let job = client.jobs.iter_mut().find(|job| job.serial == serial).expect("an error answers a job");
        if let Some(failure) = failure_of(error, &self.servers[0].config.servers) {
            if client.netcat && error.maybe_executed {
                self.end_job(at, serial, Ended::Unknown);
                return;
            }
            job.asked = None;
            self.on_failure(at, failure);
            return;
        }
        match error.code {
            ErrorCode::SessionExpired | ErrorCode::NotLoggedIn if job.op.needs_session() => {
                self.on_session_lost(at, error.code, Some(serial));
            }
            code => self.end_job(at, serial, Ended::Refused(code)),
        }
    }

    fn end_job(&mut self, at: usize, serial: u64, ended: Ended) {
        let client = &mut self.clients[at];
        let place = client.jobs.iter().position(|job| job.serial == serial).expect("a job ends");
        let job = client.jobs.remove(place);
        if ended != Ended::Unknown {
            client.policy.on_success();
        }
        if let Ended::Answered(Response::Done { view, .. } | Response::Resumed { view, .. }) = &ended {
            client.view = client.view.max(*view);
        }
        let owner = client.owner;
        let invoked = self.oracle.on_ended(self.now, owner, &job, &ended);
        self.apply_to_session(at, invoked, &job.op, &ended);
        self.clients[at].ended.push((job.op, ended));
        self.think(at);
    }

    fn apply_to_session(&mut self, at: usize, invoked: u64, op: &Op, ended: &Ended) {
        let client = &mut self.clients[at];
        match (op, ended) {
            (Op::Register | Op::Login, Ended::Answered(Response::Done { reply, client: id, .. })) => {
                let account = match reply {
                    Reply::Registered { account } | Reply::LoggedIn { account, .. } => *account,
                    other => panic!("client {at} asked for {op:?} and was answered {other:?}"),
                };
                assert!(client.netcat || *id == client.id, "client {at} is bound to another client's id");
                client.account = Some(account);
                (client.has_session, client.session_since, client.guesses) = (true, invoked, 0);
                client.connection.as_mut().expect("it answered on one").bound = true;
            }
            (Op::Register | Op::Login, Ended::Refused(_)) => client.guesses += 1,
            (Op::Logout | Op::LogoutEverywhere, _)
            | (Op::DeleteAccount(_), Ended::Answered(_) | Ended::Unknown) => {
                client.has_session = false;
                client.seen.clear();
                self.close_connection(at);
            }
            (Op::Read | Op::ReadSome(_), Ended::Answered(Response::Messages(page))) => {
                client.seen = page.messages.iter().map(|message| message.id).take(SEEN_MAX).collect();
            }
            _ => {}
        }
    }

    /// A server says something unasked (X4).
    pub(crate) fn on_push(&mut self, at: usize, epoch: u64, push: &Push) {
        let client = &mut self.clients[at];
        if client.epoch != epoch {
            return;
        }
        trace!(self, "client {at} is pushed {push:?}");
        match push {
            Push::Message(view) => {
                let owner = client.owner;
                if client.seen.len() < SEEN_MAX && !client.seen.contains(&view.id) {
                    client.seen.push(view.id);
                }
                self.oracle.on_pushed(owner, view);
            }
            Push::SessionEnded => {
                if client.has_session && !client.jobs.iter().any(|job| job.op.is_alone()) {
                    self.on_session_lost(at, ErrorCode::SessionExpired, None);
                }
            }
        }
    }
}
