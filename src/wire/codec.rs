//! The frame: `u32 length | u8 opcode | u32 request id | body`, big-endian; the length counts all after itself.

use std::io;

use byteorder::{BigEndian, ByteOrder};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio_util::codec::Decoder;

/// How many bytes the length takes, in front of every frame.
pub const LENGTH_BYTES: usize = 4;
/// How many bytes stand between the length and the body: opcode and request id.
pub const HEADER_BYTES: usize = 5;
/// Where a body starts, counted from the frame's first byte. Offsets in errors count from there too.
pub const BODY_OFFSET: usize = LENGTH_BYTES + HEADER_BYTES;

/// How much room is made at most for a frame that has announced itself but not arrived: a promise costs little. It is a batch
/// of entries, whose first bytes would else be copied again and again; only a proven peer's frames may be so long.
const RESERVE_BYTES_MAX: usize = 1024 * 1024;

/// One frame, its body not read yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// What kind of frame it is: one of [`super::opcode`], or anything else.
    pub opcode: u8,
    /// Connects a response with its request; 0 in pushes and between servers.
    pub request: u32,
    /// The rest.
    pub body: Bytes,
}

/// Why a stream of bytes can't be cut into frames any more: the connection has to be closed.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    /// The length is too small for an opcode and a request id.
    #[error("found a frame of {found} bytes, expected at least 5: an opcode and a request id")]
    TooShort {
        /// The length.
        found: u32,
    },
    /// The length is above what is allowed on this connection.
    #[error("found a frame of {found} bytes, expected at most {max}")]
    TooLong {
        /// The length.
        found: u32,
        /// The limit.
        max: usize,
    },
    /// The stream ended within a frame.
    #[error("the stream ended after {found} bytes of a frame, expected {expected}")]
    Incomplete {
        /// How many bytes there were, the length's own included.
        found: usize,
        /// How many there should have been; 4 if not even the length was whole.
        expected: usize,
    },
    /// The connection failed.
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// Cuts a stream of bytes into frames.
#[derive(Clone, Debug)]
pub struct FrameCodec {
    /// The longest frame, in bytes after the length.
    pub bytes_max: usize,
}

impl FrameCodec {
    /// A codec that accepts frames of up to `bytes_max` bytes after the length.
    #[must_use]
    pub const fn new(bytes_max: usize) -> Self {
        Self { bytes_max }
    }

    /// Changes the limit for the frames to come: a login raises it, a proven peer too.
    pub const fn set_bytes_max(&mut self, bytes_max: usize) {
        self.bytes_max = bytes_max;
    }

    /// Whether the front of `source` is a whole frame, or can't become one.
    #[must_use]
    pub fn is_decided(&self, source: &[u8]) -> bool {
        match self.frame_bytes(source) {
            Ok(size) => size.is_some_and(|size| source.len() >= size),
            Err(_) => true,
        }
    }

    /// The whole size of the frame at the front of `source`, its length checked; none if not even the length is there.
    fn frame_bytes(&self, source: &[u8]) -> Result<Option<usize>, CodecError> {
        if source.len() < LENGTH_BYTES {
            return Ok(None);
        }
        let found = BigEndian::read_u32(source);
        let length = usize::try_from(found).unwrap_or(usize::MAX);
        if length < HEADER_BYTES {
            return Err(CodecError::TooShort { found });
        }
        if length > self.bytes_max {
            return Err(CodecError::TooLong { found, max: self.bytes_max });
        }
        Ok(Some(LENGTH_BYTES + length))
    }
}

impl Decoder for FrameCodec {
    type Item = Frame;
    type Error = CodecError;

    fn decode(&mut self, source: &mut BytesMut) -> Result<Option<Frame>, CodecError> {
        let Some(size) = self.frame_bytes(source)? else { return Ok(None) };
        if source.len() < size {
            source.reserve((size - source.len()).min(RESERVE_BYTES_MAX));
            return Ok(None);
        }
        let mut bytes = source.split_to(size).freeze();
        let opcode = bytes[LENGTH_BYTES];
        let request = BigEndian::read_u32(&bytes[LENGTH_BYTES + 1..]);
        bytes.advance(BODY_OFFSET);
        Ok(Some(Frame { opcode, request, body: bytes }))
    }

    fn decode_eof(&mut self, source: &mut BytesMut) -> Result<Option<Frame>, CodecError> {
        if let Some(frame) = self.decode(source)? {
            return Ok(Some(frame));
        }
        if source.is_empty() {
            return Ok(None);
        }
        let expected = self.frame_bytes(source)?.unwrap_or(LENGTH_BYTES);
        Err(CodecError::Incomplete { found: source.len(), expected })
    }
}

impl Frame {
    /// Appends the frame as it travels.
    pub fn encode(&self, out: &mut BytesMut) {
        write_frame(out, self.opcode, self.request, |out| out.extend_from_slice(&self.body));
    }
}

/// Appends a frame whose body `write_body` writes; the length is filled in afterwards.
///
/// # Panics
/// If the body is longer than 4 GiB: every queue and batch is bounded far below.
pub(super) fn write_frame(
    out: &mut BytesMut,
    opcode: u8,
    request: u32,
    write_body: impl FnOnce(&mut BytesMut),
) {
    let start = out.len();
    out.put_u32(0);
    out.put_u8(opcode);
    out.put_u32(request);
    write_body(out);
    let length = u32::try_from(out.len() - start - LENGTH_BYTES).expect("a frame is shorter than 4 GiB");
    BigEndian::write_u32(&mut out[start..start + LENGTH_BYTES], length);
}
