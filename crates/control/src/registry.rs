//! Whom this admin admitted: names and IPv4 addresses that are taken.
//!
//! In: admissions, leaves, revocations, rotated keys, delegations. Out: a
//! member's name and addresses, or why it cannot have them. Invariants: a name, an address and a link key have
//! at most one holder; a node that was admitted before keeps what it has.
//! Deliberately not here: tokens, certificates, files.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use serde::{Deserialize, Serialize};
use warren_types::{LinkPublicKey, NetworkId, NodeId, NodeName};

use crate::ca::Origin;
use crate::revocation::RevocationBody;
use crate::{address, revocation};

/// One admitted node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Its name.
    pub name: NodeName,
    /// Its overlay addresses, IPv6 first.
    pub addresses: Vec<IpAddr>,
    /// The link key it had when it was admitted.
    pub link_key: LinkPublicKey,
    /// When, seconds since 1970.
    pub admitted: u64,
    /// Where it began, when its key was rotated since.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<Origin>,
}

/// A node that was given an authority of its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delegation {
    /// The node's name.
    pub name: NodeName,
    /// The authority's key.
    pub key: NodeId,
    /// End of its certificate, seconds since 1970.
    pub not_after: u64,
}

/// Why a node cannot be admitted as it asks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AdmitError {
    /// Another node has the name.
    #[error(
        "the name `{0}` is taken by another node: choose one with `--name`, or run \
         `warren revoke {0}` on the admin if that machine is gone"
    )]
    NameTaken(NodeName),
    /// Another node has the link key.
    #[error("another node has the same link key: remove the state directory and join afresh")]
    LinkKeyTaken,
    /// No address is free for this key.
    #[error("no free IPv4 address was found for this node: join with a fresh state directory")]
    NoAddress,
    /// The node was revoked.
    #[error("this node was revoked: remove its state directory and join afresh")]
    Revoked,
}

/// All members that an admin admitted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registry {
    members: BTreeMap<NodeId, Member>,
    /// Whom this admin revoked, and when (seconds since 1970): it must not
    /// forget that even when everything that was spread is lost.
    #[serde(default)]
    revoked: BTreeMap<NodeId, u64>,
    /// The keys that nodes had before they rotated them, with the present ones.
    #[serde(default)]
    succeeded: BTreeMap<NodeId, NodeId>,
    /// Authorities that were delegated, by key; revoked ones are in `revoked`.
    #[serde(default)]
    delegations: Vec<Delegation>,
    /// Revoked keys that were authorities'.
    #[serde(default)]
    authorities: BTreeSet<NodeId>,
}

impl Registry {
    /// Admits `id`, or answers with what it has already. `taken` and
    /// `name_taken` tell what is in use beyond this registry (clients, nodes
    /// that others admitted).
    ///
    /// # Errors
    /// What is taken.
    #[expect(clippy::too_many_arguments, reason = "each is a distinct fact of one admission")]
    pub fn admit(
        &mut self,
        network: NetworkId,
        id: NodeId,
        name: &NodeName,
        link_key: LinkPublicKey,
        now: u64,
        name_taken: impl Fn(&NodeName) -> bool,
        address_taken: impl Fn(Ipv4Addr) -> bool,
    ) -> Result<Member, AdmitError> {
        if self.revoked.contains_key(&id) {
            return Err(AdmitError::Revoked);
        }
        if let Some(member) = self.members.get(&id).filter(|m| m.name == *name) {
            return Ok(member.clone());
        }
        let others = || self.members.iter().filter(|(other, _)| **other != id).map(|(_, m)| m);
        if others().any(|m| m.name == *name) || name_taken(name) {
            return Err(AdmitError::NameTaken(name.clone()));
        }
        if others().any(|m| m.link_key == link_key) {
            return Err(AdmitError::LinkKeyTaken);
        }
        let held: std::collections::HashSet<_> =
            others().flat_map(|m| m.addresses.iter().copied()).collect();
        let (v4, _) = address::free_ipv4(network, &id.0, |a| {
            held.contains(&IpAddr::V4(a)) || address_taken(a)
        })
        .ok_or(AdmitError::NoAddress)?;
        let member = Member {
            name: name.clone(),
            addresses: vec![address::ipv6_of_node(network, id).into(), v4.into()],
            link_key,
            admitted: now,
            origin: None,
        };
        self.members.insert(id, member.clone());
        Ok(member)
    }

    /// The member with a key.
    pub fn get(&self, id: NodeId) -> Option<&Member> {
        self.members.get(&id)
    }

    /// The member with a name.
    pub fn by_name(&self, name: &NodeName) -> Option<(NodeId, &Member)> {
        self.members.iter().find(|(_, m)| m.name == *name).map(|(id, m)| (*id, m))
    }

    /// True when a member has the address.
    pub fn has_address(&self, address: IpAddr) -> bool {
        self.members.values().any(|m| m.addresses.contains(&address))
    }

    /// Expels a node that left or is revoked: its name becomes free, its key
    /// never gets in again.
    pub fn expel(&mut self, id: NodeId, now: u64) {
        self.members.remove(&id);
        self.revoked.entry(id).or_insert(now);
    }

