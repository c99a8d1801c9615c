//! The documentation, the dashboard and the alerts against the metrics there
//! are; what may never be in a label; and the server's refusals.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use warren_types::api::{Health, IsolatedReport, OnionReport, OnionState, Status};

use super::families::{ALL, Kind, collect};
use super::*;
use crate::api::ApiRequest;

/// The only labels there may be.
const LABELS: [&str; 12] = [
    "version", "node", "network", "suite", "auth", "peer", "path", "reason", "phase", "hop",
    "health", "role",
];

fn read(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// A node with everything to tell, and much that is not to be told.
fn snapshot(roles: &str) -> Snapshot {
    let key = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=";
    let id = warren_types::NodeId([7; 32]).to_string();
    let network = warren_types::NetworkId([9; 16]).to_string();
    let peer = |name: &str, kind: &str, path: &str| {
        serde_json::json!({
            "name": name, "kind": kind, "id": null, "public_key": key,
            "addresses": ["10.86.0.7", "fd00::7"], "endpoint": "198.51.100.7:9277",
            "path": path, "rtt_ms": 12.5, "loss": 0.25, "path_mtu": 1420,
            "handshake_age_s": 30, "rx_bytes": 1000, "tx_bytes": 2000,
            "suite": "aes256gcm", "post_quantum": true,
        })
    };
    let status = serde_json::json!({
        "node": {
            "name": "gpu-1", "id": id, "public_key": key,
            "addresses": ["10.86.0.1", "fd00::1"], "listen": "203.0.113.1:9277",
            "interface": "warren0", "mtu": 1420, "mode": "tun udp", "uptime_s": 60,
            "version": "0.1.0", "certificate_expires_s": 86400, "relayed_bytes": 77,
            "onion": { "roles": [], "draining": true },
        },
        "network": {
            "name": "lab", "id": network, "suite": "aes256gcm", "auth": "certificate",
            "prefixes": ["10.86.0.0/16"], "admin": true,
        },
        "peers": [
            peer("gpu-2", "node", "direct"),
            peer("gpu-3", "node", "via 203.0.113.9"),
            peer("gpu-4", "node", "tcp"),
            peer("gpu-5", "node", "connecting"),
            peer("alice-phone", "wireguard", "direct"),
        ],
        "drops": { "bad_tag": 3, "stack_no_room": 4 },
        "warnings": ["198.51.100.1 is not reachable"],
    });
    let mut status: Status = serde_json::from_value(status).unwrap();
    status.node.onion.settings.roles = roles.parse().unwrap();
    let hop = |name: &str, health| warren_types::api::OnionHop {
        name: name.into(),
        id: None,
        place: None,
        rtt_ms: Some(20.0),
        added_ms: Some(1.0),
        loss: 0.1,
        bandwidth: None,
        uptime_s: None,
        health,
        why: Some("192.0.2.55".into()),
    };
    let circuit = warren_types::api::OnionCircuit {
        serial: 4711,
        phase: "active".into(),
        purpose: "active".into(),
        age_s: 5,
        hops: vec![hop("hop-a", Health::Green), hop("192.0.2.77", Health::Red)],
        tx_cells: 1,
        rx_cells: 1,
    };
    let onion = OnionReport {
        state: OnionState::Connected,
        request: None,
        problem: Some("192.0.2.9 refused".into()),
        exit: Some("192.0.2.77".into()),
        exit_place: None,
        ipv6: true,
        circuits: vec![circuit.clone()],
        predicted_ms: None,
        tx_bytes: 5,
        rx_bytes: 6,
        tx_packets: 7,
        rx_packets: 8,
        duplicates: 0,
        inner: vec!["100.127.0.2".parse().unwrap()],
        kill_switch: true,
        isolated: vec![IsolatedReport {
            user: "bob".into(),
            state: OnionState::Connected,
            problem: None,
            exit: Some("exit-9".into()),
            ipv6: false,
            circuits: vec![circuit],
            tx_bytes: 0,
            rx_bytes: 0,
            idle_s: 0,
        }],
        most_isolated: 8,
        relay: warren_types::api::RelayReport {
            circuits: 3,
            sessions: 2,
            handshakes: 9,
            refused: 1,
            forward_cells: 10,
            backward_cells: 11,
            ended_cells: 12,
        },
    };
    Snapshot {
        status,
        onion,
        members: 6,
        clients: 1,
        relayed_frames: 5,
        certificate_end_s: Some(1_800_000_000),
        happened: Happened { moves: [1, 2, 3, 4, 5], interruptions: 6, exits_lost: 7 },
        cpu: Some(Duration::from_millis(1500)),
        resident: Some(1 << 20),
    }
}

/// Samples of a text: name, labels and value.
fn samples(text: &str) -> Vec<(String, BTreeMap<String, String>, f64)> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines
        .map(|line| {
            let (series, value) = line.rsplit_once(' ').unwrap();
            let (name, labels) = match series.split_once('{') {
                Some((name, rest)) => (name, rest.strip_suffix('}').unwrap()),
                None => (series, ""),
            };
            let labels = labels.split("\",").filter(|label| !label.is_empty()).map(|label| {
                let (key, value) = label.split_once("=\"").unwrap();
                (key.to_owned(), value.trim_end_matches('"').to_owned())
            });
            (name.to_owned(), labels.collect(), value.parse().unwrap())
        })
        .collect()
}

