//! The way out, for packets from the TUN and for packets forwarded between
//! peers: session, MTU, sealing, batching.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use warren_types::{DropReason, Suite};

use super::event::{Outputs, ToEngine};
use super::peer::PeerLink;
use super::seal::SealBatch;
use super::session::SendSession;
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
        let mtu = peer.path_mtu.load(Ordering::Relaxed) as usize;
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
        let same = !oversize
            && self.run.as_ref().is_some_and(|run| {
                Arc::ptr_eq(&run.session, session) && run.to == to && run.tos == tos
            });
        if !same {
            self.flush(io);
            self.run = Some(Run { session: session.clone(), to, tos });
        }
        let mut next = 0;
        while next < plan.count() {
            match self.batch.seal(session, &plan, packet, next, mtu) {
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
        Fate::Sent
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
