//! View changes: crash, shrink, growth and handover are one mechanism (V1-V12).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tracing::debug;

use crate::config::{BATCH_ENTRIES_MAX, CANDIDATE_STAGGER, COLD_START_SILENCE, SUSPICION};
use crate::message::{PeerMessage, Position, Pulse, Report, Standing, Standpoint, View, ViewTable};
use crate::time::Instant;
use crate::types::{ClusterId, Incarnation, LogIndex, Member, ServerId, ViewNumber};

use super::authority::{Awaited, Ballot, Formation, may_form};
use super::catch_up::Learner;
use super::peer::Peer;
use super::{Held, Replica, Role};

/// A pre-vote under way.
#[derive(Debug)]
pub(super) struct PreVote {
    nonce: u64,
    begun: Instant,
    reports: BTreeMap<ServerId, Report>,
}

/// A server that negotiates a view it will lead.
#[derive(Debug)]
pub(super) struct Candidate {
    number: ViewNumber,
    /// It led until now: its clients' requests wait.
    pub(super) was_primary: bool,
    /// Live members that the new view will do without (V10).
    dropping: Vec<ServerId>,
    /// When the present phase began.
    since: Instant,
    phase: Phase,
}

#[derive(Debug)]
enum Phase {
    /// The own promise is on its way to the disk.
    Promising { own: Report },
    /// Promises are coming in.
    Collecting { reports: BTreeMap<ServerId, Report> },
    /// The longest log among the sources is another server's: the rest of it is fetched first (V4).
    Fetching { reports: BTreeMap<ServerId, Report>, formation: Formation, end: Position, asked: Instant },
    /// The view is on its way to every member's disk (V8).
    Installing { start: Position, acked: BTreeSet<ServerId> },
}

/// A server that takes over a view another one leads (V7).
#[derive(Debug)]
pub(super) struct Installing {
    pub(super) leader: ServerId,
    pub(super) view: View,
    start: Position,
    since: Instant,
    asked: Instant,
    writing: bool,
}

impl Replica {
    // -- Whether an attempt is due ---------------------------------------------------------------------------------

    /// The place of this server among those that may lead: members of its view first, then in configured order.
    fn rank(&self) -> u32 {
        let key = |server: ServerId| (self.view.member(server).is_none(), server);
        let leaving = |server: &ServerId| {
            self.peers.get(server).and_then(|peer| peer.pulse.as_ref()).is_some_and(|pulse| pulse.leaving)
        };
        let better = self.configured.iter().filter(|server| !leaving(server) && !self.is_dead(**server));
        u32::try_from(better.filter(|&&server| key(server) < key(self.me)).count()).unwrap_or(u32::MAX)
    }

    fn wants_view_change(&self) -> bool {
        let unfit = self.hard.cluster.is_none()
            || matches!(self.hard.standing, Standing::Partial | Standing::Distrusted);
        if unfit || self.repairing.is_under_way() || self.stopping.is_some() || self.disk_failed {
            return false;
        }
        match &self.role {
            Role::Backup => self.leads_no_more(self.view.primary()),
            Role::Learner(learner) => self.is_dead(learner.leader) && !self.checkpointing.is_installing(),
            Role::Waiting => self.has_asked_everyone() && !self.lets_a_candidate_finish(),
            _ => false,
        }
    }

    /// The primary's life is over, or it is about to stop, or its disk is stuck (N9).
    fn leads_no_more(&self, primary: ServerId) -> bool {
        self.view.member(primary).is_some_and(|member| self.is_gone(member))
            || self.peers[&primary].leaves(self.now)
            || self.peers[&primary].pulse.as_ref().is_some_and(is_stuck)
    }

    /// Whether this server's next view is to do without that one though it answers: it stops, its disk is stuck (N9), or
    /// the candidacy under way drops it (V10).
    pub(super) fn is_to_be_left_out(&self, server: ServerId) -> bool {
        let unfit = |pulse: &Pulse| pulse.leaving || is_stuck(pulse);
        let drops = |candidate: &Candidate| candidate.dropping.contains(&server);
        !removed!("V11-left-out")
            && (self.peers[&server].pulse.as_ref().is_some_and(unfit)
                || matches!(&self.role, Role::Candidate(candidate) if drops(candidate)))
    }

    /// V12: whoever has promised a number lets that candidate finish for a while, if it lives.
    fn lets_a_candidate_finish(&self) -> bool {
        let candidate = self.hard.promised.proposer;
        self.hard.promised > self.view.number
            && !removed!("V12-finish")
            && self.peers.get(&candidate).is_some_and(|peer| peer.answered)
            && !self.is_dead(candidate)
            && self.now.since(self.role_since) < CANDIDATE_PATIENCE
    }

