//! Policy routing rules: which routing table answers for which packets.
//!
//! In: [`Rule`]s. Out: the kernel's acknowledgement, or the rules that carry
//! [`RULE_PROTOCOL`], the origin this program gives its own. Invariants: only
//! such rules are listed and deleted. Deliberately not here: which rules there
//! ought to be.

use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL};
use netlink_packet_route::route::{RouteAttribute, RouteHeader, RouteMessage, RouteProtocol};
use netlink_packet_route::rule::{
    RuleAction, RuleAttribute, RuleFlags, RuleHeader, RuleMessage, RuleUidRange,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::messages::interface_of;
use super::{Netlink, NetlinkError};

/// Origin (`RTPROT_*`) of the rules this program makes: a free number, by which
/// they are recognised after a crash.
pub const RULE_PROTOCOL: u8 = 119;

/// `RT_TABLE_LOCAL`: tables up to here are the system's.
const LAST_SYSTEM_TABLE: u32 = 255;

/// Address family of a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both.
    pub const BOTH: [Self; 2] = [Self::V4, Self::V6];

    /// That of an address.
    #[must_use]
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    fn number(self) -> AddressFamily {
        match self {
            Self::V4 => AddressFamily::Inet,
            Self::V6 => AddressFamily::Inet6,
        }
    }
}

/// What a rule does with the packets it matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verdict {
    /// Look into this routing table; go on with the next rule if it has no
    /// route.
    Table(u32),
    /// Go on with the rule of this priority, which must be larger.
    Goto(u32),
    /// Go on with the next rule: a target for [`Verdict::Goto`].
    Nothing,
}

/// A policy routing rule. A property that is `None` matches every packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rule {
    /// Family.
    pub family: Family,
    /// Place among the rules, the smallest first.
    pub priority: u32,
    /// What to do.
    pub verdict: Verdict,
    /// Packets with this mark.
    pub mark: Option<u32>,
    /// Packets from this prefix.
    pub source: Option<IpNet>,
    /// Packets to this prefix.
    pub destination: Option<IpNet>,
    /// Packets of sockets of these users, first and last.
    pub users: Option<(u32, u32)>,
    /// Routes of at most this prefix length do not count: 0 leaves out default
    /// routes.
    pub suppress_prefix: Option<u32>,
}

impl Rule {
    /// A rule for all packets.
    #[must_use]
    pub fn all(family: Family, priority: u32, verdict: Verdict) -> Self {
        Self {
            family,
            priority,
            verdict,
            mark: None,
            source: None,
            destination: None,
            users: None,
            suppress_prefix: None,
        }
    }
}

fn message_of(rule: &Rule) -> RuleMessage {
    let mut header = RuleHeader { family: rule.family.number(), ..RuleHeader::default() };
    let mut attributes = vec![
        RuleAttribute::Priority(rule.priority),
        RuleAttribute::Protocol(RouteProtocol::from(RULE_PROTOCOL)),
    ];
    match rule.verdict {
        Verdict::Table(table) => {
            header.action = RuleAction::ToTable;
            attributes.push(RuleAttribute::Table(table));
        }
        Verdict::Goto(to) => {
            header.action = RuleAction::Goto;
            attributes.push(RuleAttribute::Goto(to));
        }
        Verdict::Nothing => header.action = RuleAction::Nop,
    }
    if let Some(mark) = rule.mark {
        attributes.push(RuleAttribute::FwMark(mark));
        attributes.push(RuleAttribute::FwMask(u32::MAX));
    }
    if let Some(from) = rule.source {
        header.src_len = from.prefix_len();
        attributes.push(RuleAttribute::Source(from.network()));
    }
    if let Some(to) = rule.destination {
        header.dst_len = to.prefix_len();
        attributes.push(RuleAttribute::Destination(to.network()));
    }
    if let Some((start, end)) = rule.users {
        attributes.push(RuleAttribute::UidRange(RuleUidRange { start, end }));
    }
    attributes.extend(rule.suppress_prefix.map(RuleAttribute::SuppressPrefixLen));
    let mut message = RuleMessage::default();
    message.header = header;
    message.attributes = attributes;
    message
}

/// The rule a message tells of, if this program made it.
fn rule_of(message: &RuleMessage) -> Option<Rule> {
    let family = match message.header.family {
        AddressFamily::Inet => Family::V4,
        AddressFamily::Inet6 => Family::V6,
        _ => return None,
    };
    // Rules of inverted sense are not ours.
    if message.header.flags.contains(RuleFlags::Invert) {
        return None;
    }
    let mut rule = Rule::all(family, 0, Verdict::Nothing);
    let (mut ours, mut table, mut goto) = (false, None, None);
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::Protocol(origin) => ours = u8::from(*origin) == RULE_PROTOCOL,
            RuleAttribute::Priority(priority) => rule.priority = *priority,
            RuleAttribute::Table(number) => table = Some(*number),
            RuleAttribute::Goto(to) => goto = Some(*to),
            RuleAttribute::FwMark(mark) => rule.mark = Some(*mark).filter(|mark| *mark != 0),
            RuleAttribute::Source(from) => {
                rule.source = IpNet::new(*from, message.header.src_len).ok();
            }
            RuleAttribute::Destination(to) => {
                rule.destination = IpNet::new(*to, message.header.dst_len).ok();
            }
            RuleAttribute::UidRange(range) => rule.users = Some((range.start, range.end)),
            // The kernel's way to say "none" is all ones.
            RuleAttribute::SuppressPrefixLen(length) => {
                rule.suppress_prefix = Some(*length).filter(|length| *length != u32::MAX);
            }
            _ => {}
        }
    }
    rule.verdict = match message.header.action {
        RuleAction::ToTable => Verdict::Table(table?),
        RuleAction::Goto => Verdict::Goto(goto.unwrap_or(0)),
        _ => Verdict::Nothing,
    };
    ours.then_some(rule)
}

