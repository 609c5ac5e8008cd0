//! Reads as strict as writes (N8): one barrier to all members answers all reads that came before it.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::message::{ErrorResponse, PeerMessage, Request};
use crate::time::Instant;
use crate::types::{ConnectionId, Incarnation, ServerId, ViewNumber};

use super::{Replica, Role};

/// A barrier that is not answered within this time is repeated.
const BARRIER_REPEATED_AFTER: Duration = Duration::from_millis(100);
/// Most reads waiting for a barrier; beyond it `busy`.
pub(super) const READS_WAITING_MAX: usize = 16_384;

/// Something that may be answered once a barrier has shown that this server still leads.
#[derive(Debug)]
pub(super) struct WaitingRead {
    pub(super) connection: ConnectionId,
    pub(super) request: u32,
    pub(super) answer: Answer,
}

/// What a waiting read comes to.
#[derive(Debug)]
pub(super) enum Answer {
    /// The request is carried out.
    Request(Request),
    /// The request has failed: a failure too is a statement about the state.
    Failure(ErrorResponse),
}

/// The reads of a primary.
#[derive(Debug, Default)]
pub(super) struct Reads {
    /// The barrier under way and the reads it will answer.
    barrier: Option<Barrier>,
    /// Reads that came since: the next barrier's.
    next: Vec<WaitingRead>,
    /// N1: when a client's hint last caused a barrier.
    hinted: Option<Instant>,
}

#[derive(Debug)]
struct Barrier {
    nonce: u64,
    sent: Instant,
    answered: BTreeSet<ServerId>,
    reads: Vec<WaitingRead>,
}

impl Reads {
    /// How many wait for the barrier under way, and for the next one.
    pub(super) fn waiting(&self) -> (usize, usize) {
        (self.barrier.as_ref().map_or(0, |barrier| barrier.reads.len()), self.next.len())
    }
}

impl Replica {
    /// Has a read answered after the next barrier; false if too many wait.
    pub(super) fn read_after_barrier(&mut self, read: WaitingRead) -> bool {
        let Role::Primary(primary) = &mut self.role else { return false };
        if primary.reads.next.len() >= READS_WAITING_MAX {
            return false;
        }
        primary.reads.next.push(read);
        self.maybe_begin_barrier();
        true
    }

    /// N1: a client has heard of a higher view: one extra barrier, at most one a second.
    pub(super) fn on_view_hint(&mut self, view: ViewNumber) {
        let now = self.now;
        let higher = view > self.view.number;
        let Role::Primary(primary) = &mut self.role else { return };
        if higher && primary.reads.hinted.is_none_or(|at| now.since(at) >= Duration::from_secs(1)) {
            primary.reads.hinted = Some(now);
            self.begin_barrier();
        }
    }

    fn maybe_begin_barrier(&mut self) {
        let Role::Primary(primary) = &self.role else { return };
        if !primary.reads.next.is_empty() {
            self.begin_barrier();
        }
    }

    fn begin_barrier(&mut self) {
        let (nonce, now, view) = (self.nonce(), self.now, self.view.number);
        let Role::Primary(primary) = &mut self.role else { return };
        if primary.reads.barrier.is_some() {
            return;
        }
        let reads = std::mem::take(&mut primary.reads.next);
        primary.reads.barrier = Some(Barrier { nonce, sent: now, answered: BTreeSet::new(), reads });
        for member in self.view.members.clone() {
            if member.server != self.me {
                self.send(member.server, PeerMessage::Barrier { view, nonce });
            }
        }
        self.maybe_end_barrier();
    }

    pub(super) fn on_barrier_ok(
        &mut self,
        from: ServerId,
        view: ViewNumber,
        nonce: u64,
        incarnation: Incarnation,
    ) {
        if view != self.view.number || self.view.member(from).is_none_or(|m| m.incarnation != incarnation) {
            return;
        }
        let Role::Primary(primary) = &mut self.role else { return };
        if let Some(barrier) = primary.reads.barrier.as_mut().filter(|barrier| barrier.nonce == nonce) {
            barrier.answered.insert(from);
            self.maybe_end_barrier();
        }
    }

    /// Answers the reads when every other member has answered in this view. In a view of one that is at once.
    fn maybe_end_barrier(&mut self) {
        let me = self.me;
        let Role::Primary(primary) = &mut self.role else { return };
        let others = || self.view.members.iter().map(|member| member.server).filter(|id| *id != me);
        let complete = |barrier: &mut Barrier| others().all(|id| barrier.answered.contains(&id));
        let Some(barrier) = primary.reads.barrier.take_if(complete) else { return };
        for read in barrier.reads {
            self.answer_read(read);
        }
        self.maybe_begin_barrier();
    }

    pub(super) fn repeat_barrier(&mut self) {
        let (now, view) = (self.now, self.view.number);
        let Role::Primary(primary) = &mut self.role else { return };
        let Some(barrier) = &mut primary.reads.barrier else { return };
        if now.since(barrier.sent) < BARRIER_REPEATED_AFTER {
            return;
        }
        barrier.sent = now;
        let nonce = barrier.nonce;
        let missing: Vec<_> =
            self.peers.keys().copied().filter(|id| !barrier.answered.contains(id)).collect();
        for peer in missing.into_iter().filter(|id| self.view.member(*id).is_some()).collect::<Vec<_>>() {
            self.send(peer, PeerMessage::Barrier { view, nonce });
        }
    }

    /// The reads that wait, when this server stops leading.
    pub(super) fn take_waiting_reads(&mut self) -> Vec<WaitingRead> {
        let Role::Primary(primary) = &mut self.role else { return Vec::new() };
        let reads = std::mem::take(&mut primary.reads);
        reads.barrier.map_or_else(Vec::new, |barrier| barrier.reads).into_iter().chain(reads.next).collect()
    }
}
