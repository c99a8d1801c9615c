//! The state directory: everything a node must remember, one file per idea.
//!
//! | file | content |
//! |---|---|
//! | `lock` | held by the running daemon |
//! | `node.key` | the node's Ed25519 identity, PKCS #8 PEM |
//! | `link.key` | the X25519 key of its links, base64 as WireGuard has it |
//! | `network.json` | network, name and addresses: the node is a member when it is there |
//! | `node.crt`, `ca.crt` | certificate chain and founding CA, PEM (certificate mode) |
//! | `trust.cbor` | the CA's rotations since |
//! | `ca.key` | the key of the present root, where it is held |
//! | `authority.key`, `authority.crt` | an authority delegated to this node |
//! | `invites.json`, `registry.json` | of an admitting node |
//! | `next.key`, `next-ca.key` | a key that is about to replace another |
//! | `roles.json`, `onion-keys.json` | what it does for onion paths, and the secret keys for it |
//! | `clients.json` | stock WireGuard clients, with their pre-shared keys |
//! | `host.json`, `host.lock` | what was changed on this machine, to put it back (`crate::host`) |
//! | `kill-switch.json`, `kill-switch.lock` | the kill switch, while it is on; it outlives leaving |
//! | `directory.cbor` | descriptors and revocations, to reconnect after a restart |
//!
//! Invariants: the directory is 0700, files are 0600 and replaced as a whole;
//! `network.json` is written last, so a node is a member wholly or not at all. A
//! new key waits beside the old one until what goes with it (certificate, trust
//! records) is written; the next start finishes or undoes the change.
//! A file that does not parse is named in the error and never overwritten.
//! Deliberately not here: what the content means, and encryption at rest.

mod onion;

pub use onion::StoredRoles;

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use rand_core::CryptoRng;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use warren_control::descriptor::SignedDescriptor;
use warren_control::identity::IdentityKey;
use warren_control::network::NetworkParameters;
use warren_control::revocation::SignedRevocation;
use warren_control::trust::TrustChain;
use warren_control::verify::subject_key;
use warren_os::files::{self, FileError, LockError, LockFile};
use warren_types::{LinkPublicKey, LinkSecretKey, NodeId, NodeName, PresharedKey};
use zeroize::Zeroizing;

use crate::fault::{Fault, FaultKind};

/// No file of ours comes near it; a larger one is damaged.
const MAX_FILE: u64 = 64 << 20;

const NODE_KEY: &str = "node.key";
const LINK_KEY: &str = "link.key";
const NETWORK: &str = "network.json";
const NODE_CERTIFICATE: &str = "node.crt";
const CA_CERTIFICATE: &str = "ca.crt";
const CA_KEY: &str = "ca.key";
const TRUST: &str = "trust.cbor";
const AUTHORITY_KEY: &str = "authority.key";
const AUTHORITY_CERTIFICATE: &str = "authority.crt";
const NEXT_NODE_KEY: &str = "next.key";
const NEXT_CA_KEY: &str = "next-ca.key";
const ROLES: &str = "roles.json";
const ONION_KEYS: &str = "onion-keys.json";
const CLIENTS: &str = "clients.json";
const DIRECTORY: &str = "directory.cbor";
/// All files that [`Store::wipe`] removes, the mark of membership first.
const ALL: &[&str] = &[
    NETWORK,
    NODE_CERTIFICATE,
    CA_CERTIFICATE,
    CA_KEY,
    TRUST,
    AUTHORITY_KEY,
    AUTHORITY_CERTIFICATE,
    NEXT_NODE_KEY,
    NEXT_CA_KEY,
    "invites.json",
    "registry.json",
    "routes.json",
    ROLES,
    ONION_KEYS,
    CLIENTS,
    DIRECTORY,
    LINK_KEY,
    NODE_KEY,
    "daemon.log",
    "api.sock",
    "host.json",
    "host.lock",
    "kill-switch.lock",
    "lock",
];

/// Which network this node belongs to, and as what.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Member {
    /// The network.
    pub network: NetworkParameters,
    /// This node's name in it.
    pub name: NodeName,
    /// This node's overlay addresses.
    pub addresses: Vec<IpAddr>,
}

