//! The command line and its help.
//!
//! `config` defines the options of `serve` and `check`, because it reads them from other sources, too.

use std::ffi::OsString;
use std::io::{ErrorKind, Write};
use std::path::PathBuf;

use clap::error::{ContextKind, ContextValue};
use clap::{Parser, Subcommand};

use crate::client::args::{ClientOptions, Verb};
use crate::config::ServeArgs;
use crate::config::options::flags;
use crate::include_dir::CLEAN_UP_COMMAND;

const AFTER_HELP: &str = "\
Examples:
  twiddler check -c /etc/supervisor/supervisord.conf
  twiddler serve -c /etc/supervisor/supervisord.conf --listen unix:///run/twiddler/twiddler.sock
  supervisorctl -s unix:///run/twiddler/twiddler.sock status
  twiddler status
  twiddler run -- /usr/bin/backup --full

`twiddler serve --help` explains the options of both commands.";

const AFTER_OPTIONS: &str = "\
The help of each option names an environment variable that sets it, too. A [twiddler] section of \
supervisord.conf, which supervisord ignores, can also set all options but --config, by the key of the \
same name with _ for -. The command line wins over the environment, and the environment over the file.

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
    about = "Adds groups and programs to a running supervisord, and removes them",
    long_about = "Runs in front of an unmodified supervisord, forwards everything that supervisorctl \
        and other clients send, and answers the twiddler.* methods, which add groups and programs \
        while the daemon runs, and remove them.",
    after_help = AFTER_HELP,
    arg_required_else_help = true
)]
pub struct Args {
    /// The options in front of a verb.
    #[command(flatten)]
    pub client: ClientOptions,
    /// The command.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands of `twiddler`.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the proxy in the foreground, until SIGTERM or SIGINT
    #[command(after_help = AFTER_OPTIONS)]
    Serve(ServeArgs),
    /// Check whether this configuration works, and say what to change if it does not
    #[command(after_help = AFTER_OPTIONS)]
    Check(ServeArgs),
    /// Wait for the end of standard input, and remove the files that the proxy has left
    #[command(name = CLEAN_UP_COMMAND, hide = true)]
    CleanUp {
        /// The include directory
        dir: PathBuf,
        /// The name of generated files
        file_name: String,
        /// The name of the persist file
        persist_name: String,
    },
    /// A verb of the client.
    #[command(flatten)]
    Client(Verb),
}

impl Args {
    /// Parses `words`, the command line with the program's name. Exits where it is not valid, and after
    /// `--help` and `--version`.
    pub fn read(words: impl Iterator<Item = OsString>) -> Self {
        let words: Vec<_> = words.collect();
        Self::try_parse_from(&words)
            .unwrap_or_else(|error| exit(&without_hidden(with_tip(error, &words))))
    }
}

/// Prints the help, the version or the error, and exits.
fn exit(error: &clap::Error) -> ! {
    if let Err(reason) = error.print()
        && !error.use_stderr()
        && reason.kind() != ErrorKind::BrokenPipe
    {
        let _ = writeln!(std::io::stderr(), "twiddler: cannot print: {reason}");
        std::process::exit(1);
    }
    std::process::exit(error.exit_code())
}

/// Removes the hidden command from the list of commands in an error.
fn without_hidden(mut error: clap::Error) -> clap::Error {
    if let Some(ContextValue::Strings(verbs)) = error.get(ContextKind::ValidSubcommand) {
        let verbs = verbs.iter().filter(|verb| *verb != CLEAN_UP_COMMAND);
        let verbs = ContextValue::Strings(verbs.cloned().collect());
        error.insert(ContextKind::ValidSubcommand, verbs);
    }
    error
}

/// Adds a tip for two frequent mistakes: a space instead of `=` between an option and its value, and no
/// `--` in front of the command of `add` and `run`.
fn with_tip(error: clap::Error, words: &[OsString]) -> clap::Error {
    let Some(ContextValue::String(value)) = error.get(ContextKind::InvalidArg) else {
        return error;
    };
    let is_command = words.iter().any(|word| word == "add" || word == "run");
    if is_command && !value.starts_with('-') && words.iter().all(|word| word != "--") {
        let tip = format!("write -- in front of the command: -- {value}");
        return with(error, tip);
    }
    let is_flag_and_value = |pair: &&[OsString]| {
        !value.starts_with('-') && flags().any(|flag| pair[0] == *flag) && pair[1] == value.as_str()
    };
    if let Some(pair) = words.windows(2).find(is_flag_and_value) {
        let tip = format!("write {}={value}", pair[0].display());
        return with(error, tip);
    }
    error
}

fn with(mut error: clap::Error, tip: String) -> clap::Error {
    let tip = ContextValue::StyledStrs(vec![tip.into()]);
    error.insert(ContextKind::Suggested, tip);
    error
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn clap_accepts_the_definition() {
        Args::command().debug_assert();
    }

    #[test]
    fn the_help_of_every_option_names_its_variable() {
        let args = Args::command();
        let commands = args
            .get_subcommands()
            .filter(|command| ["serve", "check"].contains(&command.get_name()));
        for command in commands {
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
    fn a_value_after_a_space_gets_a_tip() {
        for (words, tip) in [
            (&["--persist", "false"][..], Some("write --persist=false")),
            (&["--allow-open", "yes"], Some("write --allow-open=yes")),
            (&["--persist", "--what"], None),
            (&["false"], None),
        ] {
            let words: Vec<OsString> = ["twiddler", "serve"]
                .iter()
                .chain(words)
                .map(OsString::from)
                .collect();
            let error = with_tip(Args::try_parse_from(&words).unwrap_err(), &words).to_string();
            match tip {
                Some(tip) => assert!(error.contains(tip), "{error}"),
                None => assert!(!error.contains("write --"), "{error}"),
            }
        }
    }

    #[test]
    fn a_command_without_dashes_gets_a_tip() {
        for (words, tip) in [
            (
                &["run", "cat"][..],
                Some("-- in front of the command: -- cat"),
            ),
            (&["add", "web:x", "cat", "-n"], Some("-- cat")),
            (&["run", "--kep", "--", "cat"], None),
        ] {
            let words: Vec<OsString> = ["twiddler"]
                .iter()
                .chain(words)
                .map(OsString::from)
                .collect();
            let error = with_tip(Args::try_parse_from(&words).unwrap_err(), &words).to_string();
            match tip {
                Some(tip) => assert!(error.contains(tip), "{error}"),
                None => assert!(!error.contains("in front"), "{error}"),
            }
        }
    }

    #[test]
    fn the_hidden_command_is_not_listed() {
        let error = Args::try_parse_from(["twiddler", "-o", "json"]).unwrap_err();
        assert!(error.to_string().contains(CLEAN_UP_COMMAND), "{error}");
        let error = without_hidden(error).to_string();
        assert!(error.contains("status"), "{error}");
        assert!(!error.contains(CLEAN_UP_COMMAND), "{error}");
    }

    #[test]
    fn usage_mistakes_exit_with_2() {
        for words in [
            &["twiddler"][..],
            &["twiddler", "srve"],
            &["twiddler", "serve", "--what"],
        ] {
            let error = Args::try_parse_from(words).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{words:?}");
        }
    }
}
