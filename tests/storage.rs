//! Storage on a simulated disk: what survives cuts, flipped bits, crashes at every call, and random lives.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)] // A test that can't go on has failed.

mod log_model;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use lastword::chat::{Slice, Table};
use lastword::message::HardState;
use lastword::message::{
    CheckpointResult, CheckpointStep, Installed, Position, ReadResult, Standing, View, Write,
};
use lastword::prng::Prng;
use lastword::row::RowWriter;
use lastword::storage::{Disk, MemoryDisk, Opened, StorageError, open_with, read_diverged};
use lastword::types::{Incarnation, LogIndex, ServerId, ViewNumber};
use log_model::{Known, LIVE, hard, read_all, rows_of, servers, take_checkpoint, view};

const SEGMENT_BYTES: u64 = 3000;

fn try_open(disk: &MemoryDisk) -> Result<Opened<MemoryDisk>, StorageError> {
    log_model::open(disk, SEGMENT_BYTES)
}

/// What a directory should hold.
#[derive(Clone, Debug, Default, PartialEq)]
struct Model {
    last: Position,
    hard: HardState,
    view: View,
}

impl Model {
    fn apply(&mut self, known: &Known, write: &Write) {
        match write {
            Write::Append(entries) => self.last = entries.last().unwrap().position(),
            Write::Truncate { after } => self.last = known.position_at(self.last, *after),
            Write::HardState(hard) => self.hard = hard.clone(),
            Write::View(view) => self.view = view.clone(),
            Write::Commit(_) | Write::Forget { .. } => {}
        }
    }
}

/// Checks that what was recovered fits together, and gives what it amounts to.
fn check(opened: &Opened<MemoryDisk>, known: &Known) -> Model {
    let recovered = &opened.recovered;
    let entries = read_all(opened);
    for entry in &entries {
        let (_, made) = &known.entries[&(entry.index.0, entry.chain)];
        assert_eq!(made, entry, "a wrong row was recovered");
    }
    let state = known.state(recovered.applied);
    assert_eq!(state.digest(), recovered.state.digest(), "a wrong state was recovered");
    assert_eq!(recovered.state.index(), recovered.applied.index);
    let mut last = recovered.applied;
    for entry in &recovered.tail {
        assert_eq!(entry.index, last.index.next());
        assert!(known.entries.contains_key(&(entry.index.0, entry.chain)), "a wrong row is in the tail");
        last = entry.position();
    }
    if recovered.gaps.is_empty() {
        assert_eq!(last, opened.log.last(), "the tail does not reach the log's end");
        assert_eq!(entries.last().map_or(opened.log.base(), |entry| entry.position()), last);
        assert_eq!(recovered.views, known.views(last), "a wrong table of views");
    }
    Model { last, hard: recovered.hard.clone(), view: recovered.view.clone() }
}

fn fresh(seed: u64) -> (MemoryDisk, Opened<MemoryDisk>) {
    let disk = MemoryDisk::new(seed);
    let opened = try_open(&disk).unwrap();
    (disk, opened)
}

fn append(opened: &mut Opened<MemoryDisk>, known: &mut Known, counter: u32, count: u64) {
    for _ in 0..count {
        let entry = known.make(opened.log.last(), counter, opened.log.last().index.0);
        opened.log.write(&Write::Append(vec![entry])).unwrap();
    }
}

/// A log of 20 rows in one segment: the segment's head, hard states, a view, entries, hints, a truncation.
fn log_of_20_rows() -> (Known, Vec<u8>, Model) {
    let mut known = Known::default();
    let (disk, mut opened) = fresh(1);
    opened.log.write(&Write::HardState(hard(1, 0))).unwrap();
    opened.log.write(&Write::View(View { number: view(1), members: vec![] })).unwrap();
    append(&mut opened, &mut known, 1, 6);
    opened.log.write(&Write::Commit(LogIndex(4))).unwrap();
    opened.log.write(&Write::Truncate { after: LogIndex(5) }).unwrap();
    opened.log.write(&Write::HardState(hard(1, 2))).unwrap();
    append(&mut opened, &mut known, 2, 4);
    opened.log.sync().unwrap();
    let bytes = rows_of(&disk);
    assert_eq!(bytes.iter().filter(|&&b| b == b'\n').count(), 21, "a header and 20 rows");
    let opened = try_open(&disk.restart()).unwrap();
    let model = check(&opened, &known);
    assert_eq!(model.last.index, LogIndex(9));
    (known, bytes, model)
}

#[test]
fn every_cut_of_a_log_of_20_rows_recovers_a_prefix_and_never_a_wrong_row() {
    let (known, bytes, whole) = log_of_20_rows();
    for cut in 0..bytes.len() {
        let disk = MemoryDisk::new(1);
        disk.put(LIVE, &bytes[..cut]);
        let rows = bytes[..cut].iter().filter(|&&b| b == b'\n').count();
        match try_open(&disk) {
            Ok(opened) => {
                let model = check(&opened, &known);
                assert!(opened.recovered.gaps.is_empty());
                let entries = [1, 2, 3, 4, 5, 6, 6, 5, 5, 6, 7, 8, 9];
                let expected = rows.checked_sub(9).map_or(0, |row| entries[row.min(12)]);
                assert_eq!(model.last.index.0, expected, "cut at byte {cut}");
                assert_eq!(model.hard.standing, if rows >= 7 { Standing::Whole } else { Standing::Partial });
                assert_eq!(model, check(&try_open(&disk.restart()).unwrap(), &known));
            }
            Err(error) => {
                assert!(rows < 4, "a cut at byte {cut} was refused: {error}");
                assert_eq!(disk.bytes(LIVE).unwrap(), &bytes[..cut], "a refused log was changed");
            }
        }
    }
    assert_eq!(whole.hard.standing, Standing::Whole);
}

