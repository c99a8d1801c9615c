//! The fast path over other nodes, in memory: A and C that reach each other
//! over one to four relays, and what hostile nodes make of relay frames.

use std::net::{Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use proptest::prelude::*;
use warren_types::{DropReason, LinkPublicKey, Suite, mesh_address};

use super::event::ToEngine;
use super::fast_tests::{Memory, mac_key, payload};
use super::peer::PeerLink;
use super::receive::Receiver;
use super::relay::{FLAG_FRAGMENT, KIND, RelayRoute, Wrapped, suffix, wrap};
use super::session::{OVERHEAD, RecvSession, SendSession};
use super::tables::{Routes, Tables};
use super::transmit::{TAIL_ROOM, Transmitter};
use crate::noise::MacKey;
use crate::packet::gather::Limits;
use crate::packet::ip::Ip;
use crate::packet::segment::tests::{super_packet, tcp_packet, tcp_with_options};
use crate::packet::vnet::{VNET_LEN, Vnet};

pub(super) const SUITE: Suite = Suite::Aes256Gcm;

pub(super) struct Node {
    pub(super) tables: Tables,
    pub(super) links: Vec<Arc<PeerLink>>,
    pub(super) tx: Transmitter,
    rx: Receiver,
}

pub(super) fn overlay(i: usize) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 0, 0, 1, 2, 3, 4, i as u16 + 1)
}

pub(super) fn underlay(i: usize) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, i as u8 + 1], 7000))
}

fn index(from: usize, to: usize) -> u32 {
    (from * 16 + to) as u32
}

/// `n` nodes in a row, each with a direct session to the next, and the first
/// and the last with one to each other over all between.
pub(super) struct Row {
    pub(super) nodes: Vec<Node>,
}

impl Row {
    pub(super) fn new(n: usize) -> Self {
        let node = |i: usize| {
            let links: Vec<_> = (0..n)
                .map(|j| {
                    let link = PeerLink::new(LinkPublicKey([j as u8; 32]), SUITE, true);
                    link.set_node(Some(overlay(j)));
                    Arc::new(link)
                })
                .collect();
            let node = Node {
                tables: Tables::default(),
                links,
                tx: Transmitter::default(),
                rx: Receiver::new(Limits::ALL),
            };
            publish(&node, i, true);
            node
        };
        let mut row = Self { nodes: (0..n).map(node).collect() };
        for i in 1..n {
            row.connect(i - 1, i, underlay(i - 1), underlay(i));
        }
        if n > 2 {
            row.connect(0, n - 1, mesh_address(overlay(0)), mesh_address(overlay(n - 1)));
            row.route(0, n - 1, &(1..n - 1).collect::<Vec<_>>());
        }
        row
    }

    fn connect(&mut self, a: usize, b: usize, at_a: SocketAddr, at_b: SocketAddr) {
        for (from, to, there) in [(a, b, at_b), (b, a, at_a)] {
            let key = [index(from, to) as u8; 32];
            let send = SendSession::new(SUITE, index(from, to), &key, 1, true);
            let link = &self.nodes[from].links[to];
            link.send.store(Some(Arc::new(send)));
            link.roam(there);
            let receiver = &self.nodes[to];
            let link = receiver.links[from].clone();
            let receive = RecvSession::new(SUITE, index(from, to), &key, link, 1);
            receiver.tables.insert_session(Arc::new(receive));
        }
    }

    /// Node `from` reaches `to` over `relays`.
    fn route(&self, from: usize, to: usize, relays: &[usize]) {
        let relays: Vec<_> = relays.iter().map(|i| suffix(overlay(*i))).collect();
        let first = relays.first().and_then(|relay| {
            self.nodes[from].links.iter().find(|l| l.node().map(suffix) == Some(*relay))
        });
        let (own, there) = (suffix(overlay(from)), suffix(overlay(to)));
        let route = RelayRoute::new(own, &relays, there, first.unwrap()).unwrap();
        self.nodes[from].links[to].relay.store(Some(Arc::new(route)));
    }

