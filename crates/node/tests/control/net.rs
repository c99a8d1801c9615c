//! A small network of control endpoints in one process.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::mpsc;
use warren_control::address;
use warren_control::ca::{Authority, CertificateRequest, NODE_CERTIFICATE_LIFE};
use warren_control::descriptor::SignedDescriptor;
use warren_control::identity::IdentityKey;
use warren_control::join_code::JoinCode;
use warren_control::membership::Membership;
use warren_control::network::{NetworkParameters, fingerprint};
use warren_control::psk::PskKeys;
use warren_control::registry::Registry;
use warren_control::revocation::SignedRevocation;
use warren_control::token::Invites;
use warren_control::trust::{Trust, TrustChain};
use warren_node::random::OsRandom;
use warren_node::transport::{
    Admin, Clock, Control, ControlConfig, ControlEvent, ControlHandle, ControlSocket, Datagram,
    JoinError, JoinRequestOptions, Joined, OwnDescriptor, PeerConnected, Persist, Timing, join,
};
use warren_types::{LinkPublicKey, NetworkName, NodeId, NodeName, PresharedKey, Suite};

pub(crate) const NOW: u64 = 1_800_000_000;
/// How long a test waits for anything.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) fn name(text: &str) -> NodeName {
    text.parse().unwrap()
}

pub(crate) fn timing() -> Timing {
    Timing {
        keep_alive: Duration::from_millis(300),
        idle: Duration::from_millis(1500),
        handshake: Duration::from_secs(3),
        retry: Duration::from_millis(50),
        retry_max: Duration::from_millis(400),
        courtesy: Duration::from_millis(150),
        housekeeping: Duration::from_millis(100),
    }
}

/// A clock that a test can move.
#[derive(Clone)]
pub(crate) struct TestClock(Arc<AtomicU64>);

impl TestClock {
    pub(crate) fn at(now: u64) -> Self {
        Self(Arc::new(AtomicU64::new(now)))
    }
    pub(crate) fn set(&self, now: u64) {
        self.0.store(now, Ordering::SeqCst);
    }
    pub(crate) fn clock(&self) -> Clock {
        let inner = self.0.clone();
        Arc::new(move || inner.load(Ordering::SeqCst))
    }
}

/// Remembers in memory; can be told to fail like a full disk.
#[derive(Default)]
pub(crate) struct Memory {
    pub(crate) directory: Mutex<(Vec<SignedDescriptor>, Vec<SignedRevocation>)>,
    pub(crate) certificate: Mutex<Option<Vec<Vec<u8>>>>,
    pub(crate) admin: Mutex<Option<(Invites, Registry)>>,
    pub(crate) trust: Mutex<TrustChain>,
    pub(crate) identity: Mutex<Option<Arc<IdentityKey>>>,
    pub(crate) full: AtomicBool,
}

impl Memory {
    fn check(&self) -> Result<(), String> {
        if self.full.load(Ordering::SeqCst) {
            return Err("no space left on the disk".into());
        }
        Ok(())
    }
}

impl Persist for Memory {
    fn save_directory(
        &self,
        descriptors: &[Arc<SignedDescriptor>],
        revocations: &[SignedRevocation],
    ) -> Result<(), String> {
        self.check()?;
        let descriptors = descriptors.iter().map(|d| d.as_ref().clone()).collect();
        *self.directory.lock().unwrap() = (descriptors, revocations.to_vec());
        Ok(())
    }
    fn save_admin(&self, invites: &Invites, registry: &Registry) -> Result<(), String> {
        self.check()?;
        *self.admin.lock().unwrap() = Some((invites.clone(), registry.clone()));
        Ok(())
    }
    fn save_trust(&self, chain: &TrustChain) -> Result<(), String> {
        self.check()?;
        *self.trust.lock().unwrap() = chain.clone();
        Ok(())
    }
    fn save_authority(&self, _: &Authority) -> Result<(), String> {
        self.check()
    }
    fn save_root(&self, _: Option<&Authority>, chain: &TrustChain) -> Result<(), String> {
        self.save_trust(chain)
    }
    fn save_identity(&self, key: &IdentityKey, chain: &[Vec<u8>]) -> Result<(), String> {
        self.save_certificate(chain)?;
        let copy = IdentityKey::from_pkcs8(&key.to_pkcs8()).unwrap();
        *self.identity.lock().unwrap() = Some(Arc::new(copy));
        Ok(())
    }
    fn save_certificate(&self, chain: &[Vec<u8>]) -> Result<(), String> {
        self.check()?;
        *self.certificate.lock().unwrap() = Some(chain.to_vec());
        Ok(())
    }
}

