//! Frames against the text in `frames/`; `WARREN_NEW_FRAMES=1` writes that
//! text anew, to be read before it is committed.

use std::path::Path;
use std::time::{Duration, Instant};

use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::buffer::Buffer;
use ratatui::style::{Color, Modifier};

use super::super::examples::{answer, event, moved, path, peer};
use super::*;

const FULL: Look = Look { colour: true, unicode: true };
const PLAIN: Look = Look { colour: false, unicode: false };

fn frame(model: &mut Model, look: Look, now: u64, width: u16, height: u16) -> Buffer {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| draw(frame, model, look, Duration::from_secs(now))).unwrap();
    terminal.backend().buffer().clone()
}

fn text(buffer: &Buffer) -> String {
    let width = usize::from(buffer.area.width);
    let lines = buffer.content.chunks(width).map(|cells| {
        let line: String = cells.iter().map(|cell| cell.symbol()).collect();
        line.trim_end().to_owned() + "\n"
    });
    lines.collect()
}

fn expect(name: &str, buffer: &Buffer) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/cli/top/view/frames").join(name);
    let drawn = text(buffer);
    if std::env::var_os("WARREN_NEW_FRAMES").is_some() {
        std::fs::write(&path, &drawn).unwrap();
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(drawn == expected, "{name} is drawn otherwise:\n{drawn}\nexpected:\n{expected}");
}

/// A node with some peers, traffic, and events.
fn busy(onion: bool) -> Model {
    let mut model = Model::default();
    for second in 1..=12_u64 {
        let bytes = second * second * 40_000;
        let mut peers: Vec<_> = (1..=9)
            .map(|i| peer(&format!("gpu-{i}"), Some(0.4 * i as f64), bytes * i, bytes / i))
            .collect();
        peers.push(peer("a-laptop-with-a-long-name", None, 0, 0));
        peers[2].path = "via gpu-3, gpu-4".into();
        let mut answer = answer(second as f64, peers);
        if onion {
            answer.onion = path();
            (answer.onion.tx_bytes, answer.onion.rx_bytes) = (bytes, bytes * 3);
        }
        model.answered(answer);
    }
    for i in 0..8 {
        model.happened(event(f64::from(i) * 61.0, &format!("gpu-{}", i + 2)));
    }
    model.happened(moved(500.0));
    model
}

#[test]
fn a_path_with_a_slow_hop() {
    let mut model = busy(true);
    let buffer = frame(&mut model, FULL, 12, 80, 24);
    expect("path_80x24.txt", &buffer);
    expect("path_120x40.txt", &frame(&mut model, FULL, 12, 120, 40));
    // The slow hop is yellow, as word, shape and colour; the others are not.
    let lines: Vec<String> = text(&buffer).lines().map(str::to_owned).collect();
    for (name, word, colour) in
        [("de-1", "● green", Color::Green), ("sg-2", "▲ yellow", Color::Yellow)]
    {
        let start = format!(" {name} ");
        let y = lines.iter().position(|line| line.contains(&start) && line.contains(word));
        let y = y.unwrap_or_else(|| panic!("{name}: {lines:?}"));
        let x = lines[y].chars().position(|c| word.starts_with(c)).unwrap();
        assert_eq!(buffer[(x as u16, y as u16)].fg, colour, "{name}");
    }
    let standby = lines.iter().position(|line| line.starts_with("standby")).unwrap();
    assert!(buffer[(0, standby as u16)].modifier.contains(Modifier::DIM));
}

#[test]
fn no_path() {
    expect("no_path_80x24.txt", &frame(&mut busy(false), FULL, 12, 80, 24));
}

#[test]
fn what_passes_for_others_is_told() {
    let mut model = Model::default();
    let mut answer = answer(1.0, vec![]);
    let relay = &mut answer.onion.relay;
    (relay.handshakes, relay.circuits, relay.sessions, relay.refused) = (9, 3, 2, 1);
    model.answered(answer);
    let shown = text(&frame(&mut model, FULL, 1, 80, 24));
    assert!(shown.contains("for others: 3 circuits, 2 sessions; 1 refused"), "{shown}");
}

