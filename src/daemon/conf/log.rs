//! The daemon's own log: where it is, and how much is in it.

use std::path::PathBuf;

use super::error::{ConfError, MissingVariable};
use super::expand::home;
use super::paths::{absolute, join, normal_path};
use super::reader::Reader;

/// The daemon's log file where its configuration names none.
const DEFAULT_LOGFILE: &str = "supervisord.log";

/// Where the daemon logs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogFile {
    /// A file. A relative one is meant from where the daemon was started, which cannot be known
    /// here: it is looked for in `[supervisord] directory`, else taken from the current directory.
    File(PathBuf),
    /// The system's log.
    Syslog,
    /// Its name holds a variable that is not set here.
    Unknown(MissingVariable),
}

/// A level of the daemon's log (`supervisor/loggers.py`). What matters more is greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LogLevel {
    /// 3, `BLAT`.
    Blather,
    /// 5, `TRAC`.
    Trace,
    /// 10, `DEBG`.
    Debug,
    /// 20, `INFO`.
    Info,
    /// 30, `WARN`.
    Warn,
    /// 40, `ERRO`.
    Error,
    /// 50, `CRIT`.
    Critical,
}

impl LogLevel {
    /// Every level, the most important first.
    pub const ALL: [LogLevel; 7] = [
        Self::Critical,
        Self::Error,
        Self::Warn,
        Self::Info,
        Self::Debug,
        Self::Trace,
        Self::Blather,
    ];

    /// The level of this name (`info`, `warn`), in any case.
    pub fn parse(name: &str) -> Option<Self> {
        let name = name.to_lowercase();
        Self::ALL.into_iter().find(|level| level.name() == name)
    }

    /// The level that is called so in a line of the log (`WARN`), in any case.
    pub fn from_code(code: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|level| level.code().eq_ignore_ascii_case(code))
    }

    /// The level of this number.
    pub fn from_number(number: i64) -> Option<Self> {
        Self::ALL.into_iter().find(|level| level.number() == number)
    }

    /// Its name in the configuration.
    pub fn name(self) -> &'static str {
        self.spelled().0
    }

    /// Its name in a line of the log.
    pub fn code(self) -> &'static str {
        self.spelled().1
    }

    /// Its number.
    pub fn number(self) -> i64 {
        self.spelled().2
    }

    fn spelled(self) -> (&'static str, &'static str, i64) {
        match self {
            Self::Critical => ("critical", "CRIT", 50),
            Self::Error => ("error", "ERRO", 40),
            Self::Warn => ("warn", "WARN", 30),
            Self::Info => ("info", "INFO", 20),
            Self::Debug => ("debug", "DEBG", 10),
            Self::Trace => ("trace", "TRAC", 5),
            Self::Blather => ("blather", "BLAT", 3),
        }
    }
}

impl Reader<'_> {
    pub(super) fn logfile(&mut self) -> LogFile {
        let named = self.value("supervisord", "logfile");
        if let Err(ConfError::Variable(missing)) = named {
            return LogFile::Unknown(missing);
        }
        let named = self
            .keep(named)
            .flatten()
            .map_or_else(|| DEFAULT_LOGFILE.to_owned(), |(value, _)| value);
        if named == "syslog" {
            return LogFile::Syslog;
        }
        let named = home(&named, self.names.outer);
        let directory = self.directory();
        let moved = directory.map(|directory| normal_path(&join(&directory, &named)).into());
        let moved = moved.filter(|path: &PathBuf| path.exists());
        LogFile::File(moved.unwrap_or_else(|| absolute(&named).into()))
    }

    /// Where the daemon goes once it is in the background; from there it names its relative log
    /// file when it restarts (supervisor/supervisord.py, `main`).
    fn directory(&self) -> Option<String> {
        let directory = self.text("supervisord", "directory")?;
        Some(absolute(&home(&directory, self.names.outer)))
    }

    pub(super) fn loglevel(&mut self) -> LogLevel {
        let named = self.value("supervisord", "loglevel");
        let named = self.unless_missing(named);
        let named = named.and_then(|named| self.keep(named)).flatten();
        let Some((value, file)) = named else {
            return LogLevel::Info;
        };
        LogLevel::parse(&value).unwrap_or_else(|| {
            let names = LogLevel::ALL.map(LogLevel::name).join(", ");
            let problem = format!("loglevel: `{value}` is no level; write one of {names}");
            self.mistakes
                .push(ConfError::section(file, "supervisord", problem));
            LogLevel::Info
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_have_the_names_and_numbers_of_the_daemon() {
        let codes = ["CRIT", "ERRO", "WARN", "INFO", "DEBG", "TRAC", "BLAT"];
        let numbers = [50, 40, 30, 20, 10, 5, 3];
        for ((level, code), number) in LogLevel::ALL.into_iter().zip(codes).zip(numbers) {
            assert_eq!((level.code(), level.number()), (code, number));
            assert_eq!(LogLevel::from_number(number), Some(level));
            assert_eq!(LogLevel::parse(level.name()), Some(level));
            assert_eq!(LogLevel::parse(&level.name().to_uppercase()), Some(level));
        }
        assert_eq!(
            (LogLevel::parse("warning"), LogLevel::from_number(15)),
            (None, None)
        );
        assert!(LogLevel::Critical > LogLevel::Info && LogLevel::Info > LogLevel::Blather);
    }
}
