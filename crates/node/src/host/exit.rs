//! An exit's address translation: packets with a lease as their source leave
//! this machine with its own address, if the policy allows.
//!
//! In: an [`ExitPlan`]. Out: routes of the leases to the tunnel, the table
//! `inet warren_exit`, and forwarding switched on for the interfaces that need
//! it. Invariants: a lease reaches neither the mesh, nor other leases, nor this
//! machine, but for its resolver; what is refused is refused with a reset or an
//! ICMP error, never silently; interfaces whose forwarding was off before pass
//! on nothing but leases' packets. Whatever the worker checks, this checks
//! again. Deliberately not here: the choice of leases, rewriting packets to
//! them, and exits without a kernel's help (userspace mode).

use std::fmt::Write;
use std::net::IpAddr;

use ipnet::IpNet;
use warren_os::netlink::rules::Family;
use warren_os::netlink::{Netlink, NetlinkError, Route};

use super::nft;
use super::plan::{
    ExitPlan, PolicyRule, RESOLVER_V4, RESOLVER_V6, Transport, check_interface, leases,
};
use super::record::{Done, Record};
use super::sysctl::{self, Change};
use crate::fault::{Fault, FaultKind};

/// Its table.
pub const TABLE: &str = "warren_exit";

/// Destinations that are refused whatever the policy says.
pub(crate) const NEVER: &[&str] = &[
    "0.0.0.0/8",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "192.0.0.0/24",
    "224.0.0.0/4",
    "240.0.0.0/4",
    "::/127",
    "::ffff:0:0/96",
    "fd77:6172:7265:6e00::/63",
    "fe80::/10",
    "ff00::/8",
];

/// Destinations that are refused unless the policy accepts them before:
/// private networks, shared address space, and IPv6 prefixes in which IPv4
/// addresses hide.
const PRIVATE: &[&str] = &[
    "10.0.0.0/8",
    "100.64.0.0/10",
    "172.16.0.0/12",
    "192.168.0.0/16",
    "198.18.0.0/15",
    "64:ff9b:1::/48",
    "100::/64",
    "2002::/16",
    "fc00::/7",
    "fec0::/10",
];

/// Ports that are refused unless the policy accepts them before: mail between
/// servers, the way of spam.
const PORTS: &str = "{ 25 }";

/// What of this machine the table depends on.
#[derive(Debug, Clone, Default)]
struct Facts {
    resolver: Option<IpAddr>,
    /// IPv4 interfaces that did not forward before.
    opened: Vec<String>,
    /// IPv6 was not forwarded before.
    opened_v6: bool,
}

/// Begins to serve as an exit, or changes how.
pub(super) fn apply(record: &mut Record, plan: &ExitPlan) -> Result<(), Fault> {
    check_interface(&plan.interface)?;
    let resolver = match plan.resolver {
        Some(address) => address,
        None => super::resolver::upstream()?,
    };
    if resolver.is_loopback() {
        return Err(Fault::new(
            FaultKind::Config,
            format!("the resolver {resolver} answers this machine only, not an exit's clients"),
        )
        .remedy("name one that answers others too: `exit.resolver = \"ADDRESS\"`"));
    }
    let mut netlink = Netlink::open().map_err(fault)?;
    let index = netlink.link_index(&plan.interface).map_err(fault)?;
    let links = netlink.links().map_err(fault)?;
    let outward = netlink.default_interfaces().map_err(fault)?;
    let names: Vec<&str> = links
        .iter()
        .filter(|link| outward.contains(&link.index) || link.index == index)
        .map(|link| link.name.as_str())
        .collect();
    let all: Vec<&str> = links.iter().map(|link| link.name.as_str()).collect();
    let settings = settings(&names, &all);

    let done = record.notes.exit.get_or_insert_with(Done::default);
    done.interface.clone_from(&plan.interface);
    done.note(&settings);
    let facts = facts(done, forwards_v4(), resolver);
    record.save()?;

    nft::load(&nft::replacing(TABLE, &table(plan, &facts)))?;
    for change in &settings {
        change.make()?;
    }
    for family in Family::BOTH {
        let mut route = Route::direct(leases(family), index);
        (route.mtu, route.lock_mtu) = (Some(plan.mtu), true);
        match netlink.add_route(&route) {
            Err(error) if family == Family::V6 => {
                tracing::warn!(%error, "no IPv6 for this exit's clients");
            }
            other => other.map_err(fault)?,
        }
    }
    Ok(())
}

