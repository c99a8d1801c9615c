//! A `warren` daemon on a lab host: start it, wait until it serves, ask it,
//! kill it, start it again.
//!
//! Invariants: the daemon dies with the thread that started it; what it prints
//! is kept and quoted when something goes wrong. Deliberately not here: the
//! network around it (see [`crate::topology`]).

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use warren_os::process::{ProcessCost, Signal, cost, signal};
use warren_types::Suite;
use warren_types::api::{PeerStatus, Status};

use crate::topology::{Host, output_of};

/// A daemon to be: where and under which name it will run.
#[derive(Debug, Clone)]
pub struct NodeSpec {
    /// The `warren` binary.
    pub binary: PathBuf,
    /// Its host.
    pub host: Host,
    /// Its name in the network.
    pub name: String,
    /// Its state directory (made by the daemon).
    pub state_dir: PathBuf,
    /// UDP address it listens on.
    pub listen: SocketAddr,
    /// Name of its TUN interface; empty where it is not to be told one.
    pub interface: String,
    /// Further arguments of `up` and `join`.
    pub arguments: Vec<OsString>,
    /// Further environment variables of the daemon.
    pub environment: Vec<(OsString, OsString)>,
}

impl NodeSpec {
    /// Creates a network (or continues it: the state directory decides) and
    /// returns once the daemon serves.
    ///
    /// # Errors
    /// When it ends or says nothing of use within `patience`.
    pub fn up(self, suite: Option<Suite>, patience: Duration) -> Result<Node> {
        let mut arguments: Vec<OsString> = vec!["up".into()];
        if let Some(suite) = suite {
            arguments.extend(["--suite".into(), suite.to_string().into()]);
        }
        Node::start(self, arguments, patience)
    }

    /// Starts the daemon as [`NodeSpec::up`] does, but returns at once; see
    /// [`Node::wait_serves`].
    ///
    /// # Errors
    /// When the binary cannot be started.
    pub fn launch(self) -> Result<Node> {
        Node::launch(self, vec!["up".into()])
    }

    /// Joins the network of a code and returns once the daemon serves.
    ///
    /// # Errors
    /// As [`NodeSpec::up`].
    pub fn join(self, code: &str, patience: Duration) -> Result<Node> {
        Node::start(self, vec!["join".into(), code.into()], patience)
    }
}

/// A running daemon.
#[derive(Debug)]
pub struct Node {
    spec: NodeSpec,
    child: Child,
    output: Arc<Output>,
}

impl Node {
    fn start(spec: NodeSpec, first: Vec<OsString>, patience: Duration) -> Result<Self> {
        let mut node = Self::launch(spec, first)?;
        node.wait_serves(patience)?;
        Ok(node)
    }

    /// Waits until the daemon answers.
    ///
    /// # Errors
    /// When it ends or says nothing of use within `patience`.
    pub fn wait_serves(&mut self, patience: Duration) -> Result<()> {
        self.wait_until("serves", patience, |_| true).map(drop)
    }

    fn launch(spec: NodeSpec, first: Vec<OsString>) -> Result<Self> {
        let mut command = spec.host.command(&spec.binary);
        command.args(first).arg("--state-dir").arg(&spec.state_dir);
        command.arg("--name").arg(&spec.name).arg("--listen").arg(spec.listen.to_string());
        if !spec.interface.is_empty() {
            command.arg("--interface").arg(&spec.interface);
        }
        command.args(&spec.arguments);
        command.envs(spec.environment.iter().map(|(name, value)| (name, value)));
        let output = Arc::new(Output::default());
        let child = spawn_collecting(&mut command, &output)
            .with_context(|| format!("cannot start {}", spec.binary.display()))?;
        Ok(Self { spec, child, output })
    }

    /// What it was started as.
    #[must_use]
    pub fn spec(&self) -> &NodeSpec {
        &self.spec
    }

