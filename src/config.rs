//! What was decided: one [`Config`] from the command line, the environment and `[twiddler]`.
//!
//! Owns the defaults, what each value may be, and the sentences about those that are wrong, all of
//! which are reported together. Does not talk to the daemon.
//!
//! A new option is a name in `KEYS`, a field in `cli::ServeArgs` with its line in `typed`, and a
//! field in [`Config`] with a method of `Loader` that reads it.

mod missing;
mod overlap;
mod typos;

use std::fmt;
use std::fs::{self, OpenOptions};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Component, Path, PathBuf};

pub mod exposure;
mod listen;
mod password_file;

use self::exposure::{Barrier, Upstream};
use crate::access::basic_auth::Login;
use crate::access::browser::Site;
use crate::access::method_policy::{Allow, Policy};
use crate::cli::ServeArgs;
use crate::daemon::conf::{
    self, ConfError, Credentials, DaemonAddress, DaemonConf, Environment, HttpServer,
    IncludePattern, Inspection, UnplacedServer, has_wildcard, name_matches,
};
use crate::words::nearest;

/// Where the daemon itself has a port: the port after supervisord's own, on loopback.
pub const DEFAULT_LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9002);
/// A socket is for its owner alone, as supervisord's is by default.
pub const DEFAULT_SOCKET_MODE: u32 = 0o700;
/// Starts, stops and every change, but nothing for a mere request.
pub const DEFAULT_LOG_LEVEL: Verbosity = Verbosity::Info;
/// Made for people; what reads logs by program asks for `json`.
pub const DEFAULT_LOG_FORMAT: LogFormat = LogFormat::Text;

/// The keys of `[twiddler]`. With `--` and dashes they are options, with `TWIDDLER_` and capitals
/// variables of the environment.
const KEYS: [&str; 17] = [
    "listen",
    "supervisord",
    "include_dir",
    "username",
    "password",
    "password_file",
    "allow_open",
    "hosts",
    "chmod",
    "chown",
    "tls_cert",
    "tls_key",
    "allow",
    "whitelist",
    "persist",
    "log_level",
    "log_format",
];

/// The one option that cannot stand in the file that it names.
const CONFIG: &str = "config";

/// The methods that a whitelist may name.
const METHODS: [&str; 8] = [
    "getAPIVersion",
    "getGroupNames",
    "addGroup",
    "addProcessToGroup",
    "addProgramToGroup",
    "removeProcessFromGroup",
    "removeGroup",
    "log",
];

/// Begins every generated name. Late in the alphabet: where a name occurs twice, the daemon takes
/// what it reads last.
const GENERATED: &str = "zz-twiddler";
/// What file systems commonly allow.
const MAX_NAME_BYTES: usize = 255;

/// Everything that `serve` needs to know.
#[derive(Clone, Debug)]
pub struct Config {
    /// supervisord's own configuration.
    pub daemon_conf: DaemonConf,
    /// Where supervisord is reached.
    pub daemon: DaemonAddress,
    /// What it asks for, where its configuration tells; a digest cannot be presented to it.
    pub credentials: Option<Credentials>,
    /// Where generated files go.
    pub include: IncludeDir,
    /// The options.
    pub settings: Settings,
    /// What works, and is most likely not meant so; a sentence each.
    pub notes: Vec<String>,
}

/// What could be decided, and the mistakes that are in the way of the rest: `check` goes on with
/// what there is.
#[derive(Debug)]
pub struct Draft {
    /// supervisord's own configuration; none where its file cannot be read.
    pub daemon_conf: Option<DaemonConf>,
    /// Where supervisord is reached, and what it asks for.
    pub daemon: Option<(DaemonAddress, Option<Credentials>)>,
    /// Where generated files go.
    pub include: Option<IncludeDir>,
    /// The options; the default stands in for a value that is wrong.
    pub settings: Settings,
    /// All mistakes.
    pub mistakes: Vec<ConfigError>,
    /// What works, and is most likely not meant so; a sentence each.
    pub notes: Vec<String>,
}

/// What the options of `[twiddler]` come to, from whichever source.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where clients connect; at least one address.
    pub listen: Vec<ListenAddr>,
    /// Where that was said.
    pub listen_origin: Origin,
    /// What callers must present to the proxy itself; none leaves them to the daemon.
    pub login: Option<Login>,
    /// What callers of ports must present where the daemon asks for it on its own port and the proxy
    /// reaches it through its socket; `login` goes before.
    pub port_login: Option<Login>,
    /// What whoever starts the proxy should know: a sentence each.
    pub warnings: Vec<String>,
    /// Whether the proxy listens beside the daemon's socket because nothing says where to listen.
    pub is_beside_daemon: bool,
    /// Where browsers may find the proxy, beside addresses and `localhost`.
    pub hosts: Vec<Site>,
    /// Who may use the unix sockets.
    pub socket: SocketAccess,
    /// Where their owner was named.
    pub owner_origin: Origin,
    /// TLS for TCP; none for plain HTTP.
    pub tls: Option<TlsFiles>,
    /// The methods of all namespaces that may be called; none for all.
    pub allow: Option<Allow>,
    /// The bare names of the `twiddler.*` methods that may be called; empty for all.
    pub whitelist: Vec<String>,
    /// Whether changes survive a restart of supervisord.
    pub persist: bool,
    /// How much to log.
    pub log_level: Verbosity,
    /// How to log it.
    pub log_format: LogFormat,
}

impl Settings {
    /// What may be called.
    pub fn policy(&self) -> Policy {
        Policy {
            allow: self.allow.clone(),
            whitelist: self.whitelist.clone(),
        }
    }
}

/// An address to listen on. Displays as a URL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListenAddr {
    /// An address and a port; port 0 is any free one.
    Tcp(SocketAddr),
    /// A unix socket, by its absolute path.
    Unix(PathBuf),
}

/// Mode and owner of a unix socket, as supervisord has them for its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketAccess {
    /// The permission bits.
    pub mode: u32,
    /// The owner; none to leave it.
    pub user: Option<u32>,
    /// The group; none to leave it.
    pub group: Option<u32>,
    /// Whether all three are those of the daemon's socket: what the proxy's account may not give is
    /// left, and the mode is narrowed, so that the socket is open to nobody else.
    pub like_daemons: bool,
}

impl Default for SocketAccess {
    fn default() -> Self {
        SocketAccess {
            mode: DEFAULT_SOCKET_MODE,
            user: None,
            group: None,
            like_daemons: false,
        }
    }
}

/// Where certificate and key are, in PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The chain of certificates, our own first.
    pub cert: PathBuf,
    /// Where that is written.
    pub cert_origin: Origin,
    /// The key.
    pub key: PathBuf,
    /// Where that is written.
    pub key_origin: Origin,
}

