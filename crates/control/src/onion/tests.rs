//! What goes round, what is tolerated and what is refused.

use proptest::prelude::*;
use warren_types::Role;

use super::*;

const NOW: u64 = 1_800_000_000;

fn section() -> OnionSection {
    OnionSection {
        roles: Roles::NONE.with(Role::Entry).with(Role::Exit),
        place: Some("de-fra".parse().unwrap()),
        family: Some("example.org".parse().unwrap()),
        bandwidth: Some("500mbit".parse().unwrap()),
        exit_policy: Some(
            "reject *4:25\naccept [2606:4700::]/32:53 udp\naccept *:1-1023 tcp".parse().unwrap(),
        ),
        draining: true,
        keys: vec![
            OnionKeyRecord { key: OnionKey([3; 32]), not_before: NOW - 86_400, not_after: NOW + 9 },
            OnionKeyRecord { key: OnionKey([4; 32]), not_before: NOW, not_after: NOW + 172_800 },
        ],
        since: NOW - 5,
    }
}

/// The section above as in docs/protocol.md.
const SECTION: &str = "a80005018262646563667261026b6578616d706c652e6f7267031a1dcd65000482f4838400824400000000001819181984058250260647000000000000000000000000001820183518358403f6011903ff05f5068283582003030303030303030303030303030303030303030303030303030303030303031a6b4880801a6b49d20983582004040404040404040404040404040404040404040404040404040404040404041a6b49d2001a6b4c7500071a6b49d1fb";

fn plain() -> OnionSection {
    OnionSection {
        roles: Roles::NONE.with(Role::Relay),
        place: None,
        family: None,
        bandwidth: None,
        exit_policy: None,
        draining: false,
        keys: Vec::new(),
        since: 0,
    }
}

fn round(section: &OnionSection) -> OnionSection {
    cbor::from_slice(&cbor::to_vec(section)).unwrap()
}

#[test]
fn sections_go_round() {
    for section in [section(), plain()] {
        assert_eq!(round(&section), section);
        assert_eq!(section.check(NOW), Ok(()));
    }
    let hex: String = cbor::to_vec(&section()).iter().map(|b| format!("{b:02x}")).collect();
    assert_eq!(hex, SECTION);
    // {0: 2, 6: [], 7: 0}
    assert_eq!(cbor::to_vec(&plain()), [0xa3, 0, 2, 6, 0x80, 7, 0]);
}

#[test]
fn a_largest_policy_stays_small() {
    let rules = "reject [2001:4860:4860:1111::]/64:10000-20000 tcp\n".repeat(MAX_EXIT_RULES);
    let mut section = section();
    section.exit_policy = Some(rules.parse().unwrap());
    let bytes = cbor::to_vec(&section);
    assert!(bytes.len() < 2560, "{}", bytes.len());
    assert_eq!(round(&section), section);
}

#[test]
fn the_youngest_good_key_is_used() {
    let section = section();
    assert_eq!(section.key_at(NOW).unwrap().key, OnionKey([4; 32]));
    assert_eq!(section.key_at(NOW - 1).unwrap().key, OnionKey([3; 32]));
    assert_eq!(section.key_at(NOW + 172_800), None);
    assert_eq!(section.uptime(NOW), 5);
}

#[test]
fn bounds_are_kept_and_named() {
    let with = |change: &dyn Fn(&mut OnionSection)| {
        let mut section = section();
        change(&mut section);
        section.check(NOW).unwrap_err()
    };
    assert!(with(&|s| s.keys = vec![s.keys[0]; 3]).contains("two onion keys"));
    assert!(with(&|s| s.keys[0].not_after = s.keys[0].not_before).contains("ends before"));
    assert!(
        with(&|s| s.keys[0].not_after = s.keys[0].not_before + MAX_KEY_LIFE + 1)
            .contains("three days")
    );
    assert!(with(&|s| s.keys[1].key = OnionKey([0; 32])).contains("zero"));
    assert!(with(&|s| s.since = NOW + 1).contains("started"));
}

/// `{0: 4, 1: [country], 6: [], 7: 0}`
fn at(country: &str) -> Vec<u8> {
    let mut bytes = vec![0xa4, 0, 4, 1, 0x81, 0x60 + country.len() as u8];
    bytes.extend_from_slice(country.as_bytes());
    bytes.extend_from_slice(&[6, 0x80, 7, 0]);
    bytes
}

#[test]
fn a_country_of_a_later_list_reads_as_none() {
    let read = |bytes: &[u8]| cbor::from_slice::<OnionSection>(bytes);
    assert_eq!(read(&at("fr")).unwrap().place, Some("fr".parse().unwrap()));
    assert_eq!(read(&at("zz")).unwrap().place, None);
    for bad in ["FR", "f", "fra", "f1", "uk1"] {
        assert!(read(&at(bad)).is_err(), "{bad}");
    }
}

#[test]
fn fields_of_a_later_version_are_skipped() {
    let mut bytes = cbor::to_vec(&plain());
    bytes[0] += 1;
    bytes.extend_from_slice(&[0x18, 77, 0x82, 1, 2]);
    assert_eq!(cbor::from_slice::<OnionSection>(&bytes).unwrap(), plain());
}

proptest! {
    #[test]
    fn altered_sections_do_not_panic_and_what_reads_goes_round(
        at in 0_usize..200, byte: u8, cut in 0_usize..200
    ) {
        let mut bytes = cbor::to_vec(&section());
        let end = bytes.len() - cut.min(bytes.len());
        bytes.truncate(end);
        if let Some(b) = bytes.get_mut(at) {
            *b = byte;
        }
        if let Ok(read) = cbor::from_slice::<OnionSection>(&bytes) {
            prop_assert_eq!(round(&read), read);
        }
    }

    #[test]
    fn any_text_is_a_policy_or_an_error(text in "(accept|reject|\\*|[0-9:./\\[\\] -]|\n){0,60}") {
        if let Ok(policy) = text.parse::<ExitPolicy>() {
            prop_assert_eq!(policy.to_string().parse(), Ok(policy));
        }
    }
}
