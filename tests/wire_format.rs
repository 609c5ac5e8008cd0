//! `protocol.md` and the code say the same: every example of the document is a golden vector, every table is compared,
//! and whatever else may come in on a connection is read back or refused.

// In a test a value that is not there is a failure, and the line says which.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use proptest::prelude::*;
use tokio_util::codec::Decoder as _;

use lastword::chat::command::{
    AccountPage, ClientCommand, Command, ConflictPage, ConflictView, MessagePage, MessageView, Operation,
    Reply,
};
use lastword::config;
use lastword::message::{
    Entry, ErrorCode, ErrorResponse, Mark, PeerMessage, Position, Pulse, Push, Report, Request, Response,
    Standing, Standpoint, Status, View, ViewStart,
};
use lastword::prng::Prng;
use lastword::row::{Fields, RowError, verify};
use lastword::types::{
    AccountId, ClientId, ClusterId, Incarnation, LogIndex, Member, MessageId, RequestId, RequestNumber,
    ServerId, ViewNumber,
};
use lastword::wire::client::{
    ERROR_TEXT_BYTES_MAX, FromServer, decode_from_server, decode_request, encode_push, encode_request,
    encode_response,
};
use lastword::wire::codec::{CodecError, FrameCodec};
use lastword::wire::handshake::{Acceptor, HandshakeError, Initiator};
use lastword::wire::{DecodeError, Frame, opcode, peer};

// --- the document -----------------------------------------------------------------------------------------------------

/// A fenced block: its kind, the rest of the line that opens it, its lines.
struct Block {
    kind: String,
    title: String,
    lines: Vec<String>,
}

fn document() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("protocol.md");
    std::fs::read_to_string(path).expect("protocol.md stands beside Cargo.toml")
}

fn blocks(kind: &str) -> Vec<Block> {
    let mut blocks: Vec<Block> = Vec::new();
    let mut open = false;
    for line in document().lines() {
        if let Some(fence) = line.strip_prefix("```") {
            open = !open;
            if open {
                let (kind, title) = fence.split_once(' ').unwrap_or((fence, ""));
                blocks.push(Block { kind: kind.to_owned(), title: title.to_owned(), lines: Vec::new() });
            }
        } else if open {
            blocks.last_mut().unwrap().lines.push(line.to_owned());
        }
    }
    blocks.retain(|block| block.kind == kind);
    assert!(!blocks.is_empty(), "protocol.md has no {kind} blocks");
    blocks
}

/// The bytes of a block of pairs of hexadecimal digits, with comments after `#`.
fn bytes_of(block: &Block) -> Vec<u8> {
    let digits = block.lines.iter().flat_map(|line| line.split('#').next().unwrap().split_ascii_whitespace());
    digits
        .map(|pair| u8::from_str_radix(pair, 16).unwrap_or_else(|_| panic!("{}: {pair}", block.title)))
        .collect()
}

fn examples() -> BTreeMap<String, Vec<u8>> {
    let blocks = blocks("frame");
    let count = blocks.len();
    let examples: BTreeMap<_, _> = blocks.iter().map(|b| (b.title.clone(), bytes_of(b))).collect();
    assert_eq!(examples.len(), count, "two examples have the same name");
    examples
}

/// The cells of the rows of the document's tables whose first cell fits.
fn table_rows(first_cell_fits: impl Fn(&str) -> bool) -> Vec<Vec<String>> {
    let document = document();
    let rows = document.lines().filter_map(|line| line.strip_prefix("| ")?.strip_suffix(" |"));
    let rows =
        rows.map(|row| row.split(" | ").map(|cell| cell.trim().trim_matches('`').to_owned()).collect());
    rows.filter(|row: &Vec<String>| first_cell_fits(&row[0])).collect()
}

// --- what the examples stand for ---------------------------------------------------------------------------------------

#[derive(Clone, Debug, PartialEq)]
enum Meaning {
    Request(Request),
    FromServer(FromServer),
    Peer(PeerMessage),
    Handshake,
}

const ALICE: ClientId = ClientId(u64::from_be_bytes(*b"alice--1"));
const BOB: ClientId = ClientId(u64::from_be_bytes(*b"bob----1"));
const TOKEN: [u8; 32] = *b"a token of 32 bytes, not guessed";
const TIME: u64 = 1_795_000_000_000;
const VIEW: ViewNumber = ViewNumber { counter: 7, proposer: ServerId(1) };
const CLUSTER: ClusterId = ClusterId(0x00c1_a55e_77e5_0001);

fn id(client: ClientId, number: u64) -> RequestId {
    RequestId { client, number: RequestNumber(number) }
}

fn of_alice(number: u64) -> MessageId {
    MessageId(id(ALICE, number))
}

fn done(reply: Reply, client: ClientId, copies: u8) -> Meaning {
    Meaning::FromServer(FromServer::Response(Response::Done {
        reply,
        client,
        view: VIEW,
        copies,
        configured: 3,
    }))
}

fn response(response: Response) -> Meaning {
    Meaning::FromServer(FromServer::Response(response))
}

fn message() -> MessageView {
    MessageView {
        id: of_alice(2),
        from: "alice".into(),
        to: "bob".into(),
        unix_ms: TIME,
        delivered: false,
        late: false,
        cursor: 42,
        text: "hi, bob".into(),
    }
}

fn conflict() -> ConflictView {
    ConflictView {
        cursor: 42,
        request: id(ALICE, 5),
        unix_ms: TIME,
        reason: "no_such_recipient".into(),
        command: "send".into(),
        account: "alice".into(),
        other: "[deleted]".into(),
        text: "hi, bob".into(),
    }
}

fn request_examples() -> Vec<(&'static str, u32, Request)> {
    let anonymous = |register: bool| {
        let (name, password) = ("bob".into(), "battery staple".into());
        let (client, token) = (ClientId::NONE, [0; 32]);
        if register {
            Request::Register { name, password, client, token }
        } else {
            Request::Login { name, password, client, token }
        }
    };
    let (name, password) = ("alice".to_owned(), "correct horse".to_owned());
    vec![
        ("ping", 1, Request::Ping),
        ("status", 0, Request::Status),
        ("subscribe", 5, Request::Subscribe),
        ("seen", 0, Request::Seen { acknowledged: 2, view: VIEW }),
        (
            "register",
            1,
            Request::Register { name: name.clone(), password: password.clone(), client: ALICE, token: TOKEN },
        ),
        ("register-anonymous", 0, anonymous(true)),
        ("login", 3, Request::Login { name, password: password.clone(), client: ALICE, token: TOKEN }),
        ("login-anonymous", 0, anonymous(false)),
        ("resume", 0, Request::Resume { client: ALICE, token: TOKEN }),
        ("logout", 9, Request::Logout { everywhere: false }),
        ("change-password", 8, Request::ChangePassword { password, new_password: "wrong cavalry".into() }),
        ("delete-account", 10, Request::DeleteAccount { password: "wrong cavalry".into() }),
        ("list", 0, Request::List { pattern: "*".into(), after: String::new(), limit: 0 }),
        ("send", 2, Request::Send { to: "bob".into(), text: "hi, bob".into() }),
        ("read", 0, Request::Read { after: 0, limit: 0 }),
        ("acknowledge", 0, Request::Acknowledge { messages: vec![of_alice(2)] }),
        ("delete", 7, Request::Delete { messages: vec![of_alice(2), of_alice(6)] }),
        ("history", 6, Request::History { with: "bob".into(), before: 0, limit: 20 }),
        ("history-of-the-tour", 0, Request::History { with: "bob".into(), before: 0, limit: 0 }),
        ("conflicts", 0, Request::Conflicts { after: 0, limit: 0 }),
    ]
}

