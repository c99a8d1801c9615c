//! Where the headers of an IP packet are, and what they say. One parse, then
//! plain offsets; IPv6 extension headers and fragments are understood.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Protocol number of ICMP.
pub const PROTO_ICMP: u8 = 1;
/// Protocol number of TCP.
pub const PROTO_TCP: u8 = 6;
/// Protocol number of UDP.
pub const PROTO_UDP: u8 = 17;
/// Protocol number of ICMPv6.
pub const PROTO_ICMPV6: u8 = 58;

/// Bytes of an IPv4 header without options.
pub const IPV4_HEADER: usize = 20;
/// Bytes of the fixed IPv6 header.
pub const IPV6_HEADER: usize = 40;
/// Bytes of a TCP header without options.
pub const TCP_HEADER: usize = 20;
/// Bytes of a UDP header.
pub const UDP_HEADER: usize = 8;

/// Whether a packet is a fragment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fragment {
    /// It is whole.
    No,
    /// The first fragment: the transport header may be there, the rest is not.
    First,
    /// A later fragment: there is no transport header.
    Later,
}

/// The layout of one IP packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ip {
    /// IPv6, else IPv4.
    pub v6: bool,
    /// Offset of the transport header: past options and extension headers.
    pub transport: usize,
    /// Length the header claims; at most the bytes given.
    pub total_len: usize,
    /// Protocol of the transport header.
    pub protocol: u8,
    /// Whether it is a fragment.
    pub fragment: Fragment,
}

/// Offset and size of the header of a whole TCP or UDP packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// TCP, with the length of its header including options.
    Tcp {
        /// Bytes, 20 to 60.
        header: usize,
    },
    /// UDP.
    Udp,
}

impl Transport {
    /// Bytes of the transport header.
    pub fn header_len(self) -> usize {
        match self {
            Self::Tcp { header } => header,
            Self::Udp => UDP_HEADER,
        }
    }

    /// Offset of the checksum field in the transport header.
    pub fn checksum_offset(self) -> usize {
        match self {
            Self::Tcp { .. } => 16,
            Self::Udp => 6,
        }
    }

    /// Its protocol number.
    pub fn protocol(self) -> u8 {
        match self {
            Self::Tcp { .. } => PROTO_TCP,
            Self::Udp => PROTO_UDP,
        }
    }
}

impl Ip {
    /// Reads the headers at the start of `packet`, which may have bytes behind
    /// the packet (padding). `None` when it is no complete IP packet.
    pub fn parse(packet: &[u8]) -> Option<Self> {
        match packet.first()? >> 4 {
            4 => Self::parse_v4(packet),
            6 => Self::parse_v6(packet),
            _ => None,
        }
    }

    fn parse_v4(packet: &[u8]) -> Option<Self> {
        let fixed = packet.first_chunk::<IPV4_HEADER>()?;
        let transport = usize::from(fixed[0] & 0xf) * 4;
        let total_len = usize::from(u16::from_be_bytes([fixed[2], fixed[3]]));
        if transport < IPV4_HEADER || total_len < transport || total_len > packet.len() {
            return None;
        }
        let fragment = match u16::from_be_bytes([fixed[6], fixed[7]]) & 0x3fff {
            0 => Fragment::No,
            0x2000 => Fragment::First,
            _ => Fragment::Later,
        };
        Some(Self { v6: false, transport, total_len, protocol: fixed[9], fragment })
    }

