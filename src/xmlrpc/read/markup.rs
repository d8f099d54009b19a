//! What makes a document well-formed, where the tokenizer is more forgiving than expat, which is
//! what the daemon parses with (`supervisor/xmlrpc.py`, `loads`, through `ElementTree`).
//!
//! Judges one token at a time. Knows nothing of XML-RPC.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};

/// A verdict, or what is wrong with the token.
pub(super) type Checked<T> = Result<T, &'static str>;

/// An attribute's name as written and its value with references resolved.
pub(super) type Attribute<'a> = (&'a str, Cow<'a, str>);

const SPACE: [char; 4] = [' ', '\t', '\r', '\n'];
const XML: &str = "http://www.w3.org/XML/1998/namespace";
const XMLNS: &str = "http://www.w3.org/2000/xmlns/";

/// Whether there is nothing in the text but XML's white space.
pub(super) fn is_blank(text: &str) -> bool {
    text.trim_start_matches(SPACE).is_empty()
}

/// Whether a document may contain the character, be it literally or by reference.
fn is_character(character: char) -> bool {
    matches!(character, '\t' | '\n' | '\r' | ' '..='\u{fffd}' | '\u{10000}'..)
}

/// Where the first character is that no part of a document may contain.
pub(super) fn forbidden_character(text: &str) -> Option<usize> {
    let bytes = text.as_bytes();
    bytes.iter().enumerate().position(|(at, byte)| match byte {
        b'\t' | b'\n' | b'\r' => false,
        0..b' ' => true,
        // U+FFFE and U+FFFF; the text is UTF-8, so two more bytes follow
        0xef => bytes[at + 1] == 0xbf && bytes[at + 2] >= 0xbe,
        _ => false,
    })
}

/// The text with its line ends as XML has them.
pub(super) fn line_ends(text: &str) -> Cow<'_, str> {
    if text.contains('\r') {
        Cow::Owned(text.replace("\r\n", "\n").replace('\r', "\n"))
    } else {
        Cow::Borrowed(text)
    }
}

/// What stands for the reference, given what is between its `&` and its `;`.
///
/// Refuses all entities but XML's own five: others come from a document type, which is never read.
pub(super) fn reference(name: &str) -> Checked<Cow<'static, str>> {
    let text = match name {
        "amp" => "&",
        "lt" => "<",
        "gt" => ">",
        "quot" => "\"",
        "apos" => "'",
        _ => return numbered(name).map(|character| character.to_string().into()),
    };
    Ok(text.into())
}

fn numbered(name: &str) -> Checked<char> {
    let number = name.strip_prefix('#').ok_or("an unknown entity")?;
    let (digits, radix) = match number.strip_prefix('x') {
        Some(digits) => (digits, 16),
        None => (number, 10),
    };
    // the parser of numbers would also take a sign
    if !digits.chars().all(|digit| digit.is_digit(radix)) {
        return Err("a character reference that is not a number");
    }
    u32::from_str_radix(digits, radix)
        .ok()
        .and_then(char::from_u32)
        .filter(|character| is_character(*character))
        .ok_or("a reference to a character XML does not have")
}

/// A version, an encoding, and whether the document stands alone.
const MAX_DECLARED: usize = 3;

/// Checks an XML declaration, given what is between its `<?` and its `?>`.
///
/// What it declares makes no difference: the daemon decodes before it parses, and expat reads any
/// version as 1.0.
pub(super) fn declaration(inside: &str) -> Checked<()> {
    let found: Vec<_> = attributes(inside)
        .take(MAX_DECLARED + 1)
        .collect::<Checked<_>>()?;
    let rest = match &found[..] {
        [("version", version), rest @ ..] if version.bytes().all(is_label_byte) => rest,
        _ => return Err("an XML declaration without a version"),
    };
    let rest = match rest {
        [("encoding", encoding), rest @ ..] if is_encoding(encoding) => rest,
        _ => rest,
    };
    match rest {
        [] | [("standalone", "yes" | "no")] => Ok(()),
        _ => Err("an XML declaration of another form"),
    }
}

fn is_encoding(label: &str) -> bool {
    label.starts_with(|first: char| first.is_ascii_alphabetic()) && label.bytes().all(is_label_byte)
}

fn is_label_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_')
}

/// Checks a processing instruction, given what is between its `<?` and its `?>`.
pub(super) fn instruction(inside: &str) -> Checked<()> {
    let target = inside.split(SPACE).next().unwrap_or_default();
    if is_plain_name(target) && !target.eq_ignore_ascii_case("xml") {
        Ok(())
    } else {
        Err("a processing instruction without a proper name")
    }
}

