//! What workers need of one peer. One `Arc<PeerLink>` lives as long as the
//! peer is configured; everything in it changes without locks.

use std::net::{Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use arc_swap::{ArcSwap, ArcSwapOption};
use warren_types::{LinkPublicKey, Suite};

use super::frame::Tally;
use super::relay::RelayRoute;
use super::session::SendSession;

/// Hot state of one peer, shared by the engine and all workers.
#[derive(Debug)]
pub struct PeerLink {
    /// The peer's static key; the engine changes it when it is rotated.
    key: ArcSwap<LinkPublicKey>,
    /// Suite of its sessions.
    pub suite: Suite,
    /// True when the peer runs Warren (understands link frames); false for a
    /// stock WireGuard client.
    pub is_warren: bool,
    /// Where its datagrams go. The engine sets it; for stock WireGuard peers a
    /// worker moves it when an authenticated datagram comes from elsewhere.
    pub endpoint: ArcSwapOption<SocketAddr>,
    /// The last other address a Warren peer was heard from.
    heard: ArcSwapOption<SocketAddr>,
    /// The session to seal with.
    pub send: ArcSwapOption<SendSession>,
    /// Its own overlay IPv6 address, which relay frames name it by.
    node: ArcSwapOption<Ipv6Addr>,
    /// The way over other nodes, for datagrams to its mesh address; set by the
    /// engine.
    pub relay: ArcSwapOption<RelayRoute>,
    /// The way back of what last came from it over other nodes.
    pub relay_back: ArcSwapOption<RelayRoute>,
    /// Largest inner packet, bytes; updated by path MTU probing.
    pub path_mtu: AtomicU32,
    /// A worker asked the engine for a handshake and it has not answered yet;
    /// keeps the queue free of repeats. The engine clears it.
    pub handshake_wanted: AtomicBool,
    /// Bytes of inner packets, both ways.
    pub tx_bytes: AtomicU64,
    /// See `tx_bytes`.
    pub rx_bytes: AtomicU64,
    /// Data packets sent (see [`Tally`]): what the peer says it has received is
    /// compared with it.
    pub tx_data: AtomicU64,
    /// See `tx_data`.
    pub tx_quiet: AtomicU64,
    /// Data packets that authenticated, also ones refused afterwards: told to
    /// the peer.
    pub rx_data: AtomicU64,
    /// See `rx_data`.
    pub rx_quiet: AtomicU64,
    /// Last inner packet (not keepalive) sent, ms on the engine's clock; 0 never.
    pub last_data_tx_ms: AtomicU64,
    /// Last inner packet (not keepalive) received and authenticated.
    pub last_data_rx_ms: AtomicU64,
    /// Last authenticated message of any kind received.
    pub last_rx_ms: AtomicU64,
    /// Last authenticated message of any kind sent (keepalives included).
    pub last_tx_ms: AtomicU64,
}

/// Inner MTU until probing says otherwise: 1500 minus IPv6, UDP and link
/// overhead, as WireGuard.
pub const DEFAULT_MTU: u32 = 1420;

impl PeerLink {
    /// A peer without endpoint or session.
    pub fn new(key: LinkPublicKey, suite: Suite, is_warren: bool) -> Self {
        Self {
            key: ArcSwap::from_pointee(key),
            suite,
            is_warren,
            endpoint: ArcSwapOption::empty(),
            heard: ArcSwapOption::empty(),
            send: ArcSwapOption::empty(),
            node: ArcSwapOption::empty(),
            relay: ArcSwapOption::empty(),
            relay_back: ArcSwapOption::empty(),
            path_mtu: AtomicU32::new(DEFAULT_MTU),
            handshake_wanted: AtomicBool::new(false),
            tx_bytes: AtomicU64::new(0),
            rx_bytes: AtomicU64::new(0),
            tx_data: AtomicU64::new(0),
            tx_quiet: AtomicU64::new(0),
            rx_data: AtomicU64::new(0),
            rx_quiet: AtomicU64::new(0),
            last_data_tx_ms: AtomicU64::new(0),
            last_data_rx_ms: AtomicU64::new(0),
            last_rx_ms: AtomicU64::new(0),
            last_tx_ms: AtomicU64::new(0),
        }
    }

    /// The peer's static key.
    pub fn key(&self) -> LinkPublicKey {
        **self.key.load()
    }

    /// The peer has another static key from now on (engine only).
    pub(crate) fn set_key(&self, key: LinkPublicKey) {
        self.key.store(Arc::new(key));
    }

    /// True when something came from it in the last second.
    pub fn was_heard(&self, now_ms: u64) -> bool {
        const LATELY_MS: u64 = 1_000;
        let last = self.last_rx_ms.load(Ordering::Relaxed);
        last != 0 && now_ms < last + LATELY_MS
    }

    /// Adds a sent batch to the counters.
    pub fn note_sent(&self, packets: u64, bytes: u64, now_ms: u64) {
        self.tx_data.fetch_add(packets, Ordering::Relaxed);
        self.tx_bytes.fetch_add(bytes, Ordering::Relaxed);
        self.last_data_tx_ms.store(now_ms, Ordering::Relaxed);
        self.last_tx_ms.store(now_ms, Ordering::Relaxed);
    }

    /// What was sent.
    pub fn sent(&self) -> Tally {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Tally { data: count(&self.tx_data), quiet: count(&self.tx_quiet) }
    }

    /// What was received.
    pub fn received(&self) -> Tally {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Tally { data: count(&self.rx_data), quiet: count(&self.rx_quiet) }
    }

    /// Adds what authenticated.
    pub fn note_tally(&self, tally: Tally) {
        for (counter, n) in [(&self.rx_data, tally.data), (&self.rx_quiet, tally.quiet)] {
            if n > 0 {
                counter.fetch_add(n, Ordering::Relaxed);
            }
        }
    }

    /// Adds a received batch to the counters.
    pub fn note_received(&self, bytes: u64, now_ms: u64) {
        self.rx_bytes.fetch_add(bytes, Ordering::Relaxed);
        self.last_data_rx_ms.store(now_ms, Ordering::Relaxed);
        self.last_rx_ms.store(now_ms, Ordering::Relaxed);
    }

    /// Its own overlay IPv6 address, if it is known.
    pub fn node(&self) -> Option<Ipv6Addr> {
        self.node.load().as_deref().copied()
    }

    /// True for its own overlay IPv6 address.
    pub fn is_node(&self, address: Ipv6Addr) -> bool {
        self.node() == Some(address)
    }

    /// Sets its own overlay IPv6 address.
    pub fn set_node(&self, node: Option<Ipv6Addr>) {
        if self.node() != node {
            self.node.store(node.map(Arc::new));
        }
    }

    /// An authenticated datagram came from `from`; true when the engine has to
    /// know. A stock WireGuard peer has moved there. A Warren peer may send over
    /// another path than we do: the engine finds out whether that one is better.
    pub fn heard_from(&self, from: SocketAddr) -> bool {
        if !self.is_warren {
            return self.roam(from);
        }
        let is = |slot: &ArcSwapOption<SocketAddr>| slot.load().as_deref() == Some(&from);
        if is(&self.endpoint) || is(&self.heard) {
            return false;
        }
        self.heard.store(Some(Arc::new(from)));
        true
    }

    /// Moves the endpoint when it differs; true when it moved.
    pub fn roam(&self, to: SocketAddr) -> bool {
        if self.endpoint.load().as_deref() == Some(&to) {
            return false;
        }
        self.endpoint.store(Some(Arc::new(to)));
        true
    }
}
