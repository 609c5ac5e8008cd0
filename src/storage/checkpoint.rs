//! Checkpoints: the tables of the state as of one index, in a directory of their own (T5, D6).
//!
//! `checkpoints/INDEX/` holds a CSV file for each table and `checkpoint.csv`, which says as of which entry they are
//! and what each file must amount to. `checkpoints/current` is a link that one rename replaces, and `user_table.csv`,
//! `queued_messages.csv` and `conflicts.csv` in the data directory link through it. Two generations stay.

use std::sync::mpsc::sync_channel;

use bytes::Bytes;

use super::commit_log::{attempt, copy_part, write_file};
use super::disk::{Disk, DiskFile, Threads};
use super::error::StorageError;
use super::lines::{Lines, buffer_for};
use super::record::{format_views, parse_views};
use crate::chat::command::{Hex, parse_hash};
use crate::chat::{AtOnce as _, InTurn, Restore, Slice, State, Table, TableRow, Unfit};
use crate::config::BATCH_BYTES_MAX;
use crate::message::{CheckpointResult, CheckpointStep, Installed, Position, ReadResult, ViewTable};
use crate::row::{Fields, RowError, RowWriter, verify};
use crate::types::LogIndex;

/// The directory of all checkpoints.
pub(super) const DIRECTORY: &str = "checkpoints";
/// The link to the newest one.
pub(super) const CURRENT: &str = "checkpoints/current";
/// Where one is written before it has a name.
pub(super) const WRITING: &str = "checkpoints/writing";
/// Where another server's gathers.
pub(super) const RECEIVED: &str = "checkpoints/received";
/// What says what the tables must be.
const MANIFEST: &str = "checkpoint.csv";
const MANIFEST_HEADER: &str = "kind,index,view,chain,file,rows,bytes,crc32,text,crc\n";
const MANIFEST_FIELDS: usize = 9;
/// Tables that a person finds in the data directory itself.
const LINKED: [Table; 3] = [Table::Users, Table::Queued, Table::Conflicts];
/// How many rows one thread hands to the other at once, and how many times it may be ahead.
const BATCH_ROWS: usize = 1024;
const BATCHES_AHEAD_MAX: usize = 8;
/// From so many rows on a second thread is worth its while.
const ROWS_SMALL_MAX: u64 = 2048;
/// So many bytes of a table are synced at once, while more are to come: what the system has yet to write when the log is
/// synced beside it delays whoever waits for an acknowledgement.
const SYNCED_TOGETHER: u64 = 1024 * 1024;
/// How many rows lie between two reports of progress.
const PROGRESS_ROWS: u64 = 500_000;

/// What `checkpoint.csv` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Manifest {
    /// As of which entry the tables are.
    pub(super) position: Position,
    digest: [u8; 32],
    pub(super) views: ViewTable,
    tables: [TableFile; Table::ALL.len()],
}

/// What one table's file amounts to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct TableFile {
    rows: u64,
    bytes: u64,
    crc: u32,
}

impl Manifest {
    fn encode(&self) -> Vec<u8> {
        let mut row = RowWriter::new();
        row.plain("checkpoint");
        row.number(self.position.index.0);
        row.plain(self.position.view);
        row.plain(format_args!("{:08x}", self.position.chain));
        (0..4).for_each(|_| row.encoded(b""));
        row.plain(Hex(&self.digest));
        row.end();
        row.plain("views");
        (0..7).for_each(|_| row.encoded(b""));
        row.text(&format_views(&self.views));
        row.end();
        for (table, file) in Table::ALL.iter().zip(&self.tables) {
            row.plain("table");
            (0..3).for_each(|_| row.encoded(b""));
            row.plain(table.file_name());
            row.number(file.rows);
            row.number(file.bytes);
            row.plain(format_args!("{:08x}", file.crc));
            row.encoded(b"");
            row.end();
        }
        [MANIFEST_HEADER.as_bytes(), &row.take()].concat()
    }