    pub(super) fn transmit(&mut self, i: usize, vnet: Vnet, packet: &[u8]) -> Memory {
        let mut io = Memory::default();
        let mut buffer = vec![0; VNET_LEN + packet.len() + TAIL_ROOM];
        vnet.encode(buffer.first_chunk_mut().unwrap());
        buffer[VNET_LEN..VNET_LEN + packet.len()].copy_from_slice(packet);
        let node = &mut self.nodes[i];
        node.tx.frame(&mut io, &node.tables, &mut buffer, VNET_LEN + packet.len(), 5);
        node.tx.finish(&mut io);
        io
    }

    /// Lets node `i` receive what was sent by `from`.
    pub(super) fn receive(&mut self, i: usize, sent: &Memory, from: SocketAddr) -> Memory {
        let mut io = Memory::default();
        let node = &mut self.nodes[i];
        for (_, data, segment, tos) in &sent.sent {
            node.rx.train(&mut io, &node.tables, &mac_key(), from, *tos, data, *segment, 5);
        }
        for data in &sent.fragmentable {
            node.rx.train(&mut io, &node.tables, &mac_key(), from, 0, data, data.len(), 5);
        }
        node.rx.finish(&mut io);
        io
    }

    /// Carries what the first node sent along the row, up to node `to`.
    pub(super) fn carry(&mut self, mut sent: Memory, to: usize) -> Memory {
        for i in 1..=to {
            assert!(
                sent.sent.iter().all(|(there, ..)| *there == underlay(i)),
                "sent to {i}: {sent:?}"
            );
            sent = self.receive(i, &sent, underlay(i - 1));
        }
        sent
    }

    /// What a hostile node `from` sends to `to` inside their session.
    pub(super) fn inside(&self, from: usize, to: usize, text: &[u8]) -> Memory {
        let session = self.nodes[from].links[to].send.load_full().unwrap();
        let mut message = vec![0; text.len() + OVERHEAD];
        session.seal_from(text, &mut message, 0, session.reserve(1).unwrap());
        let segment = message.len();
        Memory { sent: vec![(underlay(to), message, segment, 0)], ..Memory::default() }
    }
}

impl std::fmt::Debug for Memory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let sent: Vec<_> = self.sent.iter().map(|s| (s.0, s.1.len(), s.2)).collect();
        write!(
            f,
            "{} frames, sent {sent:?}, {:?}, {:?}",
            self.frames.len(),
            self.drops,
            self.events
        )
    }
}

fn publish(node: &Node, own: usize, relaying: bool) {
    let last = node.links.len() - 1;
    let addresses = |i: usize| match i {
        0 => vec!["10.0.0.1".parse().unwrap(), overlay(0).into()],
        i if i == last => vec!["10.0.0.2".parse().unwrap(), overlay(i).into()],
        i => vec![std::net::IpAddr::from(overlay(i))],
    };
    let others = || node.links.iter().enumerate().filter(|(i, _)| *i != own);
    let nets =
        others().flat_map(|(i, link)| addresses(i).into_iter().map(|a| (a.into(), link.clone())));
    let routes = Routes::new(addresses(own), nets)
        .with_nodes(others().map(|(_, link)| link.clone()), relaying);
    node.tables.routes.store(Arc::new(routes));
}

fn relay_frame(next: u8, nodes: &[usize], datagram: &[u8]) -> Vec<u8> {
    let mut frame = vec![KIND, next, nodes.len() as u8, 0];
    nodes.iter().for_each(|i| frame.extend(suffix(overlay(*i))));
    frame.extend(datagram);
    frame
}

fn reasons(io: &Memory) -> Vec<DropReason> {
    io.drops.iter().map(|drop| drop.0).collect()
}

