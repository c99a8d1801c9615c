//! The few primitives cells are made of, for both suites: an AEAD, the same
//! AEAD as a stream cipher, a pseudo-random function on 16 bytes, and chosen
//! bytes of the AEAD's own keystream.
//!
//! AEADs are aws-lc-rs'. Both are counter-mode ciphers, so sealing twice gives
//! the plaintext back: where only a stream is needed, the tag is thrown away
//! (AES-256-GCM that way is faster here than the library's plain counter mode).
//! Single blocks come from the `aes` and `chacha20` crates: calls that short
//! cost more than their work through an EVP interface.
//!
//! Nonces are `0^4 | counter LE` for AEADs; see `docs/protocol.md` for the rest.

use aes::Aes256Enc;
use aes::cipher::generic_array::GenericArray;
use aes::cipher::{BlockEncrypt, KeyInit};
use aws_lc_rs::aead::{
    AES_256_GCM, Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey,
};
use chacha20::ChaCha20;
use chacha20::cipher::{KeyIvInit, StreamCipher, StreamCipherSeek};
use warren_types::Suite;
use zeroize::Zeroizing;

use super::cell::{SLOT_LEN, TEXT_LEN};

/// Bytes of a key.
pub(super) const KEY_LEN: usize = 32;
/// Bytes of a tag, and of what [`Prf`] takes and gives.
pub(super) const TAG_LEN: usize = 16;
/// Most bytes of keystream that are asked for at the end of a text.
const MAX_TAIL: usize = 3 * SLOT_LEN;

/// A key, wiped when dropped.
pub(super) type Key = Zeroizing<[u8; KEY_LEN]>;

/// The tag did not verify.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BadTag;

fn counter_nonce(counter: u64) -> [u8; NONCE_LEN] {
    let mut bytes = [0; NONCE_LEN];
    bytes[4..].copy_from_slice(&counter.to_le_bytes());
    bytes
}

/// An AEAD under one key, without associated data.
pub(super) struct Aead(LessSafeKey);

impl Aead {
    pub(super) fn new(suite: Suite, key: &[u8; KEY_LEN]) -> Self {
        let algorithm = match suite {
            Suite::Aes256Gcm => &AES_256_GCM,
            Suite::ChaCha20Poly1305 => &CHACHA20_POLY1305,
        };
        let key = UnboundKey::new(algorithm, key).expect("both AEADs take 32-byte keys");
        Self(LessSafeKey::new(key))
    }

    /// Encrypts in place. A counter is used once.
    pub(super) fn seal(&self, counter: u64, text: &mut [u8]) -> [u8; TAG_LEN] {
        self.run(counter_nonce(counter), text)
    }

    /// Decrypts `text` into `out`, which is as long.
    pub(super) fn open(
        &self,
        counter: u64,
        text: &[u8],
        tag: &[u8; TAG_LEN],
        out: &mut [u8],
    ) -> Result<(), BadTag> {
        let nonce = Nonce::assume_unique_for_key(counter_nonce(counter));
        self.0.open_separate_gather(nonce, Aad::empty(), text, tag, out).map_err(|_| BadTag)
    }

    /// Adds the keystream of `nonce` to `text`: encrypts, and decrypts.
    pub(super) fn stream(&self, nonce: &[u8; NONCE_LEN], text: &mut [u8]) {
        self.run(*nonce, text);
    }

    fn run(&self, nonce: [u8; NONCE_LEN], text: &mut [u8]) -> [u8; TAG_LEN] {
        let nonce = Nonce::assume_unique_for_key(nonce);
        let tag = self
            .0
            .seal_in_place_separate_tag(nonce, Aad::empty(), text)
            .expect("a cell is far below the AEAD's length limit");
        let mut out = [0; TAG_LEN];
        out.copy_from_slice(tag.as_ref());
        out
    }
}

/// A block cipher under one key, as a pseudo-random function.
pub(super) enum Prf {
    Aes(Box<Aes256Enc>),
    ChaCha(Key),
}

impl Prf {
    pub(super) fn new(suite: Suite, key: &[u8; KEY_LEN]) -> Self {
        match suite {
            Suite::Aes256Gcm => Self::Aes(Box::new(Aes256Enc::new(GenericArray::from_slice(key)))),
            Suite::ChaCha20Poly1305 => Self::ChaCha(Zeroizing::new(*key)),
        }
    }

    /// 16 bytes for 16 bytes: AES of them; or ChaCha20 with the first four as
    /// its block counter and the rest as its nonce (as RFC 9001 section 5.4.4).
    #[inline]
    pub(super) fn mask(&self, sample: &[u8; TAG_LEN]) -> [u8; TAG_LEN] {
        let mut out = [0; TAG_LEN];
        match self {
            Self::Aes(cipher) => {
                let mut block = GenericArray::from(*sample);
                cipher.encrypt_block(&mut block);
                out.copy_from_slice(&block);
            }
            Self::ChaCha(key) => {
                let (counter, nonce) = sample.split_first_chunk::<4>().expect("16 bytes");
                let mut cipher = ChaCha20::new(GenericArray::from_slice(&key[..]), nonce.into());
                cipher.seek(64 * u64::from(u32::from_le_bytes(*counter)));
                cipher.apply_keystream(&mut out);
            }
        }
        out
    }

