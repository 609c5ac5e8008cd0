//! The tokio shell around the replica: everything that waits, reads a clock or touches the network or the disk.
//!
//! - [`cluster`]: which servers there are and which this one is; [`key`]: the secret they share.
//! - `listener`: takes connections in and tells peers from clients; `client_link`, `peer_link`: one connection each.
//! - `driver`: the one task that owns the replica; `peers`: its view of the links to the others.
//! - `disk`: the two threads that write and read.
//! - [`passwords`]: hashing, beside the event loop; [`throttle`]: slows down whoever guesses.
//!
//! **Invariant:** one task owns the replica and never waits for a link, a disk or a password: what it hands out is
//! queued within bounds, and what comes back is an event.
//!
//! **Invariant:** only `driver` and `disk` know the replica, the wire and the storage together.

mod client_link;
pub mod cluster;
mod disk;
mod driver;
mod frames;
pub mod key;
pub mod limits;
mod listener;
mod outgoing;
pub mod passwords;
mod peer_link;
mod peers;
pub mod throttle;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant as SystemInstant};

use tokio::net::TcpListener;
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use self::cluster::split_address;
use self::disk::DiskThreads;
use self::driver::{CLIENT_EVENTS_MAX, Driver, INNER_EVENTS_MAX, Input, Inputs, Outside};
use self::key::{ClusterKey, KEY_FILE, KeyError};
use crate::config::CHECKPOINT_LOG_BYTES_MIN;
use crate::replica::{Config, Exit, FirstRole, Replica};
use crate::storage::{self, Opened, OsDisk, StorageError};
use crate::time::Instant;
use crate::types::{ClusterId, ConnectionId, ServerId};

/// A process that was killed a moment ago may hold its port and its directory for so long, while the system ends it.
pub const PREDECESSOR_ENDS: Duration = Duration::from_secs(1);
/// A complaint about the same thing is repeated after so long at the earliest.
const COMPLAINT_INTERVAL: Duration = Duration::from_secs(60);
/// Most complaints that are remembered, so that whoever draws new ones can't fill the memory.
const COMPLAINTS_MAX: usize = 256;

/// What a server must be told to run.
#[derive(Clone, Debug)]
pub struct Options {
    /// The addresses of all configured servers; their order is the priority to lead.
    pub servers: Vec<String>,
    /// Which of them this one is.
    pub me: ServerId,
    /// Its role in an empty directory.
    pub first_role: FirstRole,
    /// Its data directory.
    pub data: PathBuf,
    /// The key file; none: `cluster.key` in the directory that holds the data directory.
    pub key: Option<PathBuf>,
    /// After this long a cold start goes on with everyone who answers; none: it waits for ever.
    pub cold_wait: Option<Duration>,
    /// Writes are refused in smaller views (N10).
    pub min_copies: u8,
    /// Whether a refused connection proves a crash (V11).
    pub evidence: bool,
    /// Whether a cluster may be created although one is known beside the key.
    pub new_cluster: bool,
    /// Most connections at once.
    pub connections_max: usize,
}

/// Why a server ended that was not asked to.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// It must not run like this: exit code 1.
    #[error("{0}")]
    Refused(String),
    /// Its disk failed: exit code 3.
    #[error("{0}")]
    Disk(String),
}

impl From<StorageError> for Failure {
    fn from(error: StorageError) -> Self {
        match error {
            // The disk works; it holds something else than this server's data.
            StorageError::InUse { .. } | StorageError::File { .. } | StorageError::Line { .. } => {
                Self::Refused(error.to_string())
            }
            _ => Self::Disk(error.to_string()),
        }
    }
}

impl From<KeyError> for Failure {
    fn from(error: KeyError) -> Self {
        match error {
            KeyError::Io { .. } => Self::Disk(error.to_string()),
            KeyError::Content { .. } | KeyError::Exists { .. } => Self::Refused(error.to_string()),
        }
    }
}

