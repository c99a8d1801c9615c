//! Where this node's packets come from and go to: a TUN interface of the kernel,
//! or a TCP/IP stack in this process.
//!
//! Invariant: what is opened here serves nobody before [`Interface::start`].

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use warren_os::tun::{Tun, TunOffloads, TunQueue, memory};

use super::{Daemon, startup};
use crate::config::Config;
use crate::dns::SharedZone;
use crate::fault::Fault;
use crate::userspace::{Addresses, Bound, Isolator, Userspace};

/// What `warren status` shows where there is no interface.
pub(super) const USERSPACE: &str = "userspace";

/// Opened, not yet in use.
pub(super) enum Interface {
    Kernel(Tun),
    Userspace { queues: Vec<TunQueue>, end: memory::StackEnd, bound: Bound },
}

/// The stack's part, until it is started.
pub(super) struct Waiting {
    end: memory::StackEnd,
    bound: Bound,
}

impl Interface {
    /// Opens what the configuration asks for.
    pub(super) fn open(config: &Config, workers: usize) -> Result<Self, Fault> {
        let Some(settings) = &config.userspace else {
            return startup::open_tun(config, workers).map(Self::Kernel);
        };
        let bound = Bound::bind(settings)?;
        let (queues, end) = memory::pair(workers).map_err(|e| Fault::internal(&e))?;
        Ok(Self::Userspace { queues, end, bound })
    }

    /// Its name.
    pub(super) fn name(&self) -> &str {
        match self {
            Self::Kernel(tun) => tun.name(),
            Self::Userspace { .. } => USERSPACE,
        }
    }

    /// Gives it addresses and routes, where the kernel has to know them.
    pub(super) fn configure(
        &self,
        mtu: u32,
        addresses: &[IpAddr],
        prefixes: &[IpNet],
    ) -> Result<(), Fault> {
        match self {
            Self::Kernel(tun) => startup::configure(tun.name(), mtu, addresses, prefixes),
            Self::Userspace { .. } => Ok(()),
        }
    }

    /// The workers' queues and what they can do, and the other end of them where
    /// that is in this process.
    pub(super) fn split(self) -> (Vec<TunQueue>, TunOffloads, Option<Waiting>) {
        match self {
            Self::Kernel(tun) => {
                let offloads = tun.offloads();
                (tun.into_queues(), offloads, None)
            }
            Self::Userspace { queues, end, bound } => {
                (queues, memory::OFFLOADS, Some(Waiting { end, bound }))
            }
        }
    }
}

impl Waiting {
    /// Starts the stack and what is served through it.
    pub(super) fn start(
        self,
        own: Addresses,
        zone: Option<SharedZone>,
        isolator: Isolator,
    ) -> Result<Userspace, Fault> {
        self.bound.start(self.end, own, zone, isolator)
    }
}

/// What the stack is told of a member's place in the mesh.
pub(super) fn addresses(own: &[IpAddr], mtu: u32, prefixes: &[IpNet]) -> Addresses {
    Addresses {
        mesh: own.to_vec(),
        prefixes: prefixes.to_vec(),
        mesh_mtu: mtu as usize,
        ..Addresses::default()
    }
}

impl Daemon {
    /// What became of packets that went nowhere, here and in the stack.
    pub(super) fn dropped(&self) -> BTreeMap<String, u64> {
        let mut dropped = self.drops.non_zero();
        if let Some(userspace) = &self.userspace {
            dropped.extend(userspace.dialer().stack().counters().non_zero());
        }
        dropped
    }

    /// Tells the stack, if there is one, our addresses and what is in the mesh.
    pub(super) fn readdress_stack(&self) {
        let Some(userspace) = &self.userspace else { return };
        let behind = self.subnets.installed.iter().copied();
        let prefixes: Vec<IpNet> = self.prefixes.iter().copied().chain(behind).collect();
        let stack = userspace.dialer().stack();
        let before = stack.addresses();
        let (onion, isolated) = (before.onion.clone(), before.isolated.clone());
        let own = addresses(&self.member.addresses, self.mtu, &prefixes);
        stack.set_addresses(Addresses { onion, isolated, ..own });
    }
}
