//! The start of a node, in the order that leaves nothing half-made: check the
//! configuration, lock the state, take interface and port, become a member,
//! set up the interface, drop privileges, then serve.
//!
//! Invariants: no invitation is used up before interface and port are ours; a
//! new network is stored only when its interface is up; privileges are dropped
//! before the first thread that handles packets starts.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use tokio::sync::mpsc;
use warren_control::descriptor::{ClientRecord, MAX_ENDPOINTS};
use warren_control::identity::IdentityKey;
use warren_control::join_code::JoinCode;
use warren_os::privileges::{self, Kept};
use warren_os::tun::{TunOffloads, TunQueue};
use warren_proto::engine::{Engine, EngineConfig};
use warren_proto::link::event::ToEngine;
use warren_proto::link::tables::Tables;
use warren_proto::noise::StaticKey;
use warren_types::api::Event;
use warren_types::{DropCounters, LinkPublicKey};

use super::interface::{self, Interface};
use super::membership::{self, Standing};
use super::mesh::{Mesh, client_peer};
use super::names::Names;
use super::routing::Routing;
use super::subnets::Subnets;
use super::surroundings::Surroundings;
use super::{Daemon, Inbox, roles, startup, unix_now};
use crate::api;
use crate::config::{Auth, Config, Endpoint};
use crate::fault::{Fault, FaultKind};
use crate::host::Companion;
use crate::lan;
use crate::metrics;
use crate::random::OsRandom;
use crate::start::{Ended, Intent, Outcome, Ready, Start};
use crate::store::{DirectorySnapshot, Member, Store};
use crate::transport::{
    self, Clock, Control, ControlConfig, ControlSocket, Datagram, JoinError, JoinRequestOptions,
    OwnDescriptor, Timing,
};
use crate::uapi;
use crate::userspace::Isolator;
use crate::workers::{EngineQueues, WorkerConfig, Workers};

/// How long a joining machine looks for members on the local network.
const LAN_WAIT: Duration = Duration::from_secs(3);
/// Seconds the first join code of a new network is valid.
const FIRST_INVITE_S: u64 = 900;
/// Queue lengths. Handshakes: 256 of 148 bytes are a tenth of a second of work
/// for one core; more would only grow old.
const HANDSHAKES: usize = 256;
const QUIC: usize = 1024;
const LINK_EVENTS: usize = 1024;
const REQUESTS: usize = 64;
const ISOLATION: usize = 64;

