//! What the demo knows about itself right now: filled by the story and by the
//! watcher of the daemons, shown by the picture or told as lines.

use std::collections::VecDeque;
use std::io::Write;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use warren_lab::wan::Region;

use super::cast::Member;

/// Events kept for the picture.
const EVENTS_KEPT: usize = 64;

/// A daemon as the picture shows it.
#[derive(Debug, Clone)]
pub(super) struct NodeView {
    /// Name in the network.
    pub name: &'static str,
    /// Where it is.
    pub region: Region,
    /// Its country's code.
    pub country: &'static str,
    /// What it does for onion paths.
    pub roles: &'static str,
    /// Its daemon answers.
    pub alive: bool,
    /// Its overlay IPv4 address, once it serves.
    pub address: Option<String>,
    /// Bits per second of inner packets received and sent.
    pub rate_in: f64,
    /// See `rate_in`.
    pub rate_out: f64,
}

/// One node's view of the link to another.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct LinkView {
    /// Packets reach it without a detour.
    pub direct: bool,
    /// Round-trip time inside the tunnel, milliseconds.
    pub rtt_ms: Option<f64>,
}

/// How far a claim is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ClaimState {
    /// Not looked at yet.
    Open,
    /// Being shown.
    Running,
    /// Shown.
    Held,
    /// Did not hold.
    Failed,
    /// Cannot be shown on this machine.
    Skipped,
}

/// Something the demo says and checks.
#[derive(Debug, Clone)]
pub(super) struct Claim {
    /// One word.
    pub name: &'static str,
    /// How far it is.
    pub state: ClaimState,
}

/// Traffic on the way.
#[derive(Debug, Clone)]
pub(super) struct Activity {
    /// What it is.
    pub text: String,
    /// Sender and receiver, by place in the list of nodes.
    pub ends: (usize, usize),
    /// It goes over the onion path, not straight.
    pub over_path: bool,
    /// Share done, 0 to 1.
    pub progress: f64,
    /// Bits per second right now, if measured.
    pub rate: Option<f64>,
}

/// The user's onion path, by places in the list of nodes.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct PathView {
    /// From the user's machine to the exit, with the round-trip time to each,
    /// milliseconds.
    pub active: Vec<(usize, Option<f64>)>,
    /// The circuit that stands by, in the same order; empty when there is none.
    pub standby: Vec<usize>,
}

/// Everything the picture shows.
#[derive(Debug, Clone)]
pub(super) struct Scene {
    /// When the demo started.
    pub started: Instant,
    /// The daemons.
    pub nodes: Vec<NodeView>,
    /// By node, then peer.
    pub links: Vec<Vec<LinkView>>,
    /// In order of telling.
    pub claims: Vec<Claim>,
    /// Newest last, with the time since the start.
    pub events: VecDeque<(Duration, String)>,
    /// What goes on.
    pub activity: Option<Activity>,
    /// The onion path, while there is one.
    pub path: Option<PathView>,
}

impl Scene {
    /// The scene before the curtain rises.
    pub(super) fn new(nodes: &[Member], claims: &[&'static str]) -> Self {
        Self {
            started: Instant::now(),
            nodes: nodes
                .iter()
                .map(|member| NodeView {
                    name: member.name,
                    region: member.region,
                    country: member.country,
                    roles: member.roles,
                    alive: false,
                    address: None,
                    rate_in: 0.0,
                    rate_out: 0.0,
                })
                .collect(),
            links: vec![vec![LinkView::default(); nodes.len()]; nodes.len()],
            claims: claims.iter().map(|&name| Claim { name, state: ClaimState::Open }).collect(),
            events: VecDeque::new(),
            activity: None,
            path: None,
        }
    }

    /// True when a claim did not hold.
    pub(super) fn any_failed(&self) -> bool {
        self.claims.iter().any(|claim| claim.state == ClaimState::Failed)
    }

    /// Pairs with a direct path seen from both ends, and all pairs.
    pub(super) fn direct_pairs(&self) -> (usize, usize) {
        let count = self.nodes.len();
        let pairs = (0..count).flat_map(|a| (0..a).map(move |b| (a, b)));
        let direct = pairs.filter(|&(a, b)| self.links[a][b].direct && self.links[b][a].direct);
        (direct.count(), count * count.saturating_sub(1) / 2)
    }
}

/// The scene, shared between the story, the watcher and the picture; tells
/// lines as they come when there is no picture.
#[derive(Debug, Clone)]
pub(super) struct Narrator {
    scene: Arc<Mutex<Scene>>,
    lines: bool,
}

impl Narrator {
    /// With `lines`, everything told is printed.
    pub(super) fn new(scene: Scene, lines: bool) -> Self {
        Self { scene: Arc::new(Mutex::new(scene)), lines }
    }

