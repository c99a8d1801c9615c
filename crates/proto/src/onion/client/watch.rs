//! What is known of one circuit: the times of its hops' answers, what got lost
//! on the way to each, and whether it was left before.
//!
//! In rounds all hops are asked at once, so that what one adds to the hop before
//! it, in time and in loss, is a difference of figures of one moment. All figures
//! are measured inside the circuit itself. Deliberately not here: what follows
//! from them (`judge`).

use std::collections::VecDeque;
use std::sync::atomic::Ordering;

use super::super::circuit::ClientCircuit;
use super::super::payload::Request;
use super::judge::IDLE_MS;
use super::share::Share;
use super::{HopView, Running, ms};

/// Added to what an answer should take before it counts as missing, ms.
const GRACE_MS: u64 = 40;
const LEAST_VARIANCE_MS: u64 = 30;
/// However much times vary, twice the usual is waited in silence, and at least
/// twice this, us.
const LEAST_LIMIT_US: u64 = 60_000;
/// How long a circuit that was left is watched as closely as the active one, ms.
const AFTER_MS: u64 = 5_000;
/// A circuit that was left for being bad is not preferred for this long, ms;
/// twice as long each time.
const SHUN_MS: u64 = 20_000;
const MOST_SHUNS: u32 = 4;

#[derive(Debug, Clone, Default)]
pub(super) struct HopWatch {
    pub(super) srtt_us: u64,
    least_us: u64,
    var_us: u64,
    pub(super) heard_us: u64,
    pub(super) asked_us: u64,
    /// Smoothed time of answers in rounds.
    shown_us: u64,
    echoes: Share,
    /// Cells on the way to it, as it counts them in rounds.
    forward: Share,
}

impl HopWatch {
    fn rtt(&mut self, sample_us: u64, now_us: u64) {
        self.heard_us = now_us;
        if self.least_us == 0 || sample_us < self.least_us {
            self.least_us = sample_us.max(1);
        }
        if self.srtt_us == 0 {
            (self.srtt_us, self.var_us) = (sample_us.max(1), sample_us / 2);
        } else {
            // RFC 6298 section 2.
            let off = self.srtt_us.abs_diff(sample_us);
            self.var_us = (3 * self.var_us + off) / 4;
            self.srtt_us = ((7 * self.srtt_us + sample_us) / 8).max(1);
        }
    }

    /// An answer in a round.
    fn show(&mut self, sample_us: u64, forward: (u64, u64), now_us: u64) {
        self.shown_us = match self.shown_us {
            0 => sample_us.max(1),
            before => (3 * before + sample_us) / 4,
        };
        self.forward.count(forward, now_us);
    }

    /// How long an answer may take, us.
    fn limit_us(&self) -> u64 {
        self.srtt_us + (4 * self.var_us).max(LEAST_VARIANCE_MS * 1000) + GRACE_MS * 1000
    }
}

struct Echo {
    token: u64,
    hop: usize,
    sent_us: u64,
    /// Counted as missing already.
    missing: bool,
    /// Asked together with all other hops.
    round: bool,
}

/// What is known of one circuit.
pub(super) struct Watch {
    pub(super) hops: Vec<HopWatch>,
    echoes: VecDeque<Echo>,
    next_token: u64,
    /// When all were asked.
    pub(super) round_us: u64,
    /// Loss forward as the exit says, and backward as we see it.
    pub(super) loss: [Share; 2],
    /// Not preferred until then, ms, and how often it was.
    shunned_ms: u64,
    shuns: u32,
    left_ms: u64,
    pub(super) worse_since: Option<u64>,
    pub(super) better_since: Option<u64>,
}

impl Watch {
    /// After a build in which hop after hop took so long.
    pub(super) fn new(took_us: &[u32], now_us: u64) -> Self {
        let hop = |took: &u32| {
            let mut hop = HopWatch::default();
            hop.rtt(u64::from(*took), now_us);
            hop.asked_us = now_us;
            hop.shown_us = hop.srtt_us;
            hop
        };
        Self {
            hops: took_us.iter().map(hop).collect(),
            echoes: VecDeque::new(),
            next_token: 1,
            round_us: now_us,
            loss: Default::default(),
            shunned_ms: 0,
            shuns: 0,
            left_ms: 0,
            worse_since: None,
            better_since: None,
        }
    }

    /// An echo to hop `hop`.
    pub(super) fn ask(
        &mut self,
        circuit: &ClientCircuit,
        hop: usize,
        active: Option<u64>,
        round: bool,
        now_us: u64,
    ) -> Vec<u8> {
        let token = self.next_token;
        self.next_token += 1;
        self.hops[hop].asked_us = now_us;
        self.echoes.push_back(Echo { token, hop, sent_us: now_us, missing: false, round });
        circuit.say(hop, &Request::Echo { token, active }.encode(), ms(now_us))
    }

    /// Takes the answer to an echo; how long it took, us, when it was ours.
    pub(super) fn answered(
        &mut self,
        hop: usize,
        token: u64,
        forward: (u64, u64),
        now_us: u64,
    ) -> Option<u64> {
        let at = self.echoes.iter().position(|e| e.token == token && e.hop == hop)?;
        let echo = self.echoes.remove(at)?;
        let watch = &mut self.hops[hop];
        let sample_us = now_us.saturating_sub(echo.sent_us);
        watch.rtt(sample_us, now_us);
        if echo.missing {
            watch.echoes.echo_late(now_us);
        } else {
            watch.echoes.echo(false, now_us);
        }
        if echo.round {
            watch.show(sample_us, forward, now_us);
        }
        if hop + 1 == self.hops.len() {
            self.loss[0].count(forward, now_us);
        }
        Some(sample_us)
    }

