//! Handshake messages: who is let in, how they are answered, and when we start
//! one ourselves.

use std::net::SocketAddr;
use std::time::Duration;

use rand_core::CryptoRng;
use warren_types::{DropReason, LinkPublicKey, mesh_node};

use super::event::{LinkEvent, Now, Refusal};
use super::peer::{Answered, Peer, Pending, Session, advance};
use super::timers::{GIVE_UP_MS, JITTER_MS, RETRY_MS};
use super::{Core, Engine};
use crate::noise::mac::{COOKIE_LATENCY, COOKIE_LIFETIME, open_cookie};
use crate::noise::message::{self, Kind};
use crate::noise::{Initiator, OpenedInitiation, StaticKey, Tai64n};
use crate::path::PathReason;

/// Shortest time between two initiations of one peer that are answered: 50 a
/// second, as WireGuard.
const INITIATION_GAP_MS: u64 = 20;
/// A changed address or key waits this long after an initiation; longer than
/// [`INITIATION_GAP_MS`].
const SETTLE_MS: u64 = 50;
/// Without a session, an initiation goes to all known addresses this long after
/// it went to the likeliest…
const SPREAD_MS: u64 = 100;
/// …and with one that works, this long.
const SPREAD_LATE_MS: u64 = 1_000;
/// Copies of one initiation answered, within this time.
const MAX_COPIES: u8 = 4;
const COPIES_MS: u64 = 800;
/// Refusals reported in one second; all are counted.
const REPORTED_A_SECOND: u32 = 20;

impl Engine {
    /// A handshake datagram. `queued` is how many more are waiting behind it.
    pub fn handle_handshake(
        &mut self,
        from: SocketAddr,
        datagram: &[u8],
        queued: usize,
        now: Now,
        rng: &mut dyn CryptoRng,
    ) {
        let Some((kind, _)) = Kind::of(datagram) else {
            return self.core.drop_packet(DropReason::Malformed);
        };
        let Some(own) = self.core.own_key_for(datagram, self.core.ms(now.instant)) else {
            return self.core.drop_packet(DropReason::BadMac);
        };
        if kind == Kind::CookieReply {
            return self.cookie_reply(datagram, now);
        }
        if !self.core.admit(&own, from, datagram, queued, now, rng) {
            return self.core.drop_packet(DropReason::UnderLoad);
        }
        match kind {
            Kind::Initiation => self.initiation(&own, from, datagram, now, rng),
            _ => self.response(from, datagram, now, rng),
        }
    }

    fn initiation(
        &mut self,
        own: &StaticKey,
        from: SocketAddr,
        datagram: &[u8],
        now: Now,
        rng: &mut dyn CryptoRng,
    ) {
        let now_ms = self.core.ms(now.instant);
        let opened = match OpenedInitiation::open(own, datagram, rng) {
            Ok(opened) => opened,
            Err(_) => return self.core.refuse(from, None, Refusal::NotAuthentic, now_ms),
        };
        let remote = opened.remote;
        let key = self.current_key(&remote, now_ms);
        let Some(peer) = self.peers.get_mut(&key) else {
            return self.core.refuse(from, Some(remote), Refusal::UnknownPeer, now_ms);
        };
        if opened.timestamp == *peer.newest(&remote) {
            // A copy that came by another path, or the network's duplicate.
            return peer.answer_again(&mut self.core, from, opened.timestamp, now_ms);
        }
        if let Err(reason) = peer.answer(&mut self.core, from, opened, now, rng) {
            return self.core.refuse(from, Some(remote), reason, now_ms);
        }
        peer.worked_with(own.public(), remote);
        peer.service(&mut self.core, now, rng);
    }

    fn response(&mut self, from: SocketAddr, datagram: &[u8], now: Now, rng: &mut dyn CryptoRng) {
        let peer = message::receiver(datagram)
            .and_then(|index| Some((index, self.core.indices.get(&index)?)))
            .and_then(|(index, key)| Some((index, self.peers.get_mut(key)?)));
        let Some((index, peer)) = peer else {
            return self.core.drop_packet(DropReason::BadHandshake);
        };
        peer.finish(&mut self.core, from, index, datagram, now);
        peer.service(&mut self.core, now, rng);
    }

    fn cookie_reply(&mut self, datagram: &[u8], now: Now) {
        let core = &mut self.core;
        let taken = message::receiver(datagram).is_some_and(|index| {
            let key = core.indices.get(&index);
            let peer = key.and_then(|key| self.peers.get_mut(key));
            peer.is_some_and(|peer| peer.take_cookie(core.ms(now.instant), index, datagram))
        });
        if !taken {
            core.drop_packet(DropReason::BadHandshake);
        }
    }
}

