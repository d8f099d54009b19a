//! A supervisord for one test.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::ops::Deref;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Output};
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result, bail, ensure};
use supervisor_twiddler::xmlrpc::{Fault, Value};

use super::client::{CallError, Client};
use super::ctl::supervisorctl_as;
use super::http::{Addr, Connection, Until};
use super::leftovers::WorkDir;
use super::process::{Process, lock};
use super::provision::{Version, venv};
use super::values::{IntoParams, member, text};
use super::wait::{LIMIT, eventually};

/// How many ports are tried. Another process may take a port between the search and the start.
const PORT_ATTEMPTS: usize = 20;

/// How much of the log a failed test prints.
const SHOWN_LINES: usize = 80;

/// What supervisord prints when its port is taken (supervisor/options.py, `openhttpservers`).
const PORT_TAKEN: &str = "Another program is already listening";

/// The options of a [`Daemon`].
#[derive(Clone, Copy, Debug)]
pub struct DaemonOptions<'a> {
    /// The release of supervisor.
    pub version: Version,
    /// Whether it has a `[unix_http_server]`. The default is true.
    pub socket: bool,
    /// Whether it has an `[inet_http_server]`, on a free port of 127.0.0.1.
    pub tcp: bool,
    /// The user name and the password of all its servers.
    pub credentials: Option<(&'a str, &'a str)>,
    /// The `files` of `[include]`; empty for a configuration without that section.
    /// The directory of the first pattern is created, and is [`Daemon::include_dir`].
    pub include: &'a str,
    /// Lines for `[supervisord]`. They override the fixture's own.
    pub extra_supervisord: &'a str,
    /// Sections.
    pub body: &'a str,
    /// The path and the text of files beside `supervisord.conf`, written before the start.
    pub files: &'a [(&'a str, &'a str)],
    /// Environment variables of the daemon, beside `PATH` and `LANG`.
    pub environment: &'a [(&'a str, &'a str)],
}

impl Default for DaemonOptions<'_> {
    fn default() -> Self {
        DaemonOptions {
            version: Version::default(),
            socket: true,
            tcp: false,
            credentials: None,
            include: "conf.d/*.conf",
            extra_supervisord: "",
            body: "",
            files: &[],
            environment: &[],
        }
    }
}

/// A running supervisord with its own directory, configuration and sockets.
///
/// On drop it is killed, with its processes, and the end of its log is printed. The test harness shows that
/// only for a failed test.
#[derive(Debug)]
pub struct Daemon {
    version: Version,
    tcp: Option<SocketAddr>,
    socket: Option<PathBuf>,
    credentials: Option<(String, String)>,
    include_dir: PathBuf,
    environment: Vec<(String, String)>,
    /// The process since the last start.
    process: Mutex<Arc<Process>>,
    dir: WorkDir,
}

impl Daemon {
    /// Starts the newest release with these sections, on a unix socket, and waits until it answers.
    pub fn start(body: &str) -> Result<Daemon> {
        Daemon::start_with(DaemonOptions {
            body,
            ..DaemonOptions::default()
        })
    }

    /// Starts a daemon with these options, and waits until it answers.
    ///
    /// # Errors
    ///
    /// When it ends instead. The error has its output.
    pub fn start_with(options: DaemonOptions<'_>) -> Result<Daemon> {
        ensure!(
            options.socket || options.tcp,
            "a daemon needs a socket or a port"
        );
        let dir = WorkDir::new("twd-")?;
        fs::create_dir_all(include_dir(dir.path(), options.include))?;
        for (path, text) in options.files {
            write_file(&dir.path().join(path), text)?;
        }
        for _ in 0..PORT_ATTEMPTS {
            let tcp = options.tcp.then(free_port).transpose()?;
            write_file(&conf_in(dir.path()), &conf_text(dir.path(), tcp, &options))?;
            let process = Arc::new(spawn(options.version, &dir, options.environment)?);
            match first_answer(&process, &probe(&dir, tcp, &options))? {
                Start::Answers => return Ok(Daemon::new(options, dir, tcp, process)),
                Start::PortTaken => {}
            }
        }
        bail!("no free port in {PORT_ATTEMPTS} attempts")
    }

