//! Where a node is: a country of ISO 3166-1, and a city if it says so.

use std::fmt;
use std::str::FromStr;

use super::cities::CITIES;
use super::countries::{COUNTRIES, Entry};
use super::region::Region;

/// Longest short name of a city, characters.
pub const MAX_CITY: usize = 16;

/// A point on the globe, degrees north and degrees east.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Coordinates {
    /// Degrees north, -90 to 90.
    pub north: f32,
    /// Degrees east, -180 to 180.
    pub east: f32,
}

impl Coordinates {
    /// True for a point that exists.
    pub fn is_valid(self) -> bool {
        (-90.0..=90.0).contains(&self.north) && (-180.0..=180.0).contains(&self.east)
    }
}

/// A country: its ISO 3166-1 alpha-2 code, always one that is assigned.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Country([u8; 2]);

/// Why a country or city was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParsePlaceError {
    /// Not a code of the list.
    #[error("`{given}` is no country code of ISO 3166-1{hint}; known are {}", known())]
    UnknownCountry {
        /// What was given, cut to 40 characters.
        given: String,
        /// `: did you mean …`, where the name of a country was given.
        hint: String,
    },
    /// Not a short name.
    #[error(
        "`{0}` is no short name of a city: use 1 to {MAX_CITY} letters, digits and hyphens, such \
         as the airport code `fra`"
    )]
    BadCity(String),
}

/// All codes, for a message.
fn known() -> String {
    let codes: Vec<&str> = COUNTRIES.iter().map(|country| country.code).collect();
    codes.join(" ")
}

impl Country {
    /// All countries, in the order of their codes.
    pub fn all() -> impl Iterator<Item = Self> {
        COUNTRIES.iter().map(|entry| {
            let code = entry.code.as_bytes();
            Self([code[0], code[1]])
        })
    }

    /// Its code, lower case.
    pub fn code(&self) -> &str {
        // Only letters of the table get in here.
        std::str::from_utf8(&self.0).unwrap_or("??")
    }

    fn entry(self) -> &'static Entry {
        let at = COUNTRIES.binary_search_by(|entry| entry.code.cmp(self.code()));
        &COUNTRIES[at.unwrap_or_default()]
    }

    /// Its English name.
    pub fn name(self) -> &'static str {
        self.entry().name
    }

    /// The region it is counted to.
    pub fn region(self) -> Region {
        self.entry().region
    }

    /// A point in it.
    pub fn coordinates(self) -> Coordinates {
        let (north, east) = self.entry().at;
        Coordinates { north, east }
    }
}

impl fmt::Display for Country {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.code())
    }
}

impl fmt::Debug for Country {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Country({self})")
    }
}

impl FromStr for Country {
    type Err = ParsePlaceError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let lower = text.trim().to_ascii_lowercase();
        // What people write who do not look it up.
        let code = if lower == "uk" { "gb" } else { lower.as_str() };
        if let Ok(at) = COUNTRIES.binary_search_by(|entry| entry.code.cmp(code)) {
            let code = COUNTRIES[at].code.as_bytes();
            return Ok(Self([code[0], code[1]]));
        }
        let named = COUNTRIES.iter().find(|entry| entry.name.eq_ignore_ascii_case(&lower));
        Err(ParsePlaceError::UnknownCountry {
            given: text.chars().take(40).collect(),
            hint: named.map_or_else(String::new, |entry| {
                format!(" (two letters): did you mean `{}`, {}?", entry.code, entry.name)
            }),
        })
    }
}

super::text_serde!(Country);

/// A city's short name: 1 to 16 lower-case letters, digits and hyphens, by
/// custom the airport code. Known ones stand for a point on the map, others for
/// their country's.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct City(String);

impl City {
    /// The short name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for City {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for City {
    type Err = ParsePlaceError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let lower = text.trim().to_ascii_lowercase();
        let ok = (1..=MAX_CITY).contains(&lower.len())
            && lower.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
            && !lower.starts_with('-')
            && !lower.ends_with('-');
        if ok {
            Ok(Self(lower))
        } else {
            Err(ParsePlaceError::BadCity(text.chars().take(40).collect()))
        }
    }
}

