//! Circuits once more, slowly and from `docs/protocol.md` alone: sections 21 to
//! 24, with other people's primitives. A layer is what the document says of it
//! and nothing is computed ahead or kept.

use aes::cipher::{BlockEncrypt as _, KeyInit as _};
use aes_gcm::aead::AeadInPlace;
use chacha20::cipher::{KeyIvInit as _, StreamCipher as _, StreamCipherSeek as _};
use hkdf::Hkdf;
use sha2::Sha256;
use warren_types::Suite;

pub(crate) const BODY: usize = 1388;
pub(crate) const TEXT: usize = 1364;
pub(crate) const SLOT: usize = 24;
pub(crate) const SAID: usize = 1292;

pub(crate) type Key = [u8; 32];

fn expand<const N: usize>(prk: &[u8], label: &str) -> [u8; N] {
    let mut out = [0; N];
    let info = format!("Warren v1 circuit {label}");
    Hkdf::<Sha256>::from_prk(prk).unwrap().expand(info.as_bytes(), &mut out).unwrap();
    out
}

/// One hop's keys (section 21).
#[derive(Clone)]
pub(crate) struct Hop {
    pub(crate) suite: Suite,
    pub(crate) forward_chain: Key,
    pub(crate) backward_chain: Key,
    pub(crate) forward_mask: Key,
    pub(crate) backward_mask: Key,
    pub(crate) fill: Key,
    pub(crate) stream: Key,
    pub(crate) stream_mask: Key,
    pub(crate) forward_prefix: u64,
    pub(crate) backward_prefix: u64,
}

impl Hop {
    pub(crate) fn derive(suite: Suite, hash: &[u8; 32], secrets: &[u8; 96]) -> Self {
        let (prk, _) = Hkdf::<Sha256>::extract(Some(hash), secrets);
        let prefixes: [u8; 6] = expand(&prk, "prefixes");
        let prefix = |bytes: &[u8]| bytes.iter().rev().fold(0, |n, byte| n << 8 | u64::from(*byte));
        Self {
            suite,
            forward_chain: expand(&prk, "forward chain"),
            backward_chain: expand(&prk, "backward chain"),
            forward_mask: expand(&prk, "forward mask"),
            backward_mask: expand(&prk, "backward mask"),
            fill: expand(&prk, "fill"),
            stream: expand(&prk, "stream"),
            stream_mask: expand(&prk, "stream mask"),
            forward_prefix: prefix(&prefixes[..3]),
            backward_prefix: prefix(&prefixes[3..]),
        }
    }
}

/// The key of the epoch that `number` is in (section 22).
pub(crate) fn epoch_key(chain: &Key, number: u64) -> Key {
    let mut chain = *chain;
    for _ in 0..number >> 20 {
        chain = expand(&chain, "next chain");
    }
    expand(&chain, "epoch key")
}

pub(crate) fn counter(prefix: u64, here: bool, number: u64) -> u64 {
    prefix << 40 | u64::from(here) << 39 | number
}

fn nonce(counter: u64) -> [u8; 12] {
    let mut nonce = [0; 12];
    nonce[4..].copy_from_slice(&counter.to_le_bytes());
    nonce
}

fn seal_with(suite: Suite, key: &Key, nonce: &[u8; 12], text: &mut [u8]) -> [u8; 16] {
    let tag = match suite {
        Suite::Aes256Gcm => {
            let cipher = aes_gcm::Aes256Gcm::new(key.into());
            cipher.encrypt_in_place_detached(nonce.into(), b"", text)
        }
        Suite::ChaCha20Poly1305 => {
            let cipher = chacha20poly1305::ChaCha20Poly1305::new(key.into());
            cipher.encrypt_in_place_detached(nonce.into(), b"", text)
        }
    };
    tag.unwrap().into()
}