    fn new(
        options: DaemonOptions<'_>,
        dir: WorkDir,
        tcp: Option<SocketAddr>,
        process: Arc<Process>,
    ) -> Daemon {
        let owned = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
        Daemon {
            version: options.version,
            tcp,
            socket: options.socket.then(|| socket_in(dir.path())),
            credentials: options.credentials.as_ref().map(owned),
            include_dir: include_dir(dir.path(), options.include),
            environment: options.environment.iter().map(owned).collect(),
            process: Mutex::new(process),
            dir,
        }
    }

    /// Its `supervisord.conf`.
    pub fn conf(&self) -> PathBuf {
        conf_in(self.dir())
    }

    /// Its directory, which has all its files.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The directory of its first include pattern.
    pub fn include_dir(&self) -> &Path {
        &self.include_dir
    }

    /// The sorted names in its include directory, with the ones that begin with a dot.
    pub fn include_files(&self) -> Result<Vec<String>> {
        let entries = fs::read_dir(&self.include_dir)?;
        let mut names = entries
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
            .collect::<Result<Vec<String>>>()?;
        names.sort();
        Ok(names)
    }

    /// Writes a file of the user, at a path relative to its directory (`conf.d/web.conf`).
    pub fn write(&self, path: impl AsRef<Path>, text: &str) -> Result<()> {
        write_file(&self.dir().join(path), text)
    }

