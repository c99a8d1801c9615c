//! Giving up what a running daemon never needs.
//!
//! [`confine`] is called once, after devices and sockets are open and before
//! any other thread starts: capabilities, Landlock and the no-new-privileges
//! flag belong to threads, and later threads inherit them. Each measure is best
//! effort, since kernels differ; the answer says what is in force, so that a
//! missing one is visible rather than assumed.
//!
//! Deliberately not here: becoming another user (the service unit's job).

use std::path::{Path, PathBuf};

use caps::{CapSet, Capability, CapsHashSet};
use landlock::{
    ABI, Access, AccessFs, BitFlags, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset,
    RulesetAttr, RulesetCreatedAttr, RulesetStatus,
};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule,
};

use crate::process::thread_count;

/// What the daemon keeps.
#[derive(Debug, Clone, Default)]
pub struct Kept {
    /// Directories it may read, write and create files and sockets in.
    pub writable: Vec<PathBuf>,
    /// Files or directories it may read, besides what name resolution and
    /// the C library need.
    pub readable: Vec<PathBuf>,
}

/// One measure and how it went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Measure {
    /// `capabilities`, `no_new_privs`, `landlock` or `seccomp`.
    pub name: &'static str,
    /// What is in force, or why it is not.
    pub outcome: Result<String, String>,
}

impl std::fmt::Display for Measure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.outcome {
            Ok(what) => write!(f, "{}: {what}", self.name),
            Err(why) => write!(f, "{}: not in force ({why})", self.name),
        }
    }
}

/// Confines the process; see the module's header for when to call it.
pub fn confine(kept: &Kept) -> Vec<Measure> {
    let mut measures = vec![
        Measure { name: "capabilities", outcome: keep_network_capability() },
        Measure { name: "no_new_privs", outcome: forbid_new_privileges() },
        Measure { name: "landlock", outcome: restrict_files(kept) },
        Measure { name: "seccomp", outcome: filter_system_calls() },
    ];
    let threads = thread_count();
    if threads > 1 {
        for measure in &mut measures {
            // The seccomp filter is put on all threads by the kernel.
            if measure.name != "seccomp" {
                measure.outcome = std::mem::replace(&mut measure.outcome, Ok(String::new()))
                    .map(|what| format!("{what}, on 1 of {threads} threads"));
            }
        }
    }
    measures
}

/// Keeps `CAP_NET_ADMIN` (interface and routes come and go) if it is there,
/// and nothing else, in every set including the bounding one.
fn keep_network_capability() -> Result<String, String> {
    let kept = Capability::CAP_NET_ADMIN;
    let text = |error: caps::errors::CapsError| error.to_string();
    let had = caps::has_cap(None, CapSet::Permitted, kept).map_err(text)?;
    let mut bounding = true;
    for capability in caps::runtime::thread_all_supported() {
        // Needs CAP_SETPCAP; without it the other sets still shrink.
        if capability != kept && caps::has_cap(None, CapSet::Bounding, capability).unwrap_or(false)
        {
            bounding &= caps::drop(None, CapSet::Bounding, capability).is_ok();
        }
    }
    let remaining: CapsHashSet = had.then_some(kept).into_iter().collect();
    caps::clear(None, CapSet::Ambient).map_err(text)?;
    caps::set(None, CapSet::Effective, &remaining).map_err(text)?;
    caps::set(None, CapSet::Permitted, &remaining).map_err(text)?;
    caps::clear(None, CapSet::Inheritable).map_err(text)?;
    let what = if had { "CAP_NET_ADMIN only" } else { "none" };
    Ok(match bounding {
        true => what.to_owned(),
        false => format!("{what} (bounding set unchanged)"),
    })
}

/// Gives up all but `CAP_NET_ADMIN`, and keeps that for the programs this
/// process starts (`nft`), also as another user than root. For the process that
/// changes the machine on a confined daemon's behalf.
pub fn keep_network_only() -> Vec<Measure> {
    let kept = Capability::CAP_NET_ADMIN;
    let text = |error: caps::errors::CapsError| error.to_string();
    let pass_on = || {
        let had = caps::has_cap(None, CapSet::Permitted, kept).map_err(text)?;
        let what = keep_network_capability()?;
        if had {
            caps::raise(None, CapSet::Inheritable, kept).map_err(text)?;
            caps::raise(None, CapSet::Ambient, kept).map_err(text)?;
        }
        Ok(what)
    };
    vec![
        Measure { name: "capabilities", outcome: pass_on() },
        Measure { name: "no_new_privs", outcome: forbid_new_privileges() },
    ]
}

