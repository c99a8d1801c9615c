//! A path of its own for each user name: programs of a node without an
//! interface give its proxies different user names, and a server outside tells
//! where each of them comes from.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use warren_types::api::{IsolatedReport, OnionCircuit, OnionReport, OnionState};

use crate::mesh::Mesh;
use crate::names::eventually;
use crate::onion::{CLIENT, Part, cast_with, outside, place, report, server};
use crate::onion_userspace::{Echo, Resolver, readable};
use crate::proxies::{
    SOCKS, STALLED, Server, as_nobody, connect_request, download, download_and, give_to_nobody,
    request, socks,
};

pub(crate) const SCENARIOS: &[crate::Scenario] =
    &[("each_user_name_has_a_path_of_its_own", each_user_name_has_its_own)];

const HOPS: [Part; 9] = [
    ("entry-nl", "entry,relay", "nl"),
    ("entry-fr", "entry,relay", "fr"),
    ("relay-us", "relay", "us"),
    ("relay-jp", "relay", "jp"),
    ("relay-gb", "relay", "gb"),
    ("relay-ca", "relay", "ca"),
    ("exit-de", "exit", "de"),
    ("exit-sg", "exit", "sg"),
    ("exit-br", "exit", "br"),
];
const HTTP: &str = "127.0.0.1:8118";
const BYTES: usize = 20_000_000;
/// User names with a path of their own at one time.
const MOST: usize = 16;

/// What a program logs in with.
type User = Option<&'static str>;

fn cast() -> Result<Mesh> {
    cast_with(&HOPS, Duration::from_millis(20), |mesh| {
        let dir = mesh.scratch.path().to_owned();
        let wrapper = as_nobody(&mesh.hosts[CLIENT], &dir)?;
        let at = server(mesh);
        let config = dir.join("exit.toml");
        std::fs::write(&config, format!("exit.resolver = \"{at}\"\n"))?;
        readable(&config)?;
        for (i, (_, roles, _)) in HOPS.iter().enumerate() {
            if *roles == "exit" {
                mesh.specs[i + 1].arguments.extend(["--config".into(), config.clone().into()]);
            }
        }
        let client = &mut mesh.specs[CLIENT];
        client.interface = String::new();
        let arguments = ["--userspace", "--socks", SOCKS, "--http", HTTP];
        client.arguments.extend(arguments.map(Into::into));
        if let Some(wrapper) = wrapper {
            client.binary = wrapper;
            give_to_nobody(&client.state_dir)?;
        }
        Ok(())
    })
}

/// A connection through the client's proxy, or the code of the refusal.
fn dial(
    mesh: &Mesh,
    user: User,
    to: &str,
    port: u16,
) -> Result<std::result::Result<TcpStream, u8>> {
    let login = user.map(|user| (user, "whatever"));
    let dialed = socks(&mesh.hosts[CLIENT], login, &connect_request(to, port))?;
    Ok(dialed.map(|(stream, _)| stream))
}

fn dialed(mesh: &Mesh, user: User, to: SocketAddr) -> Result<TcpStream> {
    dial(mesh, user, &to.ip().to_string(), to.port())?.map_err(|code| {
        let explained = mesh.node(CLIENT).warren(&["path", "show"]).unwrap_or_default();
        anyhow::anyhow!("{user:?} refused with {code}\n{explained}\n{}", mesh.node(CLIENT).log())
    })
}

/// What a program hears of the HTTP proxy; the connection stays open.
fn over_http(mesh: &Mesh, authorization: &str, to: SocketAddr) -> Result<(TcpStream, String)> {
    let client = mesh.hosts[CLIENT].namespace();
    let mut stream = client.run(|| TcpStream::connect(HTTP))??;
    stream.set_read_timeout(Some(STALLED))?;
    let request = format!(
        "CONNECT {to} HTTP/1.1\r\nHost: {to}\r\nProxy-Authorization: {authorization}\r\n\r\n"
    );
    stream.write_all(request.as_bytes())?;
    let mut buffer = [0; 2000];
    let n = stream.read(&mut buffer)?;
    Ok((stream, String::from_utf8_lossy(&buffer[..n]).into_owned()))
}

fn listen(mesh: &Mesh) -> Result<TcpListener> {
    let at = server(mesh);
    let host = mesh.hosts[outside(mesh)].namespace();
    host.run(|| TcpListener::bind((at, 0)))?.context("cannot listen")
}