fn find(text: &str, name: &str, label: Option<(&str, &str)>) -> Option<f64> {
    let all = samples(text).into_iter().filter(|(found, _, _)| found == name);
    let with = |labels: &BTreeMap<String, String>| {
        label.is_none_or(|(key, value)| labels.get(key).is_some_and(|found| found == value))
    };
    all.filter(|(_, labels, _)| with(labels)).map(|(_, _, value)| value).next()
}

/// The rows of the table in the documentation, without backquotes.
fn documented() -> Vec<Vec<String>> {
    let text = read("docs/metrics.md");
    let table = text.split("## The metrics").nth(1).unwrap().split("\n## ").next().unwrap();
    let rows = table.lines().filter(|line| line.starts_with("| `"));
    rows.map(|row| {
        let cells = row.trim_matches('|').split('|');
        cells.map(|cell| cell.trim().replace('`', "")).collect()
    })
    .collect()
}

#[test]
fn the_table_lists_what_there_is() {
    let expected: Vec<Vec<String>> = ALL
        .iter()
        .map(|family| {
            let kind = match family.kind {
                Kind::Counter => "counter",
                Kind::Gauge => "gauge",
                Kind::Info => "info",
            };
            let labels = family.labels.join(", ");
            vec![family.name(), kind.into(), family.unit.into(), labels, family.help.into()]
        })
        .collect();
    let documented = documented();
    for family in &expected {
        assert!(documented.contains(family), "docs/metrics.md lacks or differs: {family:?}");
    }
    for row in &documented {
        assert!(expected.contains(row), "docs/metrics.md lists what there is not: {row:?}");
    }
    assert_eq!(documented.len(), expected.len());
}

#[test]
fn everything_documented_is_exposed_and_nothing_else() {
    let text = text(&snapshot("none"), Format::Classic).unwrap();
    let exposed: BTreeSet<String> = samples(&text).into_iter().map(|(name, _, _)| name).collect();
    let documented: BTreeSet<String> =
        documented().into_iter().map(|mut row| row.remove(0)).collect();
    assert_eq!(exposed, documented);
}

#[test]
fn names_follow_the_conventions() {
    for family in ALL {
        let name = family.name();
        assert!(name.starts_with("warren_") || name.starts_with("process_"), "{name}");
        assert!(["", "seconds", "bytes", "ratio"].contains(&family.unit), "{name}");
        assert!(!family.stem.ends_with("_total") && !family.stem.ends_with("_info"), "{name}");
        assert!(!family.help.ends_with('.') && !family.help.is_empty(), "{name}");
    }
}

