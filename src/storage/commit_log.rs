//! The writer of the log (D1-D3, R2).
//!
//! Rows gather in memory until [`CommitLog::sync`] brings them to the disk by one write and one fdatasync. A segment
//! that has grown enough is sealed under a name of its own. Whatever replaces a file is written aside, synced, and
//! renamed in place.
//!
//! Small writes go to space that was reserved behind the last row, and filled with empty lines: an fdatasync that changes
//! neither a file's length nor its place on the disk takes a third less. What recovery makes of it, `scan` says.

use std::io::ErrorKind;
use std::sync::{Arc, Mutex};

use super::disk::{Disk, DiskFile};
use super::diverged;
use super::error::StorageError;
use super::index::{Index, Segment};
use super::lines::buffer_for;
use super::log_reader::{LogReader, SharedIndex, lock};
use super::record::{
    HEAD_ROWS, HEADER, LIVE, note_view, sealed_name, write_anchor, write_commit, write_entry,
    write_hard_state, write_truncate, write_view, write_views,
};
use super::scan::{Gap, Hole, Scan, scan};
use crate::config::UNSYNCED_BYTES_MAX;
use crate::message::{Entry, HardState, Installed, Position, View, ViewTable, Write, chain_after};
use crate::row::RowWriter;
use crate::types::LogIndex;

/// How much space is reserved at once, at least, if segments are not smaller.
const RESERVE_BYTES: u64 = 128 * 1024;
/// Space is reserved after a write of at most this part of it: a larger one gains little.
const RESERVE_PART: usize = 4;
/// How the system refuses what a disk, a quota or a limit has no room for.
const TOO_MUCH: [ErrorKind; 3] = [ErrorKind::StorageFull, ErrorKind::QuotaExceeded, ErrorKind::FileTooLarge];
/// Reserved space ends where a page does, so that no sector is reserved in part.
const PAGE_BYTES: u64 = 4096;

/// A live segment that will replace the one that is there.
pub(super) const LIVE_NEW: &str = "server_log.csv.new";
/// The live segment that follows one that is being sealed.
pub(super) const LIVE_NEXT: &str = "server_log.csv.next";

/// Writes the log: one thread's.
#[derive(Debug)]
pub struct CommitLog<D: Disk> {
    disk: D,
    index: SharedIndex<D::File>,
    segment_bytes_max: u64,
    /// The live segment: its handle for writing, its first sequence number, its synced length and lines.
    file: D::File,
    segment: u64,
    length: u64,
    lines: u64,
    /// Where the space ends that is reserved behind its last row, and how much is reserved at once.
    reserved: u64,
    reserve: usize,
    /// Rows that are not written yet; where the entries among them stand.
    rows: RowWriter,
    row_count: u64,
    buffered: Vec<Buffered>,
    next_sequence: u64,
    /// What the next segment begins with.
    base: Position,
    last: Position,
    views: ViewTable,
    hard: HardState,
    view: View,
    commit: LogIndex,
    gaps: Vec<Gap>,
    /// Why nothing more is written (D2).
    failure: Option<String>,
}

#[derive(Debug)]
struct Buffered {
    /// From the beginning of what is buffered.
    offset: usize,
    row: u64,
    previous: Position,
}

/// What a segment begins with.
pub(super) struct Head<'a> {
    pub(super) sequence: u64,
    pub(super) anchor: Position,
    pub(super) views: &'a [crate::message::ViewStart],
    pub(super) hard: &'a HardState,
    pub(super) view: &'a View,
    pub(super) commit: LogIndex,
}

impl Head<'_> {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut rows = RowWriter::new();
        write_anchor(&mut rows, self.sequence, self.anchor);
        write_views(&mut rows, self.sequence + 1, self.views);
        write_hard_state(&mut rows, self.sequence + 2, self.hard);
        write_view(&mut rows, self.sequence + 3, self.view);
        write_commit(&mut rows, self.sequence + 4, self.commit);
        let mut bytes = HEADER.as_bytes().to_vec();
        bytes.extend_from_slice(&rows.take());
        bytes
    }
}

