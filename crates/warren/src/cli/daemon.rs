//! `up` and `join`: the daemon in this process, and its story on standard
//! output. With `--detach` the process forks first; the part that stays in the
//! foreground ends when the node serves.

use std::collections::HashSet;
use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{broadcast, oneshot};
use warren_node::api::{Client, EventLog};
use warren_node::config::{Config, LogFormat};
use warren_node::fault::{Fault, FaultKind};
use warren_node::start::{Detached, Ended, Intent, ReadinessReport, Ready, Start, detach, run};
use warren_node::store::{self, Store};
use warren_node::telemetry;
use warren_types::api::{Event, EventRecord};

use super::{Run, out, runtime, story};

/// Name of the log file of a detached daemon, in its state directory.
const LOG_FILE: &str = "daemon.log";

/// `warren up`.
pub(super) fn up(arguments: Run) -> Result<(), Fault> {
    start(arguments, Intent::Up)
}

/// `warren join CODE`.
pub(super) fn join(code: String, arguments: Run) -> Result<(), Fault> {
    start(arguments, Intent::Join { code })
}

fn start(arguments: Run, intent: Intent) -> Result<(), Fault> {
    let detached = arguments.detach;
    let config = arguments.flags.load()?;
    refuse_second_daemon(&config)?;
    if !detached {
        return serve_or_undo(config, intent, None);
    }
    // Before any thread: a fork copies only one.
    match detach().map_err(|e| Fault::internal(&e))? {
        Detached::Daemon(report) => serve_or_undo(config, intent, Some(report)),
        // It has printed why it failed, on the same terminal; what is left is
        // the exit code.
        Detached::Parent(readiness) => match readiness.wait() {
            Ok(()) => Ok(()),
            Err(code) => std::process::exit(code.into()),
        },
    }
}

/// Says at once what the lock of the state directory would say later.
fn refuse_second_daemon(config: &Config) -> Result<(), Fault> {
    if std::os::unix::net::UnixStream::connect(config.api_socket()).is_err() {
        return Ok(());
    }
    let what = format!("a daemon already runs on {}", config.state_dir.display());
    Err(Fault::new(FaultKind::State, what).remedy(
        "`warren status` shows it, `warren down` stops it; --state-dir makes room for another",
    ))
}

/// A first start that fails leaves no state behind.
fn serve_or_undo(config: Config, intent: Intent, report: Option<ReadinessReport>) -> Ended {
    let dir = config.state_dir.clone();
    let was_fresh = !store::holds_state(&dir);
    let ended = serve(config, intent, report);
    // Opening takes the lock: never under a daemon that runs.
    if ended.is_err()
        && was_fresh
        && dir.exists()
        && let Ok(store) = Store::open(&dir)
        && matches!(store.member(), Ok(None))
        && let Err(error) = store.wipe()
    {
        tracing::warn!(%error, "the unfinished state could not be removed");
    }
    ended
}

fn serve(config: Config, intent: Intent, report: Option<ReadinessReport>) -> Ended {
    telemetry::init(config.log_format, config.log_level);
    runtime()?.block_on(async move {
        let events = EventLog::default();
        let (ready, is_ready) = oneshot::channel();
        let (stop, stopped) = oneshot::channel();
        let teller = Teller {
            json: config.log_format == LogFormat::Json,
            client: Client::new(config.api_socket()),
            log: config.state_dir.join(LOG_FILE),
        };
        let keep_on_hangup = report.is_some();
        let (_, news) = events.subscribe();
        let start = Start { config, intent, events, ready, stop: stopped };
        let mut daemon = std::pin::pin!(run(start));
        let mut told = std::pin::pin!(teller.tell(is_ready, news, report));
        let mut signals = std::pin::pin!(until_signal(keep_on_hangup));
        let mut stop = Some(stop);
        let mut telling = true;
        loop {
            tokio::select! {
                ended = &mut daemon => return ended,
                result = &mut told, if telling => {
                    telling = false;
                    // Cannot report: the one who asked would wait for ever.
                    if result.is_err() { stop.take(); }
                }
                () = &mut signals, if stop.is_some() => { stop.take(); }
            }
        }
    })
}

/// Resolves at the first signal that ends the daemon. A detached one outlives
/// its terminal.
async fn until_signal(keep_on_hangup: bool) {
    let (Ok(mut int), Ok(mut term), Ok(mut hup)) = (
        signal(SignalKind::interrupt()),
        signal(SignalKind::terminate()),
        signal(SignalKind::hangup()),
    ) else {
        tracing::warn!("signals cannot be caught; stop this node with `warren down`");
        return std::future::pending().await;
    };
    loop {
        tokio::select! {
            _ = int.recv() => return,
            _ = term.recv() => return,
            _ = hup.recv() => if !keep_on_hangup { return },
        }
    }
}

/// Tells the story of one start.
struct Teller {
    json: bool,
    client: Client,
    log: std::path::PathBuf,
}

impl Teller {
    async fn tell(
        self,
        is_ready: oneshot::Receiver<Ready>,
        mut news: broadcast::Receiver<EventRecord>,
        report: Option<ReadinessReport>,
    ) -> Result<(), Fault> {
        // A start that failed drops the sender; the daemon's result says why.
        let Ok(ready) = is_ready.await else { return Ok(()) };
        out(&if self.json { story::opening_json(&ready) } else { story::opening(&ready) })?;
        let in_background = report.is_some();
        if let Some(report) = report {
            self.go_to_background(report).map_err(|e| Fault::file("open", &self.log, &e))?;
        }
        let mut hinted = false;
        let mut admitted = HashSet::new();
        loop {
            let record = match news.recv().await {
                Ok(record) => record,
                Err(broadcast::error::RecvError::Lagged(_)) => continue,
                Err(broadcast::error::RecvError::Closed) => return Ok(()),
            };
            // What was said already: by the opening, or as the admission.
            let known = match &record.event {
                Event::Started { .. } => true,
                Event::NodeAdmitted { name } => !admitted.insert(name.clone()),
                Event::PeerDiscovered { name } => admitted.contains(name),
                _ => false,
            };
            if known && !self.json {
                continue;
            }
            match out(&self.line(&record, in_background)) {
                // A full disk under the log must not end the daemon.
                Err(_) if in_background => continue,
                result => result?,
            }
            if let Event::PathPromoted { name, .. } = &record.event
                && !hinted
                && !self.json
                && !in_background
            {
                hinted = true;
                self.hint(name).await?;
            }
        }
    }

    /// From here on, output goes to the log in the state directory.
    fn go_to_background(&self, report: ReadinessReport) -> std::io::Result<()> {
        // Made here for its mode; the report opens it by name.
        OpenOptions::new().create(true).append(true).mode(0o600).open(&self.log)?;
        report.ready(Some(&self.log))
    }

    fn line(&self, record: &EventRecord, dated: bool) -> String {
        // What is printed here is kept in logs.
        let (at, event) = (record.at, record.event.clone().for_log());
        let line = match (self.json, dated) {
            (true, _) => serde_json::to_string(&EventRecord { at, event }).unwrap_or_default(),
            (false, true) => story::dated(at, &event),
            (false, false) => story::line(&event),
        };
        line + "\n"
    }

    /// What to try next, with the new peer's address.
    async fn hint(&self, name: &str) -> Result<(), Fault> {
        let Ok(status) = self.client.status().await else { return Ok(()) };
        let peer = status.peers.iter().find(|p| p.name == name);
        match peer.and_then(|p| story::handy(&p.addresses)) {
            Some(address) => out(&story::hint(name, address)),
            None => Ok(()),
        }
    }
}
