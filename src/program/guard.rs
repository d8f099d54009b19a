//! Escapes values so that the daemon's parser reads them back unchanged.
//!
//! The parser (`configparser` under `supervisor/options.py`, `UnhosedConfigParser`) cuts a value at
//! `;` or `#` after white space, strips each of its lines and joins them. It does so before the value
//! is expanded. A conversion that expands to an empty text therefore hides the character behind it from
//! the parser.

use super::template::Piece;
use crate::python::is_space;

/// Expands to an empty text in the sections of groups and programs. `expand_here` in
/// `supervisor/options.py` does not replace it, because it only replaces `%(here)s`.
const GUARD: &str = "%(here).0s";

/// Renders pieces, with a [`GUARD`] wherever the parser would cut, strip or join.
pub(super) fn escape(pieces: &[Piece]) -> String {
    let mut out = String::new();
    let mut last = Last::LineStart;
    for piece in pieces {
        match piece {
            Piece::Text(text) => {
                for c in text.chars() {
                    last = push_char(&mut out, last, c);
                }
            }
            Piece::Conversion(conversion) => {
                out.push_str(&conversion.render());
                last = Last::Other;
            }
        }
    }
    if !out.is_empty() && matches!(last, Last::LineStart | Last::Space) {
        out.push_str(GUARD);
    }
    out
}

/// The last character of the output, as far as the parser cares.
#[derive(Clone, Copy)]
enum Last {
    /// The line is empty so far.
    LineStart,
    Space,
    Percent,
    Other,
}

fn push_char(out: &mut String, last: Last, c: char) -> Last {
    let needs_guard = match last {
        Last::LineStart => is_space(c) || matches!(c, ';' | '#' | '['),
        Last::Space => matches!(c, ';' | '#' | '[' | '\n'),
        // `expand_here` would replace the `%(here)s` in `%%(here)s`.
        Last::Percent => c == '(',
        Last::Other => false,
    };
    if needs_guard {
        out.push_str(GUARD);
    }
    out.push(c);
    match c {
        '%' => {
            out.push('%');
            Last::Percent
        }
        '\n' => Last::LineStart,
        c if is_space(c) => Last::Space,
        _ => Last::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::super::template::Template;
    use super::*;

    #[test]
    fn guards_are_where_the_parser_would_change_the_value() {
        let table = [
            ("", ""),
            ("/bin/cat", "/bin/cat"),
            ("a;b#c [d]", "a;b#c |[d]"),
            ("a ;b\t#c\u{3000};", "a |;b\t|#c\u{3000}|;"),
            (";", "|;"),
            ("[program:x]", "|[program:x]"),
            (" a ", "| a |"),
            ("\u{a0}a\u{85}", "|\u{a0}a\u{85}|"),
            ("a\n[b]\n#c", "a\n|[b]\n|#c"),
            ("a\n\n b \n", "a\n|\n| b |\n|"),
            ("\n", "|\n|"),
            ("50%%", "50%%"),
            ("%%(here)s", "%%|(here)s"),
            ("%(here)s %%", "%(here)-s %%"),
            (" %(ENV_A)s ;", "| %(ENV_A)s |;"),
        ];
        for (text, expected) in table {
            let escaped = escape(&Template::parse(text).unwrap().0);
            assert_eq!(escaped.replace(GUARD, "|"), expected, "{text:?}");
        }
    }
}