/// True while nobody has removed it.
pub(super) fn in_force() -> Result<bool, Fault> {
    nft::exists(TABLE)
}

/// What of this machine stands in an exit's way.
pub(super) fn hints(interface: &str) -> Vec<String> {
    let hint = |table: String| {
        format!(
            "the table `{table}` of this machine's packet filter drops forwarded packets, sessions' \
             among them unless it lets them through: allow those from and to {interface} in it \
             (Docker: `iptables -I DOCKER-USER -i {interface} -j ACCEPT`, and `-o`)"
        )
    };
    nft::dropping_forwarded().into_iter().map(hint).collect()
}

/// Takes everything back; what is not there any more is success.
pub(super) fn lift(record: &mut Record) -> Result<(), Fault> {
    let Some(done) = record.notes.exit.clone() else { return Ok(()) };
    // Forwarding first: without the table it would be open to all.
    done.restore();
    nft::remove(TABLE)?;
    let mut netlink = Netlink::open().map_err(fault)?;
    if let Ok(index) = netlink.link_index(&done.interface) {
        for family in Family::BOTH {
            // Gone with the interface's last address, or never made.
            let _gone = netlink.delete_route(&Route::direct(leases(family), index));
        }
    }
    record.notes.exit = None;
    record.save()
}

/// Forwarding where it is needed. IPv6 has one switch for all, and an interface
/// that forwards no longer takes routes from routers unless told to.
fn settings(outward: &[&str], all: &[&str]) -> Vec<Change> {
    let v4 = outward
        .iter()
        .filter_map(|name| Change::wanted(format!("ipv4/conf/{name}/forwarding"), "1"));
    let everywhere = "ipv6/conf/all/forwarding".to_owned();
    let mut changes: Vec<Change> = v4.collect();
    if let Some(forward) = Change::wanted(everywhere, "1") {
        for name in all {
            let key = format!("ipv6/conf/{name}/accept_ra");
            if sysctl::read(&key).as_deref() == Some("1") {
                changes.extend(Change::wanted(key, "2"));
            }
        }
        changes.push(forward);
    }
    changes
}

/// The operator has switched IPv4 forwarding on, for all interfaces.
fn forwards_v4() -> bool {
    sysctl::read("ipv4/ip_forward").is_some_and(|value| value != "0")
}

/// Reads from what was changed what was closed before, the tunnel included:
/// members of the mesh are to be passed on no more than before.
fn facts(done: &Done, forwards_v4: bool, resolver: IpAddr) -> Facts {
    let opened = done.settings.iter().filter(|_| !forwards_v4).filter_map(|change| {
        let rest = change.key.strip_prefix("ipv4/conf/")?;
        rest.strip_suffix("/forwarding").map(str::to_owned)
    });
    Facts {
        resolver: Some(resolver),
        opened: opened.collect(),
        opened_v6: done.settings.iter().any(|change| change.key == "ipv6/conf/all/forwarding"),
    }
}

/// The body of the table.
fn table(plan: &ExitPlan, facts: &Facts) -> String {
    let tunnel = &plan.interface;
    let (lease4, lease6) = (leases(Family::V4), leases(Family::V6));
    let mut text = String::new();
    let _ = write!(
        text,
        "\tchain refuse {{\n\
         \t\tmeta l4proto tcp counter reject with tcp reset\n\
         \t\tcounter reject with icmpx type admin-prohibited\n\t}}\n\
         \tchain early {{\n\
         \t\ttype filter hook prerouting priority raw; policy accept;\n\
         \t\tiifname != \"{tunnel}\" ip saddr {lease4} counter drop\n\
         \t\tiifname != \"{tunnel}\" ip6 saddr {lease6} counter drop\n\t}}\n"
    );
    text.push_str(&names(tunnel, facts.resolver));
    text.push_str(&policy(plan));
    let _ = write!(
        text,
        "\tchain input {{\n\
         \t\ttype filter hook input priority filter - 5; policy accept;\n\
         \t\tip saddr {lease4} goto here\n\
         \t\tip6 saddr {lease6} goto here\n\t}}\n\
         \tchain here {{\n\
         \t\tct state established,related accept\n\
         \t\tjump names_only\n\
         \t\tgoto refuse\n\t}}\n\
         \tchain back {{\n\
         \t\tct state established,related accept\n\
         \t\tcounter drop\n\t}}\n\
         \tchain forward {{\n\
         \t\ttype filter hook forward priority filter - 5; policy accept;\n\
         \t\tip saddr {lease4} goto outward\n\
         \t\tip6 saddr {lease6} goto outward\n\
         \t\tip daddr {lease4} goto back\n\
         \t\tip6 daddr {lease6} goto back\n"
    );
    if !facts.opened.is_empty() {
        let names: Vec<String> = facts.opened.iter().map(|name| format!("\"{name}\"")).collect();
        let _ =
            writeln!(text, "\t\tmeta nfproto ipv4 iifname {{ {} }} counter drop", names.join(", "));
    }
    if facts.opened_v6 {
        text.push_str("\t\tmeta nfproto ipv6 counter drop\n");
    }
    let _ = write!(
        text,
        "\t}}\n\
         \tchain sources {{\n\
         \t\ttype nat hook postrouting priority srcnat; policy accept;\n\
         \t\toifname != \"{tunnel}\" ip saddr {lease4} masquerade\n\
         \t\toifname != \"{tunnel}\" ip6 saddr {lease6} masquerade\n\t}}\n"
    );
    text
}

