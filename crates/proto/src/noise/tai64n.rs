//! TAI64N timestamps (<https://cr.yp.to/libtai/tai64.html>): 8 bytes of
//! seconds and 4 of nanoseconds, big-endian, so that later is also greater as
//! bytes. An initiation carries one; the responder takes only a greater one
//! than before, so nobody can replay an initiation.

use std::time::Duration;

/// 2^62 plus the 10 s by which TAI was ahead of UTC in 1970; leap seconds since
/// are ignored, as WireGuard does.
const UNIX_EPOCH: u64 = (1 << 62) + 10;
/// Low bits of the nanoseconds are cleared (to about 17 ms), so that the
/// timestamp tells less about the sender's clock (WireGuard does the same).
const WHITENING: u32 = (1 << 24) - 1;

/// A TAI64N timestamp; ordered by time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Tai64n([u8; 12]);

impl Tai64n {
    /// The timestamp of a wall-clock time, given since the Unix epoch.
    pub fn from_unix(since_epoch: Duration) -> Self {
        Self::from_parts(
            UNIX_EPOCH.saturating_add(since_epoch.as_secs()),
            since_epoch.subsec_nanos() & !WHITENING,
        )
    }

    /// As read from an initiation. Any bytes are a timestamp.
    pub fn from_bytes(bytes: [u8; 12]) -> Self {
        Self(bytes)
    }

    /// The wire form.
    pub fn as_bytes(&self) -> &[u8; 12] {
        &self.0
    }

    /// The next greater whitened timestamp; used when the own clock stepped
    /// back, so that peers still accept our initiations.
    pub fn successor(self) -> Self {
        let (seconds, nanos) = self.parts();
        let next = (nanos & !WHITENING).saturating_add(WHITENING + 1);
        if next >= 1_000_000_000 {
            Self::from_parts(seconds.saturating_add(1), 0)
        } else {
            Self::from_parts(seconds, next)
        }
    }

    /// How far `self` lies behind `newer`, to whole seconds; zero when it does
    /// not.
    pub fn behind(self, newer: Self) -> Duration {
        Duration::from_secs(newer.parts().0.saturating_sub(self.parts().0))
    }

    fn from_parts(seconds: u64, nanos: u32) -> Self {
        let mut bytes = [0; 12];
        bytes[..8].copy_from_slice(&seconds.to_be_bytes());
        bytes[8..].copy_from_slice(&nanos.to_be_bytes());
        Self(bytes)
    }

    fn parts(self) -> (u64, u32) {
        let (seconds, nanos) = self.0.split_at(8);
        (
            u64::from_be_bytes(seconds.try_into().expect("8 bytes")),
            u32::from_be_bytes(nanos.try_into().expect("4 bytes")),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wire_form_is_tai64n() {
        // libtai's own example: 1992-06-02 08:07:09 UTC is 400000002a2b2c2d
        // by a table of leap seconds (27 then); without one it is 17 s less.
        let unix = 0x2a2b_2c2d - 10;
        let stamp = Tai64n::from_unix(Duration::new(unix, 0x1234_5678));
        assert_eq!(stamp.as_bytes(), &[0x40, 0, 0, 0, 0x2a, 0x2b, 0x2c, 0x2d, 0x12, 0, 0, 0]);
    }

    #[test]
    fn later_is_greater_and_so_is_the_successor() {
        let at = |ms| Tai64n::from_unix(Duration::from_millis(ms));
        assert!(at(1_000) < at(1_020));
        assert!(at(1_999) < at(2_000));
        let mut stamp = at(5);
        for _ in 0..200 {
            let next = stamp.successor();
            assert!(next > stamp);
            stamp = next;
        }
        assert_eq!(at(1_000).behind(at(61_000)), Duration::from_secs(60));
        assert_eq!(at(61_000).behind(at(1_000)), Duration::ZERO);
        let last = Tai64n::from_bytes([0xff; 12]);
        assert_eq!(last.behind(last), Duration::ZERO);
        let _ = last.successor();
    }
}
