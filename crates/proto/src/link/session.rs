//! One handshake's transport keys. A [`SendSession`] seals, a [`RecvSession`]
//! opens; both are immutable but for an atomic counter and the replay window.
//!
//! Wire format (WireGuard section 5.4.6): `type 1 | flags 1 | 0 0 |
//! receiver 4 LE | counter 8 LE | ciphertext | tag 16`. For
//! `chacha20poly1305`: type 4, flags 0, no associated data, nonce
//! `0^4 | counter LE`. For `aes256gcm`: type 0x14, the 16 header bytes are
//! associated data, nonce `0^4 | counter BE` (Noise's AESGCM).

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use aws_lc_rs::aead::{
    AES_256_GCM, Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey,
};
use warren_types::Suite;

use super::peer::PeerLink;
use super::replay::ReplayWindow;

/// Bytes before the ciphertext.
pub const HEADER_LEN: usize = 16;
/// Bytes of the AEAD tag.
pub const TAG_LEN: usize = 16;
/// Bytes a transport message adds to its payload.
pub const OVERHEAD: usize = HEADER_LEN + TAG_LEN;
/// A counter is never used from here on (WireGuard section 6.1).
pub const REJECT_AFTER_MESSAGES: u64 = u64::MAX - (1 << 13);
/// A new handshake starts from here on.
pub const REKEY_AFTER_MESSAGES: u64 = 1 << 60;

/// Message type of transport data in WireGuard's format.
pub const TYPE_TRANSPORT_WIREGUARD: u8 = 4;
/// Message type of transport data in suite `aes256gcm`.
pub const TYPE_TRANSPORT_AES: u8 = 0x14;

/// Header flag of suite `aes256gcm`: the inner packet's TCP or UDP checksum
/// field holds only the pseudo-header sum, as in Linux's CHECKSUM_PARTIAL; the
/// receiver completes it or lets its kernel do so.
pub const FLAG_CHECKSUM_PARTIAL: u8 = 1;

fn aead_key(suite: Suite, key: &[u8; 32]) -> LessSafeKey {
    let algorithm = match suite {
        Suite::Aes256Gcm => &AES_256_GCM,
        Suite::ChaCha20Poly1305 => &CHACHA20_POLY1305,
    };
    LessSafeKey::new(UnboundKey::new(algorithm, key).expect("both AEADs take 32-byte keys"))
}

fn nonce(suite: Suite, counter: u64) -> Nonce {
    let mut bytes = [0; NONCE_LEN];
    match suite {
        Suite::Aes256Gcm => bytes[4..].copy_from_slice(&counter.to_be_bytes()),
        Suite::ChaCha20Poly1305 => bytes[4..].copy_from_slice(&counter.to_le_bytes()),
    }
    Nonce::assume_unique_for_key(bytes)
}

/// Writes the 16-byte transport header.
pub fn write_header(
    out: &mut [u8; HEADER_LEN],
    suite: Suite,
    flags: u8,
    receiver: u32,
    counter: u64,
) {
    let kind = match suite {
        Suite::Aes256Gcm => TYPE_TRANSPORT_AES,
        Suite::ChaCha20Poly1305 => TYPE_TRANSPORT_WIREGUARD,
    };
    out[..4].copy_from_slice(&[kind, flags, 0, 0]);
    out[4..8].copy_from_slice(&receiver.to_le_bytes());
    out[8..].copy_from_slice(&counter.to_le_bytes());
}

/// A parsed transport header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Suite named by the message type.
    pub suite: Suite,
    /// [`FLAG_CHECKSUM_PARTIAL`] or 0.
    pub flags: u8,
    /// The receiver's session index.
    pub receiver: u32,
    /// Message counter.
    pub counter: u64,
}

impl Header {
    /// Reads a transport header; `None` when `datagram` is no transport
    /// message, too short for its tag, or has unknown flags.
    pub fn parse(datagram: &[u8]) -> Option<Self> {
        if datagram.len() < OVERHEAD || datagram[2] != 0 || datagram[3] != 0 {
            return None;
        }
        let suite = match (datagram[0], datagram[1]) {
            (TYPE_TRANSPORT_WIREGUARD, 0) => Suite::ChaCha20Poly1305,
            (TYPE_TRANSPORT_AES, 0 | FLAG_CHECKSUM_PARTIAL) => Suite::Aes256Gcm,
            _ => return None,
        };
        Some(Self {
            suite,
            flags: datagram[1],
            receiver: u32::from_le_bytes(datagram[4..8].try_into().ok()?),
            counter: u64::from_le_bytes(datagram[8..16].try_into().ok()?),
        })
    }
}

