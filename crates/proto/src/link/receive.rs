//! From the network: trains of datagrams are sorted by their first byte;
//! transport messages are opened, checked and delivered to the TUN, or sealed
//! again for the peer they are for. Relay frames are passed on likewise, or hold
//! a datagram for us, which is taken as if it had come by itself.
//!
//! Invariant: nothing of a datagram reaches the TUN or another peer before it
//! authenticated, passed the replay window, and came from an address its
//! sender may use.

use std::iter::Peekable;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use warren_types::{DropReason, mesh_address, mesh_node};

use super::cells::{Around, CellReader};
use super::event::{Outputs, ToEngine};
use super::frame::Tally;
use super::outbound::{Fate, Outbound, REJECT_AFTER_MS, single};
use super::peer::PeerLink;
use super::relay::{self, RelayFrame, Via};
use super::relayed::{Judge, Nested, Onward};
use super::session::{
    FLAG_CHECKSUM_PARTIAL, Header, OVERHEAD, RecvSession, TYPE_TRANSPORT_AES,
    TYPE_TRANSPORT_WIREGUARD,
};
use super::tables::{Routes, Tables};
use super::transmit::{AnswerLimit, TAIL_ROOM};
use crate::noise::{MacKey, mac1_ok};
use crate::onion::cell;
use crate::onion::tables::OnionTables;
use crate::packet::gather::{Gather, Limits};
use crate::packet::icmp::{self, Answer};
use crate::packet::ip::Ip;
use crate::packet::rewrite;

/// Packets up to this size are looked at for a TCP SYN.
const SMALL_PACKET: usize = 128;

/// Where a packet goes.
#[derive(Debug, Clone)]
enum Verdict {
    Deliver,
    Forward(Arc<PeerLink>),
    Refuse(DropReason),
}

/// The last verdict, valid for one routing snapshot.
#[derive(Debug)]
struct Judged {
    sender: Arc<PeerLink>,
    addresses: [u8; 32],
    len: usize,
    verdict: Verdict,
}

/// One received train's fixed facts.
#[derive(Debug, Clone, Copy)]
struct Arrival<'a> {
    from: SocketAddr,
    tos: u8,
    now_ms: u64,
    /// How it came, if over other nodes.
    relayed: Option<Relayed<'a>>,
}

/// The way a datagram came over other nodes.
#[derive(Debug, Clone, Copy)]
struct Relayed<'a> {
    frame: RelayFrame<'a>,
    /// The last of them.
    hop: &'a Arc<PeerLink>,
    /// Who the frame says it is from.
    source: &'a Arc<PeerLink>,
}

impl Arrival<'_> {
    /// Keeps the way back, so that there can be an answer; `proven` when a
    /// message of the source authenticated.
    fn learn_way_back(&self, proven: bool) {
        if let Some(Relayed { frame, hop, source }) = &self.relayed {
            relay::learn(source, frame, hop, proven, self.now_ms);
        }
    }
}

/// Takes datagrams from the network. One per worker thread.
#[derive(Debug)]
pub struct Receiver {
    gather: Gather,
    outbound: Outbound,
    routes: Option<Arc<Routes>>,
    judged: Option<Judged>,
    judge: Judge,
    nested: Nested,
    onion: Option<Arc<OnionTables>>,
    cells: CellReader,
    /// Frames passed on for others and their bytes, not yet counted.
    passed: (u64, u64),
    answers: AnswerLimit,
}

impl Receiver {
    /// For a TUN that takes `limits`.
    pub fn new(limits: Limits) -> Self {
        Self {
            gather: Gather::new(limits),
            outbound: Outbound::default(),
            routes: None,
            judged: None,
            judge: Judge::default(),
            nested: Nested::default(),
            onion: None,
            cells: CellReader::default(),
            passed: (0, 0),
            answers: AnswerLimit::default(),
        }
    }

