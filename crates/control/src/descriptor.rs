//! Descriptors: what a node says about itself, signed by itself.
//!
//! In: what the owner wants to say, or bytes from the network. Out: a
//! [`SignedDescriptor`] to spread, or a checked [`Descriptor`]. Invariants: only
//! the holder of the node key can make one; name and addresses are those that
//! the mode allows (certified, pinned, or derived from the key); client
//! addresses follow from the clients' keys, so nobody can claim an address at
//! will; the bytes that were signed are kept and passed on unchanged, so fields
//! that this version does not know survive. Deliberately not here: which of two
//! descriptors counts (`directory`).

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;
use minicbor::bytes::ByteArray;
use minicbor::{Decode, Encode};
use warren_types::{LinkPublicKey, NetworkId, NodeId, NodeName};

use crate::identity::{self, IdentityKey, SIGNATURE_LEN};
use crate::membership::{Membership, MembershipError, PeerIdentity};
use crate::onion::OnionSection;
use crate::revocation::RevocationList;
use crate::route_approval::MAX_ROUTES;
use crate::verify::CertifiedNode;
use crate::{address, cbor};

const LABEL: &str = "Warren v1 descriptor";

/// Life of a descriptor, seconds: seven days. Owners renew at a third of it.
pub const DESCRIPTOR_LIFE: u64 = 7 * 86_400;
/// How far ahead of our clock a descriptor may have been made, seconds: two
/// clocks that are each an hour off, in opposite directions, and some more.
pub const MAX_SKEW: u64 = 7800;
/// Largest descriptor body, bytes.
pub const MAX_BODY: usize = 48 * 1024;
/// Most WireGuard clients behind one node.
pub const MAX_CLIENTS: usize = 250;
/// Most endpoints of one node.
pub const MAX_ENDPOINTS: usize = 16;

/// A stock WireGuard client behind the node.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct ClientRecord {
    /// Its name.
    #[cbor(n(0), with = "cbor::node_name")]
    pub name: NodeName,
    /// Its WireGuard public key, from which its addresses follow.
    #[cbor(n(1), with = "cbor::link_key")]
    pub key: LinkPublicKey,
    /// Its overlay addresses.
    #[cbor(n(2), with = "cbor::ips")]
    pub addresses: Vec<IpAddr>,
}

/// What the owner says about the keys by which others are certified.
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct KeyNotes {
    /// True when it holds the key of the current root.
    #[n(1)]
    pub root: Option<bool>,
    /// How many rotations of the CA it knows of.
    #[n(2)]
    pub epoch: Option<u64>,
    /// The key of the authority delegated to it.
    #[n(3)]
    authority: Option<ByteArray<32>>,
    /// When that authority ends, seconds since 1970.
    #[n(4)]
    pub authority_ends: Option<u64>,
}

impl KeyNotes {
    /// The key of the authority delegated to it.
    pub fn authority(&self) -> Option<NodeId> {
        self.authority.map(|key| NodeId(key.into()))
    }

    /// Sets the authority delegated to it, and when that ends.
    pub fn set_authority(&mut self, authority: Option<(NodeId, u64)>) {
        self.authority = authority.map(|(key, _)| key.0.into());
        self.authority_ends = authority.map(|(_, end)| end);
    }
}