#[test]
fn a_super_packet_stays_one_train_over_one_to_four_relays() {
    for n in 3..=6 {
        let mut row = Row::new(n);
        let mut packet = tcp_packet(false, 1, 0x18, &payload(40_000), 2);
        let vnet = super_packet(&mut packet, 1250);
        let out = row.transmit(0, vnet, &packet);
        assert_eq!(out.sent.len(), 1, "one send for one super-packet: {out:?}");
        for i in 1..n - 1 {
            let hop = row.nodes[i].links[i + 1].clone();
            assert_eq!(hop.tx_data.load(Ordering::Relaxed), 0);
        }
        let io = row.carry(out, n - 1);
        assert_eq!(io.drops, []);
        assert_eq!(io.frames.len(), 1, "and one frame at the end");
        assert_eq!(&io.frames[0][VNET_LEN..], &packet);
        // The end has a way back, and the relays have counted.
        let back = row.nodes[n - 1].links[0].relay_back.load_full().unwrap();
        let expected: Vec<_> = (1..n - 1).rev().map(|i| suffix(overlay(i))).collect();
        assert_eq!(back.relays(), expected);
        for i in 1..n - 1 {
            assert_eq!(row.nodes[i].tables.relayed.get().0, 32);
            assert_eq!(row.nodes[i].links[i + 1].tx_data.load(Ordering::Relaxed), 32);
        }
    }
}

#[test]
fn an_answer_goes_back_without_a_computed_route() {
    let mut row = Row::new(4);
    let hello = tcp_packet(false, 1, 0x10, b"hello", 0);
    let out = row.transmit(0, Vnet::default(), &hello);
    row.carry(out, 3);
    let mut answer = tcp_packet(false, 1, 0x10, b"there", 0);
    let (from, to) = ([10, 0, 0, 2], [10, 0, 0, 1]);
    answer[12..16].copy_from_slice(&from);
    answer[16..20].copy_from_slice(&to);
    let mut out = row.transmit(3, Vnet::default(), &answer);
    for i in [2, 1, 0] {
        out = row.receive(i, &out, underlay(i + 1));
    }
    assert_eq!(out.packets(), [answer]);
}

#[test]
fn all_kinds_of_datagrams_are_carried() {
    let row = &mut Row::new(3);
    let mut initiation = vec![0x11; 148];
    initiation[1..4].fill(0);
    MacKey::for_receiver(&LinkPublicKey([3; 32])).stamp(&mut initiation);
    let quic = vec![0xc3; 1200];
    for datagram in [&initiation, &quic] {
        let routes = row.nodes[0].tables.routes.load_full();
        let Wrapped::Send { to, datagram: sealed, fragment: false } =
            wrap(&routes, overlay(2), datagram, false, 5)
        else {
            panic!("not sent")
        };
        let segment = sealed.len();
        let out = Memory { sent: vec![(to, sealed, segment, 2)], ..Memory::default() };
        let io = row.carry(out, 2);
        let from_a = mesh_address(overlay(0));
        match &io.events[io.events.len() - 1] {
            ToEngine::Handshake { from, data } => assert_eq!((from, data), (&from_a, &initiation)),
            ToEngine::Quic { from, ecn: 2, data } => assert_eq!((from, data), (&from_a, &quic)),
            other => panic!("{other:?}"),
        }
    }
    // Neither has authenticated, but both can be answered.
    assert!(row.nodes[2].links[0].relay_back.load().is_some());
}

