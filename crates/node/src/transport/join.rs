//! `warren join`: a machine without a network becomes a member.
//!
//! In: a join code, fresh keys, the wanted name. Out: everything a daemon needs
//! to start as a member ([`Joined`]), or one error with its remedy. Invariants:
//! the token is shown only to a node that proves to be of the network in the
//! code (CA fingerprint); nothing is written here, so a failed join leaves
//! nothing half-made. Deliberately not here: files.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use quinn::{Connection, Endpoint, TokioRuntime};
use tokio::sync::oneshot;
use tokio::time::timeout;
use warren_control::ca;
use warren_control::descriptor::SignedDescriptor;
use warren_control::identity::IdentityKey;
use warren_control::join_code::JoinCode;
use warren_control::network::{AuthKind, NetworkParameters, fingerprint};
use warren_control::revocation::{RevocationList, SignedRevocation};
use warren_control::trust::{Trust, TrustChain};
use warren_control::verify::{CertificateError, verify_chain};
use warren_control::wire::{ALPN_JOIN, JoinRefusal, JoinRequest, MAX_FRAME, Message};
use warren_types::{LinkPublicKey, NodeId, NodeName};

use super::dial::{self, Candidates};
use super::event::RefuseReason;
use super::frame;
use super::session::{CLOSE_DONE, Failure};
use super::shared::{Clock, peer_chain};
use super::tls::{self, Timing};
use super::tunnel::Tunnels;
use crate::random::OsRandom;

/// How long the end of the connection may take.
const GOODBYE: Duration = Duration::from_millis(200);

/// What a joiner brings.
pub struct JoinRequestOptions {
    /// Its fresh identity key.
    pub key: Arc<IdentityKey>,
    /// The name it wants.
    pub name: NodeName,
    /// Its fresh link key.
    pub link_key: LinkPublicKey,
    /// Address to send from: the port that the daemon will listen on, so that
    /// a NAT on the way keeps its mapping. Port 0 for any.
    pub bind: SocketAddr,
    /// Try the inviting node over TCP too, if it offers that.
    pub tcp_fallback: bool,
    /// Seconds since 1970.
    pub clock: Clock,
    /// Times.
    pub timing: Timing,
}

/// What a new member has.
#[derive(Debug, Clone)]
pub struct Joined {
    /// The network.
    pub network: NetworkParameters,
    /// Our name.
    pub name: NodeName,
    /// Our overlay addresses.
    pub addresses: Vec<IpAddr>,
    /// Our certificate chain, leaf first, without the root.
    pub chain: Vec<Vec<u8>>,
    /// The founding root's certificate.
    pub ca: Vec<u8>,
    /// The records that lead from it to the present root.
    pub trust: TrustChain,
    /// Members to connect to, the admitting node first.
    pub descriptors: Vec<SignedDescriptor>,
    /// Who was revoked.
    pub revocations: Vec<SignedRevocation>,
    /// Who admitted us, and where it answered; the address is of no use later
    /// when it was reached over TCP.
    pub admitted_by: (NodeId, SocketAddr),
}

/// Joining failed; nothing was changed. The text says what to do.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// No address of the code answered.
    #[error(
        "no answer from {}: check that the inviting node runs and that this machine reaches it; \
         where UDP is blocked, a node that offers TCP (`--tcp-listen`) must invite{}",
        list(endpoints),
        if detail.is_empty() { String::new() } else { format!(" ({detail})") }
    )]
    Unreachable {
        /// Where we tried.
        endpoints: Vec<SocketAddr>,
        /// What happened.
        detail: String,
    },
    /// Somebody answered who is not of the network in the code.
    #[error(
        "the node at {0} is not of the network in the join code; the token was not shown to it. \
         Run `warren invite` again on a member"
    )]
    WrongNetwork(SocketAddr),
    /// Its certificate is not valid now.
    #[error("the inviting node's certificate is refused: {0}")]
    Certificate(CertificateError),
    /// It told us why.
    #[error("{0}")]
    Refused(JoinRefusal),
    /// It did not say why.
    #[error(
        "the inviting node refused: the join code is not known to it. Run `warren invite` on it \
         for a new one; its log says which check failed"
    )]
    RefusedSilently,
    /// The answer makes no sense.
    #[error("the inviting node answered wrongly: {0}; install the same version of Warren on both")]
    Protocol(String),
    /// The local address cannot be used.
    #[error("cannot send from {address}: {reason}; choose another port with `--listen`")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// Why.
        reason: std::io::Error,
    },
    /// A fault of this machine.
    #[error("{0}")]
    Local(String),
}

