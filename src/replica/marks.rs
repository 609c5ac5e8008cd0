//! Equal logs must give equal states (D7).
//!
//! Every 1,024 entries, and at the first entry of each view, a server keeps a *mark*: the digest over all entries and
//! replies up to there. The newest one rides on every heartbeat. The primary compares the marks of its view's members
//! with its own at the same entry. The digest runs on, so whoever differs once differs from then on, and the entries at
//! which two others are compared need not be the same. Who is in the minority stops: its tables can't be trusted, nor
//! can its checkpoints, so at its next start it begins anew from the others. Of two it is the backup.

use std::collections::{BTreeMap, VecDeque};

use crate::chat::command::Operation;
use crate::message::{Entry, Mark, PeerMessage, Standing};
use crate::types::{LogIndex, ServerId, ViewNumber};

use super::{Exit, Held, Replica, Role};

/// A mark is kept every so many entries,
const MARKED_EVERY: u64 = 1024;
/// and so many of the latest: members are hardly further apart.
const MARKS_KEPT: usize = 128;

/// The own marks, oldest first.
#[derive(Debug, Default)]
pub(super) struct Marks(VecDeque<Mark>);

impl Marks {
    /// The newest one; all zero if there is none yet.
    pub(super) fn newest(&self) -> Mark {
        self.0.back().copied().unwrap_or_default()
    }

    /// The own mark at the same entry of the same log.
    fn same_entry(&self, other: &Mark) -> Option<Mark> {
        self.0.iter().copied().find(|mark| (mark.index, mark.chain) == (other.index, other.chain))
    }

    /// The state is another one: it says nothing of what was before.
    pub(super) fn forget(&mut self) {
        self.0.clear();
    }
}

/// What the primary has found out of each member of its view.
#[derive(Debug, Default)]
pub(super) struct Compared(BTreeMap<ServerId, Found>);

#[derive(Clone, Copy, Debug)]
enum Found {
    /// Its state is the same as of this entry.
    Same(LogIndex),
    /// It differs as of this mark, which is the primary's own.
    Differs(Mark),
}

/// Who is wrong.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// Not everyone has been compared yet.
    Open,
    /// These members.
    Members(Vec<ServerId>),
    /// The primary itself: more differ from it than not.
    Primary,
}

impl Compared {
    /// Who is wrong, among these members and the primary, in view of a difference as of `from`.
    fn verdict(&self, members: &[ServerId], from: LogIndex) -> Verdict {
        let mut differing = Vec::new();
        for member in members {
            match self.0.get(member) {
                Some(Found::Differs(_)) => differing.push(*member),
                Some(Found::Same(index)) if *index >= from => {}
                Some(Found::Same(_)) | None => return Verdict::Open,
            }
        }
        let same = 1 + members.len() - differing.len();
        if differing.len() > same { Verdict::Primary } else { Verdict::Members(differing) }
    }

    /// The entry from which on somebody differs.
    fn first_difference(&self) -> Option<LogIndex> {
        let differs = |found: &Found| match found {
            Found::Differs(mark) => Some(mark.index),
            Found::Same(_) => None,
        };
        self.0.values().filter_map(differs).min()
    }
}

impl Replica {
    /// An entry was applied.
    pub(super) fn maybe_mark(&mut self, entry: &Entry) {
        let marked =
            entry.index.0.is_multiple_of(MARKED_EVERY) || matches!(entry.operation, Operation::View { .. });
        if marked {
            let marks = &mut self.marks.0;
            marks.push_back(Mark { index: entry.index, chain: entry.chain, digest: self.state.digest() });
            if marks.len() > MARKS_KEPT {
                marks.pop_front();
            }
        }
    }

