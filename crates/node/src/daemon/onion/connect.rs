//! `warren connect` and `disconnect`, and being an exit: what the operator wants
//! of the machine.

use std::net::{Ipv6Addr, SocketAddr, UdpSocket};

use ipnet::IpNet;
use warren_proto::selection::{Avoid, Constraints, EntryChoice, ExitChoice, Explanation, MAX_HOPS};
use warren_types::api::{ConnectRequest, Event, ProfileChange, Profiles};
use warren_types::{Action, Coordinates, Country, Family, NodeId, Place, Protocol, Region};

use super::super::Daemon;
use super::super::host::Connection;
use crate::api::ApiError;
use crate::fault::Fault;
use crate::host::Split;
use crate::host::plan::{ControlGroup, PolicyRule, SplitMode, Transport};
use crate::random::OsRandom;

/// The file of the wanted session.
const SESSION: &str = "session.json";
/// The file of the profiles, and most of them.
const PROFILES: &str = "profiles.json";
const MAX_PROFILES: usize = 100;
/// Circuits to other exits that each session keeps in case its own dies.
pub(super) const SPARES: usize = 1;

/// True when this machine has a way to the IPv6 internet beside the tunnel: a
/// route to the first address of 2000::/3, all that is assigned. No packet is
/// sent.
pub(super) fn has_ipv6_route() -> bool {
    let anywhere = SocketAddr::from((Ipv6Addr::new(0x2000, 0, 0, 0, 0, 0, 0, 1), 9));
    UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)).and_then(|socket| socket.connect(anywhere)).is_ok()
}

fn invalid(text: impl Into<String>) -> ApiError {
    ApiError::Invalid(text.into())
}

/// Which part of the machine's traffic.
fn split_of(request: &ConnectRequest) -> Result<Split, ApiError> {
    if !request.include.is_empty() && !request.exclude.is_empty() {
        return Err(invalid("include or exclude, not both: one follows from the other"));
    }
    let include = !request.include.is_empty();
    let mut split = Split {
        mode: if include { SplitMode::Include } else { SplitMode::Exclude },
        ..Split::default()
    };
    for item in if include { &request.include } else { &request.exclude } {
        if let Some(user) = item.strip_prefix("user:") {
            let number = user.parse().map_err(|_| {
                invalid(format!("`{user}` is no user's number: `id -u NAME` shows it"))
            })?;
            split.users.push(number);
        } else if let Some(path) = item.strip_prefix("cgroup:") {
            split.groups.push(ControlGroup::try_from(path.to_owned()).map_err(invalid)?);
        } else {
            let net: IpNet = item
                .parse()
                .or_else(|_| item.parse::<std::net::IpAddr>().map(IpNet::from))
                .map_err(|_| {
                    invalid(format!("`{item}` is no prefix, `user:NUMBER` or `cgroup:PATH`"))
                })?;
            split.subnets.push(net.trunc());
        }
    }
    Ok(split)
}

/// What the request means for the machine.
fn connection(request: &ConnectRequest) -> Result<Connection, ApiError> {
    let split = split_of(request)?;
    Ok(Connection {
        kill_switch: request.kill_switch,
        lan: request.lan,
        resolver: !request.keep_dns && split.takes_all(),
        split,
    })
}

impl Daemon {
    fn member_named(&self, word: &str) -> Option<NodeId> {
        let name = word.parse().ok()?;
        self.mesh.by_name(&name)
    }

    fn point(&self, word: &str) -> Result<Coordinates, ApiError> {
        if let Some((north, east)) = word.split_once(',')
            && let (Ok(north), Ok(east)) = (north.trim().parse(), east.trim().parse())
        {
            let point = Coordinates { north, east };
            if point.is_valid() {
                return Ok(point);
            }
        }
        if let Ok(place) = word.parse::<Place>() {
            return Ok(place.coordinates());
        }
        let known =
            self.member_named(word).and_then(|id| self.mesh.view(id)?.onion()?.place.clone());
        known.map(|place| place.coordinates()).ok_or_else(|| {
            invalid(format!(
                "where `{word}` is, is not known: use a country or city (`nearest:de/fra`), a \
                 point (`nearest:52.5,13.4`), or a member that tells its region"
            ))
        })
    }

