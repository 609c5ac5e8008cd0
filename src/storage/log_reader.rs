//! Reads entries back while the log is written (T1).

use std::cell::Cell;
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;

use super::disk::{Disk, DiskFile};
use super::error::StorageError;
use super::index::{Index, Stretch};
use crate::config::{BATCH_BYTES_MAX, BATCH_ENTRIES_MAX};
use crate::message::{Entry, Position};
use crate::row::Fields;
use crate::types::LogIndex;

/// The index, shared by the writer and the readers.
pub(super) type SharedIndex<F> = Arc<Mutex<Index<F>>>;

/// Takes the index's lock.
pub(super) fn lock<F>(index: &Mutex<Index<F>>) -> MutexGuard<'_, Index<F>> {
    index.lock().expect("no holder of the index panics")
}

/// Reads entries of the log, on any thread. What it gives is synced, and part of the log when the read began.
#[derive(Debug)]
pub struct LogReader<D: Disk> {
    index: SharedIndex<D::File>,
}

impl<D: Disk> Clone for LogReader<D> {
    fn clone(&self) -> Self {
        Self { index: Arc::clone(&self.index) }
    }
}

impl<D: Disk> LogReader<D> {
    pub(super) fn new(index: SharedIndex<D::File>) -> Self {
        Self { index }
    }

    /// The entries from `first` on, at most `through`, as many as fit into a batch, with the position before the
    /// first. None if the log does not have `first`, or a gap begins there (D4).
    ///
    /// # Errors
    /// A row that can't be read; or the system can't read.
    pub fn read(
        &self,
        first: LogIndex,
        through: LogIndex,
    ) -> Result<(Position, Vec<Arc<Entry>>), StorageError> {
        loop {
            let before = lock(&self.index).changes;
            let batch = self.read_batch(first, through);
            // What a truncation or a repair has overtaken is read again.
            if lock(&self.index).changes == before {
                return batch;
            }
        }
    }

    fn read_batch(
        &self,
        first: LogIndex,
        through: LogIndex,
    ) -> Result<(Position, Vec<Arc<Entry>>), StorageError> {
        let (mut start, mut entries, mut bytes) = (Position::default(), Vec::new(), 0);
        self.visit(first, through, &mut |previous, entry| {
            if entries.is_empty() {
                start = previous;
            }
            bytes += entry.bytes.len();
            if bytes > BATCH_BYTES_MAX && !entries.is_empty() {
                return false;
            }
            entries.push(Arc::new(entry));
            entries.len() < BATCH_ENTRIES_MAX
        })?;
        Ok((start, entries))
    }

    /// Hands out entries in order, each with the position before it, until the log has no next one, `through` is
    /// reached, or `take` says no.
    pub(super) fn visit(
        &self,
        first: LogIndex,
        through: LogIndex,
        take: &mut dyn FnMut(Position, Entry) -> bool,
    ) -> Result<(), StorageError> {
        let mut next = first;
        let mut last: Option<Position> = None;
        let wants_more = Cell::new(true);
        let mut take = |previous, entry| {
            wants_more.set(take(previous, entry));
            wants_more.get()
        };
        while next <= through && wants_more.get() {
            let Some(stretch) = lock(&self.index).stretch(next) else { return Ok(()) };
            let reached = visit_stretch(&stretch, next, through, last, &mut take)?;
            let Some(position) = reached.filter(|position| position.index == stretch.last) else {
                return Ok(());
            };
            last = Some(position);
            next = position.index.next();
        }
        Ok(())
    }
}

/// Hands out the entries of one stretch; gives the last one's position.
fn visit_stretch<F: DiskFile>(
    stretch: &Stretch<F>,
    first: LogIndex,
    through: LogIndex,
    before: Option<Position>,
    take: &mut dyn FnMut(Position, Entry) -> bool,
) -> Result<Option<Position>, StorageError> {
    let mut reached = None;
    let mut fields = Fields::new();
    stretch.read(|found| {
        if found.position.index < first {
            return Ok(true);
        }
        // Nothing vouches for the first entry after a gap, nor for one that does not follow what was read.
        let Some(previous) = found.previous else { return Ok(false) };
        if reached.is_none() && before.is_some_and(|before| before != previous) {
            return Ok(false);
        }
        let entry = Entry::decode(Bytes::copy_from_slice(found.line.body), previous.chain, &mut fields)?;
        reached = Some(found.position);
        Ok(take(previous, entry) && found.position.index < through)
    })?;
    Ok(reached)
}
