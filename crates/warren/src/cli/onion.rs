//! `warren connect` and what is shown of the path: `warren path show|verify|rotate`.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::{Args, Subcommand};
use warren_node::fault::{Fault, FaultKind};
use warren_node::path_proof;
use warren_types::NodeName;
use warren_types::api::{
    ConnectRequest, Health, OnionCircuit, OnionHop, OnionReport, OnionState, PathProof,
    ProfileChange,
};

use super::{State, out, story};

/// How long `connect` waits for the path, and how often it looks.
const PATIENCE: Duration = Duration::from_secs(20);
const LOOK: Duration = Duration::from_millis(50);

/// What is wanted of a path.
#[derive(Debug, Args)]
pub(super) struct Wishes {
    /// auto, random, a country (de), a region (europe), nearest:PLACE (de/fra,
    /// 52.5,13.4 or a member), or a member's name.
    #[arg(long, default_value = "auto")]
    exit: String,
    /// Hops from this machine to the exit, the exit included. With one, the
    /// exit sees who you are and where you go.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=4))]
    hops: u8,
    /// The first hop: a country or a member's name [default: the pinned guards].
    #[arg(long)]
    entry: Option<String>,
    /// No hop may be this: a country, a member's name, or family:NAME.
    #[arg(long, value_name = "WHAT")]
    avoid: Vec<String>,
    /// No two hops in one country.
    #[arg(long)]
    distinct_countries: bool,
    /// Nothing leaves this machine but through the path, also when the daemon
    /// dies; `warren disconnect` lifts it.
    #[arg(long)]
    kill_switch: bool,
    /// Local networks stay reachable.
    #[arg(long)]
    lan: bool,
    /// Only this goes through the path: a prefix, user:NUMBER or cgroup:PATH.
    #[arg(long, value_name = "WHAT", conflicts_with = "exclude")]
    include: Vec<String>,
    /// All but this does.
    #[arg(long, value_name = "WHAT")]
    exclude: Vec<String>,
    /// Leave the system's resolver alone; its questions may then leave beside
    /// the path.
    #[arg(long)]
    keep_dns: bool,
    /// Lead nothing of the machine into the path: for the proxies of userspace
    /// mode.
    #[arg(long)]
    proxy_only: bool,
}

#[derive(Debug, Args)]
pub(super) struct Connect {
    /// As a profile says; the other wishes are left out then.
    #[arg(long, value_name = "NAME")]
    profile: Option<NodeName>,
    #[command(flatten)]
    wishes: Wishes,
    /// Do not wait until the path is there.
    #[arg(long)]
    no_wait: bool,
    /// JSON with stable keys.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    state: State,
}

impl From<Wishes> for ConnectRequest {
    fn from(wishes: Wishes) -> Self {
        Self {
            exit: wishes.exit,
            hops: wishes.hops,
            entry: wishes.entry,
            avoid: wishes.avoid,
            distinct_countries: wishes.distinct_countries,
            kill_switch: wishes.kill_switch,
            lan: wishes.lan,
            include: wishes.include,
            exclude: wishes.exclude,
            keep_dns: wishes.keep_dns,
            proxy_only: wishes.proxy_only,
        }
    }
}

/// Named wishes.
#[derive(Debug, Subcommand)]
pub(super) enum ProfileCommand {
    /// List the profiles.
    List {
        /// JSON with stable keys.
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        state: State,
    },
    /// Show one, as JSON.
    Show {
        /// Its name.
        name: NodeName,
        #[command(flatten)]
        state: State,
    },
    /// Make or replace one; `warren connect --profile NAME` uses it.
    Set {
        /// Its name.
        name: NodeName,
        #[command(flatten)]
        wishes: Box<Wishes>,
        #[command(flatten)]
        state: State,
    },
    /// Remove one.
    Remove {
        /// Its name.
        name: NodeName,
        #[command(flatten)]
        state: State,
    },
}

fn unknown(name: &NodeName) -> Fault {
    Fault::new(FaultKind::Usage, format!("there is no profile `{name}`"))
        .remedy("`warren profile list` shows them, `warren profile set NAME` makes one")
}

