//! Catch-up is pulled (T1): entries from the log, a checkpoint where the log no longer reaches (T3), single rows where
//! the disk has rotted (D4).

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tracing::debug;

use crate::config::{SUSPICION, UNSYNCED_BYTES_MAX};
use crate::message::{
    CheckpointStep, Entry, Installed, PeerMessage, Position, Read, ReadResult, Standing, ViewStart, Write,
};
use crate::time::Instant;
use crate::types::{LogIndex, ServerId, ViewNumber};

use super::backup::Misfit;
use super::view_change::leads;
use super::{Effect, Exit, Held, ReadId, Replica, Role};

/// A learner that has all there is asks again after this long.
const POLLED_EVERY: Duration = Duration::from_millis(50);
/// A question that is not answered within this time is repeated.
const REPEATED_AFTER: Duration = Duration::from_millis(500);

/// A server that follows without being counted.
#[derive(Debug)]
pub(super) struct Learner {
    pub(super) leader: ServerId,
    pub(super) view: ViewNumber,
    /// When the leader last said that it leads.
    pub(super) heard: Instant,
    /// When something was last asked for, and whether the answer is still awaited.
    asked: Instant,
    awaits: bool,
    /// The leader's log goes on where this one ends: so all of this one is part of it.
    pub(super) follows: bool,
    /// A checkpoint on its way.
    receiving: Option<Receiving>,
    /// Entries still missing when progress was last said.
    said_missing: u64,
}

/// A checkpoint on its way from the leader.
#[derive(Debug)]
struct Receiving {
    index: LogIndex,
    offset: u64,
    total: u64,
    /// All of it is here and is being put in place.
    installing: bool,
}

impl Learner {
    pub(super) fn new(leader: ServerId, view: ViewNumber, now: Instant) -> Self {
        let (receiving, follows) = (None, false);
        Self { leader, view, heard: now, asked: now, awaits: true, follows, receiving, said_missing: 0 }
    }

    pub(super) fn is_receiving(&self) -> bool {
        self.receiving.is_some()
    }
}

/// A read for a peer.
#[derive(Debug)]
pub(super) enum PeerRead {
    /// Answers a fetch.
    Entries { to: ServerId, view: ViewNumber, last: Position },
    /// Answers a request for rows.
    Rows { to: ServerId, after: Position, through: LogIndex },
    /// Answers a request for a part of a checkpoint.
    Checkpoint { to: ServerId, view: ViewNumber, index: LogIndex, offset: u64 },
    /// For nobody but the primary: what this server has to have proposed again.
    Diverged,
}

impl PeerRead {
    /// For whom; nobody: for this server itself.
    pub(super) fn reader(&self) -> Option<ServerId> {
        match self {
            Self::Entries { to, .. } | Self::Rows { to, .. } | Self::Checkpoint { to, .. } => Some(*to),
            Self::Diverged => None,
        }
    }
}

/// Rotten rows that are being filled in (D4).
#[derive(Debug)]
pub(super) struct Repairing {
    gaps: Vec<(Position, LogIndex)>,
    /// What has come so far for the first gap.
    rows: Vec<Arc<Entry>>,
    asked: Option<Instant>,
    /// Who gave the last of them.
    giver: Option<ServerId>,
    /// Servers that have not got the rows either.
    without: BTreeSet<ServerId>,
    writing: bool,
    /// Rows were filled in that the core does not know yet.
    filled: bool,
    /// Gaps that stay, as nobody has the rows: what they did is in the own checkpoint.
    left: Vec<(LogIndex, LogIndex)>,
}

impl Repairing {
    pub(super) fn new(gaps: Vec<(Position, LogIndex)>) -> Self {
        let (rows, without, left) = (Vec::new(), BTreeSet::new(), Vec::new());
        Self { gaps, rows, asked: None, giver: None, without, writing: false, filled: false, left }
    }

