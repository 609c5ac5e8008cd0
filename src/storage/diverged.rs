//! Rows that another server's log has won over: `diverged-FORK-VIEW-SEQUENCE.csv` (R2).
//!
//! A file holds the rows above the fork as they stood in the log. They are proposed again, newest file first: the rows
//! that a file's own rows were made after are in the log, or have been moved aside since. Each file goes when all of its
//! rows are committed (R7), and leaves its fork to the older ones: what all logs share ends there. What can't be read in
//! it can't be proposed: then it stays, under a name that nobody reads.

use std::sync::Arc;

use bytes::Bytes;

use super::commit_log::{attempt, rename};
use super::disk::{Disk, DiskFile as _};
use super::error::StorageError;
use super::lines::{Lines, buffer_for};
use super::record::{HEADER, split};
use crate::chat::command::Operation;
use crate::config::{BATCH_BYTES_MAX, BATCH_ENTRIES_MAX};
use crate::message::{DivergedPlace, DivergedRows, Entry, ReadResult};
use crate::row::Fields;
use crate::types::{LogIndex, ViewNumber};

/// The name of the file for rows above `fork`. `sequence` keeps it from being given twice.
pub(super) fn name_of(fork: LogIndex, view: ViewNumber, sequence: u64) -> String {
    format!("diverged-{fork}-{view}-{sequence}.csv")
}

/// The fork and the sequence number in a name.
fn parse(name: &str) -> Option<(LogIndex, u64)> {
    let mut parts = name.strip_prefix("diverged-")?.strip_suffix(".csv")?.split('-');
    let (fork, _view, sequence) = (parts.next()?, parts.next()?, parts.next()?);
    parts.next().is_none().then_some((LogIndex(fork.parse().ok()?), sequence.parse().ok()?))
}

/// All such files, newest first: sequence number, fork, name.
fn files<D: Disk>(disk: &D) -> Result<Vec<(u64, LogIndex, String)>, StorageError> {
    let names = attempt(disk, "list", "", disk.list(""))?;
    let mut files: Vec<_> = names
        .into_iter()
        .filter_map(|name| parse(&name).map(|(fork, sequence)| (sequence, fork, name)))
        .collect();
    files.sort_by(|one, other| other.cmp(one));
    Ok(files)
}

/// Whether any rows wait to be proposed again.
pub(super) fn exist<D: Disk>(disk: &D) -> Result<bool, StorageError> {
    files(disk).map(|files| !files.is_empty())
}

/// Reads a batch of what is to be proposed again: from `place` on, or from the newest file if there is no place.
#[must_use]
pub fn read_diverged<D: Disk>(disk: &D, place: Option<&DivergedPlace>) -> ReadResult {
    match read(disk, place) {
        Ok(rows) => ReadResult::Diverged(rows),
        Err(error) => ReadResult::Failed(error.to_string()),
    }
}

fn read<D: Disk>(disk: &D, place: Option<&DivergedPlace>) -> Result<Option<DivergedRows>, StorageError> {
    let files = files(disk)?;
    let at = place.map_or(Some(0), |place| files.iter().position(|(.., name)| *name == place.file));
    let Some((_, fork, name)) = at.and_then(|at| files.get(at)) else { return Ok(None) };
    let mut rows = DivergedRows {
        fork: *fork,
        entries: Vec::new(),
        next: DivergedPlace { file: name.clone(), offset: place.map_or(0, |place| place.offset) },
        ends: true,
        total: None,
    };
    if rows.next.offset == 0 {
        let mut total = 0;
        for (_, _, name) in &files {
            visit(disk, name, 0, |_, entry| {
                total += u64::from(entry.is_some());
                true
            })?;
        }
        rows.total = Some(total);
    }
    let mut bytes = 0;
    visit(disk, name, rows.next.offset, |end, entry| {
        if let Some(entry) = entry {
            bytes += entry.bytes.len();
            if bytes > BATCH_BYTES_MAX && !rows.entries.is_empty() {
                rows.ends = false;
                return false;
            }
            rows.entries.push(Arc::new(entry));
        }
        rows.next.offset = end;
        rows.ends = rows.entries.len() < BATCH_ENTRIES_MAX;
        rows.ends
    })?;
    Ok(Some(rows))
}

/// Hands out the clients' commands among a file's rows from `offset` on, each with where it ends, until `take` says no;
/// of other rows only where they end. Gives how many rows can't be read.
fn visit<D: Disk>(
    disk: &D,
    name: &str,
    offset: u64,
    mut take: impl FnMut(u64, Option<Entry>) -> bool,
) -> Result<u64, StorageError> {
    let file = attempt(disk, "open", name, disk.open(name))?;
    let length = attempt(disk, "read", name, file.len())?;
    let mut lines = Lines::new(&file, offset, buffer_for(length.saturating_sub(offset) + 1));
    let (mut fields, mut damaged) = (Fields::new(), 0);
    while let Some(at) = attempt(disk, "read", name, lines.next_line())? {
        let line = lines.bytes(&at);
        if at.offset == 0 && line == HEADER.trim_end().as_bytes() {
            continue;
        }
        let body = split(line).map(|row| Bytes::copy_from_slice(row.body));
        let entry = body.and_then(|body| Entry::decode(body, 0, &mut fields));
        damaged += u64::from(entry.is_err());
        let again =
            |entry: &Entry| matches!(entry.operation, Operation::Command(_) | Operation::Rebased { .. });
        if !take(at.end, entry.ok().filter(again)) {
            break;
        }
    }
    Ok(damaged)
}

/// R7: a file goes when each of its rows is committed. One in which some rows can't be read is kept for a person.
/// Since the older ones were written this server has followed another log, and was cut back from that one too, perhaps
/// further than before: they have its fork from now on if it is lower than their own.
pub(super) fn forget<D: Disk>(disk: &D, name: &str) -> Result<(), StorageError> {
    if !attempt(disk, "look for", name, disk.exists(name))? {
        return Ok(());
    }
    let (fork, sequence) = parse(name).expect("the name of a file of diverged rows");
    for (_, _, older) in files(disk)?.into_iter().filter(|(at, own, _)| *at < sequence && *own > fork) {
        let (_, rest) = older["diverged-".len()..].split_once('-').expect("its name was parsed");
        rename(disk, &older, &format!("diverged-{fork}-{rest}"))?;
    }
    if visit(disk, name, 0, |_, _| true)? > 0 {
        return rename(disk, name, &format!("rotten-{name}"));
    }
    attempt(disk, "remove", name, disk.remove_file(name))?;
    attempt(disk, "sync the directory", "", disk.sync_dir(""))
}