/// A UDP socket whose cable can be cut without anybody being told.
pub(crate) fn socket(cut: Arc<AtomicBool>) -> (ControlSocket, SocketAddr) {
    let (mut plain, local) = ControlSocket::bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let (feed, incoming) = mpsc::channel::<Datagram>(512);
    let (inner, sender_cut) = (plain.sender.clone(), cut.clone());
    tokio::spawn(async move {
        while let Some(datagram) = plain.incoming.recv().await {
            if !cut.load(Ordering::SeqCst) && feed.send(datagram).await.is_err() {
                return;
            }
        }
    });
    let sender = move |to: SocketAddr, ecn: u8, data: &[u8]| {
        if sender_cut.load(Ordering::SeqCst) { Ok(()) } else { inner.send(to, ecn, data) }
    };
    (ControlSocket { sender: Arc::new(sender), incoming, port: local.port() }, local)
}

/// What a node is made of; kept, so that it can be started again.
pub(crate) struct Plan {
    pub(crate) network: NetworkParameters,
    pub(crate) membership: Membership,
    pub(crate) key: Arc<IdentityKey>,
    pub(crate) chain: Vec<Vec<u8>>,
    pub(crate) name: NodeName,
    pub(crate) link_key: LinkPublicKey,
    pub(crate) admin: Option<Admin>,
    pub(crate) known: Vec<SignedDescriptor>,
    pub(crate) revocations: Vec<SignedRevocation>,
    pub(crate) bootstrap: Vec<(Option<NodeId>, SocketAddr)>,
    pub(crate) clock: TestClock,
    pub(crate) persist: Arc<Memory>,
    pub(crate) timing: Timing,
    /// Do not publish an endpoint (a node behind NAT).
    pub(crate) hidden: bool,
}

pub(crate) struct Node {
    pub(crate) id: NodeId,
    pub(crate) name: NodeName,
    pub(crate) handle: ControlHandle,
    pub(crate) events: mpsc::UnboundedReceiver<ControlEvent>,
    pub(crate) address: SocketAddr,
    pub(crate) persist: Arc<Memory>,
    pub(crate) clock: TestClock,
    pub(crate) cut: Arc<AtomicBool>,
    pub(crate) own: OwnDescriptor,
}

pub(crate) fn fresh_key() -> Arc<IdentityKey> {
    Arc::new(IdentityKey::generate(&mut OsRandom).unwrap())
}

fn link_key_of(key: &IdentityKey) -> LinkPublicKey {
    // Any distinct 32 bytes do: no links are made here.
    let mut bytes = key.id().0;
    bytes[0] ^= 0xff;
    LinkPublicKey(bytes)
}

impl Plan {
    fn bare(
        network: NetworkParameters,
        membership: Membership,
        key: Arc<IdentityKey>,
        node_name: &str,
    ) -> Self {
        Self {
            network,
            membership,
            link_key: link_key_of(&key),
            key,
            chain: vec![],
            name: name(node_name),
            admin: None,
            known: vec![],
            revocations: vec![],
            bootstrap: vec![],
            clock: TestClock::at(NOW),
            persist: Arc::default(),
            timing: timing(),
            hidden: false,
        }
    }

    /// The founder of a certificate network.
    pub(crate) fn founder(node_name: &str) -> Self {
        let network_name: NetworkName = "home".parse().unwrap();
        let ca_key = IdentityKey::generate(&mut OsRandom).unwrap();
        let authority = Authority::create(ca_key, &network_name, NOW, &mut OsRandom).unwrap();
        let network = NetworkParameters::certificate(
            network_name.clone(),
            Suite::default(),
            &fingerprint(authority.certificate()),
        );
        let root = Trust::new(authority.certificate().to_vec(), network_name, network.id).unwrap();
        let mut plan = Self::bare(network, Membership::Certificate(root), fresh_key(), node_name);
        let mut registry = Registry::default();
        let member = registry
            .admit(
                plan.network.id,
                plan.key.id(),
                &plan.name,
                plan.link_key,
                NOW,
                |_| false,
                |_| false,
            )
            .unwrap();
        let request = CertificateRequest {
            id: plan.key.id(),
            name: member.name,
            addresses: member.addresses,
            origin: None,
        };
        plan.chain = vec![authority.issue(&request, NOW, &mut OsRandom).unwrap()];
        plan.admin = Some(Admin {
            authority,
            certificate_life: NODE_CERTIFICATE_LIFE,
            invites: Invites::default(),
            registry,
        });
        plan
    }

