//! Quoting and escaping of text, as the daemon does it in links, pages and requests.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

/// The characters that Python's `urllib.parse.quote` escapes: all but letters, digits and these.
const QUOTED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'_')
    .remove(b'.')
    .remove(b'-')
    .remove(b'~')
    .remove(b'/');

/// `urllib.parse.quote(text)`
pub(super) fn quote(text: &str) -> String {
    utf8_percent_encode(text, QUOTED).to_string()
}

/// `urllib.parse.unquote(text)`
pub(super) fn unquote(text: &str) -> String {
    percent_decode_str(text).decode_utf8_lossy().into_owned()
}

/// The value of a field of a form (`urllib.parse.parse_qs`).
pub(super) fn field(text: &str) -> String {
    unquote(&text.replace('+', " "))
}

/// Escapes text for a page (`supervisor/templating.py`, `_escape_cdata`). Text that looks like an entity is not
/// escaped.
pub(super) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for (at, letter) in text.char_indices() {
        match letter {
            '&' if !is_entity(&text[at + 1..]) => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            other => escaped.push(other),
        }
    }
    escaped
}

/// Whether `rest`, after a `&`, makes an entity according to `_NONENTITY_RE`.
fn is_entity(rest: &str) -> bool {
    let name = |letter: char| letter.is_ascii_alphanumeric() || matches!(letter, '#' | '_');
    rest.trim_start_matches(name).starts_with(';')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_quoted_as_python_does() {
        assert_eq!(
            quote("web~1:a b/\u{e9}&\"%"),
            "web~1%3Aa%20b/%C3%A9%26%22%25"
        );
        assert_eq!(unquote("web%3Aa+%C3%A9%zz"), "web:a+\u{e9}%zz");
        assert_eq!(field("a+b%2B"), "a b+");
    }

    #[test]
    fn entities_are_not_escaped_again() {
        assert_eq!(
            escape("a&b<c>\"&lt;&#38;&;& x;"),
            "a&amp;b&lt;c>\"&lt;&#38;&;&amp; x;"
        );
    }
}
