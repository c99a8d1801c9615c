//! What the daemon takes from the operating system when it starts: the UDP
//! sockets, the TUN interface, and the interface's addresses and routes.
//!
//! Invariants: everything here disappears with the process (the kernel deletes
//! the interface, and with it addresses and routes, when its last queue is
//! closed), so nothing is left half-made. Nothing is opened before the
//! configuration was checked, and no invitation is used up before all of this
//! succeeded.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;
use tokio::net::TcpListener;
use warren_os::netlink::{LinkSettings, Netlink, Route};
use warren_os::tun::{Tun, TunError};
use warren_os::udp::{BindError, MAX_SEGMENTS, MAX_SEND_BYTES, UdpSocket};
use warren_proto::link::session::OVERHEAD;

use crate::config::{Config, Source};
use crate::fault::{Fault, FaultKind};

/// Interfaces tried when the operator named none: `warren0` to `warren15`.
const INTERFACE_TRIES: usize = 16;

/// Packets the kernel may queue towards the TUN; the default of a TUN device
/// (500) is too short for 64 KiB super-packets of several flows.
const TX_QUEUE_LEN: u32 = 1000;

/// The headers that leave most room for payload in a TCP segment: IPv4 20, TCP
/// 20, timestamps 12.
const TCP_HEADERS: u32 = 52;

/// What the kernel keeps of the super-packet limit for headers of its own
/// (`MAX_TCP_HEADER` and one more), whatever headers there are.
const KERNEL_RESERVE: u32 = 321;

/// The daemon's sockets, all bound to one port.
pub(super) struct Underlay {
    pub(super) sockets: Vec<Arc<UdpSocket>>,
    /// The address bound, with the real port.
    pub(super) local: SocketAddr,
}

/// Binds one socket per worker pair.
pub(super) fn bind(config: &Config, workers: usize) -> Result<Underlay, Fault> {
    let address = config.listen.address;
    let first = match UdpSocket::bind(address, workers > 1) {
        // A kernel without IPv6: the default means whatever there is.
        Err(BindError::Os { .. }) if !config.listen.explicit => {
            let any = SocketAddr::from((std::net::Ipv4Addr::UNSPECIFIED, address.port()));
            UdpSocket::bind(any, workers > 1)
        }
        bound => bound,
    }
    .map_err(bind_fault)?;
    let local = first.local_addr().map_err(|e| Fault::internal(&e))?;
    let mut sockets = vec![Arc::new(first)];
    for _ in 1..workers {
        sockets.push(Arc::new(UdpSocket::bind(local, true).map_err(bind_fault)?));
    }
    Ok(Underlay { sockets, local })
}

/// Opens the port for tunnels over TCP, if this node offers them.
pub(super) fn bind_tcp(config: &Config) -> Result<Option<TcpListener>, Fault> {
    let Some(listen) = config.tcp_listen else { return Ok(None) };
    let wrong = |error: std::io::Error| {
        let (kind, remedy) = match error.kind() {
            ErrorKind::PermissionDenied => (
                FaultKind::Permission,
                "ports below 1024 need CAP_NET_BIND_SERVICE: start as root, or choose another port",
            ),
            ErrorKind::AddrInUse => (
                FaultKind::Resource,
                "another program has that port (`ss -ltnp` shows it): choose another one",
            ),
            _ => (FaultKind::Resource, "choose another address with --tcp-listen"),
        };
        Fault::new(kind, format!("cannot listen on TCP {}: {error}", listen.address)).remedy(remedy)
    };
    let listener = std::net::TcpListener::bind(listen.address).map_err(wrong)?;
    listener.set_nonblocking(true).map_err(wrong)?;
    // What it accepts carries the mark too.
    let _unmarked = warren_os::mark::mark(&listener);
    TcpListener::from_std(listener).map(Some).map_err(wrong)
}

fn bind_fault(error: BindError) -> Fault {
    let kind = match error {
        BindError::NoPermission(_) => FaultKind::Permission,
        _ => FaultKind::Resource,
    };
    Fault::new(kind, error.to_string())
}

