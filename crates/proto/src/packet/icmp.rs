//! ICMP answers to packets the tunnel cannot carry: "too big" with the MTU
//! that fits, and "unreachable". Following RFC 1122 and RFC 4443, no answer is
//! made to ICMP errors, to later fragments, or to packets from or to addresses
//! that name no single host.

use std::net::IpAddr;

use super::checksum::{self, Sum};
use super::ip::{Fragment, Ip, PROTO_ICMP, PROTO_ICMPV6};

/// Most bytes of an ICMPv4 answer (RFC 1812, section 4.3.2.3).
const MAX_V4: usize = 576;
/// Most bytes of an ICMPv6 answer (RFC 4443, section 2.4).
const MAX_V6: usize = 1280;

/// Why a packet is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// It exceeds the MTU given.
    TooBig(u16),
    /// No peer has the destination.
    NoRoute,
    /// The peer that has it cannot be reached.
    HostUnreachable,
    /// The hop limit ran out while forwarding.
    HopLimitExceeded,
    /// Nobody listens on that port.
    PortUnreachable,
    /// A policy refuses it.
    Prohibited,
}

/// The answer to `packet`, a complete packet whose layout is `ip`, sent from
/// `from` (of the same family, else the packet's own destination is used).
/// `None` where none may be sent.
pub fn answer(ip: &Ip, packet: &[u8], from: Option<IpAddr>, why: Answer) -> Option<Vec<u8>> {
    let packet = packet.get(..ip.total_len)?;
    if ip.fragment == Fragment::Later || !names_one_host(ip.source(packet)) {
        return None;
    }
    // "Too big" is the one answer multicast senders need (RFC 4443, 2.4 e).
    let destination = ip.destination(packet);
    let multicast_ok = ip.v6 && matches!(why, Answer::TooBig(_));
    if !names_one_host(destination) && !multicast_ok {
        return None;
    }
    let kind = packet.get(ip.transport).copied();
    match ip.protocol {
        PROTO_ICMP if !ip.v6 && !matches!(kind, Some(0 | 8 | 13 | 14)) => return None,
        PROTO_ICMPV6 if ip.v6 && kind.is_none_or(|kind| kind < 128) => return None,
        _ => {}
    }
    Some(if ip.v6 { answer_v6(ip, packet, from, why) } else { answer_v4(ip, packet, from, why) })
}

fn names_one_host(address: IpAddr) -> bool {
    let broadcast = matches!(address, IpAddr::V4(v4) if v4.is_broadcast());
    !address.is_unspecified() && !address.is_multicast() && !broadcast
}

fn answer_v4(ip: &Ip, packet: &[u8], from: Option<IpAddr>, why: Answer) -> Vec<u8> {
    let (kind, code, mtu) = match why {
        Answer::TooBig(mtu) => (3, 4, mtu),
        Answer::NoRoute => (3, 0, 0),
        Answer::HostUnreachable => (3, 1, 0),
        Answer::HopLimitExceeded => (11, 0, 0),
        Answer::PortUnreachable => (3, 3, 0),
        Answer::Prohibited => (3, 13, 0),
    };
    let quoted = &packet[..packet.len().min(MAX_V4 - 28)];
    let mut out = Vec::with_capacity(28 + quoted.len());
    out.extend_from_slice(&[0x45, 0xc0]);
    out.extend_from_slice(&((28 + quoted.len()) as u16).to_be_bytes());
    out.extend_from_slice(&[0, 0, 0, 0, 64, PROTO_ICMP, 0, 0]);
    match from {
        Some(IpAddr::V4(from)) => out.extend_from_slice(&from.octets()),
        _ => out.extend_from_slice(&ip.addresses(packet)[4..8]),
    }
    out.extend_from_slice(&ip.addresses(packet)[..4]);
    checksum::write_ipv4_header(&mut out, 20);
    out.extend_from_slice(&[kind, code, 0, 0, 0, 0]);
    out.extend_from_slice(&mtu.to_be_bytes());
    out.extend_from_slice(quoted);
    let sum = Sum::default().bytes(&out[20..]).complete();
    out[22..24].copy_from_slice(&sum);
    out
}

