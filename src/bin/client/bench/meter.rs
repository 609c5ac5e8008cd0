//! What is counted while the load runs.

use hdrhistogram::Histogram;
use std::time::{Duration, Instant};

/// Whatever takes longer than an hour is counted as an hour.
const LATENCY_US_MAX: u64 = 3_600_000_000;

/// Counts acknowledgements, how long they took, and how long none came.
pub(super) struct Meter {
    start: Instant,
    end: Instant,
    acked: u64,
    acked_in_time: u64,
    unknown: u64,
    /// In microseconds, to three digits.
    latency: Histogram<u64>,
    last: Instant,
    longest_gap: Duration,
}

/// What came of a run.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Report {
    pub(super) acked_per_second: f64,
    pub(super) p50_us: u64,
    pub(super) p99_us: u64,
    pub(super) p999_us: u64,
    pub(super) longest_gap_ms: f64,
    pub(super) acked: u64,
    pub(super) unknown: u64,
}

impl Meter {
    /// A meter for a run from `start` to `end`.
    pub(super) fn new(start: Instant, end: Instant) -> Self {
        let latency = Histogram::new_with_bounds(1, LATENCY_US_MAX, 3).expect("three digits are possible");
        Self {
            start,
            end,
            acked: 0,
            acked_in_time: 0,
            unknown: 0,
            latency,
            last: start,
            longest_gap: Duration::ZERO,
        }
    }

    /// Something that was begun at one time is acknowledged now. What comes after the end is counted, since it must be
    /// there afterwards like the rest, but not measured.
    pub(super) fn acknowledge(&mut self, begun: Instant, now: Instant) {
        self.acked += 1;
        if now > self.end {
            return;
        }
        self.acked_in_time += 1;
        let micros = u64::try_from(now.saturating_duration_since(begun).as_micros()).unwrap_or(u64::MAX);
        self.latency.saturating_record(micros);
        self.longest_gap = self.longest_gap.max(now.saturating_duration_since(self.last));
        self.last = self.last.max(now);
    }

    /// So many requests have no answer, and will get none.
    pub(super) fn give_up(&mut self, requests: usize) {
        self.unknown += requests as u64;
    }

    /// How many acknowledgements have come.
    pub(super) fn acked(&self) -> u64 {
        self.acked
    }

    /// Sums up. If nothing came any more before the end, that is a gap too.
    pub(super) fn report(&self) -> Report {
        let last_gap = self.end.saturating_duration_since(self.last);
        Report {
            acked_per_second: self.acked_in_time as f64 / (self.end - self.start).as_secs_f64(),
            p50_us: self.latency.value_at_quantile(0.5),
            p99_us: self.latency.value_at_quantile(0.99),
            p999_us: self.latency.value_at_quantile(0.999),
            longest_gap_ms: self.longest_gap.max(last_gap).as_secs_f64() * 1000.0,
            acked: self.acked,
            unknown: self.unknown,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_and_gaps_come_from_what_was_acknowledged_before_the_end() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut meter = Meter::new(start, at(1000));
        for ms in 1..=100 {
            meter.acknowledge(at(ms - 1), at(ms));
        }
        meter.acknowledge(at(100), at(700));
        meter.acknowledge(at(100), at(1500));
        let report = meter.report();
        assert_eq!((report.acked, report.acked_per_second), (102, 101.0));
        assert_eq!(report.p50_us, 1000);
        assert!(report.p999_us >= 599_000, "{report:?}");
        assert_eq!(report.longest_gap_ms, 600.0);
    }

    #[test]
    fn silence_until_the_end_is_a_gap() {
        let start = Instant::now();
        let mut meter = Meter::new(start, start + Duration::from_secs(2));
        meter.acknowledge(start, start + Duration::from_millis(500));
        assert_eq!(meter.report().longest_gap_ms, 1500.0);
    }
}
