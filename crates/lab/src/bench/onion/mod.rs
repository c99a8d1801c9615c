//! Paths of several hops, Warren's beside nested WireGuard tunnels, in one run
//! on the same chain of hosts.
//!
//! ```text
//! client -- hop 1 -- ... -- hop n -- server
//! ```
//! Each `--` is an Ethernet pair. Every contender carries one TCP stream from
//! client to server, out and back, and all processes share the machine's cores:
//! what counts are ratios of medians, and the CPU time each role spends.
//! Deliberately not here: paths on a slow network (see the lab's stories).

mod chain;
mod contender;

use std::collections::BTreeMap;
use std::fmt::{self, Write};
use std::path::PathBuf;

use anyhow::{Context, Result};
use serde::Serialize;
use warren_os::files::TemporaryDir;

use super::report::Spread;
use super::{Programs, Underlay};
use crate::topology::hide_run;
use chain::Chain;
pub use contender::OnionContender;

/// What to measure.
#[derive(Debug, Clone)]
pub struct OnionPlan {
    /// Who takes part.
    pub contenders: Vec<OnionContender>,
    /// What the links offer.
    pub underlay: Underlay,
    /// How often each is measured.
    pub repeat: u32,
    /// Seconds of each TCP measurement.
    pub seconds: u32,
    /// Where to look for programs before `PATH`.
    pub peer_paths: Vec<PathBuf>,
}

/// What one contender did in one round.
#[derive(Debug, Clone, Serialize)]
pub struct OnionRun {
    /// One stream from the client to the server, Gb/s.
    pub out_gbps: f64,
    /// One stream back, Gb/s.
    pub back_gbps: f64,
    /// CPU seconds of each role's processes per 10^9 bytes out.
    pub out_cpu: BTreeMap<String, f64>,
    /// The same, back.
    pub back_cpu: BTreeMap<String, f64>,
    /// Mean of 100 pings, ms.
    pub ping_ms: f64,
}

/// Outcome of an [`OnionPlan`].
#[derive(Debug, Serialize)]
pub struct OnionReport {
    /// `direct`, `nic` or `off`.
    pub underlay: &'static str,
    /// Processor cores.
    pub cores: usize,
    /// Rounds and seconds of each stream.
    pub repeat: u32,
    /// See `repeat`.
    pub seconds: u32,
    /// All rounds of each contender.
    pub runs: BTreeMap<&'static str, Vec<OnionRun>>,
    /// Contenders that did not work, and why.
    pub failed: BTreeMap<&'static str, String>,
}

/// Runs the plan, telling progress line by line.
///
/// # Errors
/// When the chain cannot be made. A contender that fails is in the report.
pub fn run(plan: &OnionPlan, mut progress: impl FnMut(&str)) -> Result<OnionReport> {
    let programs = Programs::new(&plan.peer_paths);
    programs.find("iperf3").context("iperf3 is needed to measure: apt install iperf3")?;
    hide_run()?;
    let mut report = OnionReport {
        underlay: plan.underlay.name(),
        cores: std::thread::available_parallelism().map_or(1, usize::from),
        repeat: plan.repeat,
        seconds: plan.seconds,
        runs: BTreeMap::new(),
        failed: BTreeMap::new(),
    };
    let mut present = plan.contenders.clone();
    for round in 1..=plan.repeat {
        present.retain(|contender| {
            let name = contender.name();
            match once(plan, &programs, *contender) {
                Ok(run) => {
                    progress(&format!("round {round}/{}: {name}: {run}", plan.repeat));
                    report.runs.entry(name).or_default().push(run);
                    true
                }
                Err(error) => {
                    progress(&format!("round {round}/{}: {name} failed: {error:#}", plan.repeat));
                    report.failed.insert(name, format!("{error:#}"));
                    false
                }
            }
        });
    }
    Ok(report)
}

fn once(plan: &OnionPlan, programs: &Programs, contender: OnionContender) -> Result<OnionRun> {
    let chain = Chain::create(contender.hops(), plan.underlay)?;
    let scratch = TemporaryDir::create("warren-bench")?;
    let path = contender.start(&chain, programs, scratch.path())?;
    path.wait_reachable()?;
    let (ping_ms, _) = chain.ping()?;
    let (out_gbps, out_cpu) = path.stream(plan.seconds, false)?;
    let (back_gbps, back_cpu) = path.stream(plan.seconds, true)?;
    Ok(OnionRun { out_gbps, back_gbps, out_cpu, back_cpu, ping_ms })
}