/// A directory that the daemon includes files from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IncludeDir {
    /// The directory, as the proxy sees it.
    pub dir: PathBuf,
    /// What the daemon holds the names in it against, such as `*.conf`. [`generated_name`] has a
    /// name for it.
    pub file_pattern: String,
}

/// How much of our own doings is logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verbosity {
    /// Requests that failed.
    Error,
    /// Also what was recovered from.
    Warn,
    /// Also starts, stops and changes.
    Info,
    /// Also every request.
    Debug,
    /// Also every step of it.
    Trace,
}

/// How our own log is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// A line of text for each event.
    Text,
    /// A JSON object for each event.
    Json,
}

/// Where a value comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// An option of the command line.
    CommandLine(&'static str),
    /// A variable of the environment.
    Environment(&'static str),
    /// A key of `[twiddler]`.
    File {
        /// The file.
        file: PathBuf,
        /// The key.
        key: &'static str,
    },
}

/// A mistake in the configuration, and what to write instead. Displays as one line.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A mistake in the daemon's own part of the file.
    #[error(transparent)]
    Daemon(#[from] ConfError),
    /// No file was named, and none found.
    #[error("no supervisord.conf was named, and there is none at {}; name it with -c PATH", listed(.searched))]
    NoFile {
        /// Where it was searched.
        searched: Vec<PathBuf>,
    },
    /// A key of `[twiddler]` that means nothing.
    #[error("{}: [twiddler] {key} is not a twiddler option; write {}", .file.display(), instead(*.nearest, &KEYS))]
    UnknownKey {
        /// The file.
        file: PathBuf,
        /// The key.
        key: String,
        /// The known key that is most like it.
        nearest: Option<&'static str>,
    },
    /// A value that an option cannot have.
    #[error("{origin}: {reason}")]
    BadValue {
        /// Where it stands.
        origin: Origin,
        /// What is wrong with it, and what to write.
        reason: String,
    },
    /// Nothing says where to listen, and there can be no socket beside the daemon's.
    #[error("{}: [twiddler] has no listen, and {reason}; write listen = unix:///run/twiddler/twiddler.sock in [twiddler], in a directory where twiddler may write and other accounts may not", .file.display())]
    NoListen {
        /// The file.
        file: PathBuf,
        /// Why there can be no socket beside the daemon's.
        reason: String,
    },
    /// supervisord includes nothing.
    #[error("{}: [include] lists no files, so supervisord would not read what twiddler writes; write [include] and below it files = {example}", .file.display())]
    NoInclude {
        /// The file.
        file: PathBuf,
        /// A pattern.
        example: String,
    },
    /// A pattern of `[include] files` that cannot be used; none other can.
    #[error("{}: [include] files: {pattern}: {reason}", .file.display())]
    IncludePattern {
        /// The file.
        file: PathBuf,
        /// The pattern.
        pattern: String,
        /// Why it cannot be used, and what to write.
        reason: String,
    },
}

/// All mistakes in a configuration; at least one. Displays as one line for each.
#[derive(Debug)]
pub struct ConfigErrors(Vec<ConfigError>);

impl Config {
    /// Decides everything from what was typed, the environment, and supervisord's file.
    ///
    /// # Errors
    /// All mistakes at once.
    pub fn load(args: &ServeArgs) -> Result<Config, ConfigErrors> {
        Draft::load(args).finish()
    }

    /// Like [`Config::load`], with this environment.
    ///
    /// # Errors
    /// All mistakes at once.
    pub fn load_with_env(args: &ServeArgs, env: &Environment<'_>) -> Result<Config, ConfigErrors> {
        Draft::load_with_env(args, env).finish()
    }
}

impl Draft {
    /// Decides what can be decided from what was typed, the environment, and supervisord's file.
    pub fn load(args: &ServeArgs) -> Draft {
        Draft::load_with_env(args, &conf::process_environment)
    }

    /// Like [`Draft::load`], with this environment.
    pub fn load_with_env(args: &ServeArgs, env: &Environment<'_>) -> Draft {
        let mut loader = Loader {
            args,
            env,
            conf: None,
            mistakes: Vec::new(),
            notes: Vec::new(),
        };
        loader.read_file();
        loader.check_keys();
        loader.note_typos();
        let listen = loader.listen();
        let mut daemon = loader.daemon();
        let include = loader.include();
        let login = loader.login(daemon.as_mut().and_then(|(_, asked)| asked.as_mut()));
        let socket = loader.socket();
        loader.note_missing(login.is_some());
        let reach = loader.reach(listen, socket, daemon.as_ref(), login.is_some());
        loader.check_own_address(&reach.listen, daemon.as_ref().map(|(address, _)| address));
        let settings = Settings {
            listen: reach.listen,
            listen_origin: loader.origin("listen"),
            login,
            port_login: reach.port_login,
            warnings: reach.warnings,
            is_beside_daemon: reach.is_beside_daemon,
            hosts: loader.hosts(),
            socket: reach.socket,
            owner_origin: loader.origin("chown"),
            tls: loader.tls(),
            allow: loader.allow(),
            whitelist: loader.whitelist(),
            persist: loader.persist(),
            log_level: loader.log_level(),
            log_format: loader.log_format(),
        };
        Draft {
            daemon_conf: loader.conf,
            daemon,
            include,
            settings,
            mistakes: loader.mistakes,
            notes: loader.notes,
        }
    }

    /// The whole of it.
    ///
    /// # Errors
    /// All mistakes at once.
    pub fn finish(self) -> Result<Config, ConfigErrors> {
        match (self.daemon_conf, self.daemon, self.include) {
            (Some(daemon_conf), Some((daemon, credentials)), Some(include))
                if self.mistakes.is_empty() =>
            {
                Ok(Config {
                    daemon_conf,
                    daemon,
                    credentials,
                    include,
                    settings: self.settings,
                    notes: self.notes,
                })
            }
            _ => Err(ConfigErrors(self.mistakes)),
        }
    }
}

/// A name for a generated file that matches the pattern `file_pattern` of `[include] files`, such as
/// `zz-twiddler-STEM.conf` for `*.conf`; without the dash where `stem` is empty.
///
/// None where no such name can match, or only one that begins with a dot, which stands for files
/// that are not to be read yet.
pub fn generated_name(file_pattern: &str, stem: &str) -> Option<String> {
    let dash = if stem.is_empty() { "" } else { "-" };
    let mut ours = Some(format!("{GENERATED}{dash}{stem}"));
    let mut name = String::new();
    let mut rest = file_pattern;
    while let Some(first) = rest.chars().next() {
        let piece = &rest[..piece_len(rest)];
        rest = &rest[piece.len()..];
        match first {
            '*' => name.push_str(&ours.take().unwrap_or_default()),
            _ if piece.len() > 1 || has_wildcard(piece) => name.push(fitting_letter(piece)?),
            literal => name.push(literal),
        }
    }
    let usable = ours.is_none() && !name.starts_with('.') && !name.contains(['/', '\0']);
    let usable = usable && name.len() <= MAX_NAME_BYTES && name_matches(file_pattern, &name);
    usable.then_some(name)
}

/// How long the first piece of a pattern is: a set in brackets, or one character.
fn piece_len(pattern: &str) -> usize {
    let one = pattern.chars().next().map_or(0, char::len_utf8);
    if !pattern.starts_with('[') {
        return one;
    }
    let inner = pattern[one..].strip_prefix('!').unwrap_or(&pattern[one..]);
    // The first character of a set is never its end.
    let start = pattern.len() - inner.len() + inner.chars().next().map_or(0, char::len_utf8);
    pattern[start..]
        .find(']')
        .map_or(one, |end| start + end + 1)
}

/// A character that a set in brackets, `?` or an unclosed bracket matches; late ones first, so that
/// the name sorts late.
fn fitting_letter(piece: &str) -> Option<char> {
    let plain = ('a'..='z')
        .rev()
        .chain(('A'..='Z').rev())
        .chain(('0'..='9').rev());
    let others = (' '..='~')
        .rev()
        .filter(|letter| !letter.is_ascii_alphanumeric() && !"/.".contains(*letter));
    let own = piece.chars();
    let mut letters = plain.chain(others).chain(own).chain(['.']);
    letters.find(|letter| {
        // The dot alone would be hidden from a set; behind another letter it is like any other.
        name_matches(&format!("x{piece}"), &format!("x{letter}"))
    })
}

/// A value as it was given.
struct Given {
    text: String,
    origin: Origin,
}

impl Given {
    fn wrong(&self, reason: String) -> ConfigError {
        ConfigError::BadValue {
            origin: self.origin.clone(),
            reason,
        }
    }

    /// The values of a list, which commas separate, or the lines of the file.
    fn items(&self) -> impl Iterator<Item = &str> {
        self.text
            .split([',', '\n'])
            .map(str::trim)
            .filter(|item| !item.is_empty())
    }
}

/// What was typed for a key; more than one value joined by commas.
fn typed(args: &ServeArgs, key: &str) -> Option<String> {
    match key {
        "listen" => (!args.listen.is_empty()).then(|| args.listen.join(",")),
        "supervisord" => args.supervisord.clone(),
        "include_dir" => args
            .include_dir
            .as_ref()
            .map(|dir| dir.to_string_lossy().into_owned()),
        "username" => args.username.clone(),
        "password" => args.password.clone(),
        "password_file" => args
            .password_file
            .as_ref()
            .map(|path| path.to_string_lossy().into_owned()),
        "allow_open" => args.allow_open.clone(),
        "hosts" => args.hosts.clone(),
        "chmod" => args.chmod.clone(),
        "chown" => args.chown.clone(),
        "tls_cert" => args
            .tls_cert
            .as_ref()
            .map(|path| path.to_string_lossy().into_owned()),
        "tls_key" => args
            .tls_key
            .as_ref()
            .map(|path| path.to_string_lossy().into_owned()),
        "allow" => args.allow.clone(),
        "whitelist" => args.whitelist.clone(),
        "persist" => args.persist.clone(),
        "log_level" => args.log_level.clone(),
        "log_format" => args.log_format.clone(),
        _ => None,
    }
}

/// The three sources, and the mistakes found in them so far.
struct Loader<'a> {
    args: &'a ServeArgs,
    env: &'a Environment<'a>,
    conf: Option<DaemonConf>,
    mistakes: Vec<ConfigError>,
    notes: Vec<String>,
}