#[test]
fn values_come_from_the_reports_in_base_units() {
    let text = text(&snapshot("none"), Format::Classic).unwrap();
    for (name, label, value) in [
        ("warren_peer_round_trip_seconds", Some(("peer", "gpu-2")), 0.0125),
        ("warren_peer_loss_ratio", Some(("peer", "gpu-2")), 0.25),
        ("warren_peer_receive_bytes_total", Some(("peer", "gpu-3")), 1000.0),
        ("warren_peers_up", Some(("path", "relay")), 1.0),
        ("warren_peers_up", Some(("path", "direct")), 1.0),
        ("warren_wireguard_clients_up", None, 1.0),
        ("warren_dropped_packets_total", Some(("reason", "bad_tag")), 3.0),
        ("warren_dropped_packets_total", Some(("reason", "replay")), 0.0),
        ("warren_dropped_packets_total", Some(("reason", "stack_no_room")), 4.0),
        ("warren_relayed_packets_total", None, 5.0),
        ("warren_onion_client_path_changes_total", Some(("reason", "lossy")), 4.0),
        ("warren_onion_hop_round_trip_seconds", Some(("hop", "2")), 0.02),
        ("warren_onion_hop_health", Some(("health", "red")), 0.0),
        ("warren_onion_node_cells_total", Some(("direction", "ended")), 12.0),
        ("warren_onion_node_draining", None, 1.0),
        ("warren_kill_switch_active", None, 1.0),
        ("process_cpu_seconds_total", None, 1.5),
        ("warren_certificate_expiry_timestamp_seconds", None, 1_800_000_000.0),
    ] {
        assert_eq!(find(&text, name, label), Some(value), "{name} {label:?}");
    }
    // Without a session there is no series; of WireGuard clients there are none.
    for peer in ["gpu-5", "alice-phone"] {
        assert_eq!(find(&text, "warren_peer_receive_bytes_total", Some(("peer", peer))), None);
    }
}

/// An address, an endpoint, a prefix, or something with one in it.
fn tells_an_address(text: &str) -> bool {
    text.split([' ', ',', ';', '(', ')', '/', '='])
        .any(|word| word.parse::<IpAddr>().is_ok() || word.parse::<SocketAddr>().is_ok())
}

#[test]
fn no_label_tells_an_address_or_a_name_of_others() {
    assert!(tells_an_address("via 203.0.113.9") && tells_an_address("[fd00::1]:5"));
    for roles in ["none", "entry", "relay", "exit", "entry,relay,exit"] {
        let snapshot = snapshot(roles);
        for format in [Format::OpenMetrics, Format::Classic] {
            let text = text(&snapshot, format).unwrap();
            let mut allowed: BTreeSet<&str> = LABELS.into();
            allowed.insert("direction");
            for (name, labels, _) in samples(&text) {
                for (key, value) in labels {
                    assert!(allowed.contains(key.as_str()), "{name} has the label {key}");
                    assert!(!tells_an_address(&value), "{name}: {key}={value}");
                    assert!(roles == "none" || key != "peer", "{name} on a node with {roles}");
                }
            }
            for secret in ["bob", "alice", "4711", "hop-a", "exit-9", "192.0.2", "10.86."] {
                assert!(!text.contains(secret), "{secret} is told");
            }
            // What the test looks for is there to be found.
            assert_eq!(roles == "none", text.contains("gpu-2"), "{roles}");
        }
    }
}

#[test]
fn thousands_of_members_make_no_series() {
    let mut many = snapshot("none");
    let before = collect(&many).iter().map(|(_, samples)| samples.len()).sum::<usize>();
    many.members = 5_000;
    let idle = many.status.peers.iter().find(|peer| peer.path == "connecting").unwrap().clone();
    many.status.peers.extend(std::iter::repeat_n(idle, 5_000));
    let after = collect(&many).iter().map(|(_, samples)| samples.len()).sum::<usize>();
    assert_eq!(before, after);
}

