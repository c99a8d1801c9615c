//! Admission, renewal and revocation: what only the holder of an authority's key
//! does, be it the root's or a delegated one.
//!
//! In: a joiner's request, a member's request for renewal or for a certificate
//! of another key, the operator's revocation. Out: certificates and records, or
//! the reason of a refusal. Invariants: nothing is given out before it is written
//! to disk, and nothing changes when writing fails; a joiner learns reasons only
//! after its token proved genuine. Deliberately not here: the connection, and
//! what only the root's holder does (`admin/root`).

mod root;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use warren_control::address;
use warren_control::ca::{Authority, CertificateRequest, Origin};
use warren_control::descriptor::SignedDescriptor;
use warren_control::directory::Directory;
use warren_control::identity::IdentityKey;
use warren_control::join_code::JoinCode;
use warren_control::network::{NetworkParameters, fingerprint};
use warren_control::registry::{Member, Registry};
use warren_control::revocation::{RevocationBody, RevocationList, SignedRevocation};
use warren_control::token::{Invites, TokenError};
use warren_control::trust::{Trust, TrustChain};
use warren_control::verify::verify_authority;
use warren_control::wire::{JoinAccepted, JoinRefusal, JoinRequest, RotateRequest, TrustReply};
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
    /// Keeps the records of the network's roots.
    ///
    /// # Errors
    /// A sentence with the remedy.
    fn save_trust(&self, chain: &TrustChain) -> Result<(), String>;
    /// Keeps an authority that was delegated to us.
    ///
    /// # Errors
    /// A sentence with the remedy.
    fn save_authority(&self, authority: &Authority) -> Result<(), String>;
    /// Keeps a root's key together with the records that lead to it: after a
    /// crash there are either both or neither. `None` removes the key.
    ///
    /// # Errors
    /// A sentence with the remedy.
    fn save_root(&self, root: Option<&Authority>, chain: &TrustChain) -> Result<(), String>;
    /// Keeps our new identity key together with its certificate chain: after a
    /// crash there are either both or neither.
    ///
    /// # Errors
    /// A sentence with the remedy.
    fn save_identity(&self, key: &IdentityKey, chain: &[Vec<u8>]) -> Result<(), String>;
}

/// What makes a node an admin.
#[derive(Debug)]
pub struct Admin {
    /// The root, or the authority delegated to this node.
    pub authority: Authority,
    /// Life of the certificates it issues, seconds.
    pub certificate_life: u64,
    /// Its invites.
    pub invites: Invites,
    /// Its members.
    pub registry: Registry,
}

/// An operator's request was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AdminError {
    /// This node has no authority.
    #[error(
        "this node cannot admit or revoke: `warren ca list` names those that can; run the command \
         there"
    )]
    NotAdmin,
    /// This node has no root key.
    #[error(
        "this node does not hold the network's root key: `warren ca list` names who does; run the \
         command there, or bring an exported key back with `warren ca import FILE`"
    )]
    NotRoot,
    /// The network has no certificates.
    #[error(
        "this network has no certificates (auth mode `{0}`): its keys are in the configuration of \
         each node; give this node a fresh state directory, and its new key (`warren key`) to the \
         others"
    )]
    NoCertificates(&'static str),
    /// The node is not connected.
    #[error(
        "{0} is not connected: start it, or wait until `warren status` shows it, and try again"
    )]
    NotConnected(NodeName),
    /// No answer came.
    #[error("{0} did not answer in time: its log may say why; try again")]
    NoAnswer(String),
    /// Nobody can certify.
    #[error(
        "no admin is connected that could certify a new key: `warren ca list` names them; start \
         one and try again"
    )]
    NoAdmin,
    /// The last one.
    #[error("{0}")]
    LastAdmin(String),
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

/// What somebody has, or had until lately: others may still send there.
fn used_v4(directory: &Directory, now: u64) -> impl Fn(std::net::Ipv4Addr) -> bool + '_ {
    move |a| {
        let address = IpAddr::V4(a);
        directory.has_address(address) || directory.was_just_released(address, now)
    }
}

/// The network's roots as a joiner needs them.
pub(crate) fn trust_reply(trust: &Trust) -> TrustReply {
    TrustReply { founding: trust.founding().certificate.clone(), chain: trust.chain() }
}

