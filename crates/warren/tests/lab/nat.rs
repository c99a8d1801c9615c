//! Every kind of address translation against every other, and networks that
//! block UDP.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use warren_lab::nat::Kind;
use warren_lab::wan::{Attachment, Firewall};

use crate::Scenario;
use crate::mesh::{Actor, Mesh};

pub(crate) const SCENARIOS: &[Scenario] = &[
    ("translators_are_passed", translators_are_passed),
    ("networks_that_block_udp_are_passed", networks_that_block_udp_are_passed),
];

pub(crate) const LONG: &[Scenario] = &[("the_whole_nat_matrix", the_whole_matrix)];

/// Between any two hosts.
const RTT: Duration = Duration::from_millis(50);

/// How often a program sends while it waits for the first answer.
const BEAT: Duration = Duration::from_millis(20);

/// What is between a host and the world.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Edge {
    /// A public address.
    Public,
    /// A translator.
    Nat(Kind),
    /// A public address and a firewall that lets UDP pass to the public helper
    /// alone.
    UdpToOne,
    /// A public address and a firewall that lets no UDP pass.
    NoUdp,
}

impl Edge {
    const ALL: [Self; 7] = [
        Self::Public,
        Self::Nat(Kind::FullCone),
        Self::Nat(Kind::Restricted),
        Self::Nat(Kind::PortRestricted),
        Self::Nat(Kind::Symmetric),
        Self::UdpToOne,
        Self::NoUdp,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Public => "none",
            Self::Nat(kind) => kind.name(),
            Self::UdpToOne => "UDP to one",
            Self::NoUdp => "no UDP",
        }
    }

    /// Whether UDP can pass between two without help.
    fn direct(self, other: Self) -> bool {
        use Edge::{Nat, NoUdp, UdpToOne};
        use Kind::{PortRestricted, Symmetric};
        let blocked = |edge| matches!(edge, UdpToOne | NoUdp);
        let unknown_port =
            |a, b| a == Nat(Symmetric) && matches!(b, Nat(Symmetric | PortRestricted));
        !blocked(self)
            && !blocked(other)
            && !unknown_port(self, other)
            && !unknown_port(other, self)
    }
}

/// What two hosts reached.
struct Cell {
    edges: [Edge; 2],
    first_byte: Duration,
    direct: Option<Duration>,
    path: String,
}

/// Founds a network on a public helper, lets two hosts join it and talk.
fn meet(edges: [Edge; 2]) -> Result<Cell> {
    let mut cast = vec![Actor::public("helper")];
    for (name, edge) in ["left", "right"].into_iter().zip(edges) {
        let nat = if let Edge::Nat(kind) = edge { Some(kind.into()) } else { None };
        let attachment = Attachment { nat, ..Attachment::default() };
        cast.push(Actor { name, attachment, firewall: Firewall::default() });
    }
    let mut mesh = Mesh::hosts(&cast, RTT)?;
    for (place, edge) in mesh.places[1..].iter().zip(edges) {
        let firewall = match edge {
            Edge::UdpToOne => Firewall::udp_only_with(mesh.places[0].ipv4().into()),
            Edge::NoUdp => Firewall::no_udp(),
            _ => continue,
        };
        mesh.wan.set_firewall(*place, firewall)?;
    }
    // For those whose UDP is blocked.
    mesh.specs[0].arguments = vec!["--tcp-listen".into(), "0.0.0.0:443".into()];
    mesh.found_and_join()?;
    let patience = Duration::from_secs(15);
    let pulse = mesh.pulse(1, 2, BEAT)?;
    let start = Instant::now();
    let first_byte = pulse.wait_first(patience).with_context(|| {
        let say = |i| {
            let node = mesh.node(i);
            let status = node.warren(&["status"]).unwrap_or_default();
            let events = node.warren(&["events"]).unwrap_or_default();
            format!("{status}\n{events}\n{}\n", node.log())
        };
        format!("never connected\n{}\n{}\n{}", say(0), say(1), say(2))
    })?;
    let direct = if edges[0].direct(edges[1]) {
        for (of, other) in [(1, 2), (2, 1)] {
            mesh.wait_path(of, other, patience, |path| path == "direct")?;
        }
        Some(start.elapsed())
    } else {
        // It must not claim what cannot be, and must go on working.
        std::thread::sleep(Duration::from_secs(2));
        None
    };
    let until = pulse.now();
    let silence = pulse.so_far().longest_silence(first_byte, until);
    ensure!(silence < Duration::from_secs(2), "silent for {silence:?} after the first answer");
    let path = mesh.peer(1, 2)?.path;
    if !edges[0].direct(edges[1]) && path == "direct" {
        bail!("a direct path where none can be");
    }
    Ok(Cell { edges, first_byte, direct, path })
}

