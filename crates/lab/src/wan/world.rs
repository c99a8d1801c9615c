//! The world between the hosts: who has which address, the links, and the
//! loop that moves packets.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use warren_os::netns::NetNamespace;
use warren_os::tun::{TunOffloads, TunQueue, VNET_HEADER_LEN};
use warren_os::wait::{Ready, Waker, wait_readable_for};

use super::WanError;
use super::frame::{Facts, fragment, split};
use super::gate::{Firewall, Gate, Way};
use super::regions::Region;
use crate::netem::{Dice, Netem, Profile};

/// Longest frame: header and an IP packet.
const FRAME_LEN: usize = VNET_HEADER_LEN + 65_535;

/// Frames read before those that are due are looked for again.
const READ_BATCH: usize = 32;

/// `EBADFD` of Linux: the interface was deleted under us.
const EBADFD: i32 = 77;

type Link = Mutex<Netem<Vec<u8>>>;

/// A host's interface.
#[derive(Debug)]
pub(super) struct Port {
    queue: TunQueue,
    pub(super) offloads: TunOffloads,
    region: Option<Region>,
    pub(super) namespace: NetNamespace,
    /// The router it is behind.
    pub(super) gate: Option<Arc<Gate>>,
}

impl Port {
    pub(super) fn new(
        queue: TunQueue,
        offloads: TunOffloads,
        region: Option<Region>,
        namespace: NetNamespace,
        gate: Option<Arc<Gate>>,
    ) -> Self {
        Self { queue, offloads, region, namespace, gate }
    }
}

/// Looks for plain text on the wire.
#[derive(Debug)]
struct Watch {
    needle: Vec<u8>,
    packets: AtomicU64,
    hits: AtomicU64,
}

impl Watch {
    fn look(&self, frame: &[u8]) {
        self.packets.fetch_add(1, Ordering::Relaxed);
        let Some((first, rest)) = self.needle.split_first() else { return };
        let mut left = frame;
        while let Some(at) = left.iter().position(|byte| byte == first) {
            left = &left[at + 1..];
            if left.starts_with(rest) {
                self.hits.fetch_add(1, Ordering::Relaxed);
                return;
            }
        }
    }
}

/// Hosts, addresses and links. A snapshot is replaced, never changed, so the
/// threads hold no lock while they move packets.
#[derive(Debug, Clone, Default)]
struct Map {
    ports: Vec<Arc<Port>>,
    /// A router's outside address belongs to the first host behind it.
    addresses: HashMap<IpAddr, usize>,
    /// Of each host, if any.
    firewalls: Vec<Option<Arc<Firewall>>>,
    /// By sender, then receiver.
    links: Vec<Vec<Arc<Link>>>,
    watch: Option<Arc<Watch>>,
}

/// See the module's description.
#[derive(Debug)]
pub(super) struct World {
    seed: u64,
    map: RwLock<Arc<Map>>,
}

impl World {
    pub(super) fn new(seed: u64) -> Self {
        Self { seed, map: RwLock::default() }
    }

    /// Number of hosts.
    pub(super) fn len(&self) -> usize {
        self.map().ports.len()
    }

    /// Adds a host, with links to and from all others.
    pub(super) fn add(&self, port: Port, addresses: &[IpAddr]) -> Result<(), WanError> {
        self.update(|map| {
            let new = map.ports.len();
            let link = |from: usize, to: usize, a: Option<Region>, b: Option<Region>| {
                let profile = match (a, b) {
                    (Some(a), Some(b)) if from != to => a.link(b),
                    _ => Profile::default(),
                };
                let label = ((from as u64) << 32) | to as u64;
                let seed = Dice::labelled(self.seed, label).next_u64();
                Ok::<_, WanError>(Arc::new(Mutex::new(Netem::new(profile, seed)?)))
            };
            for (from, row) in map.links.iter_mut().enumerate() {
                row.push(link(from, new, map.ports[from].region, port.region)?);
            }
            let regions = map.ports.iter().map(|other| other.region).chain([port.region]);
            let row: Result<Vec<_>, _> =
                regions.enumerate().map(|(to, other)| link(new, to, port.region, other)).collect();
            map.links.push(row?);
            map.ports.push(Arc::new(port));
            map.firewalls.push(None);
            for address in addresses {
                if map.addresses.insert(*address, new).is_some() {
                    return Err(WanError::Address(*address));
                }
            }
            Ok(())
        })
    }

