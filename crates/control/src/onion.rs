//! The onion section of a descriptor: what a node does for paths of others.
//!
//! In: the owner's settings, or CBOR from the network. Out: an [`OnionSection`]
//! that respects every bound. Invariants: absent from a descriptor whose owner
//! has no role; at most [`MAX_ONION_KEYS`] keys, each with a life of at most
//! [`MAX_KEY_LIFE`]; an unknown country or role bit (of a later version) reads
//! as none, since an old node must not lose a member over it, while values that
//! no version can mean are refused. All of it is the owner's claim: whether a
//! node is where it says and carries what it says is for measurements to tell.
//! Deliberately not here: which nodes make a path (`proto::selection`).

use minicbor::decode::Error as DecodeError;
use minicbor::encode::{Error as EncodeError, Write};
use minicbor::{Decode, Decoder, Encode, Encoder};
use warren_types::{
    Action, Bandwidth, City, Country, ExitPolicy, ExitRule, Family, MAX_EXIT_RULES, OnionKey,
    Place, PortRange, Protocol, Roles,
};

use crate::cbor;

/// Most onion keys of one node at a time: the present one and the last.
pub const MAX_ONION_KEYS: usize = 2;
/// Longest life of an onion key, seconds: three days.
pub const MAX_KEY_LIFE: u64 = 3 * 86_400;

/// One public key of circuit handshakes and when it is good.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub struct OnionKeyRecord {
    /// The key.
    #[cbor(n(0), with = "key")]
    pub key: OnionKey,
    /// From when, seconds since 1970.
    #[n(1)]
    pub not_before: u64,
    /// Until when, seconds since 1970; that second is no longer good.
    #[n(2)]
    pub not_after: u64,
}

impl OnionKeyRecord {
    /// True while the key is good.
    pub fn is_good(&self, now: u64) -> bool {
        (self.not_before..self.not_after).contains(&now)
    }
}

/// What a node with a role says about it.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct OnionSection {
    /// What it does; at least one thing in a descriptor that was taken in, as
    /// far as this version knows them.
    #[cbor(n(0), with = "roles")]
    pub roles: Roles,
    /// Where it is, if it says so.
    #[cbor(n(1), with = "place", default, skip_if = "Option::is_none")]
    pub place: Option<Place>,
    /// Who runs it, if it says so.
    #[cbor(n(2), with = "family", default, skip_if = "Option::is_none")]
    pub family: Option<Family>,
    /// What it gives to paths of others; absent: not limited.
    #[cbor(n(3), with = "bandwidth", default, skip_if = "Option::is_none")]
    pub bandwidth: Option<Bandwidth>,
    /// Where it lets traffic out, for an exit; absent: the default policy.
    #[cbor(n(4), with = "policy", default, skip_if = "Option::is_none")]
    pub exit_policy: Option<ExitPolicy>,
    /// True while it takes no new sessions and waits for the old to end.
    #[cbor(n(5), default, skip_if = "is_false")]
    pub draining: bool,
    /// Its onion keys.
    #[n(6)]
    pub keys: Vec<OnionKeyRecord>,
    /// When it started, seconds since 1970.
    #[n(7)]
    pub since: u64,
}

fn is_false(value: &bool) -> bool {
    !value
}

impl OnionSection {
    /// The key that a new circuit should use: of the good ones the youngest.
    pub fn key_at(&self, now: u64) -> Option<&OnionKeyRecord> {
        self.keys.iter().filter(|key| key.is_good(now)).max_by_key(|key| key.not_before)
    }

    /// The exit policy in force.
    pub fn policy(&self) -> ExitPolicy {
        self.exit_policy.clone().unwrap_or_default()
    }

    /// Seconds since it started.
    pub fn uptime(&self, now: u64) -> u64 {
        now.saturating_sub(self.since)
    }