/// The name and the attributes of a start tag, given what is between its `<` and its `>` or `/>`.
pub(super) fn start_tag(inside: &str) -> Checked<(&str, Vec<Attribute<'_>>)> {
    let name = inside.split(SPACE).next().unwrap_or_default();
    if !is_name(name) {
        return Err("an element without a proper name");
    }
    let attributes = attributes(inside).map(|attribute| {
        let (name, value) = attribute?;
        if is_name(name) {
            Ok((name, attribute_value(value)?))
        } else {
            Err("an attribute without a proper name")
        }
    });
    Ok((name, attributes.collect::<Checked<_>>()?))
}

/// How many attributes a start tag has up to the first mistake in it, without room for any of them.
pub(super) fn attribute_count(inside: &str) -> usize {
    attributes(inside).take_while(Result::is_ok).count()
}

/// The attributes of a tag as they are written, split by blanks, quotes and equals signs without a
/// look at names and values. Nothing follows a mistake.
fn attributes(inside: &str) -> impl Iterator<Item = Checked<(&str, &str)>> {
    let mut rest = inside.find(SPACE).map_or("", |end| &inside[end..]);
    std::iter::from_fn(move || {
        if is_blank(rest) {
            return None;
        }
        let attribute = rest.trim_start_matches(SPACE);
        let is_apart = attribute.len() < rest.len();
        rest = "";
        if !is_apart {
            return Some(Err("attributes without a space between them"));
        }
        let Some((name, value, after)) = first_attribute(attribute) else {
            return Some(Err("an attribute without a quoted value"));
        };
        rest = after;
        Some(Ok((name, value)))
    })
}

/// Name, value and what follows the closing quote.
fn first_attribute(text: &str) -> Option<(&str, &str, &str)> {
    let (name, value) = text.split_once('=')?;
    let value = value.trim_start_matches(SPACE);
    let quote = value.chars().next().filter(|c| matches!(c, '"' | '\''))?;
    let (value, after) = value[1..].split_once(quote)?;
    Some((name.trim_end_matches(SPACE), value, after))
}

fn attribute_value(written: &str) -> Checked<Cow<'_, str>> {
    if written.contains('<') {
        return Err("a `<` in the value of an attribute");
    }
    if !written.contains(['&', '\t', '\r', '\n']) {
        return Ok(Cow::Borrowed(written));
    }
    let blanked = line_ends(written).replace(['\t', '\n'], " ");
    let mut parts = blanked.split('&');
    let mut value = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (name, text) = part.split_once(';').ok_or("a bare `&`")?;
        value.push_str(&reference(name)?);
        value.push_str(text);
    }
    Ok(Cow::Owned(value))
}

/// Whether the text names an element or attribute: a name, or a prefix and a name.
fn is_name(text: &str) -> bool {
    match text.split_once(':') {
        Some((prefix, local)) => is_plain_name(prefix) && is_plain_name(local),
        None => is_plain_name(text),
    }
}

fn is_plain_name(text: &str) -> bool {
    let mut characters = text.chars();
    characters.next().is_some_and(starts_name) && characters.all(continues_name)
}

/// The letters of XML's fifth edition, as far as they are in Unicode's first plane.
///
/// expat has the letters of the editions before, in some hundreds of ranges. All of them are here,
/// and so are others that it refuses.
fn starts_name(character: char) -> bool {
    matches!(character,
        'A'..='Z' | 'a'..='z' | '_'
        | '\u{c0}'..='\u{d6}' | '\u{d8}'..='\u{f6}' | '\u{f8}'..='\u{2ff}'
        | '\u{370}'..='\u{37d}' | '\u{37f}'..='\u{1fff}' | '\u{200c}'..='\u{200d}'
        | '\u{2070}'..='\u{218f}' | '\u{2c00}'..='\u{2fef}' | '\u{3001}'..='\u{d7ff}'
        | '\u{f900}'..='\u{fdcf}' | '\u{fdf0}'..='\u{fffd}')
}

fn continues_name(character: char) -> bool {
    starts_name(character)
        || matches!(character,
            '-' | '.' | '0'..='9' | '\u{b7}' | '\u{300}'..='\u{36f}' | '\u{203f}'..='\u{2040}')
}

/// The namespace prefixes in force, each with what it was bound to, innermost last.
///
/// They matter because a tag in a namespace has none of the names that XML-RPC knows.
#[derive(Default)]
pub(super) struct Namespaces<'a>(HashMap<&'a str, Vec<Cow<'a, str>>>);

