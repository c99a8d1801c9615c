//! `cargo xtask sim mesh`: thousands of nodes on a virtual clock, with the code
//! of `warren-discovery` and the checks of `warren-control`.
//!
//! In: numbers of nodes. Out: a table, and status 1 if a promise does not hold.
//! What happens: all nodes start at once; then members come,
//! leave, crash and move while a tenth of the nodes do what hostile members
//! can; then the network is cut in two, both halves go on, and it heals. It does
//! not model bandwidth or loss: control connections are reliable streams.

mod hostile;
mod members;
mod node;
mod random;
mod world;

use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result};
use warren_control::descriptor::SignedDescriptor;
use warren_control::directory::Directory;
use warren_discovery::gossip::{Kind, Time};

use self::members::Members;
use self::node::Vice;
use self::random::Random;
use self::world::{UNIX, World};

/// Options of `cargo xtask sim mesh`.
#[derive(clap::Args, Debug, Clone)]
pub(crate) struct Mesh {
    /// Numbers of nodes, separated by commas.
    #[arg(long, value_delimiter = ',', default_value = "100,500,1000,5000")]
    nodes: Vec<usize>,
    /// Share of hostile members, percent.
    #[arg(long, default_value_t = 10)]
    hostile: usize,
    /// Share of members that come and go within an hour, percent.
    #[arg(long, default_value_t = 20)]
    churn: usize,
    /// Seconds of the part that is measured.
    #[arg(long, default_value_t = 300)]
    steady: u64,
    /// Seconds for which the network is cut in two.
    #[arg(long, default_value_t = 120)]
    cut: u64,
    /// Another seed is another history.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Put every message through its bytes (slower; small networks always do).
    #[arg(long)]
    bytes: bool,
}

/// Everybody must know of everybody within this time, seconds.
const KNOWN_WITHIN: u64 = 60;
/// A revocation must be everywhere within this time, milliseconds.
const REVOKED_WITHIN: u64 = 2000;
/// Most bytes a node may send or receive per second, on average.
const RATE: f64 = 10_000.0;
/// Most bytes of directory state.
const STATE: usize = 64 << 20;

/// One line of the table.
#[derive(Debug, Default)]
struct Line {
    nodes: usize,
    start_s: u64,
    join_s: Vec<u64>,
    update_s: Vec<u64>,
    revoked_ms: Vec<u64>,
    heal_s: u64,
    sent: f64,
    received: f64,
    sent_p99: f64,
    records_share: f64,
    messages: f64,
    links: f64,
    gossip_bytes: usize,
    directory_bytes: usize,
    records: usize,
    refused: u64,
    forged_accepted: u64,
    cut_off: [u64; 2],
    took_s: f64,
}

