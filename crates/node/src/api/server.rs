//! The serving side: one task per connection, routes to [`ApiRequest`]s.

use std::convert::Infallible;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Body, Bytes, Frame, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{Semaphore, mpsc, oneshot};
use warren_types::NodeName;
use warren_types::api::{
    AddClientRequest, CaRequest, ConnectRequest, ErrorReply, EventRecord, InviteRequest,
    LeaveRequest, ProfileChange, RevokeRequest, RoleChange, RotateRequest, RouteRequest,
};

use super::events::EventLog;
use super::request::{ApiError, ApiRequest, Reply};
use crate::fault::{Fault, FaultKind};

/// Connections served at once; more wait in the socket's backlog.
const MAX_CONNECTIONS: usize = 64;
/// Bytes of a request's head.
const MAX_HEAD: usize = 16 * 1024;
/// Bytes of a request's body.
const MAX_BODY: usize = 64 * 1024;
/// Time for a request's head, and again for its body.
const READ_TIMEOUT: Duration = Duration::from_secs(5);
/// Time for the daemon's loop to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// Lines an event reader may lag behind before it misses some.
const FEED_DEPTH: usize = 64;

type Answer = Response<BoxBody<Bytes, Infallible>>;

/// The bound API socket; its file is removed when dropped.
#[derive(Debug)]
pub struct ApiSocket {
    listener: UnixListener,
    path: PathBuf,
}

impl Drop for ApiSocket {
    fn drop(&mut self) {
        let _already_gone = std::fs::remove_file(&self.path);
    }
}

/// Binds the API socket with mode 0600. A stale file of a dead daemon is
/// replaced; a live one is left alone.
///
/// # Errors
/// [`Fault`] when a daemon already answers there or the socket cannot be made.
pub fn bind(path: &Path) -> Result<ApiSocket, Fault> {
    if path.as_os_str().len() > 107 {
        let what = format!("the path of the API socket is too long: {}", path.display());
        return Err(Fault::new(FaultKind::State, what)
            .remedy("choose a --state-dir with a path of at most 90 characters"));
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Ok(_) => {
            let what = format!("a daemon already runs on {}", path.display());
            return Err(Fault::new(FaultKind::State, what)
                .remedy("stop it with `warren down`, or choose another --state-dir"));
        }
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path)
                .map_err(|e| Fault::file("replace the stale socket", path, &e))?;
        }
        Err(_) => {}
    }
    let listener =
        UnixListener::bind(path).map_err(|e| Fault::file("create the socket", path, &e))?;
    let socket = ApiSocket { listener, path: path.to_owned() };
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))
        .map_err(|e| Fault::file("protect the socket", path, &e))?;
    Ok(socket)
}

/// Serves until the future is dropped. `requests` leads to the daemon's loop.
/// Runs on the current runtime; connections are tasks of it.
///
/// # Errors
/// When the owner of the socket cannot be read, or accepting fails for good.
pub async fn serve(
    socket: ApiSocket,
    requests: mpsc::Sender<ApiRequest>,
    events: EventLog,
) -> io::Result<()> {
    // The file is the daemon's own, so its owner is the daemon's user.
    let owner = std::fs::metadata(&socket.path)?.uid();
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut tasks = tokio::task::JoinSet::new();
    loop {
        while tasks.try_join_next().is_some() {}
        let Ok(slot) = slots.clone().acquire_owned().await else { return Ok(()) };
        let stream = match socket.listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of descriptors or memory: others may free some.
                tracing::warn!(%error, "the API socket cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        if !may_use(&stream, owner) {
            tracing::warn!("refused an API connection of another user");
            continue;
        }
        let (requests, events) = (requests.clone(), events.clone());
        tasks.spawn(async move {
            connection(stream, requests, events).await;
            drop(slot);
        });
    }
}

fn may_use(stream: &UnixStream, owner: u32) -> bool {
    stream.peer_cred().is_ok_and(|cred| cred.uid() == owner || cred.uid() == 0)
}

/// HTTP/1.1 for one request a connection, its head bounded in time and bytes.
pub(crate) fn one_request(patience: Duration, max_head: usize) -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(patience);
    builder.max_buf_size(max_head).keep_alive(false);
    builder
}

async fn connection(stream: UnixStream, requests: mpsc::Sender<ApiRequest>, events: EventLog) {
    let service = service_fn(move |request| {
        let (requests, events) = (requests.clone(), events.clone());
        async move { Ok::<_, Infallible>(route(request, &requests, &events).await) }
    });
    let served =
        one_request(READ_TIMEOUT, MAX_HEAD).serve_connection(TokioIo::new(stream), service).await;
    if let Err(error) = served {
        tracing::debug!(%error, "an API connection ended early");
    }
}

/// Why a request is not answered with what it asks for.
struct Refusal {
    status: StatusCode,
    text: String,
}

impl Refusal {
    fn new(status: StatusCode, text: impl Into<String>) -> Self {
        Self { status, text: text.into() }
    }

