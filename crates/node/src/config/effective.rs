//! `warren config show`: the configuration in force, as a file that could be
//! used, with the origin of each value. It holds no secrets:
//! the pre-shared key is only named by its path.

use std::fmt::{Display, Write};
use std::num::NonZeroUsize;

use super::{Auth, Config, Endpoint, Source};

impl Config {
    /// Only what the file or the command line set, as TOML with its origin.
    pub fn render_set(&self, cores: usize) -> String {
        let all = self.render_effective(cores);
        let mut out = String::new();
        for block in all.split("\n\n") {
            let set: Vec<&str> = block.lines().filter(|l| !l.contains(" # default")).collect();
            // A block of its heading alone says nothing.
            if set.iter().any(|l| l.contains(" = ")) {
                let _ = writeln!(out, "{}", set.join("\n"));
            }
        }
        out
    }

    /// Renders the effective configuration as TOML with comments. `cores`: as
    /// many as the daemon would see, for the default number of workers.
    pub fn render_effective(&self, cores: usize) -> String {
        let mut out = String::new();
        let _ = writeln!(out, "# state directory: {}", self.state_dir.display());
        self.optional(&mut out, "name", self.name.as_ref(), "stored name, else the host name");
        self.optional(
            &mut out,
            "network",
            self.network.as_ref(),
            "the stored network, else `warren`",
        );
        self.line(&mut out, "listen", quoted(self.listen));
        if self.userspace.is_none() {
            self.line(&mut out, "interface", quoted(&self.interface));
        }
        self.optional(&mut out, "suite", self.suite.as_ref(), "the network's, else aes256gcm");
        self.line(&mut out, "endpoints", list(&self.endpoints));
        self.line(&mut out, "bootstrap", list(&self.bootstrap));
        self.optional(&mut out, "tcp_listen", self.tcp_listen.as_ref(), "TCP is not offered");
        self.line(&mut out, "tcp_fallback", self.tcp_fallback);
        self.optional(&mut out, "metrics", self.metrics.as_ref(), "metrics are not served");
        let workers = self.workers.map_or_else(|| self.worker_pairs(cores), NonZeroUsize::get);
        self.line(&mut out, "workers", workers);
        self.line(&mut out, "mtu", self.interface_mtu());
        self.line(&mut out, "pq", quoted(self.pq));
        self.line(&mut out, "relay", self.relay);
        let roles = &self.roles;
        let kept = "as decided last, else none";
        self.optional(&mut out, "roles", roles.roles.as_ref(), kept);
        self.optional(&mut out, "region", roles.region.as_ref(), kept);
        self.optional(&mut out, "city", roles.city.as_ref(), kept);
        self.optional(&mut out, "bandwidth", roles.bandwidth.as_ref(), kept);
        self.optional(&mut out, "family", roles.family.as_ref(), kept);
        let policy = roles.exit_policy.as_ref().map(|path| path.display());
        self.optional(&mut out, "exit_policy", policy.as_ref(), kept);
        self.line(&mut out, "dns", self.dns);
        self.line(&mut out, "lan_discovery", self.lan_discovery);
        self.line(&mut out, "port_mapping", self.port_mapping);
        self.line(&mut out, "log_format", quoted(self.log_format));
        self.line(&mut out, "log_level", quoted(self.log_level));
        let _ = writeln!(out, "\n[auth]");
        self.entry(&mut out, "mode", "auth.mode", quoted(self.auth.as_str()));
        if let Auth::Psk { file } = &self.auth {
            self.entry(&mut out, "psk_file", "auth.psk_file", quoted(file.display()));
        }
        if let Auth::Key { peers } = &self.auth {
            for peer in peers {
                let _ = writeln!(out, "\n[[peer]]\nname = {}", quoted(&peer.name));
                let _ = writeln!(out, "public_key = {}", quoted(peer.public_key));
                if let Some(endpoint) = &peer.endpoint {
                    let _ = writeln!(out, "endpoint = {}", quoted(endpoint));
                }
            }
        }
        let _ = writeln!(out, "\n[exit]");
        match self.exit_resolver {
            Some(address) => self.entry(&mut out, "resolver", "exit.resolver", quoted(address)),
            None => self.optional(&mut out, "resolver", None::<&String>, "this machine's own"),
        }
        self.render_userspace(&mut out);
        let _ = writeln!(out, "\n[dangerous]");
        let kept = self.dangerous.keep_privileges;
        self.entry(&mut out, "keep_privileges", "dangerous.keep_privileges", kept);
        let life = self.certificate_life();
        self.entry(&mut out, "certificate_life", "dangerous.certificate_life", life);
        self.entry(&mut out, "open_proxy", "dangerous.open_proxy", self.dangerous.open_proxy);
        out
    }

    fn render_userspace(&self, out: &mut String) {
        let _ = writeln!(out, "\n[userspace]");
        self.entry(out, "enabled", "userspace.enabled", self.userspace.is_some());
        let Some(settings) = &self.userspace else { return };
        for (key, full, address) in [
            ("socks", "userspace.socks", settings.socks),
            ("http", "userspace.http", settings.http),
        ] {
            if let Some(address) = address {
                self.entry(out, key, full, quoted(address));
            }
        }
        if let Some(path) = &settings.password_file {
            self.entry(out, "password_file", "userspace.password_file", quoted(path.display()));
        }
        for publish in &settings.publish {
            let _ = writeln!(out, "\n[[userspace.publish]]\nprotocol = \"{}\"", publish.protocol);
            let _ = writeln!(out, "port = {}\nto = {}", publish.port, quoted(publish.to));
        }
    }

    fn line(&self, out: &mut String, key: &str, value: impl Display) {
        self.entry(out, key, key, value);
    }

    fn entry(&self, out: &mut String, key: &str, full_key: &str, value: impl Display) {
        let origin = match self.source(full_key) {
            Source::Default => "default".to_owned(),
            Source::File(line) => format!("line {line} of the file"),
            Source::Flag => "command line".to_owned(),
        };
        let _ = writeln!(out, "{:<40} # {origin}", format!("{key} = {value}"));
    }

    fn optional<T: Display>(&self, out: &mut String, key: &str, value: Option<&T>, absent: &str) {
        match value {
            Some(value) => self.line(out, key, quoted(value)),
            None => {
                let _ = writeln!(out, "{:<40} # default: {absent}", format!("# {key}"));
            }
        }
    }
}

/// A TOML basic string.
fn quoted(value: impl Display) -> String {
    let mut out = String::from("\"");
    for c in value.to_string().chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            c if c.is_control() => {
                let _ = write!(out, "\\u{:04X}", c as u32);
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

fn list(endpoints: &[Endpoint]) -> String {
    let items: Vec<String> = endpoints.iter().map(quoted).collect();
    format!("[{}]", items.join(", "))
}