#[test]
fn both_formats_say_the_same() {
    let snapshot = snapshot("none");
    let new = text(&snapshot, Format::OpenMetrics).unwrap();
    let old = text(&snapshot, Format::Classic).unwrap();
    assert_eq!(samples(&new), samples(&old));
    assert!(new.ends_with("# EOF\n") && new.contains("# TYPE warren_build info\n"));
    assert!(new.contains("# UNIT warren_uptime_seconds seconds\n"));
    assert!(!old.contains("# EOF") && !old.contains("# UNIT"));
    for line in [
        "# HELP warren_dropped_packets_total Packets that this node dropped.\n",
        "# TYPE warren_dropped_packets_total counter\n",
        "# TYPE warren_build_info gauge\n",
    ] {
        assert!(old.contains(line), "{line}");
    }
}

/// Names of metrics in an expression.
fn named(expression: &str) -> BTreeSet<String> {
    let word = |c: char| !(c.is_ascii_alphanumeric() || c == '_');
    let words = expression.split(word);
    let ours = |word: &&str| word.starts_with("warren_") || word.starts_with("process_");
    words.filter(ours).map(str::to_owned).collect()
}

fn expressions(value: &serde_json::Value, out: &mut Vec<String>) {
    match value {
        serde_json::Value::Object(fields) => {
            for (key, value) in fields {
                match value.as_str() {
                    Some(text) if ["expr", "definition", "query"].contains(&key.as_str()) => {
                        out.push(text.to_owned());
                    }
                    _ => expressions(value, out),
                }
            }
        }
        serde_json::Value::Array(items) => items.iter().for_each(|item| expressions(item, out)),
        _ => {}
    }
}

#[test]
fn dashboard_and_alerts_use_what_there_is() {
    let known: BTreeSet<String> = ALL.iter().map(families::Family::name).collect();
    let board: serde_json::Value =
        serde_json::from_str(&read("deploy/grafana/warren.json")).unwrap();
    let mut shown = Vec::new();
    expressions(&board, &mut shown);
    let shown: BTreeSet<String> = shown.iter().flat_map(|text| named(text)).collect();
    assert!(shown.is_subset(&known), "unknown: {:?}", shown.difference(&known));
    // A dashboard for all: what is not on it nobody looks at.
    assert!(known.is_subset(&shown), "not shown: {:?}", known.difference(&shown));
    let titles: Vec<&str> = board["panels"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|panel| panel["type"] == "row")
        .filter_map(|panel| panel["title"].as_str())
        .collect();
    assert_eq!(titles.len(), 4, "{titles:?}");

    let alerts = read("deploy/prometheus/alerts.yml");
    let used = named(&alerts);
    assert!(used.len() > 5 && used.is_subset(&known), "{:?}", used.difference(&known));
}

#[test]
fn only_loopback_and_own_mesh_addresses_will_do() {
    let own: [IpAddr; 2] = ["10.86.0.1".parse().unwrap(), "fd00::1".parse().unwrap()];
    let check = |listen: &str, kernel| check(listen.parse().unwrap(), &own, kernel);
    for good in ["127.0.0.1:9586", "[::1]:9586", "127.9.9.9:1", "10.86.0.1:9586", "[fd00::1]:1"] {
        assert!(check(good, true).is_ok(), "{good}");
    }
    for bad in ["0.0.0.0:9586", "[::]:9586", "192.0.2.1:9586", "10.86.0.2:9586", "[fd00::2]:1"] {
        let text = check(bad, true).unwrap_err().to_string();
        assert!(text.contains("without a password"), "{text}");
        assert!(text.contains("127.0.0.1:") && text.contains("over the mesh"), "{text}");
    }
    let text = check("10.86.0.1:9586", false).unwrap_err().to_string();
    assert!(text.contains("--publish tcp:9586=127.0.0.1:9586"), "{text}");
    // Before there is a network, there is no mesh address.
    assert!(super::check("10.86.0.1:9586".parse().unwrap(), &[], true).is_err());
}

