//! QR codes as text, for cameras of phones.

use warren_node::fault::{Fault, FaultKind};

/// `text` as a QR code of half blocks, light on dark as terminals show it.
pub(super) fn render(text: &str) -> Result<String, Fault> {
    // Join codes are made for the compact alphanumeric mode: their base32 means
    // the same in upper case. Other texts keep their case.
    let code = fast_qr::QRBuilder::new(text).ecl(fast_qr::ECL::L).build().map_err(|_| {
        Fault::new(FaultKind::Internal, "the text is too long for a QR code")
            .remedy("use the text itself")
    })?;
    Ok(format!("{}\n", code.to_str()))
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
