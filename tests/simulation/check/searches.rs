//! What the searches for an order amounted to, over all seeds of this run: one that was given up proves nothing.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use super::linear::Verdict;

static SEARCHES: AtomicU64 = AtomicU64::new(0);
static CALLS: AtomicU64 = AtomicU64::new(0);
static UNDECIDED: AtomicU64 = AtomicU64::new(0);
static NANOS: AtomicU64 = AtomicU64::new(0);

/// Counts one search.
pub(crate) fn count(calls: usize, verdict: &Verdict) {
    SEARCHES.fetch_add(1, Relaxed);
    CALLS.fetch_add(calls as u64, Relaxed);
    UNDECIDED.fetch_add(u64::from(*verdict == Verdict::Undecided), Relaxed);
}

/// Counts how long the searches of one seed took.
pub(crate) fn count_time(took: Duration) {
    NANOS.fetch_add(u64::try_from(took.as_nanos()).expect("short"), Relaxed);
}

/// One search in so many may be given up.
const DECIDED_OF: u64 = 200;

/// All of it, in one line; `seeds` is how long all cores together took.
pub(crate) fn summary(seeds: Duration) -> String {
    let [searches, calls, undecided, nanos] =
        [&SEARCHES, &CALLS, &UNDECIDED, &NANOS].map(|n| n.load(Relaxed));
    let seconds = nanos as f64 / 1e9;
    format!(
        "linearizability: {searches} objects, {calls} calls, {undecided} undecided, {seconds:.2} s ({:.1} % of the time)",
        100.0 * seconds / seeds.as_secs_f64()
    )
}

/// Demands that nearly all searches have come to an end.
pub(crate) fn demand_decided() {
    let [searches, undecided] = [&SEARCHES, &UNDECIDED].map(|n| n.load(Relaxed));
    assert!(
        are_few(undecided, searches),
        "{undecided} of {searches} searches for an order were given up: they prove nothing"
    );
}

fn are_few(undecided: u64, searches: u64) -> bool {
    // A few seeds say nothing about how often that is.
    undecided <= 1 + searches / DECIDED_OF
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_than_one_undecided_search_in_two_hundred_is_too_many() {
        assert!(are_few(1, 10) && are_few(36, 7_000));
        assert!(!are_few(2, 10) && !are_few(37, 7_000));
    }
}
