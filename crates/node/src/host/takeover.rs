//! Whole-machine routing: this machine's traffic goes into the tunnel, the
//! packets that carry the tunnel do not.
//!
//! In: a [`TakeoverPlan`]. Out: the tunnel's inner addresses, a routing table
//! of its own, policy rules that lead to it, and the table `inet
//! warren_takeover`. Invariants: rules carry our origin and the routes have
//! their own table, so a later process recognises and removes them; the main
//! table is never changed; rules that exempt are there before the rule that
//! takes over, and go after it. The rules, by priority:
//!
//! | priority | packets | where to |
//! |---|---|---|
//! | 30500 | with our mark; from leases of an exit here | the system's own rules |
//! | 30501 | to the exit's resolver | the tunnel |
//! | 30505 | selected by mark, user | excluded: the system's; included: the tunnel |
//! | 30510 | to the mesh | the main table |
//! | 30520 | to selected subnets | excluded: the system's; included: the tunnel |
//! | 30540 | to networks the main table knows | the main table without its default route |
//! | 30550 | all | the tunnel, unless only a selection is included |
//! | 30590 | | the system's own rules go on here |
//!
//! Deliberately not here: keeping traffic back when the tunnel is gone (that
//! is the kill switch; without one the interface's end takes the routes with
//! it, and traffic goes where it went before).

use std::collections::BTreeSet;
use std::fmt::Write;

use ipnet::IpNet;
use warren_os::mark::MARK;
use warren_os::netlink::rules::{Family, Rule, Verdict};
use warren_os::netlink::{Netlink, NetlinkError, Route};

use super::nft;
use super::plan::{SplitMode, TakeoverPlan, check_interface, inner, leases};
use super::record::{Done, Record};
use super::split::{self, SELECTED};
use super::sysctl::{self, Change};
use crate::fault::Fault;

/// Its packet filter table.
pub const TABLE: &str = "warren_takeover";
/// Its routing table: the mark's number, which nobody else has.
pub const ROUTES: u32 = MARK;

/// `RT_TABLE_MAIN`.
const MAIN: u32 = 254;
/// Where the system's own rules go on.
const END: u32 = 30_590;

/// Private destinations: no exit reaches them.
const PRIVATE: &[&str] =
    &["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16", "fc00::/7", "fe80::/10"];

/// What of this machine the plan depends on.
#[derive(Debug, Clone, Copy, Default)]
struct Facts<'a> {
    /// Where `nft` finds control groups.
    group_root: &'a str,
    /// This machine passes on packets of others (containers, guests).
    forwards: bool,
}

/// Leads the machine's traffic into the tunnel, or changes how.
pub(super) fn apply(record: &mut Record, plan: &TakeoverPlan) -> Result<(), Fault> {
    check_interface(&plan.interface)?;
    let group_root = split::group_root(&plan.split)?;
    let mut netlink = Netlink::open().map_err(fault)?;
    let index = netlink.link_index(&plan.interface).map_err(fault)?;
    let families = families();
    let mut settings = vec![Change::wanted("ipv4/conf/all/src_valid_mark".to_owned(), "1")];
    if families.contains(&Family::V6) {
        let key = format!("ipv6/conf/{}/disable_ipv6", plan.interface);
        settings.push(Change::wanted(key, "0"));
    }
    let settings: Vec<Change> = settings.into_iter().flatten().collect();

    let done = record.notes.takeover.get_or_insert_with(Done::default);
    done.interface.clone_from(&plan.interface);
    done.note(&settings);
    record.save()?;

    for change in &settings {
        change.make()?;
    }
    for &family in families {
        match netlink.add_address(index, inner(family).into()) {
            Err(NetlinkError::Exists { .. }) => {}
            other => other.map_err(fault)?,
        }
    }
    let forwards = ["ipv4/ip_forward", "ipv6/conf/all/forwarding"]
        .iter()
        .any(|key| sysctl::read(key).is_some_and(|value| value != "0"));
    nft::load(&nft::replacing(TABLE, &table(plan, Facts { group_root, forwards })))?;
    for route in routes(plan, families, index) {
        netlink.add_route(&route).map_err(fault)?;
    }
    let wanted = rules(plan, families);
    let there: BTreeSet<Rule> = netlink.own_rules().map_err(fault)?.into_iter().collect();
    for rule in wanted.iter().filter(|rule| !there.contains(rule)) {
        match netlink.add_rule(rule) {
            Err(NetlinkError::Exists { .. }) => {}
            other => other.map_err(fault)?,
        }
    }
    for rule in there.iter().rev().filter(|rule| !wanted.contains(rule)) {
        netlink.delete_rule(rule).map_err(fault)?;
    }
    Ok(())
}

