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

/// Ids of one client with numbers one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) first: RequestId,
    pub(super) last: RequestNumber,
}

impl Run {
    fn has(&self, id: RequestId) -> bool {
        self.first.client == id.client && (self.first.number..=self.last).contains(&id.number)
    }
}

/// A generation that gets no more ids.
#[derive(Debug)]
struct Generation {
    /// It has the entries from `number * GENERATION_ENTRIES` on.
    number: u64,
    /// Ascending.
    runs: Vec<Run>,
    /// Ascending: commands that were refused, and by which entries.
    refused: Vec<(RequestId, LogIndex)>,
}

impl Generation {
    fn has(&self, id: RequestId) -> bool {
        let behind = self.runs.partition_point(|run| run.first <= id);
        behind > 0 && self.runs[behind - 1].has(id)
    }

    fn refused(&self, id: RequestId) -> Option<LogIndex> {
        let at = self.refused.binary_search_by_key(&id, |(refused, _)| *refused).ok()?;
        Some(self.refused[at].1)
    }

    fn rows(&self) -> usize {
        self.runs.len() + self.refused.len()
    }

    fn row(&self, at: usize) -> AppliedRow {
        match self.runs.get(at) {
            Some(run) => AppliedRow::Run(self.number, *run),
            None => {
                let (id, index) = self.refused[at - self.runs.len()];
                AppliedRow::Refused(index, id)
            }
        }
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
    /// A command that this entry has refused.
    Refused(LogIndex, RequestId),
}

impl AppliedRow {
    /// What stands in the column `at`.
    pub(super) fn at(self) -> u64 {
        match self {
            Self::From(index) | Self::Absent(_, index) | Self::Refused(index, _) => index.0,
            Self::Run(generation, _) => generation,
        }
    }
}

/// The rows that a checkpoint has yet to show.
#[derive(Clone, Debug)]
struct Reading {
    head: VecDeque<AppliedRow>,
    generations: VecDeque<Arc<Generation>>,
    /// Which row of the first of them is next.
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
    /// How many rows those have.
    closed_rows: usize,
    /// Of the generation under way: the first id of each run and its last number.
    open: BTreeMap<RequestId, RequestNumber>,
    /// Of the generation under way: what was refused, and by which entry.
    open_refused: BTreeMap<RequestId, LogIndex>,
    reading: Option<Reading>,
}

impl AppliedIds {
    /// The ids of all entries from this index on are known.
    pub(super) fn from(&self) -> LogIndex {
        self.from
    }

    /// Whether a command with this id was carried out in the entries that are kept.
    pub(super) fn has(&self, id: RequestId) -> bool {
        let run = self.open.range(..=id).next_back();
        run.is_some_and(|(first, last)| Run { first: *first, last: *last }.has(id))
            || self.closed.iter().rev().any(|generation| generation.has(id))
    }

    /// Which of the entries that are kept was the first to refuse the command with this id.
    pub(super) fn refused(&self, id: RequestId) -> Option<LogIndex> {
        let closed = self.closed.iter().find_map(|generation| generation.refused(id));
        closed.or_else(|| self.open_refused.get(&id).copied())
    }

    /// Whether a command from a log that shares only what is up to `fork` needs no more to be done: it was carried out,
    /// or refused when the logs were one. What was refused since may have been carried out, and acknowledged, there.
    pub(super) fn settles(&self, id: RequestId, fork: LogIndex) -> bool {
        self.has(id) || self.refused(id).is_some_and(|index| index <= fork)
    }

    /// Takes in the id of a command that the entry `index` has refused.
    pub(super) fn refuse(&mut self, id: RequestId, index: LogIndex) {
        if !self.has(id) && self.refused(id).is_none() {
            self.open_refused.insert(id, index);
        }
    }

    /// Takes in the id of a command that is carried out.
    pub(super) fn insert(&mut self, id: RequestId) {
        if let Some((first, last)) = self.open.range_mut(..=id).next_back()
            && first.client == id.client
            && id.number.0 <= last.0.saturating_add(1)
        {
            *last = id.number.max(*last);
            return;
        }
        self.open.insert(id, id.number);
    }

