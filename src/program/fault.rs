//! Rewrites the daemon's fault texts about generated sections to texts about the client's program.

use super::section::group_setting;
use super::{Program, Scope, section_and_file};
use crate::fault::complaint::{self, REASONS};
use crate::marked_text::MarkedText;
use crate::python::repr;

/// The variable that generated sections set, as the daemon lists it in its faults.
const GROUP_VARIABLE: &str = "ENV_SUPERVISOR_GROUP_NAME";

/// The beginning of a conversion that expands to a variable of the daemon's environment.
const VARIABLE: &str = "%(ENV_";

/// See [`Program::in_client_words`].
pub(super) fn in_client_words(
    program: &Program,
    text: &str,
    section: &str,
    main_file: &str,
) -> MarkedText {
    let suffix = format!(
        " in section {} (file: ",
        repr(&format!("program:{section}"))
    );
    let Some(end) = text.rfind(&suffix) else {
        return complaint::reason(text); // a fault about another section
    };
    let mut detail = text[..end].to_owned();
    // The sections of one program's processes only differ in `numprocs_start`, which the daemon does
    // not expand, so `One(0)` stands for all of them.
    for scope in [Scope::All, Scope::One(0)] {
        for (option, file_text) in program.file_texts(scope) {
            detail = with_client_format(program, detail, option, &file_text);
        }
    }
    detail = with_client_names(program, detail, section);
    detail = without_group_setting(program, detail);
    reason(program, &detail).unlogged(section_and_file(program.name(), main_file))
}

/// Replaces the escaped text of an option by the client's. The daemon quotes the text that it read from
/// the file in faults about format strings.
fn with_client_format(program: &Program, detail: String, option: &str, file_text: &str) -> String {
    let Some(client_text) = program.text(option).filter(|text| *text != file_text) else {
        return detail;
    };
    let format = |text: &str| format!("Format string {} for ", repr(text));
    match detail.strip_prefix(&format(file_text)) {
        Some(rest) => format!("{}{rest}", format(client_text)),
        None => detail,
    }
}

/// Replaces the name of the generated section by the program's. Names in quotes come first, because
/// `repr` chooses the quotes by the characters of the name.
fn with_client_names(program: &Program, detail: String, section: &str) -> String {
    let mut detail = detail;
    for option in program.options.keys() {
        let quoted = |name: &str| repr(&format!("program:{name}.{option}"));
        detail = detail.replace(&quoted(section), &quoted(program.name()));
    }
    detail.replace(
        &format!("program:{section}"),
        &format!("program:{}", program.name()),
    )
}

/// Removes `SUPERVISOR_GROUP_NAME`, which generated sections set, from the quoted `environment` and from
/// the list of available names.
fn without_group_setting(program: &Program, detail: String) -> String {
    let setting = group_setting(program.group()).unwrap_or_default();
    let detail = detail.replacen(&format!(" in value '{setting}"), " in value '", 1);
    let environment = program.options.get("environment");
    if environment.is_some_and(|text| text.contains("SUPERVISOR_GROUP_NAME")) {
        return detail;
    }
    let Some((before, names)) = detail.split_once("Available names: ") else {
        return detail;
    };
    let names: Vec<_> = names
        .split(", ")
        .filter(|name| *name != GROUP_VARIABLE)
        .collect();
    format!("{before}Available names: {}", names.join(", "))
}

/// Returns the reason with its values marked. A reason that may reveal a variable of the daemon's
/// environment is replaced by one that names the options with variables: a client that may add programs
/// may not be allowed to see the daemon's secrets.
fn reason(program: &Program, detail: &str) -> MarkedText {
    let uses_variables = |text: &str| text.contains(VARIABLE);
    let options = program.options.iter();
    let with_variables: Vec<&str> = options
        .filter(|(_, text)| uses_variables(text))
        .map(|(option, _)| option.as_ref())
        .collect();
    if let Some(reason) = about_client_format(program, detail) {
        return reason;
    }
    if with_variables.is_empty() || shows_client_value(program, detail) {
        complaint::reason(detail)
    } else {
        MarkedText::from(with_variables.join(" or "))
            .and(" is not valid with what the variables of supervisord's environment hold")
    }
}

