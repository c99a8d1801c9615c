//! A client and many hops on a virtual clock: links with delay and loss, nodes
//! that die, get slow, or are drained.

mod trouble;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashSet};
use std::net::Ipv6Addr;

use warren_types::LinkPublicKey;

use super::super::cell::{CELL_LEN, FORWARD_LEN, TEXT_LEN, is_layered, write_header};
use super::super::circuit::HopCircuit;
use super::super::layer::Opened;
use super::super::payload::{parse_data, write_data_head};
use super::super::relay::{Duties, Relay};
use super::super::tables::Entry;
use super::*;
use crate::link::relay::suffix;
use crate::noise::StaticKey;
use crate::test_rng::TestRng;

const SUITE: Suite = Suite::Aes256Gcm;

struct Book(Vec<Arc<PeerLink>>);

impl Neighbours for Book {
    fn by_suffix(&self, node: &NodeSuffix) -> Option<Arc<PeerLink>> {
        self.0.iter().find(|link| link.node().map(suffix) == Some(*node)).cloned()
    }
    fn has_role(&self, peer: &PeerLink) -> bool {
        peer.node() != Some(overlay(0))
    }
}

fn overlay(i: usize) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 0, 0, 1, 2, 3, 4, i as u16 + 1)
}

fn key(i: usize) -> StaticKey {
    StaticKey::from_bytes(&[i as u8 + 1; 32])
}

struct Node {
    links: Book,
    tables: Arc<OnionTables>,
    relay: Relay,
    alive: bool,
}

type Arrival = Reverse<(u64, u64, usize, usize, Vec<u8>)>;

/// Node 0 is the client.
struct World {
    nodes: Vec<Node>,
    client: Client,
    now_us: u64,
    order: u64,
    flying: BinaryHeap<Arrival>,
    delay_us: BTreeMap<(usize, usize), u64>,
    loss: BTreeMap<(usize, usize), f64>,
    rng: TestRng,
    events: Vec<(u64, ClientEvent)>,
    /// When session data reached the client.
    heard_us: Vec<u64>,
    exits: Vec<usize>,
    /// What the exit sends a second, from when on it got any.
    sent_us: u64,
    received_at_exit: u64,
}

const DELAY_US: u64 = 8_000;

impl World {
    fn new(count: usize, exits: &[usize]) -> Self {
        let node = |i: usize| {
            let link = |j: usize| {
                let link = PeerLink::new(LinkPublicKey([j as u8; 32]), SUITE, true);
                link.set_node(Some(overlay(j)));
                Arc::new(link)
            };
            let tables = Arc::new(OnionTables::default());
            let mut relay = Relay::new(SUITE, tables.clone());
            relay.set_keys(vec![key(i)]);
            let exit = exits.contains(&i);
            let duties = Duties { entry: true, relay: true, exit, draining: false, ipv6: false };
            relay.set_duties(if i == 0 { Duties::default() } else { duties }, 1);
            Node { links: Book((0..count).map(link).collect()), tables, relay, alive: true }
        };
        let nodes: Vec<_> = (0..count).map(node).collect();
        let client = Client::new(SUITE, nodes[0].tables.clone());
        Self {
            nodes,
            client,
            now_us: 1_000_000,
            order: 0,
            flying: BinaryHeap::new(),
            delay_us: BTreeMap::new(),
            loss: BTreeMap::new(),
            rng: TestRng::new(11),
            events: Vec::new(),
            heard_us: Vec::new(),
            exits: exits.to_vec(),
            sent_us: 0,
            received_at_exit: 0,
        }
    }

    fn index(link: &PeerLink) -> usize {
        usize::from(link.node().unwrap().segments()[7]) - 1
    }

