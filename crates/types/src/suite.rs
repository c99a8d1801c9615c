//! Link cipher suites.

use std::fmt;
use std::str::FromStr;

/// A link's cipher suite. A network has one, fixed when it is created; links
/// to stock WireGuard clients always use [`Suite::ChaCha20Poly1305`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Suite {
    /// `Noise_IKpsk2_25519_AESGCM_BLAKE2s`, message types 0x11-0x14.
    #[default]
    Aes256Gcm,
    /// WireGuard's own `Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s`, message types
    /// 1-4, byte for byte.
    ChaCha20Poly1305,
}

/// The text names no known suite.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown suite `{0}`: use aes256gcm or chacha20poly1305")]
pub struct ParseSuiteError(String);

impl Suite {
    /// The name used on the command line, in files and in the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Aes256Gcm => "aes256gcm",
            Self::ChaCha20Poly1305 => "chacha20poly1305",
        }
    }
}

impl fmt::Display for Suite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Suite {
    type Err = ParseSuiteError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "aes256gcm" => Ok(Self::Aes256Gcm),
            "chacha20poly1305" => Ok(Self::ChaCha20Poly1305),
            other => Err(ParseSuiteError(other.chars().take(40).collect())),
        }
    }
}

impl serde::Serialize for Suite {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(self.as_str())
    }
}

impl<'de> serde::Deserialize<'de> for Suite {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(d)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}
