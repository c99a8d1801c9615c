//! What leaves a connected client's machine beside the tunnel: nothing, whoever
//! is killed and when; and names, which are asked at the exit.
//!
//! The server outside is no member: whatever the client's machine sends it over
//! the underlay itself went beside the tunnel, whatever family and kind it is.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use warren_os::icmp::Pinger;
use warren_os::process::{Signal, signal};
use warren_types::api::OnionState;

use crate::Scenario;
use crate::host::Dice;
use crate::mesh::Mesh;
use crate::names::{eventually, have};
use crate::onion::{CLIENT, Part, cast_of, cast_with, outside, place, report, server, wait};

pub(crate) const SCENARIOS: &[Scenario] = &[
    ("onion_nothing_leaves_beside_a_path", || nothing_beside(10)),
    ("onion_names_are_asked_at_the_exit", names_at_the_exit),
];

pub(crate) const LONG: &[Scenario] =
    &[("onion_nothing_leaves_beside_a_path_in_200_kills", || nothing_beside(200))];

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const LEG: Duration = Duration::from_millis(5);

const TROUPE: [Part; 6] = [
    ("entry-nl", "entry,relay", "nl"),
    ("entry-fr", "entry,relay", "fr"),
    ("entry-gb", "entry,relay", "gb"),
    ("relay-us", "relay", "us"),
    ("exit-de", "exit", "de"),
    ("exit-sg", "exit", "sg"),
];

/// Packets the client sent to the server by itself.
fn beside(mesh: &Mesh) -> Result<u64> {
    let (from, to) = (mesh.places[CLIENT], mesh.places[outside(mesh)]);
    Ok(mesh.wan.counters(from, to)?.offered)
}

/// Programs that try to get out, each way, all the time.
fn chatter(stop: &AtomicBool, targets: &[IpAddr]) {
    let any = |to: IpAddr| -> SocketAddr {
        if to.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0_u16; 8], 0).into() }
    };
    let socket = |to: IpAddr, port: u16| {
        let socket = UdpSocket::bind(any(to)).ok()?;
        socket.connect((to, port)).ok()?;
        Some(socket)
    };
    let all = || targets.iter().flat_map(|to| [(*to, 7), (*to, 53)]);
    // With the routes and addresses of before the tunnel.
    let old: Vec<UdpSocket> = all().filter_map(|(to, port)| socket(to, port)).collect();
    while !stop.load(Ordering::Relaxed) {
        for socket in all()
            .filter_map(|(to, port)| socket(to, port))
            .chain(old.iter().filter_map(|socket| socket.try_clone().ok()))
        {
            // Refusals are what is hoped for.
            let _refused = socket.send(b"here I am");
        }
        for to in targets {
            let _refused = TcpStream::connect_timeout(&(*to, 80).into(), 2 * MS);
            if let Ok(mut pinger) = Pinger::open(*to, 7) {
                let _refused = pinger.ping(8, MS);
            }
        }
        std::thread::sleep(MS);
    }
}

/// Processes that a process has started.
fn children(of: u32) -> Vec<u32> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let parent = |pid: u32| -> Option<u32> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // Behind the name in brackets: state, parent.
        stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
    };
    pids.filter(|pid| parent(*pid) == Some(of)).collect()
}

fn nothing_beside(rounds: u32) -> Result<()> {
    if !have("nft", "nftables") {
        return Ok(());
    }
    let mut mesh = cast_of(&TROUPE, LEG)?;
    let place = mesh.places[outside(&mesh)];
    let targets: [IpAddr; 2] = [place.ipv4().into(), place.ipv6().into()];
    let client = mesh.hosts[CLIENT].clone();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        // Each family gets out before.
        for target in targets {
            let before = beside(&mesh)?;
            let stop = AtomicBool::new(false);
            std::thread::scope(|scope| {
                scope.spawn(|| client.namespace().run(|| chatter(&stop, &[target])));
                std::thread::sleep(300 * MS);
                stop.store(true, Ordering::Relaxed);
            });
            ensure!(beside(&mesh)? > before, "{target} cannot be reached at all");
        }
        for _ in 0..2 {
            scope.spawn(|| client.namespace().run(|| chatter(&stop, &targets)));
        }
        let result = kills(&mut mesh, rounds);
        stop.store(true, Ordering::Relaxed);
        result
    })
}

