//! Metrics as a Prometheus on the same machine scrapes them.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use warren_lab::topology::{Host, Pair, Underlay, output_of};
use warren_lab::traffic::echo;
use warren_os::files::TemporaryDir;

use crate::names::{eventually, have};
use crate::story::{PATIENCE, spec};

const LISTEN: &str = "127.0.0.1:9586";
/// Bytes of an echo.
const SIZE: usize = 200;

/// Status and text of the answer to a `GET /metrics`.
fn scrape(host: &Host, at: &str, more: &[&str]) -> Result<(String, String)> {
    let mut curl = host.command("curl");
    curl.args(["-sS", "--max-time", "5", "--write-out", "%{http_code}"]).args(more);
    let output = curl.arg(format!("http://{at}/metrics")).output().context("cannot run curl")?;
    let text = String::from_utf8(output.stdout)?;
    let at = text.len().saturating_sub(3);
    Ok((text[at..].to_owned(), text[..at].to_owned()))
}

/// The value of one series.
fn value(text: &str, series: &str) -> Result<f64> {
    let found = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    Ok(found.with_context(|| format!("no {series} in:\n{text}"))?.parse()?)
}

pub(crate) fn tell_of_traffic_and_only_here() -> Result<()> {
    if !have("curl", "curl") {
        return Ok(());
    }
    let pair = Pair::create(1500, Underlay::Direct)?;
    let scratch = TemporaryDir::create("warren-lab")?;

    // Where others could read them they are not served, and nothing is begun.
    let mut public = spec(&pair.left, Pair::LEFT, &scratch);
    public.arguments.extend(["--metrics", "0.0.0.0:9586"].map(Into::into));
    let Err(error) = public.up(None, Duration::from_secs(5)) else {
        anyhow::bail!("metrics on a public address")
    };
    let text = format!("{error:#}");
    ensure!(text.contains("without a password") && text.contains("reverse proxy"), "{text}");

    let mut left = spec(&pair.left, Pair::LEFT, &scratch);
    left.arguments.extend(["--metrics", LISTEN].map(Into::into));
    let mut left = left.up(None, PATIENCE)?;
    let code = left.join_code(PATIENCE)?;
    let right = spec(&pair.right, Pair::RIGHT, &scratch).join(&code, PATIENCE)?;
    left.wait_connected("right", PATIENCE)?;

    let series = "warren_peer_transmit_bytes_total{peer=\"right\"}";
    let scraped = || -> Result<f64> {
        let (status, text) = scrape(&pair.left, LISTEN, &[])?;
        ensure!(status == "200", "{status}: {text}");
        ensure!(value(&text, "warren_network_members")? == 2.0, "{text}");
        ensure!(value(&text, "process_resident_memory_bytes")? > 1e6, "{text}");
        for address in [Pair::LEFT, Pair::RIGHT] {
            ensure!(!text.contains(&address.to_string()), "{address} is told:\n{text}");
        }
        value(&text, series)
    };
    let before = scraped()?;
    let (to, every) = (right.overlay_address(false)?, Duration::from_millis(2));
    let echoed = echo(&pair.left, &pair.right, to, 500, every, SIZE)?;
    let sent = f64::from(echoed.sent) * SIZE as f64;
    eventually("the bytes sent", || Ok(scraped()? >= before + sent))?;

    if have("promtool", "prometheus") {
        let (_, text) = scrape(&pair.left, LISTEN, &[])?;
        let file = scratch.path().join("metrics");
        std::fs::write(&file, text)?;
        let mut promtool = Command::new("promtool");
        promtool.args(["check", "metrics"]).stdin(std::fs::File::open(&file)?);
        output_of(&mut promtool).context("promtool has something against the metrics")?;
    }

    // A web page whose name leads here reads nothing; nor does the neighbour.
    let evil = ["-H", "Host: evil.example:9586"];
    let (status, text) = scrape(&pair.left, LISTEN, &evil)?;
    ensure!(status == "421" && !text.contains("warren_"), "{status}: {text}");
    let there = format!("{}:9586", left.overlay_address(false)?);
    ensure!(scrape(&pair.right, &there, &[])?.0 == "000", "served in the mesh unasked");

    // On the mesh address, once there is one.
    let mut stopped = left.stop(PATIENCE)?;
    stopped.arguments = vec!["--metrics".into(), there.clone().into()];
    let mut left = stopped.up(None, PATIENCE)?;
    left.wait_connected("right", PATIENCE)?;
    eventually("metrics over the mesh", || Ok(scrape(&pair.right, &there, &[])?.0 == "200"))?;
    Ok(())
}
