//! Onion paths of nodes without an interface: a client whose programs use its
//! proxy, and an exit that serves by ordinary sockets, neither of them with any
//! privilege; relays with interfaces between them, a server outside.

use std::io::{ErrorKind, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use warren_lab::topology::{Host, output_of};
use warren_types::api::OnionState;

use crate::mesh::{Actor, Mesh};
use crate::names::{eventually, have};
use crate::onion::{path, report};
use crate::proxies::{
    SOCKS, STALLED, Server, as_nobody, connect_request, download, download_and, give_to_nobody,
    pattern, request, socks,
};

pub(crate) const SCENARIOS: &[crate::Scenario] =
    &[("userspace_nodes_join_onion_paths", nodes_join_onion_paths)];

const MS: Duration = Duration::from_millis(1);
const BYTES: usize = 20_000_000;
/// A name that only the resolver at the exit knows.
const NAME: &str = "files.example.org";

const HOPS: [(&str, &str, &str); 5] = [
    ("entry-nl", "entry,relay", "nl"),
    ("entry-fr", "entry,relay", "fr"),
    ("relay-us", "relay", "us"),
    ("relay-jp", "relay", "jp"),
    ("exit-de", "exit", "de"),
];
const CLIENT: usize = 0;
const EXIT: usize = HOPS.len();
const SERVER: usize = HOPS.len() + 1;

/// Answers every question for an IPv4 address with one; remembers who asked.
pub(crate) struct Resolver {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Vec<IpAddr>>>,
}

impl Resolver {
    pub(crate) fn start(host: &Host, at: Ipv4Addr, answer: Ipv4Addr) -> Result<Self> {
        let socket = host.namespace().run(|| UdpSocket::bind((at, 53)))??;
        socket.set_read_timeout(Some(100 * MS))?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            let (mut buffer, mut askers) = ([0; 1500], Vec::new());
            while !stopped.load(Ordering::Relaxed) {
                let Ok((n, from)) = socket.recv_from(&mut buffer) else { continue };
                askers.push(from.ip());
                // The question again, as an answer with one record (RFC 1035).
                let mut reply = buffer[..n].to_vec();
                reply[2..12].copy_from_slice(&[0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0]);
                reply.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
                reply.extend_from_slice(&answer.octets());
                let _lost = socket.send_to(&reply, from);
            }
            askers
        });
        Ok(Self { stop, thread: Some(thread) })
    }

    /// Ends it; who asked.
    pub(crate) fn askers(mut self) -> Vec<IpAddr> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().and_then(|thread| thread.join().ok()).unwrap_or_default()
    }
}

impl Drop for Resolver {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Echoes datagrams on port 7; remembers who sent them.
pub(crate) struct Echo {
    pub(crate) at: Ipv4Addr,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Vec<IpAddr>>>,
}

impl Echo {
    pub(crate) fn start(host: &Host, at: Ipv4Addr) -> Result<Self> {
        let socket = host.namespace().run(|| UdpSocket::bind((at, 7)))??;
        socket.set_read_timeout(Some(100 * MS))?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            let (mut buffer, mut senders) = ([0; 2000], Vec::new());
            while !stopped.load(Ordering::Relaxed) {
                let Ok((n, from)) = socket.recv_from(&mut buffer) else { continue };
                senders.push(from.ip());
                let _lost = socket.send_to(&buffer[..n], from);
            }
            senders
        });
        Ok(Self { at, stop, thread: Some(thread) })
    }

    /// Ends it; who sent.
    pub(crate) fn senders(mut self) -> Vec<IpAddr> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().and_then(|thread| thread.join().ok()).unwrap_or_default()
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn mesh_address(mesh: &Mesh, i: usize) -> Result<Ipv4Addr> {
    match mesh.address(i)? {
        IpAddr::V4(v4) => Ok(v4),
        IpAddr::V6(v6) => bail!("{v6}"),
    }
}

