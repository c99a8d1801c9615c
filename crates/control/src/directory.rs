//! What this node knows about all members, itself included.
//!
//! In: signed descriptors and revocations in any order, any number of times.
//! Out: one [`NodeView`] per member, and the changes as data. Invariants: for
//! each node the highest sequence wins; a revoked node is gone for good; names
//! and addresses have one holder, the same on every node that knows the same
//! descriptors (nodes come before clients, then the smaller [`NodeId`]); a link
//! key stays with the node it was first seen with. The loser of a name goes by
//! `NAME-IDPREFIX`; the loser of an address does without it (its IPv6 address
//! follows from its key and cannot be taken). A node whose key was rotated is one
//! node: its former key has no entry beside the present one. A node that left
//! stays as a tombstone until its last descriptor would have ended. Work per
//! change is proportional to what the change touches. Deliberately not here:
//! sending.

mod standing;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use warren_types::{LinkPublicKey, NetworkId, NodeId, NodeName};

use crate::descriptor::{ClientRecord, Descriptor, DescriptorError, SignedDescriptor};
use crate::membership::Membership;
use crate::onion::OnionSection;
use crate::revocation::RevocationList;

/// Most nodes kept.
pub const MAX_NODES: usize = 20_000;

/// A member as this node should treat it, conflicts resolved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeView {
    /// The descriptor behind it.
    pub descriptor: Arc<Descriptor>,
    /// Its name, unique in this directory.
    pub name: NodeName,
    /// The addresses it holds.
    pub addresses: Vec<IpAddr>,
    /// Its clients, each with the addresses it holds.
    pub clients: Vec<ClientRecord>,
}

impl NodeView {
    /// The member's key.
    pub fn id(&self) -> NodeId {
        self.descriptor.body.node
    }

    /// What it does for onion paths, where it has a role.
    pub fn onion(&self) -> Option<&OnionSection> {
        self.descriptor.body.onion.as_deref().filter(|onion| !onion.roles.is_empty())
    }
}

/// Why a member is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RemovalReason {
    /// It said so.
    Left,
    /// The CA revoked it.
    Revoked,
    /// Its descriptor or certificate ended.
    Expired,
}

impl RemovalReason {
    /// For people.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Left => "left the network",
            Self::Revoked => "was revoked",
            Self::Expired => "was not heard of until its certificate or descriptor expired",
        }
    }
}

/// What a claim is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Claim {
    /// A name.
    Name(NodeName),
    /// An overlay address.
    Address(IpAddr),
    /// A link key.
    LinkKey(LinkPublicKey),
}

/// One change of the directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DirectoryChange {
    /// A member became known.
    Added(Arc<NodeView>),
    /// Something about it changed.
    Updated(Arc<NodeView>),
    /// It goes on under another key, with all it had.
    Succeeded {
        /// As it was last.
        former: Arc<NodeView>,
        /// As it is now.
        view: Arc<NodeView>,
    },
    /// It is gone.
    Removed {
        /// As it was last.
        view: Arc<NodeView>,
        /// Why.
        reason: RemovalReason,
    },
    /// Two members claim one thing.
    Conflict {
        /// What.
        claim: Claim,
        /// Who has it.
        winner: NodeId,
        /// Who does without.
        loser: NodeId,
    },
}

/// Nodes win over clients, then the smaller id wins.
type Claimant = (bool, NodeId);

/// Who claims one thing, the winner first. Nearly always one, so that a tree
/// for each would be most of the directory's memory.
#[derive(Debug)]
struct Claims<T>(Vec<T>);

impl<T> Default for Claims<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T: Ord> Claims<T> {
    fn insert(&mut self, claimant: T) {
        if let Err(at) = self.0.binary_search(&claimant) {
            self.0.reserve_exact(1);
            self.0.insert(at, claimant);
        }
    }

    fn remove(&mut self, claimant: &T) {
        if let Ok(at) = self.0.binary_search(claimant) {
            self.0.remove(at);
        }
    }

    fn first(&self) -> Option<&T> {
        self.0.first()
    }

