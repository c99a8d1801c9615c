//! The asking side, used by the command line: one connection per request.

use std::io;
use std::path::{Path, PathBuf};

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use warren_proto::selection::Explanation;
use warren_types::NodeName;
use warren_types::api::{
    AddClientReply, AddClientRequest, CaReply, CaRequest, ClientEntry, ConnectRequest, ErrorReply,
    EventRecord, InviteReply, InviteRequest, KeyKind, LeaveRequest, OnionReport, PathProof,
    PathReport, ProfileChange, Profiles, RevokeRequest, RoleChange, RolesReport, RotateRequest,
    RouteReply, RouteRequest, Status, SubnetRoute,
};

use crate::fault::{Fault, FaultKind};

/// Largest answer read, bytes: a status of some thousand peers is a few MiB.
const MAX_ANSWER: usize = 64 * 1024 * 1024;
/// Largest line of the event stream, bytes.
const MAX_LINE: usize = 64 * 1024;

/// Why a request got no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nothing listens on the socket.
    #[error("no Warren daemon answers on {}", .0.display())]
    NotRunning(PathBuf),
    /// The socket belongs to another user.
    #[error("not allowed to use {}", .0.display())]
    NotAllowed(PathBuf),
    /// The daemon refused; its own words.
    #[error("{error}")]
    Refused {
        /// HTTP status.
        status: u16,
        /// One sentence with the remedy.
        error: String,
    },
    /// The connection broke or the answer makes no sense.
    #[error("the daemon's answer was cut short or is not understood: {0}")]
    Broken(String),
}

impl From<ClientError> for Fault {
    fn from(error: ClientError) -> Self {
        let text = error.to_string();
        match error {
            ClientError::NotRunning(_) => Fault::new(FaultKind::NotRunning, text)
                .remedy("start it with `warren up`, or name its directory with --state-dir"),
            ClientError::NotAllowed(_) => Fault::new(FaultKind::Permission, text)
                .remedy("run the command as root or as the user the daemon runs as"),
            ClientError::Refused { status: 403..=409, .. } => Fault::new(FaultKind::Refused, text),
            ClientError::Refused { status: 400, .. } => Fault::new(FaultKind::Usage, text),
            ClientError::Refused { .. } => Fault::new(FaultKind::Internal, text),
            ClientError::Broken(_) => Fault::new(FaultKind::Internal, text)
                .remedy("check that daemon and command have the same version"),
        }
    }
}

fn broken(error: impl std::fmt::Display) -> ClientError {
    ClientError::Broken(error.to_string())
}

/// Client of one daemon.
#[derive(Debug, Clone)]
pub struct Client {
    socket: PathBuf,
}

