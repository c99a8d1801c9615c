//! Watching circuits: echoes to each hop, what they tell, and what follows.
//!
//! The exit's echoes decide where the session goes: when data flows they come
//! every [`EAGER_MS`] in which nothing else came, so that a dead hop is noticed
//! within a round trip and a little. Those of the hops between say which one it
//! was: in rounds all hops are asked at once, so that what one adds to the hop
//! before it, in time and in loss, is a difference of figures of one moment.
//! All figures are measured inside the circuit itself.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;

use rand_core::CryptoRng;

use super::super::circuit::ClientCircuit;
use super::super::payload::{Reason, Request};
use super::{
    Client, ClientEvent, HopView, MoveReason, Phase, Purpose, RETIRE_MS, Running, SUCCESSOR_MS, ms,
};

/// Between echoes to the exit while data flows and nothing comes back, ms.
const EAGER_MS: u64 = 40;
/// Between echoes for the round-trip time while data flows, ms.
const BUSY_MS: u64 = 500;
/// Between rounds in which all hops are asked, of the active circuit and of the
/// standby, while data flows.
const OTHERS_MS: u64 = 1_000;
const STANDBY_MS: u64 = 2_000;
/// Between echoes without traffic, ms.
const IDLE_MS: u64 = 5_000;
/// Data flows if some did within this time, ms.
const USE_MS: u64 = 2_000;
/// Added to what an answer should take before it counts as missing, ms.
const GRACE_MS: u64 = 40;
const LEAST_VARIANCE_MS: u64 = 30;
/// Missing answers in a row that condemn a circuit whatever else arrives.
const MISSING: usize = 4;
/// A silent circuit is given up after this long, ms.
const SUSPECT_MS: u64 = 3_000;
/// Exit and session are given up when no circuit to it answers for this long, ms.
const EXIT_MS: u64 = 1_500;
/// How long both circuits carry everything after a doubt, ms.
const DOUBT_MS: u64 = 2_000;
/// How long a circuit that was left is watched as closely as the active one, ms.
const AFTER_MS: u64 = 5_000;
/// How long a circuit must be worse than the standby to be left, ms.
const WORSE_MS: u64 = 1_000;
/// How long the standby must be a little better, ms.
const BETTER_MS: u64 = 10_000;
/// A loss so large is a reason to leave.
const LOSSY: f32 = 0.025;
/// What was lost counts half after this long, us: of cells, and of echoes.
const CELLS_HALF_US: u64 = 1_500_000;
const ECHOES_HALF_US: u64 = 8_000_000;
/// Cells or echoes that say something about loss, and echoes that must be lost.
const LEAST_CELLS: f32 = 30.0;
const LEAST_ECHOES: f32 = 6.0;
const LEAST_LOST: f32 = 1.8;
/// A circuit that was left for being bad is not preferred for this long, ms;
/// twice as long each time.
const SHUN_MS: u64 = 20_000;
const MOST_SHUNS: u32 = 4;
/// A second standby that is not needed is given up after this long, ms.
const SURPLUS_MS: u64 = 10_000;

/// Which share of what was sent lately got lost.
#[derive(Debug, Clone, Default)]
struct Share {
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
    fn count(&mut self, (sent, received): (u64, u64), now_us: u64) {
        let (sent_before, received_before) = std::mem::replace(&mut self.mark, (sent, received));
        let sent = sent.saturating_sub(sent_before);
        if sent > 0 {
            let received = received.saturating_sub(received_before);
            self.add(sent as f32, sent as f32 - received as f32, CELLS_HALF_US, now_us);
        }
    }

    /// `None` when too little was sent lately to tell.
    fn of_cells(&self, now_us: u64) -> Option<f32> {
        let sent = self.sent * self.fade(CELLS_HALF_US, now_us);
        (sent >= LEAST_CELLS).then(|| (self.lost / self.sent).clamp(0.0, 1.0))
    }

