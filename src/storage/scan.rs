//! One pass over a log (D4): where each entry stands, what the last hard state and view were, and what is damaged.
//!
//! Each line's checksum is checked before anything in it is believed, then its place in the sequence, then that the
//! entry follows the one before. Damaged lines at the very end are a torn or damaged tail, which may be cut. Damaged
//! lines with good ones after them are rot, which is never cut: the sequence numbers around them tell how many rows
//! are lost, the next entry tells how many of those were entries.
//!
//! Empty lines at the end of the live segment are space that was reserved for rows. If the power failed while rows were
//! written over it, a disk may have taken some of their sectors and not others: the log ends before the first empty line,
//! and what stands behind it was never synced, or the disk has lost a write; so it is suspect.

use std::sync::Arc;

use memchr::memchr_iter;

use super::disk::{Disk, DiskFile, SECTOR_BYTES};
use super::error::StorageError;
use super::index::{Index, Segment, check_chain};
use super::lines::{Lines, buffer_for};
use super::record::{HEAD_ROWS, HEADER, LIVE, Line, Row, note_view, sealed_number, split};
use crate::config::UNSYNCED_BYTES_MAX;
use crate::message::{ENTRY_FIELDS, HardState, Position, Standing, View, ViewTable};
use crate::row::{CHECKSUM_BYTES, Fields, RowError, verify};
use crate::types::{LogIndex, ViewNumber};

/// How many rows lie between two reports of progress.
const PROGRESS_ROWS: u64 = 500_000;

/// Lines that can't be read, and what is known of the rows they were.
#[derive(Clone, Debug)]
pub(super) struct Hole {
    /// The segment, by its first sequence number.
    pub(super) segment: u64,
    /// Where the damaged lines start.
    pub(super) start: u64,
    /// Where the next good line starts.
    pub(super) end: u64,
    /// The first lost sequence number.
    pub(super) sequence: u64,
    /// How many rows are lost.
    pub(super) count: u64,
}

/// Entries that are lost to rot.
#[derive(Clone, Debug)]
pub(super) struct Gap {
    /// The entry before them.
    pub(super) after: Position,
    /// The last of them.
    pub(super) through: LogIndex,
    /// Where they stood.
    pub(super) holes: Vec<Hole>,
}

/// How the live segment ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tail {
    /// With a whole row.
    Whole,
    /// With an incomplete row, which was never synced.
    Torn,
    /// With a complete row that is damaged, or with rows behind empty lines.
    Damaged,
}

/// Whether a position of interest is part of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Presence {
    /// It was never met.
    Unknown,
    /// It is part of the log.
    Present,
    /// It was, until a truncation.
    Truncated,
}

/// What a pass over the log has found.
pub(super) struct Scan<F> {
    pub(super) index: Index<F>,
    pub(super) base: Position,
    pub(super) last: Position,
    pub(super) views: ViewTable,
    pub(super) hard: HardState,
    /// Where the hard state stands, for messages.
    pub(super) hard_at: (String, u64),
    pub(super) view: View,
    pub(super) commit: LogIndex,
    pub(super) next_sequence: u64,
    pub(super) gaps: Vec<Gap>,
    pub(super) tail: Tail,
    /// Where the last good row of the live segment ends.
    pub(super) good_end: u64,
    pub(super) live_lines: u64,
    /// A hard state or a view may be lost, or an entry at the log's end.
    pub(super) lost_control: bool,
    pub(super) notices: Vec<String>,
    pub(super) of_interest: Vec<(Position, Presence)>,
    pub(super) rows: u64,
    started: bool,
    anchored: bool,
    bad: Option<Bad>,
    doubt: Vec<Hole>,
    control_lost_at: u64,
    hard_sequence: u64,
    view_sequence: u64,
}

/// Damaged lines after which no good one has been seen yet.
struct Bad {
    segment: u64,
    start: u64,
    end: u64,
}

