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
use crate::revocation::SignedRevocation;
use crate::token::InviteToken;

/// ALPN of the connection between members.
pub const ALPN_CONTROL: &[u8] = b"warren/1";
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
}

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
    use proptest::prelude::*;

    fn samples() -> Vec<Message> {
        let descriptor = SignedDescriptor { body: vec![1, 2, 3], signature: [7; 64], mac: vec![] };
        let revocation = SignedRevocation { body: vec![4], signature: [8; 64] };
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
            })),
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
        fn altered_messages_do_not_panic(which in 0_usize..12, at in any::<u16>(), to in any::<u8>()) {
            let mut bytes = samples()[which].encode();
            let at = usize::from(at) % bytes.len();
            bytes[at] = to;
            let _ = Message::decode(&bytes);
        }
    }
}
