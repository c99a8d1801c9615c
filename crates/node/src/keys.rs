//! Keys made outside a running daemon: the pre-shared key of psk mode, and the
//! node's identity for key mode, which members must know before the first
//! start.

use std::path::Path;

use rand_core::RngCore;
use warren_types::{NodeId, PresharedKey};
use zeroize::Zeroizing;

use crate::fault::Fault;
use crate::random::OsRandom;
use crate::store::Store;

/// A new 256-bit pre-shared key.
pub fn generate_psk() -> PresharedKey {
    let mut bytes = Zeroizing::new([0; 32]);
    OsRandom.fill_bytes(bytes.as_mut());
    PresharedKey::from_bytes(*bytes)
}

/// The identity stored in `state_dir`; made and stored first when there is
/// none. For a directory without a running daemon.
///
/// # Errors
/// When the directory is locked, or cannot be read or written.
pub fn identity(state_dir: &Path) -> Result<NodeId, Fault> {
    Ok(Store::open(state_dir)?.identity(&mut OsRandom)?.id())
}

/// Checks that an exported root key opens with its passphrase.
///
/// # Errors
/// When it does not.
pub fn open_ca_key(file: &str, passphrase: &str) -> Result<(), Fault> {
    match warren_control::sealed_key::open(file, passphrase) {
        Ok(_) => Ok(()),
        Err(error) => Err(Fault::new(crate::fault::FaultKind::Usage, error.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_identity_is_made_once_and_kept() {
        let dir = std::env::temp_dir().join(format!("warren-keys-{}", std::process::id()));
        let first = identity(&dir).unwrap();
        assert_eq!(identity(&dir).unwrap(), first);
        std::fs::write(dir.join("node.key"), b"junk").unwrap();
        let fault = identity(&dir).unwrap_err();
        assert!(fault.to_string().contains("damaged"), "{fault}");
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn pre_shared_keys_differ() {
        assert_ne!(generate_psk().expose(), generate_psk().expose());
    }
}
