//! QR codes as text, for cameras of phones.

use warren_node::fault::{Fault, FaultKind};

/// `text` as a QR code of half blocks, light on dark as terminals show it.
pub(super) fn render(text: &str) -> Result<String, Fault> {
    // Screens do not get scratched: the lowest error correction keeps it small.
    let code = fast_qr::QRBuilder::new(text).ecl(fast_qr::ECL::L).build().map_err(|_| {
        Fault::new(FaultKind::Internal, "the text is too long for a QR code")
            .remedy("use the text itself")
    })?;
    Ok(with_quiet_zone(&code.to_str()))
}

/// The encoder leaves a border of one module; readers want about four
/// (ISO/IEC 18004 section 9.1).
fn with_quiet_zone(code: &str) -> String {
    const SIDE: &str = "\u{2588}\u{2588}\u{2588}";
    let width = code.lines().map(|l| l.chars().count()).max().unwrap_or(0);
    let row = format!("{}\n", "\u{2588}".repeat(width + 6));
    // The encoder's first line is half a row: its lower half is the border.
    let mut text = row.clone();
    for (i, line) in code.lines().enumerate() {
        let line = if i == 0 { "\u{2588}".repeat(width) } else { line.to_owned() };
        text.push_str(&format!("{SIDE}{line}{SIDE}\n"));
    }
    text + &row
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_file_fits_and_a_book_does_not() {
        let code = render(&"x".repeat(600)).unwrap();
        assert!(code.lines().count() > 30);
        let widths: Vec<usize> = code.lines().map(|l| l.chars().count()).collect();
        assert!(widths.iter().all(|w| *w == widths[0]), "every line is as wide as the first");
        assert!(render(&"x".repeat(5000)).is_err());
    }
}
