//! From the TUN: whose packet it is, and off with it.

use std::net::IpAddr;
use std::sync::Arc;

use warren_types::DropReason;

use super::cells::CellWriter;
use super::event::Outputs;
use super::outbound::{Fate, Outbound};
use super::peer::PeerLink;
use super::tables::{Routes, Tables};
use crate::packet::icmp::{self, Answer};
use crate::packet::ip::Ip;
use crate::packet::vnet::{VNET_LEN, Vnet};

/// Bytes to leave free behind a frame, for padding.
pub const TAIL_ROOM: usize = 16;
/// Bytes of a buffer for any frame.
pub const FRAME_BUFFER: usize = VNET_LEN + 65_535 + TAIL_ROOM;

/// ICMP answers per second and worker.
const ANSWERS_PER_SECOND: u32 = 200;

/// Takes frames from the TUN. One per worker thread.
#[derive(Debug, Default)]
pub struct Transmitter {
    outbound: Outbound,
    cells: CellWriter,
    /// When the last frame for a cell came.
    now_ms: u64,
    routes: Option<Arc<Routes>>,
    /// The last destination and its owner, valid for `routes`.
    last: Option<(IpAddr, Arc<PeerLink>)>,
    answers: AnswerLimit,
}

impl Transmitter {
    /// Seals and sends the frame in the first `len` bytes of `buffer`, which
    /// has [`TAIL_ROOM`] bytes more. Datagrams may be held back until
    /// [`Self::finish`], to be joined by those of the next frame.
    pub fn frame(
        &mut self,
        io: &mut impl Outputs,
        tables: &Tables,
        buffer: &mut [u8],
        len: usize,
        now_ms: u64,
    ) {
        let Some((header, packet)) = buffer.split_first_chunk_mut::<VNET_LEN>() else { return };
        let packet_len = len.saturating_sub(VNET_LEN).min(packet.len());
        let parsed = Vnet::parse(header)
            .and_then(|vnet| Some((vnet, Ip::parse(packet.get(..packet_len)?)?)));
        let Some((vnet, ip)) = parsed else {
            io.dropped(DropReason::Malformed, 1);
            return;
        };
        self.refresh(tables);
        let destination = ip.destination(packet);
        let owner = self.owner(destination);
        let fate = match &owner {
            Some(peer) => self.outbound.send(io, peer, &vnet, packet, packet_len, now_ms),
            // Every interface is sent multicast nobody here asked for.
            None if destination.is_multicast() => return,
            None => {
                let onion = &*tables.onion;
                let whole = &mut packet[..packet_len];
                self.now_ms = now_ms;
                self.cells
                    .send(io, &mut self.outbound, onion, &vnet, &ip, whole, now_ms)
                    .unwrap_or(Fate::Dropped(DropReason::NoRoute))
            }
        };
        let (reason, answer) = match fate {
            Fate::Sent | Fate::Staged => return,
            Fate::TooBig(mtu) => (DropReason::TooBig, Some(Answer::TooBig(mtu))),
            Fate::Dropped(reason @ DropReason::NoRoute) => (reason, Some(Answer::NoRoute)),
            // Between two ways to it: programs try again sooner than they would after
            // being told that there is none.
            Fate::Dropped(reason @ (DropReason::NoEndpoint | DropReason::RelayNoRoute))
                if owner.as_ref().is_some_and(|peer| peer.was_heard(now_ms)) =>
            {
                (reason, None)
            }
            Fate::Dropped(
                reason
                @ (DropReason::NoEndpoint | DropReason::RelayNoRoute | DropReason::NoCircuit),
            ) => (reason, Some(Answer::HostUnreachable)),
            Fate::Dropped(reason) => (reason, None),
        };
        io.dropped(reason, 1);
        if let Some(answer) = answer
            && self.answers.allow(now_ms)
        {
            // As from the destination: kernels drop what comes in with an
            // address of their own as its source.
            if let Some(reply) = icmp::answer(&ip, packet, None, answer) {
                io.tun(&[&[0; VNET_LEN][..], &reply].concat());
            }
        }
    }

    /// Sends what was held back. To be called before waiting.
    pub fn finish(&mut self, io: &mut impl Outputs) {
        self.cells.flush(io, &mut self.outbound, self.now_ms);
        self.outbound.flush(io);
    }

    /// As [`Self::finish`], before a longer wait: forgets keys and peers too.
    pub fn rest(&mut self, io: &mut impl Outputs) {
        self.cells.flush(io, &mut self.outbound, self.now_ms);
        self.outbound.rest(io);
        self.last = None;
        self.routes = None;
    }

    fn refresh(&mut self, tables: &Tables) {
        let current = tables.routes.load();
        if !self.routes.as_ref().is_some_and(|routes| Arc::ptr_eq(routes, &current)) {
            self.routes = Some(current.clone());
            self.last = None;
        }
    }

    fn owner(&mut self, destination: IpAddr) -> Option<Arc<PeerLink>> {
        if let Some((last, peer)) = &self.last
            && *last == destination
        {
            return Some(peer.clone());
        }
        let peer = self.routes.as_ref()?.lookup(destination)?.clone();
        self.last = Some((destination, peer.clone()));
        Some(peer)
    }
}

/// Limits ICMP answers.
#[derive(Debug, Default)]
pub(super) struct AnswerLimit {
    second: u64,
    used: u32,
}

impl AnswerLimit {
    pub(super) fn allow(&mut self, now_ms: u64) -> bool {
        if now_ms / 1000 != self.second {
            self.second = now_ms / 1000;
            self.used = 0;
        }
        self.used += 1;
        self.used <= ANSWERS_PER_SECOND
    }
}
