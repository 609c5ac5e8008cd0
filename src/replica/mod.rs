//! The sans-I/O replication core: one server's share in the protocol of N, V, T, R, D and H rules.
//!
//! Events go in, effects come out, time and randomness are arguments. Handle one event or several, then drain
//! [`Replica::poll_effect`] to `None`, in order; then wait for the next event or for [`Replica::poll_timeout`].
//! What depends on a write is held inside until [`Event::Synced`] covers that write, so whoever drives the core
//! never reorders anything and may cover many writes by one sync.
//!
//! **Invariant:** nothing here performs I/O, reads a clock or draws from a generator that was not handed in.

mod authority;
mod backup;
mod catch_up;
mod checkpoints;
mod event;
mod flights;
mod holdings;
mod log;
mod marks;
mod peer;
mod primary;
mod reads;
mod rebase;
mod requests;
mod start;
mod stop;
mod view_change;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tracing::debug;

use crate::chat::State;
use crate::config::{HEARTBEAT, MINORITY_GRACE, SUSPICION};
use crate::message::{
    Entry, HardState, PeerMessage, Pulse, Recovered, Report, Standing, Standpoint, Status, View, Write,
};
use crate::prng::Prng;
use crate::time::Instant;
use crate::types::{ClusterId, Incarnation, LogIndex, Member, ServerId, ViewNumber, WriteId};

use checkpoints::Checkpointing;
pub use event::*;
pub use holdings::Holding;
use log::Log;
use marks::Marks;
use peer::Peer;
use primary::Primary;
use rebase::Rebasing;
use requests::Requests;
use view_change::{Candidate, Installing, PreVote};

/// One server's share in the protocol.
#[derive(Debug)]
pub struct Replica {
    config: Config,
    me: ServerId,
    configured: Vec<ServerId>,
    /// When this process started, and when it last ran.
    started: Instant,
    now: Instant,
    /// The wall clock as the last request brought it, milliseconds since 1970.
    unix_ms: u64,
    prng: Prng,

    /// As last given to the disk; what depends on it is in `held` until it is there.
    hard: HardState,
    /// The installed view.
    view: View,
    log: Log,
    state: State,
    /// D7: how the state was of late.
    marks: Marks,
    /// Invariant: applied <= commit <= last.
    commit: LogIndex,
    /// The commit index that was last noted on disk, as a hint for recovery.
    commit_noted: LogIndex,

    peers: BTreeMap<ServerId, Peer>,
    role: Role,
    role_since: Instant,
    /// Since when this server has neither led nor followed one that leads; none while it does.
    viewless_since: Option<Instant>,
    /// The cluster that this server creates is not yet on its disk: nobody may hear of it.
    creating: bool,
    /// Servers that belong to another cluster, as far as they said last; and those that were complained about.
    elsewhere: BTreeSet<ServerId>,
    foreign: BTreeSet<ServerId>,
    /// A pre-vote of this server under way (V1).
    pre_vote: Option<PreVote>,
    /// Pre-votes of others that wait for a probe of the primary (V1): who, its nonce, since when.
    probing: Vec<(ServerId, u64, Instant)>,
    /// Since when a view change has seemed due.
    suspected_since: Option<Instant>,
    /// When this server was asked for its last promise. The candidate begins the view later: it waits for the answer.
    promise_asked: Instant,
    /// No attempt before this (V12), and how many have failed in a row.
    backoff: (Instant, u32),
    /// The highest counter heard of in refusals and heartbeats.
    counter_heard: u32,
    /// V2: this process installed the present view, was not told that it is dropped, and was not paused since.
    whole_life: bool,
    /// As the primary: whose return is still awaited although the cluster goes on, since it waited long enough.
    provisional: BTreeSet<ServerId>,
    /// Whom this server waits for, as last said.
    awaited: Option<authority::Awaited>,

    requests: Requests,
    /// As a backup: when the primary was last heard to lead this view, and when missing entries were last asked for.
    primary_heard: Option<Instant>,
    fetch_asked: Option<Instant>,
    /// As a backup: what was last acknowledged, and in which view.
    acknowledged: (ViewNumber, LogIndex),
    /// Entries that are in the log but not yet given to the disk and the members.
    batch: Vec<Arc<Entry>>,
    checkpointing: Checkpointing,
    repairing: catch_up::Repairing,
    rebasing: Rebasing,
    reads: BTreeMap<ReadId, catch_up::PeerRead>,

