//! The `virtio_net_hdr` in front of a TUN frame (virtio 1.2, section 5.1.6):
//! who finishes the checksum, and how a super-packet is to be cut. TUN uses
//! the machine's byte order.

/// Bytes of the header.
pub const VNET_LEN: usize = 10;

const NEEDS_CSUM: u8 = 1;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_UDP_L4: u8 = 5;
const GSO_ECN: u8 = 0x80;

/// How a super-packet is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Gso {
    /// It is an ordinary packet.
    #[default]
    None,
    /// TCP over IPv4.
    TcpV4,
    /// TCP over IPv6.
    TcpV6,
    /// UDP, each segment a datagram.
    Udp,
}

/// The parsed header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Vnet {
    /// The checksum at `csum_start + csum_offset` holds only the pseudo
    /// header's sum.
    pub needs_csum: bool,
    /// How to cut it.
    pub gso: Gso,
    /// Length of all headers, a hint.
    pub hdr_len: u16,
    /// Payload bytes of each segment but the last.
    pub gso_size: u16,
    /// Where the checksum's range begins.
    pub csum_start: u16,
    /// Where in the range the checksum is.
    pub csum_offset: u16,
}

impl Vnet {
    /// Reads the header; `None` for a kind of super-packet we never asked for.
    pub fn parse(bytes: &[u8; VNET_LEN]) -> Option<Self> {
        let number = |at: usize| u16::from_ne_bytes([bytes[at], bytes[at + 1]]);
        let gso = match bytes[1] & !GSO_ECN {
            0 => Gso::None,
            GSO_TCPV4 => Gso::TcpV4,
            GSO_TCPV6 => Gso::TcpV6,
            GSO_UDP_L4 => Gso::Udp,
            _ => return None,
        };
        Some(Self {
            needs_csum: bytes[0] & NEEDS_CSUM != 0,
            gso,
            hdr_len: number(2),
            gso_size: number(4),
            csum_start: number(6),
            csum_offset: number(8),
        })
    }

    /// Writes the header.
    pub fn encode(&self, out: &mut [u8; VNET_LEN]) {
        out[0] = if self.needs_csum { NEEDS_CSUM } else { 0 };
        out[1] = match self.gso {
            Gso::None => 0,
            Gso::TcpV4 => GSO_TCPV4,
            Gso::TcpV6 => GSO_TCPV6,
            Gso::Udp => GSO_UDP_L4,
        };
        out[2..4].copy_from_slice(&self.hdr_len.to_ne_bytes());
        out[4..6].copy_from_slice(&self.gso_size.to_ne_bytes());
        out[6..8].copy_from_slice(&self.csum_start.to_ne_bytes());
        out[8..10].copy_from_slice(&self.csum_offset.to_ne_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_parses_encodes_to_the_same(bytes in any::<[u8; VNET_LEN]>()) {
            if let Some(vnet) = Vnet::parse(&bytes) {
                let mut out = [0; VNET_LEN];
                vnet.encode(&mut out);
                prop_assert_eq!(Vnet::parse(&out), Some(vnet));
                prop_assert_eq!(&out[2..], &bytes[2..]);
            }
        }
    }
}