fn open_with(suite: Suite, key: &Key, nonce: &[u8; 12], text: &mut [u8], tag: &[u8; 16]) -> bool {
    match suite {
        Suite::Aes256Gcm => {
            let cipher = aes_gcm::Aes256Gcm::new(key.into());
            cipher.decrypt_in_place_detached(nonce.into(), b"", text, tag.into()).is_ok()
        }
        Suite::ChaCha20Poly1305 => {
            let cipher = chacha20poly1305::ChaCha20Poly1305::new(key.into());
            cipher.decrypt_in_place_detached(nonce.into(), b"", text, tag.into()).is_ok()
        }
    }
}

/// The bytes that the AEAD adds to a text.
fn keystream(suite: Suite, key: &Key, nonce: &[u8; 12], len: usize) -> Vec<u8> {
    let mut stream = vec![0; len];
    seal_with(suite, key, nonce, &mut stream);
    stream
}

fn add(to: &mut [u8], stream: &[u8]) {
    to.iter_mut().zip(stream).for_each(|(a, b)| *a ^= b);
}

fn mask(suite: Suite, key: &Key, sample: &[u8; 16]) -> [u8; 16] {
    match suite {
        Suite::Aes256Gcm => {
            let mut block = (*sample).into();
            aes::Aes256::new(key.into()).encrypt_block(&mut block);
            block.into()
        }
        Suite::ChaCha20Poly1305 => {
            let block = u32::from_le_bytes(sample[..4].try_into().unwrap());
            let mut cipher = chacha20::ChaCha20::new(key.into(), sample[4..].into());
            cipher.seek(u64::from(block) * 64);
            let mut out = [0; 16];
            cipher.apply_keystream(&mut out);
            out
        }
    }
}

fn fill(suite: Suite, key: &Key, counter: u64) -> [u8; SLOT] {
    let mut out = [0; SLOT];
    match suite {
        Suite::Aes256Gcm => {
            for (i, part) in out.chunks_mut(16).enumerate() {
                let mut block = [0; 16];
                block[..8].copy_from_slice(&counter.to_le_bytes());
                block[8] = i as u8;
                let mut block = block.into();
                aes::Aes256::new(key.into()).encrypt_block(&mut block);
                part.copy_from_slice(&block[..part.len()]);
            }
        }
        Suite::ChaCha20Poly1305 => {
            chacha20::ChaCha20::new(key.into(), &nonce(counter).into()).apply_keystream(&mut out);
        }
    }
    out
}

fn masked(counter: &[u8], mask: [u8; 16]) -> [u8; 8] {
    let mut out: [u8; 8] = counter.try_into().unwrap();
    add(&mut out, &mask);
    out
}

/// The body of a forward cell for the last of `hops` (section 23), with the
/// number at each of them; `said` is filled up with zeros.
pub(crate) fn forward(hops: &[Hop], numbers: &[u64], said: &[u8]) -> Vec<u8> {
    let last = hops.len() - 1;
    let counters: Vec<u64> =
        (0..=last).map(|i| counter(hops[i].forward_prefix, i == last, numbers[i])).collect();
    let key = |i: usize| epoch_key(&hops[i].forward_chain, numbers[i]);
    let stream = |i: usize| keystream(hops[i].suite, &key(i), &nonce(counters[i]), TEXT);
    let mut filler = Vec::new();
    for (i, hop) in hops[..last].iter().enumerate() {
        let tail = stream(i).split_off(TEXT - filler.len());
        add(&mut filler, &tail);
        filler.extend(fill(hop.suite, &hop.fill, counters[i]));
    }
    let tail = stream(last).split_off(TEXT - filler.len());
    add(&mut filler, &tail);
    let mut text = said.to_vec();
    text.resize(TEXT - filler.len(), 0);
    text.extend(filler);
    let mut body = Vec::new();
    for (i, hop) in hops.iter().enumerate().rev() {
        let tag = seal_with(hop.suite, &key(i), &nonce(counters[i]), &mut text);
        let front = masked(&counters[i].to_le_bytes(), mask(hop.suite, &hop.forward_mask, &tag));
        body = [&front[..], &tag, &text].concat();
        if i > 0 {
            // What the hop before appends must be what is cut off here.
            let cut = body.split_off(TEXT);
            assert_eq!(cut, fill(hop.suite, &hops[i - 1].fill, counters[i - 1]));
            text.clone_from(&body);
        }
    }
    body
}

