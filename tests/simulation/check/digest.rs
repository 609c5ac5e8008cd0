//! Equal logs, equal state (D7): the digest runs over every entry and every reply. After a split there may be two logs
//! of the same length; their chains tell them apart.

use std::collections::BTreeMap;

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

    /// Compares a server's state after the entry at `applied`, whose chain this is.
    pub(crate) fn check(&mut self, at: usize, applied: LogIndex, chain: Option<u32>, digest: [u8; 32]) {
        if self.checked[at] == Some(applied) {
            return;
        }
        self.checked[at] = Some(applied);
        let known = *self.digests.entry((applied, chain)).or_insert(digest);
        assert_eq!(known, digest, "server {}'s state at index {applied} differs from another's", at + 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::panics;

    #[test]
    fn state_that_differs_at_an_equal_index_of_an_equal_log_is_refused() {
        let two = |index, chain, digest| {
            let mut digests = EqualDigests::new(2);
            digests.check(0, LogIndex(5), Some(7), [1; 32]);
            digests.check(1, LogIndex(index), Some(chain), [digest; 32]);
        };
        two(5, 7, 1);
        two(6, 8, 2);
        two(5, 8, 2);
        assert!(panics(|| two(5, 7, 2)));
    }
}
