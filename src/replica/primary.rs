//! The primary of an active view: appending, committing, and keeping the view to those that keep up (N2-N10, V10).

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tracing::debug;

use crate::chat::command::Operation;
use crate::config::{BATCH_ENTRIES_MAX, SUSPICION};
use crate::message::{Entry, PeerMessage, Position, Write};
use crate::time::Instant;
use crate::types::{Incarnation, LogIndex, ServerId, ViewNumber};

use super::marks::Compared;
use super::reads::Reads;
use super::rebase::Proposed;
use super::view_change::is_stuck;
use super::{Replica, Role};

/// N9: an entry that a member has not acknowledged for this long is late,
pub(super) const LATE: Duration = Duration::from_millis(100);
/// while the primary's own disk takes less than this,
const OWN_SYNC_MAX: Duration = Duration::from_millis(25);
/// and a member whose entries are late for this long is dropped.
const SLOW_FOR: Duration = Duration::from_secs(1);
/// A member that was dropped as slow may come back after this long, doubled each time up to the bound.
const BAN: Duration = Duration::from_secs(10);
const BAN_DOUBLINGS_MAX: u32 = 5;
/// A view stands this long before it is changed for anything less than a crash.
const VIEW_SETTLES: Duration = Duration::from_millis(100);
/// The same for making a paused server continuous again (V2).
const VIEW_REGROUPS: Duration = Duration::from_millis(300);
/// A learner that has fetched within this time is there to be taken in.
const FETCHED_LATELY: Duration = Duration::from_millis(300);

/// What a primary keeps beside the log.
#[derive(Debug)]
pub(super) struct Primary {
    /// The view's first entry: with it everything before it commits (V8).
    view_entry: LogIndex,
    /// How far each other member's log is synced, by acknowledgements of this view.
    synced: BTreeMap<ServerId, LogIndex>,
    /// Where the log ended at each tick of late, to tell how old an entry is.
    pub(super) marks: VecDeque<(Instant, LogIndex)>,
    /// Not before this is a view change tried again that is no crash's.
    pub(super) regroup_after: Instant,
    pub(super) reads: Reads,
    /// The last batch of diverged rows of each server (R3).
    pub(super) proposed: BTreeMap<ServerId, Proposed>,
    /// Whether the members' states are the same (D7), and who was told that its own is wrong.
    pub(super) compared: Compared,
    pub(super) told: BTreeSet<ServerId>,
}

impl Primary {
    /// N8: nothing is answered before the view's own first entry has committed.
    pub(super) fn is_serving(&self, commit: LogIndex) -> bool {
        commit >= self.view_entry || removed!("N8-view-entry")
    }
}

impl Replica {
    pub(super) fn become_primary(&mut self, start: Position) {
        let others = self.view.members.iter().map(|member| member.server).filter(|id| *id != self.me);
        let primary = Primary {
            view_entry: start.index.next(),
            synced: others.map(|id| (id, start.index)).collect(),
            marks: VecDeque::new(),
            regroup_after: self.now + VIEW_SETTLES,
            reads: Reads::default(),
            proposed: BTreeMap::new(),
            compared: Compared::default(),
            told: BTreeSet::new(),
        };
        for peer in self.peers.values_mut() {
            peer.slow_since = None;
        }
        self.backoff = (self.now, 0);
        self.suspected_since = None;
        self.awaited = None;
        self.provisional.retain(|id| self.view.member(*id).is_none());
        self.whole_life = true;
        self.become_role(Role::Primary(primary));
        let (primary, members) = (self.me, self.view.members.clone());
        let absent = self.configured.iter().copied().filter(|id| self.view.member(*id).is_none()).collect();
        self.append(Operation::View { primary, members, absent });
        let servers: Vec<_> = self.view.members.iter().map(|member| member.server.to_string()).collect();
        let (number, of) = (self.view.number, self.configured.len());
        self.say_ready(format!("leads view {number} of servers {} of {of}", servers.join(", ")));
        for peer in self.peers.keys().copied().collect::<Vec<_>>() {
            self.send_heartbeat(peer);
        }
        self.advance_commit();
    }

    /// Appends an entry to the log; it goes to the disk and to the members with the batch it falls into (N4).
    pub(super) fn append(&mut self, operation: Operation) {
        self.append_at(self.unix_ms, operation);
    }

