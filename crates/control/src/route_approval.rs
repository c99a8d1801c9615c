//! Subnet routes: which prefixes a node may offer, and who said that it may.
//!
//! A node advertises prefixes behind it in its descriptor; they are in force
//! only where an admin approved them. In: what an admin decided, or bytes from
//! the network. Out: a [`SignedApproval`] to spread, a checked
//! [`ApprovalBody`], or the reason why a prefix cannot be a subnet route.
//! Invariants: only the CA can make a record that counts; a decision is about
//! one prefix behind one node (known by its overlay address, which survives a
//! change of its key), and the newest counts, so two admins do not undo each
//! other's; no prefix that would draw the whole traffic, the overlay's own or
//! special addresses is ever acceptable. Deliberately not here: whether a prefix
//! is of use on this machine, and how records travel.

use std::net::{IpAddr, Ipv6Addr};

use aws_lc_rs::digest;
use ipnet::IpNet;
use minicbor::{Decode, Encode};
use warren_types::{NetworkId, NodeId};

use crate::identity::{self, IdentityKey, SIGNATURE_LEN};
use crate::{address, cbor};

const LABEL: &str = "Warren v1 route approval";

/// Most prefixes one node advertises.
pub const MAX_ROUTES: usize = 32;
/// Life of a decision, seconds: a year. Admins renew what is in force at half
/// of it.
pub const APPROVAL_LIFE: u64 = 365 * 86_400;
/// Largest body, bytes.
pub const MAX_BODY: usize = 256;
/// How far ahead of our clock a decision may have been made, seconds.
pub const MAX_SKEW: u64 = crate::descriptor::MAX_SKEW;

/// Shortest prefixes: shorter ones hold more of the internet than a site has.
const SHORTEST: (u8, u8) = (8, 16);

/// Why a prefix cannot be a subnet route.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnfitRoute {
    /// A default route, or half of one.
    #[error(
        "{0} is too large for a subnet route: at least /{min} is needed; sending all traffic \
         through a node is not what subnet routes are for",
        min = if .0.addr().is_ipv4() { SHORTEST.0 } else { SHORTEST.1 }
    )]
    TooLarge(IpNet),
    /// Overlaps the overlay.
    #[error("{0} overlaps {1}, the network's own addresses")]
    Overlay(IpNet, IpNet),
    /// Loopback, multicast and the like.
    #[error("{0} is not an address range of a site (loopback, link-local, multicast or reserved)")]
    Special(IpNet),
}

/// Checks what any node can check: the form, and the overlay.
///
/// # Errors
/// Why it cannot be a subnet route.
pub fn check_route(network: NetworkId, prefix: IpNet) -> Result<IpNet, UnfitRoute> {
    let prefix = prefix.trunc();
    let shortest = if prefix.addr().is_ipv4() { SHORTEST.0 } else { SHORTEST.1 };
    if prefix.prefix_len() < shortest {
        return Err(UnfitRoute::TooLarge(prefix));
    }
    let own = [IpNet::from(address::ipv4_prefix()), address::ipv6_prefix(network).into()];
    if let Some(own) = own.into_iter().find(|own| overlap(own, &prefix)) {
        return Err(UnfitRoute::Overlay(prefix, own));
    }
    let special = match prefix.addr() {
        IpAddr::V4(a) => {
            a.is_loopback() || a.is_multicast() || a.is_link_local() || {
                let first = a.octets()[0];
                first == 0 || first >= 224
            }
        }
        IpAddr::V6(a) => {
            a.is_loopback()
                || a.is_multicast()
                || a.is_unicast_link_local()
                || a.is_unspecified()
                || a.to_ipv4_mapped().is_some()
        }
    };
    if special { Err(UnfitRoute::Special(prefix)) } else { Ok(prefix) }
}

/// True when two prefixes have an address in common.
pub fn overlap(a: &IpNet, b: &IpNet) -> bool {
    a.contains(b) || b.contains(a)
}

/// What an admin decided about one prefix behind one node.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct ApprovalBody {
    /// The network.
    #[cbor(n(0), with = "cbor::network_id")]
    pub network: NetworkId,
    /// Overlay IPv6 address of the node that offers the prefix.
    #[cbor(n(1), with = "ipv6")]
    pub router: Ipv6Addr,
    /// The prefix.
    #[cbor(n(2), with = "cbor::prefix")]
    pub prefix: IpNet,
    /// True: in force. False: not, even if it was.
    #[n(3)]
    pub approved: bool,
    /// Milliseconds since 1970, or one more than the last decision about the
    /// same.
    #[n(4)]
    pub sequence: u64,
    /// When it ends, seconds since 1970.
    #[n(5)]
    pub expires: u64,
}

