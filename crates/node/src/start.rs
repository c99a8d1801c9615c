//! What the command line hands to the daemon when it starts, and what the
//! daemon hands back once it serves.

use std::net::IpAddr;

use tokio::sync::oneshot;
pub use warren_os::process::{Detached, Readiness, ReadinessReport, detach};
use warren_types::api::NamesStatus;
use warren_types::{NetworkName, NodeName};

use crate::api::EventLog;
use crate::config::Config;
use crate::fault::Fault;

/// What the operator asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Intent {
    /// `warren up`: restart the node of the state directory, or create a
    /// network when the directory is fresh.
    Up,
    /// `warren join CODE`: be admitted first; refused when the directory
    /// already belongs to a network.
    Join {
        /// The code as typed.
        code: String,
    },
}

/// One start of the daemon.
#[derive(Debug)]
pub struct Start {
    /// Validated configuration.
    pub config: Config,
    /// Up or join.
    pub intent: Intent,
    /// Where the daemon publishes what happens.
    pub events: EventLog,
    /// Answered once: when interface, socket and API are up. Dropped without an
    /// answer when the start fails (the daemon's result then says why).
    pub ready: oneshot::Sender<Ready>,
    /// Resolves (also by being dropped) when the daemon shall stop: a signal
    /// came. The daemon then ends as after `POST /v1/shutdown`.
    pub stop: oneshot::Receiver<()>,
}

/// The daemon serves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ready {
    /// This node.
    pub node: NodeName,
    /// Its network.
    pub network: NetworkName,
    /// Its overlay addresses.
    pub addresses: Vec<IpAddr>,
    /// How members' names work on this machine.
    pub names: NamesStatus,
    /// How this start went.
    pub outcome: Outcome,
}

/// How a start went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// A network was created.
    Created {
        /// The code that admits the second machine, or why there is none.
        code: Result<String, String>,
    },
    /// A first start in key or psk mode, where nobody admits anybody.
    Configured,
    /// The network was joined now.
    Joined,
    /// An existing node came back with its identity.
    Restarted {
        /// True when this node can print join codes.
        admin: bool,
    },
}

/// How the daemon ends: `Ok` after a requested stop.
pub type Ended = Result<(), Fault>;

pub use crate::daemon::run;
