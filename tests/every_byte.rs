//! Every byte of a data directory: cuts and flipped bits of a log of 64 KiB, of every table and of the hard state (D4-D6).
//!
//! Whatever is damaged, recovery gives what was there, or says exactly which entries must come from a peer, or doubts
//! the disk, or refuses and names the file. Here every 67th bit is flipped and every 64th cut is made, besides those at
//! the ends of rows; with `EVERY_BIT=1` it is all of them.
#![allow(clippy::unwrap_used, reason = "a test that can't go on fails")]

mod log_model;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use lastword::chat::Table;
use lastword::message::{Entry, HardState, Position, Standing, View, Write};
use lastword::prng::Prng;
use lastword::storage::{Disk, MemoryDisk, Opened, StorageError};
use lastword::types::LogIndex;

use log_model::{Known, LIVE, hard, open, read_all, rows_of, take_checkpoint, view_of};

const LOG_BYTES: usize = 64 * 1024;
/// What a disk writes at once, in bytes.
const SECTOR: usize = 512;
/// Reserved space behind the last row, in bytes: none, and some.
const RESERVED: [usize; 2] = [0, 700];
/// Larger than the log: one segment.
const ONE_SEGMENT: u64 = 1024 * 1024;

fn is_thorough() -> bool {
    std::env::var("EVERY_BIT").is_ok_and(|value| value == "1")
}

/// The bits to flip in a file: every 67th, so that each of the eight comes up alike, and one of each newline.
fn bits(bytes: &[u8]) -> Vec<usize> {
    let ends_a_row = |bit: usize| bytes[bit / 8] == b'\n' && (bit / 8) % 8 == bit % 8;
    (0..bytes.len() * 8).filter(|&bit| is_thorough() || bit % 67 == 0 || ends_a_row(bit)).collect()
}

/// The lengths to cut a file of so many bytes to: besides every 64th, whole sectors, and each next to the end of a row.
fn cuts(bytes: &[u8]) -> Vec<usize> {
    let near_an_end = |cut: usize| {
        let before = &bytes[cut.saturating_sub(2)..(cut + 1).min(bytes.len())];
        before.contains(&b'\n')
    };
    (0..bytes.len())
        .filter(|&cut| is_thorough() || cut % 64 == 3 || cut % SECTOR == 0 || near_an_end(cut))
        .collect()
}

/// Does the work for each item, on two threads.
fn for_each_in_parallel(items: &[usize], work: impl Fn(usize) + Sync) {
    const AT_ONCE: usize = 64;
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while let Some(rest) = items.get(next.fetch_add(AT_ONCE, Ordering::Relaxed)..) {
                    if rest.is_empty() {
                        return;
                    }
                    rest.iter().take(AT_ONCE).for_each(|&item| work(item));
                }
            });
        }
    });
}

fn flipped(bytes: &[u8], bit: usize) -> Vec<u8> {
    let mut damaged = bytes.to_vec();
    damaged[bit / 8] ^= 1 << (bit % 8);
    damaged
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Begins the segment; of these only the hard state is missed.
    Head,
    /// A hard state or a view.
    Control,
    /// An entry that is part of the log in the end.
    Entry(Position),
    /// An entry that is truncated later.
    Truncated,
    Truncate,
    Hint,
}

/// What the log holds up to some row.
#[derive(Clone, Debug, Default, PartialEq)]
struct Model {
    last: Position,
    hard: HardState,
    view: View,
}

struct Row {
    start: usize,
    end: usize,
    kind: Kind,
    /// What the log holds with this as its last row.
    after: Model,
}

/// A log of 64 KiB and everything that is known of it.
struct Story {
    known: Known,
    bytes: Vec<u8>,
    rows: Vec<Row>,
    history: Vec<Arc<Entry>>,
    whole: Model,
}

/// Writes a log, one row at a time, and keeps the book.
struct Author {
    known: Known,
    disk: MemoryDisk,
    opened: Opened<MemoryDisk>,
    rows: Vec<(Kind, Model)>,
    model: Model,
    salt: u64,
}

