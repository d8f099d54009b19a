//! Checks that a document is well-formed where quick-xml accepts more than expat, the daemon's parser
//! (`supervisor/xmlrpc.py`, `loads`, through `ElementTree`).
//!
//! quick-xml splits a document into tokens and resolves references, line ends and namespaces. This
//! module checks the characters of a document and of names, the spaces between attributes, the form of
//! the XML declaration, duplicate attributes and reserved namespaces. It checks one token at a time, and
//! knows nothing of XML-RPC.

use std::borrow::Cow;
use std::collections::HashSet;

use quick_xml::XmlVersion;
use quick_xml::escape::resolve_xml_entity;
use quick_xml::events::attributes::{AttrError, Attribute, Attributes};
use quick_xml::events::{BytesDecl, BytesPI, BytesRef, BytesStart};
use quick_xml::name::{Namespace, NamespaceResolver, PrefixDeclaration, ResolveResult};

/// The result of a check, or the mistake in the token.
pub(super) type Checked<T> = Result<T, &'static str>;

const SPACE: [char; 4] = [' ', '\t', '\r', '\n'];
const XML: Namespace = Namespace("http://www.w3.org/XML/1998/namespace");
const XMLNS: Namespace = Namespace("http://www.w3.org/2000/xmlns/");

/// Returns whether the text only has XML white space.
pub(super) fn is_blank(text: &str) -> bool {
    text.trim_start_matches(SPACE).is_empty()
}

/// Returns whether a document may have the character, literally or as a reference.
fn is_character(character: char) -> bool {
    matches!(character, '\t' | '\n' | '\r' | ' '..='\u{fffd}' | '\u{10000}'..)
}

/// Returns the position of the first character that a document may not have.
pub(super) fn forbidden_character(text: &str) -> Option<usize> {
    let bytes = text.as_bytes();
    bytes.iter().enumerate().position(|(at, byte)| match byte {
        b'\t' | b'\n' | b'\r' => false,
        0..b' ' => true,
        // U+FFFE and U+FFFF. The text is UTF-8, so two more bytes follow.
        0xef => bytes[at + 1] == 0xbf && bytes[at + 2] >= 0xbe,
        _ => false,
    })
}

/// Returns the text for a reference. Only the five predefined entities are accepted, because document
/// types, which define others, are refused.
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

/// Checks the form of an XML declaration. Its encoding and version have no effect: the daemon decodes the
/// document before it parses it, and expat reads every version as 1.0.
pub(super) fn declaration(declaration: &BytesDecl<'_>) -> Checked<()> {
    let mut rest = attributes(declaration, "xml".len())?.peekable();
    let mut value = |name| {
        let attribute = rest.next_if(|next| next.as_ref().is_ok_and(|next| next.key.0 == name));
        attribute
            .and_then(Result::ok)
            .map(|attribute| attribute.value)
    };
    let is_version = |version: Cow<'_, str>| version.bytes().all(is_label_byte);
    if !value("version").is_some_and(is_version) {
        return Err("an XML declaration without a version");
    }
    let has_encoding = value("encoding").is_none_or(|label| is_encoding(&label));
    let standalone = value("standalone");
    let has_standalone = standalone.is_none_or(|value| matches!(&*value, "yes" | "no"));
    if has_encoding && has_standalone && rest.next().is_none() {
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

/// Counts the attributes of a start tag up to the first mistake, without allocating memory for them.
pub(super) fn attribute_count(tag: &BytesStart<'_>) -> usize {
    let mut attributes = tag.attributes();
    let attributes = attributes.with_checks(false);
    attributes.take_while(Result::is_ok).count()
}

/// Checks a start tag and adds the namespaces that it declares. Returns whether the element is in no
/// namespace, as the elements of XML-RPC are.
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
    // Duplicates are compared by namespace, because quick-xml compares their prefixes.
    let mut names = HashSet::new();
    for attribute in attributes(tag, start)? {
        let (space, name) = namespaces.resolve_attribute(attribute?.key);
        if let ResolveResult::Unknown(_) = space {
            return Err("a prefix that is not bound");
        } else if !names.insert((space, name)) {
            return Err("an attribute given twice");
        }
    }
    match namespaces.resolve_element(tag.name()).0 {
        ResolveResult::Unbound => Ok(true),
        ResolveResult::Bound(space) if space != XMLNS => Ok(false),
        _ => Err("a prefix that is not bound"),
    }
}

/// Returns the attributes of a tag whose name ends at `start`.
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

/// Returns whether a space follows each quoted value, except the last.
fn are_apart(mut rest: &str) -> bool {
    while let Some((_, value)) = rest.split_once(['"', '\'']) {
        let quote = rest.as_bytes()[rest.len() - value.len() - 1];
        rest = value
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
        // ElementTree writes `{namespace}name`, and makes expat refuse a `}` in it.
        (_, space) if space.0.contains('}') => return Err("a `}` in a namespace"),
        _ => {}
    }
    let result = namespaces.add(prefix, space);
    result.map_err(|_| "a reserved namespace, or too many of them")
}

/// Returns whether the text is the name of an element or attribute, with or without a prefix.
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

/// Returns whether a name may begin with the character: the letters of XML's fifth edition in Unicode's
/// first plane.
///
/// expat accepts the letters of the earlier editions, in some hundred ranges. These ranges have all of
/// them, and some that expat refuses.
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
    fn forbidden_characters_are_found_at_their_position() {
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
    fn references_resolve_to_characters_of_xml() {
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

    /// Checks an XML declaration, given the text between `<?` and `?>`.
    fn check_declaration(inside: &str) -> Checked<()> {
        declaration(&BytesDecl::from_start(BytesStart::from_content(inside, 3)))
    }

    #[test]
    fn declarations_have_a_version_and_optional_attributes() {
        for inside in [
            "xml version='1.0'",
            "xml version=\"2.7\" encoding='x-None.1_'",
            "xml\tversion = '' standalone='no' \r\n",
            "xml version='1.0' encoding='a' standalone='yes'",
        ] {
            assert_eq!(check_declaration(inside), Ok(()), "{inside}");
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
            assert!(check_declaration(inside).is_err(), "{inside}");
        }
    }

    #[test]
    fn instructions_have_a_name_other_than_xml() {
        for inside in ["a", "a b:c ?", "xml-foo"] {
            assert_eq!(instruction(&BytesPI::new(inside)), Ok(()), "{inside}");
        }
        for inside in ["", " a", "a:b", "a?b", "XML", "xMl c", "1"] {
            assert!(instruction(&BytesPI::new(inside)).is_err(), "{inside}");
        }
    }

    /// Returns a start tag, given the text between `<` and `>`.
    fn tag(inside: &str) -> BytesStart<'_> {
        BytesStart::from_content(inside, inside.find(SPACE).unwrap_or(inside.len()))
    }

    /// Checks a start tag without namespaces around it.
    fn check_tag(inside: &str) -> Checked<bool> {
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
            assert!(check_tag(inside).is_err(), "{inside:?}");
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
            assert_eq!(check_tag(inside), Ok(is_plain), "{inside:?}");
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
            assert!(check_tag(inside).is_err(), "{inside:?}");
        }
    }
}