#[test]
fn only_addresses_and_own_names_are_meant() {
    for host in ["127.0.0.1:9586", "[::1]:9586", "10.86.0.1", "localhost:9586", "LocalHost"] {
        assert!(host_is_meant(host, true) && host_is_meant(host, false), "{host}");
    }
    for host in [
        "evil.example:9586",
        "127.0.0.1.evil.example",
        "localhost.evil.example",
        "",
        "a@localhost",
        "warren",
    ] {
        assert!(!host_is_meant(host, true) && !host_is_meant(host, false), "{host}");
    }
    assert!(host_is_meant("gpu-1.lab.warren:9586", false));
    assert!(!host_is_meant("gpu-1.lab.warren:9586", true));
}

/// A server of the snapshot above; says how often the daemon's loop was asked.
async fn server() -> (SocketAddr, tokio::task::JoinHandle<()>, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (requests, mut inbox) = mpsc::channel(4);
    let asked = Arc::new(AtomicUsize::new(0));
    let count = asked.clone();
    tokio::spawn(async move {
        while let Some(request) = inbox.recv().await {
            if let ApiRequest::Metrics(reply) = request {
                count.fetch_add(1, Ordering::Relaxed);
                let _ = reply.send(Box::new(snapshot("none")));
            }
        }
    });
    (address, tokio::spawn(serve(listener, requests)), asked)
}

async fn ask(address: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    // A reset after a refusal is an end, too.
    let _ = stream.read_to_end(&mut answer).await;
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn it_serves_metrics_and_nothing_else() {
    let (address, server, asked) = server().await;
    let get =
        |path: &str, more: &str| format!("GET {path} HTTP/1.1\r\nHost: {address}\r\n{more}\r\n");
    let answer = ask(address, &get("/metrics", "")).await;
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains("version=0.0.4"), "{answer}");
    assert!(answer.contains("\nwarren_build_info{version=\"0.1.0\"} 1\n"), "{answer}");
    let accept = "Accept: application/openmetrics-text;version=1.0.0,text/plain;q=0.5\r\n";
    let answer = ask(address, &get("/metrics", accept)).await;
    assert!(answer.contains("application/openmetrics-text") && answer.ends_with("# EOF\n"));
    assert_eq!(asked.load(Ordering::Relaxed), 1, "one snapshot serves a second");

    let long = format!("X: {}\r\n", "x".repeat(2 * serve::MAX_HEAD));
    for (request, status) in [
        (get("/", ""), 404),
        (get("/v1/status", ""), 404),
        (get("/metrics", "").replace("GET", "POST"), 405),
        (get("/metrics", "").replace(&address.to_string(), "evil.example"), 421),
        (get("http://evil.example/metrics", ""), 421),
        ("GET /metrics HTTP/1.1\r\n\r\n".to_owned(), 421),
        (get("/metrics", "Content-Length: 5\r\n") + "12345", 413),
        (get("/metrics", &long), 431),
        ("nonsense\r\n\r\n".to_owned(), 400),
    ] {
        let answer = ask(address, &request).await;
        let first = answer.lines().next().unwrap_or_default();
        assert!(first.contains(&format!(" {status} ")), "{request}: {answer}");
        assert!(!answer.contains("warren_"), "{answer}");
    }
    server.abort();
}

#[tokio::test(start_paused = true)]
async fn who_says_nothing_is_dropped() {
    let (address, server, _) = server().await;
    let mut silent = Vec::new();
    for _ in 0..serve::MAX_CONNECTIONS {
        silent.push(TcpStream::connect(address).await.unwrap());
    }
    let asked = tokio::time::Instant::now();
    let answer = ask(address, "GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    assert!(asked.elapsed() <= serve::PATIENCE + Duration::from_secs(1));
    server.abort();
}

#[tokio::test]
async fn a_taken_port_says_what_to_do() {
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let text = bind(taken.local_addr().unwrap()).unwrap_err().to_string();
    assert!(text.contains("--metrics") && text.contains("ss -ltnp"), "{text}");
}