/// What all tasks of one server share.
#[derive(Debug)]
struct Shell {
    key: ClusterKey,
    me: ServerId,
    /// As configured.
    names: Vec<String>,
    /// The same as hosts and ports.
    addresses: Vec<(String, u16)>,
    inner: mpsc::Sender<Input>,
    clients: mpsc::Sender<Input>,
    started: SystemInstant,
    connections: Arc<AtomicU64>,
    links: AtomicU64,
    /// By server: each time it has connected to this one, and proved itself.
    connected: Vec<Notify>,
    open_connections: AtomicUsize,
    connections_max: usize,
    /// When each complaint was last said: about whom, and what kind of complaint.
    complaints: Mutex<HashMap<(ServerId, String), SystemInstant>>,
    /// Ends every task that serves a connection.
    ended: CancellationToken,
}

impl Shell {
    /// The monotonic clock: nanoseconds since the process started.
    fn now(&self) -> Instant {
        Instant::from_nanos(u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }

    fn servers(&self) -> usize {
        self.names.len()
    }

    fn knows(&self, server: ServerId) -> bool {
        (1..=self.servers()).contains(&usize::from(server.0))
    }

    fn name_of(&self, server: ServerId) -> &str {
        &self.names[usize::from(server.0) - 1]
    }

    fn address_of(&self, server: ServerId) -> &(String, u16) {
        &self.addresses[usize::from(server.0) - 1]
    }

    fn connected(&self, server: ServerId) -> &Notify {
        &self.connected[usize::from(server.0) - 1]
    }

    fn next_connection(&self) -> ConnectionId {
        ConnectionId(self.connections.fetch_add(1, Ordering::Relaxed) + 1)
    }

    fn next_link(&self) -> u64 {
        self.links.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Says what is wrong with a peer, one complaint of a kind at most once a minute: its words may hold numbers that
    /// whoever connects draws at random.
    fn complain(&self, about: ServerId, kind: &str, complaint: &str) {
        let now = SystemInstant::now();
        let mut said = self.complaints.lock().expect("remembering a complaint doesn't panic");
        said.retain(|_, at| now.duration_since(*at) < COMPLAINT_INTERVAL);
        if said.len() < COMPLAINTS_MAX && !said.contains_key(&(about, kind.to_owned())) {
            said.insert((about, kind.to_owned()), now);
            warn!("{complaint}");
        }
    }
}

/// The directory's own key file: it lies where the servers of one machine all find it.
#[must_use]
pub fn default_key_path(data: &Path) -> PathBuf {
    let holder = data.parent().filter(|parent| !parent.as_os_str().is_empty());
    holder.unwrap_or_else(|| Path::new(".")).join(KEY_FILE)
}

/// Runs a server on a listener that the caller has bound, until it is asked to stop: `stops` carries one message per
/// request. `ready` is called once, when the server serves or follows.
///
/// # Errors
/// [`Failure`]: it must not run, or can't.
pub async fn run(
    listener: TcpListener,
    options: Options,
    stops: mpsc::Receiver<()>,
    ready: impl FnOnce() + Send + 'static,
) -> Result<(), Failure> {
    let mut life = Life {
        key_path: options.key.clone().unwrap_or_else(|| default_key_path(&options.data)),
        started: SystemInstant::now(),
        connections: Arc::new(AtomicU64::new(0)),
        listener: Arc::new(listener),
        outside: Outside { stops, ready: Some(Box::new(ready)) },
        options,
    };
    let key = read_key(&life.key_path)?;
    let data = life.options.data.clone();
    let disk = lock_directory(&data).await?;
    loop {
        match life.recover_and_serve(&disk, key).await? {
            Exit::Stopped => return Ok(()),
            Exit::Recover => info!("{}: mended; recovering from it again", data.display()),
            Exit::Refused(reason) => return Err(Failure::Refused(reason)),
            Exit::Disk(reason) => return Err(Failure::Disk(reason)),
        }
    }
}

/// What lasts as long as the process, however often it recovers.
struct Life {
    options: Options,
    key_path: PathBuf,
    started: SystemInstant,
    connections: Arc<AtomicU64>,
    listener: Arc<TcpListener>,
    outside: Outside,
}

impl Life {
    /// Recovers from the disk, and serves until the core ends that.
    async fn recover_and_serve(&mut self, disk: &OsDisk, key: ClusterKey) -> Result<Exit, Failure> {
        let id_path = key::id_path(&self.key_path);
        let known_cluster = if self.options.new_cluster { None } else { key::read_cluster_id(&id_path)? };
        let opening = tokio::task::spawn_blocking({
            let (disk, options) = (disk.clone(), self.options.clone());
            move || open_disk(disk, &options)
        });
        let opened = tokio::select! {
            opened = opening => {
                opened.map_err(|error| Failure::Disk(format!("recovery ended early: {error}")))??
            }
            // Nothing has been promised to anyone yet, and the disk survives worse.
            Some(()) = self.outside.stops.recv() => return Ok(Exit::Stopped),
        };
        let (inner, inner_inputs) = mpsc::channel(INNER_EVENTS_MAX);
        let (clients, client_inputs) = mpsc::channel(CLIENT_EVENTS_MAX);
        let threads =
            DiskThreads::start(disk.clone(), opened.log, opened.reader, opened.checkpoints, inner.clone())
                .map_err(|error| Failure::Refused(format!("starting the disk's threads failed: {error}")))?;
        let shell = Arc::new(self.shell(key, inner, clients)?);
        let replica = Replica::new(self.config(known_cluster), opened.recovered, shell.now(), rand::random());
        for peer in (1..=shell.servers()).filter_map(|at| u8::try_from(at).ok()).map(ServerId) {
            if peer != shell.me {
                tokio::spawn(peer_link::keep_connected(Arc::clone(&shell), peer));
            }
        }
        tokio::spawn(listener::accept(Arc::clone(&shell), Arc::clone(&self.listener)));
        let ended = shell.ended.clone().drop_guard();
        let inputs = Inputs { inner: inner_inputs, clients: client_inputs };
        let exit = Driver::new(replica, shell, threads, id_path).run(inputs, &mut self.outside).await;
        drop(ended);
        Ok(exit)
    }

    fn config(&self, known_cluster: Option<ClusterId>) -> Config {
        let options = &self.options;
        Config {
            me: options.me,
            servers: options.servers.clone(),
            first_role: options.first_role,
            known_cluster,
            min_copies: options.min_copies,
            cold_wait: options.cold_wait,
            evidence: options.evidence,
            checkpoint_log_bytes_min: CHECKPOINT_LOG_BYTES_MIN,
        }
    }

    fn shell(
        &self,
        key: ClusterKey,
        inner: mpsc::Sender<Input>,
        clients: mpsc::Sender<Input>,
    ) -> Result<Shell, Failure> {
        let names = self.options.servers.clone();
        let addresses =
            names.iter().map(|address| split_address(address).map(|(host, port)| (host.to_owned(), port)));
        let addresses =
            addresses.collect::<Result<_, _>>().map_err(|error| Failure::Refused(error.to_string()))?;
        Ok(Shell {
            key,
            me: self.options.me,
            addresses,
            inner,
            clients,
            started: self.started,
            connections: Arc::clone(&self.connections),
            links: AtomicU64::new(0),
            connected: names.iter().map(|_| Notify::new()).collect(),
            open_connections: AtomicUsize::new(0),
            connections_max: self.options.connections_max,
            complaints: Mutex::new(HashMap::new()),
            ended: CancellationToken::new(),
            names,
        })
    }
}

fn read_key(path: &Path) -> Result<ClusterKey, Failure> {
    let loaded = key::load_or_create(path)?;
    if loaded.created {
        info!("{}: made a new cluster key; servers on other machines need a copy of it", path.display());
    }
    if let Some(warning) = loaded.warning {
        warn!("{warning}");
    }
    Ok(loaded.key)
}

async fn lock_directory(data: &Path) -> Result<OsDisk, Failure> {
    let begun = SystemInstant::now();
    loop {
        match OsDisk::open(data) {
            Err(StorageError::InUse { .. }) if begun.elapsed() < PREDECESSOR_ENDS => {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            opened => return Ok(opened?),
        }
    }
}

fn open_disk(disk: OsDisk, options: &Options) -> Result<Opened<OsDisk>, Failure> {
    let mut said = SystemInstant::now();
    let opened = storage::open(disk, options.me, &options.servers, &mut |progress| {
        // Recovery may report as often as it likes; a person reads one line a second.
        if said.elapsed() >= Duration::from_secs(1) {
            said = SystemInstant::now();
            info!("{progress}");
        }
    })?;
    for notice in &opened.notices {
        info!("{notice}");
    }
    Ok(opened)
}
