//! The companion: a process that changes the machine on behalf of a daemon
//! which has given up starting programs and writing outside its state
//! directory.
//!
//! In: requests of a small, fixed vocabulary, one JSON object a line, on a
//! socket that only the daemon has. Out: one answer each. Invariants: it acts
//! on typed plans that it checks itself, never on text or commands; it keeps
//! `CAP_NET_ADMIN` and nothing else; it ends when the daemon ends, however that
//! ends, and puts everything back then (but the kill switch); signals meant for
//! the daemon's group do not end it before that. Deliberately not here: any
//! decision.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use warren_os::{privileges, process};

use super::plan::{ConnectPlan, ExitPlan, KillSwitchPlan};
use super::{Host, HostState};
use crate::fault::{Fault, FaultKind};

/// The hidden subcommand that runs [`serve`].
pub const SUBCOMMAND: &str = "host-helper";
/// Longest answer waited for. Usual are some 10 ms; systemd-resolved's bus may
/// hang for seconds.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long it may take to put things back when the daemon ends in order.
const ENDING: Duration = Duration::from_secs(5);
/// Longest line, bytes.
const MAX_LINE: u64 = 1 << 20;

/// What can be asked for.
#[derive(Debug, Clone, Serialize, Deserialize)]
enum Request {
    Connect(Box<ConnectPlan>),
    Disconnect { keep_kill_switch: bool },
    ExitUp(Box<ExitPlan>),
    ExitDown,
    KillSwitchOn(KillSwitchPlan),
    KillSwitchOff,
    Keep,
    EndConnections,
    State,
}

/// A [`Fault`] as it travels.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Refusal {
    code: u8,
    what: String,
    remedy: Option<String>,
}

impl From<&Fault> for Refusal {
    fn from(fault: &Fault) -> Self {
        Self {
            code: fault.kind().exit_code(),
            what: fault.what().to_owned(),
            remedy: fault.advice().map(str::to_owned),
        }
    }
}

impl From<Refusal> for Fault {
    fn from(refusal: Refusal) -> Self {
        let kind = FaultKind::ALL.into_iter().find(|kind| kind.exit_code() == refusal.code);
        let fault = Fault::new(kind.unwrap_or(FaultKind::Internal), refusal.what);
        match refusal.remedy {
            Some(remedy) => fault.remedy(remedy),
            None => fault,
        }
    }
}

type Answer = Result<HostState, Refusal>;

/// The daemon's end.
pub struct Companion {
    stream: BufReader<UnixStream>,
    child: Child,
    broken: bool,
    active: bool,
}

impl Companion {
    /// Starts it, from this process's own program. Before privileges go. What a
    /// killed daemon left is put back before this returns.
    ///
    /// # Errors
    /// Without `CAP_NET_ADMIN`, or when something cannot be put back.
    pub fn start(dir: &Path) -> Result<(Self, HostState), Fault> {
        if !privileges::has_network_capability() {
            return Err(Fault::new(
                FaultKind::Permission,
                "this process may not change routes and packet filters",
            )
            .remedy("run as root, or give the capability CAP_NET_ADMIN"));
        }
        let mut command = Command::new("/proc/self/exe");
        // What `ps` shows.
        command.arg0("warren").arg(SUBCOMMAND).arg("--state-dir").arg(dir);
        Self::start_as(command)
    }