fn server_examples() -> Vec<(&'static str, u32, Meaning)> {
    let account = AccountId(id(ALICE, 1));
    let addresses: Vec<String> = [1538, 2538, 3538].iter().map(|port| format!("127.0.0.1:{port}")).collect();
    let error = |code, maybe_executed, text: &str, primary: &str| {
        let (text, primary) = (text.to_owned(), primary.to_owned());
        response(Response::Error(ErrorResponse { code, maybe_executed, text, primary }))
    };
    let late =
        MessageView { id: of_alice(3), late: true, cursor: 43, text: "still there?".into(), ..message() };
    vec![
        ("pong", 1, response(Response::Pong)),
        ("subscribed", 5, response(Response::Subscribed)),
        ("done-register", 1, done(Reply::Registered { account }, ALICE, 3)),
        ("done-login", 3, done(Reply::LoggedIn { account, waiting: 0 }, ALICE, 3)),
        ("done-logout", 9, done(Reply::LoggedOut, ClientId::NONE, 3)),
        ("done-change-password", 8, done(Reply::PasswordChanged, ALICE, 3)),
        ("done-delete-account", 10, done(Reply::AccountDeleted, ClientId::NONE, 3)),
        ("done-send", 2, done(Reply::Sent { message: of_alice(2), unix_ms: TIME }, ALICE, 2)),
        ("done-acknowledge", 0, done(Reply::Acknowledged { count: 1 }, BOB, 3)),
        ("done-delete", 7, done(Reply::Deleted { count: 2 }, ALICE, 3)),
        ("resumed", 0, response(Response::Resumed { account, name: "alice".into(), waiting: 0, view: VIEW })),
        ("messages", 0, response(Response::Messages(MessagePage { messages: vec![message()], more: false }))),
        (
            "accounts",
            0,
            response(Response::Accounts(AccountPage {
                names: vec!["alice".into(), "bob".into()],
                next: None,
            })),
        ),
        (
            "status-is",
            0,
            response(Response::Status(Status {
                server: addresses[0].clone(),
                role: "primary".into(),
                view: VIEW,
                primary: addresses[0].clone(),
                members: addresses[..2].to_vec(),
                configured: addresses,
                last: 42,
                synced: 42,
                commit: 41,
                applied: 41,
                lag: 0,
                since_ms: 60_000,
                note: "127.0.0.1:3538 is away".into(),
            })),
        ),
        ("error-not-primary", 2, error(ErrorCode::NotPrimary, false, "server 1 leads", "127.0.0.1:1538")),
        ("error-interrupted", 2, error(ErrorCode::Interrupted, true, "the server stops", "")),
        ("push-message", 0, Meaning::FromServer(FromServer::Push(Push::Message(message())))),
        (
            "conflicts-are",
            0,
            response(Response::Conflicts(ConflictPage { conflicts: vec![conflict()], more: false })),
        ),
        ("push-message-late", 0, Meaning::FromServer(FromServer::Push(Push::Message(late)))),
        ("push-session-ended", 0, Meaning::FromServer(FromServer::Push(Push::SessionEnded))),
    ]
}

fn peer_examples() -> Vec<(&'static str, PeerMessage)> {
    let index = LogIndex;
    let position = |at| Position { index: LogIndex(at), view: VIEW, chain: 0x1234_abcd };
    let members = vec![
        Member { server: ServerId(1), incarnation: Incarnation(3) },
        Member { server: ServerId(2), incarnation: Incarnation(5) },
    ];
    let view = View { number: VIEW, members };
    let views = vec![
        ViewStart { view: ViewNumber { counter: 6, proposer: ServerId(2) }, start: LogIndex(1) },
        ViewStart { view: VIEW, start: LogIndex(30) },
    ];
    let send = Operation::Command(ClientCommand {
        request: id(ALICE, 2),
        acknowledged: RequestNumber(1),
        account: AccountId(id(ALICE, 1)),
        command: Command::Send { to: AccountId(id(BOB, 1)), text: "hi, bob".into() },
    });
    let rows = vec![Arc::new(Entry::new(LogIndex(42), VIEW, TIME, send.clone(), 0))];
    let entries = vec![Arc::new(Entry::new(LogIndex(42), VIEW, TIME, send, 0x1234_abcd))];
    let next = |proposer| ViewNumber { counter: 8, proposer: ServerId(proposer) };
    let report = Report {
        incarnation: Incarnation(5),
        born: Incarnation(4),
        promised: next(3),
        outstanding: vec![next(3)],
        installed: view.clone(),
        last: position(42),
        standing: Standing::Whole,
        continuous: true,
        nearly_continuous: true,
        empty: false,
        closed: false,
        rebasing: false,
    };
    let digest = std::array::from_fn(|at| 0xd0 + u8::try_from(at).expect("small"));
    let mark = Mark { index: LogIndex(40), chain: 0x1234_abcd, digest };
    let pulse = Pulse {
        cluster: Some(CLUSTER),
        incarnation: Incarnation(3),
        known_incarnation: Incarnation(5),
        standpoint: Standpoint::Primary,
        view: VIEW,
        member: true,
        primary: Some(ServerId(1)),
        last: index(42),
        synced: index(42),
        commit: index(41),
        sync_age_ms: 0,
        broken: false,
        disk_low: false,
        leaving: false,
        rebasing: false,
        answered: true,
        blank: false,
        mark,
    };
    let newcomer = Pulse {
        cluster: None,
        incarnation: Incarnation(1),
        known_incarnation: Incarnation(3),
        standpoint: Standpoint::Empty,
        view: ViewNumber::NONE,
        member: false,
        primary: None,
        last: index(0),
        synced: index(0),
        commit: index(0),
        sync_age_ms: 12,
        broken: true,
        disk_low: true,
        leaving: true,
        rebasing: true,
        answered: false,
        blank: true,
        mark: Mark::default(),
    };
    let (previous, after, incarnation, commit) = (position(41), position(41), Incarnation(5), index(41));
    vec![
        ("heartbeat", PeerMessage::Heartbeat { nonce: 7, pulse }),
        ("heartbeat-ok", PeerMessage::HeartbeatOk { nonce: 7, pulse: newcomer }),
        ("prepare", PeerMessage::Prepare { view: VIEW, previous, entries: entries.clone(), commit }),
        ("prepare-ok", PeerMessage::PrepareOk { view: VIEW, incarnation, synced: index(42) }),
        ("barrier", PeerMessage::Barrier { view: VIEW, nonce: 9 }),
        ("barrier-ok", PeerMessage::BarrierOk { view: VIEW, nonce: 9, incarnation }),
        ("pre-vote", PeerMessage::PreVote { nonce: 11 }),
        ("pre-vote-ok", PeerMessage::PreVoteOk { nonce: 11, veto: false, report: report.clone() }),
        ("propose", PeerMessage::Propose { number: next(2), dropping: vec![ServerId(3)] }),
        ("promise", PeerMessage::Promise { number: next(2), report }),
        ("refuse", PeerMessage::Refuse { number: next(2), promised: next(3) }),
        (
            "new-view",
            PeerMessage::NewView {
                cluster: CLUSTER,
                view,
                start: position(41),
                views: views.clone(),
                lives: vec![Member { server: ServerId(3), incarnation }],
            },
        ),
        ("new-view-ok", PeerMessage::NewViewOk { number: VIEW, incarnation }),
        ("fetch", PeerMessage::Fetch { view: VIEW, last: position(41), views }),
        (
            "fetched",
            PeerMessage::Fetched { view: VIEW, previous, entries: entries.clone(), commit, last: index(42) },
        ),
        ("diverged", PeerMessage::Diverged { view: VIEW, last: position(42), shared: index(29) }),
        ("use-checkpoint", PeerMessage::UseCheckpoint { view: VIEW, last: position(41) }),
        ("fetch-checkpoint", PeerMessage::FetchCheckpoint { view: VIEW, index: index(40), offset: 1024 }),
        (
            "checkpoint-part",
            PeerMessage::CheckpointPart {
                view: VIEW,
                index: index(40),
                offset: 1024,
                total: 1029,
                bytes: Bytes::from_static(b"bytes"),
            },
        ),
        ("fetch-rows", PeerMessage::FetchRows { after, through: index(42) }),
        ("rows", PeerMessage::Rows { after, entries }),
        ("rebase", PeerMessage::Rebase { view: VIEW, incarnation, nonce: 13, fork: index(29), rows }),
        ("rebase-ok", PeerMessage::RebaseOk { view: VIEW, nonce: 13 }),
        ("differs", PeerMessage::Differs { view: VIEW, mark }),
    ]
}

