//! The disk's two threads: one writes the log, the other reads it and keeps checkpoints. Neither waits for the other,
//! so a checkpoint never delays a sync.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tracing::{error, warn};

use super::driver::Input;
use crate::message::{CheckpointResult, CheckpointStep, Entry, Installed, Position, Read, ReadResult, Write};
use crate::replica::{Event, ReadId};
use crate::storage::{Checkpoints, CommitLog, Disk as _, LogReader, OsDisk, StorageError, read_diverged};
use crate::types::{LogIndex, WriteId};

/// With less space left new writes are refused (D3).
const SPACE_LOW_BYTES: u64 = 64 * 1024 * 1024;
/// How often the space left is looked at.
const SPACE_INTERVAL: Duration = Duration::from_secs(1);
/// How long the threads may take to end.
const END_WAIT: Duration = Duration::from_secs(2);

/// For the thread that owns the log.
enum LogJob {
    Write(WriteId, Write),
    Cut(LogIndex),
    Repair(Position, Vec<Arc<Entry>>),
    RestartAfter(Box<Installed>),
}

/// For the thread beside it.
enum BackgroundJob {
    Read(ReadId, Read),
    Checkpoint(CheckpointStep),
}

/// The two threads, as the driver sees them.
pub(super) struct DiskThreads {
    log: Sender<LogJob>,
    /// For the log's thread, with the next [`DiskThreads::flush`].
    queued: Vec<LogJob>,
    background: Sender<BackgroundJob>,
    /// Ends when both threads have ended.
    running: Receiver<()>,
}

impl DiskThreads {
    /// Starts the threads; they report to the driver.
    pub(super) fn start(
        disk: OsDisk,
        log: CommitLog<OsDisk>,
        reader: LogReader<OsDisk>,
        checkpoints: Checkpoints<OsDisk>,
        report: mpsc::Sender<Input>,
    ) -> std::io::Result<Self> {
        let (log_jobs, for_log) = channel();
        let (background_jobs, for_background) = channel();
        let (alive, running) = channel();
        let writer = LogWriter { log, report: report.clone(), failed: None };
        thread::Builder::new().name("log".to_owned()).spawn({
            let alive = alive.clone();
            move || {
                writer.run(&for_log);
                drop(alive);
            }
        })?;
        let background =
            Background { disk, reader, checkpoints, log: log_jobs.clone(), report, space_low: false };
        thread::Builder::new().name("background".to_owned()).spawn(move || {
            background.run(&for_background);
            drop(alive);
        })?;
        Ok(Self { log: log_jobs, queued: Vec::new(), background: background_jobs, running })
    }

    pub(super) fn write(&mut self, id: WriteId, write: Write) {
        self.queued.push(LogJob::Write(id, write));
    }

    pub(super) fn cut(&mut self, through: LogIndex) {
        self.queued.push(LogJob::Cut(through));
    }

    pub(super) fn repair(&mut self, after: Position, entries: Vec<Arc<Entry>>) {
        self.queued.push(LogJob::Repair(after, entries));
    }

    pub(super) fn read(&self, id: ReadId, read: Read) {
        self.tell_background(BackgroundJob::Read(id, read));
    }

    pub(super) fn checkpoint(&mut self, step: CheckpointStep) {
        // A checkpoint that is installed reaches the log through the other thread: not before what it replaces.
        self.flush();
        self.tell_background(BackgroundJob::Checkpoint(step));
    }

    /// Lets the log's thread do what it has been given. Waking it takes a moment, and it may take over the processor.
    pub(super) fn flush(&mut self) {
        for job in self.queued.drain(..) {
            self.log.send(job).expect("the log's thread ends after the driver");
        }
    }

    fn tell_background(&self, job: BackgroundJob) {
        self.background.send(job).expect("the background thread ends after the driver");
    }

    /// Lets the threads do what they were told and end. Reports go nowhere any more.
    pub(super) fn finish(mut self) {
        self.flush();
        drop((self.log, self.background));
        if self.running.recv_timeout(END_WAIT) == Err(RecvTimeoutError::Timeout) {
            warn!("the disk has not finished after {} s: leaving it", END_WAIT.as_secs());
        }
    }
}

/// Whoever reports may find the driver gone: then nobody is interested.
fn tell(report: &mpsc::Sender<Input>, event: Event) {
    let _ = report.blocking_send(Input::Event(event));
}

/// D1: all that arrived while the last sync ran goes into the next.
struct LogWriter {
    log: CommitLog<OsDisk>,
    report: mpsc::Sender<Input>,
    /// D2: after a failed write or sync nothing else is attempted.
    failed: Option<String>,
}

