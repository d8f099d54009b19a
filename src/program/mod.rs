//! The programs that clients add: checked as they come in, and written as sections that the daemon
//! reads back whole.
//!
//! The generated section bears a made-up name and stands in an included file, but means what
//! `[program:NAME]` in the main file would mean. What would end or wedge the daemon, or break its
//! replies, is refused; all else the daemon judges, and its words are put into the client's terms.
//! Pure: knows nothing of files, HTTP or calls.

mod check;
mod configured;
mod cost;
mod expansion;
mod fault;
mod format;
mod guard;
mod limits;
pub(crate) mod log_files;
mod name;
mod options;
mod process_names;
mod section;
mod template;

use std::fmt;
use std::ops::Range;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::xmlrpc::Value;

pub use configured::{FromFiles, SEPARATOR, UNSHOWN, carried};
pub use name::{Name, NameError};
pub use process_names::Configured;
pub use section::render_group;

use crate::marked_text::MarkedText;
use crate::python::{int, repr, strip};
use crate::words::nearest;
use guard::guarded;
use options::{KNOWN_OPTIONS, Options, Reading};
use template::{Known, Piece, Template};

/// More processes in one program are refused. A thousand take the daemon half a second to list,
/// and it serves nobody meanwhile.
pub const MAX_NUMPROCS: u32 = 1000;

/// What the daemon takes for a missing `process_name` and `priority`.
const DEFAULT_PROCESS_NAME: &str = "%(program_name)s";
const DEFAULT_PRIORITY: i64 = 999;
/// What the daemon takes for a missing `startsecs`, in seconds.
pub const DEFAULT_STARTSECS: i64 = 1;
/// The same for `stopwaitsecs`.
pub const DEFAULT_STOPWAITSECS: i64 = 10;

/// The value of an option as it has to stand in a file for the daemon to read it back whole.
pub fn value_in_file(value: &str) -> String {
    let written = match Template::parse(value) {
        Ok(template) => guarded(&template.0),
        // Nobody expands it.
        Err(_) => guarded(&[Piece::Text(value.to_owned())]),
    };
    // Without the indent, the parser would take further lines for options and sections.
    written.replace('\n', "\n ")
}

/// A program of a group, as a client described it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Stored", into = "Stored")]
pub struct Program {
    group: Name,
    name: Name,
    options: Options,
    numprocs: u32,
    numprocs_start: i64,
    calls_proxy: bool,
    /// How many processes its own are told of, where it is a part of a program.
    total: Option<u32>,
    from_files: Option<FromFiles>,
}

/// Why a program is not taken: the text that belongs behind `INCORRECT_PARAMETERS: `, in the
/// daemon's words where it has some. It is displayed without values.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{}", .0.without_values())]
pub struct ProgramError(MarkedText);

impl ProgramError {
    /// The text with its values marked.
    pub fn into_marked_text(self) -> MarkedText {
        self.0
    }
}

/// Which processes of a program a section carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// All of them, in a group of the name that the client knows.
    All,
    /// All of them, in a group of another name.
    Placed,
    /// The one with this index, counted from 0, in a group of another name.
    One(u32),
}

/// A [`Program`] as it is kept; reading it back checks it again.
#[derive(Serialize, Deserialize)]
struct Stored {
    group: String,
    name: String,
    options: Options,
    /// Not there in what version 0.1.0 kept, whose processes call the daemon.
    #[serde(default)]
    calls_proxy: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    total: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    from_files: Option<FromFiles>,
}

/// Why a program is not taken, before the daemon's ending is put to the text.
#[derive(Debug)]
enum Refusal {
    /// In the daemon's words, to which it adds section and file.
    Daemons(MarkedText),
    /// In ours.
    Ours(MarkedText),
}

impl Program {
    /// Reads what a client sent. `options` has to be a struct with the options of a `[program:x]`
    /// section; `main_file` is the daemon's configuration file, for the error text alone.
    ///
    /// # Errors
    /// When the daemon would refuse the program, or be harmed by it.
    pub fn parse(
        group: &Name,
        name: &str,
        options: &Value,
        main_file: &str,
    ) -> Result<Self, ProgramError> {
        let parsed = Self::read(group, name, options);
        let checked = parsed.and_then(|program| cost::check(&program).map(|()| program));
        checked.map_err(|refusal| refusal.into_error(name, main_file))
    }

    fn read(group: &Name, name: &str, options: &Value) -> Result<Self, Refusal> {
        Self::from_options(group.clone(), name, options::read(options)?)
    }

