//! What this node knows about all members, itself included.
//!
//! In: signed descriptors and revocations in any order, any number of times.
//! Out: one [`NodeView`] per member, and the changes as data. Invariants: for
//! each node the highest sequence wins; a revoked node is gone for good; names
//! and addresses have one holder, the same on every node that knows the same
//! descriptors (nodes come before clients, then the smaller [`NodeId`]); a link
//! key stays with the node it was first seen with. The loser of a name goes by
//! `NAME-IDPREFIX`; the loser of an address does without it (its IPv6 address
//! follows from its key and cannot be taken). A node that left stays as a
//! tombstone until its last descriptor would have ended. Work per change is
//! proportional to what the change touches. Deliberately not here: sending.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use warren_types::{LinkPublicKey, NetworkId, NodeId, NodeName};

use crate::descriptor::{ClientRecord, Descriptor, DescriptorError, SignedDescriptor};
use crate::membership::{Membership, MembershipError};
use crate::revocation::{RevocationError, RevocationList, SignedRevocation};

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
    names: HashMap<NodeName, BTreeSet<NodeId>>,
    addresses: BTreeMap<IpAddr, BTreeSet<Claimant>>,
    link_keys: HashMap<LinkPublicKey, NodeId>,
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
            addresses: BTreeMap::new(),
            link_keys: HashMap::new(),
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
        let descriptor =
            Arc::new(signed.verify(self.network, &self.membership, &self.revoked, now)?);
        if !self.nodes.contains_key(&id) && self.nodes.len() >= MAX_NODES {
            return Err(ApplyError::Full);
        }
        let keys = || {
            let body = &descriptor.body;
            std::iter::once(body.link_key).chain(body.clients.iter().map(|c| c.key))
        };
        if !descriptor.body.left {
            let taken = keys().find_map(|k| self.link_keys.get(&k).filter(|o| **o != id));
            if let Some(winner) = taken {
                return Err(ApplyError::LinkKeyTaken { winner: *winner, loser: id });
            }
        }
        let mut touched = self.retract(id);
        let old = self.nodes.remove(&id).and_then(|e| e.view);
        if descriptor.body.left {
            self.nodes.insert(id, Entry { descriptor, view: None });
            let mut changes = Vec::new();
            if let Some(view) = old {
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
            if old.is_some() {
                DirectoryChange::Updated(view.clone())
            } else {
                DirectoryChange::Added(view.clone())
            },
        );
        if let Some(entry) = self.nodes.get_mut(&id) {
            entry.view = Some(view);
        }
        touched.remove(&id);
        self.refresh(&touched, &mut changes);
        Ok(Some(changes))
    }

    /// Takes in a revocation. Returns the changes it made; `None` when it was
    /// known.
    ///
    /// # Errors
    /// When the CA did not sign it, or there is no CA.
    pub fn revoke(
        &mut self,
        record: SignedRevocation,
        now: u64,
    ) -> Result<Option<Vec<DirectoryChange>>, RevocationError> {
        let ca = self.membership.revocation_key().ok_or(RevocationError::BadSignature)?;
        let Some(node) = self.revoked.insert(record, ca, self.network, now)? else {
            return Ok(None);
        };
        Ok(Some(self.remove(node, RemovalReason::Revoked)))
    }

    /// Removes members whose descriptor or certificate ended, and revocations
    /// that are no longer needed.
    pub fn expire(&mut self, now: u64) -> Vec<DirectoryChange> {
        self.revoked.forget_old(now);
        let ended: Vec<NodeId> = self
            .nodes
            .iter()
            .filter(|(_, e)| {
                let certificate = e.descriptor.certificate_expires.unwrap_or(u64::MAX);
                now >= e.descriptor.body.expires.min(certificate)
            })
            .map(|(id, _)| *id)
            .collect();
        ended.into_iter().flat_map(|id| self.remove(id, RemovalReason::Expired)).collect()
    }

    /// Seconds since 1970 at which [`Directory::expire`] has something to do.
    pub fn next_expiry(&self) -> Option<u64> {
        self.nodes
            .values()
            .map(|e| {
                e.descriptor.body.expires.min(e.descriptor.certificate_expires.unwrap_or(u64::MAX))
            })
            .min()
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

    /// Checks a chain that TLS delivered.
    ///
    /// # Errors
    /// Why the peer is no member.
    pub fn check_chain(
        &self,
        chain: &[Vec<u8>],
        now: u64,
    ) -> Result<crate::membership::PeerIdentity, MembershipError> {
        self.membership.check_chain(chain, &self.revoked, now)
    }

    fn remove(&mut self, id: NodeId, reason: RemovalReason) -> Vec<DirectoryChange> {
        let touched = self.retract(id);
        let mut changes = Vec::new();
        if let Some(view) = self.nodes.remove(&id).and_then(|e| e.view) {
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
mod tests {
    use super::*;
    use crate::address;
    use crate::ca::{Authority, CertificateRequest};
    use crate::descriptor::{DESCRIPTOR_LIFE, DescriptorBody};
    use crate::identity::IdentityKey;
    use crate::network::{NetworkParameters, fingerprint};
    use crate::psk::PskKeys;
    use crate::testing::TestRng;
    use crate::verify::TrustRoot;
    use proptest::prelude::*;
    use warren_types::{PresharedKey, Suite};

    const NOW: u64 = 1_800_000_000;

    fn psk() -> Membership {
        Membership::Psk(PskKeys::derive(&PresharedKey::from_bytes([1; 32])))
    }

    fn key(seed: u64) -> IdentityKey {
        IdentityKey::generate(&mut TestRng::new(seed)).unwrap()
    }

    fn net() -> NetworkId {
        NetworkId([1; 16])
    }

    fn body(key: &IdentityKey, name: &str, sequence: u64) -> DescriptorBody {
        DescriptorBody {
            network: net(),
            node: key.id(),
            name: name.parse().unwrap(),
            link_key: LinkPublicKey(key.id().0),
            addresses: vec![
                address::ipv6_of_node(net(), key.id()).into(),
                address::ipv4_of_key(net(), &key.id().0, 0).into(),
            ],
            clients: vec![],
            endpoints: vec![],
            sequence,
            issued: NOW,
            expires: NOW + DESCRIPTOR_LIFE,
            chain: vec![],
            left: false,
            admin: false,
        }
    }

    fn signed(key: &IdentityKey, name: &str, sequence: u64) -> SignedDescriptor {
        body(key, name, sequence).sign(key, &psk())
    }

    #[test]
    fn the_highest_sequence_wins_whatever_the_order() {
        let a = key(1);
        let mut directory = Directory::new(net(), psk());
        let changes = directory.apply(&signed(&a, "a", 2), NOW).unwrap().unwrap();
        assert!(matches!(changes[..], [DirectoryChange::Added(_)]));
        assert_eq!(directory.apply(&signed(&a, "old", 1), NOW), Ok(None));
        assert_eq!(directory.apply(&signed(&a, "a", 2), NOW), Ok(None));
        let changes = directory.apply(&signed(&a, "new", 3), NOW).unwrap().unwrap();
        assert!(matches!(changes[..], [DirectoryChange::Updated(_)]));
        assert_eq!(directory.get(a.id()).unwrap().name.as_str(), "new");
        assert!(!directory.has_name(&"a".parse().unwrap()));
    }

    #[test]
    fn two_nodes_with_one_name_are_told_apart_the_same_way_everywhere() {
        let (a, b) = (key(1), key(2));
        let (small, large) = if a.id() < b.id() { (&a, &b) } else { (&b, &a) };
        for order in [[small, large], [large, small]] {
            let mut directory = Directory::new(net(), psk());
            directory.apply(&signed(order[0], "same", 1), NOW).unwrap();
            let changes = directory.apply(&signed(order[1], "same", 1), NOW).unwrap().unwrap();
            assert!(changes.iter().any(|c| matches!(
                c,
                DirectoryChange::Conflict { claim: Claim::Name(_), winner, loser }
                    if *winner == small.id() && *loser == large.id()
            )));
            assert_eq!(directory.get(small.id()).unwrap().name.as_str(), "same");
            let renamed = format!("same-{}", large.id().short());
            assert_eq!(directory.get(large.id()).unwrap().name.as_str(), renamed);
            // When the winner leaves, the other gets the name back.
            let mut bye = body(small, "same", 9);
            bye.left = true;
            let changes = directory.apply(&bye.sign(small, &psk()), NOW).unwrap().unwrap();
            assert!(matches!(
                changes[..],
                [
                    DirectoryChange::Removed { reason: RemovalReason::Left, .. },
                    DirectoryChange::Updated(_)
                ]
            ));
            assert_eq!(directory.get(large.id()).unwrap().name.as_str(), "same");
        }
    }

    #[test]
    fn a_node_that_left_does_not_come_back_by_an_old_descriptor() {
        let a = key(1);
        let mut directory = Directory::new(net(), psk());
        let mut bye = body(&a, "a", 5);
        bye.left = true;
        directory.apply(&bye.sign(&a, &psk()), NOW).unwrap();
        assert_eq!(directory.apply(&signed(&a, "a", 4), NOW), Ok(None));
        assert!(directory.get(a.id()).is_none());
        assert_eq!(directory.sequence(a.id()), Some(5));
        assert!(directory.expire(NOW + DESCRIPTOR_LIFE).is_empty());
        assert_eq!(directory.sequence(a.id()), None);
    }

    #[test]
    fn a_link_key_stays_with_its_first_holder() {
        let (a, b) = (key(1), key(2));
        let mut directory = Directory::new(net(), psk());
        directory.apply(&signed(&a, "a", 1), NOW).unwrap();
        let mut thief = body(&b, "b", 1);
        thief.link_key = LinkPublicKey(a.id().0);
        assert_eq!(
            directory.apply(&thief.sign(&b, &psk()), NOW),
            Err(ApplyError::LinkKeyTaken { winner: a.id(), loser: b.id() })
        );
        let mut thief = body(&b, "b", 1);
        thief.clients.push(ClientRecord {
            name: "c".parse().unwrap(),
            key: LinkPublicKey(a.id().0),
            addresses: vec![],
        });
        assert!(directory.apply(&thief.sign(&b, &psk()), NOW).is_err());
    }

    #[test]
    fn a_client_never_takes_a_nodes_address() {
        // Addresses follow from key bytes, so a client with the bytes of the
        // node's identity key has the node's addresses.
        let (a, b) = (key(1), key(2));
        let mut holder = body(&b, "b", 1);
        holder.clients.push(ClientRecord {
            name: "c".parse().unwrap(),
            key: LinkPublicKey(a.id().0),
            addresses: vec![address::ipv4_of_key(net(), &a.id().0, 0).into()],
        });
        let mut node = body(&a, "a", 1);
        node.link_key = LinkPublicKey([77; 32]);
        let address = node.addresses[1];
        for node_first in [true, false] {
            let mut directory = Directory::new(net(), psk());
            let (node, holder) = (node.sign(&a, &psk()), holder.sign(&b, &psk()));
            let order = if node_first { [&node, &holder] } else { [&holder, &node] };
            for descriptor in order {
                directory.apply(descriptor, NOW).unwrap();
            }
            assert!(directory.get(a.id()).unwrap().addresses.contains(&address));
            assert!(directory.get(b.id()).unwrap().clients[0].addresses.is_empty());
        }
    }

    fn certified() -> (Authority, Membership, NetworkId) {
        let mut rng = TestRng::new(50);
        let name: warren_types::NetworkName = "home".parse().unwrap();
        let ca = Authority::create(key(51), &name, NOW, &mut rng).unwrap();
        let print = fingerprint(ca.certificate());
        let id = NetworkParameters::certificate(name.clone(), Suite::default(), &print).id;
        let root = TrustRoot::new(ca.certificate().to_vec(), name, id).unwrap();
        (ca, Membership::Certificate(root), id)
    }

    fn certified_body(
        ca: &Authority,
        network: NetworkId,
        key: &IdentityKey,
        name: &str,
    ) -> DescriptorBody {
        let mut body = body(key, name, 1);
        body.network = network;
        body.addresses = vec![
            address::ipv6_of_node(network, key.id()).into(),
            address::ipv4_of_key(network, &key.id().0, 0).into(),
        ];
        let request = CertificateRequest {
            id: key.id(),
            name: body.name.clone(),
            addresses: body.addresses.clone(),
        };
        body.chain = vec![ca.issue_for(&request, NOW, 3600, &mut TestRng::new(60)).unwrap()];
        body
    }

    #[test]
    fn certificates_bind_names_and_revocations_win() {
        let (ca, membership, network) = certified();
        let a = key(1);
        let mut directory = Directory::new(network, membership.clone());
        let good = certified_body(&ca, network, &a, "a");
        let mut other_name = good.clone();
        other_name.name = "b".parse().unwrap();
        assert!(directory.apply(&other_name.sign(&a, &membership), NOW).is_err());
        let mut other_address = good.clone();
        other_address.addresses.push("100.64.0.9".parse().unwrap());
        assert!(directory.apply(&other_address.sign(&a, &membership), NOW).is_err());
        let thief = key(3);
        let mut stolen = good.clone();
        stolen.node = thief.id();
        assert_eq!(
            directory.apply(&stolen.sign(&thief, &membership), NOW),
            Err(DescriptorError::WrongCertificate.into())
        );

        directory.apply(&good.sign(&a, &membership), NOW).unwrap();
        let forged = SignedRevocation::sign(&thief, network, a.id(), NOW);
        assert!(directory.revoke(forged, NOW).is_err());
        assert!(directory.get(a.id()).is_some());
        let record = SignedRevocation::sign(ca.key(), network, a.id(), NOW);
        let changes = directory.revoke(record.clone(), NOW).unwrap().unwrap();
        assert!(matches!(
            changes[..],
            [DirectoryChange::Removed { reason: RemovalReason::Revoked, .. }]
        ));
        assert_eq!(directory.revoke(record, NOW), Ok(None));
        let mut newer = good.clone();
        newer.sequence = 99;
        assert!(directory.apply(&newer.sign(&a, &membership), NOW).is_err());
        assert!(directory.check_chain(&good.chain, NOW).is_err());
    }

    #[test]
    fn a_certificates_end_removes_its_node() {
        let (ca, membership, network) = certified();
        let a = key(1);
        let mut directory = Directory::new(network, membership.clone());
        directory.apply(&certified_body(&ca, network, &a, "a").sign(&a, &membership), NOW).unwrap();
        assert_eq!(directory.next_expiry(), Some(NOW + 3600));
        assert!(directory.expire(NOW + 3599).is_empty());
        assert!(matches!(
            directory.expire(NOW + 3600)[..],
            [DirectoryChange::Removed { reason: RemovalReason::Expired, .. }]
        ));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]
        /// Any order and repetition of the same descriptors ends in the same
        /// directory.
        #[test]
        fn partitions_merge_to_the_same(order in proptest::collection::vec(0_usize..9, 1..30)) {
            let keys: Vec<_> = (0..3).map(|n| key(n + 10)).collect();
            let all: Vec<_> = (0..9)
                .map(|n| {
                    let key = &keys[n % 3];
                    let mut body = body(key, ["x", "y", "x"][n / 3], 1 + (n / 3) as u64);
                    body.left = n == 7;
                    body.sign(key, &psk())
                })
                .collect();
            let mut shuffled = Directory::new(net(), psk());
            for at in order {
                shuffled.apply(&all[at], NOW).unwrap();
            }
            let mut straight = Directory::new(net(), psk());
            for descriptor in &all {
                shuffled.apply(descriptor, NOW).unwrap();
                straight.apply(descriptor, NOW).unwrap();
            }
            let views = |d: &Directory| d.views().cloned().collect::<Vec<_>>();
            prop_assert_eq!(views(&shuffled), views(&straight));
            prop_assert_eq!(views(&shuffled).len(), 2);
        }
    }
}
