//! Draws the scene: a map with the links on it, the claims, a table with
//! throughput and round-trip times, and the latest events. Pure; at least
//! 80 by 24 characters, more rows show more events.

use std::time::Duration;

use super::canvas::{Canvas, Colour, PLAIN};
use super::labels;
use super::map;
use super::scene::{Activity, ClaimState, NodeView, Scene};

/// Columns used.
pub(super) const COLUMNS: usize = 80;

/// Rows needed.
pub(super) const ROWS: usize = 24;

const LAND: Colour = 238;
const DIM: Colour = 244;
const FLOW: Colour = 51;
const GOOD: Colour = 84;
const WAIT: Colour = 221;
const BAD: Colour = 203;
const NODE: Colour = 231;
const ACCENT: Colour = 117;
/// The onion path, and the one that stands by.
const PATH: Colour = 213;
const STANDBY: Colour = 96;
/// Links of the mesh, which are many.
const MESH: Colour = 23;

const MAP_ROW: usize = 1;
const ACTIVITY_ROW: usize = MAP_ROW + map::ROWS;
const TABLE_ROW: usize = ACTIVITY_ROW + 1;
/// The table has two halves, with these columns in each.
const HALF: usize = COLUMNS / 2;
const ROLE_COLUMN: usize = 11;
const IN_COLUMN: usize = 21;
const OUT_COLUMN: usize = 27;
const RTT_COLUMN: usize = 33;

/// Draws the scene `elapsed` after its start.
pub(super) fn draw(scene: &Scene, elapsed: Duration, rows: usize) -> Canvas {
    let mut canvas = Canvas::new(COLUMNS, rows.max(ROWS));
    draw_title(&mut canvas, scene, elapsed);
    draw_map(&mut canvas, scene, elapsed);
    draw_claims(&mut canvas, scene, elapsed);
    draw_activity(&mut canvas, scene.activity.as_ref(), elapsed);
    draw_table(&mut canvas, scene);
    let events_row = TABLE_ROW + 1 + scene.nodes.len().div_ceil(2);
    draw_events(&mut canvas, scene, events_row);
    canvas
}

fn draw_title(canvas: &mut Canvas, scene: &Scene, elapsed: Duration) {
    canvas.text(1, 0, "warren demo", ACCENT, true);
    let (direct, all) = scene.direct_pairs();
    let count = scene.nodes.len();
    let text = format!("{count} daemons in {count} regions of an emulated WAN");
    canvas.text(15, 0, &text, PLAIN, false);
    let colour = if direct == all { GOOD } else { WAIT };
    canvas.text(60, 0, &format!("{direct}/{all} direct"), colour, true);
    let seconds = elapsed.as_secs();
    canvas.text(COLUMNS - 6, 0, &format!("{:02}:{:02}", seconds / 60, seconds % 60), DIM, false);
}