#[test]
fn every_flipped_bit_of_a_log_of_20_rows_is_noticed_and_never_gives_a_wrong_row() {
    let (known, bytes, whole) = log_of_20_rows();
    let (mut refused, mut gaps, mut doubted, mut harmless) = (0, 0, 0, 0);
    for at in 0..bytes.len() * 8 {
        let disk = MemoryDisk::new(1);
        disk.put(LIVE, &bytes);
        disk.flip_bit(LIVE, at / 8, u32::try_from(at % 8).unwrap());
        let damaged = disk.bytes(LIVE).unwrap();
        let Ok(opened) = try_open(&disk) else {
            assert_eq!(disk.bytes(LIVE).unwrap(), damaged, "a refused log was changed");
            refused += 1;
            continue;
        };
        let model = check(&opened, &known);
        assert!(!opened.notices.is_empty(), "bit {at} was flipped unnoticed");
        if !opened.recovered.gaps.is_empty() {
            gaps += 1;
        } else if model.hard.standing != Standing::Whole {
            doubted += 1;
        } else {
            assert_eq!(model, whole, "bit {at} lost something, and the disk is said to be whole");
            harmless += 1;
        }
        if opened.recovered.gaps.is_empty() {
            let again = check(&try_open(&disk.restart()).unwrap(), &known);
            assert_eq!(again.last, model.last);
        }
    }
    assert!(refused > 0 && gaps > 0 && doubted > 0, "{refused} {gaps} {doubted} {harmless}");
}

#[test]
fn rotten_rows_are_filled_in_from_a_peer_and_what_follows_can_be_read_again() {
    let mut known = Known::default();
    let (disk, mut opened) = fresh(1);
    opened.log.write(&Write::HardState(hard(1, 0))).unwrap();
    append(&mut opened, &mut known, 1, 60);
    opened.log.write(&Write::Commit(LogIndex(50))).unwrap();
    opened.log.sync().unwrap();
    append(&mut opened, &mut known, 1, 10);
    opened.log.sync().unwrap();
    let history = known.history(opened.log.last());
    let sealed = disk.files().into_iter().find(|name| name.starts_with("server_log-")).unwrap();
    let lost = 7;
    rot_row_with(&disk, &history[lost].bytes);
    rot_row_with(&disk, &history[lost + 1].bytes);
    let damaged = disk.bytes(&sealed).unwrap();
    let mut opened = try_open(&disk.restart()).unwrap();
    let after = history[lost - 1].position();
    assert_eq!(opened.recovered.gaps, [(after, LogIndex(lost as u64 + 2))]);
    assert_eq!(opened.recovered.hard.standing, Standing::Whole, "only entries are lost");
    assert_eq!(disk.bytes(&sealed).unwrap(), damaged);
    assert!(opened.notices[0].starts_with(&format!("{sealed}, line 15: found crc ")), "{:?}", opened.notices);
    assert_eq!(read_all(&opened).len(), 70 - 3, "nothing vouches for the row behind the gap either");
    let beyond = LogIndex(lost as u64 + 5);
    assert_eq!(opened.reader.read(beyond, LogIndex(u64::MAX)).unwrap().1.len(), 70 - beyond.0 as usize + 1);

    let wrong = known.make(after, 9, 9);
    let wrong = [wrong.clone(), known.make(wrong.position(), 9, 9)];
    assert!(opened.log.repair(after, &wrong).is_err(), "entries that don't fit were taken");
    opened.log.repair(after, &history[lost..lost + 2]).unwrap();
    assert_eq!(read_all(&opened), history);
    assert!(disk.files().iter().any(|name| name.starts_with("rotten-")), "the damaged file is gone");
    append(&mut opened, &mut known, 1, 1);
    opened.log.sync().unwrap();
    let opened = try_open(&disk.crash()).unwrap();
    assert!(opened.recovered.gaps.is_empty() && opened.notices.is_empty(), "{:?}", opened.notices);
    assert_eq!(check(&opened, &known).last.index, LogIndex(71));
}

/// Rows whose checksums are right, and that no server has written: behind a rotten row nothing tells where they belong.
#[test]
fn a_row_with_an_index_that_no_entry_has_is_a_damaged_one() {
    for index in [0, u64::MAX] {
        let mut known = Known::default();
        let (disk, mut opened) = fresh(1);
        append(&mut opened, &mut known, 1, 9);
        opened.log.sync().unwrap();
        let history = known.history(opened.log.last());
        rot_row_with(&disk, &history[8].bytes);
        let mut live = rows_of(&disk);
        let rows = String::from_utf8_lossy(&live).lines().count() as u64;
        let mut row = RowWriter::new();
        row.number(rows);
        row.encoded(format!("closed,{index},0.0,,,,,,,,").as_bytes());
        row.checksum(0);
        row.end();
        live.extend(row.take());
        disk.put(LIVE, &live);
        let opened = try_open(&disk.restart()).unwrap();
        let expected = format!("{index}\" in field 3, expected the index of an entry, from 1 on");
        assert!(opened.notices.iter().any(|notice| notice.contains(&expected)), "{:?}", opened.notices);
        assert_eq!(read_all(&opened), history[..8]);
    }
}

/// Flips a bit in the row that has this text, in the last segment that has one.
fn rot_row_with(disk: &MemoryDisk, text: &[u8]) {
    let place = |name: &String| {
        disk.bytes(name).unwrap().windows(text.len()).position(|window| window == text).map(|at| at + 2)
    };
    let mut names: Vec<_> = disk.files().into_iter().filter(|name| name.starts_with("server_log")).collect();
    names.sort_by_key(|name| (name == LIVE, name.clone()));
    let (name, at) =
        names.iter().rev().find_map(|name| Some((name, place(name)?))).expect("the row is there");
    disk.flip_bit(name, at, 0);
}

/// Writes hard states until the live segment is sealed.
fn seal(disk: &MemoryDisk, opened: &mut Opened<MemoryDisk>) {
    let sealed =
        |disk: &MemoryDisk| disk.files().iter().filter(|name| name.starts_with("server_log-")).count();
    let before = sealed(disk);
    while sealed(disk) == before {
        opened.log.write(&Write::HardState(hard(1, 0))).unwrap();
        opened.log.sync().unwrap();
    }
}

