//! A server that follows a script: real TCP, real frames, no state of its own. It records what it was asked.

#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    reason = "each test binary uses a part of this module"
)]

use bytes::BytesMut;
use lastword::chat::command::{AccountPage, ConflictPage, ConflictView, MessagePage, MessageView, Reply};
use lastword::message::{ErrorCode, ErrorResponse, Push, Request, Response, Status};
use lastword::types::{AccountId, ClientId, MessageId, RequestId, RequestNumber, ServerId, ViewNumber};
use lastword::wire::client::{decode_request, encode_push, encode_response};
use lastword::wire::codec::FrameCodec;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;
use tokio_util::codec::Decoder as _;

/// What the script does about a request.
pub enum Act {
    /// Answers it.
    Answer(Response),
    /// Says something unasked.
    Push(Push),
    /// Closes the connection.
    Close,
}

/// One request that came in.
#[derive(Clone, Debug, PartialEq)]
pub struct Asked {
    /// The number of the connection, from 0.
    pub connection: usize,
    /// The request's number.
    pub number: u32,
    /// The request.
    pub request: Request,
}

type Log = Arc<(Mutex<Vec<Asked>>, Condvar)>;
type Script = Arc<Mutex<dyn FnMut(&Asked) -> Vec<Act> + Send>>;

/// A server on a port of its own.
pub struct FakeServer {
    /// Where it listens.
    pub address: String,
    log: Log,
}

impl FakeServer {
    /// Starts a server that follows the script.
    pub fn start(script: impl FnMut(&Asked) -> Vec<Act> + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let log = Log::default();
        let script: Script = Arc::new(Mutex::new(script));
        let log_of_threads = Arc::clone(&log);
        std::thread::spawn(move || {
            for (connection, stream) in listener.incoming().enumerate() {
                let (log, script) = (Arc::clone(&log_of_threads), Arc::clone(&script));
                std::thread::spawn(move || serve(connection, stream.unwrap(), &log, &script));
            }
        });
        Self { address, log }
    }

    /// Starts a server that leads and answers everything in the friendliest way.
    pub fn start_friendly() -> Self {
        Self::start(|asked| vec![Act::Answer(friendly(asked))])
    }

    /// All requests so far, without those that only keep a connection in order.
    pub fn asked(&self) -> Vec<Asked> {
        let all = self.log.0.lock().unwrap();
        let besides =
            |r: &Request| matches!(r, Request::Resume { .. } | Request::Seen { .. } | Request::Status);
        all.iter().filter(|asked| !besides(&asked.request)).cloned().collect()
    }

    /// All requests so far.
    pub fn asked_at_all(&self) -> Vec<Asked> {
        self.log.0.lock().unwrap().clone()
    }

    /// Waits until a request fits.
    pub fn wait_for(&self, fits: impl Fn(&Asked) -> bool) {
        let log = self.log.0.lock().unwrap();
        let waiting = |log: &mut Vec<Asked>| !log.iter().any(&fits);
        let (log, result) = self.log.1.wait_timeout_while(log, Duration::from_secs(20), waiting).unwrap();
        drop(log);
        assert!(!result.timed_out(), "no such request within 20 s");
    }
}

fn serve(connection: usize, mut stream: TcpStream, log: &Log, script: &Script) {
    let mut codec = FrameCodec::new(64 * 1024);
    let mut buffer = BytesMut::new();
    let mut chunk = [0; 4096];
    loop {
        while let Some(frame) = codec.decode(&mut buffer).unwrap() {
            let asked = Asked { connection, number: frame.request, request: decode_request(&frame).unwrap() };
            log.0.lock().unwrap().push(asked.clone());
            log.1.notify_all();
            if matches!(asked.request, Request::Seen { .. }) {
                continue;
            }
            let acts = (script.lock().unwrap())(&asked);
            let mut out = BytesMut::new();
            let mut closes = false;
            for act in acts {
                match act {
                    Act::Answer(response) => encode_response(&mut out, asked.number, &response),
                    Act::Push(push) => encode_push(&mut out, &push),
                    Act::Close => closes = true,
                }
            }
            if stream.write_all(&out).is_err() || closes {
                return;
            }
        }
        match stream.read(&mut chunk) {
            Ok(0) | Err(_) => return,
            Ok(bytes) => buffer.extend_from_slice(&chunk[..bytes]),
        }
    }
}

