//! Whether data arrives over the path in use: the peer's answers say how many
//! data packets it has received, and each probe remembers how many we had sent.
//! A path may answer every probe and still lose data (a filter, a broken relay):
//! that traffic arrives is seen from packets of traffic alone, since small frames
//! may pass where they do not; the share that is lost, from all.

use crate::link::frame::Tally;

/// Packets sent without any arriving that count as a sign.
const SIGN: u64 = 3;
/// Answers in a row with that sign, over this time, that are proof.
const PROOF: u32 = 3;
const PROOF_MS: u64 = 400;
/// A figure for loss takes this long and this many packets…
const WINDOW_MS: u64 = 500;
const WINDOW: u64 = 25;
/// …and, if a single packet is missing, so many,
const LONE_WINDOW: u64 = 50;
/// or this time, after which it does not count: one may always be lost.
const LONE_MS: u64 = 5_000;
/// It counts at least this much against those before,
const LEAST_WEIGHT: f64 = 0.4;
/// which count half after this time: where little is sent, windows are long, and
/// a moment of loss must not be remembered for many of them.
const HALF_LIFE_MS: f64 = 4_000.0;
/// Figures older than this are of another time.
const KEEP_MS: u64 = 10_000;

/// See the module's description.
#[derive(Debug, Default)]
pub(super) struct Progress {
    /// (sent, received) when data last was seen to arrive.
    last: Option<(u64, u64)>,
    stalled: u32,
    stalled_since_ms: u64,
    /// (sent, received, when) at the start of the window.
    window: Option<(u64, u64, u64)>,
    /// Smoothed share lost after the last window and after the one before, and
    /// when the last one ended. Packets sealed but not sent yet make one window
    /// too high and the next too low, even negative.
    smoothed: [Option<f64>; 2],
    sampled_ms: u64,
}

impl Progress {
    /// Another path or another counter.
    pub(super) fn restart(&mut self) {
        *self = Self::default();
    }

    /// The answer to a probe that went out after `sent` says that `received`
    /// arrived.
    pub(super) fn note(&mut self, sent: Tally, received: Tally, now_ms: u64) {
        self.measure(sent.all(), received.all(), now_ms);
        let (sent, received) = (sent.data, received.data);
        match self.last {
            Some((before, _)) if sent < before => {}
            Some((before, count)) if received == count => {
                if sent >= before + SIGN {
                    if self.stalled == 0 {
                        self.stalled_since_ms = now_ms;
                    }
                    self.stalled += 1;
                }
            }
            _ => {
                self.last = Some((sent, received));
                self.stalled = 0;
            }
        }
    }

    fn measure(&mut self, sent: u64, received: u64, now_ms: u64) {
        if now_ms > self.sampled_ms + KEEP_MS {
            self.smoothed = [None; 2];
        }
        let Some((sent0, received0, at)) = self.window.filter(|(_, r, _)| received >= *r) else {
            self.window = Some((sent, received, now_ms));
            return;
        };
        let packets = sent.saturating_sub(sent0);
        if now_ms < at + WINDOW_MS || packets < WINDOW {
            if now_ms > at + KEEP_MS {
                self.window = Some((sent, received, now_ms));
            }
            return;
        }
        let mut arrived = received - received0;
        if packets.checked_sub(arrived) == Some(1) && packets < LONE_WINDOW {
            if now_ms < at + LONE_MS {
                return;
            }
            arrived = packets;
        }
        let share = 1.0 - arrived as f64 / packets as f64;
        let passed = now_ms.saturating_sub(at) as f64 / HALF_LIFE_MS;
        let weight = (1.0 - (-passed).exp2()).max(LEAST_WEIGHT);
        let before = self.smoothed[1].unwrap_or(0.0);
        self.smoothed = [self.smoothed[1], Some(before + (share - before) * weight)];
        self.sampled_ms = now_ms;
        self.window = Some((sent, received, now_ms));
    }

    /// Data goes out and none arrives.
    pub(super) fn stopped(&self, now_ms: u64) -> bool {
        self.stalled >= PROOF && now_ms >= self.stalled_since_ms + PROOF_MS
    }

