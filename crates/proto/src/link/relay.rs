//! Relay frames: a datagram of a link between two nodes, carried over links of
//! others between them. Format, checks and routes; no sealing, no sending.
//!
//! ```text
//! 0x03 | next | count | flags | count x 10: last 80 bits of overlay IPv6 addresses:
//! source, relays in order, destination | the datagram, as a UDP payload
//! ```
//! Invariants: between two and [`MAX_RELAYS`]` + 2` different nodes, each at
//! most once, so no frame runs in a circle; `next` names the node that is to
//! get the frame now, which checks that it is that node and that the frame came
//! from the one before. The datagram is sealed between the two ends: relays see
//! who talks to whom and how much, no more, and can only drop.
//!
//! Deliberately not here: which way is best (the source's choice, see
//! [`crate::engine::Engine::set_relay_routes`]).

use std::net::{Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use warren_types::{DropReason, mesh_node};

use super::outbound::REJECT_AFTER_MS;
use super::peer::PeerLink;
use super::session::{OVERHEAD, SendSession};
use super::tables::Routes;

/// First byte of a relay frame.
pub const KIND: u8 = 3;
/// Most relays between two nodes.
pub const MAX_RELAYS: usize = 4;
/// Nodes in a frame: source, one relay at least, destination.
const MIN_NODES: usize = 3;
const MAX_NODES: usize = MAX_RELAYS + 2;
const FIXED_LEN: usize = 4;
/// Bytes before the datagram at most.
pub const MAX_HEADER: usize = FIXED_LEN + MAX_NODES * NODE_LEN;
const NODE_LEN: usize = 10;
const NEXT: usize = 1;
const FLAGS: usize = 3;

/// Relays send the frame in fragments where it exceeds a path MTU, instead of
/// dropping it.
pub const FLAG_FRAGMENT: u8 = 1;

/// Datagrams up to this size always may be fragmented, so that every path over
/// relays carries what every path must: inner packets of 1200 bytes (the floor
/// of the path-MTU search) and QUIC's first datagrams.
pub const ALWAYS_CARRIED: usize = 1200 + OVERHEAD;

/// A return route learnt from a frame is used for this long after the last
/// one, ms.
const LEARNT_LIFE_MS: u64 = REJECT_AFTER_MS;
/// A return route that carried an authentic message is not replaced by one
/// that has not yet, for this long, ms.
const PROVEN_LIFE_MS: u64 = 10_000;
/// Routes that are not proven replace each other this often at most, ms.
const UNPROVEN_GAP_MS: u64 = 100;

/// The last 80 bits of a node's overlay IPv6 address.
pub type NodeSuffix = [u8; NODE_LEN];

/// The part of an overlay address that frames name a node by.
pub fn suffix(node: Ipv6Addr) -> NodeSuffix {
    let mut out = [0; NODE_LEN];
    out.copy_from_slice(&node.octets()[6..]);
    out
}

/// True when an inner payload is a relay frame, well-formed or not.
#[inline]
pub fn is_relay(payload: &[u8]) -> bool {
    payload.first() == Some(&KIND)
}

/// Relay frames up to this size, bytes, are not traffic of the links they
/// travel on: most are probes of the paths of others. If they were, links would
/// keep each other awake by probing, everybody's over everybody's.
const QUIET_FRAME: usize = 256;

/// The size of a relay frame if it is traffic of the link it travels on.
pub(super) fn traffic(len: usize) -> Option<usize> {
    (len > QUIET_FRAME).then_some(len)
}

/// Frames of `len` bytes together, for or of others, went out on `hop`. Quiet
/// ones are no traffic, but what is lost of them counts.
pub(super) fn note_sent(hop: &PeerLink, frames: usize, len: u64, now_ms: u64) {
    if len > (QUIET_FRAME * frames) as u64 {
        hop.note_sent(frames as u64, len, now_ms);
    } else {
        hop.tx_quiet.fetch_add(frames as u64, Ordering::Relaxed);
        hop.last_tx_ms.store(now_ms, Ordering::Relaxed);
    }
}

/// A well-formed relay frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RelayFrame<'a> {
    next: usize,
    nodes: &'a [NodeSuffix],
    may_fragment: bool,
    header_len: usize,
}

