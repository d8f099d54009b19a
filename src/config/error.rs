//! The mistakes in a configuration.

use std::fmt;
use std::path::PathBuf;

use super::options;
use super::origin::Origin;
use crate::daemon::conf::ConfError;

/// A mistake in the configuration, and what to write instead. Displays as one line.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A mistake in supervisord's own sections of the file.
    #[error(transparent)]
    Daemon(#[from] ConfError),
    /// No option names supervisord's file, and none exists where supervisorctl searches.
    #[error("no supervisord.conf was named, and there is none at {}; name it with -c PATH", listed(.searched))]
    NoFile {
        /// The paths that were searched.
        searched: Vec<PathBuf>,
    },
    /// A key of `[twiddler]` that is no option.
    #[error("{}: [twiddler] {key} is not a twiddler option; write {}", .file.display(), instead(*.nearest, &options::keys()))]
    UnknownKey {
        /// The file.
        file: PathBuf,
        /// The key.
        key: String,
        /// The most similar option.
        nearest: Option<&'static str>,
    },
    /// A value that is not valid for its option.
    #[error("{origin}: {reason}")]
    BadValue {
        /// The source of the value.
        origin: Origin,
        /// What is wrong with it, and what to write.
        reason: String,
    },
    /// `listen` is not set, and the proxy cannot create a socket beside the daemon's.
    #[error("{}: [twiddler] has no listen, and {reason}; write {instead}", .file.display())]
    NoListen {
        /// The file.
        file: PathBuf,
        /// Why the proxy cannot create the socket.
        reason: String,
        /// What to write.
        instead: String,
    },
    /// supervisord includes no files.
    #[error("{}: [include] lists no files, so supervisord would not read what twiddler writes; write [include] and below it files = {example}", .file.display())]
    NoInclude {
        /// The file.
        file: PathBuf,
        /// A pattern to write.
        example: String,
    },
    /// A pattern of `[include] files` that the proxy cannot use. No other pattern can be used, either.
    #[error("{}: [include] files: {pattern}: {reason}", .file.display())]
    IncludePattern {
        /// The file.
        file: PathBuf,
        /// The pattern.
        pattern: String,
        /// Why it cannot be used, and what to write.
        reason: String,
    },
}

/// All mistakes in a configuration, at least one. Displays as a line for each.
#[derive(Debug)]
pub struct ConfigErrors(pub(super) Vec<ConfigError>);

impl ConfigErrors {
    /// The mistakes.
    pub fn iter(&self) -> impl Iterator<Item = &ConfigError> {
        self.0.iter()
    }
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines: Vec<_> = self.iter().map(ToString::to_string).collect();
        f.write_str(&lines.join("\n"))
    }
}

impl std::error::Error for ConfigErrors {}

fn listed(paths: &[PathBuf]) -> String {
    let paths = paths.iter().map(|path| path.display().to_string());
    paths.collect::<Vec<_>>().join(", ")
}

/// The advice for an unknown word: the nearest of the known ones, or all of them.
pub(super) fn instead(nearest: Option<&str>, known: &[&str]) -> String {
    nearest.map_or_else(|| format!("one of {}", known.join(", ")), str::to_owned)
}
