//! What was changed on this machine, written down before it is done: the file
//! `host.json` in the state directory, from which the next start puts back what
//! a killed one could not.
//!
//! Invariants: written before each change and after each undoing; one process
//! at a time has it, by the lock `host.lock`; without changes there is no file.
//! What a reboot undoes by itself is not put back after one. Deliberately not
//! here: the kill switch, which is meant to stay.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use warren_os::files::{self, LockFile};

use super::sysctl::Change;
use crate::fault::{Fault, FaultKind};

const FILE: &str = "host.json";
const LOCK: &str = "host.lock";
const MAX_FILE: u64 = 1 << 20;
/// How long a process that is putting things back may take.
const PATIENCE: Duration = Duration::from_secs(3);

/// One of the things done, and what it needs to be undone.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Done {
    /// The tunnel's interface.
    pub interface: String,
    /// Kernel settings, in the order of their changes.
    #[serde(default)]
    pub settings: Vec<Change>,
}

impl Done {
    /// Remembers changes that are about to be made.
    pub(super) fn note(&mut self, changes: &[Change]) {
        for change in changes {
            // A second change of one setting must not forget the first value.
            match self.settings.iter_mut().find(|known| known.key == change.key) {
                Some(known) => known.after.clone_from(&change.after),
                None => self.settings.push(change.clone()),
            }
        }
    }

    /// Puts the settings back, the last first.
    pub(super) fn restore(&self) {
        for change in self.settings.iter().rev() {
            change.undo();
        }
    }
}

/// All that was done.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Notes {
    boot: String,
    pub takeover: Option<Done>,
    pub exit: Option<Done>,
    /// The interface of systemd-resolved's settings; empty for `resolv.conf`.
    pub resolver: Option<String>,
}

impl Notes {
    fn is_empty(&self) -> bool {
        self.takeover.is_none() && self.exit.is_none() && self.resolver.is_none()
    }
}

/// The notes and their file.
pub(super) struct Record {
    dir: PathBuf,
    lock: Option<LockFile>,
    pub notes: Notes,
}

impl Record {
    /// Reads what is left of an earlier process. Takes the lock only when there
    /// is something: most daemons never change their machine.
    ///
    /// # Errors
    /// When the file is damaged, or another process has it.
    pub(super) fn open(dir: &Path) -> Result<Self, Fault> {
        let mut record = Self { dir: dir.to_owned(), lock: None, notes: Notes::default() };
        if dir.join(FILE).exists() {
            record.take_lock()?;
            record.notes = record.read()?;
        }
        Ok(record)
    }

    fn read(&self) -> Result<Notes, Fault> {
        let path = self.dir.join(FILE);
        let text = match files::read_private(&path, MAX_FILE) {
            Ok(text) => text,
            // The one that had the lock has put everything back.
            Err(error) if error.is_not_found() => return Ok(Notes::default()),
            Err(error) => return Err(Fault::new(FaultKind::State, error.to_string())),
        };
        let mut notes: Notes = serde_json::from_slice(&text).map_err(|error| {
            Fault::new(FaultKind::State, format!("{} is damaged: {error}", path.display()))
                .remedy("remove the file; a reboot undoes what it would have")
        })?;
        if notes.boot != boot_id() {
            (notes.takeover, notes.exit) = (None, None);
        }
        Ok(notes)
    }

    fn take_lock(&mut self) -> Result<(), Fault> {
        if self.lock.is_some() {
            return Ok(());
        }
        files::create_private_dir(&self.dir)
            .map_err(|e| Fault::new(FaultKind::State, e.to_string()))?;
        let lock = LockFile::acquire_within(&self.dir.join(LOCK), PATIENCE).map_err(|error| {
            Fault::new(FaultKind::State, error.to_string())
                .remedy("wait for that process to end, or stop it")
        })?;
        self.lock = Some(lock);
        Ok(())
    }

    /// Writes the notes: before a change, after an undoing.
    ///
    /// # Errors
    /// When the file cannot be written; then nothing may be changed.
    pub(super) fn save(&mut self) -> Result<(), Fault> {
        self.take_lock()?;
        let path = self.dir.join(FILE);
        if self.notes.is_empty() {
            return match std::fs::remove_file(&path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    Err(Fault::file("remove", &path, &error))
                }
                _ => Ok(()),
            };
        }
        self.notes.boot = boot_id();
        let text = serde_json::to_vec_pretty(&self.notes).map_err(|e| Fault::internal(&e))?;
        files::write_private(&path, &text).map_err(|e| Fault::new(FaultKind::State, e.to_string()))
    }
}

/// Differs from boot to boot.
fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .map(|text| text.trim().to_owned())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use warren_os::files::TemporaryDir;

    use super::*;

    #[test]
    fn notes_survive_the_process_and_end_with_what_they_note() {
        let dir = TemporaryDir::create("warren-record").unwrap();
        files::make_private(dir.path()).ok();
        let dir = dir.path().join("state");
        let mut record = Record::open(&dir).unwrap();
        assert!(!dir.exists(), "nothing is written without need");
        let change = |before: &str, after: &str| Change {
            key: "ipv4/conf/all/src_valid_mark".into(),
            before: before.into(),
            after: after.into(),
        };
        let mut done = Done { interface: "warren0".into(), ..Done::default() };
        done.note(&[change("0", "1")]);
        done.note(&[change("1", "2")]);
        assert_eq!(done.settings, [change("0", "2")], "the first value is the one to restore");
        record.notes.takeover = Some(done);
        record.save().unwrap();
        let expected = record.notes.clone();
        drop(record);
        let mut again = Record::open(&dir).unwrap();
        assert_eq!(again.notes, expected);
        again.notes = Notes::default();
        again.save().unwrap();
        assert!(!dir.join(FILE).exists());
    }
}
