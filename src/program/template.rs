//! Option values as what they are to the daemon: Python format strings.
//!
//! Knows the grammar and which names have a value here; the formatting itself is in `format`.

use thiserror::Error;

use crate::marked_text::MarkedText;
use crate::python::{is_space, repr};

/// Widths and precisions above this are refused: the daemon would build the padding in memory.
const MAX_WIDTH: usize = 1000;

/// Said of a conversion without a name, which Python would take and show every value for.
const NAMELESS: &str =
    "a conversion has to name its value, as %(process_num)d does; a percent sign is %%";

/// What Python says of it behind one with a name, which used the values up.
const NO_MORE: &str = "not enough arguments for format string";

/// How it begins to say which character it cannot read.
const UNSUPPORTED: &str = "unsupported format character";

/// A format string taken apart.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Template(pub(super) Vec<Piece>);

/// A part of a format string.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Piece {
    /// What comes out as it is. A percent sign is single here.
    Text(String),
    /// What the daemon puts a value in for.
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
    /// The letter at the end.
    pub(super) kind: char,
    /// All of it as it was written.
    pub(super) source: String,
}

/// Why a text is no format string, or none that may be handed to the daemon.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub(super) enum FormatError {
    /// In Python's words where it has some.
    #[error("is badly formatted: {0}")]
    Bad(String),
    /// A name that no value can have, and that could not be written so that it is read back.
    #[error("contains names ({}) which cannot be expanded", repr(.0))]
    Name(String),
}

