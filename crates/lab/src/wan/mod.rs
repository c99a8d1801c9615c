//! The WAN emulator: hosts in network namespaces, each with one TUN interface
//! as its way out, and a world between them that delays, loses, reorders,
//! doubles and limits as [`crate::netem`] says, for each ordered pair of hosts.
//!
//! In: namespaces and profiles, which may change while traffic flows. Out: IP
//! packets, IPv4 and IPv6, at the interface of the host that has their
//! destination address. Super-packets of TCP and UDP segmentation offload pass
//! whole between hosts whose link treats all packets alike and are cut into
//! packets otherwise. IPv4 packets longer than a link's MTU are fragmented if
//! they allow it.
//!
//! Invariants: one thread for each host reads its interface and owns the
//! packets it sent until they are delivered, so hosts do not wait for each
//! other; the fates of packets follow from the seed and their order on each
//! link. Dropping [`Wan`] ends the threads and removes the interfaces.
//!
//! A host may be behind a router that translates its addresses
//! ([`Attachment::nat`], [`Wan::attach_beside`]) and behind a firewall
//! ([`Wan::set_firewall`]); both change while traffic flows too, as links do
//! ([`Wan::change`], [`Wan::partition`], [`Wan::heal`], [`Wan::forget`]).
//!
//! Deliberately not here: name resolution, and routers that answer (no ICMP).

mod frame;
mod gate;
mod regions;
mod translate;
mod world;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::thread::JoinHandle;

use ipnet::IpNet;
use warren_os::netlink::{LinkSettings, NetlinkError, Route};
use warren_os::netns::{NamespaceError, NetNamespace};
use warren_os::tun::{Tun, TunError, TunOffloads};
use warren_os::wait::Waker;

use crate::nat::{self, Behaviour, Nat};
use crate::netem::{Counters, Dice, Profile, ProfileError};
pub use gate::{Firewall, Reach};
use gate::{Gate, INSIDE_NET, INSIDE_ROUTER};
pub use regions::Region;
use world::{Port, World};

/// Interface of each host into the WAN.
pub const INTERFACE: &str = "wan0";

/// All IPv4 addresses of the WAN: the range set aside for benchmarks (RFC 2544).
pub const IPV4_NET: (Ipv4Addr, u8) = (Ipv4Addr::new(198, 18, 0, 0), 15);

/// All IPv6 addresses of the WAN: documentation addresses (RFC 3849).
pub const IPV6_NET: (Ipv6Addr, u8) = (Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0), 32);

/// Packets the kernel queues for the emulator at each interface: enough for
/// the bursts between two looks at it.
const QUEUE_PACKETS: u32 = 4096;

