//! The stack: connections and datagram sockets on the node's own addresses,
//! and the loop that moves packets between them and the workers.
//!
//! In: frames of a [`StackEnd`], calls of applications. Out: frames, [`Stream`]s
//! and [`UdpSocket`]s, and what arrives unasked ([`Arrival`]). Invariants: the
//! numbers of connections, of requests under way and of bytes that wait are
//! bounded; a connection that ends is forgotten at once; with nothing to do the
//! loop sleeps. Not here: what a connection is for.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::future::poll_fn;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use rand_core::RngCore;
use tokio::sync::{Notify, mpsc};
use warren_os::tun::memory::StackEnd;

use super::address::{Addresses, Source};
use super::arrive::Arrival;
use super::flow::{ConnectError, Flow, FlowKey, Opening, Standing, stack_time};
use super::packet;
use super::stream::{Stream, UdpSocket};
use super::wire::{Counters, Wire};
use crate::random::OsRandom;

/// Connections at one time, by default; of those opened by others three quarters
/// at most.
pub const MAX_CONNECTIONS: usize = 2048;
/// Connections asked for from outside that nobody has accepted yet.
pub(super) const MAX_REQUESTS: usize = 256;
/// Datagram sockets at one time.
const MAX_SOCKETS: usize = 4096;
/// Datagrams that wait in one socket.
const DATAGRAMS: usize = 128;
/// Up to so many connections have large windows: 2 MiB carry 200 Mbit/s over
/// 80 ms. The memory is used only as far as bytes wait.
const LARGE_UNTIL: usize = 64;
const LARGE_BUFFER: usize = 2 << 20;
const SMALL_BUFFER: usize = 128 << 10;
/// Ports that connections leave from (IANA's dynamic range).
const PORTS: std::ops::Range<u16> = 49_152..65_535;
/// Random tries for a free port.
const PORT_TRIES: usize = 64;
/// How long a connection is tried for.
pub const CONNECT_PATIENCE: Duration = Duration::from_secs(20);

/// A TCP/IP stack on addresses of its own. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Stack(pub(super) Arc<Shared>);

#[derive(Debug)]
pub(super) struct Shared {
    pub(super) wire: Wire,
    pub(super) epoch: Instant,
    pub(super) table: Mutex<Table>,
    timers: Timers,
    blocked: Mutex<Vec<Arc<Flow>>>,
    max_connections: usize,
}

#[derive(Debug, Default)]
pub(super) struct Table {
    pub(super) flows: HashMap<FlowKey, Arc<Flow>>,
    /// Asked for, and nobody has answered yet.
    pub(super) requests: HashSet<FlowKey>,
    pub(super) sockets: HashMap<SocketAddr, Socket>,
    numbers: u64,
    /// Who takes what comes for our own addresses.
    pub(super) member: Option<mpsc::Sender<Arrival>>,
    /// Who takes what comes from the leases of an exit, and which those are.
    pub(super) exit: Option<(Vec<IpNet>, mpsc::Sender<Arrival>)>,
}

/// The stack's end of a datagram socket.
#[derive(Debug)]
pub(super) struct Socket {
    pub(super) incoming: mpsc::Sender<(SocketAddr, Vec<u8>)>,
}

/// When connections want to be worked on.
#[derive(Debug, Default)]
struct Timers {
    set: Mutex<BTreeMap<(Instant, u64), Weak<Flow>>>,
    sooner: Notify,
}

impl Timers {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<(Instant, u64), Weak<Flow>>> {
        self.set.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, at: Instant, flow: &Arc<Flow>) {
        let mut set = self.lock();
        let sooner = set.first_key_value().is_none_or(|((first, _), _)| at < *first);
        set.insert((at, flow.number), Arc::downgrade(flow));
        drop(set);
        if sooner {
            self.sooner.notify_one();
        }
    }

    fn first(&self) -> Option<Instant> {
        self.lock().first_key_value().map(|((at, _), _)| *at)
    }

    fn due(&self, now: Instant) -> Vec<(Instant, Arc<Flow>)> {
        let mut set = self.lock();
        let later = set.split_off(&(now, u64::MAX));
        let due = std::mem::replace(&mut *set, later);
        due.into_iter().filter_map(|((at, _), flow)| Some((at, flow.upgrade()?))).collect()
    }
}

