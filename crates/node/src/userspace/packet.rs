//! Packets that the userspace stack reads and makes itself: who a packet is
//! from and for, what an ICMP error says, datagrams and echo replies.
//!
//! In and out: bytes of IP packets, and frames (a `virtio_net_hdr`, then a
//! packet). Invariants: nothing here panics on any bytes; checksums of frames
//! are left to whoever carries them on where that is possible. Not here: TCP
//! (the library has that), state.

use std::net::{IpAddr, SocketAddr};

use warren_proto::packet::checksum::{self, Sum};
use warren_proto::packet::ip::{
    Fragment, IPV4_HEADER, IPV6_HEADER, Ip, PROTO_ICMP, PROTO_ICMPV6, PROTO_TCP, PROTO_UDP,
    Transport, UDP_HEADER,
};
use warren_proto::packet::vnet::{Gso, VNET_LEN, Vnet};

/// Hop limit of packets made here.
const HOPS: u8 = 64;
/// Longest payload of a datagram over IPv4, bytes.
pub const MAX_DATAGRAM: usize = 65_535 - IPV4_HEADER - UDP_HEADER;

/// TCP or UDP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl std::fmt::Display for Protocol {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

/// A packet and its layout.
#[derive(Debug, Clone, Copy)]
pub(super) struct Packet<'a> {
    pub(super) ip: Ip,
    pub(super) bytes: &'a [u8],
    /// The checksum is not finished, or not needed: it comes from this machine
    /// or was authenticated as unfinished.
    pub(super) trusted: bool,
}

impl<'a> Packet<'a> {
    /// Reads a frame; `None` when it is none.
    pub(super) fn of_frame(frame: &'a [u8]) -> Option<Self> {
        let (header, bytes) = frame.split_first_chunk::<VNET_LEN>()?;
        let vnet = Vnet::parse(header)?;
        let ip = Ip::parse(bytes)?;
        Some(Self { ip, bytes: bytes.get(..ip.total_len)?, trusted: vnet.needs_csum })
    }

    pub(super) fn source(&self) -> IpAddr {
        self.ip.source(self.bytes)
    }

    pub(super) fn destination(&self) -> IpAddr {
        self.ip.destination(self.bytes)
    }

    pub(super) fn is_fragment(&self) -> bool {
        self.ip.fragment != Fragment::No
    }

