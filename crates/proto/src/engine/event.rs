//! What goes into the engine and what comes out, as plain values.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use warren_types::{LinkPublicKey, PresharedKey, Suite};

use crate::path::{PathReason, PathStats};

/// The time of a call: a monotonic clock for all timers, and the wall clock
/// that initiations are stamped with.
#[derive(Debug, Clone, Copy)]
pub struct Now {
    /// Monotonic.
    pub instant: Instant,
    /// Since the Unix epoch, as the system clock has it; may step.
    pub unix: Duration,
}

/// A peer as configured.
#[derive(Debug, Clone)]
pub struct PeerConfig {
    /// Its static key.
    pub key: LinkPublicKey,
    /// Suite of links with it.
    pub suite: Suite,
    /// True when it runs Warren: it understands link frames.
    pub is_warren: bool,
    /// Mixed into each handshake; `None` is WireGuard's "no key" (32 zeros).
    pub psk: Option<PresharedKey>,
    /// Refuse handshakes while `psk` is `None` (`pq = required`).
    pub psk_required: bool,
    /// Where it was last known to be.
    pub endpoint: Option<SocketAddr>,
    /// What it may send from and what is sent to it.
    pub allowed: Vec<IpNet>,
    /// WireGuard's persistent keepalive: send something at least this often.
    pub persistent_keepalive: Option<Duration>,
    /// Keep a session up without traffic, so that its state is always known.
    /// Without it a link sleeps when nothing flows, and costs nothing.
    pub hold: bool,
}

/// A datagram to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transmit {
    /// Destination.
    pub to: SocketAddr,
    /// UDP payload.
    pub data: Vec<u8>,
    /// Send with DF set (all but packets known to be larger than the path
    /// carries, which the underlay may fragment).
    pub dont_fragment: bool,
}

/// What happened, in the past tense.
#[derive(Debug, Clone, PartialEq)]
pub enum LinkEvent {
    /// Keys were agreed and the peer proved to have them.
    SessionEstablished {
        /// Whose.
        peer: LinkPublicKey,
        /// Where it is.
        endpoint: Option<SocketAddr>,
        /// True when we started the handshake.
        initiator: bool,
        /// True when an older session was still valid.
        rekey: bool,
        /// True when a pre-shared key went into the keys.
        preshared: bool,
    },
    /// A stock WireGuard peer's authenticated message came from another address
    /// than before, or its handshake did.
    EndpointChanged {
        /// Whose.
        peer: LinkPublicKey,
        /// The new address.
        to: SocketAddr,
    },
    /// Traffic to a Warren peer goes another way than before.
    PathChanged {
        /// Whose.
        peer: LinkPublicKey,
        /// The address before.
        from: Option<SocketAddr>,
        /// The address now; a mesh address when over other nodes.
        to: SocketAddr,
        /// Why.
        reason: PathReason,
    },
    /// A peer sees us at an address it did not see us at before, over this path.
    ObservedAddress {
        /// Who.
        peer: LinkPublicKey,
        /// The path: the peer's address.
        via: SocketAddr,
        /// Ours, as seen there. A peer may lie.
        address: SocketAddr,
    },
    /// Probing found that the path carries more or less than assumed.
    PathMtuChanged {
        /// Whose.
        peer: LinkPublicKey,
        /// Largest inner packet, bytes.
        mtu: u32,
    },
    /// The first round trip of a session was measured.
    RttMeasured {
        /// Whose.
        peer: LinkPublicKey,
        /// Inside the tunnel, the peer's processing included.
        rtt: Duration,
    },
    /// Echoes stayed unanswered on all paths although a session is up; a new
    /// handshake was started.
    PathSuspected {
        /// Whose.
        peer: LinkPublicKey,
    },
    /// Handshakes stayed unanswered for 10 s. Tries go on; the next
    /// [`LinkEvent::SessionEstablished`] ends it.
    PeerUnreachable {
        /// Whose.
        peer: LinkPublicKey,
    },
    /// Handshakes stayed unanswered for 90 s; waiting packets were dropped. The
    /// next packet (or, with `hold`, the next half minute) starts over.
    HandshakeAbandoned {
        /// Whose.
        peer: LinkPublicKey,
    },
    /// A handshake message was refused; the sender learns nothing.
    Refused {
        /// Where it came from (may be forged).
        from: SocketAddr,
        /// Whose, when it authenticated.
        peer: Option<LinkPublicKey>,
        /// Why.
        reason: Refusal,
    },
}