    fn read<D: Disk>(disk: &D, directory: &str) -> Result<Self, StorageError> {
        let path = format!("{directory}/{MANIFEST}");
        let file = attempt(disk, "open", &path, disk.open(&path))?;
        let mut manifest = Self {
            position: Position::default(),
            digest: [0; 32],
            views: ViewTable::new(),
            tables: [TableFile::default(); Table::ALL.len()],
        };
        let mut count = 0;
        read_rows(disk, &path, &file, MANIFEST_HEADER, MANIFEST_FIELDS, |fields| {
            manifest.take(count, fields)?;
            count += 1;
            Ok(())
        })?;
        let expected = 2 + Table::ALL.len();
        if count == expected {
            return Ok(manifest);
        }
        let (found, expected) = (format!("{count} rows"), expected.to_string());
        Err(StorageError::File { path: disk.display(&path), found, expected })
    }

    fn take(&mut self, at: usize, fields: &Fields) -> Result<(), RowError> {
        const HASH: &str = "8 hexadecimal digits";
        let hash = |field| u32::from_str_radix(fields.raw(field), 16).map_err(|_| fields.error(field, HASH));
        let table = at.checked_sub(2).and_then(|at| Table::ALL.get(at));
        match (fields.raw(0), at, table) {
            ("checkpoint", 0, _) => {
                self.position = Position {
                    index: LogIndex(fields.value(1, "an index")?),
                    view: fields.value(2, "a view as COUNTER.SERVER")?,
                    chain: hash(3)?,
                };
                self.digest =
                    parse_hash(fields.raw(8)).ok_or_else(|| fields.error(8, "64 hexadecimal digits"))?;
            }
            ("views", 1, _) => {
                self.views =
                    parse_views(fields.raw(8)).ok_or_else(|| fields.error(8, "views as VIEW@INDEX"))?;
            }
            ("table", _, Some(table)) if fields.raw(4) == table.file_name() => {
                self.tables[at - 2] = TableFile {
                    rows: fields.value(5, "a number of rows")?,
                    bytes: fields.value(6, "a number of bytes")?,
                    crc: hash(7)?,
                };
            }
            _ => return Err(fields.error(0, "checkpoint, views, and the tables in their order")),
        }
        Ok(())
    }
}

/// Hands out the rows of a CSV file; gives its length and CRC-32.
fn read_rows<D: Disk>(
    disk: &D,
    path: &str,
    file: &D::File,
    header: &str,
    columns: usize,
    mut take: impl FnMut(&Fields) -> Result<(), RowError>,
) -> Result<TableFile, StorageError> {
    let length = attempt(disk, "read", path, file.len())?;
    let mut lines = Lines::new(file, 0, buffer_for(length + 1));
    let mut fields = Fields::new();
    let mut hasher = crc32fast::Hasher::new();
    let (mut number, mut bytes_read) = (0, 0);
    while let Some(at) = attempt(disk, "read", path, lines.next_line())? {
        number += 1;
        let bytes = lines.bytes(&at);
        hasher.update(bytes);
        if at.complete {
            hasher.update(b"\n");
        }
        bytes_read = at.end;
        if number == 1 {
            if bytes == header.trim_end().as_bytes() {
                continue;
            }
            return Err(StorageError::Line {
                path: disk.display(path),
                line: 1,
                found: format!("{:?}", String::from_utf8_lossy(bytes).chars().take(160).collect::<String>()),
                expected: format!("the header {:?}", header.trim_end()),
            });
        }
        let whole = if at.complete { Ok(bytes) } else { Err(RowError::NoChecksum) };
        let taken = whole.and_then(verify).and_then(|row| {
            fields.parse(row, columns)?;
            take(&fields)
        });
        taken.map_err(|error| StorageError::Row { path: disk.display(path), line: number, error })?;
    }
    Ok(TableFile { rows: u64::saturating_sub(number, 1), bytes: bytes_read, crc: hasher.finalize() })
}

fn header_of(table: Table) -> String {
    format!("{},crc\n", table.header().join(","))
}

/// Rows of one table, read and not yet compared with others.
struct Batch {
    table: Table,
    /// The line of the first one.
    line: u64,
    rows: Vec<TableRow>,
}

