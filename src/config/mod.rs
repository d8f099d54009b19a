//! The configuration: one [`Config`] from the command line, the environment and `[twiddler]`.
//!
//! Parses each value and reports all mistakes together. Does not call the daemon.
//!
//! A new option needs an entry of `options::OPTIONS`, with its name, help and default, and a field of
//! [`Settings`] with the function that parses its value.

use std::path::PathBuf;

use tracing::Level;

use crate::access::AccessRules;
use crate::access::basic_auth::Login;
use crate::access::browser::Site;
use crate::access::method_policy::{Allow, Policy};
use crate::daemon::Daemon;
use crate::daemon::conf::{self, Credentials, DaemonAddress, DaemonConf, Environment};
use crate::words::nearest;

use self::error::instead;
pub use self::error::{ConfigError, ConfigErrors};
pub use self::include::{IncludeTarget, generated_name};
pub use self::listen::{DEFAULT_LISTEN, ListenAddr};
pub use self::options::ServeArgs;
pub use self::origin::Origin;
pub use self::socket::{DEFAULT_SOCKET_MODE, SocketAccess, advice as socket_advice};
use self::sources::Resolver;

mod error;
pub mod exposure;
mod include;
mod listen;
mod listeners;
mod login;
mod missing;
pub mod options;
mod origin;
mod overlap;
mod password_file;

mod socket;
mod sources;
mod typos;
mod upstream;

/// The names that `whitelist` may contain.
const METHODS: [&str; 14] = [
    "getAPIVersion",
    "getGroupNames",
    "addGroup",
    "addProcessToGroup",
    "addProgramToGroup",
    "removeProcessFromGroup",
    "removeGroup",
    "log",
    "diffConfig",
    "updateConfig",
    "getAllProgramInfo",
    "getProgramOptions",
    "updateProgram",
    "scaleProgram",
];

/// A valid configuration of `serve`.
#[derive(Clone, Debug)]
pub struct Config {
    /// supervisord's own configuration.
    pub daemon_conf: DaemonConf,
    /// supervisord's address.
    pub daemon: DaemonAddress,
    /// The credentials that supervisord requires, as far as its file shows them. The proxy cannot present a
    /// digest.
    pub credentials: Option<Credentials>,
    /// The directory for generated files.
    pub include: IncludeTarget,
    /// The options.
    pub settings: Settings,
    /// Notes about parts that are valid and most likely unintended, a sentence each.
    pub notes: Vec<String>,
}

/// A configuration that may have mistakes. `check` uses the parts that are valid.
#[derive(Debug)]
pub struct Draft {
    /// supervisord's own configuration; `None` if its file cannot be read.
    pub daemon_conf: Option<DaemonConf>,
    /// supervisord's address, and the credentials that it requires.
    pub daemon: Option<(DaemonAddress, Option<Credentials>)>,
    /// The directory for generated files.
    pub include: Option<IncludeTarget>,
    /// The options. A value that is not valid is replaced by the default.
    pub settings: Settings,
    /// All mistakes.
    pub mistakes: Vec<ConfigError>,
    /// Notes about parts that are valid and most likely unintended, a sentence each.
    pub notes: Vec<String>,
}

/// The values of the options, from all sources.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The addresses to listen on, at least one.
    pub listen: Vec<ListenAddr>,
    /// The source of `listen`.
    pub listen_origin: Origin,
    /// The credentials that the proxy itself requires of callers; `None` leaves the check to the daemon.
    pub login: Option<Login>,
    /// The credentials that the proxy requires of callers over TCP, because the daemon requires them on its
    /// own port and the proxy calls the daemon by its socket. `login` takes precedence.
    pub port_login: Option<Login>,
    /// Security warnings for each start, a sentence each.
    pub warnings: Vec<String>,
    /// Whether `listen` is the default socket beside the daemon's.
    pub is_beside_daemon: bool,
    /// The names and origins by which browsers reach the proxy, beside addresses and `localhost`.
    pub hosts: Vec<Site>,
    /// Mode, owner and group of the unix sockets.
    pub socket: SocketAccess,
    /// The source of the sockets' owner.
    pub owner_origin: Origin,
    /// Certificate and key for TCP; `None` for plain HTTP.
    pub tls: Option<TlsFiles>,
    /// The methods of all namespaces that may be called; `None` allows all.
    pub allow: Option<Allow>,
    /// The `twiddler.*` methods that may be called, without the namespace; an empty list allows all.
    pub whitelist: Vec<String>,
    /// Whether changes survive a restart of supervisord.
    pub persist: bool,
    /// Whether the steps of `supervisorctl update` restart only programs that changed.
    pub live_update: bool,
    /// The level of the log.
    pub log_level: Level,
    /// The format of the log.
    pub log_format: LogFormat,
}

impl Settings {
    /// The methods that may be called.
    pub fn policy(&self) -> Policy {
        Policy {
            allow: self.allow.clone(),
            whitelist: self.whitelist.clone(),
        }
    }
}

/// The files with certificate and key, in PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The chain of certificates, the proxy's own first.
    pub cert: PathBuf,
    /// The source of `cert`.
    pub cert_origin: Origin,
    /// The key.
    pub key: PathBuf,
    /// The source of `key`.
    pub key_origin: Origin,
}

/// The format of the proxy's log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// A line of text for each event.
    Text,
    /// A JSON object for each event.
    Json,
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

