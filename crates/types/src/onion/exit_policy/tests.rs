//! What is refused whatever the rules say, and how rules read.

use super::*;

fn allows(policy: &ExitPolicy, address: &str, port: u16) -> bool {
    policy.allows(address.parse().unwrap(), port, Protocol::Tcp)
}

#[test]
fn the_default_lets_out_all_but_private_destinations_and_mail() {
    let policy = ExitPolicy::default();
    for public in ["1.1.1.1", "100.63.0.1", "100.128.0.1", "2606:4700::1", "64:ff9b::101:101"] {
        assert!(allows(&policy, public, 443), "{public}");
        assert!(!allows(&policy, public, 25), "{public}");
        assert!(is_public_destination(public.parse().unwrap()));
    }
    for private in [
        "0.1.2.3",
        "10.1.2.3",
        "100.64.0.1",
        "100.127.255.255",
        "127.0.0.1",
        "169.254.169.254",
        "172.31.0.1",
        "192.168.1.1",
        "192.0.0.1",
        "198.19.0.1",
        "224.0.0.1",
        "239.1.1.1",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "fe80::1",
        "fec0::1",
        "fd00::1",
        "fc00::1",
        "ff02::1",
        "2001:db8::1",
        "2002:a00:1::",
        "2001:0:a00::1",
        "::ffff:10.0.0.1",
        "64:ff9b::a00:1",
        "64:ff9b:1::1",
        "4000::1",
        "100::1",
    ] {
        assert!(!allows(&policy, private, 443), "{private}");
        assert!(!is_public_destination(private.parse().unwrap()), "{private}");
    }
}

#[test]
fn the_first_rule_that_fits_decides_and_the_rest_is_refused() {
    let text = "\
        # web only\n\
        reject 9.9.9.0/24:*   # not these\n\
        accept *:80-443 tcp\n\
        accept [2606:4700::]/32:53 udp\n";
    let policy: ExitPolicy = text.parse().unwrap();
    assert!(allows(&policy, "8.8.8.8", 443) && allows(&policy, "8.8.8.8", 80));
    assert!(!allows(&policy, "9.9.9.9", 443) && !allows(&policy, "8.8.8.8", 444));
    assert!(!policy.allows("8.8.8.8".parse().unwrap(), 443, Protocol::Udp));
    assert!(policy.allows("2606:4700::1".parse().unwrap(), 53, Protocol::Udp));
    assert!(!allows(&policy, "::ffff:9.9.9.9", 443), "judged as the IPv4 address it is");
    assert!(policy.allows_port(443, Protocol::Tcp) && policy.allows_port(53, Protocol::Udp));
    assert!(!policy.allows_port(25, Protocol::Tcp) && !policy.allows_port(53, Protocol::Tcp));
}

#[test]
fn private_destinations_need_the_line_that_allows_them() {
    let closed: ExitPolicy = "accept 10.0.0.0/8:*".parse().unwrap();
    assert!(!allows(&closed, "10.1.1.1", 80));
    let open: ExitPolicy = "allow-private-destinations\naccept 10.0.0.0/8:*".parse().unwrap();
    assert!(allows(&open, "10.1.1.1", 80) && !allows(&open, "192.168.0.1", 80));
    assert!(open.to_string().starts_with("allow-private-destinations\n"));
}

#[test]
fn whole_families_are_refused_only_by_their_own_rules() {
    let half: ExitPolicy = "reject *6:*\naccept *:443".parse().unwrap();
    assert!(half.allows_port(443, Protocol::Tcp));
    let none: ExitPolicy = "reject *6:*\nreject *4:*\naccept *:443".parse().unwrap();
    assert!(!none.allows_port(443, Protocol::Tcp));
    let part: ExitPolicy = "reject 9.0.0.0/8:*\naccept *:443".parse().unwrap();
    assert!(part.allows_port(443, Protocol::Tcp));
}

#[test]
fn effective_rules_say_the_same_as_the_judgement() {
    for text in
        ["", "accept *:*", "allow-private-destinations\naccept *:1-99", "reject *4:*\naccept *:*"]
    {
        let policy: ExitPolicy = text.parse().unwrap();
        for address in ["8.8.8.8", "10.0.0.1", "2606::1", "fd00::1", "192.0.2.1", "9000::1"] {
            for port in [1, 99, 100, 443] {
                let address: IpAddr = address.parse().unwrap();
                let first = policy
                    .effective_rules()
                    .into_iter()
                    .find(|rule| rule.fits(address, port, Protocol::Tcp))
                    .unwrap();
                let expected = first.action == Action::Accept;
                assert_eq!(policy.allows(address, port, Protocol::Tcp), expected, "{address}");
            }
        }
    }
}

#[test]
fn text_goes_round_and_errors_have_their_line() {
    let text =
        "reject *4:25\naccept [2606:4700::]/32:53 udp\nreject 1.2.3.4/32:1-99 tcp\naccept *:*\n";
    let policy: ExitPolicy = text.parse().unwrap();
    assert_eq!(policy.to_string(), text);
    assert_eq!(policy.to_string().parse(), Ok(policy));
    for (bad, words) in [
        ("permit *:80", "accept or reject"),
        ("accept", "ADDRESS:PORT"),
        ("accept *", "ADDRESS:PORT"),
        ("accept *:80 sctp", "tcp or udp"),
        ("accept *:80 tcp now", "nothing may follow"),
        ("accept 1.2.3:80", "no address"),
        ("accept 2001:db8::/32:80", "brackets"),
        ("accept 1.2.3.4/33:80", "no address"),
        ("accept *:70000", "no ports"),
        ("accept *:90-80", "no ports"),
    ] {
        let error = format!("accept *:1\n{bad}").parse::<ExitPolicy>().unwrap_err().to_string();
        assert!(error.starts_with("line 2") && error.contains(words), "{bad}: {error}");
    }
    let many = "accept *:1\n".repeat(MAX_EXIT_RULES + 1);
    assert_eq!(many.parse::<ExitPolicy>(), Err(ExitPolicyError::TooMany(MAX_EXIT_RULES + 1)));
}
