//! The names of groups, programs and processes.

use std::fmt;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::marked_text::MarkedText;
use crate::python::{repr, strip};

/// The name of a group or program. The daemon accepts it, reads it back unchanged from a section header
/// and from `programs=`, and finds it by its namespec.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(String);

/// Why a text is not a valid [`Name`].
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum NameError {
    /// The text has a character that the daemon refuses in a name, or that breaks one of its replies.
    #[error("Invalid name: {} because of character: {}", repr(.name), repr(&.character.to_string()))]
    Character {
        /// The text before it was stripped.
        name: String,
        /// The character that the daemon would report.
        character: char,
    },
    /// The text has nothing but white space.
    #[error("Invalid name: {} because it is empty", repr(.0))]
    Empty(String),
    /// The name is `*`: the daemon reads `group:*` as all processes of the group.
    #[error("Invalid name: '*' because it stands for every process of a group")]
    Wildcard,
}

impl NameError {
    /// Returns the text for a name that comes from an option's value, with that value marked.
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
    /// Strips `text`, as the daemon does, and checks the result.
    ///
    /// # Errors
    /// If the daemon or a client could not use the name unchanged everywhere.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        let name = strip(text);
        // A bracket ends a section header, a comma an entry of `programs=`.
        check(text, name, |c| c.is_ascii_graphic() && !"],".contains(c))?;
        Ok(Self(name.to_owned()))
    }

    /// Parses the name of a group to which a program is added. Unlike [`Name::parse`] it accepts
    /// non-ASCII names, because the user's files may define such a group: the daemon's replies about it
    /// are broken without the proxy too.
    ///
    /// # Errors
    /// As [`Name::parse`].
    pub fn parse_group(text: &str) -> Result<Self, NameError> {
        let name = strip(text);
        let is_accepted = |c: char| c.is_ascii_graphic() || !c.is_ascii() && is_representable(c);
        check(text, name, |c| is_accepted(c) && !"],".contains(c))?;
        Ok(Self(name.to_owned()))
    }

    /// Returns the name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Checks a process name; `text` is the name before it was stripped. A process name is not part of a
/// section header or of `programs=`, so it may have characters that a [`Name`] may not have.
pub(super) fn check_process_name(text: &str, name: &str) -> Result<(), NameError> {
    check(text, name, |c| c.is_ascii_graphic())
}

/// Checks the characters of a name.
///
/// The daemon searches for ' ', ':' and '/' in this order and reports the first that it finds
/// (`supervisor/datatypes.py`, `process_or_group_name`). It accepts other white space, which breaks the
/// lines that it sends to event listeners. It also accepts non-ASCII characters. These truncate its
/// replies about several processes, for example to `stopAllProcesses`, because it sends the number of
/// characters as the length in bytes (`supervisor/xmlrpc.py`, `DeferredXMLRPCResponse`).
fn check(text: &str, name: &str, is_accepted: impl Fn(char) -> bool) -> Result<(), NameError> {
    let reported = [' ', ':', '/'].into_iter().find(|c| name.contains(*c));
    if let Some(character) = reported.or_else(|| name.chars().find(|c| !is_accepted(*c))) {
        return Err(NameError::Character {
            name: text.to_owned(),
            character,
        });
    }
    match name {
        "" => Err(NameError::Empty(text.to_owned())),
        "*" => Err(NameError::Wildcard),
        _ => Ok(()),
    }
}

/// Returns whether both the daemon's configuration file and its XML replies can hold a character. These
/// are the characters of XML 1.0 without the carriage return, which Python converts to a line feed when
/// it reads a text file.
pub(super) fn is_representable(c: char) -> bool {
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
    fn names_are_stripped_and_otherwise_unchanged() {
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
    fn refusals_have_the_daemons_wording() {
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
    fn names_of_existing_groups_may_have_non_ascii_characters() {
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
    fn process_names_may_have_brackets_and_commas() {
        assert_eq!(check_process_name("a],b", "a],b"), Ok(()));
        assert_eq!(check_process_name("*", "*"), Err(NameError::Wildcard));
        assert_eq!(
            check_process_name(" ", ""),
            Err(NameError::Empty(" ".to_owned()))
        );
        assert!(check_process_name("a b", "a b").is_err());
    }
}
