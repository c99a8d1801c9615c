//! Worlds to choose in, and what must hold in every one of them.

mod guards;
mod paths;
mod properties;

use std::net::IpAddr;

use warren_types::{NodeId, Roles};

use super::*;
use crate::test_rng::TestRng;

/// A node that may be anything: all roles, its own network, up for ten days.
fn node(number: u16) -> Candidate {
    let mut id = [0; 32];
    id[..2].copy_from_slice(&number.to_be_bytes());
    id[31] = 1;
    let [high, low] = number.to_be_bytes();
    Candidate {
        id: NodeId(id),
        name: format!("n{number}").parse().unwrap(),
        roles: Roles::from_bits(7),
        place: Some("de-fra".parse().unwrap()),
        family: None,
        addresses: vec![IpAddr::from([20 + high, low, 0, 1])],
        bandwidth: Some("100mbit".parse().unwrap()),
        load: 0.0,
        uptime_s: 864_000,
        draining: false,
        exit_policy: None,
        reputation: 1.0,
        direct: None,
        has_key: true,
        unreachable: false,
        age_s: 60,
    }
}

fn nodes(count: u16) -> Vec<Candidate> {
    (0..count).map(node).collect()
}

fn own() -> Own {
    Own {
        id: NodeId([0xee; 32]),
        family: None,
        addresses: vec!["9.9.0.1".parse().unwrap()],
        place: Some("de-ber".parse().unwrap()),
    }
}

fn seed(number: u64) -> Seed {
    let mut bytes = [7; 32];
    bytes[..8].copy_from_slice(&number.to_le_bytes());
    Seed(bytes)
}

/// Everything a choice takes, owned.
#[derive(Debug)]
struct World {
    own: Own,
    candidates: Vec<Candidate>,
    measurements: Measurements,
    constraints: Constraints,
    guards: Option<GuardState>,
}

impl World {
    fn new(candidates: Vec<Candidate>) -> Self {
        Self {
            own: own(),
            candidates,
            measurements: Measurements::default(),
            constraints: Constraints::default(),
            guards: None,
        }
    }

    fn input(&self) -> Input<'_> {
        Input {
            own: &self.own,
            candidates: &self.candidates,
            measurements: &self.measurements,
            constraints: &self.constraints,
            guards: self.guards.as_ref(),
        }
    }

    fn choose(&self, number: u64) -> Result<Choice, SelectionError> {
        choose(&self.input(), seed(number))
    }

    fn get(&self, id: NodeId) -> &Candidate {
        self.candidates.iter().find(|node| node.id == id).unwrap()
    }
}

fn names(hops: &[Hop]) -> Vec<&str> {
    hops.iter().map(|hop| hop.name.as_str()).collect()
}