/// Names the operation and the file in errors of the system.
pub(super) fn attempt<D: Disk, T>(
    disk: &D,
    operation: &'static str,
    path: &str,
    result: std::io::Result<T>,
) -> Result<T, StorageError> {
    result.map_err(|error| StorageError::io(operation, disk.display(path), error))
}

/// Writes a whole file and syncs it; its name is not yet durable.
pub(super) fn write_file<D: Disk>(disk: &D, path: &str, bytes: &[u8]) -> Result<(), StorageError> {
    let mut file = attempt(disk, "create", path, disk.create(path))?;
    attempt(disk, "write", path, file.append(bytes))?;
    attempt(disk, "sync", path, file.sync())
}

/// Appends part of one file to another, piece by piece.
pub(super) fn copy_part<D: Disk>(
    disk: &D,
    from: (&str, &D::File),
    range: std::ops::Range<u64>,
    to: (&str, &mut D::File),
) -> Result<(), StorageError> {
    let mut buffer = vec![0; buffer_for(range.end - range.start)];
    let mut offset = range.start;
    while offset < range.end {
        let length = usize::try_from(range.end - offset).unwrap_or(usize::MAX).min(buffer.len());
        let count = attempt(disk, "read", from.0, from.1.read_at(offset, &mut buffer[..length]))?;
        if count == 0 {
            break;
        }
        attempt(disk, "write", to.0, to.1.append(&buffer[..count]))?;
        offset += count as u64;
    }
    Ok(())
}

/// Renames a file and makes that durable.
pub(super) fn rename<D: Disk>(disk: &D, from: &str, to: &str) -> Result<(), StorageError> {
    attempt(disk, "rename", from, disk.rename(from, to))?;
    // The directory too must be synced: without it a crash can undo the rename.
    attempt(disk, "sync the directory", "", disk.sync_dir(""))
}

impl<D: Disk> CommitLog<D> {
    pub(super) fn resume(
        disk: D,
        found: Scan<D::File>,
        segment_bytes_max: u64,
    ) -> Result<Self, StorageError> {
        let file = attempt(&disk, "open", LIVE, disk.open(LIVE))?;
        let mut log = Self {
            disk,
            index: Arc::new(Mutex::new(Index::new())),
            segment_bytes_max,
            file,
            segment: 0,
            length: 0,
            lines: 0,
            reserved: 0,
            reserve: usize::try_from(segment_bytes_max.min(RESERVE_BYTES)).expect("it is small"),
            rows: RowWriter::new(),
            row_count: 0,
            buffered: Vec::new(),
            next_sequence: 0,
            base: Position::default(),
            last: Position::default(),
            views: ViewTable::new(),
            hard: HardState::default(),
            view: View::default(),
            commit: LogIndex::ZERO,
            gaps: Vec::new(),
            failure: None,
        };
        log.adopt(found);
        Ok(log)
    }

    /// Takes over what a pass over the log has found. Readers see it from now on.
    fn adopt(&mut self, found: Scan<D::File>) {
        let mut index = lock(&self.index);
        let changes = index.changes + 1;
        *index = found.index;
        index.changes = changes;
        index.close_run();
        self.segment = index.segments.last_key_value().map_or(1, |(&number, _)| number);
        drop(index);
        self.length = found.good_end;
        self.reserved = self.length;
        self.lines = found.live_lines;
        self.next_sequence = found.next_sequence;
        self.base = found.base;
        self.last = found.last;
        self.views = found.views;
        self.hard = found.hard;
        self.view = found.view;
        self.commit = found.commit;
        self.gaps = found.gaps;
    }

    /// A handle that reads on any thread.
    #[must_use]
    pub fn reader(&self) -> LogReader<D> {
        LogReader::new(Arc::clone(&self.index))
    }

    /// The end of the log, what is not synced yet included.
    #[must_use]
    pub fn last(&self) -> Position {
        self.last
    }

    /// The position before the first entry.
    #[must_use]
    pub fn base(&self) -> Position {
        self.base
    }

