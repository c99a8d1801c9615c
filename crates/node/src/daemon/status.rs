//! The daemon's state as the local API and WireGuard's tools see it.

use std::time::Duration;

use warren_proto::engine::PeerStats;
use warren_types::api::{NetworkStatus, NodeStatus, PeerKind, PeerStatus, Status};

use super::mesh::Owner;
use super::roles::peer_roles;
use super::{Daemon, unix_now};
use crate::host::kill_switch;
use crate::uapi;

/// A certificate with less than this left is worth a warning, seconds.
const CERTIFICATE_WARNING_S: i64 = 20 * 86_400;

fn milliseconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

impl Daemon {
    pub(super) fn status(&self) -> Status {
        let stats = self.engine.all_stats(self.now());
        let mut peers: Vec<PeerStatus> =
            stats.into_iter().filter_map(|stats| self.peer_status(stats)).collect();
        peers.sort_by(|a, b| a.name.cmp(&b.name));
        self.status_with(peers)
    }

    /// With the peers as given.
    pub(super) fn status_with(&self, peers: Vec<PeerStatus>) -> Status {
        let expires = self
            .control
            .certificate_expires()
            .map(|end| i64::try_from(end).unwrap_or(i64::MAX) - unix_now().as_secs() as i64);
        Status {
            node: NodeStatus {
                name: self.member.name.to_string(),
                id: self.id,
                public_key: self.engine.public_key(),
                addresses: self.member.addresses.clone(),
                listen: self.listen,
                interface: self.interface.clone(),
                mtu: self.mtu,
                mode: match &self.userspace {
                    Some(userspace) => format!("{} {}", userspace.mode(), self.workers.outside()),
                    None => self.workers.mode(),
                },
                uptime_s: self.epoch.elapsed().as_secs(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
                certificate_expires_s: expires,
                relayed_bytes: self.engine.relayed().1,
                onion: self.roles_report(),
            },
            network: NetworkStatus {
                name: self.member.network.name.to_string(),
                id: self.member.network.id,
                suite: self.member.network.suite,
                auth: self.member.network.auth.as_str().to_owned(),
                prefixes: self.prefixes.iter().map(ToString::to_string).collect(),
                admin: self.control.is_admin(),
            },
            peers,
            drops: self.dropped(),
            warnings: self.warnings(expires),
            names: self.names.status(),
            lan: self.surroundings.lan_status(),
            port_mapping: self.surroundings.mapping_status(),
        }
    }

    fn warnings(&self, certificate_expires_s: Option<i64>) -> Vec<String> {
        let mut warnings = Vec::new();
        match certificate_expires_s {
            Some(left) if left <= 0 => warnings.push(
                "this node's certificate has expired: connect it to a node that admits others, \
                 which renews it, or leave and join afresh"
                    .to_owned(),
            ),
            Some(left) if left < CERTIFICATE_WARNING_S => warnings.push(format!(
                "this node's certificate ends in {} days and could not be renewed: is a node that \
                 admits others reachable?",
                left / 86_400
            )),
            _ => {}
        }
        if self.workers.failed() {
            warnings.push(
                "the data path has stopped (the interface was deleted?): restart the daemon"
                    .to_owned(),
            );
        }
        warnings.extend(self.roles_report().warnings);
        match kill_switch::remembered(&self.config.state_dir) {
            Ok(Some(plan)) => warnings.push(format!(
                "the kill switch is on: nothing leaves this machine but through {} (`warren \
                 kill-switch off` lifts it)",
                plan.interface
            )),
            Ok(None) => {}
            Err(fault) => warnings.push(fault.what().to_owned()),
        }
        if self.userspace.as_ref().is_some_and(|userspace| userspace.failed()) {
            warnings.push(
                "the userspace stack has stopped, the log says why: restart the daemon".to_owned(),
            );
        }
        warnings.extend(self.notices.values().cloned());
        warnings
    }

    pub(super) fn peer_status(&self, stats: PeerStats) -> Option<PeerStatus> {
        let owner = self.mesh.owner(&stats.key)?;
        let onion = match owner {
            Owner::Node(id) => self.mesh.view(*id).and_then(|view| view.onion()),
            Owner::Client(_) => None,
        };
        let onion = onion.map(|section| peer_roles(section, unix_now().as_secs()));
        let (name, kind, id, addresses, post_quantum) = match owner {
            Owner::Node(id) => {
                let view = self.mesh.view(*id)?;
                let post_quantum = stats.preshared && self.mesh.is_post_quantum(*id);
                (
                    view.name.to_string(),
                    PeerKind::Node,
                    Some(*id),
                    view.addresses.clone(),
                    post_quantum,
                )
            }
            Owner::Client(name) => {
                let client = self.mesh.clients().iter().find(|c| c.name == *name)?;
                (name.to_string(), PeerKind::Wireguard, None, client.addresses.clone(), false)
            }
        };
        let path = self.path_of(&stats);
        Some(PeerStatus {
            name,
            kind,
            id,
            public_key: stats.key,
            addresses,
            endpoint: stats.endpoint,
            path,
            rtt_ms: stats.rtt.map(milliseconds),
            loss: stats.loss,
            path_mtu: stats.path_mtu,
            handshake_age_s: stats.handshake_age.map(|age| age.as_secs()),
            rx_bytes: stats.rx_bytes,
            tx_bytes: stats.tx_bytes,
            suite: stats.suite,
            post_quantum,
            onion,
        })
    }

    pub(super) fn wireguard_snapshot(&self) -> uapi::Snapshot {
        let peers = self
            .engine
            .all_stats(self.now())
            .into_iter()
            .map(|stats| uapi::PeerSnapshot {
                public_key: stats.key,
                endpoint: stats.endpoint,
                allowed_ips: stats.allowed,
                last_handshake: stats.handshake_unix.unwrap_or_default(),
                rx_bytes: stats.rx_bytes,
                tx_bytes: stats.tx_bytes,
                keepalive_s: stats
                    .persistent_keepalive
                    .map_or(0, |every| u16::try_from(every.as_secs()).unwrap_or(u16::MAX)),
            })
            .collect();
        uapi::Snapshot { listen_port: self.listen.port(), peers }
    }
}
