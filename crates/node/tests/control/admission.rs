//! Joining: with good codes, and with each kind of bad one.

use std::sync::atomic::Ordering;

use warren_control::wire::JoinRefusal;
use warren_node::transport::{AdminError, ControlEvent, JoinError};

use crate::net::{NOW, Plan, eventually, fresh_key, join_with, name, settled};

#[tokio::test]
async fn two_machines_one_code_one_connection() {
    let mut a = Plan::founder("a").start();
    let code = a.invite().await;
    let key = fresh_key();
    let joined = join_with(&code, &key, "b", NOW).await.unwrap();
    assert_eq!(joined.name, name("b"));
    assert_eq!(joined.addresses.len(), 2);
    let admitted = a
        .until(|event| match event {
            ControlEvent::NodeAdmitted { node, .. } => Some(node),
            _ => None,
        })
        .await;
    assert_eq!(admitted, key.id());

    let mut b = Plan::joined(&joined, key).start();
    let at_b = b.connected(a.id).await;
    let at_a = a.connected(b.id).await;
    assert_eq!(at_a.psk.expose(), at_b.psk.expose(), "both sides have the same link key");
    assert_ne!(at_a.dialer, at_b.dialer, "one side starts the link");
    assert!(at_a.post_quantum && at_b.post_quantum);
    assert_eq!(at_b.remote, a.address);
    assert_eq!(at_b.observed, b.address, "b learns how a sees it");
    assert_eq!(at_a.view.name, name("b"));
    assert_eq!(b.handle.directory().len(), 2);
    assert!(b.handle.certificate_expires().unwrap() > NOW);
}

#[tokio::test]
async fn a_third_node_finds_the_second_by_itself() {
    let a = Plan::founder("a").start();
    let mut members = Vec::new();
    for n in ["b", "c"] {
        let key = fresh_key();
        let joined = join_with(&a.invite().await, &key, n, NOW).await.unwrap();
        members.push(Plan::joined(&joined, key).start());
    }
    let [mut b, mut c]: [_; 2] = members.try_into().ok().unwrap();
    let (at_b, at_c) = settled(&mut b, &mut c).await;
    assert_eq!(at_b, at_c);
}

#[tokio::test]
async fn a_used_code_admits_nobody_else() {
    let mut a = Plan::founder("a").start();
    let code = a.invite().await;
    let first = fresh_key();
    join_with(&code, &first, "b", NOW).await.unwrap();
    let again = join_with(&code, &fresh_key(), "c", NOW).await;
    assert!(matches!(again, Err(JoinError::Refused(JoinRefusal::TokenUsed))), "{again:?}");
    assert!(a.refusal().await.contains("used"));
    // The same machine may ask again: its answer may have been lost.
    join_with(&code, &first, "b", NOW).await.unwrap();
}

#[tokio::test]
async fn an_expired_code_is_refused_by_both_sides() {
    let a = Plan::founder("a").start();
    let code = a.invite().await;
    // The joiner's own check, before any network use.
    let late = warren_control::join_code::JoinCode::decode(&code, NOW + 901);
    assert!(late.unwrap_err().to_string().contains("expired"));
    // A joiner whose clock hides the end.
    a.clock.set(NOW + 901);
    let result = join_with(&code, &fresh_key(), "b", NOW + 899).await;
    assert!(matches!(result, Err(JoinError::Refused(JoinRefusal::TokenExpired))), "{result:?}");
}

#[tokio::test]
async fn an_unknown_token_is_refused_without_a_word() {
    let mut a = Plan::founder("a").start();
    let code = a.invite().await;
    let mut code = warren_control::join_code::JoinCode::decode(&code, NOW).unwrap();
    code.token = warren_control::token::InviteToken::generate(&mut warren_node::random::OsRandom);
    let result = join_with(&code.encode(), &fresh_key(), "b", NOW).await;
    assert!(matches!(result, Err(JoinError::RefusedSilently)), "{result:?}");
    assert!(a.refusal().await.contains("unknown or wrong"));
}

#[tokio::test]
async fn a_taken_name_is_refused_with_the_remedy() {
    let a = Plan::founder("a").start();
    let result = join_with(&a.invite().await, &fresh_key(), "a", NOW).await;
    let text = result.unwrap_err().to_string();
    assert!(text.contains("taken") && text.contains("--name"), "{text}");
}

