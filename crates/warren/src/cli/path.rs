//! `warren path explain`: which way packets to a node take, which others there
//! are, and why those are not taken.

use std::fmt::Write;
use std::path::PathBuf;

use clap::Subcommand;
use warren_node::fault::Fault;
use warren_types::NodeName;
use warren_types::api::{NatReport, PathEntry, PathReport, RouteEntry};

use super::{State, onion, out, story};

#[derive(Debug, Subcommand)]
pub(super) enum PathCommand {
    /// Show the onion path: its hops, how each does, and what stands by.
    Show {
        /// JSON with stable keys.
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        state: State,
    },
    /// Say why a path was chosen: the onion path, or the one to a node.
    Explain {
        /// The node; without one, the onion path.
        node: Option<NodeName>,
        /// JSON with stable keys; for the onion path with every input.
        #[arg(long)]
        json: bool,
        /// Make the choice of an onion path again from such JSON.
        #[arg(long, value_name = "FILE", conflicts_with_all = ["node", "json"])]
        recompute: Option<PathBuf>,
        #[command(flatten)]
        state: State,
    },
    /// Have every hop sign that it carries the path, and check it; or check a
    /// proof that was exported.
    Verify {
        /// An exported proof.
        file: Option<PathBuf>,
        /// Write the proof there.
        #[arg(long, value_name = "FILE", conflicts_with = "file")]
        export: Option<PathBuf>,
        /// The proof as JSON.
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        state: State,
    },
    /// Take another path; connections move to it.
    Rotate(State),
}

/// Runs it.
pub(super) async fn run(command: PathCommand) -> Result<(), Fault> {
    let (node, json, state) = match command {
        PathCommand::Show { json, state } => return onion::show(&state, json).await,
        PathCommand::Verify { file, export, json, state } => {
            return onion::verify(&state, file.as_ref(), export.as_ref(), json).await;
        }
        PathCommand::Rotate(state) => return onion::rotate(&state).await,
        PathCommand::Explain { recompute: Some(file), .. } => return onion::recompute(&file),
        PathCommand::Explain { node: None, json, state, .. } => {
            return onion::explain(&state, json).await;
        }
        PathCommand::Explain { node: Some(node), json, state, .. } => (node, json, state),
    };
    let report = state.client().explain_path(&node).await?;
    if json {
        let text = serde_json::to_string_pretty(&report).map_err(|e| Fault::internal(&e))?;
        out(&format!("{text}\n"))
    } else {
        out(&render(&report))
    }
}

fn share(loss: f64) -> String {
    format!("{:.1} %", loss * 100.0)
}

fn columns(rows: &[Vec<String>]) -> String {
    let count = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter().filter_map(|r| r.get(column)).map(|c| c.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..count).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::from("  ");
        for (cell, width) in row.iter().zip(&widths) {
            let _ = write!(line, "{cell:<width$}  ");
        }
        let _ = writeln!(text, "{}", line.trim_end());
    }
    text
}

fn head(titles: [&str; 7]) -> Vec<String> {
    titles.map(str::to_owned).to_vec()
}

fn path_row(path: &PathEntry) -> Vec<String> {
    let none = || "-".to_owned();
    let place = match path.kind.as_str() {
        "relay" => "over other nodes".to_owned(),
        "tcp" => "TLS over TCP".to_owned(),
        _ => story::plain(path.address).to_string(),
    };
    vec![
        if path.active { "*" } else { "" }.to_owned(),
        place,
        path.state.clone(),
        path.rtt_ms.map_or_else(none, story::millis),
        path.loss.map_or_else(none, share),
        path.cost_ms.map_or_else(none, story::millis),
        path.why.clone(),
    ]
}

fn route_row(route: &RouteEntry) -> Vec<String> {
    vec![
        if route.chosen { "*" } else { "" }.to_owned(),
        route.via.join(", "),
        String::new(),
        story::millis(route.rtt_ms),
        share(route.loss),
        story::millis(route.cost_ms),
        route.why.clone(),
    ]
}

fn nat_line(nat: &NatReport) -> String {
    let family = if nat.family == "ipv4" { "IPv4" } else { "IPv6" };
    let seen: Vec<String> = nat.seen_as.iter().map(ToString::to_string).collect();
    let seen =
        if seen.is_empty() { String::new() } else { format!(", seen as {}", seen.join(", ")) };
    let kind = match nat.kind.as_str() {
        "none" => "no NAT before this node",
        "endpoint-independent" => "a NAT that keeps one address for all (direct paths can be made)",
        "address-dependent" => {
            "a NAT with another port for each peer (direct paths only to peers without one)"
        }
        _ => "nobody has told yet how this node is seen",
    };
    format!("  {family}: {kind}{seen}\n")
}

