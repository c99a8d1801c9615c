//! One frame of `warren top`, from the model and the size of the terminal: pure
//! but for the model's scroll offsets, which are bounded here.
//!
//! Top to bottom: the node and its throughput, the onion path, the peers, the
//! events, the keys. Where there is no room for three panes, only the chosen
//! one is shown. Invariants: only what is visible is made into text; all text
//! from outside goes through [`Look::text`].

mod events;
mod path;
mod peers;
mod text;

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::time::Duration;

use ratatui::Frame;
use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::{Color, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Clear, Widget};

use self::text::{fill, speed};
use super::keys::HELP;
use super::look::Look;
use super::model::{Model, Pane, Rates, Trouble};
use crate::cli::status::span;

/// The smallest terminal that is of use.
const LEAST: (u16, u16) = (40, 10);
/// Lines from which graphs are three lines high.
const TALL: u16 = 30;
/// Lines that all three panes need.
const ROOM_FOR_ALL: u16 = 13;
/// Least lines of the peers and of the events, with their titles.
const LEAST_PEERS: u16 = 5;
const LEAST_EVENTS: u16 = 4;

/// Draws it.
pub(super) fn draw(frame: &mut Frame<'_>, model: &mut Model, look: Look, now: Duration) {
    let area = frame.area();
    let buffer = frame.buffer_mut();
    if area.width < LEAST.0 || area.height < LEAST.1 {
        let (width, height) = LEAST;
        let lines = [
            format!("too small: {}x{}", area.width, area.height),
            format!("{width}x{height} is needed"),
            "q quits".to_owned(),
        ];
        for (y, line) in (area.y..area.bottom()).zip(lines) {
            put(buffer, area, y, &Line::raw(line));
        }
        return;
    }
    let foot = Rect { y: area.bottom() - 1, height: 1, ..area };
    if model.latest().is_some() {
        let top = header(buffer, area, model, look, now);
        let body = Rect { y: top, height: foot.y - top, ..area };
        panes(buffer, body, model, look);
        if model.trouble().is_some() {
            buffer.set_style(body, Look::faint());
        }
    } else {
        nothing_yet(buffer, area, model.trouble(), look, now);
    }
    footer(buffer, foot, model, look);
    if model.help {
        help(buffer, area, look);
    }
}

fn put(buffer: &mut Buffer, area: Rect, y: u16, line: &Line<'_>) {
    if y < area.bottom() {
        buffer.set_line(area.x, y, line, area.width);
    }
}

/// The screen before the first answer.
fn nothing_yet(
    buffer: &mut Buffer,
    area: Rect,
    trouble: Option<&Trouble>,
    look: Look,
    now: Duration,
) {
    let mut lines = vec![Line::styled("warren top", Look::strong()), Line::raw("")];
    match trouble {
        None => lines.push(Line::raw("asking the daemon ...")),
        Some(trouble) => {
            let age = now.saturating_sub(trouble.since).as_secs();
            lines
                .push(Line::styled(format!("no answer for {age} s"), look.coloured(Color::Yellow)));
            let why = trouble.why.lines().flat_map(|line| text::wrap(line, area.width.into()));
            lines.extend(why.map(|line| Line::raw(look.text(&line))));
            lines.extend([Line::raw(""), Line::raw("trying again until it answers")]);
        }
    }
    for (y, line) in (area.y..area.bottom() - 1).zip(&lines) {
        put(buffer, area, y, line);
    }
}

/// The node, what is wrong, and throughput; the line below it.
fn header(buffer: &mut Buffer, area: Rect, model: &Model, look: Look, now: Duration) -> u16 {
    let Some(latest) = model.latest() else { return area.y };
    let status = &latest.status;
    let (node, network) = (&status.node, &status.network);
    let mut y = area.y;
    let mut line = |buffer: &mut Buffer, line: Line<'_>| {
        put(buffer, area, y, &line);
        y += 1;
    };
    let state = match model.trouble() {
        None => Span::styled("live", look.coloured(Color::Green)),
        Some(_) => Span::styled("STALE", look.coloured(Color::Red).patch(Look::strong())),
    };
    line(
        buffer,
        Line::from(vec![
            Span::styled(look.text(&node.name), Look::strong()),
            Span::raw(look.text(&format!(" in {}, up {}, ", network.name, span(node.uptime_s)))),
            state,
        ]),
    );
    match model.trouble() {
        Some(trouble) => {
            let age = now.saturating_sub(latest.at).as_secs();
            let why = trouble.why.lines().next().unwrap_or_default();
            let text = look.text(&format!("{age} s old: {why}; trying again"));
            line(buffer, Line::styled(text, look.coloured(Color::Yellow)));
        }
        None => line(buffer, Line::styled(look.text(&node.mode), Look::faint())),
    }
    if let Some(warning) = status.warnings.first() {
        let more = match status.warnings.len() - 1 {
            0 => String::new(),
            more => format!(" (and {more} more: `warren status`)"),
        };
        let text = look.text(&format!("warning: {warning}{more}"));
        line(buffer, Line::styled(text, look.coloured(Color::Yellow)));
    }
    let height = if area.height >= TALL { 3 } else { 1 };
    throughput(buffer, Rect { y, height, ..area }, model.history(), look);
    y + height
}

