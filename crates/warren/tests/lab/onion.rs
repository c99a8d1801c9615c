//! Onion-routed paths on real machines: a client, hops in several countries, and
//! a server outside of the network that tells where a connection comes from.

use std::fs::Permissions;
use std::net::{IpAddr, Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use warren_lab::process::KilledOnDrop;
use warren_lab::pulse::Pulse;
use warren_types::api::{OnionReport, OnionState};

use crate::Scenario;
use crate::mesh::{Actor, Mesh};
use crate::names::eventually;

pub(crate) const SCENARIOS: &[Scenario] =
    &[("a_path_of_three_hops_leaves_at_the_exit", a_path_of_three_hops)];

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

/// Who does what, and where.
const HOPS: [Part; 7] = [
    ("entry-nl", "entry,relay", "nl"),
    ("entry-fr", "entry,relay", "fr"),
    ("relay-us", "relay", "us"),
    ("relay-jp", "relay", "jp"),
    ("relay-gb", "entry,relay", "gb"),
    ("exit-de", "exit", "de"),
    ("exit-sg", "exit", "sg"),
];
/// A network behind one of them.
const BEHIND: &str = "192.168.77.0/24";
/// The client is the first of the cast, the server the last.
pub(crate) const CLIENT: usize = 0;

/// Name, roles and country of a hop.
pub(crate) type Part = (&'static str, &'static str, &'static str);

/// The whole cast, running.
pub(crate) fn cast(rtt: Duration) -> Result<Mesh> {
    cast_of(&HOPS, rtt)
}

/// A client, `hops` and a server, every two of them `rtt` apart.
pub(crate) fn cast_of(hops: &[Part], rtt: Duration) -> Result<Mesh> {
    cast_with(hops, rtt, |_| Ok(()))
}

/// The same with a change of the cast before it starts.
pub(crate) fn cast_with(
    hops: &[Part],
    rtt: Duration,
    prepare: impl Fn(&mut Mesh) -> Result<()>,
) -> Result<Mesh> {
    let mut names = vec!["client"];
    names.extend(hops.iter().map(|hop| hop.0));
    names.push("server");
    let actors: Vec<_> = names.iter().map(|name| Actor::public(name)).collect();
    let mut mesh = Mesh::hosts(&actors, rtt)?;
    // The emulated network's addresses are of a range that exits refuse.
    let rules = mesh.scratch.path().join("exit.rules");
    std::fs::write(&rules, "allow-private-destinations\nreject *:25\naccept *:*\n")?;
    for (i, (_, roles, country)) in hops.iter().enumerate() {
        let arguments = &mut mesh.specs[i + 1].arguments;
        arguments.extend(["--roles", roles, "--region", country].map(Into::into));
        if roles.contains("exit") {
            arguments.extend(["--exit-policy".into(), rules.clone().into()]);
        }
    }
    for host in &mesh.hosts {
        host.run("ip", &["route", "add", "default", "dev", "wan0"])?;
    }
    prepare(&mut mesh)?;
    mesh.found(hops.len() + 1)?;
    Ok(mesh)
}

pub(crate) fn report(mesh: &Mesh, i: usize) -> Result<OnionReport> {
    Ok(serde_json::from_str(&mesh.node(i).warren(&["path", "show", "--json"])?)?)
}

/// The names on the active circuit.
pub(crate) fn path(report: &OnionReport) -> Vec<&str> {
    let active = report.circuits.first().filter(|circuit| circuit.phase == "active");
    active.map(|c| c.hops.iter().map(|hop| hop.name.as_str()).collect()).unwrap_or_default()
}

pub(crate) fn place(mesh: &Mesh, name: &str) -> usize {
    mesh.hosts.iter().position(|host| host.name() == name).expect("one of the cast")
}

/// Where the server is among the hosts.
pub(crate) fn outside(mesh: &Mesh) -> usize {
    mesh.hosts.len() - 1
}

pub(crate) fn server(mesh: &Mesh) -> Ipv4Addr {
    mesh.places[outside(mesh)].ipv4()
}

/// The address under which the server sees who connects.
pub(crate) fn seen_as(mesh: &Mesh) -> Result<IpAddr> {
    let address = server(mesh);
    let listener = mesh.hosts[outside(mesh)]
        .namespace()
        .run(|| TcpListener::bind((address, 0)))?
        .context("cannot listen")?;
    let target = listener.local_addr()?;
    let client = mesh.hosts[CLIENT].namespace();
    let stream = client.run(|| TcpStream::connect_timeout(&target, 5 * SECOND))?;
    let _stream = stream.context("cannot connect")?;
    Ok(listener.accept()?.1.ip())
}

pub(crate) fn wait(
    mesh: &Mesh,
    what: &str,
    limit: Duration,
    is: impl Fn(&OnionReport) -> bool,
) -> Result<Duration> {
    let start = Instant::now();
    loop {
        let now = report(mesh, CLIENT)?;
        if is(&now) {
            return Ok(start.elapsed());
        }
        ensure!(
            start.elapsed() < limit,
            "{what}: not within {limit:?}: {now:#?}\n{}",
            mesh.node(CLIENT).warren(&["events"])?
        );
        std::thread::sleep(50 * MS);
    }
}

/// `warren events --follow --notify` of the client, with a desktop that writes down
/// what it is to show.
fn desktop(mesh: &Mesh) -> Result<(KilledOnDrop, PathBuf)> {
    let (programs, shown) = (mesh.scratch.path().join("bin"), mesh.scratch.path().join("shown"));
    std::fs::create_dir(&programs)?;
    let program = programs.join("notify-send");
    std::fs::write(&program, format!("#!/bin/sh\necho \"$@\" >> {}\n", shown.display()))?;
    std::fs::set_permissions(&program, Permissions::from_mode(0o755))?;
    let spec = mesh.node(CLIENT).spec();
    let path = std::env::var("PATH").unwrap_or_default();
    let mut command = mesh.hosts[CLIENT].command(&spec.binary);
    command.env("PATH", format!("{}:{path}", programs.display())).stdout(Stdio::null());
    command.args(["events", "--follow", "--notify", "--state-dir"]).arg(&spec.state_dir);
    let child = KilledOnDrop(command.spawn()?);
    shows(&shown, "--version")?;
    Ok((child, shown))
}

/// Waits until the desktop has shown it.
fn shows(shown: &Path, what: &str) -> Result<()> {
    let start = Instant::now();
    loop {
        let text = std::fs::read_to_string(shown).unwrap_or_default();
        if text.contains(what) {
            return Ok(());
        }
        ensure!(start.elapsed() < 5 * SECOND, "the desktop does not show {what:?}: {text}");
        std::thread::sleep(20 * MS);
    }
}

fn a_path_of_three_hops() -> Result<()> {
    let mesh = cast(20 * MS)?;
    let (_notifier, shown) = desktop(&mesh)?;
    let began = Instant::now();
    let text = mesh.node(CLIENT).warren(&["connect", "--exit", "de", "--kill-switch"])?;
    println!("{text}  after {:.2?}", began.elapsed());
    let now = report(&mesh, CLIENT)?;
    ensure!(now.state == OnionState::Connected && now.exit.as_deref() == Some("exit-de"));
    let hops = path(&now);
    ensure!(hops.len() == 3 && hops[2] == "exit-de", "{hops:?}");
    let pulse = Pulse::start(
        &mesh.hosts[CLIENT],
        &mesh.hosts[outside(&mesh)],
        server(&mesh).into(),
        20 * MS,
        100,
    )?;
    let first = pulse.wait_first(5 * SECOND).with_context(|| {
        let mut text = String::from("nothing comes back\n");
        for i in [CLIENT, place(&mesh, "exit-de")] {
            for arguments in [&["path", "show"][..], &["status", "--json"][..]] {
                text += &mesh.node(i).warren(arguments).unwrap_or_default();
            }
            for command in
                ["ip rule; ip route show table all; ip addr", "nft list ruleset", "ip -s link"]
            {
                text += &mesh.hosts[i].run("sh", &["-c", command]).unwrap_or_default();
            }
            text += &mesh.node(i).log();
        }
        text
    })?;
    println!("  first echo after {first:.2?}");
    std::thread::sleep(3 * SECOND);
    let beats = pulse.so_far();
    let end = pulse.now();
    let (lost, sent) = beats.lost(end - 2 * SECOND, end - 500 * MS);
    println!("  {lost} of {sent} lost; RTT {:?}", beats.median_rtt(end - 2 * SECOND, end));
    ensure!(lost == 0, "{lost} of {sent} lost");
    let seen = seen_as(&mesh)?;
    let exit = mesh.places[place(&mesh, "exit-de")].ipv4();
    ensure!(seen == IpAddr::from(exit), "seen as {seen}, the exit is {exit}");
    wait(&mesh, "a standby", 10 * SECOND, |report| {
        report.circuits.iter().any(|circuit| circuit.phase == "standby")
    })?;
    println!("{}", mesh.node(CLIENT).warren(&["path", "show"])?);
    println!("{}", mesh.node(CLIENT).warren(&["path", "verify"])?);
    println!("{}", mesh.node(CLIENT).warren(&["path", "explain"])?);
    // A network that is added behind a member is reached over the mesh at once.
    mesh.node(place(&mesh, "entry-fr")).warren(&["route", "advertise", BEHIND])?;
    mesh.node(CLIENT).warren(&["route", "approve", "entry-fr", BEHIND])?;
    eventually("the machine's traffic follows the mesh's routes", || {
        Ok(mesh.hosts[CLIENT].run("ip", &["rule"])?.contains(BEHIND))
    })?;
    mesh.node(CLIENT).warren(&["disconnect"])?;
    let own = mesh.places[CLIENT].ipv4();
    let seen = seen_as(&mesh)?;
    ensure!(seen == IpAddr::from(own), "after disconnect seen as {seen}");
    shows(&shown, "--urgency=low Warren connected through ")?;
    shows(&shown, "--urgency=normal Warren disconnected: traffic leaves as before")?;
    Ok(())
}
