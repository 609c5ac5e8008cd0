//! What a server knows of another one: whether it lives (V11), and whether the two were in touch until the end (V2).

use std::collections::VecDeque;
use std::time::Duration;

use super::event::LinkState;
use crate::config::SUSPICION;
use crate::message::Pulse;
use crate::time::Instant;
use crate::types::{Incarnation, LogIndex};

/// Heartbeats whose answers are still awaited; older ones are given up.
pub(super) const HEARTBEATS_AWAITED_MAX: usize = 64;

/// One other server.
#[derive(Debug)]
pub(super) struct Peer {
    /// Since when fresh connects are refused; void as soon as one succeeds (V11).
    refused_since: Option<Instant>,
    /// The same before the present connection: if a new life answers on it, the old one ended no later.
    refused_before: Option<Instant>,
    /// When its present life was first heard of. A refused connect that was begun before may be about an earlier one.
    life_known: Instant,
    /// When it last answered, or a view that names it was installed here; at first, when this process started to ask. What
    /// it says unasked does not count: whoever can't be reached is as good as silent, and knows it, for its own heartbeats
    /// come back unanswered (V2).
    answered_at: Instant,
    /// It has answered this process.
    pub(super) answered: bool,
    /// The highest incarnation known of it (V6).
    pub(super) incarnation: Incarnation,
    /// The life before this incarnation, if this process has seen it end.
    last_life: Option<PastLife>,
    /// What it last said of itself.
    pub(super) pulse: Option<Pulse>,
    /// Heartbeats begun by this server: their nonces and when.
    awaited: VecDeque<(u64, Instant)>,
    /// When the last heartbeat that was answered was begun.
    round_trip: Option<Instant>,
    /// When the last heartbeat was begun that it answered in an earlier view than this server had promised, or as a
    /// member of that one beside this server. Should the promised view become active, that was a round trip in it.
    pub(super) promised_round_trip: Option<Instant>,
    /// Since when it has said that it is about to stop.
    leaving_since: Option<Instant>,
    /// As a learner: the end of its log when it last fetched, and when that was (T4).
    pub(super) fetched: Option<(LogIndex, Instant)>,
    /// As a slow member that was dropped: not before this may it come back, and how often it was dropped (N9).
    pub(super) banned: Option<(Instant, u32)>,
    /// As a member: since when its oldest unacknowledged entry has been too old (N9).
    pub(super) slow_since: Option<Instant>,
}

/// A life of another server that is over.
#[derive(Debug)]
struct PastLife {
    incarnation: Incarnation,
    /// When the last heartbeat that it answered was begun.
    round_trip: Option<Instant>,
    /// When it was first known to be over.
    ended: Instant,
}

impl Peer {
    /// A server that nothing was heard of yet.
    pub(super) fn new(now: Instant, incarnation: Incarnation) -> Self {
        Self {
            refused_since: None,
            refused_before: None,
            life_known: now,
            answered_at: now,
            answered: false,
            incarnation,
            last_life: None,
            pulse: None,
            awaited: VecDeque::new(),
            round_trip: None,
            promised_round_trip: None,
            leaving_since: None,
            fetched: None,
            banned: None,
            slow_since: None,
        }
    }

    pub(super) fn on_link(&mut self, now: Instant, state: LinkState) {
        match state {
            LinkState::Up if removed!("V11-void") => {}
            LinkState::Up => self.refused_before = self.refused_since.take().or(self.refused_before),
            LinkState::Refused { begun } if begun < self.life_known && !removed!("V11-begun") => {}
            LinkState::Refused { .. } => {
                self.refused_since.get_or_insert(now);
            }
            LinkState::Closed if removed!("V11-reset") => {
                self.refused_since.get_or_insert(now);
            }
            LinkState::Closed | LinkState::Silent => {}
        }
    }

    /// This process did not run for a while: what it believes of others starts anew (V2).
    pub(super) fn on_pause(&mut self, now: Instant) {
        *self = Self { answered: self.answered, banned: self.banned, ..Self::new(now, self.incarnation) };
    }

    pub(super) fn begin_heartbeat(&mut self, now: Instant, nonce: u64) {
        if self.awaited.len() == HEARTBEATS_AWAITED_MAX {
            self.awaited.pop_front();
        }
        self.awaited.push_back((nonce, now));
    }

    /// How many heartbeats of this server it has not answered yet.
    pub(super) fn heartbeats_awaited(&self) -> usize {
        self.awaited.len()
    }

    /// Takes in an answer of the present life; says when its heartbeat was begun, if that is known. `counts` says
    /// whether it shows that this server is still a member, and was heard of late (V2).
    pub(super) fn end_heartbeat(&mut self, now: Instant, nonce: u64, counts: bool) -> Option<Instant> {
        let at = self.awaited.iter().position(|(awaited, _)| *awaited == nonce)?;
        let (_, begun) = self.awaited[at];
        self.awaited.drain(..=at);
        (self.answered_at, self.answered) = (now, true);
        if counts {
            self.round_trip = self.round_trip.max(Some(begun));
        }
        Some(begun)
    }

