//! Words of the onion network: what nodes do in it, where they are, what they
//! can carry and where they let traffic out.

mod bandwidth;
mod cities;
mod countries;
mod exit_policy;
mod family;
mod key;
mod place;
mod region;
mod role;

pub use bandwidth::{Bandwidth, ParseBandwidthError};
pub use exit_policy::{
    Action, ExitPolicy, ExitPolicyError, ExitRule, MAX_EXIT_RULES, PortRange, Protocol,
    is_public_destination, private_prefixes,
};
pub use family::{Family, ParseFamilyError};
pub use key::OnionKey;
pub use place::{City, Coordinates, Country, MAX_CITY, ParsePlaceError, Place};
pub use region::{ParseRegionError, Region};
pub use role::{ParseRoleError, Role, Roles};

/// Serde by the printed form.
macro_rules! text_serde {
    ($type:ty) => {
        impl serde::Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.collect_str(self)
            }
        }
        impl<'de> serde::Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(d)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}
use text_serde;