    /// What follows the IP header.
    pub(super) fn rest(&self) -> &'a [u8] {
        self.bytes.get(self.ip.transport..).unwrap_or_default()
    }

    /// Source and destination port of a whole TCP or UDP packet.
    pub(super) fn ports(&self) -> Option<(Transport, u16, u16)> {
        let transport = self.ip.tcp_or_udp(self.bytes)?;
        let ports = self.rest().first_chunk::<4>()?;
        let port = |at: usize| u16::from_be_bytes([ports[at], ports[at + 1]]);
        Some((transport, port(0), port(2)))
    }

    /// True when the transport checksum is right, or need not be looked at.
    pub(super) fn is_sound(&self) -> bool {
        let none = !self.ip.v6
            && self.ip.protocol == PROTO_UDP
            && self.rest().get(6..8).is_some_and(|sum| sum == [0, 0]);
        self.trusted || none || checksum::transport_is_valid(&self.ip, self.bytes)
    }

    /// TCP flags; 0 when there are none.
    pub(super) fn tcp_flags(&self) -> u8 {
        self.rest().get(13).copied().unwrap_or_default()
    }

    /// The longest segment that the sender of a SYN takes, bytes; `None` for
    /// other packets. Without the option it is what RFC 9293 says.
    pub(super) fn offered_mss(&self) -> Option<u16> {
        let (Transport::Tcp { header }, ..) = self.ports()? else { return None };
        if self.tcp_flags() & 0x02 == 0 {
            return None;
        }
        let mut options = self.rest().get(20..header).unwrap_or_default();
        loop {
            options = match options {
                [2, 4, high, low, ..] => return Some(u16::from_be_bytes([*high, *low])),
                [1, rest @ ..] => rest,
                [kind, length, ..] if *kind > 1 && *length > 1 => {
                    options.get(usize::from(*length)..).unwrap_or_default()
                }
                _ => return Some(if self.ip.v6 { 1220 } else { 536 }),
            };
        }
    }

    /// The payload of a whole UDP packet.
    pub(super) fn datagram(&self) -> Option<&'a [u8]> {
        let rest = self.rest();
        let length = usize::from(u16::from_be_bytes([*rest.get(4)?, *rest.get(5)?]));
        rest.get(UDP_HEADER..length)
    }

    /// The reply to an echo request, as a frame; `None` for anything else.
    pub(super) fn echo_reply(&self) -> Option<Vec<u8>> {
        let (protocol, request, reply) = echo_types(self.ip.v6);
        let rest = self.rest();
        if self.ip.protocol != protocol || self.is_fragment() || rest.len() < 8 {
            return None;
        }
        if rest[..2] != [request, 0] || !self.icmp_is_sound() {
            return None;
        }
        Some(icmp_frame(self.destination(), self.source(), reply, &rest[4..]))
    }

    /// Identifier, sequence and payload of an echo request that is sound.
    pub(super) fn echo_request(&self) -> Option<&'a [u8]> {
        self.echo_reply().and(self.rest().get(4..))
    }

    fn icmp_is_sound(&self) -> bool {
        if self.ip.v6 {
            checksum::transport_is_valid(&self.ip, self.bytes)
        } else {
            Sum::default().bytes(self.rest()).is_valid()
        }
    }

    /// What an ICMP error says, and about whose packet.
    pub(super) fn icmp_error(&self) -> Option<IcmpError> {
        let expected = if self.ip.v6 { PROTO_ICMPV6 } else { PROTO_ICMP };
        let rest = self.rest();
        if self.ip.protocol != expected || self.is_fragment() || !self.icmp_is_sound() {
            return None;
        }
        let (head, quoted) = rest.split_at_checked(8)?;
        let mtu = if self.ip.v6 {
            u32::from_be_bytes([head[4], head[5], head[6], head[7]]).min(65_535) as u16
        } else {
            u16::from_be_bytes([head[6], head[7]])
        };
        let what = match (self.ip.v6, head[0], head[1]) {
            (false, 3, 4) | (true, 2, _) => IcmpKind::TooBig(mtu),
            (false, 3, 3) | (true, 1, 4) => IcmpKind::Refused,
            (false, 3, 9 | 10 | 13) | (true, 1, 1 | 5 | 6) => IcmpKind::Prohibited,
            (false, 3, _) | (true, 1, _) => IcmpKind::Unreachable,
            _ => return None,
        };
        let (protocol, local, remote) = quoted_flow(quoted)?;
        Some(IcmpError { what, protocol, local, remote })
    }
}

fn echo_types(v6: bool) -> (u8, u8, u8) {
    if v6 { (PROTO_ICMPV6, 128, 129) } else { (PROTO_ICMP, 8, 0) }
}

/// An echo reply as a frame; `body` begins with identifier and sequence.
pub(super) fn echo_reply(from: IpAddr, to: IpAddr, body: &[u8]) -> Vec<u8> {
    icmp_frame(from, to, echo_types(from.is_ipv6()).2, body)
}

fn icmp_frame(from: IpAddr, to: IpAddr, kind: u8, body: &[u8]) -> Vec<u8> {
    let protocol = if from.is_ipv6() { PROTO_ICMPV6 } else { PROTO_ICMP };
    let mut frame = vec![0; VNET_LEN];
    ip_header(&mut frame, from, to, protocol, 4 + body.len());
    let at = frame.len();
    frame.extend_from_slice(&[kind, 0, 0, 0]);
    frame.extend_from_slice(body);
    let sum = match from {
        IpAddr::V4(_) => Sum::default(),
        IpAddr::V6(_) => {
            Sum::default().pseudo(&frame[VNET_LEN + 8..at], protocol, frame.len() - at)
        }
    };
    let sum = sum.bytes(&frame[at..]).complete();
    frame[at + 2..at + 4].copy_from_slice(&sum);
    frame
}

/// What an ICMP error says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum IcmpKind {
    /// Packets of more bytes do not get through.
    TooBig(u16),
    /// Nobody listens there.
    Refused,
    /// A policy forbids it.
    Prohibited,
    /// No way there.
    Unreachable,
}

/// An ICMP error about a packet of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct IcmpError {
    pub(super) what: IcmpKind,
    pub(super) protocol: Protocol,
    pub(super) local: SocketAddr,
    pub(super) remote: SocketAddr,
}

