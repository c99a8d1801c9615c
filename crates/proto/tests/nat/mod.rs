//! Nodes behind NATs of every kind, and one that is not and relays for them, on
//! a virtual clock, with the real engines and the real workers' code.

#![allow(dead_code, reason = "each test binary uses a part of the harness")]
#![allow(clippy::disallowed_methods, reason = "the simulation starts at some Instant")]

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashSet};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rand_core::RngCore;
use warren_proto::engine::{
    Engine, EngineConfig, LinkEvent, Now, PathKind, PathReason, PathState, PeerConfig, PeerStats,
};
use warren_proto::link::event::{Outputs, ToEngine};
use warren_proto::link::receive::Receiver;
use warren_proto::link::relay::{Wrapped, wrap};
use warren_proto::link::tables::Tables;
use warren_proto::link::transmit::{TAIL_ROOM, Transmitter};
use warren_proto::noise::{MacKey, StaticKey};
use warren_proto::packet::gather::Limits;
use warren_proto::packet::vnet::VNET_LEN;
use warren_types::{
    DropCounters, DropReason, LinkPublicKey, LinkSecretKey, Suite, mesh_address, mesh_node,
};

#[path = "../../src/test_rng.rs"]
mod test_rng;
use test_rng::TestRng;

/// What a NAT does (RFC 3489's names).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Nat {
    None,
    FullCone,
    Restricted,
    PortRestricted,
    Symmetric,
}

pub(crate) const KINDS: [Nat; 5] =
    [Nat::None, Nat::FullCone, Nat::Restricted, Nat::PortRestricted, Nat::Symmetric];

/// One mapping: outer port, whom it sent to, when it was last used from inside.
#[derive(Debug)]
struct Mapping {
    /// For a symmetric NAT: the only destination.
    to: Option<SocketAddr>,
    port: u16,
    sent_to: HashSet<SocketAddr>,
    used: Duration,
}

#[derive(Debug)]
pub(crate) struct NatBox {
    kind: Nat,
    mappings: Vec<Mapping>,
    next_port: u16,
    /// Mappings unused from inside are forgotten after this.
    pub(crate) forgets: Duration,
}

impl NatBox {
    /// As after a restart: other ports, no memory.
    pub(crate) fn restart(&mut self) {
        self.mappings.clear();
        self.next_port += 300;
    }

    fn out(&mut self, to: SocketAddr, now: Duration) -> u16 {
        let forgets = self.forgets;
        self.mappings.retain(|mapping| now < mapping.used + forgets);
        let key = (self.kind == Nat::Symmetric).then_some(to);
        let known = self.mappings.iter().position(|mapping| mapping.to == key);
        let at = known.unwrap_or_else(|| {
            self.next_port += 7;
            let (port, sent_to) = (self.next_port, HashSet::new());
            self.mappings.push(Mapping { to: key, port, sent_to, used: now });
            self.mappings.len() - 1
        });
        let mapping = &mut self.mappings[at];
        mapping.used = now;
        mapping.sent_to.insert(to);
        mapping.port
    }

    fn lets_in(&mut self, from: SocketAddr, port: u16, now: Duration) -> bool {
        let forgets = self.forgets;
        let mapping = self.mappings.iter().find(|m| m.port == port && now < m.used + forgets);
        mapping.is_some_and(|mapping| match self.kind {
            Nat::None | Nat::FullCone => true,
            Nat::Restricted => mapping.sent_to.iter().any(|to| to.ip() == from.ip()),
            Nat::PortRestricted | Nat::Symmetric => mapping.sent_to.contains(&from),
        })
    }
}

/// What happens to datagrams that go straight between two nodes.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Spoil {
    pub(crate) dead: bool,
    pub(crate) extra: Duration,
    pub(crate) loss: f64,
    /// Longer datagrams vanish; 0: none.
    pub(crate) over: usize,
}

pub(crate) struct Node {
    pub(crate) engine: Engine,
    pub(crate) tables: Arc<Tables>,
    pub(crate) drops: Arc<DropCounters>,
    mac_key: MacKey,
    pub(crate) key: LinkPublicKey,
    pub(crate) nat: NatBox,
    tx: Transmitter,
    rx: Receiver,
    /// (when, number) of packets that arrived.
    pub(crate) inbox: Vec<(Duration, u32)>,
    pub(crate) events: Vec<(Duration, LinkEvent)>,
    pub(crate) sent: u64,
    pub(crate) timeouts: u64,
}

/// A datagram under way: when it arrives, order, from, to, data.
type Flight = Reverse<(Duration, u64, SocketAddr, SocketAddr, Vec<u8>)>;

