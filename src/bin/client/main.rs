//! The command-line client: one command, or without one a chat, line by line.

mod arguments;
mod bench;
mod commands;
mod conflicts;
mod input;
mod interactive;
mod output;
mod password;

use arguments::{Arguments, Command, process_environment};
use clap::Parser as _;
use clap::error::ErrorKind;
use lastword::client::session_store::SessionStore;
use lastword::client::{Client, ClientError, Settings};
use output::{Banner, Stop, talk};
use std::process::ExitCode;
use std::time::Instant;
use tokio::sync::mpsc;

/// As in the server: `bench` makes as many messages as a server takes.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Notices that may wait to be shown; more than a person reads are dropped.
const NOTICES_MAX: usize = 16;

fn main() -> ExitCode {
    let arguments = match parse() {
        Ok(arguments) => arguments,
        Err(code) => return code,
    };
    begin_log();
    let json = arguments.json;
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            talk(&format!("client: no asynchronous runtime: {error}"));
            return ExitCode::from(1);
        }
    };
    let result = runtime.block_on(run(arguments));
    // A thread may still wait for a line from standard input: it is not worth waiting for.
    runtime.shutdown_background();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(stop) => {
            stop.report(json);
            ExitCode::from(stop.exit_code())
        }
    }
}

/// Reads the command line. With `--json` in it, its errors are JSON too.
fn parse() -> Result<Arguments, ExitCode> {
    Arguments::try_parse().map_err(|error| {
        let asked_for = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
        if !asked_for && std::env::args_os().any(|argument| argument == "--json") {
            Stop::Usage(error.to_string().trim_end().to_owned()).report(true);
        } else {
            // Nothing can be done if nobody reads it.
            let _ = error.print();
        }
        if asked_for { ExitCode::SUCCESS } else { ExitCode::from(2) }
    })
}

/// `LASTWORD_LOG=debug` shows on standard error what the client library does.
fn begin_log() {
    let Some(filter) = process_environment("LASTWORD_LOG") else { return };
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
}

async fn run(arguments: Arguments) -> Result<(), Stop> {
    let resolved = arguments.resolve(&process_environment)?;
    if let Some(Command::Status) = &arguments.command {
        // Works without a login, and so without a place to remember one.
        return commands::status(&resolved.servers, arguments.json).await;
    }
    if let Some(Command::Bench(bench)) = &arguments.command {
        // Its accounts are its own, and their sessions need not outlive it.
        return tokio::select! {
            result = bench::run(bench, resolved, arguments.json) => result,
            stop = interrupted() => Err(stop),
        };
    }
    let store = SessionStore::open(&resolved.state_directory).map_err(ClientError::from)?;
    let settings = Settings {
        servers: resolved.servers,
        user: resolved.user,
        password: password::given(arguments.password_file.as_deref(), "LASTWORD_PASSWORD")?,
        timeout: Some(resolved.timeout),
    };
    let mut client = Client::new(settings, store)?;
    let (notices_in, notices) = mpsc::channel(NOTICES_MAX);
    client.notify(notices_in);
    let Some(command) = &arguments.command else {
        return interactive::run(&mut client, notices, &arguments).await;
    };
    let quiet = arguments.json;
    tokio::select! {
        result = commands::run(&mut client, &arguments, command) => result,
        stop = interrupted() => Err(stop),
        () = show(notices, quiet) => unreachable!("the client holds the other end"),
    }
}

/// Waits for Ctrl-C.
pub(crate) async fn interrupted() -> Stop {
    match tokio::signal::ctrl_c().await {
        Ok(()) => Stop::Interrupted,
        Err(error) => Stop::Local(format!("waiting for Ctrl-C: {error}")),
    }
}

/// Shows on standard error that the client is waiting for servers.
async fn show(mut notices: mpsc::Receiver<lastword::client::Notice>, quiet: bool) {
    let mut banner = Banner::default();
    while let Some(notice) = notices.recv().await {
        if let Some(line) = banner.on_notice(Instant::now(), &notice).filter(|_| !quiet) {
            talk(&line);
        }
    }
}
