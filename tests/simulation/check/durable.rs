//! Nothing goes backwards that is on a disk: what a server has synced, its next life finds again (D1, V2, V6).
//!
//! Writes are noted as the core asks for them, and count when the core hears that they are synced, since only then
//! others may rely on them. Within a life the core never writes less than before.

use std::collections::VecDeque;

use lastword::message::{CheckpointStep, Recovered, Standing, Write};
use lastword::replica::Effect;
use lastword::types::{Incarnation, LogIndex, ViewNumber, WriteId};

/// What a directory holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Noted {
    incarnation: Incarnation,
    promised: ViewNumber,
    view: ViewNumber,
    last: LogIndex,
}

#[derive(Clone, Debug, Default)]
struct Disk {
    synced: Noted,
    /// As of the last write that was asked for.
    written: Noted,
    writing: VecDeque<(WriteId, Noted)>,
}

/// What each server's directory holds.
#[derive(Debug)]
pub(crate) struct Durable(Vec<Disk>);

impl Durable {
    /// Empty directories.
    pub(crate) fn new(servers: usize) -> Self {
        Self(vec![Disk::default(); servers])
    }

    /// The directory was emptied, restored from a copy, or damaged: nothing is known of it.
    pub(crate) fn forget(&mut self, at: usize) {
        self.0[at] = Disk::default();
    }

    /// A process has opened its directory.
    pub(crate) fn on_start(&mut self, at: usize, recovered: &Recovered) {
        let last = recovered.tail.last().map_or(recovered.applied.index, |entry| entry.index);
        let found = Noted {
            incarnation: recovered.hard.incarnation,
            promised: recovered.hard.promised,
            view: recovered.view.number,
            last,
        };
        self.on_found(at, found, recovered.hard.standing == Standing::Whole && recovered.gaps.is_empty());
    }

    fn on_found(&mut self, at: usize, found: Noted, whole: bool) {
        let synced = self.0[at].synced;
        let kept = found.incarnation >= synced.incarnation
            && found.promised >= synced.promised
            && found.view >= synced.view
            && found.last >= synced.last;
        assert!(!whole || kept, "server {} had synced {synced:?}, and finds {found:?}", at + 1);
        self.0[at] = Disk { synced: found, written: found, writing: VecDeque::new() };
    }

    /// The core wants something done.
    pub(crate) fn on_effect(&mut self, at: usize, effect: &Effect) {
        match effect {
            Effect::Write { id, write } => self.on_write(at, *id, write),
            // The log starts anew after another server's checkpoint.
            Effect::Checkpoint(CheckpointStep::Receive { .. }) => {
                let disk = &mut self.0[at];
                disk.synced.last = LogIndex::ZERO;
                disk.written.last = LogIndex::ZERO;
                disk.writing.iter_mut().for_each(|(_, noted)| noted.last = LogIndex::ZERO);
            }
            _ => {}
        }
    }

    fn on_write(&mut self, at: usize, id: WriteId, write: &Write) {
        let disk = &mut self.0[at];
        let before = disk.written;
        let next = &mut disk.written;
        match write {
            Write::Append(entries) => next.last = entries.last().map_or(next.last, |entry| entry.index),
            Write::Truncate { after } => {
                next.last = *after;
                // From here on the log may end there, whatever was synced before.
                disk.synced.last = disk.synced.last.min(*after);
                disk.writing.iter_mut().for_each(|(_, noted)| noted.last = noted.last.min(*after));
            }
            Write::HardState(hard) => {
                (next.incarnation, next.promised) = (hard.incarnation, hard.promised);
                assert!(
                    hard.incarnation >= before.incarnation && hard.promised >= before.promised,
                    "server {} writes incarnation {} and promise {} after {before:?}",
                    at + 1,
                    hard.incarnation.0,
                    hard.promised
                );
            }
            // A cluster that holds nothing of anyone yields to another one: its views and promises are void.
            Write::View(view) if view.members.is_empty() => {
                *next = Noted { incarnation: before.incarnation, ..Noted::default() };
            }
            // What was a member of a view that is lost follows an earlier one.
            Write::View(view) if !view.exists() => next.view = ViewNumber::NONE,
            Write::View(view) => {
                next.view = view.number;
                assert!(
                    view.number >= before.view,
                    "server {} installs {} after {}",
                    at + 1,
                    view.number,
                    before.view
                );
            }
            Write::Commit(_) | Write::Forget { .. } => {}
        }
        assert!(disk.writing.back().is_none_or(|(earlier, _)| *earlier < id), "write ids ascend");
        disk.writing.push_back((id, disk.written));
    }

    /// The core hears that its writes are on disk.
    pub(crate) fn on_synced(&mut self, at: usize, through: WriteId) {
        let disk = &mut self.0[at];
        while let Some((_, noted)) = disk.writing.pop_front_if(|(id, _)| *id <= through) {
            disk.synced = noted;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::panics;
    use lastword::message::HardState;

    fn promise(counter: u32) -> ViewNumber {
        ViewNumber { counter, ..ViewNumber::NONE }
    }

    fn write(durable: &mut Durable, id: u64, counter: u32) {
        let hard = HardState { promised: promise(counter), ..HardState::default() };
        durable.on_write(0, WriteId(id), &Write::HardState(hard));
    }

    fn found(counter: u32) -> Noted {
        Noted { promised: promise(counter), ..Noted::default() }
    }

    #[test]
    fn synced_promise_that_a_restart_does_not_find_is_refused() {
        let begin = || {
            let mut durable = Durable::new(1);
            write(&mut durable, 1, 7);
            durable
        };
        begin().on_found(0, found(0), true); // It was not synced.
        let mut synced = begin();
        synced.on_synced(0, WriteId(1));
        synced.on_found(0, found(7), true);
        assert!(panics(|| {
            let mut synced = begin();
            synced.on_synced(0, WriteId(1));
            synced.on_found(0, found(6), true);
        }));
        let mut wiped = begin();
        wiped.on_synced(0, WriteId(1));
        wiped.forget(0);
        wiped.on_found(0, found(0), true);
    }

    #[test]
    fn promise_below_an_earlier_one_is_refused() {
        assert!(panics(|| {
            let mut durable = Durable::new(1);
            write(&mut durable, 1, 7);
            write(&mut durable, 2, 6);
        }));
    }

    #[test]
    fn log_may_end_earlier_only_where_it_was_cut() {
        let cut_at = |after: u64, finds: u64| {
            let mut durable = Durable::new(1);
            durable.0[0].synced.last = LogIndex(9);
            durable.on_write(0, WriteId(1), &Write::Truncate { after: LogIndex(after) });
            durable.on_found(0, Noted { last: LogIndex(finds), ..Noted::default() }, true);
        };
        cut_at(5, 5);
        assert!(panics(|| cut_at(5, 4)));
    }
}
