//! A process that takes the proxy's files away when the proxy is killed.
//!
//! It is this program again, and waits for the end of its standard input, which comes when the proxy
//! has ended, however that was. Then nobody holds the lock, so it takes that and sweeps. It is started
//! with the first file and goes when nothing was written for a while. A process group of its own keeps
//! Ctrl-C away from it, and it blocks the signals by which a service manager ends what is left of a
//! service: it ends by itself at once. Where both are killed in one stroke, what is left is a link that
//! leads nowhere.

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

/// The sub-command of this program that it runs as. Not for people.
pub const COMMAND: &str = "clean-up-after-proxy";
/// It goes when it has heard nothing for so long.
const IDLE_MILLISECONDS: u16 = 10_000;
/// It is counted on when it was told something so short a time ago.
const TRUSTED: Duration = Duration::from_secs(5);
/// It is told no more often than this.
const TELL_AGAIN: Duration = Duration::from_secs(1);

/// Starts the process when it is needed.
#[derive(Debug)]
pub(super) struct Watcher {
    dir: PathBuf,
    /// What the generated file is called, and what is kept.
    names: [String; 2],
    running: Mutex<Option<Running>>,
}

#[derive(Debug)]
struct Running {
    input: ChildStdin,
    told: Instant,
}

impl Watcher {
    /// Watches over the files of `dir`: the generated one and what is kept have these `names`.
    pub(super) fn new(dir: PathBuf, names: [String; 2]) -> Self {
        Watcher {
            dir,
            names,
            running: Mutex::default(),
        }
    }

    /// Makes sure that it is there before a file is written. Without it, which costs nothing but
    /// tidiness, the proxy goes on.
    pub(super) fn ensure(&self) {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if running.as_mut().is_some_and(Running::is_told) {
            return;
        }
        *running = match self.start() {
            Ok(started) => Some(started),
            Err(error) => {
                tracing::debug!(%error, "nobody cleans up if this process is killed");
                None
            }
        };
    }

    fn start(&self) -> io::Result<Running> {
        // This very program, also when another version has taken its place on disk.
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
            told: Instant::now(),
        })
    }
}

impl Running {
    /// Tells it that it is needed, unless it was told a moment ago. False when it may be gone.
    fn is_told(&mut self) -> bool {
        let since = self.told.elapsed();
        if since >= TELL_AGAIN {
            if since >= TRUSTED || self.input.write_all(b".").is_err() {
                return false;
            }
            self.told = Instant::now();
        }
        true
    }
}

/// Takes note of its end, so that nothing is left of it.
fn reap(mut child: Child) -> io::Result<()> {
    std::thread::Builder::new()
        .name("reaper".to_owned())
        .spawn(move || child.wait())
        .map(drop)
}

/// What the process does: waits until the proxy that started it has ended, and takes away what that
/// has left in `dir`: the generated file, and what is kept where it was withheld.
pub fn clean_up_after_proxy(dir: &Path, file_name: String, persist_name: String) {
    // It ends by itself, and a signal to all processes of a service must not end it before.
    let _ = SigSet::all().thread_block();
    let _ = prctl::set_name(c"twiddler-clean");
    if !has_ended() {
        return;
    }
    // Not while a new proxy is there, which has swept itself.
    if let Some(_lock) = lock::take_left(dir)
        && let Ok(include) = IncludeDir::open(dir.to_owned(), file_name)
    {
        let _ = include.with_persist_file(persist_name).sweep(); // the next proxy tries again, and says what it cannot do
    }
}

/// Waits for the end of the standard input. False when nothing came for a while.
fn has_ended() -> bool {
    let mut input = io::stdin();
    loop {
        let mut waited = [PollFd::new(input.as_fd(), PollFlags::POLLIN)];
        match poll(&mut waited, PollTimeout::from(IDLE_MILLISECONDS)) {
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
