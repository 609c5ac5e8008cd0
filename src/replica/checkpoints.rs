//! When a checkpoint is taken, and how it leaves the core in slices (T3, T5).
//!
//! A checkpoint is taken beside the running server when the log has outgrown the last one, so that the amortised cost
//! of a write at most doubles; and after a second of quiet while the state is small, so that whoever looks finds a row.

use std::collections::VecDeque;
use std::time::Duration;

use crate::config::{APPLIED_ENTRIES_MAX, CHECKPOINT_SLICE_ROWS, SMALL_STATE_BYTES};
use crate::message::{CheckpointResult, CheckpointStep};
use crate::time::Instant;
use crate::types::LogIndex;

use super::{Effect, Replica, Role};

/// So long nothing must have been applied before a small state is written just so.
const QUIET: Duration = Duration::from_secs(1);
/// So long after a learner last asked, the checkpoint it reads stays.
const KEPT_FOR_LEARNER: Duration = Duration::from_secs(10);
/// So many times over the log may outgrow the checkpoint that a learner reads.
const OUTGROWN_CAP: u64 = 4;
/// A failed checkpoint is tried again after this long.
const RETRIED_AFTER: Duration = Duration::from_secs(60);

/// What a step under way is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// Writes an own checkpoint.
    Own,
    /// Takes over a part of another server's.
    Receive,
    /// Puts it in place.
    Install,
    /// Gives up an own one.
    Abandon,
}

/// The checkpoints of this server.
#[derive(Debug)]
pub(super) struct Checkpointing {
    /// The newest complete one, and the one before: the log is cut below the older (T3).
    newest: LogIndex,
    older: LogIndex,
    /// One is under way, as of this index.
    writing: Option<LogIndex>,
    /// It has been emitted to its last row.
    emitted: bool,
    /// Steps given out and not yet answered, oldest first.
    steps: VecDeque<Step>,
    /// How many bytes of entries have been applied since the last one.
    log_bytes: u64,
    /// How large the state was at that one, or when this process started.
    state_bytes: u64,
    last_applied_at: Instant,
    wanted: bool,
    not_before: Instant,
    read_by_learner: Option<Instant>,
}

impl Checkpointing {
    pub(super) fn new(now: Instant, newest: LogIndex, state_bytes: u64) -> Self {
        Self {
            newest,
            older: LogIndex::ZERO,
            writing: None,
            emitted: false,
            steps: VecDeque::new(),
            log_bytes: 0,
            state_bytes,
            last_applied_at: now,
            wanted: false,
            not_before: now,
            read_by_learner: None,
        }
    }

    pub(super) fn newest(&self) -> LogIndex {
        self.newest
    }

    pub(super) fn on_applied(&mut self, now: Instant, bytes: u64) {
        self.last_applied_at = now;
        self.log_bytes += bytes;
    }

    pub(super) fn want_now(&mut self) {
        self.wanted = true;
    }

    pub(super) fn keep_for_learner(&mut self, now: Instant) {
        self.read_by_learner = Some(now);
    }

    pub(super) fn is_idle(&self) -> bool {
        self.writing.is_none() && self.steps.is_empty()
    }

    /// Whether a received checkpoint is being put in place of the log and the state.
    pub(super) fn is_installing(&self) -> bool {
        self.steps.contains(&Step::Install)
    }
}

impl Replica {
    pub(super) fn maybe_begin_checkpoint(&mut self) {
        let applied = self.state.index();
        let job = &self.checkpointing;
        let receives = matches!(&self.role, Role::Learner(learner) if learner.is_receiving());
        if !job.is_idle()
            || applied <= job.newest
            || self.now < job.not_before
            || receives
            || self.disk_failed
            || self.rebasing.diverging
        {
            return;
        }
        let due_bytes = job.state_bytes.max(self.config.checkpoint_log_bytes_min);
        let outgrown = job.log_bytes >= due_bytes;
        let small = self.state.bytes_estimate() < SMALL_STATE_BYTES;
        let quiet = small && self.now.since(job.last_applied_at) >= QUIET;
        let read = job.read_by_learner.is_some_and(|at| self.now.since(at) < KEPT_FOR_LEARNER);
        // T3: what a learner reads stays for a while, but not at any price.
        let outgrown = outgrown && (!read || job.log_bytes >= OUTGROWN_CAP * due_bytes);
        if job.wanted || outgrown || (quiet && !read) || self.stopping.is_some() {
            self.begin_checkpoint();
        }
    }