    pub(super) fn is_under_way(&self) -> bool {
        !self.gaps.is_empty()
    }

    /// Where the log can be cut so that it ends at this entry, or before the gap in which this entry was.
    fn cut_at(&self, index: LogIndex) -> LogIndex {
        let within = |(after, through): &&(LogIndex, LogIndex)| *after < index && index <= *through;
        self.left.iter().find(within).map_or(index, |(after, _)| *after)
    }

    pub(super) fn note(&self) -> Option<String> {
        let (after, through) = self.gaps.first()?;
        let without =
            if self.without.is_empty() { "" } else { "; at least one server has not got them either" };
        Some(format!(
            "entries {} to {through} are rotten on this disk: asks the others{without}",
            after.index.next()
        ))
    }
}

impl Replica {
    // -- Asking -------------------------------------------------------------------------------------------------------

    pub(super) fn send_fetch(&mut self, to: ServerId, view: ViewNumber) {
        let now = self.now;
        if self.checkpointing.is_installing() || self.has_left() {
            return;
        }
        if let Role::Learner(learner) = &mut self.role {
            learner.asked = now;
            learner.awaits = true;
        }
        let (last, views) = (self.log.last(), self.log.recent_views());
        self.send(to, PeerMessage::Fetch { view, last, views });
    }

    pub(super) fn tick_learner(&mut self) {
        let Role::Learner(learner) = &self.role else { return };
        let (leader, view) = (learner.leader, learner.view);
        if self.now.since(learner.heard) >= SUSPICION * 2 && !self.is_dead(leader) {
            return self.become_waiting(); // It lives, but leads no more.
        }
        let idle = self.now.since(learner.asked);
        if idle < if learner.awaits { REPEATED_AFTER } else { POLLED_EVERY } {
            return;
        }
        match &learner.receiving {
            Some(receiving) if receiving.installing => {}
            Some(receiving) => {
                let (index, offset) = (receiving.index, receiving.offset);
                self.fetch_checkpoint(index, offset);
            }
            None => self.send_fetch(leader, view),
        }
    }

    fn fetch_checkpoint(&mut self, index: LogIndex, offset: u64) {
        let now = self.now;
        let Role::Learner(learner) = &mut self.role else { return };
        (learner.asked, learner.awaits) = (now, true);
        let (leader, view) = (learner.leader, learner.view);
        self.send(leader, PeerMessage::FetchCheckpoint { view, index, offset });
    }

    // -- Answering ----------------------------------------------------------------------------------------------------

    /// Whether this server's log is the one to fetch from under this number: it leads the view or negotiates it, or
    /// it is a source that has promised the number to the asking leader (V4).
    fn gives_log(&self, to: ServerId, view: ViewNumber) -> bool {
        let leads = self.view.number == view && view.proposer == self.me;
        let source = self.hard.promised == view && view.proposer == to;
        leads && matches!(self.role, Role::Primary(_) | Role::Candidate(_)) || source
    }

    pub(super) fn on_fetch(&mut self, from: ServerId, view: ViewNumber, last: Position, views: &[ViewStart]) {
        if !self.gives_log(from, view) {
            return debug!(%from, %view, "ignored: a fetch for a view that is not this server's");
        }
        self.flush_batch();
        // T2: the point of divergence is the end of the last view both share.
        let by_views = !removed!("T2-views");
        let shared = self.log.shared_with(last, views);
        if shared < last.index && by_views {
            return self.send(from, PeerMessage::Diverged { view, last, shared });
        }
        if let (Some(previous), Some(entries)) =
            (self.log.position(last.index), self.log.batch_after(last.index))
        {
            if previous != last && by_views {
                // The chain tells what the views do not: these are two logs. A checkpoint makes them one.
                return self.offer_checkpoint(from, view, last);
            }
            self.note_fetched(from, last.index);
            let (commit, last) = (self.commit, self.log.last().index);
            return self.send(from, PeerMessage::Fetched { view, previous, entries, commit, last });
        }
        if last.index < self.log.disk_base.index {
            return self.offer_checkpoint(from, view, last);
        }
        let already = |read: &PeerRead| matches!(read, PeerRead::Entries { to, .. } if *to == from);
        if !self.reads.values().any(already) {
            let read = Read::Entries { first: last.index.next(), through: self.log.synced() };
            self.begin_read(PeerRead::Entries { to: from, view, last }, read);
        }
    }

