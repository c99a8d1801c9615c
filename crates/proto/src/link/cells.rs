//! What workers do with the cells of circuits: pass them on, open those that
//! end here and deliver the packets in them; and pack packets into cells where
//! a client or an exit sends.
//!
//! Run to completion like the rest of the fast path: a train of cells from one
//! neighbour leaves as one train to the next. Texts that are no packets go to
//! the slow path, but for echoes, which are answered on the spot so that they
//! measure the network and not our threads.

use std::net::IpAddr;
use std::sync::Arc;

use warren_types::DropReason;

use super::cell_address::{End, Renamed};
use super::event::{Outputs, ToEngine};
use super::outbound::{Fate, Outbound};
use super::peer::PeerLink;
use super::tables::Routes;
use crate::onion::aqm::{Class, QueueControl, Toward};
use crate::onion::cell::{
    BACKWARD_LEN, CELL_LEN, CircuitId, FORWARD_LEN, HEADER_LEN, Kind, TEXT_LEN, parse, write_header,
};
use crate::onion::circuit::{CLIENT_BUFFER, ClientCircuit, HopCircuit};
use crate::onion::compartment::Compartment;
use crate::onion::layer::{CellError, Opened};
use crate::onion::payload::{
    Answer, HEAD_LEN, INNER_MTU, RECORD_HEAD, Records, Request, parse_data, write_data_head,
    write_record_head,
};
use crate::onion::session::{ClientSession, ExitSession, Lease, Stream, client_address};
use crate::onion::tables::{Entry, OnionTables};
use crate::packet::gather::Gather;
use crate::packet::ip::Ip;
use crate::packet::rewrite;
use crate::packet::segment::{Checksums, Segments};
use crate::packet::vnet::Vnet;

/// Packets up to this size are looked at for a TCP SYN.
const SMALL_PACKET: usize = 128;

fn reason(error: CellError) -> DropReason {
    match error {
        CellError::Forged => DropReason::CellForged,
        CellError::Replay => DropReason::CellReplay,
    }
}

/// True when a packet is to be lost, so that its sender goes slower. One that can
/// be told so is marked instead.
fn refuses(queue: &QueueControl, ip: &Ip, packet: &mut [u8], now_ms: u64) -> bool {
    queue.slows(Toward::Client, Class::of(ip, packet), now_ms)
        && !rewrite::mark_congestion(ip, packet)
}

/// Opens cells. One per worker thread.
pub(super) struct CellReader {
    text: Vec<u8>,
    /// The last circuit looked up, while its run lasts.
    last: Option<(CircuitId, Entry)>,
    /// The last destination found to be none of the mesh's.
    outside: Option<IpAddr>,
}

impl std::fmt::Debug for CellReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("CellReader")
    }
}

impl Default for CellReader {
    fn default() -> Self {
        Self { text: vec![0; CELL_LEN], last: None, outside: None }
    }
}

/// What else of a worker cells need.
pub(super) struct Around<'a> {
    pub(super) tables: &'a OnionTables,
    pub(super) routes: &'a Routes,
    pub(super) gather: &'a mut Gather,
    pub(super) outbound: &'a mut Outbound,
    pub(super) now_ms: u64,
}

impl CellReader {
    /// Forgets circuits: their owners may have.
    pub(super) fn forget(&mut self) {
        self.last = None;
        self.outside = None;
    }

    fn entry(&mut self, tables: &OnionTables, id: CircuitId) -> Option<Entry> {
        if let Some((last, entry)) = &self.last
            && *last == id
        {
            return Some(entry.clone());
        }
        let entry = tables.circuit(id)?;
        self.last = Some((id, entry.clone()));
        Some(entry)
    }