    pub(super) fn add_route(&self, host: usize, address: IpAddr) -> Result<(), WanError> {
        self.port(host)?;
        self.update(|map| match map.addresses.insert(address, host) {
            None => Ok(()),
            Some(_) => Err(WanError::Address(address)),
        })
    }

    pub(super) fn remove_route(&self, host: usize, address: IpAddr) -> Result<(), WanError> {
        self.update(|map| match map.addresses.remove(&address) {
            Some(owner) if owner == host => Ok(()),
            _ => Err(WanError::Address(address)),
        })
    }

    pub(super) fn port(&self, host: usize) -> Result<Arc<Port>, WanError> {
        self.map().ports.get(host).cloned().ok_or(WanError::NoSuchHost(host))
    }

    /// Looks at one direction of a link.
    pub(super) fn look<T>(
        &self,
        from: usize,
        to: usize,
        f: impl FnOnce(&mut Netem<Vec<u8>>) -> T,
    ) -> Result<T, WanError> {
        let map = self.map();
        let row = map.links.get(from).ok_or(WanError::NoSuchHost(from))?;
        let link = row.get(to).ok_or(WanError::NoSuchHost(to))?;
        Ok(f(&mut lock(link)))
    }

    /// Changes one direction of a link.
    pub(super) fn change(
        &self,
        from: usize,
        to: usize,
        change: impl FnOnce(&mut Profile),
    ) -> Result<(), WanError> {
        self.look(from, to, |link| {
            let mut profile = *link.profile();
            change(&mut profile);
            link.set_profile(profile)
        })??;
        Ok(())
    }

    /// Looks for `needle` in every frame from now on, or no more.
    pub(super) fn watch(&self, needle: Option<&[u8]>) {
        let watch = needle.map(|needle| {
            Arc::new(Watch {
                needle: needle.to_vec(),
                packets: AtomicU64::new(0),
                hits: AtomicU64::new(0),
            })
        });
        let mut map = self.map.write().unwrap_or_else(PoisonError::into_inner);
        *map = Arc::new(Map { watch, ..Map::clone(&map) });
    }

    /// Frames looked into since [`World::watch`] and those with the needle.
    pub(super) fn watched(&self) -> (u64, u64) {
        self.map().watch.as_ref().map_or((0, 0), |watch| {
            (watch.packets.load(Ordering::Relaxed), watch.hits.load(Ordering::Relaxed))
        })
    }

    pub(super) fn set_firewall(&self, host: usize, firewall: Firewall) -> Result<(), WanError> {
        self.port(host)?;
        self.update(|map| {
            let some = firewall != Firewall::default();
            map.firewalls[host] = some.then(|| Arc::new(firewall.clone()));
            Ok(())
        })
    }

    /// Where a packet that host `from` sent goes; what leaves a router is
    /// translated on the occasion. Every packet passes here once.
    fn route(map: &Map, from: usize, facts: &Facts, frame: &mut [u8]) -> Option<usize> {
        if let Some(firewall) = &map.firewalls[from]
            && !firewall.passes(frame, true)
        {
            return None;
        }
        if let Some(gate) = &map.ports[from].gate
            && let Way::Inside(to) = gate.leave(frame, facts.destination, Instant::now())?
        {
            return Some(to);
        }
        map.addresses.get(&facts.destination).copied()
    }

