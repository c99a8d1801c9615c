//! The system's resolver while connected: names are asked of the exit, through
//! the tunnel, and of nobody else.
//!
//! In: a [`ResolverPlan`]. Out: systemd-resolved's settings of our interface
//! where it answers programs, else `/etc/resolv.conf`. Invariants: the former
//! `resolv.conf` is inside the one that replaces it, as comments, so it cannot
//! be lost or mixed up (with that of another network namespace, say) and any
//! later process can put it back; a file that somebody else has written since
//! is theirs and stays. Deliberately not here: answering questions.

use std::fs;
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::unix::fs::{OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};

use super::plan::{ResolverPlan, check_interface};
use super::record::Record;
use crate::dns::resolved;
use crate::fault::{Fault, FaultKind};

const PATH: &str = "/etc/resolv.conf";
/// What systemd-resolved itself asks, while `resolv.conf` names only it.
const BEHIND_STUB: &str = "/run/systemd/resolve/resolv.conf";

const FIRST_LINE: &str =
    "# Written by Warren: names are asked of the exit, through the tunnel. The former";
const SECOND_LINE: &str =
    "# content follows; `warren disconnect` or `warren kill-switch off` puts it back.";
/// Before each line of the former file.
const LINE: &str = "#| ";
/// Before the target of the former symbolic link.
const LINK: &str = "#-> ";
/// Largest `resolv.conf` that is kept, bytes.
const MAX: usize = 64 << 10;

/// What was there before.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Former {
    Nothing,
    File(Vec<u8>),
    Link(PathBuf),
}

/// Has the system ask these servers.
pub(super) fn apply(record: &mut Record, plan: &ResolverPlan) -> Result<(), Fault> {
    check_interface(&plan.interface)?;
    record.notes.resolver = Some(plan.interface.clone());
    record.save()?;
    let by_resolved = resolved::runs_here();
    if by_resolved {
        resolved::take_all(&plan.interface, &plan.servers).map_err(|reason| {
            Fault::new(FaultKind::Resource, format!("systemd-resolved: {reason}"))
                .remedy("see `journalctl -u systemd-resolved`; names would be asked outside")
        })?;
    }
    if by_resolved && names_stub(Path::new(PATH)) {
        return Ok(());
    }
    write_servers(Path::new(PATH), &plan.servers)
}

/// Has the system ask whom it asked before. `mesh` are the settings of
/// systemd-resolved to go back to.
pub(super) fn lift(
    record: &mut Record,
    mesh: Option<&(Vec<IpAddr>, Vec<String>)>,
) -> Result<(), Fault> {
    let Some(interface) = record.notes.resolver.clone() else { return Ok(()) };
    restore()?;
    if resolved::runs_here() {
        // Gone with the interface, when that is gone.
        let _gone = resolved::give_back(&interface);
        if let Some((servers, domains)) = mesh {
            resolved::arrange(&interface, servers, domains);
        }
    }
    record.notes.resolver = None;
    record.save()
}

/// Puts `resolv.conf` back, if it is ours; needs no notes.
///
/// # Errors
/// When it cannot be read or written.
pub fn restore() -> Result<(), Fault> {
    restore_file(Path::new(PATH))
}

/// True while the system asks whom we told it to, as far as files show.
pub(super) fn in_force() -> bool {
    let path = Path::new(PATH);
    (resolved::runs_here() && names_stub(path))
        || fs::read(path).is_ok_and(|text| former_of(&text).is_some())
}

/// The server this machine asks, for an exit's clients to ask too.
pub(super) fn upstream() -> Result<IpAddr, Fault> {
    let missing = || {
        Fault::new(FaultKind::Config, format!("{PATH} names no server for this exit's clients"))
            .remedy("name one: `exit.resolver = \"ADDRESS\"`")
    };
    let mut text = fs::read(PATH).unwrap_or_default();
    match former_of(&text) {
        Some(Former::File(former)) => text = former,
        Some(Former::Link(target)) => {
            text = fs::read(Path::new("/etc").join(target)).unwrap_or_default();
        }
        Some(Former::Nothing) => return Err(missing()),
        None => {}
    }
    let first = servers_of(&text).into_iter().next();
    if first.is_some_and(is_stub) {
        text = fs::read(BEHIND_STUB).unwrap_or_default();
    }
    servers_of(&text).into_iter().find(|server| !is_stub(*server)).ok_or_else(missing)
}

