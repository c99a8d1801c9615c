//! Sealing a batch: the packets of one frame become datagrams, one after the
//! other in one buffer, as one segmented send wants them.
//!
//! The plaintext is read where it lies (segmentation writes only headers) and
//! sealed straight into the batch, so payload is not copied. A batch goes to
//! one address; all its datagrams have one length, but for a shorter last one.

use super::relay;
use super::session::{FLAG_CHECKSUM_PARTIAL, OVERHEAD, SendSession};
use crate::packet::segment::Segments;

/// Most datagrams in one batch.
pub const MAX_DATAGRAMS: usize = 64;
/// Most bytes in one batch: what one IPv4 datagram can hold.
pub const MAX_BYTES: usize = 65_507;
/// Padding goes to multiples of this many bytes, as in WireGuard.
const PADDING: usize = 16;

/// The session's message limit is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exhausted;

/// How datagrams for a node that is reached over others are sealed again: each
/// as a relay frame for the first of them.
#[derive(Debug, Clone, Copy)]
pub struct Wrap<'a> {
    /// The first relay's.
    pub session: &'a SendSession,
    /// See [`relay::RelayRoute::header`].
    pub header: &'a [u8],
    /// The relays may send fragments.
    pub may_fragment: bool,
}

/// Sealed datagrams for one address.
pub struct SealBatch {
    buffer: Vec<u8>,
    /// A relay frame before it is sealed.
    inside: Vec<u8>,
    len: usize,
    segment: usize,
    count: usize,
    /// A shorter datagram ended the batch.
    closed: bool,
}

impl std::fmt::Debug for SealBatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SealBatch({} datagrams, {} bytes)", self.count, self.len)
    }
}

impl Default for SealBatch {
    fn default() -> Self {
        Self {
            buffer: vec![0; MAX_BYTES],
            inside: Vec::new(),
            len: 0,
            segment: 0,
            count: 0,
            closed: false,
        }
    }
}

/// Bytes of plaintext for a packet of `len` bytes: a multiple of 16 unless
/// that exceeds `mtu`.
#[inline]
pub fn padded(len: usize, mtu: usize) -> usize {
    len.next_multiple_of(PADDING).min(mtu).max(len)
}

impl SealBatch {
    /// True when nothing is to be sent.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The datagrams, and the length of each but the last.
    pub fn datagrams(&self) -> (&[u8], usize) {
        (&self.buffer[..self.len], self.segment)
    }

    /// Forgets the datagrams.
    pub fn clear(&mut self) {
        self.len = 0;
        self.count = 0;
        self.closed = false;
    }

    /// How many more datagrams of `len` bytes fit.
    #[inline]
    fn room(&self, len: usize) -> usize {
        if self.count == 0 {
            return MAX_DATAGRAMS.min(MAX_BYTES / len.max(1));
        }
        if self.closed || len > self.segment {
            return 0;
        }
        (MAX_DATAGRAMS - self.count).min((MAX_BYTES - self.len) / len.max(1))
    }

    /// Seals packets of `frame`, planned as `plan`, from number `next` on, as
    /// many as fit, and returns the number of the first that did not. `frame`
    /// may have room behind the packet, which is then used for padding. With
    /// `wrap` each is sealed once more, for the first relay.
    ///
    /// # Errors
    /// [`Exhausted`] when the session may not send that much any more.
    pub fn seal(
        &mut self,
        session: &SendSession,
        plan: &Segments,
        frame: &mut [u8],
        next: usize,
        mtu: usize,
        wrap: Option<Wrap<'_>>,
    ) -> Result<usize, Exhausted> {
        let flags = if plan.partial() { FLAG_CHECKSUM_PARTIAL } else { 0 };
        let text = |range: std::ops::Range<usize>, frame: &[u8]| {
            range.start..(range.start + padded(range.len(), mtu)).min(frame.len())
        };
        let around = OVERHEAD + wrap.map_or(0, |wrap| OVERHEAD + wrap.header.len());
        let full = text(plan.range_of(next), frame).len() + around;
        let take = self.room(full).min(plan.count() - next);
        if take == 0 {
            return Ok(next);
        }
        let first = session.reserve(take as u64).ok_or(Exhausted)?;
        let first_outside = match wrap {
            Some(wrap) => wrap.session.reserve(take as u64).ok_or(Exhausted)?,
            None => 0,
        };
        for i in 0..take {
            let range = plan.build(next + i, frame);
            let text = text(range.clone(), frame);
            let datagram = text.len() + around;
            let room = &mut self.buffer[self.len..self.len + datagram];
            let out = match wrap {
                Some(Wrap { header, may_fragment, .. }) => {
                    let len = text.len() + OVERHEAD;
                    relay::prepare(&mut self.inside, header, len, may_fragment)
                }
                None => &mut *room,
            };
            let pad = text.end - range.end;
            if pad == 0 {
                session.seal_from(&frame[text], out, flags, first + i as u64);
            } else {
                // The next segment's payload may stand here: put it back.
                let mut under = [0; PADDING];
                under[..pad].copy_from_slice(&frame[range.end..text.end]);
                frame[range.end..text.end].fill(0);
                session.seal_from(&frame[text.clone()], out, flags, first + i as u64);
                frame[range.end..text.end].copy_from_slice(&under[..pad]);
            }
            if let Some(wrap) = wrap {
                wrap.session.seal_from(&self.inside, room, 0, first_outside + i as u64);
            }
            self.added(datagram);
        }
        Ok(next + take)
    }

