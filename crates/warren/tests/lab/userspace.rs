//! Members without an interface: programs reach the mesh through proxies, and
//! the mesh reaches what they publish.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use warren_lab::process::Node;
use warren_lab::topology::{Host, Pair, Underlay};
use warren_lab::wan::{Attachment, Wan};
use warren_os::files::TemporaryDir;
use warren_os::icmp::Pinger;

use crate::names::{eventually, have};
use crate::proxies::{
    NOBODY, SOCKS, STALLED, Server, as_nobody, connect_request, direct, download, give_to_nobody,
    pattern, request, socks, upload,
};
use crate::story::{PATIENCE, spec};

pub(crate) const SCENARIOS: &[crate::Scenario] = &[
    ("programs_reach_the_mesh_through_proxies", programs_reach_the_mesh),
    ("a_userspace_member_needs_no_privileges", no_privileges),
    ("datagrams_pass_through_socks", datagrams_pass),
    ("a_userspace_node_comes_back_after_a_crash", comes_back),
    ("a_userspace_stream_is_fast", is_fast),
    ("a_userspace_exit_serves_leases", super::userspace_exit::serves_leases),
];

/// Minutes; with `--long` only.
pub(crate) const LONG: &[crate::Scenario] = &[("a_userspace_stream_fills_a_long_path", fills)];

const HTTP: &str = "127.0.0.1:8080";
/// Tells an echoing server to stop.
const END: &[u8] = b"end of test";

/// A TUN member on the left, one in userspace mode on the right.
struct Mixed {
    left: Node,
    right: Node,
    scratch: TemporaryDir,
    pair: Pair,
}

impl Mixed {
    fn start(arguments: &[&str]) -> Result<Self> {
        let pair = Pair::create(1500, Underlay::Direct)?;
        let scratch = TemporaryDir::create("warren-lab")?;
        let left = spec(&pair.left, Pair::LEFT, &scratch).up(None, PATIENCE)?;
        let code = left.join_code(PATIENCE)?;
        let mut right = spec(&pair.right, Pair::RIGHT, &scratch);
        right.interface = String::new();
        let all = ["--userspace", "--socks", SOCKS, "--http", HTTP];
        right.arguments = all.iter().chain(arguments).map(Into::into).collect();
        let right = right.join(&code, PATIENCE)?;
        let mut mixed = Self { left, right, scratch, pair };
        mixed.right.wait_connected("left", PATIENCE)?;
        Ok(mixed)
    }

    /// A connection from the right through its SOCKS proxy, or the code of the
    /// refusal.
    fn socks(&self, to: &str, port: u16) -> Result<std::result::Result<TcpStream, u8>> {
        socks(&self.pair.right, None, &connect_request(to, port)).map(|r| r.map(|(s, _)| s))
    }
}

