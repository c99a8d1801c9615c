//! Segmentation: one TUN frame, up to 64 KiB of a flow, into packets that fit
//! the link (what a network card does for TSO and USO).
//!
//! Packets are built in place, in order: the header of segment `i` is written
//! over the end of segment `i-1`'s payload, which by then has been used. So
//! nothing but headers is ever copied.

use super::checksum::{self, Sum};
use super::ip::{Fragment, Ip, Transport};
use super::vnet::{Gso, Vnet};

/// Longest headers (IP with options or extensions, and transport) of a
/// super-packet; a longer one is refused.
pub const MAX_HEADERS: usize = 192;

const FIN_PSH: u8 = 0x01 | 0x08;
const CWR: u8 = 0x80;

/// What the link does with checksums the kernel left unfinished.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Checksums {
    /// They are finished here, for a receiver that expects real packets.
    Complete,
    /// They stay unfinished and the packet is flagged so.
    Partial,
}

/// The frame is no super-packet of the kind its header claims.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("malformed frame")]
pub struct Malformed;

/// How one frame is cut into packets.
#[derive(Debug, Clone)]
pub struct Segments {
    ip: Ip,
    transport: Option<Transport>,
    /// Bytes of all headers; 0 when the frame is sent as it is.
    header_len: usize,
    /// Payload bytes of each segment but the last.
    size: usize,
    payload: usize,
    count: usize,
    /// Packets leave with unfinished checksums.
    partial: bool,
    /// For a single packet: the checksum to finish, (start, offset).
    finish: Option<(usize, usize)>,
    /// Of the IPv4 header but for length and identification.
    ip_sum: Sum,
    /// Of the pseudo header but for the length.
    pseudo_sum: Sum,
    template: [u8; MAX_HEADERS],
}

impl Segments {
    /// Plans the segmentation of `packet`, a frame without its vnet header.
    ///
    /// # Errors
    /// [`Malformed`] when the packet is not complete or not what `vnet` says.
    pub fn plan(vnet: &Vnet, packet: &[u8], checksums: Checksums) -> Result<Self, Malformed> {
        let ip = Ip::parse(packet).ok_or(Malformed)?;
        let transport = ip.tcp_or_udp(packet);
        let (start, offset) = (usize::from(vnet.csum_start), usize::from(vnet.csum_offset));
        if vnet.needs_csum && start + offset + 2 > ip.total_len {
            return Err(Malformed);
        }
        // Only what the receiver will find by itself may stay unfinished.
        let usual =
            transport.is_some_and(|t| start == ip.transport && offset == t.checksum_offset());
        let partial = vnet.needs_csum && usual && checksums == Checksums::Partial;
        let mut plan = Self {
            ip,
            transport,
            header_len: 0,
            size: 0,
            payload: ip.total_len,
            count: 1,
            partial,
            finish: (vnet.needs_csum && !partial).then_some((start, offset)),
            ip_sum: Sum::default(),
            pseudo_sum: Sum::default(),
            template: [0; MAX_HEADERS],
        };
        if vnet.gso == Gso::None {
            return Ok(plan);
        }
        let expected = match (vnet.gso, transport, ip.v6) {
            (Gso::TcpV4, Some(Transport::Tcp { .. }), false)
            | (Gso::TcpV6, Some(Transport::Tcp { .. }), true)
            | (Gso::Udp, Some(Transport::Udp), _) => transport,
            _ => None,
        };
        let header_len = ip.transport + expected.ok_or(Malformed)?.header_len();
        if header_len > MAX_HEADERS || vnet.gso_size == 0 {
            return Err(Malformed);
        }
        plan.size = usize::from(vnet.gso_size);
        plan.payload = ip.total_len - header_len;
        plan.count = plan.payload.div_ceil(plan.size).max(1);
        plan.header_len = header_len;
        let template = &mut plan.template[..header_len];
        template.copy_from_slice(&packet[..header_len]);
        if !ip.v6 {
            // Length and identification are added for each packet.
            template[10..12].fill(0);
            let sum = Sum::default().bytes(&template[..2]).bytes(&template[6..ip.transport]);
            plan.ip_sum = sum;
        }
        plan.pseudo_sum = Sum::default().bytes(ip.addresses(packet)).number(u16::from(ip.protocol));
        Ok(plan)
    }

