//! Reading calls and replies, to the meaning the daemon gives them.
//!
//! The daemon's own reader goes by the names of elements and hardly by their places: each known
//! element leaves a value, an unknown one leaves its text, and whoever is outside takes what its
//! first child left (`supervisor/xmlrpc.py`, `loads`). So does this one, because a call that both
//! sides take differently could pass here and do something else there. Refused beyond what the
//! daemon refuses are document types, elements nested beyond [`Limits::DEFAULT`], integers of more
//! than 64 bits, digits other than ASCII's, and struct members whose name is not text.

use std::borrow::Cow;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::mem;

use quick_xml::errors::{Error as TokenError, IllFormedError};
use quick_xml::events::Event;

use super::{Fault, Limits, MethodCall, Value};
use crate::python;
use markup::{Checked, Namespaces};

mod literal;
mod markup;

/// Why a document was not understood. Positions count bytes, without those of a byte order mark.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// The bytes are no text; carries how many of them are.
    #[error("not UTF-8 at byte {0}")]
    Encoding(usize),
    /// The text is no XML, or XML that declares a document type.
    #[error("malformed XML at byte {at}: {what}")]
    Malformed {
        /// Where the offending token begins.
        at: usize,
        /// What is wrong with it.
        what: Cow<'static, str>,
    },
    /// More elements are open at once than the limit allows, which it carries.
    #[error("elements nest more than {0} deep")]
    TooDeep(usize),
    /// There are more elements and attributes than the limit allows, which it carries.
    #[error("there are more than {0} elements and attributes")]
    TooMany(usize),
    /// An element's content is not what its name promises.
    #[error("the <{element}> at byte {at} {what}")]
    Content {
        /// Where the element begins.
        at: usize,
        /// Its name.
        element: &'static str,
        /// What is wrong with it.
        what: &'static str,
    },
    /// A call without `<methodName>`, or with an empty one.
    #[error("the call names no method")]
    NoMethod,
    /// A reply that holds neither exactly one value nor a fault with a number and a text.
    #[error("the reply holds neither one value nor a fault")]
    NoAnswer,
}

/// Reads a call as the daemon would.
///
/// # Errors
///
/// Whatever the daemon answers with status 400, and the few documents more that the module names.
pub fn call(body: &[u8]) -> Result<MethodCall, ReadError> {
    let document = Document::read(decode(body)?, Sender::Client, Limits::DEFAULT)?;
    let method = document.method.filter(|name| !name.is_empty());
    Ok(MethodCall {
        method: method.ok_or(ReadError::NoMethod)?,
        params: document.params.unwrap_or_default(),
    })
}

/// Reads a reply of the daemon: the value a method returned, or its fault.
///
/// The daemon writes the output of processes into its replies as it is, characters included that
/// XML does not have. These, and carriage returns, come through unchanged, so that a value may be
/// written again and mean to the client what the daemon's own bytes would have meant.
///
/// # Errors
///
/// If the bytes are no reply, for example another server's error page.
pub fn response(body: &[u8]) -> Result<Result<Value, Fault>, ReadError> {
    let document = Document::read(decode(body)?, Sender::Daemon, Limits::OF_REPLIES)?;
    if document.root != Some("methodResponse") {
        return Err(ReadError::NoAnswer);
    }
    if let Some(fault) = document.fault {
        return to_fault(&fault).map(Err).ok_or(ReadError::NoAnswer);
    }
    let [value] = <[Value; 1]>::try_from(document.params.unwrap_or_default())
        .map_err(|_| ReadError::NoAnswer)?;
    Ok(Ok(value))
}

fn to_fault(value: &Value) -> Option<Fault> {
    Some(Fault {
        code: value.get("faultCode")?.as_int()?.try_into().ok()?,
        text: value.get("faultString")?.as_str()?.to_owned(),
    })
}

fn decode(body: &[u8]) -> Result<&str, ReadError> {
    str::from_utf8(body).map_err(|error| ReadError::Encoding(error.valid_up_to()))
}