impl Loader<'_> {
    /// The value of a key from the best source that has it. An empty variable counts as not set:
    /// that is how compose files and unit files pass on what they do not have.
    fn given(&self, key: &'static str) -> Option<Given> {
        if let Some(text) = typed(self.args, key) {
            return Some(Given {
                text,
                origin: Origin::CommandLine(key),
            });
        }
        if let Some(text) = (self.env)(&variable(key)).filter(|text| !text.is_empty()) {
            return Some(Given {
                text,
                origin: Origin::Environment(key),
            });
        }
        let set = self
            .conf
            .as_ref()?
            .twiddler
            .iter()
            .find(|set| set.key == key)?;
        let origin = Origin::File {
            file: set.file.clone(),
            key,
        };
        Some(Given {
            text: set.value.clone(),
            origin,
        })
    }

    /// Where a key was set; the option where it was not.
    fn origin(&self, key: &'static str) -> Origin {
        self.given(key)
            .map_or(Origin::CommandLine(key), |given| given.origin)
    }

    fn keep<T>(&mut self, result: Result<T, ConfigError>) -> Option<T> {
        result.map_err(|mistake| self.mistakes.push(mistake)).ok()
    }

    fn read_file(&mut self) {
        let file = self.file();
        let Some(file) = self.keep(file) else { return };
        let inspection = conf::inspect(&file, self.env).map_err(ConfigError::from);
        let Some(Inspection { conf, mistakes }) = self.keep(inspection) else {
            return;
        };
        self.conf = Some(conf);
        // Who says where supervisord listens need not have it in the file.
        let told = self.given("supervisord").is_some();
        let mistakes = mistakes
            .into_iter()
            .filter(|mistake| !(told && matches!(mistake, ConfError::NoServer { .. })));
        self.mistakes.extend(mistakes.map(ConfigError::from));
        let unplaced = self.conf.iter().flat_map(|conf| &conf.unplaced);
        let unplaced = unplaced.filter(|_| !told);
        let needed = unplaced.map(|server| ConfError::Variable(server.missing.clone()).into());
        self.mistakes.extend(needed.collect::<Vec<ConfigError>>());
    }

    fn file(&self) -> Result<PathBuf, ConfigError> {
        if let Some(path) = &self.args.config {
            return Ok(path.clone());
        }
        if let Some(given) = self.given(CONFIG) {
            return Ok(given.text.into());
        }
        let searched = conf::search();
        let found = searched.iter().find(|path| path.exists()).cloned();
        found.ok_or(ConfigError::NoFile { searched })
    }

    fn check_keys(&mut self) {
        let keys = self.conf.iter().flat_map(|conf| &conf.twiddler);
        let unknown =
            keys.filter(|set| !KEYS.contains(&&*set.key))
                .map(|set| ConfigError::UnknownKey {
                    file: set.file.clone(),
                    key: set.key.clone(),
                    nearest: nearest(&set.key, KEYS),
                });
        self.mistakes.extend(unknown.collect::<Vec<_>>());
    }

    /// What nearly has a name that counts, and a proxy that its own callers may stop.
    fn note_typos(&mut self) {
        let names = std::env::vars_os().map(|(name, _)| name.to_string_lossy().into_owned());
        let names: Vec<String> = names.collect();
        self.notes.extend(typos::variables(names.iter()));
        let Some(conf) = &self.conf else { return };
        self.notes.extend(typos::sections(conf));
        self.notes.extend(conf.proxies.iter().map(|section| format!(
            "{}: [{section}] runs twiddler below the supervisord that it is in front of; `restart all` and `stop all` through it stop it before the rest is started again; run it as a service of the system",
            conf.file.display()
        )));
    }

    /// The addresses that are written; none where there is no such line.
    fn listen(&mut self) -> Option<Vec<ListenAddr>> {
        let given = self.given("listen")?;
        let parsed: Vec<_> = given
            .items()
            .map(|item| ListenAddr::parse(item).map_err(|reason| given.wrong(reason)))
            .collect();
        if parsed.is_empty() {
            self.mistakes
                .push(given.wrong(format!("there is no address; write {DEFAULT_LISTEN}")));
        }
        let mut addresses: Vec<ListenAddr> = Vec::new();
        for address in parsed {
            let Some(address) = self.keep(address) else {
                continue;
            };
            let other = addresses
                .iter()
                .find(|other| overlap::is_included(other, &address));
            match other {
                Some(other) if *other == address => {}
                Some(other) => self.mistakes.push(given.wrong(format!(
                    "{address} and {other} are one place; leave one of them out"
                ))),
                None => addresses.push(address),
            }
        }
        Some(addresses)
    }

    /// A proxy where the daemon is to listen would talk to itself.
    fn check_own_address(&mut self, listen: &[ListenAddr], daemon: Option<&DaemonAddress>) {
        let Some(daemon) = daemon else { return };
        let servers = self.conf.iter().flat_map(|conf| &conf.servers);
        let named = self.given("supervisord").map(|given| given.origin);
        let owner = match (
            &named,
            servers.clone().find(|server| server.address == *daemon),
        ) {
            (None, Some(server)) => format!("[{}]", server.section),
            (Some(origin), _) => origin.to_string(),
            (None, None) => "its file".to_owned(),
        };
        // Of other places in its file, only where the file is known to be about this machine.
        let others = servers
            .filter(|_| named.is_none())
            .map(|server| (&server.address, format!("[{}]", server.section)));
        let places: Vec<_> = [(daemon, owner)].into_iter().chain(others).collect();
        let origin = self.origin("listen");
        for address in listen {
            let taken = places
                .iter()
                .find(|(place, _)| overlap::is_daemons(address, place));
            if let Some((_, owner)) = taken {
                self.mistakes.push(ConfigError::BadValue {
                    origin: origin.clone(),
                    reason: format!(
                        "{address} is where supervisord listens, by {owner}; choose another address"
                    ),
                });
            }
        }
    }

    /// Where the daemon is, and what to present to it. Where nothing says so, the mistake has been
    /// reported with the file.
    fn daemon(&mut self) -> Option<(DaemonAddress, Option<Credentials>)> {
        let named = self
            .given("supervisord")
            .map(|given| DaemonAddress::parse(&given.text).map_err(|reason| given.wrong(reason)));
        let named = match named {
            Some(address) => Some(self.keep(address)?),
            None => None,
        };
        let servers = self
            .conf
            .as_ref()
            .map(|conf| &*conf.servers)
            .unwrap_or_default();
        let unplaced = self.conf.iter().flat_map(|conf| &conf.unplaced);
        let credentials = match &named {
            Some(address) => credentials_for(servers, unplaced, address),
            None => servers
                .first()
                .and_then(|server| server.credentials.clone()),
        };
        let address = named.or_else(|| servers.first().map(|server| server.address.clone()))?;
        Some((address, credentials))
    }

    fn include(&mut self) -> Option<IncludeDir> {
        let conf = self.conf.as_ref()?;
        let example = format!("{}/conf.d/*.conf", conf.here.display());
        let needed = conf.unplaced_include.iter();
        let needed = needed.map(|pattern| ConfError::Variable(pattern.missing.clone()).into());
        let needed: Vec<ConfigError> = needed.collect();
        let given = self.given("include_dir");
        if given.is_none() && conf.include.is_empty() && needed.is_empty() {
            // An [include] whose `files` is wrong or missing has been reported with the file.
            let reported = self.mistakes.iter().any(is_about_include);
            if !reported {
                self.mistakes.push(ConfigError::NoInclude {
                    file: conf.file.clone(),
                    example,
                });
            }
            return None;
        }
        let chosen = match given {
            Some(given) => named_include_dir(conf, &given),
            None => first_include_dir(conf).map_err(|mut mistakes| {
                mistakes.extend(needed);
                mistakes
            }),
        };
        chosen
            .map_err(|mistakes| self.mistakes.extend(mistakes))
            .ok()
    }

    /// The proxy's own credentials. Whoever has them gets what the daemon asks for, so that must be
    /// known.
    fn login(&mut self, asked: Option<&mut Credentials>) -> Option<Login> {
        let named = |given: &Given| !given.text.is_empty();
        let username = self.given("username").filter(named);
        let password = self.password();
        let password = self.keep(password)?;
        let (username, password) = match (username, password) {
            (Some(username), Some(password)) => (username, password),
            (None, None) => return None,
            (Some(given), None) => {
                self.mistakes.push(given.wrong(
                    "there is no password; write username and password, or neither".to_owned(),
                ));
                return None;
            }
            (None, Some(given)) => {
                self.mistakes.push(given.wrong(
                    "there is no username; write username and password, or neither".to_owned(),
                ));
                return None;
            }
        };
        if username.text.contains(':') {
            let reason = "a user name has no colon; write another".to_owned();
            self.mistakes.push(username.wrong(reason));
            return None;
        }
        if let Some(asked) = asked.filter(|asked| !asked.can_be_presented()) {
            let digest = Login::new(&asked.username, &asked.password);
            let login = Login::new(&username.text, &password.text);
            if asked.is_unread {
                // The option says what the file does not. The daemon judges whether it is right.
                if login.is_ok_and(|login| login.is_plain()) {
                    *asked = Credentials::new(username.text.clone(), password.text.clone());
                } else {
                    self.mistakes.push(password.wrong(
                        "supervisord asks for a password that its file takes from a variable that is not set here, and a digest cannot be presented; write that password in plain text".to_owned(),
                    ));
                }
            } else if digest.is_ok_and(|digest| digest.is(&username.text, &password.text)) {
                // The same in plain text, which can be presented.
                asked.password = password.text.clone();
            } else {
                self.mistakes.push(username.wrong(
                    "supervisord asks for a password of which its file has only the digest, so it cannot be presented; write that username and password in [twiddler], or the password in plain text in supervisord's section".to_owned(),
                ));
            }
        }
        let login =
            Login::new(&username.text, &password.text).map_err(|reason| password.wrong(reason));
        self.keep(login)
    }

    /// The password, from `password` or from the file that `password_file` names: of two sources the
    /// one that goes before counts.
    fn password(&self) -> Result<Option<Given>, ConfigError> {
        let named = |given: &Given| !given.text.is_empty();
        let written = self.given("password").filter(named);
        let Some(file) = self.given("password_file").filter(named) else {
            return Ok(written);
        };
        match written {
            Some(written) if written.origin.rank() == file.origin.rank() => Err(file.wrong(
                "there is a password beside it; write password or password_file".to_owned(),
            )),
            Some(written) if written.origin.rank() < file.origin.rank() => Ok(Some(written)),
            _ => password_file::read(&self.path(&file))
                .map(|text| {
                    let origin = file.origin.clone();
                    Some(Given { text, origin })
                })
                .map_err(|reason| file.wrong(reason)),
        }
    }

    /// What is wrong with a password that was typed: the arguments of a process are for all to read.
    fn shown_password(&self) -> Option<String> {
        self.args.password.as_ref().map(|_| {
            "every account of this machine can read --password in the list of processes; write it into TWIDDLER_PASSWORD, or write --password-file PATH".to_owned()
        })
    }

    /// Who can reach the proxy: its addresses, and what stands before them. An address that opens
    /// what the daemon keeps shut is a mistake, unless that is meant.
    fn reach(
        &mut self,
        listen: Option<Vec<ListenAddr>>,
        socket: WrittenAccess,
        daemon: Option<&(DaemonAddress, Option<Credentials>)>,
        has_login: bool,
    ) -> Reach {
        let meant = self.read("allow_open", false, "true or false", boolean);
        let mut reach = Reach {
            socket: socket.over(SocketAccess::default()),
            ..Reach::default()
        };
        let Some((address, credentials)) = daemon else {
            reach.listen = listen.unwrap_or_default();
            return reach;
        };
        let servers = self.conf.as_ref().map(|conf| conf.servers.clone());
        let servers = servers.unwrap_or_default();
        let upstream = Upstream {
            servers: &servers,
            address,
            credentials: credentials.as_ref(),
        };
        let exposure = upstream.exposure();
        if let Barrier::Port(asked) = &exposure.barrier {
            // A digest that is none is a mistake that the daemon finds before us.
            reach.port_login = Login::new(&asked.username, &asked.password).ok();
        }
        let server = servers.iter().find(|server| server.address == *address);
        reach.listen = match (listen, address) {
            (Some(listen), _) => self.closed(listen, &upstream, server, meant || has_login),
            (None, DaemonAddress::Unix(daemons)) if !exposure.port_by_default => {
                reach.is_beside_daemon = true;
                reach.socket = socket.over(listen::access_of(daemons, server));
                self.beside(daemons).into_iter().collect()
            }
            (None, _) => vec![ListenAddr::Tcp(DEFAULT_LISTEN)],
        };
        if !has_login {
            reach.warnings = opened(&reach.listen, &upstream, server);
        }
        reach.warnings.extend(self.shown_password());
        reach
    }

    /// These addresses; with a mistake for each that opens what the daemon keeps shut, unless that
    /// is `allowed`.
    fn closed(
        &mut self,
        listen: Vec<ListenAddr>,
        upstream: &Upstream<'_>,
        server: Option<&HttpServer>,
        allowed: bool,
    ) -> Vec<ListenAddr> {
        let given = self.given("listen").filter(|_| !allowed);
        let is_for_all = is_for_all(upstream.address, server);
        for address in listen.iter().filter(|_| given.is_some()) {
            if let (Some(guard), Some(given)) = (upstream.keeps_out(address, is_for_all), &given) {
                let (others, instead) = match address.is_for_others() {
                    true => ("callers", "listen on 127.0.0.1 or a unix socket"),
                    false => (
                        "accounts of this machine",
                        "listen = unix:///run/twiddler/twiddler.sock",
                    ),
                };
                self.mistakes.push(given.wrong(format!(
                    "{address} would let in {others} that supervisord keeps out ({guard}); write username = NAME and password = PASSWORD in [twiddler], or {instead}, or --allow-open if all who reach that address may run commands here"
                )));
            }
        }
        listen
    }

    /// The socket beside the daemon's, where there can be one.
    fn beside(&mut self, daemons: &Path) -> Option<ListenAddr> {
        let made = listen::beside(daemons).map_err(|reason| {
            let file = self.conf.as_ref().map(|conf| conf.file.clone());
            ConfigError::NoListen {
                file: file.unwrap_or_default(),
                reason,
            }
        });
        self.keep(made).map(ListenAddr::Unix)
    }

    fn hosts(&mut self) -> Vec<Site> {
        let Some(given) = self.given("hosts") else {
            return Vec::new();
        };
        let sites = given.items().map(Site::parse);
        sites
            .filter_map(|site| self.keep(site.map_err(|reason| given.wrong(reason))))
            .collect()
    }

    fn socket(&mut self) -> WrittenAccess {
        let mode = self.read("chmod", None, "octal digits such as 0770", |text| {
            socket_mode(text).map(Some)
        });
        let someone = "a user, or user:group, that exists here";
        let owner = self.read("chown", None, someone, |text| owner(text).map(Some));
        WrittenAccess { mode, owner }
    }

    fn tls(&mut self) -> Option<TlsFiles> {
        match (self.given("tls_cert"), self.given("tls_key")) {
            (Some(cert), Some(key)) => Some(TlsFiles {
                cert: self.path(&cert),
                cert_origin: cert.origin,
                key: self.path(&key),
                key_origin: key.origin,
            }),
            (Some(given), None) => {
                self.mistakes.push(given.wrong(
                    "there is no tls_key; write where the key of the certificate is".to_owned(),
                ));
                None
            }
            (None, Some(given)) => {
                self.mistakes.push(given.wrong(
                    "there is no tls_cert; write where the certificate of the key is".to_owned(),
                ));
                None
            }
            (None, None) => None,
        }
    }

    /// A path, which in the file is relative to the file.
    fn path(&self, given: &Given) -> PathBuf {
        match (&given.origin, &self.conf) {
            (Origin::File { .. }, Some(conf)) => conf.here.join(given.text.trim()),
            _ => given.text.trim().into(),
        }
    }

    fn allow(&mut self) -> Option<Allow> {
        let given = self.given("allow")?;
        given.items().next()?;
        let allow = Allow::parse(given.items()).map_err(|reason| given.wrong(reason));
        self.keep(allow)
    }

    fn whitelist(&mut self) -> Vec<String> {
        let Some(given) = self.given("whitelist") else {
            return Vec::new();
        };
        let mut names = Vec::new();
        for item in given.items() {
            let name = item.strip_prefix("twiddler.").unwrap_or(item);
            match METHODS.contains(&name) {
                true => names.push(name.to_owned()),
                false => self.mistakes.push(given.wrong(format!(
                    "`{item}` is no method of twiddler; write {}",
                    instead(nearest(name, METHODS), &METHODS)
                ))),
            }
        }
        names
    }

    fn persist(&mut self) -> bool {
        self.read("persist", false, "true or false", boolean)
    }

    fn log_level(&mut self) -> Verbosity {
        self.read(
            "log_level",
            DEFAULT_LOG_LEVEL,
            "error, warn, info, debug or trace",
            Verbosity::parse,
        )
    }

    fn log_format(&mut self) -> LogFormat {
        self.read(
            "log_format",
            DEFAULT_LOG_FORMAT,
            "text or json",
            LogFormat::parse,
        )
    }

    /// A value that is one of a few words.
    fn read<T>(
        &mut self,
        key: &'static str,
        default: T,
        choices: &str,
        parse: impl Fn(&str) -> Option<T>,
    ) -> T {
        let Some(given) = self.given(key) else {
            return default;
        };
        parse(given.text.trim()).unwrap_or_else(|| {
            self.mistakes.push(given.wrong(format!(
                "`{}` is not understood; write {choices}",
                given.text
            )));
            default
        })
    }
}

