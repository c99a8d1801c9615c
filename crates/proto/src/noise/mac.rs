//! mac1, mac2 and cookies (WireGuard sections 5.4.4 and 5.4.7).
//!
//! mac1 proves that the sender knows the receiver's public key; workers check
//! it before they queue a datagram. Under load a responder answers with a
//! cookie, a MAC of the sender's address and port under a secret that changes
//! every two minutes; the sender repeats its message with mac2 keyed by it and
//! so proves that it owns the address.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use blake2::digest::consts::U16;
use blake2::digest::{FixedOutput, KeyInit as _, Update};
use blake2::{Blake2s256, Blake2sMac, Digest};
use chacha20poly1305::aead::AeadInPlace;
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use rand_core::CryptoRng;
use subtle::ConstantTimeEq;
use warren_types::LinkPublicKey;
use zeroize::{Zeroize, Zeroizing};

use super::message::{COOKIE_LEN, Kind, MAC_LEN};

const LABEL_MAC1: &[u8] = b"mac1----";
const LABEL_COOKIE: &[u8] = b"cookie--";

/// How long a responder keys cookies with one secret (WireGuard section 5.4.7).
pub const COOKIE_LIFETIME: Duration = Duration::from_secs(120);
/// A sender stops using a cookie this much before the end of its life, so that
/// it does not arrive with one just expired.
pub const COOKIE_LATENCY: Duration = Duration::from_secs(5);

/// 16 bytes that prove an address; valid for one sender and a short time.
pub type Cookie = Zeroizing<[u8; MAC_LEN]>;

fn keyed(key: &[u8], parts: &[&[u8]]) -> [u8; MAC_LEN] {
    let mut mac = Blake2sMac::<U16>::new_from_slice(key).expect("keys here have at most 32 bytes");
    for part in parts {
        Update::update(&mut mac, part);
    }
    mac.finalize_fixed().into()
}

fn labelled(label: &[u8], public: &LinkPublicKey) -> [u8; 32] {
    Blake2s256::new().chain_update(label).chain_update(public.0).finalize().into()
}

/// What keys mac1 of messages to one receiver. Anyone who knows the receiver's
/// public key can compute it: it keeps out noise, not attackers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MacKey([u8; 32]);

impl MacKey {
    /// For messages to the owner of `public`.
    pub fn for_receiver(public: &LinkPublicKey) -> Self {
        Self(labelled(LABEL_MAC1, public))
    }

    /// Writes the mac1 an initiation or response to that receiver must have;
    /// anything else is left alone. Floods and fuzzers do the same.
    pub fn stamp(&self, datagram: &mut [u8]) {
        if let Some((mac1, mac2)) = mac_offsets(datagram) {
            let tag = keyed(&self.0, &[&datagram[..mac1]]);
            datagram[mac1..mac2].copy_from_slice(&tag);
        }
    }
}

/// Where the two MACs stand in an initiation or response.
fn mac_offsets(datagram: &[u8]) -> Option<(usize, usize)> {
    match Kind::of(datagram)?.0 {
        Kind::Initiation | Kind::Response => {
            let mac2 = datagram.len() - MAC_LEN;
            Some((mac2 - MAC_LEN, mac2))
        }
        Kind::CookieReply => None,
    }
}

/// True when `datagram` is a well-formed handshake message whose mac1 was made
/// for us (`key` of our own public key). Cookie replies carry no mac1 and pass
/// by form alone; the engine checks them against what it sent.
pub fn mac1_ok(key: &MacKey, datagram: &[u8]) -> bool {
    match (Kind::of(datagram), mac_offsets(datagram)) {
        (Some(_), Some((mac1, mac2))) => {
            let expected = keyed(&key.0, &[&datagram[..mac1]]);
            bool::from(expected.ct_eq(&datagram[mac1..mac2]))
        }
        (Some((Kind::CookieReply, _)), None) => true,
        _ => false,
    }
}

/// Writes mac1, and mac2 when there is a cookie (zeros otherwise). Returns
/// mac1, which a cookie reply is bound to.
pub(super) fn write_macs(
    datagram: &mut [u8],
    receiver: &LinkPublicKey,
    cookie: Option<&Cookie>,
) -> [u8; MAC_LEN] {
    let (at1, at2) = mac_offsets(datagram).expect("called with a message just built");
    let mac1 = keyed(&MacKey::for_receiver(receiver).0, &[&datagram[..at1]]);
    datagram[at1..at2].copy_from_slice(&mac1);
    let mac2 = match cookie {
        Some(cookie) => keyed(&cookie[..], &[&datagram[..at2]]),
        None => [0; MAC_LEN],
    };
    datagram[at2..].copy_from_slice(&mac2);
    mac1
}