    /// When the next attempt is due (V1: staggered by rank; V12: after the back-off).
    pub(super) fn attempt_due(&self) -> Option<Instant> {
        let may_attempt = matches!(self.role, Role::Backup | Role::Waiting | Role::Learner(_));
        if self.pre_vote.is_some() || !may_attempt {
            return None;
        }
        self.suspected_since.map(|since| (since + CANDIDATE_STAGGER * self.rank()).max(self.backoff.0))
    }

    pub(super) fn maybe_attempt(&mut self) {
        if !self.wants_view_change() {
            self.suspected_since = None;
            self.pre_vote = None;
            if !matches!(self.role, Role::Waiting) {
                self.viewless_since = None;
            }
            return;
        }
        self.suspected_since.get_or_insert(self.now);
        self.viewless_since.get_or_insert(self.now);
        if self.pre_vote.is_some() {
            self.check_pre_vote();
        } else if self.attempt_due().is_some_and(|due| due <= self.now) {
            self.begin_pre_vote();
        }
    }

    /// V12: exponential, with jitter.
    fn back_off(&mut self) {
        self.pre_vote = None;
        let failures = (self.backoff.1 + 1).min(6);
        let bound = 50_u64 << failures;
        let wait = Duration::from_millis(bound / 2 + self.prng.below(bound / 2));
        self.backoff = (self.now + wait, failures);
    }

    // -- Pre-vote (V1) --------------------------------------------------------------------------------------------

    fn begin_pre_vote(&mut self) {
        let nonce = self.nonce();
        self.pre_vote = Some(PreVote { nonce, begun: self.now, reports: BTreeMap::new() });
        self.send_to_peers(&PeerMessage::PreVote { nonce });
        self.check_pre_vote();
    }

    /// Whoever is asked probes the primary itself, and vetoes only if that probe succeeds.
    pub(super) fn on_pre_vote(&mut self, from: ServerId, nonce: u64) {
        let veto = match &self.role {
            Role::Primary(_) => self.stopping.is_none() && self.sync_age_ms() < STUCK_MS,
            Role::Candidate(candidate) => {
                let gets_on = self.now.since(candidate.since) < SUSPICION;
                gets_on && !matches!(candidate.phase, Phase::Promising { .. })
            }
            // Whom it follows asks itself, and so leads no more.
            Role::Backup | Role::Learner(_) | Role::Installing(_) if self.probed_primary() == Some(from) => {
                false
            }
            Role::Backup | Role::Learner(_) | Role::Installing(_) => {
                self.probing.retain(|(server, _, _)| *server != from);
                self.probing.push((from, nonce, self.now));
                if let Some(primary) = self.probed_primary() {
                    self.effects.push_back(super::Effect::Probe { peer: primary });
                    self.send_heartbeat(primary);
                }
                return;
            }
            Role::Waiting => false,
            Role::Starting | Role::Stopped => return,
        };
        self.answer_pre_vote(from, nonce, veto);
    }

    fn probed_primary(&self) -> Option<ServerId> {
        match &self.role {
            Role::Backup => Some(self.view.primary()),
            Role::Learner(learner) => Some(learner.leader),
            Role::Installing(installing) => Some(installing.leader),
            _ => None,
        }
    }

    fn answer_pre_vote(&mut self, to: ServerId, nonce: u64, veto: bool) {
        let report = self.report();
        self.send(to, PeerMessage::PreVoteOk { nonce, veto, report });
    }

    /// Grants the pre-votes whose probe has failed.
    pub(super) fn settle_probes(&mut self) {
        if self.probing.is_empty() {
            return;
        }
        let lost = match self.probed_primary() {
            Some(primary) if matches!(self.role, Role::Backup) => self.leads_no_more(primary),
            Some(primary) => self.is_dead(primary),
            None => true,
        };
        if lost {
            for (from, nonce, _) in std::mem::take(&mut self.probing) {
                self.answer_pre_vote(from, nonce, false);
            }
        }
    }

    /// The primary has answered a heartbeat begun at `begun`: probes since before that have succeeded.
    pub(super) fn veto_probed(&mut self, from: ServerId, begun: Instant, pulse: &Pulse) {
        if self.probed_primary() != Some(from) || !leads(pulse) {
            return;
        }
        let (vetoed, waiting) =
            std::mem::take(&mut self.probing).into_iter().partition(|(_, _, at)| *at <= begun);
        self.probing = waiting;
        let vetoed: Vec<(ServerId, u64, Instant)> = vetoed;
        for (candidate, nonce, _) in vetoed {
            self.answer_pre_vote(candidate, nonce, true);
        }
    }

    pub(super) fn on_pre_vote_ok(&mut self, from: ServerId, nonce: u64, veto: bool, report: Report) {
        let (view, member) = self.membership_in(&report.installed);
        let Some(pre_vote) = self.pre_vote.as_mut().filter(|pre_vote| pre_vote.nonce == nonce) else {
            return;
        };
        if veto && !removed!("V1-veto") {
            debug!(%from, "pre-vote vetoed: it reaches the primary");
            self.viewless_since = Some(self.now);
            return self.back_off();
        }
        pre_vote.reports.insert(from, report);
        self.notice_dropped(view, member);
        self.check_pre_vote();
    }

