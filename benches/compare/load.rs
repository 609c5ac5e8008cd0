//! The load on the floor and on peers: the same for all, one task a connection, as `client bench` puts it on lastword.

use crate::floor::FRAME_BYTES;
use bytes::{Buf as _, BufMut as _, BytesMut};
use hdrhistogram::Histogram;
use std::collections::VecDeque;
use std::fmt;
use std::io::Write as _;
use std::str::FromStr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

/// Bytes of a text.
pub(crate) const TEXT_BYTES: usize = 100;
const TEXT: [u8; TEXT_BYTES] = [b'm'; TEXT_BYTES];
/// How long answers may take that are still out at the end.
const PATIENCE: Duration = Duration::from_secs(10);

/// So many clients with so many requests under way each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Point {
    /// Send and deliver, instead of send alone.
    pub(crate) delivers: bool,
    pub(crate) window: u16,
    pub(crate) clients: u16,
}

impl FromStr for Point {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("found {text:?}, expected CLIENTS, CLIENTSxWINDOW or deliver:CLIENTS…");
        let (delivers, numbers) = match text.strip_prefix("deliver:") {
            Some(numbers) => (true, numbers),
            None => (false, text),
        };
        let (clients, window) = numbers.split_once('x').unwrap_or((numbers, "1"));
        let number = |text: &str| text.parse().ok().filter(|&number| number > 0).ok_or_else(wrong);
        Ok(Self { delivers, clients: number(clients)?, window: number(window)? })
    }
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { delivers, clients, window } = self;
        write!(f, "{}{clients} x {window}", if *delivers { "deliver " } else { "" })
    }
}

/// What one measurement gave.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Sample {
    pub(crate) acked_per_second: f64,
    pub(crate) p99_us: f64,
    /// Processor time of all three servers, per acknowledged message.
    pub(crate) cpu_us: f64,
}

/// How a system is spoken to.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Protocol {
    /// Frames that come back.
    Floor,
    /// `XADD`, and `WAIT 2` behind each window of them: it blocks its connection, so one for each message would make
    /// them wait for each other.
    Redis,
    /// Publishes, acknowledged by messages to an inbox.
    Nats,
}

/// The name of the stream and the queue.
pub(crate) const STREAM: &str = "chat";

/// What all connections count.
struct Count {
    end: Instant,
    acked: u64,
    latency: Histogram<u64>,
}

/// Puts load on a server for some time; gives acknowledgements a second and the 99th percentile in microseconds.
pub(crate) async fn run(protocol: Protocol, port: u16, point: Point, seconds: u32) -> (f64, f64) {
    let mut connections = Vec::new();
    for index in 0..point.clients {
        connections.push(Connection::open(protocol, port, index, point.window).await);
    }
    let end = Instant::now() + Duration::from_secs(u64::from(seconds));
    let latency = Histogram::new_with_bounds(1, 60_000_000, 3).unwrap();
    let count = Arc::new(Mutex::new(Count { end, acked: 0, latency }));
    let mut running: JoinSet<()> =
        connections.into_iter().map(|connection| connection.run(Arc::clone(&count))).collect();
    let ended = tokio::time::timeout_at((end + PATIENCE).into(), async {
        while let Some(joined) = running.join_next().await {
            joined.expect("a connection runs to its end");
        }
    });
    ended.await.expect("everything is answered within seconds");
    let count = count.lock().unwrap();
    (count.acked as f64 / f64::from(seconds), count.latency.value_at_quantile(0.99) as f64)
}

struct Connection {
    stream: TcpStream,
    protocol: Protocol,
    inbox: String,
    /// Requests under way at most, each of `weight` messages.
    window: usize,
    weight: u64,
    incoming: BytesMut,
    outgoing: BytesMut,
    /// Answers to the present batch of Redis that have come.
    answers: u64,
    first: u64,
    begun: VecDeque<Option<Instant>>,
}

impl Connection {
    async fn open(protocol: Protocol, port: u16, index: u16, window: u16) -> Self {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let inbox = format!("_INBOX.compare{index}");
        if let Protocol::Nats = protocol {
            let hello = format!("CONNECT {{\"verbose\":false,\"headers\":true}}\r\nSUB {inbox}.* 1\r\n");
            stream.write_all(hello.as_bytes()).await.unwrap();
        }
        let batched = matches!(protocol, Protocol::Redis);
        let (window, weight) = if batched { (1, window) } else { (window, 1) };
        Self {
            stream,
            protocol,
            inbox,
            window: usize::from(window),
            weight: u64::from(weight),
            incoming: BytesMut::new(),
            outgoing: BytesMut::new(),
            answers: 0,
            first: 0,
            begun: VecDeque::new(),
        }
    }