/// The sending half of a session.
pub struct SendSession {
    suite: Suite,
    receiver: u32,
    key: LessSafeKey,
    counter: AtomicU64,
    /// When the session was made, milliseconds on the engine's clock.
    pub created_ms: u64,
    /// True when we started the handshake (initiators rekey by age).
    pub initiator: bool,
}

impl SendSession {
    /// A sending half; `receiver` is the index the peer chose.
    pub fn new(
        suite: Suite,
        receiver: u32,
        key: &[u8; 32],
        created_ms: u64,
        initiator: bool,
    ) -> Self {
        Self {
            suite,
            receiver,
            key: aead_key(suite, key),
            counter: AtomicU64::new(0),
            created_ms,
            initiator,
        }
    }

    /// The session's suite.
    pub fn suite(&self) -> Suite {
        self.suite
    }

    /// The receiver index written into each header.
    pub fn receiver(&self) -> u32 {
        self.receiver
    }

    /// Takes `n` consecutive counters and returns the first; `None` past the
    /// message limit (the session must then be dropped).
    pub fn reserve(&self, n: u64) -> Option<u64> {
        let first = self.counter.fetch_add(n, Ordering::Relaxed);
        if first < REJECT_AFTER_MESSAGES && first + n <= REJECT_AFTER_MESSAGES {
            return Some(first);
        }
        // Stay at the limit, so that the counter can never wrap.
        self.counter.store(REJECT_AFTER_MESSAGES, Ordering::Relaxed);
        None
    }

    /// Messages sent so far.
    pub fn messages(&self) -> u64 {
        self.counter.load(Ordering::Relaxed)
    }

    #[cfg(test)]
    pub(crate) fn set_counter(&self, counter: u64) {
        self.counter.store(counter, Ordering::Relaxed);
    }

    /// Seals in place. `message` is `header 16 | plaintext | tag 16`; header
    /// and tag are written here. `counter` comes from [`Self::reserve`] and is
    /// used once.
    pub fn seal(&self, message: &mut [u8], flags: u8, counter: u64) {
        let len = message.len();
        let (header, rest) =
            message.split_first_chunk_mut::<HEADER_LEN>().expect("room for the header");
        let (text, tag_out) = rest.split_at_mut(len - OVERHEAD);
        write_header(header, self.suite, flags, self.receiver, counter);
        let aad: &[u8] = match self.suite {
            Suite::Aes256Gcm => &header[..],
            Suite::ChaCha20Poly1305 => &[],
        };
        let tag = self
            .key
            .seal_in_place_separate_tag(nonce(self.suite, counter), Aad::from(aad), text)
            .expect("a packet is far below the AEAD's length limit");
        tag_out.copy_from_slice(tag.as_ref());
    }
}

impl SendSession {
    /// Seals `text` into `message`, which is `header 16 | ciphertext | tag 16`
    /// and exactly `text.len() + OVERHEAD` long. `counter` as for [`Self::seal`].
    pub fn seal_from(&self, text: &[u8], message: &mut [u8], flags: u8, counter: u64) {
        let (header, rest) =
            message.split_first_chunk_mut::<HEADER_LEN>().expect("room for the header");
        let (text_out, tag_out) = rest.split_at_mut(text.len());
        write_header(header, self.suite, flags, self.receiver, counter);
        let aad: &[u8] = match self.suite {
            Suite::Aes256Gcm => &header[..],
            Suite::ChaCha20Poly1305 => &[],
        };
        self.key
            .seal_out_of_place_scatter(
                nonce(self.suite, counter),
                Aad::from(aad),
                text,
                text_out,
                &[],
                tag_out,
            )
            .expect("the lengths agree and are far below the AEAD's limit");
    }
}

