//! The program from outside, where no daemon is needed: exit codes, where
//! output goes, and that nothing half-made stays.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

struct TempDir(PathBuf);

impl TempDir {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("warren-cli-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn warren(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_warren")).args(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Runs a command that must fail: its exit code, and standard error.
fn failure(arguments: &[&str]) -> (i32, String) {
    let output = warren(arguments);
    assert!(output.stdout.is_empty(), "{arguments:?} printed {:?}", text(&output.stdout));
    (output.status.code().unwrap(), text(&output.stderr))
}

fn success(arguments: &[&str]) -> String {
    let output = warren(arguments);
    assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
    text(&output.stdout)
}

fn in_dir(dir: &Path, name: &str) -> String {
    dir.join(name).to_str().unwrap().to_owned()
}

#[test]
fn commands_without_a_daemon_say_so() {
    let dir = TempDir::new("none");
    let state = in_dir(&dir.0, "state");
    for command in [
        vec!["status"],
        vec!["invite"],
        vec!["events"],
        vec!["down"],
        vec!["leave"],
        vec!["wg", "list"],
        vec!["revoke", "gpu-2"],
    ] {
        let arguments = [command.as_slice(), &["--state-dir", &state]].concat();
        let (code, message) = failure(&arguments);
        assert_eq!(code, 8, "{arguments:?}: {message}");
        assert!(message.contains("warren up"), "the remedy is named: {message}");
    }
    assert!(!Path::new(&state).exists(), "asking makes nothing");
}

#[test]
fn no_client_file_stays_when_no_client_was_added() {
    let dir = TempDir::new("client");
    let (state, file) = (in_dir(&dir.0, "state"), in_dir(&dir.0, "phone.conf"));
    let (code, _) = failure(&["wg", "add-client", "phone", "--out", &file, "--state-dir", &state]);
    assert_eq!(code, 8);
    assert!(!Path::new(&file).exists());
}

#[test]
fn a_wrong_configuration_names_its_line_and_makes_nothing() {
    let dir = TempDir::new("config");
    let (state, file) = (in_dir(&dir.0, "state"), in_dir(&dir.0, "warren.toml"));
    std::fs::write(&file, "name = \"gpu-1\"\nmtu = 40\n").unwrap();
    let (code, message) = failure(&["up", "--config", &file, "--state-dir", &state]);
    assert_eq!(code, 3, "{message}");
    assert!(message.contains("warren.toml:2") && message.contains("1280 to 9000"), "{message}");
    std::fs::write(&file, "listen_port = 1\n").unwrap();
    let (code, message) = failure(&["up", "--config", &file, "--state-dir", &state, "--detach"]);
    assert_eq!(code, 3, "{message}");
    assert!(message.contains("line 1") && message.contains("`listen`"), "{message}");
    let (code, message) = failure(&["up", "--config", &in_dir(&dir.0, "none.toml")]);
    assert_eq!(code, 3, "{message}");
    assert!(!Path::new(&state).exists());
}

#[test]
fn top_needs_a_terminal_and_names_what_does_not() {
    let (code, message) = failure(&["top"]);
    assert_eq!(code, 2, "{message}");
    assert!(message.contains("not a terminal") && message.contains("warren status --json"));
    let (code, message) = failure(&["top", "--interval", "0.1s"]);
    assert_eq!(code, 2);
    assert!(message.contains("0.5s to 60s"), "{message}");
}

#[test]
fn wrong_usage_is_exit_code_2() {
    assert_eq!(failure(&["up", "--suite", "rot13"]).0, 2);
    assert_eq!(failure(&["invite", "--expires", "soon"]).0, 2);
    assert_eq!(failure(&["service-unit", "--state-dir", "relative"]).0, 2);
}

#[test]
fn an_identity_is_made_once_and_leaving_removes_it() {
    let dir = TempDir::new("key");
    let state = in_dir(&dir.0, "state");
    let key = success(&["key", "--state-dir", &state]);
    assert_eq!(key.trim().len(), 52, "base32 of 32 bytes: {key}");
    assert_eq!(success(&["key", "--state-dir", &state]), key);
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(Path::new(&state)), 0o700);
    assert_eq!(mode(&Path::new(&state).join("node.key")), 0o600);
    success(&["leave", "--state-dir", &state]);
    assert!(!Path::new(&state).exists());
}

#[test]
fn a_pre_shared_key_goes_to_a_private_file() {
    let dir = TempDir::new("psk");
    let file = in_dir(&dir.0, "net.psk");
    assert_eq!(success(&["psk", "generate", "--out", &file]), "");
    let mode = std::fs::metadata(&file).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let key = std::fs::read_to_string(&file).unwrap();
    assert_eq!(key.trim().len(), 44, "base64 of 32 bytes");
    assert_ne!(success(&["psk", "generate"]), key);
    assert_eq!(failure(&["psk", "generate", "--out", &file]).0, 2, "no file is overwritten");
}

#[test]
fn the_effective_configuration_can_be_used() {
    let dir = TempDir::new("effective");
    let file = in_dir(&dir.0, "warren.toml");
    let shown = success(&["config", "show", "--effective", "--name", "gpu-1", "--workers", "2"]);
    assert!(shown.contains("name = \"gpu-1\"") && shown.contains("# command line"), "{shown}");
    std::fs::write(&file, &shown).unwrap();
    let set = success(&["config", "show", "--config", &file]);
    assert!(set.contains("workers = 2") && set.contains("of the file"), "{set}");
}

#[test]
fn systemd_accepts_the_unit() {
    let dir = TempDir::new("unit");
    let file = in_dir(&dir.0, "warren.service");
    std::fs::write(&file, success(&["service-unit"])).unwrap();
    let Ok(output) = Command::new("systemd-analyze").args(["verify", &file]).output() else {
        eprintln!("SKIPPED: systemd-analyze is not installed");
        return;
    };
    let complaints = text(&output.stderr);
    let ours: Vec<&str> = complaints.lines().filter(|l| l.contains("warren.service")).collect();
    assert!(ours.is_empty(), "{ours:#?}");
}
