//! Which addresses may be probed or handed on as a peer's.
//!
//! In: an address from outside, our own overlay prefixes. Out: yes or no, in
//! canonical form. An address that leads into the tunnel itself would make
//! packets go in circles; one that nobody can own would be noise.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use warren_types::mesh_node;

/// The overlay prefixes our own overlay addresses lie in: the /48 of the
/// network (section 5 of the protocol) and 100.64.0.0/10.
pub fn overlay_prefixes(local: &[IpAddr]) -> Vec<IpNet> {
    let shared = Ipv4Net::new([100, 64, 0, 0].into(), 10).expect("10 bits are a prefix");
    let mut prefixes: Vec<IpNet> = local
        .iter()
        .filter_map(|address| match address {
            IpAddr::V4(v4) if shared.contains(v4) => Some(shared.into()),
            IpAddr::V4(_) => None,
            IpAddr::V6(v6) => Ipv6Net::new(*v6, 48).ok().map(|net| net.trunc().into()),
        })
        .collect();
    prefixes.dedup();
    prefixes
}

/// An address learnt from outside, in canonical form (IPv4 not mapped into
/// IPv6, no scope); `None` when it can be no underlay address of a peer: mesh
/// addresses, ones in `overlay`, loopback, unspecified, multicast, broadcast,
/// link-local IPv6 (which means nothing without an interface), port 0.
pub fn admissible(address: SocketAddr, overlay: &[IpNet]) -> Option<SocketAddr> {
    let ip = address.ip().to_canonical();
    let address = SocketAddr::new(ip, address.port());
    let refused = address.port() == 0
        || mesh_node(address).is_some()
        || ip.is_unspecified()
        || ip.is_loopback()
        || ip.is_multicast()
        || overlay.iter().any(|net| net.contains(&ip))
        || match ip {
            IpAddr::V4(v4) => v4.is_broadcast() || v4.octets()[0] == 0,
            IpAddr::V6(v6) => link_local(v6),
        };
    (!refused).then_some(address)
}

/// As [`admissible`], but mesh and loopback addresses (local proxies) pass: for
/// what our own side inserts, and where datagrams come from.
pub(crate) fn local(address: SocketAddr, overlay: &[IpNet]) -> Option<SocketAddr> {
    let canonical = SocketAddr::new(address.ip().to_canonical(), address.port());
    let detour = mesh_node(address).is_some() || canonical.ip().is_loopback();
    if detour && address.port() != 0 { Some(canonical) } else { admissible(address, overlay) }
}

fn link_local(ip: Ipv6Addr) -> bool {
    ip.segments()[0] & 0xffc0 == 0xfe80
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_a_peer_can_have_pass() {
        let ours = ["fd12:3456:789a::5".parse().unwrap(), "100.64.1.2".parse().unwrap()];
        let overlay = overlay_prefixes(&ours);
        let ok = |text: &str| admissible(text.parse().unwrap(), &overlay);
        for good in ["192.0.2.1:9", "10.0.0.1:51820", "[2001:db8::1]:1", "[fd99::1]:51820"] {
            assert_eq!(ok(good), Some(good.parse().unwrap()));
        }
        assert_eq!(ok("[::ffff:192.0.2.1]:9"), Some("192.0.2.1:9".parse().unwrap()));
        for bad in [
            "192.0.2.1:0",
            "127.0.0.1:9",
            "[::1]:9",
            "[::ffff:127.0.0.1]:9",
            "0.0.0.0:9",
            "0.1.2.3:9",
            "[::]:9",
            "224.0.0.1:9",
            "255.255.255.255:9",
            "[ff02::1]:9",
            "[fe80::1]:9",
            "[fd12:3456:789a::7]:9",
            "[fd12:3456:789a::7]:1",
            "[fd99::7]:1",
            "100.64.7.7:9",
        ] {
            assert_eq!(ok(bad), None, "{bad}");
        }
        let elsewhere = admissible("100.64.7.7:9".parse().unwrap(), &overlay_prefixes(&[]));
        assert!(elsewhere.is_some(), "carriers use it too");
        let mesh = warren_types::mesh_address("fd12:3456:789a::7".parse().unwrap());
        assert_eq!(local(mesh, &overlay), Some(mesh));
    }
}
