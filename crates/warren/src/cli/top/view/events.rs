//! The newest events, each with its reason.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::{Color, Style};
use ratatui::text::Line;
use warren_types::api::Event;

use super::super::look::Look;
use super::super::model::{Model, Pane};
use super::{part, put, text, title};
use crate::cli::story;

/// The words say it; the colour only helps to find it.
fn style(event: &Event, look: Look) -> Style {
    match event {
        Event::OnionInterrupted { .. }
        | Event::OnionExitLost { .. }
        | Event::PeerUnreachable { .. } => look.coloured(Color::Red),
        Event::OnionHopFailed { .. }
        | Event::OnionMoved { .. }
        | Event::PeerRemoved { .. }
        | Event::Refused { .. } => look.coloured(Color::Yellow),
        Event::OnionConnected { .. } => look.coloured(Color::Green),
        _ => Style::new(),
    }
}

pub(super) fn draw(buffer: &mut Buffer, area: Rect, model: &mut Model, look: Look) {
    let all = model.events().len();
    let visible = usize::from(area.height.saturating_sub(1));
    let first = model.offset(Pane::Events, all, visible);
    let chosen = model.pane == Pane::Events;
    title(buffer, area, "Events, newest first", chosen, &part(first, visible, all), look);
    if all == 0 {
        let line = Line::styled("nothing happened yet", Look::faint());
        put(buffer, area, area.y + 1, &line);
    }
    for (y, record) in (area.y + 1..).zip(model.events().iter().skip(first).take(visible)) {
        let line = look.text(&story::dated(record.at, &record.event));
        let line = text::cut(&line, area.width.into(), look);
        put(buffer, area, y, &Line::styled(line, style(&record.event, look)));
    }
}