/// Who can reach the proxy.
#[derive(Default)]
struct Reach {
    listen: Vec<ListenAddr>,
    socket: SocketAccess,
    port_login: Option<Login>,
    is_beside_daemon: bool,
    warnings: Vec<String>,
}

/// What is written of mode and owner of the proxy's sockets.
struct WrittenAccess {
    mode: Option<u32>,
    owner: Option<(Option<u32>, Option<u32>)>,
}

impl WrittenAccess {
    /// What is written goes before what would be without.
    fn over(&self, other: SocketAccess) -> SocketAccess {
        let (user, group) = self.owner.unwrap_or((other.user, other.group));
        SocketAccess {
            mode: self.mode.unwrap_or(other.mode),
            user,
            group,
            like_daemons: other.like_daemons && self.owner.is_none(),
        }
    }
}

/// A warning for each address that opens what the daemon keeps shut.
fn opened(
    listen: &[ListenAddr],
    upstream: &Upstream<'_>,
    server: Option<&HttpServer>,
) -> Vec<String> {
    let is_for_all = is_for_all(upstream.address, server);
    let opened = listen
        .iter()
        .filter(|address| upstream.keeps_out(address, is_for_all).is_some());
    let opened = opened.map(|address| {
        format!("{address} is open: whoever reaches it can run commands as supervisord's user")
    });
    opened.collect()
}