/// What each example of the document stands for, with its request id and the bytes that the code writes for it.
fn meanings() -> BTreeMap<&'static str, (u32, Meaning, Vec<u8>)> {
    let mut meanings = BTreeMap::new();
    for (name, request, meaning) in request_examples() {
        let mut out = BytesMut::new();
        encode_request(&mut out, request, &meaning);
        meanings.insert(name, (request, Meaning::Request(meaning), out.to_vec()));
    }
    for (name, request, meaning) in server_examples() {
        let Meaning::FromServer(from_server) = &meaning else { panic!("{name} is from a server") };
        let written = write_from_server(request, from_server);
        meanings.insert(name, (request, meaning, written));
    }
    for (name, meaning) in peer_examples() {
        let mut out = BytesMut::new();
        peer::encode(&mut out, &meaning);
        meanings.insert(name, (0, Meaning::Peer(meaning), out.to_vec()));
    }
    for (name, written) in handshake_examples() {
        meanings.insert(name, (0, Meaning::Handshake, written));
    }
    meanings
}

fn handshake_examples() -> Vec<(&'static str, Vec<u8>)> {
    let key = std::array::from_fn(|at| u8::try_from(at).unwrap());
    let (mut initiator, hello) = Initiator::new(&key, ServerId(1), ServerId(2), [0x11; 32]);
    let (acceptor, challenge) = Acceptor::new(&key, ServerId(2), [0x22; 32], &frame_of(&hello)).unwrap();
    let proof = initiator.on_challenge(&frame_of(&challenge)).unwrap();
    let (_, welcome) = acceptor.on_proof(&frame_of(&proof)).unwrap();
    let refused = HandshakeError::WrongServer { wanted: ServerId(2), is: ServerId(3) }.frame();
    vec![
        ("peer-hello", hello.to_vec()),
        ("peer-challenge", challenge.to_vec()),
        ("peer-proof", proof.to_vec()),
        ("peer-welcome", welcome.to_vec()),
        ("peer-refused", refused.to_vec()),
    ]
}

fn write_from_server(request: u32, from_server: &FromServer) -> Vec<u8> {
    let mut out = BytesMut::new();
    match from_server {
        FromServer::Response(response) => encode_response(&mut out, request, response),
        FromServer::Push(push) => encode_push(&mut out, push),
    }
    out.to_vec()
}

/// Reads a frame with the decoder that its opcode's range asks for.
fn read(frame: &Frame) -> Result<Meaning, DecodeError> {
    match frame.opcode {
        0x00..=0x3f => decode_request(frame).map(Meaning::Request),
        0x40..=0x4f => Ok(Meaning::Handshake),
        0x50..=0x7f => peer::decode(frame).map(Meaning::Peer),
        0x80..=0xff => decode_from_server(frame).map(Meaning::FromServer),
    }
}

/// The only frame in these bytes.
fn frame_of(bytes: &[u8]) -> Frame {
    let mut source = BytesMut::from(bytes);
    let mut codec = FrameCodec::new(config::FRAME_PEER_BYTES_MAX);
    let frame = codec.decode(&mut source).expect("a frame").expect("a whole one");
    assert!(source.is_empty(), "{} bytes after the frame", source.len());
    frame
}

fn frames_of(bytes: &[u8]) -> Vec<Frame> {
    let mut source = BytesMut::from(bytes);
    let mut codec = FrameCodec::new(config::FRAME_CLIENT_BYTES_MAX);
    let mut frames = Vec::new();
    while let Some(frame) = codec.decode_eof(&mut source).expect("whole frames") {
        frames.push(frame);
    }
    frames
}

// --- the document against the code -------------------------------------------------------------------------------------

#[test]
fn every_example_is_what_the_code_writes_and_reads() {
    let (examples, meanings) = (examples(), meanings());
    assert_eq!(
        examples.keys().map(String::as_str).collect::<Vec<_>>(),
        meanings.keys().copied().collect::<Vec<_>>(),
        "the examples of protocol.md, and those that this test knows"
    );
    for (name, bytes) in &examples {
        let (request, meaning, written) = &meanings[name.as_str()];
        assert_eq!(bytes, written, "{name}: protocol.md, and what the code writes");
        let frame = frame_of(bytes);
        assert_eq!(frame.request, *request, "{name}");
        assert_eq!(read(&frame).as_ref(), Ok(meaning), "{name}");
    }
}

#[test]
fn every_opcode_has_an_example() {
    let shown: Vec<u8> = examples().values().map(|bytes| bytes[4]).collect();
    for (name, number) in opcode::ALL {
        assert!(shown.contains(number), "{name} has no example in protocol.md");
    }
}

#[test]
fn the_documents_opcodes_are_those_of_the_code() {
    let documented: Vec<(String, u8)> = table_rows(|cell| cell.starts_with("0x") && cell.len() == 4)
        .iter()
        .map(|row| (row[1].clone(), u8::from_str_radix(&row[0][2..], 16).unwrap()))
        .collect();
    let mut known: Vec<(String, u8)> =
        opcode::ALL.iter().map(|(name, number)| ((*name).to_owned(), *number)).collect();
    let mut sorted = documented.clone();
    sorted.sort_by_key(|(_, number)| *number);
    known.sort_by_key(|(_, number)| *number);
    assert_eq!(sorted, known);
}

