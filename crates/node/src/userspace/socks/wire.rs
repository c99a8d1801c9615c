//! SOCKS5 on the wire: RFC 1928, and user names by RFC 1929. Pure.
//!
//! Parsers take what has been read so far and say `Ok(None)` while it is the
//! beginning of a message, `Ok(Some((message, its length)))` when it is whole,
//! and [`Malformed`] as soon as it can be none.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::userspace::dial::Destination;

/// Longest message of a client: a request with a name.
pub const MAX_MESSAGE: usize = 515;

const VERSION: u8 = 5;
const AUTH_VERSION: u8 = 1;

/// Methods of authentication.
pub const NO_AUTH: u8 = 0;
/// A user name and a password.
pub const USER_PASSWORD: u8 = 2;
/// None of those offered.
pub const NO_METHOD: u8 = 0xff;

/// Not SOCKS5.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not SOCKS5")]
pub struct Malformed;

/// What a parser found.
pub type Parsed<T> = Result<Option<(T, usize)>, Malformed>;

/// How a request ended, as the client is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Reply {
    /// It worked.
    Succeeded = 0,
    /// Something here went wrong.
    Failure = 1,
    /// Not allowed here.
    NotAllowed = 2,
    /// No way out of the mesh.
    NetworkUnreachable = 3,
    /// No way to the host, or no such host.
    HostUnreachable = 4,
    /// The host said no.
    Refused = 5,
    /// No answer in time.
    TimedOut = 6,
    /// A command that is not served.
    CommandNotSupported = 7,
    /// A form of address that is not known.
    AddressNotSupported = 8,
}

/// What a client wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// A connection.
    Connect,
    /// Datagrams.
    Associate,
    /// Something else.
    Other,
}

/// A client's request. The destination is `None` for an address of a kind, or a
/// name, that nothing can be done with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// What it wants.
    pub command: Command,
    /// To where; for datagrams, from where the client will send.
    pub destination: Option<Destination>,
}

/// The methods a client offers.
///
/// # Errors
/// [`Malformed`].
pub fn greeting(bytes: &[u8]) -> Parsed<&[u8]> {
    match bytes {
        [] | [VERSION] => Ok(None),
        [VERSION, 0, ..] => Err(Malformed),
        [VERSION, count, rest @ ..] => {
            let count = usize::from(*count);
            Ok(rest.get(..count).map(|methods| (methods, 2 + count)))
        }
        _ => Err(Malformed),
    }
}

/// A user name and a password.
///
/// # Errors
/// [`Malformed`].
pub fn user_password(bytes: &[u8]) -> Parsed<(&[u8], &[u8])> {
    let Some((version, rest)) = bytes.split_first() else { return Ok(None) };
    if *version != AUTH_VERSION {
        return Err(Malformed);
    }
    let field = |rest: &'_ [u8]| rest.first().map(|length| usize::from(*length));
    let Some(user) = field(rest) else { return Ok(None) };
    let Some(after) = rest.get(1 + user..) else { return Ok(None) };
    let Some(password) = field(after) else { return Ok(None) };
    let Some(secret) = after.get(1..1 + password) else { return Ok(None) };
    Ok(Some(((&rest[1..1 + user], secret), 3 + user + password)))
}

/// A request.
///
/// # Errors
/// [`Malformed`].
pub fn request(bytes: &[u8]) -> Parsed<Request> {
    let (command, kind_on) = match bytes {
        [] | [VERSION] | [VERSION, _] | [VERSION, _, _] => return Ok(None),
        [VERSION, command, _, rest @ ..] => (*command, rest),
        _ => return Err(Malformed),
    };
    let command = match command {
        1 => Command::Connect,
        3 => Command::Associate,
        _ => Command::Other,
    };
    match address(kind_on)? {
        Some((destination, length)) => Ok(Some((Request { command, destination }, 3 + length))),
        None => Ok(None),
    }
}

/// An address as both requests and datagrams have it.
fn address(bytes: &[u8]) -> Parsed<Option<Destination>> {
    let Some((kind, rest)) = bytes.split_first() else { return Ok(None) };
    let length = match kind {
        1 => 4,
        4 => 16,
        3 => match rest.first() {
            Some(length) => 1 + usize::from(*length),
            None => return Ok(None),
        },
        _ => return Err(Malformed),
    };
    let Some((host, after)) = rest.split_at_checked(length) else { return Ok(None) };
    let Some(port) = after.first_chunk::<2>() else { return Ok(None) };
    let port = u16::from_be_bytes(*port);
    let destination = match (host.first_chunk::<16>(), host.first_chunk::<4>()) {
        (Some(v6), _) if *kind == 4 => Some(to_address(Ipv6Addr::from(*v6).into(), port)),
        (_, Some(v4)) if *kind == 1 => Some(to_address(Ipv4Addr::from(*v4).into(), port)),
        _ => std::str::from_utf8(&host[1..]).ok().and_then(|name| Destination::new(name, port)),
    };
    Ok(Some((destination, 1 + length + 2)))
}

fn to_address(ip: IpAddr, port: u16) -> Destination {
    Destination::Address(SocketAddr::new(ip.to_canonical(), port))
}

/// The answer to a greeting.
pub fn chosen(method: u8) -> [u8; 2] {
    [VERSION, method]
}

/// The answer to a user name and password.
pub fn authenticated(right: bool) -> [u8; 2] {
    [AUTH_VERSION, u8::from(!right)]
}