    /// Reads a file at a path relative to its directory.
    pub fn read(&self, path: impl AsRef<Path>) -> Result<String> {
        let path = self.dir().join(path);
        fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))
    }

    /// Its unix socket.
    ///
    /// # Panics
    ///
    /// When it has none.
    pub fn socket(&self) -> &Path {
        self.socket
            .as_deref()
            .expect("a daemon started with a unix socket")
    }

    /// Its port.
    ///
    /// # Panics
    ///
    /// When it was started without `tcp`.
    pub fn tcp_addr(&self) -> SocketAddr {
        self.tcp.expect("a daemon started with `tcp`")
    }

    /// Its unix socket, or its port if it has no socket.
    pub fn addr(&self) -> Addr {
        match (&self.socket, self.tcp) {
            (Some(path), _) => Addr::Unix(path.clone()),
            (None, Some(addr)) => Addr::Tcp(addr),
            (None, None) => unreachable!("checked at the start"),
        }
    }

    /// Its user name and password, if it has any.
    pub fn credentials(&self) -> Option<&(String, String)> {
        self.credentials.as_ref()
    }

    /// Its environment variables, beside `PATH` and `LANG`.
    pub fn environment(&self) -> impl Iterator<Item = (&str, &str)> {
        let variables = self.environment.iter();
        variables.map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// Its release.
    pub fn version(&self) -> Version {
        self.version
    }

    /// A client of the daemon, at [`Daemon::addr`], with its credentials.
    pub fn client(&self) -> Client {
        self.client_at(self.addr())
    }

    /// A client of its port, with its credentials.
    pub fn tcp_client(&self) -> Client {
        self.client_at(self.tcp_addr())
    }

    /// A client of another address, with its credentials.
    pub fn client_at(&self, addr: impl Into<Addr>) -> Client {
        Client::new(addr).with_credentials_of(self.credentials())
    }

    /// Calls a method of the daemon directly.
    pub fn call(&self, method: &str, params: impl IntoParams) -> Result<Value, CallError> {
        self.client().call(method, params)
    }

    /// Calls a method of the daemon that must answer with a fault, and returns the fault.
    pub fn expect_fault(&self, method: &str, params: impl IntoParams) -> Result<Fault> {
        self.client().expect_fault(method, params)
    }

    /// Runs supervisorctl against the daemon.
    pub fn supervisorctl(&self, arguments: &[&str]) -> Result<Output> {
        self.supervisorctl_at(arguments, self.addr())
    }

    /// Runs supervisorctl against another address, with the daemon's credentials.
    pub fn supervisorctl_at(&self, arguments: &[&str], addr: impl Into<Addr>) -> Result<Output> {
        let credentials = self
            .credentials()
            .map(|(user, password)| (user.as_str(), password.as_str()));
        supervisorctl_as(credentials, arguments, addr.into())
    }

    /// The state of a process (`RUNNING`, ...).
    pub fn state(&self, namespec: &str) -> Result<String> {
        let info = self.call("supervisor.getProcessInfo", (namespec,))?;
        Ok(text(member(&info, "statename")?)?.to_owned())
    }

    /// Waits until a process is in this state.
    pub fn wait_for_state(&self, namespec: &str, state: &str) -> Result<()> {
        eventually(LIMIT, || {
            let current = self.state(namespec)?;
            ensure!(current == state, "{namespec} is {current}, not {state}");
            Ok(())
        })
    }

    /// Its main log so far, of all its starts.
    pub fn log(&self) -> String {
        let log = fs::read(self.dir().join("supervisord.log")).unwrap_or_default();
        String::from_utf8_lossy(&log).into_owned()
    }

    /// Waits until its main log contains this text, and returns the log.
    pub fn wait_for_log(&self, expected: &str) -> Result<String> {
        eventually(LIMIT, || {
            let log = self.log();
            ensure!(
                log.contains(expected),
                "{expected:?} is not in the log of supervisord"
            );
            Ok(log)
        })
    }

    /// Its pid.
    pub fn pid(&self) -> u32 {
        self.process().pid()
    }

    /// Whether it runs.
    pub fn is_alive(&self) -> bool {
        self.process().is_alive()
    }

    /// Sends it a signal (`HUP`, `USR2`, ...).
    pub fn signal(&self, signal: &str) -> Result<()> {
        self.process().signal(signal)
    }

    /// Stops it by SIGTERM, and waits for its end.
    pub fn stop(&self) -> Result<ExitStatus> {
        let process = self.process();
        process.signal("TERM")?;
        eventually(LIMIT, || {
            self.wake_up();
            process.exit_status().context("supervisord still runs")
        })
    }

    /// Kills it by SIGKILL, and then the processes that it leaves behind.
    pub fn kill(&self) -> Result<ExitStatus> {
        let status = self.process().kill()?;
        self.dir.end_all()?;
        Ok(status)
    }

    /// Kills the processes that it has left behind after it has ended by itself.
    pub fn end_children(&self) -> Result<()> {
        self.process().wait()?;
        self.dir.end_all()
    }

    /// Starts it after [`Daemon::stop`] or [`Daemon::kill`], at the same addresses and with its current
    /// configuration, and waits until it answers.
    pub fn start_again(&self) -> Result<()> {
        ensure!(!self.is_alive(), "it still runs");
        let environment: Vec<(&str, &str)> = self
            .environment
            .iter()
            .map(|(key, value)| (key.as_str(), value.as_str()))
            .collect();
        let process = eventually(LIMIT, || {
            let process = Arc::new(spawn(self.version, &self.dir, &environment)?);
            match first_answer(&process, &self.client()) {
                Ok(Start::Answers) => Ok(Ok(process)),
                Ok(Start::PortTaken) => bail!("{PORT_TAKEN}"), // it was promised, so wait for it
                Err(error) => Ok(Err(error)),
            }
        })??;
        *lock(&self.process) = process;
        Ok(())
    }

    /// [`Daemon::kill`] and [`Daemon::start_again`].
    pub fn kill_and_start_again(&self) -> Result<()> {
        self.kill()?;
        self.start_again()
    }

    /// Restarts it by `supervisor.restart`, which keeps its pid, and waits until it answers again.
    pub fn restart_rpc(&self) -> Result<()> {
        self.restart_by(|| {
            self.call("supervisor.restart", ())?;
            Ok(())
        })
    }

    /// Restarts it by SIGHUP, which keeps its pid, and waits until it answers again.
    pub fn restart_by_signal(&self) -> Result<()> {
        self.restart_by(|| self.signal("HUP"))
    }

    /// Calls `trigger`, which makes it restart, and waits until it answers again.
    pub fn restart_by(&self, trigger: impl FnOnce() -> Result<()>) -> Result<()> {
        let mut watched = self.held_connection()?;
        trigger()?;
        eventually(LIMIT, || {
            self.wake_up();
            ensure!(watched.is_closed()?, "the daemon goes on with its old life");
            Ok(())
        })?;
        match first_answer(&self.process(), &self.client())? {
            Start::Answers => Ok(()),
            Start::PortTaken => bail!("{PORT_TAKEN}"),
        }
    }

    /// A connection that the daemon has accepted. The daemon closes it when it restarts.
    fn held_connection(&self) -> Result<Connection> {
        let client = self.client().kept_alive();
        let mut connection = client.connect()?;
        connection.send(&client.request_bytes("GET", "/nothing-here", &[], None))?;
        connection.read(Until::Reply)?;
        Ok(connection)
    }

    /// Connects to the daemon, so that its poll returns at once and not after a second. The daemon handles
    /// signals and stopping groups when its poll returns.
    fn wake_up(&self) {
        match (&self.socket, self.tcp) {
            (Some(path), _) => drop(UnixStream::connect(path)),
            (None, Some(addr)) => drop(TcpStream::connect_timeout(&addr, LIMIT)),
            (None, None) => {}
        }
    }

    fn process(&self) -> Arc<Process> {
        Arc::clone(&lock(&self.process))
    }

    fn print_log(&self) {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        let end = lines[lines.len().saturating_sub(SHOWN_LINES)..].join("\n");
        let (version, dir, stderr) = (self.version, self.dir(), self.process().stderr_text());
        eprintln!("--- {version:?} in {}\n{end}\n{stderr}---", dir.display());
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if super::shows_logs() {
            self.print_log();
        }
    }
}

