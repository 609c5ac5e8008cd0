//! A simulated server: the real core and the real storage code, and a shell that carries out effects with latencies
//! of its own. It does what `server/driver.rs` does, on a virtual clock.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use lastword::chat::{InTurn, Restore, State, TableRow};
use lastword::message::{
    CheckpointResult, CheckpointStep, Entry, Installed, PeerMessage, Position, Push, Read, ReadResult,
    Request, Response, Write,
};
use lastword::prng::Prng;
use lastword::replica::{
    Config, Effect, Event, Exit, FirstRole, HashId, HashJob, Hashed, LinkState, Notice, ReadId, Replica,
};
use lastword::row::{Fields, verify};
use lastword::storage::{
    Checkpoints, CommitLog, Disk as _, LogReader, MemoryDisk, Opened, StorageError, read_diverged,
};
use lastword::time::Instant;
use lastword::types::{ClusterId, ConnectionId, LogIndex, ServerId, ViewNumber, WriteId};

use crate::clock::Clock;
use crate::faults::Fault;
use crate::nemesis::Mishap;
use crate::swarm::Swarm;
use crate::world::{Action, Life, World, trace};

/// With less space left new writes are refused (D3); the real server's limit is larger.
pub(crate) const SPACE_LOW_BYTES: u64 = 32 * 1024;

/// The same state, but for one bit of its digest: as if a reply had been another one.
fn spoil(state: &mut State) -> State {
    let mut digest = state.digest();
    digest[0] ^= 1;
    let mut restore = Restore::new(state.index(), digest);
    let mut fields = Fields::new();
    state.begin_checkpoint();
    while let Some(slice) = state.next_slice(64) {
        for line in slice.rows.split_inclusive(|byte| *byte == b'\n') {
            let row = verify(line.trim_ascii_end()).expect("a row as it was written");
            fields.parse(row, slice.table.header().len()).expect("its fields");
            let row = TableRow::parse(slice.table, &fields).expect("a row of its table");
            restore.add(vec![row]).expect("what the table is made of");
        }
    }
    restore.finish(&InTurn).expect("it was whole")
}

/// The id of the server at this place.
pub(crate) fn server_id(at: usize) -> ServerId {
    ServerId(u8::try_from(at + 1).expect("a handful of servers"))
}

/// How a process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Death {
    /// The process alone: what it has given to the system stays.
    Kill,
    /// The host: what was not synced is cut at random.
    PowerLoss,
}

/// One host with its process, if one runs.
pub(crate) struct Server {
    /// Its place in the cluster list, from 0.
    pub at: usize,
    /// The command line of its process.
    pub config: Config,
    /// Its directory.
    pub disk: MemoryDisk,
    /// Its clocks.
    pub clock: Clock,
    /// Whether the host has power: without, it does not even refuse.
    pub powered: bool,
    /// Whether the process is stopped as by SIGSTOP.
    pub paused: bool,
    /// What happened to the paused process meanwhile.
    pub held: Vec<Action>,
    /// How much slower than usual its disk is.
    pub disk_slowness: u32,
    /// Nothing is done on its disk before this moment.
    pub disk_stuck_until: Instant,
    /// In which way its disk was made to fail: its process may end because of that.
    pub disk_fault: Option<Fault>,
    /// Bits were flipped: the directory may be refused.
    pub damaged: bool,
    /// Its directory as it once was, in a view of more than this server.
    pub backup: Option<MemoryDisk>,
    /// Nothing mends it any more.
    pub broken_for_ever: bool,
    /// Cut off for ever: what it does by itself from now on is not compared to the others.
    pub given_up: bool,
    /// The latest view that anybody began to write with this server in it, or that it proposed itself.
    pub named_in: ViewNumber,
    /// Its next process starts with a state that has answered otherwise than the others' (D7).
    pub spoilt: bool,
    /// The process.
    pub process: Option<Process>,
    /// It stops in order, and somebody types the command line again afterwards.
    pub restarts: bool,
    /// Why the last process ended by itself.
    pub exited: Option<Exit>,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "server {}", self.at + 1)
    }
}