    /// Whom this admin expelled, as far as it still matters at `now`.
    pub fn expelled(&self, network: NetworkId, now: u64) -> impl Iterator<Item = RevocationBody> {
        let matters = move |at: &u64| !revocation::is_over(*at, now);
        self.revoked.iter().filter(move |(_, at)| matters(at)).map(move |(id, at)| {
            match self.succeeded.get(id) {
                _ if self.authorities.contains(id) => {
                    RevocationBody::of_authority(network, *id, *at)
                }
                Some(present) => RevocationBody::superseded(network, *id, *present, *at),
                None => RevocationBody::of(network, *id, *at),
            }
        })
    }

    /// Takes over a member that another admin admitted, to renew its certificate
    /// when that admin no longer can.
    pub fn adopt(&mut self, id: NodeId, member: Member) {
        if !self.revoked.contains_key(&id) {
            self.members.entry(id).or_insert(member);
        }
    }

    /// Changes a member's addresses.
    pub fn readdress(&mut self, id: NodeId, addresses: Vec<IpAddr>) {
        if let Some(member) = self.members.get_mut(&id) {
            member.addresses = addresses;
        }
    }

    /// A member goes on under another key. Its old key gets nothing any more.
    pub fn succeed(&mut self, old: NodeId, new: NodeId, origin: Origin) {
        if let Some(mut member) = self.members.remove(&old) {
            member.origin = Some(origin);
            self.members.insert(new, member);
        }
        self.succeeded.insert(old, new);
    }

    /// The key that a member has instead of a former one.
    pub fn successor(&self, old: NodeId) -> Option<NodeId> {
        self.succeeded.get(&old).copied()
    }

    /// Notes a delegated authority; its renewal replaces it.
    pub fn delegate(&mut self, delegation: Delegation) {
        self.delegations.retain(|d| d.key != delegation.key);
        self.delegations.push(delegation);
    }

    /// Revokes an authority: its name, if this admin delegated it.
    pub fn undelegate(&mut self, key: NodeId, now: u64) {
        self.delegations.retain(|d| d.key != key);
        self.authorities.insert(key);
        self.revoked.entry(key).or_insert(now);
    }

    /// Authorities that were delegated here.
    pub fn delegations(&self) -> &[Delegation] {
        &self.delegations
    }

    /// All members.
    pub fn members(&self) -> impl Iterator<Item = (NodeId, &Member)> {
        self.members.iter().map(|(id, m)| (*id, m))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NET: NetworkId = NetworkId([1; 16]);

    fn admit(registry: &mut Registry, id: u8, name: &str) -> Result<Member, AdmitError> {
        let name = name.parse().unwrap();
        let key = LinkPublicKey([id; 32]);
        registry.admit(NET, NodeId([id; 32]), &name, key, 5, |_| false, |_| false)
    }

    #[test]
    fn two_nodes_cannot_have_one_name() {
        let mut registry = Registry::default();
        let first = admit(&mut registry, 1, "a").unwrap();
        assert_eq!(admit(&mut registry, 2, "a"), Err(AdmitError::NameTaken("a".parse().unwrap())));
        assert_eq!(admit(&mut registry, 1, "a"), Ok(first), "the same node keeps what it has");
        registry.expel(NodeId([1; 32]), 7);
        assert!(admit(&mut registry, 2, "a").is_ok());
        assert_eq!(admit(&mut registry, 1, "b"), Err(AdmitError::Revoked));
        let expelled: Vec<_> = registry.expelled(NET, 8).collect();
        assert_eq!(expelled, [RevocationBody::of(NET, NodeId([1; 32]), 7)]);
        assert_eq!(registry.expelled(NET, u64::MAX).count(), 0);
    }

    #[test]
    fn taken_addresses_and_link_keys() {
        let mut registry = Registry::default();
        let taken = address::ipv4_of_key(NET, &[3; 32], 0);
        let member = registry
            .admit(
                NET,
                NodeId([3; 32]),
                &"c".parse().unwrap(),
                LinkPublicKey([3; 32]),
                5,
                |_| false,
                |a| a == taken,
            )
            .unwrap();
        assert_eq!(member.addresses[1], IpAddr::V4(address::ipv4_of_key(NET, &[3; 32], 1)));
        assert!(registry.has_address(member.addresses[1]));
        let result = registry.admit(
            NET,
            NodeId([4; 32]),
            &"d".parse().unwrap(),
            LinkPublicKey([3; 32]),
            5,
            |_| false,
            |_| false,
        );
        assert_eq!(result, Err(AdmitError::LinkKeyTaken));
    }

    #[test]
    fn a_rotated_key_keeps_its_place_and_the_old_one_gets_nothing() {
        let mut registry = Registry::default();
        let first = admit(&mut registry, 1, "a").unwrap();
        let (old, new) = (NodeId([1; 32]), NodeId([2; 32]));
        let origin = Origin { id: old, generation: 1 };
        registry.succeed(old, new, origin);
        assert!(registry.get(old).is_none());
        let member = registry.get(new).unwrap();
        assert_eq!((member.name.clone(), member.addresses.clone()), (first.name, first.addresses));
        assert_eq!((member.origin, registry.successor(old)), (Some(origin), Some(new)));
        registry.expel(old, 7);
        let expelled: Vec<_> = registry.expelled(NET, 8).collect();
        assert_eq!(expelled, [RevocationBody::superseded(NET, old, new, 7)]);
        assert_eq!(admit(&mut registry, 1, "b"), Err(AdmitError::Revoked));
    }
}
