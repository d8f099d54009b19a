//! The daemon's faults about generated sections, told about the client's.

use super::section::group_setting;
use super::{Program, Scope, daemons_ending};
use crate::python::repr;

/// The variable that generated sections set, as the daemon lists it.
const GROUP_VARIABLE: &str = "ENV_SUPERVISOR_GROUP_NAME";

/// What is in an option for the daemon to put a variable of its environment there.
const VARIABLE: &str = "%(ENV_";

/// What stands before and behind the value in the daemon's reasons (`supervisor/datatypes.py`, and
/// Python's own for an integer).
const REASONS: [(&str, &str); 11] = [
    ("Invalid user name ", ""),
    ("Invalid user id ", ""),
    ("invalid 'autorestart' value ", ""),
    ("not a valid boolean value: ", ""),
    ("not a valid list of exit codes: ", ""),
    ("invalid literal for int() with base 10: ", ""),
    ("value ", " is not a valid signal name"),
    ("value ", " is not a valid signal number"),
    ("", " can not be converted to an octal type"),
    (
        "The directory named as part of the path ",
        " does not exist",
    ),
    ("Unexpected end of key/value pairs in value '", "'"),
];

/// See [`Program::in_client_words`].
pub(super) fn in_client_words(
    program: &Program,
    text: &str,
    section: &str,
    main_file: &str,
) -> String {
    let own_ending = format!(
        " in section {} (file: ",
        repr(&format!("program:{section}"))
    );
    let Some(end) = text.rfind(&own_ending) else {
        return text.to_owned(); // about something else
    };
    let mut words = text[..end].to_owned();
    // The processes of one program differ by no value in their sections but a number, which is not
    // expanded.
    for scope in [Scope::All, Scope::One(0)] {
        for (option, written) in program.file_texts(scope) {
            words = with_client_format(program, words, option, &written);
        }
    }
    words = with_client_names(program, words, section);
    words = without_group_setting(program, words);
    words = without_environment(program, words);
    format!("{words}{}", daemons_ending(program.name(), main_file))
}

/// Faults about formats show the text as it was parsed.
fn with_client_format(program: &Program, words: String, option: &str, written: &str) -> String {
    let Some(sent) = program.text(option).filter(|sent| *sent != written) else {
        return words;
    };
    let format = |text: &str| format!("Format string {} for ", repr(text));
    match words.strip_prefix(&format(written)) {
        Some(rest) => format!("{}{rest}", format(sent)),
        None => words,
    }
}

/// A name may decide which quotes stand around it.
fn with_client_names(program: &Program, words: String, section: &str) -> String {
    let mut words = words;
    for option in program.options.keys() {
        let quoted = |name: &str| repr(&format!("program:{name}.{option}"));
        words = words.replace(&quoted(section), &quoted(program.name()));
    }
    words.replace(
        &format!("program:{section}"),
        &format!("program:{}", program.name()),
    )
}

/// Takes the setting out of what is shown of `environment`, and the variable from the list of names
/// that could have been used.
fn without_group_setting(program: &Program, words: String) -> String {
    let setting = group_setting(program.group()).unwrap_or_default();
    let words = words.replacen(&format!(" in value '{setting}"), " in value '", 1);
    let environment = program.options.get("environment");
    if environment.is_some_and(|text| text.contains("SUPERVISOR_GROUP_NAME")) {
        return words;
    }
    let Some((before, names)) = words.split_once("Available names: ") else {
        return words;
    };
    let names: Vec<_> = names
        .split(", ")
        .filter(|name| *name != GROUP_VARIABLE)
        .collect();
    format!("{before}Available names: {}", names.join(", "))
}

/// A reason that may show what a variable of the daemon's environment holds names the options with
/// variables instead: who may add a program need not know the daemon's secrets.
fn without_environment(program: &Program, words: String) -> String {
    let uses_variables = |text: &str| text.contains(VARIABLE);
    let options = program.options.iter();
    let with_variables: Vec<&str> = options
        .filter(|(_, text)| uses_variables(text))
        .map(|(option, _)| option.as_ref())
        .collect();
    let is_told = shows_format_as_sent(program, &words) || shows_value_as_sent(program, &words);
    match with_variables.is_empty() || is_told {
        true => words,
        false => format!(
            "{} is not valid with what the variables of supervisord's environment hold",
            with_variables.join(" or ")
        ),
    }
}

/// Whether a reason shows the text of an option as the client sent it. That of a log file is expanded
/// twice, and may be shown in between.
fn shows_format_as_sent(program: &Program, words: &str) -> bool {
    let mut sent = program.options.keys().filter_map(|name| program.text(name));
    sent.any(|text| words.starts_with(&format!("Format string {} for ", repr(text))))
}

/// Whether the value in a reason is one that the client sent as it is shown.
fn shows_value_as_sent(program: &Program, words: &str) -> bool {
    let shown = REASONS
        .iter()
        .find_map(|(before, behind)| words.strip_prefix(before)?.strip_suffix(behind));
    let sent = program.options.values().filter(|text| !text.contains('%'));
    shown.is_some_and(|shown| {
        sent.map(|text| text.trim())
            .any(|text| shown == text || shown == repr(text) || shown == repr(&text.to_lowercase()))
    })
}

#[cfg(test)]
mod tests {
    use super::super::tests::program;

    const OWN: &str = " in section 'program:ls~000001' (file: '/etc/conf.d/zz-x.conf')";
    const CLIENTS: &str = " in section 'program:ls' (file: '/s.conf')";

    #[test]
    fn faults_speak_of_the_program_the_client_sent() {
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
        for (own, clients) in table {
            assert_eq!(
                program.in_client_words(&format!("{own}{OWN}"), "ls~000001", "/s.conf"),
                format!("{clients}{CLIENTS}"),
            );
        }
    }

    #[test]
    fn faults_do_not_tell_the_daemons_environment() {
        let program = program(&[
            ("command", "cat '%(ENV_A)s"),
            ("user", "nosuch"),
            ("startsecs", "%(ENV_B)s"),
        ]);
        let hidden = "command or startsecs is not valid with what the variables of supervisord's \
                      environment hold";
        for (own, clients) in [
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
            assert_eq!(
                program.in_client_words(&format!("{own}{OWN}"), "ls~000001", "/s.conf"),
                format!("{clients}{CLIENTS}"),
            );
        }
    }

    #[test]
    fn other_faults_stay_as_they_are() {
        let program = program(&[("command", "x")]);
        let text = "Invalid user name y in section 'program:y' (file: '/etc/conf.d/y.conf')";
        assert_eq!(program.in_client_words(text, "ls~000001", "/s.conf"), text);
    }
}