#[test]
fn lists_that_lie_are_refused() {
    use DropReason::{RelayForged, RelayMalformed, RelayNoHop};
    let row = &mut Row::new(4);
    let datagram = [0x14; 40];
    // Node 0 sends to node 1.
    for (frame, reason) in [
        (relay_frame(1, &[0, 1, 0], &datagram), RelayMalformed),
        (relay_frame(1, &[0, 1, 1], &datagram), RelayMalformed),
        (relay_frame(3, &[0, 1, 2], &datagram), RelayMalformed),
        (relay_frame(0, &[0, 1, 2], &datagram), RelayMalformed),
        (relay_frame(1, &[0, 1, 2], b""), RelayMalformed),
        (relay_frame(1, &[0, 1, 2, 3, 7, 8, 9], &datagram), RelayMalformed),
        (relay_frame(1, &[0, 2, 3], &datagram), RelayForged),
        (relay_frame(2, &[2, 3, 1], &datagram), RelayForged),
        (relay_frame(1, &[3, 1, 2], &datagram), RelayForged),
        (relay_frame(1, &[0, 1, 77], &datagram), RelayNoHop),
        (relay_frame(2, &[77, 0, 1], &datagram), RelayNoHop),
        (vec![KIND], RelayMalformed),
        (vec![KIND, 1, 255, 0], RelayMalformed),
    ] {
        let out = row.inside(0, 1, &frame);
        let io = row.receive(1, &out, underlay(0));
        assert_eq!(io.drops, [(reason, 1)], "{frame:?}");
        assert!(io.sent.is_empty() && io.frames.is_empty());
    }
}

#[test]
fn nothing_comes_from_a_mesh_address_by_itself() {
    let row = &mut Row::new(3);
    let out = row.transmit(0, Vnet::default(), &tcp_packet(false, 1, 0x10, b"x", 0));
    let io = row.receive(1, &out, mesh_address(overlay(2)));
    assert_eq!(io.drops, [(DropReason::RelayForged, 1)]);
    assert!(io.sent.is_empty() && io.events.is_empty());
}

#[test]
fn no_relaying_without_leave() {
    let row = &mut Row::new(3);
    publish(&row.nodes[1], 1, false);
    let packet = tcp_packet(false, 1, 0x10, b"x", 0);
    let out = row.transmit(0, Vnet::default(), &packet);
    let io = row.receive(1, &out, underlay(0));
    assert_eq!(io.drops, [(DropReason::RelayOff, 1)]);
    assert!(io.sent.is_empty());
    // What is for the node itself still arrives.
    publish(&row.nodes[2], 2, false);
    publish(&row.nodes[1], 1, true);
    let out = row.transmit(0, Vnet::default(), &packet);
    assert_eq!(row.carry(out, 2).packets(), [packet]);
}

#[test]
fn nothing_is_relayed_inside_what_is_relayed() {
    let row = &mut Row::new(3);
    // A puts a relay frame into its session with C, which goes over B.
    let inner = relay_frame(1, &[0, 2, 1], &[0x14; 40]);
    let session = row.nodes[0].links[2].send.load_full().unwrap();
    let mut nested = vec![0; inner.len() + OVERHEAD];
    session.seal_from(&inner, &mut nested, 0, session.reserve(1).unwrap());
    let out = row.inside(0, 1, &relay_frame(1, &[0, 1, 2], &nested));
    let io = row.carry(out, 2);
    assert_eq!(io.drops, [(DropReason::RelayNested, 1)]);
    assert!(io.sent.is_empty());

    // A node that is itself reached over others is nobody's next one.
    let row = &mut Row::new(4);
    row.connect(1, 3, mesh_address(overlay(1)), mesh_address(overlay(3)));
    let out = row.inside(0, 1, &relay_frame(1, &[0, 1, 3], &[0x14; 40]));
    let io = row.receive(1, &out, underlay(0));
    assert_eq!(io.drops, [(DropReason::RelayNested, 1)]);
}

