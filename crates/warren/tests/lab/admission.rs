//! What must not work, and says why.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Output;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use warren_lab::topology::{Host, Pair, Underlay, output_of};
use warren_os::files::TemporaryDir;
use warren_types::Suite;

use crate::story::{PATIENCE, Two, binary, spec};

/// Runs `warren` where it must fail, and returns what it said.
fn refused(host: &Host, state: &Path, arguments: &[&str]) -> Result<String> {
    let output: Output = host
        .command("timeout")
        .arg("30")
        .arg(binary())
        .args(arguments)
        .arg("--state-dir")
        .arg(state)
        .output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let code = output.status.code();
    ensure!(code.is_some_and(|code| code != 0 && code != 124), "not refused: {code:?} {said}");
    ensure!(!said.contains("panicked"), "{said}");
    ensure!(said.contains("error: "), "no clear message: {said}");
    Ok(said)
}

fn contains_one(said: &str, words: &[&str]) -> Result<()> {
    let lower = said.to_lowercase();
    ensure!(words.iter().any(|word| lower.contains(word)), "none of {words:?} in: {said}");
    Ok(())
}

fn nothing_made(state: &Path) -> Result<()> {
    let Ok(entries) = std::fs::read_dir(state) else { return Ok(()) };
    let made: Vec<_> = entries.flatten().map(|entry| entry.file_name()).collect();
    let keys: Vec<_> =
        made.iter().filter(|name| *name != "lock" && *name != "daemon.log").collect();
    ensure!(keys.is_empty(), "half-made state: {keys:?}");
    Ok(())
}

pub(crate) fn useless_codes_are_told_apart() -> Result<()> {
    let two = Two::start(1500, Suite::Aes256Gcm)?;
    let state = two.scratch.path().join("third");
    let listen = ["--listen", "10.99.0.2:51999", "--interface", "warren9", "--name", "third"];
    let join = |code: &str| {
        let arguments = [&["join", code][..], &listen].concat();
        refused(&two.pair.right, &state, &arguments)
    };

    let used = two.left.join_code(PATIENCE)?;
    contains_one(&join(&used)?, &["used", "already", "refused"]).context("a used code")?;
    nothing_made(&state)?;

    let mut mistyped = two.left.invite()?.into_bytes();
    let place = mistyped.len() / 2;
    mistyped[place] = if mistyped[place] == b'a' { b'b' } else { b'a' };
    let mistyped = String::from_utf8(mistyped)?;
    contains_one(&join(&mistyped)?, &["mistyped", "typ", "checksum"]).context("a mistyped code")?;

    let text = two.left.warren(&["invite", "--expires", "1s"])?;
    let expired = text.split_whitespace().find(|word| word.starts_with("warren1"));
    let expired = expired.context("no code")?.to_owned();
    std::thread::sleep(Duration::from_millis(2500));
    contains_one(&join(&expired)?, &["expired"]).context("an expired code")?;
    nothing_made(&state)?;

    // A good one still works after all that.
    let code = two.left.invite()?;
    let mut third = spec(&two.pair.right, Pair::RIGHT, &two.scratch);
    third.name = "third".to_owned();
    third.state_dir = state;
    third.listen.set_port(51999);
    third.interface = "warren9".to_owned();
    third.join(&code, PATIENCE)?.wait_connected("left", PATIENCE)?;
    Ok(())
}

