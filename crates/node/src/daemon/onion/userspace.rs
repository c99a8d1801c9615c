//! Onion paths without an interface: the stack's inner addresses while a session
//! is wanted, and an exit by ordinary sockets.
//!
//! In: the session's state, the exit policy, what this machine and the mesh
//! have for addresses. Out: addresses of the stack, an [`Exit`]. Invariants:
//! the stack has inner addresses only while a session is wanted, so that the
//! proxies refuse at all other times; connections through an exit that was
//! given up are reset, because no other one knows them; an exit's clients reach
//! neither the mesh nor this machine, whatever the policy says. Deliberately
//! not here: moving packets (`userspace`), circuits (`proto::onion`).

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use arc_swap::ArcSwap;
use ipnet::IpNet;
use warren_os::netlink::Netlink;
use warren_proto::onion::session::{CLIENT_V4, CLIENT_V6};
use warren_types::api::ConnectRequest;
use warren_types::{ExitPolicy, Protocol};

use super::super::Daemon;
use crate::api::ApiError;
use crate::fault::Fault;
use crate::host::{exit::NEVER, resolver};
use crate::userspace::exit::{Proto, leases};
use crate::userspace::{Addresses, Exit, Userspace};

/// An exit that serves by ordinary sockets. Dropped, connections through it are
/// reset.
pub(super) struct SocketExit {
    gate: Arc<ArcSwap<Gate>>,
    _serving: Exit,
}

/// What may leave.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Gate {
    policy: ExitPolicy,
    /// Whatever the policy says: special addresses, the mesh, this machine.
    closed: Vec<IpNet>,
}

impl Gate {
    fn new(policy: ExitPolicy, mesh: &[IpNet], machine: &[IpAddr]) -> Self {
        let special = NEVER.iter().filter_map(|net| net.parse().ok());
        let closed = special
            .chain(mesh.iter().copied())
            .chain(machine.iter().map(|address| IpNet::from(*address)))
            .collect();
        Self { policy, closed }
    }

    fn allows(&self, to: IpAddr, port: u16, proto: Proto) -> bool {
        let protocol = match proto {
            Proto::Tcp => Protocol::Tcp,
            // As the policy has it for what has no ports.
            Proto::Udp | Proto::Echo => Protocol::Udp,
        };
        !self.closed.iter().any(|net| net.contains(&to)) && self.policy.allows(to, port, protocol)
    }
}

/// Every address of this machine.
fn machine() -> Vec<IpAddr> {
    match Netlink::open().and_then(|mut netlink| netlink.addresses()) {
        Ok(all) => all.into_iter().map(|known| known.address.addr()).collect(),
        Err(error) => {
            tracing::warn!(%error, "cannot list the addresses of this machine");
            Vec::new()
        }
    }
}

impl Daemon {
    /// Refuses what a session for the proxies alone cannot do for its machine:
    /// better than a kill switch that is not there.
    ///
    /// # Errors
    /// [`ApiError::Invalid`] naming the option.
    pub(super) fn refuse_machine_options(&self, request: &ConnectRequest) -> Result<(), ApiError> {
        let mode = match (&self.userspace, request.proxy_only) {
            (Some(_), _) => "userspace mode",
            (None, true) => "--proxy-only",
            (None, false) => return Ok(()),
        };
        let refused = [
            (request.kill_switch, "--kill-switch"),
            (!request.include.is_empty(), "--include"),
            (!request.exclude.is_empty(), "--exclude"),
        ];
        match refused.into_iter().find(|(given, _)| *given) {
            None => Ok(()),
            Some((_, option)) => Err(ApiError::Invalid(format!(
                "{option} is about this machine's traffic, of which {mode} leads nothing \
                 into the path: connect without it; what goes through the proxies leaves through \
                 the exit or not at all"
            ))),
        }
    }

    /// Gives the stack, if there is one, the addresses that go with the sessions,
    /// or takes them away. IPv6 only with an exit that has it.
    pub(super) fn readdress_paths(&self) {
        let onion = match (self.onion.client.is_on(), self.onion.ipv6) {
            (false, _) => Vec::new(),
            (true, false) => vec![CLIENT_V4.into()],
            (true, true) => vec![CLIENT_V4.into(), CLIENT_V6.into()],
        };
        self.set_paths(onion);
    }

    /// Resets connections of the node's own session, whose exit is no more ours.
    pub(super) fn reset_paths(&mut self) {
        self.onion.ipv6 = false;
        self.set_paths(Vec::new());
    }

    fn set_paths(&self, onion: Vec<IpAddr>) {
        let Some(userspace) = &self.userspace else { return };
        let stack = userspace.dialer().stack();
        let own = stack.addresses();
        let isolated = self.onion.isolated_addresses();
        if (&own.onion, &own.isolated) != (&onion, &isolated) {
            stack.set_addresses(Addresses { onion, isolated, ..(*own).clone() });
        }
    }

