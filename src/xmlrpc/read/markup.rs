//! What makes a document well-formed, where quick-xml is more forgiving than expat, which is what
//! the daemon parses with (`supervisor/xmlrpc.py`, `loads`, through `ElementTree`).
//!
//! quick-xml splits a document into tokens, resolves references, line ends and namespaces. Own
//! code is what it leaves open: which characters a document and a name may have, spaces between
//! attributes, the form of a declaration, two attributes that mean the same, and the namespaces
//! that nobody may bind. Judges one token at a time. Knows nothing of XML-RPC.

use std::borrow::Cow;
use std::collections::HashSet;

use quick_xml::XmlVersion;
use quick_xml::escape::resolve_xml_entity;
use quick_xml::events::attributes::{AttrError, Attribute, Attributes};
use quick_xml::events::{BytesDecl, BytesPI, BytesRef, BytesStart};
use quick_xml::name::{Namespace, NamespaceResolver, PrefixDeclaration, ResolveResult};

/// A verdict, or what is wrong with the token.
pub(super) type Checked<T> = Result<T, &'static str>;

const SPACE: [char; 4] = [' ', '\t', '\r', '\n'];
const XML: Namespace = Namespace("http://www.w3.org/XML/1998/namespace");
const XMLNS: Namespace = Namespace("http://www.w3.org/2000/xmlns/");

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

/// The text that a reference stands for.
///
/// Refuses all entities but XML's own five: others come from a document type, which is never read.
pub(super) fn reference(reference: &BytesRef<'_>) -> Checked<Cow<'static, str>> {
    if let Some(text) = resolve_xml_entity(reference) {
        return Ok(text.into());
    }
    match reference.resolve_char_ref() {
        Ok(Some(character)) if is_character(character) => Ok(character.to_string().into()),
        Ok(Some(_)) => Err("a reference to a character XML does not have"),
        Ok(None) => Err("an unknown entity"),
        Err(_) => Err("a character reference that is not a number"),
    }
}

/// Checks an XML declaration.
///
/// What it declares makes no difference: the daemon decodes before it parses, and expat reads any
/// version as 1.0.
pub(super) fn declaration(declaration: &BytesDecl<'_>) -> Checked<()> {
    let mut rest = attributes(declaration, "xml".len())?.peekable();
    let mut value = |name| {
        let found = rest.next_if(|it| it.as_ref().is_ok_and(|it| it.key.0 == name));
        found.and_then(Result::ok).map(|found| found.value)
    };
    let is_version = |version: Cow<'_, str>| version.bytes().all(is_label_byte);
    if !value("version").is_some_and(is_version) {
        return Err("an XML declaration without a version");
    }
    let encoding = value("encoding").is_none_or(|label| is_encoding(&label));
    let standalone = value("standalone").is_none_or(|it| matches!(&*it, "yes" | "no"));
    if encoding && standalone && rest.next().is_none() {
        Ok(())
    } else {
        Err("an XML declaration of another form")
    }
}

fn is_encoding(label: &str) -> bool {
    label.starts_with(|first: char| first.is_ascii_alphabetic()) && label.bytes().all(is_label_byte)
}

fn is_label_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_')
}

/// Checks a processing instruction.
pub(super) fn instruction(instruction: &BytesPI<'_>) -> Checked<()> {
    let target = instruction.target();
    if is_plain_name(target) && !target.eq_ignore_ascii_case("xml") {
        Ok(())
    } else {
        Err("a processing instruction without a proper name")
    }
}

/// How many attributes a start tag has up to the first mistake in it, without room for any of them.
pub(super) fn attribute_count(tag: &BytesStart<'_>) -> usize {
    let mut attributes = tag.attributes();
    let attributes = attributes.with_checks(false);
    attributes.take_while(Result::is_ok).count()
}

/// Checks a start tag, adds the namespaces it declares, and says whether its name is in none.
///
/// A name in a namespace is none of those that XML-RPC knows.
pub(super) fn start_tag(tag: &BytesStart<'_>, namespaces: &mut NamespaceResolver) -> Checked<bool> {
    if !is_name(tag.name().0) {
        return Err("an element without a proper name");
    }
    let start = tag.name().0.len();
    for attribute in attributes(tag, start)? {
        let attribute = attribute?;
        let value = attribute_value(&attribute)?;
        if let Some(prefix) = attribute.key.as_namespace_binding() {
            bind(prefix, Namespace(&value), namespaces)?;
        }
    }
    // By what their prefixes mean: quick-xml compares attributes as they are written.
    let mut seen = HashSet::new();
    for attribute in attributes(tag, start)? {
        let (space, name) = namespaces.resolve_attribute(attribute?.key);
        if let ResolveResult::Unknown(_) = space {
            return Err("a prefix that is not bound");
        } else if !seen.insert((space, name)) {
            return Err("an attribute given twice");
        }
    }
    match namespaces.resolve_element(tag.name()).0 {
        ResolveResult::Unbound => Ok(true),
        ResolveResult::Bound(space) if space != XMLNS => Ok(false),
        _ => Err("a prefix that is not bound"),
    }
}

/// The attributes of a tag whose name ends at `start`.
fn attributes(tag: &str, start: usize) -> Checked<impl Iterator<Item = Checked<Attribute<'_>>>> {
    if !are_apart(&tag[start..]) {
        return Err("attributes without a space between them");
    }
    Ok(Attributes::new(tag, start).map(|attribute| {
        let attribute = attribute.map_err(|error| match error {
            AttrError::Duplicated(..) => "an attribute given twice",
            _ => "an attribute without a quoted value",
        })?;
        if is_name(attribute.key.0) {
            Ok(attribute)
        } else {
            Err("an attribute without a proper name")
        }
    }))
}

