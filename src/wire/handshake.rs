//! How two servers prove to each other that they know the cluster's key: four frames, then everything else.
//!
//! ```text
//! initiator                                             acceptor
//!   PEER_HELLO      version, from, to, nonce        ->
//!                                                   <-  PEER_CHALLENGE  version, from, nonce
//!   PEER_PROOF      mac(initiator, …)               ->
//!                                                   <-  PEER_WELCOME    mac(acceptor, …)
//! ```
//!
//! Both macs are HMAC-SHA256 over the same facts: the version, both ids, both nonces. Their role labels differ, so that
//! one side's proof can't be sent back to it as the other's. A refused initiator is told why in `PEER_REFUSED`.
//!
//! **Invariant:** sans-I/O: nonces come in as arguments, frames go out as bytes. Nonces must be random and fresh.

use bytes::{BufMut, Bytes, BytesMut};
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use super::codec::{Frame, write_frame};
use super::field::{DecodeError, Reader, put_string};
use super::{PROTOCOL_VERSION, opcode};
use crate::types::ServerId;

const INITIATOR_LABEL: &[u8] = b"lastword peer initiator\0";
const ACCEPTOR_LABEL: &[u8] = b"lastword peer acceptor\0";

/// Why two servers don't come together.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HandshakeError {
    /// A frame of the handshake can't be read.
    #[error("the peer's handshake can't be read: {0}")]
    Garbled(#[from] DecodeError),
    /// Another frame was due.
    #[error("the peer sent {found} in the handshake, expected {expected}")]
    OutOfOrder {
        /// The opcode that came, by name if it has one.
        found: String,
        /// The one that was due.
        expected: &'static str,
    },
    /// The proof does not fit the key.
    #[error(
        "the keys differ: the peer doesn't know this cluster's key; every server needs the same key file"
    )]
    KeysDiffer,
    /// The connection was meant for another server: the cluster lists differ, or the address is another one's.
    #[error("this address is not server {wanted} but server {is}; every server needs the same cluster list")]
    WrongServer {
        /// Who was looked for.
        wanted: ServerId,
        /// Who answers there.
        is: ServerId,
    },
    /// The other side has the acceptor's own id.
    #[error(
        "the peer says that it is server {0} too; every server needs an address of its own in the cluster list"
    )]
    SameServer(ServerId),
    /// The other side speaks another version of the protocol.
    #[error("the peer speaks version {theirs} of the peer protocol, expected version {ours}")]
    Version {
        /// Its version.
        theirs: u16,
        /// This side's.
        ours: u16,
    },
    /// The acceptor refuses for a reason of its own.
    #[error("the peer refuses: {0}")]
    Refused(String),
}

/// The reasons in a `PEER_REFUSED` frame.
mod reason {
    pub(super) const GARBLED: u8 = 1;
    pub(super) const KEYS_DIFFER: u8 = 2;
    pub(super) const WRONG_SERVER: u8 = 3;
    pub(super) const SAME_SERVER: u8 = 4;
    pub(super) const VERSION: u8 = 5;
    pub(super) const OTHER: u8 = 6;
}

impl HandshakeError {
    /// The frame with which an acceptor tells the initiator why, before it closes the connection.
    #[must_use]
    pub fn frame(&self) -> Bytes {
        let (reason, value) = match self {
            Self::Garbled(_) | Self::OutOfOrder { .. } => (reason::GARBLED, 0),
            Self::KeysDiffer => (reason::KEYS_DIFFER, 0),
            Self::WrongServer { is, .. } => (reason::WRONG_SERVER, u16::from(is.0)),
            Self::SameServer(server) => (reason::SAME_SERVER, u16::from(server.0)),
            Self::Version { ours, .. } => (reason::VERSION, *ours),
            Self::Refused(_) => (reason::OTHER, 0),
        };
        let text = match self {
            Self::Refused(text) => text.clone(),
            _ => self.to_string(),
        };
        build(opcode::PEER_REFUSED, |out| {
            out.put_u8(reason);
            out.put_u16(value);
            put_string(out, &text);
        })
    }

    /// What an acceptor's refusal means to the initiator that looked for `peer`.
    fn from_frame(frame: &Frame, peer: ServerId) -> Self {
        match Self::read(frame, peer) {
            Ok(error) => error,
            Err(error) => Self::Garbled(error),
        }
    }

    fn read(frame: &Frame, peer: ServerId) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(frame);
        let (number, value, text) = (reader.u8("reason")?, reader.u16("value")?, reader.string("text")?);
        reader.finish()?;
        let server = u8::try_from(value).map(ServerId);
        Ok(match (number, server) {
            (reason::KEYS_DIFFER, _) => Self::KeysDiffer,
            (reason::WRONG_SERVER, Ok(is)) => Self::WrongServer { wanted: peer, is },
            (reason::SAME_SERVER, Ok(server)) => Self::SameServer(server),
            (reason::VERSION, _) => Self::Version { theirs: value, ours: PROTOCOL_VERSION },
            _ => Self::Refused(text),
        })
    }
}

