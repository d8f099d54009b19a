//! Child processes: commands with a time limit, and processes whose output is collected.
//!
//! Every child gets its own process group. So it can be killed with its children, and Ctrl-C on the terminal
//! reaches only the test run. `leftovers` has the processes that leave the group.

use std::fmt::Display;
use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, Command, ExitStatus, Output, Stdio};
use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard, Once, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::runtime::Builder;
use tokio::signal::unix::{self, SignalKind};

use super::wait::{LIMIT, eventually};

/// How long output may arrive after a process has ended. It matters only if a grandchild keeps the pipe
/// open.
const LAST_OUTPUT: Duration = Duration::from_secs(2);

/// Runs a command to its end, with an empty standard input.
///
/// Any exit status is accepted. It is an error if the command cannot start or does not end in time.
pub fn run(command: &mut Command) -> Result<Output> {
    run_within(LIMIT, command, b"")
}

/// Like [`run`], with these bytes on its standard input.
pub fn run_with_input(command: &mut Command, input: &[u8]) -> Result<Output> {
    run_within(LIMIT, command, input)
}

/// Like [`run_with_input`], with this time limit.
pub fn run_within(limit: Duration, command: &mut Command, input: &[u8]) -> Result<Output> {
    let process = Process::spawn(command)?;
    process.feed_in_background(input.to_vec());
    match process.wait_within(limit) {
        Ok(status) => Ok(Output {
            status,
            stdout: process.stdout(),
            stderr: process.stderr(),
        }),
        Err(error) => Err(error.context(process.both_texts())),
    }
}

/// Fails with the output of the command unless its exit status is 0.
pub fn succeeded(output: Output) -> Result<Output> {
    let (stdout, stderr) = (stdout_text(&output), stderr_text(&output));
    ensure!(
        output.status.success(),
        "{}\n{stdout}\n{stderr}",
        output.status
    );
    Ok(output)
}

/// The standard output of a command.
pub fn stdout_text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The standard error of a command.
pub fn stderr_text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The words of a command, without its environment.
pub fn command_line(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words
        .map(|word| word.to_string_lossy())
        .collect::<Vec<_>>()
        .join(" ")
}

/// Sends a signal (`TERM`, `HUP`, ...) to processes, or to groups by negative numbers. Fails if one of them
/// has ended; the others get the signal all the same.
pub fn send_signal(pids: &[i64], name: &str) -> Result<()> {
    let signal = Signal::from_str(&format!("SIG{name}"))?;
    let send = |pid: &i64| -> Result<()> {
        kill(Pid::from_raw(i32::try_from(*pid)?), signal).with_context(|| pid.to_string())
    };
    let errors: Vec<_> = pids.iter().filter_map(|pid| send(pid).err()).collect();
    ensure!(errors.is_empty(), "kill -s {name} {pids:?}: {errors:?}");
    Ok(())
}

/// The numbers of the signals in a set of a process, such as `SigCgt` (proc_pid_status(5)).
pub fn signals_of(pid: impl Display, set: &str) -> Result<Vec<i32>> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let mask = status
        .lines()
        .find_map(|line| line.strip_prefix(set)?.strip_prefix(':'))
        .with_context(|| format!("no {set}"))?;
    let mask = u64::from_str_radix(mask.trim(), 16)?;
    let signals = 1..=64;
    Ok(signals
        .filter(|signal| mask >> (signal - 1) & 1 == 1)
        .collect())
}

/// Children would inherit a signal that the test run ignores (`nohup`, `&` in a script). A signal that the
/// test run catches has its default action in a child.
pub fn give_children_default_signals() {
    static DONE: Once = Once::new();
    DONE.call_once(|| {
        let ignored = signals_of("self", "SigIgn").unwrap_or_default();
        let runtime = Builder::new_current_thread().enable_io().build();
        let Ok(runtime) = runtime else { return };
        let _context = runtime.enter();
        for kind in [SignalKind::hangup(), SignalKind::interrupt()] {
            if ignored.contains(&kind.as_raw_value()) {
                let _stays_caught = unix::signal(kind);
            }
        }
    });
}

/// A child process whose output is collected. It is killed on drop.
#[derive(Debug)]
pub struct Process {
    name: String,
    pid: u32,
    child: Mutex<Child>,
    stdin: Arc<Mutex<Option<ChildStdin>>>,
    stdout: Collected,
    stderr: Collected,
}