    /// The negotiation of a view is a round trip too: what was said at `begun` has come back as the view.
    pub(super) fn note_round_trip(&mut self, now: Instant, begun: Instant) {
        (self.answered_at, self.answered) = (now, true);
        self.note_installed(self.incarnation, begun);
    }

    /// Takes in what it says of itself; false if the words are of an earlier life than one already known. A lower number
    /// is a later life all the same if it is said in a view `later` than the listener's: the directory was wiped.
    pub(super) fn on_pulse(&mut self, now: Instant, pulse: Pulse, later: bool) -> bool {
        if pulse.incarnation < self.incarnation && !later {
            return false;
        }
        if pulse.incarnation != self.incarnation {
            self.begin_life(now, pulse.incarnation);
        }
        self.refused_before = None;
        if pulse.leaving {
            self.leaving_since.get_or_insert(now);
        } else if !removed!("V6-same-number") {
            self.leaving_since = None; // A directory that was put back: another life, and the same number.
        }
        self.pulse = Some(pulse);
        true
    }

    /// A view that this server installs names it: it lived when it was taken in, whoever asked it, and has as long to answer
    /// as if it had just done so. What is known of an earlier life is no evidence against this one (V11).
    pub(super) fn on_named(&mut self, now: Instant, incarnation: Incarnation) {
        if incarnation > self.incarnation && !removed!("V11-life") {
            self.begin_life(now, incarnation);
            self.pulse = None;
        }
        if incarnation >= self.incarnation && !removed!("V11-named") {
            self.answered_at = now;
        }
    }

    /// It has installed a view in which it is named beside this server, and which this server was asked for at `asked`:
    /// after that, and after all that it said in an earlier one. It does not drop this server before the suspicion timeout
    /// has passed (V2, V8).
    pub(super) fn note_installed(&mut self, incarnation: Incarnation, asked: Instant) {
        if incarnation == self.incarnation {
            self.round_trip = self.round_trip.max(self.promised_round_trip).max(Some(asked));
        }
    }

    /// Whether any life of it is known.
    pub(super) fn has_lived(&self) -> bool {
        self.incarnation != Incarnation::default()
    }

    fn begin_life(&mut self, now: Instant, incarnation: Incarnation) {
        // A refused connection is void; the old life ended no later than that.
        let ended = self.refused_since.take().or(self.refused_before.take()).unwrap_or(now);
        let (earlier, round_trip) = (self.incarnation, self.round_trip.take());
        self.last_life = Some(PastLife { incarnation: earlier, round_trip, ended });
        (self.incarnation, self.life_known) = (incarnation, now);
        self.awaited.clear();
        self.promised_round_trip = None;
        self.leaving_since = None;
        self.fetched = None;
    }

    /// Whether it has been about to stop for so long that whoever wants to stop with it has said so too.
    pub(super) fn leaves(&self, now: Instant) -> bool {
        self.leaving_since.is_some_and(|since| now.since(since) >= super::stop::LEAVERS_COLLECTED)
    }

    /// Whether a fresh connect was refused (V11).
    pub(super) fn is_refused(&self) -> bool {
        self.refused_since.is_some()
    }

    /// Whether it has not answered for this long.
    pub(super) fn is_silent_for(&self, now: Instant, timeout: std::time::Duration) -> bool {
        now.since(self.answered_at) >= timeout
    }

    /// V2: whether a heartbeat round trip begun by this server stands so close before the end of the life
    /// `incarnation` (or, if that still lives, before now) that this server can't have been dropped by it unawares, if
    /// it drops only those who have not answered for as long as `silence`.
    pub(super) fn was_in_touch(
        &self,
        now: Instant,
        incarnation: Incarnation,
        is_silent: bool,
        silence: Duration,
    ) -> bool {
        if removed!("V2-in-touch") {
            return true;
        }
        let (begun, end) = if self.incarnation > incarnation {
            let Some(life) = self.last_life.as_ref().filter(|life| life.incarnation == incarnation) else {
                return false;
            };
            (life.round_trip, life.ended)
        } else {
            let silent_since = if is_silent { self.answered_at } else { now };
            (self.round_trip, self.refused_since.unwrap_or(silent_since))
        };
        let age_max = silence - SUSPICION / 2;
        begun.is_some_and(|begun| begun <= end && end.since(begun) <= age_max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_of_a_connect_that_was_begun_before_the_present_life_is_no_evidence_against_it() {
        let mut now = Instant::ZERO;
        let mut peer = Peer::new(now, Incarnation(1));
        peer.on_link(now, LinkState::Refused { begun: now });
        assert!(peer.is_refused());
        now = now + SUSPICION * 9;
        peer.on_named(now, Incarnation(1));
        assert!(peer.is_refused(), "it is no other life");
        peer.on_named(now, Incarnation(2));
        assert!(!peer.is_refused() && !peer.is_silent_for(now, SUSPICION));
        let later = now + Duration::from_millis(1);
        peer.on_link(later, LinkState::Refused { begun: now - Duration::from_millis(1) });
        assert!(!peer.is_refused(), "it was begun too early");
        peer.on_link(later, LinkState::Refused { begun: now });
        assert!(peer.is_refused());
    }
}