/// What the log's writer is asked to do.
#[derive(Debug)]
enum LogJob {
    Write(WriteId, Write),
    Cut(LogIndex),
    Repair(Position, Vec<Arc<Entry>>),
    /// The log starts after a checkpoint that was installed.
    Restart(Box<Installed>),
}

/// A running process.
pub(crate) struct Process {
    /// Which.
    pub life: Life,
    /// The core.
    pub replica: Replica,
    log: CommitLog<MemoryDisk>,
    reader: LogReader<MemoryDisk>,
    checkpoints: Checkpoints<MemoryDisk>,
    /// What the writer has not begun.
    log_jobs: VecDeque<LogJob>,
    /// The sync under way: up to which write, whether each repair in it fitted, and the error that an earlier write met.
    syncing: Option<Sync>,
    checkpoint_steps: VecDeque<CheckpointStep>,
    checkpointing: bool,
    timer: Option<Instant>,
    /// Connections of clients: which client, and which of its connections.
    pub connections: BTreeMap<ConnectionId, (usize, u64)>,
    connections_made: u64,
    /// Whether it has said that it is ready.
    pub ready: bool,
    /// The first error of its log: nothing else is attempted (D2).
    pub failed: Option<String>,
    space_low: bool,
}

#[derive(Debug)]
struct Sync {
    through: Option<WriteId>,
    repairs: Vec<bool>,
    installed: Vec<CheckpointResult>,
    error: Option<String>,
}

impl Server {
    /// A host with an empty disk.
    pub(crate) fn new(at: usize, addresses: &[String], swarm: &Swarm, prng: &mut Prng) -> Self {
        let (mut gain_ppm, mut wall_ms) = (0, 0);
        let offset = prng.below(1_000_000_000_000);
        if swarm.skew {
            gain_ppm = i64::try_from(prng.below(10_001)).expect("small") - 5_000;
            wall_ms = i64::try_from(prng.below(600_001)).expect("small") - 300_000;
        }
        Self {
            at,
            config: Config {
                me: server_id(at),
                servers: addresses.to_vec(),
                first_role: if at == 0 { FirstRole::Primary } else { FirstRole::Secondary },
                known_cluster: None,
                min_copies: 1,
                cold_wait: swarm.cold_wait,
                evidence: true,
                checkpoint_log_bytes_min: swarm.checkpoint_bytes,
            },
            disk: MemoryDisk::new(prng.next_u64()),
            clock: Clock::new(offset, gain_ppm, wall_ms),
            powered: true,
            paused: false,
            held: Vec::new(),
            disk_slowness: 1,
            disk_stuck_until: Instant::ZERO,
            disk_fault: None,
            damaged: false,
            backup: None,
            broken_for_ever: false,
            given_up: false,
            named_in: ViewNumber::NONE,
            spoilt: false,
            process: None,
            restarts: false,
            exited: None,
        }
    }

    /// The process that runs.
    pub(crate) fn life(&self) -> Option<Life> {
        self.process.as_ref().map(|process| process.life)
    }

    /// Whether a process runs and is not paused.
    pub(crate) fn is_running(&self) -> bool {
        self.process.is_some() && !self.paused
    }

    /// Whether a write of the running process has failed, be it that the process is only told of it later.
    pub(crate) fn disk_has_failed(&self) -> bool {
        self.process.as_ref().is_some_and(|process| {
            process.failed.is_some() || process.syncing.as_ref().is_some_and(|sync| sync.error.is_some())
        })
    }

    /// The core, if a process runs.
    pub(crate) fn replica(&self) -> Option<&Replica> {
        self.process.as_ref().map(|process| &process.replica)
    }
}

/// Where something that a process hears of comes from: its timers and disk, a peer, or a client's connection.
fn source_of(action: &Action) -> (u8, u64) {
    match action {
        Action::Peer { from: peer, .. }
        | Action::Connected { peer, .. }
        | Action::LinkClosed { peer, .. }
        | Action::Reconnect { peer, .. } => (1, *peer as u64),
        Action::Request { connection, .. } | Action::Disconnected { connection, .. } => (2, connection.0),
        Action::Timer { .. } => (3, 0),
        _ => (4, 0),
    }
}

