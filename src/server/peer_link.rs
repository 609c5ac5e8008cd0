//! Links between servers. Each server connects to each other one; on that link it only sends. What the other says
//! comes on the link that the other has opened.

use std::io;
use std::mem::discriminant;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rand::TryRng as _;
use rand::rngs::SysRng;
use socket2::SockRef;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::Shell;
use super::driver::Input;
use super::frames::{FrameReader, ReadEnd};
use super::listener::Place;
use super::outgoing::Outgoing;
use super::peers::PeerInput;
use crate::config::{FRAME_BEFORE_LOGIN_BYTES_MAX, FRAME_PEER_BYTES_MAX, SUSPICION};
use crate::replica::LinkState;
use crate::types::ServerId;
use crate::wire::codec::Frame;
use crate::wire::handshake::{Acceptor, HandshakeError, Initiator};
use crate::wire::peer;

/// Most bytes that wait for one peer; beyond it the link is closed, and the peer pulls what it missed (T1).
const OUTGOING_PEER_BYTES_MAX: usize = 32 * 1024 * 1024;
/// How long to wait between two attempts to connect.
const RETRY: Duration = Duration::from_millis(100);
/// How long to wait after a connection that ended during the handshake, at first; each time twice as long, up to [`RETRY`].
const RETRY_SOON: Duration = Duration::from_millis(1);
/// How long to wait after a handshake has failed: keys and lists don't change by themselves.
const RETRY_REFUSED: Duration = Duration::from_secs(1);
/// The system gives a connection up when sent bytes stay unacknowledged for so long.
const USER_TIMEOUT: Duration = Duration::from_secs(3);
/// A link between proven servers may be silent: whether the peer lives is the core's question.
const SILENCE_MAX: Duration = Duration::from_secs(365 * 24 * 60 * 60);

const _: () = assert!(RETRY_SOON.as_millis() < RETRY.as_millis());
const _: () = assert!(USER_TIMEOUT.as_millis() > SUSPICION.as_millis());
const _: () = assert!(OUTGOING_PEER_BYTES_MAX >= 2 * FRAME_PEER_BYTES_MAX);

/// Connects to a peer, and tells how that went if it did not work (V11).
async fn connect(shell: &Shell, peer: ServerId) -> Result<TcpStream, LinkState> {
    let begun = shell.now();
    match timeout(SUSPICION, connect_undisturbed(shell.address_of(peer))).await {
        // A socket that looks for a free port for itself may pick the very one it connects to: nobody listens there.
        Ok(Ok(stream)) if stream.local_addr().ok() == stream.peer_addr().ok() => {
            Err(LinkState::Refused { begun })
        }
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => {
            Err(LinkState::Refused { begun })
        }
        Ok(Err(_)) | Err(_) => Err(LinkState::Silent),
    }
}

/// Connects; again if the connection is reset at once: a process that dies has just closed its listening socket under
/// it, and the next attempt is refused.
async fn connect_undisturbed((host, port): &(String, u16)) -> io::Result<TcpStream> {
    loop {
        match TcpStream::connect((host.as_str(), *port)).await {
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => sleep(RETRY_SOON).await,
            result => return result,
        }
    }
}

/// Connects once more, to see whether a process listens there (V11). None: one does.
pub(super) async fn probe(shell: &Shell, peer: ServerId) -> Option<LinkState> {
    connect(shell, peer).await.err()
}

/// Without it a dead host is noticed later, nothing more: a system that refuses it is no reason to stop.
fn set_user_timeout<'a>(stream: impl Into<SockRef<'a>>) {
    let _ = stream.into().set_tcp_user_timeout(Some(USER_TIMEOUT));
}

/// Keeps one outgoing link to a peer until the server ends.
pub(super) async fn keep_connected(shell: Arc<Shell>, peer: ServerId) {
    let ended = shell.ended.clone();
    ended.run_until_cancelled(connect_again_and_again(&shell, peer)).await;
}

/// When the next attempt to connect makes sense.
enum Again {
    /// A link had stood: a fresh connect tells a crash from a mere close (V11).
    AtOnce,
    /// The connection ended during the handshake. A process that dies closes its connections one after the other: it
    /// may have closed the link already and its listening socket not yet, and the next attempt tells.
    Soon,
    /// Nobody listens, answers, or agrees.
    After(Duration),
}