/// The address under which the server sees who connects.
fn seen_as(mesh: &Mesh, user: User) -> Result<IpAddr> {
    let listener = listen(mesh)?;
    let _stream = dialed(mesh, user, listener.local_addr()?)?;
    Ok(listener.accept()?.1.ip())
}

fn address(mesh: &Mesh, name: &str) -> IpAddr {
    mesh.places[place(mesh, name)].ipv4().into()
}

fn isolated<'a>(report: &'a OnionReport, user: &str) -> Result<&'a IsolatedReport> {
    report.isolated.iter().find(|one| one.user == user).with_context(|| format!("no {user}"))
}

/// Circuits, carried bytes and exit of a user name, or of nobody.
fn of(report: &OnionReport, user: User) -> Result<(&[OnionCircuit], u64, &str)> {
    let (circuits, bytes, exit) = match user {
        None => (&report.circuits, report.rx_bytes, &report.exit),
        Some(user) => {
            let one = isolated(report, user)?;
            (&one.circuits, one.rx_bytes, &one.exit)
        }
    };
    Ok((circuits, bytes, exit.as_deref().context("no exit")?))
}

/// Serial and nodes of the circuit in use.
fn active(report: &OnionReport, user: User) -> Result<(u64, Vec<String>)> {
    let circuit = of(report, user)?.0.first().filter(|circuit| circuit.phase == "active");
    let circuit = circuit.with_context(|| format!("{user:?} has no circuit: {report:#?}"))?;
    Ok((circuit.serial, circuit.hops.iter().map(|hop| hop.name.clone()).collect()))
}

/// The report once the ends of earlier connections have passed.
fn settled(mesh: &Mesh) -> Result<OnionReport> {
    let mut last = report(mesh, CLIENT)?;
    eventually("silence", || {
        std::thread::sleep(Duration::from_millis(500));
        let before = std::mem::replace(&mut last, report(mesh, CLIENT)?);
        let bytes = |report: &OnionReport| -> Result<Vec<u64>> {
            ALL.into_iter().map(|user| Ok(of(report, user)?.1)).collect()
        };
        Ok(bytes(&before)? == bytes(&last)?)
    })?;
    Ok(last)
}

fn received(circuits: &[OnionCircuit]) -> u64 {
    circuits.iter().map(|circuit| circuit.rx_cells).sum()
}

const ANNA: User = Some("anna");
const BERT: User = Some("bert");
const ALL: [User; 3] = [None, ANNA, BERT];

