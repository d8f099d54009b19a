//! supervisord's configuration file and what it includes, read by the daemon's own rules.
//!
//! Owns what the proxy must know before it talks to the daemon: where it listens, which files it
//! includes, where it logs, which groups are configured, and the keys of `[twiddler]`, whose meaning
//! is `config`'s. What is wrong with a program is left to the daemon to judge. The rules, odd ones
//! too, are those of supervisor/options.py, `ServerOptions.read_config`.

use std::collections::HashSet;
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use self::expand::{Unexpanded, normal_path, pairs};
use self::ini::{Section, Sections, Setting};
use super::descriptors::Descriptors;
use crate::program::Configured;
use crate::python::{int, is_space, strip};

pub use self::pattern::{has_wildcard, name_matches};

/// The prefixes of the sections that make the daemon listen. It compares no more than these letters:
/// `[unix_http_server:a]` and `[unix_http_servers]` are servers too.
const UNIX_SERVER: &str = "unix_http_server";
const INET_SERVER: &str = "inet_http_server";

/// The daemon's log file where its configuration names none.
const DEFAULT_LOGFILE: &str = "supervisord.log";
/// The priority of groups and programs that set none.
const DEFAULT_PRIORITY: i64 = 999;
/// Event listeners are started first and stopped last.
const DEFAULT_LISTENER_PRIORITY: i64 = -1;
/// More processes of one program of the user's are not named: no daemon runs as many.
const MAX_CONFIGURED: i64 = 10_000;

/// What a variable of the environment holds; tests bring their own.
pub type Environment<'a> = dyn Fn(&str) -> Option<String> + 'a;

/// The environment of this process.
pub fn process_environment(name: &str) -> Option<String> {
    std::env::var_os(name).map(|value| value.to_string_lossy().into_owned())
}

/// What a configuration file says, as far as the proxy needs it.
#[derive(Clone, Debug)]
pub struct DaemonConf {
    /// The file, as it was named, made absolute.
    pub file: PathBuf,
    /// Its directory: `%(here)s`.
    pub here: PathBuf,
    /// Where the daemon listens, unix sockets first: the order in which the proxy prefers them.
    pub servers: Vec<HttpServer>,
    /// Servers whose address holds a variable that is not set here.
    pub unplaced: Vec<UnplacedServer>,
    /// The patterns of `[include] files`; empty where there are none.
    pub include: Vec<IncludePattern>,
    /// Patterns of it that hold a variable that is not set here.
    pub unplaced_include: Vec<UnplacedPattern>,
    /// The files that the patterns matched and that could be read, in the order of reading.
    pub included: Vec<PathBuf>,
    /// The daemon's own log.
    pub logfile: LogFile,
    /// How much it logs there.
    pub loglevel: LogLevel,
    /// How many descriptors the daemon sees to it that it may have.
    pub minfds: usize,
    /// Every group that the files define, in their order.
    pub groups: Vec<ConfiguredGroup>,
    /// What `[supervisorctl]` tells its clients.
    pub supervisorctl: Supervisorctl,
    /// The keys of `[twiddler]`.
    pub twiddler: Vec<TwiddlerKey>,
    /// The names of all sections.
    pub sections: Vec<String>,
    /// The sections of programs that run `twiddler serve`.
    pub proxies: Vec<String>,
    /// Variables that are not set here, in what is neither an address, a pattern nor the log.
    pub missing: Vec<MissingVariable>,
}

/// An option whose value holds a variable of the environment that is not set here. Displays as one
/// line without what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}: [{section}] {key}: the environment variable {variable} is not set", .file.display())]
pub struct MissingVariable {
    /// The file.
    pub file: PathBuf,
    /// The section.
    pub section: String,
    /// The option.
    pub key: String,
    /// The variable.
    pub variable: String,
}

/// A section that makes the daemon listen at an address that is not known here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnplacedServer {
    /// What its address lacks.
    pub missing: MissingVariable,
    /// What it asks of clients, as [`HttpServer::credentials`].
    pub credentials: Option<Credentials>,
}

/// A pattern of `[include] files` that is not known here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnplacedPattern {
    /// What it lacks.
    pub missing: MissingVariable,
    /// The part after the last slash, where that is known.
    pub file_part: Option<String>,
}

impl UnplacedServer {
    /// Whether it can be the one that listens at an address.
    pub fn may_be_at(&self, address: &DaemonAddress) -> bool {
        self.missing.section.starts_with(UNIX_SERVER) == matches!(address, DaemonAddress::Unix(_))
    }
}

impl DaemonConf {
    /// All variables that are not set here.
    pub fn all_missing(&self) -> impl Iterator<Item = &MissingVariable> {
        let log = match &self.logfile {
            LogFile::Unknown(missing) => Some(missing),
            _ => None,
        };
        let servers = self.unplaced.iter().map(|server| &server.missing);
        let patterns = self.unplaced_include.iter().map(|one| &one.missing);
        let placed = patterns.chain(servers).chain(log);
        placed.chain(&self.missing)
    }

    /// What the daemon may have, and what it needs for these programs.
    pub fn descriptors(&self) -> Descriptors {
        Descriptors {
            limit: self.minfds,
            processes: self.groups.iter().map(|group| group.processes.len()).sum(),
        }
    }
}

/// What `[supervisorctl]` says (`supervisor/options.py`, `ClientOptions.read_config`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Supervisorctl {
    /// Where supervisorctl connects, as written and expanded.
    pub serverurl: Option<String>,
    /// What supervisorctl presents; none where neither name nor password is set.
    pub credentials: Option<Credentials>,
}

