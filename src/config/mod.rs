//! What was decided: one [`Config`] from the command line, the environment and `[twiddler]`.
//!
//! Decides what each value may be, and reports all that are wrong together. Does not talk to the
//! daemon.
//!
//! A new option is an entry of `options::OPTIONS`, which has its name, help and default, and a
//! field of [`Settings`] with what reads it.

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
mod login;
mod missing;
pub mod options;
mod origin;
mod overlap;
mod password_file;
mod reach;
mod socket;
mod sources;
mod typos;
mod upstream;

/// The methods that a whitelist may name.
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
    pub include: IncludeTarget,
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
    pub include: Option<IncludeTarget>,
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
    /// The steps of `supervisorctl update` restart only what changed.
    pub live_update: bool,
    /// How much to log.
    pub log_level: Level,
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

/// How our own log is written.
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

    /// Who may come in, in front of `daemon`.
    pub fn access_rules(&self, daemon: &Daemon) -> AccessRules {
        let settings = &self.settings;
        // What the daemon asks callers for, as far as its file tells.
        let asked = self
            .credentials
            .as_ref()
            .and_then(|asked| Login::new(&asked.username, &asked.password).ok());
        let rules = AccessRules::new(
            settings.login.clone(),
            daemon.own_authorization().cloned(),
            &settings.hosts,
            daemon.is_open(),
        )
        .with_port_login(settings.port_login.clone())
        .with_daemon_login(asked);
        match settings.tls {
            Some(_) => rules.with_tls(),
            None => rules,
        }
    }
}

impl Draft {
    /// Decides what can be decided from what was typed, the environment, and supervisord's file.
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
        let login = resolver.login(daemon.as_mut().and_then(|(_, asked)| asked.as_mut()));
        let socket = resolver.socket();
        resolver.note_missing(login.is_some());
        let reach = resolver.reach(listen, socket, daemon.as_ref(), login.is_some());
        resolver.check_own_address(&reach.listen, daemon.as_ref().map(|(address, _)| address));
        let settings = Settings {
            listen: reach.listen,
            listen_origin: resolver.origin("listen"),
            login,
            port_login: reach.port_login,
            warnings: reach.warnings,
            is_beside_daemon: reach.is_beside_daemon,
            hosts: resolver.hosts(),
            socket: reach.socket,
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

impl Resolver<'_> {
    fn hosts(&mut self) -> Vec<Site> {
        let Some(raw) = self.raw("hosts") else {
            return Vec::new();
        };
        let sites = raw.items().map(Site::parse);
        sites
            .filter_map(|site| self.ok_or_record(site.map_err(|reason| raw.wrong(reason))))
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
        let allow = Allow::parse(raw.items()).map_err(|reason| raw.wrong(reason));
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
                self.mistakes.push(raw.wrong(format!(
                    "`{item}` is no method of twiddler; write {}",
                    instead(nearest(name, METHODS), &METHODS)
                )));
            }
        }
        names
    }

    fn log_level(&mut self) -> Level {
        // By name alone, although a level can be read from a number too.
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
