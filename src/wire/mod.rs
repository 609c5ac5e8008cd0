//! Bytes to messages and back: the frames of `protocol.md`.
//!
//! **Invariant:** decoding is total and bounded. Whatever bytes come in, a decoder gives a value or an error that names
//! the field and its offset, never panics, checks every length and count against the bytes that are left before it
//! allocates, and refuses bytes that are left over.
//!
//! **Invariant:** wire knows how a frame is built, not what is allowed in it. How long a name may be, or who may ask
//! what, is decided by the server.

pub mod client;
pub mod codec;
mod field;
mod greeting;
pub mod handshake;
pub mod opcode;
pub mod peer;

pub use codec::{CodecError, Frame, FrameCodec};
pub use field::DecodeError;
pub use greeting::greeting;

/// The version of the protocol between servers, exchanged in their handshake.
pub const PROTOCOL_VERSION: u16 = 1;
