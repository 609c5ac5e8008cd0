//! The `server` command: reads its arguments, runs a server, and says by its exit code how that ended.

use std::io::{ErrorKind, IsTerminal as _, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use lastword::config::CONNECTIONS_MAX;
use lastword::replica::FirstRole;
use lastword::server::cluster::{ClusterError, find_self, find_servers, split_address};
use lastword::server::key::{KEY_FILE, create};
use lastword::server::{Failure, Options, PREDECESSOR_ENDS, limits, run};
use rustix::thread::disable_transparent_huge_pages;
use tokio::net::{TcpListener, TcpSocket};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tracing::{error, info, warn};
use tracing_subscriber::EnvFilter;

/// Messages are many small allocations, made by the batch and freed much later: what the system's allocator is slow at.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Asked to stop, and stopped.
const EXIT_STOPPED: i32 = 0;
/// It must not run like this; standard error says why.
const EXIT_REFUSED: i32 = 1;
/// The arguments are wrong.
const EXIT_USAGE: i32 = 2;
/// The disk failed.
const EXIT_DISK: i32 = 3;

/// A server of lastword, the replicated chat: three servers, any two may crash, nothing acknowledged is lost.
#[derive(Debug, Parser)]
#[command(name = "server", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs a server that creates the cluster if there is none.
    Primary(Serve),
    /// Runs a server that waits for a primary at its first start.
    Secondary(Serve),
    /// Makes a key file, to be copied to every machine of the cluster.
    Keygen {
        /// Where to put it; an existing file is never overwritten.
        #[arg(default_value = KEY_FILE)]
        file: PathBuf,
    },
}

#[derive(Debug, Args)]
struct Serve {
    /// The port to listen on.
    #[arg(value_parser = clap::value_parser!(u16).range(1..))]
    port: u16,
    /// All servers, this one included; their order is the priority to lead [default: cluster.toml in the working
    /// directory, else 127.0.0.1:1538,127.0.0.1:2538,127.0.0.1:3538].
    #[arg(long, value_name = "HOST:PORT,…")]
    cluster: Option<String>,
    /// The data directory [default: data/PORT].
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// The address to listen on.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1", value_parser = listen_address)]
    listen: IpAddr,
    /// Which entry of the cluster list this server is, if its address does not tell.
    #[arg(long, value_name = "HOST:PORT")]
    advertise: Option<String>,
    /// After so many seconds without a primary a server goes on with everyone who answers; what a missing one knew
    /// comes back with it. `never`: wait for all who may know more.
    #[arg(long, value_name = "S", default_value = "15", value_parser = cold_wait)]
    cold_wait: ColdWait,
    /// Refuse to write while fewer servers hold copies.
    #[arg(long, value_name = "K", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..))]
    min_copies: u8,
    /// The key that the servers share [default: cluster.key in the directory that holds the data directory].
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
    /// A refused connection proves no crash: for servers behind port forwarders.
    #[arg(long)]
    no_evidence: bool,
    /// Create a new cluster although another one is known beside the key.
    #[arg(long)]
    new_cluster: bool,
}

/// How long a start from disk waits for all who may know more; none: for ever.
#[derive(Clone, Copy, Debug)]
struct ColdWait(Option<Duration>);

fn cold_wait(text: &str) -> Result<ColdWait, String> {
    if text == "never" {
        return Ok(ColdWait(None));
    }
    let seconds = text.parse::<u32>().map_err(|_| "expected a number of seconds, or `never`".to_owned())?;
    Ok(ColdWait(Some(Duration::from_secs(u64::from(seconds)))))
}

/// An address to listen on; IPv6 may stand in brackets.
fn listen_address(text: &str) -> Result<IpAddr, String> {
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    if bare == "localhost" {
        return Ok(IpAddr::from([127, 0, 0, 1]));
    }
    bare.parse()
        .map_err(|_| "expected an IP address of this machine, such as 127.0.0.1 or 0.0.0.0".to_owned())
}

fn main() {
    let arguments = Arguments::parse();
    init_logging();
    let code = match arguments.command {
        Command::Primary(serve) => start(FirstRole::Primary, serve),
        Command::Secondary(serve) => start(FirstRole::Secondary, serve),
        Command::Keygen { file } => keygen(&file),
    };
    // Not by returning: a disk that hangs must not keep the process from ending.
    std::process::exit(code);
}

/// Standard output is for `ready HOST:PORT`; everything that is meant for people goes to standard error.
fn init_logging() {
    let filter = EnvFilter::builder()
        .with_default_directive(tracing::Level::INFO.into())
        .with_env_var("LASTWORD_LOG")
        .from_env_lossy();
    let colours =
        std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_target(false)
        .with_ansi(colours)
        .with_writer(std::io::stderr)
        .init();
}

fn keygen(file: &Path) -> i32 {
    match create(file) {
        Ok(()) => {
            info!("{}: made a cluster key; every server of the cluster needs a copy of it", file.display());
            EXIT_STOPPED
        }
        Err(error) => fail(&Failure::from(error)),
    }
}

