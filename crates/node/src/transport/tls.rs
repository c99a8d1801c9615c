//! TLS of the control transport: 1.3 only, both sides authenticate with
//! Ed25519, one post-quantum key exchange.
//!
//! In: our identity key and certificate chain. Out: quinn configurations.
//! Invariants: X25519MLKEM768 is the only group offered and accepted, so no
//! peer and nobody between can talk a connection out of it; TLS proves that the
//! peer holds the key of the certificate it shows and nothing more — whether
//! that key is a member is decided in `auth` right after the handshake, in one
//! place for all modes and both directions, before any application byte is
//! read or written; no session tickets and no early data, so every connection
//! is checked against today's revocations. Deliberately not here: policy.

use std::sync::Arc;
use std::time::Duration;

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{EndpointConfig, IdleTimeout, MtuDiscoveryConfig, TransportConfig, VarInt};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, aws_lc_rs};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, PeerIncompatible,
    SignatureScheme,
};
use warren_control::ca;
use warren_control::identity::IdentityKey;
use warren_control::verify::{MAX_CERTIFICATE, MAX_CHAIN, subject_key};
use warren_control::wire::{ALPN_CONTROL, ALPN_JOIN, ALPN_TRUST};

use crate::random::OsRandom;

/// Times of the control transport.
#[derive(Debug, Clone, Copy)]
pub struct Timing {
    /// Between packets on an idle connection. Default 4 s.
    pub keep_alive: Duration,
    /// Without any packet from the peer for this long it counts as dead.
    /// Default 10 s.
    pub idle: Duration,
    /// For a handshake, and for each message of the first exchange. Default 6 s.
    pub handshake: Duration,
    /// First wait before dialing again; doubles up to `retry_max`. Default 1 s.
    pub retry: Duration,
    /// Longest wait before dialing again. Default 30 s.
    pub retry_max: Duration,
    /// How much later the node with the larger id dials, so that a pair seldom
    /// connects twice. Default 1.5 s.
    pub courtesy: Duration,
    /// Between checks of certificate, descriptors and expiry. Default 30 s.
    pub housekeeping: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            keep_alive: Duration::from_secs(4),
            idle: Duration::from_secs(10),
            handshake: Duration::from_secs(6),
            retry: Duration::from_secs(1),
            retry_max: Duration::from_secs(30),
            courtesy: Duration::from_millis(1500),
            housekeeping: Duration::from_secs(30),
        }
    }
}

/// TLS could not be set up: a fault of ours, never of a peer.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// rustls refused the configuration.
    #[error("TLS could not be set up: {0}")]
    Tls(#[from] rustls::Error),
    /// No certificate could be made for a tunnel.
    #[error("a certificate could not be made: {0}")]
    Certificate(String),
    /// QUIC needs a cipher suite that is not there.
    #[error("QUIC could not be set up: {0}")]
    Quic(String),
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(CryptoProvider {
        kx_groups: vec![aws_lc_rs::kx_group::X25519MLKEM768],
        // AES-128 is here because QUIC's Initial packets are defined with it
        // (RFC 9001 section 5.2); it is last in the order of preference.
        cipher_suites: vec![
            aws_lc_rs::cipher_suite::TLS13_AES_256_GCM_SHA384,
            aws_lc_rs::cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
            aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256,
        ],
        ..aws_lc_rs::default_provider()
    })
}

/// Accepts any Ed25519 certificate whose key signs the handshake.
#[derive(Debug)]
struct PossessionVerifier {
    algorithms: WebPkiSupportedAlgorithms,
}

impl PossessionVerifier {
    fn check(
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
    ) -> Result<(), Error> {
        let small = intermediates.len() < MAX_CHAIN
            && intermediates.iter().all(|c| c.len() <= MAX_CERTIFICATE);
        match subject_key(end_entity) {
            Ok(_) if small => Ok(()),
            _ => Err(CertificateError::BadEncoding.into()),
        }
    }

    fn signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        if dss.scheme != SignatureScheme::ED25519 {
            return Err(CertificateError::BadSignature.into());
        }
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.algorithms)
    }
}

fn no_tls12() -> Error {
    PeerIncompatible::Tls13RequiredForQuic.into()
}

impl ServerCertVerifier for PossessionVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Self::check(end_entity, intermediates).map(|()| ServerCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(no_tls12())
    }
    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.signature(message, cert, dss)
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
}

impl ClientCertVerifier for PossessionVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }
    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        Self::check(end_entity, intermediates).map(|()| ClientCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(no_tls12())
    }
    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.signature(message, cert, dss)
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
}

fn verifier(provider: &CryptoProvider) -> Arc<PossessionVerifier> {
    Arc::new(PossessionVerifier { algorithms: provider.signature_verification_algorithms })
}

fn chain_der(chain: &[Vec<u8>]) -> Vec<CertificateDer<'static>> {
    chain.iter().map(|c| CertificateDer::from(c.clone())).collect()
}