/// A supervisord with the in-process extension supervisor_twiddler 1.0.0. Its replies and fault texts are
/// the expected ones.
#[derive(Debug)]
pub struct Oracle(Daemon);

impl Oracle {
    /// Starts a daemon with these sections, and waits until it answers.
    pub fn start(body: &str) -> Result<Oracle> {
        Oracle::start_with(
            "",
            DaemonOptions {
                body,
                ..DaemonOptions::default()
            },
        )
    }

    /// Starts a daemon with this whitelist (empty: all methods). The version in the options is ignored.
    pub fn start_with(whitelist: &str, options: DaemonOptions<'_>) -> Result<Oracle> {
        let factory = "supervisor_twiddler.rpcinterface:make_twiddler_rpcinterface";
        let mut body =
            format!("[rpcinterface:twiddler]\nsupervisor.rpcinterface_factory = {factory}\n");
        if !whitelist.is_empty() {
            body += &format!("whitelist = {whitelist}\n");
        }
        body += options.body;
        let options = DaemonOptions {
            version: Version::Oracle,
            body: &body,
            ..options
        };
        Ok(Oracle(Daemon::start_with(options)?))
    }
}

impl Deref for Oracle {
    type Target = Daemon;

    fn deref(&self) -> &Daemon {
        &self.0
    }
}

/// The result of an attempt to start.
enum Start {
    Answers,
    PortTaken,
}

