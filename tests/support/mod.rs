//! Real servers, started as people start them, and a client small enough to see through.
#![allow(dead_code, unreachable_pub, missing_docs, reason = "each test binary uses another part of it")]

use std::collections::VecDeque;
use std::io::{self, BufRead as _, BufReader, Read, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use lastword::chat::command::{MessageView, Reply};
use lastword::config::FRAME_PEER_BYTES_MAX;
use lastword::message::{ErrorCode, ErrorResponse, Push, Request, Response, Status};
use lastword::types::{ClientId, MessageId};
use lastword::wire::client::{FromServer, decode_from_server, encode_request};
use lastword::wire::codec::{Frame, FrameCodec};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio_util::codec::Decoder as _;

/// How long a test waits for something that must happen.
pub const PATIENCE: Duration = Duration::from_secs(30);
pub const PASSWORD: &str = "correct horse";

/// A port that is free, and that no outgoing connection takes by chance: those have numbers from 32768 on.
pub fn free_port() -> u16 {
    const FIRST: u16 = 12_000;
    const COUNT: u16 = 18_000;
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = u16::try_from(std::process::id() % u32::from(COUNT)).expect("below COUNT");
    loop {
        let step = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = FIRST + (start.wrapping_mul(37).wrapping_add(step)) % COUNT;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// Waits until `condition` gives something; `what` is for whoever reads the failure.
pub fn wait_for<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let until = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = condition() {
            return found;
        }
        assert!(Instant::now() < until, "waited {PATIENCE:?} in vain: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// The lines a process has written so far.
#[derive(Clone, Default)]
pub struct Lines(Arc<(Mutex<Vec<String>>, Condvar)>);

impl Lines {
    /// The thread ends with the stream.
    fn gather(stream: impl Read + Send + 'static) -> (Self, JoinHandle<()>) {
        let lines = Self::default();
        let gathered = lines.clone();
        let reading = thread::spawn(move || {
            for line in BufReader::new(stream).split(b'\n') {
                let Ok(line) = line else { return };
                let (lines, changed) = &*gathered.0;
                lines.lock().unwrap().push(String::from_utf8_lossy(&line).into_owned());
                changed.notify_all();
            }
        });
        (lines, reading)
    }

    pub fn all(&self) -> Vec<String> {
        self.0.0.lock().unwrap().clone()
    }

    pub fn text(&self) -> String {
        self.all().join("\n")
    }

    pub fn contains(&self, part: &str) -> bool {
        self.all().iter().any(|line| line.contains(part))
    }
}

/// One running server.
pub struct Server {
    child: Child,
    pub out: Lines,
    pub err: Lines,
    reading: Vec<JoinHandle<()>>,
}

impl Server {
    pub fn spawn(arguments: &[String]) -> Self {
        Self::spawn_in(arguments, Path::new("."))
    }

    pub fn spawn_in(arguments: &[String], directory: &Path) -> Self {
        Self::run(Command::new(env!("CARGO_BIN_EXE_server")).args(arguments).current_dir(directory))
    }

    /// A server that may have so many files open.
    pub fn spawn_with_files(arguments: &[String], files: usize) -> Self {
        let line = format!("ulimit -n {files}; exec \"$0\" \"$@\"");
        Self::run(Command::new("sh").args(["-c", &line, env!("CARGO_BIN_EXE_server")]).args(arguments))
    }

    fn run(command: &mut Command) -> Self {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .env("NO_COLOR", "1")
            .spawn()
            .expect("the server's binary starts");
        let (out, reading_out) = Lines::gather(child.stdout.take().unwrap());
        let (err, reading_err) = Lines::gather(child.stderr.take().unwrap());
        Self { child, out, err, reading: vec![reading_out, reading_err] }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).unwrap()).unwrap();
        kill_process(pid, signal).expect("the process is ours");
    }

    /// Waits until the process has ended by itself; then all that it has written is there.
    pub fn wait(&mut self) -> ExitStatus {
        let child = &mut self.child;
        let status = wait_for("a server ends", || child.try_wait().unwrap());
        self.reading.drain(..).for_each(|reading| reading.join().unwrap());
        status
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    pub fn wait_ready(&mut self) {
        let until = Instant::now() + PATIENCE;
        while !self.out.contains("ready ") {
            assert!(self.is_running(), "a server ended instead of being ready:\n{}", self.err.text());
            assert!(Instant::now() < until, "a server isn't ready after {PATIENCE:?}:\n{}", self.err.text());
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Resident memory in bytes.
    pub fn resident_bytes(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line =
            status.lines().find(|line| line.starts_with("VmRSS:")).expect("a running process has memory");
        let kib: u64 = line.split_ascii_whitespace().nth(1).unwrap().parse().unwrap();
        kib * 1024
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            eprintln!("--- a server said:\n{}", self.err.text());
        }
    }
}

/// Some servers on free ports with directories of their own. Servers count from 0 here.
pub struct Cluster {
    pub directory: TempDir,
    pub ports: Vec<u16>,
    pub servers: Vec<Option<Server>>,
}

impl Cluster {
    /// Nothing runs yet.
    pub fn new(size: usize) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let ports = (0..size).map(|_| free_port()).collect();
        Self { directory, ports, servers: (0..size).map(|_| None).collect() }
    }

    /// Three servers that are ready, all of them members.
    pub fn started() -> Self {
        let mut cluster = Self::new(3);
        for at in 0..3 {
            cluster.start(at);
        }
        cluster.wait_ready();
        cluster.wait_members(3);
        cluster
    }

    /// One server that is a whole cluster, ready.
    pub fn single() -> Self {
        let mut cluster = Self::new(1);
        cluster.start(0);
        cluster.wait_ready();
        cluster
    }

    pub fn address(&self, at: usize) -> String {
        format!("127.0.0.1:{}", self.ports[at])
    }

    pub fn list(&self) -> String {
        (0..self.ports.len()).map(|at| self.address(at)).collect::<Vec<_>>().join(",")
    }

    pub fn data(&self, at: usize) -> PathBuf {
        self.directory.path().join(format!("{}", at + 1))
    }

    /// The arguments that start a server; the first one is the primary.
    pub fn arguments(&self, at: usize) -> Vec<String> {
        let role = if at == 0 { "primary" } else { "secondary" };
        let data = self.data(at).display().to_string();
        [role, &self.ports[at].to_string(), "--cluster", &self.list(), "--data", &data]
            .map(str::to_owned)
            .to_vec()
    }

    pub fn start(&mut self, at: usize) {
        self.start_with(at, &[]);
    }

    pub fn start_with(&mut self, at: usize, more: &[&str]) {
        let mut arguments = self.arguments(at);
        arguments.extend(more.iter().map(|&argument| argument.to_owned()));
        assert!(self.servers[at].is_none(), "server {} runs already", at + 1);
        self.servers[at] = Some(Server::spawn(&arguments));
    }

    pub fn server(&mut self, at: usize) -> &mut Server {
        self.servers[at].as_mut().expect("the server runs")
    }

    pub fn wait_ready(&mut self) {
        self.servers.iter_mut().flatten().for_each(Server::wait_ready);
    }

    /// kill -9.
    pub fn kill(&mut self, at: usize) {
        let mut server = self.servers[at].take().expect("the server runs");
        server.child.kill().unwrap();
        server.child.wait().unwrap();
    }

    pub fn pause(&mut self, at: usize) {
        self.server(at).signal(Signal::STOP);
    }

    pub fn resume(&mut self, at: usize) {
        self.server(at).signal(Signal::CONT);
    }

    /// SIGTERM; gives how it ended.
    pub fn stop(&mut self, at: usize) -> ExitStatus {
        self.server(at).signal(Signal::TERM);
        let mut server = self.servers[at].take().expect("the server runs");
        server.wait()
    }

    /// What a server says of itself; none if it says nothing.
    pub fn status(&self, at: usize) -> Option<Status> {
        let mut client = Client::connect(self.ports[at]).ok()?;
        client.stream.set_read_timeout(Some(Duration::from_millis(500))).ok()?;
        match client.ask(&Request::Status).ok()? {
            Response::Status(status) => Some(status),
            other => panic!("asked for the status and got {other:?}"),
        }
    }

    /// Waits until one running server leads, and gives which.
    pub fn primary(&self) -> usize {
        let running = |at: &usize| self.servers[*at].is_some();
        wait_for("a server leads", || {
            (0..self.ports.len())
                .filter(running)
                .find(|&at| self.status(at).is_some_and(|status| status.role == "primary"))
        })
    }

    /// Waits until the view has so many members, and all of them have everything.
    pub fn wait_members(&self, count: usize) {
        let running: Vec<usize> = (0..self.ports.len()).filter(|&at| self.servers[at].is_some()).collect();
        wait_for("all members have everything", || {
            let all: Vec<Status> = running.iter().filter_map(|&at| self.status(at)).collect();
            let first = all.first()?;
            let alike = all.iter().all(|status| {
                status.members.len() == count
                    && status.view == first.view
                    && status.applied == first.applied
                    && (status.role == "primary" || status.role == "backup")
            });
            (alike && all.len() == running.len()).then_some(())
        });
    }
}

/// A connection that speaks frames.
pub struct Client {
    pub stream: TcpStream,
    codec: FrameCodec,
    buffer: BytesMut,
    pub pushes: VecDeque<Push>,
    next: u32,
}

impl Client {
    pub fn connect(port: u16) -> io::Result<Self> {
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let stream = TcpStream::connect_timeout(&address, Duration::from_secs(1))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        Ok(Self {
            stream,
            codec: FrameCodec::new(FRAME_PEER_BYTES_MAX),
            buffer: BytesMut::new(),
            pushes: VecDeque::new(),
            next: 1,
        })
    }

    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    pub fn ask(&mut self, request: &Request) -> io::Result<Response> {
        let number = self.next;
        self.next += 1;
        self.ask_as(number, request)
    }

    pub fn ask_as(&mut self, number: u32, request: &Request) -> io::Result<Response> {
        let mut out = BytesMut::new();
        encode_request(&mut out, number, request);
        self.write(&out)?;
        let (answered, response) = self.response()?;
        assert_eq!(answered, number, "one request, one response: {response:?}");
        Ok(response)
    }

    /// The next response, with its request id; pushes are put aside.
    pub fn response(&mut self) -> io::Result<(u32, Response)> {
        loop {
            let frame = self.frame()?.ok_or(io::ErrorKind::UnexpectedEof)?;
            match decode_from_server(&frame).expect("a server's frame can be read") {
                FromServer::Response(response) => return Ok((frame.request, response)),
                FromServer::Push(push) => self.pushes.push_back(push),
            }
        }
    }

    pub fn push(&mut self) -> io::Result<Push> {
        if let Some(push) = self.pushes.pop_front() {
            return Ok(push);
        }
        let frame = self.frame()?.ok_or(io::ErrorKind::UnexpectedEof)?;
        match decode_from_server(&frame).expect("a server's frame can be read") {
            FromServer::Push(push) => Ok(push),
            FromServer::Response(response) => panic!("expected a push, found {response:?}"),
        }
    }

    /// The next frame; none at the end of the stream.
    pub fn frame(&mut self) -> io::Result<Option<Frame>> {
        loop {
            if let Some(frame) = self.codec.decode(&mut self.buffer).map_err(io::Error::other)? {
                return Ok(Some(frame));
            }
            let mut some = [0; 4096];
            let read = self.stream.read(&mut some)?;
            if read == 0 {
                return Ok(None);
            }
            self.buffer.extend_from_slice(&some[..read]);
        }
    }

    /// Everything until the other end closes.
    pub fn rest(&mut self) -> Vec<u8> {
        let mut rest = self.buffer.split().to_vec();
        // A reset after the last words is an end like any other.
        let _ = self.stream.read_to_end(&mut rest);
        rest
    }

    pub fn expect_error(&mut self, request: &Request) -> ErrorResponse {
        match self.ask(request).expect("the connection stays open") {
            Response::Error(error) => error,
            other => panic!("expected an error to {request:?}, found {other:?}"),
        }
    }
}

pub fn register(name: &str) -> Request {
    Request::Register { name: name.into(), password: PASSWORD.into(), client: ClientId::NONE, token: [0; 32] }
}

pub fn login(name: &str, password: &str) -> Request {
    Request::Login { name: name.into(), password: password.into(), client: ClientId::NONE, token: [0; 32] }
}

pub fn send(to: &str, text: &str) -> Request {
    Request::Send { to: to.into(), text: text.into() }
}

/// A person whose client knows all servers: it retries with the same number until it is answered, and resumes its
/// session wherever the primary is.
pub struct Person {
    ports: Vec<u16>,
    at: usize,
    name: String,
    client: ClientId,
    token: [u8; 32],
    number: u32,
    connection: Option<Client>,
    /// How often the server asked for a login again; nobody wants that.
    pub expired: u32,
}

impl Person {
    pub fn register(cluster: &Cluster, name: &str) -> Self {
        let client = ClientId(u64::from(rand::random::<u32>()) << 32 | u64::from(rand::random::<u32>()) | 1);
        let mut person = Self {
            ports: cluster.ports.clone(),
            at: 0,
            name: name.to_owned(),
            client,
            token: rand::random(),
            number: 0,
            connection: None,
            expired: 0,
        };
        let (client, token) = (person.client, person.token);
        let request = Request::Register { name: name.into(), password: PASSWORD.into(), client, token };
        match person.command(&request) {
            Response::Done { reply: Reply::Registered { .. }, .. } => person,
            other => panic!("{name} could not register: {other:?}"),
        }
    }

    /// Sends a message; returns when it is acknowledged.
    pub fn send(&mut self, to: &str, text: &str) -> MessageId {
        match self.command(&send(to, text)) {
            Response::Done { reply: Reply::Sent { message, .. }, .. } => message,
            other => panic!("{} could not send {text:?} to {to}: {other:?}", self.name),
        }
    }

    /// All waiting messages, oldest first; they stay.
    pub fn waiting(&mut self) -> Vec<MessageView> {
        let mut all: Vec<MessageView> = Vec::new();
        loop {
            let after = all.last().map_or(0, |message| message.cursor);
            match self.command(&Request::Read { after, limit: 500 }) {
                Response::Messages(page) => {
                    all.extend(page.messages);
                    if !page.more {
                        return all;
                    }
                }
                other => panic!("{} could not read: {other:?}", self.name),
            }
        }
    }

    /// Asks until there is an answer that isn't *try again*.
    pub fn command(&mut self, request: &Request) -> Response {
        self.number += 1;
        let number = self.number;
        let until = Instant::now() + PATIENCE;
        let mut last = String::new();
        while Instant::now() < until {
            match self.attempt(number, request) {
                Ok(Response::Error(error)) if error.code.retriable() => {
                    last = format!("{error:?}");
                    self.turn_to(&error.primary);
                }
                Ok(response) => return response,
                Err(error) => {
                    last = error.to_string();
                    self.turn_to("");
                }
            }
        }
        panic!("{}: no answer to {request:?} within {PATIENCE:?}; the last was: {last}", self.name);
    }

    fn turn_to(&mut self, primary: &str) {
        self.connection = None;
        let named = self.ports.iter().position(|port| primary.ends_with(&format!(":{port}")));
        if named.is_none() {
            thread::sleep(Duration::from_millis(10));
        }
        self.at = named.unwrap_or((self.at + 1) % self.ports.len());
    }

    fn attempt(&mut self, number: u32, request: &Request) -> io::Result<Response> {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => {
                let mut fresh = Client::connect(self.ports[self.at])?;
                fresh.stream.set_read_timeout(Some(Duration::from_secs(2)))?;
                if !matches!(request, Request::Register { .. }) {
                    let resume = Request::Resume { client: self.client, token: self.token };
                    match fresh.ask_as(0, &resume)? {
                        Response::Resumed { .. } => {}
                        Response::Error(error) if error.code.retriable() => {
                            return Ok(Response::Error(error));
                        }
                        Response::Error(error) if error.code == ErrorCode::SessionExpired => {
                            self.expired += 1;
                            return Ok(Response::Error(error));
                        }
                        other => panic!("{} could not resume: {other:?}", self.name),
                    }
                }
                fresh
            }
        };
        let response = connection.ask_as(number, request)?;
        self.connection = Some(connection);
        Ok(response)
    }
}
