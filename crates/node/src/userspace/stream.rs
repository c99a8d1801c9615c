//! What applications hold of the stack: a connection as an asynchronous stream
//! of bytes, and a datagram socket.
//!
//! Invariant: letting go of either frees what it used; a stream that is dropped
//! before both sides ended it is reset.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::mpsc;

use super::flow::{Flow, Standing};
use super::stack::Stack;

/// A TCP connection.
pub struct Stream {
    stack: Stack,
    flow: Arc<Flow>,
}

impl Stream {
    pub(super) fn new(stack: Stack, flow: Arc<Flow>) -> Self {
        Self { stack, flow }
    }

    pub(super) fn flow(&self) -> &Arc<Flow> {
        &self.flow
    }

    /// Our end.
    pub fn local(&self) -> SocketAddr {
        self.flow.key.local
    }

    /// The other end.
    pub fn remote(&self) -> SocketAddr {
        self.flow.key.remote
    }

    fn settle<T>(&self, (result, standing): (Poll<T>, Option<Standing>)) -> Poll<T> {
        if let Some(standing) = standing {
            self.stack.0.settle(&self.flow, standing);
        }
        result
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let shared = &self.stack.0;
        let into = buffer.initialize_unfilled();
        let read = self.flow.poll_read(&shared.wire, shared.epoch, cx, into);
        self.settle(read).map_ok(|read| buffer.advance(read))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        from: &[u8],
    ) -> Poll<io::Result<usize>> {
        let shared = &self.stack.0;
        self.settle(self.flow.poll_write(&shared.wire, shared.epoch, cx, from))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shared = &self.stack.0;
        let standing = self.flow.close(&shared.wire, shared.epoch);
        self.settle((Poll::Ready(Ok(())), Some(standing)))
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let shared = &self.stack.0;
        let standing = self.flow.release(&shared.wire, shared.epoch);
        shared.settle(&self.flow, standing);
    }
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Stream").field(&self.flow).finish()
    }
}

/// A UDP socket.
#[derive(Debug)]
pub struct UdpSocket {
    stack: Stack,
    local: SocketAddr,
    incoming: mpsc::Receiver<(SocketAddr, Vec<u8>)>,
}

impl UdpSocket {
    pub(super) fn new(
        stack: Stack,
        local: SocketAddr,
        incoming: mpsc::Receiver<(SocketAddr, Vec<u8>)>,
    ) -> Self {
        Self { stack, local, incoming }
    }

    /// Its address and port.
    pub fn local(&self) -> SocketAddr {
        self.local
    }

    /// Sends a datagram of at most 65,507 bytes; false when it was dropped for
    /// want of room or for its length.
    pub fn send(&self, to: SocketAddr, payload: &[u8]) -> bool {
        self.stack.send_datagram(self.local, to, payload)
    }

    /// The next datagram, and who sent it.
    pub async fn receive(&mut self) -> Option<(SocketAddr, Vec<u8>)> {
        self.incoming.recv().await
    }
}

impl Drop for UdpSocket {
    fn drop(&mut self) {
        self.stack.0.table().sockets.remove(&self.local);
    }
}
