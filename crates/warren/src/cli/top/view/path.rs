//! The onion path: how each hop does, and what stands by.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::{Color, Style};
use ratatui::text::{Line, Span};
use warren_types::api::{OnionCircuit, OnionHop, OnionReport, OnionState};

use super::super::look::Look;
use super::super::model::{Model, Pane, Rates};
use super::text::{cell, cut, share, speed};
use super::{part, put, title};
use crate::cli::onion::{rate, uptime};
use crate::cli::story::millis;

/// Titles and widths; the last, health, is never left out.
const COLUMNS: [(&str, usize); 9] = [
    ("", 1),
    ("HOP", 15),
    ("WHERE", 9),
    ("RTT", 7),
    ("ADDS", 7),
    ("LOSS", 6),
    ("GIVES", 10),
    ("UP", 6),
    ("HEALTH", 9),
];
/// What goes where there is no room, the first of these first.
const GOES: [usize; 5] = [7, 6, 5, 2, 4];
/// Width of WHERE that has room for a country's name.
const COUNTRY: usize = 28;

fn none() -> String {
    "-".to_owned()
}

fn widths(width: usize) -> [usize; COLUMNS.len()] {
    let mut widths = COLUMNS.map(|column| column.1);
    let used = |widths: &[usize]| widths.iter().filter(|w| **w > 0).map(|w| w + 1).sum::<usize>();
    for goes in GOES {
        if used(&widths) > width + 1 {
            widths[goes] = 0;
        }
    }
    let spare = (width + 1).saturating_sub(used(&widths));
    let whole = COUNTRY - COLUMNS[2].1;
    if widths[2] > 0 && spare >= whole {
        widths[2] = COUNTRY;
    }
    let spare = (width + 1).saturating_sub(used(&widths));
    widths[1] = (widths[1] + spare).min(40);
    widths
}

fn row(
    cells: &[String],
    widths: &[usize],
    look: Look,
    health: Style,
    rest: Style,
) -> Line<'static> {
    let last = cells.len() - 1;
    let spans = cells.iter().zip(widths).enumerate().filter(|(_, (_, width))| **width > 0);
    let spans = spans.map(|(i, (text, &width))| {
        let text = cell(&look.text(text), width, (3..8).contains(&i), look);
        Span::styled(format!("{text} "), if i == last { health } else { rest })
    });
    Line::from(spans.collect::<Vec<_>>())
}

fn hop(number: usize, hop: &OnionHop, widths: &[usize], look: Look) -> Line<'static> {
    let (word, style) = look.health(hop.health);
    let cells = [
        number.to_string(),
        hop.name.clone(),
        hop.place.as_ref().map_or_else(none, |place| match widths[2] {
            COUNTRY.. => format!("{} ({place})", place.country.name()),
            _ => place.to_string(),
        }),
        hop.rtt_ms.map_or_else(none, millis),
        hop.added_ms.map_or_else(none, millis),
        share(hop.loss),
        hop.bandwidth.map_or_else(none, rate),
        hop.uptime_s.map_or_else(none, uptime),
        word.to_owned(),
    ];
    row(&cells, widths, look, style, Style::new())
}

fn names(circuit: &OnionCircuit) -> String {
    let names: Vec<&str> = circuit.hops.iter().map(|hop| hop.name.as_str()).collect();
    names.join(" > ")
}

/// The first line: where the session stands.
fn state(report: &OnionReport, look: Look) -> Line<'static> {
    let (word, rest, colour) = match report.state {
        OnionState::Off => {
            let hint = ": traffic leaves as ever; `warren connect` leads it through a path";
            ("not connected", hint.to_owned(), None)
        }
        OnionState::Connecting => {
            ("connecting", ": nothing leaves yet".to_owned(), Some(Color::Yellow))
        }
        OnionState::Interrupted => {
            ("INTERRUPTED", ": nothing leaves until there is a path".to_owned(), Some(Color::Red))
        }
        OnionState::Connected => {
            let exit = report.exit.as_deref().unwrap_or("-");
            let country = report
                .exit_place
                .as_ref()
                .map(|place| format!(" in {} ({place})", place.country.name()));
            let switch = if report.kill_switch { ", kill switch on" } else { "" };
            let text = format!(": exit {exit}{}{switch}", country.unwrap_or_default());
            ("connected", text, Some(Color::Green))
        }
    };
    let style = colour.map_or(Style::new(), |colour| look.coloured(colour));
    Line::from(vec![Span::styled(word, style.patch(Look::strong())), Span::raw(look.text(&rest))])
}

/// The pane's text.
pub(super) fn lines(
    report: &OnionReport,
    session: Rates,
    look: Look,
    width: usize,
) -> Vec<Line<'static>> {
    let mut lines = vec![state(report, look)];
    if let Some(problem) = &report.problem {
        let text = look.text(&format!("problem: {problem}"));
        lines.push(Line::styled(cut(&text, width, look), look.coloured(Color::Yellow)));
    }
    let active = report.circuits.first().filter(|circuit| circuit.phase == "active");
    if let Some(circuit) = active {
        let measured = circuit.hops.last().and_then(|hop| hop.rtt_ms).map_or_else(none, millis);
        let expected = report.predicted_ms.map_or_else(none, millis);
        lines.push(Line::raw(format!(
            "there and back: {measured} measured, {expected} expected; up {}, down {}",
            speed(session.up),
            speed(session.down)
        )));
        let widths = widths(width);
        let head = COLUMNS.map(|column| column.0.to_owned());
        lines.push(row(&head, &widths, look, Look::strong(), Look::strong()));
        for (i, one) in circuit.hops.iter().enumerate() {
            lines.push(hop(i + 1, one, &widths, look));
            if let Some(why) = &one.why {
                let text = cut(&look.text(&format!("    {why}")), width, look);
                lines.push(Line::styled(text, look.health(one.health).1));
            }
        }
    }
    for circuit in report.circuits.iter().skip(usize::from(active.is_some())) {
        let rtt = circuit.hops.last().and_then(|hop| hop.rtt_ms);
        let rtt = rtt.map_or_else(String::new, |rtt| format!(" ({})", millis(rtt)));
        let text = format!("{}: {}{rtt}", circuit.phase, names(circuit));
        lines.push(Line::styled(cut(&look.text(&text), width, look), Look::faint()));
    }
    let mut more = |text: String| lines.push(Line::raw(cut(&text, width, look)));
    if !report.isolated.is_empty() {
        let text = "user names with a path of their own (`warren path show`)";
        more(format!("{} {text}", report.isolated.len()));
    }
    let relay = &report.relay;
    if relay.handshakes > 0 {
        let (circuits, sessions, refused) = (relay.circuits, relay.sessions, relay.refused);
        more(format!("for others: {circuits} circuits, {sessions} sessions; {refused} refused"));
    }
    lines
}

pub(super) fn draw(
    buffer: &mut Buffer,
    area: Rect,
    model: &mut Model,
    look: Look,
    lines: Vec<Line<'static>>,
) {
    let visible = usize::from(area.height.saturating_sub(1));
    let first = model.offset(Pane::Path, lines.len(), visible);
    let chosen = model.pane == Pane::Path;
    title(buffer, area, "Onion path", chosen, &part(first, visible, lines.len()), look);
    for (y, line) in (area.y + 1..).zip(lines.iter().skip(first).take(visible)) {
        put(buffer, area, y, line);
    }
}