fn draw_map(canvas: &mut Canvas, scene: &Scene, elapsed: Duration) {
    for (row, land) in map::LAND.iter().enumerate() {
        canvas.text(0, MAP_ROW + row, land, LAND, false);
    }
    let places: Vec<(f64, f64)> = scene
        .nodes
        .iter()
        .map(|node| {
            let (latitude, longitude) = node.region.position();
            map::dot(latitude, longitude)
        })
        .collect();
    let top = (MAP_ROW * 4) as f64;
    let activity = scene.activity.as_ref();
    let straight = activity.filter(|activity| !activity.over_path).map(|activity| activity.ends);
    let path: Vec<usize> =
        scene.path.iter().flat_map(|path| path.active.iter().map(|(at, _)| *at)).collect();
    if let Some(view) = &scene.path {
        // Alone, for among the links of the mesh nobody would find it.
        for leg in view.standby.windows(2) {
            line(canvas, places[leg[0]], places[leg[1]], top, STANDBY);
        }
        for leg in path.windows(2) {
            line(canvas, places[leg[0]], places[leg[1]], top, PATH);
        }
        if activity.is_some_and(|activity| activity.over_path) {
            for leg in path.windows(2) {
                flow(canvas, places[leg[1]], places[leg[0]], top, elapsed);
            }
        }
    } else {
        for a in 0..places.len() {
            for b in 0..a {
                if scene.links[a][b].direct || scene.links[b][a].direct {
                    line(canvas, places[a], places[b], top, MESH);
                }
            }
        }
    }
    if let Some((from, to)) = straight {
        line(canvas, places[from], places[to], top, GOOD);
        flow(canvas, places[from], places[to], top, elapsed);
    }
    let marks = labels::marks(&places);
    let labels = labels::place(&marks, &scene.nodes);
    for (i, node) in scene.nodes.iter().enumerate() {
        let colour = match (node.address.is_some(), node.alive) {
            _ if straight.is_some_and(|(from, to)| from == i || to == i) => GOOD,
            (true, false) => BAD,
            _ if path.contains(&i) => PATH,
            (true, true) => NODE,
            (false, _) => DIM,
        };
        let (column, row) = marks[i];
        let mark = if colour == BAD { "\u{2717}" } else { "\u{25cf}" };
        canvas.text(column, MAP_ROW + row, mark, colour, true);
        let (column, row) = labels[i];
        canvas.text(column, MAP_ROW + row, node.name, colour, false);
    }
}

/// Points of the way between two places, as a gentle arc over the nearer side
/// of the globe; some may lie beyond the edge of the map.
fn arc(from: (f64, f64), to: (f64, f64)) -> impl Iterator<Item = (f64, f64)> {
    let mut dx = to.0 - from.0;
    if dx.abs() > map::DOTS_AROUND / 2.0 {
        dx -= dx.signum() * map::DOTS_AROUND;
    }
    let dy = to.1 - from.1;
    let length = dx.hypot(dy);
    let steps = (length * 2.0).ceil().max(1.0);
    let lift = length * 0.10;
    (0..=steps as usize).map(move |i| {
        let t = i as f64 / steps;
        let x = from.0 + dx * t;
        let y = from.1 + dy * t - lift * 4.0 * t * (1.0 - t);
        (x.rem_euclid(map::DOTS_AROUND), y)
    })
}

fn line(canvas: &mut Canvas, from: (f64, f64), to: (f64, f64), top: f64, colour: Colour) {
    // Drawn from one end always, or both directions would not coincide.
    let (from, to) = if from.0 <= to.0 { (from, to) } else { (to, from) };
    for (x, y) in arc(from, to) {
        if (0.0..map::DOTS_X).contains(&x) && (0.0..map::DOTS_Y).contains(&y) {
            canvas.dot(x, top + y, colour);
        }
    }
}

/// Packets on their way, as bright dashes that move.
fn flow(canvas: &mut Canvas, from: (f64, f64), to: (f64, f64), top: f64, elapsed: Duration) {
    const SPACING: usize = 28;
    const DASH: usize = 10;
    let shift = (elapsed.as_millis() / 40) as usize % SPACING;
    for (i, (x, y)) in arc(from, to).enumerate() {
        let bright = (i + SPACING - shift) % SPACING < DASH;
        if bright && (0.0..map::DOTS_X).contains(&x) && (0.0..map::DOTS_Y).contains(&y) {
            canvas.dot(x, top + y, FLOW);
        }
    }
}

