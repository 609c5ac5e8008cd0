//! Reads a file line by line, a large piece at a time.

use std::io;
use std::ops::Range;

use super::disk::DiskFile;

/// How much is read at once when a whole file is.
const SCAN_BYTES: usize = 1024 * 1024;

/// A buffer for reading `length` bytes piece by piece.
pub(super) fn buffer_for(length: u64) -> usize {
    usize::try_from(length).unwrap_or(SCAN_BYTES).clamp(1, SCAN_BYTES)
}

/// One line, without its newline.
#[derive(Clone, Debug)]
pub(super) struct LineAt {
    range: Range<usize>,
    /// Where the line starts in the file.
    pub(super) offset: u64,
    /// Where it ends, its newline included.
    pub(super) end: u64,
    /// Whether it ends with a newline; only the last line may not.
    pub(super) complete: bool,
}

/// The lines of a file from some offset on.
pub(super) struct Lines<'a, F> {
    file: &'a F,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    /// Where `buffer[start]` stands in the file.
    offset: u64,
}

impl<'a, F: DiskFile> Lines<'a, F> {
    /// Starts at `offset`, reading `bytes` at a time.
    pub(super) fn new(file: &'a F, offset: u64, bytes: usize) -> Self {
        Self { file, buffer: vec![0; bytes], start: 0, end: 0, offset }
    }

    /// The next line; none at the end of the file.
    pub(super) fn next_line(&mut self) -> io::Result<Option<LineAt>> {
        let mut searched = 0;
        loop {
            let rest = &self.buffer[self.start + searched..self.end];
            if let Some(length) = memchr::memchr(b'\n', rest) {
                return Ok(Some(self.take(searched + length, true)));
            }
            searched = self.end - self.start;
            if !self.fill()? {
                return Ok((searched > 0).then(|| self.take(searched, false)));
            }
        }
    }

    /// Passes over empty lines, and gives how many there were.
    pub(super) fn skip_empty(&mut self) -> io::Result<u64> {
        let mut skipped = 0;
        loop {
            let rest = &self.buffer[self.start..self.end];
            let empty = rest.iter().take_while(|byte| **byte == b'\n').count();
            self.start += empty;
            self.offset += empty as u64;
            skipped += empty as u64;
            if self.start < self.end || !self.fill()? {
                return Ok(skipped);
            }
        }
    }

    /// Where the next line starts; none at the end of the file.
    pub(super) fn next_offset(&mut self) -> io::Result<Option<u64>> {
        let more = self.start < self.end || self.fill()?;
        Ok(more.then_some(self.offset))
    }

    /// The bytes of the line that was given last.
    pub(super) fn bytes(&self, line: &LineAt) -> &[u8] {
        &self.buffer[line.range.clone()]
    }

    fn take(&mut self, length: usize, complete: bool) -> LineAt {
        let range = self.start..self.start + length;
        let taken = length + usize::from(complete);
        let line = LineAt { range, offset: self.offset, end: self.offset + taken as u64, complete };
        self.start += taken;
        self.offset += taken as u64;
        line
    }

    fn fill(&mut self) -> io::Result<bool> {
        self.buffer.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        if self.end == self.buffer.len() {
            self.buffer.resize(self.buffer.len() * 2, 0);
        }
        let count = self.file.read_at(self.offset + self.end as u64, &mut self.buffer[self.end..])?;
        self.end += count;
        Ok(count > 0)
    }
}
