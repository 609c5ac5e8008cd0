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
        let standpoint = (replica.installed_view().number, replica.is_serving());
        self.on_seen(at, replica.commit_index(), replica.state().index(), standpoint)
    }

    fn on_seen(
        &mut self,
        at: usize,
        commit: LogIndex,
        applied: LogIndex,
        standpoint: (ViewNumber, bool),
    ) -> bool {
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
        let changed = (commit, applied, standpoint) != (seen.commit, seen.applied, seen.standpoint);
        (seen.commit, seen.applied, seen.standpoint) = (commit, applied, standpoint);
        changed
    }

    /// The rest, when something has changed.
    pub(crate) fn check_status(&mut self, at: usize, status: &Status) {
        let server = at + 1;
        self.on_view(at, status.view);
        assert!(status.applied <= status.commit, "server {server}: applied beyond commit: {status:?}");
        assert!(status.commit <= status.last, "server {server}: commit beyond last: {status:?}");
        assert!(status.synced <= status.last, "server {server}: synced beyond last: {status:?}");
    }

    fn on_view(&mut self, at: usize, view: ViewNumber) {
        let seen = &mut self.0[at].view;
        // Who follows an earlier view than its own forgets its own, and speaks for none until it is a member again.
        let forgotten = view == ViewNumber::NONE;
        assert!(view >= *seen || forgotten, "server {}: view went back from {seen} to {view}", at + 1);
        *seen = view;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::panics;

    fn after(steps: &[(u64, u64)]) {
        let mut order = Order::new(1);
        for (commit, applied) in steps {
            order.on_seen(0, LogIndex(*commit), LogIndex(*applied), (ViewNumber::NONE, false));
        }
    }

    #[test]
    fn index_that_goes_back_is_refused() {
        after(&[(1, 1), (2, 1), (2, 2)]);
        assert!(panics(|| after(&[(2, 1), (1, 1)])), "commit");
        assert!(panics(|| after(&[(2, 2), (2, 1)])), "applied");
        assert!(panics(|| after(&[(1, 2)])), "applied beyond commit");
    }

    #[test]
    fn view_that_goes_back_is_refused_within_one_life() {
        let view = |counter| ViewNumber { counter, ..ViewNumber::NONE };
        let mut order = Order::new(1);
        order.on_view(0, view(2));
        assert!(panics(|| {
            let mut order = Order::new(1);
            order.on_view(0, view(2));
            order.on_view(0, view(1));
        }));
        order.forget(0);
        order.on_view(0, view(1));
    }
}