/// In the emptiest corner of the map, in two columns.
fn draw_claims(canvas: &mut Canvas, scene: &Scene, elapsed: Duration) {
    const SPINNER: [&str; 4] = ["\u{25d0}", "\u{25d3}", "\u{25d1}", "\u{25d2}"];
    const WIDTH: usize = 11;
    let rows = scene.claims.len().div_ceil(2).clamp(1, map::ROWS);
    let first = MAP_ROW + map::ROWS - rows;
    for (i, claim) in scene.claims.iter().enumerate() {
        let turn = (elapsed.as_millis() / 150) as usize % SPINNER.len();
        let (mark, colour, text) = match claim.state {
            ClaimState::Open => ("\u{25cb}", 240, 240),
            ClaimState::Running => (SPINNER[turn], WAIT, PLAIN),
            ClaimState::Held => ("\u{2713}", GOOD, PLAIN),
            ClaimState::Failed => ("\u{2717}", BAD, BAD),
            ClaimState::Skipped => ("-", WAIT, DIM),
        };
        let (column, row) = (WIDTH * (i / rows), first + i % rows);
        canvas.text(column, row, &" ".repeat(claim.name.len() + 3), PLAIN, false);
        canvas.text(column + 1, row, mark, colour, true);
        canvas.text(column + 3, row, claim.name, text, false);
    }
}

fn draw_activity(canvas: &mut Canvas, activity: Option<&Activity>, elapsed: Duration) {
    let Some(activity) = activity else {
        canvas.text(1, ACTIVITY_ROW, &"\u{2500}".repeat(COLUMNS - 2), LAND, false);
        return;
    };
    let blink = if (elapsed.as_millis() / 400).is_multiple_of(2) { GOOD } else { FLOW };
    canvas.text(1, ACTIVITY_ROW, "\u{25b6}", blink, true);
    canvas.text(3, ACTIVITY_ROW, &activity.text, NODE, true);
    let right = activity.rate.map(|rate| format!("{}b/s", figure(rate))).unwrap_or_default();
    canvas.text(COLUMNS - 9, ACTIVITY_ROW, &format!("{right:>8}"), GOOD, true);
    let start = (activity.text.chars().count() + 4).min(COLUMNS - 20);
    let width = COLUMNS - 10 - start;
    canvas.text(start, ACTIVITY_ROW, &bar(1.0, width), LAND, false);
    canvas.text(start, ACTIVITY_ROW, &bar(activity.progress, width), GOOD, false);
}

fn draw_table(canvas: &mut Canvas, scene: &Scene) {
    let rows = scene.nodes.len().div_ceil(2);
    for half in [0, HALF] {
        canvas.text(half + 1, TABLE_ROW, "NODE", DIM, false);
        canvas.text(half + ROLE_COLUMN, TABLE_ROW, "DOES", DIM, false);
        canvas.text(half + IN_COLUMN, TABLE_ROW, "   IN   OUT", DIM, false);
        canvas.text(half + RTT_COLUMN, TABLE_ROW, "   RTT", DIM, false);
    }
    for (i, node) in scene.nodes.iter().enumerate() {
        draw_row(canvas, scene, i, node, (HALF * (i / rows), TABLE_ROW + 1 + i % rows));
    }
}

fn draw_row(
    canvas: &mut Canvas,
    scene: &Scene,
    i: usize,
    node: &NodeView,
    (left, row): (usize, usize),
) {
    let colour = match (node.address.is_some(), node.alive) {
        (true, true) => NODE,
        (true, false) => BAD,
        (false, _) => DIM,
    };
    canvas.text(left + 1, row, node.name, colour, true);
    let role = match (node.address.is_some(), node.alive) {
        (false, _) => "waiting".to_owned(),
        (true, false) => "dead".to_owned(),
        _ => format!("{} {}", node.country, role(node.roles)),
    };
    canvas.text(left + ROLE_COLUMN, row, &role, if node.alive { DIM } else { colour }, false);
    for (column, rate, shade) in
        [(IN_COLUMN, node.rate_in, ACCENT), (OUT_COLUMN, node.rate_out, GOOD)]
    {
        let shade = if rate < 1e3 { DIM } else { shade };
        canvas.text(left + column, row, &format!("{:>5}", figure(rate)), shade, false);
    }
    // As the user's machine, the last, measures it.
    let user = scene.nodes.len() - 1;
    let link = scene.links[user][i];
    let (text, colour) = match (i == user, link.rtt_ms, link.direct) {
        (true, ..) => ("you".to_owned(), DIM),
        (_, Some(ms), true) => (milliseconds(ms), heat(ms)),
        (_, Some(ms), false) => (milliseconds(ms), WAIT),
        (_, None, true) => ("up".to_owned(), GOOD),
        (_, None, false) => ("-".to_owned(), 240),
    };
    canvas.text(left + RTT_COLUMN, row, &format!("{text:>6}"), colour, false);
}

