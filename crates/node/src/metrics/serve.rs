//! The server: `GET /metrics` and nothing else, one request a connection.
//!
//! Bounds: [`MAX_CONNECTIONS`] at once, [`MAX_HEAD`] bytes of a request's head,
//! no body, [`PATIENCE`] for all of a connection; the daemon's loop is asked at
//! most once in [`FRESH`], however many scrape.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http_body_util::Full;
use hyper::body::{Body, Bytes, Incoming};
use hyper::header::{ACCEPT, ALLOW, CONTENT_TYPE, HOST, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Mutex, Semaphore, mpsc, oneshot};

use super::place::host_is_meant;
use super::{Format, Snapshot, text};
use crate::api::{ApiRequest, one_request};

/// Connections served at once; more wait in the backlog.
pub(super) const MAX_CONNECTIONS: usize = 8;
/// Bytes of a request's head.
pub(super) const MAX_HEAD: usize = 8 * 1024;
/// Time for a whole connection.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);
/// How long one snapshot serves all who ask.
const FRESH: Duration = Duration::from_secs(1);

/// Where snapshots come from, and the last one.
struct Source {
    requests: mpsc::Sender<ApiRequest>,
    last: Mutex<Option<(Instant, Arc<Snapshot>)>>,
    loopback: bool,
}

impl Source {
    /// `None` when the daemon is stopping.
    async fn snapshot(&self) -> Option<Arc<Snapshot>> {
        let mut last = self.last.lock().await;
        if let Some((at, snapshot)) = last.as_ref()
            && at.elapsed() < FRESH
        {
            return Some(snapshot.clone());
        }
        let (reply, answer) = oneshot::channel();
        self.requests.send(ApiRequest::Metrics(reply)).await.ok()?;
        let snapshot = Arc::new(*answer.await.ok()?);
        *last = Some((Instant::now(), snapshot.clone()));
        Some(snapshot)
    }
}

/// Serves until the future is dropped. `requests` leads to the daemon's loop.
pub async fn serve(listener: TcpListener, requests: mpsc::Sender<ApiRequest>) {
    let loopback =
        listener.local_addr().is_ok_and(|address| address.ip().to_canonical().is_loopback());
    let source = Arc::new(Source { requests, last: Mutex::new(None), loopback });
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut tasks = tokio::task::JoinSet::new();
    loop {
        while tasks.try_join_next().is_some() {}
        let Ok(slot) = slots.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let source = source.clone();
                tasks.spawn(async move {
                    // Who is slow loses the connection, whatever it waits for.
                    let _too_slow =
                        tokio::time::timeout(PATIENCE, connection(stream, &source)).await;
                    drop(slot);
                });
            }
            Err(error) => {
                // Out of descriptors or memory: others may free some.
                tracing::warn!(%error, "the metrics port cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn connection(stream: TcpStream, source: &Arc<Source>) {
    let service = service_fn(|request| {
        let source = source.clone();
        async move { Ok::<_, Infallible>(answer(request, &source).await) }
    });
    let served =
        one_request(PATIENCE, MAX_HEAD).serve_connection(TokioIo::new(stream), service).await;
    if let Err(error) = served {
        tracing::debug!(%error, "a metrics connection ended early");
    }
}

async fn answer(request: Request<Incoming>, source: &Source) -> Response<Full<Bytes>> {
    if let Some(refusal) = refusal(&request, source.loopback) {
        return refusal;
    }
    let accept = request.headers().get(ACCEPT).and_then(|accept| accept.to_str().ok());
    let format = Format::accepted(accept);
    let made = source.snapshot().await.and_then(|snapshot| text(&snapshot, format).ok());
    match made {
        Some(text) => response(StatusCode::OK, format.content_type(), text),
        None => plain(StatusCode::SERVICE_UNAVAILABLE, "the daemon is stopping"),
    }
}

/// Why a request gets no metrics.
fn refusal(request: &Request<Incoming>, loopback: bool) -> Option<Response<Full<Bytes>>> {
    let host = request.headers().get(HOST).and_then(|host| host.to_str().ok());
    // A full address as the target, as for a proxy, counts as the header does.
    let target = request.uri().authority().map(|authority| authority.as_str());
    if !host.is_some_and(|host| host_is_meant(host, loopback))
        || !target.is_none_or(|target| host_is_meant(target, loopback))
    {
        return Some(plain(
            StatusCode::MISDIRECTED_REQUEST,
            "not under this name: ask for the address itself, or for localhost",
        ));
    }
    if request.uri().path() != "/metrics" {
        return Some(plain(StatusCode::NOT_FOUND, "there is only /metrics here"));
    }
    if request.method() != Method::GET {
        let mut refusal = plain(StatusCode::METHOD_NOT_ALLOWED, "/metrics can only be read: GET");
        refusal.headers_mut().insert(ALLOW, HeaderValue::from_static("GET"));
        return Some(refusal);
    }
    (!request.body().is_end_stream())
        .then(|| plain(StatusCode::PAYLOAD_TOO_LARGE, "a request for metrics has no body"))
}

fn plain(status: StatusCode, text: &str) -> Response<Full<Bytes>> {
    response(status, "text/plain; charset=utf-8", format!("{text}\n"))
}

fn response(status: StatusCode, kind: &'static str, text: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(text.into()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert("x-content-type-options", HeaderValue::from_static("nosniff"));
    response
}
