//! `warren demo`: five daemons in five regions on this machine.

use warren_node::fault::{Fault, FaultKind};

/// Arguments of `warren demo`.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Args {}

/// Runs the demonstration to its end.
pub(crate) fn run(_args: Args) -> Result<(), Fault> {
    Err(Fault::new(FaultKind::Internal, "this build of Warren has no demonstration"))
}