    fn from_options(group: Name, name: &str, options: Options) -> Result<Self, Refusal> {
        let name = Name::parse(name).map_err(|error| Refusal::Daemons(error.into()))?;
        let program = Self {
            numprocs: check::numprocs(&options)?,
            numprocs_start: check::numprocs_start(&options)?,
            group,
            name,
            options,
            calls_proxy: false,
            total: None,
            from_files: None,
        };
        check::check(&program)?;
        Ok(program)
    }

    /// The name of the program.
    pub fn name(&self) -> &str {
        self.name.as_str()
    }

    /// The value of an option as the client sent it.
    pub fn option(&self, name: &str) -> Option<&str> {
        self.options.get(name).map(String::as_str)
    }

    /// The options that the daemon ignores and that were most likely meant for others, with those.
    pub fn misspelt_options(&self) -> impl Iterator<Item = (&str, &'static str)> {
        let given = self.options.keys().map(String::as_str);
        given
            .filter(|option| Reading::of(option) == Reading::Ignored)
            .filter_map(|option| {
                let known = KNOWN_OPTIONS.iter().map(|(name, _)| *name);
                Some((option, nearest(option, known)?))
            })
    }

    /// The name of the group it belongs to.
    pub fn group(&self) -> &str {
        self.group.as_str()
    }

    /// How many processes it has, at least 1.
    pub fn numprocs(&self) -> u32 {
        self.numprocs
    }

    /// The names of its processes in the order of [`Scope::One`], all different. `None` when only
    /// the daemon can tell, because `process_name` takes in its environment or host name.
    pub fn process_names(&self) -> Option<Vec<String>> {
        self.process_nums()
            .map(|number| self.expanded("process_name", number))
            .collect()
    }

    /// Checks names that the daemon gave, where [`Program::process_names`] knows none.
    ///
    /// # Errors
    /// When two are the same, or the daemon would refuse one.
    pub fn check_process_names(&self, names: &[String]) -> Result<(), ProgramError> {
        process_names::check_all(names).map_err(|refusal| refusal.into_error(self.name(), ""))
    }

    /// The files that its processes log to, and the option of each, as far as they are known.
    pub fn log_files(&self) -> Vec<(String, String)> {
        limits::log_files(self)
    }

    /// Its priority; 999 when none is given or only the daemon can tell.
    pub fn priority(&self) -> i64 {
        self.number("priority").unwrap_or(DEFAULT_PRIORITY)
    }

    /// How many seconds a process must stay up to count as started; 1 when none are given or only
    /// the daemon can tell.
    pub fn startsecs(&self) -> i64 {
        self.number("startsecs").unwrap_or(DEFAULT_STARTSECS)
    }

    /// How many seconds a process has to stop before it is killed; 10 when none are given or only
    /// the daemon can tell.
    pub fn stopwaitsecs(&self) -> i64 {
        self.number("stopwaitsecs").unwrap_or(DEFAULT_STOPWAITSECS)
    }

    fn number(&self, option: &str) -> Option<i64> {
        int(&self.expanded(option, 0)?).value()
    }

    /// Whether the daemon starts it as soon as it is added; also where only the daemon can tell
    /// (`supervisor/datatypes.py`, `boolean`).
    pub fn autostarts(&self) -> bool {
        let text = self.expanded("autostart", 0).unwrap_or_default();
        !matches!(text.to_lowercase().as_str(), "no" | "false" | "off" | "0")
    }

    /// Whether the daemon starts it again after it has exited with this status; none where only the
    /// daemon can tell (`supervisor/datatypes.py`, `auto_restart` and `list_of_exitcodes`).
    pub fn restarts(&self, exitstatus: i64) -> Option<bool> {
        let text = |option, default: &str| {
            if self.options.contains_key(option) {
                self.expanded(option, 0)
            } else {
                Some(default.to_owned())
            }
        };
        match text("autorestart", "unexpected")?.to_lowercase().as_str() {
            "no" | "false" | "off" | "0" => Some(false),
            "unexpected" => {
                let codes = text("exitcodes", "0")?;
                let mut codes = codes.split(',').map(int);
                Some(codes.all(|code| code.value() != Some(exitstatus)))
            }
            _ => Some(true),
        }
    }

