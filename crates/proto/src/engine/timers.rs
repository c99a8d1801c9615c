//! What is due for a peer and when to look again. [`Peer::service`] runs after
//! every call that touches a peer and when its deadline passes; it does what is
//! due and sets the next deadline. Figures are WireGuard's (section 6).
//!
//! Workers do not report each packet; they move clocks in [`PeerLink`]. While a
//! session is up the engine looks at them every second when packets flow and
//! every two when not; a peer without session and without anything waiting has
//! no deadline at all.
//!
//! [`PeerLink`]: crate::link::peer::PeerLink

use std::sync::atomic::Ordering;

use rand_core::CryptoRng;
use warren_types::DropReason;

use super::Core;
use super::event::{LinkEvent, Now, WakeReason};
use super::path_mtu::PathMtu;
use super::peer::Peer;
use crate::path::Pace;

/// An initiation is repeated after this (REKEY_TIMEOUT), ms…
pub(super) const RETRY_MS: u64 = 5_000;
/// …plus up to this, so that two ends do not stay in step.
pub(super) const JITTER_MS: u64 = 334;
/// Tries end after this (REKEY_ATTEMPT_TIME).
pub(super) const GIVE_UP_MS: u64 = 90_000;
/// An initiator renews a session it sends on after this (REKEY_AFTER_TIME).
pub(super) const RENEW_MS: u64 = 120_000;
/// A session is not used beyond this (REJECT_AFTER_TIME).
pub(super) const EXPIRE_MS: u64 = 180_000;
/// Who received data answers with something within this (KEEPALIVE_TIMEOUT).
const KEEPALIVE_MS: u64 = 10_000;
/// Data sent and nothing back for this long: a new handshake.
const SILENCE_MS: u64 = KEEPALIVE_MS + RETRY_MS;
/// An initiator that only receives renews this late, so that the other end can
/// go on sending.
const RENEW_LATE_MS: u64 = EXPIRE_MS - KEEPALIVE_MS - RETRY_MS;
/// Between Warren nodes the responder renews if the initiator has not by then.
const RENEW_AS_RESPONDER_MS: u64 = RENEW_MS + 25_000;
/// With `hold`: pause after abandoned tries.
pub(super) const HOLD_RETRY_MS: u64 = 30_000;

/// Packets flowed if the last one is younger than this.
const ACTIVE_MS: u64 = 10_000;
/// A link without `hold` is measured until its last packet is this old.
const MEASURE_MS: u64 = 60_000;
/// Between looks at the workers' clocks while packets flow, and while not (then
/// all links' at the same time, to wake seldom).
const LOOK_ACTIVE_MS: u64 = 1_000;
const LOOK_IDLE_MS: u64 = 2_000;
/// So many quiet relay frames a second, over this time, are more than others'
/// probes: somebody's small packets.
const QUIET_FLOW: u64 = 25;
const QUIET_LOOK_MS: u64 = 1_000;
/// Between tries of one probed size at least; at most what three round trips take.
const PROBE_GAP_MS: u64 = 250;

/// Keeps the earliest of several deadlines.
struct Next(Option<(u64, WakeReason)>);

impl Next {
    fn at(&mut self, ms: u64, reason: WakeReason) {
        if self.0.is_none_or(|(earliest, _)| ms < earliest) {
            self.0 = Some((ms, reason));
        }
    }
}

impl Peer {
    /// Does all that is due and sets the next deadline.
    pub(super) fn service(&mut self, core: &mut Core, now: Now, rng: &mut dyn CryptoRng) {
        let now_ms = core.ms(now.instant);
        self.confirm(core, now);
        self.expire_sessions(core, now_ms);
        self.look(now_ms);
        self.follow_paths(core, now, rng);
        self.renew(core, now, rng);
        self.retry_handshake(core, now, rng);
        self.keep_alive(core, now, rng);
        self.measure(core, now, rng);
        self.give_up_staged(core, now_ms);
        if let Some(active) = self.active.as_mut()
            && active.cookie.as_ref().is_some_and(|(_, until)| *until <= now_ms)
        {
            active.cookie = None;
        }
        if self.active.as_ref().is_some_and(|active| active.asleep()) {
            self.active = None;
        }
        self.set_deadline(core, now_ms);
    }

