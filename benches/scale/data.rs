//! Much data: restart, memory and throughput beside empty servers, what a checkpoint does to latencies, catch-up.

use crate::fill::fill;
use crate::load::Load;
use crate::servers::{Servers, bytes_below, program};
use clap::Args;
use lastword::message::Status;
use serde_json::Value;
use std::ops::Range;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use tokio::time::sleep;

const RATIO_GOAL: f64 = 0.8;
const RESTART_GOAL: Duration = Duration::from_secs(20);
const RESIDENT_GOAL: u64 = 3 << 30;
const P99_GOAL: f64 = 2.0;
const CATCH_UP_GOAL: Duration = Duration::from_secs(10);
/// What loads the servers: the words of `client bench`.
const POINTS: [(&str, &str); 2] = [("64", "1"), ("4", "256")];

/// The accounts of an even load, one request under way each, of which the latencies are those of people; and of one that
/// makes the log grow.
const EVEN: Range<u64> = 0..16;
const PUMP: Range<u64> = 16..20;
const PUMP_WINDOW: usize = 64;
/// How long latencies are measured before something happens.
const SETTLING: Duration = Duration::from_secs(3);
const GLANCE: Duration = Duration::from_millis(5);
/// How long the log may grow until a checkpoint is written.
const PATIENCE: Duration = Duration::from_secs(600);

/// How much data, and how it is looked at.
#[derive(Debug, Args)]
pub(crate) struct Amount {
    /// How many accounts
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(20..))]
    accounts: u64,
    /// How many messages that nobody has read, at most 100,000 an account
    #[arg(long, default_value_t = 1_000_000)]
    messages: u64,
    /// How many servers; catch-up is measured with more than one only
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=3))]
    servers: u8,
    /// How often throughput is measured on both, in turns
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=99))]
    passes: u32,
    /// How long each time, in seconds
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=600))]
    seconds: u32,
    /// How many entries a server has to catch up with
    #[arg(long, default_value_t = 1_000_000)]
    behind: u64,
}

/// All that is asked of servers with much data.
pub(crate) async fn measure(directory: &Path, amount: &Amount) -> bool {
    let count = usize::from(amount.servers);
    let mut full = Servers::new(directory.join("full"), count);
    let mut next = fill(&full.addresses, &full.all_data(), amount.accounts, amount.messages).await;
    println!("on disk: {} MiB each", bytes_below(&full.data(0)) >> 20);
    let begun = Instant::now();
    let primary = full.start_all().await;
    let restart = begun.elapsed();
    let met = restart <= RESTART_GOAL;
    println!("restart of all: {:.1} s; goal: {} s", restart.as_secs_f64(), RESTART_GOAL.as_secs());
    let met = met & resident(&full, primary);
    let mut empty = Servers::new(directory.join("empty"), count);
    empty.start_all().await;
    let met = met & throughput(&full, &empty, amount);
    drop(empty);
    let met = if count == 1 { met } else { met & catch_up(&mut full, amount, &mut next).await };
    met & checkpoint(&full, primary, amount.accounts, &mut next).await
}

/// What a server takes that has just started: throughput adds messages to those that were asked for.
fn resident(servers: &Servers, primary: usize) -> bool {
    let (now, most) = (servers.resident(primary), servers.resident_max(primary));
    println!(
        "resident memory of the primary: {} MiB, at most {} MiB; goal: {}",
        now >> 20,
        most >> 20,
        RESIDENT_GOAL >> 20
    );
    most <= RESIDENT_GOAL
}

/// Throughput on full servers, as a ratio to that on empty ones within each pass.
fn throughput(full: &Servers, empty: &Servers, amount: &Amount) -> bool {
    let mut met = true;
    for (clients, window) in POINTS {
        let mut ratios = Vec::new();
        for pass in 0..amount.passes {
            let mut pair = [empty, full];
            if pass % 2 == 1 {
                pair.reverse();
            }
            let mut found = pair.map(|servers| bench(servers, clients, window, amount.seconds));
            if pass % 2 == 1 {
                found.reverse();
            }
            println!("{clients}x{window}: {:.0} a second empty, {:.0} full", found[0], found[1]);
            ratios.push(found[1] / found[0]);
        }
        ratios.sort_by(f64::total_cmp);
        let median = ratios[ratios.len() / 2];
        println!("{clients}x{window}: {median:.2} of the empty servers' throughput; goal: {RATIO_GOAL}");
        met &= median >= RATIO_GOAL;
    }
    met
}

