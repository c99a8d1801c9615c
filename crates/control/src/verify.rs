//! Checks of certificates, with the reason when one is refused.
//!
//! In: a chain as TLS delivers it (leaf first), the trusted root, revocations,
//! `now`. Out: a [`CertifiedNode`] or a [`CertificateError`] that names the
//! failing check, for the operator's log only. Invariants: the key is Ed25519;
//! the chain ends at our root; exactly one SPIFFE name of our network; the
//! IPv6 address is the one that follows from the key. Deliberately not here:
//! TLS itself, and what the peer is told (nothing).

use std::net::IpAddr;
use std::time::Duration;

use rustls_pki_types::{CertificateDer, UnixTime};
use warren_types::{NetworkId, NetworkName, NodeId, NodeName};
use webpki::{EndEntityCert, KeyUsage, anchor_from_trusted_cert};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::address;
use crate::revocation::RevocationList;

/// Most certificates in a chain.
pub const MAX_CHAIN: usize = 4;
/// Largest certificate, bytes.
pub const MAX_CERTIFICATE: usize = 4096;

/// The DER prefix of an Ed25519 SubjectPublicKeyInfo (RFC 8410 section 4)
/// without the outer SEQUENCE, as webpki and x509-parser both expose the rest.
const ED25519_SPKI_PREFIX: [u8; 12] =
    [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

/// Why a certificate was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CertificateError {
    /// No certificate at all.
    #[error("no certificate was presented")]
    Missing,
    /// Not X.509, too long, or too many.
    #[error("the certificate is malformed: {0}")]
    Malformed(String),
    /// The key is not Ed25519.
    #[error("the certificate's key is not Ed25519")]
    NotEd25519,
    /// Not signed by the network's CA.
    #[error("the certificate is not from this network's CA")]
    WrongAuthority,
    /// Its end has passed.
    #[error("the certificate expired {} (at {not_after}, our clock shows {now})", ago(*not_after, *now))]
    Expired {
        /// End of validity, seconds since 1970.
        not_after: u64,
        /// Our clock, seconds since 1970.
        now: u64,
    },
    /// Its start lies ahead: one of the two clocks is wrong.
    #[error(
        "the certificate is not valid before {not_before} but our clock shows {now}: \
         the clock here or at the issuer is wrong; set it and try again"
    )]
    NotYetValid {
        /// Start of validity, seconds since 1970.
        not_before: u64,
        /// Our clock, seconds since 1970.
        now: u64,
    },
    /// The node was revoked.
    #[error("the node {0} was revoked")]
    Revoked(NodeId),
    /// No or another network's SPIFFE name.
    #[error("the certificate names no node of this network")]
    WrongName,
    /// Addresses are missing, outside the overlay, or another key's.
    #[error("the certificate's addresses do not belong to its key")]
    WrongAddresses,
    /// Refused by path validation for another reason.
    #[error("the certificate chain is not acceptable: {0}")]
    Chain(String),
}

fn ago(not_after: u64, now: u64) -> String {
    let seconds = now.saturating_sub(not_after);
    match seconds {
        0..=119 => format!("{seconds} seconds ago"),
        120..=7199 => format!("{} minutes ago", seconds / 60),
        7200..=172_799 => format!("{} hours ago", seconds / 3600),
        _ => format!("{} days ago", seconds / 86_400),
    }
}

/// What a valid certificate says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertifiedNode {
    /// The node's key.
    pub id: NodeId,
    /// Its name.
    pub name: NodeName,
    /// Its overlay addresses.
    pub addresses: Vec<IpAddr>,
    /// Start of validity, seconds since 1970.
    pub not_before: u64,
    /// End of validity, seconds since 1970.
    pub not_after: u64,
}

/// What a network trusts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrustRoot {
    /// The CA's certificate, DER.
    pub certificate: Vec<u8>,
    /// The CA's key, which signs revocations.
    pub key: NodeId,
    /// The network's name, part of every SPIFFE name.
    pub network: NetworkName,
    /// The network's identifier, from which addresses come.
    pub network_id: NetworkId,
}

impl TrustRoot {
    /// Trusts `certificate` as the root of a network.
    ///
    /// # Errors
    /// When it is not a certificate with an Ed25519 key.
    pub fn new(
        certificate: Vec<u8>,
        network: NetworkName,
        network_id: NetworkId,
    ) -> Result<Self, CertificateError> {
        let (key, _) = key_and_end(&certificate)?;
        Ok(Self { certificate, key, network, network_id })
    }