#[test]
fn an_entry_that_has_rotted_in_two_segments_is_filled_in_where_it_counts() {
    let mut known = Known::default();
    let (disk, mut opened) = fresh(1);
    append(&mut opened, &mut known, 1, 1);
    opened.log.write(&Write::HardState(hard(1, 0))).unwrap();
    opened.log.sync().unwrap();
    let first = known.history(opened.log.last())[0].clone();
    rot_row_with(&disk, &first.bytes);
    let mut opened = try_open(&disk.restart()).unwrap();
    assert_eq!(opened.log.last(), Position::default(), "nothing shows that there was an entry");
    seal(&disk, &mut opened);
    append(&mut opened, &mut known, 1, 5);
    opened.log.sync().unwrap();
    let history = known.history(opened.log.last());
    assert_eq!(history[0].bytes, first.bytes);
    rot_row_with(&disk, &first.bytes);
    let mut opened = try_open(&disk.restart()).unwrap();
    assert_eq!(opened.recovered.gaps, [(Position::default(), LogIndex(1))]);
    opened.log.repair(Position::default(), &history[..1]).unwrap();
    assert_eq!(read_all(&opened), history);
    let opened = try_open(&disk.crash()).unwrap();
    assert!(opened.recovered.gaps.is_empty(), "{:?}", opened.notices);
    assert_eq!(read_all(&opened), history);
}

/// The last row of a segment and the first ones of the next: each hole is in its own file.
#[test]
fn damage_that_goes_on_in_the_next_segment_is_two_holes() {
    for sealed_twice in [false, true] {
        let mut known = Known::default();
        let (disk, mut opened) = fresh(1);
        opened.log.write(&Write::HardState(hard(1, 0))).unwrap();
        append(&mut opened, &mut known, 1, 5);
        let sealed = |disk: &MemoryDisk| -> Vec<String> {
            disk.files().into_iter().filter(|name| name.starts_with("server_log-")).collect()
        };
        while sealed(&disk).is_empty() {
            append(&mut opened, &mut known, 1, 1);
            opened.log.sync().unwrap();
        }
        append(&mut opened, &mut known, 1, 5);
        opened.log.sync().unwrap();
        if sealed_twice {
            seal(&disk, &mut opened);
        }
        let history = known.history(opened.log.last());
        let files = sealed(&disk);
        let last_row = |name: &String| {
            let bytes = disk.bytes(name).unwrap();
            bytes[..bytes.len() - 1].iter().rposition(|byte| *byte == b'\n').unwrap() + 1
        };
        let (first, second) = (&files[0], files.get(1).map_or(LIVE, String::as_str));
        let text = String::from_utf8(disk.bytes(first).unwrap()[last_row(first)..].to_vec()).unwrap();
        let lost: u64 = text.split(',').nth(2).unwrap().parse().expect("an entry's index");
        disk.flip_bit(first, last_row(first), 1);
        let head = disk.bytes(second).unwrap().iter().position(|byte| *byte == b'\n').unwrap() + 1;
        disk.flip_bit(second, head, 1);
        let mut opened = try_open(&disk.restart()).unwrap();
        let before = usize::try_from(lost).unwrap() - 1;
        let after = history[before - 1].position();
        assert_eq!(opened.recovered.gaps, [(after, LogIndex(lost))], "{:?}", opened.notices);
        opened.log.repair(after, &history[before..=before]).unwrap();
        assert_eq!(read_all(&opened), history);
        let opened = try_open(&disk.crash()).unwrap();
        assert!(opened.recovered.gaps.is_empty(), "{:?}", opened.notices);
        assert_eq!(read_all(&opened), history);
    }
}

/// Seed 0x20b953b68c2b8d6a: the next segment begins right after the truncation.
#[test]
fn an_entry_that_rotted_and_was_the_last_before_a_segments_end_is_all_that_is_lost() {
    let mut known = Known::default();
    let (disk, mut opened) = fresh(1);
    opened.log.write(&Write::HardState(hard(1, 0))).unwrap();
    append(&mut opened, &mut known, 1, 4);
    let last = opened.log.last();
    let lost = known.history(last)[3].clone();
    append(&mut opened, &mut known, 1, 1);
    opened.log.write(&Write::Truncate { after: last.index }).unwrap();
    seal(&disk, &mut opened);
    append(&mut opened, &mut known, 2, 3);
    opened.log.sync().unwrap();
    let history = known.history(opened.log.last());
    let sealed = disk.files().into_iter().find(|name| name.starts_with("server_log-")).unwrap();
    let bytes = disk.bytes(&sealed).unwrap();
    let at = bytes.windows(lost.bytes.len()).position(|window| window == lost.bytes).unwrap();
    disk.flip_bit(&sealed, at + 2, 0);
    let mut opened = try_open(&disk.restart()).unwrap();
    let after = history[2].position();
    assert_eq!(opened.recovered.gaps, [(after, last.index)], "{:?}", opened.notices);
    opened.log.repair(after, &history[3..4]).unwrap();
    assert_eq!(read_all(&opened), history);
}

#[test]
fn entries_that_rotted_before_and_after_a_truncation_are_filled_in_behind_it() {
    let mut known = Known::default();
    let (disk, mut opened) = fresh(1);
    opened.log.write(&Write::HardState(hard(1, 0))).unwrap();
    append(&mut opened, &mut known, 1, 5);
    opened.log.sync().unwrap();
    let fifth = known.history(opened.log.last())[4].clone();
    opened.log.write(&Write::Truncate { after: LogIndex(4) }).unwrap();
    append(&mut opened, &mut known, 2, 3);
    opened.log.sync().unwrap();
    let history = known.history(opened.log.last());
    rot_row_with(&disk, &fifth.bytes);
    rot_row_with(&disk, &history[4].bytes);
    let mut opened = try_open(&disk.restart()).unwrap();
    assert_eq!(opened.recovered.gaps, [(history[3].position(), LogIndex(5))]);
    opened.log.repair(history[3].position(), &history[4..5]).unwrap();
    assert_eq!(read_all(&opened), history);
    let opened = try_open(&disk.crash()).unwrap();
    assert!(opened.recovered.gaps.is_empty() && opened.notices.is_empty(), "{:?}", opened.notices);
}

