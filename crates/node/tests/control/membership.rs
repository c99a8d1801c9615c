//! Who gets in: the three ways to authenticate, right and wrong.

use std::sync::Arc;

use quinn::crypto::rustls::QuicClientConfig;
use warren_control::ca;
use warren_node::random::OsRandom;
use warren_node::transport::ControlEvent;

use crate::net::{NOW, Node, Plan, eventually, fresh_key, name};

/// `intruder` keeps dialing `member`: the member says `why`, the intruder never
/// gets a connection.
async fn refused(member: &mut Node, intruder: &mut Node, why: &str) {
    let text = member.refusal().await;
    assert!(text.contains(why), "the log says `{text}` instead of `{why}`");
    assert!(member.handle.connections().await.is_empty());
    assert!(intruder.handle.connections().await.is_empty());
}

#[tokio::test]
async fn another_ca_is_refused() {
    let mut a = Plan::founder("a").start();
    let mut stranger = Plan::founder("b");
    stranger.bootstrap = vec![(None, a.address)];
    let mut stranger = stranger.start();
    refused(&mut a, &mut stranger, "not from this network's CA").await;
    // The stranger, which dialed, refused on its side as well.
    assert!(stranger.refusal().await.contains("CA"));
}

#[tokio::test]
async fn an_expired_certificate_is_refused() {
    let founder = Plan::founder("a");
    let mut b = Plan::certified(&founder, "b", 3600);
    let a = founder;
    a.clock.set(NOW + 7200);
    let mut a = a.start();
    b.bootstrap = vec![(None, a.address)];
    // b's own clock still shows a good time.
    let mut b = b.start();
    refused(&mut a, &mut b, "expired").await;
}

#[tokio::test]
async fn a_certificate_from_the_future_blames_the_clock() {
    let founder = Plan::founder("a");
    let mut b = Plan::certified(&founder, "b", 3600);
    let a = founder;
    a.clock.set(NOW - 3 * 3600);
    let mut a = a.start();
    b.bootstrap = vec![(None, a.address)];
    let mut b = b.start();
    refused(&mut a, &mut b, "clock").await;
}

#[tokio::test]
async fn a_self_signed_member_is_refused() {
    let founder = Plan::founder("a");
    let mut fake = Plan::certified(&founder, "b", 3600);
    fake.chain = vec![ca::self_signed(&fake.key, NOW, &mut OsRandom).unwrap()];
    let mut a = founder.start();
    fake.bootstrap = vec![(None, a.address)];
    let mut fake = fake.start();
    refused(&mut a, &mut fake, "").await;
}

#[tokio::test]
async fn a_revoked_node_is_cut_off_and_stays_out() {
    let founder = Plan::founder("a");
    let b = Plan::certified(&founder, "b", 86_400);
    let c = Plan::certified(&founder, "c", 86_400);
    let mut a = founder.start();
    let at = vec![(None, a.address)];
    let mut b = Plan { bootstrap: at.clone(), ..b }.start();
    let mut c = Plan { bootstrap: at, ..c }.start();
    eventually("all are connected", async || {
        let mut both = true;
        for node in [&a, &b, &c] {
            both &= node.handle.connections().await.len() == 2;
        }
        both
    })
    .await;
    assert_eq!(a.handle.revoke(name("b")).await, Ok(b.id));
    b.until(|event| matches!(event, ControlEvent::Revoked).then_some(())).await;
    a.lost(b.id).await;
    // c parts from it as well, without having been told by hand.
    c.lost(b.id).await;
    assert!(a.handle.member(b.id).is_none());
    assert!(c.handle.member(b.id).is_none());
    // It dials again and gets nothing.
    assert!(a.refusal().await.contains("revoked"));
    eventually("only a and c are connected", async || {
        a.handle.connections().await.len() == 1 && c.handle.connections().await.len() == 1
    })
    .await;
}

#[tokio::test]
async fn the_right_psk_connects_and_the_wrong_one_does_not() {
    let mut a = Plan::psk(1, "a").start();
    let mut b = Plan::psk(1, "b");
    b.bootstrap = vec![(None, a.address)];
    let mut b = b.start();
    let at_b = b.connected(a.id).await;
    let at_a = a.connected(b.id).await;
    assert_eq!(at_a.psk.expose(), at_b.psk.expose());

    let mut stranger = Plan::psk(2, "c");
    stranger.bootstrap = vec![(None, a.address)];
    let stranger = stranger.start();
    assert!(a.refusal().await.contains("pre-shared key"));
    assert!(stranger.handle.connections().await.is_empty());
    assert_eq!(a.handle.connections().await.len(), 1);
}

