//! Clients in sessions that exist, which send as fast as they are answered: to everybody in turn, so that no mailbox is
//! ever full.

use crate::servers::Servers;
use crate::world::account;
use lastword::client::session_store::StoredSession;
use lastword::client::{Answer, Arrival, Pipeline};
use lastword::message::{Request, Response};
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

const TIMEOUT: Duration = Duration::from_secs(60);
const TEXT_BYTES: usize = 100;
/// How far apart those are who get messages one after the other.
const STRIDE: u64 = 7919;

/// When each message was begun, and how long it took.
type Took = Arc<Mutex<Vec<(Instant, Duration)>>>;

/// Clients that send until they are stopped.
pub(crate) struct Load {
    took: Took,
    stop: CancellationToken,
    /// They give the number of their next request.
    clients: JoinSet<u32>,
}

impl Load {
    /// Some of `all` accounts have `window` messages under way each; `first` is the number of their next request.
    pub(crate) fn start(servers: &Servers, senders: Range<u64>, all: u64, window: usize, first: u32) -> Self {
        let (took, stop, mut clients) = (Took::default(), CancellationToken::new(), JoinSet::new());
        for number in senders {
            let (name, client, token) = account(number);
            let session = StoredSession { name, client, token, primary: String::new() };
            let pipeline = Pipeline::new(servers.addresses.clone(), session, first, TIMEOUT);
            let sender = Sender { pipeline, to: number, all, window, took: Arc::clone(&took) };
            clients.spawn(sender.run(stop.clone()));
        }
        Self { took, stop, clients }
    }

    /// The latency that 99 of 100 messages begun in this time kept below; what has no answer yet is not among them.
    pub(crate) fn p99(&self, from: Instant, until: Instant) -> Duration {
        let took = self.took.lock().unwrap();
        let mut took: Vec<Duration> =
            took.iter().filter(|(begun, _)| (from..until).contains(begun)).map(|(_, took)| *took).collect();
        took.sort_unstable();
        took.get(took.len() * 99 / 100).copied().unwrap_or(until - from)
    }

    /// Gives the number that is the next for each of the accounts.
    pub(crate) async fn stop(self) -> u32 {
        self.stop.cancel();
        self.clients.join_all().await.into_iter().max().expect("there are clients")
    }
}

struct Sender {
    pipeline: Pipeline,
    /// Who gets the next message.
    to: u64,
    all: u64,
    window: usize,
    took: Took,
}

impl Sender {
    async fn run(mut self, stop: CancellationToken) -> u32 {
        let (mut arrivals, mut last) = (Vec::new(), 0);
        loop {
            let now = Instant::now();
            while !stop.is_cancelled() && self.pipeline.in_flight() < self.window && self.pipeline.has_room()
            {
                self.to = (self.to + STRIDE) % self.all;
                let send = Request::Send { to: account(self.to).0, text: "x".repeat(TEXT_BYTES) };
                last = self.pipeline.begin(send, now);
            }
            if self.pipeline.in_flight() == 0 {
                return last + 1;
            }
            self.pipeline.next(&mut arrivals).await.unwrap();
            for arrival in arrivals.drain(..) {
                if let Arrival::Answer(answer) = arrival {
                    self.note(&answer);
                }
            }
        }
    }

    fn note(&self, answer: &Answer) {
        let Response::Done { .. } = answer.response else {
            panic!("found {:?}, expected a message that is sent", answer.response);
        };
        self.took.lock().unwrap().push((answer.begun, answer.begun.elapsed()));
    }
}