#[test]
fn a_truncation_that_rotted_at_the_end_of_a_segment_is_told_from_the_next_ones_anchor() {
    let mut known = Known::default();
    let (disk, mut opened) = fresh(1);
    append(&mut opened, &mut known, 1, 6);
    opened.log.write(&Write::Truncate { after: LogIndex(3) }).unwrap();
    seal(&disk, &mut opened);
    append(&mut opened, &mut known, 2, 2);
    opened.log.sync().unwrap();
    let history = known.history(opened.log.last());
    rot_row_with(&disk, b",truncate,3,");
    let opened = try_open(&disk.restart()).unwrap();
    assert_eq!(opened.log.last(), history[4].position());
    assert_eq!(read_all(&opened), history);
    assert_eq!(opened.recovered.tail, history);
}

/// V6: each start is a life of its own, and what it does not forget anew is remembered since the start after the loss.
#[test]
fn a_control_row_that_has_rotted_is_forgotten_once_and_not_again_at_each_start() {
    for at_the_end in [false, true] {
        let mut known = Known::default();
        let (disk, mut opened) = fresh(1);
        opened.log.write(&Write::View(View { number: view(1), members: vec![] })).unwrap();
        opened.log.write(&Write::HardState(hard(1, 77))).unwrap();
        if !at_the_end {
            append(&mut opened, &mut known, 1, 4);
        }
        opened.log.write(&Write::HardState(hard(1, 0))).unwrap();
        opened.log.sync().unwrap();
        rot_row_with(&disk, b"outstanding=77");
        let found = try_open(&disk.restart()).unwrap();
        let lost = found.recovered.hard;
        assert_eq!((lost.standing, lost.born), (Standing::Partial, Incarnation(lost.incarnation.0 + 1)));
        for life in 2..5 {
            let mut opened = try_open(&disk.restart()).unwrap();
            let hard = HardState { incarnation: Incarnation(life), ..opened.recovered.hard.clone() };
            assert_eq!((hard.standing, hard.born), (Standing::Partial, lost.born), "life {life}");
            opened.log.write(&Write::HardState(hard)).unwrap();
            opened.log.sync().unwrap();
        }
    }
}

#[test]
fn a_damaged_last_row_makes_the_disk_suspect_and_stays_so() {
    let (known, bytes, _) = log_of_20_rows();
    let disk = MemoryDisk::new(1);
    disk.put(LIVE, &bytes);
    disk.flip_bit(LIVE, bytes.len() - 30, 2);
    for _ in 0..2 {
        let opened = try_open(&disk.restart()).unwrap();
        let model = check(&opened, &known);
        assert_eq!((model.last.index, model.hard.standing), (LogIndex(8), Standing::Suspect));
    }
}

#[test]
fn foreign_directories_and_wrong_headers_are_refused_and_left_alone() {
    let (_, bytes, _) = log_of_20_rows();
    let disk = MemoryDisk::new(1);
    disk.put(LIVE, &bytes);
    let message = |server, servers: &[String]| {
        let opened = open_with(disk.clone(), ServerId(server), servers, SEGMENT_BYTES, &mut |_| {});
        opened.unwrap_err().to_string()
    };
    assert_eq!(
        message(2, &servers()),
        "server_log.csv, line 17: found the data of server 1, expected those of server 2"
    );
    assert_eq!(
        message(1, &servers()[..1]),
        "server_log.csv, line 17: found the cluster list 127.0.0.1:1538,127.0.0.1:2538, expected 127.0.0.1:1538"
    );
    disk.flip_bit(LIVE, 0, 0);
    assert!(message(1, &servers()).starts_with("server_log.csv, line 1: found \"requence,"));
    assert_eq!(disk.bytes(LIVE).unwrap()[1..], bytes[1..]);
    assert_eq!(disk.files(), [LIVE]);
}

#[test]
fn a_log_that_begins_elsewhere_than_its_state_is_refused() {
    let (_, bytes, _) = log_of_20_rows();
    let mut lines: Vec<String> = String::from_utf8(bytes).unwrap().lines().map(str::to_owned).collect();
    let anchor = lines[1].rsplit_once(',').unwrap().0.replace("1,anchor,0,0.0,", "1,anchor,0,1.0,");
    lines[1] = format!("{anchor},{:08x}", crc32fast::hash(anchor.as_bytes()));
    let disk = MemoryDisk::new(1);
    disk.put(LIVE, (lines.join("\n") + "\n").as_bytes());
    assert_eq!(
        try_open(&disk).unwrap_err().to_string(),
        "server_log.csv: found a log that goes on after entry 0 of view 1.0, expected one that goes on after \
         entry 0 of view 0.0"
    );
}

/// Another server's checkpoint of `count` entries, as a stream in parts.
fn foreign_checkpoint(known: &mut Known, count: u64, salt: u64) -> (Position, Vec<u8>) {
    let mut position = Position::default();
    for _ in 0..count {
        position = known.make(position, 50, salt).position();
    }
    let (_, mut other) = fresh(salt);
    take_checkpoint(&mut other, known, position).unwrap();
    let mut stream = Vec::new();
    loop {
        let ReadResult::Checkpoint { total, bytes } =
            other.checkpoints.read(position.index, stream.len() as u64)
        else {
            panic!("a checkpoint can't be read")
        };
        stream.extend_from_slice(&bytes);
        if stream.len() as u64 == total {
            return (position, stream);
        }
    }
}

