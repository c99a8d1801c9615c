//! The daemon's side of names: what the directory says becomes the zone, the
//! system's resolver is told, and the operator learns how far that went.
//!
//! Invariants: names follow members as they come and go; failing to serve them
//! never stops the node. Deliberately not here: DNS itself (`crate::dns`).

use std::net::IpAddr;

use ipnet::IpNet;
use warren_control::directory::NodeView;
use warren_types::NodeId;
use warren_types::api::{NamesState, NamesStatus};

use crate::config::Config;
use crate::dns::resolved::{self, Arranged};
use crate::dns::{self, Entry, Forwarding, SharedZone, Sockets, Zone};
use crate::host::ResolverPlan;
use crate::host::plan::RESOLVERS;
use crate::store::{Member, StoredClient};

/// Names as this node serves them.
pub(super) struct Names {
    own: NodeId,
    /// Our name and those of our clients.
    entries: Vec<Entry>,
    zone: Option<SharedZone>,
    sockets: Option<Sockets>,
    /// Where questions about others go while connected through an exit.
    forwarding: Forwarding,
    status: NamesStatus,
}

impl Names {
    /// Binds the port and tells the system's resolver: both take privileges, so
    /// it comes before they are dropped. Nothing is answered until
    /// [`Names::serve`].
    pub(super) async fn prepare(
        config: &Config,
        own: NodeId,
        member: &Member,
        prefixes: &[IpNet],
        interface: &str,
    ) -> Self {
        let mut names = Self {
            own,
            entries: vec![(member.name.clone(), member.addresses.clone())],
            zone: None,
            sockets: None,
            forwarding: Forwarding::default(),
            status: NamesStatus {
                domain: format!("{}.warren", member.network.name),
                servers: Vec::new(),
                state: NamesState::Off,
                hint: None,
            },
        };
        if !config.dns {
            return names;
        }
        let zone = Zone::new(&member.name, &member.network.name, prefixes.to_vec());
        if config.userspace.is_some() {
            // The proxies ask the zone; nobody else can reach a server of ours.
            names.zone = zone.ok().map(SharedZone::new);
            names.put(own, names.entries.clone());
            names.status.hint =
                Some("names are for programs that use the proxies of this node".to_owned());
            return names;
        }
        let bound = dns::bind(&member.addresses).await;
        let (zone, sockets) = match (zone, bound) {
            (Ok(zone), Ok(sockets)) => (zone, sockets),
            (zone, bound) => {
                let reason = zone
                    .err()
                    .map(|e| e.to_string())
                    .or_else(|| bound.err().map(|e| e.to_string()))
                    .unwrap_or_default();
                tracing::warn!(reason, "names are not served");
                names.status.state = NamesState::Failed;
                names.status.hint = Some(format!("{reason}; `--no-dns` leaves names alone"));
                return names;
            }
        };
        names.status.servers = sockets.addresses();
        let arranged = resolved::arrange(interface, &names.status.servers, &zone.domains());
        tracing::info!(?arranged, servers = ?names.status.servers, "names");
        names.status.state = match arranged {
            Arranged::Split => NamesState::Resolved,
            _ => NamesState::Served,
        };
        names.status.hint = hint(&arranged, &names.status, member, interface);
        names.sockets = Some(sockets);
        names.zone = Some(SharedZone::new(zone));
        names.put(own, names.entries.clone());
        names
    }

    /// Starts to answer.
    pub(super) fn serve(&mut self) {
        if let (Some(sockets), Some(zone)) = (self.sockets.take(), &self.zone) {
            dns::serve(sockets, zone, &self.forwarding);
        }
    }

    /// The names, for the proxies.
    pub(super) fn zone(&self) -> Option<SharedZone> {
        self.zone.clone()
    }

    fn put(&self, id: NodeId, entries: Vec<Entry>) {
        if let Some(zone) = &self.zone {
            zone.lock().put(id, entries);
        }
    }

    /// A member is known, or known anew; ourselves as well.
    pub(super) fn learn(&mut self, view: &NodeView) {
        if view.id() == self.own {
            // The name is the directory's say (two admins may have given one
            // name twice); of all else the daemon knows sooner.
            if let Some((name, _)) = self.entries.first_mut() {
                name.clone_from(&view.name);
            }
            return self.put(self.own, self.entries.clone());
        }
        let node = (view.name.clone(), view.addresses.clone());
        let clients = view.clients.iter().map(|c| (c.name.clone(), c.addresses.clone()));
        self.put(view.id(), std::iter::once(node).chain(clients).collect());
    }

    /// This node and its clients.
    pub(super) fn set_own(&mut self, member: &Member, clients: &[StoredClient]) {
        let name = self.entries.first().map_or_else(|| member.name.clone(), |own| own.0.clone());
        let clients = clients.iter().map(|c| (c.name.clone(), c.addresses.clone()));
        self.entries = std::iter::once((name, member.addresses.clone())).chain(clients).collect();
        self.put(self.own, self.entries.clone());
    }

    /// We go on under another key.
    pub(super) fn set_own_id(&mut self, id: NodeId) {
        self.forget(self.own);
        self.own = id;
        self.put(id, self.entries.clone());
    }

    /// A member is gone.
    pub(super) fn forget(&self, id: NodeId) {
        if let Some(zone) = &self.zone {
            zone.lock().remove(id);
        }
    }

    /// The address to ask when one is enough.
    pub(super) fn server(&self) -> Option<IpAddr> {
        let servers = &self.status.servers;
        servers.iter().find(|a| a.is_ipv4()).or(servers.first()).copied()
    }

    /// Whom the system shall ask while connected through an exit: us, if we
    /// answer at all, so that members' names go on resolving; else the exit.
    pub(super) fn resolver_plan(&self, interface: &str) -> ResolverPlan {
        let served = self.zone.as_ref().map(|zone| zone.lock().domains());
        let (servers, mesh) = match served {
            Some(domains) => {
                let own = self.status.servers.clone();
                (own.clone(), Some((own, domains)))
            }
            None => (RESOLVERS.to_vec(), None),
        };
        ResolverPlan { interface: interface.to_owned(), servers, mesh }
    }

    /// Passes this machine's questions about others on to the exit, or no
    /// longer.
    pub(super) fn forward(&self, on: bool) {
        self.forwarding.set(if on { &RESOLVERS } else { &[] });
    }

    pub(super) fn status(&self) -> NamesStatus {
        self.status.clone()
    }
}

/// What to do so that programs on this machine resolve the names.
fn hint(
    arranged: &Arranged,
    status: &NamesStatus,
    member: &Member,
    interface: &str,
) -> Option<String> {
    let server = status.servers.iter().find(|a| a.is_ipv4()).or(status.servers.first())?;
    let domain = &status.domain;
    let name = format!("{}.{domain}", member.name);
    match arranged {
        Arranged::Split => None,
        Arranged::Unused => Some(
            "systemd-resolved knows the names, but programs do not ask it: run \
             `ln -sf /run/systemd/resolve/stub-resolv.conf /etc/resolv.conf`"
                .to_owned(),
        ),
        Arranged::Absent => Some(format!(
            "`dig @{server} {name}` asks this node; for all programs put `nameserver {server}` \
             first in /etc/resolv.conf, or `server=/{domain}/{server}` into dnsmasq"
        )),
        Arranged::Failed(reason) => Some(format!(
            "systemd-resolved was not told ({reason}): run `resolvectl dns {interface} {server}` and \
             `resolvectl domain {interface} ~{domain}`"
        )),
    }
}
