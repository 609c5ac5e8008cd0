//! What happened: a hash over every step, and, if asked for, one line a step.

use std::collections::VecDeque;

use lastword::time::Instant;

/// How many lines are kept for a failure report.
pub(crate) const LINES_KEPT: usize = 4000;

/// A running hash, and lines if they are wanted.
#[derive(Debug)]
pub(crate) struct Trace {
    hash: u64,
    steps: u64,
    /// Whether lines are kept.
    pub on: bool,
    print: bool,
    lines: VecDeque<String>,
}

impl Trace {
    /// With `on` lines are kept; with `print` they go to standard error too.
    pub(crate) fn new(on: bool, print: bool) -> Self {
        Self { hash: 0xcbf2_9ce4_8422_2325, steps: 0, on: on || print, print, lines: VecDeque::new() }
    }

    /// Mixes a number into the hash.
    pub(crate) fn mix(&mut self, number: u64) {
        self.hash = (self.hash.rotate_left(5) ^ number).wrapping_mul(0x517c_c1b7_2722_0a95);
    }

    /// Counts a step at this time.
    pub(crate) fn step(&mut self, now: Instant) {
        self.steps += 1;
        self.mix(now.as_nanos());
    }

    /// Keeps a line.
    pub(crate) fn line(&mut self, now: Instant, text: &str) {
        let nanos = now.as_nanos();
        let line = format!("{:>3}.{:06} {text}", nanos / 1_000_000_000, nanos / 1_000 % 1_000_000);
        if self.print {
            eprintln!("{line}");
        }
        if self.lines.len() == LINES_KEPT {
            self.lines.pop_front();
        }
        self.lines.push_back(line);
    }

    /// Two runs of one seed have the same.
    pub(crate) fn hash(&self) -> u64 {
        self.hash
    }

    /// How many steps there were.
    pub(crate) fn steps(&self) -> u64 {
        self.steps
    }

    /// The lines that were kept.
    pub(crate) fn lines(&self) -> impl Iterator<Item = &String> {
        self.lines.iter()
    }
}
