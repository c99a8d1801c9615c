//! The fast path from end to end, in memory: node A's transmitter, node B's
//! receiver, and C behind B.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use proptest::prelude::*;
use warren_types::{DropReason, LinkPublicKey, Suite};

use super::event::{Outputs, ToEngine};
use super::outbound::REJECT_AFTER_MS;
use super::peer::PeerLink;
use super::receive::Receiver;
use super::session::{HEADER_LEN, OVERHEAD, RecvSession, SendSession};
use super::tables::{Routes, Tables};
use super::transmit::{TAIL_ROOM, Transmitter};
use crate::noise::MacKey;
use crate::packet::gather::Limits;
use crate::packet::ip::Ip;
use crate::packet::segment::Checksums;
use crate::packet::segment::tests::{cut, super_packet, tcp_packet, tcp_with_options, udp_packet};
use crate::packet::vnet::{Gso, VNET_LEN, Vnet};

#[derive(Default)]
pub(super) struct Memory {
    pub(super) frames: Vec<Vec<u8>>,
    pub(super) sent: Vec<(SocketAddr, Vec<u8>, usize, u8)>,
    pub(super) fragmentable: Vec<Vec<u8>>,
    pub(super) events: Vec<ToEngine>,
    pub(super) drops: Vec<(DropReason, u64)>,
}

impl Outputs for Memory {
    fn tun(&mut self, frame: &[u8]) {
        self.frames.push(frame.to_vec());
    }
    fn udp(&mut self, to: SocketAddr, data: &[u8], segment: usize, tos: u8) {
        self.sent.push((to, data.to_vec(), segment, tos));
    }
    fn udp_fragmentable(&mut self, _to: SocketAddr, data: &[u8], _tos: u8) {
        self.fragmentable.push(data.to_vec());
    }
    fn engine(&mut self, event: ToEngine) {
        self.events.push(event);
    }
    fn dropped(&mut self, reason: DropReason, packets: u64) {
        self.drops.push((reason, packets));
    }
}

impl Memory {
    /// The frames as complete single packets.
    pub(super) fn packets(&self) -> Vec<Vec<u8>> {
        let cut_one = |frame: &Vec<u8>| {
            let vnet = Vnet::parse(frame.first_chunk().unwrap()).unwrap();
            cut(&vnet, &frame[VNET_LEN..], Checksums::Complete)
        };
        self.frames.iter().flat_map(cut_one).collect()
    }
}

struct Node {
    tables: Tables,
    peer: Arc<PeerLink>,
    tx: Transmitter,
    rx: Receiver,
}

const A: &str = "192.0.2.1:7000";
const B: &str = "192.0.2.2:7000";

pub(super) fn mac_key() -> MacKey {
    MacKey::for_receiver(&LinkPublicKey([3; 32]))
}

/// A node that owns `own` and has one peer that owns `others`.
fn node(
    (suite, is_warren): (Suite, bool),
    keys: (u8, u8),
    endpoint: &str,
    own: &[&str],
    others: &[&str],
) -> Node {
    let peer = Arc::new(PeerLink::new(LinkPublicKey([keys.1; 32]), suite, is_warren));
    peer.endpoint.store(Some(Arc::new(endpoint.parse().unwrap())));
    peer.send.store(Some(Arc::new(SendSession::new(suite, 9, &[keys.0; 32], 1, true))));
    let tables = Tables::default();
    tables.insert_session(Arc::new(RecvSession::new(suite, 9, &[keys.1; 32], peer.clone(), 1)));
    let own = own.iter().map(|text| text.parse().unwrap()).collect();
    let nets = others.iter().map(|text| (text.parse().unwrap(), peer.clone()));
    tables.routes.store(Arc::new(Routes::new(own, nets)));
    Node { tables, peer, tx: Transmitter::default(), rx: Receiver::new(Limits::ALL) }
}

const A_OWNS: [&str; 2] = ["10.0.0.1/32", "fdfd:fdfd:fdfd:fdfd:fdfd:fdfd:fdfd:fdfd/128"];
const B_OWNS: [&str; 2] = ["10.0.0.2/32", "fcfc:fcfc:fcfc:fcfc:fcfc:fcfc:fcfc:fcfc/128"];