impl Config {
    /// Reads the configuration from the command line, the environment and supervisord's file.
    ///
    /// # Errors
    /// All mistakes.
    pub fn load(args: &ServeArgs) -> Result<Config, ConfigErrors> {
        Draft::load(args).finish()
    }

    /// Like [`Config::load`], with this environment.
    ///
    /// # Errors
    /// All mistakes.
    pub fn load_with_env(args: &ServeArgs, env: &Environment<'_>) -> Result<Config, ConfigErrors> {
        Draft::load_with_env(args, env).finish()
    }

    /// The access rules of the proxy in front of `daemon`.
    pub fn access_rules(&self, daemon: &Daemon) -> AccessRules {
        let settings = &self.settings;
        let daemon_login = self
            .credentials
            .as_ref()
            .and_then(|daemons| Login::new(&daemons.username, &daemons.password).ok());
        let rules = AccessRules::new(
            settings.login.clone(),
            daemon.own_authorization().cloned(),
            &settings.hosts,
            daemon.is_open(),
        )
        .with_port_login(settings.port_login.clone())
        .with_daemon_login(daemon_login);
        match settings.tls {
            Some(_) => rules.with_tls(),
            None => rules,
        }
    }
}

impl Draft {
    /// Reads the configuration from the command line, the environment and supervisord's file.
    pub fn load(args: &ServeArgs) -> Draft {
        Draft::load_with_env(args, &conf::process_environment)
    }

    /// Like [`Draft::load`], with this environment.
    pub fn load_with_env(args: &ServeArgs, env: &Environment<'_>) -> Draft {
        let mut resolver = Resolver::new(args, env);
        resolver.read_file();
        resolver.check_keys();
        resolver.note_typos();
        let listen = resolver.listen();
        let mut daemon = resolver.daemon();
        let include = resolver.include();
        let credentials = daemon.as_mut().and_then(|(_, daemons)| daemons.as_mut());
        let login = resolver.login(credentials);
        let socket = resolver.socket();
        resolver.note_missing(login.is_some());
        let listeners = resolver.listeners(listen, socket, daemon.as_ref(), login.is_some());
        let daemon_address = daemon.as_ref().map(|(address, _)| address);
        resolver.check_own_address(&listeners.listen, daemon_address);
        let settings = Settings {
            listen: listeners.listen,
            listen_origin: resolver.origin("listen"),
            login,
            port_login: listeners.port_login,
            warnings: listeners.warnings,
            is_beside_daemon: listeners.is_beside_daemon,
            hosts: resolver.hosts(),
            socket: listeners.socket,
            owner_origin: resolver.origin("chown"),
            tls: resolver.tls(),
            allow: resolver.allow(),
            whitelist: resolver.whitelist(),
            persist: resolver.is_on("persist"),
            live_update: resolver.is_on("live_update"),
            log_level: resolver.log_level(),
            log_format: resolver.log_format(),
        };
        Draft {
            daemon_conf: resolver.conf,
            daemon,
            include,
            settings,
            mistakes: resolver.mistakes,
            notes: resolver.notes,
        }
    }

    /// The configuration, if it has no mistakes.
    ///
    /// # Errors
    /// All mistakes.
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

impl Resolver<'_> {
    fn hosts(&mut self) -> Vec<Site> {
        let Some(raw) = self.raw("hosts") else {
            return Vec::new();
        };
        let sites = raw.items().map(Site::parse);
        sites
            .filter_map(|site| self.ok_or_record(site.map_err(|reason| raw.error(reason))))
            .collect()
    }

    fn tls(&mut self) -> Option<TlsFiles> {
        let lacks = [
            "there is no tls_key; write where the key of the certificate is",
            "there is no tls_cert; write where the certificate of the key is",
        ];
        let (cert, key) = self.pair(self.raw("tls_cert"), self.raw("tls_key"), lacks)?;
        Some(TlsFiles {
            cert: self.path(&cert),
            cert_origin: cert.origin,
            key: self.path(&key),
            key_origin: key.origin,
        })
    }

    fn allow(&mut self) -> Option<Allow> {
        let raw = self.raw("allow")?;
        raw.items().next()?;
        let allow = Allow::parse(raw.items()).map_err(|reason| raw.error(reason));
        self.ok_or_record(allow)
    }

    fn whitelist(&mut self) -> Vec<String> {
        let Some(raw) = self.raw("whitelist") else {
            return Vec::new();
        };
        let mut names = Vec::new();
        for item in raw.items() {
            let name = item.strip_prefix("twiddler.").unwrap_or(item);
            if METHODS.contains(&name) {
                names.push(name.to_owned());
            } else {
                self.mistakes.push(raw.error(format!(
                    "`{item}` is no method of twiddler; write {}",
                    instead(nearest(name, METHODS), &METHODS)
                )));
            }
        }
        names
    }

    fn log_level(&mut self) -> Level {
        // `Level` also parses from a number, which is not accepted.
        let level = |text: &str| text.parse().ok().filter(|_| text.parse::<u8>().is_err());
        let choices = "error, warn, info, debug or trace";
        let level = self.read("log_level", choices, level);
        level.expect("the default is a level")
    }

    fn log_format(&mut self) -> LogFormat {
        let format = self.read("log_format", "text or json", LogFormat::parse);
        format.expect("the default is a format")
    }
}