    /// The host that gets a packet which arrived at host `to` or the router in
    /// front of it.
    fn admit(map: &Map, from: usize, to: usize, frame: &mut [u8]) -> Option<usize> {
        let host = match &map.ports[to].gate {
            Some(gate) => {
                let same = map.ports[from].gate.as_ref().is_some_and(|own| Arc::ptr_eq(own, gate));
                if same { to } else { gate.enter(frame, Instant::now())? }
            }
            None => to,
        };
        let welcome = map.firewalls[host].as_ref().is_none_or(|wall| wall.passes(frame, false));
        welcome.then_some(host)
    }

    /// Moves the packets that host `from` sends until the waker is used or
    /// the interface is gone.
    pub(super) fn serve(&self, from: usize, waker: &Waker) {
        let Ok(port) = self.port(from) else { return };
        let mut buffer = vec![0; FRAME_LEN];
        let mut due = Vec::new();
        loop {
            let map = self.map();
            let mut idle = true;
            for _ in 0..READ_BATCH {
                match port.queue.read(&mut buffer) {
                    Ok(length) => {
                        idle = false;
                        Self::send(&map, from, &mut buffer[..length]);
                    }
                    Err(error) if error.raw_os_error() == Some(EBADFD) => return,
                    Err(_) => break,
                }
            }
            let next = Self::deliver(&map, from, &mut due);
            if !idle {
                continue;
            }
            let limit = next.map(|at| at.saturating_duration_since(Instant::now()));
            if limit == Some(Duration::ZERO) {
                continue;
            }
            match wait_readable_for(&[port.queue.as_fd()], waker, limit) {
                Ok(Some(Ready::Woken)) | Err(_) => return,
                Ok(_) => {}
            }
        }
    }

    /// Puts a frame on its link.
    fn send(map: &Map, from: usize, frame: &mut [u8]) {
        let Some(facts) = Facts::read(frame) else { return };
        let Some(to) = Self::route(map, from, &facts, frame) else { return };
        if let Some(watch) = &map.watch {
            watch.look(frame);
        }
        let mut link = lock(&map.links[from][to]);
        let now = Instant::now();
        match facts.split {
            Some(how) if link.profile().per_packet() || !map.ports[to].offloads.uso => {
                split(frame, how, |piece| {
                    let length = piece.len() - VNET_HEADER_LEN;
                    link.handle(piece, length, now);
                });
            }
            _ => {
                let mtu = link.profile().mtu.map_or(usize::MAX, usize::from);
                let fragments = (facts.length > mtu).then(|| fragment(frame, mtu)).flatten();
                for piece in fragments.unwrap_or_else(|| vec![frame.to_vec()]) {
                    let length = piece.len() - VNET_HEADER_LEN;
                    link.handle(piece, length, now);
                }
            }
        }
    }

    /// Delivers what is due of all that `from` sent; says when to come again.
    fn deliver(map: &Map, from: usize, due: &mut Vec<Vec<u8>>) -> Option<Instant> {
        let now = Instant::now();
        let mut next: Option<Instant> = None;
        for (to, link) in map.links[from].iter().enumerate() {
            {
                let mut link = lock(link);
                while let Some(frame) = link.poll(now) {
                    due.push(frame);
                }
                next = next.into_iter().chain(link.poll_timeout()).min();
            }
            for mut frame in due.drain(..) {
                let Some(host) = Self::admit(map, from, to, &mut frame) else { continue };
                // A host whose interface is down or whose queue is full loses
                // packets, as hosts do.
                let _: io::Result<()> = map.ports[host].queue.write(&frame);
            }
        }
        next
    }

    fn map(&self) -> Arc<Map> {
        self.map.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn update(&self, f: impl FnOnce(&mut Map) -> Result<(), WanError>) -> Result<(), WanError> {
        let mut map = self.map.write().unwrap_or_else(PoisonError::into_inner);
        let mut changed = Map::clone(&map);
        f(&mut changed)?;
        *map = Arc::new(changed);
        Ok(())
    }
}

/// A panic elsewhere leaves a link usable: every change to it is complete.
fn lock(link: &Link) -> MutexGuard<'_, Netem<Vec<u8>>> {
    link.lock().unwrap_or_else(PoisonError::into_inner)
}