    fn check_pre_vote(&mut self) {
        let Some(pre_vote) = &self.pre_vote else { return };
        let mut reports = pre_vote.reports.clone();
        let timed_out = self.now.since(pre_vote.begun) >= SUSPICION;
        let dead = self.dead_for_ballot();
        reports.retain(|server, _| !dead.contains(server));
        reports.insert(self.me, self.report());
        let complete = self.configured.iter().all(|id| reports.contains_key(id) || dead.contains(id));
        match self.decide(&reports, &dead) {
            // Whoever leads holds the last view: what its log lacks of the longest is fetched first (V4).
            Ok(formation) if formation.sources.contains(&self.me) => {
                let leaving = |id: &ServerId| {
                    self.peers.get(id).and_then(|p| p.pulse.as_ref()).is_some_and(|pulse| pulse.leaving)
                };
                let dropping = reports.keys().copied().filter(leaving).collect();
                self.propose(dropping, &reports);
            }
            Ok(_) => self.back_off(),
            Err(awaited) if complete || timed_out => {
                self.note_awaited(awaited);
                self.back_off();
            }
            Err(_) => {}
        }
    }

    pub(super) fn tick_pre_vote(&mut self) {
        if self.pre_vote.is_some() {
            self.check_pre_vote();
        }
    }

    fn note_awaited(&mut self, awaited: Awaited) {
        if self.awaited.as_ref() == Some(&awaited) {
            return;
        }
        let text = self.describe_awaited(&awaited);
        self.warn(text);
        self.awaited = Some(awaited);
    }

    pub(super) fn describe_awaited(&self, awaited: &Awaited) -> String {
        format!("waits for {}: {}", self.names(&awaited.servers), awaited.why)
    }

    /// These servers, for a person.
    pub(super) fn names(&self, servers: &[ServerId]) -> String {
        let name = |server: &ServerId| {
            format!("server {server} ({})", self.config.servers[usize::from(server.0) - 1])
        };
        servers.iter().map(name).collect::<Vec<_>>().join(" and ")
    }

    /// Known dead, for the view authority. A cold start whose own last view is only itself, with nothing
    /// outstanding, takes a second of silence for an answer.
    fn dead_for_ballot(&self) -> BTreeSet<ServerId> {
        let mut dead = self.dead();
        let alone = self.view.members.iter().all(|member| member.server == self.me);
        if alone && !self.whole_life && self.hard.outstanding.is_empty() {
            let silent =
                self.peers.iter().filter(|(_, peer)| peer.is_silent_for(self.now, COLD_START_SILENCE));
            dead.extend(silent.map(|(id, _)| *id));
        }
        dead
    }

    fn decide(
        &self,
        reports: &BTreeMap<ServerId, Report>,
        dead: &BTreeSet<ServerId>,
    ) -> Result<Formation, Awaited> {
        let viewless = self.viewless_since.map_or(Duration::ZERO, |since| self.now.since(since));
        let waited = self.config.cold_wait.is_some_and(|wait| viewless >= wait) || removed!("V5-waited");
        let mut incarnations: BTreeMap<ServerId, Incarnation> =
            self.peers.iter().map(|(id, peer)| (*id, peer.incarnation)).collect();
        incarnations.insert(self.me, self.hard.incarnation);
        let is_refused =
            |id: &ServerId| self.config.evidence && self.peers.get(id).is_some_and(Peer::is_refused);
        let refused = dead.iter().copied().filter(is_refused).collect();
        let (configured, refused, incarnations) = (&self.configured, &refused, &incarnations);
        may_form(&Ballot { configured, dead, refused, reports, incarnations, waited })
    }

    // -- Proposing ------------------------------------------------------------------------------------------------

    /// Takes (highest counter heard of + 1, self) and syncs the own promise before anything is sent (V1).
    pub(super) fn propose(&mut self, dropping: Vec<ServerId>, hints: &BTreeMap<ServerId, Report>) {
        // A learner has rows of views that it has neither promised nor installed.
        let counter = |report: &Report| {
            report.promised.counter.max(report.installed.number.counter).max(report.last.view.counter)
        };
        let highest = hints.values().map(counter).chain([counter(&self.report()), self.counter_heard]).max();
        let number = ViewNumber { counter: highest.unwrap_or(0) + 1, proposer: self.me };
        let own = self.report();
        let was_primary = match &self.role {
            Role::Primary(_) => true,
            Role::Candidate(candidate) => candidate.was_primary,
            _ => false,
        };
        // N9: whose disk is stuck can't promise; it is told, and answers from memory (V10).
        let stuck = |id: &ServerId| self.peers[id].pulse.as_ref().is_some_and(is_stuck);
        let late = |id: &ServerId| (self.is_banned(*id) || stuck(id)) && !dropping.contains(id);
        let dropping = self.peers.keys().copied().filter(late).chain(dropping.iter().copied()).collect();
        self.pre_vote = None;
        self.suspected_since = None;
        self.hold_reads();
        self.flush_batch();
        self.promise(number);
        let (since, phase) = (self.now, Phase::Promising { own });
        self.become_role(Role::Candidate(Candidate { number, was_primary, dropping, since, phase }));
        if removed!("V1-own-promise") {
            return self.on_own_promise(number);
        }
        let id = self.persist_hard();
        self.held.push_back((id, Held::OwnPromise(number)));
    }