    /// Starts it by a command of the caller's that runs [`serve`].
    ///
    /// # Errors
    /// As [`Companion::start`].
    pub fn start_as(mut command: Command) -> Result<(Self, HostState), Fault> {
        let wrong = |e: std::io::Error| {
            Fault::new(FaultKind::Resource, format!("cannot start the helper process: {e}"))
        };
        let (ours, theirs) = UnixStream::pair().map_err(wrong)?;
        ours.set_read_timeout(Some(PATIENCE)).map_err(wrong)?;
        ours.set_write_timeout(Some(PATIENCE)).map_err(wrong)?;
        let input = OwnedFd::from(theirs.try_clone().map_err(wrong)?);
        let child = command
            .stdin(Stdio::from(input))
            .stdout(Stdio::from(OwnedFd::from(theirs)))
            // Not the terminal's: the daemon may let go of that.
            .stderr(Stdio::null())
            // Ctrl-C is for the daemon.
            .process_group(0)
            .spawn()
            .map_err(wrong)?;
        // The command holds the other end open.
        drop(command);
        let mut companion =
            Self { stream: BufReader::new(ours), child, broken: false, active: false };
        let state = companion.ask(&Request::State)?;
        Ok((companion, state))
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// See [`Host::connect`].
    ///
    /// # Errors
    /// As there, or when the companion is gone.
    pub fn connect(&mut self, plan: &ConnectPlan) -> Result<HostState, Fault> {
        self.ask(&Request::Connect(Box::new(plan.clone())))
    }

    /// See [`Host::disconnect`].
    ///
    /// # Errors
    /// As there, or when the companion is gone.
    pub fn disconnect(&mut self, keep_kill_switch: bool) -> Result<HostState, Fault> {
        self.ask(&Request::Disconnect { keep_kill_switch })
    }

    /// See [`Host::exit_up`].
    ///
    /// # Errors
    /// As there, or when the companion is gone.
    pub fn exit_up(&mut self, plan: &ExitPlan) -> Result<HostState, Fault> {
        self.ask(&Request::ExitUp(Box::new(plan.clone())))
    }

    /// See [`Host::exit_down`].
    ///
    /// # Errors
    /// As there, or when the companion is gone.
    pub fn exit_down(&mut self) -> Result<HostState, Fault> {
        self.ask(&Request::ExitDown)
    }

    /// See [`Host::kill_switch_on`].
    ///
    /// # Errors
    /// As there, or when the companion is gone.
    pub fn kill_switch_on(&mut self, plan: &KillSwitchPlan) -> Result<HostState, Fault> {
        self.ask(&Request::KillSwitchOn(plan.clone()))
    }

    /// See [`Host::kill_switch_off`].
    ///
    /// # Errors
    /// As there, or when the companion is gone.
    pub fn kill_switch_off(&mut self) -> Result<HostState, Fault> {
        self.ask(&Request::KillSwitchOff)
    }

    /// See [`Host::keep`]: `put_back` of the answer has what it was.
    ///
    /// # Errors
    /// As there, or when the companion is gone.
    pub fn keep(&mut self) -> Result<HostState, Fault> {
        self.ask(&Request::Keep)
    }

    /// True when there was something to keep in force at the last answer.
    #[must_use]
    pub fn is_active(&self) -> bool {
        self.active
    }

    /// See [`Host::end_connections`].
    ///
    /// # Errors
    /// As there, or when the companion is gone.
    pub fn end_connections(&mut self) -> Result<HostState, Fault> {
        self.ask(&Request::EndConnections)
    }

    /// How things stand.
    ///
    /// # Errors
    /// When the kernel cannot be asked, or the companion is gone.
    pub fn state(&mut self) -> Result<HostState, Fault> {
        self.ask(&Request::State)
    }

    fn ask(&mut self, request: &Request) -> Result<HostState, Fault> {
        let gone = |why: String| {
            Fault::new(FaultKind::Resource, format!("the helper process is gone: {why}"))
                .remedy("restart the daemon; a kill switch that was on stays on meanwhile")
        };
        if self.broken {
            return Err(gone("it ended before".to_owned()));
        }
        let exchanged = self.exchange(request);
        match exchanged {
            Ok(answer) => {
                if let Ok(state) = &answer {
                    self.active = state.connected.is_some()
                        || state.exit.is_some()
                        || state.kill_switch.plan.is_some();
                }
                answer.map_err(Fault::from)
            }
            Err(error) => {
                // Its answers would no longer match the questions.
                self.broken = true;
                Err(gone(error.to_string()))
            }
        }
    }

    fn exchange(&mut self, request: &Request) -> std::io::Result<Answer> {
        let mut line = serde_json::to_vec(request)?;
        line.push(b'\n');
        self.stream.get_mut().write_all(&line)?;
        let mut answer = Vec::new();
        (&mut self.stream).take(MAX_LINE).read_until(b'\n', &mut answer)?;
        Ok(serde_json::from_slice(&answer)?)
    }
}

impl Drop for Companion {
    /// Waits until everything is put back.
    fn drop(&mut self) {
        let _closed = self.stream.get_ref().shutdown(std::net::Shutdown::Both);
        let deadline = Instant::now() + ENDING;
        while Instant::now() < deadline {
            match self.child.try_wait() {
                Ok(None) => std::thread::sleep(Duration::from_millis(2)),
                _ => return,
            }
        }
        tracing::warn!("the helper process has not ended yet");
    }
}

/// The companion's end: answers until the daemon has gone, then puts everything
/// back.
///
/// # Errors
/// When something could not be put back.
pub fn serve(dir: &Path) -> Result<(), Fault> {
    // They are for the daemon; this process ends after it.
    process::catch_interrupts().map_err(|e| Fault::internal(&e))?;
    for measure in privileges::keep_network_only() {
        if measure.outcome.is_err() {
            tracing::warn!("confined less than could be: {measure}");
        }
    }
    let mut host = Host::open(dir);
    let mut input = BufReader::new(std::io::stdin());
    let mut line = Vec::new();
    loop {
        line.clear();
        match (&mut input).take(MAX_LINE).read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => break,
            Ok(_) => {}
        }
        let answer: Answer = match serde_json::from_slice(&line) {
            Err(error) => Err(Fault::internal(&error)),
            Ok(request) => match &mut host {
                Ok(host) => act(host, &request),
                Err(fault) => match &request {
                    // What holds it up may have passed.
                    Request::State => Err(fault.clone()),
                    _ => {
                        host = Host::open(dir);
                        match &mut host {
                            Ok(host) => act(host, &request),
                            Err(fault) => Err(fault.clone()),
                        }
                    }
                },
            },
        }
        .map_err(|fault| Refusal::from(&fault));
        let mut words = serde_json::to_vec(&answer).map_err(|e| Fault::internal(&e))?;
        words.push(b'\n');
        let mut output = std::io::stdout().lock();
        if output.write_all(&words).and_then(|()| output.flush()).is_err() {
            break;
        }
    }
    host.and_then(|mut host| host.restore())
}