impl World {
    /// Starts the process of a server, as its command line does.
    pub(crate) fn start(&mut self, at: usize) {
        assert!(self.servers[at].process.is_none(), "server {} runs already", at + 1);
        let life = self.next_life();
        let seed = self.prng.next_u64();
        let server = &mut self.servers[at];
        if !server.powered {
            server.powered = true;
            self.network_power_is_back(at);
        }
        let server = &mut self.servers[at];
        server.paused = false;
        server.exited = None;
        server.restarts = false;
        let is_limited = server.disk.space_left().is_ok_and(|left| left < u64::MAX);
        server.disk_fault = server.disk_fault.filter(|fault| *fault == Fault::ShortWrite && is_limited);
        self.maybe_expect_split();
        let Opened { mut recovered, log, reader, checkpoints, notices } = match self.open_directory(at) {
            Ok(opened) => opened,
            Err(error) => return self.on_refused_directory(at, &error),
        };
        trace!(
            self,
            "start {} life {life}: incarnation {} view {:?} applied {} tail {} standing {:?} {notices:?}",
            at + 1,
            recovered.hard.incarnation.0,
            recovered.view,
            recovered.applied.index,
            recovered.tail.len(),
            recovered.hard.standing
        );
        let server = &mut self.servers[at];
        let now = server.clock.monotonic(self.now);
        if server.spoilt {
            recovered.state = spoil(&mut recovered.state);
        }
        self.checks.on_start(at, &recovered);
        server.process = Some(Process {
            life,
            replica: Replica::new(server.config.clone(), recovered, now, seed),
            log,
            reader,
            checkpoints,
            log_jobs: VecDeque::new(),
            syncing: None,
            checkpoint_steps: VecDeque::new(),
            checkpointing: false,
            timer: None,
            connections: BTreeMap::new(),
            connections_made: 0,
            ready: false,
            failed: None,
            space_low: false,
        });
        self.trace.mix(life);
        self.drain(at);
        self.connect_to_all(at);
    }

    /// Opens a server's directory, with segments of this world's size.
    pub(crate) fn open_directory(&self, at: usize) -> Result<Opened<MemoryDisk>, StorageError> {
        self.open(at, self.servers[at].disk.clone())
    }

    /// The same for another disk of its.
    pub(crate) fn open(&self, at: usize, disk: MemoryDisk) -> Result<Opened<MemoryDisk>, StorageError> {
        let (config, segment) = (&self.servers[at].config, self.swarm.segment_bytes);
        lastword::storage::open_with(disk, config.me, &config.servers, segment, &mut |_| {})
    }

    /// The command ends at once. Whoever typed it reads why, and tries again later; a directory that is damaged
    /// beyond use is emptied, as the message says, once nothing acknowledged rests on it.
    fn on_refused_directory(&mut self, at: usize, error: &StorageError) {
        trace!(self, "server {} can't open its directory: {error}", at + 1);
        let Server { disk, disk_fault, damaged, .. } = &mut self.servers[at];
        *disk = disk.restart();
        let expected = *damaged || *disk_fault == Some(Fault::ShortWrite);
        assert!(expected, "server {} can't open its directory: {error}", at + 1);
        if *damaged && *disk_fault != Some(Fault::ShortWrite) {
            self.faults.count(Fault::Refused);
            if self.is_superseded(at) {
                self.wipe(at);
            }
        }
        let wait = self.between(Duration::from_millis(200), Duration::from_secs(1));
        self.after(wait, Action::Mishap(Mishap::Start(at)));
    }

    fn network_power_is_back(&mut self, at: usize) {
        self.links_of_powered_host(at);
    }

    /// Ends the process of a server, wherever it stands.
    pub(crate) fn crash(&mut self, at: usize, death: Death) {
        let Some(mut process) = self.servers[at].process.take() else {
            // A host without a process can lose its power too.
            if death == Death::PowerLoss {
                self.servers[at].powered = false;
                self.servers[at].disk = self.servers[at].disk.crash();
            }
            return;
        };
        trace!(self, "crash {} {death:?}", at + 1);
        self.die_amid_disk_work(at, &mut process);
        let life = process.life;
        for (client, epoch) in process.connections.values().copied() {
            if death == Death::Kill {
                let delay = self.delay();
                self.after(delay, Action::ClientClosed { client, epoch });
            }
        }
        drop(process);
        let server = &mut self.servers[at];
        server.paused = false;
        server.held.clear();
        match death {
            Death::Kill => server.disk = server.disk.restart(),
            Death::PowerLoss => {
                server.powered = false;
                server.disk = server.disk.crash();
            }
        }
        self.links_of_dead_process(at, life, death == Death::Kill);
    }