/// Whether every account may open the daemon's socket.
fn is_for_all(daemon: &DaemonAddress, server: Option<&HttpServer>) -> bool {
    matches!(daemon, DaemonAddress::Unix(socket) if listen::is_for_all(socket, server))
}

/// The mode of a socket, as the file has it.
fn socket_mode(text: &str) -> Option<u32> {
    let digits = text.trim();
    let digits = digits.strip_prefix("0o").unwrap_or(digits);
    u32::from_str_radix(digits, 8)
        .ok()
        .filter(|mode| *mode <= 0o777)
}

/// The owner of a socket, as the file has it: a user, and perhaps a group.
fn owner(text: &str) -> Option<(Option<u32>, Option<u32>)> {
    let (user, group) = text
        .trim()
        .split_once(':')
        .map_or((text.trim(), None), |(user, group)| (user, Some(group)));
    let group = match group {
        Some(group) => Some(group_id(group)?),
        None => None,
    };
    Some((Some(user_id(user)?), group))
}

fn user_id(name: &str) -> Option<u32> {
    let named = || {
        nix::unistd::User::from_name(name)
            .ok()
            .flatten()
            .map(|user| user.uid.as_raw())
    };
    name.parse().ok().or_else(named)
}

fn group_id(name: &str) -> Option<u32> {
    let named = || {
        nix::unistd::Group::from_name(name)
            .ok()
            .flatten()
            .map(|group| group.gid.as_raw())
    };
    name.parse().ok().or_else(named)
}

