//! The graph of links, made of what nodes say of their own links.
//!
//! In: the link states of nodes, and our own links. Out: for each node the
//! links that may be used, with their cost. Invariants: a link is used only
//! when both ends report it, with the worse of their figures (so a node that
//! claims links it does not have, or better ones, attracts nothing), or when
//! the other end has said nothing yet or could not name all of its links, then
//! at a price; of our own links only we are asked. Work per change is
//! proportional to the links of the node that changed. Deliberately not here:
//! signatures, clocks, and the search.

use std::collections::HashMap;
use std::net::Ipv6Addr;
use std::time::Duration;

/// Most links of one link state: more are not taken in.
pub const MAX_LINKS: usize = 32;

/// Price of a lost packet, as a delay: at 1 % loss a path counts 20 ms longer.
/// TCP's rate falls with the root of the loss, so a little loss hurts much.
const LOSS_US: f64 = 2_000_000.0;
/// Price of each relay: its queue, its cryptography, one more that can fail.
const HOP_US: u32 = 2_000;
/// Price of a relay under full load; grows with the square of the load.
const LOAD_US: u32 = 100_000;
/// Price of a link that only one end reports.
const UNCONFIRMED_US: u32 = 50_000;
/// Longest round trip that is believed.
const MAX_RTT: Duration = Duration::from_secs(60);

/// What is known of a link.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LinkMetric {
    /// Round trip inside the tunnel.
    pub rtt: Duration,
    /// Share of packets lost, 0 to 1.
    pub loss: f32,
}

/// What one node says of its links.
#[derive(Debug, Clone, PartialEq)]
pub struct NodeLinks {
    /// Grows with every link state of the node.
    pub sequence: u64,
    /// Seconds since 1970 from which on it does not count.
    pub expires: u64,
    /// It passes on packets of others.
    pub willing: bool,
    /// How busy it is, 0 to 255.
    pub load: u8,
    /// It has more links than are named.
    pub partial: bool,
    /// Its links: the other end's overlay address, and what it measured.
    pub links: Vec<(Ipv6Addr, LinkMetric)>,
}

/// A link that may be used.
#[derive(Debug, Clone, Copy)]
pub(super) struct Edge {
    pub(super) to: u32,
    pub(super) cost: u32,
    pub(super) metric: LinkMetric,
}

#[derive(Debug)]
struct Slot {
    address: Ipv6Addr,
    said: Option<NodeLinks>,
    /// The same links by number.
    claims: Vec<(u32, LinkMetric)>,
    /// Who claims a link to this node.
    claimed_by: Vec<u32>,
    edges: Vec<Edge>,
}

/// All nodes and links. Node 0 is this node.
#[derive(Debug)]
pub(super) struct Graph {
    slots: Vec<Slot>,
    free: Vec<u32>,
    index: HashMap<Ipv6Addr, u32>,
}

/// This node.
pub(super) const OWN: u32 = 0;

fn microseconds(duration: Duration) -> u32 {
    u32::try_from(duration.min(MAX_RTT).as_micros()).unwrap_or(u32::MAX)
}

impl LinkMetric {
    /// What the link costs a path, microseconds: its round trip, and the price
    /// of what it loses.
    pub fn cost(self) -> u32 {
        let loss = f64::from(self.loss.clamp(0.0, 1.0)) * LOSS_US;
        microseconds(self.rtt).saturating_add(loss as u32)
    }
}

fn worse(a: LinkMetric, b: LinkMetric) -> LinkMetric {
    LinkMetric { rtt: a.rtt.max(b.rtt), loss: a.loss.max(b.loss) }
}

impl Graph {
    pub(super) fn new(own: Ipv6Addr) -> Self {
        let mut graph = Self { slots: Vec::new(), free: Vec::new(), index: HashMap::new() };
        graph.intern(own);
        graph
    }

