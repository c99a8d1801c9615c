//! Ending TCP connections of this network namespace from outside, over
//! sock_diag.
//!
//! In: local addresses. Out: how many connections were ended; their programs
//! get an error at once, their peers a reset. Connections that are being made
//! are left alone: they have lost nothing yet. Deliberately not here:
//! connections that this machine passes on for others.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_sys::protocols::NETLINK_SOCK_DIAG;
use netlink_sys::{Socket, SocketAddr};

use super::{NetlinkError, aligned, garbled};

/// `SOCK_DIAG_BY_FAMILY` and `SOCK_DESTROY` of `linux/sock_diag.h`.
const BY_FAMILY: u16 = 20;
const DESTROY: u16 = 21;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const REQUEST: u16 = 1;
const ACK: u16 = 4;
const DUMP: u16 = 0x300;
const HEADER_LEN: usize = 16;
/// `struct inet_diag_sockid`: ports, addresses, interface, cookie.
const ID_LEN: usize = 48;
const TCP: u8 = 6;
/// Bits of the states that have a connection: all but CLOSE (7), LISTEN (10),
/// SYN_SENT (2), SYN_RECV (3), TIME_WAIT (6) and NEW_SYN_RECV (12).
const CONNECTED: u32 = 1 << 1 | 1 << 4 | 1 << 5 | 1 << 8 | 1 << 9 | 1 << 11;

fn message(kind: u16, flags: u16, family: u8, id: &[u8; ID_LEN]) -> Vec<u8> {
    // `struct inet_diag_req_v2` behind the header.
    let len = (HEADER_LEN + 8 + ID_LEN) as u32;
    let mut out = Vec::with_capacity(len as usize);
    out.extend_from_slice(&len.to_ne_bytes());
    out.extend_from_slice(&kind.to_ne_bytes());
    out.extend_from_slice(&(REQUEST | flags).to_ne_bytes());
    out.extend_from_slice(&[0; 8]);
    out.extend_from_slice(&[family, TCP, 0, 0]);
    out.extend_from_slice(&CONNECTED.to_ne_bytes());
    out.extend_from_slice(id);
    out
}

/// Family and identity of the socket that an answer (`struct inet_diag_msg`)
/// tells of, and its local address.
fn socket_of(body: &[u8]) -> Option<(u8, [u8; ID_LEN], IpAddr)> {
    let family = *body.first()?;
    let id: [u8; ID_LEN] = body.get(4..4 + ID_LEN)?.try_into().ok()?;
    let source: [u8; 16] = id[4..20].try_into().ok()?;
    let address = if i32::from(family) == libc::AF_INET {
        let [a, b, c, d, ..] = source;
        IpAddr::V4(Ipv4Addr::new(a, b, c, d))
    } else {
        // An IPv6 socket may have an IPv4 connection.
        Ipv6Addr::from(source).to_canonical()
    };
    Some((family, id, address))
}

/// Messages of one answer: kind and body of each.
fn messages(datagram: &[u8]) -> Result<Vec<(u16, &[u8])>, NetlinkError> {
    let (mut rest, mut found) = (datagram, Vec::new());
    while !rest.is_empty() {
        let bad = || NetlinkError::Socket(garbled());
        let len = rest.first_chunk::<4>().map(|len| u32::from_ne_bytes(*len)).ok_or_else(bad)?;
        let one = rest.get(..len as usize).filter(|one| one.len() >= HEADER_LEN).ok_or_else(bad)?;
        found.push((u16::from_ne_bytes([one[4], one[5]]), &one[HEADER_LEN..]));
        rest = rest.get(aligned(len)..).unwrap_or_default();
    }
    Ok(found)
}

/// The error an error message tells of; `None` for an acknowledgement.
fn error_of(body: &[u8]) -> Option<io::Error> {
    let code = body.first_chunk::<4>().map_or(0, |code| i32::from_ne_bytes(*code));
    (code != 0).then(|| io::Error::from_raw_os_error(-code))
}

