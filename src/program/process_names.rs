//! Which names the processes of a program may have.

use std::collections::HashSet;
use std::hash::Hash;
use std::ops::Range;

use super::name::{NameError, check_process_name};
use super::options::Reading;
use super::template::{Known, Piece, Template};
use super::{DEFAULT_PROCESS_NAME, Program, Refusal};
use crate::marked_text::MarkedText;
use crate::python::{repr, strip};

/// The daemon puts a process name into the name of an automatic log file, with some 30 bytes around
/// it and the identifier it was given; a file name has 255. Where that fails the group is not
/// added, with no reason given.
const MAX_BYTES: usize = 200;

/// The daemon looks for some characters before it expands this option; the file has the text
/// without the white space around it, so its fault would show another one.
pub(super) fn check_text(program: &Program) -> Result<(), Refusal> {
    let Some(text) = program.options.get("process_name") else {
        return Ok(());
    };
    check_process_name(text, strip(text)).map_err(|error| match error {
        NameError::Character {
            character: ' ' | ':' | '/',
            ..
        } => Refusal::Daemons(error.about_value()),
        _ => refused(error.about_value()),
    })
}

/// Checks what is known of the names beforehand.
pub(super) fn check(program: &Program) -> Result<(), Refusal> {
    let text = program.text("process_name").unwrap_or_default();
    if program.numprocs > 1 && !text.contains("%(process_num)") {
        return Err(Refusal::Daemons(
            "%(process_num) must be present within process_name when numprocs > 1".into(),
        ));
    }
    let Ok(template) = Template::parse(text) else {
        return Ok(()); // has been refused
    };
    let names: Vec<_> = program
        .process_nums()
        .map(|number| program.known(Reading::PerProcess, Some(number)))
        .map(|known| template.clone().resolved(&known))
        .collect();
    names.iter().try_for_each(check_template)?;
    check_distinct(&names)
}

/// Checks names that the daemon gave. A refusal does not show them: they hold what the daemon's
/// environment holds.
pub(super) fn check_all(names: &[String]) -> Result<(), Refusal> {
    names.iter().try_for_each(|name| check_given(name))?;
    check_distinct(names)
}

fn check_given(name: &str) -> Result<(), Refusal> {
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

/// A program as the user's files define it.
#[derive(Clone, Debug)]
pub struct Configured<'a> {
    /// The program's name.
    pub name: &'a str,
    /// The group that takes it in.
    pub group: &'a str,
    /// Its `process_name` as it is written.
    pub process_name: Option<&'a str>,
    /// The numbers of its processes.
    pub numbers: Range<i64>,
}

impl Configured<'_> {
    /// The names of its processes in the daemon's order (`supervisor/options.py`, `Config.__lt__`).
    /// `lookup` knows what else `process_name` may speak of. A name that only the daemon can tell is
    /// left out.
    pub fn process_names(&self, lookup: impl Fn(&str) -> Option<String>) -> Vec<String> {
        let text = strip(self.process_name.unwrap_or(DEFAULT_PROCESS_NAME));
        let Ok(template) = Template::parse(text) else {
            return Vec::new();
        };
        let count = self.numbers.end - self.numbers.start;
        let named = |number| {
            let known = Known {
                program_name: self.name,
                group_name: self.group,
                numprocs: Some(count),
                process_num: Some(number),
            };
            template.expanded(&known, &lookup)
        };
        let mut names: Vec<String> = self.numbers.clone().filter_map(named).collect();
        names.sort();
        names
    }
}

/// Of two processes with one name the daemon loses one.
fn check_distinct<T: Eq + Hash>(names: &[T]) -> Result<(), Refusal> {
    if names.iter().collect::<HashSet<_>>().len() == names.len() {
        Ok(())
    } else {
        Err(refused("gives two processes the same name"))
    }
}

/// Of a name that only the daemon can tell, the parts that are known can be checked.
fn check_template(name: &Template) -> Result<(), Refusal> {
    if let Some(name) = name.text() {
        return check_name(&name);
    }
    name.0.iter().try_for_each(|piece| match piece {
        Piece::Text(text) => match check_process_name(text, text) {
            Err(error @ NameError::Character { .. }) => Err(refused(error.about_value())),
            _ => Ok(()), // empty or a wildcard in itself, but there is more to it
        },
        Piece::Conversion(_) => Ok(()),
    })
}

/// A process with an empty name, or the name `*`, would make `getAllProcessInfo` fail from then on
/// (`supervisor/options.py`, `split_namespec`).
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
    fn process_names_nobody_could_use_are_refused() {
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
    fn processes_of_one_name_are_refused() {
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
    fn names_from_the_daemon_are_checked_too() {
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
