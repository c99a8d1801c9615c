//! One TCP connection: the library's socket with an interface of its own, so
//! that thousands of connections cost nothing to each other.
//!
//! In: its packets, and the bytes an application writes. Out: its packets, the
//! bytes that came, deadlines. Invariants: a connection is worked on under its
//! own lock, by whoever has something for it, and no second lock is taken
//! meanwhile but the wire's and the timers'; each call leaves it with nothing
//! to send that could be sent. Not here: which packet belongs to which
//! connection.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Instant;

use smoltcp::iface::{Config, Interface, PollResult, SocketHandle, SocketSet};
use smoltcp::socket::tcp::{self, CongestionControl, Socket, SocketBuffer, State};
use smoltcp::time::{Duration as StackSpan, Instant as StackTime};
use smoltcp::wire::{HardwareAddress, IpCidr, IpListenEndpoint};

use super::packet::{IcmpKind, Packet};
use super::wire::{Port, Wire};

/// A silent peer is asked whether it is still there this often, s.
const KEEP_ALIVE_S: u64 = 75;
/// One that answers nothing for so long is given up, s. Longer than any change
/// of paths takes.
const GIVE_UP_S: u64 = 300;
/// Smallest path MTU believed, bytes.
const LEAST_MTU: usize = 576;
/// Smallest segments sent, whatever the peer offers, bytes.
const LEAST_SEGMENT: u16 = 64;

/// Both ends of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct FlowKey {
    pub(super) local: SocketAddr,
    pub(super) remote: SocketAddr,
}

impl FlowKey {
    /// Which worker carries it.
    pub(super) fn lane(&self) -> usize {
        usize::from(self.local.port()) ^ usize::from(self.remote.port())
    }
}

/// Why a connection did not come about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ConnectError {
    /// The other side said no.
    #[error("connection refused")]
    Refused,
    /// No way there.
    #[error("host unreachable")]
    Unreachable,
    /// A policy on the way forbids it.
    #[error("prohibited on the way")]
    Prohibited,
    /// No answer.
    #[error("no answer in time")]
    TimedOut,
    /// Connections, or ports, are used up.
    #[error("too many connections")]
    TooMany,
}

/// What a new connection is made with.
#[derive(Debug, Clone)]
pub(super) struct Opening {
    pub(super) mtu: usize,
    /// Bytes that wait in each direction at most: the window.
    pub(super) buffer: usize,
    pub(super) seed: u64,
}

pub(super) struct Flow {
    pub(super) key: FlowKey,
    pub(super) number: u64,
    mtu: usize,
    state: Mutex<Inner>,
}

struct Inner {
    interface: Interface,
    sockets: SocketSet<'static>,
    handle: SocketHandle,
    path_mtu: usize,
    /// Longest segment the peer takes, bytes.
    segment: u16,
    /// What ICMP said while connecting.
    failure: Option<ConnectError>,
    /// The timer set.
    armed: Option<Instant>,
    /// The application let go of it.
    released: bool,
}

/// How a connection stands after it was worked on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Standing {
    /// It wants to be worked on then; only when that is sooner than before.
    pub(super) wake: Option<Instant>,
    /// Packets wait for room on the wire.
    pub(super) blocked: bool,
    /// Nothing will come of it any more: forget it.
    pub(super) over: bool,
}

/// The library's clock.
pub(super) fn stack_time(epoch: Instant, now: Instant) -> StackTime {
    StackTime::from_micros(now.saturating_duration_since(epoch).as_micros() as i64)
}

fn interface(address: IpAddr, seed: u64, port: &mut Port<'_>) -> Interface {
    let mut config = Config::new(HardwareAddress::Ip);
    config.random_seed = seed;
    let mut interface = Interface::new(config, port, StackTime::ZERO);
    interface.update_ip_addrs(|all| {
        let bits = if address.is_ipv4() { 32 } else { 128 };
        // One of the places for addresses: there is always room.
        let _full = all.push(IpCidr::new(address.into(), bits));
    });
    interface
}

/// The answer to a packet for which there is no connection: a reset.
pub(super) fn reset(wire: &Wire, key: FlowKey, packet: &[u8]) {
    let mut port = Port::new(wire, key, 1280, 1220);
    if !wire.has_room(port.to, port.lane) {
        return wire.counters.count(|c| &c.no_room);
    }
    let mut interface = interface(key.local.ip(), 0, &mut port);
    port.received = Some(packet);
    interface.poll_ingress_single(StackTime::ZERO, &mut port, &mut SocketSet::new(Vec::new()));
}