    /// Writes under way, and since when.
    writes: VecDeque<(WriteId, Instant)>,
    /// What happens when a write is on disk; ascending.
    held: VecDeque<(WriteId, Held)>,
    effects: VecDeque<Effect>,
    next_write: u64,
    next_nonce: u64,
    next_tick: Instant,

    disk_low: bool,
    /// D2: a write failed; nothing is written any more.
    disk_failed: bool,
    /// This server was asked to stop.
    stopping: Option<stop::Stopping>,
    said_ready: bool,
}

/// What a server is at the moment. A role carries what only it needs.
#[derive(Debug)]
enum Role {
    /// The bumped incarnation is on its way to the disk.
    Starting,
    /// Between views.
    Waiting,
    /// Negotiates a view that it will lead.
    Candidate(Candidate),
    /// Takes over a view that another server leads.
    Installing(Installing),
    /// Leads the installed view, and all its members have acknowledged it.
    Primary(Primary),
    /// Follows as a member of the installed view.
    Backup,
    /// Follows without being counted.
    Learner(catch_up::Learner),
    /// Ended.
    Stopped,
}

/// What depends on a write.
#[derive(Debug)]
enum Held {
    /// The incarnation is on disk: the server may speak.
    Started,
    /// That the log is closed is on disk.
    Closed,
    /// A promise may be told to its candidate.
    Promise { to: ServerId, number: ViewNumber },
    /// The own promise is on disk: the proposal may go out (V1).
    OwnPromise(ViewNumber),
    /// The view is installed: its leader may be told (V7).
    Installed { leader: ServerId, number: ViewNumber },
    /// Rows that were applied here are moved aside, and the log is cut (R2).
    MovedAside,
    /// Rows that were not applied here are moved aside (R2).
    Moved,
    /// A file of diverged rows is gone (R7).
    Forgotten,
    /// This server has given up its own cluster for this one.
    Yielded(ClusterId),
    /// This server knows at its next start that its tables are wrong (D7), and for what reason it stops.
    Distrusted(String),
}

impl Replica {
    /// A server as recovery found it. `seed` should differ from process to process.
    ///
    /// # Panics
    /// If `config` does not fit: `me` is not among the servers.
    #[must_use]
    pub fn new(config: Config, recovered: Recovered, now: Instant, seed: u64) -> Self {
        let configured: Vec<_> = (1..=config.servers.len())
            .map(|id| ServerId(u8::try_from(id).expect("a cluster list has at most 255 servers")))
            .collect();
        assert!(configured.contains(&config.me), "server {} is not configured", config.me);
        let Recovered { hard, view, state, applied, tail, closed, views, base, checkpoint, gaps, diverged } =
            recovered;
        let me = config.me;
        let known = |server: ServerId| {
            let seen = hard.incarnations.iter().chain(&view.members).filter(|m| m.server == server);
            seen.map(|m| m.incarnation).max().unwrap_or_default()
        };
        let peers =
            configured.iter().filter(|&&id| id != me).map(|&id| (id, Peer::new(now, known(id)))).collect();
        let mut replica = Self {
            me,
            configured,
            started: now,
            now,
            unix_ms: tail.last().map_or(0, |entry| entry.unix_ms),
            prng: Prng::new(seed),
            view,
            log: Log::recovered(applied, closed, tail, views, base),
            commit: applied.index,
            commit_noted: applied.index,
            checkpointing: Checkpointing::new(now, checkpoint, state.bytes_estimate()),
            state,
            marks: Marks::default(),
            peers,
            role: Role::Starting,
            role_since: now,
            viewless_since: Some(now),
            creating: false,
            elsewhere: BTreeSet::new(),
            foreign: BTreeSet::new(),
            pre_vote: None,
            probing: Vec::new(),
            suspected_since: None,
            promise_asked: now,
            backoff: (now, 0),
            counter_heard: 0,
            whole_life: false,
            provisional: BTreeSet::new(),
            awaited: None,
            requests: Requests::default(),
            primary_heard: None,
            fetch_asked: None,
            acknowledged: (ViewNumber::NONE, LogIndex::ZERO),
            batch: Vec::new(),
            repairing: catch_up::Repairing::new(gaps),
            rebasing: Rebasing::new(diverged),
            reads: BTreeMap::new(),
            writes: VecDeque::new(),
            held: VecDeque::new(),
            effects: VecDeque::new(),
            next_write: 0,
            next_nonce: 0,
            next_tick: now,
            disk_low: false,
            disk_failed: false,
            stopping: None,
            said_ready: false,
            hard,
            config,
        };
        assert_eq!(replica.state.index(), applied.index, "recovery says one index and its state another");
        replica.begin_life();
        replica
    }