impl std::fmt::Debug for SendSession {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SendSession({}, {:#x}, key redacted)", self.suite, self.receiver)
    }
}

/// The receiving half of a session.
pub struct RecvSession {
    suite: Suite,
    /// The index we chose; the peer writes it into each header.
    pub local_index: u32,
    key: LessSafeKey,
    /// Locked once per batch; a session's packets arrive at one worker.
    pub replay: Mutex<ReplayWindow>,
    /// Who sends on it.
    pub peer: Arc<PeerLink>,
    /// When the session was made, milliseconds on the engine's clock.
    pub created_ms: u64,
    /// Set by a worker at the first message that authenticates: the engine
    /// then promotes a responder's session to be the sending one.
    pub confirmed: std::sync::atomic::AtomicBool,
}

/// The tag did not verify.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BadTag;

impl RecvSession {
    /// A receiving half under our index `local_index`.
    pub fn new(
        suite: Suite,
        local_index: u32,
        key: &[u8; 32],
        peer: Arc<PeerLink>,
        created_ms: u64,
    ) -> Self {
        Self {
            suite,
            local_index,
            key: aead_key(suite, key),
            replay: Mutex::new(ReplayWindow::default()),
            peer,
            created_ms,
            confirmed: std::sync::atomic::AtomicBool::new(false),
        }
    }

    /// The session's suite; a header that names another is refused.
    pub fn suite(&self) -> Suite {
        self.suite
    }

    /// Opens `datagram` (header, ciphertext, tag) into `out`, which must have
    /// exactly the plaintext's length (`datagram.len() - OVERHEAD`). The caller
    /// checks the replay window before and marks it after.
    pub fn open_into(
        &self,
        header: &Header,
        datagram: &[u8],
        out: &mut [u8],
    ) -> Result<(), BadTag> {
        let (head, rest) = datagram.split_at(HEADER_LEN);
        let (text, tag) = rest.split_at(rest.len() - TAG_LEN);
        let aad: &[u8] = match self.suite {
            Suite::Aes256Gcm => head,
            Suite::ChaCha20Poly1305 => &[],
        };
        self.key
            .open_separate_gather(nonce(self.suite, header.counter), Aad::from(aad), text, tag, out)
            .map_err(|_| BadTag)
    }
}

impl std::fmt::Debug for RecvSession {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RecvSession({}, {:#x}, key redacted)", self.suite, self.local_index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(suite: Suite) -> (SendSession, RecvSession) {
        let key = [5; 32];
        let peer = Arc::new(PeerLink::new(warren_types::LinkPublicKey([1; 32]), suite, true));
        (SendSession::new(suite, 77, &key, 0, true), RecvSession::new(suite, 77, &key, peer, 0))
    }

    #[test]
    fn seals_and_opens_in_both_suites() {
        for suite in [Suite::Aes256Gcm, Suite::ChaCha20Poly1305] {
            let (tx, rx) = pair(suite);
            let mut message = vec![0; OVERHEAD + 5];
            message[16..21].copy_from_slice(b"hello");
            let counter = tx.reserve(1).unwrap();
            tx.seal(&mut message, 0, counter);
            let header = Header::parse(&message).unwrap();
            assert_eq!((header.suite, header.receiver, header.counter), (suite, 77, 0));
            let mut out = [0; 5];
            rx.open_into(&header, &message, &mut out).unwrap();
            assert_eq!(&out, b"hello");
            for i in 16..message.len() {
                let mut bad = message.clone();
                bad[i] ^= 1;
                assert_eq!(rx.open_into(&header, &bad, &mut out), Err(BadTag));
            }
        }
    }

    #[test]
    fn aes_authenticates_the_flags() {
        let (tx, rx) = pair(Suite::Aes256Gcm);
        let mut message = vec![0; OVERHEAD + 3];
        tx.seal(&mut message, FLAG_CHECKSUM_PARTIAL, 0);
        message[1] = 0;
        let header = Header::parse(&message).unwrap();
        assert_eq!(rx.open_into(&header, &message, &mut [0; 3]), Err(BadTag));
    }

    #[test]
    fn the_message_limit_is_enforced_and_does_not_wrap() {
        let (tx, _) = pair(Suite::Aes256Gcm);
        tx.set_counter(REJECT_AFTER_MESSAGES - 1);
        assert!(tx.reserve(1).is_some());
        for _ in 0..10 {
            assert_eq!(tx.reserve(u64::from(u32::MAX)), None);
        }
        assert_eq!(tx.reserve(1), None);
    }
}
