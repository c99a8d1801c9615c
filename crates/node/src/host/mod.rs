//! What Warren changes on the machine it runs on, besides its own interface:
//! where an exit's traffic leaves, where a client's traffic goes, and what must
//! not leave at all.
//!
//! - [`plan`]: what is wanted, as values.
//! - [`exit`]: address translation and policy of an exit.
//! - [`takeover`]: a client's traffic into the tunnel; [`split`]: which of it.
//! - [`kill_switch`]: nothing beside the tunnel, also without a daemon.
//! - [`resolver`]: names through the tunnel.
//! - [`companion`]: the process that does all this for a confined daemon.
//!
//! Each part makes text and values from a plan (pure, tested) and puts them
//! into force. Invariants: what is done is written down before (`record`), so
//! that it is taken back at the end, by the companion when the daemon is
//! killed, and by the next start when both were; the kill switch alone stays.
//! Everything can be applied again at any time, which changes only what
//! differs. Deliberately not here: deciding when to connect, and the data path.

pub mod companion;
pub mod exit;
pub mod kill_switch;
mod nft;
pub mod plan;
mod record;
pub mod resolver;
pub mod split;
mod sysctl;
pub mod takeover;

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use warren_os::netlink::rules::Family;
use warren_os::netlink::sockets::end_connections;

pub use companion::Companion;
pub use kill_switch::KillSwitchState;
pub use plan::{ConnectPlan, ExitPlan, KillSwitchPlan, ResolverPlan, Split, TakeoverPlan};

use self::record::Record;
use crate::fault::{Fault, FaultKind};

/// How the machine stands.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostState {
    /// The kill switch.
    pub kill_switch: KillSwitchState,
    /// Traffic is led into this interface.
    pub connected: Option<String>,
    /// Sessions leave from this interface.
    pub exit: Option<String>,
    /// The system's resolver asks the exit.
    pub resolver: bool,
    /// What an operator should know, with what to do.
    #[serde(default)]
    pub hints: Vec<String>,
    /// What another program had removed and was put back just now.
    #[serde(default)]
    pub put_back: Vec<String>,
}

/// The machine, for a process with the privileges to change it. A daemon that
/// gives them up uses a [`Companion`], which has the same methods.
pub struct Host {
    dir: PathBuf,
    record: Record,
    mesh_names: Option<(Vec<IpAddr>, Vec<String>)>,
    hints: Vec<String>,
    /// What is in force, to be kept so.
    connection: Option<ConnectPlan>,
    exit: Option<ExitPlan>,
}

impl Host {
    /// Takes the machine over from whoever had it before: what a killed process
    /// left is put back, a kill switch that was on is on again.
    ///
    /// # Errors
    /// When another process has it, or something cannot be put back.
    pub fn open(dir: &Path) -> Result<Self, Fault> {
        // First: nothing may leave while the rest is put back.
        if let Some(plan) = kill_switch::remembered(dir)? {
            kill_switch::on(dir, &plan)?;
        }
        let record = Record::open(dir)?;
        let mut host = Self {
            dir: dir.to_owned(),
            record,
            mesh_names: None,
            hints: vec![],
            connection: None,
            exit: None,
        };
        host.restore()?;
        Ok(host)
    }

    /// Leads the machine's traffic into the tunnel, or changes how; the kill
    /// switch first.
    ///
    /// # Errors
    /// With what is missing. The kill switch, if asked for, then stays. The
    /// rest is taken back, unless the machine was connected before: then it
    /// stays so, rather than go beside the tunnel.
    pub fn connect(&mut self, plan: &ConnectPlan) -> Result<(), Fault> {
        if let Some(kill_switch) = &plan.kill_switch {
            kill_switch::on(&self.dir, kill_switch)?;
        }
        let fresh = self.record.notes.takeover.is_none();
        let mut steps = || {
            takeover::apply(&mut self.record, &plan.takeover)?;
            match &plan.resolver {
                Some(resolver) => {
                    self.mesh_names.clone_from(&resolver.mesh);
                    resolver::apply(&mut self.record, resolver)
                }
                None => resolver::lift(&mut self.record, self.mesh_names.as_ref()),
            }
        };
        let connected = steps();
        if connected.is_ok() {
            self.connection = Some(plan.clone());
        } else if fresh {
            let undone = self.disconnect(true);
            if let Err(error) = undone {
                tracing::warn!(%error, "not all could be taken back");
            }
        }
        connected
    }

