//! Split DNS by systemd-resolved: questions about the network's own domains go
//! to this node, all others stay where they are.
//!
//! In: interface, servers, domains. Out: what was arranged ([`Arranged`]), with
//! words that tell an operator how to go on. Invariants: only settings of our
//! own interface are made; they end with it, however the daemon ends, because
//! resolved forgets an interface that is gone; without resolved nothing is
//! changed at all, `/etc/resolv.conf` least of all.
//!
//! `resolvectl` is run rather than D-Bus spoken: it comes with resolved, knows
//! its version, and saves a D-Bus library of sixty crates. It must run before
//! the daemon gives up its privileges (new processes are forbidden then).
//! Deliberately not here: other resolvers' settings.

use std::ffi::OsStr;
use std::fs;
use std::net::IpAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Where resolved listens for programs; there while it runs.
const SOCKET: &str = "/run/systemd/resolve/io.systemd.Resolve";
/// One call of `resolvectl`. On a working system it takes milliseconds.
const PATIENCE: Duration = Duration::from_secs(3);
/// Between looks whether it has ended.
const LOOK: Duration = Duration::from_millis(5);

/// How the system's resolver was told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Arranged {
    /// Programs on this machine resolve the names.
    Split,
    /// resolved would answer, but programs do not ask it.
    Unused,
    /// resolved does not run here.
    Absent,
    /// resolved runs, but would not take the settings.
    Failed(String),
}

/// Tells resolved, if it runs in our network namespace.
pub fn arrange(interface: &str, servers: &[IpAddr], domains: &[String]) -> Arranged {
    if !runs_here() {
        return Arranged::Absent;
    }
    match set("resolvectl".as_ref(), interface, servers, domains) {
        Ok(()) if is_asked(Path::new("/etc")) => Arranged::Split,
        Ok(()) => Arranged::Unused,
        Err(reason) => Arranged::Failed(reason),
    }
}

/// True when resolved runs and means the same interfaces as we do: they are
/// named to it by number, and numbers of another namespace are other interfaces.
/// The kernel lists Unix sockets by network namespace, to everybody.
pub(crate) fn runs_here() -> bool {
    let listed = fs::read_to_string("/proc/self/net/unix")
        .is_ok_and(|sockets| sockets.lines().any(|line| line.ends_with(SOCKET)));
    listed && std::os::unix::net::UnixStream::connect(SOCKET).is_ok()
}

/// Makes the settings. The first two make names work; the others keep what is
/// configured for all interfaces (DNSSEC, DNS over TLS) and what resolved does
/// by itself (LLMNR, mDNS) away from ours, as far as this version knows them.
fn set(
    resolvectl: &OsStr,
    interface: &str,
    servers: &[IpAddr],
    domains: &[String],
) -> Result<(), String> {
    let servers: Vec<String> = servers.iter().map(ToString::to_string).collect();
    // The tilde: for routing questions only, not for completing short names.
    let domains: Vec<String> = domains.iter().map(|domain| format!("~{domain}")).collect();
    run(resolvectl, "domain", interface, &domains)?;
    let mut optional: Vec<&str> = Vec::new();
    for (verb, value) in [
        ("default-route", "false"),
        ("dnssec", "no"),
        ("dnsovertls", "no"),
        ("llmnr", "no"),
        ("mdns", "no"),
    ] {
        if let Err(reason) = run(resolvectl, verb, interface, &[value.to_owned()]) {
            tracing::debug!(verb, reason, "systemd-resolved does not take a setting");
            optional.push(verb);
        }
    }
    if optional.contains(&"default-route") {
        tracing::info!("this systemd-resolved may ask the network's DNS about other names too");
    }
    // Last: only now questions come.
    run(resolvectl, "dns", interface, &servers)
}

/// Has all questions go to these servers, over this interface, however other
/// interfaces are set: the domain `.` is the best match for every name.
pub(crate) fn take_all(interface: &str, servers: &[IpAddr]) -> Result<(), String> {
    take_all_by("resolvectl".as_ref(), interface, servers)
}

fn take_all_by(program: &OsStr, interface: &str, servers: &[IpAddr]) -> Result<(), String> {
    let servers: Vec<String> = servers.iter().map(ToString::to_string).collect();
    for (verb, value) in [("default-route", "true"), ("dnssec", "no"), ("dnsovertls", "no")] {
        // Old versions lack some; the domain alone decides.
        let _old_version = run(program, verb, interface, &[value.to_owned()]);
    }
    run(program, "dns", interface, &servers)?;
    // Last: from here on no other server is asked.
    run(program, "domain", interface, &["~.".to_owned()])
}

/// Takes back [`take_all`].
pub(crate) fn give_back(interface: &str) -> Result<(), String> {
    run("resolvectl".as_ref(), "revert", interface, &[])
}

fn run(program: &OsStr, verb: &str, interface: &str, values: &[String]) -> Result<(), String> {
    let name = program.to_string_lossy();
    let mut child = Command::new(program)
        .arg(verb)
        .arg(interface)
        .args(values)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|e| format!("cannot run {name}: {e}"))?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        match child.try_wait() {
            Ok(Some(status)) if status.success() => return Ok(()),
            Ok(Some(status)) => return Err(format!("{name} {verb} failed ({status})")),
            Ok(None) if Instant::now() < deadline => std::thread::sleep(LOOK),
            Ok(None) => {
                // It hangs on a bus that does not answer.
                let _ended_meanwhile = child.kill();
                let _ = child.wait();
                return Err(format!("{name} {verb} did not end within {} s", PATIENCE.as_secs()));
            }
            Err(error) => return Err(format!("{name} {verb}: {error}")),
        }
    }
}

