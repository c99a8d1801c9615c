//! Private files: keys and state that only their owner may read, and that are
//! either the old or the new version after a crash, never half of one.
//!
//! Invariants: directories are made 0700, files 0600 before the first byte is
//! in them; a write replaces the file by rename after fsync of file and
//! directory. Deliberately not here: what the files mean.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Between looks whether a lock is free.
const LOOK: Duration = Duration::from_millis(2);

/// Reading or writing private state failed.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// No room for the new version; the old one is untouched.
    #[error(
        "no space left on the disk for {}; free some space and try again (nothing was changed)",
        .0.display()
    )]
    DiskFull(PathBuf),
    /// The file system or its permissions forbid it.
    #[error("no permission for {}; choose another --state-dir or run as its owner", .0.display())]
    NotPermitted(PathBuf),
    /// Others may read or change a file meant to be private.
    #[error("{} is open to other users (mode {mode:o}); run: chmod {wanted:o} {}", path.display(), path.display())]
    NotPrivate {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
        /// The permission bits it should have.
        wanted: u32,
    },
    /// The path is there but is no directory.
    #[error("{} is not a directory", .0.display())]
    NotADirectory(PathBuf),
    /// Any other error of the operating system.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What went wrong.
        source: io::Error,
    },
}

impl FileError {
    fn of(path: &Path, source: io::Error) -> Self {
        let path = path.to_owned();
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::DiskFull(path),
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                Self::NotPermitted(path)
            }
            _ => Self::Io { path, source },
        }
    }

    /// True when the file simply is not there.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }
}

/// Makes a directory only its owner can enter, with its missing parents. One
/// that is there already must be ours alone.
///
/// # Errors
/// [`FileError::NotPrivate`] when an existing one is open to others.
pub fn create_private_dir(path: &Path) -> Result<(), FileError> {
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(|source| {
        match source.kind() {
            io::ErrorKind::AlreadyExists => FileError::NotADirectory(path.to_owned()),
            _ => FileError::of(path, source),
        }
    })?;
    let metadata = fs::metadata(path).map_err(|source| FileError::of(path, source))?;
    check_private(path, &metadata, 0o700)
}

fn check_private(path: &Path, metadata: &fs::Metadata, wanted: u32) -> Result<(), FileError> {
    let mode = metadata.mode() & 0o777;
    if mode & 0o077 == 0 {
        return Ok(());
    }
    Err(FileError::NotPrivate { path: path.to_owned(), mode, wanted })
}

/// Replaces a private file: after success the new content is on disk, after
/// any failure or crash the old one is still there.
///
/// # Errors
/// [`FileError::DiskFull`] and others; nothing is left behind.
pub fn write_private(path: &Path, content: &[u8]) -> Result<(), FileError> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}-{}.tmp", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed)));
    let temporary = path.with_file_name(name);
    let written = write_new(&temporary, content)
        .and_then(|()| fs::rename(&temporary, path))
        .and_then(|()| sync_directory_of(path));
    if written.is_err() {
        // Already renamed or never made: then there is nothing to remove.
        let _ = fs::remove_file(&temporary);
    }
    written.map_err(|source| FileError::of(path, source))
}

fn write_new(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path)?;
    file.write_all(content)?;
    file.sync_all()
}

fn sync_directory_of(path: &Path) -> io::Result<()> {
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    File::open(parent)?.sync_all()
}

/// Reads a private file of at most `limit` bytes.
///
/// # Errors
/// [`FileError::NotPrivate`] when others may read it; `Io` with
/// `FileTooLarge` when it is longer than `limit`.
pub fn read_private(path: &Path, limit: u64) -> Result<Vec<u8>, FileError> {
    let of = |source| FileError::of(path, source);
    let file = File::open(path).map_err(of)?;
    check_private(path, &file.metadata().map_err(of)?, 0o600)?;
    let mut content = Vec::new();
    file.take(limit + 1).read_to_end(&mut content).map_err(of)?;
    if content.len() as u64 > limit {
        return Err(of(io::ErrorKind::FileTooLarge.into()));
    }
    Ok(content)
}

/// Why a lock was not had.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// A living process holds it.
    #[error("{} is in use by process {holder}", path.display())]
    Held {
        /// The lock file.
        path: PathBuf,
        /// What the holder wrote into it: its process id.
        holder: String,
    },
    /// The lock file cannot be used at all.
    #[error(transparent)]
    File(#[from] FileError),
}

/// An exclusive lock; the kernel frees it when its process ends, however.
#[derive(Debug)]
pub struct LockFile {
    _file: File,
}

impl LockFile {
    /// Takes the lock, waiting for whoever has it for at most `patience`.
    ///
    /// # Errors
    /// As [`LockFile::acquire`].
    pub fn acquire_within(path: &Path, patience: Duration) -> Result<Self, LockError> {
        let deadline = Instant::now() + patience;
        loop {
            match Self::acquire(path) {
                Err(LockError::Held { .. }) if Instant::now() < deadline => {
                    std::thread::sleep(LOOK);
                }
                outcome => return outcome,
            }
        }
    }

