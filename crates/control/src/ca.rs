//! The network's certificate authority: creates a root, delegates to other
//! nodes, issues node certificates.
//!
//! In: the CA key, the subject's [`NodeId`], name and overlay addresses, `now`.
//! Out: X.509 v3 certificates in DER, signed with Ed25519 (RFC 8410).
//! Invariants: a node certificate binds key, name (`spiffe://NETWORK/node/NAME`)
//! and addresses (SAN IPs) together, is no CA, and never outlives its issuer. A
//! delegated authority can issue node certificates of this network's addresses
//! and nothing else: path length 0 and IP name constraints (RFC 5280 section
//! 4.2.1.10; URI constraints are not understood by verifiers, so its own URI
//! names the network and `verify` compares). Deliberately not here: who may have
//! which name (`registry`), and checking (`verify`).

use std::net::IpAddr;

use rand_core::CryptoRng;
use rcgen::{
    BasicConstraints, CertificateParams, CidrSubnet, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, GeneralSubtree, IsCa, Issuer, KeyUsagePurpose, NameConstraints,
    SanType, SerialNumber,
};
use time::OffsetDateTime;
use warren_types::{NetworkId, NetworkName, NodeId, NodeName};

use crate::address;

use crate::identity::{IdentityKey, SubjectKey};

/// Life of a node certificate, seconds: 90 days.
pub const NODE_CERTIFICATE_LIFE: u64 = 90 * DAY;
/// Life of the root certificate, seconds: ten years.
pub const CA_CERTIFICATE_LIFE: u64 = 3650 * DAY;
/// Life of a delegated authority's certificate, seconds: 180 days. Root holders
/// renew it by themselves at two thirds of it.
pub const AUTHORITY_CERTIFICATE_LIFE: u64 = 180 * DAY;
/// How far a certificate's start lies in the past, seconds, so that a clock
/// that is behind does not refuse it: as much as records may be ahead.
pub const BACKDATE: u64 = crate::descriptor::MAX_SKEW;

const DAY: u64 = 86_400;

/// A certificate could not be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IssueError {
    /// The clock shows a time that certificates cannot express.
    #[error("the clock is wrong: {now} seconds since 1970 cannot be written into a certificate")]
    Clock {
        /// What the clock showed.
        now: u64,
    },
    /// The CA certificate itself has ended.
    #[error("the network's CA certificate has expired; nothing can be issued any more")]
    CaExpired,
    /// A delegated authority was asked to delegate.
    #[error("only a holder of the root key can delegate")]
    NotRoot,
    /// The CA key does not belong to the CA certificate.
    #[error("the CA key does not belong to the CA certificate")]
    KeyMismatch,
    /// The X.509 encoder refused.
    #[error("the certificate could not be encoded: {0}")]
    Encoding(String),
}

impl From<rcgen::Error> for IssueError {
    fn from(error: rcgen::Error) -> Self {
        Self::Encoding(error.to_string())
    }
}

/// What a node certificate says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateRequest {
    /// The node's key.
    pub id: NodeId,
    /// Its name.
    pub name: NodeName,
    /// Its overlay addresses, at least one.
    pub addresses: Vec<IpAddr>,
    /// The key its IPv6 address follows from, when that is a former one.
    pub origin: Option<Origin>,
}

/// Where a node began: survives every rotation of its key, and with it its
/// overlay IPv6 address. Of two certificates with one origin the one with the
/// higher generation is the node; the other is a former self.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
pub struct Origin {
    /// The node's first key.
    pub id: NodeId,
    /// How often its key was rotated since.
    pub generation: u32,
}

/// An authority of the network: the root, or one delegated by it.
#[derive(Debug)]
pub struct Authority {
    key: IdentityKey,
    certificate: Vec<u8>,
    network: NetworkName,
    not_after: u64,
    root: bool,
}

fn datetime(seconds: u64) -> Result<OffsetDateTime, IssueError> {
    let error = IssueError::Clock { now: seconds };
    i64::try_from(seconds)
        .ok()
        .and_then(|s| OffsetDateTime::from_unix_timestamp(s).ok())
        // RFC 5280 section 4.1.2.5 ends at 9999.
        .filter(|t| t.year() < 9999)
        .ok_or(error)
}

