//! The engine of all links: handshakes, timers, session tables, liveness and
//! path MTU, as a state machine without I/O.
//!
//! In: `handle_*` with bytes and events from workers, the time and an RNG. Out:
//! [`Engine::poll_transmit`], [`Engine::poll_event`], [`Engine::poll_timeout`];
//! and the [`Tables`] and [`PeerLink`]s that workers read. After any `handle_*`
//! call, drain `poll_transmit` and `poll_event`, then ask `poll_timeout` when
//! to call [`Engine::handle_timeout`].
//!
//! Invariants: a session is published before its first datagram goes out, and
//! withdrawn only when it expires or its peer is removed, so that renewing keys
//! loses nothing. A counter of a session is reserved atomically, so engine and
//! workers seal side by side. A peer that sleeps has no timer. Nothing panics on
//! outside bytes; every queue is bounded.
//!
//! Deliberately not here: sealing and opening of traffic (the workers'), who may
//! be a peer (the control plane's), sockets and clocks.

mod admission;
mod event;
mod handshake;
mod path_mtu;
mod paths;
mod peer;
mod relay;
mod rotation;
mod sessions;
mod timers;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use rand_core::CryptoRng;
use warren_types::{DropCounters, DropReason, LinkPublicKey, PresharedKey};

pub use event::{LinkEvent, LinkState, Now, PeerConfig, PeerStats, Refusal, Transmit, WakeReason};
pub use peer::MAX_STAGED;
use peer::{Peer, advance};

use crate::link::frame::Frame;
use crate::link::peer::PeerLink;
use crate::link::session::RecvSession;
use crate::link::tables::{Routes, Tables};
use crate::noise::mac::CookieIssuer;
use crate::noise::{MacKey, StaticKey};
use crate::path::admissible::overlay_prefixes;
pub use crate::path::{PathKind, PathReason, PathState, PathStats};
use admission::{LoadMeter, SourceLimiter};

/// Waiting packets of all peers together, bytes.
const MAX_STAGED_BYTES: usize = 16 << 20;
/// Events nobody fetched beyond this many are not kept.
const MAX_EVENTS: usize = 4096;

/// How the engine is set up.
#[derive(Debug)]
pub struct EngineConfig {
    /// Our static key.
    pub key: StaticKey,
    /// Our own overlay addresses.
    pub local: Vec<IpAddr>,
    /// MTU of the TUN interface: the largest inner packet of interest, bytes.
    pub mtu: u32,
    /// Handshake messages a second beyond which cookies are demanded.
    pub load_per_second: u32,
    /// Queued handshake messages beyond which cookies are demanded.
    pub load_queue: usize,
    /// Where drops are counted.
    pub drops: Arc<DropCounters>,
}

impl EngineConfig {
    /// With the usual limits: load begins at 1,000 handshakes a second (a core
    /// answers over 5,000) or 64 waiting.
    pub fn new(key: StaticKey, local: Vec<IpAddr>, mtu: u32, drops: Arc<DropCounters>) -> Self {
        Self { key, local, mtu, load_per_second: 1000, load_queue: 64, drops }
    }
}

/// All but the peers: what work on one peer needs beside it.
#[derive(Debug)]
struct Core {
    config: EngineConfig,
    public: LinkPublicKey,
    mac_key: MacKey,
    tables: Arc<Tables>,
    epoch: Instant,
    transmits: VecDeque<Transmit>,
    events: VecDeque<LinkEvent>,
    /// Which peer a local index belongs to, pending handshakes included.
    indices: HashMap<u32, LinkPublicKey>,
    timers: BTreeSet<(u64, LinkPublicKey)>,
    cookies: CookieIssuer,
    load: LoadMeter,
    sources: SourceLimiter,
    staged_bytes: usize,
    /// A second and how many refusals were reported in it.
    refusals: (u64, u32),
    /// Prefixes that lead into the tunnel.
    overlay: Vec<IpNet>,
    own: paths::OwnAddresses,
    /// Our static keys before this one, the latest first.
    former: Vec<rotation::FormerKey>,
}

impl Core {
    fn ms(&self, instant: Instant) -> u64 {
        instant.saturating_duration_since(self.epoch).as_millis() as u64 + 1
    }

    fn us(&self, instant: Instant) -> u64 {
        instant.saturating_duration_since(self.epoch).as_micros() as u64
    }

    fn event(&mut self, event: LinkEvent) {
        if self.events.len() < MAX_EVENTS {
            self.events.push_back(event);
        }
    }

    fn send(&mut self, to: SocketAddr, data: Vec<u8>, dont_fragment: bool) {
        self.transmits.push_back(Transmit { to, data, dont_fragment });
    }