/// Runs the simulation for each number of nodes.
pub(crate) fn mesh(options: &Mesh) -> Result<ExitCode> {
    let mut lines = Vec::new();
    let mut broken = Vec::new();
    for nodes in &options.nodes {
        let line = run(*nodes, options, true)?;
        broken.extend(line.broken());
        lines.push(line);
    }
    print_table(&lines);
    for problem in &broken {
        println!("broken: {problem}");
    }
    println!("sim mesh: {} runs, {} promises broken", lines.len(), broken.len());
    Ok(if broken.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Somebody others are to learn of.
#[derive(Debug, Clone, Copy)]
struct Watched {
    who: usize,
    since: u64,
    /// The sequence of its descriptor.
    sequence: u64,
    joined: bool,
}

struct Run<'a> {
    world: World,
    options: &'a Mesh,
    line: Line,
    unused: Vec<usize>,
    watched: Vec<Watched>,
    /// To start again after a crash, and when.
    crashed: Vec<(u64, usize)>,
    due: f64,
    talk: bool,
}

fn run(nodes: usize, options: &Mesh, talk: bool) -> Result<Line> {
    let began = Instant::now();
    let mut random = Random(options.seed ^ (nodes as u64) << 32);
    let hours = (options.steady + options.cut + 240) as f64 / 3600.0;
    let spare = (nodes as f64 * options.churn as f64 / 100.0 * hours * 1.5) as usize + 8;
    let members = Members::new(nodes + spare, UNIX, &mut random)?;
    let bytes = options.bytes || nodes <= 200;
    let mut run = Run {
        world: World::new(members, random, bytes),
        options,
        line: Line { nodes, ..Line::default() },
        unused: Vec::new(),
        watched: Vec::new(),
        crashed: Vec::new(),
        due: 0.0,
        talk,
    };
    run.start(nodes);
    run.steady();
    run.partition();
    run.finish()?;
    run.line.took_s = began.elapsed().as_secs_f64();
    run.say("done");
    Ok(run.line)
}

impl Run<'_> {
    fn say(&self, what: &str) {
        if self.talk {
            eprintln!("{} nodes, {:>4} s: {what}", self.line.nodes, self.world.ms / 1000);
        }
    }

    /// Everybody starts at once and knows three others.
    fn start(&mut self, nodes: usize) {
        let world = &mut self.world;
        let mut all: Vec<usize> = (0..world.nodes.len()).collect();
        for at in (1..all.len()).rev() {
            all.swap(at, world.random.below(at + 1));
        }
        self.unused = all.split_off(nodes);
        let now = world.now();
        let own: Vec<_> =
            all.iter().map(|who| world.members.descriptor(*who, now, false)).collect();
        for (at, who) in all.iter().enumerate() {
            let hostile = at * 100 / nodes < self.options.hostile;
            let vice = hostile.then(|| Vice::ALL[at % Vice::ALL.len()]);
            let three: Vec<_> = (0..3).map(|_| own[world.random.below(nodes)].clone()).collect();
            world.start(*who, vice, &three);
        }
        loop {
            let next = self.world.ms + 1000;
            self.world.run_to(next);
            if next.is_multiple_of(5000) {
                self.say(&format!("starting, {} messages so far", self.world.handled));
            }
            if self.everybody_knows_everybody() || next > 4 * KNOWN_WITHIN * 1000 {
                break;
            }
        }
        self.line.start_s = self.world.ms / 1000;
        self.say("all know all after the start");
        self.world.hurry_until = self.world.ms + 10_000;
        // What the start left behind is not steady state.
        let settled = self.world.ms + 60_000;
        while self.world.ms < settled {
            self.second(false);
        }
    }

    fn everybody_knows_everybody(&self) -> bool {
        let sides: &[Option<bool>] =
            if self.world.divided { &[Some(false), Some(true)] } else { &[None] };
        sides.iter().all(|side| {
            let honest = self.world.honest(*side);
            honest.iter().all(|who| self.world.up(who).is_some_and(|n| n.known.covers(&honest)))
        })
    }

    /// One second of life: hostile acts, members that come and go.
    fn second(&mut self, churn: bool) {
        let next = self.world.ms + 1000;
        self.world.run_to(next);
        hostile::act(&mut self.world);
        if churn {
            let rate = self.line.nodes as f64 * self.options.churn as f64 / 100.0 / 3600.0;
            self.due += rate;
            while self.due >= 1.0 {
                self.due -= 1.0;
                self.somebody_goes();
                self.somebody_comes();
            }
            // Laptops move: each node a few times a day.
            if self.world.random.chance(self.line.nodes as f64 / 10_000.0) {
                self.somebody_moves();
            }
            let back: Vec<usize> = self
                .crashed
                .iter()
                .filter(|(at, _)| *at <= self.world.ms)
                .map(|(_, who)| *who)
                .collect();
            self.crashed.retain(|(at, _)| *at > self.world.ms);
            for who in back {
                self.world.restart(who);
                self.watch(who, true);
            }
        }
        self.look();
    }

    fn watch(&mut self, who: usize, joined: bool) {
        let sequence = self.world.members.list[who].latest.0;
        self.watched.retain(|w| w.who != who);
        self.watched.push(Watched { who, since: self.world.ms, sequence, joined });
    }

    fn somebody_honest(&mut self) -> usize {
        let honest = self.world.all_up(true);
        honest[self.world.random.below(honest.len())]
    }

    /// Half leave properly; of the others half come back after a while.
    fn somebody_goes(&mut self) {
        let who = self.somebody_honest();
        self.watched.retain(|w| w.who != who);
        let leaves = self.world.random.chance(0.5);
        self.world.stop(who, leaves);
        if !leaves && self.world.random.chance(0.5) {
            let wait = 30_000 + self.world.random.below(120_000) as u64;
            self.crashed.push((self.world.ms + wait, who));
        }
    }

    /// A newcomer is given some descriptors by the member that admits it.
    fn somebody_comes(&mut self) {
        let inviter = self.somebody_honest();
        let Some(who) = self.unused.pop() else { return };
        let id = self.world.members.list[inviter].id;
        let Some(node) = self.world.up(inviter) else { return };
        let own = node.gossip.get(Kind::Descriptor, &id.0).cloned();
        let some = node.gossip.records().filter(|r| r.kind() == Kind::Descriptor).take(60);
        let knows: Vec<_> = own.into_iter().chain(some.cloned()).collect();
        let side = node.side;
        self.world.start(who, None, &knows);
        if let Some(node) = self.world.nodes[who].as_mut() {
            node.side = side;
        }
        self.watch(who, true);
    }

    fn somebody_moves(&mut self) {
        let who = self.somebody_honest();
        if self.watched.iter().all(|w| w.who != who) {
            self.world.publish(who, false);
            self.watch(who, false);
        }
    }

    /// Notes who is known everywhere by now, and knows everybody.
    fn look(&mut self) {
        let now = self.world.ms;
        let mut left = Vec::new();
        let all = std::mem::take(&mut self.watched);
        for watched in all.iter().copied() {
            let Some(node) = self.world.up(watched.who) else { continue };
            let side = self.world.divided.then_some(node.side);
            let mut honest = self.world.honest(side);
            // Two newcomers are each other's to find as well, but timed by the later.
            for other in all.iter().filter(|w| w.joined && w.since > watched.since) {
                honest.set(other.who, false);
            }
            let id = self.world.members.list[watched.who].id;
            let has = |who: usize| {
                let known = self.world.up(who).and_then(|n| n.gossip.get(Kind::Descriptor, &id.0));
                known.is_some_and(|r| r.sequence() >= watched.sequence)
            };
            if honest.iter().all(has) && (!watched.joined || node.known.covers(&honest)) {
                let took = (now - watched.since).div_ceil(1000);
                let list =
                    if watched.joined { &mut self.line.join_s } else { &mut self.line.update_s };
                list.push(took);
            } else {
                left.push(watched);
            }
        }
        self.watched = left;
    }

    /// The part that is measured.
    fn steady(&mut self) {
        self.say("steady state with churn");
        self.world.reset_traffic();
        let from = self.world.ms;
        let end = from + self.options.steady * 1000;
        let mut turn = 0;
        while self.world.ms < end {
            turn += 1;
            if turn % (self.options.steady / 3).max(1) == self.options.steady / 6 {
                self.revoke_somebody();
            }
            self.second(true);
        }
        let seconds = self.options.steady as f64;
        let honest = self.world.all_up(true);
        let (mut sent, mut links) = (Vec::new(), 0);
        for who in honest {
            let Some(node) = self.world.up(who).filter(|n| n.started < from) else { continue };
            let traffic = node.traffic;
            sent.push(traffic.sent as f64 / seconds);
            links += node.links.len();
            self.line.received += traffic.received as f64 / seconds;
            self.line.records_share += traffic.records as f64 / seconds;
            self.line.messages += traffic.messages as f64 / seconds;
            let memory = node.gossip.memory();
            self.line.gossip_bytes = self.line.gossip_bytes.max(memory);
            self.line.records = self.line.records.max(node.gossip.len());
        }
        sent.sort_by(f64::total_cmp);
        let n = sent.len().max(1) as f64;
        self.line.sent = sent.iter().sum::<f64>() / n;
        self.line.sent_p99 = sent.get(sent.len() * 99 / 100).copied().unwrap_or(0.0);
        self.line.received /= n;
        self.line.records_share /= n;
        self.line.messages /= n;
        self.line.links = links as f64 / n;
    }

    /// The CA revokes a hostile node, wherever the CA's key is.
    fn revoke_somebody(&mut self) {
        let hostile = self.world.all_up(false);
        if hostile.is_empty() {
            return;
        }
        let whom = hostile[self.world.random.below(hostile.len())];
        let now = self.world.now();
        let record = self.world.members.revoke(whom, now);
        let by = self.somebody_honest();
        let (tag, since) = ((record.kind(), *record.subject()), self.world.ms);
        if let Some(node) = self.world.up_mut(by) {
            node.known.set(whom, false);
        }
        self.world.tell(by, record);
        loop {
            let next = self.world.ms + 20;
            self.world.run_to(next);
            let waited = self.world.ms - since;
            let knows = |who: &usize| {
                self.world.up(*who).is_some_and(|n| n.gossip.get(tag.0, &tag.1).is_some())
            };
            // Who has just come or come back learns it with everything else.
            let settled =
                |who: &usize| self.world.up(*who).is_some_and(|n| n.started + 30_000 < since);
            let all = self.world.all_up(true).iter().filter(|w| settled(w)).all(knows);
            if all || waited > 30_000 {
                self.line.revoked_ms.push(waited);
                break;
            }
        }
        self.world.stop(whom, false);
    }

    /// Two halves that both change, and their merger.
    fn partition(&mut self) {
        self.say("the network is cut in two");
        self.world.divide(true);
        let end = self.world.ms + self.options.cut * 1000;
        while self.world.ms < end {
            self.second(true);
        }
        self.watched.clear();
        self.world.divide(false);
        let healed = self.world.ms;
        self.say("it heals");
        let changed: Vec<(usize, u64)> = self
            .world
            .members
            .list
            .iter()
            .enumerate()
            .filter(|(who, m)| {
                let since = (UNIX * 1000 + healed).saturating_sub(self.options.cut * 1000 + 20_000);
                m.latest.0 > since && self.world.nodes[*who].is_some()
            })
            .filter(|(who, _)| {
                let restless = |v| v == Vice::Restless;
                !self.world.nodes[*who].as_ref().is_some_and(|n| n.vice.is_some_and(restless))
            })
            .map(|(who, m)| (who, m.latest.0))
            .filter(|(who, sequence)| {
                // Not who was gone before anybody heard of it.
                let id = self.world.members.list[*who].id;
                self.world.honest(None).iter().any(|node| {
                    let known = self.world.up(node);
                    known
                        .and_then(|n| n.gossip.get(Kind::Descriptor, &id.0))
                        .is_some_and(|r| r.sequence() >= *sequence)
                })
            })
            .collect();
        loop {
            self.second(false);
            let agree = changed.iter().all(|(who, sequence)| {
                let id = self.world.members.list[*who].id;
                self.world.honest(None).iter().all(|node| {
                    let known =
                        self.world.up(node).and_then(|n| n.gossip.get(Kind::Descriptor, &id.0));
                    known.is_some_and(|r| r.sequence() >= *sequence)
                })
            });
            let waited = self.world.ms - healed;
            if agree && self.everybody_knows_everybody() || waited > 4 * KNOWN_WITHIN * 1000 {
                self.line.heal_s = waited / 1000;
                break;
            }
        }
        self.say("all know all again");
    }

    /// Counts what was refused.
    fn finish(&mut self) -> Result<()> {
        for node in self.world.nodes.iter().flatten().filter(|n| n.vice.is_none()) {
            let c = node.gossip.counters();
            self.line.refused += c.forged + c.stale + c.ignored + c.limited;
        }
        self.line.forged_accepted = self.world.members.forged_accepted;
        self.line.cut_off = self.world.cut_offs;
        if self.talk {
            self.line.directory_bytes = directory_in_a_child(self.line.nodes)?;
        }
        Ok(())
    }
}

