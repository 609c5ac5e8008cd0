//! The nemesis: picks faults while they are on, and ends each after a while.

use std::time::Duration;

use lastword::config::{MINORITY_GRACE, SUSPICION};
use lastword::replica::Event;

use crate::faults::Fault;
use crate::server::Death;
use crate::world::{Action, World, trace};

/// The longest partition under which fail-stop cannot split the brain: what a minority waits, less reconnecting.
const PARTITION_MAX: Duration = Duration::from_secs(2);
const _: () = assert!(
    PARTITION_MAX.as_millis() + 2 * SUSPICION.as_millis()
        < SUSPICION.as_millis() + MINORITY_GRACE.as_millis()
);

/// A fault that begins or ends at its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mishap {
    /// A server's command line is typed (again).
    Start(usize),
    /// A host has power again, and nothing runs yet: it refuses connections.
    PowerBack(usize),
    /// A process runs again.
    Resume(usize),
    /// All servers but this one are killed.
    KillOthers(usize),
    /// A disk is as fast as usual again.
    DiskRecovers(usize),
    /// Both directions between two servers are open again.
    Unblock(usize, usize),
}

impl World {
    /// Turns the nemesis on.
    pub(crate) fn unleash_nemesis(&mut self) {
        let wait = self.nemesis_interval();
        self.after(wait, Action::Nemesis);
    }

    fn nemesis_interval(&mut self) -> Duration {
        let mean = u64::try_from(self.swarm.fault_interval.as_nanos()).expect("short");
        Duration::from_nanos(self.nemesis.below(2 * mean))
    }

    fn nemesis_duration(&mut self, low: Duration, high: Duration) -> Duration {
        let (low, high) = (low.as_micros(), high.as_micros().max(low.as_micros()));
        let range = u64::try_from(high - low).expect("short") + 1;
        Duration::from_micros(u64::try_from(low).expect("short") + self.nemesis.below(range))
    }

    fn nemesis_server(&mut self) -> usize {
        usize::try_from(self.nemesis.below(self.servers.len() as u64)).expect("few servers")
    }

    /// Picks one fault among those that are on, and sets the next time.
    pub(crate) fn on_nemesis(&mut self) {
        if self.healed {
            return;
        }
        let swarm = &self.swarm;
        let kinds: Vec<Fault> = [
            (swarm.kills, Fault::Kill, 4),
            (swarm.kills && swarm.together, Fault::KillTwo, 2),
            (swarm.kills && swarm.together, Fault::KillAll, 1),
            (swarm.power, Fault::PowerLoss, 2),
            (swarm.power && swarm.together, Fault::PowerLossAll, 1),
            (swarm.stops, Fault::Stop, 2),
            (swarm.pauses, Fault::Pause, 4),
            (swarm.slow_disks, Fault::SlowDisk, 2),
            (swarm.wipes, Fault::Wipe, 4),
            (swarm.cuts, Fault::LinkCut, 3),
            (swarm.resets, Fault::LinkReset, 3),
            (swarm.partitions, Fault::Partition, 3),
            (swarm.jumps, Fault::WallClockJump, 1),
        ]
        .into_iter()
        .filter(|(on, ..)| *on)
        .flat_map(|(_, fault, weight)| std::iter::repeat_n(fault, weight))
        .collect();
        if !kinds.is_empty() {
            let place = usize::try_from(self.nemesis.below(kinds.len() as u64)).expect("few kinds");
            self.inflict(kinds[place]);
            let wait = self.nemesis_interval();
            self.after(wait, Action::Nemesis);
        }
    }

