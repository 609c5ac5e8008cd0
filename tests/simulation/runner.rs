//! Runs seeds: one, a fixed set, or many fresh ones on all cores; and says how to replay the one that failed.

use std::cell::RefCell;
use std::fmt::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use lastword::config::{MINORITY_GRACE, SUSPICION};
use lastword::message::Status;
use lastword::prng::Prng;

use crate::check::tables::EqualTables;
use crate::client::{Ended, Op};
use crate::faults::FaultCounts;
use crate::nemesis::Mishap;
use crate::oracle::check_invariants;
use crate::server::Death;
use crate::swarm::Swarm;
use crate::trace::Trace;
use crate::world::{Action, World};

/// How long a healed world may take to be whole again.
const HEALING_MAX: Duration = Duration::from_secs(60);
/// As long, if disks were slow: a member that was dropped for that waits before it is readmitted (N9).
const HEALING_SLOW_MAX: Duration = Duration::from_secs(900);

/// What one seed amounted to.
#[derive(Clone, Debug, Default)]
pub(crate) struct Outcome {
    /// The trace's hash; of several seeds the sum, whichever ended first.
    pub hash: u64,
    /// Steps of the event loop.
    pub steps: u64,
    /// Simulated time.
    pub simulated: Duration,
    /// Acknowledged commands, checked reads, commands of unknown outcome, committed entries.
    pub acknowledged: u64,
    /// Reads that were checked.
    pub reads: u64,
    /// Commands of unknown outcome.
    pub unknown: u64,
    /// Committed entries.
    pub committed: u64,
    /// How often each fault fired.
    pub faults: FaultCounts,
}

impl Outcome {
    fn add(&mut self, other: &Self) {
        self.hash = self.hash.wrapping_add(other.hash);
        self.steps += other.steps;
        self.simulated += other.simulated;
        self.acknowledged += other.acknowledged;
        self.reads += other.reads;
        self.unknown += other.unknown;
        self.committed += other.committed;
        self.faults.add_seed(&other.faults);
    }
}

/// What one seed goes through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum History {
    /// Faults, then healing: nothing may be lost.
    Swarm,
    /// Faults, of which some stay for ever: the others must go on.
    Liveness,
}

impl History {
    /// The test that runs it.
    pub(crate) fn test(self) -> &'static str {
        match self {
            Self::Swarm => "swarm",
            Self::Liveness => "liveness",
        }
    }

    /// Runs one seed. The world is given back for its trace even after a violation.
    pub(crate) fn run(self, seed: u64, trace: Trace, world: &mut Option<World>) -> Outcome {
        match self {
            Self::Swarm => run_seed(seed, trace, world),
            Self::Liveness => crate::liveness::run_seed(seed, trace, world),
        }
    }
}

/// One seed, from the first start to the last check.
fn run_seed(seed: u64, trace: Trace, world: &mut Option<World>) -> Outcome {
    let world = storm(seed, trace, world);
    heal_and_check(world);
    outcome_of(world)
}

/// A world of this seed, after the time in which its faults happen.
pub(crate) fn storm(seed: u64, trace: Trace, world: &mut Option<World>) -> &mut World {
    let mut prng = Prng::new(seed ^ 0x5eed_5eed_5eed_5eed);
    let swarm = Swarm::draw(&mut prng);
    let world = world.insert(World::new(seed, swarm, trace));
    let servers = world.servers.len();
    for at in 0..servers {
        let spread = world.swarm.start_spread;
        let wait = world.between(Duration::ZERO, spread);
        world.after(wait, Action::Mishap(Mishap::Start(at)));
    }
    for client in &mut world.clients {
        client.lively = true;
    }
    world.run_for(world.swarm.start_spread);
    world.unleash_nemesis();
    world.run_for(world.swarm.duration);
    world
}

/// What a seed has amounted to so far.
pub(crate) fn outcome_of(world: &World) -> Outcome {
    Outcome {
        hash: world.trace.hash(),
        steps: world.trace.steps(),
        simulated: Duration::from_nanos(world.now.as_nanos()),
        acknowledged: world.oracle.acknowledged,
        reads: world.oracle.reads,
        unknown: world.oracle.unknown,
        committed: world.checks.committed(),
        faults: world.faults.clone(),
    }
}