    /// Takes a train: `data`, cut every `segment` bytes, all from `from` with
    /// the outer type of service `tos`. `mac_key` is our own, for handshakes.
    #[allow(clippy::too_many_arguments, reason = "what a train is; a struct would only rename it")]
    pub fn train(
        &mut self,
        io: &mut impl Outputs,
        tables: &Tables,
        mac_key: &MacKey,
        from: SocketAddr,
        tos: u8,
        data: &[u8],
        segment: usize,
        now_ms: u64,
    ) {
        if mesh_node(from).is_some() {
            // Only what relay frames carry is from there.
            return io.dropped(DropReason::RelayForged, data.len().div_ceil(segment.max(1)) as u64);
        }
        self.refresh(tables);
        let arrival = Arrival { from, tos, now_ms, relayed: None };
        self.datagrams(io, tables, mac_key, arrival, data.chunks(segment.max(1)).peekable());
        let (packets, bytes) = std::mem::take(&mut self.passed);
        if packets > 0 {
            tables.relayed.add(packets, bytes);
        }
    }

    fn datagrams<'a>(
        &mut self,
        io: &mut impl Outputs,
        tables: &Tables,
        mac_key: &MacKey,
        arrival: Arrival<'_>,
        mut datagrams: Peekable<impl Iterator<Item = &'a [u8]>>,
    ) {
        let Arrival { from, tos, .. } = arrival;
        while let Some(datagram) = datagrams.next() {
            match datagram.first().copied().unwrap_or(0) {
                TYPE_TRANSPORT_WIREGUARD | TYPE_TRANSPORT_AES => {
                    let Some(header) = Header::parse(datagram) else {
                        io.dropped(DropReason::Malformed, 1);
                        continue;
                    };
                    let Some(session) = tables.session(header.receiver) else {
                        io.dropped(DropReason::UnknownSession, 1);
                        continue;
                    };
                    self.session_run(io, &session, arrival, header, datagram, &mut datagrams);
                    if !self.nested.is_empty() {
                        self.unwrap(io, tables, mac_key, arrival, &session.peer);
                    }
                }
                1..=3 | 0x11..=0x13 => {
                    if mac1_ok(mac_key, datagram) || tables.other_mac1_ok(datagram) {
                        arrival.learn_way_back(false);
                        io.engine(ToEngine::Handshake { from, data: datagram.to_vec() });
                    } else {
                        io.dropped(DropReason::BadMac, 1);
                    }
                }
                64.. => {
                    arrival.learn_way_back(false);
                    io.engine(ToEngine::Quic { from, ecn: tos & 3, data: datagram.to_vec() });
                }
                _ => io.dropped(DropReason::UnknownType, 1),
            }
        }
    }

    /// Takes the datagrams of the relay frames for us that `hop` has sent. In
    /// them there are no relay frames for us, so this is one level deep.
    fn unwrap(
        &mut self,
        io: &mut impl Outputs,
        tables: &Tables,
        mac_key: &MacKey,
        outer: Arrival<'_>,
        hop: &Arc<PeerLink>,
    ) {
        let Some(routes) = self.routes.clone() else { return };
        let mut nested = std::mem::take(&mut self.nested);
        for group in nested.groups() {
            let mut group = group.peekable();
            let Some(frame) = group.peek().and_then(|frame| RelayFrame::parse(frame)) else {
                continue;
            };
            let Some(source) = routes.node(frame.source()) else { continue };
            let Some(node) = source.node() else { continue };
            let relayed = Some(Relayed { frame, hop, source });
            let arrival = Arrival { from: mesh_address(node), relayed, ..outer };
            let datagrams = group.filter_map(|whole| whole.get(frame.header_len()..));
            self.datagrams(io, tables, mac_key, arrival, datagrams.peekable());
        }
        nested.clear();
        self.nested = nested;
    }

    /// Writes and sends what is still open. To be called after each batch.
    pub fn finish(&mut self, io: &mut impl Outputs) {
        self.gather.finish(&mut |frame| io.tun(frame));
        self.outbound.flush(io);
        // A circuit that ended is found so in the next batch.
        self.cells.forget();
    }

    /// As [`Self::finish`], before a longer wait: forgets keys and peers too.
    pub fn rest(&mut self, io: &mut impl Outputs) {
        self.finish(io);
        self.outbound.rest(io);
        self.judged = None;
        self.judge.forget();
        self.routes = None;
    }

    /// Opens `first` and those that follow it on the same session, with the
    /// replay window locked once.
    fn session_run<'a>(
        &mut self,
        io: &mut impl Outputs,
        session: &Arc<RecvSession>,
        arrival: Arrival<'_>,
        first: Header,
        first_datagram: &'a [u8],
        rest: &mut Peekable<impl Iterator<Item = &'a [u8]>>,
    ) {
        let peer = session.peer.clone();
        // Who sealed it must be who the frame says it is from: answers go there.
        if arrival.relayed.is_some_and(|relayed| relayed.source.node() != peer.node()) {
            return io.dropped(DropReason::RelayForged, 1);
        }
        let expired = arrival.now_ms.saturating_sub(session.created_ms) >= REJECT_AFTER_MS;
        let (mut opened, mut bytes, mut tally) = (0u64, 0u64, Tally::default());
        let mut window = session.replay.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let (mut header, mut datagram) = (first, first_datagram);
        loop {
            let refused = if expired {
                Some(DropReason::SessionExpired)
            } else if header.suite != session.suite() {
                Some(DropReason::UnknownType)
            } else if !window.would_accept(header.counter) {
                Some(DropReason::Replay)
            } else {
                None
            };
            let len = datagram.len() - OVERHEAD;
            let aside = self.nested.expected && arrival.relayed.is_none();
            let slot = match (refused, aside) {
                (Some(_), _) => None,
                (None, false) => self.gather.slot(len),
                (None, true) => self.nested.slot(len),
            };
            match (refused, slot) {
                (Some(reason), _) => io.dropped(reason, 1),
                (None, None) => io.dropped(DropReason::Malformed, 1),
                (None, Some(slot)) => {
                    if session.open_into(&header, datagram, slot).is_err() {
                        if !aside {
                            self.gather.cancel();
                        }
                        io.dropped(DropReason::BadTag, 1);
                    } else {
                        window.accept(header.counter);
                        opened += 1;
                        tally += Tally::of(slot);
                        let partial = header.flags & FLAG_CHECKSUM_PARTIAL != 0;
                        let size = if aside {
                            self.opened_aside(io, &peer, arrival, len, partial)
                        } else {
                            self.opened(io, &peer, arrival, len, partial)
                        };
                        if let Some(size) = size {
                            bytes += size as u64;
                        }
                    }
                }
            }
            let next = rest.peek().and_then(|next| Some((Header::parse(next)?, *next)));
            match next {
                Some((next_header, next_datagram)) if next_header.receiver == header.receiver => {
                    (header, datagram) = (next_header, next_datagram);
                    rest.next();
                }
                _ => break,
            }
        }
        drop(window);
        if opened == 0 {
            return;
        }
        peer.last_rx_ms.store(arrival.now_ms, Ordering::Relaxed);
        if bytes > 0 {
            peer.note_received(bytes, arrival.now_ms);
        }
        peer.note_tally(tally);
        if !session.confirmed.swap(true, Ordering::AcqRel) {
            io.engine(ToEngine::Confirmed { session: session.clone() });
        }
        arrival.learn_way_back(true);
        if peer.heard_from(arrival.from) {
            io.engine(ToEngine::Roamed { peer, to: arrival.from });
        }
    }

    /// As [`Self::opened`], with the payload in the slot for relay frames: they
    /// are what came last.
    fn opened_aside(
        &mut self,
        io: &mut impl Outputs,
        peer: &Arc<PeerLink>,
        arrival: Arrival<'_>,
        len: usize,
        partial: bool,
    ) -> Option<usize> {
        let payload = self.nested.slot(len)?;
        if !relay::is_relay(payload) || !peer.is_warren {
            self.gather.slot(len)?.copy_from_slice(payload);
            self.nested.expected = false;
            return self.opened(io, peer, arrival, len, partial);
        }
        let routes = self.routes.as_ref()?;
        match self.judge.frame(routes, peer, payload) {
            Onward::Ours => {
                self.nested.keep(len);
                relay::traffic(len)
            }
            Onward::Pass(to) => {
                let fate = pass(&mut self.outbound, io, &to, payload, arrival);
                self.passed_on(io, fate, len)
            }
            Onward::Refuse(reason) => {
                io.dropped(reason, 1);
                None
            }
        }
    }

    /// A relay frame of `len` bytes is in the slot. Returns its size when it is
    /// traffic of this link.
    fn relay_frame(
        &mut self,
        io: &mut impl Outputs,
        peer: &Arc<PeerLink>,
        arrival: Arrival<'_>,
        len: usize,
    ) -> Option<usize> {
        let frame = self.gather.packet_mut(len);
        let onward = match &self.routes {
            Some(_) if arrival.relayed.is_some() => Onward::Refuse(DropReason::RelayNested),
            Some(routes) => self.judge.frame(routes, peer, frame),
            None => Onward::Refuse(DropReason::NoRoute),
        };
        let size = match onward {
            Onward::Ours => {
                let kept = self.nested.slot(len).map(|room| room.copy_from_slice(frame));
                if kept.is_some() {
                    self.nested.keep(len);
                    self.nested.expected = true;
                }
                kept.and_then(|()| relay::traffic(len))
            }
            Onward::Pass(to) => {
                let fate = pass(&mut self.outbound, io, &to, frame, arrival);
                self.passed_on(io, fate, len)
            }
            Onward::Refuse(reason) => {
                io.dropped(reason, 1);
                None
            }
        };
        self.gather.cancel();
        size
    }

    fn passed_on(&mut self, io: &mut impl Outputs, fate: Fate, len: usize) -> Option<usize> {
        if let Fate::Dropped(reason) = fate {
            io.dropped(reason, 1);
            return None;
        }
        self.passed = (self.passed.0 + 1, self.passed.1 + len as u64);
        relay::traffic(len)
    }

    /// An authenticated payload of `len` bytes is in the slot. Returns the
    /// packet's size when it was delivered or forwarded.
    fn opened(
        &mut self,
        io: &mut impl Outputs,
        peer: &Arc<PeerLink>,
        arrival: Arrival<'_>,
        len: usize,
        partial: bool,
    ) -> Option<usize> {
        let packet = self.gather.packet_mut(len);
        let reason = match packet.first() {
            // A keepalive.
            None => {
                self.gather.cancel();
                return None;
            }
            Some(&relay::KIND) if peer.is_warren => {
                return self.relay_frame(io, peer, arrival, len);
            }
            Some(_) if cell::is_cell(packet) && peer.is_warren => {
                self.cell(io, peer, arrival, len);
                return Some(len);
            }
            Some(kind) if *kind < 0x10 && peer.is_warren => {
                let data = packet.to_vec();
                self.gather.cancel();
                io.engine(ToEngine::LinkFrame { peer: peer.clone(), from: arrival.from, data });
                return None;
            }
            Some(_) => match Ip::parse(packet) {
                Some(ip) => match self.judge(peer, &ip, len) {
                    Verdict::Deliver => {
                        let packet = self.gather.packet_mut(len);
                        rewrite::apply_outer_ecn(&ip, packet, arrival.tos);
                        if ip.total_len <= SMALL_PACKET {
                            let mtu = path_mtu(peer, arrival);
                            rewrite::clamp_mss(&ip, packet, mtu, partial);
                        }
                        self.gather.accept(&ip, partial, &mut |frame| io.tun(frame));
                        return Some(ip.total_len);
                    }
                    Verdict::Forward(to) => {
                        self.forward(io, peer, &to, &ip, arrival, partial);
                        self.gather.cancel();
                        return Some(ip.total_len);
                    }
                    Verdict::Refuse(reason) => reason,
                },
                None => DropReason::Malformed,
            },
        };
        self.gather.cancel();
        io.dropped(reason, 1);
        None
    }

    /// A cell of `len` bytes is in the slot.
    fn cell(
        &mut self,
        io: &mut impl Outputs,
        peer: &Arc<PeerLink>,
        arrival: Arrival<'_>,
        len: usize,
    ) {
        let packet = self.gather.packet_mut(len);
        if !cell::is_layered(packet) {
            let data = packet.to_vec();
            self.gather.cancel();
            return io.engine(ToEngine::Cell { peer: peer.clone(), data });
        }
        let (Some(tables), Some(routes)) = (&self.onion, &self.routes) else {
            return self.gather.cancel();
        };
        let mut around = Around {
            tables,
            routes,
            gather: &mut self.gather,
            outbound: &mut self.outbound,
            now_ms: arrival.now_ms,
        };
        self.cells.take(io, &mut around, peer, len);
    }

    fn judge(&mut self, sender: &Arc<PeerLink>, ip: &Ip, len: usize) -> Verdict {
        let packet = self.gather.packet_mut(len);
        let bytes = ip.addresses(packet);
        if let Some(judged) = &self.judged
            && judged.len == bytes.len()
            && judged.addresses[..judged.len] == *bytes
            && Arc::ptr_eq(&judged.sender, sender)
        {
            return judged.verdict.clone();
        }
        let mut addresses = [0; 32];
        addresses[..bytes.len()].copy_from_slice(bytes);
        let count = bytes.len();
        let Some(routes) = &self.routes else { return Verdict::Refuse(DropReason::NoRoute) };
        let destination = ip.destination(packet);
        let verdict = if !routes.source_allowed(sender, ip.source(packet)) {
            Verdict::Refuse(DropReason::SourceNotAllowed)
        } else if routes.is_local(destination) {
            Verdict::Deliver
        } else {
            match routes.lookup(destination) {
                // Back where it came from: the two routing tables disagree.
                Some(owner) if Arc::ptr_eq(owner, sender) => Verdict::Refuse(DropReason::NoRoute),
                Some(owner) => Verdict::Forward(owner.clone()),
                None => Verdict::Deliver,
            }
        };
        self.judged = Some(Judged {
            sender: sender.clone(),
            addresses,
            len: count,
            verdict: verdict.clone(),
        });
        verdict
    }

    fn forward(
        &mut self,
        io: &mut impl Outputs,
        sender: &Arc<PeerLink>,
        to: &Arc<PeerLink>,
        ip: &Ip,
        arrival: Arrival<'_>,
        partial: bool,
    ) {
        let buffer = self.gather.packet_mut(ip.total_len + TAIL_ROOM);
        let Some(packet) = buffer.get_mut(..ip.total_len) else { return };
        rewrite::apply_outer_ecn(ip, packet, arrival.tos);
        let fate = if rewrite::decrement_hop_limit(ip, packet) {
            let vnet = single(packet, partial);
            self.outbound.send(io, to, &vnet, buffer, ip.total_len, arrival.now_ms)
        } else {
            Fate::Dropped(DropReason::HopLimit)
        };
        let (reason, answer) = match fate {
            Fate::Sent | Fate::Staged => return,
            Fate::TooBig(mtu) => (DropReason::TooBig, Some(Answer::TooBig(mtu))),
            Fate::Dropped(reason @ (DropReason::NoEndpoint | DropReason::RelayNoRoute)) => {
                (reason, Some(Answer::HostUnreachable))
            }
            Fate::Dropped(reason @ DropReason::HopLimit) => {
                (reason, Some(Answer::HopLimitExceeded))
            }
            Fate::Dropped(reason) => (reason, None),
        };
        io.dropped(reason, 1);
        let from = self.routes.as_ref().and_then(|routes| routes.local_address(ip.v6));
        if let Some(answer) = answer
            && self.answers.allow(arrival.now_ms)
            && let Some(mut reply) = icmp::answer(ip, buffer, from, answer)
        {
            let len = reply.len();
            reply.resize(len + TAIL_ROOM, 0);
            let vnet = single(&reply[..len], false);
            self.outbound.send(io, sender, &vnet, &mut reply, len, arrival.now_ms);
        }
    }

    fn refresh(&mut self, tables: &Tables) {
        let current = tables.routes.load();
        if self.onion.is_none() {
            self.onion = Some(tables.onion.clone());
        }
        if !self.routes.as_ref().is_some_and(|routes| Arc::ptr_eq(routes, &current)) {
            self.routes = Some(current.clone());
            self.cells.forget();
            self.judged = None;
            self.judge.forget();
        }
    }
}

/// Largest inner packet that goes back to `peer` the way the arrival came.
fn path_mtu(peer: &PeerLink, arrival: Arrival<'_>) -> usize {
    let mtu = peer.path_mtu.load(Ordering::Relaxed) as usize;
    let via = arrival.relayed.and_then(|_| Via::to(peer, arrival.now_ms));
    via.map_or(mtu, |via| via.mtu().min(mtu))
}

/// Sends a relay frame to `to`, who is next after us. A congestion mark of the
/// way here goes with it.
fn pass(
    outbound: &mut Outbound,
    io: &mut impl Outputs,
    to: &Arc<PeerLink>,
    frame: &mut [u8],
    arrival: Arrival<'_>,
) -> Fate {
    relay::advance(frame);
    outbound.pass(io, to, frame, arrival.tos & 3, arrival.now_ms)
}