fn install(
    opened: &mut Opened<MemoryDisk>,
    position: Position,
    stream: &[u8],
) -> Result<Box<Installed>, String> {
    let index = position.index;
    for (at, part) in stream.chunks(700).enumerate() {
        let bytes = part.to_vec().into();
        let step = CheckpointStep::Receive { index, offset: at as u64 * 700, bytes };
        if let CheckpointResult::Failed(error) = opened.checkpoints.step(step) {
            return Err(error);
        }
    }
    match opened.checkpoints.step(CheckpointStep::Install { index }) {
        CheckpointResult::Installed(installed) => Ok(installed),
        CheckpointResult::Failed(error) => Err(error),
        other => panic!("{other:?}"),
    }
}

#[test]
fn two_generations_of_checkpoints_stay_and_the_older_one_stands_in_for_a_damaged_one() {
    let mut known = Known::default();
    let (disk, mut opened) = fresh(1);
    opened.log.write(&Write::HardState(hard(1, 0))).unwrap();
    append(&mut opened, &mut known, 1, 60);
    opened.log.write(&Write::Commit(LogIndex(60))).unwrap();
    opened.log.sync().unwrap();
    for index in [10, 20, 30] {
        let position = known.position_at(opened.log.last(), LogIndex(index));
        take_checkpoint(&mut opened, &known, position).unwrap();
    }
    assert_eq!(disk.list("checkpoints").unwrap(), ["000000000020", "000000000030", "current"]);
    assert_eq!(disk.read_link("user_table.csv").unwrap().unwrap(), "checkpoints/current/user_table.csv");
    let opened = try_open(&disk.restart()).unwrap();
    assert_eq!(opened.recovered.checkpoint, LogIndex(30));
    check(&opened, &known);
    let table = "checkpoints/000000000030/user_table.csv";
    let length = disk.bytes(table).unwrap().len();
    disk.flip_bit(table, length - 20, 1);
    let opened = try_open(&disk.restart()).unwrap();
    assert_eq!(opened.recovered.checkpoint, LogIndex(20));
    assert!(
        opened.notices[0].contains("000000000030/user_table.csv, line 13: found"),
        "{:?}",
        opened.notices
    );
    assert_eq!(check(&opened, &known).last.index, LogIndex(60));
    assert_eq!(disk.read_link("checkpoints/current").unwrap().unwrap(), "000000000020");
    assert!(disk.exists("checkpoints/rotten-000000000030").unwrap());
}

#[test]
fn a_checkpoint_of_thousands_of_rows_is_read_whole_and_names_the_line_that_has_rotted() {
    const ROWS: u64 = 4_000;
    let mut known = Known::default();
    let (disk, mut opened) = fresh(1);
    opened.log.write(&Write::HardState(hard(1, 0))).unwrap();
    append(&mut opened, &mut known, 1, ROWS);
    opened.log.write(&Write::Commit(LogIndex(ROWS))).unwrap();
    opened.log.sync().unwrap();
    let position = opened.log.last();
    take_checkpoint(&mut opened, &known, position).unwrap();
    let opened = try_open(&disk.restart()).unwrap();
    assert_eq!(opened.recovered.checkpoint, LogIndex(ROWS));
    check(&opened, &known);
    let table = "checkpoints/000000004000/queued_messages.csv";
    let bytes = disk.bytes(table).unwrap();
    let lines: Vec<usize> = (0..bytes.len()).filter(|&at| bytes[at] == b'\n').collect();
    disk.flip_bit(table, lines[lines.len() / 2] - 20, 1);
    let opened = try_open(&disk.restart()).unwrap();
    assert_eq!(opened.recovered.checkpoint, LogIndex::ZERO);
    let line = format!("queued_messages.csv, line {}: found", lines.len() / 2 + 1);
    assert!(opened.notices[0].contains(&line), "{line}: {:?}", opened.notices);
    check(&opened, &known);
}

#[test]
fn a_large_table_is_synced_while_it_is_written_and_a_sync_that_fails_gives_it_up() {
    const SLICE_BYTES: usize = 256 * 1024;
    const SLICES: u64 = 16;
    let (disk, mut opened) = fresh(1);
    let begin = || CheckpointStep::Begin { position: Position::default(), views: vec![], digest: [0; 32] };
    let rows =
        || CheckpointStep::Rows(Slice { table: Table::Queued, rows: vec![b'x'; SLICE_BYTES], count: 1 });
    let mut step = |step| opened.checkpoints.step(step);
    assert!(matches!(step(begin()), CheckpointResult::Ok));
    let before = disk.syncs();
    let syncs: Vec<u64> = (0..SLICES)
        .map(|_| {
            assert!(matches!(step(rows()), CheckpointResult::Ok));
            disk.syncs() - before
        })
        .collect();
    // Each time a mebibyte is full, and not for each slice.
    assert_eq!((syncs[2], syncs[3], syncs[6], syncs[7], syncs[15]), (0, 1, 1, 2, 4), "{syncs:?}");

    (0..3).for_each(|_| assert!(matches!(step(rows()), CheckpointResult::Ok)));
    // The write of the next slice, then the sync.
    disk.fail_at(disk.calls() + 2);
    let CheckpointResult::Failed(error) = step(rows()) else { panic!("a failed sync is passed over") };
    assert!(error.contains("sync") && error.contains("queued_messages.csv"), "{error}");
    assert!(!disk.exists("checkpoints/writing").unwrap());
    assert!(matches!(step(rows()), CheckpointResult::Failed(_)), "it was given up");
    assert!(matches!(step(begin()), CheckpointResult::Ok));
}

