//! Measures what many people and much data cost, with real servers; see `scripts/figures --help`. Exit code 0: every
//! goal is met.
#![allow(clippy::unwrap_used, reason = "a measurement that can't go on fails")]

mod data;
mod fill;
mod load;
mod people;
mod servers;
#[path = "../world/mod.rs"]
mod world;

use clap::{Parser, Subcommand};
use lastword::server::limits;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use tokio::signal::unix::{SignalKind, signal};

/// Measures what many people and much data cost.
#[derive(Debug, Parser)]
#[command(name = "scale")]
struct Arguments {
    #[command(subcommand)]
    what: Option<What>,
    /// Where the servers' directories are made; it must be on a disk
    #[arg(long, default_value = env!("CARGO_TARGET_TMPDIR"))]
    directory: PathBuf,
    /// What `cargo bench` passes to every bench, and `cargo test` does not
    #[arg(long, hide = true, global = true)]
    bench: bool,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Memory of an idle logged-in connection, and what happens at the limit
    Connections {
        /// How many clients
        clients: u64,
    },
    /// kill -9 of the primary: how long until every client is served again
    Return {
        /// How many clients
        clients: u64,
    },
    /// Restart, memory and throughput with much data
    Data(data::Amount),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let Some(what) = arguments.what.filter(|_| arguments.bench) else {
        eprintln!("nothing is measured: this is a test of all targets");
        return ExitCode::SUCCESS;
    };
    if let Some(warning) = limits::raise_file_limit().warning {
        eprintln!("{warning}");
    }
    std::fs::create_dir_all(&arguments.directory).unwrap();
    let directory = tempfile::tempdir_in(&arguments.directory).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let met = runtime.block_on(async {
        tokio::select! {
            met = measure(&what, directory.path()) => met,
            // Servers and directories end with what holds them.
            () = interrupted() => false,
        }
    });
    println!("{}", if met { "MET" } else { "NOT MET" });
    if met { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

async fn measure(what: &What, directory: &Path) -> bool {
    match what {
        What::Connections { clients } => people::connections(directory, *clients).await,
        What::Return { clients } => people::come_back(directory, *clients).await,
        What::Data(amount) => data::measure(directory, amount).await,
    }
}

async fn interrupted() {
    let mut terminated = signal(SignalKind::terminate()).unwrap();
    tokio::select! {
        _ = terminated.recv() => {}
        _ = tokio::signal::ctrl_c() => {}
    }
}