    /// V2: the candidate is outstanding until the next installed view.
    fn promise(&mut self, number: ViewNumber) {
        self.hard.promised = number;
        self.hard.outstanding.retain(|earlier| earlier.proposer != number.proposer);
        self.hard.outstanding.push(number);
        self.hard.outstanding.sort_unstable();
    }

    pub(super) fn on_own_promise(&mut self, number: ViewNumber) {
        let now = self.now;
        let me = self.me;
        let last = self.log.last();
        let Role::Candidate(candidate) = &mut self.role else { return };
        let Phase::Promising { own } = &candidate.phase else { return };
        if candidate.number != number {
            return;
        }
        let own = Report { last, promised: number, ..own.clone() };
        candidate.phase = Phase::Collecting { reports: BTreeMap::from([(me, own)]) };
        candidate.since = now;
        let propose = PeerMessage::Propose { number, dropping: candidate.dropping.clone() };
        self.send_to_peers(&propose);
        self.check_candidate();
    }

    /// A receiver of a higher number persists its promise, stops acknowledging older views, and answers (V2). One
    /// that is to be dropped answers from memory (V10), and once more when its promise is on disk.
    pub(super) fn on_propose(&mut self, from: ServerId, number: ViewNumber, dropping: &[ServerId]) {
        if number < self.hard.promised || number.proposer != from {
            return self.send(from, PeerMessage::Refuse { number, promised: self.hard.promised });
        }
        let is_dropped = dropping.contains(&self.me) && !removed!("V10-told");
        if number == self.hard.promised {
            return self.repeat_promise(from, number, is_dropped);
        }
        let insists = self.hard.promised.proposer == number.proposer;
        self.promise(number);
        self.promise_asked = self.now;
        if !matches!(self.role, Role::Waiting) {
            self.become_waiting();
        } else if !insists {
            self.role_since = self.now; // A candidate that tries again and again is not waited for for ever (V12).
        }
        if removed!("V2-persist") {
            return self.tell_promise(from, number);
        }
        let id = self.persist_hard();
        self.held.push_back((id, Held::Promise { to: from, number }));
        if is_dropped {
            self.tell_promise_from_memory(from, number);
        }
    }

    /// The answer got lost, unless it is still on its way to the disk.
    fn repeat_promise(&mut self, from: ServerId, number: ViewNumber, is_dropped: bool) {
        if !matches!(self.role, Role::Waiting) {
            return;
        }
        let waits = |held: &Held| matches!(held, Held::Promise { number: held, .. } if *held == number);
        if !self.held.iter().any(|(_, held)| waits(held)) {
            self.tell_promise(from, number);
        } else if is_dropped {
            self.tell_promise_from_memory(from, number);
        }
    }

    /// V10. A crash may still make this server forget the promise. Started again it leads without the rest of its view
    /// only by a majority that closed their logs (V5): so this answer counts for none.
    fn tell_promise_from_memory(&mut self, to: ServerId, number: ViewNumber) {
        self.whole_life = false;
        let mut report = self.report();
        report.closed &= removed!("V10-closed");
        self.send(to, PeerMessage::Promise { number, report });
    }

    pub(super) fn tell_promise(&mut self, to: ServerId, number: ViewNumber) {
        if self.hard.promised == number {
            let report = self.report();
            self.send(to, PeerMessage::Promise { number, report });
        }
    }

    pub(super) fn on_promise(&mut self, from: ServerId, number: ViewNumber, report: Report) {
        let (view, member) = self.membership_in(&report.installed);
        self.notice_dropped(view, member);
        let Role::Candidate(candidate) = &mut self.role else { return };
        let Phase::Collecting { reports } = &mut candidate.phase else { return };
        if candidate.number == number {
            reports.insert(from, report);
        }
    }

    /// The view, and whether this life of this server is a member of it.
    pub(super) fn membership_in(&self, view: &View) -> (ViewNumber, bool) {
        let member = view.member(self.me).is_some_and(|member| member.incarnation == self.hard.incarnation);
        (view.number, member)
    }