impl Client {
    /// A client of the daemon that owns this API socket.
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self { socket: socket.into() }
    }

    /// The socket it asks.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// State of node, network and peers.
    ///
    /// # Errors
    /// [`ClientError`], as all of these calls.
    pub async fn status(&self) -> Result<Status, ClientError> {
        self.call(Method::GET, "/v1/status", None::<&()>).await
    }

    /// Makes a join code.
    ///
    /// # Errors
    /// See [`Client::status`].
    pub async fn invite(&self, request: &InviteRequest) -> Result<InviteReply, ClientError> {
        self.call(Method::POST, "/v1/invites", Some(request)).await
    }

    /// Lists stock WireGuard clients.
    ///
    /// # Errors
    /// See [`Client::status`].
    pub async fn wg_clients(&self) -> Result<Vec<ClientEntry>, ClientError> {
        self.call(Method::GET, "/v1/wg/clients", None::<&()>).await
    }

    /// Adds a stock WireGuard client.
    ///
    /// # Errors
    /// See [`Client::status`].
    pub async fn add_wg_client(
        &self,
        request: &AddClientRequest,
    ) -> Result<AddClientReply, ClientError> {
        self.call(Method::POST, "/v1/wg/clients", Some(request)).await
    }

    /// Removes a stock WireGuard client.
    ///
    /// # Errors
    /// See [`Client::status`].
    pub async fn remove_wg_client(&self, name: &NodeName) -> Result<(), ClientError> {
        self.call(Method::DELETE, &format!("/v1/wg/clients/{name}"), None::<&()>).await
    }

    /// Expels a node from the network.
    ///
    /// # Errors
    /// See [`Client::status`].
    pub async fn revoke(&self, name: &NodeName) -> Result<(), ClientError> {
        let request = RevokeRequest { name: name.to_string() };
        self.call(Method::POST, "/v1/revoke", Some(&request)).await
    }

    /// How a peer is reached, and why so.
    ///
    /// # Errors
    /// See [`Client::status`].
    pub async fn explain_path(&self, name: &NodeName) -> Result<PathReport, ClientError> {
        self.call(Method::GET, &format!("/v1/paths/{name}"), None::<&()>).await
    }

    /// Lists subnet routes.
    ///
    /// # Errors
    /// See [`Client::status`].
    pub async fn routes(&self) -> Result<Vec<SubnetRoute>, ClientError> {
        self.call(Method::GET, "/v1/routes", None::<&()>).await
    }

    /// How onion paths stand.
    ///
    /// # Errors
    /// As [`Self::status`], like all below.
    pub async fn onion(&self) -> Result<OnionReport, ClientError> {
        self.call(Method::GET, "/v1/onion", None::<&()>).await
    }

    /// Begins a session through an exit.
    ///
    /// # Errors
    /// As above; with the rule that leaves no path.
    pub async fn connect(&self, request: &ConnectRequest) -> Result<OnionReport, ClientError> {
        self.call(Method::POST, "/v1/onion/connect", Some(request)).await
    }

    /// The named wishes.
    ///
    /// # Errors
    /// As above.
    pub async fn profiles(&self) -> Result<Profiles, ClientError> {
        self.call(Method::GET, "/v1/onion/profiles", None::<&()>).await
    }

    /// Sets or removes one.
    ///
    /// # Errors
    /// As above.
    pub async fn change_profile(&self, change: &ProfileChange) -> Result<Profiles, ClientError> {
        self.call(Method::POST, "/v1/onion/profiles", Some(change)).await
    }

    /// Ends it.
    ///
    /// # Errors
    /// As above.
    pub async fn disconnect(&self) -> Result<(), ClientError> {
        self.call(Method::POST, "/v1/onion/disconnect", None::<&()>).await
    }

    /// Takes other circuits.
    ///
    /// # Errors
    /// As above.
    pub async fn rotate_path(&self) -> Result<(), ClientError> {
        self.call(Method::POST, "/v1/onion/rotate", None::<&()>).await
    }

    /// Has all hops prove that they carry the path.
    ///
    /// # Errors
    /// As above.
    pub async fn prove_path(&self) -> Result<PathProof, ClientError> {
        self.call(Method::POST, "/v1/onion/verify", None::<&()>).await
    }

    /// Everything that went into the choice of the path.
    ///
    /// # Errors
    /// As above.
    pub async fn explain_onion(&self) -> Result<Explanation, ClientError> {
        self.call(Method::GET, "/v1/onion/explain", None::<&()>).await
    }

    /// What the daemon's node does for onion paths.
    ///
    /// # Errors
    /// See [`Client::status`].
    pub async fn roles(&self) -> Result<RolesReport, ClientError> {
        self.call(Method::GET, "/v1/roles", None::<&()>).await
    }

    /// Changes that, now and for the next starts.
    ///
    /// # Errors
    /// See [`Client::status`].
    pub async fn change_roles(&self, change: &RoleChange) -> Result<RolesReport, ClientError> {
        self.call(Method::POST, "/v1/roles", Some(change)).await
    }

    /// Changes subnet routes.
    ///
    /// # Errors
    /// See [`Client::status`].
    pub async fn change_routes(&self, request: &RouteRequest) -> Result<RouteReply, ClientError> {
        self.call(Method::POST, "/v1/routes", Some(request)).await
    }

    /// Asks something of the certificate authority.
    ///
    /// # Errors
    /// See [`Client::status`].
    pub async fn ca(&self, request: &CaRequest) -> Result<CaReply, ClientError> {
        self.call(Method::POST, "/v1/ca", Some(request)).await
    }

    /// Replaces a key.
    ///
    /// # Errors
    /// See [`Client::status`].
    pub async fn rotate(&self, what: KeyKind) -> Result<(), ClientError> {
        self.call(Method::POST, "/v1/rotate", Some(&RotateRequest { what })).await
    }

    /// Leaves the network and ends the daemon; with `force` even as the last
    /// one who can admit others.
    ///
    /// # Errors
    /// See [`Client::status`].
    pub async fn leave(&self, force: bool) -> Result<(), ClientError> {
        self.call(Method::POST, "/v1/leave", Some(&LeaveRequest { force })).await
    }

    /// Ends the daemon.
    ///
    /// # Errors
    /// See [`Client::status`].
    pub async fn shutdown(&self) -> Result<(), ClientError> {
        self.call(Method::POST, "/v1/shutdown", None::<&()>).await
    }

    /// What happened so far; with `follow`, also what happens from now on.
    ///
    /// # Errors
    /// See [`Client::status`].
    pub async fn events(&self, follow: bool) -> Result<EventStream, ClientError> {
        let path = if follow { "/v1/events?follow=1" } else { "/v1/events" };
        let answer = self.send(Method::GET, path, None::<&()>).await?;
        let answer = check(answer).await?;
        Ok(EventStream { body: answer.into_body(), buffer: Vec::new() })
    }

    async fn call<B: Serialize, T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&B>,
    ) -> Result<T, ClientError> {
        let answer = check(self.send(method, path, body).await?).await?;
        let bytes = read_all(answer).await?;
        serde_json::from_slice(&bytes).map_err(broken)
    }

    async fn send<B: Serialize>(
        &self,
        method: Method,
        path: &str,
        body: Option<&B>,
    ) -> Result<Response<Incoming>, ClientError> {
        let stream = UnixStream::connect(&self.socket).await.map_err(|e| match e.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                ClientError::NotRunning(self.socket.clone())
            }
            io::ErrorKind::PermissionDenied => ClientError::NotAllowed(self.socket.clone()),
            _ => broken(e),
        })?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
        tokio::spawn(connection);
        let bytes = match body {
            Some(body) => serde_json::to_vec(body).map_err(broken)?,
            None => Vec::new(),
        };
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(hyper::header::HOST, "warren")
            .body(Full::new(Bytes::from(bytes)))
            .map_err(broken)?;
        sender.send_request(request).await.map_err(|e| {
            // The server closes at once on users it does not serve.
            if e.is_incomplete_message() || e.is_canceled() {
                ClientError::NotAllowed(self.socket.clone())
            } else {
                broken(e)
            }
        })
    }
}

