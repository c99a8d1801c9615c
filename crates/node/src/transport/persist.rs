//! The state directory as the control transport's memory.

use std::sync::Arc;

use warren_control::ca::Authority;
use warren_control::descriptor::SignedDescriptor;
use warren_control::identity::IdentityKey;
use warren_control::registry::Registry;
use warren_control::revocation::SignedRevocation;
use warren_control::token::Invites;
use warren_control::trust::TrustChain;

use super::admin::Persist;
use crate::store::{Certificates, DirectorySnapshot, Store};

impl Persist for Store {
    fn save_directory(
        &self,
        descriptors: &[Arc<SignedDescriptor>],
        revocations: &[SignedRevocation],
    ) -> Result<(), String> {
        let snapshot = DirectorySnapshot {
            descriptors: descriptors.iter().map(|d| d.as_ref().clone()).collect(),
            revocations: revocations.to_vec(),
        };
        Self::save_directory(self, &snapshot).map_err(|e| e.to_string())
    }

    fn save_admin(&self, invites: &Invites, registry: &Registry) -> Result<(), String> {
        // The registry first: an admission that is recorded but whose use was
        // not counted lets the same node in again, which is harmless.
        self.save_list("registry", registry)
            .and_then(|()| self.save_list("invites", invites))
            .map_err(|e| e.to_string())
    }

    fn save_trust(&self, chain: &TrustChain) -> Result<(), String> {
        Self::save_trust(self, chain).map_err(|e| e.to_string())
    }

    fn save_authority(&self, authority: &Authority) -> Result<(), String> {
        Self::save_authority(self, authority.key(), authority.certificate())
            .map_err(|e| e.to_string())
    }

    fn save_root(&self, root: Option<&Authority>, chain: &TrustChain) -> Result<(), String> {
        Self::save_root(self, root.map(Authority::key), chain).map_err(|e| e.to_string())
    }

    fn save_identity(&self, key: &IdentityKey, chain: &[Vec<u8>]) -> Result<(), String> {
        Self::save_identity(self, key, chain).map_err(|e| e.to_string())
    }

    fn save_certificate(&self, chain: &[Vec<u8>]) -> Result<(), String> {
        let old = self.certificates().map_err(|e| e.to_string())?;
        self.save_certificates(&Certificates { chain: chain.to_vec(), ca: old.ca })
            .map_err(|e| e.to_string())
    }
}
