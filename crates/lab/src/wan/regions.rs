//! Where in the world a node is, and how far apart two places are.
//!
//! The figures are round-trip times between data centres of large providers as
//! published by their monitoring pages, rounded to a millisecond; they move by
//! a few per cent from week to week.

use std::time::Duration;

use crate::netem::Profile;

/// A place with data centres.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Region {
    /// Northern Virginia.
    UsEast,
    /// Oregon.
    UsWest,
    /// Montreal.
    Canada,
    /// London.
    Uk,
    /// Frankfurt.
    Germany,
    /// Amsterdam.
    Netherlands,
    /// Paris.
    France,
    /// Singapore.
    Singapore,
    /// Tokyo.
    Japan,
    /// Hong Kong.
    HongKong,
    /// Sydney.
    Australia,
    /// Sao Paulo.
    Brazil,
}

/// Round trip within one region, microseconds.
const LOCAL_RTT_US: u64 = 600;

/// Round trips in milliseconds; row and column in the order of [`Region`].
#[rustfmt::skip]
const RTT_MS: [[u64; 12]; 12] = [
    //us-e us-w  ca   uk   de   nl   fr   sg   jp   hk   au   br
    [   0,  64,  15,  76,  90,  82,  80, 220, 158, 205, 198, 114],
    [  64,   0,  61, 132, 150, 140, 138, 165,  97, 145, 140, 174],
    [  15,  61,   0,  79,  92,  86,  84, 216, 156, 206, 199, 124],
    [  76, 132,  79,   0,  15,   8,   9, 172, 211, 197, 264, 187],
    [  90, 150,  92,  15,   0,   8,  10, 162, 223, 190, 254, 202],
    [  82, 140,  86,   8,   8,   0,  11, 166, 219, 195, 260, 193],
    [  80, 138,  84,   9,  10,  11,   0, 158, 215, 188, 256, 195],
    [ 220, 165, 216, 172, 162, 166, 158,   0,  69,  35,  93, 325],
    [ 158,  97, 156, 211, 223, 219, 215,  69,   0,  52, 107, 256],
    [ 205, 145, 206, 197, 190, 195, 188,  35,  52,   0, 129, 305],
    [ 198, 140, 199, 264, 254, 260, 256,  93, 107, 129,   0, 310],
    [ 114, 174, 124, 187, 202, 193, 195, 325, 256, 305, 310,   0],
];

impl Region {
    /// All of them, in the order of the table.
    pub const ALL: [Self; 12] = [
        Self::UsEast,
        Self::UsWest,
        Self::Canada,
        Self::Uk,
        Self::Germany,
        Self::Netherlands,
        Self::France,
        Self::Singapore,
        Self::Japan,
        Self::HongKong,
        Self::Australia,
        Self::Brazil,
    ];

    /// Short name, as in `--region`: `us-east`, `jp`.
    #[must_use]
    pub fn code(self) -> &'static str {
        match self {
            Self::UsEast => "us-east",
            Self::UsWest => "us-west",
            Self::Canada => "ca",
            Self::Uk => "uk",
            Self::Germany => "de",
            Self::Netherlands => "nl",
            Self::France => "fr",
            Self::Singapore => "sg",
            Self::Japan => "jp",
            Self::HongKong => "hk",
            Self::Australia => "au",
            Self::Brazil => "br",
        }
    }

    /// The city, for people.
    #[must_use]
    pub fn city(self) -> &'static str {
        match self {
            Self::UsEast => "Virginia",
            Self::UsWest => "Oregon",
            Self::Canada => "Montreal",
            Self::Uk => "London",
            Self::Germany => "Frankfurt",
            Self::Netherlands => "Amsterdam",
            Self::France => "Paris",
            Self::Singapore => "Singapore",
            Self::Japan => "Tokyo",
            Self::HongKong => "Hong Kong",
            Self::Australia => "Sydney",
            Self::Brazil => "Sao Paulo",
        }
    }

    /// Latitude and longitude in degrees, north and east positive.
    #[must_use]
    pub fn position(self) -> (f64, f64) {
        match self {
            Self::UsEast => (39.0, -77.5),
            Self::UsWest => (45.8, -119.7),
            Self::Canada => (45.5, -73.6),
            Self::Uk => (51.5, -0.1),
            Self::Germany => (50.1, 8.7),
            Self::Netherlands => (52.4, 4.9),
            Self::France => (48.9, 2.4),
            Self::Singapore => (1.3, 103.8),
            Self::Japan => (35.7, 139.7),
            Self::HongKong => (22.3, 114.2),
            Self::Australia => (-33.9, 151.2),
            Self::Brazil => (-23.6, -46.6),
        }
    }

    /// Round-trip time between nodes of two regions, or of one.
    #[must_use]
    pub fn rtt(self, other: Self) -> Duration {
        if self == other {
            Duration::from_micros(LOCAL_RTT_US)
        } else {
            Duration::from_millis(RTT_MS[self as usize][other as usize])
        }
    }

    /// One direction of a link between two regions: half the round trip, with
    /// a jitter of half a per cent of it, as quiet backbones have.
    #[must_use]
    pub fn link(self, other: Self) -> Profile {
        let delay = self.rtt(other) / 2;
        Profile { jitter: delay / 200, ..Profile::delayed(delay) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_symmetric_and_plausible() {
        for (i, a) in Region::ALL.into_iter().enumerate() {
            assert_eq!(a as usize, i);
            for b in Region::ALL {
                assert_eq!(a.rtt(b), b.rtt(a), "{a:?} {b:?}");
                // Light in glass takes 1 ms for 200 km; nobody is faster, and
                // no backbone needs four times as long between continents.
                let light = Duration::from_secs_f64(2.0 * distance_km(a, b) / 200_000.0);
                assert!(a.rtt(b) >= light, "{a:?} {b:?} faster than light: {light:?}");
                let slow = light * 4 + Duration::from_millis(10);
                assert!(a.rtt(b) < slow, "{a:?} {b:?}");
            }
        }
    }

    #[test]
    fn codes_are_unique() {
        let codes: std::collections::BTreeSet<_> = Region::ALL.map(Region::code).into();
        assert_eq!(codes.len(), Region::ALL.len());
    }

    /// Great-circle distance.
    fn distance_km(a: Region, b: Region) -> f64 {
        let ((lat_a, lon_a), (lat_b, lon_b)) = (a.position(), b.position());
        let (phi_a, phi_b) = (lat_a.to_radians(), lat_b.to_radians());
        let half = |degrees: f64| (degrees.to_radians() / 2.0).sin().powi(2);
        let h = half(lat_b - lat_a) + phi_a.cos() * phi_b.cos() * half(lon_b - lon_a);
        2.0 * 6371.0 * h.sqrt().asin()
    }
}
