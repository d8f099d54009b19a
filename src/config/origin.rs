//! The source of an option's value.

use std::fmt;
use std::path::PathBuf;

use super::options::{self, variable};

/// The source of an option's value. Displays as the start of an error, such as `--listen`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// An option of the command line.
    CommandLine(&'static str),
    /// A variable of the environment.
    Environment(&'static str),
    /// A key of `[twiddler]`.
    File {
        /// The file.
        file: PathBuf,
        /// The key.
        key: &'static str,
    },
}

impl Origin {
    /// The precedence of the source: the value with the lowest rank counts.
    pub(super) fn rank(&self) -> u8 {
        match self {
            Self::CommandLine(_) => 0,
            Self::Environment(_) => 1,
            Self::File { .. } => 2,
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CommandLine(key) => write!(f, "--{}", options::long(key)),
            Self::Environment(key) => f.write_str(&variable(key)),
            Self::File { file, key } => write!(f, "{}: [twiddler] {key}", file.display()),
        }
    }
}