fn roles(cpu: &BTreeMap<String, f64>) -> String {
    let parts: Vec<String> = cpu.iter().map(|(role, s)| format!("{role} {s:.2}")).collect();
    parts.join(", ")
}

impl fmt::Display for OnionRun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:.2} out, {:.2} back Gb/s; CPU s/GB out: {}; ping {:.3} ms",
            self.out_gbps,
            self.back_gbps,
            roles(&self.out_cpu),
            self.ping_ms
        )
    }
}

impl OnionReport {
    fn spread(&self, name: &str, figure: fn(&OnionRun) -> f64) -> Option<Spread> {
        let values: Vec<f64> = self.runs.get(name)?.iter().map(figure).collect();
        Spread::of(values)
    }

    /// Ratios of medians against the bars the project set itself: (what, ratio,
    /// at least).
    pub fn bars(&self) -> Vec<(String, f64, f64)> {
        let weak = self.underlay != Underlay::Direct.name();
        let mut all = Vec::new();
        let mut bar = |ours: &str, theirs: &str, least: f64| {
            for (direction, figure) in [
                ("out", (|run: &OnionRun| run.out_gbps) as fn(&OnionRun) -> f64),
                ("back", |run: &OnionRun| run.back_gbps),
            ] {
                let median = |name: &str| self.spread(name, figure).map(|spread| spread.median);
                if let (Some(a), Some(b)) = (median(ours), median(theirs)) {
                    all.push((format!("{ours} / {theirs}, {direction}"), a / b, least));
                }
            }
        };
        bar("warren-3-aes", "wireguard-go-nested-3", if weak { 4.0 } else { 6.0 });
        bar("warren-3-aes", "wireguard-go-1", if weak { 0.0 } else { 1.25 });
        bar("warren-3-chacha", "wireguard-go-nested-3", if weak { 0.0 } else { 2.3 });
        bar("warren-1-aes", "wireguard-go-1", if weak { 0.0 } else { 2.0 });
        all
    }
}

impl fmt::Display for OnionReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "Underlay {}, {} cores, {} rounds of {} s; median (range)\n",
            self.underlay, self.cores, self.repeat, self.seconds
        )?;
        writeln!(f, "| | Gb/s out | Gb/s back | CPU s/GB out | CPU s/GB back | ping ms |")?;
        writeln!(f, "|---|---|---|---|---|---|")?;
        for (name, runs) in &self.runs {
            let show = |figure: fn(&OnionRun) -> f64| {
                self.spread(name, figure).map_or_else(String::new, |s| {
                    format!("{:.2} ({:.2}-{:.2})", s.median, s.min, s.max)
                })
            };
            let cpu = |of: fn(&OnionRun) -> &BTreeMap<String, f64>| {
                let mut text = String::new();
                for role in runs.first().map(|run| of(run).keys()).into_iter().flatten() {
                    let values: Vec<f64> =
                        runs.iter().filter_map(|run| of(run).get(role).copied()).collect();
                    if let Some(spread) = Spread::of(values) {
                        let _ = write!(text, "{role} {:.2} ", spread.median);
                    }
                }
                text.trim_end().to_owned()
            };
            writeln!(
                f,
                "| {name} | {} | {} | {} | {} | {} |",
                show(|run| run.out_gbps),
                show(|run| run.back_gbps),
                cpu(|run| &run.out_cpu),
                cpu(|run| &run.back_cpu),
                show(|run| run.ping_ms),
            )?;
        }
        writeln!(f)?;
        for (what, ratio, least) in self.bars() {
            let verdict = match (least > 0.0, ratio >= least) {
                (false, _) => "no bar".to_owned(),
                (true, true) => format!("met (at least {least:.2})"),
                (true, false) => format!("MISSED (at least {least:.2})"),
            };
            writeln!(f, "{what}: {ratio:.2}, {verdict}")?;
        }
        for (name, why) in &self.failed {
            writeln!(f, "{name} failed: {why}")?;
        }
        Ok(())
    }
}
