//! The ids of applied commands (R4, R8): what a command from another log is compared with before it is applied.
//!
//! Ids are kept by generation, each of [`GENERATION_ENTRIES`] entries; the oldest goes as a whole when nobody can come
//! back with rows as old as that. Clients number their requests in sequence, so an id costs next to nothing: it makes a
//! run of ids longer.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use super::table::{Enough, Shown};
use crate::config::{APPLIED_ENTRIES_MAX, UNCOMMITTED_ENTRIES_MAX};
use crate::types::{LogIndex, RequestId, RequestNumber, ServerId};

/// How many entries a generation has: few enough to copy its ids when a checkpoint begins.
pub(super) const GENERATION_ENTRIES: u64 = 16_384;

const RUN_ROW_BYTES: u64 = 45;

/// What became of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Fate {
    CarriedOut,
    /// It has done nothing here. On the other side of a split it may have been carried out.
    Refused,
}

/// Ids of one client with numbers one after the other, of commands with one fate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) fate: Fate,
    pub(super) first: RequestId,
    pub(super) last: RequestNumber,
}

impl Run {
    fn new(((fate, first), last): (&(Fate, RequestId), &RequestNumber)) -> Self {
        Self { fate: *fate, first: *first, last: *last }
    }

    fn has(&self, fate: Fate, id: RequestId) -> bool {
        self.fate == fate
            && self.first.client == id.client
            && (self.first.number..=self.last).contains(&id.number)
    }
}

/// The runs of one generation: the first id of each and its last number.
type Runs = BTreeMap<(Fate, RequestId), RequestNumber>;

/// A generation that gets no more ids.
#[derive(Debug)]
struct Generation {
    /// It has the entries from `number * GENERATION_ENTRIES` on.
    number: u64,
    /// Ascending.
    runs: Vec<Run>,
}

impl Generation {
    fn new(number: u64, runs: &Runs) -> Self {
        Self { number, runs: runs.iter().map(Run::new).collect() }
    }

    fn has(&self, fate: Fate, id: RequestId) -> bool {
        let behind = self.runs.partition_point(|run| (run.fate, run.first) <= (fate, id));
        behind > 0 && self.runs[behind - 1].has(fate, id)
    }
}

/// A row of `applied_ids.csv`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AppliedRow {
    /// The ids of all entries from this index on are here; without such a row those of all entries.
    From(LogIndex),
    /// A configured server that is in no view since this index.
    Absent(ServerId, LogIndex),
    /// Ids of one generation.
    Run(u64, Run),
}

impl AppliedRow {
    /// What stands in the column `at`.
    pub(super) fn at(self) -> u64 {
        match self {
            Self::From(index) | Self::Absent(_, index) => index.0,
            Self::Run(generation, _) => generation,
        }
    }
}

/// The rows that a checkpoint has yet to show.
#[derive(Clone, Debug)]
struct Reading {
    head: VecDeque<AppliedRow>,
    generations: VecDeque<Arc<Generation>>,
    /// Which run of the first of them is next.
    at: usize,
}

/// The ids of applied commands.
#[derive(Clone, Debug, Default)]
pub(super) struct AppliedIds {
    /// The ids of all entries from here on are known.
    from: LogIndex,
    /// Since which entry a configured server is in no view.
    absent: BTreeMap<ServerId, LogIndex>,
    /// Oldest first; those without ids are left out.
    closed: VecDeque<Arc<Generation>>,
    /// How many runs those have.
    closed_runs: usize,
    /// The generation under way.
    open: Runs,
    reading: Option<Reading>,
}

impl AppliedIds {
    /// The ids of all entries from this index on are known.
    pub(super) fn from(&self) -> LogIndex {
        self.from
    }

    /// Whether a command with this id had this fate in the entries that are kept.
    pub(super) fn has(&self, fate: Fate, id: RequestId) -> bool {
        let run = self.open.range(..=(fate, id)).next_back();
        run.is_some_and(|run| Run::new(run).has(fate, id))
            || self.closed.iter().rev().any(|generation| generation.has(fate, id))
    }

    /// Whether a command with this id was refused after the entry `fork`, or in the generation that this was in.
    pub(super) fn was_refused_since(&self, fork: LogIndex, id: RequestId) -> bool {
        let is_later = |generation: &&Arc<Generation>| (generation.number + 1) * GENERATION_ENTRIES > fork.0;
        let run = self.open.range(..=(Fate::Refused, id)).next_back();
        run.is_some_and(|run| Run::new(run).has(Fate::Refused, id))
            || self.closed.iter().rev().take_while(is_later).any(|closed| closed.has(Fate::Refused, id))
    }

