//! What a server holds in memory beside the state, and how much of each at most, however many ask.
//!
//! Bytes: a request is at most [`FRAME_CLIENT_BYTES_MAX`](crate::config::FRAME_CLIENT_BYTES_MAX), and the shell takes in
//! [`IN_FLIGHT_MAX`](crate::config::IN_FLIGHT_MAX) of each connection, so whatever a client causes is bounded by its
//! connection; what is listed here is bounded whatever the clients do. A server holds for each peer one read of each
//! kind, one batch that was proposed again, and what it has sent: at most what is not committed, or what was asked for.

use crate::config::{BATCH_BYTES_MAX, HEARTBEAT, UNCOMMITTED_ENTRIES_MAX, UNSYNCED_BYTES_MAX};

use super::catch_up::PeerRead;
use super::log::KEPT_BYTES_MAX;
use super::peer::HEARTBEATS_AWAITED_MAX;
use super::primary::LATE;
use super::reads::READS_WAITING_MAX;
use super::requests::WAITING_MAX;
use super::{Replica, Role};

/// One thing that a server holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holding {
    /// What.
    pub what: &'static str,
    /// How much of it there is.
    pub found: usize,
    /// How much there may be.
    pub max: usize,
}

impl Replica {
    /// What is held at the moment, between two events: for checkers. Takes a few additions per peer.
    #[must_use]
    pub fn holdings(&self) -> Vec<Holding> {
        let peers = self.peers.len();
        let mut holdings = vec![
            // A view that ends leaves its reads to the next one.
            ("requests that wait for a view", self.requests.waiting(), WAITING_MAX + 2 * READS_WAITING_MAX),
            ("servers whose pre-votes wait for a probe", self.probing.len(), peers),
            ("reads of one kind for one peer", self.reads_alike(), 1),
            ("heartbeats on their way to one peer", self.heartbeats_awaited(), HEARTBEATS_AWAITED_MAX),
            ("bytes of applied entries", self.log.applied_bytes(self.state.index()), KEPT_BYTES_MAX),
        ];
        if let Role::Primary(primary) = &self.role {
            let ticks = usize::try_from(LATE.as_millis() / HEARTBEAT.as_millis()).unwrap_or(usize::MAX);
            let (barrier, next) = primary.reads.waiting();
            holdings.extend([
                ("reads that a barrier answers", barrier, READS_WAITING_MAX),
                ("reads that the next barrier answers", next, READS_WAITING_MAX),
                // One that is older than the limit stays.
                ("marks of where the log ended", primary.marks.len(), ticks + 1),
                ("batches proposed again", primary.proposed.len(), peers + 1),
            ]);
            if primary.is_serving(self.commit) {
                holdings.extend(self.uncommitted());
            }
        }
        let named = |(what, found, max)| Holding { what, found, max };
        holdings.into_iter().map(named).collect()
    }

    /// What a primary that answers has under way (R8, D2): its own view's first entry is committed, and so is all that it
    /// has inherited.
    fn uncommitted(&self) -> [(&'static str, usize, usize); 2] {
        // What finds room: a command, or a batch that is proposed again, each row of which becomes a little longer.
        let bytes_max = UNSYNCED_BYTES_MAX + 2 * BATCH_BYTES_MAX;
        // Sessions expire, and an orderly stop closes the log, whatever else is under way.
        let entries_max = UNCOMMITTED_ENTRIES_MAX + 2;
        let entries = self.commit.distance_to(self.log.last().index);
        let number = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
        [
            ("entries that are not committed", number(entries), number(entries_max)),
            ("their bytes", self.log.bytes_after(self.commit), bytes_max),
        ]
    }

    fn reads_alike(&self) -> usize {
        let kind = |read: &PeerRead| (std::mem::discriminant(read), read.reader());
        let alike = |read| self.reads.values().filter(|other| kind(other) == kind(read)).count();
        self.reads.values().map(alike).max().unwrap_or(0)
    }

    fn heartbeats_awaited(&self) -> usize {
        self.peers.values().map(super::peer::Peer::heartbeats_awaited).max().unwrap_or(0)
    }
}
