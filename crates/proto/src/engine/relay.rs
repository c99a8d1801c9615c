//! Routes over other nodes: from the overlay addresses the mesh's routing
//! names to the links workers use.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};

use super::{Engine, Peer};
use crate::link::relay::{RelayRoute, suffix};
use crate::link::tables::Routes;

impl Engine {
    /// Sets the ways over other nodes: for each destination the relays in
    /// order, all by overlay IPv6 address. They are what datagrams to mesh
    /// addresses ([`warren_types::mesh_address`]) take; a destination without
    /// one is answered the way its own datagrams came, else not reached so.
    ///
    /// Routes that no frame can name (no relay, more than
    /// [`crate::link::relay::MAX_RELAYS`], a node twice, a first relay that is
    /// no peer) count as absent. Takes effect with the next
    /// [`Engine::poll_transmit`].
    pub fn set_relay_routes(&mut self, routes: BTreeMap<Ipv6Addr, Vec<Ipv6Addr>>) {
        if self.relay_routes != routes {
            self.relay_routes = routes;
            self.routes_changed = true;
        }
    }

    /// Whether frames that others address to others are passed on (they are,
    /// unless this said no). Our own go over relays either way.
    pub fn set_relaying(&mut self, relaying: bool) {
        if self.relaying != relaying {
            self.relaying = relaying;
            self.routes_changed = true;
        }
    }

    /// What was passed on between others since the start: frames, and their
    /// bytes.
    pub fn relayed(&self) -> (u64, u64) {
        self.core.tables.relayed.get()
    }

    /// Gives each link its route; `routes` is the snapshot about to be
    /// published.
    pub(super) fn apply_relay_routes(&self, routes: &Routes) {
        for peer in self.peers.values() {
            let route = self.relay_route(peer, routes);
            let known = peer.link.relay.load();
            let same = match (known.as_ref(), &route) {
                (None, None) => true,
                (Some(known), Some(route)) => known.same_way(route),
                _ => false,
            };
            if !same {
                peer.link.relay.store(route.map(std::sync::Arc::new));
            }
        }
    }

    fn relay_route(&self, peer: &Peer, routes: &Routes) -> Option<RelayRoute> {
        let node = peer.link.node()?;
        let relays = self.relay_routes.get(&node)?;
        let hop = routes.node(&suffix(*relays.first()?))?;
        let relays: Vec<_> = relays.iter().copied().map(suffix).collect();
        RelayRoute::new(routes.own_suffix()?, &relays, suffix(node), hop).ok()
    }
}

impl Peer {
    /// Its own overlay IPv6 address: the first host prefix of that kind; those
    /// of its clients come after it.
    pub(super) fn overlay_address(&self) -> Option<Ipv6Addr> {
        self.config.allowed.iter().find_map(|net| match net.addr() {
            IpAddr::V6(v6) if net.prefix_len() == 128 && v6.octets()[0] == 0xfd => Some(v6),
            _ => None,
        })
    }
}
