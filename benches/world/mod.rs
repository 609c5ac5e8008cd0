//! Servers without their shell: cores, codec and storage in one thread, on a clock that only counts. What travels
//! between them and to clients is encoded and decoded as on links. The same run is the same instructions.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::BytesMut;
use lastword::config::FRAME_PEER_BYTES_MAX;
use lastword::message::{CheckpointResult, CheckpointStep, Read, ReadResult, Request, Response};
use lastword::replica::{
    Config, Effect, Event, Exit, FirstRole, HashId, HashJob, Hashed, LinkState, Replica,
};
use lastword::storage::{Checkpoints, CommitLog, Disk, LogReader, Opened};
use lastword::time::Instant;
use lastword::types::{ClientId, ConnectionId, ServerId, WriteId};
use lastword::wire::client::{decode_request, encode_request, encode_response};
use lastword::wire::codec::FrameCodec;
use lastword::wire::peer;
use tokio_util::codec::Decoder as _;

/// How much time passes with each turn.
const TURN: Duration = Duration::from_millis(1);
/// After so many turns without what is waited for, it never comes.
const PATIENCE_TURNS: u32 = 60_000;
/// When the world begins: milliseconds since 1970.
const BEGIN_UNIX_MS: u64 = 1_800_000_000_000;
/// What every account's password is taken for.
pub(crate) const PASSWORD: &str = "correct horse battery";

/// The first servers of a cluster; those that are missing have their connections refused.
pub(crate) struct World<D: Disk> {
    servers: Vec<Server<D>>,
    now: Instant,
    turns: u64,
    /// The hash of [`PASSWORD`].
    hash: String,
    /// Frames on their way: from, to, bytes.
    links: VecDeque<(usize, usize, BytesMut)>,
    /// What the clients were answered, as it travels.
    answers: BytesMut,
    /// How many commands were done.
    pub(crate) done: u64,
}

struct Server<D: Disk> {
    replica: Replica,
    log: CommitLog<D>,
    reader: LogReader<D>,
    checkpoints: Checkpoints<D>,
    unsynced: Option<WriteId>,
    /// What the disk and the password jobs have done meanwhile.
    events: Vec<Event>,
    exit: Option<Exit>,
}

/// Whom a client speaks as: the account `uNUMBER`, the session and the token that go with it.
pub(crate) fn account(number: u64) -> (String, ClientId, [u8; 32]) {
    let mut token = [1; 32];
    token[..8].copy_from_slice(&number.to_be_bytes());
    // Ids of clients are drawn at random: neighbours are not neighbours in any order.
    (format!("u{number}"), ClientId((number + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)), token)
}

impl<D: Disk> World<D> {
    /// Starts the servers, and waits until the first one leads all of them.
    pub(crate) fn start(addresses: &[String], disks: Vec<D>, hash: String, checkpoint_bytes: u64) -> Self {
        let servers = disks.into_iter().enumerate().map(|(at, disk)| {
            let config = Config {
                me: server_id(at),
                servers: addresses.to_vec(),
                first_role: if at == 0 { FirstRole::Primary } else { FirstRole::Secondary },
                known_cluster: None,
                min_copies: 1,
                cold_wait: None,
                evidence: true,
                checkpoint_log_bytes_min: checkpoint_bytes,
            };
            Server::start(disk, config, at as u64)
        });
        let mut world = Self {
            servers: servers.collect(),
            now: Instant::ZERO,
            turns: 0,
            hash,
            links: VecDeque::new(),
            answers: BytesMut::new(),
            done: 0,
        };
        for at in 0..world.servers.len() {
            for peer in (0..addresses.len()).filter(|peer| *peer != at) {
                let refused = LinkState::Refused { begun: Instant::ZERO };
                let state = if peer < world.servers.len() { LinkState::Up } else { refused };
                world.handle(at, Event::Link { peer: server_id(peer), state });
            }
        }
        let all = world.servers.len();
        world.wait_for("a primary of all servers", |world| {
            let leads = world.servers[0].replica.is_serving();
            leads && world.servers[0].replica.installed_view().members.len() == all
        });
        world
    }

    fn wait_for(&mut self, expected: &str, reached: impl Fn(&Self) -> bool) {
        for _ in 0..PATIENCE_TURNS {
            if reached(self) {
                return;
            }
            self.turn();
        }
        panic!("found {:?} for ever, expected {expected}", self.servers[0].replica.status(self.now));
    }

    /// A client says something to the primary; it is taken up in the present turn.
    pub(crate) fn say(&mut self, connection: ConnectionId, frames: &mut BytesMut) {
        let mut codec = FrameCodec::new(FRAME_PEER_BYTES_MAX);
        while let Some(frame) = codec.decode(frames).unwrap() {
            let unix_ms = BEGIN_UNIX_MS + self.turns;
            let body = decode_request(&frame).unwrap();
            self.handle(0, Event::Request { connection, request: frame.request, body, unix_ms });
        }
    }

    /// Registers accounts, each on a connection of its own that has the account's number.
    pub(crate) fn register(&mut self, numbers: std::ops::Range<u64>) {
        let mut frames = BytesMut::new();
        for number in numbers {
            let (name, client, token) = account(number);
            let request = Request::Register { name, password: PASSWORD.to_owned(), client, token };
            encode_request(&mut frames, 1, &request);
            self.say(ConnectionId(number), &mut frames);
        }
        self.turn();
    }

    fn handle(&mut self, at: usize, event: Event) {
        self.servers[at].replica.handle_event(self.now, event);
    }