    /// The writer and the checkpoint thread die at some change to the disk, not between two jobs.
    fn die_amid_disk_work(&mut self, at: usize, process: &mut Process) {
        if process.syncing.is_none() && !process.checkpointing {
            return;
        }
        self.faults.count(Fault::KillDuringSync);
        let disk = &self.servers[at].disk;
        disk.fail_from(disk.calls() + 1 + self.prng.below(5));
        let log_first = self.prng.chance(1, 2);
        for log in [log_first, !log_first] {
            if log && process.syncing.is_some() {
                // What the dying call returns reaches nobody.
                let _ = process.log.sync();
            }
            if !log && process.checkpointing {
                let step = process.checkpoint_steps.pop_front().expect("a step is under way");
                let _ = process.checkpoints.step(step);
            }
        }
    }

    /// Stops a process from running, as SIGSTOP does.
    pub(crate) fn pause(&mut self, at: usize) {
        if self.servers[at].process.is_some() {
            trace!(self, "pause {}", at + 1);
            self.maybe_expect_split();
            self.servers[at].paused = true;
        }
    }

    /// Lets a paused process run again: what arrived meanwhile comes at once, from each source in its order, from
    /// different ones in any: a client may be heard before the peer that deposed this server.
    pub(crate) fn resume(&mut self, at: usize) {
        if !self.servers[at].paused {
            return;
        }
        trace!(self, "resume {}", at + 1);
        self.maybe_expect_split();
        self.servers[at].paused = false;
        let mut sources: BTreeMap<(u8, u64), VecDeque<Action>> = BTreeMap::new();
        for action in std::mem::take(&mut self.servers[at].held) {
            sources.entry(source_of(&action)).or_default().push_back(action);
        }
        while !sources.is_empty() {
            let place = usize::try_from(self.prng.below(sources.len() as u64)).expect("few sources");
            let (&source, actions) = sources.iter_mut().nth(place).expect("there are more");
            self.queue.push(self.now, actions.pop_front().expect("no source is empty"));
            if actions.is_empty() {
                sources.remove(&source);
            }
        }
    }

    /// Empties the directory of a server that does not run.
    pub(crate) fn wipe(&mut self, at: usize) {
        assert!(self.servers[at].process.is_none(), "the directory of a running process is locked");
        trace!(self, "wipe {}", at + 1);
        self.servers[at].disk = MemoryDisk::new(self.prng.next_u64());
        self.servers[at].damaged = false;
        self.checks.forget_disk(at);
    }

    /// Hands an event to the core and carries out what it wants done.
    pub(crate) fn deliver(&mut self, at: usize, event: Event) {
        let now = self.servers[at].clock.monotonic(self.now);
        if self.trace.on {
            let text = format!("{} <- {event:?}", at + 1);
            self.trace.line(self.now, &text);
        }
        self.trace.mix(event_word(&event) << 8 | at as u64);
        let process = self.servers[at].process.as_mut().expect("events are for running processes");
        process.replica.handle_event(now, event);
        self.drain(at);
    }

    /// The process's timer has gone off; it may have been set again since.
    pub(crate) fn on_timer(&mut self, at: usize, due: Instant) {
        let now = self.servers[at].clock.monotonic(self.now);
        let process = self.servers[at].process.as_mut().expect("timers are for running processes");
        if process.timer != Some(due) {
            return;
        }
        process.timer = None;
        if process.replica.poll_timeout().is_some_and(|due| due <= now) {
            process.replica.handle_timeout(now);
            self.drain(at);
        } else {
            self.schedule_timer(at);
        }
    }

