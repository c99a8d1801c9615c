use super::super::checksum::tests::reference;
use super::super::checksum::transport_is_valid;
use super::*;
use proptest::prelude::*;

/// A TCP packet with complete checksums.
pub(crate) fn tcp_packet(v6: bool, sequence: u32, flags: u8, payload: &[u8], tos: u8) -> Vec<u8> {
    tcp_with_options(v6, sequence, flags, &[1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2], payload, tos)
}

/// The same with given options (a multiple of 4 bytes).
pub(crate) fn tcp_with_options(
    v6: bool,
    sequence: u32,
    flags: u8,
    options: &[u8],
    payload: &[u8],
    tos: u8,
) -> Vec<u8> {
    let mut tcp = vec![0x30, 0x39, 0x00, 0x50];
    tcp.extend(sequence.to_be_bytes());
    tcp.extend(77u32.to_be_bytes());
    tcp.extend([((20 + options.len()) / 4 * 16) as u8, flags, 0x10, 0x00, 0, 0, 0, 0]);
    tcp.extend(options);
    tcp.extend(payload);
    ip_packet(v6, super::super::ip::PROTO_TCP, 16, tcp, tos)
}

/// A UDP packet with a complete checksum.
pub(crate) fn udp_packet(v6: bool, payload: &[u8]) -> Vec<u8> {
    let mut udp = vec![0x30, 0x39, 0x00, 0x50];
    udp.extend(((8 + payload.len()) as u16).to_be_bytes());
    udp.extend([0, 0]);
    udp.extend(payload);
    ip_packet(v6, super::super::ip::PROTO_UDP, 6, udp, 0)
}

fn ip_packet(v6: bool, protocol: u8, field: usize, mut transport: Vec<u8>, tos: u8) -> Vec<u8> {
    let (from, to) =
        if v6 { (vec![0xfd; 16], vec![0xfc; 16]) } else { (vec![10, 0, 0, 1], vec![10, 0, 0, 2]) };
    let len = transport.len() as u16;
    let mut pseudo =
        [from.clone(), to.clone(), vec![0, protocol], len.to_be_bytes().to_vec()].concat();
    pseudo.extend(&transport);
    let sum = reference(&pseudo);
    transport[field..field + 2].copy_from_slice(&if sum == 0 { 0xffff } else { sum }.to_be_bytes());
    let mut packet = if v6 {
        let mut head = vec![0x60 | tos >> 4, tos << 4, 0x12, 0x34];
        head.extend(len.to_be_bytes());
        head.extend([protocol, 64]);
        head
    } else {
        let mut head = vec![0x45, tos];
        head.extend((20 + len).to_be_bytes());
        head.extend([0x12, 0x34, 0x40, 0, 64, protocol, 0, 0]);
        head
    };
    packet.extend(from);
    packet.extend(to);
    if !v6 {
        let sum = reference(&packet).to_be_bytes();
        packet[10..12].copy_from_slice(&sum);
    }
    packet.extend(transport);
    packet
}

/// Turns a complete packet into the super-packet a kernel would hand over.
pub(crate) fn super_packet(packet: &mut [u8], size: u16) -> Vnet {
    let ip = Ip::parse(packet).unwrap();
    let transport = ip.tcp_or_udp(packet).unwrap();
    let field = ip.transport + transport.checksum_offset();
    let sum = Sum::default()
        .pseudo(ip.addresses(packet), ip.protocol, ip.total_len - ip.transport)
        .partial();
    packet[field..field + 2].copy_from_slice(&sum);
    Vnet {
        needs_csum: true,
        gso: match (transport, ip.v6) {
            (Transport::Udp, _) => Gso::Udp,
            (_, false) => Gso::TcpV4,
            (_, true) => Gso::TcpV6,
        },
        hdr_len: 0,
        gso_size: size,
        csum_start: ip.transport as u16,
        csum_offset: transport.checksum_offset() as u16,
    }
}

pub(crate) fn cut(vnet: &Vnet, packet: &[u8], checksums: Checksums) -> Vec<Vec<u8>> {
    let mut packet = packet.to_vec();
    let plan = Segments::plan(vnet, &packet, checksums).unwrap();
    (0..plan.count())
        .map(|i| {
            let range = plan.build(i, &mut packet);
            assert_eq!(range.len(), plan.len_of(i));
            packet[range].to_vec()
        })
        .collect()
}

fn payload(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 7 % 251) as u8).collect()
}

