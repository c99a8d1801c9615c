//! Round trips, loss and liveness of one link between Warren nodes, from echoes
//! and from the gaps in received counters. All times are milliseconds on the
//! engine's clock; round trips are microseconds.

use std::time::Duration;

/// Between echoes while packets flow.
pub(super) const ACTIVE_ECHO_MS: u64 = 1_000;
/// Between echoes on a quiet link.
pub(super) const IDLE_ECHO_MS: u64 = 10_000;
/// Between echoes once one was lost, so that doubt does not last.
const DOUBT_ECHO_MS: u64 = 500;
/// Echoes in a row without answer that make a path suspect.
const SUSPECT_AFTER: u32 = 3;
/// Wait for an answer: this or four round trips…
const MIN_TIMEOUT_MS: u64 = 500;
/// …and this while the round trip is unknown.
const FIRST_TIMEOUT_MS: u64 = 1_000;
/// A figure from counters this old gives way to echoes.
const COUNTED_FOR_MS: u64 = 30_000;
/// Fewest packets between two looks that say something about loss.
const MIN_SAMPLE: u64 = 20;

#[derive(Debug, Clone, Copy)]
struct Echo {
    id: u32,
    sent_ms: u64,
    sent_us: u64,
}

/// Echo state of one link.
#[derive(Debug, Default)]
pub(super) struct Liveness {
    waiting: Vec<Echo>,
    last_sent_ms: u64,
    misses: u32,
    /// Smoothed round trip, RFC 6298 section 2; 0 until measured.
    srtt_us: u64,
    /// Share of echoes lost there and back, 0 to 1.
    echo_loss: Option<f64>,
    /// Share of the peer's packets that did not arrive, and when that was known.
    rx_loss: Option<(f64, u64)>,
    progress: (u64, u64),
}

impl Liveness {
    /// When the next echo is due.
    pub(super) fn next_echo(&self, active: bool) -> u64 {
        if self.last_sent_ms == 0 {
            return 0;
        }
        self.last_sent_ms
            + match (self.misses, active) {
                (1..SUSPECT_AFTER, _) => DOUBT_ECHO_MS,
                (_, true) => ACTIVE_ECHO_MS,
                (_, false) => IDLE_ECHO_MS,
            }
    }

    /// When an unanswered echo will count as lost.
    pub(super) fn next_loss(&self) -> Option<u64> {
        self.waiting.first().map(|echo| echo.sent_ms + self.timeout_ms())
    }

    fn timeout_ms(&self) -> u64 {
        if self.srtt_us == 0 {
            return FIRST_TIMEOUT_MS;
        }
        MIN_TIMEOUT_MS.max(self.srtt_us * 4 / 1000)
    }

    /// An echo was sent.
    pub(super) fn sent(&mut self, id: u32, now_ms: u64, now_us: u64) {
        self.last_sent_ms = now_ms;
        if self.waiting.len() >= 8 {
            self.waiting.remove(0);
        }
        self.waiting.push(Echo { id, sent_ms: now_ms, sent_us: now_us });
    }

    /// An answer came; its round trip when the echo was waited for.
    pub(super) fn answered(&mut self, id: u32, now_us: u64) -> Option<Duration> {
        let at = self.waiting.iter().position(|echo| echo.id == id)?;
        let echo = self.waiting.remove(at);
        let rtt = now_us.saturating_sub(echo.sent_us).max(1);
        self.srtt_us = if self.srtt_us == 0 { rtt } else { (self.srtt_us * 7 + rtt) / 8 };
        self.misses = 0;
        self.note_echo(false);
        Some(Duration::from_micros(rtt))
    }

    fn note_echo(&mut self, lost: bool) {
        let sample = f64::from(u8::from(lost));
        let before = self.echo_loss.unwrap_or(0.0);
        self.echo_loss = Some(before + (sample - before) / 16.0);
    }

