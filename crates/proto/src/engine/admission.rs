//! Who gets a handshake when many ask: load detection (which turns cookies on)
//! and a token bucket for each proven source address.

use std::collections::HashMap;
use std::net::IpAddr;

/// How long load counts as lasting after its last sign, ms.
const LOAD_LINGERS_MS: u64 = 1000;
/// Handshakes a second from one address under load (WireGuard's figures).
const PER_SECOND: u64 = 20;
/// And at once.
const BURST: u64 = 5;
/// Cost of one, in thousandths of a token-millisecond.
const COST: u64 = 1000 / PER_SECOND;
/// Bound on remembered addresses; each takes about 40 bytes.
const MAX_SOURCES: usize = 8192;

/// Counts handshake messages and decides when cookies are needed.
#[derive(Debug)]
pub(super) struct LoadMeter {
    per_second: u32,
    queue: usize,
    window_start: u64,
    count: u32,
    loaded_until: u64,
}

impl LoadMeter {
    /// Load is more than `per_second` messages within a second, or more than
    /// `queue` of them waiting.
    pub(super) fn new(per_second: u32, queue: usize) -> Self {
        Self { per_second, queue, window_start: 0, count: 0, loaded_until: 0 }
    }

    /// Counts a message that arrived while `queued` others waited; true under
    /// load.
    pub(super) fn note(&mut self, queued: usize, now_ms: u64) -> bool {
        if now_ms.saturating_sub(self.window_start) >= 1000 {
            self.window_start = now_ms;
            self.count = 0;
        }
        self.count += 1;
        if self.count > self.per_second || queued > self.queue {
            self.loaded_until = now_ms + LOAD_LINGERS_MS;
        }
        now_ms < self.loaded_until
    }
}

/// A token bucket for each source: an IPv4 address or an IPv6 /64.
#[derive(Debug, Default)]
pub(super) struct SourceLimiter {
    /// When the bucket of a source will be full again, ms.
    full_at: HashMap<u64, u64>,
    swept_ms: u64,
}

impl SourceLimiter {
    /// True when `source` may have a handshake now.
    pub(super) fn allow(&mut self, source: IpAddr, now_ms: u64) -> bool {
        if now_ms.saturating_sub(self.swept_ms) >= 1000 {
            self.swept_ms = now_ms;
            self.full_at.retain(|_, full_at| *full_at > now_ms);
        }
        let key = match source {
            IpAddr::V4(ip) => u64::from(ip.to_bits()),
            IpAddr::V6(ip) => (ip.to_bits() >> 64) as u64 | 1 << 63,
        };
        if self.full_at.len() >= MAX_SOURCES && !self.full_at.contains_key(&key) {
            return false;
        }
        let full_at = self.full_at.entry(key).or_insert(now_ms);
        let next = (*full_at).max(now_ms) + COST;
        if next - now_ms > BURST * COST {
            return false;
        }
        *full_at = next;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn load_is_many_messages_or_a_long_queue_and_passes() {
        let mut meter = LoadMeter::new(10, 5);
        for _ in 0..10 {
            assert!(!meter.note(0, 5000));
        }
        assert!(meter.note(0, 5001));
        assert!(meter.note(0, 6000));
        assert!(!meter.note(0, 7002));
        assert!(meter.note(6, 7003));
    }

    #[test]
    fn a_source_gets_its_burst_and_then_its_rate() {
        let mut limiter = SourceLimiter::default();
        let a = "192.0.2.1".parse().unwrap();
        let b = "2001:db8::1".parse().unwrap();
        let allowed = |limiter: &mut SourceLimiter, source, from: u64, to: u64| {
            (from..to).filter(|ms| limiter.allow(source, *ms)).count()
        };
        assert_eq!(allowed(&mut limiter, a, 1, 2), 1);
        assert_eq!(allowed(&mut limiter, a, 2, 10_002), 20 * 10 + 4);
        assert!(limiter.allow(b, 10_002), "others are not held up");
        let same_64 = "2001:db8::ffff".parse().unwrap();
        assert_eq!(allowed(&mut limiter, same_64, 10_002, 10_003), 1);
        assert_eq!((0..10).filter(|_| limiter.allow(b, 10_003)).count(), 3);
    }

    #[test]
    fn memory_is_bounded_and_freed() {
        let mut limiter = SourceLimiter::default();
        let source = |n: u32| IpAddr::V4(n.into());
        let admitted = (0..20_000).filter(|n| limiter.allow(source(*n), 1)).count();
        assert_eq!(admitted, MAX_SOURCES);
        assert!(limiter.allow(source(19_999), 2000));
        assert_eq!(limiter.full_at.len(), 1);
    }
}
