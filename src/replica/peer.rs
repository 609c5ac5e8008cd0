//! What a server knows of another one: whether it lives (V11), and whether the two were in touch until the end (V2).

use std::collections::VecDeque;

use super::event::LinkState;
use crate::config::SUSPICION;
use crate::message::Pulse;
use crate::time::Instant;
use crate::types::{Incarnation, LogIndex};

/// Heartbeats whose answers are still awaited; older ones are given up.
const HEARTBEATS_AWAITED_MAX: usize = 64;

/// One other server.
#[derive(Debug)]
pub(super) struct Peer {
    /// The own link to it.
    pub(super) link: LinkState,
    /// Since when fresh connects are refused; void as soon as one succeeds (V11).
    refused_since: Option<Instant>,
    /// The same before the present connection: if a new life answers on it, the old one ended no later.
    refused_before: Option<Instant>,
    /// When anything was last heard of it; at first, when this process started to listen.
    last_heard: Instant,
    /// Something was heard of it, by this process.
    pub(super) heard: bool,
    /// The highest incarnation known of it (V6).
    pub(super) incarnation: Incarnation,
    /// When the life before this incarnation was first known to be over, if by this process.
    renewed_at: Option<Instant>,
    /// What it last said of itself.
    pub(super) pulse: Option<Pulse>,
    /// Heartbeats begun by this server: their nonces and when.
    awaited: VecDeque<(u64, Instant)>,
    /// When the last heartbeat that was answered was begun.
    round_trip: Option<Instant>,
    /// The same as it stood when the present incarnation was first heard of.
    round_trip_before: Option<Instant>,
    /// As a learner: the end of its log when it last fetched, and when that was (T4).
    pub(super) fetched: Option<(LogIndex, Instant)>,
    /// As a slow member that was dropped: not before this may it come back, and how often it was dropped (N9).
    pub(super) banned: Option<(Instant, u32)>,
    /// As a member: since when its oldest unacknowledged entry has been too old (N9).
    pub(super) slow_since: Option<Instant>,
}

impl Peer {
    /// A server that nothing was heard of yet.
    pub(super) fn new(now: Instant, incarnation: Incarnation) -> Self {
        Self {
            link: LinkState::Closed,
            refused_since: None,
            refused_before: None,
            last_heard: now,
            heard: false,
            incarnation,
            renewed_at: None,
            pulse: None,
            awaited: VecDeque::new(),
            round_trip: None,
            round_trip_before: None,
            fetched: None,
            banned: None,
            slow_since: None,
        }
    }

    pub(super) fn on_link(&mut self, now: Instant, state: LinkState) {
        self.link = state;
        match state {
            LinkState::Up => self.refused_before = self.refused_since.take().or(self.refused_before),
            LinkState::Refused => {
                self.refused_since.get_or_insert(now);
            }
            LinkState::Closed | LinkState::Silent => {}
        }
    }

    pub(super) fn on_heard(&mut self, now: Instant) {
        self.last_heard = now;
        self.heard = true;
    }

    /// This process did not run for a while: what it believes of others starts anew (V2).
    pub(super) fn on_pause(&mut self, now: Instant) {
        *self = Self { heard: self.heard, banned: self.banned, ..Self::new(now, self.incarnation) };
    }

    pub(super) fn begin_heartbeat(&mut self, now: Instant, nonce: u64) {
        if self.awaited.len() == HEARTBEATS_AWAITED_MAX {
            self.awaited.pop_front();
        }
        self.awaited.push_back((nonce, now));
    }

    /// Takes in an answer; says when its heartbeat was begun, if that is known.
    pub(super) fn end_heartbeat(&mut self, nonce: u64) -> Option<Instant> {
        let at = self.awaited.iter().position(|(awaited, _)| *awaited == nonce)?;
        let (_, begun) = self.awaited[at];
        self.awaited.drain(..=at);
        self.round_trip = self.round_trip.max(Some(begun));
        Some(begun)
    }

    /// Takes in what it says of itself; false if the words are of an earlier life than one already known.
    pub(super) fn on_pulse(&mut self, now: Instant, pulse: Pulse) -> bool {
        if pulse.incarnation < self.incarnation {
            return false;
        }
        if pulse.incarnation > self.incarnation {
            self.incarnation = pulse.incarnation;
            self.renewed_at = Some(self.refused_before.unwrap_or(now));
            self.round_trip_before = self.round_trip.take();
            self.awaited.clear();
            self.fetched = None;
        }
        self.refused_before = None;
        self.pulse = Some(pulse);
        true
    }

    /// Whether a fresh connect was refused (V11).
    pub(super) fn is_refused(&self) -> bool {
        self.refused_since.is_some()
    }

    /// Whether nothing was heard for this long.
    pub(super) fn is_silent_for(&self, now: Instant, timeout: std::time::Duration) -> bool {
        now.since(self.last_heard) >= timeout
    }

    /// V2: whether a heartbeat round trip begun by this server stands so close before the end of the life
    /// `incarnation` (or, if that still lives, before now) that this server can't have been dropped by it unawares.
    pub(super) fn was_in_touch(&self, now: Instant, incarnation: Incarnation, silence: bool) -> bool {
        let (begun, end) = if self.incarnation > incarnation {
            (self.round_trip_before, self.renewed_at)
        } else if self.refused_since.is_some() {
            (self.round_trip, self.refused_since)
        } else if silence {
            (self.round_trip, Some(self.last_heard))
        } else {
            (self.round_trip, Some(now))
        };
        matches!((begun, end), (Some(begun), Some(end)) if end.since(begun) <= SUSPICION / 2)
    }
}
