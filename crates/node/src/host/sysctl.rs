//! Kernel settings below `/proc/sys/net`: changed, remembered, put back.
//!
//! In: what a setting should be. Out: what it was, for [`Change::undo`].
//! Invariants: a setting that is as wanted is not touched and not remembered;
//! one that somebody else has changed since is left as it is. Deliberately not
//! here: which settings, and where changes are remembered.

use std::fs;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::fault::{Fault, FaultKind};

const ROOT: &str = "/proc/sys/net";

/// A setting that was changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Change {
    /// Below `/proc/sys/net`, such as `ipv4/conf/eth0/forwarding`.
    pub key: String,
    /// What it was.
    pub before: String,
    /// What it was made.
    pub after: String,
}

fn path(key: &str) -> PathBuf {
    PathBuf::from(ROOT).join(key)
}

/// The value of a setting; `None` when the kernel has no such setting.
pub(super) fn read(key: &str) -> Option<String> {
    fs::read_to_string(path(key)).ok().map(|text| text.trim().to_owned())
}

impl Change {
    /// What there is to do to give a setting a value; `None` when it has it, or
    /// is not there (a kernel without IPv6).
    pub(super) fn wanted(key: String, after: &str) -> Option<Self> {
        let before = read(&key)?;
        (before != after).then(|| Self { key, before, after: after.to_owned() })
    }

    /// Makes the change.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(super) fn make(&self) -> Result<(), Fault> {
        fs::write(path(&self.key), &self.after).map_err(|error| {
            let kind = match error.kind() {
                std::io::ErrorKind::PermissionDenied | std::io::ErrorKind::ReadOnlyFilesystem => {
                    FaultKind::Permission
                }
                _ => FaultKind::Resource,
            };
            let name = format!("net.{}", self.key.replace('/', "."));
            Fault::new(kind, format!("cannot set {name}: {error}")).remedy(format!(
                "set it beforehand: `sysctl -w {name}={}` (in a container: --sysctl)",
                self.after
            ))
        })
    }

    /// Puts the former value back, if the setting still has ours.
    pub(super) fn undo(&self) {
        if read(&self.key).is_some_and(|now| now == self.after)
            && let Err(error) = fs::write(path(&self.key), &self.before)
        {
            tracing::warn!(key = self.key, before = self.before, %error, "setting not restored");
        }
    }
}
