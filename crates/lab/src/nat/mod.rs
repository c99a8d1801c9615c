//! Address translation as home routers, mobile carriers and companies do it:
//! the table that maps inside to outside ports, as a state machine on a clock
//! the caller owns.
//!
//! In: the addresses of packets that leave or enter, and the time. Out: the
//! outside port a leaving packet gets, or the inside address an entering one
//! goes to, if any. Terms are those of RFC 4787: how mappings are made and who
//! may use them are two questions, and [`Kind`] names the usual answers.
//!
//! Invariants: for one seed and one sequence of calls the outcome is always the
//! same; an outside port belongs to one inside address at a time; a mapping
//! lives as long as packets *leave* through it (RFC 4787 section 4.3, the
//! stricter of the two permitted ways), entering packets do not prolong it.
//!
//! Deliberately not here: packets and checksums (see [`crate::wan`]), hairpins,
//! which are off, port mapping protocols, and ICMP, which this lab's routers
//! do not speak.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::{Duration, Instant};

use crate::netem::Dice;

/// Outside ports given out when the inside port cannot be kept.
const PORTS: std::ops::Range<u16> = 1024..u16::MAX;

/// Tries at a random outside port before the table counts as full.
const PORT_TRIES: usize = 64;

/// Expired mappings are looked for when there are this many, and later when
/// twice as many as the last look left.
const SWEEP_AT: usize = 4096;

/// The names under which translators are known (RFC 3489 section 5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// One mapping for all destinations, open to everybody.
    FullCone,
    /// One mapping for all destinations, open to addresses that were sent to.
    Restricted,
    /// One mapping for all destinations, open to address and port sent to.
    PortRestricted,
    /// A mapping for each destination address and port, open to that alone.
    Symmetric,
}

impl Kind {
    /// All of them, from the most to the least open.
    pub const ALL: [Self; 4] =
        [Self::FullCone, Self::Restricted, Self::PortRestricted, Self::Symmetric];

    /// Short name, as in a table.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::FullCone => "full cone",
            Self::Restricted => "restricted",
            Self::PortRestricted => "port-restr.",
            Self::Symmetric => "symmetric",
        }
    }
}

/// Whether mappings depend on where packets go (RFC 4787 section 4.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mapping {
    /// The same for all destinations.
    EndpointIndependent,
    /// Another one for each destination address and port.
    AddressAndPortDependent,
}

/// Who may send to a mapping (RFC 4787 section 5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Filtering {
    /// Everybody.
    EndpointIndependent,
    /// Addresses that were sent to.
    AddressDependent,
    /// Addresses and ports that were sent to.
    AddressAndPortDependent,
}

/// How a translator behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Behaviour {
    /// How mappings are made.
    pub mapping: Mapping,
    /// Who may send to them.
    pub filtering: Filtering,
    /// Keeps the inside port as the outside one where it is free; else ports
    /// are random.
    pub keeps_ports: bool,
    /// How long a UDP mapping lives without a packet that leaves through it.
    pub udp_timeout: Duration,
    /// The same for TCP.
    pub tcp_timeout: Duration,
}

impl From<Kind> for Behaviour {
    fn from(kind: Kind) -> Self {
        let (mapping, filtering) = match kind {
            Kind::FullCone => (Mapping::EndpointIndependent, Filtering::EndpointIndependent),
            Kind::Restricted => (Mapping::EndpointIndependent, Filtering::AddressDependent),
            Kind::PortRestricted => {
                (Mapping::EndpointIndependent, Filtering::AddressAndPortDependent)
            }
            Kind::Symmetric => {
                (Mapping::AddressAndPortDependent, Filtering::AddressAndPortDependent)
            }
        };
        Self {
            mapping,
            filtering,
            keeps_ports: mapping == Mapping::EndpointIndependent,
            // What many routers have; RFC 4787 asks for two minutes at least.
            udp_timeout: Duration::from_secs(30),
            tcp_timeout: Duration::from_secs(7440),
        }
    }
}

/// Transport protocols with ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// UDP.
    Udp,
    /// TCP.
    Tcp,
}

/// What a translator has done since it was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Mappings made.
    pub mappings: u64,
    /// Packets that entered.
    pub entered: u64,
    /// Packets from outside that found no mapping or were not welcome there.
    pub refused: u64,
    /// Packets from inside that found no free port.
    pub exhausted: u64,
}

/// A translator with one outside address.
#[derive(Debug)]
pub struct Nat {
    behaviour: Behaviour,
    dice: Dice,
    outside: HashMap<Key, u16>,
    entries: HashMap<(Protocol, u16), Entry>,
    sweep_at: usize,
    counters: Counters,
}

/// What a mapping is for: all destinations, or one.
type Key = (Protocol, SocketAddrV4, Option<SocketAddrV4>);

#[derive(Debug)]
struct Entry {
    key: Key,
    expires: Instant,
    /// Who was sent to, and until when that counts.
    known: HashMap<SocketAddrV4, Instant>,
}

