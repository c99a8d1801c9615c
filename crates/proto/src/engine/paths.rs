//! Paths of each peer: what the engine feeds the state machine of
//! [`crate::path`] with, and what it does as told: probes, candidates frames,
//! moving data from one address to another. Only between Warren nodes; stock
//! WireGuard peers roam as WireGuard has it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rand_core::CryptoRng;
use warren_types::{LinkPublicKey, mesh_node};

use super::event::{LinkEvent, Now};
use super::peer::Peer;
use super::{Core, Engine};
use crate::link::frame::{ECHO_LEN, Frame, Tally};
use crate::path::admissible::{admissible, local};
use crate::path::{MAX_TOLD, Origin, Pace, PathReason};

/// Packets flow if the last one is younger than this.
const FLOWING_MS: u64 = 5_000;
/// A candidates frame without answer is repeated after this, doubled each time.
const TELL_AGAIN_MS: u64 = 1_000;
/// Tries of one.
const TELL_TRIES: u32 = 5;
/// Candidates frames of one peer answered: one in this time.
const ANSWER_GAP_MS: u64 = 500;
/// Own addresses as others see them: so many are passed on…
const MAX_REFLEXIVE: usize = 4;
/// …for so long after they were last seen.
const REFLEXIVE_MS: u64 = 600_000;
/// One not seen for this long gives way to another port of the same IP address.
const OUTDATED_MS: u64 = 90_000;
/// News of them are passed on at most this often.
const NEWS_GAP_MS: u64 = 5_000;
/// Inner size assumed of a path over other nodes until probed: their links
/// carry 1380 bytes or more, of which relaying takes up to 96.
const DETOUR_MTU: u32 = 1280;

/// An address of ours as a peer sees it.
#[derive(Debug, Clone, Copy)]
struct Reflexive {
    address: SocketAddr,
    by: LinkPublicKey,
    seen_ms: u64,
}

/// Where we are, as far as we know.
#[derive(Debug, Default)]
pub(super) struct OwnAddresses {
    /// From our own side: interfaces, port mappings.
    told: Vec<SocketAddr>,
    reflexive: Vec<Reflexive>,
    /// Peers on detours are to learn the news at this time.
    news_ms: Option<u64>,
    news_told_ms: u64,
}

impl OwnAddresses {
    fn list(&self, now_ms: u64) -> Vec<SocketAddr> {
        let reflexive = self.reflexive.iter().filter(|seen| now_ms < seen.seen_ms + REFLEXIVE_MS);
        let mut list: Vec<SocketAddr> = reflexive.map(|seen| seen.address).collect();
        for address in &self.told {
            if !list.contains(address) && list.len() < MAX_TOLD {
                list.push(*address);
            }
        }
        list
    }

    /// Takes in what `by` sees us as; true when that is news. A peer has one
    /// such address at most for each family, and of one public IP with many
    /// ports (a symmetric NAT) only the first port is kept: it is as good as any.
    fn seen(&mut self, address: SocketAddr, by: LinkPublicKey, now_ms: u64) -> bool {
        self.reflexive.retain(|seen| now_ms < seen.seen_ms + REFLEXIVE_MS);
        if let Some(known) = self.reflexive.iter_mut().find(|seen| seen.address == address) {
            known.seen_ms = now_ms;
            return false;
        }
        let same_family = |seen: &Reflexive| seen.address.is_ipv4() == address.is_ipv4();
        self.reflexive.retain(|seen| seen.by != by || !same_family(seen));
        let outdated = |seen: &Reflexive| now_ms >= seen.seen_ms + OUTDATED_MS;
        self.reflexive.retain(|seen| seen.address.ip() != address.ip() || !outdated(seen));
        let known_ip = self.reflexive.iter().any(|seen| seen.address.ip() == address.ip());
        if known_ip || self.reflexive.len() >= MAX_REFLEXIVE || self.told.contains(&address) {
            return false;
        }
        self.reflexive.push(Reflexive { address, by, seen_ms: now_ms });
        true
    }
}

/// What the peer still has to be told about our addresses.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Telling {
    /// When to send the next candidates frame, if one is due.
    pub(super) at_ms: Option<u64>,
    tries: u32,
    answered_ms: u64,
}

