//! Development tasks: `cargo xtask bench link|scale`, `cargo xtask sim mesh`,
//! `cargo xtask layers`.
//!
//! Logic lives in modules (and in the lab); this file only reads the command
//! line. Invariant: a task that checks something ends with status 1 when it
//! does not hold.

mod bench;
mod layers;
mod scale;
mod sim;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Warren's development tasks.
#[derive(Parser)]
#[command(name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Measure Warren.
    Bench {
        #[command(subcommand)]
        what: Bench,
    },
    /// Run many nodes on a virtual clock.
    Sim {
        #[command(subcommand)]
        what: Sim,
    },
    /// Check which crate may depend on which, and where unsafe code may be.
    Layers,
}

#[derive(Subcommand)]
enum Bench {
    /// Beside other VPNs on one link between two network namespaces.
    Link(bench::Link),
    /// Paths of several hops beside nested WireGuard tunnels.
    Onion(bench::Onion),
    /// One daemon in a network of thousands.
    Scale(scale::Scale),
    /// The active peers of `bench scale`, which starts this by itself.
    #[command(hide = true)]
    Farm(scale::Farm),
}

#[derive(Subcommand)]
enum Sim {
    /// Discovery among thousands of nodes, a tenth of them hostile.
    Mesh(sim::Mesh),
    /// Memory of one node's directory, bytes.
    Directory(sim::Size),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let result = match arguments.task {
        Task::Bench { what: Bench::Link(link) } => bench::link(&link),
        Task::Bench { what: Bench::Onion(onion) } => bench::onion(&onion),
        Task::Sim { what: Sim::Mesh(options) } => sim::mesh(&options),
        Task::Bench { what: Bench::Scale(scale) } => scale::scale(&scale),
        Task::Bench { what: Bench::Farm(farm) } => scale::farm(&farm),
        Task::Sim { what: Sim::Directory(options) } => sim::directory(&options),
        Task::Layers => layers::check(),
    };
    result.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}
