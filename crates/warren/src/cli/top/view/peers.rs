//! The table of peers: of thousands, only the rows that are visible are made.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::{Color, Style};
use ratatui::text::{Line, Span};
use warren_types::api::{PeerKind, PeerStatus};

use super::super::look::Look;
use super::super::model::{Model, Pane, Rates};
use super::text::{cell, share, speed};
use super::{part, put, title};
use crate::cli::status::span;
use crate::cli::story::millis;

/// A column: its title, its width, whether its text is at the right, and when
/// it goes where there is no room: the largest first.
struct Column(&'static str, usize, bool, u8);

const COLUMNS: [Column; 7] = [
    Column("PEER", 15, false, 0),
    Column("PATH", 15, false, 1),
    Column("RTT", 7, true, 2),
    Column("LOSS", 6, true, 5),
    Column("UP", 10, true, 3),
    Column("DOWN", 10, true, 4),
    Column("HANDSHAKE", 9, true, 6),
];
/// Widest name and path where there is room.
const WIDEST: [usize; 2] = [40, 30];

/// The width of each column, 0 for those left out. Pure.
fn widths(width: usize) -> [usize; COLUMNS.len()] {
    let mut widths = COLUMNS.map(|column| column.1);
    let used = |widths: &[usize]| widths.iter().filter(|w| **w > 0).map(|w| w + 1).sum::<usize>();
    for goes in (1..=6).rev() {
        if used(&widths) <= width + 1 {
            break;
        }
        for (width, column) in widths.iter_mut().zip(&COLUMNS) {
            if column.3 == goes {
                *width = 0;
            }
        }
    }
    for (column, widest) in WIDEST.into_iter().enumerate() {
        let spare = (width + 1).saturating_sub(used(&widths));
        if widths[column] > 0 {
            // The path is given its part of what there is, too.
            let share = if column == 0 { spare / 2 } else { spare };
            widths[column] = (widths[column] + share).min(widest);
        }
    }
    widths
}

fn cells(peer: &PeerStatus, rates: Rates) -> [String; COLUMNS.len()] {
    let none = || "-".to_owned();
    let kind = if peer.kind == PeerKind::Wireguard { " (wg)" } else { "" };
    [
        format!("{}{kind}", peer.name),
        peer.path.clone(),
        peer.rtt_ms.map_or_else(none, millis),
        peer.loss.map_or_else(none, share),
        speed(rates.up),
        speed(rates.down),
        peer.handshake_age_s.map_or_else(none, span),
    ]
}

/// The word says it; the colour only helps to find it.
fn path_style(path: &str, look: Look) -> Style {
    match path {
        "direct" => look.coloured(Color::Green),
        "none" => Look::faint(),
        "connecting" => look.coloured(Color::Yellow),
        _ => look.coloured(Color::Cyan),
    }
}

fn row(
    cells: &[String],
    widths: &[usize],
    look: Look,
    styles: impl Fn(usize) -> Style,
) -> Line<'static> {
    let mut spans = Vec::with_capacity(cells.len());
    for (i, (text, &width)) in cells.iter().zip(widths).enumerate() {
        if width > 0 {
            let text = cell(&look.text(text), width, COLUMNS[i].2, look);
            spans.push(Span::styled(format!("{text} "), styles(i)));
        }
    }
    Line::from(spans)
}

/// What is said where there are no rows.
fn empty(model: &Model, look: Look) -> String {
    if !model.filter().is_empty() {
        return look.text(&format!("no name has `{}` in it; / and Esc show all", model.filter()));
    }
    let admin = model.latest().is_some_and(|latest| latest.status.network.admin);
    let hint = if admin { "; `warren invite` admits one" } else { "" };
    format!("no peers yet{hint}")
}

pub(super) fn draw(buffer: &mut Buffer, area: Rect, model: &mut Model, look: Look) {
    let all = model.row_count();
    let visible = usize::from(area.height.saturating_sub(2));
    let first = model.offset(Pane::Peers, all, visible);
    let known = model.latest().map_or(0, |latest| latest.status.peers.len());
    let mut text = format!("Peers: {known}, by {}", model.sort().word());
    if !model.filter().is_empty() {
        text += &look.text(&format!(", {all} with `{}`", model.filter()));
    }
    let chosen = model.pane == Pane::Peers;
    title(buffer, area, &text, chosen, &part(first, visible, all), look);
    if all == 0 {
        put(buffer, area, area.y + 1, &Line::styled(empty(model, look), Look::faint()));
        return;
    }
    let widths = widths(area.width.into());
    let head = COLUMNS.map(|column| column.0.to_owned());
    put(buffer, area, area.y + 1, &row(&head, &widths, look, |_| Look::strong()));
    for (y, (peer, rates)) in (area.y + 2..).zip(model.rows(first, visible)) {
        let style = |column| match column {
            1 => path_style(&peer.path, look),
            _ => Style::new(),
        };
        put(buffer, area, y, &row(&cells(peer, rates), &widths, look, style));
    }
}