    /// The [`SLOT_LEN`] bytes that belong to `counter`: AES of `counter LE | 0^8`
    /// and of `counter LE | 1 | 0^7`; or the first of ChaCha20's block 0.
    #[inline]
    pub(super) fn fill(&self, counter: u64) -> [u8; SLOT_LEN] {
        let mut out = [0; SLOT_LEN];
        match self {
            Self::Aes(cipher) => {
                let mut blocks = [GenericArray::default(), GenericArray::default()];
                for (i, block) in blocks.iter_mut().enumerate() {
                    block[..8].copy_from_slice(&counter.to_le_bytes());
                    block[8] = i as u8;
                }
                cipher.encrypt_blocks(&mut blocks);
                out[..16].copy_from_slice(&blocks[0]);
                out[16..].copy_from_slice(&blocks[1][..SLOT_LEN - 16]);
            }
            Self::ChaCha(key) => {
                let key = GenericArray::from_slice(&key[..]);
                let mut cipher = ChaCha20::new(key, &counter_nonce(counter).into());
                cipher.apply_keystream(&mut out);
            }
        }
        out
    }

    /// With the AEAD's own key: adds to `text` the keystream that [`Aead::seal`]
    /// adds to the last bytes of a text of [`TEXT_LEN`] bytes.
    #[inline]
    pub(super) fn add_tail(&self, counter: u64, text: &mut [u8]) {
        let from = TEXT_LEN - text.len().min(MAX_TAIL);
        match self {
            Self::Aes(cipher) => {
                // Block i of the text has i + 2 in its last four bytes, big-endian
                // (NIST SP 800-38D section 7.1).
                const BLOCKS: usize = MAX_TAIL.div_ceil(16) + 1;
                let first = from / 16;
                let mut blocks = [GenericArray::default(); BLOCKS];
                for (i, block) in blocks.iter_mut().enumerate() {
                    block[..NONCE_LEN].copy_from_slice(&counter_nonce(counter));
                    block[NONCE_LEN..].copy_from_slice(&((first + i + 2) as u32).to_be_bytes());
                }
                cipher.encrypt_blocks(&mut blocks);
                let bytes = blocks.iter().flatten().skip(from % 16);
                text.iter_mut().zip(bytes).for_each(|(byte, stream)| *byte ^= stream);
            }
            Self::ChaCha(key) => {
                // The text begins with block 1 (RFC 8439 section 2.8).
                let key = GenericArray::from_slice(&key[..]);
                let mut cipher = ChaCha20::new(key, &counter_nonce(counter).into());
                cipher.seek(64 + from as u64);
                cipher.apply_keystream(text);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tail_is_the_end_of_the_aead_s_keystream() {
        for suite in [Suite::Aes256Gcm, Suite::ChaCha20Poly1305] {
            let key = [7; KEY_LEN];
            let (aead, prf) = (Aead::new(suite, &key), Prf::new(suite, &key));
            for counter in [0, 1, u64::MAX, 0x0123_4567_89ab_cdef] {
                let mut stream = [0; TEXT_LEN];
                aead.seal(counter, &mut stream);
                for len in [0, 1, 24, 48, 72] {
                    let mut tail = vec![0; len];
                    prf.add_tail(counter, &mut tail);
                    assert_eq!(tail, stream[TEXT_LEN - len..], "{suite} {counter} {len}");
                }
            }
        }
    }

    #[test]
    fn a_stream_added_twice_is_gone() {
        for suite in [Suite::Aes256Gcm, Suite::ChaCha20Poly1305] {
            let aead = Aead::new(suite, &[8; KEY_LEN]);
            let mut text = [5; 1372];
            aead.stream(&[9; NONCE_LEN], &mut text);
            assert_ne!(text, [5; 1372]);
            aead.stream(&[9; NONCE_LEN], &mut text);
            assert_eq!(text, [5; 1372]);
        }
    }

    /// FIPS 197 appendix C.3, and RFC 9001 appendix A.5 (its first five bytes).
    #[test]
    fn masks_are_those_of_the_standards() {
        let hex = |text: &str| data_encoding::HEXLOWER.decode(text.as_bytes()).unwrap();
        let key: [u8; 32] = std::array::from_fn(|i| i as u8);
        let sample: [u8; 16] = std::array::from_fn(|i| (i * 0x11) as u8);
        let mask = Prf::new(Suite::Aes256Gcm, &key).mask(&sample);
        assert_eq!(mask.to_vec(), hex("8ea2b7ca516745bfeafc49904b496089"));
        let key = hex("25a282b9e82f06f21f488917a4fc8f1b73573685608597d0efcb076b0ab7a7a4");
        let sample = hex("5e5cd55c41f69080575d7999c25a5bfb");
        let prf = Prf::new(Suite::ChaCha20Poly1305, &key.try_into().unwrap());
        assert_eq!(prf.mask(&sample.try_into().unwrap())[..5].to_vec(), hex("aefefe7d03"));
    }
}