impl Admin {
    /// True when what it issues counts.
    pub(crate) fn counts(&self, trust: &Trust, revoked: &RevocationList, now: u64) -> bool {
        let key = self.authority.key().id();
        let current = trust.current().key;
        let root = match self.authority.is_root() {
            true => Some(key),
            false => verify_authority(self.authority.certificate(), trust).ok().map(|i| i.root),
        };
        root == Some(current) && now < self.authority.not_after() && !revoked.contains(key)
    }

    /// Makes an invite and its code.
    #[expect(clippy::too_many_arguments, reason = "each is a distinct fact of one invitation")]
    pub(crate) fn invite(
        &mut self,
        network: &NetworkParameters,
        trust: &Trust,
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
            ca_fingerprint: fingerprint(&trust.current().certificate),
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
        let Some(trust) = directory.membership().trust() else {
            return (JoinAnswer::Silent, None);
        };
        let mut registry = self.registry.clone();
        let admitted = registry.admit(
            network.id,
            node,
            &request.name,
            request.link_key,
            now,
            |name| directory.has_name(name),
            used_v4(directory, now),
        );
        let member = match admitted {
            Ok(member) => member,
            Err(error) => return refuse(JoinRefusal::Taken(error.to_string())),
        };
        let saved = self
            .issue(node, &member, now)
            .and_then(|chain| persist.save_admin(&invites, &registry).map(|()| chain));
        let chain = match saved {
            Ok(chain) => chain,
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
            chain,
            ca: trust.current().certificate.clone(),
            descriptors,
            revocations,
            trust: Some(trust_reply(trust)),
        };
        (JoinAnswer::Accepted(Box::new(accepted)), None)
    }

    /// A certificate chain for what a member is.
    fn issue(&self, id: NodeId, member: &Member, now: u64) -> Result<Vec<Vec<u8>>, String> {
        let request = CertificateRequest {
            id,
            name: member.name.clone(),
            addresses: member.addresses.clone(),
            origin: member.origin,
        };
        let leaf = self
            .authority
            .issue_for(&request, now, self.certificate_life, &mut OsRandom)
            .map_err(|e| e.to_string())?;
        Ok([vec![leaf], self.authority.above()].concat())
    }

    /// What is known of a member: of our own admissions, or of another admin's
    /// by its present certificate.
    fn member(&self, node: NodeId, directory: &Directory) -> Option<Member> {
        if let Some(member) = self.registry.get(node) {
            return Some(member.clone());
        }
        directory.get(node).map(|view| as_member(view))
    }

    /// A new certificate for a member, with the name and addresses it has. One
    /// that shares its IPv4 address with another, since two admins gave it at
    /// once, and has to do without it, gets another address.
    pub(crate) fn renew(
        &mut self,
        node: NodeId,
        directory: &Directory,
        now: u64,
        persist: &dyn Persist,
    ) -> Result<Vec<Vec<u8>>, String> {
        if directory.revocations().contains(node) {
            return Err("the node was revoked".into());
        }
        let mut member = self.member(node, directory).ok_or("the node is not known")?;
        if let Some(view) = directory.get(node) {
            let lost = |a: &IpAddr| a.is_ipv4() && !view.addresses.contains(a);
            if view.descriptor.body.addresses.iter().any(lost) {
                let used = used_v4(directory, now);
                let taken = |a| used(a) || self.registry.has_address(IpAddr::V4(a));
                let (free, _) = address::free_ipv4(directory.network(), &node.0, taken)
                    .ok_or("no free IPv4 address was found for it")?;
                member.addresses.retain(IpAddr::is_ipv6);
                member.addresses.push(free.into());
                let mut registry = self.registry.clone();
                registry.adopt(node, member.clone());
                registry.readdress(node, member.addresses.clone());
                persist.save_admin(&self.invites, &registry)?;
                self.registry = registry;
            }
        }
        self.issue(node, &member, now)
    }

