//! What the choice of onion paths is made from, as it is known now.
//!
//! In: the directory, our links, the link states of others. Out: an
//! [`OnionWorld`]. Invariant: everything in it was said by its owner or measured;
//! nothing is guessed. A member counts as not answering when neither a direct
//! path nor one over others gets through, so that holds for it as any hop.
//! Deliberately not here: choosing.

use warren_proto::engine::LinkState;
use warren_proto::selection::{Candidate, Measure, Measurements, Own};

use super::mesh::place;
use super::{Daemon, unix_now};
use crate::onion_candidates::{Observed, candidate};

/// Ourselves, all members with a role, and what lies between them.
#[derive(Debug, Clone)]
pub(super) struct OnionWorld {
    pub(super) own: Own,
    pub(super) candidates: Vec<Candidate>,
    pub(super) measurements: Measurements,
}

fn micros(time: std::time::Duration) -> u32 {
    u32::try_from(time.as_micros()).unwrap_or(u32::MAX)
}

impl Daemon {
    /// As of now. The work grows with the members that have a role.
    pub(super) fn onion_world(&self) -> OnionWorld {
        let (now, unix) = (self.now(), unix_now().as_secs());
        let mut candidates = Vec::new();
        let mut measurements = Measurements::default();
        for view in self.mesh.members().filter(|view| view.onion().is_some()) {
            let mut observed = Observed::default();
            if let Some(stats) = self.engine.stats(&view.descriptor.body.link_key, now) {
                observed.unreachable = stats.state == LinkState::Unreachable;
                let loss = stats.loss.unwrap_or(0.0) as f32;
                observed.direct = stats.rtt.map(|rtt| Measure { rtt_us: micros(rtt), loss });
            }
            // What the node and others say of its links.
            if let Some(said) = place(view).and_then(|at| self.routing.router.links_of(at)) {
                observed.load = f32::from(said.load) / 255.0;
                for (to, metric) in &said.links {
                    let Some(other) = self.mesh.at(*to) else { continue };
                    let measure = Measure { rtt_us: micros(metric.rtt), loss: metric.loss };
                    measurements.insert(view.id(), other, measure);
                }
            }
            candidates.extend(candidate(view, &observed, unix));
        }
        let (settings, addresses) = (self.roles.settings(), self.told.iter().map(|e| e.ip()));
        let own = Own {
            id: self.id,
            family: settings.family.clone(),
            addresses: addresses.collect(),
            place: settings.place.clone(),
        };
        OnionWorld { own, candidates, measurements }
    }
}
