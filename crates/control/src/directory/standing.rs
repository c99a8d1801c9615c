//! What ends a membership, and what only seems to: revocations, changes of the
//! network's roots, rotated keys, time.
//!
//! Invariants: a revoked node is refused from the moment its record arrives; one
//! whose authority was revoked is served a while if it was known before, so that
//! it can fetch a certificate from another admin; a root that is not trusted any
//! more takes along whoever did not renew in time.

use std::net::IpAddr;
use std::sync::Arc;

use warren_types::NodeId;

use super::{Directory, DirectoryChange, NodeView, RemovalReason};
use crate::descriptor::Descriptor;
use crate::membership::{Membership, MembershipError, PeerIdentity};
use crate::revocation::{AUTHORITY_GRACE, RevocationError, Revoked, SignedRevocation};
use crate::trust::{TrustChain, TrustError};
use crate::verify::{self, CertificateError, CertifiedNode, Leniency};

/// How long a node whose key was rotated may stay known by the former key until
/// its new descriptor arrives, seconds.
const SUCCESSION: u64 = 300;
/// How long an address stays unused after its holder is gone, seconds.
const RELEASE_GRACE: u64 = 600;

impl Directory {
    /// Takes in a revocation. Returns the changes it made; `None` when it was
    /// known.
    ///
    /// # Errors
    /// When nobody who may signed it, or there is no CA.
    pub fn revoke(
        &mut self,
        record: SignedRevocation,
        now: u64,
    ) -> Result<Option<Vec<DirectoryChange>>, RevocationError> {
        let trust = self.membership.trust().ok_or(RevocationError::BadSignature)?;
        let outcome = self.revoked.insert(record, trust, now)?;
        Ok(self.revoked_now(outcome, now))
    }

    /// Like [`Directory::revoke`] for a record from our own disk.
    ///
    /// # Errors
    /// As [`Directory::revoke`].
    pub fn revoke_stored(
        &mut self,
        record: SignedRevocation,
        now: u64,
    ) -> Result<Option<Vec<DirectoryChange>>, RevocationError> {
        let trust = self.membership.trust().ok_or(RevocationError::BadSignature)?;
        let outcome = self.revoked.insert_stored(record, trust, now)?;
        Ok(self.revoked_now(outcome, now))
    }

    fn revoked_now(&mut self, outcome: Revoked, now: u64) -> Option<Vec<DirectoryChange>> {
        let body = match outcome {
            Revoked::Known => return None,
            Revoked::Stronger => return Some(Vec::new()),
            Revoked::New(body) => body,
        };
        // Nodes under an authority have a while to find another; a rotated key
        // goes when its successor shows.
        if body.is_authority() || body.successor().is_some() {
            return Some(Vec::new());
        }
        Some(self.remove(body.node, RemovalReason::Revoked, now))
    }

    /// Takes in records of new roots. True when any of them was news.
    ///
    /// # Errors
    /// When one does not follow from what is trusted here.
    pub fn apply_trust(&mut self, chain: &TrustChain, now: u64) -> Result<bool, TrustError> {
        match &mut self.membership {
            Membership::Certificate(trust) => trust.apply(chain, now),
            Membership::Key(_) | Membership::Psk(_) => Err(TrustError::NoCertificates),
        }
    }

    /// Removes members whose descriptor, certificate or root ended, and
    /// revocations that are no longer needed.
    pub fn expire(&mut self, now: u64) -> Vec<DirectoryChange> {
        self.revoked.forget_old(now);
        self.released.retain(|_, until| now < *until);
        let ended: Vec<NodeId> = self
            .nodes
            .iter()
            .filter(|(_, e)| now >= self.ends(&e.descriptor))
            .map(|(id, _)| *id)
            .collect();
        let mut changes = Vec::new();
        for id in ended {
            let revoked = self.revoked.contains(id);
            let reason = if revoked { RemovalReason::Revoked } else { RemovalReason::Expired };
            changes.extend(self.remove(id, reason, now));
        }
        changes
    }

