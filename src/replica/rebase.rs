//! Rebase: what only the losing side of a split has is proposed again, on the side that won (R1-R8).
//!
//! Whoever finds that its log has parted from the leader's moves the rows above the fork to a file before it cuts
//! (`catch_up`). From then on it is *rebasing*: it is not taken into a view, reads its files batch by batch, and has
//! the primary propose each row again under its own id. What a row needs must come before it: so the newest file is
//! first, since its rows lay below the fork of an older one, and none is given before what is left of the own log is part
//! of the leader's. What becomes of a row is decided when it is applied. When all rows of a file are committed, the file
//! goes. A crash in between repeats a batch, and a row that was applied already changes nothing.

use std::sync::Arc;
use std::time::Duration;

use tracing::debug;

use crate::chat::command::Operation;
use crate::config::{UNCOMMITTED_ENTRIES_MAX, UNSYNCED_BYTES_MAX};
use crate::message::{DivergedPlace, DivergedRows, Entry, PeerMessage, Read, Write};
use crate::time::Instant;
use crate::types::{Incarnation, LogIndex, ServerId, ViewNumber};

use super::catch_up::PeerRead;
use super::{Exit, Held, Replica, Role};

/// A batch that is not known to be committed within this time is proposed again.
const REPEATED_AFTER: Duration = Duration::from_millis(500);

/// The rows of this server that another log has won over.
#[derive(Debug)]
pub(super) struct Rebasing {
    /// There are files of such rows, or may be.
    pending: bool,
    /// So many times rows are still being moved to a file.
    moving: usize,
    /// Rows have been moved aside since the files were last looked for.
    moved: bool,
    /// Rows are being moved aside that were applied here: then everything is recovered again (R2).
    pub(super) diverging: bool,
    step: Step,
    /// Commands still to be committed, as far as they were counted.
    left: u64,
}

/// What is being done about the newest file.
#[derive(Debug)]
enum Step {
    /// Nothing yet.
    Idle,
    /// The next batch is being read.
    Reading,
    /// A batch is to be proposed by the primary, or has been.
    Proposing(Batch),
    /// All of the file is committed, and it is being removed.
    Forgetting,
}

#[derive(Debug)]
struct Batch {
    /// Names it, within this life.
    nonce: u64,
    rows: DivergedRows,
    /// To whom it was last given, for which view, and when.
    given: Option<(ServerId, ViewNumber, Instant)>,
}

impl Rebasing {
    pub(super) fn new(pending: bool) -> Self {
        Self { pending, moving: 0, moved: false, diverging: false, step: Step::Idle, left: 0 }
    }

    /// Rows are being moved aside. They go before those of all earlier files.
    pub(super) fn begin(&mut self) {
        self.pending = true;
        self.moving += 1;
        self.moved = true;
        if matches!(self.step, Step::Proposing(_)) {
            self.step = Step::Idle;
        }
    }

    /// Their file is on disk.
    pub(super) fn on_moved(&mut self) {
        self.moving -= 1;
    }

    /// Whether there is something left to be proposed again.
    pub(super) fn is_pending(&self) -> bool {
        self.pending
    }

    pub(super) fn note(&self) -> Option<String> {
        self.pending.then(|| match self.left {
            0 => "rebases what only this server had".to_owned(),
            left => format!("rebases what only this server had: {left} commands to go"),
        })
    }
}

/// A batch of another server that this primary has proposed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Proposed {
    incarnation: Incarnation,
    nonce: u64,
    /// Its last entry.
    last: LogIndex,
}

impl Replica {
    // -- Whose log has lost -------------------------------------------------------------------------------------------

    pub(super) fn tick_rebase(&mut self) {
        if !self.rebasing.pending || self.is_occupied() || self.leader_and_view().is_none() {
            return;
        }
        match &self.rebasing.step {
            // A file that is still to be written would not be found.
            Step::Idle if self.rebasing.moving > 0 => {}
            Step::Idle => {
                self.rebasing.moved = false;
                self.read_diverged(None);
            }
            Step::Proposing(_) => self.maybe_give_batch(),
            Step::Reading | Step::Forgetting => {}
        }
    }

    fn read_diverged(&mut self, place: Option<DivergedPlace>) {
        self.rebasing.step = Step::Reading;
        self.begin_read(PeerRead::Diverged, Read::Diverged(place));
    }

    pub(super) fn on_diverged_read(&mut self, rows: Option<DivergedRows>) {
        if self.rebasing.moved {
            self.rebasing.step = Step::Idle;
            return;
        }
        let Some(rows) = rows else {
            self.rebasing = Rebasing::new(self.rebasing.diverging);
            return self.say("all that only this server had is committed again".to_owned());
        };
        if let Some(total) = rows.total {
            self.rebasing.left = total;
        }
        let nonce = self.nonce();
        self.rebasing.step = Step::Proposing(Batch { nonce, rows, given: None });
        self.maybe_give_batch();
    }

    /// Gives the batch to whoever leads, unless it has it and may still be busy with it.
    fn maybe_give_batch(&mut self) {
        let Some((leader, view)) = self.leader_and_view() else { return };
        let now = self.now;
        let incarnation = self.hard.incarnation;
        let Step::Proposing(batch) = &mut self.rebasing.step else { return };
        if batch.rows.entries.is_empty() {
            return self.on_batch_committed();
        }
        let waits = |(to, for_view, at): (ServerId, ViewNumber, Instant)| {
            (to, for_view) == (leader, view) && now.since(at) < REPEATED_AFTER
        };
        if batch.given.is_some_and(waits) {
            return;
        }
        batch.given = Some((leader, view, now));
        let (nonce, fork, rows) = (batch.nonce, batch.rows.fork, batch.rows.entries.clone());
        if leader == self.me {
            self.on_rebase(leader, view, incarnation, nonce, fork, &rows);
        } else {
            self.send(leader, PeerMessage::Rebase { view, incarnation, nonce, fork, rows });
        }
        if removed!("R7-committed") {
            self.on_batch_committed();
        }
    }