/// What `client bench` acknowledges in a second.
fn bench(servers: &Servers, clients: &str, window: &str, seconds: u32) -> f64 {
    let mut command = Command::new(program(env!("CARGO_BIN_EXE_client")));
    command.args(["--servers", &servers.addresses.join(","), "--json", "bench", "--keep"]);
    command.args(["--clients", clients, "--window", window, "--seconds", &seconds.to_string()]);
    let output = command.stderr(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "client bench failed: {}", String::from_utf8_lossy(&output.stdout));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    report["acked_per_second"].as_f64().expect("the report has this number")
}

/// Loads until a checkpoint was written, and compares the latencies meanwhile with those before it.
async fn checkpoint(servers: &Servers, primary: usize, all: u64, next: &mut u32) -> bool {
    let writing = servers.data(primary).join("checkpoints/writing");
    let even = Load::start(servers, EVEN, all, 1, *next);
    let pump = Load::start(servers, PUMP, all, PUMP_WINDOW, *next);
    // One that the throughput has brought about may still be under way.
    let quiet = wait_until(|| !writing.exists()).await;
    sleep(SETTLING).await;
    let begun = Instant::now();
    let written = quiet && wait_until(|| writing.exists()).await;
    let from = Instant::now();
    let written = written && wait_until(|| !writing.exists()).await;
    let until = Instant::now();
    if !written {
        *next = even.stop().await.max(pump.stop().await);
        println!("no checkpoint was written within {} s of load", PATIENCE.as_secs());
        return false;
    }
    let (before, during) = (even.p99(begun, from), even.p99(from, until));
    *next = even.stop().await.max(pump.stop().await);
    let ratio = during.as_secs_f64() / before.as_secs_f64();
    println!(
        "p99: {} us in the {:.1} s before a checkpoint, {} us in the {:.1} s while it was written: {ratio:.2}; goal: {P99_GOAL}",
        before.as_micros(),
        from.duration_since(begun).as_secs_f64(),
        during.as_micros(),
        until.duration_since(from).as_secs_f64()
    );
    ratio <= P99_GOAL
}

/// Whether it comes: the log has to grow by as much as the tables have before a checkpoint is due, which may take long.
async fn wait_until(reached: impl Fn() -> bool) -> bool {
    let begun = Instant::now();
    while !reached() {
        if begun.elapsed() > PATIENCE {
            return false;
        }
        sleep(GLANCE).await;
    }
    true
}

/// Lets a backup miss entries, and measures how long it takes to be one again, and what the clients notice of that.
async fn catch_up(servers: &mut Servers, amount: &Amount, next: &mut u32) -> bool {
    // On a machine that is busy with other things another server may lead by now.
    let primary = servers.wait_members(servers.addresses.len()).await;
    let absent = (primary + 1) % servers.addresses.len();
    let last = async |servers: &Servers| {
        servers.wait_for("the primary's log", |states| states[primary].as_ref().map(|state| state.last)).await
    };
    servers.kill(absent);
    servers.wait_members(servers.addresses.len() - 1).await;
    let from = last(servers).await;
    let pump = Load::start(servers, PUMP, amount.accounts, 256, *next);
    while last(servers).await < from + amount.behind {
        sleep(GLANCE).await;
    }
    *next = pump.stop().await;
    let even = Load::start(servers, EVEN, amount.accounts, 1, *next);
    sleep(SETTLING).await;
    let settled = Instant::now();
    sleep(SETTLING).await;
    servers.start(absent);
    let started = Instant::now();
    servers.wait_for("the server that was away", |states| states[absent].as_ref().map(|_| ())).await;
    let answered = Instant::now();
    let is_backup = |state: &Option<Status>| state.as_ref().is_some_and(|state| state.role == "backup");
    servers.wait_for("that server as a backup", |states| is_backup(&states[absent]).then_some(())).await;
    let caught_up = Instant::now();
    let (before, during) = (even.p99(settled, started), even.p99(answered, caught_up));
    *next = even.stop().await;
    let took = caught_up.duration_since(answered);
    let ratio = during.as_secs_f64() / before.as_secs_f64();
    println!(
        "a server {} entries behind: {:.1} s from its disk, then {:.1} s until it was a backup; goal: {} s; p99 {} us before, {} us \
         while it caught up: {ratio:.2}; goal: {P99_GOAL}",
        amount.behind,
        answered.duration_since(started).as_secs_f64(),
        took.as_secs_f64(),
        CATCH_UP_GOAL.as_secs(),
        before.as_micros(),
        during.as_micros()
    );
    took <= CATCH_UP_GOAL && ratio <= P99_GOAL
}
