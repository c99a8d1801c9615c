//! `warren ca` and `warren rotate`: who may admit, and new keys for old ones.

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use warren_node::fault::{Fault, FaultKind};
use warren_os::terminal::KeyInput;
use warren_types::NodeName;
use warren_types::api::{CaReply, CaRequest, KeyKind};
use zeroize::Zeroizing;

use super::private::{create_private, write_private};
use super::{State, duration, out};

/// Largest exported key, bytes.
const MAX_FILE: u64 = 64 * 1024;

#[derive(Debug, Subcommand)]
pub(super) enum CaCommand {
    /// Show who may admit others.
    List(State),
    /// Let a member admit, renew and revoke as well; run it where the root is.
    Delegate {
        /// The member; it has to be connected.
        node: NodeName,
        #[command(flatten)]
        state: State,
    },
    /// Do not let a member admit others any more; it stays a member.
    Undelegate {
        /// The member.
        node: NodeName,
        #[command(flatten)]
        state: State,
    },
    /// Replace the root: every member gets a certificate under the new one.
    Rotate {
        /// How long the old root stays trusted: a number with s, m, h or d, at most 90d.
        #[arg(long, default_value = "30d", value_parser = duration)]
        overlap: Duration,
        #[command(flatten)]
        state: State,
    },
    /// Write the root's key to a file, encrypted with a passphrase.
    Export {
        /// The file; it must not exist yet.
        file: PathBuf,
        /// Remove the key from this node then: it stays an admin, but the root is offline.
        #[arg(long)]
        remove: bool,
        #[command(flatten)]
        passphrase: Passphrase,
        #[command(flatten)]
        state: State,
    },
    /// Take the root's key from an exported file into this node.
    Import {
        /// The file.
        file: PathBuf,
        #[command(flatten)]
        passphrase: Passphrase,
        #[command(flatten)]
        state: State,
    },
}

#[derive(Debug, Clone, Args)]
pub(super) struct Passphrase {
    /// File whose first line is the passphrase, instead of asking for it.
    #[arg(long, value_name = "FILE")]
    passphrase_file: Option<PathBuf>,
}

/// What `warren rotate` replaces.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum Rotated {
    /// This node's identity; its name, addresses and connections stay.
    NodeKey,
    /// The static key of this node's links.
    LinkKey,
    /// The keys of all sessions that are up.
    SessionKeys,
    /// This node's certificate.
    Certificate,
}

pub(super) async fn run(command: CaCommand) -> Result<(), Fault> {
    match command {
        CaCommand::List(state) => out(&table(&state.client().ca(&CaRequest::List).await?)),
        CaCommand::Delegate { node, state } => {
            state.client().ca(&CaRequest::Delegate { name: node.to_string() }).await?;
            out(&format!("{node} may admit, renew and revoke from now on.\n"))
        }
        CaCommand::Undelegate { node, state } => {
            state.client().ca(&CaRequest::Undelegate { name: node.to_string() }).await?;
            out(&format!(
                "{node} may not admit others any more; members it admitted get certificates from \
                 other admins.\n"
            ))
        }
        CaCommand::Rotate { overlap, state } => {
            let request = CaRequest::Rotate { overlap_s: overlap.as_secs() };
            let reply = state.client().ca(&request).await?;
            out(&format!(
                "The network has a new root (rotation {}); members renew under it by themselves. \
                 An exported copy of the old key is worth nothing now: export it again.\n",
                reply.epoch
            ))
        }
        CaCommand::Export { file, remove, passphrase, state } => {
            export(&state, &file, remove, &passphrase).await
        }
        CaCommand::Import { file, passphrase, state } => import(&state, &file, &passphrase).await,
    }
}

async fn export(
    state: &State,
    file: &Path,
    remove: bool,
    passphrase: &Passphrase,
) -> Result<(), Fault> {
    let place = create_private(file)?;
    let passphrase = passphrase.ask("Passphrase for the file: ", true)?;
    let request = CaRequest::Export { passphrase: passphrase.to_string() };
    let sealed = Zeroizing::new(state.client().ca(&request).await?.file.unwrap_or_default());
    write_private(place, sealed.as_bytes())?;
    // Nothing is removed before the file is known to open.
    let written = std::fs::read_to_string(file).map_err(|e| Fault::file("read back", file, &e))?;
    warren_node::keys::open_ca_key(&written, &passphrase)?;
    let mut said = format!(
        "The root key is in {}. Without it and the passphrase nobody can delegate or rotate the CA.\n",
        file.display()
    );
    if remove {
        state.client().ca(&CaRequest::Remove).await?;
        said.push_str("It is removed from this node, which stays an admin.\n");
    }
    out(&said)
}

