//! CBOR (RFC 8949) forms of the vocabulary types, and strict entry points.
//!
//! Ids and keys are byte strings of their exact length; an IP address is a byte
//! string of 4 or 16 bytes; a socket address is `[ip, port]`; names are text.
//! Invariant: [`from_slice`] refuses anything after the value, so one value has
//! no second meaning by what follows it.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use minicbor::decode::Error as DecodeError;
use minicbor::encode::{Error as EncodeError, Write};
use minicbor::{Decoder, Encode, Encoder};

/// Encodes a value; writing to memory cannot fail.
pub(crate) fn to_vec<T: Encode<()>>(value: &T) -> Vec<u8> {
    let mut out = Vec::new();
    let result = minicbor::encode(value, &mut out);
    debug_assert!(result.is_ok(), "encoding to memory cannot fail");
    out
}

/// Decodes exactly one value that fills the whole slice.
pub(crate) fn from_slice<'b, T: minicbor::Decode<'b, ()>>(
    bytes: &'b [u8],
) -> Result<T, DecodeError> {
    let mut decoder = Decoder::new(bytes);
    let value = decoder.decode()?;
    if decoder.position() == bytes.len() {
        Ok(value)
    } else {
        Err(DecodeError::message("bytes follow the value"))
    }
}

fn exact<const N: usize>(d: &mut Decoder<'_>) -> Result<[u8; N], DecodeError> {
    d.bytes()?.try_into().map_err(|_| DecodeError::message("wrong length"))
}

macro_rules! fixed_bytes {
    ($module:ident, $type:ty, $make:expr, $bytes:expr) => {
        pub(crate) mod $module {
            use super::*;
            pub(crate) fn encode<C, W: Write>(
                value: &$type,
                e: &mut Encoder<W>,
                _: &mut C,
            ) -> Result<(), EncodeError<W::Error>> {
                let bytes: fn(&$type) -> &[u8] = $bytes;
                e.bytes(bytes(value))?.ok()
            }
            pub(crate) fn decode<C>(d: &mut Decoder<'_>, _: &mut C) -> Result<$type, DecodeError> {
                exact(d).map($make)
            }
        }
    };
}

fixed_bytes!(node_id, warren_types::NodeId, warren_types::NodeId, |v| &v.0);
fixed_bytes!(network_id, warren_types::NetworkId, warren_types::NetworkId, |v| &v.0);
fixed_bytes!(link_key, warren_types::LinkPublicKey, warren_types::LinkPublicKey, |v| &v.0);

macro_rules! text {
    ($module:ident, $type:ty) => {
        pub(crate) mod $module {
            use super::*;
            pub(crate) fn encode<C, W: Write>(
                value: &$type,
                e: &mut Encoder<W>,
                _: &mut C,
            ) -> Result<(), EncodeError<W::Error>> {
                e.str(value.as_str())?.ok()
            }
            pub(crate) fn decode<C>(d: &mut Decoder<'_>, _: &mut C) -> Result<$type, DecodeError> {
                let text = d.str()?;
                let value: $type = text.parse().map_err(|_| DecodeError::message("bad name"))?;
                // Names are compared as they are written: only the canonical form.
                if value.as_str() == text {
                    Ok(value)
                } else {
                    Err(DecodeError::message("bad name"))
                }
            }
        }
    };
}

text!(node_name, warren_types::NodeName);
text!(network_name, warren_types::NetworkName);
text!(suite, warren_types::Suite);

fn put_ip<W: Write>(e: &mut Encoder<W>, ip: &IpAddr) -> Result<(), EncodeError<W::Error>> {
    match ip {
        IpAddr::V4(v4) => e.bytes(&v4.octets())?.ok(),
        IpAddr::V6(v6) => e.bytes(&v6.octets())?.ok(),
    }
}

fn get_ip(d: &mut Decoder<'_>) -> Result<IpAddr, DecodeError> {
    let bytes = d.bytes()?;
    if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        Ok(v4.into())
    } else {
        <[u8; 16]>::try_from(bytes)
            .map(IpAddr::from)
            .map_err(|_| DecodeError::message("an IP address has 4 or 16 bytes"))
    }
}

fn put_socket<W: Write>(e: &mut Encoder<W>, a: &SocketAddr) -> Result<(), EncodeError<W::Error>> {
    e.array(2)?;
    put_ip(e, &a.ip())?;
    e.u16(a.port())?.ok()
}

fn get_socket(d: &mut Decoder<'_>) -> Result<SocketAddr, DecodeError> {
    if d.array()? != Some(2) {
        return Err(DecodeError::message("a socket address is [ip, port]"));
    }
    let ip = get_ip(d)?;
    let port = d.u16()?;
    if port == 0 {
        return Err(DecodeError::message("port 0"));
    }
    Ok(SocketAddr::new(ip, port))
}