    /// Gives the machine's traffic back, and lifts the kill switch last unless
    /// it is to be kept.
    ///
    /// # Errors
    /// With what could not be taken back; the rest is.
    pub fn disconnect(&mut self, keep_kill_switch: bool) -> Result<(), Fault> {
        self.connection = None;
        let names = resolver::lift(&mut self.record, self.mesh_names.as_ref());
        let routes = takeover::lift(&mut self.record);
        names.and(routes)?;
        if keep_kill_switch { Ok(()) } else { self.kill_switch_off() }
    }

    /// Begins to serve as an exit, or changes how.
    ///
    /// # Errors
    /// With what is missing; nothing new is then in force.
    pub fn exit_up(&mut self, plan: &ExitPlan) -> Result<(), Fault> {
        let fresh = self.record.notes.exit.is_none();
        let up = exit::apply(&mut self.record, plan);
        self.hints = exit::hints(&plan.interface);
        if up.is_ok() {
            self.exit = Some(plan.clone());
        } else if fresh && let Err(error) = self.exit_down() {
            tracing::warn!(%error, "not all could be taken back");
        }
        up
    }

    /// Ends to serve as an exit.
    ///
    /// # Errors
    /// With what could not be taken back.
    pub fn exit_down(&mut self) -> Result<(), Fault> {
        self.hints.clear();
        self.exit = None;
        exit::lift(&mut self.record)
    }

    /// Turns the kill switch on, or changes it.
    ///
    /// # Errors
    /// With what is missing; what was in force stays.
    pub fn kill_switch_on(&mut self, plan: &KillSwitchPlan) -> Result<(), Fault> {
        kill_switch::on(&self.dir, plan)
    }

    /// Turns the kill switch off.
    ///
    /// # Errors
    /// When it could not be; it is then still on.
    pub fn kill_switch_off(&mut self) -> Result<(), Fault> {
        kill_switch::off(&self.dir)
    }

    /// Puts back into force what another program has removed: a restart of the
    /// system's firewall flushes packet filters, systemd-networkd removes rules
    /// it does not know, DHCP clients write `resolv.conf`. Returns what it was.
    ///
    /// # Errors
    /// When it could not be put back.
    pub fn keep(&mut self) -> Result<Vec<&'static str>, Fault> {
        let mut put_back = Vec::new();
        if kill_switch::keep(&self.dir)? {
            put_back.push("the kill switch");
        }
        if let Some(plan) = self.connection.clone() {
            let routes = takeover::in_force(&plan.takeover)?;
            let names = plan.resolver.is_none() || resolver::in_force();
            if !routes || !names {
                self.connect(&plan)?;
                put_back.push(if routes { "the resolver" } else { "the routes into the tunnel" });
            }
        }
        if let Some(plan) = self.exit.clone()
            && !exit::in_force()?
        {
            self.exit_up(&plan)?;
            put_back.push("the exit's address translation");
        }
        Ok(put_back)
    }

    /// Ends TCP connections through the tunnel: their exit is gone, and no other
    /// can go on with them. Programs are told at once instead of waiting.
    ///
    /// # Errors
    /// When the kernel refuses; then they end when they next send.
    pub fn end_connections(&mut self) -> Result<(), Fault> {
        end_connections(&Family::BOTH.map(plan::inner)).map(drop).map_err(|error| {
            Fault::new(FaultKind::Resource, format!("connections were not ended: {error}"))
        })
    }

    /// How things stand.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn state(&self) -> Result<HostState, Fault> {
        let notes = &self.record.notes;
        Ok(HostState {
            kill_switch: kill_switch::state(&self.dir)?,
            connected: notes.takeover.as_ref().map(|done| done.interface.clone()),
            exit: notes.exit.as_ref().map(|done| done.interface.clone()),
            resolver: notes.resolver.is_some(),
            hints: self.hints.clone(),
            put_back: Vec::new(),
        })
    }

    /// Puts everything back but the kill switch.
    ///
    /// # Errors
    /// With what could not be; the rest is.
    pub fn restore(&mut self) -> Result<(), Fault> {
        let exit = self.exit_down();
        self.disconnect(true).and(exit)
    }
}