impl Author {
    fn new() -> Self {
        let disk = MemoryDisk::new(1);
        let opened = open(&disk, ONE_SEGMENT).unwrap();
        let rows = vec![(Kind::Head, Model::default()); 5];
        Self { known: Known::default(), disk, opened, rows, model: Model::default(), salt: 0 }
    }

    fn write(&mut self, write: &Write, kind: Kind) {
        self.opened.log.write(write).unwrap();
        self.model.last = self.opened.log.last();
        self.rows.push((kind, self.model.clone()));
    }

    fn append(&mut self, counter: u32, count: u64) {
        for _ in 0..count {
            self.salt += 1;
            let entry = self.known.make(self.opened.log.last(), counter, self.salt);
            let kind = Kind::Entry(entry.position());
            self.write(&Write::Append(vec![entry]), kind);
        }
    }

    fn hard(&mut self, hard: HardState) {
        self.model.hard = hard.clone();
        self.write(&Write::HardState(hard), Kind::Control);
    }

    fn view(&mut self, view: View) {
        self.model.view = view.clone();
        self.write(&Write::View(view), Kind::Control);
    }

    fn hint(&mut self, behind: u64) {
        let commit = LogIndex(self.opened.log.last().index.0 - behind);
        self.write(&Write::Commit(commit), Kind::Hint);
    }

    fn truncate(&mut self, behind: u64) {
        let after = LogIndex(self.opened.log.last().index.0 - behind);
        for (kind, _) in &mut self.rows {
            if matches!(kind, Kind::Entry(position) if position.index > after) {
                *kind = Kind::Truncated;
            }
        }
        self.write(&Write::Truncate { after }, Kind::Truncate);
    }

    fn finish(mut self) -> Story {
        self.opened.log.sync().unwrap();
        self.known.note_outcomes(self.model.last);
        let bytes = rows_of(&self.disk);
        let ends: Vec<usize> = (0..bytes.len()).filter(|&at| bytes[at] == b'\n').map(|at| at + 1).collect();
        assert_eq!(ends.len(), self.rows.len() + 1, "a header and one line for each row");
        let rows = self.rows.into_iter().enumerate();
        let rows = rows.map(|(at, (kind, after))| Row { start: ends[at], end: ends[at + 1], kind, after });
        let history = self.known.history(self.model.last);
        Story { known: self.known, bytes, rows: rows.collect(), history, whole: self.model }
    }
}

fn story() -> Story {
    let mut author = Author::new();
    author.hard(hard(1, 0));
    author.view(view_of(1));
    author.append(1, 20);
    author.hint(4);
    author.append(1, 6);
    author.truncate(5);
    author.hard(hard(1, 2));
    author.view(view_of(2));
    while rows_of(&author.disk).len() < LOG_BYTES {
        author.append(2, 7);
        author.hint(3);
        author.append(2, 3);
        author.opened.log.sync().unwrap();
    }
    author.hard(hard(1, 3));
    author.append(2, 3);
    author.finish()
}

impl Story {
    /// The rows that damage to a byte destroys; none: the header.
    fn lost(&self, byte: usize) -> Option<std::ops::Range<usize>> {
        let at = self.rows.iter().position(|row| row.start <= byte && byte < row.end)?;
        let newline = byte + 1 == self.rows[at].end;
        Some(at..(at + 1 + usize::from(newline)).min(self.rows.len()))
    }

    /// Checks what must hold of whatever is recovered: nothing in it was made up.
    fn check(&self, opened: &Opened<MemoryDisk>, what: &str) -> Vec<Arc<Entry>> {
        let recovered = &opened.recovered;
        let entries = read_all(opened);
        for entry in entries.iter().chain(&recovered.tail) {
            let made = self.known.entries.get(&(entry.index.0, entry.chain));
            assert!(
                made.is_some_and(|(_, made)| made == entry),
                "{what}: a wrong row was recovered: {entry:?}"
            );
        }
        let applied = (recovered.applied.index.0, recovered.applied.chain);
        assert_eq!(recovered.state.digest(), self.known.outcomes[&applied].0, "{what}: a wrong state");
        assert_eq!(recovered.state.index(), recovered.applied.index, "{what}");
        let mut last = recovered.applied;
        for entry in &recovered.tail {
            assert_eq!(entry.index, last.index.next(), "{what}: the tail has a gap");
            last = entry.position();
        }
        if recovered.gaps.is_empty() {
            assert_eq!(last, opened.log.last(), "{what}: the tail does not reach the log's end");
            let views = &self.known.outcomes[&(last.index.0, last.chain)].1;
            assert_eq!(recovered.views, *views, "{what}: a wrong table of views");
        }
        entries
    }