async fn import(state: &State, file: &Path, passphrase: &Passphrase) -> Result<(), Fault> {
    let length = std::fs::metadata(file).map_err(|e| Fault::file("read", file, &e))?.len();
    if length > MAX_FILE {
        return Err(Fault::new(FaultKind::Usage, format!("{} is no exported key", file.display())));
    }
    let text = std::fs::read_to_string(file).map_err(|e| Fault::file("read", file, &e))?;
    let passphrase = passphrase.ask("Passphrase of the file: ", false)?;
    let request = CaRequest::Import { file: text, passphrase: passphrase.to_string() };
    state.client().ca(&request).await?;
    out("This node holds the root key: it can delegate and rotate the CA.\n")
}

impl Passphrase {
    fn ask(&self, prompt: &str, twice: bool) -> Result<Zeroizing<String>, Fault> {
        if let Some(file) = &self.passphrase_file {
            let text = std::fs::read_to_string(file).map_err(|e| Fault::file("read", file, &e))?;
            let text = Zeroizing::new(text);
            return Ok(Zeroizing::new(text.lines().next().unwrap_or_default().to_owned()));
        }
        let first = hidden(prompt)?;
        if twice && *hidden("Once more: ")? != *first {
            return Err(Fault::new(FaultKind::Usage, "the two passphrases differ"));
        }
        Ok(first)
    }
}

/// Reads a line from the terminal without showing it.
fn hidden(prompt: &str) -> Result<Zeroizing<String>, Fault> {
    let no_terminal = || {
        Fault::new(FaultKind::Usage, "there is no terminal to ask for the passphrase on")
            .remedy("give it with --passphrase-file FILE")
    };
    if !std::io::stdin().is_terminal() {
        return Err(no_terminal());
    }
    eprint!("{prompt}");
    let _ = std::io::stderr().flush();
    let keys = KeyInput::take().map_err(|_| no_terminal())?;
    let mut line = Zeroizing::new(Vec::with_capacity(1024));
    loop {
        let key = keys.key(Duration::from_secs(3600)).map_err(|_| no_terminal())?;
        match key {
            Some(b'\r' | b'\n') => break,
            Some(3 | 4) | None => {
                return Err(Fault::new(FaultKind::Usage, "no passphrase was given"));
            }
            Some(8 | 127) => {
                line.pop();
            }
            Some(byte) if line.len() < 1024 => line.push(byte),
            Some(_) => {}
        }
    }
    drop(keys);
    eprintln!();
    let text = std::str::from_utf8(&line)
        .map_err(|_| Fault::new(FaultKind::Usage, "the passphrase is not UTF-8"))?;
    Ok(Zeroizing::new(text.to_owned()))
}

fn table(reply: &CaReply) -> String {
    let mut text = format!("{:<20} {:<10} {:<14} KEY\n", "NODE", "AUTHORITY", "ENDS IN");
    for entry in &reply.authorities {
        let kind = match (entry.revoked, entry.root) {
            (true, _) => "revoked",
            (false, true) => "root",
            (false, false) => "delegated",
        };
        let ends = entry.expires_s.map_or_else(|| "-".to_owned(), |s| format!("{} d", s / 86_400));
        let key = entry.key.map_or_else(|| "-".to_owned(), |key| key.short());
        text.push_str(&format!("{:<20} {kind:<10} {ends:<14} {key}\n", entry.name));
    }
    if !reply.authorities.iter().any(|entry| entry.root && !entry.revoked) {
        text.push_str(
            "No member that is known holds the root key; `warren ca import FILE` brings it back.\n",
        );
    }
    text.push_str(&format!("The CA was rotated {} times.\n", reply.epoch));
    text
}

pub(super) async fn rotate(state: &State, what: Rotated) -> Result<(), Fault> {
    let (kind, said) = match what {
        Rotated::NodeKey => (KeyKind::NodeKey, "This node has a new key; all else stays.\n"),
        Rotated::LinkKey => (KeyKind::LinkKey, "This node's links have a new static key.\n"),
        Rotated::SessionKeys => (KeyKind::SessionKeys, "New session keys are on their way.\n"),
        Rotated::Certificate => (KeyKind::Certificate, "This node has a new certificate.\n"),
    };
    state.client().rotate(kind).await?;
    out(said)
}

#[cfg(test)]
mod tests {
    use super::*;
    use warren_types::NodeId;
    use warren_types::api::AuthorityEntry;

    #[test]
    fn the_list_says_who_holds_what() {
        let entry = |name: &str, root, revoked| AuthorityEntry {
            name: name.into(),
            root,
            key: Some(NodeId([1; 32])),
            expires_s: Some(10 * 86_400),
            revoked,
        };
        let authorities =
            vec![entry("a", true, false), entry("b", false, false), entry("c", false, true)];
        let text = table(&CaReply { authorities, epoch: 2, file: None });
        for part in ["root", "delegated", "revoked", "10 d", "rotated 2 times"] {
            assert!(text.contains(part), "no {part} in\n{text}");
        }
        assert!(table(&CaReply::default()).contains("ca import"));
    }
}
