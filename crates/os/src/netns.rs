//! Network namespaces, also without root.
//!
//! A [`NetNamespace`] is a descriptor: the namespace lives while somebody holds
//! one or a process runs inside, and vanishes with its interfaces afterwards,
//! so nothing needs cleaning up after a crash. Without root a process first
//! enters its own user namespace ([`isolate`]), in which it may do all this.
//!
//! Deliberately not here: what is built inside (see `netlink`).

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use crate::netlink::{LinkSettings, Netlink, NetlinkError};

/// A namespace could not be made or entered.
#[derive(Debug, thiserror::Error)]
pub enum NamespaceError {
    /// Neither root nor user namespaces.
    #[error(
        "this system allows no user namespaces to ordinary users ({0}); run as root, or allow \
         them: sysctl -w kernel.unprivileged_userns_clone=1 (Debian), \
         sysctl -w kernel.apparmor_restrict_unprivileged_userns=0 (Ubuntu), \
         or in a container: --privileged, or --cap-add=NET_ADMIN,SYS_ADMIN --device=/dev/net/tun"
    )]
    UserNamespace(io::Error),
    /// No network namespace.
    #[error("cannot make a network namespace ({0}); it takes root or CAP_SYS_ADMIN")]
    Network(io::Error),
    /// Setting up inside failed.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// A mount inside the namespace failed.
    #[error("cannot mount a private {path}: {source}")]
    Mount {
        /// Where.
        path: String,
        /// Why.
        source: io::Error,
    },
}

/// A network namespace, kept alive by this value. Clones share it.
#[derive(Debug, Clone)]
pub struct NetNamespace {
    descriptor: Arc<OwnedFd>,
}

impl NetNamespace {
    /// The calling thread's.
    ///
    /// # Errors
    /// When `/proc` is not there.
    pub fn current() -> Result<Self, NamespaceError> {
        File::open("/proc/thread-self/ns/net")
            .map(|file| Self { descriptor: Arc::new(file.into()) })
            .map_err(NamespaceError::Network)
    }

    /// A new one with its loopback interface up.
    ///
    /// # Errors
    /// Without root or an own user namespace.
    pub fn create() -> Result<Self, NamespaceError> {
        // On a thread of its own: the namespace is the thread's, and ends with
        // it unless the descriptor is held.
        std::thread::scope(|scope| {
            scope
                .spawn(|| {
                    // SAFETY: unshare takes flags only and affects this thread.
                    if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
                        return Err(NamespaceError::Network(io::Error::last_os_error()));
                    }
                    bring_loopback_up()?;
                    Self::current()
                })
                .join()
                .unwrap_or_else(|_| Err(NamespaceError::Network(io::Error::other("panicked"))))
        })
    }

    /// Runs a closure on a thread inside: sockets, TUN devices and [`Netlink`]
    /// handles it opens belong to the namespace for good.
    ///
    /// # Errors
    /// When the namespace cannot be entered.
    ///
    /// # Panics
    /// When the closure panics.
    pub fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> Result<T, NamespaceError> {
        std::thread::scope(|scope| {
            scope
                .spawn(|| {
                    self.enter()?;
                    Ok(f())
                })
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Moves the calling thread inside for the rest of its life.
    ///
    /// # Errors
    /// Without the privilege over the namespace.
    pub fn enter(&self) -> Result<(), NamespaceError> {
        enter_descriptor(self.descriptor.as_raw_fd()).map_err(NamespaceError::Network)
    }

    /// Makes a command start inside.
    pub fn attach<'c>(&self, command: &'c mut Command) -> &'c mut Command {
        let namespace = self.clone();
        // SAFETY: runs between fork and exec; setns is async-signal-safe, and
        // the descriptor is kept open by the moved clone.
        unsafe { command.pre_exec(move || enter_descriptor(namespace.descriptor.as_raw_fd())) }
    }

    /// A netlink handle of this namespace.
    ///
    /// # Errors
    /// When it cannot be entered.
    pub fn netlink(&self) -> Result<Netlink, NamespaceError> {
        Ok(self.run(Netlink::open)??)
    }
}

impl AsFd for NetNamespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

