//! What a seed switches on: swarm testing. A seed that has everything on hides what a quieter one finds.

use std::time::Duration;

use lastword::config::CHECKPOINT_LOG_BYTES_MIN;
use lastword::prng::Prng;
use lastword::storage::SEGMENT_BYTES_MAX;

/// The world of one seed.
#[derive(Clone, Debug)]
pub(crate) struct Swarm {
    /// How many servers are configured.
    pub servers: usize,
    /// How many clients there are.
    pub clients: usize,
    /// How long faults go on.
    pub duration: Duration,
    /// Servers start within this time.
    pub start_spread: Duration,
    /// A message takes at least this long.
    pub delay_min: Duration,
    /// A message takes at most this long.
    pub delay_max: Duration,
    /// One peer message in a thousand times this is lost.
    pub loss_permille: u64,
    /// As for loss: delivered twice.
    pub duplicate_permille: u64,
    /// As for loss: not in the order of the link.
    pub reorder_permille: u64,
    /// As for loss: encoded and decoded on its way.
    pub encode_permille: u64,
    /// As for loss: the connection breaks right before a client's reply arrives.
    pub reply_drop_permille: u64,
    /// A sync takes at least this long.
    pub sync_min: Duration,
    /// A sync takes at most this long.
    pub sync_max: Duration,
    /// Mean time between two commands of one client.
    pub think: Duration,
    /// Mean time between two faults of the nemesis.
    pub fault_interval: Duration,
    /// Longest time for which a server stays down.
    pub down_max: Duration,
    /// Processes are killed.
    pub kills: bool,
    /// Hosts lose power.
    pub power: bool,
    /// Several servers fail at once.
    pub together: bool,
    /// Processes are stopped in order.
    pub stops: bool,
    /// Processes are paused.
    pub pauses: bool,
    /// Disks become slow.
    pub slow_disks: bool,
    /// Disks do nothing for a while.
    pub stuck_disks: bool,
    /// Syncs and writes fail.
    pub disk_errors: bool,
    /// Disks become full.
    pub full_disks: bool,
    /// Bits flip in files of servers that are down.
    pub rot: bool,
    /// Directories are emptied.
    pub wipes: bool,
    /// Directories are put back as they once were.
    pub roll_backs: bool,
    /// So many bytes of log make a checkpoint due.
    pub checkpoint_bytes: u64,
    /// Log files are sealed at this size.
    pub segment_bytes: u64,
    /// Paths stall shortly.
    pub cuts: bool,
    /// Connections between live servers break.
    pub resets: bool,
    /// Servers cut off from each other, for less than a minority waits (V11).
    pub partitions: bool,
    /// … and for longer, so that they split the brain.
    pub splits: bool,
    /// Paths become slow.
    pub slow_links: bool,
    /// So long a cold start waits for those that may hold acknowledged commands; none: for ever.
    pub cold_wait: Option<Duration>,
    /// Clients cut off from servers.
    pub client_cuts: bool,
    /// Clocks run at their own rates.
    pub skew: bool,
    /// Wall clocks jump.
    pub jumps: bool,
}

fn between(prng: &mut Prng, low_us: u64, high_us: u64) -> Duration {
    Duration::from_micros(low_us + prng.below(high_us - low_us + 1))
}

impl Swarm {
    /// A world without faults, with three servers and no clients; what scenarios start from.
    pub(crate) fn calm() -> Self {
        Self {
            servers: 3,
            clients: 0,
            duration: Duration::from_secs(10),
            start_spread: Duration::from_millis(100),
            delay_min: Duration::from_micros(50),
            delay_max: Duration::from_millis(1),
            loss_permille: 0,
            duplicate_permille: 0,
            reorder_permille: 0,
            encode_permille: 0,
            reply_drop_permille: 0,
            sync_min: Duration::from_micros(200),
            sync_max: Duration::from_millis(2),
            think: Duration::from_millis(50),
            fault_interval: Duration::from_secs(1),
            down_max: Duration::from_secs(2),
            kills: false,
            power: false,
            together: false,
            stops: false,
            pauses: false,
            slow_disks: false,
            stuck_disks: false,
            disk_errors: false,
            full_disks: false,
            rot: false,
            wipes: false,
            roll_backs: false,
            checkpoint_bytes: CHECKPOINT_LOG_BYTES_MIN,
            segment_bytes: SEGMENT_BYTES_MAX,
            cuts: false,
            resets: false,
            partitions: false,
            splits: false,
            slow_links: false,
            cold_wait: None,
            client_cuts: false,
            skew: false,
            jumps: false,
        }
    }

