//! The decoders, and what must hold of each whatever comes in.

use bytes::{Bytes, BytesMut};
use tokio_util::codec::Decoder as _;

use lastword::chat::{InTurn, Restore, Table, TableRow};
use lastword::config::{FRAME_CLIENT_BYTES_MAX, FRAME_PEER_BYTES_MAX};
use lastword::message::{Entry, Response};
use lastword::prng::Prng;
use lastword::row::{Fields, verify};
use lastword::storage::MemoryDisk;
use lastword::types::{LogIndex, ServerId};
use lastword::wire::client::{
    FromServer, decode_from_server, decode_request, encode_push, encode_request, encode_response,
};
use lastword::wire::codec::FrameCodec;

use lastword::wire::handshake::{Acceptor, Initiator};
use lastword::wire::{Frame, greeting, peer};

use super::corpus::{self, Corpus};
use super::log_model::{LIVE, open, try_read_all};

/// What became of an input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Read,
    Refused,
}

#[derive(Clone, Copy)]
pub(super) struct Target {
    pub(super) name: &'static str,
    pub(super) corpus: fn() -> Corpus,
    pub(super) run: fn(&[u8], &mut Prng) -> Verdict,
    /// How many inputs it gets in each round.
    pub(super) share: u32,
    pub(super) bytes_max: usize,
}

const fn target(
    name: &'static str,
    share: u32,
    bytes_max: usize,
    corpus: fn() -> Corpus,
    run: fn(&[u8], &mut Prng) -> Verdict,
) -> Target {
    Target { name, corpus, run, share, bytes_max }
}

pub(super) const TARGETS: [Target; 9] = [
    target("request", 32, 4096, corpus::requests, request),
    target("response", 32, 4096, corpus::responses, response),
    target("peer", 32, 4096, corpus::peer_messages, peer_message),
    target("handshake", 16, 1024, corpus::handshakes, handshake),
    target("stream", 16, 4096, corpus::streams, stream),
    target("row", 32, 4096, corpus::rows, row),
    target("entry", 32, 4096, corpus::entries, entry),
    target("log", 1, 32 * 1024, corpus::logs, log),
    target("table", 4, 32 * 1024, corpus::tables, table),
];

/// How much room a codec makes for bytes that were only announced; whose frames must be shorter gets no more than those.
const ANNOUNCED_BYTES_MAX: usize = 1024 * 1024;
/// How much more than was asked for a buffer may have.
const ROUNDING_BYTES_MAX: usize = 64;

/// The frame at the beginning of the input, if there is a whole one.
fn frame(input: &[u8], bytes_max: usize) -> Option<Frame> {
    let mut source = BytesMut::from(input);
    let decoded = FrameCodec::new(bytes_max).decode(&mut source);
    let room = 2 * input.len() + bytes_max.min(ANNOUNCED_BYTES_MAX) + ROUNDING_BYTES_MAX;
    assert!(source.capacity() <= room, "{} bytes of room for {} bytes", source.capacity(), input.len());
    decoded.ok().flatten()
}

fn tell(error: &impl std::fmt::Display) -> Verdict {
    let text = error.to_string();
    assert!(text.contains("found ") || text.contains("expected"), "an error says what was found: {text:?}");
    Verdict::Refused
}

fn request(input: &[u8], _: &mut Prng) -> Verdict {
    let Some(frame) = frame(input, FRAME_CLIENT_BYTES_MAX) else { return Verdict::Refused };
    match decode_request(&frame) {
        Err(error) => tell(&error),
        Ok(read) => {
            let mut out = BytesMut::new();
            encode_request(&mut out, frame.request, &read);
            assert_eq!(out, input[..out.len()], "{read:?}");
            Verdict::Read
        }
    }
}

fn response(input: &[u8], _: &mut Prng) -> Verdict {
    let Some(frame) = frame(input, FRAME_CLIENT_BYTES_MAX) else { return Verdict::Refused };
    let read = match decode_from_server(&frame) {
        Err(error) => return tell(&error),
        Ok(read) => read,
    };
    let mut out = BytesMut::new();
    match &read {
        FromServer::Response(response) => encode_response(&mut out, frame.request, response),
        FromServer::Push(push) => encode_push(&mut out, push),
    }
    let mut written = self::frame(&out, FRAME_PEER_BYTES_MAX).expect("a frame that was just written");
    if !matches!(read, FromServer::Response(Response::Error(_))) {
        // An error's flag says what its code says already, and its text has a limit: these may be set right.
        assert_eq!(written.body, frame.body, "{read:?}");
    }
    written.request = frame.request;
    let again = decode_from_server(&written).expect("what was written can be read");
    if let FromServer::Response(Response::Error(_)) = again {
        return Verdict::Read;
    }
    assert_eq!(again, read);
    Verdict::Read
}

