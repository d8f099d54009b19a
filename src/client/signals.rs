//! The signals that ask a verb to end: Ctrl-C, SIGTERM, and the end of its terminal.

use std::future::pending;
use std::io;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::time::sleep;

use super::error::Error;

/// A server may take this long to answer somebody who wants to leave.
const LAST_CHANCE: Duration = Duration::from_secs(1);
/// A shell's status for a process that a signal ended is this and the signal's number.
const SIGNALLED: u8 = 128;

/// Counts the signals from its making on. They end the process no more. Those that whoever started the
/// command has it ignore (`nohup`, `&` in a script) stay ignored.
pub struct Signals(watch::Receiver<Seen>);

#[derive(Clone, Copy, Default)]
struct Seen {
    count: u32,
    last: u8,
}

impl Signals {
    /// # Errors
    /// When the system does not let signals be caught.
    pub fn new() -> Result<Self, Error> {
        let (seen, signals) = watch::channel(Seen::default());
        let kinds = [
            SignalKind::interrupt(),
            SignalKind::terminate(),
            SignalKind::hangup(),
        ];
        for kind in kinds {
            let Some(mut arrivals) = unless_ignored(kind)? else {
                continue;
            };
            let seen = seen.clone();
            let last = u8::try_from(kind.as_raw_value()).unwrap_or_default();
            tokio::spawn(async move {
                while arrivals.recv().await.is_some() {
                    seen.send_modify(|seen| {
                        seen.count += 1;
                        seen.last = last;
                    });
                }
            });
        }
        Ok(Signals(signals))
    }

    /// How many have come.
    pub fn count(&self) -> u32 {
        self.0.borrow().count
    }

    /// The exit status of a command that the last one ended.
    pub fn status(&self) -> u8 {
        SIGNALLED + self.0.borrow().last
    }

    /// Waits until more than `count` have come.
    pub async fn more_than(&self, count: u32) {
        if self
            .0
            .clone()
            .wait_for(|seen| seen.count > count)
            .await
            .is_err()
        {
            pending::<()>().await;
        }
    }

    /// What `call` comes to; none where it takes another second after more than `count` signals have
    /// come.
    pub async fn limit<T>(&self, count: u32, call: impl Future<Output = T>) -> Option<T> {
        let given_up = async {
            self.more_than(count).await;
            sleep(LAST_CHANCE).await;
        };
        tokio::select! {
            biased;
            outcome = call => Some(outcome),
            () = given_up => None,
        }
    }
}

/// The arrivals of a signal; none where the process began with the signal ignored.
///
/// # Errors
/// When the system does not let signals be caught.
pub fn unless_ignored(kind: SignalKind) -> io::Result<Option<Signal>> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    if is_ignored(&status, kind.as_raw_value()) {
        Ok(None)
    } else {
        signal(kind).map(Some)
    }
}

/// Whether a process ignores a signal, by its `/proc/PID/status` (proc_pid_status(5)).
fn is_ignored(status: &str, signal: i32) -> bool {
    let ignored = status
        .lines()
        .find_map(|line| line.strip_prefix("SigIgn:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    ignored.unwrap_or_default() >> (signal - 1) & 1 == 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_system_says_what_is_ignored() {
        for (status, signal, expected) in [
            (
                "SigBlk:\tffff\nSigIgn:\t0000000000000001\nSigCgt:\t0\n",
                1,
                true,
            ),
            ("SigIgn:\t0000000000001001\n", 2, false),
            ("SigIgn:\t0000000000001002\n", 2, true),
            ("SigIgn:\t8000000000000000\n", 64, true),
            ("SigCgt:\t0000000000000001\n", 1, false),
        ] {
            assert_eq!(is_ignored(status, signal), expected, "{status} {signal}");
        }
    }
}
