//! The clean-up process, which removes the proxy's files if the proxy is killed.
//!
//! It is the same program, and waits for the end of its standard input, which comes when the proxy has
//! ended for any reason. Then it takes the lock and removes the files. The proxy starts it before the first
//! file, and it exits after a while without a write. It has its own process group, so Ctrl-C does not reach
//! it. It blocks the signals with which a service manager ends the remaining processes of a service: it
//! ends by itself at once. If both processes are killed at the same time, a link that leads nowhere
//! remains.

use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::prctl;
use nix::sys::signal::SigSet;

use super::{IncludeDir, lock};

/// The sub-command of the clean-up process. Not for users.
pub const COMMAND: &str = "clean-up-after-proxy";
/// The clean-up process exits if it has received nothing for this long.
const IDLE_MILLISECONDS: u16 = 10_000;
/// The proxy relies on the process if it wrote to it within this time.
const TRUSTED_TIME: Duration = Duration::from_secs(5);
/// The minimum time between two writes to the process.
const WRITE_INTERVAL: Duration = Duration::from_secs(1);

/// Starts the clean-up process when it is needed.
#[derive(Debug)]
pub(super) struct Watcher {
    dir: PathBuf,
    /// The names of the generated file and of the persist file.
    names: [String; 2],
    running: Mutex<Option<Running>>,
}

#[derive(Debug)]
struct Running {
    input: ChildStdin,
    written_at: Instant,
}

impl Watcher {
    /// Creates a watcher for the files in `dir`. `names` are those of the generated file and of the persist
    /// file.
    pub(super) fn new(dir: PathBuf, names: [String; 2]) -> Self {
        Watcher {
            dir,
            names,
            running: Mutex::default(),
        }
    }

    /// Makes sure that the process runs before a file is written. If it cannot be started, the proxy
    /// continues: only the clean-up after a kill is missing.
    pub(super) fn ensure(&self) {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if running.as_mut().is_some_and(Running::keep_alive) {
            return;
        }
        *running = match self.start() {
            Ok(process) => Some(process),
            Err(error) => {
                tracing::debug!(%error, "no clean-up process: files of this proxy stay if it is killed");
                None
            }
        };
    }

    fn start(&self) -> io::Result<Running> {
        // The executable of this process, even if another version has replaced it on disk.
        let mut child = Command::new("/proc/self/exe")
            .arg0("twiddler")
            .arg(COMMAND)
            .arg(&self.dir)
            .args(&self.names)
            .env_clear()
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()?;
        let input = child.stdin.take().ok_or(io::ErrorKind::BrokenPipe)?;
        reap(child)?;
        Ok(Running {
            input,
            written_at: Instant::now(),
        })
    }
}

impl Running {
    /// Writes to the process, unless it did so a moment ago. Returns false if the process may have exited.
    fn keep_alive(&mut self) -> bool {
        let since = self.written_at.elapsed();
        if since >= WRITE_INTERVAL {
            if since >= TRUSTED_TIME || self.input.write_all(b".").is_err() {
                return false;
            }
            self.written_at = Instant::now();
        }
        true
    }
}

/// Waits for the end of the process in a thread, so that no zombie remains.
fn reap(mut child: Child) -> io::Result<()> {
    std::thread::Builder::new()
        .name("reaper".to_owned())
        .spawn(move || child.wait())
        .map(drop)
}

/// The main function of the clean-up process: waits until the proxy has ended, and removes the generated
/// file in `dir`, and puts a withheld persist file back.
pub fn clean_up_after_proxy(dir: &Path, file_name: String, persist_name: String) {
    // The process ends by itself. A signal to all processes of a service must not end it earlier.
    let _ = SigSet::all().thread_block();
    let _ = prctl::set_name(c"twiddler-clean");
    if !has_ended() {
        return;
    }
    // Not if a new proxy holds the lock: it has removed the files itself.
    if let Some(_lock) = lock::take_abandoned(dir)
        && let Ok(include) = IncludeDir::open(dir.to_owned(), file_name)
    {
        let _ = include.with_persist_file(persist_name).sweep(); // the next proxy tries again, and reports what it cannot remove
    }
}

/// Waits for the end of the standard input. Returns false if nothing arrived for a while.
fn has_ended() -> bool {
    let mut input = io::stdin();
    loop {
        let mut descriptors = [PollFd::new(input.as_fd(), PollFlags::POLLIN)];
        match poll(&mut descriptors, PollTimeout::from(IDLE_MILLISECONDS)) {
            Ok(0) => return false,
            Ok(_) => match input.read(&mut [0; 64]) {
                Ok(0) | Err(_) => return true,
                Ok(_) => {}
            },
            Err(Errno::EINTR) => {}
            Err(_) => return true,
        }
    }
}
