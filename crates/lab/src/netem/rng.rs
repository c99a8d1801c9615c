//! The emulator's random numbers: SplitMix64 (Steele, Lea, Flood: "Fast
//! splittable pseudorandom number generators", 2014).
//!
//! Good enough for dice, small, and the same on every machine for a seed; not
//! for secrets.

/// A seeded generator.
#[derive(Debug, Clone)]
pub struct Dice {
    state: u64,
}

impl Dice {
    /// The generator of a seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    /// The generator of a seed for one of many uses: streams of different
    /// labels have nothing to do with each other.
    #[must_use]
    pub fn labelled(seed: u64, label: u64) -> Self {
        let mut root = Self::new(seed);
        let base = root.next_u64();
        let mut branch = Self::new(label ^ 0x5851_f42d_4c95_7f2d);
        Self::new(base ^ branch.next_u64())
    }

    /// 64 uniform bits.
    pub fn next_u64(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in 0 (inclusive) to 1 (exclusive).
    pub fn unit(&mut self) -> f64 {
        // 53 bits are all a double holds; the cast is exact.
        (self.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// True with the given probability; 0 and 1 are certain.
    pub fn happens(&mut self, probability: f64) -> bool {
        self.unit() < probability
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_values_of_the_algorithm() {
        // First outputs for seed 1234567, as published with the reference
        // implementation.
        let mut dice = Dice::new(1_234_567);
        let first: Vec<u64> = (0..3).map(|_| dice.next_u64()).collect();
        assert_eq!(
            first,
            [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423]
        );
    }

    #[test]
    fn labels_and_seeds_give_streams_of_their_own() {
        let mut seen = std::collections::BTreeSet::new();
        for seed in 0..20 {
            for label in 0..20 {
                assert!(seen.insert(Dice::labelled(seed, label).next_u64()));
            }
        }
    }

    #[test]
    fn certainty_and_impossibility() {
        let mut dice = Dice::new(1);
        assert!((0..1000).all(|_| dice.happens(1.0)));
        assert!((0..1000).all(|_| !dice.happens(0.0)));
    }
}
