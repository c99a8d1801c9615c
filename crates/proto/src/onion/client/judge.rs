//! Watching circuits: when each hop is asked, and what follows from the answers.
//!
//! The exit's echoes decide where the session goes: when data flows they come
//! every [`EAGER_MS`] in which nothing else came, so that a dead hop is noticed
//! within a round trip and a little. Those of the hops between say which one it
//! was. Invariants: a circuit that was left for being bad is not preferred for a
//! while, longer each time, so the session does not go to and fro.

use std::sync::atomic::Ordering;

use rand_core::CryptoRng;

use super::super::payload::Reason;
use super::watch::HopWatch;
use super::{
    Client, ClientEvent, MoveReason, Phase, Purpose, RETIRE_MS, Running, SUCCESSOR_MS, ms,
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
pub(super) const IDLE_MS: u64 = 5_000;
/// Data flows if some did within this time, ms.
const USE_MS: u64 = 2_000;
/// Missing answers in a row that condemn a circuit whatever else arrives.
const MISSING: usize = 4;
/// A silent circuit is given up after this long, ms.
const SUSPECT_MS: u64 = 3_000;
/// Exit and session are given up when no circuit to it answers for this long, ms.
const EXIT_MS: u64 = 1_500;
/// How long both circuits carry everything after a doubt, ms.
const DOUBT_MS: u64 = 2_000;
/// How long a circuit must be worse than the standby to be left, ms.
const WORSE_MS: u64 = 1_000;
/// How long the standby must be a little better, ms.
const BETTER_MS: u64 = 10_000;
/// A loss so large is a reason to leave.
const LOSSY: f32 = 0.025;
/// A second standby that is not needed is given up after this long, ms.
const SURPLUS_MS: u64 = 10_000;

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
        let missing = running.watch.overdue(now_us);
        let heard_us = running.circuit.last_rx_ms.load(Ordering::Relaxed).saturating_sub(1) * 1000;
        if running.watch.is_silent(heard_us, now_us) || missing >= MISSING {
            return self.suspect(index, now_us, rng);
        }
        let progress = running.circuit.progress(last);
        running.watch.loss[1].count(progress, now_us);
        let (rtt, loss) = (running.watch.srtt_us(), running.watch.loss(now_us));
        let Some(standby) = self.best_standby(index, false, now_us) else { return };
        let standby = &self.running[standby];
        let (other, other_loss) = (standby.watch.srtt_us(), standby.watch.loss(now_us));
        // What a standby loses hardly shows before it is used. While none can be
        // trusted, another is built.
        let trusted = standby.watch.is_trusted(now);
        let lossy = trusted && loss >= LOSSY && other_loss < loss / 2.0;
        let slower = trusted && rtt > other + other * 3 / 10 + 20_000;
        let better = trusted && rtt > other + other / 5 + 5_000 && other_loss <= loss + LOSSY;
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

    /// Where to go from a circuit: with `doubt` rather where none of its nodes is.
    pub(super) fn best_standby(&self, from: usize, doubt: bool, now_us: u64) -> Option<usize> {
        let now = ms(now_us);
        let key = |i: &usize| {
            let it = &self.running[*i];
            let shares = doubt && it.shares_with(&self.running[from]);
            (it.dies_ms <= now, shares, !it.watch.is_trusted(now), it.watch.rank(now_us))
        };
        let standby = |i: &usize| *i != from && self.running[*i].phase == Phase::Standby;
        (0..self.running.len()).filter(standby).min_by_key(key)
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
            r.phase == Phase::Standby
                && r.linking.is_none()
                && r.dies_ms > now
                && r.watch.is_trusted(now)
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

    /// A complete circuit to another exit.
    pub(super) fn spare(&self, now: u64) -> Option<usize> {
        self.running.iter().position(|running| {
            running.phase == Phase::Ready
                && running.purpose == Purpose::Spare
                && !running.is_dead(now)
        })
    }

    /// When no circuit to the exit answers, the session goes on at another one.
    fn give_up_exit(&mut self, now_us: u64, rng: &mut dyn CryptoRng) {
        let now = ms(now_us);
        let Some(exit) = self.exit else { return };
        let mut linked = self.running.iter().filter(|running| {
            matches!(running.phase, Phase::Active | Phase::Suspect | Phase::Standby)
        });
        let dead = |running: &Running| running.is_dead(now);
        let none = self.running.iter().all(|running| {
            !matches!(running.phase, Phase::Active | Phase::Suspect | Phase::Standby)
        });
        let failed = none && self.connected && self.avoided.contains_key(&exit);
        if !(failed || (!none && linked.all(dead))) {
            return;
        }
        // While there is nowhere to go, it may come back.
        if self.spare(now).is_none() {
            return;
        }
        self.move_on(exit, now_us, rng);
        self.want(now_us);
    }
}

impl Running {
    /// True when its exit owes answers and nothing came for long.
    fn is_dead(&self, now: u64) -> bool {
        self.watch.is_exit_missing() && self.silent_ms(now) >= EXIT_MS
    }
}

/// Which node to blame: the first that did not answer.
fn running_culprit(running: &Running, now_us: u64) -> usize {
    let since_us = now_us.saturating_sub(SUSPECT_MS * 1000);
    running.watch.culprit(since_us).unwrap_or(running.path.len() - 1)
}