async fn connect_again_and_again(shell: &Shell, peer: ServerId) {
    let mut soon = RETRY_SOON;
    loop {
        let again = match connect(shell, peer).await {
            Ok(stream) => open_and_run(shell, peer, stream).await,
            Err(state) => {
                shell.tell_peer(peer, PeerInput::NotConnected(state)).await;
                Again::After(RETRY)
            }
        };
        match again {
            Again::AtOnce => soon = RETRY_SOON,
            Again::Soon => {
                sleep(soon).await;
                soon = (soon * 2).min(RETRY);
            }
            Again::After(wait) => {
                // Whoever connects to this server listens again, most likely: both ways come up together.
                let wait = wait.mul_f64(rand::random_range(0.75..1.25));
                let _ = timeout(wait, shell.connected(peer).notified()).await;
            }
        }
    }
}

/// Proves itself and sends until the link ends. Says when the next attempt makes sense.
async fn open_and_run(shell: &Shell, peer: ServerId, stream: TcpStream) -> Again {
    let _ = stream.set_nodelay(true);
    set_user_timeout(&stream);
    let (reading, mut writing) = stream.into_split();
    let mut reader = FrameReader::new(reading, FRAME_BEFORE_LOGIN_BYTES_MAX);
    match timeout(SUSPICION, initiate(shell, peer, &mut reader, &mut writing)).await {
        Ok(Ok(())) => {}
        Ok(Err(Failure::Handshake(error))) => {
            let kind = format!("to it: {:?}", discriminant(&error));
            shell.complain(peer, &kind, &format!("server {peer} at {}: {error}", shell.name_of(peer)));
            return Again::After(RETRY_REFUSED);
        }
        Ok(Err(Failure::Connection)) => return Again::Soon,
        // The system took the connection, and no process answers: stopped, or stuck.
        Err(_) => {
            shell.tell_peer(peer, PeerInput::NotConnected(LinkState::Silent)).await;
            return Again::After(RETRY);
        }
    }
    let outgoing = Arc::new(Outgoing::new(writing, OUTGOING_PEER_BYTES_MAX));
    shell.tell_peer(peer, PeerInput::OutgoingUp(Arc::clone(&outgoing))).await;
    let mut unexpected = [0; 1];
    tokio::select! {
        _ = outgoing.write() => {}
        // The peer says nothing on this link: whatever can be read is its end.
        _ = reader.stream().read(&mut unexpected) => {}
    }
    outgoing.close();
    shell.tell_peer(peer, PeerInput::OutgoingDown(outgoing)).await;
    Again::AtOnce
}

/// Why a handshake came to nothing.
enum Failure {
    /// The other side has no right to be here, or says that this one hasn't.
    Handshake(HandshakeError),
    /// The connection ended.
    Connection,
}

impl From<HandshakeError> for Failure {
    fn from(error: HandshakeError) -> Self {
        Self::Handshake(error)
    }
}

impl From<io::Error> for Failure {
    fn from(_: io::Error) -> Self {
        Self::Connection
    }
}

impl From<ReadEnd> for Failure {
    fn from(_: ReadEnd) -> Self {
        Self::Connection
    }
}

async fn next_frame(reader: &mut FrameReader<OwnedReadHalf>) -> Result<Frame, Failure> {
    Ok(reader.next(|| Instant::now() + SUSPICION, &|| FRAME_BEFORE_LOGIN_BYTES_MAX).await?)
}

fn nonce() -> Result<[u8; 32], Failure> {
    let mut nonce = [0; 32];
    SysRng.try_fill_bytes(&mut nonce).map_err(|_| Failure::Connection)?;
    Ok(nonce)
}

async fn initiate(
    shell: &Shell,
    peer: ServerId,
    reader: &mut FrameReader<OwnedReadHalf>,
    writing: &mut OwnedWriteHalf,
) -> Result<(), Failure> {
    let (mut initiator, hello) = Initiator::new(&shell.key, shell.me, peer, nonce()?);
    writing.write_all(&hello).await?;
    let proof = initiator.on_challenge(&next_frame(reader).await?)?;
    writing.write_all(&proof).await?;
    Ok(initiator.on_welcome(&next_frame(reader).await?)?)
}

