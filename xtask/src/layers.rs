//! `cargo xtask layers`: the dependencies between our crates against the list
//! of allowed ones, what pure crates must not pull in, and where `unsafe` is.
//!
//! Input: `cargo metadata` and the sources. Invariant: a crate missing from
//! the list is an error, so that a new one is placed on purpose.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

/// Crate, what it may depend on, and why nothing else.
const LAYERS: &[(&str, &[&str], &str)] = &[
    ("warren-types", &[], "the vocabulary is below everything, so all crates can share it"),
    (
        "warren-proto",
        &["warren-types"],
        "protocol code is pure: it meets the system and the control plane in the node only, and \
         can be tested and fuzzed without either",
    ),
    (
        "warren-control",
        &["warren-types"],
        "the control plane is pure: it meets packets and the system in the node only",
    ),
    (
        "warren-discovery",
        &["warren-types"],
        "discovery and routing are pure: whether a signature holds is told them by the node, so \
         that thousands of nodes run in one simulation",
    ),
    (
        "warren-os",
        &["warren-types"],
        "the seam to the kernel knows no protocol, so that a port replaces it alone",
    ),
    (
        "warren-node",
        &["warren-types", "warren-proto", "warren-control", "warren-discovery", "warren-os"],
        "the daemon joins the layers and must not need the lab or the command line",
    ),
    (
        "warren-lab",
        &["warren-types", "warren-os"],
        "the lab drives daemons from outside, as users do; inside knowledge would make it \
         test itself",
    ),
    (
        "warren",
        &["warren-types", "warren-node", "warren-lab", "warren-os"],
        "the command line speaks to daemons through the API and does not reach into the layers \
         below the node",
    ),
    (
        "xtask",
        &[
            "warren-lab",
            "warren-types",
            "warren-control",
            "warren-discovery",
            "warren-node",
            "warren-os",
            "warren-proto",
        ],
        "tasks use the lab, and simulate thousands of nodes with the pure crates; only `bench \
         scale` links the node, to have hundreds of active ones in one process",
    ),
];

/// External crates that pure crates must not use, and why.
const IMPURE: &[(&str, &str)] = &[
    ("tokio", "pure crates have no runtime: time and input are parameters"),
    ("socket2", "pure crates open no sockets"),
    ("libc", "system calls belong into warren-os"),
    ("quinn", "transports belong into warren-node"),
    ("hyper", "transports belong into warren-node"),
];

const PURE: &[&str] = &["warren-types", "warren-proto", "warren-control", "warren-discovery"];

/// The only crate that may hold unsafe code.
const UNSAFE_HERE: &str = "warren-os";

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    manifest_path: PathBuf,
    dependencies: Vec<Dependency>,
}

#[derive(Deserialize)]
struct Dependency {
    name: String,
    /// `null` for ordinary ones, else `dev` or `build`.
    kind: Option<String>,
}