    /// V12: a candidate that hears a higher number yields; a primary that only regroups tries a higher one.
    pub(super) fn on_refuse(&mut self, number: ViewNumber, promised: ViewNumber) {
        self.counter_heard = self.counter_heard.max(promised.counter);
        let Role::Candidate(candidate) = &self.role else { return };
        if candidate.number != number {
            return;
        }
        if candidate.was_primary {
            let dropping = candidate.dropping.clone();
            self.propose(dropping, &BTreeMap::new());
        } else {
            self.abandon();
        }
    }

    pub(super) fn abandon(&mut self) {
        self.become_waiting();
        self.back_off();
    }

    /// Between views: whoever led tells its clients.
    pub(super) fn become_waiting(&mut self) {
        self.stop_leading();
        self.pre_vote = None;
        self.become_role(Role::Waiting);
    }

    // -- Forming --------------------------------------------------------------------------------------------------

    pub(super) fn check_candidate(&mut self) {
        let now = self.now;
        let Role::Candidate(candidate) = &self.role else { return };
        match &candidate.phase {
            Phase::Promising { .. } => {
                if now.since(candidate.since) >= SUSPICION * 2 {
                    self.abandon(); // N9: its own disk is stuck, so it must not look as if it got on.
                }
            }
            Phase::Collecting { reports } => {
                let (mut reports, dropping) = (reports.clone(), candidate.dropping.clone());
                let timed_out = now.since(candidate.since) >= COLLECTING_MAX;
                let dead = self.dead_for_ballot();
                // Who has died since may have promised and done more than it had answered; and so may others have
                // without this server, if it was not in touch with all of them until their end (V2).
                reports.retain(|server, _| !dead.contains(server));
                let present = self.report();
                if let Some(own) = reports.get_mut(&self.me) {
                    own.continuous = present.continuous;
                    own.nearly_continuous = present.nearly_continuous;
                }
                match self.decide(&reports, &dead) {
                    Ok(formation) => self.on_formation(reports, formation),
                    Err(_) if !timed_out => {}
                    Err(awaited) => self.on_collecting_timed_out(&reports, &dead, dropping, awaited),
                }
            }
            Phase::Fetching { formation, .. } => {
                if self.is_dead(formation.longest) || now.since(candidate.since) > SUSPICION * 4 {
                    self.abandon();
                }
            }
            Phase::Installing { acked, .. } => {
                let missing = |member: &&Member| !acked.contains(&member.server);
                let missing: Vec<_> = self.view.members.iter().filter(missing).copied().collect();
                if missing.iter().any(|member| self.is_gone(*member)) {
                    self.propose(Vec::new(), &BTreeMap::new());
                } else if now.since(candidate.since) > SUSPICION * 4 {
                    let dropping = missing.iter().map(|m| m.server).filter(|id| *id != self.me).collect();
                    self.propose(dropping, &BTreeMap::new());
                }
            }
        }
    }

    /// N9: who lives but does not answer has a stuck disk. The view goes on without it, and it is told (V10).
    fn on_collecting_timed_out(
        &mut self,
        reports: &BTreeMap<ServerId, Report>,
        dead: &BTreeSet<ServerId>,
        mut dropping: Vec<ServerId>,
        awaited: Awaited,
    ) {
        let mute = |id: &ServerId| !reports.contains_key(id) && !dead.contains(id) && !dropping.contains(id);
        let mute: Vec<_> = self.configured.iter().copied().filter(mute).collect();
        if mute.is_empty() {
            self.note_awaited(awaited);
            self.abandon();
        } else {
            dropping.extend(mute);
            self.propose(dropping, reports);
        }
    }

    fn on_formation(&mut self, reports: BTreeMap<ServerId, Report>, formation: Formation) {
        if !formation.sources.contains(&self.me) {
            return self.abandon();
        }
        let end = if removed!("V4-longest") { self.log.last() } else { reports[&formation.longest].last };
        if end.index <= self.log.last().index && self.log.has(end) {
            return self.install(&reports, &formation);
        }
        if !is_near(self.log.last(), end) {
            return self.abandon();
        }
        let now = self.now;
        let Role::Candidate(candidate) = &mut self.role else { return };
        let (number, from) = (candidate.number, formation.longest);
        candidate.since = now;
        candidate.phase = Phase::Fetching { reports, formation, end, asked: now };
        self.send_fetch(from, number);
    }

    /// More of the log that will start the view has arrived, or not (V4).
    pub(super) fn on_candidate_fetched(&mut self) {
        let Role::Candidate(candidate) = &self.role else { return };
        let Phase::Fetching { reports, formation, end, .. } = &candidate.phase else { return };
        let (reports, formation, number) = (reports.clone(), formation.clone(), candidate.number);
        if self.log.has(*end) {
            self.install(&reports, &formation);
        } else {
            self.send_fetch(formation.longest, number);
        }
    }

    /// The number under which this candidate fetches from `server`, if it does.
    pub(super) fn fetches_from(&self, server: ServerId) -> Option<ViewNumber> {
        let Role::Candidate(candidate) = &self.role else { return None };
        match &candidate.phase {
            Phase::Fetching { formation, .. } if formation.longest == server => Some(candidate.number),
            _ => None,
        }
    }

