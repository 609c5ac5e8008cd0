//! Every call to the disk fails once: each write, sync, rename, open, creation, removal, … of a run of 100 commands with
//! sealed segments, checkpoints, a cut, a truncation, hard states and views (D1-D3, D6).
//!
//! What was synced before is there afterwards, whatever the call, the error and the crash that follows. A log that has
//! failed is never written again (D2). A checkpoint that has failed changes nothing.
#![allow(clippy::unwrap_used, reason = "a test that can't go on fails")]

mod log_model;

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex};

use lastword::message::{Position, Write};
use lastword::storage::{Disk, DiskFile, MemoryDisk, MemoryFile, Opened, StorageError};
use lastword::types::LogIndex;

use log_model::{Known, hard, open, read_all, take_checkpoint, view_of};

const SEGMENT_BYTES: u64 = 2500;
const COMMANDS: u64 = 100;

/// How a call fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Failure {
    /// EIO: nothing is done.
    Io,
    /// ENOSPC: nothing is done.
    NoSpace,
    /// Of a write the first half is done, then the disk is full.
    Short,
}

impl Failure {
    fn error(self) -> io::Error {
        match self {
            Self::Io => io::Error::from_raw_os_error(5),
            Self::NoSpace | Self::Short => io::Error::from_raw_os_error(28),
        }
    }
}

/// What was called so far, and which call fails.
#[derive(Debug, Default)]
struct Calls {
    /// The names of all calls, in their order.
    names: Vec<&'static str>,
    fails: Option<(usize, Failure)>,
}

/// A disk of which one call fails: only that one, so that a retry would succeed.
#[derive(Clone, Debug)]
struct FaultyDisk {
    disk: MemoryDisk,
    calls: Arc<Mutex<Calls>>,
}

#[derive(Debug)]
struct FaultyFile {
    file: MemoryFile,
    calls: Arc<Mutex<Calls>>,
}

fn count(calls: &Mutex<Calls>, name: &'static str) -> Option<Failure> {
    let mut calls = calls.lock().unwrap();
    calls.names.push(name);
    let (number, failure) = calls.fails?;
    (calls.names.len() == number).then_some(failure)
}

fn call<T>(
    calls: &Mutex<Calls>,
    name: &'static str,
    perform: impl FnOnce() -> io::Result<T>,
) -> io::Result<T> {
    count(calls, name).map_or_else(perform, |failure| Err(failure.error()))
}

impl FaultyDisk {
    fn new(fails: Option<(usize, Failure)>) -> Self {
        Self { disk: MemoryDisk::new(1), calls: Arc::new(Mutex::new(Calls { names: Vec::new(), fails })) }
    }

    /// How many calls have changed something or tried to.
    fn changes(&self) -> usize {
        let names = &self.calls.lock().unwrap().names;
        names
            .iter()
            .filter(|name| !["open", "exists", "list", "read_link", "read", "len"].contains(name))
            .count()
    }
}

impl Disk for FaultyDisk {
    type File = FaultyFile;

    fn create(&self, path: &str) -> io::Result<FaultyFile> {
        let file = call(&self.calls, "create", || self.disk.create(path))?;
        Ok(FaultyFile { file, calls: Arc::clone(&self.calls) })
    }

    fn open(&self, path: &str) -> io::Result<FaultyFile> {
        let file = call(&self.calls, "open", || self.disk.open(path))?;
        Ok(FaultyFile { file, calls: Arc::clone(&self.calls) })
    }

    fn exists(&self, path: &str) -> io::Result<bool> {
        call(&self.calls, "exists", || self.disk.exists(path))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        call(&self.calls, "rename", || self.disk.rename(from, to))
    }

    fn remove_file(&self, path: &str) -> io::Result<()> {
        call(&self.calls, "remove_file", || self.disk.remove_file(path))
    }

    fn remove_dir_all(&self, path: &str) -> io::Result<()> {
        call(&self.calls, "remove_dir_all", || self.disk.remove_dir_all(path))
    }

    fn create_dir(&self, path: &str) -> io::Result<()> {
        call(&self.calls, "create_dir", || self.disk.create_dir(path))
    }

    fn list(&self, path: &str) -> io::Result<Vec<String>> {
        call(&self.calls, "list", || self.disk.list(path))
    }

    fn replace_link(&self, target: &str, link: &str) -> io::Result<()> {
        call(&self.calls, "replace_link", || self.disk.replace_link(target, link))
    }

    fn read_link(&self, link: &str) -> io::Result<Option<String>> {
        call(&self.calls, "read_link", || self.disk.read_link(link))
    }

    fn sync_dir(&self, path: &str) -> io::Result<()> {
        call(&self.calls, "sync_dir", || self.disk.sync_dir(path))
    }

    fn space_left(&self) -> io::Result<u64> {
        self.disk.space_left()
    }

