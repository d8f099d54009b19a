//! The verbs of the command line and their options, except `serve` and `check`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use clap_complete::ArgValueCompleter;
use clap_complete::env::{Bash, Elvish, EnvCompleter, Fish, Zsh};

use super::complete::{group_names, process_names, program_names, scalable_names};

const HEADING: &str = "Client options";

/// The options that every verb takes, before or after its name.
#[derive(Clone, Debug, Default, Args)]
pub struct ClientOptions {
    /// The server: http://HOST:PORT, https://HOST:PORT or unix:///PATH [env: TWIDDLER_SERVER]
    /// [default: where `twiddler serve` listens according to the configuration file]
    #[arg(short, long, value_name = "URL", help_heading = HEADING)]
    pub server: Option<String>,

    /// The user name to present [env: TWIDDLER_CLIENT_USERNAME] [default: as in section supervisorctl]
    #[arg(short, long, value_name = "NAME", help_heading = HEADING)]
    pub username: Option<String>,

    /// The password to present; other users can see command lines, so better set
    /// TWIDDLER_CLIENT_PASSWORD [default: as in section supervisorctl]
    #[arg(short, long, value_name = "PASSWORD", help_heading = HEADING)]
    pub password: Option<String>,

    /// supervisord's configuration file [env: TWIDDLER_CONFIG] [default: searched where
    /// supervisorctl searches]
    #[arg(short, long, value_name = "PATH", help_heading = HEADING)]
    pub config: Option<PathBuf>,

    /// When to use colours; NO_COLOR is respected [default: auto]
    #[arg(long, value_name = "WHEN", help_heading = HEADING)]
    pub color: Option<ColorChoice>,

    /// How to print results [default: table]
    #[arg(short, long, value_name = "FORMAT", help_heading = HEADING)]
    pub output: Option<Format>,
}

impl ClientOptions {
    /// These options, which follow the verb; an option that is missing is taken from `before`, the
    /// options in front of the verb.
    #[must_use]
    pub fn or(self, before: ClientOptions) -> Self {
        ClientOptions {
            server: self.server.or(before.server),
            username: self.username.or(before.username),
            password: self.password.or(before.password),
            config: self.config.or(before.config),
            color: self.color.or(before.color),
            output: self.output.or(before.output),
        }
    }
}

/// When colours are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ColorChoice {
    /// On a terminal, unless NO_COLOR is set
    Auto,
    /// Always
    Always,
    /// Never
    Never,
}

/// How results are printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people
    #[default]
    Table,
    /// What the server returned, as JSON
    Json,
    /// One name a line
    Name,
}

/// A verb with its arguments.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Show processes and their states
    #[command(after_help = "\
Exit status: 0 all processes run, 3 a process does not run, 4 a name is unknown.

Examples:
  twiddler status
  twiddler status 'web:*' '*worker*'
  twiddler status -o json | jq '.[].pid'")]
    Status(StatusArgs),

    /// Start processes
    #[command(after_help = "\
Examples:
  twiddler start web:api
  twiddler start 'web:*' mailer
  twiddler start all")]
    Start(NamesArgs),

    /// Stop processes
    #[command(after_help = "\
Example:
  twiddler stop 'web:*'")]
    Stop(NamesArgs),

    /// Stop processes and start them again
    #[command(after_help = "\
Examples:
  twiddler restart web:api
  twiddler restart 'web:*' --rolling 2")]
    Restart(RestartArgs),

    /// Send a signal to processes
    #[command(after_help = "\
Example:
  twiddler signal HUP 'web:*'")]
    Signal(SignalArgs),

    /// Print or follow the logs of processes
    #[command(after_help = "\
Examples:
  twiddler logs -n 100 web:api
  twiddler logs -f 'web:*' mailer")]
    Logs(LogsArgs),

    /// Wait until processes have reached a state
    #[command(after_help = "\
Exit status: 0 all processes reached the state, 124 the timeout passed.

Example:
  twiddler wait web:api --for running --timeout 30")]
    Wait(WaitArgs),

    /// Add a program to a group of the running supervisord
    #[command(after_help = "\
The process gets the words after -- unchanged: supervisord expands nothing in them.

