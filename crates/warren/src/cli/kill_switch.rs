//! `kill-switch on|off|status`, and the hidden `host-helper` that a daemon
//! starts for itself. They work on the machine directly, with or without a
//! daemon: a machine must not stay cut off because its daemon cannot start.

use std::path::Path;

use clap::{Args, Subcommand};
use warren_node::config::InterfaceName;
use warren_node::fault::Fault;
use warren_node::host::{Host, KillSwitchPlan, KillSwitchState, Split, companion, kill_switch};

use super::{State, out};

/// The kill switch: nothing leaves this machine beside the tunnel.
#[derive(Debug, Subcommand)]
pub(crate) enum KillSwitchCommand {
    /// Let nothing leave beside the tunnel, also when no daemon runs.
    On(On),
    /// Let everything leave again.
    Off(State),
    /// Show whether it is in force.
    Status {
        /// JSON with stable keys.
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        state: State,
    },
}

#[derive(Debug, Args)]
pub(crate) struct On {
    /// Private and link-local addresses stay reachable, but not for DNS.
    #[arg(long)]
    lan: bool,
    /// The tunnel's interface [default: the running daemon's, else warren0].
    #[arg(long, value_name = "NAME")]
    interface: Option<InterfaceName>,
    #[command(flatten)]
    state: State,
}

/// `warren kill-switch …`.
pub(super) async fn run(command: KillSwitchCommand) -> Result<(), Fault> {
    match command {
        KillSwitchCommand::On(wanted) => on(wanted).await,
        KillSwitchCommand::Off(state) => off(&state).await,
        KillSwitchCommand::Status { json, state } => show(&state.dir(), json),
    }
}

async fn on(wanted: On) -> Result<(), Fault> {
    let daemon = wanted.state.client().status().await.ok();
    let interface = match (&wanted.interface, &daemon) {
        (Some(name), _) => name.as_str().to_owned(),
        (None, Some(status)) => status.node.interface.clone(),
        (None, None) => InterfaceName::default().as_str().to_owned(),
    };
    let dir = wanted.state.dir();
    // What a profile excludes stays excluded.
    let split = kill_switch::remembered(&dir)?.map_or_else(Split::default, |plan| plan.split);
    kill_switch::on(&dir, &KillSwitchPlan { interface, lan: wanted.lan, split })?;
    show(&dir, false)
}

async fn off(state: &State) -> Result<(), Fault> {
    let dir = state.dir();
    kill_switch::off(&dir)?;
    if state.client().status().await.is_err() {
        // What a killed daemon left, if it left anything.
        Host::open(&dir)?;
        warren_node::host::resolver::restore()?;
    }
    out("The kill switch is off: traffic goes where the routes lead.\n")
}

fn show(dir: &Path, json: bool) -> Result<(), Fault> {
    let state = kill_switch::state(dir)?;
    if json {
        let text = serde_json::to_string_pretty(&state).map_err(|e| Fault::internal(&e))?;
        return out(&format!("{text}\n"));
    }
    out(&render(&state))
}

fn render(state: &KillSwitchState) -> String {
    let through = state.plan.as_ref().map_or_else(String::new, |plan| {
        let lan = if plan.lan { " and to the local network" } else { "" };
        format!(" but through {}{lan}", plan.interface)
    });
    match (state.on, &state.plan) {
        (true, _) => format!(
            "The kill switch is on: nothing leaves this machine{through}. `warren kill-switch \
             off` lifts it.\n"
        ),
        (false, None) => "The kill switch is off.\n".to_owned(),
        (false, Some(_)) => {
            "The kill switch was turned on, but its packet filter is gone (another \
                             program or a reboot removed it). `warren kill-switch on` or a start \
                             of the daemon puts it back.\n"
                .to_owned()
        }
    }
}

/// `warren host-helper`: see [`companion`].
pub(super) fn help_daemon(state: &State) -> Result<(), Fault> {
    companion::serve(&state.dir())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_three_states_differ_in_words() {
        let plan =
            KillSwitchPlan { interface: "warren0".into(), lan: true, split: Split::default() };
        let text = |on, plan: Option<&KillSwitchPlan>| {
            render(&KillSwitchState { on, plan: plan.cloned() })
        };
        assert!(text(true, Some(&plan)).contains("through warren0 and to the local network"));
        assert!(text(true, None).contains("is on: nothing leaves this machine."));
        assert!(text(false, None).contains("is off"));
        assert!(text(false, Some(&plan)).contains("is gone"));
    }
}