/// Reads a whole checkpoint, checking every row and every file: a thread reads the rows, this one puts them together; of a
/// small one it does both.
pub(super) fn load<D: Disk>(
    disk: &D,
    directory: &str,
    progress: &mut dyn FnMut(String),
) -> Result<(State, Manifest), StorageError> {
    let manifest = Manifest::read(disk, directory)?;
    let mut restore = Restore::new(manifest.position.index, manifest.digest);
    // If reading and adding fail, adding is about the earlier row.
    let state = if manifest.tables.iter().map(|table| table.rows).sum::<u64>() < ROWS_SMALL_MAX {
        let mut batches = Vec::new();
        let read = read_tables(disk, directory, &manifest, |batch| batches.push(batch));
        add_rows(disk, directory, batches, &mut restore, progress)?;
        read?;
        restore.finish(&InTurn)
    } else {
        let (send, batches) = sync_channel(BATCHES_AHEAD_MAX);
        // Nobody takes them any more after a row that does not fit; that is what will be told.
        let hand_out = move |batch| drop(send.send(batch));
        let (disk_read, manifest) = (disk.clone(), &manifest);
        let (read, added) = Threads.both(
            move || read_tables(&disk_read, directory, manifest, hand_out),
            || add_rows(disk, directory, batches, &mut restore, progress),
        );
        added?;
        read?;
        restore.finish(&Threads)
    };
    let state = state.map_err(|unfit| match unfit {
        Unfit::Row { table, row, error } => {
            let path = disk.display(&format!("{directory}/{}", table.file_name()));
            // The header is line 1.
            StorageError::Row { path, line: row + 1, error }
        }
        Unfit::Rows(found) => StorageError::File {
            path: disk.display(directory),
            found,
            expected: "tables that fit together".into(),
        },
    })?;
    Ok((state, manifest))
}

/// Reads all tables, and hands out their rows.
fn read_tables<D: Disk>(
    disk: &D,
    directory: &str,
    manifest: &Manifest,
    mut hand_out: impl FnMut(Batch),
) -> Result<(), StorageError> {
    for (&table, expected) in Table::ALL.iter().zip(&manifest.tables) {
        let path = format!("{directory}/{}", table.file_name());
        let file = attempt(disk, "open", &path, disk.open(&path))?;
        // The header is line 1.
        let mut batch = Batch { table, line: 2, rows: Vec::new() };
        let found = read_rows(disk, &path, &file, &header_of(table), table.header().len(), |fields| {
            batch.rows.push(TableRow::parse(table, fields)?);
            if batch.rows.len() == BATCH_ROWS {
                let next = Batch {
                    table,
                    line: batch.line + BATCH_ROWS as u64,
                    rows: Vec::with_capacity(BATCH_ROWS),
                };
                hand_out(std::mem::replace(&mut batch, next));
            }
            Ok(())
        })?;
        hand_out(batch);
        if found != *expected {
            let tell = |file: &TableFile| {
                format!("{} rows in {} bytes with crc {:08x}", file.rows, file.bytes, file.crc)
            };
            return Err(StorageError::File {
                path: disk.display(&path),
                found: tell(&found),
                expected: tell(expected),
            });
        }
    }
    Ok(())
}

fn add_rows<D: Disk>(
    disk: &D,
    directory: &str,
    batches: impl IntoIterator<Item = Batch>,
    restore: &mut Restore,
    progress: &mut dyn FnMut(String),
) -> Result<(), StorageError> {
    let mut count = 0u64;
    for Batch { table, line, rows } in batches {
        let before = count / PROGRESS_ROWS;
        count += rows.len() as u64;
        restore.add(rows).map_err(|(at, error)| {
            let path = disk.display(&format!("{directory}/{}", table.file_name()));
            StorageError::Row { path, line: line + at as u64, error }
        })?;
        if count / PROGRESS_ROWS > before {
            progress(format!("read {count} rows of the checkpoint so far"));
        }
    }
    Ok(())
}

