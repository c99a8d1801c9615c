//! Onion paths in trouble: nodes that die, fall silent, get slow, lose packets
//! or are drained, under the traffic of ordinary programs.

use std::io::Read;
use std::net::{IpAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use warren_lab::netem::Profile;
use warren_lab::pulse::Pulse;
use warren_lab::sessions::{Iperf, Ssh};
use warren_types::api::{Health, OnionReport};

use crate::Scenario;
use crate::mesh::Mesh;
use crate::onion::{CLIENT, Part, cast_of, outside, path, place, report, seen_as, server, wait};

pub(crate) const SCENARIOS: &[Scenario] = &[
    ("onion_dead_hops_are_left_at_once", || dead_hops(4)),
    ("onion_rotation_loses_nothing", rotation),
    ("onion_degraded_paths_are_left_and_taken_again", || degradation(2)),
    ("onion_a_dead_exit_is_replaced", dead_exit),
    ("onion_drained_nodes_are_left_in_peace", drained),
    ("onion_impossible_wishes_are_explained", impossible),
];

pub(crate) const LONG: &[Scenario] = &[
    ("onion_twenty_dead_hops_are_left_at_once", || dead_hops(20)),
    ("onion_paths_that_degrade_often_are_left_each_time", || degradation(9)),
];

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

/// Between any two: four of them make 100 ms from the client to the server.
const LEG: Duration = Duration::from_millis(25);

/// Enough entries that some are left when others have failed.
const TROUPE: [Part; 10] = [
    ("entry-nl", "entry,relay", "nl"),
    ("entry-fr", "entry,relay", "fr"),
    ("entry-gb", "entry,relay", "gb"),
    ("entry-se", "entry,relay", "se"),
    ("entry-pl", "entry,relay", "pl"),
    ("relay-us", "relay", "us"),
    ("relay-jp", "relay", "jp"),
    ("relay-ca", "relay", "ca"),
    ("exit-de", "exit", "de"),
    ("exit-sg", "exit", "sg"),
];

/// What happens to a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Blow {
    /// `kill -9`.
    Kill,
    /// Its network swallows everything.
    Silence,
}

/// Everybody, and the client connected by way of `exit`.
fn connected(exit: &str) -> Result<Mesh> {
    let mesh = cast_of(&TROUPE, LEG)?;
    // Streams are bounded by their window, not by a queue that overflows: the
    // emulated links have no rate.
    for host in [CLIENT, outside(&mesh)] {
        mesh.hosts[host].run("sysctl", &["-w", "net.ipv4.tcp_rmem=4096 131072 262144"])?;
    }
    connect(&mesh, exit)?;
    Ok(mesh)
}

fn connect(mesh: &Mesh, exit: &str) -> Result<()> {
    let arguments = ["connect", "--exit", exit, "--kill-switch", "--keep-dns"];
    mesh.node(CLIENT).warren(&arguments).map(drop)
}

fn pulse(mesh: &Mesh, every: Duration) -> Result<Pulse> {
    let to = &mesh.hosts[outside(mesh)];
    let pulse = Pulse::start(&mesh.hosts[CLIENT], to, server(mesh).into(), every, 100)?;
    pulse.wait_first(5 * SECOND).context("nothing comes back")?;
    Ok(pulse)
}

fn iperf(mesh: &Mesh, seconds: u32) -> Result<Iperf> {
    Iperf::start(&mesh.hosts[CLIENT], &mesh.hosts[outside(mesh)], server(mesh).into(), seconds)
}

fn ssh(mesh: &Mesh) -> Result<Option<Ssh>> {
    if !Ssh::is_here() {
        println!("SKIPPED in part: no ssh on this machine");
        return Ok(None);
    }
    let (client, to) = (&mesh.hosts[CLIENT], &mesh.hosts[outside(mesh)]);
    Ok(Some(Ssh::start(client, to, server(mesh).into(), mesh.scratch.path())?))
}

/// Waits for an active circuit and a standby over other nodes.
fn prepared(mesh: &Mesh) -> Result<Vec<String>> {
    wait(mesh, "a disjoint standby", 40 * SECOND, |report| {
        let active = path(report);
        let inner = active.split_last().map_or(&[][..], |(_, inner)| inner);
        !inner.is_empty()
            && report.circuits.iter().any(|circuit| {
                let mut names = circuit.hops.iter().rev().skip(1).map(|hop| hop.name.as_str());
                circuit.phase == "standby" && names.all(|name| !inner.contains(&name))
            })
    })?;
    way(mesh)
}

