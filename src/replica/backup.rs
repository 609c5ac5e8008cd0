//! A backup: appends what the primary sends, syncs, then acknowledges (N5).

use std::sync::Arc;
use std::time::Duration;

use tracing::debug;

use crate::config::SUSPICION;
use crate::message::{Entry, PeerMessage, Position, Pulse, Standpoint, Write, chain_after};
use crate::types::{Incarnation, LogIndex, ServerId, ViewNumber};

use super::{Replica, Role};

/// A fetch that is not answered within this time is repeated.
const FETCH_REPEATED_AFTER: Duration = Duration::from_millis(200);

/// Entries that do not fit the log.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Misfit {
    /// Something between the log's end and the first of them is missing.
    Gap,
    /// They follow another log.
    OtherLog,
}

impl Replica {
    pub(super) fn become_backup(&mut self) {
        self.backoff = (self.now, 0);
        self.suspected_since = None;
        self.awaited = None;
        self.provisional.clear();
        self.primary_heard = None;
        self.fetch_asked = None;
        self.become_role(Role::Backup);
        let (primary, number) = (self.view.primary(), self.view.number);
        self.say_ready(format!("follows server {primary}, which leads view {number}"));
    }

    /// N5: refuses a view lower than promised; a higher one than installed means that a new view was missed; a wrong
    /// `previous` means catch up. Otherwise appends; the acknowledgement leaves when the disk has it.
    pub(super) fn on_prepare(
        &mut self,
        from: ServerId,
        view: ViewNumber,
        previous: Position,
        entries: &[Arc<Entry>],
        commit: LogIndex,
    ) {
        if (view < self.hard.promised && !removed!("N5-promised")) || from != view.proposer {
            return self.send(from, PeerMessage::Refuse { number: view, promised: self.hard.promised });
        }
        if view > self.view.number {
            if !self.is_occupied() && !matches!(&self.role, Role::Learner(learner) if learner.view >= view) {
                self.become_learner(from, view);
            }
            return;
        }
        if !matches!(self.role, Role::Backup) {
            return debug!(%from, "ignored: entries while no backup");
        }
        self.hear_primary();
        match self.append_from_peer(previous, entries) {
            Ok(()) if removed!("N7-commit") => self.commit_through(self.log.last().index),
            Ok(()) => self.commit_through(commit),
            Err(misfit) => {
                debug!(%from, ?misfit, "entries do not fit: catching up");
                self.fetch_from_primary();
            }
        }
    }

    /// Appends the entries that are new; those the log already has must be the same.
    pub(super) fn append_from_peer(
        &mut self,
        previous: Position,
        entries: &[Arc<Entry>],
    ) -> Result<(), Misfit> {
        let last = self.log.last();
        if previous.index > last.index {
            return Err(Misfit::Gap);
        }
        if !self.log.has(previous) {
            return Err(Misfit::OtherLog);
        }
        let (known, new): (Vec<_>, Vec<_>) = entries.iter().partition(|entry| entry.index <= last.index);
        if known.iter().any(|entry| !self.log.has(entry.position())) {
            return Err(Misfit::OtherLog);
        }
        let mut end = last;
        for entry in &new {
            if entry.index != end.index.next()
                || entry.view < end.view
                || entry.chain != chain_after(end.chain, &entry.bytes)
            {
                return Err(Misfit::OtherLog);
            }
            end = entry.position();
        }
        if !new.is_empty() {
            let entries: Vec<_> = new.into_iter().cloned().collect();
            for entry in &entries {
                self.log.append(Arc::clone(entry));
            }
            let id = self.write(Write::Append(entries));
            self.log.written(id);
        }
        Ok(())
    }

    /// N5: one acknowledgement for all that a sync has covered.
    pub(super) fn acknowledge_synced(&mut self) {
        let synced = if removed!("N5-synced") { self.log.last().index } else { self.log.synced() };
        if self.hard.promised != self.view.number || self.acknowledged == (self.view.number, synced) {
            return;
        }
        self.acknowledged = (self.view.number, synced);
        let (view, incarnation) = (self.view.number, self.hard.incarnation);
        self.send(self.view.primary(), PeerMessage::PrepareOk { view, incarnation, synced });
    }

    /// N7: the commit index rides on the heartbeat; so does the end of the primary's log, by which a loss is noticed.
    pub(super) fn on_primary_pulse(&mut self, from: ServerId, pulse: &Pulse) {
        let leads = pulse.standpoint == Standpoint::Primary && from == self.view.primary();
        if pulse.view != self.view.number || !leads {
            return;
        }
        self.hear_primary();
        if self.hard.promised == self.view.number {
            self.commit_through(pulse.commit);
            if pulse.last > self.log.last().index {
                self.fetch_from_primary();
            }
        }
    }

    /// The primary leads the installed view, so that is active: every member has installed it (V2, V8).
    fn hear_primary(&mut self) {
        if self.primary_heard.replace(self.now).is_some() || removed!("V2-active") {
            return;
        }
        for member in &self.view.members {
            if let Some(peer) = self.peers.get_mut(&member.server) {
                peer.note_installed(member.incarnation, self.promise_asked);
            }
        }
    }

    /// One fetch at a time.
    pub(super) fn fetch_from_primary(&mut self) {
        if self.fetch_asked.is_some_and(|at| self.now.since(at) < FETCH_REPEATED_AFTER) {
            return;
        }
        self.fetch_asked = Some(self.now);
        let (primary, view) = (self.view.primary(), self.view.number);
        self.send_fetch(primary, view);
    }

    pub(super) fn tick_follower(&mut self) {
        match &self.role {
            // The primary lives, but leads no more: whoever it yielded to has not come forward.
            Role::Backup
                if self.now.since(self.primary_heard.unwrap_or(self.role_since)) >= SUSPICION * 2
                    && !self.is_dead(self.view.primary()) =>
            {
                self.become_waiting();
            }
            Role::Learner(_) => self.tick_learner(),
            _ => {}
        }
    }

    /// N8: a member that promised a higher number refuses the barrier, by silence: its primary is on its way out.
    pub(super) fn on_barrier(&mut self, from: ServerId, view: ViewNumber, nonce: u64) {
        let stands =
            matches!(self.role, Role::Backup) && self.view.number == view && self.hard.promised == view;
        if (stands && from == self.view.primary()) || removed!("N8-refuse") {
            let incarnation: Incarnation = self.hard.incarnation;
            self.send(from, PeerMessage::BarrierOk { view, nonce, incarnation });
        }
    }
}
