use super::*;

fn load(text: &str) -> Result<Config, ConfigError> {
    Config::from_text(Path::new("/etc/warren/warren.toml"), text, Overrides::default())
}

fn refused(text: &str) -> String {
    load(text).unwrap_err().to_string()
}

const KEY: &str = "aeaqcaibaeaqcaibaeaqcaibaeaqcaibaeaqcaibaeaqcaibaeaq";

#[test]
fn nothing_given_gives_the_documented_defaults() {
    let config = load("").unwrap();
    assert_eq!(config.listen.to_string(), "[::]:9277");
    assert!(!config.listen.explicit);
    assert_eq!(config.interface.as_str(), "warren0");
    assert_eq!(config.interface_mtu(), 1420);
    assert_eq!(config.auth, Auth::Certificate);
    assert_eq!(config.pq, PostQuantum::Preferred);
    assert!(config.relay);
    assert!(config.dns && config.lan_discovery && config.port_mapping);
    assert_eq!(
        (config.worker_pairs(1), config.worker_pairs(2), config.worker_pairs(32)),
        (1, 1, 4)
    );
    assert_eq!(config.source("listen"), Source::Default);
}

#[test]
fn every_key_is_read() {
    let config = load(
        r#"
name = "gpu-1"
network = "lab"
listen = "0.0.0.0:7000"
interface = "wr1"
suite = "chacha20poly1305"
endpoints = ["vpn.example.org:7000", "192.0.2.1:7000"]
bootstrap = ["[2001:db8::1]:7000"]
workers = 3
mtu = 1300
pq = "required"
relay = false
roles = "relay,exit"
region = "de"
city = "fra"
bandwidth = "500mbit"
family = "example.org"
exit_policy = "exit.rules"
dns = false
lan_discovery = false
port_mapping = false
log_format = "json"
log_level = "debug"
[auth]
mode = "psk"
psk_file = "net.psk"
[dangerous]
keep_privileges = true
"#,
    )
    .unwrap();
    assert_eq!(config.name.as_ref().unwrap().as_str(), "gpu-1");
    assert_eq!(config.roles.roles.unwrap().to_string(), "relay,exit");
    assert_eq!(config.roles.region.unwrap().name(), "Germany");
    assert_eq!(config.roles.city.as_ref().unwrap().as_str(), "fra");
    assert_eq!(config.roles.bandwidth.unwrap().bits_per_second(), 500_000_000);
    assert_eq!(config.roles.family.as_ref().unwrap().as_str(), "example.org");
    assert_eq!(config.roles.exit_policy.as_deref(), Some(Path::new("/etc/warren/exit.rules")));
    assert_eq!(config.suite, Some(Suite::ChaCha20Poly1305));
    assert_eq!(config.endpoints.len(), 2);
    assert_eq!(config.worker_pairs(2), 3);
    assert_eq!(config.auth, Auth::Psk { file: "/etc/warren/net.psk".into() });
    assert!(config.dangerous.keep_privileges && !config.relay);
    assert!(!config.dns && !config.lan_discovery && !config.port_mapping);
    assert_eq!(config.source("mtu"), Source::File(10));
}

#[test]
fn flags_win_over_the_file() {
    let flags = Overrides {
        name: Some("flag".parse().unwrap()),
        workers: Some(2),
        endpoints: vec!["192.0.2.9:1".parse().unwrap()],
        ..Overrides::default()
    };
    let text = "name = \"file\"\nworkers = 5\nendpoints = [\"192.0.2.1:1\"]\n";
    let config = Config::from_text(Path::new("w.toml"), text, flags).unwrap();
    assert_eq!(config.name.unwrap().as_str(), "flag");
    assert_eq!(config.workers.unwrap().get(), 2);
    assert_eq!(config.endpoints[0].to_string(), "192.0.2.9:1");
}

