//! Requests about the certificate authority and this node's own keys.
//!
//! Invariants: nothing here waits in the daemon's loop: answers that take time
//! come from tasks; the root's key leaves the daemon encrypted only. Deliberately
//! not here: who may do what (`transport/core/authority`).

use std::time::Duration;

use tokio::sync::oneshot;
use warren_control::sealed_key::{self, SealedKeyError};
use warren_types::NodeName;
use warren_types::api::{AuthorityEntry, CaReply, CaRequest, Event, KeyKind};
use zeroize::Zeroizing;

use super::{Daemon, unix_now};
use crate::api::{ApiError, Reply};
use crate::random::OsRandom;
use crate::transport::{AdminError, ControlHandle, RootKey};
use warren_proto::noise::StaticKey;

/// How long this node answers to its former link key, and accepts those of
/// others: longer than anybody stays connected without hearing of the new one.
pub(super) const LINK_KEY_OVERLAP: Duration = Duration::from_secs(3600);

impl From<AdminError> for ApiError {
    fn from(error: AdminError) -> Self {
        let text = error.to_string();
        match error {
            AdminError::NotAdmin | AdminError::NotRoot | AdminError::NoCertificates(_) => {
                Self::NotAllowed(text)
            }
            AdminError::UnknownName(_) => Self::NotFound(text),
            AdminError::NotConnected(_)
            | AdminError::NoAdmin
            | AdminError::Ourselves
            | AdminError::LastAdmin(_) => Self::Conflict(text),
            _ => Self::Failed(text),
        }
    }
}

impl Daemon {
    pub(super) fn ca(&self, request: CaRequest, reply: Reply<CaReply>) {
        let control = self.control.clone();
        let network = self.member.network.name.to_string();
        tokio::spawn(async move {
            let _ = reply.send(answer(&control, &network, request).await);
        });
    }

    /// Replaces one of our own keys.
    pub(super) fn rotate(&mut self, what: KeyKind, reply: Reply<()>) {
        match what {
            KeyKind::NodeKey => {
                let control = self.control.clone();
                tokio::spawn(async move {
                    let rotated = control.rotate_identity().await;
                    let _ = reply.send(rotated.map(drop).map_err(ApiError::from));
                });
            }
            KeyKind::Certificate => {
                let control = self.control.clone();
                tokio::spawn(async move {
                    let _ = reply.send(renew(&control).await);
                });
            }
            KeyKind::SessionKeys => {
                let now = self.now();
                self.engine.renew_sessions(now, &mut OsRandom);
                let _ = reply.send(Ok(()));
            }
            KeyKind::LinkKey => {
                let _ = reply.send(self.rotate_link_key());
            }
        }
    }

    fn rotate_link_key(&mut self) -> Result<(), ApiError> {
        let clients = self.mesh.clients().len();
        if clients > 0 {
            return Err(ApiError::Conflict(format!(
                "{clients} stock WireGuard clients know this node by its link key and cannot be \
                 told of another: remove them with `warren wg remove`, rotate, and add them again"
            )));
        }
        let key = self
            .store
            .new_link_key(&mut OsRandom)
            .map_err(|fault| ApiError::Failed(fault.to_string()))?;
        let now = self.now();
        self.engine.rotate_static_key(StaticKey::new(&key), LINK_KEY_OVERLAP, now);
        tracing::info!(key = %self.engine.public_key(), "this node has a new link key");
        self.announce();
        let name = self.member.name.to_string();
        self.events.publish(Event::KeyRotated { name, what: "link key".into() });
        Ok(())
    }

