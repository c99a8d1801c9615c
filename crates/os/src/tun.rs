//! The TUN interface: opening it with the best offloads the kernel has, and
//! reading and writing frames.
//!
//! A frame is a 10-byte `virtio_net_hdr` followed by one IP packet, which with
//! segmentation offload may be up to 64 KiB of one TCP or UDP flow. Without
//! `IFF_VNET_HDR` the header is there all the same, as zeros, so that callers
//! need not tell the two apart.
//!
//! Invariants: queues are non-blocking; the interface disappears when the last
//! queue is closed. [`memory`] has queues of the same kind without an
//! interface. Not here: addresses, MTU and routes (netlink does that),
//! and the meaning of the header (the packet code does that).

pub mod memory;

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

/// Bytes of the `virtio_net_hdr` in front of every frame.
pub const VNET_HEADER_LEN: usize = 10;

/// Longest interface name, in bytes (`IFNAMSIZ` without its terminator).
pub const MAX_NAME_LEN: usize = 15;

const TUNSETIFF: libc::c_ulong = 0x4004_54ca;
const TUNSETOFFLOAD: libc::c_ulong = 0x4004_54d0;
const IFF_TUN: i16 = 0x0001;
const IFF_NO_PI: i16 = 0x1000;
const IFF_VNET_HDR: i16 = 0x4000;
const IFF_MULTI_QUEUE: i16 = 0x0100;
const TUN_F_CSUM: libc::c_ulong = 0x01;
const TUN_F_TSO4: libc::c_ulong = 0x02;
const TUN_F_TSO6: libc::c_ulong = 0x04;
const TUN_F_TSO_ECN: libc::c_ulong = 0x08;
const TUN_F_USO4: libc::c_ulong = 0x20;
const TUN_F_USO6: libc::c_ulong = 0x40;

/// What the kernel granted; part of the mode shown by `warren status`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TunOffloads {
    /// Frames carry a real `virtio_net_hdr`.
    pub vnet_hdr: bool,
    /// Unfinished checksums may be handed over in both directions.
    pub checksum: bool,
    /// TCP super-packets of up to 64 KiB.
    pub tso: bool,
    /// UDP super-packets (Linux 6.2 and later).
    pub uso: bool,
}

impl std::fmt::Display for TunOffloads {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let parts = [
            (self.vnet_hdr, "vnet_hdr"),
            (self.checksum, "csum"),
            (self.tso, "tso"),
            (self.uso, "uso"),
        ];
        let on: Vec<&str> = parts.iter().filter(|(on, _)| *on).map(|(_, name)| *name).collect();
        if on.is_empty() { f.write_str("plain") } else { f.write_str(&on.join(",")) }
    }
}

/// Why the interface could not be opened, with the remedy.
#[derive(Debug, thiserror::Error)]
pub enum TunError {
    /// The device node or the driver is missing.
    #[error(
        "/dev/net/tun is missing: load the driver (`modprobe tun`), or pass the device into the container (`--device /dev/net/tun`)"
    )]
    NoDevice,
    /// The process lacks `CAP_NET_ADMIN` or may not open the device node.
    #[error(
        "no permission to create a TUN interface: run as root or grant CAP_NET_ADMIN (`warren service-unit` prints a unit that does)"
    )]
    NoPermission,
    /// Another process holds an interface of that name, or it is of another kind.
    #[error(
        "the interface name `{0}` is in use: choose another with --interface, or stop the program that holds it"
    )]
    NameBusy(String),
    /// Empty, longer than 15 bytes, or with `/`, whitespace or a NUL.
    #[error("`{0}` is no valid interface name: use 1 to 15 letters, digits, `-`, `_` or `.`")]
    BadName(String),
    /// Anything else the kernel said.
    #[error("cannot open the TUN interface ({step}): {source}")]
    Os {
        /// The call that failed.
        step: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
}

/// An open TUN interface: one or more packet queues.
#[derive(Debug)]
pub struct Tun {
    name: String,
    offloads: TunOffloads,
    queues: Vec<TunQueue>,
}

/// One packet queue, for one worker.
#[derive(Debug)]
pub struct TunQueue(Kind);

