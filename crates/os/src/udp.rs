//! UDP sockets for batches: many datagrams to one address in one call
//! (`UDP_SEGMENT`), trains of datagrams from one address in one buffer
//! (`UDP_GRO`), several such trains in one call (`recvmmsg`), and the
//! type-of-service byte both ways for ECN.
//!
//! Invariants: datagrams leave with "don't fragment" set and are not held back
//! by the kernel's own path MTU guess (`IP_PMTUDISC_PROBE`), but for
//! [`UdpSocket::send_fragmentable`]. Addresses given and returned are never
//! IPv4-mapped. Without kernel support for `UDP_SEGMENT` the same calls fall
//! back to `sendmmsg`. Not here: what the datagrams mean.

use std::io;
use std::mem::size_of;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use socket2::{Domain, Protocol, SockAddr, Socket, Type};

mod control;
mod receive;

pub use receive::{RecvBatch, Train};

use control::ControlBuffer;

/// Most datagrams one send with `UDP_SEGMENT` may carry (`UDP_MAX_SEGMENTS` of
/// older kernels).
pub const MAX_SEGMENTS: usize = 64;

/// Most bytes one send may carry, all datagrams together: what an IPv4
/// datagram can hold.
pub const MAX_SEND_BYTES: usize = 65_507;

/// Socket buffers asked for, bytes. Small ones cost up to a fifth of the
/// throughput in retransmissions.
const BUFFER_BYTES: usize = 8 << 20;

/// Datagrams for one address: `data` cut every `segment` bytes, the last one
/// possibly shorter.
#[derive(Debug, Clone, Copy)]
pub struct Transmit<'a> {
    /// Destination.
    pub to: SocketAddr,
    /// The datagrams, one after the other; at most [`MAX_SEND_BYTES`].
    pub data: &'a [u8],
    /// Bytes of each datagram but the last; at most [`MAX_SEGMENTS`] of them.
    pub segment: usize,
    /// Type of service or traffic class of the outer header.
    pub tos: u8,
}

impl Transmit<'_> {
    /// Number of datagrams.
    pub fn datagrams(&self) -> usize {
        self.data.len().div_ceil(self.segment.max(1)).max(1)
    }
}

/// Some datagrams of a [`Transmit`] were not sent.
#[derive(Debug, thiserror::Error)]
#[error("{failed} datagrams to {to} not sent: {source}")]
pub struct SendError {
    /// Destination.
    pub to: SocketAddr,
    /// How many datagrams did not leave.
    pub failed: usize,
    /// The kernel's answer to the last of them.
    pub source: io::Error,
}

/// Why a socket could not be bound, with the remedy.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Another process has the port.
    #[error("UDP port {0} is taken: stop the program that uses it or choose another with --listen")]
    PortTaken(SocketAddr),
    /// The address is not one of this machine's.
    #[error("{0} is no address of this machine: use one of its own, or 0.0.0.0 or [::] for all")]
    NoSuchAddress(SocketAddr),
    /// Ports below 1024 need a capability.
    #[error("no permission to bind {0}: choose a port above 1023")]
    NoPermission(SocketAddr),
    /// Anything else the kernel said.
    #[error("cannot bind UDP {address}: {source}")]
    Os {
        /// The address asked for.
        address: SocketAddr,
        /// The kernel's answer.
        source: io::Error,
    },
}

/// A bound UDP socket. All methods take `&self`; share it with `Arc`.
#[derive(Debug)]
pub struct UdpSocket {
    socket: Socket,
    v6: bool,
    /// Cleared for good when the kernel turns out not to support it.
    segmentation: AtomicBool,
    coalescing: bool,
    /// Serialises the switch of the fragmentation mode.
    fragmenting: Mutex<()>,
}

/// What a socket can do; part of the mode shown by `warren status`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UdpOffloads {
    /// `UDP_SEGMENT` on sending.
    pub gso: bool,
    /// `UDP_GRO` on receiving.
    pub gro: bool,
}