fn pair(suite: Suite) -> (Node, Node) {
    pair_of(suite, true)
}

fn pair_of(suite: Suite, is_warren: bool) -> (Node, Node) {
    let kind = (suite, is_warren);
    let strip = |nets: [&'static str; 2]| nets.map(|net| net.split('/').next().unwrap());
    (node(kind, (1, 2), B, &strip(A_OWNS), &B_OWNS), node(kind, (2, 1), A, &strip(B_OWNS), &A_OWNS))
}

fn transmit(node: &mut Node, frames: &[(Vnet, Vec<u8>)], now_ms: u64) -> Memory {
    let mut io = Memory::default();
    for (vnet, packet) in frames {
        let mut buffer = vec![0; VNET_LEN + packet.len() + TAIL_ROOM];
        vnet.encode(buffer.first_chunk_mut().unwrap());
        buffer[VNET_LEN..VNET_LEN + packet.len()].copy_from_slice(packet);
        node.tx.frame(&mut io, &node.tables, &mut buffer, VNET_LEN + packet.len(), now_ms);
    }
    node.tx.finish(&mut io);
    io
}

fn receive(
    node: &mut Node,
    io: &mut Memory,
    sent: &[(SocketAddr, Vec<u8>, usize, u8)],
    from: &str,
) {
    for (_, data, segment, tos) in sent {
        let from = from.parse().unwrap();
        node.rx.train(io, &node.tables, &mac_key(), from, *tos, data, *segment, 5);
    }
    node.rx.finish(io);
}

pub(super) fn payload(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 13 % 251) as u8).collect()
}

#[test]
fn a_super_packet_arrives_as_one() {
    for suite in [Suite::Aes256Gcm, Suite::ChaCha20Poly1305] {
        for v6 in [false, true] {
            for mut packet in
                [tcp_packet(v6, 1, 0x18, &payload(60_300), 2), udp_packet(v6, &payload(60_300))]
            {
                let (mut a, mut b) = pair(suite);
                let vnet = super_packet(&mut packet, 1340);
                let out = transmit(&mut a, &[(vnet, packet.clone())], 5);
                assert_eq!(out.sent.len(), 1, "one send for one super-packet");
                let tos = if packet[0] & 0xf0 == 0x40 { packet[1] } else { packet[1] >> 4 };
                assert_eq!(out.sent[0].3, tos & 3);
                let mut io = Memory::default();
                receive(&mut b, &mut io, &out.sent, A);
                assert_eq!(io.drops, []);
                assert_eq!(io.frames.len(), 1);
                assert_eq!(&io.frames[0][VNET_LEN..], &packet);
                assert!(matches!(&io.events[..], [ToEngine::Confirmed { .. }]));
                assert_eq!(
                    a.peer.tx_bytes.load(Ordering::Relaxed),
                    b.peer.rx_bytes.load(Ordering::Relaxed)
                );
                assert_eq!(b.peer.rx_data.load(Ordering::Relaxed), 45);
                assert_eq!(b.peer.last_data_rx_ms.load(Ordering::Relaxed), 5);
            }
        }
    }
}

#[test]
fn frames_of_one_peer_share_a_send_and_marks_do_not_mix() {
    let (mut a, _) = pair(Suite::Aes256Gcm);
    let small = |tos| (Vnet::default(), tcp_packet(false, 1, 0x10, b"", tos));
    let out = transmit(&mut a, &[small(0), small(0), small(0xb8), small(2), small(3)], 5);
    let sends: Vec<_> = out.sent.iter().map(|s| (s.1.len() / s.2, s.3)).collect();
    // DSCP is not shown outside; a congestion mark is ECT(0) outside.
    assert_eq!(sends, [(3, 0), (2, 2)]);
}