    /// Takes a cell that carries layers, in the gather's slot, `len` bytes long,
    /// which `peer` sent.
    pub(super) fn take(
        &mut self,
        io: &mut impl Outputs,
        around: &mut Around<'_>,
        peer: &Arc<PeerLink>,
        len: usize,
    ) {
        let now_ms = around.now_ms;
        let cell = around.gather.packet_mut(len);
        let Some((kind, id)) = parse(cell) else {
            around.gather.cancel();
            return io.dropped(DropReason::Malformed, 1);
        };
        let mut text = std::mem::take(&mut self.text);
        // The slot is given up once in each case, before packets want it.
        let refused = match (kind, self.entry(around.tables, id)) {
            (Kind::Forward, Some(Entry::Hop(circuit)))
                if Arc::ptr_eq(&circuit.previous.peer, peer) =>
            {
                let opened = circuit.open(cell, &mut text, now_ms);
                around.gather.cancel();
                match opened {
                    Ok(Opened::Onward) => Self::onward(io, around, &circuit, &mut text),
                    Ok(Opened::Here) => {
                        let said = &mut text[HEADER_LEN..HEADER_LEN + FORWARD_LEN];
                        self.request(io, around, &circuit, said)
                    }
                    Err(error) => Some(reason(error)),
                }
            }
            (Kind::Backward, Some(Entry::HopBack(circuit)))
                if circuit
                    .next
                    .load()
                    .as_ref()
                    .is_some_and(|next| Arc::ptr_eq(&next.peer, peer)) =>
            {
                circuit.pass_back(cell, now_ms);
                OnionTables::count(&around.tables.cells.backward, 1);
                let to = &circuit.previous.peer;
                let fate = around.outbound.cell(io, to, cell, now_ms);
                around.gather.cancel();
                dropped(fate)
            }
            (Kind::Backward, Some(Entry::Client(circuit)))
                if Arc::ptr_eq(&circuit.entry.peer, peer) =>
            {
                let opened = circuit.open(cell, &mut text[..TEXT_LEN], now_ms);
                around.gather.cancel();
                match opened {
                    Ok(hop) => self.answer(io, around, &circuit, hop, &mut text[..BACKWARD_LEN]),
                    Err(error) => Some(reason(error)),
                }
            }
            _ => {
                around.gather.cancel();
                Some(DropReason::CellUnknown)
            }
        };
        self.text = text;
        if let Some(reason) = refused {
            io.dropped(reason, 1);
        }
    }

    fn onward(
        io: &mut impl Outputs,
        around: &mut Around<'_>,
        circuit: &HopCircuit,
        cell: &mut [u8],
    ) -> Option<DropReason> {
        let next = circuit.next.load();
        let Some(next) = next.as_ref() else { return Some(DropReason::CellNoHop) };
        write_header(cell, Kind::Forward, next.theirs);
        OnionTables::count(&around.tables.cells.forward, 1);
        dropped(around.outbound.cell(io, &next.peer, cell, around.now_ms))
    }

    /// What a client says to us.
    fn request(
        &mut self,
        io: &mut impl Outputs,
        around: &mut Around<'_>,
        circuit: &Arc<HopCircuit>,
        text: &mut [u8],
    ) -> Option<DropReason> {
        OnionTables::count(&around.tables.cells.ended, 1);
        let session = circuit.session.load();
        if let Some((sequence, active)) = parse_data(text) {
            let Some(session) = session.as_ref() else { return Some(DropReason::CellNoHop) };
            if active {
                session.choose(circuit, sequence);
            }
            if session.stream.accept(sequence) {
                let lease = session.lease;
                let (packets, bytes) = self.deliver(io, around, text, End::Exit(lease), None);
                session.stream.note_received(packets, bytes, around.now_ms);
            }
            return None;
        }
        match Request::parse(text) {
            Some(Request::Echo { token, active }) => {
                if let (Some(session), Some(sequence)) = (session.as_ref(), active) {
                    session.choose(circuit, sequence);
                }
                let (sent, received) = circuit.progress();
                let answer = Answer::EchoReply { token, received, sent };
                let cell = circuit.say(&answer.encode(), around.now_ms);
                let to = &circuit.previous.peer;
                dropped(around.outbound.cell(io, to, &cell, around.now_ms))
            }
            Some(_) => {
                io.engine(ToEngine::OnionRequest { circuit: circuit.clone(), text: text.to_vec() });
                None
            }
            None => Some(DropReason::Malformed),
        }
    }

    /// What a hop of ours says.
    fn answer(
        &mut self,
        io: &mut impl Outputs,
        around: &mut Around<'_>,
        circuit: &Arc<ClientCircuit>,
        hop: usize,
        text: &mut [u8],
    ) -> Option<DropReason> {
        OnionTables::count(&around.tables.cells.ended, 1);
        if let Some((sequence, _)) = parse_data(text) {
            // Only the last hop is an exit.
            if hop + 1 != circuit.hops() {
                return Some(DropReason::CellForged);
            }
            let compartment = circuit.compartment;
            let Some(session) = around.tables.own_session(compartment) else {
                return Some(DropReason::NoCircuit);
            };
            if session.stream.accept(sequence) {
                let end = End::Client(compartment);
                let queue = Some(&session.queue);
                let (packets, bytes) = self.deliver(io, around, text, end, queue);
                session.stream.note_received(packets, bytes, around.now_ms);
            }
            return None;
        }
        io.engine(ToEngine::OnionAnswer { circuit: circuit.clone(), hop, text: text.to_vec() });
        None
    }

