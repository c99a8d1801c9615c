//! Keys for the ways of admission without certificates.

use clap::Subcommand;
use warren_node::api::ClientError;
use warren_node::fault::Fault;

use super::{State, out};

#[derive(Debug, Subcommand)]
pub(super) enum PskCommand {
    /// Print a new 256-bit key, base64, for the `psk_file` of every member.
    Generate,
}

/// `warren psk generate`.
pub(super) fn psk(command: &PskCommand) -> Result<(), Fault> {
    match command {
        PskCommand::Generate => {
            let key = warren_node::keys::generate_psk();
            out(&format!("{}\n", *key.to_base64()))
        }
    }
}

/// `warren key`: prints the node's identity, made now if there is none.
pub(super) async fn show(state: &State) -> Result<(), Fault> {
    let id = match state.client().status().await {
        Ok(status) => status.node.id,
        Err(ClientError::NotRunning(_)) => warren_node::keys::identity(&state.dir())?,
        Err(error) => return Err(error.into()),
    };
    out(&format!("{id}\n"))
}
