//! Identifiers of nodes and networks. Both print as lower-case base32 without
//! padding (RFC 4648 section 6), so they can be pasted and used in file names.

use std::fmt;
use std::str::FromStr;

use crate::key::ParseKeyError;

/// A node: its Ed25519 public key (RFC 8032), 32 bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub [u8; 32]);

/// A network: 16 bytes, derived from what admits its members (the CA's
/// certificate, the set's name, or the pre-shared key).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NetworkId(pub [u8; 16]);

fn base32(bytes: &[u8]) -> String {
    data_encoding::BASE32_NOPAD.encode(bytes).to_ascii_lowercase()
}

fn from_base32<const N: usize>(text: &str) -> Result<[u8; N], ParseKeyError> {
    data_encoding::BASE32_NOPAD
        .decode(text.trim().to_ascii_uppercase().as_bytes())
        .map_err(|_| ParseKeyError::Encoding)?
        .try_into()
        .map_err(|_| ParseKeyError::Length { expected: N })
}

impl NodeId {
    /// The first 8 characters of the printed form, for people; not unique.
    pub fn short(&self) -> String {
        base32(&self.0[..5])
    }
}

macro_rules! text_forms {
    ($type:ident, $len:literal) => {
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&base32(&self.0))
            }
        }
        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($type), base32(&self.0[..5]))
            }
        }
        impl FromStr for $type {
            type Err = ParseKeyError;
            fn from_str(text: &str) -> Result<Self, Self::Err> {
                from_base32::<$len>(text).map(Self)
            }
        }
        impl serde::Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.collect_str(self)
            }
        }
        impl<'de> serde::Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(d)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

text_forms!(NodeId, 32);
text_forms!(NetworkId, 16);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_round_trip_as_text() {
        let id = NodeId([7; 32]);
        assert_eq!(id.to_string().parse::<NodeId>().unwrap(), id);
        let net = NetworkId([9; 16]);
        assert_eq!(net.to_string().to_uppercase().parse::<NetworkId>().unwrap(), net);
    }

    #[test]
    fn wrong_lengths_are_refused() {
        assert!("aaaa".parse::<NodeId>().is_err());
        assert!("not base32 !".parse::<NetworkId>().is_err());
    }
}