fn each_user_name_has_its_own() -> Result<()> {
    let mut mesh = cast()?;
    let at = server(&mesh);
    let files = Server::start(&mesh.hosts[outside(&mesh)], SocketAddr::new(at.into(), 8000))?;
    let files_at = files.address;

    // Without a path nobody has one.
    for user in ALL {
        let refused = dial(&mesh, user, &at.to_string(), 8000)?.err();
        ensure!(refused == Some(3), "{user:?}: {refused:?}");
    }
    println!("{}", mesh.node(CLIENT).warren(&["connect"])?);
    ensure!(report(&mesh, CLIENT)?.isolated.is_empty(), "nobody has given a user name");

    // Each leaves elsewhere, and the same user name always there.
    let begun = Instant::now();
    let mut seen = Vec::new();
    for user in ALL {
        seen.push(seen_as(&mesh, user)?);
        ensure!(seen_as(&mesh, user)? == seen[seen.len() - 1], "{user:?} moved");
    }
    println!("    two paths more after {:.2?}", begun.elapsed());
    let now = report(&mesh, CLIENT)?;
    for (user, seen) in ALL.into_iter().zip(&seen) {
        let exit = of(&now, user)?.2;
        ensure!(*seen == address(&mesh, exit), "{user:?} is seen as {seen}, not {exit}");
    }
    ensure!(seen[0] != seen[1] && seen[0] != seen[2] && seen[1] != seen[2], "{seen:?}");
    let closed = listen(&mesh)?.local_addr()?;
    let (_web, answer) = over_http(&mesh, "Basic YW5uYTp4", closed)?;
    ensure!(answer.starts_with("HTTP/1.1 502"), "nobody listens any more: {answer}");
    let listener = listen(&mesh)?;
    let (_web, answer) = over_http(&mesh, "Basic YW5uYTp4", listener.local_addr()?)?;
    ensure!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    ensure!(listener.accept()?.1.ip() == seen[1], "the other proxy gives another path");

    // Names are looked up at the exit of whoever asks.
    for (user, seen) in ALL.into_iter().zip(&seen) {
        let resolver = Resolver::start(&mesh.hosts[outside(&mesh)], at, at)?;
        let name = format!("{}.example.org", user.unwrap_or("nobody"));
        let stream = dial(&mesh, user, &name, 8000)?;
        download(stream.map_err(|code| anyhow::anyhow!("{name}: {code}"))?, 10_000)?;
        let askers = resolver.askers();
        ensure!(!askers.is_empty() && askers.iter().all(|asker| asker == seen), "{askers:?}");
    }

    // Datagrams, too.
    for (user, seen) in ALL.into_iter().zip(&seen) {
        let echo = Echo::start(&mesh.hosts[outside(&mesh)], at)?;
        let login = user.map(|user| (user, "whatever"));
        let (_control, relay) = socks(&mesh.hosts[CLIENT], login, &request(3, "0.0.0.0", 0))?
            .map_err(|code| anyhow::anyhow!("association: {code}"))?;
        let program = mesh.hosts[CLIENT].namespace().run(|| UdpSocket::bind("127.0.0.1:0"))??;
        program.set_read_timeout(Some(Duration::from_secs(5)))?;
        let datagram = [&[0, 0, 0, 1][..], &echo.at.octets(), &[0, 7], b"hello"].concat();
        program.send_to(&datagram, relay)?;
        let mut buffer = [0; 100];
        let n = program.recv(&mut buffer).with_context(|| format!("{user:?}"))?;
        ensure!(buffer[..n] == datagram, "{user:?}: {n} bytes");
        let senders = echo.senders();
        ensure!(!senders.is_empty() && senders.iter().all(|one| one == seen), "{senders:?}");
    }

    // What one receives comes over its own circuits.
    for user in ALL {
        let before = settled(&mesh)?;
        download(dialed(&mesh, user, files_at)?, BYTES / 4)?;
        let after = report(&mesh, CLIENT)?;
        for other in ALL {
            let (was, is) = (of(&before, other)?, of(&after, other)?);
            let (bytes, cells) = (is.1 - was.1, received(is.0).saturating_sub(received(was.0)));
            if other == user {
                ensure!(bytes as usize > BYTES / 4 && cells > 2000, "{bytes} in {cells}");
            } else {
                // Echoes keep an idle path's times.
                ensure!(bytes == 0 && cells < 500, "{other:?}: {bytes} in {cells} by {user:?}");
            }
        }
    }

    // A relay of the one dies while both download.
    eventually("circuits that stand by, over other nodes", || {
        let now = report(&mesh, CLIENT)?;
        let stands = |user| -> Result<bool> {
            let circuits = of(&now, user)?.0;
            Ok(["standby", "ready"].iter().all(|it| circuits.iter().any(|c| c.phase == *it)))
        };
        let (anna, bert) = (active(&now, ANNA)?.1, active(&now, BERT)?.1);
        let apart = anna[1..].iter().all(|name| !bert.contains(name));
        Ok(stands(ANNA)? && stands(BERT)? && apart)
    })?;
    let before = report(&mesh, CLIENT)?;
    let anna = active(&before, ANNA)?.1;
    println!("{}", mesh.node(CLIENT).warren(&["path", "show"])?);
    let stream = dialed(&mesh, BERT, files_at)?;
    let other = std::thread::spawn(move || -> Result<Duration> {
        let (mut came, mut longest) = (Instant::now(), Duration::ZERO);
        download_and(stream, BYTES, |_| {
            longest = longest.max(came.elapsed());
            came = Instant::now();
            Ok(())
        })?;
        Ok(longest)
    });
    let stream = dialed(&mesh, ANNA, files_at)?;
    let victim = place(&mesh, &anna[1]);
    let mut killed = false;
    download_and(stream, BYTES, |got| {
        if !killed && got > BYTES / 8 {
            killed = true;
            mesh.crash(victim)?;
        }
        Ok(())
    })?;
    let longest = other.join().map_err(|_| anyhow::anyhow!("panicked"))??;
    println!("    {} killed under anna; bert's longest gap: {longest:.2?}", anna[1]);
    ensure!(killed, "the download was over before");
    let after = report(&mesh, CLIENT)?;
    // A busy machine may move circuits for the time they take; not for a node
    // that is not on them.
    ensure!(longest < Duration::from_secs(1), "bert waited {longest:?}");
    ensure!(of(&after, BERT)?.2 == of(&before, BERT)?.2, "bert's exit changed: {after:#?}");
    ensure!(!active(&after, ANNA)?.1.contains(&anna[1]), "{after:#?}");
    // The move is told as anna's; the daemon's own log has no user names.
    let events = mesh.node(CLIENT).warren(&["events"])?;
    let moved = |line: &str| line.contains("path of user \"anna\": moved from");
    ensure!(events.lines().any(moved), "not told:\n{events}");
    let log = mesh.node(CLIENT).log();
    ensure!(log.contains("path of a user name: moved from"), "{log}");
    ensure!(!log.contains("anna") && !log.contains("bert"), "a user name is logged:\n{log}");

    // An exit of the one dies: it goes on at another, the other stays.
    let gone = place(&mesh, of(&after, ANNA)?.2);
    let begun = Instant::now();
    mesh.crash(gone)?;
    eventually("another exit for anna", || Ok(dial(&mesh, ANNA, &at.to_string(), 8000)?.is_ok()))?;
    let took = begun.elapsed();
    println!("    anna leaves elsewhere {took:.2?} after her exit was killed");
    ensure!(took < Duration::from_secs(8), "{took:?}");
    ensure!(seen_as(&mesh, ANNA)? != seen[1], "through a dead exit");
    ensure!(seen_as(&mesh, BERT)? == seen[2], "bert's exit changed");

    // As many as there can be; not one more, and not on another's path.
    let names: Vec<&'static str> =
        (3..=MOST).map(|n| &*Box::leak(format!("user-{n}").into_boxed_str())).collect();
    let begun = Instant::now();
    for name in &names {
        download(dialed(&mesh, Some(name), files_at)?, 10_000)?;
    }
    println!("    {} paths more after {:.2?}", names.len(), begun.elapsed());
    let listener = listen(&mesh)?;
    listener.set_nonblocking(true)?;
    let to = listener.local_addr()?;
    let begun = Instant::now();
    let refused = dial(&mesh, Some("user-17"), &at.to_string(), to.port())?.err();
    ensure!(refused == Some(2), "{refused:?}");
    let (_web, answer) = over_http(&mesh, "Basic dXNlci0xNzp4", to)?;
    ensure!(answer.starts_with("HTTP/1.1 503") && answer.contains("16 user names"), "{answer}");
    ensure!(begun.elapsed() < Duration::from_secs(2), "only after {:?}", begun.elapsed());
    std::thread::sleep(Duration::from_millis(200));
    let came = listener.accept().err().map(|error| error.kind());
    ensure!(came == Some(ErrorKind::WouldBlock), "it left all the same: {came:?}");
    let text = mesh.node(CLIENT).warren(&["path", "show"])?;
    ensure!(text.contains("16 of 16") && text.contains("\"user-16\""), "{text}");
    ensure!(!mesh.node(CLIENT).log().contains("user-16"), "user names are in the log");
    for user in [None, ANNA, BERT, Some("user-16")] {
        download(dialed(&mesh, user, files_at)?, 10_000)?;
    }

    // All of them take other circuits when asked to,
    let before = report(&mesh, CLIENT)?;
    mesh.node(CLIENT).warren(&["path", "rotate"])?;
    eventually("other circuits", || {
        let now = report(&mesh, CLIENT)?;
        let mut moved = true;
        for user in ALL {
            let (was, is) = (active(&before, user)?, active(&now, user));
            moved &= is.is_ok_and(|is| is.0 != was.0);
        }
        Ok(moved)
    })?;
    // and end together.
    let mut open = dialed(&mesh, BERT, files_at)?;
    mesh.node(CLIENT).warren(&["disconnect"])?;
    let ended = open.read(&mut [0; 1]);
    ensure!(!matches!(ended, Ok(1..)), "{ended:?}");
    let now = report(&mesh, CLIENT)?;
    ensure!(now.isolated.is_empty() && now.state == OnionState::Off, "{now:#?}");
    for user in ALL {
        let refused = dial(&mesh, user, &at.to_string(), 8000)?.err();
        ensure!(refused == Some(3), "{user:?}: {refused:?}");
    }
    Ok(())
}