/// Checks this workspace.
pub(crate) fn check() -> Result<ExitCode> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline"])
        .output()
        .context("cannot run cargo metadata")?;
    if !output.status.success() {
        bail!("cargo metadata: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    let metadata: Metadata = serde_json::from_slice(&output.stdout)?;
    let mut problems = forbidden(&metadata.packages);
    for package in metadata.packages.iter().filter(|package| package.name != UNSAFE_HERE) {
        let root = package.manifest_path.parent().context("a manifest without a directory")?;
        for (file, line) in unsafe_lines(root)? {
            problems.push(format!(
                "{}:{line}: unsafe code outside {UNSAFE_HERE}: only there is it reviewed as such",
                file.display()
            ));
        }
    }
    for problem in &problems {
        println!("{problem}");
    }
    println!("layers: {} crates, {} problems", metadata.packages.len(), problems.len());
    Ok(if problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn forbidden(packages: &[Package]) -> Vec<String> {
    let layers: BTreeMap<&str, (&[&str], &str)> =
        LAYERS.iter().map(|(name, allowed, why)| (*name, (*allowed, *why))).collect();
    let ours: BTreeSet<&str> = packages.iter().map(|package| package.name.as_str()).collect();
    let mut problems = Vec::new();
    for package in packages {
        let name = package.name.as_str();
        let Some((allowed, why)) = layers.get(name) else {
            problems.push(format!("{name} has no place in the layers: add it to xtask's list"));
            continue;
        };
        // What tests use does not ship, so only a cycle would matter there.
        let shipped = package.dependencies.iter().filter(|it| it.kind.as_deref() != Some("dev"));
        for dependency in shipped.map(|dependency| dependency.name.as_str()) {
            if ours.contains(dependency) && !allowed.contains(&dependency) {
                problems.push(format!("{name} must not depend on {dependency}: {why}"));
            }
            let impure = IMPURE.iter().find(|(impure, _)| *impure == dependency);
            if let Some((_, why)) = impure.filter(|_| PURE.contains(&name)) {
                problems.push(format!("{name} must not depend on {dependency}: {why}"));
            }
        }
    }
    problems
}

/// Lines of Rust files below `root` that open unsafe code, comments and
/// strings of one line left out.
fn unsafe_lines(root: &Path) -> Result<Vec<(PathBuf, usize)>> {
    let mut found = Vec::new();
    let mut directories: Vec<PathBuf> =
        ["src", "tests", "benches", "examples"].map(|name| root.join(name)).into();
    while let Some(directory) = directories.pop() {
        let Ok(entries) = std::fs::read_dir(&directory) else { continue };
        for entry in entries {
            let path = entry?.path();
            if path.is_dir() {
                directories.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = std::fs::read_to_string(&path)
                    .with_context(|| format!("cannot read {}", path.display()))?;
                let lines = text.lines().enumerate().filter(|(_, line)| is_unsafe(line));
                found.extend(lines.map(|(i, _)| (path.clone(), i + 1)));
            }
        }
    }
    found.sort();
    Ok(found)
}

fn is_unsafe(line: &str) -> bool {
    let code = line.split("//").next().unwrap_or_default();
    // Every second piece between quotation marks is outside of a string.
    let outside: String =
        code.replace("\\\"", "").split('"').step_by(2).collect::<Vec<_>>().join(" ");
    outside.split(|c: char| !c.is_alphanumeric() && c != '_').any(|word| word == "unsafe")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(name: &str, dependencies: &[(&str, Option<&str>)]) -> Package {
        Package {
            name: name.to_owned(),
            manifest_path: PathBuf::new(),
            dependencies: dependencies
                .iter()
                .map(|(name, kind)| Dependency {
                    name: (*name).to_owned(),
                    kind: kind.map(str::to_owned),
                })
                .collect(),
        }
    }

    #[test]
    fn forbidden_edges_are_named_with_the_reason() {
        let packages = [
            package("warren-os", &[]),
            package("warren-types", &[]),
            package("warren-proto", &[("warren-os", None), ("tokio", None)]),
        ];
        let problems = forbidden(&packages);
        assert_eq!(problems.len(), 2, "{problems:?}");
        assert!(problems[0].contains("warren-proto must not depend on warren-os: protocol code"));
        assert!(problems[1].contains("no runtime"));
    }

    #[test]
    fn tests_may_use_more_and_new_crates_must_be_placed() {
        let packages = [
            package("warren-os", &[]),
            package("warren-proto", &[("warren-os", Some("dev")), ("tokio", Some("dev"))]),
            package("warren-new", &[]),
        ];
        let problems = forbidden(&packages);
        assert_eq!(problems, ["warren-new has no place in the layers: add it to xtask's list"]);
    }

    #[test]
    fn unsafe_code_is_told_from_talk_about_it() {
        assert!(is_unsafe("    let x = unsafe { y() };"));
        assert!(is_unsafe("unsafe impl Send for X {}"));
        assert!(!is_unsafe("// unsafe is not used here"));
        assert!(!is_unsafe("unsafe_code = \"deny\""));
        assert!(!is_unsafe("    println!(\"unsafe things\");"));
    }
}
