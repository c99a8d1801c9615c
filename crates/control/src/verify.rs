//! Checks of certificates, with the reason when one is refused.
//!
//! In: a chain as TLS delivers it (leaf first), the trusted roots, revocations,
//! `now`. Out: a [`CertifiedNode`] or a [`CertificateError`] that names the
//! failing check, for the operator's log only. Invariants: every key is Ed25519;
//! the chain ends at a root that is trusted now, with at most one delegated
//! authority between; exactly one SPIFFE name of our network; the IPv6 address
//! is the one that follows from the key, or from the one the node began with.
//! Deliberately not here: TLS itself, and what the peer is told (nothing).

use std::net::IpAddr;
use std::time::Duration;

use rustls_pki_types::{CertificateDer, UnixTime};
use warren_types::{NodeId, NodeName};
use webpki::{EndEntityCert, KeyUsage, anchor_from_trusted_cert};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::ca::Origin;
use crate::revocation::RevocationList;
use crate::trust::Trust;
use crate::{address, identity};

/// Most certificates in a chain.
pub const MAX_CHAIN: usize = 4;
/// Largest certificate, bytes.
pub const MAX_CERTIFICATE: usize = 4096;

/// The DER prefix of an Ed25519 SubjectPublicKeyInfo (RFC 8410 section 4)
/// without the outer SEQUENCE, as webpki and x509-parser both expose the rest.
const ED25519_SPKI_PREFIX: [u8; 12] =
    [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

/// What stands between the signed part and the signature: the algorithm's name
/// and the header of a bit string of 64 bytes.
const ED25519_SIGNATURE_PREFIX: [u8; 10] =
    [0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x41, 0x00];

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
    /// The delegated authority that issued it was revoked.
    #[error(
        "the authority {authority} that issued the certificate was revoked: the node needs one \
         from another admin"
    )]
    AuthorityRevoked {
        /// The node.
        node: NodeId,
        /// Who issued its certificate.
        authority: NodeId,
    },
    /// It is under a root that this network has replaced.
    #[error("the certificate is under a root that this network has replaced: it must be renewed")]
    FormerRoot,
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
    /// Where it began: itself, unless its key was rotated.
    pub origin: Origin,
    /// The delegated authority that issued the certificate; `None` when the
    /// root did.
    pub authority: Option<NodeId>,
    /// The key of the root above.
    pub root: NodeId,
    /// Start of validity, seconds since 1970.
    pub not_before: u64,
    /// End of validity, seconds since 1970.
    pub not_after: u64,
}

/// What an authority's certificate says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertifiedAuthority {
    /// Its key.
    pub key: NodeId,
    /// The node that holds it.
    pub name: NodeName,
    /// The key of the root above.
    pub root: NodeId,
    /// Start of validity, seconds since 1970.
    pub not_before: u64,
    /// End of validity, seconds since 1970.
    pub not_after: u64,
}

/// What is overlooked, to serve a node that only needs a new certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Leniency {
    /// Roots of this network whose overlap has ended.
    pub former_roots: bool,
    /// That the authority which issued the certificate was revoked.
    pub revoked_authority: bool,
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

fn time_of(time: x509_parser::time::ASN1Time) -> u64 {
    u64::try_from(time.timestamp()).unwrap_or(0)
}

fn signed_by(certificate: &X509Certificate<'_>, key: NodeId) -> bool {
    let signature = &certificate.signature_value.data;
    let signed: &[u8] = certificate.tbs_certificate.as_ref();
    // What follows the signed part is not signed: it must have its one form.
    let tail = [&ED25519_SIGNATURE_PREFIX[..], signature].concat();
    let whole = certificate.as_raw().strip_suffix(&tail[..]);
    whole.is_some_and(|head| head.ends_with(signed))
        && identity::verify_bytes(key, signed, signature)
}

/// True for a CA certificate that may sign certificates.
fn is_authority(certificate: &X509Certificate<'_>) -> bool {
    let usage = certificate.key_usage().ok().flatten();
    certificate.is_ca() && usage.is_some_and(|usage| usage.value.key_cert_sign())
}

