//! `up` and `join`: the daemon in this process, and its story on standard
//! output. With `--detach` the process forks first; the part that stays in the
//! foreground ends when the node serves.

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{broadcast, oneshot};
use warren_node::api::{Client, EventLog};
use warren_node::config::{Config, LogFormat};
use warren_node::fault::{Fault, FaultKind};
use warren_node::start::{
    Detached, Ended, Intent, Outcome, ReadinessReport, Ready, Start, detach, run,
};
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
        return serve(config, intent, None);
    }
    // Before any thread: a fork copies only one.
    match detach().map_err(|e| Fault::internal(&e))? {
        Detached::Daemon(report) => serve(config, intent, Some(report)),
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
        let invites = matches!(ready.outcome, Outcome::Created { code: Some(_) });
        if !self.json || invites {
            out(&story::opening(&ready))?;
        }
        if let Some(report) = report {
            report.ready(Some(&self.log)).map_err(|e| Fault::file("open", &self.log, &e))?;
        }
        let mut hinted = false;
        loop {
            let record = match news.recv().await {
                Ok(record) => record,
                Err(broadcast::error::RecvError::Lagged(_)) => continue,
                Err(broadcast::error::RecvError::Closed) => return Ok(()),
            };
            // The opening has said so.
            if matches!(record.event, Event::Started { .. }) && !self.json {
                continue;
            }
            out(&self.line(&record))?;
            if let Event::PathPromoted { name, .. } = &record.event
                && !hinted
                && !self.json
            {
                hinted = true;
                self.hint(name).await?;
            }
        }
    }

    fn line(&self, record: &EventRecord) -> String {
        if self.json {
            format!("{}\n", serde_json::to_string(record).unwrap_or_default())
        } else {
            format!("{}\n", story::line(&record.event))
        }
    }

    /// What to try next, with the new peer's address.
    async fn hint(&self, name: &str) -> Result<(), Fault> {
        let Ok(status) = self.client.status().await else { return Ok(()) };
        let peer = status.peers.iter().find(|p| p.name == name);
        match peer.and_then(|p| p.addresses.first()) {
            Some(address) => out(&story::hint(name, *address)),
            None => Ok(()),
        }
    }
}