    fn model(&self, opened: &Opened<MemoryDisk>) -> Model {
        let recovered = &opened.recovered;
        let mut hard = recovered.hard.clone();
        (hard.standing, hard.born) = (self.whole.hard.standing, self.whole.hard.born);
        Model { last: opened.log.last(), hard, view: recovered.view.clone() }
    }

    /// What is recovered after damage to these rows is right, or exactly what is missing is said.
    fn judge(&self, opened: &Opened<MemoryDisk>, lost: &std::ops::Range<usize>, what: &str) {
        let entries = self.check(opened, what);
        let recovered = &opened.recovered;
        let line = format!("{LIVE}, line {}: ", lost.start + 2);
        assert!(
            recovered.hard.standing == Standing::Partial
                || opened.notices.iter().any(|notice| notice.starts_with(&line)),
            "{what}: no notice begins with {line:?}: {:?}",
            opened.notices
        );
        if lost.end == self.rows.len() {
            assert!(recovered.gaps.is_empty(), "{what}: {:?}", recovered.gaps);
            assert_eq!(self.model(opened), self.rows[lost.start - 1].after, "{what}: not what stood before");
            assert_eq!(
                recovered.hard.standing,
                Standing::Suspect,
                "{what}: a damaged last row was forgotten"
            );
            return;
        }
        let kinds: Vec<Kind> = self.rows[lost.clone()].iter().map(|row| row.kind).collect();
        let missing: Vec<Position> = kinds
            .iter()
            .filter_map(|kind| if let Kind::Entry(at) = kind { Some(*at) } else { None })
            .collect();
        let doubtful = kinds.iter().any(|kind| matches!(kind, Kind::Control | Kind::Truncate | Kind::Hint));
        if recovered.hard.standing != Standing::Whole {
            assert_eq!(recovered.hard.standing, Standing::Partial, "{what}");
            assert!(doubtful, "{what}: only {kinds:?} were lost, and the disk counts for nothing");
            return;
        }
        assert_eq!(
            self.model(opened),
            self.whole,
            "{what}: {kinds:?} are lost, and the disk is said to be whole"
        );
        let (Some(first), Some(last)) = (missing.first(), missing.last()) else {
            assert!(recovered.gaps.is_empty(), "{what}: {:?}", recovered.gaps);
            assert_eq!(entries, self.history, "{what}");
            return;
        };
        let before = usize::try_from(first.index.0).unwrap() - 1;
        let after = before.checked_sub(1).map_or(Position::default(), |at| self.history[at].position());
        assert_eq!(recovered.gaps, [(after, last.index)], "{what}: not exactly what is lost");
        // The first entry after the gap is there too, but nothing vouches for it.
        let from = usize::try_from(last.index.0).unwrap() + 1;
        let rest = self.history.get(from..).unwrap_or_default();
        assert_eq!(entries, [&self.history[..before], rest].concat(), "{what}: other entries are lost too");
    }
}

/// With reserved space behind.
fn reserved(bytes: &[u8], space: usize) -> Vec<u8> {
    [bytes, &vec![b'\n'; space]].concat()
}

fn with_log(bytes: &[u8]) -> MemoryDisk {
    let disk = MemoryDisk::new(1);
    disk.put(LIVE, bytes);
    disk
}

/// A refusal names the file and the place, and changes nothing.
fn check_refusal(disk: &MemoryDisk, before: &[u8], error: &StorageError, what: &str) {
    let text = error.to_string();
    assert!(text.starts_with(LIVE), "{what}: {text}");
    assert!(text.contains("found ") && text.contains("expected "), "{what}: {text}");
    assert_eq!(disk.bytes(LIVE).unwrap(), before, "{what}: a refused log was changed");
}

