//! One client's connection: frames in, responses and pushes out.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::Notify;
use tokio::time::{Instant, timeout};
use tracing::debug;

use super::Shell;
use super::driver::Input;
use super::frames::{FrameReader, ReadEnd};
use super::outgoing::Outgoing;
use crate::config::{
    FRAME_BEFORE_LOGIN_BYTES_MAX, FRAME_CLIENT_BYTES_MAX, IN_FLIGHT_MAX, OUTGOING_BYTES_MAX,
};
use crate::message::{ErrorCode, ErrorResponse, Push, Request, Response};
use crate::types::{ClientId, ConnectionId};
use crate::wire::client::{decode_request, encode_push, encode_response};
use crate::wire::codec::{CodecError, Frame};

/// A client that says nothing for so long is gone; clients ping at a third of it.
pub(super) const IDLE_MAX: Duration = Duration::from_secs(90);
/// A client that is not on this machine must begin to log in within this time.
pub(super) const LOGIN_BEGUN_MAX: Duration = Duration::from_secs(60);
/// How long the rest of a client's bytes is read and thrown away after an error ended the connection: without it the
/// system would cut off the error on its way.
const LINGER: Duration = Duration::from_millis(500);
const LINGER_BYTES_MAX: usize = 1024 * 1024;
/// Most requests that go to the driver together.
const ASKED_TOGETHER_MAX: usize = 256;

/// A client as its link and the driver share it.
#[derive(Debug)]
pub(super) struct Client {
    /// Where it connects from.
    pub(super) address: SocketAddr,
    outgoing: Outgoing,
    /// Requests forwarded and not answered.
    in_flight: AtomicUsize,
    /// Told when all are answered.
    answered: Notify,
    logged_in: AtomicBool,
}

impl Client {
    pub(super) fn new(address: SocketAddr, stream: OwnedWriteHalf) -> Self {
        Self {
            address,
            outgoing: Outgoing::new(stream, OUTGOING_BYTES_MAX),
            in_flight: AtomicUsize::new(0),
            answered: Notify::new(),
            logged_in: AtomicBool::new(false),
        }
    }

    /// Answers a request that was forwarded; [`Client::flush`] sends it. Says whether nothing had waited before.
    pub(super) fn respond(&self, request: u32, response: &Response) -> bool {
        match response {
            Response::Done { client, .. } => self.note_login(*client != ClientId::NONE),
            Response::Resumed { .. } => self.note_login(true),
            _ => {}
        }
        let is_first = self.outgoing.push(|out| encode_response(out, request, response));
        let before = self.in_flight.fetch_sub(1, Ordering::AcqRel);
        assert!(before > 0, "connection of {} was answered more often than it asked", self.address);
        if before == 1 {
            self.answered.notify_one();
        }
        is_first
    }

    /// Says something that was not asked for; [`Client::flush`] sends it. Says whether nothing had waited before.
    pub(super) fn push(&self, push: &Push) -> bool {
        if *push == Push::SessionEnded {
            self.note_login(false);
        }
        self.outgoing.push(|out| encode_push(out, push))
    }

    /// Sends what waits.
    pub(super) fn flush(&self) {
        self.outgoing.flush();
    }

    /// Ends the connection when everything is written.
    pub(super) fn finish(&self) {
        self.outgoing.finish();
    }

    /// Whether nothing waits to be written.
    pub(super) fn is_flushed(&self) -> bool {
        self.outgoing.waiting() == 0 || self.outgoing.is_closed()
    }

    fn note_login(&self, logged_in: bool) {
        self.logged_in.store(logged_in, Ordering::Release);
    }

    fn frame_bytes_max(&self) -> usize {
        if self.logged_in.load(Ordering::Acquire) {
            FRAME_CLIENT_BYTES_MAX
        } else {
            FRAME_BEFORE_LOGIN_BYTES_MAX
        }
    }

    /// An answer that the shell itself gives, to a request that was not forwarded.
    fn refuse(&self, request: u32, code: ErrorCode, text: String) {
        let error = ErrorResponse { code, maybe_executed: false, text, primary: String::new() };
        self.outgoing.push(|out| encode_response(out, request, &Response::Error(error)));
        self.outgoing.flush();
    }

    async fn all_answered(&self) {
        while self.in_flight.load(Ordering::Acquire) > 0 {
            self.answered.notified().await;
        }
    }
}

/// How a connection ended.
enum End {
    /// What was asked is answered; what waits is written.
    Orderly,
    /// An error was said; the client may still be sending.
    Refused,
    /// The server has said all it had to say; the client may still be sending.
    Finished,
    /// Nothing more can or should be said.
    Dropped,
}

/// Serves a client, whose first frame is read already, until its connection ends.
pub(super) async fn serve(
    shell: &Arc<Shell>,
    mut reader: FrameReader<OwnedReadHalf>,
    writer: OwnedWriteHalf,
    first: Result<Frame, ReadEnd>,
    address: SocketAddr,
) {
    let client = Arc::new(Client::new(address, writer));
    let connection = shell.next_connection();
    let connected = Input::Connected { connection, client: Arc::clone(&client) };
    if shell.clients.send(connected).await.is_err() {
        return;
    }
    let link = ClientLink {
        shell,
        client: &client,
        connection,
        connected_at: Instant::now(),
        login_begun: false,
        asked: Vec::new(),
    };
    let writing = client.outgoing.write();
    tokio::pin!(writing);
    let end = tokio::select! {
        biased;
        end = link.read(&mut reader, first) => end,
        written = &mut writing => {
            if written.is_err() || client.outgoing.is_closed() { End::Dropped } else { End::Finished }
        }
    };
    if matches!(end, End::Orderly | End::Refused) {
        client.finish();
        let _ = timeout(IDLE_MAX, &mut writing).await;
    }
    if matches!(end, End::Refused | End::Finished) {
        let _ = timeout(LINGER, throw_away(&mut reader)).await;
    }
    client.outgoing.close();
    let _ = shell.clients.send(Input::Disconnected { connection }).await;
}

