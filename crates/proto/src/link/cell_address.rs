//! Addresses of packets in cells: on the wire every client has the same one, at
//! both ends of a session this machine tells sessions apart by their own.
//!
//! In: a packet that comes out of a cell or goes into one, and whose it is. Out:
//! the packet with the other address, checksums and the quotes of ICMP errors
//! included. Deliberately not here: which packets are allowed.

use std::net::IpAddr;

use crate::onion::compartment::Compartment;
use crate::onion::session::{Lease, client_address};
use crate::packet::ip::Ip;
use crate::packet::nat::{self, Side};

/// Where the packets of a session come to light: at the exit or at the client.
#[derive(Debug, Clone, Copy)]
pub(super) enum End {
    Exit(Lease),
    Client(Compartment),
}

impl End {
    /// How this machine names the client; the wire has one name for all.
    fn own(self, v6: bool) -> IpAddr {
        match self {
            Self::Exit(lease) => lease.address(v6),
            Self::Client(compartment) => compartment.address(v6),
        }
    }
}

/// The client's address to be replaced in a packet, and in what an ICMP error
/// in it quotes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Renamed {
    side: Side,
    from: IpAddr,
    to: IpAddr,
}

impl Renamed {
    /// From the wire's name to ours, in what a cell brought.
    pub(super) fn arriving(end: End, v6: bool) -> Option<Self> {
        let side = match end {
            End::Exit(_) => Side::Source,
            End::Client(_) => Side::Destination,
        };
        Self { side, from: client_address(v6), to: end.own(v6) }.needed()
    }

    /// From ours to the wire's, in what a cell will carry.
    pub(super) fn leaving(end: End, v6: bool) -> Option<Self> {
        let side = match end {
            End::Exit(_) => Side::Destination,
            End::Client(_) => Side::Source,
        };
        Self { side, from: end.own(v6), to: client_address(v6) }.needed()
    }

    fn needed(self) -> Option<Self> {
        (self.from != self.to).then_some(self)
    }

    pub(super) fn back(self) -> Self {
        Self { from: self.to, to: self.from, ..self }
    }

    /// What is quoted went the other way.
    pub(super) fn apply(self, ip: &Ip, packet: &mut [u8], partial: bool) {
        nat::replace(ip, packet, self.side, self.to, partial);
        match self.side {
            Side::Source => nat::replace_quoted_destination(ip, packet, self.from, self.to),
            Side::Destination => nat::replace_quoted_source(ip, packet, self.from, self.to),
        }
    }
}