#[test]
fn a_flipped_bit_anywhere_in_a_log_of_64_kib_costs_its_row_at_most_and_is_told() {
    let story = story();
    assert!(story.bytes.len() >= LOG_BYTES);
    for space in RESERVED {
        let bits = bits(&story.bytes);
        let bits = if space > 0 && !is_thorough() { bits.into_iter().step_by(3).collect() } else { bits };
        for_each_in_parallel(&bits, |bit| {
            let what = format!("bit {} of byte {}, {space} bytes reserved", bit % 8, bit / 8);
            let damaged = reserved(&flipped(&story.bytes, bit), space);
            let disk = with_log(&damaged);
            match (open(&disk, ONE_SEGMENT), story.lost(bit / 8)) {
                (Ok(opened), Some(lost)) => {
                    story.judge(&opened, &lost, &what);
                    if bit % 64 == 0 && opened.recovered.gaps.is_empty() {
                        let again = open(&disk.restart(), ONE_SEGMENT).unwrap();
                        story.check(&again, &what);
                        assert_eq!(
                            again.log.last(),
                            opened.log.last(),
                            "{what}: forgotten by the next start"
                        );
                        assert_eq!(again.recovered.hard, opened.recovered.hard, "{what}");
                    }
                }
                (Err(error), None) => {
                    check_refusal(&disk, &damaged, &error, &what);
                    assert!(error.to_string().starts_with(&format!("{LIVE}, line 1: ")), "{what}: {error}");
                }
                (Ok(_), None) => panic!("{what}: a wrong header was taken"),
                (Err(error), Some(_)) => panic!("{what}: refused: {error}"),
            }
        });
    }
}

#[test]
fn a_flipped_bit_in_reserved_space_costs_nothing() {
    let story = story();
    let [_, space] = RESERVED;
    let bytes = reserved(&story.bytes, space);
    let bits: Vec<usize> = (story.bytes.len() * 8..bytes.len() * 8).collect();
    for_each_in_parallel(&bits, |bit| {
        let what = format!("bit {} of byte {}", bit % 8, bit / 8);
        let opened = open(&with_log(&flipped(&bytes, bit)), ONE_SEGMENT).unwrap();
        assert_eq!(story.check(&opened, &what), story.history, "{what}");
        assert_eq!(story.model(&opened), story.whole, "{what}");
        assert!(opened.recovered.gaps.is_empty(), "{what}: {:?}", opened.recovered.gaps);
        assert_ne!(opened.recovered.hard.standing, Standing::Partial, "{what}");
    });
}

/// Rows that are written over reserved space when the power fails: each sector of the disk is as before, or as after.
#[test]
fn of_rows_that_were_never_synced_some_are_there_and_nothing_looks_like_rot() {
    let story = story();
    let synced = story.rows[story.rows.len() - 12].end;
    let (before, after) = (reserved(&story.bytes[..synced], 8192), &story.bytes);
    let sectors: Vec<_> = (synced / SECTOR..after.len().div_ceil(SECTOR))
        .map(|at| (at * SECTOR).max(synced)..((at + 1) * SECTOR).min(after.len()))
        .collect();
    assert!((3..14).contains(&sectors.len()), "{} sectors", sectors.len());
    let ways: Vec<usize> = (0..1 << sectors.len()).collect();
    for_each_in_parallel(&ways, |way| {
        let what = format!("sectors {way:b}");
        let mut bytes = before.clone();
        for (at, sector) in sectors.iter().enumerate() {
            if way >> at & 1 == 1 {
                bytes[sector.clone()].copy_from_slice(&after[sector.clone()]);
            }
        }
        let opened = open(&with_log(&bytes), ONE_SEGMENT).unwrap();
        story.check(&opened, &what);
        assert!(opened.recovered.gaps.is_empty(), "{what}: {:?}", opened.recovered.gaps);
        let in_order = way.trailing_ones() as usize;
        let reached = sectors[..in_order].last().map_or(synced, |sector| sector.end);
        let rows = story.rows.iter().take_while(|row| row.end - 1 <= reached).count();
        assert_eq!(
            story.model(&opened),
            story.rows[rows - 1].after,
            "{what}: not what is there up to byte {reached}"
        );
        let piece = String::from_utf8_lossy(&after[story.rows[rows - 1].end.min(reached)..reached]);
        // Rows behind empty lines may have been synced, if the disk has lost a write.
        let suspect = way >> in_order != 0 || ends_like_a_row(&piece);
        let expected = if suspect { Standing::Suspect } else { Standing::Whole };
        assert_eq!(opened.recovered.hard.standing, expected, "{what}: {:?}", opened.notices);
    });
}