/// What a hop makes of a forward body: whether it ends there, its number, and
/// the text or the body for the next hop.
pub(crate) fn open(hop: &Hop, body: &[u8]) -> Option<(bool, u64, Vec<u8>)> {
    let tag: [u8; 16] = body[8..24].try_into().unwrap();
    let front = masked(&body[..8], mask(hop.suite, &hop.forward_mask, &tag));
    let counter = u64::from_le_bytes(front);
    let (here, number) = (counter >> 39 & 1 == 1, counter & ((1 << 39) - 1));
    if counter >> 40 != hop.forward_prefix {
        return None;
    }
    let mut text = body[24..].to_vec();
    let key = epoch_key(&hop.forward_chain, number);
    if !open_with(hop.suite, &key, &nonce(counter), &mut text, &tag) {
        return None;
    }
    if !here {
        text.extend(fill(hop.suite, &hop.fill, counter));
    }
    Some((here, number, text))
}

/// The body of a backward cell at the hop that makes it (section 24).
pub(crate) fn say(hop: &Hop, number: u64, said: &[u8]) -> Vec<u8> {
    let mut text = said.to_vec();
    text.resize(TEXT, 0);
    let counter = counter(hop.backward_prefix, true, number);
    let key = epoch_key(&hop.backward_chain, number);
    let tag = seal_with(hop.suite, &key, &nonce(counter), &mut text);
    let front = masked(&counter.to_le_bytes(), mask(hop.suite, &hop.backward_mask, &tag));
    [&tag[..], &front, &text].concat()
}

/// What a hop on the way adds to it.
pub(crate) fn pass(hop: &Hop, body: &[u8]) -> Vec<u8> {
    let (tag, rest) = body.split_at(16);
    let (mut tag, mut rest) = (tag.to_vec(), rest.to_vec());
    let nonce = tag[..12].try_into().unwrap();
    add(&mut rest, &keystream(hop.suite, &hop.stream, &nonce, 1372));
    add(&mut tag, &mask(hop.suite, &hop.stream_mask, rest[..16].try_into().unwrap()));
    [tag, rest].concat()
}

/// What a client finds in a backward body: the hop that made it, its number and
/// its text.
pub(crate) fn listen(hops: &[Hop], body: &[u8]) -> Option<(usize, u64, Vec<u8>)> {
    let mut body = body.to_vec();
    for (i, hop) in hops.iter().enumerate() {
        let tag: [u8; 16] = body[..16].try_into().unwrap();
        let front = masked(&body[16..24], mask(hop.suite, &hop.backward_mask, &tag));
        let counter = u64::from_le_bytes(front);
        let number = counter & ((1 << 39) - 1);
        if counter >> 40 == hop.backward_prefix {
            let mut text = body[24..].to_vec();
            let key = epoch_key(&hop.backward_chain, number);
            if open_with(hop.suite, &key, &nonce(counter), &mut text, &tag) {
                return Some((i, number, text));
            }
        }
        let (tag, rest) = body.split_at(16);
        let (mut tag, mut rest) = (tag.to_vec(), rest.to_vec());
        add(&mut tag, &mask(hop.suite, &hop.stream_mask, rest[..16].try_into().unwrap()));
        let nonce = tag[..12].try_into().unwrap();
        add(&mut rest, &keystream(hop.suite, &hop.stream, &nonce, 1372));
        body = [tag, rest].concat();
    }
    None
}
