//! A port on the router for this node's UDP port, by PCP (RFC 6887), NAT-PMP
//! (RFC 6886) or UPnP, whichever the router speaks.
//!
//! In: the UDP port; the default route, looked at now and then. Out: a
//! [`Report`] whenever something changed: the outer address and port, or why
//! there is none. Invariants: a mapping is renewed at half its life and taken
//! back by [`PortMapper::stop`]; one that outlives the process (kill -9) ends
//! by itself within [`LIFE`]; only the default gateway is asked; a router that
//! gives nothing is asked again, ever more rarely. Deliberately not here: who is
//! told of the address.

mod router;

use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep, timeout};
use warren_os::netlink::Netlink;
use warren_types::api::PortMappingProtocol;

use router::Mapping;

/// How long a mapping is asked for, seconds. Short, since a crash leaves it
/// behind and a restarted router forgets it: it is there again after half this
/// time at the latest.
pub const LIFE: u32 = 1200;
/// Between looks at the default route.
const LOOK: Duration = Duration::from_secs(15);
/// After the first attempt without a mapping; doubled up to [`RETRY_MOST`].
const RETRY: Duration = Duration::from_secs(60);
const RETRY_MOST: Duration = Duration::from_secs(1800);
/// Shortest time between renewals, whatever a router says.
const RENEW_LEAST: Duration = Duration::from_secs(30);
/// How long taking a mapping back may hold up the end of the daemon.
const GOODBYE: Duration = Duration::from_secs(1);

/// What is known of the router's help.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Report {
    /// The router sends what comes to `external` to us.
    Mapped {
        /// Address and port outside.
        external: SocketAddrV4,
        /// How it was asked.
        protocol: PortMappingProtocol,
        /// The router.
        gateway: Ipv4Addr,
    },
    /// No mapping, and why.
    None(String),
}

/// The way out of this machine: its gateway, and its own address on that way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Way {
    gateway: Ipv4Addr,
    own: Ipv4Addr,
}

/// Keeps a mapping until it is stopped.
#[derive(Debug)]
pub struct PortMapper {
    stop: oneshot::Sender<()>,
    task: tokio::task::JoinHandle<()>,
}

impl PortMapper {
    /// Starts asking for `port`. Reports go to `reports`.
    pub fn start(port: u16, reports: mpsc::Sender<Report>) -> Self {
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(async move {
            let mut keeper = Keeper { port, mapping: None, reports, told: None };
            tokio::select! {
                () = keeper.keep() => {}
                _ = stopped => {}
            }
            keeper.give_back().await;
        });
        Self { stop, task }
    }

    /// Takes the mapping back, for at most a second.
    pub async fn stop(self) {
        drop(self.stop);
        let _ = timeout(GOODBYE, self.task).await;
    }
}

struct Keeper {
    port: u16,
    mapping: Option<Mapping>,
    reports: mpsc::Sender<Report>,
    told: Option<Report>,
}

impl Keeper {
    async fn keep(&mut self) {
        let mut failures = 0_u32;
        loop {
            let way = way_out();
            let wait = match self.attempt(way.clone()).await {
                Ok(next) => {
                    failures = 0;
                    next
                }
                Err(reason) => {
                    self.give_back().await;
                    self.tell(Report::None(reason)).await;
                    let wait = RETRY.saturating_mul(1 << failures.min(16)).min(RETRY_MOST);
                    failures += 1;
                    wait
                }
            };
            let until = Instant::now() + wait;
            // Another network, another router.
            while Instant::now() < until {
                sleep(LOOK.min(until - Instant::now())).await;
                if way_out() != way {
                    failures = 0;
                    self.mapping = None;
                    break;
                }
            }
        }
    }

    /// Makes or renews the mapping; when the next renewal is due.
    async fn attempt(&mut self, way: Result<Way, String>) -> Result<Duration, String> {
        let Way { gateway, own } = way?;
        // A copy: what is interrupted here can still be given back.
        let renewed = match self.mapping.clone() {
            Some(mapping) => mapping.renew().await.ok(),
            None => None,
        };
        let mapping = match renewed {
            Some(mapping) => mapping,
            None => router::ask(gateway, SocketAddrV4::new(own, self.port)).await?,
        };
        let (external, protocol, life) = (mapping.external, mapping.protocol(), mapping.life);
        // Kept even if it is of no use to others: it is ours to give back.
        self.mapping = Some(mapping);
        check_outside(*external.ip())?;
        self.tell(Report::Mapped { external, protocol, gateway }).await;
        Ok((life / 2).max(RENEW_LEAST))
    }

    async fn tell(&mut self, report: Report) {
        if self.told.as_ref() != Some(&report) {
            tracing::info!(?report, "port mapping");
            self.told = Some(report.clone());
            // Fails only when the daemon ends.
            let _ = self.reports.send(report).await;
        }
    }

    async fn give_back(&mut self) {
        if let Some(mapping) = self.mapping.take()
            && let Err(reason) = mapping.remove().await
        {
            tracing::info!(reason, "the router did not take the port mapping back");
        }
    }
}

/// Gateway and own address of the default route, if a mapping makes sense.
fn way_out() -> Result<Way, String> {
    let gateway = Netlink::open()
        .and_then(|mut netlink| netlink.default_gateway())
        .map_err(|e| e.to_string())?
        .ok_or("this machine has no default route")?;
    let own = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))
        .and_then(|socket| socket.connect((gateway, 9)).and_then(|()| socket.local_addr()))
        .map_err(|e| format!("the gateway {gateway} is not reachable: {e}"))?;
    match own.ip() {
        IpAddr::V4(own) if is_private(own) => Ok(Way { gateway, own }),
        _ => Err("this machine has a public address: there is no router to ask".to_owned()),
    }
}

/// Addresses that a router at home, in an office or at a provider gives out.
fn is_private(address: Ipv4Addr) -> bool {
    address.is_private() || address.is_link_local() || is_shared(address)
}

/// RFC 6598: between a provider's NAT and its customers; the overlay's as well.
fn is_shared(address: Ipv4Addr) -> bool {
    address.octets()[0] == 100 && address.octets()[1] & 0xc0 == 64
}

/// Is the address that the router has outside one that others can use?
fn check_outside(address: Ipv4Addr) -> Result<(), String> {
    if is_shared(address) {
        return Err(format!(
            "the router gave a port, but is itself behind its provider's NAT ({address})"
        ));
    }
    if address.is_unspecified() || address.is_loopback() || address.is_multicast() {
        return Err(format!("the router says its address is {address}: is it online?"));
    }
    Ok(())
}

/// The mapped address as an endpoint for others.
impl Report {
    /// The outer address, if there is one.
    pub fn external(&self) -> Option<SocketAddr> {
        match self {
            Self::Mapped { external, .. } => Some((*external).into()),
            Self::None(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_usable_outer_addresses_are_advertised() {
        for bad in ["100.64.1.1", "0.0.0.0", "127.0.0.1", "224.0.0.1"] {
            assert!(check_outside(bad.parse().unwrap()).is_err(), "{bad}");
        }
        // A router behind another one still helps those between the two.
        for good in ["203.0.113.9", "192.168.1.2", "100.128.0.1"] {
            assert!(check_outside(good.parse().unwrap()).is_ok(), "{good}");
        }
    }

    #[test]
    fn only_private_addresses_ask_a_router() {
        for private in ["192.168.0.2", "10.1.2.3", "172.20.0.1", "169.254.3.4", "100.70.0.1"] {
            assert!(is_private(private.parse().unwrap()), "{private}");
        }
        assert!(!is_private("203.0.113.9".parse().unwrap()));
    }
}