/// A checkpoint's directory: `INDEX`, or `INDEX-N` if there was one of that index already.
fn parse_name(name: &str) -> Option<(u64, u64)> {
    let (index, copy) = name.split_once('-').unwrap_or((name, "1"));
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    (index.len() >= 12 && digits(index) && digits(copy)).then_some(())?;
    Some((index.parse().ok()?, copy.parse().ok()?))
}

/// A checkpoint that may be loaded.
pub(super) struct Candidate {
    pub(super) name: String,
    pub(super) current: bool,
    pub(super) manifest: Result<Manifest, StorageError>,
}

impl Candidate {
    pub(super) fn directory(&self) -> String {
        format!("{DIRECTORY}/{}", self.name)
    }
}

/// All checkpoints: the current one first, then the newest first.
pub(super) fn candidates<D: Disk>(disk: &D) -> Result<Vec<Candidate>, StorageError> {
    if !attempt(disk, "look for", DIRECTORY, disk.exists(DIRECTORY))? {
        return Ok(Vec::new());
    }
    let current = attempt(disk, "read", CURRENT, disk.read_link(CURRENT))?;
    let mut names = attempt(disk, "list", DIRECTORY, disk.list(DIRECTORY))?;
    names.retain(|name| parse_name(name).is_some());
    names.sort_by_key(|name| std::cmp::Reverse((current.as_ref() == Some(name), parse_name(name))));
    let candidate = |name: String| {
        let manifest = Manifest::read(disk, &format!("{DIRECTORY}/{name}"));
        Candidate { current: current.as_ref() == Some(&name), name, manifest }
    };
    Ok(names.into_iter().map(candidate).collect())
}

/// Makes a checkpoint the current one, by one rename.
pub(super) fn link<D: Disk>(disk: &D, name: &str) -> Result<(), StorageError> {
    attempt(disk, "replace the link", CURRENT, disk.replace_link(name, CURRENT))?;
    attempt(disk, "sync the directory", DIRECTORY, disk.sync_dir(DIRECTORY))?;
    let mut changed = false;
    for table in LINKED {
        let target = format!("{CURRENT}/{}", table.file_name());
        let found = attempt(disk, "read", table.file_name(), disk.read_link(table.file_name()))?;
        if found.as_ref() != Some(&target) {
            let linked = disk.replace_link(&target, table.file_name());
            attempt(disk, "replace the link", table.file_name(), linked)?;
            changed = true;
        }
    }
    if changed { attempt(disk, "sync the directory", "", disk.sync_dir("")) } else { Ok(()) }
}

/// Removes all checkpoints but those named.
pub(super) fn remove_others<D: Disk>(disk: &D, kept: &[String]) -> Result<(), StorageError> {
    for name in attempt(disk, "list", DIRECTORY, disk.list(DIRECTORY))? {
        if parse_name(&name).is_some() && !kept.contains(&name) {
            let path = format!("{DIRECTORY}/{name}");
            attempt(disk, "remove", &path, disk.remove_dir_all(&path))?;
        }
    }
    Ok(())
}

/// Writes, receives and installs checkpoints, beside the log: one thread's.
#[derive(Debug)]
pub struct Checkpoints<D: Disk> {
    disk: D,
    /// The directories that stay: the current one and the one before it.
    kept: Vec<String>,
    writing: Option<Writing<D::File>>,
    receiving: Option<Receiving<D::File>>,
}

#[derive(Debug)]
struct Writing<F> {
    manifest: Manifest,
    files: Vec<(F, crc32fast::Hasher)>,
}

#[derive(Debug)]
struct Receiving<F> {
    index: LogIndex,
    file: F,
    length: u64,
}

impl<D: Disk> Checkpoints<D> {
    pub(super) fn new(disk: D, kept: Vec<String>) -> Self {
        Self { disk, kept, writing: None, receiving: None }
    }