    fn inflict(&mut self, fault: Fault) {
        let at = self.nemesis_server();
        match fault {
            Fault::Kill => self.crash_some(&[at], Death::Kill, fault),
            Fault::PowerLoss => self.crash_some(&[at], Death::PowerLoss, fault),
            Fault::KillTwo if self.servers.len() > 1 => {
                let other = (at + 1 + usize::from(self.nemesis.chance(1, 2))) % self.servers.len();
                self.crash_some(&[at, other], Death::Kill, fault);
            }
            Fault::KillAll => {
                self.crash_some(&(0..self.servers.len()).collect::<Vec<_>>(), Death::Kill, fault)
            }
            Fault::PowerLossAll => {
                self.crash_some(&(0..self.servers.len()).collect::<Vec<_>>(), Death::PowerLoss, fault);
            }
            Fault::Stop => self.stop_some(at),
            Fault::Pause => self.pause_for_a_while(at),
            Fault::SlowDisk => self.slow_down(at),
            Fault::Wipe => self.maybe_wipe(at),
            Fault::LinkCut => self.cut_shortly(at),
            Fault::LinkReset => self.reset_some(at),
            Fault::Partition => self.partition_for_a_while(at),
            Fault::WallClockJump => {
                self.faults.count(fault);
                let by = i64::try_from(self.nemesis.below(7_200_001)).expect("small") - 3_600_000;
                self.servers[at].clock.jump(by);
            }
            _ => {}
        }
    }

    /// Crashes those that run, all at once, and has each started again after a while of its own.
    fn crash_some(&mut self, victims: &[usize], death: Death, fault: Fault) {
        let victims: Vec<usize> =
            victims.iter().copied().filter(|&at| self.servers[at].process.is_some()).collect();
        if victims.is_empty() {
            return;
        }
        self.faults.count(fault);
        for at in victims {
            self.crash(at, death);
            let down_max = self.swarm.down_max;
            let down = self.nemesis_duration(Duration::from_millis(5), down_max);
            if death == Death::PowerLoss {
                let boot = down / 2;
                self.after(boot, Action::Mishap(Mishap::PowerBack(at)));
            }
            self.after(down, Action::Mishap(Mishap::Start(at)));
        }
    }

    fn stop_some(&mut self, at: usize) {
        let all = self.nemesis.chance(1, 3);
        for server in 0..self.servers.len() {
            if (all || server == at) && self.servers[server].is_running() {
                self.faults.count(Fault::Stop);
                // It exits within five seconds, and is started again when it is gone.
                self.servers[server].restarts = true;
                self.deliver(server, Event::Stop);
            }
        }
    }

    fn pause_for_a_while(&mut self, at: usize) {
        if !self.servers[at].is_running() {
            return;
        }
        self.faults.count(Fault::Pause);
        self.pause(at);
        let longest = [100, 700, 3_000][usize::try_from(self.nemesis.below(3)).expect("small")];
        let duration = self.nemesis_duration(Duration::from_millis(10), Duration::from_millis(longest));
        self.after(duration, Action::Mishap(Mishap::Resume(at)));
    }

    fn slow_down(&mut self, at: usize) {
        self.faults.count(Fault::SlowDisk);
        let longest = u64::try_from(self.swarm.sync_max.as_micros()).expect("short");
        // Up to 400 ms a sync.
        self.servers[at].disk_slowness = u32::try_from((400_000 / longest.max(1)).max(2)).expect("small");
        let duration = self.nemesis_duration(Duration::from_millis(200), Duration::from_secs(4));
        self.after(duration, Action::Mishap(Mishap::DiskRecovers(at)));
    }

    /// Only a directory that holds nothing which the others lack is emptied: its server is down, and another one
    /// serves the latest view, without it. More would lose what nobody promises to keep.
    fn maybe_wipe(&mut self, at: usize) {
        let down = self.servers[at].process.is_none() && self.servers[at].config.known_cluster.is_some();
        let latest = self.checks.latest_view();
        let superseded = self.servers.iter().any(|server| {
            server.replica().is_some_and(|replica| {
                replica.is_serving()
                    && replica.installed_view().number == latest
                    && replica.installed_view().member(crate::server::server_id(at)).is_none()
            })
        });
        if down && superseded {
            self.faults.count(Fault::Wipe);
            self.wipe(at);
        } else if self.servers[at].process.is_some() && self.servers.len() > 1 {
            // Bring the occasion about: long enough for the others to go on without it.
            self.crash(at, Death::Kill);
            let down = self.nemesis_duration(Duration::from_millis(500), Duration::from_secs(4));
            self.after(down, Action::Mishap(Mishap::Start(at)));
        }
    }