    /// The layout of the whole frame.
    pub fn ip(&self) -> &Ip {
        &self.ip
    }

    /// Number of packets.
    pub fn count(&self) -> usize {
        self.count
    }

    /// True when the packets' checksums are left unfinished.
    pub fn partial(&self) -> bool {
        self.partial
    }

    /// Bytes of the largest packet.
    pub fn largest(&self) -> usize {
        self.len_of(0)
    }

    /// Bytes of all packets together.
    pub fn total_bytes(&self) -> u64 {
        (self.header_len * self.count + self.payload) as u64
    }

    /// True for a TCP packet or super-packet.
    pub fn is_tcp(&self) -> bool {
        matches!(self.transport, Some(Transport::Tcp { .. })) && self.ip.fragment == Fragment::No
    }

    /// Bytes of packet `index`; the last is the only one that may be shorter.
    #[inline]
    pub fn len_of(&self, index: usize) -> usize {
        if self.header_len == 0 {
            return self.payload;
        }
        self.header_len + self.payload.saturating_sub(index * self.size).min(self.size)
    }

    /// Where packet `index` stands in the frame once built.
    #[inline]
    pub fn range_of(&self, index: usize) -> std::ops::Range<usize> {
        let start = if self.header_len == 0 { 0 } else { index * self.size };
        start..start + self.len_of(index)
    }

    /// Builds packet `index` and returns where in `packet` it is. To be called
    /// once for each, in ascending order; `packet` is the planned frame.
    #[inline]
    pub fn build(&self, index: usize, packet: &mut [u8]) -> std::ops::Range<usize> {
        if self.header_len == 0 {
            if let Some((start, offset)) = self.finish
                && let Some(packet) = packet.get_mut(..self.ip.total_len)
            {
                checksum::complete(packet, start, offset);
            }
            return 0..self.payload;
        }
        let range = self.range_of(index);
        let one = &mut packet[range.clone()];
        self.write_headers(index, one);
        range
    }

    /// `one` is a packet whose payload is in place.
    #[inline]
    fn write_headers(&self, index: usize, one: &mut [u8]) {
        let len = one.len();
        one[..self.header_len].copy_from_slice(&self.template[..self.header_len]);
        if self.ip.v6 {
            one[4..6].copy_from_slice(&((len - 40) as u16).to_be_bytes());
        } else {
            let id = u16::from_be_bytes([one[4], one[5]]).wrapping_add(index as u16);
            one[2..4].copy_from_slice(&(len as u16).to_be_bytes());
            one[4..6].copy_from_slice(&id.to_be_bytes());
            let sum = self.ip_sum.number(len as u16).number(id).complete();
            one[10..12].copy_from_slice(&sum);
        }
        let transport = &mut one[self.ip.transport..];
        let transport_len = transport.len() as u16;
        let field = match self.transport {
            Some(Transport::Tcp { .. }) => {
                let sequence =
                    u32::from_be_bytes([transport[4], transport[5], transport[6], transport[7]]);
                let sequence = sequence.wrapping_add((index * self.size) as u32);
                transport[4..8].copy_from_slice(&sequence.to_be_bytes());
                if index + 1 < self.count {
                    transport[13] &= !FIN_PSH;
                }
                if index > 0 {
                    transport[13] &= !CWR;
                }
                16
            }
            _ => {
                transport[4..6].copy_from_slice(&transport_len.to_be_bytes());
                6
            }
        };
        let pseudo = self.pseudo_sum.number(transport_len);
        if self.partial {
            transport[field..field + 2].copy_from_slice(&pseudo.partial());
        } else {
            transport[field..field + 2].fill(0);
            let mut sum = pseudo.bytes(transport).complete();
            if sum == [0, 0] {
                sum = [0xff, 0xff];
            }
            transport[field..field + 2].copy_from_slice(&sum);
        }
    }
}

#[cfg(test)]
#[path = "segment_tests.rs"]
pub(crate) mod tests;