#[test]
fn tampered_replayed_and_expired_messages_are_dropped() {
    for suite in [Suite::Aes256Gcm, Suite::ChaCha20Poly1305] {
        let (mut a, mut b) = pair(suite);
        let mut packet = tcp_packet(false, 1, 0x18, &payload(5000), 0);
        let vnet = super_packet(&mut packet, 1000);
        let out = transmit(&mut a, &[(vnet, packet.clone())], 5);
        let mut bad = out.sent.clone();
        let segment = bad[0].2;
        bad[0].1[segment * 2 + HEADER_LEN] ^= 1;
        let mut io = Memory::default();
        receive(&mut b, &mut io, &bad, A);
        assert_eq!(io.drops, [(DropReason::BadTag, 1)]);
        assert_eq!(io.packets().len(), 4);
        // The good copy of the bad one is still fresh, the others are not.
        let mut io = Memory::default();
        receive(&mut b, &mut io, &out.sent, A);
        assert_eq!(io.drops, [(DropReason::Replay, 1); 4]);
        assert_eq!(io.packets().len(), 1);
        assert_eq!(io.packets()[0], cut(&vnet, &packet, Checksums::Complete)[2]);

        let out = transmit(&mut a, &[(vnet, packet)], 5);
        let mut io = Memory::default();
        for (_, data, segment, _) in &out.sent {
            let late = 1 + REJECT_AFTER_MS;
            b.rx.train(&mut io, &b.tables, &mac_key(), A.parse().unwrap(), 0, data, *segment, late);
        }
        assert_eq!(io.drops, [(DropReason::SessionExpired, 1); 5]);
    }
}

#[test]
fn a_peer_speaks_for_its_own_addresses_only() {
    let (mut a, mut b) = pair(Suite::Aes256Gcm);
    let mut packet = tcp_packet(false, 1, 0x10, b"spoof", 0);
    packet[15] = 77;
    let out = transmit(&mut a, &[(Vnet::default(), packet)], 5);
    let mut io = Memory::default();
    receive(&mut b, &mut io, &out.sent, A);
    assert_eq!(io.drops, [(DropReason::SourceNotAllowed, 1)]);
    assert!(io.frames.is_empty());
}

#[test]
fn an_authenticated_message_from_elsewhere_is_reported_and_moves_stock_peers_only() {
    for is_warren in [true, false] {
        let (mut a, mut b) = pair_of(Suite::ChaCha20Poly1305, is_warren);
        let new: SocketAddr = "203.0.113.9:1".parse().unwrap();
        let segment = || (Vnet::default(), tcp_packet(false, 1, 0x10, b"x", 0));
        let out = transmit(&mut a, &[segment()], 5);
        let mut forged = out.sent.clone();
        forged[0].1[20] ^= 1;
        let mut io = Memory::default();
        receive(&mut b, &mut io, &forged, &new.to_string());
        assert_eq!(**b.peer.endpoint.load().as_ref().unwrap(), A.parse().unwrap());
        assert!(io.events.is_empty());
        for _ in 0..2 {
            let out = transmit(&mut a, &[segment()], 5);
            receive(&mut b, &mut io, &out.sent, &new.to_string());
        }
        let expected = if is_warren { A.parse().unwrap() } else { new };
        assert_eq!(**b.peer.endpoint.load().as_ref().unwrap(), expected);
        let roamed = |e: &&ToEngine| matches!(e, ToEngine::Roamed { to, .. } if *to == new);
        assert_eq!(io.events.iter().filter(roamed).count(), 1, "told once");
        assert_eq!(b.peer.rx_data.load(Ordering::Relaxed), 2);
    }
}

#[test]
fn without_a_session_packets_are_staged_whole() {
    let (mut a, _) = pair(Suite::Aes256Gcm);
    let mut packet = tcp_packet(true, 1, 0x18, &payload(3000), 0);
    let vnet = super_packet(&mut packet, 1000);
    let expected = cut(&vnet, &packet, Checksums::Complete);
    for expired in [false, true] {
        if !expired {
            a.peer.send.store(None);
        } else {
            a.peer.send.store(Some(Arc::new(SendSession::new(
                Suite::Aes256Gcm,
                9,
                &[1; 32],
                1,
                true,
            ))));
        }
        let out = transmit(&mut a, &[(vnet, packet.clone())], 1 + REJECT_AFTER_MS);
        let [ToEngine::Staged { packets, .. }] = &out.events[..] else {
            panic!("{:?}", out.events)
        };
        assert_eq!(packets, &expected);
    }
}