/// What the owner signs.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct DescriptorBody {
    /// The network.
    #[cbor(n(0), with = "cbor::network_id")]
    pub network: NetworkId,
    /// The owner.
    #[cbor(n(1), with = "cbor::node_id")]
    pub node: NodeId,
    /// Its name.
    #[cbor(n(2), with = "cbor::node_name")]
    pub name: NodeName,
    /// Its X25519 link key.
    #[cbor(n(3), with = "cbor::link_key")]
    pub link_key: LinkPublicKey,
    /// Its overlay addresses.
    #[cbor(n(4), with = "cbor::ips")]
    pub addresses: Vec<IpAddr>,
    /// Clients behind it.
    #[n(5)]
    pub clients: Vec<ClientRecord>,
    /// Underlay addresses it can be reached at, best first.
    #[cbor(n(6), with = "cbor::sockets")]
    pub endpoints: Vec<SocketAddr>,
    /// Grows with every descriptor; milliseconds since 1970 or one more than
    /// the last, whichever is larger.
    #[n(7)]
    pub sequence: u64,
    /// When it was made, seconds since 1970.
    #[n(8)]
    pub issued: u64,
    /// When it ends, seconds since 1970.
    #[n(9)]
    pub expires: u64,
    /// The owner's certificate chain, leaf first; empty without certificates.
    #[cbor(n(10), with = "cbor::chain")]
    pub chain: Vec<Vec<u8>>,
    /// True when the owner left: forget it.
    #[n(11)]
    pub left: bool,
    /// True when the owner holds an authority's key: it admits nodes and renews
    /// certificates. A hint; what it issues is checked against the CA.
    #[n(12)]
    pub admin: bool,
    /// Prefixes behind the owner that it offers to pass traffic to. In force
    /// only where an admin approved them (`route_approval`).
    #[cbor(n(14), with = "cbor::prefixes", skip_if = "Vec::is_empty")]
    pub routes: Vec<IpNet>,
    /// TCP addresses where it offers tunnels for datagrams, best first.
    #[cbor(n(13), with = "cbor::sockets", default, skip_if = "Vec::is_empty")]
    pub tcp: Vec<SocketAddr>,
    /// Roots and authorities it holds or knows.
    #[n(15)]
    pub keys: Option<KeyNotes>,
    /// What it does for onion paths; absent where it has no role.
    #[n(16)]
    pub onion: Option<Box<OnionSection>>,
}

/// A descriptor as it travels and is stored.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct SignedDescriptor {
    /// CBOR of a [`DescriptorBody`].
    #[cbor(n(0), with = "minicbor::bytes")]
    pub body: Vec<u8>,
    /// The owner's signature over `Warren v1 descriptor` || 0x00 || body.
    #[cbor(n(1), with = "minicbor::bytes")]
    pub signature: [u8; SIGNATURE_LEN],
    /// HMAC-SHA256 of the body under the key derived from the pre-shared key;
    /// empty in the other modes.
    #[cbor(n(2), with = "minicbor::bytes")]
    pub mac: Vec<u8>,
}

/// A checked descriptor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Descriptor {
    /// What it says.
    pub body: DescriptorBody,
    /// End of the owner's certificate, seconds since 1970.
    pub certificate_expires: Option<u64>,
    /// What its certificate says.
    pub certified: Option<Box<CertifiedNode>>,
    /// The bytes to pass on.
    pub signed: Arc<SignedDescriptor>,
}

/// Why a descriptor was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DescriptorError {
    /// Does not parse or exceeds a limit.
    #[error("the descriptor is malformed: {0}")]
    Malformed(&'static str),
    /// For another network.
    #[error("the descriptor is for another network")]
    WrongNetwork,
    /// The owner did not sign it.
    #[error("the descriptor's signature is wrong")]
    BadSignature,
    /// Its MAC shows another or no pre-shared key.
    #[error("the descriptor was made with another pre-shared key")]
    BadMac,
    /// Its end has passed.
    #[error("the descriptor expired")]
    Expired,
    /// Made later than our clock allows.
    #[error(
        "the descriptor was made at {issued} but our clock shows {now}: one of the clocks is wrong"
    )]
    FromTheFuture {
        /// When it says it was made, seconds since 1970.
        issued: u64,
        /// Our clock, seconds since 1970.
        now: u64,
    },
    /// The owner is no member.
    #[error(transparent)]
    NotAMember(#[from] MembershipError),
    /// The certificate is another node's.
    #[error("the descriptor carries another node's certificate")]
    WrongCertificate,
    /// Its name is not the certified or pinned one.
    #[error("the descriptor claims the name `{0}`, which is not its owner's")]
    WrongName(NodeName),
    /// It claims an address that does not follow from the key.
    #[error("the descriptor claims the address {0}, which is not its owner's")]
    WrongAddress(IpAddr),
}

impl DescriptorBody {
    /// Signs the body; with a pre-shared key, adds the MAC.
    pub fn sign(&self, key: &IdentityKey, membership: &Membership) -> SignedDescriptor {
        let body = cbor::to_vec(self);
        let signature = key.sign(LABEL, &body);
        let mac = match membership {
            Membership::Psk(psk) => psk.descriptor_mac(&body).to_vec(),
            Membership::Certificate(_) | Membership::Key(_) => Vec::new(),
        };
        SignedDescriptor { body, signature, mac }
    }
}