    /// The larger of both directions; by echoes while nothing else is sent.
    pub(super) fn loss(&self, now_us: u64) -> f32 {
        let cells = self.loss.iter().filter_map(|share| share.of_cells(now_us));
        let echoes = || self.hops.last().map_or(0.0, |hop| hop.echoes.of_echoes(now_us));
        cells.reduce(f32::max).unwrap_or_else(echoes)
    }

    /// The loss from the hop before to each: of cells as they count them, else of
    /// echoes. Who is behind a hop that loses echoes is not told by its own.
    fn losses(&self, now_us: u64) -> Vec<f32> {
        let (mut before, mut blamed) = (0.0, false);
        let each = self.hops.iter().map(|hop| match hop.forward.of_cells(now_us) {
            Some(loss) => {
                let own = ((loss - before) / (1.0 - before).max(0.01)).max(0.0);
                before = loss;
                own
            }
            None if blamed => 0.0,
            None => {
                let loss = hop.echoes.of_echoes(now_us);
                blamed = loss > 0.0;
                loss
            }
        });
        each.collect()
    }

    /// It was left for being bad.
    pub(super) fn shun(&mut self, now: u64) {
        self.left_ms = now;
        self.shunned_ms = now + (SHUN_MS << self.shuns.min(MOST_SHUNS));
        self.shuns += 1;
    }

    /// True right after it was left.
    pub(super) fn was_left(&self, now: u64) -> bool {
        self.shuns > 0 && now < self.left_ms + AFTER_MS
    }

    /// False while it is shunned.
    pub(super) fn is_trusted(&self, now: u64) -> bool {
        now >= self.shunned_ms
    }

    pub(super) fn srtt_us(&self) -> u64 {
        self.hops.last().map_or(u64::MAX, |hop| hop.srtt_us)
    }

    /// The lower, the better a place to move to.
    pub(super) fn rank(&self, now_us: u64) -> (bool, u64) {
        let silent = self.hops.last().map_or(u64::MAX, |hop| now_us - hop.heard_us.min(now_us));
        (silent > 4 * IDLE_MS * 1000, self.srtt_us())
    }

    /// Marks what did not come in time; how many of the exit's echoes did not
    /// since it last answered.
    pub(super) fn overdue(&mut self, now_us: u64) -> usize {
        let last = self.hops.len() - 1;
        let mut count = 0;
        for echo in &mut self.echoes {
            let limit = self.hops[echo.hop].limit_us();
            if now_us < echo.sent_us + limit {
                continue;
            }
            if !echo.missing {
                echo.missing = true;
                self.hops[echo.hop].echoes.echo(true, now_us);
            }
            count += usize::from(echo.hop == last && echo.sent_us > self.hops[last].heard_us);
        }
        // Late answers still tell the time for a while.
        while self.echoes.front().is_some_and(|e| now_us > e.sent_us + 10_000_000) {
            self.echoes.pop_front();
        }
        count
    }

    /// True when the exit owes an answer and nothing at all came from it since;
    /// `heard_us`: when anything last did.
    pub(super) fn is_silent(&self, heard_us: u64, now_us: u64) -> bool {
        let last = self.hops.len() - 1;
        let hop = &self.hops[last];
        let limit = hop.limit_us().min(2 * hop.srtt_us.max(LEAST_LIMIT_US) + GRACE_MS * 1000);
        // What was under way when a node died arrives after the first echo that
        // does not: so each of them is looked at.
        self.echoes.iter().any(|echo| {
            echo.hop == last
                && echo.sent_us > hop.heard_us
                && now_us >= echo.sent_us + limit
                && heard_us < echo.sent_us + limit / 2
        })
    }

    /// True when an echo to the exit is missing that was sent since it was heard.
    pub(super) fn is_exit_missing(&self) -> bool {
        let last = self.hops.len() - 1;
        let heard_us = self.hops[last].heard_us;
        self.echoes.iter().any(|e| e.hop == last && e.missing && e.sent_us > heard_us)
    }

    /// The first hop that has not answered since `since_us` though asked.
    pub(super) fn culprit(&self, since_us: u64) -> Option<usize> {
        self.hops.iter().position(|hop| hop.asked_us >= since_us && hop.heard_us < since_us)
    }
}

impl Running {
    /// True when a node other than the exit is on both.
    pub(super) fn shares_with(&self, other: &Self) -> bool {
        let middle = |running: &Self| running.path.len().saturating_sub(1);
        let (own, others) = (&self.path[..middle(self)], &other.path[..middle(other)]);
        own.iter().any(|hop| others.iter().any(|known| known.node == hop.node))
    }

    pub(super) fn view(&self, now: u64) -> Vec<HopView> {
        let losses = self.watch.losses(now * 1000);
        let figure = |us: u64| (us > 0).then_some(us.min(u64::from(u32::MAX)) as u32);
        let hop = |(i, watch): (usize, &HopWatch)| HopView {
            node: self.path[i].node,
            rtt_us: figure(watch.shown_us),
            least_us: figure(watch.least_us),
            loss: losses[i],
            silent_ms: Some(now.saturating_sub(ms(watch.heard_us))),
            hash: self.hashes[i],
        };
        self.watch.hops.iter().enumerate().map(hop).collect()
    }

    /// Since anything came from the exit.
    pub(super) fn silent_ms(&self, now: u64) -> u64 {
        now.saturating_sub(self.circuit.last_rx_ms.load(Ordering::Relaxed))
    }
}
