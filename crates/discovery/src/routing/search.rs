//! The search for the cheapest way with a bounded number of relays.
//!
//! In: the graph, which relays to avoid, and which link of ours to leave out.
//! Out: for every node the cheapest way there. It relaxes layer by layer
//! (Bellman-Ford), since a bound on the hops is what Dijkstra's search cannot
//! keep; of each layer only nodes that became cheaper are looked at again, so
//! the work is at most the number of links times [`MAX_RELAYS`] + 1. Invariant:
//! ways have no loops, because every link costs something.

use std::time::Duration;

use super::graph::{Edge, Graph, LinkMetric, OWN};

/// Most relays on one way: the limit of the relay frame.
pub const MAX_RELAYS: usize = 4;

const NONE: u32 = u32::MAX;

/// What is left out of a search.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Without<'a> {
    /// These do not relay.
    pub(super) relays: &'a [u32],
    /// Our own link to this node.
    pub(super) direct: Option<u32>,
}

/// One more hop than the layer before.
#[derive(Debug)]
struct Layer {
    cost: Vec<u32>,
    /// The last relay; [`NONE`] where the layer before is as good.
    parent: Vec<u32>,
}

/// All cheapest ways from this node.
#[derive(Debug)]
pub(super) struct Found {
    layers: Vec<Layer>,
}

/// One way: its relays in order, and what it costs.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Way {
    pub(super) relays: Vec<u32>,
    pub(super) cost: u32,
    pub(super) metric: LinkMetric,
}

/// Searches from this node; with a `target`, no longer than one hop beyond the
/// first that reaches it.
pub(super) fn search(graph: &Graph, without: Without<'_>, target: Option<u32>) -> Found {
    let nodes = graph.len();
    let mut first = Layer { cost: vec![NONE; nodes], parent: vec![NONE; nodes] };
    first.cost[OWN as usize] = 0;
    let mut layers = vec![first];
    let mut frontier = vec![OWN];
    let mut rest = MAX_RELAYS + 1;
    while rest > 0 && !frontier.is_empty() {
        rest -= 1;
        let before = &layers[layers.len() - 1];
        let mut layer = Layer { cost: before.cost.clone(), parent: vec![NONE; nodes] };
        let mut reached = Vec::new();
        for from in frontier {
            let through = match from {
                OWN => 0,
                relay if without.relays.contains(&relay) => continue,
                relay => match graph.relay_cost(relay) {
                    Some(cost) => cost,
                    None => continue,
                },
            };
            let base = before.cost[from as usize].saturating_add(through);
            for Edge { to, cost, .. } in graph.edges(from) {
                if from == OWN && without.direct == Some(*to) {
                    continue;
                }
                let (at, cost) = (*to as usize, base.saturating_add((*cost).max(1)));
                if cost < layer.cost[at] {
                    if layer.parent[at] == NONE {
                        reached.push(*to);
                    }
                    layer.cost[at] = cost;
                    layer.parent[at] = from;
                }
            }
        }
        if target.is_some_and(|target| before.cost[target as usize] != NONE) {
            rest = 0;
        }
        layers.push(layer);
        frontier = reached;
    }
    Found { layers }
}

impl Found {
    /// The cheapest way to a node.
    pub(super) fn way(&self, graph: &Graph, to: u32) -> Option<Way> {
        let mut layer = self.layers.len() - 1;
        let cost = *self.layers[layer].cost.get(to as usize)?;
        if cost == NONE || to == OWN {
            return None;
        }
        let mut relays = Vec::new();
        let mut at = to;
        loop {
            while self.layers[layer].parent[at as usize] == NONE {
                layer = layer.checked_sub(1)?;
            }
            at = self.layers[layer].parent[at as usize];
            layer = layer.checked_sub(1)?;
            if at == OWN {
                break;
            }
            relays.push(at);
        }
        relays.reverse();
        let (_, metric) = measure(graph, &relays, to)?;
        Some(Way { relays, cost, metric })
    }
}

/// Cost and figures of a way as the graph is now; `None` when a link is gone or
/// a relay does not relay any more.
pub(super) fn measure(graph: &Graph, relays: &[u32], to: u32) -> Option<(u32, LinkMetric)> {
    let (mut at, mut cost) = (OWN, 0_u32);
    let (mut rtt, mut kept) = (Duration::ZERO, 1.0_f32);
    for next in relays.iter().copied().chain([to]) {
        if at != OWN {
            cost = cost.saturating_add(graph.relay_cost(at)?);
        }
        let edge = graph.edge(at, next)?;
        cost = cost.saturating_add(edge.cost.max(1));
        rtt = rtt.saturating_add(edge.metric.rtt);
        kept *= 1.0 - edge.metric.loss.clamp(0.0, 1.0);
        at = next;
    }
    Some((cost, LinkMetric { rtt, loss: 1.0 - kept }))
}