/// One section that makes the daemon listen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpServer {
    /// The section's name.
    pub section: String,
    /// Where the daemon listens.
    pub address: DaemonAddress,
    /// What it asks of clients; none where its user name is empty, as the daemon has it.
    pub credentials: Option<Credentials>,
    /// The mode of its unix socket, as it is written.
    pub chmod: Option<String>,
    /// The owner of its unix socket, as it is written.
    pub chown: Option<String>,
}

/// Where the daemon is reached. Displays as the URL that supervisorctl takes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum DaemonAddress {
    /// A unix socket.
    Unix(PathBuf),
    /// A host, an IPv6 address without its brackets, and a port.
    Tcp {
        /// The host's name or address.
        host: String,
        /// The port.
        port: u16,
    },
}

/// A user name and a password. Debug output hides the password.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// The user name.
    pub username: String,
    /// The password, or its digest after `{SHA}`.
    pub password: String,
    /// Whether one of both holds a variable that is not set here. Then they are as written, which
    /// serves to compare them alone: they are nobody's.
    pub is_unread: bool,
}

/// A pattern of `[include] files`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IncludePattern {
    /// The whole pattern, expanded and absolute.
    pub pattern: String,
    /// Its directory, which may be a pattern itself.
    pub dir: PathBuf,
}

/// Where the daemon logs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogFile {
    /// A file. A relative one is meant from where the daemon was started, which cannot be known
    /// here: it is looked for in `[supervisord] directory`, else taken from the current directory.
    File(PathBuf),
    /// The system's log.
    Syslog,
    /// Its name holds a variable that is not set here.
    Unknown(MissingVariable),
}

/// A level of the daemon's log (`supervisor/loggers.py`). What matters more is greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LogLevel {
    /// 3, `BLAT`.
    Blather,
    /// 5, `TRAC`.
    Trace,
    /// 10, `DEBG`.
    Debug,
    /// 20, `INFO`.
    Info,
    /// 30, `WARN`.
    Warn,
    /// 40, `ERRO`.
    Error,
    /// 50, `CRIT`.
    Critical,
}

/// A group that the files define, by a section of its own or by that of a lone program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfiguredGroup {
    /// Its name.
    pub name: String,
    /// Its priority.
    pub priority: i64,
    /// Whether it has no process at all.
    pub empty: bool,
    /// The names of its processes, in the daemon's order among those of one priority
    /// (`supervisor/options.py`, `process_groups_from_parser`). A name that only the daemon can tell
    /// is left out.
    pub processes: Vec<String>,
}

/// A key of `[twiddler]`. Debug output hides the value, which may be a secret.
#[derive(Clone, PartialEq, Eq)]
pub struct TwiddlerKey {
    /// The key, in lower case.
    pub key: String,
    /// Its value, expanded.
    pub value: String,
    /// The file that sets it.
    pub file: PathBuf,
}

/// A mistake in the parts of a configuration file that the proxy needs, and what to write instead.
#[derive(Debug, thiserror::Error)]
pub enum ConfError {
    /// There is no such file.
    #[error("{}: there is no such file; name supervisord's configuration file with -c PATH", .file.display())]
    Missing {
        /// The file.
        file: PathBuf,
    },
    /// The file cannot be read.
    #[error("{}: it cannot be read ({cause}); name a file with -c PATH that the account of twiddler may read", .file.display())]
    Unreadable {
        /// The file.
        file: PathBuf,
        /// What the system said.
        #[source]
        cause: io::Error,
    },
    /// A line that the daemon cannot read, where the proxy needs to.
    #[error("{}: line {line} {problem}", .file.display())]
    Line {
        /// The file.
        file: PathBuf,
        /// The line's number, from 1.
        line: usize,
        /// Where it stands, and what to write.
        problem: String,
    },
    /// No `[supervisord]`.
    #[error("{}: there is no [supervisord] section, without which supervisord does not start; write [supervisord], even an empty one", .file.display())]
    NoSupervisord {
        /// The file.
        file: PathBuf,
    },
    /// Nothing makes the daemon listen.
    #[error("{}: there is no [unix_http_server] and no [inet_http_server] section, so nothing can talk to supervisord; write [unix_http_server] and below it file = /run/supervisor.sock", .file.display())]
    NoServer {
        /// The file.
        file: PathBuf,
    },
    /// A variable that is needed is not set.
    #[error("{0}; start twiddler with the value that supervisord has, {instead}or write %% for a percent sign", instead = instead_of(.0))]
    Variable(MissingVariable),
    /// An option of a section is missing, or wrong.
    #[error("{}: [{section}] {problem}", .file.display())]
    Section {
        /// The file.
        file: PathBuf,
        /// The section.
        section: String,
        /// What is wrong with which option, and what to write. No value that may be a password.
        problem: String,
    },
}

/// A configuration file and all mistakes in the parts of it that the proxy needs.
#[derive(Debug)]
pub struct Inspection {
    /// What could be read. What a mistake hides is left out or has the daemon's default.
    pub conf: DaemonConf,
    /// The mistakes; what is wrong with the text itself comes first.
    pub mistakes: Vec<ConfError>,
}