impl SignedDescriptor {
    /// Owner and sequence, unchecked: to skip what is not newer before any
    /// signature is computed.
    ///
    /// # Errors
    /// When the body does not parse.
    pub fn peek(&self) -> Result<(NodeId, u64), DescriptorError> {
        self.parse().map(|body| (body.node, body.sequence))
    }

    /// Owner, sequence and end (seconds since 1970), unchecked: what gossip
    /// knows it by.
    ///
    /// # Errors
    /// When the body does not parse.
    pub fn header(&self) -> Result<(NodeId, u64, u64), DescriptorError> {
        self.parse().map(|body| (body.node, body.sequence, body.expires))
    }

    /// True when `owner` signed it. Nothing else is checked: not the owner's
    /// membership, nor the time.
    pub fn is_signed_by(&self, owner: NodeId) -> bool {
        identity::verify(owner, LABEL, &self.body, &self.signature)
    }

    /// The bytes that travel: a CBOR array of body, signature and MAC.
    pub fn to_bytes(&self) -> Vec<u8> {
        cbor::to_vec(self)
    }

    /// The reverse of [`SignedDescriptor::to_bytes`]; nothing is checked.
    ///
    /// # Errors
    /// When the bytes are anything else than one signed descriptor.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, DescriptorError> {
        cbor::from_slice(bytes).map_err(|_| DescriptorError::Malformed("not a signed descriptor"))
    }

    /// Endpoints it names, unchecked: hints where to dial.
    pub fn endpoints(&self) -> Vec<SocketAddr> {
        self.parse().map(|body| body.endpoints).unwrap_or_default()
    }

    fn parse(&self) -> Result<DescriptorBody, DescriptorError> {
        if self.body.len() > MAX_BODY {
            return Err(DescriptorError::Malformed("too large"));
        }
        cbor::from_slice(&self.body).map_err(|_| DescriptorError::Malformed("not a descriptor"))
    }

    /// Checks everything that can be checked without knowing other nodes.
    ///
    /// # Errors
    /// The first check that failed.
    pub fn verify(
        &self,
        network: NetworkId,
        membership: &Membership,
        revoked: &RevocationList,
        now: u64,
    ) -> Result<Descriptor, DescriptorError> {
        let check = |chain: &[Vec<u8>]| membership.check_chain(chain, revoked, now);
        self.verify_with(network, membership, revoked, now, check)
    }

    /// Like [`SignedDescriptor::verify`], with another check of the owner's
    /// certificates.
    pub(crate) fn verify_with(
        &self,
        network: NetworkId,
        membership: &Membership,
        revoked: &RevocationList,
        now: u64,
        check: impl FnOnce(&[Vec<u8>]) -> Result<PeerIdentity, MembershipError>,
    ) -> Result<Descriptor, DescriptorError> {
        let body = self.parse()?;
        if body.network != network {
            return Err(DescriptorError::WrongNetwork);
        }
        if !identity::verify(body.node, LABEL, &self.body, &self.signature) {
            return Err(DescriptorError::BadSignature);
        }
        if revoked.contains(body.node) {
            return Err(MembershipError::Revoked(body.node).into());
        }
        if now >= body.expires {
            return Err(DescriptorError::Expired);
        }
        if body.issued > now.saturating_add(MAX_SKEW) {
            return Err(DescriptorError::FromTheFuture { issued: body.issued, now });
        }
        if body.expires.saturating_sub(body.issued) > 2 * DESCRIPTOR_LIFE {
            return Err(DescriptorError::Malformed("lives too long"));
        }
        if body.clients.len() > MAX_CLIENTS
            || body.endpoints.len().max(body.tcp.len()) > MAX_ENDPOINTS
        {
            return Err(DescriptorError::Malformed("too many clients or endpoints"));
        }
        if body.routes.len() > MAX_ROUTES {
            return Err(DescriptorError::Malformed("too many routes"));
        }
        if let Some(onion) = &body.onion {
            let latest = body.issued.saturating_add(MAX_SKEW);
            onion.check(latest).map_err(DescriptorError::Malformed)?;
        }
        let certified = check_owner(&body, self, membership, check)?;
        let certificate_expires = certified.as_ref().map(|node| node.not_after);
        for client in &body.clients {
            check_addresses(network, &client.key.0, &client.addresses)?;
        }
        Ok(Descriptor {
            body,
            certificate_expires,
            certified: certified.map(Box::new),
            signed: Arc::new(self.clone()),
        })
    }
}

