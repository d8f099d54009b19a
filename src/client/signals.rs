//! The signals that ask a verb to end: SIGINT (Ctrl-C), SIGTERM and SIGHUP (its terminal was closed).

use std::future::pending;
use std::io;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::time::sleep;

use super::error::Error;

/// After a signal, the server has this long to answer a call.
const GRACE: Duration = Duration::from_secs(1);
/// A shell reports the end by a signal as this number plus the signal's number.
const SIGNALLED: u8 = 128;

/// Counts the signals that arrive. It catches them, so that they do not end the process. A signal that
/// the process ignored at its start (`nohup`, `&` in a script) stays ignored.
pub struct Signals(watch::Receiver<Received>);

#[derive(Clone, Copy, Default)]
struct Received {
    count: u32,
    /// The number of the last signal.
    last: u8,
}

impl Signals {
    /// Begins to catch and count.
    ///
    /// # Errors
    /// When the system does not install a signal handler.
    pub fn new() -> Result<Self, Error> {
        let (sender, signals) = watch::channel(Received::default());
        let kinds = [
            SignalKind::interrupt(),
            SignalKind::terminate(),
            SignalKind::hangup(),
        ];
        for kind in kinds {
            let Some(mut arrivals) = unless_ignored(kind)? else {
                continue;
            };
            let sender = sender.clone();
            let last = u8::try_from(kind.as_raw_value()).unwrap_or_default();
            tokio::spawn(async move {
                while arrivals.recv().await.is_some() {
                    sender.send_modify(|received| {
                        received.count += 1;
                        received.last = last;
                    });
                }
            });
        }
        Ok(Signals(signals))
    }

    /// How many signals have arrived.
    pub fn count(&self) -> u32 {
        self.0.borrow().count
    }

    /// The exit status of a command that the last signal ended.
    pub fn status(&self) -> u8 {
        SIGNALLED + self.0.borrow().last
    }

    /// Waits until more than `count` signals have arrived.
    pub async fn more_than(&self, count: u32) {
        if self
            .0
            .clone()
            .wait_for(|received| received.count > count)
            .await
            .is_err()
        {
            pending::<()>().await;
        }
    }

    /// The output of `call`. `None` if more than `count` signals have arrived and `call` takes another
    /// [`GRACE`].
    pub async fn limit<T>(&self, count: u32, call: impl Future<Output = T>) -> Option<T> {
        let expiry = async {
            self.more_than(count).await;
            sleep(GRACE).await;
        };
        tokio::select! {
            biased;
            outcome = call => Some(outcome),
            () = expiry => None,
        }
    }
}

/// Catches a signal; `None` where the process started with the signal ignored.
///
/// # Errors
/// When the system does not install a signal handler.
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
    fn proc_status_shows_ignored_signals() {
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