#[test]
fn no_peers() {
    let mut model = Model::default();
    model.answered(answer(1.0, vec![]));
    expect("no_peers_80x24.txt", &frame(&mut model, FULL, 1, 80, 24));
}

#[test]
fn a_daemon_that_is_gone() {
    let mut model = busy(true);
    model.failed("no Warren daemon answers on /x/api.sock".into(), Duration::from_secs(13));
    let buffer = frame(&mut model, FULL, 20, 80, 24);
    expect("stale_80x24.txt", &buffer);
    assert!(buffer[(0, 6)].modifier.contains(Modifier::DIM), "old data is faint");
    model.answered(answer(21.0, vec![]));
    assert!(!text(&frame(&mut model, FULL, 21, 80, 24)).contains("STALE"));
}

#[test]
fn a_daemon_that_was_never_there() {
    let mut model = Model::default();
    assert!(text(&frame(&mut model, FULL, 0, 80, 24)).contains("asking the daemon"));
    let why = "no Warren daemon answers on /x/api.sock\nstart it with `warren up`";
    model.failed(why.into(), Duration::from_secs(1));
    expect("never_80x24.txt", &frame(&mut model, FULL, 4, 80, 24));
}

#[test]
fn small_terminals() {
    expect("too_small_30x8.txt", &frame(&mut busy(true), FULL, 12, 30, 8));
    // One pane at a time, and fewer columns.
    expect("path_40x10.txt", &frame(&mut busy(true), FULL, 12, 40, 10));
    for width in 1..100 {
        for height in 1..40 {
            let mut model = busy(true);
            model.help = (width + height) % 2 == 0;
            frame(&mut model, FULL, 12, width, height);
        }
    }
}

#[test]
fn without_colour_and_beyond_ascii() {
    let mut model = busy(true);
    model.help = true;
    for buffer in [frame(&mut busy(true), PLAIN, 12, 80, 24), frame(&mut model, PLAIN, 12, 80, 24)]
    {
        assert!(text(&buffer).is_ascii(), "{}", text(&buffer));
        assert!(
            buffer.content.iter().all(|cell| cell.fg == Color::Reset && cell.bg == Color::Reset)
        );
    }
    expect("plain_80x24.txt", &frame(&mut busy(true), PLAIN, 12, 80, 24));
    expect("help_80x24.txt", &frame(&mut model, PLAIN, 12, 80, 24));
}

#[test]
fn a_filter_is_seen_while_it_is_typed() {
    let mut model = busy(false);
    model.typing = true;
    model.edit_filter(Some('9'));
    let shown = text(&frame(&mut model, FULL, 12, 80, 24));
    assert!(shown.contains("names with: 9_") && shown.contains("1 with `9`"), "{shown}");
    assert!(!shown.contains("gpu-8  "), "{shown}");
    model.edit_filter(Some('x'));
    assert!(text(&frame(&mut model, FULL, 12, 80, 24)).contains("no name has `9x` in it"));
}

/// The quickest of some frames, so that what else the machine does counts less.
fn quickest(peers: usize) -> Duration {
    let all = |bytes| (0..peers).map(|i| peer(&format!("n-{i}"), Some(1.0), bytes, 0)).collect();
    let mut model = Model::default();
    model.answered(answer(1.0, all(0)));
    model.answered(answer(2.0, all(1000)));
    let mut terminal = Terminal::new(TestBackend::new(120, 40)).unwrap();
    let mut draw_one = || {
        let began = Instant::now();
        terminal.draw(|frame| draw(frame, &mut model, FULL, Duration::from_secs(2))).unwrap();
        began.elapsed()
    };
    (0..30).map(|_| draw_one()).min().unwrap()
}

#[test]
fn five_thousand_peers_are_drawn_as_fast_as_fifty() {
    let (few, many) = (quickest(50), quickest(5000));
    // If all rows were made, it would be some sixteen times as long.
    assert!(many < few * 4, "{many:?}, with fifty {few:?}");
}
