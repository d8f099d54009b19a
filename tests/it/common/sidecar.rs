//! The built binary in front of a daemon.

use std::fmt::Display;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Output};
use std::sync::{Arc, Mutex};

use anyhow::{Result, bail, ensure};

use super::client::Client;
use super::daemon::Daemon;
use super::http::Addr;
use super::leftovers::WorkDir;
use super::process::{Process, give_children_default_signals, lock, run, stderr_text};
use super::provision::{optimized, scrub};
use super::wait::{LIMIT, eventually};

/// The log message for each address, when the proxy accepts connections on it.
const LISTENING: &str = "listening on ";

/// The binary that cargo has built for the tests.
const BINARY: &str = env!("CARGO_BIN_EXE_twiddler");

/// Runs the built binary to its end, with only `PATH` and `LANG` in its environment.
pub fn twiddler(arguments: &[&str]) -> Result<Output> {
    run(twiddler_command().args(arguments))
}

/// The command of [`twiddler`].
pub fn twiddler_command() -> Command {
    give_children_default_signals();
    let mut command = Command::new(BINARY);
    scrub(&mut command);
    command.env("RUST_BACKTRACE", "1");
    command
}

/// The command of a verb for this server.
pub fn verb_command(server: impl Display, words: &[&str]) -> Command {
    let mut command = twiddler_command();
    command
        .env("TWIDDLER_SERVER", server.to_string())
        .args(words);
    command
}

/// The options of a [`Sidecar`].
#[derive(Clone, Copy, Debug, Default)]
pub struct SidecarOptions<'a> {
    /// Arguments after `serve -c CONF --listen ... --listen ...`.
    pub arguments: &'a [&'a str],
    /// Environment variables beside `PATH`, `LANG` and `TWIDDLER_ALLOW_OPEN`. They override these.
    pub environment: &'a [(&'a str, &'a str)],
    /// The words of a command that runs the binary. The path of the binary and the arguments follow.
    pub launcher: &'a [&'a str],
    /// Whether it is an optimized build, with about the speed and memory of a release.
    pub optimized: bool,
    /// The number of addresses, for a test that sets them itself by an argument, a variable or the file. The
    /// fixture then adds none.
    pub own_listeners: Option<usize>,
}

/// `twiddler serve` as a process in front of a daemon, on a free port and a unix socket.
///
/// On drop it is killed, and its log is printed. The test harness shows that only for a failed test.
#[derive(Debug)]
pub struct Sidecar {
    launch: Launch,
    listeners: usize,
    credentials: Option<(String, String)>,
    life: Mutex<Life>,
    dir: WorkDir,
}

/// The command that starts it.
#[derive(Debug)]
struct Launch {
    launcher: Vec<String>,
    binary: PathBuf,
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
}

/// The process since the last start.
#[derive(Debug)]
struct Life {
    process: Arc<Process>,
    addrs: Vec<Addr>,
    /// The log of the earlier starts.
    earlier: String,
}

impl Sidecar {
    /// Starts a proxy in front of this daemon, and waits until it listens.
    pub fn start(daemon: &Daemon) -> Result<Sidecar> {
        Sidecar::start_with(daemon, &[])
    }

    /// Like [`Sidecar::start`], with further arguments.
    pub fn start_with(daemon: &Daemon, arguments: &[&str]) -> Result<Sidecar> {
        Sidecar::start_options(
            daemon,
            SidecarOptions {
                arguments,
                ..SidecarOptions::default()
            },
        )
    }

