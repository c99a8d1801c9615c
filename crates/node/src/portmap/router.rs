//! Asking one router, in the order of preference: PCP, NAT-PMP, UPnP.
//!
//! Invariants: only the router itself is asked and believed (a UPnP answer that
//! points elsewhere is refused); every step is bounded in time. UPnP's client is
//! a blocking one, with far fewer dependencies than its asynchronous twin; it
//! runs on a thread of its own for some seconds, which never holds up the end
//! of the process.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::num::NonZeroU16;
use std::time::Duration;

use crab_nat::{
    InternetProtocol, PortMapping, PortMappingOptions, PortMappingType, TimeoutConfig, natpmp, pcp,
};
use igd_next::{AddPortError, Gateway, PortMappingProtocol as Transport, SearchOptions};
use tokio::sync::oneshot;
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
    Upnp(Box<Gateway>),
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
        Err(error) => error.to_string(),
    };
    // Also when PCP was not answered at all: old routers ignore what they do
    // not know.
    let by_nat_pmp = match natpmp::port_mapping(at, InternetProtocol::Udp, port, options).await {
        Ok(mapping) => return of_server(mapping, inner).await,
        Err(error) => error.to_string(),
    };
    let by_upnp = match on_thread(move || add_by_upnp(gateway, inner)).await {
        Ok(mapping) => return Ok(mapping),
        Err(error) => error,
    };
    tracing::debug!(%gateway, by_pcp, by_nat_pmp, by_upnp, "no port mapping");
    Err(format!(
        "the router {gateway} gives no port (PCP: {by_pcp}; NAT-PMP: {by_nat_pmp}; UPnP: {by_upnp})"
    ))
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

/// Runs blocking work on a thread that nobody waits for at the end.
async fn on_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, String> + Send + 'static,
) -> Result<T, String> {
    let (done, result) = oneshot::channel();
    std::thread::Builder::new()
        .name("upnp".to_owned())
        .spawn(move || {
            // The daemon may have ended; then nobody wants the result.
            let _ = done.send(work());
        })
        .map_err(|e| e.to_string())?;
    result.await.unwrap_or_else(|_| Err("the UPnP client failed".to_owned()))
}

fn add_by_upnp(gateway: Ipv4Addr, inner: SocketAddrV4) -> Result<Mapping, String> {
    let search = |to: Option<SocketAddr>| {
        let mut options = SearchOptions {
            bind_addr: SocketAddr::new(IpAddr::V4(*inner.ip()), 0),
            timeout: Some(SEARCH),
            single_search_timeout: Some(SEARCH),
            ..SearchOptions::default()
        };
        if let Some(to) = to {
            options.broadcast_address = to;
        }
        igd_next::search_gateway(options)
    };
    // The router alone first; some listen to the group only.
    let found = search(Some(SocketAddr::new(gateway.into(), SSDP)))
        .or_else(|_| search(None))
        .map_err(|e| e.to_string())?;
    if found.addr.ip() != IpAddr::from(gateway) {
        return Err(format!("{} answered for the router", found.addr.ip()));
    }
    map_by_upnp(found, inner, inner.port())
}

/// `wanted`: the outer port to try before any other.
fn map_by_upnp(router: Gateway, inner: SocketAddrV4, wanted: u16) -> Result<Mapping, String> {
    let outside = match router.get_external_ip().map_err(|e| e.to_string())? {
        IpAddr::V4(address) => address,
        IpAddr::V6(address) => return Err(format!("the router's address is {address}")),
    };
    let to = SocketAddr::V4(inner);
    let port = match router.add_port(Transport::UDP, wanted, to, LIFE, LABEL) {
        Ok(()) => wanted,
        // Taken back at the end; after a crash it stays, and is ours again at
        // the next start.
        Err(AddPortError::OnlyPermanentLeasesSupported) => {
            router.add_port(Transport::UDP, wanted, to, 0, LABEL).map_err(|e| e.to_string())?;
            wanted
        }
        Err(_) => {
            router.add_any_port(Transport::UDP, to, LIFE, LABEL).map_err(|e| e.to_string())?
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
            By::Upnp(router) => on_thread(move || map_by_upnp(*router, inner, wanted)).await,
        }
    }

    /// Gives it back.
    pub(super) async fn remove(self) -> Result<(), String> {
        let port = self.external.port();
        match self.by {
            By::Server(mapping) => mapping.try_drop().await.map_err(|(e, _)| e.to_string()),
            By::Upnp(router) => {
                on_thread(move || {
                    router.remove_port(Transport::UDP, port).map_err(|e| e.to_string())
                })
                .await
            }
        }
    }
}