    /// A member with a certificate of `life` seconds by `founder`'s CA.
    pub(crate) fn certified(founder: &Plan, node_name: &str, life: u64) -> Self {
        let key = fresh_key();
        let mut plan =
            Self::bare(founder.network.clone(), founder.membership.clone(), key, node_name);
        let request = CertificateRequest {
            id: plan.key.id(),
            name: plan.name.clone(),
            addresses: plan.addresses(),
            origin: None,
        };
        let authority = &founder.admin.as_ref().unwrap().authority;
        plan.chain = vec![authority.issue_for(&request, NOW, life, &mut OsRandom).unwrap()];
        plan
    }

    /// A member with everything given.
    pub(crate) fn certified_with(
        network: NetworkParameters,
        membership: Membership,
        key: Arc<IdentityKey>,
        chain: Vec<Vec<u8>>,
        node_name: &str,
    ) -> Self {
        Self { chain, ..Self::bare(network, membership, key, node_name) }
    }

    /// A member that has just joined.
    pub(crate) fn joined(joined: &Joined, key: Arc<IdentityKey>) -> Self {
        let mut root =
            Trust::new(joined.ca.clone(), joined.network.name.clone(), joined.network.id).unwrap();
        root.apply(&joined.trust, NOW).unwrap();
        let mut plan = Self::bare(
            joined.network.clone(),
            Membership::Certificate(root),
            key,
            joined.name.as_str(),
        );
        plan.chain = joined.chain.clone();
        plan.known = joined.descriptors.clone();
        plan.revocations = joined.revocations.clone();
        plan.bootstrap = vec![(Some(joined.admitted_by.0), joined.admitted_by.1)];
        plan
    }

    /// A member of a network with one pre-shared key.
    pub(crate) fn psk(byte: u8, node_name: &str) -> Self {
        let psk = PresharedKey::from_bytes([byte; 32]);
        let network = NetworkParameters::psk("home".parse().unwrap(), Suite::default(), &psk);
        let membership = Membership::Psk(PskKeys::derive(&psk));
        Self::bare(network, membership, fresh_key(), node_name)
    }

    /// A member of a network of pinned keys.
    pub(crate) fn pinned(key: Arc<IdentityKey>, node_name: &str, peers: &[(NodeId, &str)]) -> Self {
        let network = NetworkParameters::key("home".parse().unwrap(), Suite::default());
        let mut pinned: BTreeMap<NodeId, NodeName> =
            peers.iter().map(|(id, n)| (*id, name(n))).collect();
        pinned.insert(key.id(), name(node_name));
        Self::bare(network, Membership::Key(pinned), key, node_name)
    }

    pub(crate) fn id(&self) -> NodeId {
        self.key.id()
    }

    pub(crate) fn addresses(&self) -> Vec<std::net::IpAddr> {
        let (network, id) = (self.network.id, self.key.id());
        vec![
            address::ipv6_of_node(network, id).into(),
            address::ipv4_of_key(network, &id.0, 0).into(),
        ]
    }

    pub(crate) fn start(self) -> Node {
        let cut = Arc::new(AtomicBool::new(false));
        let (socket, address) = socket(cut.clone());
        let own = OwnDescriptor {
            name: self.name.clone(),
            link_key: self.link_key,
            addresses: self.addresses(),
            clients: vec![],
            endpoints: if self.hidden { vec![] } else { vec![address] },
            routes: vec![],
            tcp_port: None,
            onion: None,
        };
        let id = self.key.id();
        let config = ControlConfig {
            network: self.network,
            membership: self.membership,
            key: self.key,
            chain: self.chain,
            own: own.clone(),
            admin: self.admin,
            certificate_life: NODE_CERTIFICATE_LIFE,
            known: self.known,
            revocations: self.revocations,
            bootstrap: self.bootstrap,
            bound: address,
            tcp_listener: None,
            tcp_fallback: true,
            approvals: vec![],
            persist: self.persist.clone(),
            clock: self.clock.clock(),
            timing: self.timing,
        };
        let (handle, events) = Control::spawn(config, socket).unwrap();
        Node {
            id,
            name: self.name,
            handle,
            events,
            address,
            persist: self.persist,
            clock: self.clock,
            cut,
            own,
        }
    }
}

