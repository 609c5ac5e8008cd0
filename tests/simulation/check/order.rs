//! Indices keep their order, and nothing goes backwards within the life of a process.

use lastword::message::Status;
use lastword::replica::Replica;
use lastword::types::{LogIndex, ViewNumber};

#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    commit: LogIndex,
    applied: LogIndex,
    view: ViewNumber,
    standpoint: (ViewNumber, bool),
}

/// How far each server has come.
#[derive(Debug)]
pub(crate) struct Order(Vec<Seen>);

impl Order {
    /// Nobody has begun.
    pub(crate) fn new(servers: usize) -> Self {
        Self(vec![Seen::default(); servers])
    }

    /// A server starts anew.
    pub(crate) fn forget(&mut self, at: usize) {
        self.0[at] = Seen::default();
    }

    /// The cheap part, after every step; says whether anything has changed.
    pub(crate) fn check(&mut self, at: usize, replica: &Replica) -> bool {
        let (commit, applied) = (replica.commit_index(), replica.state().index());
        let seen = &mut self.0[at];
        assert!(
            commit >= seen.commit,
            "server {}: commit went back from {} to {commit}",
            at + 1,
            seen.commit
        );
        assert!(
            applied >= seen.applied,
            "server {}: applied went back from {} to {applied}",
            at + 1,
            seen.applied
        );
        assert!(applied <= commit, "server {}: applied {applied} is beyond commit {commit}", at + 1);
        let standpoint = (replica.installed_view().number, replica.is_serving());
        let changed = (commit, applied, standpoint) != (seen.commit, seen.applied, seen.standpoint);
        (seen.commit, seen.applied, seen.standpoint) = (commit, applied, standpoint);
        changed
    }

    /// The rest, when something has changed.
    pub(crate) fn check_status(&mut self, at: usize, status: &Status) {
        let server = at + 1;
        let seen = &mut self.0[at];
        assert!(
            status.view >= seen.view,
            "server {server}: view went back from {} to {}",
            seen.view,
            status.view
        );
        seen.view = status.view;
        assert!(status.applied <= status.commit, "server {server}: applied beyond commit: {status:?}");
        assert!(status.commit <= status.last, "server {server}: commit beyond last: {status:?}");
        assert!(status.synced <= status.last, "server {server}: synced beyond last: {status:?}");
    }
}
