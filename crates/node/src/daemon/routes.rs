//! Subnet routes at work: the operator's requests, the engine's prefixes, the
//! kernel's routes.
//!
//! In: API requests, decisions and offers that arrive, members that stop
//! answering. Out: prefixes of engine peers, kernel routes, hints. Invariants:
//! what is asked for is stored before it is told to others; the kernel has
//! exactly the routes in force; forwarding on this machine is never switched
//! on, only missed. Deliberately not here: which offer is used (`subnets`).

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv6Addr};

use ipnet::IpNet;
use warren_control::network::AuthKind;
use warren_control::route_approval::{
    APPROVAL_LIFE, ApprovalBody, MAX_ROUTES, SignedApproval, check_route,
};
use warren_os::netlink::{Netlink, Route};
use warren_proto::engine::{LinkState, PathState, PathStats, PeerStats};
use warren_types::api::{Event, RouteAction, RouteReply, RouteRequest, SubnetRoute};
use warren_types::{LinkPublicKey, NodeId, mesh_node};

use super::subnets::{Circumstances, METRIC};
use super::{Daemon, unix_now};
use crate::api::ApiError;
use crate::transport::Looping;

/// Name of the file in the state directory, without its ending.
pub(super) const FILE: &str = "routes";

fn parse(prefixes: &[String]) -> Result<Vec<IpNet>, ApiError> {
    let read = |text: &String| {
        text.parse::<IpNet>()
            .map(|prefix| prefix.trunc())
            .map_err(|_| ApiError::Invalid(format!("`{text}` is no network: use 192.168.7.0/24")))
    };
    prefixes.iter().map(read).collect()
}

/// True when the kernel passes packets of a family on.
fn forwards(v6: bool) -> bool {
    let file =
        if v6 { "/proc/sys/net/ipv6/conf/all/forwarding" } else { "/proc/sys/net/ipv4/ip_forward" };
    std::fs::read_to_string(file).is_ok_and(|text| text.trim() == "1")
}

/// What is missing on a node that offers `prefixes`.
fn forwarding_hints(prefixes: &[IpNet]) -> Vec<String> {
    let families: BTreeSet<bool> = prefixes.iter().map(|p| p.addr().is_ipv6()).collect();
    families
        .into_iter()
        .filter(|v6| !forwards(*v6))
        .map(|v6| {
            let (family, key) = if v6 {
                ("IPv6", "net.ipv6.conf.all.forwarding")
            } else {
                ("IPv4", "net.ipv4.ip_forward")
            };
            format!(
                "this machine does not forward {family}, so nothing reaches the networks behind \
                 it: `sysctl -w {key}=1` (and in /etc/sysctl.d to keep it)"
            )
        })
        .collect()
}

/// Networks this machine is in, the overlay's interface left out.
fn local_networks(interface: &str) -> Vec<IpNet> {
    let listed = Netlink::open().and_then(|mut netlink| {
        let own = netlink.link_index(interface).ok();
        netlink.addresses().map(|all| (own, all))
    });
    match listed {
        Ok((own, addresses)) => addresses
            .into_iter()
            .filter(|a| a.global && Some(a.index) != own)
            .map(|a| a.address.trunc())
            .collect(),
        Err(error) => {
            tracing::warn!(%error, "cannot list the networks of this machine");
            Vec::new()
        }
    }
}

/// True for a peer that answers on no path.
fn is_silent(stats: &PeerStats) -> bool {
    let dead = |path: &PathStats| matches!(path.state, PathState::Suspect | PathState::Dead);
    let tried = || stats.paths.iter().filter(|path| path.state != PathState::Untried);
    stats.state == LinkState::Unreachable || (tried().any(dead) && tried().all(dead))
}

