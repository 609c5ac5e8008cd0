//! The simulator: the real replication core, the real storage code and the real client policy in one process, on a
//! virtual clock, with a simulated disk and network. One seed is one history; the same seed is the same history.
//!
//! ```text
//! cargo test --test simulation                            fixed seeds, failed seeds, scenarios
//! SIM_SEED=0x1538 cargo test --test simulation swarm      replays one seed; SIM_TRACE=1 prints each step
//! SIM_SEEDS=20000 cargo test --test simulation swarm      so many fresh seeds, and what they amounted to
//! SIM_MINUTES=10 cargo test --test simulation swarm       fresh seeds for so long; scripts/soak does that
//! SIM_VIOLATIONS=10 …                                     goes on until so many seeds have failed
//! SIM_BASE=7 …                                            the same fresh seeds each time: to compare two builds
//! SIM_SPLITS=1 …                                          every seed splits the brain, not only each fifth
//! ```
//!
//! To see a rule die: `scripts/mutants V5-last`; the list is `tests/mutants.csv`.
//!
//! - `queue`, `clock`, `trace`: what happens next, what time it is where, what has happened.
//! - `network`, `server`, `client`: the simulated shell around the real parts.
//! - `swarm`, `nemesis`, `faults`: which faults a seed has, when they strike, how often they did.
//! - `liveness`: some servers stay broken for ever, and the others must go on.
//! - `check/`: what must hold after every step; `oracle`: what clients know; `runner`: seeds, healing, final checks.
//! - `scenarios`, `splits`, `odd_one`, `rules`: directed histories, each named after the fact it shows.
//! - `view_model`: a model of the view change alone, for rules that no seed shows the need of.

mod check;
mod client;
mod clock;
mod faults;
mod liveness;
mod nemesis;
mod network;
mod odd_one;
mod oracle;
mod queue;
mod rules;
mod runner;
mod scenarios;
mod server;
mod splits;
mod swarm;
mod trace;
mod view_model;
mod world;

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use lastword::prng::Prng;

use runner::{History, Outcome, Violation, report, run_seeds, try_seed};

/// The servers' own: histories allocate much, on several threads.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// So many seeds, always the same, are run by every test run: a commit's tests pass or fail for what is in it. Fresh
/// seeds belong to `scripts/soak`.
const FIXED_SEEDS: u64 = 400;
/// … and so many of those in which some servers stay broken for ever.
const FIXED_LIVENESS_SEEDS: u64 = 150;
/// In so many fresh seeds, and in the fixed ones, every required fault must have fired.
const SEEDS_FOR_EVERY_FAULT: u64 = 1000;
/// A long run says so often how far it is.
const PROGRESS_SEEDS: u64 = 10_000;

fn number(text: &str) -> Option<u64> {
    let text = text.trim();
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}

fn environment(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(number(&text).unwrap_or_else(|| panic!("{name}={text}: expected a number, as 1538 or 0x1538")))
}

fn fresh_seed() -> u64 {
    let nanos = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_nanos();
    Prng::new(u64::try_from(nanos & u128::from(u64::MAX)).expect("masked") ^ u64::from(std::process::id()))
        .next_u64()
}

fn fail(violations: &[Violation], count: u64) {
    if violations.is_empty() {
        return;
    }
    let lines: Vec<_> = violations.iter().map(report).collect();
    panic!("{} of {count} seeds failed\n{}", violations.len(), lines.join("\n"));
}

/// How long all threads of this process have worked so far, where the system says so: unlike the time on the wall it
/// does not depend on what else the machine does.
fn processor_time() -> Option<Duration> {
    const TICK: Duration = Duration::from_millis(10);
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // The second field, a name in parentheses, may hold spaces; user and system time are the 14th and 15th.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = |at: usize| fields.get(at)?.parse::<u32>().ok();
    Some(TICK * (ticks(11)? + ticks(12)?))
}

fn print_summary(count: u64, outcome: &Outcome, took: Duration) {
    let seconds = took.as_secs_f64();
    let simulated = outcome.simulated.as_secs_f64();
    eprintln!(
        "{count} seeds in {seconds:.1} s: {:.1} seeds/s, {:.1} simulated hours ({:.0} x real time), {} steps, \
         {} entries committed, {} commands acknowledged, {} reads checked, {} outcomes unknown\n{}",
        count as f64 / seconds,
        simulated / 3600.0,
        simulated / seconds,
        outcome.steps,
        outcome.committed,
        outcome.acknowledged,
        outcome.reads,
        outcome.unknown,
        outcome.faults
    );
    if let Some(worked) = processor_time() {
        let worked = worked.as_secs_f64();
        eprintln!(
            "  on one core: {:.2} ms a seed, {:.0} x real time; hash of all traces {:016x}",
            1000.0 * worked / count as f64,
            simulated / worked,
            outcome.hash
        );
    }
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    eprintln!("  {}", check::searches::summary(took * u32::try_from(cores).expect("few cores")));
}