impl LogWriter {
    fn run(mut self, jobs: &Receiver<LogJob>) {
        while let Ok(first) = jobs.recv() {
            let mut unsynced = None;
            for job in std::iter::once(first).chain(jobs.try_iter()) {
                match job {
                    LogJob::Write(id, write) => {
                        if self.attempt(|log| log.write(&write)).is_ok() {
                            unsynced = Some(id);
                        }
                    }
                    other => {
                        self.sync(unsynced.take());
                        self.perform(other);
                    }
                }
            }
            self.sync(unsynced);
        }
        // Otherwise the next start does it.
        let _ = self.log.close();
    }

    /// Does something with the log unless it has failed before; the first failure is reported.
    fn attempt(
        &mut self,
        action: impl FnOnce(&mut CommitLog<OsDisk>) -> Result<(), StorageError>,
    ) -> Result<(), String> {
        if let Some(failed) = &self.failed {
            return Err(format!("the log has failed before: {failed}"));
        }
        action(&mut self.log).map_err(|error| {
            let error = error.to_string();
            self.failed = Some(error.clone());
            tell(&self.report, Event::WriteFailed { error: error.clone() });
            error
        })
    }

    fn sync(&mut self, through: Option<WriteId>) {
        let Some(through) = through else { return };
        if self.attempt(CommitLog::sync).is_ok() {
            tell(&self.report, Event::Synced { through });
        }
    }

    fn perform(&mut self, job: LogJob) {
        match job {
            LogJob::Write(..) => unreachable!("writes are gathered by the caller"),
            LogJob::Cut(through) => {
                // Old files that stay cost space, nothing else.
                if self.failed.is_none()
                    && let Err(error) = self.log.cut(through)
                {
                    warn!("cutting the log in front failed: {error}");
                }
            }
            LogJob::Repair(after, entries) => {
                let mut fits = true;
                let repair = |log: &mut CommitLog<OsDisk>| {
                    fits = log.fits_gap(after, &entries)?;
                    if fits { log.repair(after, &entries) } else { Ok(()) }
                };
                let error = self.attempt(repair).err();
                tell(&self.report, Event::Repaired { error, fits });
            }
            LogJob::RestartAfter(installed) => {
                let result = match self.attempt(|log| log.restart_after(&installed)) {
                    Ok(()) => CheckpointResult::Installed(installed),
                    Err(error) => CheckpointResult::Failed(error),
                };
                tell(&self.report, Event::CheckpointDone(result));
            }
        }
    }
}

struct Background {
    disk: OsDisk,
    reader: LogReader<OsDisk>,
    checkpoints: Checkpoints<OsDisk>,
    log: Sender<LogJob>,
    report: mpsc::Sender<Input>,
    space_low: bool,
}

impl Background {
    fn run(mut self, jobs: &Receiver<BackgroundJob>) {
        let mut look_at = Instant::now();
        loop {
            if Instant::now() >= look_at {
                self.look_at_space();
                look_at = Instant::now() + SPACE_INTERVAL;
            }
            match jobs.recv_timeout(look_at.saturating_duration_since(Instant::now())) {
                Ok(BackgroundJob::Read(id, read)) => self.read(id, &read),
                Ok(BackgroundJob::Checkpoint(step)) => self.checkpoint(step),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    /// D3.
    fn look_at_space(&mut self) {
        match self.disk.space_left() {
            Ok(left) if (left < SPACE_LOW_BYTES) != self.space_low => {
                self.space_low = !self.space_low;
                tell(&self.report, Event::DiskSpace { low: self.space_low });
            }
            Ok(_) => {}
            Err(error) => error!("asking for the space left on the disk failed: {error}"),
        }
    }

    fn read(&mut self, id: ReadId, read: &Read) {
        let result = match read {
            Read::Entries { first, through } => match self.reader.read(*first, *through) {
                Ok((previous, entries)) => ReadResult::Entries { previous, entries },
                Err(error) => ReadResult::Failed(error.to_string()),
            },
            Read::Checkpoint { index, offset } => self.checkpoints.read(*index, *offset),
            Read::Diverged(place) => read_diverged(&self.disk, place.as_ref()),
        };
        tell(&self.report, Event::ReadDone { id, result });
    }

    fn checkpoint(&mut self, step: CheckpointStep) {
        match self.checkpoints.step(step) {
            // The log starts anew after the installed checkpoint before anyone hears of it.
            CheckpointResult::Installed(installed) => {
                let _ = self.log.send(LogJob::RestartAfter(installed));
            }
            result => tell(&self.report, Event::CheckpointDone(result)),
        }
    }
}
