//! Interfaces, addresses and routes over rtnetlink, synchronously.
//!
//! A [`Netlink`] belongs to the network namespace of the thread that opened it
//! and keeps belonging to it when used from elsewhere; the lab relies on that.
//! Every request is acknowledged by the kernel before the call returns, so an
//! `Ok` means the change is in force.
//!
//! Deliberately not here: watching for changes, and any notion of which
//! addresses or routes Warren wants.

mod messages;
pub mod rules;
pub mod sockets;

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsRawFd, BorrowedFd};

use ipnet::IpNet;
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkHeader,
    NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::route::RouteMessage;
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};

use self::messages::{address_message, address_of, default_gateway_of, link_of, route_message};

/// A request the kernel refused, or could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// The kernel lacks the permission or the caller the capability.
    #[error("{request}: not permitted; run as root or with CAP_NET_ADMIN")]
    NotPermitted {
        /// What was asked for.
        request: String,
    },
    /// No interface has this name.
    #[error("no network interface named {0}")]
    NoSuchLink(String),
    /// An interface with this name is there already.
    #[error("{request}: it exists already")]
    Exists {
        /// What was asked for.
        request: String,
    },
    /// The kernel answered with another error.
    #[error("{request}: {source}")]
    Refused {
        /// What was asked for.
        request: String,
        /// The kernel's error.
        source: io::Error,
    },
    /// The netlink socket itself failed, or its answer made no sense.
    #[error("netlink socket: {0}")]
    Socket(io::Error),
}

impl NetlinkError {
    fn of(request: &str, source: io::Error) -> Self {
        let request = request.to_owned();
        match source.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => Self::NotPermitted { request },
            Some(libc::EEXIST) => Self::Exists { request },
            _ => Self::Refused { request, source },
        }
    }
}

/// What to change on an interface; `None` leaves a property alone.
#[derive(Debug, Clone, Default)]
pub struct LinkSettings {
    /// Administrative state.
    pub up: Option<bool>,
    /// Largest packet, bytes.
    pub mtu: Option<u32>,
    /// Largest segmentation super-packet handed to the interface, bytes.
    pub gso_max_size: Option<u32>,
    /// Queue length, packets.
    pub tx_queue_len: Option<u32>,
}

/// An interface as the kernel lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Kernel index.
    pub index: u32,
    /// Name.
    pub name: String,
    /// Administratively up.
    pub up: bool,
    /// A loopback interface.
    pub loopback: bool,
    /// Largest packet, bytes.
    pub mtu: u32,
}

/// An address of this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InterfaceAddress {
    /// Index of its interface.
    pub index: u32,
    /// The address with its prefix length.
    pub address: IpNet,
    /// Valid beyond this link (neither link-local nor loopback).
    pub global: bool,
    /// Not to be chosen for new connections: deprecated, tentative, duplicate
    /// or a temporary privacy address that will go away.
    pub transient: bool,
}

/// A route.
#[derive(Debug, Clone)]
pub struct Route {
    /// Destination.
    pub destination: IpNet,
    /// Outgoing interface.
    pub index: u32,
    /// Next hop; none for a directly reachable destination.
    pub gateway: Option<IpAddr>,
    /// Source address to prefer.
    pub source: Option<IpAddr>,
    /// Congestion control of TCP connections over it, e.g. `cubic`.
    pub congestion_control: Option<String>,
    /// Path MTU hint, bytes.
    pub mtu: Option<u32>,
    /// Priority among routes to the same destination, the smallest first; the
    /// kernel's own when none (0 for IPv4, 1024 for IPv6).
    pub metric: Option<u32>,
    /// Routing table; the main one when none.
    pub table: Option<u32>,
    /// The MTU also holds for packets passed on for others, and no path MTU
    /// learnt replaces it.
    pub lock_mtu: bool,
}

impl Route {
    /// A route straight out of an interface.
    #[must_use]
    pub fn direct(destination: IpNet, index: u32) -> Self {
        Self {
            destination,
            index,
            gateway: None,
            source: None,
            congestion_control: None,
            mtu: None,
            metric: None,
            table: None,
            lock_mtu: false,
        }
    }
}

/// A connection to the kernel's routing tables of one network namespace.
pub struct Netlink {
    socket: Socket,
    sequence: u32,
}

impl Netlink {
    /// Opens a connection in the calling thread's network namespace.
    ///
    /// # Errors
    /// [`NetlinkError::Socket`] when no socket is to be had.
    pub fn open() -> Result<Self, NetlinkError> {
        let mut socket = Socket::new(NETLINK_ROUTE).map_err(NetlinkError::Socket)?;
        socket.bind_auto().map_err(NetlinkError::Socket)?;
        socket.connect(&SocketAddr::new(0, 0)).map_err(NetlinkError::Socket)?;
        Ok(Self { socket, sequence: 0 })
    }

