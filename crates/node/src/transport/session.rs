//! One connection between two members, from TLS to its end.
//!
//! Order: TLS; is the key a member's (`Shared::authenticate`); with a
//! pre-shared key the proof, dialer first; a hello from each side; `Ready` from
//! the accepting side once it installed the link's pre-shared key, then from
//! the dialer; after that any message in any order. Invariants: whatever fails
//! before `Ready` closes the connection with one code and no text, the reason
//! goes to our own log; each step has a time limit. Deliberately not here:
//! decisions that need more than this connection (`core`).

use std::sync::Arc;
use std::time::Duration;

use quinn::{Connection, RecvStream, SendStream, VarInt};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use warren_control::identity::SIGNATURE_LEN;
use warren_control::membership::{Membership, PeerIdentity};
use warren_control::psk::{PSK_EXPORTER_LABEL, PskKeys};
use warren_control::wire::{
    ALPN_CONTROL, Hello, LINK_PSK_LABEL, MAX_FRAME, Message, VERSION, link_psk_context,
};
use warren_types::{NodeId, PresharedKey};
use zeroize::Zeroizing;

use super::core::{Input, Outgoing, Target, Verdict};
use super::event::RefuseReason;
use super::frame;
use super::shared::{Permit, Shared, alpn, remote};
use crate::random::OsRandom;

/// Ordinary end.
pub(crate) const CLOSE_DONE: VarInt = VarInt::from_u32(0);
/// Refused; the same code for every reason.
pub(crate) const CLOSE_REFUSED: VarInt = VarInt::from_u32(1);
/// The other connection of the pair is kept.
pub(crate) const CLOSE_DUPLICATE: VarInt = VarInt::from_u32(2);

/// How long the link's key may take to install before we go on.
const INSTALL: Duration = Duration::from_secs(2);

/// How a session ended before it was established.
#[derive(Debug)]
pub(crate) enum Failure {
    /// We refused the peer.
    Refused(RefuseReason),
    /// The other connection of the pair was kept.
    Duplicate(NodeId),
    /// The peer or the network ended it.
    Ended {
        /// For people.
        reason: String,
        /// The peer refused us.
        refused: bool,
    },
}

impl<E: Into<RefuseReason>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Refused(error.into())
    }
}

/// Runs a connection whose TLS handshake is done, to its end. Returns why when
/// it never got established; ends after that are reported to the core.
/// `own` is the identity that we showed: it may have been rotated since.
pub(crate) async fn run(
    shared: Arc<Shared>,
    connection: Connection,
    target: Option<Target>,
    own: NodeId,
    identity: PeerIdentity,
    permit: Option<Permit>,
) -> Result<(), Failure> {
    let result = timeout(
        shared.timing.handshake * 2,
        establish(&shared, &connection, target, own, identity.id()),
    )
    .await
    .unwrap_or(Err(Failure::Refused(RefuseReason::Timeout)));
    match result {
        Ok(session) => {
            // It counts as unauthenticated no more.
            drop(permit);
            session.serve(&shared).await;
            Ok(())
        }
        Err(failure) => {
            let failure = close_for(&connection, failure);
            // It may be known to the core already.
            let (node, stable) = (identity.id(), connection.stable_id());
            let reason = "the first exchange failed".to_owned();
            let _ = shared.input.send(Input::Closed { node, stable, reason }).await;
            Err(failure)
        }
    }
}

/// Closes a connection for a failure, and tells a refusal by the peer from our
/// own.
pub(crate) fn close_for(connection: &Connection, failure: Failure) -> Failure {
    // A stream error may only be the shadow of the peer's close.
    let failure = match connection.close_reason() {
        Some(quinn::ConnectionError::ApplicationClosed(close)) => Failure::Ended {
            reason: if close.error_code == CLOSE_REFUSED {
                "it refused us; its log says why".into()
            } else {
                "it closed the connection".into()
            },
            refused: close.error_code == CLOSE_REFUSED,
        },
        Some(error) => Failure::Ended { reason: error.to_string(), refused: false },
        None => failure,
    };
    match &failure {
        Failure::Refused(_) => connection.close(CLOSE_REFUSED, b""),
        Failure::Duplicate(_) => connection.close(CLOSE_DUPLICATE, b""),
        Failure::Ended { .. } => connection.close(CLOSE_DONE, b""),
    }
    failure
}

struct Session {
    node: NodeId,
    connection: Connection,
    send: SendStream,
    recv: RecvStream,
    outgoing: mpsc::Receiver<Outgoing>,
}