    /// Numbers in use are below this.
    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }

    pub(super) fn number(&self, address: Ipv6Addr) -> Option<u32> {
        self.index.get(&address).copied()
    }

    pub(super) fn address(&self, number: u32) -> Ipv6Addr {
        self.slots[number as usize].address
    }

    pub(super) fn edges(&self, number: u32) -> &[Edge] {
        &self.slots[number as usize].edges
    }

    pub(super) fn edge(&self, from: u32, to: u32) -> Option<&Edge> {
        self.edges(from).iter().find(|edge| edge.to == to)
    }

    /// The price of passing through a node; `None` when it does not relay.
    pub(super) fn relay_cost(&self, number: u32) -> Option<u32> {
        let said = self.slots[number as usize].said.as_ref().filter(|said| said.willing)?;
        let load = f64::from(said.load) / 255.0;
        Some(HOP_US + (load * load * f64::from(LOAD_US)) as u32)
    }

    pub(super) fn said(&self, address: Ipv6Addr) -> Option<&NodeLinks> {
        self.slots[self.number(address)? as usize].said.as_ref()
    }

    /// Numbers of all nodes that are named by anybody.
    pub(super) fn numbers(&self) -> impl Iterator<Item = u32> + '_ {
        self.index.values().copied()
    }

    /// Takes in what a node says. False when it is not newer.
    pub(super) fn apply(&mut self, node: Ipv6Addr, mut said: NodeLinks) -> bool {
        let number = self.intern(node);
        let slot = &self.slots[number as usize];
        if number != OWN && slot.said.as_ref().is_some_and(|old| old.sequence >= said.sequence) {
            return false;
        }
        if number != OWN && said.links.len() > MAX_LINKS {
            said.links.truncate(MAX_LINKS);
            said.partial = true;
        }
        self.replace(number, Some(said));
        true
    }

    /// Forgets what a node said.
    pub(super) fn remove(&mut self, node: Ipv6Addr) -> bool {
        match self.number(node).filter(|number| *number != OWN) {
            Some(number) if self.slots[number as usize].said.is_some() => {
                self.replace(number, None);
                true
            }
            _ => false,
        }
    }

    /// Forgets what has ended.
    pub(super) fn expire(&mut self, now: u64) -> bool {
        let ended: Vec<Ipv6Addr> = self
            .slots
            .iter()
            .skip(1)
            .filter(|slot| slot.said.as_ref().is_some_and(|said| said.expires <= now))
            .map(|slot| slot.address)
            .collect();
        ended.into_iter().filter(|node| self.remove(*node)).count() > 0
    }

    fn intern(&mut self, address: Ipv6Addr) -> u32 {
        if let Some(number) = self.index.get(&address) {
            return *number;
        }
        let slot = Slot {
            address,
            said: None,
            claims: Vec::new(),
            claimed_by: Vec::new(),
            edges: Vec::new(),
        };
        let number = match self.free.pop() {
            Some(number) => {
                self.slots[number as usize] = slot;
                number
            }
            None => {
                self.slots.push(slot);
                u32::try_from(self.slots.len() - 1).unwrap_or(u32::MAX)
            }
        };
        self.index.insert(address, number);
        number
    }

    fn replace(&mut self, number: u32, said: Option<NodeLinks>) {
        let mut claims: Vec<(u32, LinkMetric)> = Vec::new();
        for (address, metric) in said.iter().flat_map(|said| said.links.iter()) {
            let other = self.intern(*address);
            if other != number && !claims.iter().any(|(known, _)| *known == other) {
                claims.push((other, *metric));
            }
        }
        let slot = &mut self.slots[number as usize];
        slot.said = said;
        let before = std::mem::replace(&mut slot.claims, claims);
        let now: Vec<u32> = slot.claims.iter().map(|(other, _)| *other).collect();
        for (other, _) in &before {
            self.slots[*other as usize].claimed_by.retain(|by| by != &number);
        }
        for other in &now {
            self.slots[*other as usize].claimed_by.push(number);
        }
        // Whoever claims a link to this node is touched too: that it says
        // nothing more, or something else now, decides about their claim.
        let mut touched: Vec<u32> = before.iter().map(|(other, _)| *other).chain(now).collect();
        touched.extend(self.slots[number as usize].claimed_by.iter().copied());
        touched.sort_unstable();
        touched.dedup();
        for other in &touched {
            self.connect(number, *other);
        }
        for other in touched.into_iter().chain([number]) {
            self.release(other);
        }
    }

    /// Drops a node that nobody names any more.
    fn release(&mut self, number: u32) {
        let slot = &self.slots[number as usize];
        if number != OWN
            && slot.said.is_none()
            && slot.claimed_by.is_empty()
            && self.index.remove(&slot.address).is_some()
        {
            self.free.push(number);
        }
    }

    fn claim(&self, from: u32, to: u32) -> Option<LinkMetric> {
        self.slots[from as usize].claims.iter().find(|(other, _)| *other == to).map(|(_, m)| *m)
    }

    /// Computes the link between two nodes afresh.
    fn connect(&mut self, a: u32, b: u32) {
        let open =
            |number: u32| self.slots[number as usize].said.as_ref().is_none_or(|said| said.partial);
        let link = match (self.claim(a, b), self.claim(b, a)) {
            (own, _) if a == OWN => own.map(|metric| (metric, 0)),
            (_, own) if b == OWN => own.map(|metric| (metric, 0)),
            (Some(one), Some(other)) => Some((worse(one, other), 0)),
            (Some(metric), None) if open(b) => Some((metric, UNCONFIRMED_US)),
            (None, Some(metric)) if open(a) => Some((metric, UNCONFIRMED_US)),
            _ => None,
        };
        for (from, to) in [(a, b), (b, a)] {
            let edges = &mut self.slots[from as usize].edges;
            edges.retain(|edge| edge.to != to);
            if let Some((metric, extra)) = link {
                let cost = metric.cost().saturating_add(extra);
                edges.push(Edge { to, cost, metric });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(n: u16) -> Ipv6Addr {
        Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, n)
    }

    fn said(sequence: u64, links: &[(u16, u64)]) -> NodeLinks {
        let metric = |ms| LinkMetric { rtt: Duration::from_millis(ms), loss: 0.0 };
        NodeLinks {
            sequence,
            expires: 100,
            willing: true,
            load: 0,
            partial: false,
            links: links.iter().map(|(to, ms)| (node(*to), metric(*ms))).collect(),
        }
    }

    fn cost(graph: &Graph, a: u16, b: u16) -> Option<u32> {
        let (a, b) = (graph.number(node(a))?, graph.number(node(b))?);
        let there = graph.edge(a, b).map(|edge| edge.cost);
        assert_eq!(there, graph.edge(b, a).map(|edge| edge.cost), "both directions");
        there
    }

    #[test]
    fn a_link_needs_both_ends_and_costs_what_the_worse_says() {
        let mut graph = Graph::new(node(0));
        assert!(graph.apply(node(1), said(1, &[(2, 10)])));
        assert_eq!(cost(&graph, 1, 2), Some(10_000 + UNCONFIRMED_US), "2 has said nothing yet");
        assert!(graph.apply(node(2), said(1, &[])));
        assert_eq!(cost(&graph, 1, 2), None, "2 denies it");
        assert!(graph.apply(node(2), said(2, &[(1, 30)])));
        assert_eq!(cost(&graph, 1, 2), Some(30_000));
        let mut full = said(3, &[]);
        full.partial = true;
        assert!(graph.apply(node(2), full));
        assert_eq!(cost(&graph, 1, 2), Some(10_000 + UNCONFIRMED_US), "2 cannot name all");
    }

    #[test]
    fn older_states_do_not_count_and_stale_ones_go() {
        let mut graph = Graph::new(node(0));
        assert!(graph.apply(node(1), said(5, &[(2, 10)])));
        assert!(graph.apply(node(2), said(5, &[(1, 10)])));
        assert!(!graph.apply(node(1), said(5, &[])));
        assert!(!graph.apply(node(1), said(4, &[])));
        assert!(!graph.expire(99));
        assert!(graph.expire(100));
        assert_eq!((graph.number(node(1)), graph.number(node(2))), (None, None), "and their slots");
        assert_eq!(graph.index.len(), 1);
    }

    #[test]
    fn nobody_but_us_speaks_of_our_links() {
        let mut graph = Graph::new(node(0));
        graph.apply(node(1), said(1, &[(0, 1)]));
        assert_eq!(cost(&graph, 0, 1), None);
        graph.apply(node(0), said(0, &[(1, 7)]));
        assert_eq!(cost(&graph, 0, 1), Some(7_000));
    }

    #[test]
    fn loss_and_load_cost() {
        let rtt = Duration::from_millis(10);
        assert_eq!(LinkMetric { rtt, loss: 0.01 }.cost() / 100, 299);
        let wild = LinkMetric { rtt: Duration::MAX, loss: f32::NAN };
        assert!(wild.cost() >= 60_000_000);
        let mut graph = Graph::new(node(0));
        let mut busy = said(1, &[(0, 1)]);
        busy.load = 255;
        graph.apply(node(1), busy);
        let one = graph.number(node(1)).unwrap();
        assert_eq!(graph.relay_cost(one), Some(HOP_US + LOAD_US));
        let mut no = said(2, &[(0, 1)]);
        no.willing = false;
        graph.apply(node(1), no);
        assert_eq!(graph.relay_cost(one), None);
    }

    #[test]
    fn a_node_that_names_too_many_is_cut() {
        let mut graph = Graph::new(node(0));
        let many: Vec<(u16, u64)> = (2..100).map(|n| (n, 1)).collect();
        graph.apply(node(1), said(1, &many));
        assert_eq!(graph.edges(graph.number(node(1)).unwrap()).len(), MAX_LINKS);
    }
}
