//! Temporary directories, and the processes that belong to them.
//!
//! supervisord moves each of its children into a new process group, so the group does not lead to them
//! after supervisord was killed. But they inherit its environment, in which a variable names their
//! directory. `/proc` has the environment; without `/proc`, killed daemons leave processes behind.
//!
//! A killed test run drops no values. A watcher process outlives it and cleans up: its standard input is a
//! pipe from the test process, which ends with that process.

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

/// The variable with the directory that a process belongs to.
const MARKER: &str = "TEST_WORK_DIR";

const KILL_LIMIT: Duration = Duration::from_secs(10);

/// Reads directories, one a line, until the test process has ended. Then it kills the processes that belong
/// to them, and removes them.
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

/// A temporary directory with a short path, because the path of a unix socket is limited to 107 bytes. On
/// drop, the processes that belong to it are killed, and it is removed.
#[derive(Debug)]
pub struct WorkDir {
    dir: TempDir,
}

impl WorkDir {
    /// Creates a directory whose name begins with `prefix`.
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

    /// Its path.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Marks a command: its process and the children of that belong to this directory.
    pub fn mark(&self, command: &mut Command) {
        command.env(MARKER, self.path());
    }

    /// Kills the processes that belong to this directory, and waits until they have ended.
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

    /// The processes that belong to this directory.
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

/// The environment of a process; empty if it has ended or belongs to another account.
fn environment(pid: i64) -> Vec<u8> {
    fs::read(format!("/proc/{pid}/environ")).unwrap_or_default()
}

/// The standard input of the watcher process, which the first call starts.
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