/// What both proofs are about.
#[derive(Clone, Debug)]
struct Facts {
    initiator: ServerId,
    acceptor: ServerId,
    initiator_nonce: [u8; 32],
    acceptor_nonce: [u8; 32],
}

impl Facts {
    fn mac(&self, key: &[u8; 32], label: &[u8]) -> Hmac<Sha256> {
        let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of any length");
        mac.update(label);
        mac.update(&PROTOCOL_VERSION.to_be_bytes());
        mac.update(&[self.initiator.0, self.acceptor.0]);
        mac.update(&self.initiator_nonce);
        mac.update(&self.acceptor_nonce);
        mac
    }

    fn prove(&self, key: &[u8; 32], label: &[u8]) -> [u8; 32] {
        self.mac(key, label).finalize().into_bytes().into()
    }

    /// Compares in a time that doesn't depend on the proof.
    fn check(&self, key: &[u8; 32], label: &[u8], proof: &[u8; 32]) -> Result<(), HandshakeError> {
        self.mac(key, label).verify_slice(proof).map_err(|_| HandshakeError::KeysDiffer)
    }
}

/// The side that connects.
pub struct Initiator {
    key: [u8; 32],
    facts: Facts,
    challenged: bool,
}

/// The side that was connected to.
pub struct Acceptor {
    key: [u8; 32],
    facts: Facts,
}

// The key must not get into a log by way of a debug line.
impl std::fmt::Debug for Initiator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Initiator").field("facts", &self.facts).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Acceptor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Acceptor").field("facts", &self.facts).finish_non_exhaustive()
    }
}

impl Initiator {
    /// Begins: server `me` looks for server `peer`. Gives the `PEER_HELLO` to send.
    #[must_use]
    pub fn new(key: &[u8; 32], me: ServerId, peer: ServerId, nonce: [u8; 32]) -> (Self, Bytes) {
        let hello = build(opcode::PEER_HELLO, |out| {
            out.put_u16(PROTOCOL_VERSION);
            out.put_u8(me.0);
            out.put_u8(peer.0);
            out.extend_from_slice(&nonce);
        });
        let facts = Facts { initiator: me, acceptor: peer, initiator_nonce: nonce, acceptor_nonce: [0; 32] };
        (Self { key: *key, facts, challenged: false }, hello)
    }

    /// Answers the challenge. Gives the `PEER_PROOF` to send.
    ///
    /// # Errors
    /// Why the peer can't be the one that was looked for, or why it refuses.
    pub fn on_challenge(&mut self, frame: &Frame) -> Result<Bytes, HandshakeError> {
        self.expect_answer(frame, opcode::PEER_CHALLENGE, "PEER_CHALLENGE")?;
        let mut reader = Reader::new(frame);
        check_version(reader.u16("version")?)?;
        let (from, nonce) = (reader.server("from")?, reader.array("nonce")?);
        reader.finish()?;
        if from != self.facts.acceptor {
            return Err(HandshakeError::WrongServer { wanted: self.facts.acceptor, is: from });
        }
        self.facts.acceptor_nonce = nonce;
        self.challenged = true;
        let proof = self.facts.prove(&self.key, INITIATOR_LABEL);
        Ok(build(opcode::PEER_PROOF, |out| out.extend_from_slice(&proof)))
    }

    /// Checks the peer's own proof. After this the link is open in both directions.
    ///
    /// # Errors
    /// Why the peer has not proved itself, or why it refuses.
    pub fn on_welcome(self, frame: &Frame) -> Result<(), HandshakeError> {
        if !self.challenged {
            return Err(out_of_order(frame, "PEER_CHALLENGE"));
        }
        self.expect_answer(frame, opcode::PEER_WELCOME, "PEER_WELCOME")?;
        let mut reader = Reader::new(frame);
        let proof = reader.array("proof")?;
        reader.finish()?;
        self.facts.check(&self.key, ACCEPTOR_LABEL, &proof)
    }

    fn expect_answer(&self, frame: &Frame, opcode: u8, expected: &'static str) -> Result<(), HandshakeError> {
        if frame.opcode == opcode::PEER_REFUSED {
            return Err(HandshakeError::from_frame(frame, self.facts.acceptor));
        }
        if frame.opcode == opcode { Ok(()) } else { Err(out_of_order(frame, expected)) }
    }
}

