//! The kill switch: a packet filter table that lets nothing leave this machine
//! beside the tunnel, and that stays when the daemon ends, however it ends.
//!
//! In: a [`KillSwitchPlan`]. Out: the table `inet warren_kill`, and the file
//! `kill-switch.json` that remembers the plan for the next daemon and the next
//! boot. Invariants: the table is replaced in one transaction, so there is no
//! moment without it; what is not allowed is refused twice, once where programs
//! learn of it at once and once where the real outgoing interface is known
//! (rerouting and translation lie between). Deliberately not here: when to turn
//! it on, and packets that programs with `CAP_NET_RAW` write past the filters
//! (packet sockets).

use std::fmt::Write;
use std::path::Path;
use std::time::Duration;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use warren_os::files::{self, LockFile};
use warren_os::mark::MARK;
use warren_os::netlink::rules::Family;

use super::nft;
use super::plan::{KillSwitchPlan, check_interface};
use super::split::{self, SELECTED};
use crate::fault::{Fault, FaultKind};

/// Its table.
pub const TABLE: &str = "warren_kill";
/// Its file, in the state directory.
pub const FILE: &str = "kill-switch.json";
/// Held while it is changed.
const LOCK: &str = "kill-switch.lock";
/// How long another change may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// No file of ours comes near it.
const MAX_FILE: u64 = 1 << 20;

/// What "the local network" means: private, link-local and multicast.
const LAN: &[&str] = &[
    "10.0.0.0/8",
    "172.16.0.0/12",
    "192.168.0.0/16",
    "169.254.0.0/16",
    "224.0.0.0/4",
    "255.255.255.255/32",
    "fc00::/7",
    "fe80::/10",
    "ff02::/16",
    "ff05::/16",
];

/// How the kill switch stands.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KillSwitchState {
    /// It is in force in the kernel.
    pub on: bool,
    /// What it was last told; there also when it is wanted but not in force.
    pub plan: Option<KillSwitchPlan>,
}

/// Turns it on, or changes it, without a gap.
///
/// # Errors
/// [`Fault`] with what is missing. What was in force stays in force.
pub fn on(dir: &Path, plan: &KillSwitchPlan) -> Result<(), Fault> {
    files::create_private_dir(dir).map_err(|e| Fault::new(FaultKind::State, e.to_string()))?;
    let _lock = lock(dir)?;
    put_on(dir, plan)
}

/// Puts it back into force if it was turned on and something else has removed
/// it; true when that was so.
///
/// # Errors
/// As [`on`].
pub fn keep(dir: &Path) -> Result<bool, Fault> {
    if !dir.join(FILE).exists() {
        return Ok(false);
    }
    let _lock = lock(dir)?;
    match remembered(dir)? {
        Some(plan) if !nft::exists(TABLE)? => put_on(dir, &plan).map(|()| true),
        _ => Ok(false),
    }
}

/// One change at a time: a daemon that keeps it on must not come between the
/// steps of a command that turns it off.
fn lock(dir: &Path) -> Result<LockFile, Fault> {
    LockFile::acquire_within(&dir.join(LOCK), PATIENCE)
        .map_err(|error| Fault::new(FaultKind::State, error.to_string()))
}

fn put_on(dir: &Path, plan: &KillSwitchPlan) -> Result<(), Fault> {
    check_interface(&plan.interface)?;
    let root = split::group_root(&plan.split)?;
    nft::load(&nft::replacing(TABLE, &table(plan, root)))?;
    // After it: a filter without the file is found and kept, a file without
    // the filter would be a promise.
    let text = serde_json::to_vec_pretty(plan).map_err(|e| Fault::internal(&e))?;
    files::write_private(&dir.join(FILE), &text)
        .map_err(|e| Fault::new(FaultKind::State, format!("the kill switch is on, but: {e}")))
}

