//! Sessions of one peer from keys to expiry, and what the engine itself sends
//! through them: waiting packets, keepalives, echoes.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rand_core::CryptoRng;
use warren_types::{DropReason, LinkPublicKey, mesh_node};

use super::event::{LinkEvent, LinkState, Now, PeerStats};
use super::peer::{MAX_STAGED, Peer, Session, advance};
use super::timers::{EXPIRE_MS, RETRY_MS};
use super::{Core, MAX_STAGED_BYTES};
use crate::link::frame::Frame;
use crate::link::relay::is_relay;
use crate::link::seal::padded;
use crate::link::session::{HEADER_LEN, OVERHEAD, REJECT_AFTER_MESSAGES, RecvSession, SendSession};
use crate::noise::TransportKeys;
use crate::path::admissible::{admissible, local};

impl Core {
    /// Ends a session: it is neither sent nor received on any more.
    pub(super) fn withdraw(&mut self, session: &Session) {
        self.tables.remove_session(session.receive.local_index);
        self.indices.remove(&session.receive.local_index);
    }
}

impl Peer {
    /// Makes a session of fresh keys and publishes its receiving half.
    #[expect(clippy::too_many_arguments, reason = "each is one fact of the handshake just done")]
    pub(super) fn session(
        &mut self,
        core: &mut Core,
        index: u32,
        their_index: u32,
        keys: &TransportKeys,
        initiator: bool,
        crossed: bool,
        started_by: LinkPublicKey,
        now_ms: u64,
    ) -> Session {
        let suite = self.config.suite;
        let receive =
            Arc::new(RecvSession::new(suite, index, &keys.receive, self.link.clone(), now_ms));
        core.tables.insert_session(receive.clone());
        let send = Arc::new(SendSession::new(suite, their_index, &keys.send, now_ms, initiator));
        Session {
            send,
            receive,
            created_ms: now_ms,
            initiator,
            preshared: self.config.psk.is_some(),
            crossed,
            started_by,
        }
    }

    /// A frame authenticated: when no session but the one we answered for can
    /// have carried it, that one is confirmed (the worker's word for it may
    /// still be on its way).
    pub(super) fn confirm_by_frame(&mut self, core: &mut Core, now: Now) {
        if let Some(active) = &self.active
            && active.current.is_none()
            && active.previous.is_empty()
            && let Some(next) = &active.next
        {
            next.receive.confirmed.store(true, Ordering::Relaxed);
        }
        self.confirm(core, now);
    }

    /// Promotes the session we answered for, once a message under it has
    /// authenticated.
    pub(super) fn confirm(&mut self, core: &mut Core, now: Now) {
        let Some(active) = self.active.as_mut() else {
            return;
        };
        if !active.next.as_ref().is_some_and(|s| s.receive.confirmed.load(Ordering::Relaxed)) {
            return;
        }
        let Some(next) = active.next.take() else {
            return;
        };
        // When both ends started at once there are two good sessions. Both
        // keep the one started by the lower key, so that one end is the
        // initiator of the one in use, who renews it.
        let ours_stays = next.crossed
            && active.current.as_ref().is_some_and(|current| {
                current.initiator
                    && current.created_ms + RETRY_MS > next.created_ms
                    && current.started_by < next.started_by
            });
        if ours_stays {
            if let Some(old) = active.retire(next) {
                core.withdraw(&old);
            }
        } else {
            self.promote(core, next, now);
        }
    }

    /// Seals with `session` from now on and sends what waited for it.
    pub(super) fn promote(&mut self, core: &mut Core, session: Session, now: Now) {
        let now_ms = core.ms(now.instant);
        self.handshake_ms = now_ms;
        self.handshake_unix_s = now.unix.as_secs();
        self.handshake_unix_ns = now.unix.subsec_nanos();
        self.unreachable = None;
        self.hold_retry_ms = 0;
        self.link.send.store(Some(session.send.clone()));
        self.link.handshake_wanted.store(false, Ordering::Relaxed);
        let event = LinkEvent::SessionEstablished {
            peer: self.key(),
            endpoint: self.link.endpoint.load().as_deref().copied(),
            initiator: session.initiator,
            rekey: self.active().current.is_some(),
            preshared: session.preshared,
        };
        core.event(event);
        let active = self.active();
        active.trying_since = None;
        active.unanswered = None;
        active.renewed_late = false;
        active.initiations = 0;
        let initiator = session.initiator;
        let first = active.current.is_none();
        if let Some(old) = active.current.replace(session)
            && let Some(oldest) = active.retire(old)
        {
            core.withdraw(&oldest);
        }
        if first {
            active.started_ms = now_ms;
            active.rtt_reported = false;
            self.paths_begin(initiator, now_ms);
        }
        self.start_probing(core, now_ms);
        // The peer may send only after our first message under the session.
        if !self.flush_staged(core, now_ms) && initiator {
            self.keepalive(core, now_ms);
        }
    }

