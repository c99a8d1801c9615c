//! Frames of a TUN interface with a `virtio_net_hdr`: where they go, how long
//! their packets are on the wire, and cutting super-packets into these.
//!
//! The emulator moves a super-packet (TCP or UDP segmentation offload) whole
//! where nothing happens to single packets; where it does, [`split`] turns it
//! into the packets a network card would send. Frames come from the kernel,
//! but sizes in them are checked all the same.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use warren_os::tun::VNET_HEADER_LEN;

/// `VIRTIO_NET_HDR_GSO_*` of linux/virtio_net.h.
const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_UDP_L4: u8 = 5;
/// The TCP segment carries ECN's congestion mark; changes nothing here but
/// the treatment of CWR.
const GSO_ECN: u8 = 0x80;

const TCP_FIN: u8 = 0x01;
const TCP_PSH: u8 = 0x08;
const TCP_CWR: u8 = 0x80;

/// What the emulator wants to know of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Facts {
    /// Where it goes.
    pub(super) destination: IpAddr,
    /// Bytes of the IP packet, all segments glued together.
    pub(super) length: usize,
    /// How to cut it, if it is a super-packet.
    pub(super) split: Option<Split>,
}

/// How to cut a super-packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Split {
    transport: usize,
    headers: usize,
    segment: usize,
    tcp: bool,
}

impl Facts {
    /// Reads a frame; `None` when it is no IP packet or its sizes make no sense.
    #[must_use]
    pub(super) fn read(frame: &[u8]) -> Option<Self> {
        let (header, packet) = frame.split_at_checked(VNET_HEADER_LEN)?;
        let destination: IpAddr = match packet.first()? >> 4 {
            4 => Ipv4Addr::from(<[u8; 4]>::try_from(packet.get(16..20)?).ok()?).into(),
            6 => Ipv6Addr::from(<[u8; 16]>::try_from(packet.get(24..40)?).ok()?).into(),
            _ => return None,
        };
        let kind = header[1] & !GSO_ECN;
        let split = if kind == GSO_NONE {
            None
        } else {
            let segment = usize::from(u16::from_ne_bytes([header[4], header[5]]));
            let transport = usize::from(u16::from_ne_bytes([header[6], header[7]]));
            let headers = match kind {
                GSO_UDP_L4 => transport + 8,
                GSO_TCPV4 | GSO_TCPV6 => {
                    let offset = usize::from(*packet.get(transport + 12)? >> 4) * 4;
                    if offset < 20 {
                        return None;
                    }
                    transport + offset
                }
                _ => return None,
            };
            if transport < 20 || segment == 0 || headers >= packet.len() {
                return None;
            }
            Some(Split { transport, headers, segment, tcp: kind != GSO_UDP_L4 })
        };
        Some(Self { destination, length: packet.len(), split })
    }
}

/// Cuts a super-packet and gives each packet, as a frame with its checksums
/// done, to `sink`.
pub(super) fn split(frame: &[u8], how: Split, mut sink: impl FnMut(Vec<u8>)) {
    let packet = &frame[VNET_HEADER_LEN..];
    let (headers, payload) = packet.split_at(how.headers);
    let count = payload.len().div_ceil(how.segment);
    for (i, part) in payload.chunks(how.segment).enumerate() {
        let mut out = vec![0; VNET_HEADER_LEN + headers.len() + part.len()];
        let segment = &mut out[VNET_HEADER_LEN..];
        segment[..headers.len()].copy_from_slice(headers);
        segment[headers.len()..].copy_from_slice(part);
        let transport_length = segment.len() - how.transport;
        if segment[0] >> 4 == 4 {
            let length = u16::try_from(segment.len()).unwrap_or(u16::MAX);
            segment[2..4].copy_from_slice(&length.to_be_bytes());
            let id = u16::from_be_bytes([segment[4], segment[5]]).wrapping_add(i as u16);
            segment[4..6].copy_from_slice(&id.to_be_bytes());
            segment[10..12].fill(0);
            let checksum = !fold(sum(&segment[..how.transport.min(60)]));
            segment[10..12].copy_from_slice(&checksum.to_be_bytes());
        } else {
            let length = u16::try_from(segment.len() - 40).unwrap_or(u16::MAX);
            segment[4..6].copy_from_slice(&length.to_be_bytes());
        }
        let pseudo = pseudo_header_sum(segment, how.tcp, transport_length);
        let transport = &mut segment[how.transport..];
        let field = if how.tcp {
            let sequence =
                u32::from_be_bytes([transport[4], transport[5], transport[6], transport[7]]);
            let sequence = sequence.wrapping_add((i * how.segment) as u32);
            transport[4..8].copy_from_slice(&sequence.to_be_bytes());
            if i + 1 < count {
                transport[13] &= !(TCP_FIN | TCP_PSH);
            }
            if i > 0 {
                transport[13] &= !TCP_CWR;
            }
            16
        } else {
            let length = u16::try_from(transport_length).unwrap_or(u16::MAX);
            transport[4..6].copy_from_slice(&length.to_be_bytes());
            6
        };
        transport[field..field + 2].fill(0);
        let checksum = match !fold(pseudo + sum(transport)) {
            // A UDP checksum of 0 means none (RFC 768).
            0 if !how.tcp => 0xffff,
            checksum => checksum,
        };
        transport[field..field + 2].copy_from_slice(&checksum.to_be_bytes());
        sink(out);
    }
}