fn is_about_include(mistake: &ConfigError) -> bool {
    matches!(mistake, ConfigError::Daemon(ConfError::Section { section, .. }) if section == "include")
}

/// What fits an address: the credentials of the section of this address; else of one whose address
/// is not known and may be this; else of that of [`server_for`].
fn credentials_for<'a>(
    servers: &[HttpServer],
    mut unplaced: impl Iterator<Item = &'a UnplacedServer>,
    address: &DaemonAddress,
) -> Option<Credentials> {
    let fitting = server_for(servers, address);
    let same = fitting.filter(|server| is_same(&server.address, address));
    match (same, unplaced.find(|server| server.may_be_at(address))) {
        (None, Some(unplaced)) => unplaced.credentials.clone(),
        _ => fitting.and_then(|server| server.credentials.clone()),
    }
}

/// The section whose credentials fit an address: the one of this address; else, as a proxy in
/// another container sees other hosts and directories, one with the same port or socket name; else
/// the first that has any.
fn server_for<'a>(servers: &'a [HttpServer], address: &DaemonAddress) -> Option<&'a HttpServer> {
    let same = servers
        .iter()
        .find(|server| is_same(&server.address, address));
    let alike = || {
        servers
            .iter()
            .find(|server| is_alike(&server.address, address))
    };
    let any = || {
        servers
            .iter()
            .find(|server| usable_credentials(server).is_some())
    };
    same.or_else(alike).or_else(any)
}

fn is_same(one: &DaemonAddress, other: &DaemonAddress) -> bool {
    let host = |host: &str| {
        if host == "localhost" {
            "127.0.0.1".to_owned()
        } else {
            host.to_owned()
        }
    };
    match (one, other) {
        (DaemonAddress::Tcp { host: a, port: p }, DaemonAddress::Tcp { host: b, port: q }) => {
            p == q && host(a) == host(b)
        }
        _ => one == other,
    }
}

fn is_alike(one: &DaemonAddress, other: &DaemonAddress) -> bool {
    match (one, other) {
        (DaemonAddress::Tcp { port: p, .. }, DaemonAddress::Tcp { port: q, .. }) => p == q,
        (DaemonAddress::Unix(p), DaemonAddress::Unix(q)) => p.file_name() == q.file_name(),
        _ => false,
    }
}

fn usable_credentials(server: &HttpServer) -> Option<&Credentials> {
    server
        .credentials
        .as_ref()
        .filter(|credentials| credentials.can_be_presented())
}

