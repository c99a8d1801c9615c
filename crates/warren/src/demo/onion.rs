//! The part of the story about onion-routed paths: the user's machine reaches
//! a server outside of the network through three others, one of which is killed
//! in the middle of a download.
//!
//! In: a mesh that is up, with roles spread over it. Out: claims, as in
//! [`super::story`]. Invariant: whoever is killed is taken from what the user's
//! daemon says it uses at that moment. Deliberately not here: what the machine
//! lacks for exits and the kill switch ([`super::stage`] finds out).

use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use warren_os::process::{Signal, signal};
use warren_types::api::OnionReport;

use super::cast::{CAST, FRANKFURT, LAPTOP, LONDON, SINGAPORE, TOKYO};
use super::scene::{Activity, ClaimState, PathView};
use super::stage::PATIENCE;
use super::story::{Teller, ms};
use super::traffic::{self, Document, Download};
use super::watcher;

/// Claims that need onion paths.
const CLAIMS: [&str; 4] = ["path", "exit", "failover", "proof"];

/// Kilobytes of the file that a relay dies under.
const FILE_KB: usize = 24 * 1024;

/// Share of the file after which it does.
const DEATH: f64 = 0.4;

/// Longer than this nothing may come, although the relay is gone.
const LONGEST_SILENCE: Duration = Duration::from_secs(5);

/// Between looks at what a daemon says.
const LOOK: Duration = Duration::from_millis(100);

/// How a relay died under a download.
struct Death {
    relay: usize,
    before: PathView,
    at: Instant,
    /// The longest time without a byte from then on.
    silence: Duration,
}

