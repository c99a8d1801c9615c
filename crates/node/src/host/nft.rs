//! Packet filter tables, through the program `nft`.
//!
//! In: the text of a table. Out: it is in force, as a whole or not at all: one
//! `nft -f -` is one transaction of the kernel's, and [`replacing`] puts the
//! removal of the former table into the same one. `nft` is run rather than its
//! netlink protocol spoken: text can be read, compared and tested; the program
//! comes with every distribution's nftables; and the library for C it shares
//! its code with is as much of a dependency. Deliberately not here: what is in
//! the tables.

use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use warren_os::netlink::rules::Family;

use super::plan::ControlGroup;
use crate::fault::{Fault, FaultKind};

/// One run of a program; they take milliseconds.
const PATIENCE: Duration = Duration::from_secs(5);
/// Between looks whether it has ended.
const LOOK: Duration = Duration::from_millis(1);
/// Most of what a program says that is kept, bytes.
const WORDS: u64 = 64 << 10;

/// Makes the text replace a table `inet NAME`, whether it is there or not.
pub(super) fn replacing(name: &str, body: &str) -> String {
    // Adding first lets the deletion succeed without a former table.
    format!("add table inet {name}\ndelete table inet {name}\ntable inet {name} {{\n{body}}}\n")
}

/// Puts a text into force.
///
/// # Errors
/// [`Fault`] with what is missing: the program, the permission, or a feature of
/// the kernel.
pub(super) fn load(text: &str) -> Result<(), Fault> {
    tracing::trace!(text, "nft");
    nft(&["-f", "-"], text).map(drop)
}

/// Removes a table; that it is not there is success.
///
/// # Errors
/// As [`load`].
pub(super) fn remove(name: &str) -> Result<(), Fault> {
    load(&format!("add table inet {name}\ndelete table inet {name}\n"))
}

/// True when a table is there.
///
/// # Errors
/// As [`load`].
pub(super) fn exists(name: &str) -> Result<bool, Fault> {
    let tables = nft(&["list", "tables", "inet"], "")?;
    Ok(tables.lines().any(|line| line.trim() == format!("table inet {name}")))
}

/// Tables, other than ours, that drop forwarded packets unless told otherwise.
pub(super) fn dropping_forwarded() -> Vec<String> {
    nft(&["list", "chains"], "").map_or_else(|_| Vec::new(), |text| policies(&text))
}

/// From the listing of all chains.
fn policies(listing: &str) -> Vec<String> {
    let (mut table, mut found) = (String::new(), Vec::new());
    for line in listing.lines().map(str::trim) {
        if let Some(rest) = line.strip_prefix("table ") {
            table = rest.trim_end_matches('{').trim().to_owned();
        } else if line.contains("hook forward") && line.contains("policy drop") {
            found.push(table.clone());
        }
    }
    found.retain(|table| !table.contains(" warren_"));
    found
}

fn nft(arguments: &[&str], input: &str) -> Result<String, Fault> {
    run("nft", arguments, input).map_err(|failure| match failure {
        Failure::Missing => {
            Fault::new(FaultKind::Resource, "packet filter rules need the program `nft`")
                .remedy("install it: the package is called nftables")
        }
        Failure::Said(words) => fault_of(&words),
        Failure::Other(why) => Fault::new(FaultKind::Internal, format!("nft: {why}")),
    })
}

/// What `nft` complained of, with the remedy.
fn fault_of(words: &str) -> Fault {
    let line = words
        .lines()
        .find(|line| line.contains("rror"))
        .or(words.lines().next())
        .unwrap_or("no reason given")
        .trim();
    let what = format!("nft refuses the packet filter rules: {line}");
    if words.contains("not permitted") || words.contains("ermission denied") {
        return Fault::new(FaultKind::Permission, what)
            .remedy("run as root, or give the capability CAP_NET_ADMIN");
    }
    if words.contains("cgroupv2 path fails") {
        return Fault::new(FaultKind::Config, what).remedy(
            "name a control group that is there, as /proc/PID/cgroup shows it; it must exist when \
             the rules are made",
        );
    }
    let missing = ["not supported", "No such file or directory", "cache initialization failed"];
    if missing.iter().any(|hint| words.contains(hint)) {
        return Fault::new(FaultKind::Resource, what).remedy(
            "this kernel lacks a part of nftables: `modprobe nf_tables nft_ct nft_masq nft_reject \
             nft_socket`, or use a kernel with them (Linux 5.13 or newer)",
        );
    }
    Fault::new(FaultKind::Internal, what)
}

/// Why a program did not do what it was run for.
#[derive(Debug)]
pub(super) enum Failure {
    /// There is no such program.
    Missing,
    /// It failed with these words.
    Said(String),
    /// It could not be run, or hung.
    Other(String),
}