/// The first pattern through which the daemon would see files of ours, or why none is of use.
fn first_include_dir(conf: &DaemonConf) -> Result<IncludeDir, Vec<ConfigError>> {
    let mut mistakes = Vec::new();
    for pattern in &conf.include {
        match usable_pattern(pattern) {
            Ok(dir) => return Ok(dir),
            Err(reason) => mistakes.push(unusable(conf, pattern, reason)),
        }
    }
    Err(mistakes)
}

fn unusable(conf: &DaemonConf, pattern: &IncludePattern, reason: String) -> ConfigError {
    let (file, pattern) = (conf.file.clone(), pattern.pattern.clone());
    ConfigError::IncludePattern {
        file,
        pattern,
        reason,
    }
}

fn usable_pattern(pattern: &IncludePattern) -> Result<IncludeDir, String> {
    let dir = &pattern.dir;
    if has_wildcard(&dir.to_string_lossy()) {
        let fixed = dir
            .ancestors()
            .find(|dir| !has_wildcard(&dir.to_string_lossy()));
        return Err(match matching_dir(dir) {
            Some(dir) => {
                let dir = dir.display();
                format!(
                    "its directory is a pattern itself; write --include-dir {dir}, and create {dir} if there is none"
                )
            }
            None => format!(
                "its directory is a pattern itself; write {} beside it",
                fixed.unwrap_or(dir).join("conf.d/*.conf").display()
            ),
        });
    }
    if !is_fitting(pattern) {
        return Err(no_place(pattern));
    }
    check_dir(dir)?;
    Ok(IncludeDir {
        dir: dir.clone(),
        file_pattern: pattern.file_part().to_owned(),
    })
}

/// A directory that matches a pattern of directories.
fn matching_dir(pattern: &Path) -> Option<PathBuf> {
    let named = |part: Component<'_>| {
        let text = part.as_os_str().to_str()?;
        match has_wildcard(text) {
            true if name_matches(text, "main") => Some("main".to_owned()),
            true => generated_name(text, ""),
            false => Some(text.to_owned()),
        }
    };
    pattern.components().map(named).collect()
}

/// What most patterns of `[include] files` are in their directory.
const USUAL_PATTERN: &str = "*.conf";

/// The directory that was named, with the pattern that is most likely meant for it.
fn named_include_dir(conf: &DaemonConf, given: &Given) -> Result<IncludeDir, Vec<ConfigError>> {
    let dir = match given.origin {
        // As the daemon has it for its own relative patterns.
        Origin::File { .. } => conf.here.join(&given.text),
        _ => std::path::absolute(&given.text).unwrap_or_else(|_| given.text.clone().into()),
    };
    check_dir(&dir).map_err(|reason| vec![given.wrong(reason)])?;
    let fitting = || conf.include.iter().filter(|pattern| is_fitting(pattern));
    let same = fitting().find(|pattern| pattern.dir == dir);
    let alike = || fitting().find(|pattern| pattern.dir.file_name() == dir.file_name());
    let unplaced = || conf.unplaced_include.first().map(missing::file_pattern);
    let known = same.or_else(alike).map(IncludePattern::file_part);
    let file_pattern = known.map(str::to_owned).or_else(unplaced);
    let any = || Some(fitting().next()?.file_part().to_owned());
    match file_pattern.or_else(any) {
        Some(file_pattern) => Ok(IncludeDir { dir, file_pattern }),
        // supervisord may have been started with another file, or include it later.
        None if conf.include.is_empty() => Ok(IncludeDir {
            dir,
            file_pattern: USUAL_PATTERN.to_owned(),
        }),
        None => Err(conf
            .include
            .iter()
            .map(|one| unusable(conf, one, no_place(one)))
            .collect()),
    }
}

fn is_fitting(pattern: &IncludePattern) -> bool {
    generated_name(pattern.file_part(), "x").is_some()
}

fn no_place(pattern: &IncludePattern) -> String {
    let example = pattern.dir.join("*.conf");
    format!(
        "no file that twiddler writes can match it; write {} beside it",
        example.display()
    )
}

/// Whether files can be created in a directory; if not, what to do. Only trying tells: permission
/// bits say nothing of read-only mounts, access lists and privileges.
fn check_dir(dir: &Path) -> Result<(), String> {
    let shown = dir.display();
    let refused = |cause: io::Error| {
        let remedy = match cause.kind() {
            io::ErrorKind::PermissionDenied => format!(
                "as root: chgrp GROUP {shown} && chmod 2775 {shown}, with a group that twiddler's account is in"
            ),
            _ => "make it writable".to_owned(),
        };
        format!(
            "twiddler may not write to {shown} ({cause}); {remedy}, or name another directory that supervisord includes with --include-dir"
        )
    };
    match fs::metadata(dir) {
        Ok(found) if found.is_dir() => try_writing(dir).map_err(refused),
        Ok(_) => Err(format!("{shown} is not a directory; name one that is")),
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => Err(format!(
            "the directory {shown} does not exist here; create it, or write --include-dir DIR if it is elsewhere for twiddler"
        )),
        Err(cause) => Err(refused(cause)),
    }
}

/// Creates and removes an empty file whose name begins with a dot, which the daemon never reads.
fn try_writing(dir: &Path) -> io::Result<()> {
    let path = dir.join(format!(".{GENERATED}-probe-{}", std::process::id()));
    match OpenOptions::new().write(true).create_new(true).open(&path) {
        Err(cause) if cause.kind() != io::ErrorKind::AlreadyExists => return Err(cause),
        _ => {}
    }
    match fs::remove_file(&path) {
        Err(cause) if cause.kind() != io::ErrorKind::NotFound => Err(cause),
        _ => Ok(()),
    }
}

/// A truth value as supervisord takes it (`supervisor/datatypes.py`, `boolean`).
fn boolean(text: &str) -> Option<bool> {
    match &*text.to_lowercase() {
        "yes" | "true" | "on" | "1" => Some(true),
        "no" | "false" | "off" | "0" => Some(false),
        _ => None,
    }
}

impl ListenAddr {
    /// Reads `127.0.0.1:9002`, `[::1]:9002`, `localhost:9002` or `unix:///PATH`.
    ///
    /// # Errors
    /// What is wrong with it, and what to write.
    pub fn parse(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix://") {
            return match path.starts_with('/') && path.len() > 1 {
                true => Ok(Self::Unix(path.into())),
                false => Err(format!(
                    "the socket's path in `{text}` is not absolute; write unix:///run/twiddler/twiddler.sock, with three slashes"
                )),
            };
        }
        if let Some(port) = text.strip_prefix("*:").or(text.strip_prefix(':')) {
            return Err(format!(
                "`{text}` would open a port to everybody; write 127.0.0.1:{port} for this machine, or 0.0.0.0:{port} if that is meant"
            ));
        }
        // The name has two addresses, and which comes first depends on the machine.
        let local = text
            .strip_prefix("localhost:")
            .map(|port| format!("127.0.0.1:{port}"));
        local.as_deref().unwrap_or(text).parse().map(Self::Tcp).map_err(|_| {
            format!("`{text}` is not an address to listen on; write 127.0.0.1:9002, [::1]:9002 or unix:///run/twiddler/twiddler.sock")
        })
    }
}

