//! From the directory's members to the engine's peers.
//!
//! In: directory changes, control connections coming and going, WireGuard
//! clients. Out: [`PeerConfig`]s for the engine, and who a link key belongs to.
//! Invariants: one engine peer per member and per client; a member's prefixes
//! are host prefixes of the addresses the directory gave it and its clients;
//! the pre-shared key of a link is that of its last control connection.
//! Deliberately not here: sending, timers, and who may be a member.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use warren_control::address::is_underlay;
use warren_control::descriptor::DescriptorBody;
use warren_control::directory::NodeView;
use warren_proto::engine::{PathKind, PeerConfig};
use warren_types::{LinkPublicKey, NodeId, NodeName, PresharedKey, Suite, mesh_node};

use crate::config::PostQuantum;
use crate::store::StoredClient;
use crate::transport::Looping;

/// Members up to which every link is kept up, so that `warren status` shows
/// measured figures; in larger networks links sleep until there is traffic, all
/// but those to the neighbours of the control transport: others are reached over
/// them.
const HOLD_UP_TO: usize = 64;

/// Who has a link key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Owner {
    Node(NodeId),
    Client(NodeName),
}

/// What the control plane said of a member lately.
#[derive(Debug, Clone, Default)]
struct Contact {
    psk: Option<PresharedKey>,
    post_quantum: bool,
    remote: Option<SocketAddr>,
    connected: bool,
    /// Both ends have the link's key: whoever dialed knows that at once, the
    /// other end by the first session.
    settled: bool,
}

/// All members but ourselves, and our clients.
#[derive(Debug)]
pub(super) struct Mesh {
    own: NodeId,
    suite: Suite,
    post_quantum: PostQuantum,
    members: BTreeMap<NodeId, Arc<NodeView>>,
    contacts: HashMap<NodeId, Contact>,
    clients: Vec<StoredClient>,
    owners: HashMap<LinkPublicKey, Owner>,
    /// Members by overlay IPv6 address, as routes name them.
    places: HashMap<Ipv6Addr, NodeId>,
    /// Whom the control transport stays connected to.
    neighbours: BTreeSet<NodeId>,
    /// Prefixes that are reached through a member, beside its own addresses.
    subnets: HashMap<NodeId, Vec<IpNet>>,
    looping: Looping,
}

/// The overlay IPv6 address of a member, by which routes name it.
pub(super) fn place(view: &NodeView) -> Option<Ipv6Addr> {
    view.addresses.iter().find_map(|address| match address {
        IpAddr::V6(v6) => Some(*v6),
        IpAddr::V4(_) => None,
    })
}

fn host(address: IpAddr) -> IpNet {
    IpNet::from(address)
}

impl Mesh {
    pub(super) fn new(
        own: NodeId,
        suite: Suite,
        post_quantum: PostQuantum,
        clients: Vec<StoredClient>,
    ) -> Self {
        let owners =
            clients.iter().map(|c| (c.public_key, Owner::Client(c.name.clone()))).collect();
        Self {
            own,
            suite,
            post_quantum,
            members: BTreeMap::new(),
            contacts: HashMap::new(),
            clients,
            owners,
            places: HashMap::new(),
            neighbours: BTreeSet::new(),
            subnets: HashMap::new(),
            looping: Looping::default(),
        }
    }

    /// Takes in a member that is new or changed. Returns the link key of its
    /// former self if that changed, and whether the member is new; `None` for
    /// ourselves.
    pub(super) fn learn(&mut self, view: Arc<NodeView>) -> Option<(Option<LinkPublicKey>, bool)> {
        let id = view.id();
        if id == self.own {
            return None;
        }
        let key = view.descriptor.body.link_key;
        let place_now = place(&view);
        let former = self.members.insert(id, view);
        if let Some(old) = former.as_deref().and_then(place).filter(|old| Some(*old) != place_now)
            && self.places.get(&old) == Some(&id)
        {
            self.places.remove(&old);
        }
        self.places.extend(place_now.map(|place| (place, id)));
        let old_key = former.as_ref().map(|f| f.descriptor.body.link_key).filter(|k| *k != key);
        if let Some(old) = old_key {
            self.owners.remove(&old);
        }
        self.owners.insert(key, Owner::Node(id));
        Some((old_key, former.is_none()))
    }

