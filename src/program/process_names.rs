//! Checks of `process_name` and of the names that it expands to.

use std::collections::HashSet;
use std::hash::Hash;
use std::ops::Range;

use super::name::{NameError, check_process_name};
use super::options::Expansion;
use super::template::{KnownValues, Piece, Template};
use super::{DEFAULT_PROCESS_NAME, Program, Refusal};
use crate::marked_text::MarkedText;
use crate::python::{repr, strip};

/// The longest process name in bytes. The daemon makes the name of an automatic log file from it, with
/// about 30 bytes more and its own identifier, and a file name has at most 255 bytes. If the file cannot
/// be created, the daemon does not add the group and gives no reason.
const MAX_BYTES: usize = 200;

/// Checks the text of `process_name` before its expansion, where the daemon refuses some characters. The
/// daemon's fault would quote the stripped text from the file instead of the client's.
pub(super) fn check_text(program: &Program) -> Result<(), Refusal> {
    let Some(text) = program.options.get("process_name") else {
        return Ok(());
    };
    check_process_name(text, strip(text)).map_err(|error| match error {
        NameError::Character {
            character: ' ' | ':' | '/',
            ..
        } => Refusal::Daemon(error.about_value()),
        _ => refused(error.about_value()),
    })
}

/// Checks the names, as far as the proxy can expand them.
pub(super) fn check(program: &Program) -> Result<(), Refusal> {
    let text = program.text("process_name").unwrap_or_default();
    if program.numprocs > 1 && !text.contains("%(process_num)") {
        return Err(Refusal::Daemon(
            "%(process_num) must be present within process_name when numprocs > 1".into(),
        ));
    }
    let Ok(template) = Template::parse(text) else {
        return Ok(()); // `expansion::check` has refused it
    };
    let names: Vec<_> = program
        .process_nums()
        .map(|number| program.known_values(Expansion::PerProcess, Some(number)))
        .map(|values| template.clone().resolve(&values))
        .collect();
    names.iter().try_for_each(check_template)?;
    check_distinct(&names)
}

/// Checks names that the daemon has expanded. A refusal does not quote them, because they may have
/// values from the daemon's environment.
pub(super) fn check_all(names: &[String]) -> Result<(), Refusal> {
    names.iter().try_for_each(|name| check_expanded(name))?;
    check_distinct(names)
}

fn check_expanded(name: &str) -> Result<(), Refusal> {
    check_process_name(name, name).map_err(|error| match error {
        NameError::Character { character, .. } => refused(
            MarkedText::from("comes to a name that is not valid because of character: ")
                .value(repr(&character.to_string())),
        ),
        NameError::Empty(_) => refused("comes to an empty name"),
        NameError::Wildcard => refused(error),
    })?;
    check_length(name)
}

/// A program that the user's files define, as far as its process names depend on it.
#[derive(Clone, Debug)]
pub struct ConfiguredProgram<'a> {
    /// The program's name.
    pub name: &'a str,
    /// The group that has the program.
    pub group: &'a str,
    /// The text of `process_name` in the file.
    pub process_name: Option<&'a str>,
    /// The numbers of the processes.
    pub numbers: Range<i64>,
}

impl ConfiguredProgram<'_> {
    /// Returns the process names in the daemon's order (`supervisor/options.py`, `Config.__lt__`).
    /// `lookup` returns the other values that `process_name` may use, such as `ENV_X`. A name that only
    /// the daemon can expand is left out.
    pub fn process_names(&self, lookup: impl Fn(&str) -> Option<String>) -> Vec<String> {
        let text = strip(self.process_name.unwrap_or(DEFAULT_PROCESS_NAME));
        let Ok(template) = Template::parse(text) else {
            return Vec::new();
        };
        let count = self.numbers.end - self.numbers.start;
        let name_of = |number| {
            let values = KnownValues {
                program_name: self.name,
                group_name: self.group,
                numprocs: Some(count),
                process_num: Some(number),
            };
            template.expand(&values, &lookup)
        };
        let mut names: Vec<String> = self.numbers.clone().filter_map(name_of).collect();
        names.sort();
        names
    }
}

/// Checks that all names differ. If two processes have the same name, the daemon loses one of them.
fn check_distinct<T: Eq + Hash>(names: &[T]) -> Result<(), Refusal> {
    if names.iter().collect::<HashSet<_>>().len() == names.len() {
        Ok(())
    } else {
        Err(refused("gives two processes the same name"))
    }
}

/// Checks a name. If only the daemon can expand it, checks the literal parts.
fn check_template(name: &Template) -> Result<(), Refusal> {
    if let Some(name) = name.text() {
        return check_name(&name);
    }
    name.0.iter().try_for_each(|piece| match piece {
        Piece::Text(text) => match check_process_name(text, text) {
            Err(error @ NameError::Character { .. }) => Err(refused(error.about_value())),
            _ => Ok(()), // a part may be empty or `*`
        },
        Piece::Conversion(_) => Ok(()),
    })
}

/// Checks an expanded name. A process with an empty name or the name `*` makes every later
/// `getAllProcessInfo` fail (`supervisor/options.py`, `split_namespec`).
fn check_name(name: &str) -> Result<(), Refusal> {
    check_process_name(name, name).map_err(|error| refused(error.about_value()))?;
    check_length(name)
}

fn check_length(name: &str) -> Result<(), Refusal> {
    if name.len() <= MAX_BYTES {
        Ok(())
    } else {
        Err(refused(format!("is longer than {MAX_BYTES} bytes")))
    }
}

fn refused(reason: impl Into<MarkedText>) -> Refusal {
    Refusal::option("process_name", reason)
}

#[cfg(test)]
mod tests {
    use super::super::tests::{parse, program, with_command};

    #[test]
    fn process_names_that_clients_cannot_use_are_refused() {
        for text in [
            "",
            " ",
            "*",
            "%(program_name).0s",
            "%%(process_num)s ",
            "a\tb",
            "%(program_name)5s",
            "%(here)s",
            "%(process_num)c",
            "%(ENV_A)s\n-",
            &"n".repeat(201),
        ] {
            let accepted = with_command("process_name", text).is_ok();
            assert_eq!(accepted, text.starts_with("%%"), "{text:?}");
        }
    }

    #[test]
    fn equal_process_names_are_refused() {
        let several = |process_name| {
            parse(&[
                ("command", "x"),
                ("numprocs", "11"),
                ("process_name", process_name),
            ])
        };
        for text in [
            "%%(process_num)d",
            "p%(process_num).0s",
            "p%(process_num).1s",
            "%(ENV_A)s%%(process_num)",
        ] {
            assert!(several(text).is_err(), "{text}");
        }
        assert!(several("%(ENV_A)s%(process_num)d").is_ok());
    }

    #[test]
    fn names_that_the_daemon_expands_are_checked() {
        let program = program(&[
            ("command", "x"),
            ("numprocs", "2"),
            ("process_name", "%(ENV_A)s%(process_num)d"),
        ]);
        let check = |names: [&str; 2]| program.check_process_names(&names.map(String::from));
        assert_eq!(program.process_names(), None);
        assert_eq!(check(["a0", "a1"]), Ok(()));
        for names in [["", "1"], ["*", "1"], ["a b", "1"], ["é", "1"], ["a", "a"]] {
            assert!(check(names).is_err(), "{names:?}");
        }
    }
}
