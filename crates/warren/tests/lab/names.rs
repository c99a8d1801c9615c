//! Names of members as DNS, asked as programs do.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use warren_lab::process::{KilledOnDrop, Node};
use warren_lab::topology::{Host, output_of};
use warren_os::process::{Signal, signal};
use warren_types::Suite;
use warren_types::api::NamesState;

use crate::story::{PATIENCE, Two};

/// What `dig` prints for a question to `server`, with the code of the reply.
fn dig(host: &Host, server: &str, arguments: &[&str]) -> Result<String> {
    let mut command = host.command("dig");
    command.arg(format!("@{server}")).args(["+time=2", "+tries=1"]).args(arguments);
    let output = command.output().context("cannot run dig")?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// True when a program is there; else says loudly what is not checked.
pub(crate) fn have(program: &str, package: &str) -> bool {
    let found = Command::new("sh")
        .args(["-c", &format!("PATH=$PATH:/usr/sbin:/sbin command -v {program}")])
        .output()
        .is_ok_and(|output| output.status.success());
    if !found {
        println!("SKIPPED: {program} is not installed (package {package})");
    }
    found
}

/// Waits until `check` holds.
pub(crate) fn eventually(what: &str, mut check: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !check()? {
        ensure!(Instant::now() < deadline, "not seen within {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

/// A name resolved as programs do it, by the C library, with this node as the
/// machine's name server.
fn resolve(host: &Host, server: &str, name: &str, scratch: &Path) -> Result<String> {
    let conf = scratch.join(format!("resolv-{}", host.name()));
    std::fs::write(&conf, format!("nameserver {server}\n"))?;
    let script =
        format!("mount --bind {} /etc/resolv.conf && exec getent ahosts {name}", conf.display());
    output_of(host.command("unshare").args(["--mount", "sh", "-c", &script]))
}

pub(crate) fn names_resolve_and_go() -> Result<()> {
    if !have("dig", "dnsutils") {
        return Ok(());
    }
    let two = Two::start(1500, Suite::Aes256Gcm)?;
    two.left.warren(&["wg", "add-client", "phone", "--endpoint", "10.99.0.1:51820"])?;
    let (left, right) = (&two.pair.left, &two.pair.right);
    let domain = two.left.status()?.names.domain;
    for (host, node) in [(left, &two.left), (right, &two.right)] {
        let status = node.status()?;
        ensure!(status.names.state == NamesState::Served, "{:?}", status.names);
        let hint = status.names.hint.context("no hint where nothing asks the node")?;
        ensure!(hint.contains("dig @") && hint.contains("nameserver"), "{hint}");
        for server in &status.names.servers {
            let server = server.to_string();
            for (name, of) in [("left", &two.left), ("right", &two.right)] {
                let full = format!("{name}.{domain}");
                for (kind, ipv6) in [("A", false), ("AAAA", true)] {
                    let address = of.overlay_address(ipv6)?.to_string();
                    let text = dig(host, &server, &["+short", &full, kind])?;
                    ensure!(text.trim() == address, "{full} {kind} at {server}: {text}");
                    let back = dig(host, &server, &["+short", "-x", &address])?;
                    ensure!(back.trim() == format!("{full}."), "{address} at {server}: {back}");
                }
            }
            // Learnt from the descriptor of the node that serves it.
            eventually("the client's name", || {
                let text = dig(host, &server, &["+short", &format!("phone.{domain}"), "A"])?;
                Ok(text.trim().starts_with("100."))
            })?;
            let over_tcp = dig(host, &server, &["+tcp", "+short", &format!("left.{domain}")])?;
            ensure!(over_tcp.trim().starts_with("100."), "over TCP: {over_tcp}");
            let missing = dig(host, &server, &[&format!("nobody.{domain}")])?;
            ensure!(missing.contains("NXDOMAIN") && missing.contains("SOA"), "{missing}");
            for (name, kind) in [("example.org", "A"), (".", "NS"), ("left.other.warren", "A")] {
                let refused = dig(host, &server, &[name, kind])?;
                ensure!(refused.contains("REFUSED"), "{name}: {refused}");
            }
        }
        // Over the mesh, and by the C library.
        let other = if host.name() == "left" { &two.right } else { &two.left };
        let server = other.overlay_address(true)?.to_string();
        let far = dig(host, &server, &["+short", &format!("left.{domain}"), "A"])?;
        ensure!(far.trim().starts_with("100."), "at the other node: {far}");
        let own = node.overlay_address(false)?.to_string();
        let text = resolve(host, &own, &format!("right.{domain}"), two.scratch.path())?;
        let wanted = two.right.overlay_address(false)?.to_string();
        ensure!(text.contains(&wanted), "getent: {text}");
    }
    strangers_get_nothing(&two, &domain)?;

    // A name stays with a node that changes its key, and goes with it.
    let before = two.right.status()?.node.id;
    two.right.warren(&["rotate", "node-key"])?;
    eventually("the node has another key", || Ok(two.right.status()?.node.id != before))?;
    for (host, node) in [(left, &two.left), (right, &two.right)] {
        let server = node.overlay_address(false)?.to_string();
        eventually("the name under the new key", || {
            let text = dig(host, &server, &["+short", &format!("right.{domain}"), "A"])?;
            Ok(text.trim() == two.right.overlay_address(false)?.to_string())
        })?;
    }
    two.right.warren(&["leave"])?;
    let server = two.left.overlay_address(false)?.to_string();
    eventually("the name of the node that left is gone", || {
        Ok(dig(left, &server, &[&format!("right.{domain}")])?.contains("NXDOMAIN"))
    })?;
    Ok(())
}

/// A neighbour on the underlay that sends to the overlay address by hand.
fn strangers_get_nothing(two: &Two, domain: &str) -> Result<()> {
    let server = two.left.overlay_address(false)?.to_string();
    let stranger = Host::create("stranger")?;
    stranger.netlink()?.add_veth(
        "eth0",
        "eth1",
        Some(std::os::fd::AsFd::as_fd(two.pair.left.namespace())),
    )?;
    let settings = warren_os::netlink::LinkSettings::default();
    stranger.configure("eth0", &["10.98.0.2/24".parse()?], &settings, None)?;
    two.pair.left.configure("eth1", &["10.98.0.1/24".parse()?], &settings, None)?;
    stranger.run("ip", &["route", "add", &server, "via", "10.98.0.1"])?;
    stranger.run("ping", &["-c", "1", "-W", "5", &server]).context("the way is open")?;
    for arguments in [&["+short"][..], &["+short", "+tcp"]] {
        let name = format!("left.{domain}");
        let text = dig(&stranger, &server, &[arguments, &[name.as_str()]].concat())?;
        ensure!(!text.lines().any(|line| line == server), "a stranger was answered: {text}");
    }
    Ok(())
}

/// Where a program is: in the search path, or among systemd's own.
fn find(program: &str) -> Option<String> {
    let script = format!("PATH=$PATH:/usr/lib/systemd:/lib/systemd command -v {program}");
    let found = output_of(Command::new("sh").args(["-c", &script])).ok()?;
    Some(found.trim().to_owned())
}

/// systemd-resolved with a message bus of its own on one host. The lab's `/run`
/// is private, so neither the machine's bus nor its resolver is touched.
struct Resolved {
    _bus: KilledOnDrop,
    resolved: KilledOnDrop,
    hid_users: bool,
}

/// The user it becomes.
const USER: &str = "systemd-resolve";

impl Drop for Resolved {
    fn drop(&mut self) {
        if self.hid_users {
            // The lab's mounts are private, and go with it at the latest.
            let _ = output_of(Command::new("umount").arg("/etc/passwd"));
        }
    }
}

impl Resolved {
    fn start(host: &Host, program: &str, scratch: &Path) -> Result<Self> {
        // Unpacked without being installed, it has no user.
        let hid_users = output_of(Command::new("getent").args(["passwd", USER])).is_err();
        if hid_users {
            let users = scratch.join("passwd");
            let nobody = format!("{USER}:x:989:989::/:/usr/sbin/nologin\n");
            std::fs::write(&users, std::fs::read_to_string("/etc/passwd")? + &nobody)?;
            output_of(Command::new("mount").arg("--bind").arg(&users).arg("/etc/passwd"))?;
        }
        std::fs::create_dir_all("/run/dbus")?;
        std::fs::create_dir_all("/run/systemd/resolve")?;
        // As tmpfiles.d of the package does.
        output_of(Command::new("chown").args([&format!("{USER}:"), "/run/systemd/resolve"]))?;
        let config = scratch.join("bus.conf");
        std::fs::write(
            &config,
            "<busconfig><type>system</type><listen>unix:path=/run/dbus/system_bus_socket</listen>\
             <auth>EXTERNAL</auth><policy context=\"default\"><allow user=\"*\"/><allow own=\"*\"/>\
             <allow send_destination=\"*\"/><allow eavesdrop=\"true\"/></policy></busconfig>",
        )?;
        let bus = host
            .command("dbus-daemon")
            .arg(format!("--config-file={}", config.display()))
            .args(["--nofork", "--nopidfile"])
            .spawn()
            .context("cannot start dbus-daemon")?;
        let bus = KilledOnDrop(bus);
        eventually("the bus", || Ok(Path::new("/run/dbus/system_bus_socket").exists()))?;
        let resolved = Self::start_daemon(host, program)?;
        Ok(Self { _bus: bus, resolved, hid_users })
    }

    fn start_daemon(host: &Host, program: &str) -> Result<KilledOnDrop> {
        let mut resolved = host.command(program);
        resolved.stdout(Stdio::null()).stderr(Stdio::null());
        let resolved = KilledOnDrop(resolved.spawn().context("cannot start systemd-resolved")?);
        let socket = "/run/systemd/resolve/io.systemd.Resolve";
        eventually("systemd-resolved", || {
            Ok(std::os::unix::net::UnixStream::connect(socket).is_ok()
                && resolvectl(host, &["dns"]).is_ok())
        })?;
        Ok(resolved)
    }

    /// Ends it as a service manager does, and starts it again.
    fn restart(&mut self, host: &Host, program: &str) -> Result<()> {
        signal(self.resolved.0.id(), Signal::Terminate)?;
        self.resolved.0.wait()?;
        self.resolved = Self::start_daemon(host, program)?;
        Ok(())
    }
}

/// `resolvectl` on a host.
fn resolvectl(host: &Host, arguments: &[&str]) -> Result<String> {
    output_of(host.command("resolvectl").args(arguments))
}

pub(crate) fn split_dns() -> Result<()> {
    let Some(program) = find("systemd-resolved").filter(|_| have("resolvectl", "systemd-resolved"))
    else {
        println!("SKIPPED: systemd-resolved is not installed (package systemd-resolved)");
        return Ok(());
    };
    if !have("dbus-daemon", "dbus-daemon") {
        return Ok(());
    }
    let mut two = Two::start(1500, Suite::Aes256Gcm)?;
    let domain = two.left.status()?.names.domain;
    let left = two.pair.left.clone();
    let mut resolved = Resolved::start(&left, &program, two.scratch.path())?;
    // It was not there when the node started; at the next start it is.
    let spec = two.left.stop(PATIENCE)?;
    two.left = spec.up(None, PATIENCE)?;
    let expect_split = |node: &Node| -> Result<()> {
        let names = node.status()?.names;
        // The image's own resolv.conf decides which of the two.
        ensure!(
            names.state == NamesState::Resolved
                || names.hint.as_ref().is_some_and(|hint| hint.contains("stub-resolv.conf")),
            "{names:?}"
        );
        let text = resolvectl(&left, &["query", &format!("right.{domain}")])?;
        ensure!(text.contains("100."), "{text}");
        let address = node.overlay_address(false)?.to_string();
        let back = resolvectl(&left, &["query", &address])?;
        ensure!(back.contains(&format!("left.{domain}")), "{back}");
        let domains = resolvectl(&left, &["domain"])?;
        ensure!(domains.contains(&format!("~{domain}")), "{domains}");
        Ok(())
    };
    let expect_nothing = || {
        eventually("the settings are gone", || {
            let text = resolvectl(&left, &["domain"])? + &resolvectl(&left, &["dns"])?;
            Ok(!text.contains("warren") && !text.contains("100."))
        })
    };
    expect_split(&two.left)?;
    // It remembers them over a restart of its own.
    resolved.restart(&left, &program)?;
    expect_split(&two.left).context("after a restart of systemd-resolved")?;
    // However the daemon ends, its settings end with it.
    let spec = two.left.crash()?;
    expect_nothing().context("after kill -9")?;
    two.left = spec.up(None, PATIENCE)?;
    expect_split(&two.left)?;
    let spec = two.left.stop(PATIENCE)?;
    expect_nothing().context("after an orderly end")?;
    // Switched off, nothing is set.
    let mut off = spec.clone();
    off.arguments.push("--no-dns".into());
    let node = off.up(None, PATIENCE)?;
    expect_nothing()?;
    let state = node.status()?.names.state;
    ensure!(state == NamesState::Off, "{state:?}");
    two.left = node;
    Ok(())
}