/// Certificates of a member in certificate mode, DER.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificates {
    /// The node's chain, leaf first.
    pub chain: Vec<Vec<u8>>,
    /// The network's CA.
    pub ca: Vec<u8>,
}

/// A stock WireGuard client of this node.
#[derive(Debug, Clone)]
pub struct StoredClient {
    /// Its name.
    pub name: NodeName,
    /// Its public key; the secret one is only in the file printed for it.
    pub public_key: LinkPublicKey,
    /// The key both mix in.
    pub preshared_key: PresharedKey,
    /// Its overlay addresses.
    pub addresses: Vec<IpAddr>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ClientFile {
    name: NodeName,
    public_key: LinkPublicKey,
    preshared_key: Zeroizing<String>,
    addresses: Vec<IpAddr>,
}

/// What a node knew of the others when it stopped.
#[derive(Debug, Clone, Default, minicbor::Encode, minicbor::Decode)]
pub struct DirectorySnapshot {
    /// Descriptors, unverified: they are checked as if they came from a peer.
    #[n(0)]
    pub descriptors: Vec<SignedDescriptor>,
    /// Revocations, likewise.
    #[n(1)]
    pub revocations: Vec<SignedRevocation>,
}

/// An open state directory.
#[derive(Debug)]
pub struct Store {
    dir: PathBuf,
    _lock: LockFile,
}

fn file_fault(error: &FileError) -> Fault {
    let kind = match error {
        FileError::NotPermitted(_) => FaultKind::Permission,
        _ => FaultKind::State,
    };
    Fault::new(kind, error.to_string())
}

impl Store {
    /// Opens (and makes, if missing) the directory and locks it.
    ///
    /// # Errors
    /// When another daemon holds it, or the file system forbids it.
    pub fn open(dir: &Path) -> Result<Self, Fault> {
        files::create_private_dir(dir).map_err(|e| file_fault(&e))?;
        let lock = LockFile::acquire(&dir.join("lock")).map_err(|error| match error {
            LockError::Held { holder, .. } => Fault::new(
                FaultKind::State,
                format!("a daemon runs on {} already (process {holder})", dir.display()),
            )
            .remedy(
                "look at it with `warren status`, or choose another directory with --state-dir",
            ),
            LockError::File(error) => file_fault(&error),
        })?;
        Ok(Self { dir: dir.to_owned(), _lock: lock })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    fn read(&self, name: &str) -> Result<Option<Zeroizing<Vec<u8>>>, Fault> {
        match files::read_private(&self.path(name), MAX_FILE) {
            Ok(content) => Ok(Some(Zeroizing::new(content))),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(file_fault(&error)),
        }
    }

    fn write(&self, name: &str, content: &[u8]) -> Result<(), Fault> {
        files::write_private(&self.path(name), content).map_err(|e| file_fault(&e))
    }

    /// A file that does not parse: nothing is overwritten.
    fn damaged(&self, name: &str, why: impl std::fmt::Display) -> Fault {
        Fault::new(FaultKind::State, format!("{} is damaged: {why}", self.path(name).display()))
            .remedy("restore it from a backup, or remove the whole directory and join afresh")
    }

    fn read_json<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, Fault> {
        let Some(content) = self.read(name)? else { return Ok(None) };
        serde_json::from_slice(&content).map(Some).map_err(|e| self.damaged(name, e))
    }

    fn write_json<T: Serialize>(&self, name: &str, value: &T) -> Result<(), Fault> {
        let mut text =
            Zeroizing::new(serde_json::to_vec_pretty(value).map_err(|e| Fault::internal(&e))?);
        text.push(b'\n');
        self.write(name, &text)
    }

    fn read_pem(&self, name: &str, label: &str) -> Result<Vec<Zeroizing<Vec<u8>>>, Fault> {
        let Some(content) = self.read(name)? else { return Ok(Vec::new()) };
        let blocks = pem::parse_many(&*content).map_err(|e| self.damaged(name, e))?;
        if blocks.is_empty() || blocks.iter().any(|b| b.tag() != label) {
            return Err(self.damaged(name, format!("no PEM block `{label}`")));
        }
        Ok(blocks.into_iter().map(|b| Zeroizing::new(b.into_contents())).collect())
    }

    fn write_pem(&self, name: &str, label: &str, blocks: &[Vec<u8>]) -> Result<(), Fault> {
        let config = pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF);
        let text: Zeroizing<String> = Zeroizing::new(
            blocks
                .iter()
                .map(|b| pem::encode_config(&pem::Pem::new(label, b.clone()), config))
                .collect(),
        );
        self.write(name, text.as_bytes())
    }

