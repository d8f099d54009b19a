//! Mistakes in a configuration file of supervisord.

use std::io;
use std::path::PathBuf;

use super::ini::is_server;

/// An option whose value has an environment variable that is not set in this process. `Display` names the
/// mistake in one line, without advice.
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

/// A mistake in a part of a configuration file that the proxy needs. `Display` says what to write instead.
#[derive(Debug, thiserror::Error)]
pub enum ConfError {
    /// The file does not exist.
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
        /// The error of the operating system.
        #[source]
        cause: io::Error,
    },
    /// The daemon cannot parse a line in a section that the proxy needs.
    #[error("{}: line {line} {problem}", .file.display())]
    Line {
        /// The file.
        file: PathBuf,
        /// The number of the line, counted from 1.
        line: usize,
        /// The mistake, and what to write instead.
        problem: String,
    },
    /// The file has no `[supervisord]` section.
    #[error("{}: there is no [supervisord] section, without which supervisord does not start; write [supervisord], even an empty one", .file.display())]
    NoSupervisord {
        /// The file.
        file: PathBuf,
    },
    /// No section makes the daemon listen.
    #[error("{}: there is no [unix_http_server] and no [inet_http_server] section, so nothing can talk to supervisord; write [unix_http_server] and below it file = /run/supervisor.sock", .file.display())]
    NoServer {
        /// The file.
        file: PathBuf,
    },
    /// A required variable is not set.
    #[error("{0}; start twiddler with the value that supervisord has, {instead}or write %% for a percent sign", instead = instead_of(.0))]
    Variable(MissingVariable),
    /// An option of a section is missing or invalid.
    #[error("{}: [{section}] {problem}", .file.display())]
    Section {
        /// The file.
        file: PathBuf,
        /// The section.
        section: String,
        /// The option, the mistake, and what to write instead. It quotes no value that may be a password.
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

/// Returns the advice to set an option of twiddler instead of the daemon's option.
fn instead_of(missing: &MissingVariable) -> &'static str {
    match (&*missing.section, &*missing.key) {
        ("include", _) => "or name the directory that it includes with --include-dir, ",
        (section, "file" | "port") if is_server(section) => {
            "or name where it listens with --supervisord, "
        }
        _ => "",
    }
}