    /// Hands the packets of a text to the TUN: at an exit under the session's
    /// lease, at a client with its compartment's address, unless its queue
    /// control refuses them. Returns how many and their bytes.
    fn deliver(
        &mut self,
        io: &mut impl Outputs,
        around: &mut Around<'_>,
        text: &[u8],
        end: End,
        queue: Option<&QueueControl>,
    ) -> (u64, u64) {
        let (mut packets, mut bytes) = (0, 0);
        for (record, partial) in Records::of(text) {
            let Some(slot) = around.gather.slot(record.len()) else { continue };
            slot.copy_from_slice(record);
            let refused = match Ip::parse(slot) {
                None => Some(DropReason::Malformed),
                Some(ip) if !self.allowed(around.routes, &ip, slot, end) => {
                    Some(DropReason::CellAddress)
                }
                Some(ip) if queue.is_some_and(|q| refuses(q, &ip, slot, around.now_ms)) => {
                    Some(DropReason::Congestion)
                }
                Some(ip) => {
                    if let Some(renamed) = Renamed::arriving(end, ip.v6) {
                        renamed.apply(&ip, slot, partial);
                    }
                    if ip.total_len <= SMALL_PACKET {
                        rewrite::clamp_mss(&ip, slot, INNER_MTU, partial);
                    }
                    around.gather.accept(&ip, partial, &mut |frame| io.tun(frame));
                    packets += 1;
                    bytes += ip.total_len as u64;
                    None
                }
            };
            if let Some(reason) = refused {
                around.gather.cancel();
                io.dropped(reason, 1);
            }
        }
        (packets, bytes)
    }

    /// From the inner address to outside the mesh, or back.
    fn allowed(&mut self, routes: &Routes, ip: &Ip, packet: &[u8], end: End) -> bool {
        let (source, destination) = (ip.source(packet), ip.destination(packet));
        let (inner, outer) = match end {
            End::Exit(_) => (source, destination),
            End::Client(_) => (destination, source),
        };
        if inner != client_address(ip.v6) {
            return false;
        }
        if self.outside == Some(outer) {
            return true;
        }
        let outside = routes.lookup(outer).is_none()
            && !routes.is_local(outer)
            && Lease::of(outer).is_none()
            && Compartment::of(outer).is_none();
        if outside {
            self.outside = Some(outer);
        }
        outside
    }
}

fn dropped(fate: Fate) -> Option<DropReason> {
    match fate {
        Fate::Dropped(reason) => Some(reason),
        Fate::Sent | Fate::Staged | Fate::TooBig(_) => None,
    }
}

/// Whose packets the open cell has, and how they go.
#[derive(Debug, Clone)]
enum Way {
    Client(Arc<ClientSession>, Arc<ClientCircuit>),
    Exit(Arc<ExitSession>, Arc<HopCircuit>),
}

impl Way {
    fn stream(&self) -> &Stream {
        match self {
            Self::Client(session, _) => &session.stream,
            Self::Exit(session, _) => &session.stream,
        }
    }

    /// Where the text begins in the buffer, and how long it may be.
    fn text(&self) -> (usize, usize) {
        match self {
            Self::Client(_, circuit) => {
                (ClientCircuit::text_at(circuit.hops().saturating_sub(1)), FORWARD_LEN)
            }
            Self::Exit(..) => (HopCircuit::TEXT_AT, BACKWARD_LEN),
        }
    }

    fn is(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Client(a, c), Self::Client(b, d)) => Arc::ptr_eq(a, b) && Arc::ptr_eq(c, d),
            (Self::Exit(a, c), Self::Exit(b, d)) => Arc::ptr_eq(a, b) && Arc::ptr_eq(c, d),
            _ => false,
        }
    }
}

/// Packs packets into cells. One per worker thread.
pub(super) struct CellWriter {
    buffer: Vec<u8>,
    /// The same text for a second circuit.
    copy: Vec<u8>,
    open: Option<Way>,
    /// Bytes of the text so far.
    used: usize,
    packets: u64,
    bytes: u64,
}

impl std::fmt::Debug for CellWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "CellWriter({} bytes)", self.used)
    }
}

impl Default for CellWriter {
    fn default() -> Self {
        Self {
            buffer: vec![0; CLIENT_BUFFER],
            copy: vec![0; CLIENT_BUFFER],
            open: None,
            used: 0,
            packets: 0,
            bytes: 0,
        }
    }
}

