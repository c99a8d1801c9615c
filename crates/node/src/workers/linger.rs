//! Staying awake for a moment where an answer is likely: after a packet or two,
//! and not for long.
//!
//! Waking a thread on a core that sleeps took some 15 us where it was measured,
//! and an echo through two nodes takes four such wake-ups; a thread that is
//! still looking needs none. The price is the processor's time, so it is bounded
//! twice: [`LONGEST`] after each small burst, and [`SHARE`] of the time that
//! passes. An idle worker sleeps, and one with much to do does not linger at all.

use std::io;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use warren_os::wait::{Ready, Waker, wait_readable_for};

/// How long to look after the last packet: the way there and back between two
/// hosts next to each other, with a wake-up on the far one.
const LONGEST: Duration = Duration::from_micros(50);

/// One part in so many of the time that passes may be spent lingering.
const SHARE: u32 = 20;

/// Most that is saved up, for the bursts of a conversation.
const SAVED: Duration = Duration::from_millis(2);

/// Bytes since the last wait above which more traffic follows by itself.
/// Bulk transfers wake a worker for tens of kilobytes.
const SPARSE: usize = 2048;

/// A worker's allowance.
#[derive(Debug)]
pub(super) struct Linger {
    saved: Duration,
    counted: Instant,
}

impl Linger {
    pub(super) fn new(now: Instant) -> Self {
        Self { saved: SAVED, counted: now }
    }

    /// How long to stay awake after `bytes` were carried since the last wait.
    fn allowed(&mut self, bytes: usize, now: Instant) -> Duration {
        if bytes == 0 || bytes > SPARSE {
            return Duration::ZERO;
        }
        let earned = now.saturating_duration_since(self.counted) / SHARE;
        self.saved = (self.saved + earned).min(SAVED);
        self.counted = now;
        self.saved.min(LONGEST)
    }

    fn spent(&mut self, time: Duration) {
        self.saved = self.saved.saturating_sub(time);
    }

    /// Looks for packets for as long as allowed; `None` when none came. Others
    /// who want this core get it between two looks: it may be the receiver of
    /// what was just delivered.
    pub(super) fn look(
        &mut self,
        bytes: usize,
        fds: &[BorrowedFd<'_>],
        waker: &Waker,
    ) -> io::Result<Option<Ready>> {
        let start = Instant::now();
        let limit = self.allowed(bytes, start);
        if limit.is_zero() {
            return Ok(None);
        }
        let mut elapsed = Duration::ZERO;
        let mut ready = None;
        while ready.is_none() && elapsed < limit {
            std::thread::yield_now();
            ready = wait_readable_for(fds, waker, Some(Duration::ZERO))?;
            elapsed = start.elapsed();
        }
        self.spent(elapsed);
        Ok(ready)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_little_traffic_is_waited_for() {
        let now = Instant::now();
        let mut linger = Linger::new(now);
        assert_eq!(linger.allowed(0, now), Duration::ZERO);
        assert_eq!(linger.allowed(SPARSE + 1, now), Duration::ZERO);
        assert_eq!(linger.allowed(100, now), LONGEST);
    }

    #[test]
    fn the_share_of_time_is_bounded() {
        let mut now = Instant::now();
        let mut linger = Linger::new(now);
        let (mut spent, step) = (Duration::ZERO, Duration::from_micros(100));
        for _ in 0..100_000 {
            let allowed = linger.allowed(100, now);
            linger.spent(allowed);
            spent += allowed;
            now += step;
        }
        let passed = step * 100_000;
        assert!(spent <= passed / SHARE + SAVED, "{spent:?} of {passed:?}");
        assert!(spent >= passed / SHARE - LONGEST, "{spent:?} of {passed:?}");
    }
}