#[test]
fn a_view_whose_first_row_has_rotted_begins_where_the_checkpoint_says() {
    let mut known = Known::default();
    let (disk, mut opened) = fresh(1);
    opened.log.write(&Write::HardState(hard(1, 0))).unwrap();
    append(&mut opened, &mut known, 1, 5);
    append(&mut opened, &mut known, 2, 5);
    opened.log.write(&Write::Commit(LogIndex(10))).unwrap();
    opened.log.sync().unwrap();
    let last = opened.log.last();
    take_checkpoint(&mut opened, &known, known.position_at(last, LogIndex(8))).unwrap();
    let (before, first) = (&known.history(last)[4], &known.history(last)[5]);
    rot_row_with(&disk, &first.bytes);
    let opened = try_open(&disk.restart()).unwrap();
    assert_eq!(opened.recovered.gaps, [(before.position(), first.index)]);
    assert_eq!(opened.recovered.views, known.views(last));
}

/// The checkpoint says what comes before the first entry after the gap.
#[test]
fn entries_after_a_gap_that_ends_with_the_checkpoint_are_read() {
    let mut known = Known::default();
    let (disk, mut opened) = fresh(1);
    opened.log.write(&Write::HardState(hard(1, 0))).unwrap();
    append(&mut opened, &mut known, 1, 10);
    opened.log.write(&Write::Commit(LogIndex(10))).unwrap();
    opened.log.sync().unwrap();
    let last = opened.log.last();
    take_checkpoint(&mut opened, &known, known.position_at(last, LogIndex(8))).unwrap();
    let history = known.history(last);
    rot_row_with(&disk, &history[7].bytes);
    let opened = try_open(&disk.restart()).unwrap();
    assert_eq!(opened.recovered.gaps, [(history[6].position(), LogIndex(8))]);
    assert_eq!(opened.recovered.applied.index, LogIndex(10));
    assert_eq!(opened.reader.read(LogIndex(9), LogIndex(10)).unwrap().1, history[8..]);
}

#[test]
fn a_log_that_was_cut_in_front_survives_damage_to_its_anchor() {
    let mut known = Known::default();
    let (disk, mut opened) = fresh(1);
    opened.log.write(&Write::HardState(hard(1, 0))).unwrap();
    for _ in 0..12 {
        append(&mut opened, &mut known, 1, 5);
        opened.log.write(&Write::Commit(opened.log.last().index)).unwrap();
        opened.log.sync().unwrap();
    }
    let position = known.position_at(opened.log.last(), LogIndex(40));
    take_checkpoint(&mut opened, &known, position).unwrap();
    opened.log.cut(LogIndex(40)).unwrap();
    assert!(opened.log.base().index > LogIndex::ZERO);
    let first = disk.files().into_iter().find(|name| name.starts_with("server_log")).unwrap();
    let bytes = disk.bytes(&first).unwrap();
    let start = bytes.iter().position(|&b| b == b'\n').unwrap() + 1;
    for at in 0..20 {
        disk.put(&first, &bytes);
        disk.flip_bit(&first, start + at, 0);
        let opened = try_open(&disk.restart()).unwrap();
        assert_eq!(check(&opened, &known).last.index, LogIndex(60), "byte {at}");
    }
}

/// Entries of the first view that is left begin in the middle of it: where it began is told by the checkpoint.
#[test]
fn a_log_that_was_cut_in_front_survives_damage_to_its_views() {
    let mut known = Known::default();
    let (disk, mut opened) = fresh(1);
    opened.log.write(&Write::HardState(hard(1, 0))).unwrap();
    append(&mut opened, &mut known, 1, 5);
    for _ in 0..12 {
        append(&mut opened, &mut known, 2, 5);
        opened.log.write(&Write::Commit(opened.log.last().index)).unwrap();
        opened.log.sync().unwrap();
    }
    let position = known.position_at(opened.log.last(), LogIndex(50));
    take_checkpoint(&mut opened, &known, position).unwrap();
    opened.log.cut(LogIndex(40)).unwrap();
    assert!(opened.log.base().index > LogIndex(6));
    let first = disk.files().into_iter().find(|name| name.starts_with("server_log")).unwrap();
    let bytes = disk.bytes(&first).unwrap();
    let views = bytes.windows(7).position(|window| window == b",views,").unwrap();
    disk.flip_bit(&first, views + 1, 0);
    let opened = try_open(&disk.restart()).unwrap();
    assert_eq!(check(&opened, &known).last.index, LogIndex(65));
}

#[test]
fn a_received_checkpoint_with_any_flipped_bit_changes_nothing() {
    let mut known = Known::default();
    let (position, stream) = foreign_checkpoint(&mut known, 5, 77);
    let (disk, mut opened) = fresh(1);
    for bit in (0..stream.len() * 8).step_by(5) {
        let mut damaged = stream.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        assert!(install(&mut opened, position, &damaged).is_err(), "bit {bit} was flipped unnoticed");
    }
    assert_eq!(disk.list("checkpoints").unwrap(), Vec::<String>::new());
    let installed = install(&mut opened, position, &stream).unwrap();
    assert_eq!(installed.position, position);
    assert_eq!(installed.state.digest(), known.state(position).digest());
}

#[test]
fn a_full_disk_is_reported_as_such_and_leaves_whole_rows() {
    let mut known = Known::default();
    let (disk, mut opened) = fresh(1);
    append(&mut opened, &mut known, 1, 3);
    opened.log.sync().unwrap();
    disk.set_space(Some(disk.used_bytes() + 100));
    let (before, error) = loop {
        let before = rows_of(&disk);
        append(&mut opened, &mut known, 1, 3);
        if let Err(error) = opened.log.sync() {
            break (before, error);
        }
    };
    assert!(error.is_no_space());
    assert_eq!(disk.bytes(LIVE).unwrap(), before);
    disk.set_space(None);
    assert!(matches!(opened.log.sync(), Err(StorageError::Poisoned(_))), "a failed log was used again");
}