    /// All interfaces.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn links(&mut self) -> Result<Vec<Link>, NetlinkError> {
        let answers = self.request(
            "list interfaces",
            RouteNetlinkMessage::GetLink(LinkMessage::default()),
            NLM_F_DUMP,
        )?;
        Ok(answers
            .into_iter()
            .filter_map(|answer| match answer {
                RouteNetlinkMessage::NewLink(link) => Some(link_of(&link)),
                _ => None,
            })
            .collect())
    }

    /// Index of the interface with this name.
    ///
    /// # Errors
    /// [`NetlinkError::NoSuchLink`] when there is none.
    pub fn link_index(&mut self, name: &str) -> Result<u32, NetlinkError> {
        self.links()?
            .into_iter()
            .find(|link| link.name == name)
            .map(|link| link.index)
            .ok_or_else(|| NetlinkError::NoSuchLink(name.to_owned()))
    }

    /// Changes an interface.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn configure_link(
        &mut self,
        index: u32,
        settings: &LinkSettings,
    ) -> Result<(), NetlinkError> {
        let mut link = LinkMessage::default();
        link.header.index = index;
        if let Some(up) = settings.up {
            link.header.change_mask = LinkFlags::Up;
            if up {
                link.header.flags = LinkFlags::Up;
            }
        }
        link.attributes.extend(settings.mtu.map(LinkAttribute::Mtu));
        link.attributes.extend(settings.gso_max_size.map(LinkAttribute::GsoMaxSize));
        link.attributes.extend(settings.tx_queue_len.map(LinkAttribute::TxQueueLen));
        self.change(&format!("configure interface {index}"), RouteNetlinkMessage::SetLink(link), 0)
    }

    /// Creates a pair of virtual Ethernet interfaces: `name` in this namespace
    /// and `peer_name` in the namespace of `peer_namespace` (this one if none).
    ///
    /// # Errors
    /// [`NetlinkError::Exists`] when a name is taken.
    pub fn add_veth(
        &mut self,
        name: &str,
        peer_name: &str,
        peer_namespace: Option<BorrowedFd<'_>>,
    ) -> Result<(), NetlinkError> {
        let mut peer = LinkMessage::default();
        peer.attributes.push(LinkAttribute::IfName(peer_name.to_owned()));
        if let Some(namespace) = peer_namespace {
            peer.attributes.push(LinkAttribute::NetNsFd(namespace.as_raw_fd()));
        }
        let mut link = LinkMessage::default();
        link.attributes = vec![
            LinkAttribute::IfName(name.to_owned()),
            LinkAttribute::LinkInfo(vec![
                LinkInfo::Kind(InfoKind::Veth),
                LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
            ]),
        ];
        self.change(
            &format!("create veth pair {name}, {peer_name}"),
            RouteNetlinkMessage::NewLink(link),
            NLM_F_CREATE | NLM_F_EXCL,
        )
    }

    /// Moves an interface into another network namespace.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn move_link(&mut self, index: u32, namespace: BorrowedFd<'_>) -> Result<(), NetlinkError> {
        let mut link = LinkMessage::default();
        link.header.index = index;
        link.attributes.push(LinkAttribute::NetNsFd(namespace.as_raw_fd()));
        self.change(&format!("move interface {index}"), RouteNetlinkMessage::SetLink(link), 0)
    }

    /// Deletes an interface.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn delete_link(&mut self, index: u32) -> Result<(), NetlinkError> {
        let mut link = LinkMessage::default();
        link.header.index = index;
        self.change(&format!("delete interface {index}"), RouteNetlinkMessage::DelLink(link), 0)
    }

    /// Gives an interface an address; the kernel adds the prefix's route.
    /// IPv6 addresses skip duplicate detection and are usable at once.
    ///
    /// # Errors
    /// [`NetlinkError::Exists`] when it has the address already.
    pub fn add_address(&mut self, index: u32, address: IpNet) -> Result<(), NetlinkError> {
        let mut message = address_message(index, address);
        if let IpNet::V6(_) = address {
            message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
        }
        self.change(
            &format!("add address {address} to interface {index}"),
            RouteNetlinkMessage::NewAddress(message),
            NLM_F_CREATE | NLM_F_EXCL,
        )
    }

    /// Takes an address from an interface.
    ///
    /// # Errors
    /// When it is not there.
    pub fn delete_address(&mut self, index: u32, address: IpNet) -> Result<(), NetlinkError> {
        self.change(
            &format!("delete address {address} from interface {index}"),
            RouteNetlinkMessage::DelAddress(address_message(index, address)),
            0,
        )
    }

    /// Every address of this namespace, loopback ones included.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn addresses(&mut self) -> Result<Vec<InterfaceAddress>, NetlinkError> {
        let answers = self.request(
            "list addresses",
            RouteNetlinkMessage::GetAddress(AddressMessage::default()),
            NLM_F_DUMP,
        )?;
        Ok(answers
            .into_iter()
            .filter_map(|answer| match answer {
                RouteNetlinkMessage::NewAddress(address) => address_of(&address),
                _ => None,
            })
            .collect())
    }

    /// Addresses others may reach this machine at: global ones of interfaces
    /// that are up and not loopback, without those of `except` (the overlay's
    /// own interface), steady addresses before transient ones.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn reachable_addresses(&mut self, except: &[u32]) -> Result<Vec<IpAddr>, NetlinkError> {
        let links = self.links()?;
        let mut addresses = self.addresses()?;
        addresses.retain(|address| {
            address.global
                && !except.contains(&address.index)
                && links.iter().any(|link| link.index == address.index && link.up && !link.loopback)
        });
        addresses.sort_by_key(|address| address.transient);
        Ok(addresses.into_iter().map(|address| address.address.addr()).collect())
    }

    /// Adds a route, replacing one to the same destination.
    ///
    /// # Errors
    /// When the kernel refuses, e.g. because the interface is down.
    pub fn add_route(&mut self, route: &Route) -> Result<(), NetlinkError> {
        self.change(
            &format!("add route to {}", route.destination),
            RouteNetlinkMessage::NewRoute(route_message(route)),
            NLM_F_CREATE | NLM_F_REPLACE,
        )
    }

    /// Removes a route.
    ///
    /// # Errors
    /// When it is not there.
    pub fn delete_route(&mut self, route: &Route) -> Result<(), NetlinkError> {
        self.change(
            &format!("delete route to {}", route.destination),
            RouteNetlinkMessage::DelRoute(route_message(route)),
            0,
        )
    }

    /// The IPv4 gateway of the main table's default route of the smallest metric.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn default_gateway(&mut self) -> Result<Option<Ipv4Addr>, NetlinkError> {
        let mut message = RouteMessage::default();
        message.header.address_family = AddressFamily::Inet;
        let answers =
            self.request("list routes", RouteNetlinkMessage::GetRoute(message), NLM_F_DUMP)?;
        Ok(answers
            .iter()
            .filter_map(|answer| match answer {
                RouteNetlinkMessage::NewRoute(route) => default_gateway_of(route),
                _ => None,
            })
            .min_by_key(|(metric, _)| *metric)
            .map(|(_, gateway)| gateway))
    }

    fn change(
        &mut self,
        request: &str,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<(), NetlinkError> {
        self.request(request, message, NLM_F_ACK | flags).map(drop)
    }

    /// Sends one request and collects its answers up to the acknowledgement.
    fn request(
        &mut self,
        request: &str,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<Vec<RouteNetlinkMessage>, NetlinkError> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        header.sequence_number = self.sequence;
        let mut packet = NetlinkMessage::new(header, NetlinkPayload::from(message));
        packet.finalize();
        let mut buffer = vec![0; packet.buffer_len()];
        packet.serialize(&mut buffer);
        self.socket.send(&buffer, 0).map_err(NetlinkError::Socket)?;

        let mut answers = Vec::new();
        loop {
            let (datagram, _) = self.socket.recv_from_full().map_err(NetlinkError::Socket)?;
            let mut rest = datagram.as_slice();
            while !rest.is_empty() {
                let Ok(answer) = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest) else {
                    // An attribute newer than our parser: skip this one message.
                    match rest.first_chunk::<4>().map(|len| u32::from_ne_bytes(*len)) {
                        Some(len) if len >= 16 => {
                            rest = rest.get(aligned(len)..).unwrap_or_default();
                            continue;
                        }
                        _ => return Err(NetlinkError::Socket(garbled())),
                    }
                };
                rest = rest.get(aligned(answer.header.length.max(16))..).unwrap_or_default();
                if answer.header.sequence_number != self.sequence {
                    continue;
                }
                match answer.payload {
                    NetlinkPayload::Done(_) => return Ok(answers),
                    NetlinkPayload::Error(error) if error.code.is_none() => return Ok(answers),
                    NetlinkPayload::Error(error) => {
                        return Err(NetlinkError::of(request, error.to_io()));
                    }
                    NetlinkPayload::InnerMessage(inner) => answers.push(inner),
                    _ => {}
                }
            }
        }
    }
}

/// Netlink messages in one datagram start at multiples of four bytes.
fn aligned(len: u32) -> usize {
    (len as usize).next_multiple_of(4)
}

fn garbled() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "garbled answer from the kernel")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_the_loopback_interface() {
        let mut netlink = Netlink::open().unwrap();
        let links = netlink.links().unwrap();
        assert!(links.iter().any(|link| link.loopback), "{links:?}");
        let index = netlink.link_index("lo").unwrap();
        assert!(links.iter().any(|link| link.index == index));
        let reachable = netlink.reachable_addresses(&[]).unwrap();
        assert!(reachable.iter().all(|address| !address.is_loopback()));
    }

    #[test]
    fn names_the_missing_interface() {
        let error = Netlink::open().unwrap().link_index("nothere0").unwrap_err();
        assert_eq!(error.to_string(), "no network interface named nothere0");
    }
}
