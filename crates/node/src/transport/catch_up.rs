//! How a node that was away while the network's roots changed gets back in.
//!
//! Its certificate is under a root that is no longer trusted, and it does not
//! know the present one: ordinary connections fail on both sides. So it asks,
//! under a protocol of its own, for the records that lead from the founding root
//! to the present one, which it checks by itself, and is given a certificate
//! under it if the other side is an admin that knows it. In: a connection whose
//! key TLS proved. Out: [`Input::CaughtUp`]. Invariants: nothing is told that TLS
//! does not show everybody (roots), but the new certificate, which is of use to
//! the holder of the key only; what comes in is bounded, and checked by the core
//! before it counts. Deliberately not here: the checks.

use std::net::SocketAddr;
use std::sync::Arc;

use quinn::{ClientConfig, Connection, Endpoint};
use tokio::sync::oneshot;
use tokio::time::timeout;
use warren_control::membership::MembershipError;
use warren_control::verify::CertificateError;
use warren_control::wire::{MAX_FRAME, Message};

use super::core::Input;
use super::dial::{self, Candidates};
use super::event::RefuseReason;
use super::frame;
use super::session::{CLOSE_DONE, Failure};
use super::shared::{Shared, peer_chain};

/// Largest request, bytes.
const MAX_REQUEST: usize = 64;

/// Answers a node that asks.
pub(crate) async fn serve(shared: &Arc<Shared>, connection: &Connection) -> Result<(), Failure> {
    let ended = |reason: String| Failure::Ended { reason, refused: false };
    let accepted = connection.accept_bi().await;
    let (mut send, mut recv) = accepted.map_err(|e| ended(e.to_string()))?;
    match frame::read(&mut recv, MAX_REQUEST).await? {
        Message::TrustRequest => {}
        _ => return Err(RefuseReason::Protocol("a request for roots was expected".into()).into()),
    }
    let (reply, answer) = oneshot::channel();
    let input = Input::CatchUp { chain: peer_chain(connection), reply };
    let stopping = || ended("this node stops".into());
    shared.input.send(input).await.map_err(|_| stopping())?;
    for message in answer.await.map_err(|_| stopping())? {
        frame::write(&mut send, &message).await?;
    }
    let _ = send.finish();
    // The other side closes when it has read everything.
    connection.closed().await;
    Ok(())
}

/// Asks at `addresses`; what is learnt goes to the core.
pub(crate) async fn ask(
    shared: Arc<Shared>,
    endpoint: Endpoint,
    config: ClientConfig,
    candidates: Candidates,
) {
    let wait = shared.timing.handshake;
    let (_, late) = oneshot::channel();
    let raced = dial::race(&endpoint, &config, &candidates, late, wait, |_| Ok(())).await;
    let Ok((connection, ())) = raced else { return };
    let exchange = async {
        let (mut send, mut recv) = connection.open_bi().await.ok()?;
        frame::write(&mut send, &Message::TrustRequest).await.ok()?;
        let Ok(Message::TrustReply(reply)) = frame::read(&mut recv, MAX_FRAME).await else {
            return None;
        };
        let chain = match frame::read(&mut recv, MAX_FRAME).await {
            Ok(Message::RenewReply(chain)) => Some(chain),
            // It is no admin, or does not know us.
            _ => None,
        };
        Some((reply, chain))
    };
    let learnt = timeout(wait * 2, exchange).await;
    connection.close(CLOSE_DONE, b"");
    if let Ok(Some((reply, chain))) = learnt {
        let _ = shared.input.send(Input::CaughtUp { reply, chain }).await;
    }
}

/// True when a refusal may only mean that one side does not know the other's
/// root.
pub(crate) fn is_unknown_root(reason: &RefuseReason) -> bool {
    use CertificateError as E;
    matches!(
        reason,
        RefuseReason::Membership(MembershipError::Certificate(E::WrongAuthority | E::FormerRoot))
    )
}

/// Tells the core of a peer whose root is not known here.
pub(crate) async fn consider(
    shared: &Arc<Shared>,
    reason: &RefuseReason,
    addresses: Vec<SocketAddr>,
) {
    if is_unknown_root(reason) {
        let _ = shared.input.send(Input::UnknownRoot { addresses }).await;
    }
}
