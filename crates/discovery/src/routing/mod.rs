//! Routes over other nodes: which relays, in which order, and why.
//!
//! In: our own links, the link states of others, suspicions, the time. Out: for
//! every node that can be reached over others one [`Route`] (a source route, so
//! no two nodes need to agree for it to be free of loops), and on request the
//! alternatives with the reason why each was not chosen. Cost is the round trip,
//! plus a price for loss, for each relay, and for the relay's load.
//!
//! Invariants: at most [`MAX_RELAYS`] relays; no relay that is not willing; a
//! route in use is left only when it broke, when it is suspect, or for one that
//! is a fifth cheaper; a route that was left on suspicion is not taken again
//! before its time is up, unless there is no other. One search finds the routes
//! to all nodes; only our own neighbours, whose direct link must not count, take
//! one of their own.
//!
//! Deliberately not here: whether the direct path is better (`warren-proto`),
//! how link states travel and who signed them.

mod graph;
mod search;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};
use std::net::Ipv6Addr;
use std::time::{Duration, Instant};

use graph::{Graph, OWN};
pub use graph::{LinkMetric, MAX_LINKS, NodeLinks};
pub use search::MAX_RELAYS;
use search::{Without, measure, search};

/// A route in use is kept until another costs less than this share of it.
const KEEP: f64 = 0.8;
/// And at least this much less: tiny costs differ by chance.
const KEEP_US: u32 = 3_000;
/// How long a suspicion lasts the first time; it doubles with each repetition.
const SUSPICION: Duration = Duration::from_secs(15);
/// And at most.
const SUSPICION_MOST: Duration = Duration::from_secs(240);
/// A suspicion that ended this long ago is forgotten.
const FORGIVEN: Duration = Duration::from_secs(600);
/// Alternatives that [`Router::explain`] looks for.
const ALTERNATIVES: usize = 3;

/// A way to a node over others.
#[derive(Debug, Clone, PartialEq)]
pub struct Route {
    /// Relays in order, at least one and at most [`MAX_RELAYS`].
    pub relays: Vec<Ipv6Addr>,
    /// What it costs, in microseconds of delay; smaller is better.
    pub cost: u32,
    /// Round trip as the links' ends report it.
    pub rtt: Duration,
    /// Share of packets lost, 0 to 1, as they report it.
    pub loss: f32,
}

/// Why a route is in use.
#[derive(Debug, Clone, PartialEq)]
pub enum Why {
    /// There is no other.
    Only,
    /// It costs least.
    Cheapest,
    /// It was in use already, and the cheapest is not cheaper by enough.
    Kept {
        /// Cost of the cheapest.
        cheapest: u32,
    },
    /// The cheapest is suspect.
    CheapestSuspect,
    /// All are suspect; this is the cheapest.
    AllSuspect,
}

/// Why a route is not in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhyNot {
    /// It costs more.
    Dearer,
    /// It costs less, but not by enough to change.
    NotEnoughBetter,
    /// Traffic over it got no answer lately.
    Suspect {
        /// Until it may be taken again.
        left: Duration,
    },
}

/// Everything about the routes to one node.
#[derive(Debug, Clone, PartialEq)]
pub struct Explanation {
    /// The one in use, and why.
    pub chosen: Option<(Route, Why)>,
    /// Others, cheapest first.
    pub others: Vec<(Route, WhyNot)>,
    /// Nodes that have a link to it and do not relay.
    pub unwilling: Vec<Ipv6Addr>,
    /// The node's own links as it reports them, if it has.
    pub links: Option<usize>,
}

/// Relays that got no answer from a destination.
#[derive(Debug)]
struct Suspicion {
    relays: Vec<Ipv6Addr>,
    until: Instant,
    times: u32,
}

/// See the module's description.
#[derive(Debug)]
pub struct Router {
    graph: Graph,
    own: Ipv6Addr,
    routes: BTreeMap<Ipv6Addr, Route>,
    suspicions: HashMap<Ipv6Addr, Vec<Suspicion>>,
    changed: bool,
}

