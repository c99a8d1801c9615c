//! The serving side: one task per connection, routes to [`ApiRequest`]s.

use std::convert::Infallible;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Body, Bytes, Frame, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{Semaphore, mpsc, oneshot};
use warren_types::NodeName;
use warren_types::api::{AddClientRequest, ErrorReply, EventRecord, InviteRequest, RevokeRequest};

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

/// Binds the API socket with mode 0600. A stale file of a dead daemon is
/// replaced; a live one is left alone.
///
/// # Errors
/// [`Fault`] when a daemon already answers there or the socket cannot be made.
pub fn bind(path: &Path) -> Result<UnixListener, Fault> {
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
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))
        .map_err(|e| Fault::file("protect the socket", path, &e))?;
    Ok(listener)
}

/// Serves until the future is dropped. `requests` leads to the daemon's loop.
/// Runs on the current runtime; connections are tasks of it.
///
/// # Errors
/// When the owner of the socket cannot be read, or accepting fails for good.
pub async fn serve(
    listener: UnixListener,
    requests: mpsc::Sender<ApiRequest>,
    events: EventLog,
) -> io::Result<()> {
    let owner = socket_owner(&listener)?;
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut tasks = tokio::task::JoinSet::new();
    loop {
        while tasks.try_join_next().is_some() {}
        let Ok(slot) = slots.clone().acquire_owned().await else { return Ok(()) };
        let stream = match listener.accept().await {
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

/// The user the socket file belongs to: the daemon's own, without a system call.
fn socket_owner(listener: &UnixListener) -> io::Result<u32> {
    let address = listener.local_addr()?;
    let path = address.as_pathname().ok_or_else(|| io::Error::other("the socket has no path"))?;
    Ok(std::fs::metadata(path)?.uid())
}

fn may_use(stream: &UnixStream, owner: u32) -> bool {
    stream.peer_cred().is_ok_and(|cred| cred.uid() == owner || cred.uid() == 0)
}

async fn connection(stream: UnixStream, requests: mpsc::Sender<ApiRequest>, events: EventLog) {
    let service = service_fn(move |request| {
        let (requests, events) = (requests.clone(), events.clone());
        async move { Ok::<_, Infallible>(route(request, &requests, &events).await) }
    });
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(READ_TIMEOUT)
        .max_buf_size(MAX_HEAD)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "an API connection ended early");
    }
}

async fn route(
    request: Request<Incoming>,
    requests: &mpsc::Sender<ApiRequest>,
    events: &EventLog,
) -> Answer {
    let method = request.method().clone();
    let path = request.uri().path().to_owned();
    let allowed = match path.as_str() {
        "/v1/status" | "/v1/events" => "GET",
        "/v1/invites" | "/v1/revoke" | "/v1/leave" | "/v1/shutdown" => "POST",
        "/v1/wg/clients" => "GET, POST",
        p if p.starts_with("/v1/wg/clients/") => "DELETE",
        _ => {
            let text = format!("no such resource: {path}; this daemon serves /v1 only");
            return error(StatusCode::NOT_FOUND, &text);
        }
    };
    match (&method, path.as_str()) {
        (&Method::GET, "/v1/status") => ask(requests, ApiRequest::Status).await,
        (&Method::GET, "/v1/events") => {
            let follow = request.uri().query().unwrap_or("").split('&').any(|q| q == "follow=1");
            feed(events, follow)
        }
        (&Method::POST, "/v1/invites") => match body::<InviteRequest>(request).await {
            Ok(body) => ask(requests, |reply| ApiRequest::Invite(body, reply)).await,
            Err(answer) => answer,
        },
        (&Method::GET, "/v1/wg/clients") => ask(requests, ApiRequest::ListClients).await,
        (&Method::POST, "/v1/wg/clients") => match body::<AddClientRequest>(request).await {
            Ok(body) => match name(&body.name) {
                Ok(_) => ask(requests, |reply| ApiRequest::AddClient(body, reply)).await,
                Err(answer) => answer,
            },
            Err(answer) => answer,
        },
        (&Method::DELETE, p) if allowed == "DELETE" => {
            match name(p.trim_start_matches("/v1/wg/clients/")) {
                Ok(name) => ask(requests, |reply| ApiRequest::RemoveClient(name, reply)).await,
                Err(answer) => answer,
            }
        }
        (&Method::POST, "/v1/revoke") => match body::<RevokeRequest>(request).await {
            Ok(body) => match name(&body.name) {
                Ok(name) => ask(requests, |reply| ApiRequest::Revoke(name, reply)).await,
                Err(answer) => answer,
            },
            Err(answer) => answer,
        },
        (&Method::POST, "/v1/leave") => ask(requests, ApiRequest::Leave).await,
        (&Method::POST, "/v1/shutdown") => ask(requests, ApiRequest::Shutdown).await,
        _ => {
            let text = format!("{method} is not possible on {path}: use {allowed}");
            let mut answer = error(StatusCode::METHOD_NOT_ALLOWED, &text);
            answer.headers_mut().insert(ALLOW, hyper::header::HeaderValue::from_static(allowed));
            answer
        }
    }
}

fn name(text: &str) -> Result<NodeName, Answer> {
    text.parse()
        .map_err(|e: warren_types::ParseNameError| error(StatusCode::BAD_REQUEST, &e.to_string()))
}

/// Hands a request to the daemon's loop and waits for the answer.
async fn ask<T: Serialize>(
    requests: &mpsc::Sender<ApiRequest>,
    make: impl FnOnce(Reply<T>) -> ApiRequest,
) -> Answer {
    let stopping = || error(StatusCode::SERVICE_UNAVAILABLE, "the daemon is stopping");
    let (reply, answer) = oneshot::channel();
    let asked = async {
        requests.send(make(reply)).await.map_err(|_| stopping())?;
        answer.await.map_err(|_| stopping())
    };
    match tokio::time::timeout(ANSWER_TIMEOUT, asked).await {
        Ok(Ok(Ok(value))) => json(StatusCode::OK, &value),
        Ok(Ok(Err(refusal))) => refused(&refusal),
        Ok(Err(answer)) => answer,
        Err(_) => {
            error(StatusCode::GATEWAY_TIMEOUT, "the daemon is too busy to answer: try again later")
        }
    }
}

fn refused(refusal: &ApiError) -> Answer {
    error(refusal.status(), &refusal.to_string())
}

async fn body<T: DeserializeOwned>(request: Request<Incoming>) -> Result<T, Answer> {
    let read = Limited::new(request.into_body(), MAX_BODY).collect();
    let bytes = match tokio::time::timeout(READ_TIMEOUT, read).await {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(e)) if e.is::<http_body_util::LengthLimitError>() => {
            let text = format!("the request body is too large: at most {MAX_BODY} bytes");
            return Err(error(StatusCode::PAYLOAD_TOO_LARGE, &text));
        }
        Ok(Err(e)) => return Err(error(StatusCode::BAD_REQUEST, &e.to_string())),
        Err(_) => {
            return Err(error(StatusCode::REQUEST_TIMEOUT, "the request body did not arrive"));
        }
    };
    serde_json::from_slice(&bytes)
        .map_err(|e| error(StatusCode::BAD_REQUEST, &format!("the request body is wrong: {e}")))
}

fn json<T: Serialize>(status: StatusCode, value: &T) -> Answer {
    match serde_json::to_vec(value) {
        Ok(bytes) => answer(status, "application/json", Full::new(bytes.into()).boxed()),
        Err(e) => error(StatusCode::INTERNAL_SERVER_ERROR, &e.to_string()),
    }
}

fn error(status: StatusCode, text: &str) -> Answer {
    let reply = ErrorReply { error: text.to_owned() };
    let bytes = serde_json::to_vec(&reply).unwrap_or_default();
    answer(status, "application/json", Full::new(bytes.into()).boxed())
}

fn answer(status: StatusCode, kind: &'static str, body: BoxBody<Bytes, Infallible>) -> Answer {
    let mut answer = Response::new(body);
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static(kind));
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
        while follow {
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