/// Runs one node until it is stopped.
///
/// # Errors
/// [`Fault`] when it cannot start or go on, with the remedy.
pub async fn run(start: Start) -> Ended {
    let Start { config, intent, events, ready, stop } = start;
    let store = Arc::new(Store::open(&config.state_dir)?);
    // Early: a kill switch that is to be on is on again from here.
    let host = if config.userspace.is_none() { companion(&config) } else { None };
    let stored = store.member()?;
    refuse_second_network(&intent, stored.as_ref())?;
    // A mistyped code is told before anything is opened.
    let code = match &intent {
        Intent::Join { code } => Some(read_code(&config, code)?),
        Intent::Up => None,
    };

    let configured_roles = roles::configured(&config)?;
    // Before an invitation is used up; a mesh address is ours only later.
    let mut metrics_listener = None;
    if let Some(listen) = config.metrics.map(|metrics| metrics.address()) {
        let own = stored.as_ref().map(|member| member.addresses.as_slice()).unwrap_or_default();
        metrics::check(listen, own, config.userspace.is_none())?;
        if listen.ip().to_canonical().is_loopback() {
            metrics_listener = Some(metrics::bind(listen)?);
        }
    }

    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let pairs = config.worker_pairs(cores);
    let underlay = startup::bind(&config, pairs)?;
    let tcp_listener = startup::bind_tcp(&config)?;
    let tcp_port = tcp_listener.as_ref().and_then(|l| l.local_addr().ok()).map(|a| a.port());
    let packets = Interface::open(&config, pairs)?;
    let interface = packets.name().to_owned();
    let mtu = config.interface_mtu();

    let identity = Arc::new(store.identity(&mut OsRandom)?);
    let link_key = StaticKey::new(&store.link_key(&mut OsRandom)?);
    let now_s = unix_now().as_secs();
    let fresh = stored.is_none();
    let mut standing = match (stored, &code) {
        (Some(member), _) => membership::load(&store, &config, &identity, member)?,
        (None, None) => membership::create(&config, &identity, link_key.public(), now_s)?,
        (None, Some(code)) => join(&store, &config, &identity, &link_key, code).await?,
    };
    let prefixes = membership::prefixes(&standing.member.network);
    packets.configure(mtu, &standing.member.addresses, &prefixes)?;
    if let (None, Some(metrics)) = (&metrics_listener, config.metrics) {
        metrics_listener = Some(metrics::bind(metrics.address())?);
    }
    if fresh {
        membership::save(&store, &standing)?;
    }
    let mut names =
        Names::prepare(&config, identity.id(), &standing.member, &prefixes, &interface).await;
    let listener = api::bind(&config.api_socket())?;
    // Without an interface there is nothing for WireGuard's tools to name.
    let wg_tool = config.userspace.is_none().then(|| wg_socket(&interface)).flatten();
    confine(&config, wg_tool.as_ref().map(|s| s.path().to_owned()));

    let epoch = Instant::now();
    let drops = Arc::new(DropCounters::default());
    let tables = Arc::new(Tables::default());
    let onion = super::onion::Onion::new(standing.member.network.suite, tables.clone());
    let mut engine = Engine::new(
        EngineConfig::new(link_key, standing.member.addresses.clone(), mtu, drops.clone()),
        tables.clone(),
        epoch,
    );
    engine.set_relaying(config.relay);
    let (handshakes, handshakes_in) = mpsc::channel(HANDSHAKES);
    let (quic, quic_in) = mpsc::channel(QUIC);
    let (links, links_in) = mpsc::channel(LINK_EVENTS);
    let (tun_queues, offloads, stack) = packets.split();
    let workers = spawn_workers(
        (tun_queues, offloads),
        &underlay,
        tables,
        drops.clone(),
        EngineQueues { handshakes, quic, events: links },
        &engine,
        epoch,
    )?;
    let sender = workers.sender();
    let own = interface::addresses(&standing.member.addresses, mtu, &prefixes);
    let (isolator, isolation) = mpsc::channel(ISOLATION);
    let isolator = Isolator::new(isolator);
    let userspace = stack.map(|stack| stack.start(own, names.zone(), isolator)).transpose()?;

    let clients = store.clients()?;
    for client in &clients {
        engine.upsert_peer(
            client_peer(client),
            super::Now { instant: Instant::now(), unix: unix_now() },
            &mut OsRandom,
        );
    }
    names.set_own(&standing.member, &clients);
    names.serve();
    let mesh = Mesh::new(identity.id(), standing.member.network.suite, config.pq, clients);
    let endpoints = advertised(&config, underlay.local, &interface).await;
    let id = identity.id();
    let routes: super::subnets::RouteFile = store.list(super::routes::FILE)?;
    let approvals = routes.signed();
    let subnets = Subnets::load(routes);
    let place = standing.member.addresses.iter().find_map(|address| match address {
        IpAddr::V6(v6) => Some(*v6),
        IpAddr::V4(_) => None,
    });
    let own_place = place.unwrap_or(Ipv6Addr::UNSPECIFIED);
    let routing = Routing::new(own_place, config.relay);
    let admin = standing.admin.is_some();
    let saved = store.directory();
    let roles = roles::OnionRoles::load(&store, configured_roles, now_s)?;
    let (control, control_events) = Control::spawn(
        ControlConfig {
            key: identity,
            network: standing.member.network.clone(),
            membership: standing.membership.clone(),
            chain: std::mem::take(&mut standing.chain),
            own: own_descriptor(
                &standing.member,
                engine.public_key(),
                &mesh,
                &endpoints,
                &subnets.advertised,
                tcp_port,
                &roles,
            ),
            approvals,
            admin: standing.admin.take(),
            certificate_life: config.certificate_life(),
            persist: store.clone(),
            bootstrap: bootstrap(&config).await,
            bound: underlay.local,
            tcp_listener,
            tcp_fallback: config.tcp_fallback,
            known: saved.descriptors,
            revocations: saved.revocations,
            clock: clock(),
            timing: Timing::default(),
        },
        control_socket(sender.clone(), quic_in, underlay.local.port()),
    )
    .map_err(|e| Fault::new(FaultKind::Internal, e.to_string()))?;

    let (requests, requests_in) = mpsc::channel(REQUESTS);
    tokio::spawn({
        let (requests, events) = (requests.clone(), events.clone());
        async move {
            if let Err(error) = api::serve(listener, requests, events).await {
                tracing::error!(%error, "the local API has stopped");
            }
        }
    });
    if let Some(listener) = metrics_listener {
        tokio::spawn(metrics::serve(listener, requests.clone()));
    }
    if let Some(socket) = wg_tool {
        tokio::spawn(uapi::serve(socket, requests));
    }

    let (surroundings, around) =
        Surroundings::start(&config, standing.member.network.id, id, underlay.local);
    let names_status = names.status();
    let mut daemon = Daemon {
        store,
        config,
        id,
        member: standing.member.clone(),
        prefixes,
        interface,
        listen: underlay.local,
        told: endpoints.clone(),
        endpoints,
        tcp_port,
        mtu,
        epoch,
        engine,
        workers,
        userspace,
        sender,
        drops,
        mesh,
        names,
        surroundings,
        host,
        routing,
        reflexive: Default::default(),
        subnets,
        roles,
        onion,
        happened: Default::default(),
        path_reasons: HashMap::new(),
        routes_kept: Instant::now(),
        looping_untold: false,
        control,
        events: events.clone(),
        notices: standing.notice.take().map(|notice| ("root", notice)).into_iter().collect(),
        ending: None,
    };
    daemon.apply_duties();
    daemon.resume_session();
    let outcome = match (fresh, &intent) {
        (false, _) => Outcome::Restarted { admin },
        (true, Intent::Join { .. }) => Outcome::Joined,
        (true, Intent::Up) if admin => {
            let code = daemon.control.invite(FIRST_INVITE_S, 1).await;
            Outcome::Created { code: code.map(|(code, _)| code).map_err(|e| e.to_string()) }
        }
        (true, Intent::Up) => Outcome::Configured,
    };
    events.publish(Event::Started {
        name: standing.member.name.to_string(),
        addresses: standing.member.addresses.clone(),
    });
    let _nobody_waits = ready.send(Ready {
        node: standing.member.name,
        network: standing.member.network.name,
        addresses: standing.member.addresses,
        names: names_status,
        outcome,
    });
    let inbox = Inbox {
        handshakes: handshakes_in,
        links: links_in,
        control: control_events,
        requests: requests_in,
        isolation,
        around,
    };
    daemon.serve(inbox, stop).await
}

