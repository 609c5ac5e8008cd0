//! A split brain with real servers and the real client: both sides acknowledge, and when they meet everything is there
//! once, or its owner is told why not (R1-R10).
#![allow(clippy::unwrap_used, reason = "a test that can't go on fails")]

mod support;

use std::io;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use lastword::chat::command::Reply;
use lastword::message::{Request, Response};
use lastword::types::{ClientId, MessageId};
use serde_json::Value;
use support::{Client, Cluster, PASSWORD, Server, free_port, send, wait_for};
use tempfile::TempDir;

/// Ways between servers that can be cut. A cut way refuses connections, so that nobody has to wait for silence to mean
/// something.
#[derive(Clone, Default)]
struct Ways(Arc<Shared>);

#[derive(Default)]
struct Shared {
    cut: AtomicBool,
    streams: Mutex<Vec<TcpStream>>,
}

impl Ways {
    /// Opens a port that leads to another one while the ways aren't cut.
    fn lead_to(&self, target: u16) -> u16 {
        let (port, ways) = (free_port(), self.clone());
        let mut listener = Some(listen(port));
        thread::spawn(move || {
            loop {
                let is_cut = ways.0.cut.load(Ordering::Relaxed);
                listener = if is_cut { None } else { listener.or_else(|| Some(listen(port))) };
                match listener.as_ref().map(TcpListener::accept) {
                    Some(Ok((stream, _))) => ways.forward(stream, target),
                    _ => thread::sleep(Duration::from_millis(2)),
                }
            }
        });
        port
    }

    fn forward(&self, one: TcpStream, target: u16) {
        let Ok(other) = TcpStream::connect(("127.0.0.1", target)) else { return };
        one.set_nonblocking(false).unwrap();
        for (mut from, mut to) in [
            (one.try_clone().unwrap(), other.try_clone().unwrap()),
            (other.try_clone().unwrap(), one.try_clone().unwrap()),
        ] {
            thread::spawn(move || {
                // Either end may close the way at any time.
                let _ = io::copy(&mut from, &mut to);
                let _ = to.shutdown(Shutdown::Both);
            });
        }
        let mut streams = self.0.streams.lock().unwrap();
        streams.push(one);
        if self.0.cut.load(Ordering::Relaxed) {
            close(&streams);
        }
    }

    fn cut(&self) {
        self.0.cut.store(true, Ordering::Relaxed);
        close(&self.0.streams.lock().unwrap());
    }

    fn heal(&self) {
        self.0.cut.store(false, Ordering::Relaxed);
    }
}

fn listen(port: u16) -> TcpListener {
    let listener = TcpListener::bind(("127.0.0.1", port)).unwrap();
    listener.set_nonblocking(true).unwrap();
    listener
}

fn close(streams: &[TcpStream]) {
    for stream in streams {
        // It may be closed already.
        let _ = stream.shutdown(Shutdown::Both);
    }
}

/// Three servers; the ways between the first and the other two can be cut.
fn cluster_with_ways() -> (Cluster, Ways) {
    let (mut cluster, ways) = (Cluster::new(3), Ways::default());
    let [first, second, third] = cluster.ports[..] else { panic!("three servers") };
    let to = |port| ways.lead_to(port);
    let lists = [[first, to(second), to(third)], [to(first), second, third], [to(first), second, third]];
    for (at, ports) in lists.into_iter().enumerate() {
        let list: Vec<String> = ports.iter().map(|port| format!("127.0.0.1:{port}")).collect();
        let mut arguments = cluster.arguments(at);
        let place = arguments.iter().position(|argument| argument == "--cluster").unwrap();
        arguments[place + 1] = list.join(",");
        cluster.servers[at] = Some(Server::spawn(&arguments));
    }
    cluster.wait_ready();
    cluster.wait_members(3);
    (cluster, ways)
}

/// The machine of some users, who know some of the servers.
struct Home {
    directory: TempDir,
}