/// Turns it off; that it is off is success.
///
/// # Errors
/// [`Fault`] with what is missing; it then stays on.
pub fn off(dir: &Path) -> Result<(), Fault> {
    let _lock = match dir.exists() {
        true => Some(lock(dir)?),
        false => None,
    };
    nft::remove(TABLE)?;
    let path = dir.join(FILE);
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Fault::file("remove", &path, &error))
        }
        _ => Ok(()),
    }
}

/// What it was last told to do; `None` when it was turned off.
///
/// # Errors
/// When the file cannot be read.
pub fn remembered(dir: &Path) -> Result<Option<KillSwitchPlan>, Fault> {
    let path = dir.join(FILE);
    let text = match files::read_private(&path, MAX_FILE) {
        Ok(text) => text,
        Err(error) if error.is_not_found() => return Ok(None),
        Err(error) => return Err(Fault::new(FaultKind::State, error.to_string())),
    };
    serde_json::from_slice(&text).map(Some).map_err(|error| {
        Fault::new(FaultKind::State, format!("{} is damaged: {error}", path.display()))
            .remedy("`warren kill-switch off` removes it")
    })
}

/// How it stands.
///
/// # Errors
/// When the kernel or the file cannot be asked.
pub fn state(dir: &Path) -> Result<KillSwitchState, Fault> {
    let plan = remembered(dir)?;
    let on = match nft::exists(TABLE) {
        // Most machines never have one, and some no `nft`.
        Err(fault) if plan.is_none() => {
            tracing::debug!(%fault, "no packet filters here");
            false
        }
        on => on?,
    };
    Ok(KillSwitchState { on, plan })
}

/// The body of the table.
fn table(plan: &KillSwitchPlan, root: &str) -> String {
    let mut text = String::new();
    let tunnel = &plan.interface;
    let split = &plan.split;
    // Whom a mark tells is marked after the takeover's own chain, which has to
    // see the packet unmarked to route it anew.
    if !split.groups.is_empty() {
        text.push_str("\tchain select {\n");
        text.push_str("\t\ttype filter hook output priority mangle + 1; policy accept;\n");
        let _ = writeln!(text, "\t\tmeta mark {MARK:#x} accept");
        for group in &split.groups {
            let matched = nft::group_match(group, root);
            let _ = writeln!(text, "\t\t{matched} meta mark set {SELECTED:#x}");
        }
        text.push_str("\t}\n");
    }
    text.push_str("\tchain allowed {\n");
    let _ = writeln!(text, "\t\toifname {{ \"lo\", \"{tunnel}\" }} accept");
    let _ = writeln!(text, "\t\tmeta mark {MARK:#x} accept");
    if split.takes_all() {
        text.push_str(&necessities());
        text.push_str(&selection(plan, "accept"));
        if plan.lan {
            // Before the networks: a name asked of the router is told outside.
            text.push_str("\t\tmeta l4proto { tcp, udp } th dport { 53, 853 } return\n");
            let lan: Vec<IpNet> = LAN.iter().filter_map(|text| text.parse().ok()).collect();
            for family in Family::BOTH {
                if let Some(set) = nft::set(family, &lan) {
                    let _ = writeln!(text, "\t\t{} daddr {set} accept", nft::keyword(family));
                }
            }
        }
    }
    text.push_str("\t}\n");
    // A chain of selected traffic that must not leave beside the tunnel, or of
    // everything.
    let (policy, verdicts): (&str, [String; 2]) = if split.takes_all() {
        let refuse = "\t\tcounter reject with icmpx type admin-prohibited\n".to_owned();
        ("drop", [refuse, "\t\tcounter drop\n".to_owned()])
    } else {
        // A marked packet is routed anew after the first chain's look at it.
        let mut unmarked = plan.clone();
        unmarked.split.groups.clear();
        let refuse = selection(&unmarked, "counter reject with icmpx type admin-prohibited");
        ("accept", [refuse, selection(plan, "counter drop")])
    };
    let [output, leaving] = verdicts;
    let _ = write!(
        text,
        "\tchain output {{\n\
         \t\ttype filter hook output priority filter; policy {policy};\n\
         \t\tjump allowed\n{output}\t}}\n\
         \tchain leaving {{\n\
         \t\ttype filter hook postrouting priority srcnat + 10; policy {policy};\n\
         \t\tiifname \"{tunnel}\" accept\n\
         \t\tjump allowed\n{leaving}\t}}\n"
    );
    text
}