/// Why the emulator could not do something.
#[derive(Debug, thiserror::Error)]
pub enum WanError {
    /// The interface could not be opened.
    #[error(transparent)]
    Tun(#[from] TunError),
    /// The namespace could not be entered.
    #[error(transparent)]
    Namespace(#[from] NamespaceError),
    /// The interface could not be set up.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// Impossible link properties.
    #[error(transparent)]
    Profile(#[from] ProfileError),
    /// No thread or descriptor to be had.
    #[error("the WAN emulator is out of resources: {0}")]
    Resource(#[from] std::io::Error),
    /// An address outside of the WAN's networks, or taken.
    #[error("{0} is not a free address of the WAN")]
    Address(IpAddr),
    /// A host number that was not given out.
    #[error("the WAN has no host {0}")]
    NoSuchHost(usize),
    /// A host that is not behind a router, or too many behind one.
    #[error("host {0} is behind no router, or that has no room")]
    NoRouter(usize),
}

/// A host on the WAN; valid for the [`Wan`] that gave it out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WanHost(usize);

impl WanHost {
    /// The host's IPv4 address on the WAN; of the first host behind a router,
    /// that router's outside address.
    #[must_use]
    pub fn ipv4(self) -> Ipv4Addr {
        let [a, b, ..] = IPV4_NET.0.octets();
        let [high, low] = self.number().to_be_bytes();
        Ipv4Addr::new(a, b + (high & 1), low, 1)
    }

    /// The host's IPv6 address on the WAN.
    #[must_use]
    pub fn ipv6(self) -> Ipv6Addr {
        Ipv6Addr::new(0x2001, 0xdb8, self.number(), 0, 0, 0, 0, 1)
    }

    /// Hosts count from 1.
    fn number(self) -> u16 {
        u16::try_from(self.0 + 1).unwrap_or(u16::MAX)
    }
}

/// How a host is attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attachment {
    /// Where in the world it is: its links to hosts in other regions start
    /// with their delays. Without a region they start perfect.
    pub region: Option<Region>,
    /// MTU of the interface, bytes; IPv6 needs 1280.
    pub mtu: u32,
    /// The router it is behind, if any: the host then has an inside address
    /// ([`Wan::inside`]), which is the same behind every router, and no IPv6.
    pub nat: Option<Behaviour>,
}

impl Default for Attachment {
    fn default() -> Self {
        Self { region: None, mtu: 1500, nat: None }
    }
}

/// The emulator. See the module's description.
#[derive(Debug)]
pub struct Wan {
    seed: u64,
    world: Arc<World>,
    waker: Waker,
    threads: Vec<JoinHandle<()>>,
}

impl Wan {
    /// A world without hosts, whose chances follow from `seed`.
    ///
    /// # Errors
    /// When the process has no descriptors left.
    pub fn new(seed: u64) -> Result<Self, WanError> {
        let world = Arc::new(World::new(seed));
        Ok(Self { seed, world, waker: Waker::new()?, threads: Vec::new() })
    }

    /// Gives a namespace an interface into the WAN, with one IPv4 and one IPv6
    /// address (see [`WanHost`]).
    ///
    /// # Errors
    /// Without the privilege for TUN devices, or when the namespace has an
    /// interface of this name.
    pub fn attach(
        &mut self,
        namespace: &NetNamespace,
        attachment: Attachment,
    ) -> Result<WanHost, WanError> {
        let host = WanHost(self.world.len());
        let gate = attachment.nat.map(|behaviour| {
            let seed = Dice::labelled(self.seed, u64::MAX - host.0 as u64).next_u64();
            Arc::new(Gate::new(host.ipv4(), Nat::new(behaviour, seed)))
        });
        let outside: Vec<IpAddr> = match &gate {
            Some(gate) => vec![gate.outside.into()],
            None => vec![host.ipv4().into(), host.ipv6().into()],
        };
        self.connect(namespace, attachment, gate, &outside)
    }

    /// Attaches a host behind the router of another one, with an inside
    /// address of its own; `attachment.nat` is not looked at.
    ///
    /// # Errors
    /// As [`Wan::attach`], and when the other is not behind a router.
    pub fn attach_beside(
        &mut self,
        namespace: &NetNamespace,
        other: WanHost,
        attachment: Attachment,
    ) -> Result<WanHost, WanError> {
        let gate = self.gate(other)?;
        self.connect(namespace, attachment, Some(gate), &[])
    }

    fn connect(
        &mut self,
        namespace: &NetNamespace,
        attachment: Attachment,
        gate: Option<Arc<Gate>>,
        outside: &[IpAddr],
    ) -> Result<WanHost, WanError> {
        let host = WanHost(self.world.len());
        let tun = namespace.run(|| Tun::open(INTERFACE, 1))??;
        let mut netlink = namespace.netlink()?;
        let index = netlink.link_index(tun.name())?;
        let settings = LinkSettings {
            up: Some(true),
            mtu: Some(attachment.mtu),
            tx_queue_len: Some(QUEUE_PACKETS),
            ..LinkSettings::default()
        };
        netlink.configure_link(index, &settings)?;
        match &gate {
            Some(gate) => {
                let inside = gate.admit(host.0).ok_or(WanError::NoRouter(host.0))?;
                netlink.add_address(index, net(inside.into(), INSIDE_NET.1))?;
                let everywhere = net(Ipv4Addr::UNSPECIFIED.into(), 0);
                let mut route = Route::direct(everywhere, index);
                route.gateway = Some(INSIDE_ROUTER.into());
                netlink.add_route(&route)?;
            }
            None => {
                for address in outside {
                    let length = if address.is_ipv4() { IPV4_NET.1 } else { IPV6_NET.1 };
                    netlink.add_address(index, net(*address, length))?;
                }
            }
        }
        let offloads = tun.offloads();
        let queue = tun.into_queues().remove(0);
        let port = Port::new(queue, offloads, attachment.region, namespace.clone(), gate);
        self.world.add(port, outside)?;
        let (world, waker) = (self.world.clone(), self.waker.clone());
        let thread = std::thread::Builder::new()
            .name(format!("wan-{}", host.0))
            .spawn(move || world.serve(host.0, &waker))?;
        self.threads.push(thread);
        Ok(host)
    }

    /// The address a host has on its own interface: behind a router its inside
    /// address.
    ///
    /// # Errors
    /// When there is no such host.
    pub fn inside(&self, host: WanHost) -> Result<Ipv4Addr, WanError> {
        let port = self.world.port(host.0)?;
        let inside = port.gate.as_ref().and_then(|gate| gate.address_of(host.0));
        Ok(inside.unwrap_or(host.ipv4()))
    }

    /// Puts a firewall in front of a host, or with the default takes it away.
    ///
    /// # Errors
    /// When there is no such host.
    pub fn set_firewall(&self, host: WanHost, firewall: Firewall) -> Result<(), WanError> {
        self.world.set_firewall(host.0, firewall)
    }

    /// Makes the router of a host forget all mappings, as when it restarts.
    ///
    /// # Errors
    /// When the host is behind no router.
    pub fn forget(&self, host: WanHost) -> Result<(), WanError> {
        self.gate(host)?.nat().forget();
        Ok(())
    }

    /// What the router of a host has done.
    ///
    /// # Errors
    /// When the host is behind no router.
    pub fn nat_counters(&self, host: WanHost) -> Result<nat::Counters, WanError> {
        Ok(self.gate(host)?.nat().counters())
    }

    fn gate(&self, host: WanHost) -> Result<Arc<Gate>, WanError> {
        self.world.port(host.0)?.gate.clone().ok_or(WanError::NoRouter(host.0))
    }

    /// Gives a host a further address, as when it moves to another network.
    ///
    /// # Errors
    /// When the address is outside of the WAN's networks or taken.
    pub fn add_address(&self, host: WanHost, address: IpAddr) -> Result<(), WanError> {
        let inside = match address {
            IpAddr::V4(_) => net(IPV4_NET.0.into(), IPV4_NET.1).contains(&address),
            IpAddr::V6(_) => net(IPV6_NET.0.into(), IPV6_NET.1).contains(&address),
        };
        if !inside {
            return Err(WanError::Address(address));
        }
        self.world.add_route(host.0, address)?;
        self.on_interface(host, address, |netlink, index, address| {
            netlink.add_address(index, address)
        })
    }

    /// Takes an address from a host.
    ///
    /// # Errors
    /// When the host does not have it.
    pub fn remove_address(&self, host: WanHost, address: IpAddr) -> Result<(), WanError> {
        self.world.remove_route(host.0, address)?;
        self.on_interface(host, address, |netlink, index, address| {
            netlink.delete_address(index, address)
        })
    }

    /// Sets one direction of a link; packets on the way are not affected,
    /// unless it is cut.
    ///
    /// # Errors
    /// When the profile is impossible.
    pub fn set_one_way(
        &self,
        from: WanHost,
        to: WanHost,
        profile: Profile,
    ) -> Result<(), WanError> {
        self.world.change(from.0, to.0, |current| *current = profile)
    }

    /// Changes both directions of a link, each from what it is now:
    /// `wan.change(a, b, |link| link.loss = 0.01)`.
    ///
    /// # Errors
    /// When the result is impossible; the direction then stays as it is.
    pub fn change(
        &self,
        a: WanHost,
        b: WanHost,
        change: impl Fn(&mut Profile),
    ) -> Result<(), WanError> {
        self.world.change(a.0, b.0, &change)?;
        self.world.change(b.0, a.0, &change)
    }

    /// Changes all links there are now.
    ///
    /// # Errors
    /// As [`Wan::change`].
    pub fn change_all(&self, change: impl Fn(&mut Profile)) -> Result<(), WanError> {
        let hosts = self.world.len();
        for from in 0..hosts {
            for to in (0..hosts).filter(|to| *to != from) {
                self.world.change(from, to, &change)?;
            }
        }
        Ok(())
    }

    /// Cuts all links between hosts of different groups. Hosts that are in no
    /// group, and links that were cut before, stay as they are.
    ///
    /// # Errors
    /// When there is no such host.
    pub fn partition(&self, groups: &[&[WanHost]]) -> Result<(), WanError> {
        for (i, group) in groups.iter().enumerate() {
            for other in &groups[i + 1..] {
                for a in *group {
                    for b in *other {
                        self.change(*a, *b, |link| link.cut = true)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Mends every cut link.
    ///
    /// # Errors
    /// As [`Wan::change`].
    pub fn heal(&self) -> Result<(), WanError> {
        self.change_all(|link| link.cut = false)
    }

    /// What one direction of a link is set to.
    ///
    /// # Errors
    /// When there is no such host.
    pub fn profile(&self, from: WanHost, to: WanHost) -> Result<Profile, WanError> {
        self.world.look(from.0, to.0, |link| *link.profile())
    }

    /// Counts of one direction of a link. Packets count as on the wire when
    /// cut for a link that needs it, else as the host handed them over.
    ///
    /// # Errors
    /// When there is no such host.
    pub fn counters(&self, from: WanHost, to: WanHost) -> Result<Counters, WanError> {
        self.world.look(from.0, to.0, |link| link.counters())
    }

    /// Looks into every packet (super-packets count as one) that a host sends
    /// to another from now on for `needle`, as an eavesdropper would; `None`
    /// ends that. See [`Wan::watched`].
    pub fn watch(&self, needle: Option<&[u8]>) {
        self.world.watch(needle);
    }

    /// Packets looked into since [`Wan::watch`] was called, and how many of
    /// them held the needle.
    #[must_use]
    pub fn watched(&self) -> (u64, u64) {
        self.world.watched()
    }

    /// Offloads of a host's interface.
    ///
    /// # Errors
    /// When there is no such host.
    pub fn offloads(&self, host: WanHost) -> Result<TunOffloads, WanError> {
        self.world.port(host.0).map(|port| port.offloads)
    }

    fn on_interface(
        &self,
        host: WanHost,
        address: IpAddr,
        f: impl Fn(&mut warren_os::netlink::Netlink, u32, IpNet) -> Result<(), NetlinkError>,
    ) -> Result<(), WanError> {
        let mut netlink = self.world.port(host.0)?.namespace.netlink()?;
        let index = netlink.link_index(INTERFACE)?;
        let length = if address.is_ipv4() { IPV4_NET.1 } else { IPV6_NET.1 };
        Ok(f(&mut netlink, index, net(address, length))?)
    }
}

impl Drop for Wan {
    fn drop(&mut self) {
        self.waker.wake();
        for thread in self.threads.drain(..) {
            // A thread that panicked has nothing more to clean up.
            let _ = thread.join();
        }
    }
}

/// Both prefix lengths used are valid for their family.
fn net(address: IpAddr, length: u8) -> IpNet {
    IpNet::new_assert(address, length)
}

#[cfg(test)]
mod gate_tests;
#[cfg(test)]
mod tests;