    /// Process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The code it printed as `warren join CODE`.
    ///
    /// # Errors
    /// When it prints none within `patience`.
    pub fn join_code(&self, patience: Duration) -> Result<String> {
        self.output
            .wait_for(patience, |line| {
                let mut words = line.split_whitespace().skip_while(|word| *word != "join");
                words.nth(1).filter(|word| word.starts_with("warren1")).map(str::to_owned)
            })
            .with_context(|| format!("{} printed no join code:\n{}", self.spec.name, self.log()))
    }

    /// Asks a running admin node for a fresh code.
    ///
    /// # Errors
    /// When `warren invite` fails.
    pub fn invite(&self) -> Result<String> {
        let text = self.warren(&["invite"])?;
        let mut words = text.split_whitespace();
        let code = words.find(|word| word.starts_with("warren1") && word.len() > 20);
        code.map(str::to_owned).with_context(|| format!("no code in: {text}"))
    }

    /// Runs a `warren` command against this daemon and returns its output.
    ///
    /// # Errors
    /// When it fails.
    pub fn warren(&self, arguments: &[&str]) -> Result<String> {
        let mut command = self.spec.host.command(&self.spec.binary);
        command.args(arguments).arg("--state-dir").arg(&self.spec.state_dir);
        output_of(&mut command).with_context(|| format!("on {}", self.spec.name))
    }

