//! One address for another in a packet, checksums mended (RFC 3022 section 4.1,
//! RFC 1624): the exit's leases against the inner address that all clients
//! share. Ports stay; flows are told apart by the addresses.

use std::net::IpAddr;

use super::checksum::Sum;
use super::ip::{Fragment, Ip, PROTO_ICMP, PROTO_ICMPV6, PROTO_TCP, PROTO_UDP};

/// Which address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The sender's.
    Source,
    /// The receiver's.
    Destination,
}

/// The field after `old` became `new` in what it covers. A partial one holds
/// the sum itself, a complete one its complement.
fn adjusted(field: [u8; 2], old: &[u8], new: &[u8], partial: bool) -> [u8; 2] {
    let field = if partial { field } else { field.map(|byte| !byte) };
    let mut inverted = [0; 16];
    inverted.iter_mut().zip(old).for_each(|(to, byte)| *to = !byte);
    let sum = Sum::default().bytes(&field).bytes(&inverted[..old.len()]).bytes(new);
    if partial { sum.partial() } else { sum.complete() }
}

/// Replaces an address of `packet`, parsed as `ip`; false when the families
/// differ or the packet is cut short. `partial`: the transport checksum is
/// unfinished.
pub fn replace(ip: &Ip, packet: &mut [u8], side: Side, new: IpAddr, partial: bool) -> bool {
    let (at, len) = match (ip.v6, side) {
        (false, Side::Source) => (12, 4),
        (false, Side::Destination) => (16, 4),
        (true, Side::Source) => (8, 16),
        (true, Side::Destination) => (24, 16),
    };
    let mut bytes = [0; 16];
    match new {
        IpAddr::V4(v4) if !ip.v6 => bytes[..4].copy_from_slice(&v4.octets()),
        IpAddr::V6(v6) if ip.v6 => bytes = v6.octets(),
        _ => return false,
    }
    let new = &bytes[..len];
    let Some(place) = packet.get_mut(at..at + len) else { return false };
    let mut old = [0; 16];
    let old = &mut old[..len];
    old.copy_from_slice(place);
    if old == new {
        return true;
    }
    place.copy_from_slice(new);
    if !ip.v6 {
        let sum = adjusted([packet[10], packet[11]], old, new, false);
        packet[10..12].copy_from_slice(&sum);
    }
    if ip.fragment == Fragment::Later {
        return true;
    }
    let field = match ip.protocol {
        PROTO_TCP => 16,
        PROTO_UDP => 6,
        PROTO_ICMPV6 if ip.v6 => 2,
        _ => return true,
    };
    let at = ip.transport + field;
    let Some(sum) = packet.get_mut(at..at + 2) else { return true };
    let none = ip.protocol == PROTO_UDP && !partial && *sum == [0, 0];
    if !none {
        let mut value = adjusted([sum[0], sum[1]], old, new, partial);
        if value == [0, 0] && ip.protocol == PROTO_UDP && !partial {
            value = [0xff, 0xff];
        }
        sum.copy_from_slice(&value);
    }
    true
}

/// In an ICMP error, the packet it is about was sent from an address that we
/// had replaced: puts the sender's own back there too (RFC 5508 section 4.2).
/// Nothing happens when it is no such error.
pub fn replace_quoted_source(ip: &Ip, packet: &mut [u8], old: IpAddr, new: IpAddr) {
    replace_quoted(ip, packet, old, new, 12, 8);
}

/// As [`replace_quoted_source`], the other way: the packet it is about was sent
/// to an address that we had replaced.
pub fn replace_quoted_destination(ip: &Ip, packet: &mut [u8], old: IpAddr, new: IpAddr) {
    replace_quoted(ip, packet, old, new, 16, 24);
}

fn replace_quoted(ip: &Ip, packet: &mut [u8], old: IpAddr, new: IpAddr, v4: usize, v6: usize) {
    let (start, end) = (ip.transport, ip.total_len.min(packet.len()));
    let error = match packet.get(start) {
        Some(3 | 4 | 5 | 11 | 12) if ip.protocol == PROTO_ICMP && !ip.v6 => true,
        Some(1..=4) if ip.protocol == PROTO_ICMPV6 && ip.v6 => true,
        _ => false,
    };
    if !error || ip.fragment != Fragment::No {
        return;
    }
    let addresses = ip.addresses(packet).to_vec();
    let Some(message) = packet.get_mut(start..end) else { return };
    let Some(quoted) = message.get_mut(8..) else { return };
    match (old, new) {
        (IpAddr::V4(old), IpAddr::V4(new)) if quoted.len() >= 20 => {
            if quoted[v4..v4 + 4] != old.octets() {
                return;
            }
            quoted[v4..v4 + 4].copy_from_slice(&new.octets());
            let sum = adjusted([quoted[10], quoted[11]], &old.octets(), &new.octets(), false);
            quoted[10..12].copy_from_slice(&sum);
        }
        (IpAddr::V6(old), IpAddr::V6(new)) if quoted.len() >= 40 => {
            if quoted[v6..v6 + 16] != old.octets() {
                return;
            }
            quoted[v6..v6 + 16].copy_from_slice(&new.octets());
        }
        _ => return,
    }
    message[2..4].fill(0);
    let sum = if ip.v6 {
        Sum::default().pseudo(&addresses, PROTO_ICMPV6, message.len()).bytes(message)
    } else {
        Sum::default().bytes(message)
    };
    message[2..4].copy_from_slice(&sum.complete());
}

