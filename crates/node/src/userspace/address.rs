//! Own addresses, and which of them a connection leaves from.
//!
//! In: the mesh's prefixes and this node's addresses in it, the inner addresses
//! of paths out of the mesh while there are any. Out: the source for a
//! destination ([`Addresses::source_for`]), or why there is none. Pure.
//!
//! Invariant: a source address outside of the mesh belongs to one isolation, so
//! it says which session a packet goes through.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use warren_proto::onion::payload::INNER_MTU;

use super::Isolation;

/// MTU of paths out of the mesh, bytes: what an inner packet may have.
pub const ONION_MTU: usize = INNER_MTU;

/// The addresses the stack answers to. Changes at run time as a whole.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Addresses {
    /// This node's, in the mesh.
    pub mesh: Vec<IpAddr>,
    /// What is reached over the mesh: the overlay's prefixes, and networks
    /// behind other members.
    pub prefixes: Vec<IpNet>,
    /// MTU of the mesh, bytes.
    pub mesh_mtu: usize,
    /// Inner addresses of a path out of the mesh; none while not connected.
    pub onion: Vec<IpAddr>,
    /// The same for each user name that has a path of its own.
    pub isolated: BTreeMap<Isolation, Vec<IpAddr>>,
}

/// Where a connection leaves from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Source {
    /// Our address.
    pub address: IpAddr,
    /// Longest packet, bytes.
    pub mtu: usize,
}

/// Why a destination has no source address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NoSource {
    /// Not in the mesh, and no way out.
    #[error("it is not in the mesh, and there is no path out of the mesh")]
    NotConnected,
    /// This node has no address of that family there.
    #[error("this node has no address of that family")]
    NoFamily,
    /// Multicast, broadcast, unspecified or loopback.
    #[error("no connection can be made to such an address")]
    NotUnicast,
}

impl Addresses {
    /// True for an address of ours.
    pub fn is_own(&self, address: IpAddr) -> bool {
        self.mesh.contains(&address) || self.is_inner(address)
    }

    /// True for an address that only a path out of the mesh leads to: what
    /// comes to it unasked is the exit's doing, and nobody's here.
    pub fn is_inner(&self, address: IpAddr) -> bool {
        self.onion.contains(&address) || self.isolated.values().any(|own| own.contains(&address))
    }

    /// The inner addresses of the path that goes with `isolation`; none while
    /// there is no such path.
    pub fn inner(&self, isolation: &Isolation) -> &[IpAddr] {
        if isolation.is_default() {
            return &self.onion;
        }
        self.isolated.get(isolation).map_or(&[], Vec::as_slice)
    }

    /// True for destinations that a path out of the mesh leads to.
    pub fn is_outside(&self, address: IpAddr) -> bool {
        is_unicast(address) && !self.is_own(address) && !self.in_mesh(address)
    }

    /// True for destinations inside the mesh.
    pub fn in_mesh(&self, address: IpAddr) -> bool {
        self.mesh.contains(&address) || self.prefixes.iter().any(|p| p.contains(&address))
    }

    /// The address from which `destination` is reached: ours in the mesh for
    /// what is in the mesh, else the inner address of the path out of it that
    /// goes with `isolation`.
    ///
    /// # Errors
    /// [`NoSource`].
    pub fn source_for(
        &self,
        destination: IpAddr,
        isolation: &Isolation,
    ) -> Result<Source, NoSource> {
        if !is_unicast(destination) {
            return Err(NoSource::NotUnicast);
        }
        let (own, mtu) = if self.is_own(destination) {
            return Ok(Source { address: destination, mtu: self.mesh_mtu.max(ONION_MTU) });
        } else if self.in_mesh(destination) {
            (self.mesh.as_slice(), self.mesh_mtu)
        } else {
            (self.inner(isolation), ONION_MTU)
        };
        if own.is_empty() {
            return Err(NoSource::NotConnected);
        }
        let same = own.iter().find(|own| own.is_ipv4() == destination.is_ipv4());
        let address = same.copied().ok_or(NoSource::NoFamily)?;
        Ok(Source { address, mtu })
    }
}