impl CellWriter {
    /// Sends a frame from the TUN that no peer is the owner of: to a client's
    /// lease, or out through the session of ours whose compartment it is from.
    /// `None` when it is neither.
    #[allow(clippy::too_many_arguments, reason = "as Outbound::send")]
    pub(super) fn send(
        &mut self,
        io: &mut impl Outputs,
        outbound: &mut Outbound,
        tables: &OnionTables,
        vnet: &Vnet,
        ip: &Ip,
        packet: &mut [u8],
        now_ms: u64,
    ) -> Option<Fate> {
        let (end, way) = match Lease::of(ip.destination(packet)) {
            Some(lease) => {
                let session = tables.session(lease)?;
                let circuit = session.active.load_full();
                (End::Exit(lease), circuit.map(|circuit| Way::Exit(session, circuit)))
            }
            None => {
                let compartment = Compartment::of(ip.source(packet))?;
                let session = tables.own_session(compartment)?;
                let circuit = session.active.load_full();
                (End::Client(compartment), circuit.map(|circuit| Way::Client(session, circuit)))
            }
        };
        let Some(way) = way else { return Some(Fate::Dropped(DropReason::NoCircuit)) };
        let renamed = Renamed::leaving(end, ip.v6);
        if let Some(renamed) = renamed {
            renamed.apply(ip, packet, vnet.needs_csum);
        }
        let Ok(plan) = Segments::plan(vnet, &packet[..ip.total_len], Checksums::Partial) else {
            return Some(Fate::Dropped(DropReason::Malformed));
        };
        if plan.count() == 1 && plan.is_tcp() {
            rewrite::clamp_mss(ip, packet, INNER_MTU, vnet.needs_csum);
        }
        if plan.largest() > INNER_MTU {
            // What is said of it must name it as the sender knows it.
            if let Some(renamed) = renamed {
                renamed.back().apply(ip, packet, vnet.needs_csum);
            }
            return Some(Fate::TooBig(INNER_MTU as u16));
        }
        // One class for all of a super-packet: it is the flow's.
        let queue = match &way {
            Way::Client(session, _) => Some((&session.queue, Class::of(ip, packet))),
            Way::Exit(..) => None,
        };
        for i in 0..plan.count() {
            let range = plan.build(i, packet);
            let slow = queue.is_some_and(|(q, class)| q.slows(Toward::Exit, class, now_ms));
            if slow && !rewrite::mark_congestion(ip, &mut packet[range.clone()]) {
                io.dropped(DropReason::Congestion, 1);
                continue;
            }
            self.push(io, outbound, &way, &packet[range], plan.partial(), now_ms);
        }
        Some(Fate::Sent)
    }

    fn push(
        &mut self,
        io: &mut impl Outputs,
        outbound: &mut Outbound,
        way: &Way,
        packet: &[u8],
        partial: bool,
        now_ms: u64,
    ) {
        let (at, room) = way.text();
        let need = RECORD_HEAD + packet.len();
        if self.open.as_ref().is_some_and(|open| !open.is(way) || self.used + need > room) {
            self.flush(io, outbound, now_ms);
        }
        if self.open.is_none() {
            self.open = Some(way.clone());
            self.used = HEAD_LEN;
        }
        let record = &mut self.buffer[at + self.used..at + self.used + need];
        write_record_head(record, packet.len(), partial);
        record[RECORD_HEAD..].copy_from_slice(packet);
        self.used += need;
        self.packets += 1;
        self.bytes += packet.len() as u64;
    }

    /// Seals and sends the open cell.
    pub(super) fn flush(&mut self, io: &mut impl Outputs, outbound: &mut Outbound, now_ms: u64) {
        let Some(way) = self.open.take() else { return };
        let (at, room) = way.text();
        let text = &mut self.buffer[at..at + room];
        text[self.used..].fill(0);
        let sequence = way.stream().next_sequence();
        let fate = match &way {
            Way::Client(session, circuit) => {
                let also = session.also.load();
                if let Some(second) = also.as_ref().filter(|second| !Arc::ptr_eq(second, circuit)) {
                    let hop = second.hops().saturating_sub(1);
                    let place = ClientCircuit::text_at(hop);
                    self.copy[place..place + room].copy_from_slice(text);
                    write_data_head(&mut self.copy[place..], sequence, false);
                    second.seal(hop, &mut self.copy, now_ms);
                    outbound.cell(io, &second.entry.peer, &self.copy[..CELL_LEN], now_ms);
                }
                write_data_head(text, sequence, true);
                circuit.seal(circuit.hops().saturating_sub(1), &mut self.buffer, now_ms);
                outbound.cell(io, &circuit.entry.peer, &self.buffer[..CELL_LEN], now_ms)
            }
            Way::Exit(_, circuit) => {
                write_data_head(text, sequence, false);
                circuit.seal_back(&mut self.buffer[..CELL_LEN], now_ms);
                let to = &circuit.previous.peer;
                outbound.cell(io, to, &self.buffer[..CELL_LEN], now_ms)
            }
        };
        if let Some(reason) = dropped(fate) {
            io.dropped(reason, self.packets);
        }
        way.stream().note_sent(self.packets, self.bytes, now_ms);
        (self.packets, self.bytes) = (0, 0);
    }
}
