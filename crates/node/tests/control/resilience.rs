//! Restarts, dead peers, leaving, renewal, simultaneous dialing, garbage.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use warren_control::ca::{Authority, NODE_CERTIFICATE_LIFE};
use warren_control::descriptor::ClientRecord;
use warren_control::directory::{DirectoryChange, RemovalReason};
use warren_control::identity::IdentityKey;
use warren_node::transport::{Admin, ControlEvent, OwnDescriptor};
use warren_types::LinkPublicKey;

use crate::net::{NOW, Plan, eventually, fresh_key, join_with, name, settled};

#[tokio::test]
async fn a_dead_peer_is_noticed_and_found_again() {
    let founder = Plan::founder("a");
    let mut b = Plan::certified(&founder, "b", 86_400);
    let mut a = founder.start();
    b.bootstrap = vec![(None, a.address)];
    let mut b = b.start();
    a.connected(b.id).await;
    b.connected(a.id).await;
    let cut = Instant::now();
    b.cut.store(true, Ordering::SeqCst);
    a.lost(b.id).await;
    assert!(cut.elapsed() < Duration::from_secs(4), "noticed after {:?}", cut.elapsed());
    b.lost(a.id).await;
    b.cut.store(false, Ordering::SeqCst);
    let (at_a, at_b) = settled(&mut a, &mut b).await;
    assert_eq!(at_a, at_b);
}

#[tokio::test]
async fn a_restarted_node_finds_the_others_without_its_inviter() {
    let a = Plan::founder("a").start();
    let mut c = {
        let key = fresh_key();
        let joined = join_with(&a.invite().await, &key, "c", NOW).await.unwrap();
        Plan::joined(&joined, key).start()
    };
    let key = fresh_key();
    let joined = join_with(&a.invite().await, &key, "b", NOW).await.unwrap();
    let mut b = Plan::joined(&joined, key.clone()).start();
    b.connected(c.id).await;
    c.connected(b.id).await;
    // The inviter dies for good, b stops in an orderly way.
    a.cut.store(true, Ordering::SeqCst);
    b.handle.shutdown().await;
    assert!(c.lost(b.id).await.contains("closed"));
    let (known, revocations) = b.persist.directory.lock().unwrap().clone();
    assert!(known.len() >= 3, "the directory was saved");
    // b starts again from what it saved: another port, no bootstrap address.
    let mut plan = Plan::joined(&joined, key);
    plan.known = known;
    plan.revocations = revocations;
    plan.bootstrap = vec![];
    let mut b = plan.start();
    let (at_b, at_c) = settled(&mut b, &mut c).await;
    assert_eq!(at_b, at_c);
    eventually("c knows b's new endpoint", async || {
        let view = c.handle.member(b.id).unwrap();
        view.descriptor.body.endpoints == [b.address]
    })
    .await;
}

#[tokio::test]
async fn a_crashed_and_restarted_node_replaces_its_old_connection_at_once() {
    let founder = Plan::founder("a");
    let b = Plan::certified(&founder, "b", 86_400);
    let key = b.key.clone();
    let chain = b.chain.clone();
    let (network, membership) = (b.network.clone(), b.membership.clone());
    let mut slow = founder;
    // The old connection would be taken for alive for a long time.
    slow.timing.idle = Duration::from_secs(30);
    let mut a = slow.start();
    let mut b = Plan { bootstrap: vec![(None, a.address)], ..b };
    b.timing.idle = Duration::from_secs(30);
    let mut first = b.start();
    first.connected(a.id).await;
    a.connected(first.id).await;
    first.cut.store(true, Ordering::SeqCst);
    let mut again = Plan::certified_with(network, membership, key, chain, "b");
    again.bootstrap = vec![(None, a.address)];
    let start = Instant::now();
    let mut second = again.start();
    let (at_a, at_b) = settled(&mut a, &mut second).await;
    assert_eq!(at_a, at_b);
    assert!(start.elapsed() < Duration::from_secs(5));
}

#[tokio::test]
async fn who_leaves_is_forgotten_and_its_name_is_free() {
    let a = Plan::founder("a").start();
    let key = fresh_key();
    let joined = join_with(&a.invite().await, &key, "b", NOW).await.unwrap();
    let mut b = Plan::joined(&joined, key.clone()).start();
    b.connected(a.id).await;
    let mut a = a;
    a.connected(b.id).await;
    b.handle.leave().await;
    let (id, reason) = a
        .until(|event| match event {
            ControlEvent::DirectoryChanged(changes) => changes.into_iter().find_map(|c| match c {
                DirectoryChange::Removed { view, reason } => Some((view.id(), reason)),
                _ => None,
            }),
            _ => None,
        })
        .await;
    assert_eq!((id, reason), (b.id, RemovalReason::Left));
    assert_eq!(a.handle.directory().len(), 1);
    // A copy of its key and certificate is worth nothing.
    let _copy = Plan::joined(&joined, key).start();
    assert!(a.refusal().await.contains("revoked"));
    join_with(&a.invite().await, &fresh_key(), "b", NOW).await.unwrap();
}

