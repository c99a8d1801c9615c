//! Events as sentences for people. One line per event, the past told in the
//! order it happened; nothing is invented that the daemon did not report.

use std::net::{IpAddr, SocketAddr};

use warren_node::start::{Outcome, Ready};
use warren_types::api::{Event, NamesState, NamesStatus};

/// What `up` and `join` print once the node serves. Exactly one line starts
/// with `warren join`: the one to paste.
pub(super) fn opening(ready: &Ready) -> String {
    let Ready { node, network, addresses, names, outcome } = ready;
    let here = format!("{node} ({})", listed(addresses));
    let told = match outcome {
        Outcome::Created { code: Ok(code) } => format!(
            "Network {network} is up; this machine is {here}.\n\
             On the second machine, run:\n\
             \n\
             warren join {code}\n\
             \n\
             The code admits one machine within 15 minutes; `warren invite` prints another.\n\
             Waiting for the first machine.\n"
        ),
        Outcome::Created { code: Err(reason) } => format!(
            "Network {network} is up; this machine is {here}.\n\
             No code for a second machine yet: {reason}.\n"
        ),
        Outcome::Configured => format!(
            "Network {network} is up; this machine is {here}.\n\
             Other members connect by themselves.\n"
        ),
        Outcome::Joined => format!("Joined {network}; this machine is {here}.\n"),
        Outcome::Restarted { admin } => {
            let next = if *admin {
                "`warren invite` admits another machine."
            } else {
                "`warren status` shows its peers."
            };
            format!("Back in {network}; this machine is {here}. {next}\n")
        }
    };
    // What is next comes last.
    match told.split_once('\n') {
        Some((first, rest)) => format!("{first}\n{}{rest}", named(names)),
        None => told,
    }
}

/// How to reach members by name; nothing where names are switched off.
fn named(names: &NamesStatus) -> String {
    let domain = &names.domain;
    match (names.state, handy(&names.servers), &names.hint) {
        (NamesState::Resolved, ..) => format!("Members have names here: NODE.{domain}.\n"),
        (NamesState::Served, Some(server), _) => format!(
            "Members have names: `dig @{server} NODE.{domain}`; `warren status` says how all \
             programs come to use them.\n"
        ),
        (NamesState::Failed, _, Some(hint)) => {
            format!("Names of members are not served: {hint}.\n")
        }
        _ => String::new(),
    }
}

/// The same as one JSON object, for readers of `--log-format json`.
pub(super) fn opening_json(ready: &Ready) -> String {
    let (outcome, code) = match &ready.outcome {
        Outcome::Created { code } => ("created", code.as_deref().ok()),
        Outcome::Configured => ("configured", None),
        Outcome::Joined => ("joined", None),
        Outcome::Restarted { .. } => ("restarted", None),
    };
    let object = serde_json::json!({
        "event": "ready",
        "outcome": outcome,
        "name": ready.node.as_str(),
        "network": ready.network.as_str(),
        "addresses": ready.addresses,
        "names": ready.names,
        "code": code,
    });
    format!("{object}\n")
}

/// What tells a user name's path from the node's own.
fn of_user(user: &Option<String>) -> String {
    match user.as_deref() {
        None => String::new(),
        Some("") => "path of a user name: ".to_owned(),
        Some(user) => format!("path of user {user:?}: "),
    }
}

/// What to try once the first path is there.
pub(super) fn hint(name: &str, address: IpAddr) -> String {
    format!("Try it: ping {address} reaches {name}. `warren status` shows all peers.\n")
}