/// Fresh seeds: so many, or else for so long.
fn run_fresh(history: History, wanted: Option<u64>, minutes: u64) -> (u64, Outcome, Vec<Violation>) {
    let begun = std::time::Instant::now();
    let until = Duration::from_secs(60 * minutes);
    let base = environment("SIM_BASE").unwrap_or_else(fresh_seed);
    let next = AtomicU64::new(0);
    run_seeds(history, || {
        let place = next.fetch_add(1, Ordering::Relaxed);
        if place > 0 && place.is_multiple_of(PROGRESS_SEEDS) {
            eprintln!("{place} seeds without a violation in {} s", begun.elapsed().as_secs());
        }
        let more = wanted.map_or_else(|| begun.elapsed() < until, |wanted| place < wanted);
        more.then(|| Prng::new(base.wrapping_add(place)).next_u64())
    })
}

fn run_listed(history: History, seeds: &[u64]) -> (u64, Outcome, Vec<Violation>) {
    let next = AtomicU64::new(0);
    run_seeds(history, || {
        seeds.get(usize::try_from(next.fetch_add(1, Ordering::Relaxed)).expect("small")).copied()
    })
}

/// One seed if the environment names one, fresh ones if it says how many or for how long, else the fixed ones.
fn run_test(history: History) -> (u64, Outcome) {
    let begun = std::time::Instant::now();
    let named = environment("SIM_SEED");
    let (wanted, minutes) = (environment("SIM_SEEDS"), environment("SIM_MINUTES"));
    let (count, outcome, violations) = match named {
        Some(seed) => run_listed(history, &[seed]),
        None if wanted.is_some() || minutes.is_some() => {
            run_fresh(history, wanted, minutes.unwrap_or_default())
        }
        None => run_listed(history, &fixed_seeds(history)),
    };
    print_summary(count, &outcome, begun.elapsed());
    fail(&violations, count);
    check::searches::demand_decided();
    if let (Some(seed), true) = (named, std::env::var_os("SIM_TRACE").is_some()) {
        history.run(seed, trace::Trace::new(true, true), &mut None);
    }
    (count, outcome)
}

fn fixed_seeds(history: History) -> Vec<u64> {
    let count = match history {
        History::Swarm => FIXED_SEEDS,
        History::Liveness => FIXED_LIVENESS_SEEDS,
    };
    (0..count).map(|n| Prng::new(0x1538 + n).next_u64()).collect()
}

#[test]
fn swarm() {
    let (count, outcome) = run_test(History::Swarm);
    let missing = outcome.faults.missing(count);
    let enough =
        (count == FIXED_SEEDS || count >= SEEDS_FOR_EVERY_FAULT) && std::env::var_os("SIM_SPLITS").is_none();
    assert!(!enough || missing.is_empty(), "in {count} seeds these faults fired too rarely: {missing:?}");
}

#[test]
fn liveness() {
    run_test(History::Liveness);
}

#[test]
fn seeds_that_failed_once_hold_now() {
    let lines: Vec<&str> = include_str!("failed_seeds.txt")
        .lines()
        .map(|line| line.split('#').next().unwrap_or_default().trim())
        .filter(|line| !line.is_empty())
        .collect();
    for history in [History::Swarm, History::Liveness] {
        let of_this =
            |line: &&str| line.ends_with(History::Liveness.test()) == (history == History::Liveness);
        let seeds: Vec<u64> = lines.iter().copied().filter(of_this).map(failed_seed).collect();
        let (count, _, violations) = run_listed(history, &seeds);
        fail(&violations, count);
    }
}

fn failed_seed(line: &str) -> u64 {
    let seed = line.strip_suffix(History::Liveness.test()).unwrap_or(line);
    number(seed).unwrap_or_else(|| panic!("failed_seeds.txt: {line:?}: expected a seed, perhaps `liveness`"))
}

#[test]
fn two_runs_of_one_seed_have_the_same_trace() {
    for seed in [1, 0x1538, 0xdead_beef] {
        let first = try_seed(History::Swarm, seed).unwrap_or_else(|what| panic!("seed {seed:#x}: {what}"));
        let second =
            try_seed(History::Swarm, seed).unwrap_or_else(|what| panic!("seed {seed:#x}, run again: {what}"));
        assert_eq!(first.hash, second.hash, "seed {seed:#x} has two histories");
        assert_eq!(first.steps, second.steps);
    }
}