fn answer_v6(ip: &Ip, packet: &[u8], from: Option<IpAddr>, why: Answer) -> Vec<u8> {
    let (kind, code, mtu) = match why {
        Answer::TooBig(mtu) => (2, 0, u32::from(mtu)),
        Answer::NoRoute => (1, 0, 0),
        Answer::HostUnreachable => (1, 3, 0),
        Answer::HopLimitExceeded => (3, 0, 0),
        Answer::PortUnreachable => (1, 4, 0),
        Answer::Prohibited => (1, 1, 0),
    };
    let quoted = &packet[..packet.len().min(MAX_V6 - 48)];
    let len = 8 + quoted.len();
    let mut out = Vec::with_capacity(40 + len);
    out.extend_from_slice(&[0x60, 0, 0, 0]);
    out.extend_from_slice(&(len as u16).to_be_bytes());
    out.extend_from_slice(&[PROTO_ICMPV6, 64]);
    match from {
        Some(IpAddr::V6(from)) => out.extend_from_slice(&from.octets()),
        _ => out.extend_from_slice(&ip.addresses(packet)[16..]),
    }
    out.extend_from_slice(&ip.addresses(packet)[..16]);
    out.extend_from_slice(&[kind, code, 0, 0]);
    out.extend_from_slice(&mtu.to_be_bytes());
    out.extend_from_slice(quoted);
    let sum = Sum::default().pseudo(&out[8..40], PROTO_ICMPV6, len).bytes(&out[40..]).complete();
    out[42..44].copy_from_slice(&sum);
    out
}

#[cfg(test)]
mod tests {
    use super::super::checksum::transport_is_valid;
    use super::super::segment::tests::tcp_packet;
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn too_big_tells_the_sender_the_mtu() {
        let packet = tcp_packet(false, 1, 0x10, &[7; 2000], 0);
        let ip = Ip::parse(&packet).unwrap();
        let reply =
            answer(&ip, &packet, Some("10.9.9.9".parse().unwrap()), Answer::TooBig(1280)).unwrap();
        let reply_ip = Ip::parse(&reply).unwrap();
        assert_eq!(reply.len(), MAX_V4);
        assert_eq!(reply_ip.source(&reply), "10.9.9.9".parse::<IpAddr>().unwrap());
        assert_eq!(reply_ip.destination(&reply), ip.source(&packet));
        assert_eq!(&reply[20..22], &[3, 4]);
        assert_eq!(&reply[26..28], &1280u16.to_be_bytes());
        assert!(
            Sum::default().bytes(&reply[..20]).is_valid()
                && Sum::default().bytes(&reply[20..]).is_valid()
        );

        let packet = tcp_packet(true, 1, 0x10, &[7; 2000], 0);
        let ip = Ip::parse(&packet).unwrap();
        let reply = answer(&ip, &packet, None, Answer::TooBig(1280)).unwrap();
        let reply_ip = Ip::parse(&reply).unwrap();
        assert_eq!(reply.len(), MAX_V6);
        assert_eq!(reply_ip.source(&reply), ip.destination(&packet));
        assert_eq!(&reply[44..48], &1280u32.to_be_bytes());
        assert!(transport_is_valid(&reply_ip, &reply));
    }

    #[test]
    fn errors_are_not_answered() {
        for v6 in [false, true] {
            let packet = tcp_packet(v6, 1, 0x10, b"x", 0);
            let ip = Ip::parse(&packet).unwrap();
            for why in [
                Answer::NoRoute,
                Answer::HostUnreachable,
                Answer::HopLimitExceeded,
                Answer::PortUnreachable,
                Answer::Prohibited,
            ] {
                let reply = answer(&ip, &packet, None, why).unwrap();
                let reply_ip = Ip::parse(&reply).unwrap();
                assert_eq!(answer(&reply_ip, &reply, None, why), None);
            }
        }
    }

    #[test]
    fn nobody_and_everybody_are_not_answered() {
        for (at, bytes) in [
            (12, [0, 0, 0, 0]),
            (12, [224, 0, 0, 1]),
            (16, [255, 255, 255, 255]),
            (16, [224, 0, 0, 9]),
        ] {
            let mut packet = tcp_packet(false, 1, 0x10, b"x", 0);
            packet[at..at + 4].copy_from_slice(&bytes);
            let ip = Ip::parse(&packet).unwrap();
            assert_eq!(answer(&ip, &packet, None, Answer::NoRoute), None);
        }
    }

    proptest! {
        #[test]
        fn arbitrary_packets_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..120), v6: bool) {
            let mut bytes = bytes;
            if let Some(first) = bytes.first_mut() {
                *first = if v6 { 0x60 } else { 0x45 };
            }
            if let Some(ip) = Ip::parse(&bytes) {
                answer(&ip, &bytes, None, Answer::TooBig(1280));
            }
        }
    }
}
