//! Marks the option values in the daemon's fault texts about its configuration files.

use crate::marked_text::MarkedText;

/// The texts before and behind the value in the daemon's reasons (`supervisor/datatypes.py`, and Python's
/// `int`).
pub const REASONS: [(&str, &str); 11] = [
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

/// Reasons without a value (`supervisor/options.py`).
const WITHOUT_VALUE: [&str; 3] = [
    "%(process_num) must be present within process_name when numprocs > 1",
    "Cannot set stopasgroup=true and killasgroup=false",
    "No closing quotation",
];

/// Marks the value in a reason, which comes without the section that the daemon appends. An unknown reason
/// is marked as a whole, because it may have a value anywhere.
pub fn reason(text: &str) -> MarkedText {
    let has_no_value = WITHOUT_VALUE.contains(&text)
        || text.starts_with("program section ") && text.ends_with(" does not specify a command");
    if has_no_value {
        return MarkedText::from(text);
    }
    let parts = REASONS.iter().find_map(|(before, behind)| {
        let value = text.strip_prefix(before)?.strip_suffix(behind)?;
        Some((before, value, behind))
    });
    match parts {
        Some((before, value, behind)) => MarkedText::from(before).value(value).and(behind),
        None => MarkedText::default().value(text),
    }
}

/// Marks the value in the text of a fault, which has the fault's name, a reason, and a section.
pub fn fault_text(text: &str) -> MarkedText {
    let Some((name, detail)) = text.split_once(": ") else {
        return MarkedText::from(text);
    };
    let name = MarkedText::from(name).and(": ");
    // A value may have this text too. The daemon appends the last one.
    match detail.rsplit_once(" in section ") {
        Some((text, section)) if section.ends_with(')') => {
            name.then(&reason(text)).and(" in section ").and(section)
        }
        _ => name.then(&reason(detail)),
    }
}

/// Returns whether the text names the `section` of a program, and not a section with a longer name.
pub fn names_section(text: &str, section: &str) -> bool {
    let name = format!("program:{section}");
    text.match_indices(&name)
        .any(|(at, _)| !text[at + name.len()..].starts_with(continues_name))
}

/// Returns whether the character continues the name of a generated section.
fn continues_name(next: char) -> bool {
    next.is_ascii_digit() || next == '~'
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_marked() {
        let section = " in section 'program:p' (file: '/etc/s.conf')";
        for (reason, logged) in [
            (
                "invalid literal for int() with base 10: 's3cret'",
                "invalid literal for int() with base 10: …",
            ),
            ("Invalid user name hunter2", "Invalid user name …"),
            (
                "Unexpected end of key/value pairs in value 'TOKEN=\"a b c'",
                "Unexpected end of key/value pairs in value '…'",
            ),
            (
                "The directory named as part of the path /s3cret/x does not exist",
                "The directory named as part of the path … does not exist",
            ),
            (
                "program section p does not specify a command",
                "program section p does not specify a command",
            ),
            (
                "Cannot set stopasgroup=true and killasgroup=false",
                "Cannot set stopasgroup=true and killasgroup=false",
            ),
            ("a reason of another release: s3cret", "…"),
            ("s3cret in section x", "…"),
        ] {
            let text = fault_text(&format!("CANT_REREAD: {reason}{section}"));
            assert_eq!(text.whole(), format!("CANT_REREAD: {reason}{section}"));
            assert_eq!(
                text.without_values(),
                format!("CANT_REREAD: {logged}{section}")
            );
            let text = fault_text(&format!("CANT_REREAD: {reason}"));
            assert_eq!(text.without_values(), format!("CANT_REREAD: {logged}"));
        }
        assert_eq!(
            fault_text("INCORRECT_PARAMETERS").without_values(),
            "INCORRECT_PARAMETERS"
        );
    }

    #[test]
    fn a_section_is_matched_by_its_whole_name() {
        let table = [
            (
                "bad in section 'program:web~000001' (file: 'x')",
                "web~000001",
                true,
            ),
            (
                "bad in section 'program:web~0000012' (file: 'x')",
                "web~000001",
                false,
            ),
            (
                "bad in section 'program:web~000001~2' (file: 'x')",
                "web~000001",
                false,
            ),
            (
                "bad in section 'program:web~000001~2' (file: 'x')",
                "web~000001~2",
                true,
            ),
            (
                "program:web~0000012 and program:web~000001:",
                "web~000001",
                true,
            ),
            ("bad in section 'group:web~000001'", "web~000001", false),
        ];
        for (text, section, expected) in table {
            assert_eq!(names_section(text, section), expected, "{text}");
        }
    }
}