fn act(host: &mut Host, request: &Request) -> Result<HostState, Fault> {
    match request {
        Request::Connect(plan) => host.connect(plan),
        Request::Disconnect { keep_kill_switch } => host.disconnect(*keep_kill_switch),
        Request::ExitUp(plan) => host.exit_up(plan),
        Request::ExitDown => host.exit_down(),
        Request::KillSwitchOn(plan) => host.kill_switch_on(plan),
        Request::KillSwitchOff => host.kill_switch_off(),
        Request::Keep => {
            let put_back = host.keep()?;
            return Ok(HostState {
                put_back: put_back.into_iter().map(str::to_owned).collect(),
                ..host.state()?
            });
        }
        Request::EndConnections => host.end_connections(),
        Request::State => Ok(()),
    }?;
    host.state()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_arrive_as_they_were() {
        for kind in FaultKind::ALL {
            for fault in [Fault::new(kind, "what"), Fault::new(kind, "what").remedy("do")] {
                let text = serde_json::to_string(&Refusal::from(&fault)).unwrap();
                let refusal: Refusal = serde_json::from_str(&text).unwrap();
                assert_eq!(Fault::from(refusal), fault);
            }
        }
    }

    #[test]
    fn what_is_no_plan_is_no_request() {
        for bad in [
            "\"Reboot\"",
            r#"{"KillSwitchOn":{"interface":"a","lan":true,"split":{"groups":["a\" drop"]}}}"#,
            r#"{"ExitUp":{"interface":"a"}}"#,
        ] {
            assert!(serde_json::from_str::<Request>(bad).is_err(), "{bad}");
        }
        let good = r#"{"KillSwitchOn":{"interface":"warren0","lan":true}}"#;
        assert!(serde_json::from_str::<Request>(good).is_ok());
    }

    #[test]
    fn a_companion_that_ends_is_named() {
        let Err(fault) = Companion::start_as(Command::new("true")) else {
            panic!("it says nothing");
        };
        assert!(fault.what().contains("the helper process is gone"), "{fault}");
    }
}
