//! The one task that owns the [`Replica`]: events go in, effects are carried out in order, and nothing here waits for
//! anything but the next event or the next timeout.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant as TokioInstant, sleep, sleep_until};
use tracing::{info, warn};

use super::Shell;
use super::client_link::Client;
use super::disk::DiskThreads;
use super::key::write_cluster_id;
use super::passwords::Passwords;
use super::peer_link::probe;
use super::peers::{PeerInput, PeerNews, Peers};
use crate::config::ORDERLY_STOP_MAX;
use crate::message::Request;
use crate::replica::{Effect, Event, Exit, HashId, HashJob, Notice, Replica};
use crate::types::{ConnectionId, ServerId};

/// Events that may wait: from the disk, peers and password jobs. Whoever reports more waits.
pub(super) const INNER_EVENTS_MAX: usize = 4096;
/// Bundles of requests that may wait. Clients have a queue of their own, so that they can't delay heartbeats.
pub(super) const CLIENT_EVENTS_MAX: usize = 2048;
/// After so many events, or requests, no more are taken in before timeouts are looked at again.
const BATCH: usize = 256;
/// Signals to stop that follow the first one so closely are the same wish.
const SAME_WISH: Duration = Duration::from_millis(300);
/// How long the last responses may take on their way out.
const FLUSH_MAX: Duration = Duration::from_millis(300);

/// What reaches the driver.
pub(super) enum Input {
    /// Goes to the core as it is.
    Event(Event),
    /// What a client asks, by request id: as it was read from its connection, at this time of the wall clock.
    Requests { connection: ConnectionId, unix_ms: u64, asked: Vec<(u32, Request)> },
    /// A client has connected; its requests follow.
    Connected { connection: ConnectionId, client: Arc<Client> },
    /// A client's connection has ended.
    Disconnected { connection: ConnectionId },
    /// Something happened on the links to a peer.
    Peer(ServerId, PeerInput),
}

/// Where the driver hears from.
pub(super) struct Inputs {
    pub(super) inner: mpsc::Receiver<Input>,
    pub(super) clients: mpsc::Receiver<Input>,
}

/// Whoever started the process.
pub(super) struct Outside {
    /// Each message asks the process to stop.
    pub(super) stops: mpsc::Receiver<()>,
    /// Called once, when the server serves or follows.
    pub(super) ready: Option<Box<dyn FnOnce() + Send>>,
}

/// Owns the core.
pub(super) struct Driver {
    replica: Replica,
    shell: Arc<Shell>,
    disk: DiskThreads,
    peers: Peers,
    clients: HashMap<ConnectionId, Arc<Client>>,
    /// Those to whom something was said since the last flush.
    addressed: Vec<Arc<Client>>,
    passwords: Arc<Passwords>,
    /// Where the cluster's id is kept.
    id_path: PathBuf,
    is_ready: bool,
    exit: Option<Exit>,
    /// When the process ends however far it is: it was asked to stop.
    stop_by: Option<TokioInstant>,
}

impl Driver {
    pub(super) fn new(replica: Replica, shell: Arc<Shell>, disk: DiskThreads, id_path: PathBuf) -> Self {
        let peers = Peers::new(shell.servers());
        Self {
            replica,
            shell,
            disk,
            peers,
            clients: HashMap::new(),
            addressed: Vec::new(),
            passwords: Arc::new(Passwords::new()),
            id_path,
            is_ready: false,
            exit: None,
            stop_by: None,
        }
    }

    /// Runs until the core ends it, or the process was asked to stop and took too long.
    pub(super) async fn run(mut self, mut inputs: Inputs, outside: &mut Outside) -> Exit {
        let mut batch = Vec::with_capacity(2 * BATCH);
        self.drain();
        let exit = loop {
            if self.is_ready
                && let Some(ready) = outside.ready.take()
            {
                ready();
            }
            if let Some(exit) = self.exit.take() {
                break exit;
            }
            let wake = self.wake_at();
            tokio::select! {
                biased;
                Some(()) = outside.stops.recv() => self.on_stop(),
                Some(input) = inputs.inner.recv() => batch.push(input),
                Some(input) = inputs.clients.recv() => batch.push(input),
                () = sleep_until(wake) => {}
            }
            gather(&mut inputs, &mut batch);
            for input in batch.drain(..) {
                self.on_input(input);
            }
            self.check_time();
            self.drain();
        };
        drop(inputs);
        self.flush().await;
        self.disk.finish();
        exit
    }

    fn wake_at(&self) -> TokioInstant {
        let now = TokioInstant::now();
        let core = self.replica.poll_timeout().map(|at| now + at.since(self.shell.now()));
        let far = now + Duration::from_secs(3600);
        core.unwrap_or(far).min(self.stop_by.unwrap_or(far))
    }

    fn check_time(&mut self) {
        let now = self.shell.now();
        if self.replica.poll_timeout().is_some_and(|at| at <= now) {
            self.replica.handle_timeout(now);
        }
        if self.exit.is_none() && self.stop_by.is_some_and(|at| at <= TokioInstant::now()) {
            warn!("not stopped in order after {} s: ending anyway", ORDERLY_STOP_MAX.as_secs());
            self.exit = Some(Exit::Stopped);
        }
    }

    fn on_stop(&mut self) {
        if let Some(stop_by) = self.stop_by {
            // One wish may come as several signals, to the process and to its group.
            if stop_by - ORDERLY_STOP_MAX + SAME_WISH > TokioInstant::now() {
                return;
            }
            warn!("asked to stop a second time: ending at once");
            self.exit = Some(Exit::Stopped);
            return;
        }
        info!("asked to stop: stopping in order (ask once more to end at once)");
        self.stop_by = Some(TokioInstant::now() + ORDERLY_STOP_MAX);
        self.handle(Event::Stop);
    }

