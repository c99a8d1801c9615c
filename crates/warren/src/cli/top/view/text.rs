//! Pieces of text of a given width, in characters.

use super::Look;

/// Cuts text to `width` characters, with a sign that it was.
pub(super) fn cut(text: &str, width: usize, look: Look) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    let mut short: String = text.chars().take(width.saturating_sub(1)).collect();
    if width > 0 {
        short.push(if look.unicode { '…' } else { '~' });
    }
    short
}

/// Text cut or filled to exactly `width`, at the left or the right of it.
pub(super) fn cell(text: &str, width: usize, right: bool, look: Look) -> String {
    let text = cut(text, width, look);
    if right { format!("{text:>width$}") } else { format!("{text:<width$}") }
}

/// Text followed by `with` up to `width`.
pub(super) fn fill(text: &str, width: usize, with: &str) -> String {
    let missing = width.saturating_sub(text.chars().count());
    format!("{text}{}", with.repeat(missing))
}

/// Text in lines of at most `width`, broken at spaces where there are some.
pub(super) fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let line = lines.last_mut().filter(|line| {
            line.is_empty() || line.chars().count() + 1 + word.chars().count() <= width
        });
        match line {
            Some(line) if line.is_empty() => line.push_str(word),
            Some(line) => *line += &format!(" {word}"),
            None => lines.push(word.to_owned()),
        }
    }
    lines
}

/// Bytes per second as people know them: bits, in the unit that keeps at least
/// one, at most ten characters.
pub(super) fn speed(bytes: f64) -> String {
    const UNITS: [&str; 5] = ["bit/s", "kbit/s", "Mbit/s", "Gbit/s", "Tbit/s"];
    let mut value = bytes * 8.0;
    let mut unit = 0;
    while value >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    let digits = if unit > 0 && value < 9.95 { 1 } else { 0 };
    format!("{value:.digits$} {}", UNITS[unit])
}

/// A share of 0 to 1.
pub(super) fn share(loss: f64) -> String {
    let percent = loss * 100.0;
    let digits = if percent < 9.95 { 1 } else { 0 };
    format!("{percent:.digits$} %")
}

#[cfg(test)]
mod tests {
    use super::*;

    const ASCII: Look = Look { colour: false, unicode: false };

    #[test]
    fn numbers_have_the_digits_that_matter() {
        let speeds = [0.0, 100.0, 125.0, 1_250_000.0, 124_937_500.0, 1.25e9].map(speed);
        assert_eq!(
            speeds,
            ["0 bit/s", "800 bit/s", "1.0 kbit/s", "10 Mbit/s", "1.0 Gbit/s", "10 Gbit/s"]
        );
        assert_eq!([0.0, 0.012, 1.0].map(share), ["0.0 %", "1.2 %", "100 %"]);
    }

    #[test]
    fn text_keeps_its_width() {
        assert_eq!(cell("long-name", 5, false, ASCII), "long~");
        assert_eq!(cell("ab", 4, true, ASCII), "  ab");
        assert_eq!(fill("ab", 4, "-"), "ab--");
        assert_eq!(wrap("one two  three", 7), ["one two", "three"]);
    }
}
