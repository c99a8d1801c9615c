//! What each hop of a path can know, looked for where it would be: in its memory
//! and on its wire.
//!
//! All members know each other's addresses from the directory, so the question
//! is whose traffic it is, where it goes and what is in it. The client sends
//! marked datagrams of many sizes to a server outside.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::net::{SocketAddr, UdpSocket};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use warren_lab::process::KilledOnDrop;

use crate::Scenario;
use crate::mesh::Mesh;
use crate::onion::{CLIENT, cast, outside, path, place, report, server};

pub(crate) const SCENARIOS: &[Scenario] =
    &[("hops_know_only_what_they_must", hops_know_only_what_they_must)];

const MARK: &[u8] = b"Sprightly marmots hum at dusk";
/// Bytes of a cell as a UDP payload.
const CELL: usize = 1424;

/// True when the memory of a process holds `needle`. What cannot be read (the
/// kernel's own pages) is skipped.
fn remembers(pid: u32, needle: &[u8]) -> Result<bool> {
    const STEP: usize = 1 << 20;
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps"))?;
    let mut memory = File::open(format!("/proc/{pid}/mem")).context("the memory of a hop")?;
    let mut buffer = vec![0; STEP + needle.len()];
    for line in maps.lines().filter(|line| line.contains(" rw")) {
        let range = line.split(' ').next().and_then(|range| range.split_once('-'));
        let Some((from, to)) = range else { continue };
        let (from, to) = (u64::from_str_radix(from, 16)?, u64::from_str_radix(to, 16)?);
        let mut at = from;
        while at < to {
            let want = buffer.len().min((to - at) as usize);
            if memory.seek(SeekFrom::Start(at)).is_err() {
                break;
            }
            let Ok(len) = memory.read(&mut buffer[..want]) else { break };
            if buffer[..len].windows(needle.len()).any(|window| window == needle) {
                return Ok(true);
            }
            at += STEP as u64;
        }
    }
    Ok(false)
}

/// Sends marked datagrams of all sizes, and waits for their echoes.
fn talk(mesh: &Mesh, for_time: Duration) -> Result<usize> {
    let bind = |i: usize, address: SocketAddr| -> Result<UdpSocket> {
        let socket = mesh.hosts[i].namespace().run(|| UdpSocket::bind(address))??;
        socket.set_read_timeout(Some(Duration::from_millis(200)))?;
        Ok(socket)
    };
    let there = bind(outside(mesh), (server(mesh), 7777).into())?;
    let here = bind(CLIENT, ([0, 0, 0, 0], 0).into())?;
    let (mut buffer, mut answered, mut i) = (vec![0; 2048], 0, 0_usize);
    let start = Instant::now();
    while start.elapsed() < for_time {
        i += 1;
        let mut payload = MARK.to_vec();
        payload.resize(MARK.len() + i * 97 % 1150, b'.');
        here.send_to(&payload, (server(mesh), 7777))?;
        if let Ok((len, from)) = there.recv_from(&mut buffer) {
            there.send_to(&buffer[..len], from)?;
            answered += usize::from(here.recv_from(&mut buffer).is_ok());
        }
    }
    Ok(answered)
}

/// Sizes of UDP payloads between two hosts while `meanwhile` goes on.
fn sizes(
    mesh: &Mesh,
    a: usize,
    b: usize,
    meanwhile: impl FnOnce() -> Result<()>,
) -> Result<BTreeSet<usize>> {
    let filter =
        format!("udp and host {} and host {}", mesh.places[a].ipv4(), mesh.places[b].ipv4());
    let mut command = mesh.hosts[a].command("tcpdump");
    command.args(["-nn", "-l", "-i", "wan0", &filter]);
    let mut child = KilledOnDrop(command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?);
    let mut output = child.0.stdout.take().context("no output")?;
    let reader = std::thread::spawn(move || {
        let mut text = String::new();
        let _ = output.read_to_string(&mut text);
        text
    });
    std::thread::sleep(Duration::from_millis(500));
    meanwhile()?;
    std::thread::sleep(Duration::from_millis(300));
    drop(child);
    let text = reader.join().unwrap_or_default();
    let length = |line: &str| line.rsplit_once("length ")?.1.trim().parse().ok();
    Ok(text.lines().filter_map(length).collect())
}

fn hops_know_only_what_they_must() -> Result<()> {
    let mesh = cast(Duration::from_millis(6))?;
    mesh.node(CLIENT).warren(&["connect", "--exit", "de", "--kill-switch"])?;
    let quiet = |ms| {
        std::thread::sleep(Duration::from_millis(ms));
        Ok(())
    };
    let now = report(&mesh, CLIENT)?;
    let hops: Vec<usize> = path(&now).iter().map(|name| place(&mesh, name)).collect();
    ensure!(hops.len() == 3, "{now:?}");
    let mut answered = 0;
    for (a, b) in [(CLIENT, hops[0]), (hops[0], hops[1]), (hops[1], hops[2])] {
        let before = sizes(&mesh, a, b, || quiet(2500))?;
        let with = sizes(&mesh, a, b, || {
            answered = talk(&mesh, Duration::from_secs(2))?;
            Ok(())
        })?;
        ensure!(answered >= 20, "only {answered} answers");
        // The control plane may say something new meanwhile, in datagrams of its
        // own; a hundred sizes of inner packets would show as more than that.
        // Several cells may be seen as one train.
        let new = with.difference(&before).filter(|size| *size % CELL != 0);
        let new: Vec<usize> = new.copied().collect();
        ensure!(with.contains(&CELL) && new.len() <= 8, "{a} to {b}: {new:?} beside {CELL}");
    }
    let destination = server(&mesh).octets();
    for (i, hop) in hops.iter().enumerate() {
        let pid = mesh.node(*hop).pid();
        let (payload, address) = (remembers(pid, MARK)?, remembers(pid, &destination)?);
        println!("  hop {}: payload in memory {payload}, destination {address}", i + 1);
        if i < 2 {
            ensure!(!payload, "hop {} has the payload in its memory", i + 1);
            ensure!(!address, "hop {} has the destination in its memory", i + 1);
        }
    }
    // The search finds what is there: the client has both.
    let pid = mesh.node(CLIENT).pid();
    ensure!(remembers(pid, MARK)? && remembers(pid, &destination)?, "the search finds nothing");
    // No hop says whose circuits it carries.
    for hop in &hops {
        let log = mesh.node(*hop).log();
        ensure!(!log.contains("circuit") && !log.contains("session"), "{log}");
    }
    Ok(())
}
