//! A grid of coloured characters, and the escape sequences that show it.
//!
//! Invariant: whatever is written, the grid keeps its size, so a terminal of
//! that size never scrolls or wraps.

use std::fmt::Write;

/// A colour of the 256-colour palette.
pub(super) type Colour = u8;

/// Text as it comes.
pub(super) const PLAIN: Colour = 252;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Cell {
    character: char,
    colour: Colour,
    bold: bool,
}

const BLANK: Cell = Cell { character: ' ', colour: PLAIN, bold: false };

/// First of the 256 braille patterns; the dots are bits of the offset.
const BRAILLE: u32 = 0x2800;

/// Bits of the dots of a pattern, by row and column.
const DOTS: [[u8; 2]; 4] = [[0x01, 0x08], [0x02, 0x10], [0x04, 0x20], [0x40, 0x80]];

/// The grid.
#[derive(Debug, Clone)]
pub(super) struct Canvas {
    columns: usize,
    cells: Vec<Cell>,
}

impl Canvas {
    /// An empty grid.
    pub(super) fn new(columns: usize, rows: usize) -> Self {
        Self { columns, cells: vec![BLANK; columns * rows] }
    }

    /// Rows of the grid.
    pub(super) fn rows(&self) -> usize {
        self.cells.len() / self.columns.max(1)
    }

    /// Writes text from a place on; what would leave the grid is cut off.
    pub(super) fn text(
        &mut self,
        column: usize,
        row: usize,
        text: &str,
        colour: Colour,
        bold: bool,
    ) {
        for (i, character) in text.chars().enumerate() {
            // Names and messages come from outside: nothing in them may reach
            // the terminal as a command.
            let character = if character.is_control() { ' ' } else { character };
            self.set(column + i, row, Cell { character, colour, bold });
        }
    }

    /// Sets one dot of the braille pattern of a cell. A dot of another colour
    /// replaces the cell's pattern.
    pub(super) fn dot(&mut self, x: f64, y: f64, colour: Colour) {
        if x < 0.0 || y < 0.0 {
            return;
        }
        let (x, y) = (x as usize, y as usize);
        let (column, row) = (x / 2, y / 4);
        let Some(cell) = self.cell(column, row) else { return };
        let pattern = u32::from(cell.character);
        let old = match pattern.checked_sub(BRAILLE) {
            Some(dots @ 0..=0xff) if cell.colour == colour => dots,
            Some(0..=0xff) => 0,
            // Text stays readable.
            _ if cell.character != ' ' => return,
            _ => 0,
        };
        let bit = u32::from(DOTS[y % 4][x % 2]);
        let character = char::from_u32(BRAILLE + (old | bit)).unwrap_or(' ');
        self.set(column, row, Cell { character, colour, bold: false });
    }

    fn cell(&self, column: usize, row: usize) -> Option<Cell> {
        (column < self.columns).then(|| self.cells.get(row * self.columns + column).copied())?
    }

    fn set(&mut self, column: usize, row: usize, cell: Cell) {
        if column < self.columns
            && let Some(place) = self.cells.get_mut(row * self.columns + column)
        {
            *place = cell;
        }
    }

    /// A row without colours, trailing blanks included.
    #[cfg(test)]
    pub(super) fn row_text(&self, row: usize) -> String {
        self.cells[row * self.columns..(row + 1) * self.columns]
            .iter()
            .map(|cell| cell.character)
            .collect()
    }

    /// The bytes that draw the grid on a terminal, from its upper left corner.
    pub(super) fn to_ansi(&self) -> String {
        // Between these two sequences a terminal that knows them shows no
        // half-drawn picture.
        let mut out = String::from("\x1b[?2026h\x1b[H");
        for (row, cells) in self.cells.chunks(self.columns.max(1)).enumerate() {
            if row > 0 {
                out.push_str("\r\n");
            }
            let mut style = None;
            for cell in cells {
                if style != Some((cell.colour, cell.bold)) {
                    let bold = if cell.bold { "1" } else { "0" };
                    // Writing to a String does not fail.
                    let _ = write!(out, "\x1b[{bold};38;5;{}m", cell.colour);
                    style = Some((cell.colour, cell.bold));
                }
                out.push(cell.character);
            }
            out.push_str("\x1b[0m");
        }
        out.push_str("\x1b[?2026l");
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_leaves_the_grid() {
        let mut canvas = Canvas::new(10, 3);
        canvas.text(7, 1, "abcdef", 1, true);
        canvas.text(0, 9, "below", 1, true);
        canvas.dot(-1.0, 0.0, 3);
        canvas.dot(1e9, 1e9, 3);
        canvas.text(0, 2, "a\x1b[2Jb\n", 1, false);
        assert_eq!(canvas.row_text(0), " ".repeat(10));
        assert_eq!(canvas.row_text(1), "       abc");
        assert_eq!(canvas.row_text(2), "a [2Jb    ");
        assert_eq!(canvas.to_ansi().matches("\r\n").count(), 2);
    }

    #[test]
    fn dots_of_one_colour_add_up() {
        let mut canvas = Canvas::new(2, 1);
        canvas.dot(0.0, 0.0, 3);
        canvas.dot(1.9, 3.9, 3);
        assert_eq!(canvas.row_text(0), "\u{2881} ");
        canvas.dot(0.0, 1.0, 4);
        assert_eq!(canvas.row_text(0), "\u{2802} ", "another colour starts anew");
        canvas.text(1, 0, "x", 1, false);
        canvas.dot(2.0, 0.0, 3);
        assert_eq!(canvas.row_text(0), "\u{2802}x", "text stays");
    }
}
