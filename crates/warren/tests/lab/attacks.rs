//! Strangers on the port.

use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Result, ensure};
use blake2::digest::{FixedOutput, KeyInit, Update};
use blake2::{Blake2s256, Blake2sMac, Digest, digest::consts::U16};
use warren_lab::topology::Pair;
use warren_lab::traffic::{Until, echo, stream};
use warren_types::{LinkPublicKey, Suite};

use crate::story::{PATIENCE, Two};

/// Runs a flood of datagrams from the left host at the right daemon while the
/// two honest nodes use their link.
fn flood(make: impl Fn(u64, &LinkPublicKey) -> Vec<u8> + Sync) -> Result<()> {
    let mut two = Two::start(1500, Suite::Aes256Gcm)?;
    let to = two.right.overlay_address(false)?;
    let key = two.right.status()?.node.public_key;
    let socket = two.pair.left.namespace().run(|| UdpSocket::bind((Pair::LEFT, 0)))??;
    socket.connect((Pair::RIGHT, 51820))?;
    let stop = AtomicBool::new(false);
    let (flooded, echoed, streamed) = std::thread::scope(|scope| {
        let flooding = scope.spawn(|| {
            let mut sent: u64 = 0;
            while !stop.load(Ordering::Relaxed) {
                // Not more than one core can send anyway, and leaves some time
                // to the honest ones on a machine with two.
                if socket.send(&make(sent, &key)).is_ok() {
                    sent += 1;
                }
                if sent.is_multiple_of(32) {
                    std::thread::sleep(Duration::from_micros(500));
                }
            }
            sent
        });
        std::thread::sleep(Duration::from_millis(300));
        let (left, right) = (&two.pair.left, &two.pair.right);
        let echoed = echo(left, right, to, 300, Duration::from_millis(5), 100);
        let streamed = stream(left, right, to, Until::Bytes(16 << 20));
        stop.store(true, Ordering::Relaxed);
        (flooding.join().unwrap_or(0), echoed, streamed)
    });
    let (echoed, streamed) = (echoed?, streamed?);
    ensure!(flooded > 5_000, "no flood: {flooded} datagrams");
    ensure!(echoed.loss() < 0.02, "honest echoes were lost: {echoed:?}");
    ensure!(streamed.gbps() > 0.02, "honest traffic stalled: {streamed:?}");
    let status = two.right.status()?;
    let dropped: u64 = status.drops.values().sum();
    ensure!(dropped > flooded / 4, "the flood is not counted: {:?}", status.drops);
    // New honest handshakes still work after it.
    let spec = two.left.crash()?;
    two.left = spec.up(None, PATIENCE)?;
    two.left.wait_connected("right", PATIENCE)?;
    ensure!(two.right.cost()?.resident < 100 << 20, "memory grew: {:?}", two.right.cost()?);
    Ok(())
}

pub(crate) fn garbage_does_not_hurt_honest_peers() -> Result<()> {
    flood(|i, _| {
        // Every first byte, many lengths, and content that is never the same.
        let length = 1 + (i * 37) as usize % 1400;
        let mut state = i.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut bytes = Vec::with_capacity(length);
        while bytes.len() < length {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            bytes.extend(state.to_le_bytes());
        }
        bytes.truncate(length);
        bytes[0] = i as u8;
        bytes
    })
}

pub(crate) fn forged_initiations() -> Result<()> {
    // Valid mac1, so that only the handshake itself (or a cookie) can tell.
    flood(|i, key| {
        let mut message = vec![0x11, 0, 0, 0];
        let mut state = i.wrapping_mul(0xd129_0f2c_4cd3_a3a5) | 1;
        while message.len() < 116 {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            message.extend(state.to_le_bytes());
        }
        message.truncate(116);
        let label = Digest::finalize(Digest::chain_update(
            Digest::chain_update(Blake2s256::new(), b"mac1----"),
            key.0,
        ));
        let mut mac = <Blake2sMac<U16> as KeyInit>::new_from_slice(&label).expect("32 bytes");
        mac.update(&message);
        message.extend(mac.finalize_fixed());
        message.extend([0; 16]);
        message
    })
}
