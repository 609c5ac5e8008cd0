//! The orderly stop: the others are told, the view goes on without the leaver, and the tables are written. When all
//! members leave together, a `closed` entry ends the log: after it any majority of them may start without the rest.

use std::time::Duration;

use crate::chat::command::Operation;
use crate::config::ORDERLY_STOP_MAX;
use crate::message::{Pulse, Write};
use crate::types::{Member, WriteId};

use super::{Exit, Held, Replica, Role};

/// So long a primary collects who else leaves.
pub(super) const LEAVERS_COLLECTED: Duration = Duration::from_millis(200);
/// So long a server waits for the others to close the log, or to go on without it.
const OTHERS_AWAITED: Duration = Duration::from_secs(2);
/// Left for the shell to end the process within [`ORDERLY_STOP_MAX`].
const SPARED: Duration = Duration::from_millis(500);

/// An orderly stop under way.
#[derive(Debug)]
pub(super) struct Stopping {
    since: crate::time::Instant,
    /// As a primary: the `closed` entry is in the log.
    closing: bool,
    /// The note that the `closed` entry is committed, on its way to the disk.
    noted: Option<WriteId>,
    /// That note is on disk.
    closed: bool,
}

impl Replica {
    pub(super) fn on_stop(&mut self) {
        if self.stopping.is_some() {
            return;
        }
        self.stopping = Some(Stopping { since: self.now, closing: false, noted: None, closed: false });
        self.say("stops in order".to_owned());
        for peer in self.peers.keys().copied().collect::<Vec<_>>() {
            self.send_heartbeat(peer);
        }
        self.maybe_begin_checkpoint();
    }

    pub(super) fn tick_stop(&mut self) {
        let Some(stopping) = &self.stopping else { return };
        let waited = self.now.since(stopping.since);
        let settled = if self.is_last_to_lead() {
            // A server that is down cannot be asked to close the log with the others.
            stopping.closed && (self.all_know_it_is_closed() || waited >= OTHERS_AWAITED)
        } else {
            stopping.closed || !self.is_counted_on() || waited >= OTHERS_AWAITED
        };
        let written = self.checkpointing.is_idle() && self.state.index() <= self.checkpointing.newest();
        if waited >= ORDERLY_STOP_MAX - SPARED || (settled && written && waited >= LEAVERS_COLLECTED) {
            self.stop_leading();
            return self.exit(Exit::Stopped);
        }
        if waited >= LEAVERS_COLLECTED {
            self.maybe_close();
        }
        self.maybe_note_closed();
    }

    /// Whether this server leads a view all of whose other members leave too: nobody stays to go on.
    fn is_last_to_lead(&self) -> bool {
        matches!(self.role, Role::Primary(_)) && !self.view.members.iter().any(|member| self.stays(member))
    }

    fn stays(&self, member: &Member) -> bool {
        let leaving = |pulse: &Pulse| pulse.leaving;
        member.server != self.me
            && !self.is_gone(*member)
            && !self.peers[&member.server].pulse.as_ref().is_some_and(leaving)
    }

    /// Whether the others still count on this server: it is a member, and what becomes of the view is not settled.
    fn is_counted_on(&self) -> bool {
        matches!(self.role, Role::Primary(_) | Role::Backup | Role::Candidate(_) | Role::Installing(_))
    }

    /// Whether this server stops and the others go on without it: what they do now it fetches when it starts again.
    pub(super) fn has_left(&self) -> bool {
        self.stopping.is_some() && matches!(self.role, Role::Learner(_))
    }

    /// All members leave: the log ends with a `closed` entry, if it commits.
    fn maybe_close(&mut self) {
        if !self.is_last_to_lead() || !self.is_serving() {
            return;
        }
        let Some(stopping) = self.stopping.as_mut().filter(|stopping| !stopping.closing) else { return };
        stopping.closing = true;
        self.append(Operation::Closed);
    }

    /// That the log is closed counts only if it is known, on disk, to have committed.
    fn maybe_note_closed(&mut self) {
        let ends_closed = self.log_ends_closed();
        let Some(stopping) =
            self.stopping.as_ref().filter(|stopping| ends_closed && stopping.noted.is_none())
        else {
            return;
        };
        assert!(!stopping.closed, "the note is on disk before it was written");
        self.commit_noted = self.commit;
        let id = self.write(Write::Commit(self.commit));
        self.held.push_back((id, Held::Closed));
        if let Some(stopping) = &mut self.stopping {
            stopping.noted = Some(id);
        }
        for peer in self.peers.keys().copied().collect::<Vec<_>>() {
            self.send_heartbeat(peer);
        }
    }

    pub(super) fn on_closed(&mut self) {
        if let Some(stopping) = &mut self.stopping {
            stopping.closed = true;
        }
        self.tick_stop();
    }

    /// Whether the log ends with a committed `closed` entry of the installed view: a later view can only have been
    /// started from this very point.
    pub(super) fn log_ends_closed(&self) -> bool {
        let last = self.log.last();
        self.commit == last.index && last.view == self.view.number && self.log.ends_closed()
    }

    /// Whether every other member knows that the log is closed, or is gone.
    fn all_know_it_is_closed(&self) -> bool {
        self.view.members.iter().filter(|member| member.server != self.me).all(|member| {
            let knows = |pulse: &Pulse| pulse.commit >= self.commit;
            self.is_gone(*member) || self.peers[&member.server].pulse.as_ref().is_some_and(knows)
        })
    }

    /// Whether new commands are refused because the log is being closed.
    pub(super) fn is_closing(&self) -> bool {
        self.stopping.as_ref().is_some_and(|stopping| stopping.closing)
    }
}
