//! Sessions of the programs people use, watched for pauses and breaks: an
//! iperf3 stream and a remote shell over ssh.
//!
//! Invariants: both end with their handle; servers listen on the address they
//! are reached at and nowhere else. Deliberately not here: throughput for
//! comparison (see [`mod@crate::bench`]) and verified bytes (see
//! [`crate::traffic`]).

use std::io::{BufRead, BufReader};
use std::net::IpAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::process::KilledOnDrop;
use crate::topology::{Host, output_of};

/// iperf3 reports that often, seconds.
const REPORT: f64 = 0.1;

/// Where the lab's sshd listens.
const SSH_PORT: &str = "2222";

/// What an iperf3 stream did.
#[derive(Debug, Clone, PartialEq)]
pub struct Streamed {
    /// Gigabits per second that arrived, on average.
    pub gbps: f64,
    /// The longest time in which nothing arrived, to a tenth of a second.
    pub longest_gap: Duration,
}

/// An iperf3 stream from a server to a client, in the background.
#[derive(Debug)]
pub struct Iperf {
    client: KilledOnDrop,
    _server: KilledOnDrop,
}

impl Iperf {
    /// Starts a server on `server`, at its address `address`, and a client on
    /// `client` that receives for `seconds`. The stream runs from the server
    /// to the client, so that pauses are seen where data arrive.
    ///
    /// # Errors
    /// When iperf3 is missing.
    pub fn start(client: &Host, server: &Host, address: IpAddr, seconds: u32) -> Result<Self> {
        Self::start_with(client, server, address, &["-R", "-t", &seconds.to_string()])
    }

    /// The same with iperf3's own `options` for direction, time and the like.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_with(
        client: &Host,
        server: &Host,
        address: IpAddr,
        options: &[&str],
    ) -> Result<Self> {
        let to = address.to_string();
        let mut command = server.command("iperf3");
        command.args(["-s", "-1", "-B", &to]).stdout(Stdio::null()).stderr(Stdio::null());
        let mut server_child = KilledOnDrop(command.spawn().context("iperf3 is missing")?);
        // It has no other sign that it listens: look for the socket.
        let port = format!(":{:04X}", 5201);
        wait(Duration::from_secs(5), || {
            ensure!(server_child.0.try_wait()?.is_none(), "the iperf3 server ended");
            Ok(listening(server_child.0.id(), &port))
        })?;
        let mut command = client.command("iperf3");
        command.args(["-J", "-i", &REPORT.to_string()]).args(options);
        command.args(["--connect-timeout", "5000", "-c", &to]);
        command.stdout(Stdio::piped()).stderr(Stdio::null());
        Ok(Self { client: KilledOnDrop(command.spawn()?), _server: server_child })
    }

    /// Waits for the end of the stream.
    ///
    /// # Errors
    /// When it broke off.
    pub fn finish(mut self) -> Result<Streamed> {
        let stdout = self.client.0.stdout.take().context("no output")?;
        let result: Value = serde_json::from_reader(BufReader::new(stdout))
            .context("iperf3 printed no JSON: it was killed")?;
        self.client.0.wait()?;
        if let Some(error) = result["error"].as_str() {
            bail!("the iperf3 stream broke: {error}");
        }
        let sum = &result["end"]["sum_received"]["bits_per_second"];
        let intervals = result["intervals"].as_array().context("no intervals")?;
        let bytes = intervals.iter().map(|interval| interval["sum"]["bytes"].as_u64().unwrap_or(0));
        let longest = longest_run(bytes.map(|bytes| bytes == 0));
        Ok(Streamed {
            gbps: sum.as_f64().context("no result")? / 1e9,
            longest_gap: Duration::from_secs_f64(longest as f64 * REPORT),
        })
    }
}

fn longest_run(flags: impl Iterator<Item = bool>) -> usize {
    let mut now = 0;
    flags.fold(0, |longest, flag| {
        now = if flag { now + 1 } else { 0 };
        longest.max(now)
    })
}