    /// The words of a request as constraints.
    fn constraints(&self, request: &ConnectRequest) -> Result<Constraints, ApiError> {
        if !(1..=MAX_HOPS).contains(&request.hops) {
            return Err(invalid(format!(
                "a path of {} hops is not possible: use 1 to 4",
                request.hops
            )));
        }
        let exit = match request.exit.as_str() {
            "auto" => ExitChoice::Auto,
            "random" => ExitChoice::Random,
            word => {
                if let Some(near) = word.strip_prefix("nearest:") {
                    ExitChoice::Nearest(self.point(near)?)
                } else if let Ok(country) = word.parse::<Country>() {
                    ExitChoice::Country(country)
                } else if let Ok(region) = word.parse::<Region>() {
                    ExitChoice::Region(region)
                } else if let Some(id) = self.member_named(word) {
                    ExitChoice::Node(id)
                } else {
                    let country = word.parse::<Country>().err().map(|e| e.to_string());
                    return Err(invalid(format!(
                        "`{word}` is no exit: use auto, random, nearest:PLACE, a country (de), a \
                         region (europe) or the name of a member{}",
                        match country {
                            Some(text) if word.len() == 2 => format!("; {text}"),
                            _ => String::new(),
                        }
                    )));
                }
            }
        };
        let entry = match &request.entry {
            None => None,
            Some(word) => Some(match (word.parse::<Country>(), self.member_named(word)) {
                (Ok(country), _) => EntryChoice::Country(country),
                (Err(_), Some(id)) => EntryChoice::Node(id),
                (Err(_), None) => {
                    return Err(invalid(format!(
                        "`{word}` is no entry: use a country (de) or the name of a member"
                    )));
                }
            }),
        };
        let mut avoid = Avoid::default();
        for word in &request.avoid {
            if let Some(family) = word.strip_prefix("family:") {
                let family: Family = family.parse().map_err(|e| invalid(format!("{e}")))?;
                avoid.families.insert(family);
            } else if let Ok(country) = word.parse::<Country>() {
                avoid.countries.insert(country);
            } else if let Some(id) = self.member_named(word) {
                avoid.nodes.insert(id);
            } else {
                return Err(invalid(format!(
                    "`{word}` cannot be avoided: use a country, the name of a member, or \
                     family:NAME"
                )));
            }
        }
        Ok(Constraints {
            hops: request.hops,
            exit,
            entry,
            avoid,
            port: None,
            distinct_countries: request.distinct_countries,
        })
    }

    /// What is wanted of the path and of the machine, if this node can do it.
    fn understand(&self, request: &ConnectRequest) -> Result<(Constraints, Connection), ApiError> {
        self.refuse_machine_options(request)?;
        Ok((self.constraints(request)?, connection(request)?))
    }

    /// Begins a session, or goes on with other wishes.
    pub(in super::super) fn connect(&mut self, request: ConnectRequest) -> Result<(), ApiError> {
        let (constraints, wanted) = self.understand(&request)?;
        if self.host.is_none() && self.userspace.is_none() && !request.proxy_only {
            return Err(ApiError::NotAllowed(
                "this daemon may not change the machine's routes: run it as root or with \
                 CAP_NET_ADMIN, or in userspace mode for the proxies only"
                    .to_owned(),
            ));
        }
        // Nothing is changed for a wish that nobody can fulfil.
        if let Err(error) = self.try_select(&constraints) {
            let text = self.tell(&error);
            if self.onion.request.is_none() {
                self.onion.problem = Some(text.clone());
            }
            return Err(ApiError::Conflict(text));
        }
        self.begin(request, constraints, &wanted)
    }

    fn begin(
        &mut self,
        request: ConnectRequest,
        constraints: Constraints,
        wanted: &Connection,
    ) -> Result<(), ApiError> {
        // Written down first: a daemon that is killed while it changes the machine
        // goes on with it, rather than leave it shut.
        self.remember(Some(&request));
        if !request.proxy_only
            && self.host.is_some()
            && let Err(fault) = self.lead_machine(wanted)
        {
            let before = self.onion.request.clone();
            self.remember(before.as_ref());
            return Err(ApiError::Failed(fault.to_string()));
        }
        let now_us = self.now_us();
        if self.onion.client.is_on() {
            self.end_isolated();
            self.onion.client.disconnect(now_us);
            self.end_connections();
        }
        self.reset_paths();
        self.onion.request = Some(request);
        self.onion.constraints = constraints;
        self.onion.problem = None;
        self.onion.client.connect(SPARES, now_us, &mut OsRandom);
        self.readdress_paths();
        self.flush_onion();
        Ok(())
    }

    fn lead_machine(&mut self, wanted: &Connection) -> Result<(), Fault> {
        let beside = self.mesh_prefixes();
        self.connect_machine(wanted)?;
        self.onion.led_beside = beside;
        Ok(())
    }

    /// Leads the machine's traffic again when the mesh has other networks, which
    /// are reached over links and not through the exit. To be called when they
    /// may have changed, and now and then.
    pub(in super::super) fn keep_led(&mut self) {
        let Some(request) = self.onion.request.as_ref().filter(|request| !request.proxy_only)
        else {
            return;
        };
        let idle = self.host.is_none() || !self.onion.client.is_on();
        if idle || self.onion.led_beside == self.mesh_prefixes() {
            return;
        }
        let Ok(wanted) = connection(request) else { return };
        if let Err(fault) = self.lead_machine(&wanted) {
            tracing::warn!(%fault, "the machine's traffic does not follow the mesh's routes yet");
        }
    }

    /// What a restarted daemon goes on with.
    fn remember(&self, request: Option<&ConnectRequest>) {
        if let Err(error) = self.store.save_list(SESSION, &request) {
            tracing::warn!(%error, "a restarted daemon will not know what was wanted last");
        }
    }

