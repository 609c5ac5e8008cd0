//! Many requests under way in one session: for programs with more to say than one person.
//!
//! A pipeline does what [`Client`](super::Client) does for one request at a time. Each request keeps its number over
//! retries (X3); when a server fails, the next one is looked for, the session resumed there, and everything that has
//! no answer yet goes out again in its order. There is no task behind it: whoever waits for arrivals does the work, and
//! everything that was begun meanwhile goes out in one write.

use super::error::ClientError;
use super::failover::{
    CONNECT_TIMEOUT, PATIENCE, PATIENCE_TIMES_MAX, PING_INTERVAL, READ_NUMBER_FIRST, find_other_leader,
};
use super::policy::{Failure, Policy};
use super::session_store::StoredSession;
use crate::chat::command::MessageView;
use crate::config::{FRAME_PEER_BYTES_MAX, REQUEST_WINDOW};
use crate::message::{ErrorCode, ErrorResponse, Push, Request, Response};
use crate::time;
use crate::types::ViewNumber;
use crate::wire::client::{FromServer, decode_from_server, encode_request};
use crate::wire::codec::FrameCodec;
use bytes::{Buf as _, BytesMut};
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{sleep_until, timeout, timeout_at};
use tokio_util::codec::Decoder as _;

/// So many more replies must have come before the server is told that it may forget them.
const TOLD_EVERY: u32 = 64;
/// How much is read at once.
const READ_BYTES: usize = 16 * 1024;

/// Something that came from the servers.
#[derive(Debug)]
#[allow(
    clippy::large_enum_variant,
    reason = "nearly all are answers, and a box for each would be an allocation for each"
)]
pub enum Arrival {
    /// A request has its answer.
    Answer(Answer),
    /// A message for the account.
    Message(MessageView),
    /// From now on messages are pushed: for the first time, or again after a failover. What came in between waits.
    Subscribed,
}

/// A request and its answer.
#[derive(Debug)]
pub struct Answer {
    /// The number of a command; reads have one too, acknowledgements 0.
    pub number: u32,
    /// What was asked.
    pub request: Request,
    /// When it was begun.
    pub begun: Instant,
    /// The answer. An error is final: what may succeed later is retried.
    pub response: Response,
}

/// A session with many requests under way.
pub struct Pipeline {
    servers: Vec<String>,
    policy: Policy,
    session: StoredSession,
    timeout: Duration,
    started: Instant,
    link: Option<Link>,
    next_number: u32,
    next_read_number: u32,
    /// Invariant: everything in here, and nothing else, was or will be written to the present link.
    numbered: BTreeMap<u32, InFlight>,
    unnumbered: VecDeque<InFlight>,
    /// Told to come again later.
    held: Vec<(u32, InFlight)>,
    held_until: Option<Instant>,
    subscribed: bool,
    view: ViewNumber,
    /// The next attempt to connect is not made earlier.
    not_before: Option<Instant>,
    failing_since: Option<Instant>,
}

struct InFlight {
    request: Request,
    begun: Instant,
}

struct Link {
    stream: TcpStream,
    server: String,
    incoming: BytesMut,
    outgoing: BytesMut,
    /// The number of the request that resumes the session, until it is answered.
    resuming: Option<u32>,
    told: u32,
    heard: Instant,
    /// How often the server was silent for too long since it was heard.
    silences: u32,
}

/// Why the present link is of no use any more.
struct Failed(Failure, String);

impl Pipeline {
    /// A pipeline in a session whose requests from number `first` on nobody has used, and nobody else will. It tries
    /// for `timeout` to find a server that leads.
    ///
    /// # Panics
    /// If there is no server.
    #[must_use]
    pub fn new(servers: Vec<String>, session: StoredSession, first: u32, timeout: Duration) -> Self {
        let mut policy = Policy::new(servers.len(), rand::random());
        if let Some(primary) = servers.iter().position(|server| *server == session.primary) {
            policy.prefer(primary);
        }
        Self {
            servers,
            policy,
            session,
            timeout,
            started: Instant::now(),
            link: None,
            next_number: first,
            next_read_number: READ_NUMBER_FIRST,
            numbered: BTreeMap::new(),
            unnumbered: VecDeque::new(),
            held: Vec::new(),
            held_until: None,
            subscribed: false,
            view: ViewNumber::NONE,
            not_before: None,
            failing_since: None,
        }
    }

    /// Whose session it is.
    #[must_use]
    pub fn session(&self) -> &StoredSession {
        &self.session
    }

