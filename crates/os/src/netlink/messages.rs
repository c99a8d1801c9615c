//! What goes into and comes out of rtnetlink messages.
//!
//! In: routes and addresses, or the kernel's messages. Out: messages for the
//! kernel, or what they say. Deliberately not here: sending them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use netlink_packet_core::DefaultNla;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{
    AddressAttribute, AddressFlags, AddressMessage, AddressScope, CacheInfo,
};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteMetric, RouteProtocol,
    RouteScope, RouteType,
};

use super::{InterfaceAddress, Link, Route};

/// `RTAX_CC_ALGO` of `linux/rtnetlink.h`: a route's congestion control, a
/// string (the packet crate models it as an integer).
const RTAX_CC_ALGO: u16 = 16;

/// `RTAX_MTU`: the bit of the MTU in the mask of locked metrics.
const RTAX_MTU: u32 = 2;

pub(super) fn family(address: IpAddr) -> AddressFamily {
    match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}

pub(super) fn route_address(address: IpAddr) -> RouteAddress {
    match address {
        IpAddr::V4(address) => RouteAddress::Inet(address),
        IpAddr::V6(address) => RouteAddress::Inet6(address),
    }
}

pub(super) fn address_message(index: u32, address: IpNet) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = family(address.addr());
    message.header.prefix_len = address.prefix_len();
    message.header.index = index;
    message.header.scope = AddressScope::Universe;
    message.attributes =
        vec![AddressAttribute::Local(address.addr()), AddressAttribute::Address(address.addr())];
    message
}

pub(super) fn route_message(route: &Route) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family(route.destination.addr());
    message.header.destination_prefix_length = route.destination.prefix_len();
    // Numbers beyond a byte do not fit the header, whose field is then
    // "unspecified" and the attribute counts.
    match route.table {
        None => message.header.table = RouteHeader::RT_TABLE_MAIN,
        Some(table) => message.attributes.push(RouteAttribute::Table(table)),
    }
    message.header.protocol = RouteProtocol::Static;
    message.header.kind = RouteType::Unicast;
    message.header.scope = match (route.gateway, route.destination) {
        (None, IpNet::V4(_)) => RouteScope::Link,
        _ => RouteScope::Universe,
    };
    message
        .attributes
        .push(RouteAttribute::Destination(route_address(route.destination.network())));
    message.attributes.push(RouteAttribute::Oif(route.index));
    message
        .attributes
        .extend(route.gateway.map(|gateway| RouteAttribute::Gateway(route_address(gateway))));
    message
        .attributes
        .extend(route.source.map(|source| RouteAttribute::PrefSource(route_address(source))));
    message.attributes.extend(route.metric.map(RouteAttribute::Priority));
    let mut metrics = Vec::new();
    metrics.extend(route.mtu.map(RouteMetric::Mtu));
    if route.lock_mtu {
        metrics.push(RouteMetric::Lock(1 << RTAX_MTU));
    }
    metrics.extend(route.congestion_control.as_ref().map(|name| {
        let mut value = name.clone().into_bytes();
        value.push(0);
        RouteMetric::Other(DefaultNla::new(RTAX_CC_ALGO, value))
    }));
    if !metrics.is_empty() {
        message.attributes.push(RouteAttribute::Metrics(metrics));
    }
    message
}

/// Metric and gateway, if this is a default route of the main table.
pub(super) fn default_gateway_of(message: &RouteMessage) -> Option<(u32, Ipv4Addr)> {
    let header = &message.header;
    if header.destination_prefix_length != 0
        || header.table != RouteHeader::RT_TABLE_MAIN
        || header.kind != RouteType::Unicast
    {
        return None;
    }
    let (mut metric, mut gateway) = (0, None);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Priority(value) => metric = *value,
            RouteAttribute::Gateway(RouteAddress::Inet(address)) => gateway = Some(*address),
            _ => {}
        }
    }
    gateway.map(|gateway| (metric, gateway))
}

/// The interface a route leads out of.
pub(super) fn interface_of(message: &RouteMessage) -> Option<u32> {
    message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Oif(index) => Some(*index),
        _ => None,
    })
}

pub(super) fn link_of(message: &LinkMessage) -> Link {
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        up: message.header.flags.contains(LinkFlags::Up),
        loopback: message.header.flags.contains(LinkFlags::Loopback),
        mtu: 0,
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            _ => {}
        }
    }
    link
}

pub(super) fn address_of(message: &AddressMessage) -> Option<InterfaceAddress> {
    let mut address = None;
    let mut local = None;
    let mut flags = AddressFlags::empty();
    let mut preferred = u32::MAX;
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Address(value) => address = Some(*value),
            AddressAttribute::Local(value) => local = Some(*value),
            AddressAttribute::Flags(value) => flags = *value,
            AddressAttribute::CacheInfo(CacheInfo { ifa_preferred, .. }) => {
                preferred = *ifa_preferred;
            }
            _ => {}
        }
    }
    let transient = AddressFlags::Deprecated
        | AddressFlags::Tentative
        | AddressFlags::Dadfailed
        | AddressFlags::Secondary;
    // A secondary IPv4 address is as steady as the first; the flag means
    // "temporary" for IPv6 only.
    let mask = match message.header.family {
        AddressFamily::Inet6 => transient,
        _ => transient - AddressFlags::Secondary,
    };
    Some(InterfaceAddress {
        index: message.header.index,
        address: IpNet::new(local.or(address)?, message.header.prefix_len).ok()?,
        global: message.header.scope == AddressScope::Universe && !is_unusable(local.or(address)?),
        transient: flags.intersects(mask) || preferred == 0,
    })
}

pub(super) fn is_unusable(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_loopback() || address == Ipv4Addr::UNSPECIFIED,
        IpAddr::V6(address) => address.is_loopback() || address == Ipv6Addr::UNSPECIFIED,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::Netlink;

    #[test]
    fn default_routes_are_told_from_others() {
        let gateway: Ipv4Addr = "192.0.2.1".parse().unwrap();
        let mut route = Route::direct("0.0.0.0/0".parse().unwrap(), 3);
        assert_eq!(default_gateway_of(&route_message(&route)), None);
        route.gateway = Some(gateway.into());
        let mut message = route_message(&route);
        assert_eq!(default_gateway_of(&message), Some((0, gateway)));
        message.attributes.push(RouteAttribute::Priority(600));
        assert_eq!(default_gateway_of(&message), Some((600, gateway)));
        route.destination = "10.0.0.0/8".parse().unwrap();
        assert_eq!(default_gateway_of(&route_message(&route)), None);
        Netlink::open().unwrap().default_gateway().unwrap();
    }

    #[test]
    fn congestion_control_is_a_terminated_string() {
        let mut route = Route::direct("10.0.0.0/8".parse().unwrap(), 3);
        route.congestion_control = Some("cubic".to_owned());
        let message = route_message(&route);
        let expected = RouteAttribute::Metrics(vec![RouteMetric::Other(DefaultNla::new(
            RTAX_CC_ALGO,
            b"cubic\0".to_vec(),
        ))]);
        assert!(message.attributes.contains(&expected));
    }
}