    async fn run(mut self, count: Arc<Mutex<Count>>) {
        let end = count.lock().unwrap().end;
        let mut answered = Vec::new();
        let mut under_way = 0;
        loop {
            let now = Instant::now();
            while under_way < self.window && now < end {
                self.encode(self.first + self.begun.len() as u64);
                self.begun.push_back(Some(now));
                under_way += 1;
            }
            if under_way == 0 {
                return;
            }
            self.stream.write_all_buf(&mut self.outgoing).await.unwrap();
            self.incoming.reserve(16 * 1024);
            let read = self.stream.read_buf(&mut self.incoming).await.unwrap();
            assert!(read > 0, "the server closed the connection");
            while let Some(number) = self.decode() {
                answered.push(number);
            }
            let now = Instant::now();
            let mut count = count.lock().unwrap();
            for number in answered.drain(..) {
                let Some(begun) = self.take_begun(number) else { continue };
                under_way -= 1;
                if now <= end {
                    count.acked += self.weight;
                    let micros = u64::try_from((now - begun).as_micros()).unwrap();
                    count.latency.saturating_record(micros);
                }
            }
        }
    }

    fn take_begun(&mut self, number: u64) -> Option<Instant> {
        let begun = self.begun.get_mut(usize::try_from(number.checked_sub(self.first)?).ok()?)?.take();
        while let Some(None) = self.begun.front() {
            self.begun.pop_front();
            self.first += 1;
        }
        begun
    }

    fn encode(&mut self, number: u64) {
        let out = &mut self.outgoing;
        match self.protocol {
            Protocol::Floor => {
                out.put_u64(number);
                out.put_slice(&TEXT);
            }
            Protocol::Redis => {
                for _ in 0..self.weight {
                    out.put_slice(b"*5\r\n$4\r\nXADD\r\n$4\r\nchat\r\n$1\r\n*\r\n$1\r\nd\r\n$100\r\n");
                    out.put_slice(&TEXT);
                    out.put_slice(b"\r\n");
                }
                out.put_slice(b"*3\r\n$4\r\nWAIT\r\n$1\r\n2\r\n$4\r\n5000\r\n");
            }
            Protocol::Nats => {
                write!(out.writer(), "PUB {STREAM} {}.{number} {TEXT_BYTES}\r\n", self.inbox).unwrap();
                out.put_slice(&TEXT);
                out.put_slice(b"\r\n");
            }
        }
    }

    /// The number of the next request that is answered; none if no whole answer is there.
    fn decode(&mut self) -> Option<u64> {
        match self.protocol {
            Protocol::Floor => {
                (self.incoming.len() >= FRAME_BYTES).then(|| self.incoming.split_to(FRAME_BYTES).get_u64())
            }
            Protocol::Redis => self.decode_redis(),
            Protocol::Nats => self.decode_nats(),
        }
    }

    fn decode_redis(&mut self) -> Option<u64> {
        loop {
            let line = self.line()?;
            let number = std::str::from_utf8(&line[1..]).ok().and_then(|text| text.parse::<u64>().ok());
            let (bytes, last) = match (line[0], number) {
                (b'$', Some(length)) => (line.len() + 2 + usize::try_from(length).unwrap() + 2, false),
                (b':', Some(2)) => (line.len() + 2, true),
                _ => panic!("Redis answered {}", String::from_utf8_lossy(line)),
            };
            if self.incoming.len() < bytes {
                return None;
            }
            self.incoming.advance(bytes);
            self.answers += 1;
            if last {
                assert_eq!(std::mem::take(&mut self.answers), self.weight + 1, "one answer for each command");
                return Some(self.first);
            }
        }
    }

    fn decode_nats(&mut self) -> Option<u64> {
        loop {
            let line = std::str::from_utf8(self.line()?).expect("NATS speaks UTF-8");
            let length = line.len() + 2;
            let words: Vec<&str> = line.split_ascii_whitespace().collect();
            match words[..] {
                ["MSG", subject, _, bytes] => {
                    let number = subject.rsplit('.').next().and_then(|number| number.parse().ok());
                    let end = length + bytes.parse::<usize>().expect("a length") + 2;
                    if self.incoming.len() < end {
                        return None;
                    }
                    let message = self.incoming.split_to(end);
                    let said = String::from_utf8_lossy(&message[length..]);
                    assert!(said.contains("\"seq\":"), "NATS answered {said}");
                    return number;
                }
                ["PING"] => {
                    self.outgoing.put_slice(b"PONG\r\n");
                    self.incoming.advance(length);
                }
                ["INFO", ..] | ["PONG"] => self.incoming.advance(length),
                _ => panic!("NATS said {line}"),
            }
        }
    }

    /// The line that is next, without its end; none if it is not whole.
    fn line(&self) -> Option<&[u8]> {
        let end = self.incoming.iter().position(|&byte| byte == b'\n')?;
        Some(&self.incoming[..end.checked_sub(1).expect("a line ends with CR and LF")])
    }
}
