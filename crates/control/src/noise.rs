//! The primitives of `Noise_NNpsk0_25519_ChaChaPoly_BLAKE2s` for snow: X25519
//! and ChaCha20-Poly1305 from aws-lc-rs, BLAKE2s from RustCrypto.
//!
//! In: 32 bytes of randomness for the one ephemeral key. Invariant: no other
//! primitive is available, so no other protocol can be built with it.
//! Deliberately not here: any operating-system randomness.

use aws_lc_rs::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::agreement::{self, PrivateKey, UnparsedPublicKey, X25519};
use blake2::{Blake2s256, Digest};
use snow::Error;
use snow::params::{CipherChoice, DHChoice, HashChoice};
use snow::resolvers::CryptoResolver;
use snow::types::{Cipher, Dh, Hash, Random};
use zeroize::Zeroizing;

/// Gives snow our primitives and one ephemeral secret.
pub(crate) struct Resolver {
    pub(crate) ephemeral: Zeroizing<[u8; 32]>,
}

impl CryptoResolver for Resolver {
    fn resolve_rng(&self) -> Option<Box<dyn Random>> {
        Some(Box::new(Once(Some(self.ephemeral.clone()))))
    }
    fn resolve_dh(&self, choice: &DHChoice) -> Option<Box<dyn Dh>> {
        matches!(choice, DHChoice::Curve25519).then(|| Box::new(X25519Dh::default()) as _)
    }
    fn resolve_hash(&self, choice: &HashChoice) -> Option<Box<dyn Hash>> {
        matches!(choice, HashChoice::Blake2s).then(|| Box::new(Blake2s::default()) as _)
    }
    fn resolve_cipher(&self, choice: &CipherChoice) -> Option<Box<dyn Cipher>> {
        matches!(choice, CipherChoice::ChaChaPoly).then(|| Box::new(ChaChaPoly(None)) as _)
    }
}

/// Randomness for exactly one key; a second request is an error.
struct Once(Option<Zeroizing<[u8; 32]>>);

impl Random for Once {
    fn try_fill_bytes(&mut self, dest: &mut [u8]) -> Result<(), Error> {
        let secret = self.0.take().filter(|s| s.len() == dest.len()).ok_or(Error::Rng)?;
        dest.copy_from_slice(secret.as_slice());
        Ok(())
    }
}

#[derive(Default)]
struct X25519Dh {
    secret: Zeroizing<[u8; 32]>,
    public: [u8; 32],
}

impl X25519Dh {
    fn key(&self) -> Result<PrivateKey, Error> {
        PrivateKey::from_private_key(&X25519, self.secret.as_slice()).map_err(|_| Error::Dh)
    }
    fn derive_public(&mut self) -> Result<(), Error> {
        let public = self.key()?.compute_public_key().map_err(|_| Error::Dh)?;
        self.public = public.as_ref().try_into().map_err(|_| Error::Dh)?;
        Ok(())
    }
}

impl Dh for X25519Dh {
    fn name(&self) -> &'static str {
        "25519"
    }
    fn pub_len(&self) -> usize {
        32
    }
    fn priv_len(&self) -> usize {
        32
    }
    fn set(&mut self, privkey: &[u8]) {
        let len = privkey.len().min(32);
        self.secret[..len].copy_from_slice(&privkey[..len]);
        // Fails only for a key that X25519 cannot refuse; the public key then
        // stays zero and every peer refuses it.
        let _ = self.derive_public();
    }
    fn generate(&mut self, rng: &mut dyn Random) -> Result<(), Error> {
        rng.try_fill_bytes(self.secret.as_mut_slice())?;
        self.derive_public()
    }
    fn pubkey(&self) -> &[u8] {
        &self.public
    }
    fn privkey(&self) -> &[u8] {
        self.secret.as_slice()
    }
    fn dh(&self, pubkey: &[u8], out: &mut [u8]) -> Result<(), Error> {
        let peer = UnparsedPublicKey::new(&X25519, pubkey.get(..32).ok_or(Error::Dh)?);
        agreement::agree(&self.key()?, peer, Error::Dh, |shared| {
            out.get_mut(..32).ok_or(Error::Dh)?.copy_from_slice(shared);
            Ok(())
        })
    }
}

#[derive(Default)]
struct Blake2s(Blake2s256);

