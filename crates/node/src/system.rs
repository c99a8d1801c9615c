//! The operating system's randomness and clock, for the pure control code.

use std::time::{SystemTime, UNIX_EPOCH};

/// The operating system's random generator, through aws-lc-rs.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemRng;

impl rand_core::RngCore for SystemRng {
    fn next_u32(&mut self) -> u32 {
        let mut bytes = [0; 4];
        self.fill_bytes(&mut bytes);
        u32::from_ne_bytes(bytes)
    }
    fn next_u64(&mut self) -> u64 {
        let mut bytes = [0; 8];
        self.fill_bytes(&mut bytes);
        u64::from_ne_bytes(bytes)
    }
    /// Stops the program when there is no randomness: nothing safe can be done
    /// without it.
    fn fill_bytes(&mut self, dest: &mut [u8]) {
        if aws_lc_rs::rand::fill(dest).is_err() {
            panic!("the operating system gives no randomness");
        }
    }
}

impl rand_core::CryptoRng for SystemRng {}

/// Seconds since 1970 by the system's clock.
pub fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}
