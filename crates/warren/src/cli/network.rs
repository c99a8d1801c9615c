//! Commands that change the network: `invite`, `revoke`, `leave`, `down`.

use std::io::IsTerminal;
use std::time::Duration;

use warren_node::api::ClientError;
use warren_node::fault::{Fault, FaultKind};
use warren_node::store::Store;
use warren_types::NodeName;
use warren_types::api::InviteRequest;

use super::{State, out, qr};

/// `warren invite`.
pub(super) async fn invite(
    state: &State,
    expires: Duration,
    uses: u32,
    with_qr: bool,
) -> Result<(), Fault> {
    let request = InviteRequest { expires_s: expires.as_secs(), uses };
    let reply = state.client().invite(&request).await?;
    let mut text = format!("warren join {}\n", reply.code);
    if with_qr || std::io::stdout().is_terminal() {
        text.push_str(&qr::render(&reply.code)?);
    }
    out(&text)?;
    let machines = if reply.uses == 1 { "one machine" } else { "that many machines" };
    let count = if reply.uses == 1 { String::new() } else { format!(" ({})", reply.uses) };
    eprintln!("The code admits {machines}{count} within {}.", spoken(reply.expires_s));
    Ok(())
}

/// Seconds in the largest whole unit.
fn spoken(seconds: u64) -> String {
    let (n, unit) = match seconds {
        s if s % 86_400 == 0 => (s / 86_400, "day"),
        s if s % 3600 == 0 => (s / 3600, "hour"),
        s if s % 60 == 0 => (s / 60, "minute"),
        s => (s, "second"),
    };
    format!("{n} {unit}{}", if n == 1 { "" } else { "s" })
}

/// `warren revoke NAME`.
pub(super) async fn revoke(state: &State, name: &NodeName) -> Result<(), Fault> {
    state.client().revoke(name).await?;
    out(&format!("{name} is expelled; members cut it off as the word reaches them.\n"))
}

/// `warren leave`. Without a running daemon the state is removed all the same;
/// then the others cannot be told.
pub(super) async fn leave(state: &State, force: bool) -> Result<(), Fault> {
    match state.client().leave(force).await {
        Ok(()) => {
            remove_emptied(&state.dir()).await;
            out("Left the network; its keys, state and interface are removed.\n")
        }
        Err(error @ ClientError::NotRunning(_)) => {
            let dir = state.dir();
            if !warren_node::store::holds_state(&dir) {
                return Err(error.into());
            }
            Store::open(&dir)?.wipe()?;
            out("Removed this node's keys and state. No daemon was running to tell the others: \
                 `warren revoke` on an admitting node makes them forget it.\n")
        }
        Err(error) => Err(error.into()),
    }
}

/// The daemon empties its directory but, confined to it, cannot remove it.
async fn remove_emptied(dir: &std::path::Path) {
    for _ in 0..50 {
        match std::fs::remove_dir(dir) {
            // The daemon is still busy, or the operator keeps files there.
            Err(e) if e.kind() == std::io::ErrorKind::DirectoryNotEmpty => {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            _ => return,
        }
    }
}

/// `warren down`. Returns when the daemon is gone, so that another can start.
pub(super) async fn down(state: &State) -> Result<(), Fault> {
    state.client().shutdown().await?;
    let dir = state.dir();
    for _ in 0..100 {
        // The lock is free when the process has ended.
        if !dir.exists() || Store::open(&dir).is_ok() {
            return out("Stopped; `warren up` starts this node again with the same identity.\n");
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Err(Fault::new(FaultKind::Internal, "the daemon was asked to stop but still runs")
        .remedy("wait a little; its process id is in the file `lock` of the state directory"))
}

#[cfg(test)]
mod tests {
    use super::spoken;

    #[test]
    fn durations_are_spoken_in_whole_units() {
        assert_eq!(spoken(900), "15 minutes");
        assert_eq!(spoken(3600), "1 hour");
        assert_eq!(spoken(172_800), "2 days");
        assert_eq!(spoken(61), "61 seconds");
    }
}
