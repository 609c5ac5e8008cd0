//! The log as the core sees it: the recent entries in memory, what is synced of them, and where each view starts.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::chat::command::Operation;
use crate::config::{BATCH_BYTES_MAX, BATCH_ENTRIES_MAX};
use crate::message::{Entry, Position, ViewStart, ViewTable};
use crate::types::{LogIndex, ViewNumber, WriteId};

/// Applied entries are kept in memory up to this many bytes, for peers that are a little behind.
pub(super) const KEPT_BYTES_MAX: usize = 4 * 1024 * 1024;

/// How many of the latest views travel with a fetch: divergence further back starts from a checkpoint.
const VIEWS_SENT_MAX: usize = 256;

/// The log's recent end.
#[derive(Debug)]
pub(super) struct Log {
    /// The entry before the first one in memory.
    before: Position,
    /// That entry is `closed`: an orderly stop of all members.
    closed: bool,
    /// Invariant: indexes ascend by one from `before`, each chain follows from the one before.
    entries: VecDeque<Arc<Entry>>,
    /// Encoded bytes of all entries through each of `entries`, counted from some earlier one: what lies between two
    /// is their difference.
    bytes_through: VecDeque<u64>,
    /// The same through `before`.
    bytes_before: u64,
    /// Where each view starts, oldest first. Invariant: both columns ascend.
    views: ViewTable,
    /// The entry before the first one that can be read from the disk.
    pub(super) disk_base: Position,
    /// Invariant: synced <= last.
    synced: LogIndex,
    /// Appends under way: which write, and up to which index the log is synced with it.
    unsynced: VecDeque<(WriteId, LogIndex)>,
}

impl Log {
    /// A log as recovery found it: all of it is synced. `closed` says whether the entry at `before` is `closed`.
    pub(super) fn recovered(
        before: Position,
        closed: bool,
        tail: Vec<Arc<Entry>>,
        views: ViewTable,
        disk_base: Position,
    ) -> Self {
        let mut bytes = 0;
        let through = |entry: &Arc<Entry>| {
            bytes += entry.bytes.len() as u64;
            bytes
        };
        let bytes_through = tail.iter().map(through).collect();
        let entries = VecDeque::from(tail);
        let synced = entries.back().map_or(before.index, |entry| entry.index);
        let (bytes_before, unsynced) = (0, VecDeque::new());
        Self { before, closed, entries, bytes_through, bytes_before, views, disk_base, synced, unsynced }
    }

    /// The last entry's position.
    pub(super) fn last(&self) -> Position {
        self.entries.back().map_or(self.before, |entry| entry.position())
    }

    /// Whether the last entry is `closed`.
    pub(super) fn ends_closed(&self) -> bool {
        self.entries.back().map_or(self.closed, |entry| entry.operation == Operation::Closed)
    }

    /// Whether nothing of any user is above `index`.
    pub(super) fn is_without_users(&self, index: LogIndex) -> bool {
        let of_users =
            |entry: &Arc<Entry>| matches!(entry.operation, Operation::Command(_) | Operation::Rebased { .. });
        !self.entries.iter().rev().take_while(|entry| entry.index > index).any(of_users)
    }

    /// How far the log is on the own disk.
    pub(super) fn synced(&self) -> LogIndex {
        self.synced
    }

    /// Encoded bytes of the entries after `index` that are in memory: the bound on what is under way.
    pub(super) fn bytes_after(&self, index: LogIndex) -> usize {
        let count = usize::try_from(self.before.index.distance_to(index)).unwrap_or(usize::MAX);
        let until = match count.checked_sub(1) {
            Some(last) => self.bytes_through.get(last).copied().unwrap_or(self.bytes_end()),
            None => self.bytes_before,
        };
        usize::try_from(self.bytes_end() - until).unwrap_or(usize::MAX)
    }

    /// Encoded bytes of the entries in memory that are applied.
    pub(super) fn applied_bytes(&self, applied: LogIndex) -> usize {
        self.bytes_after(self.before.index) - self.bytes_after(applied)
    }

    fn bytes_end(&self) -> u64 {
        self.bytes_through.back().copied().unwrap_or(self.bytes_before)
    }

    /// An entry in memory.
    pub(super) fn entry(&self, index: LogIndex) -> Option<&Arc<Entry>> {
        let at = index.0.checked_sub(self.before.index.0 + 1)?;
        self.entries.get(usize::try_from(at).ok()?)
    }