    fn drop_packet(&self, reason: DropReason) {
        self.config.drops.count(reason);
    }

    /// An unused random index for `peer`.
    fn new_index(&mut self, peer: LinkPublicKey, rng: &mut dyn CryptoRng) -> u32 {
        loop {
            let index = rng.next_u32();
            if let std::collections::hash_map::Entry::Vacant(entry) = self.indices.entry(index) {
                entry.insert(peer);
                return index;
            }
        }
    }
}

/// See the module's description.
#[derive(Debug)]
pub struct Engine {
    core: Core,
    peers: HashMap<LinkPublicKey, Peer>,
    /// Former key of a peer to the one it is kept under.
    aliases: HashMap<LinkPublicKey, LinkPublicKey>,
    next_order: u64,
    routes_changed: bool,
    /// As set; the links' own are made of it.
    relay_routes: BTreeMap<Ipv6Addr, Vec<Ipv6Addr>>,
    relaying: bool,
}

impl Engine {
    /// An engine without peers. `epoch` is the zero of all millisecond clocks
    /// shared with the workers (their `now_ms` is time since it, plus 1).
    pub fn new(config: EngineConfig, tables: Arc<Tables>, epoch: Instant) -> Self {
        let public = config.key.public();
        let overlay = overlay_prefixes(&config.local);
        let core = Core {
            public,
            mac_key: MacKey::for_receiver(&public),
            cookies: CookieIssuer::new(&public),
            load: LoadMeter::new(config.load_per_second, config.load_queue),
            sources: SourceLimiter::default(),
            config,
            tables,
            epoch,
            transmits: VecDeque::new(),
            events: VecDeque::new(),
            indices: HashMap::new(),
            timers: BTreeSet::new(),
            staged_bytes: 0,
            refusals: (0, 0),
            overlay,
            own: paths::OwnAddresses::default(),
            former: Vec::new(),
        };
        Self {
            core,
            peers: HashMap::new(),
            aliases: HashMap::new(),
            next_order: 0,
            routes_changed: true,
            relay_routes: BTreeMap::new(),
            relaying: true,
        }
    }

    /// Our public key.
    pub fn public_key(&self) -> LinkPublicKey {
        self.core.public
    }

    /// What workers check mac1 of arriving handshake messages with.
    pub fn mac_key(&self) -> MacKey {
        self.core.mac_key
    }

    /// Time on the clock shared with workers: ms since the epoch, plus 1.
    pub fn now_ms(&self, instant: Instant) -> u64 {
        self.core.ms(instant)
    }

    /// Sets our own overlay addresses.
    pub fn set_local(&mut self, local: Vec<IpAddr>) {
        self.core.overlay = overlay_prefixes(&local);
        self.core.config.local = local;
        self.routes_changed = true;
    }

    /// Adds a peer or changes it; what is unchanged is left alone (sessions
    /// included). Another suite or kind makes it a new peer. An endpoint in
    /// `config` is used only when none is known yet; see
    /// [`Self::set_endpoint`].
    pub fn upsert_peer(
        &mut self,
        config: PeerConfig,
        now: Now,
        rng: &mut dyn CryptoRng,
    ) -> Arc<PeerLink> {
        let key = config.key;
        if let Some(old) = self.peers.get(&key)
            && (old.config.suite, old.config.is_warren) != (config.suite, config.is_warren)
        {
            self.remove_peer(&key);
        }
        if let Some(peer) = self.peers.get_mut(&key) {
            self.routes_changed |= peer.config.allowed != config.allowed;
            let psk = config.psk.clone();
            let old_psk = std::mem::replace(&mut peer.config, config).psk;
            peer.config.psk = old_psk;
            if peer.link.endpoint.load().is_none() {
                peer.link.endpoint.store(peer.config.endpoint.map(Arc::new));
            }
            let link = peer.link.clone();
            self.set_psk(&key, psk, now, rng);
            self.with_peer(&key, |peer, core| peer.service(core, now, rng));
            return link;
        }
        self.routes_changed = true;
        self.next_order += 1;
        self.core.config.key.remember(&key);
        let peer = Peer::new(config, self.next_order);
        let link = peer.link.clone();
        self.peers.insert(key, peer);
        self.with_peer(&key, |peer, core| peer.service(core, now, rng));
        link
    }

    /// Removes a peer: its sessions end at once.
    pub fn remove_peer(&mut self, key: &LinkPublicKey) {
        if let Some(mut peer) = self.peers.remove(key) {
            peer.shut_down(&mut self.core);
            for key in peer.keys().iter().flatten() {
                self.aliases.remove(key);
                self.core.forget_everywhere(key);
            }
            self.routes_changed = true;
        }
    }