    /// Appends an entry of another time than now: one that is proposed again keeps its own (R10).
    pub(super) fn append_at(&mut self, unix_ms: u64, operation: Operation) {
        let last = self.log.last();
        let entry = Arc::new(Entry::new(last.index.next(), self.view.number, unix_ms, operation, last.chain));
        self.log.append(Arc::clone(&entry));
        self.batch.push(entry);
        if self.batch.len() >= BATCH_ENTRIES_MAX {
            self.flush_batch();
        }
    }

    /// N4: the batch goes to all members in parallel with the own sync; nothing waits for the own disk first.
    pub(super) fn flush_batch(&mut self) {
        let Some(first) = self.batch.first().map(|entry| entry.index) else { return };
        let entries = std::mem::take(&mut self.batch);
        let previous = self.log.position(first.previous()).expect("a batch follows what is in memory");
        self.next_write += 1;
        let id = crate::types::WriteId(self.next_write);
        self.log.written(id);
        self.emit_write(id, Write::Append(entries.clone()));
        let (view, commit) = (self.view.number, self.commit);
        for member in self.view.members.clone() {
            if member.server != self.me {
                let entries = entries.clone();
                self.send(member.server, PeerMessage::Prepare { view, previous, entries, commit });
            }
        }
    }

    /// N6: acknowledgements count only for this view and the incarnation in it.
    pub(super) fn on_prepare_ok(
        &mut self,
        from: ServerId,
        view: ViewNumber,
        incarnation: Incarnation,
        synced: LogIndex,
    ) {
        let member = self.view.member(from);
        let last = self.log.last().index;
        let Role::Primary(primary) = &mut self.role else { return };
        if view != self.view.number || member.is_none_or(|member| member.incarnation != incarnation) {
            return debug!(%from, %view, "ignored: an acknowledgement for another view or of another life");
        }
        if synced > last {
            return debug!(%from, "ignored: an acknowledgement of more than the log holds");
        }
        let known = primary.synced.get_mut(&from).expect("every other member is counted");
        if synced > *known {
            *known = synced;
            self.advance_commit();
        }
    }

    /// N6: commit is the minimum of what is synced at all members, this server included.
    pub(super) fn advance_commit(&mut self) {
        let Role::Primary(primary) = &self.role else { return };
        let fastest = primary.synced.values().copied().max().filter(|_| removed!("N6-all"));
        let everywhere = primary.synced.values().copied().min().unwrap_or(self.log.synced());
        let everywhere = fastest.unwrap_or(everywhere);
        let everywhere = if removed!("N6-own-disk") { everywhere } else { everywhere.min(self.log.synced()) };
        if everywhere < primary.view_entry || everywhere <= self.commit {
            return;
        }
        let served = primary.is_serving(self.commit);
        let before = self.commit;
        self.commit_through(everywhere);
        self.answer_rebases(before);
        if !served {
            self.on_serving();
        }
    }

    /// The view's first entry has committed: members are told at once, and the requests that waited are taken up.
    fn on_serving(&mut self) {
        for peer in self.peers.keys().copied().collect::<Vec<_>>() {
            self.send_heartbeat(peer);
        }
        self.take_up_waiting();
    }

    pub(super) fn tick_primary(&mut self) {
        let (now, last) = (self.now, self.log.last().index);
        let Role::Primary(primary) = &mut self.role else { return };
        primary.marks.push_back((now, last));
        // One mark older than the limit stays: it tells what is late.
        while primary.marks.get(1).is_some_and(|(at, _)| now.since(*at) >= LATE) {
            primary.marks.pop_front();
        }
        self.watch_slow_members();
        self.repeat_barrier();
        self.maybe_expire_sessions();
    }

    /// N9: notes since when each member's oldest unacknowledged entry has been late.
    fn watch_slow_members(&mut self) {
        let now = self.now;
        let Role::Primary(primary) = &self.role else { return };
        let mark = |age: Duration| {
            primary
                .marks
                .iter()
                .rev()
                .find(|(at, _)| now.since(*at) >= age)
                .map_or(LogIndex::ZERO, |(_, last)| *last)
        };
        let own_disk_keeps_up = self.log.synced() >= mark(OWN_SYNC_MAX);
        let late = mark(LATE);
        for (id, synced) in &primary.synced {
            let peer = self.peers.get_mut(id).expect("a member is configured");
            // Who does not answer at all is not slow but silent, and is dropped for that (V10).
            if own_disk_keeps_up && *synced < late && !peer.is_silent_for(now, SUSPICION) {
                peer.slow_since.get_or_insert(now);
            } else {
                peer.slow_since = None;
            }
        }
    }