fn malformed(at: usize, what: impl Into<Cow<'static, str>>) -> ReadError {
    ReadError::Malformed {
        at,
        what: what.into(),
    }
}

/// The tokenizer's complaint, without the names of elements it would quote.
fn complaint(error: &TokenError) -> Cow<'static, str> {
    match error {
        TokenError::IllFormed(
            IllFormedError::MismatchedEndTag { .. } | IllFormedError::UnmatchedEndTag(_),
        ) => "an end tag that does not match its start tag".into(),
        TokenError::IllFormed(IllFormedError::UnclosedReference) => "a bare `&`".into(),
        other => other.to_string().into(),
    }
}

/// Who wrote the document.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sender {
    Client,
    Daemon,
}

/// The elements that mean something.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Tag {
    MethodName,
    Params,
    Fault,
    Param,
    Value,
    Int,
    Boolean,
    String,
    Double,
    DateTime,
    Base64,
    Array,
    Data,
    Struct,
    Other,
}

impl Tag {
    fn named(name: &str) -> Self {
        match name {
            "methodName" => Self::MethodName,
            "params" => Self::Params,
            "fault" => Self::Fault,
            "param" => Self::Param,
            "value" => Self::Value,
            "int" | "i4" => Self::Int,
            "boolean" => Self::Boolean,
            "string" => Self::String,
            "double" => Self::Double,
            "dateTime.iso8601" => Self::DateTime,
            "base64" => Self::Base64,
            "array" => Self::Array,
            "data" => Self::Data,
            "struct" => Self::Struct,
            _ => Self::Other,
        }
    }

    /// The same for the inside of a tag that is nothing but such a name, or another of the format's.
    fn bare(inside: &str) -> Option<Self> {
        match Self::named(inside) {
            Self::Other => {
                let known = matches!(inside, "member" | "name" | "methodCall" | "methodResponse");
                known.then_some(Self::Other)
            }
            known => Some(known),
        }
    }

    /// Whether the element leaves a value in place of its children.
    fn replaces_children(self) -> bool {
        !matches!(
            self,
            Self::MethodName | Self::Params | Self::Fault | Self::Other
        )
    }

    /// How many children's values an element must remember.
    fn remembers(self) -> usize {
        match self {
            Self::Params | Self::Data => usize::MAX,
            Self::Fault | Self::Param | Self::Value | Self::Array => 1,
            _ => 0,
        }
    }
}

/// An element that has begun, and what is in it so far.
struct Element<'a> {
    at: usize,
    tag: Tag,
    /// The prefixes it declares.
    prefixes: Vec<&'a str>,
    /// The text before the first child; the daemon never looks at the rest.
    text: Cow<'a, str>,
    has_child: bool,
    /// What the children left, as many of them as matter.
    children: Vec<Value>,
    remembers: usize,
    /// The children of a struct, each by what its own two children left.
    members: Vec<(String, Value)>,
}

impl<'a> Element<'a> {
    fn push(&mut self, text: Cow<'a, str>) {
        if self.text.is_empty() {
            self.text = text;
        } else {
            self.text.to_mut().push_str(&text);
        }
    }