    fn answer(&self) -> Answer {
        let reply = ErrorReply { error: self.text.clone() };
        let bytes = serde_json::to_vec(&reply).unwrap_or_default();
        answer(self.status, "application/json", Full::new(bytes.into()).boxed())
    }
}

impl From<ApiError> for Refusal {
    fn from(error: ApiError) -> Self {
        Self::new(error.status(), error.to_string())
    }
}

const CLIENTS: &str = "/v1/wg/clients";
const ROUTES: &str = "/v1/routes";
const ROLES: &str = "/v1/roles";
const ONION: &str = "/v1/onion";
const PROFILES: &str = "/v1/onion/profiles";

/// The methods of a path; `None` when there is no such path.
fn methods(path: &str) -> Option<&'static str> {
    match path {
        "/v1/status" | "/v1/events" | ONION | "/v1/onion/explain" => Some("GET"),
        PROFILES => Some("GET, POST"),
        "/v1/onion/connect" | "/v1/onion/disconnect" | "/v1/onion/rotate" | "/v1/onion/verify" => {
            Some("POST")
        }
        "/v1/invites" | "/v1/revoke" | "/v1/ca" | "/v1/rotate" | "/v1/leave" | "/v1/shutdown" => {
            Some("POST")
        }
        CLIENTS | ROUTES | ROLES => Some("GET, POST"),
        _ if path_to(path).is_some() => Some("GET"),
        _ => client_of(path).map(|_| "DELETE"),
    }
}

fn path_to(path: &str) -> Option<&str> {
    path.strip_prefix("/v1/paths/")
}

fn client_of(path: &str) -> Option<&str> {
    path.strip_prefix(CLIENTS)?.strip_prefix('/')
}

async fn route(
    request: Request<Incoming>,
    requests: &mpsc::Sender<ApiRequest>,
    events: &EventLog,
) -> Answer {
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let Some(allowed) = methods(&path) else {
        let text = format!("no such resource: {path}; this daemon serves /v1 only");
        return Refusal::new(StatusCode::NOT_FOUND, text).answer();
    };
    if !allowed.split(", ").any(|m| m == method.as_str()) {
        let text = format!("{method} is not possible on {path}: use {allowed}");
        let mut answer = Refusal::new(StatusCode::METHOD_NOT_ALLOWED, text).answer();
        answer.headers_mut().insert(ALLOW, HeaderValue::from_static(allowed));
        return answer;
    }
    let answered = match (method.as_str(), path.as_str()) {
        ("GET", "/v1/events") => {
            let follow = request.uri().query().unwrap_or("").split('&').any(|q| q == "follow=1");
            Ok(feed(events, follow))
        }
        _ => dispatch(request, &path, requests).await,
    };
    answered.unwrap_or_else(|refusal| refusal.answer())
}

/// What goes to the daemon's loop; method and path are known to match.
async fn dispatch(
    request: Request<Incoming>,
    path: &str,
    requests: &mpsc::Sender<ApiRequest>,
) -> Result<Answer, Refusal> {
    if let Some(client) = client_of(path) {
        let name = name(client)?;
        return ask(requests, |reply| ApiRequest::RemoveClient(name, reply)).await;
    }
    if let Some(peer) = path_to(path) {
        let name = name(peer)?;
        return ask(requests, |reply| ApiRequest::ExplainPath(name, reply)).await;
    }
    match path {
        "/v1/status" => ask(requests, ApiRequest::Status).await,
        "/v1/invites" => {
            let body: InviteRequest = body(request).await?;
            ask(requests, |reply| ApiRequest::Invite(body, reply)).await
        }
        CLIENTS if request.method() == Method::GET => ask(requests, ApiRequest::ListClients).await,
        CLIENTS => {
            let body: AddClientRequest = body(request).await?;
            name(&body.name)?;
            ask(requests, |reply| ApiRequest::AddClient(body, reply)).await
        }
        "/v1/revoke" => {
            let body: RevokeRequest = body(request).await?;
            let name = name(&body.name)?;
            ask(requests, |reply| ApiRequest::Revoke(name, reply)).await
        }
        ROUTES if request.method() == Method::GET => ask(requests, ApiRequest::ListRoutes).await,
        ROUTES => {
            let body: RouteRequest = body(request).await?;
            ask(requests, |reply| ApiRequest::ChangeRoutes(body, reply)).await
        }
        ROLES if request.method() == Method::GET => ask(requests, ApiRequest::Roles).await,
        ROLES => {
            let body: RoleChange = body(request).await?;
            ask(requests, |reply| ApiRequest::ChangeRoles(Box::new(body), reply)).await
        }
        ONION => ask(requests, ApiRequest::Onion).await,
        "/v1/onion/explain" => ask(requests, ApiRequest::ExplainOnion).await,
        PROFILES if request.method() == Method::GET => ask(requests, ApiRequest::Profiles).await,
        PROFILES => {
            let body: ProfileChange = body(request).await?;
            ask(requests, |reply| ApiRequest::ChangeProfile(Box::new(body), reply)).await
        }
        "/v1/onion/connect" => {
            let body: ConnectRequest = body(request).await?;
            ask(requests, |reply| ApiRequest::Connect(Box::new(body), reply)).await
        }
        "/v1/onion/disconnect" => ask(requests, ApiRequest::Disconnect).await,
        "/v1/onion/rotate" => ask(requests, ApiRequest::RotatePath).await,
        "/v1/onion/verify" => ask(requests, ApiRequest::ProvePath).await,
        "/v1/ca" => {
            let body: CaRequest = body(request).await?;
            ask(requests, |reply| ApiRequest::Ca(body, reply)).await
        }
        "/v1/rotate" => {
            let body: RotateRequest = body(request).await?;
            ask(requests, |reply| ApiRequest::Rotate(body.what, reply)).await
        }
        "/v1/leave" => {
            let body: LeaveRequest = body(request).await?;
            ask(requests, |reply| ApiRequest::Leave(body.force, reply)).await
        }
        _ => ask(requests, ApiRequest::Shutdown).await,
    }
}

