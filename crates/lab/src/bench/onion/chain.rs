//! Hosts in a row, each linked to the next; all can reach all by plain routing.

use std::net::Ipv4Addr;
use std::os::fd::AsFd;

use anyhow::{Context, Result};
use warren_os::netlink::LinkSettings;

use super::super::measure::parse_ping;
use crate::topology::{Host, Underlay, output_of};

/// The hosts: client, hops, server.
pub(super) struct Chain {
    pub(super) hosts: Vec<Host>,
}

/// The address of host `i` on its link towards the client.
pub(super) fn address(i: usize) -> Ipv4Addr {
    match i {
        0 => Ipv4Addr::new(10, 98, 1, 1),
        i => Ipv4Addr::new(10, 98, i as u8, 2),
    }
}

impl Chain {
    pub(super) fn create(hops: usize, underlay: Underlay) -> Result<Self> {
        let mut hosts = vec![Host::create("client")?];
        for i in 1..=hops {
            hosts.push(Host::create(&format!("hop{i}"))?);
        }
        hosts.push(Host::create("server")?);
        let last = hosts.len() - 1;
        let plain = LinkSettings { mtu: Some(1500), ..LinkSettings::default() };
        for i in 1..=last {
            let (near, far) = (&hosts[i - 1], &hosts[i]);
            near.netlink()?.add_veth("next", "eth0", Some(far.namespace().as_fd()))?;
            near.configure("next", &[format!("10.98.{i}.1/24").parse()?], &plain, None)?;
            far.configure("eth0", &[format!("10.98.{i}.2/24").parse()?], &plain, None)?;
            for (host, interface) in [(near, "next"), (far, "eth0")] {
                if !underlay.features().is_empty() {
                    host.run("ethtool", &[&["-K", interface], underlay.features()].concat())?;
                }
            }
        }
        for (i, host) in hosts.iter().enumerate() {
            host.run("sysctl", &["-qw", "net.ipv4.ip_forward=1"])?;
            for far in 1..=last {
                let net = format!("10.98.{far}.0/24");
                if far > i + 1 {
                    host.run("ip", &["route", "add", &net, "via", &address(i + 1).to_string()])?;
                } else if far < i {
                    let via = format!("10.98.{i}.1");
                    host.run("ip", &["route", "add", &net, "via", &via])?;
                }
            }
        }
        Ok(Self { hosts })
    }

    pub(super) fn client(&self) -> &Host {
        &self.hosts[0]
    }

    pub(super) fn server(&self) -> &Host {
        &self.hosts[self.hosts.len() - 1]
    }

    pub(super) fn server_address(&self) -> Ipv4Addr {
        address(self.hosts.len() - 1)
    }

    /// Mean and worst of 100 pings through whatever carries them, ms.
    pub(super) fn ping(&self) -> Result<(f64, f64)> {
        let to = self.server_address().to_string();
        let ping = |count: &str| {
            output_of(self.client().command("ping").args(["-q", "-i", "0.01", "-c", count, &to]))
        };
        ping("10")?;
        parse_ping(&ping("100")?).context("ping")
    }
}