/// Where supervisorctl looks for a file that nobody named, best first (supervisor/options.py,
/// `Options.__init__`).
///
/// Two places depend on where supervisorctl itself is. It is looked for in `PATH`; where there is
/// none, this program stands in for it.
pub fn search() -> Vec<PathBuf> {
    let program = find_program("supervisorctl").or_else(|| std::env::current_exe().ok());
    let prefix = program
        .as_deref()
        .and_then(Path::parent)
        .and_then(Path::parent);
    let beside = prefix.map(|prefix| {
        [
            prefix.join("etc/supervisord.conf"),
            prefix.join("supervisord.conf"),
        ]
    });
    let fixed = [
        "supervisord.conf",
        "etc/supervisord.conf",
        "/etc/supervisord.conf",
        "/etc/supervisor/supervisord.conf",
    ];
    beside
        .into_iter()
        .flatten()
        .chain(fixed.map(PathBuf::from))
        .collect()
}

fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|dir| dir.join(name))
        .find(|program| program.is_file())
}

/// Reads a configuration file and what it includes.
///
/// # Errors
/// The first mistake in a part that the proxy needs.
pub fn read(file: &Path) -> Result<DaemonConf, ConfError> {
    read_with_env(file, &process_environment)
}

/// Like [`read`], with this environment.
///
/// # Errors
/// The first mistake in a part that the proxy needs.
pub fn read_with_env(file: &Path, env: &Environment<'_>) -> Result<DaemonConf, ConfError> {
    let Inspection { conf, mistakes } = inspect(file, env)?;
    mistakes.into_iter().next().map_or(Ok(conf), Err)
}

/// Like [`read_with_env`], with all mistakes at once.
///
/// # Errors
/// When the file is missing or cannot be read.
pub fn inspect(file: &Path, env: &Environment<'_>) -> Result<Inspection, ConfError> {
    let mut reader = Reader::open(file, env)?;
    let (include, included) = reader.include();
    let unplaced_include = std::mem::take(&mut reader.unplaced_include);
    reader.check_lines();
    reader.check_supervisord();
    let logfile = reader.logfile();
    let loglevel = reader.loglevel();
    let minfds = reader.minfds();
    reader.take_environment();
    let conf = DaemonConf {
        servers: reader.servers(),
        unplaced: std::mem::take(&mut reader.unplaced),
        groups: reader.groups(),
        supervisorctl: reader.supervisorctl(),
        twiddler: reader.twiddler(),
        sections: reader
            .sections
            .iter()
            .map(|section| section.name.clone())
            .collect(),
        proxies: reader.proxies(),
        here: reader.names.here.clone().into(),
        include,
        unplaced_include,
        included,
        logfile,
        loglevel,
        minfds,
        file: reader.file,
        missing: reader.missing,
    };
    Ok(Inspection {
        conf,
        mistakes: reader.mistakes,
    })
}

/// The files as they have been read so far, and what was found wrong with them.
struct Reader<'a> {
    file: PathBuf,
    sections: Sections,
    names: Names<'a>,
    mistakes: Vec<ConfError>,
    missing: Vec<MissingVariable>,
    unplaced: Vec<UnplacedServer>,
    unplaced_include: Vec<UnplacedPattern>,
}

impl<'a> Reader<'a> {
    fn open(file: &Path, env: &'a Environment<'a>) -> Result<Self, ConfError> {
        let file = std::path::absolute(file).unwrap_or_else(|_| file.to_path_buf());
        let text = read_text(&file).map_err(|cause| match cause.kind() {
            io::ErrorKind::NotFound => ConfError::Missing { file: file.clone() },
            _ => ConfError::Unreadable {
                file: file.clone(),
                cause,
            },
        })?;
        let mut sections = Sections::default();
        sections.add(&file, &text);
        let names = Names {
            here: dir_of(&file),
            host: host_name(),
            environment: Vec::new(),
            outer: env,
        };
        Ok(Reader {
            file,
            sections,
            names,
            mistakes: Vec::new(),
            missing: Vec::new(),
            unplaced: Vec::new(),
            unplaced_include: Vec::new(),
        })
    }

    /// Reads the included files, in the order of the patterns and sorted for each of them.
    ///
    /// Only the main file's `[include]` counts, and it is what makes `%(here)s` a textual
    /// replacement, file by file.
    fn include(&mut self) -> (Vec<IncludePattern>, Vec<PathBuf>) {
        let Some(section) = self.sections.get("include") else {
            return Default::default();
        };
        let section_file = section.file.to_path_buf();
        self.sections.expand_here(&self.names.here);
        let files = self.required("include", "files", &section_file, &self.include_example());
        let patterns = match files {
            Err(ConfError::Variable(_)) => self.known_patterns(),
            files => self
                .keep(files)
                .map(|(files, _)| self.patterns(&files))
                .unwrap_or_default(),
        };
        let matched: Vec<_> = patterns
            .iter()
            .flat_map(|one| pattern::glob(&one.pattern))
            .filter(|file| !is_generated(file))
            .collect();
        let included = matched
            .into_iter()
            .filter(|file| self.include_file(file))
            .collect();
        (patterns, included)
    }

    /// The patterns that can be expanded, where not all can.
    fn known_patterns(&mut self) -> Vec<IncludePattern> {
        let Some(setting) = self.sections.find("include", "files").cloned() else {
            return Vec::new();
        };
        let words = setting
            .value
            .split(is_space)
            .filter(|word| !word.is_empty());
        let mut known = Vec::new();
        for word in words {
            match self.expanded_as("include", &setting, word) {
                Err(ConfError::Variable(missing)) => {
                    let file_part = word.rsplit('/').next().unwrap_or(word);
                    let file_part = self.names.format(file_part).ok();
                    self.unplaced_include
                        .push(UnplacedPattern { missing, file_part });
                }
                expanded => {
                    let expanded = self.keep(expanded);
                    known.extend(expanded.map(|(files, _)| self.patterns(&files)));
                }
            }
        }
        known.into_iter().flatten().collect()
    }