/// Fragments an IPv4 packet that allows it to at most `mtu` bytes each, as a
/// router does (RFC 791); `None` when it does not allow it, or is IPv6, which
/// routers never fragment.
pub(super) fn fragment(frame: &[u8], mtu: usize) -> Option<Vec<Vec<u8>>> {
    const DONT_FRAGMENT: u16 = 0x4000;
    const MORE_FRAGMENTS: u16 = 0x2000;
    let whole = with_checksum(frame)?;
    let packet = whole.get(VNET_HEADER_LEN..)?;
    let header = usize::from(packet.first()? & 0x0f) * 4;
    if packet[0] >> 4 != 4 || packet.len() < 20.max(header) {
        return None;
    }
    let place = u16::from_be_bytes([packet[6], packet[7]]);
    let step = mtu.checked_sub(header)? & !7;
    if place & DONT_FRAGMENT != 0 || step == 0 {
        return None;
    }
    let (head, payload) = packet.split_at(header);
    let count = payload.len().div_ceil(step);
    let fragments = payload.chunks(step).enumerate().map(|(i, part)| {
        let mut out = vec![0; VNET_HEADER_LEN];
        out.extend_from_slice(head);
        out.extend_from_slice(part);
        let fragment = &mut out[VNET_HEADER_LEN..];
        let length = u16::try_from(fragment.len()).unwrap_or(u16::MAX);
        fragment[2..4].copy_from_slice(&length.to_be_bytes());
        let more = if i + 1 < count { MORE_FRAGMENTS } else { place & MORE_FRAGMENTS };
        let offset = (place & 0x1fff).wrapping_add((i * step / 8) as u16) & 0x1fff;
        fragment[6..8].copy_from_slice(&(offset | more).to_be_bytes());
        fragment[10..12].fill(0);
        let checksum = !fold(sum(&fragment[..header]));
        fragment[10..12].copy_from_slice(&checksum.to_be_bytes());
        out
    });
    Some(fragments.collect())
}

/// The frame with its transport checksum done, if it was left to hardware.
fn with_checksum(frame: &[u8]) -> Option<Vec<u8>> {
    const NEEDS_CHECKSUM: u8 = 1;
    let mut out = frame.to_vec();
    let (header, packet) = out.split_at_mut_checked(VNET_HEADER_LEN)?;
    if header[0] & NEEDS_CHECKSUM == 0 {
        return Some(out);
    }
    let start = usize::from(u16::from_ne_bytes([header[6], header[7]]));
    let field = start + usize::from(u16::from_ne_bytes([header[8], header[9]]));
    header.fill(0);
    // The field holds the sum of the pseudo header already.
    let checksum = match !fold(sum(packet.get(start..)?)) {
        0 => 0xffff,
        checksum => checksum,
    };
    packet.get_mut(field..field + 2)?.copy_from_slice(&checksum.to_be_bytes());
    Some(out)
}

