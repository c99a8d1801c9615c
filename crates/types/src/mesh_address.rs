//! Mesh addresses: how "over other nodes" is written where a socket address is
//! expected.
//!
//! A datagram for a node that is reached over others goes to `[its overlay IPv6
//! address]:1`, and one that came so is from there. Engine, control transport
//! and path choice treat it as any other address; only what sends and receives
//! datagrams knows that it means a relay frame. Invariant: no real endpoint is
//! ever one: overlay addresses are not reachable from outside the overlay, and
//! such endpoints are refused wherever they are learnt.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

/// The port of every mesh address.
pub const MESH_PORT: u16 = 1;

/// The address that means "the node with this overlay address, over others".
pub fn mesh_address(node: Ipv6Addr) -> SocketAddr {
    SocketAddr::new(IpAddr::V6(node), MESH_PORT)
}

/// The overlay address behind a mesh address; `None` for any other address.
pub fn mesh_node(address: SocketAddr) -> Option<Ipv6Addr> {
    match address {
        SocketAddr::V6(v6) if v6.port() == MESH_PORT && v6.ip().octets()[0] == 0xfd => {
            Some(*v6.ip())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_overlay_addresses_with_the_port_are_mesh_addresses() {
        let node: Ipv6Addr = "fd12::7".parse().unwrap();
        assert_eq!(mesh_node(mesh_address(node)), Some(node));
        for other in ["[fd12::7]:9277", "[2001:db8::1]:1", "192.0.2.1:1", "[::ffff:192.0.2.1]:1"] {
            assert_eq!(mesh_node(other.parse().unwrap()), None, "{other}");
        }
    }
}