impl Router {
    /// For the node with this overlay address.
    pub fn new(own: Ipv6Addr) -> Self {
        Self {
            graph: Graph::new(own),
            own,
            routes: BTreeMap::new(),
            suspicions: HashMap::new(),
            changed: false,
        }
    }

    /// Our own links, all of them.
    pub fn set_own_links(&mut self, links: Vec<(Ipv6Addr, LinkMetric)>) {
        let same = self.graph.said(self.own).is_some_and(|said| said.links == links);
        if same {
            return;
        }
        let said = NodeLinks {
            sequence: 0,
            expires: u64::MAX,
            willing: false,
            load: 0,
            partial: false,
            links,
        };
        self.changed |= self.graph.apply(self.own, said);
    }

    /// Takes in what another node says of its links. False when it is not newer
    /// than what is known, or about ourselves.
    pub fn apply(&mut self, node: Ipv6Addr, links: NodeLinks) -> bool {
        let news = node != self.own && self.graph.apply(node, links);
        self.changed |= news;
        news
    }

    /// What a node said last.
    pub fn links_of(&self, node: Ipv6Addr) -> Option<&NodeLinks> {
        self.graph.said(node)
    }

    /// Forgets a node that is no member any more.
    pub fn remove(&mut self, node: Ipv6Addr) {
        self.changed |= self.graph.remove(node);
        self.suspicions.remove(&node);
    }

    /// Forgets link states that have ended; `now` is seconds since 1970.
    pub fn expire(&mut self, now: u64) {
        self.changed |= self.graph.expire(now);
    }

    /// Traffic to a node over its present route gets no answer: another is
    /// taken, if there is one, by the next [`Router::recompute`].
    pub fn suspect(&mut self, to: Ipv6Addr, now: Instant) {
        let Some(route) = self.routes.get(&to) else { return };
        let relays = route.relays.clone();
        let known = self.suspicions.entry(to).or_default();
        known.retain(|s| now < s.until + FORGIVEN);
        self.changed = true;
        match known.iter_mut().find(|s| s.relays == relays) {
            Some(suspicion) => {
                suspicion.times += 1;
                let wait = SUSPICION.saturating_mul(1 << (suspicion.times - 1).min(8));
                suspicion.until = now + wait.min(SUSPICION_MOST);
            }
            None => {
                // A bound against a destination that never answers.
                if known.len() >= 16 {
                    known.remove(0);
                }
                known.push(Suspicion { relays, until: now + SUSPICION, times: 1 });
            }
        }
    }

    /// The present routes by destination.
    pub fn routes(&self) -> &BTreeMap<Ipv6Addr, Route> {
        &self.routes
    }

    /// True when something changed since the last [`Router::recompute`].
    pub fn is_stale(&self) -> bool {
        self.changed
    }

    /// Computes all routes afresh. True when any changed its relays.
    pub fn recompute(&mut self, now: Instant) -> bool {
        self.changed = false;
        let all = search(&self.graph, Without::default(), None);
        let mut routes = BTreeMap::new();
        for to in self.graph.numbers().filter(|to| *to != OWN) {
            let direct = self.graph.edge(OWN, to).is_some();
            let way = if direct {
                let without = Without { direct: Some(to), relays: &[] };
                search(&self.graph, without, Some(to)).way(&self.graph, to)
            } else {
                all.way(&self.graph, to)
            };
            let Some(way) = way else { continue };
            let address = self.graph.address(to);
            let cheapest = self.route(way);
            if let Some((route, _)) = self.choose(address, to, cheapest, now) {
                routes.insert(address, route);
            }
        }
        let differ = routes.len() != self.routes.len()
            || routes
                .iter()
                .zip(&self.routes)
                .any(|(a, b)| (a.0, &a.1.relays) != (b.0, &b.1.relays));
        self.routes = routes;
        differ
    }

