//! Entry functions for circuits; each takes any bytes and must return.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use warren_proto::link::peer::PeerLink;
use warren_proto::link::receive::Receiver;
use warren_proto::link::relay::{NodeSuffix, suffix};
use warren_proto::noise::{MacKey, nk};
use warren_proto::onion::cell::{
    BACKWARD_LEN, CELL_LEN, CircuitId, FORWARD_LEN, HEADER_LEN, Kind, is_layered, parse, plain,
    write_header,
};
use warren_proto::onion::circuit::{ClientCircuit, HopCircuit, Neighbour};
use warren_proto::onion::handshake::{FIRST_LEN, Pending, hint, respond};
use warren_proto::onion::keys::HopSecrets;
use warren_proto::onion::payload::{
    Answer, MAX_SEQUENCE, Records, Request, parse_data, write_data_head,
};
use warren_proto::onion::relay::{Duties, Neighbours, Relay};
use warren_proto::onion::session::{ClientSession, ExitSession, Lease};
use warren_proto::onion::tables::{Entry, OnionTables};
use warren_types::{LinkPublicKey, Suite};

use super::proto::{Counter, Sink, key, node, suite_of, worker};

const HERE: u32 = 1;
const NEXT: u32 = 2;
const OURS: u32 = 3;

fn secrets(suite: Suite, n: u8) -> HopSecrets {
    HopSecrets::derive(suite, &[n; 32], &[n; 96])
}

/// First byte: bit 0 the suite, bit 1 a TUN without offloads, bits 2 and 6 what
/// the rest is: a frame of a neighbour; what a client says to us, an exit; what
/// it says to a hop behind us; what the exit of our own circuit says. Bit 4: the
/// frame is made as long as a cell, or the text session data. The cell comes
/// twice, and once more with a byte changed.
pub fn cell(data: &[u8]) {
    let Some((&flags, rest)) = data.split_first() else { return };
    let worker = worker(flags & 0b1011);
    let suite = worker.suite;
    let [peer, other] = worker.peers.clone();
    let neighbour = |peer: &Arc<PeerLink>, theirs, ours| Neighbour {
        peer: peer.clone(),
        theirs: CircuitId::new(theirs),
        ours: CircuitId::new(ours),
    };
    let onion = &worker.tables.onion;
    // We are the second hop of one circuit, and the client of another one.
    let hop = neighbour(&peer, 9, HERE);
    let circuit = Arc::new(HopCircuit::new(hop, secrets(suite, 2), [2; 32], 1));
    circuit.next.store(Some(Arc::new(neighbour(&other, 9, NEXT))));
    let session = Arc::new(ExitSession::new(Lease::new(1).expect("the first")));
    circuit.session.store(Some(session.clone()));
    onion.insert(CircuitId::new(HERE), Entry::Hop(circuit.clone()));
    onion.insert(CircuitId::new(NEXT), Entry::HopBack(circuit));
    let ours = ClientCircuit::new(1, neighbour(&peer, 9, OURS), &secrets(suite, 4), 1);
    onion.insert(CircuitId::new(OURS), Entry::Client(Arc::new(ours)));
    onion.client.store(Some(Arc::new(ClientSession::default())));

    let mut text = rest.to_vec();
    let mode = flags >> 2 & 1 | flags >> 5 & 2;
    if flags & 16 != 0 {
        match mode {
            0 => text.resize(CELL_LEN, 0),
            _ if text.len() >= 8 => {
                let active = text[1] & 1 == 0;
                write_data_head(&mut text, 5, active);
            }
            _ => {}
        }
    }
    let frame = match mode {
        0 => text[..text.len().min(60_000)].to_vec(),
        1 | 2 => {
            let client = ClientCircuit::new(2, neighbour(&peer, HERE, 9), &secrets(suite, 2), 1);
            client.extend(&secrets(suite, 3));
            client.say(usize::from(mode == 2), &text, 1)
        }
        _ => {
            let exit = neighbour(&peer, OURS, 9);
            let exit = HopCircuit::new(exit, secrets(suite, 4), [4; 32], 1);
            exit.say(&text, 1)
        }
    };
    let mut altered = frame.clone();
    if let Some(byte) =
        altered.get_mut(HEADER_LEN + usize::from(rest.first().copied().unwrap_or(0)))
    {
        *byte ^= 1;
    }
    let mac_key = MacKey::for_receiver(&key(1).public());
    let from = SocketAddr::from(([198, 51, 100, 1], 1024));
    let mut receiver = Receiver::new(worker.limits);
    let mut sink = Sink::default();
    for frame in [&altered, &frame, &frame] {
        let message = worker.message(frame);
        let n = message.len();
        receiver.train(&mut sink, &worker.tables, &mac_key, from, flags, &message, n, 5);
    }
    receiver.finish(&mut sink);
    receiver.rest(&mut sink);
    let cells = &onion.cells;
    if is_layered(&frame) && frame.len() == CELL_LEN && mode != 0 {
        // Only the genuine one, and once.
        let (forward, ended) =
            (cells.forward.load(Ordering::Relaxed), cells.ended.load(Ordering::Relaxed));
        assert_eq!((forward, ended), if mode == 2 { (1, 0) } else { (0, 1) });
        assert_eq!(session.stream.duplicates.load(Ordering::Relaxed), 0);
    }
}

