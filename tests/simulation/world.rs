//! The world: servers, clients, network and faults on one virtual clock, all from one seed.

use std::time::Duration;

use lastword::message::{PeerMessage, Push, Read, Request, Response};
use lastword::prng::Prng;
use lastword::replica::{HashId, HashJob, ReadId};
use lastword::time::Instant;
use lastword::types::ConnectionId;

use crate::check::Checks;
use crate::client::{Client, Wake};
use crate::faults::{Fault, FaultCounts};
use crate::nemesis::Mishap;
use crate::network::{Attempt, Network};
use crate::oracle::Oracle;
use crate::queue::Queue;
use crate::server::Server;
use crate::swarm::Swarm;
use crate::trace::Trace;

/// Names one run of one process, in the whole world; 0 is nobody.
pub(crate) type Life = u64;

/// So many steps at one moment are a loop.
const STEPS_AT_ONCE_MAX: u32 = 100_000;

/// What happens at some moment.
#[derive(Debug)]
pub(crate) enum Action {
    /// A process's timer.
    Timer { server: usize, life: Life, due: Instant },
    /// A peer's message arrives.
    Peer { from: usize, to: usize, to_life: Life, generation: u64, message: Box<PeerMessage> },
    /// A connection attempt reaches its target.
    Connect { owner: usize, owner_life: Life, peer: usize, number: u64, begun: Instant },
    /// The outcome of a connection attempt is known to who made it.
    Connected { owner: usize, owner_life: Life, peer: usize, number: u64, attempt: Attempt },
    /// The end of an established connection is noticed by who made it.
    LinkClosed { owner: usize, owner_life: Life, peer: usize, generation: u64 },
    /// It is time to connect again.
    Reconnect { owner: usize, owner_life: Life, peer: usize },
    /// The sync under way is done.
    Synced { server: usize, life: Life },
    /// A read is done.
    ReadDone { server: usize, life: Life, id: ReadId, read: Read },
    /// A password job is done.
    Hashed { server: usize, life: Life, id: HashId, job: HashJob },
    /// The checkpoint step under way is done.
    CheckpointDone { server: usize, life: Life },
    /// A client's request arrives.
    Request { server: usize, life: Life, connection: ConnectionId, request: u32, body: Box<Request> },
    /// A client's connection has ended.
    Disconnected { server: usize, life: Life, connection: ConnectionId },
    /// A client's connection attempt arrives.
    ClientConnect { client: usize, epoch: u64, server: usize },
    /// A client is connected.
    ClientConnected { client: usize, epoch: u64, server: usize, life: Life, connection: ConnectionId },
    /// A client's connection attempt was refused.
    ClientRefused { client: usize, epoch: u64 },
    /// A client's connection has ended.
    ClientClosed { client: usize, epoch: u64 },
    /// A reply arrives at a client.
    Response { client: usize, epoch: u64, request: u32, response: Box<Response> },
    /// Something that a server says unasked arrives at a client.
    Push { client: usize, epoch: u64, push: Box<Push> },
    /// A client goes on.
    ClientWake { client: usize, token: u64, wake: Wake },
    /// The nemesis picks a fault.
    Nemesis,
    /// A fault begins or ends.
    Mishap(Mishap),
}

/// Everything.
#[derive(Debug)]
pub(crate) struct World {
    /// What all randomness comes from.
    pub seed: u64,
    /// The world's clock.
    pub now: Instant,
    /// What is drawn for latencies and losses.
    pub prng: Prng,
    /// What is drawn for faults.
    pub nemesis: Prng,
    /// What this seed switches on.
    pub swarm: Swarm,
    /// What is going to happen.
    pub queue: Queue<Action>,
    /// The servers, in the order of the cluster list.
    pub servers: Vec<Server>,
    /// The connections between servers.
    pub network: Network,
    /// The clients.
    pub clients: Vec<Client>,
    /// What clients know to be true.
    pub oracle: Oracle,
    /// What must hold after every step.
    pub checks: Checks,
    /// What has gone wrong so far.
    pub faults: FaultCounts,
    /// What happened.
    pub trace: Trace,
    /// Whether faults still happen: no loss, no cut, no dropped reply after healing.
    pub healed: bool,
    /// No partition begins before this moment.
    pub partition_after: Instant,
    /// So many replies are dropped next, with their connections: a scenario's way to lose one.
    pub drop_replies: u32,
    /// Several servers may lead at once: logs may part until they meet again.
    pub split: bool,
    lives: Life,
    steps_at_once: u32,
}

/// Writes a line of the trace, if lines are kept; the text is only made then.
macro_rules! trace {
    ($world:expr, $($format:tt)*) => {
        if $world.trace.on {
            let line = format!($($format)*);
            let now = $world.now;
            $world.trace.line(now, &line);
        }
    };
}
pub(crate) use trace;

impl World {
    /// A world in which nothing runs yet. `print` shows each step on standard error.
    pub(crate) fn new(seed: u64, swarm: Swarm, trace: Trace) -> Self {
        let mut prng = Prng::new(seed);
        let nemesis = prng.fork();
        let addresses: Vec<String> = (1..=swarm.servers).map(|id| format!("127.0.0.1:{id}538")).collect();
        let servers = (0..swarm.servers).map(|at| Server::new(at, &addresses, &swarm, &mut prng)).collect();
        let mut world = Self {
            seed,
            now: Instant::ZERO,
            network: Network::new(swarm.servers),
            servers,
            clients: Vec::new(),
            oracle: Oracle::default(),
            checks: Checks::new(swarm.servers),
            faults: FaultCounts::default(),
            trace,
            queue: Queue::default(),
            healed: false,
            partition_after: Instant::ZERO,
            drop_replies: 0,
            split: false,
            prng,
            nemesis,
            swarm,
            lives: 0,
            steps_at_once: 0,
        };
        if world.swarm.skew {
            world.faults.count(Fault::ClockSkew);
        }
        for _ in 0..world.swarm.clients {
            world.add_client();
        }
        world
    }