#[test]
fn the_documents_errors_are_those_of_the_code() {
    let document = document();
    let section = document.split("\n## 7. ").nth(1).unwrap().split("\n## ").next().unwrap();
    let documented: Vec<(u16, String, bool)> = section
        .lines()
        .filter_map(|line| {
            let cells: Vec<&str> = line.split(" | ").collect();
            let code = cells.first()?.strip_prefix("| ")?.parse().ok()?;
            Some((code, cells[1].trim_matches('`').to_owned(), cells[2] == "yes"))
        })
        .collect();
    let known: Vec<(u16, String, bool)> = ErrorCode::ALL
        .iter()
        .map(|code| (code.number(), code.keyword().to_owned(), code.retriable()))
        .collect();
    assert_eq!(documented, known);
}

#[test]
fn the_documents_limits_are_those_of_the_code() {
    let known: BTreeMap<&str, usize> = BTreeMap::from([
        ("NAME_BYTES_MAX", config::NAME_BYTES_MAX),
        ("PASSWORD_BYTES_MIN", config::PASSWORD_BYTES_MIN),
        ("PASSWORD_BYTES_MAX", config::PASSWORD_BYTES_MAX),
        ("TEXT_BYTES_MAX", config::TEXT_BYTES_MAX),
        ("MAILBOX_MESSAGES_MAX", config::MAILBOX_MESSAGES_MAX),
        ("SESSIONS_PER_ACCOUNT_MAX", config::SESSIONS_PER_ACCOUNT_MAX),
        ("REQUEST_WINDOW", usize::try_from(config::REQUEST_WINDOW).unwrap()),
        ("IDS_PER_REQUEST_MAX", config::IDS_PER_REQUEST_MAX),
        ("PAGE_DEFAULT", config::PAGE_DEFAULT),
        ("PAGE_MAX", config::PAGE_MAX),
        ("PAGE_BYTES_MAX", config::PAGE_BYTES_MAX),
        ("FRAME_BEFORE_LOGIN_BYTES_MAX", config::FRAME_BEFORE_LOGIN_BYTES_MAX),
        ("FRAME_CLIENT_BYTES_MAX", config::FRAME_CLIENT_BYTES_MAX),
        ("FRAME_PEER_BYTES_MAX", config::FRAME_PEER_BYTES_MAX),
        ("OUTGOING_BYTES_MAX", config::OUTGOING_BYTES_MAX),
        ("IN_FLIGHT_MAX", config::IN_FLIGHT_MAX),
        ("CONNECTIONS_MAX", config::CONNECTIONS_MAX),
        ("ERROR_TEXT_BYTES_MAX", ERROR_TEXT_BYTES_MAX),
    ]);
    let rows = table_rows(|_| true);
    let documented: BTreeMap<&str, usize> = rows
        .iter()
        .filter(|row| row.len() == 3 && known.contains_key(row[2].as_str()))
        .map(|row| (row[2].as_str(), row[1].trim_end_matches(" bytes").parse().unwrap()))
        .collect();
    assert_eq!(documented, known);
}

#[test]
fn every_invalid_example_is_refused_in_the_words_of_the_document() {
    let expected: BTreeMap<String, String> = table_rows(|_| true)
        .into_iter()
        .filter(|row| row.len() == 2)
        .map(|row| (row[0].clone(), row[1].clone()))
        .collect();
    for block in blocks("invalid") {
        let mut source = BytesMut::from(&bytes_of(&block)[..]);
        let found = match FrameCodec::new(config::FRAME_CLIENT_BYTES_MAX).decode(&mut source) {
            Err(error) => error.to_string(),
            Ok(frame) => decode_request(&frame.expect("a whole frame")).expect_err(&block.title).to_string(),
        };
        assert_eq!(Some(&found), expected.get(&block.title), "{}", block.title);
    }
}

/// The bytes between the quotes of `printf '…'`, as bash writes them.
fn printed(line: &str) -> Vec<u8> {
    let quoted = line.strip_prefix("printf '").unwrap().split('\'').next().unwrap();
    let (mut bytes, mut rest) = (Vec::new(), quoted.as_bytes());
    while let Some((&first, after)) = rest.split_first() {
        if first == b'\\' {
            assert_eq!(after[0], b'x', "{line}");
            bytes.push(u8::from_str_radix(std::str::from_utf8(&after[1..3]).unwrap(), 16).unwrap());
            rest = &after[3..];
        } else {
            assert_ne!(first, b'%', "printf would take it for a format");
            bytes.push(first);
            rest = after;
        }
    }
    bytes
}

#[test]
fn the_lines_to_type_are_the_frames_that_they_name() {
    let examples = examples();
    for block in blocks("netcat") {
        let (_, names) = block.title.split_once(" = ").expect("a name and the frames");
        let frames: Vec<u8> = names.split(' ').flat_map(|name| examples[name].clone()).collect();
        let [line] = &block.lines[..] else { panic!("{}: one line to type", block.title) };
        assert_eq!(printed(line), frames, "{}", block.title);
        assert!(line.ends_with("' | nc -q1 127.0.0.1 1538 | xxd"), "{}", block.title);
        for frame in frames_of(&frames) {
            decode_request(&frame).expect(&block.title);
        }
    }
    for block in blocks("xxd") {
        let shown = block.lines.iter().flat_map(|line| line[10..].split("  ").next().unwrap().split(' '));
        let digits: String = shown.collect();
        let frames: String = block
            .title
            .split(' ')
            .flat_map(|name| examples[name].iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>())
            .collect();
        assert_eq!(digits, frames, "{}", block.title);
    }
}

#[test]
fn the_documents_rows_carry_their_checksums_and_chains() {
    let mut previous_chain = 0;
    for line in &blocks("rows")[0].lines {
        let row = verify(line.as_bytes()).unwrap();
        let (row, chain) = row.split_at(row.len() - 9);
        let sequence = row.iter().position(|&byte| byte == b',').unwrap();
        let entry =
            Entry::decode(Bytes::copy_from_slice(&row[sequence + 1..]), previous_chain, &mut Fields::new())
                .unwrap();
        assert_eq!(format!(",{:08x}", entry.chain).as_bytes(), chain, "{line}");
        assert_eq!(
            Entry::new(entry.index, entry.view, entry.unix_ms, entry.operation.clone(), previous_chain),
            entry,
            "{line}"
        );
        previous_chain = entry.chain;
    }
}

/// All Rust sources below a directory, as one text.
fn sources(directory: &Path) -> String {
    let mut text = String::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            text += &sources(&path);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            text += &std::fs::read_to_string(path).unwrap();
        }
    }
    text
}

#[test]
fn every_rule_of_the_document_names_a_test_that_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let sources = sources(&root.join("src")) + &sources(&root.join("tests"));
    let rules =
        table_rows(|cell| cell.starts_with('M') && cell[1..].starts_with(|c: char| c.is_ascii_digit()));
    assert!(rules.len() >= 18, "found {} rules", rules.len());
    for (at, rule) in rules.iter().enumerate() {
        assert!(rule[0].starts_with(&format!("M{} ", at + 1)), "rules are numbered in order: {}", rule[0]);
        for test in rule[1].split(", ").map(|test| test.trim_matches('`')) {
            assert!(
                sources.contains(&format!("fn {test}(")),
                "{} names {test}, which does not exist",
                rule[0]
            );
        }
    }
}

// --- what else may come ------------------------------------------------------------------------------------------------