fn fail(failure: &Failure) -> i32 {
    error!("{failure}");
    match failure {
        Failure::Refused(_) => EXIT_REFUSED,
        Failure::Disk(_) => EXIT_DISK,
    }
}

fn start(first_role: FirstRole, serve: Serve) -> i32 {
    // Before a thread gets a huge page, the system clears 2 MiB, and everyone whom the thread serves waits for that.
    // A kernel that doesn't know the call has none either.
    let _ = disable_transparent_huge_pages(true);
    let (options, listen) = match options(first_role, serve) {
        Ok(options) => options,
        Err(reason) => {
            error!("{reason}");
            return EXIT_USAGE;
        }
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&Failure::Refused(format!("starting the event loop failed: {error}"))),
    };
    // As a task among the others: it is woken without a system call, and runs when all that was ready has been read.
    let serving = runtime.block_on(async { tokio::spawn(serve_until_stopped(options, listen)).await });
    match serving.expect("serving neither panics nor is cancelled") {
        Ok(()) => {
            info!("stopped");
            EXIT_STOPPED
        }
        Err(failure) => fail(&failure),
    }
}

/// What the arguments say; the error is one of usage.
fn options(first_role: FirstRole, serve: Serve) -> Result<(Options, SocketAddr), String> {
    let wrong = |error: ClusterError| error.to_string();
    let servers = find_servers(serve.cluster.as_deref(), Path::new(".")).map_err(wrong)?;
    let me = find_self(&servers, serve.port, serve.advertise.as_deref()).map_err(wrong)?;
    if usize::from(serve.min_copies) > servers.len() {
        let (found, most) = (serve.min_copies, servers.len());
        return Err(format!("found --min-copies {found}, expected at most {most}, the number of servers"));
    }
    let limit = limits::raise_file_limit();
    if let Some(warning) = &limit.warning {
        warn!("{warning}");
    }
    warn_of_listening(serve.listen, &servers[usize::from(me.0) - 1]);
    let options = Options {
        servers,
        me,
        first_role,
        data: serve.data.unwrap_or_else(|| Path::new("data").join(serve.port.to_string())),
        key: serve.key,
        cold_wait: serve.cold_wait.0,
        min_copies: serve.min_copies,
        evidence: !serve.no_evidence,
        new_cluster: serve.new_cluster,
        connections_max: limit.connections_max,
    };
    Ok((options, SocketAddr::new(serve.listen, serve.port)))
}

fn warn_of_listening(listen: IpAddr, own_address: &str) {
    if !listen.is_loopback() {
        warn!("listening on {listen}: until TLS is set, what travels over the network can be read by others");
        return;
    }
    let own_host = split_address(own_address).map_or("", |(host, _)| host);
    let own_is_elsewhere = own_host.parse::<IpAddr>().is_ok_and(|address| !address.is_loopback());
    if own_is_elsewhere {
        warn!(
            "listening on {listen} only, but the others look for this server at {own_address}: see --listen"
        );
    }
}

async fn bind(listen: SocketAddr) -> std::io::Result<TcpListener> {
    let given_up = tokio::time::Instant::now() + PREDECESSOR_ENDS;
    loop {
        match listen_on(listen) {
            Err(error) if error.kind() == ErrorKind::AddrInUse && tokio::time::Instant::now() < given_up => {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            bound => return bound,
        }
    }
}

/// When a primary has died, all its clients come at once: none of them is to wait for a second because the system's queue
/// was full, and dropped its first packet. The system cuts the length to what it allows (`net.core.somaxconn`).
fn listen_on(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(u32::try_from(CONNECTIONS_MAX).expect("it is a few thousand"))
}

async fn serve_until_stopped(options: Options, listen: SocketAddr) -> Result<(), Failure> {
    let listener =
        bind(listen).await.map_err(|error| Failure::Refused(format!("can't listen on {listen}: {error}")))?;
    let address = options.servers[usize::from(options.me.0) - 1].clone();
    info!(
        "server {} of {}: {address}, data in {}",
        options.me,
        options.servers.len(),
        options.data.display()
    );
    let stops = stop_signals()?;
    run(listener, options, stops, move || say_ready(&address)).await
}

/// Whoever started the server may have closed its standard output: that is no reason to stop.
fn say_ready(address: &str) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "ready {address}").and_then(|()| out.flush());
}

/// One message for each SIGTERM or Ctrl-C.
fn stop_signals() -> Result<mpsc::Receiver<()>, Failure> {
    let (sender, receiver) = mpsc::channel(8);
    for kind in [SignalKind::terminate(), SignalKind::interrupt()] {
        let mut signals =
            signal(kind).map_err(|error| Failure::Refused(format!("asking for signals failed: {error}")))?;
        let sender = sender.clone();
        tokio::spawn(async move {
            while signals.recv().await.is_some() {
                let _ = sender.send(()).await;
            }
        });
    }
    Ok(receiver)
}