    /// The same program, whose placed processes are told to call the proxy where its options do not
    /// say otherwise. What was added without stays so: the daemon compares.
    #[must_use]
    pub fn calling_proxy(self) -> Self {
        let calls_proxy = !self.says_serverurl();
        Self {
            calls_proxy,
            ..self
        }
    }

    /// Whether its options say where its processes call supervisord, and not only that the daemon is
    /// to find out (`supervisor/options.py`, `processes_from_section`).
    pub fn says_serverurl(&self) -> bool {
        const FIND_OUT: &str = "AUTO";
        let is_auto = |text: String| strip(&text).to_uppercase() == FIND_OUT;
        self.options.contains_key("serverurl")
            && !self.expanded("serverurl", 0).is_some_and(is_auto)
    }

    /// Turns the text of a fault that the daemon found in the generated `section` into the one it
    /// would have given for the client's program in `main_file`.
    pub fn in_client_words(&self, text: &str, section: &str, main_file: &str) -> MarkedText {
        fault::in_client_words(self, text, section, main_file)
    }

    /// The text of an option that the daemon expands, which strips that of `process_name` before
    /// it looks at it and has one of its own for it.
    fn text(&self, option: &str) -> Option<&str> {
        let text = self.options.get(option).map(String::as_str);
        match option {
            "process_name" => Some(strip(text.unwrap_or(DEFAULT_PROCESS_NAME))),
            _ => text,
        }
    }

    fn process_nums(&self) -> Range<i64> {
        self.numprocs_start..self.numprocs_start + i64::from(self.numprocs)
    }

    /// The values that are known to an option that is read in this way.
    fn known(&self, reading: Reading, process_num: Option<i64>) -> Known<'_> {
        let per_process = matches!(reading, Reading::PerProcess | Reading::Twice);
        Known {
            program_name: self.name(),
            group_name: self.group(),
            numprocs: per_process.then_some(i64::from(self.total())),
            process_num: process_num.filter(|_| per_process),
        }
    }

    /// What comes out for an option of one process; `None` if the option is not there or only the
    /// daemon can tell.
    fn expanded(&self, option: &str, process_num: i64) -> Option<String> {
        let reading = Reading::of(option);
        let known = self.known(reading, Some(process_num));
        let expand = |text: &str| Template::parse(text).ok()?.resolved(&known).text();
        let text = expand(self.text(option)?)?;
        match reading {
            Reading::Twice => expand(&text),
            _ => Some(text),
        }
    }
}

impl Refusal {
    /// Ours, about one option. Leaves its value out: it may be a secret. So may be what stands in the
    /// place of an option.
    fn option(option: &str, reason: impl Into<MarkedText>) -> Self {
        let told = MarkedText::from("option ");
        let told = match Reading::of(option) {
            Reading::Ignored => told.value(repr(option)),
            _ => told.and(repr(option)),
        };
        Self::Ours(told.and(": ").then(&reason.into()))
    }

    /// The daemon ends its texts so in `supervisor/options.py`, `processes_from_section`.
    fn into_error(self, name: &str, main_file: &str) -> ProgramError {
        ProgramError(match self {
            Self::Daemons(told) => told.unlogged(daemons_ending(name, main_file)),
            Self::Ours(told) => told,
        })
    }
}

fn daemons_ending(name: &str, main_file: &str) -> String {
    let section = repr(&format!("program:{name}"));
    format!(" in section {section} (file: {})", repr(main_file))
}

/// Leaves the values of options out: they may be secrets.
impl fmt::Debug for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Program")
            .field("group", &self.group)
            .field("name", &self.name)
            .field("options", &self.options.keys())
            .finish_non_exhaustive()
    }
}

impl TryFrom<Stored> for Program {
    type Error = ProgramError;

    fn try_from(stored: Stored) -> Result<Self, ProgramError> {
        let group = Name::parse_group(&stored.group).map_err(|error| ProgramError(error.into()))?;
        let options = stored.options.into_iter();
        let options = options
            .map(|(name, text)| (name, Value::String(text)))
            .collect();
        let program = Self::read(&group, &stored.name, &Value::Struct(options))
            .map_err(|refusal| refusal.into_error(&stored.name, ""))?;
        Ok(Self {
            calls_proxy: stored.calls_proxy,
            total: stored.total,
            from_files: stored.from_files,
            ..program
        })
    }
}

