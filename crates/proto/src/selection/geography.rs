//! Round trips between places, where nothing was measured.

use warren_types::Coordinates;

/// Mean radius of the earth, km (IUGG).
const RADIUS_KM: f64 = 6371.0;
/// Round trip per kilometre of great circle, microseconds: light in fibre goes
/// 200 km/ms there and back, and cables are about 1.4 times as long.
const US_PER_KM: f64 = 14.0;
/// What the last miles and machines add, microseconds.
const FIXED_US: f64 = 3000.0;
/// Where one of the places is not known: half the way round the world, on
/// average, would punish silence less than a place does; so somewhat more.
pub(super) const UNKNOWN_RTT_US: u32 = 150_000;

/// Great-circle distance (haversine), km.
pub fn distance_km(a: Coordinates, b: Coordinates) -> f64 {
    let radians = |degrees: f32| f64::from(degrees).to_radians();
    let (north, east) = (radians(b.north) - radians(a.north), radians(b.east) - radians(a.east));
    let h = (north / 2.0).sin().powi(2)
        + radians(a.north).cos() * radians(b.north).cos() * (east / 2.0).sin().powi(2);
    2.0 * RADIUS_KM * h.clamp(0.0, 1.0).sqrt().asin()
}

/// What a round trip between two points takes as a rule, microseconds.
pub fn estimated_rtt_us(a: Coordinates, b: Coordinates) -> u32 {
    (FIXED_US + distance_km(a, b) * US_PER_KM).round() as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use warren_types::Place;

    fn at(place: &str) -> Coordinates {
        place.parse::<Place>().unwrap().coordinates()
    }

    #[test]
    fn known_distances() {
        for (a, b, km) in [
            ("de-fra", "gb-lon", 640.0),
            ("gb-lon", "us-nyc", 5570.0),
            ("sg-sin", "jp-tyo", 5320.0),
            ("au-syd", "br-sao", 13_370.0),
            ("us-lax", "jp-tyo", 8800.0),
        ] {
            let found = distance_km(at(a), at(b));
            assert!((found - km).abs() < km * 0.02, "{a} {b}: {found}");
            assert_eq!(found, distance_km(at(b), at(a)));
        }
        assert_eq!(distance_km(at("fr-par"), at("fr-par")), 0.0);
    }

    #[test]
    fn estimates_are_of_the_right_size() {
        // Across the Atlantic some 80 ms, Europe to Australia 250 to 300 ms.
        let atlantic = estimated_rtt_us(at("gb-lon"), at("us-nyc"));
        assert!((70_000..95_000).contains(&atlantic), "{atlantic}");
        let far = estimated_rtt_us(at("de-fra"), at("au-syd"));
        assert!((220_000..300_000).contains(&far), "{far}");
    }
}