/// Most elements in any list of addresses or endpoints.
const MAX_LIST: u64 = 64;

fn list_len(d: &mut Decoder<'_>) -> Result<u64, DecodeError> {
    d.array()?
        .filter(|n| *n <= MAX_LIST)
        .ok_or_else(|| DecodeError::message("a list is too long or has no length"))
}

pub(crate) mod ips {
    use super::*;
    pub(crate) fn encode<C, W: Write>(
        value: &[IpAddr],
        e: &mut Encoder<W>,
        _: &mut C,
    ) -> Result<(), EncodeError<W::Error>> {
        e.array(value.len() as u64)?;
        value.iter().try_for_each(|ip| put_ip(e, ip))
    }
    pub(crate) fn decode<C>(d: &mut Decoder<'_>, _: &mut C) -> Result<Vec<IpAddr>, DecodeError> {
        (0..list_len(d)?).map(|_| get_ip(d)).collect()
    }
}

pub(crate) mod sockets {
    use super::*;
    pub(crate) fn encode<C, W: Write>(
        value: &[SocketAddr],
        e: &mut Encoder<W>,
        _: &mut C,
    ) -> Result<(), EncodeError<W::Error>> {
        e.array(value.len() as u64)?;
        value.iter().try_for_each(|a| put_socket(e, a))
    }
    pub(crate) fn decode<C>(
        d: &mut Decoder<'_>,
        _: &mut C,
    ) -> Result<Vec<SocketAddr>, DecodeError> {
        (0..list_len(d)?).map(|_| get_socket(d)).collect()
    }
}

pub(crate) mod socket {
    use super::*;
    pub(crate) fn encode<C, W: Write>(
        value: &SocketAddr,
        e: &mut Encoder<W>,
        _: &mut C,
    ) -> Result<(), EncodeError<W::Error>> {
        put_socket(e, value)
    }
    pub(crate) fn decode<C>(d: &mut Decoder<'_>, _: &mut C) -> Result<SocketAddr, DecodeError> {
        get_socket(d)
    }
}

fn put_prefix<W: Write>(e: &mut Encoder<W>, p: &IpNet) -> Result<(), EncodeError<W::Error>> {
    e.array(2)?;
    put_ip(e, &p.addr())?;
    e.u8(p.prefix_len())?.ok()
}

fn get_prefix(d: &mut Decoder<'_>) -> Result<IpNet, DecodeError> {
    if d.array()? != Some(2) {
        return Err(DecodeError::message("a prefix is [ip, length]"));
    }
    let ip = get_ip(d)?;
    IpNet::new(ip, d.u8()?).map_err(|_| DecodeError::message("a prefix is longer than an address"))
}

pub(crate) mod prefix {
    use super::*;
    pub(crate) fn encode<C, W: Write>(
        value: &IpNet,
        e: &mut Encoder<W>,
        _: &mut C,
    ) -> Result<(), EncodeError<W::Error>> {
        put_prefix(e, value)
    }
    pub(crate) fn decode<C>(d: &mut Decoder<'_>, _: &mut C) -> Result<IpNet, DecodeError> {
        get_prefix(d)
    }
}

pub(crate) mod prefixes {
    use super::*;
    pub(crate) fn encode<C, W: Write>(
        value: &[IpNet],
        e: &mut Encoder<W>,
        _: &mut C,
    ) -> Result<(), EncodeError<W::Error>> {
        e.array(value.len() as u64)?;
        value.iter().try_for_each(|p| put_prefix(e, p))
    }
    pub(crate) fn decode<C>(d: &mut Decoder<'_>, _: &mut C) -> Result<Vec<IpNet>, DecodeError> {
        (0..list_len(d)?).map(|_| get_prefix(d)).collect()
    }
}

pub(crate) mod chain {
    use super::*;
    use crate::verify::{MAX_CERTIFICATE, MAX_CHAIN};
    pub(crate) fn encode<C, W: Write>(
        value: &[Vec<u8>],
        e: &mut Encoder<W>,
        _: &mut C,
    ) -> Result<(), EncodeError<W::Error>> {
        e.array(value.len() as u64)?;
        value.iter().try_for_each(|c| e.bytes(c)?.ok())
    }
    pub(crate) fn decode<C>(d: &mut Decoder<'_>, _: &mut C) -> Result<Vec<Vec<u8>>, DecodeError> {
        let n = list_len(d)?;
        if n > MAX_CHAIN as u64 {
            return Err(DecodeError::message("too many certificates"));
        }
        (0..n)
            .map(|_| {
                let bytes = d.bytes()?;
                if bytes.len() > MAX_CERTIFICATE {
                    return Err(DecodeError::message("a certificate is too large"));
                }
                Ok(bytes.to_vec())
            })
            .collect()
    }
}