/// Why a handshake message was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The initiation does not authenticate: not made for our key, or forged.
    #[error("the initiation does not authenticate")]
    NotAuthentic,
    /// The response does not authenticate.
    #[error(
        "the response does not authenticate: the two ends have different pre-shared keys, or it is forged"
    )]
    ResponseNotAuthentic,
    /// Authentic, but from a key that is no peer of ours.
    #[error("the key is not one of our peers")]
    UnknownPeer,
    /// The peer's links use the other suite.
    #[error("the link's suite is {expected}, the message is for the other one")]
    WrongSuite {
        /// As configured.
        expected: Suite,
    },
    /// A replay, or the peer's clock stepped back.
    #[error(
        "the initiation is {} s older than one seen before: a replay, or the peer's clock was set back (correct it there)",
        .behind.as_secs()
    )]
    TimestampNotNewer {
        /// How far behind, whole seconds.
        behind: Duration,
    },
    /// More than 50 initiations a second from one peer.
    #[error("initiations follow one another too fast")]
    TooFast,
    /// `pq = required` and the control connection has not given a key yet.
    #[error("a pre-shared key is required and not there yet")]
    PresharedKeyMissing,
}

/// Why the engine wants to be woken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum WakeReason {
    /// An initiation may have to be repeated or given up.
    HandshakeRetry,
    /// A session ends or must be renewed.
    SessionAge,
    /// A keepalive may be due.
    Keepalive,
    /// An echo is due or overdue.
    Echo,
    /// A path-MTU probe is due.
    PathMtu,
    /// Waiting packets are to be given up.
    Staging,
    /// Look at what the workers did meanwhile.
    Activity,
}

/// State of a link, for `warren status`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkState {
    /// No session, and nothing to send.
    Idle,
    /// A handshake is under way.
    Connecting,
    /// A session is up.
    Up,
    /// Handshakes stay unanswered.
    Unreachable,
}

/// One peer, for `warren status` and for WireGuard's tools.
#[derive(Debug, Clone)]
pub struct PeerStats {
    /// Its static key.
    pub key: LinkPublicKey,
    /// State of the link.
    pub state: LinkState,
    /// Suite of its links.
    pub suite: Suite,
    /// True when it runs Warren.
    pub is_warren: bool,
    /// Where its packets go.
    pub endpoint: Option<SocketAddr>,
    /// Its prefixes.
    pub allowed: Vec<IpNet>,
    /// Round trip inside the tunnel, smoothed.
    pub rtt: Option<Duration>,
    /// Share of packets lost lately on the way to the peer, 0 to 1.
    pub loss: Option<f64>,
    /// Largest inner packet, bytes.
    pub path_mtu: u32,
    /// Time since the last completed handshake.
    pub handshake_age: Option<Duration>,
    /// Wall-clock time of it, since the Unix epoch.
    pub handshake_unix: Option<Duration>,
    /// True when the current session's keys include a pre-shared key.
    pub preshared: bool,
    /// True when a pre-shared key is configured.
    pub has_psk: bool,
    /// As configured.
    pub persistent_keepalive: Option<Duration>,
    /// All known paths, the one in use first; empty for stock WireGuard peers
    /// and links that sleep.
    pub paths: Vec<PathStats>,
    /// Bytes of inner packets received.
    pub rx_bytes: u64,
    /// Bytes of inner packets sent.
    pub tx_bytes: u64,
}