    /// As much happens, in ten times as long: what is due after seconds or minutes of quiet comes about between two
    /// faults, be it the return of a member that was too slow (N9), a checkpoint, or the end of a cold start's patience.
    fn slow_down(&mut self) {
        const FACTOR: u32 = 10;
        for time in [&mut self.duration, &mut self.think, &mut self.fault_interval, &mut self.down_max] {
            *time *= FACTOR;
        }
    }

    /// What this seed draws.
    pub(crate) fn draw(prng: &mut Prng) -> Self {
        let delay_max_us =
            [300, 1_000, 5_000, 20_000, 60_000][usize::try_from(prng.below(5)).expect("small")];
        let sync_max_us = [300, 2_000, 2_000, 10_000, 20_000][usize::try_from(prng.below(5)).expect("small")];
        let mut rate = |permille: u64| if prng.chance(1, 3) { 1 + prng.below(permille) } else { 0 };
        let (loss_permille, duplicate_permille) = (rate(40), rate(60));
        let (reorder_permille, reply_drop_permille) = (rate(80), rate(150));
        let mut swarm = Self {
            servers: [3, 3, 3, 3, 3, 3, 3, 1, 2, 5][usize::try_from(prng.below(10)).expect("small")],
            clients: 2 + usize::try_from(prng.below(5)).expect("small"),
            duration: between(prng, 4_000_000, 15_000_000),
            start_spread: if prng.chance(1, 12) {
                Duration::from_secs(14)
            } else {
                between(prng, 0, 1_500_000)
            },
            delay_min: between(prng, 20, 200),
            delay_max: Duration::from_micros(delay_max_us),
            loss_permille,
            duplicate_permille,
            reorder_permille,
            encode_permille: if prng.chance(1, 3) { 100 } else { 0 },
            reply_drop_permille,
            sync_min: between(prng, 50, 200),
            sync_max: Duration::from_micros(sync_max_us),
            think: between(prng, 10_000, 400_000),
            fault_interval: between(prng, 250_000, 3_000_000),
            down_max: between(prng, 100_000, 5_000_000),
            kills: prng.chance(4, 5),
            power: prng.chance(1, 2),
            together: prng.chance(1, 2),
            stops: prng.chance(1, 4),
            pauses: prng.chance(1, 2),
            slow_disks: prng.chance(1, 5),
            stuck_disks: prng.chance(1, 5),
            disk_errors: prng.chance(1, 5),
            full_disks: prng.chance(1, 6),
            rot: prng.chance(1, 4),
            wipes: prng.chance(1, 5),
            roll_backs: prng.chance(1, 5),
            checkpoint_bytes: [2_000, 10_000, CHECKPOINT_LOG_BYTES_MIN]
                [usize::try_from(prng.below(3)).expect("small")],
            segment_bytes: [1_500, 8_000, 50_000][usize::try_from(prng.below(3)).expect("small")],
            cuts: prng.chance(1, 3),
            resets: prng.chance(1, 3),
            partitions: prng.chance(1, 4),
            splits: false,
            slow_links: prng.chance(1, 5),
            cold_wait: match prng.below(6) {
                0 => Some(between(prng, 200_000, 2_000_000)),
                1 => Some(between(prng, 1_000_000, 15_000_000)),
                _ => None,
            },
            client_cuts: prng.chance(1, 4),
            skew: prng.chance(1, 3),
            jumps: prng.chance(1, 3),
        };
        if prng.chance(1, 5) || std::env::var_os("SIM_SPLITS").is_some() {
            (swarm.partitions, swarm.splits) = (true, true);
        }
        if prng.chance(1, 4) {
            swarm.slow_down();
        }
        swarm
    }
}
