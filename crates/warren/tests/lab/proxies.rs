//! Clients and servers for what passes through the proxies of a node, every
//! byte checked.

use std::fs::{Permissions, set_permissions};
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use warren_lab::topology::Host;

use crate::names::have;

/// Where nodes of these stories serve SOCKS.
pub(crate) const SOCKS: &str = "127.0.0.1:1080";
/// How long a stream may stall.
pub(crate) const STALLED: Duration = Duration::from_secs(30);

/// A server on a host: each connection sends a line; `N` is answered by N bytes
/// of a pattern, `S` by the number of bytes that follow, until it is dropped.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    host: Host,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    pub(crate) fn start(host: &Host, address: SocketAddr) -> Result<Self> {
        let listener = host.namespace().run(|| TcpListener::bind(address))??;
        let address = listener.local_addr()?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if stopped.load(Ordering::Relaxed) {
                    return;
                }
                // A client that breaks off is the test's to notice.
                std::thread::spawn(move || answer(stream));
            }
        });
        Ok(Self { address, host: host.clone(), stop, thread: Some(thread) })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _woken = self.host.namespace().run(|| TcpStream::connect(self.address));
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Bytes after which the pattern begins anew.
const PERIOD: usize = 1 << 16;

pub(crate) fn pattern(at: usize) -> u8 {
    (at ^ (at >> 8)) as u8
}

/// The pattern twice, so that a period from anywhere in it is one slice.
fn patterns() -> Vec<u8> {
    (0..2 * PERIOD).map(pattern).collect()
}

fn answer(mut stream: TcpStream) -> std::io::Result<()> {
    let mut line = Vec::new();
    let mut byte = [0];
    while !line.ends_with(b"\n") {
        if stream.read(&mut byte)? == 0 {
            return Ok(());
        }
        line.push(byte[0]);
    }
    let text = String::from_utf8_lossy(&line).into_owned();
    if text.starts_with("S") {
        let mut buffer = vec![0; 1 << 16];
        let mut total = 0;
        loop {
            match stream.read(&mut buffer)? {
                0 => break,
                n => total += n,
            }
        }
        return stream.write_all(total.to_string().as_bytes());
    }
    // As HTTP, for programs that speak that; else plain. A head is read whole:
    // closing with something unread is a reset.
    let wanted = text.strip_prefix("GET /").and_then(|rest| rest.split(' ').next());
    let http = wanted.is_some();
    let bytes: usize = wanted.unwrap_or(text.trim()).parse().unwrap_or_default();
    if http {
        let mut end = line;
        while !end.ends_with(b"\r\n\r\n") && stream.read(&mut byte)? == 1 {
            end.push(byte[0]);
        }
        let head = format!("HTTP/1.0 200 OK\r\nContent-Length: {bytes}\r\n\r\n");
        stream.write_all(head.as_bytes())?;
    }
    let block = patterns();
    let mut sent = 0;
    while sent < bytes {
        let n = PERIOD.min(bytes - sent);
        stream.write_all(&block[..n])?;
        sent += n;
    }
    Ok(())
}

pub(crate) fn connect_request(to: &str, port: u16) -> Vec<u8> {
    request(1, to, port)
}

pub(crate) fn request(command: u8, to: &str, port: u16) -> Vec<u8> {
    let mut request = vec![5, command, 0, 3, to.len() as u8];
    request.extend_from_slice(to.as_bytes());
    request.extend_from_slice(&port.to_be_bytes());
    request
}