pub(crate) fn bad_starts_name_the_remedy() -> Result<()> {
    let pair = Pair::create(1500, Underlay::Direct)?;
    let scratch = TemporaryDir::create("warren-lab")?;
    let state = scratch.path().join("x");
    let up = |arguments: &[&str]| refused(&pair.left, &state, &[&["up"], arguments].concat());

    let holder = pair.left.namespace().run(|| std::net::UdpSocket::bind("10.99.0.1:51820"))??;
    let said = up(&["--listen", "10.99.0.1:51820", "--interface", "warren0"])?;
    contains_one(&said, &["--listen"]).context("a port taken")?;
    drop(holder);
    let said = up(&["--listen", "192.0.2.1:51820", "--interface", "warren0"])?;
    contains_one(&said, &["192.0.2.1"]).context("an address of another machine")?;
    let said = up(&["--listen", "10.99.0.1:51820", "--interface", "eth0"])?;
    contains_one(&said, &["--interface"]).context("an interface in use")?;

    let config = scratch.path().join("config.toml");
    std::fs::write(&config, "nmae = \"typo\"\n")?;
    let said = up(&["--config", config.to_str().context("path")?])?;
    contains_one(&said, &["nmae"]).context("an unknown field")?;
    let links = pair.left.netlink()?.links()?;
    ensure!(!links.iter().any(|link| link.name == "warren0"), "an interface was left behind");

    // Without the privilege for interfaces: root of a user namespace of its
    // own has none over this network namespace's.
    let mut command = pair.left.command("setpriv");
    command.args(["--bounding-set=-net_admin", "--inh-caps=-net_admin"]).arg(binary());
    command.args(["up", "--listen", "10.99.0.1:51820", "--interface", "warren0", "--state-dir"]);
    if let Ok(output) = command.arg(scratch.path().join("y")).output() {
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(!output.status.success(), "started without the privilege");
        contains_one(&said, &["cap_net_admin", "root"]).context("no permission")?;
    }
    Ok(())
}

pub(crate) fn secrets_stay_private() -> Result<()> {
    let two = Two::start(1500, Suite::Aes256Gcm)?;
    let mut directories = vec![two.scratch.path().join("left"), two.scratch.path().join("right")];
    let mut files = 0;
    while let Some(directory) = directories.pop() {
        let mode = std::fs::metadata(&directory)?.mode() & 0o777;
        ensure!(mode == 0o700, "{} has mode {mode:o}", directory.display());
        for entry in std::fs::read_dir(&directory)? {
            let path = entry?.path();
            let metadata = std::fs::symlink_metadata(&path)?;
            if metadata.is_dir() {
                directories.push(path);
                continue;
            }
            let mode = metadata.mode() & 0o777;
            ensure!(mode & 0o077 == 0, "{} has mode {mode:o}", path.display());
            files += 1;
        }
    }
    ensure!(files >= 6, "only {files} files looked at");
    // What it printed and shows must not hold the keys.
    let shown = two.left.log() + &two.left.warren(&["status", "--json"])?;
    for name in ["node.key", "link.key", "ca.key"] {
        let Ok(key) = std::fs::read(two.scratch.path().join("left").join(name)) else { continue };
        let text = String::from_utf8_lossy(&key).trim().to_owned();
        ensure!(text.len() < 16 || !shown.contains(&text), "{name} is shown");
    }
    // The network capability is all the running daemon has left.
    let status = std::fs::read_to_string(format!("/proc/{}/status", two.left.pid()))?;
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = u64::from_str_radix(effective.context("no CapEff")?.trim(), 16)?;
    let net_admin = 1 << 12;
    ensure!(effective & !net_admin == 0, "capabilities kept: {effective:x}");
    let no_new = status.lines().any(|line| line.replace('\t', " ") == "NoNewPrivs: 1");
    ensure!(no_new, "new privileges are possible");
    let filtered = status.lines().any(|line| line.replace('\t', " ") == "Seccomp: 2");
    ensure!(filtered, "system calls are not filtered");
    Ok(())
}

pub(crate) fn a_full_disk_is_named() -> Result<()> {
    let pair = Pair::create(1500, Underlay::Direct)?;
    let scratch = TemporaryDir::create("warren-lab")?;
    let state = scratch.path().join("full");
    std::fs::create_dir(&state)?;
    // In the mount namespace of this test, so it goes with it at the latest.
    let mut command = std::process::Command::new("mount");
    command.args(["-t", "tmpfs", "-o", "size=4k,mode=0700", "none"]).arg(&state);
    output_of(&mut command)?;
    // One page is one file's; nothing more fits.
    std::fs::write(state.join("filler"), [0; 4096])?;
    let listen = ["--listen", "10.99.0.1:51820", "--interface", "w-left"];
    let said = refused(&pair.left, &state, &[&["up"][..], &listen].concat());
    let keys: Vec<_> = std::fs::read_dir(&state)?
        .flatten()
        .filter(|entry| entry.metadata().is_ok_and(|metadata| metadata.len() > 0))
        .map(|entry| entry.file_name())
        .filter(|name| name != "filler")
        .collect();
    output_of(std::process::Command::new("umount").arg(&state))?;
    contains_one(&said?, &["no space", "disk"])?;
    ensure!(keys.is_empty(), "half-made state: {keys:?}");
    Ok(())
}
