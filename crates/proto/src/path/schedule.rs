//! When which path is probed. The path in use: five times a second while
//! packets flow, as seldom as its NAT allows when idle. Others that work: now
//! and then, to have a warm one. Those that never answered: one quick burst
//! (which, done by both ends at once, opens NATs), then short ones at growing
//! intervals, out of a budget.

use std::net::SocketAddr;

use super::candidate::{Candidate, DEAD_AFTER, Phase};
use super::{PathReason, Paths};
use crate::link::frame::Tally;

/// Between probes of the path in use while packets flow.
const ACTIVE_MS: u64 = 200;
/// And after a miss.
const DOUBT_MS: u64 = 100;
/// When none flow any more: a quarter of the time since they did, this at least.
const RECENT_MS: u64 = 2_000;
/// Between probes of the path in use when idle, if it is a detour: no NAT has to
/// be kept open, and nobody is to be kept busy. Other detours get none.
const IDLE_DETOUR_MS: u64 = 120_000;
/// Between probes of others that work, while packets flow, lately, and idle.
const STANDBY_MS: [u64; 3] = [2_000, 10_000, 60_000];
/// The same of a detour lately: it costs the nodes between as well.
const STANDBY_DETOUR_MS: u64 = 30_000;
/// Of one that failed lately, while packets flow: it must not look well only
/// because it is seldom looked at.
const WATCHED_MS: u64 = 400;
/// And lately, if it loses probes: others may ask for a way over this link, and
/// must not do without it for long after the loss is over.
const WATCHED_RECENT_MS: u64 = 1_000;
/// Pauses within the first burst.
const FIRST_GAPS_MS: [u64; 6] = [75, 75, 150, 300, 600, 1_200];
/// Probes and pause of later bursts.
const LATER_PROBES: u8 = 3;
const LATER_GAP_MS: u64 = 100;
/// Pause after a burst, doubled each time, and at most.
const RETRY_MS: u64 = 5_000;
const RETRY_MOST_MS: u64 = 60_000;
/// The same while there is a direct path: only a better one could be found.
const RETRY_CONTENT_MS: u64 = 300_000;
/// Bursts start over at most this often because the peer asks.
pub(super) const BURST_AGAIN_MS: u64 = 5_000;
/// Between idle probes at first: NATs forget UDP after 30 s at the earliest
/// (RFC 4787 wants 2 minutes, many have 30 s).
pub(super) const KEEPALIVE_MS: u64 = 20_000;
/// And at least, when a NAT turned out to forget sooner.
pub(super) const KEEPALIVE_LEAST_MS: u64 = 5_000;
/// Misses in a row after which a peer is held to be lost, if no path works.
const LOST_AFTER: u32 = 3;
/// Idle probes of all peers fall on multiples of this, to wake seldom.
const GATHER_MS: u64 = 2_000;

/// How busy a link is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pace {
    /// Packets flowed within the last seconds.
    Flowing,
    /// Within the last minute, or the session is new.
    Recent {
        /// Since the last packet.
        quiet_ms: u64,
    },
    /// Held up without traffic.
    Idle,
    /// Nobody is interested: no probes.
    Asleep,
}

/// Probes to addresses that never answered: [`Budget::MOST`] at once, two a
/// second in the long run, for each peer.
#[derive(Debug, Default)]
pub(super) struct Budget {
    /// When it will be full again.
    full_ms: u64,
}

impl Budget {
    /// Enough for seven candidates' first bursts.
    pub(super) const MOST: u64 = 49;
    const EACH_MS: u64 = 500;

    fn ready_ms(&self) -> u64 {
        (self.full_ms + Self::EACH_MS).saturating_sub(Self::MOST * Self::EACH_MS)
    }

    fn take(&mut self, now_ms: u64) {
        self.full_ms = self.full_ms.max(now_ms) + Self::EACH_MS;
    }
}

impl Candidate {
    /// True when a probe to it is one to a stranger.
    pub(super) fn unproven(&self) -> bool {
        !self.detour() && self.last_answer_ms == 0
    }