Examples:
  twiddler add web:api -O user=www-data -O stopwaitsecs=30 -- /usr/bin/api --port 8080
  twiddler add jobs:worker --numprocs 4 --create-group -- /usr/bin/worker")]
    Add(AddArgs),

    /// Run a command in supervisord, with its output here
    #[command(after_help = "\
Adds the command as a program without autorestart, starts it, prints its output, and removes it when it \
has ended. Ctrl-C stops it by its stopsignal; a second Ctrl-C kills it. When \
this command itself is killed or its terminal closed, the proxy stops and removes the process within \
a minute.

Exit status: that of the command; 128 and the number of the signal that ended it; 126 or 127 when it \
cannot be executed or found.

Examples:
  twiddler run -- /usr/bin/backup --full
  twiddler run -O user=www-data -O directory=/srv/app -- ./manage.py migrate")]
    Run(RunArgs),

    /// Remove processes from their groups
    #[command(
        visible_alias = "rm",
        after_help = "\
Example:
  twiddler remove web:api --stop"
    )]
    Remove(RemoveArgs),

    /// Add an empty group
    #[command(after_help = "\
Example:
  twiddler add-group jobs --priority 10")]
    AddGroup(AddGroupArgs),

    /// Remove a group with its processes
    #[command(after_help = "\
Example:
  twiddler remove-group jobs --stop")]
    RemoveGroup(RemoveGroupArgs),

    /// Change options of a program that was added, and keep the others
    #[command(after_help = "\
Only running processes of this program are restarted. KEY= unsets an option.

Examples:
  twiddler set web:api stopwaitsecs=30 'environment=LEVEL=\"debug\"'
  twiddler set jobs:worker user=")]
    Set(SetArgs),

    /// Change how many processes programs have
    #[command(after_help = "\
Processes that stay are not restarted. A program of supervisord's files returns to the number in its \
file when supervisord restarts, or when somebody edits that number and runs update.

Examples:
  twiddler scale jobs:worker=8
  twiddler scale jobs:worker=+2 web:api=-1")]
    Scale(ScaleArgs),

    /// Show where supervisord's files differ from what runs
    #[command(after_help = "\
Changes nothing. Names the variables of environment that differ, and does not show their values.

Exit status: 0 nothing differs, or only numbers of processes that were scaled; 1 something differs; 2 \
it cannot be told.

Examples:
  twiddler diff
  twiddler diff web mailer")]
    Diff(DiffArgs),

    /// Put supervisord's files in force, and restart only processes that changed
    #[command(after_help = "\
Examples:
  twiddler update --dry-run
  twiddler update
  twiddler update web")]
    Update(UpdateArgs),

    /// List the programs, configured and added ones
    #[command(after_help = "\
Example:
  twiddler programs -o json | jq '.[] | select(.origin == \"added\")'")]
    Programs(ProgramsArgs),

    /// Print the added programs as sections for supervisord.conf
    #[command(after_help = "\
Examples:
  twiddler export
  twiddler export jobs > /etc/supervisor/conf.d/jobs.conf && twiddler update")]
    Export(ExportArgs),

    /// List the groups, empty ones too
    #[command(after_help = "\
Example:
  twiddler groups -o json")]
    Groups(GroupsArgs),

    /// Call any method of the server
    #[command(after_help = "\
Each argument is JSON where it can be read as JSON, and a string otherwise.

Examples:
  twiddler call supervisor.getState
  twiddler call supervisor.tailProcessStdoutLog web:api 0 200
  twiddler call twiddler.addProcessToGroup web api '{\"command\": \"/usr/bin/api\"}'")]
    Call(CallArgs),

    /// Print the script that completes verbs, options and live names in a shell
    #[command(after_help = "\
Examples:
  source <(twiddler completions bash)
  twiddler completions fish > ~/.config/fish/completions/twiddler.fish")]
    Completions(CompletionsArgs),

    /// Print the manual page, or write all pages into a directory
    #[command(after_help = "\
Examples:
  twiddler man | man -l -
  twiddler man --dir /usr/local/share/man")]
    Man(ManArgs),
}

