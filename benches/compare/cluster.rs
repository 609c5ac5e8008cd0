//! Starts three servers of a system, measures one point, and ends them.

use crate::Arguments;
use crate::floor;
use crate::load::{self, Point, Protocol, STREAM, Sample, TEXT_BYTES};
use clap::ValueEnum;
use serde_json::{Value, json};
use std::fmt;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio::time::sleep;

/// How long servers may take to be ready.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often is looked whether they are.
const GLANCE: Duration = Duration::from_millis(20);

/// What is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum System {
    /// Relay to two, sync on three
    Floor,
    /// This program
    Lastword,
    /// Redis: append-only file always synced, WAIT 2
    Redis,
    /// NATS `JetStream`: three replicas, files
    Nats,
}

impl fmt::Display for System {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Floor => "floor",
            Self::Lastword => "lastword",
            Self::Redis => "Redis",
            Self::Nats => "NATS R3",
        })
    }
}

impl System {
    /// The program that has to be installed for it.
    pub(crate) fn program(self, arguments: &Arguments) -> Option<PathBuf> {
        match self {
            Self::Floor | Self::Lastword => None,
            Self::Redis => Some(arguments.redis.clone()),
            Self::Nats => Some(arguments.nats.clone()),
        }
    }

    /// Whether the point says something about the system.
    pub(crate) fn takes(self, point: Point) -> bool {
        self == Self::Lastword || !point.delivers
    }
}

/// Whether a program can be started.
pub(crate) fn is_installed(program: &Path) -> bool {
    let version = Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    version.is_ok_and(|status| status.success())
}

/// Measures one point of one system on fresh servers.
pub(crate) async fn measure(system: System, point: Point, arguments: &Arguments) -> Sample {
    let servers = Servers::start(system, arguments).await;
    if system == System::Lastword {
        return servers.measure_lastword(point, arguments.seconds);
    }
    let (protocol, port) = match system {
        System::Redis => (Protocol::Redis, servers.ports[0]),
        System::Nats => (Protocol::Nats, servers.create_stream().await),
        System::Floor | System::Lastword => (Protocol::Floor, servers.ports[0]),
    };
    let before = servers.cpu_seconds();
    let (acked_per_second, p99_us) = load::run(protocol, port, point, arguments.seconds).await;
    servers.sample(acked_per_second, p99_us, before, arguments.seconds)
}

/// Three processes; they end with this value.
struct Servers {
    system: System,
    ports: Vec<u16>,
    children: Vec<Child>,
    directory: TempDir,
}