/// The frame with another body and the length that belongs to it.
fn with_body(bytes: &[u8], body: &[u8]) -> Vec<u8> {
    let mut out = BytesMut::new();
    let frame = frame_of(bytes);
    Frame { body: Bytes::copy_from_slice(body), ..frame }.encode(&mut out);
    out.to_vec()
}

/// Reads a frame of the handshake by the side that it is meant for.
fn read_handshake(frame: &Frame) -> Result<(), HandshakeError> {
    let key = std::array::from_fn(|at| u8::try_from(at).unwrap());
    let (mut initiator, hello) = Initiator::new(&key, ServerId(1), ServerId(2), [0x11; 32]);
    let (acceptor, challenge) = Acceptor::new(&key, ServerId(2), [0x22; 32], &frame_of(&hello))?;
    match frame.opcode {
        opcode::PEER_HELLO => Acceptor::new(&key, ServerId(2), [0x22; 32], frame).map(|_| ()),
        opcode::PEER_CHALLENGE => initiator.on_challenge(frame).map(|_| ()),
        opcode::PEER_PROOF => acceptor.on_proof(frame).map(|_| ()),
        _ => {
            initiator.on_challenge(&frame_of(&challenge))?;
            initiator.on_welcome(frame)
        }
    }
}

/// Reads a frame with every decoder there is; says whether the one that it is meant for refuses it.
fn is_refused(frame: &Frame) -> bool {
    // None of them may panic, whatever the frame.
    let _ = (decode_request(frame).is_ok(), decode_from_server(frame).is_ok(), peer::decode(frame).is_ok());
    let handshake = read_handshake(frame);
    match read(frame) {
        Ok(Meaning::Handshake) => handshake.is_err(),
        meaning => meaning.is_err(),
    }
}

#[test]
fn an_example_cut_anywhere_is_an_error() {
    for (name, bytes) in examples() {
        for cut in 0..bytes.len() {
            let mut source = BytesMut::from(&bytes[..cut]);
            let mut codec = FrameCodec::new(config::FRAME_CLIENT_BYTES_MAX);
            assert!(codec.decode(&mut source).unwrap().is_none(), "{name} cut at {cut} waits for its rest");
            match codec.decode_eof(&mut source) {
                Ok(None) => assert_eq!(cut, 0, "{name}"),
                Err(CodecError::Incomplete { found, .. }) => assert_eq!(found, cut, "{name}"),
                other => panic!("{name} cut at {cut}: {other:?}"),
            }
        }
        let body = &bytes[9..];
        for cut in 0..body.len() {
            let frame = frame_of(&with_body(&bytes, &body[..cut]));
            assert!(is_refused(&frame), "{name} with a body of {cut} bytes instead of {}", body.len());
        }
    }
}

#[test]
fn a_byte_too_many_is_an_error() {
    for (name, bytes) in examples() {
        let body = [&bytes[9..], &[0]].concat();
        let frame = frame_of(&with_body(&bytes, &body));
        assert!(is_refused(&frame), "{name}");
        if let Err(error) = read(&frame) {
            assert_eq!(error, DecodeError::Trailing { offset: bytes.len(), count: 1 }, "{name}");
            assert_eq!(error.code(), ErrorCode::Malformed);
        }
    }
}

#[test]
fn a_count_beyond_the_frame_is_refused() {
    // Where the count of each example's list stands, and how many bytes it takes.
    let lists = [
        ("acknowledge", 9, 2),
        ("delete", 9, 2),
        ("messages", 10, 2),
        ("accounts", 11, 2),
        ("propose", 14, 2),
        ("new-view", 22, 2),
        ("new-view", 51, 4),
        ("new-view", 81, 2),
        ("fetch", 31, 4),
        ("prepare", 39, 4),
        ("fetched", 47, 4),
        ("rows", 26, 4),
        ("conflicts-are", 10, 2),
        ("rebase", 34, 4),
    ];
    let examples = examples();
    for (name, offset, size) in lists {
        let mut bytes = examples[name].clone();
        bytes[offset..offset + size].fill(0xff);
        let error = read(&frame_of(&bytes)).expect_err(name);
        let DecodeError::Count { offset: found, count, .. } = error else { panic!("{name}: {error}") };
        assert_eq!(found, offset, "{name}");
        assert_eq!(count, if size == 2 { 0xffff } else { 0xffff_ffff }, "{name}");
    }
}

#[test]
fn an_unknown_opcode_is_refused_as_such_by_every_decoder() {
    for number in 0..=255_u8 {
        if opcode::name(number).is_some() {
            continue;
        }
        let frame = Frame { opcode: number, request: 1, body: Bytes::new() };
        let errors = [
            decode_request(&frame).expect_err("no request"),
            decode_from_server(&frame).expect_err("no response"),
            peer::decode(&frame).expect_err("no message"),
        ];
        for error in errors {
            assert_eq!(error.code(), ErrorCode::UnknownOpcode, "{error}");
            assert!(error.to_string().contains(&format!("0x{number:02x}")), "{error}");
        }
    }
}

#[test]
fn entries_that_do_not_follow_each_other_or_break_their_line_are_refused() {
    let examples = examples();
    let body = &examples["rows"][9..];
    let replaced = |from: &[u8], to: &[u8]| {
        let at = body.windows(from.len()).position(|window| window == from).unwrap();
        let body = [&body[..at], to, &body[at + from.len()..]].concat();
        read(&frame_of(&with_body(&examples["rows"], &body))).unwrap_err()
    };
    let gap = DecodeError::Gap { number: 1, offset: 34, found: LogIndex(43), expected: LogIndex(42) };
    assert_eq!(replaced(b"send,42", b"send,43"), gap);
    assert!(matches!(replaced(b"hi, bob", b"hi\n bob"), DecodeError::LineBreak { number: 1, .. }));
    let DecodeError::Row { number: 1, offset: 34, cause } = replaced(b"send,42", b"sing,42") else {
        panic!("an unknown kind is refused by the row's decoder")
    };
    assert!(matches!(cause, RowError::Field { field: 1, .. }), "{cause}");
}

#[test]
fn a_hundred_thousand_mutations_of_each_kind_are_read_or_refused() {
    let examples: Vec<Vec<u8>> = examples().into_values().collect();
    let mut prng = Prng::new(0x1538);
    let mut below = |bound: usize| usize::try_from(prng.below(bound as u64)).unwrap();
    let (mut read_count, mut refused_count) = (0, 0);
    for round in 0..200_000 {
        let example = &examples[below(examples.len())];
        let mut body = example[9..].to_vec();
        for _ in 0..=below(4) {
            mutate(&mut body, round % 2 == 0, &mut below);
        }
        let mut frame = frame_of(&with_body(example, &body));
        if below(16) == 0 {
            frame.opcode = u8::try_from(below(256)).unwrap();
        }
        if is_refused(&frame) {
            refused_count += 1;
            continue;
        }
        read_count += 1;
        assert_same_bytes(&frame);
    }
    assert!(read_count > 1_000 && refused_count > 1_000, "{read_count} read, {refused_count} refused");
}

/// Changes one thing: a byte or a bit in place, or the length by a few bytes.
fn mutate(body: &mut Vec<u8>, in_place: bool, below: &mut impl FnMut(usize) -> usize) {
    let byte = u8::try_from(below(256)).unwrap();
    if body.is_empty() {
        body.push(byte);
        return;
    }
    let at = below(body.len());
    match below(4) {
        0 if !in_place => body.truncate(at),
        1 if !in_place => body.insert(at, byte),
        2 => body[at] ^= 1 << (byte % 8),
        _ => body[at] = [0, 0xff, byte][below(3)],
    }
}

