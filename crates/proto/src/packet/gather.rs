//! Coalescing: packets of one flow, one after the other, into one super-packet
//! for the TUN (what generic receive offload does in a kernel).
//!
//! A packet is decrypted straight to where its payload belongs: its headers
//! then lie over the last bytes of the payload before it, which are saved and
//! put back once the headers were compared. So payload is never moved, unless
//! the packet turns out not to belong to the flow.
//!
//! Rules, as Linux and wireguard-go have them: same headers but for length,
//! checksum, identification and sequence number; contiguous sequence numbers;
//! plain ACK segments with payload; only the last segment may be shorter;
//! checksums are right, or left unfinished in all of them. Unlike there, PSH
//! does not end a frame but is carried over to it: frames end with the batch
//! anyway, so nobody waits, and bulk senders push every 64 KiB.

use super::checksum::{self, Sum};
use super::ip::{Ip, PROTO_TCP, PROTO_UDP, Transport};
use super::segment::MAX_HEADERS;
use super::vnet::{Gso, VNET_LEN, Vnet};

/// Largest frame: what the IPv4 length field can say.
const MAX_FRAME: usize = 65_535;
/// Largest packet one slot takes.
pub const MAX_SLOT: usize = 65_535;
const START: usize = VNET_LEN;
/// UDP datagrams per super-packet (the kernel's own limit for sending).
const MAX_UDP_SEGMENTS: usize = 64;

const ACK: u8 = 0x10;
const PSH: u8 = 0x08;

/// What the TUN can take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Unfinished checksums.
    pub checksum: bool,
    /// TCP super-packets; needs `checksum`.
    pub tcp: bool,
    /// UDP super-packets; needs `checksum`.
    pub udp: bool,
}

impl Limits {
    /// A TUN with every offload.
    pub const ALL: Self = Self { checksum: true, tcp: true, udp: true };
    /// A TUN that takes complete single packets only.
    pub const NONE: Self = Self { checksum: false, tcp: false, udp: false };
}

#[derive(Debug, Clone, Copy)]
struct Flow {
    ip: Ip,
    transport: Transport,
    header_len: usize,
    /// Payload of each segment but the last.
    size: usize,
    count: usize,
    /// TCP sequence number of the next segment.
    next_sequence: u32,
    /// Checksums are left unfinished.
    partial: bool,
    /// The first packet's own checksum was found right.
    verified: bool,
}

/// One frame under construction.
pub struct Gather {
    /// `vnet header | frame | room for the next packet`.
    buffer: Vec<u8>,
    limits: Limits,
    /// End of the frame; `START` when there is none.
    end: usize,
    flow: Option<Flow>,
    /// Where the next packet is being opened, and how long it may be.
    slot: usize,
    saved: [u8; MAX_HEADERS],
}

impl std::fmt::Debug for Gather {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Gather({} bytes, {:?})", self.end - START, self.flow.map(|flow| flow.count))
    }
}

impl Gather {
    /// An empty frame for a TUN that takes `limits`.
    pub fn new(limits: Limits) -> Self {
        Self {
            buffer: vec![0; START + MAX_FRAME + MAX_SLOT],
            limits,
            end: START,
            flow: None,
            slot: START,
            saved: [0; MAX_HEADERS],
        }
    }

    /// Room for the next packet, `len` bytes (at most [`MAX_SLOT`], else
    /// `None`). Follow with [`Self::accept`] or [`Self::cancel`].
    pub fn slot(&mut self, len: usize) -> Option<&mut [u8]> {
        if len > MAX_SLOT {
            return None;
        }
        let overlap = self.overlap();
        self.slot = self.end - overlap;
        self.saved[..overlap].copy_from_slice(&self.buffer[self.slot..self.end]);
        Some(&mut self.buffer[self.slot..self.slot + len])
    }

    fn overlap(&self) -> usize {
        self.flow.map_or(0, |flow| flow.header_len)
    }

    /// The bytes of the slot, `len` as given to [`Self::slot`] or less.
    pub fn packet_mut(&mut self, len: usize) -> &mut [u8] {
        let len = len.min(MAX_SLOT);
        &mut self.buffer[self.slot..self.slot + len]
    }

    /// Gives the slot up: it failed to open, or went elsewhere.
    pub fn cancel(&mut self) {
        let overlap = self.overlap();
        self.buffer[self.slot..self.end].copy_from_slice(&self.saved[..overlap]);
        self.slot = self.end;
    }