/// Runs a program to its end and returns its output.
pub(super) fn run(program: &str, arguments: &[&str], input: &str) -> Result<String, Failure> {
    // Services and `sudo -u` may come without the directories of the system's
    // own programs.
    let mut path = std::env::var_os("PATH").unwrap_or_default();
    path.push(":/usr/sbin:/sbin:/usr/bin:/bin");
    let mut child = Command::new(program)
        .args(arguments)
        .env("PATH", path)
        .env("LC_ALL", "C")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => Failure::Missing,
            _ => Failure::Other(format!("cannot run {program}: {error}")),
        })?;
    let outcome = std::thread::scope(|scope| {
        let stdin = child.stdin.take();
        // It may end before it has read all; its own words then say why.
        scope.spawn(move || stdin.map(|mut stdin| stdin.write_all(input.as_bytes())));
        let collect = |stream: Option<Box<dyn Read + Send>>| {
            scope.spawn(move || {
                let mut text = Vec::new();
                if let Some(stream) = stream {
                    let _cut = stream.take(WORDS).read_to_end(&mut text);
                }
                String::from_utf8_lossy(&text).into_owned()
            })
        };
        let output = collect(child.stdout.take().map(|stream| Box::new(stream) as _));
        let errors = collect(child.stderr.take().map(|stream| Box::new(stream) as _));
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            match child.try_wait() {
                Ok(Some(status)) => break Ok(status),
                Ok(None) if Instant::now() < deadline => std::thread::sleep(LOOK),
                Ok(None) => {
                    let _ended_meanwhile = child.kill();
                    let _ = child.wait();
                    break Err(format!("{program} did not end within {} s", PATIENCE.as_secs()));
                }
                Err(error) => break Err(error.to_string()),
            }
        };
        let (output, errors) = (output.join(), errors.join());
        status.map(|status| (status, output.unwrap_or_default(), errors.unwrap_or_default()))
    });
    match outcome {
        Ok((status, output, _)) if status.success() => Ok(output),
        Ok((_, _, errors)) => Err(Failure::Said(errors)),
        Err(why) => Err(Failure::Other(why)),
    }
}

/// The prefixes of one family as an anonymous set, without overlaps (which the
/// kernel refuses); `None` when there are none.
pub(super) fn set(family: Family, prefixes: &[IpNet]) -> Option<String> {
    let mut of_family: Vec<IpNet> =
        prefixes.iter().copied().filter(|p| Family::of(p.addr()) == family).collect();
    of_family = IpNet::aggregate(&of_family);
    let words: Vec<String> = of_family.iter().map(IpNet::to_string).collect();
    (!words.is_empty()).then(|| format!("{{ {} }}", words.join(", ")))
}

/// `ip` or `ip6`.
pub(super) fn keyword(family: Family) -> &'static str {
    match family {
        Family::V4 => "ip",
        Family::V6 => "ip6",
    }
}

/// Where the unified hierarchy of control groups is, as `nft` names paths in
/// it: by their place below `/sys/fs/cgroup`.
pub(super) fn group_root() -> Option<&'static str> {
    ["", "unified/"]
        .into_iter()
        .find(|below| Path::new("/sys/fs/cgroup").join(below).join("cgroup.controllers").exists())
}

/// The match for sockets of processes in a control group.
pub(super) fn group_match(group: &ControlGroup, root: &str) -> String {
    format!("socket cgroupv2 level {} \"{root}{}\"", group.level(), group.path())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_have_no_overlaps_and_one_family() {
        let prefixes: Vec<IpNet> = ["10.0.0.0/8", "10.1.0.0/16", "fd00::/8", "192.168.0.0/16"]
            .iter()
            .map(|text| text.parse().unwrap())
            .collect();
        assert_eq!(set(Family::V4, &prefixes).unwrap(), "{ 10.0.0.0/8, 192.168.0.0/16 }");
        assert_eq!(set(Family::V6, &prefixes).unwrap(), "{ fd00::/8 }");
        assert_eq!(set(Family::V6, &prefixes[..2]), None);
    }

    #[test]
    fn programs_are_heard_and_not_waited_for_for_ever() {
        assert_eq!(run("cat", &[], "words").unwrap(), "words");
        assert!(matches!(run("no-such-program-here", &[], ""), Err(Failure::Missing)));
        let Err(Failure::Said(words)) = run("ls", &["/nowhere/at/all"], "") else {
            panic!("it must fail");
        };
        assert!(words.contains("/nowhere/at/all"), "{words}");
        let began = Instant::now();
        assert!(matches!(run("sleep", &["60"], ""), Err(Failure::Other(_))));
        assert!(began.elapsed() < Duration::from_secs(30));
    }

    #[test]
    fn firewalls_that_drop_forwarded_packets_are_named() {
        let listing = "table ip filter {\n\tchain INPUT {\n\t\ttype filter hook input priority \
                       filter; policy drop;\n\t}\n\tchain FORWARD {\n\t\ttype filter hook forward \
                       priority filter; policy drop;\n\t}\n}\ntable inet warren_exit {\n\tchain x \
                       {\n\t\ttype filter hook forward priority filter; policy drop;\n\t}\n}\n\
                       table inet other {\n\tchain f {\n\t\ttype filter hook forward priority \
                       filter; policy accept;\n\t}\n}\n";
        assert_eq!(policies(listing), ["ip filter"]);
    }

    #[test]
    fn complaints_have_remedies() {
        for (words, kind) in [
            ("Error: Could not process rule: Operation not permitted", FaultKind::Permission),
            ("Error: Could not process rule: No such file or directory", FaultKind::Resource),
            ("/dev/stdin:1:1-5: Error: cgroupv2 path fails: No such file", FaultKind::Config),
            ("Error: syntax error, unexpected newline", FaultKind::Internal),
        ] {
            assert_eq!(fault_of(words).kind(), kind, "{words}");
        }
    }
}
