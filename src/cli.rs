//! The command line: what can be typed, and its help.
//!
//! Knows no defaults and judges no value: an option that is not given must leave the word to the
//! environment and to `[twiddler]` in supervisord's file, and all mistakes are reported together.
//! Both are `config`'s, which also reads the variables that the help names.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::error::{ContextKind, ContextValue};
use clap::{Parser, Subcommand};

use crate::include_dir::CLEAN_UP_COMMAND;

use crate::client::args::{ClientOptions, Verb};

const AFTER_HELP: &str = "\
Example:
  twiddler check -c /etc/supervisor/supervisord.conf
  twiddler serve -c /etc/supervisor/supervisord.conf --listen unix:///run/twiddler/twiddler.sock
  supervisorctl -s unix:///run/twiddler/twiddler.sock status

`twiddler serve --help` explains the options of both commands.";

const AFTER_OPTIONS: &str = "\
Each option can also be set by the environment variable that is named with it. All but --config can \
also be set in a [twiddler] section of supervisord.conf, which supervisord ignores, by the key of \
the same name with _ for -. The command line wins over the environment, and that over the file.

Example:
  twiddler serve -c /etc/supervisor/supervisord.conf --listen unix:///run/twiddler/twiddler.sock --persist

or, with these lines in supervisord.conf, `twiddler serve` alone:
  [twiddler]
  listen = unix:///run/twiddler/twiddler.sock
  persist = true";

/// The arguments of `twiddler`.
#[derive(Debug, Parser)]
#[command(
    name = "twiddler",
    version,
    about = "Lets you add groups and programs to a running supervisord, and take them out again",
    long_about = "Stands in front of a supervisord that needs no change, passes on everything that \
        supervisorctl and other clients send, and answers the twiddler.* methods, which add groups \
        and programs while the daemon runs and take them out again.",
    after_help = AFTER_HELP,
    arg_required_else_help = true
)]
pub struct Args {
    /// Options of the client's verbs that stand before the verb.
    #[command(flatten)]
    pub client: ClientOptions,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What `twiddler` can be told to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the proxy in the foreground, until SIGTERM or SIGINT
    #[command(after_help = AFTER_OPTIONS)]
    Serve(ServeArgs),
    /// Say whether this set-up would work, and what to change if not
    #[command(after_help = AFTER_OPTIONS)]
    Check(ServeArgs),
    /// Take away what the process at the other end of the standard input has left, when it ends
    #[command(name = CLEAN_UP_COMMAND, hide = true)]
    CleanUp {
        /// The include directory
        dir: PathBuf,
        /// The name of generated files
        file_name: String,
    },
    /// Everything else is the client's.
    #[command(flatten)]
    Client(Verb),
}

