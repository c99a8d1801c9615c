//! One path: probes under way, round trip, loss, state.

use std::net::SocketAddr;
use std::time::Duration;

use super::schedule::{KEEPALIVE_LEAST_MS, KEEPALIVE_MS};
use super::{Origin, PathKind, PathState, PathStats};
use crate::link::frame::Tally;

/// Probes remembered, answered or not.
const MAX_PROBES: usize = 8;
/// Misses in a row that make a path suspect.
pub(super) const SUSPECT_AFTER: u32 = 2;
/// Misses in a row after which a path that is not in use counts as dead.
pub(super) const DEAD_AFTER: u32 = 6;
/// An answer is awaited this long at least…
const MIN_TIMEOUT_MS: u64 = 250;
/// …and this long while the round trip is unknown.
const FIRST_TIMEOUT_MS: u64 = 1_000;
/// An answer not older than this shows that a path works now.
const FRESH_MS: u64 = 3_000;
/// Fewest probes that say something about loss.
const MIN_SAMPLES: u32 = 16;
/// After so many answered in a row what was lost before them is over.
const CLEAN_RUN: u32 = 32;
/// Of probes this old half as many count: of a path that is seldom looked at, a
/// loss of long ago says nothing.
const SAMPLES_HALVE_MS: f64 = 30_000.0;
/// What is added to the cost of a detour, µs: others carry its load.
const TCP_COST_US: u64 = 5_000;
const RELAY_COST_US: u64 = 10_000;
/// Cost of each percent lost, µs: 5 % weigh as much as 250 ms.
const LOSS_COST_US: f64 = 50_000.0;
/// Less than this is not held against a path.
const LOSS_FLOOR: f64 = 0.01;
/// Cost of a path that swallowed data, while that is remembered.
const BARRED_COST_US: u64 = 10_000_000;
/// Answers farther apart than this are few.
const SPARSE_MS: u64 = 5_000;
/// Failures count half after this.
const FORGIVE_MS: f64 = 60_000.0;

/// Where a path is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// To be probed.
    Fresh,
    /// Being probed; `sent` so far, in the first burst or a shorter later one.
    Burst { sent: u8, first: bool },
    /// It answered.
    Proven,
    /// It does not; the next burst is at this time.
    Lapsed { until_ms: u64 },
}

#[derive(Debug, Clone, Copy)]
struct Probe {
    id: u32,
    token: u64,
    sent_ms: u64,
    sent_us: u64,
    /// What was sent to the peer before it.
    before: Tally,
    lost: bool,
}

/// What an answer told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Answer {
    /// Which path answered.
    pub(crate) path: SocketAddr,
    /// Its round trip.
    pub(crate) rtt: Duration,
    /// True for the path in use.
    pub(crate) active: bool,
    /// Our address as seen by the peer, when that is news.
    pub(crate) observed: Option<SocketAddr>,
    /// What was sent to the peer before the probe.
    pub(crate) sent: Tally,
}

/// See the module's description.
#[derive(Debug)]
pub(super) struct Candidate {
    pub(super) address: SocketAddr,
    /// Anything but direct is a detour.
    pub(super) kind: PathKind,
    /// Bits of [`Origin`].
    pub(super) origins: u8,
    pub(super) phase: Phase,
    probes: Vec<Probe>,
    /// Smoothed round trip and its variation, RFC 6298 with quicker weights; 0
    /// until measured.
    srtt_us: u64,
    rttvar_us: u64,
    /// The last 64 probes, newest lowest; a set bit is a lost one.
    history: u64,
    /// How many of them count, at most 64, as of the newest.
    samples: (f64, u64),
    /// Unanswered in a row.
    pub(super) misses: u32,
    /// Sent before the first of them was.
    pub(super) first_miss_ms: u64,
    pub(super) last_sent_ms: u64,
    pub(super) last_answer_ms: u64,
    /// Since when it answers without a pause.
    pub(super) valid_since_ms: u64,
    /// Bursts without answer.
    pub(super) retries: u32,
    /// To be probed at this time whatever the schedule says.
    pub(super) due_ms: Option<u64>,
    pub(super) observed: Option<SocketAddr>,
    /// Between probes when idle: shorter than the NAT forgets.
    pub(super) keepalive_ms: u64,
    /// How often it failed lately, halved every minute; as of then.
    failures: (f64, u64),
    /// When traffic left it.
    left_ms: u64,
    /// Loss of data seen when it was in use, and how long to remember it.
    data_loss: Option<(f64, u64)>,
    barred_until_ms: u64,
    pub(super) mtu: Option<u32>,
}