impl Flow {
    /// A connection that will send its first packet when worked on (`dial`), or
    /// that takes the one it was asked by as its first.
    pub(super) fn new(
        wire: &Wire,
        key: FlowKey,
        number: u64,
        opening: Opening,
        dial: bool,
    ) -> Result<Self, ConnectError> {
        let buffer = || SocketBuffer::new(vec![0; opening.buffer]);
        let mut socket = Socket::new(buffer(), buffer());
        socket.set_congestion_control(CongestionControl::Cubic);
        socket.set_nagle_enabled(false);
        // Packets come in batches, and each batch is acknowledged once.
        socket.set_ack_delay(None);
        socket.set_keep_alive(Some(StackSpan::from_secs(KEEP_ALIVE_S)));
        socket.set_timeout(Some(StackSpan::from_secs(GIVE_UP_S)));
        let mut port = Port::new(wire, key, opening.mtu, LEAST_SEGMENT);
        let mut interface = interface(key.local.ip(), opening.seed, &mut port);
        if dial {
            let (local, remote) = (key.local, key.remote);
            socket
                .connect(interface.context(), remote, local)
                .map_err(|_| ConnectError::Unreachable)?;
        } else {
            let (addr, port) = (Some(key.local.ip().into()), key.local.port());
            socket
                .listen(IpListenEndpoint { addr, port })
                .map_err(|_| ConnectError::Unreachable)?;
        }
        let mut sockets = SocketSet::new(Vec::with_capacity(1));
        let handle = sockets.add(socket);
        let state = Mutex::new(Inner {
            interface,
            sockets,
            handle,
            path_mtu: opening.mtu,
            segment: LEAST_SEGMENT,
            failure: None,
            armed: None,
            released: false,
        });
        Ok(Self { key, number, mtu: opening.mtu, state })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn port<'a>(&self, wire: &'a Wire, inner: &Inner) -> Port<'a> {
        Port::new(wire, self.key, inner.path_mtu, inner.segment)
    }

    /// Takes a packet in. To be followed by [`Flow::work`].
    pub(super) fn take(&self, wire: &Wire, packet: &Packet<'_>, now: StackTime) {
        let mut inner = self.lock();
        let inner = &mut *inner;
        if let Some(offered) = packet.offered_mss() {
            inner.segment = offered.max(LEAST_SEGMENT);
        }
        let mut port = self.port(wire, inner);
        port.received = Some(packet.bytes);
        inner.interface.poll_ingress_single(now, &mut port, &mut inner.sockets);
    }

    /// True when the connection is over but for strays, so that a new one
    /// between the same ends may begin.
    pub(super) fn lingers(&self) -> bool {
        matches!(self.lock().socket().state(), State::TimeWait | State::Closed)
    }

    /// Takes what ICMP says about a packet of this connection.
    pub(super) fn told(&self, what: IcmpKind) {
        let mut inner = self.lock();
        if let IcmpKind::TooBig(mtu) = what {
            inner.path_mtu = usize::from(mtu).clamp(LEAST_MTU, self.mtu);
            return;
        }
        // An established connection does not end by ICMP (RFC 5927).
        let inner = &mut *inner;
        let socket = inner.sockets.get_mut::<Socket<'_>>(inner.handle);
        if socket.state() == State::SynSent {
            inner.failure = Some(match what {
                IcmpKind::Refused => ConnectError::Refused,
                IcmpKind::Prohibited => ConnectError::Prohibited,
                _ => ConnectError::Unreachable,
            });
            socket.abort();
        }
    }

    /// Sends what is to be sent.
    pub(super) fn work(&self, wire: &Wire, epoch: Instant, now: Instant) -> Standing {
        self.work_locked(&mut self.lock(), wire, epoch, now)
    }

    fn work_locked(
        &self,
        inner: &mut Inner,
        wire: &Wire,
        epoch: Instant,
        now: Instant,
    ) -> Standing {
        let at = stack_time(epoch, now);
        let mut port = self.port(wire, inner);
        // As many packets as the window has room for.
        while inner.interface.poll_egress(at, &mut port, &mut inner.sockets)
            == PollResult::SocketStateChanged
        {}
        let blocked = port.blocked;
        let state = inner.socket().state();
        let over =
            !blocked && (state == State::Closed || (state == State::TimeWait && inner.released));
        let due = match inner.interface.poll_at(at, &inner.sockets) {
            Some(_) if over || blocked => None,
            // What is due at once was just done: the rest can wait a moment.
            Some(due) if due <= at => Some(now + std::time::Duration::from_millis(1)),
            Some(due) => {
                let micros = due.total_micros().saturating_sub(at.total_micros()).cast_unsigned();
                Some(now + std::time::Duration::from_micros(micros))
            }
            None => None,
        };
        let wake = due.filter(|due| inner.armed.is_none_or(|armed| *due < armed || armed <= now));
        if wake.is_some() {
            inner.armed = wake;
        }
        Standing { wake, blocked, over }
    }

    /// The timer rang; false when another was set since.
    pub(super) fn rang(&self, at: Instant) -> bool {
        let mut inner = self.lock();
        let current = inner.armed == Some(at);
        if current {
            inner.armed = None;
        }
        current
    }

    /// Ready once the connection stands, or failed.
    pub(super) fn poll_connected(&self, cx: &mut Context<'_>) -> Poll<Result<(), ConnectError>> {
        let mut inner = self.lock();
        let failure = inner.failure;
        let socket = inner.socket_mut();
        match socket.state() {
            State::SynSent | State::SynReceived | State::Listen => {
                socket.register_send_waker(cx.waker());
                Poll::Pending
            }
            State::Closed => Poll::Ready(Err(failure.unwrap_or(ConnectError::Refused))),
            _ => Poll::Ready(Ok(())),
        }
    }

    /// Reads; `Ok(0)` at the end.
    pub(super) fn poll_read(
        &self,
        wire: &Wire,
        epoch: Instant,
        cx: &mut Context<'_>,
        into: &mut [u8],
    ) -> (Poll<io::Result<usize>>, Option<Standing>) {
        let mut inner = self.lock();
        let socket = inner.socket_mut();
        if socket.can_recv() {
            let read = socket.recv_slice(into).unwrap_or_default();
            let standing = self.work_locked(&mut inner, wire, epoch, Instant::now());
            return (Poll::Ready(Ok(read)), Some(standing));
        }
        if socket.may_recv() {
            socket.register_recv_waker(cx.waker());
            return (Poll::Pending, None);
        }
        let ended = match socket.recv_slice(into) {
            Err(tcp::RecvError::Finished) => Ok(0),
            _ => Err(io::ErrorKind::ConnectionReset.into()),
        };
        (Poll::Ready(ended), None)
    }

    /// Writes what there is room for.
    pub(super) fn poll_write(
        &self,
        wire: &Wire,
        epoch: Instant,
        cx: &mut Context<'_>,
        from: &[u8],
    ) -> (Poll<io::Result<usize>>, Option<Standing>) {
        let mut inner = self.lock();
        let socket = inner.socket_mut();
        if !socket.may_send() {
            return (Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())), None);
        }
        let written = socket.send_slice(from).unwrap_or_default();
        if written == 0 && !from.is_empty() {
            socket.register_send_waker(cx.waker());
            return (Poll::Pending, None);
        }
        let standing = self.work_locked(&mut inner, wire, epoch, Instant::now());
        (Poll::Ready(Ok(written)), Some(standing))
    }

    /// No more will be written: what was leaves, then the end.
    pub(super) fn close(&self, wire: &Wire, epoch: Instant) -> Standing {
        let mut inner = self.lock();
        inner.socket_mut().close();
        self.work_locked(&mut inner, wire, epoch, Instant::now())
    }

    /// The application is gone. Unless both sides have ended it, that resets
    /// the connection: nobody would read what comes.
    pub(super) fn release(&self, wire: &Wire, epoch: Instant) -> Standing {
        let mut inner = self.lock();
        inner.released = true;
        let socket = inner.socket_mut();
        let ended = matches!(
            socket.state(),
            State::Closing | State::LastAck | State::TimeWait | State::Closed
        );
        if !ended {
            socket.abort();
        }
        self.work_locked(&mut inner, wire, epoch, Instant::now())
    }
}

impl Inner {
    fn socket(&self) -> &Socket<'static> {
        self.sockets.get(self.handle)
    }

    fn socket_mut(&mut self) -> &mut Socket<'static> {
        self.sockets.get_mut(self.handle)
    }
}

impl std::fmt::Debug for Flow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Flow").field("key", &self.key).finish_non_exhaustive()
    }
}