/// Speaks SOCKS on a host: the connection with the address it is bound to, or
/// the code of the refusal.
pub(crate) fn socks(
    host: &Host,
    login: Option<(&str, &str)>,
    request: &[u8],
) -> Result<std::result::Result<(TcpStream, SocketAddr), u8>> {
    let mut stream = host.namespace().run(|| TcpStream::connect(SOCKS))??;
    stream.set_read_timeout(Some(STALLED))?;
    stream.set_write_timeout(Some(STALLED))?;
    let mut two = [0; 2];
    match login {
        None => {
            stream.write_all(&[5, 1, 0])?;
            stream.read_exact(&mut two)?;
            if two[1] != 0 {
                return Ok(Err(two[1]));
            }
        }
        Some((user, password)) => {
            stream.write_all(&[5, 2, 0, 2])?;
            stream.read_exact(&mut two)?;
            ensure!(two == [5, 2], "not asked for the user: {two:?}");
            let mut login = vec![1, user.len() as u8];
            login.extend_from_slice(user.as_bytes());
            login.push(password.len() as u8);
            login.extend_from_slice(password.as_bytes());
            stream.write_all(&login)?;
            stream.read_exact(&mut two)?;
            if two[1] != 0 {
                return Ok(Err(two[1]));
            }
        }
    }
    stream.write_all(request)?;
    let mut head = [0; 4];
    stream.read_exact(&mut head)?;
    let mut bound = vec![0; if head[3] == 4 { 18 } else { 6 }];
    stream.read_exact(&mut bound)?;
    let (ip, port) = bound.split_at(bound.len() - 2);
    let ip: IpAddr = match ip.len() {
        4 => <[u8; 4]>::try_from(ip)?.into(),
        _ => <[u8; 16]>::try_from(ip)?.into(),
    };
    let port = u16::from_be_bytes([port[0], port[1]]);
    Ok(if head[1] == 0 { Ok((stream, SocketAddr::new(ip, port))) } else { Err(head[1]) })
}

/// Takes `bytes` of the pattern from a [`Server`] and checks each.
pub(crate) fn download(stream: TcpStream, bytes: usize) -> Result<()> {
    download_and(stream, bytes, |_| Ok(()))
}

/// The same; does something as bytes come, told how many there are.
pub(crate) fn download_and(
    mut stream: TcpStream,
    bytes: usize,
    mut at: impl FnMut(usize) -> Result<()>,
) -> Result<()> {
    stream.write_all(format!("{bytes}\n").as_bytes())?;
    let (mut buffer, expected) = (vec![0; PERIOD], patterns());
    let mut got = 0;
    loop {
        let n = stream.read(&mut buffer).with_context(|| format!("after {got} bytes"))?;
        if n == 0 {
            break;
        }
        let right = &expected[got % PERIOD..][..n];
        ensure!(buffer[..n] == *right, "wrong bytes after {got}");
        got += n;
        at(got)?;
    }
    ensure!(got == bytes, "{got} bytes of {bytes}");
    Ok(())
}

/// Sends `bytes` to a [`Server`], which counts them.
pub(crate) fn upload(mut stream: TcpStream, bytes: usize) -> Result<()> {
    stream.write_all(b"S\n")?;
    let block = vec![7; 1 << 20];
    let mut sent = 0;
    while sent < bytes {
        let n = block.len().min(bytes - sent);
        stream.write_all(&block[..n])?;
        sent += n;
    }
    stream.shutdown(std::net::Shutdown::Write)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    ensure!(answer == bytes.to_string(), "{answer} bytes of {bytes} arrived");
    Ok(())
}

/// A user like any other.
pub(crate) const NOBODY: u32 = 65_534;

/// A program in `dir` that runs the binary under test, on `host` as on others,
/// as [`NOBODY`] and without any privilege; `None` where that is not possible.
pub(crate) fn as_nobody(host: &Host, dir: &Path) -> Result<Option<PathBuf>> {
    if !have("setpriv", "util-linux") {
        return Ok(None);
    }
    set_permissions(dir, Permissions::from_mode(0o711))?;
    let wrapper = dir.join("warren");
    let script = format!(
        "#!/bin/sh\nexec setpriv --reuid={NOBODY} --regid={NOBODY} --clear-groups \
         --inh-caps=-all --bounding-set=-all --no-new-privs {} \"$@\"\n",
        crate::story::binary().display()
    );
    std::fs::write(&wrapper, script)?;
    set_permissions(&wrapper, Permissions::from_mode(0o755))?;
    let mut asked = host.command(&wrapper);
    if !asked.arg("--version").output()?.status.success() {
        println!("SKIPPED: cannot become another user here");
        return Ok(None);
    }
    Ok(Some(wrapper))
}

/// Makes a directory that is [`NOBODY`]'s.
pub(crate) fn give_to_nobody(dir: &Path) -> Result<()> {
    std::fs::create_dir(dir)?;
    set_permissions(dir, Permissions::from_mode(0o700))?;
    Ok(chown(dir, Some(NOBODY), Some(NOBODY))?)
}

pub(crate) fn direct(host: &Host, to: SocketAddr) -> Result<TcpStream> {
    let stream = host.namespace().run(|| TcpStream::connect_timeout(&to, STALLED))??;
    stream.set_read_timeout(Some(STALLED))?;
    stream.set_write_timeout(Some(STALLED))?;
    Ok(stream)
}
