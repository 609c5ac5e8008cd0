//! Mutated bytes for every decoder: frames of clients, servers and the handshake, streams of frames, rows, logs, tables.
//!
//! The corpus is what protocol.md shows and what the encoders write; each input is one of these, damaged a few times,
//! and what still decodes joins the corpus. A decoder reads or refuses, it never panics, and what it has read is
//! written again as the same bytes, so nothing that was read can be larger than what came in. A seed gives the same
//! inputs for ever; a failure prints the line that replays it. `scripts/fuzz` runs this for minutes.
#![allow(clippy::unwrap_used, reason = "a test that can't go on fails")]

#[path = "../log_model/mod.rs"]
mod log_model;

mod corpus;
mod mutate;
mod targets;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use lastword::prng::Prng;

use corpus::Corpus;
use mutate::mutate;
use targets::{TARGETS, Target, Verdict};

/// What a run that is not told otherwise takes.
const SECONDS: u64 = 3;
const SEED: u64 = 0x1538;
/// A corpus keeps so many inputs that still decode.
const KEPT_MAX: usize = 512;
/// How much more memory the process may hold at the end than after the first tenth.
const GROWTH_KIB_MAX: u64 = 16 * 1024;

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    let parsed = text.strip_prefix("0x").map_or_else(|| text.parse(), |hex| u64::from_str_radix(hex, 16));
    Some(parsed.unwrap_or_else(|error| panic!("{name}={text}: {error}, expected a number")))
}

/// The memory that this process holds now.
fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a line VmRSS");
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// One target with its inputs and what became of them.
struct Bench {
    target: Target,
    corpus: Corpus,
    executions: u64,
    bytes: u64,
    read: u64,
}

impl Bench {
    /// Runs one input; the same round gives the same input as long as the rounds before it ran.
    fn run(&mut self, prng: &mut Prng, replay: &str) {
        let mut input = self.corpus.draw(prng).to_vec();
        let other = self.corpus.draw(prng).to_vec();
        for _ in 0..=prng.below(4) {
            mutate(&mut input, &other, prng);
        }
        input.truncate(self.target.bytes_max);
        let verdict = catch_unwind(AssertUnwindSafe(|| (self.target.run)(&input, prng)));
        let Ok(verdict) = verdict else {
            panic!("{} failed on these bytes: {}\nreplay: {replay}", self.target.name, input.escape_ascii());
        };
        self.executions += 1;
        self.bytes += input.len() as u64;
        if verdict == Verdict::Read {
            self.read += 1;
            self.corpus.keep(input, KEPT_MAX, prng);
        }
    }
}

#[test]
fn mutated_bytes_are_read_as_they_are_written_or_refused_and_memory_stays_flat() {
    let seed = number("FUZZ_SEED").unwrap_or(SEED);
    let until = Instant::now() + Duration::from_secs(number("FUZZ_SECONDS").unwrap_or(SECONDS));
    let rounds_max = number("FUZZ_ROUNDS").unwrap_or(u64::MAX);
    let mut prng = Prng::new(seed);
    let mut benches: Vec<Bench> = TARGETS
        .iter()
        .map(|&target| Bench { target, corpus: (target.corpus)(), executions: 0, bytes: 0, read: 0 })
        .collect();
    let started = Instant::now();
    let warm = started + (until - started) / 10;
    let (mut resident_warm, mut rounds) = (None, 0);
    while Instant::now() < until && rounds < rounds_max {
        rounds += 1;
        let replay =
            format!("FUZZ_SEED=0x{seed:x} FUZZ_ROUNDS={rounds} FUZZ_SECONDS=86400 cargo test --test fuzz");
        for bench in &mut benches {
            for _ in 0..bench.target.share {
                bench.run(&mut prng, &replay);
            }
        }
        if resident_warm.is_none() && Instant::now() > warm {
            resident_warm = Some(resident_kib());
        }
    }
    let resident = resident_kib();
    let before = resident_warm.unwrap_or(resident);
    let (mut executions, mut bytes) = (0, 0);
    for Bench { target, executions: run, bytes: fed, read, .. } in &benches {
        println!("{:12} {run:>10} inputs {fed:>12} bytes {read:>10} read", target.name);
        executions += run;
        bytes += fed;
        // A target that reads nothing, or refuses nothing, tests nothing.
        assert!(
            rounds < 200 || (*read > 0 && read < run),
            "{}: {read} of {run} inputs were read",
            target.name
        );
    }
    println!(
        "seed 0x{seed:x}: {executions} inputs, {bytes} bytes, resident {before} KiB at first, {resident} at the end"
    );
    assert!(resident < before + GROWTH_KIB_MAX, "memory grew from {before} KiB to {resident} KiB");
}
