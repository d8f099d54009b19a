//! Names of groups, programs and processes.

use std::fmt;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::marked_text::MarkedText;
use crate::python::{repr, strip};

/// The name of a group or program that the daemon accepts, reads back whole from a section header
/// and from `programs=`, and can be asked about afterwards.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(String);

/// Why a text is no [`Name`].
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum NameError {
    /// A character that the daemon does not take in a name, or cannot handle in all places.
    #[error("Invalid name: {} because of character: {}", repr(.name), repr(&.character.to_string()))]
    Character {
        /// The text as it came.
        name: String,
        /// The first offender.
        character: char,
    },
    /// Nothing is left of the text without the white space around it.
    #[error("Invalid name: {} because it is empty", repr(.0))]
    Empty(String),
    /// The daemon takes `group:*` for all processes of the group.
    #[error("Invalid name: '*' because it stands for every process of a group")]
    Wildcard,
}

impl NameError {
    /// The same about what is no name of a client's, but comes of a value.
    pub(super) fn about_value(&self) -> MarkedText {
        match self {
            NameError::Character { name, character } => MarkedText::from("Invalid name: ")
                .value(repr(name))
                .and(" because of character: ")
                .value(repr(&character.to_string())),
            NameError::Empty(_) | NameError::Wildcard => MarkedText::from(self),
        }
    }
}

impl Name {
    /// Takes the white space around `text` off, as the daemon does, and checks the rest.
    ///
    /// # Errors
    /// When the daemon or a client would take the name for something else.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        let name = strip(text);
        // A bracket ends a section header, a comma an entry of `programs=`.
        check(text, name, |c| c.is_ascii_graphic() && !"],".contains(c))?;
        Ok(Self(name.to_owned()))
    }

    /// The same for a group that is to take something in. One that the daemon has already may have a
    /// name that is not ASCII: what breaks because of it is broken without us.
    ///
    /// # Errors
    /// Those of [`Name::parse`].
    pub fn parse_group(text: &str) -> Result<Self, NameError> {
        let name = strip(text);
        let is_taken = |c: char| c.is_ascii_graphic() || !c.is_ascii() && is_carried(c);
        check(text, name, |c| is_taken(c) && !"],".contains(c))?;
        Ok(Self(name.to_owned()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Checks the process name that was given as `text`. It stands in no header and no list, so it may
/// hold more than a [`Name`].
pub(super) fn check_process_name(text: &str, name: &str) -> Result<(), NameError> {
    check(text, name, |c| c.is_ascii_graphic())
}

/// The daemon looks for ' ', ':' and '/' in this order (`supervisor/datatypes.py`,
/// `process_or_group_name`); its fault names the first. Other white space would break the lines
/// of its event listeners just the same. What is not ASCII would break its replies about several
/// processes at once: their length is counted in characters and so cuts the bytes short
/// (`supervisor/xmlrpc.py`, `DeferredXMLRPCResponse`), for whoever calls `stopAllProcesses`.
fn check(text: &str, name: &str, is_taken: impl Fn(char) -> bool) -> Result<(), NameError> {
    let refused = |character| NameError::Character {
        name: text.to_owned(),
        character,
    };
    let first = [' ', ':', '/'].into_iter().find(|c| name.contains(*c));
    if let Some(character) = first.or_else(|| name.chars().find(|c| !is_taken(*c))) {
        return Err(refused(character));
    }
    match name {
        "" => Err(NameError::Empty(text.to_owned())),
        "*" => Err(NameError::Wildcard),
        _ => Ok(()),
    }
}

/// Whether a character goes through the daemon's configuration file and its XML replies: those of
/// XML 1.0 but for the carriage return, which reading a file as text turns into a line feed.
pub(super) fn is_carried(c: char) -> bool {
    matches!(c, '\t' | '\n' | ' '..='\u{fffd}' | '\u{10000}'..)
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl AsRef<str> for Name {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Name {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, NameError> {
        Self::parse(&text)
    }
}

impl From<Name> for String {
    fn from(name: Name) -> Self {
        name.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_stripped_and_kept() {
        for text in ["web", " web ", "\tweb\u{3000}", "\u{1f}web\n"] {
            assert_eq!(
                Name::parse(text).map(String::from),
                Ok("web".to_owned()),
                "{text:?}"
            );
        }
        for text in [
            "50%", "a;b", "#a", "[a", "a~000001", "it's", "%(here)s", "**", "a\\b",
        ] {
            assert_eq!(Name::parse(text).map(String::from), Ok(text.to_owned()));
        }
    }

    #[test]
    fn refusals_use_the_words_of_the_daemon() {
        let table = [
            ("a b", "Invalid name: 'a b' because of character: ' '"),
            ("a:/ b", "Invalid name: 'a:/ b' because of character: ' '"),
            ("/a:b", "Invalid name: '/a:b' because of character: ':'"),
            (
                " it's/ ",
                "Invalid name: \" it's/ \" because of character: '/'",
            ),
            (
                "a\u{2028}b",
                "Invalid name: 'a\\u2028b' because of character: '\\u2028'",
            ),
            ("a]", "Invalid name: 'a]' because of character: ']'"),
            ("a,b", "Invalid name: 'a,b' because of character: ','"),
            (
                "a\0",
                "Invalid name: 'a\\x00' because of character: '\\x00'",
            ),
            (
                "a\u{ffff}",
                "Invalid name: 'a\\uffff' because of character: '\\uffff'",
            ),
            (" \t", "Invalid name: ' \\t' because it is empty"),
            (
                "*",
                "Invalid name: '*' because it stands for every process of a group",
            ),
        ];
        for (text, expected) in table {
            assert_eq!(Name::parse(text).unwrap_err().to_string(), expected);
        }
    }

    #[test]
    fn groups_that_are_there_may_have_any_name_that_is_carried() {
        for text in ["web", "t\u{f6}st", "\u{1f980}", " \u{4e2d}\u{a0}x "] {
            let name = Name::parse_group(text).map(String::from);
            assert_eq!(name, Ok(strip(text).to_owned()));
        }
        for text in [
            "a b",
            "\u{f6}:x",
            "\u{f6},x",
            "\u{f6}]",
            "\u{ffff}",
            "\u{f6}\x07",
            "\u{3000}",
        ] {
            assert!(Name::parse_group(text).is_err(), "{text:?}");
        }
        assert!(Name::parse("t\u{f6}st").is_err());
    }

    #[test]
    fn process_names_may_hold_what_headers_and_lists_may_not() {
        assert_eq!(check_process_name("a],b", "a],b"), Ok(()));
        assert_eq!(check_process_name("*", "*"), Err(NameError::Wildcard));
        assert_eq!(
            check_process_name(" ", ""),
            Err(NameError::Empty(" ".to_owned()))
        );
        assert!(check_process_name("a b", "a b").is_err());
    }
}
