//! Reading and rewriting the addresses and ports of frames, for translators
//! and firewalls on the way.
//!
//! Checksums are corrected by the difference (RFC 1624), so that a packet that
//! was damaged before stays damaged. Invariants: a frame that is not an
//! unfragmented IPv4 packet of UDP or TCP has no [`Flow`] and is never touched;
//! fragments carry no ports, so translators drop them, as simple routers do.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddrV4};

use warren_os::tun::VNET_HEADER_LEN;

use super::frame::fold;
use crate::nat::Protocol;

/// Protocol numbers (IANA).
const TCP: u8 = 6;
const UDP: u8 = 17;

/// In the flags of a `virtio_net_hdr`: the checksum field holds the sum of the
/// pseudo header only.
const NEEDS_CHECKSUM: u8 = 1;

/// What flows in an IPv4 packet, between which addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Flow {
    pub(super) protocol: Protocol,
    pub(super) source: SocketAddrV4,
    pub(super) destination: SocketAddrV4,
    /// Where the transport header starts in the frame.
    transport: usize,
}

/// Which end of a flow is rewritten.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    Source,
    Destination,
}

impl Flow {
    /// Reads a frame.
    pub(super) fn read(frame: &[u8]) -> Option<Self> {
        let packet = frame.get(VNET_HEADER_LEN..)?;
        let first = *packet.first()?;
        if first >> 4 != 4 {
            return None;
        }
        let header = usize::from(first & 0x0f) * 4;
        let place = u16::from_be_bytes(*packet.get(6..)?.first_chunk()?);
        let (more_fragments, offset) = (place & 0x2000 != 0, place & 0x1fff);
        if header < 20 || more_fragments || offset != 0 {
            return None;
        }
        let (protocol, needed) = match *packet.get(9)? {
            TCP => (Protocol::Tcp, 20),
            UDP => (Protocol::Udp, 8),
            _ => return None,
        };
        let transport = packet.get(header..header + needed)?;
        let address = |at: usize| Some(Ipv4Addr::from(*packet.get(at..)?.first_chunk::<4>()?));
        let port = |at: usize| u16::from_be_bytes([transport[at], transport[at + 1]]);
        Some(Self {
            protocol,
            source: SocketAddrV4::new(address(12)?, port(0)),
            destination: SocketAddrV4::new(address(16)?, port(2)),
            transport: VNET_HEADER_LEN + header,
        })
    }

    /// Writes another source or destination into the frame it was read from.
    pub(super) fn rewrite(&self, frame: &mut [u8], end: End, new: SocketAddrV4) {
        let (old, address_at, port_at) = match end {
            End::Source => (self.source, VNET_HEADER_LEN + 12, self.transport),
            End::Destination => (self.destination, VNET_HEADER_LEN + 16, self.transport + 2),
        };
        frame[address_at..address_at + 4].copy_from_slice(&new.ip().octets());
        frame[port_at..port_at + 2].copy_from_slice(&new.port().to_be_bytes());
        let address = Difference::default().of_address(*old.ip(), *new.ip());
        let both = address.of_word(old.port(), new.port());

        let header_checksum = VNET_HEADER_LEN + 10;
        change(frame, header_checksum, |checksum| !address.add(!checksum));
        let field = self.transport + if self.protocol == Protocol::Tcp { 16 } else { 6 };
        if frame[0] & NEEDS_CHECKSUM != 0 {
            // The sum of the pseudo header, not inverted; ports are not in it.
            change(frame, field, |sum| address.add(sum));
        } else {
            change(frame, field, |checksum| match (self.protocol, checksum) {
                // No checksum stays none (RFC 768).
                (Protocol::Udp, 0) => 0,
                (Protocol::Udp, checksum) => match !both.add(!checksum) {
                    0 => 0xffff,
                    checksum => checksum,
                },
                (Protocol::Tcp, checksum) => !both.add(!checksum),
            });
        }
    }
}

