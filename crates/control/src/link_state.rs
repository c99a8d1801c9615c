//! Link states: what a node says of its own direct links, signed by itself.
//!
//! In: the links the owner measures, or bytes from the network. Out: a
//! [`SignedLinkState`] to spread, or a checked [`LinkStateBody`]. Invariants:
//! only the holder of the node key can make one; round trips and losses are
//! coarse (a byte each), so that a record changes seldom and tells little; a
//! record lives for minutes, so a node that is gone does not stay in anybody's
//! routes. Deliberately not here: whether a link exists (the other end must say
//! the same, see `warren-discovery`), when to publish, and how it travels.

use std::net::Ipv6Addr;
use std::time::Duration;

use minicbor::{Decode, Encode};
use warren_types::{NetworkId, NodeId};

use crate::identity::{self, IdentityKey, SIGNATURE_LEN};
use crate::{address, cbor};

const LABEL: &str = "Warren v1 link state";

/// Most links in one record.
pub const MAX_LINKS: usize = 32;
/// Longest life of a record, seconds.
pub const MAX_LIFE: u64 = 3600;
/// Largest body, bytes.
pub const MAX_BODY: usize = 1024;
/// How far ahead of our clock a record may have been made, seconds.
pub const MAX_SKEW: u64 = crate::descriptor::MAX_SKEW;
/// Bytes of one link in a body: the other end's part of its overlay IPv6
/// address after the network's prefix (10), round trip (1), loss (1).
const LINK_LEN: usize = 12;
/// The unit of the round trip's scale.
const RTT_UNIT_US: f64 = 250.0;

/// One direct link, as coarse as it is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinkReport {
    /// Overlay IPv6 address of the other end.
    pub to: Ipv6Addr,
    /// Round trip: `250 µs x (2^(n/8) - 1)`.
    pub rtt: u8,
    /// Packets lost out of 255.
    pub loss: u8,
}

impl LinkReport {
    /// Rounds what was measured.
    pub fn new(to: Ipv6Addr, rtt: Duration, loss: f64) -> Self {
        let steps = (rtt.as_secs_f64() * 1e6 / RTT_UNIT_US + 1.0).log2() * 8.0;
        // Casts of floats saturate, NaN becomes 0.
        Self { to, rtt: steps.round() as u8, loss: (loss * 255.0).round() as u8 }
    }

    /// The round trip it stands for, within a twelfth of what was measured.
    pub fn round_trip(&self) -> Duration {
        let us = RTT_UNIT_US * ((f64::from(self.rtt) / 8.0).exp2() - 1.0);
        Duration::from_secs_f64(us / 1e6)
    }

    /// The share of packets lost, 0 to 1.
    pub fn lost(&self) -> f32 {
        f32::from(self.loss) / 255.0
    }
}

/// What the owner signs.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct LinkStateBody {
    /// The network.
    #[cbor(n(0), with = "cbor::network_id")]
    pub network: NetworkId,
    /// The owner.
    #[cbor(n(1), with = "cbor::node_id")]
    pub node: NodeId,
    /// Grows with every record; milliseconds since 1970 or one more than the
    /// last, whichever is larger.
    #[n(2)]
    pub sequence: u64,
    /// When it ends, seconds since 1970: late enough for the clock of whoever
    /// receives it, see [`LinkStateBody::life`].
    #[n(3)]
    pub expires: u64,
    /// True when the owner passes on packets of others.
    #[n(4)]
    pub willing: bool,
    /// How busy the owner is, 0 to 255.
    #[n(5)]
    pub load: u8,
    /// True when the owner has more links than are named.
    #[n(6)]
    pub partial: bool,
    /// The links, [`LINK_LEN`] bytes each.
    #[cbor(n(7), with = "minicbor::bytes")]
    links: Vec<u8>,
    /// How long after it is received it is good for, seconds, by the receiver's
    /// clock: with clocks an hour apart routes still work.
    #[n(8)]
    pub life: u64,
}

/// A link state as it travels.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct SignedLinkState {
    /// CBOR of a [`LinkStateBody`].
    #[cbor(n(0), with = "minicbor::bytes")]
    pub body: Vec<u8>,
    /// The owner's signature over `Warren v1 link state` || 0x00 || body.
    #[cbor(n(1), with = "minicbor::bytes")]
    pub signature: [u8; SIGNATURE_LEN],
}