/// Where a row stands.
#[derive(Clone, Copy)]
struct At<'a> {
    name: &'a str,
    segment: u64,
    offset: u64,
    line: u64,
}

impl<F: DiskFile> Scan<F> {
    fn new(of_interest: &[Position]) -> Self {
        Self {
            index: Index::new(),
            base: Position::default(),
            last: Position::default(),
            views: ViewTable::new(),
            hard: HardState::default(),
            hard_at: (String::new(), 0),
            view: View::default(),
            commit: LogIndex::ZERO,
            next_sequence: 1,
            gaps: Vec::new(),
            tail: Tail::Whole,
            good_end: 0,
            live_lines: 0,
            lost_control: false,
            notices: Vec::new(),
            of_interest: of_interest.iter().map(|&position| (position, Presence::Unknown)).collect(),
            rows: 0,
            started: false,
            anchored: false,
            bad: None,
            doubt: Vec::new(),
            control_lost_at: 0,
            hard_sequence: 0,
            view_sequence: 0,
        }
    }

    fn scan_segment<D: Disk<File = F>>(
        &mut self,
        disk: &D,
        name: &str,
        number: Option<u64>,
        progress: &mut dyn FnMut(String),
    ) -> Result<(), StorageError> {
        let path = disk.display(name);
        let file = disk.open(name).map_err(|error| StorageError::io("open", path.clone(), error))?;
        let file = Arc::new(file);
        let read_failed = |error| StorageError::io("read", path.clone(), error);
        let length = file.len().map_err(read_failed)?;
        let mut lines = Lines::new(&*file, 0, buffer_for(length + 1));
        let header = lines.next_line().map_err(read_failed)?;
        let found = header.as_ref().map(|at| lines.bytes(at)).unwrap_or_default();
        if found != HEADER.trim_end().as_bytes() || !header.as_ref().is_some_and(|at| at.complete) {
            return Err(StorageError::Line {
                path,
                line: 1,
                found: format!("{:?}", String::from_utf8_lossy(found).chars().take(160).collect::<String>()),
                expected: format!("the header {:?}", HEADER.trim_end()),
            });
        }
        self.tail = Tail::Whole;
        self.good_end = HEADER.len() as u64;
        // The live segment begins where the one before has ended, unless that one's last rows are damaged: then it is
        // named by its first row, or what must have been its first row.
        let follows = (self.started && self.bad.is_none()).then_some(self.next_sequence);
        let number = match number.or(follows) {
            Some(number) => number,
            None => {
                let behind = self.index.segments.last_key_value().map_or(0, |(last, _)| last + 1);
                first_sequence(&*file).map_err(read_failed)?.unwrap_or(0).max(self.next_sequence).max(behind)
            }
        };
        self.begin_segment(number, name, &file);
        let mut fields = Fields::new();
        let mut line_number = 1;
        // The line before is the first that is damaged, and looks like a row of which the rest was never written.
        let mut may_be_cut = false;
        while let Some(at) = lines.next_line().map_err(read_failed)? {
            line_number += 1;
            if at.complete && lines.bytes(&at).is_empty() {
                let others = lines.skip_empty().map_err(read_failed)?;
                let behind = lines.next_offset().map_err(read_failed)?;
                if behind.is_none() && may_be_cut {
                    self.tail = Tail::Torn;
                } else if let Some(behind) = behind {
                    self.notices
                        .push(format!("{path}, line {line_number}: found an empty line, expected a row"));
                    self.note_bad(number, at.offset, behind);
                    self.tail = Tail::Damaged;
                    if name != LIVE
                        || !may_begin_sector(behind)
                        || length - behind > UNSYNCED_BYTES_MAX as u64
                    {
                        line_number += others;
                        continue;
                    }
                }
                break;
            }
            let bytes = lines.bytes(&at);
            let checked = if at.complete { split(bytes) } else { Err(RowError::NoChecksum) };
            let place = At { name, segment: number, offset: at.offset, line: line_number };
            let taken = checked.and_then(|row| row.read(&mut fields).map(|what| (row, what)));
            let taken = taken.and_then(|(row, what)| self.take(place, &row, what));
            match taken {
                Ok(()) => {
                    may_be_cut = false;
                    self.good_end = at.end;
                    self.live_lines = line_number;
                    self.tail = Tail::Whole;
                }
                Err(error) => {
                    // A checksum that fits all but the last byte: not torn, but its newline is damaged.
                    let newline_damaged =
                        !at.complete && bytes.split_last().is_some_and(|(_, row)| verify(row).is_ok());
                    may_be_cut = self.tail == Tail::Whole
                        && (at.end - 1).is_multiple_of(SECTOR_BYTES as u64)
                        && is_beginning(bytes, self.next_sequence);
                    if at.complete || newline_damaged || self.tail == Tail::Damaged {
                        self.tail = Tail::Damaged;
                    } else {
                        self.tail = Tail::Torn;
                    }
                    self.notices.push(format!("{path}, line {line_number}: {error}"));
                    self.note_bad(number, at.offset, at.end);
                }
            }
            self.rows += 1;
            if self.rows.is_multiple_of(PROGRESS_ROWS) {
                progress(format!("read {} rows of the log so far", self.rows));
            }
        }
        Ok(())
    }

