//! One connection to one server: any number of requests under way, replies found by their number, pushes passed on.
//!
//! Two tasks serve a connection. One writes, and puts everything that waits into one write; the other reads. When
//! either ends, all who wait for a reply learn that it will not come.

use crate::config::{FRAME_PEER_BYTES_MAX, IN_FLIGHT_MAX};
use crate::message::{Push, Request, Response};
use crate::wire::client::{FromServer, decode_from_server, encode_request};
use crate::wire::codec::FrameCodec;
use bytes::BytesMut;
use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::codec::Decoder as _;

/// How many pushes may wait to be looked at; what comes beyond them is dropped and read again (X4).
pub const PUSHES_MAX: usize = 1024;

/// Why no connection came about.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The host answered: no process listens.
    #[error("{server}: connection refused")]
    Refused {
        /// Which server.
        server: String,
    },
    /// No answer in time.
    #[error("{server}: no answer within {} ms", .after.as_millis())]
    TimedOut {
        /// Which server.
        server: String,
        /// How long the client waited.
        after: Duration,
    },
    /// The address can't be resolved, the network is unreachable, and the like.
    #[error("{server}: {error}")]
    Other {
        /// Which server.
        server: String,
        /// What the system says.
        error: io::Error,
    },
}

/// The connection was closed before the reply came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Closed;

/// A connection; a clone is the same one. It is closed when the last clone is dropped.
#[derive(Clone)]
pub struct Connection {
    shared: Arc<Shared>,
    outgoing: mpsc::Sender<BytesMut>,
    closed: watch::Receiver<bool>,
}

struct Shared {
    waiting: Mutex<Waiting>,
    /// Pushes were dropped because too many waited.
    pushes_missed: AtomicBool,
}

#[derive(Default)]
struct Waiting {
    numbered: HashMap<u32, oneshot::Sender<Response>>,
    /// Requests without a number; their replies come in their order.
    unnumbered: VecDeque<oneshot::Sender<Response>>,
    closed: bool,
}

impl Shared {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().expect("nothing that holds the lock panics")
    }

    fn close(&self) {
        let mut waiting = self.waiting();
        waiting.closed = true;
        waiting.numbered.clear();
        waiting.unnumbered.clear();
    }
}

impl Connection {
    /// Connects to `server`: `host:port`, `[IPv6]:port`; a host name is resolved each time.
    ///
    /// # Errors
    /// [`OpenError`] if no connection came about within `timeout`.
    pub async fn open(
        server: &str,
        timeout: Duration,
        pushes: mpsc::Sender<Push>,
    ) -> Result<Self, OpenError> {
        let server_name = || server.to_owned();
        let stream = match tokio::time::timeout(timeout, TcpStream::connect(server)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => {
                return Err(OpenError::Refused { server: server_name() });
            }
            Ok(Err(error)) => return Err(OpenError::Other { server: server_name(), error }),
            Err(_) => return Err(OpenError::TimedOut { server: server_name(), after: timeout }),
        };
        stream.set_nodelay(true).map_err(|error| OpenError::Other { server: server_name(), error })?;
        let (read_half, write_half) = stream.into_split();
        let shared = Arc::new(Shared { waiting: Mutex::default(), pushes_missed: AtomicBool::new(false) });
        let (outgoing, outgoing_queue) = mpsc::channel(IN_FLIGHT_MAX);
        let (closing, closed) = watch::channel(false);
        let reader_shared = Arc::clone(&shared);
        tokio::spawn(async move {
            // The writer ends when the last clone of the connection is dropped, the reader when the server closes.
            tokio::select! {
                () = write_all(write_half, outgoing_queue) => {}
                () = read_all(read_half, &reader_shared, &pushes) => {}
            }
            reader_shared.close();
            closing.send_replace(true);
        });
        Ok(Self { shared, outgoing, closed })
    }

    /// Sends a request; its reply comes through the receiver, which fails if the connection is closed before.
    /// Under a number other than 0 only one request may be under way.
    ///
    /// # Errors
    /// [`Closed`] if the connection is closed already: nothing was sent.
    pub async fn send(&self, number: u32, request: &Request) -> Result<oneshot::Receiver<Response>, Closed> {
        let (reply, receiver) = oneshot::channel();
        {
            let mut waiting = self.shared.waiting();
            if waiting.closed {
                return Err(Closed);
            }
            if number == 0 {
                waiting.unnumbered.push_back(reply);
            } else {
                waiting.numbered.insert(number, reply);
            }
        }
        self.tell(number, request).await?;
        Ok(receiver)
    }

    /// Sends something that is not answered.
    ///
    /// # Errors
    /// [`Closed`] if the connection is closed already.
    pub async fn tell(&self, number: u32, request: &Request) -> Result<(), Closed> {
        let mut frame = BytesMut::new();
        encode_request(&mut frame, number, request);
        self.outgoing.send(frame).await.map_err(|_| Closed)
    }

    /// Whether the connection is closed.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        *self.closed.borrow()
    }

    /// Waits until the connection is closed.
    pub async fn closed(&self) {
        let mut closed = self.closed.clone();
        // An error means that the task is gone, and the connection with it.
        let _ = closed.wait_for(|closed| *closed).await;
    }

    /// Whether pushes were dropped since the last call.
    #[must_use]
    pub fn take_pushes_missed(&self) -> bool {
        self.shared.pushes_missed.swap(false, Ordering::Relaxed)
    }
}

/// Writes what is queued, everything that waits in one write, until all senders are gone or the connection fails.
async fn write_all(mut half: OwnedWriteHalf, mut queue: mpsc::Receiver<BytesMut>) {
    while let Some(mut bytes) = queue.recv().await {
        while let Ok(more) = queue.try_recv() {
            bytes.unsplit(more);
        }
        if half.write_all(&bytes).await.is_err() {
            return;
        }
    }
}

/// Reads frames until the server closes the connection or says something that can't be read.
async fn read_all(mut half: OwnedReadHalf, shared: &Shared, pushes: &mpsc::Sender<Push>) {
    // A server's pages are bounded by it; the client only protects itself from nonsense.
    let mut codec = FrameCodec::new(FRAME_PEER_BYTES_MAX);
    let mut buffer = BytesMut::with_capacity(16 * 1024);
    loop {
        loop {
            let frame = match codec.decode(&mut buffer) {
                Ok(Some(frame)) => frame,
                Ok(None) => break,
                Err(_) => return,
            };
            match decode_from_server(&frame) {
                Ok(FromServer::Response(response)) => on_response(shared, frame.request, response),
                Ok(FromServer::Push(push)) => {
                    if pushes.try_send(push).is_err() {
                        shared.pushes_missed.store(true, Ordering::Relaxed);
                    }
                }
                Err(_) => return,
            }
        }
        match half.read_buf(&mut buffer).await {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
    }
}

/// Gives a response to whoever waits for it. A second response to the same request finds nobody and is dropped.
fn on_response(shared: &Shared, number: u32, response: Response) {
    let mut waiting = shared.waiting();
    let waiter = if number == 0 { waiting.unnumbered.pop_front() } else { waiting.numbered.remove(&number) };
    drop(waiting);
    if let Some(waiter) = waiter {
        // Whoever asked may have given up.
        let _ = waiter.send(response);
    }
}