fn list(endpoints: &[SocketAddr]) -> String {
    endpoints.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// Joins the network of `code`. Must run inside a tokio runtime.
///
/// # Errors
/// One error with its remedy.
pub async fn join(code: &JoinCode, options: &JoinRequestOptions) -> Result<Joined, JoinError> {
    let now = (options.clock)();
    let local = |e: &dyn std::fmt::Display| JoinError::Local(e.to_string());
    let own = ca::self_signed(&options.key, now, &mut OsRandom).map_err(|e| local(&e))?;
    let config =
        tls::client(&options.key, &[own], ALPN_JOIN, &options.timing).map_err(|e| local(&e))?;
    let endpoint = bind(options.bind, &code.endpoints)?;
    let result = exchange(&endpoint, config, code, options).await;
    endpoint.close(CLOSE_DONE, b"");
    // Long enough to say goodbye; addresses that never answered would hold this
    // up for seconds.
    let _ = timeout(GOODBYE, endpoint.wait_idle()).await;
    result
}

fn bind(wanted: SocketAddr, endpoints: &[SocketAddr]) -> Result<Endpoint, JoinError> {
    // A dual-stack socket where the system has one; else what the endpoints need.
    let wildcard = if endpoints.iter().all(SocketAddr::is_ipv4) {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED)
    } else {
        IpAddr::V6(Ipv6Addr::UNSPECIFIED)
    };
    let address = if wanted.ip().is_unspecified() {
        SocketAddr::new(wildcard, wanted.port())
    } else {
        wanted
    };
    let error = |reason| JoinError::Bind { address, reason };
    let socket = std::net::UdpSocket::bind(address).map_err(error)?;
    // Where nobody may set it, nobody asks for it.
    let _unmarked = warren_os::mark::mark(&socket);
    Endpoint::new(tls::endpoint(), None, socket, Arc::new(TokioRuntime)).map_err(error)
}