/// The names on the active circuit.
fn way(mesh: &Mesh) -> Result<Vec<String>> {
    Ok(path(&report(mesh, CLIENT)?).into_iter().map(str::to_owned).collect())
}

/// Cuts a host from all others, or mends that.
fn cut(mesh: &Mesh, host: usize, is: bool) -> Result<()> {
    for other in (0..mesh.hosts.len()).filter(|other| *other != host) {
        mesh.wan.change(mesh.places[host], mesh.places[other], |link| link.cut = is)?;
    }
    Ok(())
}

fn strike(mesh: &mut Mesh, host: usize, blow: Blow) -> Result<()> {
    match blow {
        Blow::Kill => mesh.crash(host),
        Blow::Silence => cut(mesh, host, true),
    }
}

fn heal(mesh: &mut Mesh, host: usize, blow: Blow) -> Result<()> {
    match blow {
        Blow::Kill => mesh.restart(host),
        Blow::Silence => cut(mesh, host, false),
    }
}

fn told(mesh: &Mesh) -> String {
    let node = mesh.node(CLIENT);
    [&["events"][..], &["path", "show"]]
        .map(|words| node.warren(words).unwrap_or_default())
        .concat()
}

/// The client's events of a kind.
fn events(mesh: &Mesh, kind: &str) -> Result<Vec<Value>> {
    let text = mesh.node(CLIENT).warren(&["events", "--json"])?;
    let all = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    Ok(all.filter(|event| event.to_string().contains(kind)).collect())
}

fn dead_hops(rounds: usize) -> Result<()> {
    let mut mesh = connected("de")?;
    let pulse = pulse(&mesh, 20 * MS)?;
    let ssh = ssh(&mesh)?;
    let mut gaps = Vec::new();
    for round in 0..rounds {
        let hops = prepared(&mesh)?;
        let blow = [Blow::Kill, Blow::Silence][round / 2 % 2];
        let victim = place(&mesh, &hops[round % 2]);
        let iperf = iperf(&mesh, 6)?;
        std::thread::sleep(2 * SECOND);
        // It may have moved meanwhile; then this checks the wrong thing.
        let now = way(&mesh)?;
        ensure!(now == hops, "moved without a reason: {hops:?}, {now:?}\n{}", told(&mesh));
        let from = pulse.now();
        strike(&mut mesh, victim, blow)?;
        std::thread::sleep(3 * SECOND);
        let silence = pulse.so_far().longest_silence(from, from + 3 * SECOND);
        let now = way(&mesh)?;
        let streamed = iperf.finish().with_context(|| format!("round {round}"))?;
        println!(
            "  {blow:?} of {} in {hops:?}: silent for {silence:.0?}, then {now:?}; iperf3 {:.3} Gb/s, \
             paused {:.0?}",
            mesh.hosts[victim].name(),
            streamed.gbps,
            streamed.longest_gap
        );
        gaps.push(silence);
        ensure!(!now.is_empty() && now != hops, "not left\n{}", told(&mesh));
        heal(&mut mesh, victim, blow)?;
    }
    if let Some(shell) = ssh.map(Ssh::finish).transpose()? {
        println!("  ssh: {} lines, paused {:.0?} at most", shell.lines, shell.longest_gap);
    }
    let slow = gaps.iter().filter(|gap| **gap > 500 * MS).count();
    ensure!(slow == 0, "{slow} of {rounds} gaps over 500 ms: {gaps:.0?}\n{}", told(&mesh));
    Ok(())
}

fn rotation() -> Result<()> {
    let mesh = connected("de")?;
    let pulse = pulse(&mesh, 10 * MS)?;
    prepared(&mesh)?;
    let iperf = iperf(&mesh, 15)?;
    std::thread::sleep(SECOND);
    let from = pulse.now();
    for _ in 0..3 {
        let before = report(&mesh, CLIENT)?.circuits[0].serial;
        mesh.node(CLIENT).warren(&["path", "rotate"])?;
        let took = wait(&mesh, "another circuit", 10 * SECOND, |report| {
            report.circuits.first().is_some_and(|c| c.phase == "active" && c.serial != before)
        })?;
        println!("  rotated after {took:.2?} to {:?}", way(&mesh)?);
        std::thread::sleep(1500 * MS);
    }
    let until = pulse.now() - 500 * MS;
    let (lost, sent) = pulse.so_far().lost(from, until);
    let silence = pulse.so_far().longest_silence(from, until);
    let streamed = iperf.finish()?;
    println!("  {lost} of {sent} lost, silent for {silence:.0?}; iperf3 {streamed:.3?}");
    ensure!(lost == 0, "{lost} of {sent} datagrams lost\n{}", told(&mesh));
    Ok(())
}