    /// Takes in the id of a command that was applied.
    pub(super) fn insert(&mut self, fate: Fate, id: RequestId) {
        if let Some(((earlier, first), last)) = self.open.range_mut(..=(fate, id)).next_back()
            && (*earlier, first.client) == (fate, id.client)
            && id.number.0 <= last.0.saturating_add(1)
        {
            *last = id.number.max(*last);
            return;
        }
        self.open.insert((fate, id), id.number);
    }

    /// Begins a new generation if `index`, the entry that is being applied, is the first of one.
    pub(super) fn advance(&mut self, index: LogIndex) {
        if !index.0.is_multiple_of(GENERATION_ENTRIES) {
            return;
        }
        if !self.open.is_empty() {
            self.closed_runs += self.open.len();
            self.closed.push_back(Arc::new(Generation::new(index.0 / GENERATION_ENTRIES - 1, &self.open)));
            self.open.clear();
        }
        let keep_from = self.keep_from(index) / GENERATION_ENTRIES;
        self.from = self.from.max(LogIndex(keep_from * GENERATION_ENTRIES));
        while let Some(gone) = self.closed.pop_front_if(|generation| generation.number < keep_from) {
            self.closed_runs -= gone.runs.len();
        }
    }

    /// Up to where ids may be forgotten at `index` (R8): an absent server may hold rows that nobody else does since a
    /// bounded number of entries before it left, and so may a member of a view that ends now.
    fn keep_from(&self, index: LogIndex) -> u64 {
        let left = self.absent.values().min().map_or(index, |since| index.min(*since));
        let wanted = left.0.saturating_sub(UNCOMMITTED_ENTRIES_MAX);
        wanted.max(index.0.saturating_sub(APPLIED_ENTRIES_MAX))
    }

    /// A view begins with the entry `index`; these configured servers are not in it.
    pub(super) fn note_absent(&mut self, index: LogIndex, absent: &[ServerId]) {
        self.absent.retain(|server, _| absent.contains(server));
        for server in absent {
            self.absent.entry(*server).or_insert(index);
        }
    }

    /// Roughly how many bytes the ids take in a checkpoint.
    pub(super) fn bytes(&self) -> u64 {
        (self.open.len() + self.closed_runs) as u64 * RUN_ROW_BYTES
    }

    /// Whether what is kept can be.
    pub(super) fn check(&self, index: LogIndex) -> Result<(), String> {
        let open = index.0 / GENERATION_ENTRIES;
        let ascending = self.closed.iter().map(|generation| generation.number).is_sorted();
        let last = self.closed.back().map(|generation| generation.number);
        if self.from > index.next() || !ascending || last.is_some_and(|last| last >= open) {
            return Err(format!("ids of entries from {} on at {index}, in wrong generations", self.from));
        }
        let closed = self.closed.iter().map(|generation| generation.runs.as_slice());
        let open: Vec<Run> = self.open.iter().map(Run::new).collect();
        for runs in closed.clone().chain([open.as_slice()]) {
            for pair in runs.windows(2) {
                ensure_above(Some(pair[0]), pair[1]).map_err(|_| format!("{pair:?} overlap"))?;
            }
        }
        let counted: usize = closed.map(<[Run]>::len).sum();
        if counted == self.closed_runs {
            Ok(())
        } else {
            Err(format!("{counted} runs of ids are miscounted"))
        }
    }

    /// From now on [`AppliedIds::show_next`] shows the rows as they are now, at index `index`.
    pub(super) fn begin(&mut self, index: LogIndex) {
        let mut head = VecDeque::new();
        if self.from > LogIndex(0) {
            head.push_back(AppliedRow::From(self.from));
        }
        head.extend(self.absent.iter().map(|(server, since)| AppliedRow::Absent(*server, *since)));
        let mut generations = self.closed.clone();
        if !self.open.is_empty() {
            generations.push_back(Arc::new(Generation::new(index.0 / GENERATION_ENTRIES, &self.open)));
        }
        self.reading = Some(Reading { head, generations, at: 0 });
    }

    /// Gives up the reading under way.
    pub(super) fn abandon(&mut self) {
        self.reading = None;
    }

    /// Shows up to `rows_max` further rows as they were at the beginning, fewer if `show` says that it has enough.
    pub(super) fn show_next(&mut self, rows_max: usize, mut show: impl FnMut(AppliedRow) -> Enough) -> Shown {
        let mut count = 0;
        while count < rows_max {
            let Some(row) = self.reading.as_mut().and_then(Reading::next) else {
                self.reading = None;
                return Shown { count, all: true };
            };
            count += 1;
            if show(row) == Enough::Yes {
                break;
            }
        }
        Shown { count, all: false }
    }

