//! The nemesis: picks faults while they are on, and ends each after a while.

use std::time::Duration;

use lastword::config::{MINORITY_GRACE, SUSPICION};
use lastword::message::Standing;
use lastword::replica::Event;
use lastword::time::Instant;

use crate::faults::Fault;
use crate::network::ClientPath;
use crate::server::{Death, SPACE_LOW_BYTES, server_id};
use crate::world::{Action, Life, World, trace};

/// The longest partition under which fail-stop cannot split the brain: what a minority waits, less what a pause or a
/// stall before it and connecting anew after it take.
const PARTITION_MAX: Duration = Duration::from_millis(1_500);
const _: () = assert!(
    PARTITION_MAX.as_millis() + 4 * SUSPICION.as_millis()
        <= SUSPICION.as_millis() + MINORITY_GRACE.as_millis()
);
/// The longest one that may split it.
const LONG_PARTITION_MAX: Duration = Duration::from_secs(12);
/// So long after a partition the next one begins at the earliest: everyone has heard everyone.
const PARTITIONS_APART: Duration = Duration::from_secs(2);

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
    /// Something happens to the directory of a server that is down, if that is allowed; then it is started.
    Damage(usize, Fault),
    /// A process that goes on read-only, since its disk failed, is replaced.
    Replace(usize, Life),
    /// The shell looks at the space left on the disk.
    LookAtSpace(usize),
    /// The disk has space again.
    SpaceFreed(usize),
}

