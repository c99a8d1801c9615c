//! The public key of circuit handshakes.

use std::fmt;
use std::str::FromStr;

use crate::key::ParseKeyError;

/// An X25519 public key (RFC 7748) of circuit handshakes; a node changes it
/// daily. Text: base64, as of link keys.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OnionKey(pub [u8; 32]);

impl fmt::Display for OnionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&data_encoding::BASE64.encode(&self.0))
    }
}

impl fmt::Debug for OnionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "OnionKey({self})")
    }
}

impl FromStr for OnionKey {
    type Err = ParseKeyError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse::<crate::LinkPublicKey>().map(|key| Self(key.0))
    }
}

super::text_serde!(OnionKey);
