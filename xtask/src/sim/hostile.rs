//! What hostile members do. They are insiders: their certificates are genuine.

use warren_discovery::gossip::{Item, Kind, Message, Range, Tag};

use super::node::Vice;
use super::world::{Payload, World};

/// Lets every hostile node do its worst once; called every second.
pub(crate) fn act(world: &mut World) {
    for who in world.all_up(false) {
        let Some(node) = world.up(who) else { continue };
        let (Some(vice), links) = (node.vice, node.links.keys().copied().collect::<Vec<_>>())
        else {
            continue;
        };
        let known: Vec<usize> = node.known.iter().filter(|other| *other != who).collect();
        if links.is_empty() || known.is_empty() {
            continue;
        }
        let to = links[world.random.below(links.len())];
        let victim = known[world.random.below(known.len())];
        match vice {
            Vice::Forging => forge(world, who, to, victim),
            Vice::Replaying => replay(world, who, to),
            Vice::Accusing => {
                let bad = world.random.chance(0.5);
                let record = world.members.accuse(victim, bad, world.now());
                let list = record.into_iter().collect();
                world.send(who, to, Payload::Message(Message::Records(list)));
            }
            Vice::Oversized => oversize(world, who, to),
            Vice::Silent => promise(world, who, to, victim),
            Vice::Restless => {
                for _ in 0..10 {
                    world.publish(who, false);
                }
            }
        }
    }
}

fn forge(world: &mut World, who: usize, to: usize, victim: usize) {
    let now = world.now();
    let id = world.members.list[victim].id;
    let kind = if world.random.chance(0.5) { Kind::Descriptor } else { Kind::LinkState };
    let held = world.up(who).and_then(|n| n.gossip.get(kind, &id.0).cloned());
    let record = match world.random.below(3) {
        0 => held.and_then(|record| world.members.tamper(&record, now)),
        1 => world.members.impersonate(who, victim, now),
        _ => world.members.far_ahead(who, now),
    };
    let list = record.into_iter().collect();
    world.send(who, to, Payload::Message(Message::Records(list)));
}

fn replay(world: &mut World, who: usize, to: usize) {
    let history = &world.members.history;
    if history.is_empty() {
        return;
    }
    let some = (0..8).map(|_| world.random.below(history.len())).collect::<Vec<_>>();
    let list = some.into_iter().map(|at| history[at].clone()).collect();
    world.send(who, to, Payload::Message(Message::Records(list)));
}

fn oversize(world: &mut World, who: usize, to: usize) {
    let payload = match world.random.below(3) {
        0 => Payload::Bytes(vec![0x82; 200_000]),
        1 => {
            // A link state of more than any may have.
            let mut bytes = vec![0x82, 2, 0x81, 0x85, 3, 0x58, 32];
            bytes.extend([7; 32]);
            bytes.extend([1, 0x1a, 0xff, 0xff, 0xff, 0xff, 0x59, 0x20, 0]);
            bytes.extend([0; 0x2000]);
            Payload::Bytes(bytes)
        }
        _ => {
            let items = (0..2000).map(|n| Item { tag: Tag(n << 3 | 2), version: n << 16 });
            Payload::Message(Message::List { range: Range::all(1), items: items.collect() })
        }
    };
    world.send(who, to, payload);
}

/// Announces newer records than there are, and asks for everything.
fn promise(world: &mut World, who: usize, to: usize, victim: usize) {
    let id = world.members.list[victim].id;
    let version = (world.now().unix * 1000 + 997) << 16;
    let items = vec![Item { tag: Tag::new(Kind::Descriptor, &id.0), version }];
    world.send(who, to, Payload::Message(Message::Announce(items)));
    let tags: Vec<Tag> = world
        .up(who)
        .map(|n| n.gossip.records().take(20).map(|r| r.tag()).collect())
        .unwrap_or_default();
    world.send(who, to, Payload::Message(Message::Want(tags)));
}