/// Whatever a disk loses or damages beside it: an acknowledged row is not forgotten.
#[test]
fn a_damaged_last_row_is_not_taken_for_one_that_was_never_synced_because_others_stand_behind_it() {
    let story = story();
    let row = story.rows.len() - 12;
    let synced = story.rows[row].end;
    let sector = synced.next_multiple_of(SECTOR);
    for byte in story.rows[row].start..synced {
        let mut bytes = flipped(&reserved(&story.bytes[..synced], 8192), 8 * byte);
        bytes[sector..story.bytes.len()].copy_from_slice(&story.bytes[sector..]);
        let opened = open(&with_log(&bytes), ONE_SEGMENT).unwrap();
        assert_ne!(opened.recovered.hard.standing, Standing::Whole, "byte {byte}: {:?}", opened.notices);
    }
}

#[test]
fn rot_in_the_row_after_which_the_log_was_truncated_costs_that_row_only() {
    let story = story();
    let truncate = story.rows.iter().position(|row| row.kind == Kind::Truncate).unwrap();
    let after = story.rows[truncate].after.last;
    let kept = story.rows.iter().position(|row| row.kind == Kind::Entry(after)).unwrap();
    for newline_too in [false, true] {
        let row = &story.rows[kept];
        let damaged = flipped(&story.bytes, 8 * if newline_too { row.end - 1 } else { row.start + 9 });
        let mut opened = open(&with_log(&damaged), ONE_SEGMENT).unwrap();
        let at = usize::try_from(after.index.0).unwrap();
        let before = story.history[at - 2].position();
        assert_eq!(opened.recovered.gaps, [(before, after.index)], "{newline_too}");
        opened.log.repair(before, &story.history[at - 1..at]).unwrap();
        opened.recovered.gaps.clear();
        assert_eq!(read_all(&opened), story.history, "{newline_too}");
    }
}

#[test]
fn a_log_of_64_kib_cut_anywhere_is_a_prefix_of_itself() {
    let story = story();
    for space in RESERVED {
        for_each_in_parallel(&cuts(&story.bytes), |cut| {
            let what = format!("cut at byte {cut}, {space} bytes reserved");
            let bytes = reserved(&story.bytes[..cut], space);
            let disk = with_log(&bytes);
            // The first byte of what is reserved ends a row of which only that was missing.
            let rows = story.rows.iter().take_while(|row| row.end <= cut + usize::from(space > 0)).count();
            match open(&disk, ONE_SEGMENT) {
                Ok(opened) => {
                    story.check(&opened, &what);
                    assert!(opened.recovered.gaps.is_empty(), "{what}: {:?}", opened.recovered.gaps);
                    assert_eq!(opened.log.last(), story.rows[rows - 1].after.last, "{what}");
                    // The segment's head has no view and the default hard state: a disk that has nothing to say.
                    let expected = if rows > 5 { Standing::Whole } else { Standing::Partial };
                    let torn = cut > story.rows[rows - 1].end;
                    let piece = String::from_utf8_lossy(&story.bytes[story.rows[rows - 1].end.min(cut)..cut]);
                    // Where a row was written over reserved space it ends with a sector; and up to its chain it looks like
                    // a shorter one with another checksum.
                    let suspect = space > 0 && torn && (cut % SECTOR != 0 || ends_like_a_row(&piece));
                    let expected = if suspect && rows > 5 { Standing::Suspect } else { expected };
                    assert_eq!(opened.recovered.hard.standing, expected, "{what}");
                    if rows > 6 {
                        let hard =
                            HardState { standing: expected, ..story.rows[rows - 1].after.hard.clone() };
                        assert_eq!(opened.recovered.hard, hard, "{what}");
                        assert_eq!(opened.recovered.view, story.rows[rows - 1].after.view, "{what}");
                    }
                    assert_eq!(torn, !opened.notices.is_empty(), "{what}: {:?}", opened.notices);
                }
                Err(error) => {
                    assert!(rows < 5, "{what}: refused: {error}");
                    check_refusal(&disk, &bytes, &error, &what);
                }
            }
        });
    }
}

