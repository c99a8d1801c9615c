//! The operating system's random numbers as the generator that pure code takes.

use aws_lc_rs::rand::{SecureRandom, SystemRandom};
use rand_core::{CryptoRng, RngCore};

/// Random bytes from the cryptographic library's system source.
#[derive(Debug, Clone, Copy, Default)]
pub struct OsRandom;

impl RngCore for OsRandom {
    fn next_u32(&mut self) -> u32 {
        let mut bytes = [0; 4];
        self.fill_bytes(&mut bytes);
        u32::from_le_bytes(bytes)
    }

    fn next_u64(&mut self) -> u64 {
        let mut bytes = [0; 8];
        self.fill_bytes(&mut bytes);
        u64::from_le_bytes(bytes)
    }

    /// # Panics
    /// When the system has no randomness: going on would be unsafe.
    fn fill_bytes(&mut self, out: &mut [u8]) {
        SystemRandom::new().fill(out).expect("the operating system gives random bytes");
    }
}

impl CryptoRng for OsRandom {}