    /// Starts a proxy with these options, and waits until it listens.
    ///
    /// # Errors
    ///
    /// When it ends instead. The error has its log.
    pub fn start_options(daemon: &Daemon, options: SidecarOptions<'_>) -> Result<Sidecar> {
        let dir = WorkDir::new("tws-")?;
        let mut arguments: Vec<String> = ["serve", "-c", &daemon.conf().to_string_lossy()]
            .map(str::to_owned)
            .into();
        if options.own_listeners.is_none() {
            let socket = Addr::Unix(dir.path().join("t.sock")).to_string();
            arguments.extend(["--listen", "127.0.0.1:0", "--listen", &socket].map(str::to_owned));
        }
        arguments.extend(
            options
                .arguments
                .iter()
                .map(|argument| (*argument).to_owned()),
        );
        let owned = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
        // The daemon's socket is open to its own account only, and a port is open to all accounts.
        let environment = [&[("TWIDDLER_ALLOW_OPEN", "true")], options.environment].concat();
        let environment: Vec<(String, String)> = environment.iter().map(owned).collect();
        let listeners = options.own_listeners.unwrap_or(2);
        let launcher: Vec<String> = options
            .launcher
            .iter()
            .map(|word| (*word).to_owned())
            .collect();
        let launch = Launch {
            launcher,
            binary: if options.optimized {
                optimized()?.to_owned()
            } else {
                BINARY.into()
            },
            arguments,
            environment,
        };
        let life = begin(&dir, &launch, listeners)?;
        let credentials = daemon.credentials().cloned();
        Ok(Sidecar {
            launch,
            listeners,
            credentials,
            life: Mutex::new(life),
            dir,
        })
    }

    /// Its port. Another one after [`Sidecar::start_again`].
    ///
    /// # Panics
    ///
    /// When it listens on none.
    pub fn tcp_addr(&self) -> SocketAddr {
        let addr = self.addrs().into_iter().find_map(|addr| match addr {
            Addr::Tcp(addr) => Some(addr),
            Addr::Unix(_) => None,
        });
        addr.expect("a sidecar that listens on a port")
    }

    /// Its unix socket.
    ///
    /// # Panics
    ///
    /// When it listens on none.
    pub fn socket(&self) -> PathBuf {
        let path = self.addrs().into_iter().find_map(|addr| match addr {
            Addr::Unix(path) => Some(path),
            Addr::Tcp(_) => None,
        });
        path.expect("a sidecar that listens on a unix socket")
    }

    /// All its addresses, in the order of its log.
    pub fn addrs(&self) -> Vec<Addr> {
        lock(&self.life).addrs.clone()
    }

    /// Its directory, which contains its socket.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// A client of its port, with the credentials of the daemon.
    pub fn client(&self) -> Client {
        Client::new(self.tcp_addr()).with_credentials_of(self.credentials.as_ref())
    }

    /// A client of its unix socket, with the credentials of the daemon.
    pub fn socket_client(&self) -> Client {
        Client::new(self.socket()).with_credentials_of(self.credentials.as_ref())
    }

    /// Its pid.
    pub fn pid(&self) -> u32 {
        self.process().pid()
    }

    /// Whether it runs.
    pub fn is_alive(&self) -> bool {
        self.process().is_alive()
    }

    /// Sends it a signal (`INT`, `STOP`, ...).
    pub fn signal(&self, signal: &str) -> Result<()> {
        self.process().signal(signal)
    }

    /// Stops it by SIGTERM, and waits for its end.
    pub fn stop(&self) -> Result<ExitStatus> {
        self.signal("TERM")?;
        self.wait()
    }

    /// Kills it by SIGKILL.
    pub fn kill(&self) -> Result<ExitStatus> {
        self.process().kill()
    }

    /// Waits for its end.
    pub fn wait(&self) -> Result<ExitStatus> {
        self.process().wait()
    }

    /// Starts it with the same arguments after [`Sidecar::stop`] or [`Sidecar::kill`]. The unix socket is the
    /// same, the port is another one: get a new [`Sidecar::client`].
    pub fn start_again(&self) -> Result<()> {
        ensure!(!self.is_alive(), "it still runs");
        let life = begin(&self.dir, &self.launch, self.listeners)?;
        let mut current = lock(&self.life);
        let earlier = format!("{}{}", current.earlier, current.process.stderr_text());
        *current = Life { earlier, ..life };
        Ok(())
    }