    /// Takes in what has happened.
    pub fn handle_event(&mut self, now: Instant, event: Event) {
        self.run_at(now);
        if matches!(self.role, Role::Stopped) {
            return;
        }
        match event {
            Event::Request { connection, request, body, unix_ms } => {
                self.unix_ms = unix_ms;
                // It says nothing of the others, and is the most frequent event: the next tick evaluates.
                return self.on_request(connection, request, body);
            }
            Event::Disconnected { connection } => self.requests.on_disconnected(connection),
            Event::Message { from, message } => self.on_message(from, message),
            Event::Link { peer, state } => self.on_link(peer, state),
            Event::Synced { through } => self.on_synced(through),
            Event::WriteFailed { error } => self.on_write_failed(&error),
            Event::ReadDone { id, result } => self.on_read_done(id, result),
            Event::Hashed { id, result } => self.on_hashed(id, result),
            Event::CheckpointDone(result) => self.on_checkpoint_done(result),
            Event::Repaired { error, fits } => self.on_repaired(error, fits),
            Event::DiskSpace { low } => self.disk_low = low,
            Event::Stop => self.on_stop(),
        }
        self.evaluate();
    }

    /// Takes in that time has passed. Spurious calls are harmless.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.run_at(now);
        if matches!(self.role, Role::Stopped | Role::Starting) {
            return;
        }
        if self.now >= self.next_tick {
            self.next_tick = self.now + HEARTBEAT;
            self.on_tick();
        }
        self.evaluate();
    }

    /// The next thing to do; `None` when there is nothing left to do.
    #[must_use]
    pub fn poll_effect(&mut self) -> Option<Effect> {
        if self.effects.is_empty() {
            self.flush_batch();
        }
        self.effects.pop_front()
    }

    /// When [`Replica::handle_timeout`] wants to be called, at the latest.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        if matches!(self.role, Role::Stopped | Role::Starting) {
            return None;
        }
        let tick = self.next_tick;
        Some(self.attempt_due().map_or(tick, |due| due.max(self.now).min(tick)))
    }

    /// The replicated state.
    #[must_use]
    pub fn state(&self) -> &State {
        &self.state
    }

    /// How far entries are known to be committed.
    #[must_use]
    pub fn commit_index(&self) -> LogIndex {
        self.commit
    }

    /// The installed view.
    #[must_use]
    pub fn installed_view(&self) -> &View {
        &self.view
    }

    /// The chain at an index, if it is in memory: for checkers.
    #[must_use]
    pub fn entry_chain(&self, index: LogIndex) -> Option<u32> {
        self.log.position(index).map(|position| position.chain)
    }

    /// Whether this server leads and answers clients.
    #[must_use]
    pub fn is_serving(&self) -> bool {
        matches!(&self.role, Role::Primary(primary) if primary.is_serving(self.commit))
    }

    /// How the server is.
    #[must_use]
    pub fn status(&self, now: Instant) -> Status {
        let address = |server: ServerId| self.config.servers[usize::from(server.0) - 1].clone();
        let primary = self.leader();
        let ahead = primary.and_then(|id| self.peers.get(&id)).and_then(|peer| peer.pulse.as_ref());
        let last = self.log.last().index;
        Status {
            server: address(self.me),
            role: match self.role {
                Role::Primary(_) => "primary",
                Role::Backup if self.awaits().is_none() => "backup",
                Role::Learner(_) if self.awaits().is_none() => "learner",
                _ => "waiting",
            }
            .to_owned(),
            view: self.view.number,
            primary: primary.map(address).unwrap_or_default(),
            members: self.view.members.iter().map(|member| address(member.server)).collect(),
            configured: self.config.servers.clone(),
            last: last.0,
            synced: self.log.synced().0,
            commit: self.commit.0,
            applied: self.state.index().0,
            lag: ahead.map_or(0, |pulse| last.distance_to(pulse.last)),
            since_ms: u64::try_from(now.since(self.role_since).as_millis()).unwrap_or(u64::MAX),
            note: self.status_note(),
        }
    }

    fn status_note(&self) -> String {
        if let Some(note) = self.repairing.note() {
            return note;
        }
        match self.awaits() {
            Some(awaited) => self.describe_awaited(awaited),
            None if self.rebasing.is_pending() => self.rebasing.note().unwrap_or_default(),
            None if !self.provisional.is_empty() && matches!(self.role, Role::Primary(_)) => {
                let names = self.names(&self.provisional.iter().copied().collect::<Vec<_>>());
                format!("provisional: goes on without {names}, which may hold acknowledged messages")
            }
            None if self.disk_low => "the disk is nearly full".to_owned(),
            None => String::new(),
        }
    }

    /// For whom this server waits: nobody leads, and it has found that it must not either.
    fn awaits(&self) -> Option<&authority::Awaited> {
        let leaderless = matches!(self.role, Role::Waiting) || self.suspected_since.is_some();
        self.awaited.as_ref().filter(|_| leaderless)
    }

    // -- Running ------------------------------------------------------------------------------------------------

    /// Moves the clock on, and notices when this process did not run for longer than the suspicion timeout (V2).
    fn run_at(&mut self, now: Instant) {
        let gap = now.since(self.now);
        self.now = self.now.max(now);
        if gap <= SUSPICION || removed!("V2-pause") || matches!(self.role, Role::Starting | Role::Stopped) {
            return;
        }
        self.whole_life = false;
        self.pre_vote = None;
        self.probing.clear();
        for peer in self.peers.values_mut() {
            peer.on_pause(now);
        }
        if matches!(self.role, Role::Candidate(_) | Role::Installing(_)) {
            self.abandon();
        }
        self.effects.push_back(Effect::ResetLinks);
        self.warn(format!(
            "this process did not run for {} ms: others may have gone on without it",
            gap.as_millis()
        ));
    }

    fn on_tick(&mut self) {
        for peer in self.peers.keys().copied().collect::<Vec<_>>() {
            self.send_heartbeat(peer);
        }
        match &self.role {
            Role::Primary(_) => self.tick_primary(),
            Role::Backup | Role::Learner(_) => self.tick_follower(),
            Role::Candidate(_) => self.tick_candidate(),
            Role::Installing(_) => self.tick_installing(),
            Role::Waiting => self.tick_waiting(),
            Role::Starting | Role::Stopped => {}
        }
        self.tick_pre_vote();
        self.tick_repair();
        self.tick_rebase();
        self.tick_stop();
        self.maybe_begin_checkpoint();
        self.maybe_note_commit();
    }

    /// Looks whether what is believed of the others calls for a step, after each event that could change it.
    fn evaluate(&mut self) {
        self.settle_probes();
        match &self.role {
            Role::Primary(_) => self.maybe_reconfigure(),
            Role::Candidate(_) => self.check_candidate(),
            Role::Backup | Role::Waiting | Role::Learner(_) => self.maybe_attempt(),
            Role::Installing(_) => self.check_installing(),
            Role::Starting | Role::Stopped => {}
        }
    }

    fn on_link(&mut self, from: ServerId, state: LinkState) {
        let now = self.now;
        let Some(peer) = self.peers.get_mut(&from) else { return };
        peer.on_link(now, state);
        if state == LinkState::Up && !matches!(self.role, Role::Starting) {
            self.send_heartbeat(from);
            self.repeat_to(from);
        }
    }

    fn on_message(&mut self, from: ServerId, message: PeerMessage) {
        if matches!(self.role, Role::Starting) {
            return;
        }
        if !self.peers.contains_key(&from) {
            return;
        }
        // What a server of another cluster negotiates does not concern this one.
        let heartbeat = matches!(message, PeerMessage::Heartbeat { .. } | PeerMessage::HeartbeatOk { .. });
        if !heartbeat && self.hard.cluster.is_some() && self.elsewhere.contains(&from) {
            return debug!(%from, "ignored: a message of another cluster");
        }
        match message {
            PeerMessage::Heartbeat { nonce, pulse } => self.on_heartbeat(from, nonce, pulse),
            PeerMessage::HeartbeatOk { nonce, pulse } => self.on_heartbeat_ok(from, nonce, pulse),
            PeerMessage::Prepare { view, previous, entries, commit } => {
                self.on_prepare(from, view, previous, &entries, commit);
            }
            PeerMessage::PrepareOk { view, incarnation, synced } => {
                self.on_prepare_ok(from, view, incarnation, synced);
            }
            PeerMessage::Barrier { view, nonce } => self.on_barrier(from, view, nonce),
            PeerMessage::BarrierOk { view, nonce, incarnation } => {
                self.on_barrier_ok(from, view, nonce, incarnation);
            }
            PeerMessage::PreVote { nonce } => self.on_pre_vote(from, nonce),
            PeerMessage::PreVoteOk { nonce, veto, report } => self.on_pre_vote_ok(from, nonce, veto, report),
            PeerMessage::Propose { number, dropping } => self.on_propose(from, number, &dropping),
            PeerMessage::Promise { number, report } => self.on_promise(from, number, report),
            PeerMessage::Refuse { number, promised } => self.on_refuse(number, promised),
            PeerMessage::NewView { cluster, view, start, views, lives } => {
                self.on_new_view(from, cluster, view, start, views, &lives);
            }
            PeerMessage::NewViewOk { number, incarnation } => self.on_new_view_ok(from, number, incarnation),
            PeerMessage::Fetch { view, last, views } => self.on_fetch(from, view, last, &views),
            PeerMessage::Fetched { view, previous, entries, commit, last } => {
                self.on_fetched(from, view, previous, &entries, commit, last);
            }
            PeerMessage::Diverged { view, last, shared } => self.on_diverged(from, view, last, shared),
            PeerMessage::Rebase { view, incarnation, nonce, fork, rows } => {
                self.on_rebase(from, view, incarnation, nonce, fork, &rows);
            }
            PeerMessage::RebaseOk { view, nonce } => self.on_rebase_ok(from, view, nonce),
            PeerMessage::Differs { view, mark } => self.on_differs(from, view, mark),
            PeerMessage::UseCheckpoint { view, last } => self.on_use_checkpoint(from, view, last),
            PeerMessage::FetchCheckpoint { view, index, offset } => {
                self.on_fetch_checkpoint(from, view, index, offset);
            }
            PeerMessage::CheckpointPart { view, index, offset, total, bytes } => {
                self.on_checkpoint_part(from, view, index, offset, total, bytes);
            }
            PeerMessage::FetchRows { after, through } => self.on_fetch_rows(from, after, through),
            PeerMessage::Rows { after, entries } => self.on_rows(from, after, entries),
        }
    }

    fn on_synced(&mut self, through: WriteId) {
        self.log.mark_synced(through);
        while self.writes.front().is_some_and(|(id, _)| *id <= through) {
            self.writes.pop_front();
        }
        while self.held.front().is_some_and(|(id, _)| *id <= through) {
            let (_, held) = self.held.pop_front().expect("there is a first one");
            match held {
                Held::Started => self.on_started(),
                Held::Closed => self.on_closed(),
                Held::Promise { to, number } => self.tell_promise(to, number),
                Held::OwnPromise(number) => self.on_own_promise(number),
                Held::Installed { leader, number } => self.on_installed(leader, number),
                Held::MovedAside => self.on_moved_aside(),
                Held::Moved => self.rebasing.on_moved(),
                Held::Forgotten => self.on_forgotten(),
                Held::Yielded(cluster) => self.on_yielded(cluster),
                Held::Distrusted(reason) => self.on_distrusted(reason),
            }
        }
        match &self.role {
            Role::Primary(_) => self.advance_commit(),
            Role::Backup => self.acknowledge_synced(),
            _ => {}
        }
    }

    // -- Writing and sending ------------------------------------------------------------------------------------

    fn write(&mut self, write: Write) -> WriteId {
        self.flush_batch();
        self.next_write += 1;
        let id = WriteId(self.next_write);
        self.emit_write(id, write);
        id
    }

    fn emit_write(&mut self, id: WriteId, write: Write) {
        if !self.disk_failed {
            self.writes.push_back((id, self.now));
            self.effects.push_back(Effect::Write { id, write });
        }
    }

    fn persist_hard(&mut self) -> WriteId {
        self.write(Write::HardState(self.hard.clone()))
    }

    fn send(&mut self, to: ServerId, message: PeerMessage) {
        assert_ne!(to, self.me, "a server does not write to itself");
        self.effects.push_back(Effect::Send { to, message });
    }

    fn send_to_peers(&mut self, message: &PeerMessage) {
        for peer in self.peers.keys().copied().collect::<Vec<_>>() {
            self.send(peer, message.clone());
        }
    }

    fn say(&mut self, text: String) {
        self.effects.push_back(Effect::Notice(Notice { warning: false, text, ready: false }));
    }

    fn warn(&mut self, text: String) {
        self.effects.push_back(Effect::Notice(Notice { warning: true, text, ready: false }));
    }

    fn say_ready(&mut self, text: String) {
        let ready = !std::mem::replace(&mut self.said_ready, true);
        self.effects.push_back(Effect::Notice(Notice { warning: false, text, ready }));
    }

    fn exit(&mut self, exit: Exit) {
        self.role = Role::Stopped;
        self.effects.push_back(Effect::Exit(exit));
    }

    fn nonce(&mut self) -> u64 {
        self.next_nonce += 1;
        self.next_nonce
    }

    fn become_role(&mut self, role: Role) {
        let between = |role: &Role| matches!(role, Role::Starting | Role::Waiting | Role::Candidate(_));
        if between(&role) {
            self.viewless_since.get_or_insert(self.now);
        } else {
            self.viewless_since = None;
        }
        self.role = role;
        self.role_since = self.now;
    }

    /// D2: never retry, never acknowledge; leave the view and exit. A sole member turns read-only.
    fn on_write_failed(&mut self, error: &str) {
        if removed!("D2-retry") {
            return self.on_synced(WriteId(self.next_write));
        }
        self.disk_failed = true;
        let alone = self.view.members.len() == 1 && matches!(self.role, Role::Primary(_));
        if alone {
            self.warn(format!("the disk failed ({error}): as the only member this server goes on read-only"));
            self.interrupt_requests();
        } else {
            self.exit(Exit::Disk(error.to_owned()));
        }
    }

    // -- Heartbeats: who lives, and how (N7, N9, V2, V11) ----------------------------------------------------------

    fn send_heartbeat(&mut self, to: ServerId) {
        self.flush_batch();
        let (nonce, now, pulse) = (self.nonce(), self.now, self.pulse_for(to));
        self.peers.get_mut(&to).expect("a configured server").begin_heartbeat(now, nonce);
        self.send(to, PeerMessage::Heartbeat { nonce, pulse });
    }

    fn on_heartbeat(&mut self, from: ServerId, nonce: u64, pulse: Pulse) {
        let answer = PeerMessage::HeartbeatOk { nonce, pulse: self.pulse_for(from) };
        self.send(from, answer);
        self.on_pulse(from, pulse);
    }

    fn on_heartbeat_ok(&mut self, from: ServerId, nonce: u64, pulse: Pulse) {
        // A new life is taken note of first: its answer is no contact with the old one.
        self.on_pulse(from, pulse.clone());
        let hears = pulse.answered || removed!("V2-answered");
        let (now, counts) = (self.now, hears && pulse.view <= self.view.number);
        // V2: should the promised view become active, this was a round trip in it.
        let promised = self.hard.promised;
        let shows = pulse.view < promised || pulse.view == promised && pulse.member && hears;
        let peer = self.peers.get_mut(&from).expect("a configured server");
        if pulse.incarnation != peer.incarnation {
            return;
        }
        if let Some(begun) = peer.end_heartbeat(now, nonce, counts) {
            if shows && !removed!("V2-before") {
                peer.promised_round_trip = Some(begun);
            }
            self.veto_probed(from, begun, &pulse);
        }
    }

    fn pulse_for(&self, to: ServerId) -> Pulse {
        let known = self.peers.get(&to).map_or(Incarnation(0), |peer| peer.incarnation);
        Pulse {
            cluster: self.hard.cluster.filter(|_| !self.creating),
            incarnation: self.hard.incarnation,
            known_incarnation: known,
            standpoint: self.standpoint(),
            view: self.view.number,
            member: self.view.member(to).is_some_and(|member| member.incarnation == known),
            primary: self.leader(),
            last: self.log.last().index,
            synced: self.log.synced(),
            commit: self.commit,
            sync_age_ms: self.sync_age_ms(),
            broken: !self.whole_life || self.hard.promised != self.view.number,
            disk_low: self.disk_low,
            leaving: self.stopping.is_some(),
            rebasing: self.rebasing.is_pending(),
            answered: self.peers.get(&to).is_some_and(|peer| !peer.is_silent_for(self.now, SUSPICION / 2)),
            blank: self.holds_nothing(),
            mark: self.marks.newest(),
        }
    }

    /// N9: how long the oldest write has been under way, in milliseconds.
    fn sync_age_ms(&self) -> u32 {
        let oldest = self.writes.front().map_or(Duration::ZERO, |(_, since)| self.now.since(*since));
        u32::try_from(oldest.as_millis()).unwrap_or(u32::MAX)
    }

    fn standpoint(&self) -> Standpoint {
        match &self.role {
            _ if self.hard.cluster.is_none() || self.creating => Standpoint::Empty,
            Role::Primary(_) => Standpoint::Primary,
            Role::Backup if self.hard.promised == self.view.number => Standpoint::Backup,
            Role::Learner(_) => Standpoint::Learner,
            _ => Standpoint::Waiting,
        }
    }

    fn on_pulse(&mut self, from: ServerId, pulse: Pulse) {
        if let (Some(own), Some(theirs)) = (self.hard.cluster, pulse.cluster)
            && own != theirs
        {
            self.elsewhere.insert(from);
            return self.on_foreign_cluster(from, theirs, &pulse);
        }
        self.elsewhere.remove(&from);
        let now = self.now;
        let peer = self.peers.get_mut(&from).expect("a configured server");
        let known = peer.incarnation;
        if !peer.on_pulse(now, pulse.clone(), pulse.view > self.view.number) {
            return debug!(%from, "ignored: a heartbeat of an earlier life");
        }
        if pulse.incarnation != known {
            self.note_incarnation(from, pulse.incarnation);
        }
        if pulse.known_incarnation > self.hard.incarnation && !removed!("V6-restored") {
            return self.on_restored_disk(from, pulse.known_incarnation, pulse.view);
        }
        self.counter_heard = self.counter_heard.max(pulse.view.counter);
        self.notice_dropped(pulse.view, pulse.member);
        if pulse.standpoint == Standpoint::Primary {
            self.on_primary_heard(from, &pulse);
        }
        if matches!(self.role, Role::Primary(_)) && pulse.view == self.view.number {
            if pulse.standpoint == Standpoint::Backup {
                self.on_prepare_ok(from, pulse.view, pulse.incarnation, pulse.synced);
                self.compare(from, &pulse.mark);
            }
        } else if matches!(self.role, Role::Backup) && from == self.view.primary() {
            self.on_primary_pulse(from, &pulse);
        }
    }

    /// V2, V10: a later view without this server exists, whoever tells.
    fn notice_dropped(&mut self, view: ViewNumber, member: bool) {
        if view > self.view.number && !member && !removed!("V2-dropped") {
            self.whole_life = false;
        }
    }

    /// V6: what others know of this server's lives must not be forgotten by a crash of theirs.
    fn note_incarnation(&mut self, server: ServerId, incarnation: Incarnation) {
        self.hard.incarnations.retain(|member| member.server != server);
        self.hard.incarnations.push(Member { server, incarnation });
        self.hard.incarnations.sort_unstable();
        if self.hard.cluster.is_some() {
            self.persist_hard();
        }
    }

    /// V6: who begins anew has met no life of anyone, and whoever has may be gone when a server that was emptied asks which
    /// of its own was the last. What this server has heard itself is later than what others know.
    fn learn_lives(&mut self, lives: &[Member]) {
        let mut learned = false;
        for life in lives {
            let Some(peer) = self.peers.get_mut(&life.server) else { continue }; // This server, or none.
            if !peer.has_lived() && !removed!("V6-passed-on") {
                peer.incarnation = life.incarnation;
                self.hard.incarnations.push(*life);
                learned = true;
            }
        }
        if learned {
            self.hard.incarnations.sort_unstable();
            self.persist_hard();
        }
    }

    /// V6: others know a later life of this server than its disk does. What the disk has lost, nobody can tell.
    fn on_restored_disk(&mut self, from: ServerId, known: Incarnation, teller_view: ViewNumber) {
        let since_born = |member: Member| member.incarnation >= self.hard.born;
        if teller_view < self.view.number && self.view.member(self.me).is_some_and(since_born) {
            // This directory has caught up in a later view than the teller knows: what it knows is of an earlier one.
            return debug!(%from, "ignored: what a server knows of an earlier directory");
        }
        self.warn(format!(
            "server {from} knows start {} of this server, its own disk only start {}: the directory was wiped or \
             restored from a copy, so it counts for nothing until it has caught up",
            known.0, self.hard.incarnation.0
        ));
        self.hard.incarnation = Incarnation(known.0.saturating_add(1));
        self.whole_life = false;
        self.hard.standing = Standing::Partial;
        self.hard.born = self.hard.incarnation;
        self.persist_hard();
        if !matches!(self.role, Role::Waiting | Role::Learner(_)) {
            self.become_waiting();
        }
    }

    // -- Evidence (V11) ---------------------------------------------------------------------------------------------

    /// V11: silence of the suspicion timeout, and 3 s more for whoever reaches less than a majority. Whom its next view
    /// would leave out does not count: another server may reach that one too, and go on as well.
    fn silence_timeout(&self) -> Duration {
        let heard =
            |(_, peer): &(&ServerId, &Peer)| !peer.is_silent_for(self.now, SUSPICION) && !peer.is_refused();
        let heard: Vec<_> = self.peers.iter().filter(heard).map(|(id, _)| *id).collect();
        let refused = self.peers.values().filter(|peer| peer.is_refused()).count();
        // Whoever is refused is dead for certain: only the silent ones may be a majority that goes on elsewhere.
        let silent = self.peers.len() - heard.len() - refused;
        let reached = 1 + heard.iter().filter(|id| !self.is_to_be_left_out(**id)).count();
        if reached >= self.majority() || silent == 0 || removed!("V11-minority") {
            SUSPICION
        } else {
            SUSPICION + MINORITY_GRACE
        }
    }

    /// V11: known dead, by a refused connection or by silence.
    fn is_dead(&self, server: ServerId) -> bool {
        let Some(peer) = self.peers.get(&server) else { return false };
        let is_silent_for = |timeout| peer.is_silent_for(self.now, timeout);
        // Most are not silent at all: then it doesn't matter how many are.
        (self.config.evidence && peer.is_refused())
            || (is_silent_for(SUSPICION) && is_silent_for(self.silence_timeout()))
    }

    fn dead(&self) -> BTreeSet<ServerId> {
        self.configured.iter().copied().filter(|&server| self.is_dead(server)).collect()
    }

    /// Whether the life that was a member of the installed view is over.
    fn is_gone(&self, member: Member) -> bool {
        member.server != self.me
            && (self.is_dead(member.server)
                || self.peers.get(&member.server).is_some_and(|peer| peer.incarnation > member.incarnation))
    }

    /// V2: whether this server is continuous, if whoever has dropped it has waited for `silence` at least. It must have been
    /// in touch with each member that is gone, for that one may have dropped it and gone on; a backup with its primary in
    /// any case.
    fn is_continuous(&self, silence: Duration) -> bool {
        if !self.whole_life && !removed!("V2-same-life") {
            return false;
        }
        let primary = self.view.primary();
        let matters = |member: &&Member| member.server == primary || self.is_gone(**member);
        let in_touch = |member: &Member| {
            self.peers.get(&member.server).is_none_or(|peer| {
                let is_silent = self.is_dead(member.server) && !peer.is_refused();
                peer.was_in_touch(self.now, member.incarnation, is_silent, silence)
            })
        };
        self.view.exists() && self.view.members.iter().filter(matters).all(in_touch)
    }

    fn majority(&self) -> usize {
        self.configured.len() / 2 + 1
    }

    /// What this server says of itself in a view change.
    fn report(&self) -> Report {
        Report {
            incarnation: self.hard.incarnation,
            born: self.hard.born,
            promised: self.hard.promised,
            outstanding: self.hard.outstanding.clone(),
            installed: self.view.clone(),
            last: self.log.last(),
            standing: match self.hard.standing {
                Standing::Distrusted => Standing::Partial,
                standing => standing,
            },
            continuous: self.is_continuous(SUSPICION),
            nearly_continuous: self.is_continuous(SUSPICION + MINORITY_GRACE),
            empty: self.hard.cluster.is_none()
                || self.repairing.is_under_way()
                || self.checkpointing.is_installing(),
            closed: self.log_ends_closed(),
            rebasing: self.rebasing.is_pending(),
        }
    }

    /// Who leads, as far as this server knows.
    fn leader(&self) -> Option<ServerId> {
        match &self.role {
            Role::Primary(_) => Some(self.me),
            Role::Backup => Some(self.view.primary()),
            Role::Learner(learner) => Some(learner.leader),
            _ => None,
        }
    }

    // -- Applying ---------------------------------------------------------------------------------------------------

    /// Moves the commit index on, and applies (N7: applied never runs ahead of commit).
    fn commit_through(&mut self, index: LogIndex) {
        let index = index.min(self.log.last().index);
        if index <= self.commit {
            return;
        }
        self.commit = index;
        while self.state.index() < self.commit {
            let next = self.state.index().next();
            let entry = Arc::clone(self.log.entry(next).expect("what is not applied is in memory"));
            self.checkpointing.on_applied(self.now, entry.bytes.len() as u64);
            let unix_ms = if removed!("N3-time") { self.unix_ms } else { entry.unix_ms };
            let outcome = self.state.apply(entry.index, unix_ms, entry.chain, &entry.operation);
            self.maybe_mark(&entry);
            self.on_applied(&entry, outcome);
        }
        self.log.forget_applied(self.state.index());
    }

    /// Now and then notes the commit index on disk, so that recovery can apply as it reads.
    fn maybe_note_commit(&mut self) {
        const NOTED_EVERY: u64 = 1024;
        if self.commit_noted.distance_to(self.commit) >= NOTED_EVERY {
            self.commit_noted = self.commit;
            self.write(Write::Commit(self.commit));
        }
    }
}