    /// A member goes on under another key: what we have of it stays. Returns the
    /// link key it had, if that is another one now; `None` when it was not known.
    pub(super) fn succeed(
        &mut self,
        former: NodeId,
        view: Arc<NodeView>,
    ) -> Option<Option<LinkPublicKey>> {
        let old = self.members.remove(&former)?;
        let id = view.id();
        if let Some(prefixes) = self.subnets.remove(&former) {
            self.subnets.entry(id).or_insert(prefixes);
        }
        if let Some(contact) = self.contacts.remove(&former) {
            self.contacts.entry(id).or_insert(contact);
        }
        let (old_key, key) = (old.descriptor.body.link_key, view.descriptor.body.link_key);
        if old_key != key {
            self.owners.remove(&old_key);
        }
        self.owners.insert(key, Owner::Node(id));
        self.places.extend(place(&view).map(|place| (place, id)));
        self.members.insert(id, view);
        Some((old_key != key).then_some(old_key))
    }

    /// We go on under another key.
    pub(super) fn set_own(&mut self, id: NodeId) {
        self.own = id;
    }

    /// Forgets a member; its link key if it was known.
    pub(super) fn forget(&mut self, id: NodeId) -> Option<LinkPublicKey> {
        self.contacts.remove(&id);
        self.subnets.remove(&id);
        let view = self.members.remove(&id)?;
        if let Some(place) = place(&view).filter(|place| self.places.get(place) == Some(&id)) {
            self.places.remove(&place);
        }
        let key = view.descriptor.body.link_key;
        self.owners.remove(&key);
        Some(key)
    }

    /// A member's overlay IPv6 address.
    pub(super) fn place(&self, id: NodeId) -> Option<Ipv6Addr> {
        self.members.get(&id).and_then(|view| place(view))
    }

    /// The member behind a link key.
    pub(super) fn node_of(&self, key: &LinkPublicKey) -> Option<NodeId> {
        match self.owners.get(key)? {
            Owner::Node(id) => Some(*id),
            Owner::Client(_) => None,
        }
    }

    /// Takes over which addresses lead into the tunnel. True when that is news.
    pub(super) fn set_looping(&mut self, looping: Looping) -> bool {
        let news = self.looping != looping;
        self.looping = looping;
        news
    }

    /// The prefixes that are reached through a member.
    pub(super) fn set_subnets(&mut self, id: NodeId, prefixes: Vec<IpNet>) {
        if prefixes.is_empty() {
            self.subnets.remove(&id);
        } else {
            self.subnets.insert(id, prefixes);
        }
    }

    /// The member with an overlay IPv6 address.
    pub(super) fn at(&self, place: Ipv6Addr) -> Option<NodeId> {
        self.places.get(&place).copied()
    }

    /// Takes over whom the control transport stays connected to; those for whom
    /// that is news either way.
    pub(super) fn set_neighbours(&mut self, neighbours: BTreeSet<NodeId>) -> Vec<NodeId> {
        let changed = self.neighbours.symmetric_difference(&neighbours).copied().collect();
        self.neighbours = neighbours;
        changed
    }

    pub(super) fn is_neighbour(&self, id: NodeId) -> bool {
        self.neighbours.contains(&id)
    }

    /// A control connection came up.
    pub(super) fn connected(
        &mut self,
        id: NodeId,
        remote: SocketAddr,
        psk: PresharedKey,
        post_quantum: bool,
        dialer: bool,
    ) {
        let contact = Contact {
            psk: Some(psk),
            post_quantum,
            remote: Some(remote),
            connected: true,
            settled: dialer,
        };
        self.contacts.insert(id, contact);
    }

    /// A session with the owner of `key` came up; the member whose link should
    /// be held from now on, if that is news.
    pub(super) fn settled(&mut self, key: &LinkPublicKey) -> Option<NodeId> {
        let Some(Owner::Node(id)) = self.owners.get(key) else { return None };
        let contact = self.contacts.get_mut(id)?;
        (!std::mem::replace(&mut contact.settled, true)).then_some(*id)
    }

    /// It went down. Its key stays in use: the other end keeps it as well.
    pub(super) fn disconnected(&mut self, id: NodeId) {
        if let Some(contact) = self.contacts.get_mut(&id) {
            contact.connected = false;
        }
    }

    /// Where its control connection leads.
    pub(super) fn connected_at(&self, id: NodeId) -> Option<SocketAddr> {
        self.contacts.get(&id).filter(|c| c.connected)?.remote
    }

    pub(super) fn is_connected(&self, id: NodeId) -> bool {
        self.contacts.get(&id).is_some_and(|c| c.connected)
    }

    pub(super) fn is_post_quantum(&self, id: NodeId) -> bool {
        self.contacts.get(&id).is_some_and(|c| c.post_quantum && c.psk.is_some())
    }