fn change(frame: &mut [u8], at: usize, f: impl FnOnce(u16) -> u16) {
    let value = f(u16::from_be_bytes([frame[at], frame[at + 1]]));
    frame[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

/// What a change of words adds to a sum in ones' complement.
#[derive(Debug, Clone, Copy, Default)]
struct Difference(u64);

impl Difference {
    fn of_word(self, old: u16, new: u16) -> Self {
        Self(self.0 + u64::from(!old) + u64::from(new))
    }

    fn of_address(self, old: Ipv4Addr, new: Ipv4Addr) -> Self {
        let words = |address: Ipv4Addr| {
            let bits = u32::from(address);
            ((bits >> 16) as u16, bits as u16)
        };
        let ((old_high, old_low), (new_high, new_low)) = (words(old), words(new));
        self.of_word(old_high, new_high).of_word(old_low, new_low)
    }

    fn add(self, sum: u16) -> u16 {
        fold(self.0 + u64::from(sum))
    }
}

/// Source and destination of any IP packet, and whether it is UDP or TCP, for
/// firewalls; IPv6 extension headers are not looked through.
pub(super) fn ends(frame: &[u8]) -> Option<(IpAddr, IpAddr, Option<Protocol>)> {
    let packet = frame.get(VNET_HEADER_LEN..)?;
    let v4 = |at: usize| Some(Ipv4Addr::from(*packet.get(at..)?.first_chunk::<4>()?).into());
    let v6 = |at: usize| Some(Ipv6Addr::from(*packet.get(at..)?.first_chunk::<16>()?).into());
    let (source, destination, number) = match packet.first()? >> 4 {
        4 => (v4(12)?, v4(16)?, packet[9]),
        6 => (v6(8)?, v6(24)?, packet[6]),
        _ => return None,
    };
    let protocol = match number {
        TCP => Some(Protocol::Tcp),
        UDP => Some(Protocol::Udp),
        _ => None,
    };
    Some((source, destination, protocol))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wan::frame::sum;

    fn at(text: &str) -> SocketAddrV4 {
        text.parse().unwrap()
    }

    /// A frame of UDP or TCP with right checksums, or with that of the
    /// transport left to hardware.
    fn frame(protocol: Protocol, source: &str, destination: &str, partial: bool) -> Vec<u8> {
        let (source, destination) = (at(source), at(destination));
        let (number, header, field) = match protocol {
            Protocol::Udp => (UDP, 8, 6),
            Protocol::Tcp => (TCP, 20, 16),
        };
        let mut packet = vec![0; 20 + header];
        packet.extend(b"seventeen bytes..");
        packet[0] = 0x45;
        packet[9] = number;
        packet[12..16].copy_from_slice(&source.ip().octets());
        packet[16..20].copy_from_slice(&destination.ip().octets());
        packet[20..22].copy_from_slice(&source.port().to_be_bytes());
        packet[22..24].copy_from_slice(&destination.port().to_be_bytes());
        let checksum = !fold(sum(&packet[..20]));
        packet[10..12].copy_from_slice(&checksum.to_be_bytes());
        let length = packet.len() - 20;
        let pseudo = sum(&packet[12..20]) + u64::from(number) + length as u64;
        let checksum = if partial { fold(pseudo) } else { !fold(pseudo + sum(&packet[20..])) };
        packet[20 + field..22 + field].copy_from_slice(&checksum.to_be_bytes());
        let mut frame = vec![0; VNET_HEADER_LEN];
        frame[0] = u8::from(partial);
        frame.extend(packet);
        frame
    }

    #[test]
    fn rewritten_frames_are_as_if_made_so() {
        let cases = [
            ("192.168.1.2:9277", "198.18.3.1:40000"),
            ("10.0.0.1:1", "255.255.255.255:65535"),
            ("255.255.255.255:65535", "10.0.0.1:1"),
            ("192.168.1.2:9277", "192.168.1.2:9277"),
        ];
        for protocol in [Protocol::Udp, Protocol::Tcp] {
            for partial in [false, true] {
                for (old, new) in cases {
                    let far = "198.18.200.1:53";
                    let mut leaving = frame(protocol, old, far, partial);
                    let flow = Flow::read(&leaving).unwrap();
                    assert_eq!((flow.source, flow.destination), (at(old), at(far)));
                    flow.rewrite(&mut leaving, End::Source, at(new));
                    assert_eq!(leaving, frame(protocol, new, far, partial));
                    let mut entering = frame(protocol, far, old, partial);
                    let flow = Flow::read(&entering).unwrap();
                    flow.rewrite(&mut entering, End::Destination, at(new));
                    assert_eq!(entering, frame(protocol, far, new, partial));
                }
            }
        }
    }

    #[test]
    fn damage_and_missing_checksums_stay() {
        let (old, new, far) = ("192.168.1.2:9277", "198.18.3.1:40000", "198.18.200.1:53");
        let mut damaged = frame(Protocol::Udp, old, far, false);
        *damaged.last_mut().unwrap() ^= 0x40;
        Flow::read(&damaged).unwrap().rewrite(&mut damaged, End::Source, at(new));
        let mut expected = frame(Protocol::Udp, new, far, false);
        *expected.last_mut().unwrap() ^= 0x40;
        assert_eq!(damaged, expected);
        let mut without = frame(Protocol::Udp, old, far, false);
        let field = VNET_HEADER_LEN + 26;
        without[field..field + 2].fill(0);
        Flow::read(&without).unwrap().rewrite(&mut without, End::Source, at(new));
        assert_eq!(without[field..field + 2], [0, 0]);
    }

    #[test]
    fn what_has_no_ports_has_no_flow() {
        let good = frame(Protocol::Tcp, "10.0.0.1:1", "10.0.0.2:2", false);
        assert!(Flow::read(&good).is_some());
        for length in 0..VNET_HEADER_LEN + 40 {
            assert_eq!(Flow::read(&good[..length]), None, "{length}");
        }
        let changed = |at: usize, value: u8| {
            let mut frame = good.clone();
            frame[VNET_HEADER_LEN + at] = value;
            Flow::read(&frame)
        };
        assert_eq!(changed(0, 0x65), None, "IPv6");
        assert_eq!(changed(0, 0x44), None, "a header too short");
        assert_eq!(changed(0, 0x4f), None, "a header too long");
        assert_eq!(changed(6, 0x20), None, "a first fragment");
        assert_eq!(changed(7, 1), None, "a later fragment");
        assert_eq!(changed(9, 1), None, "ICMP");
        assert!(changed(6, 0x40).is_some(), "one that must not be fragmented");
    }

    #[test]
    fn firewalls_see_both_families() {
        let udp = frame(Protocol::Udp, "10.0.0.1:1", "10.0.0.2:2", false);
        let (from, to) = ("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap());
        assert_eq!(ends(&udp), Some((from, to, Some(Protocol::Udp))));
        let mut v6 = vec![0; VNET_HEADER_LEN + 40];
        v6[VNET_HEADER_LEN] = 0x60;
        v6[VNET_HEADER_LEN + 6] = TCP;
        let any: IpAddr = "::".parse().unwrap();
        assert_eq!(ends(&v6), Some((any, any, Some(Protocol::Tcp))));
        for length in 0..VNET_HEADER_LEN + 40 {
            assert_eq!(ends(&v6[..length]), None);
        }
    }
}