#[test]
fn truncated_entries_are_never_read_and_stay_in_a_file_of_their_own() {
    let mut known = Known::default();
    let (disk, mut opened) = fresh(1);
    append(&mut opened, &mut known, 1, 8);
    opened.log.sync().unwrap();
    let reader = opened.reader.clone();
    opened.log.write(&Write::Truncate { after: LogIndex(5) }).unwrap();
    assert_eq!(reader.read(LogIndex(5), LogIndex(9)).unwrap().1.len(), 1);
    assert!(reader.read(LogIndex(6), LogIndex(9)).unwrap().1.is_empty());
    append(&mut opened, &mut known, 2, 2);
    opened.log.sync().unwrap();
    let views: Vec<ViewNumber> = read_all(&opened).iter().map(|entry| entry.view).collect();
    assert_eq!(views, [1, 1, 1, 1, 1, 2, 2].map(view));
    let moved = disk.files().into_iter().find(|name| name.starts_with("diverged-5-1.1-")).unwrap();
    let moved = String::from_utf8(disk.bytes(&moved).unwrap()).unwrap();
    assert_eq!(moved.lines().count(), 4, "a header and three rows");
}

#[test]
fn rows_moved_aside_last_are_read_first_and_leave_their_fork_to_the_older_ones() {
    let mut known = Known::default();
    let (disk, mut opened) = fresh(1);
    append(&mut opened, &mut known, 1, 10);
    opened.log.write(&Write::Truncate { after: LogIndex(8) }).unwrap();
    append(&mut opened, &mut known, 2, 3);
    opened.log.write(&Write::Truncate { after: LogIndex(5) }).unwrap();
    opened.log.sync().unwrap();
    let mut forks = Vec::new();
    while let ReadResult::Diverged(Some(rows)) = read_diverged(&disk, None) {
        forks.push((rows.fork, rows.next.file.contains("-2.1-")));
        opened.log.write(&Write::Forget { file: rows.next.file }).unwrap();
    }
    assert_eq!(forks, [(LogIndex(5), true), (LogIndex(5), false)]);
}

#[test]
fn a_log_with_a_gap_goes_on_after_a_truncation_before_the_gap() {
    let mut known = Known::default();
    let (disk, mut opened) = fresh(1);
    opened.log.write(&Write::HardState(hard(1, 0))).unwrap();
    append(&mut opened, &mut known, 1, 9);
    opened.log.sync().unwrap();
    let history = known.history(opened.log.last());
    let bytes = disk.bytes(LIVE).unwrap();
    let fifth = history[4].bytes.clone();
    let at = bytes.windows(fifth.len()).position(|window| window == fifth).unwrap();
    disk.flip_bit(LIVE, at, 1);
    let mut opened = try_open(&disk.restart()).unwrap();
    assert_eq!(opened.recovered.gaps, [(history[3].position(), LogIndex(5))]);
    assert_eq!(opened.recovered.tail, history[..4]);
    opened.log.write(&Write::Truncate { after: LogIndex(4) }).unwrap();
    assert_eq!(opened.log.last(), history[3].position());
    append(&mut opened, &mut known, 2, 3);
    opened.log.sync().unwrap();
    assert_eq!(read_all(&opened).len(), 7);
    let moved = disk.files().into_iter().find(|name| name.starts_with("diverged-4-")).unwrap();
    assert_eq!(disk.bytes(&moved).unwrap().split(|&b| b == b'\n').count(), 1 + 5 + 1, "even the damaged row");
    let opened = try_open(&disk.crash()).unwrap();
    assert!(opened.recovered.gaps.is_empty());
    assert_eq!(check(&opened, &known).last.index, LogIndex(7));
}

#[test]
fn a_reader_on_another_thread_only_sees_logs_that_existed() {
    let mut known = Known::default();
    let (_, mut opened) = fresh(1);
    append(&mut opened, &mut known, 1, 20);
    opened.log.sync().unwrap();
    let reader = opened.reader.clone();
    let (stop, reads) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let reading = std::thread::spawn({
        let (stop, reads) = (Arc::clone(&stop), Arc::clone(&reads));
        move || {
            while !stop.load(Ordering::Relaxed) {
                let (mut previous, entries) = reader.read(LogIndex(8), LogIndex(u64::MAX)).unwrap();
                assert!(entries.len() >= 3, "entries that were never truncated are missing");
                for entry in entries {
                    assert_eq!(entry.chain, lastword::message::chain_after(previous.chain, &entry.bytes));
                    previous = entry.position();
                }
                reads.fetch_add(1, Ordering::Relaxed);
            }
        }
    });
    // On a busy machine the reader may be late.
    let mut round = 2;
    while round < 150 || (reads.load(Ordering::Relaxed) < 10 && !reading.is_finished()) {
        opened.log.write(&Write::Truncate { after: LogIndex(10 + u64::from(round) % 9) }).unwrap();
        append(&mut opened, &mut known, round, 10);
        opened.log.sync().unwrap();
        round += 1;
    }
    stop.store(true, Ordering::Relaxed);
    reading.join().unwrap();
}

/// Random lives of one directory: each ends with a crash at some call; what is found afterwards is what was synced and
/// a prefix of what was written since.
struct World {
    known: Known,
    disk: MemoryDisk,
    opened: Opened<MemoryDisk>,
    synced: Model,
    written: Vec<Write>,
    commit: LogIndex,
    checkpoint: LogIndex,
    prng: Prng,
    salt: u64,
    counts: BTreeMap<&'static str, u64>,
}

impl World {
    fn new(seed: u64) -> Self {
        let (disk, opened) = fresh(seed);
        Self {
            known: Known::default(),
            disk,
            opened,
            synced: Model::default(),
            written: Vec::new(),
            commit: LogIndex::ZERO,
            checkpoint: LogIndex::ZERO,
            prng: Prng::new(seed),
            salt: 0,
            counts: BTreeMap::new(),
        }
    }

    fn write(&mut self, write: Write) -> Result<(), String> {
        if let Write::Append(entries) = &write {
            self.written.extend(entries.iter().map(|entry| Write::Append(vec![Arc::clone(entry)])));
        } else {
            self.written.push(write.clone());
        }
        self.opened.log.write(&write).map_err(|error| error.to_string())
    }

