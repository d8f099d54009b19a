//! Option values as Python format strings, as the daemon reads them.
//!
//! This module has the grammar and the values that the proxy knows; `format` formats a value.

use thiserror::Error;

use crate::marked_text::MarkedText;
use crate::python::{is_space, repr};

/// The largest width and precision: the daemon builds the padding in memory.
const MAX_WIDTH: usize = 1000;

/// The proxy's reason for a conversion without a name, for which Python would insert all values.
const NAMELESS: &str =
    "a conversion has to name its value, as %(process_num)d does; a percent sign is %%";

/// Python's reason for a conversion without a name behind one with a name.
const TOO_FEW_ARGUMENTS: &str = "not enough arguments for format string";

/// The beginning of Python's reason for an invalid conversion type; the character follows.
const UNSUPPORTED: &str = "unsupported format character";

/// A parsed format string.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Template(pub(super) Vec<Piece>);

/// A part of a format string.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Piece {
    /// A literal text, in which a percent sign is single.
    Text(String),
    /// A conversion, for which the daemon inserts a value.
    Conversion(Conversion),
}

/// A conversion that names its value, such as `%(process_num)02d`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Conversion {
    pub(super) name: String,
    pub(super) alternate: bool,
    pub(super) left: bool,
    pub(super) zero: bool,
    pub(super) sign: bool,
    pub(super) blank: bool,
    pub(super) width: Option<usize>,
    pub(super) precision: Option<usize>,
    /// The conversion type: the letter at the end.
    pub(super) kind: char,
    /// The conversion as in the text.
    pub(super) source: String,
}

/// Why a text is not a format string that the daemon may read.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub(super) enum FormatError {
    /// The format is invalid; in Python's wording where Python has one.
    #[error("is badly formatted: {0}")]
    Bad(String),
    /// A conversion has a name that no value can have and that cannot be escaped.
    #[error("contains names ({}) which cannot be expanded", repr(.0))]
    Name(String),
}

impl FormatError {
    /// Returns the text with the parts of an option's value marked.
    pub(super) fn marked_text(&self) -> MarkedText {
        match self {
            // This reason quotes a character of the value.
            FormatError::Bad(reason) if reason.starts_with(UNSUPPORTED) => {
                MarkedText::from("is badly formatted: ").value(reason)
            }
            FormatError::Bad(_) => MarkedText::from(self),
            FormatError::Name(name) => MarkedText::from("contains names (")
                .value(repr(name))
                .and(") which cannot be expanded"),
        }
    }
}

/// The values that the proxy knows without asking the daemon.
#[derive(Clone, Copy, Debug)]
pub(super) struct KnownValues<'a> {
    pub(super) program_name: &'a str,
    pub(super) group_name: &'a str,
    /// `None` for options that the daemon expands once per program.
    pub(super) numprocs: Option<i64>,
    pub(super) process_num: Option<i64>,
}

impl KnownValues<'_> {
    /// Formats `conversion`. Returns `None` if only the daemon knows the value, or if the daemon would
    /// refuse the conversion.
    pub(super) fn text(&self, conversion: &Conversion) -> Option<String> {
        match conversion.name.as_str() {
            "program_name" => conversion.format_text(self.program_name),
            "group_name" => conversion.format_text(self.group_name),
            "numprocs" => conversion.format_number(self.numprocs?),
            "process_num" => conversion.format_number(self.process_num?),
            _ => None,
        }
    }
}

impl Template {
    /// Parses a format string. Refuses a conversion without a name, such as `%s`: the daemon would insert
    /// all its values, including its environment.
    pub(super) fn parse(text: &str) -> Result<Self, FormatError> {
        match Self::read(text) {
            (template, None) => Ok(template),
            (_, Some(error)) => Err(error),
        }
    }

    /// Parses up to the first error. Returns the part before the error, and the error.
    pub(super) fn read(text: &str) -> (Self, Option<FormatError>) {
        let mut reader = Reader {
            chars: text.chars().collect(),
            position: 0,
            any_named: false,
        };
        let mut template = Self(Vec::new());
        while let Some(c) = reader.bump() {
            match c {
                '%' if reader.eat('%') => template.push_text("%"),
                '%' => match reader.conversion() {
                    Ok(conversion) => template.0.push(Piece::Conversion(conversion)),
                    Err(error) => return (template, Some(error)),
                },
                c => template.push_text(c.encode_utf8(&mut [0; 4])),
            }
        }
        (template, None)
    }

    /// Replaces conversions by their known values.
    pub(super) fn resolve(self, values: &KnownValues<'_>) -> Self {
        let mut template = Self(Vec::new());
        for piece in self.0 {
            match piece {
                Piece::Text(text) => template.push_text(&text),
                Piece::Conversion(conversion) => match values.text(&conversion) {
                    Some(text) => template.push_text(&text),
                    None => template.0.push(Piece::Conversion(conversion)),
                },
            }
        }
        template
    }