    /// Lets everything run until nothing moves any more, and a moment pass.
    pub(crate) fn turn(&mut self) {
        (0..self.servers.len()).for_each(|at| self.drain(at));
        while let Some((from, to, mut frames)) = self.links.pop_front() {
            let mut codec = FrameCodec::new(FRAME_PEER_BYTES_MAX);
            while let Some(frame) = codec.decode(&mut frames).unwrap() {
                let message = peer::decode(&frame).unwrap();
                self.handle(to, Event::Message { from: server_id(from), message });
            }
            self.drain(to);
        }
        self.answers.clear();
        self.now = self.now + TURN;
        self.turns += 1;
        for at in 0..self.servers.len() {
            if self.servers[at].replica.poll_timeout().is_some_and(|due| due <= self.now) {
                self.servers[at].replica.handle_timeout(self.now);
            }
        }
    }

    /// What `server/driver.rs` and `server/disk.rs` do: one drain for all that came together, and one sync for its writes.
    fn drain(&mut self, at: usize) {
        loop {
            while let Some(effect) = self.servers[at].replica.poll_effect() {
                self.perform(at, effect);
            }
            let server = &mut self.servers[at];
            if let Some(through) = server.unsynced.take() {
                server.log.sync().unwrap();
                server.events.push(Event::Synced { through });
            }
            if server.events.is_empty() {
                return;
            }
            for event in std::mem::take(&mut server.events) {
                self.handle(at, event);
            }
        }
    }

    fn perform(&mut self, at: usize, effect: Effect) {
        match effect {
            Effect::Send { to, message } => {
                let to = usize::from(to.0) - 1;
                if to < self.servers.len() {
                    let mut frames = BytesMut::new();
                    peer::encode(&mut frames, &message);
                    self.links.push_back((at, to, frames));
                }
            }
            Effect::Respond { request, response, .. } => {
                match &response {
                    Response::Done { .. } => self.done += 1,
                    Response::Resumed { .. } => {}
                    other => panic!("found {other:?}, expected a request that is done"),
                }
                encode_response(&mut self.answers, request, &response);
            }
            Effect::Probe { peer } if usize::from(peer.0) > self.servers.len() => {
                let state = LinkState::Refused { begun: self.now };
                self.servers[at].events.push(Event::Link { peer, state });
            }
            Effect::Hash { id, job, .. } => self.hash(at, id, &job),
            Effect::Exit(exit) => self.servers[at].exit = Some(exit),
            Effect::Close { .. }
            | Effect::Push { .. }
            | Effect::Probe { .. }
            | Effect::RecordCluster(_)
            | Effect::Notice(_) => {}
            Effect::ResetLinks | Effect::Repair { .. } => panic!("found {effect:?}, and nothing is broken"),
            of_the_disk => self.servers[at].perform(of_the_disk),
        }
    }

    fn hash(&mut self, at: usize, id: HashId, job: &HashJob) {
        let result = match job {
            HashJob::New { password } | HashJob::Verify { password, .. } if password != PASSWORD => {
                Hashed::Failed(format!("found the password {password:?}, expected {PASSWORD:?}"))
            }
            HashJob::New { .. } => Hashed::New(self.hash.clone()),
            HashJob::Verify { .. } => Hashed::Verified(true),
        };
        self.servers[at].events.push(Event::Hashed { id, result });
    }

    /// Stops all servers in order.
    #[allow(dead_code, reason = "not every bench does")]
    pub(crate) fn stop(mut self) {
        for at in 0..self.servers.len() {
            self.handle(at, Event::Stop);
        }
        self.wait_for("the end of all servers", |world| world.servers.iter().all(|s| s.exit.is_some()));
        for server in &self.servers {
            assert_eq!(server.exit, Some(Exit::Stopped));
        }
    }
}

impl<D: Disk> Server<D> {
    fn start(disk: D, config: Config, seed: u64) -> Self {
        let opened = lastword::storage::open(disk, config.me, &config.servers, &mut |_| {});
        let Opened { recovered, log, reader, checkpoints, .. } = opened.unwrap();
        let replica = Replica::new(config, recovered, Instant::ZERO, seed);
        Self { replica, log, reader, checkpoints, unsynced: None, events: Vec::new(), exit: None }
    }

    fn perform(&mut self, effect: Effect) {
        match effect {
            Effect::Write { id, write } => {
                self.log.write(&write).unwrap();
                self.unsynced = Some(id);
            }
            Effect::Cut { through } => self.log.cut(through).unwrap(),
            Effect::Read { id, read } => {
                let result = match read {
                    Read::Entries { first, through } => {
                        let (previous, entries) = self.reader.read(first, through).unwrap();
                        ReadResult::Entries { previous, entries }
                    }
                    Read::Checkpoint { index, offset } => self.checkpoints.read(index, offset),
                    Read::Diverged(place) => panic!("found a read of {place:?}, and nothing has diverged"),
                };
                self.events.push(Event::ReadDone { id, result });
            }
            Effect::Checkpoint(step) => self.checkpoint(step),
            other => panic!("found {other:?}, expected something for the disk"),
        }
    }

    fn checkpoint(&mut self, step: CheckpointStep) {
        let result = self.checkpoints.step(step);
        if let CheckpointResult::Installed(installed) = &result {
            self.log.restart_after(installed).unwrap();
        }
        self.events.push(Event::CheckpointDone(result));
    }
}

fn server_id(at: usize) -> ServerId {
    ServerId(u8::try_from(at + 1).unwrap())
}