#[test]
fn errors_point_at_the_line_and_say_what_is_allowed() {
    let cases = [
        ("mtu = 1500\nname = \"a_b\"\n", ":2: `name`", "letters, digits and hyphens"),
        ("\n\nmtu = 100\n", ":3: `mtu`", "1280 to 9000 bytes"),
        ("workers = 0\n", ":1: `workers`", "1 to 64"),
        ("suite = \"des\"\n", ":1: `suite`", "aes256gcm or chacha20poly1305"),
        ("endpoints = [\n  \"ok.example:1\",\n  \"bad\",\n]\n", ":3: `endpoints`", "HOST:PORT"),
        ("[auth]\nmode = \"magic\"\n", ":2: `mode`", "certificate"),
        ("[auth]\nmode = \"psk\"\n", ":2: `mode`", "warren psk generate"),
        ("[auth]\npsk_file = \"x\"\n", ":2: `psk_file`", "mode = \"psk\""),
        ("[auth]\nmode = \"key\"\n", ":2: `mode`", "[[peer]]"),
    ];
    for (text, place, allowed) in cases {
        let error = refused(text);
        assert!(error.contains(place) && error.contains(allowed), "{text:?}: {error}");
    }
}

#[test]
fn unknown_fields_and_wrong_types_are_refused_with_their_line() {
    let error = refused("name = \"a\"\nlisten_port = 5\n");
    assert!(error.contains("line 2") && error.contains("listen_port"), "{error}");
    assert!(error.contains("`listen`"), "the allowed fields are listed: {error}");
    let error = refused("workers = \"many\"\n");
    assert!(error.contains("line 1") && error.contains("workers"), "{error}");
    let error = refused("[dangerous]\nno_crypto = true\n");
    assert!(error.contains("line 2") && error.contains("no_crypto"), "{error}");
    let error = refused("name = \"a\nb = 1");
    assert!(error.contains("line 1"), "{error}");
}

#[test]
fn key_mode_needs_distinct_complete_peers() {
    let peer = |name: &str, key: &str| {
        format!("[[peer]]\nname = \"{name}\"\npublic_key = \"{key}\"\nendpoint = \"a.example:1\"\n")
    };
    let head = "[auth]\nmode = \"key\"\n";
    let config = load(&format!("{head}{}", peer("b", KEY))).unwrap();
    let Auth::Key { peers } = &config.auth else { panic!("{:?}", config.auth) };
    assert_eq!(peers[0].public_key.to_string(), KEY);

    let error = refused(&format!("{head}{}{}", peer("b", KEY), peer("b", KEY)));
    assert!(error.contains(":8: `name`"), "{error}");
    let error = refused(&format!("{head}{}{}", peer("b", KEY), peer("c", KEY)));
    assert!(error.contains(":9: `public_key`"), "{error}");
    let error = refused(&format!("{head}{}", peer("b", "short")));
    assert!(error.contains("warren key"), "{error}");
    let error = refused(&peer("b", KEY));
    assert!(error.contains("mode = \"key\""), "{error}");
    let error = refused("[auth]\nmode = \"key\"\n[[peer]]\nname = \"b\"\n");
    assert!(error.contains("public_key"), "{error}");
}

#[test]
fn the_effective_configuration_is_itself_a_configuration() {
    let text = format!(
        "name = \"a\"\nmtu = 1300\nendpoints = [\"a.example:1\"]\n[auth]\nmode = \"key\"\n\
         [[peer]]\nname = \"b\"\npublic_key = \"{KEY}\"\n"
    );
    let shown = load(&text).unwrap().render_effective(2);
    assert!(shown.contains("# line 2 of the file") && shown.contains("# default"), "{shown}");
    let again = load(&shown).unwrap();
    assert_eq!(again.interface_mtu(), 1300);
    assert_eq!(again.auth, load(&text).unwrap().auth);
    assert_eq!(again.listen.address, Listen::default().address);
}

#[test]
fn a_missing_file_is_named() {
    let error = Config::load(Some(Path::new("/nonexistent/w.toml")), Overrides::default());
    assert!(error.unwrap_err().to_string().contains("/nonexistent/w.toml"));
}

proptest::proptest! {
    #[test]
    fn no_text_panics(text in "\\PC{0,200}|([a-z_\\[\\]]{1,12}( = )?[\"0-9a-z\\[\\].:-]{0,9}\n){0,8}") {
        let _ = load(&text);
    }

    #[test]
    fn no_value_panics(key in "name|network|listen|interface|suite|pq|log_format|log_level",
                       value in "\\PC{0,80}") {
        let _ = load(&format!("{key} = '''{value}'''"));
    }
}

