//! Measures lastword beside the floor and beside peers, in one run: see `scripts/compare --help`.
//!
//! The floor is what the promise costs without any chat: three processes, every byte relayed to two of them and synced
//! on all three before it is acknowledged. All systems are three servers on this machine, with fresh directories for
//! every point; passes go round all systems and points, so that what the machine does meanwhile hits all alike. Ratios
//! are taken within a pass.
#![allow(clippy::unwrap_used, reason = "a measurement that can't go on fails")]

mod cluster;
mod floor;
mod load;
mod table;

use clap::Parser;
use cluster::System;
use load::Point;
use std::path::PathBuf;
use table::Table;

/// Compares lastword with the floor and with peers, as ratios within one run.
#[derive(Debug, Parser)]
#[command(name = "compare")]
struct Arguments {
    /// How often every point is measured
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    passes: u32,
    /// How long one measurement takes, in seconds
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=3600))]
    seconds: u32,
    /// What is measured: CLIENTS, one request under way each; CLIENTSxWINDOW; deliver:… for lastword's send and deliver
    #[arg(long, value_delimiter = ',', default_value = "1,16,64,256,4x256,deliver:64,deliver:4x256")]
    points: Vec<Point>,
    /// What is compared
    #[arg(long, value_delimiter = ',', value_enum, default_value = "floor,lastword,redis,nats")]
    systems: Vec<System>,
    /// The program of Redis
    #[arg(long, default_value = "redis-server")]
    redis: PathBuf,
    /// The program of NATS
    #[arg(long, default_value = "nats-server")]
    nats: PathBuf,
    /// Where the servers' directories are made; it must be on a disk
    #[arg(long, default_value = env!("CARGO_TARGET_TMPDIR"))]
    directory: PathBuf,
    /// What `cargo bench` passes to every bench, and `cargo test` does not
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [floor::BACKUP, port, directory] => floor::run_backup(port.parse().unwrap(), directory.as_ref()),
        [floor::PRIMARY, port, directory, first, second] => {
            let backups = [first.parse().unwrap(), second.parse().unwrap()];
            runtime().block_on(floor::run_primary(port.parse().unwrap(), directory.as_ref(), backups));
        }
        _ => runtime().block_on(compare(&Arguments::parse())),
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

async fn compare(arguments: &Arguments) {
    if !arguments.bench {
        eprintln!("nothing is measured: this is a test of all targets");
        return;
    }
    let (mut systems, mut missing) = (Vec::new(), Vec::new());
    for &system in &arguments.systems {
        let found = system.program(arguments).is_none_or(|program| cluster::is_installed(&program));
        if found { systems.push(system) } else { missing.push(system) }
    }
    let mut table = Table::default();
    for pass in 1..=arguments.passes {
        for &point in &arguments.points {
            // Every other pass goes round the other way, so that nobody always comes after the same neighbour.
            if pass % 2 == 0 {
                systems.reverse();
            }
            for &system in systems.iter().filter(|system| system.takes(point)) {
                eprintln!("pass {pass} of {}: {point}, {system}", arguments.passes);
                let sample = cluster::measure(system, point, arguments).await;
                table.add(pass, system, point, sample);
            }
            if pass % 2 == 0 {
                systems.reverse();
            }
        }
    }
    print!("{}", table.print(arguments.passes, arguments.seconds, &missing));
}