/// The hops that are not well on circuits with a hop that follows `before` (or
/// is the entry) and is `name`.
fn ailing(report: &OnionReport) -> Vec<(String, Health, Option<String>)> {
    let hops = report.circuits.iter().flat_map(|circuit| &circuit.hops);
    let ill = hops.filter(|hop| matches!(hop.health, Health::Yellow | Health::Red));
    ill.map(|hop| (hop.name.clone(), hop.health, hop.why.clone())).collect()
}

fn degradation(rounds: usize) -> Result<()> {
    let mesh = connected("de")?;
    let _pulse = pulse(&mesh, 10 * MS)?;
    let good = Profile::delayed(LEG / 2);
    let slow = Profile { delay: good.delay + 75 * MS, ..good };
    let lossy = Profile { loss: 0.05, ..good };
    let spells = [
        ("150 ms more", slow, 1),
        ("5 % loss", lossy, 0),
        ("150 ms more", slow, 0),
        ("5 % loss", lossy, 1),
    ];
    for (round, (what, spell, end)) in spells.into_iter().cycle().take(rounds).enumerate() {
        let hops = prepared(&mesh)?;
        std::thread::sleep(5 * SECOND);
        let now = way(&mesh)?;
        ensure!(now == hops, "moved without a reason: {hops:?}, {now:?}\n{}", told(&mesh));
        let ill = ailing(&report(&mesh, CLIENT)?);
        ensure!(ill.is_empty(), "ailing though well: {ill:?}");
        // The hop at the far end of the link is what shows it.
        let ends = [
            place(&mesh, &hops[end]),
            if end == 0 { CLIENT } else { place(&mesh, &hops[end - 1]) },
        ];
        let change = |profile: Profile| {
            mesh.wan.change(mesh.places[ends[0]], mesh.places[ends[1]], |link| *link = profile)
        };
        let began = Instant::now();
        change(spell)?;
        let (mut left, mut shown, mut wrong) = (None, None, Vec::new());
        while began.elapsed() < 5 * SECOND {
            let now = report(&mesh, CLIENT)?;
            if left.is_none() && path(&now) != hops {
                left = Some(began.elapsed());
            }
            for (name, health, why) in ailing(&now) {
                if name == hops[end] {
                    shown.get_or_insert((began.elapsed(), health, why));
                } else {
                    wrong.push((began.elapsed(), name, health, why));
                }
            }
            std::thread::sleep(50 * MS);
        }
        println!("  {what} at {}: left after {left:.2?}, shown {shown:?}", hops[end]);
        ensure!(left.is_some(), "{what}: not left within 5 s\n{}", told(&mesh));
        ensure!(shown.is_some(), "{what}: not shown within 5 s\n{}", told(&mesh));
        ensure!(wrong.is_empty(), "{what}: shown elsewhere: {wrong:?}\n{}", told(&mesh));
        change(good)?;
        if round > 0 && round + 1 == rounds {
            // The way back was seen.
            break;
        }
        // The path in use now gets a little worse, so that another is better.
        let now = way(&mesh)?;
        let ends = [place(&mesh, &now[0]), place(&mesh, &now[1])];
        let worsen = |by: Duration| {
            let places = (mesh.places[ends[0]], mesh.places[ends[1]]);
            mesh.wan.change(places.0, places.1, |link| link.delay = good.delay + by)
        };
        worsen(20 * MS)?;
        let moves = events(&mesh, "onion_moved")?.len();
        let back = wait(&mesh, "a better path", 60 * SECOND, |report| {
            let path = path(report);
            !path.is_empty() && path != now
        })?;
        std::thread::sleep(10 * SECOND);
        let moved = events(&mesh, "onion_moved")?.len() - moves;
        println!("  a better path after {back:.1?}: {:?}; {moved} moves", way(&mesh)?);
        ensure!(moved == 1, "{moved} moves\n{}", told(&mesh));
        worsen(Duration::ZERO)?;
    }
    Ok(())
}

/// Connections from the client to the server.
fn open(mesh: &Mesh, listener: &TcpListener) -> Result<(TcpStream, TcpStream)> {
    let target = listener.local_addr()?;
    let client = mesh.hosts[CLIENT].namespace();
    let near = client.run(|| TcpStream::connect_timeout(&target, 5 * SECOND))??;
    Ok((near, listener.accept()?.0))
}