fn connect(mesh: &Mesh, exit: &str) -> Result<()> {
    let arguments = ["connect", "--exit", exit, "--kill-switch", "--keep-dns"];
    mesh.node(CLIENT).warren(&arguments).map(drop)
}

fn kills(mesh: &mut Mesh, rounds: u32) -> Result<()> {
    let mut dice = Dice(0x0dd5_eed5);
    connect(mesh, "de")?;
    std::thread::sleep(50 * MS);
    let (mut before, mut slowest) = (beside(mesh)?, Duration::ZERO);
    for round in 0..rounds {
        let step = ["connect", "rotate", "restart", "disconnect"][dice.roll(4) as usize];
        let after = MS * dice.roll(if step == "restart" { 1500 } else { 120 }) as u32;
        let both = dice.roll(2) == 0;
        let pid = mesh.node(CLIENT).pid();
        let helpers = children(pid);
        if step == "restart" {
            mesh.crash(CLIENT)?;
            mesh.launch(CLIENT)?;
            std::thread::sleep(after);
        } else {
            let exit = ["de", "sg"][dice.roll(2) as usize];
            let node = mesh.node(CLIENT);
            std::thread::scope(|scope| {
                scope.spawn(move || {
                    std::thread::sleep(after);
                    let killed = both.then_some(helpers).into_iter().flatten().chain([pid]);
                    for pid in killed {
                        let _ended_already = signal(pid, Signal::Kill);
                    }
                });
                // Most are never answered.
                let _killed = match step {
                    "connect" => {
                        node.warren(&["connect", "--exit", exit, "--kill-switch", "--keep-dns"])
                    }
                    "rotate" => node.warren(&["path", "rotate"]),
                    _ => node.warren(&["disconnect"]),
                };
            });
        }
        mesh.crash(CLIENT)?;
        let what = format!("round {round}: {step}, killed after {after:?}, helper too: {both}");
        if step == "disconnect" {
            // It may have been lifted in time, or not; then it must be possible now.
            mesh.restart(CLIENT)?;
            let said = mesh.node(CLIENT).warren(&["disconnect"]).context(what.clone())?;
            ensure!(said.contains("disconnected"), "{what}: {said}");
            let open = beside(mesh)?;
            std::thread::sleep(100 * MS);
            ensure!(beside(mesh)? > open, "{what}: not lifted");
            // Right after a start it has to hear of the others first.
            eventually(&what, || Ok(connect(mesh, "auto").is_ok()))?;
            std::thread::sleep(50 * MS);
            before = beside(mesh)?;
            continue;
        }
        std::thread::sleep(MS * dice.roll(100) as u32);
        let began = Instant::now();
        mesh.restart(CLIENT)?;
        wait(mesh, &what, 20 * SECOND, |report| {
            report.state == OnionState::Connected && report.kill_switch
        })?;
        slowest = slowest.max(began.elapsed());
        let now = beside(mesh)?;
        ensure!(now == before, "{what}: {} packets beside the tunnel", now - before);
    }
    println!("  {rounds} kills; connected again after {slowest:.2?} at most");
    mesh.node(CLIENT).warren(&["disconnect"])?;
    std::thread::sleep(200 * MS);
    ensure!(beside(mesh)? > before, "not lifted by disconnect");
    let tables = mesh.hosts[CLIENT].run("nft", &["list", "ruleset"])?;
    ensure!(!tables.contains("warren"), "tables are left: {tables}");
    Ok(())
}

/// What the name server outside tells of every name.
const ANSWER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 77);

/// The answer to a question for an address, RFC 1035 section 4.
fn answer(question: &[u8]) -> Option<Vec<u8>> {
    let mut at = 12;
    while *question.get(at)? != 0 {
        at += usize::from(question[at]) + 1;
    }
    let end = at + 5;
    let wants_v4 = question.get(at + 1..at + 3)? == [0, 1];
    let mut out = question.get(..end)?.to_vec();
    out[2..12].copy_from_slice(&[0x81, 0x80, 0, 1, 0, u8::from(wants_v4), 0, 0, 0, 0]);
    if wants_v4 {
        out.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
        out.extend_from_slice(&ANSWER.octets());
    }
    Some(out)
}

