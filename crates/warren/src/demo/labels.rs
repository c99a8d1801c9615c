//! Where on the map markers and names go, so that none hides another.
//!
//! In: the places as dots. Out: characters, from the upper left corner of the
//! map. Greedy: each name takes the first of some places around its marker
//! that is free; with a dozen nodes nothing better is needed. The same nodes
//! always give the same picture.

use super::map;
use super::scene::NodeView;

/// A character of the map: column and row.
type Spot = (usize, usize);

/// Markers, moved to a neighbouring character where one is taken.
pub(super) fn marks(places: &[(f64, f64)]) -> Vec<Spot> {
    const AROUND: [(isize, isize); 5] = [(0, 0), (0, 1), (-1, 0), (1, 0), (0, -1)];
    let mut taken: Vec<Spot> = Vec::new();
    for (x, y) in places {
        let home = ((x / 2.0) as usize, (y / 4.0) as usize);
        let free = AROUND.iter().filter_map(|by| moved(home, *by, 1));
        let spot = free.into_iter().find(|spot| !taken.contains(spot)).unwrap_or(home);
        taken.push(spot);
    }
    taken
}

/// The first character of each name.
pub(super) fn place(marks: &[Spot], nodes: &[NodeView]) -> Vec<Spot> {
    let mut taken: Vec<(Spot, usize)> = marks.iter().map(|mark| (*mark, 1)).collect();
    let mut spots = Vec::new();
    for (mark, node) in marks.iter().zip(nodes) {
        let width = node.name.len();
        let left = -(width as isize) - 1;
        let middle = -(width as isize) / 2;
        let around = [
            (2, 0),
            (left, 0),
            (2, -1),
            (left, 1),
            (2, 1),
            (left, -1),
            (middle, -1),
            (middle, 1),
            (middle, -2),
            (middle, 2),
        ];
        let mut free = around.iter().filter_map(|by| moved(*mark, *by, width));
        let spot = free
            .find(|spot| !taken.iter().any(|other| overlap((*spot, width), *other)))
            .unwrap_or(*mark);
        taken.push((spot, width));
        spots.push(spot);
    }
    spots
}

/// A spot beside another, if a text of this width there stays on the map.
fn moved((column, row): Spot, (right, down): (isize, isize), width: usize) -> Option<Spot> {
    let column = column.checked_add_signed(right)?;
    let row = row.checked_add_signed(down)?;
    (column + width <= map::COLUMNS && row < map::ROWS).then_some((column, row))
}

/// Two texts that share a character, or touch.
fn overlap(a: (Spot, usize), b: (Spot, usize)) -> bool {
    let (((a_column, a_row), a_width), ((b_column, b_row), b_width)) = (a, b);
    a_row == b_row && a_column < b_column + b_width + 1 && b_column < a_column + a_width + 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::cast::CAST;
    use crate::demo::scene::Scene;

    #[test]
    fn nobody_hides_anybody() {
        let nodes = Scene::new(&CAST, &[]).nodes;
        let places: Vec<_> = nodes
            .iter()
            .map(|node| {
                let (latitude, longitude) = node.region.position();
                map::dot(latitude, longitude)
            })
            .collect();
        let marks = marks(&places);
        let names = place(&marks, &nodes);
        let texts: Vec<(Spot, usize)> = marks
            .iter()
            .map(|mark| (*mark, 1))
            .chain(names.iter().zip(&nodes).map(|(spot, node)| (*spot, node.name.len())))
            .collect();
        for (i, a) in texts.iter().enumerate() {
            for (j, b) in texts.iter().enumerate().skip(i + 1) {
                // Markers of neighbours may touch.
                let both_marks = j < marks.len();
                assert!(!overlap(*a, *b) || (both_marks && a.0 != b.0), "{i} {a:?} {j} {b:?}");
            }
            assert!(a.0.0 + a.1 <= map::COLUMNS && a.0.1 < map::ROWS);
        }
    }
}