    /// V4: members are all answerers that are a source or have caught up; the others become learners.
    fn install(&mut self, reports: &BTreeMap<ServerId, Report>, formation: &Formation) {
        let Role::Candidate(candidate) = &self.role else { return };
        let (number, was_primary) = (candidate.number, candidate.was_primary);
        let dropped = |server: &ServerId| candidate.dropping.contains(server);
        let end = self.log.last();
        let fits = |server: &ServerId, report: &Report| {
            *server == self.me
                || removed!("V4-members")
                || formation.sources.contains(server)
                || (!report.empty
                    && !report.rebasing
                    && is_near(report.last, end)
                    && self.log.position(report.last.index) == Some(report.last))
        };
        let members = reports
            .iter()
            .filter(|(server, report)| !dropped(server) && fits(server, report))
            .map(|(server, report)| Member { server: *server, incarnation: report.incarnation })
            .collect();
        if !formation.without.is_empty() {
            let names = self.names(&formation.without);
            self.warn(format!(
                "goes on provisionally, without {names} (--cold-wait): what was acknowledged there and is missing here \
                 comes back with it"
            ));
        }
        self.provisional.extend(&formation.without);
        self.lead_new_view(View { number, members }, was_primary);
    }

    /// Persists the view here, and when it is on disk has every member do so (V7-V9). Not before: after a crash this
    /// server must know of every view that others may have installed because of it, or it could lead without them.
    pub(super) fn lead_new_view(&mut self, view: View, was_primary: bool) {
        let number = view.number;
        let id = self.write_view(view);
        self.held.push_back((id, Held::Installed { leader: self.me, number }));
        let (start, since) = (self.log.last(), self.now);
        let phase = Phase::Installing { start, acked: BTreeSet::new() };
        let dropping = Vec::new();
        self.become_role(Role::Candidate(Candidate { number, was_primary, dropping, since, phase }));
        if removed!("V9-leader-first") {
            self.on_member_installed(self.me, number);
        }
    }

    fn repeat_new_view(&mut self, only: Option<ServerId>) {
        let Role::Candidate(candidate) = &self.role else { return };
        let Phase::Installing { start, acked } = &candidate.phase else { return };
        if !acked.contains(&self.me) {
            return;
        }
        let message = PeerMessage::NewView {
            cluster: self.hard.cluster.expect("a leader belongs to a cluster"),
            view: self.view.clone(),
            start: *start,
            views: self.log.recent_views(),
            lives: self.hard.incarnations.clone(),
        };
        let to: Vec<_> = self.peers.keys().copied().filter(|id| !acked.contains(id)).collect();
        for peer in to.into_iter().filter(|id| only.is_none_or(|only| only == *id)) {
            self.send(peer, message.clone());
        }
    }

    pub(super) fn tick_candidate(&mut self) {
        let Role::Candidate(candidate) = &self.role else { return };
        if self.now.since(candidate.since) < Duration::from_millis(100) {
            return;
        }
        let number = candidate.number;
        match &candidate.phase {
            Phase::Promising { .. } => {}
            Phase::Collecting { reports } => {
                let propose = PeerMessage::Propose { number, dropping: candidate.dropping.clone() };
                let to: Vec<_> = self.peers.keys().copied().filter(|id| !reports.contains_key(id)).collect();
                to.into_iter().for_each(|peer| self.send(peer, propose.clone()));
            }
            Phase::Fetching { formation, asked, .. } => {
                if self.now.since(*asked) >= SUSPICION / 2 {
                    let from = formation.longest;
                    self.send_fetch(from, number);
                }
            }
            Phase::Installing { .. } => self.repeat_new_view(None),
        }
    }

    /// A link has come up: what was said on the old one may be lost.
    pub(super) fn repeat_to(&mut self, peer: ServerId) {
        if let Some(pre_vote) = &self.pre_vote {
            let nonce = pre_vote.nonce;
            self.send(peer, PeerMessage::PreVote { nonce });
        }
        let Role::Candidate(candidate) = &self.role else { return };
        match &candidate.phase {
            Phase::Collecting { reports } if !reports.contains_key(&peer) => {
                let message =
                    PeerMessage::Propose { number: candidate.number, dropping: candidate.dropping.clone() };
                self.send(peer, message);
            }
            Phase::Installing { .. } => self.repeat_new_view(Some(peer)),
            _ => {}
        }
    }

    pub(super) fn on_new_view_ok(&mut self, from: ServerId, number: ViewNumber, incarnation: Incarnation) {
        if self.view.member(from).is_none_or(|member| member.incarnation != incarnation) {
            return;
        }
        if let Role::Candidate(candidate) = &self.role
            && candidate.number == number
        {
            let told = candidate.since;
            self.peers.get_mut(&from).expect("a configured server").note_round_trip(self.now, told);
        }
        self.on_member_installed(from, number);
    }