impl<'a> Namespaces<'a> {
    /// Whether nothing was ever bound.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Takes up what an element declares, and returns the prefixes to hand to [`Self::leave`].
    pub(super) fn enter(&mut self, attributes: &[Attribute<'a>]) -> Checked<Vec<&'a str>> {
        let mut declared = Vec::new();
        for (name, space) in attributes {
            if let Some(prefix) = declared_prefix(name) {
                check_binding(prefix, space)?;
                self.0.entry(prefix).or_default().push(space.clone());
                declared.push(prefix);
            }
        }
        self.check_distinct(attributes)?;
        Ok(declared)
    }

    /// Forgets the innermost bindings of the prefixes.
    pub(super) fn leave(&mut self, prefixes: &[&'a str]) {
        for prefix in prefixes {
            if let Some(bound) = self.0.get_mut(prefix) {
                bound.pop();
            }
        }
    }

    /// The namespace an element of this name is in, empty for none.
    pub(super) fn of_element(&self, name: &str) -> Checked<&str> {
        match name.split_once(':') {
            Some((prefix, _)) => self.bound(prefix).ok_or("a prefix that is not bound"),
            None => Ok(self.bound("").unwrap_or_default()),
        }
    }

    fn of_attribute(&self, name: &str) -> Checked<&str> {
        match name.split_once(':') {
            Some(("xmlns", _)) => Ok(XMLNS),
            Some(_) => self.of_element(name),
            None => Ok(""),
        }
    }

    fn bound(&self, prefix: &str) -> Option<&str> {
        if prefix == "xml" {
            return Some(XML);
        }
        self.0.get(prefix)?.last().map(|space| &**space)
    }

    /// No two attributes of an element may be the same, in writing or by what their prefixes mean.
    fn check_distinct(&self, attributes: &[Attribute<'a>]) -> Checked<()> {
        let mut seen = HashSet::new();
        for (name, _) in attributes {
            let local = name.split_once(':').map_or(*name, |(_, local)| local);
            if !seen.insert((self.of_attribute(name)?, local)) {
                return Err("an attribute given twice");
            }
        }
        Ok(())
    }
}

/// The prefix that an attribute of this name declares, empty for the default namespace.
fn declared_prefix(name: &str) -> Option<&str> {
    match name {
        "xmlns" => Some(""),
        _ => name.strip_prefix("xmlns:"),
    }
}

fn check_binding(prefix: &str, space: &str) -> Checked<()> {
    match (prefix, space) {
        ("xml", XML) => Ok(()),
        ("xml" | "xmlns", _) | (_, XML | XMLNS) => Err("a reserved namespace"),
        ("", "") => Ok(()),
        (_, "") => Err("a prefix bound to nothing"),
        // ElementTree writes `{namespace}name`, so expat is told to keep this one out
        _ if space.contains('}') => Err("a `}` in a namespace"),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forbidden_characters_are_found_where_they_are() {
        assert_eq!(
            forbidden_character("a\t\r\n\u{7f}\u{85}\u{fffd}\u{1fffe}"),
            None
        );
        for character in [
            '\0', '\u{1}', '\u{b}', '\u{1b}', '\u{1f}', '\u{fffe}', '\u{ffff}',
        ] {
            assert_eq!(
                forbidden_character(&format!("\u{f000}{character}")),
                Some(3)
            );
        }
    }

    #[test]
    fn references_resolve_to_what_xml_has() {
        for (name, expected) in [
            ("amp", "&"),
            ("apos", "'"),
            ("#65", "A"),
            ("#x41", "A"),
            ("#000000000000000065", "A"),
            ("#13", "\r"),
            ("#x10FFFF", "\u{10ffff}"),
        ] {
            assert_eq!(reference(name).as_deref(), Ok(expected), "{name}");
        }
        for name in [
            "",
            " amp",
            "AMP",
            "nbsp",
            "#",
            "#x",
            "#X41",
            "#-1",
            "#+65",
            "#6 5",
            "#0",
            "#11",
            "#xd800",
            "#xfffe",
            "#x110000",
            "#99999999999999999999",
            "#\u{663}",
        ] {
            assert!(reference(name).is_err(), "{name}");
        }
    }

    #[test]
    fn declarations_have_a_version_and_little_else() {
        for inside in [
            "xml version='1.0'",
            "xml version=\"2.7\" encoding='x-None.1_'",
            "xml\tversion = '' standalone='no' \r\n",
            "xml version='1.0' encoding='a' standalone='yes'",
        ] {
            assert_eq!(declaration(inside), Ok(()), "{inside}");
        }
        for inside in [
            "xml",
            "xml encoding='a'",
            "xml version='1 0'",
            "xml version='1.0' encoding=''",
            "xml version='1.0' encoding='8a'",
            "xml version='1.0'encoding='a'",
            "xml version='1.0' standalone='maybe'",
            "xml version='1.0' standalone='yes' encoding='a'",
            "xml version='1.0' version='1.0'",
            "xml version='1.0' x='y'",
        ] {
            assert!(declaration(inside).is_err(), "{inside}");
        }
    }

    #[test]
    fn instructions_have_a_name_of_their_own() {
        for inside in ["a", "a b:c ?", "xml-foo"] {
            assert_eq!(instruction(inside), Ok(()), "{inside}");
        }
        for inside in ["", " a", "a:b", "a?b", "XML", "xMl c", "1"] {
            assert!(instruction(inside).is_err(), "{inside}");
        }
    }

    #[test]
    fn start_tags_yield_their_attributes() {
        let (name, attributes) = start_tag("a\tb = 'x>\"\ty&#9;'\n\nc=\"\" ").unwrap();
        assert_eq!(name, "a");
        assert_eq!(attributes, [("b", "x>\" y\t".into()), ("c", "".into())]);
        assert_eq!(
            start_tag("\u{e9}:b-.1").unwrap(),
            ("\u{e9}:b-.1", Vec::new())
        );
    }

    #[test]
    fn attributes_are_counted_up_to_the_first_mistake() {
        for (inside, expected) in [
            ("a", 0),
            ("a ", 0),
            ("a b='1'", 1),
            ("a\nb='1'\tc = \"2 d='3'\" ", 2),
            ("a b='1' b='1'", 2),
            ("a b='1'c='2'", 1),
            ("a b='1' c", 1),
            ("a b c='1' d='2'", 2),
        ] {
            assert_eq!(attribute_count(inside), expected, "{inside:?}");
        }
    }

    #[test]
    fn malformed_start_tags_are_refused() {
        for inside in [
            "",
            " a",
            "1",
            "-a",
            ":a",
            "a:",
            "a:b:c",
            "a:1",
            "a'b'",
            "a\u{10000}",
            "a / ",
            "a b",
            "a b=",
            "a b=c",
            "a b='1",
            "a b='1\"",
            "a b='1'c='2'",
            "a 1='2'",
            "a ='2'",
            "a b='<'",
            "a b='&'",
            "a b='&c;'",
            "a b='& amp;'",
            "a b='1' /",
            "a b c='1'",
        ] {
            assert!(start_tag(inside).is_err(), "{inside:?}");
        }
    }

    #[test]
    fn namespaces_follow_their_elements() {
        let mut namespaces = Namespaces::default();
        let outer = namespaces
            .enter(&[("xmlns", "u".into()), ("xmlns:p", "v".into())])
            .unwrap();
        assert_eq!(namespaces.of_element("a"), Ok("u"));
        assert_eq!(namespaces.of_element("p:a"), Ok("v"));
        let inner = namespaces.enter(&[("xmlns", "".into())]).unwrap();
        assert_eq!(namespaces.of_element("a"), Ok(""));
        namespaces.leave(&inner);
        assert_eq!(namespaces.of_element("a"), Ok("u"));
        namespaces.leave(&outer);
        assert_eq!(namespaces.of_element("a"), Ok(""));
        assert!(namespaces.of_element("p:a").is_err());
        assert_eq!(namespaces.of_element("xml:a"), Ok(XML));
        assert!(namespaces.of_element("xmlns:a").is_err());
    }

    #[test]
    fn attributes_are_distinct_and_bound() {
        for attributes in [
            &[("b", ""), ("b", "")][..],
            &[("p:b", "")],
            &[("xmlns:p", "u"), ("xmlns:q", "u"), ("p:b", ""), ("q:b", "")],
            &[("xmlns:p", "u"), ("xmlns:p", "v")],
            &[("xmlns:p", "")],
            &[("xmlns:p", "u}")],
            &[("xmlns:p", XML)],
            &[("xmlns", XMLNS)],
            &[("xmlns:xml", "u")],
            &[("xmlns:xmlns", XMLNS)],
        ] {
            assert!(declare(attributes).is_err(), "{attributes:?}");
        }
        for attributes in [
            &[("xml:b", ""), ("b", ""), ("c", "")][..],
            &[
                ("xmlns:p", "u"),
                ("xmlns:q", "v"),
                ("p:b", ""),
                ("q:b", ""),
                ("b", ""),
            ],
            &[("xmlns", "u"), ("xmlns:p", "u"), ("b", ""), ("p:b", "")],
            &[("xmlns", ""), ("xmlns:xml", XML)],
        ] {
            assert_eq!(declare(attributes), Ok(()), "{attributes:?}");
        }
    }

    fn declare(attributes: &[(&'static str, &'static str)]) -> Checked<()> {
        let attributes: Vec<Attribute> = attributes
            .iter()
            .map(|(name, value)| (*name, Cow::Borrowed(*value)))
            .collect();
        Namespaces::default().enter(&attributes).map(|_| ())
    }
}
