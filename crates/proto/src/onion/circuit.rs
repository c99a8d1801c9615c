//! Circuits as workers see them: a [`HopCircuit`] at each hop, a
//! [`ClientCircuit`] at the client. Made by the slow path ([`super::relay`],
//! [`super::client`]), then shared; what changes in them does so behind locks
//! that one worker at a time has reason to take.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwapOption;

use super::cell::{
    BODY_LEN, CELL_LEN, CircuitId, HEADER_LEN, Kind, SLOT_LEN, TEXT_LEN, write_header,
};
use super::compartment::Compartment;
use super::keys::HopSecrets;
use super::layer::{
    BackwardClient, BackwardHop, BackwardPass, CellError, ForwardClient, ForwardHop, Opened,
    SEAL_BUFFER, open_backward, seal_forward, text_at,
};
use super::session::ExitSession;
use crate::link::peer::PeerLink;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The link to one neighbour on a circuit.
#[derive(Debug, Clone)]
pub struct Neighbour {
    /// The neighbour.
    pub peer: Arc<PeerLink>,
    /// The number it knows the circuit by: written into cells to it.
    pub theirs: CircuitId,
    /// The number it writes into cells to us.
    pub ours: CircuitId,
}

/// Parts a hop needs only while cells flow.
#[derive(Default)]
struct Warm {
    pass: Option<BackwardPass>,
    voice: Option<BackwardHop>,
}

/// One circuit at one of its hops.
pub struct HopCircuit {
    /// Towards the client.
    pub previous: Neighbour,
    /// Away from it, once extended.
    pub next: ArcSwapOption<Neighbour>,
    /// The session it belongs to, at an exit.
    pub session: ArcSwapOption<ExitSession>,
    /// Names it in proofs.
    pub hash: [u8; 32],
    secrets: HopSecrets,
    forward: Mutex<ForwardHop>,
    warm: Mutex<Warm>,
    /// Last cell of either direction, ms on the engine's clock.
    pub last_ms: AtomicU64,
}

impl std::fmt::Debug for HopCircuit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "HopCircuit({:#x}, redacted)", self.previous.ours.get())
    }
}

impl HopCircuit {
    /// A circuit that ends here for now.
    pub fn new(previous: Neighbour, secrets: HopSecrets, hash: [u8; 32], now_ms: u64) -> Self {
        Self {
            previous,
            next: ArcSwapOption::empty(),
            session: ArcSwapOption::empty(),
            hash,
            forward: Mutex::new(ForwardHop::new(&secrets)),
            warm: Mutex::default(),
            secrets,
            last_ms: AtomicU64::new(now_ms),
        }
    }

    fn note(&self, now_ms: u64) {
        self.last_ms.store(now_ms, Ordering::Relaxed);
    }

    /// Opens the forward cell `cell` into `out`, both [`CELL_LEN`] long; for
    /// [`Opened::Here`] the text follows the header of `out`.
    ///
    /// # Errors
    /// [`CellError`]: to be dropped and counted.
    pub fn open(&self, cell: &[u8], out: &mut [u8], now_ms: u64) -> Result<Opened, CellError> {
        let (body, out) = (&cell[HEADER_LEN..], &mut out[HEADER_LEN..]);
        let opened = lock(&self.forward).open(body, out, now_ms)?;
        self.note(now_ms);
        Ok(opened)
    }

    /// Adds our layer to a backward cell and addresses it to the neighbour.
    pub fn pass_back(&self, cell: &mut [u8], now_ms: u64) {
        let mut warm = lock(&self.warm);
        let pass = warm.pass.get_or_insert_with(|| BackwardPass::new(&self.secrets));
        pass.add(&mut cell[HEADER_LEN..]);
        write_header(cell, Kind::Backward, self.previous.theirs);
        self.note(now_ms);
    }

    /// Where the text of a backward cell of our own begins in the cell.
    pub const TEXT_AT: usize = HEADER_LEN + SLOT_LEN;

    /// Seals a backward cell of our own, whose text was written from
    /// [`Self::TEXT_AT`] on.
    pub fn seal_back(&self, cell: &mut [u8], now_ms: u64) {
        let mut warm = lock(&self.warm);
        let voice = warm.voice.get_or_insert_with(|| BackwardHop::new(&self.secrets));
        voice.seal(&mut cell[HEADER_LEN..CELL_LEN], now_ms);
        write_header(cell, Kind::Backward, self.previous.theirs);
        self.note(now_ms);
    }

    /// A backward cell that says `text`.
    pub fn say(&self, text: &[u8], now_ms: u64) -> Vec<u8> {
        let mut cell = vec![0; CELL_LEN];
        let len = text.len().min(TEXT_LEN);
        cell[Self::TEXT_AT..Self::TEXT_AT + len].copy_from_slice(&text[..len]);
        self.seal_back(&mut cell, now_ms);
        cell
    }