impl<'a> RelayFrame<'a> {
    /// Reads a frame; `None` when it is cut short, names too few, too many or
    /// the same node twice, has unknown flags, or carries nothing.
    pub fn parse(frame: &'a [u8]) -> Option<Self> {
        let (fixed, rest) = frame.split_first_chunk::<FIXED_LEN>()?;
        let [KIND, next, count, flags] = *fixed else { return None };
        let (next, count) = (usize::from(next), usize::from(count));
        if !(MIN_NODES..=MAX_NODES).contains(&count) || next == 0 || next >= count {
            return None;
        }
        let (nodes, datagram) = rest.split_at_checked(count * NODE_LEN)?;
        let (nodes, []) = nodes.as_chunks::<NODE_LEN>() else { return None };
        if datagram.is_empty() || flags & !FLAG_FRAGMENT != 0 {
            return None;
        }
        let twice = nodes.iter().enumerate().any(|(i, node)| nodes[..i].contains(node));
        (!twice).then_some(Self {
            next,
            nodes,
            may_fragment: flags & FLAG_FRAGMENT != 0,
            header_len: FIXED_LEN + count * NODE_LEN,
        })
    }

    /// Who is to get it now.
    pub fn receiver(&self) -> &NodeSuffix {
        &self.nodes[self.next]
    }

    /// Who is to have sent it.
    pub fn sender(&self) -> &NodeSuffix {
        &self.nodes[self.next - 1]
    }

    /// Who gets it after the receiver; `None` when that is the destination.
    pub fn after(&self) -> Option<&NodeSuffix> {
        self.nodes.get(self.next + 1)
    }

    /// Whose datagram it is.
    pub fn source(&self) -> &NodeSuffix {
        &self.nodes[0]
    }

    /// True when it may be fragmented on its way.
    pub fn may_fragment(&self) -> bool {
        self.may_fragment
    }

    /// Bytes before the datagram.
    pub fn header_len(&self) -> usize {
        self.header_len
    }
}

/// What decides a frame's fate: all of its header but the flags, to compare
/// with that of the frame before it. `None` when the header is cut short.
#[inline]
pub(super) fn identity(frame: &[u8]) -> Option<(&[u8], &[u8])> {
    let nodes = usize::from(*frame.get(2)?) * NODE_LEN;
    Some((frame.get(NEXT..FLAGS)?, frame.get(FIXED_LEN..FIXED_LEN + nodes)?))
}

/// [`RelayFrame::may_fragment`] of a frame that was judged already.
#[inline]
pub(super) fn may_fragment(frame: &[u8]) -> bool {
    frame.get(FLAGS).is_some_and(|flags| flags & FLAG_FRAGMENT != 0)
}

/// Names the node after the receiver as the next one. The frame must have been
/// judged to have one.
#[inline]
pub(super) fn advance(frame: &mut [u8]) {
    if let Some(next) = frame.get_mut(NEXT) {
        *next += 1;
    }
}

/// Why a route was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadRoute {
    /// No relay, or more than [`MAX_RELAYS`].
    #[error("a route over other nodes has 1 to {MAX_RELAYS} of them")]
    Length,
    /// A node is on it twice, the two ends included.
    #[error("a node is on the route twice")]
    Loop,
    /// The first relay is no peer that could be one.
    #[error("the first relay is no node of this network")]
    FirstHop,
}

/// A way to one node over others, as seen from its source.
#[derive(Debug)]
pub struct RelayRoute {
    header: [u8; MAX_HEADER],
    len: usize,
    /// Weak, or two nodes that are relays for each other would never be freed.
    hop: Weak<PeerLink>,
    /// For learnt routes: when a frame last came this way, and whether it held
    /// an authentic message of the other end.
    heard_ms: AtomicU64,
    proven: AtomicBool,
}