impl FormatError {
    /// The text with what it shows of a value marked.
    pub(super) fn marked_text(&self) -> MarkedText {
        match self {
            // The first offender stands in it.
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

/// The values that are known before the daemon is asked.
#[derive(Clone, Copy, Debug)]
pub(super) struct Known<'a> {
    pub(super) program_name: &'a str,
    pub(super) group_name: &'a str,
    /// Absent for options that the daemon reads before it counts processes.
    pub(super) numprocs: Option<i64>,
    pub(super) process_num: Option<i64>,
}

impl Known<'_> {
    /// What comes out for `conversion`; `None` if only the daemon can tell, or would refuse it.
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
    /// Reads a format string. Of conversions, only those that name their value are taken: a bare
    /// `%s` would show every value the daemon has, its whole environment among them.
    pub(super) fn parse(text: &str) -> Result<Self, FormatError> {
        match Self::read(text) {
            (template, None) => Ok(template),
            (_, Some(error)) => Err(error),
        }
    }

    /// The same as far as it can be read, and what is wrong with what follows.
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

    /// The same with the known values in the place of their conversions.
    pub(super) fn resolved(self, known: &Known<'_>) -> Self {
        let mut template = Self(Vec::new());
        for piece in self.0 {
            match piece {
                Piece::Text(text) => template.push_text(&text),
                Piece::Conversion(conversion) => match known.text(&conversion) {
                    Some(text) => template.push_text(&text),
                    None => template.0.push(Piece::Conversion(conversion)),
                },
            }
        }
        template
    }

    /// The whole text, if no conversion is left.
    pub(super) fn text(&self) -> Option<String> {
        let texts = self.0.iter().map(|piece| match piece {
            Piece::Text(text) => Some(text.as_str()),
            Piece::Conversion(_) => None,
        });
        texts.collect()
    }

    /// The whole text with the known values and those that `lookup` has.
    pub(super) fn expanded(
        &self,
        known: &Known<'_>,
        lookup: impl Fn(&str) -> Option<String>,
    ) -> Option<String> {
        let texts = self.0.iter().map(|piece| match piece {
            Piece::Text(text) => Some(text.clone()),
            Piece::Conversion(conversion) => known
                .text(conversion)
                .or_else(|| conversion.format_text(&lookup(&conversion.name)?)),
        });
        texts.collect()
    }

    /// The conversions in it.
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
    /// As it goes into the daemon's file. The flag `#` comes first, for behind a blank the parser
    /// would take it for a comment. `%(here)s` as such is replaced by the directory of the included
    /// file (`supervisor/options.py`, `expand_here`); a flag that changes nothing keeps it for the
    /// expansion, which puts in the directory of the main file.
    pub(super) fn written(&self) -> String {
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

/// Goes over a format string as Python does (`unicode_format_arg_parse` in its source).
struct Reader {
    chars: Vec<char>,
    position: usize,
    /// Whether a conversion with a name has been read.
    any_named: bool,
}

impl Reader {
    fn bump(&mut self) -> Option<char> {
        let c = self.chars.get(self.position).copied();
        self.position += usize::from(c.is_some());
        c
    }

    fn eat(&mut self, expected: char) -> bool {
        let found = self.chars.get(self.position) == Some(&expected);
        self.position += usize::from(found);
        found
    }

    /// Reads what follows a percent sign.
    fn conversion(&mut self) -> Result<Conversion, FormatError> {
        let start = self.position - 1;
        let mut conversion = Conversion::default();
        let named = self.eat('(');
        if named {
            conversion.name = self.name()?;
        }
        self.flags(&mut conversion);
        conversion.width = self.number("width", named)?;
        if self.eat('.') {
            conversion.precision = Some(self.number("precision", named)?.unwrap_or(0));
        }
        let _length_that_python_ignores = self.eat('h') || self.eat('l') || self.eat('L');
        conversion.kind = self.kind(named)?;
        if !named {
            return Err(bad(NAMELESS));
        }
        self.any_named = true;
        conversion.source = self.chars[start..self.position].iter().collect();
        Ok(conversion)
    }

    /// The name, up to the parenthesis that closes it; there may be pairs inside.
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
                // The daemon has no such names, and its parser could take them apart.
                let odd = |c| is_space(c) || matches!(c, '(' | ')' | '%');
                return if name.contains(odd) {
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

    fn number(&mut self, what: &str, named: bool) -> Result<Option<usize>, FormatError> {
        if self.eat('*') {
            return Err(match (named, self.any_named) {
                (true, _) => bad("* wants int"),
                (false, true) => bad(NO_MORE),
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

    fn kind(&mut self, named: bool) -> Result<char, FormatError> {
        let Some(c) = self.bump() else {
            return Err(bad("incomplete format"));
        };
        if !named && self.any_named {
            return Err(bad(NO_MORE));
        }
        if "diouxXeEfFgGcrsa".contains(c) {
            return Ok(c);
        }
        let shown = match c {
            ' '..='~' => c,
            _ => '?',
        };
        let index = self.position - 1;
        Err(bad(&format!(
            "{UNSUPPORTED} '{shown}' ({:#x}) at index {index}",
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

    const KNOWN: Known<'_> = Known {
        program_name: "it's",
        group_name: "50%",
        numprocs: Some(3),
        process_num: None,
    };

    #[test]
    fn conversions_are_written_so_that_they_are_read_back() {
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
        for (text, written) in table {
            let template = Template::parse(text).unwrap();
            let conversion = template.conversions().next().unwrap();
            assert_eq!(
                (conversion.source.as_str(), conversion.written().as_str()),
                (text, written)
            );
        }
    }

    #[test]
    fn known_values_take_the_place_of_their_conversions() {
        let table = [
            ("a%%b", Some("a%b")),
            ("%(program_name)s in %(group_name)s", Some("it's in 50%")),
            ("%(program_name)r%(group_name)6s|", Some("\"it's\"   50%|")),
            ("%(numprocs)03d", Some("003")),
            ("%(process_num)d", None),
            ("%(here)s", None),
            ("%(program_name)d", None), // the daemon refuses it in its own words
        ];
        for (text, expected) in table {
            let template = Template::parse(text).unwrap().resolved(&KNOWN);
            assert_eq!(template.text().as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn bad_formats_are_refused_in_the_words_of_python() {
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
            ("%(k)s%s", NO_MORE),
            ("%(k)s%é", NO_MORE),
            ("%(k)s%*d", NO_MORE),
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