    /// Numbers the client used for cells to us or beyond, and those that came.
    pub fn progress(&self) -> (u64, u64) {
        lock(&self.forward).progress()
    }

    /// Drops what can be made again: for circuits without traffic.
    pub fn cool(&self) {
        lock(&self.forward).cool();
        // The voice's counter must not start again: only the stateless part goes.
        lock(&self.warm).pass = None;
    }
}

/// The largest buffer a client seals a cell in.
pub const CLIENT_BUFFER: usize = HEADER_LEN + SEAL_BUFFER;

/// One circuit at its client.
pub struct ClientCircuit {
    /// Tells the client's circuits apart.
    pub serial: u64,
    /// The session it is for.
    pub compartment: Compartment,
    /// The first hop.
    pub entry: Neighbour,
    forward: Mutex<Vec<ForwardClient>>,
    backward: Mutex<Vec<BackwardClient>>,
    /// Hops so far.
    hops: AtomicU32,
    /// Last authentic cell of the last hop, ms on the engine's clock.
    pub last_rx_ms: AtomicU64,
    /// Cells sent and received.
    pub tx_cells: AtomicU64,
    /// See `tx_cells`.
    pub rx_cells: AtomicU64,
}

impl std::fmt::Debug for ClientCircuit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ClientCircuit({}, {} hops, redacted)", self.serial, self.hops())
    }
}

impl ClientCircuit {
    /// A circuit of one hop, for the first session.
    pub fn new(serial: u64, entry: Neighbour, first: &HopSecrets, now_ms: u64) -> Self {
        let circuit = Self {
            serial,
            compartment: Compartment::DEFAULT,
            entry,
            forward: Mutex::default(),
            backward: Mutex::default(),
            hops: AtomicU32::new(0),
            last_rx_ms: AtomicU64::new(now_ms),
            tx_cells: AtomicU64::new(0),
            rx_cells: AtomicU64::new(0),
        };
        circuit.extend(first);
        circuit
    }

    /// For another session than the first.
    #[must_use]
    pub fn in_compartment(self, compartment: Compartment) -> Self {
        Self { compartment, ..self }
    }

    /// Adds a hop.
    pub fn extend(&self, secrets: &HopSecrets) {
        lock(&self.forward).push(ForwardClient::new(secrets));
        lock(&self.backward).push(BackwardClient::new(secrets));
        self.hops.fetch_add(1, Ordering::Relaxed);
    }

    /// Hops so far.
    pub fn hops(&self) -> usize {
        self.hops.load(Ordering::Relaxed) as usize
    }

    /// Where the text of a cell for hop `hop` (from 0) begins in a buffer of
    /// [`CLIENT_BUFFER`] bytes.
    pub fn text_at(hop: usize) -> usize {
        HEADER_LEN + text_at(hop + 1)
    }

    /// Seals the text in `buffer` for hop `hop`; the cell is then its first
    /// [`CELL_LEN`] bytes.
    pub fn seal(&self, hop: usize, buffer: &mut [u8], now_ms: u64) {
        seal_forward(&mut lock(&self.forward)[..=hop], &mut buffer[HEADER_LEN..], now_ms);
        write_header(buffer, Kind::Forward, self.entry.theirs);
        self.tx_cells.fetch_add(1, Ordering::Relaxed);
    }

    /// A cell that says `text` to hop `hop`.
    pub fn say(&self, hop: usize, text: &[u8], now_ms: u64) -> Vec<u8> {
        let mut buffer = vec![0; CLIENT_BUFFER];
        let at = Self::text_at(hop);
        let len = text.len().min(super::cell::FORWARD_LEN);
        buffer[at..at + len].copy_from_slice(&text[..len]);
        self.seal(hop, &mut buffer, now_ms);
        buffer.truncate(CELL_LEN);
        buffer
    }

    /// Opens a backward cell; `out` ([`TEXT_LEN`] bytes) is what the returned
    /// hop says.
    ///
    /// # Errors
    /// [`CellError`]: to be dropped and counted.
    pub fn open(&self, cell: &mut [u8], out: &mut [u8], now_ms: u64) -> Result<usize, CellError> {
        let mut backward = lock(&self.backward);
        let body = &mut cell[HEADER_LEN..HEADER_LEN + BODY_LEN];
        let hop = open_backward(&mut backward, body, out, now_ms)?;
        let last = hop + 1 == backward.len();
        drop(backward);
        self.rx_cells.fetch_add(1, Ordering::Relaxed);
        if last {
            self.last_rx_ms.store(now_ms, Ordering::Relaxed);
        }
        Ok(hop)
    }

    /// Cells hop `hop` has sent us, and those that arrived.
    pub fn progress(&self, hop: usize) -> (u64, u64) {
        lock(&self.backward).get(hop).map_or((0, 0), BackwardClient::progress)
    }
}