/// All bytes are a text under the layers.
pub fn cell_text(data: &[u8]) {
    if let Some(request) = Request::parse(data) {
        let again = request.encode();
        assert!(again.len() <= data.len().min(FORWARD_LEN));
        assert_eq!(Request::parse(&again), Some(request));
    }
    if let Some(answer) = Answer::parse(data) {
        let again = answer.encode();
        assert!(again.len() <= data.len().min(BACKWARD_LEN));
        assert_eq!(Answer::parse(&again), Some(answer));
    }
    if let Some((sequence, active)) = parse_data(data) {
        assert!(sequence <= MAX_SEQUENCE);
        let mut head = [0; 8];
        write_data_head(&mut head, sequence, active);
        assert_eq!(head, data[..8]);
    }
    let mut read = 8;
    for (packet, _) in Records::of(data) {
        assert!(!packet.is_empty());
        read += 2 + packet.len();
        assert!(read <= data.len());
    }
}

/// First byte: bit 0 the suite, bits 1 and 2 what the rest is: a first message;
/// the payload of a genuine one; a second message.
pub fn circuit_handshake(data: &[u8]) {
    let Some((&flags, rest)) = data.split_first() else { return };
    let (suite, rng) = (suite_of(flags), &mut Counter(0));
    let onion = key(1);
    match flags >> 1 & 3 {
        0 => {
            let _ = respond(suite, &onion, rest, rng);
        }
        1 => {
            let started = nk::Initiator::start(suite, &onion.public().0, rest, rng);
            let (_, first) = started.expect("our own key is good");
            let answered = respond(suite, &onion, &first, rng);
            assert!(answered.is_err() || first.len() == FIRST_LEN);
        }
        _ => {
            let started = Pending::start(suite, &onion.public().0, rng);
            let (pending, first) = started.expect("our own key is good");
            assert!(pending.finish(rest).is_err(), "it answers another question");
            let (second, _) = respond(suite, &onion, &first, rng).expect("it is for this key");
            assert!(second.len() < first.len(), "no amplification");
        }
    }
}

struct Book(Vec<Arc<PeerLink>>);

impl Neighbours for Book {
    fn by_suffix(&self, name: &NodeSuffix) -> Option<Arc<PeerLink>> {
        self.0.iter().find(|link| link.node().map(suffix) == Some(*name)).cloned()
    }
    fn has_role(&self, peer: &PeerLink) -> bool {
        peer.node() != Some(node(0))
    }
}

/// What a relay is asked to do, byte by byte: see [`Story::step`].
pub fn relay_story(data: &[u8]) {
    let mut story = Story::new();
    let mut rest = data;
    for _ in 0..64 {
        let Some((&verb, tail)) = rest.split_first() else { break };
        let (&with, tail) = tail.split_first().unwrap_or((&0, tail));
        rest = story.step(verb, with, tail);
        story.look();
    }
    story.relay.shut_down(story.now_ms);
    story.look();
    let stats = story.relay.stats();
    assert_eq!((stats.circuits, stats.sessions), (0, 0));
    for id in &story.numbers {
        assert!(story.tables.circuit(*id).is_none(), "a number outlived its circuit");
    }
}

struct Story {
    relay: Relay,
    tables: Arc<OnionTables>,
    /// A client, then two nodes.
    book: Book,
    rng: Counter,
    now_ms: u64,
    begun: u32,
    /// Numbers that the relay told others.
    numbers: Vec<CircuitId>,
    /// Creates that it sent: to whom, its number, the content.
    asked: Vec<(Arc<PeerLink>, CircuitId, Vec<u8>)>,
}

impl Story {
    fn new() -> Self {
        let peer = |n: u8| {
            let link = PeerLink::new(LinkPublicKey([n; 32]), Suite::Aes256Gcm, true);
            link.set_node(Some(node(n)));
            Arc::new(link)
        };
        let tables = Arc::new(OnionTables::default());
        let mut relay = Relay::new(Suite::Aes256Gcm, tables.clone());
        relay.set_keys(vec![key(1)]);
        let duties = Duties { entry: true, relay: true, exit: true, draining: false, ipv6: false };
        relay.set_duties(duties, 1);
        Self {
            relay,
            tables,
            book: Book((0..3).map(peer).collect()),
            rng: Counter(0),
            now_ms: 1,
            begun: 0,
            numbers: Vec::new(),
            asked: Vec::new(),
        }
    }

