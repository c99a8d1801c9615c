//! Which traffic goes into the tunnel: selections by destination, user and
//! control group, as marks and as matches.
//!
//! In: a [`Split`]. Out: pieces of rule text. Invariants: one mark,
//! [`SELECTED`], means "selected" whichever way the split works, so the two
//! tables that use it agree. Users are told apart where routes are looked up
//! (which gives their sockets the right source address) and by mark (so that
//! answers are judged like questions); control groups by mark alone, and their
//! packets' source is translated. Deliberately not here: selection by domain.

use std::fmt::Write;

use warren_os::mark::MARK;

use super::nft;
use super::plan::Split;
use crate::fault::{Fault, FaultKind};

/// Mark of packets that the split selects: "wars" in ASCII.
pub const SELECTED: u32 = 0x7761_7273;

/// Users as an anonymous set; `None` when there are none.
pub(super) fn users(split: &Split) -> Option<String> {
    let mut users = split.users.clone();
    users.sort_unstable();
    users.dedup();
    let words: Vec<String> = users.iter().map(u32::to_string).collect();
    (!words.is_empty()).then(|| format!("{{ {} }}", words.join(", ")))
}

/// Where `nft` finds the control groups of a split; empty without any.
///
/// # Errors
/// When there are some but this machine has no unified hierarchy.
pub(super) fn group_root(split: &Split) -> Result<&'static str, Fault> {
    match nft::group_root() {
        Some(root) => Ok(root),
        None if split.groups.is_empty() => Ok(""),
        None => Err(Fault::new(
            FaultKind::Resource,
            "control groups cannot be told apart: /sys/fs/cgroup has no unified hierarchy",
        )
        .remedy("mount it (`mount -t cgroup2 none /sys/fs/cgroup`), or split by user or subnet")),
    }
}

/// The chain that marks what is selected and has it routed anew.
pub(super) fn marking(split: &Split, root: &str) -> String {
    if !split.marks() {
        return String::new();
    }
    let set = format!("meta mark set {SELECTED:#x} ct mark set {SELECTED:#x}");
    let mut text = String::from("\tchain select {\n");
    text.push_str("\t\ttype route hook output priority mangle; policy accept;\n");
    let _ = writeln!(text, "\t\tmeta mark {MARK:#x} accept");
    if let Some(users) = users(split) {
        let _ = writeln!(text, "\t\tmeta skuid {users} {set}");
    }
    for group in &split.groups {
        let _ = writeln!(text, "\t\t{} {set}", nft::group_match(group, root));
    }
    text.push_str("\t}\n");
    text
}
