//! Keys for the ways of admission without certificates.

use std::path::PathBuf;

use clap::Subcommand;
use warren_node::api::ClientError;
use warren_node::fault::Fault;

use super::private::{create_private, write_private};
use super::{State, out};

#[derive(Debug, Subcommand)]
pub(super) enum PskCommand {
    /// Print a new 256-bit key, base64, for the `psk_file` of every member.
    Generate {
        /// Write the key to this new file (mode 0600) instead of printing it.
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
}

/// `warren psk generate`.
pub(super) fn psk(command: &PskCommand) -> Result<(), Fault> {
    match command {
        PskCommand::Generate { out: file } => {
            let mut text = warren_node::keys::generate_psk().to_base64();
            text.push('\n');
            match file {
                Some(path) => write_private(create_private(path)?, text.as_bytes()),
                None => out(&text),
            }
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
