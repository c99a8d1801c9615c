//! Warren beside other VPNs on the same link, in one run.
//!
//! Two hosts on an Ethernet pair; for each contender in turn, and all of them
//! again for each repetition (so that drift of the machine hits all alike):
//! start it, configure it, measure, end it. What counts are ratios of medians.
//!
//! Input: a [`Plan`]; output: a [`Report`]. Invariants: contenders see the same
//! link, the same MTU (1420 inside), the same tools and congestion control.
//! Deliberately not here: tuning of contenders beyond what their users have,
//! except where a default is known to hurt them (noted in [`contender`]).

pub mod contender;
mod measure;
mod nebula;
pub mod onion;
pub mod report;
mod tunnel;
mod warren;
mod wireguard;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use anyhow::{Context, Result};
use warren_os::files::TemporaryDir;

use crate::topology::{Pair, Underlay, hide_run};
pub use contender::{Contender, Programs};
pub use measure::{Run, Tcp};
pub use report::{Report, Spread};

/// What to measure.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Who takes part.
    pub contenders: Vec<Contender>,
    /// What the link offers.
    pub underlay: Underlay,
    /// How often each is measured.
    pub repeat: u32,
    /// Seconds of each TCP measurement.
    pub seconds: u32,
    /// Leave out the packet-rate sweeps and the memory of idle peers.
    pub tcp_only: bool,
    /// Where to look for programs before `PATH`.
    pub peer_paths: Vec<PathBuf>,
}

/// Runs the plan, telling progress line by line.
///
/// # Errors
/// When a measuring tool is missing or the link cannot be made. A contender
/// that is missing or fails is in the report instead.
pub fn run(plan: &Plan, mut progress: impl FnMut(&str)) -> Result<Report> {
    let programs = Programs::new(&plan.peer_paths);
    for (tool, package) in [("iperf3", "iperf3"), ("ping", "iputils-ping")] {
        programs
            .find(tool)
            .with_context(|| format!("{tool} is needed to measure: apt install {package}"))?;
    }
    hide_run()?;

    let mut report = Report::new(plan);
    let (mut present, missing): (Vec<_>, Vec<_>) = plan
        .contenders
        .iter()
        .copied()
        .partition(|contender| contender.missing(&programs).is_none());
    for contender in missing {
        let why = contender.missing(&programs).unwrap_or_default();
        progress(&format!("{}: missing; {why}", contender.name()));
        report.missing.insert(contender.name().to_owned(), why);
    }
    let mut runs: BTreeMap<Contender, Vec<Run>> = BTreeMap::new();
    for round in 1..=plan.repeat {
        present.retain(|contender| {
            let measured = measure_once(plan, &programs, *contender, round == 1);
            let name = contender.name();
            match measured {
                Ok(run) => {
                    progress(&format!("round {round}/{}: {name}: {run}", plan.repeat));
                    runs.entry(*contender).or_default().push(run);
                    true
                }
                Err(error) => {
                    progress(&format!("round {round}/{}: {name} failed: {error:#}", plan.repeat));
                    report.failed.insert(name.to_owned(), format!("{error:#}"));
                    false
                }
            }
        });
    }
    report.conclude(runs);
    Ok(report)
}

/// One TCP stream from the pair's left host to `to`, an address of the right
/// one, for `seconds`.
///
/// # Errors
/// When iperf3 fails.
pub fn tcp_stream(pair: &Pair, to: IpAddr, seconds: u32) -> Result<Tcp> {
    measure::tcp(&tunnel::Tunnel { right: to, ..tunnel::Tunnel::direct(pair) }, seconds, &[])
}

fn measure_once(
    plan: &Plan,
    programs: &Programs,
    contender: Contender,
    first: bool,
) -> Result<Run> {
    let pair = Pair::create(1500, plan.underlay)?;
    let scratch = TemporaryDir::create("warren-bench")?;
    let mut run = measure::run(&contender.start(&pair, programs, scratch.path())?, plan)?;
    if first && !plan.tcp_only {
        let pair = Pair::create(1500, plan.underlay)?;
        let scratch = TemporaryDir::create("warren-bench")?;
        let mut fresh = contender.start(&pair, programs, scratch.path())?;
        run.idle_peer_kib = measure::idle_peer(&mut fresh)?;
    }
    Ok(run)
}