    /// Changes the pre-shared key. Handshakes from now on use the new one, and
    /// one is started at once when the link is up or wanted; sessions made
    /// before live on until they expire.
    pub fn set_psk(
        &mut self,
        key: &LinkPublicKey,
        psk: Option<PresharedKey>,
        now: Now,
        rng: &mut dyn CryptoRng,
    ) {
        self.with_peer(key, |peer, core| {
            let old = peer.config.psk.as_ref().map(PresharedKey::expose);
            if old == psk.as_ref().map(PresharedKey::expose) {
                return;
            }
            peer.config.psk = psk;
            if peer.in_use() {
                peer.restart_handshake(core, now, rng);
            }
            peer.service(core, now, rng);
        });
    }

    /// Like [`Engine::set_psk`], but starts no handshake: the peer is going to,
    /// and does not accept one with this key until it does.
    pub fn install_psk(&mut self, key: &LinkPublicKey, psk: PresharedKey) {
        if let Some(peer) = self.peers.get_mut(key) {
            peer.config.psk = Some(psk);
        }
    }

    /// Sends the peer's packets to `to` from now on; a waiting handshake is
    /// tried there at once. With a Warren peer that has a session, `to` becomes
    /// one more path to choose from (see also [`Self::set_candidates`]).
    pub fn set_endpoint(
        &mut self,
        key: &LinkPublicKey,
        to: SocketAddr,
        now: Now,
        rng: &mut dyn CryptoRng,
    ) {
        self.with_peer(key, |peer, core| {
            let up = peer.active.as_ref().is_some_and(|active| active.current.is_some());
            if peer.config.is_warren && up {
                peer.heard(core, to, now);
            } else if peer.link.roam(to) {
                let waiting = peer.active.is_some();
                if waiting && peer.in_use() {
                    peer.restart_handshake(core, now, rng);
                }
            }
            peer.service(core, now, rng);
        });
    }

    /// The peer with this key.
    pub fn link(&self, key: &LinkPublicKey) -> Option<&Arc<PeerLink>> {
        self.peers.get(key).map(|peer| &peer.link)
    }

    /// All peers, in no order.
    pub fn peers(&self) -> impl Iterator<Item = &Arc<PeerLink>> {
        self.peers.values().map(|peer| &peer.link)
    }

    /// One peer's figures.
    pub fn stats(&self, key: &LinkPublicKey, now: Now) -> Option<PeerStats> {
        self.peers.get(key).map(|peer| peer.stats(&self.core, now))
    }

    /// All peers' figures, in the order they were added.
    pub fn all_stats(&self, now: Now) -> Vec<PeerStats> {
        let mut peers: Vec<&Peer> = self.peers.values().collect();
        peers.sort_by_key(|peer| peer.order);
        peers.into_iter().map(|peer| peer.stats(&self.core, now)).collect()
    }

    /// A worker has packets for a peer without session, or its session is due
    /// for renewal.
    pub fn handle_want_handshake(
        &mut self,
        link: &Arc<PeerLink>,
        now: Now,
        rng: &mut dyn CryptoRng,
    ) {
        self.with_link(link, |peer, core| {
            peer.handshake_wanted(core, now, rng);
            peer.service(core, now, rng);
        });
    }

    /// Packets (complete IP packets, checksums in place) for a peer without
    /// session: kept until there is one, [`MAX_STAGED`] at most, the oldest
    /// dropped first.
    pub fn handle_staged(
        &mut self,
        link: &Arc<PeerLink>,
        packets: impl IntoIterator<Item = Vec<u8>>,
        now: Now,
        rng: &mut dyn CryptoRng,
    ) {
        self.with_link(link, |peer, core| {
            for packet in packets {
                peer.stage(core, packet, now);
            }
            peer.handshake_wanted(core, now, rng);
            peer.service(core, now, rng);
        });
    }

    /// The first message under a session authenticated.
    pub fn handle_confirmed(
        &mut self,
        session: &Arc<RecvSession>,
        now: Now,
        rng: &mut dyn CryptoRng,
    ) {
        self.with_link(&session.peer, |peer, core| {
            session.confirmed.store(true, Ordering::Relaxed);
            peer.service(core, now, rng);
        });
    }

