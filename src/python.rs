//! Parses and formats texts and numbers as Python does. The daemon is written in Python, so its parser,
//! its fault texts and its XML-RPC follow these rules.

use std::borrow::Cow;

/// The result of Python's `int()`.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Int {
    /// A number of 64 bits.
    Value(i64),
    /// A number of more than 64 bits.
    Huge,
    /// A text with non-ASCII digits, which `int()` may accept and this module does not.
    Foreign,
    /// Not a number.
    Invalid,
}

impl Int {
    /// Returns the number if it has 64 bits.
    pub(crate) fn value(self) -> Option<i64> {
        match self {
            Int::Value(value) => Some(value),
            Int::Huge | Int::Foreign | Int::Invalid => None,
        }
    }
}

/// Parses `text` as `int(text)` does: it strips white space, and accepts a sign and single underscores
/// between digits.
pub(crate) fn int(text: &str) -> Int {
    let text = strip(text);
    if text.chars().any(|c| !c.is_ascii() && c.is_numeric()) {
        return Int::Foreign;
    }
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    let is_valid = digits
        .split('_')
        .all(|part| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit()));
    if !is_valid {
        return Int::Invalid;
    }
    text.replace('_', "").parse().map_or(Int::Huge, Int::Value)
}

/// Parses `text` as `float(text)` does, including `inf` and `nan`. Non-ASCII digits are refused, because
/// Python accepts different ones in each version.
pub(crate) fn float(text: &str) -> Option<f64> {
    without_underscores(strip(text))?.parse().ok()
}

/// Removes the underscores. Returns `None` if one of them is not between two digits.
fn without_underscores(text: &str) -> Option<Cow<'_, str>> {
    if !text.contains('_') {
        return Some(Cow::Borrowed(text));
    }
    let bytes = text.as_bytes();
    let is_digit = |at: Option<usize>| {
        at.and_then(|at| bytes.get(at))
            .is_some_and(u8::is_ascii_digit)
    };
    let between_digits = text
        .match_indices('_')
        .all(|(at, _)| is_digit(at.checked_sub(1)) && is_digit(at.checked_add(1)));
    between_digits.then(|| Cow::Owned(text.replace('_', "")))
}