impl Process {
    /// Starts the command, with pipes for input and output.
    pub fn spawn(command: &mut Command) -> Result<Process> {
        let name = command_line(command);
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0);
        let mut child = command
            .spawn()
            .with_context(|| format!("starting {name}"))?;
        Ok(Process {
            name,
            pid: child.id(),
            stdin: Arc::new(Mutex::new(child.stdin.take())),
            stdout: Collected::from(child.stdout.take()),
            stderr: Collected::from(child.stderr.take()),
            child: Mutex::new(child),
        })
    }

    /// Its pid.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Whether it runs.
    pub fn is_alive(&self) -> bool {
        self.exit_status().is_none()
    }

    /// Its exit status, if it has ended.
    pub fn exit_status(&self) -> Option<ExitStatus> {
        lock(&self.child).try_wait().ok().flatten()
    }

    /// Sends a signal (`TERM`, `HUP`, ...). Fails if the process has ended.
    pub fn signal(&self, signal: &str) -> Result<()> {
        // While the lock is held, nobody reaps the process, so its pid cannot belong to another one.
        let mut child = lock(&self.child);
        if let Some(status) = child.try_wait()? {
            bail!("{} has ended: {status}", self.name);
        }
        send_signal(&[i64::from(self.pid)], signal)
    }

    /// Waits for its end.
    pub fn wait(&self) -> Result<ExitStatus> {
        self.wait_within(LIMIT)
    }

    /// Waits for its end, for `limit` at most.
    pub fn wait_within(&self, limit: Duration) -> Result<ExitStatus> {
        eventually(limit, || {
            self.exit_status()
                .with_context(|| format!("{} still runs", self.name))
        })
    }

    /// Kills it by SIGKILL, and returns its exit status. It may have ended before.
    pub fn kill(&self) -> Result<ExitStatus> {
        let mut child = lock(&self.child);
        child
            .kill()
            .with_context(|| format!("killing {}", self.name))?;
        Ok(child.wait()?)
    }

    /// Writes to its standard input.
    pub fn write(&self, bytes: &[u8]) -> Result<()> {
        write_and_flush(&self.stdin, bytes).with_context(|| format!("writing to {}", self.name))
    }

    /// Closes its standard input.
    pub fn close_stdin(&self) {
        lock(&self.stdin).take();
    }

    /// Its standard output so far; the whole after it has ended.
    pub fn stdout(&self) -> Vec<u8> {
        self.stdout.so_far(!self.is_alive())
    }

    /// Its standard error so far; the whole after it has ended.
    pub fn stderr(&self) -> Vec<u8> {
        self.stderr.so_far(!self.is_alive())
    }

    /// [`Process::stdout`] as text.
    pub fn stdout_text(&self) -> String {
        String::from_utf8_lossy(&self.stdout()).into_owned()
    }

    /// [`Process::stderr`] as text.
    pub fn stderr_text(&self) -> String {
        String::from_utf8_lossy(&self.stderr()).into_owned()
    }

    /// Waits until its standard output contains this text, and returns the output so far.
    pub fn wait_for_stdout(&self, expected: &str) -> Result<String> {
        self.wait_for(expected, || self.stdout_text())
    }

    /// Waits until its standard error contains this text, and returns the output so far.
    pub fn wait_for_stderr(&self, expected: &str) -> Result<String> {
        self.wait_for(expected, || self.stderr_text())
    }

    fn wait_for(&self, expected: &str, text: impl Fn() -> String) -> Result<String> {
        let answer = eventually(LIMIT, || {
            let ended = self.exit_status();
            let text = text();
            match ended {
                _ if text.contains(expected) => Ok(Ok(text)),
                Some(status) => Ok(Err(status)),
                None => bail!("{} has not printed {expected:?}", self.name),
            }
        });
        match answer {
            Ok(Ok(text)) => Ok(text),
            Ok(Err(status)) => bail!(
                "{} ended ({status}) and had not printed {expected:?}\n{}",
                self.name,
                self.both_texts()
            ),
            Err(error) => Err(error.context(self.both_texts())),
        }
    }

    fn both_texts(&self) -> String {
        format!(
            "it printed:\n{}\n{}",
            self.stdout_text(),
            self.stderr_text()
        )
    }

    /// Writes all bytes and closes the input on another thread, while the caller waits for the end.
    fn feed_in_background(&self, input: Vec<u8>) {
        let stdin = Arc::clone(&self.stdin);
        thread::spawn(move || {
            let _ = write_and_flush(&stdin, &input); // a command may end without reading it all
            lock(&stdin).take();
        });
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let mut child = lock(&self.child);
        if matches!(child.try_wait(), Ok(None)) {
            let _ = send_signal(&[-i64::from(self.pid)], "KILL"); // with what it started
            let _ = child.kill();
        }
        let _ = child.wait();
    }
}

/// One output of a process, which a thread reads to its end.
#[derive(Debug)]
struct Collected {
    bytes: Arc<Mutex<Vec<u8>>>,
    reader: Option<JoinHandle<()>>,
}

impl Collected {
    fn from(source: Option<impl Read + Send + 'static>) -> Collected {
        let bytes = Arc::new(Mutex::new(Vec::new()));
        let reader = source.map(|source| {
            let bytes = Arc::clone(&bytes);
            thread::spawn(move || collect(source, &bytes))
        });
        Collected { bytes, reader }
    }

    fn so_far(&self, ended: bool) -> Vec<u8> {
        if ended {
            let _ = eventually(LAST_OUTPUT, || self.is_complete());
        }
        lock(&self.bytes).clone()
    }

    fn is_complete(&self) -> Result<()> {
        let reading = self
            .reader
            .as_ref()
            .is_some_and(|reader| !reader.is_finished());
        ensure!(!reading, "still open");
        Ok(())
    }
}

fn collect(mut source: impl Read, bytes: &Mutex<Vec<u8>>) {
    let mut buffer = [0; 8192];
    loop {
        match source.read(&mut buffer) {
            Ok(0) => return,
            Ok(length) => lock(bytes).extend_from_slice(&buffer[..length]),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}

fn write_and_flush(stdin: &Mutex<Option<ChildStdin>>, bytes: &[u8]) -> Result<()> {
    let mut stdin = lock(stdin);
    let pipe = stdin.as_mut().context("its input is closed")?;
    pipe.write_all(bytes)?;
    Ok(pipe.flush()?)
}

/// Takes a lock, also a poisoned one: a test that panicked must still clean up.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
