//! `[userspace]` of the file and its flags: [`Settings`], or why not.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;

use toml::Spanned;

use super::parse::File;
use super::{ConfigError, Overrides, Source, raw};
use crate::userspace::{Publish, Settings};

/// Ports published at most.
const MAX_PUBLISHED: usize = 256;

/// Reads the section; `None` when this node makes an interface as usual.
pub(super) fn parse(
    file: &File<'_>,
    raw: &raw::RawUserspace,
    flags: &Overrides,
    open_proxy: bool,
    sources: &mut BTreeMap<&'static str, Source>,
) -> Result<Option<Settings>, ConfigError> {
    let mut settings = Settings::default();
    let mut first = None;
    let mut address = |key: &'static str, flag: Option<SocketAddr>, raw: &raw::Value<String>| {
        let short = key.trim_start_matches("userspace.");
        let mut read = None;
        if let Some(v) = raw {
            first.get_or_insert((short, v.span().start));
            sources.insert(key, Source::File(file.line(v.span().start)));
            let refuse =
                |_| file.refuse(short, v.span().start, "use ADDR:PORT, such as 127.0.0.1:1080");
            read = Some(v.get_ref().parse().map_err(refuse)?);
        }
        if flag.is_some() {
            sources.insert(key, Source::Flag);
        }
        Ok::<_, ConfigError>(flag.or(read))
    };
    settings.socks = address("userspace.socks", flags.socks, &raw.socks)?;
    settings.http = address("userspace.http", flags.http, &raw.http)?;
    if let Some(v) = &raw.password_file {
        sources.insert("userspace.password_file", Source::File(file.line(v.span().start)));
        let folder = file.path.parent().unwrap_or(Path::new(""));
        settings.password_file = Some(folder.join(v.get_ref()));
    }
    if let Some(path) = &flags.proxy_password_file {
        sources.insert("userspace.password_file", Source::Flag);
        settings.password_file = Some(path.clone());
    }
    for entry in &raw.publish {
        first.get_or_insert(("publish", entry.span().start));
        settings.publish.push(published(file, entry)?);
    }
    if !flags.publish.is_empty() {
        settings.publish.clone_from(&flags.publish);
    }
    check_published(&settings.publish)?;
    let mut enabled = flags.userspace;
    if let Some(v) = &raw.enabled {
        sources.insert("userspace.enabled", Source::File(file.line(v.span().start)));
        enabled |= *v.get_ref();
    }
    if flags.userspace {
        sources.insert("userspace.enabled", Source::Flag);
    }
    if !enabled {
        return refuse_useless(file, flags, first, raw.enabled.is_some()).map(|()| None);
    }
    for (flag, address) in [("--socks", settings.socks), ("--http", settings.http)] {
        let Some(address) = address.filter(|address| !address.ip().is_loopback()) else { continue };
        if settings.password_file.is_none() && !open_proxy {
            return Err(ConfigError::Setting(format!(
                "{flag} {address}: whoever reaches that address could use this node. Listen on \
                 127.0.0.1, or give a password with --proxy-password-file, or set \
                 open_proxy = true under [dangerous]"
            )));
        }
    }
    Ok(Some(settings))
}

/// Settings of userspace mode without userspace mode. A file may keep them with
/// `enabled = false`.
fn refuse_useless(
    file: &File<'_>,
    flags: &Overrides,
    first: Option<(&str, usize)>,
    said: bool,
) -> Result<(), ConfigError> {
    let flag = [
        (flags.socks.is_some(), "--socks"),
        (flags.http.is_some(), "--http"),
        (!flags.publish.is_empty(), "--publish"),
        (flags.proxy_password_file.is_some(), "--proxy-password-file"),
    ];
    if let Some((_, name)) = flag.into_iter().find(|(given, _)| *given) {
        let what = format!("{name} has no effect without --userspace: add it, or drop {name}");
        return Err(ConfigError::Setting(what));
    }
    match first {
        Some((key, offset)) if !said => {
            Err(file.refuse(key, offset, "has no effect without `enabled = true` there"))
        }
        _ => Ok(()),
    }
}

fn published(file: &File<'_>, entry: &Spanned<raw::RawPublish>) -> Result<Publish, ConfigError> {
    let at = entry.get_ref();
    let protocol = at.protocol.as_deref().unwrap_or("tcp");
    format!("{protocol}:{}={}", at.port, at.to)
        .parse()
        .map_err(|error| file.refuse("publish", entry.span().start, error))
}

fn check_published(all: &[Publish]) -> Result<(), ConfigError> {
    if all.len() > MAX_PUBLISHED {
        let what =
            format!("{} published ports are too many: use at most {MAX_PUBLISHED}", all.len());
        return Err(ConfigError::Setting(what));
    }
    for (i, one) in all.iter().enumerate() {
        if all[..i].iter().any(|other| (other.protocol, other.port) == (one.protocol, one.port)) {
            let what = format!("the port of `{one}` is published twice: drop one of them");
            return Err(ConfigError::Setting(what));
        }
    }
    Ok(())
}
