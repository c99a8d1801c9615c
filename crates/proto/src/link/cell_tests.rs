//! Circuits on the fast path, in memory: a client, one to three hops and what
//! the last of them writes to its TUN.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use warren_types::DropReason;

use super::event::ToEngine;
use super::fast_tests::{Memory, payload};
use super::relay_tests::{Row, SUITE, overlay, underlay};
use super::session::OVERHEAD;
use crate::onion::cell::{CELL_LEN, CircuitId, Kind, plain};
use crate::onion::circuit::{ClientCircuit, HopCircuit, Neighbour};
use crate::onion::compartment::Compartment;
use crate::onion::keys::HopSecrets;
use crate::onion::payload::{Answer, Request};
use crate::onion::session::{CLIENT_V4, CLIENT_V6, ClientSession, ExitSession, Lease};
use crate::onion::tables::Entry;
use crate::packet::checksum::{Sum, transport_is_valid};
use crate::packet::ip::{Ip, PROTO_ICMP, PROTO_ICMPV6};
use crate::packet::nat::{Side, replace};
use crate::packet::segment::tests::{super_packet, tcp_packet, udp_packet};
use crate::packet::vnet::{VNET_LEN, Vnet};

struct Path {
    row: Row,
    circuit: Arc<ClientCircuit>,
    hops: Vec<Arc<HopCircuit>>,
    client: Arc<ClientSession>,
    exit: Arc<ExitSession>,
    last: usize,
}

fn id(n: usize) -> CircuitId {
    CircuitId::new(0x1000 + n as u32)
}

/// A circuit from node 0 over `hops` others. `number` tells it from others.
fn circuit(
    row: &Row,
    hops: usize,
    number: usize,
    compartment: Compartment,
) -> (Arc<ClientCircuit>, Vec<Arc<HopCircuit>>) {
    let id = |n: usize| id(16 * number + n);
    let seed = |i: usize| (i + 8 * number) as u8;
    let secrets = |i: usize| HopSecrets::derive(SUITE, &[seed(i); 32], &[seed(i) ^ 0x33; 96]);
    // Each link's numbers: forward 2i at node i+1, backward 2i+1 at node i.
    let link = |from: usize, to: usize| Neighbour {
        peer: row.nodes[from].links[to].clone(),
        theirs: id(if to > from { 2 * from } else { 2 * to + 1 }),
        ours: id(if to > from { 2 * from + 1 } else { 2 * to }),
    };
    let circuit = ClientCircuit::new(1 + number as u64, link(0, 1), &secrets(0), 1);
    let circuit = Arc::new(circuit.in_compartment(compartment));
    (1..hops).for_each(|i| circuit.extend(&secrets(i)));
    assert!(row.nodes[0].tables.onion.insert(id(1), Entry::Client(circuit.clone())));
    let mut all = Vec::new();
    for i in 1..=hops {
        let tables = &row.nodes[i].tables.onion;
        let hop = HopCircuit::new(link(i, i - 1), secrets(i - 1), [i as u8; 32], 1);
        let hop = Arc::new(hop);
        assert!(tables.insert(hop.previous.ours, Entry::Hop(hop.clone())));
        if i < hops {
            let next = link(i, i + 1);
            assert!(tables.insert(next.ours, Entry::HopBack(hop.clone())));
            hop.next.store(Some(Arc::new(next)));
        }
        all.push(hop);
    }
    (circuit, all)
}

/// Both ends of a session over a circuit.
fn session(
    row: &Row,
    (circuit, hops): &(Arc<ClientCircuit>, Vec<Arc<HopCircuit>>),
    lease: u16,
) -> (Arc<ClientSession>, Arc<ExitSession>) {
    let client = Arc::new(ClientSession::default());
    client.active.store(Some(circuit.clone()));
    row.nodes[0].tables.onion.set_own_session(circuit.compartment, Some(client.clone()));
    let exit = Arc::new(ExitSession::new(Lease::new(lease).unwrap()));
    hops[hops.len() - 1].session.store(Some(exit.clone()));
    row.nodes[hops.len()].tables.onion.set_session(exit.lease, Some(exit.clone()));
    (client, exit)
}

