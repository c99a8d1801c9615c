//! The measurements, with the tools everybody has: iperf3 and ping.
//!
//! Throughput counts bytes received; CPU is user and system time of the VPN's
//! processes on both ends (not of iperf3); packet rate is the best rate
//! received over a sweep of offered loads, since too much load makes every VPN
//! slower than it can be.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::Serialize;
use serde_json::Value;

use super::Plan;
use super::tunnel::Tunnel;
use crate::process::KilledOnDrop;
use crate::topology::output_of;

/// Offered UDP loads, thousands of packets per second.
const SMALL_LOADS: &[u32] = &[60, 90, 120, 150, 180, 210, 250, 300];
const LARGE_LOADS: &[u32] = &[50, 80, 110, 140, 170, 200, 240, 280];

/// Idle peers added to see what one costs. Warren's are added one command at a
/// time, so not too many.
const IDLE_PEERS: u32 = 200;

/// One TCP measurement.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Tcp {
    /// Received, all streams and directions together.
    pub gbps: f64,
    /// CPU of the VPN per 10^9 bytes received; 0 without a VPN.
    pub cpu_s_per_gb: f64,
    /// Segments sent again.
    pub retransmits: u64,
}

/// What one contender did in one round.
#[derive(Debug, Clone, Serialize)]
pub struct Run {
    /// One stream.
    pub tcp_one: Tcp,
    /// Four streams.
    pub tcp_four: Tcp,
    /// One stream each way at once.
    pub tcp_both: Tcp,
    /// 64-byte UDP payloads received, thousands per second.
    pub udp_64_kpps: Option<f64>,
    /// 1200-byte UDP payloads received, thousands per second.
    pub udp_1200_kpps: Option<f64>,
    /// Mean of 100 pings, milliseconds.
    pub ping_mean_ms: f64,
    /// Worst of 100 pings, milliseconds.
    pub ping_worst_ms: f64,
    /// Resident memory with one peer before any load, MB (10^6 bytes), the
    /// larger end.
    pub resident_mb: Option<f64>,
    /// The same after all measurements: buffers once used stay resident.
    pub resident_after_mb: Option<f64>,
    /// Memory per further idle peer, KiB.
    pub idle_peer_kib: Option<f64>,
}

impl std::fmt::Display for Run {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{:.2} Gb/s ({:.2} CPU s/GB), four {:.2}, both ways {:.2}, ping {:.3}/{:.3} ms",
            self.tcp_one.gbps,
            self.tcp_one.cpu_s_per_gb,
            self.tcp_four.gbps,
            self.tcp_both.gbps,
            self.ping_mean_ms,
            self.ping_worst_ms,
        )?;
        if let (Some(small), Some(large)) = (self.udp_64_kpps, self.udp_1200_kpps) {
            write!(f, ", UDP {small:.0}/{large:.0} kpps")?;
        }
        if let Some(resident) = self.resident_mb {
            write!(f, ", {resident:.1} MB")?;
        }
        if let Some(idle) = self.idle_peer_kib {
            write!(f, " + {idle:.1} KiB/peer")?;
        }
        Ok(())
    }
}

pub(super) fn run(tunnel: &Tunnel<'_>, plan: &Plan) -> Result<Run> {
    let resident = |tunnel: &Tunnel<'_>| -> Result<Option<f64>> {
        Ok(match tunnel.pids.is_empty() {
            true => None,
            false => Some(tunnel.resident()? as f64 / 1e6),
        })
    };
    let resident_mb = resident(tunnel)?;
    let (ping_mean_ms, ping_worst_ms) = ping(tunnel)?;
    let tcp_one = tcp(tunnel, plan.seconds, &[])?;
    let tcp_four = tcp(tunnel, plan.seconds, &["-P", "4"])?;
    let tcp_both = tcp(tunnel, plan.seconds, &["--bidir"])?;
    let sweep = |size, loads| match plan.tcp_only {
        true => Ok(None),
        false => udp_best(tunnel, size, loads).map(Some),
    };
    let udp_64_kpps = sweep(64, SMALL_LOADS)?;
    let udp_1200_kpps = sweep(1200, LARGE_LOADS)?;
    let resident_after_mb = resident(tunnel)?;
    Ok(Run {
        tcp_one,
        tcp_four,
        tcp_both,
        udp_64_kpps,
        udp_1200_kpps,
        ping_mean_ms,
        ping_worst_ms,
        resident_mb,
        resident_after_mb,
        idle_peer_kib: None,
    })
}

/// One iperf3 client against a server made for it.
fn iperf(tunnel: &Tunnel<'_>, arguments: &[&str]) -> Result<Value> {
    let to = tunnel.right.to_string();
    let mut command = tunnel.pair.right.command("iperf3");
    command.args(["-s", "-1", "-B", &to]).stdout(Stdio::null()).stderr(Stdio::null());
    let _server = KilledOnDrop(command.spawn()?);
    let mut attempts = 0;
    loop {
        let mut command = tunnel.pair.left.command("timeout");
        command.args(["60", "iperf3", "-J", "-c", &to, "--connect-timeout", "3000"]);
        let output = command.args(arguments).output()?;
        let text = String::from_utf8_lossy(&output.stdout);
        let result: Value = serde_json::from_str(&text)
            .with_context(|| format!("iperf3 printed no JSON: {text} ({})", output.status))?;
        match result["error"].as_str() {
            None => return Ok(result),
            // The server needs a moment to listen.
            Some(error) if error.contains("refused") && attempts < 40 => {
                attempts += 1;
                std::thread::sleep(Duration::from_millis(25));
            }
            Some(error) => bail!("iperf3: {error}"),
        }
    }
}

