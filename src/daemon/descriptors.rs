//! How many connections the daemon can spare.
//!
//! Its limit of open files is read where its process can be seen from here, else taken from its
//! configuration file.

use std::fs;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::net::unix::UCred;

/// The most connections, whatever the daemon could bear.
const MOST: usize = 200;
/// The fewest.
pub(super) const FEWEST: usize = 16;
/// What a running process costs the daemon: three pipes and two logs.
const OF_A_PROCESS: usize = 5;
/// What the daemon needs beside processes and connections, and others who connect to it themselves.
const SPARE: usize = 64;
/// How long what was read of the daemon's process is good for.
const READ_AGAIN: Duration = Duration::from_secs(1);
/// The same for the number of its process, where the daemon was asked for it.
const ASK_AGAIN: Duration = Duration::from_secs(60);

/// What the daemon has, and what its programs need of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descriptors {
    /// How many it may have.
    pub limit: usize,
    /// Its processes.
    pub processes: usize,
    /// What it has open now, where that can be seen.
    pub open: usize,
}

impl Default for Descriptors {
    /// A daemon whose configuration says nothing (`supervisor/options.py`, `minfds`).
    fn default() -> Self {
        Descriptors {
            limit: 1024,
            processes: 0,
            open: 0,
        }
    }
}

impl Descriptors {
    /// How many connections the daemon may have at a time, when it has `taken` descriptors for us.
    ///
    /// It may have more open than its processes need: the log of a follower who has gone stays open
    /// until Python collects what refers to itself (`supervisor/http.py`, `tail_f_producer`).
    pub(super) fn ceiling(self, taken: usize) -> usize {
        let needed = self.processes.saturating_mul(OF_A_PROCESS);
        let others = self.open.saturating_sub(taken);
        self.limit
            .saturating_sub(needed.max(others))
            .saturating_sub(SPARE)
            .clamp(FEWEST, MOST)
    }
}

/// What is known of the daemon's descriptors.
#[derive(Debug)]
pub(super) struct Gauge {
    /// What its configuration file says.
    configured: Descriptors,
    reached: Reached,
    known: Mutex<Known>,
}

/// How the daemon is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reached {
    /// Over its socket, which tells whose it is.
    Socket,
    /// Over TCP on this machine.
    Loopback,
    /// Over TCP on another.
    Network,
}

#[derive(Debug, Default)]
struct Known {
    is_met: bool,
    pid: Option<i32>,
    read: Option<Instant>,
    asked: Option<Instant>,
}

/// What to do for a better idea of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Look {
    /// Go by this from now on.
    Found(Descriptors),
    /// The same, and ask the daemon for the number of its process.
    Ask(Descriptors),
    /// It was looked at just now, or cannot be looked at yet.
    Recent,
}

impl Gauge {
    /// Where nothing can be seen, the daemon has what its configuration file says.
    pub(super) fn new(configured: Descriptors, reached: Reached) -> Self {
        Gauge {
            configured,
            reached,
            known: Mutex::default(),
        }
    }

    /// Takes note of whose the socket is. A daemon that has gone into the background since is not
    /// that process any more.
    pub(super) fn meet(&self, peer: &UCred) {
        let mut known = self.known();
        known.is_met = true;
        if known.asked.is_none() {
            known.pid = peer.pid();
        }
    }

    /// Takes note of the number that the daemon told.
    pub(super) fn tell(&self, pid: Option<i32>) {
        let mut known = self.known();
        known.pid = pid;
        known.read = None;
    }

    /// Looks at the daemon's process.
    pub(super) fn look(&self) -> Look {
        let mut known = self.known();
        if known.read.is_some_and(|read| read.elapsed() < READ_AGAIN)
            || self.reached == Reached::Socket && !known.is_met
        {
            return Look::Recent;
        }
        known.read = Some(Instant::now());
        if let Some(seen) = known.pid.and_then(see) {
            return Look::Found(Descriptors {
                limit: seen.limit,
                // Those that are configured may be started at once.
                processes: seen.processes.max(self.configured.processes),
                open: seen.open,
            });
        }
        if self.reached == Reached::Network
            || known.asked.is_some_and(|asked| asked.elapsed() < ASK_AGAIN)
        {
            return Look::Found(self.configured);
        }
        known.asked = Some(Instant::now());
        Look::Ask(self.configured)
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What can be seen of a process, if it is a supervisord. The same number may be another process
/// where the daemon is in a container of its own.
fn see(pid: i32) -> Option<Descriptors> {
    let command = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    if !is_supervisord(&command) {
        return None;
    }
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).ok()?;
    // A kernel may be built without this file.
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    // Those of another account are not shown.
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

/// The soft limit of open files (proc_pid_limits(5)).
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
    fn connections_leave_the_daemon_its_descriptors() {
        for (limit, processes, open, taken, expected) in [
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
            // What its processes have is open too.
            (256, 10, 57, 0, 135),
            (256, 10, 157, 107, 142),
            // Logs of followers who have gone.
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
                descriptors.ceiling(taken),
                expected,
                "{descriptors:?}, {taken}"
            );
        }
    }

    #[test]
    fn a_supervisord_is_known_by_its_command() {
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
    fn the_soft_limit_counts() {
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