/// A link state was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LinkStateError {
    /// Does not parse or exceeds a limit.
    #[error("the link state is malformed: {0}")]
    Malformed(&'static str),
    /// For another network.
    #[error("the link state is for another network")]
    WrongNetwork,
    /// The owner did not sign it.
    #[error("the link state's signature is wrong")]
    BadSignature,
    /// Its end has passed.
    #[error("the link state ended")]
    Expired,
    /// It ends later than any may, or its number is of the future.
    #[error("the link state lives too long: one of the clocks is wrong")]
    TooLong,
}

impl LinkStateBody {
    /// What `node` says from `now` on (seconds since 1970) for `life` seconds.
    /// Links beyond [`MAX_LINKS`] are left out and `partial` is set.
    #[allow(clippy::too_many_arguments, reason = "the fields of the record, each once")]
    pub fn new(
        network: NetworkId,
        node: NodeId,
        sequence: u64,
        now: u64,
        life: u64,
        willing: bool,
        load: u8,
        partial: bool,
        links: &[LinkReport],
    ) -> Self {
        let expires = now.saturating_add(life).saturating_add(MAX_SKEW);
        let partial = partial || links.len() > MAX_LINKS;
        let links = links
            .iter()
            .take(MAX_LINKS)
            .flat_map(|link| {
                let mut bytes = [0; LINK_LEN];
                bytes[..10].copy_from_slice(&link.to.octets()[6..]);
                bytes[10] = link.rtt;
                bytes[11] = link.loss;
                bytes
            })
            .collect();
        Self { network, node, sequence, expires, willing, load, partial, links, life }
    }

    /// The links it names.
    pub fn links(&self) -> impl Iterator<Item = LinkReport> + '_ {
        let prefix = address::ipv6_prefix(self.network).addr().octets();
        self.links.chunks_exact(LINK_LEN).map(move |bytes| {
            let mut octets = prefix;
            octets[6..].copy_from_slice(&bytes[..10]);
            LinkReport { to: octets.into(), rtt: bytes[10], loss: bytes[11] }
        })
    }

    /// Signs it.
    pub fn sign(&self, key: &IdentityKey) -> SignedLinkState {
        let body = cbor::to_vec(self);
        let signature = key.sign(LABEL, &body);
        SignedLinkState { body, signature }
    }
}

impl SignedLinkState {
    /// The bytes that travel.
    pub fn encode(&self) -> Vec<u8> {
        cbor::to_vec(self)
    }

    /// Reads what travelled; checks nothing but the form.
    ///
    /// # Errors
    /// When it is no link state.
    pub fn decode(bytes: &[u8]) -> Result<Self, LinkStateError> {
        cbor::from_slice(bytes).map_err(|_| LinkStateError::Malformed("not a link state"))
    }