/// The process that changes the machine for us from here on. A node without the
/// privilege for it is a node all the same, but neither exit nor client.
fn companion(config: &Config) -> Option<Companion> {
    match Companion::start(&config.state_dir) {
        Ok((companion, state)) => {
            tracing::debug!(pid = companion.pid(), ?state, "the helper process");
            Some(companion)
        }
        Err(fault) => {
            tracing::info!(%fault, "neither exits nor onion paths of the whole machine from here");
            None
        }
    }
}

/// The socket of `wg show`; a comfort, so failing is only noted.
fn wg_socket(interface: &str) -> Option<uapi::Socket> {
    let bound = interface
        .parse()
        .map_err(|e| format!("{e}"))
        .and_then(|name| uapi::bind(uapi::RUN_DIR.as_ref(), &name).map_err(|e| e.to_string()));
    bound
        .inspect_err(|reason| {
            tracing::info!("`wg show {interface}` will not work: {}: {reason}", uapi::RUN_DIR);
        })
        .ok()
}

fn clock() -> Clock {
    Arc::new(|| unix_now().as_secs())
}

fn refuse_second_network(intent: &Intent, stored: Option<&Member>) -> Result<(), Fault> {
    let (Intent::Join { .. }, Some(member)) = (intent, stored) else { return Ok(()) };
    Err(Fault::new(
        FaultKind::State,
        format!(
            "this machine is already a member of `{}` as `{}`",
            member.network.name, member.name
        ),
    )
    .remedy(
        "`warren up` starts it again; `warren leave` first to join another network, or give \
         another --state-dir",
    ))
}