    fn send(&mut self, from: usize, to: &PeerLink, frame: Vec<u8>) {
        use rand_core::RngCore as _;
        let to = Self::index(to);
        let pair = (from.min(to), from.max(to));
        let loss = self.loss.get(&pair).copied().unwrap_or(0.0);
        if (self.rng.next_u32() as f64) < loss * f64::from(u32::MAX) || !self.nodes[from].alive {
            return;
        }
        assert_eq!(frame.len(), CELL_LEN, "cells have one size");
        let delay = self.delay_us.get(&pair).copied().unwrap_or(DELAY_US);
        self.order += 1;
        self.flying.push(Reverse((self.now_us + delay, self.order, from, to, frame)));
    }

    fn flush(&mut self) {
        for i in 0..self.nodes.len() {
            while let Some((to, frame)) = self.nodes[i].relay.poll_transmit() {
                self.send(i, &to, frame);
            }
            while self.nodes[i].relay.poll_event().is_some() {}
        }
        while let Some((to, frame)) = self.client.poll_transmit() {
            self.send(0, &to, frame);
        }
        while let Some(event) = self.client.poll_event() {
            if let ClientEvent::NeedPath { purpose, exit, failed, used, .. } = &event {
                self.choose(*purpose, *exit, &[&failed[..], used].concat());
            }
            self.events.push((self.now_us, event));
        }
    }

    fn choose(&mut self, purpose: Purpose, exit: Option<NodeSuffix>, avoid: &[NodeSuffix]) {
        let name = |i: usize| suffix(overlay(i));
        let free = |i: &usize| !avoid.contains(&name(*i));
        let exit = self.exits.iter().copied().find(|i| match exit {
            Some(exit) => name(*i) == exit,
            None => free(i),
        });
        let Some(exit) = exit else { return };
        let mut others = (1..self.nodes.len()).filter(free).filter(|i| !self.exits.contains(i));
        let (Some(entry), Some(middle)) = (others.next(), others.next()) else { return };
        let hop = |i: usize| Hop { node: name(i), onion_key: key(i).public().0 };
        let path = vec![hop(entry), hop(middle), hop(exit)];
        let book = &self.nodes[0].links;
        self.client.build(path, purpose, book, self.now_us, &mut self.rng);
    }

    /// What a worker does with a frame.
    fn arrive(&mut self, from: usize, to: usize, mut frame: Vec<u8>) {
        if !self.nodes[to].alive {
            return;
        }
        let (now_us, now) = (self.now_us, ms(self.now_us));
        let peer = self.nodes[to].links.0[from].clone();
        if !is_layered(&frame) {
            let node = &mut self.nodes[to];
            let ours = node.relay.handle_cell(&peer, &frame, &node.links, now, &mut self.rng);
            let clients =
                to == 0 && !ours && self.client.handle_cell(&peer, &frame, now_us, &mut self.rng);
            if !ours && !clients {
                self.nodes[to].relay.refuse_created(&peer, &frame);
            }
            return;
        }
        let Some((kind, id)) = parse(&frame) else { return };
        let mut out = vec![0; CELL_LEN];
        match (kind, self.nodes[to].tables.circuit(id)) {
            (Kind::Forward, Some(Entry::Hop(circuit))) => {
                match circuit.open(&frame, &mut out, now) {
                    Ok(Opened::Onward) => {
                        if let Some(next) = circuit.next.load_full() {
                            write_header(&mut out, Kind::Forward, next.theirs);
                            self.send(to, &next.peer, out);
                        }
                    }
                    Ok(Opened::Here) => self.said(to, &circuit, &out[4..4 + FORWARD_LEN]),
                    Err(_) => {}
                }
            }
            (Kind::Backward, Some(Entry::HopBack(circuit))) => {
                circuit.pass_back(&mut frame, now);
                self.send(to, &circuit.previous.peer.clone(), frame);
            }
            (Kind::Backward, Some(Entry::Client(circuit))) => {
                let Ok(hop) = circuit.open(&mut frame, &mut out[..TEXT_LEN], now) else { return };
                if let Some((sequence, _)) = parse_data(&out) {
                    let session = self.nodes[0].tables.client.load_full();
                    if session.is_some_and(|session| {
                        session.stream.note_received(1, 1, now);
                        session.stream.accept(sequence)
                    }) {
                        self.heard_us.push(now_us);
                    }
                } else {
                    let rng = &mut self.rng;
                    self.client.handle_answer(&circuit, hop, &out[..TEXT_LEN], now_us, rng);
                }
            }
            _ => {}
        }
    }

