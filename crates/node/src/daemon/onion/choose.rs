//! Choosing nodes: what the directory and our measurements say of them, put
//! before the selection.

use std::time::Duration;

use warren_proto::link::relay::NodeSuffix;
use warren_proto::onion::client::{CircuitView, Hop, Phase, Purpose};
use warren_proto::onion::compartment::Compartment;
use warren_proto::selection::{
    Avoid, Constraints, ExitChoice, Input, Seed, SelectionError, choose, explain,
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
    /// What a choice is made from: nodes, ourselves, and what lies between, the
    /// guards kept up. Those that failed us lately have less of a name.
    fn world(&mut self) -> OnionWorld {
        let mut world = self.onion_world();
        for candidate in &mut world.candidates {
            let failed = self.onion.failures.get(&candidate.id).map(|at| at.elapsed());
            if let Some(since) = failed.filter(|since| *since < FAILURE) {
                let healed = since.as_secs_f32() / FAILURE.as_secs_f32();
                candidate.reputation *= FAILED + (1.0 - FAILED) * healed;
            }
        }
        let now = unix_now().as_secs();
        if self.onion.guards.maintain(&world.own, &world.candidates, now, &mut OsRandom)
            && let Err(error) = self.store.save_list(GUARDS, &self.onion.guards)
        {
            tracing::warn!(%error, "the guards were not stored");
        }
        world
    }

    fn input<'a>(&'a self, world: &'a OnionWorld, constraints: &'a Constraints) -> Input<'a> {
        Input {
            own: &world.own,
            candidates: &world.candidates,
            measurements: &world.measurements,
            constraints,
            guards: (constraints.entry.is_none()).then_some(&self.onion.guards),
        }
    }

    /// Keeps what went into a choice.
    fn keep_choice(&mut self, world: &OnionWorld, constraints: &Constraints, seed: Seed) {
        self.onion.explanation = Some(explain(&self.input(world, constraints), seed));
    }

    /// Why there is no path, for people. Where nobody has a role that may only
    /// mean that nobody was heard of yet.
    pub(super) fn tell(&self, error: &SelectionError) -> String {
        let unheard = !self.mesh.members().any(|view| view.id() != self.id);
        match error {
            SelectionError::Empty { considered: 0, .. } if unheard => {
                "no other member is known yet: a node that has just started is still hearing of \
                 the others (`warren status` shows them); try again in a moment"
                    .to_owned()
            }
            error => error.to_string(),
        }
    }

    /// Loads the guards that were pinned before.
    pub(super) fn load_guards(&mut self) {
        match self.store.list(GUARDS) {
            Ok(guards) => self.onion.guards = guards,
            Err(error) => tracing::warn!(%error, "the guards cannot be read; others are pinned"),
        }
    }

    /// Checks that there is a path at all. Why there is none can be explained,
    /// unless there is a path in use: then that one's choice is.
    pub(super) fn try_select(&mut self, constraints: &Constraints) -> Result<(), SelectionError> {
        let (world, seed) = (self.world(), Seed::generate(&mut OsRandom));
        let chosen = choose(&self.input(&world, constraints), seed);
        if chosen.is_err() && !self.onion.client.is_on() {
            self.keep_choice(&world, constraints, seed);
        }
        chosen.map(drop)
    }

    /// A circuit wants nodes: rather none that `failed` or are `used` by another,
    /// and with `strict` none at all then.
    pub(super) fn choose_path(
        &mut self,
        compartment: Compartment,
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
        let own = self.between(|at, _| at == compartment);
        let half: Vec<NodeId> =
            used.iter().copied().filter(|id| own.middles.contains(id)).collect();
        // A spare circuit is not used, and may never be.
        let unused = |view: &CircuitView| {
            view.purpose == Purpose::Spare && matches!(view.phase, Phase::Building | Phase::Ready)
        };
        let others = self.between(|at, view| at != compartment && !unused(view));
        // What is done without, step by step.
        let mut steps: Vec<Vec<NodeId>> = match purpose {
            _ if strict => vec![[&failed[..], &used].concat()],
            Purpose::Active => vec![failed, Vec::new()],
            Purpose::Spare => vec![[&failed[..], &used].concat(), failed],
            // The same entry again is better than nothing; what failed is not.
            Purpose::Standby if wish.hops > 1 => {
                vec![[&failed[..], &used].concat(), [failed, half].concat()]
            }
            Purpose::Standby => vec![[failed, used].concat()],
        };
        // What other sessions use is done without first: they are to have little in
        // common but the guards.
        if !others.exits.is_empty() {
            let first = [&steps.first().cloned().unwrap_or_default()[..], &others.exits].concat();
            steps.insert(0, first.clone());
            steps.insert(0, [&first[..], &others.in_use].concat());
            steps.insert(0, [&first[..], &others.middles].concat());
        }
        let active = purpose == Purpose::Active;
        let keep = active && compartment == Compartment::DEFAULT;
        let world = self.world();
        let mut chosen = None;
        for soft in steps {
            let mut nodes = wish.avoid.nodes.clone();
            nodes.extend(soft.into_iter().filter(|id| Some(*id) != exit));
            let constraints = Constraints {
                exit: exit.map_or(wish.exit, ExitChoice::Node),
                avoid: Avoid { nodes, ..wish.avoid.clone() },
                ..wish.clone()
            };
            let seed = Seed::generate(&mut OsRandom);
            let choice = choose(&self.input(&world, &constraints), seed);
            let found = choice.is_ok();
            chosen = Some((choice, constraints, seed));
            if found {
                break;
            }
        }
        let Some((chosen, constraints, seed)) = chosen else { return };
        if keep {
            self.keep_choice(&world, &constraints, seed);
        }
        let choice = match chosen {
            Ok(choice) => choice,
            Err(error) => {
                tracing::debug!(%error, ?purpose, "no path");
                if active {
                    let problem = Some(self.tell(&error));
                    match self.onion.isolated.get_mut(&compartment) {
                        Some(session) => session.problem = problem,
                        None => self.onion.problem = problem,
                    }
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
        let client = self.onion.client_in(compartment);
        if !client.is_some_and(|one| one.build(path, purpose, &around, now_us, &mut OsRandom)) {
            tracing::debug!(?purpose, "the path could not be begun");
        }
    }

    /// The nodes behind the entries of some circuits of our sessions.
    fn between(&self, of: impl Fn(Compartment, &CircuitView) -> bool) -> Behind {
        let now_us = self.now_us();
        let mut behind = Behind::default();
        for (at, client) in self.onion.clients() {
            for view in client.circuits(now_us).iter().filter(|view| of(at, view)) {
                let mut hops = view.hops.iter().filter_map(|hop| self.suffix_node(&hop.node));
                let _entry = hops.next();
                let mut hops: Vec<NodeId> = hops.collect();
                behind.exits.extend(hops.pop());
                if view.purpose == Purpose::Active || view.phase == Phase::Active {
                    behind.in_use.extend(&hops);
                }
                behind.middles.extend(hops);
            }
        }
        behind
    }
}

/// Nodes of circuits, without the entries.
#[derive(Debug, Default)]
struct Behind {
    middles: Vec<NodeId>,
    /// Those of circuits that carry packets, or are about to.
    in_use: Vec<NodeId>,
    exits: Vec<NodeId>,
}