/// One profile in a line.
fn summary(request: &ConnectRequest) -> String {
    let mut text = format!("exit {}, {} hops", request.exit, request.hops);
    if let Some(entry) = &request.entry {
        let _ = write!(text, ", entry {entry}");
    }
    if !request.avoid.is_empty() {
        let _ = write!(text, ", avoids {}", request.avoid.join(" "));
    }
    for (on, word) in [
        (request.distinct_countries, "distinct countries"),
        (request.kill_switch, "kill switch"),
        (request.lan, "LAN reachable"),
        (request.keep_dns, "DNS left alone"),
        (request.proxy_only, "proxies only"),
    ] {
        if on {
            let _ = write!(text, ", {word}");
        }
    }
    for (word, items) in [("only", &request.include), ("all but", &request.exclude)] {
        if !items.is_empty() {
            let _ = write!(text, ", {word} {}", items.join(" "));
        }
    }
    text
}

/// Runs `warren profile`.
pub(super) async fn profile(command: ProfileCommand) -> Result<(), Fault> {
    match command {
        ProfileCommand::List { json: as_json, state } => {
            let profiles = state.client().profiles().await?;
            if as_json {
                return json(&profiles);
            }
            let mut text = String::new();
            for (name, request) in &profiles {
                let _ = writeln!(text, "{name}: {}", summary(request));
            }
            if profiles.is_empty() {
                text.push_str("no profiles: `warren profile set NAME --exit de` makes one\n");
            }
            out(&text)
        }
        ProfileCommand::Show { name, state } => {
            let found = state.client().profiles().await?.remove(&name);
            json(&found.ok_or_else(|| unknown(&name))?)
        }
        ProfileCommand::Set { name, wishes, state } => {
            let request: ConnectRequest = (*wishes).into();
            let line = summary(&request);
            let change = ProfileChange { name: name.clone(), request: Some(request) };
            state.client().change_profile(&change).await?;
            out(&format!("{name}: {line}\n"))
        }
        ProfileCommand::Remove { name, state } => {
            let change = ProfileChange { name: name.clone(), request: None };
            state.client().change_profile(&change).await?;
            out(&format!("{name} is removed\n"))
        }
    }
}

fn json<T: serde::Serialize>(value: &T) -> Result<(), Fault> {
    let text = serde_json::to_string_pretty(value).map_err(|e| Fault::internal(&e))?;
    out(&format!("{text}\n"))
}

/// Connects, and says over which nodes.
pub(super) async fn connect(command: Connect) -> Result<(), Fault> {
    let client = command.state.client();
    let request: ConnectRequest = match &command.profile {
        None => command.wishes.into(),
        Some(name) => client.profiles().await?.remove(name).ok_or_else(|| unknown(name))?,
    };
    let began = Instant::now();
    let mut report = client.connect(&request).await?;
    while !command.no_wait && report.state != OnionState::Connected {
        if began.elapsed() > PATIENCE {
            let why = report.problem.unwrap_or_else(|| "no node answered yet".to_owned());
            return Err(Fault::new(
                FaultKind::Unreachable,
                format!("no path after {} s: {why}", PATIENCE.as_secs()),
            )
            .remedy(
                "it goes on trying, and nothing leaves meanwhile; `warren path show` tells more, \
                 `warren disconnect` gives up",
            ));
        }
        tokio::time::sleep(LOOK).await;
        report = client.onion().await?;
    }
    if command.json {
        return json(&report);
    }
    let took = began.elapsed().as_secs_f64();
    out(&match report.state {
        OnionState::Connected => format!("{}  connected in {took:.1} s\n", render(&report)),
        _ => "connecting; `warren path show` tells how far it is\n".to_owned(),
    })
}

/// Ends it.
pub(super) async fn disconnect(state: &State) -> Result<(), Fault> {
    state.client().disconnect().await?;
    out("disconnected: traffic leaves as before\n")
}

/// Shows the path.
pub(super) async fn show(state: &State, as_json: bool) -> Result<(), Fault> {
    let report = state.client().onion().await?;
    if as_json { json(&report) } else { out(&render(&report)) }
}