    /// The position at `index`, if it is known without the disk.
    pub(super) fn position(&self, index: LogIndex) -> Option<Position> {
        if index == self.before.index {
            return Some(self.before);
        }
        self.entry(index).map(|entry| entry.position())
    }

    /// The entries in memory after `index`, one batch at most; none if the first of them is not in memory.
    pub(super) fn batch_after(&self, index: LogIndex) -> Option<Vec<Arc<Entry>>> {
        if index < self.before.index {
            return None;
        }
        let skip = usize::try_from(self.before.index.distance_to(index)).ok()?;
        let mut bytes = 0;
        let batch = self.entries.iter().skip(skip).take(BATCH_ENTRIES_MAX).take_while(|entry| {
            bytes += entry.bytes.len();
            bytes <= BATCH_BYTES_MAX || bytes == entry.bytes.len()
        });
        Some(batch.cloned().collect())
    }

    /// Appends an entry; its write is named later, by [`Log::written`].
    ///
    /// # Panics
    /// If the entry does not follow the last one: callers check what comes from outside.
    pub(super) fn append(&mut self, entry: Arc<Entry>) {
        let last = self.last();
        assert_eq!(entry.index, last.index.next(), "an entry is appended out of order");
        assert!(entry.view >= last.view, "an entry of view {} after one of view {}", entry.view, last.view);
        if self.views.last().is_none_or(|start| start.view < entry.view) {
            self.views.push(ViewStart { view: entry.view, start: entry.index });
        }
        self.bytes_through.push_back(self.bytes_end() + entry.bytes.len() as u64);
        self.entries.push_back(entry);
    }

    /// Says which write carries the log's present end.
    pub(super) fn written(&mut self, id: WriteId) {
        let last = self.last().index;
        self.unsynced.push_back((id, last));
    }

    /// Takes note that all writes up to `through` are on disk.
    pub(super) fn mark_synced(&mut self, through: WriteId) {
        while let Some(&(id, index)) = self.unsynced.front() {
            if id > through {
                break;
            }
            self.unsynced.pop_front();
            self.synced = self.synced.max(index);
        }
        assert!(self.synced <= self.last().index, "more is synced than the log holds");
    }

    /// Cuts the entries above `after`. Completions of their writes can't be mistaken: they count up to `after` only.
    ///
    /// # Panics
    /// If `after` is not in memory: the caller then starts from a checkpoint instead.
    pub(super) fn truncate(&mut self, after: LogIndex) {
        assert!(after >= self.before.index, "the log is cut below what is in memory");
        while self.last().index > after {
            self.entries.pop_back();
            self.bytes_through.pop_back();
        }
        while self.views.last().is_some_and(|start| start.start > after) {
            self.views.pop();
        }
        self.synced = self.synced.min(after);
        for (_, index) in &mut self.unsynced {
            *index = (*index).min(after);
        }
    }

    /// Starts again after a checkpoint that was installed.
    pub(super) fn restart_after(&mut self, position: Position, views: ViewTable) {
        *self = Self::recovered(position, false, Vec::new(), views, position);
    }

    /// Lets go of applied entries that are more than a little old.
    pub(super) fn forget_applied(&mut self, applied: LogIndex) {
        while self.bytes_after(self.before.index) > KEPT_BYTES_MAX && self.before.index < applied {
            let (Some(entry), Some(bytes)) = (self.entries.pop_front(), self.bytes_through.pop_front())
            else {
                return;
            };
            self.bytes_before = bytes;
            self.before = entry.position();
            self.closed = entry.operation == Operation::Closed;
        }
    }

    /// The views up to an index.
    pub(super) fn views_through(&self, index: LogIndex) -> ViewTable {
        self.views.iter().copied().filter(|start| start.start <= index).collect()
    }

    /// Where the view of the last entry begins, if that is known.
    pub(super) fn last_view_start(&self) -> Option<LogIndex> {
        self.views.last().filter(|start| start.view == self.last().view).map(|start| start.start)
    }

    /// The latest part of the table of views, for a peer.
    pub(super) fn recent_views(&self) -> ViewTable {
        self.views[self.views.len().saturating_sub(VIEWS_SENT_MAX)..].to_vec()
    }

    /// Whether a log that ends at `position` is a prefix of this one, as far as the table of views and the entries
    /// in memory tell.
    pub(super) fn has(&self, position: Position) -> bool {
        if position.index > self.last().index {
            return false;
        }
        match self.position(position.index) {
            Some(own) => own == position,
            None => view_at(&self.views, position.index) == position.view,
        }
    }