    /// Lines that can't be read; they join those before them.
    fn note_bad(&mut self, segment: u64, start: u64, end: u64) {
        let start = self.bad_start_in(segment).unwrap_or(start);
        self.bad = Some(Bad { segment, start, end });
        self.index.close_run();
    }

    /// Where the damaged lines under way start, if it is in this segment. Those at the end of an earlier one end there.
    fn bad_start_in(&mut self, segment: u64) -> Option<u64> {
        let bad = self.bad.take()?;
        if bad.segment == segment {
            return Some(bad.start);
        }
        let (sequence, count) = (self.next_sequence, segment.saturating_sub(self.next_sequence));
        if count > 0 {
            self.doubt.push(Hole { segment: bad.segment, start: bad.start, end: bad.end, sequence, count });
            self.next_sequence = segment;
        }
        None
    }

    fn begin_segment(&mut self, number: u64, name: &str, file: &Arc<F>) {
        if !self.started {
            self.next_sequence = number;
            self.started = true;
        }
        self.index.close_run();
        let segment = Segment { name: name.to_owned(), file: Arc::clone(file), anchor: self.last };
        self.index.segments.insert(number, segment);
    }

    /// Takes a row in whose checksum fits. An error means that it can't be what was written here.
    fn take(&mut self, at: At<'_>, line: &Line<'_>, row: Row) -> Result<(), RowError> {
        if line.sequence < self.next_sequence {
            let found = line.sequence.to_string();
            return Err(RowError::Field {
                field: 1,
                found,
                expected: "a sequence number one above the last",
            });
        }
        if let Row::Entry(position) = row
            && self.bad.is_none()
            && self.doubt.is_empty()
            && line.sequence == self.next_sequence
            && self.is_last_known()
        {
            self.check_follows(line, position)?;
        }
        self.note_hole(at, line.sequence);
        self.next_sequence = line.sequence + 1;
        match row {
            Row::Anchor(position) => self.take_anchor(at, position),
            Row::Views(views) => {
                if self.views.is_empty() {
                    self.views = views;
                }
            }
            Row::Hard(hard) => {
                self.hard = hard;
                self.hard_at = (at.name.to_owned(), at.line);
                self.hard_sequence = line.sequence;
            }
            Row::View(view) => {
                self.view = view;
                self.view_sequence = line.sequence;
            }
            Row::Truncate(after) => self.take_truncate(after),
            Row::Commit(index) => self.commit = self.commit.max(index),
            Row::Entry(position) => self.take_entry(at, line, position)?,
        }
        Ok(())
    }

