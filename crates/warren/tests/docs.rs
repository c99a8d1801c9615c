//! The documentation against the tree: what it lists is what is there.

use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

#[test]
fn every_direct_dependency_has_its_reason() {
    let manifest = read("Cargo.toml");
    let reasons = read("docs/dependencies.md");
    let list = manifest.split("[workspace.dependencies]").nth(1).unwrap();
    let list = list.split("\n[").next().unwrap();
    let names: Vec<&str> = list
        .lines()
        .filter(|l| !l.starts_with('#') && !l.starts_with("warren-"))
        .filter_map(|l| l.split_once(" = ").map(|(name, _)| name))
        .collect();
    assert!(names.len() > 20, "the list was found: {names:?}");
    for name in &names {
        assert!(reasons.contains(&format!("`{name}`")), "docs/dependencies.md lacks {name}");
    }
    // And nothing is listed that is no longer used.
    for line in reasons.lines().filter(|l| l.starts_with("| `")) {
        for listed in line.split('|').nth(1).unwrap().split(',') {
            let listed = listed.trim().trim_matches('`');
            assert!(names.contains(&listed), "docs/dependencies.md lists {listed}, unused");
        }
    }
}

#[test]
fn relative_links_lead_somewhere() {
    let mut files = vec!["README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"]
        .into_iter()
        .map(|f| root().join(f))
        .collect::<Vec<_>>();
    for entry in std::fs::read_dir(root().join("docs")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|e| e == "md") {
            files.push(path);
        }
    }
    let mut checked = 0;
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap();
        for target in text.split("](").skip(1).filter_map(|t| t.split(')').next()) {
            let target = target.split('#').next().unwrap();
            if target.is_empty() || target.contains("://") {
                continue;
            }
            checked += 1;
            let path = file.parent().unwrap().join(target);
            assert!(path.exists(), "{} links to {target}, which is not there", file.display());
        }
    }
    assert!(checked > 5);
}

#[test]
fn every_configuration_key_is_in_the_manual() {
    let manual = read("docs/operations.md");
    let raw = read("crates/node/src/config/raw.rs");
    let mut section = "";
    let mut found = 0;
    for line in raw.lines() {
        for (name, prefix) in [
            ("RawConfig", ""),
            ("RawExit", "exit."),
            ("RawAuth", "auth."),
            ("RawUserspace", "userspace."),
            ("RawPublish", "publish."),
            ("RawDangerous", "dangerous."),
        ] {
            if line.contains(&format!("struct {name}")) {
                section = prefix;
            }
        }
        if line.contains("struct RawPeer") {
            section = "peer.";
        }
        let Some(key) = line.trim().strip_prefix("pub ").and_then(|l| l.split_once(':')) else {
            continue;
        };
        let key = key.0;
        found += 1;
        let listed = match (section, key) {
            ("", "peer") => "| `[[peer]]` |".to_owned(),
            ("userspace.", "publish") => "| `[[userspace.publish]]` |".to_owned(),
            ("", "exit" | "auth" | "userspace" | "dangerous") => continue,
            ("peer." | "publish.", key) => format!("`{key}`"),
            (section, key) => format!("| `{section}{key}` |"),
        };
        assert!(manual.contains(&listed), "docs/operations.md lacks {listed}");
    }
    assert!(found > 15, "the fields were found");
}