    fn said(&mut self, at: usize, circuit: &Arc<HopCircuit>, text: &[u8]) {
        let now = ms(self.now_us);
        let session = circuit.session.load_full();
        match (parse_data(text), Request::parse(text)) {
            (Some((sequence, active)), _) => {
                let Some(session) = session else { return };
                if active {
                    session.choose(circuit, sequence);
                }
                self.received_at_exit += u64::from(session.stream.accept(sequence));
            }
            (None, Some(Request::Echo { token, active })) => {
                if let (Some(session), Some(sequence)) = (session, active) {
                    session.choose(circuit, sequence);
                }
                let (sent, received) = circuit.progress();
                let answer = Answer::EchoReply { token, received, sent };
                let cell = circuit.say(&answer.encode(), now);
                self.send(at, &circuit.previous.peer.clone(), cell);
            }
            _ => {
                let node = &mut self.nodes[at];
                node.relay.handle_request(circuit, text, &node.links, now, &mut self.rng);
            }
        }
    }

    /// A packet every 20 ms each way.
    fn traffic(&mut self) {
        if self.now_us < self.sent_us + 20_000 {
            return;
        }
        self.sent_us = self.now_us;
        let now = ms(self.now_us);
        let mut text = vec![0; 8];
        if let Some(session) = self.nodes[0].tables.client.load_full()
            && let Some(active) = session.active.load_full()
        {
            let sequence = session.stream.next_sequence();
            session.stream.note_sent(1, 1, now);
            if let Some(also) = session.also.load_full() {
                write_data_head(&mut text, sequence, false);
                let cell = also.say(also.hops() - 1, &text, now);
                self.send(0, &also.entry.peer.clone(), cell);
            }
            write_data_head(&mut text, sequence, true);
            let cell = active.say(active.hops() - 1, &text, now);
            self.send(0, &active.entry.peer.clone(), cell);
        }
        for exit in self.exits.clone() {
            for lease in 1..4 {
                let lease = super::super::session::Lease::new(lease).unwrap();
                let session = self.nodes[exit].tables.session(lease);
                let active = session.as_ref().and_then(|session| session.active.load_full());
                let (Some(session), Some(active)) = (session, active) else { continue };
                write_data_head(&mut text, session.stream.next_sequence(), false);
                let cell = active.say(&text, now);
                self.send(exit, &active.previous.peer.clone(), cell);
            }
        }
    }

    fn run(&mut self, for_ms: u64, traffic: bool) {
        let end = self.now_us + for_ms * 1000;
        while self.now_us < end {
            self.flush();
            let arrival = self.flying.peek().map_or(u64::MAX, |Reverse(first)| first.0);
            let due = self.client.poll_timeout().unwrap_or(u64::MAX).max(self.now_us + 1000);
            let step = if traffic { self.now_us + 5_000 } else { u64::MAX };
            self.now_us = arrival.min(due).min(step).min(end).max(self.now_us);
            while self.flying.peek().is_some_and(|Reverse(first)| first.0 <= self.now_us) {
                let Reverse((_, _, from, to, frame)) = self.flying.pop().unwrap();
                self.arrive(from, to, frame);
                self.flush();
            }
            let book = &self.nodes[0].links;
            self.client.handle_timeout(book, self.now_us, &mut self.rng);
            let now = ms(self.now_us);
            self.nodes.iter_mut().for_each(|node| node.relay.handle_timeout(now));
            if traffic {
                self.traffic();
            }
        }
        self.flush();
    }

