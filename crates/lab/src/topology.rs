//! Hosts and links: each host is a network namespace, each link a pair of
//! virtual Ethernet interfaces.
//!
//! Invariants: dropping a [`Host`] and its processes removes its namespace and
//! interfaces; every command started on a host dies with the thread that
//! started it, so keep that thread alive (as a rule the main thread).
//!
//! Deliberately not here: delay and loss (the WAN emulator), and what runs on
//! the hosts.

use std::ffi::OsStr;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use ipnet::IpNet;
use warren_os::netlink::{LinkSettings, Netlink, Route};
use warren_os::netns::{self, NetNamespace};
use warren_os::process::{Signal, catch_interrupts, die_with_parent, signal};

/// Set for the copy of this program that runs inside its own user namespace.
const INSIDE: &str = "WARREN_LAB_INSIDE";

/// A place to run a lab.
pub enum Privilege {
    /// This process may make namespaces: go on.
    Here,
    /// A copy of this program ran with the same arguments in a user namespace
    /// of its own; exit with its status.
    Delegated(ExitCode),
}

/// Finds the privilege a lab needs: this process's own, or that of a user
/// namespace, in which this program is started again with the same arguments.
/// Call it first thing in `main`.
///
/// # Errors
/// With the remedy, when neither is to be had.
pub fn find_privilege() -> Result<Privilege> {
    if netns::is_privileged() {
        return Ok(Privilege::Here);
    }
    if std::env::var_os(INSIDE).is_some() {
        bail!("no privilege inside the user namespace; run as root instead");
    }
    netns::check_user_namespaces()?;
    let mut command = Command::new("/proc/self/exe");
    command.args(std::env::args_os().skip(1)).env(INSIDE, "1");
    netns::isolate(&mut command);
    die_with_parent(&mut command);
    // Ctrl-C reaches the copy too, which cleans up and ends; a signal to this
    // process alone is passed on.
    let interrupted = catch_interrupts()?;
    let mut copy = command.spawn().context("cannot start in a user namespace")?;
    let mut told = false;
    let status = loop {
        if let Some(status) = copy.try_wait()? {
            break status;
        }
        if interrupted.load(Ordering::Relaxed) && !told {
            told = true;
            // It may have ended this moment; then there is nobody to tell.
            let _ = signal(copy.id(), Signal::Terminate);
        }
        std::thread::sleep(Duration::from_millis(50));
    };
    let code = status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1);
    Ok(Privilege::Delegated(ExitCode::from(code)))
}

/// Gives this thread, and what it starts, an empty `/run` with a directory for
/// the control sockets of userspace WireGuards, whose paths are fixed: labs
/// neither see nor disturb those of the machine.
///
/// # Errors
/// Without the privilege (see [`find_privilege`]).
pub fn hide_run() -> Result<()> {
    netns::hide_directory(Path::new("/run"))?;
    std::fs::create_dir("/run/wireguard").context("cannot make /run/wireguard")
}

/// A host: a network namespace with its loopback up. Clones share it.
#[derive(Debug, Clone)]
pub struct Host {
    name: String,
    namespace: NetNamespace,
}

impl Host {
    /// A new host without links.
    ///
    /// # Errors
    /// Without the privilege (see [`find_privilege`]).
    pub fn create(name: &str) -> Result<Self> {
        let namespace =
            NetNamespace::create().with_context(|| format!("cannot create host {name}"))?;
        Ok(Self { name: name.to_owned(), namespace })
    }

    /// Its name in the story told.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its network namespace, to open sockets, TUN devices or netlink in.
    #[must_use]
    pub fn namespace(&self) -> &NetNamespace {
        &self.namespace
    }

    /// Its interfaces and routes.
    ///
    /// # Errors
    /// When the namespace cannot be entered.
    pub fn netlink(&self) -> Result<Netlink> {
        Ok(self.namespace.netlink()?)
    }

    /// A command that will run on this host and die with the calling thread.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        self.namespace.attach(&mut command);
        die_with_parent(&mut command);
        command.stdin(Stdio::null());
        command
    }

    /// Runs a command on this host and returns what it printed.
    ///
    /// # Errors
    /// With what it printed as errors, when it fails.
    pub fn run<A: AsRef<OsStr>>(&self, program: &str, arguments: &[A]) -> Result<String> {
        output_of(self.command(program).args(arguments))
            .with_context(|| format!("{program} on {}", self.name))
    }

    /// Gives an interface its addresses and brings it up. TCP over its prefixes
    /// uses `congestion_control` if one is named.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn configure(
        &self,
        interface: &str,
        addresses: &[IpNet],
        settings: &LinkSettings,
        congestion_control: Option<&str>,
    ) -> Result<()> {
        let mut netlink = self.netlink()?;
        let index = netlink.link_index(interface)?;
        for address in addresses {
            netlink.add_address(index, *address)?;
        }
        netlink.configure_link(index, &LinkSettings { up: Some(true), ..settings.clone() })?;
        if congestion_control.is_some() {
            for address in addresses {
                let mut route = Route::direct(address.trunc(), index);
                route.source = Some(address.addr());
                route.congestion_control = congestion_control.map(str::to_owned);
                netlink.add_route(&route)?;
            }
        }
        Ok(())
    }
}

