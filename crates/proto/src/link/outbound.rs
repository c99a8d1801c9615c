//! The way out, for packets from the TUN and for packets forwarded between
//! peers: session, MTU, sealing, batching.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use warren_types::{DropReason, Suite, mesh_node};

use super::event::{Outputs, ToEngine};
use super::peer::PeerLink;
use super::relay::{self, Via};
use super::seal::{SealBatch, Wrap};
use super::session::{FLAG_CHECKSUM_PARTIAL, OVERHEAD, SendSession};
use crate::packet::rewrite;
use crate::packet::segment::{Checksums, Segments};
use crate::packet::vnet::{Gso, Vnet};

/// A session is not used for sending or receiving beyond this age
/// (WireGuard's REJECT_AFTER_TIME), ms.
pub const REJECT_AFTER_MS: u64 = 180_000;

/// Smallest MTU an IPv6 link may have; smaller paths carry fragments.
const IPV6_MIN_MTU: usize = 1280;

/// What became of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// Sealed, to be sent with the batch.
    Sent,
    /// Handed to the engine until there is a session.
    Staged,
    /// Larger than the path; the MTU that fits.
    TooBig(u16),
    /// Dropped for another reason.
    Dropped(DropReason),
}

/// Who the open batch is for.
#[derive(Debug)]
struct Run {
    session: Arc<SendSession>,
    to: SocketAddr,
    tos: u8,
}

/// Seals packets and sends them in batches. One per worker thread.
#[derive(Debug, Default)]
pub struct Outbound {
    batch: SealBatch,
    run: Option<Run>,
}

impl Outbound {
    /// Sends one frame's packets to `peer`. `packet` holds the frame described
    /// by `vnet` in its first `len` bytes and room for padding behind it.
    pub fn send(
        &mut self,
        io: &mut impl Outputs,
        peer: &Arc<PeerLink>,
        vnet: &Vnet,
        packet: &mut [u8],
        len: usize,
        now_ms: u64,
    ) -> Fate {
        let Some(frame) = packet.get_mut(..len) else {
            return Fate::Dropped(DropReason::Malformed);
        };
        let checksums = match peer.suite {
            Suite::Aes256Gcm if peer.is_warren => Checksums::Partial,
            _ => Checksums::Complete,
        };
        let session = peer.send.load();
        let Some(session) = session
            .as_ref()
            .filter(|session| now_ms.saturating_sub(session.created_ms) < REJECT_AFTER_MS)
        else {
            return stage(io, peer, vnet, frame);
        };
        let Some(to) = peer.endpoint.load().as_deref().copied() else {
            return Fate::Dropped(DropReason::NoEndpoint);
        };
        let mut mtu = peer.path_mtu.load(Ordering::Relaxed) as usize;
        let via = match mesh_node(to) {
            None => None,
            Some(_) => match Via::to(peer, now_ms) {
                Some(via) => Some(via),
                None => return Fate::Dropped(DropReason::RelayNoRoute),
            },
        };
        if let Some(via) = &via {
            mtu = mtu.min(via.mtu());
        }
        let Ok(plan) = Segments::plan(vnet, frame, checksums) else {
            return Fate::Dropped(DropReason::Malformed);
        };
        if plan.count() == 1 && plan.is_tcp() {
            rewrite::clamp_mss(plan.ip(), frame, mtu, vnet.needs_csum);
        }
        let tos = rewrite::outer_tos(plan.ip().tos(frame));
        let oversize = plan.largest() > mtu;
        if oversize && let Some(fits) = must_shrink(&plan, frame, mtu) {
            return Fate::TooBig(fits);
        }
        let (outer, to) = match &via {
            None => (session, to),
            Some(Via { session: Some(hop), to, .. }) => (hop, *to),
            Some(via) => return stage_wrapped(io, via, session, &plan, packet),
        };
        if oversize {
            self.flush(io);
        }
        self.turn_to(io, outer, to, tos);
        let wrap = via.as_ref().map(|via| Wrap {
            session: outer,
            header: via.route.header(),
            may_fragment: oversize,
        });
        let mut next = 0;
        while next < plan.count() {
            match self.batch.seal(session, &plan, packet, next, mtu, wrap) {
                Ok(sealed) if sealed > next => next = sealed,
                // The batch is full; an empty one takes any packet.
                Ok(_) if !self.batch.is_empty() => self.flush(io),
                Ok(_) => return Fate::Dropped(DropReason::TooBig),
                Err(_) => return Fate::Dropped(DropReason::SessionExpired),
            }
            if oversize {
                self.flush_fragmentable(io);
            }
        }
        peer.note_sent(plan.count() as u64, plan.total_bytes(), now_ms);
        if let Some(via) = &via {
            relay::note_sent(&via.hop, plan.count(), plan.total_bytes(), now_ms);
        }
        Fate::Sent
    }