/// True when this process may change interfaces, routes and packet filters.
#[must_use]
pub fn has_network_capability() -> bool {
    caps::has_cap(None, CapSet::Effective, Capability::CAP_NET_ADMIN).unwrap_or(false)
}

fn forbid_new_privileges() -> Result<String, String> {
    // SAFETY: PR_SET_NO_NEW_PRIVS takes the integers 1, 0, 0, 0.
    match unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) } {
        0 => Ok("in force".to_owned()),
        _ => Err(std::io::Error::last_os_error().to_string()),
    }
}

/// What glibc reads to resolve names, convert time zones and load its
/// resolver modules, and what the daemon reads of the kernel's state.
const ALWAYS_READABLE: &[&str] = &[
    "/etc/resolv.conf",
    "/etc/hosts",
    "/etc/nsswitch.conf",
    "/etc/host.conf",
    "/etc/gai.conf",
    "/etc/services",
    "/etc/localtime",
    "/etc/ld.so.cache",
    "/run/systemd/resolve",
    "/usr/share/zoneinfo",
    "/usr/lib",
    "/lib",
    "/lib64",
    "/proc",
    "/sys/devices/system/cpu",
    "/sys/class/net",
    "/dev/urandom",
    "/dev/random",
];

/// Devices the daemon may reopen for more queues, or write to.
const ALWAYS_WRITABLE: &[&str] = &["/dev/net/tun", "/dev/null", "/dev/tty"];

fn restrict_files(kept: &Kept) -> Result<String, String> {
    // V5 is what long-term kernels have; newer rights (scopes) are not needed.
    let abi = ABI::V5;
    let all = AccessFs::from_all(abi);
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    let device = AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::IoctlDev;
    let inside = read
        | AccessFs::WriteFile
        | AccessFs::RemoveFile
        | AccessFs::RemoveDir
        | AccessFs::MakeReg
        | AccessFs::MakeDir
        | AccessFs::MakeSock
        | AccessFs::Truncate;
    let text = |error: landlock::RulesetError| error.to_string();
    let mut ruleset = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(all)
        .map_err(text)?
        .create()
        .map_err(text)?;
    let rules = kept
        .writable
        .iter()
        .map(|path| (path.as_path(), inside))
        .chain(kept.readable.iter().map(|path| (path.as_path(), read)))
        .chain(ALWAYS_READABLE.iter().map(|path| (Path::new(path), read)))
        .chain(ALWAYS_WRITABLE.iter().map(|path| (Path::new(path), device)));
    for (path, access) in rules {
        if let Some(rule) = rule(path, access, abi) {
            ruleset = ruleset.add_rule(rule).map_err(text)?;
        }
    }
    match ruleset.restrict_self().map_err(text)?.ruleset {
        RulesetStatus::FullyEnforced => Ok("files limited to the state directory".to_owned()),
        RulesetStatus::PartiallyEnforced => {
            Ok("files limited to the state directory, as far as this kernel can".to_owned())
        }
        RulesetStatus::NotEnforced => Err("this kernel has no Landlock".to_owned()),
    }
}

/// A rule for a path that exists; rights for directories are left out for files.
fn rule(path: &Path, access: BitFlags<AccessFs>, abi: ABI) -> Option<PathBeneath<PathFd>> {
    let metadata = std::fs::metadata(path).ok()?;
    let access = match metadata.is_dir() {
        true => access,
        false => access & AccessFs::from_file(abi),
    };
    Some(PathBeneath::new(PathFd::new(path).ok()?, access))
}

/// Calls that neither the daemon nor its libraries make once it runs; an
/// intruder would. Denied with `EPERM` rather than death, so that a library
/// that merely probes goes on.
const DENIED: &[libc::c_long] = &[
    libc::SYS_acct,
    libc::SYS_add_key,
    libc::SYS_adjtimex,
    libc::SYS_bpf,
    libc::SYS_chroot,
    libc::SYS_clock_adjtime,
    libc::SYS_clock_settime,
    libc::SYS_delete_module,
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_finit_module,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fsopen,
    libc::SYS_fspick,
    libc::SYS_init_module,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_io_uring_setup,
    libc::SYS_kcmp,
    libc::SYS_kexec_file_load,
    libc::SYS_kexec_load,
    libc::SYS_keyctl,
    libc::SYS_mknodat,
    libc::SYS_mount,
    libc::SYS_mount_setattr,
    libc::SYS_move_mount,
    libc::SYS_name_to_handle_at,
    libc::SYS_open_by_handle_at,
    libc::SYS_open_tree,
    libc::SYS_perf_event_open,
    libc::SYS_personality,
    libc::SYS_pidfd_getfd,
    libc::SYS_pivot_root,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_ptrace,
    libc::SYS_quotactl,
    libc::SYS_reboot,
    libc::SYS_request_key,
    libc::SYS_setdomainname,
    libc::SYS_sethostname,
    libc::SYS_setns,
    libc::SYS_settimeofday,
    libc::SYS_swapoff,
    libc::SYS_swapon,
    libc::SYS_syslog,
    libc::SYS_umount2,
    libc::SYS_unshare,
    libc::SYS_userfaultfd,
    libc::SYS_vhangup,
];

