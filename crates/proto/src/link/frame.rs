//! Link frames: what two Warren nodes say to each other inside a session,
//! beside IP packets. An inner payload whose first byte is below 0x10 is a
//! frame (an IP packet starts with 0x4 or 0x6 in its high bits).
//!
//! ```text
//! echo: 0x01 request, 0x02 reply | 0 0 0 | id 4 LE | timestamp 8 LE | zeros
//! ```
//! A request may be padded with zeros to any size, to probe the path's MTU; the
//! reply echoes id and timestamp and has no padding. Unknown frames are ignored.

/// Bytes of an echo without padding.
pub const ECHO_LEN: usize = 16;

const REQUEST: u8 = 1;
const REPLY: u8 = 2;

/// True when an inner payload is a link frame and not an IP packet.
pub fn is_frame(payload: &[u8]) -> bool {
    payload.first().is_some_and(|first| *first < 0x10)
}

/// A link frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Frame {
    /// Asks for an [`Frame::EchoReply`] with the same numbers.
    EchoRequest {
        /// Chosen by the sender, tells its requests apart.
        id: u32,
        /// Opaque to the receiver.
        timestamp: u64,
    },
    /// The answer.
    EchoReply {
        /// As in the request.
        id: u32,
        /// As in the request.
        timestamp: u64,
    },
}

impl Frame {
    /// Reads a frame; `None` when it is unknown, cut short or its reserved or
    /// padding bytes are not zero.
    pub fn parse(payload: &[u8]) -> Option<Self> {
        let (head, padding) = payload.split_first_chunk::<ECHO_LEN>()?;
        if head[1..4] != [0; 3] || padding.iter().any(|b| *b != 0) {
            return None;
        }
        let id = u32::from_le_bytes(head[4..8].try_into().ok()?);
        let timestamp = u64::from_le_bytes(head[8..].try_into().ok()?);
        match head[0] {
            REQUEST => Some(Self::EchoRequest { id, timestamp }),
            REPLY if padding.is_empty() => Some(Self::EchoReply { id, timestamp }),
            _ => None,
        }
    }

    /// The wire form, padded with zeros to `size` (at least [`ECHO_LEN`]).
    pub fn encode(self, size: usize) -> Vec<u8> {
        let (kind, id, timestamp) = match self {
            Self::EchoRequest { id, timestamp } => (REQUEST, id, timestamp),
            Self::EchoReply { id, timestamp } => (REPLY, id, timestamp),
        };
        let mut out = vec![0; size.max(ECHO_LEN)];
        out[0] = kind;
        out[4..8].copy_from_slice(&id.to_le_bytes());
        out[8..16].copy_from_slice(&timestamp.to_le_bytes());
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_round_trip_and_odd_ones_are_ignored() {
        let request = Frame::EchoRequest { id: 7, timestamp: u64::MAX - 1 };
        let reply = Frame::EchoReply { id: 8, timestamp: 9 };
        for size in [0, 16, 17, 1420] {
            let wire = request.encode(size);
            assert_eq!(wire.len(), size.max(16));
            assert!(is_frame(&wire));
            assert_eq!(Frame::parse(&wire), Some(request));
        }
        assert_eq!(Frame::parse(&reply.encode(0)), Some(reply));
        assert_eq!(Frame::parse(&reply.encode(17)), None);
        let wire = request.encode(20);
        for i in [0, 1, 2, 3, 16, 19] {
            let mut bad = wire.clone();
            bad[i] ^= 0x80;
            assert_eq!(Frame::parse(&bad), None, "byte {i}");
        }
        assert_eq!(Frame::parse(&wire[..15]), None);
        assert!(!is_frame(&[]));
        assert!(!is_frame(&[0x45]));
    }
}
