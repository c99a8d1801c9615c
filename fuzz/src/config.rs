//! Entry function for the configuration file.

use std::path::Path;

use warren_node::config::{Config, Overrides};

/// A configuration file; what it names need not exist.
pub fn config(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let overrides = Overrides {
        state_dir: Some(std::env::temp_dir().join("warren-fuzz-no-such-directory")),
        ..Overrides::default()
    };
    if let Err(error) = Config::from_text(Path::new("warren.toml"), &text, overrides) {
        assert!(!error.to_string().is_empty());
    }
}