impl Node {
    /// The first event that `pick` takes, skipping others.
    pub(crate) async fn until<T>(&mut self, mut pick: impl FnMut(ControlEvent) -> Option<T>) -> T {
        let search = async {
            loop {
                let event = self.events.recv().await.expect("the transport runs");
                if let Some(found) = pick(event) {
                    return found;
                }
            }
        };
        tokio::time::timeout(PATIENCE, search)
            .await
            .unwrap_or_else(|_| panic!("{} waited in vain", self.name))
    }

    /// The next connection to `node`.
    pub(crate) async fn connected(&mut self, node: NodeId) -> PeerConnected {
        self.until(|event| match event {
            ControlEvent::PeerConnected(mut peer) if peer.node == node => {
                // Nothing to install here: the peer may go ahead.
                peer.installed = tokio::sync::oneshot::channel().0;
                Some(*peer)
            }
            _ => None,
        })
        .await
    }

    /// The next refusal, as the log would show it.
    pub(crate) async fn refusal(&mut self) -> String {
        self.until(|event| match event {
            ControlEvent::Refused { reason, .. } => Some(reason.to_string()),
            _ => None,
        })
        .await
    }

    pub(crate) async fn lost(&mut self, node: NodeId) -> String {
        self.until(|event| match event {
            ControlEvent::PeerLost { node: lost, reason, .. } if lost == node => Some(reason),
            _ => None,
        })
        .await
    }

    /// Joins through this node's code; returns the plan of the new member.
    pub(crate) async fn invite(&self) -> String {
        self.handle.invite(900, 1).await.unwrap().0
    }
}

pub(crate) async fn join_with(
    code: &str,
    key: &Arc<IdentityKey>,
    node_name: &str,
    now: u64,
) -> Result<Joined, JoinError> {
    let code = JoinCode::decode(code, now).unwrap();
    let options = JoinRequestOptions {
        key: key.clone(),
        name: name(node_name),
        link_key: link_key_of(key),
        bind: "127.0.0.1:0".parse().unwrap(),
        tcp_fallback: true,
        clock: TestClock::at(now).clock(),
        timing: timing(),
    };
    join(&code, &options).await
}

/// Waits until `done` holds.
pub(crate) async fn eventually(what: &str, mut done: impl AsyncFnMut() -> bool) {
    let wait = async {
        while !done().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    if tokio::time::timeout(PATIENCE, wait).await.is_err() {
        panic!("never happened: {what}");
    }
}

/// Waits until the pair has settled on one connection; returns the link key
/// that each side was told last.
pub(crate) async fn settled(a: &mut Node, b: &mut Node) -> ([u8; 32], [u8; 32]) {
    let mut latest = [None, None];
    let mut calm = 0;
    let (a_id, b_id) = (a.id, b.id);
    let wait = async {
        while calm < 10 {
            tokio::time::sleep(Duration::from_millis(30)).await;
            calm += 1;
            for (slot, node, peer) in [(0, &mut *a, b_id), (1, &mut *b, a_id)] {
                while let Ok(event) = node.events.try_recv() {
                    if let ControlEvent::PeerConnected(connected) = event
                        && connected.node == peer
                    {
                        latest[slot] = Some(*connected.psk.expose());
                        calm = 0;
                    }
                }
            }
            let (at_a, at_b) = (a.handle.connections().await, b.handle.connections().await);
            let one = at_a.iter().filter(|c| c.node == b_id).count() == 1
                && at_b.iter().filter(|c| c.node == a_id).count() == 1;
            if !one || latest[0].is_none() || latest[1].is_none() {
                calm = 0;
            }
        }
    };
    if tokio::time::timeout(PATIENCE, wait).await.is_err() {
        panic!("{} and {} never settled on one connection", a.name, b.name);
    }
    (latest[0].unwrap(), latest[1].unwrap())
}
