//! What can be asked for: the members' names and addresses, and the zones they
//! are in.
//!
//! In: each member's names (its own, and its WireGuard clients') with their
//! addresses, as they come and go. Out: what a name stands for ([`Lookup`]).
//! Invariants: an entry disappears with its owner; of two owners of one name
//! the smaller id is answered, as in the directory. No sockets, no clock.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::IpAddr;

use hickory_proto::ProtoError;
use hickory_proto::rr::Name;
use ipnet::IpNet;
use warren_types::{NetworkName, NodeId, NodeName};

/// The top level that all networks' domains are under; not delegated in the
/// public DNS.
const TOP: &str = "warren";
/// Labels of a zone for IPv4 addresses such as `64.100.in-addr.arpa`.
const REVERSE_V4_LABELS: usize = 4;
/// Labels of the zone of an IPv6 /48: twelve nibbles and `ip6.arpa`.
const REVERSE_V6_LABELS: usize = 14;

/// A name with its addresses.
pub type Entry = (NodeName, Vec<IpAddr>);

/// What a question is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lookup {
    /// The zone the name is in, for the SOA record.
    pub zone: Name,
    /// What is there.
    pub found: Found,
}

/// What a name stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// The zone itself.
    Apex,
    /// A member or client with these addresses.
    Addresses(Vec<IpAddr>),
    /// An address whose holder has this name.
    Pointer(Name),
    /// A name that only has names below it.
    Empty,
    /// No such name.
    Missing,
}

/// Enters an owner, the smallest first.
fn add<K: Eq + Hash>(map: &mut HashMap<K, Vec<NodeId>>, key: K, owner: NodeId) {
    let owners = map.entry(key).or_default();
    if let Err(at) = owners.binary_search(&owner) {
        owners.reserve_exact(1);
        owners.insert(at, owner);
    }
}

fn drop_from<K, Q>(map: &mut HashMap<K, Vec<NodeId>>, key: &Q, owner: NodeId)
where
    K: Eq + Hash + std::borrow::Borrow<Q>,
    Q: Eq + Hash + ?Sized,
{
    if let Some(owners) = map.get_mut(key) {
        owners.retain(|other| *other != owner);
        if owners.is_empty() {
            map.remove(key);
        }
    }
}

/// The network's names.
#[derive(Debug)]
pub struct Zone {
    apex: Name,
    server: Name,
    prefixes: Vec<IpNet>,
    /// Whose entries a name is in; nearly always one's.
    names: HashMap<String, Vec<NodeId>>,
    /// Likewise an address.
    pointers: HashMap<IpAddr, Vec<NodeId>>,
    owners: HashMap<NodeId, Vec<Entry>>,
    serial: u32,
}

impl Zone {
    /// A zone without members. `node`: who answers. `prefixes`: the overlay's,
    /// for which reverse names are answered.
    ///
    /// # Errors
    /// Never for valid names; the DNS library cannot promise that by type.
    pub fn new(
        node: &NodeName,
        network: &NetworkName,
        prefixes: Vec<IpNet>,
    ) -> Result<Self, ProtoError> {
        let apex = Name::from_labels([network.as_str(), TOP])?;
        let server = apex.prepend_label(node.as_str())?;
        Ok(Self {
            apex,
            server,
            prefixes,
            names: HashMap::new(),
            pointers: HashMap::new(),
            owners: HashMap::new(),
            serial: 1,
        })
    }

    /// `NETWORK.warren.`
    pub fn apex(&self) -> &Name {
        &self.apex
    }

    /// `NODE.NETWORK.warren.` of the node that answers.
    pub fn server(&self) -> &Name {
        &self.server
    }

    /// Grows with every change.
    pub fn serial(&self) -> u32 {
        self.serial
    }

    /// True for addresses of the overlay.
    pub fn in_overlay(&self, address: IpAddr) -> bool {
        self.prefixes.iter().any(|prefix| prefix.contains(&address))
    }

    /// Replaces what `owner` is known by.
    pub fn put(&mut self, owner: NodeId, entries: Vec<Entry>) {
        if self.owners.get(&owner) == Some(&entries) {
            return;
        }
        self.remove(owner);
        for (name, addresses) in &entries {
            add(&mut self.names, name.as_str().to_owned(), owner);
            for address in addresses {
                add(&mut self.pointers, *address, owner);
            }
        }
        self.owners.insert(owner, entries);
        self.serial = self.serial.wrapping_add(1);
    }

