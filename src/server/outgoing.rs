//! What waits to be sent on one connection: bounded, and written in one go.

use std::io;
use std::net::Shutdown;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard};

use bytes::{Buf as _, BytesMut};
use socket2::SockRef;
use tokio::net::tcp::OwnedWriteHalf;
use tokio::sync::Notify;

/// A buffer that grew beyond this for a burst is given back afterwards.
const KEPT_BYTES_MAX: usize = 256 * 1024;

/// The bytes that wait for one connection. Whoever fills it never waits: what the connection does not take at once is
/// left to its writer, and what does not fit closes it.
#[derive(Debug)]
pub(super) struct Outgoing {
    stream: OwnedWriteHalf,
    /// Invariant: `queue.len() <= bytes_max`, unless the queue is closed. Who writes holds the lock, so that bytes
    /// leave in their order.
    queue: Mutex<BytesMut>,
    bytes_max: usize,
    /// The writer has something to do.
    left: Notify,
    /// Nothing more will come: the writer ends when it has written everything.
    finished: AtomicBool,
    /// The connection is ended, whatever waits.
    closed: AtomicBool,
}

impl Outgoing {
    /// An empty queue that holds at most `bytes_max` bytes.
    pub(super) fn new(stream: OwnedWriteHalf, bytes_max: usize) -> Self {
        Self {
            stream,
            queue: Mutex::new(BytesMut::new()),
            bytes_max,
            left: Notify::new(),
            finished: AtomicBool::new(false),
            closed: AtomicBool::new(false),
        }
    }

    fn lock(&self) -> MutexGuard<'_, BytesMut> {
        self.queue.lock().expect("nobody panics with the lock held: encoding into a buffer can't fail")
    }

    /// Appends what `encode` writes; [`Outgoing::flush`] sends it. What does not fit closes the connection: its
    /// receiver doesn't keep up. Says whether nothing had waited before.
    pub(super) fn push(&self, encode: impl FnOnce(&mut BytesMut)) -> bool {
        if self.is_closed() {
            return false;
        }
        let (before, after) = {
            let mut queue = self.lock();
            let before = queue.len();
            encode(&mut queue);
            (before, queue.len())
        };
        if after > self.bytes_max {
            self.close();
        }
        before == 0
    }

    /// Writes what waits, as much of it as the connection takes; the rest is the writer's.
    pub(super) fn flush(&self) {
        // The writer comes upon a failure too, and ends.
        if !matches!(self.write_waiting(), Ok(true)) {
            self.left.notify_one();
        }
    }

    /// Whether all is written.
    fn write_waiting(&self) -> io::Result<bool> {
        let mut queue = self.lock();
        while !queue.is_empty() {
            match self.stream.try_write(&queue) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => queue.advance(written),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        if queue.capacity() > KEPT_BYTES_MAX {
            *queue = BytesMut::new();
        }
        Ok(true)
    }

    /// Bytes queued.
    pub(super) fn waiting(&self) -> usize {
        self.lock().len()
    }

    /// Nothing more will come: the writer ends when all is written.
    pub(super) fn finish(&self) {
        self.finished.store(true, Ordering::Release);
        self.left.notify_one();
    }

    /// Ends the connection now, whoever still holds it: its reader and its writer come upon the end. What waits is lost.
    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        *self.lock() = BytesMut::new();
        let _ = SockRef::from(self.stream.as_ref()).shutdown(Shutdown::Both);
        self.left.notify_one();
    }

    /// Whether [`Outgoing::close`] was called or the queue overflowed.
    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Writes whatever is left, until [`Outgoing::finish`] or [`Outgoing::close`]. For one writer.
    ///
    /// # Errors
    /// The connection's.
    pub(super) async fn write(&self) -> io::Result<()> {
        while !self.is_closed() {
            if !self.write_waiting()? {
                self.stream.writable().await?;
            } else if self.finished.load(Ordering::Acquire) {
                return SockRef::from(self.stream.as_ref()).shutdown(Shutdown::Write);
            } else {
                self.left.notified().await;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use std::sync::Arc;
    use tokio::io::AsyncReadExt as _;
    use tokio::net::{TcpListener, TcpStream};

    /// A queue, and the other end of its connection.
    pub(in crate::server) async fn connected(bytes_max: usize) -> (Arc<Outgoing>, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (far, _) = listener.accept().await.unwrap();
        (Arc::new(Outgoing::new(near.into_split().1, bytes_max)), far)
    }

    #[tokio::test]
    async fn everything_is_written_before_the_end() {
        let (outgoing, mut far) = connected(1000).await;
        assert!(outgoing.push(|buffer| buffer.extend_from_slice(b"one ")));
        assert!(!outgoing.push(|buffer| buffer.extend_from_slice(b"two")));
        outgoing.finish();
        outgoing.write().await.unwrap();
        let mut read = Vec::new();
        far.read_to_end(&mut read).await.unwrap();
        assert_eq!(read, b"one two");
        assert_eq!(outgoing.waiting(), 0);
    }

    #[tokio::test]
    async fn what_the_connection_does_not_take_at_once_follows_in_order() {
        const BYTES: usize = 16 * 1024 * 1024;
        let (outgoing, mut far) = connected(2 * BYTES).await;
        let writer = tokio::spawn({
            let outgoing = Arc::clone(&outgoing);
            async move { outgoing.write().await }
        });
        let sent: Vec<u8> = (0..BYTES).map(|at| at.to_le_bytes()[0] ^ at.to_le_bytes()[1]).collect();
        for part in sent.chunks(100_000) {
            outgoing.push(|buffer| buffer.extend_from_slice(part));
            outgoing.flush();
        }
        assert!(outgoing.waiting() > 0, "the system has no buffer of {BYTES} bytes");
        outgoing.finish();
        let mut read = Vec::new();
        far.read_to_end(&mut read).await.unwrap();
        assert!(read == sent);
        writer.await.unwrap().unwrap();
    }

    async fn read_to_the_end(mut far: TcpStream) -> Vec<u8> {
        let mut read = Vec::new();
        far.read_to_end(&mut read).await.unwrap();
        read
    }

    #[tokio::test]
    async fn a_queue_that_overflows_holds_nothing_and_ends_the_connection() {
        let (outgoing, far) = connected(100).await;
        let writer = tokio::spawn({
            let outgoing = Arc::clone(&outgoing);
            async move { outgoing.write().await }
        });
        for _ in 0..5 {
            outgoing.push(|buffer| buffer.extend_from_slice(&[0; 30]));
        }
        assert!(outgoing.is_closed() && outgoing.lock().is_empty());
        let _ = writer.await.unwrap();
        assert!(read_to_the_end(far).await.len() <= 120, "more than what fitted was sent");
    }

    #[tokio::test]
    async fn a_receiver_that_stops_reading_is_dropped_while_a_write_is_under_way() {
        let (outgoing, _far) = connected(4096).await;
        let writer = tokio::spawn({
            let outgoing = Arc::clone(&outgoing);
            async move { outgoing.write().await }
        });
        while !outgoing.is_closed() {
            outgoing.push(|buffer| buffer.extend_from_slice(&[0; 512]));
            outgoing.flush();
            tokio::task::yield_now().await;
        }
        let _ = writer.await.unwrap();
    }

    #[tokio::test]
    async fn closing_ends_the_connection_for_the_other_end_too() {
        let (outgoing, far) = connected(100).await;
        outgoing.push(|buffer| buffer.extend_from_slice(b"lost"));
        outgoing.close();
        assert!(read_to_the_end(far).await.is_empty() && outgoing.is_closed());
    }
}