async fn exchange(
    endpoint: &Endpoint,
    config: quinn::ClientConfig,
    code: &JoinCode,
    options: &JoinRequestOptions,
) -> Result<Joined, JoinError> {
    let now = (options.clock)();
    let expected = code.clone();
    let check = move |connection: &Connection| check_inviter(connection, &expected, now);
    let wait = options.timing.handshake;
    let bound = endpoint.local_addr().map_err(|e| JoinError::Local(e.to_string()))?;
    let tunnels = Tunnels::new(bound).map_err(|e| JoinError::Local(e.to_string()))?;
    let tcp = if options.tcp_fallback { code.tcp.clone() } else { Vec::new() };
    let candidates = Candidates { udp: code.endpoints.clone(), tcp, tunnels };
    // Nobody relays for who is no member yet.
    let (_, late) = oneshot::channel();
    let raced = dial::race(endpoint, &config, &candidates, late, wait, check).await;
    let (connection, (root, inviter)) =
        raced.map_err(|failures| explain(&code.endpoints, failures))?;
    let request = Message::JoinRequest(JoinRequest {
        token: code.token.clone(),
        name: options.name.clone(),
        link_key: options.link_key,
        time: (options.clock)(),
    });
    let answer = timeout(wait * 2, async {
        let (mut send, mut recv) =
            connection.open_bi().await.map_err(|e| frame::FrameError::Ended(e.to_string()))?;
        frame::write(&mut send, &request).await?;
        frame::read(&mut recv, MAX_FRAME).await
    })
    .await;
    let remote = super::shared::remote(&connection);
    let accepted = match answer {
        Ok(Ok(Message::JoinAccepted(accepted))) => accepted,
        Ok(Ok(Message::JoinRefused(refusal))) => return Err(JoinError::Refused(refusal)),
        Ok(Ok(_)) => return Err(JoinError::Protocol("not an answer to a request".into())),
        Ok(Err(error)) => {
            return Err(match connection.close_reason() {
                Some(quinn::ConnectionError::ApplicationClosed(_)) => JoinError::RefusedSilently,
                _ => JoinError::Protocol(error.to_string()),
            });
        }
        Err(_) => {
            let detail = "it answered first and then no more".into();
            return Err(JoinError::Unreachable { endpoints: vec![remote], detail });
        }
    };
    let wrong = |what: &str| JoinError::Protocol(what.into());
    // From the root that the code names to the founding one, which names the
    // network.
    let reply = accepted.trust.clone().ok_or_else(|| wrong("it does not tell the roots"))?;
    let founding = fingerprint(&reply.founding);
    let named = NetworkParameters::certificate(accepted.network.clone(), accepted.suite, &founding);
    let mut trust = Trust::new(reply.founding, accepted.network.clone(), accepted.network_id)
        .map_err(JoinError::Certificate)?;
    trust.apply(&reply.chain, now).map_err(|e| wrong(&e.to_string()))?;
    let code_root = trust.all().any(|r| r.certificate == root.current().certificate);
    if named.id != code.network_id || !code_root {
        return Err(wrong("its roots are not those of the network in the join code"));
    }
    let own = verify_chain(&accepted.chain, &trust, &RevocationList::default(), now)
        .map_err(JoinError::Certificate)?;
    let ours = own.id == options.key.id()
        && own.name == options.name
        && accepted.network_id == code.network_id
        && accepted.network == code.network;
    if !ours {
        return Err(JoinError::Protocol("the certificate is not what was asked for".into()));
    }
    connection.close(CLOSE_DONE, b"");
    Ok(Joined {
        network: NetworkParameters {
            name: accepted.network,
            id: accepted.network_id,
            suite: accepted.suite,
            auth: AuthKind::Certificate,
        },
        name: own.name,
        addresses: own.addresses,
        chain: accepted.chain,
        ca: trust.founding().certificate.clone(),
        trust: trust.chain(),
        descriptors: accepted.descriptors,
        revocations: accepted.revocations,
        admitted_by: (inviter, remote),
    })
}

/// Is the node that answered of the network in the code?
fn check_inviter(
    connection: &Connection,
    code: &JoinCode,
    now: u64,
) -> Result<(Trust, NodeId), Failure> {
    let chain = peer_chain(connection);
    let root = chain
        .iter()
        .find(|c| fingerprint(c) == code.ca_fingerprint)
        .ok_or(CertificateError::WrongAuthority)
        .and_then(|c| Trust::new(c.clone(), code.network.clone(), code.network_id));
    let refused = |e: CertificateError| Failure::Refused(RefuseReason::Membership(e.into()));
    let root = root.map_err(refused)?;
    let node = verify_chain(&chain, &root, &RevocationList::default(), now).map_err(refused)?;
    Ok((root, node.id))
}

fn explain(endpoints: &[SocketAddr], failures: Vec<(SocketAddr, Failure)>) -> JoinError {
    use warren_control::membership::MembershipError;
    let mut detail = Vec::new();
    for (address, failure) in failures {
        match failure {
            Failure::Refused(RefuseReason::Membership(MembershipError::Certificate(error))) => {
                return match error {
                    CertificateError::WrongAuthority | CertificateError::WrongName => {
                        JoinError::WrongNetwork(address)
                    }
                    other => JoinError::Certificate(other),
                };
            }
            Failure::Refused(other) => return JoinError::Protocol(other.to_string()),
            Failure::Ended { reason, .. } => detail.push(format!("{address}: {reason}")),
            Failure::Duplicate(_) => {}
        }
    }
    JoinError::Unreachable { endpoints: endpoints.to_vec(), detail: detail.join("; ") }
}