    fn on_input(&mut self, input: Input) {
        match input {
            Input::Event(event) => self.handle(event),
            Input::Requests { connection, unix_ms, asked } => {
                let now = self.shell.now();
                for (request, body) in asked {
                    self.replica.handle_event(now, Event::Request { connection, request, body, unix_ms });
                }
            }
            Input::Connected { connection, client } => {
                self.clients.insert(connection, client);
            }
            Input::Disconnected { connection } => {
                self.clients.remove(&connection);
                self.handle(Event::Disconnected { connection });
            }
            Input::Peer(peer, input) => self.on_peer(peer, input),
        }
    }

    fn on_peer(&mut self, peer: ServerId, input: PeerInput) {
        match self.peers.links(peer).on_input(input) {
            PeerNews::Nothing => {}
            PeerNews::Link(state) => self.handle(Event::Link { peer, state }),
            PeerNews::ClosedOneWay => {
                self.handle(Event::Link { peer, state: crate::replica::LinkState::Closed });
                self.probe(peer);
            }
            PeerNews::Message(message) => self.handle(Event::Message { from: peer, message }),
        }
    }

    fn handle(&mut self, event: Event) {
        self.replica.handle_event(self.shell.now(), event);
    }

    /// The core's contract: events are followed by a complete drain. One drain for all that came together makes one
    /// write and one message of them. Peers come first: their disks are the longer way, and clients wait for them.
    fn drain(&mut self) {
        while let Some(effect) = self.replica.poll_effect() {
            self.perform(effect);
        }
        self.peers.flush();
        self.disk.flush();
        self.addressed.drain(..).for_each(|client| client.flush());
    }

    fn perform(&mut self, effect: Effect) {
        match effect {
            Effect::Send { to, message } => self.peers.links(to).send(&message),
            Effect::Respond { connection, request, response } => {
                self.tell(connection, |client| client.respond(request, &response));
            }
            Effect::Close { connection } => {
                if let Some(client) = self.clients.get(&connection) {
                    client.finish();
                }
            }
            Effect::Push { connection, push } => self.tell(connection, |client| client.push(&push)),
            Effect::Write { id, write } => self.disk.write(id, write),
            Effect::Cut { through } => self.disk.cut(through),
            Effect::Read { id, read } => self.disk.read(id, read),
            Effect::Hash { id, connection, name, job } => self.hash(id, connection, name, job),
            Effect::Checkpoint(step) => self.disk.checkpoint(step),
            Effect::Repair { after, entries } => self.disk.repair(after, entries),
            Effect::Probe { peer } => self.probe(peer),
            Effect::ResetLinks => self.peers.reset(),
            Effect::RecordCluster(id) => {
                if let Err(error) = write_cluster_id(&self.id_path, id) {
                    warn!("the cluster's id could not be kept beside the key: {error}");
                }
            }
            Effect::Notice(notice) => self.notice(&notice),
            Effect::Exit(exit) => self.exit = Some(exit),
        }
    }

    /// Queues something for a client, if it is still there.
    fn tell(&mut self, connection: ConnectionId, say: impl FnOnce(&Client) -> bool) {
        if let Some(client) = self.clients.get(&connection)
            && say(client)
        {
            self.addressed.push(Arc::clone(client));
        }
    }

    /// Runs a password job beside the driver; its result comes back as an event.
    fn hash(&self, id: HashId, connection: ConnectionId, name: String, job: HashJob) {
        // A client that has gone already has no address: its job is done as if it came from nowhere.
        let nowhere = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        let address =
            self.clients.get(&connection).map_or(nowhere, |client| client.address.ip().to_canonical());
        let (passwords, shell) = (Arc::clone(&self.passwords), Arc::clone(&self.shell));
        tokio::spawn(async move {
            let result = passwords.perform(name, address, shell.now(), job).await;
            let _ = shell.inner.send(Input::Event(Event::Hashed { id, result })).await;
        });
    }

    fn probe(&mut self, peer: ServerId) {
        let shell = Arc::clone(&self.shell);
        let ups = self.peers.links(peer).ups();
        tokio::spawn(async move {
            if let Some(state) = probe(&shell, peer).await {
                let _ = shell.inner.send(Input::Peer(peer, PeerInput::Probed(ups, state))).await;
            }
        });
    }

    fn notice(&mut self, notice: &Notice) {
        if notice.warning {
            warn!("{}", notice.text);
        } else {
            info!("{}", notice.text);
        }
        self.is_ready |= notice.ready;
    }

    /// Gives what was said last a moment to get out.
    async fn flush(&mut self) {
        self.clients.values().for_each(|client| client.finish());
        let until = TokioInstant::now() + FLUSH_MAX;
        while TokioInstant::now() < until
            && !(self.peers.is_flushed() && self.clients.values().all(|client| client.is_flushed()))
        {
            sleep(Duration::from_millis(2)).await;
        }
    }
}

/// Takes what else is there already, so that one drain serves many.
fn gather(inputs: &mut Inputs, batch: &mut Vec<Input>) {
    for queue in [&mut inputs.inner, &mut inputs.clients] {
        let mut taken = 0;
        while taken < BATCH {
            let Ok(input) = queue.try_recv() else { break };
            taken += if let Input::Requests { asked, .. } = &input { asked.len() } else { 1 };
            batch.push(input);
        }
    }
}