pub(super) fn tcp(tunnel: &Tunnel<'_>, seconds: u32, more: &[&str]) -> Result<Tcp> {
    let seconds = seconds.to_string();
    let before = tunnel.cpu()?;
    let result = iperf(tunnel, &[&["-C", "cubic", "-t", &seconds], more].concat())?;
    let cpu = tunnel.cpu()? - before;
    parse_tcp(&result, cpu)
}

fn parse_tcp(result: &Value, cpu: Duration) -> Result<Tcp> {
    let end = &result["end"];
    let (mut gbps, mut bytes, mut retransmits) = (0.0, 0.0, 0);
    for direction in ["", "_bidir_reverse"] {
        let received = &end[format!("sum_received{direction}")];
        gbps += received["bits_per_second"].as_f64().unwrap_or(0.0) / 1e9;
        bytes += received["bytes"].as_f64().unwrap_or(0.0);
        let sent = &end[format!("sum_sent{direction}")];
        retransmits += sent["retransmits"].as_u64().unwrap_or(0);
    }
    if bytes == 0.0 {
        bail!("no bytes arrived");
    }
    Ok(Tcp { gbps, cpu_s_per_gb: cpu.as_secs_f64() / (bytes / 1e9), retransmits })
}

fn udp_best(tunnel: &Tunnel<'_>, size: u32, loads: &[u32]) -> Result<f64> {
    let mut best: f64 = 0.0;
    for load in loads {
        let bits = u64::from(*load) * 1000 * u64::from(size) * 8;
        let arguments = ["-u", "-l", &size.to_string(), "-b", &bits.to_string(), "-t", "1"];
        let result = iperf(tunnel, &[&arguments[..], &["-w", "4M"]].concat())?;
        best = best.max(parse_udp(&result)?);
    }
    Ok(best)
}

fn parse_udp(result: &Value) -> Result<f64> {
    let sum = &result["end"]["sum"];
    let number = |key: &str| sum[key].as_f64().with_context(|| format!("iperf3: no {key}"));
    Ok((number("packets")? - number("lost_packets")?) / number("seconds")? / 1000.0)
}

/// Mean and worst of 100 pings, after a few to warm up.
fn ping(tunnel: &Tunnel<'_>) -> Result<(f64, f64)> {
    let to = tunnel.right.to_string();
    let ping = |count: &str| {
        output_of(tunnel.pair.left.command("ping").args(["-q", "-i", "0.01", "-c", count, &to]))
    };
    ping("10")?;
    parse_ping(&ping("100")?)
}

pub(super) fn parse_ping(text: &str) -> Result<(f64, f64)> {
    let numbers = text.lines().find(|line| line.contains("min/avg/max"));
    let numbers = numbers.and_then(|line| line.split(" = ").nth(1)).context("no ping summary")?;
    let mut numbers = numbers.split('/').skip(1);
    let mut next = || numbers.next().and_then(|number| number.trim().parse::<f64>().ok());
    Ok((next().context("no mean")?, next().context("no worst")?))
}

/// Memory of one more idle peer, KiB. Needs a tunnel without load before it:
/// memory that load has left to the allocator would hide what peers take.
pub(super) fn idle_peer(tunnel: &mut Tunnel<'_>) -> Result<Option<f64>> {
    let (Some(pid), Some(mut add)) = (tunnel.left_pid, tunnel.add_idle_peers.take()) else {
        return Ok(None);
    };
    let before = warren_os::process::cost(pid)?.resident;
    add(IDLE_PEERS)?;
    std::thread::sleep(Duration::from_millis(200));
    let after = warren_os::process::cost(pid)?.resident;
    Ok(Some(after.saturating_sub(before) as f64 / 1024.0 / f64::from(IDLE_PEERS)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tcp_results_add_both_directions() {
        let result = serde_json::json!({"end": {
            "sum_sent": {"retransmits": 3},
            "sum_received": {"bits_per_second": 2e9, "bytes": 5e8},
            "sum_received_bidir_reverse": {"bits_per_second": 1e9, "bytes": 5e8},
        }});
        let tcp = parse_tcp(&result, Duration::from_millis(2500)).unwrap();
        assert_eq!((tcp.gbps, tcp.cpu_s_per_gb, tcp.retransmits), (3.0, 2.5, 3));
        assert!(parse_tcp(&serde_json::json!({}), Duration::ZERO).is_err());
    }

    #[test]
    fn udp_counts_what_arrived() {
        let result = serde_json::json!({"end": {"sum":
            {"packets": 100_000, "lost_packets": 20_000, "seconds": 2.0}}});
        assert_eq!(parse_udp(&result).unwrap(), 40.0);
        assert!(parse_udp(&serde_json::json!({})).is_err());
    }

    #[test]
    fn ping_summaries_are_read() {
        let text = "rtt min/avg/max/mdev = 0.020/0.045/0.311/0.012 ms, ipg/ewma 1/2 ms";
        assert_eq!(parse_ping(text).unwrap(), (0.045, 0.311));
        assert!(parse_ping("100% packet loss").is_err());
    }
}