    fn read_key(&self, name: &str) -> Result<Option<IdentityKey>, Fault> {
        match self.read_pem(name, "PRIVATE KEY")?.as_slice() {
            [] => Ok(None),
            [der] => IdentityKey::from_pkcs8(der).map(Some).map_err(|e| self.damaged(name, e)),
            _ => Err(self.damaged(name, "more than one key")),
        }
    }

    fn write_key(&self, name: &str, key: &IdentityKey) -> Result<(), Fault> {
        self.write_pem(name, "PRIVATE KEY", &[key.to_pkcs8().to_vec()])
    }

    /// The node's identity, made at the first call.
    ///
    /// # Errors
    /// When it cannot be read or stored.
    pub fn identity(&self, rng: &mut impl CryptoRng) -> Result<IdentityKey, Fault> {
        if let Some(next) = self.read_key(NEXT_NODE_KEY)? {
            // A rotation was cut short: the certificate says how far it came.
            let chain = self.read_pem(NODE_CERTIFICATE, "CERTIFICATE")?;
            let certified = chain.first().and_then(|leaf| subject_key(leaf).ok());
            if certified == Some(next.id()) {
                self.write_key(NODE_KEY, &next)?;
            }
            self.remove(NEXT_NODE_KEY)?;
        }
        if let Some(key) = self.read_key(NODE_KEY)? {
            return Ok(key);
        }
        let key = IdentityKey::generate(rng).map_err(|e| Fault::internal(&e))?;
        self.write_key(NODE_KEY, &key)?;
        Ok(key)
    }

    /// The key of the node's links, made at the first call.
    ///
    /// # Errors
    /// When it cannot be read or stored.
    pub fn link_key(&self, rng: &mut impl CryptoRng) -> Result<LinkSecretKey, Fault> {
        if let Some(content) = self.read(LINK_KEY)? {
            let text = std::str::from_utf8(&content).map_err(|e| self.damaged(LINK_KEY, e))?;
            return text.parse().map_err(|e| self.damaged(LINK_KEY, e));
        }
        self.new_link_key(rng)
    }

    /// Replaces the key of the node's links. The one before is worth nothing
    /// after a restart.
    ///
    /// # Errors
    /// When it cannot be stored.
    pub fn new_link_key(&self, rng: &mut impl CryptoRng) -> Result<LinkSecretKey, Fault> {
        let mut bytes = Zeroizing::new([0; 32]);
        rng.fill_bytes(bytes.as_mut_slice());
        let key = LinkSecretKey::from_bytes(*bytes);
        let text = Zeroizing::new(format!("{}\n", *key.to_base64()));
        self.write(LINK_KEY, text.as_bytes())?;
        Ok(key)
    }

    /// The membership; `None` when this node belongs to no network.
    ///
    /// # Errors
    /// When the file is damaged.
    pub fn member(&self) -> Result<Option<Member>, Fault> {
        self.read_json(NETWORK)
    }

    /// Makes this node a member: to be written after all else.
    ///
    /// # Errors
    /// When it cannot be stored.
    pub fn save_member(&self, member: &Member) -> Result<(), Fault> {
        self.write_json(NETWORK, member)
    }

    /// The node's certificates.
    ///
    /// # Errors
    /// When they are missing or damaged.
    pub fn certificates(&self) -> Result<Certificates, Fault> {
        let own = |blocks: Vec<Zeroizing<Vec<u8>>>| -> Vec<Vec<u8>> {
            blocks.into_iter().map(|b| b.to_vec()).collect()
        };
        let chain = own(self.read_pem(NODE_CERTIFICATE, "CERTIFICATE")?);
        let mut ca = own(self.read_pem(CA_CERTIFICATE, "CERTIFICATE")?);
        if chain.is_empty() {
            return Err(self.damaged(NODE_CERTIFICATE, "the file is missing"));
        }
        let ca = ca.pop().ok_or_else(|| self.damaged(CA_CERTIFICATE, "the file is missing"))?;
        Ok(Certificates { chain, ca })
    }

