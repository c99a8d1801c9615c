//! Choosing nodes: what the directory and our measurements say of them, put
//! before the selection.

use std::time::Duration;

use warren_proto::link::relay::NodeSuffix;
use warren_proto::onion::client::{Hop, Purpose};
use warren_proto::selection::{
    Avoid, Choice, Constraints, ExitChoice, Input, Outcome, Seed, SelectionError, explain,
};
use warren_types::NodeId;

use super::super::candidates::OnionWorld;
use super::super::{Daemon, unix_now};
use crate::random::OsRandom;

/// The file of the pinned guards.
const GUARDS: &str = "guards.json";
/// How long a failure counts against a node.
const FAILURE: Duration = Duration::from_secs(600);
/// What is left of a node's reputation right after one.
const FAILED: f32 = 0.25;

impl Daemon {
    /// Nodes, ourselves, and what lies between; those that failed us lately have
    /// less of a name.
    fn world(&self) -> OnionWorld {
        let mut world = self.onion_world();
        for candidate in &mut world.candidates {
            let failed = self.onion.failures.get(&candidate.id).map(|at| at.elapsed());
            if let Some(since) = failed.filter(|since| *since < FAILURE) {
                let healed = since.as_secs_f32() / FAILURE.as_secs_f32();
                candidate.reputation *= FAILED + (1.0 - FAILED) * healed;
            }
        }
        world
    }

    /// Chooses by `constraints`; what went into it is kept when `keep`.
    fn select(&mut self, constraints: &Constraints, keep: bool) -> Result<Choice, SelectionError> {
        let OnionWorld { own, candidates, measurements } = self.world();
        let now = unix_now().as_secs();
        if self.onion.guards.maintain(&own, &candidates, now, &mut OsRandom)
            && let Err(error) = self.store.save_list(GUARDS, &self.onion.guards)
        {
            tracing::warn!(%error, "the guards were not stored");
        }
        let input = Input {
            own: &own,
            candidates: &candidates,
            measurements: &measurements,
            constraints,
            guards: (constraints.entry.is_none()).then_some(&self.onion.guards),
        };
        let explanation = explain(&input, Seed::generate(&mut OsRandom));
        let outcome = explanation.outcome.clone();
        if keep {
            self.onion.explanation = Some(explanation);
        }
        match outcome {
            Outcome::Chosen(choice) => Ok(choice),
            Outcome::Failed(error) => Err(error),
        }
    }

    /// Loads the guards that were pinned before.
    pub(super) fn load_guards(&mut self) {
        match self.store.list(GUARDS) {
            Ok(guards) => self.onion.guards = guards,
            Err(error) => tracing::warn!(%error, "the guards cannot be read; others are pinned"),
        }
    }

    /// Checks that there is a path at all.
    pub(super) fn try_select(&mut self) -> Result<Choice, SelectionError> {
        let constraints = self.onion.constraints.clone();
        self.select(&constraints, true)
    }

    /// A circuit wants nodes: rather none that `failed` or are `used` by another,
    /// and with `strict` none at all then.
    pub(super) fn choose_path(
        &mut self,
        purpose: Purpose,
        exit: Option<NodeSuffix>,
        failed: &[NodeSuffix],
        used: &[NodeSuffix],
        strict: bool,
    ) {
        let exit = exit.and_then(|exit| self.suffix_node(&exit));
        let ids = |nodes: &[NodeSuffix]| -> Vec<NodeId> {
            nodes.iter().filter_map(|node| self.suffix_node(node)).collect()
        };
        let (failed, used) = (ids(failed), ids(used));
        let wish = self.onion.constraints.clone();
        let fixed = matches!(wish.exit, ExitChoice::Node(_));
        if purpose == Purpose::Spare && fixed {
            // The user wants this exit and no other.
            return;
        }
        let half: Vec<NodeId> = used.iter().copied().filter(|id| self.is_middle(*id)).collect();
        // What is done without, step by step.
        let steps: Vec<Vec<NodeId>> = match purpose {
            _ if strict => vec![[&failed[..], &used].concat()],
            Purpose::Active => vec![failed, Vec::new()],
            Purpose::Spare => vec![[&failed[..], &used].concat(), failed],
            // The same entry again is better than nothing; what failed is not.
            Purpose::Standby if wish.hops > 1 => {
                vec![[&failed[..], &used].concat(), [failed, half].concat()]
            }
            Purpose::Standby => vec![[failed, used].concat()],
        };
        let active = purpose == Purpose::Active;
        let mut chosen = None;
        for soft in steps {
            let mut nodes = wish.avoid.nodes.clone();
            nodes.extend(soft.into_iter().filter(|id| Some(*id) != exit));
            let constraints = Constraints {
                exit: exit.map_or(wish.exit, ExitChoice::Node),
                avoid: Avoid { nodes, ..wish.avoid.clone() },
                ..wish.clone()
            };
            let choice = self.select(&constraints, active);
            let found = choice.is_ok();
            chosen = Some(choice);
            if found {
                break;
            }
        }
        let Some(chosen) = chosen else { return };
        let choice = match chosen {
            Ok(choice) => choice,
            Err(error) => {
                tracing::debug!(%error, ?purpose, "no path");
                if active {
                    self.onion.problem = Some(error.to_string());
                }
                return;
            }
        };
        let now = unix_now().as_secs();
        let hop = |id: NodeId| {
            let onion_key = self.mesh.view(id)?.onion()?.key_at(now)?.key.0;
            Some(Hop { node: self.suffix_of(id)?, onion_key })
        };
        let Some(path) = choice.hops.iter().map(|node| hop(node.id)).collect::<Option<Vec<_>>>()
        else {
            return;
        };
        let now_us = self.now_us();
        let around = super::Around { routes: self.onion.routes(), mesh: &self.mesh };
        if !self.onion.client.build(path, purpose, &around, now_us, &mut OsRandom) {
            tracing::debug!(?purpose, "the path could not be begun");
        }
    }

    /// True for a node between entry and exit of a circuit of ours.
    fn is_middle(&self, id: NodeId) -> bool {
        let node = self.suffix_of(id);
        self.onion.client.circuits(self.now_us()).iter().any(|circuit| {
            let hops = &circuit.hops;
            hops.iter().skip(1).take(hops.len().saturating_sub(2)).any(|hop| Some(hop.node) == node)
        })
    }
}