/// The flow of a quoted packet, which as a rule is cut short.
fn quoted_flow(quoted: &[u8]) -> Option<(Protocol, SocketAddr, SocketAddr)> {
    let (start, protocol, addresses) = match quoted.first()? >> 4 {
        4 => (usize::from(quoted[0] & 15) * 4, *quoted.get(9)?, quoted.get(12..20)?),
        6 => (IPV6_HEADER, *quoted.get(6)?, quoted.get(8..40)?),
        _ => return None,
    };
    let protocol = match protocol {
        PROTO_TCP => Protocol::Tcp,
        PROTO_UDP => Protocol::Udp,
        _ => return None,
    };
    let ports = quoted.get(start..start + 4)?;
    let half = addresses.len() / 2;
    let at = |range: &[u8], port: [u8; 2]| {
        let ip: IpAddr = match (range.first_chunk::<16>(), range.first_chunk::<4>()) {
            (Some(v6), _) => (*v6).into(),
            (None, Some(v4)) => (*v4).into(),
            _ => return None,
        };
        Some(SocketAddr::new(ip, u16::from_be_bytes(port)))
    };
    Some((
        protocol,
        at(&addresses[..half], [ports[0], ports[1]])?,
        at(&addresses[half..], [ports[2], ports[3]])?,
    ))
}

/// Appends an IP header for `length` bytes behind it. IPv4 packets may be
/// fragmented: larger datagrams than the path carries then still arrive.
fn ip_header(out: &mut Vec<u8>, from: IpAddr, to: IpAddr, protocol: u8, length: usize) {
    let start = out.len();
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            out.extend_from_slice(&[0x45, 0]);
            out.extend_from_slice(&((IPV4_HEADER + length) as u16).to_be_bytes());
            out.extend_from_slice(&[0, 0, 0, 0, HOPS, protocol, 0, 0]);
            out.extend_from_slice(&from.octets());
            out.extend_from_slice(&to.octets());
            checksum::write_ipv4_header(&mut out[start..], IPV4_HEADER);
        }
        (from, to) => {
            let six = |address: IpAddr| match address {
                IpAddr::V6(v6) => v6,
                IpAddr::V4(v4) => v4.to_ipv6_mapped(),
            };
            out.extend_from_slice(&[0x60, 0, 0, 0]);
            out.extend_from_slice(&(length as u16).to_be_bytes());
            out.extend_from_slice(&[protocol, HOPS]);
            out.extend_from_slice(&six(from).octets());
            out.extend_from_slice(&six(to).octets());
        }
    }
}

/// A datagram as a frame; `None` when it is too long, or the families differ.
pub(super) fn datagram(from: SocketAddr, to: SocketAddr, payload: &[u8]) -> Option<Vec<u8>> {
    if payload.len() > MAX_DATAGRAM || from.is_ipv4() != to.is_ipv4() {
        return None;
    }
    let length = UDP_HEADER + payload.len();
    let mut frame = Vec::with_capacity(VNET_LEN + IPV6_HEADER + length);
    frame.resize(VNET_LEN, 0);
    ip_header(&mut frame, from.ip(), to.ip(), PROTO_UDP, length);
    frame.extend_from_slice(&from.port().to_be_bytes());
    frame.extend_from_slice(&to.port().to_be_bytes());
    frame.extend_from_slice(&(length as u16).to_be_bytes());
    frame.extend_from_slice(&[0, 0]);
    frame.extend_from_slice(payload);
    leave_checksum(&mut frame, None);
    Some(frame)
}

