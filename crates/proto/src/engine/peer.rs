//! What the engine keeps of one peer. A peer that sleeps (no session, nothing
//! to send) is a few hundred bytes; all the rest is in [`Active`], made when
//! something happens and freed when the link sleeps again.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use warren_types::LinkPublicKey;

use super::event::{PeerConfig, WakeReason};
use super::path_mtu::PathMtu;
use super::paths::Telling;
use super::rotation::OtherKey;
use crate::link::peer::PeerLink;
use crate::link::session::{RecvSession, SendSession};
use crate::noise::message::{INITIATION_LEN, MAC_LEN, RESPONSE_LEN};
use crate::noise::{Initiator, Tai64n, mac::Cookie};
use crate::path::{Origin, Paths};

/// Packets of one peer that may wait for a session (WireGuard's figure).
pub const MAX_STAGED: usize = 128;
/// Older sessions still received on, besides the current and the next one.
const MAX_PREVIOUS: usize = 3;

/// Both halves of one session.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) send: Arc<SendSession>,
    pub(super) receive: Arc<RecvSession>,
    pub(super) created_ms: u64,
    pub(super) initiator: bool,
    pub(super) preshared: bool,
    /// Both ends had started a handshake when this one was answered.
    pub(super) crossed: bool,
    /// Static key of the end that started it.
    pub(super) started_by: LinkPublicKey,
}

impl Session {
    pub(super) fn age(&self, now_ms: u64) -> u64 {
        now_ms.saturating_sub(self.created_ms)
    }
}

/// A handshake we started.
#[derive(Debug)]
pub(super) struct Pending {
    pub(super) initiator: Initiator,
    pub(super) index: u32,
    pub(super) retry_at: u64,
    /// The message itself, and when to send copies to all other addresses.
    pub(super) datagram: [u8; INITIATION_LEN],
    pub(super) spread_at: Option<u64>,
    /// Where the first copy went, and when, µs.
    pub(super) sent_to: SocketAddr,
    pub(super) sent_us: u64,
    /// The peer's static key it was made for, and ours.
    pub(super) remote: LinkPublicKey,
    pub(super) own: LinkPublicKey,
}

/// The last initiation we answered: copies of it that come over other paths
/// are answered with the same bytes, since the first may have come by a path
/// that has no way back.
#[derive(Debug)]
pub(super) struct Answered {
    pub(super) stamp: Tai64n,
    pub(super) at_ms: u64,
    pub(super) copies: u8,
    pub(super) datagram: [u8; RESPONSE_LEN],
}

/// A peer with something going on.
#[derive(Debug, Default)]
pub(super) struct Active {
    /// The initiation on its way.
    pub(super) pending: Option<Pending>,
    /// When the current series of tries began.
    pub(super) trying_since: Option<u64>,
    /// When the last initiation was sent; 0 never.
    pub(super) initiated_ms: u64,
    /// How many since the last session.
    pub(super) initiations: u32,
    pub(super) answered: Option<Answered>,
    /// Index and mac1 of our last initiation and response: what a cookie reply
    /// may answer.
    pub(super) macs: [Option<(u32, [u8; MAC_LEN])>; 2],
    pub(super) cookie: Option<(Cookie, u64)>,
    /// Sealed with.
    pub(super) current: Option<Session>,
    /// Made as responder, waits for the peer's first message.
    pub(super) next: Option<Session>,
    /// Received on until they expire.
    pub(super) previous: Vec<Session>,
    /// Packets that wait for a session.
    pub(super) staged: VecDeque<Vec<u8>>,
    pub(super) staged_since: u64,
    /// First packet sent that nothing has come back for.
    pub(super) unanswered: Option<u64>,
    /// First packet received since we last sent anything.
    pub(super) owed: Option<u64>,
    /// When the engine last looked at the workers' clocks.
    pub(super) looked_ms: u64,
    /// Quiet frames counted at a look not long ago, both ways, and when.
    pub(super) quiet: (u64, u64),
    /// When so many were last on their way that they are a flow.
    pub(super) carried_ms: u64,
    /// The renewal just before a session's end was already asked for.
    pub(super) renewed_late: bool,
    /// Last keepalive of our own, which keeps keys fresh like data does.
    pub(super) kept_alive_ms: u64,
    /// When the first session of this wake began.
    pub(super) started_ms: u64,
    pub(super) paths: Paths,
    pub(super) telling: Telling,
    pub(super) rtt_reported: bool,
    pub(super) path_mtu: Option<PathMtu>,
    pub(super) echo_id: u32,
}