/// The options of `serve` and `check`, as they were typed.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct ServeArgs {
    /// supervisord's configuration file; otherwise searched where supervisorctl searches
    /// [env: TWIDDLER_CONFIG]
    #[arg(help_heading = "Connection", short, long, value_name = "PATH")]
    pub config: Option<PathBuf>,

    /// Where clients connect: an address with a port, or unix:///PATH; may be given more than once
    /// [default: 127.0.0.1:9002 where supervisord has a port too, else twiddler.sock beside its socket]
    /// [env: TWIDDLER_LISTEN, separated by commas]
    #[arg(help_heading = "Connection", long, value_name = "ADDR")]
    pub listen: Vec<String>,

    /// Where supervisord listens: unix:///PATH or http://HOST:PORT; otherwise as the section
    /// unix_http_server of its file says, else inet_http_server [env: TWIDDLER_SUPERVISORD]
    #[arg(help_heading = "Connection", long, value_name = "URL")]
    pub supervisord: Option<String>,

    /// The directory for generated files, as seen from here; otherwise the first in the include
    /// section of supervisord's file that can be written to [env: TWIDDLER_INCLUDE_DIR]
    #[arg(help_heading = "Connection", long, value_name = "DIR")]
    pub include_dir: Option<PathBuf>,

    /// A user name that callers must present to twiddler, with --password; supervisord is then presented its
    /// own. Otherwise supervisord judges what callers present [env: TWIDDLER_USERNAME]
    #[arg(help_heading = "Access", long, value_name = "NAME")]
    pub username: Option<String>,

    /// The password that goes with it: plain, {SHA}DIGEST as in supervisord.conf, or $argon2id$...; every
    /// account can read it in the list of processes, so better write --password-file, the variable or the
    /// file [env: TWIDDLER_PASSWORD]
    #[arg(help_heading = "Access", long, value_name = "PASSWORD")]
    pub password: Option<String>,

    /// A file with the password alone, which accounts beyond its owner and group may not read
    /// [env: TWIDDLER_PASSWORD_FILE]
    #[arg(help_heading = "Access", long, value_name = "PATH")]
    pub password_file: Option<PathBuf>,

    /// Listen for other machines or accounts that supervisord keeps out, although nothing asks them for
    /// credentials: whoever reaches the address can run commands [env: TWIDDLER_ALLOW_OPEN]
    #[arg(
        help_heading = "Access",
        long,
        value_name = "BOOLEAN",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true"
    )]
    pub allow_open: Option<String>,

    /// Where browsers may find twiddler beside addresses and localhost, separated by commas: names such as
    /// proxy.example.com, and for what is seen through a relay origins such as `https://sup.example.com`
    /// [env: TWIDDLER_HOSTS]
    #[arg(help_heading = "Access", long, value_name = "NAMES")]
    pub hosts: Option<String>,

    /// The mode of unix sockets that twiddler listens on [default: 0700; beside supervisord's socket, the
    /// same] [env: TWIDDLER_CHMOD]
    #[arg(help_heading = "Connection", long, value_name = "MODE")]
    pub chmod: Option<String>,

    /// The owner of such sockets: user or user:group [env: TWIDDLER_CHOWN]
    #[arg(help_heading = "Connection", long, value_name = "OWNER")]
    pub chown: Option<String>,

    /// Speak TLS on TCP addresses with this certificate, or chain of them, in PEM; read again on SIGHUP
    /// [env: TWIDDLER_TLS_CERT]
    #[arg(help_heading = "TLS", long, value_name = "PATH")]
    pub tls_cert: Option<PathBuf>,

    /// The certificate's key, in PEM [env: TWIDDLER_TLS_KEY]
    #[arg(help_heading = "TLS", long, value_name = "PATH")]
    pub tls_key: Option<PathBuf>,

    /// The methods of all namespaces that may be called, separated by commas, such as supervisor.get*; empty
    /// for all [env: TWIDDLER_ALLOW]
    #[arg(help_heading = "Access", long, value_name = "NAMES")]
    pub allow: Option<String>,

    /// The twiddler.* methods that may be called, separated by commas; empty for all. An older way; --allow
    /// covers it
    /// [env: TWIDDLER_WHITELIST]
    #[arg(help_heading = "Access", long, value_name = "NAMES")]
    pub whitelist: Option<String>,

    /// Keep what was added when supervisord restarts [env: TWIDDLER_PERSIST]
    #[arg(
        help_heading = "Behaviour",
        long,
        value_name = "BOOLEAN",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true"
    )]
    pub persist: Option<String>,

    /// How much to log on standard error: error, warn, info, debug or trace
    /// [default: info] [env: TWIDDLER_LOG_LEVEL]
    #[arg(help_heading = "Logging", long, value_name = "LEVEL")]
    pub log_level: Option<String>,

    /// How to log it: text or json [default: text] [env: TWIDDLER_LOG_FORMAT]
    #[arg(help_heading = "Logging", long, value_name = "FORMAT")]
    pub log_format: Option<String>,
}

impl Args {
    /// Reads the command line. Ends the process where it is wrong, or asks for help.
    pub fn read(typed: impl Iterator<Item = OsString>) -> Self {
        let typed: Vec<_> = typed.collect();
        Self::try_parse_from(&typed).unwrap_or_else(|error| with_tip(error, &typed).exit())
    }
}