    fn begin_checkpoint(&mut self) {
        let index = self.state.index();
        let Some(position) = self.log.position(index) else { return };
        self.state.begin_checkpoint();
        let job = &mut self.checkpointing;
        (job.writing, job.emitted, job.wanted) = (Some(index), false, false);
        (job.log_bytes, job.state_bytes) = (0, self.state.bytes_estimate());
        let (views, digest) = (self.log.views_through(index), self.state.digest());
        self.give_step(CheckpointStep::Begin { position, views, digest });
    }

    pub(super) fn give_step(&mut self, step: CheckpointStep) {
        self.checkpointing.steps.push_back(match &step {
            CheckpointStep::Begin { .. } | CheckpointStep::Rows(_) | CheckpointStep::Finish => Step::Own,
            CheckpointStep::Receive { .. } => Step::Receive,
            CheckpointStep::Install { .. } => Step::Install,
            CheckpointStep::Abandon => Step::Abandon,
        });
        self.effects.push_back(Effect::Checkpoint(step));
    }

    /// Gives up the checkpoint being written, if there is one.
    pub(super) fn abandon_checkpoint(&mut self) {
        if self.checkpointing.writing.take().is_some() {
            self.state.abandon_checkpoint();
            self.give_step(CheckpointStep::Abandon);
        }
    }

    pub(super) fn on_checkpoint_done(&mut self, result: CheckpointResult) {
        let step = self.checkpointing.steps.pop_front();
        match result {
            CheckpointResult::Ok if step == Some(Step::Own) => self.continue_checkpoint(),
            CheckpointResult::Ok => {}
            CheckpointResult::Finished { index, .. } => self.on_checkpoint_finished(index),
            CheckpointResult::Installed(installed) => {
                self.checkpointing.newest = installed.position.index;
                self.checkpointing.older = LogIndex::ZERO;
                self.on_checkpoint_installed(*installed);
            }
            CheckpointResult::Failed(error) if step == Some(Step::Own) => self.on_checkpoint_failed(&error),
            CheckpointResult::Failed(error) if step == Some(Step::Abandon) => {
                self.warn(format!(
                    "what is left of a checkpoint that was given up can't be removed: {error}"
                ));
            }
            CheckpointResult::Failed(error) => self.on_receive_failed(&error),
        }
    }

    /// One slice at a time: what is written sets the pace, and nothing piles up.
    fn continue_checkpoint(&mut self) {
        if self.checkpointing.writing.is_none() || self.checkpointing.emitted {
            return;
        }
        let step = self.state.next_slice(CHECKPOINT_SLICE_ROWS).map(CheckpointStep::Rows);
        self.checkpointing.emitted = step.is_none();
        self.give_step(step.unwrap_or(CheckpointStep::Finish));
    }

    fn on_checkpoint_finished(&mut self, index: LogIndex) {
        let job = &mut self.checkpointing;
        if job.writing.take() != Some(index) {
            return;
        }
        (job.older, job.newest) = (job.newest, index);
        let through = self.cut_through();
        if through > self.log.disk_base.index {
            self.effects.push_back(Effect::Cut { through });
        }
    }

    /// T3: only below the older of the two checkpoints that stay. While a server is outside the view the log is kept for
    /// it: it fetches only what it missed (T1); and should it have gone on by itself, and win, the rows that differ are
    /// still here to be moved aside (R2), even when space is low: then new commands are refused (D3) rather than old
    /// ones lost. Not further back than applied ids are known (R8).
    fn cut_through(&self) -> LogIndex {
        let absent = self.view.members.len() < self.configured.len();
        let unneeded = LogIndex(self.checkpointing.newest.0.saturating_sub(APPLIED_ENTRIES_MAX));
        if absent { self.checkpointing.older.min(unneeded) } else { self.checkpointing.older }
    }

    fn on_checkpoint_failed(&mut self, error: &str) {
        if self.checkpointing.writing.is_none() {
            return; // It had been given up already.
        }
        let job = &mut self.checkpointing;
        (job.not_before, job.wanted) = (self.now + RETRIED_AFTER, true);
        self.warn(format!("a checkpoint failed, the log goes on without it: {error}"));
        self.abandon_checkpoint();
    }
}
