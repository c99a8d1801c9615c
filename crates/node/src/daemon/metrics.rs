//! What metrics are made of, from the daemon's own reports.

use warren_proto::onion::client::MoveReason;
use warren_types::LinkPublicKey;
use warren_types::api::PeerStatus;

use super::Daemon;
use crate::metrics::{Happened, Snapshot};

/// A move's place among [`crate::metrics::MOVES`].
fn index(reason: MoveReason) -> usize {
    match reason {
        MoveReason::Silent => 0,
        MoveReason::Ended => 1,
        MoveReason::Slower => 2,
        MoveReason::Lossy => 3,
        MoveReason::Rotation => 4,
    }
}

/// Counts a move of the onion session.
pub(super) fn moved(happened: &mut Happened, reason: MoveReason) {
    happened.moves[index(reason)] += 1;
}

impl Daemon {
    /// Of the members only those with a session are looked at: the rest says
    /// nothing, and may be thousands.
    pub(super) fn metrics(&self) -> Snapshot {
        let now = self.now();
        let with_session: Vec<LinkPublicKey> = self
            .engine
            .peers()
            .filter(|link| link.send.load().is_some())
            .map(|link| link.key())
            .collect();
        let peers: Vec<PeerStatus> = with_session
            .iter()
            .filter_map(|key| self.peer_status(self.engine.stats(key, now)?))
            .collect();
        let cost = warren_os::process::cost(std::process::id()).ok();
        Snapshot {
            status: self.status_with(peers),
            onion: self.onion_report(),
            members: self.mesh.members().count() + 1,
            clients: self.mesh.clients().len(),
            relayed_frames: self.engine.relayed().0,
            certificate_end_s: self.control.certificate_expires(),
            happened: self.happened,
            cpu: cost.map(|cost| cost.cpu),
            resident: cost.map(|cost| cost.resident),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::MOVES;

    #[test]
    fn moves_are_counted_under_their_reason() {
        let all = [
            (MoveReason::Silent, "silent"),
            (MoveReason::Ended, "ended"),
            (MoveReason::Slower, "slower"),
            (MoveReason::Lossy, "lossy"),
            (MoveReason::Rotation, "rotation"),
        ];
        for (reason, label) in all {
            let mut happened = Happened::default();
            moved(&mut happened, reason);
            let counted = MOVES.iter().zip(happened.moves).filter(|(_, count)| *count > 0);
            assert_eq!(counted.collect::<Vec<_>>(), [(&label, 1)]);
        }
    }
}