#[tokio::test]
async fn an_admin_that_lost_its_directory_still_knows_whom_it_revoked() {
    let founder = Plan::founder("a");
    let mut b = Plan::certified(&founder, "b", 86_400);
    let (network, membership) = (founder.network.clone(), founder.membership.clone());
    let (key, chain) = (founder.key.clone(), founder.chain.clone());
    let authority = &founder.admin.as_ref().unwrap().authority;
    let authority = Authority::load(
        IdentityKey::from_pkcs8(&authority.key().to_pkcs8()).unwrap(),
        authority.certificate().to_vec(),
        &network.name,
    )
    .unwrap();
    let (b_key, b_chain) = (b.key.clone(), b.chain.clone());
    let mut a = founder.start();
    b.bootstrap = vec![(None, a.address)];
    let mut b = b.start();
    a.connected(b.id).await;
    a.handle.revoke(name("b")).await.unwrap();
    b.lost(a.id).await;
    a.handle.shutdown().await;
    b.handle.shutdown().await;
    let (invites, registry) = a.persist.admin.lock().unwrap().clone().unwrap();
    let mut again = Plan::certified_with(network.clone(), membership.clone(), key, chain, "a");
    again.admin =
        Some(Admin { authority, certificate_life: NODE_CERTIFICATE_LIFE, invites, registry });
    let mut a = again.start();
    let mut b = Plan::certified_with(network, membership, b_key, b_chain, "b");
    b.bootstrap = vec![(None, a.address)];
    let _b = b.start();
    assert!(a.refusal().await.contains("revoked"));
}

#[tokio::test]
async fn a_founder_away_for_long_renews_itself() {
    let founder = Plan::founder("a");
    founder.clock.set(NOW + NODE_CERTIFICATE_LIFE + 86_400);
    let mut a = founder.start();
    a.until(|event| matches!(event, ControlEvent::CertificateRenewed { .. }).then_some(())).await;
    eventually("its own descriptor is good again", async || a.handle.directory().len() == 1).await;
}

#[tokio::test]
async fn an_expired_member_is_told_what_to_do() {
    let founder = Plan::founder("a");
    let b = Plan::certified(&founder, "b", 9000);
    b.clock.set(NOW + 9001);
    let mut b = b.start();
    let reason = b
        .until(|event| match event {
            ControlEvent::RenewalFailed { reason, .. } => Some(reason),
            _ => None,
        })
        .await;
    assert!(reason.contains("expired") && reason.contains("warren leave"), "{reason}");
}

#[tokio::test]
async fn a_certificate_is_renewed_before_its_end_without_a_break() {
    let founder = Plan::founder("a");
    let mut b = Plan::certified(&founder, "b", 9000);
    let mut a = founder.start();
    b.bootstrap = vec![(None, a.address)];
    let mut b = b.start();
    b.connected(a.id).await;
    a.connected(b.id).await;
    let first = b.handle.certificate_expires().unwrap();
    // Two thirds of its life are over.
    a.clock.set(NOW + 6300);
    b.clock.set(NOW + 6300);
    let renewed = b
        .until(|event| match event {
            ControlEvent::CertificateRenewed { not_after } => Some(not_after),
            ControlEvent::PeerLost { reason, .. } => panic!("lost its peer: {reason}"),
            _ => None,
        })
        .await;
    assert!(renewed > first);
    assert_eq!(renewed, NOW + 6300 + NODE_CERTIFICATE_LIFE);
    assert!(b.persist.certificate.lock().unwrap().is_some(), "it was saved");
    eventually("a knows the new certificate", async || {
        let view = a.handle.member(b.id).unwrap();
        view.descriptor.certificate_expires == Some(renewed)
    })
    .await;
    // Past the old end, a new connection comes up with the new certificate.
    a.clock.set(NOW + 10_000);
    b.clock.set(NOW + 10_000);
    b.cut.store(true, Ordering::SeqCst);
    a.lost(b.id).await;
    b.cut.store(false, Ordering::SeqCst);
    a.connected(b.id).await;
}

#[tokio::test]
async fn without_an_admin_renewal_fails_loudly_and_the_end_cuts_off() {
    let founder = Plan::founder("a");
    let mut b = Plan::certified(&founder, "b", 9000);
    let mut c = Plan::certified(&founder, "c", 90_000);
    drop(founder);
    let mut c = {
        c.hidden = false;
        c.start()
    };
    b.bootstrap = vec![(None, c.address)];
    let mut b = b.start();
    c.connected(b.id).await;
    b.clock.set(NOW + 6300);
    let reason = b
        .until(|event| match event {
            ControlEvent::RenewalFailed { reason, .. } => Some(reason),
            _ => None,
        })
        .await;
    assert!(reason.contains("no admin"), "{reason}");
    c.clock.set(NOW + 9001);
    c.lost(b.id).await;
    assert!(c.refusal().await.contains("expired"));
}