    /// Counts echoes that are overdue. True when the path has just become
    /// suspect: nothing at all (`last_rx_ms`) has come since the first of them.
    pub(super) fn check(&mut self, now_ms: u64, last_rx_ms: u64) -> bool {
        let timeout = self.timeout_ms();
        let mut suspect = false;
        while self.waiting.first().is_some_and(|echo| now_ms >= echo.sent_ms + timeout) {
            let echo = self.waiting.remove(0);
            self.note_echo(true);
            if last_rx_ms >= echo.sent_ms {
                self.misses = 0;
                continue;
            }
            self.misses += 1;
            suspect |= self.misses == SUSPECT_AFTER;
        }
        suspect
    }

    /// Forgets outstanding echoes: the path or the session is a new one.
    pub(super) fn restart(&mut self) {
        self.waiting.clear();
        self.misses = 0;
        self.last_sent_ms = 0;
        self.progress = (0, 0);
    }

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
        let before = self.rx_loss.map_or(sample, |(loss, _)| loss);
        self.rx_loss = Some((before + (sample - before) / 4.0, now_ms));
    }

    /// Smoothed round trip.
    pub(super) fn rtt(&self) -> Option<Duration> {
        (self.srtt_us > 0).then(|| Duration::from_micros(self.srtt_us))
    }

    /// Share of packets from the peer lost lately: from its counters when it
    /// sent enough, else from echoes (assuming both ways are alike).
    pub(super) fn loss(&self, now_ms: u64) -> Option<f64> {
        let counted = self.rx_loss.filter(|(_, at)| now_ms < at + COUNTED_FOR_MS);
        let echoed = || self.echo_loss.map(|both| 1.0 - (1.0 - both).max(0.0).sqrt());
        counted.map(|(loss, _)| loss).or_else(echoed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trips_are_smoothed_and_answers_count_once() {
        let mut live = Liveness::default();
        assert_eq!(live.rtt(), None);
        live.sent(1, 1000, 1_000_000);
        assert_eq!(live.answered(2, 1_000_400), None);
        assert_eq!(live.answered(1, 1_000_400), Some(Duration::from_micros(400)));
        assert_eq!(live.answered(1, 1_000_500), None);
        live.sent(2, 2000, 2_000_000);
        live.answered(2, 2_001_200);
        assert_eq!(live.rtt(), Some(Duration::from_micros(500)));
    }

    #[test]
    fn three_lost_echoes_make_a_path_suspect_once() {
        let mut live = Liveness::default();
        let mut suspects = 0;
        for id in 0..6u32 {
            let at = 1000 * (u64::from(id) + 1);
            live.sent(id, at, at * 1000);
            suspects += u32::from(live.check(at + 999, 0));
        }
        suspects += u32::from(live.check(9000, 0));
        assert_eq!(suspects, 1);
    }

    #[test]
    fn anything_received_clears_the_doubt() {
        let mut live = Liveness::default();
        for id in 0..10u32 {
            let at = 1000 * (u64::from(id) + 1);
            live.sent(id, at, at * 1000);
            assert!(!live.check(at + 1000, at + 500));
        }
    }

    #[test]
    fn loss_comes_from_counters_or_else_from_echoes() {
        let mut live = Liveness::default();
        for id in 0..2000u32 {
            let at = 10_000 * (u64::from(id) + 1);
            live.sent(id, at, at * 1000);
            if id % 5 != 0 {
                live.answered(id, at * 1000 + 100);
            }
            live.check(at + 9_000, at);
        }
        let loss = live.loss(0).unwrap();
        assert!((0.03..0.25).contains(&loss), "{loss}");
        for step in 1..100 {
            live.note_progress((step * 1000, step * 990), 1000);
        }
        let loss = live.loss(2000).unwrap();
        assert!((0.009..0.011).contains(&loss), "{loss}");
        live.new_session();
        live.note_progress((20, 10), 3000);
        assert!(live.loss(3000).unwrap() > 0.1, "counters of a new session count");
        assert!((0.03..0.25).contains(&live.loss(40_000).unwrap()), "echoes again");
    }
}