/// A circuit from node 0 over all others; the last is the exit.
fn path(hops: usize) -> Path {
    let row = Row::new(hops + 1);
    let built = circuit(&row, hops, 0, Compartment::DEFAULT);
    let (client, exit) = session(&row, &built, 9);
    let (circuit, all) = built;
    Path { row, circuit, hops: all, client, exit, last: hops }
}

fn inner(v6: bool) -> IpAddr {
    if v6 { CLIENT_V6.into() } else { CLIENT_V4.into() }
}

fn lease(v6: bool) -> IpAddr {
    let lease = Lease::new(9).unwrap();
    if v6 { lease.v6().into() } else { lease.v4().into() }
}

/// A packet to somewhere outside, from `source`.
fn outgoing(v6: bool, source: IpAddr, data: &[u8]) -> Vec<u8> {
    let mut packet = tcp_packet(v6, 1, 0x18, data, 0);
    let ip = Ip::parse(&packet).unwrap();
    assert!(replace(&ip, &mut packet, Side::Source, source, false));
    let there = if v6 { "2001:db8::5" } else { "203.0.113.5" };
    assert!(replace(&ip, &mut packet, Side::Destination, there.parse().unwrap(), false));
    packet
}

fn incoming(v6: bool, to: IpAddr, data: &[u8]) -> Vec<u8> {
    let mut packet = outgoing(v6, inner(v6), data);
    let ip = Ip::parse(&packet).unwrap();
    let there = ip.destination(&packet);
    assert!(replace(&ip, &mut packet, Side::Destination, to, false));
    assert!(replace(&ip, &mut packet, Side::Source, there, false));
    packet
}

fn back(path: &mut Path, mut sent: Memory) -> Memory {
    for i in (0..path.last).rev() {
        sent = path.row.receive(i, &sent, underlay(i + 1));
    }
    sent
}

#[test]
fn a_neighbour_that_is_reached_over_others_gets_its_cells_the_slow_way() {
    let mut path = path(2);
    let packet = outgoing(false, inner(false), b"x");
    let over = |row: &Row, from: usize, to: usize| {
        row.nodes[from].links[to].roam(warren_types::mesh_address(overlay(9)));
    };
    let staged = |io: &Memory, to: usize| {
        let [ToEngine::Staged { peer, packets }, ..] = &io.events[..] else { panic!("{io:?}") };
        assert_eq!((peer.node(), io.drops.len()), (Some(overlay(to)), 0), "{io:?}");
        assert_eq!((packets.len(), packets[0].len()), (1, CELL_LEN));
    };
    // On its way through a hop.
    let out = path.row.transmit(0, Vnet::default(), &packet);
    over(&path.row, 1, 2);
    staged(&path.row.receive(1, &out, underlay(0)), 2);
    // And where it begins.
    over(&path.row, 0, 1);
    staged(&path.row.transmit(0, Vnet::default(), &packet), 1);
}

#[test]
fn a_super_packet_goes_out_and_back_in_trains_of_cells() {
    for hops in 1..=3 {
        for v6 in [false, true] {
            let mut path = path(hops);
            let mut packet = outgoing(v6, inner(v6), &payload(40_000));
            let vnet = super_packet(&mut packet, 1200);
            let out = path.row.transmit(0, vnet, &packet);
            assert_eq!(out.drops, []);
            assert_eq!(out.sent.len(), 1, "one send for one super-packet: {out:?}");
            let (_, data, segment, _) = &out.sent[0];
            assert_eq!((*segment, data.len() % segment), (CELL_LEN + OVERHEAD, 0));
            let io = path.row.carry(out, hops);
            assert_eq!(io.drops, []);
            assert_eq!(io.frames.len(), 1, "and one frame at the end");
            let frame = &io.frames[0][VNET_LEN..];
            let ip = Ip::parse(frame).unwrap();
            assert_eq!((ip.source(frame), frame.len()), (lease(v6), packet.len()));
            assert_eq!(&frame[ip.transport + 32..], &packet[ip.transport + 32..]);
            assert_eq!(path.exit.stream.rx_packets.load(Ordering::Relaxed), 34);
            assert!(Arc::ptr_eq(&path.exit.active.load_full().unwrap(), &path.hops[hops - 1]));

            let mut packet = incoming(v6, lease(v6), &payload(30_000));
            let vnet = super_packet(&mut packet, 1200);
            let out = path.row.transmit(hops, vnet, &packet);
            assert_eq!(out.sent.len(), 1, "{out:?}");
            let io = back(&mut path, out);
            assert_eq!(io.drops, []);
            assert_eq!(io.frames.len(), 1);
            let frame = &io.frames[0][VNET_LEN..];
            assert_eq!((ip.destination(frame), frame.len()), (inner(v6), packet.len()));
            assert_eq!(path.client.stream.rx_packets.load(Ordering::Relaxed), 25);
        }
    }
}

