//! How many connections the daemon can spare, by its limit on open files.
//!
//! The limit is that of the daemon's process if the proxy can see it, and otherwise that of the
//! daemon's configuration file.

use std::fs;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::net::unix::UCred;

/// The largest number of connections.
const MAX_CONNECTIONS: usize = 200;
/// The smallest number of connections.
pub(super) const MIN_CONNECTIONS: usize = 16;
/// The descriptors that the daemon needs for a running process: three pipes and two log files.
const PER_PROCESS: usize = 5;
/// The descriptors for the daemon's other files and for clients that connect to it directly.
const SPARE: usize = 64;
/// How long a measurement of the daemon's process is valid.
const MEASURE_INTERVAL: Duration = Duration::from_secs(1);
/// How long to wait before the daemon is asked for its pid again.
const PID_INTERVAL: Duration = Duration::from_secs(60);

/// The daemon's file descriptors and the number of its processes, which need some of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descriptors {
    /// The limit on open files.
    pub limit: usize,
    /// The number of processes.
    pub processes: usize,
    /// The number of open descriptors, or 0 if it is unknown.
    pub open: usize,
}

impl Default for Descriptors {
    /// Returns those of a daemon with the default `minfds` (`supervisor/options.py`).
    fn default() -> Self {
        Descriptors {
            limit: 1024,
            processes: 0,
            open: 0,
        }
    }
}

impl Descriptors {
    /// Returns how many connections the proxy may have to the daemon, which has `used` descriptors open
    /// for the proxy now.
    ///
    /// The daemon may have more descriptors open than its processes need. The log of a closed `tail -f`
    /// stays open until Python's cycle collector frees it (`supervisor/http.py`, `tail_f_producer`).
    pub(super) fn ceiling(self, used: usize) -> usize {
        let needed = self.processes.saturating_mul(PER_PROCESS);
        let others = self.open.saturating_sub(used);
        self.limit
            .saturating_sub(needed.max(others))
            .saturating_sub(SPARE)
            .clamp(MIN_CONNECTIONS, MAX_CONNECTIONS)
    }
}

/// Measures the daemon's descriptors.
#[derive(Debug)]
pub(super) struct Gauge {
    /// The descriptors according to the daemon's configuration file.
    configured: Descriptors,
    transport: Transport,
    state: Mutex<State>,
}

/// How the proxy reaches the daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Transport {
    /// Over a unix socket, which has the pid of the peer.
    UnixSocket,
    /// Over TCP on this machine.
    Loopback,
    /// Over TCP on another machine.
    Network,
}

#[derive(Debug, Default)]
struct State {
    has_peer: bool,
    pid: Option<i32>,
    measured_at: Option<Instant>,
    pid_requested_at: Option<Instant>,
}

/// The result of a measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Measurement {
    /// The daemon's descriptors.
    Known(Descriptors),
    /// The configured descriptors. The caller should ask the daemon for its pid and call
    /// [`Gauge::record_pid`].
    PidNeeded(Descriptors),
    /// The last measurement is still valid, or none is possible yet.
    Recent,
}

impl Gauge {
    /// Returns a gauge that falls back to the descriptors in the daemon's configuration file.
    pub(super) fn new(configured: Descriptors, transport: Transport) -> Self {
        Gauge {
            configured,
            transport,
            state: Mutex::default(),
        }
    }

    /// Records the peer of a unix socket. Its pid is ignored after the daemon was asked for its pid:
    /// the peer is the process that opened the socket, which may have daemonized since.
    pub(super) fn record_peer(&self, peer: &UCred) {
        let mut state = self.state();
        state.has_peer = true;
        if state.pid_requested_at.is_none() {
            state.pid = peer.pid();
        }
    }

    /// Records the pid that the daemon has returned.
    pub(super) fn record_pid(&self, pid: Option<i32>) {
        let mut state = self.state();
        state.pid = pid;
        state.measured_at = None;
    }