/// Questions about names: sent on to the resolver, and let through because of
/// that alone.
fn names(tunnel: &str, resolver: Option<IpAddr>) -> String {
    let asked: IpAddr = match resolver {
        Some(IpAddr::V6(_)) => RESOLVER_V6.into(),
        _ => RESOLVER_V4.into(),
    };
    let family = Family::of(asked);
    let (word, lease) = (nft::keyword(family), leases(family));
    let mut text = String::from("\tchain resolver {\n");
    text.push_str("\t\ttype nat hook prerouting priority dstnat; policy accept;\n");
    if let Some(resolver) = resolver {
        for transport in ["udp", "tcp"] {
            let _ = writeln!(
                text,
                "\t\tiifname \"{tunnel}\" {word} saddr {lease} {word} daddr {asked} \
                 {transport} dport 53 dnat {word} to {resolver}"
            );
        }
    }
    text.push_str("\t}\n\tchain names_only {\n");
    if let Some(resolver) = resolver {
        let _ = writeln!(
            text,
            "\t\tct status dnat ct original {word} daddr {asked} {word} daddr {resolver} \
             meta l4proto {{ tcp, udp }} th dport 53 accept"
        );
    }
    text.push_str("\t}\n");
    text
}

/// What leases may reach.
fn policy(plan: &ExitPlan) -> String {
    let tunnel = &plan.interface;
    let mut text = String::from("\tchain outward {\n");
    text.push_str("\t\tct state established,related accept\n\t\tjump names_only\n");
    let _ = writeln!(text, "\t\toifname \"{tunnel}\" goto refuse");
    let prefixes = |words: &[&str]| -> Vec<IpNet> {
        words.iter().filter_map(|text| text.parse().ok()).collect()
    };
    let never: Vec<IpNet> = prefixes(NEVER).into_iter().chain(plan.mesh.iter().copied()).collect();
    for family in Family::BOTH {
        if let Some(set) = nft::set(family, &never) {
            let _ = writeln!(text, "\t\t{} daddr {set} goto refuse", nft::keyword(family));
        }
    }
    for rule in &plan.policy {
        let _ = writeln!(text, "\t\t{}", policy_rule(rule));
    }
    let _ = writeln!(text, "\t\tmeta l4proto {{ tcp, udp }} th dport {PORTS} goto refuse");
    for family in Family::BOTH {
        if let Some(set) = nft::set(family, &prefixes(PRIVATE)) {
            let _ = writeln!(text, "\t\t{} daddr {set} goto refuse", nft::keyword(family));
        }
    }
    text.push_str("\t\taccept\n\t}\n");
    text
}

fn policy_rule(rule: &PolicyRule) -> String {
    let mut words = Vec::new();
    if let Some(to) = rule.to {
        words.push(format!("{} daddr {}", nft::keyword(Family::of(to.addr())), to.trunc()));
    }
    let transport = match rule.transport {
        Some(Transport::Tcp) => "meta l4proto tcp",
        Some(Transport::Udp) => "meta l4proto udp",
        None if rule.ports.is_some() => "meta l4proto { tcp, udp }",
        None => "",
    };
    if !transport.is_empty() {
        words.push(transport.to_owned());
    }
    if let Some(ports) = &rule.ports {
        let (first, last) = (ports.start(), ports.end());
        words.push(match first == last {
            true => format!("th dport {first}"),
            false => format!("th dport {first}-{last}"),
        });
    }
    words.push(if rule.accept { "accept" } else { "goto refuse" }.to_owned());
    words.join(" ")
}

