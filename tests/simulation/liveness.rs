//! Liveness: after a while of faults some servers stay broken for ever, each in its own way, and the connected rest,
//! the core, must go on: clients that reach it get their commands acknowledged within a bound.
//!
//! Under fail-stop any set may be the core that holds a server which can go on by itself: the leader of the latest
//! view, or, while all its members live and hear each other, any one of them (V5).

use std::time::Duration;

use crate::client::{Ended, Op};
use crate::faults::Fault;
use crate::network::ClientPath;
use crate::runner::{Outcome, describe, is_whole, is_whole_again, outcome_of, storm};
use crate::server::{Death, server_id};
use crate::trace::Trace;
use crate::world::{World, trace};
use lastword::time::Instant;

/// How long a healed world may take until somebody leads it, slow disks included.
const LEADER_MAX: Duration = Duration::from_secs(120);
/// How long the core may take to acknowledge three commands of a new client, one after the other.
const PROGRESS_MAX: Duration = Duration::from_secs(20);
/// The slowest network on which a lone survivor can tell that it was in touch with the others until their end, by
/// round trips that take less than half the suspicion timeout, heartbeat interval and probe included (V2).
const DELAY_MAX: Duration = Duration::from_millis(20);
const FOR_EVER: Instant = Instant::from_nanos(u64::MAX / 2);

/// In which way a server is broken for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Broken {
    /// Its process is dead; connects are refused.
    Dead,
    /// Its host has no power; nothing answers.
    Unpowered,
    /// Its process is stopped; its host takes connections and nothing more.
    Paused,
    /// No path to or from it.
    CutOff,
    /// Connections to and from it come about, and nothing that it says arrives.
    Mute,
    /// Connections to and from it come about, and nothing arrives on them.
    Swallowed,
    /// One path to one server of the core is cut, in one direction.
    OneWay,
    /// Its disk takes 200 ms for a sync.
    SlowDisk,
    /// Nothing on its disk is ever done again.
    StuckDisk,
}

const KINDS: [Broken; 9] = [
    Broken::Dead,
    Broken::Unpowered,
    Broken::Paused,
    Broken::CutOff,
    Broken::Mute,
    Broken::Swallowed,
    Broken::OneWay,
    Broken::SlowDisk,
    Broken::StuckDisk,
];

/// One seed: faults, then a core that must go on without the rest.
pub(crate) fn run_seed(seed: u64, trace: Trace, world: &mut Option<World>) -> Outcome {
    let world = storm(seed, trace, world);
    world.swarm.delay_max = world.swarm.delay_max.min(DELAY_MAX);
    let core = choose_core(world);
    end_faults(world, &core);
    let broken = break_the_rest(world, &core);
    for client in &mut world.clients {
        client.lively = false;
    }
    demand_progress(world, &core, &broken);
    outcome_of(world)
}

/// Picks who stays well. Half of the time everything is healed first, and any set may be picked. Otherwise whoever is
/// down or paused stays so, and only sets with the leader of the latest view may.
///
/// A server that was paused until a moment ago, or has lost touch for a quarter of a second, can't go on alone, and
/// must not (V2); nor can one that has started just now, before all others have connected to it. So the core is chosen
/// when all members of the view follow its leader and have been in touch with each other.
fn choose_core(world: &mut World) -> Vec<usize> {
    let servers = world.servers.len();
    if world.nemesis.chance(1, 2) {
        world.heal();
    }
    if world.split {
        unite(world);
    }
    world.healed = true;
    world.network.heal();
    world.run_for(Duration::from_secs(1));
    if !comes_to_rest(world, Duration::from_secs(5)) {
        world.heal();
        world.run_for(Duration::from_secs(1));
        await_rest(world);
    }
    if world.split && !is_whole(world) {
        unite(world); // Meanwhile a cold start has gone on without somebody.
        await_rest(world);
    }
    let leader = if is_whole(world) { 0 } else { 1 << world.latest_leader().expect("it is at rest") };
    let bits = world.nemesis.below(1 << servers) | leader;
    let bits = if bits == 0 { 1 } else { bits };
    (0..servers).filter(|at| bits >> at & 1 == 1).collect()
}

/// After a split: only when all servers have met again, no disk is the only one that has something.
fn unite(world: &mut World) {
    world.heal();
    let whole = is_whole_again(world, LEADER_MAX);
    assert!(whole, "not whole {LEADER_MAX:?} after a split; {}", describe(world));
}

fn await_rest(world: &mut World) {
    let rests = comes_to_rest(world, LEADER_MAX);
    assert!(rests, "no leader {LEADER_MAX:?} after the last fault; {}", describe(world));
}

/// Whether within that time everybody is at rest, and goes on to be for a few heartbeats.
fn comes_to_rest(world: &mut World, within: Duration) -> bool {
    let deadline = world.now + within;
    while world.run_until(deadline.since(world.now), is_at_rest) {
        if !world.run_until(DELAY_MAX * 10, |world| !is_at_rest(world)) {
            return true;
        }
    }
    false
}

/// Whether somebody leads the latest view, with a disk that works, and all its members follow and are connected.
fn is_at_rest(world: &mut World) -> bool {
    let Some(leader) = world.latest_leader() else { return false };
    let view = world.servers[leader].replica().expect("it leads").installed_view();
    let places: Vec<_> = view.members.iter().map(|member| usize::from(member.server.0) - 1).collect();
    places.iter().all(|&at| {
        let server = &world.servers[at];
        let now = server.clock.monotonic(world.now);
        let is_connected = |&other: &usize| other == at || world.network.are_connected(at, other);
        server.is_running()
            && !server.restarts
            && server.process.as_ref().is_some_and(|process| {
                process.failed.is_none()
                    && process.replica.installed_view() == view
                    && ["primary", "backup"].contains(&process.replica.status(now).role.as_str())
            })
            && places.iter().all(is_connected)
    })
}

