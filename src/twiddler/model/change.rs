//! Changes that clients request, and why a change fails.

use http::{HeaderValue, StatusCode};

use crate::daemon::CallError;
use crate::fault::{BAD_NAME, FAILED, STILL_RUNNING, fault};
use crate::program::{Name, Program};
use crate::xmlrpc::Fault;

/// The caller's authorization. It fixes the credentials that the change presents to the daemon in all its
/// calls, independent of what other callers present in the meantime.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Authorized {
    /// The daemon accepted these credentials. The header is marked as sensitive.
    Checked(Option<HeaderValue>),
    /// The credentials were not checked, because the daemon is not known to require any. The change
    /// presents none.
    NotRequired,
}

impl Authorized {
    /// The `Authorization` header that the change presents to the daemon.
    pub fn presented(&self) -> Option<HeaderValue> {
        match self {
            Authorized::Checked(presented) => presented.clone(),
            Authorized::NotRequired => None,
        }
    }
}

/// A change that a client requests.
#[derive(Clone, Debug)]
pub enum Change {
    /// Add an empty group.
    AddGroup {
        /// The group's name.
        name: Name,
        /// The group's priority.
        priority: i64,
    },
    /// Add the processes of a program to its group.
    AddProgram(Box<Program>),
    /// Remove a stopped process from its group.
    RemoveProcess {
        /// The group that clients know.
        group: String,
        /// The process's name.
        process: String,
    },
    /// Remove all members of one real group. Their processes have stopped.
    RemovePlaced {
        /// The group that clients know.
        group: String,
        /// The real group.
        real: String,
        /// Its members, for the log.
        processes: Vec<String>,
    },
    /// Remove a group with its stopped processes.
    RemoveGroup {
        /// The group that clients know.
        name: String,
    },
}

/// Why a change failed. The texts are those of the daemon's faults, as the `twiddler` namespace returns
/// them.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ChangeError {
    /// There is no group of this name.
    #[error("BAD_NAME: group: {0}")]
    UnknownGroup(String),
    /// There is no process of this name.
    #[error("BAD_NAME: {0}")]
    UnknownProcess(String),
    /// There is a group or a process of this name already.
    #[error("BAD_NAME: {0}")]
    NameTaken(String),
    /// This process is not stopped.
    #[error("STILL_RUNNING: {0}")]
    StillRunning(String),
    /// The daemon refused the change, or would refuse it.
    #[error(transparent)]
    Fault(#[from] Fault),
    /// The daemon rejected the credentials.
    #[error("supervisord answered HTTP {0}")]
    Status(StatusCode),
    /// The daemon does not answer.
    #[error("{0}")]
    Unreachable(String),
}

impl ChangeError {
    /// The fault for the client in the `twiddler` namespace. `None` if the daemon gave no answer.
    pub fn fault(&self) -> Option<Fault> {
        Some(match self {
            ChangeError::UnknownGroup(group) => fault(BAD_NAME, format!("group: {group}")),
            ChangeError::UnknownProcess(name) | ChangeError::NameTaken(name) => {
                fault(BAD_NAME, name)
            }
            ChangeError::StillRunning(process) => fault(STILL_RUNNING, process),
            ChangeError::Fault(fault) => fault.clone(),
            ChangeError::Status(_) | ChangeError::Unreachable(_) => return None,
        })
    }
}

/// The result of a change.
pub type Outcome = Result<(), ChangeError>;

impl From<CallError> for ChangeError {
    fn from(error: CallError) -> Self {
        match error {
            CallError::Fault(fault) => ChangeError::Fault(fault),
            CallError::Status(status) => ChangeError::Status(status),
            CallError::Unreachable(reason) => ChangeError::Unreachable(reason),
            CallError::Unreadable(error) => ChangeError::Fault(fault(FAILED, error)),
        }
    }
}

impl Change {
    /// The group that the change affects.
    pub fn group(&self) -> &str {
        match self {
            Change::AddGroup { name, .. } => name.as_str(),
            Change::AddProgram(program) => program.group(),
            Change::RemoveProcess { group, .. } | Change::RemovePlaced { group, .. } => group,
            Change::RemoveGroup { name } => name,
        }
    }
}
