//! The tables workers look packets up in. `Routes` is one immutable snapshot,
//! replaced as a whole when peers or their prefixes change; sessions change at
//! every handshake, so their index is split into shards replaced one by one.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use prefix_trie::PrefixMap;

use super::peer::PeerLink;
use super::relay::{NodeSuffix, suffix};
use super::session::RecvSession;
use crate::noise::{MacKey, mac1_ok};
use crate::onion::tables::OnionTables;

/// Prefix to peer, longest match first (WireGuard's cryptokey routing): picks
/// the peer for a destination, and checks the source of what a peer sent.
#[derive(Debug, Clone, Default)]
pub struct Routes {
    v4: PrefixMap<Ipv4Net, Arc<PeerLink>>,
    v6: PrefixMap<Ipv6Net, Arc<PeerLink>>,
    /// Our own overlay addresses: delivered to the TUN, never forwarded.
    local: Vec<IpAddr>,
    /// Our own overlay IPv6 address, which relay frames name us by.
    own: Option<Ipv6Addr>,
    /// Warren nodes by what relay frames name them by.
    nodes: HashMap<NodeSuffix, Arc<PeerLink>>,
    relaying: bool,
}

impl Routes {
    /// Builds a snapshot. With equal prefixes the later one wins, so that a
    /// prefix has exactly one owner.
    pub fn new(
        local: Vec<IpAddr>,
        entries: impl IntoIterator<Item = (IpNet, Arc<PeerLink>)>,
    ) -> Self {
        let own = local.iter().find_map(|address| match address {
            IpAddr::V6(v6) if v6.octets()[0] == 0xfd => Some(*v6),
            _ => None,
        });
        let mut routes = Self { local, own, ..Self::default() };
        for (net, peer) in entries {
            match net.trunc() {
                IpNet::V4(net) => routes.v4.insert(net, peer),
                IpNet::V6(net) => routes.v6.insert(net, peer),
            };
        }
        routes
    }

    /// Adds what relay frames need: the other nodes (those of `peers` with
    /// [`PeerLink::node`]), and whether we pass on frames that are for others.
    #[must_use]
    pub fn with_nodes(
        mut self,
        peers: impl IntoIterator<Item = Arc<PeerLink>>,
        relaying: bool,
    ) -> Self {
        for peer in peers {
            if let Some(node) = peer.node().filter(|_| peer.is_warren) {
                self.nodes.insert(suffix(node), peer);
            }
        }
        self.relaying = relaying;
        self
    }

    /// The node that relay frames name so.
    pub fn node(&self, node: &NodeSuffix) -> Option<&Arc<PeerLink>> {
        self.nodes.get(node)
    }

    /// What relay frames name us by; `None` without an overlay IPv6 address.
    pub fn own_suffix(&self) -> Option<NodeSuffix> {
        self.own.map(suffix)
    }

    /// True when frames for others are passed on.
    pub fn relaying(&self) -> bool {
        self.relaying
    }

    /// The peer that owns `address`.
    pub fn lookup(&self, address: IpAddr) -> Option<&Arc<PeerLink>> {
        match address {
            IpAddr::V4(a) => self.v4.get_lpm(&Ipv4Net::from(a)).map(|(_, p)| p),
            IpAddr::V6(a) => self.v6.get_lpm(&Ipv6Net::from(a)).map(|(_, p)| p),
        }
    }

    /// True when `peer` is the one that may send from `source`: the longest
    /// matching prefix must be its own, so a nested prefix of another peer is
    /// never spoofed.
    pub fn source_allowed(&self, peer: &Arc<PeerLink>, source: IpAddr) -> bool {
        self.lookup(source).is_some_and(|owner| Arc::ptr_eq(owner, peer))
    }

    /// Our own first overlay address of a family, the source of ICMP answers.
    pub fn local_address(&self, v6: bool) -> Option<IpAddr> {
        self.local.iter().copied().find(|address| address.is_ipv6() == v6)
    }

