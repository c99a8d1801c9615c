//! Random numbers that can be drawn again: draw number n (from 0, 64 bits) is
//! the first 8 bytes, little endian, of BLAKE2s-256 over
//! `Warren v1 selection` || seed || n (8 bytes, little endian).

use std::fmt;
use std::str::FromStr;

use blake2::{Blake2s256, Digest};
use rand_core::CryptoRng;

const LABEL: &[u8] = b"Warren v1 selection";

/// 32 bytes from which all draws of one choice follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seed(pub [u8; 32]);

impl Seed {
    /// A fresh one.
    pub fn generate(rng: &mut impl CryptoRng) -> Self {
        let mut bytes = [0; 32];
        rng.fill_bytes(&mut bytes);
        Self(bytes)
    }
}

impl fmt::Display for Seed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// The text is no seed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a seed has 64 hexadecimal digits")]
pub struct ParseSeedError;

impl FromStr for Seed {
    type Err = ParseSeedError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.len() != 64 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(ParseSeedError);
        }
        let mut bytes = [0; 32];
        for (at, byte) in bytes.iter_mut().enumerate() {
            *byte =
                u8::from_str_radix(&text[2 * at..2 * at + 2], 16).map_err(|_| ParseSeedError)?;
        }
        Ok(Self(bytes))
    }
}

impl serde::Serialize for Seed {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Seed {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(d)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// The draws of one choice, in order.
#[derive(Debug)]
pub(super) struct Draws {
    seed: Seed,
    next: u64,
}

impl Draws {
    pub(super) fn new(seed: Seed) -> Self {
        Self { seed, next: 0 }
    }

    /// Uniform in [0, 1): the upper 53 bits of a draw.
    pub(super) fn unit(&mut self) -> f64 {
        let mut hash = Blake2s256::new();
        hash.update(LABEL);
        hash.update(self.seed.0);
        hash.update(self.next.to_le_bytes());
        self.next += 1;
        let digest = hash.finalize();
        let mut first = [0; 8];
        first.copy_from_slice(&digest[..8]);
        (u64::from_le_bytes(first) >> 11) as f64 / (1_u64 << 53) as f64
    }
}