/// Marks the values of a reason that quotes a format string exactly as the client sent it. Returns
/// `None` for any other reason: the daemon expands a log file's path twice, and may quote the result of
/// the first expansion.
fn about_client_format(program: &Program, detail: &str) -> Option<MarkedText> {
    let rest = detail.strip_prefix("Format string ")?;
    let mut texts = program.options.keys().filter_map(|name| program.text(name));
    let (text, rest) = texts.find_map(|text| {
        let text = repr(text);
        let rest = rest.strip_prefix(&text)?.strip_prefix(" for ")?;
        Some((text, rest))
    })?;
    let start = MarkedText::from("Format string ").value(text).and(" for ");
    let (before, behind) = (" contains names (", ") which cannot be expanded");
    let unknown_names = || {
        let (option, rest) = rest.split_once(before)?;
        let (names, rest) = rest.rsplit_once(behind)?;
        Some(
            MarkedText::from(option)
                .and(before)
                .value(names)
                .and(behind)
                .and(rest),
        )
    };
    Some(start.then(&unknown_names().unwrap_or_else(|| MarkedText::default().value(rest))))
}

/// Returns whether the value in a reason is exactly one that the client sent, without an expansion.
fn shows_client_value(program: &Program, detail: &str) -> bool {
    let value = REASONS
        .iter()
        .find_map(|(before, behind)| detail.strip_prefix(before)?.strip_suffix(behind));
    let literals = program.options.values().filter(|text| !text.contains('%'));
    value.is_some_and(|value| {
        literals
            .map(|text| text.trim())
            .any(|text| value == text || value == repr(text) || value == repr(&text.to_lowercase()))
    })
}

#[cfg(test)]
mod tests {
    use super::super::tests::program;

    const GENERATED: &str = " in section 'program:ls~000001' (file: '/etc/conf.d/zz-x.conf')";
    const CLIENTS: &str = " in section 'program:ls' (file: '/s.conf')";

    #[test]
    fn faults_are_about_the_clients_program() {
        let program = program(&[
            ("command", "echo ;%(program_name)s %(nope)s %%(here)s"),
            ("environment", "A=%(nope)s"),
            ("directory", " %(nope)s"),
        ]);
        let table = [
            ("Invalid user name 'x'", "Invalid user name 'x'"),
            (
                "Format string 'echo %(here).0s;ls %(nope)s %%%(here).0s(here)s' for \
                 'program:ls~000001.command' contains names ('nope') which cannot be expanded. \
                 Available names: ENV_A, ENV_SUPERVISOR_GROUP_NAME, here",
                "Format string 'echo ;%(program_name)s %(nope)s %%(here)s' for \
                 'program:ls.command' contains names ('nope') which cannot be expanded. \
                 Available names: ENV_A, here",
            ),
            (
                "Format string 'SUPERVISOR_GROUP_NAME=\"g\",A=%(nope)s' for 'environment' is",
                "Format string 'A=%(nope)s' for 'environment' is",
            ),
            (
                "Format string '%(here).0s %(nope)s' for 'program:ls~000001.directory' is",
                "Format string ' %(nope)s' for 'program:ls.directory' is",
            ),
            (
                "Unexpected end of key/value pairs in value 'SUPERVISOR_GROUP_NAME=\"g\",A'",
                "Unexpected end of key/value pairs in value 'A'",
            ),
        ];
        for (daemons, clients) in table {
            let daemons = format!("{daemons}{GENERATED}");
            let text = program.in_client_words(&daemons, "ls~000001", "/s.conf");
            assert_eq!(text.whole(), format!("{clients}{CLIENTS}"));
            assert!(!text.without_values().contains("nope"), "{text:?}");
        }
    }

    #[test]
    fn faults_do_not_reveal_the_daemons_environment() {
        let program = program(&[
            ("command", "cat '%(ENV_A)s"),
            ("user", "nosuch"),
            ("startsecs", "%(ENV_B)s"),
        ]);
        let hidden = "command or startsecs is not valid with what the variables of supervisord's \
                      environment hold";
        for (daemons, clients) in [
            ("Invalid user name nosuch", "Invalid user name nosuch"),
            ("Invalid user name nosuch2", hidden),
            ("invalid literal for int() with base 10: 'secret'", hidden),
            ("No closing quotation", hidden),
            (
                "Format string '/secret %' for 'stdout_logfile' is badly",
                hidden,
            ),
            ("a reason of another release: secret", hidden),
        ] {
            let daemons = format!("{daemons}{GENERATED}");
            let text = program.in_client_words(&daemons, "ls~000001", "/s.conf");
            assert_eq!(text.whole(), format!("{clients}{CLIENTS}"));
        }
    }

    #[test]
    fn faults_about_other_sections_are_unchanged() {
        let program = program(&[("command", "x")]);
        let text = "Invalid user name y in section 'program:y' (file: '/etc/conf.d/y.conf')";
        let rewritten = program.in_client_words(text, "ls~000001", "/s.conf");
        assert_eq!(rewritten.whole(), text);
    }
}