impl std::fmt::Display for UdpOffloads {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match (self.gso, self.gro) {
            (true, true) => "gso,gro",
            (true, false) => "gso",
            (false, true) => "gro",
            (false, false) => "plain",
        })
    }
}

impl UdpSocket {
    /// Binds `address`. `[::]` takes both families, and falls back to
    /// `0.0.0.0` where the kernel has no IPv6. With `reuse_port` several
    /// sockets of this process share the port, and the kernel keeps each
    /// sender's datagrams on one of them.
    ///
    /// # Errors
    /// See [`BindError`].
    pub fn bind(address: SocketAddr, reuse_port: bool) -> Result<Self, BindError> {
        match Self::bind_one(address, reuse_port) {
            Err(error) if address.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED) => {
                let without_v6 = [libc::EAFNOSUPPORT, libc::EADDRNOTAVAIL, libc::EPROTONOSUPPORT];
                if !error.raw_os_error().is_some_and(|code| without_v6.contains(&code)) {
                    return Err(bind_error(address, error));
                }
                let v4 = SocketAddr::from(([0, 0, 0, 0], address.port()));
                Self::bind_one(v4, reuse_port).map_err(|error| bind_error(v4, error))
            }
            other => other.map_err(|error| bind_error(address, error)),
        }
    }

    fn bind_one(address: SocketAddr, reuse_port: bool) -> io::Result<Self> {
        let v6 = address.is_ipv6();
        let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
        if v6 {
            socket.set_only_v6(!address.ip().is_unspecified())?;
        }
        if reuse_port {
            socket.set_reuse_port(true)?;
        }
        set_buffers(&socket);
        // Without the capability nothing on this machine asks for the mark.
        let _unmarked = crate::mark::mark(&socket);
        let segmentation = set_option(&socket, libc::SOL_UDP, libc::UDP_SEGMENT, 0).is_ok();
        let coalescing = set_option(&socket, libc::SOL_UDP, libc::UDP_GRO, 1).is_ok();
        // The IPv4 options also apply to an IPv6 socket's IPv4 traffic, where
        // a kernel may refuse them; the mark is then not seen, no more.
        let _ = set_option(&socket, libc::IPPROTO_IP, libc::IP_RECVTOS, 1);
        let _ =
            set_option(&socket, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_PROBE);
        if v6 {
            set_option(&socket, libc::IPPROTO_IPV6, libc::IPV6_RECVTCLASS, 1)?;
            set_option(
                &socket,
                libc::IPPROTO_IPV6,
                libc::IPV6_MTU_DISCOVER,
                libc::IPV6_PMTUDISC_PROBE,
            )?;
        }
        socket.bind(&address.into())?;
        Ok(Self {
            socket,
            v6,
            segmentation: AtomicBool::new(segmentation),
            coalescing,
            fragmenting: Mutex::new(()),
        })
    }

    /// The address bound, with the port the kernel chose if 0 was asked for.
    ///
    /// # Errors
    /// The kernel's.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()?.as_socket().ok_or_else(|| io::ErrorKind::AddrNotAvailable.into())
    }

    /// What the socket can do.
    pub fn offloads(&self) -> UdpOffloads {
        UdpOffloads { gso: self.segmentation.load(Ordering::Relaxed), gro: self.coalescing }
    }

    /// Sends, waiting for room in the socket's buffer.
    ///
    /// # Errors
    /// Says how many datagrams were lost and why.
    pub fn send(&self, transmit: &Transmit<'_>) -> Result<(), SendError> {
        self.send_with(transmit, 0)
    }

    /// Sends without ever waiting; a full buffer is an error of kind
    /// `WouldBlock`.
    ///
    /// # Errors
    /// Says how many datagrams were lost and why.
    pub fn try_send(&self, transmit: &Transmit<'_>) -> Result<(), SendError> {
        self.send_with(transmit, libc::MSG_DONTWAIT)
    }

    /// Sends one datagram that routers (and this host) may fragment: for inner
    /// IPv6 packets between the path's MTU and 1280 bytes. Slow. Datagrams
    /// that other threads send in the same few microseconds may go out
    /// fragmentable too.
    ///
    /// # Errors
    /// As [`Self::send`].
    pub fn send_fragmentable(&self, to: SocketAddr, data: &[u8], tos: u8) -> Result<(), SendError> {
        let (level, option, off, on) = if to.is_ipv6() {
            (
                libc::IPPROTO_IPV6,
                libc::IPV6_MTU_DISCOVER,
                libc::IPV6_PMTUDISC_DONT,
                libc::IPV6_PMTUDISC_PROBE,
            )
        } else {
            (
                libc::IPPROTO_IP,
                libc::IP_MTU_DISCOVER,
                libc::IP_PMTUDISC_DONT,
                libc::IP_PMTUDISC_PROBE,
            )
        };
        let guard = self.fragmenting.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let switched = set_option(&self.socket, level, option, off);
        let sent = self.send_one(to, data, tos, None, libc::MSG_DONTWAIT);
        let restored = set_option(&self.socket, level, option, on);
        drop(guard);
        switched.and(sent).and(restored).map_err(|source| SendError { to, failed: 1, source })
    }

    fn send_with(&self, transmit: &Transmit<'_>, flags: i32) -> Result<(), SendError> {
        let Transmit { to, data, segment, tos } = *transmit;
        let count = transmit.datagrams();
        if count == 1 {
            return self.send_one(to, data, tos, None, flags).map_err(|source| SendError {
                to,
                failed: 1,
                source,
            });
        }
        if !self.segmentation.load(Ordering::Relaxed) {
            return self.send_many(transmit, flags).map_err(|(failed, source)| SendError {
                to,
                failed,
                source,
            });
        }
        let size = u16::try_from(segment).ok();
        match self.send_one(to, data, tos, size, flags) {
            Ok(()) => Ok(()),
            // EIO: the device cannot checksum. EINVAL: no such option, or a
            // datagram beyond the device's MTU. ENOPROTOOPT, EOPNOTSUPP: no
            // such option. Sending one by one tells them apart.
            Err(error)
                if matches!(
                    error.raw_os_error(),
                    Some(
                        libc::EIO
                            | libc::EINVAL
                            | libc::ENOPROTOOPT
                            | libc::EOPNOTSUPP
                            | libc::EMSGSIZE
                    )
                ) =>
            {
                match self.send_many(transmit, flags) {
                    Ok(()) => {
                        self.segmentation.store(false, Ordering::Relaxed);
                        Ok(())
                    }
                    Err((failed, source)) => Err(SendError { to, failed, source }),
                }
            }
            Err(source) => Err(SendError { to, failed: count, source }),
        }
    }

    fn address(&self, to: SocketAddr) -> SockAddr {
        match to {
            SocketAddr::V4(v4) if self.v6 => {
                SocketAddr::from((v4.ip().to_ipv6_mapped(), v4.port())).into()
            }
            other => other.into(),
        }
    }

    fn send_one(
        &self,
        to: SocketAddr,
        data: &[u8],
        tos: u8,
        segment: Option<u16>,
        flags: i32,
    ) -> io::Result<()> {
        let address = self.address(to);
        let mut control = ControlBuffer::for_send(to.is_ipv6(), tos, segment);
        let mut part =
            libc::iovec { iov_base: data.as_ptr().cast_mut().cast(), iov_len: data.len() };
        let header = message_header(&address, &mut part, &mut control);
        loop {
            // SAFETY: `header` points at `address`, `part` (which describes the
            // live slice `data`, only read by a send) and `control`, all of
            // which outlive the call.
            let n = unsafe { libc::sendmsg(self.socket.as_raw_fd(), &raw const header, flags) };
            if n >= 0 {
                return Ok(());
            }
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
        }
    }

    /// `sendmmsg` for kernels or devices without segmentation. On failure
    /// returns how many were not sent, and why the last of them.
    fn send_many(&self, transmit: &Transmit<'_>, flags: i32) -> Result<(), (usize, io::Error)> {
        let address = self.address(transmit.to);
        let mut control = ControlBuffer::for_send(transmit.to.is_ipv6(), transmit.tos, None);
        let mut failed = 0;
        let mut last = None;
        for group in transmit.data.chunks(transmit.segment.max(1) * MAX_SEGMENTS) {
            let mut parts: Vec<libc::iovec> = group
                .chunks(transmit.segment.max(1))
                .map(|one| libc::iovec {
                    iov_base: one.as_ptr().cast_mut().cast(),
                    iov_len: one.len(),
                })
                .collect();
            let mut headers: Vec<libc::mmsghdr> = parts
                .iter_mut()
                .map(|part| libc::mmsghdr {
                    msg_hdr: message_header(&address, part, &mut control),
                    msg_len: 0,
                })
                .collect();
            let mut done = 0;
            while done < headers.len() {
                let rest = &mut headers[done..];
                // SAFETY: every header points at `address`, `control` and one
                // of `parts` (each describing a part of the live slice
                // `group`), all of which outlive the call.
                let n = unsafe {
                    libc::sendmmsg(
                        self.socket.as_raw_fd(),
                        rest.as_mut_ptr(),
                        rest.len() as u32,
                        flags,
                    )
                };
                if n > 0 {
                    done += n as usize;
                    continue;
                }
                let error = io::Error::last_os_error();
                if error.kind() == io::ErrorKind::Interrupted {
                    continue;
                }
                // The first of the rest failed; a full buffer fails them all.
                let lost = if error.kind() == io::ErrorKind::WouldBlock {
                    headers.len() - done
                } else {
                    1
                };
                failed += lost;
                done += lost;
                last = Some(error);
            }
        }
        match last {
            None => Ok(()),
            Some(error) => Err((failed, error)),
        }
    }
}

