//! What keys do: pure. In: a key and the model. Out: the model changed, or the
//! word to end.

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

use super::model::{Model, Scroll};

/// Lines of a page: short of what the smallest pane of a usual terminal shows
/// would bore, more would skip.
const PAGE: isize = 10;

/// Applies a key; true when it ends the program.
pub(super) fn press(model: &mut Model, key: KeyEvent) -> bool {
    if key.kind == KeyEventKind::Release {
        return false;
    }
    if key.modifiers.contains(KeyModifiers::CONTROL) {
        return matches!(key.code, KeyCode::Char('c'));
    }
    if model.help {
        model.help = false;
        return matches!(key.code, KeyCode::Char('q'));
    }
    if model.typing {
        match key.code {
            KeyCode::Enter => model.typing = false,
            KeyCode::Esc => {
                model.typing = false;
                model.clear_filter();
            }
            KeyCode::Backspace => model.edit_filter(None),
            KeyCode::Char(c) => model.edit_filter(Some(c)),
            _ => {}
        }
        return false;
    }
    match key.code {
        KeyCode::Char('q') | KeyCode::Esc => return true,
        KeyCode::Char('?') | KeyCode::Char('h') => model.help = true,
        KeyCode::Char('s') => model.sort_on(),
        KeyCode::Char('/') => {
            model.pane = super::model::Pane::Peers;
            model.typing = true;
        }
        KeyCode::Tab | KeyCode::Right => model.other_pane(false),
        KeyCode::BackTab | KeyCode::Left => model.other_pane(true),
        KeyCode::Up => model.scroll(Scroll::Lines(-1)),
        KeyCode::Down => model.scroll(Scroll::Lines(1)),
        KeyCode::PageUp => model.scroll(Scroll::Lines(-PAGE)),
        KeyCode::PageDown => model.scroll(Scroll::Lines(PAGE)),
        KeyCode::Home => model.scroll(Scroll::Start),
        KeyCode::End => model.scroll(Scroll::End),
        _ => {}
    }
    false
}

/// Keys and what they do, as `?` shows them.
pub(super) const HELP: [(&str, &str); 8] = [
    ("q, Esc, Ctrl-C", "quit"),
    ("Tab, left, right", "choose path, peers or events"),
    ("up, down", "scroll it by a line"),
    ("PgUp, PgDn", "scroll it by a page"),
    ("Home, End", "to its start or end"),
    ("s", "sort peers: name, RTT, traffic"),
    ("/", "show peers with this in their name"),
    ("?", "this help; any key closes it"),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::top::model::Pane;

    fn type_in(model: &mut Model, codes: &[KeyCode]) -> bool {
        codes.iter().any(|code| press(model, KeyEvent::new(*code, KeyModifiers::NONE)))
    }

    #[test]
    fn q_escape_and_control_c_quit() {
        let mut model = Model::default();
        assert!(type_in(&mut model, &[KeyCode::Char('q')]));
        assert!(type_in(&mut model, &[KeyCode::Esc]));
        let control_c = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
        model.typing = true;
        assert!(press(&mut model, control_c));
        model.typing = false;
        assert!(!type_in(&mut model, &[KeyCode::Char('c')]));
    }

    #[test]
    fn a_filter_is_typed_kept_and_dropped() {
        let mut model = Model::default();
        let keys = ['/', 'q', 's', 'x'].map(KeyCode::Char);
        assert!(!type_in(&mut model, &keys));
        assert!(!type_in(&mut model, &[KeyCode::Backspace]));
        assert_eq!((model.filter(), model.typing), ("qs", true));
        type_in(&mut model, &[KeyCode::Enter]);
        assert_eq!((model.filter(), model.typing), ("qs", false));
        assert!(!type_in(&mut model, &[KeyCode::Char('/'), KeyCode::Esc]));
        assert_eq!((model.filter(), model.typing), ("", false));
    }

    #[test]
    fn tab_goes_around_and_help_closes_by_any_key() {
        let mut model = Model::default();
        type_in(&mut model, &[KeyCode::Tab]);
        assert_eq!(model.pane, Pane::Events);
        type_in(&mut model, &[KeyCode::Tab, KeyCode::Tab]);
        assert_eq!(model.pane, Pane::Peers);
        type_in(&mut model, &[KeyCode::Left]);
        assert_eq!(model.pane, Pane::Path);
        type_in(&mut model, &[KeyCode::Char('?')]);
        assert!(model.help);
        assert!(!type_in(&mut model, &[KeyCode::Esc]));
        assert!(!model.help);
    }
}
