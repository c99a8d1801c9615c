//! Messages of the control connection.
//!
//! In: bytes of one frame. Out: a [`Message`], or an error that closes the
//! connection. A frame is a 4-byte big-endian length and that many bytes of
//! CBOR: an array of the message's number and its fields as a CBOR map or array.
//! Invariants: parsing never panics and allocates no more than the frame is
//! long; bytes after the value are an error; a number this version does not know
//! is [`Message::Unknown`] and is skipped, so later versions can add messages.
//! Deliberately not here: streams, and when which message may come.

use std::net::SocketAddr;

use minicbor::{Decode, Decoder, Encode};
use warren_types::{LinkPublicKey, NetworkId, NetworkName, NodeId, NodeName, Suite};

use crate::cbor;
use crate::descriptor::SignedDescriptor;
use crate::identity::{self, IdentityKey, SIGNATURE_LEN};
use crate::revocation::SignedRevocation;
use crate::token::InviteToken;
use crate::trust::TrustChain;

/// ALPN of the connection between members.
pub const ALPN_CONTROL: &[u8] = b"warren/1";
/// ALPN of the connection on which a node that was away learns the present roots
/// and gets a certificate under them.
pub const ALPN_TRUST: &[u8] = b"warren-trust/1";
/// ALPN of the connection on which a node is admitted.
pub const ALPN_JOIN: &[u8] = b"warren-join/1";
/// TLS exporter label (RFC 8446 section 7.5) of the link's pre-shared key. The
/// context is the smaller node id followed by the larger, the length 32 bytes.
pub const LINK_PSK_LABEL: &[u8] = b"EXPORTER-warren-link-psk";
/// Largest frame, bytes, without its length.
pub const MAX_FRAME: usize = 256 * 1024;
/// Version of the message set.
pub const VERSION: u8 = 1;

/// The context of the link PSK's exporter: both ids, the smaller first.
pub fn link_psk_context(a: NodeId, b: NodeId) -> [u8; 64] {
    let mut context = [0; 64];
    context[..32].copy_from_slice(&a.min(b).0);
    context[32..].copy_from_slice(&a.max(b).0);
    context
}

/// First message of each side (after the proof, with a pre-shared key).
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Hello {
    /// [`VERSION`].
    #[n(0)]
    pub version: u8,
    /// Random, the same for the life of the sending daemon: tells a restart.
    #[n(1)]
    pub instance: u64,
    /// The sender's own descriptor.
    #[n(2)]
    pub descriptor: SignedDescriptor,
    /// The address the sender sees the receiver at.
    #[cbor(n(3), with = "cbor::socket")]
    pub observed: SocketAddr,
    /// The sender's clock, seconds since 1970.
    #[n(4)]
    pub time: u64,
    /// Name and version of the sender's program, at most 64 bytes.
    #[n(5)]
    pub software: String,
}

/// What a joiner asks.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct JoinRequest {
    /// The token of the join code.
    #[n(0)]
    pub token: InviteToken,
    /// The name it wants.
    #[cbor(n(1), with = "cbor::node_name")]
    pub name: NodeName,
    /// Its link key.
    #[cbor(n(2), with = "cbor::link_key")]
    pub link_key: LinkPublicKey,
    /// Its clock, seconds since 1970.
    #[n(3)]
    pub time: u64,
}

/// What an admitted node gets.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct JoinAccepted {
    /// The network.
    #[cbor(n(0), with = "cbor::network_id")]
    pub network_id: NetworkId,
    /// Its name.
    #[cbor(n(1), with = "cbor::network_name")]
    pub network: NetworkName,
    /// Its suite.
    #[cbor(n(2), with = "cbor::suite")]
    pub suite: Suite,
    /// The new node's certificate chain without the root, leaf first.
    #[cbor(n(3), with = "cbor::chain")]
    pub chain: Vec<Vec<u8>>,
    /// The root certificate.
    #[cbor(n(4), with = "minicbor::bytes")]
    pub ca: Vec<u8>,
    /// Some members to connect to, the admitting node first.
    #[n(5)]
    pub descriptors: Vec<SignedDescriptor>,
    /// Who was revoked.
    #[n(6)]
    pub revocations: Vec<SignedRevocation>,
    /// How the network came from its founding root to the present one.
    #[n(7)]
    pub trust: Option<TrustReply>,
}

/// The network's founding root and all records since.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct TrustReply {
    /// The founding root's certificate, from which the network's identifier
    /// comes.
    #[cbor(n(0), with = "minicbor::bytes")]
    pub founding: Vec<u8>,
    /// All records since.
    #[n(1)]
    pub chain: TrustChain,
}