/// Key and end of a root certificate: one that may issue and signed itself.
pub(crate) fn check_root(der: &[u8]) -> Result<(NodeId, u64), CertificateError> {
    let certificate = parse(der)?;
    let key = ed25519_key(&certificate)?;
    let own = certificate.issuer().as_raw() == certificate.subject().as_raw();
    if !own || !is_authority(&certificate) || !signed_by(&certificate, key) {
        return Err(CertificateError::Malformed("it is no root certificate".into()));
    }
    Ok((key, time_of(certificate.validity().not_after)))
}

/// Checks the certificate of a delegated authority against all roots there
/// were. Whether it and its root count at some time is the caller's to judge.
///
/// # Errors
/// The first check that failed.
pub fn verify_authority(der: &[u8], trust: &Trust) -> Result<CertifiedAuthority, CertificateError> {
    let certificate = parse(der)?;
    let key = ed25519_key(&certificate)?;
    let root = trust.all().find(|root| signed_by(&certificate, root.key));
    let root = root.ok_or(CertificateError::WrongAuthority)?.key;
    if !is_authority(&certificate) {
        return Err(CertificateError::Malformed("it is no authority's certificate".into()));
    }
    let name = authority_name(&certificate, trust)?;
    let (not_before, not_after) =
        (time_of(certificate.validity().not_before), time_of(certificate.validity().not_after));
    Ok(CertifiedAuthority { key, name, root, not_before, not_after })
}

fn authority_name(
    certificate: &X509Certificate<'_>,
    trust: &Trust,
) -> Result<NodeName, CertificateError> {
    let extension = certificate
        .subject_alternative_name()
        .map_err(|e| CertificateError::Malformed(e.to_string()))?
        .ok_or(CertificateError::WrongName)?;
    let prefix = format!("spiffe://{}/admin/", trust.network);
    match extension.value.general_names.as_slice() {
        [GeneralName::URI(uri)] => canonical_name(uri.strip_prefix(prefix.as_str())),
        _ => Err(CertificateError::WrongName),
    }
}

fn canonical_name(text: Option<&str>) -> Result<NodeName, CertificateError> {
    text.and_then(|n| n.parse::<NodeName>().ok().filter(|p| p.as_str() == n))
        .ok_or(CertificateError::WrongName)
}

/// Start and end of a certificate's validity, seconds since 1970, without any
/// check of who signed it.
///
/// # Errors
/// When it does not parse.
pub fn validity(der: &[u8]) -> Result<(u64, u64), CertificateError> {
    let certificate = parse(der)?;
    let validity = certificate.validity();
    Ok((time_of(validity.not_before), time_of(validity.not_after)))
}

