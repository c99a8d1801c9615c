//! Frames on a QUIC stream: 4 bytes of length, then a message.
//!
//! Invariants: a length above the limit closes the connection before anything
//! is allocated. Deliberately not here: what messages mean.

use std::sync::Arc;

use quinn::{ReadExactError, RecvStream, SendStream};
use warren_control::wire::{MAX_FRAME, Message, WireError};

/// A frame could not be read.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum FrameError {
    /// The stream or connection ended.
    #[error("{0}")]
    Ended(String),
    /// Too long.
    #[error("a frame of {0} bytes is larger than allowed")]
    TooLong(usize),
    /// Does not parse.
    #[error(transparent)]
    Malformed(#[from] WireError),
}

/// A message as bytes, length included, ready to be sent to many peers.
pub(crate) fn frame(message: &Message) -> Arc<[u8]> {
    let body = message.encode();
    let length = u32::try_from(body.len()).unwrap_or(u32::MAX);
    let mut out = Vec::with_capacity(body.len() + 4);
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(&body);
    out.into()
}

pub(crate) async fn write(send: &mut SendStream, message: &Message) -> Result<(), FrameError> {
    send.write_all(&frame(message)).await.map_err(|e| FrameError::Ended(e.to_string()))
}

/// Reads one message of at most `limit` bytes.
pub(crate) async fn read(recv: &mut RecvStream, limit: usize) -> Result<Message, FrameError> {
    let mut length = [0_u8; 4];
    read_exact(recv, &mut length).await?;
    let length = u32::from_be_bytes(length) as usize;
    if length > limit.min(MAX_FRAME) {
        return Err(FrameError::TooLong(length));
    }
    let mut body = vec![0_u8; length];
    read_exact(recv, &mut body).await?;
    Ok(Message::decode(&body)?)
}

async fn read_exact(recv: &mut RecvStream, buffer: &mut [u8]) -> Result<(), FrameError> {
    recv.read_exact(buffer).await.map_err(|error| match error {
        ReadExactError::FinishedEarly(_) => {
            FrameError::Ended("the peer closed the connection".into())
        }
        ReadExactError::ReadError(error) => FrameError::Ended(error.to_string()),
    })
}
