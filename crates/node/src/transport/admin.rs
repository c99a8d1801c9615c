//! Admission, renewal and revocation: what only the holder of the CA key does.
//!
//! In: a joiner's request, a member's request for renewal, the operator's
//! revocation. Out: certificates and records, or the reason of a refusal.
//! Invariants: nothing is given out before it is written to disk, and nothing
//! changes when writing fails; a joiner learns reasons only after its token
//! proved genuine. Deliberately not here: the connection.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use warren_control::address;
use warren_control::ca::{Authority, CertificateRequest};
use warren_control::descriptor::SignedDescriptor;
use warren_control::directory::Directory;
use warren_control::join_code::JoinCode;
use warren_control::network::{NetworkParameters, fingerprint};
use warren_control::registry::Registry;
use warren_control::revocation::SignedRevocation;
use warren_control::token::{Invites, TokenError};
use warren_control::wire::{JoinAccepted, JoinRefusal, JoinRequest};
use warren_types::{LinkPublicKey, NetworkId, NodeId, NodeName};

use super::event::RefuseReason;
use crate::random::OsRandom;

/// Clocks further apart than this cannot share certificates: those start five
/// minutes in the past.
const MAX_CLOCK_DIFFERENCE: u64 = 240;
/// Room for descriptors and revocations in an answer to a joiner, bytes.
const MEMBERS_BUDGET: usize = 128 * 1024;

/// Where state of the control plane is kept.
pub trait Persist: Send + Sync + 'static {
    /// Keeps all known descriptors and revocations.
    ///
    /// # Errors
    /// A sentence with the remedy.
    fn save_directory(
        &self,
        descriptors: &[Arc<SignedDescriptor>],
        revocations: &[SignedRevocation],
    ) -> Result<(), String>;
    /// Keeps invites and members of an admin.
    ///
    /// # Errors
    /// A sentence with the remedy.
    fn save_admin(&self, invites: &Invites, registry: &Registry) -> Result<(), String>;
    /// Keeps our renewed certificate chain (without the root).
    ///
    /// # Errors
    /// A sentence with the remedy.
    fn save_certificate(&self, chain: &[Vec<u8>]) -> Result<(), String>;
}

/// What makes a node an admin.
#[derive(Debug)]
pub struct Admin {
    /// The CA.
    pub authority: Authority,
    /// Its invites.
    pub invites: Invites,
    /// Its members.
    pub registry: Registry,
}

/// An operator's request was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AdminError {
    /// This node has no CA key.
    #[error(
        "this node cannot admit or revoke: run the command on the machine that created the network"
    )]
    NotAdmin,
    /// No address to put into a code.
    #[error(
        "this node knows no address that others could reach it at: set `endpoints` in its \
         configuration"
    )]
    NoEndpoint,
    /// Nobody has the name.
    #[error("no member is called `{0}`: `warren status` lists them")]
    UnknownName(NodeName),
    /// An admin cannot revoke itself.
    #[error("this node cannot revoke itself: use `warren leave`")]
    Ourselves,
    /// Bad parameters, or a full disk.
    #[error("{0}")]
    Failed(String),
    /// The daemon stops.
    #[error("the daemon is stopping")]
    Stopping,
}

/// An answer to a joiner.
#[derive(Debug)]
pub(crate) enum JoinAnswer {
    /// Admitted.
    Accepted(Box<JoinAccepted>),
    /// Not admitted; may be told why.
    Refused(JoinRefusal),
    /// Not admitted; is told nothing.
    Silent,
}

fn used_v4(directory: &Directory) -> impl Fn(std::net::Ipv4Addr) -> bool + '_ {
    |a| directory.has_address(IpAddr::V4(a))
}

impl Admin {
    /// Makes an invite and its code.
    pub(crate) fn invite(
        &mut self,
        network: &NetworkParameters,
        endpoints: &[SocketAddr],
        tcp: &[SocketAddr],
        life: u64,
        uses: u32,
        now: u64,
        persist: &dyn Persist,
    ) -> Result<JoinCode, AdminError> {
        if endpoints.is_empty() {
            return Err(AdminError::NoEndpoint);
        }
        let mut invites = self.invites.clone();
        let (token, expires) = invites
            .issue(life, uses, now, &mut OsRandom)
            .map_err(|e| AdminError::Failed(e.to_string()))?;
        persist.save_admin(&invites, &self.registry).map_err(AdminError::Failed)?;
        self.invites = invites;
        Ok(JoinCode {
            network_id: network.id,
            network: network.name.clone(),
            ca_fingerprint: fingerprint(self.authority.certificate()),
            endpoints: endpoints.to_vec(),
            tcp: tcp.to_vec(),
            token,
            expires,
        })
    }

