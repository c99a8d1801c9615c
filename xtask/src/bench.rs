//! `cargo xtask bench link` and `bench onion`: build Warren, run the lab's
//! benchmark, print the table and write the JSON.

use std::fmt::Display;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, ensure};
use clap::Args;
use serde::Serialize;
use warren_lab::bench::onion::{OnionContender, OnionPlan};
use warren_lab::bench::{self, Contender, Plan};
use warren_lab::topology::{Privilege, Underlay, find_privilege};

/// Options of both.
#[derive(Args)]
pub(crate) struct Common {
    /// What the links offer: direct (all offloads), nic (no hardware segmentation), off.
    #[arg(long, default_value = "direct")]
    underlay: Underlay,
    /// Rounds; the median counts.
    #[arg(long, default_value_t = 5)]
    repeat: u32,
    /// Write the whole report as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Directories (or programs) to look in before PATH; may be repeated.
    #[arg(long)]
    peer_path: Vec<PathBuf>,
    /// Measure the warren binary that is found instead of building one.
    #[arg(long)]
    no_build: bool,
}

impl Common {
    /// Where to look for programs. Builds Warren, if it is `needed`: before a
    /// user namespace is entered, in which cargo's cache is not ours.
    fn peer_paths(&self, needed: bool) -> Result<Vec<PathBuf>> {
        let mut paths = self.peer_path.clone();
        if needed && !self.no_build {
            paths.push(build_warren()?);
        }
        Ok(paths)
    }

    fn tell(&self, report: &(impl Display + Serialize)) -> Result<()> {
        print!("{report}");
        let Some(path) = &self.json else { return Ok(()) };
        let json = serde_json::to_string_pretty(report)?;
        std::fs::write(path, json).with_context(|| format!("cannot write {}", path.display()))
    }
}

/// Options of `bench link`.
#[derive(Args)]
pub(crate) struct Link {
    /// Peers to measure beside Warren: wireguard-go, gotatun, boringtun, nebula, direct.
    #[arg(long, value_delimiter = ',', default_value = "wireguard-go,gotatun,boringtun,nebula")]
    against: Vec<Contender>,
    /// Warren's own rows: warren-aes, warren-chacha, warren-to-wireguard-go, or none.
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "warren-aes,warren-chacha,warren-to-wireguard-go"
    )]
    warren: Vec<String>,
    #[command(flatten)]
    common: Common,
    /// Seconds of each TCP measurement.
    #[arg(long, default_value_t = 3)]
    seconds: u32,
    /// Leave out the packet-rate sweeps and the memory of idle peers.
    #[arg(long)]
    tcp_only: bool,
    /// End with status 1 when a bar is missed.
    #[arg(long)]
    check: bool,
}

pub(crate) fn link(options: &Link) -> Result<ExitCode> {
    let mut contenders = options.against.clone();
    for name in options.warren.iter().filter(|name| *name != "none") {
        let contender: Contender = name.parse().map_err(anyhow::Error::msg)?;
        ensure!(contender.is_ours(), "{name} belongs to --against");
        contenders.push(contender);
    }
    contenders.sort();
    contenders.dedup();

    let ours = contenders.iter().any(|contender| contender.is_ours());
    let peer_paths = options.common.peer_paths(ours)?;
    if let Privilege::Delegated(code) = find_privilege()? {
        return Ok(code);
    }
    let plan = Plan {
        contenders,
        underlay: options.common.underlay,
        repeat: options.common.repeat.max(1),
        seconds: options.seconds.max(1),
        tcp_only: options.tcp_only,
        peer_paths,
    };
    let report = bench::run(&plan, |line| eprintln!("{line}"))?;
    options.common.tell(&report)?;
    Ok(match report.all_met() || !options.check {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

/// Options of `bench onion`.
#[derive(Args)]
pub(crate) struct Onion {
    /// Who takes part.
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "wireguard-go-nested-3,wireguard-go-1,warren-3-aes,warren-3-chacha,warren-1-aes"
    )]
    contenders: Vec<OnionContender>,
    #[command(flatten)]
    common: Common,
    /// Seconds of each TCP measurement.
    #[arg(long, default_value_t = 4)]
    seconds: u32,
}

pub(crate) fn onion(options: &Onion) -> Result<ExitCode> {
    let peer_paths = options.common.peer_paths(true)?;
    if let Privilege::Delegated(code) = find_privilege()? {
        return Ok(code);
    }
    let plan = OnionPlan {
        contenders: options.contenders.clone(),
        underlay: options.common.underlay,
        repeat: options.common.repeat.max(1),
        seconds: options.seconds.max(1),
        peer_paths,
    };
    let report = bench::onion::run(&plan, |line| eprintln!("{line}"))?;
    options.common.tell(&report)?;
    Ok(ExitCode::SUCCESS)
}

/// Builds the release binary and returns its directory.
pub(crate) fn build_warren() -> Result<PathBuf> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo).args(["build", "--release", "-p", "warren"]).status()?;
    ensure!(status.success(), "the build of warren failed");
    let target =
        std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| "target".into(), PathBuf::from);
    Ok(target.join("release"))
}