/// Takes another one.
pub(super) async fn rotate(state: &State) -> Result<(), Fault> {
    state.client().rotate_path().await?;
    out("other circuits are being built; connections move to them\n")
}

/// Explains why it was chosen.
pub(super) async fn explain(state: &State, as_json: bool) -> Result<(), Fault> {
    let explanation = state.client().explain_onion().await?;
    if as_json {
        return json(&explanation);
    }
    out(&warren_node::path_choice::describe(&explanation))
}

/// Recomputes an explanation that was written down.
pub(super) fn recompute(file: &Path) -> Result<(), Fault> {
    warren_node::path_choice::recompute(&read(file)?)?;
    out("the choice follows from the inputs that are written down\n")
}

fn read(file: &Path) -> Result<String, Fault> {
    std::fs::read_to_string(file)
        .map_err(|e| Fault::new(FaultKind::Usage, format!("cannot read {}: {e}", file.display())))
}

/// Checks a proof: one that is made now, or one in a file.
pub(super) async fn verify(
    state: &State,
    file: Option<&PathBuf>,
    export: Option<&PathBuf>,
    as_json: bool,
) -> Result<(), Fault> {
    let proof: PathProof = match file {
        None => state.client().prove_path().await?,
        Some(file) => serde_json::from_str(&read(file)?).map_err(|e| {
            Fault::new(FaultKind::Usage, format!("{} is no proof of path: {e}", file.display()))
        })?,
    };
    let checked = path_proof::check(&proof)?;
    if let Some(file) = export {
        let text = serde_json::to_string_pretty(&proof).map_err(|e| Fault::internal(&e))?;
        std::fs::write(file, text + "\n").map_err(|e| {
            Fault::new(FaultKind::Usage, format!("cannot write {}: {e}", file.display()))
        })?;
    }
    if as_json {
        return json(&proof);
    }
    let mut text = format!(
        "{} nodes signed, in this order, that they carry the path: {}\n",
        checked.hops.len(),
        checked.hops.join(" > ")
    );
    let _ = writeln!(text, "  signed at {} (seconds since 1970)", checked.time);
    if let Some(file) = export {
        let _ =
            writeln!(text, "  written to {}: `warren path verify FILE` checks it", file.display());
    }
    out(&text)
}

fn health(hop: &OnionHop) -> &'static str {
    match hop.health {
        Health::Green => "green",
        Health::Yellow => "yellow",
        Health::Red => "red",
        Health::Unknown => "-",
    }
}

pub(super) fn rate(bits: u64) -> String {
    match bits {
        bits if bits >= 1_000_000_000 => format!("{} Gbit/s", bits / 1_000_000_000),
        bits => format!("{} Mbit/s", bits / 1_000_000),
    }
}

pub(super) fn uptime(seconds: u64) -> String {
    match seconds {
        s if s >= 2 * 86_400 => format!("{} d", s / 86_400),
        s if s >= 7200 => format!("{} h", s / 3600),
        s if s >= 120 => format!("{} min", s / 60),
        s => format!("{s} s"),
    }
}

fn circuit(circuit: &OnionCircuit, text: &mut String) {
    let _ =
        writeln!(text, "\nCircuit {} ({}, {} s old)", circuit.serial, circuit.phase, circuit.age_s);
    let mut rows = vec![
        ["", "HOP", "WHERE", "RTT", "ADDS", "LOSS", "GIVES", "UP", "HEALTH", ""].map(str::to_owned),
    ];
    for (i, hop) in circuit.hops.iter().enumerate() {
        let none = || "-".to_owned();
        rows.push([
            (i + 1).to_string(),
            hop.name.clone(),
            hop.place.as_ref().map_or_else(none, ToString::to_string),
            hop.rtt_ms.map_or_else(none, story::millis),
            hop.added_ms.map_or_else(none, story::millis),
            format!("{:.1} %", hop.loss * 100.0),
            hop.bandwidth.map_or_else(none, rate),
            hop.uptime_s.map_or_else(none, uptime),
            health(hop).to_owned(),
            hop.why.clone().unwrap_or_default(),
        ]);
    }
    let width =
        |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..10).map(width).collect();
    for row in &rows {
        let mut line = String::from("  ");
        for (cell, width) in row.iter().zip(&widths) {
            let _ = write!(line, "{cell:<width$}  ");
        }
        let _ = writeln!(text, "{}", line.trim_end());
    }
}

