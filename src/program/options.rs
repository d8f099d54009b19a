//! The options of a program as a client sends them, and how the daemon reads each of them.

use std::collections::BTreeMap;

use crate::xmlrpc::Value;

use super::Refusal;
use super::name::is_carried;
use crate::marked_text::MarkedText;
use crate::python::{Int, float_repr, int, is_space, repr};

/// Options by their lower-cased names, with values as they would stand in a file.
pub(super) type Options = BTreeMap<String, String>;

/// What the daemon does with the text of an option before it uses it
/// (`supervisor/options.py`, `_processes_from_section`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reading {
    /// Expands it before it counts processes, so without `numprocs` and `process_num`.
    PerProgram,
    /// Expands it for each process.
    PerProcess,
    /// Expands it for each process, and what comes out once more.
    Twice,
    /// Does not know it.
    Ignored,
}

/// The options that the daemon knows, in the order in which it expands them, so that of several
/// faults the same one comes first.
pub(super) const KNOWN_OPTIONS: [(&str, Reading); 32] = [
    ("priority", Reading::PerProgram),
    ("autostart", Reading::PerProgram),
    ("autorestart", Reading::PerProgram),
    ("startsecs", Reading::PerProgram),
    ("startretries", Reading::PerProgram),
    ("stopsignal", Reading::PerProgram),
    ("stopwaitsecs", Reading::PerProgram),
    ("stopasgroup", Reading::PerProgram),
    ("killasgroup", Reading::PerProgram),
    ("exitcodes", Reading::PerProgram),
    ("redirect_stderr", Reading::PerProgram),
    ("numprocs", Reading::PerProgram),
    ("numprocs_start", Reading::PerProgram),
    ("stdout_capture_maxbytes", Reading::PerProgram),
    ("stdout_events_enabled", Reading::PerProgram),
    ("stderr_capture_maxbytes", Reading::PerProgram),
    ("stderr_events_enabled", Reading::PerProgram),
    ("serverurl", Reading::PerProgram),
    ("user", Reading::PerProgram),
    ("umask", Reading::PerProgram),
    ("environment", Reading::PerProcess),
    ("directory", Reading::PerProcess),
    ("stdout_logfile", Reading::Twice),
    ("stdout_logfile_backups", Reading::PerProcess),
    ("stdout_logfile_maxbytes", Reading::PerProcess),
    ("stdout_syslog", Reading::PerProcess),
    ("stderr_logfile", Reading::Twice),
    ("stderr_logfile_backups", Reading::PerProcess),
    ("stderr_logfile_maxbytes", Reading::PerProcess),
    ("stderr_syslog", Reading::PerProcess),
    ("command", Reading::PerProcess),
    ("process_name", Reading::PerProcess),
];

impl Reading {
    /// How the daemon reads `option`.
    pub(super) fn of(option: &str) -> Self {
        let known = KNOWN_OPTIONS.into_iter().find(|(name, _)| *name == option);
        known.map_or(Self::Ignored, |(_, reading)| reading)
    }
}

/// Takes the options out of an XML-RPC struct. Of two that differ in case alone the later wins,
/// as in a file.
pub(super) fn read(options: &Value) -> Result<Options, Refusal> {
    let Value::Struct(members) = options else {
        return Err(Refusal::Ours("the options have to be a struct".into()));
    };
    let mut read = Options::new();
    for (name, value) in members {
        read.insert(option_name(name)?, option_text(name, value)?);
    }
    Ok(read)
}

/// Refuses names that the daemon's parser would take for something else. It expands values only,
/// so nothing can be put into a name to keep it whole.
fn option_name(name: &str) -> Result<String, Refusal> {
    let reason = match name {
        "" => "it is empty",
        _ if name.starts_with('[') => "it would begin a section",
        _ if name.contains(['=', ':']) => "it would end at the '=' or ':'",
        _ if name.contains([';', '#']) => "it would begin a comment",
        _ if name.contains(is_space) => "there is white space in it",
        _ if name.contains(|c: char| c.is_control() || !is_carried(c)) => {
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
    match text.chars().find(|c| !is_carried(*c)) {
        Some(c) => {
            let character = format!("U+{:04X}", c as u32);
            let reason = MarkedText::from("the character ").value(character);
            Err(Refusal::option(name, reason.and(" cannot be carried")))
        }
        None => Ok(text),
    }
}

/// A number that has to be known before the daemon is asked.
pub(super) fn plain_number(options: &Options, option: &str, default: i64) -> Result<i64, Refusal> {
    let Some(text) = options.get(option) else {
        return Ok(default);
    };
    match int(text) {
        Int::Value(value) => Ok(value),
        Int::Huge => Err(Refusal::option(option, "too large")),
        Int::Invalid if !text.contains('%') => Err(Refusal::Daemons(
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
            Refusal::Ours(told) | Refusal::Daemons(told) => told.whole().to_owned(),
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
    fn everything_else_is_refused_without_showing_it() {
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
    fn the_later_of_two_names_that_differ_in_case_wins() {
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
    fn names_that_a_file_cannot_hold_are_refused() {
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
    fn counts_have_to_be_plain() {
        let read = |text: &str| {
            let options = Options::from([("numprocs".to_owned(), text.to_owned())]);
            plain_number(&options, "numprocs", 1).map_err(|refusal| match refusal {
                Refusal::Ours(_) => "ours",
                Refusal::Daemons(_) => "the daemon's",
            })
        };
        assert_eq!(read(" 2\n"), Ok(2));
        assert_eq!(read("two"), Err("the daemon's"));
        assert_eq!(read("%(ENV_N)s"), Err("ours"));
        assert_eq!(read("٣"), Err("ours"));
        assert_eq!(plain_number(&Options::new(), "numprocs", 1).ok(), Some(1));
    }
}