/// What a node does for paths, in one word: who may be first may also be in
/// the middle.
fn role(roles: &str) -> &str {
    roles.split(',').next().unwrap_or_default()
}

fn draw_events(canvas: &mut Canvas, scene: &Scene, first: usize) {
    let last = canvas.rows() - 1;
    let room = last.saturating_sub(first);
    let skip = scene.events.len().saturating_sub(room);
    for (row, (at, text)) in (first..last).zip(scene.events.iter().skip(skip)) {
        let colour = if text.starts_with("FAILED") { BAD } else { PLAIN };
        canvas.text(1, row, &format!("{:>5.1}s", at.as_secs_f64()), DIM, false);
        canvas.text(8, row, shorten(text, COLUMNS - 9), colour, false);
    }
    canvas.text(1, last, "q", ACCENT, true);
    canvas.text(3, last, "end", DIM, false);
    match &scene.path {
        None => canvas.text(6, last, "; everything it made goes with it", DIM, false),
        Some(path) => {
            let hops = path.active.iter().map(|(at, rtt)| {
                let rtt = rtt.map_or_else(String::new, |ms| format!(" {ms:.0} ms"));
                scene.nodes.get(*at).map_or_else(String::new, |node| node.name.to_owned() + &rtt)
            });
            let text = hops.collect::<Vec<_>>().join(" > ");
            canvas.text(8, last, shorten(&text, COLUMNS - 9), PATH, true);
        }
    }
}

/// As much of a sentence as fits, cut where a clause or at least a word ends.
fn shorten(text: &str, room: usize) -> &str {
    let Some((end, _)) = text.char_indices().nth(room) else { return text };
    let head = &text[..end];
    let clauses = ["; ", " (", ": "];
    let clause = clauses.iter().filter_map(|mark| head.rfind(mark)).max();
    let cut = clause.filter(|at| *at > room / 3).or_else(|| head.rfind(' '));
    cut.map_or(head, |at| &head[..at])
}

/// A bar; whatever is there at all shows at least one character.
fn bar(share: f64, width: usize) -> String {
    let full = (share.clamp(0.0, 1.0) * width as f64).round() as usize;
    "\u{2588}".repeat(if share > 0.0 { full.max(1) } else { 0 })
}

/// A rate in at most five characters.
fn figure(rate: f64) -> String {
    let (value, unit) = match rate {
        rate if rate >= 1e9 => (rate / 1e9, "G"),
        rate if rate >= 1e6 => (rate / 1e6, "M"),
        rate if rate >= 1e3 => (rate / 1e3, "k"),
        rate => return format!("{rate:.0}"),
    };
    if value < 10.0 { format!("{value:.2}{unit}") } else { format!("{value:.0}{unit}") }
}

fn milliseconds(ms: f64) -> String {
    if ms < 10.0 { format!("{ms:.1}") } else { format!("{ms:.0}") }
}