impl Daemon {
    pub(super) fn list_routes(&self) -> Vec<SubnetRoute> {
        let own_place = self.routing.own();
        let decided = |place, prefix| self.subnets.decision(place, prefix).map(|d| d.approved);
        let own_note = |prefix: &IpNet| {
            let missing = forwarding_hints(std::slice::from_ref(prefix));
            let waiting = "not approved yet: `warren route approve` on an admin".to_owned();
            let approved = decided(own_place, *prefix).unwrap_or(false);
            missing.into_iter().next().or_else(|| (!approved).then_some(waiting))
        };
        let own = self.subnets.advertised.iter().map(|prefix| SubnetRoute {
            prefix: prefix.to_string(),
            node: self.member.name.to_string(),
            own: true,
            approved: decided(own_place, *prefix),
            used: false,
            note: own_note(prefix),
        });
        let others = self.subnets.offers().filter_map(|(prefix, node)| {
            let view = self.mesh.view(node)?;
            Some(SubnetRoute {
                prefix: prefix.to_string(),
                node: view.name.to_string(),
                own: false,
                approved: decided(self.mesh.place(node)?, prefix),
                used: self.subnets.in_force.get(&prefix) == Some(&node)
                    && self.subnets.installed.contains(&prefix),
                note: self
                    .subnets
                    .unused
                    .get(&(prefix, node))
                    .map(ToString::to_string)
                    .or_else(|| self.subnets.refused.get(&prefix).cloned()),
            })
        });
        let mut all: Vec<SubnetRoute> = own.chain(others).collect();
        all.sort_by(|a, b| (&a.prefix, &a.node).cmp(&(&b.prefix, &b.node)));
        all
    }

    pub(super) async fn change_routes(
        &mut self,
        request: &RouteRequest,
    ) -> Result<RouteReply, ApiError> {
        let prefixes = parse(&request.prefixes)?;
        let hints = match request.action {
            RouteAction::Advertise => self.advertise(&prefixes)?,
            RouteAction::Withdraw => self.withdraw(&prefixes)?,
            RouteAction::Approve | RouteAction::Deny => {
                let approved = request.action == RouteAction::Approve;
                self.decide_routes(request.node.as_deref(), &prefixes, approved).await?
            }
        };
        Ok(RouteReply { hints })
    }

    fn advertise(&mut self, prefixes: &[IpNet]) -> Result<Vec<String>, ApiError> {
        if self.userspace.is_some() {
            return Err(ApiError::Conflict(
                "a node in userspace mode forwards nothing into other networks: offer them from a \
                 node with an interface, or publish single ports with --publish"
                    .to_owned(),
            ));
        }
        let mut wanted: BTreeSet<IpNet> = self.subnets.advertised.iter().copied().collect();
        for prefix in prefixes {
            check_route(self.member.network.id, *prefix)
                .map_err(|e| ApiError::Invalid(e.to_string()))?;
            wanted.insert(*prefix);
        }
        if wanted.len() > MAX_ROUTES {
            return Err(ApiError::Conflict(format!(
                "a node offers at most {MAX_ROUTES} networks: join neighbouring ones into one"
            )));
        }
        self.set_advertised(wanted.into_iter().collect())?;
        let mut hints = forwarding_hints(prefixes);
        let place = self.routing.own();
        let waiting: Vec<String> = prefixes
            .iter()
            .filter(|p| !self.subnets.decision(place, **p).is_some_and(|d| d.approved))
            .map(ToString::to_string)
            .collect();
        if !waiting.is_empty() {
            hints.push(format!(
                "To put it in force, on {}: warren route approve {} {}",
                match self.member.network.auth {
                    AuthKind::Certificate => "a node that admits others",
                    _ => "every node that shall use it",
                },
                self.member.name,
                waiting.join(" ")
            ));
        }
        hints.push(
            "Hosts in these networks need a way back: a route to the overlay through this \
             machine, or source NAT on it."
                .to_owned(),
        );
        Ok(hints)
    }

    fn withdraw(&mut self, prefixes: &[IpNet]) -> Result<Vec<String>, ApiError> {
        let unknown = prefixes.iter().find(|p| !self.subnets.advertised.contains(p));
        if let Some(prefix) = unknown {
            return Err(ApiError::NotFound(format!(
                "this node does not offer {prefix}: `warren route list` shows what it offers"
            )));
        }
        let mut rest = self.subnets.advertised.clone();
        rest.retain(|p| !prefixes.is_empty() && !prefixes.contains(p));
        self.set_advertised(rest)?;
        Ok(Vec::new())
    }

    fn set_advertised(&mut self, prefixes: Vec<IpNet>) -> Result<(), ApiError> {
        let before = std::mem::replace(&mut self.subnets.advertised, prefixes);
        if let Err(error) = self.save_routes() {
            self.subnets.advertised = before;
            return Err(ApiError::Failed(error));
        }
        self.announce();
        self.judge_routes();
        self.note_forwarding();
        Ok(())
    }

    fn save_routes(&self) -> Result<(), String> {
        self.store.save_list(FILE, &self.subnets.file()).map_err(|e| e.to_string())
    }

