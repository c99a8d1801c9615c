//! Link handshakes: `Noise_IKpsk2` over X25519 and BLAKE2s, exactly
//! WireGuard's (<https://www.wireguard.com/papers/wireguard.pdf>, section 5.4)
//! for suite `chacha20poly1305`, and the same with AES-256-GCM, other message
//! types and another prologue for suite `aes256gcm`.
//!
//! - [`message`]: the three handshake datagrams, byte by byte.
//! - [`handshake`]: one handshake as initiator or responder, down to the two
//!   transport keys. snow runs the Noise state machine.
//! - [`nk`]: the handshake of circuits, in which the client stays unknown.
//! - [`mac`]: mac1, mac2, cookies.
//! - [`tai64n`]: the timestamp that keeps an initiation from being replayed.
//!
//! Invariants: no clock and no randomness of its own; nothing panics on
//! outside bytes; keys are zeroised and never printed (but snow's chaining
//! key, which lives as long as a handshake and which snow does not wipe).
//! Deliberately not here: timers, peers, retries, rate limits (the engine's).

pub mod handshake;
pub mod mac;
pub mod message;
pub mod nk;
mod resolver;
pub mod tai64n;

pub use handshake::{HandshakeError, Initiator, OpenedInitiation, StaticKey, TransportKeys};
pub use mac::{MacKey, mac1_ok};
pub use tai64n::Tai64n;