    /// Does one step. After [`CheckpointResult::Failed`] nothing has changed, and the checkpoint under way is given up.
    pub fn step(&mut self, step: CheckpointStep) -> CheckpointResult {
        let done = match step {
            CheckpointStep::Begin { position, views, digest } => self.begin(position, views, digest),
            CheckpointStep::Rows(slice) => self.add(&slice),
            CheckpointStep::Finish => self.finish(),
            CheckpointStep::Receive { index, offset, bytes } => self.receive(index, offset, &bytes),
            CheckpointStep::Install { index } => self.install(index),
            CheckpointStep::Abandon => self.abandon(),
        };
        done.unwrap_or_else(|error| {
            let _ = self.abandon();
            CheckpointResult::Failed(error.to_string())
        })
    }

    /// A part of a checkpoint, as one stream of bytes.
    #[must_use]
    pub fn read(&self, index: LogIndex, offset: u64) -> ReadResult {
        self.reader().read(index, offset)
    }

    /// A handle that reads on another thread.
    #[must_use]
    pub fn reader(&self) -> CheckpointReader<D> {
        CheckpointReader { disk: self.disk.clone() }
    }

    fn begin(
        &mut self,
        position: Position,
        views: ViewTable,
        digest: [u8; 32],
    ) -> Result<CheckpointResult, StorageError> {
        self.make_writing_directory()?;
        let mut tables = [TableFile::default(); Table::ALL.len()];
        let mut files = Vec::new();
        for (at, &table) in Table::ALL.iter().enumerate() {
            let path = format!("{WRITING}/{}", table.file_name());
            let header = header_of(table);
            let mut file = attempt(&self.disk, "create", &path, self.disk.create(&path))?;
            attempt(&self.disk, "write", &path, file.append(header.as_bytes()))?;
            let mut hasher = crc32fast::Hasher::new();
            hasher.update(header.as_bytes());
            tables[at].bytes = header.len() as u64;
            files.push((file, hasher));
        }
        self.writing = Some(Writing { manifest: Manifest { position, digest, views, tables }, files });
        Ok(CheckpointResult::Ok)
    }

    fn make_writing_directory(&mut self) -> Result<(), StorageError> {
        self.writing = None;
        if attempt(&self.disk, "look for", WRITING, self.disk.exists(WRITING))? {
            attempt(&self.disk, "remove", WRITING, self.disk.remove_dir_all(WRITING))?;
        }
        attempt(&self.disk, "create", WRITING, self.disk.create_dir(WRITING))
    }

    fn nothing_under_way(&self, expected: &str) -> StorageError {
        let (found, expected) = ("no checkpoint under way".to_owned(), expected.to_owned());
        StorageError::File { path: self.disk.display(DIRECTORY), found, expected }
    }

    fn add(&mut self, slice: &Slice) -> Result<CheckpointResult, StorageError> {
        let Some(writing) = &mut self.writing else {
            return Err(self.nothing_under_way("one to add rows to"));
        };
        let at = Table::ALL.iter().position(|&table| table == slice.table).expect("every table is listed");
        let path = format!("{WRITING}/{}", slice.table.file_name());
        let (file, hasher) = &mut writing.files[at];
        attempt(&self.disk, "write", &path, file.append(&slice.rows))?;
        hasher.update(&slice.rows);
        let table = &mut writing.manifest.tables[at];
        let before = table.bytes;
        table.rows += slice.count;
        table.bytes += slice.rows.len() as u64;
        if table.bytes / SYNCED_TOGETHER > before / SYNCED_TOGETHER {
            attempt(&self.disk, "sync", &path, file.sync())?;
        }
        Ok(CheckpointResult::Ok)
    }

    fn finish(&mut self) -> Result<CheckpointResult, StorageError> {
        let Some(mut writing) = self.writing.take() else {
            return Err(self.nothing_under_way("one to finish"));
        };
        for (at, (mut file, hasher)) in writing.files.into_iter().enumerate() {
            let path = format!("{WRITING}/{}", Table::ALL[at].file_name());
            attempt(&self.disk, "sync", &path, file.sync())?;
            writing.manifest.tables[at].crc = hasher.finalize();
        }
        // Last: what has no such file is half-written.
        write_file(&self.disk, &format!("{WRITING}/{MANIFEST}"), &writing.manifest.encode())?;
        let index = writing.manifest.position.index;
        self.publish(index)?;
        let bytes = writing.manifest.tables.iter().map(|table| table.bytes).sum();
        Ok(CheckpointResult::Finished { index, bytes })
    }