/// Options of `cargo xtask sim directory`.
#[derive(clap::Args, Debug, Clone)]
pub(crate) struct Size {
    /// Number of members.
    #[arg(long, default_value_t = 5000)]
    nodes: usize,
}

/// A process of its own, so that its memory is the directory's.
fn directory_in_a_child(nodes: usize) -> Result<usize> {
    let output = std::process::Command::new(std::env::current_exe()?)
        .args(["sim", "directory", "--nodes", &nodes.to_string()])
        .output()
        .context("cannot start this program again")?;
    let text = String::from_utf8_lossy(&output.stdout);
    text.trim().parse().with_context(|| format!("`{text}` is no number of bytes"))
}

/// Prints the memory that one node's directory of so many members takes, bytes.
pub(crate) fn directory(options: &Size) -> Result<ExitCode> {
    let mut members = Members::new(options.nodes, UNIX, &mut Random(7))?;
    let now = Time { ms: 0, unix: UNIX };
    let mut directory = Directory::new(members.network.id, members.membership.clone());
    let made: Vec<_> = (0..options.nodes).map(|who| members.descriptor(who, now, false)).collect();
    let before = resident();
    for record in &made {
        directory.apply(&SignedDescriptor::from_bytes(record.body())?, UNIX)?;
    }
    println!("{}", resident().saturating_sub(before));
    drop(directory);
    Ok(ExitCode::SUCCESS)
}