fn listener(mesh: &Mesh) -> Result<TcpListener> {
    let address = server(mesh);
    Ok(mesh.hosts[outside(mesh)].namespace().run(|| TcpListener::bind((address, 0)))??)
}

fn dead_exit() -> Result<()> {
    let mut mesh = connected("auto")?;
    let pulse = pulse(&mesh, 20 * MS)?;
    wait(&mesh, "a spare", 20 * SECOND, |report| {
        report.circuits.iter().any(|circuit| circuit.phase == "ready")
    })?;
    let hops = prepared(&mesh)?;
    let listener = listener(&mesh)?;
    let (near, far) = open(&mesh, &listener)?;
    let (mut idle, _idle_far) = open(&mesh, &listener)?;
    let exit = place(&mesh, &hops[2]);
    let from = pulse.now();
    let began = Instant::now();
    mesh.crash(exit)?;
    let (target, client) = (listener.local_addr()?, mesh.hosts[CLIENT].namespace().clone());
    let connecting = std::thread::spawn(move || {
        let began = Instant::now();
        let made = client.run(|| TcpStream::connect_timeout(&target, 10 * SECOND).map(drop));
        (began.elapsed(), made.expect("a namespace").map_err(|error| error.kind()))
    });
    // A program that waits for an answer.
    idle.set_read_timeout(Some(10 * SECOND))?;
    let reading = idle.read(&mut [0; 8]);
    let reset = began.elapsed();
    println!("  a waiting connection ends after {reset:.2?}: {reading:?}");
    // And one that was about to connect: its next attempt gets through.
    let connecting = connecting.join().expect("it does not panic");
    println!("  a connection that was being made: {connecting:?}");
    ensure!(connecting.1.is_ok() && connecting.0 <= 5 * SECOND, "{connecting:?}");
    let late = reading.as_ref().is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock);
    let next = wait(&mesh, "another exit", 10 * SECOND, |report| {
        report.exit.as_deref().is_some_and(|name| name != hops[2])
    })?;
    let seen = seen_as(&mesh)?;
    let silence = pulse.so_far().longest_silence(from, pulse.now());
    println!("  another exit {next:.2?} later, seen as {seen}; UDP silent for {silence:.2?}");
    let now = way(&mesh)?;
    let other = mesh.places[place(&mesh, &now[2])].ipv4();
    ensure!(seen == IpAddr::from(other), "seen as {seen}, the exit is {other}");
    ensure!(!late, "the connection hangs\n{}", told(&mesh));
    ensure!(reset <= 4 * SECOND, "reset after {reset:?} only");
    let lost = events(&mesh, "exit_lost")?;
    ensure!(lost.iter().any(|event| event.to_string().contains(&hops[2])), "{lost:?}");
    drop((near, far));
    // The only exit that is wanted restarts: its sessions are forgotten.
    let name = now[2].clone();
    connect(&mesh, &name)?;
    let (mut idle, _far) = open(&mesh, &listener)?;
    let from = pulse.now();
    mesh.restart(place(&mesh, &name))?;
    idle.set_read_timeout(Some(20 * SECOND))?;
    let reading = idle.read(&mut [0; 8]);
    let late = reading.as_ref().is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock);
    println!("  after a restart of the only exit: {reading:?} after {:.1?}", pulse.now() - from);
    ensure!(!late, "the connection hangs\n{}", told(&mesh));
    let came = wait(&mesh, "the same exit", 20 * SECOND, |report| {
        path(report).last().is_some_and(|exit| *exit == name)
    })?;
    let (near, _far) = open(&mesh, &listener).with_context(|| told(&mesh))?;
    println!("  and again over it {came:.1?} later");
    drop(near);
    Ok(())
}

