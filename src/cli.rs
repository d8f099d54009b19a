//! The command line: what can be typed, and its help.
//!
//! The options of `serve` and `check` are `config`'s, which reads them from other sources too.

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
        /// The name of the file that outlives supervisord
        kept_name: String,
    },
    /// Everything else is the client's.
    #[command(flatten)]
    Client(Verb),
}

impl Args {
    /// Reads the command line. Ends the process where it is wrong, or asks for help.
    pub fn read(typed: impl Iterator<Item = OsString>) -> Self {
        let typed: Vec<_> = typed.collect();
        Self::try_parse_from(&typed)
            .unwrap_or_else(|error| end(&without_hidden(with_tip(error, &typed))))
    }
}

/// Prints help, the version, or what is wrong with the arguments, and ends.
fn end(error: &clap::Error) -> ! {
    let printed = error.print();
    if let Err(reason) = printed
        && !error.use_stderr()
        && reason.kind() != ErrorKind::BrokenPipe
    {
        let _nobody_reads_it = writeln!(std::io::stderr(), "twiddler: cannot print: {reason}");
        std::process::exit(1);
    }
    std::process::exit(error.exit_code())
}

/// Leaves verbs that are nobody's to type out of what is listed where there is none.
fn without_hidden(mut error: clap::Error) -> clap::Error {
    if let Some(ContextValue::Strings(verbs)) = error.get(ContextKind::ValidSubcommand) {
        let verbs = verbs.iter().filter(|verb| *verb != CLEAN_UP_COMMAND);
        let verbs = ContextValue::Strings(verbs.cloned().collect());
        error.insert(ContextKind::ValidSubcommand, verbs);
    }
    error
}

/// Adds what was most likely meant where an option that takes its value after `=` alone was
/// written with a space, and where a command came without `--`.
fn with_tip(error: clap::Error, typed: &[OsString]) -> clap::Error {
    let Some(ContextValue::String(value)) = error.get(ContextKind::InvalidArg) else {
        return error;
    };
    let is_command = typed.iter().any(|word| word == "add" || word == "run");
    if is_command && !value.starts_with('-') && typed.iter().all(|word| word != "--") {
        let tip = format!("write -- in front of the command: -- {value}");
        return with(error, tip);
    }
    let apart = |pair: &&[OsString]| {
        !value.starts_with('-') && flags().any(|flag| pair[0] == *flag) && pair[1] == value.as_str()
    };
    if let Some(pair) = typed.windows(2).find(apart) {
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
    fn a_command_without_dashes_is_told_where_they_go() {
        for (typed, tip) in [
            (
                &["run", "cat"][..],
                Some("-- in front of the command: -- cat"),
            ),
            (&["add", "web:x", "cat", "-n"], Some("-- cat")),
            (&["run", "--kep", "--", "cat"], None),
        ] {
            let typed: Vec<OsString> = ["twiddler"]
                .iter()
                .chain(typed)
                .map(OsString::from)
                .collect();
            let error = with_tip(Args::try_parse_from(&typed).unwrap_err(), &typed).to_string();
            match tip {
                Some(tip) => assert!(error.contains(tip), "{error}"),
                None => assert!(!error.contains("in front"), "{error}"),
            }
        }
    }

    #[test]
    fn verbs_of_nobody_are_not_listed() {
        let error = Args::try_parse_from(["twiddler", "-o", "json"]).unwrap_err();
        assert!(error.to_string().contains(CLEAN_UP_COMMAND), "{error}");
        let error = without_hidden(error).to_string();
        assert!(error.contains("status"), "{error}");
        assert!(!error.contains(CLEAN_UP_COMMAND), "{error}");
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