/// Name and addresses as the mode allows them. Returns what the certificate says.
fn check_owner(
    body: &DescriptorBody,
    signed: &SignedDescriptor,
    membership: &Membership,
    check: impl FnOnce(&[Vec<u8>]) -> Result<PeerIdentity, MembershipError>,
) -> Result<Option<CertifiedNode>, DescriptorError> {
    match membership {
        Membership::Certificate(_) => {
            let PeerIdentity::Certified(node) = check(&body.chain)? else {
                return Err(DescriptorError::WrongCertificate);
            };
            if node.id != body.node {
                return Err(DescriptorError::WrongCertificate);
            }
            if node.name != body.name {
                return Err(DescriptorError::WrongName(body.name.clone()));
            }
            match body.addresses.iter().find(|a| !node.addresses.contains(a)) {
                Some(address) => Err(DescriptorError::WrongAddress(*address)),
                None => Ok(Some(node)),
            }
        }
        Membership::Key(pinned) => {
            let name = pinned.get(&body.node).ok_or(MembershipError::NotPinned(body.node))?;
            if *name != body.name {
                return Err(DescriptorError::WrongName(body.name.clone()));
            }
            check_addresses(body.network, &body.node.0, &body.addresses).map(|()| None)
        }
        Membership::Psk(psk) => {
            if !psk.check_descriptor_mac(&signed.body, &signed.mac) {
                return Err(DescriptorError::BadMac);
            }
            check_addresses(body.network, &body.node.0, &body.addresses).map(|()| None)
        }
    }
}

