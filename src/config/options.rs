//! The options. One entry defines the option of the command line with its help, the key of `[twiddler]`
//! and the environment variable.
//!
//! This module does not parse values. It records which options the command line has, because the
//! environment and the file set the others.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Arg, ArgAction, ArgMatches, Command, FromArgMatches, value_parser};

/// The only option without a key in `[twiddler]`: it names the file.
pub(super) const CONFIG: &str = "config";

/// The form of a value on the command line.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Text,
    /// Several values: the option is repeated, or commas separate them.
    List,
    Path,
    /// True without a value. A value follows after `=`.
    Flag,
}

/// One option. The key `allow_open` is the option `--allow-open` and the variable `TWIDDLER_ALLOW_OPEN`.
struct OptionSpec {
    key: &'static str,
    heading: &'static str,
    kind: Kind,
    /// The placeholder for the value in the help.
    value: &'static str,
    default: Option<&'static str>,
    help: &'static str,
}

const CONNECTION: &str = "Connection";
const ACCESS: &str = "Access";
const TLS: &str = "TLS";
const LOGGING: &str = "Logging";

#[rustfmt::skip]
const OPTIONS: [OptionSpec; 19] = [
    OptionSpec { key: CONFIG, heading: CONNECTION, kind: Kind::Path, value: "PATH", default: None,
        help: "supervisord's configuration file; otherwise searched where supervisorctl searches" },
    OptionSpec { key: "listen", heading: CONNECTION, kind: Kind::List, value: "ADDR", default: None,
        help: "Where clients connect: an address with a port, or unix:///PATH; may be given more than once \
               [default: 127.0.0.1:9002 where supervisord has a port too, else twiddler.sock beside its socket]" },
    OptionSpec { key: "supervisord", heading: CONNECTION, kind: Kind::Text, value: "URL", default: None,
        help: "Where supervisord listens: unix:///PATH or http://HOST:PORT; otherwise as the section \
               unix_http_server of its file says, else inet_http_server" },
    OptionSpec { key: "include_dir", heading: CONNECTION, kind: Kind::Path, value: "DIR", default: None,
        help: "The directory for generated files, as seen from here; otherwise the first in the include \
               section of supervisord's file that can be written to" },
    OptionSpec { key: "username", heading: ACCESS, kind: Kind::Text, value: "NAME", default: None,
        help: "A user name that callers must present to twiddler, with --password; twiddler then presents \
               supervisord's own credentials to supervisord. Otherwise supervisord checks what callers \
               present" },
    OptionSpec { key: "password", heading: ACCESS, kind: Kind::Text, value: "PASSWORD", default: None,
        help: "The password for --username: plain, {SHA}DIGEST as in supervisord.conf, or $argon2id$...; \
               every account can read it in the list of processes, so better write --password-file, the \
               variable or the file" },
    OptionSpec { key: "password_file", heading: ACCESS, kind: Kind::Path, value: "PATH", default: None,
        help: "A file that contains only the password; accounts beyond its owner and group may not read it" },
    OptionSpec { key: "allow_open", heading: ACCESS, kind: Kind::Flag, value: "BOOLEAN", default: Some("off"),
        help: "Listen without credentials for machines or accounts that supervisord keeps out: every client \
               that reaches the address can run commands" },
    OptionSpec { key: "hosts", heading: ACCESS, kind: Kind::Text, value: "NAMES", default: None,
        help: "Where browsers may find twiddler beside addresses and localhost, separated by commas: names \
               such as proxy.example.com, and behind a relay origins such as \
               `https://sup.example.com`" },
    OptionSpec { key: "chmod", heading: CONNECTION, kind: Kind::Text, value: "MODE", default: None,
        help: "The mode of unix sockets that twiddler listens on \
               [default: 0700; beside supervisord's socket, the same]" },
    OptionSpec { key: "chown", heading: CONNECTION, kind: Kind::Text, value: "OWNER", default: None,
        help: "The owner of such sockets: user or user:group" },
    OptionSpec { key: "tls_cert", heading: TLS, kind: Kind::Path, value: "PATH", default: None,
        help: "Speak TLS on TCP addresses with this certificate, or chain of them, in PEM; read again on SIGHUP" },
    OptionSpec { key: "tls_key", heading: TLS, kind: Kind::Path, value: "PATH", default: None,
        help: "The certificate's key, in PEM" },
    OptionSpec { key: "allow", heading: ACCESS, kind: Kind::Text, value: "NAMES", default: None,
        help: "The methods of all namespaces that may be called, separated by commas, such as \
               supervisor.get*; empty for all" },
    OptionSpec { key: "whitelist", heading: ACCESS, kind: Kind::Text, value: "NAMES", default: None,
        help: "The twiddler.* methods that may be called, separated by commas; empty for all. An older way; \
               --allow covers it" },
    OptionSpec { key: "persist", heading: "Behaviour", kind: Kind::Flag, value: "BOOLEAN", default: Some("off"),
        help: "Keep added groups and programs when supervisord restarts" },
    OptionSpec { key: "live_update", heading: "Behaviour", kind: Kind::Flag, value: "BOOLEAN", default: Some("off"),
        help: "Let supervisorctl update restart only processes that changed" },
    OptionSpec { key: "log_level", heading: LOGGING, kind: Kind::Text, value: "LEVEL", default: Some("info"),
        help: "How much to log on standard error: error, warn, info, debug or trace" },
    OptionSpec { key: "log_format", heading: LOGGING, kind: Kind::Text, value: "FORMAT", default: Some("text"),
        help: "How to log it: text or json" },
];

