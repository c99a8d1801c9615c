//! Operator families: who runs several nodes names them alike, and no path
//! goes over two nodes of one family.

use std::fmt;
use std::str::FromStr;

/// An operator's name for all its nodes: 1 to 32 lower-case letters, digits,
/// dots and hyphens, such as a domain it owns.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Family(String);

/// Why a family's name was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is no family name: use 1 to 32 letters, digits, dots and hyphens, starting and ending \
     with a letter or digit"
)]
pub struct ParseFamilyError(String);

impl Family {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Family {
    type Err = ParseFamilyError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let lower = text.trim().to_ascii_lowercase();
        let word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        let bytes = lower.as_bytes();
        let ok = (1..=32).contains(&bytes.len())
            && bytes.iter().all(|b| word(*b) || matches!(b, b'.' | b'-'))
            && bytes.first().is_some_and(|b| word(*b))
            && bytes.last().is_some_and(|b| word(*b));
        if ok { Ok(Self(lower)) } else { Err(ParseFamilyError(text.chars().take(40).collect())) }
    }
}

super::text_serde!(Family);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn domains_fit() {
        assert_eq!("Example.org".parse::<Family>().unwrap().as_str(), "example.org");
        for bad in ["", ".a", "a.", "a b", "\u{fc}", &"x".repeat(33)] {
            assert!(bad.parse::<Family>().is_err(), "{bad}");
        }
    }
}
