//! Whole paths from what is allowed at each position.
//!
//! First by chance, weighted; where chance meets only dead ends, by looking at
//! everything, so that a path that exists is found. Nodes that conflict with the
//! others in the same way are alike for that, so few of each sort are tried.

use std::collections::HashMap;

use super::candidate::Candidate;
use super::constraints::Constraints;
use super::draw::Draws;
use super::filter::{Rule, network};
use super::pool::Pool;

/// Chances that a path is put together by before everything is looked at.
const ATTEMPTS: usize = 16;
/// Steps of a search through everything before it is given up: far more than
/// any network of 5,000 nodes was found to need, but a file that somebody made
/// up must not keep whoever checks it busy for ever.
const STEPS: u32 = 4_000_000;

/// What a node may not share with another of its path. Groups with one member
/// are left out: nobody can share them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
struct Ties {
    family: Option<u32>,
    networks: Vec<u64>,
    country: Option<[u8; 2]>,
}

/// Which nodes do not go together.
#[derive(Debug)]
pub(super) struct Conflicts(Vec<Ties>);

impl Conflicts {
    /// `lifted`: a rule to leave out, to see what it costs.
    pub(super) fn new(
        candidates: &[Candidate],
        usable: impl Iterator<Item = usize>,
        constraints: &Constraints,
        lifted: Option<Rule>,
    ) -> Self {
        let mut ties = vec![Ties::default(); candidates.len()];
        let mut families: HashMap<&str, (u32, u32)> = HashMap::new();
        let mut networks: HashMap<u64, u32> = HashMap::new();
        let usable: Vec<usize> = usable.collect();
        for at in &usable {
            let (node, own) = (&candidates[*at], &mut ties[*at]);
            if lifted != Some(Rule::SameFamily)
                && let Some(family) = &node.family
            {
                let number = families.len() as u32;
                let entry = families.entry(family.as_str()).or_insert((number, 0));
                entry.1 += 1;
                own.family = Some(entry.0);
            }
            if lifted != Some(Rule::SameNetwork) {
                own.networks = node.addresses.iter().filter_map(|a| network(*a)).collect();
                own.networks.sort_unstable();
                own.networks.dedup();
                for net in &own.networks {
                    *networks.entry(*net).or_insert(0) += 1;
                }
            }
            if lifted != Some(Rule::SameCountry) && constraints.distinct_countries {
                own.country = node.place.as_ref().map(|place| {
                    let code = place.country.code().as_bytes();
                    [code[0], code[1]]
                });
            }
        }
        let mut sizes = vec![0; families.len()];
        for (number, size) in families.values() {
            sizes[*number as usize] = *size;
        }
        for at in &usable {
            let own = &mut ties[*at];
            own.family = own.family.filter(|family| sizes[*family as usize] > 1);
            own.networks.retain(|net| networks[net] > 1);
        }
        Self(ties)
    }

    /// True when two nodes may be of one path.
    pub(super) fn fit(&self, a: usize, b: usize) -> bool {
        let (one, two) = (&self.0[a], &self.0[b]);
        a != b
            && (one.family.is_none() || one.family != two.family)
            && (one.country.is_none() || one.country != two.country)
            && !one.networks.iter().any(|net| two.networks.contains(net))
    }

    fn fits_all(&self, node: usize, path: &[usize]) -> bool {
        path.iter().all(|other| self.fit(node, *other))
    }

    /// Of each sort of node as many as a path could hold.
    fn few(&self, members: &[usize]) -> Vec<usize> {
        let mut seen: HashMap<&Ties, usize> = HashMap::new();
        members
            .iter()
            .copied()
            .filter(|at| {
                let count = seen.entry(&self.0[*at]).or_insert(0);
                *count += 1;
                *count <= usize::from(super::constraints::MAX_HOPS)
            })
            .collect()
    }
}

/// What is allowed at each position.
#[derive(Debug, Clone, Default)]
pub(super) struct Positions {
    pub(super) entry: Pool,
    pub(super) relay: Pool,
    pub(super) exit: Pool,
}

impl Positions {
    /// The pools in the order in which hops are found: what is scarce first.
    fn order(&self, hops: u8) -> Vec<&Pool> {
        let mut order = vec![&self.exit];
        if hops >= 2 {
            order.push(&self.entry);
        }
        order.extend((2..hops).map(|_| &self.relay));
        order
    }
}

/// From the order of finding (exit, entry, relays) to that of the path.
fn in_path_order(found: &[usize]) -> Vec<usize> {
    match found {
        [exit] => vec![*exit],
        [exit, entry, relays @ ..] => {
            let mut path = vec![*entry];
            path.extend_from_slice(relays);
            path.push(*exit);
            path
        }
        [] => Vec::new(),
    }
}

/// One path by chance; `None` when chance met dead ends only.
pub(super) fn by_chance(
    positions: &Positions,
    hops: u8,
    conflicts: &Conflicts,
    draws: &mut Draws,
) -> Option<Vec<usize>> {
    let order = positions.order(hops);
    'attempt: for _ in 0..ATTEMPTS {
        let mut found: Vec<usize> = Vec::with_capacity(order.len());
        for pool in &order {
            match pool.draw(draws, |node| conflicts.fits_all(node, &found)) {
                Some(node) => found.push(node),
                // Nothing to begin with: no attempt will find it.
                None if found.is_empty() => return None,
                None => continue 'attempt,
            }
        }
        return Some(in_path_order(&found));
    }
    None
}

/// A path if there is any, as far as [`STEPS`] go.
pub(super) fn exhaustively(
    positions: &Positions,
    hops: u8,
    conflicts: &Conflicts,
) -> Option<Vec<usize>> {
    let order: Vec<Vec<usize>> =
        positions.order(hops).into_iter().map(|pool| conflicts.few(pool.members())).collect();
    let mut found = Vec::with_capacity(order.len());
    let mut steps = STEPS;
    deeper(&order, conflicts, &mut found, &mut steps).then(|| in_path_order(&found))
}

fn deeper(
    order: &[Vec<usize>],
    conflicts: &Conflicts,
    found: &mut Vec<usize>,
    steps: &mut u32,
) -> bool {
    let Some(pool) = order.get(found.len()) else { return true };
    for node in pool {
        let Some(left) = steps.checked_sub(1) else { return false };
        *steps = left;
        if conflicts.fits_all(*node, found) {
            found.push(*node);
            if deeper(order, conflicts, found, steps) {
                return true;
            }
            found.pop();
        }
    }
    false
}
