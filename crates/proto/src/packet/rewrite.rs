//! Small rewrites a tunnel makes: ECN marks in and out, the hop limit when
//! forwarding, the MSS option of TCP SYN segments.

use super::checksum;
use super::ip::{Ip, Transport};

const ECN_MASK: u8 = 3;
const ECT_0: u8 = 2;
const CE: u8 = 3;

const SYN: u8 = 0x02;
const MSS_OPTION: u8 = 2;

/// The outer type of service for an inner one, as WireGuard does: no DSCP
/// (it would tell flows apart), the ECN capability copied, a mark already
/// there kept inside only (RFC 3168 full-functionality).
#[inline]
pub fn outer_tos(inner: u8) -> u8 {
    match inner & ECN_MASK {
        CE => ECT_0,
        other => other,
    }
}

/// Carries a congestion mark of the outer header into the inner one, if that
/// declares itself capable (RFC 6040; others pass unchanged, as in WireGuard).
#[inline]
pub fn apply_outer_ecn(ip: &Ip, packet: &mut [u8], outer_tos: u8) {
    if outer_tos & ECN_MASK == CE {
        mark_congestion(ip, packet);
    }
}

/// Tells the packet's receiver of congestion (RFC 3168); false when the packet
/// does not declare itself capable, and is as it was.
pub fn mark_congestion(ip: &Ip, packet: &mut [u8]) -> bool {
    if ip.tos(packet) & ECN_MASK == 0 {
        return false;
    }
    if ip.v6 {
        packet[1] |= CE << 4;
    } else {
        replace_v4(packet, 1, packet[1] | CE);
    }
    true
}

/// Replaces one byte of an IPv4 header and mends its checksum.
fn replace_v4(packet: &mut [u8], at: usize, value: u8) {
    let even = at & !1;
    let old = [packet[even], packet[even + 1]];
    packet[at] = value;
    let new = [packet[even], packet[even + 1]];
    let sum = checksum::update([packet[10], packet[11]], old, new);
    packet[10..12].copy_from_slice(&sum);
}

/// Counts one hop; false when the packet must not be forwarded any more.
pub fn decrement_hop_limit(ip: &Ip, packet: &mut [u8]) -> bool {
    let at = if ip.v6 { 7 } else { 8 };
    match packet.get(at) {
        Some(left) if *left > 1 && packet.len() >= 20 => {
            let left = left - 1;
            if ip.v6 {
                packet[at] = left;
            } else {
                replace_v4(packet, at, left);
            }
            true
        }
        _ => false,
    }
}

/// Lowers the MSS option of a SYN to what fits `mtu`; true when it did. With
/// `partial` the TCP checksum is unfinished and needs no mending.
pub fn clamp_mss(ip: &Ip, packet: &mut [u8], mtu: usize, partial: bool) -> bool {
    let Some(Transport::Tcp { header }) = ip.tcp_or_udp(packet) else { return false };
    let tcp = &mut packet[ip.transport..ip.transport + header];
    if tcp[13] & SYN == 0 {
        return false;
    }
    let limit = mtu.saturating_sub(ip.transport + 20).clamp(1, 0xffff) as u16;
    let mut at = 20;
    while at < tcp.len() {
        match tcp[at] {
            0 => return false,
            1 => at += 1,
            kind => {
                let Some(length) = tcp.get(at + 1).map(|n| usize::from(*n)) else { return false };
                if length < 2 || at + length > tcp.len() {
                    return false;
                }
                if kind == MSS_OPTION && length == 4 {
                    if u16::from_be_bytes([tcp[at + 2], tcp[at + 3]]) <= limit {
                        return false;
                    }
                    replace_mss(tcp, at + 2, limit.to_be_bytes(), partial);
                    return true;
                }
                at += length;
            }
        }
    }
    false
}