/// True while nobody has removed any of it. The routes are the interface's.
pub(super) fn in_force(plan: &TakeoverPlan) -> Result<bool, Fault> {
    let mut netlink = Netlink::open().map_err(fault)?;
    let there = netlink.own_rules().map_err(fault)?;
    let wanted = rules(plan, families());
    Ok(wanted.iter().all(|rule| there.contains(rule)) && nft::exists(TABLE)?)
}

/// The families this machine has.
fn families() -> &'static [Family] {
    match sysctl::read("ipv6/conf/all/disable_ipv6") {
        Some(_) => &Family::BOTH,
        // A kernel without IPv6 has nothing that could go beside the tunnel.
        None => &[Family::V4],
    }
}

/// Takes everything back; what is not there any more is success.
pub(super) fn lift(record: &mut Record) -> Result<(), Fault> {
    let Some(done) = record.notes.takeover.clone() else { return Ok(()) };
    let mut netlink = Netlink::open().map_err(fault)?;
    let mut rules = netlink.own_rules().map_err(fault)?;
    rules.sort_by_key(|rule| std::cmp::Reverse(order(rule)));
    for rule in rules {
        netlink.delete_rule(&rule).map_err(fault)?;
    }
    netlink.flush_table(ROUTES).map_err(fault)?;
    nft::remove(TABLE)?;
    if let Ok(index) = netlink.link_index(&done.interface) {
        for address in inner_addresses(&mut netlink, index)? {
            netlink.delete_address(index, address).map_err(fault)?;
        }
    }
    done.restore();
    record.notes.takeover = None;
    record.save()
}

/// The addresses of an interface that only a takeover gives it.
fn inner_addresses(netlink: &mut Netlink, index: u32) -> Result<Vec<IpNet>, Fault> {
    let ours = Family::BOTH.map(|family| IpNet::from(inner(family)));
    let all = netlink.addresses().map_err(fault)?;
    Ok(all
        .into_iter()
        .filter(|address| address.index == index && ours.contains(&address.address))
        .map(|address| address.address)
        .collect())
}

/// A place in the order of making: targets, exemptions, and last what takes
/// traffic over.
fn order(rule: &Rule) -> (u8, u32) {
    let step = match rule.verdict {
        Verdict::Nothing => 0,
        Verdict::Goto(_) => 1,
        Verdict::Table(MAIN) => 2,
        Verdict::Table(_) => 3,
    };
    (step, rule.priority)
}