    /// As the primary: a member says how its state is.
    pub(super) fn compare(&mut self, from: ServerId, theirs: &Mark) {
        let Some(own) = self.marks.same_entry(theirs) else { return };
        let Role::Primary(primary) = &mut self.role else { return };
        let differs = own.digest != theirs.digest && !removed!("D7-compare");
        let found = if differs { Found::Differs(own) } else { Found::Same(own.index) };
        primary.compared.0.insert(from, found);
        let Some(index) = primary.compared.first_difference() else { return };
        let members: Vec<_> =
            self.view.members.iter().map(|member| member.server).filter(|id| *id != self.me).collect();
        match primary.compared.verdict(&members, index) {
            Verdict::Open => {}
            Verdict::Primary => self.distrust(index, "those of most others"),
            Verdict::Members(wrong) => wrong.into_iter().for_each(|server| self.tell_differs(server)),
        }
    }

    fn tell_differs(&mut self, server: ServerId) {
        let view = self.view.number;
        let Role::Primary(primary) = &mut self.role else { return };
        let Some(Found::Differs(mark)) = primary.compared.0.get(&server).copied() else { return };
        if primary.told.insert(server) {
            let index = mark.index;
            self.warn(format!(
                "server {server} has applied the same log up to entry {index} and answered otherwise: it is told to stop"
            ));
        }
        self.send(server, PeerMessage::Differs { view, mark });
    }

    /// As a backup: the primary has found this server's state to be the wrong one.
    pub(super) fn on_differs(&mut self, from: ServerId, view: ViewNumber, theirs: Mark) {
        let follows = matches!(self.role, Role::Backup) && self.view.number == view && from == view.proposer;
        let own = self.marks.same_entry(&theirs);
        if follows && own.is_some_and(|own| own.digest != theirs.digest) {
            self.distrust(theirs.index, &format!("those of server {from}, which leads"));
        }
    }

    /// The odd one out stops, and takes nothing of its tables along.
    fn distrust(&mut self, index: LogIndex, others: &str) {
        let text = format!(
            "the answers of this server up to entry {index} differ from {others}: its memory or its disk is not \
             to be trusted, so it stops; started again, it takes everything from the others"
        );
        self.warn(text.clone());
        self.abandon_checkpoint();
        self.hard.standing = Standing::Distrusted;
        let id = self.persist_hard();
        self.become_waiting();
        self.held.push_back((id, Held::Distrusted(text)));
    }

    /// That it is not to be trusted is on disk.
    pub(super) fn on_distrusted(&mut self, text: String) {
        self.exit(Exit::Refused(text));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BACKUPS: [ServerId; 2] = [ServerId(2), ServerId(3)];

    fn differs(index: u64) -> Found {
        Found::Differs(Mark { index: LogIndex(index), ..Mark::default() })
    }

    fn verdict(found: &[(u8, Found)], members: &[ServerId], from: u64) -> Verdict {
        let found = found.iter().map(|(id, found)| (ServerId(*id), *found)).collect();
        Compared(found).verdict(members, LogIndex(from))
    }

    #[test]
    fn of_three_the_odd_one_is_wrong() {
        let (same, odd) = (Found::Same(LogIndex(2048)), differs(1024));
        assert_eq!(verdict(&[(2, odd), (3, same)], &BACKUPS, 1024), Verdict::Members(vec![ServerId(2)]));
        assert_eq!(verdict(&[(2, same), (3, odd)], &BACKUPS, 1024), Verdict::Members(vec![ServerId(3)]));
        assert_eq!(verdict(&[(2, odd), (3, differs(2048))], &BACKUPS, 1024), Verdict::Primary);
    }

    #[test]
    fn nobody_is_wrong_before_all_members_were_compared_at_that_entry() {
        assert_eq!(verdict(&[(2, differs(1024))], &BACKUPS, 1024), Verdict::Open);
        let earlier = Found::Same(LogIndex(512));
        assert_eq!(verdict(&[(2, differs(1024)), (3, earlier)], &BACKUPS, 1024), Verdict::Open);
    }

    #[test]
    fn of_two_the_backup_is_wrong() {
        assert_eq!(verdict(&[(2, differs(7))], &BACKUPS[..1], 7), Verdict::Members(vec![ServerId(2)]));
    }
}
