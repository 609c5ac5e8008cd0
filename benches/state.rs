//! Measures the state machine alone: what one entry costs, and what much data costs in memory and at a restart.
//!
//! Times are those of the processor: what else the machine does matters less. `cargo bench --bench state` applies sends of few and of many clients, on an empty state. With `--messages` it fills a
//! state first, says how much memory that takes, measures again, writes a checkpoint, and reads it back.
#![allow(clippy::unwrap_used, reason = "a measurement that can't go on fails")]
#![allow(clippy::disallowed_methods, reason = "this is about the clock and the disk")]

use clap::Parser;
use lastword::chat::State;
use lastword::chat::command::{ClientCommand, Command, Operation, Reply};
use lastword::message::{CheckpointResult, CheckpointStep, HardState, Position, ViewStart, Write};
use lastword::storage::{Opened, OsDisk, open};
use lastword::types::{AccountId, ClientId, LogIndex, RequestId, RequestNumber, ServerId, ViewNumber};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// As in the server.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Measures the state machine.
#[derive(Debug, Parser)]
#[command(name = "state")]
struct Arguments {
    /// How many accounts there are besides those that send
    #[arg(long, default_value_t = 0)]
    accounts: u64,
    /// How many messages wait for them, of 100 bytes each
    #[arg(long, default_value_t = 0)]
    messages: u64,
    /// Whom an account writes to: so many others
    #[arg(long, default_value_t = 10)]
    partners: u64,
    /// How many sends are timed for each number of clients
    #[arg(long, default_value_t = 300_000)]
    entries: u64,
    /// Where the checkpoint is written
    #[arg(long, default_value = env!("CARGO_TARGET_TMPDIR"))]
    directory: PathBuf,
    /// Leaves the checkpoint there, for `--open`
    #[arg(long)]
    keep: bool,
    /// Only opens a directory with a checkpoint, as a server does that starts
    #[arg(long)]
    open: Option<PathBuf>,
    /// What `cargo bench` passes to every bench, and `cargo test` does not
    #[arg(long, hide = true)]
    bench: bool,
}

/// Clients, and how many requests of one follow each other.
const POINTS: [(u64, u64); 3] = [(4, 64), (16, 1), (1000, 1)];
/// The cluster whose only server has the directory.
const SERVERS: [&str; 1] = ["127.0.0.1:1538"];
/// Operations made at a time, outside of what is timed.
const BATCH: u64 = 10_000;
/// The clients that send are numbered from here on, below all others.
const TIMED: u64 = 1;
/// The clients of the accounts that fill the state.
const FILLING: u64 = 1 << 32;

fn main() {
    let arguments = Arguments::parse();
    if !arguments.bench {
        eprintln!("nothing is measured: this is a test of all targets");
        return;
    }
    if let Some(directory) = &arguments.open {
        return restart(directory);
    }
    let mut bench = Bench::default();
    if arguments.messages > 0 {
        bench.fill(&arguments);
    }
    for (clients, run) in POINTS {
        let each = bench.time_sends(clients, run, arguments.entries);
        println!("send, {clients} clients, {run} in a row: {} ns", each.as_nanos());
    }
    if arguments.messages > 0 {
        bench.checkpoint_and_restart(&arguments);
    }
}

/// A state with its log's end.
#[derive(Default)]
struct Bench {
    state: State,
    last: Position,
    random: u64,
    /// The clients of earlier points: each point has its own.
    clients: u64,
}

impl Bench {
    /// xorshift64: always the same sequence.
    fn below(&mut self, bound: u64) -> u64 {
        self.random = if self.random == 0 { 0x9e37_79b9_7f4a_7c15 } else { self.random };
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % bound
    }

    fn apply(&mut self, operation: &Operation) -> Option<Reply> {
        let (index, chain) = (self.last.index.next(), self.last.chain.wrapping_add(1));
        self.last = Position { index, chain, ..self.last };
        self.state.apply(index, 1_700_000_000_000 + index.0 / 100, chain, operation).reply
    }

    fn register(&mut self, client: u64) {
        let request = RequestId { client: scattered(client), number: RequestNumber(1) };
        let command = Command::Register {
            name: format!("account-{client}"),
            password: format!("$argon2id$v=19$m=19456,t=2,p=1${:022}${client:043}", 0),
            token: [1; 32],
        };
        let account = AccountId(request);
        let reply = self.apply(&Operation::Command(ClientCommand {
            request,
            acknowledged: RequestNumber(0),
            account,
            command,
        }));
        assert_eq!(reply, Some(Reply::Registered { account }));
    }

    /// Sends and the registrations before them, in the order in which a server would see them.
    fn fill(&mut self, arguments: &Arguments) {
        let Arguments { accounts, messages, partners, .. } = *arguments;
        let before = resident_bytes();
        let started = cpu_time();
        for account in 0..accounts {
            self.register(FILLING + account);
        }
        let with_accounts = resident_bytes();
        let mut numbers = vec![1u32; usize::try_from(accounts).unwrap()];
        for _ in 0..messages {
            let from = self.below(accounts);
            let to = (from + 1 + self.below(partners)) % accounts;
            let number = &mut numbers[usize::try_from(from).unwrap()];
            *number += 1;
            let reply =
                self.apply(&send(FILLING + from, u64::from(*number), u64::from(*number) - 1, FILLING + to));
            assert!(matches!(reply, Some(Reply::Sent { .. })), "{reply:?}");
        }
        drop(numbers);
        let filled = resident_bytes();
        println!("filled in {:.1} s, resident {} MiB", (cpu_time() - started).as_secs_f64(), filled >> 20);
        println!("{} bytes an account", (with_accounts - before) / accounts);
        println!("{} bytes a message", (filled - with_accounts) / messages);
    }