    /// Takes the packet in the slot, parsed as `ip`; `partial` when its
    /// checksum is unfinished. Frames that are ready go to `write`.
    pub fn accept(&mut self, ip: &Ip, partial: bool, write: &mut impl FnMut(&[u8])) {
        let len = ip.total_len;
        if self.flow.is_some() {
            if self.try_join(ip, partial, write) {
                return;
            }
            // The packet starts a frame of its own: finish the one before it.
            let overlap = self.overlap();
            let head = overlap.min(len);
            let mut headers = [0; MAX_HEADERS];
            headers[..head].copy_from_slice(&self.buffer[self.slot..self.slot + head]);
            self.buffer[self.slot..self.end].copy_from_slice(&self.saved[..overlap]);
            let (rest, rest_end) = (self.slot + head, self.slot + len);
            let tail_at = START + head;
            self.emit(write);
            self.buffer.copy_within(rest..rest_end, tail_at);
            self.buffer[START..tail_at].copy_from_slice(&headers[..head]);
        }
        self.start(ip, partial, write);
    }

    /// Writes what is still open.
    pub fn finish(&mut self, write: &mut impl FnMut(&[u8])) {
        if self.flow.is_some() {
            self.emit(write);
        }
    }

    /// A packet stands at the start of the buffer; opens a frame with it or
    /// writes it at once.
    fn start(&mut self, ip: &Ip, partial: bool, write: &mut impl FnMut(&[u8])) {
        self.end = START + ip.total_len;
        let packet = &mut self.buffer[START..self.end];
        let transport = ip.tcp_or_udp(packet);
        if let Some(transport) = transport
            && let Some(flow) = open_flow(self.limits, ip, transport, partial, packet)
        {
            self.flow = Some(flow);
            return;
        }
        let mut vnet = Vnet::default();
        if partial && let Some(transport) = transport {
            let (start, offset) = (ip.transport, transport.checksum_offset());
            if self.limits.checksum {
                vnet = unfinished(start, offset, start + transport.header_len());
            } else {
                checksum::complete(packet, start, offset);
            }
        }
        self.write_out(&vnet, write);
    }

    fn try_join(&mut self, ip: &Ip, partial: bool, write: &mut impl FnMut(&[u8])) -> bool {
        let Some(flow) = self.flow else { return false };
        let header_len = flow.header_len;
        let Some(payload) = ip.total_len.checked_sub(header_len).filter(|n| *n > 0) else {
            return false;
        };
        let fits = self.end - START + payload <= MAX_FRAME
            && payload <= flow.size
            && (flow.transport != Transport::Udp || flow.count < MAX_UDP_SEGMENTS);
        if !fits || partial != flow.partial {
            return false;
        }
        let (frame, next) = (&self.buffer[START..START + header_len], &self.buffer[self.slot..]);
        let Some(next) = next.get(..ip.total_len) else { return false };
        if !same_flow(&flow, frame, next) {
            return false;
        }
        let mut flow = flow;
        if !partial {
            if !checksum::transport_is_valid(ip, next) || !ipv4_header_is_valid(ip, next) {
                return false;
            }
            if !flow.verified {
                // The first packet is intact but for the bytes under the slot.
                self.verify_first(&mut flow);
                self.flow = Some(flow);
                if !flow.verified {
                    return false;
                }
            }
        }
        let pushed = flow.transport != Transport::Udp
            && self.buffer[self.slot + ip.transport + 13] & PSH != 0;
        self.buffer[self.slot..self.end].copy_from_slice(&self.saved[..header_len]);
        if pushed {
            self.buffer[START + flow.ip.transport + 13] |= PSH;
        }
        self.end += payload;
        flow.count += 1;
        flow.next_sequence = flow.next_sequence.wrapping_add(payload as u32);
        self.flow = Some(flow);
        if payload < flow.size || self.end - START + flow.size > MAX_FRAME {
            self.emit(write);
        }
        true
    }

    /// Checks the first packet's checksums, for which the bytes under the slot
    /// are exchanged for the saved ones and back.
    fn verify_first(&mut self, flow: &mut Flow) {
        let overlap = flow.header_len;
        let under = self.slot..self.end;
        let mut headers = [0; MAX_HEADERS];
        headers[..overlap].copy_from_slice(&self.buffer[under.clone()]);
        self.buffer[under.clone()].copy_from_slice(&self.saved[..overlap]);
        let first = &self.buffer[START..self.end];
        flow.verified =
            checksum::transport_is_valid(&flow.ip, first) && ipv4_header_is_valid(&flow.ip, first);
        self.buffer[under].copy_from_slice(&headers[..overlap]);
    }