    /// Whether the view should change: without the dead at once, for anything else when it has settled.
    pub(super) fn maybe_reconfigure(&mut self) {
        let now = self.now;
        let Role::Primary(primary) = &self.role else { return };
        if self.is_closing() {
            return; // Nothing may follow the `closed` entry.
        }
        if self.disk_failed {
            return; // D2: it can write nothing, and so change nothing.
        }
        let settled = now.since(self.role_since) >= VIEW_REGROUPS && self.stopping.is_none();
        if !self.whole_life && settled && !self.peers.is_empty() {
            // V1: it did not run for a while, or a later view does without it: it asks first, as whoever does not lead.
            if removed!("V1-woken") {
                return self.propose(Vec::new(), &BTreeMap::new());
            }
            return self.become_waiting();
        }
        if self.view.members.iter().any(|member| self.is_gone(*member)) {
            return self.propose(Vec::new(), &BTreeMap::new());
        }
        if !primary.is_serving(self.commit) && now.since(self.role_since) >= SUSPICION * 2 {
            return self.propose(Vec::new(), &BTreeMap::new()); // A member has promised something else meanwhile.
        }
        if now < primary.regroup_after || !primary.is_serving(self.commit) || self.stopping.is_some() {
            return;
        }
        if let Some(slow) = self.slow_member().filter(|_| !removed!("N9-slow")) {
            self.ban(slow);
            return self.propose(vec![slow], &BTreeMap::new());
        }
        let leavers = self.leavers();
        if !leavers.is_empty() || self.has_broken_member() || self.has_learner_to_take_in() {
            self.propose(leavers, &BTreeMap::new());
        }
    }

    /// N9: a member that is slow throughout a second.
    fn slow_member(&self) -> Option<ServerId> {
        let slow =
            |id: &ServerId| self.peers[id].slow_since.is_some_and(|since| self.now.since(since) >= SLOW_FOR);
        self.peers.keys().copied().find(|id| self.view.member(*id).is_some() && slow(id))
    }

    fn ban(&mut self, slow: ServerId) {
        let now = self.now;
        let peer = self.peers.get_mut(&slow).expect("a member is configured");
        let times = peer.banned.map_or(0, |(_, times)| times);
        peer.banned = Some((now + BAN * (1 << times.min(BAN_DOUBLINGS_MAX)), times + 1));
        peer.slow_since = None;
        self.warn(format!("drops server {slow} from the view: its disk or its link is too slow"));
    }

    fn leavers(&self) -> Vec<ServerId> {
        let leaving = |id: &ServerId| self.peers[id].leaves(self.now);
        self.peers.keys().copied().filter(|id| self.view.member(*id).is_some() && leaving(id)).collect()
    }

    /// V2: a member that was paused is not continuous until a new view is installed.
    fn has_broken_member(&self) -> bool {
        let broken = |id: &ServerId| {
            self.view.member(*id).is_some() && self.peers[id].pulse.as_ref().is_some_and(|pulse| pulse.broken)
        };
        self.now.since(self.role_since) >= VIEW_REGROUPS && self.peers.keys().any(broken)
    }

    /// T4: a learner enters the view when its lag is under a batch.
    fn has_learner_to_take_in(&self) -> bool {
        let last = self.log.last().index;
        self.peers.iter().any(|(id, peer)| {
            let near = peer.fetched.is_some_and(|(end, at)| {
                self.now.since(at) <= FETCHED_LATELY && end.distance_to(last) <= BATCH_ENTRIES_MAX as u64
            });
            // Its disk must keep up too, not only its memory.
            let ready = peer.pulse.as_ref().is_some_and(|pulse| {
                !pulse.leaving
                    && !pulse.rebasing
                    && !is_stuck(pulse)
                    && pulse.synced.distance_to(last) <= BATCH_ENTRIES_MAX as u64
            });
            self.view.member(*id).is_none() && near && ready && !self.is_banned(*id) && !self.is_dead(*id)
        })
    }

    /// N9: dropped as slow, and not yet to be taken in again.
    pub(super) fn is_banned(&self, server: ServerId) -> bool {
        self.peers.get(&server).and_then(|peer| peer.banned).is_some_and(|(until, _)| self.now < until)
    }
}
