//! Asks the daemons for their status once a second and puts the answers into
//! the scene: addresses, paths, round-trip times, throughput, and the onion path of the user's machine.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use warren_node::api::Client;
use warren_node::config::api_socket;
use warren_types::api::{OnionReport, OnionState, Status};

use super::cast::{LAPTOP, place};
use super::scene::{LinkView, Narrator, PathView, Scene};

/// Time between two looks.
const PAUSE: Duration = Duration::from_millis(700);

/// Watches the daemon of each state directory, in the order of the scene's
/// nodes, on a thread of its own until the process ends.
pub(super) fn watch(narrator: &Narrator, state_dirs: Vec<PathBuf>) -> std::io::Result<()> {
    let narrator = narrator.clone();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::Builder::new().name("watcher".to_owned()).spawn(move || {
        let clients: Vec<Client> =
            state_dirs.iter().map(|dir| Client::new(api_socket(dir))).collect();
        let mut seen: Vec<Option<Seen>> = vec![None; clients.len()];
        loop {
            for (i, client) in clients.iter().enumerate() {
                let answer = runtime.block_on(async {
                    tokio::time::timeout(Duration::from_secs(2), client.status()).await
                });
                let alive = matches!(answer, Ok(Ok(_)));
                if !alive {
                    let node = &mut narrator.scene().nodes[i];
                    (node.alive, node.rate_in, node.rate_out) = (false, 0.0, 0.0);
                }
                // A daemon that does not run yet, or no more, has no news.
                if let Ok(Ok(status)) = answer {
                    let now = Seen::of(&status);
                    let mut scene = narrator.scene();
                    put(&mut scene, i, &status);
                    if let Some(before) = seen[i] {
                        let node = &mut scene.nodes[i];
                        (node.rate_in, node.rate_out) = now.rates_since(before);
                    }
                    seen[i] = Some(now);
                }
                if i == LAPTOP {
                    let answer = runtime.block_on(async {
                        tokio::time::timeout(Duration::from_secs(2), client.onion()).await
                    });
                    let view = answer.ok().and_then(Result::ok).and_then(|report| path(&report));
                    narrator.scene().path = view;
                }
            }
            std::thread::sleep(PAUSE);
        }
    })?;
    Ok(())
}

/// Byte counters at a time.
#[derive(Debug, Clone, Copy)]
struct Seen {
    at: Instant,
    received: u64,
    sent: u64,
}

impl Seen {
    fn of(status: &Status) -> Self {
        Self {
            at: Instant::now(),
            received: status.peers.iter().map(|peer| peer.rx_bytes).sum(),
            sent: status.peers.iter().map(|peer| peer.tx_bytes).sum(),
        }
    }

    /// Bits per second in and out.
    fn rates_since(self, before: Self) -> (f64, f64) {
        let seconds = (self.at - before.at).as_secs_f64().max(1e-3);
        let rate = |now: u64, then: u64| now.saturating_sub(then) as f64 * 8.0 / seconds;
        (rate(self.received, before.received), rate(self.sent, before.sent))
    }
}

/// The onion path the user's machine tells of, while it carries packets.
pub(super) fn path(report: &OnionReport) -> Option<PathView> {
    let hops = |phase: &str| {
        let circuit = report.circuits.iter().find(|circuit| circuit.phase == phase)?;
        let hops = circuit.hops.iter().filter_map(|hop| Some((place(&hop.name)?, hop.rtt_ms)));
        Some(std::iter::once((LAPTOP, None)).chain(hops).collect::<Vec<_>>())
    };
    let active = hops("active").filter(|_| report.state == OnionState::Connected)?;
    let standby = hops("standby").unwrap_or_default().into_iter().map(|(at, _)| at).collect();
    Some(PathView { active, standby })
}

/// Puts what one daemon says into the scene.
fn put(scene: &mut Scene, index: usize, status: &Status) {
    let ipv4 = status.node.addresses.iter().find(|address| address.is_ipv4());
    scene.nodes[index].alive = true;
    scene.nodes[index].address = ipv4.map(ToString::to_string);
    let mut views = vec![LinkView::default(); scene.nodes.len()];
    for peer in &status.peers {
        if let Some(place) = scene.nodes.iter().position(|node| node.name == peer.name) {
            views[place] = LinkView { direct: peer.path == "direct", rtt_ms: peer.rtt_ms };
        }
    }
    scene.links[index] = views;
}