/// Makes and checks cookies for those who send to us.
pub struct CookieIssuer {
    reply_key: Zeroizing<[u8; 32]>,
    secret: Zeroizing<[u8; 32]>,
    made: Option<Instant>,
}

impl std::fmt::Debug for CookieIssuer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("CookieIssuer(redacted)")
    }
}

impl CookieIssuer {
    /// For the owner of `public`. The first secret is drawn at first use.
    pub fn new(public: &LinkPublicKey) -> Self {
        Self {
            reply_key: Zeroizing::new(labelled(LABEL_COOKIE, public)),
            secret: Zeroizing::new([0; 32]),
            made: None,
        }
    }

    fn cookie(&self, from: SocketAddr) -> Cookie {
        let port = from.port().to_be_bytes();
        Zeroizing::new(match from.ip() {
            IpAddr::V4(ip) => keyed(&self.secret[..], &[&ip.octets(), &port]),
            IpAddr::V6(ip) => keyed(&self.secret[..], &[&ip.octets(), &port]),
        })
    }

    /// True when mac2 of an initiation or response proves that its sender
    /// receives at `from`, address and port, and got its cookie lately.
    pub fn mac2_ok(&self, from: SocketAddr, datagram: &[u8], now: Instant) -> bool {
        let fresh =
            self.made.is_some_and(|made| now.saturating_duration_since(made) < COOKIE_LIFETIME);
        let Some((_, at2)) = mac_offsets(datagram).filter(|_| fresh) else {
            return false;
        };
        let expected = keyed(&self.cookie(from)[..], &[&datagram[..at2]]);
        expected.ct_eq(&datagram[at2..]).into()
    }

    /// The cookie reply to an initiation or response; `None` for anything else.
    pub fn reply(
        &mut self,
        from: SocketAddr,
        datagram: &[u8],
        now: Instant,
        rng: &mut dyn CryptoRng,
    ) -> Option<[u8; COOKIE_LEN]> {
        let (_, suite) = Kind::of(datagram)?;
        let (at1, at2) = mac_offsets(datagram)?;
        if self.made.is_none_or(|made| now.saturating_duration_since(made) >= COOKIE_LIFETIME) {
            rng.fill_bytes(&mut self.secret[..]);
            self.made = Some(now);
        }
        let mut out = [0; COOKIE_LEN];
        Kind::CookieReply.write_head(suite, &mut out);
        // The sender's own index, so that it finds what the cookie is for.
        out[4..8].copy_from_slice(&datagram[4..8]);
        rng.fill_bytes(&mut out[8..32]);
        let (head, sealed) = out.split_at_mut(32);
        let (text, tag_out) = sealed.split_at_mut(MAC_LEN);
        text.copy_from_slice(&self.cookie(from)[..]);
        let tag = XChaCha20Poly1305::new((&self.reply_key[..]).into())
            .encrypt_in_place_detached(XNonce::from_slice(&head[8..]), &datagram[at1..at2], text)
            .ok()?;
        tag_out.copy_from_slice(&tag);
        Some(out)
    }
}

