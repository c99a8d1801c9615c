//! Where an exit lets traffic out: rules in order, the first that fits decides.
//!
//! Text, one rule a line, in the manner of Tor's: `accept *:443`,
//! `reject 10.0.0.0/8:*`, `reject [2001:db8::]/32:1-1023 udp`. `*4` and `*6`
//! mean all of one family; `tcp` or `udp` at the end narrows a rule to one
//! protocol; `#` starts a comment. Invariants: what no rule accepts is refused;
//! addresses that are not of the public internet (private, shared, loopback,
//! link-local, multicast, reserved) are refused before any rule, unless the
//! line `allow-private-destinations` stands in the file; an IPv4 address inside
//! an IPv6 one (mapped, NAT64) is judged as the IPv4 address it is. At most 64
//! rules, so that a policy stays below 2.5 KiB in a descriptor.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// Most rules of a policy.
pub const MAX_EXIT_RULES: usize = 64;
/// The line that lifts the refusal of private destinations.
const ALLOW_PRIVATE: &str = "allow-private-destinations";

/// What a rule does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    /// Lets it out.
    Accept,
    /// Refuses it.
    Reject,
}

/// What a rule may be narrowed to. ICMP echo and other protocols follow the
/// rules as UDP to port 0 would.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// Ports from first to last, both included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PortRange {
    /// First.
    pub first: u16,
    /// Last, not below the first.
    pub last: u16,
}

impl PortRange {
    /// Every port.
    pub const ALL: Self = Self { first: 0, last: u16::MAX };
}

/// One rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ExitRule {
    /// What it does.
    pub action: Action,
    /// To which addresses; `None`: all, of both families.
    pub prefix: Option<IpNet>,
    /// To which ports.
    pub ports: PortRange,
    /// With which protocol; `None`: any.
    pub protocol: Option<Protocol>,
}

/// Rules in order.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ExitPolicy {
    rules: Vec<ExitRule>,
    allow_private: bool,
}

/// Why a policy was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ExitPolicyError {
    /// A line is no rule.
    #[error("line {line}: `{text}`: {reason}")]
    Line {
        /// From 1.
        line: usize,
        /// The line, cut to 80 characters.
        text: String,
        /// What is wrong and what is allowed.
        reason: String,
    },
    /// Too many rules.
    #[error("the exit policy has {0} rules: {MAX_EXIT_RULES} is the most")]
    TooMany(usize),
    /// A range of ports that ends before it starts.
    #[error("the exit policy has a range of ports that ends before it starts")]
    Ports,
}

/// The default: everything on the public internet but mail servers' port 25.
impl Default for ExitPolicy {
    fn default() -> Self {
        let all = |action, ports| ExitRule { action, prefix: None, ports, protocol: None };
        Self {
            rules: vec![
                all(Action::Reject, PortRange { first: 25, last: 25 }),
                all(Action::Accept, PortRange::ALL),
            ],
            allow_private: false,
        }
    }
}

const fn v4(a: u8, b: u8, c: u8, length: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, 0), length)
}
const fn v6(a: u16, b: u16, length: u8) -> Ipv6Net {
    Ipv6Net::new_assert(Ipv6Addr::new(a, b, 0, 0, 0, 0, 0, 0), length)
}

/// IPv4 that is not the public internet (RFC 6890 and its registry).
static PRIVATE_V4: [Ipv4Net; 15] = [
    v4(0, 0, 0, 8),
    v4(10, 0, 0, 8),
    v4(100, 64, 0, 10),
    v4(127, 0, 0, 8),
    v4(169, 254, 0, 16),
    v4(172, 16, 0, 12),
    v4(192, 0, 0, 24),
    v4(192, 0, 2, 24),
    v4(192, 88, 99, 24),
    v4(192, 168, 0, 16),
    v4(198, 18, 0, 15),
    v4(198, 51, 100, 24),
    v4(203, 0, 113, 24),
    v4(224, 0, 0, 4),
    v4(240, 0, 0, 4),
];
/// IPv6 that is not: all but 2000::/3 (so ::1, ULA, link-local, multicast, and
/// IPv4 in IPv6), and of that what carries IPv4 (Teredo, 6to4) or documents.
static PRIVATE_V6: [Ipv6Net; 7] = [
    v6(0, 0, 3),
    v6(0x2001, 0, 23),
    v6(0x2001, 0xdb8, 32),
    v6(0x2002, 0, 16),
    v6(0x3fff, 0, 20),
    v6(0x4000, 0, 2),
    v6(0x8000, 0, 1),
];