    fn display(&self, path: &str) -> String {
        self.disk.display(path)
    }
}

impl DiskFile for FaultyFile {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        let end = self.file.len()?;
        self.write_at(end, bytes)
    }

    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let Some(failure) = count(&self.calls, "write") else { return self.file.write_at(offset, bytes) };
        if failure == Failure::Short {
            self.file.write_at(offset, &bytes[..bytes.len() / 2])?;
        }
        Err(failure.error())
    }

    fn sync(&mut self) -> io::Result<()> {
        call(&self.calls, "sync", || self.file.sync())
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        call(&self.calls, "read", || self.file.read_at(offset, buffer))
    }

    fn len(&self) -> io::Result<u64> {
        call(&self.calls, "len", || self.file.len())
    }

    fn truncate(&mut self, len: u64) -> io::Result<()> {
        call(&self.calls, "truncate", || self.file.truncate(len))
    }
}

/// What the server may have told others about its disk: it must be there after every crash.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Acknowledged {
    last: Position,
    incarnation: u32,
    view: u32,
}

/// A server's life with its disk: what it has acknowledged, and what it has done since.
struct Life {
    known: Known,
    acknowledged: Acknowledged,
    /// What is written and not yet synced.
    written: Acknowledged,
    /// A checkpoint has failed and the life went on.
    went_on: bool,
}

impl Life {
    fn new() -> Self {
        Self {
            known: Known::default(),
            acknowledged: Acknowledged::default(),
            written: Acknowledged::default(),
            went_on: false,
        }
    }

    fn sync(&mut self, opened: &mut Opened<FaultyDisk>) -> Result<(), StorageError> {
        opened.log.sync()?;
        self.acknowledged = self.written.clone();
        Ok(())
    }

    /// 100 commands, with everything around them that touches the disk.
    fn live(&mut self, opened: &mut Opened<FaultyDisk>) -> Result<(), StorageError> {
        let mut counter = 1;
        for command in 1..=COMMANDS {
            if command % 20 == 1 {
                self.written.incarnation = u32::try_from(command).unwrap();
                opened.log.write(&Write::HardState(hard(self.written.incarnation, counter)))?;
                self.sync(opened)?;
            }
            if command == 55 {
                // Another server's view: what was not committed gives way. Nothing above the hint was acknowledged
                // to a client, and the truncation is no failure.
                counter = 2;
                self.written.view = 2;
                let after = LogIndex(opened.log.last().index.0 - 2);
                self.acknowledged.last = self.known.position_at(self.acknowledged.last, after);
                opened.log.write(&Write::Truncate { after })?;
                opened.log.write(&Write::View(view_of(2)))?;
                self.written.last = opened.log.last();
            }
            let entry = self.known.make(opened.log.last(), counter, command);
            opened.log.write(&Write::Append(vec![entry]))?;
            self.written.last = opened.log.last();
            if command % 3 != 0 {
                self.sync(opened)?;
            }
            if command % 10 == 0 {
                let commit = LogIndex(self.acknowledged.last.index.0 - 4);
                opened.log.write(&Write::Commit(commit))?;
                self.sync(opened)?;
                let position = self.known.position_at(self.acknowledged.last, commit);
                if command % 30 == 0 && take_checkpoint(opened, &self.known, position).is_err() {
                    self.went_on = true;
                }
            }
            if command == 80 {
                let older = opened.recovered.checkpoint.max(LogIndex(20));
                if !self.went_on {
                    opened.log.cut(older)?;
                }
            }
        }
        self.sync(opened)
    }

    /// Everything that was acknowledged is there, and nothing that was never written.
    fn check(&self, disk: &MemoryDisk, what: &str) {
        let opened = open(disk, SEGMENT_BYTES).unwrap_or_else(|error| panic!("{what}: {error}"));
        let recovered = &opened.recovered;
        assert!(recovered.gaps.is_empty(), "{what}: a failed call looks like rot: {:?}", recovered.gaps);
        assert_eq!(recovered.state.digest(), self.known.state(recovered.applied).digest(), "{what}");
        for entry in read_all(&opened) {
            assert!(
                self.known.entries.get(&(entry.index.0, entry.chain)).is_some_and(|(_, made)| *made == entry),
                "{what}: a row that was never written: {entry:?}"
            );
        }
        let last = opened.log.last();
        let history = self.known.history(last);
        let acknowledged = self.acknowledged.last;
        let kept = acknowledged.index == LogIndex::ZERO
            || history.get(usize::try_from(acknowledged.index.0).unwrap() - 1).map(|entry| entry.position())
                == Some(acknowledged);
        assert!(kept, "{what}: entry {acknowledged:?} was acknowledged, and the log ends with {last:?}");
        assert!(
            recovered.hard.incarnation.0 >= self.acknowledged.incarnation,
            "{what}: {:?}",
            recovered.hard
        );
        assert!(recovered.view.number.counter >= self.acknowledged.view, "{what}: {:?}", recovered.view);
        if acknowledged.index > LogIndex::ZERO {
            let standing = recovered.hard.standing;
            assert_eq!(standing, lastword::message::Standing::Whole, "{what}: {:?}", opened.notices);
        }
    }
}