impl Verb {
    /// The client options after the verb's name; `None` for a verb that talks to no server.
    pub fn options(&self) -> Option<&ClientOptions> {
        match self {
            Verb::Status(args) => Some(&args.client),
            Verb::Start(args) | Verb::Stop(args) => Some(&args.client),
            Verb::Restart(args) => Some(&args.client),
            Verb::Signal(args) => Some(&args.client),
            Verb::Logs(args) => Some(&args.client),
            Verb::Wait(args) => Some(&args.client),
            Verb::Add(args) => Some(&args.client),
            Verb::Run(args) => Some(&args.client),
            Verb::Remove(args) => Some(&args.client),
            Verb::AddGroup(args) => Some(&args.client),
            Verb::RemoveGroup(args) => Some(&args.client),
            Verb::Set(args) => Some(&args.client),
            Verb::Scale(args) => Some(&args.client),
            Verb::Diff(args) => Some(&args.client),
            Verb::Update(args) => Some(&args.client),
            Verb::Programs(args) => Some(&args.client),
            Verb::Export(args) => Some(&args.client),
            Verb::Groups(args) => Some(&args.client),
            Verb::Call(args) => Some(&args.client),
            Verb::Completions(_) | Verb::Man(_) => None,
        }
    }
}

/// Arguments of `status`.
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// group:process, group:*, name or a glob; all processes when none is given
    #[arg(value_name = "NAME", add = ArgValueCompleter::new(process_names))]
    pub names: Vec<String>,
    /// Where the server is, and how to print.
    #[command(flatten)]
    pub client: ClientOptions,
}

/// Arguments of `start` and `stop`.
#[derive(Debug, Args)]
pub struct NamesArgs {
    /// group:process, group:*, name, a glob, or all
    #[arg(value_name = "NAME", required = true, add = ArgValueCompleter::new(process_names))]
    pub names: Vec<String>,
    /// Where the server is, and how to print.
    #[command(flatten)]
    pub client: ClientOptions,
}

/// Arguments of `restart`.
#[derive(Debug, Args)]
pub struct RestartArgs {
    /// group:process, group:*, name, a glob, or all
    #[arg(value_name = "NAME", required = true, add = ArgValueCompleter::new(process_names))]
    pub names: Vec<String>,
    /// Restart N at a time, the next ones when those run; stop at the first that does not come up
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub rolling: Option<u32>,
    /// Where the server is, and how to print.
    #[command(flatten)]
    pub client: ClientOptions,
}

/// Arguments of `signal`.
#[derive(Debug, Args)]
pub struct SignalArgs {
    /// The signal's name or number, such as HUP or 1
    #[arg(value_name = "SIGNAL")]
    pub signal: String,
    /// group:process, group:*, name, a glob, or all
    #[arg(value_name = "NAME", required = true, add = ArgValueCompleter::new(process_names))]
    pub names: Vec<String>,
    /// Where the server is, and how to print.
    #[command(flatten)]
    pub client: ClientOptions,
}

/// Arguments of `logs`.
#[derive(Debug, Args)]
pub struct LogsArgs {
    /// group:process, group:*, name or a glob
    #[arg(value_name = "NAME", required = true, add = ArgValueCompleter::new(process_names))]
    pub names: Vec<String>,
    /// Follow the logs, across restarts of the process and of supervisord
    #[arg(short, long)]
    pub follow: bool,
    /// How many lines to print first [default: 10]
    #[arg(short = 'n', long, value_name = "LINES")]
    pub lines: Option<usize>,
    /// Standard error in place of standard output
    #[arg(long)]
    pub stderr: bool,
    /// Leave out the name in front of each line
    #[arg(long)]
    pub no_prefix: bool,
    /// Where the server is, and how to print.
    #[command(flatten)]
    pub client: ClientOptions,
}

/// A state that `wait` waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Awaited {
    /// RUNNING
    Running,
    /// STOPPED, EXITED or FATAL
    Stopped,
    /// EXITED
    Exited,
}

/// Arguments of `wait`.
#[derive(Debug, Args)]
pub struct WaitArgs {
    /// group:process, group:*, name or a glob
    #[arg(value_name = "NAME", required = true, add = ArgValueCompleter::new(process_names))]
    pub names: Vec<String>,
    /// The state to wait for
    #[arg(long = "for", value_name = "STATE")]
    pub state: Awaited,
    /// Give up after this many seconds
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub timeout: Option<Duration>,
    /// Where the server is, and how to print.
    #[command(flatten)]
    pub client: ClientOptions,
}

