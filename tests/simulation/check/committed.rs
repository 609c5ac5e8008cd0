//! What is committed never changes, and logs agree up to the commit index. An entry's chain covers everything before
//! it, so equal chains mean equal logs.
//!
//! Where a split is allowed logs may part. That is seen in the very step in which the second side commits its first
//! entry, before any client hears of it: each side's view begins with an entry of its own (V8).

use lastword::types::LogIndex;

/// The chain of each committed entry, as the first server that knew it committed had it.
#[derive(Debug)]
pub(crate) struct Committed {
    chains: Vec<Option<u32>>,
    checked: Vec<LogIndex>,
    parted: bool,
}

impl Committed {
    /// Nothing is committed yet.
    pub(crate) fn new(servers: usize) -> Self {
        Self { chains: vec![None], checked: vec![LogIndex::ZERO; servers], parted: false }
    }

    /// A server starts anew: its log is compared again.
    pub(crate) fn forget(&mut self, at: usize) {
        self.checked[at] = LogIndex::ZERO;
    }

    /// How many entries are known to be committed.
    pub(crate) fn count(&self) -> u64 {
        self.chains.len() as u64 - 1
    }

    /// Whether two servers have ever committed different entries at one index: the brain was split, and both sides
    /// have acknowledged, or were about to.
    pub(crate) fn parted(&self) -> bool {
        self.parted
    }

    /// Compares what a server has committed since it was last looked at. `may_part` says whether a split is allowed.
    pub(crate) fn check(
        &mut self,
        at: usize,
        commit: LogIndex,
        may_part: bool,
        chain: impl Fn(LogIndex) -> Option<u32>,
    ) {
        for index in self.checked[at].0 + 1..=commit.0 {
            // What a checkpoint covers is compared by digest.
            let Some(chain) = chain(LogIndex(index)) else { continue };
            let place = usize::try_from(index).expect("small");
            if self.chains.len() <= place {
                self.chains.resize(place + 1, None);
            }
            let known = *self.chains[place].get_or_insert(chain);
            self.parted |= known != chain;
            assert!(
                known == chain || may_part,
                "committed entry {index} differs on server {}: chain {chain:08x}, elsewhere {known:08x}",
                at + 1
            );
        }
        self.checked[at] = self.checked[at].max(commit);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::panics;

    #[test]
    fn committed_entry_that_another_server_has_otherwise_is_refused() {
        let two = |other: u32, may_part: bool| {
            let mut committed = Committed::new(2);
            committed.check(0, LogIndex(2), false, |index| Some(u32::try_from(index.0).expect("small")));
            committed.check(1, LogIndex(1), may_part, |_| Some(1));
            committed.check(1, LogIndex(2), may_part, |_| Some(other));
            committed.parted()
        };
        assert!(!two(2, false) && !two(2, true));
        assert!(panics(|| _ = two(9, false)));
        assert!(two(9, true), "a split is allowed, and seen");
    }
}
