//! Which connections may share a path out of the mesh: those of one user name.
//!
//! In: the user names that programs give to the proxies. Out: requests to the
//! daemon for sessions of their own, and its answers. Invariants: connections
//! with different user names never share a path; one whose path cannot be had
//! fails, and takes no other; user names are not logged. Deliberately not here:
//! the sessions (the daemon has them), and their addresses (`address`).

use std::fmt;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

/// User names with a path of their own at one time.
pub const MAX_ISOLATED: usize = 16;
/// One that nothing was sent over for so long is ended, minutes.
pub const IDLE_MINUTES: u64 = 10;
/// How long a connection waits for the path of its user name.
const PATIENCE: Duration = Duration::from_secs(15);

/// Connections with different isolation never share a path out of the mesh.
/// The user name given to a proxy; empty without one.
#[derive(Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Isolation(Box<[u8]>);

impl Isolation {
    /// Of a user name, at most 255 bytes as SOCKS has them.
    pub fn of_user(name: &[u8]) -> Self {
        Self(name.iter().take(255).copied().collect())
    }

    /// As it is shown; what is not UTF-8 is replaced.
    pub fn shown(&self) -> String {
        String::from_utf8_lossy(&self.0).into_owned()
    }

    /// True without a user name: the node's own session.
    pub fn is_default(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Debug for Isolation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_default() { "Isolation(default)" } else { "Isolation(..)" })
    }
}

/// Why a user name has no path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum IsolationError {
    /// [`MAX_ISOLATED`] others have one.
    #[error(
        "{MAX_ISOLATED} user names have paths of their own already; one that is not used for \
         {IDLE_MINUTES} minutes makes room"
    )]
    TooMany,
    /// No path is wanted at all.
    #[error("there is no path out of the mesh")]
    NotConnected,
    /// It was begun and is not there yet.
    #[error("the path of this user name is not there yet")]
    TimedOut,
}

/// A path that is asked for.
#[derive(Debug)]
pub struct Wanted {
    /// Whose.
    pub isolation: Isolation,
    /// Told once it is there.
    pub reply: oneshot::Sender<Result<(), IsolationError>>,
}

/// Asks for paths.
#[derive(Debug, Clone, Default)]
pub struct Isolator(Option<mpsc::Sender<Wanted>>);

impl Isolator {
    /// Whoever has the other end gives them; the default one gives none.
    pub fn new(daemon: mpsc::Sender<Wanted>) -> Self {
        Self(Some(daemon))
    }

    /// Waits until the path is there.
    ///
    /// # Errors
    /// [`IsolationError`], at the latest after 15 s.
    pub async fn begin(&self, isolation: &Isolation) -> Result<(), IsolationError> {
        let Some(daemon) = &self.0 else { return Err(IsolationError::NotConnected) };
        let (reply, answer) = oneshot::channel();
        let wanted = Wanted { isolation: isolation.clone(), reply };
        let asked = async {
            daemon.send(wanted).await.map_err(|_| IsolationError::NotConnected)?;
            // Dropped: it was given up together with all others.
            answer.await.unwrap_or(Err(IsolationError::NotConnected))
        };
        timeout(PATIENCE, asked).await.unwrap_or(Err(IsolationError::TimedOut))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_names_are_not_shown() {
        assert_eq!(format!("{:?}", Isolation::of_user(b"anna")), "Isolation(..)");
        assert!(Isolation::of_user(b"").is_default());
        assert_eq!(Isolation::of_user(&[b'a'; 300]).shown().len(), 255);
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_for_ever_and_nobody_gets_another_path() {
        let anna = Isolation::of_user(b"anna");
        assert_eq!(Isolator::default().begin(&anna).await, Err(IsolationError::NotConnected));
        let (daemon, mut asked) = mpsc::channel(1);
        let isolator = Isolator::new(daemon);
        let begun = tokio::time::Instant::now();
        assert_eq!(isolator.begin(&anna).await, Err(IsolationError::TimedOut));
        assert_eq!(begun.elapsed(), PATIENCE);
        assert_eq!(asked.recv().await.unwrap().isolation, anna);
        let answering = async {
            asked.recv().await.unwrap().reply.send(Err(IsolationError::TooMany)).unwrap();
            drop(asked.recv().await.unwrap());
            asked.recv().await.unwrap().reply.send(Ok(())).unwrap();
        };
        let asking = async {
            assert_eq!(isolator.begin(&anna).await, Err(IsolationError::TooMany));
            assert_eq!(isolator.begin(&anna).await, Err(IsolationError::NotConnected));
            assert_eq!(isolator.begin(&anna).await, Ok(()));
        };
        tokio::join!(answering, asking);
    }
}