/// The answer to a request. `bound`: where the connection leaves from, or where
/// datagrams are taken.
pub fn reply(reply: Reply, bound: SocketAddr) -> Vec<u8> {
    let mut out = vec![VERSION, reply as u8, 0];
    write_address(&mut out, bound);
    out
}

fn write_address(out: &mut Vec<u8>, address: SocketAddr) {
    match address.ip() {
        IpAddr::V4(v4) => {
            out.push(1);
            out.extend_from_slice(&v4.octets());
        }
        IpAddr::V6(v6) => {
            out.push(4);
            out.extend_from_slice(&v6.octets());
        }
    }
    out.extend_from_slice(&address.port().to_be_bytes());
}

/// A client's datagram: where to, and what. `None` for fragments, which nobody
/// has to support, and for what is none.
pub fn datagram(bytes: &[u8]) -> Option<(Destination, &[u8])> {
    let [_, _, 0, rest @ ..] = bytes else { return None };
    let (destination, length) = address(rest).ok()??;
    Some((destination?, rest.get(length..)?))
}

/// A datagram for a client.
pub fn write_datagram(from: SocketAddr, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(22 + payload.len());
    out.extend_from_slice(&[0, 0, 0]);
    write_address(&mut out, from);
    out.extend_from_slice(payload);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Each beginning of a message is one, and the whole is read.
    fn grows<T: PartialEq + std::fmt::Debug>(
        bytes: &[u8],
        parse: impl Fn(&[u8]) -> Parsed<T>,
    ) -> T {
        for len in 0..bytes.len() {
            assert_eq!(parse(&bytes[..len]), Ok(None), "{len} of {bytes:?}");
        }
        let longer = [bytes, b"more"].concat();
        let (read, length) = parse(&longer).unwrap().unwrap();
        assert_eq!(length, bytes.len());
        read
    }

    #[test]
    fn messages_are_read() {
        let methods =
            grows(&[5, 2, 0, 2], |b| greeting(b).map(|p| p.map(|(m, n)| (m.to_vec(), n))));
        assert_eq!(methods, [0, 2]);
        let (user, password) = grows(b"\x01\x04anna\x06secret", |b| {
            user_password(b).map(|p| p.map(|((u, p), n)| ((u.to_vec(), p.to_vec()), n)))
        });
        assert_eq!((&user[..], &password[..]), (&b"anna"[..], &b"secret"[..]));
        let to = |text: &str| Some(Destination::Address(text.parse().unwrap()));
        let connect = |destination| Request { command: Command::Connect, destination };
        assert_eq!(
            grows(&[5, 1, 0, 1, 100, 64, 0, 1, 0, 80], request),
            connect(to("100.64.0.1:80"))
        );
        let mut six = vec![5, 1, 0, 4, 0xfd, 0x12];
        six.extend_from_slice(&[0; 13]);
        six.extend_from_slice(&[1, 1, 187]);
        assert_eq!(grows(&six, request), connect(to("[fd12::1]:443")));
        let name = [&[5, 1, 0, 3, 5][..], b"gpu-2", &[0, 22]].concat();
        let named = Some(Destination::Name("gpu-2".into(), 22));
        assert_eq!(grows(&name, request), connect(named));
        // An address written as a name is an address.
        let written = [&[5, 3, 0, 3, 7][..], b"fd12::1", &[0, 22]].concat();
        let expected = Request { command: Command::Associate, destination: to("[fd12::1]:22") };
        assert_eq!(grows(&written, request), expected);
        let odd = [&[5, 2, 0, 3, 1][..], b"/", &[0, 22]].concat();
        let expected = Request { command: Command::Other, destination: None };
        assert_eq!(grows(&odd, request), expected);
    }

    #[test]
    fn other_protocols_are_refused_at_once() {
        assert_eq!(greeting(&[4]), Err(Malformed));
        assert_eq!(greeting(b"GET / HTTP/1.1"), Err(Malformed));
        assert_eq!(greeting(&[5, 0]), Err(Malformed));
        assert_eq!(user_password(&[5]), Err(Malformed));
        assert_eq!(request(&[4, 1]), Err(Malformed));
        assert_eq!(request(&[5, 1, 0, 2]), Err(Malformed));
    }

    #[test]
    fn answers_and_datagrams() {
        let bound = "100.64.0.1:40000".parse().unwrap();
        assert_eq!(reply(Reply::Refused, bound), [5, 5, 0, 1, 100, 64, 0, 1, 156, 64]);
        for from in ["100.64.0.1:53", "[fd12::1]:53"] {
            let from: SocketAddr = from.parse().unwrap();
            let bytes = write_datagram(from, b"data");
            assert_eq!(datagram(&bytes), Some((Destination::Address(from), &b"data"[..])));
            let mut fragment = bytes.clone();
            fragment[2] = 1;
            assert_eq!(datagram(&fragment), None);
            assert_eq!(datagram(&bytes[..6]), None);
        }
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600), version in 0..6u8) {
            let mut bytes = bytes;
            if let Some(first) = bytes.first_mut() {
                *first = version;
            }
            for parsed in [
                greeting(&bytes).map(|p| p.map(|(_, n)| n)),
                user_password(&bytes).map(|p| p.map(|(_, n)| n)),
                request(&bytes).map(|p| p.map(|(_, n)| n)),
            ] {
                if let Ok(Some(length)) = parsed {
                    prop_assert!(length <= bytes.len() && length <= MAX_MESSAGE);
                }
            }
            datagram(&bytes);
        }
    }
}