    /// Reads the workers' clocks.
    fn look(&mut self, now_ms: u64) {
        let Some(active) = self.active.as_mut() else {
            return;
        };
        let clock = |c: &std::sync::atomic::AtomicU64| c.load(Ordering::Relaxed);
        let (data_tx, data_rx) =
            (clock(&self.link.last_data_tx_ms), clock(&self.link.last_data_rx_ms));
        let (tx, rx) = (clock(&self.link.last_tx_ms), clock(&self.link.last_rx_ms));
        if active.unanswered.is_some_and(|since| rx >= since) {
            active.unanswered = None;
        }
        if data_tx > rx && active.unanswered.is_none() {
            active.unanswered = Some(data_tx);
        }
        if active.owed.is_some_and(|since| tx >= since) {
            active.owed = None;
        }
        if data_rx > tx && active.owed.is_none() {
            // The first unanswered packet came after the last look.
            active.owed = Some(data_rx.min(active.looked_ms.max(tx + 1)));
        }
        active.looked_ms = now_ms;
        let quiet = self.link.sent().quiet + self.link.received().quiet;
        let (before, at) = active.quiet;
        if now_ms >= at + QUIET_LOOK_MS {
            if (quiet - before) * 1000 >= QUIET_FLOW * (now_ms - at) {
                active.carried_ms = now_ms;
            }
            active.quiet = (quiet, now_ms);
        }
        if self.unreachable.is_some_and(|since| rx > since) {
            self.unreachable = None;
        }
    }

    /// Starts a handshake if keys are due, a path is silent or packets wait.
    fn renew(&mut self, core: &mut Core, now: Now, rng: &mut dyn CryptoRng) {
        let now_ms = core.ms(now.instant);
        let hold = self.config.hold && now_ms >= self.hold_retry_ms;
        let data_tx = self.link.last_data_tx_ms.load(Ordering::Relaxed);
        let rx = self.link.last_rx_ms.load(Ordering::Relaxed);
        let is_warren = self.config.is_warren;
        let Some(active) = self.active.as_mut() else {
            if hold {
                self.initiate(core, now, rng);
            }
            return;
        };
        let mut wanted = !active.staged.is_empty();
        match &active.current {
            Some(session) => {
                let sent = data_tx.max(active.kept_alive_ms);
                let used = |after: u64| hold || sent >= session.created_ms + after;
                wanted |= session.wants_renewal(now_ms) && used(RENEW_MS);
                wanted |= session.send.messages() >= crate::link::session::REKEY_AFTER_MESSAGES;
                wanted |= is_warren
                    && !session.initiator
                    && session.age(now_ms) >= RENEW_AS_RESPONDER_MS
                    && used(RENEW_AS_RESPONDER_MS);
                if session.initiator
                    && !active.renewed_late
                    && rx >= session.created_ms + RENEW_LATE_MS
                {
                    active.renewed_late = true;
                    wanted = true;
                }
            }
            None => wanted |= hold,
        }
        if active.unanswered.is_some_and(|since| now_ms >= since + SILENCE_MS) {
            active.unanswered = None;
            wanted = true;
        }
        if wanted {
            self.initiate(core, now, rng);
        }
    }

    /// Sends keepalives that are due.
    fn keep_alive(&mut self, core: &mut Core, now: Now, rng: &mut dyn CryptoRng) {
        let now_ms = core.ms(now.instant);
        let owed = self.active.as_ref().and_then(|active| active.owed);
        if owed.is_some_and(|since| now_ms >= since + KEEPALIVE_MS) {
            self.active().owed = None;
            self.keepalive(core, now_ms);
        }
        if self.persistent_at().is_some_and(|at| now_ms >= at) {
            if self.active.as_ref().is_some_and(|active| active.current.is_some()) {
                self.keepalive(core, now_ms);
            } else {
                self.initiate(core, now, rng);
            }
        }
    }

