//! The control transport: QUIC between members, over the daemon's UDP port.
//!
//! [`Control::spawn`] takes who we are ([`ControlConfig`]) and the port
//! ([`ControlSocket`]), and gives a [`ControlHandle`] to ask things of it and a
//! channel of [`ControlEvent`]s. It connects to members, authenticates both
//! sides, exchanges descriptors and revocations, hands out the links'
//! pre-shared keys, admits joiners, renews certificates, and connects again by
//! itself. [`join`] makes a machine a member before its daemon starts.
//!
//! Invariants: a peer gets nothing before it is authenticated; every refusal
//! looks the same to the peer and names its check in an event; nothing here
//! writes files except through [`Persist`]. Deliberately not here: links, TUN,
//! configuration.
//!
//! How the daemon uses it:
//! - feed every datagram whose first byte is at least 64 into
//!   `ControlSocket::incoming` with `try_send`;
//! - on `PeerConnected` install `psk` for the link with the peer, set the peer's
//!   endpoint to `remote`, drop `installed`; if `dialer`, start a link handshake;
//! - on `DirectoryChanged` (the first tells what is remembered from the last run)
//!   update peers, routes and addresses from the views;
//! - call `set_own_descriptor` when endpoints or clients change.

mod accept;
mod admin;
mod catch_up;
mod core;
mod dial;
mod event;
mod frame;
mod join;
mod looping;
mod persist;
mod session;
mod shared;
mod socket;
mod tls;
mod tunnel;

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use ipnet::IpNet;
use quinn::{Endpoint, TokioRuntime};
use rand_core::RngCore;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use warren_control::ca;
use warren_control::descriptor::{DescriptorError, SignedDescriptor};
use warren_control::directory::{ApplyError, Directory, NodeView};
use warren_control::identity::IdentityKey;
use warren_control::membership::Membership;
use warren_control::network::NetworkParameters;
use warren_control::revocation::SignedRevocation;
use warren_control::route_approval::SignedApproval;
use warren_control::trust::Trust;
use warren_control::wire::ALPN_CONTROL;
use warren_types::{LinkPublicKey, NodeId, NodeName};

pub use self::admin::{Admin, AdminError, Persist};
use self::core::{AuthorityCommand, Command, Core, Input, Parts, Target, read_chain};
pub use self::core::{
    AuthorityInfo, ConnectionInfo, LinkSummary, MAX_CONNECTIONS, OwnDescriptor, RootKey,
};
pub use self::event::{ControlEvent, PeerConnected, RefuseReason};
pub use self::join::{JoinError, JoinRequestOptions, Joined, join};
pub(crate) use self::looping::Looping;
use self::shared::Shared;
pub use self::shared::{Clock, system_clock};
use self::socket::QuicSocket;
pub use self::socket::{ControlSocket, Datagram, DatagramSender};
pub use self::tls::{Timing, TlsError};
use self::tunnel::Tunnels;
use crate::random::OsRandom;

/// Who we are and whom we know.
pub struct ControlConfig {
    /// The network.
    pub network: NetworkParameters,
    /// How its members are recognised.
    pub membership: Membership,
    /// Our identity key.
    pub key: Arc<IdentityKey>,
    /// Our certificate chain, leaf first, without the root; empty unless the
    /// network uses certificates.
    pub chain: Vec<Vec<u8>>,
    /// What we say about ourselves.
    pub own: OwnDescriptor,
    /// Our authority, when we have one.
    pub admin: Option<Admin>,
    /// Life of the certificates we issue if an authority is delegated to us,
    /// seconds.
    pub certificate_life: u64,
    /// Descriptors from the last run (expired ones serve as hints where to
    /// dial) or from joining.
    pub known: Vec<SignedDescriptor>,
    /// Revocations from the last run or from joining.
    pub revocations: Vec<SignedRevocation>,
    /// Addresses to dial, with the node expected there when it is known.
    pub bootstrap: Vec<(Option<NodeId>, SocketAddr)>,
    /// Our UDP port as it is bound; tunnels over TCP lead there.
    pub bound: SocketAddr,
    /// Where tunnels over TCP are offered, if they are.
    pub tcp_listener: Option<TcpListener>,
    /// Reach members over TCP where UDP does not get through.
    pub tcp_fallback: bool,
    /// Route approvals from the last run.
    pub approvals: Vec<SignedApproval>,
    /// Where state goes.
    pub persist: Arc<dyn Persist>,
    /// Seconds since 1970.
    pub clock: Clock,
    /// Times.
    pub timing: Timing,
}

/// The control transport could not start.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// TLS refused our key or chain.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// Our own certificate or name is not acceptable.
    #[error("this node's own identity is not acceptable: {0}")]
    Own(String),
    /// The endpoint could not start.
    #[error("QUIC could not start: {0}")]
    Endpoint(#[from] std::io::Error),
}