fn serial(rng: &mut impl CryptoRng) -> SerialNumber {
    let mut bytes = [0_u8; 16];
    rng.fill_bytes(&mut bytes);
    // Positive and of constant length (RFC 5280 section 4.1.2.2).
    bytes[0] = (bytes[0] & 0x7f) | 0x40;
    SerialNumber::from_slice(&bytes)
}

fn common_name(text: String) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, text);
    name
}

/// The parts of an authority's certificate that certificates it issues refer
/// to. `delegated` is the key of a delegated one.
fn ca_params(network: &NetworkName, delegated: Option<NodeId>) -> CertificateParams {
    let mut params = CertificateParams::default();
    let (name, depth) = match delegated {
        None => (format!("Warren CA of {network}"), 1),
        Some(key) => (format!("Warren authority {} of {network}", key.short()), 0),
    };
    params.distinguished_name = common_name(name);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(depth));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn uri(text: String) -> Result<SanType, IssueError> {
    Ok(SanType::URI(text.try_into()?))
}

impl Authority {
    /// Creates a root certificate for `network`, signed by `key`.
    ///
    /// # Errors
    /// When the clock is beyond what certificates can express.
    pub fn create(
        key: IdentityKey,
        network: &NetworkName,
        now: u64,
        rng: &mut impl CryptoRng,
    ) -> Result<Self, IssueError> {
        let mut params = ca_params(network, None);
        let not_after = now.saturating_add(CA_CERTIFICATE_LIFE);
        params.not_before = datetime(now.saturating_sub(BACKDATE))?;
        params.not_after = datetime(not_after)?;
        params.serial_number = Some(serial(rng));
        let certificate = params.self_signed(&key)?.der().to_vec();
        Ok(Self { key, certificate, network: network.clone(), not_after, root: true })
    }

    /// Takes up an existing root.
    ///
    /// # Errors
    /// When key and certificate do not belong together.
    pub fn load(
        key: IdentityKey,
        certificate: Vec<u8>,
        network: &NetworkName,
    ) -> Result<Self, IssueError> {
        Self::take_up(key, certificate, network, true)
    }

    /// Takes up a delegated authority.
    ///
    /// # Errors
    /// When key and certificate do not belong together.
    pub fn load_delegated(
        key: IdentityKey,
        certificate: Vec<u8>,
        network: &NetworkName,
    ) -> Result<Self, IssueError> {
        Self::take_up(key, certificate, network, false)
    }

    fn take_up(
        key: IdentityKey,
        certificate: Vec<u8>,
        network: &NetworkName,
        root: bool,
    ) -> Result<Self, IssueError> {
        let (id, not_after) = crate::verify::key_and_end(&certificate)
            .map_err(|e| IssueError::Encoding(e.to_string()))?;
        if id != key.id() {
            return Err(IssueError::KeyMismatch);
        }
        Ok(Self { key, certificate, network: network.clone(), not_after, root })
    }

    /// Its certificate, DER.
    pub fn certificate(&self) -> &[u8] {
        &self.certificate
    }

    /// True for a root, false for a delegated authority.
    pub fn is_root(&self) -> bool {
        self.root
    }

    /// End of its certificate, seconds since 1970.
    pub fn not_after(&self) -> u64 {
        self.not_after
    }

    /// What follows the leaf in chains it issues: itself, unless it is a root.
    pub fn above(&self) -> Vec<Vec<u8>> {
        if self.root { Vec::new() } else { vec![self.certificate.clone()] }
    }