    /// Takes the lock, without waiting, and writes our process id into it.
    ///
    /// # Errors
    /// [`LockError::Held`] when another process (or another open in this one)
    /// has it.
    pub fn acquire(path: &Path) -> Result<Self, LockError> {
        let of = |source| FileError::of(path, source);
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(path)
            .map_err(of)?;
        // SAFETY: flock takes no pointers; the descriptor is open for the call.
        let result = unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) };
        if result != 0 {
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::WouldBlock {
                return Err(of(error).into());
            }
            let mut holder = String::new();
            let _ = file.take(32).read_to_string(&mut holder);
            return Err(LockError::Held {
                path: path.to_owned(),
                holder: match holder.trim() {
                    "" => "unknown".to_owned(),
                    pid => pid.to_owned(),
                },
            });
        }
        let note = format!("{}\n", std::process::id());
        file.set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| file.write_all(note.as_bytes()))
            .map_err(of)?;
        Ok(Self { _file: file })
    }
}

/// A private directory with a fresh name under the system's temporary one,
/// removed with all its content when dropped.
#[derive(Debug)]
pub struct TemporaryDir {
    path: PathBuf,
}

impl TemporaryDir {
    /// Makes one whose name starts with `prefix`.
    ///
    /// # Errors
    /// When the temporary directory cannot be written to.
    pub fn create(prefix: &str) -> Result<Self, FileError> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        loop {
            let path = std::env::temp_dir().join(format!(
                "{prefix}-{}-{}",
                std::process::id(),
                NEXT.fetch_add(1, Ordering::Relaxed)
            ));
            match DirBuilder::new().mode(0o700).create(&path) {
                Ok(()) => return Ok(Self { path }),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(source) => return Err(FileError::of(&path, source)),
            }
        }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for TemporaryDir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// Makes an existing file or directory private.
///
/// # Errors
/// When it is not ours.
pub fn make_private(path: &Path) -> Result<(), FileError> {
    let of = |source| FileError::of(path, source);
    let metadata = fs::metadata(path).map_err(of)?;
    let mode = if metadata.is_dir() { 0o700 } else { 0o600 };
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(of)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().mode() & 0o777
    }

    #[test]
    fn files_are_private_from_the_start_and_replaced_whole() {
        let dir = TemporaryDir::create("warren-files").unwrap();
        let state = dir.path().join("a/b");
        create_private_dir(&state).unwrap();
        assert_eq!(mode(&state), 0o700);
        let file = state.join("node.key");
        write_private(&file, b"old and long").unwrap();
        write_private(&file, b"new").unwrap();
        assert_eq!(mode(&file), 0o600);
        assert_eq!(read_private(&file, 3).unwrap(), b"new");
        assert!(read_private(&file, 2).is_err());
        assert_eq!(fs::read_dir(&state).unwrap().count(), 1, "leftover temporary file");
    }

    #[test]
    fn open_files_and_directories_are_refused_with_the_remedy() {
        let dir = TemporaryDir::create("warren-open").unwrap();
        let file = dir.path().join("psk");
        fs::write(&file, b"x").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
        let error = read_private(&file, 10).unwrap_err().to_string();
        assert!(error.contains("chmod 600"), "{error}");
        make_private(&file).unwrap();
        assert_eq!(read_private(&file, 10).unwrap(), b"x");
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let error = create_private_dir(dir.path()).unwrap_err().to_string();
        assert!(error.contains("chmod 700"), "{error}");
    }

    #[test]
    fn a_full_disk_is_named_and_leaves_nothing() {
        let error =
            FileError::of(Path::new("/state/node.key"), io::Error::from_raw_os_error(libc::ENOSPC));
        assert!(matches!(error, FileError::DiskFull(_)));
        assert!(error.to_string().contains("no space left"));
    }

    #[test]
    fn a_failed_write_leaves_no_temporary_file() {
        let dir = TemporaryDir::create("warren-fail").unwrap();
        let target = dir.path().join("taken");
        fs::create_dir(&target).unwrap();
        write_private(&target, b"x").unwrap_err();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn the_lock_is_exclusive_and_names_its_holder() {
        let dir = TemporaryDir::create("warren-lock").unwrap();
        let path = dir.path().join("lock");
        let held = LockFile::acquire(&path).unwrap();
        let error = LockFile::acquire(&path).unwrap_err().to_string();
        assert!(error.contains(&std::process::id().to_string()), "{error}");
        drop(held);
        LockFile::acquire(&path).unwrap();
        let held = LockFile::acquire(&path).unwrap();
        let short = LockFile::acquire_within(&path, Duration::from_millis(20));
        assert!(matches!(short, Err(LockError::Held { .. })));
        let freed = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(50));
            drop(held);
        });
        LockFile::acquire_within(&path, Duration::from_secs(10)).unwrap();
        freed.join().unwrap();
    }
}