impl Netlink {
    /// Adds a rule.
    ///
    /// # Errors
    /// [`NetlinkError::Exists`] when there is one like it.
    pub fn add_rule(&mut self, rule: &Rule) -> Result<(), NetlinkError> {
        self.change(
            &format!("add routing rule {}", rule.priority),
            RouteNetlinkMessage::NewRule(message_of(rule)),
            NLM_F_CREATE | NLM_F_EXCL,
        )
    }

    /// Removes a rule.
    ///
    /// # Errors
    /// When it is not there.
    pub fn delete_rule(&mut self, rule: &Rule) -> Result<(), NetlinkError> {
        self.change(
            &format!("delete routing rule {}", rule.priority),
            RouteNetlinkMessage::DelRule(message_of(rule)),
            0,
        )
    }

    /// The rules that this program made, now or before.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn own_rules(&mut self) -> Result<Vec<Rule>, NetlinkError> {
        let answers = self.of_both("list routing rules", |family| {
            let mut message = RuleMessage::default();
            message.header.family = family;
            RouteNetlinkMessage::GetRule(message)
        })?;
        let rule = |answer: &RouteNetlinkMessage| match answer {
            RouteNetlinkMessage::NewRule(rule) => rule_of(rule),
            _ => None,
        };
        Ok(answers.iter().filter_map(rule).collect())
    }

    /// Removes all routes of a table that is not one of the system's.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn flush_table(&mut self, table: u32) -> Result<(), NetlinkError> {
        if table <= LAST_SYSTEM_TABLE {
            return Ok(());
        }
        let mut routes = self.routes()?;
        routes.retain(|route| route.attributes.contains(&RouteAttribute::Table(table)));
        for route in routes {
            self.change("delete route", RouteNetlinkMessage::DelRoute(route), 0)?;
        }
        Ok(())
    }

    /// Interfaces that the main table's default routes lead out of.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn default_interfaces(&mut self) -> Result<Vec<u32>, NetlinkError> {
        let mut routes = self.routes()?;
        routes.retain(|route| {
            route.header.destination_prefix_length == 0
                && route.header.table == RouteHeader::RT_TABLE_MAIN
        });
        let mut found: Vec<u32> = routes.iter().filter_map(interface_of).collect();
        found.sort_unstable();
        found.dedup();
        Ok(found)
    }

    /// The routes of all tables.
    fn routes(&mut self) -> Result<Vec<RouteMessage>, NetlinkError> {
        let answers = self.of_both("list routes", |family| {
            let mut message = RouteMessage::default();
            message.header.address_family = family;
            RouteNetlinkMessage::GetRoute(message)
        })?;
        let route = |answer| match answer {
            RouteNetlinkMessage::NewRoute(route) => Some(route),
            _ => None,
        };
        Ok(answers.into_iter().filter_map(route).collect())
    }

    /// What there is of either family.
    fn of_both(
        &mut self,
        request: &str,
        question: impl Fn(AddressFamily) -> RouteNetlinkMessage,
    ) -> Result<Vec<RouteNetlinkMessage>, NetlinkError> {
        let mut all = Vec::new();
        for family in Family::BOTH {
            match self.request(request, question(family.number()), NLM_F_DUMP) {
                // A kernel without IPv6 has nothing of it.
                Err(NetlinkError::Refused { .. }) if family == Family::V6 => {}
                answers => all.extend(answers?),
            }
        }
        Ok(all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::Route;
    use crate::netns::{NetNamespace, is_privileged};

    #[test]
    fn rules_come_back_as_they_were_made() {
        if !is_privileged() {
            eprintln!("SKIPPED: no privilege for network namespaces");
            return;
        }
        let host = NetNamespace::create().unwrap();
        let mut netlink = host.netlink().unwrap();
        let mut made = Vec::new();
        for family in Family::BOTH {
            let to = match family {
                Family::V4 => "10.0.0.0/8",
                Family::V6 => "fd00::/8",
            };
            made.extend([
                Rule { mark: Some(7), ..Rule::all(family, 100, Verdict::Goto(200)) },
                Rule {
                    source: Some(to.parse().unwrap()),
                    ..Rule::all(family, 105, Verdict::Goto(200))
                },
                Rule {
                    destination: Some(to.parse().unwrap()),
                    ..Rule::all(family, 110, Verdict::Goto(200))
                },
                Rule { users: Some((1000, 1001)), ..Rule::all(family, 120, Verdict::Table(9000)) },
                Rule { suppress_prefix: Some(0), ..Rule::all(family, 130, Verdict::Table(254)) },
                Rule::all(family, 200, Verdict::Nothing),
            ]);
        }
        for rule in &made {
            netlink.add_rule(rule).unwrap();
        }
        assert!(matches!(netlink.add_rule(&made[0]), Err(NetlinkError::Exists { .. })));
        assert_eq!(netlink.own_rules().unwrap(), made);

        let index = netlink.link_index("lo").unwrap();
        for all in ["0.0.0.0/0", "::/0"] {
            let mut route = Route::direct(all.parse().unwrap(), index);
            route.table = Some(0x7761_7272);
            route.mtu = Some(1280);
            route.lock_mtu = true;
            netlink.add_route(&route).unwrap();
        }
        assert_eq!(netlink.default_interfaces().unwrap(), Vec::<u32>::new());
        netlink.flush_table(0x7761_7272).unwrap();
        for rule in &made {
            netlink.delete_rule(rule).unwrap();
        }
        assert_eq!(netlink.own_rules().unwrap(), Vec::new());
    }
}
