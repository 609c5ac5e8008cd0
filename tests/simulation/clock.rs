//! A server's own clocks: monotonic with an offset and a rate of its own, and a wall clock that may jump.

use lastword::time::Instant;

/// Parts of a rate that are one.
const RATE_UNIT: u128 = 1_000_000;
/// The wall clock's reading when the world begins, milliseconds since 1970.
const EPOCH_UNIX_MS: u64 = 1_750_000_000_000;

/// How one host reads time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    offset_nanos: u64,
    rate_ppm: u64,
    wall_offset_ms: i64,
}

impl Clock {
    /// A clock that starts at `offset_nanos` and gains `gain_ppm` millionths.
    pub(crate) fn new(offset_nanos: u64, gain_ppm: i64, wall_offset_ms: i64) -> Self {
        let rate_ppm =
            u64::try_from(1_000_000 + gain_ppm).expect("a clock that runs backwards is not simulated");
        Self { offset_nanos, rate_ppm, wall_offset_ms }
    }

    /// What the monotonic clock shows at this moment of the world.
    pub(crate) fn monotonic(&self, world: Instant) -> Instant {
        let passed = u128::from(world.as_nanos()) * u128::from(self.rate_ppm) / RATE_UNIT;
        Instant::from_nanos(self.offset_nanos + u64::try_from(passed).expect("centuries"))
    }

    /// The first moment of the world at which the monotonic clock shows `local` or more.
    pub(crate) fn world_time(&self, local: Instant) -> Instant {
        let passed = u128::from(local.as_nanos().saturating_sub(self.offset_nanos)) * RATE_UNIT;
        let nanos = passed.div_ceil(u128::from(self.rate_ppm));
        Instant::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }

    /// What the wall clock shows.
    pub(crate) fn unix_ms(&self, world: Instant) -> u64 {
        (EPOCH_UNIX_MS + world.as_nanos() / 1_000_000).saturating_add_signed(self.wall_offset_ms)
    }

    /// The wall clock is set.
    pub(crate) fn jump(&mut self, by_ms: i64) {
        self.wall_offset_ms += by_ms;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timer_set_by_a_skewed_clock_is_never_early_and_less_than_two_nanoseconds_late() {
        for gain in [-20_000, -37, 0, 11, 20_000] {
            let clock = Clock::new(123_456_789, gain, -5_000);
            for world in [1u64, 999, 1_000_000_007, 77_000_000_000] {
                let local = clock.monotonic(Instant::from_nanos(world));
                let back = clock.world_time(local);
                assert!(clock.monotonic(back) >= local);
                assert!(back.as_nanos() <= world && world - back.as_nanos() < 2);
            }
        }
    }
}