/// Starts the control transport.
#[derive(Debug)]
pub struct Control;

impl Control {
    /// Starts all tasks on the current tokio runtime. Events must be received;
    /// they are few (refusals are limited) and not bounded.
    ///
    /// # Errors
    /// When our own identity cannot be used.
    pub fn spawn(
        config: ControlConfig,
        socket: ControlSocket,
    ) -> Result<(ControlHandle, mpsc::UnboundedReceiver<ControlEvent>), ControlError> {
        let now = (config.clock)();
        let own_id = config.key.id();
        let shown = shown_chain(&config, now)?;
        let client = tls::client(&config.key, &shown, ALPN_CONTROL, &config.timing)?;
        let server = tls::server(&config.key, &shown, config.admin.is_some(), &config.timing)?;
        let endpoint = Endpoint::new_with_abstract_socket(
            tls::endpoint(),
            Some(server),
            Arc::new(QuicSocket::from(socket)),
            Arc::new(TokioRuntime),
        )?;

        let tunnels = Tunnels::new(config.bound)?;
        if let Some(listener) = config.tcp_listener {
            tunnel::offer(tunnels.clone(), listener, now)?;
        }
        let mut directory = Directory::new(config.network.id, config.membership);
        let mut bootstrap = config.bootstrap;
        let again: Vec<_> = match (&config.admin, directory.membership().trust()) {
            (Some(admin), Some(trust)) => admin.revocations(trust, now),
            _ => Vec::new(),
        };
        for record in config.revocations.into_iter().chain(again) {
            if let Err(error) = directory.revoke_stored(record, now) {
                tracing::warn!(%error, "a stored revocation was not taken in");
            }
        }
        let mut sequence = 0;
        let mut known = Vec::new();
        for descriptor in &config.known {
            let Ok((id, number)) = descriptor.peek() else { continue };
            if id == own_id {
                sequence = sequence.max(number);
                continue;
            }
            match directory.apply(descriptor, now) {
                Ok(changes) => known.extend(changes.unwrap_or_default()),
                Err(ApplyError::Descriptor(DescriptorError::Expired)) => {
                    bootstrap.extend(descriptor.endpoints().into_iter().map(|e| (None, e)));
                }
                Err(error) => tracing::debug!(%error, "a stored descriptor was not taken in"),
            }
        }

        let (input, inputs) = mpsc::channel(256);
        let (events, receiver) = mpsc::unbounded_channel();
        if !known.is_empty() {
            // The receiver is right here; nobody can have dropped it.
            let _ = events.send(ControlEvent::DirectoryChanged(known));
        }
        let unsigned = SignedDescriptor { body: vec![], signature: [0; 64], mac: vec![] };
        let shared = Arc::new(Shared::new(
            config.key,
            OsRandom.next_u64(),
            config.clock,
            config.timing,
            input.clone(),
            directory,
            unsigned,
        ));
        shared.admin.store(config.admin.is_some(), Ordering::Relaxed);
        let certified = read_chain(&config.chain, &shared.directory());
        let parts = Parts {
            network: config.network,
            own: config.own,
            sequence,
            chain: config.chain,
            admin: config.admin,
            persist: config.persist,
            bootstrap,
            approvals: config.approvals,
            events,
            endpoint: endpoint.clone(),
            client,
            tunnels,
            tcp_fallback: config.tcp_fallback,
            shown,
            certified,
            certificate_life: config.certificate_life,
        };
        let handle = ControlHandle { input, shared: shared.clone() };
        // The core publishes our descriptor before it does anything else; the
        // acceptor starts after that.
        let mut core = Core::new(shared.clone(), parts);
        core.publish();
        tokio::spawn(core.run(inputs));
        tokio::spawn(accept::run(shared, endpoint));
        Ok((handle, receiver))
    }
}

/// The chain that TLS shows: with the root, so that joiners can recognise it.
fn shown_chain(config: &ControlConfig, now: u64) -> Result<Vec<Vec<u8>>, ControlError> {
    match &config.membership {
        Membership::Certificate(root) => {
            if config.chain.is_empty() {
                return Err(ControlError::Own("the certificate is missing".into()));
            }
            let root = root.current().certificate.clone();
            Ok(config.chain.iter().cloned().chain([root]).collect())
        }
        Membership::Key(_) | Membership::Psk(_) => {
            let own = ca::self_signed(&config.key, now, &mut OsRandom)
                .map_err(|e| ControlError::Own(e.to_string()))?;
            Ok(vec![own])
        }
    }
}

