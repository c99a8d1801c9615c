//! The HTTP proxy: CONNECT and nothing else (RFC 9110, section 9.3.6). The user
//! name of `Proxy-Authorization` selects the isolation.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

use data_encoding::BASE64;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, HeaderMap, HeaderValue, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode, Uri};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpStream;

use super::address::NoSource;
use super::dial::{Destination, DialError};
use super::flow::ConnectError;
use super::isolation::IsolationError;
use super::proxy::{GREETING_PATIENCE, Proxy, join, log_failure};

/// Most bytes of a request's head.
const MAX_HEAD: usize = 16 << 10;

/// Serves one program.
pub(super) async fn serve(proxy: Arc<Proxy>, stream: TcpStream, from: SocketAddr) {
    let service = service_fn(move |request| {
        let proxy = proxy.clone();
        async move { Ok::<_, Infallible>(answer(&proxy, request).await) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(GREETING_PATIENCE)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades()
        .await;
    if let Err(error) = served {
        tracing::debug!(%from, %error, "HTTP proxy connection");
    }
}

async fn answer(proxy: &Proxy, request: Request<Incoming>) -> Response<Full<Bytes>> {
    if request.method() != Method::CONNECT {
        let mut no = text(
            StatusCode::METHOD_NOT_ALLOWED,
            "this proxy serves CONNECT only: `curl --proxytunnel`, or use SOCKS5",
        );
        no.headers_mut().insert(ALLOW, HeaderValue::from_static("CONNECT"));
        return no;
    }
    let given = credentials(request.headers());
    let (user, password) = given.as_ref().map_or((&[][..], &[][..]), |(u, p)| (u, p));
    let Some(isolation) = proxy.admit(user, password) else {
        tracing::info!("HTTP proxy: a program was turned away");
        let mut no = text(StatusCode::PROXY_AUTHENTICATION_REQUIRED, "wrong or no password");
        let basic = HeaderValue::from_static("Basic realm=\"warren\"");
        no.headers_mut().insert(PROXY_AUTHENTICATE, basic);
        return no;
    };
    let Some(to) = destination(request.uri()) else {
        return text(StatusCode::BAD_REQUEST, "CONNECT takes HOST:PORT");
    };
    match proxy.dialer.dial(&to, &isolation).await {
        Ok(mut remote) => {
            tokio::spawn(async move {
                match hyper::upgrade::on(request).await {
                    Ok(upgraded) => {
                        if let Err(error) = join(&mut TokioIo::new(upgraded), &mut remote).await {
                            tracing::trace!(%error, "HTTP proxy connection");
                        }
                    }
                    Err(error) => tracing::debug!(%error, "HTTP proxy: no upgrade"),
                }
            });
            Response::new(Full::default())
        }
        Err(error) => {
            log_failure(&to, error);
            text(status(error), &format!("{to}: {error}"))
        }
    }
}

fn text(status: StatusCode, text: &str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(format!("{text}\n")));
    *response.status_mut() = status;
    response
}

/// The authority of a CONNECT request.
pub(super) fn destination(uri: &Uri) -> Option<Destination> {
    let authority = uri.authority()?;
    // Credentials have no place there.
    if authority.as_str().contains('@') {
        return None;
    }
    Destination::new(authority.host(), authority.port_u16()?)
}

/// User name and password of `Proxy-Authorization: Basic`.
pub(super) fn credentials(headers: &HeaderMap) -> Option<(Vec<u8>, Vec<u8>)> {
    let value = headers.get(PROXY_AUTHORIZATION)?.as_bytes();
    let (scheme, encoded) = value.split_at_checked(6)?;
    if !scheme.eq_ignore_ascii_case(b"basic ") {
        return None;
    }
    let both = BASE64.decode(encoded.trim_ascii()).ok()?;
    let colon = both.iter().position(|byte| *byte == b':')?;
    Some((both[..colon].to_vec(), both[colon + 1..].to_vec()))
}

fn status(error: DialError) -> StatusCode {
    match error {
        DialError::Connect(ConnectError::TimedOut)
        | DialError::Isolation(IsolationError::TimedOut) => StatusCode::GATEWAY_TIMEOUT,
        DialError::Connect(ConnectError::Prohibited)
        | DialError::NoSource(NoSource::NotUnicast) => StatusCode::FORBIDDEN,
        DialError::Connect(ConnectError::TooMany)
        | DialError::Isolation(IsolationError::TooMany) => StatusCode::SERVICE_UNAVAILABLE,
        _ => StatusCode::BAD_GATEWAY,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn authorities_are_destinations() {
        for (text, expected) in [
            ("100.64.0.1:80", Some("100.64.0.1:80")),
            ("[fd12::1]:443", Some("[fd12::1]:443")),
            ("gpu-2.lab.warren:22", Some("gpu-2.lab.warren:22")),
            ("gpu-2", None),
            ("user@gpu-2:80", None),
            ("/path", None),
        ] {
            let uri: Uri = text.parse().unwrap();
            assert_eq!(destination(&uri).map(|d| d.to_string()).as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn user_names_are_read() {
        let with = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(PROXY_AUTHORIZATION, value.parse().unwrap());
            headers
        };
        // "anna:se:cret"
        let (user, password) = credentials(&with("basic YW5uYTpzZTpjcmV0")).unwrap();
        assert_eq!((&user[..], &password[..]), (&b"anna"[..], &b"se:cret"[..]));
        for bad in ["Bearer YW5uYTpzZTpjcmV0", "Basic", "Basic !", "Basic YW5uYQ==", ""] {
            assert_eq!(credentials(&with(bad)), None, "{bad}");
        }
    }
}
