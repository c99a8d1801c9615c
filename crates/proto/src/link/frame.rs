//! Link frames: what two Warren nodes say to each other inside a session,
//! beside IP packets. An inner payload whose first byte is below 0x10 is a
//! frame (an IP packet starts with 0x4 or 0x6 in its high bits).
//!
//! ```text
//! echo request: 0x01 | 0 0 0 | id 4 LE | token 8 LE | zeros, 32 or more
//! echo reply:   0x02 | 0 0 0 | id 4 LE | token 8 LE | received 8 LE | address 18 | 0 x 6
//! candidates:   0x04 | count | flags | 0 | count x address 18
//! cells:        0x05 to 0x09, see [`crate::onion::cell`]
//! address:      IPv6 or IPv4-mapped 16 | port 2 LE
//! ```
//! A request may be padded with zeros to any size, to probe the path's MTU, and
//! is never shorter than its reply. Unknown frames are ignored.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use crate::path::MAX_TOLD;

/// Bytes of an echo without padding.
pub const ECHO_LEN: usize = 48;
/// Bytes of an address.
const ADDRESS_LEN: usize = 18;

const REQUEST: u8 = 1;
const REPLY: u8 = 2;
const RELAY: u8 = 3;
const CANDIDATES: u8 = 4;
/// Flag of a candidates frame: tell yours as well.
const FLAG_ANSWER: u8 = 1;

/// True when an inner payload is a link frame and not an IP packet.
pub fn is_frame(payload: &[u8]) -> bool {
    payload.first().is_some_and(|first| *first < 0x10)
}

/// Messages of a link counted at one end, since some start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tally {
    /// IP packets, cells, and relay frames that are traffic of the link.
    pub data: u64,
    /// Smaller relay frames; 48 bits on the wire.
    pub quiet: u64,
}

impl Tally {
    /// What an inner payload counts as; nothing for link frames.
    pub fn of(payload: &[u8]) -> Self {
        let is = |yes: bool| Self { data: u64::from(yes), quiet: 0 };
        match payload.first() {
            Some(&RELAY) if super::relay::traffic(payload.len()).is_none() => {
                Self { data: 0, quiet: 1 }
            }
            Some(&RELAY) => is(true),
            Some(first) => is(*first >= 0x10 || crate::onion::cell::is_cell(payload)),
            None => is(false),
        }
    }

    /// All together.
    pub fn all(self) -> u64 {
        self.data.saturating_add(self.quiet)
    }
}

impl std::ops::AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.data += other.data;
        self.quiet += other.quiet;
    }
}

/// A link frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// Asks for an [`Frame::EchoReply`] with the same numbers.
    EchoRequest {
        /// Chosen by the sender, tells its requests apart.
        id: u32,
        /// Random: who answers has received the request.
        token: u64,
    },
    /// The answer, sent to where the request came from.
    EchoReply {
        /// As in the request.
        id: u32,
        /// As in the request.
        token: u64,
        /// Received from the asking node, over all paths.
        received: Tally,
        /// Where the request came from; `None` when that is no socket address.
        observed: Option<SocketAddr>,
    },
    /// Where the sender may be reached, as far as it knows.
    Candidates {
        /// At most [`MAX_TOLD`].
        addresses: Vec<SocketAddr>,
        /// Asks for the receiver's own.
        answer: bool,
    },
}

fn read_address(bytes: &[u8; ADDRESS_LEN]) -> SocketAddr {
    let (ip, port) = bytes.split_first_chunk::<16>().expect("18 bytes");
    let ip = IpAddr::V6(Ipv6Addr::from(*ip)).to_canonical();
    SocketAddr::new(ip, u16::from_le_bytes([port[0], port[1]]))
}

fn write_address(address: SocketAddr) -> [u8; ADDRESS_LEN] {
    let ip = match address.ip() {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    };
    let mut out = [0; ADDRESS_LEN];
    out[..16].copy_from_slice(&ip.octets());
    out[16..].copy_from_slice(&address.port().to_le_bytes());
    out
}

impl Frame {
    /// Reads a frame; `None` when it is unknown, cut short, too long, or its
    /// reserved or padding bytes are not zero.
    pub fn parse(payload: &[u8]) -> Option<Self> {
        match *payload.first()? {
            REQUEST | REPLY => Self::parse_echo(payload),
            CANDIDATES => Self::parse_candidates(payload),
            _ => None,
        }
    }

    fn parse_echo(payload: &[u8]) -> Option<Self> {
        let (head, padding) = payload.split_first_chunk::<ECHO_LEN>()?;
        if head[1..4] != [0; 3] || padding.iter().any(|b| *b != 0) {
            return None;
        }
        let id = u32::from_le_bytes(head[4..8].try_into().ok()?);
        let token = u64::from_le_bytes(head[8..16].try_into().ok()?);
        if head[0] == REQUEST {
            let zero = head[16..].iter().all(|b| *b == 0);
            return zero.then_some(Self::EchoRequest { id, token });
        }
        if !padding.is_empty() {
            return None;
        }
        let mut quiet = [0; 8];
        quiet[..6].copy_from_slice(&head[42..]);
        let received = Tally {
            data: u64::from_le_bytes(head[16..24].try_into().ok()?),
            quiet: u64::from_le_bytes(quiet),
        };
        let address: &[u8; ADDRESS_LEN] = head[24..42].try_into().ok()?;
        let observed = (*address != [0; ADDRESS_LEN]).then(|| read_address(address));
        Some(Self::EchoReply { id, token, received, observed })
    }