/// Ends all faults and demands what must then come: progress, one view of all, equal states, nothing lost or doubled.
pub(crate) fn heal_and_check(world: &mut World) {
    world.heal();
    for client in &mut world.clients {
        client.lively = false;
    }
    let max = if world.swarm.slow_disks { HEALING_SLOW_MAX } else { HEALING_MAX };
    if world.split && !is_whole_again(world, max) {
        // What a client is told before that may be told by a side that is about to lose.
        panic!("the cluster is not whole {max:?} after a split; {}", describe(world));
    }
    let fresh = world.add_client();
    world.wish(fresh, Op::Send { to: fresh, text: "to myself, after healing".into() });
    world.wish(fresh, Op::Read);
    let begun = world.now;
    if !world.run_until(max, |world| world.clients.iter().all(|client| client.is_idle())) {
        panic!("no progress: after {max:?} without faults clients still wait; {}", describe(world));
    }
    let (_, last) = world.clients[fresh].ended.last().expect("it had wishes");
    assert!(matches!(last, Ended::Answered(_)), "no progress: a fresh client's read ended as {last:?}");
    let left = max.saturating_sub(world.now.since(begun));
    if !world.run_until(left, is_whole) {
        panic!("the cluster is not whole {max:?} after the last fault; {}", describe(world));
    }
    check_disks(world);
}

/// Whether servers that may have parted come to be whole within that time after the last fault. Before they hear each
/// other again they may still part, and think meanwhile that they have not: they are not asked yet.
pub(crate) fn is_whole_again(world: &mut World, within: Duration) -> bool {
    world.run_for(SUSPICION + MINORITY_GRACE);
    world.run_until(within, is_whole)
}

/// Whether all servers run in one view as its members, with everything applied everywhere, and nothing that lost a split
/// is still to be proposed again (R7).
pub(crate) fn is_whole(world: &mut World) -> bool {
    let Some(leader) = world.servers.iter().find(|s| s.replica().is_some_and(|replica| replica.is_serving()))
    else {
        return false;
    };
    let now = leader.clock.monotonic(world.now);
    let leader = leader.replica().expect("it serves");
    let view = leader.installed_view();
    let status = leader.status(now);
    view.members.len() == world.servers.len()
        && status.applied == status.last
        && world.servers.iter().all(|server| {
            server.is_running()
                && server.replica().is_some_and(|replica| {
                    replica.installed_view() == view && replica.state().index() == leader.state().index()
                })
        })
        && diverged_files(world).is_empty()
}

/// The files of rows that another server's log has won over, and whose they are.
pub(crate) fn diverged_files(world: &World) -> Vec<String> {
    let of = |at: usize| {
        let files = world.servers[at].disk.files().into_iter().filter(|file| file.starts_with("diverged-"));
        files.map(move |file| format!("server {} keeps {file}", at + 1))
    };
    (0..world.servers.len()).flat_map(of).collect()
}

/// Stops all servers, opens their disks, and compares what is on them: to each other, byte for byte, and to what
/// clients know.
pub(crate) fn check_disks(world: &mut World) {
    let servers = world.servers.len();
    let index = world.servers[0].replica().expect("the cluster is whole").state().index();
    let mut tables = EqualTables::default();
    for at in 0..servers {
        world.crash(at, Death::PowerLoss);
        let opened = world
            .open_directory(at)
            .unwrap_or_else(|error| panic!("server {} can't open its directory at the end: {error}", at + 1));
        let recovered = opened.recovered;
        let mut state = recovered.state;
        let applied = state.index();
        for entry in recovered.tail.iter().filter(|entry| entry.index > applied && entry.index <= index) {
            state.apply(entry.index, entry.unix_ms, entry.chain, &entry.operation);
        }
        assert_eq!(state.index(), index, "server {}'s disk lacks entries that were applied", at + 1);
        match at {
            0 => world.oracle.check_final(&state),
            // What a state holds is in its tables, and they are equal to those of the first.
            _ => check_invariants(&state),
        }
        tables.check(at, &mut state);
    }
}

/// How everybody is, for a report.
pub(crate) fn describe(world: &World) -> String {
    let mut text = String::new();
    for server in &world.servers {
        let id = server.at + 1;
        let Some(replica) = server.replica() else {
            let _ = write!(text, "server {id} is down; ");
            continue;
        };
        let Status { role, view, last, synced, commit, applied, note, .. } =
            replica.status(server.clock.monotonic(world.now));
        let members: Vec<_> = replica.installed_view().members.iter().map(|m| m.server.0).collect();
        let _ = write!(
            text,
            "server {id}: {role} in {view} of {members:?}, last {last} synced {synced} commit {commit} applied {applied}, \
             note {note:?}; "
        );
    }
    for kept in diverged_files(world) {
        let _ = write!(text, "{kept}; ");
    }
    for (at, client) in world.clients.iter().enumerate().filter(|(_, client)| !client.is_idle()) {
        let _ = write!(text, "client {at} waits for {:?}; ", client.jobs);
    }
    text
}