/// The policy rules, in the order in which they are to be made.
fn rules(plan: &TakeoverPlan, families: &[Family]) -> Vec<Rule> {
    let mut rules = Vec::new();
    for &family in families {
        let rule = |priority, verdict| Rule::all(family, priority, verdict);
        let selected = match plan.split.mode {
            SplitMode::Exclude => Verdict::Goto(END),
            SplitMode::Include => Verdict::Table(ROUTES),
        };
        let of_family = |prefix: &&IpNet| Family::of(prefix.addr()) == family;
        rules.push(rule(END, Verdict::Nothing));
        rules.push(Rule { mark: Some(MARK), ..rule(30_500, Verdict::Goto(END)) });
        rules.push(Rule { source: Some(leases(family)), ..rule(30_500, Verdict::Goto(END)) });
        for server in plan.resolvers.iter().filter(|server| Family::of(**server) == family) {
            let destination = Some(IpNet::from(*server));
            rules.push(Rule { destination, ..rule(30_501, Verdict::Table(ROUTES)) });
        }
        if plan.split.marks() {
            rules.push(Rule { mark: Some(SELECTED), ..rule(30_505, selected) });
        }
        for user in plan.split.users.iter().collect::<BTreeSet<_>>() {
            rules.push(Rule { users: Some((*user, *user)), ..rule(30_505, selected) });
        }
        for prefix in IpNet::aggregate(&plan.mesh).iter().filter(of_family) {
            let destination = Some(prefix.trunc());
            rules.push(Rule { destination, ..rule(30_510, Verdict::Table(MAIN)) });
        }
        for prefix in IpNet::aggregate(&plan.split.subnets).iter().filter(of_family) {
            let destination = Some(prefix.trunc());
            rules.push(Rule { destination, ..rule(30_520, selected) });
        }
        if plan.split.takes_all() {
            if plan.lan_allowed {
                let suppress_prefix = Some(0);
                rules.push(Rule { suppress_prefix, ..rule(30_540, Verdict::Table(MAIN)) });
            } else if family == Family::V6 {
                // Neighbours are link-local; without them there is no underlay.
                let destination = "fe80::/10".parse().ok();
                rules.push(Rule { destination, ..rule(30_540, Verdict::Table(MAIN)) });
            }
            rules.push(rule(30_550, Verdict::Table(ROUTES)));
        }
    }
    rules.sort_by_key(order);
    rules
}

/// The routes of our own table.
fn routes(plan: &TakeoverPlan, families: &[Family], index: u32) -> Vec<Route> {
    let all = |family| match family {
        Family::V4 => std::net::IpAddr::from([0, 0, 0, 0]),
        Family::V6 => std::net::IpAddr::from([0_u16; 8]),
    };
    families
        .iter()
        .filter_map(|family| IpNet::new(all(*family), 0).ok().map(|to| (family, to)))
        .map(|(family, destination)| Route {
            source: Some(inner(*family)),
            mtu: Some(plan.mtu),
            table: Some(ROUTES),
            ..Route::direct(destination, index)
        })
        .collect()
}

/// The body of the packet filter table.
fn table(plan: &TakeoverPlan, facts: Facts<'_>) -> String {
    let tunnel = &plan.interface;
    let mut text = split::marking(&plan.split, facts.group_root);
    // Answers are judged as their questions were: the check of the reverse
    // path, the kernel's or a firewall's, looks up the source by mark.
    text.push_str("\tchain early {\n");
    text.push_str("\t\ttype filter hook prerouting priority mangle; policy accept;\n");
    for family in Family::BOTH {
        // From a network beside the tunnel nobody may write to its inner
        // address (CVE-2019-14899).
        let _ = writeln!(
            text,
            "\t\tiifname != \"{tunnel}\" {} daddr {} fib saddr type != local drop",
            nft::keyword(family),
            inner(family)
        );
    }
    let _ = writeln!(text, "\t\tsocket mark {MARK:#x} meta mark set {MARK:#x}");
    if plan.split.marks() {
        let _ = writeln!(text, "\t\tct mark {SELECTED:#x} meta mark set {SELECTED:#x}");
    }
    text.push_str("\t}\n");
    text.push_str(&guard(plan));
    text.push_str(&translation(plan, facts));
    text
}

