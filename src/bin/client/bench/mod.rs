//! `client bench`: loads the servers with real requests of real accounts, measures, and then looks whether everything
//! that was acknowledged is there once.
//!
//! A run has five parts: accounts are registered; everybody connects; the load runs; what was acknowledged is looked
//! for; the accounts are deleted. Only the third is measured.

mod audit;
mod login;
mod mail;
mod meter;
mod reading;

use crate::arguments::{BenchArguments, Mix, Resolved};
use crate::output::{Stop, say, talk};
use audit::Verdict;
use indicatif::{ProgressBar, ProgressStyle};
use lastword::client::session_store::{SessionStore, StoredSession};
use lastword::client::{Client, ClientError, Password, Pipeline, Settings};
use lastword::config::{NAME_BYTES_MAX, OUTGOING_BYTES_MAX, PAGE_BYTES_MAX, PAGE_DEFAULT};
use lastword::message::{Request, Response};
use meter::{Meter, Report};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::disable_transparent_huge_pages;
use serde_json::json;
use std::collections::VecDeque;
use std::future::Future;
use std::io::{self, IsTerminal as _};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;
use tokio::time::sleep;

/// Accounts that are registered, looked after or deleted at once: servers hash two passwords at a time, and the last
/// in the row must not wait for longer than a request may take.
const AT_ONCE: usize = 8;
/// Open files besides connections: standard streams, the runtime's own, and some to spare.
const FILES_RESERVED: u64 = 32;
/// Logins of one account under way at once; servers take more for guessing.
const LOGINS_AT_ONCE_MAX: u16 = 5;
/// In deliver a client has two connections, and a server takes 10,000.
const DELIVER_CLIENTS_MAX: u16 = 5_000;
/// What a message on a page has besides its text: two names, ids, times.
const MESSAGE_BESIDES_TEXT_BYTES_MAX: usize = 2 * NAME_BYTES_MAX + 64;
/// How often the progress bar moves.
const TICK: Duration = Duration::from_millis(100);

/// What all parts of a run share.
struct Bench {
    servers: Vec<String>,
    timeout: Duration,
    arguments: BenchArguments,
    /// What the names of this run's accounts begin with.
    prefix: String,
    password: String,
    meter: Mutex<Meter>,
}

/// One client of a mix.
trait Load: Sized + Send + 'static {
    /// Registers accounts and connects.
    fn prepare(bench: Arc<Bench>, index: u16) -> impl Future<Output = Result<Self, ClientError>> + Send;
    /// Keeps requests under way until `end`, and waits for the answers that are still out then.
    fn run(self, bench: Arc<Bench>, end: Instant) -> impl Future<Output = Result<Self, ClientError>> + Send;
    /// Looks for what was acknowledged, and deletes the accounts unless they are to be kept.
    fn finish(self, bench: Arc<Bench>) -> impl Future<Output = Result<Verdict, ClientError>> + Send;
}

/// Carries out `client bench`.
pub(crate) async fn run(
    arguments: &BenchArguments,
    resolved: Resolved,
    json_wanted: bool,
) -> Result<(), Stop> {
    check(arguments)?;
    // As the servers do: else it would measure how long the system takes to clear 2 MiB.
    let _ = disable_transparent_huge_pages(true);
    let bench = Arc::new(Bench {
        servers: resolved.servers,
        timeout: resolved.timeout,
        arguments: arguments.clone(),
        prefix: format!("bench-{:08x}-", rand::random::<u32>()),
        password: format!("{:032x}", rand::random::<u128>()),
        meter: Mutex::new(Meter::new(Instant::now(), Instant::now())),
    });
    let verdict = match arguments.mix {
        Mix::Send | Mix::Deliver => measure::<mail::Mail>(&bench).await,
        Mix::List | Mix::History => measure::<reading::Reading>(&bench).await,
        Mix::Login => measure::<login::Login>(&bench).await,
    }?;
    let report = bench.meter().report();
    if json_wanted {
        say(&report_json(&report, verdict).to_string())?;
    } else {
        report_lines(arguments, &report, verdict).iter().try_for_each(|line| say(line))?;
    }
    if verdict == Verdict::default() {
        return Ok(());
    }
    let Verdict { lost, doubled } = verdict;
    Err(Stop::Local(format!("of {} acknowledged, {lost} are lost and {doubled} are doubled", report.acked)))
}