/// True when programs ask resolved: by its module for the C library, or by its
/// address in `resolv.conf`.
fn is_asked(etc: &Path) -> bool {
    let read = |name: &str| fs::read_to_string(etc.join(name)).unwrap_or_default();
    let words_of = |text: &str, first: &str| -> Vec<String> {
        text.lines()
            .filter_map(|line| line.split('#').next())
            .map(|line| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
            .filter(|words| words.first().is_some_and(|word| word == first))
            .flatten()
            .collect()
    };
    let by_module = words_of(&read("nsswitch.conf"), "hosts:").iter().any(|w| w == "resolve");
    // The first server is the one that is asked.
    let servers = words_of(&read("resolv.conf"), "nameserver");
    let by_stub = servers.get(1).is_some_and(|at| at == "127.0.0.53" || at == "127.0.0.54");
    by_module || by_stub
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use warren_os::files::TemporaryDir;

    use super::*;

    /// A `resolvectl` that notes its arguments and does as `body` says.
    fn fake(dir: &Path, body: &str) -> std::path::PathBuf {
        let path = dir.join("resolvectl");
        let calls = dir.join("calls");
        let script = format!("#!/bin/sh\necho \"$*\" >> {}\n{body}\n", calls.display());
        fs::write(&path, script).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    fn call(dir: &Path, body: &str) -> (Result<(), String>, String) {
        let servers = ["100.64.0.1".parse().unwrap(), "fd00::1".parse().unwrap()];
        let domains = ["lab.warren".to_owned(), "64.100.in-addr.arpa".to_owned()];
        let result = set(fake(dir, body).as_os_str(), "warren0", &servers, &domains);
        (result, fs::read_to_string(dir.join("calls")).unwrap_or_default())
    }

    #[test]
    fn only_our_interface_is_set_and_the_servers_come_last() {
        let dir = TemporaryDir::create("warren-resolvectl").unwrap();
        let (result, calls) = call(dir.path(), "exit 0");
        result.unwrap();
        let lines: Vec<&str> = calls.lines().collect();
        assert_eq!(lines[0], "domain warren0 ~lab.warren ~64.100.in-addr.arpa");
        assert!(lines.contains(&"default-route warren0 false"));
        assert_eq!(lines.last(), Some(&"dns warren0 100.64.0.1 fd00::1"));
        assert!(lines.iter().all(|line| line.split(' ').nth(1) == Some("warren0")));
    }

    #[test]
    fn all_names_are_taken_once_there_is_a_server_for_them() {
        let dir = TemporaryDir::create("warren-resolvectl").unwrap();
        let old = "case $1 in dns|domain) exit 0;; esac; exit 1";
        let program = fake(dir.path(), old);
        let servers = ["192.0.0.1".parse().unwrap()];
        take_all_by(program.as_os_str(), "warren0", &servers).unwrap();
        let calls = fs::read_to_string(dir.path().join("calls")).unwrap();
        assert!(calls.ends_with("dns warren0 192.0.0.1\ndomain warren0 ~.\n"), "{calls}");
        let program = fake(dir.path(), "exit 1");
        take_all_by(program.as_os_str(), "warren0", &servers).unwrap_err();
    }

    #[test]
    fn an_old_version_without_some_settings_will_do() {
        let dir = TemporaryDir::create("warren-resolvectl").unwrap();
        let (result, _) = call(dir.path(), "case $1 in dns|domain) exit 0;; esac; exit 1");
        result.unwrap();
    }

    #[test]
    fn a_failing_or_hanging_one_is_named() {
        let dir = TemporaryDir::create("warren-resolvectl").unwrap();
        let (result, _) = call(dir.path(), "exit 1");
        assert!(result.unwrap_err().contains("resolvectl domain failed"));
        let began = Instant::now();
        let (result, _) = call(dir.path(), "exec sleep 60");
        assert!(result.unwrap_err().contains("did not end within"));
        assert!(began.elapsed() < Duration::from_secs(20));
        let missing = set("/nowhere/resolvectl".as_ref(), "warren0", &[], &[]).unwrap_err();
        assert!(missing.contains("cannot run"), "{missing}");
    }

    #[test]
    fn who_asks_resolved_is_read_from_the_system() {
        let dir = TemporaryDir::create("warren-etc").unwrap();
        let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
        assert!(!is_asked(dir.path()));
        write("resolv.conf", "# 127.0.0.53\nnameserver 192.0.2.1\nnameserver 127.0.0.53\n");
        assert!(!is_asked(dir.path()), "the first server answers");
        write("resolv.conf", "search lan\nnameserver 127.0.0.53 # stub\n");
        assert!(is_asked(dir.path()));
        write("resolv.conf", "nameserver 192.0.2.1\n");
        write("nsswitch.conf", "hosts: files resolve [!UNAVAIL=return] dns\n");
        assert!(is_asked(dir.path()));
    }
}