    fn circuit(&self, with: u8) -> Option<Arc<HopCircuit>> {
        let id = self.numbers.get(usize::from(with) % self.numbers.len().max(1))?;
        match self.tables.circuit(*id)? {
            Entry::Hop(circuit) | Entry::HopBack(circuit) => Some(circuit),
            Entry::Client(_) => None,
        }
    }

    fn cell(&mut self, peer: usize, cell: &[u8]) {
        let peer = self.book.0[peer % 3].clone();
        self.relay.handle_cell(&peer, cell, &self.book, self.now_ms, &mut self.rng);
    }

    fn say(&mut self, with: u8, text: &[u8]) {
        if let Some(circuit) = self.circuit(with) {
            self.relay.handle_request(&circuit, text, &self.book, self.now_ms, &mut self.rng);
        }
    }

    fn first(&mut self) -> Vec<u8> {
        let public = key(1).public().0;
        let started = Pending::start(Suite::Aes256Gcm, &public, &mut self.rng);
        [&hint(&public)[..], &started.expect("our own key is good").1].concat()
    }

    /// One event, by the verb; `with` says with whom, or how much.
    fn step<'a>(&mut self, verb: u8, with: u8, rest: &'a [u8]) -> &'a [u8] {
        let peer = usize::from(with);
        let (bytes, after) = rest.split_at(rest.len().min(36));
        match verb % 11 {
            // A genuine create, new or repeated.
            0 => {
                self.begun += u32::from(with < 128);
                let content = self.first();
                self.cell(peer, &plain(Kind::Create, CircuitId::new(self.begun), &content));
            }
            // The next node's genuine answer to an extension.
            1 => {
                if let Some((to, ours, content)) = self.asked.pop() {
                    let first = &content[4..4 + FIRST_LEN];
                    let answered = respond(Suite::Aes256Gcm, &key(1), first, &mut self.rng);
                    let second = answered.map(|(second, _)| second).unwrap_or_default();
                    let cell = plain(Kind::Created, ours, &[&[7, 7, 7][..], &second].concat());
                    let to = self.book.0.iter().position(|peer| Arc::ptr_eq(peer, &to));
                    self.cell(to.unwrap_or(0), &cell);
                }
            }
            2 => {
                let next = suffix(node(with % 4));
                let (hint, first) = ([1; 4], self.first()[4..].to_vec());
                self.say(with, &Request::Extend { next, hint, first }.encode());
            }
            3 => self.say(with, &Request::Link { secret: [with % 3; 32] }.encode()),
            4 => self.say(with, &Request::Close.encode()),
            5 => self.say(with, &Request::Prove { nonce: [1; 32] }.encode()),
            6 => {
                self.now_ms += u64::from(with) * 1_000;
                self.relay.handle_timeout(self.now_ms);
            }
            7 => {
                let bit = |n: u8| with >> n & 1 == 1;
                let duties = Duties {
                    entry: bit(0),
                    relay: bit(1),
                    exit: bit(2),
                    draining: bit(3),
                    ipv6: bit(4),
                };
                self.relay.set_duties(duties, self.now_ms);
            }
            8 => {
                let id = self.numbers.get(peer % self.numbers.len().max(1)).copied();
                let id = id.unwrap_or(CircuitId::new(5));
                self.cell(usize::from(with >> 6), &plain(Kind::Destroy, id, &[with]));
            }
            // Anything at all, as a cell or as a request.
            9 => {
                let mut cell = bytes.to_vec();
                cell.resize(CELL_LEN, with);
                self.cell(peer, &cell);
                return after;
            }
            _ => {
                self.say(with, bytes);
                return after;
            }
        }
        rest
    }

    /// Takes what the relay sends, and checks it.
    fn look(&mut self) {
        let mut sent = 0;
        while let Some((peer, mut cell)) = self.relay.poll_transmit() {
            sent += 1;
            let (kind, id) = parse(&cell).expect("cells have their form");
            let content = cell.split_off(HEADER_LEN);
            match kind {
                Kind::Create => {
                    self.numbers.push(id);
                    self.asked.push((peer, id, content));
                }
                Kind::Created => {
                    let [a, b, c] = [content[0], content[1], content[2]];
                    self.numbers.push(CircuitId::new(u32::from_le_bytes([a, b, c, 0])));
                }
                // What the next node is told says nothing of before.
                Kind::Destroy if id.get() == 0x07_0707 => {
                    assert!(content.iter().all(|byte| *byte == 0));
                }
                _ => {
                    let mut header = [0; HEADER_LEN];
                    write_header(&mut header, kind, id);
                    assert_eq!(header[..], cell[..]);
                }
            }
        }
        assert!(sent <= 4 + 2 * self.numbers.len(), "{sent} cells for one event");
        while self.relay.poll_event().is_some() {}
    }
}