/// Calls that only some architectures have.
#[cfg(target_arch = "x86_64")]
const DENIED_HERE: &[libc::c_long] = &[
    libc::SYS_fork,
    libc::SYS_vfork,
    libc::SYS_ioperm,
    libc::SYS_iopl,
    libc::SYS_mknod,
    libc::SYS_modify_ldt,
];
#[cfg(not(target_arch = "x86_64"))]
const DENIED_HERE: &[libc::c_long] = &[];

fn filter_system_calls() -> Result<String, String> {
    let text = |error: seccompiler::Error| error.to_string();
    let (denied, unknown) = filters().map_err(|error| error.to_string())?;
    seccompiler::apply_filter_all_threads(&unknown).map_err(text)?;
    seccompiler::apply_filter_all_threads(&denied).map_err(text)?;
    Ok(format!("{} system calls and new processes denied", DENIED.len() + DENIED_HERE.len()))
}

/// The filter of denied calls, and the one that hides `clone3`: its flags are
/// behind a pointer that no filter can read, so it is reported as unknown and
/// the C library falls back to `clone`, of which threads are let through.
fn filters() -> Result<(BpfProgram, BpfProgram), seccompiler::BackendError> {
    let arch = std::env::consts::ARCH.try_into()?;
    let mut rules: std::collections::BTreeMap<i64, Vec<SeccompRule>> =
        DENIED.iter().chain(DENIED_HERE).map(|call| (*call, Vec::new())).collect();
    let thread = libc::CLONE_THREAD as u64;
    rules.insert(
        libc::SYS_clone,
        vec![SeccompRule::new(vec![SeccompCondition::new(
            0,
            SeccompCmpArgLen::Qword,
            SeccompCmpOp::MaskedEq(thread),
            0,
        )?])?],
    );
    let errno = |number: i32| SeccompAction::Errno(number.unsigned_abs());
    let denied = SeccompFilter::new(rules, SeccompAction::Allow, errno(libc::EPERM), arch)?;
    let unknown = SeccompFilter::new(
        [(libc::SYS_clone3, Vec::new())].into_iter().collect(),
        SeccompAction::Allow,
        errno(libc::ENOSYS),
        arch,
    )?;
    Ok((denied.try_into()?, unknown.try_into()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::TemporaryDir;

    /// Confinement cannot be taken back, so it is tried in a child: this same
    /// test binary, told by its environment to be the confined one.
    #[test]
    fn a_confined_process_can_do_its_work_and_no_more() {
        const CHILD: &str = "WARREN_TEST_CONFINED";
        if let Some(state) = std::env::var_os(CHILD) {
            confined(Path::new(&state));
            return;
        }
        let state = TemporaryDir::create("warren-confined").unwrap();
        let status = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "--nocapture", "--test-threads=1"])
            .arg("privileges::tests::a_confined_process_can_do_its_work_and_no_more")
            .env(CHILD, state.path())
            .status()
            .unwrap();
        assert!(status.success());
    }

    fn confined(state: &Path) {
        let outside = TemporaryDir::create("warren-outside").unwrap();
        let measures = confine(&Kept { writable: vec![state.to_owned()], readable: vec![] });
        for measure in &measures {
            println!("{measure}");
        }
        let in_force =
            |name| measures.iter().any(|measure| measure.name == name && measure.outcome.is_ok());
        crate::files::write_private(&state.join("file"), b"x").unwrap();
        std::os::unix::net::UnixListener::bind(state.join("sock")).unwrap();
        std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        std::thread::spawn(|| ()).join().unwrap();
        if in_force("landlock") {
            std::fs::write(outside.path().join("file"), b"x").unwrap_err();
            std::fs::read("/etc/passwd").unwrap_err();
            std::fs::read("/etc/hosts").unwrap();
        }
        if in_force("seccomp") {
            std::process::Command::new("true").status().unwrap_err();
        }
        if in_force("capabilities") {
            assert!(!crate::netns::is_privileged());
        }
        assert!(in_force("no_new_privs"));
    }
}