    /// Sends a relay frame on to `peer`, its next node.
    pub fn pass(
        &mut self,
        io: &mut impl Outputs,
        peer: &Arc<PeerLink>,
        frame: &[u8],
        tos: u8,
        now_ms: u64,
    ) -> Fate {
        let Some(to) = relay::direct(peer) else {
            return Fate::Dropped(DropReason::RelayNested);
        };
        let oversize = frame.len() > peer.path_mtu.load(Ordering::Relaxed) as usize;
        if oversize && !relay::may_fragment(frame) {
            return Fate::Dropped(DropReason::RelayTooBig);
        }
        let fate = self.frame(io, peer, to, frame, oversize, tos, now_ms);
        if fate == Fate::Sent {
            relay::note_sent(peer, 1, frame.len() as u64, now_ms);
        }
        fate
    }

    /// Sends a cell to `peer`, a neighbour on its circuit.
    pub fn cell(
        &mut self,
        io: &mut impl Outputs,
        peer: &Arc<PeerLink>,
        cell: &[u8],
        now_ms: u64,
    ) -> Fate {
        /// ECN and DSCP of all cells. What came with a cell is not passed on:
        /// anybody on the way can write it, and would know the cell again behind
        /// other hops.
        const TOS: u8 = 0;
        let Some(to) = relay::direct(peer) else {
            // Over others, as long as the direct way is bad: the engine's slow way
            // carries it. The circuit's own watch leaves when that is not enough.
            io.engine(ToEngine::Staged { peer: peer.clone(), packets: vec![cell.to_vec()] });
            return Fate::Staged;
        };
        // Cells have one size: a path that is too small for it carries them in
        // fragments.
        let oversize = cell.len() > peer.path_mtu.load(Ordering::Relaxed) as usize;
        let fate = self.frame(io, peer, to, cell, oversize, TOS, now_ms);
        if fate == Fate::Sent {
            peer.note_sent(1, cell.len() as u64, now_ms);
        }
        fate
    }

    #[allow(clippy::too_many_arguments, reason = "what a frame on its way is")]
    fn frame(
        &mut self,
        io: &mut impl Outputs,
        peer: &Arc<PeerLink>,
        to: SocketAddr,
        frame: &[u8],
        oversize: bool,
        tos: u8,
        now_ms: u64,
    ) -> Fate {
        let session = peer.send.load();
        let Some(session) = session
            .as_ref()
            .filter(|session| now_ms.saturating_sub(session.created_ms) < REJECT_AFTER_MS)
        else {
            io.engine(ToEngine::Staged { peer: peer.clone(), packets: vec![frame.to_vec()] });
            return Fate::Staged;
        };
        if oversize {
            self.flush(io);
        }
        self.turn_to(io, session, to, tos);
        match self.batch.push(session, frame) {
            Ok(true) => {}
            Ok(false) if self.batch.is_empty() => return Fate::Dropped(DropReason::RelayTooBig),
            Ok(false) => {
                self.flush(io);
                if self.batch.push(session, frame).is_err() {
                    return Fate::Dropped(DropReason::SessionExpired);
                }
            }
            Err(_) => return Fate::Dropped(DropReason::SessionExpired),
        }
        if oversize {
            self.flush_fragmentable(io);
        }
        Fate::Sent
    }