fn cast(rtt: Duration) -> Result<Mesh> {
    let mut names = vec!["client"];
    names.extend(HOPS.iter().map(|hop| hop.0));
    names.push("server");
    let actors: Vec<_> = names.iter().map(|name| Actor::public(name)).collect();
    let mut mesh = Mesh::hosts(&actors, rtt)?;
    let dir = mesh.scratch.path().to_owned();
    let wrapper = as_nobody(&mesh.hosts[CLIENT], &dir)?;
    for (i, (_, roles, country)) in HOPS.iter().enumerate() {
        let arguments = &mut mesh.specs[i + 1].arguments;
        arguments.extend(["--roles", roles, "--region", country].map(Into::into));
    }
    for i in [CLIENT, EXIT] {
        let spec = &mut mesh.specs[i];
        spec.interface = String::new();
        spec.arguments.push("--userspace".into());
        if let Some(wrapper) = &wrapper {
            spec.binary.clone_from(wrapper);
            give_to_nobody(&spec.state_dir)?;
        }
    }
    mesh.specs[CLIENT].arguments.extend(["--socks", SOCKS].map(Into::into));
    // The emulated network's addresses are of a range that exits refuse.
    let (rules, config) = (dir.join("exit.rules"), dir.join("exit.toml"));
    std::fs::write(&rules, "allow-private-destinations\nreject *:25\naccept *:*\n")?;
    std::fs::write(&config, format!("exit.resolver = \"{}\"\n", mesh.places[SERVER].ipv4()))?;
    for (flag, file) in [("--exit-policy", rules), ("--config", config)] {
        readable(&file)?;
        mesh.specs[EXIT].arguments.extend([flag.into(), file.into()]);
    }
    for host in &mesh.hosts {
        host.run("ip", &["route", "add", "default", "dev", "wan0"])?;
    }
    mesh.found(SERVER)?;
    Ok(mesh)
}

pub(crate) fn readable(file: &PathBuf) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    Ok(std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o644))?)
}

/// A connection through the client's proxy, or the code of the refusal.
fn dial(mesh: &Mesh, to: &str, port: u16) -> Result<std::result::Result<TcpStream, u8>> {
    let dialed = socks(&mesh.hosts[CLIENT], None, &connect_request(to, port))?;
    Ok(dialed.map(|(stream, _)| stream))
}

fn dialed(mesh: &Mesh, to: &str, port: u16) -> Result<TcpStream> {
    dial(mesh, to, port)?.map_err(|code| {
        let explained = mesh.node(CLIENT).warren(&["path", "show"]).unwrap_or_default();
        let logs = [CLIENT, EXIT].map(|i| mesh.node(i).log()).join("\n");
        anyhow::anyhow!("{to}:{port} refused with {code}\n{explained}\n{logs}")
    })
}

/// What is not of the mesh is refused, and nothing arrives at the server.
fn expect_nothing_leaves(mesh: &Mesh) -> Result<()> {
    let at = mesh.places[SERVER].ipv4();
    let listener = mesh.hosts[SERVER].namespace().run(|| TcpListener::bind((at, 0)))??;
    listener.set_nonblocking(true)?;
    let port = listener.local_addr()?.port();
    for to in [at.to_string().as_str(), NAME] {
        let refused = dial(mesh, to, port)?.err();
        ensure!(refused == Some(3), "{to}: {refused:?}");
    }
    std::thread::sleep(200 * MS);
    let came = listener.accept().err().map(|error| error.kind());
    ensure!(came == Some(ErrorKind::WouldBlock), "somebody connected: {came:?}");
    Ok(())
}

