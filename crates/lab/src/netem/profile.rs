//! What a direction of a link does to packets: the numbers, and checking them.

use std::time::Duration;

/// The properties of one direction of a link.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Profile {
    /// Time on the way, on top of the time the rate costs.
    pub delay: Duration,
    /// The delay of each packet lies within this much of `delay`, uniformly.
    /// Packets keep their order: late ones hold back those behind them.
    pub jitter: Duration,
    /// Share of packets that vanish, 0 to 1.
    pub loss: f64,
    /// Share of packets that are overtaken by those behind them, 0 to 1.
    pub reorder: f64,
    /// How much later an overtaken packet comes.
    pub reorder_by: Duration,
    /// Share of packets that arrive twice, 0 to 1.
    pub duplicate: f64,
    /// Bits per second, headers of IP included; none for no limit.
    pub rate: Option<u64>,
    /// Bytes that may wait for the rate limit; what comes on top is dropped
    /// (tail drop). Has no meaning without a rate.
    pub queue: usize,
    /// Longest packet the link carries, bytes. Longer ones vanish without a
    /// word, as behind a firewall that eats ICMP (the WAN emulator fragments
    /// IPv4 packets that allow it first, as routers do).
    pub mtu: Option<u16>,
    /// Carries nothing at all: the cable is cut.
    pub cut: bool,
}

impl Default for Profile {
    /// A perfect wire: no delay, no loss, no limit.
    fn default() -> Self {
        Self {
            delay: Duration::ZERO,
            jitter: Duration::ZERO,
            loss: 0.0,
            reorder: 0.0,
            reorder_by: Duration::from_millis(2),
            duplicate: 0.0,
            rate: None,
            queue: 1 << 20,
            mtu: None,
            cut: false,
        }
    }
}

/// A profile no link can have.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
pub enum ProfileError {
    /// Outside 0 to 1, or not a number.
    #[error("{field} is a share of packets and must be between 0 and 1, not {value}")]
    Share {
        /// Which field.
        field: &'static str,
        /// What it was.
        value: f64,
    },
    /// A rate of nothing.
    #[error("a rate of 0 carries nothing; cut the link instead")]
    ZeroRate,
}

impl Profile {
    /// A link that only takes time.
    #[must_use]
    pub fn delayed(delay: Duration) -> Self {
        Self { delay, ..Self::default() }
    }

    /// Checks the numbers.
    ///
    /// # Errors
    /// Says which field is out of range.
    pub fn check(&self) -> Result<(), ProfileError> {
        let shares =
            [("loss", self.loss), ("reorder", self.reorder), ("duplicate", self.duplicate)];
        for (field, value) in shares {
            if !(0.0..=1.0).contains(&value) {
                return Err(ProfileError::Share { field, value });
            }
        }
        if self.rate == Some(0) { Err(ProfileError::ZeroRate) } else { Ok(()) }
    }

    /// True when the fate of each packet matters by itself, so that packets
    /// must not travel glued together.
    #[must_use]
    pub fn per_packet(&self) -> bool {
        self.loss > 0.0
            || self.reorder > 0.0
            || self.duplicate > 0.0
            || self.rate.is_some()
            || self.mtu.is_some()
    }

    /// True when packets pass at once and unharmed.
    #[must_use]
    pub fn is_transparent(&self) -> bool {
        !self.per_packet() && self.delay.is_zero() && self.jitter.is_zero() && !self.cut
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn impossible_numbers_are_refused() {
        let base = Profile::default();
        assert_eq!(base.check(), Ok(()));
        for bad in [-0.1, 1.1, f64::NAN, f64::INFINITY] {
            for profile in [
                Profile { loss: bad, ..base },
                Profile { reorder: bad, ..base },
                Profile { duplicate: bad, ..base },
            ] {
                assert!(matches!(profile.check(), Err(ProfileError::Share { .. })), "{profile:?}");
            }
        }
        assert_eq!(Profile { rate: Some(0), ..base }.check(), Err(ProfileError::ZeroRate));
    }

    #[test]
    fn what_needs_single_packets() {
        let base = Profile::delayed(Duration::from_millis(3));
        assert!(!base.per_packet() && !base.is_transparent());
        assert!(Profile::default().is_transparent());
        assert!(!Profile { cut: true, ..Profile::default() }.is_transparent());
        for profile in [
            Profile { loss: 0.01, ..base },
            Profile { reorder: 0.01, ..base },
            Profile { duplicate: 0.01, ..base },
            Profile { rate: Some(1), ..base },
            Profile { mtu: Some(1280), ..base },
        ] {
            assert!(profile.per_packet());
        }
    }
}