    fn schedule_timer(&mut self, at: usize) {
        let server = &mut self.servers[at];
        let Some(process) = &mut server.process else { return };
        let Some(due) = process.replica.poll_timeout() else { return };
        let due = server.clock.world_time(due).max(self.now);
        if process.timer.is_none_or(|set| due < set) {
            process.timer = Some(due);
            let life = process.life;
            self.queue.push(due, Action::Timer { server: at, life, due });
        }
    }

    fn drain(&mut self, at: usize) {
        loop {
            let Some(process) = &mut self.servers[at].process else { return };
            let Some(effect) = process.replica.poll_effect() else { break };
            if self.trace.on {
                let text = format!("{}    -> {effect:?}", at + 1);
                self.trace.line(self.now, &text);
            }
            self.perform(at, effect);
        }
        self.start_disk_work(at);
        self.schedule_timer(at);
        self.check_after_step(at);
    }

    fn perform(&mut self, at: usize, effect: Effect) {
        self.checks.on_effect(at, &effect);
        let process = self.servers[at].process.as_mut().expect("effects are of running processes");
        let life = process.life;
        match effect {
            Effect::Send { to, message } => self.send_to_peer(at, usize::from(to.0) - 1, message),
            Effect::Respond { connection, request, response } => {
                self.respond(at, connection, request, response)
            }
            Effect::Close { connection } => self.close(at, connection),
            Effect::Push { connection, push } => self.push(at, connection, push),
            Effect::Write { id, write } => {
                let named: Vec<(ServerId, ViewNumber)> = match &write {
                    Write::View(view) => view.members.iter().map(|m| (m.server, view.number)).collect(),
                    Write::HardState(hard) => hard.outstanding.iter().map(|n| (n.proposer, *n)).collect(),
                    _ => Vec::new(),
                };
                process.log_jobs.push_back(LogJob::Write(id, write));
                for (server, number) in named {
                    let named_in = &mut self.servers[usize::from(server.0) - 1].named_in;
                    *named_in = number.max(*named_in);
                }
            }
            Effect::Cut { through } => process.log_jobs.push_back(LogJob::Cut(through)),
            Effect::Repair { after, entries } => process.log_jobs.push_back(LogJob::Repair(after, entries)),
            Effect::Checkpoint(step) => process.checkpoint_steps.push_back(step),
            Effect::Read { id, read } => {
                let delay = self.disk_delay(at);
                self.after(delay, Action::ReadDone { server: at, life, id, read });
            }
            Effect::Hash { id, job, .. } => {
                let delay = self.between(Duration::from_millis(1), Duration::from_millis(15));
                self.after(delay, Action::Hashed { server: at, life, id, job });
            }
            Effect::Probe { peer } => self.probe(at, peer),
            Effect::ResetLinks => {
                let leaky = self.prng.chance(1, 2);
                self.reset_links(at, leaky);
            }
            Effect::RecordCluster(cluster) => self.record_cluster(at, cluster),
            Effect::Notice(Notice { ready, text, .. }) => {
                process.ready |= ready;
                if text.contains("--cold-wait") {
                    self.faults.count(Fault::ColdWait);
                    self.expect_split();
                }
            }
            Effect::Exit(exit) => self.exit(at, exit),
        }
    }

    fn record_cluster(&mut self, at: usize, cluster: ClusterId) {
        self.servers[at].config.known_cluster = Some(cluster);
    }

    fn exit(&mut self, at: usize, exit: Exit) {
        let wait = Duration::from_millis(1);
        match exit {
            Exit::Stopped => {}
            Exit::Recover => self.after(wait, Action::Mishap(Mishap::Start(at))),
            Exit::Disk(_) if self.servers[at].disk_fault.is_some() => {
                let down = self.between(Duration::from_millis(10), self.swarm.down_max);
                self.after(down, Action::Mishap(Mishap::Start(at)));
            }
            Exit::Refused(_) if self.servers[at].spoilt => {}
            Exit::Refused(_) | Exit::Disk(_) => panic!("server {} ends its process: {exit:?}", at + 1),
        }
        self.crash(at, Death::Kill);
        self.servers[at].exited = Some(exit);
        if self.servers[at].restarts {
            let wait = self.between(Duration::from_millis(10), Duration::from_secs(2));
            self.after(wait, Action::Mishap(Mishap::Start(at)));
        }
    }