    /// Checks what CBOR cannot. `latest`: the last second that a statement about
    /// the past may name.
    pub(crate) fn check(&self, latest: u64) -> Result<(), &'static str> {
        if self.keys.len() > MAX_ONION_KEYS {
            return Err("more than two onion keys");
        }
        for key in &self.keys {
            if key.not_before >= key.not_after {
                return Err("an onion key ends before it begins");
            }
            if key.not_after - key.not_before > MAX_KEY_LIFE {
                return Err("an onion key lives longer than three days");
            }
            if key.key.0 == [0; 32] {
                return Err("an onion key is zero");
            }
        }
        if self.since > latest {
            return Err("the node started after it said so");
        }
        Ok(())
    }
}

mod key {
    use super::*;
    pub(super) fn encode<C, W: Write>(
        value: &OnionKey,
        e: &mut Encoder<W>,
        _: &mut C,
    ) -> Result<(), EncodeError<W::Error>> {
        e.bytes(&value.0)?.ok()
    }
    pub(super) fn decode<C>(d: &mut Decoder<'_>, _: &mut C) -> Result<OnionKey, DecodeError> {
        let bytes: Result<[u8; 32], _> = d.bytes()?.try_into();
        bytes.map(OnionKey).map_err(|_| DecodeError::message("an onion key has 32 bytes"))
    }
}

mod roles {
    use super::*;
    pub(super) fn encode<C, W: Write>(
        value: &Roles,
        e: &mut Encoder<W>,
        _: &mut C,
    ) -> Result<(), EncodeError<W::Error>> {
        e.u8(value.bits())?.ok()
    }
    pub(super) fn decode<C>(d: &mut Decoder<'_>, _: &mut C) -> Result<Roles, DecodeError> {
        d.u8().map(Roles::from_bits)
    }
}

mod place {
    use super::*;
    /// `[country]` or `[country, city]`.
    pub(super) fn encode<C, W: Write>(
        value: &Option<Place>,
        e: &mut Encoder<W>,
        _: &mut C,
    ) -> Result<(), EncodeError<W::Error>> {
        let Some(place) = value else { return e.null()?.ok() };
        match &place.city {
            Some(city) => e.array(2)?.str(place.country.code())?.str(city.as_str())?.ok(),
            None => e.array(1)?.str(place.country.code())?.ok(),
        }
    }
    pub(super) fn decode<C>(d: &mut Decoder<'_>, _: &mut C) -> Result<Option<Place>, DecodeError> {
        let parts = d.array()?;
        if !matches!(parts, Some(1 | 2)) {
            return Err(DecodeError::message("a place is [country] or [country, city]"));
        }
        let code = d.str()?;
        if code.len() != 2 || !code.bytes().all(|b| b.is_ascii_lowercase()) {
            return Err(DecodeError::message("a country has two lower-case letters"));
        }
        let city = match parts {
            Some(2) => {
                let text = d.str()?;
                let city: City = text.parse().map_err(|_| DecodeError::message("bad city"))?;
                if city.as_str() != text {
                    return Err(DecodeError::message("bad city"));
                }
                Some(city)
            }
            _ => None,
        };
        // A code that was assigned after this version was made.
        let known = Country::all().find(|country| country.code() == code);
        Ok(known.map(|country| Place { country, city }))
    }
}

mod family {
    use super::*;
    pub(super) fn encode<C, W: Write>(
        value: &Option<Family>,
        e: &mut Encoder<W>,
        _: &mut C,
    ) -> Result<(), EncodeError<W::Error>> {
        match value {
            Some(family) => e.str(family.as_str())?.ok(),
            None => e.null()?.ok(),
        }
    }
    pub(super) fn decode<C>(d: &mut Decoder<'_>, _: &mut C) -> Result<Option<Family>, DecodeError> {
        let text = d.str()?;
        let family: Family = text.parse().map_err(|_| DecodeError::message("bad family"))?;
        // Compared as written: only the canonical form.
        if family.as_str() == text {
            Ok(Some(family))
        } else {
            Err(DecodeError::message("bad family"))
        }
    }
}

