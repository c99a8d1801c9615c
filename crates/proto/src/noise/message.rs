//! The handshake datagrams (WireGuard sections 5.4.2, 5.4.3, 5.4.7). Both
//! suites have the same layout and differ in the message type only:
//!
//! ```text
//! initiation 148: type | 0 0 0 | sender 4 | noise message 1, 108 | mac1 16 | mac2 16
//! response    92: type | 0 0 0 | sender 4 | receiver 4 | noise message 2, 48 | mac1 16 | mac2 16
//! cookie      64: type | 0 0 0 | receiver 4 | nonce 24 | sealed cookie 32
//! ```
//! Integers are little-endian. Parsing checks type, zero bytes and the exact
//! length, nothing cryptographic.

use warren_types::Suite;

/// Bytes of an initiation.
pub const INITIATION_LEN: usize = 148;
/// Bytes of a response.
pub const RESPONSE_LEN: usize = 92;
/// Bytes of a cookie reply.
pub const COOKIE_LEN: usize = 64;
/// Bytes of mac1 and of mac2.
pub const MAC_LEN: usize = 16;

/// Noise message 1: ephemeral 32, sealed static key 48, sealed timestamp 28.
pub(super) const NOISE_1: std::ops::Range<usize> = 8..116;
/// Noise message 2: ephemeral 32, sealed nothing 16.
pub(super) const NOISE_2: std::ops::Range<usize> = 12..60;

/// What a handshake datagram is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Message 1.
    Initiation,
    /// Message 2.
    Response,
    /// The answer of a loaded responder.
    CookieReply,
}

impl Kind {
    /// Length of such a datagram, bytes.
    pub fn datagram_len(self) -> usize {
        match self {
            Self::Initiation => INITIATION_LEN,
            Self::Response => RESPONSE_LEN,
            Self::CookieReply => COOKIE_LEN,
        }
    }

    /// The message type, first byte of the datagram.
    pub fn type_byte(self, suite: Suite) -> u8 {
        let low = match self {
            Self::Initiation => 1,
            Self::Response => 2,
            Self::CookieReply => 3,
        };
        match suite {
            Suite::ChaCha20Poly1305 => low,
            Suite::Aes256Gcm => 0x10 | low,
        }
    }

    /// Tells a handshake datagram by type, zero bytes and exact length.
    pub fn of(datagram: &[u8]) -> Option<(Self, Suite)> {
        let (&first, rest) = datagram.split_first()?;
        let suite = match first & 0xf0 {
            0 => Suite::ChaCha20Poly1305,
            0x10 => Suite::Aes256Gcm,
            _ => return None,
        };
        let kind = match first & 0x0f {
            1 => Self::Initiation,
            2 => Self::Response,
            3 => Self::CookieReply,
            _ => return None,
        };
        (datagram.len() == kind.datagram_len() && rest[..3] == [0; 3]).then_some((kind, suite))
    }

    pub(super) fn write_head(self, suite: Suite, out: &mut [u8]) {
        out[..4].copy_from_slice(&[self.type_byte(suite), 0, 0, 0]);
    }
}

/// The index chosen by the sender of an initiation or response.
pub fn sender(datagram: &[u8]) -> Option<u32> {
    match Kind::of(datagram)?.0 {
        Kind::Initiation | Kind::Response => u32_at(datagram, 4),
        Kind::CookieReply => None,
    }
}

/// The index of the one addressed by a response or cookie reply.
pub fn receiver(datagram: &[u8]) -> Option<u32> {
    match Kind::of(datagram)?.0 {
        Kind::Initiation => None,
        Kind::Response => u32_at(datagram, 8),
        Kind::CookieReply => u32_at(datagram, 4),
    }
}

fn u32_at(datagram: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(datagram.get(at..at + 4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_exact_lengths_and_zero_bytes_are_messages() {
        for suite in [Suite::Aes256Gcm, Suite::ChaCha20Poly1305] {
            for kind in [Kind::Initiation, Kind::Response, Kind::CookieReply] {
                let mut datagram = vec![0; kind.datagram_len()];
                kind.write_head(suite, &mut datagram);
                assert_eq!(Kind::of(&datagram), Some((kind, suite)));
                for i in 1..4 {
                    let mut bad = datagram.clone();
                    bad[i] = 1;
                    assert_eq!(Kind::of(&bad), None);
                }
                assert_eq!(Kind::of(&datagram[..datagram.len() - 1]), None);
                datagram.push(0);
                assert_eq!(Kind::of(&datagram), None);
            }
        }
        assert_eq!(Kind::of(&[]), None);
        assert_eq!(Kind::of(&[4; 148]), None);
        assert_eq!(Kind::of(&[0x21; 148]), None);
    }
}
