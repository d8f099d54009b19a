//! Program definitions: parsing a client's options, checking them, and rendering them as a
//! `[program:x]` section that the daemon's parser reads back unchanged.
//!
//! A generated section has a generated name and is in an included file, but has the effect of
//! `[program:NAME]` in the daemon's main file. This module refuses options that would crash or block
//! the daemon, or corrupt its replies. The daemon judges everything else, and `fault` rewrites its
//! fault texts for the client. Except for `log_files`, the module does no I/O.

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

pub use configured::{FromFiles, SEPARATOR, UNLISTED};
pub use name::{Name, NameError};
pub use process_names::ConfiguredProgram;
pub use section::render_group;

use crate::marked_text::MarkedText;
use crate::python::{int, repr, strip};
use crate::words::nearest;
use guard::escape;
use options::{Expansion, KNOWN_OPTIONS, Options};
use template::{KnownValues, Piece, Template};

/// The largest `numprocs` of one program. The daemon takes half a second to list a thousand processes,
/// and answers no other call meanwhile.
pub const MAX_NUMPROCS: u32 = 1000;

/// The daemon's defaults for `process_name` and `priority`.
const DEFAULT_PROCESS_NAME: &str = "%(program_name)s";
const DEFAULT_PRIORITY: i64 = 999;
/// The daemon's default for `startsecs`, in seconds.
pub const DEFAULT_STARTSECS: i64 = 1;
/// The daemon's default for `stopwaitsecs`, in seconds.
pub const DEFAULT_STOPWAITSECS: i64 = 10;

/// Escapes the value of an option so that the daemon's parser reads it back unchanged from a
/// configuration file. Conversions such as `%(here)s` stay conversions.
pub fn value_in_file(value: &str) -> String {
    let escaped = match Template::parse(value) {
        Ok(template) => escape(&template.0),
        // The daemon expands no option whose format is invalid, so the text is escaped literally.
        Err(_) => escape(&[Piece::Text(value.to_owned())]),
    };
    // The parser reads a line without an indent as a new option or section.
    escaped.replace('\n', "\n ")
}

/// The definition of a program in a group, from a client's call or from the user's files.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "SerializedProgram", into = "SerializedProgram")]
pub struct Program {
    group: Name,
    name: Name,
    options: Options,
    numprocs: u32,
    numprocs_start: i64,
    calls_proxy: bool,
    /// The value of `%(numprocs)d`, if this is a part of a larger program.
    total: Option<u32>,
    from_files: Option<FromFiles>,
}

/// Why a program is refused: the fault text behind `INCORRECT_PARAMETERS: `, in the daemon's wording
/// where the daemon has one. `Display` leaves the values out.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{}", .0.without_values())]
pub struct ProgramError(MarkedText);

impl ProgramError {
    /// Returns the text with its values marked.
    pub fn into_marked_text(self) -> MarkedText {
        self.0
    }
}

/// The processes of a program that a section defines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// All processes, in the group that the client named.
    All,
    /// All processes, in a real group of another name.
    Placed,
    /// The process with this index, counted from 0, in a real group of another name.
    One(u32),
}

/// A [`Program`] as it is serialized. Deserialization checks the program again.
#[derive(Serialize, Deserialize)]
struct SerializedProgram {
    group: String,
    name: String,
    options: Options,
    /// Version 0.1.0 wrote no such member: the processes of its programs call the daemon.
    #[serde(default)]
    calls_proxy: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    total: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    from_files: Option<FromFiles>,
}

/// Why a program is refused, before ` in section 'program:x' (file: 'f')` is appended.
#[derive(Debug)]
enum Refusal {
    /// The daemon's wording, to which the daemon appends section and file.
    Daemon(MarkedText),
    /// The proxy's wording, which has no such suffix.
    Proxy(MarkedText),
}

impl Program {
    /// Parses a program from a client's call. `options` has to be a struct with the options of a
    /// `[program:x]` section. `main_file` is the path of the daemon's configuration file, which only
    /// appears in the error text.
    ///
    /// # Errors
    /// If the daemon would refuse the program, or if the program would harm the daemon.
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
        let name = Name::parse(name).map_err(|error| Refusal::Daemon(error.into()))?;
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

    /// Returns the name of the program.
    pub fn name(&self) -> &str {
        self.name.as_str()
    }

    /// Returns the value of an option as the client sent it.
    pub fn option(&self, name: &str) -> Option<&str> {
        self.options.get(name).map(String::as_str)
    }

    /// Returns the options that the daemon does not know and that resemble one that it knows, as pairs
    /// of the option and the known option.
    pub fn misspelt_options(&self) -> impl Iterator<Item = (&str, &'static str)> {
        let options = self.options.keys().map(String::as_str);
        options
            .filter(|option| Expansion::of(option) == Expansion::Ignored)
            .filter_map(|option| {
                let known = KNOWN_OPTIONS.iter().map(|(name, _)| *name);
                Some((option, nearest(option, known)?))
            })
    }