impl RelayRoute {
    /// From `own` over `relays` to `destination`, the first relay being `hop`.
    ///
    /// # Errors
    /// [`BadRoute`]; the first relay is not looked at here.
    pub fn new(
        own: NodeSuffix,
        relays: &[NodeSuffix],
        destination: NodeSuffix,
        hop: &Arc<PeerLink>,
    ) -> Result<Self, BadRoute> {
        if relays.is_empty() || relays.len() > MAX_RELAYS {
            return Err(BadRoute::Length);
        }
        let nodes = std::iter::once(&own).chain(relays).chain(std::iter::once(&destination));
        Self::of_nodes(nodes, hop).ok_or(BadRoute::Loop)
    }

    /// The way back of `frame`, which came from `hop`.
    pub(super) fn back(frame: &RelayFrame<'_>, hop: &Arc<PeerLink>) -> Option<Self> {
        Self::of_nodes(frame.nodes.iter().rev(), hop)
    }

    fn of_nodes<'a>(
        nodes: impl Iterator<Item = &'a NodeSuffix>,
        hop: &Arc<PeerLink>,
    ) -> Option<Self> {
        let mut header = [0; MAX_HEADER];
        let mut count = 0;
        for (room, node) in header[FIXED_LEN..].chunks_exact_mut(NODE_LEN).zip(nodes) {
            room.copy_from_slice(node);
            count += 1;
        }
        header[..FIXED_LEN].copy_from_slice(&[KIND, 1, count, 0]);
        let route = Self {
            header,
            len: FIXED_LEN + usize::from(count) * NODE_LEN,
            hop: Arc::downgrade(hop),
            heard_ms: AtomicU64::new(0),
            proven: AtomicBool::new(false),
        };
        let mut probe = [0; MAX_HEADER + 1];
        probe[..route.len].copy_from_slice(route.header());
        RelayFrame::parse(&probe[..route.len + 1]).is_some().then_some(route)
    }

    /// What stands before a datagram on this route.
    pub fn header(&self) -> &[u8] {
        &self.header[..self.len]
    }

    /// The relays in order, as frames name them.
    pub fn relays(&self) -> &[NodeSuffix] {
        let nodes = self.header[FIXED_LEN..self.len].as_chunks::<NODE_LEN>().0;
        nodes.get(1..nodes.len() - 1).unwrap_or_default()
    }

    /// True when both lead the same way.
    pub(crate) fn same_way(&self, other: &Self) -> bool {
        self.header() == other.header() && Weak::ptr_eq(&self.hop, &other.hop)
    }

    /// True for a learnt route nothing came over for long.
    fn stale(&self, now_ms: u64) -> bool {
        now_ms.saturating_sub(self.heard_ms.load(Ordering::Relaxed)) >= LEARNT_LIFE_MS
    }
}

/// A route in use: the first relay's link as it is now.
#[derive(Debug)]
pub struct Via {
    /// The route.
    pub route: Arc<RelayRoute>,
    /// The first relay.
    pub hop: Arc<PeerLink>,
    /// Where the first relay is.
    pub to: SocketAddr,
    /// Its session; without one, datagrams wait for it.
    pub session: Option<Arc<SendSession>>,
}

impl Via {
    /// `None` when the first relay is gone or is itself reached over others.
    fn over(route: Arc<RelayRoute>, now_ms: u64) -> Option<Self> {
        let hop = route.hop.upgrade()?;
        let to = direct(&hop)?;
        let session = usable(&hop, now_ms);
        Some(Self { route, hop, to, session })
    }

    /// The way to `peer` now: the computed route, or the one the peer's own
    /// datagrams came by when there is none or its first relay cannot be one.
    pub fn to(peer: &PeerLink, now_ms: u64) -> Option<Self> {
        let computed = peer.relay.load_full().and_then(|route| Self::over(route, now_ms));
        computed.or_else(|| {
            let learnt = peer.relay_back.load_full().filter(|route| !route.stale(now_ms))?;
            Self::over(learnt, now_ms)
        })
    }