/// Waits until `getState` answers RUNNING, or until the process has ended.
fn first_answer(process: &Process, client: &Client) -> Result<Start> {
    let answer = eventually(LIMIT, || {
        if let Some(status) = process.exit_status() {
            return Ok(Err(status));
        }
        let state = client.call("supervisor.getState", ())?;
        let name = text(member(&state, "statename")?)?;
        ensure!(name == "RUNNING", "supervisord is {name}");
        Ok(Ok(Start::Answers))
    });
    match answer {
        Ok(Ok(start)) => Ok(start),
        Ok(Err(_)) if process.stderr_text().contains(PORT_TAKEN) => Ok(Start::PortTaken),
        Ok(Err(status)) => bail!("supervisord ended ({status})\n{}", printed(process)),
        Err(error) => {
            Err(error.context(format!("supervisord does not answer\n{}", printed(process))))
        }
    }
}

/// The output of the daemon, which contains its log in the foreground.
fn printed(process: &Process) -> String {
    format!("{}\n{}", process.stdout_text(), process.stderr_text())
}

fn spawn(version: Version, dir: &WorkDir, environment: &[(&str, &str)]) -> Result<Process> {
    let mut command: Command = venv(version).command("supervisor.supervisord");
    command
        .arg("-n")
        .arg("-c")
        .arg(conf_in(dir.path()))
        .current_dir(dir.path());
    command.envs(environment.iter().copied());
    dir.mark(&mut command);
    Process::spawn(&mut command)
}

fn probe(dir: &WorkDir, tcp: Option<SocketAddr>, options: &DaemonOptions<'_>) -> Client {
    let client = match tcp {
        Some(addr) if !options.socket => Client::new(addr),
        _ => Client::new(socket_in(dir.path())),
    };
    match options.credentials {
        Some((user, password)) => client.with_credentials(user, password),
        None => client,
    }
}

/// A port that is free now. The daemon does not accept the port 0.
pub fn free_port() -> Result<SocketAddr> {
    let listener =
        TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("looking for a free port")?;
    Ok(listener.local_addr()?)
}

fn conf_text(dir: &Path, tcp: Option<SocketAddr>, options: &DaemonOptions<'_>) -> String {
    let here = dir.display();
    let login = options
        .credentials
        .map_or(String::new(), |(user, password)| {
            format!(
                "username = {}\npassword = {}\n",
                escaped(user),
                escaped(password)
            )
        });
    let mut conf = String::new();
    if options.socket {
        conf += &format!(
            "[unix_http_server]\nfile = {}\n{login}\n",
            socket_in(dir).display()
        );
    }
    if let Some(addr) = tcp {
        conf += &format!("[inet_http_server]\nport = {addr}\n{login}\n");
    }
    let server = if options.socket {
        Some(Addr::Unix(socket_in(dir)))
    } else {
        tcp.map(Addr::Tcp)
    };
    if let Some(server) = server {
        conf += &format!("[supervisorctl]\nserverurl = {server}\n{login}\n");
    }
    conf += &format!(
        "[supervisord]\nlogfile = {here}/supervisord.log\npidfile = {here}/supervisord.pid\n\
         childlogdir = {here}\n{}\n\n",
        options.extra_supervisord
    );
    conf += "[rpcinterface:supervisor]\n\
             supervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface\n\n";
    if !options.include.is_empty() {
        conf += &format!("[include]\nfiles = {}\n\n", options.include);
    }
    conf + options.body
}

/// Doubles `%`, which the daemon expands in these values.
fn escaped(value: &str) -> String {
    value.replace('%', "%%")
}

fn conf_in(dir: &Path) -> PathBuf {
    dir.join("supervisord.conf")
}

fn socket_in(dir: &Path) -> PathBuf {
    dir.join("s.sock")
}

/// The directory of the first pattern; `conf.d` without a pattern.
fn include_dir(dir: &Path, patterns: &str) -> PathBuf {
    let first = patterns.split_whitespace().next().unwrap_or("conf.d/*");
    let first = first.replace("%(here)s", &dir.to_string_lossy());
    let path = dir.join(first);
    path.parent().unwrap_or(dir).to_owned()
}

fn write_file(path: &Path, text: &str) -> Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::write(path, text).with_context(|| format!("writing {}", path.display()))
}