/// Parses a size in bytes as the daemon does: a number with an optional KB, MB or GB
/// (`supervisor/datatypes.py`, `SuffixMultiplier`).
pub(crate) fn byte_size(text: &str) -> Int {
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

/// Returns the same as `str.isspace()`. Python counts four separators as white space that
/// [`char::is_whitespace`] does not.
pub(crate) fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

/// Strips white space as `str.strip()` does.
pub(crate) fn strip(text: &str) -> &str {
    text.trim_matches(is_space)
}

/// Returns the `repr()` of a string.
pub(crate) fn repr(text: &str) -> String {
    let quote = if text.contains('\'') && !text.contains('"') {
        '"'
    } else {
        '\''
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

/// Returns the same as `str.isprintable()`. Rust's `escape_debug` uses the same Unicode categories for
/// non-ASCII characters. A letter precedes the character, because `escape_debug` escapes a combining mark
/// at the start of a string only.
fn is_printable(c: char) -> bool {
    let text: String = ['a', c].iter().collect();
    if c.is_ascii() {
        !c.is_ascii_control()
    } else {
        text.escape_debug().eq(text.chars())
    }
}

/// Returns the `repr()` of a float: the fewest digits that give the same number, in fixed notation from
/// 1e-4 up to 1e16, and otherwise with a signed exponent of at least two digits.
pub(crate) fn float_repr(number: f64) -> String {
    if number.is_nan() {
        return "nan".to_owned();
    }
    let shortest = format!("{number:e}");
    let Some((digits, exponent)) = shortest.split_once('e') else {
        return shortest; // an infinity has no exponent
    };
    let Ok(exponent) = exponent.parse::<i32>() else {
        return shortest;
    };
    // Only the number of digits is used. If two numbers of that length are equally near, Python takes the
    // even one, as Rust does when it formats with a precision.
    let decimals = digits.bytes().filter(u8::is_ascii_digit).count() as i32 - 1;
    if (-4..16).contains(&exponent) {
        let decimals = (decimals - exponent).max(1) as usize;
        return format!("{number:.decimals$}");
    }
    let scientific = format!("{number:.*e}", decimals as usize);
    let digits = scientific.split('e').next().unwrap_or_default();
    format!("{digits}e{exponent:+03}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_are_parsed_as_python_parses_them() {
        let table = [
            ("5", Int::Value(5)),
            (" \t-12\n", Int::Value(-12)),
            ("+1_000", Int::Value(1000)),
            ("\u{a0}7\u{3000}", Int::Value(7)),
            ("007", Int::Value(7)),
            ("9223372036854775807", Int::Value(i64::MAX)),
            ("-9223372036854775808", Int::Value(i64::MIN)),
            ("9223372036854775808", Int::Huge),
            ("99999999999999999999", Int::Huge),
            ("٣", Int::Foreign),
            ("", Int::Invalid),
            ("-", Int::Invalid),
            ("+-5", Int::Invalid),
            ("1__0", Int::Invalid),
            ("_1", Int::Invalid),
            ("1.0", Int::Invalid),
            ("5_", Int::Invalid),
            ("+_5", Int::Invalid),
            ("5 5", Int::Invalid),
            ("0x10", Int::Invalid),
            ("- 5", Int::Invalid),
        ];
        for (text, expected) in table {
            assert_eq!(int(text), expected, "{text:?}");
        }
    }

    #[test]
    fn floats_are_parsed_as_python_parses_them() {
        let table = [
            ("1", Some(1.0)),
            (" 1.5\n", Some(1.5)),
            ("1.", Some(1.0)),
            (".5", Some(0.5)),
            ("-1e-1_0", Some(-1e-10)),
            ("1_0.2_5", Some(10.25)),
            ("1E5", Some(1e5)),
            ("1e999", Some(f64::INFINITY)),
            ("-iNf", Some(f64::NEG_INFINITY)),
            ("+Infinity", Some(f64::INFINITY)),
            ("", None),
            (".", None),
            ("e5", None),
            ("1e", None),
            ("1_.5", None),
            ("1e_5", None),
            ("infinit", None),
            ("0x1p3", None),
            ("1,5", None),
        ];
        for (text, expected) in table {
            assert_eq!(float(text), expected, "{text:?}");
        }
        assert!(float("nan").is_some_and(f64::is_nan));
    }

    #[test]
    fn sizes_may_have_a_suffix() {
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
    fn strings_have_the_repr_of_python() {
        let table = [
            ("a b~", "'a b~'"),
            ("it's", "\"it's\""),
            ("'\"", "'\\'\"'"),
            ("a\\\n\t\r\0\u{7f}", r"'a\\\n\t\r\x00\x7f'"),
            ("é😀\u{301}", "'é😀\u{301}'"),
            ("\u{a0}\u{2028}\u{e0001}", r"'\xa0\u2028\U000e0001'"),
        ];
        for (text, expected) in table {
            assert_eq!(repr(text), expected);
        }
    }

    #[test]
    fn floats_have_the_repr_of_python() {
        for (number, expected) in [
            (0.0, "0.0"),
            (-0.0, "-0.0"),
            (-1.5, "-1.5"),
            (0.1, "0.1"),
            (100.0, "100.0"),
            (123456.789, "123456.789"),
            (1.0 / 3.0, "0.3333333333333333"),
            (1e15, "1000000000000000.0"),
            (230252040407711.0 + 0.125, "230252040407711.12"),
            (230252040407711.0 + 0.375, "230252040407711.38"),
            (9999999999999998.0, "9999999999999998.0"),
            (1e16, "1e+16"),
            (123456789012345680.0, "1.2345678901234568e+17"),
            (1e23, "1e+23"),
            (1e-4, "0.0001"),
            (0.00012345, "0.00012345"),
            (1e-5, "1e-05"),
            (1.5e-7, "1.5e-07"),
            (1.5e300, "1.5e+300"),
            (5e-324, "5e-324"),
            (f64::MAX, "1.7976931348623157e+308"),
            (f64::INFINITY, "inf"),
            (f64::NEG_INFINITY, "-inf"),
            (f64::NAN, "nan"),
        ] {
            assert_eq!(float_repr(number), expected);
        }
    }
}