/// Ends the TCP connections of the calling thread's network namespace that have
/// one of `local` as their own address; how many there were.
///
/// # Errors
/// [`NetlinkError::NotPermitted`] without `CAP_NET_ADMIN`, and
/// [`NetlinkError::Refused`] by a kernel without `CONFIG_INET_DIAG_DESTROY`.
pub fn end_connections(local: &[IpAddr]) -> Result<usize, NetlinkError> {
    let mut socket = Socket::new(NETLINK_SOCK_DIAG).map_err(NetlinkError::Socket)?;
    socket.bind_auto().map_err(NetlinkError::Socket)?;
    socket.connect(&SocketAddr::new(0, 0)).map_err(NetlinkError::Socket)?;
    let mut found = Vec::new();
    for family in [libc::AF_INET as u8, libc::AF_INET6 as u8] {
        let question = message(BY_FAMILY, DUMP, family, &[0; ID_LEN]);
        socket.send(&question, 0).map_err(NetlinkError::Socket)?;
        'answers: loop {
            let (datagram, _) = socket.recv_from_full().map_err(NetlinkError::Socket)?;
            for (kind, body) in messages(&datagram)? {
                match kind {
                    NLMSG_DONE => break 'answers,
                    NLMSG_ERROR => {
                        let error = error_of(body).unwrap_or_else(garbled);
                        return Err(NetlinkError::of("list connections", error));
                    }
                    BY_FAMILY => found.extend(socket_of(body)),
                    _ => {}
                }
            }
        }
    }
    found.retain(|(_, _, address)| local.contains(address));
    let mut ended = 0;
    for (family, id, _) in found {
        socket.send(&message(DESTROY, ACK, family, &id), 0).map_err(NetlinkError::Socket)?;
        let (datagram, _) = socket.recv_from_full().map_err(NetlinkError::Socket)?;
        let answers = messages(&datagram)?;
        let error = answers.iter().find(|(kind, _)| *kind == NLMSG_ERROR);
        match error.and_then(|(_, body)| error_of(body)) {
            None => ended += 1,
            // It ended by itself meanwhile.
            Some(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
            Some(error) => return Err(NetlinkError::of("end a connection", error)),
        }
    }
    Ok(ended)
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::{TcpListener, TcpStream};
    use std::time::Duration;

    use super::*;
    use crate::netns::{NetNamespace, is_privileged};

    #[test]
    fn only_connections_of_the_address_end() {
        if !is_privileged() {
            eprintln!("SKIPPED: no privilege for network namespaces");
            return;
        }
        let namespace = NetNamespace::create().unwrap();
        namespace
            .run(|| {
                let mut netlink = super::super::Netlink::open().unwrap();
                let index = netlink.link_index("lo").unwrap();
                let up = super::super::LinkSettings { up: Some(true), ..Default::default() };
                netlink.configure_link(index, &up).unwrap();
                netlink.add_address(index, "10.1.1.1/32".parse().unwrap()).unwrap();
                let pair = |address: &str| {
                    let listener = TcpListener::bind((address, 0)).unwrap();
                    let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
                    let far = listener.accept().unwrap().0;
                    near.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
                    (listener, near, far)
                };
                let (_listener, mut kept, _far) = pair("127.0.0.1");
                let (listener, mut ended, _other) = pair("10.1.1.1");
                match end_connections(&["10.1.1.1".parse().unwrap()]) {
                    // The other end is here as well, but may have got the reset.
                    Ok(count) => assert!((1..=2).contains(&count), "{count}"),
                    Err(error) => {
                        eprintln!("SKIPPED: this kernel does not end connections: {error}");
                        return;
                    }
                }
                let kind = |stream: &mut TcpStream| stream.read(&mut [0; 1]).unwrap_err().kind();
                assert_ne!(kind(&mut ended), io::ErrorKind::WouldBlock);
                assert_eq!(kind(&mut kept), io::ErrorKind::WouldBlock);
                // Who listens goes on.
                TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            })
            .unwrap();
    }

    #[test]
    fn answers_that_are_cut_short_are_refused() {
        assert!(messages(&[1, 2, 3]).is_err());
        let whole = message(BY_FAMILY, DUMP, 2, &[0; ID_LEN]);
        assert_eq!(messages(&whole).unwrap().len(), 1);
        assert!(messages(&whole[..40]).is_err());
        assert!(socket_of(&[2; 20]).is_none());
    }
}