#[test]
fn what_cannot_be_sent_is_answered() {
    let (mut a, _) = pair(Suite::Aes256Gcm);
    let mut nowhere = tcp_packet(false, 1, 0x10, b"x", 0);
    nowhere[16..20].copy_from_slice(&[10, 9, 9, 9]);
    let out = transmit(&mut a, &[(Vnet::default(), nowhere)], 5);
    assert_eq!(out.drops, [(DropReason::NoRoute, 1)]);
    let reply = &out.frames[0][VNET_LEN..];
    let ip = Ip::parse(reply).unwrap();
    assert_eq!(
        (ip.source(reply), &reply[20..22]),
        ("10.9.9.9".parse::<IpAddr>().unwrap(), &[3, 0][..])
    );

    a.peer.endpoint.store(None);
    let out = transmit(&mut a, &[(Vnet::default(), tcp_packet(false, 1, 0x10, b"x", 0))], 5);
    assert_eq!(out.drops, [(DropReason::NoEndpoint, 1)]);
    assert_eq!(&out.frames[0][VNET_LEN + 20..VNET_LEN + 22], &[3, 1]);

    // Multicast, which every interface is sent, is ignored without a word.
    let mut multicast = udp_packet(true, b"mdns");
    multicast[24..40].copy_from_slice(&"ff02::fb".parse::<std::net::Ipv6Addr>().unwrap().octets());
    let out = transmit(&mut a, &[(Vnet::default(), multicast)], 5);
    assert!(out.drops.is_empty() && out.frames.is_empty() && out.sent.is_empty());
}

#[test]
fn the_path_mtu_is_told_kept_and_clamped() {
    for v6 in [false, true] {
        let (mut a, mut b) = pair(Suite::Aes256Gcm);
        a.peer.path_mtu.store(1200, Ordering::Relaxed);
        // Too big, don't fragment: answered. IPv6 below 1280: fragments.
        let packet = tcp_packet(v6, 1, 0x10, &payload(1180), 0);
        let out = transmit(&mut a, &[(Vnet::default(), packet.clone())], 5);
        if v6 {
            assert_eq!((out.drops.len(), out.fragmentable.len()), (0, 1));
            let sent =
                [(A.parse().unwrap(), out.fragmentable[0].clone(), out.fragmentable[0].len(), 0)];
            let mut io = Memory::default();
            receive(&mut b, &mut io, &sent, A);
            assert_eq!(io.packets(), [packet]);
        } else {
            assert_eq!(out.drops, [(DropReason::TooBig, 1)]);
            assert_eq!(&out.frames[0][VNET_LEN + 26..VNET_LEN + 28], &1200u16.to_be_bytes());
            // From the far end: our own kernel drops what claims to be its own.
            assert_eq!(&out.frames[0][VNET_LEN + 12..VNET_LEN + 16], &packet[16..20]);
            let mut may_fragment = packet;
            may_fragment[6] = 0;
            assert_eq!(
                transmit(&mut a, &[(Vnet::default(), may_fragment)], 5).fragmentable.len(),
                1
            );
        }
        let big = tcp_packet(v6, 1, 0x10, &payload(1400), 0);
        let out = transmit(&mut a, &[(Vnet::default(), big)], 5);
        assert_eq!(out.drops, [(DropReason::TooBig, 1)]);
        // A SYN leaves with what fits.
        let syn = tcp_with_options(v6, 1, 2, &[2, 4, 0x05, 0xb4], b"", 0);
        let out = transmit(&mut a, &[(Vnet::default(), syn)], 5);
        let mut io = Memory::default();
        receive(&mut b, &mut io, &out.sent, A);
        let packet = &io.packets()[0];
        let ip = Ip::parse(packet).unwrap();
        let at = ip.transport + 22;
        let mss = usize::from(u16::from_be_bytes([packet[at], packet[at + 1]]));
        assert_eq!(mss, 1200 - ip.transport - 20);
    }
}