/// Whether it has as many fields as a row but one, at least, and the last could be a checksum.
fn ends_like_a_row(piece: &str) -> bool {
    let (fields, last) = (piece.split(',').count(), piece.rsplit(',').next().unwrap_or_default());
    fields >= 13 && last.len() == 8 && last.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// Two checkpoints; the log was cut in front up to the older one.
struct Tables {
    known: Known,
    disk: MemoryDisk,
    last: Position,
}

fn tables() -> Tables {
    const SEGMENT: u64 = 2000;
    let mut known = Known::default();
    let disk = MemoryDisk::new(1);
    let mut opened = open(&disk, SEGMENT).unwrap();
    opened.log.write(&Write::HardState(hard(1, 0))).unwrap();
    opened.log.write(&Write::View(view_of(1))).unwrap();
    for index in 1..=130u64 {
        let entry = known.make(opened.log.last(), 1, 9);
        opened.log.write(&Write::Append(vec![entry])).unwrap();
        opened.log.write(&Write::Commit(LogIndex(index))).unwrap();
        opened.log.sync().unwrap();
        if index == 118 || index == 124 {
            let position = opened.log.last();
            take_checkpoint(&mut opened, &known, position).unwrap();
        }
    }
    opened.log.cut(LogIndex(118)).unwrap();
    assert!(opened.log.base().index > LogIndex(100), "{:?}", opened.log.base());
    let last = opened.log.last();
    known.note_outcomes(last);
    Tables { known, disk, last }
}

const OLDER: &str = "checkpoints/000000000118";
const NEWER: &str = "checkpoints/000000000124";

impl Tables {
    /// The same directory with one file replaced.
    fn with(&self, path: &str, bytes: &[u8]) -> MemoryDisk {
        let disk = MemoryDisk::new(1);
        disk.create_dir("checkpoints").unwrap();
        for directory in [OLDER, NEWER] {
            disk.create_dir(directory).unwrap();
        }
        for file in self.disk.files() {
            disk.put(&file, &self.disk.bytes(&file).unwrap());
        }
        disk.replace_link("000000000124", "checkpoints/current").unwrap();
        disk.put(path, bytes);
        disk
    }

    fn check(&self, disk: &MemoryDisk, path: &str, what: &str) {
        let opened = open(disk, ONE_SEGMENT).unwrap_or_else(|error| panic!("{what}: refused: {error}"));
        assert_eq!(opened.recovered.checkpoint, LogIndex(118), "{what}: a damaged table was read");
        assert_eq!(opened.recovered.applied, self.last, "{what}");
        let digest = self.known.outcomes[&(self.last.index.0, self.last.chain)].0;
        assert_eq!(opened.recovered.state.digest(), digest, "{what}: a wrong state");
        assert_eq!(opened.recovered.hard.standing, Standing::Whole, "{what}");
        assert!(opened.notices.iter().any(|notice| notice.contains(path)), "{what}: {:?}", opened.notices);
        let aside = NEWER.replace("checkpoints/", "checkpoints/rotten-");
        assert!(disk.exists(&aside).unwrap(), "{what}: the damaged checkpoint was thrown away");
    }

    fn files(&self, directory: &str) -> Vec<(String, Vec<u8>)> {
        let inside = format!("{directory}/");
        let files = self.disk.files().into_iter().filter(|path| path.starts_with(&inside));
        files.map(|path| (path.clone(), self.disk.bytes(&path).unwrap())).collect()
    }
}

#[test]
fn the_older_checkpoint_stands_in_for_a_table_with_any_flipped_bit_or_cut() {
    let tables = tables();
    let files = tables.files(NEWER);
    assert_eq!(files.len(), Table::ALL.len() + 1, "the tables and checkpoint.csv");
    for (path, bytes) in files {
        for_each_in_parallel(&bits(&bytes), |bit| {
            let what = format!("{path}, bit {} of byte {}", bit % 8, bit / 8);
            tables.check(&tables.with(&path, &flipped(&bytes, bit)), &path, &what);
        });
        for_each_in_parallel(&cuts(&bytes), |cut| {
            tables.check(&tables.with(&path, &bytes[..cut]), &path, &format!("{path}, cut at byte {cut}"));
        });
    }
}

#[test]
fn a_directory_with_both_checkpoints_damaged_and_the_log_before_them_gone_is_refused_with_the_place() {
    let tables = tables();
    for ((older, older_bytes), (newer, newer_bytes)) in
        tables.files(OLDER).into_iter().zip(tables.files(NEWER))
    {
        let bits: Vec<usize> = (0..older_bytes.len().min(newer_bytes.len()) * 8).step_by(251).collect();
        for_each_in_parallel(&bits, |bit| {
            let what = format!("{older} and {newer}, bit {} of byte {}", bit % 8, bit / 8);
            let disk = tables.with(&newer, &flipped(&newer_bytes, bit));
            disk.put(&older, &flipped(&older_bytes, bit));
            let before: Vec<_> =
                disk.files().into_iter().map(|file| (file.clone(), disk.bytes(&file))).collect();
            let error = open(&disk, ONE_SEGMENT).unwrap_err().to_string();
            assert!(error.starts_with(&newer), "{what}: {error}");
            assert!(error.contains("found ") && error.contains("expected"), "{what}: {error}");
            let after: Vec<_> =
                disk.files().into_iter().map(|file| (file.clone(), disk.bytes(&file))).collect();
            assert!(before == after, "{what}: a refused directory was changed");
        });
    }
}

#[test]
fn whatever_else_happens_to_a_log_no_row_is_made_up_and_a_whole_disk_lacks_nothing_but_its_end() {
    let story = story();
    let length = story.bytes.len();
    for_each_in_parallel(&(0..if is_thorough() { 40_000 } else { 1000 }).collect::<Vec<_>>(), |seed| {
        let mut prng = Prng::new(seed as u64);
        let below = |prng: &mut Prng, bound: usize| usize::try_from(prng.below(bound as u64)).unwrap();
        let mut bytes = story.bytes.clone();
        let page = below(&mut prng, length / 4096) * 4096;
        let what = match seed % 5 {
            0 => {
                for _ in 0..2 {
                    let bit = below(&mut prng, length * 8);
                    bytes[bit / 8] ^= 1 << (bit % 8);
                }
                "two flipped bits"
            }
            1 => {
                let (bit, cut) = (below(&mut prng, length * 8), below(&mut prng, length));
                bytes[bit / 8] ^= 1 << (bit % 8);
                bytes.truncate(cut);
                "a flipped bit and a cut"
            }
            2 => {
                bytes[page..page + 4096].fill(0);
                "a page of zeros"
            }
            3 => {
                let again = bytes[page..page + 4096].to_vec();
                bytes.splice(page..page, again);
                "a page twice"
            }
            _ => {
                let other = below(&mut prng, length / 4096) * 4096;
                let (one, two) = (bytes[page..page + 4096].to_vec(), bytes[other..other + 4096].to_vec());
                bytes[page..page + 4096].copy_from_slice(&two);
                bytes[other..other + 4096].copy_from_slice(&one);
                "two pages in each other's place"
            }
        };
        let space = RESERVED[seed / 5 % 2];
        let what = format!("seed {seed}: {what}, {space} bytes reserved");
        let bytes = reserved(&bytes, space);
        let disk = with_log(&bytes);
        match open(&disk, ONE_SEGMENT) {
            Err(error) => check_refusal(&disk, &bytes, &error, &what),
            Ok(opened) => {
                let entries = story.check(&opened, &what);
                let recovered = &opened.recovered;
                if recovered.hard.standing == Standing::Whole && recovered.gaps.is_empty() {
                    // At most a torn end is gone, as after a cut.
                    let prefix = story.history.get(..entries.len());
                    let truncated_later = entries.last().is_some_and(|last| !story.history.contains(last));
                    assert!(prefix == Some(&entries[..]) || truncated_later, "{what}: entries are missing");
                }
            }
        }
    });
}
