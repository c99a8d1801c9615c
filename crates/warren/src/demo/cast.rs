//! Who takes part: twelve machines around the world, and what each does.
//!
//! Invariant: every region in which an onion network has to have nodes is
//! there (North America, Europe, Asia, Oceania, South America), and roles are
//! spread so that a path of three hops to an exit has several others beside it
//! that share neither its entry nor its relay.

use warren_lab::wan::Region;

/// One machine.
#[derive(Debug, Clone, Copy)]
pub(super) struct Member {
    /// Name in the network.
    pub name: &'static str,
    /// Where it is, for the delays of the emulated WAN.
    pub region: Region,
    /// Its country, as `--region` takes it.
    pub country: &'static str,
    /// Its city, as `--city` takes it.
    pub city: &'static str,
    /// What it does for the paths of others, as `--roles` takes it; empty for
    /// the user's own machine.
    pub roles: &'static str,
}

const fn member(
    name: &'static str,
    region: Region,
    country: &'static str,
    city: &'static str,
    roles: &'static str,
) -> Member {
    Member { name, region, country, city, roles }
}

/// All of them. The first founds the network; the first two are neighbours,
/// between which speed is measured; the last is the user's own.
#[rustfmt::skip]
pub(super) const CAST: [Member; 12] = [
    member("london",    Region::Uk,          "gb", "lon", "exit"),
    member("amsterdam", Region::Netherlands, "nl", "ams", "relay"),
    member("virginia",  Region::UsEast,      "us", "iad", "entry,relay"),
    member("saopaulo",  Region::Brazil,      "br", "sao", "relay"),
    member("tokyo",     Region::Japan,       "jp", "tyo", "entry,relay"),
    member("montreal",  Region::Canada,      "ca", "yul", "entry,relay"),
    member("paris",     Region::France,      "fr", "par", "entry,relay"),
    member("frankfurt", Region::Germany,     "de", "fra", "exit"),
    member("singapore", Region::Singapore,   "sg", "sin", "exit"),
    member("hongkong",  Region::HongKong,    "hk", "hkg", "relay"),
    member("sydney",    Region::Australia,   "au", "syd", "relay"),
    member("laptop",    Region::UsWest,      "us", "pdx", ""),
];

/// Places in [`CAST`].
pub(super) const LONDON: usize = 0;
pub(super) const AMSTERDAM: usize = 1;
pub(super) const VIRGINIA: usize = 2;
pub(super) const SAOPAULO: usize = 3;
pub(super) const TOKYO: usize = 4;
pub(super) const FRANKFURT: usize = 7;
pub(super) const SINGAPORE: usize = 8;
pub(super) const LAPTOP: usize = 11;

/// The place of a name.
pub(super) fn place(name: &str) -> Option<usize> {
    CAST.iter().position(|member| member.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_what_they_are_called() {
        for (at, name) in [
            (LONDON, "london"),
            (AMSTERDAM, "amsterdam"),
            (VIRGINIA, "virginia"),
            (SAOPAULO, "saopaulo"),
            (TOKYO, "tokyo"),
            (FRANKFURT, "frankfurt"),
            (SINGAPORE, "singapore"),
            (LAPTOP, "laptop"),
        ] {
            assert_eq!((CAST[at].name, place(name)), (name, Some(at)));
        }
        assert_eq!(place("atlantis"), None);
    }

    #[test]
    fn every_region_has_a_machine_and_paths_have_spares() {
        for region in Region::ALL {
            assert!(CAST.iter().any(|member| member.region == region), "{region:?}");
        }
        let with = |role| CAST.iter().filter(move |m| m.roles.split(',').any(|r| r == role));
        assert!(with("entry").count() >= 4 && with("relay").count() >= 6);
        assert!(with("exit").count() >= 3);
        for member in CAST {
            member.country.parse::<warren_types::Country>().unwrap();
            for role in member.roles.split(',').filter(|role| !role.is_empty()) {
                role.parse::<warren_types::Role>().unwrap();
            }
        }
        // The founder is killed, and so is a relay: not the same one.
        assert!(!CAST[LONDON].roles.contains("relay"));
        // Nor is it who admits in the founder's place.
        assert!(!CAST[SINGAPORE].roles.contains("relay"));
        assert!(CAST[LAPTOP].roles.is_empty() && CAST[FRANKFURT].country == "de");
    }
}
