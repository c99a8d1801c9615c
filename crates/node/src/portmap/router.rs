//! Asking one router, in the order of preference: PCP, NAT-PMP, UPnP.
//!
//! Invariants: only the router itself is asked and believed (a UPnP answer that
//! points elsewhere is refused); every step is bounded in time.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::num::NonZeroU16;
use std::time::Duration;

use crab_nat::{
    InternetProtocol, PortMapping, PortMappingOptions, PortMappingType, TimeoutConfig, natpmp, pcp,
};
use igd_next::aio::Gateway;
use igd_next::aio::tokio::{Tokio, search_gateway};
use igd_next::{AddPortError, PortMappingProtocol as Transport, SearchError, SearchOptions};
use warren_types::api::PortMappingProtocol;

use super::LIFE;

/// How long a router is given to say that it speaks PCP or NAT-PMP: 250 ms,
/// then 500 ms, then 1 s. One on the same network answers in milliseconds.
const PATIENCE: TimeoutConfig = TimeoutConfig {
    initial_timeout: Duration::from_millis(250),
    max_retries: 2,
    max_retry_timeout: None,
};
/// How long a UPnP router may take to be found, each way of asking.
const SEARCH: Duration = Duration::from_secs(2);
/// What the mapping is called in a router's list.
const LABEL: &str = "Warren";
/// Port of UPnP's discovery (UPnP Device Architecture 2.0, section 1.3.2).
const SSDP: u16 = 1900;

/// A port the router gave.
#[derive(Debug, Clone)]
pub(super) struct Mapping {
    /// Outer address and port.
    pub(super) external: SocketAddrV4,
    /// How long it lasts from now.
    pub(super) life: Duration,
    inner: SocketAddrV4,
    by: By,
}

#[derive(Debug, Clone)]
enum By {
    /// PCP or NAT-PMP.
    Server(Box<PortMapping>),
    Upnp(Box<Gateway<Tokio>>),
}

/// Asks the router at `gateway` to send a UDP port to `inner`.
pub(super) async fn ask(gateway: Ipv4Addr, inner: SocketAddrV4) -> Result<Mapping, String> {
    let port = NonZeroU16::new(inner.port()).ok_or("port 0")?;
    let options = PortMappingOptions {
        external_port: Some(port),
        lifetime_seconds: Some(LIFE),
        timeout_config: Some(PATIENCE),
    };
    let at = IpAddr::from(gateway);
    let request =
        pcp::BaseMapRequest::new(at, IpAddr::V4(*inner.ip()), InternetProtocol::Udp, port);
    let by_pcp = match pcp::port_mapping(request, None, None, options).await {
        Ok(mapping) => return of_server(mapping, inner).await,
        Err(pcp::Failure::Timeout) => None,
        Err(error) => Some(error.to_string()),
    };
    // Also when PCP was not answered at all: old routers ignore what they do
    // not know.
    let by_nat_pmp = match natpmp::port_mapping(at, InternetProtocol::Udp, port, options).await {
        Ok(mapping) => return of_server(mapping, inner).await,
        Err(natpmp::Failure::Timeout) => None,
        Err(error) => Some(error.to_string()),
    };
    let by_upnp = match add_by_upnp(gateway, inner).await {
        Ok(mapping) => return Ok(mapping),
        Err(error) => error,
    };
    let answers: Vec<String> = [("PCP", by_pcp), ("NAT-PMP", by_nat_pmp), ("UPnP", by_upnp)]
        .into_iter()
        .filter_map(|(protocol, answer)| answer.map(|answer| format!("{protocol}: {answer}")))
        .collect();
    Err(if answers.is_empty() {
        format!("{gateway} speaks neither PCP, NAT-PMP nor UPnP")
    } else {
        format!("{gateway} gives no port ({})", answers.join("; "))
    })
}