fn peer_message(input: &[u8], _: &mut Prng) -> Verdict {
    let Some(frame) = frame(input, FRAME_PEER_BYTES_MAX) else { return Verdict::Refused };
    match peer::decode(&frame) {
        Err(error) => tell(&error),
        Ok(read) => {
            let mut out = BytesMut::new();
            peer::encode(&mut out, &read);
            assert_eq!(out[9..], frame.body, "{read:?}");
            Verdict::Read
        }
    }
}

/// Both sides of the handshake hear the frame at every step. Whoever has not the key proves nothing.
fn handshake(input: &[u8], prng: &mut Prng) -> Verdict {
    const KEY: [u8; 32] = [7; 32];
    let Some(frame) = frame(input, FRAME_CLIENT_BYTES_MAX) else { return Verdict::Refused };
    let nonce = [prng.next_u64().to_le_bytes()[0]; 32];
    let mut verdict = Verdict::Refused;
    match Acceptor::new(&KEY, ServerId(2), nonce, &frame) {
        Ok((acceptor, challenge)) => {
            verdict = Verdict::Read;
            assert_ne!(acceptor.claimed(), ServerId(2));
            assert!(challenge.len() <= 64);
            assert!(acceptor.on_proof(&frame).is_err(), "a hello was taken for a proof");
        }
        Err(error) => assert!(error.frame().len() < 2048, "{error}"),
    }
    let (mut initiator, hello) = Initiator::new(&KEY, ServerId(1), ServerId(2), nonce);
    let hello = self::frame(&hello, FRAME_CLIENT_BYTES_MAX).expect("a hello is a frame");
    let (acceptor, _) = Acceptor::new(&KEY, ServerId(2), nonce, &hello).expect("a hello is welcome");
    assert!(acceptor.on_proof(&frame).is_err(), "a proof without the key: {frame:?}");
    if initiator.on_challenge(&frame).is_ok() {
        verdict = Verdict::Read;
    }
    assert!(initiator.on_welcome(&frame).is_err(), "a welcome without the key: {frame:?}");
    verdict
}

fn frames(codec: &mut FrameCodec, source: &mut BytesMut, frames: &mut Vec<Frame>) -> Result<(), String> {
    loop {
        match codec.decode(source) {
            Ok(Some(frame)) => frames.push(frame),
            Ok(None) => return Ok(()),
            Err(error) => return Err(error.to_string()),
        }
    }
}

/// However a stream is cut, the same frames come out, and the same error.
fn stream(input: &[u8], prng: &mut Prng) -> Verdict {
    if let Some(line) = greeting(input) {
        assert!(line.is_ascii() && line.ends_with("\r\n") && line.len() < 256, "{line:?}");
        assert!(frame(input, FRAME_CLIENT_BYTES_MAX).is_none(), "a frame was greeted: {line:?}");
    }
    let mut whole = Vec::new();
    let mut source = BytesMut::from(input);
    let whole_end = frames(&mut FrameCodec::new(FRAME_CLIENT_BYTES_MAX), &mut source, &mut whole);
    let (mut cut, mut source, mut end) = (Vec::new(), BytesMut::new(), Ok(()));
    let mut codec = FrameCodec::new(FRAME_CLIENT_BYTES_MAX);
    let mut rest = input;
    while !rest.is_empty() && end.is_ok() {
        let (part, behind) = rest.split_at(rest.len().min(1 + usize::try_from(prng.below(40)).unwrap()));
        source.extend_from_slice(part);
        end = frames(&mut codec, &mut source, &mut cut);
        assert!(source.capacity() <= 2 * input.len() + ANNOUNCED_BYTES_MAX, "{} bytes", source.capacity());
        rest = behind;
    }
    assert_eq!((&cut, &end), (&whole, &whole_end), "in pieces, then whole");
    if whole.is_empty() || end.is_err() { Verdict::Refused } else { Verdict::Read }
}

