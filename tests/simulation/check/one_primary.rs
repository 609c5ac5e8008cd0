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
        if status.role == "primary" {
            self.on_leading(at, status.view);
        }
    }

    fn on_leading(&mut self, at: usize, view: ViewNumber) {
        let leads = *self.0.entry(view).or_insert(at);
        assert_eq!(leads, at, "servers {} and {} both lead view {view}", leads + 1, at + 1);
        let proposer = usize::from(view.proposer.0) - 1;
        assert_eq!(proposer, at, "server {} leads view {view}, which it did not propose", at + 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::panics;
    use lastword::types::ServerId;

    #[test]
    fn view_led_by_another_than_its_proposer_is_refused() {
        let view = ViewNumber { counter: 3, proposer: ServerId(2) };
        OnePrimary::default().on_leading(1, view);
        assert!(panics(|| OnePrimary::default().on_leading(0, view)));
        let mut seen = OnePrimary(BTreeMap::from([(view, 0)]));
        assert!(panics(|| seen.on_leading(1, view)), "another was seen leading it");
    }
}
