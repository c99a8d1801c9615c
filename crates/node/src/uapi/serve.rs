//! The socket `IFACE.sock` that `wg` looks for, and its connections.

use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, oneshot};

use super::{EINVAL, EPERM, Operation, errno, operation};
use crate::api::ApiRequest;
use crate::config::InterfaceName;

/// Where wireguard-tools look for userspace interfaces.
pub const RUN_DIR: &str = "/var/run/wireguard";

/// Connections at once.
const MAX_CONNECTIONS: usize = 8;
/// Bytes of one request, all its lines together.
const MAX_REQUEST: u64 = 64 * 1024;
/// Time for one request and its answer.
const TIMEOUT: Duration = Duration::from_secs(5);

/// A bound socket; its file is removed when dropped.
#[derive(Debug)]
pub struct Socket {
    listener: UnixListener,
    path: PathBuf,
}

impl Socket {
    /// The socket's file.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let _already_gone = std::fs::remove_file(&self.path);
    }
}

/// Makes `DIR/IFACE.sock`, mode 0600, in `dir` (0700 if it has to be made).
/// A stale file is replaced; a live one (an interface of the same name in
/// another network namespace) is left alone.
///
/// # Errors
/// Of the file system; `AddrInUse` when another process serves it.
pub fn bind(dir: &Path, interface: &InterfaceName) -> io::Result<Socket> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    let path = dir.join(format!("{interface}.sock"));
    match std::os::unix::net::UnixStream::connect(&path) {
        Ok(_) => return Err(io::ErrorKind::AddrInUse.into()),
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => std::fs::remove_file(&path)?,
        Err(_) => {}
    }
    let listener = UnixListener::bind(&path)?;
    let socket = Socket { listener, path };
    std::fs::set_permissions(&socket.path, std::fs::Permissions::from_mode(0o600))?;
    Ok(socket)
}

/// Serves until the future is dropped; snapshots are asked of the daemon's
/// loop as [`ApiRequest::Wireguard`].
pub async fn serve(socket: Socket, requests: mpsc::Sender<ApiRequest>) {
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut tasks = tokio::task::JoinSet::new();
    loop {
        while tasks.try_join_next().is_some() {}
        let Ok(slot) = slots.clone().acquire_owned().await else { return };
        let Ok((stream, _)) = socket.listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let requests = requests.clone();
        tasks.spawn(async move {
            let served = tokio::time::timeout(TIMEOUT, answer(stream, &requests)).await;
            if let Ok(Err(error)) = served {
                tracing::debug!(%error, "a connection to the userspace API ended early");
            }
            drop(slot);
        });
    }
}

