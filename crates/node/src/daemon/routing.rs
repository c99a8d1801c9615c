//! Routes over other nodes, between the parts that know something of them.
//!
//! In: the engine's links (who is reached directly, how well), the link states
//! of others, suspicions. Out: relay routes for the engine, mesh addresses for
//! the control transport and the candidates of each peer, and our own link
//! state for everybody. Invariants: a link that went silent is out of our own
//! routes at once, and only then told to others, at a bounded rate; what others
//! say is computed in batches, at most a fiftieth of one core's time.
//! Deliberately not here: the search (`warren-discovery`), which of a peer's
//! paths carries data (`warren-proto`).

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use warren_control::link_state::{LinkReport, LinkStateBody, MAX_LIFE, MAX_LINKS};
use warren_discovery::gossip::link_state_pause;
use warren_discovery::routing::{LinkMetric, NodeLinks, Router};
use warren_proto::engine::{LinkState, PathKind, PathState, PeerStats};
use warren_types::{LinkPublicKey, NodeId, mesh_address, mesh_node};

use super::mesh::Owner;
use super::{Daemon, unix_now};
use crate::transport::LinkSummary;

/// How often links are looked at when nothing happens.
pub(super) const TICK: Duration = Duration::from_secs(1);
/// In networks larger than this, fewer links are told.
const SMALL: usize = 64;
/// So many there.
const TOLD_IN_LARGE: usize = 16;
/// A round trip must differ by this share, and by this much, to be told again
const COARSE: f64 = 0.25;
const COARSE_RTT: Duration = Duration::from_millis(2);
/// and a loss by half, and by this much, or be over (not more often than
/// [`link_state_pause`] allows).
const COARSE_LOSS: f32 = 0.01;
/// A link that costs half of what was told, and so many microseconds less, is told
/// sooner: a moment of loss or of delay is not to keep traffic off it for long.
const RELIEF_US: u32 = 10_000;
/// Link states told at once; afterwards one in [`TOKEN`].
const TOKENS: u32 = 6;
const TOKEN: Duration = Duration::from_secs(6);
/// Between two all the same: what changes together is told together.
const TELL_GAP: Duration = Duration::from_millis(300);
/// Shortest life of a link state; it grows with the network, so that renewing
/// them all costs every node the same.
const SHORTEST_LIFE: u64 = 300;
/// Nodes whose link states are renewed in a second, all together.
const RENEWED_PER_S: f64 = 5.0;
/// Between computations of all routes, at least,
const COMPUTE_GAP: Duration = Duration::from_millis(20);
/// and this many times what the last one took.
const COMPUTE_SHARE: u32 = 50;
/// A route that fails again and again is suspected at most this often.
const SUSPECT_GAP: Duration = Duration::from_secs(5);

/// And a new one not before it could show that it works.
const ROUTE_TRIAL: Duration = Duration::from_millis(1500);

/// See the module's description.
#[derive(Debug)]
pub(super) struct Routing {
    pub(super) router: Router,
    own: Ipv6Addr,
    willing: bool,
    /// Peers that have had a session lately.
    up: BTreeSet<LinkPublicKey>,
    /// Of them, those nothing is heard from on any path.
    silent: BTreeSet<LinkPublicKey>,
    told: Option<LinkSummary>,
    told_at: Instant,
    tokens: (u32, Instant),
    computed: Instant,
    took: Duration,
    suspected: HashMap<NodeId, Instant>,
    /// Relays in force by destination, and since when.
    taken: BTreeMap<Ipv6Addr, (Vec<Ipv6Addr>, Instant)>,
    /// Our links are news that could not be told yet.
    untold: bool,
    /// Who can be reached over others now.
    pub(super) detours: HashMap<NodeId, SocketAddr>,
    /// The control transport does not know of the last change yet.
    detours_untold: bool,
    load: (u8, Duration, Instant),
}

