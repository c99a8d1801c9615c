//! `warren status`: the daemon's own words as a table, or as JSON.

use std::fmt::Write;

use warren_node::fault::Fault;
use warren_types::api::{
    NamesState, NamesStatus, PeerKind, PeerRoles, PeerStatus, PortMappingState, PortMappingStatus,
    RolesReport, Status,
};

use super::{State, out, story};

/// Asks the daemon and prints the answer.
pub(super) async fn show(state: &State, json: bool) -> Result<(), Fault> {
    let status = state.client().status().await?;
    if json {
        let text = serde_json::to_string_pretty(&status).map_err(|e| Fault::internal(&e))?;
        out(&format!("{text}\n"))
    } else {
        out(&render(&status))
    }
}

/// The status for people.
fn render(status: &Status) -> String {
    let (node, network) = (&status.node, &status.network);
    let mut text = String::new();
    let admin = if network.admin { ", admits others" } else { "" };
    let _ = writeln!(text, "{} in {}{admin}", node.name, network.name);
    let mut row = |key: &str, value: String| {
        let _ = writeln!(text, "  {key:<11} {value}");
    };
    row("addresses", story::listed(&node.addresses));
    row("interface", format!("{} (mtu {})", node.interface, node.mtu));
    row("listen", node.listen.to_string());
    row("suite", network.suite.to_string());
    row("admission", admission(status));
    row("data path", node.mode.clone());
    row("names", names(&status.names));
    row("router", router(&status.port_mapping));
    if let Some(reason) = &status.lan.reason {
        row("LAN", format!("no discovery: {reason}"));
    }
    if !node.onion.settings.roles.is_empty() {
        row("roles", roles(&node.onion));
    }
    row("uptime", span(node.uptime_s));
    if node.relayed_bytes > 0 {
        row("relayed", format!("{} between other members", bytes(node.relayed_bytes)));
    }
    for warning in &status.warnings {
        row("warning", warning.clone());
    }
    if !status.drops.is_empty() {
        let drops: Vec<String> = status.drops.iter().map(|(k, n)| format!("{k} {n}")).collect();
        row("dropped", drops.join(", "));
    }
    text.push('\n');
    if status.peers.is_empty() {
        text.push_str("No peers yet");
        text.push_str(if network.admin { "; `warren invite` admits one.\n" } else { ".\n" });
    } else {
        text.push_str(&table(&status.peers));
    }
    text
}

fn roles(onion: &RolesReport) -> String {
    let place = onion.settings.place.as_ref().map(|place| format!(" in {place}"));
    let draining = if onion.draining { ", draining" } else { "" };
    format!("{}{}{draining}", onion.settings.roles, place.unwrap_or_default())
}

fn names(names: &NamesStatus) -> String {
    let hint = names.hint.as_deref().unwrap_or_default();
    match names.state {
        NamesState::Off => "off".to_owned(),
        NamesState::Failed => format!("not served: {hint}"),
        NamesState::Served => format!("NODE.{}: {hint}", names.domain),
        NamesState::Resolved => format!("NODE.{}, by systemd-resolved", names.domain),
    }
}

fn router(mapping: &PortMappingStatus) -> String {
    match (mapping.state, mapping.external, mapping.protocol) {
        (PortMappingState::Mapped, Some(external), Some(protocol)) => {
            format!("forwards {external} to this node ({protocol})")
        }
        (PortMappingState::Off, ..) => "not asked for a port".to_owned(),
        _ => mapping.reason.clone().unwrap_or_else(|| "gives no port".to_owned()),
    }
}

fn admission(status: &Status) -> String {
    let mode = &status.network.auth;
    match status.node.certificate_expires_s {
        Some(s) if s <= 0 => format!("{mode}, certificate expired"),
        Some(s) => format!("{mode}, certificate good for {}", span(s.unsigned_abs())),
        None => mode.clone(),
    }
}

fn table(peers: &[PeerStatus]) -> String {
    const HEAD: [&str; 10] = [
        "PEER",
        "ADDRESS",
        "PATH",
        "RTT",
        "LOSS",
        "HANDSHAKE",
        "RECEIVED",
        "SENT",
        "ROLES",
        "ENDPOINT",
    ];
    let none = || "-".to_owned();
    let mut rows = vec![HEAD.map(str::to_owned)];
    for p in peers {
        let name = match p.kind {
            PeerKind::Node => p.name.clone(),
            PeerKind::Wireguard => format!("{} (wg)", p.name),
        };
        rows.push([
            name,
            story::handy(&p.addresses).map_or_else(none, |a| a.to_string()),
            p.path.clone(),
            p.rtt_ms.map_or_else(none, story::millis),
            p.loss.map_or_else(none, |l| format!("{:.1} %", l * 100.0)),
            p.handshake_age_s.map_or_else(none, |s| format!("{} ago", span(s))),
            bytes(p.rx_bytes),
            bytes(p.tx_bytes),
            p.onion.as_ref().map_or_else(none, peer_roles),
            p.endpoint.map_or_else(none, |e| story::plain(e).to_string()),
        ]);
    }
    let widths: [usize; 10] = std::array::from_fn(|column| {
        rows.iter().map(|r| r[column].chars().count()).max().unwrap_or(0)
    });
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(widths) {
            let _ = write!(line, "{cell:<width$}  ");
        }
        let _ = writeln!(text, "{}", line.trim_end());
    }
    text
}

/// `exit@de`, with a mark when it takes no new sessions.
fn peer_roles(onion: &PeerRoles) -> String {
    let place = onion.place.as_ref().map(|place| format!("@{place}")).unwrap_or_default();
    let draining = if onion.draining { "!" } else { "" };
    format!("{}{place}{draining}", onion.roles)
}