impl Core {
    /// True when a message with a valid mac1 may cost us Diffie-Hellman
    /// operations. Under load it must also prove its address; who does not is
    /// sent a cookie.
    fn admit(
        &mut self,
        own: &StaticKey,
        from: SocketAddr,
        datagram: &[u8],
        queued: usize,
        now: Now,
        rng: &mut dyn CryptoRng,
    ) -> bool {
        let now_ms = self.ms(now.instant);
        if !self.load.note(queued, now_ms) {
            return true;
        }
        let cookies = self.cookies_of(own);
        if cookies.mac2_ok(from, datagram, now.instant) {
            return self.sources.allow(from.ip(), now_ms);
        }
        if let Some(reply) = cookies.reply(from, datagram, now.instant, rng) {
            self.send(from, reply.to_vec(), true);
        }
        false
    }

    fn refuse(
        &mut self,
        from: SocketAddr,
        peer: Option<LinkPublicKey>,
        reason: Refusal,
        now_ms: u64,
    ) {
        self.drop_packet(DropReason::BadHandshake);
        let (second, reported) = &mut self.refusals;
        if now_ms / 1000 != *second {
            (*second, *reported) = (now_ms / 1000, 0);
        }
        *reported += 1;
        if *reported <= REPORTED_A_SECOND {
            self.event(LinkEvent::Refused { from, peer, reason });
        }
    }
}

impl Peer {
    /// Answers an authentic initiation, or says why not.
    fn answer(
        &mut self,
        core: &mut Core,
        from: SocketAddr,
        opened: OpenedInitiation,
        now: Now,
        rng: &mut dyn CryptoRng,
    ) -> Result<(), Refusal> {
        let now_ms = core.ms(now.instant);
        if opened.suite != self.config.suite {
            return Err(Refusal::WrongSuite { expected: self.config.suite });
        }
        let remote = opened.remote;
        let newest = *self.newest(&remote);
        if opened.timestamp <= newest {
            let behind = opened.timestamp.behind(newest);
            return Err(Refusal::TimestampNotNewer { behind });
        }
        if self.initiation_ms > 0 && now_ms < self.initiation_ms + INITIATION_GAP_MS {
            return Err(Refusal::TooFast);
        }
        if self.waits_for_psk() {
            return Err(Refusal::PresharedKeyMissing);
        }
        let stamp = opened.timestamp;
        *self.newest(&remote) = stamp;
        self.initiation_ms = now_ms;

        let index = core.new_index(self.key(), rng);
        let their_index = opened.sender;
        let psk = self.config.psk.clone();
        let cookie = self.cookie(now_ms);
        let answered = opened.respond(psk.as_ref(), index, cookie.as_ref());
        let Ok((sent, keys)) = answered else {
            core.indices.remove(&index);
            return Err(Refusal::NotAuthentic);
        };
        let crossed = self.active().pending.is_some();
        let session = self.session(core, index, their_index, &keys, false, crossed, remote, now_ms);
        let active = self.active();
        active.macs[1] = Some((index, sent.mac1));
        active.answered =
            Some(Answered { stamp, at_ms: now_ms, copies: 0, datagram: sent.datagram });
        if let Some(unused) = active.next.replace(session) {
            core.withdraw(&unused);
        }
        self.move_to(core, from, now);
        advance(&self.link.last_rx_ms, now_ms);
        advance(&self.link.last_tx_ms, now_ms);
        core.send(from, sent.datagram.to_vec(), true);
        Ok(())
    }

    /// Answers another copy of the initiation answered last, where it came from.
    /// Its sender may not be whom it says: a few short answers, and no more.
    fn answer_again(&mut self, core: &mut Core, from: SocketAddr, stamp: Tai64n, now_ms: u64) {
        let answered = self.active.as_mut().and_then(|active| active.answered.as_mut());
        match answered.filter(|last| last.stamp == stamp && now_ms < last.at_ms + COPIES_MS) {
            Some(last) if last.copies < MAX_COPIES && self.config.is_warren => {
                last.copies += 1;
                core.send(from, last.datagram.to_vec(), true);
            }
            _ => core.drop_packet(DropReason::BadHandshake),
        }
    }