#[tokio::test]
async fn pinned_keys_connect_and_others_do_not() {
    let (ka, kb) = (fresh_key(), fresh_key());
    let mut a = Plan::pinned(ka.clone(), "a", &[(kb.id(), "b")]).start();
    let mut b = Plan::pinned(kb, "b", &[(ka.id(), "a")]);
    b.bootstrap = vec![(Some(ka.id()), a.address)];
    let mut b = b.start();
    let at_b = b.connected(a.id).await;
    let at_a = a.connected(b.id).await;
    assert_eq!(at_a.psk.expose(), at_b.psk.expose());

    // A stranger that knows everything but has another key.
    let mut stranger = Plan::pinned(fresh_key(), "b", &[(ka.id(), "a")]);
    stranger.bootstrap = vec![(Some(ka.id()), a.address)];
    let stranger = stranger.start();
    assert!(a.refusal().await.contains("not pinned"));
    assert!(stranger.handle.connections().await.is_empty());
}

#[tokio::test]
async fn another_node_at_a_pinned_peers_address_is_refused() {
    let (ka, kb, kc) = (fresh_key(), fresh_key(), fresh_key());
    let c = Plan::pinned(kc.clone(), "c", &[(ka.id(), "a")]).start();
    let mut a = Plan::pinned(ka, "a", &[(kb.id(), "b"), (kc.id(), "c")]);
    a.bootstrap = vec![(Some(kb.id()), c.address)];
    let mut a = a.start();
    assert!(a.refusal().await.contains("expected"));
}

/// A QUIC client with one key exchange group; TLS 1.3, right ALPN, a member's
/// certificate.
fn raw_client(
    plan: &Plan,
    group: &'static dyn rustls::crypto::SupportedKxGroup,
) -> quinn::Endpoint {
    #[derive(Debug)]
    struct Anybody;
    impl rustls::client::danger::ServerCertVerifier for Anybody {
        fn verify_server_cert(
            &self,
            _: &rustls::pki_types::CertificateDer<'_>,
            _: &[rustls::pki_types::CertificateDer<'_>],
            _: &rustls::pki_types::ServerName<'_>,
            _: &[u8],
            _: rustls::pki_types::UnixTime,
        ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
            Ok(rustls::client::danger::ServerCertVerified::assertion())
        }
        fn verify_tls12_signature(
            &self,
            _: &[u8],
            _: &rustls::pki_types::CertificateDer<'_>,
            _: &rustls::DigitallySignedStruct,
        ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
            Err(rustls::Error::General("TLS 1.2".into()))
        }
        fn verify_tls13_signature(
            &self,
            _: &[u8],
            _: &rustls::pki_types::CertificateDer<'_>,
            _: &rustls::DigitallySignedStruct,
        ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
            Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
        }
        fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
            vec![rustls::SignatureScheme::ED25519]
        }
    }
    let provider = rustls::crypto::CryptoProvider {
        kx_groups: vec![group],
        ..rustls::crypto::aws_lc_rs::default_provider()
    };
    let chain = plan.chain.iter().map(|c| c.clone().into()).collect();
    let key = rustls::pki_types::PrivatePkcs8KeyDer::from(plan.key.to_pkcs8().to_vec());
    let mut config = rustls::ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody))
        .with_client_auth_cert(chain, key.into())
        .unwrap();
    config.alpn_protocols = vec![b"warren/1".to_vec()];
    let config = QuicClientConfig::try_from(config).unwrap();
    let mut endpoint = quinn::Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
    endpoint.set_default_client_config(quinn::ClientConfig::new(Arc::new(config)));
    endpoint
}

#[tokio::test]
async fn only_the_post_quantum_group_is_accepted() {
    use rustls::crypto::aws_lc_rs::kx_group::{X25519, X25519MLKEM768};
    let founder = Plan::founder("a");
    let b = Plan::certified(&founder, "b", 3600);
    let a = founder.start();
    let hybrid = raw_client(&b, X25519MLKEM768);
    hybrid.connect(a.address, "warren").unwrap().await.unwrap();
    let classic = raw_client(&b, X25519);
    let result = classic.connect(a.address, "warren").unwrap().await;
    assert!(result.is_err(), "a connection without ML-KEM was accepted");
}

#[tokio::test]
async fn two_names_alike_are_told_apart_on_all_nodes() {
    // With a pre-shared key nobody hands out names.
    let a = Plan::psk(3, "same").start();
    let mut b = Plan::psk(3, "same");
    b.bootstrap = vec![(None, a.address)];
    let b = b.start();
    eventually("both know both, by distinct names, and agree", async || {
        let names = |node: &Node| {
            node.handle.directory().iter().map(|v| v.name.clone()).collect::<Vec<_>>()
        };
        let (at_a, at_b) = (names(&a), names(&b));
        at_a.len() == 2 && at_a == at_b && at_a[0] != at_a[1]
    })
    .await;
}
