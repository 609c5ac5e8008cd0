//! Links between servers: each server keeps one outgoing connection to every other, and messages travel on the
//! sender's connection. A connection ends with either process; paths may stall or be blocked in one direction.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::BytesMut;
use lastword::config::SUSPICION;
use lastword::message::PeerMessage;
use lastword::replica::{Event, LinkState};
use lastword::time::Instant;
use lastword::types::ServerId;

use crate::faults::Fault;
use crate::server::server_id;
use crate::world::{Action, Life, World, trace};

/// How a connection attempt ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Attempt {
    /// Connected to this process.
    Up { peer_life: Life },
    /// The host answers, and no process listens.
    Refused {
        /// When it was begun, by the clock of the server that did.
        begun: Instant,
    },
    /// No answer in time.
    Silent,
}

/// One server's outgoing connection to another.
#[derive(Clone, Copy, Debug, Default)]
struct Link {
    /// The process it ends at; 0: not connected.
    peer_life: Life,
    /// The attempt that established it.
    generation: u64,
    /// How many attempts were begun.
    attempts: u64,
    /// The newest attempt with an outcome; outcomes of older ones are void.
    resolved: u64,
    /// Messages of older connections than this are lost.
    lost_below: u64,
    /// When the last message in order arrives.
    last_arrival: Instant,
    /// When the last outcome is reported: reports keep their order.
    last_report: Instant,
}

impl Link {
    /// Not connected, and outcomes of attempts under way are void.
    fn forget(&mut self) {
        self.peer_life = 0;
        self.resolved = self.attempts;
    }

    /// What was sent on the connection so far and has not arrived is lost; the next connection begins afresh.
    fn lose_messages(&mut self) {
        self.lost_below = self.generation + 1;
    }
}

/// One direction between two hosts.
#[derive(Clone, Copy, Debug, Default)]
struct Path {
    /// Nothing arrives before this moment: what is sent meanwhile waits, as TCP sends again.
    stalled_until: Instant,
    /// What is sent before this moment takes so much longer.
    slow_until: Instant,
    longer: Duration,
    /// Nothing arrives at all, and no connection comes about.
    blocked: bool,
    /// Connections come about, and nothing that is said on them arrives.
    mute: bool,
}

impl Path {
    /// From when on what is sent now is on its way.
    fn opens(&self, now: Instant) -> Instant {
        self.stalled_until.max(now + self.longer(now))
    }

    /// How much longer what is sent now takes.
    fn longer(&self, now: Instant) -> Duration {
        if now < self.slow_until { self.longer } else { Duration::ZERO }
    }
}

/// What passes between a client and a server.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct ClientPath {
    /// The server does not hear the client before this moment.
    pub deaf_until: Instant,
    /// The client does not hear the server before this moment.
    pub mute_until: Instant,
}

impl ClientPath {
    /// Whether the server does not hear the client now.
    pub(crate) fn is_deaf(&self, now: Instant) -> bool {
        now < self.deaf_until
    }

    /// Whether the client does not hear the server now.
    pub(crate) fn is_mute(&self, now: Instant) -> bool {
        now < self.mute_until
    }
}

/// What becomes of a message that a scenario has an eye on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It takes its way.
    Sent,
    /// It never arrives.
    Lost,
    /// It arrives when [`World::release_held`] says so.
    Held,
}

type Decide = dyn Fn(usize, usize, &PeerMessage) -> Fate;

/// Decides about each message between two servers, by sender and receiver.
pub(crate) struct Censor(Box<Decide>);

impl std::fmt::Debug for Censor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "a censor")
    }
}

/// All links and paths.
#[derive(Debug)]
pub(crate) struct Network {
    servers: usize,
    links: Vec<Link>,
    paths: Vec<Path>,
    /// Those that are not as usual.
    clients: BTreeMap<(usize, usize), ClientPath>,
    censor: Option<Censor>,
    /// Messages that the censor holds.
    held: Vec<Action>,
}

impl Network {
    /// No connection yet; all paths are open.
    pub(crate) fn new(servers: usize) -> Self {
        Self {
            servers,
            links: vec![Link::default(); servers * servers],
            paths: vec![Path::default(); servers * servers],
            clients: BTreeMap::new(),
            censor: None,
            held: Vec::new(),
        }
    }

