//! The daemon's side of changing its machine: plans made of what it knows (its
//! interface, the mesh's prefixes, routes in force, its own DNS server), handed
//! to the companion.
//!
//! Invariants: the kill switch is in force before anything else changes; names
//! are passed on to the exit only while the machine is connected. Each call
//! takes some 30 ms. Deliberately not here: when to connect, and to what.

use ipnet::IpNet;

use super::Daemon;
use crate::fault::{Fault, FaultKind};
use crate::host::kill_switch;
use crate::host::plan::PolicyRule;
use crate::host::{
    Companion, ConnectPlan, ExitPlan, HostState, KillSwitchPlan, Split, TakeoverPlan,
};

/// How this machine is to use an exit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Connection {
    /// Nothing may leave beside the tunnel, also after the daemon's end.
    pub(super) kill_switch: bool,
    /// The local network stays reachable.
    pub(super) lan: bool,
    /// Which traffic.
    pub(super) split: Split,
    /// Names are asked through the tunnel.
    pub(super) resolver: bool,
}

/// The topic of what `warren status` says of it.
const TOPIC: &str = "machine";

impl Daemon {
    /// Puts back what another program has removed (a restart of the system's
    /// firewall does).
    pub(super) fn keep_machine(&mut self) {
        let remembered = kill_switch::remembered(&self.config.state_dir);
        let active = self.host.as_ref().is_some_and(Companion::is_active);
        if matches!(remembered, Ok(None)) && !active {
            self.notices.remove(TOPIC);
            return;
        }
        match self.companion().and_then(Companion::keep) {
            Ok(state) => {
                self.notices.remove(TOPIC);
                if !state.put_back.is_empty() {
                    let what = state.put_back.join(", ");
                    tracing::warn!(what, "another program had removed it: it is there again");
                }
            }
            Err(fault) => {
                let what = format!("what goes beside the tunnel is not known: {}", fault.what());
                if self.notices.insert(TOPIC, what).is_none() {
                    tracing::error!(%fault, "what goes beside the tunnel is not known");
                }
            }
        }
    }

    /// Leads the machine's traffic into our interface, or changes how. Again
    /// after every change of routes, and now and then: other programs clean up
    /// packet filters and `resolv.conf`.
    pub(super) fn connect_machine(&mut self, wanted: &Connection) -> Result<HostState, Fault> {
        let kill_switch = wanted.kill_switch.then(|| KillSwitchPlan {
            interface: self.interface.clone(),
            lan: wanted.lan,
            split: wanted.split.clone(),
        });
        let takeover = TakeoverPlan {
            split: wanted.split.clone(),
            lan_allowed: wanted.lan || !wanted.kill_switch,
            ..TakeoverPlan::new(&self.interface, self.mesh_prefixes())
        };
        let resolver = wanted.resolver.then(|| self.names.resolver_plan(&self.interface));
        let plan = ConnectPlan { kill_switch, takeover, resolver };
        let state = self.companion()?.connect(&plan)?;
        self.names.forward(wanted.resolver);
        Ok(state)
    }

    /// Gives the machine's traffic back. The kill switch goes last, or stays:
    /// between two paths, and when a connection is lost.
    pub(super) fn disconnect_machine(
        &mut self,
        keep_kill_switch: bool,
    ) -> Result<HostState, Fault> {
        self.names.forward(false);
        self.companion()?.disconnect(keep_kill_switch)
    }

    /// Programs learn at once that their connections are lost.
    pub(super) fn end_connections(&mut self) {
        if self.host.is_none() {
            return;
        }
        if let Err(fault) = self.companion().and_then(Companion::end_connections) {
            tracing::warn!(%fault, "connections through the lost exit may hang");
        }
    }

    /// Lets sessions leave from this machine, or changes what they may reach.
    pub(super) fn exit_machine(&mut self, policy: Vec<PolicyRule>) -> Result<HostState, Fault> {
        let plan = ExitPlan {
            policy,
            resolver: self.config.exit_resolver,
            ..ExitPlan::new(&self.interface, self.mesh_prefixes())
        };
        self.companion()?.exit_up(&plan)
    }

    /// Ends that.
    pub(super) fn exit_machine_down(&mut self) -> Result<HostState, Fault> {
        self.companion()?.exit_down()
    }

    /// What is reached through links, not through an exit.
    pub(super) fn mesh_prefixes(&self) -> Vec<IpNet> {
        self.prefixes.iter().chain(self.subnets.in_force.keys()).copied().collect()
    }

    fn companion(&mut self) -> Result<&mut Companion, Fault> {
        self.host.as_mut().ok_or_else(|| {
            Fault::new(
                FaultKind::Permission,
                "this daemon may not change routes and packet filters",
            )
            .remedy("start it as root or with CAP_NET_ADMIN, or use an exit without (--userspace)")
        })
    }
}
