//! The handshake against a slow, independent reference of WireGuard's paper,
//! byte for byte, and its refusals. The reference shares no code with the
//! implementation but BLAKE2s itself and the AEADs: X25519 is dalek's, HMAC
//! and KDF are spelled out from section 5.4 of the paper.

use super::*;
use crate::noise::mac::{MacKey, mac1_ok};
use crate::test_rng::TestRng;
use rand_core::RngCore;
use std::time::Duration;

mod reference {
    use aws_lc_rs::aead::{AES_256_GCM, Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
    use blake2::{Blake2s256, Digest};
    use warren_types::Suite;
    use x25519_dalek::{PublicKey, StaticSecret};

    type Bytes = [u8; 32];

    fn hash(parts: &[&[u8]]) -> Bytes {
        let mut h = Blake2s256::new();
        parts.iter().for_each(|p| h.update(p));
        h.finalize().into()
    }

    /// RFC 2104 with BLAKE2s: blocks of 64 bytes.
    fn hmac(key: &[u8], input: &[u8]) -> Bytes {
        let mut block = [0u8; 64];
        block[..key.len()].copy_from_slice(key);
        let inner = block.map(|b| b ^ 0x36);
        let outer = block.map(|b| b ^ 0x5c);
        hash(&[&outer, &hash(&[&inner, input])])
    }

    /// The paper's KDF_n.
    fn kdf<const N: usize>(key: &[u8], input: &[u8]) -> [Bytes; N] {
        let t0 = hmac(key, input);
        let mut out = [[0; 32]; N];
        let mut previous: Vec<u8> = Vec::new();
        for (i, slot) in out.iter_mut().enumerate() {
            previous.push(i as u8 + 1);
            *slot = hmac(&t0, &previous);
            previous = slot.to_vec();
        }
        out
    }

    fn aead(suite: Suite, key: &Bytes, plain: &[u8], auth: &[u8]) -> Vec<u8> {
        let algorithm = match suite {
            Suite::Aes256Gcm => &AES_256_GCM,
            Suite::ChaCha20Poly1305 => &CHACHA20_POLY1305,
        };
        let key = LessSafeKey::new(UnboundKey::new(algorithm, key).unwrap());
        let mut out = plain.to_vec();
        // Every handshake key seals once, with counter 0.
        let nonce = Nonce::assume_unique_for_key([0; 12]);
        key.seal_in_place_append_tag(nonce, Aad::from(auth), &mut out).unwrap();
        out
    }

    fn dh(secret: &Bytes, public: &Bytes) -> Bytes {
        StaticSecret::from(*secret).diffie_hellman(&PublicKey::from(*public)).to_bytes()
    }

    pub(super) fn public(secret: &Bytes) -> Bytes {
        PublicKey::from(&StaticSecret::from(*secret)).to_bytes()
    }

    pub(super) struct Inputs {
        pub(super) suite: Suite,
        pub(super) s_i: Bytes,
        pub(super) e_i: Bytes,
        pub(super) s_r: Bytes,
        pub(super) e_r: Bytes,
        pub(super) psk: Bytes,
        pub(super) index_i: u32,
        pub(super) index_r: u32,
        pub(super) timestamp: [u8; 12],
        pub(super) cookie: Option<[u8; 16]>,
    }

    fn macs(message: &mut Vec<u8>, receiver: &Bytes, cookie: Option<[u8; 16]>) {
        use blake2::digest::{FixedOutput, KeyInit, Update};
        type Mac = blake2::Blake2sMac<blake2::digest::consts::U16>;
        let mac = |key: &[u8], data: &[u8]| -> [u8; 16] {
            let mut m = Mac::new_from_slice(key).unwrap();
            Update::update(&mut m, data);
            m.finalize_fixed().into()
        };
        let mac1 = mac(&hash(&[b"mac1----", receiver]), message);
        message.extend(mac1);
        let mac2 = cookie.map_or([0; 16], |cookie| mac(&cookie, message));
        message.extend(mac2);
    }

    /// Section 5.4.2 to 5.4.5: initiation, response, and the two keys
    /// (initiator to responder first).
    pub(super) fn run(x: &Inputs) -> (Vec<u8>, Vec<u8>, Bytes, Bytes) {
        let (construction, identifier, base): (&[u8], &[u8], u8) = match x.suite {
            Suite::ChaCha20Poly1305 => {
                (b"Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s", b"WireGuard v1 zx2c4 Jason@zx2c4.com", 0)
            }
            Suite::Aes256Gcm => (b"Noise_IKpsk2_25519_AESGCM_BLAKE2s", b"Warren v1 link", 0x10),
        };
        let c = hash(&[construction]);
        let h = hash(&[&c, identifier]);
        let h = hash(&[&h, &public(&x.s_r)]);
        // Initiation.
        let e_i = public(&x.e_i);
        let [c] = kdf(&c, &e_i);
        let mut first = vec![base + 1, 0, 0, 0];
        first.extend(x.index_i.to_le_bytes());
        first.extend(e_i);
        let h = hash(&[&h, &e_i]);
        let [c, k] = kdf(&c, &dh(&x.e_i, &public(&x.s_r)));
        let sealed_static = aead(x.suite, &k, &public(&x.s_i), &h);
        let h = hash(&[&h, &sealed_static]);
        let [c, k] = kdf(&c, &dh(&x.s_i, &public(&x.s_r)));
        let sealed_time = aead(x.suite, &k, &x.timestamp, &h);
        let h = hash(&[&h, &sealed_time]);
        first.extend(sealed_static);
        first.extend(sealed_time);
        macs(&mut first, &public(&x.s_r), x.cookie);
        // Response.
        let e_r = public(&x.e_r);
        let [c] = kdf(&c, &e_r);
        let mut second = vec![base + 2, 0, 0, 0];
        second.extend(x.index_r.to_le_bytes());
        second.extend(x.index_i.to_le_bytes());
        second.extend(e_r);
        let h = hash(&[&h, &e_r]);
        let [c] = kdf(&c, &dh(&x.e_r, &e_i));
        let [c] = kdf(&c, &dh(&x.e_r, &public(&x.s_i)));
        let [c, t, k] = kdf(&c, &x.psk);
        let h = hash(&[&h, &t]);
        second.extend(aead(x.suite, &k, &[], &h));
        macs(&mut second, &public(&x.s_i), None);
        let [to_responder, to_initiator] = kdf(&c, &[]);
        (first, second, to_responder, to_initiator)
    }
}

fn random(rng: &mut TestRng) -> [u8; 32] {
    let mut bytes = [0; 32];
    rng.fill_bytes(&mut bytes);
    bytes
}

fn secret(bytes: [u8; 32]) -> StaticKey {
    StaticKey::new(&LinkSecretKey::from_bytes(bytes))
}

/// Yields one prepared ephemeral key.
struct Fixed([u8; 32]);
impl RngCore for Fixed {
    fn next_u32(&mut self) -> u32 {
        unreachable!("handshakes draw whole keys")
    }
    fn next_u64(&mut self) -> u64 {
        unreachable!("handshakes draw whole keys")
    }
    fn fill_bytes(&mut self, dst: &mut [u8]) {
        dst.copy_from_slice(&self.0);
    }
}
impl CryptoRng for Fixed {}

#[test]
fn equals_the_reference_of_the_wireguard_paper_byte_for_byte() {
    let rng = &mut TestRng::new(0x5eed);
    for round in 0..40 {
        let x = reference::Inputs {
            suite: if round % 2 == 0 { Suite::ChaCha20Poly1305 } else { Suite::Aes256Gcm },
            s_i: random(rng),
            e_i: random(rng),
            s_r: random(rng),
            e_r: random(rng),
            psk: if round % 4 < 2 { [0; 32] } else { random(rng) },
            index_i: rng.next_u32(),
            index_r: rng.next_u32(),
            timestamp: random(rng)[..12].try_into().unwrap(),
            cookie: (round % 3 == 0).then(|| random(rng)[..16].try_into().unwrap()),
        };
        let (first, second, to_responder, to_initiator) = reference::run(&x);
        let (i, r) = (secret(x.s_i), secret(x.s_r));
        assert_eq!(i.public().0, reference::public(&x.s_i));
        let psk = (x.psk != [0; 32]).then(|| PresharedKey::from_bytes(x.psk));
        let cookie = x.cookie.map(Zeroizing::new);
        let (mut initiator, sent) = Initiator::start(
            &i,
            &r.public(),
            x.suite,
            x.index_i,
            Tai64n::from_bytes(x.timestamp),
            cookie.as_ref(),
            &mut Fixed(x.e_i),
        )
        .unwrap();
        assert_eq!(sent.datagram[..], first[..]);
        assert!(mac1_ok(&MacKey::for_receiver(&r.public()), &sent.datagram));
        let opened = OpenedInitiation::open(&r, &sent.datagram, &mut Fixed(x.e_r)).unwrap();
        assert_eq!(opened.remote, i.public());
        assert_eq!(opened.timestamp.as_bytes(), &x.timestamp);
        assert_eq!(opened.sender, x.index_i);
        let (answer, responder_keys) = opened.respond(psk.as_ref(), x.index_r, None).unwrap();
        assert_eq!(answer.datagram[..], second[..]);
        let initiator_keys = initiator.finish(&answer.datagram, psk.as_ref()).unwrap();
        assert_eq!(*initiator_keys.send, to_responder);
        assert_eq!(*initiator_keys.receive, to_initiator);
        assert_eq!(*responder_keys.receive, to_responder);
        assert_eq!(*responder_keys.send, to_initiator);
    }
}

struct Pair {
    i: StaticKey,
    r: StaticKey,
    initiator: Initiator,
    first: [u8; INITIATION_LEN],
}

fn pair(suite: Suite, rng: &mut TestRng) -> Pair {
    let (i, r) = (secret(random(rng)), secret(random(rng)));
    let stamp = Tai64n::from_unix(Duration::from_secs(1));
    let (initiator, sent) = Initiator::start(&i, &r.public(), suite, 1, stamp, None, rng).unwrap();
    Pair { i, r, initiator, first: sent.datagram }
}

#[test]
fn every_changed_byte_is_refused_and_harms_nothing() {
    for suite in [Suite::Aes256Gcm, Suite::ChaCha20Poly1305] {
        let rng = &mut TestRng::new(7);
        let Pair { i, r, mut initiator, first } = pair(suite, rng);
        for at in (0..4).chain(8..116) {
            let mut bad = first;
            bad[at] ^= 0x40;
            assert!(OpenedInitiation::open(&r, &bad, rng).is_err(), "byte {at}");
        }
        let opened = OpenedInitiation::open(&r, &first, rng).unwrap();
        assert_eq!(opened.remote, i.public());
        let (answer, keys) = opened.respond(None, 2, None).unwrap();
        for at in (0..4).chain(12..60) {
            let mut bad = answer.datagram;
            bad[at] ^= 0x40;
            assert!(initiator.finish(&bad, None).is_err(), "byte {at}");
        }
        let ours = initiator.finish(&answer.datagram, None).unwrap();
        assert_eq!(*ours.send, *keys.receive);
    }
}

#[test]
fn a_wrong_pre_shared_key_yields_no_session_and_the_right_one_still_does() {
    let rng = &mut TestRng::new(8);
    let Pair { r, mut initiator, first, .. } = pair(Suite::Aes256Gcm, rng);
    let psk = PresharedKey::from_bytes([1; 32]);
    let other = PresharedKey::from_bytes([2; 32]);
    let (answer, _) =
        OpenedInitiation::open(&r, &first, rng).unwrap().respond(Some(&psk), 2, None).unwrap();
    for wrong in [None, Some(&other)] {
        let refused = initiator.finish(&answer.datagram, wrong);
        assert_eq!(refused.unwrap_err(), HandshakeError::NotAuthentic);
    }
    assert!(initiator.finish(&answer.datagram, Some(&psk)).is_ok());
}

#[test]
fn suites_do_not_mix() {
    let rng = &mut TestRng::new(9);
    let Pair { r, first, .. } = pair(Suite::Aes256Gcm, rng);
    let mut as_wireguard = first;
    as_wireguard[0] = 1;
    assert!(OpenedInitiation::open(&r, &as_wireguard, rng).is_err());
}

#[test]
fn nothing_secret_is_printed() {
    let rng = &mut TestRng::new(10);
    let Pair { r, initiator, first, .. } = pair(Suite::Aes256Gcm, rng);
    let opened = OpenedInitiation::open(&r, &first, rng).unwrap();
    for text in [format!("{r:?}"), format!("{initiator:?}"), format!("{opened:?}")] {
        assert!(text.contains("redacted"), "{text}");
    }
}
