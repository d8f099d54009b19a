//! Checks of the format strings in a client's options.

use super::name::is_representable;
use super::options::Expansion;
use super::template::{Conversion, FormatError, Piece, Template};
use super::{Program, Refusal};
use crate::marked_text::MarkedText;
use crate::python::repr;

/// Checks that the daemon can expand an option, and that the expansion reveals no value that the
/// option does not name.
pub(super) fn check(program: &Program, option: &str, expansion: Expansion) -> Result<(), Refusal> {
    let Some(text) = program.text(option) else {
        return Ok(());
    };
    let name_in_fault = match option {
        "process_name" | "environment" => option.to_owned(),
        _ => format!("program:{}.{option}", program.name),
    };
    let template =
        Template::parse(text).map_err(|error| bad_format(text, &name_in_fault, &error))?;
    check_conversions(program, option, &template)?;
    match expansion {
        Expansion::Twice => check_second_format(program, option, &template),
        _ => Ok(()),
    }
}

/// Checks the result of the first expansion as a format string. Only the daemon can expand some
/// conversions, so each text between those has to be a valid format string of its own.
fn check_second_format(
    program: &Program,
    option: &str,
    template: &Template,
) -> Result<(), Refusal> {
    let values = program.known_values(Expansion::Twice, None);
    for piece in template.clone().resolve(&values).0 {
        if let Piece::Text(text) = piece {
            let again = Template::parse(&text)
                .map_err(|error| bad_second_format(program, option, template, &error))?;
            check_conversions(program, option, &again)?;
        }
    }
    Ok(())
}

/// Returns the daemon's wording if the proxy can expand the option for the first process, and the
/// proxy's wording otherwise.
fn bad_second_format(
    program: &Program,
    option: &str,
    template: &Template,
    error: &FormatError,
) -> Refusal {
    let values = program.known_values(Expansion::Twice, Some(program.numprocs_start));
    let text = template.clone().resolve(&values).text();
    match text.map(|text| (Template::read(&text), text)) {
        // The daemon may fail at a conversion before the invalid one.
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
    Refusal::Daemon(
        MarkedText::from("Format string ")
            .value(repr(text))
            .and(" for ")
            .and(repr(option))
            .and(" ")
            .then(&error.marked_text()),
    )
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
            "ENV_SUPERVISOR_GROUP_NAME" if !may_use_group_variable(program, option) => {
                Err(Refusal::option(
                    option,
                    "ENV_SUPERVISOR_GROUP_NAME is not set; take group_name",
                ))
            }
            _ => Ok(()),
        })
}

/// Checks that `%c` expands none of the numbers to a character that the file or the daemon's XML
/// cannot hold.
fn check_character(
    option: &str,
    conversion: &Conversion,
    numbers: impl IntoIterator<Item = i64>,
) -> Result<(), Refusal> {
    if conversion.kind != 'c' {
        return Ok(());
    }
    let is_valid = |number| {
        conversion
            .format_number(number)
            .is_some_and(|text| text.chars().all(is_representable))
    };
    if numbers.into_iter().all(is_valid) {
        Ok(())
    } else {
        Err(Refusal::option(
            option,
            "%c gives a character that cannot be carried",
        ))
    }
}

/// Returns whether an option may use `%(ENV_SUPERVISOR_GROUP_NAME)s`. The daemon adds the variables of
/// `environment` before it expands the later options, and a generated section sets this variable there.
/// In the client's own section the variable would be missing unless the client sets it.
fn may_use_group_variable(program: &Program, option: &str) -> bool {
    let environment = program.options.get("environment");
    option == "environment"
        || Expansion::of(option) == Expansion::PerProgram
        || environment.is_some_and(|text| text.contains("SUPERVISOR_GROUP_NAME"))
}

#[cfg(test)]
mod tests {
    use super::super::tests::{parse, with_command};

    #[test]
    fn conversions_that_dump_the_environment_are_refused() {
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
    fn percent_c_has_to_give_a_character_that_xml_can_hold() {
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
    fn the_group_variable_of_generated_sections_is_hidden_from_other_options() {
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