#[test]
fn a_session_inside_itself_and_another_nodes_session_are_harmless() {
    let row = &mut Row::new(3);
    let from_b = relay_frame(2, &[0, 1, 2], &[]);
    // B names, inside, the sessions B-C and A-C at C: it has not the keys.
    for (index, reason) in [
        (index(1, 2), DropReason::RelayForged),
        (index(0, 2), DropReason::BadTag),
        (999, DropReason::UnknownSession),
    ] {
        let mut datagram = vec![0x14, 0, 0, 0];
        datagram.extend(index.to_le_bytes());
        datagram.extend([7; 40]);
        let out = row.inside(1, 2, &[&from_b[..], &datagram].concat());
        let io = row.receive(2, &out, underlay(1));
        assert_eq!(io.drops, [(reason, 1)]);
    }
    // Nor does it learn a way to A that did not authenticate as A's.
    assert!(row.nodes[2].links[0].relay_back.load().is_none());
}

#[test]
fn frames_repeated_by_the_network_or_by_a_relay_arrive_once() {
    let row = &mut Row::new(3);
    let packet = tcp_packet(false, 1, 0x10, b"once", 0);
    let out = row.transmit(0, Vnet::default(), &packet);
    let relayed = row.receive(1, &out, underlay(0));
    let again = row.receive(1, &out, underlay(0));
    assert_eq!(again.drops, [(DropReason::Replay, 1)]);
    assert!(again.sent.is_empty());
    assert_eq!(row.receive(2, &relayed, underlay(1)).packets().len(), 1);
    // A hostile relay seals the same datagram afresh.
    let routes = row.nodes[0].tables.routes.load_full();
    let Wrapped::Send { .. } = wrap(&routes, overlay(2), &[0x14; 40], false, 5) else { panic!() };
    let session = row.nodes[0].links[2].send.load_full().unwrap();
    let mut nested = vec![0; packet.len() + OVERHEAD];
    session.seal_from(&packet, &mut nested, 0, session.reserve(1).unwrap());
    let frame = relay_frame(2, &[0, 1, 2], &nested);
    let first = row.inside(1, 2, &frame);
    let second = row.inside(1, 2, &frame);
    assert_eq!(row.receive(2, &first, underlay(1)).packets().len(), 1);
    let io = row.receive(2, &second, underlay(1));
    assert_eq!((io.drops.as_slice(), io.frames.len()), (&[(DropReason::Replay, 1)][..], 0));
}

#[test]
fn a_relayed_datagram_does_not_move_a_peer_that_is_reached_directly() {
    let row = &mut Row::new(3);
    let direct: SocketAddr = "198.51.100.1:9".parse().unwrap();
    row.nodes[2].links[0].roam(direct);
    let packet = tcp_packet(false, 1, 0x10, b"x", 0);
    let out = row.transmit(0, Vnet::default(), &packet);
    let io = row.carry(out, 2);
    assert_eq!(io.packets().len(), 1);
    assert_eq!(row.nodes[2].links[0].endpoint.load().as_deref(), Some(&direct));
    // But the engine hears of it.
    let mesh = mesh_address(overlay(0));
    let told = |e: &&ToEngine| matches!(e, ToEngine::Roamed { to, .. } if *to == mesh);
    assert_eq!(io.events.iter().filter(told).count(), 1);
}

#[test]
fn frames_wait_with_the_engine_for_a_session_of_the_first_or_the_next_relay() {
    let row = &mut Row::new(3);
    let packet = tcp_packet(false, 1, 0x10, b"x", 0);
    let session = row.nodes[0].links[1].send.swap(None);
    let out = row.transmit(0, Vnet::default(), &packet);
    let [ToEngine::Staged { peer, packets }] = &out.events[..] else { panic!("{out:?}") };
    assert_eq!(peer.node(), Some(overlay(1)));
    row.nodes[0].links[1].send.store(session);
    // What the engine seals when there is one.
    let out = row.inside(0, 1, &packets[0]);
    let session = row.nodes[1].links[2].send.swap(None);
    let io = row.receive(1, &out, underlay(0));
    let [ToEngine::Staged { peer, packets }, ToEngine::Confirmed { .. }] = &io.events[..] else {
        panic!("{io:?}")
    };
    assert_eq!(peer.node(), Some(overlay(2)));
    row.nodes[1].links[2].send.store(session);
    let out = row.inside(1, 2, &packets[0]);
    assert_eq!(row.receive(2, &out, underlay(1)).packets(), [packet]);
}