    /// Largest inner packet of the link inside that the first relay's path
    /// carries, bytes.
    pub fn mtu(&self) -> usize {
        let hop = self.hop.path_mtu.load(Ordering::Relaxed) as usize;
        hop.saturating_sub(OVERHEAD + self.route.len)
    }
}

/// Where `peer` is, unless it is reached over others: such a link is no part of
/// another route.
pub(super) fn direct(peer: &PeerLink) -> Option<SocketAddr> {
    peer.endpoint.load().as_deref().copied().filter(|to| mesh_node(*to).is_none())
}

/// The session to seal with, if it may still be used.
pub(super) fn usable(peer: &PeerLink, now_ms: u64) -> Option<Arc<SendSession>> {
    let session = peer.send.load();
    let session = session.as_ref()?;
    (now_ms.saturating_sub(session.created_ms) < REJECT_AFTER_MS).then(|| session.clone())
}

/// Keeps the way back of `frame`, which came from `hop` and carries a datagram
/// said to be from `peer`; `proven` when that authenticated as its.
pub(super) fn learn(
    peer: &PeerLink,
    frame: &RelayFrame<'_>,
    hop: &Arc<PeerLink>,
    proven: bool,
    now_ms: u64,
) {
    let known = peer.relay_back.load();
    if let Some(known) = known.as_ref() {
        let nodes = known.header[FIXED_LEN..known.len].as_chunks::<NODE_LEN>().0;
        if nodes.iter().rev().eq(frame.nodes) && std::ptr::eq(known.hop.as_ptr(), Arc::as_ptr(hop))
        {
            if proven || !known.proven.load(Ordering::Relaxed) {
                known.heard_ms.store(now_ms, Ordering::Relaxed);
            }
            if proven && !known.proven.load(Ordering::Relaxed) {
                known.proven.store(true, Ordering::Relaxed);
            }
            return;
        }
        let since = now_ms.saturating_sub(known.heard_ms.load(Ordering::Relaxed));
        let stays =
            if known.proven.load(Ordering::Relaxed) { PROVEN_LIFE_MS } else { UNPROVEN_GAP_MS };
        if !proven && since < stays {
            return;
        }
    }
    if let Some(route) = RelayRoute::back(frame, hop) {
        route.heard_ms.store(now_ms, Ordering::Relaxed);
        route.proven.store(proven, Ordering::Relaxed);
        peer.relay_back.store(Some(Arc::new(route)));
    }
}

/// A single datagram on its way to a mesh address.
#[derive(Debug)]
pub enum Wrapped {
    /// Send this.
    Send {
        /// The first relay.
        to: SocketAddr,
        /// The sealed frame.
        datagram: Vec<u8>,
        /// It is larger than the first relay's path carries unfragmented.
        fragment: bool,
    },
    /// The first relay has no session: the engine keeps the frame until it has.
    Stage {
        /// The first relay.
        hop: Arc<PeerLink>,
        /// The frame.
        frame: Vec<u8>,
    },
    /// It cannot be sent.
    Dropped(DropReason),
}

/// Wraps one datagram for `node`: for what is not the traffic of workers
/// (handshakes, echoes, the control transport). `may_fragment` as in the frame.
pub fn wrap(
    routes: &Routes,
    node: Ipv6Addr,
    datagram: &[u8],
    may_fragment: bool,
    now_ms: u64,
) -> Wrapped {
    let via = routes
        .node(&suffix(node))
        .filter(|peer| peer.is_node(node))
        .and_then(|peer| Via::to(peer, now_ms));
    let Some(via) = via else { return Wrapped::Dropped(DropReason::RelayNoRoute) };
    let may_fragment = may_fragment || datagram.len() <= ALWAYS_CARRIED;
    let mut frame = [via.route.header(), datagram].concat();
    frame[FLAGS] = if may_fragment { FLAG_FRAGMENT } else { 0 };
    let fragment = frame.len() > via.hop.path_mtu.load(Ordering::Relaxed) as usize;
    if fragment && !may_fragment {
        return Wrapped::Dropped(DropReason::RelayTooBig);
    }
    let Some(session) = via.session else { return Wrapped::Stage { hop: via.hop, frame } };
    let Some(counter) = session.reserve(1) else {
        return Wrapped::Dropped(DropReason::SessionExpired);
    };
    let mut message = vec![0; frame.len() + OVERHEAD];
    session.seal_from(&frame, &mut message, 0, counter);
    note_sent(&via.hop, 1, frame.len() as u64, now_ms);
    Wrapped::Send { to: via.to, datagram: message, fragment }
}