/// Memory of this process, bytes.
fn resident() -> usize {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = text.split(' ').nth(1).and_then(|pages| pages.parse::<usize>().ok());
    pages.unwrap_or(0) * 4096
}

fn worst(list: &[u64]) -> u64 {
    list.iter().copied().max().unwrap_or(0)
}

fn median(list: &[u64]) -> u64 {
    let mut list = list.to_vec();
    list.sort_unstable();
    list.get(list.len() / 2).copied().unwrap_or(0)
}

impl Line {
    /// Promises that do not hold.
    fn broken(&self) -> Vec<String> {
        let checks = [
            (self.forged_accepted == 0, "forged records were accepted"),
            (self.start_s <= KNOWN_WITHIN, "the start took too long"),
            (worst(&self.join_s) <= KNOWN_WITHIN, "a newcomer was not known everywhere in time"),
            (self.heal_s <= KNOWN_WITHIN, "the halves did not agree in time"),
            (worst(&self.revoked_ms) <= REVOKED_WITHIN, "a revocation took too long"),
            (self.sent <= RATE && self.received <= RATE, "too many bytes per second"),
            (self.gossip_bytes + self.directory_bytes <= STATE, "too much memory"),
            (self.cut_off[1] == 0, "honest nodes were cut off by honest ones"),
        ];
        let failed = checks.into_iter().filter(|(holds, _)| !holds);
        failed.map(|(_, what)| format!("{} nodes: {what}", self.nodes)).collect()
    }
}