/// Opens a cookie reply from the owner of `responder` to the message of ours
/// whose mac1 was `mac1`.
pub fn open_cookie(
    responder: &LinkPublicKey,
    mac1: &[u8; MAC_LEN],
    datagram: &[u8],
) -> Option<Cookie> {
    let (Kind::CookieReply, _) = Kind::of(datagram)? else {
        return None;
    };
    let mut key = labelled(LABEL_COOKIE, responder);
    let mut cookie = Zeroizing::new([0; MAC_LEN]);
    cookie.copy_from_slice(&datagram[32..48]);
    let opened = XChaCha20Poly1305::new((&key[..]).into()).decrypt_in_place_detached(
        XNonce::from_slice(&datagram[8..32]),
        mac1,
        &mut cookie[..],
        datagram[48..].into(),
    );
    key.zeroize();
    opened.ok().map(|()| cookie)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::noise::message::{INITIATION_LEN, RESPONSE_LEN};
    use crate::test_rng::TestRng;
    use warren_types::Suite;

    const US: LinkPublicKey = LinkPublicKey([3; 32]);

    fn message(kind: Kind, suite: Suite, cookie: Option<&Cookie>) -> (Vec<u8>, [u8; MAC_LEN]) {
        let mut datagram: Vec<u8> = (0..kind.datagram_len()).map(|i| i as u8).collect();
        kind.write_head(suite, &mut datagram);
        let mac1 = write_macs(&mut datagram, &US, cookie);
        (datagram, mac1)
    }

    #[test]
    fn mac1_covers_every_byte_before_it_and_names_the_receiver() {
        let key = MacKey::for_receiver(&US);
        for len in [INITIATION_LEN, RESPONSE_LEN] {
            let kind = if len == INITIATION_LEN { Kind::Initiation } else { Kind::Response };
            let (datagram, _) = message(kind, Suite::Aes256Gcm, None);
            assert!(mac1_ok(&key, &datagram));
            assert!(!mac1_ok(&MacKey::for_receiver(&LinkPublicKey([4; 32])), &datagram));
            for i in 0..len - MAC_LEN {
                let mut bad = datagram.clone();
                bad[i] ^= 1;
                assert!(!mac1_ok(&key, &bad), "byte {i}");
            }
        }
        assert!(!mac1_ok(&key, &[1; 148]));
        assert!(!mac1_ok(&key, &[]));
        assert!(mac1_ok(&key, &{
            let mut cookie = [0; COOKIE_LEN];
            cookie[0] = 3;
            cookie
        }));
    }

    #[test]
    fn a_cookie_is_bound_to_address_port_message_and_time() {
        let rng = &mut TestRng::new(1);
        let now = Instant::now();
        let mut issuer = CookieIssuer::new(&US);
        for from in ["192.0.2.1:1000", "[2001:db8::1]:1000"] {
            let from: SocketAddr = from.parse().unwrap();
            for kind in [Kind::Initiation, Kind::Response] {
                let (first, mac1) = message(kind, Suite::ChaCha20Poly1305, None);
                assert!(!issuer.mac2_ok(from, &first, now));
                let reply = issuer.reply(from, &first, now, rng).unwrap();
                assert_eq!(reply[..8], [&[3, 0, 0, 0], &first[4..8]].concat());
                let cookie = open_cookie(&US, &mac1, &reply).unwrap();
                let (second, _) = message(kind, Suite::ChaCha20Poly1305, Some(&cookie));
                assert!(issuer.mac2_ok(from, &second, now));
                let other_port = SocketAddr::new(from.ip(), 1001);
                assert!(!issuer.mac2_ok(other_port, &second, now));
                let other_ip = SocketAddr::new("192.0.2.2".parse().unwrap(), 1000);
                assert!(!issuer.mac2_ok(other_ip, &second, now));
                assert!(!issuer.mac2_ok(from, &second, now + COOKIE_LIFETIME));
                let mut bad = second.clone();
                bad[20] ^= 1;
                assert!(!issuer.mac2_ok(from, &bad, now));

                let mut other_mac1 = mac1;
                other_mac1[0] ^= 1;
                assert!(open_cookie(&US, &other_mac1, &reply).is_none());
                assert!(open_cookie(&LinkPublicKey([4; 32]), &mac1, &reply).is_none());
                for i in 8..COOKIE_LEN {
                    let mut bad = reply;
                    bad[i] ^= 1;
                    assert!(open_cookie(&US, &mac1, &bad).is_none());
                }
            }
        }
    }

    #[test]
    fn the_cookie_secret_changes_every_two_minutes() {
        let rng = &mut TestRng::new(2);
        let now = Instant::now();
        let from = "192.0.2.1:1".parse().unwrap();
        let mut issuer = CookieIssuer::new(&US);
        let (datagram, mac1) = message(Kind::Initiation, Suite::Aes256Gcm, None);
        let mut cookie_at = |after| {
            let reply = issuer.reply(from, &datagram, now + after, rng).unwrap();
            assert_eq!(reply[0], 0x13);
            open_cookie(&US, &mac1, &reply).unwrap()
        };
        let first = cookie_at(Duration::ZERO);
        assert_eq!(cookie_at(Duration::from_secs(119)), first);
        assert_ne!(cookie_at(Duration::from_secs(120)), first);
    }

    /// BLAKE2s-128 keyed, against Python: `hashlib.blake2s(b"", digest_size=16,
    /// key=hashlib.blake2s(b"mac1----" + bytes([3]*32)).digest())`.
    #[test]
    fn the_mac_is_keyed_blake2s_128() {
        let got = keyed(&MacKey::for_receiver(&US).0, &[]);
        assert_eq!(data_encoding::HEXLOWER.encode(&got), "8a697b87f014becb397d5954d8f16f9d");
    }
}
