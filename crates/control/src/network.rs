//! What every member of a network knows about it: name, identifier, suite and
//! the way members authenticate.
//!
//! In: what the founder chose. Out: [`NetworkParameters`], fixed for the life
//! of the network. Invariant: the identifier follows from what admits members
//! (CA certificate, network name, or pre-shared key), so two networks with one
//! name are still told apart. Deliberately not here: keys and files.

use aws_lc_rs::digest;
use serde::{Deserialize, Serialize};
use warren_types::{NetworkId, NetworkName, PresharedKey, Suite};

/// How members authenticate each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AuthKind {
    /// Certificates of the network's CA.
    Certificate,
    /// Public keys pinned in each member's configuration.
    Key,
    /// One pre-shared key.
    Psk,
}

impl AuthKind {
    /// The word used in configuration, API and files.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Certificate => "certificate",
            Self::Key => "key",
            Self::Psk => "psk",
        }
    }
}

/// A network, as its members know it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkParameters {
    /// Name chosen by the founder.
    pub name: NetworkName,
    /// Identifier.
    pub id: NetworkId,
    /// Suite of the links between members.
    pub suite: Suite,
    /// How members authenticate.
    pub auth: AuthKind,
}

fn id_from(label: &str, secret_or_public: &[u8]) -> NetworkId {
    let mut context = digest::Context::new(&digest::SHA256);
    context.update(label.as_bytes());
    context.update(&[0]);
    context.update(secret_or_public);
    let mut id = [0; 16];
    id.copy_from_slice(&context.finish().as_ref()[..16]);
    NetworkId(id)
}

/// SHA-256 of a certificate's DER form.
pub fn fingerprint(certificate: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(digest::digest(&digest::SHA256, certificate).as_ref());
    out
}

impl NetworkParameters {
    /// A certificate network: the id comes from the founding CA certificate's
    /// [`fingerprint`] and stays when the CA is renewed.
    pub fn certificate(name: NetworkName, suite: Suite, ca_fingerprint: &[u8; 32]) -> Self {
        let id = id_from("Warren v1 network certificate", ca_fingerprint);
        Self { name, id, suite, auth: AuthKind::Certificate }
    }

    /// A network of pinned keys: the id comes from the name, since every
    /// member states the others itself.
    pub fn key(name: NetworkName, suite: Suite) -> Self {
        let id = id_from("Warren v1 network key", name.as_str().as_bytes());
        Self { name, id, suite, auth: AuthKind::Key }
    }

    /// A network of one pre-shared key, from which the id comes.
    pub fn psk(name: NetworkName, suite: Suite, psk: &PresharedKey) -> Self {
        let id = crate::psk::PskKeys::derive(psk).network_id();
        Self { name, id, suite, auth: AuthKind::Psk }
    }
}
