//! Changes that clients want, and why one is not made.

use http::{HeaderValue, StatusCode};

use crate::daemon::CallError;
use crate::fault::{BAD_NAME, FAILED, STILL_RUNNING, fault};
use crate::program::{Name, Program};
use crate::xmlrpc::Fault;

/// Whether the daemon let the one in who wants a change, and so what the change presents to the
/// daemon from its first call to its last, whatever other callers bring meanwhile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Authorized {
    /// It did, with these credentials. The header is marked as sensitive.
    Checked(Option<HeaderValue>),
    /// It was not asked, because it asks nobody for credentials as far as is known. The change
    /// presents none.
    NotRequired,
}

impl Authorized {
    /// What the change presents to the daemon.
    pub fn presented(&self) -> Option<HeaderValue> {
        match self {
            Authorized::Checked(presented) => presented.clone(),
            Authorized::NotRequired => None,
        }
    }
}

/// Something that a client wants changed.
#[derive(Clone, Debug)]
pub enum Change {
    /// A new, empty group.
    AddGroup {
        /// What it is to be called.
        name: Name,
        /// Its place among the groups.
        priority: i64,
    },
    /// The processes of a program join its group.
    AddProgram(Box<Program>),
    /// A stopped process leaves its group.
    RemoveProcess {
        /// The group that clients know.
        group: String,
        /// The process's name.
        process: String,
    },
    /// All members that one real group holds leave together; they have stopped.
    RemovePlaced {
        /// The group that clients know.
        group: String,
        /// The real group.
        real: String,
        /// Its members, for the log.
        processes: Vec<String>,
    },
    /// A group goes, with its stopped processes.
    RemoveGroup {
        /// The group that clients know.
        name: String,
    },
}

/// Why a change was not made. The texts are those of the daemon's faults, as the `twiddler` namespace
/// tells them.
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
    /// The daemon refused it, or would.
    #[error(transparent)]
    Fault(#[from] Fault),
    /// The daemon did not take the credentials.
    #[error("supervisord answered HTTP {0}")]
    Status(StatusCode),
    /// The daemon is away.
    #[error("{0}")]
    Unreachable(String),
}

impl ChangeError {
    /// The fault that a client is told in the `twiddler` namespace; none where the daemon gave no
    /// answer.
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

/// What a change came to.
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
    /// The group that is concerned.
    pub fn group(&self) -> &str {
        match self {
            Change::AddGroup { name, .. } => name.as_str(),
            Change::AddProgram(program) => program.group(),
            Change::RemoveProcess { group, .. } | Change::RemovePlaced { group, .. } => group,
            Change::RemoveGroup { name } => name,
        }
    }
}