    /// Withdraws sessions past their time.
    pub(super) fn expire_sessions(&mut self, core: &mut Core, now_ms: u64) {
        let Some(active) = self.active.as_mut() else {
            return;
        };
        active.previous.retain(|session| {
            let keep = session.age(now_ms) < EXPIRE_MS;
            if !keep {
                core.withdraw(session);
            }
            keep
        });
        let expired = |session: &Option<Session>| {
            session.as_ref().is_some_and(|s| s.age(now_ms) >= EXPIRE_MS)
        };
        if expired(&active.next)
            && let Some(session) = active.next.take()
        {
            core.withdraw(&session);
        }
        if expired(&active.current)
            && let Some(session) = active.current.take()
        {
            self.link.send.store(None);
            core.withdraw(&session);
        }
    }

    /// Ends everything; the peer is being removed.
    pub(super) fn shut_down(&mut self, core: &mut Core) {
        self.link.send.store(None);
        self.drop_staged(core, DropReason::NoRoute);
        if let Some(active) = self.active.take() {
            let sessions = active.previous.iter().chain(&active.current).chain(&active.next);
            sessions.for_each(|session| core.withdraw(session));
            if let Some(pending) = &active.pending {
                core.indices.remove(&pending.index);
            }
        }
        if let Some((deadline, _)) = self.deadline.take() {
            core.timers.remove(&(deadline, self.key()));
        }
    }

    /// Seals `payload` with the current session and sends it; false when there
    /// is none or it is used up.
    pub(super) fn seal_and_send(
        &self,
        core: &mut Core,
        payload: &[u8],
        dont_fragment: bool,
        now_ms: u64,
    ) -> bool {
        let Some(to) = self.link.endpoint.load().as_deref().copied() else {
            return false;
        };
        self.seal_to(core, to, payload, dont_fragment, now_ms)
    }

    /// As [`Self::seal_and_send`], over another path.
    pub(super) fn seal_to(
        &self,
        core: &mut Core,
        to: SocketAddr,
        payload: &[u8],
        dont_fragment: bool,
        now_ms: u64,
    ) -> bool {
        let Some(session) = self.active.as_ref().and_then(|active| active.current.as_ref()) else {
            return false;
        };
        let Some(counter) = session.send.reserve(1) else {
            return false;
        };
        let mut message = vec![0; OVERHEAD + payload.len()];
        message[HEADER_LEN..HEADER_LEN + payload.len()].copy_from_slice(payload);
        session.send.seal(&mut message, 0, counter);
        advance(&self.link.last_tx_ms, now_ms);
        core.send(to, message, dont_fragment);
        true
    }

    /// Sends an empty message.
    pub(super) fn keepalive(&mut self, core: &mut Core, now_ms: u64) {
        if self.seal_and_send(core, &[], true, now_ms) {
            let active = self.active();
            active.owed = None;
            active.kept_alive_ms = now_ms;
        }
    }

    /// Sends an echo padded to `size` to `to`; its id and token.
    pub(super) fn send_echo(
        &mut self,
        core: &mut Core,
        to: SocketAddr,
        size: u32,
        now: Now,
        rng: &mut dyn CryptoRng,
    ) -> (u32, u64) {
        let now_ms = core.ms(now.instant);
        let active = self.active();
        active.echo_id = active.echo_id.wrapping_add(1);
        let (id, token) = (active.echo_id, rng.next_u64());
        let frame = Frame::EchoRequest { id, token };
        self.seal_to(core, to, &frame.encode(size as usize), true, now_ms);
        (id, token)
    }

    /// Answers an echo where it came from.
    pub(super) fn answer_echo(
        &mut self,
        core: &mut Core,
        from: SocketAddr,
        id: u32,
        token: u64,
        now: Now,
    ) {
        let now_ms = core.ms(now.instant);
        if local(from, &core.overlay).is_none() {
            // It came through the tunnel itself.
            return;
        }
        let received = self.link.received();
        let observed = admissible(from, &core.overlay);
        let reply = Frame::EchoReply { id, token, received, observed };
        self.seal_to(core, from, &reply.encode(0), true, now_ms);
    }