    /// Decides about a joiner whose key TLS proved. The second part is for our
    /// log, when it was refused.
    #[expect(clippy::too_many_arguments, reason = "each is a distinct fact of one admission")]
    pub(crate) fn admit(
        &mut self,
        network: &NetworkParameters,
        node: NodeId,
        request: &JoinRequest,
        own: &SignedDescriptor,
        directory: &Directory,
        now: u64,
        persist: &dyn Persist,
    ) -> (JoinAnswer, Option<RefuseReason>) {
        let refuse = |refusal: JoinRefusal| {
            let reason = RefuseReason::Admission(refusal.to_string());
            (JoinAnswer::Refused(refusal), Some(reason))
        };
        let mut invites = self.invites.clone();
        match invites.redeem(&request.token, node, now) {
            Ok(()) => {}
            Err(TokenError::Unknown) => {
                return (JoinAnswer::Silent, Some(TokenError::Unknown.into()));
            }
            Err(TokenError::Expired) => return refuse(JoinRefusal::TokenExpired),
            Err(TokenError::Used) => return refuse(JoinRefusal::TokenUsed),
        }
        let difference_s = now.abs_diff(request.time);
        if difference_s > MAX_CLOCK_DIFFERENCE {
            return refuse(JoinRefusal::ClockWrong { difference_s, member_time: now });
        }
        if directory.revocations().contains(node) {
            let error = warren_control::registry::AdmitError::Revoked;
            return refuse(JoinRefusal::Taken(error.to_string()));
        }
        let mut registry = self.registry.clone();
        let admitted = registry.admit(
            network.id,
            node,
            &request.name,
            request.link_key,
            now,
            |name| directory.has_name(name),
            used_v4(directory),
        );
        let member = match admitted {
            Ok(member) => member,
            Err(error) => return refuse(JoinRefusal::Taken(error.to_string())),
        };
        let certificate =
            CertificateRequest { id: node, name: member.name, addresses: member.addresses };
        let issued = self.authority.issue(&certificate, now, &mut OsRandom);
        let saved = issued
            .map_err(|e| e.to_string())
            .and_then(|leaf| persist.save_admin(&invites, &registry).map(|()| leaf));
        let leaf = match saved {
            Ok(leaf) => leaf,
            Err(error) => {
                let reason = RefuseReason::Admission(error);
                return (JoinAnswer::Refused(JoinRefusal::Unavailable), Some(reason));
            }
        };
        self.invites = invites;
        self.registry = registry;
        let (descriptors, revocations) = introduction(own, directory);
        let accepted = JoinAccepted {
            network_id: network.id,
            network: network.name.clone(),
            suite: network.suite,
            chain: vec![leaf],
            ca: self.authority.certificate().to_vec(),
            descriptors,
            revocations,
        };
        (JoinAnswer::Accepted(Box::new(accepted)), None)
    }

    /// A new certificate for a member, with the name and addresses it has.
    pub(crate) fn renew(
        &self,
        node: NodeId,
        directory: &Directory,
        now: u64,
    ) -> Result<Vec<Vec<u8>>, String> {
        if directory.revocations().contains(node) {
            return Err("the node was revoked".into());
        }
        let (name, addresses) = match (self.registry.get(node), directory.get(node)) {
            (Some(member), _) => (member.name.clone(), member.addresses.clone()),
            // Admitted by another admin: what its present certificate says.
            (None, Some(view)) => {
                let body = &view.descriptor.body;
                (body.name.clone(), body.addresses.clone())
            }
            (None, None) => return Err("the node is not known".into()),
        };
        let request = CertificateRequest { id: node, name, addresses };
        self.authority
            .issue(&request, now, &mut OsRandom)
            .map(|leaf| vec![leaf])
            .map_err(|e| e.to_string())
    }

    /// Revokes the member that goes by a name, connected or not.
    pub(crate) fn revoke(
        &mut self,
        name: &NodeName,
        own: NodeId,
        directory: &Directory,
        now: u64,
        persist: &dyn Persist,
    ) -> Result<(NodeId, SignedRevocation), AdminError> {
        let node = directory
            .by_name(name)
            .map(|view| view.id())
            .or_else(|| self.registry.by_name(name).map(|(id, _)| id))
            .ok_or_else(|| AdminError::UnknownName(name.clone()))?;
        if node == own {
            return Err(AdminError::Ourselves);
        }
        let record = self.expel(node, directory.network(), now, persist);
        Ok((node, record.map_err(AdminError::Failed)?))
    }

    /// Ends a node's membership: its name becomes free and its key, however
    /// long its certificate runs, is of no more use to anybody.
    pub(crate) fn expel(
        &mut self,
        node: NodeId,
        network: NetworkId,
        now: u64,
        persist: &dyn Persist,
    ) -> Result<SignedRevocation, String> {
        let mut registry = self.registry.clone();
        registry.expel(node, now);
        persist.save_admin(&self.invites, &registry)?;
        self.registry = registry;
        Ok(SignedRevocation::sign(self.authority.key(), network, node, now))
    }

    /// Everybody this admin expelled, signed again.
    pub(crate) fn revocations(&self, network: NetworkId, now: u64) -> Vec<SignedRevocation> {
        self.registry
            .expelled(now)
            .map(|(node, at)| SignedRevocation::sign(self.authority.key(), network, node, at))
            .collect()
    }
}

/// Our descriptor and some others, and the revocations, as far as they fit.
fn introduction(
    own: &SignedDescriptor,
    directory: &Directory,
) -> (Vec<SignedDescriptor>, Vec<SignedRevocation>) {
    let mut budget = MEMBERS_BUDGET;
    let mut take = |len: usize| {
        let fits = len + 96 <= budget;
        budget = budget.saturating_sub(len + 96);
        fits
    };
    let revocations =
        directory.revocations().records().take_while(|r| take(r.body.len())).cloned().collect();
    let mut descriptors = vec![own.clone()];
    let own_id = own.peek().map(|(id, _)| id).ok();
    descriptors.extend(
        directory
            .views()
            .filter(|v| Some(v.id()) != own_id)
            .map(|v| v.descriptor.signed.as_ref())
            .take_while(|d| take(d.body.len()))
            .cloned(),
    );
    (descriptors, revocations)
}

/// Free overlay addresses for a WireGuard client with `key`: IPv6 first.
/// `None` when no IPv4 address is free for this key; make another.
pub(crate) fn client_addresses(
    network: NetworkId,
    key: &LinkPublicKey,
    directory: &Directory,
) -> Option<Vec<IpAddr>> {
    let v6 = IpAddr::V6(address::ipv6_of_key(network, &key.0));
    let (v4, _) = address::free_ipv4(network, &key.0, used_v4(directory))?;
    (!directory.has_address(v6)).then(|| vec![v6, v4.into()])
}
