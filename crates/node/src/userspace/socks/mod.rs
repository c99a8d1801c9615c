//! The SOCKS5 proxy: CONNECT and UDP ASSOCIATE. The user name selects the
//! isolation.
//!
//! Invariants: a program has a bounded time to say what it wants; what fails is
//! answered with the code that fits; the machine's own network is never used.

mod associate;
pub mod wire;

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::address::NoSource;
use super::dial::{Destination, DialError};
use super::flow::ConnectError;
use super::isolation::{Isolation, IsolationError};
use super::lookup::LookupError;
use super::proxy::{GREETING_PATIENCE, Proxy, join, log_failure};
use wire::{Command, MAX_MESSAGE, Malformed, Parsed, Reply, Request};

/// Nothing to say about where a connection is bound.
const NOWHERE: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);

/// Serves one program.
pub(super) async fn serve(proxy: Arc<Proxy>, mut stream: TcpStream, from: SocketAddr) {
    let greeted = timeout(GREETING_PATIENCE, greet(&proxy, &mut stream)).await;
    let (isolation, request) = match greeted {
        Ok(Ok(Some(greeted))) => greeted,
        Ok(Ok(None)) => return,
        Ok(Err(error)) => return tracing::debug!(%from, %error, "SOCKS"),
        Err(_) => return tracing::debug!(%from, "SOCKS: nothing asked for in time"),
    };
    let done = match (request.command, request.destination) {
        (Command::Connect, Some(to)) => connect(&proxy, &mut stream, &to, &isolation).await,
        (Command::Associate, _) => associate::serve(&proxy, &mut stream, from, isolation).await,
        (Command::Connect, None) => refuse(&mut stream, Reply::AddressNotSupported).await,
        (Command::Other, _) => refuse(&mut stream, Reply::CommandNotSupported).await,
    };
    if let Err(error) = done {
        tracing::trace!(%from, %error, "SOCKS connection");
    }
}

async fn refuse(stream: &mut TcpStream, why: Reply) -> io::Result<()> {
    stream.write_all(&wire::reply(why, NOWHERE)).await
}

/// Reads until a message is whole; what follows it stays in the buffer.
async fn read<T>(
    stream: &mut TcpStream,
    buffer: &mut Vec<u8>,
    parse: impl Fn(&[u8]) -> Parsed<T>,
) -> io::Result<T> {
    loop {
        let parsed = parse(buffer)
            .map_err(|error: Malformed| io::Error::new(io::ErrorKind::InvalidData, error))?;
        if let Some((message, length)) = parsed {
            buffer.drain(..length);
            return Ok(message);
        }
        if buffer.len() > MAX_MESSAGE {
            return Err(io::Error::new(io::ErrorKind::InvalidData, Malformed));
        }
        if stream.read_buf(buffer).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

/// Who it is and what it wants; `None` when it was turned away.
async fn greet(proxy: &Proxy, stream: &mut TcpStream) -> io::Result<Option<(Isolation, Request)>> {
    let mut buffer = Vec::with_capacity(MAX_MESSAGE + 1);
    let methods = read(stream, &mut buffer, |bytes| {
        wire::greeting(bytes).map(|parsed| parsed.map(|(all, length)| (all.to_vec(), length)))
    })
    .await?;
    let isolation = if methods.contains(&wire::USER_PASSWORD) {
        stream.write_all(&wire::chosen(wire::USER_PASSWORD)).await?;
        let admitted = read(stream, &mut buffer, |bytes| {
            let parsed = wire::user_password(bytes)?;
            Ok(parsed.map(|((user, password), length)| (proxy.admit(user, password), length)))
        })
        .await?;
        stream.write_all(&wire::authenticated(admitted.is_some())).await?;
        admitted
    } else if methods.contains(&wire::NO_AUTH) && proxy.password.is_none() {
        stream.write_all(&wire::chosen(wire::NO_AUTH)).await?;
        Some(Isolation::default())
    } else {
        stream.write_all(&wire::chosen(wire::NO_METHOD)).await?;
        None
    };
    let Some(isolation) = isolation else {
        tracing::info!("SOCKS: a program was turned away");
        return Ok(None);
    };
    let request = read(stream, &mut buffer, wire::request).await;
    match request {
        Ok(request) if buffer.is_empty() => Ok(Some((isolation, request))),
        // Data before our answer would have to be kept; no client sends it.
        Ok(_) => Err(io::Error::new(io::ErrorKind::InvalidData, "data before the answer")),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => {
            refuse(stream, Reply::AddressNotSupported).await?;
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

async fn connect(
    proxy: &Proxy,
    stream: &mut TcpStream,
    to: &Destination,
    isolation: &Isolation,
) -> io::Result<()> {
    match proxy.dialer.dial(to, isolation).await {
        Ok(mut remote) => {
            // An inner address says nothing but which user name's it is.
            let inner = proxy.dialer.stack().addresses().is_inner(remote.local().ip());
            let bound = if inner { NOWHERE } else { remote.local() };
            stream.write_all(&wire::reply(Reply::Succeeded, bound)).await?;
            join(stream, &mut remote).await
        }
        Err(error) => {
            log_failure(to, error);
            refuse(stream, code(error)).await
        }
    }
}

fn code(error: DialError) -> Reply {
    match error {
        DialError::Connect(ConnectError::Refused) => Reply::Refused,
        DialError::Connect(ConnectError::Unreachable)
        | DialError::UnknownName
        | DialError::Lookup(LookupError::Missing)
        | DialError::NoSource(NoSource::NoFamily) => Reply::HostUnreachable,
        DialError::Connect(ConnectError::Prohibited)
        | DialError::NoSource(NoSource::NotUnicast)
        | DialError::Isolation(IsolationError::TooMany) => Reply::NotAllowed,
        DialError::Connect(ConnectError::TimedOut) => Reply::TimedOut,
        DialError::Connect(ConnectError::TooMany) | DialError::Lookup(LookupError::Failed) => {
            Reply::Failure
        }
        DialError::NoSource(NoSource::NotConnected)
        | DialError::ForeignName
        | DialError::Isolation(IsolationError::NotConnected | IsolationError::TimedOut) => {
            Reply::NetworkUnreachable
        }
    }
}