/// Reads what a client still sends, so that closing doesn't reset the connection under what was said last.
pub(super) async fn throw_away(reader: &mut FrameReader<OwnedReadHalf>) {
    let mut left = LINGER_BYTES_MAX;
    while let Ok(read) = reader.skip().await {
        left = left.saturating_sub(read);
        if read == 0 || left == 0 {
            return;
        }
    }
}

struct ClientLink<'a> {
    shell: &'a Arc<Shell>,
    client: &'a Arc<Client>,
    connection: ConnectionId,
    connected_at: Instant,
    login_begun: bool,
    /// Requests that came together, by number, and go to the driver together.
    asked: Vec<(u32, Request)>,
}

impl ClientLink<'_> {
    async fn read(mut self, reader: &mut FrameReader<OwnedReadHalf>, first: Result<Frame, ReadEnd>) -> End {
        let mut next = first;
        loop {
            match next {
                Ok(frame) => {
                    if !self.on_frame(&frame).await {
                        return End::Dropped;
                    }
                }
                Err(ReadEnd::Idle) if self.client.in_flight.load(Ordering::Acquire) > 0 => {}
                Err(end) => {
                    let served = self.forward().await;
                    return if served { self.on_end(end).await } else { End::Dropped };
                }
            }
            if !reader.has_next() && !self.forward().await {
                return End::Dropped;
            }
            let client = self.client;
            next = reader.next(|| self.idle_until(), &|| client.frame_bytes_max()).await;
        }
    }

    /// Until when the client must say something.
    fn idle_until(&self) -> Instant {
        let idle = Instant::now() + IDLE_MAX;
        if self.login_begun || self.client.address.ip().to_canonical().is_loopback() {
            return idle;
        }
        idle.min(self.connected_at + LOGIN_BEGUN_MAX)
    }

    /// Takes in a request, or answers what can't be one. False if the server is ending.
    async fn on_frame(&mut self, frame: &Frame) -> bool {
        let body = match decode_request(frame) {
            Ok(body) => body,
            Err(error) => {
                self.client.refuse(frame.request, error.code(), error.to_string());
                return true;
            }
        };
        let answered = !matches!(body, Request::Seen { .. });
        if answered && self.client.in_flight.load(Ordering::Acquire) >= IN_FLIGHT_MAX {
            let text = format!("{IN_FLIGHT_MAX} requests of this connection are under way: wait for answers");
            self.client.refuse(frame.request, ErrorCode::Busy, text);
            return true;
        }
        let binds = binds_connection(&body);
        self.login_begun |= binds;
        if answered {
            self.client.in_flight.fetch_add(1, Ordering::AcqRel);
        }
        self.asked.push((frame.request, body));
        if (binds || self.asked.len() == ASKED_TOGETHER_MAX) && !self.forward().await {
            return false;
        }
        if binds {
            // What follows a login is meant to be done as logged in, and may be longer: it waits for the login.
            self.client.all_answered().await;
        }
        true
    }

    /// Hands what was asked to the driver. False if the server is ending.
    async fn forward(&mut self) -> bool {
        if self.asked.is_empty() {
            return true;
        }
        let asked = std::mem::take(&mut self.asked);
        let input = Input::Requests { connection: self.connection, unix_ms: unix_ms(), asked };
        self.shell.clients.send(input).await.is_ok()
    }

    /// Whatever ends the stream, its complete requests are still answered first.
    async fn on_end(&self, end: ReadEnd) -> End {
        if !matches!(end, ReadEnd::Failed(_)) {
            let _ = timeout(IDLE_MAX, self.client.all_answered()).await;
        }
        match end {
            ReadEnd::EndOfStream => End::Orderly,
            ReadEnd::Incomplete { found } => {
                let text = format!(
                    "found {found} bytes of a frame before the end of the stream, expected all of it"
                );
                self.client.refuse(0, ErrorCode::Malformed, text);
                End::Orderly
            }
            ReadEnd::Codec(error) => {
                let code = match error {
                    CodecError::TooLong { .. } => ErrorCode::FrameTooLong,
                    _ => ErrorCode::Malformed,
                };
                self.client.refuse(0, code, format!("{error}; the connection is closed"));
                End::Refused
            }
            ReadEnd::Stuck => {
                let text = "found a frame that was begun and not finished in 10 s; the connection is closed";
                self.client.refuse(0, ErrorCode::Malformed, text.to_owned());
                End::Refused
            }
            ReadEnd::Idle => {
                debug!("{} said nothing for too long: closing its connection", self.client.address);
                End::Orderly
            }
            ReadEnd::Failed(error) => {
                debug!("the connection from {} failed: {error}", self.client.address);
                End::Dropped
            }
        }
    }
}

/// Whether the request changes who the connection speaks for.
const fn binds_connection(body: &Request) -> bool {
    matches!(
        body,
        Request::Register { .. } | Request::Login { .. } | Request::Resume { .. } | Request::Logout { .. }
    )
}

fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