#[derive(Debug)]
enum Kind {
    Device { fd: OwnedFd, vnet_hdr: bool },
    Memory(memory::MemoryQueue),
}

#[repr(C)]
struct IfReq {
    name: [u8; 16],
    flags: i16,
    rest: [u8; 22],
}

impl Tun {
    /// Creates the interface `name` (a `%d` in it is numbered by the kernel)
    /// with `queues` queues, in the network namespace of the calling thread.
    ///
    /// # Errors
    /// See [`TunError`]; nothing stays behind.
    pub fn open(name: &str, queues: usize) -> Result<Self, TunError> {
        check_name(name)?;
        let queues = queues.max(1);
        let mut flags = IFF_TUN | IFF_NO_PI | IFF_VNET_HDR;
        if queues > 1 {
            flags |= IFF_MULTI_QUEUE;
        }
        let (first, name, flags) = match attach(name, flags) {
            Ok((fd, name)) => (fd, name, flags),
            // A kernel without virtio headers refuses the flag.
            Err(TunError::Os { source, .. }) if source.raw_os_error() == Some(libc::EINVAL) => {
                let plain = flags & !IFF_VNET_HDR;
                let (fd, name) = attach(name, plain)?;
                (fd, name, plain)
            }
            Err(error) => return Err(error),
        };
        let vnet_hdr = flags & IFF_VNET_HDR != 0;
        let offloads = if vnet_hdr { set_offloads(&first) } else { TunOffloads::default() };
        let mut tun = Self { name, offloads, queues: vec![TunQueue::device(first, vnet_hdr)] };
        for _ in 1..queues {
            let (fd, _) = attach(&tun.name, flags)?;
            set_offloads(&fd);
            tun.queues.push(TunQueue::device(fd, vnet_hdr));
        }
        Ok(tun)
    }

    /// The interface's name as the kernel has it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What the kernel granted.
    pub fn offloads(&self) -> TunOffloads {
        self.offloads
    }

    /// Takes the queues, to give one to each worker.
    pub fn into_queues(self) -> Vec<TunQueue> {
        self.queues
    }
}

impl TunQueue {
    fn device(fd: OwnedFd, vnet_hdr: bool) -> Self {
        Self(Kind::Device { fd, vnet_hdr })
    }

    fn memory(queue: memory::MemoryQueue) -> Self {
        Self(Kind::Memory(queue))
    }

    /// Reads one frame: header and packet. `buffer` must hold
    /// [`VNET_HEADER_LEN`] and 65535 bytes or a frame may be cut short.
    ///
    /// # Errors
    /// `WouldBlock` when none is queued; `EBADFD` (77) when the interface was
    /// deleted under us.
    pub fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let fd = match &self.0 {
            Kind::Device { fd, vnet_hdr: true } => return read_fd(fd.as_fd(), buffer),
            Kind::Device { fd, vnet_hdr: false } => fd,
            Kind::Memory(queue) => return queue.read(buffer),
        };
        let Some((header, rest)) = buffer.split_first_chunk_mut::<VNET_HEADER_LEN>() else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        *header = [0; VNET_HEADER_LEN];
        Ok(read_fd(fd.as_fd(), rest)? + VNET_HEADER_LEN)
    }

    /// Writes one frame: header and packet.
    ///
    /// # Errors
    /// The kernel's refusal (`EINVAL` for a frame whose header is no good,
    /// `EIO` while the interface is down), `WouldBlock` when a queue without an
    /// interface is full. The frame is then lost.
    pub fn write(&self, frame: &[u8]) -> io::Result<()> {
        let (fd, bytes) = match &self.0 {
            Kind::Device { fd, vnet_hdr: true } => (fd, frame),
            Kind::Device { fd, vnet_hdr: false } => {
                (fd, frame.get(VNET_HEADER_LEN..).unwrap_or_default())
            }
            Kind::Memory(queue) => return queue.write(frame),
        };
        loop {
            // SAFETY: the pointer and length describe the live slice `bytes`.
            let n = unsafe { libc::write(fd.as_raw_fd(), bytes.as_ptr().cast(), bytes.len()) };
            if n >= 0 {
                return Ok(());
            }
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
        }
    }
}