impl Engine {
    /// Where a peer may be reached: replaces what was said before. At most
    /// [`MAX_TOLD`] count; addresses nobody can have, and ones inside the
    /// overlay, are ignored, except the mesh address (`warren_types::mesh_address`)
    /// and loopback addresses of local proxies. They are tried beside those the
    /// peer itself tells and is heard from.
    pub fn set_candidates(
        &mut self,
        key: &LinkPublicKey,
        addresses: impl IntoIterator<Item = SocketAddr>,
        now: Now,
        rng: &mut dyn CryptoRng,
    ) {
        let overlay = &self.core.overlay;
        let mut list: Vec<SocketAddr> = Vec::new();
        for address in addresses.into_iter().filter_map(|address| local(address, overlay)) {
            if !list.contains(&address) && list.len() < MAX_TOLD {
                list.push(address);
            }
        }
        self.with_peer(key, |peer, core| {
            if !peer.config.is_warren || peer.candidates == list {
                return;
            }
            if peer.link.endpoint.load().is_none() {
                peer.link.endpoint.store(list.first().copied().map(Arc::new));
            }
            if let Some(active) = peer.active.as_mut() {
                active.paths.set(Origin::Configured, list.iter().copied());
            }
            peer.candidates = list;
            peer.service(core, now, rng);
        });
    }

    /// Where we may be reached: told to peers, inside sessions, so that they can
    /// find a direct path. What peers see us as is added to it by the engine.
    pub fn set_own_candidates(
        &mut self,
        addresses: impl IntoIterator<Item = SocketAddr>,
        now: Now,
        rng: &mut dyn CryptoRng,
    ) {
        let overlay = &self.core.overlay;
        let list: Vec<SocketAddr> = addresses
            .into_iter()
            .filter_map(|address| admissible(address, overlay))
            .take(MAX_TOLD)
            .collect();
        if list == self.core.own.told {
            return;
        }
        self.core.own.told = list;
        self.tell_all(false, now, rng);
    }

    /// Tells peers where we are: all with a session, or those on detours.
    fn tell_all(&mut self, detours: bool, now: Now, rng: &mut dyn CryptoRng) {
        let now_ms = self.core.ms(now.instant);
        for peer in self.peers.values_mut().filter(|peer| peer.config.is_warren) {
            let Some(active) = peer.active.as_mut().filter(|active| active.current.is_some())
            else {
                continue;
            };
            if !detours || active.paths.is_detour() {
                active.telling = Telling { at_ms: Some(now_ms), tries: 0, ..active.telling };
                peer.service(&mut self.core, now, rng);
            }
        }
    }

    /// Passes on what peers see us as, when that is news.
    pub(super) fn tell_news(&mut self, now: Now, rng: &mut dyn CryptoRng) {
        let now_ms = self.core.ms(now.instant);
        if self.core.own.news_ms.is_some_and(|at| now_ms >= at) {
            self.core.own.news_ms = None;
            self.core.own.news_told_ms = now_ms;
            self.tell_all(true, now, rng);
        }
    }
}

impl Peer {
    /// How busy the link is.
    pub(super) fn pace(&self, now_ms: u64) -> Pace {
        let up = self.active.as_ref().is_some_and(|active| active.current.is_some());
        if !self.config.is_warren || !up {
            return Pace::Asleep;
        }
        let last = self.last_data_ms();
        let carried = self.active.as_ref().map_or(0, |active| active.carried_ms);
        let flowed = last.max(carried);
        if flowed > 0 && now_ms < flowed + FLOWING_MS {
            Pace::Flowing
        } else if self.measured_lately(now_ms) {
            let started = self.active.as_ref().map_or(0, |active| active.started_ms);
            Pace::Recent { quiet_ms: now_ms.saturating_sub(last.max(started)) }
        } else if self.config.hold {
            Pace::Idle
        } else {
            Pace::Asleep
        }
    }

    /// Does what is due: judges paths, moves data, sends probes.
    pub(super) fn follow_paths(&mut self, core: &mut Core, now: Now, rng: &mut dyn CryptoRng) {
        let now_ms = core.ms(now.instant);
        let pace = self.pace(now_ms);
        if pace == Pace::Asleep {
            return;
        }
        let key = self.key();
        let heard_ms = self.link.last_rx_ms.load(Ordering::Relaxed);
        let active = self.active();
        active.paths.check(now_ms);
        if let Some(change) = active.paths.choose(heard_ms, now_ms) {
            self.go_to(core, change.from, change.to, change.reason, now);
        }
        let active = self.active();
        if active.paths.lost(now_ms) {
            core.event(LinkEvent::PathSuspected { peer: key });
            self.initiate(core, now, rng);
        }
        while let Some(to) = self.active().paths.due(pace, now_ms) {
            self.probe_path(core, to, now, rng);
        }
        if self.active().paths.take_punch() {
            let telling = &mut self.active().telling;
            *telling = Telling { at_ms: Some(now_ms), tries: TELL_TRIES - 1, ..*telling };
        }
        self.tell(core, now_ms);
    }

    fn probe_path(&mut self, core: &mut Core, to: SocketAddr, now: Now, rng: &mut dyn CryptoRng) {
        let (now_ms, now_us) = (core.ms(now.instant), core.us(now.instant));
        let before = self.link.sent();
        let numbers = self.send_echo(core, to, ECHO_LEN as u32, now, rng);
        self.active().paths.sent(to, numbers, before, now_ms, now_us);
    }

