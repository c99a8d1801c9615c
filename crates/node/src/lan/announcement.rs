//! What is announced on the local network, and what is read from others'
//! announcements. Pure.
//!
//! Announced: a tag of the network (a hash, which tells only those who know the
//! network's id), the first characters of the node's id, and the UDP port.
//! Invariants: addresses that cannot be a member's underlay address (loopback,
//! link-local IPv6, multicast, the overlay's) are not taken.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use aws_lc_rs::digest;
use mdns_sd::ResolvedService;
use warren_types::{NetworkId, NodeId};

/// The service type.
pub const SERVICE: &str = "_warren._udp.local.";
/// Key of the network's tag in the TXT record.
const NETWORK: &str = "n";
/// Characters of a node's id that are announced: 60 bits.
const PREFIX: usize = 12;
/// Addresses taken from one announcement.
const ADDRESSES: usize = 8;

/// The first characters of a node's printed id.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct NodePrefix(String);

impl NodePrefix {
    /// Of this node.
    pub fn of(node: NodeId) -> Self {
        Self(node.to_string()[..PREFIX].to_owned())
    }

    /// As announced.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn parse(text: &str) -> Option<Self> {
        let alphabet = |c: u8| c.is_ascii_lowercase() || (b'2'..=b'7').contains(&c);
        (text.len() == PREFIX && text.bytes().all(alphabet)).then(|| Self(text.to_owned()))
    }
}

/// A member may be there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sighting {
    /// Who it says it is.
    pub node: NodePrefix,
    /// Where, IPv4 first.
    pub addresses: Vec<SocketAddr>,
}

/// The tag of a network: base32 of the first 80 bits of
/// SHA-256(`Warren v1 lan` || network id).
pub fn tag(network: NetworkId) -> String {
    let mut context = digest::Context::new(&digest::SHA256);
    context.update(b"Warren v1 lan");
    context.update(&network.0);
    data_encoding::BASE32_NOPAD.encode(&context.finish().as_ref()[..10]).to_ascii_lowercase()
}

/// The TXT record.
pub(super) fn properties(network: NetworkId) -> [(&'static str, String); 1] {
    [(NETWORK, tag(network))]
}

/// The host of the address records: not the machine's name, which is nobody's
/// business.
pub(super) fn host_name(prefix: &NodePrefix) -> String {
    format!("warren-{}.local.", prefix.as_str())
}

/// Reads an announcement; `None` when it is not of this network, or useless.
pub fn read(service: &ResolvedService, network: NetworkId) -> Option<Sighting> {
    if service.get_property_val_str(NETWORK)? != tag(network) || service.get_port() == 0 {
        return None;
    }
    let node = service.get_fullname().split('.').next().and_then(NodePrefix::parse)?;
    let mut addresses: Vec<SocketAddr> = service
        .get_addresses()
        .iter()
        .map(mdns_sd::ScopedIp::to_ip_addr)
        .filter(|address| is_usable(*address))
        .map(|address| SocketAddr::new(address, service.get_port()))
        .collect();
    addresses.sort();
    addresses.truncate(ADDRESSES);
    (!addresses.is_empty()).then_some(Sighting { node, addresses })
}

/// Can a member of the local network be reached there? Link-local IPv6
/// addresses mean nothing without the interface they were heard on.
fn is_usable(address: IpAddr) -> bool {
    let unusable = address.is_loopback() || address.is_unspecified() || address.is_multicast();
    match address {
        IpAddr::V4(v4) => {
            let shared = v4.octets()[0] == 100 && v4.octets()[1] & 0xc0 == 64;
            !unusable && !shared && v4 != Ipv4Addr::BROADCAST
        }
        IpAddr::V6(v6) => !unusable && !v6.is_unicast_link_local() && v6.to_ipv4_mapped().is_none(),
    }
}

#[cfg(test)]
mod tests {
    use mdns_sd::ServiceInfo;

    use super::*;

    fn service(name: &str, network: NetworkId, addresses: &[&str]) -> ResolvedService {
        let addresses: Vec<IpAddr> = addresses.iter().map(|a| a.parse().unwrap()).collect();
        let host = "warren-x.local.";
        ServiceInfo::new(SERVICE, name, host, &addresses[..], 9277, &properties(network)[..])
            .unwrap()
            .as_resolved_service()
    }

    #[test]
    fn an_announcement_is_read_by_its_network_only() {
        let (network, node) = (NetworkId([7; 16]), NodeId([9; 32]));
        let prefix = NodePrefix::of(node);
        let announced = service(prefix.as_str(), network, &["192.168.1.5", "2001:db8::5"]);
        let sighting = read(&announced, network).unwrap();
        assert_eq!(sighting.node, prefix);
        assert_eq!(sighting.addresses.len(), 2);
        assert_eq!(sighting.addresses[0], "192.168.1.5:9277".parse().unwrap());
        assert_eq!(read(&announced, NetworkId([8; 16])), None);
    }

    #[test]
    fn useless_announcements_are_not_taken() {
        let network = NetworkId([7; 16]);
        let good = NodePrefix::of(NodeId([9; 32]));
        for address in ["127.0.0.1", "::1", "fe80::1", "224.0.0.251", "100.64.0.9", "0.0.0.0"] {
            assert_eq!(
                read(&service(good.as_str(), network, &[address]), network),
                None,
                "{address}"
            );
        }
        for name in ["", "short", "ABCDEFGHIJKL", "abcdefghijk1", "abcdefghijklm"] {
            assert_eq!(read(&service(name, network, &["192.168.1.5"]), network), None, "{name}");
        }
    }

    #[test]
    fn the_announcement_names_neither_node_nor_network() {
        let network = NetworkId([7; 16]);
        let tag = tag(network);
        assert_eq!(tag.len(), 16);
        assert!(!network.to_string().starts_with(&tag[..8]));
        assert_ne!(tag, super::tag(NetworkId([8; 16])));
    }
}