impl Active {
    /// True when dropping it loses nothing.
    pub(super) fn asleep(&self) -> bool {
        self.pending.is_none()
            && self.current.is_none()
            && self.next.is_none()
            && self.previous.is_empty()
            && self.staged.is_empty()
            && self.cookie.is_none()
    }

    /// Keeps a session for receiving; gives back the one that has to go.
    pub(super) fn retire(&mut self, session: Session) -> Option<Session> {
        self.previous.push(session);
        (self.previous.len() > MAX_PREVIOUS).then(|| self.previous.remove(0))
    }
}

/// One configured peer.
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) link: Arc<PeerLink>,
    pub(super) config: PeerConfig,
    /// Order of configuration: decides who owns a prefix claimed twice.
    pub(super) order: u64,
    /// Greatest timestamp taken from the peer.
    pub(super) newest_initiation: Tai64n,
    /// When it came.
    pub(super) initiation_ms: u64,
    /// Timestamp of our last initiation.
    pub(super) stamped: Tai64n,
    /// Last completed handshake on the engine's clock (0 never) and the wall's.
    pub(super) handshake_ms: u64,
    pub(super) handshake_unix_s: u64,
    pub(super) handshake_unix_ns: u32,
    /// Since when it counts as unreachable.
    pub(super) unreachable: Option<u64>,
    /// With `hold`: when an abandoned handshake is tried again.
    pub(super) hold_retry_ms: u64,
    pub(super) deadline: Option<(u64, WakeReason)>,
    pub(super) active: Option<Box<Active>>,
    /// Where it may be reached, as our own side knows.
    pub(super) candidates: Vec<SocketAddr>,
    /// The static key it had before.
    pub(super) other_key: Option<OtherKey>,
    /// The static key of ours that the last handshake was made with.
    pub(super) knows_own: Option<LinkPublicKey>,
}

impl Peer {
    pub(super) fn new(config: PeerConfig, order: u64) -> Self {
        let link = PeerLink::new(config.key, config.suite, config.is_warren);
        link.endpoint.store(config.endpoint.map(Arc::new));
        Self {
            link: Arc::new(link),
            config,
            order,
            newest_initiation: Tai64n::default(),
            initiation_ms: 0,
            stamped: Tai64n::default(),
            handshake_ms: 0,
            handshake_unix_s: 0,
            handshake_unix_ns: 0,
            unreachable: None,
            hold_retry_ms: 0,
            deadline: None,
            active: None,
            candidates: Vec::new(),
            other_key: None,
            knows_own: None,
        }
    }

    pub(super) fn key(&self) -> LinkPublicKey {
        self.config.key
    }

    pub(super) fn active(&mut self) -> &mut Active {
        self.active.get_or_insert_with(|| {
            let mut active = Box::<Active>::default();
            active.paths.set(Origin::Configured, self.candidates.iter().copied());
            active
        })
    }

    /// True when there is all a handshake needs but the peer's answer.
    pub(super) fn can_initiate(&self) -> bool {
        self.link.endpoint.load().is_some() && !self.waits_for_psk()
    }

    pub(super) fn waits_for_psk(&self) -> bool {
        self.config.psk_required && self.config.psk.is_none()
    }
}

/// Moves a shared clock forward, never back.
pub(super) fn advance(clock: &AtomicU64, now_ms: u64) {
    clock.fetch_max(now_ms, Ordering::Relaxed);
}