/// A node asks for a certificate for another key of its own.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct RotateRequest {
    /// The key it has.
    #[cbor(n(0), with = "cbor::node_id")]
    pub old: NodeId,
    /// The key it wants to have.
    #[cbor(n(1), with = "cbor::node_id")]
    pub new: NodeId,
    /// The old key's signature over `Warren v1 rotate old` || 0x00 || both keys.
    #[cbor(n(2), with = "minicbor::bytes")]
    pub by_old: [u8; SIGNATURE_LEN],
    /// The new key's over `Warren v1 rotate new` || 0x00 || both keys.
    #[cbor(n(3), with = "minicbor::bytes")]
    pub by_new: [u8; SIGNATURE_LEN],
}

impl RotateRequest {
    /// Signed by both keys.
    pub fn sign(network: NetworkId, old: &IdentityKey, new: &IdentityKey) -> Self {
        let body = Self::body(network, old.id(), new.id());
        Self {
            old: old.id(),
            new: new.id(),
            by_old: old.sign(ROTATE_OLD, &body),
            by_new: new.sign(ROTATE_NEW, &body),
        }
    }

    fn body(network: NetworkId, old: NodeId, new: NodeId) -> Vec<u8> {
        [&network.0[..], &old.0, &new.0].concat()
    }

    /// True when both keys signed it.
    pub fn is_genuine(&self, network: NetworkId) -> bool {
        let body = Self::body(network, self.old, self.new);
        self.old != self.new
            && identity::verify(self.old, ROTATE_OLD, &body, &self.by_old)
            && identity::verify(self.new, ROTATE_NEW, &body, &self.by_new)
    }
}

/// The key a node made to be certified as an authority; it proves that it holds
/// it.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct AuthorityRequest {
    /// The key.
    #[cbor(n(0), with = "cbor::node_id")]
    pub key: NodeId,
    /// Its signature over `Warren v1 authority` || 0x00 || network id || node id.
    #[cbor(n(1), with = "minicbor::bytes")]
    pub proof: [u8; SIGNATURE_LEN],
}

impl AuthorityRequest {
    /// Proves that `node` holds `key`.
    pub fn sign(network: NetworkId, node: NodeId, key: &IdentityKey) -> Self {
        let proof = key.sign(AUTHORITY, &[&network.0[..], &node.0].concat());
        Self { key: key.id(), proof }
    }

    /// True when the key's holder made it for `node`.
    pub fn is_genuine(&self, network: NetworkId, node: NodeId) -> bool {
        let body = [&network.0[..], &node.0].concat();
        identity::verify(self.key, AUTHORITY, &body, &self.proof)
    }
}

const ROTATE_OLD: &str = "Warren v1 rotate old";
const ROTATE_NEW: &str = "Warren v1 rotate new";
const AUTHORITY: &str = "Warren v1 authority";

/// Why a joiner with a genuine token was not admitted. Joiners without one are
/// told nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Encode, Decode)]
pub enum JoinRefusal {
    /// The token's end has passed.
    #[n(0)]
    #[error("the join code expired: run `warren invite` on a member for a new one")]
    TokenExpired,
    /// The token's uses are taken.
    #[n(1)]
    #[error("the join code was used already: run `warren invite` on a member for a new one")]
    TokenUsed,
    /// Name, link key or address are taken.
    #[n(2)]
    #[error("{0}")]
    Taken(#[n(0)] String),
    /// The clocks differ too much for certificates to work.
    #[n(3)]
    #[error(
        "the clocks differ by {difference_s} seconds: set this machine's clock (the member's shows \
         {member_time} seconds since 1970) and join again"
    )]
    ClockWrong {
        /// How far, seconds.
        #[n(0)]
        difference_s: u64,
        /// The admitting node's clock, seconds since 1970.
        #[n(1)]
        member_time: u64,
    },
    /// The admitting node cannot admit now (its disk is full, say).
    #[n(4)]
    #[error("the member cannot admit nodes at the moment; its log says why")]
    Unavailable,
}

/// A message of the control connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// Proof of the pre-shared key.
    PskProof(Vec<u8>),
    /// First message.
    Hello(Box<Hello>),
    /// The sender accepted the peer's hello and installed the link's
    /// pre-shared key.
    Ready,
    /// A message of gossip, whose bytes are `warren-discovery`'s.
    Gossip(Vec<u8>),
    /// The sender asks for a new certificate.
    RenewRequest,
    /// The new chain, without the root.
    RenewReply(Vec<Vec<u8>>),
    /// A machine asks to be admitted.
    JoinRequest(JoinRequest),
    /// It is.
    JoinAccepted(Box<JoinAccepted>),
    /// It is not.
    JoinRefused(JoinRefusal),
    /// The network's roots.
    Trust(TrustChain),
    /// A node that was away asks for the network's roots.
    TrustRequest,
    /// They are these.
    TrustReply(TrustReply),
    /// A root holder wants the receiver to be an authority.
    AuthorityOffer,
    /// The key to be certified; also asks for the renewal of its certificate.
    AuthorityRequest(AuthorityRequest),
    /// The certificate.
    Authority(Vec<u8>),
    /// A node asks for a certificate for another key of its own.
    RotateRequest(Box<RotateRequest>),
    /// The new chain, without the root.
    RotateReply(Vec<Vec<u8>>),
    /// A number that this version does not know.
    Unknown(u32),
}