mod bandwidth {
    use super::*;
    pub(super) fn encode<C, W: Write>(
        value: &Option<Bandwidth>,
        e: &mut Encoder<W>,
        _: &mut C,
    ) -> Result<(), EncodeError<W::Error>> {
        match value {
            Some(bandwidth) => e.u64(bandwidth.bits_per_second())?.ok(),
            None => e.null()?.ok(),
        }
    }
    pub(super) fn decode<C>(
        d: &mut Decoder<'_>,
        _: &mut C,
    ) -> Result<Option<Bandwidth>, DecodeError> {
        Bandwidth::from_bits_per_second(d.u64()?)
            .map(Some)
            .map_err(|_| DecodeError::message("a bandwidth is out of range"))
    }
}

/// `[allow private, [rule, …]]`; a rule is `[flags, prefix or null, first port,
/// last port]` with the flags 1 accept, 2 TCP only, 4 UDP only.
mod policy {
    use super::*;

    const ACCEPT: u8 = 1;
    const TCP: u8 = 2;
    const UDP: u8 = 4;

    pub(super) fn encode<C, W: Write>(
        value: &Option<ExitPolicy>,
        e: &mut Encoder<W>,
        ctx: &mut C,
    ) -> Result<(), EncodeError<W::Error>> {
        let Some(policy) = value else { return e.null()?.ok() };
        e.array(2)?.bool(policy.allows_private())?;
        e.array(policy.rules().len() as u64)?;
        for rule in policy.rules() {
            let mut flags = 0;
            if rule.action == Action::Accept {
                flags |= ACCEPT;
            }
            match rule.protocol {
                Some(Protocol::Tcp) => flags |= TCP,
                Some(Protocol::Udp) => flags |= UDP,
                None => {}
            }
            e.array(4)?.u8(flags)?;
            match &rule.prefix {
                Some(prefix) => cbor::prefix::encode(prefix, e, ctx)?,
                None => {
                    e.null()?;
                }
            }
            e.u16(rule.ports.first)?.u16(rule.ports.last)?;
        }
        Ok(())
    }

    pub(super) fn decode<C>(
        d: &mut Decoder<'_>,
        ctx: &mut C,
    ) -> Result<Option<ExitPolicy>, DecodeError> {
        if d.array()? != Some(2) {
            return Err(DecodeError::message("an exit policy is [private, rules]"));
        }
        let private = d.bool()?;
        let count = d
            .array()?
            .filter(|n| *n <= MAX_EXIT_RULES as u64)
            .ok_or_else(|| DecodeError::message("an exit policy has too many rules"))?;
        let rules: Result<Vec<ExitRule>, DecodeError> =
            (0..count).map(|_| decode_rule(d, ctx)).collect();
        ExitPolicy::new(rules?, private)
            .map(Some)
            .map_err(|_| DecodeError::message("an exit policy has a bad range of ports"))
    }

    fn decode_rule<C>(d: &mut Decoder<'_>, ctx: &mut C) -> Result<ExitRule, DecodeError> {
        if d.array()? != Some(4) {
            return Err(DecodeError::message("a rule is [flags, prefix, first, last]"));
        }
        let flags = d.u8()?;
        let action = if flags & ACCEPT == 0 { Action::Reject } else { Action::Accept };
        let protocol = match flags & !ACCEPT {
            0 => None,
            TCP => Some(Protocol::Tcp),
            UDP => Some(Protocol::Udp),
            _ => return Err(DecodeError::message("a rule has unknown flags")),
        };
        let prefix = if d.datatype()? == minicbor::data::Type::Null {
            d.null()?;
            None
        } else {
            Some(cbor::prefix::decode(d, ctx)?)
        };
        let ports = PortRange { first: d.u16()?, last: d.u16()? };
        Ok(ExitRule { action, prefix, ports, protocol })
    }
}

#[cfg(test)]
mod tests;
