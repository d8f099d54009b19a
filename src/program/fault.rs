//! The daemon's faults about generated sections, told about the client's.

use super::section::group_setting;
use super::{Program, Scope, daemons_ending};
use crate::fault::complaint::{self, REASONS};
use crate::marked_text::MarkedText;
use crate::python::repr;

/// The variable that generated sections set, as the daemon lists it.
const GROUP_VARIABLE: &str = "ENV_SUPERVISOR_GROUP_NAME";

/// What is in an option for the daemon to put a variable of its environment there.
const VARIABLE: &str = "%(ENV_";

/// See [`Program::in_client_words`].
pub(super) fn in_client_words(
    program: &Program,
    text: &str,
    section: &str,
    main_file: &str,
) -> MarkedText {
    let own_ending = format!(
        " in section {} (file: ",
        repr(&format!("program:{section}"))
    );
    let Some(end) = text.rfind(&own_ending) else {
        return complaint::reason(text); // about something else
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
    reason(program, &words).unlogged(daemons_ending(program.name(), main_file))
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

/// The reason with its values marked. One that may show what a variable of the daemon's environment
/// holds names the options with variables instead: who may add a program need not know the daemon's
/// secrets.
fn reason(program: &Program, words: &str) -> MarkedText {
    let uses_variables = |text: &str| text.contains(VARIABLE);
    let options = program.options.iter();
    let with_variables: Vec<&str> = options
        .filter(|(_, text)| uses_variables(text))
        .map(|(option, _)| option.as_ref())
        .collect();
    if let Some(told) = about_format_as_sent(program, words) {
        return told;
    }
    if with_variables.is_empty() || shows_value_as_sent(program, words) {
        complaint::reason(words)
    } else {
        MarkedText::from(with_variables.join(" or "))
            .and(" is not valid with what the variables of supervisord's environment hold")
    }
}

/// A reason that shows the text of an option as the client sent it. That of a log file is expanded
/// twice, and may be shown in between.
fn about_format_as_sent(program: &Program, words: &str) -> Option<MarkedText> {
    let rest = words.strip_prefix("Format string ")?;
    let mut sent = program.options.keys().filter_map(|name| program.text(name));
    let (text, rest) = sent.find_map(|text| {
        let text = repr(text);
        let rest = rest.strip_prefix(&text)?.strip_prefix(" for ")?;
        Some((text, rest))
    })?;
    let told = MarkedText::from("Format string ").value(text).and(" for ");
    let (before, behind) = (" contains names (", ") which cannot be expanded");
    let parts = || {
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
    Some(told.then(&parts().unwrap_or_else(|| MarkedText::default().value(rest))))
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
            let told = program.in_client_words(&format!("{own}{OWN}"), "ls~000001", "/s.conf");
            assert_eq!(told.whole(), format!("{clients}{CLIENTS}"));
            assert!(!told.without_values().contains("nope"), "{told:?}");
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
            let told = program.in_client_words(&format!("{own}{OWN}"), "ls~000001", "/s.conf");
            assert_eq!(told.whole(), format!("{clients}{CLIENTS}"));
        }
    }

    #[test]
    fn other_faults_stay_as_they_are() {
        let program = program(&[("command", "x")]);
        let text = "Invalid user name y in section 'program:y' (file: '/etc/conf.d/y.conf')";
        let told = program.in_client_words(text, "ls~000001", "/s.conf");
        assert_eq!(told.whole(), text);
    }
}