    fn parse_candidates(payload: &[u8]) -> Option<Self> {
        let (&[_, count, flags, zero], list) = payload.split_first_chunk::<4>()?;
        let count = usize::from(count);
        if zero != 0 || flags & !FLAG_ANSWER != 0 || count > MAX_TOLD {
            return None;
        }
        let (addresses, rest) = list.as_chunks::<ADDRESS_LEN>();
        if addresses.len() != count || !rest.is_empty() {
            return None;
        }
        let addresses = addresses.iter().map(read_address).collect();
        Some(Self::Candidates { addresses, answer: flags & FLAG_ANSWER != 0 })
    }

    /// The wire form. Requests are padded with zeros to `size`; it is ignored
    /// for other frames. Of more than [`MAX_TOLD`] addresses the first count.
    pub fn encode(&self, size: usize) -> Vec<u8> {
        match self {
            Self::EchoRequest { id, token } => {
                let mut out = vec![0; size.max(ECHO_LEN)];
                write_echo(&mut out, REQUEST, *id, *token);
                out
            }
            Self::EchoReply { id, token, received, observed } => {
                let mut out = vec![0; ECHO_LEN];
                write_echo(&mut out, REPLY, *id, *token);
                out[16..24].copy_from_slice(&received.data.to_le_bytes());
                out[42..].copy_from_slice(&received.quiet.to_le_bytes()[..6]);
                if let Some(observed) = observed {
                    out[24..42].copy_from_slice(&write_address(*observed));
                }
                out
            }
            Self::Candidates { addresses, answer } => {
                let addresses = &addresses[..addresses.len().min(MAX_TOLD)];
                let flags = if *answer { FLAG_ANSWER } else { 0 };
                let mut out = vec![CANDIDATES, addresses.len() as u8, flags, 0];
                out.extend(addresses.iter().flat_map(|address| write_address(*address)));
                out
            }
        }
    }
}

fn write_echo(out: &mut [u8], kind: u8, id: u32, token: u64) {
    out[0] = kind;
    out[4..8].copy_from_slice(&id.to_le_bytes());
    out[8..16].copy_from_slice(&token.to_le_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn echoes_round_trip_and_odd_ones_are_ignored() {
        let request = Frame::EchoRequest { id: 7, token: u64::MAX - 1 };
        for size in [0, 48, 49, 1420] {
            let wire = request.encode(size);
            assert_eq!(wire.len(), size.max(ECHO_LEN));
            assert!(is_frame(&wire) && Tally::of(&wire).all() == 0);
            assert_eq!(Frame::parse(&wire), Some(request.clone()));
        }
        let wire = request.encode(52);
        for i in [0, 1, 2, 3, 16, 47, 48, 51] {
            let mut bad = wire.clone();
            bad[i] ^= 0x80;
            assert_eq!(Frame::parse(&bad), None, "byte {i}");
        }
        assert_eq!(Frame::parse(&wire[..47]), None);
        for observed in [None, Some("192.0.2.7:9"), Some("[2001:db8::7]:51820")] {
            let observed = observed.map(|text| text.parse().unwrap());
            let reply = Frame::EchoReply {
                id: 8,
                token: 9,
                received: Tally { data: 1 << 40, quiet: 3 << 40 },
                observed,
            };
            let mut wire = reply.encode(1420);
            assert_eq!(wire.len(), ECHO_LEN);
            assert_eq!(Frame::parse(&wire), Some(reply));
            wire.push(0);
            assert_eq!(Frame::parse(&wire), None);
        }
        assert!(!is_frame(&[]) && Tally::of(&[]).all() == 0);
        assert!(!is_frame(&[0x45]) && Tally::of(&[0x45]) == Tally { data: 1, quiet: 0 });
        assert_eq!(Tally::of(&[RELAY; 257]), Tally { data: 1, quiet: 0 });
        assert_eq!(Tally::of(&[RELAY; 256]), Tally { data: 0, quiet: 1 }, "probes of others");
    }

    #[test]
    fn candidates_round_trip_and_are_bounded() {
        for count in [0, 1, 2, MAX_TOLD] {
            let addresses = (0..count).map(|n| SocketAddr::from(([192, 0, 2, 1], n as u16)));
            let frame = Frame::Candidates { addresses: addresses.collect(), answer: count == 2 };
            let wire = frame.encode(0);
            assert_eq!(wire.len(), 4 + 18 * count);
            assert_eq!(Frame::parse(&wire), Some(frame));
            for cut in 1..wire.len() {
                assert_eq!(Frame::parse(&wire[..cut]), None);
            }
        }
        let many = vec![SocketAddr::from(([192, 0, 2, 1], 1)); 20];
        let wire = Frame::Candidates { addresses: many, answer: false }.encode(0);
        assert!(matches!(Frame::parse(&wire),
            Some(Frame::Candidates { addresses, .. }) if addresses.len() == MAX_TOLD));
        assert_eq!(Frame::parse(&[4, 0, 2, 0]), None);
        assert_eq!(Frame::parse(&[4, 0, 0, 1]), None);
        assert_eq!(Frame::parse(&[[4, 17, 0, 0].as_slice(), &[1; 17 * 18]].concat()), None);
    }
}