impl From<Program> for Stored {
    fn from(program: Program) -> Self {
        Self {
            group: program.group.into(),
            name: program.name.into(),
            options: program.options,
            calls_proxy: program.calls_proxy,
            total: program.total,
            from_files: program.from_files,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) const ENDING: &str = " in section 'program:ls' (file: '/s.conf')";

    pub(super) fn parse(options: &[(&str, &str)]) -> Result<Program, String> {
        let member =
            |(name, text): &(&str, &str)| ((*name).to_owned(), Value::String((*text).to_owned()));
        let options = Value::Struct(options.iter().map(member).collect());
        let group = Name::parse("g").unwrap();
        Program::parse(&group, "ls", &options, "/s.conf")
            .map_err(|error| error.into_marked_text().whole().to_owned())
    }

    #[test]
    fn refusals_hold_our_words_whole_and_no_value() {
        let secret = "s3cret";
        let long = secret.repeat(50_000);
        let table: &[(&[(&str, &str)], &str)] = &[
            (
                &[("numprocs", "0")],
                "option 'numprocs': has to be from 1 to 1000",
            ),
            (
                &[("numprocs", secret)],
                "invalid literal for int() with base 10: …",
            ),
            (
                &[("stdout_logfile", "/dev/s3cret")],
                "option 'stdout_logfile': needs stdout_logfile_maxbytes to be 0 for a device",
            ),
            (
                &[("process_name", "s3cret/x")],
                "Invalid name: … because of character: …",
            ),
            (
                &[("process_name", "s3\tcret")],
                "option 'process_name': Invalid name: … because of character: …",
            ),
            (
                &[("directory", "s3cret %")],
                "Format string … for 'program:ls.directory' is badly formatted: incomplete format",
            ),
            (
                &[("directory", "s3cret %(a b)s")],
                "Format string … for 'program:ls.directory' contains names (…) which cannot be \
                 expanded",
            ),
            (
                &[("s3cret x", "1")],
                "option …: not a name that can be written to a file: there is white space in it",
            ),
            (
                &[("directory", "s3cret\0")],
                "option 'directory': the character … cannot be carried",
            ),
            (
                &[("environment", &long)],
                "option 'environment': command and environment have more than 256 KiB together, \
                 which keeps supervisord busy for too long: write long values to a file",
            ),
        ];
        for (options, logged) in table {
            let mut all = vec![("command", Value::from("x"))];
            all.extend(options.iter().map(|(name, text)| (*name, (*text).into())));
            let all = all.into_iter().map(|(name, text)| (name.to_owned(), text));
            let group = Name::parse("g").unwrap();
            let parsed = Program::parse(&group, "ls", &Value::Struct(all.collect()), "/s.conf");
            let error = parsed.unwrap_err();
            assert_eq!(error.to_string(), *logged);
            assert_eq!(error.into_marked_text().without_values(), *logged);
        }
    }

    #[test]
    fn options_that_are_misspelt_are_found() {
        let given = [
            ("command", "/bin/cat"),
            ("AutoStrat", "false"),
            ("stdout_logfil", "NONE"),
            ("autorestart", "true"),
            ("colour", "red"),
        ];
        let program = parse(&given).unwrap();
        let found: Vec<_> = program.misspelt_options().collect();
        let expected = [
            ("autostrat", "autostart"),
            ("stdout_logfil", "stdout_logfile"),
        ];
        assert_eq!(found, expected);
    }

    pub(super) fn with_command(option: &str, text: &str) -> Result<(), String> {
        parse(&[("command", "/bin/cat"), (option, text)]).map(|_| ())
    }

    pub(super) fn program(options: &[(&str, &str)]) -> Program {
        parse(options).unwrap()
    }

    #[test]
    fn processes_are_named_beforehand_where_that_is_possible() {
        let table: [(&str, Option<&[&str]>); 6] = [
            ("%(program_name)s", None), // needs process_num
            ("p%(process_num)02d", Some(&["p07", "p08"])),
            (
                "%(group_name)s-%(numprocs)d.%(process_num)x",
                Some(&["g-2.7", "g-2.8"]),
            ),
            ("%(host_node_name)s%(process_num)d", Some(&[])),
            ("%(ENV_A)s%(process_num)d", Some(&[])),
            ("%%%(process_num)d", Some(&["%7", "%8"])),
        ];
        for (process_name, expected) in table {
            let parsed = parse(&[
                ("command", "/bin/cat"),
                ("numprocs", "2"),
                ("numprocs_start", "7"),
                ("process_name", process_name),
            ]);
            let names = parsed
                .ok()
                .map(|program| program.process_names().unwrap_or_default());
            let expected = expected.map(|names| names.iter().map(|&name| name.into()).collect());
            assert_eq!(names, expected, "{process_name}");
        }
        let one = program(&[("command", "/bin/cat")]);
        assert_eq!(one.process_names(), Some(vec!["ls".to_owned()]));
    }

    #[test]
    fn priorities_are_known_or_the_default() {
        let priority = |text| program(&[("command", "x"), ("priority", text)]).priority();
        assert_eq!(program(&[("command", "x")]).priority(), 999);
        assert_eq!(priority(" -5 "), -5);
        assert_eq!(priority("%(ENV_P)s"), 999);
        assert_eq!(priority("high"), 999);
    }

    #[test]
    fn the_time_to_start_is_known_or_the_default() {
        let startsecs = |text| program(&[("command", "x"), ("startsecs", text)]).startsecs();
        assert_eq!(program(&[("command", "x")]).startsecs(), 1);
        assert_eq!(startsecs("0"), 0);
        assert_eq!(startsecs("%(ENV_S)s"), 1);
    }

    #[test]
    fn processes_of_the_users_files_are_named_in_the_daemons_order() {
        let table: [(Option<&str>, Range<i64>, &[&str]); 6] = [
            (None, 0..1, &["p"]),
            (Some(" %(group_name)s-%(program_name)s "), 0..1, &["g-p"]),
            (Some("%(process_num)d"), 9..11, &["10", "9"]),
            (Some("%(ENV_A)s%(process_num)02d"), 0..2, &["a00", "a01"]),
            (Some("%(ENV_B)s%(process_num)02d"), 0..2, &[]),
            (Some("%s"), 0..1, &[]),
        ];
        let lookup = |name: &str| (name == "ENV_A").then(|| "a".to_owned());
        for (process_name, numbers, expected) in table {
            let configured = Configured {
                name: "p",
                group: "g",
                process_name,
                numbers,
            };
            assert_eq!(
                configured.process_names(lookup),
                expected,
                "{process_name:?}"
            );
        }
    }

    #[test]
    fn programs_start_by_themselves_unless_they_say_otherwise() {
        let starts = |text| program(&[("command", "x"), ("autostart", text)]).autostarts();
        assert!(program(&[("command", "x")]).autostarts());
        for text in ["true", "1", "ON", "%(ENV_A)s"] {
            assert!(starts(text), "{text}");
        }
        for text in ["false", "0", "No", "off", "%(process_num)d"] {
            assert_eq!(starts(text), text.starts_with('%'), "{text}");
        }
    }

    #[test]
    fn programs_start_again_as_they_say() {
        let restarts = |options: &[(&str, &str)], status| {
            program(&[&[("command", "x")], options].concat()).restarts(status)
        };
        assert_eq!(restarts(&[], 0), Some(false));
        assert_eq!(restarts(&[], 1), Some(true));
        assert_eq!(restarts(&[], -1), Some(true));
        let table = [
            ("false", "0", 1, Some(false)),
            ("True", "0", 0, Some(true)),
            ("unexpected", "0, 2", 2, Some(false)),
            ("unexpected", "0, 2", 3, Some(true)),
            ("unexpected", "%(ENV_A)s", 3, None),
            ("%(ENV_A)s", "0", 3, None),
        ];
        for (autorestart, exitcodes, status, expected) in table {
            let options = [("autorestart", autorestart), ("exitcodes", exitcodes)];
            assert_eq!(restarts(&options, status), expected, "{options:?}");
        }
    }

    #[test]
    fn what_is_kept_comes_back_and_is_checked_again() {
        let program = program(&[("command", " a ;b %(here)s"), ("priority", "5")]);
        let kept = serde_json::to_string(&program).unwrap();
        assert_eq!(serde_json::from_str::<Program>(&kept).unwrap(), program);
        let broken = kept.replace("\"command\"", "\"commando\"");
        assert!(serde_json::from_str::<Program>(&broken).is_err());
        let smuggled = kept.replace("\"priority\"", "\"x\\n[program:y]\"");
        assert!(serde_json::from_str::<Program>(&smuggled).is_err());
        assert!(serde_json::from_str::<Name>("\"a b\"").is_err());
    }

    #[test]
    fn values_are_not_shown() {
        let shown = format!("{:?}", program(&[("command", "/bin/secret")]));
        assert!(
            shown.contains("command") && !shown.contains("secret"),
            "{shown}"
        );
    }
}