    async fn decide_routes(
        &mut self,
        node: Option<&str>,
        prefixes: &[IpNet],
        approved: bool,
    ) -> Result<Vec<String>, ApiError> {
        let missing = || ApiError::Invalid("name the node whose network this is".to_owned());
        let name = node.ok_or_else(missing)?;
        let unknown = || ApiError::NotFound(format!("no member is named `{name}`"));
        let place = if name == self.member.name.as_str() {
            self.routing.own()
        } else {
            let name = name.parse().map_err(|_| unknown())?;
            let id = self.mesh.by_name(&name).ok_or_else(unknown)?;
            self.mesh.place(id).ok_or_else(unknown)?
        };
        let mut hints = Vec::new();
        for prefix in prefixes {
            if approved {
                check_route(self.member.network.id, *prefix)
                    .map_err(|e| ApiError::Invalid(e.to_string()))?;
            }
            self.decide_route(place, *prefix, approved).await?;
            let offered = self
                .subnets
                .offers()
                .any(|(p, id)| p == *prefix && self.mesh.place(id) == Some(place))
                || (place == self.routing.own() && self.subnets.advertised.contains(prefix));
            if approved && !offered {
                hints.push(format!("{name} does not offer {prefix} now; it may once it does."));
            }
        }
        Ok(hints)
    }

    /// Decides for the network, or where there are no admins for this node.
    async fn decide_route(
        &mut self,
        router: Ipv6Addr,
        prefix: IpNet,
        approved: bool,
    ) -> Result<(), ApiError> {
        if self.member.network.auth == AuthKind::Certificate {
            return self.control.decide_route(router, prefix, approved).await.map_err(|error| {
                match error {
                    crate::transport::AdminError::NotAdmin => ApiError::NotAllowed(
                        "this node cannot approve networks: run the command on a node that admits \
                         others"
                            .to_owned(),
                    ),
                    other => ApiError::Failed(other.to_string()),
                }
            });
        }
        let body = ApprovalBody {
            network: self.member.network.id,
            router,
            prefix,
            approved,
            sequence: 0,
            expires: u64::MAX,
        };
        self.subnets.decide(&body, None);
        self.save_routes().map_err(ApiError::Failed)?;
        self.judge_routes();
        Ok(())
    }

    /// An admin's decision arrived, checked.
    pub(super) fn take_decision(&mut self, body: &ApprovalBody, signed: SignedApproval) {
        if !self.subnets.decide(body, Some(signed)) {
            return;
        }
        if let Err(reason) = self.save_routes() {
            self.notices.insert("routes", reason);
        }
        self.judge_routes();
    }

    /// A member's offers may have changed; it may be gone.
    pub(super) fn take_offers(&mut self, node: NodeId) {
        let offers = self.mesh.view(node).map(|v| v.descriptor.body.routes.clone());
        if self.subnets.offer(node, &offers.unwrap_or_default()) {
            self.judge_routes();
        }
    }

    /// What time does to decisions, once a minute or so.
    pub(super) async fn keep_routes(&mut self) {
        let now = unix_now().as_secs();
        if self.subnets.expire(now) {
            self.judge_routes();
        }
        if self.control.is_admin() {
            for (router, prefix) in self.subnets.ending(now.saturating_add(APPROVAL_LIFE / 2)) {
                if let Err(error) = self.control.decide_route(router, prefix, true).await {
                    tracing::warn!(%prefix, %error, "a route's approval was not renewed");
                }
            }
        }
        // The machine may have moved into or out of a network.
        if self.subnets.offers().next().is_some() {
            self.judge_routes();
        }
        self.note_forwarding();
    }

    fn note_forwarding(&mut self) {
        let hints = forwarding_hints(&self.subnets.advertised);
        match hints.into_iter().next() {
            Some(hint) => self.notices.insert("forwarding", hint),
            None => self.notices.remove("forwarding"),
        };
    }

    /// A member that routes for others began or ceased to answer.
    pub(super) fn router_changed(&mut self, key: &LinkPublicKey) {
        let offers = |id| self.subnets.offers().any(|(_, node)| node == id);
        if self.mesh.node_of(key).is_some_and(offers) {
            self.judge_routes();
        }
    }

