//! Takes connections in. Clients and peers share the port; the first frame tells them apart.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::AsyncWriteExt as _;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, sleep, timeout};
use tracing::warn;

use super::Shell;
use super::client_link::{self, IDLE_MAX, LOGIN_BEGUN_MAX};
use super::frames::{FrameReader, ReadEnd};
use super::peer_link;
use crate::config::FRAME_BEFORE_LOGIN_BYTES_MAX;
use crate::message::{ErrorCode, ErrorResponse, Response};
use crate::wire::client::{encode_response, is_peer};
use crate::wire::codec::Frame;
use crate::wire::greeting;

/// Connections beyond the limit that are still heard out: a peer must get in however many clients there are.
const WAITING_ROOM: usize = 64;
/// How long those have for their first frame.
const WAITING_ROOM_TIME: Duration = Duration::from_secs(1);
/// After a failed accept, most likely for want of file descriptors, nothing is accepted for so long.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// One of the connections that are open; counts itself. A proven peer gives it back: the limit is one of clients.
pub(super) struct Place<'a> {
    open: &'a AtomicUsize,
    number: usize,
}

impl<'a> Place<'a> {
    fn take(open: &'a AtomicUsize) -> Self {
        Self { open, number: open.fetch_add(1, Ordering::Relaxed) }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Takes connections in until the server ends.
pub(super) async fn accept(shell: Arc<Shell>, listener: Arc<TcpListener>) {
    let ended = shell.ended.clone();
    ended.run_until_cancelled(accept_all(&shell, &listener)).await;
}

async fn accept_all(shell: &Arc<Shell>, listener: &TcpListener) {
    let mut failing = false;
    loop {
        match listener.accept().await {
            Ok((stream, address)) => {
                failing = false;
                let shell = Arc::clone(shell);
                // Not by `run_until_cancelled_owned`, which has room for the task three times.
                tokio::spawn(async move {
                    tokio::select! { () = serve(&shell, stream, address) => {}, () = shell.ended.cancelled() => {} }
                });
            }
            Err(error) => {
                if !failing {
                    warn!("taking in a connection failed: {error}");
                }
                failing = true;
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn serve(shell: &Arc<Shell>, stream: TcpStream, address: SocketAddr) {
    let place = Place::take(&shell.open_connections);
    let crowded = place.number >= shell.connections_max;
    // Replies are written in one go: waiting for more of them only delays.
    let _ = stream.set_nodelay(true);
    let (reading, mut writing) = stream.into_split();
    let mut reader = FrameReader::new(reading, FRAME_BEFORE_LOGIN_BYTES_MAX);
    if place.number >= shell.connections_max + WAITING_ROOM {
        return turn_away(shell, &mut reader, &mut writing).await;
    }
    let first = first_frame(&mut reader, address, crowded).await;
    if let Some(line) = not_a_frame(&reader, &first) {
        return say_and_close(&mut reader, &mut writing, line.as_bytes()).await;
    }
    match first {
        Ok(hello) if is_peer(&hello) => {
            peer_link::accept(shell, reader, writing, hello, address, place).await;
        }
        _ if crowded => turn_away(shell, &mut reader, &mut writing).await,
        Err(ReadEnd::EndOfStream | ReadEnd::Idle | ReadEnd::Failed(_)) => {}
        first => client_link::serve(shell, reader, writing, first, address).await,
    }
}

async fn first_frame(
    reader: &mut FrameReader<OwnedReadHalf>,
    address: SocketAddr,
    crowded: bool,
) -> Result<Frame, ReadEnd> {
    let patience = match (crowded, address.ip().to_canonical().is_loopback()) {
        (true, _) => WAITING_ROOM_TIME,
        (false, true) => IDLE_MAX,
        (false, false) => LOGIN_BEGUN_MAX,
    };
    reader.next(|| Instant::now() + patience, &|| FRAME_BEFORE_LOGIN_BYTES_MAX).await
}

/// The readable line for bytes that can't be a frame.
fn not_a_frame(reader: &FrameReader<OwnedReadHalf>, first: &Result<Frame, ReadEnd>) -> Option<String> {
    if first.is_ok() { None } else { greeting(reader.unread()) }
}

async fn turn_away(shell: &Shell, reader: &mut FrameReader<OwnedReadHalf>, writing: &mut OwnedWriteHalf) {
    let text =
        format!("this server has {} connections, its limit: try another server", shell.connections_max);
    let code = ErrorCode::Busy;
    let error = ErrorResponse { code, maybe_executed: false, text, primary: String::new() };
    let mut frame = BytesMut::new();
    encode_response(&mut frame, 0, &Response::Error(error));
    say_and_close(reader, writing, &frame).await;
}

async fn say_and_close(
    reader: &mut FrameReader<OwnedReadHalf>,
    writing: &mut OwnedWriteHalf,
    last_words: &[u8],
) {
    let said = async {
        writing.write_all(last_words).await?;
        writing.shutdown().await
    };
    if matches!(timeout(WAITING_ROOM_TIME, said).await, Ok(Ok(()))) {
        let _ = timeout(WAITING_ROOM_TIME, client_link::throw_away(reader)).await;
    }
}
