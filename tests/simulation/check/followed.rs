//! What a primary takes for committed is on the disk of every member that follows it (N6), and nobody takes more for
//! committed than a primary has (N7).

use lastword::message::Status;

use crate::server::server_id;

/// How far any primary has committed.
#[derive(Debug, Default)]
pub(crate) struct Followed(u64);

impl Followed {
    /// A server shows its status; `others` are those of the other servers that run.
    pub(crate) fn check(
        &mut self,
        at: usize,
        status: &Status,
        others: impl Iterator<Item = (usize, Status)>,
    ) {
        let (server, commit) = (at + 1, status.commit);
        if status.view.proposer == server_id(at) {
            // It may have stopped leading in the very step in which it committed.
            self.0 = self.0.max(commit);
        } else {
            assert!(
                commit <= self.0,
                "server {server} takes entry {commit} for committed, primaries have committed {} at most",
                self.0
            );
        }
        if status.role != "primary" {
            return;
        }
        assert!(commit <= status.synced, "primary {server} has committed {commit}, synced {}", status.synced);
        for (other, of_other) in others {
            let follows = of_other.role == "backup" && of_other.view == status.view;
            assert!(
                !follows || commit <= of_other.synced,
                "primary {server} has committed {commit}, of which member {} has synced {}",
                other + 1,
                of_other.synced
            );
        }
    }
}
