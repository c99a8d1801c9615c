//! What an operator gives to paths of others, bits per second.

use std::fmt;
use std::str::FromStr;

/// Bits per second, 100 kbit/s to 10 Tbit/s.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bandwidth(u64);

/// Why a bandwidth was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseBandwidthError {
    /// No number with a unit.
    #[error("`{0}` is no bandwidth: use a number with kbit, mbit or gbit, such as 500mbit")]
    Form(String),
    /// Too small or too large.
    #[error("a bandwidth of {0} bit/s is out of range: use 100kbit to 10000gbit")]
    Range(u64),
}

const UNITS: [(&str, u64); 4] =
    [("gbit", 1_000_000_000), ("mbit", 1_000_000), ("kbit", 1_000), ("bit", 1)];

impl Bandwidth {
    /// Least, bits per second.
    pub const MIN: u64 = 100_000;
    /// Most, bits per second.
    pub const MAX: u64 = 10_000_000_000_000;

    /// From bits per second.
    ///
    /// # Errors
    /// When out of range.
    pub fn from_bits_per_second(bits: u64) -> Result<Self, ParseBandwidthError> {
        if (Self::MIN..=Self::MAX).contains(&bits) {
            Ok(Self(bits))
        } else {
            Err(ParseBandwidthError::Range(bits))
        }
    }

    /// Bits per second.
    pub fn bits_per_second(self) -> u64 {
        self.0
    }
}

impl fmt::Display for Bandwidth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (unit, size) =
            UNITS.into_iter().find(|(_, size)| self.0.is_multiple_of(*size)).unwrap_or(("bit", 1));
        write!(f, "{}{unit}", self.0 / size)
    }
}

impl FromStr for Bandwidth {
    type Err = ParseBandwidthError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = || ParseBandwidthError::Form(text.chars().take(40).collect());
        let lower = text.trim().to_ascii_lowercase();
        let (number, size) = UNITS
            .into_iter()
            .find_map(|(unit, size)| lower.strip_suffix(unit).map(|number| (number, size)))
            .ok_or_else(bad)?;
        let (whole, part) = number.split_once('.').unwrap_or((number, "0"));
        let digits = |s: &str, most: usize| {
            (1..=most).contains(&s.len()) && s.bytes().all(|b| b.is_ascii_digit())
        };
        if !digits(whole, 14) || !digits(part, 3) {
            return Err(bad());
        }
        let whole: u64 = whole.parse().map_err(|_| bad())?;
        let part: u64 = format!("{part:0<3}").parse().map_err(|_| bad())?;
        let bits = whole.saturating_mul(size).saturating_add(part * size / 1000);
        Self::from_bits_per_second(bits)
    }
}

super::text_serde!(Bandwidth);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_and_fractions() {
        for (text, bits, printed) in [
            ("500mbit", 500_000_000, "500mbit"),
            ("1Gbit", 1_000_000_000, "1gbit"),
            ("2.5gbit", 2_500_000_000, "2500mbit"),
            ("100000bit", 100_000, "100kbit"),
        ] {
            let bandwidth: Bandwidth = text.parse().unwrap();
            assert_eq!(bandwidth.bits_per_second(), bits);
            assert_eq!(bandwidth.to_string(), printed);
            assert_eq!(printed.parse(), Ok(bandwidth));
        }
        for bad in ["", "5", "mbit", "-1mbit", "1.mbit", ".5mbit", "1e3mbit", "1mb", "1.2345mbit"] {
            assert!(matches!(bad.parse::<Bandwidth>(), Err(ParseBandwidthError::Form(_))), "{bad}");
        }
        for far in ["1kbit", "0mbit", "99999999999999gbit"] {
            assert!(
                matches!(far.parse::<Bandwidth>(), Err(ParseBandwidthError::Range(_))),
                "{far}"
            );
        }
    }
}