/// What was read is written as the same bytes: there is one way to say a thing.
fn assert_same_bytes(frame: &Frame) {
    let written = match read(frame).unwrap() {
        Meaning::Request(request) => {
            let mut out = BytesMut::new();
            encode_request(&mut out, frame.request, &request);
            out.to_vec()
        }
        // The retriable bit follows from the code, so a wrong one is set right.
        Meaning::FromServer(FromServer::Response(Response::Error(_))) => return,
        Meaning::FromServer(from_server) => write_from_server(frame.request, &from_server),
        Meaning::Peer(message) => {
            let mut out = BytesMut::new();
            peer::encode(&mut out, &message);
            out.to_vec()
        }
        Meaning::Handshake => return,
    };
    assert_eq!(&written[9..], &frame.body[..], "opcode 0x{:02x}", frame.opcode);
}

#[test]
fn lengths_out_of_bounds_are_refused_and_the_limit_itself_is_not() {
    let decode = |length: u32| {
        let mut source = BytesMut::from(&length.to_be_bytes()[..]);
        let result = FrameCodec::new(4096).decode(&mut source);
        assert!(source.capacity() <= 64 * 1024 + 16, "{length}: {} bytes of room", source.capacity());
        result
    };
    for length in 0..5 {
        assert!(matches!(decode(length), Err(CodecError::TooShort { found }) if found == length));
    }
    for length in [5, 4095, 4096] {
        assert!(matches!(decode(length), Ok(None)), "{length} is allowed");
    }
    for length in [4097, 65_536, u32::MAX] {
        assert!(matches!(decode(length), Err(CodecError::TooLong { found, max: 4096 }) if found == length));
    }
    let mut codec = FrameCodec::new(4096);
    codec.set_bytes_max(65_536);
    assert!(matches!(codec.decode(&mut BytesMut::from(&65_536_u32.to_be_bytes()[..])), Ok(None)));
}

#[test]
fn frames_arrive_whole_however_the_stream_is_cut() {
    let stream: Vec<u8> = examples().into_values().flatten().collect();
    let expected: Vec<Frame> = examples().values().map(|bytes| frame_of(bytes)).collect();
    for step in [1, 2, 3, 5, 9, 64, stream.len()] {
        let mut codec = FrameCodec::new(config::FRAME_CLIENT_BYTES_MAX);
        let (mut source, mut frames) = (BytesMut::new(), Vec::new());
        for segment in stream.chunks(step) {
            source.extend_from_slice(segment);
            while let Some(frame) = codec.decode(&mut source).unwrap() {
                frames.push(frame);
            }
        }
        assert_eq!(frames, expected, "in segments of {step} bytes");
        assert!(codec.decode_eof(&mut source).unwrap().is_none());
    }
}

#[test]
fn a_text_longer_than_its_length_can_say_stays_too_long_for_the_server() {
    let mut out = BytesMut::new();
    encode_request(&mut out, 1, &Request::Send { to: "bob".into(), text: "é".repeat(40_000) });
    let Ok(Request::Send { text, .. }) = decode_request(&frame_of(&out)) else { panic!("it reads back") };
    assert_eq!(text, "é".repeat(32_767));
    assert!(text.len() > config::TEXT_BYTES_MAX);
}

#[test]
fn an_error_that_repeats_what_was_sent_stays_short() {
    let (code, text) = (ErrorCode::NoSuchAccount, "é".repeat(30_000));
    let error = ErrorResponse { code, maybe_executed: false, text, primary: String::new() };
    let mut out = BytesMut::new();
    encode_response(&mut out, 1, &Response::Error(error));
    let Ok(FromServer::Response(Response::Error(error))) = decode_from_server(&frame_of(&out)) else {
        panic!("it reads back")
    };
    assert_eq!(error.text, "é".repeat(512));
}

// --- every value reads back --------------------------------------------------------------------------------------------

fn any_id() -> impl Strategy<Value = RequestId> {
    any::<(u64, u64)>().prop_map(|(client, number)| id(ClientId(client), number))
}

fn any_account() -> impl Strategy<Value = AccountId> {
    any_id().prop_map(AccountId)
}

fn any_ids() -> impl Strategy<Value = Vec<MessageId>> {
    prop::collection::vec(any_id().prop_map(MessageId), 0..6)
}

fn any_view_number() -> impl Strategy<Value = ViewNumber> {
    any::<(u32, u8)>().prop_map(|(counter, proposer)| ViewNumber { counter, proposer: ServerId(proposer) })
}

fn any_client() -> impl Strategy<Value = ClientId> {
    any::<u64>().prop_map(ClientId)
}

fn any_text() -> impl Strategy<Value = String> {
    prop_oneof![
        Just(String::new()),
        ".{0,12}",
        prop::collection::vec(any::<char>(), 0..40).prop_map(String::from_iter)
    ]
}

fn any_request() -> impl Strategy<Value = Request> {
    let login = || (any_text(), any_text(), any_client(), any::<[u8; 32]>());
    let page = (any_text(), any::<u64>(), any::<u16>());
    prop_oneof![
        login().prop_map(|(name, password, client, token)| Request::Register {
            name,
            password,
            client,
            token
        }),
        login().prop_map(|(name, password, client, token)| Request::Login { name, password, client, token }),
        (any_client(), any::<[u8; 32]>()).prop_map(|(client, token)| Request::Resume { client, token }),
        any::<bool>().prop_map(|everywhere| Request::Logout { everywhere }),
        any_text().prop_map(|password| Request::DeleteAccount { password }),
        (any_text(), any_text())
            .prop_map(|(password, new_password)| Request::ChangePassword { password, new_password }),
        (any_text(), any_text(), any::<u16>()).prop_map(|(pattern, after, limit)| Request::List {
            pattern,
            after,
            limit
        }),
        (any_text(), any_text()).prop_map(|(to, text)| Request::Send { to, text }),
        any::<(u64, u16)>().prop_map(|(after, limit)| Request::Read { after, limit }),
        any_ids().prop_map(|messages| Request::Acknowledge { messages }),
        any_ids().prop_map(|messages| Request::Delete { messages }),
        page.prop_map(|(with, before, limit)| Request::History { with, before, limit }),
        any::<(u64, u16)>().prop_map(|(after, limit)| Request::Conflicts { after, limit }),
        Just(Request::Subscribe),
        Just(Request::Status),
        Just(Request::Ping),
        (any::<u32>(), any_view_number())
            .prop_map(|(acknowledged, view)| Request::Seen { acknowledged, view }),
    ]
}

fn any_message() -> impl Strategy<Value = MessageView> {
    (any_id(), any_text(), any_text(), any::<(u64, bool, bool, u64)>(), any_text()).prop_map(
        |(id, from, to, (unix_ms, delivered, late, cursor), text)| MessageView {
            id: MessageId(id),
            from,
            to,
            unix_ms,
            delivered,
            late,
            cursor,
            text,
        },
    )
}