    /// T4: how far a learner has come, as far as its log can be served from here.
    fn note_fetched(&mut self, from: ServerId, last: LogIndex) {
        let now = self.now;
        self.peers.get_mut(&from).expect("a configured server").fetched = Some((last, now));
    }

    pub(super) fn begin_read(&mut self, peer_read: PeerRead, read: Read) {
        let id = ReadId(self.nonce());
        self.reads.insert(id, peer_read);
        self.effects.push_back(Effect::Read { id, read });
    }

    /// T3: who has lost its place starts from a checkpoint; one is made if there is none.
    fn offer_checkpoint(&mut self, to: ServerId, view: ViewNumber, last: Position) {
        let index = self.checkpointing.newest();
        if index == LogIndex::ZERO || index < self.log.disk_base.index {
            self.checkpointing.want_now();
        } else {
            self.send(to, PeerMessage::UseCheckpoint { view, last });
        }
    }

    pub(super) fn on_read_done(&mut self, id: ReadId, result: ReadResult) {
        let Some(read) = self.reads.remove(&id) else { return };
        match (read, result) {
            (PeerRead::Entries { to, view, last }, ReadResult::Entries { previous, entries }) => {
                if entries.is_empty() {
                    return self.offer_checkpoint(to, view, last);
                }
                self.note_fetched(to, previous.index);
                let (commit, last) = (self.commit, self.log.last().index);
                self.send(to, PeerMessage::Fetched { view, previous, entries, commit, last });
            }
            (PeerRead::Rows { to, after, through }, ReadResult::Entries { previous, entries }) => {
                // A log that lacks rows itself may be another one there, and end before those that are asked for.
                let all = entries.last().is_some_and(|last| last.index == through);
                let fits = previous == after && (all || !self.repairing.is_under_way());
                let entries = if fits { entries } else { Vec::new() };
                self.send(to, PeerMessage::Rows { after, entries });
            }
            (PeerRead::Checkpoint { to, view, index, offset }, ReadResult::Checkpoint { total, bytes }) => {
                self.send(to, PeerMessage::CheckpointPart { view, index, offset, total, bytes });
            }
            (PeerRead::Diverged, ReadResult::Diverged(rows)) => self.on_diverged_read(rows),
            (PeerRead::Diverged, ReadResult::Failed(error)) => {
                self.warn(format!("diverged rows can't be read, and stay where they are: {error}"));
            }
            (_, ReadResult::Failed(error)) => self.warn(format!("a read for another server failed: {error}")),
            (read, _) => unreachable!("a read brought something else than asked: {read:?}"),
        }
    }

    /// Index 0 asks for the newest one.
    pub(super) fn on_fetch_checkpoint(
        &mut self,
        from: ServerId,
        view: ViewNumber,
        index: LogIndex,
        offset: u64,
    ) {
        if self.gives_log(from, view) {
            let index = if index == LogIndex::ZERO { self.checkpointing.newest() } else { index };
            if index == LogIndex::ZERO || index < self.log.disk_base.index {
                self.checkpointing.want_now();
                let (total, bytes) = (0, Bytes::new());
                return self.send(from, PeerMessage::CheckpointPart { view, index, offset, total, bytes });
            }
            let now = self.now;
            self.checkpointing.keep_for_learner(now);
            // One part at a time, however often it is asked for while the disk is slow.
            let already = |read: &PeerRead| matches!(read, PeerRead::Checkpoint { to, .. } if *to == from);
            if self.reads.values().any(already) {
                return;
            }
            let read = Read::Checkpoint { index, offset };
            self.begin_read(PeerRead::Checkpoint { to: from, view, index, offset }, read);
        }
    }