    fn disk_delay(&mut self, at: usize) -> Duration {
        let stuck = self.servers[at].disk_stuck_until.since(self.now);
        stuck + self.between(self.swarm.sync_min, self.swarm.sync_max) * self.servers[at].disk_slowness
    }

    /// Starts the next group of log jobs and the next checkpoint step, unless some are under way (D1).
    fn start_disk_work(&mut self, at: usize) {
        let Some(process) = &mut self.servers[at].process else { return };
        let life = process.life;
        if process.syncing.is_none() && !process.log_jobs.is_empty() {
            let base = process.log.base();
            let jobs = &mut process.log_jobs;
            process.syncing = Some(begin_sync(&mut process.log, jobs, process.failed.as_deref()));
            if process.log.base() != base && process.replica.state().index() >= base.index {
                self.faults.count(Fault::LogCut);
            }
            let delay = self.disk_delay(at);
            self.after(delay, Action::Synced { server: at, life });
        }
        let process = self.servers[at].process.as_mut().expect("checked above");
        if !process.checkpointing && !process.checkpoint_steps.is_empty() {
            process.checkpointing = true;
            let delay = self.disk_delay(at);
            self.after(delay, Action::CheckpointDone { server: at, life });
        }
    }

    /// The sync under way is done: everything written before it began is on disk.
    pub(crate) fn on_synced(&mut self, at: usize) {
        let process = self.servers[at].process.as_mut().expect("syncs are of running processes");
        let sync = process.syncing.take().expect("a sync is under way");
        let life = process.life;
        let known = process.failed.clone();
        let error = known.clone().or(sync.error);
        let error = error.or_else(|| process.log.sync().err().map(|error| error.to_string()));
        let mut events = Vec::new();
        if let Some(error) = error.clone().filter(|_| known.is_none()) {
            process.failed = Some(error.clone());
            self.count_disk_fault(at, &error);
            events.push(Event::WriteFailed { error });
        }
        events.extend(sync.repairs.into_iter().map(|fits| Event::Repaired { error: error.clone(), fits }));
        events.extend(sync.installed.into_iter().map(|installed| {
            Event::CheckpointDone(match &error {
                None => installed,
                Some(error) => CheckpointResult::Failed(error.clone()),
            })
        }));
        events.extend(sync.through.filter(|_| error.is_none()).map(|through| Event::Synced { through }));
        if events.is_empty() {
            self.start_disk_work(at);
        }
        for event in events {
            if self.servers[at].life() == Some(life) {
                if let Event::Synced { through } = event {
                    self.checks.on_synced(at, through);
                }
                self.deliver(at, event);
            }
        }
    }

    /// A disk that was made to fail has failed; the process ends for that, or goes on read-only.
    fn count_disk_fault(&mut self, at: usize, error: &str) {
        let Some(fault) = self.servers[at].disk_fault else {
            panic!("server {}: a write failed on a disk without faults: {error}", at + 1);
        };
        self.faults.count(fault);
        let down = self.between(Duration::from_millis(500), Duration::from_secs(4));
        let life = self.servers[at].life().expect("its disk was in use");
        self.after(down, Action::Mishap(Mishap::Replace(at, life)));
    }

    /// The shell looks at the space left (D3).
    pub(crate) fn look_at_space(&mut self, at: usize) {
        let left = self.servers[at].disk.space_left().expect("a simulated disk knows");
        let Server { process, paused, .. } = &mut self.servers[at];
        let Some(process) = process.as_mut().filter(|_| !*paused) else { return };
        let low = left < SPACE_LOW_BYTES;
        if low != process.space_low {
            process.space_low = low;
            if low {
                self.faults.count(Fault::DiskNearlyFull);
            }
            self.deliver(at, Event::DiskSpace { low });
        }
    }