/// Refuses what servers would refuse later, and what this process can't do.
fn check(arguments: &BenchArguments) -> Result<(), Stop> {
    let BenchArguments { clients, window, mix, .. } = *arguments;
    if mix == Mix::Login && window > LOGINS_AT_ONCE_MAX {
        return Err(Stop::Usage(format!(
            "found a window of {window}, expected at most {LOGINS_AT_ONCE_MAX} with --mix login: servers take more \
             logins of one account at once for guessing"
        )));
    }
    if mix == Mix::Deliver && clients > DELIVER_CLIENTS_MAX {
        return Err(Stop::Usage(format!(
            "found {clients} clients, expected at most {DELIVER_CLIENTS_MAX} with --mix deliver: each has two \
             connections, and a server takes 10,000"
        )));
    }
    check_answers(arguments)?;
    let connections = match mix {
        Mix::Login => u64::from(clients) * u64::from(window),
        Mix::Send | Mix::Deliver => u64::from(clients) * 2,
        Mix::List | Mix::History => u64::from(clients),
    };
    check_file_limit(connections + FILES_RESERVED)
}

/// A server closes a connection on which too many bytes of answers wait.
fn check_answers(arguments: &BenchArguments) -> Result<(), Stop> {
    let BenchArguments { window, mix, .. } = *arguments;
    let entry_bytes = match mix {
        Mix::List => NAME_BYTES_MAX,
        Mix::History => MESSAGE_BESIDES_TEXT_BYTES_MAX + usize::from(arguments.size),
        Mix::Send | Mix::Deliver | Mix::Login => return Ok(()),
    };
    let page_bytes = (PAGE_DEFAULT * entry_bytes).min(PAGE_BYTES_MAX);
    let window_max = OUTGOING_BYTES_MAX / page_bytes;
    if usize::from(window) <= window_max {
        return Ok(());
    }
    Err(Stop::Usage(format!(
        "found a window of {window}, expected at most {window_max} for pages of {page_bytes} bytes: servers close a \
         connection for which more than {OUTGOING_BYTES_MAX} bytes of answers wait"
    )))
}

fn check_file_limit(wanted: u64) -> Result<(), Stop> {
    let limit = getrlimit(Resource::Nofile);
    // If it can't be raised, the check that follows says so.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
    match getrlimit(Resource::Nofile).current {
        Some(found) if found < wanted => Err(Stop::Local(format!(
            "found a limit of {found} open files, expected at least {wanted} for so many clients: raise it with \
             `ulimit -n {wanted}`"
        ))),
        _ => Ok(()),
    }
}

/// Runs one mix from begin to end.
async fn measure<L: Load>(bench: &Arc<Bench>) -> Result<Verdict, Stop> {
    let clients = 0..bench.arguments.clients;
    let loads = each("registering", clients, |index| L::prepare(Arc::clone(bench), index)).await?;
    let loads = load(bench, loads).await?;
    let verdicts = each("verifying", loads, |load| L::finish(load, Arc::clone(bench))).await?;
    Ok(verdicts.into_iter().sum())
}

/// The part that is measured.
async fn load<L: Load>(bench: &Arc<Bench>, loads: Vec<L>) -> Result<Vec<L>, Stop> {
    let seconds = u64::from(bench.arguments.seconds);
    let start = Instant::now();
    let end = start + Duration::from_secs(seconds);
    *bench.meter() = Meter::new(start, end);
    let bar = bar(seconds * 10, "running");
    let mut running: JoinSet<_> =
        loads.into_iter().map(|load| L::run(load, Arc::clone(bench), end)).collect();
    let mut done = Vec::new();
    loop {
        tokio::select! {
            joined = running.join_next() => match joined {
                Some(load) => done.push(load.expect("a client doesn't panic")?),
                None => break,
            },
            () = sleep(TICK) => {
                bar.set_position(u64::try_from(start.elapsed().as_millis() / 100).unwrap_or(u64::MAX));
                bar.set_message(format!("{} acknowledged", bench.meter().acked()));
            }
        }
    }
    bar.finish_and_clear();
    Ok(done)
}