pub(crate) fn key_and_end(der: &[u8]) -> Result<(NodeId, u64), CertificateError> {
    let certificate = parse(der)?;
    Ok((ed25519_key(&certificate)?, time_of(certificate.validity().not_after)))
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

/// Checks `chain` (leaf first) against what the network trusts at `now`
/// (seconds since 1970).
///
/// # Errors
/// The first check that failed.
pub fn verify_chain(
    chain: &[Vec<u8>],
    trust: &Trust,
    revoked: &RevocationList,
    now: u64,
) -> Result<CertifiedNode, CertificateError> {
    let strict = Leniency::default();
    match verify_leniently(chain, trust, revoked, now, strict) {
        Err(CertificateError::WrongAuthority) if trust.all().any(|root| now >= root.until) => {
            // Tells a node that was away from a stranger.
            let lenient = Leniency { former_roots: true, ..strict };
            verify_leniently(chain, trust, revoked, now, lenient)
                .and(Err(CertificateError::FormerRoot))
        }
        result => result,
    }
}

/// Like [`verify_chain`], overlooking something.
///
/// # Errors
/// The first check that failed.
pub fn verify_leniently(
    chain: &[Vec<u8>],
    trust: &Trust,
    revoked: &RevocationList,
    now: u64,
    leniency: Leniency,
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
    let roots: Vec<_> = trust
        .all()
        .filter(|root| leniency.former_roots || now < root.until)
        .map(|root| (root.key, CertificateDer::from(root.certificate.as_slice())))
        .collect();
    let intermediates: Vec<_> = rest.iter().map(|c| CertificateDer::from(c.as_slice())).collect();
    let mut anchors = Vec::with_capacity(roots.len());
    for (_, der) in &roots {
        anchors.push(
            anchor_from_trusted_cert(der)
                .map_err(|e| CertificateError::Chain(format!("our own CA certificate: {e:?}")))?,
        );
    }
    let end_entity = EndEntityCert::try_from(&leaf_der)
        .map_err(|e| CertificateError::Malformed(format!("{e:?}")))?;
    let mut above = None;
    for usage in [KeyUsage::client_auth(), KeyUsage::server_auth()] {
        let path = end_entity
            .verify_for_usage(
                &[webpki::aws_lc_rs::ED25519],
                &anchors,
                &intermediates,
                UnixTime::since_unix_epoch(Duration::from_secs(now)),
                usage,
                None,
                None,
            )
            .map_err(|e| map_webpki(&e))?;
        let root = anchors.iter().position(|anchor| anchor == path.anchor());
        let root = root.map(|at| roots[at].0).ok_or(CertificateError::WrongAuthority)?;
        let delegated = path.intermediate_certificates().next().map(|c| c.der().to_vec());
        above = Some((root, delegated));
    }
    let (root, delegated) = above.ok_or(CertificateError::Missing)?;
    if revoked.contains(id) {
        return Err(CertificateError::Revoked(id));
    }
    let mut not_after = time_of(parsed.validity().not_after);
    let mut authority = None;
    if let Some(der) = delegated {
        let certificate = parse(&der)?;
        let key = ed25519_key(&certificate)?;
        authority_name(&certificate, trust)?;
        if revoked.contains(key) && !leniency.revoked_authority {
            return Err(CertificateError::AuthorityRevoked { node: id, authority: key });
        }
        not_after = not_after.min(time_of(certificate.validity().not_after));
        authority = Some(key);
    }
    let Names { name, addresses, origin } = names(&parsed, trust)?;
    let origin = origin.unwrap_or(Origin { id, generation: 0 });
    let wanted_v6 = IpAddr::V6(address::ipv6_of_node(trust.network_id, origin.id));
    let v4_ok = |a: &IpAddr| match a {
        IpAddr::V4(v4) => address::ipv4_prefix().contains(v4),
        IpAddr::V6(v6) => IpAddr::V6(*v6) == wanted_v6,
    };
    if !addresses.contains(&wanted_v6) || addresses.len() > 4 || !addresses.iter().all(v4_ok) {
        return Err(CertificateError::WrongAddresses);
    }
    let not_before = time_of(parsed.validity().not_before);
    Ok(CertifiedNode { id, name, addresses, origin, authority, root, not_before, not_after })
}

/// What the subject alternative names say.
struct Names {
    name: NodeName,
    addresses: Vec<IpAddr>,
    origin: Option<Origin>,
}

fn names(certificate: &X509Certificate<'_>, trust: &Trust) -> Result<Names, CertificateError> {
    let extension = certificate
        .subject_alternative_name()
        .map_err(|e| CertificateError::Malformed(e.to_string()))?
        .ok_or(CertificateError::WrongName)?;
    let prefix = format!("spiffe://{}/node/", trust.network);
    let origin_prefix = format!("spiffe://{}/origin/", trust.network);
    let mut name: Option<NodeName> = None;
    let mut origin: Option<Origin> = None;
    let mut addresses = Vec::new();
    for general in &extension.value.general_names {
        match general {
            GeneralName::URI(uri) => {
                let again = match uri.strip_prefix(origin_prefix.as_str()) {
                    Some(text) => origin.replace(parse_origin(text)?).is_some(),
                    None => {
                        let parsed = canonical_name(uri.strip_prefix(prefix.as_str()))?;
                        name.replace(parsed).is_some()
                    }
                };
                if again {
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
    Ok(Names { name: name.ok_or(CertificateError::WrongName)?, addresses, origin })
}

/// `ID/GENERATION` in the one form there is of it; generation 0 needs no name.
fn parse_origin(text: &str) -> Result<Origin, CertificateError> {
    let parsed = text.split_once('/').and_then(|(id, generation)| {
        Some(Origin { id: id.parse().ok()?, generation: generation.parse().ok()? })
    });
    parsed
        .filter(|o| o.generation > 0 && format!("{}/{}", o.id, o.generation) == text)
        .ok_or(CertificateError::WrongName)
}

#[cfg(test)]
mod tests;