    // -- Taking in ----------------------------------------------------------------------------------------------------

    /// Whether something that was fetched is still wanted from this server under this number.
    fn awaits_from(&self, from: ServerId, view: ViewNumber) -> bool {
        if self.is_occupied() {
            return false;
        }
        match &self.role {
            Role::Learner(learner) => learner.leader == from && learner.view == view,
            Role::Installing(installing) => installing.leader == from && installing.view.number == view,
            Role::Backup => self.view.number == view && from == view.proposer && self.hard.promised == view,
            Role::Candidate(_) => self.fetches_from(from) == Some(view),
            _ => false,
        }
    }

    pub(super) fn on_fetched(
        &mut self,
        from: ServerId,
        view: ViewNumber,
        previous: Position,
        entries: &[Arc<Entry>],
        commit: LogIndex,
        last: LogIndex,
    ) {
        if !self.awaits_from(from, view) {
            return debug!(%from, %view, "ignored: entries that were asked for earlier");
        }
        if matches!(&self.role, Role::Learner(learner) if learner.receiving.is_some()) {
            return;
        }
        let fits = self.append_from_peer(previous, entries);
        if fits == Err(Misfit::OtherLog) && matches!(self.role, Role::Learner(_)) {
            let own = self.log.last();
            return match self.log.last_view_start() {
                // A disk that was restored from a copy has led, and given out a number for the second time: the tables of
                // views agree, and the rows don't (T2). What is surely shared ends before that view.
                Some(start) if (previous.index, previous.view) == (own.index, own.view) => {
                    self.on_diverged(from, view, own, LogIndex(start.0.saturating_sub(1)));
                }
                _ => self.start_from_checkpoint("its log is not the leader's"),
            };
        }
        match &mut self.role {
            Role::Learner(learner) => {
                learner.awaits = false;
                learner.follows |= fits.is_ok();
                self.commit_through(commit);
                self.continue_learning(last);
            }
            Role::Installing(_) => self.continue_installing(),
            Role::Candidate(_) => self.on_candidate_fetched(),
            Role::Backup => {
                self.fetch_asked = None;
                self.commit_through(commit);
                if self.log.last().index < last {
                    self.fetch_from_primary();
                }
            }
            _ => {}
        }
    }

    fn continue_learning(&mut self, end: LogIndex) {
        const SAID_EVERY: u64 = 100_000;
        let missing = self.log.last().index.distance_to(end);
        let Role::Learner(learner) = &mut self.role else { return };
        let (leader, view) = (learner.leader, learner.view);
        if missing.abs_diff(learner.said_missing) >= SAID_EVERY {
            learner.said_missing = missing;
            self.say(format!("catches up: {missing} entries to go"));
        }
        if self.log.bytes_after(self.log.synced()) > UNSYNCED_BYTES_MAX / 2 {
            return; // D2: what is not synced is bounded. The next tick asks again.
        }
        if missing > 0 {
            return self.send_fetch(leader, view);
        }
        self.forget_lost_view(view);
        if !self.said_ready {
            self.say_ready(format!("follows server {leader}, which leads view {view}, as a learner"));
        }
    }

    /// Who follows an earlier view than its own, because it could not serve any more when the two met, no longer speaks
    /// for its own: the rows of that one are moved aside, and nobody must wait for a log that is gone (R1, V3). That it
    /// has been a member of one is not forgotten: so its disk still speaks for what it has proposed (V5, V6).
    fn forget_lost_view(&mut self, followed: ViewNumber) {
        if self.view.number > followed {
            self.view.number = ViewNumber::NONE;
            self.write(Write::View(self.view.clone()));
        }
    }