    /// Checks everything but whether the owner is a member; `now` is seconds
    /// since 1970.
    ///
    /// # Errors
    /// The first check that failed.
    pub fn verify(&self, network: NetworkId, now: u64) -> Result<LinkStateBody, LinkStateError> {
        let malformed = LinkStateError::Malformed;
        if self.body.len() > MAX_BODY {
            return Err(malformed("too large"));
        }
        let body: LinkStateBody =
            cbor::from_slice(&self.body).map_err(|_| malformed("not a link state"))?;
        if body.network != network {
            return Err(LinkStateError::WrongNetwork);
        }
        if !body.links.len().is_multiple_of(LINK_LEN) || body.links.len() > MAX_LINKS * LINK_LEN {
            return Err(malformed("a list of links with an impossible length"));
        }
        if body.expires <= now {
            return Err(LinkStateError::Expired);
        }
        let latest = now.saturating_add(MAX_SKEW);
        let last_end = latest.saturating_add(MAX_LIFE + MAX_SKEW);
        if body.life > MAX_LIFE || body.expires > last_end || body.sequence / 1000 > latest {
            return Err(LinkStateError::TooLong);
        }
        if !identity::verify(body.node, LABEL, &self.body, &self.signature) {
            return Err(LinkStateError::BadSignature);
        }
        Ok(body)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TestRng;
    use proptest::prelude::*;

    const NET: NetworkId = NetworkId([1; 16]);
    const NOW: u64 = 1_800_000_000;

    fn report(n: u8, ms: u64) -> LinkReport {
        let to = address::ipv6_of_node(NET, NodeId([n; 32]));
        LinkReport::new(to, Duration::from_millis(ms), 0.01)
    }

    fn body(key: &IdentityKey, links: &[LinkReport]) -> LinkStateBody {
        LinkStateBody::new(NET, key.id(), NOW * 1000, NOW, 300, true, 3, false, links)
    }

    fn key() -> IdentityKey {
        IdentityKey::generate(&mut TestRng::new(1)).unwrap()
    }

    #[test]
    fn what_was_said_arrives() {
        let key = key();
        let links = [report(1, 5), report(2, 80)];
        let signed = body(&key, &links).sign(&key);
        let read = SignedLinkState::decode(&signed.encode()).unwrap();
        let checked = read.verify(NET, NOW).unwrap();
        assert_eq!(checked.links().collect::<Vec<_>>(), links);
        assert_eq!((checked.node, checked.willing, checked.load), (key.id(), true, 3));
        assert!(signed.encode().len() < 200, "{} bytes", signed.encode().len());
        let full: Vec<LinkReport> = (0..40).map(|n| report(n, 1)).collect();
        let cut = body(&key, &full);
        assert!(cut.partial && cut.links().count() == MAX_LINKS);
        assert!(cut.sign(&key).verify(NET, NOW).is_ok());
    }

    #[test]
    fn refusals_name_the_check() {
        let key = key();
        let good = body(&key, &[report(1, 5)]);
        use LinkStateError as E;
        let check = |change: &dyn Fn(&mut LinkStateBody)| {
            let mut body = good.clone();
            change(&mut body);
            body.sign(&key).verify(NET, NOW).map(drop)
        };
        assert_eq!(check(&|_| ()), Ok(()));
        assert_eq!(check(&|b| b.network = NetworkId([2; 16])), Err(E::WrongNetwork));
        assert_eq!(check(&|b| b.node = NodeId([9; 32])), Err(E::BadSignature));
        assert_eq!(check(&|b| b.expires = NOW), Err(E::Expired));
        assert_eq!(check(&|b| b.expires = NOW + 2 * MAX_SKEW + MAX_LIFE + 1), Err(E::TooLong));
        assert_eq!(check(&|b| b.life = MAX_LIFE + 1), Err(E::TooLong));
        for clock in [NOW - 3600, NOW + 3600] {
            assert!(good.sign(&key).verify(NET, clock).is_ok(), "an hour off");
        }
        assert_eq!(check(&|b| b.sequence = u64::MAX), Err(E::TooLong));
        assert!(matches!(check(&|b| b.links.push(1)), Err(E::Malformed(_))));
        assert!(matches!(check(&|b| b.links = vec![0; 33 * 12]), Err(E::Malformed(_))));
        let signed = good.sign(&key);
        for at in 0..signed.body.len() {
            let mut bad = signed.clone();
            bad.body[at] ^= 0x04;
            assert!(bad.verify(NET, NOW).is_err(), "byte {at}");
        }
    }

    #[test]
    fn rounding_is_coarse_and_bounded() {
        for us in [0_u64, 100, 250, 1_000, 20_000, 150_000, 3_000_000] {
            let rtt = Duration::from_micros(us);
            let told = LinkReport::new(Ipv6Addr::LOCALHOST, rtt, 0.0).round_trip();
            let off = told.as_secs_f64() - rtt.as_secs_f64();
            assert!(off.abs() <= rtt.as_secs_f64() / 12.0 + 20e-6, "{rtt:?} as {told:?}");
        }
        let wild = LinkReport::new(Ipv6Addr::LOCALHOST, Duration::MAX, f64::NAN);
        assert_eq!((wild.rtt, wild.loss), (255, 0));
        assert!(wild.round_trip() > Duration::from_secs(60));
        assert_eq!(LinkReport::new(Ipv6Addr::LOCALHOST, Duration::ZERO, 7.0).lost(), 1.0);
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_do_not_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            if let Ok(signed) = SignedLinkState::decode(&bytes) {
                let _ = signed.verify(NET, NOW);
            }
            let inner = SignedLinkState { body: bytes, signature: [0; SIGNATURE_LEN] };
            let _ = inner.verify(NET, NOW);
        }
    }
}