    fn include_example(&self) -> String {
        format!("{}/conf.d/*.conf", self.names.here.trim_end_matches('/'))
    }

    fn patterns(&self, files: &str) -> Vec<IncludePattern> {
        let words = files.split(is_space).filter(|word| !word.is_empty());
        let patterns = words.map(|word| join(&self.names.here, word));
        patterns
            .map(|pattern| IncludePattern {
                dir: dir_in(&pattern).into(),
                pattern,
            })
            .collect()
    }

    /// Adds a file; one that cannot be read is passed over in silence, as the daemon does.
    fn include_file(&mut self, file: &Path) -> bool {
        let Ok(text) = read_text(file) else {
            return false;
        };
        self.sections.add(file, &text);
        self.sections.expand_here(&dir_of(file));
        true
    }

    /// Lines that make the daemon refuse all its files are ours to report only in what we need.
    fn check_lines(&mut self) {
        let mut outside = false;
        for odd in &self.sections.odd_lines {
            let (file, line) = (odd.file.to_path_buf(), odd.line);
            let problem = match &odd.section {
                Some(section) if concerns_us(section) => format!(
                    "in [{section}] is not an option; write key = value, or indent it if it continues a value"
                ),
                // One is enough: the lines after it are most likely outside as well.
                None if file == self.file && !outside => {
                    outside = true;
                    "stands before any section; write [supervisord] above it, or name \
                     supervisord's configuration file with -c PATH"
                        .to_owned()
                }
                _ => continue,
            };
            self.mistakes.push(ConfError::Line {
                file,
                line,
                problem,
            });
        }
    }

    fn check_supervisord(&mut self) {
        if self.sections.get("supervisord").is_none() {
            self.mistakes.push(ConfError::NoSupervisord {
                file: self.file.clone(),
            });
        }
    }

    fn logfile(&mut self) -> LogFile {
        let named = self.value("supervisord", "logfile");
        if let Err(ConfError::Variable(missing)) = named {
            return LogFile::Unknown(missing);
        }
        let named = self
            .keep(named)
            .flatten()
            .map_or_else(|| DEFAULT_LOGFILE.to_owned(), |(value, _)| value);
        if named == "syslog" {
            return LogFile::Syslog;
        }
        let named = expand::home(&named, self.names.outer);
        let moved = self
            .directory()
            .map(|directory| normal_path(&join(&directory, &named)));
        let moved = moved.map(PathBuf::from).filter(|path| path.exists());
        LogFile::File(moved.unwrap_or_else(|| absolute(&named).into()))
    }

    /// Where the daemon goes once it is in the background; from there it names its relative log
    /// file when it restarts (supervisor/supervisord.py, `main`).
    fn directory(&self) -> Option<String> {
        let (directory, _) = self.value("supervisord", "directory").ok()??;
        Some(absolute(&expand::home(&directory, self.names.outer)))
    }

    fn loglevel(&mut self) -> LogLevel {
        let named = self.value("supervisord", "loglevel");
        let named = self.unless_missing(named);
        let named = named.and_then(|named| self.keep(named)).flatten();
        let Some((value, file)) = named else {
            return LogLevel::Info;
        };
        LogLevel::parse(&value).unwrap_or_else(|| {
            let names = LogLevel::ALL.map(LogLevel::name).join(", ");
            let problem = format!("loglevel: `{value}` is no level; write one of {names}");
            self.mistakes
                .push(ConfError::section(file, "supervisord", problem));
            LogLevel::Info
        })
    }

    /// Lets later expansions see what `[supervisord] environment` sets. The daemon expands that
    /// value twice; where it cannot be read, the daemon says so better than we could.
    fn take_environment(&mut self) {
        let Ok(Some((text, _))) = self.value("supervisord", "environment") else {
            return;
        };
        let expanded = self.names.format(&text).ok();
        self.names.environment = expanded.and_then(|text| pairs(&text)).unwrap_or_default();
    }

    fn servers(&mut self) -> Vec<HttpServer> {
        let unix = self.sections.starting_with(UNIX_SERVER);
        let sections = unix.chain(self.sections.starting_with(INET_SERVER));
        let sections: Vec<Section> = sections.cloned().collect();
        if sections.is_empty() {
            self.mistakes.push(ConfError::NoServer {
                file: self.file.clone(),
            });
        }
        sections
            .iter()
            .filter_map(|section| self.server(section))
            .collect()
    }

    fn server(&mut self, section: &Section) -> Option<HttpServer> {
        let address = match section.name.starts_with(UNIX_SERVER) {
            true => self.unix_address(section),
            false => self.inet_address(section),
        };
        let (address, missing) = match address {
            Err(ConfError::Variable(missing)) => (None, Some(missing)),
            address => (self.keep(address), None),
        };
        let credentials = self.credentials(section);
        let credentials = self.keep(credentials);
        if let (Some(missing), Some(credentials)) = (missing, &credentials) {
            let credentials = credentials.clone();
            self.unplaced.push(UnplacedServer {
                missing,
                credentials,
            });
        }
        // The daemon itself does not start with those that it does not understand.
        let written = |key| self.value(&section.name, key).ok().flatten();
        let text = |key| written(key).map(|(text, _)| text);
        Some(HttpServer {
            section: section.name.clone(),
            address: address?,
            credentials: credentials?,
            chmod: text("chmod"),
            chown: text("chown"),
        })
    }