    /// What one send costs, when `run` of a client follow each other.
    fn time_sends(&mut self, clients: u64, run: u64, entries: u64) -> Duration {
        let first = TIMED + self.clients;
        self.clients += clients;
        (first..first + clients).for_each(|client| self.register(client));
        let mut taken = Vec::new();
        let mut numbers = vec![1u64; usize::try_from(clients).unwrap()];
        for batch in 0..entries / BATCH {
            let operations: Vec<Operation> = (batch * BATCH..(batch + 1) * BATCH)
                .map(|at| {
                    let from = at / run % clients;
                    let number = &mut numbers[usize::try_from(from).unwrap()];
                    *number += 1;
                    let acknowledged = number.saturating_sub(2 * run + 1);
                    send(first + from, *number, acknowledged, first + (from + 1) % clients)
                })
                .collect();
            let before = cpu_time();
            for operation in &operations {
                let reply = self.apply(operation);
                assert!(matches!(reply, Some(Reply::Sent { .. })), "{reply:?}");
            }
            taken.push(cpu_time() - before);
        }
        // The lower quartile: what disturbs a batch only makes it slower.
        taken.sort_unstable();
        taken[taken.len() / 4] / u32::try_from(BATCH).unwrap()
    }

    /// Writes a checkpoint as a server does, then opens it in a process of its own: memory that this one has given back
    /// may still be counted as its own.
    fn checkpoint_and_restart(mut self, arguments: &Arguments) {
        let mut directory = tempfile::tempdir_in(&arguments.directory).unwrap();
        directory.disable_cleanup(arguments.keep);
        let mut opened = open_directory(directory.path());
        let servers = SERVERS.map(str::to_owned).to_vec();
        let hard = HardState { server: Some(ServerId(1)), servers, ..HardState::default() };
        opened.log.write(&Write::HardState(hard)).unwrap();
        let view = ViewNumber { counter: 1, proposer: ServerId(1) };
        opened.log.sync().unwrap();
        let mut step = |step| match opened.checkpoints.step(step) {
            CheckpointResult::Ok | CheckpointResult::Finished { .. } => {}
            other => panic!("{other:?}"),
        };
        let position = Position { view, ..self.last };
        let (views, digest) = (vec![ViewStart { view, start: LogIndex(1) }], self.state.digest());
        let started = cpu_time();
        let before = resident_bytes();
        self.state.begin_checkpoint();
        step(CheckpointStep::Begin { position, views, digest });
        let mut longest = Duration::ZERO;
        loop {
            let begun = cpu_time();
            let Some(slice) = self.state.next_slice(1024) else { break };
            longest = longest.max(cpu_time() - begun);
            step(CheckpointStep::Rows(slice));
        }
        step(CheckpointStep::Finish);
        println!(
            "checkpoint in {:.1} s, longest slice {} us, {} MiB more resident",
            (cpu_time() - started).as_secs_f64(),
            longest.as_micros(),
            resident_bytes().saturating_sub(before) >> 20
        );
        drop((opened, self));
        let mut again = std::process::Command::new(std::env::current_exe().unwrap());
        assert!(again.args(["--bench", "--open"]).arg(directory.path()).status().unwrap().success());
    }
}

fn open_directory(directory: &Path) -> Opened<OsDisk> {
    let servers = SERVERS.map(str::to_owned);
    open(OsDisk::open(directory).unwrap(), ServerId(1), &servers, &mut |_| {}).unwrap()
}

/// Opens a directory with a checkpoint.
fn restart(directory: &Path) {
    let (started, begun) = (cpu_time(), Instant::now());
    let opened = open_directory(directory);
    assert!(opened.recovered.state.has_accounts());
    println!(
        "restart in {:.1} s, {:.1} s of this thread, resident {} MiB, at most {} MiB",
        begun.elapsed().as_secs_f64(),
        (cpu_time() - started).as_secs_f64(),
        resident_bytes() >> 20,
        resident_bytes_max() >> 20
    );
    // Taking it apart takes long, and the process ends anyway.
    std::mem::forget(opened);
}

/// A client's id: not in the order in which they come.
fn scattered(client: u64) -> ClientId {
    ClientId(client.wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

/// 100 bytes from one client's account to another's.
fn send(client: u64, number: u64, acknowledged: u64, to: u64) -> Operation {
    let [account, to] = [client, to]
        .map(|client| AccountId(RequestId { client: scattered(client), number: RequestNumber(1) }));
    let request = RequestId { client: scattered(client), number: RequestNumber(number) };
    let command = Command::Send { to, text: format!("{number:0100}") };
    let acknowledged = RequestNumber(acknowledged);
    Operation::Command(ClientCommand { request, acknowledged, account, command })
}

fn resident_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split_ascii_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

/// The most there has been so far.
fn resident_bytes_max() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim_end_matches("kB").trim().parse::<u64>().unwrap() * 1024
}

/// How long this thread has run.
fn cpu_time() -> Duration {
    let schedstat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    Duration::from_nanos(schedstat.split_ascii_whitespace().next().unwrap().parse().unwrap())
}