    /// Takes a row of a checkpoint that was taken at `index`.
    ///
    /// # Errors
    /// What was expected in its place.
    pub(super) fn restore(&mut self, index: LogIndex, row: AppliedRow) -> Result<(), &'static str> {
        let open = index.0 / GENERATION_ENTRIES;
        match row {
            AppliedRow::From(from) if from <= index => self.from = from,
            AppliedRow::From(_) => return Err("an index up to the checkpoint's"),
            AppliedRow::Absent(server, since) => {
                if since > index || self.absent.last_key_value().is_some_and(|(last, _)| *last >= server) {
                    return Err(
                        "a server above that of the row before, absent since an index up to the checkpoint's",
                    );
                }
                self.absent.insert(server, since);
            }
            AppliedRow::Run(_, Run { first, last, .. }) if last < first.number => {
                return Err("a last number that is not below the first");
            }
            AppliedRow::Run(number, run) if number == open => {
                ensure_above(self.open.last_key_value().map(Run::new), run)?;
                self.open.insert((run.fate, run.first), run.last);
            }
            AppliedRow::Run(number, run) => self.restore_closed(open, number, run)?,
        }
        Ok(())
    }

    fn restore_closed(&mut self, open: u64, number: u64, run: Run) -> Result<(), &'static str> {
        let expected = "a generation from that of the row before to the checkpoint's own";
        if number > open || number < self.from.0 / GENERATION_ENTRIES || !self.open.is_empty() {
            return Err(expected);
        }
        match self.closed.back_mut().filter(|generation| generation.number >= number) {
            None => self.closed.push_back(Arc::new(Generation { number, runs: vec![run] })),
            Some(generation) if generation.number > number => return Err(expected),
            Some(generation) => {
                ensure_above(generation.runs.last().copied(), run)?;
                let generation = Arc::get_mut(generation).expect("nobody reads what is being restored");
                generation.runs.push(run);
            }
        }
        self.closed_runs += 1;
        Ok(())
    }
}

impl Reading {
    fn next(&mut self) -> Option<AppliedRow> {
        if let Some(row) = self.head.pop_front() {
            return Some(row);
        }
        let generation = self.generations.front()?;
        let row = AppliedRow::Run(generation.number, generation.runs[self.at]);
        self.at += 1;
        if self.at == generation.runs.len() {
            self.generations.pop_front();
            self.at = 0;
        }
        Some(row)
    }
}

fn ensure_above(before: Option<Run>, run: Run) -> Result<(), &'static str> {
    let apart = |before: Run| {
        let end = (before.fate, RequestId { number: before.last, ..before.first });
        end < (run.fate, run.first)
    };
    if before.is_none_or(apart) { Ok(()) } else { Err("an id above those of the row before") }
}

#[cfg(test)]
mod tests {
    use super::Fate::{CarriedOut, Refused};
    use super::*;
    use crate::types::ClientId;

    const KEPT: u64 = APPLIED_ENTRIES_MAX / GENERATION_ENTRIES;

    fn id(client: u64, number: u64) -> RequestId {
        RequestId { client: ClientId(client), number: RequestNumber(number) }
    }

    /// One id for each generation up to `last`.
    fn generations(ids: &mut AppliedIds, first: u64, last: u64) {
        for generation in first..=last {
            ids.advance(LogIndex(generation * GENERATION_ENTRIES));
            ids.insert(CarriedOut, id(generation, 7));
        }
    }

    #[test]
    fn numbers_in_sequence_are_one_run_whatever_comes_between() {
        let mut ids = AppliedIds::default();
        for number in 1..=1000 {
            ids.insert(CarriedOut, id(1, number));
            ids.insert(CarriedOut, id(2, u64::MAX - 2 * number));
        }
        assert_eq!(ids.open.len(), 1001);
        assert!(
            ids.has(CarriedOut, id(1, 1))
                && ids.has(CarriedOut, id(1, 1000))
                && ids.has(CarriedOut, id(2, u64::MAX - 2))
        );
        assert!(
            !ids.has(CarriedOut, id(1, 0))
                && !ids.has(CarriedOut, id(1, 1001))
                && !ids.has(CarriedOut, id(2, u64::MAX - 3))
                && !ids.has(CarriedOut, id(3, 1))
        );
    }

    #[test]
    fn numbers_out_of_sequence_are_all_known_and_no_others() {
        let mut ids = AppliedIds::default();
        for number in [5, 3, 4, 9, 8, 3, 10, 9, 7] {
            ids.insert(CarriedOut, id(1, number));
            ids.check(LogIndex(9)).unwrap();
        }
        let known: Vec<u64> = (0..12).filter(|number| ids.has(CarriedOut, id(1, *number))).collect();
        assert_eq!(known, [3, 4, 5, 7, 8, 9, 10]);
    }

