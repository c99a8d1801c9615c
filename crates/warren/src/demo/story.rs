//! What the demo shows, step by step. Every step is a claim that is checked;
//! the words of its line come from what was measured.

use std::net::{IpAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use warren_lab::process::Node;

use super::cast::{AMSTERDAM, CAST, LONDON, SAOPAULO, TOKYO};
use super::scene::{Activity, ClaimState, Narrator};
use super::stage::{Actor, PATIENCE, Stage};
use super::traffic::{self, Document, MARKER};
use super::watcher;

/// The claims in order. Without a picture, when the demo ends by itself, there
/// is one more: how it ends.
pub(super) const CLAIMS: &[&str] = &[
    "world", "network", "join", "mesh", "ping", "download", "secrecy", "stream", "path", "exit",
    "failover", "proof", "founder",
];

/// Kilobytes of the file.
pub(super) const FILE_KB: usize = 8 * 1024;

/// Below this rate the stream is not worth showing, bits per second. Far below
/// what any machine of today reaches.
const LEAST_RATE: f64 = 50e6;

/// How it went.
#[derive(Debug, Clone, Copy)]
pub(super) struct Told {
    held: usize,
    failed: usize,
    skipped: usize,
    interrupted: bool,
    took: Duration,
}

impl Told {
    /// True when no claim failed and, unless the user ended it, all were
    /// checked.
    pub(super) fn held(&self) -> bool {
        self.failed == 0 && self.held > 0
    }
}

impl std::fmt::Display for Told {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let seconds = self.took.as_secs_f64();
        let ended = if self.interrupted { "Ended on request" } else { "Ended" };
        match (self.failed, self.held) {
            (0, held) => {
                write!(f, "{ended} after {seconds:.0} s: all {held} claims checked held.")?
            }
            (failed, held) => {
                write!(
                    f,
                    "{ended} after {seconds:.0} s: {failed} of {} claims FAILED.",
                    failed + held
                )?;
            }
        }
        if self.skipped > 0 {
            write!(f, " {} SKIPPED: this machine lacks something.", self.skipped)?;
        }
        f.write_str(" Nothing is left behind.")
    }
}

/// The user wants to go.
#[derive(Debug, thiserror::Error)]
#[error("interrupted")]
struct Interrupted;

/// Who tells the story; see also [`super::onion`] and [`super::encore`].
pub(super) struct Teller<'a> {
    pub(super) stage: &'a mut Stage,
    pub(super) narrator: &'a Narrator,
    pub(super) quit: &'a AtomicBool,
    pub(super) held: usize,
    pub(super) failed: usize,
    pub(super) skipped: usize,
}

/// Tells the story. With `encore`, traffic goes on afterwards for that long or
/// until the user ends it; without, the daemons are stopped and checked.
pub(super) fn tell(
    stage: &mut Stage,
    narrator: &Narrator,
    quit: &AtomicBool,
    encore: Option<Duration>,
) -> Result<Told> {
    let started = Instant::now();
    let mut teller = Teller { stage, narrator, quit, held: 0, failed: 0, skipped: 0 };
    let outcome = teller.acts(encore);
    let interrupted = quit.load(Ordering::Relaxed);
    if let Err(error) = outcome
        && !interrupted
        && !error.is::<ClaimFailed>()
    {
        return Err(error);
    }
    if interrupted && encore.is_none() {
        bail!("interrupted; everything it made is gone");
    }
    let (held, failed, skipped) = (teller.held, teller.failed, teller.skipped);
    Ok(Told { held, failed, skipped, interrupted, took: started.elapsed() })
}

/// A claim failed that later ones build upon; it has been told.
#[derive(Debug, thiserror::Error)]
#[error("a claim failed")]
struct ClaimFailed;