    fn unix_address(&self, section: &Section) -> Result<DaemonAddress, ConfError> {
        let example = "/run/supervisor.sock";
        let (path, _) = self.required(&section.name, "file", &section.file, example)?;
        let path = expand::home(strip(&path), self.names.outer);
        Ok(DaemonAddress::Unix(absolute(&path).into()))
    }

    fn inet_address(&self, section: &Section) -> Result<DaemonAddress, ConfError> {
        let (value, file) =
            self.required(&section.name, "port", &section.file, "127.0.0.1:9001")?;
        let (host, port) = value.rsplit_once(':').unwrap_or(("", &value));
        let port = int(port).value().and_then(|port| u16::try_from(port).ok());
        let Some(port) = port.filter(|port| *port > 0) else {
            let problem = format!(
                "port: `{value}` is no port from 1 to 65535, alone or after a host and a colon; write port = 127.0.0.1:9001"
            );
            return Err(ConfError::section(file, &section.name, problem));
        };
        let host = match &*host.to_lowercase() {
            // Every address of the machine: to listen on, not to call.
            "" | "*" | "0.0.0.0" => "127.0.0.1".to_owned(),
            host => without_brackets(host).to_owned(),
        };
        Ok(DaemonAddress::Tcp { host, port })
    }

    fn credentials(&mut self, section: &Section) -> Result<Option<Credentials>, ConfError> {
        let before = self.missing.len();
        let username = self.value_or_written(&section.name, "username")?;
        let password = self.value_or_written(&section.name, "password")?;
        let is_unread = self.missing.len() > before;
        let half = |file, present, absent| {
            let problem = format!("has a {present} but no {absent}; write both or neither");
            Err(ConfError::section(file, &section.name, problem))
        };
        match (username, password) {
            (Some((_, file)), None) => half(file, "username", "password"),
            (None, Some((_, file))) => half(file, "password", "username"),
            // supervisor/http.py, `make_http_servers`: an empty name asks for nothing.
            (Some((username, _)), Some((password, _))) if !username.is_empty() => {
                Ok(Some(Credentials {
                    username,
                    password,
                    is_unread,
                }))
            }
            _ => Ok(None),
        }
    }

    fn groups(&self) -> Vec<ConfiguredGroup> {
        let claimed: HashSet<String> = self
            .sections
            .starting_with("group:")
            .flat_map(|group| self.members(&group.name))
            .collect();
        let groups = self
            .sections
            .iter()
            .filter(|section| !claimed.contains(&section.name));
        groups.filter_map(|section| self.group(section)).collect()
    }

    fn group(&self, section: &Section) -> Option<ConfiguredGroup> {
        let (kind, name) = section.name.split_once(':')?;
        let priority = match kind {
            "group" | "program" | "fcgi-program" => DEFAULT_PRIORITY,
            "eventlistener" => DEFAULT_LISTENER_PRIORITY,
            _ => return None,
        };
        let members = if kind == "group" {
            self.members(&section.name)
        } else {
            vec![section.name.clone()]
        };
        // The daemon strips all names but those of event listeners.
        let name = if kind == "eventlistener" {
            name
        } else {
            strip(name)
        };
        let empty = members
            .iter()
            .all(|program| self.numprocs(program, name) <= 0);
        let priority = self.number(&section.name, "priority").unwrap_or(priority);
        Some(ConfiguredGroup {
            name: name.to_owned(),
            priority,
            empty,
            processes: members
                .iter()
                .flat_map(|program| self.processes(program, name))
                .collect(),
        })
    }

    fn processes(&self, section: &str, group: &str) -> Vec<String> {
        let raw = |key| {
            let setting = self.sections.find(section, key);
            setting.map(|setting| setting.value.as_str())
        };
        let count = self.numprocs(section, group).clamp(0, MAX_CONFIGURED);
        let first = raw("numprocs_start")
            .and_then(|text| int(text).value())
            .unwrap_or(0);
        let configured = Configured {
            name: program_of(section),
            group,
            process_name: raw("process_name"),
            numbers: first..first.saturating_add(count),
        };
        configured.process_names(|name| self.names.get(name))
    }

    /// The sections of the programs that a `[group:x]` takes in.
    fn members(&self, group: &str) -> Vec<String> {
        let programs = self
            .value(group, "programs")
            .ok()
            .flatten()
            .map(|(value, _)| value);
        let programs = programs.filter(|programs| !programs.is_empty());
        let names = programs
            .iter()
            .flat_map(|programs| programs.split(','))
            .map(strip);
        names
            .map(|name| {
                let program = format!("program:{name}");
                let known = self.sections.get(&program).is_some();
                if known {
                    program
                } else {
                    format!("fcgi-program:{name}")
                }
            })
            .collect()
    }

    fn numprocs(&self, section: &str, group: &str) -> i64 {
        let Some(setting) = self.sections.find(section, "numprocs") else {
            return 1;
        };
        let program = program_of(section);
        let text = expand::format(&setting.value, |name| match name {
            "program_name" => Some(program.to_owned()),
            "group_name" => Some(group.to_owned()),
            _ => self.names.get(name),
        });
        text.ok().and_then(|text| int(&text).value()).unwrap_or(1)
    }

    /// What the daemon finds wrong with it is the daemon's to say.
    fn minfds(&self) -> usize {
        let number = self.number("supervisord", "minfds");
        let number = number.and_then(|number| number.try_into().ok());
        number.unwrap_or(Descriptors::default().limit)
    }

