//! `warren demo` as a user without a terminal runs it, and what is left when
//! it is killed.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use warren_os::netns::{check_user_namespaces, is_privileged};
use warren_os::process::{Signal, is_alive, signal};

/// One demonstration at a time: each wants the machine.
static TURN: Mutex<()> = Mutex::new(());

fn demo() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_warren"));
    command.arg("demo").stdin(Stdio::null());
    command
}

/// Whether there can be a demonstration on this machine; says loudly when not.
fn possible() -> bool {
    let tun = std::fs::File::options().read(true).write(true).open("/dev/net/tun");
    let namespaces = if is_privileged() { Ok(()) } else { check_user_namespaces() };
    match (tun, namespaces) {
        (Ok(_), Ok(())) => true,
        (tun, namespaces) => {
            println!("SKIPPED: no demonstration on this machine: {tun:?} {namespaces:?}");
            false
        }
    }
}

#[test]
fn it_tells_its_story_checks_it_and_ends() {
    let _turn = TURN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if !possible() {
        return;
    }
    let start = Instant::now();
    let output = demo().output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}{errors}");
    let held: Vec<&str> =
        text.lines().filter_map(|line| line.strip_prefix("ok   ")?.split(' ').next()).collect();
    let mesh = ["world", "network", "join", "mesh", "ping", "download", "secrecy", "stream"];
    let path = ["path", "exit", "failover", "proof"];
    let skipped = text.lines().filter(|line| line.starts_with("SKIPPED ")).count();
    if skipped > 0 {
        println!("SKIPPED: no onion paths on this machine:\n{text}");
        let required = std::env::var("WARREN_LAB").is_ok_and(|value| value == "required");
        assert!(skipped == path.len() && !required, "{text}");
    }
    let path = path.into_iter().filter(|_| skipped == 0);
    let expected: Vec<&str> = mesh.into_iter().chain(path).chain(["founder", "end"]).collect();
    assert_eq!(held, expected, "{text}");
    assert!(text.contains("Gb/s encrypted"), "{text}");
    if skipped == 0 {
        for words in ["path before: laptop (us) > ", "path after:  laptop (us) > "] {
            assert!(text.contains(words), "{words} in\n{text}");
        }
    }
    assert!(!text.contains('\x1b'), "no escape sequences without a terminal");
    assert!(start.elapsed() < Duration::from_secs(120), "{:?}", start.elapsed());
}

#[test]
fn nothing_outlives_a_killed_demonstration() {
    let _turn = TURN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if !possible() {
        return;
    }
    // While daemons join, and while one holds the routes and the kill switch.
    for (number, words) in
        [(Signal::Kill, "joined in"), (Signal::Kill, " exit "), (Signal::Terminate, " exit ")]
    {
        let mut child = demo().stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let reached = |line: &String| line.contains(words) || line.starts_with("FAIL");
        let line = lines.map_while(Result::ok).find(reached);
        assert!(line.as_ref().is_some_and(|line| line.contains(words)), "{line:?}");
        let family = descendants(child.id());
        assert!(family.len() >= 2, "two daemons run by now: {family:?}");
        signal(child.id(), number).unwrap();
        assert!(!child.wait().unwrap().success());
        let deadline = Instant::now() + Duration::from_secs(5);
        while family.iter().any(|pid| is_alive(*pid)) {
            assert!(Instant::now() < deadline, "{number:?} leaves some of {family:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Processes started by a process, and by those.
fn descendants(ancestor: u32) -> Vec<u32> {
    let mut children: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let stat = std::fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        // The command's name may hold anything; the fields after it do not.
        let parent = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(1));
        if let Some(parent) = parent.and_then(|parent| parent.parse().ok()) {
            children.entry(parent).or_default().push(pid);
        }
    }
    let mut found = Vec::new();
    let mut open = vec![ancestor];
    while let Some(pid) = open.pop() {
        let next = children.remove(&pid).unwrap_or_default();
        found.extend(&next);
        open.extend(next);
    }
    found
}

#[test]
fn its_help_says_what_it_does_and_needs() {
    let output = demo().arg("--help").output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    for words in
        ["emulated WAN", "No root is needed", "kill-switch", "SKIPPED", "Exit status", "--plain"]
    {
        assert!(text.contains(words), "{words} in\n{text}");
    }
}