/// True for an address that names one host that is not this one.
pub(super) fn is_unicast(address: IpAddr) -> bool {
    let broadcast = matches!(address, IpAddr::V4(v4) if v4.is_broadcast());
    !(broadcast || address.is_multicast() || address.is_unspecified() || address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn the_source_follows_the_destination() {
        let mut own = Addresses {
            mesh: vec![ip("100.64.0.1"), ip("fd12::1")],
            prefixes: vec!["100.64.0.0/10".parse().unwrap(), "192.168.7.0/24".parse().unwrap()],
            mesh_mtu: 1420,
            ..Addresses::default()
        };
        let nobody = Isolation::default();
        let mesh = |address| Ok(Source { address: ip(address), mtu: 1420 });
        assert_eq!(own.source_for(ip("100.64.9.9"), &nobody), mesh("100.64.0.1"));
        assert_eq!(own.source_for(ip("192.168.7.3"), &nobody), mesh("100.64.0.1"));
        assert_eq!(own.source_for(ip("fd12::1"), &nobody), mesh("fd12::1"), "to itself");
        assert_eq!(own.source_for(ip("198.51.100.1"), &nobody), Err(NoSource::NotConnected));
        assert_eq!(own.source_for(ip("2001:db8::1"), &nobody), Err(NoSource::NotConnected));
        for bad in ["0.0.0.0", "255.255.255.255", "224.0.0.1", "127.0.0.1", "::1", "ff02::1"] {
            assert_eq!(own.source_for(ip(bad), &nobody), Err(NoSource::NotUnicast), "{bad}");
        }
        own.onion = vec![ip("192.0.0.2")];
        let out = Source { address: ip("192.0.0.2"), mtu: ONION_MTU };
        assert_eq!(own.source_for(ip("198.51.100.1"), &nobody), Ok(out));
        assert_eq!(own.source_for(ip("2001:db8::1"), &nobody), Err(NoSource::NoFamily));
        assert_eq!(own.source_for(ip("100.64.9.9"), &nobody), mesh("100.64.0.1"));
        assert!(own.is_own(ip("192.0.0.2")));
    }

    #[test]
    fn each_user_name_leaves_from_addresses_of_its_own_or_not_at_all() {
        let (anna, bert) = (Isolation::of_user(b"anna"), Isolation::of_user(b"bert"));
        let mut own = Addresses {
            mesh: vec![ip("100.64.0.1")],
            prefixes: vec!["100.64.0.0/10".parse().unwrap()],
            mesh_mtu: 1420,
            onion: vec![ip("192.0.0.2")],
            ..Addresses::default()
        };
        let outside = ip("198.51.100.1");
        let from = |own: &Addresses, who: &Isolation| {
            own.source_for(outside, who).map(|source| source.address)
        };
        assert_eq!(from(&own, &Isolation::default()), Ok(ip("192.0.0.2")));
        assert_eq!(from(&own, &anna), Err(NoSource::NotConnected), "not by the common path");
        own.isolated.insert(anna.clone(), vec![ip("240.1.0.1")]);
        own.isolated.insert(bert.clone(), vec![ip("240.1.0.2")]);
        assert_eq!(from(&own, &anna), Ok(ip("240.1.0.1")));
        assert_eq!(from(&own, &bert), Ok(ip("240.1.0.2")));
        // The mesh is one for all.
        let mesh = own.source_for(ip("100.64.9.9"), &anna).map(|source| source.address);
        assert_eq!(mesh, Ok(ip("100.64.0.1")));
        assert!(own.is_own(ip("240.1.0.2")) && own.is_inner(ip("240.1.0.2")));
        assert!(own.is_outside(outside) && !own.is_outside(ip("100.64.9.9")));
        assert!(!own.is_outside(ip("240.1.0.1")) && !own.is_outside(ip("127.0.0.1")));
    }
}