/// Opens the TUN interface: the name asked for, or the first free default one.
pub(super) fn open_tun(config: &Config, workers: usize) -> Result<Tun, Fault> {
    let wanted = config.interface.as_str();
    if config.source("interface") != Source::Default {
        return Tun::open(wanted, workers).map_err(tun_fault);
    }
    let stem = wanted.trim_end_matches(|c: char| c.is_ascii_digit());
    let mut last = None;
    for number in 0..INTERFACE_TRIES {
        match Tun::open(&format!("{stem}{number}"), workers) {
            Ok(tun) => return Ok(tun),
            Err(error @ TunError::NameBusy(_)) => last = Some(error),
            Err(error) => return Err(tun_fault(error)),
        }
    }
    Err(last.map_or_else(|| Fault::new(FaultKind::Internal, "no interface tried"), tun_fault))
}

fn tun_fault(error: TunError) -> Fault {
    let kind = match error {
        TunError::NoPermission => FaultKind::Permission,
        TunError::BadName(_) => FaultKind::Config,
        _ => FaultKind::Resource,
    };
    Fault::new(kind, error.to_string())
}

/// The largest super-packet that leaves in one `UDP_SEGMENT` send: as many
/// full segments as fit, so that no send carries a small rest.
fn super_packet_limit(mtu: u32) -> u32 {
    let datagram = mtu + OVERHEAD as u32;
    let segments = (MAX_SEND_BYTES as u32 / datagram).min(MAX_SEGMENTS as u32);
    (segments * (mtu - TCP_HEADERS) + KERNEL_RESERVE).min(65_535)
}

/// Gives the interface its addresses, routes and limits, and brings it up.
pub(super) fn configure(
    interface: &str,
    mtu: u32,
    addresses: &[IpAddr],
    prefixes: &[IpNet],
) -> Result<(), Fault> {
    let wrong = |error| Fault::netlink(&format!("set up {interface}"), &error);
    let mut netlink = Netlink::open().map_err(wrong)?;
    let index = netlink.link_index(interface).map_err(wrong)?;
    netlink
        .configure_link(
            index,
            &LinkSettings {
                mtu: Some(mtu),
                gso_max_size: Some(super_packet_limit(mtu)),
                tx_queue_len: Some(TX_QUEUE_LEN),
                ..LinkSettings::default()
            },
        )
        .map_err(wrong)?;
    netlink
        .configure_link(index, &LinkSettings { up: Some(true), ..LinkSettings::default() })
        .map_err(wrong)?;
    for address in addresses {
        match netlink.add_address(index, IpNet::from(*address)) {
            // A kernel without IPv6 still serves IPv4 members.
            Err(error) if address.is_ipv6() => {
                tracing::warn!(%error, "no IPv6 on this machine: going on with IPv4 only");
            }
            other => other.map_err(wrong)?,
        }
    }
    for prefix in prefixes {
        let mut route = Route::direct(*prefix, index);
        route.source = addresses.iter().copied().find(|a| prefix.contains(a));
        match netlink.add_route(&route) {
            Err(error) if prefix.addr().is_ipv6() => {
                tracing::warn!(%error, "no IPv6 route to the network");
            }
            other => other.map_err(wrong)?,
        }
    }
    Ok(())
}

/// Addresses under which others may reach this machine, with the listen port;
/// only the bound one when the operator bound a particular address.
pub(super) fn local_endpoints(local: SocketAddr, interface: &str) -> Vec<SocketAddr> {
    if !local.ip().is_unspecified() {
        return vec![local];
    }
    let listed = Netlink::open().and_then(|mut netlink| {
        let own = netlink.link_index(interface).ok();
        netlink.reachable_addresses(&own.into_iter().collect::<Vec<_>>())
    });
    match listed {
        Ok(addresses) => addresses
            .into_iter()
            .filter(|a| local.is_ipv6() || a.is_ipv4())
            .map(|a| SocketAddr::new(a, local.port()))
            .collect(),
        Err(error) => {
            tracing::warn!(%error, "cannot list the addresses of this machine");
            Vec::new()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_super_packet_fills_one_send() {
        let limit = super_packet_limit(1420);
        // 45 datagrams of 1452 bytes are 65,340 of the 65,507 allowed.
        // and the kernel makes 45 segments of this, for IPv4 and IPv6 alike.
        assert_eq!((limit - 321) / (1420 - 52), 45);
        assert_eq!((limit - 321) / (1420 - 72), 45);
        assert!(super_packet_limit(9000) <= 65_535);
        assert!(super_packet_limit(1280) <= 65_535);
    }
}
