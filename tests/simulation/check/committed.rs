//! What is committed never changes, and logs agree up to the commit index. An entry's chain covers everything before
//! it, so equal chains mean equal logs.

use lastword::types::LogIndex;

/// The chain of each committed entry, as the first server that knew it committed had it.
#[derive(Debug)]
pub(crate) struct Committed {
    chains: Vec<Option<u32>>,
    checked: Vec<LogIndex>,
}

impl Committed {
    /// Nothing is committed yet.
    pub(crate) fn new(servers: usize) -> Self {
        Self { chains: vec![None], checked: vec![LogIndex::ZERO; servers] }
    }

    /// A server starts anew: its log is compared again.
    pub(crate) fn forget(&mut self, at: usize) {
        self.checked[at] = LogIndex::ZERO;
    }

    /// How many entries are known to be committed.
    pub(crate) fn count(&self) -> u64 {
        self.chains.len() as u64 - 1
    }

    /// Compares what a server has committed since it was last looked at; says whether logs have parted, which is wrong
    /// unless there is a split.
    pub(crate) fn check(
        &mut self,
        at: usize,
        commit: LogIndex,
        split: bool,
        chain: impl Fn(LogIndex) -> Option<u32>,
    ) -> bool {
        let mut parted = false;
        for index in self.checked[at].0 + 1..=commit.0 {
            // What a checkpoint covers is compared by digest.
            let Some(chain) = chain(LogIndex(index)) else { continue };
            let place = usize::try_from(index).expect("small");
            if self.chains.len() <= place {
                self.chains.resize(place + 1, None);
            }
            let known = *self.chains[place].get_or_insert(chain);
            parted |= known != chain;
            assert!(
                split || known == chain,
                "committed entry {index} differs on server {}: chain {chain:08x}, elsewhere {known:08x}",
                at + 1
            );
        }
        self.checked[at] = self.checked[at].max(commit);
        parted
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::panics;

    #[test]
    fn committed_entry_that_another_server_has_otherwise_is_refused() {
        let two = |other: u32| {
            let mut committed = Committed::new(2);
            committed.check(0, LogIndex(2), false, |index| Some(u32::try_from(index.0).expect("small")));
            committed.check(1, LogIndex(1), false, |_| Some(1));
            committed.check(1, LogIndex(2), false, |_| Some(other));
        };
        two(2);
        assert!(panics(|| two(9)));
    }
}
