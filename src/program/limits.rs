//! Limits on numbers and log files: the daemon accepts values that later crash it or corrupt its
//! replies.

use std::path::{Component, Path};

use super::template::{Piece, Template};
use super::{Program, Refusal};
use crate::python::{Int, byte_size, int, is_space};

/// The largest number of log backups. At a rollover the daemon looks for every backup by name, which
/// blocks it for 5 ms per thousand.
const MAX_BACKUPS: i64 = 10_000;

/// Checks the numbers and log files of a program.
pub(super) fn check(program: &Program) -> Result<(), Refusal> {
    check_numbers(program)?;
    check_log(program, "stdout")?;
    check_log(program, "stderr")
}

/// Checks the numbers that the daemon lists in its replies. XML-RPC integers have 32 bits, so with a
/// larger one `getAllConfigInfo` fails. A far larger `startsecs` ends the daemon.
fn check_numbers(program: &Program) -> Result<(), Refusal> {
    let max = i32::MAX.into();
    for option in [
        "priority",
        "startretries",
        "startsecs",
        "stopwaitsecs",
        "user",
    ] {
        check_number(program, option, int, max)?;
    }
    for channel in ["stdout", "stderr"] {
        let option = |of: &str| format!("{channel}_{of}");
        check_number(program, &option("logfile_backups"), int, MAX_BACKUPS)?;
        check_number(program, &option("logfile_maxbytes"), byte_size, max)?;
        check_number(program, &option("capture_maxbytes"), byte_size, max)?;
    }
    Ok(())
}

fn check_number(
    program: &Program,
    option: &str,
    read: fn(&str) -> Int,
    max: i64,
) -> Result<(), Refusal> {
    let Some(text) = program.text(option) else {
        return Ok(());
    };
    for number in distinct_processes(program, text) {
        match program.expand(option, number).as_deref().map(read) {
            Some(Int::Value(value)) if (i64::from(i32::MIN)..=max).contains(&value) => {}
            Some(Int::Value(_) | Int::Huge) => {
                let reason = format!("has to be from {} to {max}", i32::MIN);
                return Err(Refusal::option(option, reason));
            }
            Some(Int::Foreign) => {
                return Err(Refusal::option(
                    option,
                    "has to be written with the digits 0 to 9",
                ));
            }
            Some(Int::Invalid) => {} // the daemon refuses it
            None => check_lone_conversion(option, text)?,
        }
    }
    Ok(())
}

/// Checks a number that only the daemon can expand. A single conversion is accepted: its value is the
/// daemon's own. A conversion among other digits is refused, because the number may become too large.
fn check_lone_conversion(option: &str, text: &str) -> Result<(), Refusal> {
    let Ok(template) = Template::parse(text) else {
        return Ok(()); // `expansion::check` has refused it
    };
    let is_lone = template.conversions().count() == 1
        && template.0.iter().all(|piece| match piece {
            Piece::Text(text) => {
                matches!(
                    text.trim_matches(is_space).to_lowercase().as_str(),
                    "" | "kb" | "mb"
                )
            }
            Piece::Conversion(_) => true,
        });
    if is_lone {
        Ok(())
    } else {
        Err(Refusal::option(
            option,
            "a number of several parts cannot be checked",
        ))
    }
}

/// Refuses a log that is written to a device or pipe and rotates. Such a file is not seekable, so the
/// rollover raises an exception, which ends the daemon if a process has just exited
/// (`supervisor/loggers.py`, `doRollover`).
fn check_log(program: &Program, channel: &str) -> Result<(), Refusal> {
    let option = format!("{channel}_logfile");
    let Some(text) = program.text(&option).filter(|_| logs(program, channel)) else {
        return Ok(());
    };
    let size = format!("{channel}_logfile_maxbytes");
    let size_text = program.text(&size).unwrap_or_default();
    for number in distinct_processes(program, &format!("{text}{size_text}")) {
        let path = program.expand(&option, number);
        if path.is_some_and(|path| is_special(&path)) && rotates(program, &size, number) {
            let reason = format!("needs {size} to be 0 for a device");
            return Err(Refusal::option(&option, reason));
        }
    }
    Ok(())
}

