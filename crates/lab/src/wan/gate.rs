//! What stands between hosts and the WAN: a router that translates addresses,
//! with one or more hosts behind it, and firewalls.
//!
//! Leaving packets are translated and judged when they are sent, entering ones
//! when they arrive, as their time on the way decides whether a hole was
//! punched before them. A packet to the router's own outside address is
//! dropped (no hairpins); hosts behind one router reach each other by their
//! inside addresses. Behind a router there is no IPv6.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Instant;

use super::translate::{End, Flow, ends};
use crate::nat::{Nat, Protocol};

/// The network behind every router: the same everywhere, as in life, so that
/// inside addresses mean nothing to others.
pub(super) const INSIDE_NET: (Ipv4Addr, u8) = (Ipv4Addr::new(192, 168, 1, 0), 24);

/// The router's own inside address.
pub(super) const INSIDE_ROUTER: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 1);

/// Hosts behind one router.
const MAX_INSIDE: u8 = 200;

/// Whom a firewall lets a host talk with over one protocol.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Reach {
    /// Everybody.
    #[default]
    Everybody,
    /// These outside addresses.
    Only(BTreeSet<IpAddr>),
    /// Nobody.
    Nobody,
}

impl Reach {
    fn includes(&self, address: IpAddr) -> bool {
        match self {
            Self::Everybody => true,
            Self::Only(some) => some.contains(&address),
            Self::Nobody => false,
        }
    }
}

/// A firewall in front of a host; what it forbids vanishes in both directions.
/// Other protocols than these two pass.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Firewall {
    /// Over UDP.
    pub udp: Reach,
    /// Over TCP.
    pub tcp: Reach,
}

impl Firewall {
    /// UDP with nobody but one address; TCP with everybody.
    #[must_use]
    pub fn udp_only_with(address: IpAddr) -> Self {
        Self { udp: Reach::Only([address].into()), tcp: Reach::Everybody }
    }

    /// No UDP at all; TCP with everybody.
    #[must_use]
    pub fn no_udp() -> Self {
        Self { udp: Reach::Nobody, tcp: Reach::Everybody }
    }

    pub(super) fn passes(&self, frame: &[u8], leaving: bool) -> bool {
        let Some((source, destination, protocol)) = ends(frame) else { return false };
        let other = if leaving { destination } else { source };
        match protocol {
            Some(Protocol::Udp) => self.udp.includes(other),
            Some(Protocol::Tcp) => self.tcp.includes(other),
            None => true,
        }
    }
}

/// Where a packet that leaves a host behind a router goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// To another host behind the same router.
    Inside(usize),
    /// Out, translated.
    Outside,
}

/// A router and the hosts behind it.
#[derive(Debug)]
pub(super) struct Gate {
    pub(super) outside: Ipv4Addr,
    nat: Mutex<Nat>,
    members: RwLock<BTreeMap<Ipv4Addr, usize>>,
}

impl Gate {
    pub(super) fn new(outside: Ipv4Addr, nat: Nat) -> Self {
        Self { outside, nat: Mutex::new(nat), members: RwLock::default() }
    }

    pub(super) fn nat(&self) -> MutexGuard<'_, Nat> {
        self.nat.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives a host an inside address, if there is one left.
    pub(super) fn admit(&self, host: usize) -> Option<Ipv4Addr> {
        let mut members = self.members.write().unwrap_or_else(PoisonError::into_inner);
        let number = u8::try_from(members.len()).ok().filter(|number| *number < MAX_INSIDE)?;
        let [a, b, c, _] = INSIDE_NET.0.octets();
        let address = Ipv4Addr::new(a, b, c, 2 + number);
        members.insert(address, host);
        Some(address)
    }

    pub(super) fn address_of(&self, host: usize) -> Option<Ipv4Addr> {
        let members = self.members.read().unwrap_or_else(PoisonError::into_inner);
        members.iter().find(|(_, member)| **member == host).map(|(address, _)| *address)
    }

    fn member(&self, address: Ipv4Addr) -> Option<usize> {
        let members = self.members.read().unwrap_or_else(PoisonError::into_inner);
        members.get(&address).copied()
    }

    /// Judges and translates a packet that leaves a host behind this router.
    pub(super) fn leave(&self, frame: &mut [u8], to: IpAddr, now: Instant) -> Option<Way> {
        let IpAddr::V4(to) = to else { return None };
        if let Some(member) = self.member(to) {
            return Some(Way::Inside(member));
        }
        if to == self.outside || to.is_private() || to.is_multicast() {
            return None;
        }
        let flow = Flow::read(frame)?;
        // Only its own hosts: a router does not forward foreign sources.
        self.member(*flow.source.ip())?;
        let port = self.nat().leave(flow.protocol, flow.source, flow.destination, now)?;
        flow.rewrite(frame, End::Source, SocketAddrV4::new(self.outside, port));
        Some(Way::Outside)
    }

    /// Judges and translates a packet that arrives from outside: which host
    /// gets it, if any.
    pub(super) fn enter(&self, frame: &mut [u8], now: Instant) -> Option<usize> {
        let flow = Flow::read(frame)?;
        let port = flow.destination.port();
        let inside = self.nat().enter(flow.protocol, port, flow.source, now)?;
        let member = self.member(*inside.ip())?;
        flow.rewrite(frame, End::Destination, inside);
        Some(member)
    }
}