/// Arguments of `add`.
#[derive(Debug, Args)]
pub struct AddArgs {
    /// The group, and the program's name in it
    #[arg(value_name = "GROUP:NAME")]
    pub name: String,
    /// An option as in a `[program:x]` section; repeatable
    #[arg(short = 'O', long = "option", value_name = "KEY=VALUE", value_parser = key_value)]
    pub options: Vec<(String, String)>,
    /// The number of processes; more than one need %(process_num)d in process_name, which is the
    /// default then
    #[arg(long, value_name = "N")]
    pub numprocs: Option<u32>,
    /// Add the group first if there is none of that name
    #[arg(long)]
    pub create_group: bool,
    /// The program and its arguments
    #[arg(value_name = "COMMAND", last = true, required = true)]
    pub command: Vec<String>,
    /// Where the server is, and how to print.
    #[command(flatten)]
    pub client: ClientOptions,
}

/// Arguments of `run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// An option as in a `[program:x]` section; repeatable
    #[arg(short = 'O', long = "option", value_name = "KEY=VALUE", value_parser = key_value)]
    pub options: Vec<(String, String)>,
    /// The group to run it in [default: a group of its own, which is removed with the program]
    #[arg(long, value_name = "GROUP", add = ArgValueCompleter::new(group_names))]
    pub group: Option<String>,
    /// Leave the program in supervisord when it has ended; it also runs on when this command is
    /// killed
    #[arg(long)]
    pub keep: bool,
    /// The program and its arguments
    #[arg(value_name = "COMMAND", last = true, required = true)]
    pub command: Vec<String>,
    /// Where the server is, and how to print.
    #[command(flatten)]
    pub client: ClientOptions,
}

/// Arguments of `remove`.
#[derive(Debug, Args)]
pub struct RemoveArgs {
    /// group:process, name or a glob
    #[arg(value_name = "NAME", required = true, add = ArgValueCompleter::new(process_names))]
    pub names: Vec<String>,
    /// Stop them first
    #[arg(long)]
    pub stop: bool,
    /// Where the server is, and how to print.
    #[command(flatten)]
    pub client: ClientOptions,
}

/// Arguments of `add-group`.
#[derive(Debug, Args)]
pub struct AddGroupArgs {
    /// The group's name
    #[arg(value_name = "NAME")]
    pub name: String,
    /// Its priority
    #[arg(
        long,
        value_name = "N",
        default_value_t = 999,
        allow_negative_numbers = true
    )]
    pub priority: i64,
    /// Where the server is, and how to print.
    #[command(flatten)]
    pub client: ClientOptions,
}

/// Arguments of `remove-group`.
#[derive(Debug, Args)]
pub struct RemoveGroupArgs {
    /// The group's name
    #[arg(value_name = "NAME", add = ArgValueCompleter::new(group_names))]
    pub name: String,
    /// Stop its processes first
    #[arg(long)]
    pub stop: bool,
    /// Where the server is, and how to print.
    #[command(flatten)]
    pub client: ClientOptions,
}

/// Arguments of `set`.
#[derive(Debug, Args)]
pub struct SetArgs {
    /// The program
    #[arg(value_name = "GROUP:PROGRAM", add = ArgValueCompleter::new(program_names))]
    pub name: String,
    /// An option as in a `[program:x]` section; without a value it is unset
    #[arg(value_name = "KEY=VALUE", required = true, value_parser = key_value)]
    pub options: Vec<(String, String)>,
    /// Where the server is, and how to print.
    #[command(flatten)]
    pub client: ClientOptions,
}

/// How many processes a program is to have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Number {
    /// This number.
    Absolute(i64),
    /// This many more than now; fewer where it is negative.
    Relative(i64),
}

/// Arguments of `scale`.
#[derive(Debug, Args)]
pub struct ScaleArgs {
    /// A program and how many processes it is to have, or +N or -N for more or fewer
    #[arg(
        value_name = "GROUP:PROGRAM=N",
        required = true,
        value_parser = scaled,
        add = ArgValueCompleter::new(scalable_names)
    )]
    pub programs: Vec<(String, Number)>,
    /// Where the server is, and how to print.
    #[command(flatten)]
    pub client: ClientOptions,
}

/// Arguments of `diff`.
#[derive(Debug, Args)]
pub struct DiffArgs {
    /// The groups to look at; all when none is given
    #[arg(value_name = "GROUP", add = ArgValueCompleter::new(group_names))]
    pub groups: Vec<String>,
    /// Where the server is, and how to print.
    #[command(flatten)]
    pub client: ClientOptions,
}