#[test]
fn tcp_segments_are_what_a_sender_without_offload_would_send() {
    for v6 in [false, true] {
        let data = payload(3500);
        let mut packet = tcp_packet(v6, 0xffff_ff00, 0x80 | 0x10 | 0x08 | 0x01, &data, 0);
        let vnet = super_packet(&mut packet, 1000);
        let segments = cut(&vnet, &packet, Checksums::Complete);
        assert_eq!(segments.len(), 4);
        for (i, segment) in segments.iter().enumerate() {
            // CWR on the first, PSH and FIN on the last only.
            let flags = match i {
                0 => 0x90,
                3 => 0x19,
                _ => 0x10,
            };
            let sequence = 0xffff_ff00u32.wrapping_add(i as u32 * 1000);
            let mut expected =
                tcp_packet(v6, sequence, flags, &data[i * 1000..(i * 1000 + 1000).min(3500)], 0);
            if !v6 {
                let id = 0x1234 + i as u16;
                expected[4..6].copy_from_slice(&id.to_be_bytes());
                checksum::write_ipv4_header(&mut expected, 20);
            }
            assert_eq!(segment, &expected, "v6 {v6}, segment {i}");
        }
    }
}

#[test]
fn unfinished_checksums_can_be_finished_later() {
    for v6 in [false, true] {
        for mut packet in
            [tcp_packet(v6, 5, 0x10, &payload(2500), 0), udp_packet(v6, &payload(2500))]
        {
            let vnet = super_packet(&mut packet, 1200);
            let complete = cut(&vnet, &packet, Checksums::Complete);
            let partial = cut(&vnet, &packet, Checksums::Partial);
            assert_eq!(complete.len(), 3);
            for (mut partial, complete) in partial.into_iter().zip(complete) {
                let ip = Ip::parse(&partial).unwrap();
                assert!(transport_is_valid(&ip, &complete));
                let offset = ip.tcp_or_udp(&partial).unwrap().checksum_offset();
                checksum::complete(&mut partial, ip.transport, offset);
                assert_eq!(partial, complete);
            }
        }
    }
}

#[test]
fn a_single_packet_gets_its_checksum_finished() {
    let whole = tcp_packet(false, 5, 0x10, b"hello", 0);
    let mut packet = whole.clone();
    let vnet = Vnet { gso: Gso::None, ..super_packet(&mut packet, 100) };
    assert_ne!(packet, whole);
    assert_eq!(cut(&vnet, &packet, Checksums::Complete), vec![whole]);
    let plan = Segments::plan(&vnet, &packet, Checksums::Partial).unwrap();
    assert!(plan.partial());
    // A checksum the receiver would not find is always finished.
    let odd = Vnet { csum_offset: 14, ..vnet };
    assert!(!Segments::plan(&odd, &packet, Checksums::Partial).unwrap().partial());
}

#[test]
fn what_the_header_claims_must_be_true() {
    let mut packet = tcp_packet(false, 5, 0x10, &payload(3000), 0);
    let vnet = super_packet(&mut packet, 1000);
    for bad in [
        Vnet { gso: Gso::TcpV6, ..vnet },
        Vnet { gso: Gso::Udp, ..vnet },
        Vnet { gso_size: 0, ..vnet },
        Vnet { csum_start: 3050, ..vnet },
    ] {
        assert!(Segments::plan(&bad, &packet, Checksums::Partial).is_err(), "{bad:?}");
    }
    assert!(Segments::plan(&vnet, &packet[..3000], Checksums::Partial).is_err());
}

proptest! {
    #[test]
    fn arbitrary_frames_never_panic(
        header in any::<[u8; 10]>(),
        body in proptest::collection::vec(any::<u8>(), 0..300),
        start in 0..4usize,
        small: bool,
    ) {
        let mut body = body;
        if let (Some(first), true) = (body.first_mut(), start > 0) {
            *first = [0x45, 0x60, 0x46][start - 1];
        }
        let len = body.len() as u16;
        if small && body.len() > 20 {
            if start == 2 {
                body[4..6].copy_from_slice(&(len.saturating_sub(40)).to_be_bytes());
                body[6] = 6;
            } else {
                body[2..4].copy_from_slice(&len.to_be_bytes());
                body[6..8].fill(0);
                body[9] = 17;
            }
        }
        let mut header = header;
        header[1] = [0, 1, 4, 5][usize::from(header[1]) % 4];
        if let Some(vnet) = Vnet::parse(&header) {
            for checksums in [Checksums::Complete, Checksums::Partial] {
                let mut copy = body.clone();
                if let Ok(plan) = Segments::plan(&vnet, &copy, checksums) {
                    for i in 0..plan.count() {
                        let range = plan.build(i, &mut copy);
                        prop_assert!(range.end <= copy.len());
                    }
                }
            }
        }
    }
}