    /// Forgets `owner`.
    pub fn remove(&mut self, owner: NodeId) {
        let Some(entries) = self.owners.remove(&owner) else { return };
        for (name, addresses) in entries {
            drop_from(&mut self.names, name.as_str(), owner);
            for address in addresses {
                drop_from(&mut self.pointers, &address, owner);
            }
        }
        self.serial = self.serial.wrapping_add(1);
    }

    /// What `name` stands for; `None` outside the network's zones.
    pub fn look_up(&self, name: &Name) -> Option<Lookup> {
        if self.apex.zone_of(name) {
            return Some(Lookup { zone: self.apex.clone(), found: self.forward(name) });
        }
        self.reverse(name)
    }

    fn forward(&self, name: &Name) -> Found {
        let below = name.num_labels().saturating_sub(self.apex.num_labels());
        let label = name.iter().next().and_then(|l| std::str::from_utf8(l).ok());
        match (below, label) {
            (0, _) => Found::Apex,
            (1, Some(label)) => {
                let label = label.to_ascii_lowercase();
                let owner = self.names.get(&label).and_then(|all| all.first());
                let entries = owner.and_then(|owner| self.owners.get(owner));
                entries.map_or(Found::Missing, |entries| {
                    let named = entries.iter().filter(|(name, _)| name.as_str() == label);
                    Found::Addresses(named.flat_map(|(_, addresses)| addresses).copied().collect())
                })
            }
            _ => Found::Missing,
        }
    }

    fn reverse(&self, name: &Name) -> Option<Lookup> {
        let asked = name.parse_arpa_name().ok()?;
        let within = self.prefixes.iter().any(|prefix| prefix.contains(&asked));
        let labels = if asked.addr().is_ipv4() { REVERSE_V4_LABELS } else { REVERSE_V6_LABELS };
        let depth = usize::from(name.num_labels());
        if !within || depth < labels {
            return None;
        }
        let found = if depth == labels {
            Found::Apex
        } else if asked.prefix_len() < asked.max_prefix_len() {
            let inside = self.pointers.keys().any(|address| asked.contains(address));
            if inside { Found::Empty } else { Found::Missing }
        } else {
            let address = asked.addr();
            let owner = self.pointers.get(&address).and_then(|at| at.first());
            let entries = owner.and_then(|owner| self.owners.get(owner)).into_iter().flatten();
            let holder = entries.rev().find(|(_, addresses)| addresses.contains(&address));
            let full = holder.and_then(|(label, _)| self.apex.prepend_label(label.as_str()).ok());
            full.map_or(Found::Missing, Found::Pointer)
        };
        Some(Lookup { zone: name.trim_to(labels), found })
    }