    /// A read is answered with what the log holds now.
    pub(crate) fn on_read_done(&mut self, at: usize, id: ReadId, read: &Read) {
        let disk = self.servers[at].disk.clone();
        let process = self.servers[at].process.as_mut().expect("reads are of running processes");
        let result = match *read {
            Read::Entries { first, through } => match process.reader.read(first, through) {
                Ok((previous, entries)) => ReadResult::Entries { previous, entries },
                Err(error) => ReadResult::Failed(error.to_string()),
            },
            Read::Checkpoint { index, offset } => process.checkpoints.read(index, offset),
            Read::Diverged(ref place) => read_diverged(&disk, place.as_ref()),
        };
        if let ReadResult::Failed(error) = &result
            && !self.servers[at].damaged
        {
            panic!("server {}: a read failed on a disk without faults: {error}", at + 1);
        }
        self.deliver(at, Event::ReadDone { id, result });
    }

    /// A checkpoint step is done.
    pub(crate) fn on_checkpoint_done(&mut self, at: usize) {
        let Server { process, disk_fault, .. } = &mut self.servers[at];
        let process = process.as_mut().expect("checkpoints are of running processes");
        process.checkpointing = false;
        let step = process.checkpoint_steps.pop_front().expect("a step is under way");
        match process.checkpoints.step(step) {
            CheckpointResult::Failed(error) if disk_fault.is_none() => {
                panic!("server {}: a checkpoint failed on a disk without faults: {error}", at + 1);
            }
            CheckpointResult::Installed(installed) => {
                process.log_jobs.push_back(LogJob::Restart(installed));
                self.start_disk_work(at);
            }
            result => {
                if matches!(result, CheckpointResult::Finished { .. }) && !self.healed {
                    self.faults.count(Fault::Checkpoint);
                }
                self.deliver(at, Event::CheckpointDone(result));
            }
        }
    }

    /// A password job is done; the hash is a fake that everyone can see through.
    pub(crate) fn on_hashed(&mut self, at: usize, id: HashId, job: HashJob) {
        const FAKE: &str = "$fake$";
        let result = match job {
            HashJob::New { password } => Hashed::New(format!("{FAKE}{password}")),
            HashJob::Verify { password, hash } => {
                Hashed::Verified(hash.is_some_and(|hash| hash.strip_prefix(FAKE) == Some(&password)))
            }
        };
        self.deliver(at, Event::Hashed { id, result });
    }

    /// A client's connection attempt arrives; a host without power doesn't answer, a stopped process not yet.
    pub(crate) fn on_client_connect(&mut self, client: usize, epoch: u64, server: usize) {
        if !self.servers[server].powered || self.network.is_client_cut(client, server, self.now) {
            return;
        }
        if self.servers[server].paused {
            self.servers[server].held.push(Action::ClientConnect { client, epoch, server });
            return;
        }
        let delay = self.delay();
        let Some(process) = &mut self.servers[server].process else {
            self.after(delay, Action::ClientRefused { client, epoch });
            return;
        };
        process.connections_made += 1;
        let connection = ConnectionId(process.connections_made);
        process.connections.insert(connection, (client, epoch));
        let life = process.life;
        self.after(delay, Action::ClientConnected { client, epoch, server, life, connection });
    }

    /// A client's request arrives.
    pub(crate) fn on_request(&mut self, at: usize, connection: ConnectionId, request: u32, body: Request) {
        let unix_ms = self.servers[at].clock.unix_ms(self.now);
        let process = self.servers[at].process.as_ref().expect("requests are for running processes");
        let Some(&(client, _)) = process.connections.get(&connection) else { return };
        if !self.network.client_path(client, at).is_deaf(self.now) {
            self.deliver(at, Event::Request { connection, request, body, unix_ms });
        }
    }

    /// A client's connection has ended.
    pub(crate) fn on_disconnected(&mut self, at: usize, connection: ConnectionId) {
        let process = self.servers[at].process.as_mut().expect("ends are for running processes");
        if process.connections.remove(&connection).is_some() {
            self.deliver(at, Event::Disconnected { connection });
        }
    }

    fn respond(&mut self, at: usize, connection: ConnectionId, request: u32, response: Response) {
        let process = self.servers[at].process.as_ref().expect("responses are of running processes");
        let Some(&(client, epoch)) = process.connections.get(&connection) else { return };
        if self.network.client_path(client, at).is_mute(self.now) {
            return;
        }
        let delay = self.delay();
        if self.drop_replies > 0 || self.mischief(self.swarm.reply_drop_permille) {
            self.drop_replies = self.drop_replies.saturating_sub(1);
            self.faults.count(Fault::ReplyDropped);
            let life = self.servers[at].life().expect("checked above");
            self.after(delay, Action::ClientClosed { client, epoch });
            self.after(delay, Action::Disconnected { server: at, life, connection });
            return;
        }
        let arrival = self.clients[client].arrival_after(self.now + delay);
        self.queue.push(arrival, Action::Response { client, epoch, request, response: Box::new(response) });
    }

