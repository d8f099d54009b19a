//! What the worker publishes and everybody else reads.

use crate::registry::Registry;

/// One run of the daemon, from its start to its end. Each that is noticed has another number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Epoch(u64);

impl Epoch {
    /// The one after this.
    #[must_use]
    pub fn next(self) -> Self {
        Epoch(self.0 + 1)
    }
}

/// How far the registry can be trusted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Status {
    /// The daemon may have started again, or a change was cut short: recovery comes first.
    #[default]
    Unknown,
    /// The registry describes the epoch that the connection belongs to.
    Current,
    /// The same, but something that clients were told is there could not be added again yet. It is
    /// before the next change.
    Behind,
}

/// The registry, the epoch that it describes and how far that is so; read together.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// What was changed.
    pub registry: Registry,
    /// In this run of the daemon.
    pub epoch: Epoch,
    /// How far that can be trusted.
    pub status: Status,
    /// Groups that the daemon has of an earlier proxy were looked for.
    pub adopted: bool,
}