    /// When the persistent keepalive is due: its interval after the last
    /// message either way. Without a session it starts a handshake, unless one
    /// is under way.
    fn persistent_at(&self) -> Option<u64> {
        let interval = self.config.persistent_keepalive?.as_millis() as u64;
        if interval == 0 || !self.can_initiate() {
            return None;
        }
        let tx = self.link.last_tx_ms.load(Ordering::Relaxed);
        let rx = self.link.last_rx_ms.load(Ordering::Relaxed);
        let at = tx.max(rx) + interval;
        match self.active.as_deref() {
            Some(active) if active.current.is_some() => Some(at),
            Some(active) if active.pending.is_some() => None,
            Some(active) => Some(at.max(active.initiated_ms + RETRY_MS)),
            None => Some(at),
        }
    }

    /// Packets flowed lately or the link has just come up.
    pub(super) fn measured_lately(&self, now_ms: u64) -> bool {
        let recent = now_ms < self.last_data_ms() + MEASURE_MS;
        let started = self.active.as_ref().map_or(0, |active| active.started_ms);
        recent || now_ms < started + ACTIVE_MS
    }

    /// True when the path's MTU is of interest now.
    fn measured(&self, now_ms: u64) -> bool {
        self.config.is_warren && (self.config.hold || self.measured_lately(now_ms))
    }

    pub(super) fn last_data_ms(&self) -> u64 {
        let tx = self.link.last_data_tx_ms.load(Ordering::Relaxed);
        tx.max(self.link.last_data_rx_ms.load(Ordering::Relaxed))
    }

    fn flowing(&self, now_ms: u64) -> bool {
        let last = self.last_data_ms();
        last > 0 && now_ms < last + ACTIVE_MS
    }

    /// Sends path-MTU probes that are due.
    fn measure(&mut self, core: &mut Core, now: Now, rng: &mut dyn CryptoRng) {
        let now_ms = core.ms(now.instant);
        let (measured, flowing) = (self.measured(now_ms), self.flowing(now_ms));
        if measured && self.active.as_ref().is_some_and(|active| active.current.is_some()) {
            self.probe(core, flowing, now, rng);
        }
    }

    fn probe(&mut self, core: &mut Core, flowing: bool, now: Now, rng: &mut dyn CryptoRng) {
        let now_ms = core.ms(now.instant);
        let Some(to) = self.link.endpoint.load().as_deref().copied() else {
            return;
        };
        let active = self.active();
        let rtt_ms = active.paths.rtt().map_or(0, |rtt| rtt.as_millis() as u64);
        let Some(mut search) = active.path_mtu.take() else {
            return;
        };
        let gap_ms = PROBE_GAP_MS.max(rtt_ms * 3);
        if flowing && search.canary_due(now_ms, gap_ms) {
            let id = self.send_echo(core, to, search.current(), now, rng).0;
            search.canary_sent(id);
        }
        loop {
            while let Some(size) = search.due(now_ms, gap_ms) {
                let id = self.send_echo(core, to, size, now, rng).0;
                search.sent(id, size);
            }
            if let Some(mtu) = search.conclude(now_ms) {
                self.link.path_mtu.store(mtu, Ordering::Relaxed);
                core.event(LinkEvent::PathMtuChanged { peer: self.key(), mtu });
            }
            if search.next_ms() > now_ms {
                break;
            }
        }
        self.active().path_mtu = Some(search);
    }

    /// Starts path-MTU probing for a link that has none yet.
    pub(super) fn start_probing(&mut self, core: &Core, now_ms: u64) {
        if !self.config.is_warren {
            return;
        }
        let ceiling = core.config.mtu;
        let current = self.link.path_mtu.load(Ordering::Relaxed).min(ceiling);
        let active = self.active();
        if active.path_mtu.is_none() {
            active.path_mtu = Some(PathMtu::new(current, ceiling, now_ms));
        }
    }