/// One event as a sentence without a line end.
pub(super) fn line(event: &Event) -> String {
    match event {
        Event::Started { name, addresses } => format!("{name} serves ({})", listed(addresses)),
        Event::NodeAdmitted { name } => format!("{name} joined"),
        Event::PeerDiscovered { name } => format!("{name} is a member"),
        Event::PathPromoted { name, path, endpoint, rtt_ms, reason } => {
            let mut text = format!("{name}: {path}");
            if let Some(rtt) = rtt_ms {
                text += &format!(" {}", millis(*rtt));
            }
            // Over others the address says nothing that the names do not.
            if !path.starts_with("via ") {
                text += &format!(" by {}", plain(*endpoint));
            }
            if let Some(reason) = reason {
                text += &format!(" ({reason})");
            }
            text
        }
        Event::RouteChanged { prefix, via: Some(via) } => format!("{prefix} is behind {via}"),
        Event::RouteChanged { prefix, via: None } => format!("{prefix} is not routed any more"),
        Event::PeerUnreachable { name } => format!("{name} does not answer; trying again"),
        Event::KeyRotated { name, what } => format!("{name} has a new {what}"),
        Event::AuthorityChanged { name, change } => format!("{name} {change}"),
        Event::PeerRemoved { name, reason } => format!("{name} is gone: {reason}"),
        Event::RolesChanged { roles, draining: false } => {
            format!("this node's roles in onion paths: {roles}")
        }
        Event::RolesChanged { roles, draining: true } => {
            format!("this node's roles in onion paths: {roles}, draining")
        }
        Event::OnionConnected { path, user } => {
            format!("{}connected through {}", of_user(user), path.join(" > "))
        }
        Event::OnionMoved { from, to, reason, silent_ms, user } => format!(
            "{}moved from {} to {}: {reason}{}; connections go on",
            of_user(user),
            from.join(" > "),
            to.join(" > "),
            if *silent_ms >= 100 { format!(" for {silent_ms} ms") } else { String::new() }
        ),
        Event::OnionInterrupted { reason, user } => {
            format!("{}nothing leaves: {reason}", of_user(user))
        }
        Event::OnionExitLost { exit, user } => format!(
            "{}exit {exit} is gone: connections through it are reset, new ones take another exit",
            of_user(user)
        ),
        Event::OnionHopFailed { name, reason, was_up: true } => {
            format!("{name} failed on a path: {reason}")
        }
        Event::OnionHopFailed { name, reason, was_up: false } => {
            format!("no path over {name}: {reason}; another is tried")
        }
        Event::OnionDisconnected {} => "disconnected: traffic leaves as before".to_owned(),
        Event::Refused { remote, reason } => format!("refused {}: {reason}", plain(*remote)),
    }
}

/// An event with its time of day, UTC.
pub(super) fn dated(at: f64, event: &Event) -> String {
    let seconds = at.max(0.0) as u64 % 86_400;
    let (h, m, s) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    format!("{h:02}:{m:02}:{s:02}Z {}", line(event))
}

/// Milliseconds with as many digits as matter.
pub(super) fn millis(ms: f64) -> String {
    match ms {
        ms if ms < 10.0 => format!("{ms:.1} ms"),
        ms => format!("{ms:.0} ms"),
    }
}

/// IPv4 as IPv4, also when a dual-stack socket saw it.
pub(super) fn plain(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// The address to show or type when one is enough: IPv4 is shorter.
pub(super) fn handy(addresses: &[IpAddr]) -> Option<IpAddr> {
    addresses.iter().find(|a| a.is_ipv4()).or(addresses.first()).copied()
}

/// Addresses separated by commas.
pub(super) fn listed(addresses: &[IpAddr]) -> String {
    addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ready(outcome: Outcome) -> Ready {
        Ready {
            node: "gpu-1".parse().unwrap(),
            network: "lab".parse().unwrap(),
            addresses: vec!["100.64.0.1".parse().unwrap(), "fd00::1".parse().unwrap()],
            names: NamesStatus::default(),
            outcome,
        }
    }

    #[test]
    fn a_new_network_prints_exactly_one_line_to_paste() {
        let text = opening(&ready(Outcome::Created { code: Ok("warren1abc".into()) }));
        let paste: Vec<&str> = text.lines().filter(|l| l.contains("warren join")).collect();
        assert_eq!(paste, ["warren join warren1abc"]);
        assert!(text.contains("100.64.0.1, fd00::1"));
        for outcome in [
            Outcome::Created { code: Err("no address".into()) },
            Outcome::Configured,
            Outcome::Joined,
            Outcome::Restarted { admin: true },
            Outcome::Restarted { admin: false },
        ] {
            assert!(!opening(&ready(outcome)).contains("warren join"));
        }
    }

    #[test]
    fn the_opening_for_programs_has_the_code() {
        let text = opening_json(&ready(Outcome::Created { code: Ok("warren1abc".into()) }));
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!((&value["code"], &value["outcome"]), (&"warren1abc".into(), &"created".into()));
        assert_eq!(value["addresses"][0], "100.64.0.1");
    }

    #[test]
    fn the_handy_address_is_short() {
        let both = ready(Outcome::Joined).addresses;
        assert_eq!(handy(&[both[1], both[0]]), Some(both[0]));
        assert_eq!(handy(&both[1..]), Some(both[1]));
        assert_eq!(handy(&[]), None);
    }

    #[test]
    fn events_read_like_a_story() {
        let path = Event::PathPromoted {
            name: "gpu-2".into(),
            path: "direct".into(),
            endpoint: "[::ffff:192.0.2.7]:9277".parse().unwrap(),
            rtt_ms: Some(0.42),
            reason: None,
        };
        assert_eq!(line(&path), "gpu-2: direct 0.4 ms by 192.0.2.7:9277");
        let joined = Event::NodeAdmitted { name: "gpu-2".into() };
        assert_eq!(dated(86_400.0 + 3_661.5, &joined), "01:01:01Z gpu-2 joined");
    }
}
