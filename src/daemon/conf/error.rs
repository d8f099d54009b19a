//! What can be wrong with a configuration file of supervisord.

use std::io;
use std::path::PathBuf;

use super::ini::is_server;

/// An option whose value holds a variable of the environment that is not set here. Displays as one
/// line without what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}: [{section}] {key}: the environment variable {variable} is not set", .file.display())]
pub struct MissingVariable {
    /// The file.
    pub file: PathBuf,
    /// The section.
    pub section: String,
    /// The option.
    pub key: String,
    /// The variable.
    pub variable: String,
}

/// A mistake in the parts of a configuration file that the proxy needs, and what to write instead.
#[derive(Debug, thiserror::Error)]
pub enum ConfError {
    /// There is no such file.
    #[error("{}: there is no such file; name supervisord's configuration file with -c PATH", .file.display())]
    Missing {
        /// The file.
        file: PathBuf,
    },
    /// The file cannot be read.
    #[error("{}: it cannot be read ({cause}); name a file with -c PATH that the account of twiddler may read", .file.display())]
    Unreadable {
        /// The file.
        file: PathBuf,
        /// What the system said.
        #[source]
        cause: io::Error,
    },
    /// A line that the daemon cannot read, where the proxy needs to.
    #[error("{}: line {line} {problem}", .file.display())]
    Line {
        /// The file.
        file: PathBuf,
        /// The line's number, from 1.
        line: usize,
        /// Where it stands, and what to write.
        problem: String,
    },
    /// No `[supervisord]`.
    #[error("{}: there is no [supervisord] section, without which supervisord does not start; write [supervisord], even an empty one", .file.display())]
    NoSupervisord {
        /// The file.
        file: PathBuf,
    },
    /// Nothing makes the daemon listen.
    #[error("{}: there is no [unix_http_server] and no [inet_http_server] section, so nothing can talk to supervisord; write [unix_http_server] and below it file = /run/supervisor.sock", .file.display())]
    NoServer {
        /// The file.
        file: PathBuf,
    },
    /// A variable that is needed is not set.
    #[error("{0}; start twiddler with the value that supervisord has, {instead}or write %% for a percent sign", instead = instead_of(.0))]
    Variable(MissingVariable),
    /// An option of a section is missing, or wrong.
    #[error("{}: [{section}] {problem}", .file.display())]
    Section {
        /// The file.
        file: PathBuf,
        /// The section.
        section: String,
        /// What is wrong with which option, and what to write. No value that may be a password.
        problem: String,
    },
}

impl ConfError {
    pub(super) fn section(file: PathBuf, section: &str, problem: String) -> Self {
        ConfError::Section {
            file,
            section: section.to_owned(),
            problem,
        }
    }
}

/// The option of twiddler that stands in for an option of the daemon's.
fn instead_of(missing: &MissingVariable) -> &'static str {
    match (&*missing.section, &*missing.key) {
        ("include", _) => "or name the directory that it includes with --include-dir, ",
        (section, "file" | "port") if is_server(section) => {
            "or name where it listens with --supervisord, "
        }
        _ => "",
    }
}