impl Shared {
    pub(super) fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does what a connection asked for when it was worked on.
    pub(super) fn settle(&self, flow: &Arc<Flow>, standing: Standing) {
        if let Some(at) = standing.wake {
            self.timers.set(at, flow);
        }
        if standing.blocked {
            self.blocked.lock().unwrap_or_else(PoisonError::into_inner).push(flow.clone());
        }
        if standing.over {
            let mut table = self.table();
            // Another may have taken its place.
            if table.flows.get(&flow.key).is_some_and(|current| Arc::ptr_eq(current, flow)) {
                table.flows.remove(&flow.key);
            }
        }
    }

    pub(super) fn work(&self, flow: &Arc<Flow>) {
        let standing = flow.work(&self.wire, self.epoch, Instant::now());
        self.settle(flow, standing);
    }
}

impl Stack {
    /// A stack on `own` addresses whose packets pass through `end`. Nothing
    /// moves until [`Stack::run`].
    pub fn new(end: StackEnd, own: Addresses, max_connections: usize) -> Self {
        Self(Arc::new(Shared {
            wire: Wire::new(end, own),
            epoch: Instant::now(),
            table: Mutex::default(),
            timers: Timers::default(),
            blocked: Mutex::default(),
            max_connections,
        }))
    }

    /// Our addresses now.
    pub fn addresses(&self) -> Arc<Addresses> {
        self.0.wire.own()
    }

    /// Replaces our addresses. Connections from one that is gone are reset.
    pub fn set_addresses(&self, own: Addresses) {
        self.0.wire.set_own(own);
        self.reset_lost();
    }

    /// Resets connections from addresses that are neither ours nor behind the
    /// exit any more.
    fn reset_lost(&self) {
        let own = self.addresses();
        let lost: Vec<Arc<Flow>> = {
            let table = self.0.table();
            let leases = table.exit.as_ref().map(|(leases, _)| leases.as_slice());
            let leased =
                |ip: IpAddr| leases.is_some_and(|all| all.iter().any(|net| net.contains(&ip)));
            let gone = |flow: &&Arc<Flow>| {
                !own.is_own(flow.key.local.ip()) && !leased(flow.key.remote.ip())
            };
            table.flows.values().filter(gone).cloned().collect()
        };
        for flow in lost {
            let standing = flow.release(&self.0.wire, self.0.epoch);
            self.0.settle(&flow, standing);
        }
    }

    /// Packets not taken.
    pub fn counters(&self) -> &Counters {
        &self.0.wire.counters
    }

    /// Connections there are.
    pub fn connections(&self) -> usize {
        self.0.table().flows.len()
    }

    /// Who takes connections and datagrams for our own addresses that nobody
    /// here asked for. Without a taker they are refused.
    pub fn set_member(&self, taker: Option<mpsc::Sender<Arrival>>) {
        self.0.table().member = taker;
    }

    /// Who takes whatever comes from `leases`, wherever it is for. Connections of
    /// leases that are no more are reset.
    pub fn set_exit(&self, exit: Option<(Vec<IpNet>, mpsc::Sender<Arrival>)>) {
        self.0.table().exit = exit;
        self.reset_lost();
    }

    /// Takes one frame in at once, beside those of the workers.
    pub fn inject(&self, frame: &[u8]) {
        let mut touched = Vec::new();
        self.arrived(frame, stack_time(self.0.epoch, Instant::now()), &mut touched);
        for flow in touched {
            self.0.work(&flow);
        }
    }

    /// Opens a connection from `source`.
    ///
    /// # Errors
    /// [`ConnectError`], at the latest after [`CONNECT_PATIENCE`].
    pub async fn connect(&self, source: Source, to: SocketAddr) -> Result<Stream, ConnectError> {
        let flow = self.open(source, to)?;
        let stream = Stream::new(self.clone(), flow);
        self.0.work(stream.flow());
        tokio::time::timeout(CONNECT_PATIENCE, poll_fn(|cx| stream.flow().poll_connected(cx)))
            .await
            .map_err(|_| ConnectError::TimedOut)??;
        Ok(stream)
    }

    fn open(&self, source: Source, to: SocketAddr) -> Result<Arc<Flow>, ConnectError> {
        let mut table = self.0.table();
        // Under the lock: whoever takes an address away resets what has it.
        if !self.addresses().is_own(source.address) {
            return Err(ConnectError::Unreachable);
        }
        for _ in 0..PORT_TRIES {
            let port = random_port();
            let key = FlowKey { local: SocketAddr::new(source.address, port), remote: to };
            if !table.flows.contains_key(&key) {
                return self.add(&mut table, key, source.mtu, true);
            }
        }
        Err(ConnectError::TooMany)
    }

