//! Links over other nodes, with real engines and real workers on a virtual
//! clock: who reaches whom directly, and how large datagrams may be there, is
//! part of the story.

#![allow(clippy::disallowed_methods, reason = "the simulation starts at some Instant")]

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::net::{Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use warren_proto::engine::{Engine, EngineConfig, LinkEvent, Now, PeerConfig};
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

#[path = "../src/test_rng.rs"]
mod test_rng;
use test_rng::TestRng;

const DELAY: Duration = Duration::from_millis(5);

fn overlay(i: usize) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 0, 0, 7, 0, 0, 0, i as u16 + 1)
}

fn underlay(i: usize) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, i as u8 + 1], 51820))
}

struct Node {
    engine: Engine,
    tables: Arc<Tables>,
    drops: Arc<DropCounters>,
    mac_key: MacKey,
    key: LinkPublicKey,
    tx: Transmitter,
    rx: Receiver,
    /// What reached the TUN, without vnet headers.
    inbox: Vec<Vec<u8>>,
    events: Vec<LinkEvent>,
}

/// A datagram under way: when, order, from, to, data.
type Flight = Reverse<(Duration, u64, usize, usize, Vec<u8>)>;

struct World {
    nodes: Vec<Node>,
    epoch: Instant,
    now: Duration,
    rng: TestRng,
    /// Largest UDP payload unfragmented between two nodes that reach each other.
    ways: BTreeMap<(usize, usize), usize>,
    flying: BinaryHeap<Flight>,
    order: u64,
    /// All datagrams sent: from, to, data.
    tape: Vec<(usize, usize, Vec<u8>)>,
}

/// What a worker did.
#[derive(Default)]
struct Did {
    frames: Vec<Vec<u8>>,
    sent: Vec<(SocketAddr, Vec<u8>, bool)>,
    events: Vec<ToEngine>,
    drops: Vec<(DropReason, u64)>,
}

impl Outputs for Did {
    fn tun(&mut self, frame: &[u8]) {
        self.frames.push(frame[VNET_LEN..].to_vec());
    }
    fn udp(&mut self, to: SocketAddr, data: &[u8], segment: usize, _: u8) {
        self.sent.extend(data.chunks(segment).map(|one| (to, one.to_vec(), true)));
    }
    fn udp_fragmentable(&mut self, to: SocketAddr, data: &[u8], _: u8) {
        self.sent.push((to, data.to_vec(), false));
    }
    fn engine(&mut self, event: ToEngine) {
        self.events.push(event);
    }
    fn dropped(&mut self, reason: DropReason, packets: u64) {
        self.drops.push((reason, packets));
    }
}

impl World {
    /// Nodes that all know each other's keys, and reach the neighbours in a row.
    fn row(n: usize) -> Self {
        let mut world = Self::strangers(n);
        for i in 1..n {
            world.open(i - 1, i, 1472);
        }
        world
    }

