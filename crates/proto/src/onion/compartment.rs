//! A client's sessions beside its first, and by which addresses its own machine
//! tells them apart.
//!
//! On the wire all sessions of all clients have the same inner address. Inside
//! the machine whoever makes packets for one of several sessions gives them that
//! session's compartment's address; workers put the common one in its place
//! before a cell is sealed, and back after one was opened. So a packet's source
//! says which session it goes through, and no packet of one compartment can
//! leave through another's. The addresses are never on the wire.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::session::{CLIENT_V4, CLIENT_V6, client_address};

/// Which of our own sessions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Compartment(u16);

impl Compartment {
    /// The first session, whose packets have the common address all the way.
    pub const DEFAULT: Self = Self(0);

    /// Another one; `None` for 0 and 65535.
    pub fn isolated(index: u16) -> Option<Self> {
        (index != 0 && index != u16::MAX).then_some(Self(index))
    }

    /// Its index; 0 is the first session's.
    pub fn index(self) -> u16 {
        self.0
    }

    /// Its address of a family: the common one, or in 240.1.0.0/16 or
    /// fd77:6172:7265:6e02::/64.
    #[inline]
    pub fn address(self, v6: bool) -> IpAddr {
        let [a, b] = self.0.to_be_bytes();
        match v6 {
            _ if self == Self::DEFAULT => client_address(v6),
            false => Ipv4Addr::new(240, 1, a, b).into(),
            true => Ipv6Addr::new(0xfd77, 0x6172, 0x7265, 0x6e02, 0, 0, 0, self.0).into(),
        }
    }

    /// The compartment that has an address.
    #[inline]
    pub fn of(address: IpAddr) -> Option<Self> {
        match address {
            IpAddr::V4(CLIENT_V4) | IpAddr::V6(CLIENT_V6) => Some(Self::DEFAULT),
            IpAddr::V4(v4) => match v4.octets() {
                [240, 1, a, b] => Self::isolated(u16::from_be_bytes([a, b])),
                _ => None,
            },
            IpAddr::V6(v6) => match v6.segments() {
                [0xfd77, 0x6172, 0x7265, 0x6e02, 0, 0, 0, index] => Self::isolated(index),
                _ => None,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compartments_are_found_by_their_addresses() {
        for index in [1, 255, 256, 0xfffe] {
            let compartment = Compartment::isolated(index).unwrap();
            assert_eq!(compartment.index(), index);
            for v6 in [false, true] {
                assert_eq!(compartment.address(v6).is_ipv6(), v6);
                assert_eq!(Compartment::of(compartment.address(v6)), Some(compartment));
            }
        }
        for v6 in [false, true] {
            assert_eq!(Compartment::DEFAULT.address(v6), client_address(v6));
            assert_eq!(Compartment::of(client_address(v6)), Some(Compartment::DEFAULT));
        }
        for other in ["240.1.0.0", "240.1.255.255", "240.0.0.1", "192.0.0.1", "fd77::1"] {
            assert_eq!(Compartment::of(other.parse().unwrap()), None, "{other}");
        }
        assert_eq!((Compartment::isolated(0), Compartment::isolated(u16::MAX)), (None, None));
    }
}