#[tokio::test]
async fn both_dial_at_once_and_one_connection_stays() {
    for _ in 0..5 {
        let founder = Plan::founder("a");
        let b = Plan::certified(&founder, "b", 86_400);
        let a_id = founder.id();
        let mut a = founder.start();
        let mut b = Plan { bootstrap: vec![(Some(a_id), a.address)], ..b }.start();
        a.handle.connect_endpoint(b.address).await;
        let (at_a, at_b) = settled(&mut a, &mut b).await;
        assert_eq!(at_a, at_b, "both have the key of the connection that stayed");
        let (at_a, at_b) = (a.handle.connections().await, b.handle.connections().await);
        assert_ne!(at_a[0].dialer, at_b[0].dialer);
    }
}

#[tokio::test]
async fn changes_reach_nodes_that_are_not_neighbours_of_the_change() {
    // a - b - c in a line: a and c cannot reach each other.
    let founder = Plan::founder("a");
    let mut b = Plan::certified(&founder, "b", 86_400);
    let mut c = Plan::certified(&founder, "c", 86_400);
    let mut founder = founder;
    founder.hidden = true;
    c.hidden = true;
    b.hidden = true;
    let mut b = b.start();
    founder.bootstrap = vec![(None, b.address)];
    c.bootstrap = vec![(None, b.address)];
    let a = founder.start();
    let c = c.start();
    b.connected(a.id).await;
    eventually("c hears of a", async || c.handle.member(a.id).is_some()).await;
    let key = LinkPublicKey([9; 32]);
    let addresses = a.handle.client_addresses(&key).unwrap();
    let client = ClientRecord { name: name("phone"), key, addresses };
    let own = OwnDescriptor { clients: vec![client.clone()], ..a.own.clone() };
    a.handle.set_own_descriptor(own).await;
    eventually("c hears of a's client", async || {
        c.handle.member(a.id).is_some_and(|v| v.clients == [client.clone()])
    })
    .await;
    assert!(c.handle.has_name(&name("phone")));
}

#[tokio::test]
async fn a_node_does_not_dial_its_own_address() {
    // One list of bootstrap addresses for all machines names each itself.
    let mut a = Plan::psk(5, "a").start();
    a.handle.connect_endpoint(a.address).await;
    tokio::time::sleep(Duration::from_millis(400)).await;
    while let Ok(event) = a.events.try_recv() {
        assert!(
            !matches!(event, ControlEvent::Refused { .. } | ControlEvent::DialFailed { .. }),
            "{event:?}"
        );
    }
}

#[tokio::test]
async fn garbage_and_half_open_connections_do_not_keep_members_out() {
    let founder = Plan::founder("a");
    let mut b = Plan::certified(&founder, "b", 86_400);
    let a = founder.start();
    let flood = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let mut junk = vec![0xc3_u8; 1200];
    for n in 0..3000_u32 {
        junk[1..5].copy_from_slice(&1_u32.to_be_bytes());
        junk[6..10].copy_from_slice(&n.to_be_bytes());
        let _ = flood.send_to(&junk[..1200 - (n as usize % 50)], a.address).await;
    }
    b.bootstrap = vec![(None, a.address)];
    let mut b = b.start();
    b.connected(a.id).await;
}

#[tokio::test]
async fn a_network_above_the_full_mesh_is_known_to_all() {
    const NODES: usize = 36;
    let first = Plan::psk(7, "n0").start();
    let at = vec![(None, first.address)];
    let mut nodes = vec![first];
    for n in 1..NODES {
        let mut plan = Plan::psk(7, &format!("n{n}"));
        plan.bootstrap = at.clone();
        // Slow enough for many of them on one thread of a busy machine.
        plan.timing.idle = Duration::from_secs(10);
        plan.timing.handshake = Duration::from_secs(10);
        plan.timing.housekeeping = Duration::from_secs(2);
        nodes.push(plan.start());
    }
    eventually("everybody knows everybody", async || {
        nodes.iter().all(|n| n.handle.directory().len() == NODES)
    })
    .await;
    // A node that is nobody's neighbour in particular can be reached on demand.
    let (a, b) = (nodes[3].id, nodes[17].id);
    nodes[3].handle.connect(b).await;
    eventually("connected on demand", async || {
        nodes[3].handle.connections().await.iter().any(|c| c.node == b)
    })
    .await;
    for node in &nodes {
        assert!(!node.handle.connections().await.is_empty(), "{} is alone", node.name);
    }
    // One leaves; all hear of it, neighbours or not.
    nodes[17].handle.leave().await;
    assert_ne!(a, b);
    eventually("everybody forgot the one that left", async || {
        nodes.iter().filter(|n| n.id != b).all(|n| n.handle.member(b).is_none())
    })
    .await;
}