/// Asks things of the control transport. Cheap to clone.
#[derive(Clone)]
pub struct ControlHandle {
    input: mpsc::Sender<Input>,
    shared: Arc<Shared>,
}

impl std::fmt::Debug for ControlHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ControlHandle").field("node", &self.shared.id()).finish_non_exhaustive()
    }
}

impl ControlHandle {
    async fn command(&self, command: Command) {
        // Fails only when the transport has stopped, which its events said.
        let _ = self.input.send(Input::Command(command)).await;
    }

    /// Connects to a node now, and keeps a connection to it in large networks
    /// too.
    pub async fn connect(&self, node: NodeId) {
        self.command(Command::Connect(Target::Node(node))).await;
    }

    /// Connects to whatever member answers at an address.
    pub async fn connect_endpoint(&self, address: SocketAddr) {
        self.command(Command::Connect(Target::Endpoint(address))).await;
    }

    /// Takes a command in order and without waiting; false when the queue is
    /// full: try again later.
    fn post(&self, command: Command) -> bool {
        self.input.try_send(Input::Command(command)).is_ok()
    }

    /// Tells who can be reached over others, and the mesh address for it. False
    /// when it has to be told again.
    #[must_use]
    pub fn set_detours(&self, detours: HashMap<NodeId, SocketAddr>) -> bool {
        self.post(Command::SetDetours(detours))
    }

    /// Tells which addresses lead into the tunnel: nobody is dialed there. False
    /// when it has to be told again.
    #[must_use]
    pub(crate) fn set_looping(&self, looping: Looping) -> bool {
        self.post(Command::SetLooping(looping))
    }

    /// Tells everybody of our direct links. False when it has to be told again.
    #[must_use]
    pub fn publish_links(&self, summary: LinkSummary) -> bool {
        self.post(Command::PublishLinks(summary))
    }

    /// Approves or denies a prefix behind the node with this overlay address.
    ///
    /// # Errors
    /// When this node is no admin.
    pub async fn decide_route(
        &self,
        router: Ipv6Addr,
        prefix: IpNet,
        approved: bool,
    ) -> Result<(), AdminError> {
        let (reply, answer) = oneshot::channel();
        self.command(Command::DecideRoute { router, prefix, approved, reply }).await;
        answer.await.unwrap_or(Err(AdminError::Stopping))
    }

    /// A link is direct while its control connection may lead through a tunnel or
    /// over others: make another one. False when that could not be told now.
    pub fn straighten(&self, node: NodeId) -> bool {
        self.post(Command::Straighten(node))
    }

    /// Tells where a node may be, as somebody on the local network says: the
    /// addresses are tried, whoever answers must prove to be a member.
    pub async fn seen(&self, node: Option<NodeId>, addresses: Vec<SocketAddr>) {
        self.command(Command::Seen { node, addresses }).await;
    }

    /// Publishes a new descriptor if anything changed.
    pub async fn set_own_descriptor(&self, own: OwnDescriptor) {
        self.command(Command::SetOwn(Box::new(own))).await;
    }

    /// Makes a join code for `uses` nodes, valid for `life` seconds. Returns the
    /// code and its end (seconds since 1970).
    ///
    /// # Errors
    /// When this node is no admin, knows no endpoint of its own, or cannot write.
    pub async fn invite(&self, life: u64, uses: u32) -> Result<(String, u64), AdminError> {
        let (reply, answer) = oneshot::channel();
        self.command(Command::Invite { life, uses, reply }).await;
        answer.await.unwrap_or(Err(AdminError::Stopping))
    }

    /// Revokes the member called `name`, at once and for good.
    ///
    /// # Errors
    /// When this node is no admin, nobody has the name, or it cannot write.
    pub async fn revoke(&self, name: NodeName) -> Result<NodeId, AdminError> {
        let (reply, answer) = oneshot::channel();
        self.command(Command::Revoke { name, reply }).await;
        answer.await.unwrap_or(Err(AdminError::Stopping))
    }

    /// Renews our certificate now, from any connected admin.
    pub async fn renew(&self) {
        self.command(Command::Renew).await;
    }

    /// Every known member, ourselves included, in the order of ids.
    pub fn directory(&self) -> Vec<Arc<NodeView>> {
        self.shared.directory().views().cloned().collect()
    }

    /// One member.
    pub fn member(&self, node: NodeId) -> Option<Arc<NodeView>> {
        self.shared.directory().get(node).cloned()
    }

    /// True when a node or client goes by the name.
    pub fn has_name(&self, name: &NodeName) -> bool {
        self.shared.directory().has_name(name)
    }