    /// A single lost echo says nothing.
    fn of_echoes(&self, now_us: u64) -> f32 {
        let fade = self.fade(ECHOES_HALF_US, now_us);
        let enough = self.sent * fade >= LEAST_ECHOES && self.lost * fade >= LEAST_LOST;
        if enough { (self.lost / self.sent).clamp(0.0, 1.0) } else { 0.0 }
    }
}

#[derive(Debug, Clone, Default)]
struct HopWatch {
    srtt_us: u64,
    least_us: u64,
    var_us: u64,
    heard_us: u64,
    asked_us: u64,
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
    hops: Vec<HopWatch>,
    echoes: VecDeque<Echo>,
    next_token: u64,
    /// When all were asked.
    round_us: u64,
    /// Loss forward as the exit says, and backward as we see it.
    loss: [Share; 2],
    /// Not preferred until then, ms, and how often it was.
    shunned_ms: u64,
    shuns: u32,
    left_ms: u64,
    worse_since: Option<u64>,
    better_since: Option<u64>,
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

    pub(super) fn answered(&mut self, hop: usize, token: u64, forward: (u64, u64), now_us: u64) {
        let Some(at) = self.echoes.iter().position(|e| e.token == token && e.hop == hop) else {
            return;
        };
        let Some(echo) = self.echoes.remove(at) else { return };
        let watch = &mut self.hops[hop];
        let sample_us = now_us.saturating_sub(echo.sent_us);
        watch.rtt(sample_us, now_us);
        let (counts, lost) = if echo.missing { (0.0, -1.0) } else { (1.0, 0.0) };
        watch.echoes.add(counts, lost, ECHOES_HALF_US, now_us);
        if echo.round {
            watch.show(sample_us, forward, now_us);
        }
        if hop + 1 == self.hops.len() {
            self.loss[0].count(forward, now_us);
        }
    }

