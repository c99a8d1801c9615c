//! Loss on the way from a peer, from the gaps in received counters. All times
//! are milliseconds on the engine's clock.

/// A figure this old says nothing any more.
const COUNTED_FOR_MS: u64 = 30_000;
/// Fewest packets between two looks that say something about loss,
const MIN_SAMPLE: u64 = 20;
/// and if a single one of them is lost.
const LONE_SAMPLE: u64 = 100;
/// After so long the single one does not count: it may always be.
const LONE_MS: u64 = 5_000;
/// Least weight of a new sample; in busy links there are several a second.
const LEAST_WEIGHT: f64 = 0.25;
/// What was seen before counts half after this time, so that a moment of loss
/// is not remembered for long by links with little traffic.
const HALF_LIFE_MS: f64 = 4_000.0;

/// See the module's description.
#[derive(Debug, Default)]
pub(super) struct RxLoss {
    /// Share of the peer's packets that did not arrive, and when that was known.
    loss: Option<(f64, u64)>,
    /// Where the sample under way began, and when.
    progress: (u64, u64),
    began_ms: u64,
}

impl RxLoss {
    /// The peer's counters start anew.
    pub(super) fn new_session(&mut self) {
        self.progress = (0, 0);
    }

    /// Takes the counters of the receiving session: (used by the peer,
    /// accepted).
    pub(super) fn note_progress(&mut self, progress: (u64, u64), now_ms: u64) {
        let (used, accepted) = (
            progress.0.saturating_sub(self.progress.0),
            progress.1.saturating_sub(self.progress.1),
        );
        let mut lost = used.saturating_sub(accepted);
        if used < MIN_SAMPLE {
            return;
        }
        if lost == 1 && used < LONE_SAMPLE {
            if now_ms < self.began_ms + LONE_MS {
                return;
            }
            lost = 0;
        }
        (self.progress, self.began_ms) = (progress, now_ms);
        let sample = lost as f64 / used as f64;
        let (before, at) = self.loss.unwrap_or((sample, now_ms));
        let passed = now_ms.saturating_sub(at) as f64 / HALF_LIFE_MS;
        let weight = (1.0 - (-passed).exp2()).max(LEAST_WEIGHT);
        self.loss = Some((before + (sample - before) * weight, now_ms));
    }

    /// Share of packets from the peer lost lately, if it sent enough to know.
    pub(super) fn loss(&self, now_ms: u64) -> Option<f64> {
        self.loss.filter(|(_, at)| now_ms < at + COUNTED_FOR_MS).map(|(loss, _)| loss)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loss_comes_from_counters_and_is_forgotten() {
        let mut rx = RxLoss::default();
        for step in 1..100 {
            rx.note_progress((step * 1000, step * 990), 1000);
        }
        let loss = rx.loss(2000).unwrap();
        assert!((0.009..0.011).contains(&loss), "{loss}");
        rx.new_session();
        rx.note_progress((20, 10), 3000);
        assert!(rx.loss(3000).unwrap() > 0.1, "counters of a new session count");
        assert_eq!(rx.loss(40_000), None);
    }

    #[test]
    fn a_moment_of_loss_is_soon_forgotten_by_quiet_links() {
        let mut rx = RxLoss::default();
        rx.note_progress((100, 80), 1000);
        assert_eq!(rx.loss(1000), Some(0.2));
        // Three packets a second.
        for step in 1..=4 {
            rx.note_progress((100 + step * 21, 80 + step * 21), 1000 + step * 7000);
        }
        assert!(rx.loss(29_000).unwrap() < 0.002, "{rx:?}");
        rx.note_progress((205, 184), 36_000);
        assert!(rx.loss(36_000).unwrap() < 0.002, "a single one may always be lost");
        // Sixty a second: there is time to see a second one.
        rx.note_progress((226, 204), 36_400);
        assert!(rx.loss(36_400).unwrap() < 0.002, "not yet");
        rx.note_progress((247, 224), 36_800);
        assert!(rx.loss(36_800).unwrap() > 0.01, "a second one tells");
    }
}