fn key_der(key: &IdentityKey) -> PrivateKeyDer<'static> {
    PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.to_pkcs8().to_vec()))
}

/// `keep_alive`: the dialer's alone, since what it sends and the answer show
/// both ends that the other lives.
fn transport(timing: &Timing, keep_alive: Option<Duration>) -> Arc<TransportConfig> {
    let mut config = TransportConfig::default();
    let idle = IdleTimeout::try_from(timing.idle)
        .unwrap_or_else(|_| IdleTimeout::from(VarInt::from_u32(10_000)));
    let mut probing = MtuDiscoveryConfig::default();
    probing.upper_bound(1452);
    config
        .max_idle_timeout(Some(idle))
        .keep_alive_interval(keep_alive)
        .initial_mtu(1200)
        .mtu_discovery_config(Some(probing))
        .max_concurrent_bidi_streams(VarInt::from_u32(1))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .stream_receive_window(VarInt::from_u32(512 * 1024))
        .receive_window(VarInt::from_u32(512 * 1024))
        .send_window(1024 * 1024)
        .crypto_buffer_size(32 * 1024)
        .datagram_receive_buffer_size(None)
        .enable_segmentation_offload(false);
    Arc::new(config)
}

/// Configuration of the QUIC endpoint itself.
pub(crate) fn endpoint() -> EndpointConfig {
    let mut config = EndpointConfig::default();
    // The first byte tells QUIC from the links on the same port, so the fixed
    // bit must stay set (RFC 9287 is not offered).
    config.grease_quic_bit(false);
    config
}

/// Client side for one ALPN.
///
/// # Errors
/// When rustls refuses our own key or chain.
pub(crate) fn client(
    key: &IdentityKey,
    chain: &[Vec<u8>],
    alpn: &[u8],
    timing: &Timing,
) -> Result<quinn::ClientConfig, TlsError> {
    let provider = provider();
    let mut config = rustls::ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(verifier(&provider))
        .with_client_auth_cert(chain_der(chain), key_der(key))?;
    config.alpn_protocols = vec![alpn.to_vec()];
    config.enable_sni = false;
    config.resumption = rustls::client::Resumption::disabled();
    let crypto = QuicClientConfig::try_from(config).map_err(|e| TlsError::Quic(e.to_string()))?;
    let mut config = quinn::ClientConfig::new(Arc::new(crypto));
    config.transport_config(transport(timing, Some(timing.keep_alive)));
    Ok(config)
}

/// Server side; offers admission only when `admits`, and the network's roots
/// always.
///
/// # Errors
/// When rustls refuses our own key or chain.
pub(crate) fn server(
    key: &IdentityKey,
    chain: &[Vec<u8>],
    admits: bool,
    timing: &Timing,
) -> Result<quinn::ServerConfig, TlsError> {
    let provider = provider();
    let mut config = rustls::ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier(&provider))
        .with_single_cert(chain_der(chain), key_der(key))?;
    config.alpn_protocols = vec![ALPN_CONTROL.to_vec(), ALPN_TRUST.to_vec()];
    if admits {
        config.alpn_protocols.push(ALPN_JOIN.to_vec());
    }
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    let crypto = QuicServerConfig::try_from(config).map_err(|e| TlsError::Quic(e.to_string()))?;
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
    config
        .transport_config(transport(timing, None))
        .max_incoming(256)
        .incoming_buffer_size(32 * 1024)
        .incoming_buffer_size_total(4 * 1024 * 1024);
    Ok(config)
}

/// What TLS over TCP agrees on (RFC 7301).
const ALPN_TUNNEL: &[u8] = b"warren-tcp/1";

/// Client side of a tunnel over TCP. Any server will do: who it is matters only
/// to what is inside.
///
/// # Errors
/// When rustls refuses.
pub(crate) fn tunnel_client() -> Result<Arc<rustls::ClientConfig>, TlsError> {
    let provider = provider();
    let mut config = rustls::ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(verifier(&provider))
        .with_no_client_auth();
    config.alpn_protocols = vec![ALPN_TUNNEL.to_vec()];
    config.enable_sni = false;
    config.resumption = rustls::client::Resumption::disabled();
    Ok(Arc::new(config))
}

/// Server side of tunnels over TCP, with a key made for this run: strangers who
/// connect learn nothing about the node. `now`: seconds since 1970.
///
/// # Errors
/// When rustls refuses, or no key can be made.
pub(crate) fn tunnel_server(now: u64) -> Result<Arc<rustls::ServerConfig>, TlsError> {
    let made = |e: &dyn std::fmt::Display| TlsError::Certificate(e.to_string());
    let key = IdentityKey::generate(&mut OsRandom).map_err(|e| made(&e))?;
    let own = ca::self_signed(&key, now, &mut OsRandom).map_err(|e| made(&e))?;
    let mut config = rustls::ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_no_client_auth()
        .with_single_cert(chain_der(&[own]), key_der(&key))?;
    config.alpn_protocols = vec![ALPN_TUNNEL.to_vec()];
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    Ok(Arc::new(config))
}