    /// True for one of our own overlay addresses.
    pub fn is_local(&self, address: IpAddr) -> bool {
        self.local.contains(&address)
    }
}

const SHARDS: usize = 64;
type Shard = HashMap<u32, Arc<RecvSession>>;

/// Everything workers look up.
#[derive(Debug)]
pub struct Tables {
    /// Prefix to peer.
    pub routes: ArcSwap<Routes>,
    /// What we passed on for others.
    pub relayed: RelayedCounters,
    /// Circuits and their sessions.
    pub onion: Arc<OnionTables>,
    shards: Vec<ArcSwap<Shard>>,
    /// What mac1 may be made with beside our first static key.
    other_mac_keys: ArcSwap<Vec<MacKey>>,
}

/// Datagrams passed on for others since the start.
#[derive(Debug, Default)]
pub struct RelayedCounters {
    packets: AtomicU64,
    bytes: AtomicU64,
}

impl RelayedCounters {
    pub(super) fn add(&self, packets: u64, bytes: u64) {
        self.packets.fetch_add(packets, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Relay frames, and their bytes with their headers.
    pub fn get(&self) -> (u64, u64) {
        (self.packets.load(Ordering::Relaxed), self.bytes.load(Ordering::Relaxed))
    }
}

impl Default for Tables {
    fn default() -> Self {
        Self {
            routes: ArcSwap::from_pointee(Routes::default()),
            relayed: RelayedCounters::default(),
            onion: Arc::default(),
            shards: (0..SHARDS).map(|_| ArcSwap::from_pointee(Shard::new())).collect(),
            other_mac_keys: ArcSwap::default(),
        }
    }
}

impl Tables {
    /// True when a handshake message is for a static key that came later, or
    /// was given up lately.
    pub fn other_mac1_ok(&self, datagram: &[u8]) -> bool {
        self.other_mac_keys.load().iter().any(|key| mac1_ok(key, datagram))
    }

    /// Our static key changed (engine only).
    pub(crate) fn set_other_mac_keys(&self, keys: Vec<MacKey>) {
        self.other_mac_keys.store(Arc::new(keys));
    }

    /// The session a datagram with this receiver index belongs to.
    pub fn session(&self, index: u32) -> Option<Arc<RecvSession>> {
        self.shards[index as usize % SHARDS].load().get(&index).cloned()
    }

    /// Publishes a session under its own index (engine only).
    pub fn insert_session(&self, session: Arc<RecvSession>) {
        let shard = &self.shards[session.local_index as usize % SHARDS];
        let mut next = Shard::clone(&shard.load());
        next.insert(session.local_index, session);
        shard.store(Arc::new(next));
    }

    /// Withdraws a session (engine only).
    pub fn remove_session(&self, index: u32) {
        let shard = &self.shards[index as usize % SHARDS];
        let mut next = Shard::clone(&shard.load());
        if next.remove(&index).is_some() {
            shard.store(Arc::new(next));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use warren_types::{LinkPublicKey, Suite};

    #[test]
    fn nested_prefixes_do_not_let_a_peer_spoof_another() {
        let wide = Arc::new(PeerLink::new(LinkPublicKey([1; 32]), Suite::Aes256Gcm, true));
        let narrow = Arc::new(PeerLink::new(LinkPublicKey([2; 32]), Suite::Aes256Gcm, true));
        let routes = Routes::new(
            vec!["10.0.0.1".parse().unwrap()],
            [
                ("10.0.0.0/8".parse().unwrap(), wide.clone()),
                ("10.1.0.0/16".parse().unwrap(), narrow.clone()),
            ],
        );
        assert!(routes.source_allowed(&wide, "10.2.0.1".parse().unwrap()));
        assert!(!routes.source_allowed(&wide, "10.1.0.1".parse().unwrap()));
        assert!(routes.source_allowed(&narrow, "10.1.0.1".parse().unwrap()));
        assert!(!routes.source_allowed(&narrow, "fd00::1".parse().unwrap()));
        assert!(routes.is_local("10.0.0.1".parse().unwrap()));
    }
}
