//! The options of a program as a client sends them, and how the daemon expands each of them.

use std::collections::BTreeMap;

use crate::xmlrpc::Value;

use super::Refusal;
use super::name::is_representable;
use crate::marked_text::MarkedText;
use crate::python::{Int, float_repr, int, is_space, repr};

/// The texts of options as in a configuration file, by their lower-case names.
pub(super) type Options = BTreeMap<String, String>;

/// How the daemon expands the text of an option (`supervisor/options.py`, `_processes_from_section`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Expansion {
    /// Once for the program, without `numprocs` and `process_num`.
    PerProgram,
    /// Once for each process.
    PerProcess,
    /// Twice for each process: the second time it expands the result of the first.
    Twice,
    /// Not at all: the daemon does not know the option.
    Ignored,
}

/// The options that the daemon knows, in the order in which it expands them: of several invalid options
/// the proxy reports the one that the daemon would report.
pub(super) const KNOWN_OPTIONS: [(&str, Expansion); 32] = [
    ("priority", Expansion::PerProgram),
    ("autostart", Expansion::PerProgram),
    ("autorestart", Expansion::PerProgram),
    ("startsecs", Expansion::PerProgram),
    ("startretries", Expansion::PerProgram),
    ("stopsignal", Expansion::PerProgram),
    ("stopwaitsecs", Expansion::PerProgram),
    ("stopasgroup", Expansion::PerProgram),
    ("killasgroup", Expansion::PerProgram),
    ("exitcodes", Expansion::PerProgram),
    ("redirect_stderr", Expansion::PerProgram),
    ("numprocs", Expansion::PerProgram),
    ("numprocs_start", Expansion::PerProgram),
    ("stdout_capture_maxbytes", Expansion::PerProgram),
    ("stdout_events_enabled", Expansion::PerProgram),
    ("stderr_capture_maxbytes", Expansion::PerProgram),
    ("stderr_events_enabled", Expansion::PerProgram),
    ("serverurl", Expansion::PerProgram),
    ("user", Expansion::PerProgram),
    ("umask", Expansion::PerProgram),
    ("environment", Expansion::PerProcess),
    ("directory", Expansion::PerProcess),
    ("stdout_logfile", Expansion::Twice),
    ("stdout_logfile_backups", Expansion::PerProcess),
    ("stdout_logfile_maxbytes", Expansion::PerProcess),
    ("stdout_syslog", Expansion::PerProcess),
    ("stderr_logfile", Expansion::Twice),
    ("stderr_logfile_backups", Expansion::PerProcess),
    ("stderr_logfile_maxbytes", Expansion::PerProcess),
    ("stderr_syslog", Expansion::PerProcess),
    ("command", Expansion::PerProcess),
    ("process_name", Expansion::PerProcess),
];

impl Expansion {
    /// Returns how the daemon expands `option`.
    pub(super) fn of(option: &str) -> Self {
        let known = KNOWN_OPTIONS.into_iter().find(|(name, _)| *name == option);
        known.map_or(Self::Ignored, |(_, expansion)| expansion)
    }
}

/// Reads the options from an XML-RPC struct. If two names only differ in case, the later one wins, as in
/// a file.
pub(super) fn read(options: &Value) -> Result<Options, Refusal> {
    let Value::Struct(members) = options else {
        return Err(Refusal::Proxy("the options have to be a struct".into()));
    };
    let mut texts = Options::new();
    for (name, value) in members {
        texts.insert(option_name(name)?, option_text(name, value)?);
    }
    Ok(texts)
}

/// Returns the lower-case name. Refuses names that the daemon's parser would misread: it does not expand
/// names, so they cannot be escaped.
fn option_name(name: &str) -> Result<String, Refusal> {
    let reason = match name {
        "" => "it is empty",
        _ if name.starts_with('[') => "it would begin a section",
        _ if name.contains(['=', ':']) => "it would end at the '=' or ':'",
        _ if name.contains([';', '#']) => "it would begin a comment",
        _ if name.contains(is_space) => "there is white space in it",
        _ if name.contains(|c: char| c.is_control() || !is_representable(c)) => {
            "there is a control character in it"
        }
        _ => return Ok(name.to_lowercase()),
    };
    Err(Refusal::option(
        name,
        format!("not a name that can be written to a file: {reason}"),
    ))
}