#[test]
fn roles_are_checked_and_flags_win() {
    for (text, words) in [
        ("roles = \"guard\"", "entry, relay and exit"),
        ("region = \"xx\"", "known are"),
        ("region = \"Germany\"", "did you mean `de`"),
        ("region = \"de\"\ncity = \"a_b\"", "fra"),
        ("city = \"fra\"", "--region de"),
        ("bandwidth = \"5\"", "500mbit"),
        ("family = \"a b\"", "family name"),
    ] {
        let error = refused(text);
        assert!(error.contains(words), "{text}: {error}");
    }
    let flags = RoleConfig { region: Some("fr".parse().unwrap()), ..RoleConfig::default() };
    let overrides = Overrides { roles: flags, ..Overrides::default() };
    let text = "roles = \"exit\"\nregion = \"de\"";
    let config = Config::from_text(Path::new("w.toml"), text, overrides).unwrap();
    assert_eq!(config.roles.region.unwrap().code(), "fr");
    assert_eq!((config.source("region"), config.source("roles")), (Source::Flag, Source::File(1)));
    assert!(config.render_effective(1).contains("roles = \"exit\""));
}

#[test]
fn userspace_mode_is_read_and_shown() {
    let text = r#"
[userspace]
enabled = true
socks = "127.0.0.1:1080"
http = "[::1]:8080"
password_file = "proxy.pw"
[[userspace.publish]]
port = 80
to = "127.0.0.1:8080"
[[userspace.publish]]
protocol = "udp"
port = 53
to = "127.0.0.1:5353"
"#;
    let config = load(text).unwrap();
    let settings = config.userspace.clone().unwrap();
    assert_eq!(settings.socks, Some("127.0.0.1:1080".parse().unwrap()));
    assert_eq!(settings.password_file.as_deref(), Some(Path::new("/etc/warren/proxy.pw")));
    let published: Vec<String> = settings.publish.iter().map(ToString::to_string).collect();
    assert_eq!(published, ["tcp:80=127.0.0.1:8080", "udp:53=127.0.0.1:5353"]);
    let shown = config.render_effective(2);
    assert_eq!(load(&shown).unwrap().userspace, Some(settings), "{shown}");
    assert_eq!(load("").unwrap().userspace, None);
    // Kept for another day.
    assert_eq!(load(&text.replace("true", "false")).unwrap().userspace, None);
}

#[test]
fn userspace_settings_that_make_no_sense_are_refused() {
    let on = "[userspace]\nenabled = true\n";
    for (text, words) in [
        ("[userspace]\nsocks = \"127.0.0.1:1\"".to_owned(), "enabled = true"),
        (format!("{on}socks = \"localhost\""), "ADDR:PORT"),
        (format!("{on}socks = \"0.0.0.0:1080\""), "password"),
        (format!("interface = \"w0\"\n{on}"), "`interface`"),
        (format!("{on}[[userspace.publish]]\nport = 70000\nto = \"127.0.0.1:1\""), "tcp:80="),
        (format!("{on}[[userspace.publish]]\nport = 1\nto = \"x\""), "tcp:80="),
    ] {
        let error = refused(&text);
        assert!(error.contains(words), "{text}: {error}");
    }
    let twice = format!("{on}{0}{0}", "[[userspace.publish]]\nport = 1\nto = \"127.0.0.1:1\"\n");
    assert!(refused(&twice).contains("twice"));
    let open = format!("{on}socks = \"0.0.0.0:1080\"\n[dangerous]\nopen_proxy = true\n");
    assert!(load(&open).unwrap().userspace.is_some());
    let flags =
        Overrides { publish: vec!["tcp:1=127.0.0.1:1".parse().unwrap()], ..Overrides::default() };
    let error = Config::from_text(Path::new("w.toml"), "", flags).unwrap_err().to_string();
    assert!(error.contains("--userspace"), "{error}");
}