impl Home {
    fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap() }
    }

    fn run(&self, servers: &str, user: &str, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_client"))
            .env_clear()
            .env("HOME", self.directory.path())
            .env("LASTWORD_SERVERS", servers)
            .env("LASTWORD_USER", user)
            .env("LASTWORD_PASSWORD", PASSWORD)
            .args(["--timeout", "20"])
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }

    /// Runs a command that succeeds; gives its standard output and its standard error.
    fn ok(&self, servers: &str, user: &str, arguments: &[&str]) -> (String, String) {
        let output = self.run(servers, user, arguments);
        let [out, err] = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap());
        assert_eq!(output.status.code(), Some(0), "{user} {arguments:?}: {err}");
        (out, err)
    }

    fn json(&self, servers: &str, user: &str, arguments: &[&str]) -> Vec<Value> {
        let (out, _) = self.ok(servers, user, &[arguments, &["--json"]].concat());
        out.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

/// Sends the same request, again and again, to one server.
struct Repeater {
    client: ClientId,
    token: [u8; 32],
}

impl Repeater {
    fn register(port: u16, name: &str) -> Self {
        let repeater = Self { client: ClientId(rand::random::<u64>().max(1)), token: rand::random() };
        let Self { client, token } = repeater;
        let request = Request::Register { name: name.into(), password: PASSWORD.into(), client, token };
        let response = Client::connect(port).unwrap().ask_as(1, &request).unwrap();
        assert!(matches!(response, Response::Done { .. }), "{response:?}");
        repeater
    }

    fn send(&self, port: u16, to: &str, text: &str) -> MessageId {
        let mut connection = Client::connect(port).unwrap();
        let resume = Request::Resume { client: self.client, token: self.token };
        assert!(matches!(connection.ask_as(0, &resume).unwrap(), Response::Resumed { .. }));
        match connection.ask_as(2, &send(to, text)).unwrap() {
            Response::Done { reply: Reply::Sent { message, .. }, .. } => message,
            other => panic!("{text:?} is not sent: {other:?}"),
        }
    }
}

/// Waits until each side has a view of its own; gives who leads the second one.
fn wait_apart(cluster: &Cluster) -> usize {
    wait_for("each side has a view of its own", || {
        let [alone, second, third] = [0, 1, 2].map(|at| cluster.status(at));
        let (alone, second, third) = (alone?, second?, third?);
        let apart = (alone.role.as_str(), alone.members.len()) == ("primary", 1)
            && (second.members.len(), second.view) == (2, third.view);
        [(1, second), (2, third)]
            .into_iter()
            .find(|(_, status)| apart && status.role == "primary")
            .map(|(at, _)| at)
    })
}

/// The texts, in their order, and whether each is late.
fn texts(messages: &[Value]) -> Vec<(&str, bool)> {
    messages.iter().map(|line| (line["text"].as_str().unwrap(), line["late"] == true)).collect()
}

#[test]
fn what_both_sides_of_a_split_acknowledged_is_there_once_or_told() {
    let (mut cluster, ways) = cluster_with_ways();
    let (here, there, all) = (Home::new(), Home::new(), cluster.list());
    let primary = cluster.primary();
    for name in ["alice", "bob", "carol", "dora"] {
        here.ok(&all, name, &["register", name]);
    }
    here.ok(&all, "alice", &["send", "bob", "before"]);
    let repeater = Repeater::register(cluster.ports[primary], "dave");

    // Alice is on one side, bob on the other; both take messages, and what one does makes no sense to the other.
    ways.cut();
    let leader = wait_apart(&cluster);
    let (one, other) = (cluster.address(0), cluster.address(leader));
    here.ok(&one, "alice", &["send", "bob", "from alice"]);
    here.ok(&other, "bob", &["send", "alice", "from bob"]);
    for (servers, sender, recipient) in [(&one, "alice", "dora"), (&other, "bob", "carol")] {
        here.ok(servers, sender, &["send", recipient, &format!("{recipient}, are you there?")]);
    }
    here.ok(&one, "carol", &["delete-account"]);
    here.ok(&other, "dora", &["delete-account"]);
    let retried = [0, leader].map(|at| repeater.send(cluster.ports[at], "bob", "retried elsewhere"));
    assert_eq!(retried[0], retried[1]);
    here.ok(&one, "twin", &["register", "twin"]);
    there.ok(&other, "twin", &["register", "twin"]);
    there.ok(&other, "twin", &["send", "alice", "from the later twin"]);

    ways.heal();
    cluster.wait_members(3);

    // Everything is there once; what comes from the side that lost stands behind the rest, and says so.
    let history = here.json(&all, "alice", &["history", "bob"]);
    let alice_lost = history.last().unwrap()["text"] == "from alice";
    let (first, second) = if alice_lost { ("from bob", "from alice") } else { ("from alice", "from bob") };
    assert_eq!(texts(&history), [("before", false), (first, false), (second, true)]);
    let read = here.json(&all, "bob", &["read", "--peek"]);
    let mut found = texts(&read);
    found.sort_unstable();
    assert_eq!(found, [("before", false), ("from alice", alice_lost), ("retried elsewhere", false)]);

    // Who is on the side that lost has written to somebody whom the other side has deleted, and is told, once.
    let (out, told_alice) = here.ok(&all, "alice", &["read"]);
    let late = if alice_lost { "" } else { " (late)" };
    assert!(out.contains(&format!("twin~2 -> alice{late}: from the later twin")), "{out}");
    let (_, told_bob) = here.ok(&all, "bob", &["read"]);
    let (told, untold, lost) =
        if alice_lost { (&told_alice, &told_bob, "dora") } else { (&told_bob, &told_alice, "carol") };
    let lost = format!("{lost}, are you there?");
    assert!(told.contains("your message has no recipient") && told.contains(&lost), "{told}");
    assert_eq!(untold, "");
    for name in ["alice", "bob"] {
        assert_eq!(here.ok(&all, name, &["read"]).1, "", "{name} is told again");
    }

    // Of two accounts with one name the later has another one.
    let (_, told) = there.ok(&all, "twin", &["read"]);
    assert!(told.contains("your account is twin~2 now"), "{told}");
    there.ok(&all, "twin", &["login", "twin~2"]);
    let conflicts = here.json(&all, "twin", &["conflicts"]);
    let [renamed] = &conflicts[..] else { panic!("{conflicts:?}") };
    assert_eq!([&renamed["reason"], &renamed["account"], &renamed["other"]], ["renamed", "twin~2", "twin"]);

    let tables = stop_and_read_conflicts(&mut cluster);
    assert!(tables[0].contains(",no_such_recipient,send,") && tables[0].contains(&lost), "{tables:?}");
    assert!(tables.iter().all(|table| *table == tables[0]), "{tables:?}");
}

/// Stops all servers together; gives what each has in `conflicts.csv`.
fn stop_and_read_conflicts(cluster: &mut Cluster) -> Vec<String> {
    for at in 0..3 {
        cluster.server(at).signal(rustix::process::Signal::TERM);
    }
    let ended = (0..3).map(|at| cluster.servers[at].take().unwrap().wait());
    ended.for_each(|status| assert_eq!(status.code(), Some(0)));
    (0..3)
        .map(|at| {
            let left = std::fs::read_dir(cluster.data(at)).unwrap();
            let left: Vec<_> = left.map(|entry| entry.unwrap().file_name()).collect();
            let is_diverged = |name: &std::ffi::OsString| name.to_string_lossy().starts_with("diverged-");
            assert!(!left.iter().any(is_diverged), "server {} still has rows of its own: {left:?}", at + 1);
            std::fs::read_to_string(cluster.data(at).join("conflicts.csv")).unwrap()
        })
        .collect()
}