fn median(mut times: Vec<Duration>) -> Option<Duration> {
    times.sort_unstable();
    times.get(times.len() / 2).copied()
}

/// Meets for each pair and prints the table; `strict` asks for the true bars.
fn matrix(pairs: &[[Edge; 2]], strict: bool) -> Result<()> {
    let (mut cells, mut failures) = (Vec::new(), Vec::new());
    for edges in pairs {
        let names = edges.map(Edge::name).join(" x ");
        match meet(*edges).with_context(|| names.clone()) {
            Ok(cell) => {
                println!("  {}", row(&cell));
                cells.push(cell);
            }
            Err(error) => {
                println!("  | {names} | FAILED |");
                failures.push(format!("{error:#}"));
            }
        }
    }
    let first = median(cells.iter().map(|cell| cell.first_byte).collect());
    let direct = median(cells.iter().filter_map(|cell| cell.direct).collect());
    println!(
        "  {} of {} connected; median to first byte {first:.2?}, to direct {direct:.2?}",
        cells.len(),
        pairs.len()
    );
    ensure!(failures.is_empty(), "{} of {}:\n{}", failures.len(), pairs.len(), failures.join("\n"));
    let bars = if strict { (1, 3) } else { (5, 10) };
    let (first, direct) = (first.unwrap_or_default(), direct.unwrap_or_default());
    ensure!(first <= Duration::from_secs(bars.0), "first byte in {first:?} (median)");
    ensure!(direct <= Duration::from_secs(bars.1), "direct in {direct:?} (median)");
    Ok(())
}

fn row(cell: &Cell) -> String {
    let direct = cell.direct.map_or("-".to_owned(), |time| format!("{:.2} s", time.as_secs_f64()));
    let [a, b] = cell.edges.map(Edge::name);
    let first = cell.first_byte.as_secs_f64();
    format!("| {a:11} | {b:11} | {:10} | {first:.2} s | {direct} |", cell.path)
}

/// One of each sort.
fn translators_are_passed() -> Result<()> {
    use Edge::{Nat, Public};
    use Kind::{FullCone, PortRestricted, Restricted, Symmetric};
    matrix(
        &[
            [Public, Nat(Symmetric)],
            [Nat(FullCone), Nat(Symmetric)],
            [Nat(PortRestricted), Nat(PortRestricted)],
            [Nat(Symmetric), Nat(Restricted)],
            [Nat(Symmetric), Nat(Symmetric)],
        ],
        false,
    )
}

fn networks_that_block_udp_are_passed() -> Result<()> {
    matrix(
        &[
            [Edge::UdpToOne, Edge::Nat(Kind::Symmetric)],
            [Edge::NoUdp, Edge::Public],
            [Edge::NoUdp, Edge::Nat(Kind::PortRestricted)],
        ],
        false,
    )
}

/// All of them.
fn the_whole_matrix() -> Result<()> {
    let mut pairs = Vec::new();
    for (i, a) in Edge::ALL.into_iter().enumerate() {
        pairs.extend(Edge::ALL[i..].iter().map(|b| [a, *b]));
    }
    matrix(&pairs, true)
}