    /// V7, R2: what lies above the shared point is not part of the log. It is moved aside, not lost.
    pub(super) fn on_diverged(&mut self, from: ServerId, view: ViewNumber, last: Position, shared: LogIndex) {
        if !self.awaits_from(from, view) || last != self.log.last() {
            return;
        }
        if !matches!(self.role, Role::Learner(_)) {
            return self.become_waiting();
        }
        let shared = self.repairing.cut_at(shared);
        let count = shared.distance_to(self.log.last().index);
        self.warn(format!(
            "moves {count} entries above {shared} aside, to be proposed again: they are not part of the leader's log"
        ));
        self.lose_standing();
        self.rebasing.begin();
        self.forget_lost_view(view);
        let applied = shared < self.state.index() && !removed!("R2-undo");
        if applied || self.log.position(shared).is_none() {
            return self.move_applied_aside(shared);
        }
        self.log.truncate(shared);
        if removed!("V7-cut-on-disk") {
            return self.send_fetch(from, view);
        }
        let id = self.write(Write::Truncate { after: shared });
        self.held.push_back((id, Held::Moved));
        self.commit = self.commit.min(shared);
        self.send_fetch(from, view);
    }

    /// R2: what was applied can't be taken back in memory. Once the rows are moved and the log is cut on disk, this
    /// server recovers from a checkpoint of its own from before the fork, or begins anew if it has none.
    fn move_applied_aside(&mut self, shared: LogIndex) {
        self.abandon_checkpoint();
        self.rebasing.diverging = true;
        let mut id = self.write(Write::Truncate { after: shared });
        if shared < self.log.disk_base.index {
            // The log no longer reaches back to the fork, so no part of it is any good.
            self.warn(format!(
                "entries {} to {} are no longer in the log, and can't be proposed again: what this server alone had \
                 acknowledged in them is in its last checkpoint, which is kept as checkpoints/given-up-*",
                shared.next(),
                self.log.disk_base.index
            ));
            self.hard.standing = Standing::Distrusted;
            id = self.persist_hard();
        }
        self.held.push_back((id, Held::MovedAside));
    }

    /// D5: rows that this disk may have acknowledged are about to go.
    fn lose_standing(&mut self) {
        if !matches!(self.hard.standing, Standing::Partial | Standing::Distrusted) && !removed!("D5-standing")
        {
            self.hard.standing = Standing::Partial;
            self.persist_hard();
        }
    }

    fn start_from_checkpoint(&mut self, why: &str) {
        let Role::Learner(learner) = &mut self.role else { return };
        if learner.receiving.is_some() {
            return;
        }
        let leader = learner.leader;
        self.abandon_checkpoint();
        let Role::Learner(learner) = &mut self.role else { return };
        learner.receiving = Some(Receiving { index: LogIndex::ZERO, offset: 0, total: 0, installing: false });
        self.warn(format!("starts from a checkpoint of server {leader}: {why}"));
        self.lose_standing();
        self.fetch_checkpoint(LogIndex::ZERO, 0);
    }

    pub(super) fn on_use_checkpoint(&mut self, from: ServerId, view: ViewNumber, last: Position) {
        if !self.awaits_from(from, view) || last != self.log.last() {
            return;
        }
        if !matches!(self.role, Role::Learner(_)) {
            return self.become_waiting();
        }
        self.start_from_checkpoint("its log no longer reaches back so far");
    }