fn replace_mss(tcp: &mut [u8], at: usize, new: [u8; 2], partial: bool) {
    let old = [tcp[at], tcp[at + 1]];
    tcp[at..at + 2].copy_from_slice(&new);
    if partial {
        return;
    }
    // At an odd offset the bytes stand swapped in the sum.
    let swap = |field: [u8; 2]| if at % 2 == 1 { [field[1], field[0]] } else { field };
    let sum = checksum::update([tcp[16], tcp[17]], swap(old), swap(new));
    tcp[16..18].copy_from_slice(&sum);
}

#[cfg(test)]
mod tests {
    use super::super::checksum::{Sum, transport_is_valid};
    use super::super::segment::tests::tcp_packet;
    use super::*;

    #[test]
    fn ecn_is_carried_as_wireguard_does() {
        assert_eq!([0xb8, 0xb9, 0xba, 0xbb].map(outer_tos), [0, 1, 2, 2]);
        for v6 in [false, true] {
            for (inner, outer, expected) in
                [(0, 3, 0), (1, 3, 3), (2, 3, 3), (3, 3, 3), (1, 1, 1), (2, 0, 2), (0xb9, 3, 0xbb)]
            {
                let mut packet = tcp_packet(v6, 7, 0x10, b"payload", inner);
                let ip = Ip::parse(&packet).unwrap();
                apply_outer_ecn(&ip, &mut packet, outer);
                assert_eq!(ip.tos(&packet), expected, "v6 {v6}, {inner} in {outer}");
                assert!(v6 || Sum::default().bytes(&packet[..20]).is_valid());
            }
        }
    }

    #[test]
    fn the_hop_limit_stops_at_one() {
        for v6 in [false, true] {
            let mut packet = tcp_packet(v6, 7, 0x10, b"", 0);
            let ip = Ip::parse(&packet).unwrap();
            let at = if v6 { 7 } else { 8 };
            let mut left = packet[at];
            while left > 1 {
                assert!(decrement_hop_limit(&ip, &mut packet));
                left -= 1;
                assert_eq!(packet[at], left);
                assert!(v6 || Sum::default().bytes(&packet[..20]).is_valid());
            }
            assert!(!decrement_hop_limit(&ip, &mut packet));
        }
    }

    #[test]
    fn only_a_larger_mss_of_a_syn_is_lowered() {
        for v6 in [false, true] {
            for pad in 0..4usize {
                // `pad` one-byte options in front move the MSS to odd offsets.
                let mut options = vec![1; pad];
                options.extend([2, 4, 0x23, 0x00]);
                options.resize(options.len().next_multiple_of(4), 1);
                let headroom = if v6 { 60 } else { 40 };
                for (flags, mtu, expected) in [
                    (0x02, 1420, 1420 - headroom),
                    (0x12, 1280, 1280 - headroom),
                    (0x10, 1420, 0x2300),
                    (0x02, 9000, 9000 - headroom),
                ] {
                    let mut packet = super::super::segment::tests::tcp_with_options(
                        v6, 9, flags, &options, b"", 0,
                    );
                    let ip = Ip::parse(&packet).unwrap();
                    assert!(transport_is_valid(&ip, &packet));
                    clamp_mss(&ip, &mut packet, mtu, false);
                    let at = ip.transport + 20 + pad + 2;
                    let found = usize::from(u16::from_be_bytes([packet[at], packet[at + 1]]));
                    assert_eq!(found, expected.min(0x2300), "v6 {v6} pad {pad} flags {flags:x}");
                    assert!(transport_is_valid(&ip, &packet));
                }
            }
        }
    }

    #[test]
    fn broken_options_are_left_alone() {
        for options in [[2, 0, 0, 0], [2, 4, 0xff, 0xff], [3, 9, 0, 0], [1, 1, 1, 2], [0, 2, 4, 9]]
        {
            let mut packet =
                super::super::segment::tests::tcp_with_options(false, 9, 2, &options, b"", 0);
            let ip = Ip::parse(&packet).unwrap();
            clamp_mss(&ip, &mut packet, 0, false);
            assert!(transport_is_valid(&ip, &packet));
        }
    }
}
