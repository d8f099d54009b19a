//! Formats values as Python's `%` operator does.

use super::template::Conversion;
use crate::python::repr;

impl Conversion {
    /// Formats a text. Returns `None` if Python would raise an exception.
    pub(super) fn format_text(&self, value: &str) -> Option<String> {
        let text = match self.kind {
            's' => value.to_owned(),
            'r' | 'a' => repr(value), // equal for ASCII texts, and names are ASCII
            'c' if value.chars().count() == 1 => return Some(self.padded("", value, false)),
            _ => return None,
        };
        Some(self.padded("", &self.truncated(&text), false))
    }

    /// Formats an integer. Returns `None` if Python would raise an exception.
    pub(super) fn format_number(&self, value: i64) -> Option<String> {
        let size = value.unsigned_abs();
        let digits = match self.kind {
            's' | 'r' | 'a' => {
                return Some(self.padded("", &self.truncated(&value.to_string()), false));
            }
            'c' => {
                let c = char::from_u32(value.try_into().ok()?)?;
                return Some(self.padded("", c.encode_utf8(&mut [0; 4]), false));
            }
            'd' | 'i' | 'u' => self.zero_filled(size.to_string()),
            'o' => self.zero_filled(format!("{size:o}")),
            'x' => self.zero_filled(format!("{size:x}")),
            'X' => self.zero_filled(format!("{size:X}")),
            'e' | 'f' | 'g' => self.float(size, self.kind),
            'E' | 'F' | 'G' => self
                .float(size, self.kind.to_ascii_lowercase())
                .to_uppercase(),
            _ => return None,
        };
        let sign = match value {
            ..0 => "-",
            _ if self.sign => "+",
            _ if self.blank => " ",
            _ => "",
        };
        let base = match self.kind {
            'o' if self.alternate => "0o",
            'x' if self.alternate => "0x",
            'X' if self.alternate => "0X",
            _ => "",
        };
        Some(self.padded(&format!("{sign}{base}"), &digits, self.zero && !self.left))
    }

    /// Truncates a text to the precision.
    fn truncated(&self, text: &str) -> String {
        text.chars()
            .take(self.precision.unwrap_or(usize::MAX))
            .collect()
    }

    /// Pads the digits of an integer with zeros to the precision.
    fn zero_filled(&self, digits: String) -> String {
        format!("{digits:0>width$}", width = self.precision.unwrap_or(0))
    }

    fn padded(&self, prefix: &str, body: &str, with_zeros: bool) -> String {
        let used = prefix.chars().count() + body.chars().count();
        let missing = self.width.unwrap_or(0).saturating_sub(used);
        match (self.left, with_zeros) {
            (true, _) => format!("{prefix}{body}{}", " ".repeat(missing)),
            (false, true) => format!("{prefix}{}{body}", "0".repeat(missing)),
            (false, false) => format!("{}{prefix}{body}", " ".repeat(missing)),
        }
    }

    /// Formats the absolute value of an integer as `%e`, `%f` or `%g` does.
    fn float(&self, size: u64, kind: char) -> String {
        let precision = self.precision.unwrap_or(6);
        match kind {
            'f' => self.fixed(size, precision),
            'e' => self.scientific(size, precision),
            _ => self.general(size, precision.max(1)),
        }
    }

    fn fixed(&self, size: u64, precision: usize) -> String {
        format!("{size}{}{}", self.point(precision), "0".repeat(precision))
    }

    fn scientific(&self, size: u64, precision: usize) -> String {
        let (mantissa, exponent) = mantissa_and_exponent(size, precision);
        format!("{mantissa}{}e+{exponent:02}", self.point_if_none(&mantissa))
    }

    /// Formats in fixed or scientific notation, as `%g` does. Trailing zeros are removed unless the flag
    /// `#` is set.
    fn general(&self, size: u64, precision: usize) -> String {
        let (mantissa, exponent) = mantissa_and_exponent(size, precision - 1);
        let (body, tail) = if exponent < precision {
            (self.fixed(size, precision - 1 - exponent), String::new())
        } else {
            (
                format!("{mantissa}{}", self.point_if_none(&mantissa)),
                format!("e+{exponent:02}"),
            )
        };
        let body = if !self.alternate && body.contains('.') {
            body.trim_end_matches('0').trim_end_matches('.')
        } else {
            &body
        };
        format!("{body}{tail}")
    }