    fn next_ms(&self, active: bool, pace: Pace, content: bool) -> u64 {
        if pace == Pace::Asleep {
            return u64::MAX;
        }
        let asked = self.due_ms.unwrap_or(u64::MAX);
        let usual = if active {
            self.last_sent_ms + self.active_interval_ms(pace)
        } else {
            match self.phase {
                Phase::Fresh => 0,
                Phase::Burst { sent, first: true } => {
                    let gap = FIRST_GAPS_MS.get(usize::from(sent).saturating_sub(1));
                    gap.map_or(u64::MAX, |gap| self.last_sent_ms + gap)
                }
                Phase::Burst { sent, .. } if sent < LATER_PROBES => {
                    self.last_sent_ms + LATER_GAP_MS
                }
                Phase::Burst { .. } => u64::MAX,
                Phase::Proven => self.last_sent_ms.saturating_add(self.standby_interval_ms(pace)),
                Phase::Lapsed { until_ms } if content => {
                    until_ms.max(self.last_sent_ms + RETRY_CONTENT_MS)
                }
                Phase::Lapsed { until_ms } => until_ms,
            }
        };
        let quiet = pace == Pace::Idle && self.phase == Phase::Proven && self.misses == 0;
        let usual =
            if quiet && usual < u64::MAX { usual.next_multiple_of(GATHER_MS) } else { usual };
        usual.min(asked)
    }

    fn active_interval_ms(&self, pace: Pace) -> u64 {
        if self.last_sent_ms == 0 {
            return 0;
        }
        let never = self.last_answer_ms == 0 && self.misses == 0;
        match (pace, self.misses) {
            (Pace::Flowing, 0) => ACTIVE_MS,
            (Pace::Flowing, 1..=10) => DOUBT_MS,
            (Pace::Recent { .. }, _) if never => ACTIVE_MS,
            (Pace::Recent { quiet_ms }, 0) => (quiet_ms / 4).clamp(RECENT_MS, self.keepalive_ms),
            (Pace::Idle, 0) if self.detour() => IDLE_DETOUR_MS,
            (Pace::Idle, 0) => self.keepalive_ms,
            (Pace::Recent { .. } | Pace::Idle, 1..=5) => 500,
            (Pace::Flowing | Pace::Recent { .. }, _) => 1_000,
            (_, _) => RETRY_MS,
        }
    }

    fn standby_interval_ms(&self, pace: Pace) -> u64 {
        let failed = self.failures(self.last_sent_ms) >= 0.25;
        match (pace, self.misses) {
            (Pace::Flowing, _) if failed => WATCHED_MS,
            (Pace::Flowing, 0) => STANDBY_MS[0],
            (Pace::Recent { .. }, 0) if self.detour() => STANDBY_DETOUR_MS,
            (Pace::Recent { .. }, 0) if failed && self.lossy(self.last_sent_ms) => {
                WATCHED_RECENT_MS
            }
            (Pace::Recent { .. }, 0) => STANDBY_MS[1],
            (Pace::Idle, _) if self.detour() => u64::MAX,
            (Pace::Idle | Pace::Asleep, 0) => STANDBY_MS[2],
            (_, _) => 300,
        }
    }

    /// When a burst whose probes are all sent is over.
    fn burst_ends_ms(&self) -> Option<u64> {
        let Phase::Burst { sent, first } = self.phase else { return None };
        let last = if first { FIRST_GAPS_MS.len() as u8 + 1 } else { LATER_PROBES };
        (sent >= last).then_some(self.last_sent_ms + self.timeout_ms())
    }

    /// A burst that is over, or a working path that no longer is: wait.
    fn lapse(&mut self, active: bool, now_ms: u64) {
        let over = match self.phase {
            Phase::Burst { .. } => self.burst_ends_ms().is_some_and(|end| now_ms >= end),
            Phase::Proven => self.misses >= DEAD_AFTER,
            _ => false,
        };
        if over && !active {
            let wait_ms = (RETRY_MS << self.retries.min(6)).min(RETRY_MOST_MS);
            self.retries += 1;
            self.phase = Phase::Lapsed { until_ms: now_ms + wait_ms };
        }
    }
}