    /// Seconds since 1970 at which the root itself ends.
    ///
    /// # Errors
    /// When the stored certificate does not parse.
    pub fn not_after(&self) -> Result<u64, CertificateError> {
        key_and_end(&self.certificate).map(|(_, end)| end)
    }
}

fn parse(der: &[u8]) -> Result<X509Certificate<'_>, CertificateError> {
    if der.len() > MAX_CERTIFICATE {
        return Err(CertificateError::Malformed(format!("larger than {MAX_CERTIFICATE} bytes")));
    }
    match X509Certificate::from_der(der) {
        Ok(([], certificate)) => Ok(certificate),
        Ok(_) => Err(CertificateError::Malformed("bytes follow its end".into())),
        Err(error) => Err(CertificateError::Malformed(error.to_string())),
    }
}

fn ed25519_key(certificate: &X509Certificate<'_>) -> Result<NodeId, CertificateError> {
    certificate
        .public_key()
        .raw
        .strip_prefix(&ED25519_SPKI_PREFIX)
        .and_then(|key| key.try_into().ok())
        .map(NodeId)
        .ok_or(CertificateError::NotEd25519)
}

/// The Ed25519 key of a certificate, without any check of who signed it. TLS
/// proves that the peer holds the key; the caller decides what that is worth.
///
/// # Errors
/// When it does not parse or has another kind of key.
pub fn subject_key(der: &[u8]) -> Result<NodeId, CertificateError> {
    ed25519_key(&parse(der)?)
}

pub(crate) fn key_and_end(der: &[u8]) -> Result<(NodeId, u64), CertificateError> {
    let certificate = parse(der)?;
    let end = u64::try_from(certificate.validity().not_after.timestamp()).unwrap_or(0);
    Ok((ed25519_key(&certificate)?, end))
}

fn map_webpki(error: &webpki::Error) -> CertificateError {
    use webpki::Error as E;
    match error {
        E::CertExpired { time, not_after } => {
            CertificateError::Expired { not_after: not_after.as_secs(), now: time.as_secs() }
        }
        E::CertNotValidYet { time, not_before } => {
            CertificateError::NotYetValid { not_before: not_before.as_secs(), now: time.as_secs() }
        }
        E::UnknownIssuer | E::InvalidSignatureForPublicKey => CertificateError::WrongAuthority,
        other => CertificateError::Chain(format!("{other:?}")),
    }
}

/// Checks `chain` (leaf first) against `root` at `now` (seconds since 1970).
///
/// # Errors
/// The first check that failed.
pub fn verify_chain(
    chain: &[Vec<u8>],
    root: &TrustRoot,
    revoked: &RevocationList,
    now: u64,
) -> Result<CertifiedNode, CertificateError> {
    let (leaf, rest) = chain.split_first().ok_or(CertificateError::Missing)?;
    if rest.len() >= MAX_CHAIN {
        return Err(CertificateError::Malformed(format!("more than {MAX_CHAIN} certificates")));
    }
    if let Some(big) = rest.iter().find(|c| c.len() > MAX_CERTIFICATE) {
        return Err(CertificateError::Malformed(format!("a certificate of {} bytes", big.len())));
    }
    let parsed = parse(leaf)?;
    let id = ed25519_key(&parsed)?;

    let leaf_der = CertificateDer::from(leaf.as_slice());
    let root_der = CertificateDer::from(root.certificate.as_slice());
    let intermediates: Vec<_> = rest.iter().map(|c| CertificateDer::from(c.as_slice())).collect();
    let anchor = anchor_from_trusted_cert(&root_der)
        .map_err(|e| CertificateError::Chain(format!("our own CA certificate: {e:?}")))?;
    let end_entity = EndEntityCert::try_from(&leaf_der)
        .map_err(|e| CertificateError::Malformed(format!("{e:?}")))?;
    for usage in [KeyUsage::client_auth(), KeyUsage::server_auth()] {
        end_entity
            .verify_for_usage(
                &[webpki::aws_lc_rs::ED25519],
                std::slice::from_ref(&anchor),
                &intermediates,
                UnixTime::since_unix_epoch(Duration::from_secs(now)),
                usage,
                None,
                None,
            )
            .map_err(|e| map_webpki(&e))?;
    }
    if revoked.contains(id) {
        return Err(CertificateError::Revoked(id));
    }
    let (name, addresses) = names(&parsed, root)?;
    let wanted_v6 = IpAddr::V6(address::ipv6_of_node(root.network_id, id));
    let v4_ok = |a: &IpAddr| match a {
        IpAddr::V4(v4) => address::ipv4_prefix().contains(v4),
        IpAddr::V6(v6) => IpAddr::V6(*v6) == wanted_v6,
    };
    if !addresses.contains(&wanted_v6) || addresses.len() > 4 || !addresses.iter().all(v4_ok) {
        return Err(CertificateError::WrongAddresses);
    }
    let seconds = |t: i64| u64::try_from(t).unwrap_or(0);
    Ok(CertifiedNode {
        id,
        name,
        addresses,
        not_before: seconds(parsed.validity().not_before.timestamp()),
        not_after: seconds(parsed.validity().not_after.timestamp()),
    })
}

