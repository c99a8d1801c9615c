//! Where metrics may be served, and under which names they may be asked for.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};

use hyper::http::uri::Authority;
use tokio::net::TcpListener;

use crate::fault::{Fault, FaultKind};

/// Checks that `listen` is on loopback or one of `own`, this node's mesh
/// addresses, which are not known (empty) before it has a network. `kernel`:
/// they are addresses of an interface, not of userspace mode's stack.
///
/// # Errors
/// [`Fault`] that says why not, and what to do instead.
pub fn check(listen: SocketAddr, own: &[IpAddr], kernel: bool) -> Result<(), Fault> {
    let ip = listen.ip().to_canonical();
    if ip.is_loopback() {
        return Ok(());
    }
    let port = listen.port();
    let refuse = |why: &str, remedy: String| {
        let what = format!("metrics cannot be served on {listen}: {why}");
        Err(Fault::new(FaultKind::Config, what).remedy(remedy))
    };
    match (own.contains(&ip), kernel) {
        (true, true) => Ok(()),
        (true, false) => refuse(
            "in userspace mode the mesh addresses are not the system's",
            format!(
                "serve them on 127.0.0.1:{port} and add --publish tcp:{port}=127.0.0.1:{port}, \
                 which passes that port of the mesh addresses there"
            ),
        ),
        (false, _) => {
            let mesh = match own.first() {
                Some(own) => {
                    format!("{} of this node in the mesh and scrape", SocketAddr::new(*own, port))
                }
                None => "the address that this node gets in its network, once it has one, and \
                         scrape"
                    .to_owned(),
            };
            refuse(
                "they tell whom this node talks to and how much, without a password, to whoever \
                 reaches the address, so only loopback and this node's mesh addresses will do",
                format!(
                    "use 127.0.0.1:{port} and a reverse proxy with TLS and a password, or {mesh} \
                     over the mesh"
                ),
            )
        }
    }
}

/// Opens the port.
///
/// # Errors
/// [`Fault`] with the remedy, such as for a port that is taken.
pub fn bind(listen: SocketAddr) -> Result<TcpListener, Fault> {
    let wrong = |error: std::io::Error| {
        let (kind, remedy) = match error.kind() {
            ErrorKind::PermissionDenied => (
                FaultKind::Permission,
                "ports below 1024 need CAP_NET_BIND_SERVICE: choose another one with --metrics",
            ),
            ErrorKind::AddrInUse => (
                FaultKind::Resource,
                "another program has that port (`ss -ltnp` shows it): choose another one with \
                 --metrics",
            ),
            _ => (FaultKind::Resource, "choose another address with --metrics"),
        };
        Fault::new(kind, format!("cannot serve metrics on {listen}: {error}")).remedy(remedy)
    };
    // With tokio's own call the port of a daemon that just ended is free at once.
    let socket = match listen {
        SocketAddr::V4(_) => tokio::net::TcpSocket::new_v4(),
        SocketAddr::V6(_) => tokio::net::TcpSocket::new_v6(),
    }
    .map_err(wrong)?;
    socket.set_reuseaddr(true).map_err(wrong)?;
    socket.bind(listen).map_err(wrong)?;
    socket.listen(BACKLOG).map_err(wrong)
}

/// Connections that may wait to be served.
const BACKLOG: u32 = 16;

/// True when a request for `host` (of its `Host` header) was meant for metrics
/// and not sent by a web page whose name was made to lead here: addresses and
/// `localhost` cannot be made to, and of the mesh's own names this node's
/// network decides.
pub fn host_is_meant(host: &str, loopback: bool) -> bool {
    let Ok(authority) = host.parse::<Authority>() else { return false };
    if host.contains('@') {
        return false;
    }
    let name = authority.host();
    let bare = name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(name);
    let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
    bare.parse::<IpAddr>().is_ok()
        || name == "localhost"
        || (!loopback && name.ends_with(".warren"))
}