    /// The larger of both directions; by echoes while nothing else is sent.
    fn loss(&self, now_us: u64) -> f32 {
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
    fn was_left(&self, now: u64) -> bool {
        self.shuns > 0 && now < self.left_ms + AFTER_MS
    }

    /// False while it is shunned.
    pub(super) fn is_trusted(&self, now: u64) -> bool {
        now >= self.shunned_ms
    }

    fn srtt_us(&self) -> u64 {
        self.hops.last().map_or(u64::MAX, |hop| hop.srtt_us)
    }

    /// The lower, the better a place to move to.
    pub(super) fn rank(&self, now_us: u64) -> (bool, u64) {
        let silent = self.hops.last().map_or(u64::MAX, |hop| now_us - hop.heard_us.min(now_us));
        (silent > 4 * IDLE_MS * 1000, self.srtt_us())
    }

    /// Marks what did not come in time; how many of the exit's echoes did not,
    /// and when the oldest of them was sent.
    fn overdue(&mut self, now_us: u64) -> (usize, Option<u64>) {
        let last = self.hops.len() - 1;
        let (mut count, mut oldest) = (0, None);
        for echo in &mut self.echoes {
            let limit = self.hops[echo.hop].limit_us();
            if now_us < echo.sent_us + limit {
                continue;
            }
            if !echo.missing {
                echo.missing = true;
                self.hops[echo.hop].echoes.add(1.0, 1.0, ECHOES_HALF_US, now_us);
            }
            if echo.hop == last && echo.sent_us > self.hops[last].heard_us {
                count += 1;
                oldest = oldest.or(Some(echo.sent_us));
            }
        }
        // Late answers still tell the time for a while.
        while self.echoes.front().is_some_and(|e| now_us > e.sent_us + 10_000_000) {
            self.echoes.pop_front();
        }
        (count, oldest)
    }

    /// The first hop that has not answered since `since_us` though asked.
    fn culprit(&self, since_us: u64) -> Option<usize> {
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

impl Client {
    /// True when the session carries data.
    pub(super) fn in_use(&self, now: u64) -> bool {
        self.session.as_ref().is_some_and(|(session, _)| {
            let last = session.stream.last_tx_ms.load(Ordering::Relaxed);
            let last = last.max(session.stream.last_rx_ms.load(Ordering::Relaxed));
            last != 0 && now.saturating_sub(last) < USE_MS
        })
    }

    pub(super) fn tick_running(&mut self, now_us: u64, rng: &mut dyn CryptoRng) {
        self.send_echoes(now_us);
        self.judge_active(now_us, rng);
        self.end_doubt(now_us);
        self.relink(now_us);
        self.age(now_us);
        self.give_up_exit(now_us, rng);
    }

    fn send_echoes(&mut self, now_us: u64) {
        let now = ms(now_us);
        let used = self.in_use(now);
        for running in &mut self.running {
            let last = running.path.len() - 1;
            let quiet = running.silent_ms(now);
            let since = |hop: &HopWatch| now_us.saturating_sub(hop.asked_us) / 1000;
            let every = match running.phase {
                Phase::Active if used => OTHERS_MS,
                Phase::Standby if used && running.watch.was_left(now) => OTHERS_MS,
                Phase::Standby if used => STANDBY_MS,
                Phase::Retiring => u64::MAX,
                _ => IDLE_MS,
            };
            let round = now_us.saturating_sub(running.watch.round_us) / 1000 >= every;
            if round {
                running.watch.round_us = now_us;
            }
            for hop in 0..=last {
                let since_ms = since(&running.watch.hops[hop]);
                let due = match (running.phase, hop == last) {
                    (Phase::Active, true) if used => {
                        (quiet >= EAGER_MS && since_ms >= EAGER_MS) || since_ms >= BUSY_MS
                    }
                    (Phase::Suspect, _) => since_ms >= EAGER_MS * 2,
                    (Phase::Active, false) if used => {
                        quiet >= 2 * EAGER_MS && since_ms >= 4 * EAGER_MS
                    }
                    _ => false,
                };
                if due || round {
                    let cell = running.watch.ask(&running.circuit, hop, None, round, now_us);
                    self.transmits.push_back((running.circuit.entry.peer.clone(), cell));
                }
            }
        }
    }

    /// Leaves the active circuit when it is silent or worse than the standby.
    fn judge_active(&mut self, now_us: u64, rng: &mut dyn CryptoRng) {
        let now = ms(now_us);
        for running in &mut self.running {
            if running.phase != Phase::Active {
                running.watch.overdue(now_us);
            }
        }
        let Some(index) = self.position(Phase::Active) else { return };
        let running = &mut self.running[index];
        let last = running.path.len() - 1;
        let (missing, oldest) = running.watch.overdue(now_us);
        let heard_us = running.circuit.last_rx_ms.load(Ordering::Relaxed).saturating_sub(1) * 1000;
        let limit_us = running.watch.hops[last].limit_us();
        let silent = oldest.is_some_and(|sent| heard_us < sent + limit_us / 2);
        if (missing > 0 && silent) || missing >= MISSING {
            return self.suspect(index, now_us, rng);
        }
        let progress = running.circuit.progress(last);
        running.watch.loss[1].count(progress, now_us);
        let (rtt, loss) = (running.watch.srtt_us(), running.watch.loss(now_us));
        let standby = self
            .running
            .iter()
            .filter(|r| r.phase == Phase::Standby && r.dies_ms > now)
            .min_by_key(|r| (!r.watch.is_trusted(now), r.watch.rank(now_us)));
        let Some(standby) = standby else { return };
        let (other, other_loss) = (standby.watch.srtt_us(), standby.watch.loss(now_us));
        // What a standby loses does not show before it is used; what it takes does.
        let trusted = standby.watch.is_trusted(now);
        let lossy = loss >= LOSSY && other_loss < loss / 2.0 && trusted;
        let slower = rtt > other + other * 3 / 10 + 20_000;
        let better = rtt > other + other / 5 + 5_000 && other_loss <= loss + LOSSY && trusted;
        let watch = &mut self.running[index].watch;
        let since = |mark: &mut Option<u64>, holds: bool| match (holds, *mark) {
            (true, None) => {
                *mark = Some(now);
                0
            }
            (true, Some(since)) => now - since,
            (false, _) => {
                *mark = None;
                0
            }
        };
        let worse_for = since(&mut watch.worse_since, lossy || slower);
        let better_for = since(&mut watch.better_since, better);
        if worse_for >= WORSE_MS || better_for >= BETTER_MS {
            (watch.worse_since, watch.better_since) = (None, None);
            let reason = if lossy { MoveReason::Lossy } else { MoveReason::Slower };
            self.leave(index, reason, now_us);
        }
    }

    fn suspect(&mut self, index: usize, now_us: u64, rng: &mut dyn CryptoRng) {
        if self.running.iter().any(|running| running.phase == Phase::Standby) {
            self.leave(index, MoveReason::Silent, now_us);
        } else {
            // Nowhere to go: it may come back, and a new one is built meanwhile.
            let running = &self.running[index];
            let behind = running_culprit(running, now_us);
            if running.silent_ms(ms(now_us)) >= SUSPECT_MS {
                self.ended(index, behind, Reason::Unreachable, now_us, rng);
            }
        }
        self.want(now_us);
    }

    /// A suspect that answers is a standby again.
    pub(super) fn revived(&mut self, index: usize, hop: usize, now_us: u64) {
        let running = &mut self.running[index];
        if running.phase == Phase::Suspect && hop + 1 == running.path.len() {
            let late = running.watch.hops[hop].heard_us;
            let asked = running.since_ms.saturating_sub(1) * 1000;
            // What was under way when it fell silent proves nothing.
            if late > asked + running.watch.hops[hop].srtt_us {
                running.phase = Phase::Standby;
                running.since_ms = ms(now_us);
                running.watch.shun(ms(now_us));
            }
        }
    }

    fn end_doubt(&mut self, now_us: u64) {
        let now = ms(now_us);
        if let Some((session, _)) = &self.session
            && session.also.load().is_some()
            && let Some(active) = self.position(Phase::Active)
            && now >= self.running[active].since_ms + DOUBT_MS
        {
            session.also.store(None);
        }
        // Whoever stays silent is given up.
        while let Some(index) = self.running.iter().position(|running| {
            running.phase == Phase::Suspect && now >= running.since_ms + SUSPECT_MS
        }) {
            let running = &self.running[index];
            let behind = running_culprit(running, now_us);
            let (serial, node) = (running.circuit.serial, running.path[behind].node);
            self.avoid(node, now_us);
            let reason = Reason::Unreachable;
            self.events.push_back(ClientEvent::Failed { serial, node, reason, was_up: true });
            self.destroy(index, Reason::Finished);
        }
    }

    /// Repeats link requests that were not answered.
    fn relink(&mut self, now_us: u64) {
        let now = ms(now_us);
        for index in 0..self.running.len() {
            let running = &self.running[index];
            let rtt_ms = running.watch.srtt_us() / 1000;
            if running.linking.is_some_and(|asked| now >= asked + (2 * rtt_ms).max(300)) {
                self.link(index, now_us);
            }
        }
    }

    /// Moves off circuits whose life ends, and forgets those that were left.
    fn age(&mut self, now_us: u64) {
        let now = ms(now_us);
        if let Some(index) = self.position(Phase::Active)
            && now >= self.running[index].dies_ms
            && self.running.iter().any(|r| r.phase == Phase::Standby && r.dies_ms > now)
        {
            // The youngest; others that are due go below.
            for running in &mut self.running {
                if running.phase == Phase::Standby && running.dies_ms <= now {
                    running.phase = Phase::Retiring;
                    running.since_ms = now;
                }
            }
            self.leave(index, MoveReason::Rotation, now_us);
        }
        let active = self.position(Phase::Active).is_some();
        self.retire_surplus(now_us);
        while let Some(index) = self.running.iter().position(|running| match running.phase {
            Phase::Retiring => now >= running.since_ms + RETIRE_MS,
            Phase::Standby => active && now >= running.dies_ms + RETIRE_MS,
            Phase::Ready => now >= running.dies_ms,
            _ => false,
        }) {
            self.destroy(index, Reason::Finished);
        }
    }

    /// One standby that can be trusted is enough: rather one over other nodes
    /// than the active circuit's.
    fn retire_surplus(&mut self, now_us: u64) {
        let now = ms(now_us);
        let Some(active) = self.position(Phase::Active) else { return };
        let (active, settled) = (&self.running[active], |r: &Running| {
            r.phase == Phase::Standby && r.linked && r.dies_ms > now && r.watch.is_trusted(now)
        });
        if active.dies_ms <= now + SUCCESSOR_MS {
            return;
        }
        let mut all: Vec<usize> =
            (0..self.running.len()).filter(|i| settled(&self.running[*i])).collect();
        all.sort_by_key(|i| {
            let it = &self.running[*i];
            (it.shares_with(active), it.watch.rank(now_us))
        });
        for i in all.into_iter().skip(1) {
            let it = &mut self.running[i];
            if now >= it.since_ms + SURPLUS_MS {
                (it.phase, it.since_ms) = (Phase::Retiring, now);
            }
        }
    }

    /// When no circuit to the exit answers, the session goes on at another one.
    fn give_up_exit(&mut self, now_us: u64, rng: &mut dyn CryptoRng) {
        let now = ms(now_us);
        let Some(exit) = self.exit else { return };
        let mut linked = self.running.iter().filter(|running| {
            matches!(running.phase, Phase::Active | Phase::Suspect | Phase::Standby)
        });
        let dead = |running: &Running| {
            let last = running.path.len() - 1;
            let hop = &running.watch.hops[last];
            let asked = running
                .watch
                .echoes
                .iter()
                .any(|echo| echo.hop == last && echo.missing && echo.sent_us > hop.heard_us);
            asked && running.silent_ms(now) >= EXIT_MS
        };
        let none = self.running.iter().all(|running| {
            !matches!(running.phase, Phase::Active | Phase::Suspect | Phase::Standby)
        });
        let failed = none && self.connected && self.avoided.contains_key(&exit);
        if !(failed || (!none && linked.all(dead))) {
            return;
        }
        let Some(spare) = self.running.iter().position(|running| {
            running.phase == Phase::Ready && running.purpose == Purpose::Spare && !dead(running)
        }) else {
            return;
        };
        let serial = self.running[spare].circuit.serial;
        self.events.push_back(ClientEvent::ExitLost { exit });
        for index in (0..self.running.len()).rev() {
            let running = &self.running[index];
            if running.circuit.serial != serial && running.phase != Phase::Ready {
                self.destroy(index, Reason::Finished);
            }
        }
        self.new_session(rng);
        if let Some(index) = self.running.iter().position(|r| r.circuit.serial == serial) {
            self.exit = self.running[index].path.last().map(|hop| hop.node);
            self.running[index].purpose = Purpose::Active;
            self.link(index, now_us);
            self.activate(index, now_us);
        }
        self.avoided.insert(exit, now + 60_000);
        self.asked.clear();
        self.want(now_us);
    }
}

/// Which node to blame: the first that did not answer.
fn running_culprit(running: &Running, now_us: u64) -> usize {
    let since_us = now_us.saturating_sub(SUSPECT_MS * 1000);
    running.watch.culprit(since_us).unwrap_or(running.path.len() - 1)
}