    pub(super) fn on_checkpoint_part(
        &mut self,
        from: ServerId,
        view: ViewNumber,
        index: LogIndex,
        offset: u64,
        total: u64,
        bytes: Bytes,
    ) {
        if !self.awaits_from(from, view) {
            return;
        }
        let Role::Learner(learner) = &mut self.role else { return };
        learner.awaits = false;
        let Some(receiving) = &mut learner.receiving else { return };
        if receiving.installing {
            return;
        }
        if total == 0 {
            // There is none (yet), or it is gone: ask for the newest one again, a little later.
            (receiving.index, receiving.offset) = (LogIndex::ZERO, 0);
            return;
        }
        if receiving.index == LogIndex::ZERO && offset == 0 {
            receiving.index = index;
        }
        if index != receiving.index || offset != receiving.offset || bytes.is_empty() {
            return;
        }
        receiving.total = total;
        receiving.offset += bytes.len() as u64;
        let (index, next, complete) = (receiving.index, receiving.offset, receiving.offset >= total);
        receiving.installing = complete;
        self.give_step(CheckpointStep::Receive { index, offset, bytes });
        if complete {
            self.give_step(CheckpointStep::Install { index });
        } else {
            self.fetch_checkpoint(index, next);
        }
    }

    /// T5: the received checkpoint is in place, and the log starts after it.
    pub(super) fn on_checkpoint_installed(&mut self, installed: Installed) {
        let Installed { state, position, views } = installed;
        self.say(format!("has taken over a checkpoint as of entry {}", position.index));
        self.state = state;
        self.marks.forget();
        self.log.restart_after(position, views);
        self.commit = position.index;
        self.commit_noted = position.index;
        if let Role::Learner(learner) = &mut self.role {
            learner.receiving = None;
            let (leader, view) = (learner.leader, learner.view);
            self.send_fetch(leader, view);
        }
    }

    pub(super) fn on_receive_failed(&mut self, error: &str) {
        self.warn(format!("a checkpoint could not be taken over: {error}"));
        let now = self.now;
        if let Role::Learner(learner) = &mut self.role {
            learner.receiving =
                Some(Receiving { index: LogIndex::ZERO, offset: 0, total: 0, installing: false });
            (learner.asked, learner.awaits) = (now, true);
        }
    }

    // -- Rotten rows (D4) -----------------------------------------------------------------------------------------------

    pub(super) fn tick_repair(&mut self) {
        let Some((after, through)) = self.repairing.gaps.first().copied() else { return };
        let due = self.repairing.asked.is_none_or(|at| self.now.since(at) >= REPEATED_AFTER);
        if self.repairing.writing || !due || self.maybe_leave_gap() {
            return;
        }
        self.repairing.asked = Some(self.now);
        let after = self.repairing.rows.last().map_or(after, |entry| entry.position());
        self.send_to_peers(&PeerMessage::FetchRows { after, through });
    }

    /// Any server that has the rows gives them, whatever view there is; one that lacks others itself has them on its disk.
    pub(super) fn on_fetch_rows(&mut self, from: ServerId, after: Position, through: LogIndex) {
        if self.log.synced() < through && !self.repairing.is_under_way() {
            return self.send(from, PeerMessage::Rows { after, entries: Vec::new() });
        }
        let already = |read: &PeerRead| matches!(read, PeerRead::Rows { to, .. } if *to == from);
        if !self.reads.values().any(already) {
            let read = Read::Entries { first: after.index.next(), through };
            self.begin_read(PeerRead::Rows { to: from, after, through }, read);
        }
    }

    pub(super) fn on_rows(&mut self, from: ServerId, after: Position, entries: Vec<Arc<Entry>>) {
        let Some((gap, through)) = self.repairing.gaps.first().copied() else { return };
        let end = self.repairing.rows.last().map_or(gap, |entry| entry.position());
        if self.repairing.writing || after != end {
            return;
        }
        if entries.is_empty() {
            return self.on_no_rows(from);
        }
        self.repairing.rows.extend(entries.into_iter().filter(|entry| entry.index <= through));
        self.repairing.asked = None;
        self.repairing.giver = Some(from);
        if self.repairing.rows.last().is_some_and(|entry| entry.index == through) {
            self.repairing.writing = true;
            let entries = std::mem::take(&mut self.repairing.rows);
            self.effects.push_back(Effect::Repair { after: gap, entries });
        } else {
            self.tick_repair();
        }
    }

