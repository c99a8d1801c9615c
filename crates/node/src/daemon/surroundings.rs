//! What the daemon learns from around it: members seen on the local network,
//! and the port a router gave.
//!
//! Invariants: sightings come from anybody on the local network, so they are
//! few at a time and only ever dialed, never believed; the router's port is one
//! more endpoint of ours and goes when the mapping goes; whatever was announced
//! or mapped is taken back at the end.

use std::net::SocketAddr;
use std::time::Instant;

use tokio::sync::mpsc;
use warren_types::api::{LanStatus, PortMappingState, PortMappingStatus};
use warren_types::{NetworkId, NodeId};

use super::Daemon;
use crate::config::Config;
use crate::lan::{Lan, Sighting};
use crate::portmap::{PortMapper, Report};

/// Sightings waiting to be looked at; more are dropped, and come again.
const SIGHTINGS: usize = 16;
/// Sightings taken in per [`WINDOW_S`]: a full LAN of honest nodes within a
/// minute, and no more work than that for a flood.
const TAKEN: u32 = 64;
const WINDOW_S: u64 = 10;

/// What there is around this node.
pub(super) struct Surroundings {
    lan: Option<Lan>,
    lan_status: LanStatus,
    router: Option<PortMapper>,
    mapping: PortMappingStatus,
    external: Option<SocketAddr>,
    window: (Instant, u32),
}

/// News from there, for the daemon's loop.
pub(super) struct News {
    pub(super) sightings: mpsc::Receiver<Sighting>,
    pub(super) reports: mpsc::Receiver<Report>,
}

impl Surroundings {
    /// Starts to announce, to look and to ask, as far as it is wanted.
    pub(super) fn start(
        config: &Config,
        network: NetworkId,
        node: NodeId,
        listen: SocketAddr,
    ) -> (Self, News) {
        let (found, sightings) = mpsc::channel(SIGHTINGS);
        let (report, reports) = mpsc::channel(4);
        let mut this = Self {
            lan: None,
            lan_status: LanStatus::default(),
            router: None,
            mapping: PortMappingStatus::default(),
            external: None,
            window: (Instant::now(), 0),
        };
        let nowhere = listen.ip().to_canonical().is_loopback();
        if config.lan_discovery && !nowhere {
            match Lan::start(network, node, listen, found) {
                Ok(lan) => {
                    this.lan = Some(lan);
                    this.lan_status.on = true;
                }
                Err(error) => {
                    tracing::warn!(%error, "no discovery on the local network");
                    this.lan_status.reason = Some(error.to_string());
                }
            }
        }
        // An operator who names endpoints has arranged for them.
        if config.port_mapping && config.endpoints.is_empty() && !nowhere {
            this.router = Some(PortMapper::start(listen.port(), report));
            this.mapping.state = PortMappingState::None;
            this.mapping.reason = Some("asking".to_owned());
        }
        (this, News { sightings, reports })
    }

    /// We go on under another key.
    pub(super) fn set_own_id(&mut self, id: NodeId) {
        if let Some(Err(error)) = self.lan.as_mut().map(|lan| lan.announce(id)) {
            tracing::warn!(%error, "not announced anew on the local network");
        }
    }

    /// The router's address and port for us.
    pub(super) fn external(&self) -> Option<SocketAddr> {
        self.external
    }

    pub(super) fn lan_status(&self) -> LanStatus {
        self.lan_status.clone()
    }

    pub(super) fn mapping_status(&self) -> PortMappingStatus {
        self.mapping.clone()
    }

    /// Takes back what was announced and mapped; about a second at most.
    pub(super) async fn end(self) {
        let lan = async {
            if let Some(lan) = self.lan {
                lan.stop().await;
            }
        };
        let router = async {
            if let Some(router) = self.router {
                router.stop().await;
            }
        };
        tokio::join!(lan, router);
    }

    fn may_take(&mut self) -> bool {
        let now = Instant::now();
        if now.duration_since(self.window.0).as_secs() >= WINDOW_S {
            self.window = (now, 0);
        }
        self.window.1 += 1;
        self.window.1 <= TAKEN
    }
}

impl Daemon {
    pub(super) fn seen(&mut self, sighting: Sighting) {
        if !self.surroundings.may_take() {
            return;
        }
        let node = self
            .mesh
            .members()
            .map(|view| view.id())
            .find(|id| id.to_string().starts_with(sighting.node.as_str()));
        tracing::debug!(?node, addresses = ?sighting.addresses, "seen on the local network");
        let status = &mut self.surroundings.lan_status;
        status.seen = status.seen.saturating_add(1);
        let control = self.control.clone();
        tokio::spawn(async move { control.seen(node, sighting.addresses).await });
    }

    pub(super) fn router_says(&mut self, report: Report) {
        self.surroundings.external = report.external();
        self.surroundings.mapping = match report {
            Report::Mapped { external, protocol, gateway } => PortMappingStatus {
                state: PortMappingState::Mapped,
                protocol: Some(protocol),
                external: Some(external.into()),
                gateway: Some(gateway.into()),
                reason: None,
            },
            Report::None(reason) => PortMappingStatus {
                state: PortMappingState::None,
                reason: Some(reason),
                ..PortMappingStatus::default()
            },
        };
        self.refresh_endpoints();
    }
}