/// See [`Program::log_files`].
pub(super) fn log_files(program: &Program) -> Vec<(String, String)> {
    let mut files = Vec::new();
    for channel in ["stdout", "stderr"] {
        let option = format!("{channel}_logfile");
        let Some(text) = program.text(&option).filter(|_| logs(program, channel)) else {
            continue;
        };
        let paths = distinct_processes(program, text).filter_map(|n| program.expand(&option, n));
        files.extend(paths.map(|path| (option.clone(), path)));
    }
    files
}

/// Returns whether a log rotates, given the option with its maximum size. It does by default.
fn rotates(program: &Program, size: &str, number: i64) -> bool {
    match (program.text(size), program.expand(size, number)) {
        (None, _) => true,
        (Some(_), None) => false, // only the daemon can expand it
        (Some(_), Some(text)) => matches!(byte_size(&text), Int::Value(1..) | Int::Huge),
    }
}

/// Returns whether the daemon writes the log of a channel. With `redirect_stderr` it ignores
/// `stderr_logfile`.
fn logs(program: &Program, channel: &str) -> bool {
    let redirected = program
        .expand("redirect_stderr", 0)
        .is_some_and(|text| matches!(text.to_lowercase().as_str(), "yes" | "true" | "on" | "1"));
    channel == "stdout" || !redirected
}

/// Returns whether a path looks like that of a terminal or of the daemon's own output.
fn is_special(path: &str) -> bool {
    let mut parts = Path::new(path).components().map(Component::as_os_str);
    let mut next = || {
        parts
            .next()
            .and_then(|part| part.to_str())
            .unwrap_or_default()
    };
    match (next(), next()) {
        ("/", "dev") => !matches!(next(), "null" | "zero" | "full" | "shm"),
        ("/", "proc") => (next(), next()).1 == "fd",
        _ => false,
    }
}

/// Returns the numbers of the processes for which `text` may expand differently.
fn distinct_processes(program: &Program, text: &str) -> impl Iterator<Item = i64> + use<> {
    let varies = text.contains("process_num");
    program
        .process_nums()
        .take(if varies { usize::MAX } else { 1 })
}

#[cfg(test)]
mod tests {
    use super::super::tests::{parse, with_command};

    #[test]
    fn numbers_beyond_the_limits_are_refused() {
        for (option, text) in [
            ("priority", "2147483648"),
            ("startsecs", "-2147483649"),
            ("startretries", "1000000000000000000000"),
            ("stopwaitsecs", "٣"),
            ("stopwaitsecs", "1%(ENV_ZEROS)s"),
            ("user", "4294967294"),
            ("stdout_logfile_backups", "10001"),
            ("stderr_logfile_maxbytes", "2gb"),
            ("stdout_capture_maxbytes", "2097152KB"),
            ("stdout_capture_maxbytes", "%(ENV_SIZE)sGB"),
            ("stdout_logfile_maxbytes", "%(numprocs)010d%(process_num)s0"),
        ] {
            let accepted = with_command(option, text).is_ok();
            assert_eq!(
                accepted,
                option == "stdout_logfile_maxbytes",
                "{option} {text}"
            );
        }
        for (option, text) in [
            ("priority", "-2147483648"),
            ("priority", "first"),
            ("startsecs", " %(ENV_SECS)s "),
            ("user", "nobody"),
            ("stdout_logfile_backups", "10000"),
            ("stderr_logfile_maxbytes", "2047MB"),
            ("stdout_capture_maxbytes", "%(ENV_SIZE)sMB"),
        ] {
            assert_eq!(with_command(option, text), Ok(()), "{option} {text}");
        }
    }

    #[test]
    fn rotating_logs_to_devices_are_refused() {
        for path in [
            "/dev/stdout",
            "//dev/./fd/1",
            "/proc/self/fd/2",
            "/dev/pts/0",
        ] {
            assert!(with_command("stdout_logfile", path).is_err(), "{path}");
            let size = "stdout_logfile_maxbytes";
            let without_rotation = [("command", "x"), ("stdout_logfile", path), (size, " 0 ")];
            assert!(parse(&without_rotation).is_ok());
        }
        for path in [
            "/dev/null",
            "/dev/shm/x",
            "/var/dev/x",
            "dev/x",
            "NONE",
            "/proc/x",
        ] {
            assert_eq!(with_command("stderr_logfile", path), Ok(()), "{path}");
        }
        let both = [
            ("command", "x"),
            ("stderr_logfile", "/dev/stderr"),
            ("redirect_stderr", "On"),
        ];
        assert!(parse(&both).is_ok());
    }
}