    /// Who leads the log of which this one is part.
    fn leader_and_view(&self) -> Option<(ServerId, ViewNumber)> {
        match &self.role {
            Role::Learner(learner) => learner.follows.then_some((learner.leader, learner.view)),
            Role::Primary(_) | Role::Backup => Some((self.view.primary(), self.view.number)),
            _ => None,
        }
    }

    pub(super) fn on_rebase_ok(&mut self, from: ServerId, view: ViewNumber, nonce: u64) {
        let Step::Proposing(batch) = &self.rebasing.step else { return };
        if batch.nonce != nonce || self.leader_and_view() != Some((from, view)) {
            return debug!(%from, %view, nonce, "ignored: an answer to another batch");
        }
        self.on_batch_committed();
    }

    /// R7: the file goes when all of it is committed, and not before.
    fn on_batch_committed(&mut self) {
        let Step::Proposing(batch) = std::mem::replace(&mut self.rebasing.step, Step::Forgetting) else {
            unreachable!("only a batch that was given is committed");
        };
        self.rebasing.left = self.rebasing.left.saturating_sub(batch.rows.entries.len() as u64);
        if batch.rows.ends {
            let id = self.write(Write::Forget { file: batch.rows.next.file });
            self.held.push_back((id, Held::Forgotten));
        } else {
            self.read_diverged(Some(batch.rows.next));
        }
    }

    pub(super) fn on_forgotten(&mut self) {
        self.rebasing.step = Step::Idle;
        self.tick_rebase();
    }

    /// R2: the rows are in their file, and the log ends at the fork. What was applied above it must be undone.
    pub(super) fn on_moved_aside(&mut self) {
        self.say("entries that were applied here have lost: recovers again, as of before them".to_owned());
        self.exit(Exit::Recover);
    }

    // -- Who leads the log that has won ---------------------------------------------------------------------------------

    /// R3: proposes the rows of another log again, within the bounds of what may be under way; who gets no answer
    /// repeats itself. R4: what is known already is found out when they are applied, by exact id.
    pub(super) fn on_rebase(
        &mut self,
        from: ServerId,
        view: ViewNumber,
        incarnation: Incarnation,
        nonce: u64,
        fork: LogIndex,
        rows: &[Arc<Entry>],
    ) {
        if let Some(reason) = self.ignore_rebase(from, view, incarnation, rows.len()) {
            return debug!(%from, %view, "ignored: rows of another log: {reason}");
        }
        let Role::Primary(primary) = &self.role else { return };
        let known = primary.proposed.get(&from);
        if known.is_none_or(|known| (known.incarnation, known.nonce) != (incarnation, nonce)) {
            for row in rows.iter().filter(|_| !removed!("R3-again")) {
                self.propose_again(fork, row);
            }
            let last = self.log.last().index;
            let Role::Primary(primary) = &mut self.role else { return };
            primary.proposed.insert(from, Proposed { incarnation, nonce, last });
        }
        self.answer_rebase(from);
    }

    fn ignore_rebase(
        &self,
        from: ServerId,
        view: ViewNumber,
        incarnation: Incarnation,
        count: usize,
    ) -> Option<&'static str> {
        let lives = self.peers.get(&from).is_none_or(|peer| peer.incarnation == incarnation);
        let uncommitted = self.commit.distance_to(self.log.last().index) + count as u64;
        let reasons = [
            (view != self.view.number || !self.is_serving(), "this server does not lead that view"),
            (!lives, "an earlier life says so"),
            (self.is_closing() || self.disk_failed || self.is_disk_low(), "nothing can be written now"),
            (uncommitted > UNCOMMITTED_ENTRIES_MAX, "too many entries are under way"),
            (self.log.bytes_after(self.commit) > UNSYNCED_BYTES_MAX, "too much waits for the disks"),
        ];
        reasons.into_iter().find(|(holds, _)| *holds).map(|(_, reason)| reason)
    }

    /// R3, R10: with its original client, number and time.
    fn propose_again(&mut self, fork: LogIndex, row: &Entry) {
        let Some(operation) = row.operation.clone().proposed_again(fork) else { return };
        if let Operation::Rebased { command, .. } = &operation {
            self.note_proposed_again(command);
        }
        self.append_at(if removed!("R10-time") { self.unix_ms } else { row.unix_ms }, operation);
    }

    /// Tells a server whose batch is committed.
    fn answer_rebase(&mut self, to: ServerId) {
        let (commit, view) = (self.commit, self.view.number);
        let Role::Primary(primary) = &self.role else { return };
        let Some(proposed) = primary.proposed.get(&to).filter(|proposed| proposed.last <= commit) else {
            return;
        };
        let nonce = proposed.nonce;
        if to == self.me {
            self.on_rebase_ok(to, view, nonce);
        } else {
            self.send(to, PeerMessage::RebaseOk { view, nonce });
        }
    }

    /// The commit index has moved from `before`: tells those whose batches it has passed.
    pub(super) fn answer_rebases(&mut self, before: LogIndex) {
        let Role::Primary(primary) = &self.role else { return };
        let passed = |proposed: &Proposed| before < proposed.last && proposed.last <= self.commit;
        let to: Vec<_> =
            primary.proposed.iter().filter(|(_, proposed)| passed(proposed)).map(|(id, _)| *id).collect();
        to.into_iter().for_each(|server| self.answer_rebase(server));
    }
}