pub(crate) struct World {
    pub(crate) nodes: Vec<Node>,
    epoch: Instant,
    pub(crate) now: Duration,
    pub(crate) rng: TestRng,
    /// One way.
    pub(crate) delay: Duration,
    pub(crate) spoils: BTreeMap<(usize, usize), Spoil>,
    flying: BinaryHeap<Flight>,
    order: u64,
    /// How many datagrams went to addresses nobody has, by address.
    pub(crate) astray: BTreeMap<SocketAddr, u64>,
}

#[derive(Default)]
struct Did {
    frames: Vec<Vec<u8>>,
    sent: Vec<(SocketAddr, Vec<u8>)>,
    events: Vec<ToEngine>,
    drops: Vec<(DropReason, u64)>,
}

impl Outputs for Did {
    fn tun(&mut self, frame: &[u8]) {
        self.frames.push(frame[VNET_LEN..].to_vec());
    }
    fn udp(&mut self, to: SocketAddr, data: &[u8], segment: usize, _: u8) {
        self.sent.extend(data.chunks(segment).map(|one| (to, one.to_vec())));
    }
    fn udp_fragmentable(&mut self, to: SocketAddr, data: &[u8], _: u8) {
        self.sent.push((to, data.to_vec()));
    }
    fn engine(&mut self, event: ToEngine) {
        self.events.push(event);
    }
    fn dropped(&mut self, reason: DropReason, packets: u64) {
        self.drops.push((reason, packets));
    }
}

pub(crate) fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

pub(crate) fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

pub(crate) fn overlay(i: usize) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 0, 0, 7, 0, 0, 0, i as u16 + 1)
}

/// What the node itself binds.
pub(crate) fn inner(i: usize, nat: Nat) -> SocketAddr {
    match nat {
        Nat::None => SocketAddr::from(([192, 0, 2, i as u8 + 1], 51820)),
        _ => SocketAddr::from(([10, i as u8, 0, 2], 51820)),
    }
}

fn outer(i: usize) -> IpAddr {
    [198, 51, 100, i as u8 + 1].into()
}

/// The relay's index.
pub(crate) const RELAY: usize = 2;

pub(crate) fn static_key(n: u8) -> StaticKey {
    StaticKey::new(&LinkSecretKey::from_bytes([n; 32]))
}

impl World {
    /// Nodes 0 and 1 behind these, node 2 without NAT. All links to node 2 are
    /// held up; 0 and 1 know of each other the way over 2.
    pub(crate) fn new(left: Nat, right: Nat, seed: u64) -> Self {
        let epoch = Instant::now();
        let node = |(i, nat): (usize, Nat)| {
            let key = static_key(i as u8 + 1);
            let (tables, drops) = (Arc::new(Tables::default()), Arc::new(DropCounters::default()));
            let local = vec![overlay(i).into()];
            let config = EngineConfig::new(key.clone(), local, 1420, drops.clone());
            let engine = Engine::new(config, tables.clone(), epoch);
            Node {
                mac_key: engine.mac_key(),
                engine,
                tables,
                drops,
                key: key.public(),
                nat: NatBox {
                    kind: nat,
                    mappings: Vec::new(),
                    next_port: 20_000 + 1_000 * i as u16,
                    forgets: secs(60),
                },
                tx: Transmitter::default(),
                rx: Receiver::new(Limits::ALL),
                inbox: Vec::new(),
                events: Vec::new(),
                sent: 0,
                timeouts: 0,
            }
        };
        let mut world = Self {
            nodes: [left, right, Nat::None].into_iter().enumerate().map(node).collect(),
            epoch,
            now: Duration::ZERO,
            rng: TestRng::new(seed),
            delay: ms(25),
            spoils: BTreeMap::new(),
            flying: BinaryHeap::new(),
            order: 0,
            astray: BTreeMap::new(),
        };
        for i in 0..3 {
            let own = inner(i, world.nodes[i].nat.kind);
            world.with(i, |engine, now, rng| engine.set_own_candidates([own], now, rng));
            for j in (0..3).filter(|j| *j != i) {
                world.introduce(i, j);
            }
        }
        for (i, j) in [(0, 1), (1, 0)] {
            let way = BTreeMap::from([(overlay(j), vec![overlay(RELAY)])]);
            world.with(i, |engine, _, _| engine.set_relay_routes(way));
        }
        world
    }

    fn introduce(&mut self, i: usize, j: usize) {
        let (key, inside) = (self.nodes[j].key, inner(j, self.nodes[j].nat.kind));
        let config = PeerConfig {
            key,
            suite: Suite::Aes256Gcm,
            is_warren: true,
            psk: None,
            psk_required: false,
            endpoint: (j == RELAY).then_some(inside),
            allowed: vec![IpAddr::from(overlay(j)).into()],
            persistent_keepalive: None,
            hold: i != RELAY && j == RELAY,
        };
        self.with(i, |engine, now, rng| {
            engine.upsert_peer(config, now, rng);
            // What its descriptor says.
            engine.set_candidates(&key, [inside, mesh_address(overlay(j))], now, rng);
        });
    }