/// An ICMP error that quotes `quoted`, a whole packet.
fn error_about(v6: bool, from: IpAddr, to: IpAddr, quoted: &[u8]) -> Vec<u8> {
    let message = [&[if v6 { 1 } else { 3 }, 1, 0, 0, 0, 0, 0, 0], quoted].concat();
    let mut packet = udp_packet(v6, &message);
    let start = if v6 { 40 } else { 20 };
    // The message in the place of the UDP header and its data.
    packet.truncate(start);
    packet.extend(&message);
    if v6 {
        packet[6] = PROTO_ICMPV6;
        packet[4..6].copy_from_slice(&(message.len() as u16).to_be_bytes());
    } else {
        packet[9] = PROTO_ICMP;
        let len = packet.len() as u16;
        packet[2..4].copy_from_slice(&len.to_be_bytes());
        packet[10..12].fill(0);
        let sum = Sum::default().bytes(&packet[..20]).complete();
        packet[10..12].copy_from_slice(&sum);
    }
    let ip = Ip::parse(&packet).unwrap();
    assert!(replace(&ip, &mut packet, Side::Source, from, false));
    assert!(replace(&ip, &mut packet, Side::Destination, to, false));
    packet[start + 2..start + 4].fill(0);
    let sum = if v6 {
        Sum::default().pseudo(ip.addresses(&packet), PROTO_ICMPV6, message.len())
    } else {
        Sum::default()
    };
    let sum = sum.bytes(&message).complete();
    packet[start + 2..start + 4].copy_from_slice(&sum);
    packet
}

fn icmp_is_sound(v6: bool, packet: &[u8]) -> bool {
    let ip = Ip::parse(packet).unwrap();
    let message = &packet[ip.transport..];
    let sum = if v6 {
        Sum::default().pseudo(ip.addresses(packet), PROTO_ICMPV6, message.len())
    } else {
        Sum::default()
    };
    sum.bytes(message).is_valid() && (v6 || Sum::default().bytes(&packet[..20]).is_valid())
}

