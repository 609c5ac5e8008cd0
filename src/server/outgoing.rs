//! What waits to be sent on one connection: bounded, and written in one go per wake-up.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard};

use bytes::{Buf as _, BytesMut};
use tokio::io::{AsyncWrite, AsyncWriteExt as _};
use tokio::sync::Notify;

/// A buffer that grew beyond this for a burst is given back afterwards.
const KEPT_BYTES_MAX: usize = 256 * 1024;

/// The bytes that wait for one connection's writer. Whoever fills it never waits: what does not fit closes the
/// connection.
#[derive(Debug)]
pub(super) struct Outgoing {
    /// Invariant: `queue.len() <= waiting <= bytes_max`, unless the queue is closed.
    queue: Mutex<BytesMut>,
    /// Bytes queued or being written.
    waiting: AtomicUsize,
    bytes_max: usize,
    filled: Notify,
    /// Nothing more will come: the writer ends when it has written everything.
    finished: AtomicBool,
    /// The connection is to be dropped at once.
    closed: AtomicBool,
    closing: Notify,
}

impl Outgoing {
    /// An empty queue that holds at most `bytes_max` bytes.
    pub(super) fn new(bytes_max: usize) -> Self {
        Self {
            queue: Mutex::new(BytesMut::new()),
            waiting: AtomicUsize::new(0),
            bytes_max,
            filled: Notify::new(),
            finished: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            closing: Notify::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, BytesMut> {
        self.queue.lock().expect("nobody panics with the lock held: encoding into a buffer can't fail")
    }

    /// Appends what `encode` writes. What does not fit closes the connection: its receiver doesn't keep up.
    pub(super) fn push(&self, encode: impl FnOnce(&mut BytesMut)) {
        if self.is_closed() {
            return;
        }
        let added = {
            let mut queue = self.lock();
            let before = queue.len();
            encode(&mut queue);
            queue.len() - before
        };
        if self.waiting.fetch_add(added, Ordering::Relaxed) + added > self.bytes_max {
            self.close();
        }
        self.filled.notify_one();
    }

    /// Bytes queued or being written.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Nothing more will come: the writer ends when all is written.
    pub(super) fn finish(&self) {
        self.finished.store(true, Ordering::Release);
        self.filled.notify_one();
    }

    /// Drops the connection; what waits is lost.
    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        *self.lock() = BytesMut::new();
        self.filled.notify_one();
        self.closing.notify_one();
    }

    /// Whether [`Outgoing::close`] was called or the queue overflowed.
    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Waits until the connection is to be dropped. For one waiter.
    pub(super) async fn closed(&self) {
        while !self.is_closed() {
            self.closing.notified().await;
        }
    }

    /// Writes whatever is queued, all that waits in one go, until [`Outgoing::finish`] or [`Outgoing::close`].
    /// For one writer.
    ///
    /// # Errors
    /// The connection's.
    pub(super) async fn write_to(&self, writer: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
        let mut writing = BytesMut::new();
        loop {
            if self.is_closed() {
                return Ok(());
            }
            std::mem::swap(&mut writing, &mut *self.lock());
            if writing.is_empty() {
                if self.finished.load(Ordering::Acquire) {
                    return writer.shutdown().await;
                }
                self.filled.notified().await;
                continue;
            }
            while writing.has_remaining() {
                let written = writer.write(&writing).await?;
                if written == 0 {
                    return Err(io::ErrorKind::WriteZero.into());
                }
                writing.advance(written);
                self.waiting.fetch_sub(written, Ordering::Relaxed);
                if self.is_closed() {
                    return Ok(());
                }
            }
            if writing.capacity() > KEPT_BYTES_MAX {
                writing = BytesMut::new();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[tokio::test]
    async fn everything_is_written_before_the_end() {
        let outgoing = Outgoing::new(1000);
        outgoing.push(|buffer| buffer.extend_from_slice(b"one "));
        outgoing.push(|buffer| buffer.extend_from_slice(b"two"));
        outgoing.finish();
        let mut written = Vec::new();
        outgoing.write_to(&mut written).await.unwrap();
        assert_eq!(written, b"one two");
        assert_eq!(outgoing.waiting(), 0);
    }

    #[tokio::test]
    async fn a_queue_that_overflows_closes_and_holds_nothing() {
        let outgoing = Arc::new(Outgoing::new(100));
        let waiter = tokio::spawn({
            let outgoing = Arc::clone(&outgoing);
            async move { outgoing.closed().await }
        });
        for _ in 0..5 {
            outgoing.push(|buffer| buffer.extend_from_slice(&[0; 30]));
        }
        waiter.await.unwrap();
        assert!(outgoing.is_closed() && outgoing.lock().is_empty());
        outgoing.write_to(&mut Vec::new()).await.unwrap();
    }

    #[tokio::test]
    async fn a_receiver_that_stops_reading_is_dropped_while_a_write_is_under_way() {
        let outgoing = Arc::new(Outgoing::new(4096));
        let (mut near, _far) = tokio::io::duplex(16);
        let writer = tokio::spawn({
            let outgoing = Arc::clone(&outgoing);
            async move {
                tokio::select! { _ = outgoing.write_to(&mut near) => (), () = outgoing.closed() => () }
            }
        });
        while !outgoing.is_closed() {
            outgoing.push(|buffer| buffer.extend_from_slice(&[0; 512]));
            tokio::task::yield_now().await;
        }
        writer.await.unwrap();
    }
}
