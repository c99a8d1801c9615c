//! Whose word counts, what changes do, and what is published.

use warren_os::files::TemporaryDir;
use warren_types::Roles;

use super::*;

const NOW: u64 = 1_800_000_000;

fn settings(roles: &str, place: Option<&str>) -> RoleSettings {
    RoleSettings {
        roles: roles.parse().unwrap(),
        place: place.map(|place| place.parse().unwrap()),
        ..RoleSettings::default()
    }
}

#[test]
fn the_last_word_counts() {
    let temporary = TemporaryDir::create("warren-roles").unwrap();
    let store = Store::open(&temporary.path().join("state")).unwrap();
    let start = |configured: &RoleSettings| {
        OnionRoles::load(&store, configured.clone(), NOW).unwrap().stored
    };
    let none = RoleSettings::default();
    let exit = settings("exit", Some("de"));
    assert_eq!(start(&none).settings, none);
    assert_eq!(start(&exit).settings, exit);
    // A plain `warren up` later keeps what was said.
    assert_eq!(start(&none).settings, exit);
    // The operator decides at run time.
    let relay = settings("relay", Some("fr"));
    store
        .save_roles(&StoredRoles { settings: relay.clone(), draining: true, ..start(&exit) })
        .unwrap();
    assert_eq!(start(&exit).settings, relay, "the configuration says nothing new");
    assert_eq!(start(&none).settings, relay);
    assert!(start(&none).draining);
    // And the configuration has a new word.
    let entry = settings("entry", None);
    assert_eq!(start(&entry).settings, entry);
    assert_eq!(start(&entry).configured, entry);
}

#[test]
fn only_a_node_with_a_role_has_keys_and_a_section() {
    let temporary = TemporaryDir::create("warren-roles").unwrap();
    let store = Store::open(&temporary.path().join("state")).unwrap();
    let mut roles = OnionRoles::load(&store, RoleSettings::default(), NOW).unwrap();
    assert!(roles.section().is_none() && roles.keys.pairs().is_empty());
    roles.stored.settings = settings("entry,exit", Some("de-fra"));
    assert!(roles.renew_keys(&store, NOW).unwrap());
    assert!(!roles.renew_keys(&store, NOW).unwrap());
    let section = roles.section().unwrap();
    assert_eq!(section.keys.len(), 1);
    assert!(section.key_at(NOW).is_some());
    // Stored, so that a restart does not cut circuits being built.
    let again = store.onion_keys().unwrap();
    assert_eq!(again.records(), section.keys);
    assert_eq!(again.pairs()[0].secret.expose(), roles.keys.pairs()[0].secret.expose());
    roles.stored.settings.roles = Roles::NONE;
    assert!(roles.renew_keys(&store, NOW).unwrap());
    assert!(roles.section().is_none() && store.onion_keys().unwrap().pairs().is_empty());
}

#[test]
fn changes_touch_what_they_name() {
    let change = |text: &str| serde_json::from_str::<RoleChange>(text).unwrap();
    let of = |before: &RoleSettings, text: &str| changed(before.clone(), change(text)).unwrap();
    let before = settings("exit", Some("de-fra"));
    assert_eq!(of(&before, "{}"), before);
    assert_eq!(of(&before, r#"{"roles":[]}"#).roles, Roles::NONE);
    let place = |settings: RoleSettings| settings.place.map(|place| place.to_string());
    assert_eq!(place(of(&before, r#"{"region":{"set":"de"}}"#)).unwrap(), "de-fra");
    assert_eq!(place(of(&before, r#"{"region":{"set":"fr"}}"#)).unwrap(), "fr");
    assert_eq!(
        place(of(&before, r#"{"region":{"set":"fr"},"city":{"set":"par"}}"#)).unwrap(),
        "fr-par"
    );
    assert_eq!(place(of(&before, r#"{"city":"clear"}"#)).unwrap(), "de");
    assert_eq!(place(of(&before, r#"{"region":"clear"}"#)), None);
    let lost = changed(settings("exit", None), change(r#"{"city":{"set":"fra"}}"#));
    assert!(matches!(lost, Err(ApiError::Invalid(text)) if text.contains("--region")));
    let family = of(&before, r#"{"family":{"set":"example.org"}}"#);
    assert!(family.family.is_some());
    assert_eq!(of(&family, r#"{"family":"clear"}"#), before);
    assert!(serde_json::from_str::<RoleChange>(r#"{"roles":["guard"]}"#).is_err());
    assert!(serde_json::from_str::<RoleChange>(r#"{"region":{"set":"zz"}}"#).is_err());
}

#[test]
fn likely_mistakes_are_told() {
    assert!(warnings(&settings("exit", None))[0].contains("no region"));
    assert!(warnings(&settings("exit", Some("de"))).is_empty());
    assert!(warnings(&settings("none", Some("de")))[0].contains("without a role"));
    let mut open = settings("exit", Some("de"));
    open.exit_policy = Some("allow-private-destinations\naccept *:*".parse().unwrap());
    assert!(warnings(&open)[0].contains("private"));
    let mut shut = settings("exit", Some("de"));
    shut.exit_policy = Some("reject *:25".parse().unwrap());
    assert!(warnings(&shut)[0].contains("accept *:*"));
    open.roles = "relay".parse().unwrap();
    assert!(warnings(&open)[0].contains("no effect"));
}