impl Candidate {
    pub(super) fn new(address: SocketAddr, origin: Origin) -> Self {
        Self {
            address,
            kind: PathKind::of(address),
            origins: origin as u8,
            phase: Phase::Fresh,
            probes: Vec::new(),
            srtt_us: 0,
            rttvar_us: 0,
            history: 0,
            samples: (0.0, 0),
            misses: 0,
            first_miss_ms: 0,
            last_sent_ms: 0,
            last_answer_ms: 0,
            valid_since_ms: 0,
            retries: 0,
            due_ms: None,
            observed: None,
            keepalive_ms: KEEPALIVE_MS,
            failures: (0.0, 0),
            left_ms: 0,
            data_loss: None,
            barred_until_ms: 0,
            mtu: None,
        }
    }

    pub(super) fn detour(&self) -> bool {
        self.kind != PathKind::Direct
    }

    pub(super) fn state(&self) -> PathState {
        match self.phase {
            Phase::Fresh => PathState::Untried,
            Phase::Burst { .. } => PathState::Probing,
            Phase::Proven if self.misses < SUSPECT_AFTER => PathState::Valid,
            Phase::Proven if self.misses < DEAD_AFTER => PathState::Suspect,
            Phase::Proven | Phase::Lapsed { .. } => PathState::Dead,
        }
    }

    /// It answered within the last seconds.
    pub(super) fn fresh(&self, now_ms: u64) -> bool {
        self.last_answer_ms > 0 && now_ms < self.last_answer_ms + FRESH_MS
    }

    /// A try is due now, also when it had lapsed.
    pub(super) fn wake(&mut self, now_ms: u64) {
        if matches!(self.phase, Phase::Lapsed { .. }) {
            self.phase = Phase::Fresh;
        }
        self.due_ms = Some(now_ms);
    }

    pub(super) fn timeout_ms(&self) -> u64 {
        if self.srtt_us == 0 {
            return FIRST_TIMEOUT_MS;
        }
        let usual = self.srtt_us + (4 * self.rttvar_us).max(self.srtt_us / 2 + 100_000);
        (usual / 1000).max(MIN_TIMEOUT_MS)
    }

    /// A probe went out.
    pub(super) fn sent(&mut self, id: u32, token: u64, before: Tally, now_ms: u64, now_us: u64) {
        self.due_ms = None;
        self.last_sent_ms = now_ms;
        self.phase = match self.phase {
            Phase::Fresh => Phase::Burst { sent: 1, first: true },
            Phase::Burst { sent, first } => Phase::Burst { sent: sent.saturating_add(1), first },
            Phase::Lapsed { .. } => Phase::Burst { sent: 1, first: false },
            Phase::Proven => Phase::Proven,
        };
        if self.probes.len() >= MAX_PROBES {
            self.probes.remove(0);
        }
        self.probes.push(Probe {
            id,
            token,
            sent_ms: now_ms,
            sent_us: now_us,
            before,
            lost: false,
        });
    }

    /// When the next unanswered probe will count as lost.
    pub(super) fn next_loss_ms(&self) -> Option<u64> {
        let timeout = self.timeout_ms();
        self.probes.iter().filter(|probe| !probe.lost).map(|probe| probe.sent_ms + timeout).min()
    }

    /// Counts what is overdue; true when there was any.
    pub(super) fn check(&mut self, now_ms: u64) -> bool {
        let timeout = self.timeout_ms();
        let mut any = false;
        for at in 0..self.probes.len() {
            let probe = self.probes[at];
            if probe.lost || now_ms < probe.sent_ms + timeout {
                continue;
            }
            self.probes[at].lost = true;
            if probe.sent_ms < self.last_answer_ms {
                // A later one was answered: lost, but the path works.
                self.note(true, now_ms);
                continue;
            }
            any = true;
            if self.misses == 0 {
                self.first_miss_ms = probe.sent_ms;
            }
            self.misses += 1;
            if self.phase == Phase::Proven {
                self.note(true, now_ms);
            }
        }
        any
    }