    /// The scene, to look at or to change; hold it briefly.
    pub(super) fn scene(&self) -> MutexGuard<'_, Scene> {
        // Every change is complete in itself, so a panic elsewhere does no harm.
        self.scene.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something worth a line happened.
    pub(super) fn tell(&self, text: impl Into<String>) {
        let text = text.into();
        if self.lines {
            print_line(&format!("     {text}"));
        }
        self.event(text);
    }

    /// How a claim fares, with what was seen.
    pub(super) fn claim(&self, name: &'static str, state: ClaimState, text: &str) {
        if let Some(claim) = self.scene().claims.iter_mut().find(|claim| claim.name == name) {
            claim.state = state;
        }
        let mark = match state {
            ClaimState::Held => "ok  ",
            ClaimState::Failed => "FAIL",
            ClaimState::Skipped => "SKIPPED",
            ClaimState::Open | ClaimState::Running => return,
        };
        if self.lines {
            print_line(&format!("{mark} {name:<9} {text}"));
        }
        let prefix = match state {
            ClaimState::Failed => "FAILED: ",
            ClaimState::Skipped => "SKIPPED: ",
            _ => "",
        };
        self.event(format!("{prefix}{text}"));
    }

    fn event(&self, text: String) {
        let mut scene = self.scene();
        let at = scene.started.elapsed();
        // The picture has one line for each.
        let text = text.lines().next().unwrap_or_default().to_owned();
        scene.events.push_back((at, text));
        if scene.events.len() > EVENTS_KEPT {
            scene.events.pop_front();
        }
    }
}

/// Prints a line; a reader that went away (`warren demo | head -1`) is no
/// reason to stop checking.
pub(super) fn print_line(line: &str) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::cast::CAST;

    #[test]
    fn pairs_count_when_both_ends_say_direct() {
        let mut scene = Scene::new(&CAST[..3], &["mesh"]);
        assert_eq!(scene.direct_pairs(), (0, 3));
        scene.links[0][1].direct = true;
        assert_eq!(scene.direct_pairs(), (0, 3));
        scene.links[1][0].direct = true;
        assert_eq!(scene.direct_pairs(), (1, 3));
    }

    #[test]
    fn claims_and_events_are_kept() {
        let narrator = Narrator::new(Scene::new(&[], &["mesh", "ping"]), false);
        narrator.claim("mesh", ClaimState::Running, "");
        narrator.claim("mesh", ClaimState::Held, "all there");
        narrator.claim("ping", ClaimState::Failed, "nobody answers\nat all");
        for i in 0..100 {
            narrator.tell(format!("event {i}"));
        }
        let scene = narrator.scene();
        assert_eq!(scene.claims[0].state, ClaimState::Held);
        assert_eq!(scene.claims[1].state, ClaimState::Failed);
        assert!(scene.any_failed());
        assert_eq!(scene.events.len(), EVENTS_KEPT);
        assert_eq!(scene.events.back().unwrap().1, "event 99");
    }
}