    /// Seals `text` as it is; false when the batch has no room for it.
    ///
    /// # Errors
    /// As [`Self::seal`].
    pub fn push(&mut self, session: &SendSession, text: &[u8]) -> Result<bool, Exhausted> {
        let datagram = text.len() + OVERHEAD;
        if self.room(datagram) == 0 {
            return Ok(false);
        }
        let counter = session.reserve(1).ok_or(Exhausted)?;
        session.seal_from(text, &mut self.buffer[self.len..self.len + datagram], 0, counter);
        self.added(datagram);
        Ok(true)
    }

    fn added(&mut self, datagram: usize) {
        if self.count == 0 {
            self.segment = datagram;
        }
        self.closed = datagram < self.segment;
        self.len += datagram;
        self.count += 1;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use warren_types::{LinkPublicKey, Suite};

    use super::*;
    use crate::link::peer::PeerLink;
    use crate::link::session::{Header, RecvSession};
    use crate::packet::segment::Checksums;
    use crate::packet::segment::tests::{cut, super_packet, tcp_packet};
    use crate::packet::vnet::Vnet;

    fn sessions(suite: Suite) -> (SendSession, RecvSession) {
        let key = [9; 32];
        let peer = Arc::new(PeerLink::new(LinkPublicKey([1; 32]), suite, true));
        (SendSession::new(suite, 5, &key, 0, true), RecvSession::new(suite, 5, &key, peer, 0))
    }

    #[test]
    fn sealed_packets_open_to_the_planned_ones() {
        for suite in [Suite::Aes256Gcm, Suite::ChaCha20Poly1305] {
            for (size, tail) in [(1368u16, 64), (1368, 0), (1000, 64), (1001, 0), (13, 64)] {
                let (tx, rx) = sessions(suite);
                let data: Vec<u8> = (0..9999u32).map(|i| (i * 7) as u8).collect();
                let mut packet = tcp_packet(true, 7, 0x18, &data, 0);
                let vnet = super_packet(&mut packet, size);
                let checksums = match suite {
                    Suite::Aes256Gcm => Checksums::Partial,
                    Suite::ChaCha20Poly1305 => Checksums::Complete,
                };
                let expected = cut(&vnet, &packet, checksums);
                let plan = Segments::plan(&vnet, &packet, checksums).unwrap();
                packet.resize(packet.len() + tail, 0xaa);
                let mut batch = SealBatch::default();
                let mut next = 0;
                let mut got = Vec::new();
                while next < plan.count() {
                    next = batch.seal(&tx, &plan, &mut packet, next, 1440, None).unwrap();
                    let (bytes, segment) = batch.datagrams();
                    assert!(
                        bytes.len() <= MAX_BYTES && bytes.len().div_ceil(segment) <= MAX_DATAGRAMS
                    );
                    for one in bytes.chunks(segment) {
                        let header = Header::parse(one).unwrap();
                        assert_eq!(header.counter, got.len() as u64);
                        let mut out = vec![0; one.len() - OVERHEAD];
                        rx.open_into(&header, one, &mut out).unwrap();
                        got.push(out);
                    }
                    batch.clear();
                }
                assert_eq!(got.len(), expected.len());
                for (got, expected) in got.iter().zip(&expected) {
                    assert_eq!(&got[..expected.len()], expected);
                    assert!(got[expected.len()..].iter().all(|byte| *byte == 0));
                    assert!(tail == 0 || got.len() == padded(expected.len(), 1440));
                }
            }
        }
    }

    #[test]
    fn a_batch_ends_after_a_shorter_datagram_and_before_a_longer_one() {
        let (tx, _) = sessions(Suite::Aes256Gcm);
        let mut batch = SealBatch::default();
        let push = |batch: &mut SealBatch, len: usize| {
            let mut packet = tcp_packet(false, 1, 0x10, &vec![0; len], 0);
            let plan = Segments::plan(&Vnet::default(), &packet, Checksums::Partial).unwrap();
            batch.seal(&tx, &plan, &mut packet, 0, 1420, None).unwrap() == 1
        };
        assert!(push(&mut batch, 500));
        assert!(push(&mut batch, 500));
        assert!(!push(&mut batch, 600), "longer");
        assert!(push(&mut batch, 100));
        assert!(!push(&mut batch, 100), "after a shorter one");
        batch.clear();
        for _ in 0..MAX_DATAGRAMS {
            assert!(push(&mut batch, 10));
        }
        assert!(!push(&mut batch, 10));
    }

    #[test]
    fn padding_is_wireguards() {
        for (len, mtu, expected) in [
            (0, 1420, 0),
            (1, 1420, 16),
            (52, 1420, 64),
            (1419, 1420, 1420),
            (1420, 1420, 1420),
            (1500, 1420, 1500),
        ] {
            assert_eq!(padded(len, mtu), expected, "{len}");
        }
    }
}
