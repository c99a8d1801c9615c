//! A node's roles and onion keys on disk.

use serde::{Deserialize, Serialize};
use warren_types::OnionSecretKey;
use warren_types::api::RoleSettings;
use zeroize::Zeroizing;

use super::{ONION_KEYS, ROLES, Store};
use crate::fault::Fault;
use crate::onion_keys::{OnionKeyPair, OnionKeyring};

/// What was last decided about a node's roles.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoredRoles {
    /// What is in force.
    pub settings: RoleSettings,
    /// What file and flags said when that was decided: another word there is a
    /// newer decision.
    pub configured: RoleSettings,
    /// No new sessions.
    pub draining: bool,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct KeyFile {
    secret: Zeroizing<String>,
    not_before: u64,
    not_after: u64,
}

impl Store {
    /// The roles last decided; the default before any.
    ///
    /// # Errors
    /// When the file is damaged.
    pub fn roles(&self) -> Result<StoredRoles, Fault> {
        Ok(self.read_json(ROLES)?.unwrap_or_default())
    }

    /// Stores them.
    ///
    /// # Errors
    /// When they cannot be stored.
    pub fn save_roles(&self, roles: &StoredRoles) -> Result<(), Fault> {
        self.write_json(ROLES, roles)
    }

    /// The onion keys; none before the first role.
    ///
    /// # Errors
    /// When the file is damaged.
    pub fn onion_keys(&self) -> Result<OnionKeyring, Fault> {
        let files: Vec<KeyFile> = self.read_json(ONION_KEYS)?.unwrap_or_default();
        let pairs: Result<Vec<OnionKeyPair>, Fault> = files
            .into_iter()
            .map(|file| {
                let secret: OnionSecretKey =
                    file.secret.parse().map_err(|e| self.damaged(ONION_KEYS, e))?;
                Ok(OnionKeyPair::new(secret, file.not_before, file.not_after))
            })
            .collect();
        pairs.map(OnionKeyring::from_pairs)
    }

    /// Stores them; an empty ring removes the file.
    ///
    /// # Errors
    /// When they cannot be stored.
    pub fn save_onion_keys(&self, keys: &OnionKeyring) -> Result<(), Fault> {
        if keys.pairs().is_empty() {
            return self.remove(ONION_KEYS);
        }
        let files: Vec<KeyFile> = keys
            .pairs()
            .iter()
            .map(|pair| KeyFile {
                secret: pair.secret.to_base64(),
                not_before: pair.record.not_before,
                not_after: pair.record.not_after,
            })
            .collect();
        self.write_json(ONION_KEYS, &files)
    }
}