/// Whether there is a space, or nothing, behind each quoted value.
fn are_apart(mut rest: &str) -> bool {
    while let Some((_, quoted)) = rest.split_once(['"', '\'']) {
        let quote = rest.as_bytes()[rest.len() - quoted.len() - 1];
        rest = quoted
            .split_once(char::from(quote))
            .map_or("", |(_, rest)| rest);
        if !rest.is_empty() && !rest.starts_with(SPACE) {
            return false;
        }
    }
    true
}

fn attribute_value<'a>(attribute: &Attribute<'a>) -> Checked<Cow<'a, str>> {
    if attribute.value.contains('<') {
        return Err("a `<` in the value of an attribute");
    }
    match attribute.normalized_value(XmlVersion::Implicit1_0) {
        Ok(value) if forbidden_character(&value).is_none() => Ok(value),
        _ => Err("a reference that stands for no character of XML"),
    }
}

fn bind(
    prefix: PrefixDeclaration<'_>,
    space: Namespace<'_>,
    namespaces: &mut NamespaceResolver,
) -> Checked<()> {
    match (prefix, space) {
        (PrefixDeclaration::Default, XML | XMLNS) => return Err("a reserved namespace"),
        (PrefixDeclaration::Named(_), Namespace("")) => return Err("a prefix bound to nothing"),
        // ElementTree writes `{namespace}name`, so expat is told to keep this one out
        (_, space) if space.0.contains('}') => return Err("a `}` in a namespace"),
        _ => {}
    }
    let added = namespaces.add(prefix, space);
    added.map_err(|_| "a reserved namespace, or too many of them")
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
            assert_eq!(
                reference(&BytesRef::new(name)).as_deref(),
                Ok(expected),
                "{name}"
            );
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
            assert!(reference(&BytesRef::new(name)).is_err(), "{name}");
        }
    }

    /// The verdict on an XML declaration, given what is between its `<?` and its `?>`.
    fn declared(inside: &str) -> Checked<()> {
        declaration(&BytesDecl::from_start(BytesStart::from_content(inside, 3)))
    }

    #[test]
    fn declarations_have_a_version_and_little_else() {
        for inside in [
            "xml version='1.0'",
            "xml version=\"2.7\" encoding='x-None.1_'",
            "xml\tversion = '' standalone='no' \r\n",
            "xml version='1.0' encoding='a' standalone='yes'",
        ] {
            assert_eq!(declared(inside), Ok(()), "{inside}");
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
            assert!(declared(inside).is_err(), "{inside}");
        }
    }

    #[test]
    fn instructions_have_a_name_of_their_own() {
        for inside in ["a", "a b:c ?", "xml-foo"] {
            assert_eq!(instruction(&BytesPI::new(inside)), Ok(()), "{inside}");
        }
        for inside in ["", " a", "a:b", "a?b", "XML", "xMl c", "1"] {
            assert!(instruction(&BytesPI::new(inside)).is_err(), "{inside}");
        }
    }

    /// A start tag, given what is between its `<` and its `>`.
    fn tag(inside: &str) -> BytesStart<'_> {
        BytesStart::from_content(inside, inside.find(SPACE).unwrap_or(inside.len()))
    }

    /// The verdict on a start tag under a few namespaces.
    fn checked(inside: &str) -> Checked<bool> {
        start_tag(&tag(inside), &mut NamespaceResolver::default())
    }

    #[test]
    fn attributes_are_counted_up_to_the_first_mistake() {
        for (inside, expected) in [
            ("a", 0),
            ("a ", 0),
            ("a b='1'", 1),
            ("a\nb='1'\tc = \"2 d='3'\" ", 2),
            ("a b='1' b='1'", 2),
            ("a b='1'c='2'", 2),
            ("a b='1' c", 1),
            ("a b c='1' d='2'", 0),
        ] {
            assert_eq!(attribute_count(&tag(inside)), expected, "{inside:?}");
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
            assert!(checked(inside).is_err(), "{inside:?}");
        }
    }

    #[test]
    fn well_formed_start_tags_are_in_no_namespace_unless_they_declare_one() {
        for (inside, is_plain) in [
            ("a\tb = 'x>\"\ty&#9;'\n\nc=\"\" ", true),
            ("\u{e9}-.1", true),
            ("xml:a", false),
            ("a xml:b='' b='' c=''", true),
            ("a xmlns='u'", false),
            (
                "a xmlns='' xmlns:xml='http://www.w3.org/XML/1998/namespace'",
                true,
            ),
            ("p:a xmlns:p='u' xmlns:q='v' p:b='' q:b='' b=''", false),
            ("a xmlns='u' xmlns:p='u' b='' p:b=''", false),
            ("a xmlns:p='u'", true),
        ] {
            assert_eq!(checked(inside), Ok(is_plain), "{inside:?}");
        }
    }

    #[test]
    fn attributes_are_distinct_and_bound() {
        for inside in [
            "a b='' b=''",
            "a p:b=''",
            "p:a",
            "xmlns:a",
            "a xmlns:p='u' xmlns:q='u' p:b='' q:b=''",
            "a xmlns:p='u' xmlns:q='&#117;' p:b='' q:b=''",
            "a xmlns:p='u' xmlns:p='v'",
            "a xmlns:p=''",
            "a xmlns:p='u}'",
            "a xmlns:p='http://www.w3.org/XML/1998/namespace'",
            "a xmlns='http://www.w3.org/XML/1998/namespace'",
            "a xmlns='http://www.w3.org/2000/xmlns/'",
            "a xmlns:xml='u'",
            "a xmlns:xmlns='http://www.w3.org/2000/xmlns/'",
        ] {
            assert!(checked(inside).is_err(), "{inside:?}");
        }
    }
}