#[test]
fn packets_for_another_peer_are_forwarded() {
    for suite in [Suite::Aes256Gcm, Suite::ChaCha20Poly1305] {
        for v6 in [false, true] {
            // A -> B -> C, where C has the addresses B has in other tests.
            let (mut a, mut c) = pair(suite);
            let mut b = node((suite, true), (2, 1), A, &["10.0.0.9"], &A_OWNS);
            let to_c = Arc::new(PeerLink::new(LinkPublicKey([5; 32]), suite, true));
            to_c.endpoint.store(Some(Arc::new("192.0.2.3:7000".parse().unwrap())));
            // C expects the key A would use; B uses it in A's place.
            to_c.send.store(Some(Arc::new(SendSession::new(suite, 9, &[1; 32], 1, true))));
            let nets = A_OWNS
                .iter()
                .map(|net| (net.parse().unwrap(), b.peer.clone()))
                .chain(B_OWNS.iter().map(|net| (net.parse().unwrap(), to_c.clone())));
            b.tables.routes.store(Arc::new(Routes::new(vec!["10.0.0.9".parse().unwrap()], nets)));

            let mut packet = tcp_packet(v6, 1, 0x18, &payload(20_000), 2);
            let vnet = super_packet(&mut packet, 1340);
            let out = transmit(&mut a, &[(vnet, packet.clone())], 5);
            let mut relayed = Memory::default();
            receive(&mut b, &mut relayed, &out.sent, A);
            assert_eq!((relayed.frames.len(), relayed.drops.len()), (0, 0));
            assert_eq!(relayed.sent.len(), 1, "a batch in, a batch out");
            let mut io = Memory::default();
            receive(&mut c, &mut io, &relayed.sent, A);
            let mut expected = cut(&vnet, &packet, Checksums::Complete);
            for packet in &mut expected {
                let ip = Ip::parse(packet).unwrap();
                assert!(crate::packet::rewrite::decrement_hop_limit(&ip, packet));
            }
            assert_eq!(io.packets(), expected);

            // The last hop is answered, towards A.
            let mut dying = tcp_packet(v6, 1, 0x10, b"x", 0);
            dying[if v6 { 7 } else { 8 }] = 1;
            let out = transmit(&mut a, &[(Vnet::default(), dying)], 5);
            let mut relayed = Memory::default();
            receive(&mut b, &mut relayed, &out.sent, A);
            assert_eq!(relayed.drops, [(DropReason::HopLimit, 1)]);
            assert_eq!(relayed.sent[0].0, A.parse().unwrap());
        }
    }
}

