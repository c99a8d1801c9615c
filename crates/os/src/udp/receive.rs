//! Receiving: trains of datagrams, several per call where the kernel does not
//! join them itself.

use std::io;
use std::mem::size_of;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;

use super::UdpSocket;
use super::control::ControlBuffer;

/// Most messages one call may return.
const MAX_MESSAGES: usize = 32;
/// Room for one message: the largest train.
const MESSAGE_BYTES: usize = 1 << 16;

/// Buffers for received messages, reused from call to call. Adapts how many
/// messages one call asks for: few where the kernel joins datagrams into
/// trains (which keeps the working set small), many where it does not.
pub struct RecvBatch {
    /// Untouched parts cost no memory: the allocator maps them on first use.
    data: Vec<u8>,
    names: Vec<libc::sockaddr_storage>,
    controls: Vec<ControlBuffer>,
    ask: usize,
    lengths: [usize; MAX_MESSAGES],
    control_lengths: [usize; MAX_MESSAGES],
    count: usize,
    full: bool,
}

/// One received message: datagrams of one sender, one after the other.
#[derive(Debug)]
pub struct Train<'a> {
    /// The sender.
    pub from: SocketAddr,
    /// The datagrams; cut every `segment` bytes, the last may be shorter.
    pub data: &'a mut [u8],
    /// Bytes of each datagram but the last; at least 1.
    pub segment: usize,
    /// Type of service or traffic class of the outer header.
    pub tos: u8,
}

impl Default for RecvBatch {
    fn default() -> Self {
        // SAFETY: all-zero bytes are a valid `sockaddr_storage`.
        let name: libc::sockaddr_storage = unsafe { std::mem::zeroed() };
        Self {
            data: vec![0; MAX_MESSAGES * MESSAGE_BYTES],
            names: vec![name; MAX_MESSAGES],
            controls: vec![ControlBuffer::new(); MAX_MESSAGES],
            ask: 1,
            lengths: [0; MAX_MESSAGES],
            control_lengths: [0; MAX_MESSAGES],
            count: 0,
            full: false,
        }
    }
}

impl std::fmt::Debug for RecvBatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RecvBatch({} messages, asks for {})", self.count, self.ask)
    }
}

impl RecvBatch {
    /// Messages of the last receive.
    pub fn len(&self) -> usize {
        self.count
    }

    /// True when the last receive returned nothing.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// True when the last receive returned all it asked for, so that more may
    /// be waiting.
    pub fn was_full(&self) -> bool {
        self.full
    }

    /// Message `index` of the last receive; `None` past its end, or when the
    /// message is empty or its sender unknown.
    pub fn train(&mut self, index: usize) -> Option<Train<'_>> {
        if index >= self.count || self.lengths[index] == 0 {
            return None;
        }
        let from = sender(&self.names[index])?;
        let received = self.controls[index].parse(self.control_lengths[index]);
        let start = index * MESSAGE_BYTES;
        let data = &mut self.data[start..start + self.lengths[index]];
        let segment = received.segment.unwrap_or(data.len()).min(data.len());
        Some(Train { from, segment, tos: received.tos, data })
    }

    fn adapt(&mut self, asked: usize) {
        let bytes: usize = self.lengths[..self.count].iter().sum();
        if bytes > self.count * (MESSAGE_BYTES / 4) {
            self.ask = (asked / 2).max(1);
        } else if self.count == asked {
            self.ask = (asked * 2).min(MAX_MESSAGES);
        }
    }
}

impl UdpSocket {
    /// Receives what is waiting, without blocking.
    ///
    /// # Errors
    /// `WouldBlock` when nothing is waiting. Errors that earlier sends left on
    /// the socket (`ECONNREFUSED` and the like) may show up here too; receive
    /// again after them.
    pub fn receive(&self, batch: &mut RecvBatch) -> io::Result<usize> {
        batch.count = 0;
        batch.full = false;
        let asked = batch.ask;
        // SAFETY: all-zero bytes are a valid `mmsghdr` (null pointers).
        let mut headers: [libc::mmsghdr; MAX_MESSAGES] = unsafe { std::mem::zeroed() };
        let empty = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
        let mut parts = [empty; MAX_MESSAGES];
        let slots = batch
            .data
            .chunks_exact_mut(MESSAGE_BYTES)
            .zip(&mut batch.names)
            .zip(&mut batch.controls);
        for (((header, part), ((data, name), control)), _) in
            headers.iter_mut().zip(&mut parts).zip(slots).zip(0..asked)
        {
            *part = libc::iovec { iov_base: data.as_mut_ptr().cast(), iov_len: data.len() };
            header.msg_hdr.msg_name = (&raw mut *name).cast();
            header.msg_hdr.msg_namelen = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
            header.msg_hdr.msg_iov = part;
            header.msg_hdr.msg_iovlen = 1;
            header.msg_hdr.msg_control = control.as_mut_ptr().cast();
            header.msg_hdr.msg_controllen = control.capacity() as _;
        }
        let n = loop {
            // SAFETY: the first `asked` headers point at their own name, part,
            // data and control buffers of `batch`, distinct and exclusively
            // borrowed for the whole call.
            let n = unsafe {
                libc::recvmmsg(
                    self.socket.as_raw_fd(),
                    headers.as_mut_ptr(),
                    asked as u32,
                    libc::MSG_DONTWAIT,
                    std::ptr::null_mut(),
                )
            };
            if let Ok(n) = usize::try_from(n) {
                break n;
            }
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
        };
        for (i, header) in headers.iter().take(n).enumerate() {
            // A cut-off message (it cannot exceed the buffer) would count as empty.
            let cut = header.msg_hdr.msg_flags & libc::MSG_TRUNC != 0;
            batch.lengths[i] = if cut { 0 } else { (header.msg_len as usize).min(MESSAGE_BYTES) };
            #[allow(clippy::unnecessary_cast, reason = "other C libraries have a narrower type")]
            let control_length = header.msg_hdr.msg_controllen as usize;
            batch.control_lengths[i] = control_length;
        }
        batch.count = n;
        batch.full = n == asked;
        batch.adapt(asked);
        Ok(n)
    }
}

fn sender(name: &libc::sockaddr_storage) -> Option<SocketAddr> {
    let address = match i32::from(name.ss_family) {
        libc::AF_INET => {
            // SAFETY: the family says that the storage, which is large and
            // aligned enough for any address, holds a `sockaddr_in`.
            let v4 = unsafe { &*(&raw const *name).cast::<libc::sockaddr_in>() };
            SocketAddr::from((v4.sin_addr.s_addr.to_ne_bytes(), u16::from_be(v4.sin_port)))
        }
        libc::AF_INET6 => {
            // SAFETY: as above, for `sockaddr_in6`.
            let v6 = unsafe { &*(&raw const *name).cast::<libc::sockaddr_in6>() };
            let ip = std::net::Ipv6Addr::from(v6.sin6_addr.s6_addr);
            let port = u16::from_be(v6.sin6_port);
            match ip.to_ipv4_mapped() {
                Some(v4) => SocketAddr::from((v4, port)),
                None => std::net::SocketAddrV6::new(ip, port, 0, v6.sin6_scope_id).into(),
            }
        }
        _ => return None,
    };
    Some(address)
}