    fn parse_v6(packet: &[u8]) -> Option<Self> {
        let fixed = packet.first_chunk::<IPV6_HEADER>()?;
        let total_len = IPV6_HEADER + usize::from(u16::from_be_bytes([fixed[4], fixed[5]]));
        if total_len > packet.len() {
            return None;
        }
        let mut ip = Self {
            v6: true,
            transport: IPV6_HEADER,
            total_len,
            protocol: fixed[6],
            fragment: Fragment::No,
        };
        // Each round moves at least 8 bytes on, so this ends.
        loop {
            let at = ip.transport;
            let length = match ip.protocol {
                // Hop-by-hop, routing, destination options, mobility, HIP, shim6.
                0 | 43 | 60 | 135 | 139 | 140 => {
                    let head = packet.get(at..at + 8)?;
                    (usize::from(head[1]) + 1) * 8
                }
                // Authentication counts in words of 4 bytes, less 2.
                51 => {
                    let head = packet.get(at..at + 8)?;
                    ((usize::from(head[1]) + 2) * 4).max(8)
                }
                44 => {
                    let head = packet.get(at..at + 8)?;
                    let field = u16::from_be_bytes([head[2], head[3]]);
                    if field & 0xfff8 != 0 {
                        ip.protocol = head[0];
                        ip.transport = at + 8;
                        ip.fragment = Fragment::Later;
                        return (ip.transport <= total_len).then_some(ip);
                    }
                    // An "atomic" fragment (offset 0, no more) is a whole packet.
                    if field & 1 != 0 {
                        ip.fragment = Fragment::First;
                    }
                    8
                }
                _ => return Some(ip),
            };
            ip.protocol = packet[at];
            ip.transport = at + length;
            if ip.transport > total_len {
                return None;
            }
        }
    }

    /// Source address. `packet` must be the bytes that were parsed.
    pub fn source(&self, packet: &[u8]) -> IpAddr {
        self.address(packet, 12, 8)
    }

    /// Destination address. `packet` must be the bytes that were parsed.
    pub fn destination(&self, packet: &[u8]) -> IpAddr {
        self.address(packet, 16, 24)
    }

    fn address(&self, packet: &[u8], v4: usize, v6: usize) -> IpAddr {
        if self.v6 {
            let bytes = packet.get(v6..).and_then(|rest| rest.first_chunk::<16>());
            Ipv6Addr::from(bytes.copied().unwrap_or_default()).into()
        } else {
            let bytes = packet.get(v4..).and_then(|rest| rest.first_chunk::<4>());
            Ipv4Addr::from(bytes.copied().unwrap_or_default()).into()
        }
    }