fn any_conflict() -> impl Strategy<Value = ConflictView> {
    (any::<(u64, u64)>(), any_id(), prop::array::uniform5(any_text())).prop_map(
        |((cursor, unix_ms), request, [reason, command, account, other, text])| ConflictView {
            cursor,
            request,
            unix_ms,
            reason,
            command,
            account,
            other,
            text,
        },
    )
}

fn any_reply() -> impl Strategy<Value = Reply> {
    prop_oneof![
        any_account().prop_map(|account| Reply::Registered { account }),
        (any_account(), any::<u64>()).prop_map(|(account, waiting)| Reply::LoggedIn { account, waiting }),
        Just(Reply::LoggedOut),
        Just(Reply::AccountDeleted),
        Just(Reply::PasswordChanged),
        (any_id(), any::<u64>()).prop_map(|(id, unix_ms)| Reply::Sent { message: MessageId(id), unix_ms }),
        any::<u64>().prop_map(|count| Reply::Acknowledged { count }),
        any::<u64>().prop_map(|count| Reply::Deleted { count }),
    ]
}

fn any_status() -> impl Strategy<Value = Status> {
    let texts = prop::array::uniform4(any_text());
    let lists = prop::array::uniform2(prop::collection::vec(any_text(), 0..4));
    (texts, any_view_number(), lists, any::<[u64; 6]>()).prop_map(
        |(
            [server, role, primary, note],
            view,
            [members, configured],
            [last, synced, commit, applied, lag, since_ms],
        )| {
            Status {
                server,
                role,
                view,
                primary,
                members,
                configured,
                last,
                synced,
                commit,
                applied,
                lag,
                since_ms,
                note,
            }
        },
    )
}

fn any_response() -> impl Strategy<Value = Response> {
    let names = (prop::collection::vec(any_text(), 0..5), prop::option::of(".{1,9}"));
    let error = (prop::sample::select(ErrorCode::ALL), any::<bool>(), any_text(), any_text());
    prop_oneof![
        (any_reply(), any_client(), any_view_number(), any::<(u8, u8)>()).prop_map(
            |(reply, client, view, (copies, configured))| Response::Done {
                reply,
                client,
                view,
                copies,
                configured
            }
        ),
        (any_account(), any_text(), any::<u64>(), any_view_number())
            .prop_map(|(account, name, waiting, view)| Response::Resumed { account, name, waiting, view }),
        (prop::collection::vec(any_message(), 0..4), any::<bool>())
            .prop_map(|(messages, more)| Response::Messages(MessagePage { messages, more })),
        names.prop_map(|(names, next)| Response::Accounts(AccountPage { names, next })),
        (prop::collection::vec(any_conflict(), 0..4), any::<bool>())
            .prop_map(|(conflicts, more)| Response::Conflicts(ConflictPage { conflicts, more })),
        Just(Response::Subscribed),
        any_status().prop_map(Response::Status),
        Just(Response::Pong),
        error.prop_map(|(code, maybe_executed, text, primary)| Response::Error(ErrorResponse {
            code,
            maybe_executed,
            text,
            primary
        })),
    ]
}

fn any_members() -> impl Strategy<Value = Vec<Member>> {
    let member = any::<(u8, u32)>().prop_map(|(server, incarnation)| Member {
        server: ServerId(server),
        incarnation: Incarnation(incarnation),
    });
    prop::collection::vec(member, 0..4)
}

fn any_command() -> impl Strategy<Value = Command> {
    prop_oneof![
        (any_text(), any_text(), any::<[u8; 32]>()).prop_map(|(name, password, token)| Command::Register {
            name,
            password,
            token
        }),
        (any_id(), any::<[u8; 32]>()).prop_map(|(checked, token)| Command::Login { checked, token }),
        any::<bool>().prop_map(|everywhere| Command::Logout { everywhere }),
        any_id().prop_map(|checked| Command::DeleteAccount { checked }),
        (any_id(), any_text()).prop_map(|(checked, password)| Command::ChangePassword { checked, password }),
        (any_account(), any_text()).prop_map(|(to, text)| Command::Send { to, text }),
        any_ids().prop_map(|messages| Command::Acknowledge { messages }),
        any_ids().prop_map(|messages| Command::Delete { messages }),
    ]
}

fn any_operation() -> impl Strategy<Value = Operation> {
    prop_oneof![
        1 => (any::<u8>(), any_members())
            .prop_map(|(primary, members)| Operation::View {
                primary: ServerId(primary),
                members,
                absent: vec![ServerId(9)],
            }),
        1 => Just(Operation::Closed),
        1 => any::<u64>().prop_map(|before_unix_ms| Operation::Expire { before_unix_ms }),
        8 => (any_id(), any::<u64>(), any_account(), any_command(), prop::option::of(any::<u64>())).prop_map(
            |(request, acknowledged, account, command, fork)| {
                let acknowledged = RequestNumber(acknowledged);
                let command = ClientCommand { request, acknowledged, account, command };
                match fork {
                    None => Operation::Command(command),
                    Some(fork) => Operation::Rebased { fork: LogIndex(fork), command },
                }
            }
        ),
    ]
}

fn any_position() -> impl Strategy<Value = Position> {
    (0..u64::MAX / 2, any_view_number(), any::<u32>()).prop_map(|(index, view, chain)| Position {
        index: LogIndex(index),
        view,
        chain,
    })
}

/// A position and entries that follow it.
fn any_entries() -> impl Strategy<Value = (Position, Vec<Arc<Entry>>)> {
    let entry = (any_view_number(), any::<u64>(), any_operation());
    (any_position(), prop::collection::vec(entry, 0..5)).prop_map(|(previous, parts)| {
        let mut last = previous;
        let mut entries = Vec::new();
        for (view, unix_ms, operation) in parts {
            let entry = Entry::new(last.index.next(), view, unix_ms, operation, last.chain);
            last = entry.position();
            entries.push(Arc::new(entry));
        }
        (previous, entries)
    })
}

fn any_report() -> impl Strategy<Value = Report> {
    let standing = prop::sample::select(vec![Standing::Whole, Standing::Suspect, Standing::Partial]);
    let servers = prop::collection::vec(any_view_number(), 0..4);
    let installed = (any_view_number(), any_members()).prop_map(|(number, members)| View { number, members });
    (any::<(u32, [bool; 5])>(), any_view_number(), servers, installed, any_position(), standing).prop_map(
        |(
            (incarnation, [continuous, nearly_continuous, empty, closed, rebasing]),
            promised,
            outstanding,
            installed,
            last,
            standing,
        )| {
            Report {
                incarnation: Incarnation(incarnation),
                born: Incarnation(incarnation / 2),
                promised,
                outstanding,
                installed,
                last,
                standing,
                continuous,
                nearly_continuous,
                empty,
                closed,
                rebasing,
            }
        },
    )
}