impl ListenAddr {
    /// Whether others than this machine's users can reach it.
    pub fn is_for_others(&self) -> bool {
        match self {
            Self::Tcp(address) => !address.ip().to_canonical().is_loopback(),
            Self::Unix(_) => false,
        }
    }
}

impl fmt::Display for ListenAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "http://{address}"),
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
        }
    }
}

impl Verbosity {
    /// The level of this name, in any case.
    pub fn parse(name: &str) -> Option<Self> {
        let all = [
            Self::Error,
            Self::Warn,
            Self::Info,
            Self::Debug,
            Self::Trace,
        ];
        all.into_iter()
            .find(|level| level.name() == name.to_lowercase())
    }

    /// Its name, which tracing's filters take too.
    pub fn name(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }
}

impl LogFormat {
    /// The format of this name, in any case.
    pub fn parse(name: &str) -> Option<Self> {
        match &*name.to_lowercase() {
            "text" => Some(Self::Text),
            "json" => Some(Self::Json),
            _ => None,
        }
    }
}

impl Origin {
    /// The lower one goes before.
    fn rank(&self) -> u8 {
        match self {
            Self::CommandLine(_) => 0,
            Self::Environment(_) => 1,
            Self::File { .. } => 2,
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CommandLine(key) => write!(f, "--{}", key.replace('_', "-")),
            Self::Environment(key) => f.write_str(&variable(key)),
            Self::File { file, key } => write!(f, "{}: [twiddler] {key}", file.display()),
        }
    }
}

impl ConfigErrors {
    /// The mistakes.
    pub fn iter(&self) -> impl Iterator<Item = &ConfigError> {
        self.0.iter()
    }
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines: Vec<_> = self.iter().map(ToString::to_string).collect();
        f.write_str(&lines.join("\n"))
    }
}

impl std::error::Error for ConfigErrors {}

fn variable(key: &str) -> String {
    format!("TWIDDLER_{}", key.to_uppercase())
}

fn listed(paths: &[PathBuf]) -> String {
    let paths: Vec<_> = paths
        .iter()
        .map(|path| path.display().to_string())
        .collect();
    paths.join(", ")
}

/// What to write for a word that is not known.
fn instead(nearest: Option<&str>, known: &[&str]) -> String {
    nearest.map_or_else(|| format!("one of {}", known.join(", ")), str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generated_names_match_their_pattern() {
        for (pattern, stem, expected) in [
            ("*.conf", "1", Some("zz-twiddler-1.conf")),
            ("*.conf", "", Some("zz-twiddler.conf")),
            ("*", "1", Some("zz-twiddler-1")),
            ("**", "1", Some("zz-twiddler-1")),
            ("*.conf*", "1", Some("zz-twiddler-1.conf")),
            ("app-*.ini", "1", Some("app-zz-twiddler-1.ini")),
            ("[0-9]*.conf", "1", Some("9zz-twiddler-1.conf")),
            ("[!a-z]*.conf", "1", Some("Zzz-twiddler-1.conf")),
            ("?*.conf", "1", Some("zzz-twiddler-1.conf")),
            ("*[", "1", Some("zz-twiddler-1[")),
            ("[*", "1", Some("[zz-twiddler-1")),
            ("[]*]*", "1", Some("]zz-twiddler-1")),
            ("*[é]", "1", Some("zz-twiddler-1é")),
            ("*[.]conf", "1", Some("zz-twiddler-1.conf")),
            ("[.]*", "1", None),
            (".*.conf", "1", None),
            ("a.conf", "1", None),
            ("????", "1", None),
            ("*[z-a]", "1", None),
            ("", "1", None),
        ] {
            assert_eq!(
                generated_name(pattern, stem).as_deref(),
                expected,
                "{pattern}"
            );
        }
        assert_eq!(generated_name("*.conf", "a/b"), None);
        assert_eq!(generated_name("*.conf", &"x".repeat(MAX_NAME_BYTES)), None);
    }

    #[test]
    fn listen_addresses_are_read_and_displayed() {
        for (text, shown) in [
            ("127.0.0.1:9002", "http://127.0.0.1:9002"),
            ("localhost:0", "http://127.0.0.1:0"),
            ("[::1]:9002", "http://[::1]:9002"),
            ("unix:///run/t.sock", "unix:///run/t.sock"),
        ] {
            assert_eq!(ListenAddr::parse(text).unwrap().to_string(), shown);
        }
    }

    #[test]
    fn truth_is_told_as_supervisord_tells_it() {
        for (text, expected) in [
            ("yes", Some(true)),
            ("True", Some(true)),
            ("ON", Some(true)),
            ("1", Some(true)),
            ("no", Some(false)),
            ("false", Some(false)),
            ("off", Some(false)),
            ("0", Some(false)),
            ("y", None),
            ("", None),
            ("2", None),
        ] {
            assert_eq!(boolean(text), expected, "{text}");
        }
    }

    #[test]
    fn credentials_come_from_the_section_that_fits_best() {
        let server = |url: &str, name: Option<(&str, &str)>| HttpServer {
            section: String::new(),
            address: DaemonAddress::parse(url).unwrap(),
            credentials: name
                .map(|(name, password)| Credentials::new(name.to_owned(), password.to_owned())),
            chmod: None,
            chown: None,
        };
        let servers = [
            server("unix:///run/a.sock", None),
            server("unix:///run/b.sock", Some(("b", "{SHA}00"))),
            server("http://127.0.0.1:9001", Some(("c", "c"))),
            server("http://127.0.0.1:9003", Some(("d", "d"))),
        ];
        for (url, expected) in [
            ("unix:///run/a.sock", None),
            ("unix:///mnt/a.sock", None),
            ("unix:///run/b.sock", None),
            ("unix:///run/e.sock", Some("c")),
            ("http://localhost:9003", Some("d")),
            ("http://supervisord:9003", Some("d")),
            ("http://supervisord:80", Some("c")),
        ] {
            let server = server_for(&servers, &DaemonAddress::parse(url).unwrap());
            let name = server
                .and_then(usable_credentials)
                .map(|credentials| &*credentials.username);
            assert_eq!(name, expected, "{url}");
        }
    }
}
