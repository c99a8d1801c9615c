//! The root's key in a file that may lie about: encrypted with a passphrase.
//!
//! In: key, certificate, a passphrase. Out: PEM text, and the reverse. Form: the
//! PEM block `WARREN SEALED CA KEY` holds a CBOR map; the key is encrypted with
//! AES-256-GCM under Argon2id (RFC 9106, its second recommended option: 64 MiB,
//! 3 passes, 4 lanes) of the passphrase, everything else in the map being
//! authenticated with it. Invariants: a wrong passphrase and an altered file are
//! refused alike; costs named by a file are bounded; what is decrypted is
//! zeroised. Deliberately not here: files, asking for passphrases.

use argon2::{Algorithm, Argon2, Params, Version};
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use minicbor::{Decode, Encode};
use rand_core::CryptoRng;
use zeroize::Zeroizing;

use crate::cbor;
use crate::identity::IdentityKey;
use crate::verify::subject_key;

const BEGIN: &str = "-----BEGIN WARREN SEALED CA KEY-----";
const END: &str = "-----END WARREN SEALED CA KEY-----";
/// Largest file, bytes.
const MAX_FILE: usize = 64 * 1024;
/// Shortest passphrase, characters.
pub const MIN_PASSPHRASE: usize = 8;
/// Argon2id: memory in KiB, passes, lanes. Without optimisation the real cost
/// takes ten seconds, which no test needs.
const COST: (u32, u32, u32) = if cfg!(test) { (64, 1, 4) } else { (64 * 1024, 3, 4) };
/// Most that a file may ask for: 1 GiB, 16 passes, 16 lanes.
const MAX_COST: (u32, u32, u32) = (1024 * 1024, 16, 16);

/// The file was refused, or could not be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SealedKeyError {
    /// Too short to keep anybody out.
    #[error("the passphrase is too short: use at least {MIN_PASSPHRASE} characters")]
    ShortPassphrase,
    /// Not such a file.
    #[error("this is no exported CA key: `warren ca export FILE` makes one")]
    NotAKey,
    /// Wrong passphrase, or the file was altered.
    #[error("the passphrase is wrong, or the file is damaged")]
    Refused,
    /// Not enough memory, or the library refused.
    #[error("the key could not be encrypted: is there enough memory (64 MiB)?")]
    Failed,
}

#[derive(Encode, Decode)]
#[cbor(map)]
struct Sealed {
    /// 1.
    #[n(0)]
    version: u8,
    #[n(1)]
    network: String,
    #[cbor(n(2), with = "minicbor::bytes")]
    certificate: Vec<u8>,
    #[n(3)]
    memory_kib: u32,
    #[n(4)]
    passes: u32,
    #[n(5)]
    lanes: u32,
    #[cbor(n(6), with = "minicbor::bytes")]
    salt: [u8; 16],
    #[cbor(n(7), with = "minicbor::bytes")]
    nonce: [u8; 12],
    /// The PKCS #8 document, encrypted, and the tag; empty in what is
    /// authenticated.
    #[cbor(n(8), with = "minicbor::bytes")]
    key: Vec<u8>,
}

impl Sealed {
    fn cipher(&self, passphrase: &str) -> Result<LessSafeKey, SealedKeyError> {
        let params = Params::new(self.memory_kib, self.passes, self.lanes, Some(32))
            .map_err(|_| SealedKeyError::NotAKey)?;
        let mut derived = Zeroizing::new([0_u8; 32]);
        Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
            .hash_password_into(passphrase.as_bytes(), &self.salt, derived.as_mut_slice())
            .map_err(|_| SealedKeyError::Failed)?;
        UnboundKey::new(&AES_256_GCM, derived.as_slice())
            .map(LessSafeKey::new)
            .map_err(|_| SealedKeyError::Failed)
    }

    /// All but the key itself.
    fn associated(&mut self) -> Vec<u8> {
        let key = std::mem::take(&mut self.key);
        let bytes = cbor::to_vec(self);
        self.key = key;
        bytes
    }
}