#[test]
fn the_first_byte_sorts_datagrams() {
    let (_, mut b) = pair(Suite::Aes256Gcm);
    let mut io = Memory::default();
    let sent: Vec<_> = [
        vec![0x40; 50],
        vec![0xc3; 1200],
        vec![1; 148],
        vec![0x20; 60],
        vec![4; 10],
        vec![0x14; 40],
    ]
    .into_iter()
    .map(|data| (A.parse().unwrap(), data.clone(), data.len(), 3))
    .collect();
    receive(&mut b, &mut io, &sent, A);
    let quic: Vec<_> = io
        .events
        .iter()
        .map(|event| match event {
            ToEngine::Quic { ecn, data, .. } => (*ecn, data.len()),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(quic, [(3, 50), (3, 1200)]);
    let reasons: Vec<_> = io.drops.iter().map(|drop| drop.0).collect();
    let expected =
        [DropReason::BadMac, DropReason::UnknownType, DropReason::Malformed, DropReason::Malformed];
    assert_eq!(reasons, expected);
}

#[test]
fn keepalives_and_link_frames_stay_off_the_tun() {
    let (a, mut b) = pair(Suite::Aes256Gcm);
    let session = a.peer.send.load_full().unwrap();
    let seal = |text: &[u8]| {
        let mut message = vec![0; text.len() + OVERHEAD];
        session.seal_from(text, &mut message, 0, session.reserve(1).unwrap());
        let len = message.len();
        (A.parse().unwrap(), message, len, 0)
    };
    let mut io = Memory::default();
    receive(&mut b, &mut io, &[seal(b""), seal(&[1, 0, 0, 0, 7]), seal(&[0x20; 40])], A);
    assert!(io.frames.is_empty());
    assert!(matches!(&io.events[..],
        [ToEngine::Confirmed { .. }, ToEngine::LinkFrame { data, .. }] if data == &[1, 0, 0, 0, 7]));
    assert_eq!(io.drops, [(DropReason::Malformed, 1)]);
    assert_eq!(b.peer.last_rx_ms.load(Ordering::Relaxed), 5);
    assert_eq!(b.peer.last_data_rx_ms.load(Ordering::Relaxed), 0);
}

#[test]
fn congestion_marks_reach_the_inner_packet() {
    let (mut a, mut b) = pair(Suite::Aes256Gcm);
    let mut packet = tcp_packet(false, 1, 0x18, &payload(3000), 2);
    let vnet = super_packet(&mut packet, 1000);
    let mut out = transmit(&mut a, &[(vnet, packet)], 5);
    assert_eq!(out.sent[0].3, 2);
    out.sent[0].3 = 3;
    let mut io = Memory::default();
    receive(&mut b, &mut io, &out.sent, A);
    assert!(io.packets().iter().all(|packet| packet[1] == 3));
    assert_eq!(Vnet::parse(io.frames[0].first_chunk().unwrap()).unwrap().gso, Gso::TcpV4);
}

proptest! {
    #[test]
    fn arbitrary_datagrams_never_panic(
        datagrams in proptest::collection::vec(
            (any::<u8>(), proptest::collection::vec(any::<u8>(), 0..120), any::<bool>()), 1..20),
        segment in 1..200usize,
    ) {
        let (_, mut b) = pair(Suite::Aes256Gcm);
        let mut data = Vec::new();
        for (kind, body, known) in datagrams {
            let mut one = body;
            if let Some(first) = one.first_mut() {
                *first = [1, 2, 3, 4, 0x11, 0x14, 0x40, kind][usize::from(kind) % 8];
            }
            if known && one.len() >= 8 {
                one[1..4].fill(0);
                one[4..8].copy_from_slice(&9u32.to_le_bytes());
            }
            data.extend(one);
        }
        let mut io = Memory::default();
        b.rx.train(&mut io, &b.tables, &mac_key(), A.parse().unwrap(), 0, &data, segment, 5);
        b.rx.finish(&mut io);
        prop_assert!(io.frames.is_empty());
    }

    /// What an authenticated but hostile peer puts inside.
    #[test]
    fn arbitrary_payloads_never_panic(
        texts in proptest::collection::vec((proptest::collection::vec(any::<u8>(), 0..120), 0..4u8, any::<bool>()), 1..20),
    ) {
        let (a, mut b) = pair(Suite::Aes256Gcm);
        let session = a.peer.send.load_full().unwrap();
        let mut io = Memory::default();
        for (mut text, shape, partial) in texts {
            let len = text.len() as u16;
            if shape == 1 && text.len() >= 40 {
                text[0] = 0x45;
                text[2..4].copy_from_slice(&len.to_be_bytes());
                text[6..8].fill(0);
                text[9] = 6;
                text[12..20].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
            } else if shape == 2 && text.len() >= 48 {
                text[0] = 0x60;
                text[4..6].copy_from_slice(&(len - 40).to_be_bytes());
                text[8..24].fill(0xfd);
                text[24..40].fill(0xfc);
            }
            let mut message = vec![0; text.len() + OVERHEAD];
            session.seal_from(&text, &mut message, u8::from(partial), session.reserve(1).unwrap());
            let len = message.len();
            b.rx.train(&mut io, &b.tables, &mac_key(), A.parse().unwrap(), 3, &message, len, 5);
        }
        b.rx.finish(&mut io);
    }
}