    /// How many requests have no answer yet.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.numbered.len() + self.unnumbered.len() + self.held.len()
    }

    /// Whether another command may be begun: commands may run ahead of the oldest unanswered one by so much only (N2).
    #[must_use]
    pub fn has_room(&self) -> bool {
        u64::from(self.next_number) <= u64::from(self.acknowledged()) + REQUEST_WINDOW
    }

    /// Begins a request, and gives its number. It goes out when arrivals are waited for.
    pub fn begin(&mut self, request: Request, now: Instant) -> u32 {
        let number = match &request {
            // It is harmless to do it twice.
            Request::Acknowledge { .. } => 0,
            Request::List { .. } | Request::Read { .. } | Request::History { .. } | Request::Ping => {
                self.read_number()
            }
            _ => {
                self.next_number += 1;
                self.next_number - 1
            }
        };
        self.put(number, InFlight { request, begun: now });
        number
    }

    /// From now on messages for the account are pushed, also after a failover.
    pub fn subscribe(&mut self) {
        self.subscribed = true;
        if let Some(link) = &mut self.link {
            encode_request(&mut link.outgoing, 0, &Request::Subscribe);
        }
    }

    /// Gives up everything that has no answer yet; it may have been carried out, or still be.
    pub fn abandon(&mut self) {
        self.link = None;
        self.numbered.clear();
        self.unnumbered.clear();
        self.held.clear();
    }

    /// Asks one thing and waits for its answer; for when nothing else is under way.
    ///
    /// # Errors
    /// [`ClientError::NoServer`]; [`ClientError::Refused`] with an error that is final.
    pub async fn ask(&mut self, request: Request) -> Result<Response, ClientError> {
        let number = self.begin(request, Instant::now());
        let mut arrivals = Vec::new();
        loop {
            self.next(&mut arrivals).await?;
            for arrival in arrivals.drain(..) {
                match arrival {
                    Arrival::Answer(answer) if answer.number == number => {
                        return match answer.response {
                            Response::Error(error) => Err(ClientError::Refused(error)),
                            response => Ok(response),
                        };
                    }
                    _ => {}
                }
            }
        }
    }

    /// Writes what was begun, waits until something comes, and appends all of that to `arrivals`. Finds another server
    /// when the present one fails. Dropping the future loses nothing.
    ///
    /// # Errors
    /// [`ClientError::NoServer`] if no server led for the whole timeout; [`ClientError::Refused`] if the session is over.
    pub async fn next(&mut self, arrivals: &mut Vec<Arrival>) -> Result<(), ClientError> {
        loop {
            if let Err(failed) = self.exchange(arrivals).await {
                self.on_failure(failed)?;
            }
            if !arrivals.is_empty() {
                return self.check_session(arrivals);
            }
        }
    }

    /// An answer that the session is over is nobody's in particular.
    fn check_session(&self, arrivals: &[Arrival]) -> Result<(), ClientError> {
        for arrival in arrivals {
            if let Arrival::Answer(Answer { response: Response::Error(error), .. }) = arrival
                && matches!(error.code, ErrorCode::SessionExpired | ErrorCode::NotLoggedIn)
            {
                return Err(ClientError::Refused(error.clone()));
            }
        }
        Ok(())
    }

    /// Numbered requests whose replies have come, up to the first one whose reply has not.
    fn acknowledged(&self) -> u32 {
        let first = self.numbered.keys().next().copied().unwrap_or(u32::MAX);
        let held = self.held.iter().map(|(number, _)| *number).filter(|number| *number != 0).min();
        first.min(held.unwrap_or(u32::MAX)).min(self.next_number) - 1
    }

    fn read_number(&mut self) -> u32 {
        let number = self.next_read_number;
        self.next_read_number = number.checked_add(1).unwrap_or(READ_NUMBER_FIRST);
        number
    }

    fn put(&mut self, number: u32, flight: InFlight) {
        if let Some(link) = &mut self.link {
            encode_request(&mut link.outgoing, number, &flight.request);
        }
        if number == 0 {
            self.unnumbered.push_back(flight);
        } else {
            self.numbered.insert(number, flight);
        }
    }

    /// One write and one read, as far as they go without waiting twice.
    async fn exchange(&mut self, arrivals: &mut Vec<Arrival>) -> Result<(), Failed> {
        if self.link.is_none() {
            self.connect().await?;
        }
        self.put_held();
        self.maybe_tell();
        let deadline = self.next_deadline();
        let link = self.link.as_mut().expect("connected above");
        link.write()?;
        match timeout_at(deadline.into(), link.wait()).await {
            Ok(moved) => {
                moved?;
                while self.take_in_frame(arrivals)? {}
                Ok(())
            }
            Err(_) => self.on_deadline().await,
        }
    }

    /// When to look whether the server is silent, or whether what was held back may go out again.
    fn next_deadline(&self) -> Instant {
        let link = self.link.as_ref().expect("called with a link");
        let oldest = self.numbered.values().next().or(self.unnumbered.front());
        let resuming = link.resuming.map(|_| link.heard);
        let silent = match oldest.map(|flight| flight.begun.max(link.heard)).or(resuming) {
            Some(owed_since) => owed_since + PATIENCE * (link.silences + 1),
            // A server that owes nothing is not silent.
            None => link.heard + PING_INTERVAL,
        };
        self.held_until.map_or(silent, |until| until.min(silent))
    }

    async fn on_deadline(&mut self) -> Result<(), Failed> {
        if self.held_until.is_some_and(|until| until <= Instant::now()) {
            return Ok(());
        }
        let link = self.link.as_ref().expect("called with a link");
        if self.numbered.is_empty() && self.unnumbered.is_empty() && link.resuming.is_none() {
            // Whoever only listens has to ask, or would never learn that nobody is there any more.
            self.begin(Request::Ping, Instant::now());
            return Ok(());
        }
        let leader = find_other_leader(&self.servers, self.policy.target(), self.view).await;
        let link = self.link.as_mut().expect("called with a link");
        if let Some(leader) = leader {
            let text = format!("{} does not answer, {} leads", link.server, self.servers[leader]);
            return Err(Failed(Failure::NotPrimary { hint: Some(leader) }, text));
        }
        link.silences += 1;
        if link.silences < PATIENCE_TIMES_MAX {
            return Ok(());
        }
        Err(Failed(Failure::TimedOut, format!("{} does not answer", link.server)))
    }

    /// Connects to the present target, and writes down for it all that has no answer yet.
    async fn connect(&mut self) -> Result<(), Failed> {
        if let Some(instant) = self.not_before {
            sleep_until(instant.into()).await;
            self.not_before = None;
        }
        let server = self.servers[self.policy.target()].clone();
        let stream = match timeout(CONNECT_TIMEOUT, TcpStream::connect(&server)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return Err(Failed(Failure::Refused, format!("{server}: {error}"))),
            Err(_) => return Err(Failed(Failure::TimedOut, format!("{server} accepts no connection"))),
        };
        stream.set_nodelay(true).map_err(|error| Failed(Failure::Refused, format!("{server}: {error}")))?;
        let resuming = self.read_number();
        let mut outgoing = BytesMut::new();
        let (client, token) = (self.session.client, self.session.token);
        encode_request(&mut outgoing, resuming, &Request::Resume { client, token });
        if self.subscribed {
            encode_request(&mut outgoing, 0, &Request::Subscribe);
        }
        for (number, flight) in &self.numbered {
            encode_request(&mut outgoing, *number, &flight.request);
        }
        for flight in &self.unnumbered {
            encode_request(&mut outgoing, 0, &flight.request);
        }
        self.link = Some(Link {
            stream,
            server,
            incoming: BytesMut::new(),
            outgoing,
            resuming: Some(resuming),
            told: 0,
            heard: Instant::now(),
            silences: 0,
        });
        Ok(())
    }

    fn put_held(&mut self) {
        if self.held_until.is_some_and(|until| until <= Instant::now()) {
            self.held_until = None;
            for (number, flight) in std::mem::take(&mut self.held) {
                self.put(number, flight);
            }
        }
    }

    /// Tells the server which replies have come (N2) and which view was seen (N1).
    fn maybe_tell(&mut self) {
        let acknowledged = self.acknowledged();
        let link = self.link.as_mut().expect("called with a link");
        if acknowledged >= link.told + TOLD_EVERY {
            link.told = acknowledged;
            encode_request(&mut link.outgoing, 0, &Request::Seen { acknowledged, view: self.view });
        }
    }

    /// Takes in one frame; false if there is no whole one.
    fn take_in_frame(&mut self, arrivals: &mut Vec<Arrival>) -> Result<bool, Failed> {
        let link = self.link.as_mut().expect("something was read from it");
        let server = &link.server;
        let nonsense = |error: String| Failed(Failure::Closed, format!("{server}: {error}"));
        let mut codec = FrameCodec::new(FRAME_PEER_BYTES_MAX);
        let frame = codec.decode(&mut link.incoming).map_err(|error| nonsense(error.to_string()))?;
        let Some(frame) = frame else { return Ok(false) };
        match decode_from_server(&frame).map_err(|error| nonsense(error.to_string()))? {
            FromServer::Push(Push::Message(message)) => arrivals.push(Arrival::Message(message)),
            // The next request is answered by an error that says so.
            FromServer::Push(Push::SessionEnded) => {}
            FromServer::Response(response) => self.on_response(frame.request, response, arrivals)?,
        }
        Ok(true)
    }

    fn on_response(
        &mut self,
        number: u32,
        response: Response,
        arrivals: &mut Vec<Arrival>,
    ) -> Result<(), Failed> {
        let link = self.link.as_mut().expect("something was read from it");
        let resumed = link.resuming == Some(number);
        let response = match response {
            Response::Subscribed => {
                arrivals.push(Arrival::Subscribed);
                return Ok(());
            }
            Response::Resumed { view, .. } if resumed => {
                link.resuming = None;
                self.view = self.view.max(view);
                self.on_success();
                return Ok(());
            }
            Response::Error(error) => match self.judge(error, number, resumed)? {
                Some(final_error) => Response::Error(final_error),
                None => return Ok(()),
            },
            response => {
                if let Response::Done { view, .. } = response {
                    self.view = self.view.max(view);
                }
                response
            }
        };
        self.on_success();
        if resumed {
            let now = Instant::now();
            let request = Request::Resume { client: self.session.client, token: self.session.token };
            arrivals.push(Arrival::Answer(Answer { number, request, begun: now, response }));
            return Ok(());
        }
        // What was answered already, before a retry, is nobody's.
        let flight = if number == 0 { self.unnumbered.pop_front() } else { self.numbered.remove(&number) };
        if let Some(InFlight { request, begun }) = flight.filter(|flight| flight.request != Request::Ping) {
            arrivals.push(Arrival::Answer(Answer { number, request, begun, response }));
        }
        Ok(())
    }

    /// What an error means: it is final, or its request is held back (none), or the link is of no use.
    fn judge(
        &mut self,
        error: ErrorResponse,
        number: u32,
        resumed: bool,
    ) -> Result<Option<ErrorResponse>, Failed> {
        let text = format!("{}: {}", self.servers[self.policy.target()], error.text);
        match error.code {
            ErrorCode::NotPrimary => {
                let hint = self.servers.iter().position(|server| *server == error.primary);
                Err(Failed(Failure::NotPrimary { hint }, text))
            }
            ErrorCode::Busy | ErrorCode::TooFewCopies | ErrorCode::DiskFull => {
                // Without the session nothing else is carried out over this link; and patience has an end.
                if resumed || self.failing_for() >= self.timeout {
                    return Err(Failed(Failure::Busy, text));
                }
                self.hold(number);
                Ok(None)
            }
            code if code.retriable() => Err(Failed(Failure::NoPrimary, text)),
            _ => Ok(Some(error)),
        }
    }

    /// Keeps a request back until the server may have time for it.
    fn hold(&mut self, number: u32) {
        let flight = if number == 0 { self.unnumbered.pop_front() } else { self.numbered.remove(&number) };
        self.held.extend(flight.map(|flight| (number, flight)));
        if self.held_until.is_none() {
            let wait = self.policy.on_failure(self.core_now(), Failure::Busy).wait;
            self.held_until = Some(Instant::now() + wait);
        }
    }

    /// How long no request has succeeded, counted from the first that failed.
    fn failing_for(&mut self) -> Duration {
        self.failing_since.get_or_insert_with(Instant::now).elapsed()
    }

    fn core_now(&self) -> time::Instant {
        time::Instant::from_nanos(u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }

    fn on_success(&mut self) {
        self.policy.on_success();
        self.failing_since = None;
    }

    fn on_failure(&mut self, failed: Failed) -> Result<(), ClientError> {
        let Failed(failure, text) = failed;
        tracing::debug!("{text}");
        self.link = None;
        self.held_until = None;
        for (number, flight) in std::mem::take(&mut self.held) {
            self.put(number, flight);
        }
        if self.failing_for() >= self.timeout {
            return Err(ClientError::NoServer { timeout: self.timeout, last: text });
        }
        let wait = self.policy.on_failure(self.core_now(), failure).wait;
        self.not_before = (!wait.is_zero()).then(|| Instant::now() + wait);
        Ok(())
    }
}

impl Link {
    fn closed(&self) -> Failed {
        Failed(Failure::Closed, format!("{} closed the connection", self.server))
    }

    fn write(&mut self) -> Result<(), Failed> {
        while !self.outgoing.is_empty() {
            match self.stream.try_write(&self.outgoing) {
                Ok(written) => self.outgoing.advance(written),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => return Err(self.closed()),
            }
        }
        Ok(())
    }

    /// Waits until something is read, or what is left to write gets on. Dropping the future loses nothing. Waiting in the
    /// read itself, not for the connection to be readable, spares asking once more after all is read.
    async fn wait(&mut self) -> Result<(), Failed> {
        self.incoming.reserve(READ_BYTES);
        let (mut reading, mut writing) = self.stream.split();
        let moved = tokio::select! {
            read = reading.read_buf(&mut self.incoming) => {
                self.heard = Instant::now();
                self.silences = 0;
                read
            }
            written = writing.write_buf(&mut self.outgoing), if !self.outgoing.is_empty() => written,
        };
        if matches!(moved, Ok(1..)) { Ok(()) } else { Err(self.closed()) }
    }
}