    /// A life that nobody has had.
    pub(crate) fn next_life(&mut self) -> Life {
        self.lives += 1;
        self.lives
    }

    /// Schedules something.
    pub(crate) fn after(&mut self, delay: Duration, action: Action) {
        self.queue.push(self.now + delay, action);
    }

    /// A duration between two bounds.
    pub(crate) fn between(&mut self, low: Duration, high: Duration) -> Duration {
        let low = u64::try_from(low.as_nanos()).expect("short");
        let high = u64::try_from(high.as_nanos()).expect("short").max(low);
        Duration::from_nanos(low + self.prng.below(high - low + 1))
    }

    /// One message's way: mostly near the lower bound, now and then anything up to the upper one.
    pub(crate) fn delay(&mut self) -> Duration {
        let high = self.swarm.delay_max;
        let high = if self.prng.chance(3, 4) { self.swarm.delay_min + high / 8 } else { high };
        self.between(self.swarm.delay_min, high)
    }

    /// True with a probability of `permille` in a thousand, until the world is healed.
    pub(crate) fn mischief(&mut self, permille: u64) -> bool {
        permille > 0 && !self.healed && self.prng.chance(permille, 1000)
    }

    /// Lets the world go on for so long.
    pub(crate) fn run_for(&mut self, duration: Duration) {
        let until = self.now + duration;
        while self.step(until) {}
        self.now = until;
    }

    /// Lets the world go on until the condition holds, and says whether it does within `max`. The condition is
    /// looked at every ten milliseconds.
    pub(crate) fn run_until(&mut self, max: Duration, mut condition: impl FnMut(&mut Self) -> bool) -> bool {
        let until = self.now + max;
        loop {
            if condition(self) {
                return true;
            }
            if self.now >= until {
                return false;
            }
            self.run_for(Duration::from_millis(10));
        }
    }

    fn step(&mut self, until: Instant) -> bool {
        let Some((at, action)) = self.queue.pop(until) else { return false };
        self.steps_at_once = if at == self.now { self.steps_at_once + 1 } else { 0 };
        assert!(self.steps_at_once < STEPS_AT_ONCE_MAX, "time stands still: always due at once: {action:?}");
        self.now = at;
        self.trace.step(at);
        self.dispatch(action);
        true
    }

    /// Which process an action is for, if it is for one that may be paused or gone.
    fn process_of(action: &Action) -> Option<(usize, Life)> {
        match action {
            Action::Timer { server, life, .. }
            | Action::Synced { server, life }
            | Action::ReadDone { server, life, .. }
            | Action::Hashed { server, life, .. }
            | Action::CheckpointDone { server, life }
            | Action::Request { server, life, .. }
            | Action::Disconnected { server, life, .. } => Some((*server, *life)),
            Action::Peer { to, to_life, .. } => Some((*to, *to_life)),
            Action::Connected { owner, owner_life, .. }
            | Action::LinkClosed { owner, owner_life, .. }
            | Action::Reconnect { owner, owner_life, .. } => Some((*owner, *owner_life)),
            _ => None,
        }
    }

    fn dispatch(&mut self, action: Action) {
        if let Some((server, life)) = Self::process_of(&action) {
            if self.servers[server].life() != Some(life) {
                return;
            }
            if self.servers[server].paused {
                self.servers[server].held.push(action);
                return;
            }
        }
        match action {
            Action::Timer { server, due, .. } => self.on_timer(server, due),
            Action::Peer { from, to, generation, message, .. } => {
                self.on_peer_message(from, to, generation, *message);
            }
            Action::Connect { owner, owner_life, peer, number, begun } => {
                self.on_connect(owner, owner_life, peer, number, begun);
            }
            Action::Connected { owner, peer, number, attempt, .. } => {
                self.on_connected(owner, peer, number, attempt);
            }
            Action::LinkClosed { owner, peer, generation, .. } => {
                self.on_link_closed(owner, peer, generation)
            }
            Action::Reconnect { owner, peer, .. } => self.on_reconnect(owner, peer),
            Action::Synced { server, .. } => self.on_synced(server),
            Action::ReadDone { server, id, read, .. } => self.on_read_done(server, id, &read),
            Action::Hashed { server, id, job, .. } => self.on_hashed(server, id, job),
            Action::CheckpointDone { server, .. } => self.on_checkpoint_done(server),
            Action::Request { server, connection, request, body, .. } => {
                self.on_request(server, connection, request, *body);
            }
            Action::Disconnected { server, connection, .. } => self.on_disconnected(server, connection),
            Action::ClientConnect { client, epoch, server } => self.on_client_connect(client, epoch, server),
            Action::ClientConnected { client, epoch, server, life, connection } => {
                self.on_client_connected(client, epoch, server, life, connection);
            }
            Action::ClientRefused { client, epoch } => self.on_client_refused(client, epoch),
            Action::ClientClosed { client, epoch } => self.on_client_closed(client, epoch),
            Action::Response { client, epoch, request, response } => {
                self.on_response(client, epoch, request, *response);
            }
            Action::Push { client, epoch, push } => self.on_push(client, epoch, &push),
            Action::ClientWake { client, token, wake } => self.on_client_wake(client, token, wake),
            Action::Nemesis => self.on_nemesis(),
            Action::Mishap(mishap) => self.on_mishap(mishap),
        }
    }
}