    /// The last index that this log shares with another one: the end of the last view both have, where the
    /// shorter of the two ends (T2, KIP-101). Never the commit index.
    pub(super) fn shared_with(&self, last: Position, views: &[ViewStart]) -> LogIndex {
        shared(&self.views, self.last().index, views, last.index)
    }
}

/// The view of the entry at `index`, by a table of views; [`ViewNumber::NONE`] before the first.
pub(super) fn view_at(views: &[ViewStart], index: LogIndex) -> ViewNumber {
    views.iter().rev().find(|start| start.start <= index).map_or(ViewNumber::NONE, |start| start.view)
}

fn shared(ours: &[ViewStart], our_last: LogIndex, theirs: &[ViewStart], their_last: LogIndex) -> LogIndex {
    let end_of = |views: &[ViewStart], view: ViewNumber, last: LogIndex| {
        views
            .iter()
            .find(|start| start.view > view)
            .map_or(last, |next| LogIndex(next.start.0.saturating_sub(1)))
    };
    theirs.iter().rev().find(|start| ours.contains(start)).map_or(LogIndex::ZERO, |common| {
        end_of(theirs, common.view, their_last).min(end_of(ours, common.view, our_last))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chat::command::{ClientCommand, Command};
    use crate::types::{AccountId, ClientId, RequestId, RequestNumber, ServerId};

    fn start(counter: u32, proposer: u8, index: u64) -> ViewStart {
        ViewStart { view: ViewNumber { counter, proposer: ServerId(proposer) }, start: LogIndex(index) }
    }

    #[test]
    fn bytes_under_way_are_counted_exactly_whatever_went_before() {
        let start = Position::default();
        let mut log = Log::recovered(start, false, Vec::new(), ViewTable::default(), start);
        let mut sum = 0;
        let request = RequestId { client: ClientId(1), number: RequestNumber(1) };
        let account = AccountId(request);
        let mut append = |log: &mut Log, count: u64, length: usize| {
            for _ in 0..count {
                let last = log.last();
                let command = Command::Send { to: account, text: "x".repeat(length) };
                let command = ClientCommand { request, acknowledged: RequestNumber(0), account, command };
                let operation = Operation::Command(command);
                log.append(Arc::new(Entry::new(last.index.next(), last.view, 0, operation, last.chain)));
                sum += log.entry(log.last().index).expect("it was appended").bytes.len();
            }
            sum
        };
        let small = append(&mut log, 10_000, 10);
        let all = append(&mut log, 1_000, 8_000);
        assert_eq!(log.bytes_after(LogIndex(10_000)), all - small);
        assert_eq!(log.bytes_after(LogIndex(0)), all);
        assert_eq!((log.bytes_after(LogIndex(11_000)), log.bytes_after(LogIndex(20_000))), (0, 0));
        log.forget_applied(LogIndex(10_000));
        assert_eq!(log.bytes_after(LogIndex(10_000)), all - small);
        assert!(log.applied_bytes(LogIndex(10_000)) <= KEPT_BYTES_MAX);
        log.truncate(LogIndex(10_000));
        assert_eq!(log.bytes_after(LogIndex(10_000)), 0);
    }

    #[test]
    fn logs_part_at_the_end_of_the_last_view_they_share() {
        let ours = [start(1, 1, 1), start(2, 2, 10), start(4, 1, 20)];
        let theirs = [start(1, 1, 1), start(2, 2, 10), start(3, 3, 15)];
        assert_eq!(shared(&ours, LogIndex(30), &theirs, LogIndex(40)), LogIndex(14));
        assert_eq!(shared(&theirs, LogIndex(40), &ours, LogIndex(30)), LogIndex(14));
    }

    #[test]
    fn a_prefix_is_shared_to_its_end() {
        let ours = [start(1, 1, 1), start(2, 2, 10)];
        assert_eq!(shared(&ours, LogIndex(30), &ours[..1], LogIndex(7)), LogIndex(7));
        assert_eq!(shared(&ours, LogIndex(30), &ours, LogIndex(25)), LogIndex(25));
    }

    #[test]
    fn logs_without_a_common_view_share_nothing() {
        assert_eq!(shared(&[start(1, 1, 1)], LogIndex(9), &[start(1, 2, 1)], LogIndex(9)), LogIndex::ZERO);
        assert_eq!(shared(&[start(1, 1, 1)], LogIndex(9), &[], LogIndex(0)), LogIndex::ZERO);
    }
}
