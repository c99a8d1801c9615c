//! Connections that others open: members and joiners.
//!
//! Invariants: the number of connections that have not proven anything is
//! bounded in all and per address; above a first bound the source must prove
//! its address by QUIC Retry before we do any cryptography for it. Every
//! refusal looks the same from outside. Deliberately not here: decisions.

use std::sync::Arc;
use std::time::Duration;

use quinn::{Connection, Endpoint, Incoming};
use tokio::sync::oneshot;
use tokio::time::timeout;
use warren_control::verify::subject_key;
use warren_control::wire::{ALPN_CONTROL, ALPN_JOIN, ALPN_TRUST, Message};

use super::admin::JoinAnswer;
use super::catch_up;
use super::core::Input;
use super::event::RefuseReason;
use super::frame;
use super::session::{self, CLOSE_DONE, CLOSE_REFUSED, Failure};
use super::shared::{Admission, Shared, alpn, peer_chain, remote};
use super::socket::canonical;

/// Largest request of a joiner, bytes.
const MAX_JOIN_REQUEST: usize = 1024;

/// Takes connections until the endpoint closes.
pub(crate) async fn run(shared: Arc<Shared>, endpoint: Endpoint) {
    while let Some(incoming) = endpoint.accept().await {
        let from = canonical(incoming.remote_address()).ip();
        match shared.gate.enter(from, incoming.remote_address_validated()) {
            Admission::Enter(permit) => {
                let shared = shared.clone();
                tokio::spawn(async move {
                    let remote = canonical(incoming.remote_address());
                    let result = serve(&shared, incoming, permit).await;
                    if let Err(Failure::Refused(reason)) = result {
                        let _ = shared.input.send(Input::Refused { remote, reason }).await;
                    }
                });
            }
            Admission::Retry => {
                // Fails only when it is one already, which `enter` rules out.
                let _ = incoming.retry();
            }
            Admission::Refuse => incoming.refuse(),
        }
    }
}

async fn serve(
    shared: &Arc<Shared>,
    incoming: Incoming,
    permit: super::shared::Permit,
) -> Result<(), Failure> {
    let tls = |e: quinn::ConnectionError| Failure::Refused(RefuseReason::Tls(e.to_string()));
    let own = shared.id();
    let connecting = incoming.accept().map_err(tls)?;
    let connection = timeout(shared.timing.handshake, connecting)
        .await
        .map_err(|_| RefuseReason::Timeout)?
        .map_err(tls)?;
    if alpn(&connection).as_deref() == Some(ALPN_JOIN) {
        let work = admit(shared, &connection);
        let result = timeout(shared.timing.handshake * 2, work)
            .await
            .unwrap_or(Err(RefuseReason::Timeout.into()));
        return match result {
            Ok(()) => {
                connection.close(CLOSE_DONE, b"");
                Ok(())
            }
            Err(failure) => Err(session::close_for(&connection, failure)),
        };
    }
    if alpn(&connection).as_deref() == Some(ALPN_TRUST) {
        let work = catch_up::serve(shared, &connection);
        let result = timeout(shared.timing.handshake, work).await;
        connection.close(CLOSE_DONE, b"");
        return result.unwrap_or(Err(RefuseReason::Timeout.into()));
    }
    debug_assert_eq!(alpn(&connection).as_deref(), Some(ALPN_CONTROL), "only three are offered");
    match shared.authenticate(&connection, None) {
        Ok(identity) => {
            session::run(shared.clone(), connection, None, own, identity, Some(permit)).await
        }
        Err(reason) => {
            connection.close(CLOSE_REFUSED, b"");
            catch_up::consider(shared, &reason, vec![remote(&connection)]).await;
            Err(Failure::Refused(reason))
        }
    }
}

/// Serves one joiner. Its key is proven by TLS, its right by the token.
async fn admit(shared: &Arc<Shared>, connection: &Connection) -> Result<(), Failure> {
    let chain = peer_chain(connection);
    let node = chain
        .first()
        .and_then(|leaf| subject_key(leaf).ok())
        .ok_or_else(|| RefuseReason::Protocol("the joiner showed no key".into()))?;
    let ended =
        |e: quinn::ConnectionError| Failure::Ended { reason: e.to_string(), refused: false };
    let (mut send, mut recv) = connection.accept_bi().await.map_err(ended)?;
    let request = match frame::read(&mut recv, MAX_JOIN_REQUEST).await? {
        Message::JoinRequest(request) => request,
        _ => return Err(RefuseReason::Protocol("a request to join was expected".into()).into()),
    };
    let (reply, answer) = oneshot::channel();
    let input = Input::Join { node, remote: remote(connection), request, reply };
    let stopping = || Failure::Ended { reason: "this node stops".into(), refused: false };
    shared.input.send(input).await.map_err(|_| stopping())?;
    let message = match answer.await.map_err(|_| stopping())? {
        JoinAnswer::Accepted(accepted) => Message::JoinAccepted(accepted),
        JoinAnswer::Refused(refusal) => Message::JoinRefused(refusal),
        JoinAnswer::Silent => {
            // The reason is in the log already, by the core.
            connection.close(CLOSE_REFUSED, b"");
            return Ok(());
        }
    };
    frame::write(&mut send, &message).await?;
    let _ = send.finish();
    // The joiner closes when it has stored everything.
    let _ = timeout(Duration::from_secs(3), connection.closed()).await;
    Ok(())
}
