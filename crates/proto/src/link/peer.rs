//! What workers need of one peer. One `Arc<PeerLink>` lives as long as the
//! peer is configured; everything in it changes without locks.

use std::net::{Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use arc_swap::ArcSwapOption;
use warren_types::{LinkPublicKey, Suite};

use super::relay::RelayRoute;
use super::session::SendSession;

/// Hot state of one peer, shared by the engine and all workers.
#[derive(Debug)]
pub struct PeerLink {
    /// The peer's static key.
    pub key: LinkPublicKey,
    /// Suite of its sessions.
    pub suite: Suite,
    /// True when the peer runs Warren (understands link frames); false for a
    /// stock WireGuard client.
    pub is_warren: bool,
    /// Where its datagrams go; moved by a worker when an authenticated one
    /// comes from elsewhere (roaming), and by the engine.
    pub endpoint: ArcSwapOption<SocketAddr>,
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
    /// Bytes and packets of inner packets, both ways.
    pub tx_bytes: AtomicU64,
    /// See `tx_bytes`.
    pub rx_bytes: AtomicU64,
    /// See `tx_bytes`.
    pub tx_packets: AtomicU64,
    /// See `tx_bytes`.
    pub rx_packets: AtomicU64,
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
            key,
            suite,
            is_warren,
            endpoint: ArcSwapOption::empty(),
            send: ArcSwapOption::empty(),
            node: ArcSwapOption::empty(),
            relay: ArcSwapOption::empty(),
            relay_back: ArcSwapOption::empty(),
            path_mtu: AtomicU32::new(DEFAULT_MTU),
            handshake_wanted: AtomicBool::new(false),
            tx_bytes: AtomicU64::new(0),
            rx_bytes: AtomicU64::new(0),
            tx_packets: AtomicU64::new(0),
            rx_packets: AtomicU64::new(0),
            last_data_tx_ms: AtomicU64::new(0),
            last_data_rx_ms: AtomicU64::new(0),
            last_rx_ms: AtomicU64::new(0),
            last_tx_ms: AtomicU64::new(0),
        }
    }

    /// Adds a sent batch to the counters.
    pub fn note_sent(&self, packets: u64, bytes: u64, now_ms: u64) {
        self.tx_packets.fetch_add(packets, Ordering::Relaxed);
        self.tx_bytes.fetch_add(bytes, Ordering::Relaxed);
        self.last_data_tx_ms.store(now_ms, Ordering::Relaxed);
        self.last_tx_ms.store(now_ms, Ordering::Relaxed);
    }

    /// Adds a received batch to the counters.
    pub fn note_received(&self, packets: u64, bytes: u64, now_ms: u64) {
        self.rx_packets.fetch_add(packets, Ordering::Relaxed);
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

    /// Moves the endpoint when it differs; true when it moved.
    pub fn roam(&self, to: SocketAddr) -> bool {
        if self.endpoint.load().as_deref() == Some(&to) {
            return false;
        }
        self.endpoint.store(Some(Arc::new(to)));
        true
    }
}
