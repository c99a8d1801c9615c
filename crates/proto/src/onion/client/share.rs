//! Which share of what was sent got lost lately: what was lost counts half after
//! a while, so a figure needs no window and forgets by itself.
//!
//! In: counters of cells, or the fate of echoes, and the time. Out: a share, or
//! that too little was sent to tell.

/// What was lost counts half after this long, us: of cells, and of echoes.
const CELLS_HALF_US: u64 = 1_500_000;
const ECHOES_HALF_US: u64 = 8_000_000;
/// Cells or echoes that say something about loss, and echoes that must be lost.
const LEAST_CELLS: f32 = 30.0;
const LEAST_ECHOES: f32 = 6.0;
const LEAST_LOST: f32 = 1.8;

/// Which share of what was sent lately got lost.
#[derive(Debug, Clone, Default)]
pub(super) struct Share {
    sent: f32,
    lost: f32,
    at_us: u64,
    /// Counters as last seen: (sent, received).
    mark: (u64, u64),
}

impl Share {
    fn fade(&self, half_us: u64, now_us: u64) -> f32 {
        (-(now_us.saturating_sub(self.at_us) as f32) / half_us as f32).exp2()
    }

    fn add(&mut self, sent: f32, lost: f32, half_us: u64, now_us: u64) {
        let fade = self.fade(half_us, now_us);
        // Less than nothing is lost when cells overtake each other, for a moment.
        (self.sent, self.lost) = (self.sent * fade + sent, self.lost * fade + lost);
        self.at_us = now_us;
    }

    /// Counters that only grow.
    pub(super) fn count(&mut self, (sent, received): (u64, u64), now_us: u64) {
        let (sent_before, received_before) = self.mark;
        let sent_now = sent.saturating_sub(sent_before);
        if sent_now == 0 {
            // What came late counts with what is sent next.
            return;
        }
        self.mark = (sent, received);
        let lost = sent_now as f32 - received.saturating_sub(received_before) as f32;
        self.add(sent_now as f32, lost, CELLS_HALF_US, now_us);
    }

    /// An echo came back, or did not in time.
    pub(super) fn echo(&mut self, lost: bool, now_us: u64) {
        self.add(1.0, f32::from(u8::from(lost)), ECHOES_HALF_US, now_us);
    }

    /// One that counted as lost came back.
    pub(super) fn echo_late(&mut self, now_us: u64) {
        self.add(0.0, -1.0, ECHOES_HALF_US, now_us);
    }

    /// `None` when too little was sent lately to tell.
    pub(super) fn of_cells(&self, now_us: u64) -> Option<f32> {
        let sent = self.sent * self.fade(CELLS_HALF_US, now_us);
        (sent >= LEAST_CELLS).then(|| (self.lost / self.sent).clamp(0.0, 1.0))
    }

    /// A single lost echo says nothing.
    pub(super) fn of_echoes(&self, now_us: u64) -> f32 {
        let fade = self.fade(ECHOES_HALF_US, now_us);
        let enough = self.sent * fade >= LEAST_ECHOES && self.lost * fade >= LEAST_LOST;
        if enough { (self.lost / self.sent).clamp(0.0, 1.0) } else { 0.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_tell_after_a_few_and_are_forgotten() {
        let mut share = Share::default();
        share.count((20, 20), 0);
        assert_eq!(share.of_cells(0), None, "too few");
        for second in 1..=10 {
            share.count((20 + 100 * second, 20 + 95 * second), second * 1_000_000);
        }
        let loss = share.of_cells(10_000_000).unwrap();
        assert!((0.045..0.055).contains(&loss), "{loss}");
        assert_eq!(share.of_cells(20_000_000), None, "long ago");
        share.count((2_000, 1_950), 21_000_000);
        assert!(share.of_cells(21_000_000).unwrap() < 0.01, "healed: {share:?}");
    }

    #[test]
    fn cells_that_come_late_are_not_lost() {
        let mut share = Share::default();
        share.count((100, 90), 0);
        share.count((100, 100), 1_000);
        // An answer that was overtaken by the one before.
        share.count((90, 90), 2_000);
        share.count((200, 200), 3_000);
        assert_eq!(share.of_cells(3_000), Some(0.0));
    }

    #[test]
    fn one_lost_echo_is_chance_and_late_ones_come_back() {
        let mut share = Share::default();
        (0..20).for_each(|i| share.echo(i == 3, 0));
        assert_eq!(share.of_echoes(0), 0.0);
        share.echo(true, 0);
        assert!(share.of_echoes(0) > 0.08);
        share.echo_late(0);
        assert_eq!(share.of_echoes(0), 0.0);
    }
}
