//! Link keys. The text form is WireGuard's: standard base64 of 32 bytes
//! (RFC 4648 section 4). Secrets redact themselves and are zeroised on drop.

use std::fmt;
use std::str::FromStr;

use zeroize::{Zeroize, ZeroizeOnDrop};

/// Why a key did not parse.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ParseKeyError {
    /// Not valid text in the expected alphabet.
    #[error("the key is not valid text: it holds a wrong character or is cut short")]
    Encoding,
    /// Decodes to a wrong number of bytes.
    #[error("the key has the wrong length: {expected} bytes are expected")]
    Length {
        /// The number of bytes a key of this kind has.
        expected: usize,
    },
}

fn from_base64(text: &str) -> Result<[u8; 32], ParseKeyError> {
    let bytes = zeroize::Zeroizing::new(
        data_encoding::BASE64
            .decode(text.trim().as_bytes())
            .map_err(|_| ParseKeyError::Encoding)?,
    );
    bytes.as_slice().try_into().map_err(|_| ParseKeyError::Length { expected: 32 })
}

/// An X25519 public key (RFC 7748) used on links.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkPublicKey(pub [u8; 32]);

impl fmt::Display for LinkPublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&data_encoding::BASE64.encode(&self.0))
    }
}

impl fmt::Debug for LinkPublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LinkPublicKey({self})")
    }
}

impl FromStr for LinkPublicKey {
    type Err = ParseKeyError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        from_base64(text).map(Self)
    }
}

impl serde::Serialize for LinkPublicKey {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for LinkPublicKey {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(d)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

macro_rules! secret {
    ($(#[$doc:meta])* $type:ident) => {
        $(#[$doc])*
        #[derive(Clone, Zeroize, ZeroizeOnDrop)]
        pub struct $type([u8; 32]);

        impl $type {
            /// Wraps 32 secret bytes.
            pub fn from_bytes(bytes: [u8; 32]) -> Self {
                Self(bytes)
            }
            /// The bytes, for the cryptographic library only; never log them.
            pub fn expose(&self) -> &[u8; 32] {
                &self.0
            }
            /// Base64 as WireGuard's tools print it, for a file meant for the
            /// key's owner. Zeroised when dropped.
            pub fn to_base64(&self) -> zeroize::Zeroizing<String> {
                zeroize::Zeroizing::new(data_encoding::BASE64.encode(&self.0))
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(concat!(stringify!($type), "(redacted)"))
            }
        }

        impl FromStr for $type {
            type Err = ParseKeyError;
            fn from_str(text: &str) -> Result<Self, Self::Err> {
                from_base64(text).map(Self)
            }
        }
    };
}

secret!(
    /// An X25519 secret key (RFC 7748) used on links.
    LinkSecretKey
);
secret!(
    /// An X25519 secret key (RFC 7748) of circuit handshakes, for one day.
    OnionSecretKey
);
secret!(
    /// A 256-bit pre-shared key, mixed in at Noise's `psk2` position on links.
    PresharedKey
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_redact_themselves() {
        let secret = LinkSecretKey::from_bytes([0x41; 32]);
        assert_eq!(format!("{secret:?}"), "LinkSecretKey(redacted)");
    }

    #[test]
    fn base64_round_trip_and_errors() {
        let key = LinkPublicKey([3; 32]);
        assert_eq!(key.to_string().parse::<LinkPublicKey>().unwrap(), key);
        assert_eq!("AAAA".parse::<LinkPublicKey>(), Err(ParseKeyError::Length { expected: 32 }));
        assert_eq!("!".parse::<LinkPublicKey>(), Err(ParseKeyError::Encoding));
    }
}