    fn connected(exits: &[usize]) -> Self {
        let mut world = Self::new(10, exits);
        world.client.connect(1, world.now_us, &mut world.rng);
        world.run(2_000, true);
        assert_eq!(world.phases(), [(Phase::Active, 1), (Phase::Standby, 1), (Phase::Ready, 1)]);
        world
    }

    fn phases(&self) -> Vec<(Phase, usize)> {
        let views = self.client.circuits(self.now_us);
        [
            Phase::Active,
            Phase::Standby,
            Phase::Suspect,
            Phase::Retiring,
            Phase::Building,
            Phase::Ready,
        ]
        .into_iter()
        .map(|phase| (phase, views.iter().filter(|view| view.phase == phase).count()))
        .filter(|(_, count)| *count > 0)
        .collect()
    }

    fn active(&self) -> CircuitView {
        self.client.circuits(self.now_us).remove(0)
    }

    fn place(&self, hop: usize) -> usize {
        let node = self.active().hops[hop].node;
        (0..self.nodes.len()).find(|i| suffix(overlay(*i)) == node).unwrap()
    }

    /// The longest time in which nothing came, from `since_us` on, ms.
    fn gap_ms(&self, since_us: u64) -> u64 {
        let times = self.heard_us.iter().copied().filter(|at| *at >= since_us);
        let all: Vec<_> = std::iter::once(since_us).chain(times).chain([self.now_us]).collect();
        all.windows(2).map(|pair| (pair[1] - pair[0]) / 1000).max().unwrap()
    }

    fn moved(&self, reason: MoveReason) -> usize {
        let is = |event: &&(u64, ClientEvent)| matches!(&event.1, ClientEvent::Moved { reason: r, .. } if *r == reason);
        self.events.iter().filter(is).count()
    }
}

#[test]
fn a_path_is_there_after_its_round_trips() {
    let mut world = World::new(10, &[8, 9]);
    world.client.connect(1, world.now_us, &mut world.rng);
    let began = world.now_us;
    world.run(400, true);
    // 2 + 4 + 6 link delays to build; data follows at once, and comes back.
    let first = world.heard_us[0] - began;
    assert!(first <= 18 * DELAY_US + 40_000, "first byte after {first} us");
    let hops = world.active().hops;
    let nodes: HashSet<_> = hops.iter().map(|hop| hop.node).collect();
    assert_eq!((hops.len(), nodes.len()), (3, 3));
}

#[test]
fn relays_and_entries_may_die_without_a_gap_to_speak_of() {
    for hop in [0, 1] {
        let mut world = World::connected(&[8, 9]);
        for kill in 0..3 {
            let (before, victim, at) = (world.active().serial, world.place(hop), world.now_us);
            world.nodes[victim].alive = false;
            world.run(4_000, true);
            let gap = world.gap_ms(at - 1000);
            assert!(gap <= 320, "hop {hop}, kill {kill}: {gap} ms");
            assert_ne!(world.active().serial, before);
            world.nodes[victim].alive = true;
            world.run(32_000, true);
            assert_eq!(
                world.phases(),
                [(Phase::Active, 1), (Phase::Standby, 1), (Phase::Ready, 1)],
                "all is as before: {:?}",
                world.client.circuits(world.now_us)
            );
        }
        assert_eq!(world.moved(MoveReason::Silent), 3);
    }
}

#[test]
fn a_dead_exit_is_left_for_another_and_said_so() {
    let mut world = World::connected(&[8, 9]);
    let (exit, at) = (world.place(2), world.now_us);
    world.nodes[exit].alive = false;
    world.run(6_000, true);
    let lost = world.events.iter().find(|(_, e)| matches!(e, ClientEvent::ExitLost { .. }));
    let (when, _) = lost.expect("it is said");
    assert!(when - at < 2_500_000, "{} ms", (when - at) / 1000);
    assert_ne!(world.place(2), exit);
    assert!(world.gap_ms(at) < 3_000);
    // Without another exit nothing goes anywhere, and it comes back by itself.
    let mut world = World::new(10, &[9]);
    world.client.connect(0, world.now_us, &mut world.rng);
    world.run(2_000, true);
    world.nodes[9].alive = false;
    world.run(20_000, true);
    world.nodes[9].alive = true;
    let at = world.now_us;
    world.run(75_000, true);
    assert!(world.heard_us.iter().any(|heard| *heard > at), "{:?}", world.phases());
}