/// Where and how a seed failed.
#[derive(Clone, Debug)]
pub(crate) struct Violation {
    /// The seed.
    pub seed: u64,
    /// What was violated.
    pub what: String,
    /// In which kind of history.
    history: History,
}

thread_local! {
    /// Set while a seed runs on this thread: a panic is kept here instead of being printed.
    static CAUGHT: RefCell<Option<String>> = const { RefCell::new(None) };
}

fn keep_panics_of_seeds() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            let caught = CAUGHT.with_borrow_mut(|caught| match caught {
                Some(text) => {
                    let place = info.location().map_or(String::new(), ToString::to_string);
                    *text = format!("{} [{place}]", message_of(info.payload()));
                    true
                }
                None => false,
            });
            if !caught {
                usual(info);
            }
        }));
    });
}

fn message_of(payload: &(dyn std::any::Any + Send)) -> String {
    let text = payload.downcast_ref::<String>().cloned();
    text.or_else(|| payload.downcast_ref::<&str>().map(|s| (*s).to_owned()))
        .unwrap_or_else(|| "a panic".into())
}

fn attempt(history: History, seed: u64, trace: Trace) -> (Result<Outcome, String>, Option<World>) {
    keep_panics_of_seeds();
    let mut world = None;
    CAUGHT.set(Some(String::new()));
    let result = catch_unwind(AssertUnwindSafe(|| history.run(seed, trace, &mut world)));
    let caught = CAUGHT.take().unwrap_or_default();
    (result.map_err(|_| caught), world)
}

/// Runs one seed; a violation comes back as text.
pub(crate) fn try_seed(history: History, seed: u64) -> Result<Outcome, String> {
    attempt(history, seed, Trace::new(false, false)).0
}

/// The last lines of a failing seed's trace, written to a file; gives its path.
fn write_trace(history: History, seed: u64) -> String {
    let print = std::env::var_os("SIM_TRACE").is_some();
    let (_, world) = attempt(history, seed, Trace::new(true, print));
    let Some(world) = world else { return "(no trace: the world could not be made)".into() };
    let path = format!("{}/sim-{seed:016x}.trace", env!("CARGO_TARGET_TMPDIR"));
    let lines: String = world.trace.lines().map(|line| format!("{line}\n")).collect();
    match std::fs::write(&path, lines) {
        Ok(()) => path,
        Err(error) => format!("(not written: {path}: {error})"),
    }
}

/// Says in one line how to replay a seed, and where its trace is.
pub(crate) fn report(violation: &Violation) -> String {
    let Violation { seed, what, history } = violation;
    let path = write_trace(*history, *seed);
    let test = history.test();
    let splits = if std::env::var_os("SIM_SPLITS").is_some() { "SIM_SPLITS=1 " } else { "" };
    format!(
        "{splits}SIM_SEED={seed:#x} cargo test --test simulation {test}   # {what}\n  the last steps: {path}"
    )
}

/// Runs seeds on all cores until `next` gives no more, or one fails.
pub(crate) fn run_seeds(
    history: History,
    next: impl Fn() -> Option<u64> + std::marker::Sync,
) -> (u64, Outcome, Vec<Violation>) {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let total = Mutex::new((Outcome::default(), Vec::new()));
    let count = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..cores {
            scope.spawn(|| {
                while let Some(seed) = next() {
                    let result = try_seed(history, seed);
                    count.fetch_add(1, Ordering::Relaxed);
                    let mut total = total.lock().expect("seeds catch their panics");
                    match result {
                        Ok(outcome) => total.0.add(&outcome),
                        Err(what) => total.1.push(Violation { seed, what, history }),
                    }
                    if total.1.len() >= violations_max() {
                        break;
                    }
                }
            });
        }
    });
    let (outcome, violations) = total.into_inner().expect("seeds catch their panics");
    (count.into_inner(), outcome, violations)
}

/// After so many violations a run ends: `SIM_VIOLATIONS`, by default one.
fn violations_max() -> usize {
    std::env::var("SIM_VIOLATIONS").ok().and_then(|text| text.parse().ok()).unwrap_or(1)
}