    /// Certifies another key for a member, which goes on under it with all it
    /// has. The old key gets nothing any more from here on.
    pub(crate) fn rotate(
        &mut self,
        request: &RotateRequest,
        directory: &Directory,
        now: u64,
        persist: &dyn Persist,
    ) -> Result<Vec<Vec<u8>>, String> {
        if !request.is_genuine(directory.network()) {
            return Err("the request is not signed by both keys".into());
        }
        let (old, new) = (request.old, request.new);
        if directory.revocations().contains(old) || directory.revocations().contains(new) {
            return Err("the node was revoked".into());
        }
        if self.registry.successor(old) == Some(new)
            && let Some(member) = self.registry.get(new)
        {
            // Our answer was lost.
            return self.issue(new, member, now);
        }
        if self.registry.successor(old).is_some() {
            return Err("the key was rotated already".into());
        }
        let member = self.member(old, directory).ok_or("the node is not known")?;
        let former = member.origin.unwrap_or(Origin { id: old, generation: 0 });
        let origin = Origin { generation: former.generation.saturating_add(1), ..former };
        let mut registry = self.registry.clone();
        registry.adopt(old, member);
        registry.succeed(old, new, origin);
        let member = registry.get(new).ok_or("the node was revoked")?;
        let chain = self.issue(new, member, now)?;
        persist.save_admin(&self.invites, &registry)?;
        self.registry = registry;
        Ok(chain)
    }

    /// The record that ends a key which its node has rotated away from; `None`
    /// when another admin certified the new one, who does this.
    pub(crate) fn retire(
        &mut self,
        old: NodeId,
        new: NodeId,
        trust: &Trust,
        now: u64,
        persist: &dyn Persist,
    ) -> Result<Option<SignedRevocation>, String> {
        if self.registry.successor(old) != Some(new) {
            return Ok(None);
        }
        let mut registry = self.registry.clone();
        registry.expel(old, now);
        persist.save_admin(&self.invites, &registry)?;
        self.registry = registry;
        let body = RevocationBody::superseded(trust.network_id, old, new, now);
        Ok(Some(SignedRevocation::sign(&self.authority, trust, &body)))
    }

    /// Revokes the member that goes by a name, connected or not; with it, as the
    /// root's holder, the authority it has. What that one admitted stays known
    /// here, so that it can be renewed.
    pub(crate) fn revoke(
        &mut self,
        name: &NodeName,
        own: NodeId,
        directory: &Directory,
        now: u64,
        persist: &dyn Persist,
    ) -> Result<(NodeId, Vec<SignedRevocation>), AdminError> {
        let trust = directory.membership().trust().ok_or(AdminError::NotAdmin)?;
        let node = directory
            .by_name(name)
            .map(|view| view.id())
            .or_else(|| self.registry.by_name(name).map(|(id, _)| id))
            .ok_or_else(|| AdminError::UnknownName(name.clone()))?;
        if node == own {
            return Err(AdminError::Ourselves);
        }
        let mut records = Vec::new();
        if self.authority.is_root() {
            for key in self.authorities_of(name, directory) {
                records.push(self.end_authority(key, directory, now, persist)?);
            }
        }
        let record = self.expel(node, trust, now, persist);
        records.insert(0, record.map_err(AdminError::Failed)?);
        Ok((node, records))
    }

    /// Ends a node's membership: its name becomes free and its key, however
    /// long its certificate runs, is of no more use to anybody.
    pub(crate) fn expel(
        &mut self,
        node: NodeId,
        trust: &Trust,
        now: u64,
        persist: &dyn Persist,
    ) -> Result<SignedRevocation, String> {
        let mut registry = self.registry.clone();
        registry.expel(node, now);
        persist.save_admin(&self.invites, &registry)?;
        self.registry = registry;
        let body = RevocationBody::of(trust.network_id, node, now);
        Ok(SignedRevocation::sign(&self.authority, trust, &body))
    }

    /// Everybody this admin expelled, signed again. Of authorities only a root
    /// speaks.
    pub(crate) fn revocations(&self, trust: &Trust, now: u64) -> Vec<SignedRevocation> {
        let root = self.authority.is_root();
        self.registry
            .expelled(trust.network_id, now)
            .filter(|body| root || !body.is_authority())
            .map(|body| SignedRevocation::sign(&self.authority, trust, &body))
            .collect()
    }
}

/// A member as its present certificate shows it.
fn as_member(view: &warren_control::directory::NodeView) -> Member {
    let body = &view.descriptor.body;
    let origin = view.descriptor.certified.as_ref().map(|node| node.origin);
    Member {
        name: body.name.clone(),
        addresses: body.addresses.clone(),
        link_key: body.link_key,
        admitted: body.issued,
        origin: origin.filter(|origin| origin.generation > 0),
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
    let taken = |a| directory.has_address(IpAddr::V4(a));
    let (v4, _) = address::free_ipv4(network, &key.0, taken)?;
    (!directory.has_address(v6)).then(|| vec![v6, v4.into()])
}