    /// Ends the session; the machine's traffic goes its own ways again.
    pub(in super::super) fn disconnect(&mut self) -> Result<(), ApiError> {
        let was_on = self.onion.request.take().is_some();
        let now_us = self.now_us();
        self.end_isolated();
        self.reset_paths();
        self.onion.client.disconnect(now_us);
        self.onion.problem = None;
        self.flush_onion();
        if was_on {
            self.end_connections();
        }
        self.remember(None);
        if self.host.is_some() {
            self.disconnect_machine(false).map_err(|fault| ApiError::Failed(fault.to_string()))?;
        }
        if was_on {
            self.events.publish(Event::OnionDisconnected {});
        }
        Ok(())
    }

    /// Named wishes.
    pub(in super::super) fn profiles(&self) -> Result<Profiles, ApiError> {
        self.store.list(PROFILES).map_err(|fault| ApiError::Failed(fault.to_string()))
    }

    /// Sets or removes one, if it makes sense now.
    pub(in super::super) fn change_profile(
        &mut self,
        change: ProfileChange,
    ) -> Result<Profiles, ApiError> {
        let mut profiles = self.profiles()?;
        match change.request {
            Some(request) => {
                self.constraints(&request)?;
                connection(&request)?;
                if profiles.len() >= MAX_PROFILES && !profiles.contains_key(&change.name) {
                    return Err(ApiError::Conflict(format!(
                        "there are {MAX_PROFILES} profiles already: `warren profile remove NAME`"
                    )));
                }
                profiles.insert(change.name, request);
            }
            None => {
                if profiles.remove(&change.name).is_none() {
                    return Err(ApiError::NotFound(format!(
                        "there is no profile `{}`: `warren profile list` shows them",
                        change.name
                    )));
                }
            }
        }
        let saved = self.store.save_list(PROFILES, &profiles);
        saved.map_err(|fault| ApiError::Failed(fault.to_string()))?;
        Ok(profiles)
    }

    /// Takes other circuits, all sessions moving to them when they are there.
    pub(in super::super) fn rotate_path(&mut self) -> Result<(), ApiError> {
        if !self.onion.client.is_on() {
            return Err(ApiError::Conflict(
                "there is no path to rotate: `warren connect` first".to_owned(),
            ));
        }
        let now_us = self.now_us();
        for (_, client) in self.onion.clients_mut() {
            client.rotate(now_us);
        }
        self.flush_onion();
        Ok(())
    }

    /// Everything that went into the choice of the path.
    pub(in super::super) fn explain_onion(&self) -> Result<Box<Explanation>, ApiError> {
        self.onion.explanation.clone().map(Box::new).ok_or_else(|| {
            ApiError::Conflict("no path was chosen yet: `warren connect` first".to_owned())
        })
    }

    /// Goes on with the session there was before a restart.
    pub(in super::super) fn resume_session(&mut self) {
        self.load_guards();
        match self.store.list::<Option<ConnectRequest>>(SESSION) {
            Ok(Some(request)) => self.onion.request = Some(request),
            Ok(None) => {}
            Err(error) => tracing::warn!(%error, "the session cannot be read"),
        }
        self.keep_session();
    }

    /// Begins a wanted session that is not there yet: right after a restart the
    /// nodes it names may not be known.
    pub(in super::super) fn keep_session(&mut self) {
        if self.onion.client.is_on() {
            return;
        }
        let Some(request) = self.onion.request.clone() else { return };
        // The daemon may have been started in another mode.
        let began = self
            .understand(&request)
            .and_then(|(constraints, wanted)| self.begin(request, constraints, &wanted));
        if let Err(error) = began {
            self.onion.problem = Some(error.to_string());
        }
    }

    /// Serves as an exit, or not. False when it is not in force.
    pub(super) fn keep_exit(&mut self, wanted: bool) -> bool {
        if self.userspace.is_some() {
            return self.keep_socket_exit(wanted);
        }
        if !wanted {
            if self.onion.exit_policy.take().is_some()
                && let Err(fault) = self.exit_machine_down()
            {
                tracing::warn!(%fault, "not all of the exit could be taken back");
            }
            self.notices.remove("exit");
            return false;
        }
        let policy = self.roles_report().settings.exit_policy.unwrap_or_default();
        let policy: Vec<PolicyRule> = policy
            .effective_rules()
            .into_iter()
            .map(|rule| PolicyRule {
                accept: rule.action == Action::Accept,
                to: rule.prefix,
                transport: rule.protocol.map(|protocol| match protocol {
                    Protocol::Tcp => Transport::Tcp,
                    Protocol::Udp => Transport::Udp,
                }),
                ports: (rule.ports.first > 0 || rule.ports.last < u16::MAX)
                    .then_some(rule.ports.first..=rule.ports.last),
            })
            .collect();
        if self.onion.exit_policy.as_ref() == Some(&policy) {
            return true;
        }
        match self.exit_machine(policy.clone()) {
            Ok(_) => {
                self.onion.exit_policy = Some(policy);
                self.notices.remove("exit");
                true
            }
            Err(reason) => {
                tracing::error!(%reason, "this node cannot serve as an exit");
                self.notices
                    .insert("exit", format!("this node does not serve as an exit: {reason}"));
                false
            }
        }
    }
}
