//! One handshake, as initiator or responder, from our static key and the
//! peer's to two transport keys (WireGuard sections 5.4.2, 5.4.3, 5.4.5).
//!
//! The pre-shared key enters with message 2, so whoever holds a handshake
//! passes the key valid then: a changed key takes effect at once.

use std::sync::{Arc, OnceLock};

use rand_core::CryptoRng;
use snow::HandshakeState;
use snow::params::NoiseParams;
use warren_types::{LinkPublicKey, LinkSecretKey, PresharedKey, Suite};
use zeroize::Zeroizing;

use super::mac::{Cookie, write_macs};
use super::message::{self, INITIATION_LEN, Kind, MAC_LEN, NOISE_1, NOISE_2, RESPONSE_LEN};
use super::resolver::{KeyPair, Resolver};
use super::tai64n::Tai64n;

/// Why a handshake message was refused. All of them are the sender's fault, or
/// a forger's: the link itself is unharmed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HandshakeError {
    /// Wrong type, length or reserved bytes.
    #[error("not a handshake message of the expected kind")]
    Malformed,
    /// An AEAD tag did not verify, or a key is a low-order point: wrong static
    /// or pre-shared key, or a forgery.
    #[error("the handshake message does not authenticate")]
    NotAuthentic,
}

/// Noise name and prologue of a suite. The prologue of `chacha20poly1305` is
/// WireGuard's identifier string.
pub(crate) fn protocol(suite: Suite) -> (&'static str, &'static [u8]) {
    match suite {
        Suite::Aes256Gcm => ("Noise_IKpsk2_25519_AESGCM_BLAKE2s", b"Warren v1 link"),
        Suite::ChaCha20Poly1305 => {
            ("Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s", b"WireGuard v1 zx2c4 Jason@zx2c4.com")
        }
    }
}

fn params(suite: Suite) -> NoiseParams {
    static PARSED: [OnceLock<NoiseParams>; 2] = [OnceLock::new(), OnceLock::new()];
    PARSED[suite as usize]
        .get_or_init(|| protocol(suite).0.parse().expect("both names are Noise names"))
        .clone()
}

/// Our static key pair, parsed once. Cheap to clone; the secret is wiped with
/// the last clone.
#[derive(Clone)]
pub struct StaticKey(Arc<KeyPair>);

impl StaticKey {
    /// From the secret key.
    pub fn new(secret: &LinkSecretKey) -> Self {
        Self(Arc::new(KeyPair::new(secret.expose())))
    }

    /// From the bytes of any X25519 secret key.
    pub fn from_bytes(secret: &[u8; 32]) -> Self {
        Self(Arc::new(KeyPair::new(secret)))
    }

    pub(super) fn pair(&self) -> Arc<KeyPair> {
        self.0.clone()
    }

    /// The public key.
    pub fn public(&self) -> LinkPublicKey {
        LinkPublicKey(self.0.public)
    }

    /// Handshakes with the owner of `peer` will be frequent: compute what is
    /// the same in all of them once.
    pub fn remember(&self, peer: &LinkPublicKey) {
        self.0.remember(&peer.0);
    }

    /// Wipes what [`Self::remember`] keeps.
    pub fn forget(&self, peer: &LinkPublicKey) {
        self.0.forget(&peer.0);
    }

    fn builder<'a>(&self, suite: Suite, rng: &mut dyn CryptoRng) -> snow::Builder<'a> {
        let mut ephemeral = Zeroizing::new([0; 32]);
        rng.fill_bytes(&mut ephemeral[..]);
        let resolver = Resolver { local: Some(self.0.clone()), ephemeral };
        snow::Builder::with_resolver(params(suite), Box::new(resolver))
            .local_private_key(&[0; 32])
            .and_then(|builder| builder.prologue(protocol(suite).1))
            .expect("each is set once")
    }
}

impl std::fmt::Debug for StaticKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "StaticKey({}, secret redacted)", self.public())
    }
}

/// The result of a handshake: one key for each direction.
pub struct TransportKeys {
    /// Seals what we send.
    pub send: Zeroizing<[u8; 32]>,
    /// Opens what we receive.
    pub receive: Zeroizing<[u8; 32]>,
}

impl std::fmt::Debug for TransportKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TransportKeys(redacted)")
    }
}

fn psk_bytes(psk: Option<&PresharedKey>) -> Zeroizing<[u8; 32]> {
    Zeroizing::new(psk.map_or([0; 32], |psk| *psk.expose()))
}

/// Runs `step` with the pre-shared key in place, and takes it out again: snow
/// does not wipe it.
fn with_psk<T>(
    state: &mut HandshakeState,
    psk: Option<&PresharedKey>,
    step: impl FnOnce(&mut HandshakeState) -> Result<T, snow::Error>,
) -> Result<T, HandshakeError> {
    state.set_psk(2, &psk_bytes(psk)[..]).expect("32 bytes at slot 2");
    let result = step(state);
    state.set_psk(2, &[0; 32]).expect("32 bytes at slot 2");
    result.map_err(|_| HandshakeError::NotAuthentic)
}

/// A handshake we started and the peer has not answered yet.
pub struct Initiator {
    state: Box<HandshakeState>,
    suite: Suite,
}

impl std::fmt::Debug for Initiator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Initiator({}, redacted)", self.suite)
    }
}