impl Acceptor {
    /// Begins with the first frame of a connection that came in. Gives the `PEER_CHALLENGE` to send.
    ///
    /// # Errors
    /// Why the peer is refused; [`HandshakeError::frame`] tells it.
    pub fn new(
        key: &[u8; 32],
        me: ServerId,
        nonce: [u8; 32],
        hello: &Frame,
    ) -> Result<(Self, Bytes), HandshakeError> {
        if hello.opcode != opcode::PEER_HELLO {
            return Err(out_of_order(hello, "PEER_HELLO"));
        }
        let mut reader = Reader::new(hello);
        check_version(reader.u16("version")?)?;
        let (from, to) = (reader.server("from")?, reader.server("to")?);
        let initiator_nonce = reader.array("nonce")?;
        reader.finish()?;
        if to != me {
            return Err(HandshakeError::WrongServer { wanted: to, is: me });
        }
        if from == me {
            return Err(HandshakeError::SameServer(me));
        }
        let challenge = build(opcode::PEER_CHALLENGE, |out| {
            out.put_u16(PROTOCOL_VERSION);
            out.put_u8(me.0);
            out.extend_from_slice(&nonce);
        });
        let facts = Facts { initiator: from, acceptor: me, initiator_nonce, acceptor_nonce: nonce };
        Ok((Self { key: *key, facts }, challenge))
    }

    /// Who the peer says it is; not proven yet.
    #[must_use]
    pub const fn claimed(&self) -> ServerId {
        self.facts.initiator
    }

    /// Checks the peer's proof. Gives the proven peer and the `PEER_WELCOME` to send.
    ///
    /// # Errors
    /// Why the peer is refused; [`HandshakeError::frame`] tells it.
    pub fn on_proof(self, frame: &Frame) -> Result<(ServerId, Bytes), HandshakeError> {
        if frame.opcode != opcode::PEER_PROOF {
            return Err(out_of_order(frame, "PEER_PROOF"));
        }
        let mut reader = Reader::new(frame);
        let proof = reader.array("proof")?;
        reader.finish()?;
        self.facts.check(&self.key, INITIATOR_LABEL, &proof)?;
        let own = self.facts.prove(&self.key, ACCEPTOR_LABEL);
        Ok((self.facts.initiator, build(opcode::PEER_WELCOME, |out| out.extend_from_slice(&own))))
    }
}

fn check_version(theirs: u16) -> Result<(), HandshakeError> {
    if theirs == PROTOCOL_VERSION {
        return Ok(());
    }
    Err(HandshakeError::Version { theirs, ours: PROTOCOL_VERSION })
}

fn out_of_order(frame: &Frame, expected: &'static str) -> HandshakeError {
    let found = opcode::name(frame.opcode)
        .map_or_else(|| format!("opcode 0x{:02x}", frame.opcode), |name| format!("the frame {name}"));
    HandshakeError::OutOfOrder { found, expected }
}