    /// From now on this decides about each message, instead of what decided before.
    pub(crate) fn censor(&mut self, fate: impl Fn(usize, usize, &PeerMessage) -> Fate + 'static) {
        self.censor = Some(Censor(Box::new(fate)));
    }

    fn fate(&self, from: usize, to: usize, message: &PeerMessage) -> Fate {
        self.censor.as_ref().map_or(Fate::Sent, |Censor(fate)| fate(from, to, message))
    }

    fn link(&mut self, owner: usize, peer: usize) -> &mut Link {
        &mut self.links[owner * self.servers + peer]
    }

    /// Whether each of the two has a connection to the other.
    pub(crate) fn are_connected(&self, one: usize, other: usize) -> bool {
        [(one, other), (other, one)]
            .iter()
            .all(|&(owner, peer)| self.links[owner * self.servers + peer].peer_life != 0)
    }

    fn path(&self, from: usize, to: usize) -> Path {
        self.paths[from * self.servers + to]
    }

    /// Stalls the path in one direction.
    pub(crate) fn stall(&mut self, from: usize, to: usize, until: Instant) {
        let path = &mut self.paths[from * self.servers + to];
        path.stalled_until = path.stalled_until.max(until);
    }

    /// Has everything take longer in one direction.
    pub(crate) fn slow_down(&mut self, from: usize, to: usize, longer: Duration, until: Instant) {
        let path = &mut self.paths[from * self.servers + to];
        (path.longer, path.slow_until) = (longer, until);
    }

    /// How much longer everything takes in one direction.
    pub(crate) fn longer(&self, from: usize, to: usize, now: Instant) -> Duration {
        self.path(from, to).longer(now)
    }

    /// Blocks or opens one direction.
    pub(crate) fn set_blocked(&mut self, from: usize, to: usize, blocked: bool) {
        self.paths[from * self.servers + to].blocked = blocked;
    }

    /// What one server says to another no longer arrives, though connections come about.
    pub(crate) fn mute(&mut self, from: usize, to: usize) {
        self.paths[from * self.servers + to].mute = true;
    }

    /// Opens every path.
    pub(crate) fn heal(&mut self) {
        self.paths.fill(Path::default());
        self.clients.clear();
        self.censor = None;
    }

    /// What passes between a client and a server.
    pub(crate) fn client_path(&self, client: usize, server: usize) -> ClientPath {
        self.clients.get(&(client, server)).copied().unwrap_or_default()
    }

    /// Changes that.
    pub(crate) fn set_client_path(&mut self, client: usize, server: usize, path: ClientPath) {
        self.clients.insert((client, server), path);
    }

    /// Whether a client can't connect to a server.
    pub(crate) fn is_client_cut(&self, client: usize, server: usize, now: Instant) -> bool {
        let path = self.client_path(client, server);
        path.is_deaf(now) || path.is_mute(now)
    }

    fn is_blocked_between(&self, one: usize, other: usize) -> bool {
        self.path(one, other).blocked || self.path(other, one).blocked
    }
}

impl World {
    /// A message leaves; whether it arrives is another matter.
    pub(crate) fn send_to_peer(&mut self, from: usize, to: usize, message: PeerMessage) {
        let link = *self.network.link(from, to);
        if link.peer_life == 0 {
            return;
        }
        let fate = self.network.fate(from, to, &message);
        if fate == Fate::Held {
            let (to_life, generation) = (link.peer_life, link.generation);
            let message = Box::new(message);
            return self.network.held.push(Action::Peer { from, to, to_life, generation, message });
        }
        if fate == Fate::Lost || self.mischief(self.swarm.loss_permille) {
            self.faults.count(Fault::MessageLost);
            trace!(self, "lost {} -> {}: {message:?}", from + 1, to + 1);
            return;
        }
        let message = if self.mischief(self.swarm.encode_permille) {
            self.faults.count(Fault::MessageEncoded);
            through_the_wire(&message)
        } else {
            message
        };
        let path = self.network.path(from, to);
        let delay = self.delay();
        let mut arrival = path.opens(self.now) + delay;
        if self.mischief(self.swarm.reorder_permille) {
            self.faults.count(Fault::MessageReordered);
            arrival = arrival + self.delay() * 2;
        } else {
            arrival = arrival.max(link.last_arrival);
            self.network.link(from, to).last_arrival = arrival;
        }
        let (to_life, generation) = (link.peer_life, link.generation);
        if self.mischief(self.swarm.duplicate_permille) {
            self.faults.count(Fault::MessageDuplicated);
            let again = arrival + self.delay();
            let message = Box::new(message.clone());
            self.queue.push(again, Action::Peer { from, to, to_life, generation, message });
        }
        self.queue.push(arrival, Action::Peer { from, to, to_life, generation, message: Box::new(message) });
    }