#[test]
fn rotation_and_draining_lose_nothing() {
    let mut world = World::connected(&[8, 9]);
    let session = world.client.session().unwrap().clone();
    let sent = || session.stream.tx_packets.load(Ordering::Relaxed);
    let (before, sent_before) = (world.received_at_exit, sent());
    let at = world.now_us;
    for _ in 0..5 {
        let serial = world.active().serial;
        world.client.rotate(world.now_us);
        world.run(12_000, true);
        assert_ne!(world.active().serial, serial);
    }
    assert!(world.moved(MoveReason::Rotation) >= 5);
    assert!(world.gap_ms(at) <= 40, "{} ms", world.gap_ms(at));
    let back = session.stream.progress();
    assert!(back.0 - back.1 <= 3, "numbers used and received: {back:?}");
    let (sent, received) = (sent() - sent_before, world.received_at_exit - before);
    assert!(sent > 2_000 && received + 3 >= sent, "{received} of {sent} arrived");
    // A relay is drained: the session leaves it in peace.
    let (relay, serial, at) = (world.place(1), world.active().serial, world.now_us);
    let duties = Duties { draining: true, ..world.nodes[relay].relay.duties() };
    let now = ms(world.now_us);
    world.nodes[relay].relay.set_duties(duties, now);
    world.run(5_000, true);
    assert_ne!(world.active().serial, serial);
    assert!(world.gap_ms(at) <= 40);
}

#[test]
fn an_exit_that_gives_up_its_role_ends_its_sessions() {
    let mut world = World::connected(&[8, 9]);
    world.run(3_000, true);
    let (exit, at) = (world.place(2), world.now_us);
    assert_eq!(world.nodes[exit].relay.stats().sessions, 1);
    let duties = Duties { exit: false, ..world.nodes[exit].relay.duties() };
    world.nodes[exit].relay.set_duties(duties, ms(at));
    assert_eq!(world.nodes[exit].relay.stats().sessions, 0);
    world.run(1_000, true);
    assert_ne!(world.place(2), exit);
    let lost = world.events.iter().any(|(_, event)| matches!(event, ClientEvent::ExitLost { .. }));
    assert!(lost && world.client.is_connected());
}

#[test]
fn a_slow_or_lossy_path_is_left_within_five_seconds() {
    for lossy in [false, true] {
        let mut world = World::connected(&[8, 9]);
        world.run(3_000, true);
        let (entry, relay) = (world.place(0), world.place(1));
        let pair = (entry.min(relay), entry.max(relay));
        let (serial, at) = (world.active().serial, world.now_us);
        if lossy {
            world.loss.insert(pair, 0.05);
        } else {
            world.delay_us.insert(pair, DELAY_US + 75_000);
        }
        world.run(15_000, true);
        let moved = world.events.iter().find_map(|(when, event)| match event {
            ClientEvent::Moved { from, reason, .. } if *from == serial => {
                Some((when - at, *reason))
            }
            _ => None,
        });
        let (after, reason) = moved.expect("it moves");
        let limit = if lossy { 9_000_000 } else { 5_000_000 };
        assert!(after < limit, "{reason:?} after {} ms", after / 1000);
        let changes = world.events.iter().filter(|e| matches!(e.1, ClientEvent::Moved { .. }));
        assert!(changes.count() <= 3, "and does not flap");
    }
}

