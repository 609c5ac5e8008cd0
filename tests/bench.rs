//! `client bench` against real servers: each mix, a crash in the middle, what it refuses. No timing is asserted.
#![allow(clippy::unwrap_used, reason = "a test that can't go on fails")]

mod support;

use serde_json::Value;
use std::io::{BufRead as _, BufReader, Read as _};
use std::process::{Child, Command, Output, Stdio};
use support::Cluster;

const KEYS: [&str; 8] =
    ["acked", "acked_per_second", "doubled", "longest_gap_ms", "lost", "p50_us", "p999_us", "p99_us"];

fn bench(servers: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_client"));
    // Nothing but the servers is needed: no home, no place for sessions beyond what every command has.
    command.env_clear().env("HOME", "/nonexistent").stdin(Stdio::null());
    command.args(["--servers", servers, "--timeout", "60", "bench", "--json"]).args(arguments);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// The report of a run that must have succeeded.
fn report(output: &Output) -> Value {
    assert_eq!(output.status.code(), Some(0), "{}{}", text(&output.stdout), text(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let keys: Vec<&String> = report.as_object().unwrap().keys().collect();
    assert_eq!(keys, KEYS);
    assert!(report.as_object().unwrap().values().all(Value::is_number), "{report}");
    assert!(report["acked"].as_u64().unwrap() > 0, "{report}");
    assert_eq!((report["lost"].as_u64(), report["doubled"].as_u64()), (Some(0), Some(0)));
    report
}

/// How many account names there are.
fn accounts(cluster: &Cluster) -> usize {
    use lastword::message::{Request, Response};
    let mut client = support::Client::connect(cluster.ports[cluster.primary()]).unwrap();
    client.ask(&support::register("someone")).unwrap();
    let request = Request::List { pattern: String::new(), after: String::new(), limit: 500 };
    match client.ask(&request).unwrap() {
        Response::Accounts(page) => page.names.len(),
        other => panic!("asked for names, got {other:?}"),
    }
}

#[test]
fn every_mix_runs_and_finds_everything_that_was_acknowledged() {
    let cluster = Cluster::started();
    for (mix, window) in [("send", "8"), ("deliver", "8"), ("login", "2"), ("list", "4"), ("history", "4")] {
        let arguments = ["--clients", "3", "--window", window, "--seconds", "1", "--mix", mix];
        report(&bench(&cluster.list(), &arguments).output().unwrap());
    }
    assert_eq!(accounts(&cluster), 1, "the accounts of the runs are deleted");
}

#[test]
fn the_largest_windows_and_the_largest_and_smallest_texts_work() {
    let cluster = Cluster::single();
    for (mix, window, size) in [
        ("send", "1024", "8192"),
        ("deliver", "1024", "8192"),
        ("deliver", "1024", "1"),
        ("history", "21", "8192"),
    ] {
        let arguments =
            ["--clients", "2", "--window", window, "--seconds", "1", "--size", size, "--mix", mix];
        report(&bench(&cluster.list(), &arguments).output().unwrap());
    }
}

/// Starts a bench, and waits until its load runs.
fn running(cluster: &Cluster, mix: &str) -> Child {
    let arguments = ["--clients", "4", "--window", "16", "--seconds", "3", "--mix", mix];
    let mut child = bench(&cluster.list(), &arguments).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    while line.trim() != "running" {
        line.clear();
        assert!(lines.read_line(&mut line).unwrap() > 0, "the bench ended before it ran");
    }
    child.stderr = Some(lines.into_inner());
    child
}

fn survives_a_crash_of_the_primary(mix: &str) {
    let mut cluster = Cluster::started();
    let mut child = running(&cluster, mix);
    let primary = cluster.primary();
    cluster.kill(primary);
    let mut stdout = Vec::new();
    child.stdout.take().unwrap().read_to_end(&mut stdout).unwrap();
    let mut stderr = Vec::new();
    child.stderr.take().unwrap().read_to_end(&mut stderr).unwrap();
    let status = child.wait().unwrap();
    report(&Output { status, stdout, stderr });
}

#[test]
fn sending_goes_on_when_the_primary_is_killed_and_nothing_acknowledged_is_lost() {
    survives_a_crash_of_the_primary("send");
}

#[test]
fn delivering_goes_on_when_the_primary_is_killed_and_nothing_acknowledged_is_lost() {
    survives_a_crash_of_the_primary("deliver");
}

#[test]
fn reading_goes_on_when_the_primary_is_killed() {
    survives_a_crash_of_the_primary("history");
}

#[test]
fn wrong_numbers_are_refused_with_what_was_expected() {
    let refused = |arguments: &[&str], code: i32, part: &str| {
        let output = bench("127.0.0.1:1", arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{arguments:?}");
        assert!(text(&output.stderr).contains(part), "{arguments:?}: {}", text(&output.stderr));
    };
    refused(&["--clients", "0"], 2, "1..=10000");
    refused(&["--clients", "10001"], 2, "1..=10000");
    refused(&["--window", "1025"], 2, "1..=1024");
    refused(&["--size", "8193"], 2, "1..=8192");
    refused(&["--seconds", "0"], 2, "1..=86400");
    refused(&["--mix", "chatter"], 2, "deliver");
    refused(&["--mix", "login", "--window", "6"], 2, "at most 5");
    refused(&["--mix", "history", "--window", "22", "--size", "8192"], 2, "at most 21");
    refused(&["--mix", "list", "--window", "656"], 2, "at most 655");
    refused(&["--mix", "deliver", "--clients", "5001"], 2, "at most 5000");
}

#[test]
fn without_a_server_the_exit_code_is_5() {
    let port = support::free_port();
    let mut command = Command::new(env!("CARGO_BIN_EXE_client"));
    command.env_clear().env("HOME", "/nonexistent");
    let servers = format!("127.0.0.1:{port}");
    let output = command.args(["--servers", &servers, "--timeout", "0.3", "bench"]).output().unwrap();
    assert_eq!(output.status.code(), Some(5));
    assert!(text(&output.stderr).contains("no server available"), "{}", text(&output.stderr));
}

#[test]
fn a_low_limit_of_open_files_is_named() {
    let client = env!("CARGO_BIN_EXE_client");
    let script = format!("ulimit -n 64; exec {client} --servers 127.0.0.1:1 bench --clients 200");
    let output = Command::new("sh").args(["-c", &script]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = text(&output.stderr);
    assert!(said.contains("found a limit of 64 open files") && said.contains("ulimit -n"), "{said}");
}
