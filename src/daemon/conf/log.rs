//! The daemon's main log: its file and its level.

use std::path::PathBuf;

use super::error::{ConfError, MissingVariable};
use super::expand::home;
use super::paths::{absolute, join, normal_path};
use super::reader::Reader;

/// The default of `logfile`.
const DEFAULT_LOGFILE: &str = "supervisord.log";

/// The file of the daemon's main log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogFile {
    /// A path. The daemon resolves a relative `logfile` in the directory in which it was started, which
    /// the proxy does not know. The path is then in `[supervisord] directory` if the file exists there, and
    /// otherwise in the current directory.
    File(PathBuf),
    /// Syslog.
    Syslog,
    /// The path has a variable that is not set in this process.
    Unknown(MissingVariable),
}

/// A level of the daemon's log (`supervisor/loggers.py`). More important levels are greater.
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
    /// All levels, the most important first.
    pub const ALL: [LogLevel; 7] = [
        Self::Critical,
        Self::Error,
        Self::Warn,
        Self::Info,
        Self::Debug,
        Self::Trace,
        Self::Blather,
    ];

    /// Returns the level with this name in the configuration (`warn`), in any case.
    pub fn parse(name: &str) -> Option<Self> {
        let name = name.to_lowercase();
        Self::ALL.into_iter().find(|level| level.name() == name)
    }

    /// Returns the level with this name in lines of the log (`WARN`), in any case.
    pub fn from_code(code: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|level| level.code().eq_ignore_ascii_case(code))
    }

    /// Returns the level with this number.
    pub fn from_number(number: i64) -> Option<Self> {
        Self::ALL.into_iter().find(|level| level.number() == number)
    }

    /// Returns the name in the configuration.
    pub fn name(self) -> &'static str {
        self.name_code_number().0
    }

    /// Returns the name in lines of the log.
    pub fn code(self) -> &'static str {
        self.name_code_number().1
    }

    /// Returns the number.
    pub fn number(self) -> i64 {
        self.name_code_number().2
    }

    fn name_code_number(self) -> (&'static str, &'static str, i64) {
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
        let logfile = self.value("supervisord", "logfile");
        if let Err(ConfError::Variable(missing)) = logfile {
            return LogFile::Unknown(missing);
        }
        let logfile = self
            .collect_mistake(logfile)
            .flatten()
            .map_or_else(|| DEFAULT_LOGFILE.to_owned(), |(value, _)| value);
        if logfile == "syslog" {
            return LogFile::Syslog;
        }
        let logfile = home(&logfile, self.names.outer);
        let directory = self.directory();
        let in_directory =
            directory.map(|directory| normal_path(&join(&directory, &logfile)).into());
        let in_directory = in_directory.filter(|path: &PathBuf| path.exists());
        LogFile::File(in_directory.unwrap_or_else(|| absolute(&logfile).into()))
    }

    /// Returns the working directory of the daemon after it has daemonized. When the daemon restarts, it
    /// resolves a relative log file in this directory (`supervisor/supervisord.py`, `main`).
    fn directory(&self) -> Option<String> {
        let directory = self.text("supervisord", "directory")?;
        Some(absolute(&home(&directory, self.names.outer)))
    }

    pub(super) fn loglevel(&mut self) -> LogLevel {
        let level = self.value("supervisord", "loglevel");
        let level = self.unless_missing(level);
        let level = level.and_then(|level| self.collect_mistake(level));
        let Some((value, file)) = level.flatten() else {
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
    fn levels_have_the_daemons_names_and_numbers() {
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