    /// What was held goes on its way, in its order; says how much that is.
    pub(crate) fn release_held(&mut self) -> usize {
        let held = std::mem::take(&mut self.network.held);
        let count = held.len();
        held.into_iter().for_each(|action| self.after(Duration::ZERO, action));
        count
    }

    /// A message arrives at a running process.
    pub(crate) fn on_peer_message(&mut self, from: usize, to: usize, generation: u64, message: PeerMessage) {
        let path = self.network.path(from, to);
        if generation < self.network.link(from, to).lost_below || path.blocked || path.mute {
            return;
        }
        self.deliver(to, Event::Message { from: server_id(from), message });
    }

    /// A process begins to connect to all its peers.
    pub(crate) fn connect_to_all(&mut self, owner: usize) {
        for peer in (0..self.servers.len()).filter(|&peer| peer != owner) {
            self.network.link(owner, peer).forget();
            self.begin_connect(owner, peer);
        }
    }

    /// The core wants to know how a fresh connect goes (V11).
    pub(crate) fn probe(&mut self, owner: usize, peer: ServerId) {
        let peer = usize::from(peer.0) - 1;
        self.begin_connect(owner, peer);
    }

    fn begin_connect(&mut self, owner: usize, peer: usize) {
        let Some(owner_life) = self.servers[owner].life() else { return };
        let delay = self.delay();
        let arrival = self.network.path(owner, peer).opens(self.now) + delay;
        let link = self.network.link(owner, peer);
        link.attempts += 1;
        let number = link.attempts;
        let begun = self.servers[owner].clock.monotonic(self.now);
        self.queue.push(arrival, Action::Connect { owner, owner_life, peer, number, begun });
        let attempt = Attempt::Silent;
        self.after(SUSPICION, Action::Connected { owner, owner_life, peer, number, attempt });
    }

    /// An attempt reaches the other host. A host without power and a paused process do not answer.
    pub(crate) fn on_connect(
        &mut self,
        owner: usize,
        owner_life: Life,
        peer: usize,
        number: u64,
        begun: Instant,
    ) {
        if self.network.is_blocked_between(owner, peer)
            || !self.servers[peer].powered
            || self.servers[peer].paused
        {
            return;
        }
        let attempt = match self.servers[peer].life() {
            Some(peer_life) => Attempt::Up { peer_life },
            None => Attempt::Refused { begun },
        };
        let ways = if matches!(attempt, Attempt::Refused { .. }) { 1 } else { 3 };
        let delay: Duration = (0..ways).map(|_| self.delay()).sum();
        let back = self.network.path(peer, owner).opens(self.now) + delay;
        let link = self.network.link(owner, peer);
        let back = back.max(link.last_report);
        link.last_report = back;
        self.queue.push(back, Action::Connected { owner, owner_life, peer, number, attempt });
    }

    /// An attempt has an outcome.
    pub(crate) fn on_connected(&mut self, owner: usize, peer: usize, number: u64, attempt: Attempt) {
        let running = self.servers[peer].life();
        let link = self.network.link(owner, peer);
        if number <= link.resolved {
            return;
        }
        link.resolved = number;
        let established = link.peer_life != 0;
        let state = match attempt {
            Attempt::Up { .. } => LinkState::Up,
            Attempt::Refused { begun } => LinkState::Refused { begun },
            Attempt::Silent => LinkState::Silent,
        };
        if let (false, Attempt::Up { peer_life }) = (established, attempt) {
            link.peer_life = peer_life;
            link.generation = number;
            if running != Some(peer_life) {
                // It ended while the answer was under way.
                self.schedule_link_closed(owner, peer, Duration::ZERO);
            }
        } else if !established && link.attempts == number {
            self.schedule_reconnect(owner, peer);
        }
        trace!(self, "link {} -> {}: {attempt:?}", owner + 1, peer + 1);
        self.deliver(owner, Event::Link { peer: server_id(peer), state });
    }

    fn schedule_reconnect(&mut self, owner: usize, peer: usize) {
        let Some(owner_life) = self.servers[owner].life() else { return };
        let wait = self.between(Duration::from_millis(20), Duration::from_millis(100));
        self.after(wait, Action::Reconnect { owner, owner_life, peer });
    }