/// Without these there is no underlay: addresses by DHCP, routers and
/// neighbours by neighbour discovery (with the hop limit that shows they are
/// not from or for elsewhere), group membership so that it reaches us.
fn necessities() -> String {
    "\t\tmeta nfproto ipv4 udp sport 68 udp dport 67 accept\n\
     \t\tip6 daddr { fe80::/10, ff02::1:2 } udp sport 546 udp dport 547 accept\n\
     \t\tip6 hoplimit 255 icmpv6 type { nd-router-solicit, nd-neighbor-solicit, \
     nd-neighbor-advert } accept\n\
     \t\tip6 daddr ff02::/16 ip6 hoplimit 1 icmpv6 type { mld-listener-report, \
     mld-listener-reduction, mld2-listener-report } accept\n"
        .to_owned()
}

/// What the split selects, with a verdict.
fn selection(plan: &KillSwitchPlan, verdict: &str) -> String {
    let mut text = String::new();
    if !plan.split.groups.is_empty() {
        let _ = writeln!(text, "\t\tmeta mark {SELECTED:#x} {verdict}");
    }
    if let Some(users) = split::users(&plan.split) {
        let _ = writeln!(text, "\t\tmeta skuid {users} {verdict}");
    }
    for family in Family::BOTH {
        if let Some(set) = nft::set(family, &plan.split.subnets) {
            let _ = writeln!(text, "\t\t{} daddr {set} {verdict}", nft::keyword(family));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::plan::{ControlGroup, Split, SplitMode};
    use super::*;

    fn plan(lan: bool, split: Split) -> KillSwitchPlan {
        KillSwitchPlan { interface: "warren0".into(), lan, split }
    }

    #[test]
    fn nothing_but_the_tunnel_and_its_carrier_leaves() {
        let text = table(&plan(false, Split::default()), "");
        for wanted in [
            "oifname { \"lo\", \"warren0\" } accept",
            "meta mark 0x77617272 accept",
            "hook output priority filter; policy drop;",
            "hook postrouting priority srcnat + 10; policy drop;",
            "udp sport 68 udp dport 67 accept",
        ] {
            assert!(text.contains(wanted), "{wanted} is missing:\n{text}");
        }
        assert!(!text.contains("192.168.0.0/16") && !text.contains("skuid"), "{text}");
    }

    #[test]
    fn the_local_network_is_reached_but_not_asked_for_names() {
        let text = table(&plan(true, Split::default()), "");
        let names = text.find("dport { 53, 853 } return").unwrap();
        let networks = text.find("ip daddr { 10.0.0.0/8").unwrap();
        assert!(names < networks, "{text}");
        assert!(text.contains("ip6 daddr { fc00::/7, fe80::/10"), "{text}");
    }

    #[test]
    fn exclusions_are_let_through_and_inclusions_held_back() {
        let mut split = Split {
            subnets: vec!["203.0.113.0/24".parse().unwrap()],
            users: vec![1000],
            groups: vec![ControlGroup::try_from("a.slice/b".to_owned()).unwrap()],
            ..Split::default()
        };
        let text = table(&plan(false, split.clone()), "unified/");
        assert!(text.contains("socket cgroupv2 level 2 \"unified/a.slice/b\" meta mark set"));
        assert!(text.contains("ip daddr { 203.0.113.0/24 } accept"), "{text}");
        assert!(text.contains("meta skuid { 1000 } accept"), "{text}");
        split.mode = SplitMode::Include;
        let text = table(&plan(false, split), "");
        assert!(text.contains("policy accept;") && !text.contains("policy drop;"), "{text}");
        assert!(text.contains("meta skuid { 1000 } counter drop"), "{text}");
        assert!(text.contains("ip daddr { 203.0.113.0/24 } counter reject"), "{text}");
    }
}