impl Routing {
    pub(super) fn new(own: Ipv6Addr, willing: bool) -> Self {
        let now = Instant::now();
        Self {
            router: Router::new(own),
            own,
            willing,
            up: BTreeSet::new(),
            silent: BTreeSet::new(),
            told: None,
            told_at: now,
            tokens: (TOKENS, now),
            computed: now,
            took: Duration::ZERO,
            suspected: HashMap::new(),
            taken: BTreeMap::new(),
            untold: false,
            detours: HashMap::new(),
            detours_untold: false,
            load: (0, Duration::ZERO, now),
        }
    }

    /// Our overlay address.
    pub(super) fn own(&self) -> Ipv6Addr {
        self.own
    }

    /// When routes are to be computed, if they are stale, or our links told, if
    /// they are news.
    pub(super) fn due(&self) -> Option<Instant> {
        let gap = (self.took * COMPUTE_SHARE).max(COMPUTE_GAP);
        let compute = self.router.is_stale().then(|| self.computed + gap);
        let tell = (self.untold && self.tokens.0 > 0).then(|| self.told_at + TELL_GAP);
        [compute, tell].into_iter().flatten().min()
    }

    /// Takes a token for telling a link state.
    fn may_tell(&mut self, now: Instant) -> bool {
        let (left, since) = &mut self.tokens;
        while *left < TOKENS && now.duration_since(*since) >= TOKEN {
            *left += 1;
            *since += TOKEN;
        }
        if *left == TOKENS {
            *since = now;
        }
        let may = *left > 0 && (self.told.is_none() || now >= self.told_at + TELL_GAP);
        if may {
            *left -= 1;
        }
        may
    }

    /// How busy this process keeps its cores, 0 to 255, over some seconds.
    fn measure_load(&mut self, now: Instant) -> u8 {
        let (load, cpu, since) = self.load;
        let passed = now.duration_since(since);
        if passed < Duration::from_secs(5) {
            return load;
        }
        let Ok(cost) = warren_os::process::cost(std::process::id()) else { return load };
        let cores = std::thread::available_parallelism().map_or(1, usize::from) as f64;
        let share = cost.cpu.saturating_sub(cpu).as_secs_f64() / passed.as_secs_f64() / cores;
        // In eighths: coarse, so that it is seldom news.
        let load = ((share.clamp(0.0, 1.0) * 8.0).round() * 31.875) as u8;
        self.load = (load, cost.cpu, now);
        load
    }
}

/// True when the peer's packets go straight to it.
fn is_direct(stats: &PeerStats) -> bool {
    stats.state == LinkState::Up && stats.endpoint.is_some_and(|to| mesh_node(to).is_none())
}

fn metric(link: &LinkReport) -> LinkMetric {
    LinkMetric { rtt: link.round_trip(), loss: link.lost() }
}

/// True when `new` is not worth telling after `old`.
fn alike(old: &LinkSummary, new: &LinkSummary) -> bool {
    let close = |a: &LinkReport, b: &LinkReport| {
        let (x, y) = (a.round_trip(), b.round_trip());
        let rtt = x.abs_diff(y);
        let (was, is) = (a.lost(), b.lost());
        let over = a.loss > 0 && b.loss == 0;
        (rtt <= COARSE_RTT || rtt.as_secs_f64() <= COARSE * x.as_secs_f64())
            && !over
            && (was - is).abs() <= COARSE_LOSS.max(was / 2.0)
    };
    let known = |b: &LinkReport| old.links.iter().any(|a| a.to == b.to && close(a, b));
    old.load.abs_diff(new.load) <= 64 && new.links.iter().all(known)
}

/// True when a link is far better in `new` than in `old`.
fn relieved(old: &LinkSummary, new: &LinkSummary) -> bool {
    let far = |a: &LinkReport, b: &LinkReport| {
        let (was, is) = (metric(a).cost(), metric(b).cost());
        a.to == b.to && is <= was / 2 && was - is >= RELIEF_US
    };
    new.links.iter().any(|b| old.links.iter().any(|a| far(a, b)))
}

/// True when both name the same links.
fn same_links(old: &LinkSummary, new: &LinkSummary) -> bool {
    let set = |summary: &LinkSummary| -> BTreeSet<Ipv6Addr> {
        summary.links.iter().map(|link| link.to).collect()
    };
    (old.willing, old.partial, set(old)) == (new.willing, new.partial, set(new))
}