fn heat(ms: f64) -> Colour {
    match ms {
        ms if ms < 20.0 => GOOD,
        ms if ms < 120.0 => 150,
        ms if ms < 220.0 => 186,
        _ => 180,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::cast::{CAST, FRANKFURT, LAPTOP, TOKYO, VIRGINIA};
    use crate::demo::scene::PathView;

    fn scene() -> Scene {
        let mut scene = Scene::new(&CAST, crate::demo::story::CLAIMS);
        scene.claims[0].state = ClaimState::Held;
        for (i, row) in scene.links.iter_mut().enumerate() {
            for (j, link) in row.iter_mut().enumerate().filter(|(j, _)| *j != i) {
                link.direct = true;
                link.rtt_ms = Some((i + j) as f64 * 16.0);
            }
        }
        scene.nodes[1].rate_in = 1.234e9;
        for node in &mut scene.nodes {
            node.address = Some("100.127.255.255".to_owned());
            node.alive = true;
        }
        scene.nodes[TOKYO].alive = false;
        scene.path = Some(PathView {
            active: vec![(LAPTOP, None), (VIRGINIA, Some(64.3)), (FRANKFURT, Some(154.0))],
            standby: vec![LAPTOP, TOKYO, FRANKFURT],
        });
        scene.activity = Some(Activity {
            text: "download tokyo to saopaulo".to_owned(),
            ends: (4, 3),
            over_path: false,
            progress: 0.5,
            rate: Some(25e6),
        });
        for i in 0..10 {
            scene
                .events
                .push_back((Duration::from_secs(i), format!("event {i} {}", "x".repeat(99))));
        }
        scene
    }

    #[test]
    fn everything_fits_on_a_small_terminal() {
        let canvas = draw(&scene(), Duration::from_secs(62), 10);
        assert_eq!(canvas.rows(), ROWS);
        let text: Vec<String> = (0..ROWS).map(|row| canvas.row_text(row)).collect();
        assert!(text.iter().all(|row| row.chars().count() == COLUMNS));
        let all = text.join("\n");
        for word in [
            "66/66 direct",
            "01:02",
            "\u{2713} world",
            "\u{25cb} founder",
            "tokyo",
            "1.23G",
            "virginia  us entry",
            "frankfurt de exit",
            "laptop > virginia 64 ms > frankfurt 154 ms",
        ] {
            assert!(all.contains(word), "{word} in\n{all}");
        }
        assert!(text[ACTIVITY_ROW].contains("25Mb/s"), "{all}");
        assert!(text[TABLE_ROW].ends_with("   RTT "), "{all}");
        assert!(text[TABLE_ROW + 1].ends_with("   272 "), "{all}");
        assert!(text[TABLE_ROW + 5].contains("tokyo     dead"), "{all}");
        assert!(text[ROWS - 1].contains("q end"), "{all}");
        assert!(text[ROWS - 2].contains("event 9") && !all.contains("event 5"), "{all}");
        // Every name stands on the map, and again in the table.
        for node in &scene().nodes {
            let map = text[MAP_ROW..ACTIVITY_ROW].join("\n");
            assert!(map.contains(node.name), "{} in\n{map}", node.name);
        }
    }

    #[test]
    fn a_tall_terminal_shows_more_events() {
        let canvas = draw(&scene(), Duration::ZERO, 40);
        assert_eq!(canvas.rows(), 40);
        let text: Vec<String> = (0..40).map(|row| canvas.row_text(row)).collect();
        assert!(text.join("\n").contains("event 0"));
    }

    #[test]
    fn sentences_are_cut_where_they_pause() {
        assert_eq!(shorten("all of it", 20), "all of it");
        assert_eq!(shorten("the first clause; the second clause", 30), "the first clause");
        assert_eq!(shorten("a; word by word and so on", 12), "a; word by");
        assert_eq!(shorten("\u{e4}\u{e4}\u{e4}\u{e4}", 2), "\u{e4}\u{e4}");
    }

    #[test]
    fn figures_are_short() {
        for (rate, text) in [
            (0.0, "0"),
            (999.0, "999"),
            (1500.0, "1.50k"),
            (12_345_678.0, "12M"),
            (1.0e9, "1.00G"),
            (9.999e10, "100G"),
        ] {
            assert_eq!(figure(rate), text);
            assert!(figure(rate).len() <= 5);
        }
        assert_eq!((bar(0.0, 8), bar(1.0, 8)), (String::new(), "\u{2588}".repeat(8)));
        assert_eq!(bar(0.5, 8).chars().count(), 4);
        assert_eq!(bar(1e-6, 8).chars().count(), 1);
    }
}