    /// The domains whose questions belong to this zone, without a final dot:
    /// the network's own, then those of its addresses.
    pub fn domains(&self) -> Vec<String> {
        let plain = |name: &Name| name.to_ascii().trim_end_matches('.').to_owned();
        let mut domains = vec![plain(&self.apex)];
        for prefix in &self.prefixes {
            match prefix {
                IpNet::V4(prefix) => {
                    // Zones end at whole bytes: a /10 is 64 of them.
                    let size = prefix.prefix_len().max(16);
                    for part in prefix.subnets(size).into_iter().flatten() {
                        let [first, second, ..] = part.network().octets();
                        domains.push(format!("{second}.{first}.in-addr.arpa"));
                    }
                }
                IpNet::V6(prefix) => {
                    let nibbles = prefix.network().octets()[..6]
                        .iter()
                        .flat_map(|byte| [byte >> 4, byte & 15])
                        .collect::<Vec<u8>>();
                    let reversed: Vec<String> =
                        nibbles.iter().rev().map(|nibble| format!("{nibble:x}")).collect();
                    domains.push(format!("{}.ip6.arpa", reversed.join(".")));
                }
            }
        }
        domains
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(crate) fn example() -> Zone {
        let prefixes =
            vec!["100.64.0.0/10".parse().unwrap(), "fd12:3456:789a::/48".parse().unwrap()];
        let mut zone =
            Zone::new(&"gpu-1".parse().unwrap(), &"lab".parse().unwrap(), prefixes).unwrap();
        let addresses = |last: u8| {
            vec![
                IpAddr::from([100, 64, 0, last]),
                format!("fd12:3456:789a::{last}").parse::<IpAddr>().unwrap(),
            ]
        };
        zone.put(NodeId([1; 32]), vec![("gpu-1".parse().unwrap(), addresses(1))]);
        zone.put(
            NodeId([2; 32]),
            vec![
                ("gpu-2".parse().unwrap(), addresses(2)),
                ("phone".parse().unwrap(), addresses(9)),
            ],
        );
        zone
    }

    fn found(zone: &Zone, name: &str) -> Option<Found> {
        zone.look_up(&name.parse().unwrap()).map(|l| l.found)
    }

    #[test]
    fn members_and_clients_are_found_and_nothing_else() {
        let zone = example();
        for name in ["gpu-2.lab.warren.", "PHONE.Lab.WARREN."] {
            assert!(matches!(found(&zone, name), Some(Found::Addresses(a)) if a.len() == 2));
        }
        assert_eq!(found(&zone, "lab.warren."), Some(Found::Apex));
        for name in ["nobody.lab.warren.", "x.gpu-2.lab.warren."] {
            assert_eq!(found(&zone, name), Some(Found::Missing), "{name}");
        }
        for name in ["warren.", ".", "example.org.", "gpu-2.other.warren.", "lab.warren.org."] {
            assert_eq!(found(&zone, name), None, "{name}");
        }
    }

    #[test]
    fn addresses_point_back() {
        let zone = example();
        let pointer = Found::Pointer("gpu-2.lab.warren.".parse().unwrap());
        assert_eq!(found(&zone, "2.0.64.100.in-addr.arpa."), Some(pointer.clone()));
        let nibbles = "2.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.a.9.8.7.6.5.4.3.2.1.d.f.ip6.arpa.";
        assert_eq!(found(&zone, nibbles), Some(pointer));
        assert_eq!(found(&zone, "7.7.127.100.in-addr.arpa."), Some(Found::Missing));
        assert_eq!(found(&zone, "64.100.in-addr.arpa."), Some(Found::Apex));
        assert_eq!(found(&zone, "0.64.100.in-addr.arpa."), Some(Found::Empty));
        for name in [
            "100.in-addr.arpa.",
            "1.128.100.in-addr.arpa.",
            "1.0.168.192.in-addr.arpa.",
            "d.f.ip6.arpa.",
            "in-addr.arpa.",
            "x.0.64.100.in-addr.arpa.",
        ] {
            assert_eq!(found(&zone, name), None, "{name}");
        }
    }

    #[test]
    fn a_name_goes_with_its_owner() {
        let mut zone = example();
        let serial = zone.serial();
        zone.remove(NodeId([2; 32]));
        for name in ["gpu-2.lab.warren.", "phone.lab.warren.", "2.0.64.100.in-addr.arpa."] {
            assert_eq!(found(&zone, name), Some(Found::Missing), "{name}");
        }
        assert_ne!(zone.serial(), serial);
    }

    #[test]
    fn of_two_owners_of_a_name_the_smaller_is_answered() {
        let mut zone = example();
        zone.put(NodeId([0; 32]), vec![("gpu-2".parse().unwrap(), vec![[100, 64, 0, 77].into()])]);
        let first = Found::Addresses(vec![[100, 64, 0, 77].into()]);
        assert_eq!(found(&zone, "gpu-2.lab.warren."), Some(first));
        zone.remove(NodeId([0; 32]));
        assert!(
            matches!(found(&zone, "gpu-2.lab.warren."), Some(Found::Addresses(a)) if a.len() == 2)
        );
    }

    #[test]
    fn the_domains_cover_names_and_addresses() {
        let domains = example().domains();
        assert_eq!(domains[0], "lab.warren");
        assert!(domains.contains(&"64.100.in-addr.arpa".to_owned()));
        assert!(domains.contains(&"127.100.in-addr.arpa".to_owned()));
        assert!(domains.contains(&"a.9.8.7.6.5.4.3.2.1.d.f.ip6.arpa".to_owned()));
        assert_eq!(domains.len(), 1 + 64 + 1);
    }
}