    /// Its status.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn status(&self) -> Result<Status> {
        let text = self.warren(&["status", "--json"])?;
        serde_json::from_str(&text).with_context(|| format!("status of {}: {text}", self.spec.name))
    }

    /// Waits until its status fulfils `condition`.
    ///
    /// # Errors
    /// When the daemon ends or `patience` does first.
    pub fn wait_until(
        &mut self,
        what: &str,
        patience: Duration,
        mut condition: impl FnMut(&Status) -> bool,
    ) -> Result<Status> {
        let deadline = Instant::now() + patience;
        loop {
            let status = self.status();
            if let Ok(status) = &status
                && condition(status)
            {
                return Ok(status.clone());
            }
            let name = &self.spec.name;
            if let Some(ended) = self.child.try_wait()? {
                bail!("{name} ended ({ended}) before it {what}:\n{}", self.log());
            }
            if Instant::now() > deadline {
                let seen = status.map_or_else(
                    |error| format!("{error:#}"),
                    |status| serde_json::to_string(&status.peers).unwrap_or_default(),
                );
                bail!("{name}: not seen within {patience:?}: {what}\n{seen}\n{}", self.log());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Waits until the link to a peer carries data.
    ///
    /// # Errors
    /// As [`Node::wait_until`].
    pub fn wait_connected(&mut self, peer: &str, patience: Duration) -> Result<PeerStatus> {
        let connected = |status: &Status| {
            let found = status.peers.iter().find(|candidate| candidate.name == peer);
            found
                .filter(|peer| {
                    !matches!(peer.path.as_str(), "none" | "connecting")
                        && peer.handshake_age_s.is_some()
                })
                .cloned()
        };
        let status = self.wait_until(&format!("link to {peer}"), patience, |status| {
            connected(status).is_some()
        })?;
        connected(&status).context("the peer went away again")
    }

    /// Its overlay address of one family.
    ///
    /// # Errors
    /// When it has none.
    pub fn overlay_address(&self, ipv6: bool) -> Result<IpAddr> {
        let addresses = self.status()?.node.addresses;
        let found = addresses.iter().find(|address| address.is_ipv6() == ipv6);
        found.copied().with_context(|| format!("no such address in {addresses:?}"))
    }

    /// CPU time and memory of the daemon.
    ///
    /// # Errors
    /// When it is gone.
    pub fn cost(&self) -> Result<ProcessCost> {
        Ok(cost(self.pid())?)
    }

    /// Everything it printed.
    #[must_use]
    pub fn log(&self) -> String {
        self.output.lines.lock().unwrap_or_else(PoisonError::into_inner).join("\n")
    }

    /// Ends it without a chance to clean up, as a crash would.
    ///
    /// # Errors
    /// When it is gone already.
    pub fn crash(mut self) -> Result<NodeSpec> {
        signal(self.pid(), Signal::Kill)?;
        self.child.wait()?;
        Ok(self.spec.clone())
    }

    /// Asks it to end and waits for that.
    ///
    /// # Errors
    /// When it does not end within `patience`, or not with success.
    pub fn stop(mut self, patience: Duration) -> Result<NodeSpec> {
        signal(self.pid(), Signal::Terminate)?;
        let deadline = Instant::now() + patience;
        loop {
            if let Some(status) = self.child.try_wait()? {
                if !status.success() {
                    bail!("{} ended with {status}:\n{}", self.spec.name, self.log());
                }
                return Ok(self.spec.clone());
            }
            if Instant::now() > deadline {
                bail!("{} did not end within {patience:?}:\n{}", self.spec.name, self.log());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // Ended already in `stop` and `crash`; then both calls do nothing.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A child that does not outlive its handle.
#[derive(Debug)]
pub struct KilledOnDrop(pub Child);

impl Drop for KilledOnDrop {
    fn drop(&mut self) {
        // One that ended by itself is merely reaped.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The binary to run: `WARREN_BIN`, else `warren` beside the running program.
///
/// # Errors
/// With how to build it, when it is not there.
pub fn find_warren() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("WARREN_BIN") {
        return Ok(path.into());
    }
    let program = std::env::current_exe()?;
    let directories = program.ancestors().skip(1).take(2).map(Path::to_owned);
    let mut candidates = directories.map(|directory| directory.join("warren"));
    candidates.find(|path| path.is_file()).with_context(|| {
        format!("no warren binary beside {}: cargo build -p warren", program.display())
    })
}

/// Lines a child prints, as they come.
#[derive(Debug, Default)]
pub(crate) struct Output {
    lines: Mutex<Vec<String>>,
    more: Condvar,
}

impl Output {
    fn push(&self, line: String) {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).push(line);
        self.more.notify_all();
    }

    fn wait_for<T>(&self, patience: Duration, f: impl Fn(&str) -> Option<T>) -> Option<T> {
        let deadline = Instant::now() + patience;
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(found) = lines.iter().find_map(|line| f(line)) {
                return Some(found);
            }
            let left = deadline.checked_duration_since(Instant::now())?;
            lines = self.more.wait_timeout(lines, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// Starts a command and collects its output on threads of their own, so that
/// it never blocks on a full pipe.
pub(crate) fn spawn_collecting(command: &mut Command, output: &Arc<Output>) -> Result<Child> {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let streams: [Option<Box<dyn Read + Send>>; 2] = [
        child.stdout.take().map(|stream| Box::new(stream) as _),
        child.stderr.take().map(|stream| Box::new(stream) as _),
    ];
    for stream in streams.into_iter().flatten() {
        let output = output.clone();
        std::thread::spawn(move || {
            for line in BufReader::new(stream).lines().map_while(Result::ok) {
                output.push(line);
            }
        });
    }
    Ok(child)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_is_collected_and_waited_for() {
        let output = Arc::new(Output::default());
        let mut command = Command::new("sh");
        command.args(["-c", "echo one; echo two >&2; sleep 0.1; echo three"]);
        let mut child = spawn_collecting(&mut command, &output).unwrap();
        let seen = output
            .wait_for(Duration::from_secs(5), |line| (line == "three").then(|| line.to_owned()));
        assert_eq!(seen.as_deref(), Some("three"));
        assert!(output.wait_for(Duration::from_millis(10), |_| None::<()>).is_none());
        child.wait().unwrap();
        assert!(
            output.wait_for(Duration::from_secs(5), |line| (line == "two").then_some(())).is_some()
        );
    }
}