impl Teller<'_> {
    /// Everything about paths, or why there is nothing.
    pub(super) fn paths(&mut self) -> Result<()> {
        if let Some(why) = self.stage.no_paths.clone() {
            for name in CLAIMS {
                self.skipped += 1;
                self.narrator.claim(name, ClaimState::Skipped, &why);
            }
        } else if self.claim("path", Self::path)? {
            self.claim("exit", Self::exit)?;
            self.claim("failover", Self::failover)?;
            self.claim("proof", Self::proof)?;
        }
        self.claim("founder", Self::founder)?;
        Ok(())
    }

    /// Connects, and sees who is on the path.
    fn path(&mut self) -> Result<String> {
        let own = IpAddr::from(self.stage.actors[LAPTOP].place.ipv4());
        let seen = self.over_path(&Document::new(44, 64), |_| {})?.seen_as;
        ensure!(seen == own, "before connecting, the server saw {seen} instead of {own}");
        let start = Instant::now();
        self.connect()?;
        let took = start.elapsed();
        let view = self.wait_path("a path with a standby", |view| !view.standby.is_empty())?;
        ensure!(view.active.len() == 4, "{} hops instead of 3", view.active.len() - 1);
        ensure!(view.active[3].0 == FRANKFURT, "it does not end in Germany");
        let mut wire = Duration::ZERO;
        for pair in view.active.windows(2) {
            let [(from, _), (to, rtt)] = [pair[0], pair[1]];
            wire += CAST[from].region.rtt(CAST[to].region);
            let rtt = rtt.unwrap_or_default();
            let least = wire.as_secs_f64() * 1e3 * 0.98;
            ensure!(rtt >= least, "{} in {rtt:.0} ms: faster than the wire", CAST[to].name);
        }
        Ok(format!(
            "{}; by `warren connect --exit de --kill-switch` in {:.1} s; {} on standby",
            describe(&view),
            took.as_secs_f64(),
            between(&view.standby)
        ))
    }

    /// A member that has just joined may not know of every other one yet.
    fn connect(&mut self) -> Result<()> {
        // The resolver may be shared with the machine outside of the demo.
        let words = ["connect", "--exit", "de", "--kill-switch", "--keep-dns"];
        let deadline = Instant::now() + PATIENCE;
        loop {
            self.go_on()?;
            match self.stage.actors[LAPTOP].node()?.warren(&words) {
                Ok(_) => return Ok(()),
                Err(error) if Instant::now() > deadline => return Err(error),
                Err(_) => std::thread::sleep(LOOK),
            }
        }
    }

    /// What the user's machine says of its path now.
    fn view(&self) -> Result<Option<PathView>> {
        let node = self.stage.actors[LAPTOP].node.as_ref().context("the laptop does not run")?;
        let report: OnionReport = serde_json::from_str(&node.warren(&["path", "show", "--json"])?)?;
        Ok(watcher::path(&report))
    }

    /// Waits for a path that has been measured and is as wanted.
    fn wait_path(&self, what: &str, wanted: impl Fn(&PathView) -> bool) -> Result<PathView> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            self.go_on()?;
            let view = self.view()?;
            if let Some(view) = &view
                && view.active.iter().skip(1).all(|(_, rtt)| rtt.is_some())
                && wanted(view)
            {
                self.narrator.scene().path = Some(view.clone());
                return Ok(view.clone());
            }
            let text = view.as_ref().map_or_else(|| "none".to_owned(), describe);
            ensure!(Instant::now() < deadline, "no {what} within {PATIENCE:?}: {text}");
            std::thread::sleep(LOOK);
        }
    }

    /// A file from the server outside to the user's machine, however packets
    /// go.
    pub(super) fn over_path(
        &self,
        document: &Document,
        mut heard: impl FnMut(usize),
    ) -> Result<Download> {
        let (server, laptop) = (&self.stage.server, &self.stage.actors[LAPTOP]);
        let start = Instant::now();
        let over_path = self.narrator.scene().path.is_some();
        let way = if over_path { "through the path" } else { "without a path" };
        self.narrator.scene().activity = Some(Activity {
            text: format!("download from a server in Frankfurt, {way}"),
            ends: (FRANKFURT, LAPTOP),
            over_path,
            progress: 0.0,
            rate: None,
        });
        let address = server.place.ipv4().into();
        let got = traffic::download(document, (&server.host, address), &laptop.host, |bytes| {
            let rate = bytes as f64 * 8.0 / start.elapsed().as_secs_f64().max(1e-3);
            self.progress(bytes as f64 / document.len() as f64, rate);
            heard(bytes);
        });
        self.narrator.scene().activity = None;
        let got = got?;
        ensure!(got.sha256 == document.sha256(), "the SHA-256 of the file differs");
        Ok(got)
    }

    /// The server sees the exit; nothing goes beside the path.
    fn exit(&mut self) -> Result<String> {
        let (laptop, server) = (self.stage.actors[LAPTOP].place, self.stage.server.place);
        let exit = IpAddr::from(self.stage.actors[FRANKFURT].place.ipv4());
        let packets = || {
            let count =
                |from, to| Ok::<_, anyhow::Error>(self.stage.wan.counters(from, to)?.offered);
            Ok::<_, anyhow::Error>(count(laptop, server)? + count(server, laptop)?)
        };
        let before = packets()?;
        let got = self.over_path(&Document::new(45, 2048), |_| {})?;
        let beside = packets()? - before;
        ensure!(got.seen_as == exit, "the server saw {}; frankfurt is {exit}", got.seen_as);
        ensure!(beside == 0, "{beside} packets went straight between laptop and server");
        Ok(format!(
            "a server outside of the network saw {exit}, frankfurt, not the laptop ({}); and 0 \
             packets went straight between the two",
            laptop.ipv4()
        ))
    }

    /// The relay in the middle dies in the middle of a download.
    fn failover(&mut self) -> Result<String> {
        self.wait_path("standby", |view| !view.standby.is_empty())?;
        let document = Document::new(46, FILE_KB);
        let mut death: Option<Result<Death>> = None;
        let mut last = Instant::now();
        let share = (document.len() as f64 * DEATH) as usize;
        let got = self.over_path(&document, |bytes| {
            let now = Instant::now();
            match &mut death {
                None if bytes >= share => death = Some(self.kill_relay()),
                Some(Ok(death)) => {
                    death.silence = death.silence.max(now - last.max(death.at));
                }
                _ => {}
            }
            last = now;
        });
        let death = death.context("the download broke off before the relay was killed")??;
        let name = CAST[death.relay].name;
        // Dead already; this takes note of it.
        self.stage.kill(death.relay)?;
        let got = got.with_context(|| format!("{name} was killed, and so the download"))?;
        let exit = IpAddr::from(self.stage.actors[FRANKFURT].place.ipv4());
        ensure!(got.seen_as == exit, "the server saw {}; frankfurt is {exit}", got.seen_as);
        let silence = ms(death.silence);
        ensure!(death.silence < LONGEST_SILENCE, "nothing came for {silence}");
        let after = self.wait_path("path without the dead relay", |view| {
            view.active.len() == 4 && view.active.iter().all(|(at, _)| *at != death.relay)
        })?;
        ensure!(after.active[3].0 == FRANKFURT, "it does not end in Germany any more");
        self.narrator.tell(format!("path before: {}", describe(&death.before)));
        self.narrator.tell(format!("path after:  {}", describe(&after)));
        Ok(format!(
            "{name}, the relay, killed at {:.0} % of a download: no byte for {silence}; then the \
             rest of {} MiB came in the same connection, SHA-256 verified, {:.1} s in all",
            DEATH * 100.0,
            got.bytes >> 20,
            got.took.as_secs_f64()
        ))
    }

    fn kill_relay(&self) -> Result<Death> {
        let before = self.view()?.context("no path")?;
        ensure!(before.active.len() == 4, "no relay in the middle: {}", describe(&before));
        let relay = before.active[2].0;
        let node = self.stage.actors[relay].node.as_ref().context("the relay does not run")?;
        signal(node.pid(), Signal::Kill)?;
        let at = Instant::now();
        let name = CAST[relay].name;
        self.narrator
            .tell(format!("kill -9 of {name}, in the middle of the path and of a download"));
        Ok(Death { relay, before, at, silence: Duration::ZERO })
    }

    /// The hops sign, and somebody else checks.
    fn proof(&mut self) -> Result<String> {
        let file = self.stage.scratch_file("proof.json");
        let name = file.to_str().context("no file name")?.to_owned();
        self.stage.actors[LAPTOP].node()?.warren(&["path", "verify", "--export", &name])?;
        let checker = (0..CAST.len())
            .find(|at| *at != LAPTOP && self.stage.actors[*at].node.is_some())
            .unwrap_or(TOKYO);
        let said = self.stage.actors[checker].node()?.warren(&["path", "verify", &name])?;
        let line = said.lines().next().unwrap_or_default();
        ensure!(line.starts_with("3 nodes signed"), "{said}");
        let hops = line.rsplit(": ").next().unwrap_or_default();
        ensure!(hops.ends_with("> frankfurt"), "{said}");
        Ok(format!(
            "`warren path verify`: {hops} signed that they carry it; {} checked the signatures",
            CAST[checker].name
        ))
    }

    /// The founder is no centre.
    fn founder(&mut self) -> Result<String> {
        self.stage.actors[LONDON].node()?.warren(&["ca", "delegate", CAST[SINGAPORE].name])?;
        self.stage.kill(LONDON)?;
        self.narrator.tell("kill -9 of london, which made the network");
        let start = Instant::now();
        let pings = self.ping_all(3)?;
        let mut path = "";
        if self.narrator.scene().path.is_some() {
            let seen = self.over_path(&Document::new(47, 256), |_| {})?.seen_as;
            let exit = IpAddr::from(self.stage.actors[FRANKFURT].place.ipv4());
            ensure!(seen == exit, "the server saw {seen}; frankfurt is {exit}");
            path = ", the path carries on";
        }
        let code = self.stage.actors[SINGAPORE].node()?.invite()?;
        let guest = self.stage.guest(&code)?;
        let address = guest.overlay_address(false)?;
        let rtt = traffic::ping(&self.stage.actors[SINGAPORE].host, address, 20)?;
        guest.stop(Duration::from_secs(5))?;
        Ok(format!(
            "london, the founder, was killed: {} of {} pings between the others \
             answered{path}, and singapore admitted a newcomer ({} away); {:.1} s",
            pings.len(),
            pings.len(),
            ms(rtt),
            start.elapsed().as_secs_f64()
        ))
    }

    /// Ends the path; the words for it.
    pub(super) fn disconnect(&mut self) -> Result<String> {
        if self.narrator.scene().path.is_none() {
            return Ok(String::new());
        }
        self.stage.actors[LAPTOP].node()?.warren(&["disconnect"])?;
        self.narrator.scene().path = None;
        let own = IpAddr::from(self.stage.actors[LAPTOP].place.ipv4());
        let seen = self.over_path(&Document::new(48, 64), |_| {})?.seen_as;
        ensure!(seen == own, "after `warren disconnect` the server saw {seen} instead of {own}");
        Ok("after `warren disconnect` the server saw the laptop itself; ".to_owned())
    }
}

