//! How a process ended, and the exit status of the command for it.

use std::str::FromStr;

use nix::sys::signal::Signal;

use crate::client::error::NOT_DONE;

/// How many bytes at the end of the daemon's log are searched for the signal.
pub const LOG_END: i64 = 16 * 1024;

/// A shell's exit status for a program that does not exist.
const NOT_FOUND: u8 = 127;
/// A shell's exit status for a program that cannot be executed.
const NOT_EXECUTABLE: u8 = 126;
/// A shell reports the end by a signal as this number plus the signal's number.
const SIGNALLED: u8 = 128;
/// The exit status of this command when the reader of its output has exited, as for `SIGPIPE`.
pub const BROKEN_PIPE: u8 = SIGNALLED + 13;

/// How a process ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// By itself, with this exit status.
    Exited(u8),
    /// By the signal of this number; `None` if the daemon's log does not name it.
    Killed(Option<u8>),
    /// It is FATAL: it was not up for `startsecs`. The text is the daemon's `spawnerr`.
    Fatal(String),
    /// There is no such program file.
    NotFound,
    /// The program file cannot be executed.
    NotExecutable,
    /// The daemon has no such process any more.
    Gone,
    /// A signal ended the command before it started the process. The number is the exit status.
    NotStarted(u8),
}

impl End {
    /// Prints on standard error what the exit status does not show, and returns the exit status.
    pub fn report(&self, name: &str) -> u8 {
        if let Some(text) = self.text() {
            say!("twiddler: {name} {text}");
        }
        self.status()
    }

    fn text(&self) -> Option<String> {
        match self {
            End::Exited(_) | End::Killed(Some(_)) => None,
            End::Killed(None) => {
                Some("was ended by a signal that supervisord's log does not name".to_owned())
            }
            End::Fatal(reason) if reason.is_empty() => Some("could not be started".to_owned()),
            End::Fatal(reason) => Some(format!("could not be started: {reason}")),
            End::NotFound => Some("could not be started: no such file".to_owned()),
            End::NotExecutable => Some("could not be started: it is not executable".to_owned()),
            End::NotStarted(_) => Some("was not started".to_owned()),
            End::Gone => {
                Some("is gone: supervisord has started again, or somebody removed it".to_owned())
            }
        }
    }

    fn status(&self) -> u8 {
        match self {
            End::Exited(status) | End::NotStarted(status) => *status,
            End::Killed(signal) => signal.map_or(NOT_DONE, |signal| SIGNALLED + signal),
            End::NotFound => NOT_FOUND,
            End::NotExecutable => NOT_EXECUTABLE,
            End::Fatal(_) | End::Gone => NOT_DONE,
        }
    }
}

/// The signal that ended the process `name`, by the daemon's log: `exited: NAME (terminated by
/// SIGSEGV (core dumped); not expected)`, or the same with `stopped` (`supervisor/process.py`,
/// `finish`).
pub fn signal_in(log: &str, name: &str) -> Option<u8> {
    let prefixes = [
        format!(" exited: {name} (terminated by "),
        format!(" stopped: {name} (terminated by "),
    ];
    let signal = log
        .lines()
        .rev()
        .find_map(|line| {
            prefixes
                .iter()
                .find_map(|prefix| line.split_once(prefix.as_str()))
        })
        .map(|(_, signal)| signal)?;
    if let Some(number) = signal.strip_prefix("signal ") {
        return number
            .split(|c: char| !c.is_ascii_digit())
            .next()?
            .parse()
            .ok();
    }
    let name = signal.split(|c: char| !c.is_ascii_alphanumeric()).next()?;
    let number = Signal::from_str(name).ok()? as i32;
    u8::try_from(number).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_signal_is_read_from_the_log() {
        for (line, expected) in [
            (
                "INFO exited: x (terminated by SIGTERM; not expected)",
                Some(15),
            ),
            (
                "WARN exited: x (terminated by SIGSEGV (core dumped); not expected)",
                Some(11),
            ),
            ("INFO stopped: x (terminated by SIGKILL)", Some(9)),
            (
                "INFO exited: x (terminated by signal 40; not expected)",
                Some(40),
            ),
            (
                "INFO exited: x-1 (terminated by SIGTERM; not expected)",
                None,
            ),
            ("INFO exited: x (exit status 3; not expected)", None),
        ] {
            let log = format!("first\n2026-11-27 00:00:00,000 {line}\nlast\n");
            assert_eq!(signal_in(&log, "x"), expected, "{line}");
        }
    }

    #[test]
    fn exit_statuses_are_those_of_a_shell() {
        for (end, expected) in [
            (End::Exited(7), 7),
            (End::Killed(Some(15)), 143),
            (End::Killed(None), 1),
            (End::NotFound, 127),
            (End::NotExecutable, 126),
            (End::Gone, 1),
        ] {
            assert_eq!(end.status(), expected, "{end:?}");
        }
    }
}
