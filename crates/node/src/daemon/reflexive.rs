//! Where others see us, and what that tells about the NAT before us.
//!
//! In: our own underlay addresses as peers report them, over control
//! connections and in answers to probes. Out: those worth telling everybody,
//! and the kind of NAT, for people. Invariants: an address is told when two
//! peers agree on it, or when there is only one peer to ask; when every peer
//! sees another port, the NAT gives each destination its own, and none of them
//! is of use to anybody else; what nobody confirms any more is dropped. A peer
//! that lies can make us name one wrong address among up to sixteen, nothing
//! else. Deliberately not here: port mappings asked of the router, and probing.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use warren_types::NodeId;

/// A report counts this long without being repeated.
const LIFE: Duration = Duration::from_secs(900);
/// Peers whose reports are kept.
const MAX_PEERS: usize = 64;

/// What is before us, for one address family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Nat {
    /// Nobody has told yet.
    Unknown,
    /// Our own address is what others see.
    None,
    /// One address outside serves all peers: direct paths can be punched.
    Independent,
    /// Each peer sees another port ("symmetric"): a direct path needs a peer
    /// that is not behind such a NAT itself.
    Dependent,
}

impl Nat {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::None => "none",
            Self::Independent => "endpoint-independent",
            Self::Dependent => "address-dependent",
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct Report {
    address: SocketAddr,
    at: Instant,
}

/// Reports by peer and family (`true`: IPv4).
#[derive(Debug, Default)]
pub(super) struct Reflexive {
    reports: BTreeMap<(NodeId, bool), Report>,
}

impl Reflexive {
    /// A peer sees us at `address`, which is no overlay, loopback or otherwise
    /// impossible address. True when that is news.
    pub(super) fn note(&mut self, by: NodeId, address: SocketAddr, now: Instant) -> bool {
        let address = SocketAddr::new(address.ip().to_canonical(), address.port());
        self.reports.retain(|_, report| now < report.at + LIFE);
        let key = (by, address.is_ipv4());
        if !self.reports.contains_key(&key) && self.reports.len() >= MAX_PEERS {
            let oldest = self.reports.iter().min_by_key(|(_, r)| r.at).map(|(key, _)| *key);
            oldest.map(|key| self.reports.remove(&key));
        }
        let old = self.reports.insert(key, Report { address, at: now });
        old.is_none_or(|old| old.address != address)
    }

    /// The reports of one family, each address with how many peers see it.
    fn votes(&self, v4: bool, now: Instant) -> BTreeMap<SocketAddr, usize> {
        let mut votes = BTreeMap::new();
        for ((_, family), report) in &self.reports {
            if *family == v4 && now < report.at + LIFE {
                *votes.entry(report.address).or_default() += 1;
            }
        }
        votes
    }

    /// Addresses to tell others beside `own`, those most peers agree on first.
    pub(super) fn advertised(&self, own: &[SocketAddr], now: Instant) -> Vec<SocketAddr> {
        let mut told: Vec<(usize, SocketAddr)> = Vec::new();
        for v4 in [true, false] {
            let votes = self.votes(v4, now);
            let lone = votes.values().sum::<usize>() == 1;
            told.extend(
                votes
                    .into_iter()
                    .filter(|(address, count)| (lone || *count > 1) && !own.contains(address))
                    .map(|(address, count)| (count, address)),
            );
        }
        told.sort_by_key(|(count, address)| (std::cmp::Reverse(*count), *address));
        told.into_iter().map(|(_, address)| address).collect()
    }

    /// What stands before us; `own` are the addresses of our interfaces.
    pub(super) fn nat(&self, v4: bool, own: &[SocketAddr], now: Instant) -> Nat {
        let votes = self.votes(v4, now);
        let outside: Vec<_> = votes.iter().filter(|(a, _)| !own.contains(a)).collect();
        if votes.is_empty() {
            return Nat::Unknown;
        }
        if outside.is_empty() {
            return Nat::None;
        }
        let mut ports: BTreeMap<IpAddr, usize> = BTreeMap::new();
        for (address, _) in &outside {
            *ports.entry(address.ip()).or_default() += 1;
        }
        let agreed = outside.iter().any(|(_, count)| **count > 1);
        if !agreed && ports.values().any(|ports| *ports > 1) {
            Nat::Dependent
        } else {
            Nat::Independent
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(n: u8) -> NodeId {
        NodeId([n; 32])
    }

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn what_two_peers_see_is_told_and_what_changes_is_dropped() {
        let (mut seen, now) = (Reflexive::default(), Instant::now());
        let own = [at("192.168.1.5:9277")];
        assert_eq!(seen.nat(true, &own, now), Nat::Unknown);
        assert!(seen.note(node(1), at("203.0.113.7:4000"), now));
        assert!(!seen.note(node(1), at("[::ffff:203.0.113.7]:4000"), now), "the same, mapped");
        assert_eq!(seen.advertised(&own, now), [at("203.0.113.7:4000")], "one is all there is");
        seen.note(node(2), at("203.0.113.7:4000"), now);
        assert_eq!(seen.nat(true, &own, now), Nat::Independent);
        seen.note(node(3), at("198.51.100.9:1"), now);
        assert_eq!(seen.advertised(&own, now), [at("203.0.113.7:4000")], "a lone liar is ignored");
        // Another mapping, as two see.
        seen.note(node(1), at("203.0.113.7:4001"), now);
        seen.note(node(2), at("203.0.113.7:4001"), now);
        assert_eq!(seen.advertised(&own, now), [at("203.0.113.7:4001")]);
        assert!(seen.advertised(&own, now + LIFE).is_empty());
    }

    #[test]
    fn a_symmetric_nat_has_nothing_to_tell() {
        let (mut seen, now) = (Reflexive::default(), Instant::now());
        let own = [at("192.168.1.5:9277")];
        for n in 1..5 {
            seen.note(node(n), at(&format!("203.0.113.7:{}", 4000 + u16::from(n))), now);
        }
        assert_eq!(seen.nat(true, &own, now), Nat::Dependent);
        assert!(seen.advertised(&own, now).is_empty());
        assert_eq!(seen.nat(false, &own, now), Nat::Unknown);
    }

    #[test]
    fn without_nat_there_is_nothing_to_add() {
        let (mut seen, now) = (Reflexive::default(), Instant::now());
        let own = [at("192.0.2.1:9277"), at("[2001:db8::1]:9277")];
        for n in 1..3 {
            seen.note(node(n), own[0], now);
            seen.note(node(n), own[1], now);
        }
        assert!(seen.advertised(&own, now).is_empty());
        assert_eq!((seen.nat(true, &own, now), seen.nat(false, &own, now)), (Nat::None, Nat::None));
        for n in 0..255 {
            seen.note(node(n), own[0], now);
        }
        assert!(seen.reports.len() <= MAX_PEERS);
    }
}
