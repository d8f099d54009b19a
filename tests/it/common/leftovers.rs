//! Temporary directories, and whatever still runs on their behalf.
//!
//! supervisord moves each of its children into a process group of its own, so neither its group
//! nor its number finds them once it was killed. They inherit its environment though, and there a
//! variable names the directory they belong to. It is read from `/proc`; where there is none, only
//! daemons that were stopped in order leave nothing behind.
//!
//! A test run that is killed drops nothing. A watcher process outlives it: its input is a pipe from
//! the test process, so the end of that, whatever its reason, is the end of the input.

use std::fs;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{ChildStdin, Command, Stdio};
use std::sync::{Mutex, OnceLock};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use tempfile::TempDir;

use super::process::{lock, send_signal};
use super::provision::{Version, scrub, venv};
use super::wait::eventually;

/// The variable that names the directory a process belongs to.
const MARKER: &str = "TEST_WORK_DIR";

const KILL_LIMIT: Duration = Duration::from_secs(10);

/// Reads directories, one a line, until the test process is gone; then ends what runs for them.
const WATCHER: &str = r#"
import os, shutil, signal, sys, time

def environment(pid):
    try:
        with open("/proc/%s/environ" % pid, "rb") as file:
            return file.read().split(b"\0")
    except OSError:
        return []

def left_over(directory):
    entries = os.listdir("/proc") if os.path.isdir("/proc") else []
    mark = os.fsencode("TEST_WORK_DIR=" + directory)
    return [int(pid) for pid in entries if pid.isdigit() and mark in environment(pid)]

for directory in [line.rstrip("\n") for line in sys.stdin]:
    for attempt in range(100):
        pids = left_over(directory) if os.path.isdir(directory) else []
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except OSError:
                pass
        if not pids:
            break
        time.sleep(0.05)
    shutil.rmtree(directory, ignore_errors=True)
"#;

/// A temporary directory with a short name, because the path of a unix socket is limited to about
/// a hundred bytes. On drop, what still runs for it is killed, and it is removed.
#[derive(Debug)]
pub struct WorkDir {
    dir: TempDir,
}

impl WorkDir {
    /// Makes one whose name begins with `prefix`.
    pub fn new(prefix: &str) -> Result<WorkDir> {
        let mut watcher = lock(watcher()?); // before there is anything to watch
        let short = Path::new("/tmp");
        let parent = if short.is_dir() {
            short.to_owned()
        } else {
            std::env::temp_dir()
        };
        let dir = tempfile::Builder::new().prefix(prefix).tempdir_in(&parent);
        let dir = dir.with_context(|| format!("making a directory in {}", parent.display()))?;
        writeln!(watcher, "{}", dir.path().display()).context("telling the watcher")?;
        Ok(WorkDir { dir })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Marks a process to be, and with it those that it starts, as belonging here.
    pub fn mark(&self, command: &mut Command) {
        command.env(MARKER, self.path());
    }

    /// Kills everything that belongs here, and waits until it is gone.
    pub fn end_all(&self) -> Result<()> {
        eventually(KILL_LIMIT, || {
            let pids = self.processes();
            if pids.is_empty() {
                return Ok(());
            }
            let _ = send_signal(&pids, "KILL"); // some may have ended meanwhile
            bail!("{pids:?} still run for {self:?}")
        })
    }

    /// The processes that belong here.
    pub fn processes(&self) -> Vec<i64> {
        let mark = [MARKER.as_bytes(), b"=", self.path().as_os_str().as_bytes()].concat();
        let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        pids.filter(|pid| {
            environment(*pid)
                .split(|byte| *byte == 0)
                .any(|entry| entry == mark)
        })
        .collect()
    }
}

impl Drop for WorkDir {
    fn drop(&mut self) {
        if let Err(error) = self.end_all() {
            eprintln!("{error:#}");
        }
    }
}

/// Empty for a process that is gone or not ours to look at.
fn environment(pid: i64) -> Vec<u8> {
    fs::read(format!("/proc/{pid}/environ")).unwrap_or_default()
}

/// The input of the watcher process, which is there from the first call to the end of this process.
fn watcher() -> Result<&'static Mutex<ChildStdin>> {
    static WATCHER_INPUT: OnceLock<Result<Mutex<ChildStdin>, String>> = OnceLock::new();
    let started =
        WATCHER_INPUT.get_or_init(|| start_watcher().map_err(|error| format!("{error:#}")));
    started
        .as_ref()
        .map_err(|text| anyhow!("starting the watcher: {text}"))
}

fn start_watcher() -> Result<Mutex<ChildStdin>> {
    let mut command = Command::new(venv(Version::default()).python());
    scrub(&mut command);
    command
        .args(["-I", "-c", WATCHER])
        .current_dir("/")
        .process_group(0);
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let mut watcher = command.spawn()?;
    Ok(Mutex::new(watcher.stdin.take().context("it has no input")?))
}