/// A message of ours on its way, and its mac1, which a cookie reply would name.
#[derive(Debug, Clone)]
pub struct Outgoing<const N: usize> {
    /// The datagram.
    pub datagram: [u8; N],
    /// Its mac1.
    pub mac1: [u8; MAC_LEN],
}

impl Initiator {
    /// Starts a handshake with the owner of `remote`. `sender` is the index
    /// under which we will receive; `cookie` what the peer gave us lately.
    ///
    /// # Errors
    /// [`HandshakeError::NotAuthentic`] when `remote` is a low-order point.
    pub fn start(
        local: &StaticKey,
        remote: &LinkPublicKey,
        suite: Suite,
        sender: u32,
        timestamp: Tai64n,
        cookie: Option<&Cookie>,
        rng: &mut dyn CryptoRng,
    ) -> Result<(Self, Outgoing<INITIATION_LEN>), HandshakeError> {
        let mut state = local
            .builder(suite, rng)
            .remote_public_key(&remote.0)
            .and_then(snow::Builder::build_initiator)
            .expect("the pattern's keys are all there");
        let mut datagram = [0; INITIATION_LEN];
        Kind::Initiation.write_head(suite, &mut datagram);
        datagram[4..8].copy_from_slice(&sender.to_le_bytes());
        state
            .write_message(timestamp.as_bytes(), &mut datagram[NOISE_1])
            .map_err(|_| HandshakeError::NotAuthentic)?;
        let mac1 = write_macs(&mut datagram, remote, cookie);
        let this = Self { state: Box::new(state), suite };
        Ok((this, Outgoing { datagram, mac1 }))
    }

    /// Takes the response. After an error the handshake goes on waiting: a
    /// forged response does no harm.
    ///
    /// # Errors
    /// See [`HandshakeError`].
    pub fn finish(
        &mut self,
        response: &[u8],
        psk: Option<&PresharedKey>,
    ) -> Result<TransportKeys, HandshakeError> {
        if Kind::of(response) != Some((Kind::Response, self.suite)) {
            return Err(HandshakeError::Malformed);
        }
        with_psk(&mut self.state, psk, |state| state.read_message(&response[NOISE_2], &mut []))?;
        let (send, receive) = self.state.dangerously_get_raw_split();
        Ok(TransportKeys { send: Zeroizing::new(send), receive: Zeroizing::new(receive) })
    }
}

/// An initiation that authenticated: whoever sent it (or recorded it) had the
/// secret key of `remote`. The caller looks up the peer and checks
/// `timestamp` before it answers.
pub struct OpenedInitiation {
    /// The sender's static key.
    pub remote: LinkPublicKey,
    /// The index the sender receives under.
    pub sender: u32,
    /// When the sender says it is.
    pub timestamp: Tai64n,
    /// Named by the message type.
    pub suite: Suite,
    state: HandshakeState,
}

impl std::fmt::Debug for OpenedInitiation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "OpenedInitiation({}, {}, redacted)", self.remote, self.suite)
    }
}

impl OpenedInitiation {
    /// Opens an initiation to us: two Diffie-Hellman operations.
    ///
    /// # Errors
    /// See [`HandshakeError`].
    pub fn open(
        local: &StaticKey,
        datagram: &[u8],
        rng: &mut dyn CryptoRng,
    ) -> Result<Self, HandshakeError> {
        let (Kind::Initiation, suite) = Kind::of(datagram).ok_or(HandshakeError::Malformed)? else {
            return Err(HandshakeError::Malformed);
        };
        let sender = message::sender(datagram).ok_or(HandshakeError::Malformed)?;
        let mut state =
            local.builder(suite, rng).build_responder().expect("the pattern's keys are all there");
        let mut timestamp = [0; 12];
        state
            .read_message(&datagram[NOISE_1], &mut timestamp)
            .map_err(|_| HandshakeError::NotAuthentic)?;
        let remote = state
            .get_remote_static()
            .and_then(|key| key.try_into().ok())
            .map(LinkPublicKey)
            .ok_or(HandshakeError::NotAuthentic)?;
        Ok(Self { remote, sender, timestamp: Tai64n::from_bytes(timestamp), suite, state })
    }

    /// Writes the response. `local_index` is the index under which we will
    /// receive; `cookie` what the peer gave us lately. The session counts as
    /// confirmed only when the peer's first message under it arrives.
    ///
    /// # Errors
    /// [`HandshakeError::NotAuthentic`] when a key is a low-order point.
    pub fn respond(
        mut self,
        psk: Option<&PresharedKey>,
        local_index: u32,
        cookie: Option<&Cookie>,
    ) -> Result<(Outgoing<RESPONSE_LEN>, TransportKeys), HandshakeError> {
        let mut datagram = [0; RESPONSE_LEN];
        Kind::Response.write_head(self.suite, &mut datagram);
        datagram[4..8].copy_from_slice(&local_index.to_le_bytes());
        datagram[8..12].copy_from_slice(&self.sender.to_le_bytes());
        with_psk(&mut self.state, psk, |state| state.write_message(&[], &mut datagram[NOISE_2]))?;
        let mac1 = write_macs(&mut datagram, &self.remote, cookie);
        let (receive, send) = self.state.dangerously_get_raw_split();
        let keys = TransportKeys { send: Zeroizing::new(send), receive: Zeroizing::new(receive) };
        Ok((Outgoing { datagram, mac1 }, keys))
    }
}

#[cfg(test)]
mod tests;