fn check_addresses(
    network: NetworkId,
    key: &[u8; 32],
    addresses: &[IpAddr],
) -> Result<(), DescriptorError> {
    if addresses.len() > 4 {
        return Err(DescriptorError::Malformed("too many addresses"));
    }
    match addresses.iter().find(|a| !address::belongs_to_key(network, key, **a)) {
        Some(address) => Err(DescriptorError::WrongAddress(*address)),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::psk::PskKeys;
    use crate::testing::TestRng;
    use proptest::prelude::*;
    use std::collections::BTreeMap;
    use warren_types::PresharedKey;

    const NET: NetworkId = NetworkId([1; 16]);
    const NOW: u64 = 1_800_000_000;

    fn body(key: &IdentityKey) -> DescriptorBody {
        let client = LinkPublicKey([7; 32]);
        DescriptorBody {
            network: NET,
            node: key.id(),
            name: "a".parse().unwrap(),
            link_key: LinkPublicKey([5; 32]),
            addresses: vec![
                address::ipv6_of_node(NET, key.id()).into(),
                address::ipv4_of_key(NET, &key.id().0, 0).into(),
            ],
            clients: vec![ClientRecord {
                name: "phone".parse().unwrap(),
                key: client,
                addresses: vec![address::ipv6_of_key(NET, &client.0).into()],
            }],
            endpoints: vec!["192.0.2.1:1".parse().unwrap()],
            sequence: 1,
            issued: NOW,
            expires: NOW + DESCRIPTOR_LIFE,
            chain: vec![],
            left: false,
            admin: false,
            routes: vec!["192.168.7.0/24".parse().unwrap()],
            tcp: vec!["192.0.2.1:443".parse().unwrap()],
            keys: None,
            onion: None,
        }
    }

    fn key() -> IdentityKey {
        IdentityKey::generate(&mut TestRng::new(1)).unwrap()
    }

    fn pinned(key: &IdentityKey) -> Membership {
        Membership::Key(BTreeMap::from([(key.id(), "a".parse().unwrap())]))
    }

    fn psk(byte: u8) -> Membership {
        Membership::Psk(PskKeys::derive(&PresharedKey::from_bytes([byte; 32])))
    }

    fn check(
        body: &DescriptorBody,
        key: &IdentityKey,
        membership: &Membership,
    ) -> Result<Descriptor, DescriptorError> {
        body.sign(key, membership).verify(NET, membership, &RevocationList::default(), NOW)
    }

    #[test]
    fn good_descriptors_verify_in_key_and_psk_mode() {
        let key = key();
        for membership in [pinned(&key), psk(1)] {
            let descriptor = check(&body(&key), &key, &membership).unwrap();
            assert_eq!(descriptor.body, body(&key));
        }
    }

    #[test]
    fn refusals_name_the_check() {
        let key = key();
        let member = pinned(&key);
        let with = |change: &dyn Fn(&mut DescriptorBody)| {
            let mut body = body(&key);
            change(&mut body);
            check(&body, &key, &member)
        };
        use DescriptorError as E;
        assert_eq!(with(&|b| b.network = NetworkId([2; 16])), Err(E::WrongNetwork));
        assert_eq!(with(&|b| b.expires = NOW), Err(E::Expired));
        assert!(matches!(with(&|b| b.issued = NOW + MAX_SKEW + 1), Err(E::FromTheFuture { .. })));
        assert!(matches!(with(&|b| b.expires = NOW * 2), Err(E::Malformed(_))));
        assert!(matches!(with(&|b| b.name = "b".parse().unwrap()), Err(E::WrongName(_))));
        let foreign: IpAddr = "100.64.0.9".parse().unwrap();
        assert_eq!(with(&|b| b.addresses.push(foreign)), Err(E::WrongAddress(foreign)));
        assert_eq!(with(&|b| b.clients[0].addresses.push(foreign)), Err(E::WrongAddress(foreign)));
        let onion = Box::new(OnionSection {
            roles: warren_types::Roles::from_bits(4),
            place: None,
            family: None,
            bandwidth: None,
            exit_policy: None,
            draining: false,
            keys: vec![],
            since: NOW + MAX_SKEW + 1,
        });
        assert!(matches!(with(&|b| b.onion = Some(onion.clone())), Err(E::Malformed(_))));
        let route = "192.168.7.0/24".parse().unwrap();
        assert!(matches!(with(&|b| b.routes = vec![route; 33]), Err(E::Malformed(_))));
        assert_eq!(with(&|b| b.node = NodeId([9; 32])), Err(E::BadSignature));
        let stranger = IdentityKey::generate(&mut TestRng::new(9)).unwrap();
        assert!(matches!(check(&body(&stranger), &stranger, &member), Err(E::NotAMember(_))));
    }

    #[test]
    fn another_psk_is_refused() {
        let key = key();
        let signed = body(&key).sign(&key, &psk(1));
        let result = signed.verify(NET, &psk(2), &RevocationList::default(), NOW);
        assert_eq!(result, Err(DescriptorError::BadMac));
    }

    #[test]
    fn every_altered_byte_is_refused() {
        let key = key();
        let member = pinned(&key);
        let good = body(&key).sign(&key, &member);
        let none = RevocationList::default();
        for at in 0..good.body.len() {
            let mut bad = good.clone();
            bad.body[at] ^= 0x04;
            assert!(bad.verify(NET, &member, &none, NOW).is_err(), "byte {at}");
        }
        for at in 0..SIGNATURE_LEN {
            let mut bad = good.clone();
            bad.signature[at] ^= 0x80;
            assert!(bad.verify(NET, &member, &none, NOW).is_err(), "signature byte {at}");
        }
    }

    #[test]
    fn fields_of_a_later_version_are_skipped_but_nothing_may_follow() {
        let key = key();
        let body = body(&key);
        let mut bytes = cbor::to_vec(&body);
        // A map of less than 23 entries gets one more, with an unknown key 99.
        assert_eq!(bytes[0] >> 5, 5);
        bytes[0] += 1;
        bytes.extend_from_slice(&[0x18, 99, 0x82, 1, 2]);
        assert_eq!(cbor::from_slice::<DescriptorBody>(&bytes).unwrap(), body);
        bytes.push(0);
        assert!(cbor::from_slice::<DescriptorBody>(&bytes).is_err());
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_do_not_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = cbor::from_slice::<SignedDescriptor>(&bytes);
            let signed = SignedDescriptor { body: bytes, signature: [0; 64], mac: vec![] };
            prop_assert!(
                signed.verify(NET, &psk(1), &RevocationList::default(), NOW).is_err()
            );
        }
    }
}