#[cfg(test)]
mod tests {
    use super::super::checksum::transport_is_valid;
    use super::super::segment::tests::tcp_packet;
    use super::*;

    #[test]
    fn checksums_stay_right_both_ways() {
        for v6 in [false, true] {
            for side in [Side::Source, Side::Destination] {
                let mut packet = tcp_packet(v6, 7, 0x10, b"some payload", 0);
                let before = packet.clone();
                let ip = Ip::parse(&packet).unwrap();
                let new: IpAddr =
                    if v6 { "fd77:6172:7265:6e01::1".parse() } else { "198.18.0.9".parse() }
                        .unwrap();
                let old = match side {
                    Side::Source => ip.source(&packet),
                    Side::Destination => ip.destination(&packet),
                };
                assert!(replace(&ip, &mut packet, side, new, false));
                assert!(transport_is_valid(&ip, &packet));
                assert!(v6 || Sum::default().bytes(&packet[..20]).is_valid());
                let now = match side {
                    Side::Source => ip.source(&packet),
                    Side::Destination => ip.destination(&packet),
                };
                assert_eq!(now, new);
                assert!(replace(&ip, &mut packet, side, old, false));
                assert_eq!(packet, before);
                let other: IpAddr = if v6 { "10.0.0.1".parse() } else { "::1".parse() }.unwrap();
                assert!(!replace(&ip, &mut packet, side, other, false));
            }
        }
    }

    #[test]
    fn an_unfinished_checksum_stays_the_pseudo_header_s_sum() {
        for v6 in [false, true] {
            let mut packet = tcp_packet(v6, 7, 0x10, b"some payload", 0);
            let ip = Ip::parse(&packet).unwrap();
            let len = packet.len() - ip.transport;
            let pseudo = |packet: &[u8]| {
                Sum::default().pseudo(ip.addresses(packet), PROTO_TCP, len).partial()
            };
            let sum = pseudo(&packet);
            packet[ip.transport + 16..ip.transport + 18].copy_from_slice(&sum);
            let new: IpAddr = if v6 { "fd00::9".parse() } else { "198.18.3.4".parse() }.unwrap();
            assert!(replace(&ip, &mut packet, Side::Source, new, true));
            assert_eq!(packet[ip.transport + 16..ip.transport + 18], pseudo(&packet));
        }
    }

    #[test]
    fn quoted_packets_get_their_sender_back() {
        for v6 in [false, true] {
            let quoted = tcp_packet(v6, 7, 0x10, b"", 0);
            let inner = Ip::parse(&quoted).unwrap();
            let old = inner.source(&quoted);
            let new: IpAddr = if v6 { "fd00::9".parse() } else { "192.0.0.2".parse() }.unwrap();
            let mut message = vec![if v6 { 1 } else { 3 }, 0, 0, 0, 0, 0, 0, 0];
            message.extend(&quoted);
            let mut packet = tcp_packet(v6, 7, 0x10, &message, 0);
            let protocol = if v6 { PROTO_ICMPV6 } else { PROTO_ICMP };
            packet[if v6 { 6 } else { 9 }] = protocol;
            let start = if v6 { 40 } else { 20 };
            packet.drain(start..start + 32);
            let len = packet.len();
            if v6 {
                packet[4..6].copy_from_slice(&((len - 40) as u16).to_be_bytes());
            } else {
                packet[2..4].copy_from_slice(&(len as u16).to_be_bytes());
            }
            let ip = Ip::parse(&packet).unwrap();
            replace_quoted_source(&ip, &mut packet, old, new);
            let inside = &packet[start + 8..];
            assert_eq!(Ip::parse(inside).unwrap().source(inside), new);
            let message = &packet[start..];
            let sum = if v6 {
                Sum::default().pseudo(ip.addresses(&packet), protocol, message.len())
            } else {
                Sum::default()
            };
            assert!(sum.bytes(message).is_valid());
            assert!(v6 || Sum::default().bytes(&inside[..20]).is_valid());
            for cut in 0..packet.len() {
                let mut short = packet[..cut].to_vec();
                replace_quoted_source(&ip, &mut short, old, new);
                replace(&ip, &mut short, Side::Source, new, false);
            }
        }
    }
}
