//! Finding a peer among several addresses, and when to try again.
//!
//! In: candidate addresses, a QUIC endpoint. Out: the first connection whose
//! peer passes the caller's check. Invariants: attempts start one after another
//! ([`STAGGER`] apart), those over TCP after a head start for UDP, and the losers
//! are dropped; a node waits longer after each
//! failure, with jitter, so that a restarted network does not dial in step.
//! Deliberately not here: whom to dial.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use quinn::{ClientConfig, Connection, Endpoint};
use rand_core::RngCore;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::session::{Failure, close_for};
use super::tls::Timing;
use super::tunnel::Tunnels;
use crate::random::OsRandom;

/// Between the starts of attempts to several addresses of one peer.
pub(crate) const STAGGER: Duration = Duration::from_millis(200);

/// Where a peer may be reached.
#[derive(Debug, Clone)]
pub(crate) struct Candidates {
    /// UDP addresses, best first.
    pub(crate) udp: Vec<SocketAddr>,
    /// TCP addresses, for when UDP does not get through.
    pub(crate) tcp: Vec<SocketAddr>,
    /// What opens the latter.
    pub(crate) tunnels: Arc<Tunnels>,
}

/// Dials all candidates, staggered, and one more at once if `late` names it
/// meanwhile; the first connection that passes `check` wins.
///
/// # Errors
/// What happened at each address.
pub(crate) async fn race<T, C>(
    endpoint: &Endpoint,
    config: &ClientConfig,
    candidates: &Candidates,
    mut late: oneshot::Receiver<SocketAddr>,
    wait: Duration,
    check: C,
) -> Result<(Connection, T), Vec<(SocketAddr, Failure)>>
where
    T: Send + 'static,
    C: Fn(&Connection) -> Result<T, Failure> + Send + Sync + 'static,
{
    let check = Arc::new(check);
    let attempt = |n: usize, address: SocketAddr| {
        let (endpoint, config, check) = (endpoint.clone(), config.clone(), check.clone());
        async move {
            sleep(STAGGER * u32::try_from(n).unwrap_or(u32::MAX)).await;
            let result = timeout(wait, one(&endpoint, config, address, check.as_ref())).await;
            let result = result.unwrap_or_else(|_| {
                Err(Failure::Ended { reason: "no answer".into(), refused: false })
            });
            (address, result)
        }
    };
    let mut attempts = JoinSet::new();
    for (n, address) in candidates.udp.iter().copied().enumerate() {
        attempts.spawn(attempt(n, address));
    }
    let head_start =
        if candidates.udp.is_empty() { Duration::ZERO } else { candidates.tunnels.head_start() };
    for (n, server) in candidates.tcp.iter().copied().enumerate() {
        let (endpoint, config, check) = (endpoint.clone(), config.clone(), check.clone());
        let tunnels = candidates.tunnels.clone();
        attempts.spawn(async move {
            sleep(head_start + STAGGER * u32::try_from(n).unwrap_or(u32::MAX)).await;
            let attempt = async {
                let local = tunnels.open(server).await.map_err(|e| Failure::Ended {
                    reason: format!("over TCP: {e}"),
                    refused: false,
                })?;
                one(&endpoint, config, local, check.as_ref()).await
            };
            let result = timeout(wait, attempt).await.unwrap_or_else(|_| {
                Err(Failure::Ended { reason: "over TCP: no answer".into(), refused: false })
            });
            (server, result)
        });
    }
    let mut failures = Vec::new();
    let mut may_come = true;
    loop {
        let done = tokio::select! {
            done = attempts.join_next() => done,
            named = &mut late, if may_come => {
                may_come = false;
                if let Ok(address) = named {
                    attempts.spawn(attempt(0, address));
                }
                continue;
            }
        };
        match done {
            Some(Ok((_, Ok(won)))) => return Ok(won),
            Some(Ok((address, Err(failure)))) => failures.push((address, failure)),
            Some(Err(_)) => {}
            None => return Err(failures),
        }
    }
}

async fn one<T>(
    endpoint: &Endpoint,
    config: ClientConfig,
    address: SocketAddr,
    check: &(impl Fn(&Connection) -> Result<T, Failure> + Sync),
) -> Result<(Connection, T), Failure> {
    let ended = |reason: String| Failure::Ended { reason, refused: false };
    // Names are not used: the peer is known by its key.
    let connecting =
        endpoint.connect_with(config, address, "warren").map_err(|e| ended(e.to_string()))?;
    let connection = connecting.await.map_err(|e| {
        ended(match e {
            quinn::ConnectionError::TimedOut => "no answer".into(),
            other => other.to_string(),
        })
    })?;
    match check(&connection) {
        Ok(value) => Ok((connection, value)),
        Err(failure) => Err(close_for(&connection, failure)),
    }
}

/// When to dial one peer.
#[derive(Debug)]
pub(crate) struct Schedule {
    /// The next attempt is due then.
    pub(crate) next: Instant,
    /// Failures in a row.
    pub(crate) failures: u32,
    /// An attempt or a connection is there.
    pub(crate) busy: bool,
}

impl Schedule {
    pub(crate) fn at(next: Instant) -> Self {
        Self { next, failures: 0, busy: false }
    }

    /// After a failed attempt. Refusals wait at least ten first waits: they do
    /// not mend by themselves within a second.
    pub(crate) fn failed(&mut self, now: Instant, timing: &Timing, refused: bool) {
        self.busy = false;
        self.failures = self.failures.saturating_add(1);
        let wait = timing.retry.saturating_mul(1 << (self.failures - 1).min(16));
        let least = if refused { timing.retry * 10 } else { timing.retry };
        self.next = now + jitter(wait.max(least).min(timing.retry_max));
    }

    /// After a connection that had been up.
    pub(crate) fn lost(&mut self, now: Instant, timing: &Timing) {
        self.busy = false;
        self.failures = 0;
        self.next = now + jitter(timing.retry / 4);
    }
}

/// Three to five quarters of `wait`.
pub(crate) fn jitter(wait: Duration) -> Duration {
    let share = f64::from(OsRandom.next_u32()) / f64::from(u32::MAX);
    wait.mul_f64(0.75 + share / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_a_limit() {
        let timing = Timing::default();
        let now = Instant::now();
        let mut schedule = Schedule::at(now);
        let mut last = Duration::ZERO;
        for _ in 0..40 {
            schedule.failed(now, &timing, false);
            last = schedule.next - now;
            assert!(last <= timing.retry_max.mul_f64(1.25));
        }
        assert!(last >= timing.retry_max.mul_f64(0.75));
        schedule.lost(now, &timing);
        assert!(schedule.next - now < timing.retry);
        schedule.failed(now, &timing, true);
        assert!(schedule.next - now > timing.retry * 5);
    }
}