/// The report for people.
fn render(report: &OnionReport) -> String {
    let mut text = match report.state {
        OnionState::Off => "not connected: traffic leaves as ever\n".to_owned(),
        OnionState::Connecting => "connecting: nothing leaves yet\n".to_owned(),
        OnionState::Interrupted => "interrupted: nothing leaves until there is a path\n".to_owned(),
        OnionState::Connected => {
            let place = report.exit_place.as_ref().map_or_else(String::new, |p| format!(" ({p})"));
            format!("connected: exit {}{place}\n", report.exit.as_deref().unwrap_or("-"))
        }
    };
    if let Some(problem) = &report.problem {
        let _ = writeln!(text, "  problem: {problem}");
    }
    if let Some(circuit) = report.circuits.first().filter(|c| c.phase == "active") {
        let names: Vec<&str> = circuit.hops.iter().map(|hop| hop.name.as_str()).collect();
        let _ = writeln!(text, "  path: {}", names.join(" > "));
        let total = circuit.hops.last().and_then(|hop| hop.rtt_ms);
        let measured = total.map_or_else(|| "-".to_owned(), story::millis);
        let predicted = report.predicted_ms.map_or_else(|| "-".to_owned(), story::millis);
        let _ = writeln!(text, "  to the exit and back: {measured} measured, {predicted} expected");
    }
    if report.state == OnionState::Connected {
        let _ = writeln!(
            text,
            "  carried: {} out, {} in; kill switch {}; IPv6 {}",
            bytes(report.tx_bytes),
            bytes(report.rx_bytes),
            if report.kill_switch { "on" } else { "off" },
            if report.ipv6 { "yes" } else { "no (refused at once)" },
        );
    }
    for one in &report.circuits {
        circuit(one, &mut text);
    }
    isolated(report, &mut text);
    let relay = &report.relay;
    if relay.handshakes > 0 {
        let _ = writeln!(
            text,
            "\nFor others: {} circuits, {} sessions, {} cells passed on",
            relay.circuits,
            relay.sessions,
            relay.forward_cells + relay.backward_cells + relay.ended_cells
        );
    }
    text
}

/// The sessions of user names, a few lines each; the JSON has all of it.
fn isolated(report: &OnionReport, text: &mut String) {
    if report.isolated.is_empty() {
        return;
    }
    let (count, most) = (report.isolated.len(), report.most_isolated);
    let full = if count < most { "" } else { "; another user name is refused until one is idle" };
    let _ = writeln!(text, "\nUser names with a path of their own: {count} of {most}{full}");
    for one in &report.isolated {
        // Quoted and escaped: whatever a program sent is not the terminal's.
        let _ = write!(text, "  {:?}: ", one.user);
        let active = one.circuits.first().filter(|circuit| circuit.phase == "active");
        let names = active.map(|circuit| {
            circuit.hops.iter().map(|hop| hop.name.as_str()).collect::<Vec<_>>().join(" > ")
        });
        let _ = match (one.state, names) {
            (OnionState::Connected, Some(names)) => writeln!(text, "{names}"),
            (OnionState::Interrupted, _) => writeln!(text, "interrupted: nothing leaves"),
            _ => writeln!(text, "connecting: nothing leaves yet"),
        };
        if let Some(problem) = &one.problem {
            let _ = writeln!(text, "    problem: {problem}");
        }
        let _ = writeln!(
            text,
            "    carried: {} out, {} in; IPv6 {}; idle for {}",
            bytes(one.tx_bytes),
            bytes(one.rx_bytes),
            if one.ipv6 { "yes" } else { "no" },
            uptime(one.idle_s),
        );
    }
}

fn bytes(count: u64) -> String {
    match count {
        n if n >= 10_000_000_000 => format!("{} GB", n / 1_000_000_000),
        n if n >= 10_000_000 => format!("{} MB", n / 1_000_000),
        n if n >= 10_000 => format!("{} kB", n / 1000),
        n => format!("{n} B"),
    }
}