impl Paths {
    /// True when there is nothing to look for: the path in use is direct.
    fn content(&self) -> bool {
        self.current().is_some_and(|path| !path.detour() && path.phase == Phase::Proven)
    }

    fn due_at(&self, path: &Candidate, pace: Pace) -> u64 {
        let active = Some(path.address) == self.active;
        let at = path.next_ms(active, pace, self.content());
        if path.unproven() && !active { at.max(self.budget.ready_ms()) } else { at }
    }

    /// An address to probe now, if any; report the probe by [`Self::sent`] and
    /// call again until `None`.
    pub(crate) fn due(&self, pace: Pace, now_ms: u64) -> Option<SocketAddr> {
        let due = |path: &&Candidate| self.due_at(path, pace) <= now_ms;
        self.list.iter().find(due).map(|path| path.address)
    }

    /// A probe went to `to`; `before` it this was sent to the peer.
    pub(crate) fn sent(
        &mut self,
        to: SocketAddr,
        (id, token): (u32, u64),
        before: Tally,
        now_ms: u64,
        now_us: u64,
    ) {
        let active = self.active;
        let Some(path) = self.list.iter_mut().find(|path| path.address == to) else {
            return;
        };
        self.punch |= !path.detour() && matches!(path.phase, Phase::Lapsed { .. });
        if path.unproven() && active != Some(to) {
            self.budget.take(now_ms);
        }
        path.sent(id, token, before, now_ms, now_us);
    }

    /// Counts what stayed unanswered. At the first miss of the path in use all
    /// others that ever worked are asked whether they do now.
    pub(crate) fn check(&mut self, now_ms: u64) {
        let active = self.active;
        let mut alarm = false;
        for path in &mut self.list {
            let in_use = Some(path.address) == active;
            alarm |= path.check(now_ms) && in_use;
            path.lapse(in_use, now_ms);
        }
        if alarm && now_ms >= self.alarm_ms + 500 {
            self.alarm_ms = now_ms;
            for path in &mut self.list {
                if Some(path.address) != active && (path.detour() || path.last_answer_ms > 0) {
                    path.wake(now_ms);
                }
            }
        }
    }

    /// True once after dead direct addresses came up for another try while
    /// traffic goes over other nodes: both ends must try at the same time.
    pub(crate) fn take_punch(&mut self) -> bool {
        std::mem::take(&mut self.punch) && self.is_detour()
    }

    /// When to call [`Self::check`], [`Self::due`] and [`Self::choose`] next.
    pub(crate) fn next_ms(&self, pace: Pace) -> u64 {
        if pace == Pace::Asleep {
            return u64::MAX;
        }
        let probes = self.list.iter().map(|path| self.due_at(path, pace));
        let losses = self.list.iter().filter_map(Candidate::next_loss_ms);
        let others = self.list.iter().filter(|path| Some(path.address) != self.active);
        let bursts = others.filter_map(Candidate::burst_ends_ms);
        probes.chain(losses).chain(bursts).min().unwrap_or(u64::MAX)
    }

    /// True when the path in use is silent and no other one works: a handshake
    /// should be tried. Once for each silence.
    pub(crate) fn lost(&mut self, now_ms: u64) -> bool {
        let silent = self.current().is_some_and(|path| path.misses >= LOST_AFTER)
            && !self.list.iter().any(|path| path.misses == 0 && path.fresh(now_ms));
        let before = std::mem::replace(&mut self.lost, silent);
        silent && !before
    }
}

impl PathReason {
    /// True when the path before is held to have failed.
    pub(super) fn is_failure(self) -> bool {
        matches!(self, Self::Silent | Self::DataLost | Self::Lossy | Self::Faster)
    }
}