    /// Certifies `key`, which was made at and never leaves the node `name`, as
    /// an authority that issues node certificates of this network, for `life`
    /// seconds or to the root's own end.
    ///
    /// # Errors
    /// When this is no root, or the clock or the root's end forbids it.
    pub fn delegate(
        &self,
        name: &NodeName,
        key: NodeId,
        network: NetworkId,
        now: u64,
        life: u64,
        rng: &mut impl CryptoRng,
    ) -> Result<Vec<u8>, IssueError> {
        if !self.root {
            return Err(IssueError::NotRoot);
        }
        if now >= self.not_after {
            return Err(IssueError::CaExpired);
        }
        let mut params = ca_params(&self.network, Some(key));
        params.not_before = datetime(now.saturating_sub(BACKDATE))?;
        params.not_after = datetime(now.saturating_add(life).min(self.not_after))?;
        params.serial_number = Some(serial(rng));
        params.use_authority_key_identifier_extension = true;
        params.subject_alt_names = vec![uri(format!("spiffe://{}/admin/{name}", self.network))?];
        let (v4, v6) = (address::ipv4_prefix(), address::ipv6_prefix(network));
        let subnet = |net: ipnet::IpNet| {
            GeneralSubtree::IpAddress(CidrSubnet::from_addr_prefix(net.network(), net.prefix_len()))
        };
        params.name_constraints = Some(NameConstraints {
            permitted_subtrees: vec![subnet(v4.into()), subnet(v6.into())],
            excluded_subtrees: Vec::new(),
        });
        let issuer_params = ca_params(&self.network, None);
        let issuer = Issuer::from_params(&issuer_params, &self.key);
        Ok(params.signed_by(&SubjectKey(key), &issuer)?.der().to_vec())
    }

    /// The CA's key, to be stored by its owner.
    pub fn key(&self) -> &IdentityKey {
        &self.key
    }

    /// Issues (or renews: it is the same) a node certificate from `now`, for
    /// [`NODE_CERTIFICATE_LIFE`] or to the authority's own end.
    ///
    /// # Errors
    /// When the clock or the CA's end forbids it.
    pub fn issue(
        &self,
        request: &CertificateRequest,
        now: u64,
        rng: &mut impl CryptoRng,
    ) -> Result<Vec<u8>, IssueError> {
        self.issue_for(request, now, NODE_CERTIFICATE_LIFE, rng)
    }

    /// Like [`Authority::issue`] with another life, in seconds.
    ///
    /// # Errors
    /// When the clock or the CA's end forbids it.
    pub fn issue_for(
        &self,
        request: &CertificateRequest,
        now: u64,
        life: u64,
        rng: &mut impl CryptoRng,
    ) -> Result<Vec<u8>, IssueError> {
        if now >= self.not_after {
            return Err(IssueError::CaExpired);
        }
        let mut params = CertificateParams::default();
        params.distinguished_name = common_name(request.name.to_string());
        params.not_before = datetime(now.saturating_sub(BACKDATE))?;
        params.not_after = datetime(now.saturating_add(life).min(self.not_after))?;
        params.serial_number = Some(serial(rng));
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        params.subject_alt_names =
            vec![uri(format!("spiffe://{}/node/{}", self.network, request.name))?];
        if let Some(Origin { id, generation }) = request.origin {
            let text = format!("spiffe://{}/origin/{id}/{generation}", self.network);
            params.subject_alt_names.push(uri(text)?);
        }
        params
            .subject_alt_names
            .extend(request.addresses.iter().map(|address| SanType::IpAddress(*address)));
        let delegated = (!self.root).then(|| self.key.id());
        let issuer_params = ca_params(&self.network, delegated);
        let issuer = Issuer::from_params(&issuer_params, &self.key);
        Ok(params.signed_by(&SubjectKey(request.id), &issuer)?.der().to_vec())
    }
}

/// A self-signed certificate that proves possession of `key` in TLS and claims
/// nothing else; used to join, and with pinned keys or a pre-shared key.
///
/// # Errors
/// When the clock is beyond what certificates can express.
pub fn self_signed(
    key: &IdentityKey,
    now: u64,
    rng: &mut impl CryptoRng,
) -> Result<Vec<u8>, IssueError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = common_name(format!("warren node {}", key.id().short()));
    params.not_before = datetime(now.saturating_sub(BACKDATE))?;
    params.not_after = datetime(now.saturating_add(CA_CERTIFICATE_LIFE))?;
    params.serial_number = Some(serial(rng));
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    Ok(params.self_signed(key)?.der().to_vec())
}
