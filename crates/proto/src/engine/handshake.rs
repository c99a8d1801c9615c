//! Handshake messages: who is let in, how they are answered, and when we start
//! one ourselves.

use std::net::SocketAddr;
use std::time::Duration;

use rand_core::CryptoRng;
use warren_types::{DropReason, LinkPublicKey, mesh_node};

use super::event::{LinkEvent, Now, Refusal};
use super::peer::{Peer, Pending, Session, advance};
use super::timers::{GIVE_UP_MS, JITTER_MS, RETRY_MS};
use super::{Core, Engine};
use crate::noise::mac::{COOKIE_LATENCY, COOKIE_LIFETIME, open_cookie};
use crate::noise::message::{self, Kind};
use crate::noise::{Initiator, OpenedInitiation, Tai64n, mac1_ok};

/// Shortest time between two initiations of one peer that are answered: 50 a
/// second, as WireGuard.
const INITIATION_GAP_MS: u64 = 20;
/// A changed address or key waits this long after an initiation; longer than
/// [`INITIATION_GAP_MS`].
const SETTLE_MS: u64 = 50;
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
        if !mac1_ok(&self.core.mac_key, datagram) {
            return self.core.drop_packet(DropReason::BadMac);
        }
        if kind == Kind::CookieReply {
            return self.cookie_reply(datagram, now);
        }
        if !self.core.admit(from, datagram, queued, now, rng) {
            return self.core.drop_packet(DropReason::UnderLoad);
        }
        match kind {
            Kind::Initiation => self.initiation(from, datagram, now, rng),
            _ => self.response(from, datagram, now, rng),
        }
    }

    fn initiation(&mut self, from: SocketAddr, datagram: &[u8], now: Now, rng: &mut dyn CryptoRng) {
        let now_ms = self.core.ms(now.instant);
        let opened = match OpenedInitiation::open(&self.core.config.key, datagram, rng) {
            Ok(opened) => opened,
            Err(_) => return self.core.refuse(from, None, Refusal::NotAuthentic, now_ms),
        };
        let remote = opened.remote;
        let Some(peer) = self.peers.get_mut(&remote) else {
            return self.core.refuse(from, Some(remote), Refusal::UnknownPeer, now_ms);
        };
        if opened.timestamp == peer.newest_initiation {
            // Most likely the network's duplicate: nothing to report.
            return self.core.drop_packet(DropReason::BadHandshake);
        }
        if let Err(reason) = peer.answer(&mut self.core, from, opened, now, rng) {
            return self.core.refuse(from, Some(remote), reason, now_ms);
        }
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
        if self.cookies.mac2_ok(from, datagram, now.instant) {
            return self.sources.allow(from.ip(), now_ms);
        }
        if let Some(reply) = self.cookies.reply(from, datagram, now.instant, rng) {
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
        if opened.timestamp <= self.newest_initiation {
            let behind = opened.timestamp.behind(self.newest_initiation);
            return Err(Refusal::TimestampNotNewer { behind });
        }
        if self.initiation_ms > 0 && now_ms < self.initiation_ms + INITIATION_GAP_MS {
            return Err(Refusal::TooFast);
        }
        if self.waits_for_psk() {
            return Err(Refusal::PresharedKeyMissing);
        }
        self.newest_initiation = opened.timestamp;
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
        let session = self.session(core, index, their_index, &keys, false, crossed, now_ms);
        let active = self.active();
        active.macs[1] = Some((index, sent.mac1));
        if let Some(unused) = active.next.replace(session) {
            core.withdraw(&unused);
        }
        self.move_to(core, from, now);
        advance(&self.link.last_rx_ms, now_ms);
        advance(&self.link.last_tx_ms, now_ms);
        core.send(from, sent.datagram.to_vec(), true);
        Ok(())
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
        self.active().pending = None;
        let session = self.session(core, index, their_index, &keys, true, false, now_ms);
        self.move_to(core, from, now);
        advance(&self.link.last_rx_ms, now_ms);
        self.promote(core, session, now);
    }

    fn take_cookie(&mut self, now_ms: u64, index: u32, datagram: &[u8]) -> bool {
        let key = self.key();
        let Some(active) = self.active.as_mut() else {
            return false;
        };
        let mac1 = active.macs.iter().flatten().find(|(ours, _)| *ours == index).map(|(_, m)| *m);
        let Some(cookie) = mac1.and_then(|mac1| open_cookie(&key, &mac1, datagram)) else {
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

    /// An authenticated handshake message came from `from`.
    fn move_to(&mut self, core: &mut Core, from: SocketAddr, now: Now) {
        let known = self.link.endpoint.load().is_some();
        if let Some(node) = mesh_node(from) {
            // Over others it is at its own address only, and a direct way that
            // works is not left for that.
            let at = self.link.endpoint.load().as_deref().copied();
            let direct = at.is_some_and(|at| mesh_node(at).is_none());
            let up = self.active.as_ref().is_some_and(|active| active.current.is_some());
            if self.overlay_address() != Some(node) || (direct && up) {
                return;
            }
        }
        if self.link.roam(from) && known {
            core.event(LinkEvent::EndpointChanged { peer: self.key(), to: from });
            self.path_changed(core, now);
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
        let started = Initiator::start(
            &core.config.key,
            &self.config.key,
            self.config.suite,
            index,
            self.stamped,
            cookie.as_ref(),
            rng,
        );
        let jitter = u64::from(rng.next_u32()) % JITTER_MS;
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
        active.pending = Some(Pending { initiator, index, retry_at: now_ms + RETRY_MS + jitter });
        active.macs[0] = Some((index, sent.mac1));
        advance(&self.link.last_tx_ms, now_ms);
        core.send(to, sent.datagram.to_vec(), true);
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