    /// Makes the open batch one for these, sending one that is not.
    fn turn_to(
        &mut self,
        io: &mut impl Outputs,
        session: &Arc<SendSession>,
        to: SocketAddr,
        tos: u8,
    ) {
        let same = self.run.as_ref().is_some_and(|run| {
            Arc::ptr_eq(&run.session, session) && run.to == to && run.tos == tos
        });
        if !same {
            self.flush(io);
            self.run = Some(Run { session: session.clone(), to, tos });
        }
    }

    /// Sends the open batch.
    pub fn flush(&mut self, io: &mut impl Outputs) {
        if let Some(run) = &self.run
            && !self.batch.is_empty()
        {
            let (data, segment) = self.batch.datagrams();
            io.udp(run.to, data, segment, run.tos);
            self.batch.clear();
        }
    }

    fn flush_fragmentable(&mut self, io: &mut impl Outputs) {
        if let Some(run) = &self.run {
            let (data, segment) = self.batch.datagrams();
            for datagram in data.chunks(segment.max(1)) {
                io.udp_fragmentable(run.to, datagram, run.tos);
            }
            self.batch.clear();
        }
    }

    /// Forgets whom the last batch was for, so that an idle worker does not
    /// keep old keys alive. Call when there is nothing more to send.
    pub fn rest(&mut self, io: &mut impl Outputs) {
        self.flush(io);
        self.run = None;
    }
}

/// For packets beyond the path's MTU: the size to announce to the sender, or
/// `None` when it cannot send smaller ones and the datagram is to be
/// fragmented instead.
fn must_shrink(plan: &Segments, packet: &[u8], mtu: usize) -> Option<u16> {
    if plan.ip().v6 {
        let least = mtu.max(IPV6_MIN_MTU);
        return (plan.largest() > least).then_some(least.min(0xffff) as u16);
    }
    let dont_fragment = packet.get(6).is_some_and(|byte| byte & 0x40 != 0);
    (dont_fragment || plan.count() > 1).then_some(mtu.min(0xffff) as u16)
}

fn stage(io: &mut impl Outputs, peer: &Arc<PeerLink>, vnet: &Vnet, frame: &mut [u8]) -> Fate {
    let Ok(plan) = Segments::plan(vnet, frame, Checksums::Complete) else {
        return Fate::Dropped(DropReason::Malformed);
    };
    let packets = (0..plan.count()).map(|i| {
        let range = plan.build(i, frame);
        frame[range].to_vec()
    });
    io.engine(ToEngine::Staged { peer: peer.clone(), packets: packets.collect() });
    Fate::Staged
}

/// Seals packets and leaves the frames with the engine until the first relay
/// has a session.
fn stage_wrapped(
    io: &mut impl Outputs,
    via: &Via,
    session: &SendSession,
    plan: &Segments,
    packet: &mut [u8],
) -> Fate {
    let flags = if plan.partial() { FLAG_CHECKSUM_PARTIAL } else { 0 };
    let Some(first) = session.reserve(plan.count() as u64) else {
        return Fate::Dropped(DropReason::SessionExpired);
    };
    let seal = |i: usize| {
        let range = plan.build(i, packet);
        let mut frame = Vec::new();
        let room = relay::prepare(&mut frame, via.route.header(), range.len() + OVERHEAD, false);
        session.seal_from(&packet[range], room, flags, first + i as u64);
        frame
    };
    let packets = (0..plan.count()).map(seal).collect();
    io.engine(ToEngine::Staged { peer: via.hop.clone(), packets });
    Fate::Staged
}

/// The vnet header of a single packet, whose checksum is unfinished or not.
pub(super) fn single(packet: &[u8], partial: bool) -> Vnet {
    let ip = crate::packet::ip::Ip::parse(packet);
    match ip.and_then(|ip| Some((ip.transport, ip.tcp_or_udp(packet)?))) {
        Some((start, transport)) if partial => Vnet {
            needs_csum: true,
            gso: Gso::None,
            hdr_len: 0,
            gso_size: 0,
            csum_start: start as u16,
            csum_offset: transport.checksum_offset() as u16,
        },
        _ => Vnet::default(),
    }
}