    fn number(&self, section: &str, key: &str) -> Option<i64> {
        let (value, _) = self.value(section, key).ok()??;
        int(&value).value()
    }

    /// Values that cannot be expanded here are left out: the proxy does not need them.
    fn supervisorctl(&self) -> Supervisorctl {
        let text = |key: &str| Some(self.value("supervisorctl", key).ok()??.0);
        let (username, password) = (text("username"), text("password"));
        let credentials = (username.is_some() || password.is_some())
            .then(|| Credentials::new(username.unwrap_or_default(), password.unwrap_or_default()));
        Supervisorctl {
            serverurl: text("serverurl"),
            credentials,
        }
    }

    fn twiddler(&mut self) -> Vec<TwiddlerKey> {
        let settings = self
            .sections
            .get("twiddler")
            .map(|section| section.own.clone())
            .unwrap_or_default();
        let keys = settings.into_iter().filter_map(|setting| {
            let value = self.expanded("twiddler", &setting);
            let (value, file) = self.keep(value)?;
            Some(TwiddlerKey {
                key: setting.key,
                value,
                file,
            })
        });
        keys.collect()
    }

    /// The proxy as a program of the daemon that it is in front of, by any path.
    fn proxies(&self) -> Vec<String> {
        let is_proxy = |section: &&Section| {
            let command = self.sections.find(&section.name, "command");
            let mut words = command
                .into_iter()
                .flat_map(|set| set.value.split(is_space));
            let program = words.by_ref().find(|word| is_our_program(word));
            program.is_some() && words.any(|word| word == "serve")
        };
        let programs = self.sections.starting_with("program:");
        let proxies = programs.filter(is_proxy);
        proxies.map(|section| section.name.clone()).collect()
    }

    /// An option's value, expanded, and the file that sets it.
    fn value(&self, section: &str, key: &str) -> Result<Option<(String, PathBuf)>, ConfError> {
        let setting = self.sections.find(section, key);
        setting
            .map(|setting| self.expanded(section, setting))
            .transpose()
    }

    /// Like [`Self::value`], as it is written where a variable is not set.
    fn value_or_written(
        &mut self,
        section: &str,
        key: &str,
    ) -> Result<Option<(String, PathBuf)>, ConfError> {
        let value = self.value(section, key);
        if let Some(value) = self.unless_missing(value).transpose()? {
            return Ok(value);
        }
        let written = self.sections.find(section, key);
        Ok(written.map(|setting| (setting.value.clone(), setting.file.to_path_buf())))
    }

    /// None where a variable is not set, which is noted.
    fn unless_missing<T>(&mut self, value: Result<T, ConfError>) -> Option<Result<T, ConfError>> {
        match value {
            Err(ConfError::Variable(missing)) => {
                self.missing.push(missing);
                None
            }
            value => Some(value),
        }
    }

    fn required(
        &self,
        section: &str,
        key: &str,
        file: &Path,
        example: &str,
    ) -> Result<(String, PathBuf), ConfError> {
        self.value(section, key)?.ok_or_else(|| {
            let problem = format!("has no {key}; write {key} = {example}");
            ConfError::section(file.into(), section, problem)
        })
    }

    fn expanded(&self, section: &str, setting: &Setting) -> Result<(String, PathBuf), ConfError> {
        self.expanded_as(section, setting, &setting.value)
    }

    /// `text`, a part of an option's value, expanded, and the file that sets it.
    fn expanded_as(
        &self,
        section: &str,
        setting: &Setting,
        text: &str,
    ) -> Result<(String, PathBuf), ConfError> {
        let file = setting.file.to_path_buf();
        match self.names.format(text) {
            Ok(value) => Ok((value, file)),
            Err(Unexpanded::Variable(variable)) => Err(ConfError::Variable(MissingVariable {
                file,
                section: section.to_owned(),
                key: setting.key.clone(),
                variable,
            })),
            Err(Unexpanded::Wrong(reason)) => {
                let problem = format!("{}: {reason}", setting.key);
                Err(ConfError::section(file, section, problem))
            }
        }
    }

    fn keep<T>(&mut self, result: Result<T, ConfError>) -> Option<T> {
        result.map_err(|mistake| self.mistakes.push(mistake)).ok()
    }
}

/// The names that `%(name)s` may stand for.
struct Names<'a> {
    here: String,
    host: String,
    environment: Vec<(String, String)>,
    outer: &'a Environment<'a>,
}

impl Names<'_> {
    fn get(&self, name: &str) -> Option<String> {
        match name {
            "here" => Some(self.here.clone()),
            "host_node_name" => Some(self.host.clone()),
            _ => self.variable(name.strip_prefix("ENV_")?),
        }
    }

    fn variable(&self, name: &str) -> Option<String> {
        // A name that `environment` sets twice has the later value.
        let set = self.environment.iter().rev().find(|(key, _)| key == name);
        set.map(|(_, value)| value.clone())
            .or_else(|| (self.outer)(name))
    }

    fn format(&self, text: &str) -> Result<String, Unexpanded> {
        expand::format(text, |name| self.get(name))
    }
}

/// The program that a section defines.
fn program_of(section: &str) -> &str {
    section.split_once(':').map_or("", |(_, name)| strip(name))
}

fn concerns_us(section: &str) -> bool {
    ["supervisord", "include", "twiddler"].contains(&section)
        || section.starts_with(UNIX_SERVER)
        || section.starts_with(INET_SERVER)
}