    /// Takes the response to our initiation `index`.
    fn finish(&mut self, core: &mut Core, from: SocketAddr, index: u32, datagram: &[u8], now: Now) {
        let now_ms = core.ms(now.instant);
        let key = self.key();
        let psk = self.config.psk.clone();
        let Some(pending) = self.active().pending.as_mut().filter(|p| p.index == index) else {
            return core.drop_packet(DropReason::BadHandshake);
        };
        let Ok(keys) = pending.initiator.finish(datagram, psk.as_ref()) else {
            return core.refuse(from, Some(key), Refusal::ResponseNotAuthentic, now_ms);
        };
        let their_index = message::sender(datagram).unwrap_or_default();
        // Another copy of the initiation may have gone there later.
        let rtt_us =
            (pending.sent_to == from).then(|| core.us(now.instant).saturating_sub(pending.sent_us));
        let (own, remote) = (pending.own, pending.remote);
        self.active().pending = None;
        let session = self.session(core, index, their_index, &keys, true, false, own, now_ms);
        self.move_to(core, from, now);
        if self.config.is_warren && self.at(core, from).is_some() {
            self.active().paths.proven(from, rtt_us, now_ms);
        }
        advance(&self.link.last_rx_ms, now_ms);
        self.promote(core, session, now);
        self.worked_with(own, remote);
    }

    fn take_cookie(&mut self, now_ms: u64, index: u32, datagram: &[u8]) -> bool {
        let keys = self.keys();
        let Some(active) = self.active.as_mut() else {
            return false;
        };
        let mac1 = active.macs.iter().flatten().find(|(ours, _)| *ours == index).map(|(_, m)| *m);
        let open = |mac1| keys.iter().flatten().find_map(|key| open_cookie(key, &mac1, datagram));
        let Some(cookie) = mac1.and_then(open) else {
            return false;
        };
        let useful = (COOKIE_LIFETIME - COOKIE_LATENCY).as_millis() as u64;
        active.cookie = Some((cookie, now_ms + useful));
        true
    }

    fn cookie(&self, now_ms: u64) -> Option<crate::noise::mac::Cookie> {
        let (cookie, until) = self.active.as_ref()?.cookie.as_ref()?;
        (*until > now_ms).then(|| cookie.clone())
    }

    /// An authenticated handshake message came from `from`. A path that works
    /// is not left for it.
    fn move_to(&mut self, core: &mut Core, from: SocketAddr, now: Now) {
        let before = self.link.endpoint.load().as_deref().copied();
        if !self.config.is_warren {
            if self.link.roam(from) && before.is_some() {
                core.event(LinkEvent::EndpointChanged { peer: self.key(), to: from });
            }
            return;
        }
        let now_ms = core.ms(now.instant);
        let Some(from) = self.at(core, from) else { return };
        let active = self.active();
        if active.current.is_some() && active.paths.settled(now_ms) {
            active.paths.heard(from, now_ms);
        } else {
            self.go_to(core, before, from, PathReason::Handshake, now);
        }
    }

    /// A worker asks for a handshake, or packets wait for one.
    pub(super) fn handshake_wanted(&mut self, core: &mut Core, now: Now, rng: &mut dyn CryptoRng) {
        let now_ms = core.ms(now.instant);
        let (fresh, pending) = match self.active.as_ref() {
            Some(active) => (
                active.current.as_ref().is_some_and(|s| !s.wants_renewal(now_ms)),
                active.pending.is_some(),
            ),
            None => (false, false),
        };
        if fresh {
            self.link.handshake_wanted.store(false, std::sync::atomic::Ordering::Relaxed);
        } else if !pending {
            self.initiate(core, now, rng);
        }
    }

    /// Starts a series of tries, unless one is under way or the last initiation
    /// is younger than WireGuard allows.
    pub(super) fn initiate(&mut self, core: &mut Core, now: Now, rng: &mut dyn CryptoRng) {
        let now_ms = core.ms(now.instant);
        if !self.can_initiate() {
            return;
        }
        let active = self.active();
        let too_soon = active.initiated_ms > 0 && now_ms < active.initiated_ms + RETRY_MS;
        if active.pending.is_none() && !too_soon {
            active.trying_since = Some(now_ms);
            self.send_initiation(core, now, rng);
        }
    }

    /// Starts over at once: the address or the pre-shared key is a new one. Two
    /// such changes in a row make one handshake: the peer would refuse a second
    /// initiation right after the first, and its answer to the first be lost.
    pub(super) fn restart_handshake(&mut self, core: &mut Core, now: Now, rng: &mut dyn CryptoRng) {
        if !self.can_initiate() {
            return;
        }
        let now_ms = core.ms(now.instant);
        let active = self.active();
        active.trying_since = Some(now_ms);
        let earliest = active.initiated_ms + SETTLE_MS;
        match &mut active.pending {
            Some(pending) if now_ms < earliest => pending.retry_at = earliest,
            _ => self.send_initiation(core, now, rng),
        }
    }