impl AsFd for TunQueue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.0 {
            Kind::Device { fd, .. } => fd.as_fd(),
            Kind::Memory(queue) => queue.as_fd(),
        }
    }
}

fn read_fd(fd: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        // SAFETY: the pointer and length describe the live, exclusively
        // borrowed slice `buffer`.
        let n = unsafe { libc::read(fd.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len()) };
        if let Ok(n) = usize::try_from(n) {
            return Ok(n);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

fn check_name(name: &str) -> Result<(), TunError> {
    let fine = !name.is_empty()
        && name.len() <= MAX_NAME_LEN
        && name != "."
        && name != ".."
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.%".contains(&b));
    if fine { Ok(()) } else { Err(TunError::BadName(name.chars().take(40).collect())) }
}

fn attach(name: &str, flags: i16) -> Result<(OwnedFd, String), TunError> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open("/dev/net/tun")
        .map_err(|source| match source.raw_os_error() {
            Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => TunError::NoDevice,
            Some(libc::EACCES | libc::EPERM) => TunError::NoPermission,
            _ => TunError::Os { step: "open /dev/net/tun", source },
        })?;
    let fd = OwnedFd::from(file);
    let mut request = IfReq { name: [0; 16], flags, rest: [0; 22] };
    request.name[..name.len()].copy_from_slice(name.as_bytes());
    // SAFETY: TUNSETIFF reads and writes one `ifreq`, which `IfReq` mirrors in
    // layout and size (40 bytes); it outlives the call.
    let done = unsafe { libc::ioctl(fd.as_raw_fd(), TUNSETIFF, &raw mut request) };
    if done < 0 {
        let source = io::Error::last_os_error();
        return Err(match source.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => TunError::NoPermission,
            Some(libc::EBUSY) => TunError::NameBusy(name.to_owned()),
            // An existing interface of another kind, or with other flags, is
            // refused with EINVAL: tell that apart from an unknown flag.
            Some(libc::EINVAL) if exists(name) => TunError::NameBusy(name.to_owned()),
            _ => TunError::Os { step: "TUNSETIFF", source },
        });
    }
    let end = request.name.iter().position(|b| *b == 0).unwrap_or(request.name.len());
    Ok((fd, String::from_utf8_lossy(&request.name[..end]).into_owned()))
}

fn exists(name: &str) -> bool {
    let mut text = [0u8; 16];
    text[..name.len()].copy_from_slice(name.as_bytes());
    // SAFETY: `text` is NUL-terminated, since names have at most 15 bytes.
    unsafe { libc::if_nametoindex(text.as_ptr().cast()) != 0 }
}

/// Asks for as much as the kernel grants, from all downwards.
fn set_offloads(fd: &OwnedFd) -> TunOffloads {
    let tso = TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_TSO_ECN;
    let uso = TUN_F_USO4 | TUN_F_USO6;
    let full = TunOffloads { vnet_hdr: true, checksum: true, tso: true, uso: true };
    let choices = [
        (tso | uso, full),
        (tso, TunOffloads { uso: false, ..full }),
        (TUN_F_CSUM, TunOffloads { uso: false, tso: false, ..full }),
    ];
    for (bits, granted) in choices {
        // SAFETY: TUNSETOFFLOAD takes its argument by value and touches no
        // memory of ours.
        if unsafe { libc::ioctl(fd.as_raw_fd(), TUNSETOFFLOAD, bits) } == 0 {
            return granted;
        }
    }
    TunOffloads { vnet_hdr: true, ..TunOffloads::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked_before_the_kernel_sees_them() {
        for bad in ["", ".", "..", "a/b", "a b", "sixteen-bytes-ab", "a\0b", "ä"] {
            assert!(matches!(Tun::open(bad, 1), Err(TunError::BadName(_))), "{bad:?}");
        }
        assert!(check_name("warren%d").is_ok());
    }

    #[test]
    fn offloads_read_well() {
        let full = TunOffloads { vnet_hdr: true, checksum: true, tso: true, uso: true };
        assert_eq!(full.to_string(), "vnet_hdr,csum,tso,uso");
        assert_eq!(TunOffloads::default().to_string(), "plain");
    }
}
