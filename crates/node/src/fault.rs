//! Failures an operator sees: one sentence that says what is wrong, one that
//! says what to do about it, and the exit code of the process.
//!
//! Everything that can end a command or stop the daemon from starting is
//! turned into a [`Fault`] at the boundary of the failing operation, where the
//! remedy is known. Deliberately not for packet drops or refused peers: those
//! are data (`DropReason`, `Event::Refused`).

use std::fmt;

use warren_os::netlink::NetlinkError;

/// The class of a fault; decides the exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FaultKind {
    /// Something unforeseen: exit code 1.
    Internal,
    /// The command line does not make sense: exit code 2 (as clap uses).
    Usage,
    /// The configuration file or a value in it is wrong: exit code 3.
    Config,
    /// The operating system does not allow it: exit code 4.
    Permission,
    /// A port, interface or other resource is taken or missing: exit code 5.
    Resource,
    /// The state directory is missing, damaged, full or in use: exit code 6.
    State,
    /// The network refused: code expired, reused, mistyped; name taken: exit code 7.
    Refused,
    /// No daemon answers on this state directory: exit code 8.
    NotRunning,
    /// The other machine cannot be reached: exit code 9.
    Unreachable,
}

impl FaultKind {
    /// Every kind, for the documentation and its test.
    pub const ALL: [FaultKind; 9] = [
        Self::Internal,
        Self::Usage,
        Self::Config,
        Self::Permission,
        Self::Resource,
        Self::State,
        Self::Refused,
        Self::NotRunning,
        Self::Unreachable,
    ];

    /// Exit code of a process that ends with this fault, 1 to 9.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Internal => 1,
            Self::Usage => 2,
            Self::Config => 3,
            Self::Permission => 4,
            Self::Resource => 5,
            Self::State => 6,
            Self::Refused => 7,
            Self::NotRunning => 8,
            Self::Unreachable => 9,
        }
    }
}

/// A failure with its remedy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    kind: FaultKind,
    what: String,
    remedy: Option<String>,
}

impl Fault {
    /// A fault of `kind`: `what` is one sentence without a full stop.
    pub fn new(kind: FaultKind, what: impl Into<String>) -> Self {
        Self { kind, what: what.into(), remedy: None }
    }

    /// Adds what the operator can do, one sentence in the imperative.
    #[must_use]
    pub fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = Some(remedy.into());
        self
    }

    /// The class.
    pub fn kind(&self) -> FaultKind {
        self.kind
    }

    /// The sentence that says what is wrong.
    pub fn what(&self) -> &str {
        &self.what
    }

    /// What the operator can do, if something is known.
    pub fn advice(&self) -> Option<&str> {
        self.remedy.as_deref()
    }

    /// An unforeseen error with its chain of causes.
    pub fn internal(error: &(dyn std::error::Error + 'static)) -> Self {
        Self::new(FaultKind::Internal, chain(error))
    }

    /// An error of the file system at `path`. Disk full, missing permission
    /// and missing directories each get their own remedy.
    pub fn file(doing: &str, path: &std::path::Path, error: &std::io::Error) -> Self {
        use std::io::ErrorKind;
        let what = format!("cannot {doing} {}: {error}", path.display());
        match error.kind() {
            ErrorKind::PermissionDenied => Self::new(FaultKind::Permission, what).remedy(
                "run as the user that owns it (often root), or choose another with --state-dir",
            ),
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => Self::new(FaultKind::State, what)
                .remedy("free some space on that file system and run the command again"),
            ErrorKind::ReadOnlyFilesystem => Self::new(FaultKind::State, what)
                .remedy("choose a writable directory with --state-dir"),
            ErrorKind::NotFound => Self::new(FaultKind::State, what)
                .remedy("check the path; relative paths count from the working directory"),
            _ => Self::new(FaultKind::State, what),
        }
    }

    /// What the kernel's routing tables refused; `what` could not be done.
    pub fn netlink(what: &str, error: &NetlinkError) -> Self {
        let kind = match error {
            NetlinkError::NotPermitted { .. } => FaultKind::Permission,
            _ => FaultKind::Resource,
        };
        Self::new(kind, format!("cannot {what}: {error}"))
    }
}

/// An error and its causes, separated by colons, repeats left out.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text.push_str(": ");
            text.push_str(&inner_text);
        }
        cause = inner.source();
    }
    text
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)?;
        match &self.remedy {
            Some(remedy) => write!(f, "\n  what to do: {remedy}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Fault {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_differ_and_are_never_zero() {
        let mut codes: Vec<u8> = FaultKind::ALL.iter().map(|k| k.exit_code()).collect();
        codes.dedup();
        assert_eq!(codes, (1..=9).collect::<Vec<u8>>());
    }

    #[test]
    fn a_full_disk_is_named_with_its_remedy() {
        let error = std::io::Error::from(std::io::ErrorKind::StorageFull);
        let fault = Fault::file("write", std::path::Path::new("/var/lib/warren/node.key"), &error);
        assert_eq!(fault.kind(), FaultKind::State);
        let text = fault.to_string();
        assert!(
            text.contains("/var/lib/warren/node.key") && text.contains("free some space"),
            "{text}"
        );
    }

    #[test]
    fn causes_are_told_once() {
        #[derive(Debug, thiserror::Error)]
        #[error("outer")]
        struct Outer(#[source] std::io::Error);
        let fault = Fault::internal(&Outer(std::io::Error::other("inner")));
        assert_eq!(fault.what(), "outer: inner");
    }
}
