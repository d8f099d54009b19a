//! Text and numbers as Python sees them, because the daemon's parser and its fault texts do.

/// What `int()` makes of a text.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Int {
    /// A number.
    Value(i64),
    /// A number beyond 64 bits.
    Huge,
    /// Digits of another script, which `int()` reads and this module does not.
    Foreign,
    /// No number.
    Invalid,
}

/// Reads `text` as `int(text)` does: stripped, with a sign, single underscores between digits.
pub(super) fn int(text: &str) -> Int {
    let text = strip(text);
    let (negative, digits) = match text.strip_prefix(['+', '-']) {
        Some(rest) => (text.starts_with('-'), rest),
        None => (false, text),
    };
    if text.chars().any(|c| !c.is_ascii() && c.is_numeric()) {
        return Int::Foreign;
    }
    let grouped = digits
        .split('_')
        .all(|part| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit()));
    if !grouped {
        return Int::Invalid;
    }
    match digits.replace('_', "").parse::<i64>() {
        Ok(value) if negative => Int::Value(-value),
        Ok(value) => Int::Value(value),
        Err(_) => Int::Huge,
    }
}

/// Reads `text` as the daemon reads a size: a number, perhaps with KB, MB or GB behind it
/// (`supervisor/datatypes.py`, `SuffixMultiplier`).
pub(super) fn byte_size(text: &str) -> Int {
    let lower = text.to_lowercase();
    for (suffix, factor) in [("kb", 1 << 10), ("mb", 1 << 20), ("gb", 1 << 30)] {
        if let Some(number) = lower.strip_suffix(suffix) {
            return match int(number) {
                Int::Value(value) => value.checked_mul(factor).map_or(Int::Huge, Int::Value),
                other => other,
            };
        }
    }
    int(&lower)
}

/// `str.isspace()`. The four separators that Unicode does not count among its white space make
/// the difference to [`char::is_whitespace`].
pub(super) fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

/// `str.strip()`.
pub(super) fn strip(text: &str) -> &str {
    text.trim_matches(is_space)
}

/// `repr()` of a string.
pub(super) fn repr(text: &str) -> String {
    let quote = match text.contains('\'') && !text.contains('"') {
        true => '"',
        false => '\'',
    };
    let mut out = String::from(quote);
    for c in text.chars() {
        match c {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\\' => out.push_str("\\\\"),
            c if c == quote => out.extend(['\\', c]),
            c if is_printable(c) => out.push(c),
            c => out.push_str(&escaped(c as u32)),
        }
    }
    out.push(quote);
    out
}

fn escaped(code: u32) -> String {
    match code {
        0..=0xff => format!("\\x{code:02x}"),
        0x100..=0xffff => format!("\\u{code:04x}"),
        _ => format!("\\U{code:08x}"),
    }
}

/// `str.isprintable()`. Rust's own escapes follow the same categories beyond ASCII; a letter goes in
/// front because a combining mark is escaped at the start of a string only.
fn is_printable(c: char) -> bool {
    let shown: String = ['a', c].iter().collect();
    match c.is_ascii() {
        true => !c.is_ascii_control(),
        false => shown.escape_debug().eq(shown.chars()),
    }
}

/// `repr()` of a float.
pub(super) fn float_repr(value: f64) -> String {
    if value.is_nan() {
        return "nan".to_owned();
    }
    let scientific = format!("{value:e}");
    let Some((mantissa, Ok(exponent))) = scientific
        .split_once('e')
        .map(|(mantissa, exponent)| (mantissa, exponent.parse::<i32>()))
    else {
        return scientific; // inf, -inf
    };
    match exponent {
        -4..16 => Some(value.to_string())
            .filter(|plain| plain.contains('.'))
            .unwrap_or_else(|| format!("{value}.0")),
        _ => format!("{mantissa}e{exponent:+03}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_are_read_as_python_reads_them() {
        let table = [
            ("5", Int::Value(5)),
            (" \t-12\n", Int::Value(-12)),
            ("+1_000", Int::Value(1000)),
            ("\u{a0}7\u{3000}", Int::Value(7)),
            ("007", Int::Value(7)),
            ("99999999999999999999", Int::Huge),
            ("٣", Int::Foreign),
            ("", Int::Invalid),
            ("-", Int::Invalid),
            ("+-5", Int::Invalid),
            ("1__0", Int::Invalid),
            ("_1", Int::Invalid),
            ("1.0", Int::Invalid),
            ("0x10", Int::Invalid),
            ("- 5", Int::Invalid),
        ];
        for (text, expected) in table {
            assert_eq!(int(text), expected, "{text:?}");
        }
    }

    #[test]
    fn sizes_take_a_suffix() {
        let table = [
            ("10", Int::Value(10)),
            ("1kb", Int::Value(1024)),
            ("50 MB", Int::Value(50 << 20)),
            ("-2Gb", Int::Value(-2 << 30)),
            ("99999999999GB", Int::Huge),
            ("KB", Int::Invalid),
            ("1KB ", Int::Invalid),
        ];
        for (text, expected) in table {
            assert_eq!(byte_size(text), expected, "{text:?}");
        }
    }

    #[test]
    fn strings_are_shown_as_python_shows_them() {
        let table = [
            ("a b~", "'a b~'"),
            ("it's", "\"it's\""),
            ("'\"", "'\\'\"'"),
            ("a\\\n\t\r\0\u{7f}", r"'a\\\n\t\r\x00\x7f'"),
            ("é😀\u{301}", "'é😀\u{301}'"),
            ("\u{a0}\u{2028}\u{e0001}", r"'\xa0\u2028\U000e0001'"),
        ];
        for (text, shown) in table {
            assert_eq!(repr(text), shown);
        }
    }

    #[test]
    fn floats_are_shown_as_python_shows_them() {
        let table = [
            (1.0, "1.0"),
            (-0.0, "-0.0"),
            (0.1, "0.1"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (1.5e300, "1.5e+300"),
            (0.0001, "0.0001"),
            (0.00001, "1e-05"),
            (f64::INFINITY, "inf"),
            (f64::NEG_INFINITY, "-inf"),
            (f64::NAN, "nan"),
        ];
        for (value, shown) in table {
            assert_eq!(float_repr(value), shown);
        }
    }
}
