//! The checks that a program has to pass before the daemon reads it. They refuse a program that cannot
//! be written to a file without a change of meaning, and one that would crash or block the daemon or
//! corrupt its replies. The daemon judges everything else when it reads the section.

use super::options::{KNOWN_OPTIONS, Options, plain_number};
use super::section::group_setting;
use super::{MAX_NUMPROCS, Program, Refusal, expansion, limits, process_names};
use crate::python::repr;

/// Checks a program whose `numprocs` and `numprocs_start` are valid.
pub(super) fn check(program: &Program) -> Result<(), Refusal> {
    process_names::check_text(program)?;
    for (option, reading) in KNOWN_OPTIONS {
        expansion::check(program, option, reading)?;
    }
    check_group(program)?;
    process_names::check(program)?;
    limits::check(program)?;
    if program.options.contains_key("command") {
        Ok(())
    } else {
        let name = &program.name;
        let reason = format!("program section program:{name} does not specify a command");
        Err(Refusal::Daemon(reason.into()))
    }
}

/// Parses `numprocs`. The daemon accepts 0, but no client could address or remove such a program.
pub(super) fn numprocs(options: &Options) -> Result<u32, Refusal> {
    let number = plain_number(options, "numprocs", 1)?;
    match u32::try_from(number) {
        Ok(count @ 1..=MAX_NUMPROCS) => Ok(count),
        _ => Err(Refusal::option(
            "numprocs",
            format!("has to be from 1 to {MAX_NUMPROCS}"),
        )),
    }
}

/// Parses `numprocs_start`, the number of the first process.
pub(super) fn numprocs_start(options: &Options) -> Result<i64, Refusal> {
    let number = plain_number(options, "numprocs_start", 0)?;
    match i32::try_from(number) {
        Ok(start) => Ok(start.into()),
        Err(_) => Err(Refusal::option(
            "numprocs_start",
            "does not fit into 32 bits",
        )),
    }
}

fn check_group(program: &Program) -> Result<(), Refusal> {
    match group_setting(program.group()) {
        Some(_) => Ok(()),
        None => {
            let reason = format!(
                "group {}: its processes cannot be told this name, because of the quotes in it",
                repr(program.group())
            );
            Err(Refusal::Proxy(reason.into()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{ENDING, parse, with_command};

    fn refusal(options: &[(&str, &str)]) -> String {
        match parse(options) {
            Ok(program) => panic!("accepted {program:?}"),
            Err(text) => text,
        }
    }

    #[test]
    fn refusals_have_the_daemons_wording_if_it_has_one() {
        let table: [(&[(&str, &str)], &str); 9] = [
            (&[], "program section program:ls does not specify a command"),
            (
                &[("command", "50%")],
                "Format string '50%' for 'program:ls.command' is badly formatted: incomplete format",
            ),
            (
                &[("command", "x"), ("environment", "A=%y")],
                "Format string 'A=%y' for 'environment' is badly formatted: unsupported format \
                 character 'y' (0x79) at index 3",
            ),
            (
                &[("command", "x"), ("stdout_logfile", "/%(program_name)s%%")],
                "Format string '/ls%' for 'stdout_logfile' is badly formatted: incomplete format",
            ),
            (
                &[("command", "x"), ("process_name", " a b ")],
                "Invalid name: ' a b ' because of character: ' '",
            ),
            (
                &[("command", "x"), ("process_name", "%(process_num) d")],
                "Invalid name: '%(process_num) d' because of character: ' '",
            ),
            (
                &[("command", "x"), ("numprocs", "2")],
                "%(process_num) must be present within process_name when numprocs > 1",
            ),
            (
                &[("command", "x"), ("numprocs", "two")],
                "invalid literal for int() with base 10: 'two'",
            ),
            (
                &[("command", "%( ;)s")],
                "Format string '%( ;)s' for 'program:ls.command' contains names (' ;') which \
                 cannot be expanded",
            ),
        ];
        for (options, expected) in table {
            assert_eq!(refusal(options), format!("{expected}{ENDING}"));
        }
    }

    #[test]
    fn numprocs_and_numprocs_start_have_bounds() {
        for (option, text) in [
            ("numprocs", "0"),
            ("numprocs", "-1"),
            ("numprocs", "1001"),
            ("numprocs_start", "2147483648"),
        ] {
            assert!(with_command(option, text).is_err(), "{option} {text}");
        }
        assert!(with_command("numprocs_start", "-2147483648").is_ok());
    }
}