    /// An authenticated link frame (see [`crate::link::frame`]) that came from
    /// `from`. Answers go there.
    pub fn handle_link_frame(
        &mut self,
        link: &Arc<PeerLink>,
        from: SocketAddr,
        frame: &[u8],
        now: Now,
        rng: &mut dyn CryptoRng,
    ) {
        let Some(frame) = Frame::parse(frame) else {
            return self.core.drop_packet(DropReason::Malformed);
        };
        self.with_link(link, |peer, core| {
            advance(&peer.link.last_rx_ms, core.ms(now.instant));
            peer.confirm_by_frame(core, now);
            peer.heard(core, from, now);
            match frame {
                Frame::EchoRequest { id, token } => peer.answer_echo(core, from, id, token, now),
                Frame::EchoReply { id, token, received, observed } => {
                    peer.echo_answered(core, id, token, received, observed, now);
                }
                Frame::Candidates { addresses, answer } => {
                    peer.candidates_told(core, addresses, answer, now);
                }
            }
            peer.service(core, now, rng);
        });
        self.tell_news(now, rng);
    }

    /// An authenticated message of a peer came from another address than it is
    /// sent to: a stock WireGuard peer has moved there (a worker has set its
    /// endpoint), of a Warren peer it may be a better path.
    pub fn handle_roamed(
        &mut self,
        link: &Arc<PeerLink>,
        to: SocketAddr,
        now: Now,
        rng: &mut dyn CryptoRng,
    ) {
        self.with_link(link, |peer, core| {
            if peer.config.is_warren {
                peer.heard(core, to, now);
            } else {
                peer.link.roam(to);
                core.event(LinkEvent::EndpointChanged { peer: peer.key(), to });
            }
            peer.service(core, now, rng);
        });
    }

    /// Large packets to a peer seem to vanish (the kernel said so, or an ICMP
    /// message did): probe its path MTU again.
    pub fn handle_mtu_doubt(&mut self, link: &Arc<PeerLink>, now: Now, rng: &mut dyn CryptoRng) {
        self.with_link(link, |peer, core| {
            let now_ms = core.ms(now.instant);
            if let Some(search) = peer.active.as_mut().and_then(|a| a.path_mtu.as_mut()) {
                search.begin(now_ms);
            }
            peer.service(core, now, rng);
        });
    }

    /// Does what is due. Call when [`Self::poll_timeout`] says; earlier is
    /// harmless.
    pub fn handle_timeout(&mut self, now: Now, rng: &mut dyn CryptoRng) {
        let now_ms = self.core.ms(now.instant);
        while let Some((deadline, key)) = self.core.timers.first().copied() {
            if deadline > now_ms {
                break;
            }
            self.core.timers.pop_first();
            self.with_peer(&key, |peer, core| {
                peer.deadline = None;
                peer.service(core, now, rng);
            });
        }
        self.tell_news(now, rng);
    }

    /// The next datagram to send, if any.
    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        self.publish_routes();
        self.core.transmits.pop_front()
    }

    /// The next event, if any.
    pub fn poll_event(&mut self) -> Option<LinkEvent> {
        self.core.events.pop_front()
    }

    /// When [`Self::handle_timeout`] wants to be called, and what for.
    pub fn poll_timeout(&mut self) -> Option<(Instant, WakeReason)> {
        self.publish_routes();
        let (deadline, key) = self.core.timers.first()?;
        let reason = self.peers.get(key)?.deadline?.1;
        Some((self.core.epoch + Duration::from_millis(deadline - 1), reason))
    }

    /// Rebuilds [`Tables::routes`] when peers changed since the last time. Done
    /// by `poll_transmit` and `poll_timeout`, so that adding many peers builds
    /// it once.
    pub fn publish_routes(&mut self) {
        if !std::mem::take(&mut self.routes_changed) {
            return;
        }
        let mut peers: Vec<&Peer> = self.peers.values().collect();
        peers.sort_by_key(|peer| peer.order);
        for peer in &peers {
            peer.link.set_node(peer.overlay_address());
        }
        let nodes: Vec<Arc<PeerLink>> = peers.iter().map(|peer| peer.link.clone()).collect();
        let entries = peers
            .into_iter()
            .flat_map(|peer| peer.config.allowed.iter().map(|net| (*net, peer.link.clone())));
        let routes =
            Routes::new(self.core.config.local.clone(), entries).with_nodes(nodes, self.relaying);
        self.apply_relay_routes(&routes);
        self.core.tables.routes.store(Arc::new(routes));
    }

    fn with_peer(&mut self, key: &LinkPublicKey, work: impl FnOnce(&mut Peer, &mut Core)) {
        if let Some(peer) = self.peers.get_mut(key) {
            work(peer, &mut self.core);
        }
    }

    /// As [`Self::with_peer`], but not for a link whose peer was removed or
    /// replaced meanwhile.
    fn with_link(&mut self, link: &Arc<PeerLink>, work: impl FnOnce(&mut Peer, &mut Core)) {
        if let Some(peer) = self.peers.get_mut(&link.key())
            && Arc::ptr_eq(&peer.link, link)
        {
            work(peer, &mut self.core);
        }
    }
}
