//! `warren path explain`, and how paths are named everywhere.
//!
//! In: the engine's paths of a peer, the routes over others, what is known of
//! the NAT. Out: the same in names and sentences. Invariant: nothing is said
//! that was not measured or decided; a reason is the one the choice was made by.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use warren_discovery::routing::{Explanation, Route, Why, WhyNot};
use warren_proto::engine::{LinkState, PathKind, PathState, PathStats, PeerStats};
use warren_types::api::{NatReport, PathEntry, PathReport, RouteEntry};
use warren_types::{LinkPublicKey, NodeName, mesh_node};

use super::Daemon;
use crate::api::ApiError;

fn milliseconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

/// Why a path carries data or does not, given the one that does.
fn why_path(path: &PathStats, active: Option<&PathStats>) -> String {
    if path.active {
        return match path.state {
            PathState::Suspect | PathState::Dead => "carries data, but does not answer",
            _ => "carries data",
        }
        .to_owned();
    }
    match path.state {
        PathState::Untried => "not tried yet".to_owned(),
        PathState::Probing => "no answer yet".to_owned(),
        PathState::Suspect => "stopped answering".to_owned(),
        PathState::Dead => "no answer".to_owned(),
        PathState::Valid => {
            if let Some(left) = path.held_back.filter(|left| !left.is_zero()) {
                return format!("failed lately: has to prove itself {} s more", left.as_secs() + 1);
            }
            let Some(active) = active else { return "works".to_owned() };
            let direct = |p: &PathStats| p.kind == PathKind::Direct;
            match (path.cost, active.cost) {
                (Some(own), Some(other)) if own > other => "costs more".to_owned(),
                (Some(_), Some(_)) if !direct(path) && direct(active) => {
                    "not direct, and not better by enough".to_owned()
                }
                (Some(_), Some(_)) => "not better by enough to change".to_owned(),
                _ => "not measured yet".to_owned(),
            }
        }
    }
}

fn path_entry(path: &PathStats, active: Option<&PathStats>) -> PathEntry {
    PathEntry {
        address: path.address,
        kind: path.kind.as_str().to_owned(),
        active: path.active,
        state: path.state.as_str().to_owned(),
        rtt_ms: path.rtt.map(milliseconds),
        loss: path.loss,
        cost_ms: path.cost.map(milliseconds),
        why: why_path(path, active),
    }
}

fn why_route(why: &Why) -> String {
    match why {
        Why::Only => "the only way".to_owned(),
        Why::Cheapest => "costs least".to_owned(),
        Why::Kept { cheapest } => format!(
            "in use already, and the cheapest ({:.0} ms) is not better by a fifth",
            f64::from(*cheapest) / 1e3
        ),
        Why::CheapestSuspect => "the cheapest got no answer lately".to_owned(),
        Why::AllSuspect => "all got no answer lately, this one costs least".to_owned(),
    }
}

fn why_not(why: WhyNot) -> String {
    match why {
        WhyNot::Dearer => "costs more".to_owned(),
        WhyNot::NotEnoughBetter => "not better by enough to change".to_owned(),
        WhyNot::Suspect { left } => {
            format!("got no answer lately: not used for {} s more", left.as_secs() + 1)
        }
    }
}

impl Daemon {
    /// A path as it is named in status and events.
    pub(super) fn path_name(&self, endpoint: SocketAddr) -> String {
        if let Some(place) = mesh_node(endpoint) {
            let relays = self.routing.router.routes().get(&place);
            let names: Vec<String> = relays
                .iter()
                .flat_map(|route| route.relays.iter())
                .map(|relay| self.name_at(*relay))
                .collect();
            // The way its packets come is taken back, by relays only it knows.
            return if names.is_empty() {
                "via others".into()
            } else {
                format!("via {}", names.join(", "))
            };
        }
        PathKind::of(endpoint).as_str().to_owned()
    }