    /// What the element leaves for the one around it.
    fn into_value(self) -> Result<Value, ReadError> {
        let Self { at, tag, text, .. } = self;
        let refused = |element, what| ReadError::Content { at, element, what };
        match tag {
            Tag::Int => python::int(&text)
                .value()
                .map(Value::Int)
                .ok_or_else(|| refused("int", "is not an integer of 64 bits")),
            Tag::Double => python::float(&text)
                .map(Value::Double)
                .ok_or_else(|| refused("double", "is not a number")),
            Tag::DateTime if literal::is_date_time(&text) => Ok(Value::DateTime(text.into())),
            Tag::DateTime => Err(refused(
                "dateTime.iso8601",
                "is not a time of the form 20240131T23:59:59",
            )),
            Tag::Base64 => literal::base64(&text)
                .map(Value::String)
                .ok_or_else(|| refused("base64", "is not UTF-8 text in base64")),
            Tag::Boolean => Ok(Value::Bool(text == "1")),
            Tag::String => Ok(Value::String(text.into())),
            Tag::Struct => Ok(Value::Struct(last_of_each_name(self.members))),
            Tag::Data => Ok(Value::Array(self.children)),
            Tag::Value => Ok(first(self.children).unwrap_or(Value::String(text.into()))),
            Tag::Array => first(self.children).ok_or_else(|| refused("array", "is empty")),
            Tag::Param => first(self.children).ok_or_else(|| refused("param", "is empty")),
            _ if text.is_empty() => Ok(Value::Nil),
            _ => Ok(Value::String(text.into())),
        }
    }

    /// What the element leaves for a struct around it: a name and a value.
    fn into_member(self) -> Result<(String, Value), ReadError> {
        let refused = |what| ReadError::Content {
            at: self.at,
            element: "member",
            what,
        };
        if self.tag.replaces_children() {
            return Err(refused("is a value without a name"));
        }
        let [name, value] = <[Value; 2]>::try_from(self.children)
            .map_err(|_| refused("is not one name and one value"))?;
        match name {
            Value::String(name) => Ok((name, value)),
            Value::Nil => Ok((String::new(), value)),
            _ => Err(refused("has a name that is not text")),
        }
    }
}

fn first(values: Vec<Value>) -> Option<Value> {
    values.into_iter().next()
}

/// Structs of no more members than this are searched from the front.
const FEW_MEMBERS: usize = 24;

/// Python's idea of duplicate members: the first one's place, the last one's value.
fn last_of_each_name(members: Vec<(String, Value)>) -> Vec<(String, Value)> {
    let few = members.len() <= FEW_MEMBERS;
    let mut names = members.iter().map(|(name, _)| name).enumerate();
    if few && names.all(|(at, name)| members[..at].iter().all(|(before, _)| before != name)) {
        return members;
    }
    let mut places: HashMap<String, usize> = HashMap::with_capacity(members.len());
    let mut kept: Vec<(String, Value)> = Vec::with_capacity(members.len());
    for (name, value) in members {
        match places.entry(name.clone()) {
            Entry::Occupied(place) => kept[*place.get()].1 = value,
            Entry::Vacant(place) => {
                place.insert(kept.len());
                kept.push((name, value));
            }
        }
    }
    kept
}

/// What has been read so far.
struct Document<'a> {
    sender: Sender,
    limits: Limits,
    /// How many elements began so far, with their attributes.
    begun: usize,
    namespaces: Namespaces<'a>,
    open: Vec<Element<'a>>,
    root: Option<&'a str>,
    method: Option<String>,
    params: Option<Vec<Value>>,
    fault: Option<Value>,
}

impl<'a> Document<'a> {
    fn read(text: &'a str, sender: Sender, limits: Limits) -> Result<Self, ReadError> {
        let mut document = Self {
            sender,
            limits,
            begun: 0,
            namespaces: Namespaces::default(),
            open: Vec::new(),
            root: None,
            method: None,
            params: None,
            fault: None,
        };
        document.read_tokens(text)?;
        if document.open.is_empty() && document.root.is_some() {
            Ok(document)
        } else {
            Err(malformed(text.len(), "the document ends too early"))
        }
    }

