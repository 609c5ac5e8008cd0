//! A small deterministic random number generator (SplitMix64): the same seed gives the same numbers for years.
//! Not for secrets: salts and tokens come from the operating system, outside the core.

/// A seeded stream of numbers.
#[derive(Clone, Debug)]
pub struct Prng(u64);

impl Prng {
    /// A stream that is the same for the same seed.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`.
    ///
    /// # Panics
    /// If `bound` is 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        assert!(bound > 0, "a random number below 0 was asked for");
        // The high half of a 128-bit product: the bias is below 2^-32 for every bound used here.
        u64::try_from((u128::from(self.next_u64()) * u128::from(bound)) >> 64).expect("the high half fits")
    }

    /// True with a probability of `numerator / denominator`.
    pub fn chance(&mut self, numerator: u64, denominator: u64) -> bool {
        self.below(denominator) < numerator
    }

    /// A generator of its own, so that one consumer's draws don't shift another's.
    #[must_use]
    pub fn fork(&mut self) -> Self {
        Self(self.next_u64())
    }
}