async fn read_all(answer: Response<Incoming>) -> Result<Bytes, ClientError> {
    let body = Limited::new(answer.into_body(), MAX_ANSWER).collect().await.map_err(broken)?;
    Ok(body.to_bytes())
}

async fn check(answer: Response<Incoming>) -> Result<Response<Incoming>, ClientError> {
    let status = answer.status();
    if status == StatusCode::OK {
        return Ok(answer);
    }
    let bytes = read_all(answer).await?;
    let reply: ErrorReply = serde_json::from_slice(&bytes).map_err(broken)?;
    Err(ClientError::Refused { status: status.as_u16(), error: reply.error })
}

/// Records of `GET /v1/events`, one by one.
#[derive(Debug)]
pub struct EventStream {
    body: Incoming,
    buffer: Vec<u8>,
}

impl EventStream {
    /// The next record; `None` when the daemon has ended the stream.
    ///
    /// # Errors
    /// [`ClientError::Broken`] when the connection breaks.
    pub async fn next(&mut self) -> Result<Option<EventRecord>, ClientError> {
        loop {
            if let Some(end) = self.buffer.iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                return serde_json::from_slice(&line).map(Some).map_err(broken);
            }
            if self.buffer.len() > MAX_LINE {
                return Err(ClientError::Broken("a line of the event stream is too long".into()));
            }
            match self.body.frame().await {
                None => return Ok(None),
                Some(Err(e)) => return Err(broken(e)),
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.buffer.extend_from_slice(&data);
                    }
                }
            }
        }
    }
}