    /// Share of our data that does not arrive, when enough flows to know: the
    /// lesser of the last two figures.
    pub(super) fn loss(&self, now_ms: u64) -> Option<f64> {
        match self.smoothed {
            [Some(a), Some(b)] if now_ms <= self.sampled_ms + KEEP_MS => {
                Some(a.min(b).clamp(0.0, 1.0))
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(progress: &mut Progress, sent: u64, received: u64, now_ms: u64) {
        let tally = |data| Tally { data, quiet: 0 };
        progress.note(tally(sent), tally(received), now_ms);
    }

    #[test]
    fn data_that_stops_arriving_is_noticed_and_a_pause_is_not() {
        let mut progress = Progress::default();
        let mut now = 0;
        for n in 0..10 {
            now += 200;
            note(&mut progress, n * 10, n * 10, now);
        }
        for _ in 0..50 {
            now += 200;
            note(&mut progress, 90, 90, now);
            assert!(!progress.stopped(now), "nothing was sent");
        }
        let start = now;
        for n in 1.. {
            now += 200;
            note(&mut progress, 90 + n * 10, 90, now);
            if progress.stopped(now) {
                break;
            }
        }
        assert!((400..=800).contains(&(now - start)), "{}", now - start);
        note(&mut progress, 900, 91, now + 200);
        assert!(!progress.stopped(now + 200));
    }

    #[test]
    fn loss_is_measured_and_trains_under_way_are_none() {
        let mut progress = Progress::default();
        let mut now = 0;
        for n in 0..=20u64 {
            now += 500;
            // Every other time 60 packets are sealed but not yet sent.
            note(&mut progress, n * 300 + if n % 4 < 2 { 60 } else { 0 }, n * 300, now);
        }
        assert!(progress.loss(now).unwrap() < 0.01, "{:?}", progress.loss(now));
        let mut progress = Progress::default();
        for n in 0..=20u64 {
            now += 500;
            note(&mut progress, n * 200, n * 190, now);
        }
        assert!((0.045..0.055).contains(&progress.loss(now).unwrap()));
    }

    #[test]
    fn a_moment_of_loss_is_soon_forgotten_by_quiet_links() {
        let mut progress = Progress::default();
        let (mut now, mut sent, mut lost) = (0, 0, 0);
        // Three packets a second, of which some are lost for a while.
        for second in 0..60u64 {
            (now, sent) = (now + 1000, sent + 3);
            lost += u64::from(second < 20);
            note(&mut progress, sent, sent - lost, now);
            if second == 20 {
                assert!(progress.loss(now).unwrap() > 0.1, "{progress:?}");
            }
        }
        assert!(progress.loss(now).unwrap() < 0.01, "{progress:?}");
        assert_eq!(progress.loss(now + 11_000), None, "of another time");
    }

    #[test]
    fn a_single_packet_may_always_be_lost() {
        let mut progress = Progress::default();
        let (mut sent, mut lost) = (0, 0);
        for n in 1..=40u64 {
            // Sixty a second: there is time to see a second one.
            (sent, lost) = (sent + 30, lost + u64::from(n % 10 == 0));
            note(&mut progress, sent, sent - lost, n * 500);
            assert!(progress.loss(n * 500).is_none_or(|loss| loss < 0.01), "{progress:?}");
        }
    }

    #[test]
    fn a_peer_may_claim_to_have_received_anything() {
        for quiet in [0, u64::MAX] {
            let mut progress = Progress::default();
            progress.note(Tally::default(), Tally::default(), 0);
            let sent = Tally { data: 40, quiet: 0 };
            for now in [1_000, 2_000, 3_000] {
                progress.note(sent, Tally { data: u64::MAX, quiet }, now);
            }
            assert!(progress.loss(3_000).is_none_or(|loss| loss == 0.0));
        }
    }

    #[test]
    fn a_counter_that_starts_anew_is_no_loss() {
        let mut progress = Progress::default();
        note(&mut progress, 1000, 1000, 1);
        for n in 0..10 {
            note(&mut progress, 1000 + n * 100, n * 100, 200 * n);
            assert!(!progress.stopped(200 * n));
        }
        assert!(progress.loss(2000).is_none_or(|loss| loss < 0.01));
    }
}