/// A decision as it travels.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct SignedApproval {
    /// CBOR of an [`ApprovalBody`].
    #[cbor(n(0), with = "minicbor::bytes")]
    pub body: Vec<u8>,
    /// The signature over `Warren v1 route approval` || 0x00 || body, by the CA
    /// or an authority under it.
    #[cbor(n(1), with = "minicbor::bytes")]
    pub signature: [u8; SIGNATURE_LEN],
    /// The certificate of that authority; empty for the CA itself.
    #[cbor(n(2), with = "cbor::chain")]
    pub chain: Vec<Vec<u8>>,
}

/// A decision was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ApprovalError {
    /// The body does not parse.
    #[error("the route approval is malformed")]
    Malformed,
    /// Signed by another key than the CA's.
    #[error("the route approval is not signed by this network's CA")]
    BadSignature,
    /// For another network.
    #[error("the route approval is for another network")]
    WrongNetwork,
    /// Its end has passed.
    #[error("the route approval ended")]
    Expired,
    /// Made later than our clock allows.
    #[error("the route approval is of the future: one of the clocks is wrong")]
    FromTheFuture,
    /// The prefix is never acceptable.
    #[error(transparent)]
    Unfit(#[from] UnfitRoute),
}

impl ApprovalBody {
    /// What the record is about, for gossip: one subject per node and prefix.
    pub fn subject(&self) -> [u8; 32] {
        let mut context = digest::Context::new(&digest::SHA256);
        context.update(b"Warren v1 route");
        context.update(&self.router.octets());
        match self.prefix.addr() {
            IpAddr::V4(a) => context.update(&a.octets()),
            IpAddr::V6(a) => context.update(&a.octets()),
        }
        context.update(&[self.prefix.prefix_len()]);
        let mut subject = [0; 32];
        subject.copy_from_slice(context.finish().as_ref());
        subject
    }

    /// Signs it with the CA's key, or an authority's whose certificate `chain`
    /// holds.
    pub fn sign(&self, ca: &IdentityKey, chain: Vec<Vec<u8>>) -> SignedApproval {
        let body = cbor::to_vec(self);
        let signature = ca.sign(LABEL, &body);
        SignedApproval { body, signature, chain }
    }
}

impl SignedApproval {
    /// The bytes that travel.
    pub fn encode(&self) -> Vec<u8> {
        cbor::to_vec(self)
    }

    /// Reads what travelled; checks nothing but the form.
    ///
    /// # Errors
    /// When it is no approval.
    pub fn decode(bytes: &[u8]) -> Result<Self, ApprovalError> {
        cbor::from_slice(bytes).map_err(|_| ApprovalError::Malformed)
    }

    /// What it says, unchecked.
    ///
    /// # Errors
    /// When the body does not parse.
    pub fn peek(&self) -> Result<ApprovalBody, ApprovalError> {
        if self.body.len() > MAX_BODY {
            return Err(ApprovalError::Malformed);
        }
        cbor::from_slice(&self.body).map_err(|_| ApprovalError::Malformed)
    }

    /// Checks everything. `signers` are the keys whose decisions count: those of
    /// the CA and, once it is checked, of the authority in `chain`.
    ///
    /// # Errors
    /// The first check that failed.
    pub fn verify(
        &self,
        signers: &[NodeId],
        network: NetworkId,
        now: u64,
    ) -> Result<ApprovalBody, ApprovalError> {
        let body = self.peek()?;
        if body.network != network {
            return Err(ApprovalError::WrongNetwork);
        }
        if body.expires <= now {
            return Err(ApprovalError::Expired);
        }
        let latest = now.saturating_add(MAX_SKEW);
        if body.expires > latest.saturating_add(APPROVAL_LIFE) || body.sequence / 1000 > latest {
            return Err(ApprovalError::FromTheFuture);
        }
        if check_route(network, body.prefix)? != body.prefix {
            return Err(ApprovalError::Malformed);
        }
        let signed = |key: &NodeId| identity::verify(*key, LABEL, &self.body, &self.signature);
        if signers.iter().any(signed) { Ok(body) } else { Err(ApprovalError::BadSignature) }
    }
}

mod ipv6 {
    use std::net::Ipv6Addr;

    use minicbor::decode::Error as DecodeError;
    use minicbor::encode::{Error as EncodeError, Write};
    use minicbor::{Decoder, Encoder};

    pub(super) fn encode<C, W: Write>(
        value: &Ipv6Addr,
        e: &mut Encoder<W>,
        _: &mut C,
    ) -> Result<(), EncodeError<W::Error>> {
        e.bytes(&value.octets())?.ok()
    }