fn is_our_program(word: &str) -> bool {
    word.rsplit('/').next() == Some("twiddler")
}

/// Files that the proxy itself wrote say nothing about what the user configured.
fn is_generated(file: &Path) -> bool {
    file.file_name()
        .is_some_and(|name| name.to_string_lossy().contains("zz-twiddler"))
}

/// A file as text, with the line ends that Python's text files have. The daemon takes what its
/// locale can decode; here bytes that are no UTF-8 must not keep the rest from being read.
fn read_text(file: &Path) -> io::Result<String> {
    let bytes = fs::read(file)?;
    Ok(String::from_utf8_lossy(&bytes)
        .replace("\r\n", "\n")
        .replace('\r', "\n"))
}

fn host_name() -> String {
    nix::unistd::gethostname()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default()
}

fn absolute(path: &str) -> String {
    let current = std::env::current_dir().unwrap_or_default();
    normal_path(&join(&current.to_string_lossy(), path))
}

fn dir_of(file: &Path) -> String {
    absolute(dir_in(&file.to_string_lossy()))
}

/// The part before the last slash, as Python's `os.path.dirname` cuts it.
fn dir_in(path: &str) -> &str {
    let head = &path[..path.rfind('/').map_or(0, |at| at + 1)];
    let cut = head.trim_end_matches('/');
    if cut.is_empty() { head } else { cut }
}

fn join(base: &str, path: &str) -> String {
    match path.starts_with('/') {
        true => path.to_owned(),
        false => format!("{}/{path}", base.strip_suffix('/').unwrap_or(base)),
    }
}

fn without_brackets(host: &str) -> &str {
    host.strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
        .unwrap_or(host)
}

impl ConfError {
    fn section(file: PathBuf, section: &str, problem: String) -> Self {
        ConfError::Section {
            file,
            section: section.to_owned(),
            problem,
        }
    }
}

impl DaemonAddress {
    /// Reads `unix:///PATH` or `http://HOST:PORT`.
    ///
    /// # Errors
    /// What is wrong with it, and what to write. Credentials are not repeated.
    pub fn parse(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix://") {
            return match path.starts_with('/') && path.len() > 1 {
                true => Ok(Self::Unix(normal_path(path).into())),
                false => Err(format!(
                    "the socket's path in `{text}` is not absolute; write unix:///run/supervisor.sock, with three slashes"
                )),
            };
        }
        if text.contains('@') {
            return Err(
                "a user name or password does not belong into the address; write http://HOST:PORT, \
                 and both into the [inet_http_server] of supervisord.conf"
                    .to_owned(),
            );
        }
        if text.starts_with("https://") {
            return Err(format!(
                "supervisord speaks no TLS; write http:// for https:// in `{text}`"
            ));
        }
        let Some(rest) = text.strip_prefix("http://") else {
            return Err(format!(
                "`{text}` is not an address of supervisord; write unix:///run/supervisor.sock or http://127.0.0.1:9001"
            ));
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        if rest.contains(['/', '?', '#']) {
            return Err(format!(
                "`{text}` goes on after the port; write http://HOST:PORT"
            ));
        }
        host_and_port(rest).ok_or_else(|| {
            format!("`{text}` lacks a host, or a port from 1 to 65535; write http://127.0.0.1:9001")
        })
    }
}

fn host_and_port(text: &str) -> Option<DaemonAddress> {
    let (host, port) = text.rsplit_once(':')?;
    let port = port.parse().ok().filter(|port| *port > 0)?;
    let bracketed = host.starts_with('[') && host.ends_with(']');
    let host = without_brackets(host);
    let plain = !host.is_empty() && !host.contains(is_space) && (bracketed || !host.contains(':'));
    plain.then(|| DaemonAddress::Tcp {
        host: host.to_lowercase(),
        port,
    })
}

impl fmt::Display for DaemonAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
            Self::Tcp { host, port } if host.contains(':') => write!(f, "http://[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "http://{host}:{port}"),
        }
    }
}

/// The option of twiddler that stands in for an option of the daemon's.
fn instead_of(missing: &MissingVariable) -> &'static str {
    match (&*missing.section, &*missing.key) {
        ("include", _) => "or name the directory that it includes with --include-dir, ",
        (section, "file" | "port") if concerns_us(section) => {
            "or name where it listens with --supervisord, "
        }
        _ => "",
    }
}

impl Credentials {
    /// These.
    pub fn new(username: String, password: String) -> Self {
        Credentials {
            username,
            password,
            is_unread: false,
        }
    }

    /// Whether they can be presented to the daemon.
    pub fn can_be_presented(&self) -> bool {
        !self.is_unread && !self.is_hashed()
    }

    /// Whether supervisord.conf holds a digest in place of the password: then it serves to check
    /// what clients send, and cannot be presented to the daemon.
    pub fn is_hashed(&self) -> bool {
        self.password.starts_with("{SHA}")
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("username", &self.username)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for TwiddlerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TwiddlerKey")
            .field("key", &self.key)
            .finish_non_exhaustive()
    }
}

impl IncludePattern {
    /// The part after the last slash, which the names of files are held against.
    pub fn file_part(&self) -> &str {
        self.pattern
            .rsplit_once('/')
            .map_or(&*self.pattern, |(_, file)| file)
    }
}

impl LogLevel {
    /// Every level, the most important first.
    pub const ALL: [LogLevel; 7] = [
        Self::Critical,
        Self::Error,
        Self::Warn,
        Self::Info,
        Self::Debug,
        Self::Trace,
        Self::Blather,
    ];