    /// Gives the finished directory its name and makes it current (D6).
    fn publish(&mut self, index: LogIndex) -> Result<(), StorageError> {
        attempt(&self.disk, "sync the directory", WRITING, self.disk.sync_dir(WRITING))?;
        let mut name = format!("{:012}", index.0);
        let mut copy = 1;
        while attempt(&self.disk, "look for", DIRECTORY, self.disk.exists(&format!("{DIRECTORY}/{name}")))? {
            copy += 1;
            name = format!("{:012}-{copy}", index.0);
        }
        let path = format!("{DIRECTORY}/{name}");
        attempt(&self.disk, "rename", WRITING, self.disk.rename(WRITING, &path))?;
        attempt(&self.disk, "sync the directory", DIRECTORY, self.disk.sync_dir(DIRECTORY))?;
        link(&self.disk, &name)?;
        self.kept.insert(0, name);
        self.kept.truncate(2);
        // It is done already: what can't be removed now is removed next time.
        let _ = remove_others(&self.disk, &self.kept);
        Ok(())
    }

    fn receive(
        &mut self,
        index: LogIndex,
        offset: u64,
        bytes: &[u8],
    ) -> Result<CheckpointResult, StorageError> {
        if offset == 0 {
            let file = attempt(&self.disk, "create", RECEIVED, self.disk.create(RECEIVED))?;
            self.receiving = Some(Receiving { index, file, length: 0 });
        }
        let Some(receiving) = self.receiving.as_mut().filter(|r| r.index == index && r.length == offset)
        else {
            return Err(StorageError::File {
                path: self.disk.display(RECEIVED),
                found: format!("a part of checkpoint {index} from byte {offset} on"),
                expected: "the part that follows the last one".into(),
            });
        };
        attempt(&self.disk, "write", RECEIVED, receiving.file.append(bytes))?;
        receiving.length += bytes.len() as u64;
        Ok(CheckpointResult::Ok)
    }

    fn install(&mut self, index: LogIndex) -> Result<CheckpointResult, StorageError> {
        let Some(receiving) = self.receiving.take().filter(|receiving| receiving.index == index) else {
            return Err(self.nothing_under_way("one that was received"));
        };
        self.make_writing_directory()?;
        self.unpack(&receiving)?;
        let (state, manifest) = load(&self.disk, WRITING, &mut |_| {})?;
        if manifest.position.index != index {
            return Err(StorageError::File {
                path: self.disk.display(RECEIVED),
                found: format!("a checkpoint as of entry {}", manifest.position.index),
                expected: format!("one as of entry {index}"),
            });
        }
        self.publish(index)?;
        let _ = self.disk.remove_file(RECEIVED);
        let Manifest { position, views, .. } = manifest;
        Ok(CheckpointResult::Installed(Box::new(Installed { state, position, views })))
    }

    /// Takes the stream apart into files, each synced.
    fn unpack(&self, receiving: &Receiving<D::File>) -> Result<(), StorageError> {
        let wrong = |found: String, expected: String| StorageError::File {
            path: self.disk.display(RECEIVED),
            found,
            expected,
        };
        let mut offset = 0;
        for name in file_names() {
            let mut start = [0; 64];
            let count = attempt(&self.disk, "read", RECEIVED, receiving.file.read_at(offset, &mut start))?;
            let line = start[..count].split(|&b| b == b'\n').next().unwrap_or_default();
            let text = String::from_utf8_lossy(line);
            let length = text.strip_prefix(name).and_then(|rest| rest.strip_prefix(' '));
            let Some(length) = length.and_then(|length| length.parse::<u64>().ok()) else {
                return Err(wrong(format!("{text:?} at byte {offset}"), format!("{name} and its length")));
            };
            offset += line.len() as u64 + 1;
            if receiving.length < offset || receiving.length - offset < length {
                return Err(wrong(
                    format!("{} bytes", receiving.length),
                    format!("{length} more of {name} after byte {offset}"),
                ));
            }
            let path = format!("{WRITING}/{name}");
            let mut file = attempt(&self.disk, "create", &path, self.disk.create(&path))?;
            let range = offset..offset + length;
            copy_part(&self.disk, (RECEIVED, &receiving.file), range, (&path, &mut file))?;
            attempt(&self.disk, "sync", &path, file.sync())?;
            offset += length;
        }
        if offset == receiving.length {
            return Ok(());
        }
        Err(wrong(format!("{} bytes", receiving.length), format!("{offset}")))
    }

