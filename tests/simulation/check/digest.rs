//! Equal logs, equal state (D7): the digest runs over every entry and every reply. After a split there may be two logs
//! of the same length; their chains tell them apart.

use std::collections::BTreeMap;

use lastword::replica::Replica;
use lastword::types::LogIndex;

/// The digest at each applied index, as the first server that reached it had it.
#[derive(Debug)]
pub(crate) struct EqualDigests {
    digests: BTreeMap<(LogIndex, Option<u32>), [u8; 32]>,
    checked: Vec<Option<LogIndex>>,
}

impl EqualDigests {
    /// Nothing is applied yet.
    pub(crate) fn new(servers: usize) -> Self {
        Self { digests: BTreeMap::new(), checked: vec![None; servers] }
    }

    /// A server starts anew.
    pub(crate) fn forget(&mut self, at: usize) {
        self.checked[at] = None;
    }

    /// Compares a server's state.
    pub(crate) fn check(&mut self, at: usize, replica: &Replica) {
        let applied = replica.state().index();
        if self.checked[at] == Some(applied) {
            return;
        }
        self.checked[at] = Some(applied);
        let digest = replica.state().digest();
        let known = *self.digests.entry((applied, replica.entry_chain(applied))).or_insert(digest);
        assert_eq!(known, digest, "server {}'s state at index {applied} differs from another's", at + 1);
    }
}