    fn gate(&self) -> Gate {
        let policy = self.roles.settings().exit_policy.clone().unwrap_or_default();
        Gate::new(policy, &self.mesh_prefixes(), &machine())
    }

    /// Serves as an exit by ordinary sockets, or not. False when it does not.
    pub(super) fn keep_socket_exit(&mut self, wanted: bool) -> bool {
        if !wanted {
            self.onion.socket_exit = None;
            self.notices.remove("exit");
            return false;
        }
        if self.onion.socket_exit.is_some() {
            self.keep_gate();
            return true;
        }
        let Some(userspace) = &self.userspace else { return false };
        match self.open_socket_exit(userspace) {
            Ok(exit) => {
                self.onion.socket_exit = Some(exit);
                self.notices.remove("exit");
                true
            }
            Err(reason) => {
                tracing::error!(%reason, "this node cannot serve as an exit");
                let text = format!("this node does not serve as an exit: {reason}");
                self.notices.insert("exit", text);
                false
            }
        }
    }

    fn open_socket_exit(&self, userspace: &Userspace) -> Result<SocketExit, Fault> {
        let resolver = match self.config.exit_resolver {
            Some(address) => address,
            None => resolver::local_upstream()?,
        };
        let gate = Arc::new(ArcSwap::from_pointee(self.gate()));
        let asked = gate.clone();
        let serving = userspace.start_exit(
            leases(),
            Some(SocketAddr::new(resolver, 53)),
            Arc::new(move |to, port, proto| asked.load().allows(to, port, proto)),
        );
        Ok(SocketExit { gate, _serving: serving })
    }

    /// Follows the policy, and addresses of the mesh and this machine. To be
    /// called when they may have changed.
    pub(in super::super) fn keep_gate(&self) {
        let Some(exit) = &self.onion.socket_exit else { return };
        let gate = self.gate();
        if **exit.gate.load() != gate {
            exit.gate.store(Arc::new(gate));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neither_the_mesh_nor_the_machine_is_reached_through_an_exit() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let policy: ExitPolicy =
            "allow-private-destinations\nreject *:25\naccept *:*".parse().unwrap();
        let mesh = ["100.64.0.0/10".parse().unwrap(), "192.168.7.0/24".parse().unwrap()];
        let gate = Gate::new(policy, &mesh, &[ip("198.51.100.7"), ip("2001:db8::7")]);
        for open in ["198.51.100.8", "10.0.0.1", "192.168.8.1", "2001:db8::8"] {
            for proto in [Proto::Tcp, Proto::Udp] {
                assert!(gate.allows(ip(open), 443, proto), "{open}");
            }
            assert!(gate.allows(ip(open), 0, Proto::Echo), "{open}");
            assert!(!gate.allows(ip(open), 25, Proto::Tcp), "{open}");
        }
        for closed in [
            "100.64.0.9",
            "192.168.7.1",
            "198.51.100.7",
            "2001:db8::7",
            "127.0.0.1",
            "::1",
            "::ffff:127.0.0.1",
            "169.254.169.254",
            "192.0.0.2",
            "240.0.0.9",
            "fd77:6172:7265:6e01::9",
            "fe80::1",
        ] {
            assert!(!gate.allows(ip(closed), 443, Proto::Tcp), "{closed}");
        }
        let gate = Gate::new(ExitPolicy::default(), &mesh, &[]);
        assert!(gate.allows(ip("8.8.8.8"), 443, Proto::Tcp));
        assert!(!gate.allows(ip("10.0.0.1"), 443, Proto::Tcp));
    }

    #[test]
    fn everybody_means_the_same_by_leases() {
        use crate::host::plan;
        use warren_os::netlink::rules::Family;
        use warren_proto::onion::session::{EXIT_V4, EXIT_V6, Lease, MAX_SESSIONS};
        let userspace = leases();
        assert_eq!(userspace, Family::BOTH.map(plan::leases));
        for index in [1, MAX_SESSIONS as u16] {
            let lease = Lease::new(index).unwrap();
            assert!(userspace[0].contains(&IpAddr::from(lease.v4())));
            assert!(userspace[1].contains(&IpAddr::from(lease.v6())));
        }
        assert_eq!((CLIENT_V4, CLIENT_V6), (plan::INNER_V4, plan::INNER_V6));
        assert_eq!((EXIT_V4, EXIT_V6), (plan::RESOLVER_V4, plan::RESOLVER_V6));
        assert!(crate::userspace::exit::RESOLVERS.contains(&EXIT_V4.into()));
        assert!(crate::userspace::exit::RESOLVERS.contains(&EXIT_V6.into()));
    }
}