/// The same for an exit that asks by sockets of this machine, which reach a stub
/// as well.
pub(crate) fn local_upstream() -> Result<IpAddr, Fault> {
    upstream().or_else(|fault| {
        let text = fs::read(PATH).unwrap_or_default();
        servers_of(&text).into_iter().find(|server| is_stub(*server)).ok_or(fault)
    })
}

fn is_stub(server: IpAddr) -> bool {
    server == IpAddr::from([127, 0, 0, 53]) || server == IpAddr::from([127, 0, 0, 54])
}

fn names_stub(path: &Path) -> bool {
    fs::read(path).is_ok_and(|text| servers_of(&text).first().is_some_and(|s| is_stub(*s)))
}

/// The servers of a `resolv.conf`, in order. Addresses with a zone are left
/// out: they mean nothing elsewhere.
fn servers_of(text: &[u8]) -> Vec<IpAddr> {
    String::from_utf8_lossy(text)
        .lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            (words.next() == Some("nameserver")).then(|| words.next()?.parse().ok())?
        })
        .collect()
}

/// What a file of ours replaced; `None` for a file of somebody else's.
fn former_of(text: &[u8]) -> Option<Former> {
    let lines: Vec<&[u8]> = text.split_inclusive(|byte| *byte == b'\n').collect();
    if lines.first()?.trim_ascii_end() != FIRST_LINE.as_bytes() {
        return None;
    }
    if let Some(target) = lines.iter().find_map(|line| line.strip_prefix(LINK.as_bytes())) {
        use std::os::unix::ffi::OsStrExt;
        let target = target.strip_suffix(b"\n").unwrap_or(target);
        return Some(Former::Link(std::ffi::OsStr::from_bytes(target).into()));
    }
    let kept: Vec<&[u8]> =
        lines.iter().filter_map(|line| line.strip_prefix(LINE.as_bytes())).collect();
    match kept.is_empty() {
        true => Some(Former::Nothing),
        false => Some(Former::File(kept.concat())),
    }
}

/// Our file.
fn render(former: &Former, servers: &[IpAddr]) -> Vec<u8> {
    let mut text = format!("{FIRST_LINE}\n{SECOND_LINE}\n").into_bytes();
    match former {
        Former::Nothing => {}
        Former::Link(target) => {
            use std::os::unix::ffi::OsStrExt;
            text.extend_from_slice(LINK.as_bytes());
            text.extend_from_slice(target.as_os_str().as_bytes());
            text.push(b'\n');
        }
        Former::File(content) => {
            for line in content.split_inclusive(|byte| *byte == b'\n') {
                text.extend_from_slice(LINE.as_bytes());
                text.extend_from_slice(line);
            }
            if content.is_empty() {
                text.extend_from_slice(LINE.as_bytes());
            }
            if !text.ends_with(b"\n") {
                text.push(b'\n');
            }
        }
    }
    for server in servers {
        text.extend_from_slice(format!("nameserver {server}\n").as_bytes());
    }
    text
}

fn write_servers(path: &Path, servers: &[IpAddr]) -> Result<(), Fault> {
    let wrong = |error: &io::Error| {
        Fault::file("change", path, error).remedy(
            "let the daemon write it (with systemd: `ReadWritePaths=/etc/resolv.conf`; a link must \
             become a file), or use systemd-resolved",
        )
    };
    let former = match path.symlink_metadata() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Former::Nothing,
        Err(error) => return Err(wrong(&error)),
        Ok(there) if there.is_symlink() => {
            Former::Link(fs::read_link(path).map_err(|e| wrong(&e))?)
        }
        Ok(_) => {
            let content = fs::read(path).map_err(|e| wrong(&e))?;
            if content.len() > MAX {
                return Err(wrong(&io::ErrorKind::FileTooLarge.into()));
            }
            former_of(&content).unwrap_or(Former::File(content))
        }
    };
    put(path, &render(&former, servers)).map_err(|e| wrong(&e))
}

fn restore_file(path: &Path) -> Result<(), Fault> {
    let wrong = |error: &io::Error| Fault::file("restore", path, error);
    let Some(former) = fs::read(path).ok().as_deref().and_then(former_of) else { return Ok(()) };
    match former {
        Former::File(content) => put(path, &content),
        Former::Nothing => fs::remove_file(path).or_else(|error| match error.raw_os_error() {
            // Mounted there: empty is as near as it gets.
            Some(libc::EBUSY) => fs::write(path, b""),
            _ => Err(error),
        }),
        Former::Link(target) => {
            let temporary = temporary(path);
            let _left_over = fs::remove_file(&temporary);
            symlink(target, &temporary).and_then(|()| fs::rename(&temporary, path))
        }
    }
    .map_err(|e| wrong(&e))
}