    /// The routes to one node and why they are or are not in use.
    pub fn explain(&self, to: Ipv6Addr, now: Instant) -> Explanation {
        let mut explanation = Explanation {
            chosen: None,
            others: Vec::new(),
            unwilling: Vec::new(),
            links: self.graph.said(to).map(|said| said.links.len()),
        };
        let Some(number) = self.graph.number(to).filter(|number| *number != OWN) else {
            return explanation;
        };
        explanation.unwilling = self
            .graph
            .edges(number)
            .iter()
            .filter(|edge| edge.to != OWN && self.graph.relay_cost(edge.to).is_none())
            .map(|edge| self.graph.address(edge.to))
            .collect();
        // Each further search does without the relays found so far.
        let mut used: Vec<u32> = Vec::new();
        let mut found: Vec<Route> = Vec::new();
        while found.len() <= ALTERNATIVES {
            let Some(way) = self.detour(number, &used) else { break };
            used.extend(&way.relays);
            found.push(self.route(way));
        }
        let Some(cheapest) = found.first().cloned() else { return explanation };
        let Some((chosen, why)) = self.choose(to, number, cheapest, now) else {
            return explanation;
        };
        let others = found.into_iter().filter(|route| route.relays != chosen.relays);
        explanation.others = others
            .map(|route| {
                let why = match self.suspicion(to, &route.relays, now) {
                    Some(left) => WhyNot::Suspect { left },
                    None if route.cost < chosen.cost => WhyNot::NotEnoughBetter,
                    None => WhyNot::Dearer,
                };
                (route, why)
            })
            .collect();
        let why = if explanation.others.is_empty() { Why::Only } else { why };
        explanation.chosen = Some((chosen, why));
        explanation
    }

    fn route(&self, way: search::Way) -> Route {
        Route {
            relays: way.relays.iter().map(|relay| self.graph.address(*relay)).collect(),
            cost: way.cost,
            rtt: way.metric.rtt,
            loss: way.metric.loss,
        }
    }

    fn detour(&self, to: u32, relays: &[u32]) -> Option<search::Way> {
        let without = Without { relays, direct: Some(to) };
        search(&self.graph, without, Some(to)).way(&self.graph, to)
    }

    /// How long a route to `to` is still suspect.
    fn suspicion(&self, to: Ipv6Addr, relays: &[Ipv6Addr], now: Instant) -> Option<Duration> {
        let known = self.suspicions.get(&to)?;
        let suspicion = known.iter().find(|s| s.relays == relays && s.until > now)?;
        Some(suspicion.until - now)
    }

    /// The route as it would be measured now, if it still works.
    fn again(&self, route: &Route, to: u32) -> Option<Route> {
        let relays: Option<Vec<u32>> =
            route.relays.iter().map(|relay| self.graph.number(*relay)).collect();
        let (cost, metric) = measure(&self.graph, &relays?, to)?;
        Some(Route { cost, rtt: metric.rtt, loss: metric.loss, ..route.clone() })
    }

    /// Between the cheapest route, the present one, and those that are not
    /// suspect.
    fn choose(
        &self,
        address: Ipv6Addr,
        to: u32,
        cheapest: Route,
        now: Instant,
    ) -> Option<(Route, Why)> {
        let present = self.routes.get(&address).and_then(|route| self.again(route, to));
        let trusted = |route: &Route| self.suspicion(address, &route.relays, now).is_none();
        let (best, why) = if trusted(&cheapest) {
            (cheapest, Why::Cheapest)
        } else {
            // The relays of what is suspect, all together: one of them is to
            // blame, and nobody knows which.
            let known = self.suspicions.get(&address)?;
            let avoid: Vec<u32> = known
                .iter()
                .filter(|s| s.until > now)
                .flat_map(|s| s.relays.iter().filter_map(|relay| self.graph.number(*relay)))
                .collect();
            match self.detour(to, &avoid) {
                Some(way) => (self.route(way), Why::CheapestSuspect),
                None => (cheapest, Why::AllSuspect),
            }
        };
        match present {
            Some(present) if present.relays != best.relays && trusted(&present) => {
                let enough = f64::from(present.cost) * KEEP > f64::from(best.cost)
                    && present.cost.saturating_sub(best.cost) >= KEEP_US;
                let cheapest = best.cost;
                Some(if enough { (best, why) } else { (present, Why::Kept { cheapest }) })
            }
            _ => Some((best, why)),
        }
    }
}
