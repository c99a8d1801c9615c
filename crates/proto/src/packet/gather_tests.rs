use super::super::segment::Checksums;
use super::super::segment::tests::{cut, super_packet, tcp_packet, tcp_with_options, udp_packet};
use super::*;
use proptest::prelude::*;

/// Feeds packets (with 5 bytes of padding each) and returns the frames.
fn feed(limits: Limits, packets: &[(Vec<u8>, bool)]) -> Vec<(Vnet, Vec<u8>)> {
    let mut gather = Gather::new(limits);
    let mut frames = Vec::new();
    let mut write = |frame: &[u8]| {
        let vnet = Vnet::parse(frame.first_chunk().unwrap()).unwrap();
        frames.push((vnet, frame[VNET_LEN..].to_vec()));
    };
    for (packet, partial) in packets {
        let slot = gather.slot(packet.len() + 5).unwrap();
        slot[..packet.len()].copy_from_slice(packet);
        slot[packet.len()..].fill(0xee);
        let Some(ip) = Ip::parse(gather.packet_mut(packet.len() + 5)) else {
            gather.cancel();
            continue;
        };
        gather.accept(&ip, *partial, &mut write);
    }
    gather.finish(&mut write);
    frames
}

fn payload(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 11 % 253) as u8).collect()
}

#[test]
fn cutting_and_joining_gives_the_same_packet() {
    for v6 in [false, true] {
        for checksums in [Checksums::Complete, Checksums::Partial] {
            let partial = checksums == Checksums::Partial;
            for mut packet in
                [tcp_packet(v6, 9, 0x18, &payload(60_000), 2), udp_packet(v6, &payload(60_000))]
            {
                let vnet = super_packet(&mut packet, 1400);
                let packets: Vec<_> =
                    cut(&vnet, &packet, checksums).into_iter().map(|p| (p, partial)).collect();
                let frames = feed(Limits::ALL, &packets);
                assert_eq!(frames.len(), 1, "v6 {v6} {checksums:?}");
                assert_eq!(frames[0].1, packet);
                assert_eq!(Vnet { hdr_len: 0, ..frames[0].0 }, vnet);
            }
        }
    }
}

#[test]
fn anything_unusual_ends_the_frame_and_nothing_is_lost() {
    let a = tcp_packet(false, 0, 0x10, &[1; 100], 0);
    let variants: Vec<(&str, Vec<u8>)> = vec![
        ("gap", tcp_packet(false, 101, 0x10, &[2; 100], 0)),
        ("fin", tcp_packet(false, 100, 0x11, &[2; 100], 0)),
        ("ece", tcp_packet(false, 100, 0x50, &[2; 100], 0)),
        ("tos", tcp_packet(false, 100, 0x10, &[2; 100], 1)),
        ("longer", tcp_packet(false, 100, 0x10, &[2; 101], 0)),
        ("no payload", tcp_packet(false, 100, 0x10, &[], 0)),
        (
            "options",
            tcp_with_options(
                false,
                100,
                0x10,
                &[1, 1, 8, 10, 0, 0, 0, 3, 0, 0, 0, 2],
                &[2; 100],
                0,
            ),
        ),
        ("fewer options", tcp_with_options(false, 100, 0x10, &[1; 4], &[2; 100], 0)),
        ("version", tcp_packet(true, 100, 0x10, &[2; 100], 0)),
        ("udp", udp_packet(false, &[2; 100])),
        ("tiny", udp_packet(false, &[])),
        ("bad checksum", {
            let mut p = tcp_packet(false, 100, 0x10, &[2; 100], 0);
            *p.last_mut().unwrap() ^= 1;
            p
        }),
        ("bad header checksum", {
            let mut p = tcp_packet(false, 100, 0x10, &[2; 100], 0);
            p[10] ^= 1;
            p
        }),
        ("ttl", {
            let mut p = tcp_packet(false, 100, 0x10, &[2; 100], 0);
            p[8] -= 1;
            checksum::write_ipv4_header(&mut p, 20);
            p
        }),
    ];
    for (name, b) in variants {
        let frames = feed(Limits::ALL, &[(a.clone(), false), (b.clone(), false)]);
        let got: Vec<_> = frames.iter().map(|(vnet, frame)| (*vnet, frame.clone())).collect();
        assert_eq!(got, vec![(Vnet::default(), a.clone()), (Vnet::default(), b)], "{name}");
    }
}

#[test]
fn a_broken_first_packet_takes_nobody_with_it() {
    let mut a = tcp_packet(false, 0, 0x10, &[1; 100], 0);
    *a.last_mut().unwrap() ^= 1;
    let b = tcp_packet(false, 100, 0x10, &[2; 100], 0);
    let frames = feed(Limits::ALL, &[(a.clone(), false), (b.clone(), false)]);
    assert_eq!(frames, vec![(Vnet::default(), a), (Vnet::default(), b)]);
}

#[test]
fn finished_and_unfinished_checksums_are_not_mixed() {
    let a = tcp_packet(false, 0, 0x10, &[1; 100], 0);
    let mut b = tcp_packet(false, 100, 0x10, &[2; 100], 0);
    super_packet(&mut b, 100);
    let frames = feed(Limits::ALL, &[(a.clone(), false), (b.clone(), true)]);
    assert_eq!(frames.len(), 2);
    assert_eq!(frames[1].1, b);
    assert!(frames[1].0.needs_csum && frames[1].0.gso == Gso::None);
}