/// Takes one step for each item, [`AT_ONCE`] at once.
async fn each<I, T, F>(
    what: &'static str,
    items: impl IntoIterator<Item = I>,
    step: impl Fn(I) -> F,
) -> Result<Vec<T>, Stop>
where
    T: Send + 'static,
    F: Future<Output = Result<T, ClientError>> + Send + 'static,
{
    let mut items = items.into_iter().collect::<Vec<I>>().into_iter();
    let bar = bar(items.len() as u64, what);
    let mut under_way: JoinSet<_> = items.by_ref().take(AT_ONCE).map(&step).collect();
    let mut done = Vec::new();
    while let Some(joined) = under_way.join_next().await {
        done.push(joined.expect("a step doesn't panic")?);
        if let Some(item) = items.next() {
            under_way.spawn(step(item));
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok(done)
}

/// A progress bar on standard error; only a line that names the part of the run if that is no terminal.
fn bar(length: u64, what: &'static str) -> ProgressBar {
    if !io::stderr().is_terminal() {
        talk(what);
    }
    let style = ProgressStyle::with_template("{prefix:12} [{bar:40}] {percent:>3}% {msg}");
    ProgressBar::new(length).with_style(style.expect("the template is well-formed")).with_prefix(what)
}

impl Bench {
    fn meter(&self) -> MutexGuard<'_, Meter> {
        self.meter.lock().expect("nothing that holds the lock panics")
    }

    fn window(&self) -> usize {
        usize::from(self.arguments.window)
    }

    /// The name of an account; all of one kind are ordered by their index.
    fn name(&self, index: u16, kind: &str) -> String {
        format!("{}{index:05}{kind}", self.prefix)
    }

    /// A client of the library, its session in memory.
    fn client(&self) -> Result<Client, ClientError> {
        let settings = Settings {
            servers: self.servers.clone(),
            user: None,
            password: None,
            timeout: Some(self.timeout),
        };
        Client::new(settings, SessionStore::in_memory())
    }

    /// Registers an account.
    async fn register(&self, name: &str) -> Result<StoredSession, ClientError> {
        let mut client = self.client()?;
        client.register(name, &Password::new(self.password.clone())).await?;
        Ok(client.session().expect("a registration begins a session").clone())
    }

    /// A pipeline in a session of which only the first number is used.
    fn pipeline(&self, session: StoredSession) -> Pipeline {
        Pipeline::new(self.servers.clone(), session, 2, self.timeout)
    }

    /// Connects a pipeline, and makes sure that its session is there.
    async fn connect(&self, pipeline: &mut Pipeline) -> Result<(), ClientError> {
        let request = Request::List { pattern: String::new(), after: String::new(), limit: 1 };
        pipeline.ask(request).await.map(|_| ())
    }

    /// Deletes the account that a pipeline acts for, unless accounts are to be kept.
    async fn delete_account(&self, pipeline: &mut Pipeline) -> Result<(), ClientError> {
        if self.arguments.keep {
            return Ok(());
        }
        match pipeline.ask(Request::DeleteAccount { password: self.password.clone() }).await {
            Ok(_) => Ok(()),
            // The accounts are the run's own, and its verdict matters more than what remains of them.
            Err(error) => {
                talk(&format!("client: {} is left behind: {error}", pipeline.session().name));
                Ok(())
            }
        }
    }
}

/// An answer that is none.
fn unexpected(pipeline: &Pipeline, found: &Response, expected: &'static str) -> ClientError {
    let server = format!("the primary of {}", pipeline.session().name);
    match found {
        Response::Error(error) => ClientError::Refused(error.clone()),
        found => ClientError::Unexpected { server, found: format!("{found:?}"), expected },
    }
}

/// The object of `--json`.
fn report_json(report: &Report, verdict: Verdict) -> serde_json::Value {
    json!({
        "acked_per_second": report.acked_per_second,
        "p50_us": report.p50_us,
        "p99_us": report.p99_us,
        "p999_us": report.p999_us,
        "longest_gap_ms": report.longest_gap_ms,
        "acked": report.acked,
        "lost": verdict.lost,
        "doubled": verdict.doubled,
    })
}

fn report_lines(arguments: &BenchArguments, report: &Report, verdict: Verdict) -> Vec<String> {
    let BenchArguments { clients, window, size, seconds, mix, .. } = arguments;
    let mut lines = VecDeque::from([
        format!("{mix:?}: {clients} clients x {window} in flight, {size} bytes, {seconds} s").to_lowercase(),
        format!("acknowledged  {:.0} a second, {} in all", report.acked_per_second, report.acked),
        format!(
            "latency       p50 {} us, p99 {} us, p99.9 {} us",
            report.p50_us, report.p99_us, report.p999_us
        ),
        format!("longest gap   {:.1} ms between two acknowledgements", report.longest_gap_ms),
        format!("verified      {} lost, {} doubled", verdict.lost, verdict.doubled),
    ]);
    if report.unknown > 0 {
        lines.push_back(format!("unknown       {} requests have no answer: not counted", report.unknown));
    }
    lines.into()
}