/// Writes `header` and room for a datagram of `len` bytes to `frame`, which is
/// then exactly the frame's length; returns where the datagram belongs.
pub(super) fn prepare<'a>(
    frame: &'a mut Vec<u8>,
    header: &[u8],
    len: usize,
    may_fragment: bool,
) -> &'a mut [u8] {
    frame.resize(header.len() + len, 0);
    let (head, datagram) = frame.split_at_mut(header.len());
    head.copy_from_slice(header);
    head[FLAGS] = if may_fragment || len <= ALWAYS_CARRIED { FLAG_FRAGMENT } else { 0 };
    datagram
}

#[cfg(test)]
mod tests {
    use super::*;
    use warren_types::{LinkPublicKey, Suite};

    fn node(n: u8) -> NodeSuffix {
        [n; NODE_LEN]
    }

    fn link(n: u8) -> Arc<PeerLink> {
        Arc::new(PeerLink::new(LinkPublicKey([n; 32]), Suite::Aes256Gcm, true))
    }

    fn frame(next: u8, nodes: &[u8]) -> Vec<u8> {
        let mut frame = vec![KIND, next, nodes.len() as u8, 0];
        nodes.iter().for_each(|n| frame.extend(node(*n)));
        frame.push(0x14);
        frame
    }

    #[test]
    fn frames_name_three_to_six_different_nodes() {
        for count in 3..=6u8 {
            let nodes: Vec<u8> = (1..=count).collect();
            for next in 1..count {
                let frame = frame(next, &nodes);
                let parsed = RelayFrame::parse(&frame).unwrap();
                assert_eq!(parsed.source(), &node(1));
                assert_eq!(parsed.sender(), &node(next));
                assert_eq!(parsed.receiver(), &node(next + 1));
                let after = (next + 1 < count).then(|| node(next + 2));
                assert_eq!(parsed.after().copied(), after);
                assert_eq!(frame[parsed.header_len()..], [0x14]);
                for len in 0..frame.len() {
                    assert_eq!(RelayFrame::parse(&frame[..len]), None, "cut to {len}");
                }
            }
        }
    }

    #[test]
    fn impossible_lists_are_refused() {
        let good = frame(1, &[1, 2, 3]);
        assert!(RelayFrame::parse(&good).is_some());
        for (at, value) in [
            (0, 1),
            (1, 0),
            (1, 3),
            (1, 255),
            (2, 0),
            (2, 2),
            (2, 4),
            (2, 7),
            (2, 255),
            (3, 2),
            (3, 255),
        ] {
            let mut bad = good.clone();
            bad[at] = value;
            assert_eq!(RelayFrame::parse(&bad), None, "byte {at} = {value}");
        }
        for nodes in [&[1, 2, 1][..], &[1, 1, 2], &[2, 1, 1], &[1, 2, 3, 4, 5, 6, 7], &[1, 2]] {
            assert_eq!(RelayFrame::parse(&frame(1, nodes)), None, "{nodes:?}");
        }
        let mut flagged = good;
        flagged[3] = FLAG_FRAGMENT;
        assert!(RelayFrame::parse(&flagged).unwrap().may_fragment());
    }