    /// A paused process runs again; now and then all others die at about that moment, so that it is tempted to lead
    /// with what it had before (V2).
    fn wake(&mut self, at: usize) {
        let tempted =
            self.swarm.kills && self.servers[at].paused && !self.healed && self.nemesis.chance(1, 4);
        self.resume(at);
        if tempted {
            let wait = self.nemesis_duration(Duration::ZERO, Duration::from_millis(20));
            self.after(wait, Action::Mishap(Mishap::KillOthers(at)));
        }
    }

    /// Stalls one or both directions between two servers, for well under the suspicion timeout.
    fn cut_shortly(&mut self, at: usize) {
        if self.servers.len() < 2 {
            return;
        }
        self.faults.count(Fault::LinkCut);
        let other = (at + 1) % self.servers.len();
        let duration = self.nemesis_duration(Duration::from_millis(5), Duration::from_millis(200));
        let until = self.now + duration;
        let both = self.nemesis.chance(1, 2);
        self.network.stall(at, other, until);
        if both {
            self.network.stall(other, at, until);
        }
    }

    fn reset_some(&mut self, at: usize) {
        if self.servers.len() < 2 {
            return;
        }
        let other = (at + 1) % self.servers.len();
        if self.servers[at].process.is_some() && self.servers[other].process.is_some() {
            self.faults.count(Fault::LinkReset);
            self.break_links(at, other);
        }
    }

    fn partition_for_a_while(&mut self, at: usize) {
        self.faults.count(Fault::Partition);
        let one_way = self.nemesis.chance(1, 4);
        for other in (0..self.servers.len()).filter(|&other| other != at) {
            self.block(at, other, one_way);
        }
        // The others notice, and whoever is cut off does not yet: it waits 3.5 s, and needs some of it to reconnect.
        let duration = self.nemesis_duration(Duration::from_millis(100), PARTITION_MAX);
        for other in (0..self.servers.len()).filter(|&other| other != at) {
            self.after(duration, Action::Mishap(Mishap::Unblock(at, other)));
        }
    }

    /// Blocks one or both directions between two servers until unblocked; connections end by their own timeouts.
    pub(crate) fn block(&mut self, at: usize, other: usize, one_way: bool) {
        trace!(self, "block {} -> {}, one way: {one_way}", at + 1, other + 1);
        self.network.set_blocked(at, other, true);
        if !one_way {
            self.network.set_blocked(other, at, true);
        }
        self.time_out_links(at, other);
    }

    /// Opens both directions between two servers.
    pub(crate) fn unblock(&mut self, at: usize, other: usize) {
        self.network.set_blocked(at, other, false);
        self.network.set_blocked(other, at, false);
    }

    /// A fault begins or ends.
    pub(crate) fn on_mishap(&mut self, mishap: Mishap) {
        match mishap {
            Mishap::Start(at) => {
                if self.servers[at].process.is_none() {
                    self.faults.count(Fault::Restart);
                    self.start(at);
                }
            }
            Mishap::PowerBack(at) => {
                if !self.servers[at].powered {
                    self.servers[at].powered = true;
                    self.links_of_powered_host(at);
                }
            }
            Mishap::Resume(at) => self.wake(at),
            Mishap::KillOthers(at) => {
                if !self.healed {
                    let others: Vec<_> = (0..self.servers.len()).filter(|&other| other != at).collect();
                    self.crash_some(&others, Death::Kill, Fault::KillOthersOfWoken);
                }
            }
            Mishap::DiskRecovers(at) => self.servers[at].disk_slowness = 1,
            Mishap::Unblock(at, other) => self.unblock(at, other),
        }
    }

    /// Ends every fault: all paths are open, all disks fast, all processes run.
    pub(crate) fn heal(&mut self) {
        trace!(self, "heal");
        self.healed = true;
        self.network.heal();
        for at in 0..self.servers.len() {
            self.servers[at].disk_slowness = 1;
            self.resume(at);
            if self.servers[at].process.is_none() {
                self.start(at);
            }
        }
    }
}
