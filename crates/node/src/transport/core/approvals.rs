//! Route approvals on their way: an admin's decisions are signed and published,
//! those of others are checked and handed to the daemon.
//!
//! Invariant: only decisions of the CA, or of an authority under it, count.
//! Deliberately not here: storing them, and what they put in force.

use std::net::Ipv6Addr;
use std::sync::Arc;

use ipnet::IpNet;
use warren_control::directory::Directory;
use warren_control::route_approval::{APPROVAL_LIFE, ApprovalBody, ApprovalError, SignedApproval};
use warren_control::verify::verify_authority;
use warren_discovery::gossip::{Kind, Record, Verdict};
use warren_types::NodeId;

use super::Core;
use crate::transport::admin::AdminError;
use crate::transport::event::ControlEvent;

fn record(body: &ApprovalBody, signed: &SignedApproval) -> Option<Arc<Record>> {
    let kind = Kind::RouteApproval;
    Record::new(kind, body.subject(), body.sequence, body.expires, &signed.encode())
}

/// The keys whose decisions count: those of the CA's roots, also of former ones
/// (a decision lives for a year, and a newer one replaces it), and that of the
/// authority a record names, if it was not revoked.
fn signers(directory: &Directory, record: &SignedApproval) -> Vec<NodeId> {
    let Some(trust) = directory.membership().trust() else { return Vec::new() };
    let mut keys: Vec<NodeId> = trust.all().map(|root| root.key).collect();
    if let [certificate] = record.chain.as_slice()
        && let Ok(authority) = verify_authority(certificate, trust)
        && !directory.revocations().contains(authority.key)
    {
        keys.push(authority.key);
    }
    keys
}

impl Core {
    /// Decides about one prefix behind one node, and tells everybody.
    pub(super) fn decide_route(
        &mut self,
        router: Ipv6Addr,
        prefix: IpNet,
        approved: bool,
    ) -> Result<(), AdminError> {
        let admin = self.parts.admin.as_ref().ok_or(AdminError::NotAdmin)?;
        let now = self.shared.now();
        let mut body = ApprovalBody {
            network: self.parts.network.id,
            router,
            prefix,
            approved,
            sequence: now.saturating_mul(1000),
            expires: now.saturating_add(APPROVAL_LIFE),
        };
        let known = self.gossip.get(Kind::RouteApproval, &body.subject());
        body.sequence = body.sequence.max(known.map_or(0, |known| known.sequence() + 1));
        let signed = body.sign(admin.authority.key(), admin.authority.above());
        let failed = || AdminError::Failed("the decision is too large".to_owned());
        let record = record(&body, &signed).ok_or_else(failed)?;
        let time = self.time();
        self.gossip.publish(record, None, time);
        self.send_gossip();
        self.emit(ControlEvent::RouteDecided(Box::new((body, signed))));
        Ok(())
    }

    /// Takes up decisions from the last run.
    pub(super) fn restore_approvals(&mut self, stored: Vec<SignedApproval>) {
        let now = self.shared.now();
        for signed in stored {
            let checked = {
                let directory = self.shared.directory();
                signed.verify(&signers(&directory, &signed), directory.network(), now)
            };
            match checked {
                Ok(body) => {
                    if let Some(record) = record(&body, &signed) {
                        self.gossip.restore(record);
                    }
                    self.emit(ControlEvent::RouteDecided(Box::new((body, signed))));
                }
                Err(error) => tracing::info!(%error, "a stored route approval was dropped"),
            }
        }
    }
}

/// Checks somebody's record.
pub(super) fn check(
    directory: &Directory,
    record: &Record,
    now: u64,
) -> Result<(ApprovalBody, SignedApproval), Verdict> {
    let signed = SignedApproval::decode(record.body()).map_err(|_| Verdict::Forged)?;
    match signed.verify(&signers(directory, &signed), directory.network(), now) {
        Ok(body) => {
            let same = body.subject() == *record.subject()
                && (body.sequence, body.expires) == (record.sequence(), record.expires());
            if same { Ok((body, signed)) } else { Err(Verdict::Forged) }
        }
        Err(ApprovalError::Expired | ApprovalError::FromTheFuture) => Err(Verdict::Ignore),
        // By a root or an authority that is not known here yet, or revoked.
        Err(ApprovalError::BadSignature) => Err(Verdict::Ignore),
        Err(error) => {
            tracing::debug!(%error, "a route approval was not taken in");
            Err(Verdict::Forged)
        }
    }
}