fn any_pulse() -> impl Strategy<Value = Pulse> {
    let standpoint = prop::sample::select(vec![
        Standpoint::Primary,
        Standpoint::Backup,
        Standpoint::Learner,
        Standpoint::Waiting,
        Standpoint::Empty,
    ]);
    let primary = prop::option::of((1..=255_u8).prop_map(ServerId));
    let numbers = any::<(u32, u32, u32, u64, u64, u64)>();
    (
        prop::option::of(any::<u64>()),
        numbers,
        standpoint,
        any_view_number(),
        primary,
        any::<[bool; 7]>(),
        any_mark(),
    )
        .prop_map(
            |(
                cluster,
                (incarnation, known, sync_age_ms, last, synced, commit),
                standpoint,
                view,
                primary,
                flags,
                mark,
            )| Pulse {
                cluster: cluster.map(ClusterId),
                incarnation: Incarnation(incarnation),
                known_incarnation: Incarnation(known),
                standpoint,
                view,
                member: flags[0],
                primary,
                last: LogIndex(last),
                synced: LogIndex(synced),
                commit: LogIndex(commit),
                sync_age_ms,
                broken: flags[1],
                disk_low: flags[2],
                leaving: flags[3],
                rebasing: flags[4],
                blank: flags[5],
                answered: flags[6],
                mark,
            },
        )
}

fn any_mark() -> impl Strategy<Value = Mark> {
    any::<(u64, u32, [u8; 32])>().prop_map(|(index, chain, digest)| Mark {
        index: LogIndex(index),
        chain,
        digest,
    })
}

fn any_peer_message() -> impl Strategy<Value = PeerMessage> {
    let index = || any::<u64>().prop_map(LogIndex);
    let incarnation = || any::<u32>().prop_map(Incarnation);
    let number = any_view_number;
    let views = || {
        let row = (any_view_number(), any::<u64>())
            .prop_map(|(view, start)| ViewStart { view, start: LogIndex(start) });
        prop::collection::vec(row, 0..5)
    };
    let normal =
        prop_oneof![
            (any::<u64>(), any_pulse()).prop_map(|(nonce, pulse)| PeerMessage::Heartbeat { nonce, pulse }),
            (any::<u64>(), any_pulse()).prop_map(|(nonce, pulse)| PeerMessage::HeartbeatOk { nonce, pulse }),
            (number(), any_entries(), index()).prop_map(|(view, (previous, entries), commit)| {
                PeerMessage::Prepare { view, previous, entries, commit }
            }),
            (number(), incarnation(), index())
                .prop_map(|(view, incarnation, synced)| PeerMessage::PrepareOk { view, incarnation, synced }),
            (number(), any::<u64>()).prop_map(|(view, nonce)| PeerMessage::Barrier { view, nonce }),
            (number(), any::<u64>(), incarnation())
                .prop_map(|(view, nonce, incarnation)| PeerMessage::BarrierOk { view, nonce, incarnation }),
        ];
    let whole_view = (number(), any_members()).prop_map(|(number, members)| View { number, members });
    let view_change = prop_oneof![
        any::<u64>().prop_map(|nonce| PeerMessage::PreVote { nonce }),
        (any::<(u64, bool)>(), any_report()).prop_map(|((nonce, veto), report)| PeerMessage::PreVoteOk {
            nonce,
            veto,
            report
        }),
        (number(), prop::collection::vec(any::<u8>().prop_map(ServerId), 0..4))
            .prop_map(|(number, dropping)| PeerMessage::Propose { number, dropping }),
        (number(), any_report()).prop_map(|(number, report)| PeerMessage::Promise { number, report }),
        (number(), number()).prop_map(|(number, promised)| PeerMessage::Refuse { number, promised }),
        (any::<u64>(), whole_view, any_position(), views(), any_members()).prop_map(
            |(cluster, view, start, views, lives)| PeerMessage::NewView {
                cluster: ClusterId(cluster),
                view,
                start,
                views,
                lives
            }
        ),
        (number(), incarnation())
            .prop_map(|(number, incarnation)| PeerMessage::NewViewOk { number, incarnation }),
    ];
    let catch_up = prop_oneof![
        (number(), any_position(), views()).prop_map(|(view, last, views)| PeerMessage::Fetch {
            view,
            last,
            views
        }),
        (number(), any_entries(), index(), index()).prop_map(|(view, (previous, entries), commit, last)| {
            PeerMessage::Fetched { view, previous, entries, commit, last }
        }),
        (number(), any_position(), index()).prop_map(|(view, last, shared)| PeerMessage::Diverged {
            view,
            last,
            shared
        }),
        (number(), any_position()).prop_map(|(view, last)| PeerMessage::UseCheckpoint { view, last }),
        (number(), index(), any::<u64>()).prop_map(|(view, index, offset)| PeerMessage::FetchCheckpoint {
            view,
            index,
            offset
        }),
        (number(), index(), any::<(u64, u64)>(), prop::collection::vec(any::<u8>(), 0..50)).prop_map(
            |(view, index, (offset, total), bytes)| PeerMessage::CheckpointPart {
                view,
                index,
                offset,
                total,
                bytes: bytes.into()
            }
        ),
        (any_position(), index()).prop_map(|(after, through)| PeerMessage::FetchRows { after, through }),
        any_entries().prop_map(|(after, entries)| PeerMessage::Rows { after, entries }),
    ];
    let after_a_split = prop_oneof![
        (number(), incarnation(), any::<u64>(), index(), any_entries()).prop_map(
            |(view, incarnation, nonce, fork, (_, rows))| {
                // Their chains mean nothing on the way.
                let unchained = |row: &Arc<Entry>| {
                    let chain = lastword::message::chain_after(0, &row.bytes);
                    Arc::new(Entry { chain, ..Entry::clone(row) })
                };
                let rows = rows.iter().map(unchained).collect();
                PeerMessage::Rebase { view, incarnation, nonce, fork, rows }
            }
        ),
        (number(), any::<u64>()).prop_map(|(view, nonce)| PeerMessage::RebaseOk { view, nonce }),
        (number(), any_mark()).prop_map(|(view, mark)| PeerMessage::Differs { view, mark }),
    ];
    prop_oneof![normal, view_change, catch_up, after_a_split]
}

proptest! {
    #[test]
    fn requests_read_back(request in any_request(), number in any::<u32>()) {
        let mut out = BytesMut::new();
        encode_request(&mut out, number, &request);
        let frame = frame_of(&out);
        prop_assert_eq!(frame.request, number);
        prop_assert_eq!(decode_request(&frame), Ok(request));
    }

    #[test]
    fn responses_read_back(response in any_response(), number in any::<u32>()) {
        let mut out = BytesMut::new();
        encode_response(&mut out, number, &response);
        let frame = frame_of(&out);
        prop_assert_eq!(frame.request, number);
        prop_assert_eq!(decode_from_server(&frame), Ok(FromServer::Response(response)));
    }

    #[test]
    fn pushes_read_back(message in prop::option::of(any_message())) {
        let push = message.map_or(Push::SessionEnded, Push::Message);
        let mut out = BytesMut::new();
        encode_push(&mut out, &push);
        prop_assert_eq!(decode_from_server(&frame_of(&out)), Ok(FromServer::Push(push)));
    }

    #[test]
    fn peer_messages_read_back(message in any_peer_message()) {
        let mut out = BytesMut::new();
        peer::encode(&mut out, &message);
        prop_assert_eq!(peer::decode(&frame_of(&out)), Ok(message));
    }

    #[test]
    fn any_bytes_are_read_or_refused(opcode in any::<u8>(), body in prop::collection::vec(any::<u8>(), 0..200)) {
        let frame = Frame { opcode, request: 0, body: body.into() };
        if !is_refused(&frame) {
            assert_same_bytes(&frame);
        }
    }
}
