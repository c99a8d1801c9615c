//! An exit without privileges: what comes from leases goes on by ordinary
//! sockets of this process.
//!
//! In: packets from lease addresses to anywhere, through the stack; a policy.
//! Out: connections, datagrams and echo requests of this machine, and the
//! answers. Invariants: nothing leaves that the policy does not allow, and who
//! asked is told (a reset, "prohibited"), but for echo requests, which are
//! dropped and counted; connections are bounded, for each lease and in all, and
//! end when idle. Deliberately not here: which lease is whose, and what the
//! policy says.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ipnet::IpNet;
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio::time::timeout;
use warren_os::netlink::rules::Family;

use super::arrive::{Arrival, No, Request};
use super::echo::Echoes;
use super::proxy::join_until_idle;
use super::relay::Relays;
use super::stack::Stack;
use crate::host::plan;

/// Where sessions ask for names: addresses inside the tunnel only.
pub const RESOLVERS: [IpAddr; 2] = plan::RESOLVERS;

/// The first of them, with its port.
pub const RESOLVER: SocketAddr = SocketAddr::new(RESOLVERS[0], 53);

/// Connections of one lease at one time.
const MAX_PER_LEASE: usize = 512;
/// How long a destination may take to answer.
const OUTWARD_PATIENCE: Duration = Duration::from_secs(15);
/// A connection through which nothing passes is closed after this: the least
/// that RFC 5382 allows.
const IDLE: Duration = Duration::from_secs(2 * 3600 + 4 * 60);
/// Things that arrived and wait to be looked at.
const ARRIVALS: usize = 1024;

/// What a policy is asked about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Proto {
    /// A TCP connection.
    Tcp,
    /// A datagram.
    Udp,
    /// An echo request; its port is 0.
    Echo,
}

/// The policy: whether so much may leave.
pub type Allow = Arc<dyn Fn(IpAddr, u16, Proto) -> bool + Send + Sync>;

/// The addresses that sessions have at an exit: see [`plan::leases`].
pub fn leases() -> Vec<IpNet> {
    Family::BOTH.map(plan::leases).to_vec()
}

/// An exit at work. Dropped, it ends, and the connections through it are reset.
#[derive(Debug)]
pub struct Exit {
    stack: Stack,
    task: AbortHandle,
}

impl Drop for Exit {
    fn drop(&mut self) {
        self.stack.set_exit(None);
        self.task.abort();
    }
}

impl Exit {
    /// Starts on the runtime of `handle`, which must be the one the stack runs
    /// on. `resolver`: what answers at [`RESOLVERS`]; without one, names are the
    /// policy's matter like all else.
    pub fn start(
        handle: &tokio::runtime::Handle,
        stack: &Stack,
        leases: Vec<IpNet>,
        resolver: Option<SocketAddr>,
        allow: Allow,
    ) -> Self {
        let (taker, arrivals) = mpsc::channel(ARRIVALS);
        let work = Work {
            stack: stack.clone(),
            allow,
            resolver,
            counts: Arc::default(),
            relays: Arc::default(),
            echoes: Arc::default(),
        };
        let task = handle.spawn(work.serve(arrivals)).abort_handle();
        stack.set_exit(Some((leases, taker)));
        Self { stack: stack.clone(), task }
    }
}

/// Connections of each lease.
type Counts = Arc<Mutex<HashMap<IpAddr, usize>>>;

/// One connection in the count.
struct Counted {
    counts: Counts,
    lease: IpAddr,
}

impl Counted {
    fn new(counts: &Counts, lease: IpAddr) -> Option<Self> {
        let mut all = counts.lock().unwrap_or_else(PoisonError::into_inner);
        let count = all.entry(lease).or_default();
        if *count >= MAX_PER_LEASE {
            return None;
        }
        *count += 1;
        Some(Self { counts: counts.clone(), lease })
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut all = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = all.get_mut(&self.lease) {
            *count -= 1;
            if *count == 0 {
                all.remove(&self.lease);
            }
        }
    }
}

struct Work {
    stack: Stack,
    allow: Allow,
    resolver: Option<SocketAddr>,
    counts: Counts,
    relays: Arc<Relays>,
    echoes: Arc<Echoes>,
}

impl Work {
    async fn serve(self, mut arrivals: mpsc::Receiver<Arrival>) {
        let mut connections = tokio::task::JoinSet::new();
        while let Some(arrival) = arrivals.recv().await {
            while connections.try_join_next().is_some() {}
            match arrival {
                Arrival::Connection(request) => match self.target(request.to(), Proto::Tcp) {
                    Some(to) => match Counted::new(&self.counts, request.from().ip()) {
                        Some(counted) => {
                            connections.spawn(pass(request, to, counted));
                        }
                        None => {
                            self.stack.counters().count(|c| &c.no_room);
                            request.refuse(No::Refused);
                        }
                    },
                    None => {
                        self.stack.counters().count(|c| &c.refused);
                        request.refuse(No::Prohibited);
                    }
                },
                Arrival::Datagram(datagram) => match self.target(datagram.to, Proto::Udp) {
                    Some(to) if to == datagram.to => {
                        self.relays.outward(&self.stack, &datagram).await;
                    }
                    Some(to) => self.relays.to_local(&self.stack, &datagram, to).await,
                    None => {
                        self.stack.counters().count(|c| &c.refused);
                        datagram.refuse(No::Prohibited);
                    }
                },
                Arrival::Echo { from, to, body } => {
                    let sent = (self.allow)(to, 0, Proto::Echo)
                        && self.echoes.send(&self.stack, from, to, &body).is_ok();
                    if !sent {
                        self.stack.counters().count(|c| &c.refused);
                    }
                }
            }
        }
    }

    /// Where a packet goes on to, if it may.
    fn target(&self, to: SocketAddr, proto: Proto) -> Option<SocketAddr> {
        if RESOLVERS.contains(&to.ip()) && to.port() == RESOLVER.port() && self.resolver.is_some() {
            return self.resolver;
        }
        (self.allow)(to.ip(), to.port(), proto).then_some(to)
    }
}

async fn connect(to: SocketAddr) -> io::Result<TcpStream> {
    let socket = if to.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_keepalive(true)?;
    socket.set_nodelay(true)?;
    socket.connect(to).await
}

/// The destination is connected first, so that whoever asked learns what it
/// said.
async fn pass(request: Request, to: SocketAddr, _counted: Counted) {
    let mut outside = match timeout(OUTWARD_PATIENCE, connect(to)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => {
            return request.refuse(No::Refused);
        }
        Ok(Err(_)) | Err(_) => return request.refuse(No::Unreachable),
    };
    // Failures are the ends' own affair; and where to is nobody's.
    if let Ok(mut inside) = request.accept().await {
        let _ended = join_until_idle(&mut inside, &mut outside, IDLE).await;
    }
}