    fn note(&mut self, lost: bool, now_ms: u64) {
        self.history = self.history << 1 | u64::from(lost);
        self.samples = ((self.samples(now_ms) + 1.0).min(64.0), now_ms);
    }

    /// How many probes count by now.
    fn samples(&self, now_ms: u64) -> f64 {
        let (count, at) = self.samples;
        count * 0.5f64.powf(now_ms.saturating_sub(at) as f64 / SAMPLES_HALVE_MS)
    }

    pub(super) fn answered(
        &mut self,
        id: u32,
        token: u64,
        now_ms: u64,
        now_us: u64,
    ) -> Option<Answer> {
        let at = self.probes.iter().position(|probe| (probe.id, probe.token) == (id, token))?;
        let probe = self.probes.remove(at);
        let rtt_us = now_us.saturating_sub(probe.sent_us).max(1);
        self.proven(Some(rtt_us), now_ms);
        if probe.lost {
            // Late, as on a busy machine, is not lost: the last one noted is taken back.
            self.history &= self.history.wrapping_sub(1);
        } else {
            self.note(false, now_ms);
        }
        Some(Answer {
            path: self.address,
            rtt: Duration::from_micros(rtt_us),
            active: false,
            observed: None,
            sent: probe.before,
        })
    }

    /// It answered, with this round trip if known.
    pub(super) fn proven(&mut self, rtt_us: Option<u64>, now_ms: u64) {
        if self.phase != Phase::Proven || self.misses >= SUSPECT_AFTER {
            self.valid_since_ms = now_ms;
            self.history = 0;
            self.samples = (0.0, now_ms);
        }
        let quiet = now_ms.saturating_sub(self.last_answer_ms) >= SPARSE_MS;
        self.phase = Phase::Proven;
        self.misses = 0;
        self.retries = 0;
        self.last_answer_ms = now_ms;
        let Some(rtt_us) = rtt_us else { return };
        if self.srtt_us == 0 {
            self.srtt_us = rtt_us;
            self.rttvar_us = rtt_us / 2;
        } else {
            let off = self.srtt_us.abs_diff(rtt_us);
            self.rttvar_us = (3 * self.rttvar_us + off) / 4;
            // Queues and busy machines only ever add: where samples are few, a
            // shorter one is believed at once, or a moment of load would show
            // for minutes.
            let before = if quiet && rtt_us < self.srtt_us { 1 } else { 3 };
            self.srtt_us = (before * self.srtt_us + (4 - before) * rtt_us) / 4;
        }
    }

    /// Probes sent under a session that is gone are never answered.
    pub(super) fn forget_probes(&mut self) {
        self.probes.clear();
        self.misses = 0;
    }

    /// What the peer sees us as; `Some` when it is news. A mapping that changed
    /// although probes kept it up was forgotten by a NAT: probe more often.
    pub(super) fn note_observed(
        &mut self,
        observed: Option<SocketAddr>,
        now_ms: u64,
    ) -> Option<SocketAddr> {
        if observed == self.observed {
            return None;
        }
        let since_sent = now_ms.saturating_sub(self.last_sent_ms);
        if self.observed.is_some() && since_sent < KEEPALIVE_MS {
            self.keepalive_ms = (self.keepalive_ms * 3 / 5).max(KEEPALIVE_LEAST_MS);
        }
        self.observed = observed;
        observed
    }

    pub(super) fn rtt(&self) -> Option<Duration> {
        (self.srtt_us > 0).then(|| Duration::from_micros(self.srtt_us))
    }

    /// Share of probes lost lately; one may always be.
    pub(super) fn echo_loss(&self, now_ms: u64) -> Option<f64> {
        let samples = self.samples(now_ms) as u32;
        if samples < MIN_SAMPLES {
            return None;
        }
        let mask = if samples >= 64 { u64::MAX } else { (1 << samples) - 1 };
        let seen = self.history & mask;
        if samples >= CLEAN_RUN && seen.trailing_zeros() >= CLEAN_RUN {
            return Some(0.0);
        }
        Some(f64::from(seen.count_ones().saturating_sub(1)) / f64::from(samples))
    }