    /// Encodes a write; it is on disk after the next [`CommitLog::sync`].
    ///
    /// # Errors
    /// The disk fails: then nothing more is attempted (D2).
    ///
    /// # Panics
    /// If entries don't follow the log's end, or a truncation goes beyond it.
    pub fn write(&mut self, write: &Write) -> Result<(), StorageError> {
        self.check_usable()?;
        let result = self.perform_write(write);
        self.note_failure(result)
    }

    /// Brings everything written so far to the disk: one write and one fdatasync (D1).
    ///
    /// # Errors
    /// The disk fails: then nothing more is attempted (D2). If it is full, the file is cut back to its last whole
    /// row (D3).
    pub fn sync(&mut self) -> Result<(), StorageError> {
        self.check_usable()?;
        let result = self.flush().and_then(|()| self.maybe_seal());
        self.note_failure(result)
    }

    /// Ends the log's use: its file ends with its last row.
    ///
    /// # Errors
    /// The disk fails, or has failed before.
    pub fn close(mut self) -> Result<(), StorageError> {
        self.check_usable()?;
        self.release()?;
        attempt(&self.disk, "sync", LIVE, self.file.sync())
    }

    /// Removes the sealed segments that only hold entries up to `through` (T3).
    ///
    /// # Errors
    /// The disk fails.
    pub fn cut(&mut self, through: LogIndex) -> Result<(), StorageError> {
        self.check_usable()?;
        let result = self.perform_cut(through);
        self.note_failure(result)
    }

    /// Moves the log's rows to synced files of their own, `replaced-….csv`, and lets the log start after an installed
    /// checkpoint (T5), in which they are contained.
    ///
    /// # Errors
    /// The disk fails.
    pub fn restart_after(&mut self, installed: &Installed) -> Result<(), StorageError> {
        self.restart(installed.position, &installed.views)
    }

    pub(super) fn restart(&mut self, position: Position, views: &ViewTable) -> Result<(), StorageError> {
        self.check_usable()?;
        let result = self.perform_restart(position, views);
        self.note_failure(result)
    }

    /// Fills in rotten rows (D4). The damaged file is kept as `rotten-….csv`. The entries after the gap can be read
    /// afterwards.
    ///
    /// # Errors
    /// There is no such gap, or the entries don't fit it: then nothing has changed. Or the disk fails.
    pub fn repair(&mut self, after: Position, entries: &[Arc<Entry>]) -> Result<(), StorageError> {
        self.check_usable()?;
        let gap = self.check_repair(after, entries)?;
        let result = self.perform_repair(&gap, entries);
        self.note_failure(result)
    }