    /// V8: the view is active only after every member has installed it, this server included.
    fn on_member_installed(&mut self, member: ServerId, number: ViewNumber) {
        let Role::Candidate(candidate) = &mut self.role else { return };
        let Phase::Installing { start, acked } = &mut candidate.phase else { return };
        if candidate.number != number {
            return;
        }
        let first = acked.insert(member) && member == self.me;
        let start = *start;
        if first {
            candidate.since = self.now;
            self.repeat_new_view(None);
        }
        let Role::Candidate(Candidate { phase: Phase::Installing { acked, .. }, .. }) = &self.role else {
            return;
        };
        if removed!("V8-all") || self.view.members.iter().all(|member| acked.contains(&member.server)) {
            self.become_primary(start);
        }
    }

    // -- Following a new view (V7) ----------------------------------------------------------------------------------

    pub(super) fn on_new_view(
        &mut self,
        from: ServerId,
        cluster: ClusterId,
        view: View,
        start: Position,
        views: ViewTable,
        lives: &[Member],
    ) {
        let number = view.number;
        if (number < self.hard.promised && !removed!("V7-promised")) || number.proposer != from {
            return self.send(from, PeerMessage::Refuse { number, promised: self.hard.promised });
        }
        if self.hard.cluster.is_some_and(|own| own != cluster) {
            return debug!(%from, %cluster, "ignored: a view of another cluster");
        }
        let configured = |member: &Member| self.configured.contains(&member.server);
        if self.is_occupied() || !view.members.iter().all(configured) || !self.join(from, cluster) {
            return;
        }
        self.learn_lives(lives);
        if matches!(&self.role, Role::Learner(learner) if learner.leader == from && learner.view == number)
            && view.member(self.me).is_none()
        {
            return;
        }
        if number == self.view.number {
            return self.repeat_installed(from);
        }
        if matches!(&self.role, Role::Installing(installing) if installing.view.number == number) {
            return;
        }
        let named = view.member(self.me).map(|member| member.incarnation);
        if named.is_some_and(|incarnation| incarnation != self.hard.incarnation && !removed!("V7-life")) {
            return debug!(%from, "ignored: a view that names an earlier life of this server");
        }
        if number > self.hard.promised {
            self.promise(number);
            self.persist_hard();
        }
        // T4: who rebases is not counted yet; whoever named it has heard of it too late.
        let diverged = !self.is_prefix_of(start, &views) && !removed!("V7-views");
        if named.is_none() || self.rebases_as_learner() || diverged {
            return self.become_learner(from, number);
        }
        self.stop_leading();
        self.pre_vote = None;
        let (since, asked, writing) = (self.now, self.now, false);
        let installing = Installing { leader: from, view, start, since, asked, writing };
        self.become_role(Role::Installing(installing));
        self.continue_installing();
    }

    /// Whether the own log is a prefix of one that ends at `end` and has these views.
    fn is_prefix_of(&self, end: Position, views: &ViewTable) -> bool {
        let last = self.log.last();
        last.index <= end.index
            && (last.index == LogIndex::ZERO || super::log::view_at(views, last.index) == last.view)
    }

    fn repeat_installed(&mut self, leader: ServerId) {
        if matches!(self.role, Role::Backup) {
            let (number, incarnation) = (self.view.number, self.hard.incarnation);
            self.send(leader, PeerMessage::NewViewOk { number, incarnation });
        }
    }

    /// Fetches what the log still lacks, then persists the view, then acknowledges (V7).
    pub(super) fn continue_installing(&mut self) {
        let now = self.now;
        let Role::Installing(installing) = &mut self.role else { return };
        if installing.writing {
            return;
        }
        let (leader, number, start) = (installing.leader, installing.view.number, installing.start);
        let last = self.log.last();
        if last.index < start.index {
            installing.asked = now;
            return self.send_fetch(leader, number);
        }
        if last != start && !removed!("V7-start") {
            self.warn(format!("the log ends at entry {} unlike the new view's start", last.index));
            return self.become_learner(leader, number);
        }
        installing.writing = true;
        let view = installing.view.clone();
        self.peers.get_mut(&leader).expect("a configured server").note_round_trip(now, self.promise_asked);
        let id = self.write_view(view);
        if removed!("V7-persist") {
            return self.on_installed(leader, number);
        }
        self.held.push_back((id, Held::Installed { leader, number }));
    }

    pub(super) fn on_installed(&mut self, leader: ServerId, number: ViewNumber) {
        if leader == self.me {
            if std::mem::take(&mut self.creating)
                && let Some(cluster) = self.hard.cluster
            {
                self.effects.push_back(super::Effect::RecordCluster(cluster));
            }
            return self.on_member_installed(leader, number);
        }
        let Role::Installing(installing) = &self.role else { return };
        if installing.view.number != number || self.hard.promised != number {
            return;
        }
        let incarnation = self.hard.incarnation;
        self.send(leader, PeerMessage::NewViewOk { number, incarnation });
        self.become_backup();
    }

