//! Where each entry of the log stands: shared by the writer and the readers.
//!
//! A *run* is a stretch of entries that follow each other both in index and in file order, possibly with rows of
//! other kinds between them. A truncation ends a run, so that rows that are no longer part of the log are in none.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::disk::DiskFile;
use super::error::StorageError;
use super::lines::{LineAt, Lines};
use super::record::{Line, Row, split};
use crate::message::Position;
use crate::row::{Fields, RowError};
use crate::types::LogIndex;

/// How many bytes of the log lie between two marks, at least.
const MARK_BYTES: u64 = 32 * 1024;
/// How much a reader takes at once.
const READ_BYTES: usize = 64 * 1024;

/// A file of the log.
#[derive(Debug)]
pub(super) struct Segment<F> {
    pub(super) name: String,
    pub(super) file: Arc<F>,
    /// The entry before its first.
    pub(super) anchor: Position,
}

impl<F> Clone for Segment<F> {
    fn clone(&self) -> Self {
        Self { name: self.name.clone(), file: Arc::clone(&self.file), anchor: self.anchor }
    }
}

/// Where reading can begin.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mark {
    /// The entry before the one at `offset`.
    previous: Position,
    offset: u64,
    line: u64,
}

/// A stretch of entries.
#[derive(Debug)]
pub(super) struct Run {
    /// The segment, by its first sequence number.
    pub(super) segment: u64,
    /// The entry before the first one; its index alone is known if the run is loose.
    previous: Position,
    last: LogIndex,
    /// The run follows a gap, so nothing vouches for its first entry's chain.
    loose: bool,
    /// No entry is added any more.
    closed: bool,
    marks: Vec<Mark>,
}

/// Where each entry stands.
#[derive(Debug)]
pub(super) struct Index<F> {
    pub(super) segments: BTreeMap<u64, Segment<F>>,
    /// Ascending by index.
    pub(super) runs: Vec<Run>,
    /// Changes whenever something that could be read before may not be any more.
    pub(super) changes: u64,
}

/// Part of a run, to be read without holding the index.
pub(super) struct Stretch<F> {
    pub(super) segment: Segment<F>,
    mark: Mark,
    pub(super) last: LogIndex,
    loose: bool,
}

/// An entry's row as it stands in the file.
pub(super) struct Found<'a> {
    pub(super) line: Line<'a>,
    pub(super) raw: &'a [u8],
    /// The entry before it; none for the first one after a gap.
    pub(super) previous: Option<Position>,
    pub(super) position: Position,
}

impl<F: DiskFile> Index<F> {
    pub(super) fn new() -> Self {
        Self { segments: BTreeMap::new(), runs: Vec::new(), changes: 0 }
    }

    /// Takes in an entry's row.
    pub(super) fn append(&mut self, segment: u64, offset: u64, line: u64, previous: Position, loose: bool) {
        let mark = Mark { previous, offset, line };
        let index = previous.index.next();
        if let Some(run) = self.runs.last_mut()
            && !run.closed
            && !loose
            && run.segment == segment
            && run.last == previous.index
        {
            run.last = index;
            if run.marks.last().is_none_or(|last| offset - last.offset >= MARK_BYTES) {
                run.marks.push(mark);
            }
            return;
        }
        self.runs.push(Run { segment, previous, last: index, loose, closed: false, marks: vec![mark] });
    }

    /// No later entry is added to the last run.
    pub(super) fn close_run(&mut self) {
        if let Some(run) = self.runs.last_mut() {
            run.closed = true;
        }
    }

    /// A checkpoint as of `position` says what was before the first entry after a gap: if that entry follows, it can be
    /// read.
    ///
    /// # Errors
    /// The row can't be read.
    pub(super) fn vouch(&mut self, position: Position) -> Result<(), StorageError> {
        let Some(at) = self.runs.iter().position(|run| run.loose && run.previous.index == position.index)
        else {
            return Ok(());
        };
        let stretch = self.stretch(position.index.next()).expect("a run has a first entry");
        let mut follows = false;
        stretch.read(|found| {
            follows = check_chain(&found.line, Some(position)).is_ok();
            Ok(false)
        })?;
        if follows {
            let run = &mut self.runs[at];
            (run.previous, run.marks[0].previous, run.loose) = (position, position, false);
        }
        Ok(())
    }