    /// Not where a truncation went back to an entry that is lost: then nothing vouches for what follows it.
    fn is_last_known(&self) -> bool {
        self.last.index == LogIndex::ZERO || self.last.view != ViewNumber::NONE
    }

    fn check_follows(&self, line: &Line<'_>, position: Position) -> Result<(), RowError> {
        if !self.anchored {
            return Ok(());
        }
        if position.index != self.last.index.next() {
            let found = position.index.to_string();
            return Err(RowError::Field { field: 3, found, expected: "the index after the row before" });
        }
        check_chain(line, Some(self.last))
    }

    /// Counts the rows that are lost before this one.
    fn note_hole(&mut self, at: At<'_>, sequence: u64) {
        let bad = self.bad.take();
        let count = sequence - self.next_sequence;
        if bad.is_none() && count == 0 {
            return;
        }
        let first = self.next_sequence;
        if bad.is_none() {
            let place = format!("{}, line {}", at.name, at.line);
            self.notices.push(format!("{place}: found row {sequence}, expected row {first}"));
        }
        self.index.close_run();
        // What begins a segment repeats what the segment before has said.
        let repeats =
            self.index.segments.len() > 1 && first >= at.segment && sequence <= at.segment + HEAD_ROWS;
        if repeats || count == 0 {
            return;
        }
        let (segment, start, end) =
            bad.map_or((at.segment, at.offset, at.offset), |bad| (bad.segment, bad.start, bad.end));
        self.doubt.push(Hole { segment, start, end, sequence: first, count });
    }

    fn take_anchor(&mut self, at: At<'_>, position: Position) {
        if let Some(segment) = self.index.segments.get_mut(&at.segment) {
            segment.anchor = position;
        }
        // Below the base: a truncation that went there is lost, of a log that had just been cut in front.
        if !self.anchored || position.index < self.base.index {
            self.anchored = true;
            self.base = position;
            self.last = position;
            self.index.runs.clear();
            self.gaps.clear();
            self.note_presence(position);
            self.doubt.clear();
        } else if position != self.last {
            // A truncation may have gone back to an entry that is lost: the anchor says which that was.
            let is_lost = !self.is_last_known() && position.index == self.last.index;
            if position.index <= self.last.index && !is_lost {
                self.rejoin_anchor(position);
            }
            self.open_gap(position.index);
            self.last = position;
            self.note_presence(position);
        }
        // What is lost before an anchor is none of the entries that are lost after it.
        self.settle_doubt();
    }

    /// A truncation is among the lost rows, at least.
    fn rejoin_anchor(&mut self, anchor: Position) {
        let is_there = self.position(anchor.index) == Some(anchor) || anchor == self.base;
        // If more is lost: what was committed was not cut.
        let before = LogIndex(anchor.index.0.saturating_sub(1));
        let after = if is_there { anchor.index } else { self.commit.min(before) };
        self.set_last(after.max(self.base.index));
    }

    fn take_truncate(&mut self, after: LogIndex) {
        // Above the end: entries were lost before it, which the next entry will tell.
        if after >= self.last.index {
            return;
        }
        self.set_last(after);
        if after < self.base.index {
            // A crash came while segments were cut in front: what these rows build on is gone already, and the next
            // anchor says where the log begins.
            self.base = self.last;
            self.anchored = false;
        }
    }

    /// Cuts back to `after`, which is part of the log.
    fn set_last(&mut self, after: LogIndex) {
        let position = if after == self.base.index { Some(self.base) } else { self.position(after) };
        self.index.truncate(after);
        self.gaps.retain(|gap| gap.after.index < after);
        for gap in &mut self.gaps {
            gap.through = gap.through.min(after);
        }
        // In a gap: the entry is not known, and so its chain will not be believed to be followed.
        self.last = position.unwrap_or(Position { index: after, ..Position::default() });
        self.views.retain(|view| view.start <= after);
        self.commit = self.commit.min(after);
        for (position, presence) in &mut self.of_interest {
            if position.index > after && *presence == Presence::Present {
                *presence = Presence::Truncated;
            }
        }
    }