#[test]
fn sessions_side_by_side_use_their_own_circuits_and_addresses() {
    let row = Row::new(4);
    let kept = [Compartment::DEFAULT, Compartment::isolated(1).unwrap()];
    let circuits = [0, 1].map(|n| circuit(&row, 3, n, kept[n]));
    let sessions = [0, 1].map(|n| session(&row, &circuits[n], 9 + n as u16));
    let lease = |n: usize, v6| Lease::new(9 + n as u16).unwrap().address(v6);
    let mut path = Path {
        row,
        circuit: circuits[0].0.clone(),
        hops: circuits[0].1.clone(),
        client: sessions[0].0.clone(),
        exit: sessions[0].1.clone(),
        last: 3,
    };
    let mut cells = [(0, 0); 2];
    let counted = |n: usize| {
        let circuit = &circuits[n].0;
        (circuit.tx_cells.load(Ordering::Relaxed), circuit.rx_cells.load(Ordering::Relaxed))
    };
    for (n, v6) in [(0, false), (1, false), (1, true), (0, true), (1, false)] {
        let own = kept[n].address(v6);
        // Out: the exit knows each by its lease, and by nothing else.
        let mut packet = outgoing(v6, own, &payload(9_000));
        let vnet = super_packet(&mut packet, 1200);
        let sent = path.row.transmit(0, vnet, &packet);
        let io = path.row.carry(sent, 3);
        assert_eq!(io.drops, []);
        assert_eq!(io.frames.len(), 1);
        let frame = &io.frames[0][VNET_LEN..];
        let ip = Ip::parse(frame).unwrap();
        assert_eq!((ip.source(frame), frame.len()), (lease(n, v6), packet.len()));
        // Back: each packet is its session's.
        let answer = incoming(v6, lease(n, v6), b"answer");
        let sent = path.row.transmit(3, Vnet::default(), &answer);
        let io = back(&mut path, sent);
        assert_eq!(io.drops, []);
        let [got] = &io.packets()[..] else { panic!("{io:?}") };
        let ip = Ip::parse(got).unwrap();
        assert_eq!(ip.destination(got), own);
        assert!(transport_is_valid(&ip, got));
        // An error from outside quotes what we had sent, as we had sent it.
        let there = ip.source(got);
        let quoted = outgoing(v6, lease(n, v6), b"lost");
        let error = error_about(v6, there, lease(n, v6), &quoted);
        let sent = path.row.transmit(3, Vnet::default(), &error);
        let io = back(&mut path, sent);
        let [got] = &io.packets()[..] else { panic!("{io:?}") };
        let start = if v6 { 40 } else { 20 };
        // Its header and ports; the sum behind them is the sender's (RFC 5508).
        let named = |packet: &[u8]| packet[..start + 16].to_vec();
        assert_eq!(named(&got[start + 8..]), named(&outgoing(v6, own, b"lost")));
        assert!(icmp_is_sound(v6, got));
        // And one of ours quotes what had come to us as the exit knows it.
        let quoted = incoming(v6, own, b"unwanted");
        let error = error_about(v6, own, there, &quoted);
        let sent = path.row.transmit(0, Vnet::default(), &error);
        let io = path.row.carry(sent, 3);
        let [got] = &io.packets()[..] else { panic!("{io:?}") };
        assert_eq!(named(&got[start + 8..]), named(&incoming(v6, lease(n, v6), b"unwanted")));
        assert!(icmp_is_sound(v6, got));
        // What is too big is told as its sender knows it.
        let big = outgoing(v6, own, &payload(1300));
        let io = path.row.transmit(0, Vnet::default(), &big);
        assert_eq!(io.drops, [(DropReason::TooBig, 1)]);
        let told = &io.frames[0][VNET_LEN + start + 8..];
        assert_eq!(told[..start + 20], big[..start + 20]);
        // Nothing of it went over the other's circuit.
        let before = cells;
        cells = [counted(0), counted(1)];
        assert!(cells[n].0 > before[n].0 && cells[n].1 > before[n].1, "{before:?} {cells:?}");
        assert_eq!(cells[1 - n], before[1 - n]);
    }
    let seen = |n: usize| sessions[n].1.stream.rx_packets.load(Ordering::Relaxed);
    assert_eq!((seen(0), seen(1)), (2 * 9, 3 * 9));
    // Without a circuit, or without a session, nothing leaves by another.
    let packet = outgoing(false, kept[1].address(false), b"nowhere");
    sessions[1].0.active.store(None);
    let io = path.row.transmit(0, Vnet::default(), &packet);
    assert_eq!((io.drops[0].0, io.sent.len()), (DropReason::NoCircuit, 0));
    path.row.nodes[0].tables.onion.set_own_session(kept[1], None);
    let io = path.row.transmit(0, Vnet::default(), &packet);
    assert_eq!((io.drops[0].0, io.sent.len()), (DropReason::NoRoute, 0));
    // What still comes over its circuit is nobody's.
    let answer = incoming(false, lease(1, false), b"late");
    let sent = path.row.transmit(3, Vnet::default(), &answer);
    let io = back(&mut path, sent);
    assert_eq!((io.drops[0].0, io.frames.len()), (DropReason::NoCircuit, 0));
    assert_eq!([counted(0).0, counted(1).0], [cells[0].0, cells[1].0]);
}

#[test]
fn small_packets_share_cells_and_keep_their_checksums() {
    let mut path = path(3);
    let mut io = Memory::default();
    let packets: Vec<_> = (0..40u8).map(|i| outgoing(false, inner(false), &[i; 9])).collect();
    for packet in &packets {
        let mut buffer = [vec![0; VNET_LEN], packet.clone(), vec![0; 16]].concat();
        let node = &mut path.row.nodes[0];
        node.tx.frame(&mut io, &node.tables, &mut buffer, VNET_LEN + packet.len(), 5);
    }
    path.row.nodes[0].tx.finish(&mut io);
    let cells: usize = io.sent.iter().map(|(_, data, segment, _)| data.len() / segment).sum();
    assert_eq!(cells, 2, "twenty of 61 bytes in each");
    let io = path.row.carry(io, 3);
    let got: Vec<Vec<u8>> = io.packets();
    let total: usize = got.iter().map(|packet| packet.len()).sum();
    assert!(total >= 40 * 9 + 52, "{io:?}");
    for packet in got {
        let ip = Ip::parse(&packet).unwrap();
        assert!(transport_is_valid(&ip, &packet));
        assert_eq!(ip.source(&packet), lease(false));
    }
}

