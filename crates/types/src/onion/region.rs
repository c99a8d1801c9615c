//! Regions of the world, as exits are offered by.

use std::fmt;
use std::str::FromStr;

/// A part of the world. Every country is in exactly one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Region {
    /// From Canada to Panama, the Caribbean and Greenland.
    NorthAmerica,
    /// Europe with Russia, without Turkey and the Caucasus.
    Europe,
    /// Asia with Turkey, the Caucasus and the Middle East.
    Asia,
    /// Australia, the Pacific, and what is near no other region.
    Oceania,
    /// South of Panama.
    SouthAmerica,
    /// Africa and its islands.
    Africa,
}

/// The text names no region.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is no region: use north-america, europe, asia, oceania, south-america or africa, or a \
     country's two letters"
)]
pub struct ParseRegionError(String);

impl Region {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::NorthAmerica,
        Self::Europe,
        Self::Asia,
        Self::Oceania,
        Self::SouthAmerica,
        Self::Africa,
    ];

    /// The word on the command line and in the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NorthAmerica => "north-america",
            Self::Europe => "europe",
            Self::Asia => "asia",
            Self::Oceania => "oceania",
            Self::SouthAmerica => "south-america",
            Self::Africa => "africa",
        }
    }
}

impl fmt::Display for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Region {
    type Err = ParseRegionError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let word = text.to_ascii_lowercase();
        Self::ALL
            .into_iter()
            .find(|region| region.as_str() == word)
            .ok_or_else(|| ParseRegionError(text.chars().take(40).collect()))
    }
}

super::text_serde!(Region);