    /// Begins a new generation if `index`, the entry that is being applied, is the first of one.
    pub(super) fn advance(&mut self, index: LogIndex) {
        if index == LogIndex::ZERO || !index.0.is_multiple_of(GENERATION_ENTRIES) {
            return;
        }
        if let Some(generation) = self.open_generation(index.previous()) {
            self.closed_rows += generation.rows();
            self.closed.push_back(Arc::new(generation));
            self.open.clear();
            self.open_refused.clear();
        }
        let keep_from = self.keep_from(index) / GENERATION_ENTRIES;
        self.from = self.from.max(LogIndex(keep_from * GENERATION_ENTRIES));
        while let Some(gone) = self.closed.pop_front_if(|generation| generation.number < keep_from) {
            self.closed_rows -= gone.rows();
        }
    }

    /// The generation under way at `index`, if it has any ids.
    fn open_generation(&self, index: LogIndex) -> Option<Generation> {
        let number = index.0 / GENERATION_ENTRIES;
        let runs: Vec<Run> =
            self.open.iter().map(|(first, last)| Run { first: *first, last: *last }).collect();
        let refused: Vec<_> = self.open_refused.iter().map(|(id, index)| (*id, *index)).collect();
        let generation = Generation { number, runs, refused };
        (generation.rows() > 0).then_some(generation)
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
        (self.open.len() + self.open_refused.len() + self.closed_rows) as u64 * RUN_ROW_BYTES
    }

    /// Whether what is kept can be.
    pub(super) fn check(&self, index: LogIndex) -> Result<(), String> {
        let open = index.0 / GENERATION_ENTRIES;
        let ascending = self.closed.iter().map(|generation| generation.number).is_sorted();
        let last = self.closed.back().map(|generation| generation.number);
        if self.from > index.next() || !ascending || last.is_some_and(|last| last >= open) {
            return Err(format!("ids of entries from {} on at {index}, in wrong generations", self.from));
        }
        let under_way = self.open_generation(index);
        for generation in self.closed.iter().map(Arc::as_ref).chain(under_way.as_ref()) {
            for pair in generation.runs.windows(2) {
                ensure_above(Some(pair[0]), pair[1]).map_err(|_| format!("{pair:?} overlap"))?;
            }
            for pair in generation.refused.windows(2).filter(|pair| pair[0].0 >= pair[1].0) {
                return Err(format!("refused: {pair:?} are out of order"));
            }
            for (id, at) in &generation.refused {
                if at.0 / GENERATION_ENTRIES != generation.number || *at > index {
                    return Err(format!("{id} was refused by entry {at}, in another generation"));
                }
            }
        }
        let counted: usize = self.closed.iter().map(|generation| generation.rows()).sum();
        if counted == self.closed_rows {
            Ok(())
        } else {
            Err(format!("{counted} rows of ids are miscounted"))
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
        generations.extend(self.open_generation(index).map(Arc::new));
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
            AppliedRow::Run(_, Run { first, last }) if last < first.number => {
                return Err("a last number that is not below the first");
            }
            AppliedRow::Run(number, run) if number == open => {
                let before =
                    self.open.last_key_value().map(|(first, last)| Run { first: *first, last: *last });
                ensure_above(before, run)?;
                self.open.insert(run.first, run.last);
            }
            AppliedRow::Run(number, run) => {
                let generation = self.restored_generation(open, number)?;
                if !generation.refused.is_empty() {
                    return Err("the ids of a generation before those that it has refused");
                }
                ensure_above(generation.runs.last().copied(), run)?;
                generation.runs.push(run);
                self.closed_rows += 1;
            }
            AppliedRow::Refused(by, _) if by > index => return Err("an index up to the checkpoint's"),
            AppliedRow::Refused(by, id) => {
                let above = |last: Option<&RequestId>| {
                    if last.is_none_or(|last| *last < id) { Ok(()) } else { Err(ABOVE) }
                };
                let number = by.0 / GENERATION_ENTRIES;
                if number == open {
                    above(self.open_refused.last_key_value().map(|(id, _)| id))?;
                    self.open_refused.insert(id, by);
                } else {
                    let generation = self.restored_generation(open, number)?;
                    above(generation.refused.last().map(|(id, _)| id))?;
                    generation.refused.push((id, by));
                    self.closed_rows += 1;
                }
            }
        }
        Ok(())
    }