    /// Returns the name of the group that the program belongs to.
    pub fn group(&self) -> &str {
        self.group.as_str()
    }

    /// Returns the number of processes, from 1 to [`MAX_NUMPROCS`].
    pub fn numprocs(&self) -> u32 {
        self.numprocs
    }

    /// Returns the distinct names of the processes in the order of [`Scope::One`], or `None` if
    /// `process_name` uses the daemon's environment or host name, which only the daemon can expand.
    pub fn process_names(&self) -> Option<Vec<String>> {
        self.process_nums()
            .map(|number| self.expand("process_name", number))
            .collect()
    }

    /// Checks the process names that the daemon has expanded, for a program whose
    /// [`Program::process_names`] returns `None`.
    ///
    /// # Errors
    /// If two names are equal, or if the daemon would refuse one.
    pub fn check_process_names(&self, names: &[String]) -> Result<(), ProgramError> {
        process_names::check_all(names).map_err(|refusal| refusal.into_error(self.name(), ""))
    }

    /// Returns the log files of the processes as pairs of option and path. Paths that only the daemon
    /// can expand are left out.
    pub fn log_files(&self) -> Vec<(String, String)> {
        limits::log_files(self)
    }

    /// Returns the priority: 999 if the option is missing or only the daemon can expand it.
    pub fn priority(&self) -> i64 {
        self.number("priority").unwrap_or(DEFAULT_PRIORITY)
    }

    /// Returns how many seconds a process must run before the daemon considers it started: 1 if the
    /// option is missing or only the daemon can expand it.
    pub fn startsecs(&self) -> i64 {
        self.number("startsecs").unwrap_or(DEFAULT_STARTSECS)
    }

    /// Returns how many seconds a process has to stop before the daemon kills it: 10 if the option is
    /// missing or only the daemon can expand it.
    pub fn stopwaitsecs(&self) -> i64 {
        self.number("stopwaitsecs").unwrap_or(DEFAULT_STOPWAITSECS)
    }

    fn number(&self, option: &str) -> Option<i64> {
        int(&self.expand(option, 0)?).value()
    }

    /// Returns whether the daemon starts the processes when their group is added. It also returns
    /// `true` if only the daemon can expand the option (`supervisor/datatypes.py`, `boolean`).
    pub fn autostarts(&self) -> bool {
        let text = self.expand("autostart", 0).unwrap_or_default();
        !matches!(text.to_lowercase().as_str(), "no" | "false" | "off" | "0")
    }

    /// Returns whether the daemon restarts a process that exited with `exitstatus`, or `None` if only
    /// the daemon can expand the options (`supervisor/datatypes.py`, `auto_restart` and
    /// `list_of_exitcodes`).
    pub fn restarts(&self, exitstatus: i64) -> Option<bool> {
        let text = |option, default: &str| {
            if self.options.contains_key(option) {
                self.expand(option, 0)
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

    /// Returns the program with `SUPERVISOR_SERVER_URL` of its placed processes pointing to the proxy,
    /// unless its options set `serverurl`. A program that was added without this keeps calling the
    /// daemon, because the daemon compares sections to find changed groups.
    #[must_use]
    pub fn calling_proxy(self) -> Self {
        let calls_proxy = !self.sets_serverurl();
        Self {
            calls_proxy,
            ..self
        }
    }

    /// Returns whether the options set `serverurl` to something other than `AUTO`, for which the
    /// daemon inserts its own address (`supervisor/options.py`, `processes_from_section`).
    pub fn sets_serverurl(&self) -> bool {
        let is_auto = |text: String| strip(&text).to_uppercase() == "AUTO";
        self.options.contains_key("serverurl") && !self.expand("serverurl", 0).is_some_and(is_auto)
    }

    /// Rewrites the daemon's fault text about the generated `section` to the text that the daemon
    /// would return for the client's program in `main_file`.
    pub fn in_client_words(&self, text: &str, section: &str, main_file: &str) -> MarkedText {
        fault::in_client_words(self, text, section, main_file)
    }

    /// Returns the text that the daemon expands for an option. The daemon strips `process_name`, and
    /// has a default for it.
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

    /// Returns the values that an option of this kind can use and that the proxy knows.
    fn known_values(&self, expansion: Expansion, process_num: Option<i64>) -> KnownValues<'_> {
        let per_process = matches!(expansion, Expansion::PerProcess | Expansion::Twice);
        KnownValues {
            program_name: self.name(),
            group_name: self.group(),
            numprocs: per_process.then_some(i64::from(self.total())),
            process_num: process_num.filter(|_| per_process),
        }
    }

    /// Expands an option for one process. Returns `None` if the option is missing or only the daemon
    /// can expand it.
    fn expand(&self, option: &str, process_num: i64) -> Option<String> {
        let expansion = Expansion::of(option);
        let values = self.known_values(expansion, Some(process_num));
        let expand = |text: &str| Template::parse(text).ok()?.resolve(&values).text();
        let text = expand(self.text(option)?)?;
        match expansion {
            Expansion::Twice => expand(&text),
            _ => Some(text),
        }
    }
}

impl Refusal {
    /// Refuses one option in the proxy's wording, without the option's value, which may be a secret.
    /// The name of an unknown option is marked as a value too: a client may have put a secret there by
    /// mistake.
    fn option(option: &str, reason: impl Into<MarkedText>) -> Self {
        let text = MarkedText::from("option ");
        let text = match Expansion::of(option) {
            Expansion::Ignored => text.value(repr(option)),
            _ => text.and(repr(option)),
        };
        Self::Proxy(text.and(": ").then(&reason.into()))
    }

    fn into_error(self, name: &str, main_file: &str) -> ProgramError {
        ProgramError(match self {
            Self::Daemon(text) => text.unlogged(section_and_file(name, main_file)),
            Self::Proxy(text) => text,
        })
    }
}

/// Returns the suffix that the daemon appends to its fault texts (`supervisor/options.py`,
/// `processes_from_section`).
fn section_and_file(name: &str, main_file: &str) -> String {
    let section = repr(&format!("program:{name}"));
    format!(" in section {section} (file: {})", repr(main_file))
}

/// Leaves out the values of the options, which may be secrets.
impl fmt::Debug for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Program")
            .field("group", &self.group)
            .field("name", &self.name)
            .field("options", &self.options.keys())
            .finish_non_exhaustive()
    }
}