/// `laptop (us) > montreal (ca) 61 ms > ...`.
fn describe(view: &PathView) -> String {
    let hops = view.active.iter().map(|(at, rtt)| {
        let rtt = rtt.map_or_else(String::new, |ms| format!(" {ms:.0} ms"));
        format!("{} ({}){rtt}", CAST[*at].name, CAST[*at].country)
    });
    hops.collect::<Vec<_>>().join(" > ")
}

/// The hops of a path between its ends.
fn between(path: &[usize]) -> String {
    let inner = path.get(1..path.len().saturating_sub(1)).unwrap_or_default();
    inner.iter().map(|at| CAST[*at].name).collect::<Vec<_>>().join(" > ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::cast::AMSTERDAM;

    #[test]
    fn a_path_is_told_with_countries_and_times() {
        let active = vec![(LAPTOP, None), (TOKYO, Some(97.4)), (FRANKFURT, Some(320.0))];
        let view = PathView { active, standby: vec![LAPTOP, AMSTERDAM, TOKYO, FRANKFURT] };
        assert_eq!(describe(&view), "laptop (us) > tokyo (jp) 97 ms > frankfurt (de) 320 ms");
        assert_eq!(between(&view.standby), "amsterdam > tokyo");
        assert_eq!(between(&[]), "");
    }
}
