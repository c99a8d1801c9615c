//! Lab scenarios: real daemons, real TUN interfaces, namespaces of their own.
//!
//! `cargo test -p warren --test lab [-- NAME…] [--long] [--list]`. Runs as
//! root, or without in a user namespace; where neither is allowed it says so
//! and checks nothing, unless `WARREN_LAB=required` makes that a failure.
//!
//! A harness of its own, because children die with the thread that started
//! them and namespaces need a process that has one thread when it enters its
//! user namespace. Scenarios run one after the other: each wants the machine.

mod admission;
mod attacks;
mod authentication;
mod chatter;
mod churn;
mod exit;
mod failover;
mod faults;
mod host;
mod islands;
mod lan;
mod mesh;
mod metrics;
mod names;
mod nat;
mod network;
mod onion;
mod onion_isolation;
mod onion_knowledge;
mod onion_leaks;
mod onion_load;
mod onion_trouble;
mod onion_userspace;
mod proxies;
mod relay;
mod roles;
mod rotation;
mod router;
mod stock;
mod story;
mod top;
mod tunnel;
mod userspace;
mod userspace_exit;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Result;
use warren_lab::topology::{Privilege, find_privilege, hide_run};

/// A scenario: a name that says what must hold, and the story that checks it.
pub(crate) type Scenario = (&'static str, fn() -> Result<()>);

const SCENARIOS: &[Scenario] = &[
    ("two_machines_two_commands", story::two_machines_two_commands),
    ("a_killed_node_comes_back_by_itself", story::a_killed_node_comes_back_by_itself),
    ("a_node_that_leaves_leaves_nothing", story::a_node_that_leaves_leaves_nothing),
    ("both_suites_and_both_families_work", story::both_suites_and_both_families_work),
    ("top_draws_and_puts_the_terminal_back", top::top_draws_and_puts_the_terminal_back),
    ("useless_codes_are_told_apart", admission::useless_codes_are_told_apart),
    ("bad_starts_name_the_remedy", admission::bad_starts_name_the_remedy),
    ("a_full_disk_is_named", admission::a_full_disk_is_named),
    ("secrets_stay_private", admission::secrets_stay_private),
    (
        "a_preshared_key_admits_only_its_holders",
        authentication::a_preshared_key_admits_only_its_holders,
    ),
    ("pinned_keys_admit_only_the_pinned", authentication::pinned_keys_admit_only_the_pinned),
    ("another_authority_admits_nobody", authentication::another_authority_admits_nobody),
    (
        "a_revoked_node_is_out_at_once_and_for_good",
        authentication::a_revoked_node_is_out_at_once_and_for_good,
    ),
    ("a_name_is_given_once", authentication::a_name_is_given_once),
    ("a_moved_node_keeps_its_connections", network::a_moved_node_keeps_its_connections),
    ("streams_survive_a_bad_network", network::streams_survive_a_bad_network),
    ("a_small_mtu_underlay_carries_large_packets", network::a_small_mtu_underlay),
    ("a_silent_mtu_hole_is_found", network::a_silent_mtu_hole_is_found),
    ("blocked_udp_is_replaced_by_tls", tunnel::blocked_udp_is_replaced_by_tls),
    ("a_relay_is_found_and_replaced", islands::a_relay_is_found_and_replaced),
    ("the_founder_is_no_centre", islands::the_founder_is_no_centre),
    ("a_network_behind_nodes_is_reached", islands::a_network_behind_nodes_is_reached),
    ("ipv6_alone_carries_a_mesh", world::ipv6_alone_carries_a_mesh),
    ("large_pings_cross_a_small_underlay", world::large_pings_cross_a_small_underlay),
    ("a_mesh_forms_in_bad_weather", world::a_mesh_forms_in_bad_weather),
    ("traffic_goes_over_one_relay", relay::traffic_goes_over_one_relay),
    ("traffic_goes_over_two_relays", relay::traffic_goes_over_two_relays),
    ("a_dead_relay_is_left_for_another", relay::a_dead_relay_is_left_for_another),
    (
        "a_relay_learns_nothing_of_what_it_passes_on",
        relay::a_relay_learns_nothing_of_what_it_passes_on,
    ),
    ("roles_are_known_to_all_and_kept", roles::roles_are_known_to_all_and_kept),
    ("metrics_tell_of_traffic_and_only_here", metrics::tell_of_traffic_and_only_here),
    ("bad_roles_are_refused_with_the_remedy", roles::bad_roles_are_refused),
    ("garbage_does_not_hurt_honest_peers", attacks::garbage_does_not_hurt_honest_peers),
    ("forged_initiations_do_not_hurt_honest_peers", attacks::forged_initiations),
    ("names_resolve_on_every_node_and_go_with_it", names::names_resolve_and_go),
    ("split_dns_comes_and_goes_with_the_daemon", names::split_dns),
    ("moved_nodes_find_each_other_on_a_lan", lan::moved_nodes_find_each_other),
    ("an_old_code_admits_on_a_lan", lan::an_old_code_admits),
    ("a_nat_pmp_router_gives_a_port", router::nat_pmp),
    ("miniupnpd_gives_a_port_by_pcp_and_upnp", router::miniupnpd),
    ("wireguard_go_reaches_the_mesh", stock::wireguard_go_reaches_the_mesh),
    ("boringtun_reaches_the_mesh", stock::boringtun_reaches_the_mesh),
    ("stock_wg_shows_a_warren_interface", stock::stock_wg_shows_a_warren_interface),
];

/// Minutes each; with `--long` only.
const LONG: &[Scenario] = &[
    ("the_price_of_a_relay", relay::the_price_of_a_relay),
    ("a_rekey_loses_nothing", story::a_rekey_loses_nothing),
];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let has = |flag: &str| arguments.iter().any(|argument| argument == flag);
    let names: Vec<&String> =
        arguments.iter().filter(|argument| !argument.starts_with('-')).collect();
    let (short, mut long) = (
        [
            SCENARIOS,
            nat::SCENARIOS,
            failover::SCENARIOS,
            churn::SCENARIOS,
            faults::SCENARIOS,
            rotation::SCENARIOS,
            host::SCENARIOS,
            exit::SCENARIOS,
            onion::SCENARIOS,
            onion_isolation::SCENARIOS,
            onion_knowledge::SCENARIOS,
            onion_load::SCENARIOS,
            onion_trouble::SCENARIOS,
            onion_leaks::SCENARIOS,
            onion_userspace::SCENARIOS,
            userspace::SCENARIOS,
        ],
        [
            LONG,
            nat::LONG,
            failover::LONG,
            churn::LONG,
            rotation::LONG,
            host::LONG,
            userspace::LONG,
            onion_load::LONG,
            onion_trouble::LONG,
            onion_leaks::LONG,
        ]
        .to_vec(),
    );
    if !has("--long") {
        long.clear();
    }
    let chosen: Vec<&Scenario> = short
        .into_iter()
        .chain(long)
        .flatten()
        .filter(|(name, _)| names.is_empty() || names.iter().any(|part| name.contains(*part)))
        .collect();
    if has("--list") {
        for (name, _) in chosen {
            println!("{name}: test");
        }
        return ExitCode::SUCCESS;
    }
    match find_privilege() {
        Ok(Privilege::Here) => {}
        Ok(Privilege::Delegated(code)) => return code,
        Err(error) => {
            println!("SKIPPED: no lab here: {error:#}");
            let required = std::env::var("WARREN_LAB").is_ok_and(|value| value == "required");
            return if required { ExitCode::FAILURE } else { ExitCode::SUCCESS };
        }
    }
    if let Err(error) = hide_run() {
        println!("cannot hide /run: {error:#}");
        return ExitCode::FAILURE;
    }
    run(&chosen)
}

fn run(chosen: &[&Scenario]) -> ExitCode {
    let (mut passed, mut failed) = (0, Vec::new());
    for (name, scenario) in chosen {
        let start = Instant::now();
        let outcome = catch_unwind(AssertUnwindSafe(scenario));
        let took = start.elapsed().as_secs_f64();
        match outcome {
            Ok(Ok(())) => {
                passed += 1;
                println!("test {name} ... ok ({took:.1} s)");
            }
            Ok(Err(error)) => {
                println!("test {name} ... FAILED ({took:.1} s)\n{error:#}\n");
                failed.push(name);
            }
            // The panic's message was printed when it happened.
            Err(_) => {
                println!("test {name} ... FAILED ({took:.1} s), panicked");
                failed.push(name);
            }
        }
    }
    let verdict = if failed.is_empty() { "ok" } else { "FAILED" };
    println!(
        "\ntest result: {verdict}. {passed} passed; {} failed; 0 ignored; 0 measured; 0 filtered out",
        failed.len()
    );
    println!("{passed} passed, {} failed", failed.len());
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
