//! The `warren` command: a mesh VPN without a central server.
//!
//! In: the command line. Out: story lines on standard output, faults on
//! standard error, and an exit code by the fault's class. `up` and `join` run
//! the daemon in this process; every other command asks a running daemon over
//! the local API of its state directory.

mod cli;
mod demo;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let cli = cli::Cli::parse();
    match cli::run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(fault) => {
            eprintln!("error: {fault}");
            ExitCode::from(fault.kind().exit_code())
        }
    }
}
