//! What a terminal can show: pure functions of the environment's words.
//!
//! Colours are the sixteen of every terminal and never the only sign; where
//! the locale is not UTF-8, all text is ASCII.

use ratatui::style::{Color, Modifier, Style};
use warren_types::api::Health;

/// What may be drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Look {
    /// Colours may be used: `NO_COLOR` is not set.
    pub(super) colour: bool,
    /// Characters beyond ASCII may be used.
    pub(super) unicode: bool,
}

impl Look {
    /// From the environment, given as a function of a variable's name.
    pub(super) fn of(variable: impl Fn(&str) -> Option<String>) -> Self {
        let set = |name: &str| variable(name).filter(|value| !value.is_empty());
        // The first that is set counts (POSIX, 8.2).
        let locale = ["LC_ALL", "LC_CTYPE", "LANG"].into_iter().find_map(set);
        let locale = locale.unwrap_or_default().to_lowercase();
        Self {
            colour: set("NO_COLOR").is_none(),
            unicode: locale.contains("utf-8") || locale.contains("utf8"),
        }
    }

    pub(super) fn coloured(self, colour: Color) -> Style {
        if self.colour { Style::new().fg(colour) } else { Style::new() }
    }

    /// For what is of less weight.
    pub(super) fn faint() -> Style {
        Style::new().add_modifier(Modifier::DIM)
    }

    pub(super) fn strong() -> Style {
        Style::new().add_modifier(Modifier::BOLD)
    }

    /// A hop's health as a shape and a word, and its colour.
    pub(super) fn health(self, health: Health) -> (&'static str, Style) {
        let (shape, ascii, style) = match health {
            Health::Green => ("● green", "o green", self.coloured(Color::Green)),
            Health::Yellow => ("▲ yellow", "! yellow", self.coloured(Color::Yellow)),
            Health::Red => ("✖ red", "X red", self.coloured(Color::Red)),
            Health::Unknown => ("? unknown", "? unknown", Self::faint()),
        };
        (if self.unicode { shape } else { ascii }, style)
    }

    /// Text as the terminal can show it. Control characters would be its
    /// commands, so they never get there.
    pub(super) fn text(self, text: &str) -> String {
        let shown = |c: char| match c {
            c if c.is_control() => '?',
            c if c.is_ascii() || self.unicode => c,
            _ => '?',
        };
        text.chars().map(shown).collect()
    }

    pub(super) fn rule(self) -> &'static str {
        if self.unicode { "─" } else { "-" }
    }

    pub(super) fn side(self) -> &'static str {
        if self.unicode { "│" } else { "|" }
    }

    pub(super) fn mark(self) -> &'static str {
        if self.unicode { "▶" } else { ">" }
    }

    /// One column of a graph: nothing, then eight levels.
    pub(super) fn levels(self) -> [&'static str; 9] {
        if self.unicode {
            [" ", "▁", "▂", "▃", "▄", "▅", "▆", "▇", "█"]
        } else {
            [" ", ".", ".", ":", ":", "+", "+", "#", "#"]
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(variables: &[(&str, &str)]) -> Look {
        Look::of(|name| {
            variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn the_first_locale_variable_that_is_set_counts() {
        assert!(look(&[("LANG", "de_DE.UTF-8")]).unicode);
        assert!(look(&[("LC_ALL", ""), ("LANG", "C.utf8")]).unicode);
        assert!(!look(&[("LC_ALL", "C"), ("LANG", "de_DE.UTF-8")]).unicode);
        assert!(!look(&[]).unicode);
    }

    #[test]
    fn no_color_counts_when_it_is_not_empty() {
        assert!(look(&[("NO_COLOR", "")]).colour);
        assert!(!look(&[("NO_COLOR", "1")]).colour);
        assert_eq!(look(&[("NO_COLOR", "1")]).health(Health::Red).1, Style::new());
    }

    #[test]
    fn text_never_commands_the_terminal() {
        let both = Look { colour: true, unicode: true };
        assert_eq!(both.text("a\u{1b}[2Jé\u{9b}"), "a?[2Jé?");
        let ascii = Look { unicode: false, ..both };
        assert_eq!(ascii.text("é–a"), "??a");
    }
}