    pub(super) fn add(
        &self,
        table: &mut Table,
        key: FlowKey,
        mtu: usize,
        dial: bool,
    ) -> Result<Arc<Flow>, ConnectError> {
        // What others open leaves room for what programs here want.
        let most = self.0.max_connections;
        let most = if dial { most } else { most - most / 4 };
        if table.flows.len() >= most {
            self.0.wire.counters.count(|c| &c.no_room);
            return Err(ConnectError::TooMany);
        }
        table.numbers += 1;
        let buffer = if table.flows.len() < LARGE_UNTIL { LARGE_BUFFER } else { SMALL_BUFFER };
        let opening = Opening { mtu, buffer, seed: OsRandom.next_u64() };
        let flow = Arc::new(Flow::new(&self.0.wire, key, table.numbers, opening, dial)?);
        table.flows.insert(key, flow.clone());
        Ok(flow)
    }

    /// A datagram socket on a port of `address` that is free; on `port` if one
    /// is given.
    ///
    /// # Errors
    /// [`ConnectError::TooMany`] when it is taken, or all are.
    pub fn bind_udp(&self, address: IpAddr, port: Option<u16>) -> Result<UdpSocket, ConnectError> {
        let mut table = self.0.table();
        if table.sockets.len() >= MAX_SOCKETS {
            return Err(ConnectError::TooMany);
        }
        for _ in 0..PORT_TRIES {
            let local = SocketAddr::new(address, port.unwrap_or_else(random_port));
            if let Entry::Vacant(free) = table.sockets.entry(local) {
                let (sender, incoming) = mpsc::channel(DATAGRAMS);
                free.insert(Socket { incoming: sender });
                return Ok(UdpSocket::new(self.clone(), local, incoming));
            }
        }
        Err(ConnectError::TooMany)
    }

    /// Sends a datagram as from `from`, which need not be bound; false when it
    /// was dropped.
    pub fn send_datagram(&self, from: SocketAddr, to: SocketAddr, payload: &[u8]) -> bool {
        let key = FlowKey { local: from, remote: to };
        packet::datagram(from, to, payload)
            .is_some_and(|frame| self.0.wire.offer(to.ip(), key.lane(), frame))
    }

    /// Sends an echo reply; `body` begins with identifier and sequence.
    pub fn send_echo_reply(&self, from: IpAddr, to: IpAddr, body: &[u8]) -> bool {
        from.is_ipv4() == to.is_ipv4()
            && self.0.wire.offer(to, 0, packet::echo_reply(from, to, body))
    }

    /// Moves packets, until dropped. To be run once.
    pub async fn run(&self) {
        let shared = &*self.0;
        let (mut frames, mut touched) = (Vec::new(), Vec::new());
        loop {
            shared.wire.end().receive(&mut frames);
            shared.wire.take_looped(&mut frames);
            let now = stack_time(shared.epoch, Instant::now());
            for frame in frames.drain(..) {
                self.arrived(&frame, now, &mut touched);
            }
            // Each once, however many packets it got: they are acknowledged
            // together.
            touched.sort_by_key(|flow: &Arc<Flow>| flow.number);
            touched.dedup_by_key(|flow| flow.number);
            for flow in touched.drain(..) {
                shared.work(&flow);
            }
            for (at, flow) in shared.timers.due(Instant::now()) {
                if flow.rang(at) {
                    shared.work(&flow);
                }
            }
            let blocked =
                std::mem::take(&mut *shared.blocked.lock().unwrap_or_else(PoisonError::into_inner));
            for flow in &blocked {
                shared.work(flow);
            }
            self.rest().await;
        }
    }

    /// Waits until there is something to do.
    async fn rest(&self) {
        let first = self.0.timers.first();
        let timer = async {
            match first {
                Some(at) => tokio::time::sleep_until(at.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = poll_fn(|cx| self.0.wire.end().poll_ready(cx)) => {}
            () = self.0.wire.looped.notified() => {}
            () = self.0.timers.sooner.notified() => {}
            () = timer => {}
        }
        // Applications on this thread have their turn.
        tokio::task::yield_now().await;
    }
}

fn random_port() -> u16 {
    let count = u32::from(PORTS.end - PORTS.start);
    PORTS.start + (OsRandom.next_u32() % count) as u16
}