/// RFC 1071: the sum of big-endian words, not folded yet.
pub(super) fn sum(bytes: &[u8]) -> u64 {
    let mut words = bytes.chunks_exact(4);
    let total: u64 = words
        .by_ref()
        .map(|word| u64::from(u32::from_be_bytes([word[0], word[1], word[2], word[3]])))
        .sum();
    let mut last = [0; 4];
    last[..words.remainder().len()].copy_from_slice(words.remainder());
    total + u64::from(u32::from_be_bytes(last))
}

pub(super) fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

fn pseudo_header_sum(packet: &[u8], tcp: bool, length: usize) -> u64 {
    let addresses = if packet[0] >> 4 == 4 { &packet[12..20] } else { &packet[8..40] };
    sum(addresses) + if tcp { 6 } else { 17 } + length as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A super-packet as the kernel hands it over.
    fn frame(v6: bool, kind: u8, segment: u16, payload: usize) -> Vec<u8> {
        let tcp = kind != GSO_UDP_L4;
        let transport = if v6 { 40 } else { 20 };
        let transport_header = if tcp { 32 } else { 8 };
        let mut out = vec![0; VNET_HEADER_LEN];
        out[0] = 1;
        out[1] = kind;
        out[4..6].copy_from_slice(&segment.to_ne_bytes());
        out[6..8].copy_from_slice(&(transport as u16).to_ne_bytes());
        out[8..10].copy_from_slice(&(if tcp { 16u16 } else { 6 }).to_ne_bytes());
        let mut packet = vec![0; transport + transport_header + payload];
        packet[0] = if v6 { 0x60 } else { 0x45 };
        if v6 {
            packet[24..40].copy_from_slice(&"2001:db8::2".parse::<Ipv6Addr>().unwrap().octets());
        } else {
            packet[4..6].copy_from_slice(&0xffffu16.to_be_bytes());
            packet[16..20].copy_from_slice(&[198, 18, 0, 2]);
        }
        if tcp {
            packet[transport + 4..transport + 8].copy_from_slice(&(u32::MAX - 9).to_be_bytes());
            packet[transport + 12] = 8 << 4;
            packet[transport + 13] = 0x10 | TCP_FIN | TCP_PSH | TCP_CWR;
        }
        for (i, byte) in packet[transport + transport_header..].iter_mut().enumerate() {
            *byte = (i % 251) as u8;
        }
        out.extend(packet);
        out
    }

    #[test]
    fn pieces_carry_the_whole_and_right_checksums() {
        for v6 in [false, true] {
            for kind in [GSO_UDP_L4, GSO_TCPV4, GSO_TCPV4 | GSO_ECN] {
                for payload in [1, 999, 1000, 1001, 2500, 60_000] {
                    check(v6, kind, payload);
                }
            }
        }
    }

    fn check(v6: bool, kind: u8, payload: usize) {
        let whole = frame(v6, kind, 1000, payload);
        let facts = Facts::read(&whole).unwrap();
        let how = facts.split.unwrap();
        assert_eq!(facts.length, whole.len() - VNET_HEADER_LEN);
        let mut pieces = Vec::new();
        split(&whole, how, |piece| pieces.push(piece));
        assert_eq!(pieces.len(), payload.div_ceil(1000));
        let mut together = Vec::new();
        for (i, piece) in pieces.iter().enumerate() {
            let facts = Facts::read(piece).unwrap();
            assert_eq!(facts.split, None);
            assert!(facts.length <= how.headers + 1000);
            let packet = &piece[VNET_HEADER_LEN..];
            together.extend_from_slice(&packet[how.headers..]);
            // A right checksum makes the whole sum up to all ones.
            let pseudo = pseudo_header_sum(packet, how.tcp, packet.len() - how.transport);
            assert_eq!(fold(pseudo + sum(&packet[how.transport..])), 0xffff);
            if v6 {
                assert_eq!(u16::from_be_bytes([packet[4], packet[5]]) as usize, packet.len() - 40);
            } else {
                assert_eq!(fold(sum(&packet[..20])), 0xffff);
                assert_eq!(u16::from_be_bytes([packet[2], packet[3]]) as usize, packet.len());
                let id = u16::from_be_bytes([packet[4], packet[5]]);
                assert_eq!(id, 0xffffu16.wrapping_add(i as u16));
            }
            let transport = &packet[how.transport..];
            if how.tcp {
                let last = i + 1 == pieces.len();
                assert_eq!(transport[13] & (TCP_FIN | TCP_PSH) != 0, last);
                assert_eq!(transport[13] & TCP_CWR != 0, i == 0);
                let sequence = u32::from_be_bytes(transport[4..8].try_into().unwrap());
                assert_eq!(sequence, (u32::MAX - 9).wrapping_add(i as u32 * 1000));
            } else {
                let length = u16::from_be_bytes([transport[4], transport[5]]);
                assert_eq!(usize::from(length), transport.len());
            }
        }
        assert_eq!(together, whole[VNET_HEADER_LEN + how.headers..]);
    }

    #[test]
    fn odd_frames_are_turned_away() {
        for length in 0..VNET_HEADER_LEN + 20 {
            let frame = frame(false, GSO_UDP_L4, 1000, 3000);
            assert_eq!(Facts::read(&frame[..length]), None, "{length}");
        }
        let good = frame(true, GSO_TCPV6, 1000, 3000);
        assert!(Facts::read(&good).is_some());
        let changed = |at: usize, value: &[u8]| {
            let mut frame = good.clone();
            frame[at..at + value.len()].copy_from_slice(value);
            Facts::read(&frame)
        };
        assert_eq!(changed(VNET_HEADER_LEN, &[0x50]), None, "IP version 5");
        assert_eq!(changed(1, &[3]), None, "UDP fragmentation offload is gone");
        assert_eq!(changed(4, &0u16.to_ne_bytes()), None, "segments of nothing");
        assert_eq!(changed(6, &60_000u16.to_ne_bytes()), None, "transport beyond the end");
        assert_eq!(changed(6, &0u16.to_ne_bytes()), None, "transport over the IP header");
        assert_eq!(changed(VNET_HEADER_LEN + 52, &[0x10]), None, "TCP header too short");
    }

    #[test]
    fn fragments_carry_the_whole() {
        // One UDP packet whose checksum is left to hardware: the field holds
        // the pseudo header's sum.
        let mut single = frame(false, GSO_NONE, 0, 2500);
        let packet = &mut single[VNET_HEADER_LEN..];
        let length = packet.len() - 20;
        let pseudo = fold(pseudo_header_sum(packet, false, length));
        packet[26..28].copy_from_slice(&pseudo.to_be_bytes());
        single[6..8].copy_from_slice(&20u16.to_ne_bytes());
        single[8..10].copy_from_slice(&6u16.to_ne_bytes());
        let fragments = fragment(&single, 1000).unwrap();
        assert_eq!(fragments.len(), 3);
        let mut together = Vec::new();
        for (i, piece) in fragments.iter().enumerate() {
            let packet = &piece[VNET_HEADER_LEN..];
            assert!(piece[..VNET_HEADER_LEN].iter().all(|byte| *byte == 0));
            assert!(packet.len() <= 1000);
            assert_eq!(usize::from(u16::from_be_bytes([packet[2], packet[3]])), packet.len());
            assert_eq!(fold(sum(&packet[..20])), 0xffff);
            let place = u16::from_be_bytes([packet[6], packet[7]]);
            assert_eq!(usize::from(place & 0x1fff) * 8, together.len());
            assert_eq!(place & 0x2000 != 0, i < 2);
            together.extend_from_slice(&packet[20..]);
        }
        assert_eq!(together.len(), length);
        assert_eq!(fold(pseudo_header_sum(&single[10..], false, length) + sum(&together)), 0xffff);
        // Fragments of fragments keep their places.
        let again = fragment(&fragments[1], 500).unwrap();
        let first = u16::from_be_bytes([fragments[1][16], fragments[1][17]]) & 0x1fff;
        let place = |piece: &Vec<u8>| u16::from_be_bytes([piece[16], piece[17]]);
        assert_eq!(place(&again[0]) & 0x1fff, first);
        assert!(again.iter().all(|piece| place(piece) & 0x2000 != 0));
        // Not what forbids it, nor IPv6.
        single[VNET_HEADER_LEN + 6] = 0x40;
        assert_eq!(fragment(&single, 1000), None);
        assert_eq!(fragment(&frame(true, GSO_NONE, 0, 2500), 1000), None);
        assert_eq!(fragment(&single[..20], 1000), None);
    }
}