#[test]
fn what_is_too_big_or_not_the_client_s_stays() {
    let mut path = path(2);
    let big = outgoing(false, inner(false), &payload(1300));
    let io = path.row.transmit(0, Vnet::default(), &big);
    assert_eq!(io.drops, [(DropReason::TooBig, 1)]);
    assert_eq!(io.frames.len(), 1, "ICMP says so");
    let foreign = outgoing(false, "10.0.0.1".parse().unwrap(), b"mesh address");
    assert_eq!(path.row.transmit(0, Vnet::default(), &foreign).drops[0].0, DropReason::NoRoute);
    let packet = outgoing(false, inner(false), b"closed");
    path.client.active.store(None);
    let io = path.row.transmit(0, Vnet::default(), &packet);
    assert_eq!((io.drops[0].0, io.sent.len()), (DropReason::NoCircuit, 0));
    // To a lease: the answer names the packet as the network behind us knows it.
    path.exit.active.store(Some(path.hops[1].clone()));
    for v6 in [false, true] {
        let big = incoming(v6, lease(v6), &payload(1300));
        let io = path.row.transmit(2, Vnet::default(), &big);
        assert_eq!(io.drops, [(DropReason::TooBig, 1)]);
        let answer = &io.frames[0][VNET_LEN..];
        let quoted = &answer[if v6 { 48 } else { 28 }..];
        assert_eq!(quoted[..60], big[..60], "as it came, checksums included");
    }
    let unleased = incoming(false, "240.0.0.10".parse().unwrap(), b"nobody");
    assert_eq!(path.row.transmit(2, Vnet::default(), &unleased).drops[0].0, DropReason::NoRoute);
}

#[test]
fn inner_packets_with_other_addresses_are_refused_at_both_ends() {
    // To the mesh, through the exit: node addresses of the row are 10.0.0.x.
    let mut path = path(2);
    let udp = udp_packet(false, b"to a member");
    let ip = Ip::parse(&udp).unwrap();
    for (source, destination) in [
        ("192.0.0.2", "10.0.0.2"),
        ("198.51.100.1", "203.0.113.5"),
        ("192.0.0.2", "240.0.0.7"),
        ("192.0.0.2", "240.1.0.7"),
        ("240.1.0.7", "203.0.113.5"),
    ] {
        let mut packet = udp.clone();
        replace(&ip, &mut packet, Side::Source, source.parse().unwrap(), false);
        replace(&ip, &mut packet, Side::Destination, destination.parse().unwrap(), false);
        let mut text = vec![0; 8 + 2];
        crate::onion::payload::write_data_head(&mut text, path.client.stream.next_sequence(), true);
        crate::onion::payload::write_record_head(&mut text[8..], packet.len(), false);
        text.extend(&packet);
        let cell = path.circuit.say(1, &text, 5);
        let out = path.row.inside(0, 1, &cell);
        let io = path.row.carry(out, 2);
        assert_eq!((io.drops[0].0, io.frames.len()), (DropReason::CellAddress, 0), "{source}");
    }
}

#[test]
fn duplicates_over_a_second_circuit_count_once() {
    let mut path = path(2);
    path.client.also.store(Some(path.circuit.clone()));
    let packet = outgoing(false, inner(false), b"once");
    let out = path.row.transmit(0, Vnet::default(), &packet);
    assert_eq!(out.sent[0].1.len(), CELL_LEN + OVERHEAD, "the same circuit is no second one");
    // The same text twice, as if over two circuits.
    let mut text = vec![0; 8];
    crate::onion::payload::write_data_head(&mut text, 7, false);
    for expected in [0, 1] {
        let cell = path.circuit.say(1, &text, 5);
        let out = path.row.inside(0, 1, &cell);
        assert_eq!(path.row.carry(out, 2).drops, []);
        assert_eq!(path.exit.stream.duplicates.load(Ordering::Relaxed), expected);
    }
}

