//! A running VPN between the two hosts, as the measurements see it.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::Result;
use warren_os::process::cost;

use crate::process::{KilledOnDrop, Node};
use crate::topology::Pair;

/// Adds idle peers to the left end.
pub(super) type AddIdlePeers = Box<dyn FnMut(u32) -> Result<()>>;

/// A VPN that carries packets between the hosts.
pub(super) struct Tunnel<'p> {
    /// The hosts.
    pub pair: &'p Pair,
    /// Address of the right host inside the VPN.
    pub right: IpAddr,
    /// Processes of the VPN.
    pub pids: Vec<u32>,
    /// The process of the left end, whose memory is looked at.
    pub left_pid: Option<u32>,
    /// How to give the left end more peers, where that is possible.
    pub add_idle_peers: Option<AddIdlePeers>,
    /// Kept for the time of the measurement.
    #[expect(dead_code, reason = "held, so that the processes live")]
    pub children: Vec<KilledOnDrop>,
    /// Likewise.
    #[expect(dead_code, reason = "held, so that the processes live")]
    pub nodes: Vec<Node>,
}

impl<'p> Tunnel<'p> {
    /// No VPN at all.
    pub(super) fn direct(pair: &'p Pair) -> Self {
        Self {
            pair,
            right: Pair::RIGHT,
            pids: vec![],
            left_pid: None,
            add_idle_peers: None,
            children: vec![],
            nodes: vec![],
        }
    }

    /// CPU time of all its processes so far.
    pub(super) fn cpu(&self) -> Result<Duration> {
        let mut sum = Duration::ZERO;
        for pid in &self.pids {
            sum += cost(*pid)?.cpu;
        }
        Ok(sum)
    }

    /// Largest resident memory of its processes, bytes.
    pub(super) fn resident(&self) -> Result<u64> {
        let mut largest = 0;
        for pid in &self.pids {
            largest = largest.max(cost(*pid)?.resident);
        }
        Ok(largest)
    }

    /// Waits until a ping passes.
    pub(super) fn wait_reachable(&self, patience: Duration) -> Result<()> {
        let deadline = Instant::now() + patience;
        let to = self.right.to_string();
        loop {
            let ping = self.pair.left.run("ping", &["-c1", "-W1", &to]);
            match ping {
                Ok(_) => return Ok(()),
                Err(error) if Instant::now() > deadline => {
                    return Err(error.context("no packet passes"));
                }
                Err(_) => std::thread::sleep(Duration::from_millis(50)),
            }
        }
    }
}