    pub(super) fn view(&self, id: NodeId) -> Option<&Arc<NodeView>> {
        self.members.get(&id)
    }

    pub(super) fn members(&self) -> impl Iterator<Item = &Arc<NodeView>> {
        self.members.values()
    }

    pub(super) fn by_name(&self, name: &NodeName) -> Option<NodeId> {
        self.members.values().find(|v| v.name == *name).map(|v| v.id())
    }

    pub(super) fn owner(&self, key: &LinkPublicKey) -> Option<&Owner> {
        self.owners.get(key)
    }

    /// The name behind a link key.
    pub(super) fn name_of(&self, key: &LinkPublicKey) -> Option<String> {
        match self.owners.get(key)? {
            Owner::Node(id) => self.members.get(id).map(|v| v.name.to_string()),
            Owner::Client(name) => Some(name.to_string()),
        }
    }

    pub(super) fn clients(&self) -> &[StoredClient] {
        &self.clients
    }

    /// Replaces the client list; the keys of clients that are gone.
    pub(super) fn set_clients(&mut self, clients: Vec<StoredClient>) -> Vec<LinkPublicKey> {
        let gone: Vec<LinkPublicKey> = self
            .clients
            .iter()
            .map(|c| c.public_key)
            .filter(|key| !clients.iter().any(|c| c.public_key == *key))
            .collect();
        for key in &gone {
            self.owners.remove(key);
        }
        for client in &clients {
            self.owners.insert(client.public_key, Owner::Client(client.name.clone()));
        }
        self.clients = clients;
        gone
    }

    /// Where a member says that it is, as far as it can be there.
    fn endpoints<'a>(&'a self, body: &'a DescriptorBody) -> impl Iterator<Item = SocketAddr> + 'a {
        let usable =
            |to: &SocketAddr| is_underlay(body.network, *to) && !self.looping.contains(to.ip());
        body.endpoints.iter().copied().filter(usable)
    }

    /// A member's link key, and where it may be reached directly: where its
    /// control connection leads, and where it says that it is.
    pub(super) fn candidates(&self, id: NodeId) -> Option<(LinkPublicKey, Vec<SocketAddr>)> {
        let body = &self.members.get(&id)?.descriptor.body;
        let remote = self.connected_at(id);
        // Over others is for routing to say, which knows whether there is a way.
        let mut list: Vec<SocketAddr> =
            remote.into_iter().filter(|to| mesh_node(*to).is_none()).collect();
        list.extend(self.endpoints(body).filter(|to| Some(*to) != remote));
        Some((body.link_key, list))
    }

    /// Link keys of members whose control connection is not direct.
    pub(super) fn on_detours(&self) -> impl Iterator<Item = (NodeId, LinkPublicKey)> + '_ {
        self.contacts.keys().filter_map(|id| {
            self.connected_at(*id).filter(|to| PathKind::of(*to) != PathKind::Direct)?;
            Some((*id, self.members.get(id)?.descriptor.body.link_key))
        })
    }

    /// A member as an engine peer.
    pub(super) fn node_peer(&self, id: NodeId) -> Option<PeerConfig> {
        let view = self.members.get(&id)?;
        let body = &view.descriptor.body;
        let contact = self.contacts.get(&id).cloned().unwrap_or_default();
        let clients = view.clients.iter().flat_map(|c| c.addresses.iter());
        Some(PeerConfig {
            key: body.link_key,
            suite: self.suite,
            is_warren: true,
            psk: contact.psk,
            psk_required: self.post_quantum == PostQuantum::Required,
            endpoint: contact.remote.or_else(|| self.endpoints(body).next()),
            allowed: view
                .addresses
                .iter()
                .chain(clients)
                .map(|a| host(*a))
                .chain(self.subnets.get(&id).into_iter().flatten().copied())
                .collect(),
            persistent_keepalive: None,
            hold: contact.connected
                && contact.settled
                && (self.members.len() <= HOLD_UP_TO || self.neighbours.contains(&id)),
        })
    }
}

/// A client as an engine peer. It calls us: no endpoint, no keepalive of ours.
pub(super) fn client_peer(client: &StoredClient) -> PeerConfig {
    PeerConfig {
        key: client.public_key,
        suite: Suite::ChaCha20Poly1305,
        is_warren: false,
        psk: Some(client.preshared_key.clone()),
        psk_required: true,
        endpoint: None,
        allowed: client.addresses.iter().map(|a| host(*a)).collect(),
        persistent_keepalive: None::<Duration>,
        hold: false,
    }
}
