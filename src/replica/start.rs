//! Cold start and bootstrap.

use crate::config::{BOOTSTRAP_WAIT, COLD_START_SILENCE, SUSPICION};
use crate::message::{HardState, Pulse, Standing, Standpoint, View, Write};
use crate::types::{ClusterId, Incarnation, LogIndex, Member, ServerId, ViewNumber};

use super::authority::Awaited;
use super::{Effect, Exit, FirstRole, Held, Replica, Role};

impl Replica {
    /// V6: bumps the incarnation; nothing is said to anyone before that is on disk.
    pub(super) fn begin_life(&mut self) {
        self.hard.server = Some(self.me);
        self.hard.servers.clone_from(&self.config.servers);
        if self.hard.incarnation == Incarnation(0) {
            // A number that a life before a wipe can hardly have had.
            let drawn = u32::try_from(self.prng.below(1 << 30)).expect("below 2^30");
            self.hard.incarnation = Incarnation(drawn);
            self.hard.born = Incarnation(drawn + 1);
        }
        let lives = u32::from(self.hard.cluster.is_none() || !removed!("V6-incarnation"));
        self.hard.incarnation = Incarnation(self.hard.incarnation.0.saturating_add(lives));
        let id = self.persist_hard();
        self.held.push_back((id, Held::Started));
    }

    pub(super) fn on_started(&mut self) {
        self.become_role(Role::Waiting);
        self.started = self.now;
        self.next_tick = self.now;
        let text = match self.hard.cluster {
            Some(cluster) => format!(
                "server {} starts with the log of cluster {cluster} up to entry {}, view {}",
                self.me,
                self.log.last().index,
                self.view.number
            ),
            None => format!("server {} starts in an empty directory", self.me),
        };
        self.say(text);
        for peer in self.peers.keys().copied().collect::<Vec<_>>() {
            self.send_heartbeat(peer);
        }
    }

    pub(super) fn tick_waiting(&mut self) {
        if self.hard.cluster.is_none() {
            self.maybe_bootstrap();
        }
    }

    /// Whether every configured server has answered this process, or is known dead, or has been silent for so long
    /// that a cold start goes on without hearing it.
    pub(super) fn has_asked_everyone(&self) -> bool {
        self.peers.iter().all(|(id, peer)| {
            peer.pulse.is_some() || self.is_dead(*id) || peer.is_silent_for(self.now, COLD_START_SILENCE)
        })
    }

    /// Only the role `primary` creates a cluster, in an empty directory, and only if none is known: at once if every
    /// configured server answers "empty", else after 10 s in which none reported a cluster.
    fn maybe_bootstrap(&mut self) {
        if self.config.first_role != FirstRole::Primary || self.stopping.is_some() {
            return self.note_empty("waits for a primary to join");
        }
        if self.config.known_cluster.is_some() {
            return self.note_empty("waits to join the cluster whose id stands beside the key");
        }
        let pulses = || self.peers.values().map(|peer| peer.pulse.as_ref());
        if pulses().flatten().any(|pulse| pulse.cluster.is_some()) {
            return self.note_empty("waits to join the cluster that another server belongs to");
        }
        let all_empty = pulses().all(|p| p.is_some_and(|pulse| pulse.standpoint == Standpoint::Empty));
        if all_empty || self.now.since(self.started) >= BOOTSTRAP_WAIT {
            self.bootstrap(all_empty);
        } else {
            self.note_empty("will create a cluster unless one is heard of within 10 s of its start");
        }
    }

    fn note_empty(&mut self, why: &'static str) {
        let awaited = Awaited { servers: self.peers.keys().copied().collect(), why };
        if self.awaited.as_ref() != Some(&awaited) {
            self.say(format!("the directory is empty: this server {why}"));
            self.awaited = Some(awaited);
        }
    }

    fn bootstrap(&mut self, all_empty: bool) {
        let cluster = ClusterId(self.prng.next_u64());
        self.hard.cluster = Some(cluster);
        self.creating = true;
        let why = if all_empty { "every server is empty" } else { "no server reported a cluster for 10 s" };
        self.say(format!("creates cluster {cluster}: {why}"));
        let member = Member { server: self.me, incarnation: self.hard.incarnation };
        let number = ViewNumber { counter: self.hard.promised.counter + 1, proposer: self.me };
        self.lead_new_view(View { number, members: vec![member] }, false);
    }