/// Encrypts a root's key with `passphrase`; the text of the file.
///
/// # Errors
/// When the passphrase is too short, or memory is.
pub fn seal(
    key: &IdentityKey,
    certificate: &[u8],
    network: &str,
    passphrase: &str,
    rng: &mut impl CryptoRng,
) -> Result<String, SealedKeyError> {
    if passphrase.chars().count() < MIN_PASSPHRASE {
        return Err(SealedKeyError::ShortPassphrase);
    }
    let mut sealed = Sealed {
        version: 1,
        network: network.to_owned(),
        certificate: certificate.to_vec(),
        memory_kib: COST.0,
        passes: COST.1,
        lanes: COST.2,
        salt: [0; 16],
        nonce: [0; 12],
        key: Vec::new(),
    };
    rng.fill_bytes(&mut sealed.salt);
    rng.fill_bytes(&mut sealed.nonce);
    let cipher = sealed.cipher(passphrase)?;
    let associated = sealed.associated();
    let mut secret = key.to_pkcs8();
    let nonce = Nonce::assume_unique_for_key(sealed.nonce);
    let tag = cipher
        .seal_in_place_separate_tag(nonce, Aad::from(associated), secret.as_mut_slice())
        .map_err(|_| SealedKeyError::Failed)?;
    sealed.key = [secret.as_slice(), tag.as_ref()].concat();
    let text = data_encoding::BASE64.encode(&cbor::to_vec(&sealed));
    let mut lines = format!("{BEGIN}\n");
    for chunk in text.as_bytes().chunks(64) {
        lines.push_str(&String::from_utf8_lossy(chunk));
        lines.push('\n');
    }
    lines.push_str(END);
    lines.push('\n');
    Ok(lines)
}

/// Decrypts a file: the key and its certificate.
///
/// # Errors
/// When it is no such file, or the passphrase is wrong.
pub fn open(file: &str, passphrase: &str) -> Result<(IdentityKey, Vec<u8>), SealedKeyError> {
    if file.len() > MAX_FILE {
        return Err(SealedKeyError::NotAKey);
    }
    let inner = file.split_once(BEGIN).and_then(|(_, rest)| rest.split_once(END));
    let (text, _) = inner.ok_or(SealedKeyError::NotAKey)?;
    let text: String = text.chars().filter(|c| !c.is_whitespace()).collect();
    let bytes =
        data_encoding::BASE64.decode(text.as_bytes()).map_err(|_| SealedKeyError::NotAKey)?;
    let mut sealed: Sealed = cbor::from_slice(&bytes).map_err(|_| SealedKeyError::NotAKey)?;
    let cheap = sealed.memory_kib <= MAX_COST.0
        && sealed.passes <= MAX_COST.1
        && sealed.lanes <= MAX_COST.2;
    if sealed.version != 1 || !cheap {
        return Err(SealedKeyError::NotAKey);
    }
    let cipher = sealed.cipher(passphrase)?;
    let associated = sealed.associated();
    let nonce = Nonce::assume_unique_for_key(sealed.nonce);
    let mut secret = Zeroizing::new(std::mem::take(&mut sealed.key));
    let opened = cipher
        .open_in_place(nonce, Aad::from(associated), secret.as_mut_slice())
        .map_err(|_| SealedKeyError::Refused)?;
    let key = IdentityKey::from_pkcs8(opened).map_err(|_| SealedKeyError::Refused)?;
    match subject_key(&sealed.certificate) {
        Ok(id) if id == key.id() => Ok((key, sealed.certificate)),
        _ => Err(SealedKeyError::Refused),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ca::Authority;
    use crate::testing::TestRng;

    #[test]
    fn only_the_passphrase_opens_and_nothing_can_be_altered() {
        let mut rng = TestRng::new(1);
        let key = IdentityKey::generate(&mut rng).unwrap();
        let name = "home".parse().unwrap();
        let root = Authority::create(key, &name, 1_800_000_000, &mut rng).unwrap();
        let seal = |pass: &str, rng: &mut TestRng| {
            super::seal(root.key(), root.certificate(), "home", pass, rng)
        };
        assert_eq!(seal("short", &mut rng), Err(SealedKeyError::ShortPassphrase));
        let file = seal("correct horse", &mut rng).unwrap();
        let (key, certificate) = open(&file, "correct horse").unwrap();
        assert_eq!((key.id(), certificate.as_slice()), (root.key().id(), root.certificate()));
        assert_eq!(open(&file, "correct house").err(), Some(SealedKeyError::Refused));
        let secret = data_encoding::BASE64.encode(&root.key().to_pkcs8()[16..]);
        assert!(!file.contains(&secret[..20]));
        let middle = file.len() / 2;
        let altered: String = file
            .char_indices()
            .map(|(at, c)| if at == middle { if c == 'A' { 'B' } else { 'A' } } else { c })
            .collect();
        assert!(open(&altered, "correct horse").is_err());
        for text in ["", "x", BEGIN, &format!("{BEGIN}{END}"), &file[..file.len() - 60]] {
            assert_eq!(open(text, "correct horse").err(), Some(SealedKeyError::NotAKey));
        }
    }
}