#[tokio::test]
async fn a_wrong_clock_is_named() {
    let a = Plan::founder("a").start();
    let code = a.invite().await;
    let result = join_with(&code, &fresh_key(), "b", NOW - 280).await;
    assert!(
        matches!(
            result,
            Err(JoinError::Refused(JoinRefusal::ClockWrong { difference_s: 280, .. }))
        ),
        "{result:?}"
    );
    // So far back that the inviter's certificate has not begun.
    let result = join_with(&code, &fresh_key(), "b", NOW - 86_400).await;
    assert!(result.unwrap_err().to_string().contains("clock"));
}

#[tokio::test]
async fn a_code_of_another_network_is_not_shown_the_token() {
    let mut a = Plan::founder("a").start();
    let other = Plan::founder("a").start();
    let code = other.invite().await;
    let mut code = warren_control::join_code::JoinCode::decode(&code, NOW).unwrap();
    code.endpoints = vec![a.address];
    let result = join_with(&code.encode(), &fresh_key(), "b", NOW).await;
    assert!(matches!(result, Err(JoinError::WrongNetwork(_))), "{result:?}");
    assert!(a.events.try_recv().is_ok_and(|e| !matches!(e, ControlEvent::NodeAdmitted { .. })));
}

#[tokio::test]
async fn addresses_that_do_not_answer_do_not_hold_up_a_join() {
    let a = Plan::founder("a").start();
    let code = a.invite().await;
    let mut code = warren_control::join_code::JoinCode::decode(&code, NOW).unwrap();
    let silent = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    code.endpoints.insert(0, silent.local_addr().unwrap());
    let start = std::time::Instant::now();
    join_with(&code.encode(), &fresh_key(), "b", NOW).await.unwrap();
    assert!(start.elapsed() < std::time::Duration::from_secs(2), "{:?}", start.elapsed());
}

#[tokio::test]
async fn nobody_there_is_said_plainly() {
    let a = Plan::founder("a").start();
    let code = a.invite().await;
    let mut code = warren_control::join_code::JoinCode::decode(&code, NOW).unwrap();
    let nobody = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    code.endpoints = vec![nobody.local_addr().unwrap()];
    let result = join_with(&code.encode(), &fresh_key(), "b", NOW).await;
    let text = result.unwrap_err().to_string();
    assert!(text.starts_with("no answer from 127.0.0.1:"), "{text}");
}

#[tokio::test]
async fn a_full_disk_admits_nobody_and_changes_nothing() {
    let mut a = Plan::founder("a").start();
    let code = a.invite().await;
    a.persist.full.store(true, Ordering::SeqCst);
    let key = fresh_key();
    let result = join_with(&code, &key, "b", NOW).await;
    assert!(matches!(result, Err(JoinError::Refused(JoinRefusal::Unavailable))), "{result:?}");
    assert!(a.refusal().await.contains("no space"));
    assert!(matches!(a.handle.invite(900, 1).await, Err(AdminError::Failed(_))));
    a.persist.full.store(false, Ordering::SeqCst);
    // The token was not used up, the name not taken.
    join_with(&code, &fresh_key(), "b", NOW).await.unwrap();
}

#[tokio::test]
async fn only_admins_invite_and_revoke() {
    let founder = Plan::founder("a");
    let b = Plan::certified(&founder, "b", 86_400).start();
    assert_eq!(b.handle.invite(900, 1).await, Err(AdminError::NotAdmin));
    assert_eq!(b.handle.revoke(name("a")).await, Err(AdminError::NotAdmin));
    let mut hidden = founder;
    hidden.hidden = true;
    let a = hidden.start();
    assert_eq!(a.handle.invite(900, 1).await, Err(AdminError::NoEndpoint));
    assert_eq!(a.handle.revoke(name("zz")).await, Err(AdminError::UnknownName(name("zz"))));
    assert_eq!(a.handle.revoke(name("a")).await, Err(AdminError::Ourselves));
    eventually("its own descriptor is known", async || a.handle.directory().len() == 1).await;
}