    /// Persists a view: first the view, then what it settles, so that a crash between the two forgets nothing
    /// (V7: clears `outstanding`).
    pub(super) fn write_view(&mut self, view: View) -> crate::types::WriteId {
        self.flush_batch();
        // A leader is made continuous by its view becoming active, not by having written it (V2, V8).
        self.whole_life = view.primary() != self.me || self.is_continuous(SUSPICION);
        self.view = view.clone();
        self.hard.promised = self.hard.promised.max(view.number);
        self.hard.outstanding.clear();
        self.hard.standing = Standing::Whole;
        for member in view.members.iter().filter(|member| member.server != self.me) {
            self.hard.incarnations.retain(|known| known.server != member.server);
            self.hard.incarnations.push(*member);
            let peer = self.peers.get_mut(&member.server).expect("a configured server");
            peer.on_named(self.now, member.incarnation);
        }
        self.hard.incarnations.sort_unstable();
        self.write(Write::View(view));
        self.persist_hard()
    }

    /// Belongs to a cluster from now on, if it belonged to none; false if it must not join this one, or not yet: if
    /// anybody knew a later life of this server, no view must name it by the number that it has given itself (V6).
    pub(super) fn join(&mut self, from: ServerId, cluster: ClusterId) -> bool {
        if self.hard.cluster.is_some() {
            return true;
        }
        if !self.has_asked_everyone() && !removed!("V6-asked") {
            return false;
        }
        if self.config.known_cluster.is_some_and(|known| known != cluster) {
            self.complain_of_cluster(from, cluster);
            return false;
        }
        self.hard.cluster = Some(cluster);
        self.persist_hard();
        self.say(format!("joins cluster {cluster} as a learner"));
        self.effects.push_back(Effect::RecordCluster(cluster));
        true
    }

    /// Different cluster ids never merge. But a cluster that holds nothing of anyone yields to one that does; of two
    /// that hold nothing, to the one with the lower id, so that all of its servers decide alike. Who has only just joined
    /// does not know yet what its cluster holds.
    pub(super) fn on_foreign_cluster(&mut self, from: ServerId, theirs: ClusterId, pulse: &Pulse) {
        let knows_own = self.log.last().index > LogIndex::ZERO;
        let lower = knows_own && self.hard.cluster.is_some_and(|own| theirs < own);
        let blank = self.holds_nothing();
        if blank && (!pulse.blank || lower) && !self.creating {
            self.yield_cluster(from, theirs);
        } else if !blank && !pulse.blank {
            self.complain_of_cluster(from, theirs);
        }
    }

    /// Once of each server.
    fn complain_of_cluster(&mut self, from: ServerId, theirs: ClusterId) {
        if !self.foreign.insert(from) {
            return;
        }
        let own = self.hard.cluster.or(self.config.known_cluster);
        let own = own.map_or_else(|| "none".to_owned(), |own| own.to_string());
        let text = format!("server {from} belongs to cluster {theirs}, this directory to cluster {own}");
        // An empty directory waits for the cluster that it knows of: that one may be there too, and win over this one.
        let waits = self.hard.cluster.is_none();
        if self.said_ready || waits || matches!(self.role, Role::Primary(_) | Role::Candidate(_)) {
            self.warn(format!("{text}; neither follows the other"));
        } else {
            let advice = "start this server on a directory of that cluster, or on an empty one";
            self.exit(Exit::Refused(format!("{text}; {advice}")));
        }
    }

    /// Nothing of any user is here: no account, and nothing on its way to be applied or proposed again.
    pub(super) fn holds_nothing(&self) -> bool {
        !self.state.has_accounts()
            && self.log.is_without_users(self.state.index())
            && !self.rebasing.is_pending()
            && !self.checkpointing.is_installing()
    }

    /// Begins anew, as a directory that has never belonged to a cluster, and joins this one.
    fn yield_cluster(&mut self, from: ServerId, theirs: ClusterId) {
        self.warn(format!(
            "server {from} belongs to cluster {theirs}; this one holds nothing of any user and yields: it joins the \
             other"
        ));
        self.abandon_checkpoint();
        self.become_waiting();
        self.write(Write::View(View::default()));
        let HardState { server, incarnation, servers, incarnations, .. } = std::mem::take(&mut self.hard);
        let standing = Standing::Distrusted;
        // V6: what a directory before this one may have held for the other cluster, the start that follows can't know.
        let born = if removed!("V6-yielded") {
            Incarnation(0)
        } else {
            Incarnation(incarnation.0.saturating_add(1))
        };
        self.hard =
            HardState { server, incarnation, born, servers, incarnations, standing, ..HardState::default() };
        let id = self.persist_hard();
        self.held.push_back((id, Held::Yielded(theirs)));
    }

    /// That it belongs to no cluster is on disk.
    pub(super) fn on_yielded(&mut self, theirs: ClusterId) {
        self.effects.push_back(Effect::RecordCluster(theirs));
        self.exit(Exit::Recover);
    }
}