/// The keys of `[twiddler]`.
pub(super) fn keys() -> Vec<&'static str> {
    let keys = OPTIONS.iter().map(|option| option.key);
    keys.filter(|key| *key != CONFIG).collect()
}

/// The default of an option; `None` if it has none.
pub(super) fn default_of(key: &str) -> Option<&'static str> {
    OPTIONS.iter().find(|option| option.key == key)?.default
}

/// The name of an option on the command line, without `--`.
pub(super) fn long(key: &str) -> String {
    key.replace('_', "-")
}

/// The environment variable of an option.
pub(super) fn variable(key: &str) -> String {
    format!("TWIDDLER_{}", key.to_uppercase())
}

/// The options that take a value only after `=`, with `--`.
pub fn flags() -> impl Iterator<Item = String> {
    let flags = OPTIONS.iter().filter(|option| option.kind == Kind::Flag);
    flags.map(|option| format!("--{}", long(option.key)))
}

impl OptionSpec {
    fn arg(&self) -> Arg {
        let arg = Arg::new(self.key)
            .long(long(self.key))
            .help(self.full_help())
            .help_heading(self.heading)
            .value_name(self.value);
        let arg = match self.key {
            CONFIG => arg.short('c'),
            _ => arg,
        };
        match self.kind {
            Kind::Text => arg,
            Kind::List => arg.action(ArgAction::Append),
            Kind::Path => arg.value_parser(value_parser!(PathBuf)),
            Kind::Flag => arg
                .num_args(0..=1)
                .require_equals(true)
                .default_missing_value("true"),
        }
    }

    /// Its help, with the default and the environment variable.
    fn full_help(&self) -> String {
        let default = self.default.map(|text| format!(" [default: {text}]"));
        let commas = match self.kind {
            Kind::List => ", separated by commas",
            _ => "",
        };
        format!(
            "{}{} [env: {}{commas}]",
            self.help,
            default.unwrap_or_default(),
            variable(self.key)
        )
    }
}

/// The options of `serve` and `check` on the command line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServeArgs(BTreeMap<&'static str, OsString>);

impl ServeArgs {
    /// Adds an option.
    #[must_use]
    pub fn with(mut self, key: &'static str, value: impl Into<OsString>) -> Self {
        self.0.insert(key, value.into());
        self
    }

    /// The value of an option on the command line; several values are joined by commas.
    pub(super) fn value(&self, key: &str) -> Option<String> {
        let value = self.0.get(key)?;
        Some(value.to_string_lossy().into_owned())
    }

    /// The path of supervisord's file on the command line.
    pub(super) fn config(&self) -> Option<PathBuf> {
        self.0.get(CONFIG).map(PathBuf::from)
    }
}

impl clap::Args for ServeArgs {
    fn augment_args(command: Command) -> Command {
        command.args(OPTIONS.iter().map(OptionSpec::arg))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for ServeArgs {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let values = OPTIONS.iter().filter_map(|option| {
            let values: Vec<_> = matches.get_raw(option.key)?.collect();
            Some((option.key, values.join(",".as_ref())))
        });
        Ok(Self(values.collect()))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        self.0.extend(Self::from_arg_matches(matches)?.0);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_options_on_the_command_line_are_set() {
        use clap::Args as _;
        let command = || ServeArgs::augment_args(Command::new("serve"));
        let parsed = |words: &[&str]| {
            let matches = command().try_get_matches_from(words).unwrap();
            ServeArgs::from_arg_matches(&matches).unwrap()
        };
        assert_eq!(parsed(&["serve"]), ServeArgs::default());
        let expected = ServeArgs::default()
            .with("config", "a.conf")
            .with("listen", "127.0.0.1:1,[::1]:2")
            .with("persist", "true")
            .with("allow_open", "");
        let line = "serve -c a.conf --listen 127.0.0.1:1 --persist --listen [::1]:2 --allow-open=";
        assert_eq!(parsed(&line.split(' ').collect::<Vec<_>>()), expected);
    }
}