    #[test]
    fn what_was_refused_was_not_carried_out_and_may_be_later() {
        let mut ids = AppliedIds::default();
        for (fate, number) in [(CarriedOut, 1), (Refused, 2), (CarriedOut, 3), (Refused, 4)] {
            ids.insert(fate, id(1, number));
        }
        ids.insert(CarriedOut, id(1, 4));
        let known = |fate| (0..6).filter(|number| ids.has(fate, id(1, *number))).collect::<Vec<u64>>();
        assert_eq!((known(CarriedOut), known(Refused)), (vec![1, 3, 4], vec![2, 4]));
        ids.check(LogIndex(9)).unwrap();
        ids.advance(LogIndex(GENERATION_ENTRIES));
        let last = LogIndex(GENERATION_ENTRIES - 1);
        assert!(ids.was_refused_since(last.previous(), id(1, 2)));
        assert!(!ids.was_refused_since(last.next(), id(1, 2)));
        assert!(!ids.was_refused_since(LogIndex(1), id(1, 3)));
    }

    #[test]
    fn the_ids_of_all_entries_that_can_be_uncommitted_are_kept_and_not_many_more() {
        let mut ids = AppliedIds::default();
        generations(&mut ids, 0, 20);
        let kept = UNCOMMITTED_ENTRIES_MAX / GENERATION_ENTRIES;
        assert_eq!(ids.from(), LogIndex((20 - kept) * GENERATION_ENTRIES));
        assert!(ids.has(CarriedOut, id(20 - kept, 7)) && !ids.has(CarriedOut, id(19 - kept, 7)));
        ids.check(LogIndex(20 * GENERATION_ENTRIES)).unwrap();
    }

    #[test]
    fn ids_since_a_server_left_are_kept_while_it_is_absent_up_to_a_bound() {
        let mut ids = AppliedIds::default();
        generations(&mut ids, 0, 10);
        ids.note_absent(LogIndex(10 * GENERATION_ENTRIES), &[ServerId(2)]);
        ids.note_absent(LogIndex(10 * GENERATION_ENTRIES + 5), &[ServerId(2), ServerId(3)]);
        generations(&mut ids, 11, KEPT);
        let from = 10 * GENERATION_ENTRIES - UNCOMMITTED_ENTRIES_MAX;
        assert_eq!(ids.from(), LogIndex(from));
        generations(&mut ids, KEPT + 1, KEPT + 20);
        assert!(ids.from() > LogIndex(from), "only so many are kept");
        assert!(!ids.has(CarriedOut, id(10, 7)) && ids.has(CarriedOut, id(21, 7)));
        ids.note_absent(LogIndex((KEPT + 20) * GENERATION_ENTRIES + 1), &[]);
        generations(&mut ids, KEPT + 21, KEPT + 21);
        assert_eq!(ids.closed.len() as u64, UNCOMMITTED_ENTRIES_MAX / GENERATION_ENTRIES);
        ids.check(LogIndex((KEPT + 21) * GENERATION_ENTRIES)).unwrap();
    }

    #[test]
    fn what_a_reading_shows_builds_the_same_ids() {
        let mut ids = AppliedIds::default();
        generations(&mut ids, 0, 9);
        ids.note_absent(LogIndex(9 * GENERATION_ENTRIES + 1), &[ServerId(1), ServerId(3)]);
        for number in [1, 2, 5, 9] {
            ids.insert(CarriedOut, id(1, number));
            ids.insert(Refused, id(1, number + 1));
        }
        let index = LogIndex(9 * GENERATION_ENTRIES + 9);
        ids.begin(index);
        let mut rows = Vec::new();
        let mut show = |ids: &mut AppliedIds| {
            ids.show_next(2, |row| {
                rows.push(row);
                Enough::No
            })
        };
        assert_eq!(show(&mut ids), Shown { count: 2, all: false });
        generations(&mut ids, 10, 30);
        while !show(&mut ids).all {}
        let mut restored = AppliedIds::default();
        rows.iter().for_each(|row| restored.restore(index, *row).unwrap());
        restored.check(index).unwrap();
        assert_eq!((restored.from(), restored.absent.len()), (LogIndex(5 * GENERATION_ENTRIES), 2));
        restored.begin(index);
        let mut again = Vec::new();
        restored.show_next(1000, |row| {
            again.push(row);
            Enough::No
        });
        assert_eq!(again, rows);
        generations(&mut restored, 10, 30);
        assert_eq!(restored.from(), ids.from());
    }
}
