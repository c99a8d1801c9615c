//! Names of nodes and networks: one DNS label each (RFC 1035 section 2.3.1,
//! digits first allowed as in RFC 1123), lower case, so that
//! `NODE.NETWORK.warren` is a host name.

use std::fmt;
use std::str::FromStr;

/// Why a name was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{name}` is not a valid name: use 1 to 63 letters, digits and hyphens, with no hyphen at either end"
)]
pub struct ParseNameError {
    /// What was given, cut to 80 characters.
    pub name: String,
}

fn parse(text: &str) -> Result<String, ParseNameError> {
    let lower = text.to_ascii_lowercase();
    let ok = (1..=63).contains(&lower.len())
        && lower.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && !lower.starts_with('-')
        && !lower.ends_with('-');
    if ok { Ok(lower) } else { Err(ParseNameError { name: text.chars().take(80).collect() }) }
}

macro_rules! name {
    ($(#[$doc:meta])* $type:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $type(String);

        impl $type {
            /// The name, lower case.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl FromStr for $type {
            type Err = ParseNameError;
            fn from_str(text: &str) -> Result<Self, Self::Err> {
                parse(text).map(Self)
            }
        }
        impl serde::Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.serialize_str(&self.0)
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

name!(
    /// A node's name, unique in its network.
    NodeName
);
name!(
    /// A network's name, chosen by its founder.
    NetworkName
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dns_labels_only() {
        assert_eq!("GPU-1".parse::<NodeName>().unwrap().as_str(), "gpu-1");
        for bad in ["", "-a", "a-", "a.b", "ü", "a b", &"x".repeat(64)] {
            assert!(bad.parse::<NodeName>().is_err(), "{bad}");
        }
    }
}