/// An address where nobody listens.
pub fn dead_address() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().to_string()
}

/// The view in which all answers are given.
pub const VIEW: ViewNumber = ViewNumber { counter: 7, proposer: ServerId(1) };

/// An id.
pub fn id(client: u64, number: u64) -> MessageId {
    MessageId(RequestId { client: ClientId(client), number: RequestNumber(number) })
}

/// A message to alice.
pub fn message(number: u64, text: &str) -> MessageView {
    MessageView {
        id: id(0xb0b, number),
        from: "bob".into(),
        to: "alice".into(),
        unix_ms: 1_795_216_261_042,
        delivered: false,
        late: false,
        cursor: number,
        text: text.into(),
    }
}

/// A message of alice's that found no recipient when a split healed.
pub fn conflict(cursor: u64, text: &str) -> ConflictView {
    ConflictView {
        cursor,
        request: id(1, cursor).0,
        unix_ms: 1_795_216_261_042,
        reason: "no_such_recipient".into(),
        command: "send".into(),
        account: "alice".into(),
        other: "[deleted]".into(),
        text: text.into(),
    }
}

/// A page of those of these conflicts that a request asks for.
pub fn conflicts_after(all: &[ConflictView], after: u64, limit: u16) -> Response {
    let later: Vec<_> = all.iter().filter(|conflict| conflict.cursor > after).cloned().collect();
    let count = if limit == 0 { 50 } else { usize::from(limit) }.min(later.len());
    Response::Conflicts(ConflictPage { more: later.len() > count, conflicts: later[..count].to_vec() })
}

/// A refusal.
pub fn error(code: ErrorCode, primary: &str) -> Response {
    Response::Error(ErrorResponse {
        code,
        maybe_executed: false,
        text: code.keyword().into(),
        primary: primary.into(),
    })
}

/// An outcome.
pub fn done(reply: Reply) -> Response {
    Response::Done { reply, client: ClientId(1), view: VIEW, copies: 3, configured: 3 }
}

/// How a server is.
pub fn status(role: &str, address: &str) -> Response {
    Response::Status(Status {
        server: address.into(),
        role: role.into(),
        view: VIEW,
        primary: address.into(),
        members: vec![address.into()],
        configured: vec![address.into()],
        last: 12,
        synced: 11,
        commit: 10,
        applied: 10,
        lag: 0,
        since_ms: 61_000,
        note: String::new(),
    })
}

/// The friendliest answer: everybody exists, two messages wait.
pub fn friendly(asked: &Asked) -> Response {
    let account = AccountId(RequestId { client: ClientId(1), number: RequestNumber(1) });
    let page = |messages| Response::Messages(MessagePage { messages, more: false });
    match &asked.request {
        Request::Register { .. } => done(Reply::Registered { account }),
        Request::Login { .. } => done(Reply::LoggedIn { account, waiting: 2 }),
        Request::Resume { .. } => Response::Resumed { account, name: "alice".into(), waiting: 2, view: VIEW },
        Request::Logout { .. } => done(Reply::LoggedOut),
        Request::DeleteAccount { .. } => done(Reply::AccountDeleted),
        Request::ChangePassword { .. } => done(Reply::PasswordChanged),
        Request::List { .. } => {
            Response::Accounts(AccountPage { names: vec!["alice".into(), "bob".into()], next: None })
        }
        Request::Send { to, .. } if to == "nobody" => error(ErrorCode::NoSuchAccount, ""),
        Request::Send { .. } => {
            done(Reply::Sent { message: id(1, u64::from(asked.number)), unix_ms: 1_795_216_261_042 })
        }
        Request::Read { after: 0, .. } => page(vec![message(1, "one"), message(2, "t\u{1b}[31mwo\nlines")]),
        Request::Read { .. } => page(Vec::new()),
        Request::Acknowledge { messages } => {
            done(Reply::Acknowledged { count: u64::try_from(messages.len()).unwrap() })
        }
        Request::Delete { messages } => {
            done(Reply::Deleted { count: u64::try_from(messages.len()).unwrap() })
        }
        Request::History { .. } => page(vec![message(1, "one")]),
        Request::Conflicts { .. } => Response::Conflicts(ConflictPage::default()),
        Request::Subscribe => Response::Subscribed,
        Request::Status => status("primary", "127.0.0.1:1"),
        Request::Ping | Request::Seen { .. } => Response::Pong,
    }
}