fn temporary(path: &Path) -> PathBuf {
    path.with_extension(format!("conf.warren-{}", std::process::id()))
}

/// Replaces a file: whole where that is possible, in place where it is a mount
/// of its own (containers, `ip netns exec`) or its directory is closed to us.
fn put(path: &Path, content: &[u8]) -> io::Result<()> {
    let temporary = temporary(path);
    let whole = || {
        let _left_over = fs::remove_file(&temporary);
        let mut file =
            fs::OpenOptions::new().write(true).create_new(true).mode(0o644).open(&temporary)?;
        file.write_all(content)?;
        file.sync_all()?;
        // The creation mask may have taken rights that every program needs.
        fs::set_permissions(&temporary, std::os::unix::fs::PermissionsExt::from_mode(0o644))?;
        fs::rename(&temporary, path)
    };
    let Err(error) = whole() else { return Ok(()) };
    let _not_made = fs::remove_file(&temporary);
    let in_place = [libc::EBUSY, libc::EROFS, libc::EACCES, libc::EPERM, libc::EXDEV];
    if !error.raw_os_error().is_some_and(|code| in_place.contains(&code)) {
        return Err(error);
    }
    // One write, as long as what was there: a kill leaves either the old file
    // or the new one with empty lines after it, then cut off.
    // Never through a link: what it leads to is another program's.
    let mut file = fs::OpenOptions::new().write(true).custom_flags(libc::O_NOFOLLOW).open(path)?;
    let length = usize::try_from(file.metadata()?.len()).unwrap_or(0).min(2 * MAX);
    let mut padded = content.to_vec();
    padded.resize(content.len().max(length), b'\n');
    file.write_all(&padded)?;
    file.set_len(content.len() as u64)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use warren_os::files::TemporaryDir;

    use super::*;

    const SERVERS: [IpAddr; 1] = [super::super::plan::RESOLVERS[0]];

    #[test]
    fn a_file_comes_back_line_for_line() {
        let dir = TemporaryDir::create("warren-resolv").unwrap();
        let path = dir.path().join("resolv.conf");
        for former in [
            &b"search lan\nnameserver 10.0.0.1\n"[..],
            b"nameserver 10.0.0.1",
            b"\xff\n\n#| x\n",
            b"",
        ] {
            fs::write(&path, former).unwrap();
            write_servers(&path, &SERVERS).unwrap();
            let ours = fs::read(&path).unwrap();
            assert_eq!(servers_of(&ours), SERVERS);
            // Again, with other servers: the first content is the former one.
            write_servers(&path, &["192.0.0.9".parse().unwrap()]).unwrap();
            restore_file(&path).unwrap();
            let mut back = fs::read(&path).unwrap();
            if !former.ends_with(b"\n") && back.ends_with(b"\n") {
                back.pop();
            }
            assert_eq!(back, former);
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left beside it");
    }

    #[test]
    fn links_and_absence_come_back_too() {
        let dir = TemporaryDir::create("warren-resolv").unwrap();
        let path = dir.path().join("resolv.conf");
        write_servers(&path, &SERVERS).unwrap();
        restore_file(&path).unwrap();
        assert!(!path.exists());
        fs::write(dir.path().join("stub"), "nameserver 127.0.0.53\n").unwrap();
        symlink("stub", &path).unwrap();
        write_servers(&path, &SERVERS).unwrap();
        assert!(!path.symlink_metadata().unwrap().is_symlink(), "the link's target is not ours");
        restore_file(&path).unwrap();
        assert_eq!(fs::read_link(&path).unwrap(), Path::new("stub"));
        assert_eq!(fs::read(dir.path().join("stub")).unwrap(), b"nameserver 127.0.0.53\n");
    }

    #[test]
    fn what_somebody_else_wrote_since_is_theirs() {
        let dir = TemporaryDir::create("warren-resolv").unwrap();
        let path = dir.path().join("resolv.conf");
        fs::write(&path, "nameserver 10.0.0.1\n").unwrap();
        write_servers(&path, &SERVERS).unwrap();
        fs::write(&path, "nameserver 10.0.0.2\n").unwrap();
        restore_file(&path).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"nameserver 10.0.0.2\n");
    }
}