/// Arguments of `update`.
#[derive(Debug, Args)]
pub struct UpdateArgs {
    /// The groups to update; all when none is given
    #[arg(value_name = "GROUP", add = ArgValueCompleter::new(group_names))]
    pub groups: Vec<String>,
    /// Print what would be done, and do nothing
    #[arg(short = 'n', long)]
    pub dry_run: bool,
    /// Where the server is, and how to print.
    #[command(flatten)]
    pub client: ClientOptions,
}

/// Arguments of `programs`.
#[derive(Debug, Args)]
pub struct ProgramsArgs {
    /// Where the server is, and how to print.
    #[command(flatten)]
    pub client: ClientOptions,
}

/// Arguments of `export`.
#[derive(Debug, Args)]
pub struct ExportArgs {
    /// The groups to print; all when none is given
    #[arg(value_name = "GROUP", add = ArgValueCompleter::new(group_names))]
    pub groups: Vec<String>,
    /// Where the server is, and how to print.
    #[command(flatten)]
    pub client: ClientOptions,
}

/// Arguments of `groups`.
#[derive(Debug, Args)]
pub struct GroupsArgs {
    /// Where the server is, and how to print.
    #[command(flatten)]
    pub client: ClientOptions,
}

/// Arguments of `call`.
#[derive(Debug, Args)]
pub struct CallArgs {
    /// The method, such as supervisor.getState
    #[arg(value_name = "METHOD")]
    pub method: String,
    /// Its arguments
    #[arg(value_name = "ARG", allow_hyphen_values = true)]
    pub arguments: Vec<String>,
    /// Where the server is, and how to print.
    #[command(flatten)]
    pub client: ClientOptions,
}

/// A shell for which `completions` writes a script.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Shell {
    /// bash
    Bash,
    /// zsh
    Zsh,
    /// fish
    Fish,
    /// elvish
    Elvish,
}

impl Shell {
    /// clap's writer of the script for this shell.
    pub fn completer(self) -> &'static dyn EnvCompleter {
        match self {
            Shell::Bash => &Bash,
            Shell::Zsh => &Zsh,
            Shell::Fish => &Fish,
            Shell::Elvish => &Elvish,
        }
    }
}

/// Arguments of `completions`.
#[derive(Debug, Args)]
pub struct CompletionsArgs {
    /// The shell
    #[arg(value_name = "SHELL")]
    pub shell: Shell,
}

/// Arguments of `man`.
#[derive(Debug, Args)]
pub struct ManArgs {
    /// Write all pages below this directory, into man1 and man5
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
}

fn key_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.trim().is_empty() => {
            Ok((key.trim().to_owned(), value.to_owned()))
        }
        _ => Err("expected KEY=VALUE, such as user=www-data".to_owned()),
    }
}

fn scaled(text: &str) -> Result<(String, Number), String> {
    let wrong = || "expected GROUP:PROGRAM=N, such as jobs:worker=4 or jobs:worker=+1".to_owned();
    let (name, number) = text.rsplit_once('=').ok_or_else(wrong)?;
    let count: i64 = number.parse().map_err(|_| wrong())?;
    let is_relative = number.starts_with(['+', '-']);
    match (name, is_relative) {
        ("", _) => Err(wrong()),
        (name, true) => Ok((name.to_owned(), Number::Relative(count))),
        (name, false) => Ok((name.to_owned(), Number::Absolute(count))),
    }
}

fn seconds(text: &str) -> Result<Duration, String> {
    text.parse()
        .ok()
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
        .ok_or_else(|| "expected a number of seconds, such as 30 or 0.5".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_absolute_or_relative() {
        for (text, expected) in [
            ("web:api=3", Some(("web:api", Number::Absolute(3)))),
            ("web:api=+2", Some(("web:api", Number::Relative(2)))),
            ("web:api=-1", Some(("web:api", Number::Relative(-1)))),
            ("a=b=0", Some(("a=b", Number::Absolute(0)))),
            ("web:api", None),
            ("web:api=", None),
            ("=3", None),
            ("web:api=x", None),
        ] {
            let expected = expected.map(|(name, number)| (name.to_owned(), number));
            assert_eq!(scaled(text).ok(), expected, "{text}");
        }
    }
}