fn enter_descriptor(descriptor: i32) -> io::Result<()> {
    // SAFETY: setns takes an open descriptor and a flag; it affects this thread.
    match unsafe { libc::setns(descriptor, libc::CLONE_NEWNET) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn bring_loopback_up() -> Result<(), NamespaceError> {
    let mut netlink = Netlink::open()?;
    let index = netlink.link_index("lo")?;
    netlink.configure_link(index, &LinkSettings { up: Some(true), ..LinkSettings::default() })?;
    Ok(())
}

/// True when this process may make namespaces and interfaces as it is.
#[must_use]
pub fn is_privileged() -> bool {
    caps::has_cap(None, caps::CapSet::Effective, caps::Capability::CAP_SYS_ADMIN).unwrap_or(false)
        && caps::has_cap(None, caps::CapSet::Effective, caps::Capability::CAP_NET_ADMIN)
            .unwrap_or(false)
}

/// Makes a command start in user, mount and network namespaces of its own, in
/// which it is root: the unprivileged way into the lab. Works from a process
/// with threads, unlike unsharing oneself.
pub fn isolate(command: &mut Command) -> &mut Command {
    // SAFETY: these calls take no arguments and cannot fail.
    let (uid, gid) = unsafe { (libc::geteuid(), libc::getegid()) };
    let uid_map = format!("0 {uid} 1");
    let gid_map = format!("0 {gid} 1");
    // SAFETY: runs between fork and exec; only system calls on memory prepared
    // before the fork.
    unsafe {
        command.pre_exec(move || {
            let flags = libc::CLONE_NEWUSER | libc::CLONE_NEWNS | libc::CLONE_NEWNET;
            if libc::unshare(flags) != 0 {
                return Err(io::Error::last_os_error());
            }
            // setgroups must be given up before an ordinary user may map a
            // group (user_namespaces(7)).
            write_proc(c"/proc/self/setgroups", b"deny")?;
            write_proc(c"/proc/self/uid_map", uid_map.as_bytes())?;
            write_proc(c"/proc/self/gid_map", gid_map.as_bytes())
        })
    }
}

/// Writes one small file with bare system calls (usable after fork).
fn write_proc(path: &std::ffi::CStr, content: &[u8]) -> io::Result<()> {
    // SAFETY: the path is terminated, the buffer lives through the call, and
    // the descriptor is closed exactly once.
    unsafe {
        let descriptor = libc::open(path.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
        if descriptor < 0 {
            return Err(io::Error::last_os_error());
        }
        let written = libc::write(descriptor, content.as_ptr().cast(), content.len());
        let error = io::Error::last_os_error();
        libc::close(descriptor);
        if written < 0 {
            return Err(error);
        }
    }
    Ok(())
}

/// Whether an ordinary user of this machine may make user namespaces; asks by
/// trying, in a child.
///
/// # Errors
/// [`NamespaceError::UserNamespace`] with the remedy when not.
pub fn check_user_namespaces() -> Result<(), NamespaceError> {
    let mut command = Command::new("/proc/self/exe");
    // The child never gets to run: it fails on purpose after the namespaces
    // were made, with an error that cannot be confused with a refusal.
    isolate(&mut command);
    // SAFETY: returns an error value without touching memory.
    unsafe { command.pre_exec(|| Err(io::Error::from_raw_os_error(libc::EXFULL))) };
    match command.spawn() {
        Err(error) if error.raw_os_error() == Some(libc::EXFULL) => Ok(()),
        Err(error) => Err(NamespaceError::UserNamespace(error)),
        Ok(mut child) => {
            let _ = child.kill();
            let _ = child.wait();
            Ok(())
        }
    }
}

/// Gives the calling thread, and what it spawns, mounts of its own, with an
/// empty file system over `path` (made if missing where possible). For
/// programs with fixed paths such as `/var/run/wireguard`.
///
/// # Errors
/// Without root or an own user namespace, or when `path` cannot be made.
pub fn hide_directory(path: &Path) -> Result<(), NamespaceError> {
    let fail = |source| NamespaceError::Mount { path: path.display().to_string(), source };
    let target = CString::new(path.as_os_str().as_bytes()).map_err(|error| fail(error.into()))?;
    // SAFETY: unshare takes flags only.
    if unsafe { libc::unshare(libc::CLONE_NEWNS) } != 0 {
        return Err(fail(io::Error::last_os_error()));
    }
    // SAFETY: all strings are terminated and outlive the calls; null source
    // and data are allowed for these operations.
    let mounted = unsafe {
        libc::mount(
            std::ptr::null(),
            c"/".as_ptr(),
            std::ptr::null(),
            libc::MS_REC | libc::MS_PRIVATE,
            std::ptr::null(),
        ) == 0
            && libc::mount(
                c"warren-lab".as_ptr(),
                target.as_ptr(),
                c"tmpfs".as_ptr(),
                libc::MS_NOSUID | libc::MS_NODEV,
                c"mode=0755".as_ptr().cast(),
            ) == 0
    };
    if mounted { Ok(()) } else { Err(fail(io::Error::last_os_error())) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::Route;

    /// True when the test can make namespaces; says so when it cannot.
    fn privileged() -> bool {
        let privileged = is_privileged();
        if !privileged {
            eprintln!("SKIPPED: no privilege for network namespaces");
        }
        privileged
    }

    #[test]
    fn two_namespaces_joined_by_a_pair_reach_each_other() {
        if !privileged() {
            return;
        }
        let (left, right) = (NetNamespace::create().unwrap(), NetNamespace::create().unwrap());
        let mut netlink = left.netlink().unwrap();
        netlink.add_veth("v0", "v1", Some(right.as_fd())).unwrap();
        let up = LinkSettings {
            up: Some(true),
            mtu: Some(1400),
            gso_max_size: Some(65_536),
            tx_queue_len: Some(1000),
        };
        let mut far = right.netlink().unwrap();
        for (netlink, name, address) in
            [(&mut netlink, "v0", "10.9.0.1/24"), (&mut far, "v1", "10.9.0.2/24")]
        {
            let index = netlink.link_index(name).unwrap();
            netlink.add_address(index, address.parse().unwrap()).unwrap();
            netlink.configure_link(index, &up).unwrap();
            assert!(matches!(
                netlink.add_address(index, address.parse().unwrap()),
                Err(NetlinkError::Exists { .. })
            ));
        }
        assert_eq!(
            netlink.reachable_addresses(&[]).unwrap(),
            ["10.9.0.1".parse::<std::net::IpAddr>().unwrap()]
        );
        let index = netlink.link_index("v0").unwrap();
        let mut route = Route::direct("10.77.0.0/16".parse().unwrap(), index);
        route.gateway = Some("10.9.0.2".parse().unwrap());
        route.congestion_control = Some("cubic".to_owned());
        netlink.add_route(&route).unwrap();
        netlink.delete_route(&route).unwrap();
        netlink.delete_route(&route).unwrap_err();

        let server = right.run(|| std::net::UdpSocket::bind("10.9.0.2:0").unwrap()).unwrap();
        let client = left.run(|| std::net::UdpSocket::bind("10.9.0.1:0").unwrap()).unwrap();
        client.send_to(b"hello", server.local_addr().unwrap()).unwrap();
        let mut buffer = [0; 8];
        assert_eq!(server.recv(&mut buffer).unwrap(), 5);
        netlink.delete_link(index).unwrap();
        assert_eq!(far.links().unwrap().len(), 1, "the peer goes with it");
    }

    #[test]
    fn commands_start_inside() {
        if !privileged() {
            return;
        }
        let namespace = NetNamespace::create().unwrap();
        let mut command = Command::new("readlink");
        let inside = namespace.attach(command.arg("/proc/self/ns/net")).output().unwrap();
        let outside = std::fs::read_link("/proc/self/ns/net").unwrap();
        let inside = String::from_utf8(inside.stdout).unwrap();
        assert!(inside.starts_with("net:["));
        assert_ne!(inside.trim(), outside.to_str().unwrap());
    }

    #[test]
    fn an_isolated_command_is_root_in_its_own_world() {
        if check_user_namespaces().is_err() {
            eprintln!("SKIPPED: user namespaces are not allowed here");
            return;
        }
        let mut command = Command::new("cat");
        let output =
            isolate(command.args(["/proc/self/uid_map", "/proc/net/dev"])).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert_eq!(text.split_whitespace().next(), Some("0"), "{text}");
        assert!(text.contains("lo:") && !text.contains("eth0:"), "{text}");
    }
}