    fn sync(&mut self) -> Result<(), String> {
        self.opened.log.sync().map_err(|error| error.to_string())?;
        for write in self.written.drain(..) {
            self.synced.apply(&self.known, &write);
        }
        Ok(())
    }

    fn step(&mut self, installed: &mut Option<Position>) -> Result<(), String> {
        let last = self.opened.log.last();
        let kind = match self.prng.below(100) {
            0..35 => "append",
            35..65 => "sync",
            65..72 => "hard state",
            72..76 => "view",
            76..84 => "commit",
            84..90 => "truncate",
            90..95 => "checkpoint",
            95..98 => "cut",
            _ => "install",
        };
        *self.counts.entry(kind).or_default() += 1;
        self.salt += 1;
        let salt = self.salt;
        match kind {
            "append" => {
                let (mut at, mut entries) = (last, Vec::new());
                for _ in 0..1 + self.prng.below(5) {
                    let counter = at.view.counter.max(1) + u32::from(self.prng.chance(1, 8));
                    let entry = self.known.make(at, counter, salt);
                    at = entry.position();
                    entries.push(entry);
                }
                self.write(Write::Append(entries))
            }
            "sync" => self.sync(),
            "hard state" => self.write(Write::HardState(hard(u32::try_from(salt).unwrap(), 1))),
            "view" => {
                let number = view(u32::try_from(salt).unwrap());
                self.write(Write::View(View { number, members: vec![] }))
            }
            "commit" => {
                let ahead = self.commit.distance_to(last.index);
                self.commit = LogIndex(self.commit.0 + self.prng.below(ahead + 1));
                self.write(Write::Commit(self.commit))
            }
            "truncate" => {
                let floor = self.checkpoint.max(self.opened.log.base().index);
                let after = LogIndex(floor.0 + self.prng.below(floor.distance_to(last.index) + 1));
                self.commit = self.commit.min(after);
                self.write(Write::Truncate { after })
            }
            "checkpoint" => {
                self.sync()?;
                if self.commit <= self.checkpoint {
                    return Ok(());
                }
                let position = self.known.position_at(self.opened.log.last(), self.commit);
                take_checkpoint(&mut self.opened, &self.known, position)?;
                self.checkpoint = self.commit;
                Ok(())
            }
            "cut" => {
                // Below the older of two checkpoints (T3); there may be one only.
                let names = self.disk.list("checkpoints").unwrap();
                let older = names.iter().filter_map(|name| name.split('-').next()?.parse::<u64>().ok()).min();
                let two = names.iter().filter(|name| name.starts_with('0')).count() == 2;
                let through = LogIndex(older.filter(|_| two).unwrap_or(0));
                self.opened.log.cut(through).map_err(|error| error.to_string())
            }
            _ => {
                self.sync()?;
                let count = self.opened.log.last().index.0.max(2) + 1 + self.prng.below(5);
                let (position, stream) = foreign_checkpoint(&mut self.known, count, salt);
                *installed = Some(position);
                let found = install(&mut self.opened, position, &stream)?;
                self.opened.log.restart_after(&found).map_err(|error| error.to_string())?;
                *installed = None;
                self.synced.last = position;
                self.commit = position.index;
                self.checkpoint = position.index;
                Ok(())
            }
        }
    }

    /// One life: a few steps, a crash at some call, and recovery, which itself may crash.
    fn live(&mut self, what: &str) {
        self.disk.fail_from(self.disk.calls() + 1 + self.prng.below(120));
        let mut installed = None;
        while self.step(&mut installed).is_ok() {}
        self.disk = self.disk.crash();
        if self.prng.chance(1, 3) {
            self.disk.fail_from(self.disk.calls() + 1 + self.prng.below(12));
            let _ = try_open(&self.disk);
            self.disk = self.disk.crash();
        }
        self.opened = try_open(&self.disk).unwrap_or_else(|error| panic!("{what}: {error}"));
        let mut found = check(&self.opened, &self.known);
        assert!(self.opened.recovered.gaps.is_empty(), "{what}: a crash looks like rot");
        if found.hard.standing == Standing::Suspect {
            // A disk that has taken sectors in another order looks like one that has lost a write.
            *self.counts.entry("suspect").or_default() += 1;
            found.hard.standing = self.synced.hard.standing;
        }
        let mut possible = vec![self.synced.clone()];
        for write in self.written.drain(..) {
            let mut next = possible.last().unwrap().clone();
            next.apply(&self.known, &write);
            possible.push(next);
        }
        if let Some(last) = installed {
            possible.push(Model { last, ..possible.last().unwrap().clone() });
        }
        assert!(possible.contains(&found), "{what}: found {found:?}, expected one of {possible:?}");
        self.synced = found;
        self.commit = self.opened.recovered.applied.index;
        self.checkpoint = self.opened.recovered.checkpoint;
    }
}

#[test]
fn after_a_crash_at_any_call_there_is_what_was_synced_and_a_prefix_of_the_rest() {
    let mut counts: BTreeMap<&str, u64> = BTreeMap::new();
    for seed in 0..80 {
        let mut world = World::new(seed);
        for life in 0..12 {
            world.live(&format!("seed {seed}, life {life}"));
        }
        for (kind, count) in world.counts {
            *counts.entry(kind).or_default() += count;
        }
    }
    assert!(counts.remove("suspect").is_some_and(|count| count > 0), "no disk took sectors in another order");
    assert!(counts.len() == 9 && counts.values().all(|&count| count > 20), "{counts:?}");
}

#[test]
fn the_same_seed_leaves_the_same_bytes() {
    let run = || {
        let mut world = World::new(42);
        (0..6).for_each(|life| world.live(&format!("life {life}")));
        world.disk.files().iter().map(|name| (name.clone(), world.disk.bytes(name))).collect::<Vec<_>>()
    };
    assert_eq!(run(), run());
}