/// Adds what was most likely meant where an option that takes its value after `=` alone was
/// written with a space.
fn with_tip(mut error: clap::Error, typed: &[OsString]) -> clap::Error {
    let Some(ContextValue::String(value)) = error.get(ContextKind::InvalidArg) else {
        return error;
    };
    let apart = |pair: &&[OsString]| {
        !value.starts_with('-')
            && ["--persist", "--allow-open"]
                .iter()
                .any(|option| pair[0] == *option)
            && pair[1] == value.as_str()
    };
    if let Some(pair) = typed.windows(2).find(apart) {
        let tip = format!("write {}={value}", pair[0].display());
        let tip = ContextValue::StyledStrs(vec![tip.into()]);
        error.insert(ContextKind::Suggested, tip);
    }
    error
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn serve(arguments: &[&str]) -> ServeArgs {
        let typed = ["twiddler", "serve"].iter().chain(arguments);
        match Args::try_parse_from(typed).unwrap().command {
            Command::Serve(args) | Command::Check(args) => args,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_definition_is_sound() {
        Args::command().debug_assert();
    }

    #[test]
    fn the_help_of_every_option_names_its_variable() {
        let args = Args::command();
        let ours = args
            .get_subcommands()
            .filter(|command| ["serve", "check"].contains(&command.get_name()));
        for command in ours {
            let options = command
                .get_arguments()
                .filter_map(|option| option.get_long().zip(Some(option)));
            for (name, option) in options {
                let variable = format!("[env: TWIDDLER_{}", name.replace('-', "_").to_uppercase());
                let help = option.get_help().unwrap().to_string();
                assert!(help.contains(&variable), "--{name}: {help}");
                assert!(option.get_help_heading().is_some(), "--{name}");
            }
        }
    }

    #[test]
    fn nothing_is_set_that_was_not_typed() {
        let args = serve(&[]);
        assert!(args.config.is_none() && args.listen.is_empty() && args.supervisord.is_none());
        assert!(args.include_dir.is_none() && args.whitelist.is_none() && args.persist.is_none());
        assert!(args.log_level.is_none() && args.log_format.is_none());
    }

    #[test]
    fn persist_is_a_flag_that_can_be_turned_off() {
        for (typed, expected) in [
            ("--persist", "true"),
            ("--persist=off", "off"),
            ("--persist=", ""),
        ] {
            assert_eq!(serve(&[typed]).persist.as_deref(), Some(expected));
        }
    }

    #[test]
    fn a_value_after_a_space_is_told_where_it_goes() {
        for (typed, tip) in [
            (&["--persist", "false"][..], Some("write --persist=false")),
            (&["--allow-open", "yes"], Some("write --allow-open=yes")),
            (&["--persist", "--what"], None),
            (&["false"], None),
        ] {
            let typed: Vec<OsString> = ["twiddler", "serve"]
                .iter()
                .chain(typed)
                .map(OsString::from)
                .collect();
            let error = with_tip(Args::try_parse_from(&typed).unwrap_err(), &typed).to_string();
            match tip {
                Some(tip) => assert!(error.contains(tip), "{error}"),
                None => assert!(!error.contains("write --"), "{error}"),
            }
        }
    }

    #[test]
    fn listen_is_repeatable_and_config_has_a_short_form() {
        let args = serve(&[
            "-c",
            "a.conf",
            "--listen",
            "127.0.0.1:1",
            "--listen",
            "[::1]:2",
        ]);
        assert_eq!(args.config.unwrap(), PathBuf::from("a.conf"));
        assert_eq!(args.listen, ["127.0.0.1:1", "[::1]:2"]);
    }

    #[test]
    fn usage_mistakes_exit_with_2() {
        for typed in [
            &["twiddler"][..],
            &["twiddler", "srve"],
            &["twiddler", "serve", "--what"],
        ] {
            assert_eq!(
                Args::try_parse_from(typed).unwrap_err().exit_code(),
                2,
                "{typed:?}"
            );
        }
    }
}
