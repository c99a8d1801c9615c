//! A router that speaks NAT-PMP (RFC 6886) and nothing else: enough to test a
//! client against, where no real one is installed.
//!
//! In: the host that is the gateway, and the outer address it claims. Out: the
//! mappings it was asked for. It forwards nothing. Answers PCP requests with
//! "unsupported version", as RFC 6887 appendix A wants of it.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::topology::Host;

/// Port of NAT-PMP and PCP.
const PORT: u16 = 5351;
/// How soon the thread notices that it shall end.
const LOOK: Duration = Duration::from_millis(100);

/// UDP mappings: who asked and its port, to the port outside and the seconds.
pub type Mappings = BTreeMap<SocketAddr, (u16, u32)>;

/// A running router; stops when dropped.
#[derive(Debug)]
pub struct NatPmpRouter {
    mappings: Arc<Mutex<Mappings>>,
    stop: Arc<AtomicBool>,
}

impl NatPmpRouter {
    /// Starts on `host`, with `outside` as its address outside.
    ///
    /// # Errors
    /// When the port is taken there.
    pub fn start(host: &Host, outside: Ipv4Addr) -> Result<Self> {
        let socket = host
            .namespace()
            .run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, PORT)))?
            .with_context(|| format!("port {PORT} on {}", host.name()))?;
        socket.set_read_timeout(Some(LOOK))?;
        let router = Self { mappings: Arc::default(), stop: Arc::default() };
        let (mappings, stop) = (router.mappings.clone(), router.stop.clone());
        std::thread::spawn(move || {
            let began = Instant::now();
            let mut buffer = [0; 1100];
            while !stop.load(Ordering::Relaxed) {
                let Ok((length, from)) = socket.recv_from(&mut buffer) else { continue };
                let epoch = began.elapsed().as_secs() as u32;
                let mut mappings = mappings.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(reply) = answer(&buffer[..length], from, outside, epoch, &mut mappings)
                {
                    // The client repeats what is lost.
                    let _ = socket.send_to(&reply, from);
                }
            }
        });
        Ok(router)
    }

    /// What it maps now.
    #[must_use]
    pub fn mappings(&self) -> Mappings {
        self.mappings.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for NatPmpRouter {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// The reply to one request (RFC 6886 sections 3.2 and 3.3).
fn answer(
    request: &[u8],
    from: SocketAddr,
    outside: Ipv4Addr,
    epoch: u32,
    mappings: &mut Mappings,
) -> Option<Vec<u8>> {
    let (version, operation) = (*request.first()?, *request.get(1)?);
    let mut reply = vec![0, operation | 0x80];
    let code: u16 = if version == 0 { 0 } else { 1 };
    reply.extend(code.to_be_bytes());
    reply.extend(epoch.to_be_bytes());
    match (version, operation) {
        (0, 0) => reply.extend(outside.octets()),
        (0, 1) if request.len() >= 12 => {
            let inner = u16::from_be_bytes([request[4], request[5]]);
            let wanted = u16::from_be_bytes([request[6], request[7]]);
            let life = u32::from_be_bytes([request[8], request[9], request[10], request[11]]);
            let client = SocketAddr::new(from.ip(), inner);
            let mapped = if life == 0 {
                mappings.remove(&client);
                0
            } else {
                // Never the port wanted, so that clients are seen to take what
                // they are given.
                let port = wanted.wrapping_add(1000).max(1024);
                mappings.insert(client, (port, life));
                port
            };
            reply.extend(inner.to_be_bytes());
            reply.extend(mapped.to_be_bytes());
            reply.extend(life.to_be_bytes());
        }
        (0, _) => return None,
        _ => {}
    }
    Some(reply)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapping_is_made_and_taken_back() {
        let mut mappings = Mappings::new();
        let from = "10.0.0.2:4000".parse().unwrap();
        let outside = Ipv4Addr::new(203, 0, 113, 1);
        let mut ask = |request: &[u8]| answer(request, from, outside, 5, &mut mappings).unwrap();
        assert_eq!(ask(&[0, 0])[8..], [203, 0, 113, 1]);
        let reply = ask(&[0, 1, 0, 0, 0x24, 0x3d, 0x24, 0x3d, 0, 0, 0, 60]);
        assert_eq!(reply[1..4], [0x81, 0, 0]);
        assert_eq!(reply[8..12], [0x24, 0x3d, 0x28, 0x25]);
        assert_eq!(ask(&[2, 1, 0, 0])[..4], [0, 0x81, 0, 1], "PCP is not spoken");
        ask(&[0, 1, 0, 0, 0x24, 0x3d, 0, 0, 0, 0, 0, 0]);
        assert!(mappings.is_empty());
    }
}