#[test]
fn without_a_way_packets_are_answered_and_counted() {
    let row = &mut Row::new(3);
    row.nodes[0].links[2].relay.store(None);
    let out = row.transmit(0, Vnet::default(), &tcp_packet(false, 1, 0x10, b"x", 0));
    assert_eq!(out.drops, [(DropReason::RelayNoRoute, 1)]);
    assert_eq!(&out.frames[0][VNET_LEN + 20..VNET_LEN + 22], &[3, 1], "host unreachable");
    // Not while it was heard a moment ago: another way is being found.
    row.nodes[0].links[2].note_received(60, 4);
    let out = row.transmit(0, Vnet::default(), &tcp_packet(false, 1, 0x10, b"x", 0));
    assert_eq!(out.drops, [(DropReason::RelayNoRoute, 1)]);
    assert!(out.frames.is_empty(), "{out:?}");
    let routes = row.nodes[0].tables.routes.load_full();
    for node in [overlay(2), overlay(77), "2001:db8::1".parse().unwrap()] {
        let wrapped = wrap(&routes, node, &[0x40; 100], false, 5);
        assert!(matches!(wrapped, Wrapped::Dropped(DropReason::RelayNoRoute)), "{wrapped:?}");
    }
}

#[test]
fn sizes_follow_the_smallest_path_and_nothing_is_stuck() {
    let row = &mut Row::new(4);
    let header = 4 + 4 * 10;
    // The first relay's path is known here: packets are answered, SYNs clamped.
    row.nodes[0].links[1].path_mtu.store(1300, Ordering::Relaxed);
    let fits = 1300 - OVERHEAD - header;
    let big = tcp_packet(false, 1, 0x10, &payload(1260), 0);
    let out = row.transmit(0, Vnet::default(), &big);
    assert_eq!(out.drops, [(DropReason::TooBig, 1)]);
    assert_eq!(&out.frames[0][VNET_LEN + 26..VNET_LEN + 28], &(fits as u16).to_be_bytes());
    let syn = tcp_with_options(false, 1, 2, &[2, 4, 0x05, 0xb4], b"", 0);
    let out = row.transmit(0, Vnet::default(), &syn);
    let io = row.carry(out, 3);
    let packet = &io.packets()[0];
    let at = Ip::parse(packet).unwrap().transport + 22;
    assert_eq!(usize::from(u16::from_be_bytes([packet[at], packet[at + 1]])), fits - 40);

    // A later one's is not: what is too large for it is dropped and counted,
    // for the search to find, unless it may be fragmented.
    row.nodes[0].links[1].path_mtu.store(1420, Ordering::Relaxed);
    row.nodes[1].links[2].path_mtu.store(1200, Ordering::Relaxed);
    let out = row.transmit(0, Vnet::default(), &tcp_packet(false, 1, 0x10, &payload(1260), 0));
    let io = row.receive(1, &out, underlay(0));
    assert_eq!(reasons(&io), [DropReason::RelayTooBig]);
    // 1200 bytes inside always pass, as the search takes for granted.
    let mut floor = tcp_packet(false, 1, 0x10, &payload(1200 - 52), 0);
    assert_eq!(floor.len(), 1200);
    let out = row.transmit(0, Vnet::default(), &floor);
    let io = row.receive(1, &out, underlay(0));
    assert_eq!((io.sent.len(), io.fragmentable.len(), io.drops.len()), (0, 1, 0));
    let io = row.receive(2, &io, underlay(1));
    assert_eq!(row.receive(3, &io, underlay(2)).packets(), [floor.clone()]);
    // And what the sender may not shrink goes in fragments from the start.
    row.nodes[0].links[3].path_mtu.store(1200, Ordering::Relaxed);
    floor = tcp_packet(false, 1, 0x10, &payload(1300), 0);
    floor[6] = 0;
    let out = row.transmit(0, Vnet::default(), &floor);
    assert_eq!((out.sent.len(), out.fragmentable.len()), (0, 1));
    let io = row.receive(1, &out, underlay(0));
    assert_eq!((io.sent.len(), io.fragmentable.len(), io.drops.len()), (0, 1, 0));
}