async fn of_server(mapping: PortMapping, inner: SocketAddrV4) -> Result<Mapping, String> {
    let outside = match mapping.mapping_type() {
        PortMappingType::Pcp { external_ip, .. } => external_ip.to_canonical(),
        PortMappingType::NatPmp => natpmp::external_address(mapping.gateway(), Some(PATIENCE))
            .await
            .map_err(|e| format!("the router does not tell its address: {e}"))?
            .into(),
    };
    let IpAddr::V4(outside) = outside else {
        return Err(format!("the router mapped to {outside}, which is no IPv4 address"));
    };
    Ok(Mapping {
        external: SocketAddrV4::new(outside, mapping.external_port().get()),
        life: Duration::from_secs(mapping.lifetime().into()),
        inner,
        by: By::Server(Box::new(mapping)),
    })
}

/// `None` as the error: nobody answered.
async fn add_by_upnp(gateway: Ipv4Addr, inner: SocketAddrV4) -> Result<Mapping, Option<String>> {
    let options = |to: Option<SocketAddr>| {
        let mut options = SearchOptions::default();
        options.bind_addr = SocketAddr::new(IpAddr::V4(*inner.ip()), 0);
        options.broadcast_address = to.unwrap_or(options.broadcast_address);
        options.timeout = Some(SEARCH);
        options.single_search_timeout = Some(SEARCH);
        options
    };
    // The router alone first; some listen to the group only.
    let alone = search_gateway(options(Some(SocketAddr::new(gateway.into(), SSDP)))).await;
    let found = match alone {
        Ok(found) => found,
        Err(_) => match search_gateway(options(None)).await {
            Ok(found) => found,
            Err(SearchError::NoResponseWithinTimeout) => return Err(None),
            Err(error) => return Err(Some(error.to_string())),
        },
    };
    if found.addr.ip() != IpAddr::from(gateway) {
        return Err(Some(format!("{} answered instead", found.addr.ip())));
    }
    map_by_upnp(found, inner, inner.port()).await.map_err(Some)
}

/// `wanted`: the outer port to try before any other.
async fn map_by_upnp(
    router: Gateway<Tokio>,
    inner: SocketAddrV4,
    wanted: u16,
) -> Result<Mapping, String> {
    let outside = match router.get_external_ip().await.map_err(|e| e.to_string())? {
        IpAddr::V4(address) => address,
        IpAddr::V6(address) => return Err(format!("the router's address is {address}")),
    };
    let to = SocketAddr::V4(inner);
    let port = match router.add_port(Transport::UDP, wanted, to, LIFE, LABEL).await {
        Ok(()) => wanted,
        // Taken back at the end; after a crash it stays, and is ours again at
        // the next start.
        Err(AddPortError::OnlyPermanentLeasesSupported) => {
            let permanent = router.add_port(Transport::UDP, wanted, to, 0, LABEL).await;
            permanent.map_err(|e| e.to_string())?;
            wanted
        }
        Err(_) => {
            let any = router.add_any_port(Transport::UDP, to, LIFE, LABEL).await;
            any.map_err(|e| e.to_string())?
        }
    };
    Ok(Mapping {
        external: SocketAddrV4::new(outside, port),
        life: Duration::from_secs(LIFE.into()),
        inner,
        by: By::Upnp(Box::new(router)),
    })
}

impl Mapping {
    pub(super) fn protocol(&self) -> PortMappingProtocol {
        match &self.by {
            By::Upnp(_) => PortMappingProtocol::Upnp,
            By::Server(mapping) => match mapping.mapping_type() {
                PortMappingType::NatPmp => PortMappingProtocol::NatPmp,
                PortMappingType::Pcp { .. } => PortMappingProtocol::Pcp,
            },
        }
    }

    /// The same mapping, or what the router gives instead.
    pub(super) async fn renew(self) -> Result<Self, String> {
        let (inner, wanted) = (self.inner, self.external.port());
        match self.by {
            By::Server(mut mapping) => {
                mapping.renew().await.map_err(|e| e.to_string())?;
                of_server(*mapping, inner).await
            }
            By::Upnp(router) => map_by_upnp(*router, inner, wanted).await,
        }
    }

    /// Gives it back.
    pub(super) async fn remove(self) -> Result<(), String> {
        let port = self.external.port();
        match self.by {
            By::Server(mapping) => mapping.try_drop().await.map_err(|(e, _)| e.to_string()),
            By::Upnp(router) => {
                router.remove_port(Transport::UDP, port).await.map_err(|e| e.to_string())
            }
        }
    }
}