/// The prefixes refused before any rule, as a firewall needs them. IPv4 in IPv6
/// is among them: whoever filters must judge it as IPv4 before.
pub fn private_prefixes() -> impl Iterator<Item = IpNet> {
    PRIVATE_V4.iter().copied().map(IpNet::V4).chain(PRIVATE_V6.iter().copied().map(IpNet::V6))
}

/// The IPv4 address inside a mapped (::ffff:0:0/96) or NAT64 (64:ff9b::/96,
/// RFC 6052) address; others as they are.
fn plain(address: IpAddr) -> IpAddr {
    let IpAddr::V6(v6) = address else { return address };
    let s = v6.segments();
    let mapped = s[..5] == [0; 5] && s[5] == 0xffff;
    let nat64 = s[..6] == [0x64, 0xff9b, 0, 0, 0, 0];
    if mapped || nat64 {
        let [a, b] = s[6].to_be_bytes();
        let [c, d] = s[7].to_be_bytes();
        Ipv4Addr::new(a, b, c, d).into()
    } else {
        address
    }
}

/// True for an address of the public internet.
pub fn is_public_destination(address: IpAddr) -> bool {
    match plain(address) {
        IpAddr::V4(v4) => !PRIVATE_V4.iter().any(|net| net.contains(&v4)),
        IpAddr::V6(v6) => !PRIVATE_V6.iter().any(|net| net.contains(&v6)),
    }
}

impl ExitRule {
    fn fits(&self, address: IpAddr, port: u16, protocol: Protocol) -> bool {
        self.prefix.is_none_or(|net| net.contains(&address))
            && (self.ports.first..=self.ports.last).contains(&port)
            && self.protocol.is_none_or(|only| only == protocol)
    }
}

impl ExitPolicy {
    /// A policy of these rules.
    ///
    /// # Errors
    /// When there are too many, or a range of ports ends before it starts.
    pub fn new(rules: Vec<ExitRule>, allow_private: bool) -> Result<Self, ExitPolicyError> {
        if rules.len() > MAX_EXIT_RULES {
            return Err(ExitPolicyError::TooMany(rules.len()));
        }
        if rules.iter().any(|rule| rule.ports.first > rule.ports.last) {
            return Err(ExitPolicyError::Ports);
        }
        Ok(Self { rules, allow_private })
    }

    /// The rules as written, without what is refused before them.
    pub fn rules(&self) -> &[ExitRule] {
        &self.rules
    }

    /// True when private destinations are left to the rules.
    pub fn allows_private(&self) -> bool {
        self.allow_private
    }

    /// All that decides, in order: the refusal of private destinations where it
    /// is in force, the rules, and the refusal of the rest.
    pub fn effective_rules(&self) -> Vec<ExitRule> {
        let reject = |prefix| ExitRule {
            action: Action::Reject,
            prefix,
            ports: PortRange::ALL,
            protocol: None,
        };
        let mut all = Vec::new();
        if !self.allow_private {
            all.extend(private_prefixes().map(|net| reject(Some(net))));
        }
        all.extend_from_slice(&self.rules);
        all.push(reject(None));
        all
    }

    /// Whether a packet may leave to this address and port. For protocols
    /// without ports: UDP and port 0.
    pub fn allows(&self, address: IpAddr, port: u16, protocol: Protocol) -> bool {
        let address = plain(address);
        if !self.allow_private && !is_public_destination(address) {
            return false;
        }
        let rule = self.rules.iter().find(|rule| rule.fits(address, port, protocol));
        rule.is_some_and(|rule| rule.action == Action::Accept)
    }

    /// Whether some public address may be reached at this port: what a choice of
    /// exits asks before the address is known. A rule for a part of the
    /// addresses counts only when it accepts.
    pub fn allows_port(&self, port: u16, protocol: Protocol) -> bool {
        let relevant = |rule: &&ExitRule| {
            (rule.ports.first..=rule.ports.last).contains(&port)
                && rule.protocol.is_none_or(|only| only == protocol)
                && (rule.action == Action::Accept
                    || rule.prefix.is_none_or(|net| net.prefix_len() == 0))
        };
        // Both families must be refused by their own rules to be refused whole.
        let (mut v4, mut v6) = (true, true);
        for rule in self.rules.iter().filter(relevant) {
            let (hits4, hits6) = match rule.prefix {
                None => (true, true),
                Some(IpNet::V4(_)) => (true, false),
                Some(IpNet::V6(_)) => (false, true),
            };
            match rule.action {
                Action::Accept if (hits4 && v4) || (hits6 && v6) => return true,
                Action::Accept => {}
                Action::Reject => {
                    v4 &= !hits4;
                    v6 &= !hits6;
                }
            }
        }
        false
    }
}