    pub(crate) fn now(&self) -> Now {
        Now { instant: self.epoch + self.now, unix: secs(1_800_000_000) + self.now }
    }

    pub(crate) fn now_ms(&self) -> u64 {
        self.now.as_millis() as u64 + 1
    }

    pub(crate) fn with<T>(
        &mut self,
        i: usize,
        work: impl FnOnce(&mut Engine, Now, &mut TestRng) -> T,
    ) -> T {
        let now = self.now();
        let result = work(&mut self.nodes[i].engine, now, &mut self.rng);
        self.drain(i);
        result
    }

    fn chance(&mut self, share: f64) -> bool {
        share > 0.0 && (self.rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64 <= share
    }

    fn fly(&mut self, i: usize, to: SocketAddr, data: Vec<u8>) {
        assert!(mesh_node(to).is_none() && !to.ip().is_loopback(), "{to}");
        self.nodes[i].sent += 1;
        let now = self.now;
        let nat = &mut self.nodes[i].nat;
        let from = match nat.kind {
            Nat::None => inner(i, Nat::None),
            _ => SocketAddr::new(outer(i), nat.out(to, now)),
        };
        let target = self.target(to);
        let Some(j) = target else {
            *self.astray.entry(to).or_default() += 1;
            return;
        };
        let spoil = self.spoils.get(&(i, j)).copied().unwrap_or_default();
        let cut = spoil.over > 0 && data.len() > spoil.over;
        if spoil.dead || cut || self.chance(spoil.loss) {
            return;
        }
        self.order += 1;
        let at = now + self.delay + spoil.extra;
        self.flying.push(Reverse((at, self.order, from, to, data)));
    }

    fn target(&self, to: SocketAddr) -> Option<usize> {
        (0..self.nodes.len()).find(|i| match self.nodes[*i].nat.kind {
            Nat::None => inner(*i, Nat::None) == to,
            _ => outer(*i) == to.ip(),
        })
    }

    fn drain(&mut self, i: usize) {
        while let Some(transmit) = self.nodes[i].engine.poll_transmit() {
            let Some(node) = mesh_node(transmit.to) else {
                self.fly(i, transmit.to, transmit.data);
                continue;
            };
            let routes = self.nodes[i].tables.routes.load_full();
            let now_ms = self.now_ms();
            match wrap(&routes, node, &transmit.data, !transmit.dont_fragment, now_ms) {
                Wrapped::Send { to, datagram, .. } => self.fly(i, to, datagram),
                Wrapped::Stage { hop, frame } => {
                    let now = self.now();
                    self.nodes[i].engine.handle_staged(&hop, [frame], now, &mut self.rng);
                }
                Wrapped::Dropped(reason) => self.nodes[i].drops.count(reason),
            }
        }
        while let Some(event) = self.nodes[i].engine.poll_event() {
            self.nodes[i].events.push((self.now, event));
        }
    }

    fn settle(&mut self, i: usize, did: Did) {
        did.drops.iter().for_each(|(reason, n)| self.nodes[i].drops.add(*reason, *n));
        for frame in did.frames {
            if let Some(number) = frame.get(48..52) {
                let number = u32::from_le_bytes(number.try_into().unwrap());
                self.nodes[i].inbox.push((self.now, number));
            }
        }
        for (to, data) in did.sent {
            self.fly(i, to, data);
        }
        let now = self.now();
        for event in did.events {
            let (engine, rng) = (&mut self.nodes[i].engine, &mut self.rng);
            match event {
                ToEngine::Handshake { from, data } => {
                    engine.handle_handshake(from, &data, 0, now, rng);
                }
                ToEngine::LinkFrame { peer, from, data } => {
                    engine.handle_link_frame(&peer, from, &data, now, rng);
                }
                ToEngine::Staged { peer, packets } => {
                    engine.handle_staged(&peer, packets, now, rng);
                }
                ToEngine::Confirmed { session } => engine.handle_confirmed(&session, now, rng),
                ToEngine::Roamed { peer, to } => engine.handle_roamed(&peer, to, now, rng),
                // No control transport and no circuits here.
                ToEngine::Quic { .. }
                | ToEngine::Cell { .. }
                | ToEngine::OnionRequest { .. }
                | ToEngine::OnionAnswer { .. } => {}
            }
            self.drain(i);
        }
    }

    /// A program on node `from` sends packet `number` of `len` bytes.
    pub(crate) fn send(&mut self, from: usize, to: usize, number: u32, len: usize) {
        let payload = (len.max(60) - 40) as u16;
        let mut packet = vec![0x60, 0, 0, 0, (payload >> 8) as u8, payload as u8, 17, 64];
        packet.extend(overlay(from).octets());
        packet.extend(overlay(to).octets());
        packet.extend([0, 7, 0, 7, (payload >> 8) as u8, payload as u8, 1, 1]);
        packet.extend(number.to_le_bytes());
        packet.resize(40 + usize::from(payload), 0);
        let mut buffer = vec![0; VNET_LEN + packet.len() + TAIL_ROOM];
        buffer[VNET_LEN..VNET_LEN + packet.len()].copy_from_slice(&packet);
        let mut did = Did::default();
        let now_ms = self.now_ms();
        let node = &mut self.nodes[from];
        node.tx.frame(&mut did, &node.tables, &mut buffer, VNET_LEN + packet.len(), now_ms);
        node.tx.finish(&mut did);
        self.settle(from, did);
    }

    /// Does the next thing due before `until`; false when nothing is.
    fn step(&mut self, until: Duration) -> bool {
        let arrival = self.flying.peek().map(|Reverse((at, ..))| *at);
        let timer = (0..self.nodes.len())
            .filter_map(|i| {
                let at = self.nodes[i].engine.poll_timeout()?.0;
                Some((at.saturating_duration_since(self.epoch), i))
            })
            .min();
        let next = arrival.into_iter().chain(timer.map(|(at, _)| at)).min();
        let Some(next) = next.filter(|at| *at <= until) else { return false };
        self.now = self.now.max(next);
        if arrival.is_some_and(|at| at <= next) {
            let Some(Reverse((_, _, from, to, data))) = self.flying.pop() else { return false };
            self.arrive(from, to, &data);
        } else if let Some((_, i)) = timer {
            self.nodes[i].timeouts += 1;
            self.with(i, |engine, now, rng| engine.handle_timeout(now, rng));
        }
        true
    }

    fn arrive(&mut self, from: SocketAddr, to: SocketAddr, data: &[u8]) {
        let Some(i) = self.target(to) else { return };
        let (now, now_ms) = (self.now, self.now_ms());
        let node = &mut self.nodes[i];
        if node.nat.kind != Nat::None && !node.nat.lets_in(from, to.port(), now) {
            return;
        }
        let mut did = Did::default();
        let key = node.mac_key;
        node.rx.train(&mut did, &node.tables, &key, from, 0, data, data.len(), now_ms);
        node.rx.finish(&mut did);
        self.settle(i, did);
    }

    pub(crate) fn run(&mut self, time: Duration) {
        let until = self.now + time;
        while self.step(until) {}
        self.now = until;
    }

    /// Both ends send a packet of `len` bytes every 20 ms for `time`, numbered
    /// from `from` on; gives the next number.
    pub(crate) fn talk(&mut self, from: u32, time: Duration, len: usize) -> u32 {
        let until = self.now + time;
        let mut number = from;
        while self.now < until {
            self.send(0, 1, number, len);
            self.send(1, 0, number, len);
            number += 1;
            self.run(ms(20));
        }
        number
    }

    /// The longest time without a packet at node `i` since `since`, up to now.
    pub(crate) fn longest_gap(&self, i: usize, since: Duration) -> Duration {
        let mut last = since;
        let mut longest = Duration::ZERO;
        for (at, _) in self.nodes[i].inbox.iter().filter(|(at, _)| *at >= since) {
            longest = longest.max(*at - last);
            last = *at;
        }
        longest.max(self.now - last)
    }

    pub(crate) fn stats(&self, i: usize, j: usize) -> PeerStats {
        self.nodes[i].engine.stats(&self.nodes[j].key, self.now()).expect("introduced")
    }

    /// Which way `i` sends to `j`.
    pub(crate) fn kind(&self, i: usize, j: usize) -> Option<PathKind> {
        self.stats(i, j).endpoint.map(PathKind::of)
    }

    /// Both send that way, and it works.
    pub(crate) fn both(&self, kind: PathKind) -> bool {
        [(0, 1), (1, 0)].into_iter().all(|(i, j)| {
            let stats = self.stats(i, j);
            stats.paths.first().is_some_and(|path| {
                path.active && path.kind == kind && path.state == PathState::Valid
            })
        })
    }

    /// Path changes of node `i` since `since`.
    pub(crate) fn changes(&self, i: usize, since: Duration) -> Vec<(Duration, PathReason)> {
        let j = 1 - i;
        let changes = self.nodes[i].events.iter().filter_map(|(at, event)| match event {
            LinkEvent::PathChanged { peer, reason, .. }
                if *peer == self.nodes[j].key && *at >= since =>
            {
                Some((*at - since, *reason))
            }
            _ => None,
        });
        changes.collect()
    }

    pub(crate) fn spoil(&mut self, spoil: Spoil) {
        self.spoils.insert((0, 1), spoil);
        self.spoils.insert((1, 0), spoil);
    }
}
