//! Texts of faults as they may stand in the log: what options are set to may be a secret.

use crate::daemon::fault::{CANT_REREAD, INCORRECT_PARAMETERS, is_unread};
use crate::xmlrpc::Fault;

/// What stands for a value.
const HIDDEN: &str = "…";

/// The words in which the daemon and Python complain about options (`supervisor/datatypes.py`,
/// `supervisor/options.py`): everything else in such a text may be a value.
const WORDS: &[&str] = &[
    "%(process_num)",
    "10",
    "1",
    "above",
    "an",
    "and",
    "are",
    "argument",
    "arguments",
    "as",
    "at",
    "autorestart",
    "Available",
    "bad",
    "badly",
    "base",
    "be",
    "because",
    "below",
    "boolean",
    "bound",
    "byte",
    "can",
    "cannot",
    "CANT_REREAD",
    "character",
    "code",
    "codes",
    "command",
    "contains",
    "converted",
    "could",
    "directory",
    "does",
    "empty",
    "end",
    "enough",
    "Error",
    "every",
    "exist",
    "existing",
    "exit",
    "expanded",
    "file",
    "find",
    "float",
    "for",
    "format",
    "formatted",
    "given",
    "gives",
    "group",
    "has",
    "have",
    "id",
    "in",
    "INCORRECT_PARAMETERS",
    "index",
    "int()",
    "integer",
    "integers",
    "invalid",
    "is",
    "it",
    "its",
    "key/value",
    "killasgroup=false",
    "level",
    "line",
    "list",
    "literal",
    "logging",
    "long",
    "longer",
    "lower",
    "may",
    "most",
    "must",
    "name",
    "named",
    "names",
    "no",
    "not",
    "number",
    "numprocs",
    "octal",
    "of",
    "option",
    "or",
    "out",
    "pairs",
    "part",
    "path",
    "permissions",
    "plain",
    "port",
    "present",
    "process",
    "process_name",
    "processes",
    "program",
    "range",
    "read",
    "required",
    "same",
    "section",
    "set",
    "signal",
    "specify",
    "stands",
    "stopasgroup=true",
    "string",
    "strings",
    "struct",
    "supervisord",
    "than",
    "that",
    "the",
    "to",
    "too",
    "two",
    "type",
    "Unexpected",
    "upper",
    "URL",
    "user",
    "valid",
    "value",
    "when",
    "which",
    "with",
    "within",
    "without",
    "wrong",
    ">",
];

/// The fault's text. Where it speaks of options, only the words of the complaint are left, and the
/// words of `names`.
pub fn without_values(fault: &Fault, names: &[&str]) -> String {
    if !matches!(fault.code, INCORRECT_PARAMETERS | CANT_REREAD) {
        return super::shown(&fault.text);
    }
    let detail = fault.text.split_once(": ").map_or("", |(_, detail)| detail);
    if fault.code == CANT_REREAD && is_unread(detail) {
        return super::shown(&fault.text);
    }
    // The section of the program that the line is about anyway, and its file.
    let text = fault.text.rsplit_once(" in section ");
    let text = text.map_or(fault.text.as_str(), |(text, _)| text);
    let mut words: Vec<&str> = Vec::new();
    for word in text.split_whitespace() {
        if is_known(word, names) {
            words.push(word);
        } else if words.last() != Some(&HIDDEN) {
            words.push(HIDDEN);
        }
    }
    super::shown(&words.join(" "))
}

fn is_known(word: &str, names: &[&str]) -> bool {
    let around = |letter: char| "\"',;:.".contains(letter);
    let word = word.trim_matches(around);
    let bare = word.trim_matches(['(', ')', '[', ']']);
    let is_word =
        |known: &&str| known.eq_ignore_ascii_case(word) || known.eq_ignore_ascii_case(bare);
    WORDS.iter().any(is_word) || names.iter().any(|name| *name == word || *name == bare)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_about_options_lose_their_values() {
        for (text, expected) in [
            (
                "INCORRECT_PARAMETERS: invalid literal for int() with base 10: 's3cret' in section 'program:p' (file: '/etc/s.conf')",
                "INCORRECT_PARAMETERS: invalid literal for int() with base 10: …",
            ),
            (
                "INCORRECT_PARAMETERS: Invalid user name hunter2 in section 'program:p'",
                "INCORRECT_PARAMETERS: Invalid user name …",
            ),
            (
                "INCORRECT_PARAMETERS: Unexpected end of key/value pairs in value 'TOKEN=\"a b c' in section 'program:p'",
                "INCORRECT_PARAMETERS: Unexpected end of key/value pairs in value …",
            ),
            (
                "INCORRECT_PARAMETERS: The directory named as part of the path /s3cret/x does not exist",
                "INCORRECT_PARAMETERS: The directory named as part of the path … does not exist",
            ),
            ("INCORRECT_PARAMETERS", "INCORRECT_PARAMETERS"),
            (
                "INCORRECT_PARAMETERS: Invalid name: 'a b' because of character: ' '",
                "INCORRECT_PARAMETERS: Invalid name: … because of character: …",
            ),
        ] {
            let fault = Fault {
                code: INCORRECT_PARAMETERS,
                text: text.to_owned(),
            };
            assert_eq!(without_values(&fault, &[]), expected);
        }
    }

    #[test]
    fn what_to_do_about_unread_files_stays() {
        let ours = crate::include_dir::unreadable_for("joe", std::path::Path::new("/etc/x"));
        let daemons = "supervisord-like: s3cret";
        for (detail, is_whole) in [(ours.as_str(), true), (daemons, false)] {
            let text = format!("CANT_REREAD: {detail}");
            let fault = Fault {
                code: CANT_REREAD,
                text: text.clone(),
            };
            assert_eq!(without_values(&fault, &[]) == text, is_whole, "{detail}");
        }
    }

    #[test]
    fn names_stay() {
        let fault = Fault {
            code: INCORRECT_PARAMETERS,
            text: "INCORRECT_PARAMETERS: option 'startsecs': is s3cret".to_owned(),
        };
        assert_eq!(
            without_values(&fault, &["startsecs"]),
            "INCORRECT_PARAMETERS: option 'startsecs': is …"
        );
        let fault = Fault {
            code: 10,
            text: "BAD_NAME: group: no\nbody".to_owned(),
        };
        assert_eq!(without_values(&fault, &[]), "BAD_NAME: group: no\\nbody");
    }
}