    fn strangers(n: usize) -> Self {
        let epoch = Instant::now();
        let node = |i: usize| {
            let key = StaticKey::new(&LinkSecretKey::from_bytes([i as u8 + 1; 32]));
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
                tx: Transmitter::default(),
                rx: Receiver::new(Limits::ALL),
                inbox: Vec::new(),
                events: Vec::new(),
            }
        };
        let mut world = Self {
            nodes: (0..n).map(node).collect(),
            epoch,
            now: Duration::ZERO,
            rng: TestRng::new(7),
            ways: BTreeMap::new(),
            flying: BinaryHeap::new(),
            order: 0,
            tape: Vec::new(),
        };
        for i in 0..n {
            for j in (0..n).filter(|j| *j != i) {
                let config = PeerConfig {
                    key: world.nodes[j].key,
                    suite: Suite::Aes256Gcm,
                    is_warren: true,
                    psk: None,
                    psk_required: false,
                    endpoint: Some(mesh_address(overlay(j))),
                    allowed: vec![std::net::IpAddr::from(overlay(j)).into()],
                    persistent_keepalive: None,
                    hold: false,
                };
                let now = world.now();
                world.nodes[i].engine.upsert_peer(config, now, &mut world.rng);
                world.drain(i);
            }
        }
        world
    }

    /// The two reach each other from now on.
    fn open(&mut self, a: usize, b: usize, payload: usize) {
        for (from, to) in [(a, b), (b, a)] {
            self.ways.insert((from, to), payload);
            let (key, now) = (self.nodes[to].key, self.now());
            self.nodes[from].engine.set_endpoint(&key, underlay(to), now, &mut self.rng);
            self.drain(from);
        }
    }

    fn close(&mut self, a: usize, b: usize) {
        self.ways.remove(&(a, b));
        self.ways.remove(&(b, a));
    }

    /// Node `from` goes to each destination over these.
    fn route(&mut self, from: usize, ways: &[(usize, &[usize])]) {
        let routes = ways
            .iter()
            .map(|(to, relays)| (overlay(*to), relays.iter().map(|i| overlay(*i)).collect()));
        self.nodes[from].engine.set_relay_routes(routes.collect());
        self.drain(from);
    }

    fn now(&self) -> Now {
        Now { instant: self.epoch + self.now, unix: Duration::from_secs(1_800_000_000) + self.now }
    }

    fn now_ms(&self) -> u64 {
        self.now.as_millis() as u64 + 1
    }

    fn fly(&mut self, from: usize, to: SocketAddr, data: Vec<u8>, dont_fragment: bool) {
        let Some(there) = (0..self.nodes.len()).find(|i| underlay(*i) == to) else {
            panic!("{from} sends to {to}")
        };
        self.tape.push((from, there, data.clone()));
        let Some(limit) = self.ways.get(&(from, there)) else { return };
        if dont_fragment && data.len() > *limit {
            return;
        }
        self.order += 1;
        self.flying.push(Reverse((self.now + DELAY, self.order, from, there, data)));
    }

    /// Sends what the engine of node `i` wants sent.
    fn drain(&mut self, i: usize) {
        while let Some(transmit) = self.nodes[i].engine.poll_transmit() {
            let Some(node) = mesh_node(transmit.to) else {
                self.fly(i, transmit.to, transmit.data, transmit.dont_fragment);
                continue;
            };
            let routes = self.nodes[i].tables.routes.load_full();
            let now_ms = self.now_ms();
            match wrap(&routes, node, &transmit.data, !transmit.dont_fragment, now_ms) {
                Wrapped::Send { to, datagram, fragment } => self.fly(i, to, datagram, !fragment),
                Wrapped::Stage { hop, frame } => {
                    let now = self.now();
                    self.nodes[i].engine.handle_staged(&hop, [frame], now, &mut self.rng);
                }
                Wrapped::Dropped(reason) => self.nodes[i].drops.count(reason),
            }
        }
        while let Some(event) = self.nodes[i].engine.poll_event() {
            self.nodes[i].events.push(event);
        }
    }

    fn settle(&mut self, i: usize, did: Did) {
        did.drops.iter().for_each(|(reason, n)| self.nodes[i].drops.add(*reason, *n));
        self.nodes[i].inbox.extend(did.frames);
        for (to, data, dont_fragment) in did.sent {
            self.fly(i, to, data, dont_fragment);
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

    /// A program on node `from` sends a UDP packet to node `to`.
    fn send(&mut self, from: usize, to: usize, payload: &[u8]) {
        let packet = packet(from, to, payload);
        let mut buffer = vec![0; VNET_LEN + packet.len() + TAIL_ROOM];
        buffer[VNET_LEN..VNET_LEN + packet.len()].copy_from_slice(&packet);
        let mut did = Did::default();
        let now_ms = self.now_ms();
        let node = &mut self.nodes[from];
        node.tx.frame(&mut did, &node.tables, &mut buffer, VNET_LEN + packet.len(), now_ms);
        node.tx.finish(&mut did);
        self.settle(from, did);
    }

    fn run(&mut self, time: Duration) {
        let until = self.now + time;
        loop {
            let arrival = self.flying.peek().map(|Reverse((at, ..))| *at);
            let timer = (0..self.nodes.len())
                .filter_map(|i| {
                    let at = self.nodes[i].engine.poll_timeout()?.0;
                    Some((at.saturating_duration_since(self.epoch), i))
                })
                .min();
            let next = arrival.into_iter().chain(timer.map(|(at, _)| at)).min();
            let Some(next) = next.filter(|at| *at <= until) else { break };
            self.now = self.now.max(next);
            if arrival.is_some_and(|at| at <= next) {
                let Some(Reverse((_, _, from, to, data))) = self.flying.pop() else { break };
                let mut did = Did::default();
                let now_ms = self.now_ms();
                let node = &mut self.nodes[to];
                let (key, len) = (node.mac_key, data.len());
                let from = underlay(from);
                node.rx.train(&mut did, &node.tables, &key, from, 0, &data, len, now_ms);
                node.rx.finish(&mut did);
                self.settle(to, did);
            } else if let Some((_, i)) = timer {
                let now = self.now();
                self.nodes[i].engine.handle_timeout(now, &mut self.rng);
                self.drain(i);
            }
        }
        self.now = until;
    }

    fn path_mtu(&self, from: usize, to: usize) -> u32 {
        self.nodes[from].engine.stats(&self.nodes[to].key, self.now()).unwrap().path_mtu
    }

    fn endpoint(&self, from: usize, to: usize) -> Option<SocketAddr> {
        self.nodes[from].engine.stats(&self.nodes[to].key, self.now()).unwrap().endpoint
    }

    /// Packets of `payload` bytes that node `i` got since the last look.
    fn take(&mut self, i: usize, payload: &[u8]) -> usize {
        let inbox = std::mem::take(&mut self.nodes[i].inbox);
        inbox.iter().filter(|packet| packet.ends_with(payload)).count()
    }
}

/// An IPv6 UDP packet; nobody here checks its checksum.
fn packet(from: usize, to: usize, payload: &[u8]) -> Vec<u8> {
    let len = (payload.len() as u16 + 8).to_be_bytes();
    let mut packet = vec![0x60, 0, 0, 0, len[0], len[1], 17, 64];
    packet.extend(overlay(from).octets());
    packet.extend(overlay(to).octets());
    packet.extend([0, 7, 0, 7, len[0], len[1], 1, 1]);
    packet.extend(payload);
    packet
}

const SECRET: &[u8] = b"what only the two ends may read";

#[test]
fn nodes_reach_each_other_over_none_to_four_relays_and_relays_see_nothing() {
    for n in 2..=6 {
        let mut world = World::row(n);
        let relays: Vec<usize> = (1..n - 1).collect();
        if n > 2 {
            // Only one end has a route; the other answers the way it was asked.
            world.route(0, &[(n - 1, &relays)]);
        }
        world.send(0, n - 1, SECRET);
        // No link is up yet: each relay needs its handshake with the next.
        world.run(Duration::from_secs(1));
        assert_eq!(world.take(n - 1, SECRET), 1, "{n} nodes: {:?}", drops(&world));
        world.send(n - 1, 0, SECRET);
        world.run(Duration::from_secs(1));
        assert_eq!(world.take(0, SECRET), 1, "{n} nodes: {:?}", drops(&world));
        for relay in 1..n - 1 {
            assert!(world.nodes[relay].inbox.is_empty());
            assert!(world.nodes[relay].tables.relayed.get().0 >= 2);
        }
        let seen = |data: &[u8]| data.windows(SECRET.len()).any(|part| part == SECRET);
        assert!(world.tape.iter().all(|(_, _, data)| !seen(data)));
        if n > 2 {
            assert_eq!(world.endpoint(n - 1, 0), Some(mesh_address(overlay(0))));
        }
    }
}

fn drops(world: &World) -> Vec<BTreeMap<String, u64>> {
    world.nodes.iter().map(|node| node.drops.non_zero()).collect()
}

#[test]
fn the_path_mtu_over_relays_is_found() {
    // The narrow part is the sender's, a relay's, or the receiver's.
    for narrow in 1..5 {
        for payload in [1472, 1400, 1350, 1232] {
            let mut world = World::row(5);
            world.route(0, &[(4, &[1, 2, 3])]);
            world.route(4, &[(0, &[3, 2, 1])]);
            world.open(narrow - 1, narrow, payload);
            for _ in 0..60 {
                world.send(0, 4, SECRET);
                world.run(Duration::from_millis(500));
            }
            assert_eq!(world.take(4, SECRET), 60, "{narrow} {payload}: {:?}", drops(&world));
            // On the wire: the frame sealed for the next, in it 4 + 5 * 10
            // bytes before the datagram, which has 32 more than the packet.
            let fits = (payload - 32).min(1420) as u32 - 54 - 32;
            let found = world.path_mtu(0, 4);
            assert!(
                found <= fits.max(1200) && found + 24 >= fits,
                "{narrow} {payload}: {found}, {fits} would fit"
            );
            // Whatever the size, it arrives or is refused with an ICMP answer:
            // IPv6 takes at least 1280 everywhere.
            for size in [1000, 1200 - 48, 1280 - 48, 1300 - 48, 1420 - 48] {
                world.nodes[0].inbox.clear();
                let payload = vec![size as u8; size];
                world.send(0, 4, &payload);
                world.run(Duration::from_secs(1));
                let arrived = world.take(4, &payload);
                let answered = world.nodes[0].inbox.iter().any(|p| p[6] == 58 && p[40] == 2);
                assert_eq!(
                    arrived == 1,
                    !answered,
                    "{narrow} {size}: {arrived} arrived, answered: {answered}, {:?}",
                    drops(&world)
                );
                assert!(arrived == 1 || size > 1280 - 48, "{size}");
            }
        }
    }
}

#[test]
fn keys_are_renewed_over_relays_without_loss() {
    let mut world = World::row(4);
    world.route(0, &[(3, &[1, 2])]);
    world.route(3, &[(0, &[2, 1])]);
    world.send(0, 3, SECRET);
    world.run(Duration::from_secs(1));
    for _ in 0..600 {
        world.send(0, 3, SECRET);
        world.run(Duration::from_secs(1));
    }
    assert_eq!(world.take(3, SECRET), 601, "{:?}", drops(&world));
    let renewed =
        |event: &&LinkEvent| matches!(event, LinkEvent::SessionEstablished { rekey: true, .. });
    assert!(world.nodes[0].events.iter().filter(renewed).count() >= 8, "two links, five times");
}

#[test]
fn another_relay_takes_over_when_the_routes_say_so() {
    // 0 - {1, 2} - 3
    let mut world = World::strangers(4);
    for relay in [1, 2] {
        world.open(0, relay, 1472);
        world.open(relay, 3, 1472);
    }
    world.route(0, &[(3, &[1])]);
    world.route(3, &[(0, &[1])]);
    world.send(0, 3, SECRET);
    world.run(Duration::from_secs(1));
    assert_eq!(world.take(3, SECRET), 1);
    world.close(0, 1);
    world.close(1, 3);
    world.send(0, 3, SECRET);
    world.run(Duration::from_secs(1));
    assert_eq!(world.take(3, SECRET), 0, "the relay is dead");
    // Only one end knows of the other way so far; the first packet waits for
    // the session with the new relay, and the other end follows.
    world.route(0, &[(3, &[2])]);
    world.send(0, 3, SECRET);
    world.run(Duration::from_secs(1));
    assert_eq!(world.take(3, SECRET), 1, "{:?}", drops(&world));
    world.route(3, &[]);
    world.send(3, 0, SECRET);
    world.run(Duration::from_secs(1));
    assert_eq!(world.take(0, SECRET), 1, "{:?}", drops(&world));
}

#[test]
fn a_node_that_is_no_relay_passes_nothing_on_and_still_uses_others() {
    let mut world = World::row(3);
    world.route(0, &[(2, &[1])]);
    world.nodes[1].engine.set_relaying(false);
    world.drain(1);
    world.send(0, 2, SECRET);
    world.run(Duration::from_secs(10));
    assert_eq!(world.take(2, SECRET), 0);
    assert!(world.nodes[1].drops.get(DropReason::RelayOff) > 0);
    assert!(world.tape.iter().all(|(from, to, _)| (*from, *to) != (1, 2)));
    world.nodes[1].engine.set_relaying(true);
    world.nodes[0].engine.set_relaying(false);
    world.drain(0);
    world.drain(1);
    world.send(0, 2, SECRET);
    world.run(Duration::from_secs(10));
    assert!(world.take(2, SECRET) >= 1, "{:?}", drops(&world));
}

#[test]
fn a_removed_member_is_no_relay_and_no_source_any_more() {
    let mut world = World::row(3);
    world.route(0, &[(2, &[1])]);
    world.send(0, 2, SECRET);
    world.run(Duration::from_secs(1));
    assert_eq!(world.take(2, SECRET), 1);
    // The source is expelled, so far only from the relay's and the end's view.
    let source = world.nodes[0].key;
    for i in [1, 2] {
        world.nodes[i].engine.remove_peer(&source);
        world.drain(i);
    }
    world.send(0, 2, SECRET);
    world.run(Duration::from_secs(20));
    assert_eq!(world.take(2, SECRET), 0);
    // The relay is expelled by the source.
    let mut world = World::row(3);
    world.route(0, &[(2, &[1])]);
    world.send(0, 2, SECRET);
    world.run(Duration::from_secs(1));
    let relay = world.nodes[1].key;
    world.nodes[0].engine.remove_peer(&relay);
    world.drain(0);
    let sent = world.tape.len();
    world.send(0, 2, SECRET);
    world.run(Duration::from_secs(20));
    assert!(world.tape[sent..].iter().all(|(from, ..)| *from != 0));
    assert!(world.nodes[0].drops.get(DropReason::RelayNoRoute) > 0);
}