    /// Writes the open frame.
    fn emit(&mut self, write: &mut impl FnMut(&[u8])) {
        let Some(flow) = self.flow.take() else { return };
        let (start, offset) = (flow.ip.transport, flow.transport.checksum_offset());
        let mut vnet = Vnet::default();
        if flow.count > 1 {
            let total = self.end - START;
            let packet = &mut self.buffer[START..self.end];
            if flow.ip.v6 {
                packet[4..6].copy_from_slice(&((total - 40) as u16).to_be_bytes());
            } else {
                packet[2..4].copy_from_slice(&(total as u16).to_be_bytes());
                checksum::write_ipv4_header(packet, start);
            }
            if flow.transport == Transport::Udp {
                packet[start + 4..start + 6]
                    .copy_from_slice(&((total - start) as u16).to_be_bytes());
            }
            let sum = Sum::default().pseudo(
                flow.ip.addresses(packet),
                flow.transport.protocol(),
                total - start,
            );
            packet[start + offset..start + offset + 2].copy_from_slice(&sum.partial());
            vnet = unfinished(start, offset, flow.header_len);
            vnet.gso_size = flow.size as u16;
            vnet.gso = match (flow.transport, flow.ip.v6) {
                (Transport::Udp, _) => Gso::Udp,
                (Transport::Tcp { .. }, false) => Gso::TcpV4,
                (Transport::Tcp { .. }, true) => Gso::TcpV6,
            };
        } else if flow.partial {
            vnet = unfinished(start, offset, flow.header_len);
        }
        self.write_out(&vnet, write);
    }

    fn write_out(&mut self, vnet: &Vnet, write: &mut impl FnMut(&[u8])) {
        if let Some(header) = self.buffer.first_chunk_mut::<VNET_LEN>() {
            vnet.encode(header);
        }
        write(&self.buffer[..self.end]);
        self.flow = None;
        self.end = START;
        self.slot = START;
    }
}

fn unfinished(start: usize, offset: usize, header_len: usize) -> Vnet {
    Vnet {
        needs_csum: true,
        gso: Gso::None,
        hdr_len: header_len as u16,
        gso_size: 0,
        csum_start: start as u16,
        csum_offset: offset as u16,
    }
}

fn ipv4_header_is_valid(ip: &Ip, packet: &[u8]) -> bool {
    ip.v6
        || packet.get(..ip.transport).is_some_and(|header| Sum::default().bytes(header).is_valid())
}

/// A flow that `packet` may begin; `None` when nothing can be added to it.
fn open_flow(
    limits: Limits,
    ip: &Ip,
    transport: Transport,
    partial: bool,
    packet: &[u8],
) -> Option<Flow> {
    let header_len = ip.transport + transport.header_len();
    let size = ip.total_len.checked_sub(header_len).filter(|n| *n > 0)?;
    if header_len > MAX_HEADERS || !limits.checksum {
        return None;
    }
    let mut next_sequence = 0;
    let header = packet.get(ip.transport..header_len)?;
    match transport {
        Transport::Tcp { .. } => {
            if !limits.tcp || ip.protocol != PROTO_TCP || header[13] & !PSH != ACK {
                return None;
            }
            let sequence = u32::from_be_bytes([header[4], header[5], header[6], header[7]]);
            next_sequence = sequence.wrapping_add(size as u32);
        }
        Transport::Udp => {
            let length = usize::from(u16::from_be_bytes([header[4], header[5]]));
            let unsummed = header[6..8] == [0, 0] && !partial;
            if !limits.udp
                || ip.protocol != PROTO_UDP
                || unsummed
                || length != ip.total_len - ip.transport
            {
                return None;
            }
        }
    }
    Some(Flow {
        ip: *ip,
        transport,
        header_len,
        size,
        count: 1,
        next_sequence,
        partial,
        verified: partial,
    })
}

/// True when `next`, a whole packet, continues the flow whose first headers
/// are `first`.
fn same_flow(flow: &Flow, first: &[u8], next: &[u8]) -> bool {
    let (l4, end) = (flow.ip.transport, flow.header_len);
    let Some(header) = next.get(..end) else { return false };
    let same = |from: usize, to: usize| first[from..to] == header[from..to];
    let ip_same = if flow.ip.v6 {
        same(0, 4) && same(6, l4)
    } else {
        let id = |bytes: &[u8]| u16::from_be_bytes([bytes[4], bytes[5]]);
        // Without DF the identification matters: it must count up by one.
        let in_order =
            first[6] & 0x40 != 0 || id(header) == id(first).wrapping_add(flow.count as u16);
        in_order && same(0, 2) && same(6, 10) && same(12, l4)
    };
    if !ip_same {
        return false;
    }
    match flow.transport {
        Transport::Tcp { .. } => {
            let sequence = u32::from_be_bytes([
                header[l4 + 4],
                header[l4 + 5],
                header[l4 + 6],
                header[l4 + 7],
            ]);
            same(l4, l4 + 4)
                && sequence == flow.next_sequence
                && same(l4 + 8, l4 + 13)
                && header[l4 + 13] & !PSH == first[l4 + 13] & !PSH
                && same(l4 + 14, l4 + 16)
                && same(l4 + 18, end)
        }
        Transport::Udp => {
            let length = usize::from(u16::from_be_bytes([header[l4 + 4], header[l4 + 5]]));
            same(l4, l4 + 4)
                && length == next.len() - l4
                && (flow.partial || header[l4 + 6..l4 + 8] != [0, 0])
        }
    }
}

#[cfg(test)]
#[path = "gather_tests.rs"]
mod tests;
