//! Cells: the frames of one size that circuits consist of, and where their
//! parts are. A cell is a link frame (see [`crate::link::frame`]):
//!
//! ```text
//! kind 1 | circuit 3 LE | body 1388
//! forward body:  counter 8, masked | tag 16 | text 1364
//! backward body: tag 16 | counter 8, masked | text 1364
//! ```
//! The receiver of a cell chose the circuit number, so that it finds the circuit
//! at once. Every kind is padded to the same size; with the link's own framing a
//! cell is a UDP payload of 1424 bytes.

/// Bytes before the body.
pub const HEADER_LEN: usize = 4;
/// Bytes of a body.
pub const BODY_LEN: usize = 1388;
/// Bytes of a cell, as an inner payload of a link.
pub const CELL_LEN: usize = HEADER_LEN + BODY_LEN;
/// Bytes one layer takes: masked counter and tag.
pub const SLOT_LEN: usize = 24;
/// Bytes under one layer.
pub const TEXT_LEN: usize = BODY_LEN - SLOT_LEN;
/// Most hops of a circuit.
pub const MAX_HOPS: usize = 4;
/// Bytes a client can say in one forward cell: the room of all layers is set
/// aside however many there are, so that sizes tell nothing.
pub const FORWARD_LEN: usize = BODY_LEN - MAX_HOPS * SLOT_LEN;
/// Bytes a hop can say in one backward cell.
pub const BACKWARD_LEN: usize = TEXT_LEN;

/// What a cell is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Away from the client.
    Forward = 5,
    /// Towards the client.
    Backward = 6,
    /// The first half of a handshake; the circuit number is the sender's.
    Create = 7,
    /// The second half.
    Created = 8,
    /// The circuit ended: `reason 1`.
    Destroy = 9,
}

impl Kind {
    /// The kind of a frame, by its first byte.
    pub fn of(frame: &[u8]) -> Option<Self> {
        Some(match *frame.first()? {
            5 => Self::Forward,
            6 => Self::Backward,
            7 => Self::Create,
            8 => Self::Created,
            9 => Self::Destroy,
            _ => return None,
        })
    }

    /// True for the two kinds that carry layers, which workers handle.
    pub fn is_layered(self) -> bool {
        matches!(self, Self::Forward | Self::Backward)
    }
}

/// True when an inner payload is a cell, well-formed or not.
#[inline]
pub fn is_cell(payload: &[u8]) -> bool {
    payload.first().is_some_and(|kind| (5..=9).contains(kind))
}

/// True when an inner payload is a cell that carries layers.
#[inline]
pub fn is_layered(payload: &[u8]) -> bool {
    payload.first().is_some_and(|kind| (5..=6).contains(kind))
}

/// A circuit number as one link end chose it: 24 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CircuitId(u32);

impl CircuitId {
    /// The lowest 24 bits of `value`.
    pub fn new(value: u32) -> Self {
        Self(value & 0x00ff_ffff)
    }

    /// The number.
    pub fn get(self) -> u32 {
        self.0
    }
}

/// Writes the header.
#[inline]
pub fn write_header(frame: &mut [u8], kind: Kind, circuit: CircuitId) {
    let [a, b, c, _] = circuit.0.to_le_bytes();
    frame[..HEADER_LEN].copy_from_slice(&[kind as u8, a, b, c]);
}

/// Reads a cell's header; `None` when it is no cell of the right size.
#[inline]
pub fn parse(frame: &[u8]) -> Option<(Kind, CircuitId)> {
    let kind = Kind::of(frame)?;
    let [_, a, b, c] = *frame.first_chunk::<HEADER_LEN>()?;
    (frame.len() == CELL_LEN).then_some((kind, CircuitId(u32::from_le_bytes([a, b, c, 0]))))
}

/// A cell of a kind without layers.
pub fn plain(kind: Kind, circuit: CircuitId, content: &[u8]) -> Vec<u8> {
    let mut frame = vec![0; CELL_LEN];
    write_header(&mut frame, kind, circuit);
    let len = content.len().min(BODY_LEN);
    frame[HEADER_LEN..HEADER_LEN + len].copy_from_slice(&content[..len]);
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_round_trip_and_sizes_are_checked() {
        for kind in [Kind::Forward, Kind::Backward, Kind::Create, Kind::Created, Kind::Destroy] {
            let frame = plain(kind, CircuitId::new(0xff12_3456), b"x");
            assert_eq!(parse(&frame), Some((kind, CircuitId::new(0x12_3456))));
            assert_eq!(parse(&frame[..CELL_LEN - 1]), None);
            assert!(is_cell(&frame) && is_layered(&frame) == kind.is_layered());
        }
        assert!(!is_cell(&[]) && !is_cell(&[4]) && !is_cell(&[10]) && !is_cell(&[0x45]));
    }

    #[test]
    fn a_full_ipv6_packet_fits_under_four_layers() {
        // kind and sequence 8, length 2, the smallest MTU that IPv6 allows
        const { assert!(FORWARD_LEN >= 8 + 2 + 1280) };
    }
}
