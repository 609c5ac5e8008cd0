//! The real servers of one cluster.

use lastword::client::status_of_all;
use lastword::message::Status;
use std::fs::File;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tokio::time::sleep;

/// How long servers may take for what is waited for.
const PATIENCE: Duration = Duration::from_secs(600);
/// How often is looked whether they are ready.
const GLANCE: Duration = Duration::from_millis(10);

/// One of the programs; `LASTWORD_BIN` names the directory of others than those of these sources.
pub(crate) fn program(built: &str) -> PathBuf {
    let name = Path::new(built).file_name().expect("it is a file");
    std::env::var_os("LASTWORD_BIN")
        .map_or(PathBuf::from(built), |directory| Path::new(&directory).join(name))
}

/// Servers of one cluster, counted from 0; they end with this value.
pub(crate) struct Servers {
    pub(crate) addresses: Vec<String>,
    directory: PathBuf,
    children: Vec<Option<Child>>,
}

impl Drop for Servers {
    fn drop(&mut self) {
        (0..self.children.len()).for_each(|at| self.kill(at));
    }
}

impl Servers {
    /// None of them runs yet.
    pub(crate) fn new(directory: PathBuf, count: usize) -> Self {
        std::fs::create_dir_all(&directory).unwrap();
        let addresses = free_ports(count).into_iter().map(|port| format!("127.0.0.1:{port}")).collect();
        Self { addresses, directory, children: (0..count).map(|_| None).collect() }
    }

    /// The data directory of a server.
    pub(crate) fn data(&self, at: usize) -> PathBuf {
        self.directory.join((at + 1).to_string())
    }

    pub(crate) fn all_data(&self) -> Vec<PathBuf> {
        (0..self.addresses.len()).map(|at| self.data(at)).collect()
    }

    pub(crate) fn start(&mut self, at: usize) {
        let log = File::options().create(true).append(true).open(self.log(at)).unwrap();
        let (_, port) = self.addresses[at].rsplit_once(':').unwrap();
        let mut command = Command::new(program(env!("CARGO_BIN_EXE_server")));
        command.args([if at == 0 { "primary" } else { "secondary" }, port]);
        command.args(["--cluster", &self.addresses.join(","), "--data"]).arg(self.data(at));
        command.env("NO_COLOR", "1").stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        self.children[at] = Some(command.spawn().unwrap());
    }

    fn log(&self, at: usize) -> PathBuf {
        self.directory.join(format!("{}.log", at + 1))
    }

    /// Starts those that don't run, and waits until one of them leads all; gives which.
    pub(crate) async fn start_all(&mut self) -> usize {
        (0..self.children.len())
            .filter(|at| self.children[*at].is_none())
            .collect::<Vec<_>>()
            .into_iter()
            .for_each(|at| self.start(at));
        self.wait_members(self.addresses.len()).await
    }

    /// Waits until a server leads so many; gives which.
    pub(crate) async fn wait_members(&self, count: usize) -> usize {
        let expected = format!("a primary of {count}");
        self.wait_for(&expected, |states| {
            states
                .iter()
                .position(|s| s.as_ref().is_some_and(|s| s.role == "primary" && s.members.len() == count))
        })
        .await
    }

    /// Waits until what the servers say of themselves is as wished.
    pub(crate) async fn wait_for<T>(
        &self,
        expected: &str,
        reached: impl Fn(&[Option<Status>]) -> Option<T>,
    ) -> T {
        let in_time = Instant::now() + PATIENCE;
        loop {
            let states = status_of_all(&self.addresses, Duration::from_secs(1)).await;
            let states: Vec<_> = states.into_iter().map(Result::ok).collect();
            if let Some(found) = reached(&states) {
                return found;
            }
            if Instant::now() > in_time {
                for at in 0..self.children.len() {
                    eprintln!("{}", std::fs::read_to_string(self.log(at)).unwrap_or_default());
                }
                panic!("found {states:?} after {PATIENCE:?}, expected {expected}");
            }
            sleep(GLANCE).await;
        }
    }

    /// kill -9.
    pub(crate) fn kill(&mut self, at: usize) {
        if let Some(mut child) = self.children[at].take() {
            // It is a child of this process, so that its number is nobody else's before the wait.
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// A line of /proc/PID/status that is in KiB, in bytes.
    fn memory(&self, at: usize, key: &str) -> u64 {
        let pid = self.children[at].as_ref().expect("the server runs").id();
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("the server runs");
        let line = status.lines().find_map(|line| line.strip_prefix(key)).expect("the line is there");
        let kib = line.trim_start_matches(':').trim_end_matches("kB").trim();
        kib.parse::<u64>().expect("a number") * 1024
    }

    /// Processor time of the servers that run, so far.
    pub(crate) fn processor_time(&self) -> Duration {
        self.children.iter().flatten().map(|child| processor_time(&child.id().to_string())).sum()
    }

    /// Resident memory, in bytes.
    pub(crate) fn resident(&self, at: usize) -> u64 {
        self.memory(at, "VmRSS")
    }

    /// The most resident memory so far, in bytes.
    pub(crate) fn resident_max(&self, at: usize) -> u64 {
        self.memory(at, "VmHWM")
    }
}

/// Processor time of a process so far, in the kernel and outside: fields 14 and 15 of /proc/PID/stat, counted from 1, in
/// hundredths of a second.
pub(crate) fn processor_time(process: &str) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).expect("the process runs");
    let (_, after_name) = stat.rsplit_once(')').expect("the name stands in brackets");
    let ticks = after_name.split_ascii_whitespace().skip(11).take(2);
    Duration::from_millis(10) * ticks.map(|ticks| ticks.parse::<u32>().expect("a number")).sum()
}

/// The bytes of all files below a directory.
pub(crate) fn bytes_below(directory: &Path) -> u64 {
    let entries = std::fs::read_dir(directory).unwrap().map(Result::unwrap);
    entries
        .map(|entry| match entry.file_type().unwrap() {
            kind if kind.is_dir() => bytes_below(&entry.path()),
            kind if kind.is_file() => entry.metadata().unwrap().len(),
            _ => 0,
        })
        .sum()
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