/// A row with its checksum: whatever its fields hold, they are read as they are written.
fn row(input: &[u8], prng: &mut Prng) -> Verdict {
    let _ = verify(input);
    let line = with_checksum(input);
    assert_eq!(verify(&line).expect("a fitting checksum"), input);
    let mut fields = Fields::new();
    let mut verdict = Verdict::Refused;
    for expected in [3 + usize::try_from(prng.below(12)).unwrap(), input.split(|&b| b == b',').count()] {
        if let Err(error) = fields.parse(input, expected) {
            tell(&error);
            continue;
        }
        verdict = Verdict::Read;
        assert_eq!(fields.len(), expected);
        let length: usize = (0..expected).map(|field| fields.raw(field).len()).sum();
        assert!(length <= input.len(), "{length} bytes of fields from {} bytes", input.len());
        for field in 0..expected {
            let _ = fields.value::<u64>(field, "a number");
            let Ok(text) = fields.text(field) else { continue };
            let mut writer = lastword::row::RowWriter::new();
            writer.plain("text");
            writer.text(&text);
            let mut again = Fields::new();
            again.parse(writer.row(), 2).expect("what was written can be read");
            assert_eq!(again.text(1).expect("a text"), text);
        }
    }
    verdict
}

fn with_checksum(row: &[u8]) -> Vec<u8> {
    [row, format!(",{:08x}", crc32fast::hash(row)).as_bytes()].concat()
}

fn entry(input: &[u8], prng: &mut Prng) -> Verdict {
    let mut fields = Fields::new();
    let read = match Entry::decode(Bytes::copy_from_slice(input), 7, &mut fields) {
        Err(error) => return tell(&error),
        Ok(read) => read,
    };
    let written = Entry::new(read.index, read.view, read.unix_ms, read.operation.clone(), 7);
    let again = Entry::decode(written.bytes.clone(), 7, &mut fields).expect("what was written can be read");
    assert_eq!(again, written);
    assert_eq!(again.operation, read.operation, "{}", input.escape_ascii());
    // The state takes in whatever was logged.
    let mut state = lastword::chat::State::new();
    let _ = state.apply(LogIndex(1), prng.next_u64(), read.chain, &read.operation);
    Verdict::Read
}

/// Whole logs whose lines all have fitting checksums: what is left to find out is whether they make sense.
fn log(input: &[u8], _: &mut Prng) -> Verdict {
    let disk = MemoryDisk::new(1);
    disk.put(LIVE, &with_checksums(input));
    match open(&disk, u64::MAX) {
        Err(error) => tell(&error),
        Ok(opened) => match try_read_all(&opened) {
            Err(error) => tell(&error),
            Ok(entries) => {
                assert!(entries.iter().all(|entry| entry.index > LogIndex::ZERO));
                Verdict::Read
            }
        },
    }
}

/// The same lines with fitting checksums, the first and an incomplete last one left as they are.
fn with_checksums(input: &[u8]) -> Vec<u8> {
    let lines = input.split_inclusive(|&byte| byte == b'\n').enumerate();
    let mend = |(at, line): (usize, &[u8])| match line.len().checked_sub(10) {
        Some(length) if at > 0 && line.ends_with(b"\n") => {
            [&with_checksum(&line[..length])[..], b"\n"].concat()
        }
        _ => line.to_vec(),
    };
    lines.flat_map(mend).collect()
}

fn table(input: &[u8], _: &mut Prng) -> Verdict {
    let Some((&number, lines)) = input.split_first() else { return Verdict::Refused };
    let table = Table::ALL[usize::from(number) % Table::ALL.len()];
    let mut restore = Restore::new(LogIndex(24), [0; 32]);
    let mut fields = Fields::new();
    for line in lines.split(|&byte| byte == b'\n').skip(1).filter(|line| line.len() > 9) {
        let row = &line[..line.len() - 9];
        let parsed = fields.parse(row, table.header().len()).and_then(|()| TableRow::parse(table, &fields));
        let added = parsed.and_then(|row| restore.add(vec![row]).map_err(|(_, error)| error));
        if let Err(error) = added {
            return tell(&error);
        }
    }
    if restore.finish(&InTurn).is_ok() { Verdict::Read } else { Verdict::Refused }
}
