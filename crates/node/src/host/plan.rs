//! What is wanted of this machine, as values: pure data that the parts beside
//! this one turn into rules, and that a privileged process checks again before
//! it acts on it.
//!
//! Invariants: nothing in a checked plan can break out of the text of a rule;
//! addresses and prefixes are typed. Deliberately not here: doing any of it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use warren_os::netlink::rules::Family;
use warren_proto::onion::payload;
use warren_proto::onion::session::{self, Lease};

use crate::config::InterfaceName;
use crate::fault::{Fault, FaultKind};

/// Source address of everything a client sends into an onion path.
pub const INNER_V4: Ipv4Addr = session::CLIENT_V4;
/// The same for IPv6.
pub const INNER_V6: Ipv6Addr = session::CLIENT_V6;
/// Where an exit answers questions about names.
pub const RESOLVER_V4: Ipv4Addr = session::EXIT_V4;
/// The same for IPv6.
pub const RESOLVER_V6: Ipv6Addr = session::EXIT_V6;
/// Both.
pub const RESOLVERS: [IpAddr; 2] = [IpAddr::V4(RESOLVER_V4), IpAddr::V6(RESOLVER_V6)];
/// Largest packet inside an onion path, bytes.
pub const INNER_MTU: u32 = payload::INNER_MTU as u32;

/// The prefix a session's source at an exit is leased from.
#[must_use]
pub fn leases(family: Family) -> IpNet {
    // That of any lease.
    let prefix = Lease::new(1).and_then(|lease| match family {
        Family::V4 => IpNet::new(lease.v4().into(), 16).ok(),
        Family::V6 => IpNet::new(lease.v6().into(), 64).ok(),
    });
    prefix.unwrap_or_default().trunc()
}

/// The source of what a client sends into an onion path.
#[must_use]
pub fn inner(family: Family) -> IpAddr {
    match family {
        Family::V4 => INNER_V4.into(),
        Family::V6 => INNER_V6.into(),
    }
}

/// A control group: its path below the root of the unified hierarchy, such as
/// `system.slice/backup.service`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ControlGroup(String);

impl ControlGroup {
    /// The path, without a slash at either end.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.0
    }

    /// How deep it lies, from 1.
    #[must_use]
    pub fn level(&self) -> usize {
        self.0.split('/').count()
    }
}

impl TryFrom<String> for ControlGroup {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let path = text.trim_matches('/');
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b"-_.@:\\".contains(&b);
        let good = path.len() <= 512
            && path.split('/').all(|part| {
                !part.is_empty() && part != "." && part != ".." && part.bytes().all(allowed)
            });
        if good {
            return Ok(Self(path.to_owned()));
        }
        Err(format!(
            "`{}` is not the path of a control group: use one as /proc/PID/cgroup shows it, such \
             as /user.slice/user-1000.slice",
            text.chars().take(80).collect::<String>().escape_default()
        ))
    }
}

impl From<ControlGroup> for String {
    fn from(group: ControlGroup) -> Self {
        group.0
    }
}

/// Which way a selection works.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SplitMode {
    /// All traffic goes into the tunnel but for the selection.
    #[default]
    Exclude,
    /// Only the selection goes into the tunnel.
    Include,
}

/// Which traffic goes into the tunnel. The default is all of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Split {
    /// What the selection means.
    #[serde(default)]
    pub mode: SplitMode,
    /// Destinations.
    #[serde(default)]
    pub subnets: Vec<IpNet>,
    /// Sockets of these users, by number.
    #[serde(default)]
    pub users: Vec<u32>,
    /// Sockets of processes in these control groups and the ones below.
    #[serde(default)]
    pub groups: Vec<ControlGroup>,
}

impl Split {
    /// True when the whole machine uses the tunnel, but for the exclusions.
    #[must_use]
    pub fn takes_all(&self) -> bool {
        self.mode == SplitMode::Exclude
    }

    /// True when a mark tells which sockets are selected.
    #[must_use]
    pub fn marks(&self) -> bool {
        !self.users.is_empty() || !self.groups.is_empty()
    }
}

/// What leaves this machine while the kill switch is on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KillSwitchPlan {
    /// The tunnel's interface, by name: it may come and go.
    pub interface: String,
    /// Private and link-local destinations stay reachable beside the tunnel,
    /// but not for DNS.
    pub lan: bool,
    /// What does not go into the tunnel is let through; see [`Split`].
    #[serde(default)]
    pub split: Split,
}

