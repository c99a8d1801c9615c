//! Finding members on the local network by multicast DNS (RFC 6762, service
//! type `_warren._udp`).
//!
//! In: which network, which node, which port. Out: [`Sighting`]s: addresses
//! where a member may be. Invariants: what is announced names neither the
//! network nor the node nor the machine (`announcement` has all of it);
//! a sighting is only a hint where to dial, since anybody on the local network
//! can make one up: whoever answers there proves who it is as everywhere;
//! how many are taken in is bounded by the daemon. Nothing is announced over
//! overlay interfaces (the library leaves point-to-point ones out, as TUN
//! devices are). Deliberately not here: dialing.

mod announcement;

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use mdns_sd::{DaemonStatus, Receiver, ServiceDaemon, ServiceEvent, ServiceInfo};
use tokio::sync::mpsc;
use warren_types::{NetworkId, NodeId};

pub use announcement::{NodePrefix, SERVICE, Sighting, read, tag};
use announcement::{host_name, properties};

/// Between looks for interfaces and addresses that came or went, seconds.
const INTERFACE_CHECK_S: u32 = 10;
/// How long goodbyes may take at the end.
const GOODBYE: Duration = Duration::from_millis(300);

/// Local discovery does not work here.
#[derive(Debug, thiserror::Error)]
#[error("multicast DNS is not to be had: {0}")]
pub struct LanError(#[from] mdns_sd::Error);

/// Announces a node and looks for others; ends with [`Lan::stop`]. Has a thread
/// of its own, which inherits the confinement of the one that starts it.
pub struct Lan {
    daemon: ServiceDaemon,
    network: NetworkId,
    listen: SocketAddr,
    /// What we announce ourselves as; shared with the task that reads others.
    own: Arc<Mutex<Option<NodePrefix>>>,
    full_name: String,
}

impl Lan {
    /// Starts. `listen`: the address the node is bound to, with its port; a
    /// particular address is the only one announced. Sightings of other nodes
    /// of the network go to `found`; a full queue drops them (they come again).
    ///
    /// # Errors
    /// [`LanError`] when the library cannot start its thread.
    pub fn start(
        network: NetworkId,
        node: NodeId,
        listen: SocketAddr,
        found: mpsc::Sender<Sighting>,
    ) -> Result<Self, LanError> {
        let daemon = ServiceDaemon::new()?;
        daemon.set_ip_check_interval(INTERFACE_CHECK_S)?;
        let own = Arc::new(Mutex::new(None));
        let mut lan = Self { daemon, network, listen, own: own.clone(), full_name: String::new() };
        lan.announce(node)?;
        let events = lan.daemon.browse(SERVICE)?;
        tokio::spawn(async move {
            while let Ok(event) = events.recv_async().await {
                let ServiceEvent::ServiceResolved(service) = event else { continue };
                let Some(sighting) = read(&service, network) else { continue };
                let us = own.lock().unwrap_or_else(PoisonError::into_inner).clone();
                if us.as_ref() != Some(&sighting.node) {
                    let _full = found.try_send(sighting);
                }
            }
        });
        Ok(lan)
    }

    /// Announces this machine as `node` from now on, and no more as what it was
    /// before.
    ///
    /// # Errors
    /// [`LanError`] when the library's queue is full or its thread has ended.
    pub fn announce(&mut self, node: NodeId) -> Result<(), LanError> {
        let prefix = NodePrefix::of(node);
        let info = |addresses: &[IpAddr]| {
            ServiceInfo::new(
                SERVICE,
                prefix.as_str(),
                &host_name(&prefix),
                addresses,
                self.listen.port(),
                &properties(self.network)[..],
            )
        };
        let info = match self.listen.ip().to_canonical() {
            any if any.is_unspecified() => info(&[])?.enable_addr_auto(),
            own => info(&[own])?,
        };
        let former = std::mem::replace(&mut self.full_name, info.get_fullname().to_owned());
        *self.own.lock().unwrap_or_else(PoisonError::into_inner) = Some(prefix);
        if !former.is_empty() {
            // Nobody waits for the goodbye.
            let _told = self.daemon.unregister(&former)?;
        }
        Ok(self.daemon.register(info)?)
    }

    /// Takes the announcement back and ends the thread.
    pub async fn stop(self) {
        let goodbye = async {
            if let Ok(told) = self.daemon.unregister(&self.full_name) {
                let _ = told.recv_async().await;
            }
            end(&self.daemon).await;
        };
        let _ = tokio::time::timeout(GOODBYE, goodbye).await;
    }
}

async fn end(daemon: &ServiceDaemon) {
    if let Ok(ended) = daemon.shutdown() {
        let _: Result<DaemonStatus, _> = ended.recv_async().await;
    }
}

/// Looks for members of a network for a time, without announcing anything:
/// for a machine that wants to join. Ends early once nothing new came for a
/// third of `wait`. When it returns its thread has ended, so it may run before
/// the process is confined.
///
/// # Errors
/// [`LanError`] when the library cannot start its thread.
pub async fn find(network: NetworkId, wait: Duration) -> Result<Vec<SocketAddr>, LanError> {
    let daemon = ServiceDaemon::new()?;
    let events = daemon.browse(SERVICE)?;
    let mut found: Vec<SocketAddr> = Vec::new();
    let deadline = tokio::time::Instant::now() + wait;
    while let Some(sighting) =
        next(&events, network, deadline, (!found.is_empty()).then_some(wait / 3)).await
    {
        for address in sighting.addresses {
            if !found.contains(&address) {
                found.push(address);
            }
        }
    }
    drop(events);
    end(&daemon).await;
    drop(daemon);
    // The thread says goodbye just before it ends.
    for _ in 0..100 {
        if warren_os::process::thread_count() <= 1 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok(found)
}

async fn next(
    events: &Receiver<ServiceEvent>,
    network: NetworkId,
    deadline: tokio::time::Instant,
    quiet: Option<Duration>,
) -> Option<Sighting> {
    let until = quiet.map_or(deadline, |quiet| deadline.min(tokio::time::Instant::now() + quiet));
    loop {
        let event = tokio::time::timeout_at(until, events.recv_async()).await.ok()?.ok()?;
        if let ServiceEvent::ServiceResolved(service) = event
            && let Some(sighting) = read(&service, network)
        {
            return Some(sighting);
        }
    }
}
