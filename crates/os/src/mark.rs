//! The mark on packets of the daemon's own sockets, by which policy routing
//! and packet filters tell what carries the tunnel from what belongs inside.
//!
//! Invariants: [`MARK`] is one number for all of this program's sockets, so
//! that a filter made by one run lets the next one through. Deliberately not
//! here: the rules that look at it.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// `SO_MARK` of the daemon's sockets: "warr" in ASCII.
pub const MARK: u32 = 0x7761_7272;

/// Marks what a socket sends from now on; sockets a marked listener accepts
/// have the mark too.
///
/// # Errors
/// `PermissionDenied` without `CAP_NET_ADMIN` (or `CAP_NET_RAW`, Linux 5.17).
pub fn mark(socket: &impl AsFd) -> io::Result<()> {
    let value = MARK;
    // SAFETY: the option takes one integer, which outlives the call, and the
    // descriptor is borrowed for the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_MARK,
            (&raw const value).cast(),
            size_of::<u32>() as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_is_marked_where_that_is_allowed() {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let allowed = crate::netns::is_privileged();
        match mark(&socket) {
            Ok(()) => assert_eq!(socket2::SockRef::from(&socket).mark().unwrap(), MARK),
            Err(error) => {
                assert!(!allowed, "{error}");
                assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
            }
        }
    }
}