/// What programs would send the wrong way: questions about names beside the
/// tunnel, and packets of connections that are older than the tunnel, whose
/// source no exit can answer to. They are told at once, so that they begin
/// anew.
fn guard(plan: &TakeoverPlan) -> String {
    let tunnel = &plan.interface;
    let mut text = String::from("\tchain guard {\n");
    text.push_str("\t\ttype filter hook output priority filter; policy accept;\n");
    let _ = writeln!(text, "\t\tmeta mark {{ {MARK:#x}, {SELECTED:#x} }} accept");
    for family in Family::BOTH {
        let ends = [IpNet::from(inner(family)), leases(family)];
        let own: Vec<IpNet> = plan.mesh.iter().copied().chain(ends).collect();
        let (word, Some(set)) = (nft::keyword(family), nft::set(family, &own)) else { continue };
        let outside = format!("\t\toifname \"{tunnel}\" {word} saddr != {set}");
        let link_local = match family {
            Family::V4 => "",
            // The kernel's own: router solicitations, group membership.
            Family::V6 => " ip6 saddr != { fe80::/10, :: }",
        };
        let _ = writeln!(text, "{outside}{link_local} meta l4proto tcp reject with tcp reset");
        let _ = writeln!(text, "{outside}{link_local} reject with icmpx type admin-prohibited");
    }
    if plan.split.takes_all() {
        if let Some(users) = split::users(&plan.split) {
            let _ = writeln!(text, "\t\tmeta skuid {users} accept");
        }
        for family in Family::BOTH {
            let open: Vec<IpNet> = plan.split.subnets.iter().chain(&plan.mesh).copied().collect();
            if let Some(set) = nft::set(family, &open) {
                let _ = writeln!(text, "\t\t{} daddr {set} accept", nft::keyword(family));
            }
        }
        let _ = writeln!(
            text,
            "\t\toifname != {{ \"lo\", \"{tunnel}\" }} meta l4proto {{ tcp, udp }} \
             th dport {{ 53, 853 }} reject with icmpx type admin-prohibited"
        );
    }
    text.push_str("\t}\n");
    text
}

/// Sources are translated where the source address was chosen for another way
/// than the packet takes. Connections are only tracked where that is needed.
fn translation(plan: &TakeoverPlan, facts: Facts<'_>) -> String {
    if !plan.split.marks() && !facts.forwards {
        return String::new();
    }
    let tunnel = &plan.interface;
    let mut text = String::from("\tchain sources {\n");
    text.push_str("\t\ttype nat hook postrouting priority srcnat; policy accept;\n");
    for family in Family::BOTH {
        let (word, inner) = (nft::keyword(family), inner(family));
        let private: Vec<IpNet> = PRIVATE.iter().filter_map(|text| text.parse().ok()).collect();
        let near: Vec<IpNet> = plan.mesh.iter().copied().chain(private).collect();
        let (Some(near), Some(own)) =
            (nft::set(family, &near), nft::set(family, &[IpNet::from(inner), leases(family)]))
        else {
            continue;
        };
        let _ = writeln!(
            text,
            "\t\toifname \"{tunnel}\" {word} daddr != {near} {word} saddr != {own} \
             snat {word} to {inner}"
        );
    }
    if plan.split.takes_all() && plan.split.marks() {
        let _ = writeln!(
            text,
            "\t\toifname != {{ \"lo\", \"{tunnel}\" }} meta mark {SELECTED:#x} masquerade"
        );
    }
    text.push_str("\t}\n");
    text
}

fn fault(error: NetlinkError) -> Fault {
    Fault::netlink("route this machine's traffic", &error)
}

#[cfg(test)]
mod tests {
    use super::super::plan::{ControlGroup, Split};
    use super::*;

    fn plan() -> TakeoverPlan {
        let mesh = ["100.64.0.0/10", "fd12:3456:789a::/48"];
        TakeoverPlan::new("warren0", mesh.iter().map(|text| text.parse().unwrap()).collect())
    }

    /// What becomes of a packet: the first rule that sends it to the tunnel's
    /// table, to the main one, or past our rules.
    fn way(rules: &[Rule], to: &str, mark: Option<u32>, user: u32) -> Verdict {
        let to: IpNet = to.parse().unwrap();
        let mut rules: Vec<&Rule> =
            rules.iter().filter(|rule| rule.family == Family::of(to.addr())).collect();
        rules.sort_by_key(|rule| rule.priority);
        rules
            .into_iter()
            .find(|rule| {
                rule.mark.is_none_or(|wanted| mark == Some(wanted))
                    && rule.source.is_none()
                    && rule.destination.is_none_or(|prefix| prefix.contains(&to))
                    && rule.users.is_none_or(|(first, last)| (first..=last).contains(&user))
                    // As if the main table had nothing but a default route.
                    && rule.suppress_prefix.is_none()
                    && rule.verdict != Verdict::Nothing
            })
            .map_or(Verdict::Goto(END), |rule| rule.verdict)
    }