/// Whether the process's network namespace has a listening TCP socket whose
/// local address ends in `port`.
fn listening(pid: u32, port: &str) -> bool {
    ["tcp", "tcp6"].iter().any(|table| {
        let text = std::fs::read_to_string(format!("/proc/{pid}/net/{table}"));
        text.is_ok_and(|text| {
            text.lines().any(|line| {
                let mut words = line.split_whitespace().skip(1);
                let local = words.next().is_some_and(|local| local.ends_with(port));
                // 0A is LISTEN.
                local && words.nth(1) == Some("0A")
            })
        })
    })
}

fn wait(patience: Duration, mut ready: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + patience;
    while !ready()? {
        ensure!(Instant::now() < deadline, "not ready within {patience:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// What a remote shell did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shell {
    /// Lines that arrived.
    pub lines: usize,
    /// The longest time in which none did.
    pub longest_gap: Duration,
}

/// A remote shell over ssh that prints a line every 50 ms.
#[derive(Debug)]
pub struct Ssh {
    client: Child,
    seen: Arc<Mutex<Vec<Instant>>>,
    _server: KilledOnDrop,
}

impl Ssh {
    /// True when this machine has an ssh client and server.
    #[must_use]
    pub fn is_here() -> bool {
        Path::new("/usr/sbin/sshd").exists() && Path::new("/usr/bin/ssh").exists()
    }

    /// Starts a server on `server`, at its address `address`, with keys made
    /// in `scratch`, and a session from `client`; returns when the first line
    /// arrived.
    ///
    /// # Errors
    /// When a program is missing or the session does not come up in 20 s.
    pub fn start(client: &Host, server: &Host, address: IpAddr, scratch: &Path) -> Result<Self> {
        let directory = scratch.join(format!("ssh-{}-{}", client.name(), server.name()));
        std::fs::create_dir_all(&directory)?;
        let key = directory.join("key");
        if !key.exists() {
            let mut command = Command::new("ssh-keygen");
            output_of(command.args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&key))?;
            std::fs::copy(directory.join("key.pub"), directory.join("authorized"))?;
        }
        let config = directory.join("sshd_config");
        let path = directory.display();
        std::fs::write(
            &config,
            format!(
                "ListenAddress {address}\nPort {SSH_PORT}\nHostKey {path}/key\n\
                 AuthorizedKeysFile {path}/authorized\nStrictModes no\nUsePAM no\n\
                 PidFile none\nPermitRootLogin prohibit-password\nClientAliveInterval 0\n"
            ),
        )?;
        // Of Debian's build; see `hide_run` for whose /run this is.
        std::fs::create_dir_all("/run/sshd")?;
        // In a process namespace of its own, of which sshd is the first process:
        // what it starts for a session would outlive it, and hear nothing of
        // its client's end over a network that is gone.
        let mut command = server.command("unshare");
        command.args(["--pid", "--fork", "--kill-child", "/usr/sbin/sshd"]);
        command.arg("-D").arg("-f").arg(&config).stdout(Stdio::null()).stderr(Stdio::null());
        let mut sshd = KilledOnDrop(command.spawn().context("unshare is missing")?);
        let port = format!(":{:04X}", SSH_PORT.parse::<u16>()?);
        wait(Duration::from_secs(5), || {
            ensure!(sshd.0.try_wait()?.is_none(), "sshd ended");
            Ok(listening(sshd.0.id(), &port))
        })?;
        let mut command = client.command("ssh");
        command.arg("-i").arg(&key).args(["-p", SSH_PORT, "-F", "none"]);
        for option in [
            "StrictHostKeyChecking=no",
            "UserKnownHostsFile=/dev/null",
            "BatchMode=yes",
            "LogLevel=ERROR",
            "ServerAliveInterval=0",
        ] {
            command.args(["-o", option]);
        }
        command.arg(format!("root@{address}"));
        command.arg("while sleep 0.05; do echo tick; done");
        let mut client = command.stdout(Stdio::piped()).spawn().context("ssh is missing")?;
        let seen = Arc::new(Mutex::new(Vec::new()));
        let lines = BufReader::new(client.stdout.take().context("no output")?).lines();
        let record = seen.clone();
        std::thread::spawn(move || {
            for _ in lines.map_while(Result::ok) {
                record.lock().unwrap_or_else(PoisonError::into_inner).push(Instant::now());
            }
        });
        let mut session = Self { client, seen, _server: sshd };
        wait(Duration::from_secs(20), || {
            ensure!(session.client.try_wait()?.is_none(), "the ssh session does not come up");
            Ok(session.so_far().lines > 0)
        })?;
        Ok(session)
    }

    /// What it did until now, a wait that goes on included.
    #[must_use]
    pub fn so_far(&self) -> Shell {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let now = seen.last().map(|_| Instant::now());
        let ends = seen.iter().copied().chain(now);
        let gaps = seen.iter().zip(ends.skip(1)).map(|(early, late)| late - *early);
        Shell { lines: seen.len(), longest_gap: gaps.max().unwrap_or_default() }
    }

    /// Ends it.
    ///
    /// # Errors
    /// When it had ended by itself before.
    pub fn finish(mut self) -> Result<Shell> {
        let shell = self.so_far();
        if let Some(status) = self.client.try_wait()? {
            bail!("the ssh session broke: {status}");
        }
        Ok(shell)
    }
}

impl Drop for Ssh {
    fn drop(&mut self) {
        // One that ended by itself is merely reaped.
        let _ = self.client.kill();
        let _ = self.client.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::{Pair, Underlay};

    #[test]
    fn runs_are_counted() {
        let flags = |text: &str| {
            longest_run(text.chars().map(|c| c == '0').collect::<Vec<_>>().into_iter())
        };
        assert_eq!(flags("1101100010"), 3);
        assert_eq!(flags("111"), 0);
        assert_eq!(flags(""), 0);
    }

    #[test]
    fn sessions_run_and_are_timed() {
        if !warren_os::netns::is_privileged() || !Ssh::is_here() {
            eprintln!("SKIPPED: takes root, iperf3 and sshd");
            return;
        }
        let pair = Pair::create(1500, Underlay::Direct).unwrap();
        let scratch = warren_os::files::TemporaryDir::create("warren-lab").unwrap();
        let ssh = Ssh::start(&pair.left, &pair.right, Pair::RIGHT, scratch.path()).unwrap();
        let iperf = Iperf::start(&pair.left, &pair.right, Pair::RIGHT, 1).unwrap();
        let streamed = iperf.finish().unwrap();
        assert!(streamed.gbps > 0.0 && streamed.longest_gap < Duration::from_secs(1));
        let shell = ssh.finish().unwrap();
        assert!(shell.lines > 3, "{shell:?}");
    }

    /// Processes of a network namespace.
    fn processes_in(namespace: &Path) -> usize {
        let all = std::fs::read_dir("/proc").unwrap().flatten();
        let theirs = |process: &std::fs::DirEntry| {
            std::fs::read_link(process.path().join("ns/net")).is_ok_and(|own| own == namespace)
        };
        all.filter(theirs).count()
    }

    #[test]
    fn a_shell_ends_with_its_handle_when_the_network_is_gone() {
        if !warren_os::netns::is_privileged() || !Ssh::is_here() {
            eprintln!("SKIPPED: takes root and sshd");
            return;
        }
        let pair = Pair::create(1500, Underlay::Direct).unwrap();
        let scratch = warren_os::files::TemporaryDir::create("warren-lab").unwrap();
        let ssh = Ssh::start(&pair.left, &pair.right, Pair::RIGHT, scratch.path()).unwrap();
        let namespace = std::fs::read_link(format!("/proc/{}/ns/net", ssh._server.0.id())).unwrap();
        // The server, its part in the session, the shell.
        assert!(processes_in(&namespace) >= 3);
        let mut netlink = pair.right.netlink().unwrap();
        let links = netlink.links().unwrap();
        let cable = links.iter().find(|link| !link.loopback).unwrap().index;
        netlink.delete_link(cable).unwrap();
        drop(ssh);
        wait(Duration::from_secs(5), || Ok(processes_in(&namespace) == 0)).unwrap();
    }
}
