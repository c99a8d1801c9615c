//! ICMP and ICMPv6 echo, as `ping` does it, for checks that must not depend on
//! a tool being installed.
//!
//! Deliberately not here: statistics over many pings.

use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};

const ECHO_REQUEST: u8 = 8;
const ECHO_REPLY: u8 = 0;
const ECHO_REQUEST_V6: u8 = 128;
const ECHO_REPLY_V6: u8 = 129;
/// Type, code, checksum, identifier, sequence (RFC 792, RFC 4443).
const HEADER_LEN: usize = 8;
/// Longest payload of an echo request over IPv4, bytes.
const MAX_PAYLOAD: usize = 65_507;

/// Sends echo requests to one address, from the network namespace it was
/// opened in. Takes `CAP_NET_RAW`.
#[derive(Debug)]
pub struct Pinger {
    socket: Socket,
    to: IpAddr,
    identifier: u16,
    sequence: u16,
}

impl Pinger {
    /// A pinger of one address. `identifier` tells its answers from those of
    /// others on this machine.
    ///
    /// # Errors
    /// `PermissionDenied` without `CAP_NET_RAW`.
    pub fn open(to: IpAddr, identifier: u16) -> io::Result<Self> {
        let (domain, protocol, any): (_, _, IpAddr) = match to {
            IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4, Ipv4Addr::UNSPECIFIED.into()),
            IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6, Ipv6Addr::UNSPECIFIED.into()),
        };
        let socket = Socket::new(domain, Type::RAW, Some(protocol))?;
        socket.bind(&SocketAddr::new(any, 0).into())?;
        socket.connect(&SocketAddr::new(to, 0).into())?;
        Ok(Self { socket, to, identifier, sequence: 0 })
    }

    /// Sends one request with `payload` bytes (at most 65507) and waits for
    /// its answer.
    ///
    /// # Errors
    /// `TimedOut` without an answer, `InvalidData` when the answer does not
    /// carry what was sent, else the kernel's, as for a packet longer than the
    /// path's MTU.
    pub fn ping(&mut self, payload: usize, patience: Duration) -> io::Result<Duration> {
        self.sequence = self.sequence.wrapping_add(1);
        let request = self.request(payload.min(MAX_PAYLOAD));
        let start = Instant::now();
        let deadline = start + patience;
        self.socket.send(&request)?;
        let mut buffer = vec![0; 60 + HEADER_LEN + MAX_PAYLOAD];
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            self.socket.set_read_timeout(Some(left))?;
            let length = match (&self.socket).read(&mut buffer) {
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            let took = start.elapsed();
            if let Some(body) = self.answer(&buffer[..length]) {
                if body != &request[HEADER_LEN..] {
                    return Err(io::Error::new(io::ErrorKind::InvalidData, "garbled echo"));
                }
                return Ok(took);
            }
        }
    }

    fn request(&self, payload: usize) -> Vec<u8> {
        let mut packet = vec![0; HEADER_LEN + payload];
        packet[0] = if self.to.is_ipv4() { ECHO_REQUEST } else { ECHO_REQUEST_V6 };
        packet[4..6].copy_from_slice(&self.identifier.to_be_bytes());
        packet[6..8].copy_from_slice(&self.sequence.to_be_bytes());
        for (i, byte) in packet[HEADER_LEN..].iter_mut().enumerate() {
            *byte = (i as u8).wrapping_mul(37) ^ self.sequence as u8;
        }
        // The kernel computes the checksum of ICMPv6 (RFC 3542, 3.1).
        if self.to.is_ipv4() {
            let checksum = checksum(&packet).to_be_bytes();
            packet[2..4].copy_from_slice(&checksum);
        }
        packet
    }

    /// The payload, when the packet answers the last request. Raw IPv4 sockets
    /// deliver the IP header too, IPv6 ones do not (RFC 3542).
    fn answer<'a>(&self, packet: &'a [u8]) -> Option<&'a [u8]> {
        let (message, kind) = match self.to {
            IpAddr::V4(_) => {
                let header = usize::from(packet.first()? & 0x0f) * 4;
                (packet.get(header..)?, ECHO_REPLY)
            }
            IpAddr::V6(_) => (packet, ECHO_REPLY_V6),
        };
        let (header, body) = message.split_at_checked(HEADER_LEN)?;
        let ours = header[0] == kind
            && header[4..6] == self.identifier.to_be_bytes()
            && header[6..8] == self.sequence.to_be_bytes();
        ours.then_some(body)
    }
}

/// An unprivileged echo socket to one host, non-blocking: what is sent is an
/// echo request without its checksum, whose identifier the kernel replaces; what
/// is received is an echo reply. The kernel's `net.ipv4.ping_group_range` says
/// who may have one.
///
/// # Errors
/// `PermissionDenied` where this user may not, else the kernel's.
pub fn echo_socket(to: IpAddr) -> io::Result<std::net::UdpSocket> {
    let (domain, protocol) = match to {
        IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4),
        IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6),
    };
    let socket = Socket::new(domain, Type::DGRAM, Some(protocol))?;
    socket.connect(&SocketAddr::new(to, 0).into())?;
    socket.set_nonblocking(true)?;
    // Reading and writing is the same for all datagram sockets.
    Ok(socket.into())
}

/// RFC 1071.
fn checksum(data: &[u8]) -> u16 {
    let mut sum: u32 = data
        .chunks(2)
        .map(|word| u32::from(u16::from_be_bytes([word[0], *word.get(1).unwrap_or(&0)])))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netns::{NetNamespace, is_privileged};

    #[test]
    fn this_machine_answers() {
        if !is_privileged() {
            println!("SKIPPED: no privilege for raw sockets here");
            return;
        }
        let namespace = NetNamespace::create().unwrap();
        for to in ["127.0.0.1", "::1"] {
            let to: IpAddr = to.parse().unwrap();
            let mut pinger = namespace.run(|| Pinger::open(to, 77)).unwrap().unwrap();
            for payload in [0, 1, 56, 1400, 20_000] {
                assert!(pinger.ping(payload, Duration::from_secs(2)).unwrap().as_secs() < 2);
            }
        }
        let nobody = namespace.run(|| Pinger::open("192.0.2.1".parse().unwrap(), 77)).unwrap();
        assert!(nobody.is_err(), "no route");
    }

    #[test]
    fn odd_answers_are_ignored() {
        let Ok(mut pinger) = Pinger::open("127.0.0.1".parse().unwrap(), 78) else {
            println!("SKIPPED: no privilege for raw sockets here");
            return;
        };
        pinger.sequence = 5;
        for length in 0..28 {
            assert_eq!(pinger.answer(&[0x45; 28][..length]), None);
        }
        let mut good = vec![0; 28];
        good[0] = 0x45;
        good[24..28].copy_from_slice(&[0, 78, 0, 5]);
        assert_eq!(pinger.answer(&good), Some(&[][..]));
        good[27] = 6;
        assert_eq!(pinger.answer(&good), None, "an earlier request's");
        assert_eq!(checksum(&[0x08, 0, 0, 0, 0x12]), !0x1a00);
    }
}