/// Reads a join code and checks it against the configuration.
fn read_code(config: &Config, code: &str) -> Result<JoinCode, Fault> {
    let Auth::Certificate = config.auth else {
        return Err(Fault::new(
            FaultKind::Config,
            format!("a network in {} mode is not joined by a code", config.auth.as_str()),
        )
        .remedy("start this node with `warren up --config FILE`, the file naming the mode"));
    };
    let code = JoinCode::decode(code, unix_now().as_secs())
        .map_err(|e| Fault::new(FaultKind::Refused, e.to_string()))?;
    if let Some(network) = config.network.as_ref().filter(|n| **n != code.network) {
        return Err(Fault::new(
            FaultKind::Config,
            format!("the code is for the network `{}`, not `{network}`", code.network),
        )
        .remedy("drop the setting `network`: a joining node takes it from the code"));
    }
    Ok(code)
}

/// Becomes a member by a join code, over a port of its own.
async fn join(
    store: &Store,
    config: &Config,
    identity: &Arc<IdentityKey>,
    link_key: &StaticKey,
    code: &JoinCode,
) -> Result<Standing, Fault> {
    let request = JoinRequestOptions {
        key: identity.clone(),
        name: membership::choose_name(config)?,
        link_key: link_key.public(),
        bind: SocketAddr::from(([0_u16; 8], 0)),
        tcp_fallback: config.tcp_fallback,
        clock: clock(),
        timing: Timing::default(),
    };
    let joined = match transport::join(code, &request).await {
        Err(error @ JoinError::Unreachable { .. }) if config.lan_discovery => {
            join_nearby(code, &request).await.unwrap_or(Err(error))
        }
        joined => joined,
    };
    let joined = joined.map_err(|error| {
        let kind = match error {
            JoinError::Unreachable { .. } => FaultKind::Unreachable,
            JoinError::Bind { .. } => FaultKind::Resource,
            JoinError::Local(_) => FaultKind::Internal,
            _ => FaultKind::Refused,
        };
        Fault::new(kind, error.to_string())
    })?;
    let member = Member { network: joined.network, name: joined.name, addresses: joined.addresses };
    let standing = membership::joined(config, member, joined.chain, &joined.ca, &joined.trust)?;
    store.save_directory(&DirectorySnapshot {
        descriptors: joined.descriptors,
        revocations: joined.revocations,
    })?;
    membership::save(store, &standing)?;
    Ok(standing)
}

/// A second try, at members on the local network: the addresses in a code grow
/// old when the inviting node moves. `None` when nobody is there or none of
/// them could admit us; then the first failure says more.
async fn join_nearby(
    code: &JoinCode,
    request: &JoinRequestOptions,
) -> Option<Result<transport::Joined, JoinError>> {
    let mut endpoints = lan::find(code.network_id, LAN_WAIT)
        .await
        .inspect_err(|error| tracing::info!(%error, "no discovery on the local network"))
        .ok()?;
    endpoints.retain(|found| !code.endpoints.contains(found));
    endpoints.truncate(MAX_ENDPOINTS);
    if endpoints.is_empty() {
        return None;
    }
    tracing::info!(?endpoints, "trying members on the local network");
    let nearby = JoinCode { endpoints, ..code.clone() };
    match transport::join(&nearby, request).await {
        Err(JoinError::Unreachable { .. }) => None,
        result => Some(result),
    }
}

fn spawn_workers(
    (tun_queues, offloads): (Vec<TunQueue>, TunOffloads),
    underlay: &startup::Underlay,
    tables: Arc<Tables>,
    drops: Arc<DropCounters>,
    queues: EngineQueues,
    engine: &Engine,
    epoch: Instant,
) -> Result<Workers, Fault> {
    Workers::spawn(WorkerConfig {
        queues: tun_queues,
        offloads,
        sockets: underlay.sockets.clone(),
        tables,
        drops,
        engine: queues,
        mac_key: engine.mac_key(),
        one_thread: std::thread::available_parallelism().is_ok_and(|cores| cores.get() <= 2),
        epoch,
    })
    .map_err(|e| Fault::new(FaultKind::Resource, format!("cannot start the data path: {e}")))
}

