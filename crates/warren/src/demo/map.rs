//! The world as the picture shows it: land as braille dots, and where on it a
//! place lies.
//!
//! The outline is Natural Earth's 1:110m land (public domain), drawn with two
//! by four dots to a character, evenly spaced in longitude and latitude.

/// Columns of the map.
pub(super) const COLUMNS: usize = 80;

/// Rows of the map.
pub(super) const ROWS: usize = 12;

/// Dots across: two for each column.
pub(super) const DOTS_X: f64 = 2.0 * COLUMNS as f64;

/// Dots down: four for each row.
pub(super) const DOTS_Y: f64 = 4.0 * ROWS as f64;

/// Dots once around the globe; some of the Pacific is left out.
pub(super) const DOTS_AROUND: f64 = DOTS_X * 360.0 / (EAST - WEST);

const WEST: f64 = -160.0;
const EAST: f64 = 180.0;
const NORTH: f64 = 74.0;
const SOUTH: f64 = -44.0;

/// Land, in braille patterns.
pub(super) const LAND: [&str; ROWS] = [
    "⣶⣶⣶⣶⣦⣤⣤⣶⣽⣭⣿⣶⣿⣦⣽⣿⣬⣿⣿⣷⣶⣦⣤⣤⣬⣿⣿⣿⣿⣿⣿⣿⣧⣤⣤⣤⣤⣤⣤⣤⡤⠀⠀⡒⠒⢀⣀⣤⠠⠄⠉⠀⠀⠐⠓⠒⠚⠛⠛⠛⠛⠛⠛⠛⠛⠛⠛⠛⠒⠒⠚⠓⠒⠒⠒⠀⠀⠀⠀⠀",
    "⠻⠟⠛⠛⠛⠻⢿⣿⣿⣿⣿⣿⣿⣿⣿⣯⣀⡀⠀⢰⣶⣭⣤⡀⠀⠈⠉⠋⠀⠀⠀⠀⠀⠀⠀⠀⢠⡀⠀⢺⢿⠟⢈⣿⣿⣿⣿⣿⣿⣿⣿⣿⣿⣿⣿⣿⣿⣿⣿⣿⣿⣿⣿⣿⣿⣿⣿⣿⣿⣿⠿⠛⠛⠛⣩⣽⠛⠛⠉⠁",
    "⠀⠀⠀⠀⠀⠀⠀⠙⢻⣿⣿⣿⣿⣿⣿⣿⣿⣿⣷⣿⣿⣿⣟⠋⠧⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠈⠘⢿⣶⣿⣿⣿⣿⣿⣿⢿⢿⣿⣿⠿⣿⣿⣿⣿⣿⣿⣿⣿⣿⣿⣿⣿⣿⣿⣿⣿⣿⣿⣿⣿⠟⠇⠀⠀⠈⠀⠀⠀⠀⠀",
    "⠀⠀⠀⠀⠀⠀⠀⠀⠸⣿⣿⣿⣿⣿⣿⣿⣿⣿⣿⣿⠋⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠸⣿⢟⣉⣐⠉⠊⠻⠛⠷⡶⣶⣿⣿⣀⣹⣿⣿⣿⣿⣿⣿⣿⣿⣿⣿⣿⣿⣿⣿⣟⠛⢿⠉⢁⡸⠁⠀⠀⠀⠀⠀⠀⠀⠀",
    "⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠻⡿⣿⣿⣿⠛⠛⠛⢏⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⢀⣼⣿⣿⣿⣿⣷⣶⣶⣶⣶⡶⣿⣿⣿⡻⠿⣿⣿⣿⣿⣿⣿⣿⣿⣿⣿⣿⣿⣿⣿⣿⠆⠀⠈⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀",
    "⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠈⠿⢷⣄⣴⠀⠀⠒⠠⠄⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⢐⣿⣿⣿⣿⣿⣿⣿⣿⣿⣿⣿⣿⣎⢻⣿⣿⠿⠃⠀⠈⠛⣿⣿⠟⠋⠹⣿⣿⣟⠙⠉⠀⡀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀",
    "⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠈⠙⠤⢤⣶⣦⣤⣄⠀⠀⠀⠀⠀⠀⠀⠀⠀⠈⠻⣿⣿⣿⣿⣿⣿⣿⣿⣿⣿⣿⣿⣿⣭⡆⠀⠀⠀⠀⠀⠹⠣⠀⠀⠀⠈⡉⠛⠁⠀⡀⠡⡄⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀",
    "⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⢠⣾⣿⣿⣿⣿⣿⣷⣤⣀⡀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠨⣿⣿⣿⣿⣿⣿⣿⠟⠉⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠈⢾⡀⠰⣾⢃⡀⠀⠠⣀⣀⡀⠀⠀⠀⠀⠀⠀⠀⠀",
    "⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠈⢻⣿⣿⣿⣿⣿⣿⣿⣿⡿⠃⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⢘⣿⣿⣿⣿⣿⣿⠀⠀⡀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠈⠀⠀⠀⠀⠀⢀⡀⠙⡋⠂⠀⠀⠀⠀⠀⠀⠀",
    "⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠉⣿⣿⣿⣿⣿⣿⡿⠃⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠸⣿⣿⣿⣿⣿⠋⠀⣾⠃⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⢀⣤⣴⣿⣿⣿⣶⣿⣄⠀⠀⠀⠀⠀⠀⠀",
    "⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⣿⣿⣿⣿⡿⠁⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠹⣿⣿⠿⠃⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠸⣿⣿⠿⠿⣿⣿⣿⣿⡗⠀⠀⠀⠀⠀⠀",
    "⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⢸⣿⡿⠛⠁⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠙⠛⡋⠀⠀⠀⠀⠀⡰⠂",
];

/// The dot of a latitude and longitude (degrees, north and east positive),
/// from the upper left corner.
pub(super) fn dot(latitude: f64, longitude: f64) -> (f64, f64) {
    ((longitude - WEST) / (EAST - WEST) * DOTS_X, (NORTH - latitude) / (NORTH - SOUTH) * DOTS_Y)
}

#[cfg(test)]
mod tests {
    use super::*;
    use warren_lab::wan::Region;

    #[test]
    fn every_region_lies_on_the_map_near_land() {
        assert!(LAND.iter().all(|row| row.chars().count() == COLUMNS));
        for region in Region::ALL {
            let (latitude, longitude) = region.position();
            let (x, y) = dot(latitude, longitude);
            assert!((0.0..DOTS_X).contains(&x) && (0.0..DOTS_Y).contains(&y), "{region:?}");
            let (column, row) = ((x / 2.0) as usize, (y / 4.0) as usize);
            let near = row.saturating_sub(1)..(row + 2).min(ROWS);
            let land =
                near.flat_map(|row| LAND[row].chars().skip(column.saturating_sub(1)).take(3));
            assert!(land.into_iter().any(|c| c != '\u{2800}'), "{region:?} is at sea");
        }
    }
}