    /// Returns the text if the template has no conversions.
    pub(super) fn text(&self) -> Option<String> {
        let texts = self.0.iter().map(|piece| match piece {
            Piece::Text(text) => Some(text.as_str()),
            Piece::Conversion(_) => None,
        });
        texts.collect()
    }

    /// Expands the template with the known values and those that `lookup` returns. Returns `None` if a
    /// value is missing.
    pub(super) fn expand(
        &self,
        values: &KnownValues<'_>,
        lookup: impl Fn(&str) -> Option<String>,
    ) -> Option<String> {
        let texts = self.0.iter().map(|piece| match piece {
            Piece::Text(text) => Some(text.clone()),
            Piece::Conversion(conversion) => values
                .text(conversion)
                .or_else(|| conversion.format_text(&lookup(&conversion.name)?)),
        });
        texts.collect()
    }

    /// Returns the conversions of the template.
    pub(super) fn conversions(&self) -> impl Iterator<Item = &Conversion> {
        self.0.iter().filter_map(|piece| match piece {
            Piece::Text(_) => None,
            Piece::Conversion(conversion) => Some(conversion),
        })
    }

    fn push_text(&mut self, more: &str) {
        match self.0.last_mut() {
            Some(Piece::Text(text)) => text.push_str(more),
            _ => self.0.push(Piece::Text(more.to_owned())),
        }
    }
}

impl Conversion {
    /// Renders the conversion for a configuration file. The flag `#` comes first: behind a space, the
    /// parser would read it as a comment. `expand_here` (`supervisor/options.py`) would replace
    /// `%(here)s` by the directory of the included file. A flag without effect prevents that, so that the
    /// expansion inserts the directory of the main file.
    pub(super) fn render(&self) -> String {
        let flags = [
            (self.alternate, '#'),
            (self.left, '-'),
            (self.zero, '0'),
            (self.sign, '+'),
            (self.blank, ' '),
        ];
        let flags: String = flags
            .into_iter()
            .filter(|(set, _)| *set)
            .map(|(_, c)| c)
            .collect();
        let width = self
            .width
            .map(|width| width.to_string())
            .unwrap_or_default();
        let precision = self
            .precision
            .map(|digits| format!(".{digits}"))
            .unwrap_or_default();
        let text = format!("%({}){flags}{width}{precision}{}", self.name, self.kind);
        match text.as_str() {
            "%(here)s" => "%(here)-s".to_owned(),
            _ => text,
        }
    }
}

/// Parses a format string as CPython's `unicode_format_arg_parse` does.
struct Reader {
    chars: Vec<char>,
    position: usize,
    /// Whether a conversion with a name came before.
    any_named: bool,
}

impl Reader {
    fn bump(&mut self) -> Option<char> {
        let c = self.chars.get(self.position).copied();
        self.position += usize::from(c.is_some());
        c
    }

    fn eat(&mut self, expected: char) -> bool {
        let is_next = self.chars.get(self.position) == Some(&expected);
        self.position += usize::from(is_next);
        is_next
    }

    /// Parses a conversion behind its percent sign.
    fn conversion(&mut self) -> Result<Conversion, FormatError> {
        let start = self.position - 1;
        let mut conversion = Conversion::default();
        let has_name = self.eat('(');
        if has_name {
            conversion.name = self.name()?;
        }
        self.flags(&mut conversion);
        conversion.width = self.number("width", has_name)?;
        if self.eat('.') {
            conversion.precision = Some(self.number("precision", has_name)?.unwrap_or(0));
        }
        let _length_that_python_ignores = self.eat('h') || self.eat('l') || self.eat('L');
        conversion.kind = self.kind(has_name)?;
        if !has_name {
            return Err(bad(NAMELESS));
        }
        self.any_named = true;
        conversion.source = self.chars[start..self.position].iter().collect();
        Ok(conversion)
    }

    /// Parses the name up to its closing parenthesis. The name may have pairs of parentheses in it.
    fn name(&mut self) -> Result<String, FormatError> {
        let mut depth = 1;
        let mut name = String::new();
        while let Some(c) = self.bump() {
            match c {
                '(' => depth += 1,
                ')' => depth -= 1,
                _ => {}
            }
            if depth == 0 {
                // No value of the daemon has such a name, and its parser could split it.
                let is_odd = |c| is_space(c) || matches!(c, '(' | ')' | '%');
                return if name.contains(is_odd) {
                    Err(FormatError::Name(name))
                } else {
                    Ok(name)
                };
            }
            name.push(c);
        }
        Err(bad("incomplete format key"))
    }

    fn flags(&mut self, conversion: &mut Conversion) {
        loop {
            let flag = match self.chars.get(self.position) {
                Some('#') => &mut conversion.alternate,
                Some('-') => &mut conversion.left,
                Some('0') => &mut conversion.zero,
                Some('+') => &mut conversion.sign,
                Some(' ') => &mut conversion.blank,
                _ => return,
            };
            *flag = true;
            self.position += 1;
        }
    }