/// How this machine's traffic is led into the tunnel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TakeoverPlan {
    /// The tunnel's interface; it must be there and up.
    pub interface: String,
    /// Largest packet that goes into the tunnel, bytes; [`INNER_MTU`].
    pub mtu: u32,
    /// Always through the tunnel, whatever is excluded.
    pub resolvers: Vec<IpAddr>,
    /// Prefixes of the mesh: they keep their own routes.
    pub mesh: Vec<IpNet>,
    /// Which traffic.
    #[serde(default)]
    pub split: Split,
    /// Networks that the main table has routes to, other than by a default
    /// route, stay beside the tunnel.
    pub lan_allowed: bool,
}

impl TakeoverPlan {
    /// All traffic of the machine, with the addresses that every client uses.
    #[must_use]
    pub fn new(interface: &str, mesh: Vec<IpNet>) -> Self {
        Self {
            interface: interface.to_owned(),
            mtu: INNER_MTU,
            resolvers: RESOLVERS.to_vec(),
            mesh,
            split: Split::default(),
            lan_allowed: true,
        }
    }
}

/// What the system's resolver shall ask while connected.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResolverPlan {
    /// The tunnel's interface.
    pub interface: String,
    /// Servers that are reached through the tunnel, best first.
    pub servers: Vec<IpAddr>,
    /// What systemd-resolved has for the interface otherwise: the servers of
    /// members' names and their domains. Restored on disconnecting.
    #[serde(default)]
    pub mesh: Option<(Vec<IpAddr>, Vec<String>)>,
}

/// One step of connecting, all of them together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectPlan {
    /// Made first, and kept when anything later fails.
    pub kill_switch: Option<KillSwitchPlan>,
    /// Routes and rules.
    pub takeover: TakeoverPlan,
    /// Names; `None` leaves the resolver alone.
    pub resolver: Option<ResolverPlan>,
}

/// Protocol of a [`PolicyRule`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// One line of an exit's policy. A property that is `None` matches everything.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyRule {
    /// Let through, or refuse.
    pub accept: bool,
    /// Destinations.
    pub to: Option<IpNet>,
    /// Protocol; ports without one mean both.
    pub transport: Option<Transport>,
    /// Destination ports.
    pub ports: Option<RangeInclusive<u16>>,
}

/// What an exit does for sessions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitPlan {
    /// The tunnel's interface, where the worker writes packets with a lease as
    /// their source.
    pub interface: String,
    /// Prefixes of the mesh (and of networks behind its nodes): never reached.
    pub mesh: Vec<IpNet>,
    /// The first rule that matches decides. After them everything private,
    /// and port 25, is refused, the rest let through.
    pub policy: Vec<PolicyRule>,
    /// Where questions about names go; `None`: the first server of this
    /// machine's `resolv.conf`.
    pub resolver: Option<IpAddr>,
    /// Largest packet towards a client, bytes; [`INNER_MTU`].
    pub mtu: u32,
}

impl ExitPlan {
    /// An exit with the default policy.
    #[must_use]
    pub fn new(interface: &str, mesh: Vec<IpNet>) -> Self {
        Self {
            interface: interface.to_owned(),
            mesh,
            policy: Vec::new(),
            resolver: None,
            mtu: INNER_MTU,
        }
    }
}

/// Checks a name that will stand in rules and paths.
///
/// # Errors
/// When it is no interface name.
pub(super) fn check_interface(name: &str) -> Result<(), Fault> {
    match name.parse::<InterfaceName>() {
        Ok(_) => Ok(()),
        Err(error) => Err(Fault::new(FaultKind::Config, error.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lease_prefixes_are_the_documented_ones() {
        assert_eq!(leases(Family::V4).to_string(), "240.0.0.0/16");
        assert_eq!(leases(Family::V6).to_string(), "fd77:6172:7265:6e01::/64");
    }

    #[test]
    fn control_groups_cannot_leave_their_quotes() {
        let group = |text: &str| ControlGroup::try_from(text.to_owned());
        let deep = group("/user.slice/user-1000.slice/app@1.service").unwrap();
        assert_eq!(deep.level(), 3);
        assert_eq!(deep.path(), "user.slice/user-1000.slice/app@1.service");
        for bad in ["", "/", "a//b", "../b", "a\" accept", "a b", "a\nb", "a;b"] {
            assert!(group(bad).is_err(), "{bad}");
            let json = serde_json::to_string(bad).unwrap();
            assert!(serde_json::from_str::<ControlGroup>(&json).is_err(), "{bad}");
        }
    }
}