    /// Both addresses as bytes, for comparisons and pseudo headers; empty for
    /// bytes that were not the parsed ones.
    pub fn addresses<'a>(&self, packet: &'a [u8]) -> &'a [u8] {
        let range = if self.v6 { 8..40 } else { 12..20 };
        packet.get(range).unwrap_or_default()
    }

    /// Type of service or traffic class.
    pub fn tos(&self, packet: &[u8]) -> u8 {
        match packet {
            [a, b, ..] if self.v6 => (a << 4) | (b >> 4),
            [_, b, ..] => *b,
            _ => 0,
        }
    }

    /// The transport header, when the packet is whole and its TCP or UDP
    /// header complete.
    pub fn tcp_or_udp(&self, packet: &[u8]) -> Option<Transport> {
        if self.fragment != Fragment::No {
            return None;
        }
        let room = self.total_len.checked_sub(self.transport)?;
        let transport = match self.protocol {
            PROTO_TCP => {
                let header = usize::from(packet.get(self.transport + 12)? >> 4) * 4;
                if header < TCP_HEADER {
                    return None;
                }
                Transport::Tcp { header }
            }
            PROTO_UDP => Transport::Udp,
            _ => return None,
        };
        (transport.header_len() <= room && self.total_len <= packet.len()).then_some(transport)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A UDP packet between fixed addresses, checksum left zero.
    pub(crate) fn v6_with_extensions(
        extensions: &[(u8, Vec<u8>)],
        last: u8,
        rest: &[u8],
    ) -> Vec<u8> {
        let mut body = Vec::new();
        let mut kinds: Vec<u8> = extensions.iter().map(|(kind, _)| *kind).collect();
        kinds.push(last);
        for (i, (_, bytes)) in extensions.iter().enumerate() {
            let at = body.len();
            body.extend_from_slice(bytes);
            body[at] = kinds[i + 1];
        }
        body.extend_from_slice(rest);
        let mut packet = vec![0x60, 0, 0, 0, 0, 0, kinds[0], 64];
        packet[4..6].copy_from_slice(&(body.len() as u16).to_be_bytes());
        packet.extend_from_slice(&[0xfd; 16]);
        packet.extend_from_slice(&[0xfc; 16]);
        packet.extend_from_slice(&body);
        packet
    }

    #[test]
    fn extension_headers_are_walked() {
        let hop = (0u8, vec![0; 8]);
        let long = (60u8, {
            let mut b = vec![0; 24];
            b[1] = 2;
            b
        });
        let auth = (51u8, {
            let mut b = vec![0; 24];
            b[1] = 4;
            b
        });
        let packet = v6_with_extensions(&[hop, long, auth], PROTO_UDP, &[0; 12]);
        let ip = Ip::parse(&packet).unwrap();
        assert_eq!((ip.protocol, ip.transport), (PROTO_UDP, 40 + 8 + 24 + 24));
        assert_eq!(ip.tcp_or_udp(&packet), Some(Transport::Udp));
        // Each cut inside the extension headers is refused.
        for len in 40..40 + 8 + 24 + 24 {
            let mut cut = packet[..len].to_vec();
            cut[4..6].copy_from_slice(&((len - 40) as u16).to_be_bytes());
            assert_eq!(Ip::parse(&cut), None, "{len}");
        }
    }

    #[test]
    fn fragments_have_no_transport_header() {
        for (field, expected) in
            [(0u16, Fragment::No), (1, Fragment::First), (8, Fragment::Later), (9, Fragment::Later)]
        {
            let mut fragment = vec![0; 8];
            fragment[2..4].copy_from_slice(&field.to_be_bytes());
            let packet = v6_with_extensions(&[(44, fragment)], PROTO_UDP, &[0; 8]);
            let ip = Ip::parse(&packet).unwrap();
            assert_eq!(ip.fragment, expected);
            assert_eq!(ip.tcp_or_udp(&packet).is_some(), expected == Fragment::No);
        }
        let mut v4 = [0u8; 28];
        v4[..4].copy_from_slice(&[0x45, 0, 0, 28]);
        v4[9] = PROTO_UDP;
        for (field, expected) in [
            (0x4000u16, Fragment::No),
            (0x2000, Fragment::First),
            (5, Fragment::Later),
            (0x2005, Fragment::Later),
        ] {
            v4[6..8].copy_from_slice(&field.to_be_bytes());
            assert_eq!(Ip::parse(&v4).unwrap().fragment, expected, "{field:x}");
        }
    }

    #[test]
    fn impossible_lengths_are_refused() {
        let mut v4 = [0u8; 40];
        v4[..4].copy_from_slice(&[0x45, 0, 0, 40]);
        v4[9] = PROTO_TCP;
        v4[32] = 0x50;
        assert!(Ip::parse(&v4).unwrap().tcp_or_udp(&v4).is_some());
        for (at, value) in [(0, 0x44), (0, 0x4f), (0, 0x55), (3, 41), (3, 19)] {
            let mut bad = v4;
            bad[at] = value;
            assert_eq!(Ip::parse(&bad), None, "{at} {value:x}");
        }
        for offset in [0x40, 0x60] {
            let mut bad = v4;
            bad[32] = offset;
            assert_eq!(Ip::parse(&bad).unwrap().tcp_or_udp(&bad), None);
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..200), version in 0..3u8) {
            if let (Some(first), true) = (bytes.first_mut(), version > 0) {
                *first = (*first & 0xf) | if version == 1 { 0x40 } else { 0x60 };
            }
            if let Some(ip) = Ip::parse(&bytes) {
                prop_assert!(ip.transport <= ip.total_len && ip.total_len <= bytes.len());
                ip.tos(&bytes);
                ip.source(&bytes);
                ip.destination(&bytes);
                if let Some(transport) = ip.tcp_or_udp(&bytes) {
                    prop_assert!(ip.transport + transport.header_len() <= ip.total_len);
                }
            }
        }
    }
}
