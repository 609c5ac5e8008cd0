//! At most one server leads each view: the one that proposed it.

use std::collections::BTreeMap;

use lastword::message::Status;
use lastword::types::ViewNumber;

/// Who was seen leading which view, ever.
#[derive(Debug, Default)]
pub(crate) struct OnePrimary(BTreeMap<ViewNumber, usize>);

impl OnePrimary {
    /// The latest view that anyone was seen leading.
    pub(crate) fn latest(&self) -> ViewNumber {
        self.0.keys().next_back().copied().unwrap_or_default()
    }

    /// A server shows its status.
    pub(crate) fn check(&mut self, at: usize, status: &Status) {
        if status.role != "primary" {
            return;
        }
        let leads = *self.0.entry(status.view).or_insert(at);
        assert_eq!(leads, at, "servers {} and {} both lead view {}", leads + 1, at + 1, status.view);
        let proposer = usize::from(status.view.proposer.0) - 1;
        assert_eq!(proposer, at, "server {} leads view {}, which it did not propose", at + 1, status.view);
    }
}