    #[test]
    fn routes_are_bounded_and_without_loops() {
        let hop = link(2);
        let route = |relays: &[u8]| {
            let relays: Vec<_> = relays.iter().copied().map(node).collect();
            RelayRoute::new(node(1), &relays, node(9), &hop)
        };
        let good = route(&[2, 3, 4, 5]).unwrap();
        assert_eq!(good.relays(), [2, 3, 4, 5].map(node));
        assert_eq!(good.header()[..3], [KIND, 1, 6]);
        assert!(matches!(route(&[]), Err(BadRoute::Length)));
        assert!(matches!(route(&[2, 3, 4, 5, 6]), Err(BadRoute::Length)));
        for looped in [&[2, 2][..], &[1], &[9], &[2, 9]] {
            assert!(matches!(route(looped), Err(BadRoute::Loop)), "{looped:?}");
        }
    }

    #[test]
    fn the_way_back_is_the_list_reversed_and_the_proven_one_stays() {
        let (hop, other, peer) = (link(2), link(3), link(1));
        let bytes = frame(3, &[1, 7, 2, 9]);
        let honest = RelayFrame::parse(&bytes).unwrap();
        let bytes = frame(2, &[1, 3, 9]);
        let lie = RelayFrame::parse(&bytes).unwrap();
        let relays = |peer: &PeerLink| peer.relay_back.load_full().unwrap().relays().to_vec();
        learn(&peer, &lie, &other, false, 1000);
        assert_eq!(relays(&peer), [node(3)]);
        // What authenticated wins at once, and is kept against what did not.
        learn(&peer, &honest, &hop, true, 1001);
        assert_eq!(relays(&peer), [2, 7].map(node));
        learn(&peer, &lie, &other, false, 1001 + PROVEN_LIFE_MS - 1);
        assert_eq!(relays(&peer), [2, 7].map(node));
        // Unless nothing came that way for long.
        learn(&peer, &lie, &other, false, 1001 + PROVEN_LIFE_MS);
        assert_eq!(relays(&peer), [node(3)]);
    }

    #[test]
    fn a_route_needs_a_first_relay_that_is_reached_directly() {
        let (hop, peer) = (link(2), link(9));
        assert!(Via::to(&peer, 1).is_none(), "no route");
        let route = RelayRoute::new(node(1), &[node(2)], node(9), &hop).unwrap();
        peer.relay.store(Some(Arc::new(route)));
        assert!(Via::to(&peer, 1).is_none(), "nobody knows where the relay is");
        hop.roam("192.0.2.2:7".parse().unwrap());
        assert!(Via::to(&peer, 1).unwrap().session.is_none());
        let session = SendSession::new(Suite::Aes256Gcm, 1, &[1; 32], 1, true);
        hop.send.store(Some(Arc::new(session)));
        let via = Via::to(&peer, 1).unwrap();
        assert!(via.session.is_some());
        assert_eq!(via.mtu(), 1420 - 32 - 34);
        assert!(Via::to(&peer, 1 + REJECT_AFTER_MS).unwrap().session.is_none(), "expired");
        hop.roam("[fd00::2]:1".parse().unwrap());
        assert!(Via::to(&peer, 1).is_none(), "the relay is itself reached over others");
        drop(hop);
        assert!(Via::to(&peer, 1).is_none(), "gone");
    }

    #[test]
    fn a_learnt_way_steps_in_where_no_computed_one_can_be_used_and_ends() {
        let (first, second, peer) = (link(2), link(3), link(9));
        for (hop, last) in [(&first, 2), (&second, 3)] {
            hop.roam(SocketAddr::from(([192, 0, 2, last], 7)));
        }
        let route = RelayRoute::new(node(1), &[node(2)], node(9), &first).unwrap();
        peer.relay.store(Some(Arc::new(route)));
        let bytes = frame(2, &[9, 3, 1]);
        learn(&peer, &RelayFrame::parse(&bytes).unwrap(), &second, true, 5);
        let over = |now| Via::to(&peer, now).map(|via| via.route.relays().to_vec());
        assert_eq!(over(5), Some(vec![node(2)]));
        first.roam("[fd00::2]:1".parse().unwrap());
        assert_eq!(over(5), Some(vec![node(3)]), "the first is reached over others");
        peer.relay.store(None);
        assert_eq!(over(4 + LEARNT_LIFE_MS), Some(vec![node(3)]));
        assert_eq!(over(5 + LEARNT_LIFE_MS), None);
    }
}