/// How many calls the run makes when none fails, by name; with the names in order.
fn calls_of_a_whole_run() -> (Vec<&'static str>, BTreeMap<&'static str, usize>) {
    let disk = FaultyDisk::new(None);
    let mut opened = open(&disk, SEGMENT_BYTES).unwrap();
    let mut life = Life::new();
    life.live(&mut opened).unwrap();
    assert!(!life.went_on);
    assert_eq!(life.acknowledged.last, opened.log.last());
    assert!(opened.log.base().index > LogIndex::ZERO, "nothing was cut");
    life.check(&disk.disk.crash(), "without a failure");
    let names = disk.calls.lock().unwrap().names.clone();
    let mut counts = BTreeMap::new();
    for name in &names {
        *counts.entry(*name).or_default() += 1;
    }
    (names, counts)
}

#[test]
fn whichever_call_of_100_commands_fails_nothing_acknowledged_is_lost_and_nothing_is_tried_again() {
    let (names, counts) = calls_of_a_whole_run();
    for name in ["create", "open", "write", "sync", "rename", "sync_dir", "replace_link", "create_dir"] {
        assert!(counts.get(name).is_some_and(|&count| count >= 3), "too few calls of {name}: {counts:?}");
    }
    let (mut ended, mut went_on) = (0, 0);
    for (at, name) in names.iter().enumerate() {
        for failure in [Failure::Io, Failure::NoSpace, Failure::Short] {
            if failure == Failure::Short && *name != "write" {
                continue;
            }
            let what = format!("call {} of {}, {name}, fails by {failure:?}", at + 1, names.len());
            let disk = FaultyDisk::new(Some((at + 1, failure)));
            let mut life = Life::new();
            let lived = open(&disk, SEGMENT_BYTES).and_then(|mut opened| {
                let lived = life.live(&mut opened);
                if lived.is_err() {
                    let before = disk.changes();
                    let more = opened.log.sync().unwrap_err();
                    assert!(matches!(more, StorageError::Poisoned(_)), "{what}: tried again: {more}");
                    let write = Write::Commit(LogIndex::ZERO);
                    assert!(opened.log.write(&write).is_err(), "{what}: written after a failure");
                    assert_eq!(disk.changes(), before, "{what}: the disk was touched after a failure");
                }
                lived
            });
            match &lived {
                Err(error) => {
                    ended += 1;
                    let full = failure != Failure::Io && error.is_no_space();
                    let told = error.to_string().contains("can't ");
                    assert!(told, "{what}: the message says neither what nor where: {error}");
                    assert!(full || failure == Failure::Io, "{what}: a full disk is not named: {error}");
                }
                Ok(()) => went_on += 1,
            }
            // The process ends and the page cache stays; or the power fails.
            if at % 2 == 0 {
                life.check(&disk.disk.crash(), &format!("{what}, then the power"));
            } else {
                life.check(&disk.disk.restart(), &format!("{what}, then a restart"));
            }
        }
    }
    assert!(ended > 500 && went_on > 50, "{ended} lives ended, {went_on} went on without a checkpoint");
}

#[test]
fn whichever_call_of_a_recovery_fails_the_next_recovery_finds_everything() {
    let disk = FaultyDisk::new(None);
    let mut life = Life::new();
    life.live(&mut open(&disk, SEGMENT_BYTES).unwrap()).unwrap();
    let whole = disk.disk;
    let mut failed = 0;
    for number in 1.. {
        let copy = MemoryDisk::new(number as u64);
        copy.create_dir("checkpoints").unwrap();
        for path in whole.files() {
            if let Some((directory, _)) = path.rsplit_once('/') {
                copy.create_dir(directory).unwrap();
            }
            copy.put(&path, &whole.bytes(&path).unwrap());
        }
        for link in ["checkpoints/current", "user_table.csv", "queued_messages.csv"] {
            copy.replace_link(&whole.read_link(link).unwrap().unwrap(), link).unwrap();
        }
        for directory in ["", "checkpoints"] {
            copy.sync_dir(directory).unwrap();
        }
        let fails = Some((number, if number % 2 == 0 { Failure::Io } else { Failure::Short }));
        let calls = Arc::new(Mutex::new(Calls { names: Vec::new(), fails }));
        let disk = FaultyDisk { disk: copy, calls };
        if open(&disk, SEGMENT_BYTES).is_ok() && disk.calls.lock().unwrap().names.len() < number {
            break;
        }
        failed += 1;
        life.check(&disk.disk.crash(), &format!("call {number} of a recovery failed"));
    }
    assert!(failed > 20, "a recovery has {failed} calls");
}