fn name(text: &str) -> Result<NodeName, Refusal> {
    text.parse().map_err(|e: warren_types::ParseNameError| {
        Refusal::new(StatusCode::BAD_REQUEST, e.to_string())
    })
}

/// Hands a request to the daemon's loop and waits for the answer.
async fn ask<T: Serialize>(
    requests: &mpsc::Sender<ApiRequest>,
    make: impl FnOnce(Reply<T>) -> ApiRequest,
) -> Result<Answer, Refusal> {
    let stopping = || Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "the daemon is stopping");
    let (reply, answer) = oneshot::channel();
    let asked = async {
        requests.send(make(reply)).await.map_err(|_| stopping())?;
        answer.await.map_err(|_| stopping())
    };
    match tokio::time::timeout(ANSWER_TIMEOUT, asked).await {
        Ok(answered) => json(&answered??),
        Err(_) => Err(Refusal::new(
            StatusCode::GATEWAY_TIMEOUT,
            "the daemon is too busy to answer: try again later",
        )),
    }
}

async fn body<T: DeserializeOwned>(request: Request<Incoming>) -> Result<T, Refusal> {
    let read = Limited::new(request.into_body(), MAX_BODY).collect();
    let bytes = match tokio::time::timeout(READ_TIMEOUT, read).await {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(e)) if e.is::<http_body_util::LengthLimitError>() => {
            let text = format!("the request body is too large: at most {MAX_BODY} bytes");
            return Err(Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, text));
        }
        Ok(Err(e)) => return Err(Refusal::new(StatusCode::BAD_REQUEST, e.to_string())),
        Err(_) => {
            let text = "the request body did not arrive";
            return Err(Refusal::new(StatusCode::REQUEST_TIMEOUT, text));
        }
    };
    serde_json::from_slice(&bytes).map_err(|e| {
        Refusal::new(StatusCode::BAD_REQUEST, format!("the request body is wrong: {e}"))
    })
}

fn json<T: Serialize>(value: &T) -> Result<Answer, Refusal> {
    match serde_json::to_vec(value) {
        Ok(bytes) => {
            Ok(answer(StatusCode::OK, "application/json", Full::new(bytes.into()).boxed()))
        }
        Err(e) => Err(Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, e.to_string())),
    }
}

fn answer(status: StatusCode, kind: &'static str, body: BoxBody<Bytes, Infallible>) -> Answer {
    let mut answer = Response::new(body);
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    answer
}

/// A response body fed line by line.
struct Feed(mpsc::Receiver<Bytes>);

impl Body for Feed {
    type Data = Bytes;
    type Error = Infallible;
    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.poll_recv(cx).map(|line| line.map(|line| Ok(Frame::data(line))))
    }
}

fn feed(events: &EventLog, follow: bool) -> Answer {
    let (past, mut live) = events.subscribe();
    let (lines, feed) = mpsc::channel(FEED_DEPTH);
    tokio::spawn(async move {
        let line = |record: &EventRecord| {
            let mut line = serde_json::to_vec(record).unwrap_or_default();
            line.push(b'\n');
            Bytes::from(line)
        };
        for record in &past {
            if lines.send(line(record)).await.is_err() {
                return;
            }
        }
        if !follow {
            return;
        }
        loop {
            let record = tokio::select! {
                record = live.recv() => record,
                () = lines.closed() => return,
            };
            match record {
                Ok(record) => {
                    if lines.send(line(&record)).await.is_err() {
                        return;
                    }
                }
                Err(RecvError::Lagged(missed)) => {
                    tracing::debug!(missed, "an event reader was too slow");
                }
                Err(RecvError::Closed) => return,
            }
        }
    });
    answer(StatusCode::OK, "application/x-ndjson", BodyExt::boxed(Feed(feed)))
}
