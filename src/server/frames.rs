//! Reads frames from a connection, with the limits of `protocol.md` on their length and on the time they take.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Poll, ready};
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt as _, ReadBuf};
use tokio::time::{Instant, timeout_at};
use tokio_util::codec::Decoder as _;

use crate::wire::codec::{CodecError, Frame, FrameCodec};

/// A frame that was begun must be whole within this time.
pub(super) const FRAME_BEGUN_MAX: Duration = Duration::from_secs(10);
const READ_BYTES: usize = 16 * 1024;

thread_local! {
    /// Where what comes first is read to, on all connections: most of them are idle, and hold no buffer meanwhile.
    static FRESH: RefCell<Vec<u8>> = RefCell::new(vec![0; READ_BYTES]);
}

/// Why no frame can be read any more.
#[derive(Debug)]
pub(super) enum ReadEnd {
    /// The other end has said all it had to say.
    EndOfStream,
    /// The stream ended within a frame.
    Incomplete {
        /// After so many bytes of it.
        found: usize,
    },
    /// The framing is lost.
    Codec(CodecError),
    /// A frame was begun and not finished in time.
    Stuck,
    /// No frame was begun in time.
    Idle,
    /// The connection failed.
    Failed(io::Error),
}

/// Reads frames from one connection.
#[derive(Debug)]
pub(super) struct FrameReader<R> {
    stream: R,
    codec: FrameCodec,
    buffer: BytesMut,
    /// How long a frame may take from its first byte to its last.
    whole_within: Duration,
    /// When the frame at the front of the buffer must be whole.
    whole_by: Option<Instant>,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    pub(super) fn new(stream: R, frame_bytes_max: usize) -> Self {
        Self {
            stream,
            codec: FrameCodec::new(frame_bytes_max),
            buffer: BytesMut::new(),
            whole_within: FRAME_BEGUN_MAX,
            whole_by: None,
        }
    }

    /// The connection itself, to read beyond frames.
    pub(super) fn stream(&mut self) -> &mut R {
        &mut self.stream
    }

    /// Bytes that are read and belong to no frame yet.
    pub(super) fn unread(&self) -> &[u8] {
        &self.buffer
    }

    /// Whether [`FrameReader::next`] knows without waiting: another frame, or a broken one, is read already.
    pub(super) fn has_next(&self) -> bool {
        self.codec.is_decided(&self.buffer)
    }

    /// Reads something and forgets it; gives how many bytes, none at the end of the stream.
    pub(super) async fn skip(&mut self) -> io::Result<usize> {
        self.buffer.clear();
        self.read().await
    }

    async fn read(&mut self) -> io::Result<usize> {
        let Self { stream, buffer, .. } = self;
        if !buffer.is_empty() {
            buffer.reserve(READ_BYTES);
            return stream.read_buf(buffer).await;
        }
        *buffer = BytesMut::new();
        poll_fn(|context| {
            FRESH.with_borrow_mut(|fresh| {
                let mut fresh = ReadBuf::new(fresh);
                ready!(Pin::new(&mut *stream).poll_read(context, &mut fresh))?;
                buffer.extend_from_slice(fresh.filled());
                Poll::Ready(Ok(fresh.filled().len()))
            })
        })
        .await
    }

    /// The next frame; if nothing of it is read yet, it must begin before `idle_until`. The longest frame allowed is
    /// asked for anew for each piece that arrives: a login may raise it meanwhile.
    pub(super) async fn next(
        &mut self,
        idle_until: impl Fn() -> Instant,
        frame_bytes_max: &(dyn Fn() -> usize + Sync),
    ) -> Result<Frame, ReadEnd> {
        loop {
            self.codec.set_bytes_max(frame_bytes_max());
            if let Some(frame) = self.codec.decode(&mut self.buffer).map_err(ReadEnd::Codec)? {
                self.whole_by = None;
                return Ok(frame);
            }
            let (deadline, late) = if self.buffer.is_empty() {
                (idle_until(), ReadEnd::Idle)
            } else {
                (*self.whole_by.get_or_insert_with(|| Instant::now() + self.whole_within), ReadEnd::Stuck)
            };
            match timeout_at(deadline, self.read()).await {
                Err(_) => return Err(late),
                Ok(Err(error)) => return Err(ReadEnd::Failed(error)),
                Ok(Ok(0)) if self.buffer.is_empty() => return Err(ReadEnd::EndOfStream),
                Ok(Ok(0)) => return Err(ReadEnd::Incomplete { found: self.buffer.len() }),
                Ok(Ok(_)) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt as _;

    const PING: [u8; 9] = [0, 0, 0, 5, 1, 0, 0, 0, 7];

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(5)
    }

    #[tokio::test]
    async fn frames_arrive_whole_however_they_are_cut() {
        let (mut near, far) = tokio::io::duplex(64);
        let mut reader = FrameReader::new(far, 100);
        let writer = tokio::spawn(async move {
            for byte in PING {
                near.write_all(&[byte]).await.unwrap();
            }
            near.write_all(&[PING, PING].concat()).await.unwrap();
        });
        for _ in 0..3 {
            let frame = reader.next(soon, &|| 100).await.unwrap();
            assert_eq!((frame.opcode, frame.request), (1, 7));
        }
        assert!(matches!(reader.next(soon, &|| 100).await, Err(ReadEnd::EndOfStream)));
        writer.await.unwrap();
    }

    #[tokio::test]
    async fn what_is_read_already_is_known_without_waiting() {
        let bytes = [&PING[..], &PING[..], &PING[..6]].concat();
        let mut reader = FrameReader::new(&bytes[..], 100);
        assert!(!reader.has_next());
        reader.next(soon, &|| 100).await.unwrap();
        assert!(reader.has_next());
        reader.next(soon, &|| 100).await.unwrap();
        assert!(!reader.has_next());
        let broken = [&PING[..], &[0, 0, 0, 0]].concat();
        let mut reader = FrameReader::new(&broken[..], 100);
        reader.next(soon, &|| 100).await.unwrap();
        assert!(reader.has_next());
        assert!(matches!(reader.next(soon, &|| 100).await, Err(ReadEnd::Codec(_))));
    }

    #[tokio::test]
    async fn a_stream_that_ends_within_a_frame_says_so() {
        let mut reader = FrameReader::new(&PING[..6], 100);
        assert!(matches!(reader.next(soon, &|| 100).await, Err(ReadEnd::Incomplete { found: 6 })));
    }

    #[tokio::test]
    async fn a_frame_that_is_never_finished_is_stuck_and_silence_is_idle() {
        let (mut near, far) = tokio::io::duplex(64);
        let mut reader = FrameReader::new(far, 100);
        reader.whole_within = Duration::from_millis(20);
        assert!(matches!(reader.next(Instant::now, &|| 100).await, Err(ReadEnd::Idle)));
        near.write_all(&PING[..6]).await.unwrap();
        assert!(matches!(reader.next(soon, &|| 100).await, Err(ReadEnd::Stuck)));
    }

    #[tokio::test]
    async fn a_login_raises_the_limit_for_the_next_frame() {
        let frame = [0, 0, 0, 9, 1, 0, 0, 0, 7, 1, 2, 3, 4];
        let mut reader = FrameReader::new(&frame[..], 5);
        assert!(matches!(reader.next(soon, &|| 5).await, Err(ReadEnd::Codec(CodecError::TooLong { .. }))));
        assert_eq!(reader.next(soon, &|| 9).await.unwrap().body.len(), 4);
    }
}