/// Completes the frame of a TCP or UDP packet whose checksum is not computed:
/// the sum of the pseudo header, and a `virtio_net_hdr` that says so. `segment`:
/// cut a TCP payload into pieces of so many bytes.
pub(super) fn leave_checksum(frame: &mut [u8], segment: Option<u16>) {
    let Some((header, packet)) = frame.split_first_chunk_mut::<VNET_LEN>() else { return };
    let Some(ip) = Ip::parse(packet) else { return };
    let Some(transport) = ip.tcp_or_udp(packet) else { return };
    let length = ip.total_len - ip.transport;
    let sum = Sum::default().pseudo(ip.addresses(packet), ip.protocol, length).partial();
    let field = ip.transport + transport.checksum_offset();
    packet[field..field + 2].copy_from_slice(&sum);
    let headers = ip.transport + transport.header_len();
    let segment = segment.filter(|size| ip.total_len - headers > usize::from(*size));
    let gso = match (segment, ip.v6) {
        (None, _) => Gso::None,
        (Some(_), false) => Gso::TcpV4,
        (Some(_), true) => Gso::TcpV6,
    };
    Vnet {
        needs_csum: true,
        gso,
        hdr_len: headers as u16,
        gso_size: segment.unwrap_or_default(),
        csum_start: ip.transport as u16,
        csum_offset: transport.checksum_offset() as u16,
    }
    .encode(header);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use warren_proto::packet::icmp::{Answer, answer};

    fn pair(v6: bool) -> (SocketAddr, SocketAddr) {
        if v6 {
            ("[fd12::1]:1000".parse().unwrap(), "[fd12::2]:53".parse().unwrap())
        } else {
            ("100.64.0.1:1000".parse().unwrap(), "100.64.0.2:53".parse().unwrap())
        }
    }

    #[test]
    fn datagrams_are_read_as_they_were_made() {
        for v6 in [false, true] {
            let (from, to) = pair(v6);
            for payload in [&b""[..], b"x", b"hello", &[7; 3000]] {
                let mut frame = datagram(from, to, payload).unwrap();
                let packet = Packet::of_frame(&frame).unwrap();
                assert!(packet.trusted && packet.is_sound());
                assert_eq!((packet.source(), packet.destination()), (from.ip(), to.ip()));
                assert_eq!(packet.ports(), Some((Transport::Udp, 1000, 53)));
                assert_eq!(packet.datagram(), Some(payload));
                // Finished as the link does it, the checksum holds.
                let start = packet.ip.transport;
                checksum::complete(&mut frame[VNET_LEN..], start, 6);
                frame[..VNET_LEN].fill(0);
                assert!(Packet::of_frame(&frame).unwrap().is_sound());
                *frame.last_mut().unwrap() ^= 1;
                assert!(!Packet::of_frame(&frame).unwrap().is_sound());
            }
        }
        let (v4, v6) = (pair(false).0, pair(true).0);
        assert_eq!(datagram(v4, v6, b"x"), None);
        assert_eq!(datagram(v4, v4, &vec![0; MAX_DATAGRAM + 1]), None);
    }

    #[test]
    fn echoes_are_answered_and_errors_are_read() {
        for v6 in [false, true] {
            let (from, to) = pair(v6);
            let request = icmp_frame(from.ip(), to.ip(), echo_types(v6).1, b"\0\x07\0\x01data");
            let packet = Packet::of_frame(&request).unwrap();
            let reply = packet.echo_reply().unwrap();
            let read = Packet::of_frame(&reply).unwrap();
            assert_eq!((read.source(), read.destination()), (to.ip(), from.ip()));
            assert_eq!(&read.rest()[4..], b"\0\x07\0\x01data");
            assert!(read.icmp_is_sound());
            assert_eq!(read.echo_reply(), None, "a reply is not answered");
            let mut bad = request.clone();
            *bad.last_mut().unwrap() ^= 1;
            assert_eq!(Packet::of_frame(&bad).unwrap().echo_reply(), None);

            let frame = datagram(from, to, b"x").unwrap();
            let ours = Packet::of_frame(&frame).unwrap();
            for (why, what) in [
                (Answer::TooBig(1300), IcmpKind::TooBig(1300)),
                (Answer::NoRoute, IcmpKind::Unreachable),
                (Answer::HostUnreachable, IcmpKind::Unreachable),
                (Answer::PortUnreachable, IcmpKind::Refused),
                (Answer::Prohibited, IcmpKind::Prohibited),
            ] {
                let error = answer(&ours.ip, ours.bytes, None, why).unwrap();
                let error = [&[0; VNET_LEN][..], &error].concat();
                let read = Packet::of_frame(&error).unwrap().icmp_error().unwrap();
                let protocol = Protocol::Udp;
                assert_eq!(read, IcmpError { what, protocol, local: from, remote: to });
            }
        }
    }

    proptest! {
        #[test]
        fn no_bytes_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..160), kind in 0..6u8) {
            if bytes.len() > 30 && kind > 0 {
                bytes[..10].fill(0);
                bytes[10] = if kind < 3 { 0x45 } else { 0x60 };
                bytes[19] = [1, 6, 17][usize::from(kind % 3)];
            }
            if let Some(packet) = Packet::of_frame(&bytes) {
                packet.ports();
                packet.is_sound();
                packet.tcp_flags();
                packet.datagram();
                packet.echo_reply();
                packet.icmp_error();
            }
            leave_checksum(&mut bytes, Some(1));
        }
    }
}