    /// Its log so far, of all its starts.
    pub fn stderr_text(&self) -> String {
        let (earlier, process) = {
            let life = lock(&self.life);
            (life.earlier.clone(), Arc::clone(&life.process))
        };
        earlier + &process.stderr_text()
    }

    /// Waits until its log contains this text, and returns the log.
    pub fn wait_for_stderr(&self, expected: &str) -> Result<String> {
        eventually(LIMIT, || {
            let log = self.stderr_text();
            ensure!(
                log.contains(expected),
                "the sidecar has not logged {expected:?}:\n{log}"
            );
            Ok(log)
        })
    }

    fn process(&self) -> Arc<Process> {
        Arc::clone(&lock(&self.life).process)
    }
}

impl Drop for Sidecar {
    fn drop(&mut self) {
        if super::shows_logs() {
            eprintln!("--- sidecar\n{}---", self.stderr_text());
        }
    }
}

fn begin(dir: &WorkDir, launch: &Launch, listeners: usize) -> Result<Life> {
    let mut command = match launch.launcher.split_first() {
        None => Command::new(&launch.binary),
        Some((program, words)) => {
            let mut command = Command::new(program);
            command.args(words).arg(&launch.binary);
            command
        }
    };
    scrub(&mut command);
    command
        .env("RUST_BACKTRACE", "1")
        .args(&launch.arguments)
        .envs(launch.environment.iter().cloned())
        .current_dir(dir.path());
    dir.mark(&mut command);
    let process = Arc::new(Process::spawn(&mut command)?);
    let addrs = wait_for_addrs(&process, listeners)?;
    Ok(Life {
        process,
        addrs,
        earlier: String::new(),
    })
}

fn wait_for_addrs(process: &Process, count: usize) -> Result<Vec<Addr>> {
    let answer = eventually(LIMIT, || {
        let ended = process.exit_status();
        let addrs = addrs_in(&process.stderr_text());
        match ended {
            Some(status) => Ok(Err(status)),
            None if addrs.len() >= count => Ok(Ok(addrs)),
            None => bail!(
                "the sidecar listens on {} of {count} addresses",
                addrs.len()
            ),
        }
    });
    match answer {
        Ok(Ok(addrs)) => Ok(addrs),
        Ok(Err(status)) => bail!("the sidecar ended ({status})\n{}", process.stderr_text()),
        Err(error) => Err(error.context(process.stderr_text())),
    }
}

/// The addresses in complete lines of its log, in both formats.
fn addrs_in(log: &str) -> Vec<Addr> {
    let whole = log.rfind('\n').map_or("", |end| &log[..end]);
    let urls = whole
        .lines()
        .filter_map(|line| line.split_once(LISTENING))
        .map(|(_, rest)| {
            let end =
                rest.find(|letter: char| letter.is_whitespace() || "\",\u{1b}".contains(letter));
            &rest[..end.unwrap_or(rest.len())]
        });
    urls.filter_map(parse_addr).collect()
}

fn parse_addr(url: &str) -> Option<Addr> {
    if let Some(path) = url.strip_prefix("unix://") {
        return Some(Addr::Unix(path.into()));
    }
    url.strip_prefix("http://")
        .or_else(|| url.strip_prefix("https://"))?
        .trim_end_matches('/')
        .parse()
        .ok()
        .map(Addr::Tcp)
}

/// The errors of `serve` about a configuration that it refuses.
pub fn refused(daemon: &Daemon, arguments: &[&str]) -> Result<String> {
    let conf = daemon.conf();
    let all = [
        &["serve", "-c", conf.to_str().unwrap_or_default()],
        arguments,
    ]
    .concat();
    let output = twiddler(&all)?;
    ensure!(
        output.status.code() == Some(2),
        "{:?}: {}",
        output.status,
        stderr_text(&output)
    );
    Ok(stderr_text(&output))
}