fn programs_reach_the_mesh() -> Result<()> {
    let mixed = Mixed::start(&["--publish", "tcp:80=127.0.0.1:8000", "--log-level", "info"])?;
    let (left, right) = (&mixed.pair.left, &mixed.pair.right);
    let status = mixed.right.status()?;
    ensure!(status.node.mode.starts_with("userspace socks=127.0.0.1:1080"), "{:?}", status.node);
    let domain = status.names.domain;
    let any = |port| SocketAddr::new(IpAddr::from([0; 16]), port);
    let server = Server::start(left, any(9000))?;
    let port = server.address.port();
    let name = format!("left.{domain}");
    let [v4, v6] = [false, true].map(|ipv6| mixed.left.overlay_address(ipv6));
    let (v4, v6) = (v4?, v6?);

    // By name and by address, each byte checked.
    for to in [name.as_str(), "left", "LEFT", &v4.to_string(), &v6.to_string()] {
        let stream = mixed.socks(to, port)?.map_err(|code| anyhow::anyhow!("{to}: {code}"))?;
        download(stream, 5_000_000).with_context(|| to.to_owned())?;
    }
    // Fifty at once.
    std::thread::scope(|scope| -> Result<()> {
        let fetch = || -> Result<()> {
            let stream = mixed.socks(&name, port)?.map_err(|code| anyhow::anyhow!("{code}"))?;
            download(stream, 1_000_000)
        };
        let all: Vec<_> = (0..50).map(|_| scope.spawn(fetch)).collect();
        for one in all {
            one.join().unwrap_or_else(|_| bail!("panicked"))?;
        }
        Ok(())
    })?;

    // As programs do it.
    if have("curl", "curl") {
        let file = mixed.scratch.path().join("file");
        let expected: Vec<u8> = (0..50 << 20).map(pattern).collect();
        let url = format!("http://{name}:{port}/{}", expected.len());
        for proxy in [format!("socks5h://{SOCKS}"), format!("http://{HTTP}")] {
            let mut curl = right.command("curl");
            curl.args(["-sS", "--fail", "--max-time", "60", "--proxytunnel", "--proxy", &proxy]);
            warren_lab::topology::output_of(curl.arg("-o").arg(&file).arg(&url))?;
            ensure!(std::fs::read(&file)? == expected, "{proxy}: another file arrived");
        }
    }

    // What does not work says why: nobody listens, no such member, not in the
    // mesh, not served.
    for (to, port, code) in [
        ("left", 1, 5),
        (&v6.to_string(), 1, 5),
        ("nobody", port, 4),
        ("example.org", 80, 3),
        ("10.99.0.1", port, 3),
        ("127.0.0.1", port, 2),
        ("224.0.0.1", port, 2),
    ] {
        let refused = mixed.socks(to, port)?.err();
        ensure!(refused == Some(code), "{to}:{port}: {refused:?}, not {code}");
    }
    let bind = socks(right, None, &request(2, "left", port))?.err();
    ensure!(bind == Some(7), "BIND: {bind:?}");
    for (line, status) in [
        (format!("CONNECT {name}:1 HTTP/1.1\r\nHost: x\r\n\r\n"), "502"),
        ("CONNECT left HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(), "400"),
        (format!("GET http://{name}/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"), "405"),
    ] {
        let mut stream = right.namespace().run(|| TcpStream::connect(HTTP))??;
        stream.set_read_timeout(Some(STALLED))?;
        stream.write_all(line.as_bytes())?;
        let mut head = [0; 12];
        stream.read_exact(&mut head)?;
        ensure!(head.ends_with(status.as_bytes()), "{line}: {}", String::from_utf8_lossy(&head));
    }

    // The other way: ping, a published port, one that is not, one whose local
    // server is gone.
    for ipv6 in [false, true] {
        let to = mixed.right.overlay_address(ipv6)?;
        let mut pinger = left.namespace().run(|| Pinger::open(to, 9))??;
        for size in [0, 56, 1300] {
            pinger.ping(size, Duration::from_secs(2)).with_context(|| format!("{to} {size}"))?;
        }
        let refused = left.namespace().run(|| TcpStream::connect((to, 80)))?.err();
        let refused = refused.context("nobody serves it yet")?;
        ensure!(refused.kind() == std::io::ErrorKind::ConnectionRefused, "{refused}");
        let local = Server::start(right, "127.0.0.1:8000".parse()?)?;
        download(direct(left, SocketAddr::new(to, 80))?, 5_000_000)?;
        upload(direct(left, SocketAddr::new(to, 80))?, 5_000_000)?;
        // A node reaches its own address.
        let own = mixed.socks(&to.to_string(), 80)?.map_err(|code| anyhow::anyhow!("{code}"))?;
        download(own, 1_000_000).context("to itself")?;
        let refused = left.namespace().run(|| TcpStream::connect((to, 81)))?.err();
        let refused = refused.context("not published")?;
        ensure!(refused.kind() == std::io::ErrorKind::ConnectionRefused, "{refused}");
        drop(local);
    }

    // A network behind a member is reached as well, while it is offered.
    let behind = "192.168.7.0/24";
    let mut netlink = left.netlink()?;
    let lo = netlink.link_index("lo")?;
    netlink.add_address(lo, "192.168.7.1/32".parse()?)?;
    ensure!(mixed.socks("192.168.7.1", port)?.err() == Some(3), "not offered yet");
    mixed.left.warren(&["route", "advertise", behind])?;
    mixed.left.warren(&["route", "approve", "left", behind])?;
    let mut stream = None;
    eventually("the network behind the member", || {
        stream = mixed.socks("192.168.7.1", port)?.ok();
        Ok(stream.is_some())
    })?;
    download(stream.context("no stream")?, 1_000_000)?;
    mixed.left.warren(&["route", "withdraw", behind])?;
    eventually("it is no more", || Ok(mixed.socks("192.168.7.1", port)?.err() == Some(3)))?;
    let refused = mixed.right.warren(&["route", "advertise", "192.168.8.0/24"]).err();
    ensure!(refused.is_some_and(|e| format!("{e:#}").contains("--publish")), "it forwards nothing");

    // At rest it costs next to nothing.
    let before = mixed.right.cost()?.cpu;
    std::thread::sleep(Duration::from_secs(3));
    let spent = mixed.right.cost()?.cpu - before;
    println!("    at rest for 3 s: {spent:?} of processor time");
    ensure!(spent < Duration::from_millis(150), "{spent:?} while idle");
    Ok(())
}

fn comes_back() -> Result<()> {
    let mixed = Mixed::start(&[])?;
    let Mixed { mut left, right, scratch: _scratch, pair } = mixed;
    let server = Server::start(&pair.left, "[::]:9000".parse()?)?;
    let port = server.address.port();
    // Killed in the middle of a download: the program's connection ends.
    let stream = socks(&pair.right, None, &connect_request("left", port))?;
    let (mut stream, _) = stream.map_err(|code| anyhow::anyhow!("{code}"))?;
    stream.write_all(b"1000000000\n")?;
    stream.read_exact(&mut [0; 100_000])?;
    let spec = right.crash()?;
    let mut rest = Vec::new();
    // An end or a reset, but no waiting.
    let start = Instant::now();
    let _ended = stream.read_to_end(&mut rest);
    ensure!(start.elapsed() < Duration::from_secs(5), "the program was left waiting");
    let mut again = spec.up(None, PATIENCE)?;
    again.wait_connected("left", PATIENCE)?;
    left.wait_connected("right", PATIENCE)?;
    let stream = socks(&pair.right, None, &connect_request("left", port))?;
    download(stream.map_err(|code| anyhow::anyhow!("{code}"))?.0, 5_000_000)?;
    // Ended properly, its ports are free at once.
    again.stop(PATIENCE)?.up(None, PATIENCE)?;
    Ok(())
}

fn is_fast() -> Result<()> {
    const BYTES: usize = 200_000_000;
    let mixed = Mixed::start(&["--publish", "tcp:80=127.0.0.1:8000"])?;
    let server = Server::start(&mixed.pair.left, "[::]:9000".parse()?)?;
    let port = server.address.port();
    let mut slowest = f64::MAX;
    let mut figure = |what: &str, work: &dyn Fn() -> Result<()>| -> Result<()> {
        let start = Instant::now();
        work().with_context(|| what.to_owned())?;
        let mbps = BYTES as f64 * 8.0 / start.elapsed().as_secs_f64() / 1e6;
        println!("    {what}: {mbps:.0} Mbit/s");
        slowest = slowest.min(mbps);
        Ok(())
    };
    let through = || mixed.socks("left", port)?.map_err(|code| anyhow::anyhow!("{code}"));
    figure("one SOCKS stream, towards the program", &|| download(through()?, BYTES))?;
    figure("one SOCKS stream, from the program", &|| upload(through()?, BYTES))?;
    let _local = Server::start(&mixed.pair.right, "127.0.0.1:8000".parse()?)?;
    let published = SocketAddr::new(mixed.right.overlay_address(false)?, 80);
    let to_published = || direct(&mixed.pair.left, published);
    figure("one stream from a published port", &|| download(to_published()?, BYTES))?;
    figure("one stream to a published port", &|| upload(to_published()?, BYTES))?;
    // Far below what it does, and far above what a stack that stalls would.
    ensure!(slowest > 100.0, "{slowest} Mbit/s");
    Ok(())
}

/// 200 Mbit/s and 60 ms there and back, as users have them, with and without
/// losses. What the program sends is sent by our stack, whose Cubic halts at
/// losses as any does: 1.2 / sqrt(p) segments are on their way on average, here
/// some 22 Mbit/s. The kernel's BBR beside it does not.
fn fills() -> Result<()> {
    const BYTES: usize = 100_000_000;
    for (loss, least_down, least_up) in [(0.0, 0.8, 0.8), (0.0001, 0.6, 0.05)] {
        let mut wan = Wan::new(5)?;
        let scratch = TemporaryDir::create("warren-lab")?;
        let (near, far) = (Host::create("left")?, Host::create("right")?);
        let places = [&near, &far].map(|host| wan.attach(host.namespace(), Attachment::default()));
        let [left_at, right_at] = places;
        let (left_at, right_at) = (left_at?, right_at?);
        wan.change_all(|link| {
            link.delay = Duration::from_millis(30);
            link.rate = Some(200_000_000);
            link.loss = loss;
        })?;
        let left = spec(&near, left_at.ipv4().into(), &scratch).up(None, PATIENCE)?;
        let mut right = spec(&far, right_at.ipv4().into(), &scratch);
        right.interface = String::new();
        right.arguments = ["--userspace", "--socks", SOCKS].iter().map(Into::into).collect();
        let mut right = right.join(&left.join_code(PATIENCE)?, PATIENCE)?;
        right.wait_connected("left", PATIENCE)?;
        let server = Server::start(&near, "[::]:9000".parse()?)?;
        let port = server.address.port();
        let through = || {
            let stream = socks(&far, None, &connect_request("left", port))?;
            stream.map(|(stream, _)| stream).map_err(|code| anyhow::anyhow!("{code}"))
        };
        let outside = || direct(&far, SocketAddr::new(left_at.ipv4().into(), port));
        let rate = |work: Result<()>, start: Instant| -> Result<f64> {
            work?;
            Ok(BYTES as f64 * 8.0 / start.elapsed().as_secs_f64() / 1e6)
        };
        for (what, towards, least) in [("down", true, least_down), ("up", false, least_up)] {
            let carry = |stream| match towards {
                true => download(stream, BYTES),
                false => upload(stream, BYTES),
            };
            let start = Instant::now();
            let beside = rate(carry(outside()?), start)?;
            let start = Instant::now();
            let inside = rate(carry(through()?), start)?;
            println!(
                "    loss {:.2} %, {what}: {inside:.0} Mbit/s, {beside:.0} beside the tunnel",
                loss * 100.0
            );
            ensure!(inside > least * beside, "{inside} of {beside} Mbit/s");
        }
    }
    Ok(())
}

fn datagrams_pass() -> Result<()> {
    let mixed = Mixed::start(&["--publish", "udp:53=127.0.0.1:5300"])?;
    let (left, right) = (&mixed.pair.left, &mixed.pair.right);
    let bind = |host: &Host, at: &str| -> Result<UdpSocket> {
        let at: SocketAddr = at.parse()?;
        let socket = host.namespace().run(|| UdpSocket::bind(at))??;
        socket.set_read_timeout(Some(Duration::from_secs(5)))?;
        Ok(socket)
    };
    let echo = |socket: UdpSocket| {
        std::thread::spawn(move || -> std::io::Result<()> {
            let mut buffer = vec![0; 65_536];
            loop {
                let (n, from) = socket.recv_from(&mut buffer)?;
                socket.send_to(&buffer[..n], from)?;
                if &buffer[..n] == END {
                    return Ok(());
                }
            }
        })
    };
    for ipv6 in [false, true] {
        let address = mixed.left.overlay_address(ipv6)?;
        let echoing = echo(bind(left, &SocketAddr::new(address, 7).to_string())?);
        // The SOCKS way: an association, and a header on each datagram.
        let associated = socks(right, Some(("anna", "")), &request(3, "0.0.0.0", 0))?;
        let (control, relay) = associated.map_err(|code| anyhow::anyhow!("{code}"))?;
        let program = bind(right, "127.0.0.1:0")?;
        for (to, size) in [(address.to_string(), 1), ("left".to_owned(), 1200)] {
            // The name stands for both addresses; the first is asked.
            let mut datagram = vec![0, 0, 0, 3, to.len() as u8];
            datagram.extend_from_slice(to.as_bytes());
            datagram.extend_from_slice(&7u16.to_be_bytes());
            datagram.resize(datagram.len() + size, 0xa5);
            if to == "left" && mixed.left.status()?.node.addresses.first() != Some(&address) {
                continue;
            }
            program.send_to(&datagram, relay)?;
            let mut buffer = [0; 2000];
            let (n, from) = program.recv_from(&mut buffer).with_context(|| to.clone())?;
            ensure!(from == relay, "answered from {from}");
            let header = if ipv6 { 22 } else { 10 };
            ensure!(n == header + size && buffer[header..n].iter().all(|b| *b == 0xa5), "{n}");
        }
        // Without the connection it was asked on, the relay is gone.
        drop(control);
        std::thread::sleep(Duration::from_millis(200));
        program.send_to(&[0; 20], relay)?;
        program.set_read_timeout(Some(Duration::from_millis(300)))?;
        ensure!(program.recv_from(&mut [0; 100]).is_err(), "the relay stayed");
        drop(echoing);

        // The other way, through a published port.
        let local = bind(right, "127.0.0.1:5300")?;
        let local = echo(local);
        let own = mixed.right.overlay_address(ipv6)?;
        let any = if ipv6 { "[::]:0" } else { "0.0.0.0:0" };
        let client = bind(left, any)?;
        client.connect((own, 53))?;
        for round in 0..20u8 {
            client.send(&[round; 700])?;
            let mut buffer = [0; 2000];
            let n = client.recv(&mut buffer)?;
            ensure!(buffer[..n] == [round; 700], "round {round}");
        }
        // A port that is not published is refused, not ignored.
        let client = bind(left, any)?;
        client.connect((own, 54))?;
        client.send(b"x")?;
        let refused = client.recv(&mut [0; 10]).err().context("an answer")?;
        ensure!(refused.kind() == std::io::ErrorKind::ConnectionRefused, "{refused}");
        // Its port is wanted again.
        client.connect((own, 53))?;
        client.send(END)?;
        local.join().unwrap_or(Ok(()))?;
    }
    Ok(())
}

fn no_privileges() -> Result<()> {
    let pair = Pair::create(1500, Underlay::Direct)?;
    let scratch = TemporaryDir::create("warren-lab")?;
    let dir = scratch.path();
    // The daemon, and every command asking it, as another user.
    let Some(wrapper) = as_nobody(&pair.left, dir)? else { return Ok(()) };
    let password = dir.join("password");
    std::fs::write(&password, "secret\n")?;
    std::fs::set_permissions(&password, std::fs::Permissions::from_mode(0o644))?;
    let password = password.display().to_string();
    let mut nodes: Vec<Node> = Vec::new();
    for (host, address) in [(&pair.left, Pair::LEFT), (&pair.right, Pair::RIGHT)] {
        let mut spec = spec(host, address, &scratch);
        give_to_nobody(&spec.state_dir)?;
        spec.binary = wrapper.clone();
        spec.interface = String::new();
        let arguments = [
            "--userspace",
            "--socks",
            "0.0.0.0:1080",
            "--proxy-password-file",
            &password,
            "--publish",
            "tcp:80=127.0.0.1:8000",
        ];
        spec.arguments = arguments.iter().map(Into::into).collect();
        nodes.push(match nodes.first() {
            None => spec.up(None, PATIENCE)?,
            Some(first) => spec.join(&first.join_code(PATIENCE)?, PATIENCE)?,
        });
    }
    for node in &nodes {
        let proc = format!("/proc/{}", node.pid());
        let status = std::fs::read_to_string(format!("{proc}/status"))?;
        for field in ["CapEff", "CapPrm", "CapBnd", "CapAmb"] {
            let none = format!("{field}:\t0000000000000000");
            ensure!(status.contains(&none), "{field}: {status}");
        }
        ensure!(status.contains(&format!("Uid:\t{NOBODY}\t{NOBODY}")), "{status}");
        for entry in std::fs::read_dir(format!("{proc}/fd"))? {
            let target = std::fs::read_link(entry?.path())?;
            ensure!(!target.ends_with("net/tun"), "it has {}", target.display());
        }
    }
    nodes[1].wait_connected("left", PATIENCE)?;
    // From one to the other, with the password and not without.
    let _server = Server::start(&pair.left, "127.0.0.1:8000".parse()?)?;
    let ask = connect_request("left", 80);
    let wrong = socks(&pair.right, Some(("anna", "wrong")), &ask)?.err();
    ensure!(wrong == Some(1), "a wrong password: {wrong:?}");
    let none = socks(&pair.right, None, &ask)?.err();
    ensure!(none == Some(0xff), "no password: {none:?}");
    for user in ["anna", "berta"] {
        let stream = socks(&pair.right, Some((user, "secret")), &ask)?;
        download(stream.map_err(|code| anyhow::anyhow!("{code}"))?.0, 20_000_000)?;
    }
    Ok(())
}