    /// It is time to try again, unless something else has already begun to.
    pub(crate) fn on_reconnect(&mut self, owner: usize, peer: usize) {
        let link = self.network.link(owner, peer);
        if link.peer_life == 0 && link.attempts == link.resolved {
            self.begin_connect(owner, peer);
        }
    }

    fn schedule_link_closed(&mut self, owner: usize, peer: usize, wait: Duration) {
        let Some(owner_life) = self.servers[owner].life() else { return };
        let generation = self.network.link(owner, peer).generation;
        let delay = wait + self.delay();
        let at = self.network.path(peer, owner).opens(self.now) + delay;
        self.queue.push(at, Action::LinkClosed { owner, owner_life, peer, generation });
    }

    /// The end of a connection is noticed.
    pub(crate) fn on_link_closed(&mut self, owner: usize, peer: usize, generation: u64) {
        let link = self.network.link(owner, peer);
        if link.generation != generation || link.peer_life == 0 {
            return;
        }
        link.peer_life = 0;
        self.schedule_reconnect(owner, peer);
        self.deliver(owner, Event::Link { peer: server_id(peer), state: LinkState::Closed });
    }

    /// A process has ended. If its host has power, the kernel closes its connections; what it had sent still
    /// arrives. Without power nobody hears anything until the host is back.
    pub(crate) fn links_of_dead_process(&mut self, dead: usize, life: Life, host_answers: bool) {
        for other in (0..self.servers.len()).filter(|&other| other != dead) {
            self.network.link(dead, other).forget();
            if self.network.link(other, dead).peer_life == life {
                // A host without power says nothing; unacknowledged data ends the connection (TCP_USER_TIMEOUT).
                let wait = if host_answers { Duration::ZERO } else { Duration::from_millis(1500) };
                self.schedule_link_closed(other, dead, wait);
            }
        }
    }

    /// A host has power again: connections from before are reset as soon as anything is sent on them.
    pub(crate) fn links_of_powered_host(&mut self, host: usize) {
        for other in (0..self.servers.len()).filter(|&other| other != host) {
            if self.network.link(other, host).peer_life != 0 {
                self.schedule_link_closed(other, host, Duration::ZERO);
            }
        }
    }

    /// A process closes all its peer links and connects anew (V2). `leaky`: what had arrived is still read.
    pub(crate) fn reset_links(&mut self, owner: usize, leaky: bool) {
        for peer in (0..self.servers.len()).filter(|&peer| peer != owner) {
            let link = self.network.link(owner, peer);
            link.forget();
            link.lose_messages();
            if self.network.link(peer, owner).peer_life != 0 {
                self.schedule_link_closed(peer, owner, Duration::ZERO);
            }
            if !leaky {
                self.network.link(peer, owner).lose_messages();
            }
            self.begin_connect(owner, peer);
        }
    }

    /// Connections over a blocked path end by their own timeouts, even if it opens in between.
    pub(crate) fn time_out_links(&mut self, one: usize, other: usize) {
        for (owner, peer) in [(one, other), (other, one)] {
            if self.network.link(owner, peer).peer_life != 0 {
                self.schedule_link_closed(owner, peer, Duration::from_millis(1200));
            }
        }
    }

    /// The connections between two live servers break; neither dies (V11).
    pub(crate) fn break_links(&mut self, one: usize, other: usize) {
        for (owner, peer) in [(one, other), (other, one)] {
            if self.network.link(owner, peer).peer_life != 0 {
                self.network.link(owner, peer).lose_messages();
                self.schedule_link_closed(owner, peer, Duration::ZERO);
            }
        }
    }
}

/// What the peer makes of a message that was encoded and decoded.
fn through_the_wire(message: &PeerMessage) -> PeerMessage {
    let mut bytes = BytesMut::new();
    lastword::wire::peer::encode(&mut bytes, message);
    let mut codec = lastword::wire::codec::FrameCodec::new(lastword::config::FRAME_PEER_BYTES_MAX);
    let frame = tokio_util::codec::Decoder::decode(&mut codec, &mut bytes)
        .expect("an encoded message is a frame")
        .expect("the frame is complete");
    let decoded = lastword::wire::peer::decode(&frame).expect("an encoded message can be decoded");
    assert_eq!(decoded, *message, "a message changed on its way through the wire format");
    decoded
}