fn print_table(lines: &[Line]) {
    println!(
        "| Nodes | Start s | Join s (median, worst) | Move s | Revocation ms | Heal s | Sent B/s \
         (mean, p99) | Received B/s | of these records | Messages/s | Links | Gossip MB | \
         Directory MB | Records | Refused | Forged accepted | Cut off | Took s |"
    );
    println!("|{}", "---:|".repeat(18));
    for l in lines {
        println!(
            "| {} | {} | {}, {} of {} | {} | {} | {} | {:.0}, {:.0} | {:.0} | {:.0} | {:.1} | \
             {:.1} | {:.1} | {:.1} | {} | {} | {} | {} | {:.0} |",
            l.nodes,
            l.start_s,
            median(&l.join_s),
            worst(&l.join_s),
            l.join_s.len(),
            worst(&l.update_s),
            worst(&l.revoked_ms),
            l.heal_s,
            l.sent,
            l.sent_p99,
            l.received,
            l.records_share,
            l.messages,
            l.links,
            l.gossip_bytes as f64 / 1e6,
            l.directory_bytes as f64 / 1e6,
            l.records,
            l.refused,
            l.forged_accepted,
            l.cut_off[0],
            l.took_s,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hundred_nodes_keep_every_promise() {
        let options = Mesh {
            nodes: vec![],
            hostile: 10,
            churn: 200,
            steady: 60,
            cut: 30,
            seed: 3,
            bytes: true,
        };
        let line = run(100, &options, false).unwrap();
        assert_eq!(line.broken(), Vec::<String>::new(), "{line:?}");
        assert!(line.refused > 100 && line.cut_off[0] > 5, "{line:?}");
        assert!(!line.join_s.is_empty() && !line.revoked_ms.is_empty(), "{line:?}");
    }
}
