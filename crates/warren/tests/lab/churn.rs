//! Many daemons on one machine: mass start, random kills and restarts, and
//! what they cost when nothing happens.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use warren_lab::netem::Dice;

use crate::Scenario;
use crate::chatter::{Chatter, all_pairs};
use crate::mesh::{Actor, Mesh};
use crate::story::PATIENCE;

pub(crate) const SCENARIOS: &[Scenario] =
    &[("a_crowd_survives_kills_and_restarts", a_crowd_survives_kills_and_restarts)];

pub(crate) const LONG: &[Scenario] =
    &[("thirty_nodes_survive_kills_and_restarts", thirty_nodes_survive_kills_and_restarts)];

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

/// What is asked of a crowd.
struct Plan {
    nodes: usize,
    /// All pairs talk within that after a mass start.
    converged: Duration,
    /// Kills and restarts go on for this long,
    churn: Duration,
    /// and all pairs talk within that after the last of a series.
    healed: Duration,
    /// Idle time measured.
    idle: Duration,
    /// Share of a core each may take when idle.
    idle_share: f64,
    /// Bytes each may have resident.
    resident: u64,
}

/// For every run: a small crowd, on a machine that does other things too.
const SHORT: Plan = Plan {
    nodes: 8,
    converged: Duration::from_secs(20),
    churn: Duration::from_secs(20),
    healed: Duration::from_secs(10),
    idle: Duration::from_secs(5),
    idle_share: 0.05,
    resident: 60 << 20,
};

/// The bars.
const BARS: Plan = Plan {
    nodes: 30,
    converged: Duration::from_secs(10),
    churn: Duration::from_secs(300),
    healed: Duration::from_secs(5),
    idle: Duration::from_secs(60),
    idle_share: 0.005,
    resident: 25 << 20,
};

fn a_crowd_survives_kills_and_restarts() -> Result<()> {
    crowd(&SHORT)
}

fn thirty_nodes_survive_kills_and_restarts() -> Result<()> {
    crowd(&BARS)
}

fn crowd(plan: &Plan) -> Result<()> {
    let names: Vec<String> = (0..plan.nodes).map(|i| format!("n{i}")).collect();
    let cast: Vec<Actor<'_>> = names.iter().map(|name| Actor::public(name)).collect();
    let mut mesh = Mesh::hosts(&cast, 5 * MS)?;
    mesh.found_and_join()?;
    let everybody: Vec<usize> = (0..plan.nodes).collect();
    let addresses: Vec<IpAddr> =
        everybody.iter().map(|i| mesh.address(*i)).collect::<Result<_>>()?;
    let chatter = Chatter::start(&mesh.hosts)?;

    for i in &everybody {
        mesh.crash(*i)?;
    }
    let start = Instant::now();
    for i in &everybody {
        mesh.launch(*i)?;
    }
    let launched = start.elapsed();
    let pairs = all_pairs(&everybody);
    let patience = plan.converged * 3;
    let converged = chatter
        .talk(&pairs, &addresses, start, patience)
        .map_err(|silent| anyhow::anyhow!("mass start: silent after {patience:?}: {silent:?}"))?;
    println!(
        "  {} nodes started in {launched:.2?}, every pair talked {converged:.2?} after the first",
        plan.nodes
    );
    mesh.wait_acquainted(plan.converged)?;

    let worst = churn(&mut mesh, plan, &chatter, &addresses)?;
    idle(&mut mesh, plan)?;
    ensure!(converged <= plan.converged, "converged after {converged:?} only");
    ensure!(worst <= plan.healed, "healed after {worst:?} only");
    Ok(())
}

/// Series of random kills and restarts, each followed by a look at all pairs;
/// the longest time that took.
fn churn(
    mesh: &mut Mesh,
    plan: &Plan,
    chatter: &Chatter,
    addresses: &[IpAddr],
) -> Result<Duration> {
    let mut dice = Dice::new(5);
    let start = Instant::now();
    let (mut kills, mut starts, mut series) = (0, 0, 0);
    let (mut worst, mut sum) = (Duration::ZERO, Duration::ZERO);
    while start.elapsed() < plan.churn {
        let burst = 2 + (dice.next_u64() % 6) as usize;
        for _ in 0..burst {
            std::thread::sleep(MS * (dice.next_u64() % 1500) as u32);
            let i = (dice.next_u64() % plan.nodes as u64) as usize;
            if mesh.nodes[i].is_none() {
                mesh.launch(i)?;
                starts += 1;
            } else if mesh.running().count() > plan.nodes * 2 / 3 {
                mesh.crash(i)?;
                kills += 1;
            }
        }
        let last = Instant::now();
        let alive: Vec<usize> = mesh.running().map(|(i, _)| i).collect();
        let patience = plan.healed * 4;
        match chatter.talk(&all_pairs(&alive), addresses, last, patience) {
            Ok(took) => {
                worst = worst.max(took);
                sum += took;
                series += 1;
            }
            Err(silent) => {
                let (a, b) = silent.first().copied().context("nobody is silent")?;
                let say = |i: usize| -> String {
                    let node = mesh.node(i);
                    let status =
                        node.warren(&["status"]).unwrap_or_else(|error| format!("{error:#}"));
                    format!("{status}\n{}", node.log())
                };
                anyhow::bail!(
                    "series {series}: silent {patience:?} after the last event: {silent:?}\n{}\n{}",
                    say(a),
                    say(b)
                );
            }
        }
    }
    println!(
        "  {kills} kills and {starts} restarts in {series} series: every pair talked {:.2?} after the last event on average, {worst:.2?} at worst",
        sum / series.max(1)
    );
    Ok(worst)
}

/// What each daemon costs when nobody talks.
fn idle(mesh: &mut Mesh, plan: &Plan) -> Result<()> {
    for i in 0..plan.nodes {
        if mesh.nodes[i].is_none() {
            mesh.launch(i)?;
        }
    }
    for node in mesh.nodes.iter_mut().flatten() {
        node.wait_serves(PATIENCE)?;
    }
    std::thread::sleep(plan.idle.min(20 * SECOND));
    let before: Vec<_> = mesh.running().map(|(_, node)| node.cost()).collect::<Result<_>>()?;
    let start = Instant::now();
    std::thread::sleep(plan.idle);
    let after: Vec<_> = mesh.running().map(|(_, node)| node.cost()).collect::<Result<_>>()?;
    let took = start.elapsed().as_secs_f64();
    let shares: Vec<f64> = before
        .iter()
        .zip(&after)
        .map(|(before, after)| (after.cpu - before.cpu).as_secs_f64() / took)
        .collect();
    let most = shares.iter().copied().fold(0.0, f64::max);
    let mean = shares.iter().sum::<f64>() / shares.len() as f64;
    let resident = after.iter().map(|cost| cost.resident).max().unwrap_or(0);
    let resident_mean = after.iter().map(|cost| cost.resident).sum::<u64>() / after.len() as u64;
    println!(
        "  idle for {took:.0} s: {:.2} % of a core on average, {:.2} % at most; {:.1} MB on average, {:.1} MB at most",
        mean * 100.0,
        most * 100.0,
        resident_mean as f64 / 1e6,
        resident as f64 / 1e6
    );
    ensure!(mean <= plan.idle_share, "an idle daemon takes {:.2} % of a core", mean * 100.0);
    ensure!(resident <= plan.resident, "a daemon has {resident} bytes resident");
    Ok(())
}