    fn point(&self, precision: usize) -> &'static str {
        if precision > 0 || self.alternate {
            "."
        } else {
            ""
        }
    }

    fn point_if_none(&self, mantissa: &str) -> &'static str {
        if self.alternate && !mantissa.contains('.') {
            "."
        } else {
            ""
        }
    }
}

fn mantissa_and_exponent(size: u64, precision: usize) -> (String, usize) {
    // The numbers come from 32-bit options, so an f64 holds them exactly.
    let text = format!("{:.precision$e}", size as f64);
    match text.split_once('e') {
        Some((mantissa, exponent)) => (mantissa.to_owned(), exponent.parse().unwrap_or(0)),
        None => (text, 0),
    }
}

#[cfg(test)]
mod tests {
    use super::super::template::Template;
    use super::*;

    fn conversion(text: &str) -> Conversion {
        Template::parse(text)
            .unwrap()
            .conversions()
            .next()
            .unwrap()
            .clone()
    }

    #[test]
    fn numbers_are_formatted_as_python_formats_them() {
        let table = [
            ("%(n)d", 5, "5"),
            ("%(n)05.3d", 5, "00005"),
            ("%(n)08.3d", -5, "-0000005"),
            ("%(n)-08.3d|", 5, "005     "),
            ("%(n)+ d", 5, "+5"),
            ("%(n) 08d", 7, " 0000007"),
            ("%(n)#010x", -255, "-0x00000ff"),
            ("%(n)#.5x", 255, "0x000ff"),
            ("%(n)#X", 255, "0XFF"),
            ("%(n)#o", 8, "0o10"),
            ("%(n).0d", 0, "0"),
            ("%(n)u", -3, "-3"),
            ("%(n)5s", 7, "    7"),
            ("%(n)05.1r", 77, "    7"),
            ("%(n)-3c|", 65, "A  "),
            ("%(n)05c", 65, "    A"),
            ("%(n)e", 1000, "1.000000e+03"),
            ("%(n)#.0e", 1000, "1.e+03"),
            ("%(n)E", 12345, "1.234500E+04"),
            ("%(n).0e", 25, "2e+01"),
            ("%(n)f", 3, "3.000000"),
            ("%(n)#.0f", 7, "7."),
            ("%(n)+08.2f", -7, "-0007.00"),
            ("%(n)g", 0, "0"),
            ("%(n)g", 1_000_000, "1e+06"),
            ("%(n).3g", 999, "999"),
            ("%(n).3g", 9999, "1e+04"),
            ("%(n).0g", 100, "1e+02"),
            ("%(n)#g", 1000, "1000.00"),
            ("%(n)#.3g", 100, "100."),
        ];
        for (text, value, expected) in table {
            assert_eq!(
                conversion(text).format_number(value).as_deref(),
                Some(expected),
                "{text}"
            );
        }
        assert_eq!(conversion("%(n)c").format_number(-1), None);
        assert_eq!(conversion("%(n)c").format_number(0xd800), None);
    }

    #[test]
    fn texts_are_formatted_as_python_formats_them() {
        let table = [
            ("%(n)s", "abc", Some("abc")),
            ("%(n).0s", "abc", Some("")),
            ("%(n)05s", "a", Some("    a")),
            ("%(n)+-5s|", "a", Some("a    ")),
            ("%(n).2r", "abc", Some("'a")),
            ("%(n)8.3a", "a'b", Some("     \"a'")),
            ("%(n)5c", "b", Some("    b")),
            ("%(n).0c", "a", Some("a")),
            ("%(n)c", "ab", None),
            ("%(n)d", "5", None),
        ];
        for (text, value, expected) in table {
            assert_eq!(
                conversion(text).format_text(value).as_deref(),
                expected,
                "{text}"
            );
        }
    }
}