    /// Whether these entries are what the gap after `after` lacks. If not, they are those of another log (R2).
    ///
    /// # Errors
    /// The row behind the gap can't be read.
    pub fn fits_gap(&self, after: Position, entries: &[Arc<Entry>]) -> Result<bool, StorageError> {
        match self.check_repair(after, entries) {
            Ok(_) => Ok(true),
            Err(StorageError::File { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn check_usable(&self) -> Result<(), StorageError> {
        self.failure.as_ref().map_or(Ok(()), |failure| Err(StorageError::Poisoned(failure.clone())))
    }

    fn note_failure(&mut self, result: Result<(), StorageError>) -> Result<(), StorageError> {
        if let Err(error) = &result {
            self.failure = Some(error.to_string());
        }
        result
    }

    fn perform_write(&mut self, write: &Write) -> Result<(), StorageError> {
        match write {
            Write::Append(entries) => self.append(entries)?,
            Write::Truncate { after } => self.truncate(*after)?,
            Write::HardState(hard) => {
                self.hard = hard.clone();
                let sequence = self.begin_row();
                write_hard_state(&mut self.rows, sequence, hard);
            }
            Write::View(view) => {
                self.view = view.clone();
                let sequence = self.begin_row();
                write_view(&mut self.rows, sequence, view);
            }
            Write::Commit(index) => {
                self.commit = self.commit.max(*index);
                let sequence = self.begin_row();
                write_commit(&mut self.rows, sequence, *index);
            }
            Write::Forget { file } => diverged::forget(&self.disk, file)?,
        }
        // The bound on what a crash can leave in doubt (D2).
        if self.rows.len() > UNSYNCED_BYTES_MAX / 2 { self.flush() } else { Ok(()) }
    }

    fn begin_row(&mut self) -> u64 {
        self.row_count += 1;
        self.next_sequence += 1;
        self.next_sequence - 1
    }

    fn append(&mut self, entries: &[Arc<Entry>]) -> Result<(), StorageError> {
        let Some(first) = entries.first() else { return Ok(()) };
        if first.index <= self.last.index && !self.gaps.is_empty() {
            // The core knows the log up to a gap only; what lies behind the gap gives way to what it writes.
            self.truncate(first.index.previous())?;
        }
        for (at, entry) in entries.iter().enumerate() {
            // Entries that come together were chained together: where they join the log is what could go wrong.
            let joins = || entry.chain == chain_after(self.last.chain, &entry.bytes);
            assert!(
                entry.index == self.last.index.next() && (at > 0 || joins()),
                "entry {} with chain {:08x} was appended to a log that ends with {:?}",
                entry.index,
                entry.chain,
                self.last,
            );
            let offset = self.rows.len();
            let sequence = self.begin_row();
            write_entry(&mut self.rows, sequence, entry);
            self.buffered.push(Buffered { offset, row: self.row_count, previous: self.last });
            self.last = entry.position();
            note_view(&mut self.views, self.last);
        }
        Ok(())
    }

    /// R2: moves the rows above `after` to a synced file before the log forgets them.
    fn truncate(&mut self, after: LogIndex) -> Result<(), StorageError> {
        if after == self.last.index {
            return Ok(());
        }
        assert!(
            after < self.last.index,
            "a truncation after {after} of a log that ends with {:?}",
            self.last
        );
        self.flush()?;
        let moved_to = if removed!("R2-move") { String::new() } else { self.move_aside(after)? };
        if after < self.base.index {
            return Ok(()); // The log has no such entry to end with; whoever asks for this gives up all of it next.
        }
        let position = self.position(after)?;
        let sequence = self.begin_row();
        write_truncate(&mut self.rows, sequence, after, &moved_to);
        lock(&self.index).truncate(after);
        self.gaps.retain(|gap| gap.after.index < after);
        self.views.retain(|view| view.start <= after);
        self.commit = self.commit.min(after);
        self.last = position;
        Ok(())
    }

    fn position(&self, index: LogIndex) -> Result<Position, StorageError> {
        if index == self.base.index {
            return Ok(self.base);
        }
        match lock(&self.index).position(index)? {
            Some(position) => Ok(position),
            None => Err(StorageError::File {
                path: self.disk.display(LIVE),
                found: format!("no entry {index} to cut the log after"),
                expected: format!("entries {} to {}", self.base.index.next(), self.last.index),
            }),
        }
    }

    /// Copies the rows above `after`, damaged ones too, to a file of their own.
    fn move_aside(&self, after: LogIndex) -> Result<String, StorageError> {
        let name = diverged::name_of(after, self.last.view, self.next_sequence);
        let aside = format!("{name}.new");
        let mut file = attempt(&self.disk, "create", &aside, self.disk.create(&aside))?;
        let mut rows = HEADER.as_bytes().to_vec();
        let stretches = lock(&self.index).stretches_above(after);
        for stretch in stretches {
            stretch.read(|found| {
                if found.position.index > after {
                    rows.extend_from_slice(found.raw);
                    rows.push(b'\n');
                }
                Ok(true)
            })?;
            attempt(&self.disk, "write", &aside, file.append(&rows))?;
            rows.clear();
        }
        for hole in self.gaps.iter().filter(|gap| gap.through > after).flat_map(|gap| &gap.holes) {
            let segment = lock(&self.index).segments[&hole.segment].clone();
            let from = (segment.name.as_str(), &*segment.file);
            copy_part(&self.disk, from, hole.start..hole.end, (&aside, &mut file))?;
        }
        attempt(&self.disk, "sync", &aside, file.sync())?;
        rename(&self.disk, &aside, &name)?;
        Ok(name)
    }

    /// One write, one fdatasync; then readers may see the entries.
    fn flush(&mut self) -> Result<(), StorageError> {
        if self.rows.is_empty() {
            return Ok(());
        }
        let bytes = self.rows.take();
        if let Err(error) = self.file.write_at(self.length, &bytes) {
            // D3: back to the last whole row. Should that fail too, recovery does it.
            let _ = self.file.truncate(self.length);
            let _ = self.file.sync();
            return Err(StorageError::io("write", self.disk.display(LIVE), error));
        }
        let end = self.length + bytes.len() as u64;
        if end > self.reserved && bytes.len() <= self.reserve / RESERVE_PART {
            self.reserve_after(end)?;
        }
        self.reserved = self.reserved.max(end);
        attempt(&self.disk, "sync", LIVE, self.file.sync())?;
        let mut index = lock(&self.index);
        for entry in self.buffered.drain(..) {
            let offset = self.length + entry.offset as u64;
            index.append(self.segment, offset, self.lines + entry.row, entry.previous, false);
        }
        drop(index);
        self.length = end;
        self.rows.reuse(bytes);
        self.lines += self.row_count;
        self.row_count = 0;
        Ok(())
    }

    fn maybe_seal(&mut self) -> Result<(), StorageError> {
        if self.length < self.segment_bytes_max || self.next_sequence - self.segment <= HEAD_ROWS {
            return Ok(());
        }
        self.release()?;
        let head = self.head(self.last);
        write_file(&self.disk, LIVE_NEXT, &head)?;
        attempt(&self.disk, "sync the directory", "", self.disk.sync_dir(""))?;
        // Should the process end between the two renames, recovery does the second.
        let sealed = sealed_name(self.segment);
        rename(&self.disk, LIVE, &sealed)?;
        rename(&self.disk, LIVE_NEXT, LIVE)?;
        if let Some(segment) = lock(&self.index).segments.get_mut(&self.segment) {
            segment.name = sealed;
        }
        self.begin_segment(self.last, head.len() as u64)
    }

    /// Reserves space behind the last row, if there is some. A small disk does without.
    fn reserve_after(&mut self, end: u64) -> Result<(), StorageError> {
        let reserved = (end + self.reserve as u64).next_multiple_of(PAGE_BYTES);
        let space = usize::try_from(reserved - end).expect("it is small");
        match self.file.write_at(end, &vec![b'\n'; space]) {
            Ok(()) => self.reserved = reserved,
            Err(error) if TOO_MUCH.contains(&error.kind()) => {
                self.reserve = 0;
                attempt(&self.disk, "cut", LIVE, self.file.truncate(end))?;
            }
            Err(error) => return Err(StorageError::io("write", self.disk.display(LIVE), error)),
        }
        Ok(())
    }

    /// Gives the reserved space back. A crash may undo that.
    fn release(&mut self) -> Result<(), StorageError> {
        if self.reserved > self.length {
            attempt(&self.disk, "cut", LIVE, self.file.truncate(self.length))?;
            self.reserved = self.length;
        }
        Ok(())
    }

    fn head(&self, anchor: Position) -> Vec<u8> {
        let head = Head {
            sequence: self.next_sequence,
            anchor,
            views: &self.views,
            hard: &self.hard,
            view: &self.view,
            commit: self.commit,
        };
        head.encode()
    }

    /// Goes on in the live segment, which has just been put in place.
    fn begin_segment(&mut self, anchor: Position, length: u64) -> Result<(), StorageError> {
        self.file = attempt(&self.disk, "open", LIVE, self.disk.open(LIVE))?;
        self.segment = self.next_sequence;
        self.next_sequence += HEAD_ROWS;
        self.length = length;
        self.reserved = length;
        self.lines = 1 + HEAD_ROWS;
        let file = Arc::new(attempt(&self.disk, "open", LIVE, self.disk.open(LIVE))?);
        let mut index = lock(&self.index);
        index.close_run();
        index.segments.insert(self.segment, Segment { name: LIVE.to_owned(), file, anchor });
        Ok(())
    }

    fn perform_cut(&mut self, through: LogIndex) -> Result<(), StorageError> {
        let Some((first_kept, base)) = self.first_segment_needed(through)? else { return Ok(()) };
        let mut index = lock(&self.index);
        let kept = index.segments.split_off(&first_kept);
        let removed = std::mem::replace(&mut index.segments, kept);
        index.runs.retain(|run| run.segment >= first_kept);
        index.changes += 1;
        drop(index);
        self.base = base;
        let index = lock(&self.index);
        let is_kept = |hole: &Hole| index.segments.contains_key(&hole.segment);
        self.gaps.retain(|gap| gap.through > base.index && gap.holes.iter().all(is_kept));
        drop(index);
        for segment in removed.into_values() {
            attempt(&self.disk, "remove", &segment.name, self.disk.remove_file(&segment.name))?;
            // Oldest first, each made durable, so that what stays never has a hole.
            attempt(&self.disk, "sync the directory", "", self.disk.sync_dir(""))?;
        }
        Ok(())
    }

    /// The last segment that begins at or below `through`, with the entry before it. One whose anchor was truncated
    /// since does not count: its rows build on entries in a segment before it.
    fn first_segment_needed(&self, through: LogIndex) -> Result<Option<(u64, Position)>, StorageError> {
        let index = lock(&self.index);
        for (&number, segment) in index.segments.iter().skip(1).rev() {
            let anchor = segment.anchor;
            if anchor.index <= through && index.position(anchor.index)? == Some(anchor) {
                return Ok(Some((number, anchor)));
            }
        }
        Ok(None)
    }

    fn perform_restart(&mut self, position: Position, views: &ViewTable) -> Result<(), StorageError> {
        self.flush()?;
        let segments: Vec<(u64, Segment<D::File>)> =
            lock(&self.index).segments.iter().map(|(&number, segment)| (number, segment.clone())).collect();
        let moved_name = |number: u64, segment: &Segment<D::File>| {
            format!("replaced-{}-{}-{number}.csv", segment.anchor.index.next(), self.last.view)
        };
        for (number, segment) in segments.iter().filter(|(_, segment)| segment.name != LIVE) {
            rename(&self.disk, &segment.name, &moved_name(*number, segment))?;
        }
        if let Some((number, segment)) =
            segments.last().filter(|(_, live)| live.anchor.index < self.last.index)
        {
            let name = moved_name(*number, segment);
            self.copy_file(segment, self.length, &name)?;
        }
        self.last = position;
        self.base = position;
        self.commit = position.index;
        self.views = views.clone();
        self.gaps.clear();
        let head = self.head(position);
        write_file(&self.disk, LIVE_NEW, &head)?;
        rename(&self.disk, LIVE_NEW, LIVE)?;
        let mut index = lock(&self.index);
        index.segments.clear();
        index.runs.clear();
        index.changes += 1;
        drop(index);
        self.begin_segment(position, head.len() as u64)
    }

    /// Copies a file aside under a durable name.
    fn copy_file(&self, from: &Segment<D::File>, length: u64, name: &str) -> Result<(), StorageError> {
        let aside = format!("{name}.new");
        let mut file = attempt(&self.disk, "create", &aside, self.disk.create(&aside))?;
        copy_part(&self.disk, (&from.name, &from.file), 0..length, (&aside, &mut file))?;
        attempt(&self.disk, "sync", &aside, file.sync())?;
        rename(&self.disk, &aside, name)
    }

    /// Whether the entries are exactly those that are missing.
    fn check_repair(&self, after: Position, entries: &[Arc<Entry>]) -> Result<Gap, StorageError> {
        let wrong = |found: String, expected: String| {
            Err(StorageError::File { path: self.disk.display(LIVE), found, expected })
        };
        let Some(gap) = self.gaps.iter().find(|gap| gap.after == after) else {
            return wrong(format!("no gap after entry {}", after.index), "one to repair".into());
        };
        let missing = after.index.distance_to(gap.through);
        let lost: u64 = gap.holes.iter().map(|hole| hole.count).sum();
        if entries.len() as u64 != missing || lost < missing {
            let found = format!("{} entries to fill the gap after entry {}", entries.len(), after.index);
            return wrong(found, format!("{missing}, in the place of {lost} damaged rows"));
        }
        let mut last = after;
        for entry in entries {
            let expected = chain_after(last.chain, &entry.bytes);
            if entry.index != last.index.next() || entry.chain != expected {
                let found = format!("entry {} with chain {:08x} for the gap", entry.index, entry.chain);
                return wrong(found, format!("entry {} with chain {expected:08x}", last.index.next()));
            }
            last = entry.position();
        }
        if let Some(stretch) = lock(&self.index).stretch(gap.through.next()) {
            let mut fits = true;
            stretch.read(|found| {
                fits = super::index::check_chain(&found.line, Some(last)).is_ok();
                Ok(false)
            })?;
            if !fits {
                return wrong(
                    format!("entries for the gap that end with chain {:08x}", last.chain),
                    format!("entries that entry {} follows", gap.through.next()),
                );
            }
        }
        Ok(gap.clone())
    }

    fn perform_repair(&mut self, gap: &Gap, entries: &[Arc<Entry>]) -> Result<(), StorageError> {
        self.flush()?;
        // Rows that were no entries come first: no truncation between two holes then takes an entry back.
        let lost: u64 = gap.holes.iter().map(|hole| hole.count).sum();
        let others = usize::try_from(lost).unwrap_or(usize::MAX) - entries.len();
        let mut entries = std::iter::repeat_n(None, others).chain(entries.iter().map(Some));
        let mut at = 0;
        while let Some(first) = gap.holes.get(at) {
            let same = gap.holes[at..].iter().take_while(|hole| hole.segment == first.segment).count();
            self.rewrite_segment(&gap.holes[at..at + same], gap.after.index, &mut entries)?;
            at += same;
        }
        let found = scan(&self.disk, &[], &mut |_| {})?;
        self.file = attempt(&self.disk, "open", LIVE, self.disk.open(LIVE))?;
        self.adopt(found);
        Ok(())
    }

    /// Writes a segment anew with rows in the place of its holes; rows that were no entries become hints.
    fn rewrite_segment<'a>(
        &self,
        holes: &[Hole],
        committed: LogIndex,
        entries: &mut impl Iterator<Item = Option<&'a Arc<Entry>>>,
    ) -> Result<(), StorageError> {
        let number = holes[0].segment;
        let segment = lock(&self.index).segments[&number].clone();
        let length = match segment.name.as_str() {
            LIVE => self.length,
            sealed => attempt(&self.disk, "read", sealed, segment.file.len())?,
        };
        self.copy_file(&segment, length, &format!("rotten-{number:08}-{}.csv", self.next_sequence))?;
        let aside = format!("{}.new", segment.name);
        let mut file = attempt(&self.disk, "create", &aside, self.disk.create(&aside))?;
        let from = (segment.name.as_str(), &*segment.file);
        let mut rows = RowWriter::new();
        let mut copied = 0;
        for hole in holes {
            copy_part(&self.disk, from, copied..hole.start, (&aside, &mut file))?;
            for sequence in hole.sequence..hole.sequence + hole.count {
                match entries.next().flatten() {
                    Some(entry) => write_entry(&mut rows, sequence, entry),
                    None => write_commit(&mut rows, sequence, committed.min(self.commit)),
                }
            }
            attempt(&self.disk, "write", &aside, file.append(&rows.take()))?;
            copied = hole.end;
        }
        copy_part(&self.disk, from, copied..length, (&aside, &mut file))?;
        attempt(&self.disk, "sync", &aside, file.sync())?;
        rename(&self.disk, &aside, &segment.name)
    }
}
