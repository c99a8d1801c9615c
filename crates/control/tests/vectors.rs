//! Fixed values that a second implementation must arrive at; the same stand in
//! `docs/protocol.md`, section 13.

use warren_control::address::{ipv4_of_key, ipv6_of_key, ipv6_prefix};
use warren_control::join_code::JoinCode;
use warren_control::network::NetworkParameters;
use warren_control::psk::PskKeys;
use warren_control::wire::{JoinRefusal, Message};
use warren_types::{NetworkId, NetworkName, PresharedKey, Suite};

fn hex(bytes: &[u8]) -> String {
    data_encoding::HEXLOWER.encode(bytes)
}

fn home() -> NetworkName {
    "home".parse().unwrap()
}

/// Every value below is written in the document too.
fn documented(value: &str) -> &str {
    let document = include_str!("../../../docs/protocol.md");
    assert!(document.contains(value), "docs/protocol.md lacks {value}");
    value
}

#[test]
fn network_ids() {
    let certificate = NetworkParameters::certificate(home(), Suite::Aes256Gcm, &[8; 32]);
    assert_eq!(hex(&certificate.id.0), documented("37ca2ddbf2d2b9d28c9f40be4e5bb701"));
    let key = NetworkParameters::key(home(), Suite::Aes256Gcm);
    assert_eq!(hex(&key.id.0), documented("ddfe785ff99a1e7a6d42a80bb9c9132c"));
    let psk = PskKeys::derive(&PresharedKey::from_bytes([1; 32]));
    assert_eq!(hex(&psk.network_id().0), documented("f494a923c203db5f139aed438d85591a"));
    assert_eq!(
        hex(&psk.descriptor_mac(b"body")),
        documented("2acde04e3bd1575a03eb98c040ee8083f29cbdcf04184523de775b50f330dee1")
    );
}

#[test]
fn addresses() {
    let network = NetworkParameters::certificate(home(), Suite::Aes256Gcm, &[8; 32]).id;
    let key = [9; 32];
    assert_eq!(ipv6_prefix(network).to_string(), documented("fd50:f10c:ca05::/48"));
    assert_eq!(
        ipv6_of_key(network, &key).to_string(),
        documented("fd50:f10c:ca05:6241:294a:d409:7d21:4159")
    );
    assert_eq!(ipv4_of_key(network, &key, 0).to_string(), documented("100.109.126.64"));
    assert_eq!(ipv4_of_key(network, &key, 1).to_string(), documented("100.118.83.130"));
}

#[test]
fn messages() {
    let clock = JoinRefusal::ClockWrong { difference_s: 300, member_time: 1_800_000_000 };
    for (message, bytes) in [
        (Message::Ready, "820280"),
        (Message::RenewReply(vec![vec![1, 2]]), "82078181420102"),
        (Message::JoinRefused(JoinRefusal::TokenUsed), "820a820180"),
        (Message::JoinRefused(clock), "820a82038219012c1a6b49d200"),
    ] {
        assert_eq!(hex(&message.encode()), documented(bytes));
    }
}

#[test]
fn a_join_code_made_by_another_program() {
    let text = documented(
        "warren1ab6kmacqambqgaydambqgaydambqgaydamawi2dpnvsqewbabaeaqcaibaeaqcaibaeaqcaibaeaqcaibaeaqcaibaeaqcaibaeahaucitaaaaqbdeijfasqeaaq3oaaaaaaaaaaaaaaaaaaaeeqjasiaebagbafaydqquaaaebagbafaydqqcikbmga2dqpaungwsovqqj4ilfy",
    );
    let code = JoinCode::decode(text, 1_800_000_000).unwrap();
    assert_eq!(code.network_id, NetworkId([3; 16]));
    assert_eq!(code.network, home());
    assert_eq!(code.ca_fingerprint, [8; 32]);
    assert_eq!(code.endpoints[0].to_string(), "192.0.2.1:4242");
    assert_eq!(code.endpoints[1].to_string(), "[2001:db8::1]:9");
    assert_eq!(code.token.id, [1, 2, 3, 4, 5, 6, 7, 8]);
    assert_eq!(code.expires, 1_800_000_900);
    assert_eq!(code.encode(), text);
}