impl Teller<'_> {
    fn acts(&mut self, encore: Option<Duration>) -> Result<()> {
        let until = encore.and_then(|encore| Instant::now().checked_add(encore));
        self.need("world", Self::world)?;
        let dirs = CAST.iter().map(|member| self.stage.state_dir(member.name)).collect();
        watcher::watch(self.narrator, dirs).context("cannot start a thread")?;
        self.need("network", Self::network)?;
        self.need("join", Self::join)?;
        self.need("mesh", Self::mesh)?;
        self.claim("ping", Self::ping)?;
        self.claim("download", Self::download)?;
        self.claim("secrecy", Self::secrecy)?;
        self.claim("stream", Self::stream)?;
        self.paths()?;
        if encore.is_none() {
            self.claim("end", Self::end)?;
            return Ok(());
        }
        self.encore(until)
    }

    /// A claim the rest builds upon.
    fn need(
        &mut self,
        name: &'static str,
        act: impl FnOnce(&mut Self) -> Result<String>,
    ) -> Result<()> {
        if self.claim(name, act)? { Ok(()) } else { Err(ClaimFailed.into()) }
    }

    /// Checks a claim and tells how it went; an error only when the user wants
    /// to go.
    pub(super) fn claim(
        &mut self,
        name: &'static str,
        act: impl FnOnce(&mut Self) -> Result<String>,
    ) -> Result<bool> {
        self.go_on()?;
        self.narrator.claim(name, ClaimState::Running, "");
        let outcome = act(self);
        self.narrator.scene().activity = None;
        self.go_on()?;
        match outcome {
            Ok(text) => {
                self.held += 1;
                self.narrator.claim(name, ClaimState::Held, &text);
                Ok(true)
            }
            Err(error) => {
                self.failed += 1;
                self.narrator.claim(name, ClaimState::Failed, &format!("{error:#}"));
                Ok(false)
            }
        }
    }

    pub(super) fn go_on(&self) -> Result<()> {
        if self.quit.load(Ordering::Relaxed) { Err(Interrupted.into()) } else { Ok(()) }
    }

    /// The WAN delays as the table of regions says.
    fn world(&mut self) -> Result<String> {
        let (london, tokyo) = (&self.stage.actors[LONDON], &self.stage.actors[TOKYO]);
        let expected = london.region.rtt(tokyo.region);
        // The best of three, for this machine may be busy with other things.
        let mut measured = Duration::MAX;
        for _ in 0..3 {
            let took = traffic::ping(&london.host, tokyo.place.ipv4().into(), 3)?;
            measured = measured.min(took);
        }
        ensure!(
            measured >= expected.mul_f64(0.98) && measured < expected + Duration::from_millis(60),
            "{} from London to Tokyo instead of {}",
            ms(measured),
            ms(expected)
        );
        let places: Vec<&str> = self.stage.actors.iter().map(|actor| actor.region.city()).collect();
        Ok(format!(
            "{} namespaces on an emulated WAN: {}; London-Tokyo {} on the wire",
            places.len(),
            places.join(", "),
            ms(measured)
        ))
    }

    fn network(&mut self) -> Result<String> {
        let start = Instant::now();
        self.stage.start(LONDON, None)?;
        let address = self.stage.actors[LONDON].address(false)?;
        let took = start.elapsed().as_secs_f64();
        Ok(format!("`warren up` made a network in {took:.1} s; london is {address}"))
    }

    /// Everybody joins by a code a daemon printed.
    fn join(&mut self) -> Result<String> {
        let start = Instant::now();
        let mut code = self.stage.actors[LONDON].node()?.join_code(PATIENCE)?;
        for index in 1..CAST.len() {
            self.go_on()?;
            let begin = Instant::now();
            self.stage.start(index, Some(&code))?;
            let actor = &self.stage.actors[index];
            self.narrator.tell(format!(
                "{} joined in {:.1} s, it is {}; by `warren join {}...`",
                actor.host.name(),
                begin.elapsed().as_secs_f64(),
                actor.address(false)?,
                code.chars().take(12).collect::<String>()
            ));
            if index + 1 < CAST.len() {
                code = self.stage.actors[LONDON].node()?.invite()?;
            }
        }
        let others = CAST.len() - 1;
        let took = start.elapsed().as_secs_f64();
        Ok(format!("{others} daemons joined with a code of their own each, in {took:.1} s"))
    }

    /// Everybody reaches everybody directly.
    fn mesh(&mut self) -> Result<String> {
        let start = Instant::now();
        // Links open on the first packet.
        let pings = self.ping_all(20)?;
        let mut post_quantum = true;
        let mut suite = None;
        for index in 0..CAST.len() {
            self.go_on()?;
            let others = || CAST.iter().enumerate().filter(|(i, _)| *i != index);
            let node = self.stage.actors[index].node()?;
            let status = node.wait_until("reaches everybody directly", PATIENCE, |status| {
                others().all(|(_, other)| {
                    let mut peers = status.peers.iter();
                    let peer = peers.find(|peer| peer.name == other.name);
                    peer.is_some_and(|p| p.path == "direct" && p.handshake_age_s.is_some())
                })
            })?;
            for peer in status.peers {
                post_quantum &= peer.post_quantum;
                suite = Some(peer.suite);
            }
        }
        let suite = suite.context("no links")?;
        let keys = if post_quantum { ", keys with a post-quantum secret" } else { "" };
        Ok(format!(
            "all {} links direct {:.1} s after the last join; {suite}{keys}",
            pings.len() / 4,
            start.elapsed().as_secs_f64()
        ))
    }

    /// Pings between all ordered pairs over both families, all at once per
    /// sender, among the daemons that run: sender, receiver, time taken.
    pub(super) fn ping_all(&self, tries: u32) -> Result<Vec<(usize, usize, Duration)>> {
        let actors = &self.stage.actors;
        let running: Vec<usize> =
            (0..actors.len()).filter(|at| actors[*at].node.is_some()).collect();
        let running = &running;
        std::thread::scope(|scope| {
            let senders: Vec<_> = running
                .iter()
                .map(|&from| {
                    scope.spawn(move || {
                        let mut took = Vec::new();
                        for &to in running.iter().filter(|to| **to != from) {
                            for ipv6 in [false, true] {
                                let address: IpAddr = actors[to].address(ipv6)?;
                                let time = traffic::ping(&actors[from].host, address, tries)?;
                                took.push((from, to, time));
                            }
                        }
                        Ok::<_, anyhow::Error>(took)
                    })
                })
                .collect();
            let mut all = Vec::new();
            for sender in senders {
                all.extend(sender.join().map_err(|_| anyhow::anyhow!("a pinger panicked"))??);
            }
            Ok(all)
        })
    }

    fn ping(&mut self) -> Result<String> {
        let pings = self.ping_all(1)?;
        let mut added = Vec::new();
        for (from, to, took) in &pings {
            let (from, to) = (&self.stage.actors[*from], &self.stage.actors[*to]);
            let wire = from.region.rtt(to.region);
            ensure!(
                *took >= wire.mul_f64(0.98),
                "{} to {} in {}: faster than the wire",
                from.host.name(),
                to.host.name(),
                ms(*took)
            );
            added.push(took.saturating_sub(wire));
        }
        added.sort();
        let median = added[added.len() / 2];
        Ok(format!(
            "{} of {} pings answered, all pairs, IPv4 and IPv6; the tunnel adds {} (median)",
            pings.len(),
            pings.len(),
            ms(median)
        ))
    }

    fn download(&mut self) -> Result<String> {
        // An eavesdropper looks for the file's text. To know that it can see,
        // it is shown the text once in the clear.
        self.stage.wan.watch(Some(MARKER.as_bytes()));
        let [london, amsterdam, ..] = self.stage.actors.as_slice() else {
            bail!("the stage is empty");
        };
        self.send_in_the_clear(MARKER, london, amsterdam).context("cannot send in the clear")?;
        let document = Document::new(42, FILE_KB);
        let got = self.fetch(&document, TOKYO, SAOPAULO)?;
        ensure!(got.sha256 == document.sha256(), "the SHA-256 of the file differs");
        Ok(format!(
            "{} MiB by HTTP, tokyo to saopaulo, in {:.1} s, SHA-256 verified; over IPv6, {}...",
            got.bytes >> 20,
            got.took.as_secs_f64(),
            &got.sha256[..8]
        ))
    }

    /// One datagram outside of the mesh. The receiver listens, for an ICMP
    /// error would carry the text a second time.
    fn send_in_the_clear(&self, text: &str, from: &Actor, to: &Actor) -> Result<()> {
        let bind =
            |actor: &Actor| actor.host.namespace().run(|| UdpSocket::bind((actor.place.ipv4(), 0)));
        let (sender, receiver) = (bind(from)??, bind(to)??);
        receiver.set_read_timeout(Some(Duration::from_secs(2)))?;
        sender.send_to(text.as_bytes(), receiver.local_addr()?)?;
        receiver.recv(&mut [0; 128])?;
        Ok(())
    }

    pub(super) fn fetch(
        &self,
        document: &Document,
        from: usize,
        to: usize,
    ) -> Result<traffic::Download> {
        let (server, client) = (&self.stage.actors[from], &self.stage.actors[to]);
        let start = Instant::now();
        let text = format!(
            "{} MiB by HTTP, {} to {}",
            document.len() >> 20,
            CAST[from].name,
            CAST[to].name
        );
        self.busy(text, (from, to));
        traffic::download(document, (&server.host, server.address(true)?), &client.host, |bytes| {
            let rate = bytes as f64 * 8.0 / start.elapsed().as_secs_f64().max(1e-3);
            self.progress(bytes as f64 / document.len() as f64, rate);
        })
    }

    fn secrecy(&mut self) -> Result<String> {
        let (packets, hits) = self.stage.wan.watched();
        self.stage.wan.watch(None);
        ensure!(hits >= 1, "the eavesdropper missed a text sent in the clear");
        ensure!(hits == 1, "the file's text was seen on the wire {} times", hits - 1);
        ensure!(packets > 100, "only {packets} packets were on the wire");
        Ok(format!(
            "the file's text is in none of {packets} packets on the wire; an eavesdropper looked, \
             and did see it when it was sent once outside of the mesh"
        ))
    }

    fn stream(&mut self) -> Result<String> {
        let before = self.tunnelled(LONDON, AMSTERDAM)?;
        let times = (Duration::from_millis(800), Duration::from_millis(4800));
        let measured = self.blast(LONDON, AMSTERDAM, 1, times)?;
        let after = self.tunnelled(LONDON, AMSTERDAM)?;
        ensure!(
            after - before >= measured.bytes,
            "{} bytes arrived, but london's daemon sent {} only",
            measured.bytes,
            after - before
        );
        ensure!(measured.rate >= LEAST_RATE, "only {:.1} Mb/s", measured.rate / 1e6);
        let rtt = self.stage.actors[LONDON].region.rtt(self.stage.actors[AMSTERDAM].region);
        Ok(format!(
            "{:.2} Gb/s encrypted, london to amsterdam ({} apart); one TCP stream, 4 s",
            measured.rate / 1e9,
            ms(rtt)
        ))
    }

    /// Bytes a daemon sent to a peer through the tunnel, by its own count.
    fn tunnelled(&mut self, from: usize, to: usize) -> Result<u64> {
        let status = self.stage.actors[from].node()?.status()?;
        let peer = status.peers.iter().find(|peer| peer.name == CAST[to].name);
        Ok(peer.context("the peer is gone")?.tx_bytes)
    }

    pub(super) fn blast(
        &self,
        from: usize,
        to: usize,
        streams: usize,
        times: (Duration, Duration),
    ) -> Result<traffic::Measured> {
        let (sender, receiver) = (&self.stage.actors[from], &self.stage.actors[to]);
        let many =
            if streams == 1 { "TCP stream".to_owned() } else { format!("{streams} streams") };
        self.busy(format!("{many}, {} to {}", CAST[from].name, CAST[to].name), (from, to));
        let target = (&receiver.host, receiver.address(false)?);
        traffic::stream(&sender.host, target, streams, times, self.quit, |done, rate| {
            self.progress(done, rate);
        })
    }

    /// The daemons end when asked, without complaint.
    fn end(&mut self) -> Result<String> {
        let path = self.disconnect()?;
        let running = self.stage.actors.iter_mut().filter_map(|actor| actor.node.take());
        let running: Vec<_> = running.collect();
        let count = running.len();
        std::thread::scope(|scope| {
            let stop = |node: Node| scope.spawn(|| node.stop(Duration::from_secs(5)).map(drop));
            let stopping: Vec<_> = running.into_iter().map(stop).collect();
            stopping
                .into_iter()
                .try_for_each(|one| one.join().map_err(|_| anyhow::anyhow!("a thread panicked"))?)
        })?;
        Ok(format!("{path}{count} daemons ended when asked to, without complaint"))
    }

    pub(super) fn busy(&self, text: String, ends: (usize, usize)) {
        self.narrator.scene().activity =
            Some(Activity { text, ends, over_path: false, progress: 0.0, rate: None });
    }

    pub(super) fn progress(&self, share: f64, rate: f64) {
        if let Some(activity) = &mut self.narrator.scene().activity {
            activity.progress = share;
            activity.rate = Some(rate);
        }
    }
}

/// A time for people.
pub(super) fn ms(time: Duration) -> String {
    let ms = time.as_secs_f64() * 1e3;
    if ms < 10.0 { format!("{ms:.1} ms") } else { format!("{ms:.0} ms") }
}