    /// Whether this node may leave: not silently as the last one who can admit
    /// others, or who holds the root.
    pub(super) fn may_leave(&self, force: bool) -> Result<(), ApiError> {
        if force || !self.control.is_admin() || self.mesh.members().next().is_none() {
            return Ok(());
        }
        let own = self.control.member(self.control.id());
        let keys = |view: &warren_control::directory::NodeView| {
            view.descriptor.body.keys.clone().unwrap_or_default()
        };
        let root = own.is_some_and(|view| keys(&view).root == Some(true));
        let mut others = self.mesh.members().filter(|view| view.descriptor.body.admin).peekable();
        if others.peek().is_none() {
            return Err(ApiError::Conflict(
                "this node is the only one that can admit, renew and revoke: without it no node \
                 joins any more, and every certificate ends within its life. Let another one do \
                 it first: `warren ca delegate NODE`, and `warren ca export FILE` keeps the root; \
                 or leave all the same with --force"
                    .to_owned(),
            ));
        }
        if root && !others.any(|view| keys(view).root == Some(true)) {
            return Err(ApiError::Conflict(
                "this node holds the only copy of the root key that is in use: without it nobody \
                 can delegate, or rotate the CA. Keep it with `warren ca export FILE`, then leave \
                 with --force"
                    .to_owned(),
            ));
        }
        Ok(())
    }
}

async fn renew(control: &ControlHandle) -> Result<(), ApiError> {
    let before = control.member(control.id()).map(|view| view.descriptor.body.chain.clone());
    if control.trust().is_none() {
        return Err(ApiError::NotAllowed("this network has no certificates".into()));
    }
    control.renew().await;
    for _ in 0..50 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let now = control.member(control.id()).map(|view| view.descriptor.body.chain.clone());
        if now != before {
            return Ok(());
        }
    }
    Err(ApiError::Conflict(
        "no new certificate came: `warren ca list` names the admins; is one connected?".into(),
    ))
}

fn name(text: &str) -> Result<NodeName, ApiError> {
    text.parse().map_err(|e: warren_types::ParseNameError| ApiError::Invalid(e.to_string()))
}

async fn answer(
    control: &ControlHandle,
    network: &str,
    request: CaRequest,
) -> Result<CaReply, ApiError> {
    let Some(trust) = control.trust() else {
        return Err(ApiError::NotAllowed(
            "this network has no certificates, so no CA: its members know each other by keys in \
             their configuration"
                .into(),
        ));
    };
    let mut reply = CaReply { epoch: trust.epoch(), ..CaReply::default() };
    match request {
        CaRequest::List => {
            let now = i64::try_from(unix_now().as_secs()).unwrap_or(i64::MAX);
            let left = |end: u64| i64::try_from(end).unwrap_or(i64::MAX).saturating_sub(now);
            let authorities = control.authorities().await;
            let entry = |info: crate::transport::AuthorityInfo| AuthorityEntry {
                name: info.node.to_string(),
                root: info.root,
                key: info.key,
                expires_s: info.not_after.map(left),
                revoked: info.revoked,
            };
            reply.authorities = authorities.into_iter().map(entry).collect();
        }
        CaRequest::Delegate { name: node } => control.delegate(name(&node)?).await?,
        CaRequest::Undelegate { name: node } => control.undelegate(name(&node)?).await?,
        CaRequest::Rotate { overlap_s } => reply.epoch = control.rotate_root(overlap_s).await?,
        CaRequest::Export { passphrase } => {
            let passphrase = Zeroizing::new(passphrase);
            let root = control.export_root().await?;
            let network = network.to_owned();
            // Deliberately slow: not on the daemon's one thread.
            let sealed = off_thread(move || {
                sealed_key::seal(&root.key, &root.certificate, &network, &passphrase, &mut OsRandom)
            });
            reply.file = Some(sealed.await?);
        }
        CaRequest::Remove => control.remove_root().await?,
        CaRequest::Import { file, passphrase } => {
            let passphrase = Zeroizing::new(passphrase);
            let opened = off_thread(move || sealed_key::open(&file, &passphrase)).await?;
            let (key, certificate) = opened;
            control.import_root(RootKey { key, certificate }).await?;
        }
    }
    Ok(reply)
}

async fn off_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, SealedKeyError> + Send + 'static,
) -> Result<T, ApiError> {
    let (tell, told) = oneshot::channel();
    // The runtime has no pool of blocking threads to spare for one call a year.
    std::thread::spawn(move || {
        let _ = tell.send(work());
    });
    match told.await {
        Ok(done) => done.map_err(|error| ApiError::Invalid(error.to_string())),
        Err(_) => Err(ApiError::Failed("the work on the key was cut short".into())),
    }
}