/// A frame does not parse.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a control message is malformed: {0}")]
pub struct WireError(String);

impl From<minicbor::decode::Error> for WireError {
    fn from(error: minicbor::decode::Error) -> Self {
        Self(error.to_string())
    }
}

#[derive(Encode, Decode)]
struct Bytes(#[cbor(n(0), with = "minicbor::bytes")] Vec<u8>);
#[derive(Encode, Decode)]
struct Chain(#[cbor(n(0), with = "cbor::chain")] Vec<Vec<u8>>);
#[derive(Encode, Decode)]
struct Trust(#[n(0)] TrustChain);
#[derive(Encode, Decode)]
struct Nothing();

fn put<T: Encode<()>>(number: u32, value: &T) -> Vec<u8> {
    cbor::to_vec(&(number, value))
}

impl Message {
    /// The bytes of a frame, without its length.
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::PskProof(bytes) => put(0, &Bytes(bytes.clone())),
            Self::Hello(hello) => put(1, hello.as_ref()),
            Self::Ready => put(2, &Nothing()),
            Self::Gossip(bytes) => put(3, &Bytes(bytes.clone())),
            Self::RenewRequest => put(6, &Nothing()),
            Self::RenewReply(chain) => put(7, &Chain(chain.clone())),
            Self::JoinRequest(request) => put(8, request),
            Self::JoinAccepted(accepted) => put(9, accepted.as_ref()),
            Self::JoinRefused(refusal) => put(10, refusal),
            Self::Trust(chain) => put(20, &Trust(chain.clone())),
            Self::TrustRequest => put(21, &Nothing()),
            Self::TrustReply(reply) => put(22, reply),
            Self::AuthorityOffer => put(23, &Nothing()),
            Self::AuthorityRequest(request) => put(24, request),
            Self::Authority(certificate) => put(25, &Bytes(certificate.clone())),
            Self::RotateRequest(request) => put(26, request.as_ref()),
            Self::RotateReply(chain) => put(27, &Chain(chain.clone())),
            Self::Unknown(number) => put(*number, &Nothing()),
        }
    }

    /// Parses the bytes of one frame.
    ///
    /// # Errors
    /// When they are anything else than one message.
    pub fn decode(frame: &[u8]) -> Result<Self, WireError> {
        if frame.len() > MAX_FRAME {
            return Err(WireError("longer than a frame may be".into()));
        }
        let mut d = Decoder::new(frame);
        if d.array()? != Some(2) {
            return Err(WireError("not a pair of number and fields".into()));
        }
        let message = match d.u32()? {
            0 => Self::PskProof(d.decode::<Bytes>()?.0),
            1 => Self::Hello(d.decode()?),
            2 => {
                d.decode::<Nothing>()?;
                Self::Ready
            }
            3 => Self::Gossip(d.decode::<Bytes>()?.0),
            6 => {
                d.decode::<Nothing>()?;
                Self::RenewRequest
            }
            7 => Self::RenewReply(d.decode::<Chain>()?.0),
            8 => Self::JoinRequest(d.decode()?),
            9 => Self::JoinAccepted(d.decode()?),
            10 => Self::JoinRefused(d.decode()?),
            20 => Self::Trust(d.decode::<Trust>()?.0),
            21 => {
                d.decode::<Nothing>()?;
                Self::TrustRequest
            }
            22 => Self::TrustReply(d.decode()?),
            23 => {
                d.decode::<Nothing>()?;
                Self::AuthorityOffer
            }
            24 => Self::AuthorityRequest(d.decode()?),
            25 => Self::Authority(d.decode::<Bytes>()?.0),
            26 => Self::RotateRequest(Box::new(d.decode()?)),
            27 => Self::RotateReply(d.decode::<Chain>()?.0),
            number => {
                d.skip()?;
                Self::Unknown(number)
            }
        };
        if d.position() != frame.len() {
            return Err(WireError("bytes follow the message".into()));
        }
        match &message {
            Self::Hello(hello) if hello.software.len() > 64 => {
                Err(WireError("the software name is too long".into()))
            }
            _ => Ok(message),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TestRng;
    use crate::trust::SignedTrust;
    use proptest::prelude::*;

    fn samples() -> Vec<Message> {
        let descriptor = SignedDescriptor { body: vec![1, 2, 3], signature: [7; 64], mac: vec![] };
        let revocation =
            SignedRevocation { body: vec![4], signature: [8; 64], chain: vec![vec![9]] };
        let record = SignedTrust { body: vec![5], signature: [6; 64] };
        let reply = TrustReply { founding: vec![1], chain: TrustChain(vec![record]) };
        vec![
            Message::PskProof(vec![5; 48]),
            Message::Hello(Box::new(Hello {
                version: 1,
                instance: u64::MAX,
                descriptor: descriptor.clone(),
                observed: "[2001:db8::1]:4242".parse().unwrap(),
                time: 1_800_000_000,
                software: "warren 0.1.0".into(),
            })),
            Message::Ready,
            Message::Gossip(vec![0x82, 1, 0x40]),
            Message::RenewRequest,
            Message::RenewReply(vec![vec![1], vec![2]]),
            Message::JoinRequest(JoinRequest {
                token: InviteToken::generate(&mut TestRng::new(1)),
                name: "a".parse().unwrap(),
                link_key: LinkPublicKey([3; 32]),
                time: 5,
            }),
            Message::JoinAccepted(Box::new(JoinAccepted {
                network_id: NetworkId([1; 16]),
                network: "home".parse().unwrap(),
                suite: Suite::Aes256Gcm,
                chain: vec![vec![1]],
                ca: vec![2],
                descriptors: vec![descriptor],
                revocations: vec![revocation],
                trust: Some(reply.clone()),
            })),
            Message::Trust(reply.chain.clone()),
            Message::TrustRequest,
            Message::TrustReply(reply),
            Message::AuthorityOffer,
            Message::AuthorityRequest(AuthorityRequest { key: NodeId([1; 32]), proof: [2; 64] }),
            Message::Authority(vec![3; 10]),
            Message::RotateRequest(Box::new(RotateRequest {
                old: NodeId([1; 32]),
                new: NodeId([2; 32]),
                by_old: [3; 64],
                by_new: [4; 64],
            })),
            Message::RotateReply(vec![vec![1], vec![2]]),
            Message::JoinRefused(JoinRefusal::TokenUsed),
            Message::JoinRefused(JoinRefusal::Taken("x".into())),
            Message::JoinRefused(JoinRefusal::ClockWrong { difference_s: 1, member_time: 2 }),
            Message::Unknown(4000),
        ]
    }

    #[test]
    fn every_message_round_trips_and_cut_ones_are_refused() {
        for message in samples() {
            let bytes = message.encode();
            assert_eq!(Message::decode(&bytes).unwrap(), message);
            for end in 0..bytes.len() {
                assert!(Message::decode(&bytes[..end]).is_err(), "{message:?} cut at {end}");
            }
            let mut longer = bytes.clone();
            longer.push(0);
            assert!(Message::decode(&longer).is_err(), "{message:?} with a byte more");
        }
    }

    #[test]
    fn a_list_that_claims_to_be_huge_is_refused_without_memory() {
        // [7, [array of 2^32 certificates]]
        let bytes = [0x82, 7, 0x81, 0x9a, 0xff, 0xff, 0xff, 0xff];
        assert!(Message::decode(&bytes).is_err());
        let gossip = [0x82, 3, 0x81, 0x5b, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff];
        assert!(Message::decode(&gossip).is_err());
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_do_not_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            let _ = Message::decode(&bytes);
        }

        #[test]
        fn altered_messages_do_not_panic(which in 0_usize..20, at in any::<u16>(), to in any::<u8>()) {
            let mut bytes = samples()[which].encode();
            let at = usize::from(at) % bytes.len();
            bytes[at] = to;
            let _ = Message::decode(&bytes);
        }
    }

    #[test]
    fn a_rotation_is_asked_by_both_keys_or_by_nobody() {
        let mut rng = TestRng::new(1);
        let network = NetworkId([1; 16]);
        let old = IdentityKey::generate(&mut rng).unwrap();
        let new = IdentityKey::generate(&mut rng).unwrap();
        let good = RotateRequest::sign(network, &old, &new);
        assert!(good.is_genuine(network));
        assert!(!good.is_genuine(NetworkId([2; 16])));
        let swapped = RotateRequest { by_old: good.by_new, by_new: good.by_old, ..good.clone() };
        assert!(!swapped.is_genuine(network));
        let thief = RotateRequest::sign(network, &new, &new);
        assert!(!RotateRequest { old: old.id(), ..thief }.is_genuine(network));
        let node = NodeId([7; 32]);
        let request = AuthorityRequest::sign(network, node, &new);
        assert!(request.is_genuine(network, node));
        assert!(!request.is_genuine(network, NodeId([8; 32])));
    }
}