    #[test]
    fn everything_but_the_carrier_and_the_mesh_goes_into_the_tunnel() {
        let rules = rules(&plan(), &Family::BOTH);
        let tunnel = Verdict::Table(ROUTES);
        for to in ["203.0.113.9/32", "2001:db8::1/128", "192.0.0.1/32"] {
            assert_eq!(way(&rules, to, None, 0), tunnel, "{to}");
        }
        assert_eq!(way(&rules, "203.0.113.9/32", Some(MARK), 0), Verdict::Goto(END));
        assert_eq!(way(&rules, "100.64.3.4/32", None, 0), Verdict::Table(MAIN));
        assert_eq!(way(&rules, "fd12:3456:789a::1/128", None, 0), Verdict::Table(MAIN));
        // Made in an order in which nothing is taken that should not be.
        let steps: Vec<u8> = rules.iter().map(|rule| order(rule).0).collect();
        assert!(steps.is_sorted(), "{rules:?}");
    }

    #[test]
    fn exclusions_and_inclusions_are_each_others_mirror() {
        let mut plan = plan();
        plan.split = Split {
            mode: SplitMode::Exclude,
            subnets: vec!["203.0.113.0/24".parse().unwrap()],
            users: vec![1000],
            groups: vec![ControlGroup::try_from("a.slice".to_owned()).unwrap()],
        };
        let (out, tunnel) = (Verdict::Goto(END), Verdict::Table(ROUTES));
        let excluding = rules(&plan, &Family::BOTH);
        plan.split.mode = SplitMode::Include;
        let including = rules(&plan, &Family::BOTH);
        for (to, mark, user, selected) in [
            ("203.0.113.9/32", None, 0, true),
            ("198.51.100.1/32", None, 0, false),
            ("198.51.100.1/32", None, 1000, true),
            ("2001:db8::1/128", Some(SELECTED), 0, true),
        ] {
            let (one, other) = if selected { (out, tunnel) } else { (tunnel, out) };
            assert_eq!(way(&excluding, to, mark, user), one, "{to}");
            assert_eq!(way(&including, to, mark, user), other, "{to}");
        }
        // The resolver is the exit's, for all.
        assert_eq!(way(&excluding, "192.0.0.1/32", None, 1000), tunnel);
    }

    #[test]
    fn connections_are_tracked_only_where_sources_change() {
        let text = table(&plan(), Facts::default());
        assert!(!text.contains("type nat") && !text.contains("ct mark"), "{text}");
        assert!(text.contains("iifname != \"warren0\" ip daddr 192.0.0.2 fib saddr"), "{text}");
        assert!(text.contains("socket mark 0x77617272 meta mark set 0x77617272"), "{text}");
        assert!(text.contains("th dport { 53, 853 } reject"), "{text}");
        let text = table(&plan(), Facts { forwards: true, ..Facts::default() });
        assert!(text.contains("snat ip to 192.0.0.2"), "{text}");
        let mut split = plan();
        split.split.users = vec![1000];
        let text = table(&split, Facts::default());
        assert!(text.contains("meta skuid { 1000 } meta mark set 0x77617273 ct mark set"));
        assert!(text.contains("meta mark 0x77617273 masquerade"), "{text}");
    }

    #[test]
    fn routes_carry_the_inner_source_and_size() {
        let routes = routes(&plan(), &Family::BOTH, 7);
        assert_eq!(routes.len(), 2);
        assert!(routes.iter().all(|route| {
            route.mtu == Some(1280) && route.table == Some(ROUTES) && route.index == 7
        }));
        assert_eq!(routes[0].source.unwrap().to_string(), "192.0.0.2");
    }
}