    /// Free overlay addresses for a WireGuard client with `key`, IPv6 first.
    /// `None` when none is free for this key: make another key.
    pub fn client_addresses(&self, key: &LinkPublicKey) -> Option<Vec<IpAddr>> {
        let directory = self.shared.directory();
        admin::client_addresses(directory.network(), key, &directory)
    }

    /// Control connections that are up.
    pub async fn connections(&self) -> Vec<ConnectionInfo> {
        let (reply, answer) = oneshot::channel();
        self.command(Command::Connections(reply)).await;
        answer.await.unwrap_or_default()
    }

    /// Our identity key: another one after it was rotated.
    pub fn identity(&self) -> Arc<IdentityKey> {
        self.shared.key()
    }

    /// End of our certificate, seconds since 1970; `None` without certificates.
    pub fn certificate_expires(&self) -> Option<u64> {
        self.member(self.shared.id()).and_then(|v| v.descriptor.certificate_expires)
    }

    /// True when this node admits, renews and revokes.
    pub fn is_admin(&self) -> bool {
        self.shared.admin.load(Ordering::Relaxed)
    }

    async fn authority<T>(
        &self,
        make: impl FnOnce(oneshot::Sender<Result<T, AdminError>>) -> AuthorityCommand,
    ) -> Result<T, AdminError> {
        let (reply, answer) = oneshot::channel();
        self.command(Command::Authority(make(reply))).await;
        answer.await.unwrap_or(Err(AdminError::Stopping))
    }

    /// Gives the connected member `name` an authority of its own: it may admit,
    /// renew and revoke from then on.
    ///
    /// # Errors
    /// When this node does not hold the root, or the member does not answer.
    pub async fn delegate(&self, name: NodeName) -> Result<(), AdminError> {
        self.authority(|reply| AuthorityCommand::Delegate { name, reply }).await
    }

    /// Revokes the authority of a member; it stays a member.
    ///
    /// # Errors
    /// When this node does not hold the root, or the member has none.
    pub async fn undelegate(&self, name: NodeName) -> Result<(), AdminError> {
        self.authority(|reply| AuthorityCommand::Undelegate { name, reply }).await
    }

    /// Replaces the network's root; the old one stays trusted for `overlap`
    /// seconds. Returns the number of rotations so far.
    ///
    /// # Errors
    /// When this node does not hold the root.
    pub async fn rotate_root(&self, overlap: u64) -> Result<u64, AdminError> {
        self.authority(|reply| AuthorityCommand::Rotate { overlap, reply }).await
    }

    /// A copy of the root's key.
    ///
    /// # Errors
    /// When this node does not hold it.
    pub async fn export_root(&self) -> Result<RootKey, AdminError> {
        self.authority(AuthorityCommand::Export).await
    }

    /// Removes the root's key from this node, which goes on with an authority
    /// delegated to itself.
    ///
    /// # Errors
    /// When this node does not hold it.
    pub async fn remove_root(&self) -> Result<(), AdminError> {
        self.authority(AuthorityCommand::RemoveRoot).await
    }

    /// Takes the root's key (back) into this node.
    ///
    /// # Errors
    /// When it is not that of the present root.
    pub async fn import_root(&self, root: RootKey) -> Result<(), AdminError> {
        self.authority(|reply| AuthorityCommand::Import { root: Box::new(root), reply }).await
    }

    /// Gives this node another identity key; name, addresses and links stay.
    /// Returns the new one.
    ///
    /// # Errors
    /// When nobody can certify it.
    pub async fn rotate_identity(&self) -> Result<NodeId, AdminError> {
        self.authority(AuthorityCommand::RotateIdentity).await
    }

    /// Who may admit others, as far as it is known.
    pub async fn authorities(&self) -> Vec<AuthorityInfo> {
        let (reply, answer) = oneshot::channel();
        self.command(Command::Authority(AuthorityCommand::List(reply))).await;
        answer.await.unwrap_or_default()
    }

    /// What the network trusts; `None` without certificates.
    pub fn trust(&self) -> Option<Trust> {
        self.shared.directory().membership().trust().cloned()
    }

    /// What is revoked.
    pub fn is_revoked(&self, key: NodeId) -> bool {
        self.shared.directory().revocations().contains(key)
    }

    /// Our identity.
    pub fn id(&self) -> NodeId {
        self.shared.id()
    }

    /// Leaves the network: peers forget us (and the admin frees our name), then
    /// everything stops. The caller removes the state directory.
    pub async fn leave(&self) {
        self.stop(true).await;
    }

    /// Stops: peers notice at once, and keep us in their directories.
    pub async fn shutdown(&self) {
        self.stop(false).await;
    }

    async fn stop(&self, leave: bool) {
        let (reply, answer) = oneshot::channel();
        self.command(Command::Stop { leave, reply }).await;
        let _ = answer.await;
    }
}