    pub(super) fn decode<C>(d: &mut Decoder<'_>, _: &mut C) -> Result<Ipv6Addr, DecodeError> {
        let octets: [u8; 16] =
            d.bytes()?.try_into().map_err(|_| DecodeError::message("wrong length"))?;
        Ok(octets.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TestRng;
    use proptest::prelude::*;

    const NET: NetworkId = NetworkId([1; 16]);
    const NOW: u64 = 1_800_000_000;

    fn body(prefix: &str) -> ApprovalBody {
        ApprovalBody {
            network: NET,
            router: address::ipv6_of_node(NET, NodeId([5; 32])),
            prefix: prefix.parse().unwrap(),
            approved: true,
            sequence: NOW * 1000,
            expires: NOW + APPROVAL_LIFE,
        }
    }

    #[test]
    fn prefixes_that_are_no_site_are_refused_with_the_reason() {
        let fit = |text: &str| check_route(NET, text.parse().unwrap());
        for good in ["192.168.7.0/24", "10.0.0.0/8", "203.0.113.9/32", "2001:db8::/32", "fd77::/48"]
        {
            assert!(fit(good).is_ok(), "{good}");
        }
        assert_eq!(fit("192.168.7.9/24").unwrap().to_string(), "192.168.7.0/24");
        for (bad, words) in [
            ("0.0.0.0/0", "too large"),
            ("128.0.0.0/1", "at least /8"),
            ("::/0", "at least /16"),
            ("100.64.0.0/16", "the network's own addresses"),
            ("127.0.0.0/8", "loopback"),
            ("224.0.0.0/24", "multicast"),
            ("169.254.0.0/16", "link-local"),
            ("fe80::/64", "link-local"),
            ("::ffff:10.0.0.0/104", "reserved"),
        ] {
            let error = fit(bad).unwrap_err().to_string();
            assert!(error.contains(words), "{bad}: {error}");
        }
        let inside = IpNet::new(address::ipv6_of_node(NET, NodeId([1; 32])).into(), 128).unwrap();
        assert!(matches!(check_route(NET, inside), Err(UnfitRoute::Overlay(..))));
    }

    #[test]
    fn only_the_ca_approves() {
        let ca = IdentityKey::generate(&mut TestRng::new(1)).unwrap();
        let other = IdentityKey::generate(&mut TestRng::new(2)).unwrap();
        let good = body("192.168.7.0/24").sign(&ca, vec![]);
        let good = SignedApproval::decode(&good.encode()).unwrap();
        assert_eq!(good.verify(&[ca.id()], NET, NOW), Ok(body("192.168.7.0/24")));
        assert_eq!(good.verify(&[other.id(), ca.id()], NET, NOW), Ok(body("192.168.7.0/24")));
        use ApprovalError as E;
        assert_eq!(good.verify(&[other.id()], NET, NOW), Err(E::BadSignature));
        assert_eq!(good.verify(&[ca.id()], NetworkId([2; 16]), NOW), Err(E::WrongNetwork));
        assert_eq!(good.verify(&[ca.id()], NET, NOW + APPROVAL_LIFE), Err(E::Expired));
        assert_eq!(good.verify(&[ca.id()], NET, NOW - 2 * MAX_SKEW), Err(E::FromTheFuture));
        for (prefix, unfit) in [("0.0.0.0/0", true), ("10.0.0.1/8", false)] {
            let error = body(prefix).sign(&ca, vec![]).verify(&[ca.id()], NET, NOW).unwrap_err();
            assert_eq!(matches!(error, E::Unfit(_)), unfit, "{prefix}: {error}");
        }
        for at in 0..good.body.len() {
            let mut bad = good.clone();
            bad.body[at] ^= 0x04;
            assert!(bad.verify(&[ca.id()], NET, NOW).is_err(), "byte {at}");
        }
    }

    #[test]
    fn each_prefix_of_each_node_is_decided_by_itself() {
        let one = body("192.168.7.0/24");
        assert_eq!(one.subject(), ApprovalBody { approved: false, ..one.clone() }.subject());
        assert_ne!(one.subject(), body("192.168.7.0/25").subject());
        let router = address::ipv6_of_node(NET, NodeId([6; 32]));
        assert_ne!(one.subject(), ApprovalBody { router, ..one.clone() }.subject());
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_do_not_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(signed) = SignedApproval::decode(&bytes) {
                let _ = signed.verify(&[NodeId([1; 32])], NET, NOW);
            }
            let inner = SignedApproval { body: bytes, signature: [0; SIGNATURE_LEN], chain: vec![] };
            let _ = inner.peek();
        }
    }
}