    /// Data goes another way, which is taken to carry `mtu` until probed.
    pub(super) fn path_changed(&mut self, core: &mut Core, mtu: u32, now: Now) {
        let now_ms = core.ms(now.instant);
        let key = self.key();
        if let Some(active) = self.active.as_mut()
            && let Some(search) = &mut active.path_mtu
        {
            let mtu = mtu.min(core.config.mtu);
            *search = PathMtu::new(mtu, core.config.mtu, now_ms);
            if self.link.path_mtu.swap(mtu, Ordering::Relaxed) != mtu {
                core.event(LinkEvent::PathMtuChanged { peer: key, mtu });
            }
        }
    }

    /// Drops packets that waited in vain although no handshake could start.
    fn give_up_staged(&mut self, core: &mut Core, now_ms: u64) {
        if self.staging_ends().is_some_and(|at| now_ms >= at) {
            self.drop_staged(core, DropReason::NoEndpoint);
        }
    }

    fn staging_ends(&self) -> Option<u64> {
        let active = self.active.as_ref()?;
        (!active.staged.is_empty() && active.pending.is_none())
            .then_some(active.staged_since + GIVE_UP_MS)
    }

    fn set_deadline(&mut self, core: &mut Core, now_ms: u64) {
        let next = self.next_deadline(now_ms).map(|(ms, why)| (ms.max(now_ms + 1), why));
        if self.deadline == next {
            return;
        }
        if let Some((old, _)) = self.deadline {
            core.timers.remove(&(old, self.key()));
        }
        if let Some((ms, _)) = next {
            core.timers.insert((ms, self.key()));
        }
        self.deadline = next;
    }

    fn next_deadline(&self, now_ms: u64) -> Option<(u64, WakeReason)> {
        let mut next = Next(None);
        if let Some(at) = self.persistent_at() {
            next.at(at, WakeReason::Keepalive);
        }
        if self.config.hold && self.can_initiate() {
            let session =
                self.active.as_ref().is_some_and(|a| a.current.is_some() || a.pending.is_some());
            if !session {
                let earliest = self.active.as_ref().map_or(0, |a| a.initiated_ms + RETRY_MS);
                next.at(self.hold_retry_ms.max(earliest), WakeReason::HandshakeRetry);
            }
        }
        let Some(active) = self.active.as_deref() else {
            return next.0;
        };
        if let Some(pending) = &active.pending {
            next.at(pending.retry_at, WakeReason::HandshakeRetry);
            if let Some(at) = pending.spread_at {
                next.at(at, WakeReason::HandshakeRetry);
            }
        } else if !active.staged.is_empty() && self.can_initiate() {
            next.at(active.initiated_ms + RETRY_MS, WakeReason::HandshakeRetry);
        }
        if let Some(at) = self.staging_ends() {
            next.at(at, WakeReason::Staging);
        }
        let sessions = active.previous.iter().chain(&active.next).chain(&active.current);
        for session in sessions {
            next.at(session.created_ms + EXPIRE_MS, WakeReason::SessionAge);
        }
        if let Some((_, until)) = &active.cookie {
            next.at(*until, WakeReason::SessionAge);
        }
        if active.current.is_none() && active.next.is_none() {
            return next.0;
        }
        let flowing = self.flowing(now_ms);
        let look = if flowing || active.next.is_some() {
            now_ms + LOOK_ACTIVE_MS
        } else {
            (now_ms + 1).next_multiple_of(LOOK_IDLE_MS)
        };
        next.at(look, WakeReason::Activity);
        if let Some(since) = active.owed {
            next.at(since + KEEPALIVE_MS, WakeReason::Keepalive);
        }
        if let Some(since) = active.unanswered {
            next.at(since + SILENCE_MS, WakeReason::HandshakeRetry);
        }
        let pace = self.pace(now_ms);
        if pace != Pace::Asleep {
            next.at(active.paths.next_ms(pace), WakeReason::Echo);
            if let Some(at) = active.telling.at_ms {
                next.at(at, WakeReason::Echo);
            }
        }
        if self.measured(now_ms)
            && active.current.is_some()
            && let Some(search) = &active.path_mtu
        {
            next.at(search.next_ms(), WakeReason::PathMtu);
            if flowing {
                next.at(search.canary_ms(), WakeReason::PathMtu);
            }
        }
        next.0
    }
}
