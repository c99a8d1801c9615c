//! What a node does in the onion network.

use std::fmt;
use std::str::FromStr;

/// One thing a node does for paths of others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// First hop: sees who connects, not where to.
    Entry,
    /// Between: sees neither.
    Relay,
    /// Last hop: sees where to, not who.
    Exit,
}

/// The text names no role.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no role: use entry, relay and exit, separated by commas, or none")]
pub struct ParseRoleError(String);

impl Role {
    /// All of them, in the order of a path.
    pub const ALL: [Self; 3] = [Self::Entry, Self::Relay, Self::Exit];

    /// The word on the command line and in the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Entry => "entry",
            Self::Relay => "relay",
            Self::Exit => "exit",
        }
    }

    fn bit(self) -> u8 {
        match self {
            Self::Entry => 1,
            Self::Relay => 2,
            Self::Exit => 4,
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Role {
    type Err = ParseRoleError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let word = text.trim().to_ascii_lowercase();
        Self::ALL
            .into_iter()
            .find(|role| role.as_str() == word)
            .ok_or_else(|| ParseRoleError(text.chars().take(40).collect()))
    }
}

super::text_serde!(Role);

/// A set of roles; empty for a node that carries nothing for others' paths.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Roles(u8);

impl Roles {
    /// No role.
    pub const NONE: Self = Self(0);

    /// True when `role` is among them.
    pub fn has(self, role: Role) -> bool {
        self.0 & role.bit() != 0
    }

    /// With one more.
    #[must_use]
    pub fn with(self, role: Role) -> Self {
        Self(self.0 | role.bit())
    }

    /// True for none.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The roles, in the order of a path.
    pub fn iter(self) -> impl Iterator<Item = Role> {
        Role::ALL.into_iter().filter(move |role| self.has(*role))
    }

    /// As it travels: 1 entry, 2 relay, 4 exit, added up.
    pub fn bits(self) -> u8 {
        self.0
    }

    /// The reverse; bits of later versions are left out.
    pub fn from_bits(bits: u8) -> Self {
        Self(bits & 7)
    }
}

impl FromIterator<Role> for Roles {
    fn from_iter<T: IntoIterator<Item = Role>>(roles: T) -> Self {
        roles.into_iter().fold(Self::NONE, Self::with)
    }
}

impl fmt::Display for Roles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return f.write_str("none");
        }
        let words: Vec<&str> = self.iter().map(Role::as_str).collect();
        f.write_str(&words.join(","))
    }
}

impl fmt::Debug for Roles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Roles({self})")
    }
}

impl FromStr for Roles {
    type Err = ParseRoleError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.trim().eq_ignore_ascii_case("none") {
            return Ok(Self::NONE);
        }
        text.split(',').map(Role::from_str).collect()
    }
}

impl serde::Serialize for Roles {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_seq(self.iter())
    }
}

impl<'de> serde::Deserialize<'de> for Roles {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        Vec::<Role>::deserialize(d).map(|roles| roles.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_print_in_the_order_of_a_path() {
        let roles: Roles = "exit, ENTRY,exit".parse().unwrap();
        assert_eq!(roles.to_string(), "entry,exit");
        assert!(roles.has(Role::Exit) && !roles.has(Role::Relay));
        assert_eq!(roles.to_string().parse(), Ok(roles));
        assert_eq!("none".parse(), Ok(Roles::NONE));
        assert_eq!(Roles::from_bits(roles.bits() | 0xf0), roles);
        for bad in ["", "entry,", "guard", "entry exit", "none,exit"] {
            let error = bad.parse::<Roles>().unwrap_err().to_string();
            assert!(error.contains("entry, relay and exit"), "{error}");
        }
    }
}