#[test]
fn a_lossy_network_does_not_keep_circuits_from_being_built() {
    let mut world = World::new(10, &[8, 9]);
    for a in 0..10 {
        for b in a + 1..10 {
            world.loss.insert((a, b), 0.05);
        }
    }
    world.client.connect(1, world.now_us, &mut world.rng);
    world.run(6_000, true);
    assert!(world.client.is_connected(), "{:?}", world.phases());
}

#[test]
fn disconnecting_ends_everything_everywhere() {
    let mut world = World::connected(&[8, 9]);
    world.client.disconnect(world.now_us);
    world.run(1_000, false);
    assert!(world.client.circuits(world.now_us).is_empty());
    for node in &world.nodes {
        let stats = node.relay.stats();
        assert_eq!((stats.circuits, stats.sessions), (0, 0));
    }
}

#[test]
fn what_is_given_up_half_built_ends_everywhere_too() {
    // The first answer is on its way at 8 ms, the next hop's at 24.
    for at_ms in [4, 12, 20, 28, 36, 44] {
        let mut world = World::new(10, &[8, 9]);
        world.client.connect(1, world.now_us, &mut world.rng);
        world.run(at_ms, false);
        world.client.disconnect(world.now_us);
        world.run(1_000, false);
        for node in &world.nodes {
            assert_eq!(node.relay.stats().circuits, 0, "given up after {at_ms} ms");
        }
    }
}

#[test]
fn an_exit_that_refuses_is_not_insisted_on() {
    let mut world = World::new(10, &[8, 9]);
    let duties = Duties { exit: false, ..world.nodes[8].relay.duties() };
    world.nodes[8].relay.set_duties(duties, 1);
    world.client.connect(0, world.now_us, &mut world.rng);
    world.run(4_000, true);
    assert!(world.client.is_connected());
    assert_eq!(world.place(2), 9);
}

#[test]
fn clients_of_one_node_do_not_touch_each_other() {
    let mut world = World::connected(&[8, 9]);
    let tables = world.nodes[0].tables.clone();
    let compartment = Compartment::isolated(1).unwrap();
    let mut other = Client::in_compartment(SUITE, tables.clone(), compartment);
    other.connect(0, world.now_us, &mut world.rng);
    let session = tables.own_session(compartment).expect("a session of its own");
    assert!(!Arc::ptr_eq(&session, world.client.session().unwrap()));
    assert_ne!(other.session.as_ref().unwrap().1, world.client.session.as_ref().unwrap().1);
    // A circuit through the same entry, which tells them apart by its number.
    let path = world.client.running[0].path.clone();
    let book = &world.nodes[0].links;
    assert!(other.build(path, Purpose::Active, book, world.now_us, &mut world.rng));
    let (entry, create) = other.poll_transmit().unwrap();
    let before = world.client.circuits(world.now_us);
    assert!(before.iter().all(|view| view.serial < other.circuits(world.now_us)[0].serial));
    let at = World::index(&entry);
    let node = &mut world.nodes[at];
    let (from, now) = (node.links.0[0].clone(), ms(world.now_us));
    assert!(node.relay.handle_cell(&from, &create, &node.links, now, &mut world.rng));
    let (_, created) = node.relay.poll_transmit().unwrap();
    let (peer, now_us) = (world.nodes[0].links.0[at].clone(), world.now_us);
    assert!(!world.client.handle_cell(&peer, &created, now_us, &mut world.rng), "another's");
    assert!(other.handle_cell(&peer, &created, now_us, &mut world.rng));
    let entry = tables.circuit(parse(&created).unwrap().1);
    let Some(Entry::Client(circuit)) = entry else { panic!("{entry:?}") };
    assert_eq!(circuit.compartment, compartment);
    // The end of the one is not the other's.
    other.disconnect(now_us);
    assert!(tables.own_session(compartment).is_none() && tables.client.load().is_some());
    world.run(2_000, true);
    let phases: Vec<_> = world.client.circuits(world.now_us);
    assert_eq!(phases.len(), before.len());
    assert!(world.client.is_connected());
}
