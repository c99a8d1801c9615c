//! Whom a node keeps a connection to for the sake of the network.
//!
//! In: our id, all members, who does not answer. Out: who is wanted. In small
//! networks everybody; in large ones some that follow on the ring of ids, which
//! keeps the graph in one piece, and some at random, which keeps it short and
//! joins what a partition cut. Invariants: the choice depends on the two ids
//! only, so a member that comes or goes changes few other choices; who does not
//! answer is replaced at once and still tried from time to time, so that two
//! halves of a network that could not reach each other find together again; the
//! number of connections wanted does not grow with the network. Deliberately not
//! here: when to dial, and connections wanted for traffic.

use std::collections::BTreeSet;

use warren_types::NodeId;

/// Up to this many other members everybody connects to everybody.
pub const FULL_MESH: usize = 32;
/// Above it: wanted members that follow on the ring of ids.
pub const RING: usize = 4;
/// And wanted members anywhere.
pub const FAR: usize = 4;
/// Most members that do not answer and are still tried.
pub const RETRIED: usize = 8;

/// Whom to be connected to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Choice {
    /// Members that answer, or have not been tried.
    pub links: BTreeSet<NodeId>,
    /// Members that would be among them if they answered.
    pub retry: BTreeSet<NodeId>,
}

impl Choice {
    /// Everybody to be dialed.
    pub fn all(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.links.union(&self.retry).copied()
    }

    /// True for members to be dialed.
    pub fn contains(&self, node: NodeId) -> bool {
        self.links.contains(&node) || self.retry.contains(&node)
    }
}

/// Chooses among `members`, in the order of ids and without `own`. `dead`: does
/// not answer at present. Takes time in proportion to the number of members.
pub fn choose(own: NodeId, members: &[NodeId], dead: impl Fn(NodeId) -> bool) -> Choice {
    let mut choice = Choice::default();
    if members.len() <= FULL_MESH {
        choice.links.extend(members);
        return choice;
    }
    let start = members.partition_point(|id| *id < own);
    let ring = members[start..].iter().chain(&members[..start]).copied();
    take(&mut choice, ring, RING, RETRIED / 2, &dead);

    // The smallest by a hash of both ids, as many as may be needed.
    let mut far: Vec<(u64, NodeId)> = members.iter().map(|id| (affinity(own, *id), *id)).collect();
    let some = far.len().min(8 * (RING + FAR));
    far.select_nth_unstable(some - 1);
    far[..some].sort_unstable();
    let enough = far[..some].iter().filter(|(_, id)| !dead(*id)).count() >= FAR + RING;
    if !enough {
        far.sort_unstable();
    }
    take(&mut choice, far.into_iter().map(|(_, id)| id), FAR, RETRIED / 2, &dead);
    choice
}

/// Takes the first `live` that are not dead and not chosen yet, and the first
/// `retried` of the dead before them.
fn take(
    choice: &mut Choice,
    candidates: impl Iterator<Item = NodeId>,
    mut live: usize,
    mut retried: usize,
    dead: &impl Fn(NodeId) -> bool,
) {
    for id in candidates {
        if live == 0 {
            break;
        }
        if dead(id) {
            if retried > 0 && choice.retry.insert(id) {
                retried -= 1;
            }
        } else if choice.links.insert(id) {
            live -= 1;
        }
    }
}

