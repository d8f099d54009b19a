//! The view, which the worker publishes and all other code reads.

use crate::registry::Registry;

/// The number of an epoch: the time from one start of the daemon to the next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Epoch(u64);

impl Epoch {
    /// The next epoch.
    #[must_use]
    pub fn next(self) -> Self {
        Epoch(self.0 + 1)
    }
}

/// Whether the registry describes the daemon.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Status {
    /// The daemon may have restarted, or a change was interrupted: recovery comes first.
    #[default]
    Unknown,
    /// The registry describes the epoch of the liveness connection.
    Current,
    /// As `Current`, but recovery could not add a group or process again that clients know. The worker
    /// tries again before the next change.
    Behind,
}

/// The registry, the epoch that it describes, and its status, for reading them together.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// The changes of the epoch.
    pub registry: Registry,
    /// The epoch.
    pub epoch: Epoch,
    /// Whether the registry describes the daemon.
    pub status: Status,
    /// Whether this proxy has adopted the groups of an earlier proxy.
    pub adopted: bool,
}