    /// Tells the peer our addresses if that is due.
    fn tell(&mut self, core: &mut Core, now_ms: u64) {
        let telling = &mut self.active().telling;
        if telling.at_ms.is_none_or(|at| now_ms < at) {
            return;
        }
        telling.tries += 1;
        let again = now_ms + (TELL_AGAIN_MS << telling.tries.min(6));
        telling.at_ms = (telling.tries < TELL_TRIES).then_some(again);
        let frame = Frame::Candidates { addresses: core.own.list(now_ms), answer: true };
        self.seal_and_send(core, &frame.encode(0), true, now_ms);
    }

    /// A session came up where there was none.
    pub(super) fn paths_begin(&mut self, initiator: bool, now_ms: u64) {
        let endpoint = self.link.endpoint.load().as_deref().copied();
        let active = self.active();
        active.paths.new_session();
        if let Some(endpoint) = endpoint {
            active.paths.force(endpoint, now_ms);
        }
        active.telling = Telling { at_ms: initiator.then_some(now_ms), ..Telling::default() };
    }

    /// The peer told where it is.
    pub(super) fn candidates_told(
        &mut self,
        core: &mut Core,
        addresses: Vec<SocketAddr>,
        answer: bool,
        now: Now,
    ) {
        let now_ms = core.ms(now.instant);
        let own = core.own.list(now_ms);
        let told: Vec<SocketAddr> = addresses
            .into_iter()
            .filter_map(|address| admissible(address, &core.overlay))
            .filter(|address| !own.contains(address))
            .collect();
        let active = self.active();
        active.paths.set(Origin::Told, told);
        active.paths.punch(now_ms);
        if !answer {
            active.telling.at_ms = None;
        } else if now_ms >= active.telling.answered_ms + ANSWER_GAP_MS {
            active.telling.answered_ms = now_ms;
            let frame = Frame::Candidates { addresses: own, answer: false };
            self.seal_and_send(core, &frame.encode(0), true, now_ms);
        }
    }

    /// An authenticated message came from `from`.
    pub(super) fn heard(&mut self, core: &Core, from: SocketAddr, now: Now) {
        let now_ms = core.ms(now.instant);
        if let Some(from) = self.at(core, from) {
            self.active().paths.heard(from, now_ms);
        }
    }

    /// `from` in canonical form, if the peer can be there: over other nodes it is
    /// at its own overlay address only.
    pub(super) fn at(&self, core: &Core, from: SocketAddr) -> Option<SocketAddr> {
        let own = |node| self.overlay_address() == Some(node);
        local(from, &core.overlay).filter(|at| mesh_node(*at).is_none_or(own))
    }

    /// A probe was answered.
    pub(super) fn echo_answered(
        &mut self,
        core: &mut Core,
        id: u32,
        token: u64,
        received: Tally,
        observed: Option<SocketAddr>,
        now: Now,
    ) {
        let (now_ms, now_us) = (core.ms(now.instant), core.us(now.instant));
        let key = self.key();
        let Some(active) = self.active.as_mut() else {
            return;
        };
        if let Some(search) = &mut active.path_mtu
            && search.answered(id, now_ms)
        {
            return;
        }
        let observed = observed.and_then(|address| admissible(address, &core.overlay));
        let Some(answer) = active.paths.answered(id, token, received, observed, now_ms, now_us)
        else {
            return;
        };
        if answer.active && !std::mem::replace(&mut active.rtt_reported, true) {
            core.event(LinkEvent::RttMeasured { peer: key, rtt: answer.rtt });
        }
        if let Some(address) = observed
            && core.own.seen(address, key, now_ms)
        {
            let earliest = core.own.news_told_ms + NEWS_GAP_MS;
            core.own.news_ms.get_or_insert(now_ms.max(earliest));
        }
        if let Some(address) = answer.observed {
            core.event(LinkEvent::ObservedAddress { peer: key, via: answer.path, address });
        }
    }

    /// Sends data to `to` from now on.
    pub(super) fn go_to(
        &mut self,
        core: &mut Core,
        from: Option<SocketAddr>,
        to: SocketAddr,
        reason: PathReason,
        now: Now,
    ) {
        let now_ms = core.ms(now.instant);
        self.active().paths.force(to, now_ms);
        if !self.link.roam(to) {
            return;
        }
        core.event(LinkEvent::PathChanged { peer: self.key(), from, to, reason });
        let mtu = self.link.path_mtu.load(Ordering::Relaxed);
        let active = self.active();
        if let Some(from) = from {
            active.paths.set_mtu(from, mtu);
        }
        let known = active.paths.mtu(to);
        let careful = if active.paths.is_detour() { mtu.min(DETOUR_MTU) } else { mtu };
        self.path_changed(core, known.unwrap_or(careful), now);
    }
}
