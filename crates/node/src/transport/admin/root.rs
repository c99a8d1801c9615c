//! What only the holder of the root key does: delegate, end an authority, hand
//! over to a new root.
//!
//! Invariants: a private key of another node never comes here; whoever a revoked
//! authority had admitted stays known, so that it can be renewed; what lesser
//! signers revoked is signed again, so that it outlives them.

use warren_control::ca::{AUTHORITY_CERTIFICATE_LIFE, Authority};
use warren_control::directory::Directory;
use warren_control::identity::IdentityKey;
use warren_control::registry::Delegation;
use warren_control::revocation::{RevocationBody, SignedRevocation};
use warren_control::trust::{Trust, TrustChain};
use warren_types::{NodeId, NodeName};

use super::{Admin, AdminError, Persist, as_member};
use crate::random::OsRandom;

fn failed(error: impl std::fmt::Display) -> AdminError {
    AdminError::Failed(error.to_string())
}

impl Admin {
    /// True when this node holds the key of the root that counts now.
    pub(crate) fn holds_root(&self, trust: &Trust) -> bool {
        self.authority.is_root() && self.authority.key().id() == trust.current().key
    }

    /// Certifies `key` as an authority at the node `name`.
    pub(crate) fn delegate(
        &mut self,
        name: &NodeName,
        key: NodeId,
        trust: &Trust,
        now: u64,
        persist: &dyn Persist,
    ) -> Result<Vec<u8>, AdminError> {
        if !self.holds_root(trust) {
            return Err(AdminError::NotRoot);
        }
        let life = AUTHORITY_CERTIFICATE_LIFE.max(2 * self.certificate_life);
        let certificate = self
            .authority
            .delegate(name, key, trust.network_id, now, life, &mut OsRandom)
            .map_err(failed)?;
        let not_after = now.saturating_add(life).min(self.authority.not_after());
        let mut registry = self.registry.clone();
        registry.delegate(Delegation { name: name.clone(), key, not_after });
        persist.save_admin(&self.invites, &registry).map_err(AdminError::Failed)?;
        self.registry = registry;
        Ok(certificate)
    }

    /// True when `key` is an authority that was delegated to `name` from here.
    pub(crate) fn has_delegated(&self, name: &NodeName, key: NodeId) -> bool {
        self.registry.delegations().iter().any(|d| d.name == *name && d.key == key)
    }

    /// The keys of the authorities of a node: those delegated from here, and
    /// the one its descriptor names.
    pub(super) fn authorities_of(&self, name: &NodeName, directory: &Directory) -> Vec<NodeId> {
        let delegations = self.registry.delegations().iter();
        let mut keys: Vec<NodeId> =
            delegations.filter(|d| d.name == *name).map(|d| d.key).collect();
        let body = directory.by_name(name).map(|view| &view.descriptor.body);
        keys.extend(body.and_then(|body| body.keys.as_ref()?.authority()));
        keys.sort();
        keys.dedup();
        keys.retain(|key| !directory.revocations().contains(*key));
        keys
    }

    /// Ends all authorities of a node; it stays a member.
    pub(crate) fn undelegate(
        &mut self,
        name: &NodeName,
        directory: &Directory,
        now: u64,
        persist: &dyn Persist,
    ) -> Result<Vec<SignedRevocation>, AdminError> {
        let trust = directory.membership().trust().ok_or(AdminError::NotAdmin)?;
        if !self.holds_root(trust) {
            return Err(AdminError::NotRoot);
        }
        let keys = self.authorities_of(name, directory);
        if keys.is_empty() {
            return Err(AdminError::Failed(format!(
                "`{name}` has no delegated authority: `warren ca list` shows who has"
            )));
        }
        let mut records = Vec::new();
        for key in keys {
            records.push(self.end_authority(key, directory, now, persist)?);
        }
        Ok(records)
    }

    pub(super) fn end_authority(
        &mut self,
        key: NodeId,
        directory: &Directory,
        now: u64,
        persist: &dyn Persist,
    ) -> Result<SignedRevocation, AdminError> {
        let trust = directory.membership().trust().ok_or(AdminError::NotAdmin)?;
        let mut registry = self.registry.clone();
        for view in directory.views() {
            let issuer = view.descriptor.certified.as_ref().and_then(|node| node.authority);
            if issuer == Some(key) {
                registry.adopt(view.id(), as_member(view));
            }
        }
        registry.undelegate(key, now);
        persist.save_admin(&self.invites, &registry).map_err(AdminError::Failed)?;
        self.registry = registry;
        let body = RevocationBody::of_authority(trust.network_id, key, now);
        Ok(SignedRevocation::sign(&self.authority, trust, &body))
    }

    /// What lesser signers revoked, signed by the root we hold.
    pub(crate) fn strengthen(&self, directory: &Directory) -> Vec<SignedRevocation> {
        let Some(trust) = directory.membership().trust() else { return Vec::new() };
        if !self.holds_root(trust) {
            return Vec::new();
        }
        let weaker = directory.revocations().weaker_than(trust, self.authority.key().id());
        weaker.iter().map(|body| SignedRevocation::sign(&self.authority, trust, body)).collect()
    }

    /// Makes a new root and hands over to it. Returns the records to spread; the
    /// caller takes them in.
    pub(crate) fn rotate_root(
        &mut self,
        trust: &Trust,
        overlap: u64,
        now: u64,
        persist: &dyn Persist,
    ) -> Result<TrustChain, AdminError> {
        if !self.holds_root(trust) {
            return Err(AdminError::NotRoot);
        }
        let key = IdentityKey::generate(&mut OsRandom).map_err(failed)?;
        let next = Authority::create(key, &trust.network, now, &mut OsRandom).map_err(failed)?;
        let record = trust.succeed(self.authority.key(), next.certificate(), now, overlap);
        let mut after = trust.clone();
        after.apply(&TrustChain(vec![record]), now).map_err(failed)?;
        let chain = after.chain();
        persist.save_root(Some(&next), &chain).map_err(AdminError::Failed)?;
        self.authority = next;
        Ok(chain)
    }

    /// Gives this node an authority of its own and lets go of the root's key.
    pub(crate) fn remove_root(
        &mut self,
        name: &NodeName,
        trust: &Trust,
        now: u64,
        persist: &dyn Persist,
    ) -> Result<(), AdminError> {
        let key = IdentityKey::generate(&mut OsRandom).map_err(failed)?;
        let certificate = self.delegate(name, key.id(), trust, now, persist)?;
        let own = Authority::load_delegated(key, certificate, &trust.network).map_err(failed)?;
        persist.save_authority(&own).map_err(AdminError::Failed)?;
        persist.save_root(None, &trust.chain()).map_err(AdminError::Failed)?;
        self.authority = own;
        Ok(())
    }
}