    fn abandon(&mut self) -> Result<CheckpointResult, StorageError> {
        self.writing = None;
        self.receiving = None;
        if attempt(&self.disk, "look for", WRITING, self.disk.exists(WRITING))? {
            attempt(&self.disk, "remove", WRITING, self.disk.remove_dir_all(WRITING))?;
        }
        if attempt(&self.disk, "look for", RECEIVED, self.disk.exists(RECEIVED))? {
            attempt(&self.disk, "remove", RECEIVED, self.disk.remove_file(RECEIVED))?;
        }
        Ok(CheckpointResult::Ok)
    }
}

/// The files of a checkpoint, in the order in which they travel.
fn file_names() -> impl Iterator<Item = &'static str> {
    std::iter::once(MANIFEST).chain(Table::ALL.iter().map(|table| table.file_name()))
}

/// Reads parts of checkpoints for other servers, on any thread.
#[derive(Clone, Debug)]
pub struct CheckpointReader<D: Disk> {
    disk: D,
}

impl<D: Disk> CheckpointReader<D> {
    /// A part of a checkpoint, as one stream of bytes: each file as a line `NAME LENGTH` and its bytes. Its total is
    /// 0 if there is no such checkpoint (any more).
    #[must_use]
    pub fn read(&self, index: LogIndex, offset: u64) -> ReadResult {
        match self.read_part(index, offset) {
            Ok((total, bytes)) => ReadResult::Checkpoint { total, bytes: Bytes::from(bytes) },
            Err(StorageError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                ReadResult::Checkpoint { total: 0, bytes: Bytes::new() }
            }
            Err(error) => ReadResult::Failed(error.to_string()),
        }
    }

    fn read_part(&self, index: LogIndex, offset: u64) -> Result<(u64, Vec<u8>), StorageError> {
        let disk = &self.disk;
        let current = attempt(disk, "read", CURRENT, disk.read_link(CURRENT))?;
        let of_index = |name: &String| parse_name(name).is_some_and(|(found, _)| found == index.0);
        let name = match current.filter(of_index) {
            Some(name) => Some(name),
            None => attempt(disk, "list", DIRECTORY, disk.list(DIRECTORY))?.into_iter().rfind(of_index),
        };
        let Some(name) = name else { return Ok((0, Vec::new())) };
        let (mut total, mut part) = (0u64, Vec::new());
        for file_name in file_names() {
            let path = format!("{DIRECTORY}/{name}/{file_name}");
            let file = attempt(disk, "open", &path, disk.open(&path))?;
            let length = attempt(disk, "read", &path, file.len())?;
            let head = format!("{file_name} {length}\n");
            let (start, count) = wanted(offset, total, &part, head.len() as u64);
            total += head.len() as u64;
            let start = usize::try_from(start).expect("a name is short");
            part.extend_from_slice(&head.as_bytes()[start..start + count]);
            let (start, count) = wanted(offset, total, &part, length);
            total += length;
            let filled = part.len();
            part.resize(filled + count, 0);
            let read = attempt(disk, "read", &path, file.read_at(start, &mut part[filled..]))?;
            part.truncate(filled + read);
        }
        Ok((total, part))
    }
}

/// Which bytes of a piece that starts at `total` in the stream go into the part that starts at `offset`.
fn wanted(offset: u64, total: u64, part: &[u8], length: u64) -> (u64, usize) {
    let start = (offset + part.len() as u64).saturating_sub(total).min(length);
    let room = (BATCH_BYTES_MAX - part.len()) as u64;
    (start, usize::try_from(room.min(length - start)).expect("a part is small"))
}