    fn position(&self, index: LogIndex) -> Option<Position> {
        self.index.position(index).ok().flatten()
    }

    fn take_entry(&mut self, at: At<'_>, line: &Line<'_>, position: Position) -> Result<(), RowError> {
        let mut loose = false;
        if !self.anchored {
            if !self.take_first_entry(line, position) {
                self.settle_doubt();
                note_view(&mut self.views, position);
                return Ok(());
            }
        } else if !self.is_last_known() && position.index == self.last.index.next() {
            loose = true;
        } else if self.check_follows(line, position).is_err() {
            loose = !self.rejoin(line, position);
            if loose {
                self.open_gap(position.index.previous());
            }
        }
        self.settle_doubt();
        let previous = if loose {
            Position { index: position.index.previous(), ..Position::default() }
        } else {
            self.last
        };
        self.index.append(at.segment, at.offset, at.line, previous, loose);
        self.last = position;
        note_view(&mut self.views, position);
        self.note_presence(position);
        Ok(())
    }

    /// The anchor is lost: the log's beginning must be told from the first entry. It follows a position that is known
    /// otherwise, or stands for the anchor itself.
    fn take_first_entry(&mut self, line: &Line<'_>, position: Position) -> bool {
        self.anchored = true;
        let known = self.of_interest.iter().map(|(known, _)| *known).chain([Position::default()]);
        let before = known
            .filter(|known| known.index.next() == position.index)
            .find(|&known| check_chain(line, Some(known)).is_ok());
        self.base = before.unwrap_or(position);
        self.last = self.base;
        self.index.runs.clear();
        self.note_presence(self.base);
        before.is_some()
    }

    /// After lost rows: whether a truncation was among them, so that the entry follows an earlier one.
    fn rejoin(&mut self, line: &Line<'_>, position: Position) -> bool {
        let before = position.index.previous();
        if before > self.last.index {
            return false;
        }
        let previous = if before == self.base.index { Some(self.base) } else { self.position(before) };
        let Some(previous) = previous.filter(|&previous| check_chain(line, Some(previous)).is_ok()) else {
            // A truncation and more was lost. What was committed was not cut.
            self.set_last(self.commit.min(before).min(self.last.index).max(self.base.index));
            return false;
        };
        self.set_last(previous.index);
        true
    }

    /// The entries after the last one up to `through` are lost.
    fn open_gap(&mut self, through: LogIndex) {
        let mut holes = std::mem::take(&mut self.doubt);
        if through <= self.last.index {
            self.doubt = holes;
            return;
        }
        let lost: u64 = holes.iter().map(|hole| hole.count).sum();
        if lost > self.last.index.distance_to(through) {
            self.note_control_lost(&holes);
        }
        holes.retain(|hole| hole.count > 0);
        self.gaps.push(Gap { after: self.last, through, holes });
        self.index.close_run();
    }

    /// The log goes on without a gap: the lost rows were no entries.
    fn settle_doubt(&mut self) {
        let holes = std::mem::take(&mut self.doubt);
        self.note_control_lost(&holes);
    }

    fn note_control_lost(&mut self, holes: &[Hole]) {
        let last = holes.iter().map(|hole| hole.sequence + hole.count).max().unwrap_or(0);
        self.control_lost_at = self.control_lost_at.max(last);
    }

    fn note_presence(&mut self, position: Position) {
        for (wanted, presence) in &mut self.of_interest {
            if *wanted == position {
                *presence = Presence::Present;
            }
        }
    }

    fn finish(&mut self) {
        if !self.doubt.is_empty() {
            // Entries may be lost, unless a standing that was written later says so already.
            self.lost_control = self.hard.standing != Standing::Partial;
            if self.commit > self.last.index {
                self.open_gap(self.commit);
            }
            self.settle_doubt();
        }
        // A hard state and a view that were written later stand for those that may be lost.
        if self.control_lost_at > self.hard_sequence.min(self.view_sequence) {
            self.lost_control = true;
        }
        self.notices.truncate(100);
    }
}