    /// Forgets the entries above `after`.
    pub(super) fn truncate(&mut self, after: LogIndex) {
        self.runs.retain(|run| run.previous.index < after);
        if let Some(run) = self.runs.last_mut()
            && run.last > after
        {
            run.last = after;
            run.marks.retain(|mark| mark.previous.index < after);
        }
        self.close_run();
        self.changes += 1;
    }

    /// Where reading the entry `first` begins; none if it isn't there.
    pub(super) fn stretch(&self, first: LogIndex) -> Option<Stretch<F>> {
        let at = self.runs.partition_point(|run| run.last < first);
        let run = self.runs.get(at).filter(|run| run.previous.index < first)?;
        let marked = run.marks.partition_point(|mark| mark.previous.index < first);
        let mark = run.marks[marked - 1];
        let segment = self.segments[&run.segment].clone();
        Some(Stretch { segment, mark, last: run.last, loose: run.loose && marked == 1 })
    }

    /// The stretches that hold entries above `after`, oldest first.
    pub(super) fn stretches_above(&self, after: LogIndex) -> Vec<Stretch<F>> {
        let runs = self.runs.iter().filter(|run| run.last > after);
        runs.filter_map(|run| self.stretch(run.previous.index.max(after).next())).collect()
    }

    /// The position of the entry `index`, if it is there.
    pub(super) fn position(&self, index: LogIndex) -> Result<Option<Position>, StorageError> {
        let Some(stretch) = self.stretch(index) else { return Ok(None) };
        let mut position = None;
        stretch.read(|found| {
            if found.position.index == index {
                position = Some(found.position);
            }
            Ok(found.position.index < index)
        })?;
        Ok(position)
    }
}

impl<F: DiskFile> Stretch<F> {
    /// Hands out the rows of the entries in order, from at or before the wanted one, until `visit` says no.
    pub(super) fn read(
        &self,
        mut visit: impl FnMut(&Found<'_>) -> Result<bool, RowError>,
    ) -> Result<(), StorageError> {
        let name = &self.segment.name;
        let mut lines = Lines::new(&*self.segment.file, self.mark.offset, READ_BYTES);
        let mut fields = Fields::new();
        let mut previous = (!self.loose).then_some(self.mark.previous);
        let mut expected = self.mark.previous.index.next();
        let mut number = self.mark.line;
        while expected <= self.last {
            let at = lines.next_line().map_err(|error| StorageError::io("read", name.clone(), error))?;
            let Some(at) = at.filter(|at| at.complete) else {
                return Err(StorageError::Line {
                    path: name.clone(),
                    line: number,
                    found: "the end of the file".into(),
                    expected: format!("the row of entry {expected}"),
                });
            };
            let row_error = |error| StorageError::Row { path: name.clone(), line: number, error };
            let found = find(&lines, &at, &mut fields, previous, expected).map_err(row_error)?;
            if let Some(found) = found {
                previous = Some(found.position);
                expected = expected.next();
                if !visit(&found).map_err(row_error)? {
                    return Ok(());
                }
            }
            number += 1;
        }
        Ok(())
    }
}

/// The entry on a line, checked; none if the line holds another kind of row.
fn find<'a, F: DiskFile>(
    lines: &'a Lines<'_, F>,
    at: &LineAt,
    fields: &mut Fields,
    previous: Option<Position>,
    expected: LogIndex,
) -> Result<Option<Found<'a>>, RowError> {
    let raw = lines.bytes(at);
    let line = split(raw)?;
    let Row::Entry(position) = line.read(fields)? else { return Ok(None) };
    if position.index != expected {
        let found = position.index.to_string();
        return Err(RowError::Field { field: 3, found, expected: "the index after the row before" });
    }
    check_chain(&line, previous)?;
    Ok(Some(Found { line, raw, previous, position }))
}

/// Checks that an entry's row follows the entry before it.
pub(super) fn check_chain(line: &Line<'_>, previous: Option<Position>) -> Result<(), RowError> {
    let Some(previous) = previous else { return Ok(()) };
    let found = line.chain()?;
    if crate::message::chain_after(previous.chain, line.body) == found {
        return Ok(());
    }
    let found = format!("{found:08x}");
    Err(RowError::Field { field: 12, found, expected: "the chain that follows the entry before" })
}