/// Reads one request up to its empty line and answers it.
async fn answer(stream: UnixStream, requests: &mpsc::Sender<ApiRequest>) -> io::Result<()> {
    let (reader, mut writer) = stream.into_split();
    let mut lines = BufReader::new(reader.take(MAX_REQUEST));
    let mut line = String::new();
    lines.read_line(&mut line).await?;
    let asked = operation(&line);
    while !line.trim_end().is_empty() {
        line.clear();
        if lines.read_line(&mut line).await? == 0 {
            break;
        }
    }
    let text = match asked {
        Operation::Get => {
            let (reply, snapshot) = oneshot::channel();
            let gone = || io::Error::other("the daemon is stopping");
            requests.send(ApiRequest::Wireguard(reply)).await.map_err(|_| gone())?;
            snapshot.await.map_err(|_| gone())?.render()
        }
        Operation::Set => errno(EPERM),
        Operation::Unknown => errno(EINVAL),
    };
    writer.write_all(text.as_bytes()).await?;
    writer.shutdown().await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::uapi::{PeerSnapshot, Snapshot};
    use warren_types::LinkPublicKey;

    fn temp_dir(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("warren-uapi-{name}-{}", std::process::id()))
    }

    async fn ask(path: &Path, request: &str) -> String {
        let mut stream = UnixStream::connect(path).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        text
    }

    /// Serves a fixed snapshot from `dir/name.sock` while `test` runs.
    async fn with_server<F: Future<Output = ()>>(
        dir: &Path,
        name: &str,
        test: impl FnOnce(PathBuf) -> F,
    ) {
        let socket = bind(dir, &name.parse().unwrap()).unwrap();
        let path = socket.path().to_owned();
        let (requests, mut inbox) = mpsc::channel(4);
        let answers = async move {
            while let Some(request) = inbox.recv().await {
                let ApiRequest::Wireguard(reply) = request else { panic!("{request:?}") };
                let _ = reply.send(Snapshot {
                    listen_port: 9277,
                    peers: vec![PeerSnapshot {
                        public_key: LinkPublicKey([7; 32]),
                        endpoint: Some("192.0.2.7:51820".parse().unwrap()),
                        allowed_ips: vec!["100.64.0.7/32".parse().unwrap()],
                        last_handshake: Duration::from_secs(1_700_000_000),
                        rx_bytes: 2048,
                        tx_bytes: 1024,
                        keepalive_s: 25,
                    }],
                });
            }
        };
        tokio::select! {
            () = serve(socket, requests) => {}
            () = answers => {}
            () = test(path) => {}
        }
    }

    #[tokio::test]
    async fn get_answers_and_set_is_not_permitted() {
        let dir = temp_dir("get");
        with_server(&dir, "wrtest0", |path| async move {
            let mode = std::fs::metadata(&path).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
            assert!(ask(&path, "get=1\n\n").await.contains("listen_port=9277\n"));
            let set = "set=1\nprivate_key=00\nreplace_peers=true\n\n";
            assert_eq!(ask(&path, set).await, "errno=1\n\n");
            assert_eq!(ask(&path, "what=1\n\n").await, "errno=22\n\n");
            let busy = bind(path.parent().unwrap(), &"wrtest0".parse().unwrap()).unwrap_err();
            assert_eq!(busy.kind(), io::ErrorKind::AddrInUse);
        })
        .await;
        assert!(!dir.join("wrtest0.sock").exists(), "the socket file goes with the server");
        std::fs::remove_dir_all(&dir).unwrap();
    }

    /// Needs root (the directory is fixed in wireguard-tools) and `wg`.
    #[tokio::test]
    async fn the_real_wg_show_reads_it() {
        let name = format!("wrt{}", std::process::id() % 1_000_000);
        let writable = std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(RUN_DIR)
            .and_then(|()| std::fs::write(format!("{RUN_DIR}/.{name}"), ""))
            .and_then(|()| std::fs::remove_file(format!("{RUN_DIR}/.{name}")));
        if writable.is_err() || std::process::Command::new("wg").arg("--version").output().is_err()
        {
            eprintln!("SKIPPED: needs root and the wg tool (package wireguard-tools)");
            return;
        }
        let interface = name.clone();
        with_server(Path::new(RUN_DIR), &name, |_| async move {
            let wg = move |args: Vec<String>| std::process::Command::new("wg").args(args).output();
            let args = vec!["show".to_owned(), interface.clone()];
            let out = tokio::task::spawn_blocking(move || wg(args)).await.unwrap().unwrap();
            let text = String::from_utf8_lossy(&out.stdout).into_owned();
            assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
            for part in
                ["listening port: 9277", "100.64.0.7/32", "192.0.2.7:51820", "2.00 KiB received"]
            {
                assert!(text.contains(part), "no {part:?} in\n{text}");
            }
            assert!(!text.contains("private key") && !text.contains("preshared"), "{text}");
            let args = ["set", &interface, "listen-port", "1"].map(str::to_owned).to_vec();
            let out = tokio::task::spawn_blocking(move || wg(args)).await.unwrap().unwrap();
            assert!(!out.status.success(), "wg set must fail");
        })
        .await;
    }
}