impl Daemon {
    /// A session with a peer came up.
    pub(super) fn link_up(&mut self, key: LinkPublicKey) {
        self.routing.silent.remove(&key);
        self.routing.up.insert(key);
        self.look_at_links();
    }

    /// Nothing is heard from a peer on any path. Over others, another route is
    /// taken; if it relayed for us, others do.
    pub(super) fn link_silent(&mut self, key: LinkPublicKey) {
        let over_others = self
            .engine
            .link(&key)
            .and_then(|link| link.endpoint.load().as_deref().copied())
            .is_some_and(|to| mesh_node(to).is_some());
        if over_others {
            self.suspect_route(&key);
        } else {
            self.routing.silent.insert(key);
        }
        self.look_at_links();
        self.reroute();
    }

    /// The route to a peer gets no answer.
    fn suspect_route(&mut self, key: &LinkPublicKey) {
        let Some(Owner::Node(id)) = self.mesh.owner(key) else { return };
        let id = *id;
        let Some(place) = self.mesh.place(id) else { return };
        let now = Instant::now();
        // The silence may be that of the route before.
        let fresh = self.routing.taken.get(&place).is_some_and(|(_, at)| now < *at + ROUTE_TRIAL);
        let last = self.routing.suspected.get(&id);
        if fresh || last.is_some_and(|at| now < *at + SUSPECT_GAP) {
            return;
        }
        self.routing.suspected.insert(id, now);
        tracing::info!(peer = self.mesh.name_of(key), "the route over others gets no answer");
        self.routing.router.suspect(place, now);
    }

    /// Compares our links with what is known and told of them.
    pub(super) fn look_at_links(&mut self) {
        let now = self.now();
        let mut links: Vec<(bool, LinkReport)> = Vec::new();
        let mut metrics = Vec::new();
        let mut gone = Vec::new();
        for key in &self.routing.up {
            let member = match self.mesh.owner(key) {
                Some(Owner::Node(id)) => self.mesh.place(*id).map(|place| (*id, place)),
                _ => None,
            };
            let stats = self.engine.stats(key, now).filter(|s| s.state == LinkState::Up);
            let (Some((id, place)), Some(stats)) = (member, stats) else {
                gone.push(*key);
                continue;
            };
            let silent = self.routing.silent.contains(key);
            let Some(rtt) = stats.rtt.filter(|_| is_direct(&stats) && !silent) else { continue };
            let loss = stats.loss.unwrap_or(0.0);
            metrics.push((place, LinkMetric { rtt, loss: loss as f32 }));
            let held = self.mesh.is_neighbour(id);
            links.push((held, LinkReport::new(place, rtt, loss)));
        }
        for key in gone {
            self.routing.up.remove(&key);
            self.routing.silent.remove(&key);
        }
        metrics.sort_by_key(|(place, _)| *place);
        self.routing.router.set_own_links(metrics);
        // Lasting links first, then short ones: those serve others best.
        links.sort_by_key(|(held, link)| (!held, link.rtt, link.to));
        let most = if self.mesh.members().count() <= SMALL { MAX_LINKS } else { TOLD_IN_LARGE };
        let partial = links.len() > most;
        let links = links.into_iter().take(most).map(|(_, link)| link).collect();
        self.tell_links(links, partial, now.instant);
    }

    /// Publishes our link state if it is news.
    fn tell_links(&mut self, links: Vec<LinkReport>, partial: bool, now: Instant) {
        let members = self.mesh.members().count();
        let life = ((members as f64 / RENEWED_PER_S * 3.0) as u64).clamp(SHORTEST_LIFE, MAX_LIFE);
        let pause = Duration::from_secs(link_state_pause(members));
        let load = self.routing.measure_load(now);
        let willing = self.routing.willing;
        let summary = LinkSummary { links, partial, willing, load, life };
        let age = now.duration_since(self.routing.told_at);
        let news = match &self.routing.told {
            None => !summary.links.is_empty(),
            Some(told) if !same_links(told, &summary) => true,
            Some(told) if age >= pause && !alike(told, &summary) => true,
            Some(told) if age >= pause / 3 && relieved(told, &summary) => true,
            Some(told) => age >= Duration::from_secs(told.life / 3),
        };
        self.routing.untold = news;
        if news && self.routing.may_tell(now) && self.control.publish_links(summary.clone()) {
            self.routing.untold = false;
            tracing::debug!(links = summary.links.len(), "told our links");
            self.routing.told = Some(summary);
            self.routing.told_at = now;
        }
    }