    /// Judges all offers and puts the result in force.
    pub(super) fn judge_routes(&mut self) {
        let local = local_networks(&self.interface);
        let now = self.now();
        let stats = self.engine.all_stats(now);
        let silent: BTreeSet<NodeId> = stats
            .iter()
            .filter(|s| is_silent(s))
            .filter_map(|s| self.mesh.node_of(&s.key))
            .collect();
        let underlay: Vec<(String, IpAddr)> = stats
            .iter()
            .filter_map(|s| {
                let to = s.endpoint.filter(|to| mesh_node(*to).is_none())?;
                let ip = to.ip().to_canonical();
                (s.state == LinkState::Up && !ip.is_loopback())
                    .then(|| Some((self.mesh.name_of(&s.key)?, ip)))
                    .flatten()
            })
            .collect();
        let before = self.subnets.in_force.clone();
        let mesh = &self.mesh;
        let changed = self.subnets.judge(&Circumstances {
            network: self.member.network.id,
            local: &local,
            underlay: &underlay,
            place: &|id| Some((mesh.place(id)?, mesh.view(id)?.name.to_string())),
            answers: &|id| !silent.contains(&id),
        });
        for id in changed {
            let behind = self.subnets.behind(id);
            self.mesh.set_subnets(id, behind);
            self.update_peer(id);
        }
        self.install_routes();
        self.keep_led();
        self.avoid_looping(local);
        for (prefix, node) in &self.subnets.in_force {
            if before.get(prefix) != Some(node) {
                let via = self.mesh.view(*node).map(|v| v.name.to_string());
                tracing::info!(%prefix, via, "subnet route");
                self.events.publish(Event::RouteChanged { prefix: prefix.to_string(), via });
            }
        }
        for prefix in before.keys().filter(|p| !self.subnets.in_force.contains_key(*p)) {
            self.events.publish(Event::RouteChanged { prefix: prefix.to_string(), via: None });
        }
    }

    /// Nobody is looked for where the kernel's routes lead into the tunnel.
    fn avoid_looping(&mut self, local: Vec<IpNet>) {
        // Without an interface the kernel has none.
        let installed = self.subnets.installed.iter().copied();
        let prefixes: Vec<IpNet> = installed.filter(|_| self.userspace.is_none()).collect();
        let except = if prefixes.is_empty() { Vec::new() } else { local };
        let looping = Looping { prefixes, except };
        self.looping_untold |= self.mesh.set_looping(looping.clone());
        if self.looping_untold {
            self.looping_untold = !self.control.set_looping(looping);
        }
    }

    /// Gives the kernel what is in force, and takes away what is not.
    fn install_routes(&mut self) {
        let wanted: BTreeSet<IpNet> = self.subnets.in_force.keys().copied().collect();
        if wanted == self.subnets.installed {
            return;
        }
        if self.userspace.is_some() {
            // The stack routes by itself; the kernel has no part in it.
            self.subnets.installed = wanted;
            self.readdress_stack();
            return self.keep_gate();
        }
        let opened = Netlink::open().and_then(|mut netlink| {
            let index = netlink.link_index(&self.interface)?;
            Ok((netlink, index))
        });
        let (mut netlink, index) = match opened {
            Ok(opened) => opened,
            Err(error) => {
                tracing::warn!(%error, "cannot change the kernel's routes");
                return;
            }
        };
        let route = |prefix: IpNet| {
            let mut route = Route::direct(prefix, index);
            route.metric = Some(METRIC);
            route.source = self
                .member
                .addresses
                .iter()
                .copied()
                .find(|a| a.is_ipv4() == prefix.addr().is_ipv4());
            route
        };
        let gone: Vec<IpNet> = self.subnets.installed.difference(&wanted).copied().collect();
        for prefix in gone {
            if let Err(error) = netlink.delete_route(&route(prefix)) {
                tracing::warn!(%prefix, %error, "a kernel route was not removed");
            }
            self.subnets.installed.remove(&prefix);
        }
        let fresh: Vec<IpNet> = wanted.difference(&self.subnets.installed).copied().collect();
        self.subnets.refused.retain(|prefix, _| wanted.contains(prefix));
        for prefix in fresh {
            match netlink.add_route(&route(prefix)) {
                Ok(()) => {
                    self.subnets.installed.insert(prefix);
                    self.subnets.refused.remove(&prefix);
                }
                Err(error) => {
                    tracing::warn!(%prefix, %error, "a kernel route was not added");
                    self.subnets.refused.insert(prefix, error.to_string());
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_are_read_or_refused_with_an_example() {
        assert_eq!(parse(&["192.168.7.9/24".into()]).unwrap(), ["192.168.7.0/24".parse().unwrap()]);
        let error = parse(&["home".into()]).unwrap_err().to_string();
        assert!(error.contains("192.168.7.0/24"), "{error}");
    }

    #[test]
    fn the_machines_own_networks_are_found() {
        assert!(local_networks("nothere0").iter().all(|net| !net.addr().is_loopback()));
    }
}