/// Seconds in the largest unit that keeps at least one.
pub(super) fn span(seconds: u64) -> String {
    match seconds {
        s if s < 60 => format!("{s} s"),
        s if s < 3600 => format!("{} min", s / 60),
        s if s < 86_400 => format!("{} h {} min", s / 3600, s / 60 % 60),
        s => format!("{} d", s / 86_400),
    }
}

/// Bytes in decimal units.
fn bytes(n: u64) -> String {
    const UNITS: [&str; 5] = ["B", "kB", "MB", "GB", "TB"];
    let mut value = n as f64;
    let mut unit = 0;
    while value >= 999.95 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    if unit == 0 { format!("{n} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use warren_types::api::{LanStatus, NetworkStatus, NodeStatus, PortMappingProtocol};
    use warren_types::{LinkPublicKey, NetworkId, NodeId, Suite};

    pub(in super::super) fn example() -> Status {
        Status {
            node: NodeStatus {
                name: "gpu-1".into(),
                id: NodeId([1; 32]),
                public_key: LinkPublicKey([2; 32]),
                addresses: vec!["100.64.0.1".parse().unwrap(), "fd00::1".parse().unwrap()],
                listen: "[::]:9277".parse().unwrap(),
                interface: "warren0".into(),
                mtu: 1420,
                mode: "tun(vnet_hdr,tso) udp(gso,gro) workers=1".into(),
                uptime_s: 3700,
                version: "0.1.0".into(),
                certificate_expires_s: Some(90 * 86_400),
                relayed_bytes: 3_000_000,
                onion: RolesReport {
                    settings: warren_types::api::RoleSettings {
                        roles: "entry,relay".parse().unwrap(),
                        place: Some("nl-ams".parse().unwrap()),
                        ..Default::default()
                    },
                    draining: true,
                    ..Default::default()
                },
            },
            network: NetworkStatus {
                name: "lab".into(),
                id: NetworkId([3; 16]),
                suite: Suite::Aes256Gcm,
                auth: "certificate".into(),
                prefixes: vec!["100.64.0.0/10".into()],
                admin: true,
            },
            peers: vec![PeerStatus {
                name: "gpu-2".into(),
                kind: PeerKind::Node,
                id: Some(NodeId([4; 32])),
                public_key: LinkPublicKey([5; 32]),
                addresses: vec!["100.64.0.2".parse().unwrap()],
                endpoint: Some("[::ffff:192.0.2.2]:9277".parse().unwrap()),
                path: "direct".into(),
                rtt_ms: Some(0.42),
                loss: Some(0.0),
                path_mtu: 1420,
                handshake_age_s: Some(12),
                rx_bytes: 1_500_000,
                tx_bytes: 999,
                suite: Suite::Aes256Gcm,
                post_quantum: true,
                onion: Some(PeerRoles {
                    roles: "exit".parse().unwrap(),
                    place: Some("de-fra".parse().unwrap()),
                    family: None,
                    bandwidth: None,
                    draining: false,
                    uptime_s: 60,
                }),
            }],
            drops: [("replay".to_owned(), 3)].into(),
            warnings: vec!["no endpoint is reachable".into()],
            names: NamesStatus {
                domain: "lab.warren".into(),
                servers: vec!["100.64.0.1".parse().unwrap()],
                state: NamesState::Served,
                hint: Some("`dig @100.64.0.1 gpu-1.lab.warren` asks this node".into()),
            },
            lan: LanStatus::default(),
            port_mapping: PortMappingStatus {
                state: PortMappingState::Mapped,
                protocol: Some(PortMappingProtocol::NatPmp),
                external: Some("203.0.113.9:9277".parse().unwrap()),
                ..PortMappingStatus::default()
            },
        }
    }

    #[test]
    fn the_table_has_what_people_look_for() {
        let text = render(&example());
        for part in [
            "gpu-1 in lab, admits others",
            "100.64.0.1, fd00::1",
            "certificate good for 90 d",
            "3.0 MB between other members",
            "replay 3",
            "no endpoint is reachable",
            "direct",
            "0.4 ms",
            "12 s ago",
            "1.5 MB",
            "999 B",
            "192.0.2.2:9277",
            "entry,relay in nl-ams, draining",
            "exit@de-fra",
            "NODE.lab.warren: `dig @100.64.0.1",
            "forwards 203.0.113.9:9277 to this node (NAT-PMP)",
        ] {
            assert!(text.contains(part), "no {part:?} in\n{text}");
        }
    }

    /// The keys scripts depend on, as documented.
    #[test]
    fn json_keys_are_stable() {
        let value = serde_json::to_value(example()).unwrap();
        for key in ["name", "addresses", "mode", "uptime_s"] {
            assert!(!value["node"][key].is_null(), "node.{key}");
        }
        for key in [
            "name",
            "addresses",
            "endpoint",
            "path",
            "rtt_ms",
            "handshake_age_s",
            "rx_bytes",
            "tx_bytes",
            "suite",
        ] {
            assert!(!value["peers"][0][key].is_null(), "peers[].{key}");
        }
        assert_eq!(value["peers"][0]["suite"], "aes256gcm");
        assert_eq!(value["peers"][0]["onion"]["roles"][0], "exit");
        assert_eq!(value["peers"][0]["onion"]["place"]["country"], "de");
        assert_eq!(value["node"]["onion"]["roles"][1], "relay");
        assert_eq!(value["node"]["onion"]["draining"], true);
    }

    #[test]
    fn units() {
        assert_eq!(
            (bytes(0), bytes(1000), bytes(999_999)),
            ("0 B".into(), "1.0 kB".into(), "1.0 MB".into())
        );
        assert_eq!(
            (span(59), span(3599), span(7260)),
            ("59 s".into(), "59 min".into(), "2 h 1 min".into())
        );
    }
}