/// Whether a line may be the beginning of the row of this number, the rest of which was never written. A whole row of which
/// one byte has changed, its newline included, is none, and neither is what no row holds.
fn is_beginning(line: &[u8], sequence: u64) -> bool {
    let number = format!("{sequence},").into_bytes();
    let is_whole = match verify(line) {
        Ok(_) => true,
        // What happens to look like a checksum ends no row before its last field; one comma may be what has changed.
        Err(RowError::Checksum { .. }) => memchr_iter(b',', line).count() > ENTRY_FIELDS.len(),
        Err(_) => ends_almost_with_checksum(line),
    };
    let newline_damaged = line.split_last().is_some_and(|(_, row)| verify(row).is_ok());
    // The last character may be incomplete.
    let is_text = str::from_utf8(line).map_or_else(|error| error.error_len().is_none(), |_| true);
    (line.starts_with(&number) || number.starts_with(line))
        && !is_whole
        && !newline_damaged
        && is_text
        && !line.contains(&0)
}

/// Whether the line ends with its checksum, but for one byte.
fn ends_almost_with_checksum(line: &[u8]) -> bool {
    let Some(length) = line.len().checked_sub(CHECKSUM_BYTES) else { return false };
    let (row, found) = line.split_at(length);
    let expected = format!(",{:08x}", crc32fast::hash(row));
    found.iter().zip(expected.as_bytes()).filter(|(found, expected)| found != expected).count() <= 1
}

/// Whether a sector begins at this place of a file, or a byte before: there may be a newline.
fn may_begin_sector(offset: u64) -> bool {
    offset % SECTOR_BYTES as u64 <= 1
}

/// The sequence number of a segment's first row, told from the first row that can be read, if any.
fn first_sequence(file: &impl DiskFile) -> std::io::Result<Option<u64>> {
    let mut lines = Lines::new(file, 0, buffer_for(0));
    let mut before = 0;
    while let Some(at) = lines.next_line()? {
        if lines.bytes(&at).is_empty() {
            continue;
        }
        if at.complete
            && before > 0
            && let Ok(row) = split(lines.bytes(&at))
        {
            return Ok(Some((row.sequence + 1).saturating_sub(before)));
        }
        before += 1;
    }
    Ok(None)
}

/// The log's files: the sealed segments in order, by name, then whether there is a live one.
pub(super) fn log_files<D: Disk>(disk: &D) -> Result<(Vec<(u64, String)>, bool), StorageError> {
    let names = disk.list("").map_err(|error| StorageError::io("list", disk.display(""), error))?;
    let mut sealed: Vec<(u64, String)> =
        names.iter().filter_map(|name| Some((sealed_number(name)?, name.clone()))).collect();
    sealed.sort();
    Ok((sealed, names.iter().any(|name| name == LIVE)))
}

/// Passes over the whole log. `of_interest` are positions about which the caller wants to know whether they are part
/// of it.
pub(super) fn scan<D: Disk>(
    disk: &D,
    of_interest: &[Position],
    progress: &mut dyn FnMut(String),
) -> Result<Scan<D::File>, StorageError> {
    let (sealed, live) = log_files(disk)?;
    let mut scan = Scan::new(of_interest);
    for (number, name) in &sealed {
        scan.scan_segment(disk, name, Some(*number), progress)?;
    }
    if !live {
        return Err(StorageError::File {
            path: disk.display(LIVE),
            found: "no such file".into(),
            expected: format!("the log that continues {}", sealed.last().map_or("", |(_, name)| name)),
        });
    }
    scan.scan_segment(disk, LIVE, None, progress)?;
    scan.finish();
    Ok(scan)
}