    fn close(&mut self, at: usize, connection: ConnectionId) {
        let process = self.servers[at].process.as_mut().expect("connections are of running processes");
        let Some((client, epoch)) = process.connections.remove(&connection) else { return };
        let arrival = self.now + self.delay();
        let arrival = self.clients[client].arrival_after(arrival);
        self.queue.push(arrival, Action::ClientClosed { client, epoch });
    }

    fn push(&mut self, at: usize, connection: ConnectionId, push: Push) {
        let process = self.servers[at].process.as_ref().expect("connections are of running processes");
        let Some(&(client, epoch)) = process.connections.get(&connection) else { return };
        let arrival = self.now + self.delay();
        let arrival = self.clients[client].arrival_after(arrival);
        self.queue.push(arrival, Action::Push { client, epoch, push: Box::new(push) });
    }
}

/// Hands everything that waits to the log; the sync that follows covers it.
fn begin_sync(log: &mut CommitLog<MemoryDisk>, jobs: &mut VecDeque<LogJob>, failed: Option<&str>) -> Sync {
    let error = failed.map(ToOwned::to_owned);
    let mut sync = Sync { through: None, repairs: Vec::new(), installed: Vec::new(), error };
    for job in jobs.drain(..) {
        let result = match job {
            LogJob::Write(..) | LogJob::Cut(_) if sync.error.is_some() => Ok(()),
            LogJob::Write(id, write) => {
                sync.through = Some(id);
                log.write(&write)
            }
            LogJob::Cut(through) => log.cut(through),
            LogJob::Repair(after, entries) => {
                let fits = log.fits_gap(after, &entries);
                sync.repairs.push(*fits.as_ref().unwrap_or(&true));
                fits.and_then(|fits| if fits { log.repair(after, &entries) } else { Ok(()) })
            }
            LogJob::Restart(installed) => {
                let result = log.restart_after(&installed);
                sync.installed.push(CheckpointResult::Installed(installed));
                result
            }
        };
        if let Err(error) = result {
            sync.error.get_or_insert_with(|| error.to_string());
        }
    }
    sync
}

fn event_word(event: &Event) -> u64 {
    match event {
        Event::Request { request, .. } => 1 | u64::from(*request) << 8,
        Event::Disconnected { .. } => 2,
        Event::Message { from, message } => 3 | u64::from(from.0) << 4 | message_word(message) << 8,
        Event::Link { peer, state } => {
            let state = match state {
                LinkState::Up => 0,
                LinkState::Closed => 1,
                LinkState::Refused { .. } => 2,
                LinkState::Silent => 3,
            };
            4 | u64::from(peer.0) << 4 | state << 8
        }
        Event::Synced { through } => 5 | through.0 << 8,
        Event::WriteFailed { .. } => 6,
        Event::ReadDone { id, .. } => 7 | id.0 << 8,
        Event::Hashed { id, .. } => 8 | id.0 << 8,
        Event::CheckpointDone(_) => 9,
        Event::Repaired { .. } => 10,
        Event::DiskSpace { .. } => 11,
        Event::Stop => 12,
    }
}

fn message_word(message: &PeerMessage) -> u64 {
    match message {
        PeerMessage::Heartbeat { nonce, pulse } | PeerMessage::HeartbeatOk { nonce, pulse } => {
            nonce ^ pulse.last.0 << 8 ^ pulse.commit.0 << 24
        }
        PeerMessage::Prepare { previous, entries, commit, .. } => {
            previous.index.0 ^ (entries.len() as u64) << 20 ^ commit.0 << 32
        }
        PeerMessage::PrepareOk { synced, .. } => synced.0,
        PeerMessage::Fetched { previous, entries, .. } => previous.index.0 ^ (entries.len() as u64) << 20,
        _ => 0,
    }
}
