//! Proof of path: each hop signs, with its node key, that it carries a circuit,
//! and which node comes after it.
//!
//! The signed bytes: the circuit's handshake hash at that hop 32, the client's
//! nonce 32, time 8 LE, the next node 10 (zeros at the end). Whoever has the
//! hops' descriptors can check that; see `control::path_proof`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use data_encoding::{BASE64, HEXLOWER};
use rand_core::RngCore as _;
use tokio::sync::oneshot;
use warren_control::path_proof;
use warren_proto::link::relay::NodeSuffix;
use warren_proto::onion::circuit::HopCircuit;
use warren_proto::onion::client::Phase;
use warren_proto::onion::relay::next_of;
use warren_types::api::{HopProof, PathProof};

use super::super::{Daemon, unix_now};
use crate::api::ApiError;
use crate::random::OsRandom;

/// How long hops have to answer.
const PATIENCE: Duration = Duration::from_secs(3);

/// A proof being gathered.
pub(super) struct Proving {
    serial: u64,
    nonce: [u8; 32],
    hops: Vec<Option<HopProof>>,
    pub(super) until: Instant,
    reply: oneshot::Sender<Result<PathProof, ApiError>>,
}

impl Daemon {
    /// A client wants our word for a circuit.
    pub(super) fn sign_proof(&mut self, circuit: &Arc<HopCircuit>, nonce: [u8; 32]) {
        let key = self.control.identity();
        let time = unix_now().as_secs();
        let body = path_proof::body(&circuit.hash, &nonce, time, &next_of(circuit));
        let signature = key.sign(path_proof::LABEL, &body);
        let now_ms = self.now_ms();
        self.onion.relay.prove(circuit, time, signature, now_ms);
    }

    /// Asks all hops of the active circuit.
    pub(in super::super) fn prove_path(
        &mut self,
        reply: oneshot::Sender<Result<PathProof, ApiError>>,
    ) {
        let mut nonce = [0; 32];
        OsRandom.fill_bytes(&mut nonce);
        let now_us = self.now_us();
        let active = self.onion.client.circuits(now_us).into_iter().next();
        let Some(active) = active.filter(|circuit| circuit.phase == Phase::Active) else {
            let text = "there is no path to verify: `warren connect` first".to_owned();
            let _ = reply.send(Err(ApiError::Conflict(text)));
            return;
        };
        self.onion.client.prove(nonce, now_us);
        self.onion.proving = Some(Proving {
            serial: active.serial,
            nonce,
            hops: vec![None; active.hops.len()],
            until: Instant::now() + PATIENCE,
            reply,
        });
        self.flush_onion();
    }

    /// A hop has signed.
    pub(super) fn take_proof(
        &mut self,
        serial: u64,
        hop: usize,
        time: u64,
        next: NodeSuffix,
        signature: &[u8; 64],
    ) {
        let circuits = self.onion.client.circuits(self.now_us());
        let view = circuits.iter().find(|view| view.serial == serial);
        let Some(view) = view.and_then(|view| view.hops.get(hop)) else { return };
        let (node, hash) = (view.node, view.hash);
        let Some(member) = self.suffix_node(&node).and_then(|id| self.mesh.view(id)).cloned()
        else {
            return;
        };
        let Some(proving) = self.onion.proving.as_mut().filter(|p| p.serial == serial) else {
            return;
        };
        let descriptor = minicbor::to_vec(&*member.descriptor.signed).unwrap_or_default();
        if let Some(slot) = proving.hops.get_mut(hop) {
            *slot = Some(HopProof {
                name: member.name.to_string(),
                id: member.id(),
                descriptor: BASE64.encode(&descriptor),
                circuit: HEXLOWER.encode(&hash),
                next: HEXLOWER.encode(&next),
                node: HEXLOWER.encode(&node),
                time,
                signature: HEXLOWER.encode(signature),
            });
        }
        let complete = proving.hops.iter().all(Option::is_some);
        self.finish_proof(complete);
    }

    /// Answers when all is there, or nobody is waited for any longer.
    pub(super) fn finish_proof(&mut self, complete: bool) {
        let due = |proving: &Proving| complete || Instant::now() >= proving.until;
        let Some(proving) = self.onion.proving.take_if(|proving| due(proving)) else { return };
        let length = proving.hops.len();
        let proof = PathProof {
            network: self.member.network.id.to_string(),
            nonce: HEXLOWER.encode(&proving.nonce),
            hops: proving.hops.into_iter().flatten().collect(),
            length,
        };
        let _ = proving.reply.send(Ok(proof));
    }
}
