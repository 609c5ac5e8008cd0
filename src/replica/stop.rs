//! The orderly stop: the others are told, the view goes on without the leaver, and the tables are written.

use std::time::Duration;

use crate::config::ORDERLY_STOP_MAX;

use super::{Exit, Replica, Role};

/// So long a primary collects who else leaves.
const LEAVERS_COLLECTED: Duration = Duration::from_millis(200);
/// Left for the shell to end the process within [`ORDERLY_STOP_MAX`].
const SPARED: Duration = Duration::from_millis(500);

impl Replica {
    pub(super) fn on_stop(&mut self) {
        if self.stopping.is_some() {
            return;
        }
        self.stopping = Some(self.now);
        self.say("stops in order".to_owned());
        for peer in self.peers.keys().copied().collect::<Vec<_>>() {
            self.send_heartbeat(peer);
        }
        self.maybe_begin_checkpoint();
    }

    /// Ends when the view goes on without this server (or nobody is left to go on), and the tables are written.
    pub(super) fn tick_stop(&mut self) {
        let Some(since) = self.stopping else { return };
        let waited = self.now.since(since);
        let written = self.checkpointing.is_idle() && self.state.index() <= self.checkpointing.newest();
        let late = waited >= ORDERLY_STOP_MAX - SPARED;
        if late || (written && waited >= LEAVERS_COLLECTED && !self.is_counted_on()) {
            self.stop_leading();
            self.exit(Exit::Stopped);
        }
    }

    /// Whether the others still count on this server: it is a member, and someone stays who can go on without it.
    fn is_counted_on(&self) -> bool {
        let follows_or_leads =
            matches!(self.role, Role::Primary(_) | Role::Backup | Role::Candidate(_) | Role::Installing(_));
        let stays = |member: &&crate::types::Member| {
            member.server != self.me
                && !self.is_gone(**member)
                && self.peers[&member.server].pulse.as_ref().is_some_and(|pulse| !pulse.leaving)
        };
        follows_or_leads && self.view.members.iter().any(|member| stays(&member))
    }
}
