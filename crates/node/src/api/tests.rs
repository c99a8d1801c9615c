use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use warren_types::LinkPublicKey;
use warren_types::api::{
    AddClientReply, AddClientRequest, ClientEntry, Event, InviteReply, InviteRequest,
};

use super::*;
use crate::fault::{Fault, FaultKind};

struct TempDir(PathBuf);

impl TempDir {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("warren-api-{}-{n}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }
    fn socket(&self) -> PathBuf {
        self.0.join("api.sock")
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A daemon's loop with one client and one rule: only `phone` exists.
async fn fake_loop(mut inbox: mpsc::Receiver<ApiRequest>) {
    while let Some(request) = inbox.recv().await {
        match request {
            ApiRequest::Invite(r, reply) if r.uses > 100 => {
                let _ = reply.send(Err(ApiError::NotAllowed("this node is not an admin".into())));
            }
            ApiRequest::Invite(r, reply) => {
                let code = "warren1abc".into();
                let _ = reply.send(Ok(InviteReply { code, expires_s: r.expires_s, uses: r.uses }));
            }
            ApiRequest::ListClients(reply) => {
                let _ = reply.send(Ok(vec![ClientEntry {
                    name: "phone".into(),
                    public_key: LinkPublicKey([1; 32]),
                    addresses: vec!["100.64.0.5".parse().unwrap()],
                }]));
            }
            ApiRequest::AddClient(r, reply) => {
                let config = "[Interface]".into();
                let _ = reply.send(Ok(AddClientReply { name: r.name, config }));
            }
            ApiRequest::RemoveClient(name, reply) | ApiRequest::Revoke(name, reply) => {
                let _ = reply.send(if name.as_str() == "phone" {
                    Ok(())
                } else {
                    Err(ApiError::NotFound(format!("nothing is named {name}")))
                });
            }
            // Answers nothing: the sender is dropped, as by a stopping daemon.
            _ => {}
        }
    }
}

async fn with_daemon<F: Future<Output = ()>>(test: impl FnOnce(Client, EventLog) -> F) {
    let dir = TempDir::new();
    let listener = bind(&dir.socket()).unwrap();
    let events = EventLog::default();
    let (requests, inbox) = mpsc::channel(4);
    tokio::select! {
        served = serve(listener, requests, events.clone()) => panic!("{served:?}"),
        () = fake_loop(inbox) => panic!("the server dropped the channel"),
        () = test(Client::new(dir.socket()), events) => {}
    }
}

#[tokio::test]
async fn requests_reach_the_loop_and_answers_come_back() {
    with_daemon(|client, _| async move {
        let mode = std::fs::metadata(client.socket()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let reply = client.invite(&InviteRequest { expires_s: 900, uses: 1 }).await.unwrap();
        assert_eq!((reply.code.as_str(), reply.expires_s), ("warren1abc", 900));
        assert_eq!(client.wg_clients().await.unwrap()[0].name, "phone");
        let request = AddClientRequest { name: "tablet".into(), endpoint: None };
        assert_eq!(client.add_wg_client(&request).await.unwrap().name, "tablet");
        client.remove_wg_client(&"phone".parse().unwrap()).await.unwrap();
        client.revoke(&"phone".parse().unwrap()).await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn refusals_keep_their_words_and_become_faults() {
    with_daemon(|client, _| async move {
        let refused = client.invite(&InviteRequest { expires_s: 1, uses: 101 }).await.unwrap_err();
        assert_eq!(refused.to_string(), "this node is not an admin");
        assert_eq!(Fault::from(refused).kind(), FaultKind::Refused);
        let refused = client.revoke(&"nobody".parse().unwrap()).await.unwrap_err();
        assert!(matches!(refused, ClientError::Refused { status: 404, .. }), "{refused:?}");
        let stopping = client.status().await.unwrap_err();
        assert!(matches!(stopping, ClientError::Refused { status: 503, .. }), "{stopping:?}");
    })
    .await;
}

#[tokio::test]
async fn events_are_replayed_and_then_followed() {
    with_daemon(|client, events| async move {
        events.publish(Event::PeerDiscovered { name: "a".into() });
        let mut past = client.events(false).await.unwrap();
        assert!(past.next().await.unwrap().is_some());
        assert!(past.next().await.unwrap().is_none(), "without follow the stream ends");

        let mut live = client.events(true).await.unwrap();
        live.next().await.unwrap().unwrap();
        events.publish(Event::PeerUnreachable { name: "a".into() });
        let record = live.next().await.unwrap().unwrap();
        assert_eq!(record.event, Event::PeerUnreachable { name: "a".into() });
        assert!(record.at > 1.0e9);
    })
    .await;
}

async fn raw(socket: &Path, request: &[u8]) -> String {
    let mut stream = UnixStream::connect(socket).await.unwrap();
    let _ = stream.write_all(request).await;
    let mut text = Vec::new();
    let _ = stream.read_to_end(&mut text).await;
    String::from_utf8_lossy(&text).into_owned()
}

#[tokio::test]
async fn bad_requests_get_a_reason_and_nothing_else() {
    with_daemon(|client, _| async move {
        let socket = client.socket();
        let post = |path: &str, body: &str| {
            format!(
                "POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{body}",
                body.len()
            )
        };
        let cases = [
            ("GET /v2 HTTP/1.1\r\nhost: x\r\n\r\n".to_owned(), "404", "/v1 only"),
            ("GET /v1/invites HTTP/1.1\r\nhost: x\r\n\r\n".to_owned(), "405", "use POST"),
            ("PUT /v1/status HTTP/1.1\r\nhost: x\r\n\r\n".to_owned(), "405", "use GET"),
            (post("/v1/invites", "{"), "400", "request body is wrong"),
            (post("/v1/invites", r#"{"expires_s":1,"uses":-1}"#), "400", "expected u32"),
            (post("/v1/revoke", r#"{"name":"a b"}"#), "400", "letters, digits and hyphens"),
            (post("/v1/invites", &"x".repeat(70_000)), "413", "too large"),
            (
                "DELETE /v1/wg/clients/..%2f HTTP/1.1\r\nhost: x\r\n\r\n".into(),
                "400",
                "not a valid",
            ),
        ];
        for (request, status, words) in cases {
            let answer = raw(socket, request.as_bytes()).await;
            let head = &request[..request.len().min(60)];
            assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{head:?}: {answer}");
            assert!(answer.contains(words), "{head:?}: {answer}");
        }
        // Garbage and an endless head end the connection, not the server.
        raw(socket, b"\x00\xff\x00garbage\r\n\r\n").await;
        raw(socket, format!("GET / HTTP/1.1\r\na: {}", "b".repeat(40_000)).as_bytes()).await;
        assert_eq!(client.wg_clients().await.unwrap().len(), 1);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_silent_connection_is_closed() {
    with_daemon(|client, _| async move {
        let mut stream = UnixStream::connect(client.socket()).await.unwrap();
        stream.write_all(b"GET /v1/status HT").await.unwrap();
        let mut rest = Vec::new();
        // Time is virtual: it moves on only because the server's timer waits.
        let ended = stream.read_to_end(&mut rest).await;
        assert!(ended.is_ok() || rest.is_empty());
    })
    .await;
}

#[tokio::test]
async fn nobody_there_and_already_there_are_told_apart() {
    let dir = TempDir::new();
    let error = Client::new(dir.socket()).status().await.unwrap_err();
    assert!(matches!(error, ClientError::NotRunning(_)), "{error:?}");
    let fault = Fault::from(error);
    assert_eq!(fault.kind(), FaultKind::NotRunning);
    assert!(fault.to_string().contains("warren up"));

    drop(bind(&dir.socket()).unwrap());
    assert!(!dir.socket().exists(), "the file goes with the daemon");
    drop(std::os::unix::net::UnixListener::bind(dir.socket()).unwrap());
    assert!(dir.socket().exists(), "a killed daemon leaves its socket file");
    let listener = bind(&dir.socket()).unwrap();
    assert!(bind(&dir.socket()).unwrap_err().to_string().contains("already runs"));
    drop(listener);

    let long = dir.0.join("x".repeat(120)).join("api.sock");
    assert!(bind(&long).unwrap_err().to_string().contains("too long"));
}

/// The kernel's word about the caller counts, not only the file's mode.
#[tokio::test]
async fn another_user_is_not_served() {
    with_daemon(|client, _| async move {
        let socket = client.socket().to_owned();
        let open = |path: &Path| {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o777)).unwrap();
        };
        open(&socket);
        open(socket.parent().unwrap());
        let as_user = |user: &str| {
            let mut command = std::process::Command::new("setpriv");
            command.args([&format!("--reuid={user}"), "--regid=65534", "--clear-groups"]);
            command.args(["curl", "--silent", "--max-time", "5", "--unix-socket"]);
            command.arg(&socket).arg("http://warren/v1/wg/clients");
            tokio::task::spawn_blocking(move || command.output())
        };
        // Shows that the way there works, and that this test may change users.
        let own = as_user("0").await.unwrap();
        if !own.is_ok_and(|o| String::from_utf8_lossy(&o.stdout).contains("phone")) {
            eprintln!("SKIPPED: needs root, setpriv and curl");
            return;
        }
        let other = as_user("65534").await.unwrap().unwrap();
        assert!(!other.status.success() && other.stdout.is_empty(), "{other:?}");
    })
    .await;
}