    /// The level of this name (`info`, `warn`), in any case.
    pub fn parse(name: &str) -> Option<Self> {
        let name = name.to_lowercase();
        Self::ALL.into_iter().find(|level| level.name() == name)
    }

    /// The level that is called so in a line of the log (`WARN`), in any case.
    pub fn from_code(code: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|level| level.code().eq_ignore_ascii_case(code))
    }

    /// The level of this number.
    pub fn from_number(number: i64) -> Option<Self> {
        Self::ALL.into_iter().find(|level| level.number() == number)
    }

    /// Its name in the configuration.
    pub fn name(self) -> &'static str {
        match self {
            Self::Critical => "critical",
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
            Self::Blather => "blather",
        }
    }

    /// Its name in a line of the log.
    pub fn code(self) -> &'static str {
        match self {
            Self::Critical => "CRIT",
            Self::Error => "ERRO",
            Self::Warn => "WARN",
            Self::Info => "INFO",
            Self::Debug => "DEBG",
            Self::Trace => "TRAC",
            Self::Blather => "BLAT",
        }
    }

    /// Its number.
    pub fn number(self) -> i64 {
        match self {
            Self::Critical => 50,
            Self::Error => 40,
            Self::Warn => 30,
            Self::Info => 20,
            Self::Debug => 10,
            Self::Trace => 5,
            Self::Blather => 3,
        }
    }
}

mod ini;

mod expand;

mod pattern;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_displayed() {
        let tcp = |host: &str, port| DaemonAddress::Tcp {
            host: host.to_owned(),
            port,
        };
        for (text, expected, shown) in [
            (
                "unix:///run/s.sock",
                DaemonAddress::Unix("/run/s.sock".into()),
                "unix:///run/s.sock",
            ),
            (
                "unix:///run/../s@1",
                DaemonAddress::Unix("/s@1".into()),
                "unix:///s@1",
            ),
            (
                "http://127.0.0.1:9001",
                tcp("127.0.0.1", 9001),
                "http://127.0.0.1:9001",
            ),
            ("http://Host:1/", tcp("host", 1), "http://host:1"),
            ("http://[::1]:9001", tcp("::1", 9001), "http://[::1]:9001"),
        ] {
            let address = DaemonAddress::parse(text).unwrap();
            assert_eq!(address, expected, "{text}");
            assert_eq!(address.to_string(), shown);
        }
    }

    #[test]
    fn what_is_no_address_is_refused() {
        for text in [
            "",
            "/run/s.sock",
            "localhost:9001",
            "unix://run/s.sock",
            "unix:///",
            "https://h:1",
            "http://u:secret@h:1",
            "http://h:1/RPC2",
            "http://h",
            "http://h:0",
            "http://h:70000",
            "http://:1",
            "http://::1",
            "http://a b:1",
        ] {
            let reason = DaemonAddress::parse(text).unwrap_err();
            assert!(
                reason.contains("write ") && !reason.contains("secret"),
                "{text}: {reason}"
            );
        }
    }

    #[test]
    fn the_usual_places_are_searched_last() {
        let found = search();
        let usual = [
            "supervisord.conf",
            "etc/supervisord.conf",
            "/etc/supervisord.conf",
            "/etc/supervisor/supervisord.conf",
        ];
        assert_eq!(found[found.len() - 4..], usual.map(PathBuf::from));
        assert!(
            found.len() == 6 && found[0].ends_with("etc/supervisord.conf"),
            "{found:?}"
        );
    }

    #[test]
    fn levels_have_the_names_and_numbers_of_the_daemon() {
        let codes = ["CRIT", "ERRO", "WARN", "INFO", "DEBG", "TRAC", "BLAT"];
        let numbers = [50, 40, 30, 20, 10, 5, 3];
        for ((level, code), number) in LogLevel::ALL.into_iter().zip(codes).zip(numbers) {
            assert_eq!((level.code(), level.number()), (code, number));
            assert_eq!(LogLevel::from_number(number), Some(level));
            assert_eq!(LogLevel::parse(level.name()), Some(level));
            assert_eq!(LogLevel::parse(&level.name().to_uppercase()), Some(level));
        }
        assert_eq!(
            (LogLevel::parse("warning"), LogLevel::from_number(15)),
            (None, None)
        );
        assert!(LogLevel::Critical > LogLevel::Info && LogLevel::Info > LogLevel::Blather);
    }

    #[test]
    fn secrets_are_not_in_debug_output() {
        let credentials = Credentials::new("me".into(), "hush".into());
        let key = TwiddlerKey {
            key: "k".into(),
            value: "hush".into(),
            file: "/f".into(),
        };
        let shown = format!("{credentials:?} {key:?}");
        assert!(shown.contains("me") && !shown.contains("hush"), "{shown}");
    }

    #[test]
    fn only_a_digest_is_no_password() {
        for (password, expected) in [("{SHA}82ab", true), ("{sha}82ab", false), ("x{SHA}", false)] {
            let credentials = Credentials::new("me".into(), password.into());
            assert_eq!(credentials.is_hashed(), expected, "{password}");
        }
    }

    #[test]
    fn directories_are_cut_off_as_python_does() {
        for (path, expected) in [
            ("/a/b", "/a"),
            ("/a", "/"),
            ("a", ""),
            ("/a/b/", "/a/b"),
            ("//a", "//"),
        ] {
            assert_eq!(dir_in(path), expected, "{path}");
        }
    }
}