#[test]
fn a_shorter_segment_is_the_last_and_a_push_is_kept() {
    let segment = |sequence, flags, len| {
        (tcp_packet(true, sequence, flags, &vec![sequence as u8; len], 0), false)
    };
    let frames =
        feed(Limits::ALL, &[segment(0, 0x10, 100), segment(100, 0x10, 50), segment(150, 0x10, 50)]);
    assert_eq!(frames.iter().map(|f| f.1.len()).collect::<Vec<_>>(), [72 + 150, 72 + 50]);
    for pushed in 0..3 {
        let flags = |i| if i == pushed { 0x18 } else { 0x10 };
        let packets: Vec<_> = (0..3).map(|i| segment(i * 100, flags(i), 100)).collect();
        let frames = feed(Limits::ALL, &packets);
        assert_eq!(frames.len(), 1);
        assert_eq!(frames[0].1[40 + 13], 0x18);
    }
}

#[test]
fn without_offloads_packets_come_out_complete() {
    for v6 in [false, true] {
        let whole = tcp_packet(v6, 0, 0x10, &[1; 100], 0);
        let mut partial = whole.clone();
        super_packet(&mut partial, 100);
        let frames = feed(Limits::NONE, &[(partial, true), (whole.clone(), false)]);
        assert_eq!(frames, vec![(Vnet::default(), whole.clone()), (Vnet::default(), whole)]);
    }
}

#[test]
fn a_cancelled_slot_leaves_the_frame_intact() {
    let mut gather = Gather::new(Limits::ALL);
    let mut frames = Vec::new();
    for i in 0..3u32 {
        let packet = tcp_packet(false, i * 100, 0x10, &[i as u8; 100], 0);
        gather.slot(packet.len()).unwrap().copy_from_slice(&packet);
        let ip = Ip::parse(gather.packet_mut(packet.len())).unwrap();
        gather.accept(&ip, false, &mut |frame| frames.push(frame.to_vec()));
        gather.slot(1000).unwrap().fill(0xff);
        gather.cancel();
    }
    assert!(gather.slot(MAX_SLOT + 1).is_none());
    gather.finish(&mut |frame| frames.push(frame.to_vec()));
    assert_eq!(frames.len(), 1);
    let payload: Vec<u8> = (0..3u8).flat_map(|i| [i; 100]).collect();
    assert_eq!(&frames[0][VNET_LEN + 52..], &payload);
}

#[derive(Debug, Clone)]
enum Op {
    Tcp { v6: bool, advance: bool, len: usize, flags: u8, partial: bool },
    Udp { v6: bool, len: usize, partial: bool },
    Noise(Vec<u8>),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        8 => (any::<bool>(), proptest::bool::weighted(0.9), 0..3usize, 0..4usize, any::<bool>()).prop_map(
            |(v6, advance, len, flags, partial)| Op::Tcp {
                v6, advance, partial, len: [0, 40, 100][len], flags: [0x10, 0x10, 0x18, 0x11][flags],
            }),
        4 => (any::<bool>(), 0..3usize, any::<bool>())
            .prop_map(|(v6, len, partial)| Op::Udp { v6, partial, len: [0, 40, 100][len] }),
        1 => proptest::collection::vec(any::<u8>(), 20..90).prop_map(Op::Noise),
    ]
}

proptest! {
    /// Whatever is fed, cutting the frames again gives exactly the packets fed.
    #[test]
    fn joining_is_the_inverse_of_cutting(ops in proptest::collection::vec(op(), 1..60), fixed in 0..3u8) {
        let mut sequence = 0u32;
        let mut packets = Vec::new();
        let mut expected = Vec::new();
        for (i, op) in ops.into_iter().enumerate() {
            let body = |len| vec![i as u8; len];
            let (whole, partial) = match op {
                Op::Tcp { v6, advance, len, flags, partial } => {
                    let v6 = if fixed == 0 { v6 } else { fixed == 1 };
                    let packet = tcp_packet(v6, sequence, flags, &body(len), 0);
                    if advance {
                        sequence += len as u32;
                    }
                    (packet, partial && fixed != 0)
                }
                Op::Udp { v6, len, partial } => (udp_packet(v6, &body(len)), partial),
                Op::Noise(bytes) => (bytes, false),
            };
            if Ip::parse(&whole).is_none() {
                continue;
            }
            let mut sent = whole.clone();
            if partial {
                super_packet(&mut sent, 1);
            }
            packets.push((sent, partial));
            expected.push(whole);
        }
        let mut got = Vec::new();
        for (vnet, frame) in feed(Limits::ALL, &packets) {
            got.extend(cut(&vnet, &frame, Checksums::Complete));
        }
        // The identification counts up in a cut super-packet; it carries no
        // meaning with DF set, and these packets all have the same.
        for packet in got.iter_mut().chain(&mut expected) {
            let ip = Ip::parse(packet).unwrap();
            if packet[0] == 0x45 && packet.len() >= 28 && packet[6] == 0x40 {
                packet[4..6].fill(0);
                checksum::write_ipv4_header(packet, 20);
            }
            // A push may move to the end of its frame.
            if ip.tcp_or_udp(packet).is_some_and(|t| t.protocol() == PROTO_TCP) {
                packet[ip.transport + 13] &= !0x08;
                packet[ip.transport + 16..ip.transport + 18].fill(0);
            }
            packet.truncate(ip.total_len);
        }
        prop_assert_eq!(got, expected);
    }
}