fn nodes_join_onion_paths() -> Result<()> {
    let mut mesh = cast(20 * MS)?;
    let at = mesh.places[SERVER].ipv4();
    let server = Server::start(&mesh.hosts[SERVER], SocketAddr::new(at.into(), 8000))?;
    let resolver = Resolver::start(&mesh.hosts[SERVER], at, at)?;
    let port = server.address.port();

    // Without a path there is none, and nothing of the machine to guard.
    expect_nothing_leaves(&mesh)?;
    let client = mesh.node(CLIENT);
    let refused = client.warren(&["connect", "--kill-switch"]).err().context("not refused")?;
    ensure!(format!("{refused:#}").contains("userspace mode"), "{refused:#}");

    println!("{}", client.warren(&["connect", "--exit", "de"])?);
    let now = report(&mesh, CLIENT)?;
    ensure!(now.state == OnionState::Connected && now.exit.as_deref() == Some("exit-de"));
    ensure!(path(&now).len() == 3, "{:?}", path(&now));

    // The server sees the exit.
    let listener = mesh.hosts[SERVER].namespace().run(|| TcpListener::bind((at, 0)))??;
    let stream = dialed(&mesh, &at.to_string(), listener.local_addr()?.port())?;
    let seen = listener.accept()?.1.ip();
    let exit: IpAddr = mesh.places[EXIT].ipv4().into();
    ensure!(seen == exit, "seen as {seen}, the exit is {exit}");
    drop(stream);

    // A name that the exit's resolver knows, and a file, as programs do it.
    download(dialed(&mesh, NAME, port)?, 1_000_000)?;
    if have("curl", "curl") {
        let (file, expected) = (mesh.scratch.path().join("file"), bytes());
        let mut curl = mesh.hosts[CLIENT].command("curl");
        curl.args(["-sS", "--fail", "--max-time", "60", "--proxy"])
            .arg(format!("socks5h://{SOCKS}"));
        curl.arg("-o").arg(&file).arg(format!("http://{NAME}:{port}/{BYTES}"));
        let start = Instant::now();
        output_of(&mut curl)?;
        let mbps = BYTES as f64 * 8.0 / start.elapsed().as_secs_f64() / 1e6;
        println!("    curl through SOCKS, three hops and a userspace exit: {mbps:.0} Mbit/s");
        ensure!(std::fs::read(&file)? == expected, "another file arrived");
    }
    let askers = resolver.askers();
    ensure!(!askers.is_empty() && askers.iter().all(|asker| *asker == exit), "{askers:?} asked");

    // Datagrams, too; outside and in the mesh by turns from one association.
    let echoing = Echo::start(&mesh.hosts[SERVER], at)?;
    let meshwards = Echo::start(&mesh.hosts[1], mesh_address(&mesh, 1)?)?;
    let (_control, relay) = socks(&mesh.hosts[CLIENT], None, &request(3, "0.0.0.0", 0))?
        .map_err(|code| anyhow::anyhow!("association: {code}"))?;
    let program = mesh.hosts[CLIENT].namespace().run(|| UdpSocket::bind("127.0.0.1:0"))??;
    program.set_read_timeout(Some(Duration::from_secs(5)))?;
    for (to, round) in [(&echoing, 1), (&meshwards, 2), (&echoing, 3), (&meshwards, 4)] {
        let mut datagram = vec![0, 0, 0, 1];
        datagram.extend_from_slice(&to.at.octets());
        datagram.extend_from_slice(&7u16.to_be_bytes());
        datagram.extend_from_slice(&[round; 900]);
        program.send_to(&datagram, relay)?;
        let mut buffer = [0; 2000];
        let n = program.recv(&mut buffer).with_context(|| format!("round {round}"))?;
        ensure!(buffer[..n] == datagram, "round {round}: {n} bytes");
    }
    ensure!(echoing.senders().iter().all(|sender| *sender == exit), "datagrams not of the exit");
    drop(meshwards);

    // The policy lets private addresses be reached, but not the exit's own.
    let local = Server::start(&mesh.hosts[EXIT], SocketAddr::new(exit, 8000))?;
    let refused = dial(&mesh, &exit.to_string(), local.address.port())?.err();
    ensure!(refused == Some(5), "the exit itself: {refused:?}");

    // The relay in the middle is killed in the middle of a download.
    eventually("a standby", || {
        Ok(report(&mesh, CLIENT)?.circuits.iter().any(|circuit| circuit.phase == "standby"))
    })?;
    let stream = dialed(&mesh, &at.to_string(), port)?;
    let before = report(&mesh, CLIENT)?;
    let relay = path(&before)[1].to_owned();
    let place = mesh.hosts.iter().position(|host| host.name() == relay).context("no relay")?;
    let (mut killed, mut came, mut longest) = (false, Instant::now(), Duration::ZERO);
    download_and(stream, BYTES, |got| {
        if !killed && got > BYTES / 8 {
            killed = true;
            mesh.crash(place)?;
            println!("    {relay} killed after {got} bytes");
            came = Instant::now();
        }
        longest = longest.max(came.elapsed());
        came = Instant::now();
        Ok(())
    })?;
    println!("    the longest gap in the download: {longest:.2?}");
    ensure!(killed, "the download was over before");
    let after = report(&mesh, CLIENT)?;
    ensure!(!path(&after).contains(&relay.as_str()), "{after:#?}");
    ensure!(after.exit == before.exit, "{after:#?}");

    // A connection ends with the session, and then nothing leaves again.
    let mut open = dialed(&mesh, &at.to_string(), port)?;
    open.set_read_timeout(Some(STALLED))?;
    let client = mesh.node(CLIENT);
    client.warren(&["disconnect"])?;
    let ended = std::io::Read::read(&mut open, &mut [0; 1]);
    ensure!(!matches!(ended, Ok(1..)), "{ended:?}");
    if let Err(error) = &ended
        && error.kind() == ErrorKind::WouldBlock
    {
        bail!("the connection was left open");
    }
    let _gone = open.write_all(b"1\n");
    expect_nothing_leaves(&mesh)?;

    // And again; but not over an exit that gave up its role.
    mesh.node(CLIENT).warren(&["connect", "--exit", "exit-de"])?;
    download(dialed(&mesh, &at.to_string(), port)?, 1_000_000)?;
    mesh.node(EXIT).warren(&["roles", "set", "--roles", "relay"])?;
    let start = Instant::now();
    eventually("the exit serves no more", || {
        Ok(dial(&mesh, &at.to_string(), port)?.err() == Some(4))
    })?;
    let took = start.elapsed();
    println!("    refused {took:.2?} after the exit gave up its role");
    ensure!(took < Duration::from_secs(5), "{took:?}");
    Ok(())
}

fn bytes() -> Vec<u8> {
    (0..BYTES).map(pattern).collect()
}