    fn iter(&self) -> impl Iterator<Item = &T> {
        self.0.iter()
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[derive(Debug)]
struct Entry {
    descriptor: Arc<Descriptor>,
    /// `None` for a tombstone.
    view: Option<Arc<NodeView>>,
}

/// All members.
#[derive(Debug)]
pub struct Directory {
    network: NetworkId,
    membership: Membership,
    nodes: BTreeMap<NodeId, Entry>,
    names: HashMap<NodeName, Claims<NodeId>>,
    addresses: HashMap<IpAddr, Claims<Claimant>>,
    link_keys: HashMap<LinkPublicKey, NodeId>,
    /// By the key a node began with: the one it has now.
    origins: HashMap<NodeId, NodeId>,
    /// Addresses of nodes that are gone, and until when they are given to nobody
    /// (seconds since 1970): others may still believe in the former holder.
    released: BTreeMap<IpAddr, u64>,
    revoked: RevocationList,
}

/// A descriptor was not taken in.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ApplyError {
    /// The descriptor was refused.
    #[error(transparent)]
    Descriptor(#[from] DescriptorError),
    /// [`MAX_NODES`] are known.
    #[error("the directory is full: {MAX_NODES} nodes are known")]
    Full,
    /// The link key belongs to another node.
    #[error("the node {loser} uses the link key of the node {winner}")]
    LinkKeyTaken {
        /// Who has it.
        winner: NodeId,
        /// Who claims it too.
        loser: NodeId,
    },
}

impl Directory {
    /// An empty directory.
    pub fn new(network: NetworkId, membership: Membership) -> Self {
        Self {
            network,
            membership,
            nodes: BTreeMap::new(),
            names: HashMap::new(),
            addresses: HashMap::new(),
            link_keys: HashMap::new(),
            origins: HashMap::new(),
            released: BTreeMap::new(),
            revoked: RevocationList::default(),
        }
    }

    /// Takes in a descriptor. Returns `None` when it is not newer than what is
    /// known, else the changes it made.
    ///
    /// # Errors
    /// When the descriptor is refused; nothing changes then.
    pub fn apply(
        &mut self,
        signed: &SignedDescriptor,
        now: u64,
    ) -> Result<Option<Vec<DirectoryChange>>, ApplyError> {
        let (id, sequence) = signed.peek()?;
        if self.nodes.get(&id).is_some_and(|e| e.descriptor.body.sequence >= sequence) {
            return Ok(None);
        }
        self.replace(signed, id, now)
    }

    /// Like [`Directory::apply`], but of two descriptors with one sequence takes
    /// in the second: gossip has decided which of them stays, for all nodes
    /// alike.
    ///
    /// # Errors
    /// When the descriptor is refused; nothing changes then.
    pub fn apply_chosen(
        &mut self,
        signed: &SignedDescriptor,
        now: u64,
    ) -> Result<Option<Vec<DirectoryChange>>, ApplyError> {
        let (id, sequence) = signed.peek()?;
        if let Some(known) = self.nodes.get(&id).map(|e| &e.descriptor)
            && (known.body.sequence > sequence || *known.signed == *signed)
        {
            return Ok(None);
        }
        self.replace(signed, id, now)
    }

    fn replace(
        &mut self,
        signed: &SignedDescriptor,
        id: NodeId,
        now: u64,
    ) -> Result<Option<Vec<DirectoryChange>>, ApplyError> {
        let check = |chain: &[Vec<u8>]| self.check_chain(chain, now);
        let descriptor = Arc::new(signed.verify_with(
            self.network,
            &self.membership,
            &self.revoked,
            now,
            check,
        )?);
        let origin = descriptor.certified.as_ref().map(|node| node.origin.id);
        let former = origin.and_then(|o| self.origins.get(&o)).copied().filter(|f| *f != id);
        if former.is_some_and(|f| self.sequence(f).is_some_and(|s| s >= descriptor.body.sequence)) {
            return Ok(None);
        }
        let known = self.nodes.contains_key(&id) || former.is_some();
        if !known && self.nodes.len() >= MAX_NODES {
            return Err(ApplyError::Full);
        }
        let keys = || {
            let body = &descriptor.body;
            std::iter::once(body.link_key).chain(body.clients.iter().map(|c| c.key))
        };
        if !descriptor.body.left {
            let stranger = |owner: &&NodeId| **owner != id && Some(**owner) != former;
            let taken = keys().find_map(|k| self.link_keys.get(&k).filter(stranger));
            if let Some(winner) = taken {
                return Err(ApplyError::LinkKeyTaken { winner: *winner, loser: id });
            }
        }
        let mut touched = self.retract(id);
        let mut old = self.nodes.remove(&id).and_then(|e| e.view);
        let mut succeeded = None;
        if let Some(former) = former {
            touched.extend(self.retract(former));
            succeeded = self.nodes.remove(&former).and_then(|e| e.view);
        }
        if let Some(origin) = origin {
            self.origins.insert(origin, id);
        }
        if descriptor.body.left {
            self.nodes.insert(id, Entry { descriptor, view: None });
            let mut changes = Vec::new();
            if let Some(view) = succeeded.or(old.take()) {
                self.release(&view, now);
                changes.push(DirectoryChange::Removed { view, reason: RemovalReason::Left });
            }
            self.refresh(&touched, &mut changes);
            return Ok(Some(changes));
        }
        for key in keys() {
            self.link_keys.insert(key, id);
        }
        touched.extend(self.claim(id, &descriptor));
        self.nodes.insert(id, Entry { descriptor, view: None });
        let view = Arc::new(self.compute(id));
        let mut changes = Vec::new();
        self.note_conflicts(&view, &mut changes);
        changes.insert(
            0,
            match (succeeded, old) {
                (Some(former), _) => DirectoryChange::Succeeded { former, view: view.clone() },
                (None, Some(_)) => DirectoryChange::Updated(view.clone()),
                (None, None) => DirectoryChange::Added(view.clone()),
            },
        );
        if let Some(entry) = self.nodes.get_mut(&id) {
            entry.view = Some(view);
        }
        touched.remove(&id);
        self.refresh(&touched, &mut changes);
        Ok(Some(changes))
    }

    /// One member.
    pub fn get(&self, id: NodeId) -> Option<&Arc<NodeView>> {
        self.nodes.get(&id).and_then(|e| e.view.as_ref())
    }

    /// The member that goes by a name.
    pub fn by_name(&self, name: &NodeName) -> Option<&Arc<NodeView>> {
        self.views().find(|v| v.name == *name)
    }

    /// Every member, in the order of ids.
    pub fn views(&self) -> impl Iterator<Item = &Arc<NodeView>> {
        self.nodes.values().filter_map(|e| e.view.as_ref())
    }

    /// Every descriptor, tombstones included: to be stored or sent.
    pub fn descriptors(&self) -> impl Iterator<Item = &Arc<Descriptor>> {
        self.nodes.values().map(|e| &e.descriptor)
    }

    /// The sequence known of a node, tombstones included.
    pub fn sequence(&self, id: NodeId) -> Option<u64> {
        self.nodes.get(&id).map(|e| e.descriptor.body.sequence)
    }

    /// The revocations known.
    pub fn revocations(&self) -> &RevocationList {
        &self.revoked
    }

    /// How members are recognised.
    pub fn membership(&self) -> &Membership {
        &self.membership
    }

    /// The network's identifier.
    pub fn network(&self) -> NetworkId {
        self.network
    }

    /// True when any node or client holds the address.
    pub fn has_address(&self, address: IpAddr) -> bool {
        self.addresses.contains_key(&address)
    }

    /// True when any node or client goes by the name.
    pub fn has_name(&self, name: &NodeName) -> bool {
        self.names.contains_key(name)
            || self.views().any(|v| v.name == *name || v.clients.iter().any(|c| c.name == *name))
    }

    fn remove(&mut self, id: NodeId, reason: RemovalReason, now: u64) -> Vec<DirectoryChange> {
        let touched = self.retract(id);
        let mut changes = Vec::new();
        let entry = self.nodes.remove(&id);
        if let Some(node) = entry.as_ref().and_then(|e| e.descriptor.certified.as_ref())
            && self.origins.get(&node.origin.id) == Some(&id)
        {
            self.origins.remove(&node.origin.id);
        }
        if let Some(view) = entry.and_then(|e| e.view) {
            self.release(&view, now);
            changes.push(DirectoryChange::Removed { view, reason });
        }
        self.refresh(&touched, &mut changes);
        changes
    }

    /// Withdraws all claims of a node; returns who else claimed the same.
    fn retract(&mut self, id: NodeId) -> BTreeSet<NodeId> {
        let mut touched = BTreeSet::new();
        let Some(entry) = self.nodes.get(&id) else {
            return touched;
        };
        let descriptor = entry.descriptor.clone();
        let body = &descriptor.body;
        if let Some(set) = self.names.get_mut(&body.name) {
            set.remove(&id);
            touched.extend(set.iter().copied());
            if set.is_empty() {
                self.names.remove(&body.name);
            }
        }
        for (claimant, address) in address_claims(id, &descriptor) {
            if let Some(set) = self.addresses.get_mut(&address) {
                set.remove(&claimant);
                touched.extend(set.iter().map(|(_, other)| *other));
                if set.is_empty() {
                    self.addresses.remove(&address);
                }
            }
        }
        for key in std::iter::once(&body.link_key).chain(body.clients.iter().map(|c| &c.key)) {
            if self.link_keys.get(key) == Some(&id) {
                self.link_keys.remove(key);
            }
        }
        touched.remove(&id);
        touched
    }

    /// Enters all claims of a node; returns who claims the same.
    fn claim(&mut self, id: NodeId, descriptor: &Descriptor) -> BTreeSet<NodeId> {
        let mut touched = BTreeSet::new();
        let set = self.names.entry(descriptor.body.name.clone()).or_default();
        set.insert(id);
        touched.extend(set.iter().copied());
        for (claimant, address) in address_claims(id, descriptor) {
            let set = self.addresses.entry(address).or_default();
            set.insert(claimant);
            touched.extend(set.iter().map(|(_, other)| *other));
        }
        touched
    }

    fn holds(&self, claimant: Claimant, address: IpAddr) -> bool {
        self.addresses.get(&address).and_then(|s| s.first()) == Some(&claimant)
    }

    fn compute(&self, id: NodeId) -> NodeView {
        let descriptor = self.nodes[&id].descriptor.clone();
        let body = &descriptor.body;
        let owner = self.names.get(&body.name).and_then(|s| s.first()).copied();
        let name = if owner.is_none_or(|o| o == id) {
            body.name.clone()
        } else {
            let stem: String = body.name.as_str().chars().take(54).collect();
            format!("{}-{}", stem.trim_end_matches('-'), id.short())
                .parse()
                .unwrap_or_else(|_| body.name.clone())
        };
        let addresses: Vec<IpAddr> =
            body.addresses.iter().copied().filter(|a| self.holds((false, id), *a)).collect();
        let clients = body
            .clients
            .iter()
            .map(|c| ClientRecord {
                addresses: c
                    .addresses
                    .iter()
                    .copied()
                    .filter(|a| self.holds((true, id), *a))
                    .collect(),
                ..c.clone()
            })
            .collect();
        NodeView { name, addresses, clients, descriptor }
    }

    fn note_conflicts(&self, view: &NodeView, changes: &mut Vec<DirectoryChange>) {
        let id = view.id();
        let body = &view.descriptor.body;
        if let Some(set) = self.names.get(&body.name)
            && let Some(winner) = set.first()
        {
            for loser in set.iter().skip(1).filter(|l| **l == id || *winner == id) {
                let claim = Claim::Name(body.name.clone());
                changes.push(DirectoryChange::Conflict { claim, winner: *winner, loser: *loser });
            }
        }
        for (_, address) in address_claims(id, &view.descriptor) {
            if let Some(set) = self.addresses.get(&address)
                && let Some((_, winner)) = set.first()
            {
                for (_, loser) in set.iter().skip(1).filter(|(_, l)| *l == id || *winner == id) {
                    let claim = Claim::Address(address);
                    changes.push(DirectoryChange::Conflict {
                        claim,
                        winner: *winner,
                        loser: *loser,
                    });
                }
            }
        }
    }

    /// Computes the views of `touched` again and reports those that changed.
    fn refresh(&mut self, touched: &BTreeSet<NodeId>, changes: &mut Vec<DirectoryChange>) {
        for id in touched {
            let Some(old) = self.nodes.get(id).and_then(|e| e.view.clone()) else {
                continue;
            };
            let new = self.compute(*id);
            if new != *old {
                let new = Arc::new(new);
                changes.push(DirectoryChange::Updated(new.clone()));
                if let Some(entry) = self.nodes.get_mut(id) {
                    entry.view = Some(new);
                }
            }
        }
    }
}

fn address_claims(id: NodeId, descriptor: &Descriptor) -> impl Iterator<Item = (Claimant, IpAddr)> {
    let own = descriptor.body.addresses.iter().map(move |a| ((false, id), *a));
    let clients = descriptor
        .body
        .clients
        .iter()
        .flat_map(move |c| c.addresses.iter().map(move |a| ((true, id), *a)));
    own.chain(clients)
}

#[cfg(test)]
mod tests;