    /// Measures the daemon's process, at most once per [`MEASURE_INTERVAL`].
    pub(super) fn measure(&self) -> Measurement {
        let mut state = self.state();
        let is_recent =
            |at: Option<Instant>, interval| at.is_some_and(|at| at.elapsed() < interval);
        if is_recent(state.measured_at, MEASURE_INTERVAL)
            || self.transport == Transport::UnixSocket && !state.has_peer
        {
            return Measurement::Recent;
        }
        state.measured_at = Some(Instant::now());
        if let Some(process) = state.pid.and_then(descriptors_of) {
            return Measurement::Known(Descriptors {
                limit: process.limit,
                // The daemon may start all configured processes at any time.
                processes: process.processes.max(self.configured.processes),
                open: process.open,
            });
        }
        if self.transport == Transport::Network || is_recent(state.pid_requested_at, PID_INTERVAL) {
            return Measurement::Known(self.configured);
        }
        state.pid_requested_at = Some(Instant::now());
        Measurement::PidNeeded(self.configured)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns the descriptors of a process if it is a supervisord. If the daemon is in another pid
/// namespace, the pid may belong to another process here.
fn descriptors_of(pid: i32) -> Option<Descriptors> {
    let command = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    if !is_supervisord(&command) {
        return None;
    }
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).ok()?;
    // The kernel may be built without this file.
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    // This fails for a process of another account.
    let open = fs::read_dir(format!("/proc/{pid}/fd"));
    Some(Descriptors {
        limit: open_files(&limits)?,
        processes: children.map_or(0, |children| children.split_whitespace().count()),
        open: open.map_or(0, Iterator::count),
    })
}

fn is_supervisord(command: &[u8]) -> bool {
    let mut words = command.split(|byte| *byte == 0);
    words.any(|word| {
        let name = word.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
        matches!(
            name,
            b"supervisord" | b"supervisord.py" | b"supervisor.supervisord"
        )
    })
}

/// Returns the soft limit on open files (proc_pid_limits(5)).
fn open_files(limits: &str) -> Option<usize> {
    let line = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"))?;
    match line.split_whitespace().next()? {
        "unlimited" => Some(usize::MAX),
        limit => limit.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_leave_descriptors_for_the_daemons_processes() {
        for (limit, processes, open, used, expected) in [
            (1024, 0, 0, 0, 200),
            (1024, 152, 0, 0, 200),
            (1024, 153, 0, 0, 195),
            (1024, 180, 0, 0, 60),
            (1024, 189, 0, 0, 16),
            (1024, 1000, 0, 0, 16),
            (256, 10, 0, 0, 142),
            (64, 0, 0, 0, 16),
            (0, 0, 0, 0, 16),
            (usize::MAX, 10_000, 0, 0, 200),
            // The open descriptors include those for processes.
            (256, 10, 57, 0, 135),
            (256, 10, 157, 107, 142),
            // Logs of closed `tail -f` requests are open.
            (1024, 10, 850, 10, 120),
            (1024, 10, 1024, 0, 16),
            (1024, 10, 0, 100, 200),
        ] {
            let descriptors = Descriptors {
                limit,
                processes,
                open,
            };
            assert_eq!(
                descriptors.ceiling(used),
                expected,
                "{descriptors:?}, {used}"
            );
        }
    }

    #[test]
    fn a_supervisord_is_recognized_by_its_command() {
        for (command, expected) in [
            ("/usr/bin/python3\0/usr/bin/supervisord\0-n\0", true),
            ("supervisord\0", true),
            ("python3\0-m\0supervisor.supervisord\0", true),
            ("twiddler\0serve\0-c\0/etc/supervisord.conf\0", false),
            ("supervisorctl\0status\0", false),
            ("", false),
        ] {
            assert_eq!(is_supervisord(command.as_bytes()), expected, "{command}");
        }
    }

    #[test]
    fn the_limit_on_open_files_is_the_soft_one() {
        let limits = "Limit                     Soft Limit           Hard Limit           Units     \n\
            Max processes             96365                96365                processes \n\
            Max open files            1024                 524288               files     \n";
        assert_eq!(open_files(limits), Some(1024));
        assert_eq!(
            open_files("Max open files            unlimited   unlimited   files\n"),
            Some(usize::MAX)
        );
        assert_eq!(open_files("Max processes 1 1 processes\n"), None);
    }
}