impl Hash for Blake2s {
    fn name(&self) -> &'static str {
        "BLAKE2s"
    }
    fn block_len(&self) -> usize {
        64
    }
    fn hash_len(&self) -> usize {
        32
    }
    fn reset(&mut self) {
        self.0 = Blake2s256::new();
    }
    fn input(&mut self, data: &[u8]) {
        self.0.update(data);
    }
    fn result(&mut self, out: &mut [u8]) {
        let digest = std::mem::take(&mut self.0).finalize();
        out[..32].copy_from_slice(&digest);
    }
}

struct ChaChaPoly(Option<LessSafeKey>);

fn nonce(counter: u64) -> Nonce {
    let mut bytes = [0_u8; 12];
    bytes[4..].copy_from_slice(&counter.to_le_bytes());
    Nonce::assume_unique_for_key(bytes)
}

impl Cipher for ChaChaPoly {
    fn name(&self) -> &'static str {
        "ChaChaPoly"
    }
    fn set(&mut self, key: &[u8; 32]) {
        self.0 = UnboundKey::new(&CHACHA20_POLY1305, key).ok().map(LessSafeKey::new);
    }
    fn encrypt(&self, n: u64, authtext: &[u8], plaintext: &[u8], out: &mut [u8]) -> usize {
        let (body, rest) = out.split_at_mut(plaintext.len());
        body.copy_from_slice(plaintext);
        let tag = self.0.as_ref().and_then(|key| {
            key.seal_in_place_separate_tag(nonce(n), Aad::from(authtext), body).ok()
        });
        match tag {
            Some(tag) => rest[..16].copy_from_slice(tag.as_ref()),
            // Never send plaintext: without a key the output is zeros, which
            // no peer accepts.
            None => out[..plaintext.len() + 16].fill(0),
        }
        plaintext.len() + 16
    }
    fn decrypt(
        &self,
        n: u64,
        authtext: &[u8],
        ciphertext: &[u8],
        out: &mut [u8],
    ) -> Result<usize, Error> {
        let key = self.0.as_ref().ok_or(Error::Decrypt)?;
        let mut buffer = ciphertext.to_vec();
        let plain = key
            .open_in_place(nonce(n), Aad::from(authtext), &mut buffer)
            .map_err(|_| Error::Decrypt)?;
        out.get_mut(..plain.len()).ok_or(Error::Decrypt)?.copy_from_slice(plain);
        Ok(plain.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::psk::PSK_PROTOCOL;

    fn hex<const N: usize>(text: &str) -> [u8; N] {
        data_encoding::HEXLOWER.decode(text.as_bytes()).unwrap().try_into().unwrap()
    }

    /// The published vector of the cacophony suite for this protocol.
    #[test]
    fn cacophony_vector() {
        let psk = hex("54686973206973206d7920417573747269616e20706572737065637469766521");
        let start = |ephemeral: &str| {
            let resolver = Resolver { ephemeral: Zeroizing::new(hex(ephemeral)) };
            snow::Builder::with_resolver(PSK_PROTOCOL.parse().unwrap(), Box::new(resolver))
                .psk(0, &psk)
                .unwrap()
                .prologue(b"John Galt")
                .unwrap()
        };
        let mut alice = start("893e28b9dc6ca8d611ab664754b8ceb7bac5117349a4439a6b0569da977c464a")
            .build_initiator()
            .unwrap();
        let mut bob = start("bbdb4cdbd309f1a1f2e1456967fe288cadd6f712d65dc7b7793d5e63da6b375b")
            .build_responder()
            .unwrap();
        let (mut message, mut payload) = ([0; 128], [0; 128]);
        let n = alice.write_message(b"Ludwig von Mises", &mut message).unwrap();
        assert_eq!(
            message[..n],
            hex::<64>(
                "ca35def5ae56cec33dc2036731ab14896bc4c75dbb07a61f879f8e3afa4c7944\
                 fda936bec35a8adfdff198386f7d5475880897edaaf7495314c99095a2e4d66a"
            )
        );
        bob.read_message(&message[..n], &mut payload).unwrap();
        let n = bob.write_message(b"Murray Rothbard", &mut message).unwrap();
        assert_eq!(
            message[..n],
            hex::<63>(
                "95ebc60d2b1fa672c1f46a8aa265ef51bfe38e7ccb39ec5be34069f144808843\
                 4cd2a371993ba41ea11448024fca32766b169183c9e691a7a433279da7e729"
            )
        );
        alice.read_message(&message[..n], &mut payload).unwrap();
        assert_eq!(
            alice.get_handshake_hash(),
            hex::<32>("b3e9c846d264120a4211e18307da91157a21e92e69b639c50f027f101db3e1a6")
        );
    }
}
