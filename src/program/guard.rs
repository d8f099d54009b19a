//! Values that the daemon's parser reads back whole.
//!
//! The parser (`configparser` under `supervisor/options.py`, `UnhosedConfigParser`) cuts a value at
//! `;` or `#` after white space, strips each of its lines and joins them. All this comes before the
//! value is expanded, so a conversion that expands to nothing can stand where a character must not
//! be seen.

use super::template::Piece;
use crate::python::is_space;

/// Expands to nothing, in the sections of groups as well as of programs, and is not what
/// `expand_here` looks for.
const GUARD: &str = "%(here).0s";

/// Writes pieces out, with a guard wherever the parser would cut, strip or join.
pub(super) fn guarded(pieces: &[Piece]) -> String {
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
                out.push_str(&conversion.written());
                last = Last::Other;
            }
        }
    }
    if !out.is_empty() && matches!(last, Last::LineStart | Last::Space) {
        out.push_str(GUARD);
    }
    out
}

/// What was written last, as far as it matters for what comes next.
#[derive(Clone, Copy)]
enum Last {
    /// Nothing on this line.
    LineStart,
    Space,
    Percent,
    Other,
}

fn push_char(out: &mut String, last: Last, c: char) -> Last {
    let hidden = match last {
        Last::LineStart => is_space(c) || matches!(c, ';' | '#' | '['),
        Last::Space => matches!(c, ';' | '#' | '[' | '\n'),
        // Or else `%%(here)s` would hold `%(here)s`, which `expand_here` replaces.
        Last::Percent => c == '(',
        Last::Other => false,
    };
    if hidden {
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
    fn guards_stand_where_the_parser_would_not_see_the_value_whole() {
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
            let written = guarded(&Template::parse(text).unwrap().0);
            assert_eq!(written.replace(GUARD, "|"), expected, "{text:?}");
        }
    }
}