/// Serves a connection whose first frame was a peer's hello.
pub(super) async fn accept(
    shell: &Shell,
    mut reader: FrameReader<OwnedReadHalf>,
    mut writing: OwnedWriteHalf,
    hello: Frame,
    address: SocketAddr,
    place: Place<'_>,
) {
    set_user_timeout(reader.stream().as_ref());
    let accepted = timeout(SUSPICION, answer(shell, &mut reader, &mut writing, &hello)).await;
    let peer = match accepted {
        Ok(Ok(peer)) => peer,
        Ok(Err((claimed, Failure::Handshake(error)))) => {
            let who = claimed.map_or_else(String::new, |peer| format!(", which says it is server {peer},"));
            let complaint = format!("a server at {}{who} was refused: {error}", address.ip());
            let kind = format!("from {}: {:?}", address.ip(), discriminant(&error));
            let about = claimed.filter(|peer| shell.knows(*peer)).unwrap_or(ServerId(0));
            shell.complain(about, &kind, &complaint);
            if writing.write_all(&error.frame()).await.is_ok() && writing.shutdown().await.is_ok() {
                let _ = timeout(SUSPICION, super::client_link::throw_away(&mut reader)).await;
            }
            return;
        }
        Ok(Err((_, Failure::Connection))) | Err(_) => return,
    };
    drop(place);
    shell.connected(peer).notify_one();
    receive(shell, &mut reader, peer).await;
}

async fn answer(
    shell: &Shell,
    reader: &mut FrameReader<OwnedReadHalf>,
    writing: &mut OwnedWriteHalf,
    hello: &Frame,
) -> Result<ServerId, (Option<ServerId>, Failure)> {
    let fresh = nonce().map_err(|failure| (None, failure))?;
    let (acceptor, challenge) =
        Acceptor::new(&shell.key, shell.me, fresh, hello).map_err(|error| (None, error.into()))?;
    let claimed = acceptor.claimed();
    let failed = |failure: Failure| (Some(claimed), failure);
    if !shell.knows(claimed) {
        let text = format!("server {claimed} is not in the cluster list of server {}", shell.me);
        return Err(failed(HandshakeError::Refused(text).into()));
    }
    writing.write_all(&challenge).await.map_err(|error| failed(error.into()))?;
    let proof = next_frame(reader).await.map_err(failed)?;
    let (peer, welcome) = acceptor.on_proof(&proof).map_err(|error| failed(error.into()))?;
    writing.write_all(&welcome).await.map_err(|error| failed(error.into()))?;
    Ok(peer)
}

/// Hands what a proven peer says to the driver, until the link ends or another one takes its place.
async fn receive(shell: &Shell, reader: &mut FrameReader<OwnedReadHalf>, peer: ServerId) {
    let link = shell.next_link();
    let replaced = CancellationToken::new();
    shell.tell_peer(peer, PeerInput::IncomingUp(link, replaced.clone())).await;
    let end = tokio::select! {
        end = receive_frames(shell, reader, peer, link) => end,
        () = replaced.cancelled() => return,
    };
    match end {
        ReadEnd::EndOfStream | ReadEnd::Failed(_) => {}
        other => warn!("the link from server {peer} is closed: {}", describe(&other)),
    }
    shell.tell_peer(peer, PeerInput::IncomingDown(link)).await;
}

async fn receive_frames(
    shell: &Shell,
    reader: &mut FrameReader<OwnedReadHalf>,
    peer: ServerId,
    link: u64,
) -> ReadEnd {
    loop {
        let next = reader.next(|| Instant::now() + SILENCE_MAX, &|| FRAME_PEER_BYTES_MAX).await;
        let frame = match next {
            Ok(frame) => frame,
            Err(end) => return end,
        };
        match peer::decode(&frame) {
            Ok(message) => shell.tell_peer(peer, PeerInput::Message(link, message)).await,
            Err(error) => {
                info!("server {peer} sent a frame that can't be read: {error}");
                return ReadEnd::Failed(io::ErrorKind::InvalidData.into());
            }
        }
    }
}

fn describe(end: &ReadEnd) -> String {
    match end {
        ReadEnd::Codec(error) => error.to_string(),
        ReadEnd::Incomplete { found } => format!("it ended after {found} bytes of a frame"),
        ReadEnd::Stuck => "a frame was begun and not finished in time".to_owned(),
        ReadEnd::Idle => "it was silent".to_owned(),
        ReadEnd::EndOfStream => "the peer closed it".to_owned(),
        ReadEnd::Failed(error) => error.to_string(),
    }
}

impl Shell {
    async fn tell_peer(&self, peer: ServerId, input: PeerInput) {
        // The driver is gone only when the process ends.
        let _ = self.inner.send(Input::Peer(peer, input)).await;
    }
}