    /// Stores certificates.
    ///
    /// # Errors
    /// When they cannot be stored.
    pub fn save_certificates(&self, certificates: &Certificates) -> Result<(), Fault> {
        self.write_pem(CA_CERTIFICATE, "CERTIFICATE", std::slice::from_ref(&certificates.ca))?;
        self.write_pem(NODE_CERTIFICATE, "CERTIFICATE", &certificates.chain)
    }

    fn remove(&self, name: &str) -> Result<(), Fault> {
        let path = self.path(name);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(Fault::file("remove", &path, &error))
            }
            _ => Ok(()),
        }
    }

    /// Replaces the node's identity key and its certificate chain: after a
    /// crash the next start finds both or neither.
    ///
    /// # Errors
    /// When they cannot be stored.
    pub fn save_identity(&self, key: &IdentityKey, chain: &[Vec<u8>]) -> Result<(), Fault> {
        self.write_key(NEXT_NODE_KEY, key)?;
        self.write_pem(NODE_CERTIFICATE, "CERTIFICATE", chain)?;
        self.write_key(NODE_KEY, key)?;
        self.remove(NEXT_NODE_KEY)
    }

    /// The records of the CA's rotations.
    ///
    /// # Errors
    /// When the file is damaged.
    pub fn trust(&self) -> Result<TrustChain, Fault> {
        match self.read(TRUST)? {
            Some(bytes) => TrustChain::from_bytes(&bytes).map_err(|e| self.damaged(TRUST, e)),
            None => Ok(TrustChain::default()),
        }
    }

    /// Stores them.
    ///
    /// # Errors
    /// When they cannot be stored.
    pub fn save_trust(&self, chain: &TrustChain) -> Result<(), Fault> {
        self.write(TRUST, &chain.to_bytes())
    }

    /// The key of the root `current`, where this node holds it.
    ///
    /// # Errors
    /// When it is damaged.
    pub fn ca_key(&self, current: NodeId) -> Result<Option<IdentityKey>, Fault> {
        if let Some(next) = self.read_key(NEXT_CA_KEY)? {
            // A rotation was cut short: the trust records say how far it came.
            if next.id() == current {
                self.write_key(CA_KEY, &next)?;
            }
            self.remove(NEXT_CA_KEY)?;
        }
        self.read_key(CA_KEY)
    }

    /// Replaces the root's key together with the trust records that lead to it;
    /// `None` removes the key.
    ///
    /// # Errors
    /// When they cannot be stored.
    pub fn save_root(&self, key: Option<&IdentityKey>, chain: &TrustChain) -> Result<(), Fault> {
        let Some(key) = key else { return self.remove(CA_KEY) };
        self.write_key(NEXT_CA_KEY, key)?;
        self.save_trust(chain)?;
        self.write_key(CA_KEY, key)?;
        self.remove(NEXT_CA_KEY)
    }

    /// The authority that was delegated to this node: key and certificate.
    ///
    /// # Errors
    /// When it is damaged.
    pub fn authority(&self) -> Result<Option<(IdentityKey, Vec<u8>)>, Fault> {
        let Some(key) = self.read_key(AUTHORITY_KEY)? else { return Ok(None) };
        let certificate = self.read_pem(AUTHORITY_CERTIFICATE, "CERTIFICATE")?;
        Ok(certificate.first().map(|der| (key, der.to_vec())))
    }

    /// Stores it. The certificate of a new key counts only with the key.
    ///
    /// # Errors
    /// When it cannot be stored.
    pub fn save_authority(&self, key: &IdentityKey, certificate: &[u8]) -> Result<(), Fault> {
        self.write_key(AUTHORITY_KEY, key)?;
        self.write_pem(AUTHORITY_CERTIFICATE, "CERTIFICATE", &[certificate.to_vec()])
    }

    /// Removes it.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn remove_authority(&self) -> Result<(), Fault> {
        self.remove(AUTHORITY_CERTIFICATE)?;
        self.remove(AUTHORITY_KEY)
    }

    /// Stores the CA's key.
    ///
    /// # Errors
    /// When it cannot be stored.
    pub fn save_ca_key(&self, key: &IdentityKey) -> Result<(), Fault> {
        self.write_key(CA_KEY, key)
    }

    /// A list an admitting node keeps (`invites`, `registry`), or its default.
    ///
    /// # Errors
    /// When it is damaged.
    pub fn list<T: DeserializeOwned + Default>(&self, name: &str) -> Result<T, Fault> {
        Ok(self.read_json(&format!("{name}.json"))?.unwrap_or_default())
    }

    /// Stores such a list.
    ///
    /// # Errors
    /// When it cannot be stored.
    pub fn save_list<T: Serialize>(&self, name: &str, list: &T) -> Result<(), Fault> {
        self.write_json(&format!("{name}.json"), list)
    }

    /// The WireGuard clients.
    ///
    /// # Errors
    /// When the file is damaged.
    pub fn clients(&self) -> Result<Vec<StoredClient>, Fault> {
        let files: Vec<ClientFile> = self.read_json(CLIENTS)?.unwrap_or_default();
        files
            .into_iter()
            .map(|file| {
                let preshared_key =
                    file.preshared_key.parse().map_err(|e| self.damaged(CLIENTS, e))?;
                Ok(StoredClient {
                    name: file.name,
                    public_key: file.public_key,
                    preshared_key,
                    addresses: file.addresses,
                })
            })
            .collect()
    }

    /// Stores the WireGuard clients.
    ///
    /// # Errors
    /// When they cannot be stored.
    pub fn save_clients(&self, clients: &[StoredClient]) -> Result<(), Fault> {
        let files: Vec<ClientFile> = clients
            .iter()
            .map(|client| ClientFile {
                name: client.name.clone(),
                public_key: client.public_key,
                preshared_key: client.preshared_key.to_base64(),
                addresses: client.addresses.clone(),
            })
            .collect();
        self.write_json(CLIENTS, &files)
    }

    /// What was known of the others. A damaged snapshot is reported and
    /// ignored: it is only a cache.
    pub fn directory(&self) -> DirectorySnapshot {
        let content = match self.read(DIRECTORY) {
            Ok(Some(content)) => content,
            Ok(None) => return DirectorySnapshot::default(),
            Err(error) => {
                tracing::warn!(%error, "the saved directory is unreadable; starting without it");
                return DirectorySnapshot::default();
            }
        };
        minicbor::decode(&content).unwrap_or_else(|error| {
            tracing::warn!(%error, "the saved directory is damaged; starting without it");
            DirectorySnapshot::default()
        })
    }

    /// Stores what is known of the others.
    ///
    /// # Errors
    /// When it cannot be stored.
    pub fn save_directory(&self, snapshot: &DirectorySnapshot) -> Result<(), Fault> {
        let bytes = minicbor::to_vec(snapshot)
            .map_err(|e| Fault::new(FaultKind::Internal, e.to_string()))?;
        self.write(DIRECTORY, &bytes)
    }

    /// Removes all files of ours, and the directory if nothing else is in it.
    ///
    /// # Errors
    /// When a file cannot be removed.
    pub fn wipe(&self) -> Result<(), Fault> {
        wipe(&self.dir)
    }
}

/// True when `dir` holds a node's identity, joined or not.
pub fn holds_state(dir: &Path) -> bool {
    dir.join(NODE_KEY).exists() || dir.join(NETWORK).exists()
}

/// Removes the state of a node that has left; see [`Store::wipe`].
///
/// # Errors
/// When a file cannot be removed.
pub fn wipe(dir: &Path) -> Result<(), Fault> {
    for name in ALL {
        let path = dir.join(name);
        match std::fs::remove_file(&path) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(Fault::file("remove", &path, &error)),
        }
    }
    // Files of the operator's own keep the directory alive.
    let _not_empty_is_fine = std::fs::remove_dir(dir);
    Ok(())
}

#[cfg(test)]
mod tests;
