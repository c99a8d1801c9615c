//! Where data goes. A path in use that falls silent or swallows data is left
//! for the best one that answers; one that is merely worse only when the gain
//! is clear and lasts; and one that failed must prove itself ever longer before
//! traffic comes back, so that a flapping path is used seldom.

use std::net::SocketAddr;

use super::candidate::{Candidate, Phase, SUSPECT_AFTER};
use super::{PathReason, Paths};

/// A path is worth changing to when it costs less than this share…
const GAIN: f64 = 0.8;
/// …and by this much less, µs…
const GAIN_US: u64 = 10_000;
/// …for this long.
const LASTING_MS: u64 = 1_000;
/// A direct path is preferred unless it costs more than this multiple…
const DIRECT_FACTOR: f64 = 1.1;
/// …and by this much more, µs, than one over other nodes.
const DIRECT_EXTRA_US: u64 = 5_000;
/// No change for the better sooner after the last change.
const DWELL_MS: u64 = 3_000;
/// Changes because of silence within this time make us more patient.
const UNREST_MS: u64 = 10_000;
/// Hearing the peer from another address counts as its having moved this long.
const MOVED_MS: u64 = 3_000;

/// A new choice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Change {
    /// Before.
    pub(crate) from: Option<SocketAddr>,
    /// Now.
    pub(crate) to: SocketAddr,
    /// Why.
    pub(crate) reason: PathReason,
}

impl Paths {
    /// Chooses; what changed, if anything. `heard_ms` is when the peer was last
    /// heard at all.
    pub(crate) fn choose(&mut self, heard_ms: u64, now_ms: u64) -> Option<Change> {
        let (to, reason) = self.decide(heard_ms, now_ms)?;
        let from = self.active;
        if reason == PathReason::Silent {
            let (count, last) = self.unrest;
            let count = if now_ms < last + UNREST_MS { count + 1 } else { 1 };
            self.unrest = (count, now_ms);
        }
        let loss = self.progress.loss(now_ms);
        if let Some(old) = from.and_then(|from| self.find(from))
            && reason.is_failure()
        {
            let loss = loss.filter(|_| reason == PathReason::Lossy);
            old.failed(loss, reason == PathReason::DataLost, now_ms);
        }
        self.force(to, now_ms);
        Some(Change { from, to, reason })
    }

    fn decide(&mut self, heard_ms: u64, now_ms: u64) -> Option<(SocketAddr, PathReason)> {
        let active = self.current();
        let best = self.best(now_ms, |_| true);
        let Some(active) = active else {
            return best.map(|path| (path.address, PathReason::First));
        };
        let best = best?;
        if active.phase != Phase::Proven {
            // A handshake came this way, so it probably works: wait a moment.
            let better = active.misses > 0 || active.detour() && !best.detour();
            return better.then_some((best.address, PathReason::First));
        }
        if active.misses >= self.patience(active, heard_ms, now_ms) {
            return Some((best.address, PathReason::Silent));
        }
        if self.progress.stopped(now_ms)
            && let Some(best) = self.best(now_ms, |path| !path.barred(now_ms))
        {
            return Some((best.address, PathReason::DataLost));
        }
        if let Some((to, at)) = self.moved
            && now_ms < at + MOVED_MS
            && active.misses > 0
            && self.get(to).is_some_and(|path| path.phase == Phase::Proven && path.misses == 0)
        {
            self.moved = None;
            return Some((to, PathReason::Moved));
        }
        self.improve(now_ms)
    }

    /// Misses in a row after which the path in use is left: one more while the
    /// peer is still heard (it may only be slow to answer), and more when
    /// leaving helped little lately.
    fn patience(&self, active: &Candidate, heard_ms: u64, now_ms: u64) -> u32 {
        let heard = active.misses > 0 && heard_ms > active.first_miss_ms;
        let (count, last) = self.unrest;
        let unrest = if now_ms < last + UNREST_MS { count.min(3) } else { 0 };
        SUSPECT_AFTER + u32::from(heard) + unrest.saturating_sub(1)
    }

    /// The cheapest path that works now, other than the one in use.
    fn best(&self, now_ms: u64, also: impl Fn(&Candidate) -> bool) -> Option<&Candidate> {
        self.list
            .iter()
            .filter(|path| {
                Some(path.address) != self.active
                    && path.phase == Phase::Proven
                    && path.misses == 0
                    && path.fresh(now_ms)
                    && also(path)
            })
            .min_by_key(|path| path.cost_us(now_ms).unwrap_or(u64::MAX))
    }

    /// A change for the better.
    fn improve(&mut self, now_ms: u64) -> Option<(SocketAddr, PathReason)> {
        let active = self.current()?;
        let loss = match (self.progress.loss(now_ms), active.loss(now_ms)) {
            // Probes are lost on the way back as well, and are few.
            (Some(data), echoes) => data.max(echoes.unwrap_or(0.0) / 2.0),
            (None, echoes) => echoes.unwrap_or(0.0),
        };
        let cost = active.cost_with_loss_us(loss, now_ms)?;
        let eligible = |path: &Candidate| now_ms >= path.eligible_ms(now_ms);
        if active.detour()
            && let Some(direct) = self.best(now_ms, |path| !path.detour() && eligible(path))
            && let Some(direct_cost) = direct.cost_us(now_ms)
            && direct_cost <= (cost as f64 * DIRECT_FACTOR) as u64 + DIRECT_EXTRA_US
        {
            return Some((direct.address, PathReason::Direct));
        }
        let better = self.best(now_ms, |path| {
            let theirs = path.cost_us(now_ms).unwrap_or(u64::MAX);
            eligible(path)
                && (theirs as f64) < cost as f64 * GAIN
                && theirs.saturating_add(GAIN_US) <= cost
        });
        let better = better.map(|path| path.address);
        if !self.lasting(better, now_ms) || now_ms < self.switched_ms + DWELL_MS {
            return None;
        }
        let better = better?;
        Some((better, if loss >= 0.01 { PathReason::Lossy } else { PathReason::Faster }))
    }

    /// True when `better` has been so for long enough, moments when nothing was
    /// taken off.
    fn lasting(&mut self, better: Option<SocketAddr>, now_ms: u64) -> bool {
        let (address, for_ms, last_ms) = match (self.better, better) {
            (Some(before), None) => before,
            (Some(before), Some(address)) if before.0 == address => before,
            (_, Some(address)) => (address, 0, now_ms),
            (None, None) => return false,
        };
        let passed = now_ms.saturating_sub(last_ms).min(LASTING_MS / 2);
        let for_ms = if better.is_some() { for_ms + passed } else { for_ms.saturating_sub(passed) };
        let for_ms = for_ms.min(LASTING_MS);
        self.better = (better.is_some() || for_ms > 0).then_some((address, for_ms, now_ms));
        better.is_some() && for_ms >= LASTING_MS
    }
}