fn fault(error: NetlinkError) -> Fault {
    Fault::netlink("serve as an exit", &error)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan() -> ExitPlan {
        ExitPlan::new("warren0", vec!["100.64.0.0/10".parse().unwrap()])
    }

    fn facts(resolver: &str) -> Facts {
        Facts { resolver: Some(resolver.parse().unwrap()), ..Facts::default() }
    }

    #[test]
    fn the_policy_comes_between_what_is_never_and_what_is_private() {
        let mut plan = plan();
        plan.policy = vec![
            PolicyRule {
                accept: true,
                to: Some("10.1.0.0/16".parse().unwrap()),
                transport: Some(Transport::Tcp),
                ports: Some(443..=443),
            },
            PolicyRule { accept: false, to: None, transport: None, ports: Some(6881..=6999) },
        ];
        let text = policy(&plan);
        let at = |part: &str| text.find(part).unwrap_or_else(|| panic!("no {part}:\n{text}"));
        let never = at("ip daddr { 0.0.0.0/8");
        let opened = at("ip daddr 10.1.0.0/16 meta l4proto tcp th dport 443 accept");
        let closed = at("meta l4proto { tcp, udp } th dport 6881-6999 goto refuse");
        let private = at("ip daddr { 10.0.0.0/8");
        assert!(never < opened && opened < closed && closed < private, "{text}");
        assert!(text[never..opened].contains("100.64.0.0/10"), "the mesh is never reached: {text}");
        assert!(text.trim_end().ends_with("accept\n\t}"), "{text}");
    }

    #[test]
    fn names_go_to_the_resolver_of_its_family_only() {
        let text = table(&plan(), &facts("192.168.1.1"));
        assert!(text.contains("ip daddr 192.0.0.1 udp dport 53 dnat ip to 192.168.1.1"), "{text}");
        assert!(!text.contains("ip6 daddr fd77:6172:7265:6e00::1"), "{text}");
        let text = table(&plan(), &facts("2001:db8::53"));
        assert!(text.contains("tcp dport 53 dnat ip6 to 2001:db8::53"), "{text}");
    }

    #[test]
    fn interfaces_that_were_closed_stay_closed_to_others() {
        let open = table(&plan(), &facts("192.0.2.1"));
        assert!(!open.contains("iifname { "), "{open}");
        let change = |key: &str| Change {
            key: key.to_owned(),
            before: "0".to_owned(),
            after: "1".to_owned(),
        };
        let done = Done {
            interface: "warren0".to_owned(),
            settings: vec![
                change("ipv4/conf/eth0.7/forwarding"),
                change("ipv4/conf/warren0/forwarding"),
                change("ipv6/conf/all/forwarding"),
            ],
        };
        let facts = super::facts(&done, false, "192.0.2.1".parse().unwrap());
        let text = table(&plan(), &facts);
        let closed = "nfproto ipv4 iifname { \"eth0.7\", \"warren0\" } counter drop";
        assert!(text.contains(closed), "{text}");
        let facts = super::facts(&done, true, "192.0.2.1".parse().unwrap());
        assert!(facts.opened.is_empty(), "the operator lets others through: {facts:?}");
        assert!(text.contains("meta nfproto ipv6 counter drop"), "{text}");
    }

    #[test]
    fn what_is_never_reached_and_what_is_private() {
        let listed = |words: &[&str], to: IpAddr| {
            words.iter().any(|text| text.parse::<IpNet>().unwrap().contains(&to))
        };
        for (to, always, private) in [
            ("127.0.0.1", true, true),
            ("169.254.169.254", true, true),
            ("fe80::1", true, true),
            ("::", true, true),
            ("240.0.0.7", true, true),
            ("198.19.0.7", false, true),
            ("192.168.1.1", false, true),
            ("100.64.0.1", false, true),
            ("2002:0a00::1", false, true),
            ("203.0.113.9", false, false),
            ("2001:db8::1", false, false),
        ] {
            let to: IpAddr = to.parse().unwrap();
            assert_eq!(listed(NEVER, to), always, "{to}");
            assert_eq!(listed(NEVER, to) || listed(PRIVATE, to), private, "{to}");
        }
    }
}