    fn on_no_rows(&mut self, from: ServerId) {
        let first = self.repairing.without.insert(from);
        if self.maybe_leave_gap() {
            return;
        }
        if self.nobody_has_rows() && self.leads_as_late(from) {
            self.repairing.giver = Some(from);
            return self.on_other_rows();
        }
        if first && self.repairing.without.len() == self.peers.len() {
            let note = self.repairing.note().unwrap_or_default();
            self.warn(format!(
                "{note}; no server has them: restore this directory from a copy, or start with an empty one"
            ));
        }
    }

    /// Whether everyone who lives has been asked for the rows, and has not got them.
    fn nobody_has_rows(&self) -> bool {
        let without = |peer: &ServerId| self.repairing.without.contains(peer) || self.is_dead(*peer);
        self.peers.keys().all(without)
    }

    /// Whether it leads a view that is not earlier than the own: its log is the one that counts.
    fn leads_as_late(&self, peer: ServerId) -> bool {
        let pulse = self.peers.get(&peer).and_then(|peer| peer.pulse.as_ref());
        pulse.is_some_and(|pulse| leads(pulse) && pulse.view >= self.view.number)
    }

    /// Rows that nobody has are not needed where the own checkpoint is later: what they did is in its tables, and the
    /// log is read on from there. Learners that ask for them start from a checkpoint (T3).
    fn maybe_leave_gap(&mut self) -> bool {
        let Some((after, through)) = self.repairing.gaps.first().copied() else { return false };
        // What follows a gap has been read if a row or the checkpoint says that it does follow.
        let is_read = through <= self.state.index() && through < self.log.last().index;
        if self.repairing.asked.is_none() || !is_read || !self.nobody_has_rows() {
            return false;
        }
        self.warn(format!(
            "entries {} to {through} are rotten on this disk, and nobody has them; what they did is in the checkpoint \
             here: goes on without them",
            after.index.next()
        ));
        self.repairing.gaps.remove(0);
        self.repairing.left.push((after.index, through));
        self.repairing.rows.clear();
        self.repairing.without.clear();
        self.repairing.asked = None;
        self.maybe_recover_repaired();
        true
    }

    pub(super) fn on_repaired(&mut self, error: Option<String>, fits: bool) {
        self.repairing.writing = false;
        if !fits {
            return self.on_other_rows();
        }
        if let Some(error) = error {
            self.repairing.asked = Some(self.now);
            return self.warn(format!("rotten rows could not be filled in: {error}"));
        }
        self.repairing.gaps.remove(0);
        self.repairing.filled = true;
        self.maybe_recover_repaired();
    }

    fn maybe_recover_repaired(&mut self) {
        if self.repairing.filled && self.repairing.gaps.is_empty() {
            self.say("the rotten rows are filled in: recovers again".to_owned());
            self.exit(Exit::Recover);
        }
    }

    /// R2: what others have in the place of the rotten rows is not followed by the rows behind them: these are of a log
    /// that has lost; or nobody has any, and the leader's log begins or ends elsewhere. If that one leads, what is behind
    /// them is moved aside, and proposed again as far as it can be read.
    fn on_other_rows(&mut self) {
        let (Some((gap, through)), Some(giver)) =
            (self.repairing.gaps.first().copied(), self.repairing.giver)
        else {
            return;
        };
        self.repairing.asked = Some(self.now);
        if !self.leads_as_late(giver) {
            return debug!(%giver, "ignored: rows of another log in the place of rotten ones");
        }
        self.repairing.writing = true;
        self.warn(format!(
            "entries {} to {through} are rotten on this disk, and server {giver}, which leads, has not got them in its \
             log: moves what is above {} aside, to be proposed again as far as it can be read",
            gap.index.next(),
            gap.index
        ));
        self.lose_standing();
        self.rebasing.begin();
        self.move_applied_aside(gap.index);
    }
}