/// Runs a command to its end and returns its standard output.
///
/// # Errors
/// With its standard error, when it fails or cannot start.
pub fn output_of(command: &mut Command) -> Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.output().with_context(|| format!("cannot start {program}"))?;
    if !output.status.success() {
        let errors = String::from_utf8_lossy(&output.stderr);
        let text = String::from_utf8_lossy(&output.stdout);
        bail!("{program} failed ({}): {} {}", output.status, errors.trim(), text.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// What the link between two hosts can do for them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Underlay {
    /// All that a pair of virtual Ethernet interfaces offers.
    Direct,
    /// No segmentation in hardware, as on plain network cards: the kernel
    /// segments just above the card, and coalesces what it receives.
    Nic,
    /// No segmentation and no coalescing at all.
    Off,
}

impl Underlay {
    /// `ethtool -K` features and their values.
    pub(crate) fn features(self) -> &'static [&'static str] {
        match self {
            Self::Direct => &[],
            Self::Nic => &["tso", "off", "tx-udp-segmentation", "off", "gso", "on", "gro", "on"],
            Self::Off => &["tso", "off", "tx-udp-segmentation", "off", "gso", "off", "gro", "off"],
        }
    }

    /// Name on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Nic => "nic",
            Self::Off => "off",
        }
    }
}

impl std::str::FromStr for Underlay {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        [Self::Direct, Self::Nic, Self::Off]
            .into_iter()
            .find(|underlay| underlay.name() == text)
            .ok_or_else(|| format!("unknown underlay {text}: direct, nic or off"))
    }
}

/// Two hosts on one Ethernet link: `10.99.0.1` and `10.99.0.2` (and `fd99::1`,
/// `fd99::2`) on interfaces named `eth0`.
#[derive(Debug)]
pub struct Pair {
    /// One end.
    pub left: Host,
    /// The other.
    pub right: Host,
}

impl Pair {
    /// Makes both hosts and the link.
    ///
    /// # Errors
    /// Without the privilege, or without `ethtool` for a weaker underlay.
    pub fn create(mtu: u32, underlay: Underlay) -> Result<Self> {
        let pair = Self { left: Host::create("left")?, right: Host::create("right")? };
        pair.left.netlink()?.add_veth("eth0", "eth0", Some(pair.right.namespace.as_fd()))?;
        let settings = LinkSettings { mtu: Some(mtu), ..LinkSettings::default() };
        for (host, last) in [(&pair.left, 1), (&pair.right, 2)] {
            let addresses = [
                IpNet::new(IpAddr::V4(Ipv4Addr::new(10, 99, 0, last)), 24)?,
                IpNet::new(Ipv6Addr::new(0xfd99, 0, 0, 0, 0, 0, 0, last.into()).into(), 64)?,
            ];
            host.configure("eth0", &addresses, &settings, Some("cubic"))?;
            if !underlay.features().is_empty() {
                host.run("ethtool", &[&["-K", "eth0"], underlay.features()].concat())
                    .context("a weaker underlay takes ethtool (Debian: apt install ethtool)")?;
            }
        }
        Ok(pair)
    }

    /// Underlay address of the left host.
    pub const LEFT: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 99, 0, 1));
    /// Underlay address of the right host.
    pub const RIGHT: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 99, 0, 2));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pair_carries_traffic() {
        if !netns::is_privileged() {
            eprintln!("SKIPPED: no privilege for network namespaces");
            return;
        }
        let pair = Pair::create(1500, Underlay::Direct).unwrap();
        let listener = pair
            .right
            .namespace()
            .run(|| std::net::TcpListener::bind((Pair::RIGHT, 0)).unwrap())
            .unwrap();
        let to = listener.local_addr().unwrap();
        let stream = pair.left.namespace().run(|| std::net::TcpStream::connect(to)).unwrap();
        assert_eq!(stream.unwrap().peer_addr().unwrap(), to);
        let links = pair.left.netlink().unwrap().links().unwrap();
        assert_eq!(links.len(), 2, "{links:?}");
    }

    #[test]
    fn failures_tell_what_the_command_said() {
        let error = output_of(Command::new("ls").arg("/nowhere/at/all")).unwrap_err();
        assert!(error.to_string().contains("/nowhere/at/all"), "{error}");
    }

    #[test]
    fn underlays_have_names() {
        for underlay in [Underlay::Direct, Underlay::Nic, Underlay::Off] {
            assert_eq!(underlay.name().parse(), Ok(underlay));
        }
        assert!("fast".parse::<Underlay>().is_err());
    }
}