    /// `peers[].path` of the status.
    pub(super) fn path_of(&self, stats: &PeerStats) -> String {
        match (stats.state, stats.endpoint) {
            (LinkState::Up, Some(endpoint)) => self.path_name(endpoint),
            (LinkState::Up, None) => "direct".to_owned(),
            (LinkState::Connecting, _) => "connecting".to_owned(),
            (LinkState::Idle | LinkState::Unreachable, _) => "none".to_owned(),
        }
    }

    fn name_at(&self, place: std::net::Ipv6Addr) -> String {
        let name =
            self.mesh.at(place).and_then(|id| self.mesh.view(id)).map(|v| v.name.to_string());
        name.unwrap_or_else(|| place.to_string())
    }

    fn route_entry(&self, route: &Route, chosen: bool, why: String) -> RouteEntry {
        RouteEntry {
            via: route.relays.iter().map(|relay| self.name_at(*relay)).collect(),
            chosen,
            rtt_ms: milliseconds(route.rtt),
            loss: f64::from(route.loss),
            cost_ms: f64::from(route.cost) / 1e3,
            why,
        }
    }

    /// The NAT before us, as far as peers have told.
    fn nat_reports(&self, now: Instant) -> Vec<NatReport> {
        let seen = self.reflexive.advertised(&self.endpoints, now);
        [(true, "ipv4"), (false, "ipv6")]
            .into_iter()
            .map(|(v4, family)| NatReport {
                family: family.to_owned(),
                kind: self.reflexive.nat(v4, &self.endpoints, now).as_str().to_owned(),
                seen_as: seen.iter().filter(|a| a.is_ipv4() == v4).copied().collect(),
            })
            .collect()
    }

    pub(super) fn explain_path(&self, name: &NodeName) -> Result<PathReport, ApiError> {
        let unknown = || {
            ApiError::NotFound(format!(
                "no other member is named `{name}`: `warren status` shows them"
            ))
        };
        let id = self.mesh.by_name(name).ok_or_else(unknown)?;
        let view = self.mesh.view(id).ok_or_else(unknown)?;
        let key = view.descriptor.body.link_key;
        let now = self.now();
        let stats = self.engine.stats(&key, now).ok_or_else(unknown)?;
        let active = stats.paths.iter().find(|path| path.active);
        let reason = self.path_reason(&key);
        let place = self.mesh.place(id);
        let told = place.map(|place| self.routing.router.explain(place, now.instant));
        let mut routes = Vec::new();
        if let Some((route, why)) = told.as_ref().and_then(|t| t.chosen.as_ref()) {
            routes.push(self.route_entry(route, true, why_route(why)));
        }
        for (route, why) in told.iter().flat_map(|t| t.others.iter()) {
            routes.push(self.route_entry(route, false, why_not(*why)));
        }
        Ok(PathReport {
            name: name.to_string(),
            addresses: view.addresses.clone(),
            path: self.path_of(&stats),
            reason: reason.map(|(reason, _)| reason.to_owned()),
            since_s: reason.map(|(_, at)| now.instant.duration_since(at).as_secs()),
            connected: self.mesh.is_connected(id),
            connected_by: self.mesh.connected_at(id).map(|to| PathKind::of(to).as_str().to_owned()),
            paths: stats.paths.iter().map(|path| path_entry(path, active)).collect(),
            no_route: told.as_ref().filter(|t| t.chosen.is_none()).map(no_route),
            routes,
            unwilling: told
                .iter()
                .flat_map(|t| t.unwilling.iter())
                .map(|place| self.name_at(*place))
                .collect(),
            nat: self.nat_reports(now.instant),
        })
    }

    fn path_reason(&self, key: &LinkPublicKey) -> Option<(&str, Instant)> {
        self.path_reasons.get(key).map(|(reason, at)| (reason.as_str(), *at))
    }
}

fn no_route(told: &Explanation) -> String {
    match told.links {
        None => "the node has not told its links, or not lately".to_owned(),
        Some(0) => "the node has no direct link to anybody".to_owned(),
        Some(_) if !told.unwilling.is_empty() => {
            "nodes that have a link to it do not relay".to_owned()
        }
        Some(_) => "no chain of at most four willing relays leads there".to_owned(),
    }
}