impl Entry {
    fn admits(&self, filtering: Filtering, from: SocketAddrV4, now: Instant) -> bool {
        let fresh = |until: &Instant| *until > now;
        match filtering {
            Filtering::EndpointIndependent => true,
            Filtering::AddressDependent => {
                self.known.iter().any(|(known, until)| known.ip() == from.ip() && fresh(until))
            }
            Filtering::AddressAndPortDependent => self.known.get(&from).is_some_and(fresh),
        }
    }
}

impl Nat {
    /// A translator without mappings, whose random ports follow from `seed`.
    #[must_use]
    pub fn new(behaviour: Behaviour, seed: u64) -> Self {
        Self {
            behaviour,
            dice: Dice::new(seed),
            outside: HashMap::new(),
            entries: HashMap::new(),
            sweep_at: SWEEP_AT,
            counters: Counters::default(),
        }
    }

    /// How it behaves.
    #[must_use]
    pub fn behaviour(&self) -> &Behaviour {
        &self.behaviour
    }

    /// What it has done.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Loses all mappings, as when the router starts anew.
    pub fn forget(&mut self) {
        self.outside.clear();
        self.entries.clear();
    }

    /// A packet leaves from `inside` for `to`: its outside port, or `None` when
    /// there is no free one.
    pub fn leave(
        &mut self,
        protocol: Protocol,
        inside: SocketAddrV4,
        to: SocketAddrV4,
        now: Instant,
    ) -> Option<u16> {
        let expires = now + self.timeout(protocol);
        let destination = match self.behaviour.mapping {
            Mapping::EndpointIndependent => None,
            Mapping::AddressAndPortDependent => Some(to),
        };
        let key = (protocol, inside, destination);
        if let Some(&port) = self.outside.get(&key)
            && let Some(entry) = self.entries.get_mut(&(protocol, port))
            && entry.expires > now
        {
            entry.expires = expires;
            entry.known.insert(to, expires);
            return Some(port);
        }
        if self.entries.len() >= self.sweep_at {
            self.sweep(now);
        }
        let Some(port) = self.free_port(protocol, inside.port(), now) else {
            self.counters.exhausted += 1;
            return None;
        };
        self.remove(protocol, port);
        if let Some(old) = self.outside.insert(key, port) {
            self.entries.remove(&(protocol, old));
        }
        let entry = Entry { key, expires, known: HashMap::from([(to, expires)]) };
        self.entries.insert((protocol, port), entry);
        self.counters.mappings += 1;
        Some(port)
    }

    /// A packet from `from` enters at an outside port: where it goes, or `None`
    /// when it is dropped.
    pub fn enter(
        &mut self,
        protocol: Protocol,
        port: u16,
        from: SocketAddrV4,
        now: Instant,
    ) -> Option<SocketAddrV4> {
        let welcome = self.entries.get(&(protocol, port)).filter(|entry| {
            entry.expires > now && entry.admits(self.behaviour.filtering, from, now)
        });
        let inside = welcome.map(|entry| entry.key.1);
        match inside {
            Some(_) => self.counters.entered += 1,
            None => self.counters.refused += 1,
        }
        inside
    }

    /// Outside ports in use by an inside address now, for tests and tables.
    #[must_use]
    pub fn ports_of(&self, protocol: Protocol, inside: Ipv4Addr, now: Instant) -> Vec<u16> {
        let of_it = self.entries.iter().filter(|((used, _), entry)| {
            *used == protocol && *entry.key.1.ip() == inside && entry.expires > now
        });
        let mut ports: Vec<u16> = of_it.map(|((_, port), _)| *port).collect();
        ports.sort_unstable();
        ports
    }

    fn timeout(&self, protocol: Protocol) -> Duration {
        match protocol {
            Protocol::Udp => self.behaviour.udp_timeout,
            Protocol::Tcp => self.behaviour.tcp_timeout,
        }
    }

    fn free_port(&mut self, protocol: Protocol, wanted: u16, now: Instant) -> Option<u16> {
        let free = |entries: &HashMap<_, Entry>, port| {
            entries.get(&(protocol, port)).is_none_or(|entry| entry.expires <= now)
        };
        if self.behaviour.keeps_ports && free(&self.entries, wanted) {
            return Some(wanted);
        }
        (0..PORT_TRIES).find_map(|_| {
            let span = u64::from(PORTS.end - PORTS.start);
            let port = PORTS.start + (self.dice.next_u64() % span) as u16;
            free(&self.entries, port).then_some(port)
        })
    }

    fn remove(&mut self, protocol: Protocol, port: u16) {
        if let Some(entry) = self.entries.remove(&(protocol, port)) {
            self.outside.remove(&entry.key);
        }
    }

    fn sweep(&mut self, now: Instant) {
        self.entries.retain(|_, entry| entry.expires > now);
        let entries = &self.entries;
        self.outside.retain(|key, port| entries.contains_key(&(key.0, *port)));
        self.sweep_at = SWEEP_AT.max(2 * self.entries.len());
    }
}

#[cfg(test)]
mod tests;