    /// The generation that a row goes to: that of the row before, or a later one.
    fn restored_generation(&mut self, open: u64, number: u64) -> Result<&mut Generation, &'static str> {
        let expected = "a generation from that of the row before to the checkpoint's own";
        let last = self.closed.back().map(|generation| generation.number);
        if number > open
            || number < self.from.0 / GENERATION_ENTRIES
            || last.is_some_and(|last| last > number)
            || !self.open.is_empty()
            || !self.open_refused.is_empty()
        {
            return Err(expected);
        }
        if last != Some(number) {
            self.closed.push_back(Arc::new(Generation { number, runs: Vec::new(), refused: Vec::new() }));
        }
        let generation = self.closed.back_mut().expect("it has just been added");
        Ok(Arc::get_mut(generation).expect("nobody reads what is being restored"))
    }
}

impl Reading {
    fn next(&mut self) -> Option<AppliedRow> {
        if let Some(row) = self.head.pop_front() {
            return Some(row);
        }
        let generation = self.generations.front()?;
        let row = generation.row(self.at);
        self.at += 1;
        if self.at == generation.rows() {
            self.generations.pop_front();
            self.at = 0;
        }
        Some(row)
    }
}

const ABOVE: &str = "an id above those of the row before";

fn ensure_above(before: Option<Run>, run: Run) -> Result<(), &'static str> {
    let apart = |before: Run| {
        before.first.client < run.first.client
            || (before.first.client == run.first.client && before.last < run.first.number)
    };
    if before.is_none_or(apart) { Ok(()) } else { Err(ABOVE) }
}

#[cfg(test)]
mod tests {
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
            ids.insert(id(generation, 7));
        }
    }

    #[test]
    fn numbers_in_sequence_are_one_run_whatever_comes_between() {
        let mut ids = AppliedIds::default();
        for number in 1..=1000 {
            ids.insert(id(1, number));
            ids.insert(id(2, u64::MAX - 2 * number));
        }
        assert_eq!(ids.open.len(), 1001);
        assert!(ids.has(id(1, 1)) && ids.has(id(1, 1000)) && ids.has(id(2, u64::MAX - 2)));
        assert!(
            !ids.has(id(1, 0))
                && !ids.has(id(1, 1001))
                && !ids.has(id(2, u64::MAX - 3))
                && !ids.has(id(3, 1))
        );
    }

    #[test]
    fn numbers_out_of_sequence_are_all_known_and_no_others() {
        let mut ids = AppliedIds::default();
        for number in [5, 3, 4, 9, 8, 3, 10, 9, 7] {
            ids.insert(id(1, number));
            ids.check(LogIndex(9)).unwrap();
        }
        let known: Vec<u64> = (0..12).filter(|number| ids.has(id(1, *number))).collect();
        assert_eq!(known, [3, 4, 5, 7, 8, 9, 10]);
    }

    #[test]
    fn a_refusal_settles_a_command_if_the_logs_were_one_and_until_it_is_carried_out() {
        let mut ids = AppliedIds::default();
        ids.refuse(id(1, 1), LogIndex(5));
        ids.refuse(id(1, 1), LogIndex(9));
        assert_eq!(ids.refused(id(1, 1)), Some(LogIndex(5)), "the first one counts");
        ids.advance(LogIndex(GENERATION_ENTRIES));
        ids.refuse(id(1, 1), LogIndex(GENERATION_ENTRIES));
        assert!(ids.settles(id(1, 1), LogIndex(5)) && !ids.settles(id(1, 1), LogIndex(4)));
        assert!(!ids.has(id(1, 1)) && !ids.settles(id(1, 2), LogIndex(9)));
        ids.check(LogIndex(GENERATION_ENTRIES)).unwrap();
        ids.insert(id(1, 1));
        assert!(ids.settles(id(1, 1), LogIndex(0)));
    }

    #[test]
    fn the_ids_of_all_entries_that_can_be_uncommitted_are_kept_and_not_many_more() {
        let mut ids = AppliedIds::default();
        generations(&mut ids, 0, 20);
        let kept = UNCOMMITTED_ENTRIES_MAX / GENERATION_ENTRIES;
        assert_eq!(ids.from(), LogIndex((20 - kept) * GENERATION_ENTRIES));
        assert!(ids.has(id(20 - kept, 7)) && !ids.has(id(19 - kept, 7)));
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
        assert!(!ids.has(id(10, 7)) && ids.has(id(21, 7)));
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
            ids.insert(id(1, number));
            ids.refuse(id(1, number + 20), LogIndex(9 * GENERATION_ENTRIES + number));
        }
        ids.refuse(id(0, 1), LogIndex(9 * GENERATION_ENTRIES + 3));
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