    fn read_tokens(&mut self, text: &'a str) -> Result<(), ReadError> {
        let mut tokens = quick_xml::Reader::from_str(text);
        tokens.config_mut().check_comments = true;
        // the tokenizer skips one byte order mark, and counts from there
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        if self.sender == Sender::Client
            && let Some(at) = markup::forbidden_character(text)
        {
            return Err(malformed(at, "a character XML does not have"));
        }
        loop {
            let at = tokens.buffer_position() as usize;
            let event = tokens
                .read_event()
                .map_err(|error| malformed(tokens.error_position() as usize, complaint(&error)))?;
            // the event borrows from itself, its bytes in the document do not
            let token = &text[at..tokens.buffer_position() as usize];
            match event {
                Event::Start(_) => self.start(at, inside(token, 1, 1))?,
                Event::Empty(_) => {
                    self.start(at, inside(token, 1, 2))?;
                    self.end()?;
                }
                Event::End(_) => self.end()?,
                Event::Eof => return Ok(()),
                other => self
                    .other_token(at, token, &other)
                    .map_err(|what| malformed(at, what))?,
            }
        }
    }

    /// Takes up text, and checks what stands for none.
    fn other_token(&mut self, at: usize, token: &'a str, event: &Event<'_>) -> Checked<()> {
        match event {
            Event::Text(_) if self.open.is_empty() && markup::is_blank(token) => Ok(()),
            Event::Text(_) if token.contains("]]>") => Err("a `]]>` in text"),
            Event::Text(_) => self.text(self.line_ends(token)),
            Event::CData(_) => self.text(self.line_ends(inside(token, 9, 3))),
            Event::GeneralRef(_) => self.text(markup::reference(inside(token, 1, 1))?),
            Event::Decl(_) if at == 0 => markup::declaration(inside(token, 2, 2)),
            Event::Decl(_) => Err("an XML declaration after the start"),
            Event::PI(_) => markup::instruction(inside(token, 2, 2)),
            Event::DocType(_) => Err("document types are not accepted"),
            _ => Ok(()),
        }
    }