fn names(
    certificate: &X509Certificate<'_>,
    root: &TrustRoot,
) -> Result<(NodeName, Vec<IpAddr>), CertificateError> {
    let extension = certificate
        .subject_alternative_name()
        .map_err(|e| CertificateError::Malformed(e.to_string()))?
        .ok_or(CertificateError::WrongName)?;
    let prefix = format!("spiffe://{}/node/", root.network);
    let mut name: Option<NodeName> = None;
    let mut addresses = Vec::new();
    for general in &extension.value.general_names {
        match general {
            GeneralName::URI(uri) => {
                let parsed = uri
                    .strip_prefix(prefix.as_str())
                    .and_then(|n| n.parse::<NodeName>().ok().filter(|p| p.as_str() == n))
                    .ok_or(CertificateError::WrongName)?;
                if name.replace(parsed).is_some() {
                    return Err(CertificateError::WrongName);
                }
            }
            GeneralName::IPAddress(bytes) => {
                let address = match <[u8; 4]>::try_from(*bytes) {
                    Ok(v4) => IpAddr::from(v4),
                    Err(_) => <[u8; 16]>::try_from(*bytes)
                        .map(IpAddr::from)
                        .map_err(|_| CertificateError::WrongAddresses)?,
                };
                addresses.push(address);
            }
            // Our CA issues nothing else; a name of another kind would be
            // meant for another verifier.
            _ => return Err(CertificateError::WrongName),
        }
    }
    Ok((name.ok_or(CertificateError::WrongName)?, addresses))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ca::{Authority, CertificateRequest, NODE_CERTIFICATE_LIFE};
    use crate::identity::IdentityKey;
    use crate::network::{NetworkParameters, fingerprint};
    use crate::testing::TestRng;
    use warren_types::Suite;

    const NOW: u64 = 1_800_000_000;

    fn network(seed: u64) -> (Authority, TrustRoot) {
        let mut rng = TestRng::new(seed);
        let name: NetworkName = "home".parse().unwrap();
        let key = IdentityKey::generate(&mut rng).unwrap();
        let ca = Authority::create(key, &name, NOW, &mut rng).unwrap();
        let params = NetworkParameters::certificate(
            name.clone(),
            Suite::default(),
            &fingerprint(ca.certificate()),
        );
        let root = TrustRoot::new(ca.certificate().to_vec(), name, params.id).unwrap();
        (ca, root)
    }

    fn request(root: &TrustRoot, id: NodeId) -> CertificateRequest {
        CertificateRequest {
            id,
            name: "alpha".parse().unwrap(),
            addresses: vec![
                address::ipv6_of_node(root.network_id, id).into(),
                address::ipv4_of_key(root.network_id, &id.0, 0).into(),
            ],
        }
    }

    fn node(seed: u64) -> IdentityKey {
        IdentityKey::generate(&mut TestRng::new(seed)).unwrap()
    }

    #[test]
    fn an_issued_certificate_verifies_with_all_it_says() {
        let (ca, root) = network(1);
        let key = node(2);
        let request = request(&root, key.id());
        let leaf = ca.issue(&request, NOW, &mut TestRng::new(3)).unwrap();
        let none = RevocationList::default();
        // With and without the root in the chain: TLS sends it for joiners.
        for chain in [vec![leaf.clone()], vec![leaf.clone(), ca.certificate().to_vec()]] {
            let node = verify_chain(&chain, &root, &none, NOW).unwrap();
            assert_eq!((node.id, &node.name), (key.id(), &request.name));
            assert_eq!(node.addresses, request.addresses);
            assert_eq!(node.not_after, NOW + NODE_CERTIFICATE_LIFE);
        }
        let late = verify_chain(
            std::slice::from_ref(&leaf),
            &root,
            &none,
            NOW + NODE_CERTIFICATE_LIFE + 1,
        );
        assert!(matches!(late, Err(CertificateError::Expired { .. })), "{late:?}");
        let early = verify_chain(&[leaf], &root, &none, NOW - 2 * crate::ca::BACKDATE);
        assert!(matches!(early, Err(CertificateError::NotYetValid { .. })), "{early:?}");
    }

    #[test]
    fn another_ca_of_the_same_name_is_refused() {
        let (_, root) = network(1);
        let (other_ca, other_root) = network(7);
        let key = node(2);
        let leaf =
            other_ca.issue(&request(&other_root, key.id()), NOW, &mut TestRng::new(3)).unwrap();
        let result = verify_chain(
            &[leaf, other_ca.certificate().to_vec()],
            &root,
            &RevocationList::default(),
            NOW,
        );
        assert_eq!(result, Err(CertificateError::WrongAuthority));
    }

    #[test]
    fn self_signed_and_empty_chains_are_refused() {
        let (ca, root) = network(1);
        let key = node(2);
        let own = crate::ca::self_signed(&key, NOW, &mut TestRng::new(3)).unwrap();
        assert_eq!(subject_key(&own).unwrap(), key.id());
        let none = RevocationList::default();
        assert!(verify_chain(&[own], &root, &none, NOW).is_err());
        assert_eq!(verify_chain(&[], &root, &none, NOW), Err(CertificateError::Missing));
        // The root is no node.
        assert!(verify_chain(&[ca.certificate().to_vec()], &root, &none, NOW).is_err());
    }

    #[test]
    fn a_node_certificate_cannot_issue() {
        let (ca, root) = network(1);
        let (middle, victim) = (node(2), node(4));
        let leaf = ca.issue(&request(&root, middle.id()), NOW, &mut TestRng::new(3)).unwrap();
        let forger = Authority::load(middle, leaf.clone(), &root.network).unwrap();
        let forged = forger.issue(&request(&root, victim.id()), NOW, &mut TestRng::new(5)).unwrap();
        let result = verify_chain(&[forged, leaf], &root, &RevocationList::default(), NOW);
        assert!(result.is_err(), "{result:?}");
    }

    #[test]
    fn every_altered_byte_is_refused() {
        let (ca, root) = network(1);
        let key = node(2);
        let leaf = ca.issue(&request(&root, key.id()), NOW, &mut TestRng::new(3)).unwrap();
        for at in 0..leaf.len() {
            let mut bad = leaf.clone();
            bad[at] ^= 0x01;
            let result = verify_chain(&[bad], &root, &RevocationList::default(), NOW);
            assert!(result.is_err(), "byte {at} altered and accepted");
        }
        for end in 0..leaf.len() {
            assert!(
                verify_chain(&[leaf[..end].to_vec()], &root, &RevocationList::default(), NOW)
                    .is_err()
            );
        }
    }

    #[test]
    fn names_of_another_network_and_foreign_addresses_are_refused() {
        let (ca, root) = network(1);
        let key = node(2);
        let leaf = ca.issue(&request(&root, key.id()), NOW, &mut TestRng::new(3)).unwrap();
        let mut elsewhere = root.clone();
        elsewhere.network = "office".parse().unwrap();
        let none = RevocationList::default();
        assert_eq!(verify_chain(&[leaf], &elsewhere, &none, NOW), Err(CertificateError::WrongName));
        let mut foreign = request(&root, key.id());
        foreign.addresses[0] = address::ipv6_of_node(root.network_id, NodeId([1; 32])).into();
        let leaf = ca.issue(&foreign, NOW, &mut TestRng::new(3)).unwrap();
        assert_eq!(verify_chain(&[leaf], &root, &none, NOW), Err(CertificateError::WrongAddresses));
    }
}