/// Throughput up and down, side by side: the number, then the graph.
fn throughput(buffer: &mut Buffer, area: Rect, history: &VecDeque<Rates>, look: Look) {
    const LABEL: u16 = 17;
    type Way = (&'static str, fn(&Rates) -> f64, Color);
    let ways: [Way; 2] =
        [("up", |rates| rates.up, Color::Cyan), ("down", |rates| rates.down, Color::Magenta)];
    let half = area.width / 2;
    for (x, (word, rate, colour)) in [area.x, area.x + half].into_iter().zip(ways) {
        let now = history.back().map(rate);
        let number = now.map_or_else(|| "-".to_owned(), speed);
        buffer.set_stringn(x, area.y, word, 4, Look::strong());
        buffer.set_stringn(x + 5, area.y, &number, 11, Style::new());
        let width = half.saturating_sub(LABEL + 1);
        let samples: Vec<f64> = history.iter().map(rate).collect();
        let rows = graph(&samples, width.into(), area.height.into(), look);
        for (y, row) in (area.y..).zip(rows) {
            buffer.set_stringn(x + LABEL, y, row, width.into(), look.coloured(colour));
        }
    }
}

/// The last `width` samples as columns, the newest at the right, the largest
/// of them as high as there are rows.
fn graph(samples: &[f64], width: usize, height: usize, look: Look) -> Vec<String> {
    let shown = &samples[samples.len().saturating_sub(width)..];
    let most = shown.iter().copied().fold(0.0, f64::max);
    let levels = look.levels();
    let steps = levels.len() - 1;
    (0..height)
        .map(|row| {
            let below = (height - 1 - row) * steps;
            let mut line = " ".repeat(width - shown.len());
            for sample in shown {
                // Rounded up: little traffic is not none.
                let filled = if most > 0.0 {
                    (sample / most * (height * steps) as f64).ceil() as usize
                } else {
                    0
                };
                line += levels[filled.saturating_sub(below).min(steps)];
            }
            line
        })
        .collect()
}

/// The three panes, or the chosen one.
fn panes(buffer: &mut Buffer, body: Rect, model: &mut Model, look: Look) {
    let path = model
        .latest()
        .map(|latest| path::lines(&latest.onion, model.session(), look, body.width.into()))
        .unwrap_or_default();
    if body.height < ROOM_FOR_ALL {
        let area = body;
        match model.pane {
            Pane::Path => path::draw(buffer, area, model, look, path),
            Pane::Peers => peers::draw(buffer, area, model, look),
            Pane::Events => events::draw(buffer, area, model, look),
        }
        return;
    }
    let events = (body.height / 4).max(LEAST_EVENTS);
    let wanted = u16::try_from(path.len() + 1).unwrap_or(u16::MAX);
    let upper = wanted.min(body.height - events - LEAST_PEERS);
    let above = Rect { height: upper, ..body };
    let middle = Rect { y: above.bottom(), height: body.height - events - upper, ..body };
    let below = Rect { y: middle.bottom(), height: events, ..body };
    path::draw(buffer, above, model, look, path);
    peers::draw(buffer, middle, model, look);
    events::draw(buffer, below, model, look);
}

/// A pane's title line: its name, and what part of it is shown.
fn title(buffer: &mut Buffer, area: Rect, text: &str, chosen: bool, part: &str, look: Look) {
    let (mark, style) = if chosen {
        (look.mark(), look.coloured(Color::Cyan).patch(Look::strong()))
    } else {
        (look.rule(), Style::new())
    };
    let width = usize::from(area.width);
    let text = text::cut(&format!("{mark} {text} "), width.saturating_sub(part.len() + 2), look);
    let text = fill(&text, width.saturating_sub(part.len() + 1), look.rule());
    let line = Line::from(vec![Span::styled(text, style), Span::styled(format!(" {part}"), style)]);
    put(buffer, area, area.y, &line);
}

/// `3-9 of 20`, where not all of it is visible.
fn part(first: usize, visible: usize, all: usize) -> String {
    if visible >= all {
        return String::new();
    }
    format!("{}-{} of {all}", first + 1, (first + visible).min(all))
}

fn footer(buffer: &mut Buffer, area: Rect, model: &Model, look: Look) {
    let line = if model.typing {
        let typed = look.text(model.filter());
        Line::raw(format!("names with: {typed}_   Enter keeps it, Esc drops it"))
    } else {
        Line::styled("q quit  Tab pane  up/down scroll  s sort  / filter  ? help", Look::faint())
    };
    put(buffer, area, area.y, &line);
}

fn help(buffer: &mut Buffer, area: Rect, look: Look) {
    let width = 56.min(area.width);
    let height = (HELP.len() as u16 + 2).min(area.height);
    let x = area.x + (area.width - width) / 2;
    let y = area.y + (area.height - height) / 2;
    let inside = Rect { x, y, width, height };
    Clear.render(inside, buffer);
    title(buffer, inside, "Keys", true, "", look);
    let within = usize::from(width) - 4;
    let side = look.side();
    for (y, (keys, does)) in (y + 1..inside.bottom()).zip(HELP) {
        let text = text::cell(&format!("{keys:<17} {does}"), within, false, look);
        put(buffer, inside, y, &Line::raw(format!("{side} {text} {side}")));
    }
    put(buffer, inside, inside.bottom() - 1, &Line::raw(look.rule().repeat(width.into())));
}