    /// Keeps a packet until there is a session.
    pub(super) fn stage(&mut self, core: &mut Core, packet: Vec<u8>, now: Now) {
        let now_ms = core.ms(now.instant);
        if core.staged_bytes + packet.len() > MAX_STAGED_BYTES {
            return core.drop_packet(DropReason::StagingFull);
        }
        core.staged_bytes += packet.len();
        let active = self.active();
        if active.staged.is_empty() {
            active.staged_since = now_ms;
        }
        active.staged.push_back(packet);
        if active.staged.len() > MAX_STAGED
            && let Some(oldest) = active.staged.pop_front()
        {
            core.staged_bytes -= oldest.len();
            core.drop_packet(DropReason::StagingFull);
        }
        self.flush_staged(core, now_ms);
    }

    /// Sends waiting packets if there is a session; true when any was sent.
    pub(super) fn flush_staged(&mut self, core: &mut Core, now_ms: u64) -> bool {
        let usable = |session: &Session| session.send.messages() < REJECT_AFTER_MESSAGES;
        let Some(active) = self.active.as_mut().filter(|a| a.current.as_ref().is_some_and(usable))
        else {
            return false;
        };
        let staged = std::mem::take(&mut active.staged);
        let path_mtu = self.link.path_mtu.load(Ordering::Relaxed) as usize;
        let (mut packets, mut bytes) = (0, 0);
        for mut packet in staged {
            let len = packet.len();
            core.staged_bytes -= len;
            if is_relay(&packet) {
                // Neither padded, since a datagram is inside, nor sent over
                // other nodes itself.
                let at = self.link.endpoint.load().as_deref().copied();
                if at.is_some_and(|at| mesh_node(at).is_some()) {
                    core.drop_packet(DropReason::RelayNested);
                    continue;
                }
            } else {
                packet.resize(padded(len, path_mtu), 0);
            }
            if self.seal_and_send(core, &packet, len <= path_mtu, now_ms) {
                packets += 1;
                bytes += len as u64;
            } else {
                core.drop_packet(DropReason::SessionExpired);
            }
        }
        if packets > 0 {
            self.link.note_sent(packets, bytes, now_ms);
        }
        packets > 0
    }

    pub(super) fn drop_staged(&mut self, core: &mut Core, reason: DropReason) {
        let Some(active) = self.active.as_mut() else {
            return;
        };
        for packet in active.staged.drain(..) {
            core.staged_bytes -= packet.len();
            core.config.drops.count(reason);
        }
    }

    /// True when someone waits for this link or it is up.
    pub(super) fn in_use(&self) -> bool {
        self.config.hold
            || self.link.handshake_wanted.load(Ordering::Relaxed)
            || self.active.as_ref().is_some_and(|active| {
                active.current.is_some() || active.pending.is_some() || !active.staged.is_empty()
            })
    }

    pub(super) fn stats(&self, core: &Core, now: Now) -> PeerStats {
        let now_ms = core.ms(now.instant);
        let active = self.active.as_deref();
        let current = active.and_then(|active| active.current.as_ref());
        let state = if self.unreachable.is_some() {
            LinkState::Unreachable
        } else if current.is_some() {
            LinkState::Up
        } else if active.is_some_and(|active| active.pending.is_some()) {
            LinkState::Connecting
        } else {
            LinkState::Idle
        };
        PeerStats {
            key: self.key(),
            state,
            suite: self.config.suite,
            is_warren: self.config.is_warren,
            endpoint: self.link.endpoint.load().as_deref().copied(),
            allowed: self.config.allowed.clone(),
            rtt: active.and_then(|active| active.paths.rtt()),
            loss: active.and_then(|active| {
                // Else from echoes, assuming both ways are alike.
                let echoes =
                    || active.paths.echo_loss(now_ms).map(|both| 1.0 - (1.0 - both).sqrt());
                active.paths.data_loss(now_ms).or_else(echoes)
            }),
            paths: active.map(|active| active.paths.stats(now_ms)).unwrap_or_default(),
            path_mtu: self.link.path_mtu.load(Ordering::Relaxed),
            handshake_age: (self.handshake_ms > 0)
                .then(|| Duration::from_millis(now_ms.saturating_sub(self.handshake_ms))),
            handshake_unix: super::handshake::unix(self),
            preshared: current.is_some_and(|session| session.preshared),
            has_psk: self.config.psk.is_some(),
            persistent_keepalive: self.config.persistent_keepalive,
            rx_bytes: self.link.rx_bytes.load(Ordering::Relaxed),
            tx_bytes: self.link.tx_bytes.load(Ordering::Relaxed),
        }
    }
}