impl fmt::Display for ExitRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.action {
            Action::Accept => "accept ",
            Action::Reject => "reject ",
        })?;
        match self.prefix {
            None => f.write_str("*")?,
            Some(net) if net.prefix_len() == 0 => {
                f.write_str(if net.addr().is_ipv4() { "*4" } else { "*6" })?;
            }
            Some(IpNet::V4(net)) => write!(f, "{net}")?,
            Some(IpNet::V6(net)) => write!(f, "[{}]/{}", net.addr(), net.prefix_len())?,
        }
        match self.ports {
            PortRange::ALL => f.write_str(":*")?,
            PortRange { first, last } if first == last => write!(f, ":{first}")?,
            PortRange { first, last } => write!(f, ":{first}-{last}")?,
        }
        match self.protocol {
            None => Ok(()),
            Some(Protocol::Tcp) => f.write_str(" tcp"),
            Some(Protocol::Udp) => f.write_str(" udp"),
        }
    }
}

impl fmt::Display for ExitPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.allow_private {
            writeln!(f, "{ALLOW_PRIVATE}")?;
        }
        self.rules.iter().try_for_each(|rule| writeln!(f, "{rule}"))
    }
}

fn parse_rule(line: &str) -> Result<ExitRule, String> {
    let mut words = line.split_whitespace();
    let action = match words.next() {
        Some("accept") => Action::Accept,
        Some("reject") => Action::Reject,
        _ => return Err("a rule starts with accept or reject".into()),
    };
    let target = words.next().ok_or("a rule needs ADDRESS:PORT, such as *:443")?;
    let protocol = match words.next() {
        None => None,
        Some("tcp") => Some(Protocol::Tcp),
        Some("udp") => Some(Protocol::Udp),
        Some(_) => return Err("after ADDRESS:PORT only tcp or udp may follow".into()),
    };
    if words.next().is_some() {
        return Err("nothing may follow the protocol".into());
    }
    let (address, ports) = target.rsplit_once(':').ok_or("a rule needs ADDRESS:PORT")?;
    Ok(ExitRule { action, prefix: parse_prefix(address)?, ports: parse_ports(ports)?, protocol })
}

fn parse_prefix(text: &str) -> Result<Option<IpNet>, String> {
    match text {
        "*" => return Ok(None),
        "*4" => return Ok(Some(IpNet::V4(Ipv4Net::default()))),
        "*6" => return Ok(Some(IpNet::V6(Ipv6Net::default()))),
        _ => {}
    }
    let bad = || {
        format!(
            "`{text}` is no address: use *, *4, *6, 192.0.2.0/24 or [2001:db8::]/32 (IPv6 in \
             brackets)"
        )
    };
    let (address, length) = match text.rsplit_once('/') {
        Some((address, length)) => (address, Some(length.parse::<u8>().map_err(|_| bad())?)),
        None => (text, None),
    };
    let address: IpAddr = match address.strip_prefix('[').and_then(|a| a.strip_suffix(']')) {
        Some(inner) => inner.parse::<Ipv6Addr>().map_err(|_| bad())?.into(),
        None => address.parse::<Ipv4Addr>().map_err(|_| bad())?.into(),
    };
    let most = if address.is_ipv4() { 32 } else { 128 };
    let net = IpNet::new(address, length.unwrap_or(most)).map_err(|_| bad())?;
    Ok(Some(net.trunc()))
}

fn parse_ports(text: &str) -> Result<PortRange, String> {
    if text == "*" {
        return Ok(PortRange::ALL);
    }
    let bad = || format!("`{text}` are no ports: use *, 443 or 6660-6669");
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let port = |s: &str| s.parse::<u16>().map_err(|_| bad());
    let (first, last) = (port(first)?, port(last)?);
    if first > last { Err(bad()) } else { Ok(PortRange { first, last }) }
}

impl FromStr for ExitPolicy {
    type Err = ExitPolicyError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut rules = Vec::new();
        let mut allow_private = false;
        for (number, line) in text.lines().enumerate() {
            let content = line.split('#').next().unwrap_or_default().trim();
            if content.is_empty() {
                continue;
            }
            if content == ALLOW_PRIVATE {
                allow_private = true;
                continue;
            }
            let rule = parse_rule(content).map_err(|reason| ExitPolicyError::Line {
                line: number + 1,
                text: content.chars().take(80).collect(),
                reason,
            })?;
            rules.push(rule);
        }
        Self::new(rules, allow_private)
    }
}

super::text_serde!(ExitPolicy);

#[cfg(test)]
mod tests;
