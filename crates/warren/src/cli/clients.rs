//! `warren wg`: stock WireGuard clients of this node.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use clap::Subcommand;
use warren_node::config::Endpoint;
use warren_node::fault::Fault;
use warren_types::NodeName;
use warren_types::api::AddClientRequest;

use super::private::{create_private, write_private};
use super::{State, out, qr, story};

#[derive(Debug, Subcommand)]
pub(super) enum WgCommand {
    /// Print the configuration for a new client; it is not stored here, so print it once.
    AddClient {
        /// Its name, unique in the network.
        name: NodeName,
        /// Where the client reaches this node [default: the port its router gave, else the first advertised endpoint].
        #[arg(long, value_name = "HOST:PORT")]
        endpoint: Option<Endpoint>,
        /// Write the configuration to this new file (mode 0600) instead of printing it.
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
        /// Print a QR code too when standard output is not a terminal.
        #[arg(long)]
        qr: bool,
        #[command(flatten)]
        state: State,
    },
    /// List the clients of this node.
    List {
        /// JSON with stable keys.
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        state: State,
    },
    /// Remove a client; its key is refused from then on.
    Remove {
        /// Its name.
        name: NodeName,
        #[command(flatten)]
        state: State,
    },
}

/// Runs one of them.
pub(super) async fn run(command: WgCommand) -> Result<(), Fault> {
    match command {
        WgCommand::AddClient { name, endpoint, out: file, qr, state } => {
            add(&state, &name, endpoint, file.as_deref(), qr).await
        }
        WgCommand::List { json, state } => list(&state, json).await,
        WgCommand::Remove { name, state } => {
            state.client().remove_wg_client(&name).await?;
            out(&format!("{name} is removed.\n"))
        }
    }
}

async fn add(
    state: &State,
    name: &NodeName,
    endpoint: Option<Endpoint>,
    file: Option<&Path>,
    with_qr: bool,
) -> Result<(), Fault> {
    // Made first, so that no client is added whose keys cannot be kept.
    let target = file.map(create_private).transpose()?;
    let request =
        AddClientRequest { name: name.to_string(), endpoint: endpoint.map(|e| e.to_string()) };
    let reply = state.client().add_wg_client(&request).await?;
    let show_qr = match target {
        Some(target) => {
            let place = target.path().display().to_string();
            write_private(target, reply.config.as_bytes())?;
            eprintln!("Wrote {place}; import it on the client.");
            with_qr
        }
        None => {
            out(&reply.config)?;
            with_qr || std::io::stdout().is_terminal()
        }
    };
    if show_qr { out(&qr::render(&reply.config)?) } else { Ok(()) }
}

async fn list(state: &State, json: bool) -> Result<(), Fault> {
    let clients = state.client().wg_clients().await?;
    if json {
        let text = serde_json::to_string_pretty(&clients).map_err(|e| Fault::internal(&e))?;
        return out(&format!("{text}\n"));
    }
    if clients.is_empty() {
        return out("No WireGuard clients; `warren wg add-client NAME` adds one.\n");
    }
    let width = clients.iter().map(|c| c.name.len()).max().unwrap_or(0);
    let mut text = String::new();
    for client in clients {
        let addresses = story::listed(&client.addresses);
        text.push_str(&format!("{:<width$}  {}  {addresses}\n", client.name, client.public_key));
    }
    out(&text)
}
