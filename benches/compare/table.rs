//! The samples as a table: medians, and ratios to the floor within each pass.

use crate::cluster::System;
use crate::load::{Point, Sample};
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// All samples.
#[derive(Default)]
pub(crate) struct Table {
    samples: BTreeMap<(Point, System, u32), Sample>,
}

/// The middle, the least and the greatest of some numbers.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Spread {
    median: f64,
    min: f64,
    max: f64,
}

impl Spread {
    fn of(numbers: impl Iterator<Item = f64>) -> Option<Self> {
        let mut numbers: Vec<f64> = numbers.collect();
        numbers.sort_by(f64::total_cmp);
        let (min, max) = (*numbers.first()?, *numbers.last()?);
        let (low, high) = (numbers[(numbers.len() - 1) / 2], numbers[numbers.len() / 2]);
        Some(Self { median: f64::midpoint(low, high), min, max })
    }

    fn ratio(self) -> String {
        format!("{:.2} ({:.2}-{:.2})", self.median, self.min, self.max)
    }
}

/// One of the numbers of a sample.
type Field = fn(&Sample) -> f64;
const ACKED: Field = |sample| sample.acked_per_second;
const P99: Field = |sample| sample.p99_us;
const CPU: Field = |sample| sample.cpu_us;

impl Table {
    pub(crate) fn add(&mut self, pass: u32, system: System, point: Point, sample: Sample) {
        self.samples.insert((point, system, pass), sample);
    }

    fn spread(&self, point: Point, system: System, field: Field) -> Option<Spread> {
        let own = self.samples.range((point, system, 0)..=(point, system, u32::MAX));
        Spread::of(own.map(|(_, sample)| field(sample)))
    }

    /// A number of one system, divided by that of the base in the same pass.
    fn ratio(&self, of: (Point, System), to: (Point, System), field: Field) -> String {
        let own = self.samples.range((of.0, of.1, 0)..=(of.0, of.1, u32::MAX));
        let ratios = own.filter_map(|((_, _, pass), sample)| {
            Some(field(sample) / field(self.samples.get(&(to.0, to.1, *pass))?))
        });
        Spread::of(ratios).map_or_else(|| "-".to_owned(), Spread::ratio)
    }

    /// The whole table, with what has to be known to read it.
    pub(crate) fn print(&self, passes: u32, seconds: u32, missing: &[System]) -> String {
        let mut out = format!(
            "Medians of {passes} passes of {seconds} s; in brackets the least and the greatest. Ratios are taken \
             within a pass:\nto the floor; those of deliver to lastword's own send.\n\n"
        );
        let mut rows: Vec<(Point, System)> = self.samples.keys().map(|key| (key.0, key.1)).collect();
        rows.dedup();
        let header =
            ["clients x window", "system", "acked/s", "ratio", "p99 us", "ratio", "cpu us/msg", "ratio"];
        line(&mut out, &header.map(str::to_owned));
        for (point, system) in rows {
            let base = if point.delivers {
                (Point { delivers: false, ..point }, System::Lastword)
            } else {
                (point, System::Floor)
            };
            let median = |field| self.spread(point, system, field).expect("the row has samples").median;
            let ratio = |field| self.ratio((point, system), base, field);
            line(
                &mut out,
                &[
                    point.to_string(),
                    system.to_string(),
                    format!("{:.0}", median(ACKED)),
                    ratio(ACKED),
                    format!("{:.0}", median(P99)),
                    ratio(P99),
                    format!("{:.1}", median(CPU)),
                    ratio(CPU),
                ],
            );
        }
        out.push_str(
            "\nBefore they acknowledge, floor and lastword have it synced on all three disks. Redis (append-only file \
             always synced,\nWAIT 2) has it received by all three, and as implemented synced. NATS has it in the page \
             cache of two of three, and\nsyncs every two minutes. With a window above 1, Redis gets it as one batch \
             with one WAIT, whose latency is that of\nthe batch. CPU is that of the three servers.\n",
        );
        for system in missing {
            let _ = writeln!(out, "{system} is not installed, and so not measured.");
        }
        out
    }
}

fn line(out: &mut String, cells: &[String; 8]) {
    let [point, system, acked, acked_ratio, p99, p99_ratio, cpu, cpu_ratio] = cells;
    let _ = writeln!(
        out,
        "{point:16} {system:8} {acked:>9} {acked_ratio:>18} {p99:>8} {p99_ratio:>21} {cpu:>10} {cpu_ratio:>19}"
    );
}