/// No more faults by chance; the core is well, and its servers reach each other.
fn end_faults(world: &mut World, core: &[usize]) {
    trace!(world, "only {core:?} stays well, for ever");
    world.healed = true;
    world.network.heal();
    for &at in core {
        world.heal_server(at);
    }
}

fn break_the_rest(world: &mut World, core: &[usize]) -> Vec<(usize, Broken)> {
    let rest: Vec<usize> = (0..world.servers.len()).filter(|at| !core.contains(at)).collect();
    let leader = world.latest_leader().expect("it is at rest");
    let view = world.servers[leader].replica().expect("it leads").installed_view();
    let holders = core.iter().filter(|&&at| view.member(server_id(at)).is_some()).count();
    let mut broken = Vec::new();
    for at in rest {
        let kind = match KINDS[usize::try_from(world.nemesis.below(KINDS.len() as u64)).expect("few kinds")] {
            // Half cut off from the only one in the core that holds the view, it could go on with others of the rest,
            // and the core knows.
            Broken::OneWay if holders == 1 => Broken::CutOff,
            kind => kind,
        };
        trace!(world, "server {} is broken for ever: {kind:?}", at + 1);
        world.faults.count(Fault::ForEver);
        broken.push((at, kind));
        // A member's full disk stops the others for as long as it is full (D3), which is none of the kinds.
        world.free_space(at);
        world.servers[at].broken_for_ever = true;
        break_one(world, core, at, kind);
    }
    broken
}

fn break_one(world: &mut World, core: &[usize], at: usize, kind: Broken) {
    match kind {
        Broken::Dead => world.crash(at, Death::Kill),
        Broken::Unpowered => world.crash(at, Death::PowerLoss),
        Broken::Paused => world.pause(at),
        Broken::CutOff | Broken::Mute | Broken::Swallowed => {
            world.servers[at].given_up = true;
            for other in (0..world.servers.len()).filter(|&other| other != at) {
                match kind {
                    Broken::CutOff => world.block(at, other, false),
                    Broken::Mute => world.network.mute(at, other),
                    _ => {
                        world.network.mute(at, other);
                        world.network.mute(other, at);
                    }
                }
            }
        }
        Broken::OneWay => {
            let other = core[usize::try_from(world.nemesis.below(core.len() as u64)).expect("few servers")];
            if world.nemesis.chance(1, 2) {
                world.block(at, other, true);
            } else {
                world.block(other, at, true);
            }
        }
        Broken::SlowDisk => {
            let longest = u64::try_from(world.swarm.sync_max.as_micros()).expect("short");
            world.servers[at].disk_slowness = u32::try_from(200_000 / longest.max(1)).expect("small").max(2);
        }
        Broken::StuckDisk => world.servers[at].disk_stuck_until = FOR_EVER,
    }
    if world.servers[at].given_up {
        world.cut_off_clients(at);
    }
}

impl World {
    /// No client reaches this server any more, or hears it.
    fn cut_off_clients(&mut self, at: usize) {
        // One more client is still to come.
        for client in 0..=self.clients.len() {
            let path = ClientPath { deaf_until: FOR_EVER, mute_until: FOR_EVER };
            self.network.set_client_path(client, at, path);
        }
    }
}

/// A client that comes now gets its commands acknowledged, and nothing that was acknowledged before is lost.
fn demand_progress(world: &mut World, core: &[usize], broken: &[(usize, Broken)]) {
    let begun = world.now;
    let fresh = world.add_client();
    world.wish(fresh, Op::Send { to: fresh, text: "to myself, without the rest".into() });
    world.wish(fresh, Op::Read);
    let done = world.run_until(PROGRESS_MAX, |world| world.clients[fresh].is_idle());
    let answered = matches!(world.clients[fresh].ended.last(), Some((_, Ended::Answered(_))));
    assert!(
        done && answered,
        "no progress in {:?}: {}{}",
        world.now.since(begun),
        describe_broken(world.swarm.delay_max, core, broken),
        describe(world)
    );
    let led = world.run_until(LEADER_MAX, |world| heard_leader(world).is_some());
    assert!(
        led,
        "nobody leads for long: {}{}",
        describe_broken(world.swarm.delay_max, core, broken),
        describe(world)
    );
    let leader = heard_leader(world).expect("just seen");
    world.oracle.check_final(world.servers[leader].replica().expect("it leads").state());
}

/// Who leads clients that are not cut off from it.
fn heard_leader(world: &World) -> Option<usize> {
    world.servers.iter().position(|server| {
        !server.given_up
            && server.is_running()
            && server.replica().is_some_and(|replica| replica.is_serving())
    })
}

/// Who is broken how, in words.
fn describe_broken(delay: Duration, core: &[usize], broken: &[(usize, Broken)]) -> String {
    let numbers: Vec<_> = core.iter().map(|at| at + 1).collect();
    let mut text = format!("servers {numbers:?} are well and connected, {delay:?} apart at most");
    for (at, kind) in broken {
        let how = match kind {
            Broken::Dead => "is dead",
            Broken::Unpowered => "has no power",
            Broken::Paused => "is stopped (SIGSTOP)",
            Broken::CutOff => "is cut off",
            Broken::Mute => "takes connections, and nothing that it says arrives",
            Broken::Swallowed => "takes connections, and nothing arrives on them",
            Broken::OneWay => "lacks one direction to one of them",
            Broken::SlowDisk => "needs 200 ms for a sync",
            Broken::StuckDisk => "has a disk that does nothing any more",
        };
        text.push_str(&format!(", server {} {how}", at + 1));
    }
    text.push_str("; ");
    text
}