impl Drop for Servers {
    fn drop(&mut self) {
        for child in &mut self.children {
            // It is a child of this process, so that its number is nobody else's before the wait.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Servers {
    async fn start(system: System, arguments: &Arguments) -> Self {
        std::fs::create_dir_all(&arguments.directory).unwrap();
        let directory = tempfile::tempdir_in(&arguments.directory).unwrap();
        let mut servers = Self { system, ports: free_ports(6), children: Vec::new(), directory };
        for place in 0..3 {
            std::fs::create_dir(servers.place(place)).unwrap();
        }
        match system {
            System::Floor => servers.start_floor().await,
            System::Lastword => servers.start_lastword().await,
            System::Redis => servers.start_redis(&arguments.redis).await,
            System::Nats => servers.start_nats(&arguments.nats).await,
        }
        servers
    }

    /// The directory of one server.
    fn place(&self, place: usize) -> PathBuf {
        self.directory.path().join(place.to_string())
    }

    fn spawn(&mut self, command: &mut Command) {
        let log = self.directory.path().join(format!("{}.log", self.children.len()));
        let log = File::create(log).unwrap();
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        let child = command.spawn();
        self.children.push(child.unwrap_or_else(|error| panic!("starting {command:?}: {error}")));
    }

    async fn start_floor(&mut self) {
        let program = std::env::current_exe().unwrap();
        let ports: Vec<String> = self.ports.iter().map(u16::to_string).collect();
        for backup in [1, 2] {
            let directory = self.place(backup);
            self.spawn(Command::new(&program).args([floor::BACKUP, &ports[backup]]).arg(directory));
            self.wait_listening(self.ports[backup]).await;
        }
        let directory = self.place(0);
        let mut command = Command::new(&program);
        self.spawn(command.args([floor::PRIMARY, &ports[0]]).arg(directory).args(&ports[1..3]));
        self.wait_listening(self.ports[0]).await;
    }

    fn lastword_addresses(&self) -> Vec<String> {
        self.ports[..3].iter().map(|port| format!("127.0.0.1:{port}")).collect()
    }

    async fn start_lastword(&mut self) {
        let list = self.lastword_addresses();
        for place in 0..3 {
            let role = if place == 0 { "primary" } else { "secondary" };
            let (port, directory) = (self.ports[place].to_string(), self.place(place));
            let mut command = Command::new(env!("CARGO_BIN_EXE_server"));
            command.args([role, &port, "--cluster", &list.join(","), "--data"]).arg(directory);
            self.spawn(command.env("LASTWORD_LOG", "warn"));
        }
        let in_time = Instant::now() + PATIENCE;
        loop {
            let states = lastword::client::status_of_all(&list, Duration::from_secs(1)).await;
            let members = |state: &Result<lastword::message::Status, String>| {
                state.as_ref().is_ok_and(|status| status.members.len() == 3)
            };
            if states.iter().all(members) {
                return;
            }
            self.check(in_time, "three members");
            sleep(GLANCE).await;
        }
    }

    async fn start_redis(&mut self, program: &Path) {
        let first = self.ports[0];
        for place in 0..3 {
            let (port, directory) = (self.ports[place], self.place(place));
            let mut command = Command::new(program);
            command.args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--dir"]);
            command.arg(directory).args(["--appendonly", "yes", "--appendfsync", "always"]);
            command.args(["--auto-aof-rewrite-percentage", "0"]);
            if place > 0 {
                command.args(["--replicaof", &format!("127.0.0.1 {first}")]);
            }
            self.spawn(&mut command);
            self.wait_listening(port).await;
        }
        let in_time = Instant::now() + PATIENCE;
        while self.ask_redis().is_none_or(|said| said.matches("state=online").count() < 2) {
            self.check(in_time, "two replicas online");
            sleep(GLANCE).await;
        }
    }

    fn ask_redis(&self) -> Option<String> {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.ports[0])).ok()?;
        stream.write_all(b"INFO replication\r\nQUIT\r\n").ok()?;
        let mut said = String::new();
        stream.read_to_string(&mut said).ok()?;
        Some(said)
    }

    async fn start_nats(&mut self, program: &Path) {
        let routes: Vec<String> =
            self.ports[3..].iter().map(|port| format!("nats://127.0.0.1:{port}")).collect();
        for place in 0..3 {
            let config = format!(
                "server_name: n{place}\nlisten: \"127.0.0.1:{}\"\njetstream {{ store_dir: {:?} }}\n\
                 cluster {{ name: compare, listen: \"127.0.0.1:{}\", routes: {routes:?} }}\n",
                self.ports[place],
                self.place(place),
                self.ports[place + 3],
            );
            let path = self.directory.path().join(format!("{place}.conf"));
            std::fs::write(&path, config).unwrap();
            self.spawn(Command::new(program).arg("-c").arg(&path));
        }
        for place in 0..3 {
            self.wait_listening(self.ports[place]).await;
        }
    }

    /// Creates the stream; gives the port of its leader, once both followers are current.
    async fn create_stream(&self) -> u16 {
        let stream = json!({ "name": STREAM, "subjects": [STREAM], "storage": "file", "num_replicas": 3 });
        let in_time = Instant::now() + PATIENCE;
        loop {
            let created = self.ask_nats(&format!("$JS.API.STREAM.CREATE.{STREAM}"), &stream.to_string());
            if created.is_some_and(|created| created["config"].is_object()) {
                break;
            }
            self.check(in_time, "the stream");
            sleep(GLANCE * 10).await;
        }
        loop {
            let info = self.ask_nats(&format!("$JS.API.STREAM.INFO.{STREAM}"), "").unwrap_or_default();
            let current = info["cluster"]["replicas"].as_array().is_some_and(|replicas| {
                replicas.len() == 2 && replicas.iter().all(|replica| replica["current"] == true)
            });
            let leader =
                info["cluster"]["leader"].as_str().and_then(|name| name.strip_prefix('n')?.parse().ok());
            if let Some(leader) = leader.filter(|_| current) {
                let leader: usize = leader;
                return self.ports[leader];
            }
            self.check(in_time, "a leader with two current followers");
            sleep(GLANCE * 10).await;
        }
    }