impl AsFd for UdpSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn message_header(
    address: &SockAddr,
    part: &mut libc::iovec,
    control: &mut ControlBuffer,
) -> libc::msghdr {
    // SAFETY: all-zero bytes are a valid `msghdr` (null pointers, no lengths).
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_name = address.as_ptr().cast_mut().cast();
    header.msg_namelen = address.len();
    header.msg_iov = part;
    header.msg_iovlen = 1;
    if control.len() > 0 {
        header.msg_control = control.as_mut_ptr().cast();
        header.msg_controllen = control.len() as _;
    }
    header
}

fn set_option(socket: &Socket, level: i32, option: i32, value: i32) -> io::Result<()> {
    // SAFETY: the option's value is the live integer `value` of the size given.
    let done = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            (&raw const value).cast(),
            size_of::<i32>() as libc::socklen_t,
        )
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Large buffers, past the system's limit where we may, else up to it.
fn set_buffers(socket: &Socket) {
    for (force, limited) in [(libc::SO_RCVBUFFORCE, true), (libc::SO_SNDBUFFORCE, false)] {
        if set_option(socket, libc::SOL_SOCKET, force, BUFFER_BYTES as i32).is_err() {
            let _ = if limited {
                socket.set_recv_buffer_size(BUFFER_BYTES)
            } else {
                socket.set_send_buffer_size(BUFFER_BYTES)
            };
        }
    }
}

fn bind_error(address: SocketAddr, source: io::Error) -> BindError {
    match source.raw_os_error() {
        Some(libc::EADDRINUSE) => BindError::PortTaken(address),
        Some(libc::EADDRNOTAVAIL) => BindError::NoSuchAddress(address),
        Some(libc::EACCES | libc::EPERM) => BindError::NoPermission(address),
        _ => BindError::Os { address, source },
    }
}

#[cfg(test)]
mod tests;