    /// Probes of it are lost now and then.
    pub(super) fn lossy(&self, now_ms: u64) -> bool {
        self.echo_loss(now_ms).is_some_and(|loss| loss >= LOSS_FLOOR)
    }

    /// Of probes, and of data while it was in use.
    pub(super) fn loss(&self, now_ms: u64) -> Option<f64> {
        let remembered = self.data_loss.filter(|(_, until)| now_ms < *until).map(|(loss, _)| loss);
        match (remembered, self.echo_loss(now_ms)) {
            (Some(a), Some(b)) => Some(a.max(b)),
            (a, b) => a.or(b),
        }
    }

    /// What paths are compared by; `None` until measured.
    pub(super) fn cost_us(&self, now_ms: u64) -> Option<u64> {
        self.cost_with_loss_us(self.loss(now_ms).unwrap_or(0.0), now_ms)
    }

    /// As [`Self::cost_us`] with another figure for loss.
    pub(super) fn cost_with_loss_us(&self, loss: f64, now_ms: u64) -> Option<u64> {
        if self.srtt_us == 0 {
            return None;
        }
        let loss_us = if loss < LOSS_FLOOR { 0.0 } else { loss * 100.0 * LOSS_COST_US };
        let detour_us = match self.kind {
            PathKind::Direct => 0,
            PathKind::Tcp => TCP_COST_US,
            PathKind::Relay => RELAY_COST_US,
        };
        let barred_us = if self.barred(now_ms) { BARRED_COST_US } else { 0 };
        Some(self.srtt_us + loss_us as u64 + detour_us + barred_us)
    }

    /// It swallowed data not long ago.
    pub(super) fn barred(&self, now_ms: u64) -> bool {
        now_ms < self.barred_until_ms
    }

    /// Failures lately, faded with time.
    pub(super) fn failures(&self, now_ms: u64) -> f64 {
        let (count, at) = self.failures;
        count * 0.5f64.powf(now_ms.saturating_sub(at) as f64 / FORGIVE_MS)
    }

    /// Traffic leaves it because it failed; with `loss` of data, if that is
    /// why, and barred if it swallowed all.
    pub(super) fn failed(&mut self, loss: Option<f64>, barred: bool, now_ms: u64) {
        self.failures = (self.failures(now_ms) + 1.0, now_ms);
        self.left_ms = now_ms;
        let remember_ms = 4 * self.hold_ms(now_ms);
        if let Some(loss) = loss {
            self.data_loss = Some((loss, now_ms + remember_ms));
        }
        if barred {
            self.barred_until_ms = now_ms + 2 * remember_ms;
        }
    }

    /// How long it has to work before traffic comes back: none without
    /// failures, 4 s after one, twice that for each more, 2 minutes at most.
    fn hold_ms(&self, now_ms: u64) -> u64 {
        let failures = self.failures(now_ms);
        if failures < 0.25 {
            return 0;
        }
        (2_000.0 * 2f64.powf(failures.min(6.0))).min(120_000.0) as u64
    }

    /// When traffic may come back to it.
    pub(super) fn eligible_ms(&self, now_ms: u64) -> u64 {
        let hold = self.hold_ms(now_ms);
        if hold == 0 { 0 } else { self.valid_since_ms.max(self.left_ms) + hold }
    }

    pub(super) fn stats(&self, now_ms: u64) -> PathStats {
        let held = self.eligible_ms(now_ms).max(self.barred_until_ms).saturating_sub(now_ms);
        PathStats {
            address: self.address,
            kind: self.kind,
            active: false,
            state: self.state(),
            rtt: self.rtt(),
            loss: self.loss(now_ms),
            cost: self.cost_us(now_ms).map(Duration::from_micros),
            observed: self.observed,
            answered: (self.last_answer_ms > 0)
                .then(|| Duration::from_millis(now_ms.saturating_sub(self.last_answer_ms))),
            held_back: (held > 0).then(|| Duration::from_millis(held)),
        }
    }
}