    fn line_ends(&self, text: &'a str) -> Cow<'a, str> {
        match self.sender {
            Sender::Client => markup::line_ends(text),
            Sender::Daemon => Cow::Borrowed(text),
        }
    }

    fn text(&mut self, text: Cow<'a, str>) -> Checked<()> {
        let element = self.open.last_mut();
        let element = element.ok_or("text outside the root element")?;
        if !element.has_child {
            element.push(text);
        }
        Ok(())
    }

    fn start(&mut self, at: usize, tag: &'a str) -> Result<(), ReadError> {
        if self.open.len() >= self.limits.depth {
            return Err(ReadError::TooDeep(self.limits.depth));
        }
        // Before there is room for any of them: one tag may hold millions.
        self.begun += 1 + markup::attribute_count(tag);
        if self.begun > self.limits.elements {
            return Err(ReadError::TooMany(self.limits.elements));
        }
        let element = self.element(at, tag).map_err(|what| malformed(at, what))?;
        self.open.push(element);
        Ok(())
    }

    fn element(&mut self, at: usize, tag: &'a str) -> Checked<Element<'a>> {
        let (name, tag, prefixes) = match Tag::bare(tag) {
            Some(known) if self.namespaces.is_empty() => (tag, known, Vec::new()),
            _ => self.qualified(tag)?,
        };
        let mut remembers = tag.remembers();
        match self.open.last_mut() {
            Some(parent) => {
                parent.has_child = true;
                if parent.tag == Tag::Struct {
                    remembers = remembers.max(3); // a name, a value and whether there is more
                }
            }
            None if self.root.is_some() => return Err("a second root element"),
            None => self.root = Some(name),
        }
        Ok(Element {
            at,
            tag,
            prefixes,
            text: Cow::Borrowed(""),
            has_child: false,
            children: Vec::new(),
            remembers,
            members: Vec::new(),
        })
    }

    /// Name, meaning and declared prefixes of a tag that may have attributes, or be in a namespace.
    fn qualified(&mut self, tag: &'a str) -> Checked<(&'a str, Tag, Vec<&'a str>)> {
        let (name, attributes) = markup::start_tag(tag)?;
        let prefixes = self.namespaces.enter(&attributes)?;
        let tag = match self.namespaces.of_element(name)? {
            "" => Tag::named(name),
            _ => Tag::Other,
        };
        Ok((name, tag, prefixes))
    }

    fn end(&mut self) -> Result<(), ReadError> {
        let Some(mut element) = self.open.pop() else {
            return Ok(()); // the tokenizer has refused it
        };
        self.namespaces.leave(&element.prefixes);
        self.note(&mut element);
        match self.open.last_mut() {
            Some(parent) if parent.tag == Tag::Struct => {
                parent.members.push(element.into_member()?);
            }
            Some(parent) => {
                let value = element.into_value()?;
                if parent.children.len() < parent.remembers {
                    parent.children.push(value);
                }
            }
            None => drop(element.into_value()?),
        }
        Ok(())
    }

    /// Keeps what the elements hold that count wherever they are; the last of each wins.
    fn note(&mut self, element: &mut Element<'a>) {
        let in_struct = self.open.last().is_some_and(|it| it.tag == Tag::Struct);
        match element.tag {
            Tag::MethodName => self.method = Some(element.text.clone().into_owned()),
            Tag::Params if in_struct => self.params = Some(element.children.clone()),
            Tag::Params => self.params = Some(mem::take(&mut element.children)),
            Tag::Fault => self.fault = element.children.first().cloned(),
            _ => {}
        }
    }
}

/// A token without that many bytes of punctuation before and after.
fn inside(token: &str, before: usize, after: usize) -> &str {
    &token[before..token.len() - after]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A call with one parameter, given the inside of its value.
    fn value(inside: &str) -> Result<Value, ReadError> {
        let body = format!(
            "<methodCall><methodName>a.b</methodName><params><param><value>{inside}</value>\
             </param></params></methodCall>"
        );
        let read = call(body.as_bytes())?;
        assert_eq!(read.method, "a.b");
        let [value] = <[Value; 1]>::try_from(read.params).expect("one parameter");
        Ok(value)
    }

    fn string(text: &str) -> Value {
        Value::from(text)
    }

    fn structure(members: &[(&str, Value)]) -> Value {
        let members = members.iter();
        Value::Struct(
            members
                .map(|(name, value)| ((*name).to_owned(), value.clone()))
                .collect(),
        )
    }

    #[test]
    fn values_mean_what_they_mean_to_the_daemon() {
        for (inside, expected) in [
            ("", string("")),
            ("text", string("text")),
            (
                " a <!-- b -->c<?d?><![CDATA[<&]]>&lt;&#65;",
                string(" a c<&<A"),
            ),
            ("a\r\nb\rc&#13;<![CDATA[\r]]>", string("a\nb\nc\r\n")),
            ("<string> a </string>", string(" a ")),
            ("<string/>", string("")),
            ("<string>a<b>c</b>d</string>", string("a")),
            (" x <int>5</int> y ", Value::Int(5)),
            ("<i4> -1_0\n</i4>", Value::Int(-10)),
            ("<i8>5</i8>", string("5")),
            ("<nil/>", Value::Nil),
            ("<i8> <int>5</int></i8>", string(" ")),
            ("<int>1</int><int>2</int>", Value::Int(1)),
            ("<boolean>1</boolean>", Value::Bool(true)),
            ("<boolean> 1</boolean>", Value::Bool(false)),
            ("<boolean/>", Value::Bool(false)),
            ("<double>1e3</double>", Value::Double(1000.0)),
            (
                "<dateTime.iso8601>20240131T23:59:59</dateTime.iso8601>",
                Value::DateTime("20240131T23:59:59".into()),
            ),
            ("<base64>aGk=</base64>", string("hi")),
            ("<array><data/></array>", Value::Array(vec![])),
            (
                "<array><data><value>a</value> b <int>5</int><c/></data></array>",
                Value::Array(vec![string("a"), Value::Int(5), Value::Nil]),
            ),
            ("<array><value>a</value><data/></array>", string("a")),
            (
                "<data><value>a</value></data>",
                Value::Array(vec![string("a")]),
            ),
            ("<value><value>a</value></value>", string("a")),
            ("<param><value>a</value></param>", string("a")),
            ("<struct/>", structure(&[])),
            (
                "<struct><member><name>a</name><value>b</value></member>\
                 <x> <y/><int>5</int></x></struct>",
                structure(&[("a", string("b")), ("", Value::Int(5))]),
            ),
            (
                "<struct><member><name>a</name><int>1</int></member>\
                 <member><name>b</name><int>2</int></member>\
                 <member><name>a</name><int>3</int></member></struct>",
                structure(&[("a", Value::Int(3)), ("b", Value::Int(2))]),
            ),
            ("<x:int xmlns:x='u'>5</x:int>", string("5")),
            ("<int xmlns='u'>5</int>", string("5")),
            ("<methodName>a.b</methodName>", string("a.b")),
        ] {
            assert_eq!(value(inside), Ok(expected), "{inside}");
        }
    }

    #[test]
    fn values_the_daemon_refuses_are_refused() {
        for inside in [
            "<int/>",
            "<int>a</int>",
            "<int><a/>5</int>",
            "<int>9223372036854775808</int>",
            "<double/>",
            "<dateTime.iso8601/>",
            "<base64>aGk</base64>",
            "<base64>/w==</base64>",
            "<array/>",
            "<param/>",
            "<struct><member/></struct>",
            "<struct><member><name>a</name></member></struct>",
            "<struct><member><name>a</name><value/><value/></member></struct>",
            "<struct><value>a</value></struct>",
            "<struct><member><int>5</int><value/></member></struct>",
        ] {
            let read = value(inside);
            assert!(
                matches!(read, Err(ReadError::Content { .. })),
                "{inside}: {read:?}"
            );
        }
    }

    #[test]
    fn calls_are_found_wherever_they_are() {
        for (body, method, params) in [
            ("<methodName>a</methodName>", "a", vec![]),
            (
                "\u{feff}<?xml version='1.0' encoding='utf-16'?>\n\
                 <a><methodName>b</methodName></a>\n<!---->\t<?c?>",
                "b",
                vec![],
            ),
            (
                "<a><methodName>b</methodName><methodName> c<d/>e</methodName></a>",
                " c",
                vec![],
            ),
            (
                "<a><methodName>b<methodName>c</methodName></methodName></a>",
                "b",
                vec![],
            ),
            (
                "<a><params><x>1</x></params><b><methodName>c</methodName></b></a>",
                "c",
                vec![string("1")],
            ),
            (
                "<a><params><x>1</x></params><methodName>c</methodName>\
                 <params><x>2</x><y/></params></a>",
                "c",
                vec![string("2"), Value::Nil],
            ),
            (
                "<a><methodName>c</methodName><params><value><struct>\
                 <params><x>k</x><x>v</x></params></struct></value></params></a>",
                "c",
                vec![structure(&[("k", string("v"))])],
            ),
        ] {
            let expected = MethodCall {
                method: method.to_owned(),
                params,
            };
            assert_eq!(call(body.as_bytes()), Ok(expected), "{body}");
        }
    }

    #[test]
    fn a_call_without_a_method_is_refused() {
        for body in [
            "<methodCall/>",
            "<methodName/>",
            "<methodName><a/>b</methodName>",
            "<a><methodName>b</methodName><methodName/></a>",
            "<a xmlns='u'><methodName>b</methodName></a>",
        ] {
            assert_eq!(call(body.as_bytes()), Err(ReadError::NoMethod), "{body}");
        }
    }

    #[test]
    fn malformed_documents_are_refused() {
        for body in [
            "",
            " ",
            "a",
            "<!---->",
            "<methodName>a",
            "<methodName>a</methodName",
            "<a><methodName>b</methodName></A>",
            "<a><b><methodName>c</methodName></a></b>",
            "</a><methodName>a</methodName>",
            "<methodName>a</methodName><b/>",
            "<methodName>a</methodName>b",
            "<methodName>a</methodName>&#32;",
            "<methodName>a</methodName><![CDATA[]]>",
            "\u{a0}<methodName>a</methodName>",
            "\u{feff}\u{feff}<methodName>a</methodName>",
            " <?xml version='1.0'?><methodName>a</methodName>",
            "<?xml version='1.0'?><?xml version='1.0'?><methodName>a</methodName>",
            "<?xml?><methodName>a</methodName>",
            "<methodName>a<?xml version='1.0'?></methodName>",
            "<methodName>a & b</methodName>",
            "<methodName>a &b; c</methodName>",
            "<methodName>a < b</methodName>",
            "<methodName>a ]]> b</methodName>",
            "<methodName>a<!-- b -- c --></methodName>",
            "<methodName>a<!-- b ---></methodName>",
            "<methodName>a<!-></methodName>",
            "<methodName>a<![cdata[b]]></methodName>",
            "<methodName>a<![CDATA[b]]</methodName>",
            "<methodName>a<?></methodName>",
            "<methodName>a\u{0}</methodName>",
            "<methodName>a\u{1b}</methodName>",
            "<methodName>a<!-- \u{ffff} --></methodName>",
            "<methodName>a&#27;</methodName>",
            "<methodName b='1' b='2'>a</methodName>",
            "<methodName b=1>a</methodName>",
            "<b:methodName>a</b:methodName>",
            "<!DOCTYPE a><methodName>a</methodName>",
            "<!DOCTYPE a [<!ENTITY b 'c'>]><methodName>&b;</methodName>",
            "<methodName>a</ methodName>",
            "< methodName>a</methodName>",
            "<>a</>",
        ] {
            let read = call(body.as_bytes());
            assert!(
                matches!(read, Err(ReadError::Malformed { .. })),
                "{body}: {read:?}"
            );
        }
        let read = call(b"<methodName>a\xff</methodName>");
        assert_eq!(read, Err(ReadError::Encoding(13)));
    }

    #[test]
    fn errors_say_where_and_what() {
        for (body, expected) in [
            (
                "<a><methodName>b</methodName><int>c</int></a>",
                "the <int> at byte 29 is not an integer of 64 bits",
            ),
            (
                "<a><b></a></b>",
                "malformed XML at byte 6: an end tag that does not match its start tag",
            ),
            ("<a>b & c</a>", "malformed XML at byte 5: a bare `&`"),
            (
                "<a b='1' b='1'/>",
                "malformed XML at byte 0: an attribute given twice",
            ),
            (
                "<a>",
                "malformed XML at byte 3: the document ends too early",
            ),
            (
                "<!DOCTYPE a><a/>",
                "malformed XML at byte 0: document types are not accepted",
            ),
        ] {
            assert_eq!(call(body.as_bytes()).unwrap_err().to_string(), expected);
        }
    }

    #[test]
    fn as_many_elements_may_be_open_as_the_limit_says() {
        let nested = |inner: usize| {
            let (start, end) = ("<a>".repeat(inner), "</a>".repeat(inner));
            format!("<methodName>a{start}{end}</methodName>")
        };
        let limit = Limits::DEFAULT.depth;
        assert!(call(nested(limit - 1).as_bytes()).is_ok());
        let too_deep = Err(ReadError::TooDeep(limit));
        assert_eq!(call(nested(limit).as_bytes()), too_deep);
        assert_eq!(call("<array>".repeat(1_000_000).as_bytes()), too_deep);
    }

    #[test]
    fn a_call_has_as_many_elements_and_attributes_as_the_limit_says_and_a_reply_any_number() {
        let limit = Limits::DEFAULT.elements;
        let call_of = |inner: usize| format!("<methodName>a{}</methodName>", "<a/>".repeat(inner));
        assert!(call(call_of(limit - 1).as_bytes()).is_ok());
        assert_eq!(
            call(call_of(limit).as_bytes()),
            Err(ReadError::TooMany(limit))
        );
        let tag_of = |attributes: usize| {
            let attributes: String = (0..attributes).map(|n| format!(" a{n}=''")).collect();
            format!("<methodName{attributes}>a</methodName>")
        };
        assert!(call(tag_of(limit - 1).as_bytes()).is_ok());
        assert_eq!(
            call(tag_of(limit).as_bytes()),
            Err(ReadError::TooMany(limit))
        );
        let many = format!("<array><data>{}</data></array>", "<nil/>".repeat(limit));
        assert!(reply(&many).is_ok());
    }

    #[test]
    fn crowded_documents_are_read_without_delay() {
        use std::fmt::Write as _;
        const MANY: usize = 50_000; // minutes, if any step took the square
        let mut body = String::from("<methodName ");
        for number in 0..MANY {
            write!(body, "xmlns:a{number}='{number}' a{number}:b='' ").unwrap();
        }
        body.push_str(">a<struct>");
        for number in 0..MANY {
            write!(body, "<x><a>{}</a><b>{number}</b></x>", number % 7).unwrap();
        }
        body.push_str("</struct>");
        body.push_str(&"&lt;]]<![CDATA[]]>".repeat(MANY));
        body.push_str("</methodName>");
        assert_eq!(call(body.as_bytes()).unwrap().method, "a");
    }

    /// A reply with one value, given its inside.
    fn reply(inside: &str) -> Result<Result<Value, Fault>, ReadError> {
        let body = format!(
            "<?xml version='1.0'?>\n<methodResponse>\n<params>\n<param>\n<value>{inside}</value>\n\
             </param>\n</params>\n</methodResponse>\n"
        );
        response(body.as_bytes())
    }

    #[test]
    fn replies_keep_what_processes_wrote() {
        assert_eq!(
            reply("<string>\u{1b}[1m\0a\r\nb\r&lt;\u{ffff}</string>"),
            Ok(Ok(string("\u{1b}[1m\0a\r\nb\r<\u{ffff}")))
        );
        assert_eq!(reply("<nil/>"), Ok(Ok(Value::Nil)));
        assert_eq!(reply("<int>5</int>"), Ok(Ok(Value::Int(5))));
    }

    #[test]
    fn faults_are_told_from_values() {
        let body = "<methodResponse><fault><value><struct>\
            <member><name>faultCode</name><value><int>10</int></value></member>\
            <member><name>faultString</name><value><string>BAD_NAME</string></value></member>\
            </struct></value></fault></methodResponse>";
        let fault = Fault {
            code: 10,
            text: "BAD_NAME".to_owned(),
        };
        assert_eq!(response(body.as_bytes()), Ok(Err(fault)));

        let of_text = body.replace("<int>10</int>", "ten");
        assert_eq!(response(of_text.as_bytes()), Err(ReadError::NoAnswer));
        let too_large = body.replace("10", "4294967296");
        assert_eq!(response(too_large.as_bytes()), Err(ReadError::NoAnswer));
    }

    #[test]
    fn other_documents_are_no_replies() {
        for body in [
            "<html><params><param><value>a</value></param></params></html>",
            "<methodResponse/>",
            "<methodResponse><params/></methodResponse>",
            "<methodResponse><params><x>1</x><x>2</x></params></methodResponse>",
            "<methodResponse><fault/></methodResponse>",
            "<methodResponse><fault><value>a</value></fault></methodResponse>",
        ] {
            assert_eq!(
                response(body.as_bytes()),
                Err(ReadError::NoAnswer),
                "{body}"
            );
        }
        assert!(response(b"<methodResponse>").is_err());
        assert!(response(b"").is_err());
        assert!(response(b"<methodResponse>\xff</methodResponse>").is_err());
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(body: Vec<u8>) {
            let _ = (call(&body), response(&body));
        }

        #[test]
        fn any_markup_is_read_or_refused(body in "[<>/!?&;#x\\[\\]CDATA\"'= :a-]{0,64}") {
            let _ = (call(body.as_bytes()), response(body.as_bytes()));
        }
    }
}
