//! `warren wg`: stock WireGuard clients of this node.

use std::io::{IsTerminal, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use clap::Subcommand;
use warren_node::config::Endpoint;
use warren_node::fault::{Fault, FaultKind};
use warren_types::NodeName;
use warren_types::api::AddClientRequest;

use super::{State, out, qr, story};

#[derive(Debug, Subcommand)]
pub(super) enum WgCommand {
    /// Print the configuration for a new client; it is not stored here, so print it once.
    AddClient {
        /// Its name, unique in the network.
        name: NodeName,
        /// Where the client reaches this node [default: the first advertised endpoint].
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
    let reply = match state.client().add_wg_client(&request).await {
        Ok(reply) => reply,
        Err(error) => {
            if let Some((path, _)) = &target {
                let _was_empty = std::fs::remove_file(path);
            }
            return Err(error.into());
        }
    };
    match target {
        Some((path, mut file)) => {
            file.write_all(reply.config.as_bytes()).map_err(|e| Fault::file("write", &path, &e))?;
            eprintln!("Wrote {}; import it on the client.", path.display());
            if with_qr {
                out(&qr::render(&reply.config)?)?;
            }
        }
        None => {
            out(&reply.config)?;
            if with_qr || std::io::stdout().is_terminal() {
                out(&qr::render(&reply.config)?)?;
            }
        }
    }
    Ok(())
}

fn create_private(path: &Path) -> Result<(PathBuf, std::fs::File), Fault> {
    let opened = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    match opened {
        Ok(file) => Ok((path.to_owned(), file)),
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
            let what = format!("{} exists already", path.display());
            Err(Fault::new(FaultKind::Usage, what).remedy("choose another --out file or remove it"))
        }
        Err(e) => Err(Fault::file("create", path, &e)),
    }
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