impl TryFrom<SerializedProgram> for Program {
    type Error = ProgramError;

    fn try_from(serialized: SerializedProgram) -> Result<Self, ProgramError> {
        let group =
            Name::parse_group(&serialized.group).map_err(|error| ProgramError(error.into()))?;
        let options = serialized.options.into_iter();
        let options = options
            .map(|(name, text)| (name, Value::String(text)))
            .collect();
        let program = Self::read(&group, &serialized.name, &Value::Struct(options))
            .map_err(|refusal| refusal.into_error(&serialized.name, ""))?;
        Ok(Self {
            calls_proxy: serialized.calls_proxy,
            total: serialized.total,
            from_files: serialized.from_files,
            ..program
        })
    }
}

impl From<Program> for SerializedProgram {
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
    fn refusals_are_logged_without_values() {
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
    fn misspelt_options_are_found() {
        let options = [
            ("command", "/bin/cat"),
            ("AutoStrat", "false"),
            ("stdout_logfil", "NONE"),
            ("autorestart", "true"),
            ("colour", "red"),
        ];
        let program = parse(&options).unwrap();
        let misspelt: Vec<_> = program.misspelt_options().collect();
        let expected = [
            ("autostrat", "autostart"),
            ("stdout_logfil", "stdout_logfile"),
        ];
        assert_eq!(misspelt, expected);
    }

    pub(super) fn with_command(option: &str, text: &str) -> Result<(), String> {
        parse(&[("command", "/bin/cat"), (option, text)]).map(|_| ())
    }

    pub(super) fn program(options: &[(&str, &str)]) -> Program {
        parse(options).unwrap()
    }

    #[test]
    fn process_names_are_known_unless_only_the_daemon_can_expand_them() {
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
    fn an_unknown_priority_is_the_default() {
        let priority = |text| program(&[("command", "x"), ("priority", text)]).priority();
        assert_eq!(program(&[("command", "x")]).priority(), 999);
        assert_eq!(priority(" -5 "), -5);
        assert_eq!(priority("%(ENV_P)s"), 999);
        assert_eq!(priority("high"), 999);
    }

    #[test]
    fn an_unknown_startsecs_is_the_default() {
        let startsecs = |text| program(&[("command", "x"), ("startsecs", text)]).startsecs();
        assert_eq!(program(&[("command", "x")]).startsecs(), 1);
        assert_eq!(startsecs("0"), 0);
        assert_eq!(startsecs("%(ENV_S)s"), 1);
    }

    #[test]
    fn names_of_configured_processes_are_in_the_daemons_order() {
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
            let configured = ConfiguredProgram {
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
    fn programs_autostart_unless_autostart_is_false() {
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
    fn restarts_follow_autorestart_and_exitcodes() {
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
    fn a_serialized_program_is_checked_when_it_is_read_back() {
        let program = program(&[("command", " a ;b %(here)s"), ("priority", "5")]);
        let json = serde_json::to_string(&program).unwrap();
        assert_eq!(serde_json::from_str::<Program>(&json).unwrap(), program);
        let broken = json.replace("\"command\"", "\"commando\"");
        assert!(serde_json::from_str::<Program>(&broken).is_err());
        let smuggled = json.replace("\"priority\"", "\"x\\n[program:y]\"");
        assert!(serde_json::from_str::<Program>(&smuggled).is_err());
        assert!(serde_json::from_str::<Name>("\"a b\"").is_err());
    }

    #[test]
    fn debug_output_has_no_values() {
        let debug = format!("{:?}", program(&[("command", "/bin/secret")]));
        assert!(
            debug.contains("command") && !debug.contains("secret"),
            "{debug}"
        );
    }
}