impl Mishap {
    /// Whom it concerns; the other one of two may be the same.
    fn servers(self) -> [usize; 2] {
        match self {
            Self::Unblock(one, other) => [one, other],
            Self::Start(at)
            | Self::PowerBack(at)
            | Self::Resume(at)
            | Self::KillOthers(at)
            | Self::DiskRecovers(at)
            | Self::Damage(at, _)
            | Self::Replace(at, _)
            | Self::LookAtSpace(at)
            | Self::SpaceFreed(at) => [at, at],
        }
    }
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
            (swarm.kills && swarm.together, Fault::ColdStart, 1),
            (swarm.pauses, Fault::Pause, 4),
            (swarm.slow_disks, Fault::SlowDisk, 2),
            (swarm.stuck_disks, Fault::StuckDisk, 3),
            (swarm.disk_errors, Fault::SyncError, 2),
            (swarm.disk_errors, Fault::WriteError, 2),
            (swarm.full_disks, Fault::ShortWrite, 5),
            (swarm.rot, Fault::RotEntry, 3),
            (swarm.rot, Fault::RotControl, 2),
            (swarm.rot, Fault::RotTable, 2),
            (swarm.wipes, Fault::Wipe, 4),
            (swarm.roll_backs, Fault::RollBack, 4),
            (swarm.cuts, Fault::LinkCut, 3),
            (swarm.resets, Fault::LinkReset, 3),
            (swarm.slow_links, Fault::SlowLink, 3),
            (swarm.partitions, Fault::OneWay, 1),
            (swarm.partitions, Fault::SingleLink, 1),
            (swarm.partitions, Fault::Isolated, if swarm.splits { 6 } else { 2 }),
            (swarm.partitions, Fault::AllApart, if swarm.splits { 4 } else { 1 }),
            (swarm.client_cuts, Fault::ClientCut, 3),
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
            Fault::ColdStart => self.start_cold(),
            Fault::StuckDisk => self.stick_disk(at),
            Fault::SyncError | Fault::WriteError => self.break_disk(at, fault),
            Fault::ShortWrite => self.fill_disk(at),
            Fault::Wipe | Fault::RotEntry | Fault::RotControl | Fault::RotTable => {
                self.damage_soon(at, fault)
            }
            Fault::RollBack => self.back_up_or_roll_back(at),
            Fault::LinkCut => self.cut_shortly(at),
            Fault::LinkReset => self.reset_some(at),
            Fault::SlowLink => self.slow_down_link(at),
            Fault::OneWay | Fault::SingleLink | Fault::Isolated | Fault::AllApart => {
                self.partition_for_a_while(at, fault);
            }
            Fault::ClientCut => self.cut_client(at),
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
        let longest = [100, 700, 3_000, 30_000][usize::try_from(self.nemesis.below(4)).expect("small")];
        let duration = self.nemesis_duration(Duration::from_millis(10), Duration::from_millis(longest));
        self.after(duration, Action::Mishap(Mishap::Resume(at)));
    }

    fn slow_down(&mut self, at: usize) {
        self.faults.count(Fault::SlowDisk);
        let longest = u64::try_from(self.swarm.sync_max.as_micros()).expect("short");
        let sync_us = 50_000 + self.nemesis.below(450_001);
        self.servers[at].disk_slowness = u32::try_from((sync_us / longest.max(1)).max(2)).expect("small");
        let duration = self.nemesis_duration(Duration::from_millis(200), Duration::from_secs(4));
        self.after(duration, Action::Mishap(Mishap::DiskRecovers(at)));
    }

    fn stick_disk(&mut self, at: usize) {
        self.faults.count(Fault::StuckDisk);
        let longest = [500, 3_000][usize::try_from(self.nemesis.below(2)).expect("small")];
        let duration = self.nemesis_duration(Duration::from_millis(50), Duration::from_millis(longest));
        self.servers[at].disk_stuck_until = self.now + duration;
    }

    /// One of the next calls fails; the fault counts when it does.
    fn break_disk(&mut self, at: usize, fault: Fault) {
        let soon = 1 + self.nemesis.below(6);
        let server = &mut self.servers[at];
        if server.process.is_none() || server.disk_fault.is_some() {
            return;
        }
        server.disk_fault = Some(fault);
        if fault == Fault::SyncError {
            server.disk.fail_at_sync(server.disk.syncs() + soon);
        } else {
            server.disk.fail_from(server.disk.calls() + soon);
        }
    }

    /// Little space is left, and its shell notices sooner or later; what doesn't fit fails.
    fn fill_disk(&mut self, at: usize) {
        // Nearly nothing, or some: what is written over reserved space needs none.
        let most = [1_024, 3 * SPACE_LOW_BYTES / 2][usize::try_from(self.nemesis.below(2)).expect("small")];
        let left = self.nemesis.below(most);
        let server = &mut self.servers[at];
        if server.process.is_none() || server.disk_fault.is_some() {
            return;
        }
        server.disk_fault = Some(Fault::ShortWrite);
        server.disk.set_space(Some(server.disk.used_bytes() + left));
        let notices = self.nemesis_duration(Duration::ZERO, Duration::from_secs(1));
        self.after(notices, Action::Mishap(Mishap::LookAtSpace(at)));
        let freed = self.nemesis_duration(Duration::from_millis(500), Duration::from_secs(6));
        self.after(freed, Action::Mishap(Mishap::SpaceFreed(at)));
    }

    /// The disk has space again.
    pub(crate) fn free_space(&mut self, at: usize) {
        let server = &mut self.servers[at];
        server.disk.set_space(None);
        if !server.disk_has_failed() {
            server.disk_fault = server.disk_fault.filter(|fault| *fault != Fault::ShortWrite);
        }
        self.look_at_space(at);
    }

    /// Everything is down, and is started again in some order, at once or seconds apart.
    fn start_cold(&mut self) {
        self.faults.count(Fault::ColdStart);
        let mut order: Vec<usize> = (0..self.servers.len()).collect();
        for place in (1..order.len()).rev() {
            order.swap(place, usize::try_from(self.nemesis.below(place as u64 + 1)).expect("small"));
        }
        let apart = [10, 500, 3_000][usize::try_from(self.nemesis.below(3)).expect("small")];
        let mut wait = self.nemesis_duration(Duration::from_millis(10), Duration::from_secs(1));
        for at in order {
            self.crash(at, Death::Kill);
            self.after(wait, Action::Mishap(Mishap::Start(at)));
            wait += self.nemesis_duration(Duration::ZERO, Duration::from_millis(apart));
        }
    }

    /// Whether another server leads the latest view that anyone ever led.
    fn is_covered(&self, at: usize) -> bool {
        self.latest_leader().is_some_and(|leader| leader != at)
    }

    /// Whether another server leads the latest view that anyone ever led, and this one is not in it, nor in a later one
    /// that somebody began to install and will wait for, nor has it proposed a later one: whoever hears of that waits for
    /// its word on what came of it (V2).
    pub(crate) fn is_superseded(&self, at: usize) -> bool {
        self.latest_leader().is_some_and(|leader| {
            let view = self.servers[leader].replica().expect("it leads").installed_view();
            view.member(server_id(at)).is_none() && self.servers[at].named_in <= view.number
        })
    }

    /// Who leads the latest view that anyone ever led.
    pub(crate) fn latest_leader(&self) -> Option<usize> {
        let latest = self.checks.latest_view();
        self.servers.iter().position(|server| {
            server
                .replica()
                .is_some_and(|replica| replica.is_serving() && replica.installed_view().number == latest)
        })
    }

    /// Brings about the occasion for something to happen to a directory: its server is down long enough for the
    /// others to go on without it.
    fn damage_soon(&mut self, at: usize, fault: Fault) {
        if self.servers.len() == 1 || self.servers[at].config.known_cluster.is_none() {
            return;
        }
        self.crash(at, Death::Kill);
        let down = self.nemesis_duration(Duration::from_millis(100), Duration::from_secs(4));
        self.after(down, Action::Mishap(Mishap::Damage(at, fault)));
    }

    /// What may happen to a directory without breaking a promise, exactly:
    ///
    /// - An entry's row may rot while another server leads the latest view: that one has everything that was ever
    ///   acknowledged, and whoever leads later has it too. Unless nothing tells that it was an entry: then it counts as the
    ///   row of a promise that is forgotten.
    /// - Whatever makes a server forget what it has promised or installed (it is emptied, put back, refused for its
    ///   damage, or has lost its hard state) may happen only while others go on in a view without it. A member of the
    ///   latest view that has forgotten can't be told from the only one that knew better: then nobody may go on,
    ///   which is right and would only stop the run (V5, V6).
    /// - A directory that is put back may not be from when its server was alone in the view: alone again, it would
    ///   have nobody to ask. And all others must have the latest view on their disks, for they are the only ones who
    ///   know of it: whomever it asks then tells it. It must ask, however long that takes: `--cold-wait never`.
    /// - After logs have parted any directory may be the only one that has something acknowledged, so nothing happens to any.
    fn damage(&mut self, at: usize, fault: Fault) {
        let alone_knows = self.latest_leader().is_some_and(|leader| {
            let view = self.servers[leader].replica().expect("it leads").installed_view();
            view.members.len() + 1 < self.servers.len()
        });
        let allowed = match fault {
            Fault::RotEntry => self.is_covered(at),
            Fault::RollBack => self.is_superseded(at) && !alone_knows,
            _ => self.is_superseded(at),
        };
        if self.servers[at].process.is_none() && allowed && !self.oracle.split && !self.healed {
            match fault {
                Fault::Wipe => {
                    self.faults.count(fault);
                    self.wipe(at);
                }
                Fault::RollBack => self.roll_back(at),
                _ => self.rot(at, fault),
            }
        }
        let wait = self.nemesis_duration(Duration::ZERO, Duration::from_millis(300));
        self.after(wait, Action::Mishap(Mishap::Start(at)));
    }

    /// Flips one bit in a row of the log, or in a table.
    fn rot(&mut self, at: usize, fault: Fault) {
        let disk = self.servers[at].disk.clone();
        let wanted = |path: &&String| match fault {
            Fault::RotTable => {
                path.starts_with("checkpoints/") && !path.contains("rotten") && !path.contains("given-up")
            }
            _ => path.starts_with("server_log") && path.ends_with(".csv"),
        };
        let files: Vec<String> = disk.files().iter().filter(wanted).cloned().collect();
        let mut rows = Vec::new();
        for (file, path) in files.iter().enumerate() {
            let bytes = disk.bytes(path).expect("it is listed");
            let mut start = 0;
            for line in bytes.split_inclusive(|byte| *byte == b'\n') {
                if fault == Fault::RotTable || is_entry(line) == (fault == Fault::RotEntry) {
                    rows.push((file, start, line.len() - usize::from(line.ends_with(b"\n"))));
                }
                start += line.len();
            }
        }
        rows.retain(|(.., length)| *length > 0);
        if rows.is_empty() {
            return;
        }
        let (file, start, length) =
            rows[usize::try_from(self.nemesis.below(rows.len() as u64)).expect("small")];
        let byte = start + usize::try_from(self.nemesis.below(length as u64)).expect("small");
        let bit = u32::try_from(self.nemesis.below(8)).expect("small");
        let forgot_before = self.forgets(at);
        disk.flip_bit(&files[file], byte, bit);
        if fault == Fault::RotEntry && !forgot_before && self.forgets(at) && !self.is_superseded(at) {
            return disk.flip_bit(&files[file], byte, bit);
        }
        trace!(self, "rot {}: {} byte {byte} bit {bit}", at + 1, files[file]);
        self.servers[at].damaged = true;
        self.faults.count(fault);
    }

    /// Whether a server that starts with its directory as it is may have forgotten what it has promised.
    fn forgets(&self, at: usize) -> bool {
        let opened = self.open(at, self.servers[at].disk.copy());
        opened.is_ok_and(|opened| opened.recovered.hard.standing == Standing::Partial)
    }

    /// Keeps a copy of a directory, or puts the one that was kept in its place.
    fn back_up_or_roll_back(&mut self, at: usize) {
        let server = &mut self.servers[at];
        if server.backup.is_some() {
            return self.damage_soon(at, Fault::RollBack);
        }
        if server.replica().is_some_and(|replica| replica.installed_view().members.len() > 1) {
            server.backup = Some(server.disk.copy());
        }
    }

    fn roll_back(&mut self, at: usize) {
        let server = &mut self.servers[at];
        let Some(backup) = server.backup.take() else { return };
        server.disk = backup.restart();
        server.disk.set_space(None);
        server.config.cold_wait = None;
        self.checks.forget_disk(at);
        self.faults.count(Fault::RollBack);
        trace!(self, "roll back {}", at + 1);
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

    /// Everything on the way from one server to another takes longer for a while.
    fn slow_down_link(&mut self, at: usize) {
        if self.servers.len() < 2 {
            return;
        }
        let other = (at + 1) % self.servers.len();
        let (from, to) = if self.nemesis.chance(1, 2) { (at, other) } else { (other, at) };
        let longer = self.nemesis_duration(Duration::from_millis(20), Duration::from_millis(400));
        let mut duration = self.nemesis_duration(Duration::from_millis(100), Duration::from_secs(5));
        // To connect takes one delay there and three back.
        let connecting = longer + self.network.longer(to, from, self.now) + 4 * self.swarm.delay_max;
        if connecting >= SUSPICION {
            // To servers that have lost their connection it is a partition: none comes about.
            if self.now < self.partition_after {
                return;
            }
            duration = duration.min(PARTITION_MAX);
            self.partition_after = self.now + duration + PARTITIONS_APART;
        }
        self.faults.count(Fault::SlowLink);
        trace!(self, "slow {} -> {}: {longer:?} for {duration:?}", from + 1, to + 1);
        self.network.slow_down(from, to, longer, self.now + duration);
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

    /// Closes some paths, for less than a minority waits unless splits are on. The others notice, and whoever is cut
    /// off does not yet: it waits 3.5 s, and needs some of it to reconnect.
    fn partition_for_a_while(&mut self, at: usize, shape: Fault) {
        let servers = self.servers.len();
        if servers < 2 || self.now < self.partition_after {
            return;
        }
        self.faults.count(shape);
        let other =
            (at + 1 + usize::try_from(self.nemesis.below(servers as u64 - 1)).expect("small")) % servers;
        let one_way = shape == Fault::OneWay || self.nemesis.chance(1, 4);
        let pairs: Vec<(usize, usize)> = match shape {
            Fault::OneWay | Fault::SingleLink => vec![(at, other)],
            Fault::Isolated if self.nemesis.chance(1, 2) => {
                (0..servers).filter(|&o| o != at).map(|o| (at, o)).collect()
            }
            Fault::Isolated => (0..servers).filter(|&o| o != at).map(|o| (o, at)).collect(),
            _ => (0..servers).flat_map(|a| (a + 1..servers).map(move |b| (a, b))).collect(),
        };
        let one_way = one_way && matches!(shape, Fault::OneWay | Fault::Isolated);
        let duration = if self.swarm.splits && self.nemesis.chance(2, 3) {
            self.faults.count(Fault::LongPartition);
            self.expect_split();
            self.nemesis_duration(PARTITION_MAX, LONG_PARTITION_MAX)
        } else {
            self.nemesis_duration(Duration::from_millis(100), PARTITION_MAX)
        };
        self.partition_after = self.now + duration + PARTITIONS_APART;
        if matches!(shape, Fault::OneWay | Fault::SingleLink) && servers > 2 && duration >= SUSPICION / 2 {
            // Both ends reach a majority through the others, and so wait for no longer than the suspicion timeout.
            // Each other server in touch with the primary vetoes (V1), unless it has just been started or woken.
            self.expect_split();
        }
        for (from, to) in pairs {
            self.block(from, to, one_way);
            self.after(duration, Action::Mishap(Mishap::Unblock(from, to)));
        }
    }

    /// A server starts, wakes or pauses while links are cut, or have been a moment ago. Two others that hear nothing of
    /// each other both reach a majority with one that starts or wakes, and it is not in touch with a primary yet, so it
    /// vetoes neither (V1, V11); and if the others pause before they have reconnected, whoever was cut off has heard
    /// nothing for longer than a minority waits.
    pub(crate) fn maybe_expect_split(&mut self) {
        if self.now < self.partition_after && self.servers.len() > 2 {
            self.expect_split();
        }
    }

    /// From now on several servers may lead at once; what a split may cost is allowed once logs have parted.
    pub(crate) fn expect_split(&mut self) {
        self.split = true;
    }

    /// A client and a server don't hear each other for a while, or one doesn't hear the other.
    fn cut_client(&mut self, at: usize) {
        self.faults.count(Fault::ClientCut);
        let client = usize::try_from(self.nemesis.below(self.clients.len() as u64)).expect("few clients");
        let until = self.now + self.nemesis_duration(Duration::from_millis(50), Duration::from_secs(5));
        let (mut deaf_until, mut mute_until) = (until, until);
        match self.nemesis.below(3) {
            0 => deaf_until = Instant::ZERO,
            1 => mute_until = Instant::ZERO,
            _ => {}
        }
        self.network.set_client_path(client, at, ClientPath { deaf_until, mute_until });
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
        trace!(self, "unblock {} -> {}", at + 1, other + 1);
        self.network.set_blocked(at, other, false);
        self.network.set_blocked(other, at, false);
    }

    /// A fault begins or ends.
    pub(crate) fn on_mishap(&mut self, mishap: Mishap) {
        if mishap.servers().into_iter().any(|at| self.servers[at].broken_for_ever) {
            return;
        }
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
            Mishap::Damage(at, fault) => self.damage(at, fault),
            Mishap::Replace(at, life) => {
                if self.servers[at].life() == Some(life) {
                    self.crash(at, Death::Kill);
                    self.start(at);
                }
            }
            Mishap::LookAtSpace(at) => self.look_at_space(at),
            Mishap::SpaceFreed(at) => self.free_space(at),
        }
    }

    /// Ends every fault: all paths are open, all disks fast, all processes run.
    pub(crate) fn heal(&mut self) {
        trace!(self, "heal");
        self.healed = true;
        self.network.heal();
        for at in 0..self.servers.len() {
            self.heal_server(at);
        }
    }

    /// Its disk works, and its process runs.
    pub(crate) fn heal_server(&mut self, at: usize) {
        let server = &mut self.servers[at];
        server.disk_slowness = 1;
        server.disk_stuck_until = self.now;
        server.disk.fail_no_more();
        self.resume(at);
        self.free_space(at);
        if self.servers[at].disk_has_failed() {
            self.crash(at, Death::Kill);
        }
        self.servers[at].disk_fault = None;
        if self.servers[at].process.is_none() {
            self.start(at);
        }
    }
}

/// Whether a line of the log is an entry's row, and not one of those that say where it stands and what was promised.
fn is_entry(line: &[u8]) -> bool {
    let kind = line.split(|byte| *byte == b',').nth(1).unwrap_or_default();
    let control: [&[u8]; 7] =
        [b"kind", b"anchor", b"views", b"view_installed", b"hard_state", b"commit", b"truncate"];
    line.len() > 40 && !control.contains(&kind)
}