    /// Repeats an unanswered initiation, or gives up after 90 s.
    pub(super) fn retry_handshake(&mut self, core: &mut Core, now: Now, rng: &mut dyn CryptoRng) {
        let now_ms = core.ms(now.instant);
        self.spread(core, now_ms);
        let Some(active) = self.active.as_mut() else {
            return;
        };
        if active.pending.as_ref().is_none_or(|p| p.retry_at > now_ms) {
            return;
        }
        let tried = now_ms.saturating_sub(active.trying_since.unwrap_or(now_ms));
        if tried < GIVE_UP_MS {
            if tried >= 2 * RETRY_MS && self.unreachable.is_none() {
                self.unreachable = Some(now_ms);
                core.event(LinkEvent::PeerUnreachable { peer: self.key() });
            }
            return self.send_initiation(core, now, rng);
        }
        self.abandon(core);
        if self.config.hold {
            self.hold_retry_ms = now_ms + super::timers::HOLD_RETRY_MS;
        }
        core.event(LinkEvent::HandshakeAbandoned { peer: self.key() });
    }

    /// Gives up: what waits is dropped, what was kept of the handshake erased.
    fn abandon(&mut self, core: &mut Core) {
        self.drop_staged(core, DropReason::NoEndpoint);
        let active = self.active();
        active.trying_since = None;
        if let Some(pending) = active.pending.take() {
            core.indices.remove(&pending.index);
        }
        self.link.handshake_wanted.store(false, std::sync::atomic::Ordering::Relaxed);
    }

    fn send_initiation(&mut self, core: &mut Core, now: Now, rng: &mut dyn CryptoRng) {
        let now_ms = core.ms(now.instant);
        let Some(to) = self.link.endpoint.load().as_deref().copied() else {
            return;
        };
        // Never the same or an older stamp, even when our clock stepped back.
        self.stamped = Tai64n::from_unix(now.unix).max(self.stamped.successor());
        let index = core.new_index(self.key(), rng);
        let cookie = self.cookie(now_ms);
        let active = self.active();
        active.initiations = active.initiations.saturating_add(1);
        let (own, remote) = self.keys_to_try(core, now_ms);
        let started = Initiator::start(
            &own,
            &remote,
            self.config.suite,
            index,
            self.stamped,
            cookie.as_ref(),
            rng,
        );
        let jitter = u64::from(rng.next_u32()) % JITTER_MS;
        let (is_warren, sent_us) = (self.config.is_warren, core.us(now.instant));
        let active = self.active();
        if let Some(old) = active.pending.take() {
            core.indices.remove(&old.index);
        }
        active.initiated_ms = now_ms;
        let Ok((initiator, sent)) = started else {
            // Only a peer key that is a low-order point: no such peer exists.
            core.indices.remove(&index);
            return;
        };
        let works = active.current.is_some() && active.paths.trusted();
        active.pending = Some(Pending {
            initiator,
            index,
            retry_at: now_ms + RETRY_MS + jitter,
            datagram: sent.datagram,
            // Ever more seldom: the first, second, fourth, eighth try.
            spread_at: active
                .initiations
                .is_power_of_two()
                .then_some(now_ms + if works { SPREAD_LATE_MS } else { SPREAD_MS }),
            sent_to: to,
            sent_us,
            remote,
            own: own.public(),
        });
        active.macs[0] = Some((index, sent.mac1));
        let relays: Vec<SocketAddr> = match works || !is_warren {
            true => Vec::new(),
            false => active.paths.others(now_ms),
        };
        advance(&self.link.last_tx_ms, now_ms);
        core.send(to, sent.datagram.to_vec(), true);
        // Over other nodes it arrives for sure, if there is a way.
        for relay in relays.into_iter().filter(|at| *at != to && mesh_node(*at).is_some()) {
            core.send(relay, sent.datagram.to_vec(), true);
        }
    }

    /// Sends copies of an unanswered initiation to all other known addresses.
    fn spread(&mut self, core: &mut Core, now_ms: u64) {
        let Some(active) = self.active.as_mut() else { return };
        let Some(pending) = active.pending.as_mut() else { return };
        if pending.spread_at.is_none_or(|at| now_ms < at) {
            return;
        }
        pending.spread_at = None;
        if !self.config.is_warren {
            return;
        }
        for to in active.paths.others(now_ms) {
            if to != pending.sent_to {
                core.send(to, pending.datagram.to_vec(), true);
            }
        }
    }
}

impl Session {
    /// True when its initiator should make a new one.
    pub(super) fn wants_renewal(&self, now_ms: u64) -> bool {
        use super::timers::RENEW_MS;
        use crate::link::session::REKEY_AFTER_MESSAGES;
        (self.initiator && self.age(now_ms) >= RENEW_MS)
            || self.send.messages() >= REKEY_AFTER_MESSAGES
    }
}

/// For [`Peer::stats`].
pub(super) fn unix(peer: &Peer) -> Option<Duration> {
    (peer.handshake_ms > 0).then(|| Duration::new(peer.handshake_unix_s, peer.handshake_unix_ns))
}
