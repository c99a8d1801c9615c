//! Files for secrets that a command writes for its user: new, mode 0600, and
//! gone again when what should fill them fails.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use warren_node::fault::{Fault, FaultKind};

/// An empty file that is removed when dropped unfilled.
#[derive(Debug)]
pub(super) struct PrivateFile {
    path: PathBuf,
    file: File,
    filled: bool,
}

impl PrivateFile {
    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for PrivateFile {
    fn drop(&mut self) {
        if !self.filled {
            let _nothing_left_to_do = std::fs::remove_file(&self.path);
        }
    }
}

/// Makes `path`, which must not exist yet.
pub(super) fn create_private(path: &Path) -> Result<PrivateFile, Fault> {
    match OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
        Ok(file) => Ok(PrivateFile { path: path.to_owned(), file, filled: false }),
        Err(e) if e.kind() == ErrorKind::AlreadyExists => {
            let what = format!("{} exists already", path.display());
            Err(Fault::new(FaultKind::Usage, what).remedy("choose another --out file or remove it"))
        }
        Err(e) => Err(Fault::file("create", path, &e)),
    }
}

/// Fills it.
pub(super) fn write_private(mut target: PrivateFile, content: &[u8]) -> Result<(), Fault> {
    target
        .file
        .write_all(content)
        .and_then(|()| target.file.sync_all())
        .map_err(|e| Fault::file("write", &target.path, &e))?;
    target.filled = true;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn new_private_and_removed_unless_filled() {
        let path = std::env::temp_dir().join(format!("warren-private-{}", std::process::id()));
        drop(create_private(&path).unwrap());
        assert!(!path.exists(), "unfilled files do not stay");
        write_private(create_private(&path).unwrap(), b"secret").unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let again = create_private(&path).unwrap_err();
        assert!(again.to_string().contains("exists already"));
        std::fs::remove_file(&path).unwrap();
    }
}