    pub(super) fn check_installing(&mut self) {
        let Role::Installing(installing) = &self.role else { return };
        if self.is_dead(installing.leader) || self.now.since(installing.since) > SUSPICION * 4 {
            self.become_waiting();
        }
    }

    pub(super) fn tick_installing(&mut self) {
        let Role::Installing(installing) = &self.role else { return };
        if !installing.writing && self.now.since(installing.asked) >= SUSPICION / 4 {
            self.continue_installing();
        }
    }

    // -- Somebody leads -----------------------------------------------------------------------------------------------

    /// A server says that it leads an active view. Whoever leads a lower one stops serving (R1).
    pub(super) fn on_primary_heard(&mut self, from: ServerId, pulse: &Pulse) {
        if self.is_occupied() || is_stuck(pulse) {
            return;
        }
        if matches!(self.role, Role::Waiting) && self.is_member_of_active(from, pulse) {
            return self.become_backup();
        }
        let follow = match &self.role {
            Role::Primary(_) if removed!("R1-lower") => false,
            Role::Primary(_) | Role::Backup => pulse.view > self.view.number,
            Role::Candidate(candidate) => pulse.view > candidate.number,
            Role::Installing(installing) => pulse.view > installing.view.number,
            Role::Learner(learner) => pulse.view > learner.view,
            Role::Waiting => pulse.view >= self.hard.promised || self.now.since(self.role_since) >= SUSPICION,
            Role::Starting | Role::Stopped => false,
        };
        if matches!(self.role, Role::Primary(_)) && follow {
            self.warn(format!(
                "server {from} leads the later view {}: this server stops leading",
                pulse.view
            ));
        }
        if follow && pulse.cluster.is_some_and(|cluster| self.join(from, cluster)) {
            self.become_learner(from, pulse.view);
        } else if let Role::Learner(learner) = &mut self.role
            && learner.leader == from
        {
            learner.heard = self.now;
        }
    }

    /// Rotten rows are being filled in, a checkpoint is being put in place, rows that were applied are being moved
    /// aside, or this server is about to stop because it is not to be trusted: the log must not move meanwhile.
    pub(super) fn is_occupied(&self) -> bool {
        self.repairing.is_under_way()
            || self.checkpointing.is_installing()
            || self.rebasing.diverging
            || self.hard.standing == Standing::Distrusted
    }

    fn rebases_as_learner(&self) -> bool {
        self.rebasing.is_pending() && self.hard.standing == Standing::Partial
    }

    /// Whether the view that is said to be active is the one this server has installed, and nothing else is promised:
    /// it took longer to become active than this server had patience.
    fn is_member_of_active(&self, from: ServerId, pulse: &Pulse) -> bool {
        let written = |held: &Held| !matches!(held, Held::Installed { .. });
        pulse.view == self.view.number
            && self.hard.promised == self.view.number
            && from == self.view.primary()
            && self.membership_in(&self.view).1
            && self.held.iter().all(|(_, held)| written(held))
    }

    pub(super) fn become_learner(&mut self, leader: ServerId, view: ViewNumber) {
        self.stop_leading();
        self.pre_vote = None;
        self.whole_life = false;
        self.awaited = None;
        self.become_role(Role::Learner(Learner::new(leader, view, self.now)));
        self.say(format!("catches up with server {leader}, which leads view {view}"));
        self.send_fetch(leader, view);
    }
}

/// So long a candidate may wait for promises; after that it goes on without those who live and don't answer (N9).
const COLLECTING_MAX: Duration = SUSPICION.saturating_mul(2);
/// So long whoever has promised lets the candidate finish (V12): longer than it waits itself, or two candidates could
/// overtake each other for ever while both wait for a third.
const CANDIDATE_PATIENCE: Duration = SUSPICION.saturating_mul(3);
const _: () = assert!(COLLECTING_MAX.as_millis() < CANDIDATE_PATIENCE.as_millis());

/// N9: a server whose oldest write has been under way for so long has a stuck disk; it must not look alive.
const STUCK_MS: u32 = 1000;

pub(super) fn is_stuck(pulse: &Pulse) -> bool {
    pulse.sync_age_ms >= STUCK_MS && !removed!("N9-stuck")
}

/// Whether it says that it leads, and can.
pub(super) fn leads(pulse: &Pulse) -> bool {
    pulse.standpoint == Standpoint::Primary && !pulse.leaving && !is_stuck(pulse)
}

/// Whether a log that ends at `last` lacks little of one that ends at `end` (T4).
fn is_near(last: Position, end: Position) -> bool {
    last.index.distance_to(end.index) <= BATCH_ENTRIES_MAX as u64
}