#[test]
fn echoes_are_answered_by_each_hop_and_the_rest_goes_to_the_slow_path() {
    let mut path = path(3);
    for hop in 0..3 {
        let cell = path.circuit.say(hop, &Request::Echo { token: 77, active: None }.encode(), 5);
        let mut sent = path.row.inside(0, 1, &cell);
        for i in 1..=hop + 1 {
            sent = path.row.receive(i, &sent, underlay(i - 1));
        }
        for i in (0..=hop).rev() {
            sent = path.row.receive(i, &sent, underlay(i + 1));
        }
        let answer = sent.events.iter().find_map(|event| match event {
            ToEngine::OnionAnswer { hop, text, .. } => Some((hop, text)),
            _ => None,
        });
        let (from, text) = answer.expect("an answer arrives");
        let answer = Answer::parse(text).unwrap();
        assert_eq!(*from, hop);
        assert!(matches!(answer, Answer::EchoReply { token: 77, .. }), "{answer:?}");
    }
    let cell = path.circuit.say(2, &Request::Close.encode(), 5);
    let out = path.row.inside(0, 1, &cell);
    let io = path.row.carry(out, 3);
    let heard = |io: &Memory, is: fn(&ToEngine) -> bool| io.events.iter().any(is);
    assert!(heard(&io, |event| matches!(event, ToEngine::OnionRequest { .. })));
    let create = plain(Kind::Create, id(99), b"first");
    let out = path.row.inside(0, 1, &create);
    let io = path.row.receive(1, &out, underlay(0));
    assert!(heard(&io, |event| matches!(event, ToEngine::Cell { .. })));
}

#[test]
fn cells_from_the_wrong_neighbour_altered_or_repeated_are_dropped_where_they_arrive() {
    let mut path = path(3);
    let packet = outgoing(false, inner(false), b"hello");
    let out = path.row.transmit(0, Vnet::default(), &packet);
    let first = path.row.receive(1, &out, underlay(0));
    assert_eq!((first.drops.len(), first.sent.len()), (0, 1));
    // The second hop's neighbour 3 sends what neighbour 1 may send.
    let cell = path.circuit.say(2, b"x", 5);
    let wrong = path.row.inside(0, 1, &[&[5, 2, 0x10, 0][..], &cell[4..]].concat());
    assert_eq!(path.row.receive(1, &wrong, underlay(0)).drops[0].0, DropReason::CellUnknown);
    let mut altered = path.circuit.say(2, b"x", 5);
    altered[700] ^= 1;
    let out = path.row.inside(0, 1, &altered);
    assert_eq!(path.row.receive(1, &out, underlay(0)).drops[0].0, DropReason::CellForged);
    let cell = path.circuit.say(2, &Request::Close.encode(), 5);
    for expected in [None, Some(DropReason::CellReplay)] {
        let out = path.row.inside(0, 1, &cell);
        let io = path.row.receive(1, &out, underlay(0));
        assert_eq!(io.drops.first().map(|drop| drop.0), expected);
    }
    let short = path.row.inside(0, 1, &cell[..CELL_LEN - 1]);
    assert_eq!(path.row.receive(1, &short, underlay(0)).drops[0].0, DropReason::Malformed);
}

/// The field is open to everybody on the way: a mark there would be seen again
/// at the other end of a circuit.
#[test]
fn nothing_written_into_the_outer_header_is_passed_on() {
    let mut path = path(3);
    let there = path.row.transmit(0, Vnet::default(), &outgoing(false, inner(false), b"out"));
    let mut sent = path.row.carry(there, 2);
    let answer = incoming(false, lease(false), b"back");
    // So that the exit knows where to.
    let _ = path.row.receive(3, &sent, underlay(2));
    let mut back = path.row.transmit(3, Vnet::default(), &answer);
    let mark = |memory: &mut Memory| memory.sent.iter_mut().for_each(|sent| sent.3 = 0b11);
    mark(&mut back);
    let returned = path.row.receive(2, &back, underlay(3));
    assert_eq!((returned.sent.len(), returned.sent[0].3), (1, 0), "towards the client");
    sent = path.row.transmit(0, Vnet::default(), &outgoing(false, inner(false), b"again"));
    mark(&mut sent);
    let onward = path.row.receive(1, &sent, underlay(0));
    assert_eq!((onward.sent.len(), onward.sent[0].3), (1, 0), "away from it");
}