    /// What another node says of its links.
    pub(super) fn take_link_state(&mut self, body: &LinkStateBody) {
        let Some(place) = self.mesh.place(body.node) else { return };
        tracing::debug!(node = %body.node.short(), links = body.links().count(), "link state");
        let links = body.links().map(|link| (link.to, metric(&link)));
        let said = NodeLinks {
            sequence: body.sequence,
            // By our own clock: theirs may differ.
            expires: unix_now().as_secs().saturating_add(body.life),
            willing: body.willing,
            load: body.load,
            partial: body.partial,
            links: links.collect(),
        };
        self.routing.router.apply(place, said);
    }

    /// What happens by itself: links age, states end, routes fail unnoticed.
    pub(super) fn tick_routing(&mut self) {
        self.look_at_links();
        self.routing.router.expire(unix_now().as_secs());
        self.suspect_idle_routes();
        let now = Instant::now();
        self.routing.suspected.retain(|_, at| now < *at + SUSPECT_GAP);
        if self.routing.detours_untold {
            self.tell_detours();
        }
    }

    /// Control connections that began on detours follow their links: small as
    /// they are, they would keep every link on their way awake.
    pub(super) fn straighten_connections(&self) {
        let now = self.now();
        for (id, key) in self.mesh.on_detours() {
            let stats = self.engine.stats(&key, now);
            if stats.is_some_and(|stats| is_direct(&stats) && stats.rtt.is_some()) {
                // Not told now: in a while then.
                let _told = self.control.straighten(id);
            }
        }
    }

    /// A route that is only held in reserve fails too.
    fn suspect_idle_routes(&mut self) {
        let now = self.now();
        let failed: Vec<LinkPublicKey> = self
            .routing
            .up
            .iter()
            .filter(|key| {
                let paths = self.engine.stats(key, now).map(|s| s.paths).unwrap_or_default();
                paths.iter().any(|p| {
                    p.kind == PathKind::Relay
                        && matches!(p.state, PathState::Suspect | PathState::Dead)
                })
            })
            .copied()
            .collect();
        for key in failed {
            self.suspect_route(&key);
        }
    }

    /// [`Routing::due`] has come.
    pub(super) fn routing_due(&mut self) {
        if self.routing.untold {
            self.look_at_links();
        }
        self.reroute();
    }

    /// Computes all routes and puts those that changed in force.
    pub(super) fn reroute(&mut self) {
        let start = Instant::now();
        let changed = self.routing.router.recompute(start);
        self.routing.took = start.elapsed();
        self.routing.computed = start;
        if !changed {
            return;
        }
        let own = self.routing.own;
        tracing::debug!(routes = self.routing.router.routes().len(), "routes over others changed");
        let routes: BTreeMap<Ipv6Addr, Vec<Ipv6Addr>> = self
            .routing
            .router
            .routes()
            .iter()
            .filter(|(place, _)| **place != own)
            .map(|(place, route)| (*place, route.relays.clone()))
            .collect();
        self.note_changed_routes(&routes, start);
        self.engine.set_relay_routes(routes);
        // In force before anybody sends there: what is lost now is sent again
        // only after a second.
        self.engine.publish_routes();
        self.refresh_detours();
    }

    /// A member is known, or known anew, for whom there may be a route already:
    /// what others say of their links can come first.
    pub(super) fn detour_for(&mut self, id: NodeId) {
        let place = self.mesh.place(id);
        let routed = place.is_some_and(|place| self.routing.taken.contains_key(&place));
        if routed != self.routing.detours.contains_key(&id) {
            self.refresh_detours();
        }
    }

