//! Traffic for the live picture after the story, until the user has seen
//! enough: streams, downloads over mesh and path, pings.
//!
//! Nothing here is a claim; what goes wrong is told as an event.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::cast::{AMSTERDAM, CAST, LONDON, SAOPAULO, TOKYO, VIRGINIA};
use super::story::{FILE_KB, Teller, ms};
use super::traffic::Document;

impl Teller<'_> {
    /// Traffic for the picture, until the user has seen enough.
    pub(super) fn encore(&mut self, until: Option<Instant>) -> Result<()> {
        self.stage.revive_all()?;
        let document = Document::new(43, FILE_KB);
        let times = (Duration::from_secs(1), Duration::from_secs(6));
        for round in 0.. {
            if until.is_some_and(|until| Instant::now() >= until) {
                return Ok(());
            }
            self.go_on()?;
            let outcome = match round % 6 {
                0 => self.show_stream(LONDON, AMSTERDAM, 1, times),
                1 => self.show_download(&document, VIRGINIA, TOKYO),
                2 => self.show_stream(VIRGINIA, LONDON, 4, times),
                3 => self.show_path(&document),
                4 => self.show_pings(),
                _ => self.show_download(&document, AMSTERDAM, SAOPAULO),
            };
            self.narrator.scene().activity = None;
            self.go_on()?;
            match outcome {
                Ok(text) => self.narrator.tell(text),
                Err(error) => self.narrator.tell(format!("FAILED: {error:#}")),
            }
            let pause = Instant::now() + Duration::from_secs(1);
            while Instant::now() < pause {
                self.go_on()?;
                std::thread::sleep(Duration::from_millis(50));
            }
        }
        Ok(())
    }

    fn show_stream(
        &self,
        from: usize,
        to: usize,
        streams: usize,
        times: (Duration, Duration),
    ) -> Result<String> {
        let measured = self.blast(from, to, streams, times)?;
        Ok(format!(
            "{} to {}: {:.2} Gb/s over {streams} TCP stream{}",
            CAST[from].name,
            CAST[to].name,
            measured.rate / 1e9,
            if streams == 1 { "" } else { "s" }
        ))
    }

    fn show_download(&self, document: &Document, from: usize, to: usize) -> Result<String> {
        let got = self.fetch(document, from, to)?;
        ensure!(got.sha256 == document.sha256(), "the SHA-256 of the file differs");
        Ok(format!(
            "{} MiB from {} to {} in {:.1} s, SHA-256 verified",
            got.bytes >> 20,
            CAST[from].name,
            CAST[to].name,
            got.took.as_secs_f64()
        ))
    }

    fn show_path(&self, document: &Document) -> Result<String> {
        let got = self.over_path(document, |_| {})?;
        Ok(format!(
            "{} MiB through the path in {:.1} s, SHA-256 verified; the server saw {}",
            got.bytes >> 20,
            got.took.as_secs_f64(),
            got.seen_as
        ))
    }

    fn show_pings(&self) -> Result<String> {
        let pings = self.ping_all(2)?;
        let slowest = pings.iter().max_by_key(|(.., took)| *took).context("nobody to ping")?;
        Ok(format!(
            "{} pings answered; the longest way, {} to {}, took {}",
            pings.len(),
            CAST[slowest.0].name,
            CAST[slowest.1].name,
            ms(slowest.2)
        ))
    }
}