/// A name server on the server outside; who asked is told to `asked`.
fn serve_names(mesh: &Mesh, asked: mpsc::Sender<IpAddr>) -> Result<()> {
    let address = server(mesh);
    let socket = mesh.hosts[outside(mesh)].namespace().run(|| UdpSocket::bind((address, 53)))??;
    std::thread::spawn(move || {
        let mut buffer = [0; 1500];
        while let Ok((len, from)) = socket.recv_from(&mut buffer) {
            let Some(answer) = answer(&buffer[..len]) else { continue };
            let _unreachable = socket.send_to(&answer, from);
            if asked.send(from.ip()).is_err() {
                return;
            }
        }
    });
    Ok(())
}

fn names_at_the_exit() -> Result<()> {
    if !have("nft", "nftables") {
        return Ok(());
    }
    let mut mesh = cast_with(&TROUPE, LEG, |mesh| {
        let resolver = server(mesh);
        let config = mesh.scratch.path().join("exit.toml");
        std::fs::write(&config, format!("[exit]\nresolver = \"{resolver}\"\n"))?;
        // The client's daemon has a resolv.conf of its own.
        let file = mesh.scratch.path().join("resolv.conf");
        std::fs::write(&file, format!("nameserver {resolver}\n"))?;
        let script = mesh.scratch.path().join("warren-in-mounts");
        let text = format!(
            "#!/bin/sh\nexec unshare -m sh -c 'mount --bind {} /etc/resolv.conf && exec \"$@\"' sh {} \"$@\"\n",
            file.display(),
            mesh.specs[CLIENT].binary.display()
        );
        std::fs::write(&script, text)?;
        std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755))?;
        mesh.specs[CLIENT].binary = script;
        for (i, host) in mesh.hosts.iter().enumerate() {
            if host.name().starts_with("exit") {
                mesh.specs[i].arguments.extend(["--config".into(), config.clone().into()]);
            }
        }
        Ok(())
    })?;
    let (tell, asked) = mpsc::channel();
    serve_names(&mesh, tell)?;
    let file = mesh.scratch.path().join("resolv.conf");
    let former = std::fs::read_to_string(&file)?;
    // As a program does, in the daemon's mounts.
    let look_up = |mesh: &Mesh, name: &str| -> Result<(String, Vec<IpAddr>)> {
        let pid = mesh.node(CLIENT).pid().to_string();
        let mut command = mesh.hosts[CLIENT].command("nsenter");
        command.args(["-t", &pid, "-m", "timeout", "10", "getent", "ahostsv4", name]);
        let said = warren_lab::topology::output_of(&mut command)?;
        Ok((said, asked.try_iter().collect()))
    };
    let (said, by) = look_up(&mesh, "before.example")?;
    let own = IpAddr::from(mesh.places[CLIENT].ipv4());
    ensure!(said.contains(&ANSWER.to_string()) && by.contains(&own), "{said} {by:?}");

    mesh.node(CLIENT).warren(&["connect", "--exit", "de", "--kill-switch"])?;
    std::thread::sleep(50 * MS);
    let before = beside(&mesh)?;
    let exit = IpAddr::from(mesh.places[place(&mesh, "exit-de")].ipv4());
    for name in ["one.example", "two.example"] {
        let began = Instant::now();
        let (said, by) = look_up(&mesh, name).with_context(|| {
            let text = std::fs::read_to_string(&file).unwrap_or_default();
            format!("{name}: {text}\n{:#?}", report(&mesh, CLIENT))
        })?;
        println!("  {name} after {:.0?}, asked by {by:?}", began.elapsed());
        ensure!(said.contains(&ANSWER.to_string()), "{said}");
        ensure!(!by.is_empty() && by.iter().all(|from| *from == exit), "asked by {by:?}");
    }
    // Killed and started again: the same.
    mesh.restart(CLIENT)?;
    wait(&mesh, "connected again", 20 * SECOND, |report| report.state == OnionState::Connected)?;
    let (said, by) = look_up(&mesh, "three.example")?;
    ensure!(said.contains(&ANSWER.to_string()) && by.iter().all(|from| *from == exit), "{by:?}");
    let left = beside(&mesh)? - before;
    ensure!(left == 0, "{left} packets beside the tunnel");
    mesh.node(CLIENT).warren(&["disconnect"])?;
    let now = std::fs::read_to_string(&file)?;
    ensure!(now == former, "not as before: {now}");
    let (_, by) = look_up(&mesh, "after.example")?;
    ensure!(by.contains(&own), "asked by {by:?}");
    Ok(())
}