    /// Sends one request to NATS and waits a second for its answer.
    fn ask_nats(&self, subject: &str, body: &str) -> Option<Value> {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.ports[0])).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(1))).ok()?;
        let hello = "CONNECT {\"verbose\":false}\r\nSUB answer 1\r\n";
        write!(stream, "{hello}PUB {subject} answer {}\r\n{body}\r\n", body.len()).ok()?;
        let mut lines = BufReader::new(stream).lines();
        lines.by_ref().map_while(Result::ok).find(|line| line.starts_with("MSG "))?;
        serde_json::from_str(&lines.next()?.ok()?).ok()
    }

    async fn wait_listening(&self, port: u16) {
        let in_time = Instant::now() + PATIENCE;
        while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
            self.check(in_time, "a server that listens");
            sleep(GLANCE).await;
        }
    }

    /// Says what the servers said, if it is too late.
    fn check(&self, in_time: Instant, expected: &str) {
        if Instant::now() > in_time {
            for place in 0..self.children.len() {
                let path = self.directory.path().join(format!("{place}.log"));
                eprintln!("{}", std::fs::read_to_string(path).unwrap_or_default());
            }
            panic!("{}: found none after {PATIENCE:?}, expected {expected}", self.system);
        }
    }

    /// Lets `client bench` do it; it says on standard error when its load begins and ends.
    fn measure_lastword(&self, point: Point, seconds: u32) -> Sample {
        let mut command = Command::new(env!("CARGO_BIN_EXE_client"));
        command.args(["--servers", &self.lastword_addresses().join(","), "--json", "bench", "--keep"]);
        for (name, number) in [
            ("--clients", point.clients.to_string()),
            ("--window", point.window.to_string()),
            ("--seconds", seconds.to_string()),
            ("--size", TEXT_BYTES.to_string()),
            ("--mix", if point.delivers { "deliver" } else { "send" }.to_owned()),
        ] {
            command.args([name, &number]);
        }
        let mut client = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let (mut before, mut after, mut said) = (0.0, 0.0, String::new());
        for line in BufReader::new(client.stderr.take().unwrap()).lines() {
            let line = line.unwrap();
            match line.as_str() {
                "running" => before = self.cpu_seconds(),
                "verifying" => after = self.cpu_seconds(),
                line => said.push_str(line),
            }
        }
        let output = client.wait_with_output().unwrap();
        assert!(output.status.success(), "client bench failed: {said}");
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        let number = |key: &str| report[key].as_f64().expect("the report has this number");
        let acked_per_second = number("acked_per_second");
        let cpu_us = per_message(after - before, acked_per_second, seconds);
        Sample { acked_per_second, p99_us: number("p99_us"), cpu_us }
    }

    fn sample(&self, acked_per_second: f64, p99_us: f64, before: f64, seconds: u32) -> Sample {
        let cpu_us = per_message(self.cpu_seconds() - before, acked_per_second, seconds);
        Sample { acked_per_second, p99_us, cpu_us }
    }

    /// Processor time of all servers so far.
    fn cpu_seconds(&self) -> f64 {
        self.children.iter().map(|child| cpu_seconds(child.id())).sum()
    }
}

fn per_message(cpu_seconds: f64, acked_per_second: f64, seconds: u32) -> f64 {
    cpu_seconds * 1e6 / (acked_per_second * f64::from(seconds))
}

/// Processor time of one process so far, in the kernel and outside: fields 14 and 15 of /proc/PID/stat, counted from 1,
/// in hundredths of a second.
fn cpu_seconds(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("the server runs");
    let (_, after_name) = stat.rsplit_once(')').expect("the name stands in brackets");
    let ticks = after_name.split_ascii_whitespace().skip(11).take(2);
    ticks.map(|ticks| ticks.parse::<f64>().expect("a number")).sum::<f64>() / 100.0
}

/// Ports that are free, below those that outgoing connections take.
fn free_ports(count: usize) -> Vec<u16> {
    let mut ports = Vec::new();
    while ports.len() < count {
        let port = rand::random_range(12_000..30_000);
        if !ports.contains(&port) && TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            ports.push(port);
        }
    }
    ports
}
