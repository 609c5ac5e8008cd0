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

/// All of it, in one line.
pub(crate) fn summary() -> String {
    let [searches, calls, undecided, nanos] =
        [&SEARCHES, &CALLS, &UNDECIDED, &NANOS].map(|n| n.load(Relaxed));
    format!(
        "linearizability: {searches} objects, {calls} calls, {undecided} undecided, {:.2} s",
        nanos as f64 / 1e9
    )
}