/// The report for people.
fn render(report: &PathReport) -> String {
    let mut text = String::new();
    let address = story::handy(&report.addresses).map_or_else(String::new, |a| format!(" ({a})"));
    let _ = writeln!(text, "{}{address}: {}", report.name, report.path);
    if let Some(reason) = &report.reason {
        let since = report.since_s.map_or_else(String::new, |s| format!(", {s} s ago"));
        let _ = writeln!(text, "  taken because: {reason}{since}");
    }
    let control = match (report.connected, report.connected_by.as_deref()) {
        (false, _) => "not connected",
        (true, Some("relay")) => "connected, over other nodes",
        (true, Some("tcp")) => "connected, by TLS over TCP",
        (true, _) => "connected",
    };
    let _ = writeln!(text, "  control plane: {control}");

    text.push_str("\nPaths (* carries data)\n");
    if report.paths.is_empty() {
        text.push_str("  none in use: the link sleeps until there is traffic\n");
    } else {
        let titles = ["", "ADDRESS", "STATE", "RTT", "LOSS", "COST", "WHY"];
        let rows: Vec<_> =
            std::iter::once(head(titles)).chain(report.paths.iter().map(path_row)).collect();
        text.push_str(&columns(&rows));
    }

    text.push_str("\nOver other nodes (* is the way such packets take)\n");
    if report.routes.is_empty() {
        let why = report.no_route.as_deref().unwrap_or("no route is known");
        let _ = writeln!(text, "  none: {why}");
    } else {
        let titles = ["", "VIA", "", "RTT", "LOSS", "COST", "WHY"];
        let rows: Vec<_> =
            std::iter::once(head(titles)).chain(report.routes.iter().map(route_row)).collect();
        text.push_str(&columns(&rows));
    }
    if !report.unwilling.is_empty() {
        let names = report.unwilling.join(", ");
        let _ = writeln!(text, "  does not relay: {names}");
    }

    text.push_str("\nThis node\n");
    for nat in &report.nat {
        text.push_str(&nat_line(nat));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> PathReport {
        PathReport {
            name: "gpu-2".into(),
            addresses: vec!["100.64.0.2".parse().unwrap()],
            path: "via gpu-3".into(),
            reason: Some("the path before stopped answering".into()),
            since_s: Some(12),
            connected: true,
            connected_by: Some("direct".into()),
            paths: vec![
                PathEntry {
                    address: "[fd00::2]:1".parse().unwrap(),
                    kind: "relay".into(),
                    active: true,
                    state: "valid".into(),
                    rtt_ms: Some(42.0),
                    loss: Some(0.0),
                    cost_ms: Some(62.0),
                    why: "carries data".into(),
                },
                PathEntry {
                    address: "192.0.2.2:9277".parse().unwrap(),
                    kind: "direct".into(),
                    active: false,
                    state: "dead".into(),
                    rtt_ms: None,
                    loss: None,
                    cost_ms: None,
                    why: "no answer".into(),
                },
            ],
            routes: vec![RouteEntry {
                via: vec!["gpu-3".into(), "gpu-4".into()],
                chosen: true,
                rtt_ms: 40.0,
                loss: 0.01,
                cost_ms: 64.0,
                why: "costs least".into(),
            }],
            no_route: None,
            unwilling: vec!["laptop".into()],
            nat: vec![NatReport {
                family: "ipv4".into(),
                kind: "address-dependent".into(),
                seen_as: vec!["203.0.113.7:4000".parse().unwrap()],
            }],
        }
    }

    #[test]
    fn the_explanation_has_all_that_was_asked_for() {
        let text = render(&example());
        for part in [
            "gpu-2 (100.64.0.2): via gpu-3",
            "the path before stopped answering, 12 s ago",
            "over other nodes",
            "192.0.2.2:9277",
            "no answer",
            "gpu-3, gpu-4",
            "1.0 %",
            "does not relay: laptop",
            "another port for each peer",
            "203.0.113.7:4000",
        ] {
            assert!(text.contains(part), "no {part:?} in\n{text}");
        }
        assert!(text.lines().all(|line| line.len() <= 120 && !line.ends_with(' ')), "{text}");
    }

    #[test]
    fn a_sleeping_link_is_explained_too() {
        let report = PathReport {
            paths: vec![],
            routes: vec![],
            no_route: Some("nobody reports a link to it".into()),
            unwilling: vec![],
            ..example()
        };
        let text = render(&report);
        assert!(text.contains("sleeps until there is traffic"), "{text}");
        assert!(text.contains("none: nobody reports a link to it"), "{text}");
    }

    #[test]
    fn json_keys_are_stable() {
        let value = serde_json::to_value(example()).unwrap();
        for pointer in
            ["/path", "/paths/0/rtt_ms", "/paths/1/why", "/routes/0/via/1", "/nat/0/kind"]
        {
            assert!(value.pointer(pointer).is_some_and(|v| !v.is_null()), "{pointer}");
        }
    }
}