#[test]
fn a_congestion_mark_on_any_part_of_the_way_reaches_the_packet() {
    let row = &mut Row::new(3);
    let out = row.transmit(0, Vnet::default(), &tcp_packet(false, 1, 0x10, b"x", 2));
    let mut relayed = row.receive(1, &out, underlay(0));
    assert_eq!(relayed.sent[0].3, 2);
    relayed.sent[0].3 = 3;
    assert_eq!(row.receive(2, &relayed, underlay(1)).packets()[0][1] & 3, 3);
    let mut out = row.transmit(0, Vnet::default(), &tcp_packet(false, 1, 0x10, b"x", 2));
    out.sent[0].3 = 3;
    let relayed = row.receive(1, &out, underlay(0));
    assert_eq!(relayed.sent[0].3, 3);
    assert_eq!(row.receive(2, &relayed, underlay(1)).packets()[0][1] & 3, 3);
}

#[test]
fn relayed_and_own_traffic_of_one_neighbour_mix() {
    let row = &mut Row::new(3);
    let packet = |n| tcp_packet(false, n, 0x10, b"over", 0);
    let mut own = tcp_packet(true, 1, 0x10, b"own", 0);
    own[8..24].copy_from_slice(&overlay(1).octets());
    own[24..40].copy_from_slice(&overlay(2).octets());
    let mut train: Vec<(u8, Vec<u8>)> = Vec::new();
    for n in 0..6 {
        let session = row.nodes[0].links[2].send.load_full().unwrap();
        let text = packet(n * 100);
        let mut nested = vec![0; text.len() + OVERHEAD];
        session.seal_from(&text, &mut nested, 0, session.reserve(1).unwrap());
        train.push((0, relay_frame(2, &[0, 1, 2], &nested)));
        train.push((1, if n % 2 == 0 { own.clone() } else { Vec::new() }));
    }
    let mut got = (0, 0);
    // One by one, and all as one train of padded datagrams.
    for (_, text) in &train {
        let out = row.inside(1, 2, text);
        let io = row.receive(2, &out, underlay(1));
        assert_eq!(io.drops, []);
        for packet in io.packets() {
            if packet[0] >> 4 == 6 { got.1 += 1 } else { got.0 += 1 }
        }
    }
    assert_eq!(got, (6, 3));
}

proptest! {
    /// What an authenticated but hostile neighbour puts into relay frames.
    #[test]
    fn arbitrary_frames_never_panic(
        frames in proptest::collection::vec(
            (0..8u8, 0..8usize, any::<u8>(), proptest::collection::vec(any::<u8>(), 0..120)), 1..20),
    ) {
        let row = &mut Row::new(3);
        for (next, count, flags, mut datagram) in frames {
            if datagram.len() > 8 {
                datagram[0] = [0x14, 0x11, 0x40, 4, datagram[0]][usize::from(flags) % 5];
                datagram[1..4].fill(0);
                let known = index(usize::from(flags) % 2, 2);
                datagram[4..8].copy_from_slice(&known.to_le_bytes());
            }
            let nodes: Vec<usize> = (0..count).map(|i| (i * usize::from(flags % 3 + 1)) % 9).collect();
            let mut frame = relay_frame(next, &nodes, &datagram);
            frame[3] = flags & (FLAG_FRAGMENT | 2);
            for to in [0, 2] {
                let out = row.inside(1, to, &frame);
                let io = row.receive(to, &out, underlay(1));
                prop_assert!(io.frames.is_empty());
            }
        }
    }
}
