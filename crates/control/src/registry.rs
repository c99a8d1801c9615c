//! Whom this admin admitted: names and IPv4 addresses that are taken.
//!
//! In: admissions, leaves, revocations. Out: a member's name and addresses, or
//! why it cannot have them. Invariants: a name, an address and a link key have
//! at most one holder; a node that was admitted before keeps what it has.
//! Deliberately not here: tokens, certificates, files.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use serde::{Deserialize, Serialize};
use warren_types::{LinkPublicKey, NetworkId, NodeId, NodeName};

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

    /// Whom this admin expelled, and when, as far as it still matters at `now`.
    pub fn expelled(&self, now: u64) -> impl Iterator<Item = (NodeId, u64)> {
        let matters = move |at: &u64| !revocation::is_over(*at, now);
        self.revoked.iter().filter(move |(_, at)| matters(at)).map(|(id, at)| (*id, *at))
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
        let expelled: Vec<_> = registry.expelled(8).collect();
        assert_eq!(expelled, [(NodeId([1; 32]), 7)]);
        assert_eq!(registry.expelled(u64::MAX).count(), 0);
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
}
