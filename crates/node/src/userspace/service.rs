//! The thread of userspace mode: the stack, the proxies and the published
//! ports, on a runtime of their own.
//!
//! Invariants: ports are taken before the daemon gives up its privileges, and
//! nothing is served before [`Bound::start`]; dropping [`Userspace`] ends the
//! thread and everything on it.

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::thread::JoinHandle;

use ipnet::IpNet;
use tokio::sync::{mpsc, oneshot};
use warren_os::process::raise_descriptor_limit;
use warren_os::tun::memory::StackEnd;
use zeroize::Zeroizing;

use super::address::Addresses;
use super::dial::Dialer;
use super::exit::{Allow, Exit};
use super::isolation::Isolator;
use super::proxy::{Password, Proxy};
use super::settings::{Publish, Settings};
use super::stack::{MAX_CONNECTIONS, Stack};
use super::{accept, http_connect, socks};
use crate::dns::SharedZone;
use crate::fault::{Fault, FaultKind};

/// Things that arrived and wait to be looked at.
const ARRIVALS: usize = 512;

/// Ports taken, nobody served.
#[derive(Debug)]
pub struct Bound {
    socks: Option<TcpListener>,
    http: Option<TcpListener>,
    password: Option<Password>,
    publish: Vec<Publish>,
}

/// Userspace mode at work.
#[derive(Debug)]
pub struct Userspace {
    dialer: Dialer,
    runtime: tokio::runtime::Handle,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
    /// Where the proxies listen.
    socks: Option<SocketAddr>,
    http: Option<SocketAddr>,
}

fn listen(address: SocketAddr, flag: &str) -> Result<TcpListener, Fault> {
    let bound = TcpListener::bind(address).and_then(|listener| {
        listener.set_nonblocking(true)?;
        Ok(listener)
    });
    bound.map_err(|error| {
        Fault::new(FaultKind::Resource, format!("cannot listen on {address} for {flag}: {error}"))
            .remedy(format!("choose another address with {flag} ADDR:PORT"))
    })
}

/// The first line of a file.
fn read_password(path: &Path) -> Result<Password, Fault> {
    let text = std::fs::read(path).map_err(|e| Fault::file("read", path, &e))?;
    let text = Zeroizing::new(text);
    let line = text.split(|byte| matches!(byte, b'\n' | b'\r')).next().unwrap_or_default();
    Password::new(line.to_vec()).ok_or_else(|| {
        let what = format!("the first line of {} is no password", path.display());
        Fault::new(FaultKind::Config, what).remedy("put 1 to 255 bytes there")
    })
}

impl Bound {
    /// Takes the ports of the proxies, and reads their password.
    ///
    /// # Errors
    /// [`Fault`] when one is not to be had.
    pub fn bind(settings: &Settings) -> Result<Self, Fault> {
        let password = settings.password_file.as_deref().map(read_password).transpose()?;
        // Each connection passed on takes one.
        tracing::debug!(descriptors = raise_descriptor_limit(), "userspace mode");
        let socks = settings.socks.map(|address| listen(address, "--socks")).transpose()?;
        let http = settings.http.map(|address| listen(address, "--http")).transpose()?;
        Ok(Self { socks, http, password, publish: settings.publish.clone() })
    }

    /// Starts to serve.
    ///
    /// # Errors
    /// [`Fault`] when threads or descriptors run out.
    pub fn start(
        self,
        end: StackEnd,
        own: Addresses,
        zone: Option<SharedZone>,
        isolator: Isolator,
    ) -> Result<Userspace, Fault> {
        let local = |listener: &Option<TcpListener>| {
            listener.as_ref().and_then(|listener| listener.local_addr().ok())
        };
        let (socks, http) = (local(&self.socks), local(&self.http));
        let dialer = Dialer::new(Stack::new(end, own, MAX_CONNECTIONS), zone, isolator);
        let (stop, stopped) = oneshot::channel();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|e| Fault::internal(&e))?;
        let (served, handle) = (dialer.clone(), runtime.handle().clone());
        let thread = std::thread::Builder::new()
            .name("userspace".to_owned())
            .spawn(move || runtime.block_on(self.serve(served, stopped)))
            .map_err(|e| Fault::internal(&e))?;
        let (stop, thread) = (Some(stop), Some(thread));
        Ok(Userspace { dialer, runtime: handle, stop, thread, socks, http })
    }

    async fn serve(self, dialer: Dialer, stopped: oneshot::Receiver<()>) {
        let stack = dialer.stack().clone();
        let (taker, arrivals) = mpsc::channel(ARRIVALS);
        stack.set_member(Some(taker));
        tokio::spawn(accept::serve(stack.clone(), arrivals, self.publish));
        let proxy = Proxy { dialer, password: self.password };
        if let Some(listener) = self.socks.and_then(into_tokio) {
            tokio::spawn(proxy.clone().serve(listener, socks::serve));
        }
        if let Some(listener) = self.http.and_then(into_tokio) {
            tokio::spawn(proxy.serve(listener, http_connect::serve));
        }
        tokio::select! {
            () = stack.run() => {}
            // Also when the other end is dropped.
            _ = stopped => {}
        }
    }
}

fn into_tokio(listener: TcpListener) -> Option<tokio::net::TcpListener> {
    tokio::net::TcpListener::from_std(listener)
        .inspect_err(|error| tracing::error!(%error, "a proxy cannot be served"))
        .ok()
}

impl Userspace {
    /// Dials, and has the stack.
    pub fn dialer(&self) -> &Dialer {
        &self.dialer
    }

    /// Starts to pass on what comes from leases; see [`Exit::start`].
    pub fn start_exit(
        &self,
        leases: Vec<IpNet>,
        resolver: Option<SocketAddr>,
        allow: Allow,
    ) -> Exit {
        Exit::start(&self.runtime, self.dialer.stack(), leases, resolver, allow)
    }

    /// True when the thread has ended by itself: a panic, which the log has.
    pub fn failed(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Where the SOCKS5 proxy listens.
    pub fn socks(&self) -> Option<SocketAddr> {
        self.socks
    }

    /// Where the HTTP proxy listens.
    pub fn http(&self) -> Option<SocketAddr> {
        self.http
    }

    /// The mode for people: `userspace socks=127.0.0.1:1080`.
    pub fn mode(&self) -> String {
        let mut mode = "userspace".to_owned();
        for (name, address) in [("socks", self.socks), ("http", self.http)] {
            if let Some(address) = address {
                mode.push_str(&format!(" {name}={address}"));
            }
        }
        mode
    }
}

impl Drop for Userspace {
    fn drop(&mut self) {
        self.stop.take();
        if let Some(thread) = self.thread.take() {
            // One that panicked said so already.
            let _ = thread.join();
        }
    }
}
