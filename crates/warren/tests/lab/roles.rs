//! What nodes do for onion paths: told to all, changed at run time, kept.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use warren_lab::process::Node;
use warren_lab::topology::{Pair, Underlay};
use warren_os::files::TemporaryDir;
use warren_types::api::{PeerRoles, RolesReport};
use warren_types::{OnionKey, Suite};

use crate::story::{PATIENCE, spec};

/// Within which a change is known to the others.
const SOON: Duration = Duration::from_secs(2);

/// What `status --json` of one node says about the other.
fn peer_roles(node: &Node) -> Result<Option<PeerRoles>> {
    let json: serde_json::Value = serde_json::from_str(&node.warren(&["status", "--json"])?)?;
    let onion = json.pointer("/peers/0/onion").cloned().unwrap_or_default();
    Ok(serde_json::from_value(onion)?)
}

fn own_roles(node: &Node) -> Result<RolesReport> {
    Ok(serde_json::from_str(&node.warren(&["roles", "show", "--json"])?)?)
}

/// Waits until the other node knows what was changed.
fn soon(what: &str, node: &Node, check: impl Fn(&Option<PeerRoles>) -> bool) -> Result<()> {
    let start = Instant::now();
    loop {
        let roles = peer_roles(node)?;
        if check(&roles) {
            return Ok(());
        }
        ensure!(start.elapsed() < SOON, "not known within {SOON:?}: {what}; known is {roles:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn is(roles: &Option<PeerRoles>, expected: &str, place: Option<&str>, draining: bool) -> bool {
    roles.as_ref().is_some_and(|roles| {
        roles.roles.to_string() == expected
            && roles.place.as_ref().map(ToString::to_string).as_deref() == place
            && roles.draining == draining
    })
}

pub(crate) fn roles_are_known_to_all_and_kept() -> Result<()> {
    let pair = Pair::create(1500, Underlay::Direct)?;
    let scratch = TemporaryDir::create("warren-lab")?;
    let mut left = spec(&pair.left, Pair::LEFT, &scratch);
    let rules = scratch.path().join("exit.rules");
    std::fs::write(&rules, "reject *:25\naccept *:443 tcp\n")?;
    let flags = ["--roles", "entry,exit", "--region", "de", "--city", "fra", "--bandwidth"];
    left.arguments.extend(flags.map(Into::into));
    left.arguments.extend(["500mbit", "--family", "example.org"].map(Into::into));
    left.arguments.extend(["--exit-policy".into(), rules.clone().into()]);
    let mut left = left.up(Some(Suite::Aes256Gcm), PATIENCE)?;
    let code = left.join_code(PATIENCE)?;
    let mut right = spec(&pair.right, Pair::RIGHT, &scratch).join(&code, PATIENCE)?;
    left.wait_connected("right", PATIENCE)?;
    right.wait_connected("left", PATIENCE)?;

    soon("roles at the start", &right, |roles| is(roles, "entry,exit", Some("de-fra"), false))?;
    let known = peer_roles(&right)?.context("no roles")?;
    ensure!(known.family.is_some_and(|family| family.as_str() == "example.org"));
    ensure!(known.bandwidth.is_some_and(|rate| rate.bits_per_second() == 500_000_000));
    ensure!(peer_roles(&left)?.is_none(), "the other has no role");
    let own = own_roles(&left)?;
    let policy = own.settings.exit_policy.as_ref().map(ToString::to_string);
    ensure!(policy.as_deref() == Some("reject *:25\naccept *:443 tcp\n"), "{policy:?}");
    let keys: Vec<OnionKey> = own.onion_keys;
    ensure!(keys.len() == 1 && own_roles(&right)?.onion_keys.is_empty(), "{keys:?}");
    ensure!(left.status()?.node.onion.settings.roles.to_string() == "entry,exit");

    left.warren(&["roles", "set", "--roles", "relay,exit", "--region", "fr"])?;
    soon("roles set", &right, |roles| is(roles, "relay,exit", Some("fr"), false))?;
    left.warren(&["drain"])?;
    soon("drain", &right, |roles| is(roles, "relay,exit", Some("fr"), true))?;
    let shown = right.warren(&["status"])?;
    ensure!(shown.contains("relay,exit@fr!"), "{shown}");

    // The flags of the start say what they said before: the last word counts.
    let stopped = left.stop(PATIENCE)?;
    let mut left = stopped.up(None, PATIENCE)?;
    left.wait_connected("right", PATIENCE)?;
    let own = own_roles(&left)?;
    ensure!(own.settings.roles.to_string() == "relay,exit" && own.draining, "{own:?}");
    ensure!(own.onion_keys == keys, "the onion key did not survive the restart");
    soon("roles after a restart", &right, |roles| is(roles, "relay,exit", Some("fr"), true))?;
    left.warren(&["drain", "--off"])?;
    soon("drain --off", &right, |roles| is(roles, "relay,exit", Some("fr"), false))?;
    // And after a crash.
    let mut left = left.crash()?.up(None, PATIENCE)?;
    left.wait_connected("right", PATIENCE)?;
    soon("roles after a crash", &right, |roles| is(roles, "relay,exit", Some("fr"), false))?;

    left.warren(&["roles", "set", "--roles", "none"])?;
    soon("no roles", &right, Option::is_none)?;
    ensure!(own_roles(&left)?.onion_keys.is_empty(), "keys without a role");
    let secrets = scratch.path().join("left/onion-keys.json");
    ensure!(!secrets.exists(), "the secret keys stay on disk");
    Ok(())
}

pub(crate) fn bad_roles_are_refused() -> Result<()> {
    let pair = Pair::create(1500, Underlay::Direct)?;
    let scratch = TemporaryDir::create("warren-lab")?;
    let rules = scratch.path().join("bad.rules");
    std::fs::write(&rules, "accept *:443\npermit *:80\n")?;
    let mut bad = spec(&pair.left, Pair::LEFT, &scratch);
    bad.arguments.extend(["--roles", "exit", "--exit-policy"].map(Into::into));
    bad.arguments.push(rules.into());
    let Err(error) = bad.up(None, Duration::from_secs(5)) else {
        anyhow::bail!("a start with a bad exit policy")
    };
    let text = format!("{error:#}");
    ensure!(text.contains("line 2") && text.contains("accept or reject"), "{text}");

    let mut node = spec(&pair.right, Pair::RIGHT, &scratch);
    node.arguments.extend(["--roles", "exit"].map(Into::into));
    let node = node.up(None, PATIENCE)?;
    let warnings = node.status()?.warnings;
    ensure!(warnings.iter().any(|w| w.contains("no region")), "{warnings:?}");
    for (arguments, words) in [
        (vec!["roles", "set", "--city", "fra"], "--region"),
        (vec!["roles", "set", "--region", "zz"], "known are"),
        (vec!["roles", "set", "--roles", "guard"], "entry, relay and exit"),
        (vec!["roles", "set", "--exit-policy", "/nonexistent"], "exit policy"),
    ] {
        let Err(error) = node.warren(&arguments) else { anyhow::bail!("accepted: {arguments:?}") };
        let text = format!("{error:#}");
        ensure!(text.contains(words), "{arguments:?}: {text}");
    }
    ensure!(own_roles(&node)?.settings.roles.to_string() == "exit", "nothing changed");
    Ok(())
}
