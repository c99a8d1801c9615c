//! Datagrams over TLS over TCP, for networks that let no UDP through.
//!
//! A tunnel carries the datagrams of one pair of daemons. At each end it comes
//! out of a UDP socket on the loopback interface, connected to the daemon's own
//! port: to the daemon, its peer has that loopback address, and links, control
//! transport and path choice work over it as over any other. In: a TCP stream
//! that was opened ([`Tunnels::open`]) or accepted ([`offer`]). Out: datagrams.
//!
//! Invariants: a tunnel authenticates nobody and needs not to: what it carries
//! is authenticated by links and control transport, so its TLS keeps only what
//! an observer of UDP would see anyway from sight; what it carries goes to this
//! daemon's port and nowhere else; a stream that stalls loses datagrams as a
//! full queue would, it holds up nobody. Deliberately not here: when to use one
//! (`core::dialing`), which path is better (`warren-proto`).

mod carry;
mod offer;

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustls::pki_types::ServerName;
use tokio::net::{TcpSocket, TcpStream, UdpSocket};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

pub(crate) use self::offer::offer;
use super::tls::{self, TlsError};

/// For TCP and TLS together.
const OPEN: Duration = Duration::from_secs(5);
/// Head start of UDP over TCP, while UDP is not known to be blocked.
const HEAD_START: Duration = Duration::from_millis(700);

/// All tunnels of one daemon.
pub(crate) struct Tunnels {
    /// The daemon's own UDP port, on an address of this host.
    daemon: SocketAddr,
    client: Arc<rustls::ClientConfig>,
    state: Mutex<State>,
    /// The last connection that came about came over a tunnel: UDP seems to be
    /// blocked here.
    needed: AtomicBool,
}

#[derive(Default)]
struct State {
    /// Server to the loopback address that leads to it.
    by_server: HashMap<SocketAddr, SocketAddr>,
    /// Every loopback address that leads into a tunnel.
    local: HashSet<SocketAddr>,
}

impl std::fmt::Debug for Tunnels {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tunnels").field("daemon", &self.daemon).finish_non_exhaustive()
    }
}

/// The address by which a socket bound to `bound` is reached on this host.
fn on_this_host(bound: SocketAddr) -> SocketAddr {
    let ip = match bound.ip() {
        // A dual-stack socket takes IPv4 as well.
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, bound.port())
}

impl Tunnels {
    /// For a daemon whose UDP port is bound to `bound`.
    ///
    /// # Errors
    /// When TLS cannot be set up.
    pub(crate) fn new(bound: SocketAddr) -> Result<Arc<Self>, TlsError> {
        Ok(Arc::new(Self {
            daemon: on_this_host(bound),
            client: tls::tunnel_client()?,
            state: Mutex::default(),
            needed: AtomicBool::new(false),
        }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// True for an address that leads into a tunnel.
    pub(crate) fn contains(&self, address: SocketAddr) -> bool {
        self.state().local.contains(&address)
    }

    /// How long attempts over TCP let those over UDP go ahead.
    pub(crate) fn head_start(&self) -> Duration {
        if self.needed.load(Ordering::Relaxed) { Duration::ZERO } else { HEAD_START }
    }

    /// A peer was reached at `address`: whether that needed a tunnel is what to
    /// expect of the next.
    pub(crate) fn reached(&self, address: SocketAddr) {
        self.needed.store(self.contains(address), Ordering::Relaxed);
    }

    /// UDP gets through after all.
    pub(crate) fn udp_works(&self) {
        self.needed.store(false, Ordering::Relaxed);
    }

    /// Opens a tunnel to `server`, or finds the one that is open. Returns the
    /// loopback address that now leads to the daemon behind it.
    ///
    /// # Errors
    /// When nothing answers there, or it speaks something else.
    pub(crate) async fn open(self: &Arc<Self>, server: SocketAddr) -> io::Result<SocketAddr> {
        if let Some(local) = self.state().by_server.get(&server) {
            return Ok(*local);
        }
        let opening = async {
            let stream = connect(server).await?;
            stream.set_nodelay(true)?;
            let connector = TlsConnector::from(self.client.clone());
            // Names are not used: SNI is off, and what is inside authenticates.
            let name = ServerName::IpAddress(server.ip().into());
            connector.connect(name, stream).await
        };
        let stream = timeout(OPEN, opening).await.map_err(|_| io::ErrorKind::TimedOut)??;
        let (socket, local) = self.exit().await?;
        {
            let mut state = self.state();
            state.local.insert(local);
            state.by_server.insert(server, local);
        }
        tracing::info!(%server, %local, "datagrams go over TLS to this node");
        let tunnels = self.clone();
        tokio::spawn(async move {
            let end = carry::carry(stream, &socket).await;
            tracing::info!(%server, %end, "the tunnel over TLS ended");
            let mut state = tunnels.state();
            state.local.remove(&local);
            if state.by_server.get(&server) == Some(&local) {
                state.by_server.remove(&server);
            }
        });
        Ok(local)
    }

    /// The loopback end of a new tunnel: takes from and gives to the daemon's
    /// port only.
    async fn exit(&self) -> io::Result<(UdpSocket, SocketAddr)> {
        let loopback: IpAddr = match self.daemon {
            SocketAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            SocketAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        };
        let socket = UdpSocket::bind(SocketAddr::new(loopback, 0)).await?;
        socket.connect(self.daemon).await?;
        let local = socket.local_addr()?;
        Ok((socket, local))
    }
}

/// Connects a socket that carries the mark of our own packets from its first
/// one on, so that it goes beside what all other traffic is routed into.
async fn connect(server: SocketAddr) -> io::Result<TcpStream> {
    let socket = match server {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    let _unmarked = warren_os::mark::mark(&socket);
    socket.connect(server).await
}