/// What this node says about itself.
pub(super) fn own_descriptor(
    member: &Member,
    link_key: LinkPublicKey,
    mesh: &Mesh,
    endpoints: &[SocketAddr],
    routes: &[IpNet],
    tcp_port: Option<u16>,
    roles: &roles::OnionRoles,
) -> OwnDescriptor {
    let clients = mesh.clients().iter().map(|client| ClientRecord {
        name: client.name.clone(),
        key: client.public_key,
        addresses: client.addresses.clone(),
    });
    OwnDescriptor {
        name: member.name.clone(),
        link_key,
        addresses: member.addresses.clone(),
        clients: clients.collect(),
        endpoints: endpoints.to_vec(),
        routes: routes.to_vec(),
        tcp_port,
        onion: roles.section(),
    }
}

/// The control transport's view of the shared port.
fn control_socket(
    sender: crate::workers::DatagramSender,
    mut from_workers: mpsc::Receiver<ToEngine>,
    port: u16,
) -> ControlSocket {
    let (feed, incoming) = mpsc::channel(QUIC);
    tokio::spawn(async move {
        while let Some(event) = from_workers.recv().await {
            if let ToEngine::Quic { from, ecn, data } = event {
                // QUIC repairs what a full queue loses.
                let _full = feed.try_send(Datagram { from, ecn, data });
            }
        }
    });
    let send = move |to: SocketAddr, ecn: u8, data: &[u8]| {
        sender
            .send(&warren_os::udp::Transmit { to, data, segment: data.len(), tos: ecn })
            .map_err(|e| e.source)
    };
    ControlSocket { sender: Arc::new(send), incoming, port }
}

/// Drops what the daemon does not need from here on.
fn confine(config: &Config, wg_socket: Option<PathBuf>) {
    if config.dangerous.keep_privileges {
        tracing::warn!("privileges are kept: [dangerous] keep_privileges is set");
        return;
    }
    let mut writable = vec![config.state_dir.clone()];
    writable.extend(wg_socket.and_then(|path| path.parent().map(PathBuf::from)));
    for measure in privileges::confine(&Kept { writable, readable: Vec::new() }) {
        match measure.outcome {
            Ok(_) => tracing::info!("confined: {measure}"),
            Err(_) => tracing::warn!("confined less than could be: {measure}"),
        }
    }
}

async fn resolve(endpoint: &Endpoint) -> Vec<SocketAddr> {
    if let Some(address) = endpoint.address() {
        return vec![address];
    }
    match tokio::net::lookup_host((endpoint.host(), endpoint.port())).await {
        Ok(addresses) => addresses.collect(),
        Err(error) => {
            tracing::warn!(%endpoint, %error, "cannot resolve");
            Vec::new()
        }
    }
}

/// Where others are told to reach this node.
async fn advertised(config: &Config, local: SocketAddr, interface: &str) -> Vec<SocketAddr> {
    if config.endpoints.is_empty() {
        return startup::local_endpoints(local, interface);
    }
    let mut all = Vec::new();
    for endpoint in &config.endpoints {
        all.extend(resolve(endpoint).await);
    }
    all
}

/// Where the control transport starts looking, besides what is remembered.
async fn bootstrap(config: &Config) -> Vec<(Option<warren_types::NodeId>, SocketAddr)> {
    let mut all = Vec::new();
    for endpoint in &config.bootstrap {
        all.extend(resolve(endpoint).await.into_iter().map(|a| (None, a)));
    }
    if let Auth::Key { peers } = &config.auth {
        for peer in peers {
            let Some(endpoint) = &peer.endpoint else { continue };
            all.extend(resolve(endpoint).await.into_iter().map(|a| (Some(peer.public_key), a)));
        }
    }
    all
}
