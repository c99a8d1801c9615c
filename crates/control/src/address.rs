//! Overlay addresses, all derived: a ULA /48 from the network, a /128 and an
//! IPv4 address in 100.64.0.0/10 (RFC 6598) from a key.
//!
//! In: a [`NetworkId`] and the 32 bytes of a public key (a node's Ed25519 key,
//! or a WireGuard client's X25519 key). Out: addresses. Invariants: the same
//! input gives the same address everywhere; an IPv6 address cannot be chosen,
//! an IPv4 address can only be moved by the attempt number. Deliberately not
//! here: who has which address (see `registry` and `directory`).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use aws_lc_rs::digest;
use ipnet::{Ipv4Net, Ipv6Net};
use warren_types::{NetworkId, NodeId, mesh_node};

/// Attempts that a verifier accepts for an IPv4 address that its holder chose
/// by itself. With 2^22 addresses sixteen collisions in a row do not happen.
pub const MAX_ATTEMPTS: u8 = 16;

/// The overlay's IPv4 prefix: shared address space, RFC 6598.
pub fn ipv4_prefix() -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(100, 64, 0, 0), 10)
}

fn hash(parts: &[&[u8]]) -> [u8; 32] {
    let mut context = digest::Context::new(&digest::SHA256);
    for part in parts {
        context.update(part);
    }
    let mut out = [0; 32];
    out.copy_from_slice(context.finish().as_ref());
    out
}

/// The network's unique local /48 (RFC 4193 section 3.1): `fd`, then the first
/// 40 bits of SHA-256(`Warren v1 prefix` || network id).
pub fn ipv6_prefix(network: NetworkId) -> Ipv6Net {
    let digest = hash(&[b"Warren v1 prefix", &network.0]);
    let mut octets = [0_u8; 16];
    octets[0] = 0xfd;
    octets[1..6].copy_from_slice(&digest[..5]);
    Ipv6Net::new_assert(Ipv6Addr::from(octets), 48)
}

/// The /128 of a key: the network's prefix, then the first 80 bits of
/// SHA-256(`Warren v1 address 6` || network id || key).
pub fn ipv6_of_key(network: NetworkId, key: &[u8; 32]) -> Ipv6Addr {
    let digest = hash(&[b"Warren v1 address 6", &network.0, key]);
    let mut octets = ipv6_prefix(network).addr().octets();
    octets[6..].copy_from_slice(&digest[..10]);
    Ipv6Addr::from(octets)
}

/// The /128 of a node.
pub fn ipv6_of_node(network: NetworkId, node: NodeId) -> Ipv6Addr {
    ipv6_of_key(network, &node.0)
}

/// The IPv4 address of a key at an attempt: 100.64.0.0 plus the first 22 bits
/// of SHA-256(`Warren v1 address 4` || network id || key || attempt). The
/// prefix's first and last address are moved one inwards.
pub fn ipv4_of_key(network: NetworkId, key: &[u8; 32], attempt: u8) -> Ipv4Addr {
    let digest = hash(&[b"Warren v1 address 4", &network.0, key, &[attempt]]);
    let host = u32::from_be_bytes([digest[0], digest[1], digest[2], digest[3]]) >> 10;
    let last = (1_u32 << 22) - 1;
    Ipv4Addr::from(u32::from(ipv4_prefix().addr()) | host.clamp(1, last - 1))
}

/// The first address of `key` that is not `taken`, with its attempt number.
/// `None` when all [`MAX_ATTEMPTS`] are taken.
pub fn free_ipv4(
    network: NetworkId,
    key: &[u8; 32],
    taken: impl Fn(Ipv4Addr) -> bool,
) -> Option<(Ipv4Addr, u8)> {
    (0..MAX_ATTEMPTS)
        .map(|attempt| (ipv4_of_key(network, key, attempt), attempt))
        .find(|(address, _)| !taken(*address))
}

/// True when `address` is one that `key` can have in `network`.
pub fn belongs_to_key(network: NetworkId, key: &[u8; 32], address: IpAddr) -> bool {
    match address {
        IpAddr::V6(v6) => v6 == ipv6_of_key(network, key),
        IpAddr::V4(v4) => (0..MAX_ATTEMPTS).any(|n| ipv4_of_key(network, key, n) == v4),
    }
}

/// True when a node may be somewhere outside under `endpoint`: addresses that
/// mean something else to every machine (loopback, link-local, unspecified,
/// multicast), port 0 and the overlay's own addresses are not. Whatever says
/// where a node is (descriptors, peers, the local network) is held against this.
pub fn is_underlay(network: NetworkId, endpoint: SocketAddr) -> bool {
    let ip = endpoint.ip().to_canonical();
    let special = match ip {
        IpAddr::V4(a) => a.is_link_local() || a.is_broadcast() || a.octets()[0] == 0,
        IpAddr::V6(a) => a.is_unicast_link_local() || mesh_node(endpoint).is_some(),
    };
    let overlay = match ip {
        IpAddr::V4(a) => ipv4_prefix().contains(&a),
        IpAddr::V6(a) => ipv6_prefix(network).contains(&a),
    };
    endpoint.port() != 0
        && !special
        && !overlay
        && !ip.is_loopback()
        && !ip.is_multicast()
        && !ip.is_unspecified()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_that_cannot_be_outside_are_told() {
        let network = NetworkId([5; 16]);
        let own = SocketAddr::new(ipv6_of_node(network, NodeId([1; 32])).into(), 9277);
        assert!(!is_underlay(network, own));
        for good in ["192.0.2.1:9277", "[2001:db8::1]:1", "[::ffff:10.0.0.1]:7", "[fd99::1]:51820"]
        {
            assert!(is_underlay(network, good.parse().unwrap()), "{good}");
        }
        for bad in [
            "192.0.2.1:0",
            "127.0.0.1:9",
            "[::1]:9",
            "[::ffff:127.0.0.1]:9",
            "0.0.0.0:9",
            "[::]:9",
            "224.0.0.1:9",
            "255.255.255.255:9",
            "169.254.1.1:9",
            "[fe80::1]:9",
            "[ff02::1]:9",
            "100.64.3.4:9277",
            "[fd12::7]:1",
        ] {
            assert!(!is_underlay(network, bad.parse().unwrap()), "{bad}");
        }
    }

    #[test]
    fn addresses_are_inside_their_prefixes_and_stable() {
        let network = NetworkId([5; 16]);
        let node = NodeId([9; 32]);
        let v6 = ipv6_of_node(network, node);
        assert!(ipv6_prefix(network).contains(&v6));
        assert_eq!(v6.octets()[0], 0xfd);
        assert_eq!(v6, ipv6_of_node(network, node));
        assert_ne!(v6, ipv6_of_node(NetworkId([6; 16]), node));
        let v4 = ipv4_of_key(network, &node.0, 0);
        assert!(ipv4_prefix().contains(&v4));
        assert_ne!(v4, ipv4_of_key(network, &node.0, 1));
    }

    #[test]
    fn a_taken_address_moves_to_the_next_attempt() {
        let network = NetworkId([5; 16]);
        let key = [1; 32];
        let first = ipv4_of_key(network, &key, 0);
        let (next, attempt) = free_ipv4(network, &key, |a| a == first).unwrap();
        assert_eq!((next, attempt), (ipv4_of_key(network, &key, 1), 1));
        assert!(free_ipv4(network, &key, |_| true).is_none());
        assert!(belongs_to_key(network, &key, next.into()));
        assert!(!belongs_to_key(network, &[2; 32], next.into()));
    }
}