    /// Parses a width or precision; `what` names it in the error.
    fn number(&mut self, what: &str, has_name: bool) -> Result<Option<usize>, FormatError> {
        if self.eat('*') {
            return Err(match (has_name, self.any_named) {
                (true, _) => bad("* wants int"),
                (false, true) => bad(TOO_FEW_ARGUMENTS),
                (false, false) => bad(NAMELESS),
            });
        }
        let mut number = None;
        while let Some(digit) = self.chars.get(self.position).and_then(|c| c.to_digit(10)) {
            self.position += 1;
            let value = number.unwrap_or(0) * 10 + digit as usize;
            if value > MAX_WIDTH {
                return Err(bad(&format!("{what} too big")));
            }
            number = Some(value);
        }
        Ok(number)
    }

    fn kind(&mut self, has_name: bool) -> Result<char, FormatError> {
        let Some(c) = self.bump() else {
            return Err(bad("incomplete format"));
        };
        if !has_name && self.any_named {
            return Err(bad(TOO_FEW_ARGUMENTS));
        }
        if "diouxXeEfFgGcrsa".contains(c) {
            return Ok(c);
        }
        let printable = match c {
            ' '..='~' => c,
            _ => '?',
        };
        let index = self.position - 1;
        Err(bad(&format!(
            "{UNSUPPORTED} '{printable}' ({:#x}) at index {index}",
            c as u32
        )))
    }
}

fn bad(reason: &str) -> FormatError {
    FormatError::Bad(reason.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const KNOWN: KnownValues<'_> = KnownValues {
        program_name: "it's",
        group_name: "50%",
        numprocs: Some(3),
        process_num: None,
    };

    #[test]
    fn conversions_are_rendered_so_that_the_parser_reads_them_back() {
        let table = [
            ("%(here)s", "%(here)-s"),
            ("%(here)ls", "%(here)-s"),
            ("%(here).3s", "%(here).3s"),
            ("%(process_num)02d", "%(process_num)02d"),
            ("%(process_num) #-+05.3x", "%(process_num)#-0+ 5.3x"),
            ("%(process_num).d", "%(process_num).0d"),
            ("%(ENV_A#;b)--s", "%(ENV_A#;b)-s"),
            ("%()r", "%()r"),
        ];
        for (text, rendered) in table {
            let template = Template::parse(text).unwrap();
            let conversion = template.conversions().next().unwrap();
            assert_eq!(
                (conversion.source.as_str(), conversion.render().as_str()),
                (text, rendered)
            );
        }
    }

    #[test]
    fn known_values_replace_their_conversions() {
        let table = [
            ("a%%b", Some("a%b")),
            ("%(program_name)s in %(group_name)s", Some("it's in 50%")),
            ("%(program_name)r%(group_name)6s|", Some("\"it's\"   50%|")),
            ("%(numprocs)03d", Some("003")),
            ("%(process_num)d", None),
            ("%(here)s", None),
            ("%(program_name)d", None), // the daemon refuses it
        ];
        for (text, expected) in table {
            let template = Template::parse(text).unwrap().resolve(&KNOWN);
            assert_eq!(template.text().as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn invalid_formats_are_refused_in_pythons_wording() {
        let table = [
            ("100%", "incomplete format"),
            ("%(k)5", "incomplete format"),
            ("%(k).", "incomplete format"),
            ("%(foo", "incomplete format key"),
            ("%(a(b)s", "incomplete format key"),
            (
                "%(k)%",
                "unsupported format character '%' (0x25) at index 4",
            ),
            ("ab%é", "unsupported format character '?' (0xe9) at index 3"),
            (
                "%(k)hhd",
                "unsupported format character 'h' (0x68) at index 5",
            ),
            (
                "%(k)5-s",
                "unsupported format character '-' (0x2d) at index 5",
            ),
            ("%\n", "unsupported format character '?' (0xa) at index 1"),
            ("%(k)*d", "* wants int"),
            ("%(k)1001s", "width too big"),
            ("%(k).99999999999999999999s", "precision too big"),
            ("%s", NAMELESS),
            ("%5.2f", NAMELESS),
            ("%*d", NAMELESS),
            ("%(k)s%s", TOO_FEW_ARGUMENTS),
            ("%(k)s%é", TOO_FEW_ARGUMENTS),
            ("%(k)s%*d", TOO_FEW_ARGUMENTS),
            ("%(k)s%", "incomplete format"),
        ];
        for (text, expected) in table {
            assert_eq!(Template::parse(text), Err(bad(expected)), "{text}");
        }
        for name in ["a b", "a\n", "x%(here)s", "a(b)c"] {
            let error = Template::parse(&format!("%({name})s")).unwrap_err();
            assert_eq!(error, FormatError::Name(name.to_owned()));
        }
    }
}