    /// Who is reached over others, by the routes in force and the members known.
    fn refresh_detours(&mut self) {
        let detours: HashMap<NodeId, SocketAddr> = self
            .routing
            .taken
            .keys()
            .filter_map(|place| Some((self.mesh.at(*place)?, mesh_address(*place))))
            .collect();
        if detours == self.routing.detours {
            return;
        }
        let before = std::mem::replace(&mut self.routing.detours, detours);
        let now = &self.routing.detours;
        let touched: Vec<NodeId> = before
            .keys()
            .filter(|id| !now.contains_key(id))
            .chain(now.keys().filter(|id| !before.contains_key(id)))
            .copied()
            .collect();
        for id in touched {
            self.update_candidates(id);
        }
        self.tell_detours();
    }

    /// Remembers when each route changed.
    fn note_changed_routes(&mut self, routes: &BTreeMap<Ipv6Addr, Vec<Ipv6Addr>>, now: Instant) {
        let known = &mut self.routing.taken;
        known.retain(|place, _| routes.contains_key(place));
        for (place, relays) in routes {
            match known.get_mut(place) {
                Some((old, _)) if old == relays => {}
                Some(entry) => *entry = (relays.clone(), now),
                None => {
                    known.insert(*place, (relays.clone(), now));
                }
            }
        }
    }

    fn tell_detours(&mut self) {
        let told = self.control.set_detours(self.routing.detours.clone());
        self.routing.detours_untold = !told;
    }

    /// A member is gone.
    pub(super) fn forget_routes(&mut self, place: Option<Ipv6Addr>, key: &LinkPublicKey) {
        self.routing.up.remove(key);
        self.routing.silent.remove(key);
        if let Some(place) = place {
            self.routing.router.remove(place);
        }
        self.look_at_links();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn summary(links: &[(u16, u64)]) -> LinkSummary {
        let report = |(n, ms): &(u16, u64)| {
            let to = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, *n);
            LinkReport::new(to, Duration::from_millis(*ms), 0.0)
        };
        LinkSummary {
            links: links.iter().map(report).collect(),
            partial: false,
            willing: true,
            load: 0,
            life: 300,
        }
    }

    #[test]
    fn only_what_matters_is_news() {
        let old = summary(&[(1, 10), (2, 50)]);
        assert!(alike(&old, &summary(&[(2, 58), (1, 11)])));
        assert!(same_links(&old, &summary(&[(2, 500), (1, 10)])));
        assert!(!alike(&old, &summary(&[(1, 10), (2, 80)])));
        assert!(!same_links(&old, &summary(&[(1, 10)])));
        let lossy = LinkReport { loss: 40, ..old.links[0] };
        let lossy = LinkSummary { links: vec![lossy], ..old.clone() };
        assert!(!alike(&old, &lossy));
        // One of a hundred is worth 20 ms, and may not stay when it is over.
        let little = LinkReport { loss: 3, ..old.links[0] };
        let little = LinkSummary { links: vec![little, old.links[1]], ..old.clone() };
        assert!(!alike(&old, &little) && !alike(&little, &old));
        assert!(relieved(&little, &old) && !relieved(&old, &little));
        assert!(!relieved(&old, &summary(&[(2, 30), (1, 4)])), "not by half, and by little");
        assert!(!alike(&lossy, &old) && relieved(&lossy, &old));
        let less = LinkReport { loss: 24, ..old.links[0] };
        assert!(alike(&lossy, &LinkSummary { links: vec![less], ..old.clone() }), "not by half");
        assert!(!alike(&old, &LinkSummary { load: 128, ..old.clone() }));
    }

    #[test]
    fn telling_is_limited_and_recovers() {
        let mut routing = Routing::new(Ipv6Addr::LOCALHOST, true);
        let start = Instant::now();
        let told = (0..100).filter(|_| routing.may_tell(start)).count();
        assert_eq!(told, TOKENS as usize);
        routing.told = Some(summary(&[]));
        routing.told_at = start;
        let minute = (1..=600).filter(|n| {
            let now = start + Duration::from_millis(100 * n);
            let may = routing.may_tell(now);
            if may {
                routing.told_at = now;
            }
            may
        });
        let told = minute.count();
        assert!((9..=10).contains(&told), "{told} in a minute");
    }
}