fn drained() -> Result<()> {
    let mesh = connected("auto")?;
    let pulse = pulse(&mesh, 10 * MS)?;
    let hops = prepared(&mesh)?;
    // A relay: left without loss.
    let from = pulse.now();
    mesh.node(place(&mesh, &hops[1])).warren(&["drain"])?;
    let took = wait(&mesh, "without the relay", 10 * SECOND, |report| {
        let path = path(report);
        !path.is_empty() && !path.contains(&hops[1].as_str())
    })?;
    std::thread::sleep(2 * SECOND);
    let (lost, sent) = pulse.so_far().lost(from, pulse.now() - 500 * MS);
    println!("  the relay was left after {took:.2?}; {lost} of {sent} lost");
    ensure!(lost == 0, "{lost} of {sent} lost\n{}", told(&mesh));
    // The exit: what is there goes on.
    let hops = prepared(&mesh)?;
    let exit = hops[2].as_str();
    let listener = listener(&mesh)?;
    let (near, mut far) = open(&mesh, &listener)?;
    let from = pulse.now();
    let said = mesh.node(place(&mesh, exit)).warren(&["drain"])?;
    ensure!(said.contains("Draining"), "{said}");
    std::thread::sleep(5 * SECOND);
    std::io::Write::write_all(&mut &near, b"still here")?;
    let mut text = [0; 10];
    far.set_read_timeout(Some(3 * SECOND))?;
    far.read_exact(&mut text).context("the old connection broke")?;
    let (lost, sent) = pulse.so_far().lost(from, pulse.now() - 500 * MS);
    println!("  the exit drains: {lost} of {sent} lost, still over {:?}", way(&mesh)?);
    ensure!(lost == 0 && way(&mesh)?[2] == exit, "{lost} of {sent}\n{}", told(&mesh));
    // Who comes now goes elsewhere, or is told.
    let code = |exit: &str| mesh.node(CLIENT).warren(&["connect", "--exit", exit, "--keep-dns"]);
    let refusal = code(exit).expect_err("a draining exit was taken");
    let refusal = format!("{refusal:#}");
    println!("  asked for it: {refusal}");
    ensure!(refusal.contains("drain"), "{refusal}");
    connect(&mesh, "auto")?;
    let now = way(&mesh)?;
    ensure!(now.len() == 3 && now[2] != exit, "{now:?}");
    Ok(())
}

fn impossible() -> Result<()> {
    let mut mesh = cast_of(&[&TROUPE[..3], &TROUPE[7..9]].concat(), 5 * MS)?;
    for (arguments, words) in [
        (&["--exit", "zz"][..], &["zz", "country"][..]),
        (&["--exit", "sg"], &["no exit", "country", "to be had: de"]),
        (&["--exit", "nowhere"], &["nowhere", "member"]),
        (&["--entry", "ca"], &["no entry", "role"]),
        (&["--entry", "nl", "--avoid", "fr", "--avoid", "gb", "--avoid", "ca"], &["with --hops 2"]),
        (&["--hops", "4", "--avoid", "ca", "--avoid", "gb"], &["with --hops 3"]),
        (&["--avoid", "exit-de"], &["no exit", "avoid"]),
        (&["--hops", "5"], &["1..=4"]),
        (&["--avoid", "xyz"], &["xyz", "family"]),
        (&["--proxy-only", "--kill-switch"], &["--proxy-only", "--kill-switch", "without it"]),
    ] {
        let began = Instant::now();
        let arguments: Vec<_> =
            ["connect", "--keep-dns"].iter().chain(arguments).copied().collect();
        let answer = mesh.node(CLIENT).warren(&arguments);
        let Err(error) = answer else { anyhow::bail!("{arguments:?} was taken") };
        let text = format!("{error:#}");
        println!("  {arguments:?} after {:.2?}: {text}", began.elapsed());
        ensure!(began.elapsed() < 3 * SECOND, "{arguments:?} hangs");
        ensure!(words.iter().all(|word| text.contains(word)), "{arguments:?}: {text}");
    }
    // Nothing was changed by any of that.
    let own = IpAddr::from(mesh.places[CLIENT].ipv4());
    ensure!(seen_as(&mesh)? == own, "the wishes that failed changed something");
    // All guards are down.
    for i in 1..=3 {
        mesh.crash(i)?;
    }
    let began = Instant::now();
    let arguments = ["connect", "--kill-switch", "--keep-dns"];
    let Err(error) = mesh.node(CLIENT).warren(&arguments) else {
        anyhow::bail!("connected without an entry")
    };
    println!("  without guards after {:.1?}: {error:#}", began.elapsed());
    ensure!(began.elapsed() < 30 * SECOND, "it hangs");
    ensure!(seen_as(&mesh).is_err(), "traffic leaves beside");
    let before = report(&mesh, CLIENT)?;
    ensure!(before.kill_switch && path(&before).is_empty(), "{before:?}");
    // It goes on by itself when they are back.
    for i in 1..=3 {
        mesh.restart(i)?;
    }
    let took = wait(&mesh, "connected by itself", 60 * SECOND, |report| !path(report).is_empty())?;
    println!("  connected {took:.1?} after the guards were back");
    mesh.node(CLIENT).warren(&["disconnect"])?;
    ensure!(seen_as(&mesh)? == own, "not lifted");
    Ok(())
}