fn build(opcode: u8, write_body: impl FnOnce(&mut BytesMut)) -> Bytes {
    let mut out = BytesMut::with_capacity(64);
    write_frame(&mut out, opcode, 0, write_body);
    out.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::FRAME_BEFORE_LOGIN_BYTES_MAX;
    use crate::wire::FrameCodec;
    use tokio_util::codec::Decoder as _;

    const KEY: [u8; 32] = [7; 32];
    const ONE: ServerId = ServerId(1);
    const TWO: ServerId = ServerId(2);

    fn frame(bytes: &Bytes) -> Frame {
        FrameCodec::new(FRAME_BEFORE_LOGIN_BYTES_MAX).decode(&mut bytes[..].into()).unwrap().unwrap()
    }

    /// Server 1 with one key looks for server 2 and finds `found` with another: what each side learns in the end.
    fn meet(
        key: [u8; 32],
        other_key: [u8; 32],
        found: ServerId,
    ) -> (Result<ServerId, HandshakeError>, Result<(), HandshakeError>) {
        let (mut initiator, hello) = Initiator::new(&key, ONE, TWO, [1; 32]);
        let (acceptor, challenge) = match Acceptor::new(&other_key, found, [2; 32], &frame(&hello)) {
            Ok(accepted) => accepted,
            Err(error) => {
                let told = initiator.on_challenge(&frame(&error.frame())).map(|_| ());
                return (Err(error), told);
            }
        };
        let proof = match initiator.on_challenge(&frame(&challenge)) {
            Ok(proof) => proof,
            Err(error) => return (Ok(acceptor.claimed()), Err(error)),
        };
        match acceptor.on_proof(&frame(&proof)) {
            Ok((peer, welcome)) => (Ok(peer), initiator.on_welcome(&frame(&welcome))),
            Err(error) => {
                let told = initiator.on_welcome(&frame(&error.frame()));
                (Err(error), told)
            }
        }
    }

    #[test]
    fn servers_with_the_same_key_welcome_each_other() {
        assert_eq!(meet(KEY, KEY, TWO), (Ok(ONE), Ok(())));
    }

    #[test]
    fn each_wrong_handshake_is_refused_for_its_own_reason_on_both_sides() {
        let differ = HandshakeError::KeysDiffer;
        assert_eq!(meet(KEY, [8; 32], TWO), (Err(differ.clone()), Err(differ)));
        let wrong = HandshakeError::WrongServer { wanted: TWO, is: ServerId(3) };
        assert_eq!(meet(KEY, KEY, ServerId(3)), (Err(wrong.clone()), Err(wrong)));

        // Looking for server 1 and finding oneself there, under another address.
        let (mut initiator, hello) = Initiator::new(&KEY, ONE, ONE, [1; 32]);
        let error = Acceptor::new(&KEY, ONE, [2; 32], &frame(&hello)).unwrap_err();
        assert_eq!(error, HandshakeError::SameServer(ONE));
        assert_eq!(initiator.on_challenge(&frame(&error.frame())).unwrap_err(), error);

        let (mut initiator, hello) = Initiator::new(&KEY, ONE, TWO, [1; 32]);
        let mut later = hello.to_vec();
        later[10] = 9;
        let error = Acceptor::new(&KEY, TWO, [2; 32], &frame(&later.into())).unwrap_err();
        assert_eq!(error, HandshakeError::Version { theirs: 9, ours: PROTOCOL_VERSION });
        assert_eq!(
            initiator.on_challenge(&frame(&error.frame())).unwrap_err(),
            HandshakeError::Version { theirs: PROTOCOL_VERSION, ours: PROTOCOL_VERSION },
            "this acceptor speaks the initiator's version after all"
        );

        let mut short = frame(&hello);
        short.body.truncate(20);
        let error = Acceptor::new(&KEY, TWO, [2; 32], &short).unwrap_err();
        assert!(matches!(error, HandshakeError::Garbled(_)), "{error}");
        let (mut initiator, _) = Initiator::new(&KEY, ONE, TWO, [1; 32]);
        let told = initiator.on_challenge(&frame(&error.frame())).unwrap_err();
        assert_eq!(told, HandshakeError::Refused(error.to_string()));
        assert!(told.to_string().contains("nonce at byte 13: found 16 bytes, expected 32"), "{told}");
    }

    #[test]
    fn a_frame_that_is_not_due_is_named() {
        let request = Frame { opcode: opcode::PING, request: 0, body: Bytes::new() };
        let error = Acceptor::new(&KEY, TWO, [2; 32], &request).unwrap_err();
        assert_eq!(error.to_string(), "the peer sent the frame PING in the handshake, expected PEER_HELLO");
        let (initiator, _) = Initiator::new(&KEY, ONE, TWO, [1; 32]);
        let strange = Frame { opcode: 0x3f, request: 0, body: Bytes::new() };
        let error = initiator.on_welcome(&strange).unwrap_err();
        assert_eq!(error.to_string(), "the peer sent opcode 0x3f in the handshake, expected PEER_CHALLENGE");
    }

    #[test]
    fn an_acceptor_without_the_key_is_found_out() {
        let (mut initiator, hello) = Initiator::new(&KEY, ONE, TWO, [1; 32]);
        let (_, challenge) = Acceptor::new(&[8; 32], TWO, [2; 32], &frame(&hello)).unwrap();
        initiator.on_challenge(&frame(&challenge)).unwrap();
        let invented = build(opcode::PEER_WELCOME, |out| out.extend_from_slice(&[3; 32]));
        assert_eq!(initiator.on_welcome(&frame(&invented)), Err(HandshakeError::KeysDiffer));
    }

    #[test]
    fn a_proof_serves_neither_the_other_role_nor_another_link() {
        let (mut initiator, hello) = Initiator::new(&KEY, ONE, TWO, [1; 32]);
        let (_, challenge) = Acceptor::new(&KEY, TWO, [2; 32], &frame(&hello)).unwrap();
        let proof = initiator.on_challenge(&frame(&challenge)).unwrap();

        let (replayed, _) = Acceptor::new(&KEY, TWO, [4; 32], &frame(&hello)).unwrap();
        assert_eq!(replayed.on_proof(&frame(&proof)).unwrap_err(), HandshakeError::KeysDiffer);

        let mut reflected = frame(&proof);
        reflected.opcode = opcode::PEER_WELCOME;
        assert_eq!(initiator.on_welcome(&reflected), Err(HandshakeError::KeysDiffer));
    }

    #[test]
    fn the_key_is_not_in_debug_output() {
        let (initiator, hello) = Initiator::new(&[0xab; 32], ONE, TWO, [1; 32]);
        let (acceptor, _) = Acceptor::new(&[0xab; 32], TWO, [2; 32], &frame(&hello)).unwrap();
        assert!(!format!("{initiator:?} {acceptor:?}").contains("171"));
    }
}