    /// Seconds since 1970 at which [`Directory::expire`] has something to do.
    pub fn next_expiry(&self) -> Option<u64> {
        self.nodes.values().map(|e| self.ends(&e.descriptor)).min()
    }

    /// When a member has to be gone unless it says something new.
    fn ends(&self, descriptor: &Descriptor) -> u64 {
        let mut end = descriptor.body.expires;
        if let (Some(node), Some(trust)) = (&descriptor.certified, self.membership.trust()) {
            end = end.min(node.not_after).min(trust.ends(node.root));
            let authority = node.authority.and_then(|key| self.revoked.get(key));
            end = end.min(authority.map_or(u64::MAX, |body| body.at + AUTHORITY_GRACE));
        }
        let own = self.revoked.get(descriptor.body.node);
        end.min(own.map_or(u64::MAX, |body| body.at + SUCCESSION))
    }

    /// Checks a chain that TLS delivered, or a descriptor carries.
    ///
    /// # Errors
    /// Why the peer is no member.
    pub fn check_chain(
        &self,
        chain: &[Vec<u8>],
        now: u64,
    ) -> Result<PeerIdentity, MembershipError> {
        let Membership::Certificate(trust) = &self.membership else {
            return self.membership.check_chain(chain, &self.revoked, now);
        };
        let node = match verify::verify_chain(chain, trust, &self.revoked, now) {
            Err(CertificateError::AuthorityRevoked { node, authority })
                if self.has_grace(node, authority, now) =>
            {
                let leniency = Leniency { revoked_authority: true, ..Leniency::default() };
                verify::verify_leniently(chain, trust, &self.revoked, now, leniency)?
            }
            result => result?,
        };
        match self.successor(&node) {
            Some(successor) => Err(MembershipError::Superseded { former: node.id, now: successor }),
            None => Ok(PeerIdentity::Certified(node)),
        }
    }

    /// Checks the chain of a node that only wants a new certificate: what a
    /// member must not have counts little there.
    ///
    /// # Errors
    /// Why it is no member all the same.
    pub fn check_outdated(
        &self,
        chain: &[Vec<u8>],
        now: u64,
    ) -> Result<CertifiedNode, MembershipError> {
        let Membership::Certificate(trust) = &self.membership else {
            return Err(CertificateError::Missing.into());
        };
        let leniency = Leniency { former_roots: true, revoked_authority: true };
        let node = verify::verify_leniently(chain, trust, &self.revoked, now, leniency)?;
        match self.successor(&node) {
            Some(successor) => Err(MembershipError::Superseded { former: node.id, now: successor }),
            None => Ok(node),
        }
    }

    /// The key by which a node goes now, when `node` shows a former one.
    fn successor(&self, node: &CertifiedNode) -> Option<NodeId> {
        let present = self.origins.get(&node.origin.id).filter(|id| **id != node.id)?;
        let entry = self.nodes.get(present)?;
        let origin = entry.descriptor.certified.as_ref()?.origin;
        (origin.generation > node.origin.generation).then_some(*present)
    }

    fn has_grace(&self, node: NodeId, authority: NodeId, now: u64) -> bool {
        let ends = self.revoked.get(authority).map_or(0, |body| body.at + AUTHORITY_GRACE);
        now < ends && self.nodes.contains_key(&node)
    }

    /// True when the address was another node's until lately.
    pub fn was_just_released(&self, address: IpAddr, now: u64) -> bool {
        self.released.get(&address).is_some_and(|until| now < *until)
    }

    pub(super) fn release(&mut self, view: &Arc<NodeView>, now: u64) {
        let until = now.saturating_add(RELEASE_GRACE);
        let clients = view.clients.iter().flat_map(|c| c.addresses.iter());
        self.released.extend(view.addresses.iter().chain(clients).map(|a| (*a, until)));
    }
}
