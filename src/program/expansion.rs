//! Which format strings a client may send.

use super::name::is_carried;
use super::options::Reading;
use super::template::{Conversion, FormatError, Piece, Template};
use super::{Program, Refusal};
use crate::marked_text::MarkedText;
use crate::python::repr;

/// Checks that the daemon can expand an option, and will not put more into it than was asked for.
pub(super) fn check(program: &Program, option: &str, reading: Reading) -> Result<(), Refusal> {
    let Some(text) = program.text(option) else {
        return Ok(());
    };
    let shown = match option {
        "process_name" | "environment" => option.to_owned(),
        _ => format!("program:{}.{option}", program.name),
    };
    let template = Template::parse(text).map_err(|error| bad_format(text, &shown, &error))?;
    check_conversions(program, option, &template)?;
    match reading {
        Reading::Twice => check_second_format(program, option, &template),
        _ => Ok(()),
    }
}

/// Checks what comes out of the first expansion. Each stretch of it between the conversions that
/// are left to the daemon has to be a format string for itself.
fn check_second_format(
    program: &Program,
    option: &str,
    template: &Template,
) -> Result<(), Refusal> {
    let known = program.known(Reading::Twice, None);
    for piece in template.clone().resolved(&known).0 {
        if let Piece::Text(text) = piece {
            let again = Template::parse(&text)
                .map_err(|error| bad_second_format(program, option, template, &error))?;
            check_conversions(program, option, &again)?;
        }
    }
    Ok(())
}

/// The daemon's own text where it is known what it finds for the first process.
fn bad_second_format(
    program: &Program,
    option: &str,
    template: &Template,
    error: &FormatError,
) -> Refusal {
    let known = program.known(Reading::Twice, Some(program.numprocs_start));
    let text = template.clone().resolved(&known).text();
    match text.map(|text| (Template::read(&text), text)) {
        // A conversion before that may be what the daemon stops at.
        Some(((before, Some(error)), text)) if before.conversions().next().is_none() => {
            bad_format(&text, option, &error)
        }
        _ => Refusal::option(
            option,
            MarkedText::from("is expanded twice, and the second time it ")
                .then(&error.marked_text()),
        ),
    }
}

fn bad_format(text: &str, option: &str, error: &FormatError) -> Refusal {
    let told = MarkedText::from("Format string ")
        .value(repr(text))
        .and(" for ");
    Refusal::Daemons(told.and(repr(option)).and(" ").then(&error.marked_text()))
}

fn check_conversions(program: &Program, option: &str, template: &Template) -> Result<(), Refusal> {
    template
        .conversions()
        .try_for_each(|conversion| match conversion.name.as_str() {
            "numprocs" => check_character(option, conversion, [program.numprocs.into()]),
            "process_num" => check_character(option, conversion, program.process_nums()),
            "here" if option == "process_name" => Err(Refusal::option(
                option,
                "%(here)s would put a '/' into the name",
            )),
            "ENV_SUPERVISOR_GROUP_NAME" if !keeps_its_environment(program, option) => {
                Err(Refusal::option(
                    option,
                    "ENV_SUPERVISOR_GROUP_NAME is not set; take group_name",
                ))
            }
            _ => Ok(()),
        })
}

/// A number may be expanded to the character it stands for.
fn check_character(
    option: &str,
    conversion: &Conversion,
    numbers: impl IntoIterator<Item = i64>,
) -> Result<(), Refusal> {
    if conversion.kind != 'c' {
        return Ok(());
    }
    let carried = |number| {
        conversion
            .format_number(number)
            .is_some_and(|text| text.chars().all(is_carried))
    };
    if numbers.into_iter().all(carried) {
        Ok(())
    } else {
        Err(Refusal::option(
            option,
            "%c gives a character that cannot be carried",
        ))
    }
}

/// Whether the variable that a generated section sets is not seen by this option, or is the
/// client's own: what `environment` sets is there for all that is expanded after it.
fn keeps_its_environment(program: &Program, option: &str) -> bool {
    let set = program.options.get("environment");
    option == "environment"
        || Reading::of(option) == Reading::PerProgram
        || set.is_some_and(|text| text.contains("SUPERVISOR_GROUP_NAME"))
}

#[cfg(test)]
mod tests {
    use super::super::tests::{parse, with_command};

    #[test]
    fn a_dump_of_the_environment_is_refused() {
        for text in ["%s", "%r", "%5a", "%%%s"] {
            let text = with_command("command", text).unwrap_err();
            assert!(
                text.contains("a conversion has to name its value"),
                "{text}"
            );
        }
        assert!(with_command("stdout_logfile", "/tmp/%%s").is_err());
        assert!(with_command("stdout_logfile", "/tmp/%%(here)s").is_ok());
        assert!(with_command("stdout_logfile", "/tmp/%%%(here)s").is_err());
    }

    #[test]
    fn characters_made_of_numbers_have_to_be_carried() {
        let numbered = |option: &str, start: &str| {
            parse(&[
                ("command", "x"),
                ("numprocs_start", start),
                (option, "%(process_num)c"),
            ])
        };
        assert!(numbered("command", "65").is_ok());
        for start in ["0", "13", "55296", "-1", "1114112"] {
            assert!(numbered("command", start).is_err(), "{start}");
        }
        assert!(with_command("directory", "%(numprocs)c").is_err());
        assert!(with_command("stdout_logfile", "%%(numprocs)c").is_err());
    }

    #[test]
    fn the_group_a_child_is_told_cannot_leak_into_other_options() {
        let text = "%(ENV_SUPERVISOR_GROUP_NAME)s";
        assert!(with_command("directory", text).is_err());
        assert!(with_command("serverurl", text).is_ok());
        let own = [
            ("command", text),
            ("environment", "SUPERVISOR_GROUP_NAME=x"),
        ];
        assert!(parse(&own).is_ok());
    }
}