/// A number for a pair of ids, the same on both sides. Keys are random, so a
/// cheap mix will do; who makes keys to be chosen often gets more connections
/// and nothing else.
fn affinity(a: NodeId, b: NodeId) -> u64 {
    let word = |id: &NodeId| {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&id.0[..8]);
        u64::from_be_bytes(bytes)
    };
    let (low, high) = (a.min(b), a.max(b));
    let mixed = word(&low).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ word(&high).rotate_left(29);
    let mixed = (mixed ^ (mixed >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93);
    mixed ^ (mixed >> 32)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn id(n: u32) -> NodeId {
        let mut bytes = [0; 32];
        // Spread over the ring, as keys are.
        bytes[..8]
            .copy_from_slice(&(u64::from(n).wrapping_mul(0x9e37_79b9_7f4a_7c15)).to_be_bytes());
        NodeId(bytes)
    }

    fn others(own: NodeId, n: u32) -> Vec<NodeId> {
        let mut all: Vec<_> = (0..n).map(id).filter(|other| *other != own).collect();
        all.sort();
        all
    }

    /// Members reached from the first over wanted connections.
    fn reached(choices: &BTreeMap<NodeId, Choice>) -> (usize, usize) {
        let mut edges: BTreeMap<NodeId, Vec<NodeId>> = BTreeMap::new();
        for (node, choice) in choices {
            for other in choice.links.iter().filter(|other| choices.contains_key(other)) {
                edges.entry(*node).or_default().push(*other);
                edges.entry(*other).or_default().push(*node);
            }
        }
        let first = *choices.keys().next().unwrap();
        let (mut seen, mut front, mut rounds) = (BTreeSet::from([first]), vec![first], 0);
        while !front.is_empty() {
            rounds += 1;
            let next: Vec<_> =
                front.iter().flat_map(|n| edges.get(n).into_iter().flatten().copied()).collect();
            front = next.into_iter().filter(|n| seen.insert(*n)).collect();
        }
        (seen.len(), rounds)
    }

    #[test]
    fn small_networks_are_full_and_large_ones_have_few_links() {
        let own = id(7);
        assert_eq!(choose(own, &others(own, 33), |_| false).links.len(), 32);
        let choice = choose(own, &others(own, 2000), |_| false);
        assert_eq!(choice.links.len(), RING + FAR);
        assert!(choice.retry.is_empty());
    }

    #[test]
    fn the_graph_is_connected_and_short_also_with_a_fifth_dead() {
        let n = 2000;
        let dead = |node: NodeId| node.0[3].is_multiple_of(5);
        for who in [(|_| false) as fn(NodeId) -> bool, dead] {
            let choices: BTreeMap<_, _> = (0..n)
                .map(id)
                .filter(|own| !who(*own))
                .map(|own| (own, choose(own, &others(own, n), who)))
                .collect();
            let (seen, rounds) = reached(&choices);
            assert_eq!(seen, choices.len());
            assert!(rounds <= 8, "{rounds}");
            assert!(choices.values().all(|c| c.links.len() == RING + FAR));
        }
    }

    #[test]
    fn one_member_more_changes_few_choices_and_a_dead_one_is_replaced() {
        let (before, after) = (others(id(0), 1000), others(id(0), 1001));
        let changed = (1..1000)
            .filter(|n| {
                let own = id(*n);
                let without =
                    |all: &[NodeId]| all.iter().copied().filter(|o| *o != own).collect::<Vec<_>>();
                choose(own, &without(&before), |_| false)
                    != choose(own, &without(&after), |_| false)
            })
            .count();
        assert!(changed < 30, "{changed}");
        let own = id(5);
        let all = others(own, 1000);
        let choice = choose(own, &all, |_| false);
        let gone = *choice.links.first().unwrap();
        let again = choose(own, &all, |node| node == gone);
        assert_eq!(again.links.len(), RING + FAR);
        assert!(!again.links.contains(&gone) && again.retry.contains(&gone));
        let kept = choice.links.intersection(&again.links).count();
        assert_eq!(kept, RING + FAR - 1);
    }

    #[test]
    fn when_nearly_all_are_dead_the_living_are_found() {
        let own = id(1);
        let all = others(own, 1000);
        let alive: BTreeSet<_> = all.iter().copied().step_by(200).collect();
        let choice = choose(own, &all, |node| !alive.contains(&node));
        assert_eq!(choice.links, alive);
        assert_eq!(choice.retry.len(), RETRIED);
    }
}