async fn establish(
    shared: &Arc<Shared>,
    connection: &Connection,
    target: Option<Target>,
    own: NodeId,
    node: NodeId,
) -> Result<Session, Failure> {
    if alpn(connection).as_deref() != Some(ALPN_CONTROL) {
        return Err(RefuseReason::Protocol("unexpected ALPN".into()).into());
    }
    let dialer = target.is_some();
    let opened = if dialer { connection.open_bi().await } else { connection.accept_bi().await };
    let (mut send, mut recv) =
        opened.map_err(|e| Failure::Ended { reason: e.to_string(), refused: false })?;

    let psk = match shared.directory().membership() {
        Membership::Psk(keys) => Some(keys.clone()),
        Membership::Certificate(_) | Membership::Key(_) => None,
    };
    if let Some(keys) = psk {
        prove(&keys, connection, dialer, &mut send, &mut recv).await?;
    }

    let hello = Hello {
        version: VERSION,
        instance: shared.instance,
        descriptor: shared.own(),
        observed: remote(connection),
        time: shared.now(),
        software: concat!("warren ", env!("CARGO_PKG_VERSION")).into(),
    };
    frame::write(&mut send, &Message::Hello(Box::new(hello))).await?;
    let hello = match frame::read(&mut recv, MAX_FRAME).await? {
        Message::Hello(hello) => hello,
        _ => return Err(RefuseReason::Protocol("a hello was expected".into()).into()),
    };
    if hello.version != VERSION {
        return Err(RefuseReason::Version(hello.version).into());
    }
    if hello.descriptor.peek()?.0 != node {
        return Err(RefuseReason::Protocol("the hello describes another node".into()).into());
    }

    let mut link_psk = Zeroizing::new([0_u8; 32]);
    export(connection, LINK_PSK_LABEL, &link_psk_context(own, node), &mut link_psk)?;
    let (sender, outgoing) = mpsc::channel(256);
    let (reply, verdict) = oneshot::channel();
    let input = Input::Hello {
        own,
        node,
        hello,
        psk: PresharedKey::from_bytes(*link_psk),
        target,
        connection: connection.clone(),
        outgoing: sender,
        reply,
    };
    let stopping = || Failure::Ended { reason: "this node stops".into(), refused: false };
    shared.input.send(input).await.map_err(|_| stopping())?;
    match verdict.await.map_err(|_| stopping())? {
        Verdict::Refused(reason) => return Err(Failure::Refused(reason)),
        Verdict::Again => {
            let reason = "this node rotated its key meanwhile".into();
            return Err(Failure::Ended { reason, refused: false });
        }
        Verdict::Duplicate => return Err(Failure::Duplicate(node)),
        Verdict::Keep(installed) => {
            if !dialer {
                // Answered or dropped: either way the glue is done with it.
                let _ = timeout(INSTALL, installed).await;
                frame::write(&mut send, &Message::Ready).await?;
            }
        }
    }
    let stable = connection.stable_id();
    match frame::read(&mut recv, MAX_FRAME).await? {
        Message::Ready => {}
        _ => return Err(RefuseReason::Protocol("`ready` was expected".into()).into()),
    }
    let (reply, installed) = oneshot::channel();
    let _ = shared.input.send(Input::Ready { node, stable, installed: reply }).await;
    if dialer {
        let _ = timeout(INSTALL, installed).await;
        frame::write(&mut send, &Message::Ready).await?;
    }
    Ok(Session { node, connection: connection.clone(), send, recv, outgoing })
}

fn export(
    connection: &Connection,
    label: &[u8],
    context: &[u8],
    out: &mut [u8; 32],
) -> Result<(), RefuseReason> {
    connection
        .export_keying_material(out, label, context)
        .map_err(|_| RefuseReason::Protocol("TLS gave no keying material".into()))
}

async fn prove(
    keys: &PskKeys,
    connection: &Connection,
    dialer: bool,
    send: &mut SendStream,
    recv: &mut RecvStream,
) -> Result<(), RefuseReason> {
    let mut exporter = Zeroizing::new([0_u8; 32]);
    export(connection, PSK_EXPORTER_LABEL, b"", &mut exporter)?;
    let expect_proof = |message| match message {
        Message::PskProof(bytes) => Ok(bytes),
        _ => Err(RefuseReason::Protocol("a proof of the pre-shared key was expected".into())),
    };
    // An ephemeral key and a tag, in CBOR.
    let limit = SIGNATURE_LEN + 32;
    if dialer {
        let (prover, first) = keys.initiate(&exporter, &mut OsRandom)?;
        frame::write(send, &Message::PskProof(first)).await?;
        let answer = expect_proof(frame::read(recv, limit).await?)?;
        prover.finish(&answer)?;
    } else {
        let first = expect_proof(frame::read(recv, limit).await?)?;
        let answer = keys.respond(&exporter, &first, &mut OsRandom)?;
        frame::write(send, &Message::PskProof(answer)).await?;
    }
    Ok(())
}

impl Session {
    async fn serve(self, shared: &Arc<Shared>) {
        let Self { node, connection, send, mut recv, outgoing } = self;
        let stable = connection.stable_id();
        let writer = tokio::spawn(write_all(send, outgoing));
        let reason = loop {
            match frame::read(&mut recv, MAX_FRAME).await {
                Ok(message) => {
                    let input = Input::Message { node, stable, message };
                    if shared.input.send(input).await.is_err() {
                        break "this node stops".to_owned();
                    }
                }
                Err(frame::FrameError::Ended(reason)) => break end_reason(&connection, reason),
                Err(error) => break error.to_string(),
            }
        };
        connection.close(CLOSE_DONE, b"");
        let _ = shared.input.send(Input::Closed { node, stable, reason }).await;
        writer.abort();
    }
}

fn end_reason(connection: &Connection, fallback: String) -> String {
    use quinn::ConnectionError as E;
    match connection.close_reason() {
        Some(E::TimedOut) => "no answer any more".into(),
        Some(E::ApplicationClosed(close)) if close.error_code == CLOSE_DONE => {
            "the peer closed the connection".into()
        }
        Some(E::ApplicationClosed(close)) if close.error_code == CLOSE_REFUSED => {
            "the peer refuses us now; its log says why".into()
        }
        Some(E::Reset) => "the peer restarted".into(),
        Some(E::LocallyClosed) => "closed by this node".into(),
        Some(error) => error.to_string(),
        None => fallback,
    }
}

async fn write_all(mut send: SendStream, mut outgoing: mpsc::Receiver<Outgoing>) {
    while let Some(next) = outgoing.recv().await {
        let frames = match next {
            Outgoing::Frames(frames) => frames,
            Outgoing::Finish(done) => {
                let _ = send.finish();
                let _ = timeout(Duration::from_secs(1), send.stopped()).await;
                let _ = done.send(());
                return;
            }
        };
        for bytes in frames {
            if send.write_all(&bytes).await.is_err() {
                return;
            }
        }
    }
}