fn option_text(name: &str, value: &Value) -> Result<String, Refusal> {
    let text = match value {
        Value::String(text) => text.clone(),
        Value::Int(number) => number.to_string(),
        Value::Bool(truth) => truth.to_string(),
        Value::Double(number) => float_repr(*number),
        Value::Nil | Value::DateTime(_) | Value::Array(_) | Value::Struct(_) => {
            return Err(Refusal::option(
                name,
                "has to be a string, a number or a boolean",
            ));
        }
    };
    match text.chars().find(|c| !is_representable(*c)) {
        Some(c) => {
            let character = format!("U+{:04X}", c as u32);
            let reason = MarkedText::from("the character ").value(character);
            Err(Refusal::option(name, reason.and(" cannot be carried")))
        }
        None => Ok(text),
    }
}

/// Parses a number that the proxy has to know before it asks the daemon, so that the option may have no
/// conversions. Returns `default` if the option is missing.
pub(super) fn plain_number(options: &Options, option: &str, default: i64) -> Result<i64, Refusal> {
    let Some(text) = options.get(option) else {
        return Ok(default);
    };
    match int(text) {
        Int::Value(value) => Ok(value),
        Int::Huge => Err(Refusal::option(option, "too large")),
        Int::Invalid if !text.contains('%') => Err(Refusal::Daemon(
            MarkedText::from("invalid literal for int() with base 10: ").value(repr(text)),
        )),
        Int::Invalid | Int::Foreign => Err(Refusal::option(
            option,
            "has to be a plain number, because it settles which processes there are",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(name: &str, value: Value) -> Result<Options, String> {
        read(&Value::Struct(vec![(name.to_owned(), value)])).map_err(|refusal| match refusal {
            Refusal::Proxy(text) | Refusal::Daemon(text) => text.whole().to_owned(),
        })
    }

    #[test]
    fn scalars_become_text() {
        let table = [
            (Value::String(" a ;b\n".to_owned()), " a ;b\n"),
            (Value::Int(-5), "-5"),
            (Value::Bool(true), "true"),
            (Value::Double(2.0), "2.0"),
        ];
        for (value, text) in table {
            let options = with("StartSecs", value).unwrap();
            assert_eq!(options.get("startsecs").map(String::as_str), Some(text));
        }
    }

    #[test]
    fn other_values_are_refused_without_being_quoted() {
        let secret = || "secret".to_owned();
        for value in [
            Value::Nil,
            Value::DateTime(secret()),
            Value::Array(vec![Value::String(secret())]),
            Value::Struct(vec![(secret(), Value::Nil)]),
            Value::String("secret\r".to_owned()),
            Value::String("secret\0".to_owned()),
            Value::String("secret\u{1c}".to_owned()),
            Value::String("secret\u{ffff}".to_owned()),
        ] {
            let text = with("command", value).unwrap_err();
            assert!(text.starts_with("option 'command': "), "{text}");
            assert!(!text.contains("secret"), "{text}");
        }
        assert!(read(&Value::Nil).is_err());
    }

    #[test]
    fn of_two_names_that_differ_in_case_the_later_wins() {
        let member = |name: &str, number| (name.to_owned(), Value::Int(number));
        let options = read(&Value::Struct(vec![
            member("PRIORITY", 1),
            member("priority", 2),
        ]));
        let Ok(options) = options else {
            panic!("refused")
        };
        assert_eq!(options.get("priority").map(String::as_str), Some("2"));
    }

    #[test]
    fn names_that_the_parser_would_misread_are_refused() {
        for name in [
            "", "[x", "a=b", "a:b", "#a", ";a", "a ;b", " a", "a ", "a\nb", "a\u{85}", "a\0",
        ] {
            let text = with(name, Value::Int(1)).unwrap_err();
            assert!(
                text.contains("not a name that can be written to a file"),
                "{name:?}: {text}"
            );
        }
        assert!(with("x-no.such_option%s]", Value::Int(1)).is_ok());
    }

    #[test]
    fn counts_have_no_conversions() {
        let read = |text: &str| {
            let options = Options::from([("numprocs".to_owned(), text.to_owned())]);
            plain_number(&options, "numprocs", 1).map_err(|refusal| match refusal {
                Refusal::Proxy(_) => "the proxy's",
                Refusal::Daemon(_) => "the daemon's",
            })
        };
        assert_eq!(read(" 2\n"), Ok(2));
        assert_eq!(read("two"), Err("the daemon's"));
        assert_eq!(read("%(ENV_N)s"), Err("the proxy's"));
        assert_eq!(read("٣"), Err("the proxy's"));
        assert_eq!(plain_number(&Options::new(), "numprocs", 1).ok(), Some(1));
    }
}
