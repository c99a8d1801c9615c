//! Loss on the way from a peer, from the gaps in received counters. All times
//! are milliseconds on the engine's clock.

/// A figure this old says nothing any more.
const COUNTED_FOR_MS: u64 = 30_000;
/// Fewest packets between two looks that say something about loss.
const MIN_SAMPLE: u64 = 20;

/// See the module's description.
#[derive(Debug, Default)]
pub(super) struct RxLoss {
    /// Share of the peer's packets that did not arrive, and when that was known.
    loss: Option<(f64, u64)>,
    progress: (u64, u64),
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
        if used < MIN_SAMPLE {
            return;
        }
        self.progress = progress;
        let sample = (1.0 - accepted as f64 / used as f64).clamp(0.0, 1.0);
        let before = self.loss.map_or(sample, |(loss, _)| loss);
        self.loss = Some((before + (sample - before) / 4.0, now_ms));
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
}