super::text_serde!(City);

/// Where a node says it is.
#[derive(
    Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
pub struct Place {
    /// The country.
    pub country: Country,
    /// The city, if told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub city: Option<City>,
}

impl Place {
    /// The city's point where it is known, else the country's.
    pub fn coordinates(&self) -> Coordinates {
        let code = self.country.code();
        let city = self.city.as_ref().and_then(|city| {
            CITIES.iter().find(|known| known.country == code && known.code == city.as_str())
        });
        city.map_or_else(
            || self.country.coordinates(),
            |known| Coordinates { north: known.at.0, east: known.at.1 },
        )
    }

    /// The region of its country.
    pub fn region(&self) -> Region {
        self.country.region()
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.city {
            Some(city) => write!(f, "{}-{city}", self.country),
            None => write!(f, "{}", self.country),
        }
    }
}

/// Reads what is printed: `de`, `de-fra`.
impl FromStr for Place {
    type Err = ParsePlaceError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once('-') {
            Some((country, city)) => {
                Ok(Self { country: country.parse()?, city: Some(city.parse()?) })
            }
            None => Ok(Self { country: text.parse()?, city: None }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_sorted_and_complete() {
        assert!(COUNTRIES.windows(2).all(|two| two[0].code < two[1].code));
        for country in Country::all() {
            assert_eq!(country.to_string().parse::<Country>(), Ok(country));
            assert!(!country.name().is_empty() && country.coordinates().is_valid(), "{country}");
        }
        for city in CITIES {
            assert!(city.country.parse::<Country>().is_ok(), "{}", city.code);
            assert!(city.code.parse::<City>().is_ok());
            // Within the reach of the country's own point: no swapped signs.
            let country = city.country.parse::<Country>().unwrap().coordinates();
            let far = (country.north - city.at.0).abs().max((country.east - city.at.1).abs());
            assert!(far < 67.0, "{} is far from its country", city.code);
        }
    }

    #[test]
    fn countries_are_checked_against_the_list() {
        assert_eq!("DE".parse::<Country>().unwrap().name(), "Germany");
        assert_eq!("uk".parse::<Country>().unwrap().code(), "gb");
        for bad in ["", "d", "zz", "xx", "deu", "d\u{e9}"] {
            let error = bad.parse::<Country>().unwrap_err().to_string();
            assert!(error.contains(" nl ") && error.contains("ISO 3166-1"), "{error}");
        }
        let error = "Germany".parse::<Country>().unwrap_err().to_string();
        assert!(error.contains("did you mean `de`"), "{error}");
    }

    #[test]
    fn countries_have_the_region_people_expect() {
        for (code, region) in [
            ("us", Region::NorthAmerica),
            ("ca", Region::NorthAmerica),
            ("gb", Region::Europe),
            ("de", Region::Europe),
            ("nl", Region::Europe),
            ("fr", Region::Europe),
            ("sg", Region::Asia),
            ("jp", Region::Asia),
            ("hk", Region::Asia),
            ("au", Region::Oceania),
            ("br", Region::SouthAmerica),
            ("za", Region::Africa),
        ] {
            assert_eq!(code.parse::<Country>().unwrap().region(), region, "{code}");
        }
        assert_eq!("Europe".parse::<Region>(), Ok(Region::Europe));
        assert!("atlantis".parse::<Region>().unwrap_err().to_string().contains("south-america"));
    }

    #[test]
    fn a_known_city_has_its_own_point() {
        let frankfurt: Place = "de-fra".parse().unwrap();
        assert_eq!(frankfurt.to_string(), "de-fra");
        assert!((frankfurt.coordinates().north - 50.1).abs() < 0.2);
        let elsewhere: Place = "de-bielefeld".parse().unwrap();
        assert_eq!(elsewhere.coordinates(), "de".parse::<Country>().unwrap().coordinates());
        for bad in ["de-", "de--a", "de-a_b", "de-abcdefghijklmnopq", "qq-fra"] {
            assert!(bad.parse::<Place>().is_err(), "{bad}");
        }
    }
}
