//! Parses calls and replies with the meaning that the daemon gives them.
//!
//! The daemon's parser looks at the names of elements and hardly at their nesting: each known element
//! returns a value, an unknown one returns its text, and an element takes the value of its first child
//! (`supervisor/xmlrpc.py`, `loads`). This parser does the same. Otherwise a call could pass the proxy's
//! checks with one meaning and have another in the daemon.
//!
//! In addition to the daemon, this parser refuses document types, elements nested deeper than
//! [`Limits::DEFAULT`], integers of more than 64 bits, non-ASCII digits, struct members whose name is not
//! text, and more nested namespaces than quick-xml supports (256).

use std::borrow::Cow;
use std::mem;

use quick_xml::errors::{Error as TokenError, IllFormedError};
use quick_xml::events::{BytesStart, Event};
use quick_xml::name::NamespaceResolver;

use super::{Fault, Limits, MethodCall, Value};
use element::{Element, Tag};
use markup::Checked;

mod element;
mod literal;
mod markup;

/// Why a document cannot be parsed. Positions are in bytes after the byte order mark.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// The bytes are not UTF-8, from this position on.
    #[error("not UTF-8 at byte {0}")]
    Encoding(usize),
    /// The text is not XML, or declares a document type.
    #[error("malformed XML at byte {at}: {what}")]
    Malformed {
        /// The position of the invalid token.
        at: usize,
        /// The mistake.
        what: Cow<'static, str>,
    },
    /// Elements are nested deeper than this limit.
    #[error("elements nest more than {0} deep")]
    TooDeep(usize),
    /// There are more elements and attributes than this limit.
    #[error("there are more than {0} elements and attributes")]
    TooMany(usize),
    /// The content of an element is not valid for its type.
    #[error("the <{element}> at byte {at} {what}")]
    Content {
        /// The position of the element.
        at: usize,
        /// The name of the element.
        element: &'static str,
        /// The mistake.
        what: &'static str,
    },
    /// The call has no `<methodName>`, or an empty one.
    #[error("the call names no method")]
    NoMethod,
    /// The reply has neither exactly one value nor a fault with a number and a text.
    #[error("the reply holds neither one value nor a fault")]
    NoAnswer,
}

/// Parses a call as the daemon does.
///
/// # Errors
///
/// If the daemon would answer the document with status 400, or if it is one of those that the module's
/// documentation lists.
pub fn call(body: &[u8]) -> Result<MethodCall, ReadError> {
    let document = Document::read(decode(body)?, Source::Client, Limits::DEFAULT)?;
    let method = document.method.filter(|name| !name.is_empty());
    Ok(MethodCall {
        method: method.ok_or(ReadError::NoMethod)?,
        params: document.params.unwrap_or_default(),
    })
}

/// Parses a reply of the daemon: the result of a method, or its fault.
///
/// The daemon writes the output of processes into its replies without escaping the characters that XML
/// does not allow. These and carriage returns are returned unchanged, so that [`mod@super::write`] writes
/// the daemon's own bytes for the value.
///
/// # Errors
///
/// If the bytes are not a reply, for example the error page of another server.
pub fn response(body: &[u8]) -> Result<Result<Value, Fault>, ReadError> {
    let document = Document::read(decode(body)?, Source::Daemon, Limits::REPLIES)?;
    if !document.is_response {
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
    let code = value.get("faultCode")?.as_int()?.try_into().ok()?;
    let text = value.get("faultString")?.as_str()?.to_owned();
    Some(Fault::from_reply(code, text))
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

/// Returns the text of the tokenizer's error, without the names of elements that it would quote.
fn error_text(error: &TokenError) -> Cow<'static, str> {
    match error {
        TokenError::IllFormed(
            IllFormedError::MismatchedEndTag { .. } | IllFormedError::UnmatchedEndTag(_),
        ) => "an end tag that does not match its start tag".into(),
        TokenError::IllFormed(IllFormedError::UnclosedReference) => "a bare `&`".into(),
        other => other.to_string().into(),
    }
}

/// The sender of a document.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Source {
    Client,
    Daemon,
}

/// The state of the parser.
struct Document<'a> {
    source: Source,
    limits: Limits,
    /// The number of elements and attributes so far.
    element_count: usize,
    namespaces: NamespaceResolver,
    open: Vec<Element<'a>>,
    has_root: bool,
    is_response: bool,
    method: Option<String>,
    params: Option<Vec<Value>>,
    fault: Option<Value>,
}

impl<'a> Document<'a> {
    fn read(text: &'a str, source: Source, limits: Limits) -> Result<Self, ReadError> {
        let mut document = Self {
            source,
            limits,
            element_count: 0,
            namespaces: NamespaceResolver::default(),
            open: Vec::new(),
            has_root: false,
            is_response: false,
            method: None,
            params: None,
            fault: None,
        };
        document.read_tokens(text)?;
        if document.open.is_empty() && document.has_root {
            Ok(document)
        } else {
            Err(malformed(text.len(), "the document ends too early"))
        }
    }

    fn read_tokens(&mut self, text: &'a str) -> Result<(), ReadError> {
        let mut tokens = quick_xml::Reader::from_str(text);
        tokens.config_mut().check_comments = true;
        // The tokenizer skips one byte order mark, and counts positions from there.
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        if self.source == Source::Client
            && let Some(at) = markup::forbidden_character(text)
        {
            return Err(malformed(at, "a character XML does not have"));
        }
        loop {
            let at = tokens.buffer_position() as usize;
            let event = tokens
                .read_event()
                .map_err(|error| malformed(tokens.error_position() as usize, error_text(&error)))?;
            match event {
                Event::Start(tag) => self.start(at, &tag)?,
                Event::Empty(tag) => {
                    self.start(at, &tag)?;
                    self.end()?;
                }
                Event::End(_) => self.end()?,
                Event::Eof => return Ok(()),
                other => self
                    .other_token(at, other)
                    .map_err(|what| malformed(at, what))?,
            }
        }
    }

    /// Adds text to the open element, and checks tokens other than text and tags.
    fn other_token(&mut self, at: usize, event: Event<'a>) -> Checked<()> {
        let is_daemon = self.source == Source::Daemon;
        match event {
            Event::Text(text) if self.open.is_empty() && markup::is_blank(&text) => Ok(()),
            Event::Text(text) if text.contains("]]>") => Err("a `]]>` in text"),
            Event::Text(text) if is_daemon => self.text(text.into_inner()),
            Event::Text(text) => self.text(text.xml10_content()),
            Event::CData(text) if is_daemon => self.text(text.into_inner()),
            Event::CData(text) => self.text(text.xml10_content()),
            Event::GeneralRef(name) => self.text(markup::reference(&name)?),
            Event::Decl(declaration) if at == 0 => markup::declaration(&declaration),
            Event::Decl(_) => Err("an XML declaration after the start"),
            Event::PI(instruction) => markup::instruction(&instruction),
            Event::DocType(_) => Err("document types are not accepted"),
            _ => Ok(()),
        }
    }

    fn text(&mut self, text: Cow<'a, str>) -> Checked<()> {
        let element = self.open.last_mut();
        element.ok_or("text outside the root element")?.push(text);
        Ok(())
    }

    fn start(&mut self, at: usize, tag: &BytesStart<'_>) -> Result<(), ReadError> {
        if self.open.len() >= self.limits.depth {
            return Err(ReadError::TooDeep(self.limits.depth));
        }
        // The attributes are counted before memory is allocated: one tag may have millions.
        self.element_count += 1 + markup::attribute_count(tag);
        if self.element_count > self.limits.elements {
            return Err(ReadError::TooMany(self.limits.elements));
        }
        let kind = self.tag(tag).map_err(|what| malformed(at, what))?;
        if self.open.is_empty() {
            if mem::replace(&mut self.has_root, true) {
                return Err(malformed(at, "a second root element"));
            }
            self.is_response = tag.name().0 == "methodResponse";
        }
        let element = Element::new(at, kind, self.open.last_mut());
        self.open.push(element);
        Ok(())
    }

    /// Checks a start tag and returns its kind.
    fn tag(&mut self, tag: &BytesStart<'_>) -> Checked<Tag> {
        // A tag that is just a name of XML-RPC, outside of any namespace, needs no check.
        let plain = Tag::from_name(tag).filter(|_| self.namespaces.bindings().next().is_none());
        if let Some(plain) = plain {
            return Ok(plain);
        }
        self.namespaces.set_level(self.open.len() as u16 + 1);
        let is_plain = markup::start_tag(tag, &mut self.namespaces)?;
        let known = Tag::from_name(tag.name().0).filter(|_| is_plain);
        Ok(known.unwrap_or(Tag::Other))
    }

    fn end(&mut self) -> Result<(), ReadError> {
        let Some(mut element) = self.open.pop() else {
            return Ok(()); // the tokenizer has refused an unmatched end tag
        };
        self.namespaces.set_level(self.open.len() as u16);
        self.record(&mut element);
        match self.open.last_mut() {
            Some(parent) => parent.add_child(element),
            None => element.into_value().map(drop),
        }
    }

    /// Records the method, the parameters or the fault. These elements count at any depth, and the last of
    /// each wins.
    fn record(&mut self, element: &mut Element<'a>) {
        let parent = self.open.last();
        let in_struct = parent.is_some_and(|parent| parent.tag == Tag::Struct);
        match element.tag {
            Tag::MethodName => self.method = Some(element.text.clone().into_owned()),
            Tag::Params if in_struct => self.params = Some(element.children.clone()),
            Tag::Params => self.params = Some(mem::take(&mut element.children)),
            Tag::Fault => self.fault = element.children.first().cloned(),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Parses a call with one parameter, given the content of its `<value>`.
    fn value(inside: &str) -> Result<Value, ReadError> {
        let body = format!(
            "<methodCall><methodName>a.b</methodName><params><param><value>{inside}</value>\
             </param></params></methodCall>"
        );
        let call = call(body.as_bytes())?;
        assert_eq!(call.method, "a.b");
        let [value] = <[Value; 1]>::try_from(call.params).expect("one parameter");
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
    fn values_have_the_meaning_that_the_daemon_gives_them() {
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
    fn values_that_the_daemon_refuses_are_refused() {
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
            let result = value(inside);
            assert!(
                matches!(result, Err(ReadError::Content { .. })),
                "{inside}: {result:?}"
            );
        }
    }

    #[test]
    fn methods_and_parameters_count_at_any_depth() {
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
            let result = call(body.as_bytes());
            assert!(
                matches!(result, Err(ReadError::Malformed { .. })),
                "{body}: {result:?}"
            );
        }
        let result = call(b"<methodName>a\xff</methodName>");
        assert_eq!(result, Err(ReadError::Encoding(13)));
    }

    #[test]
    fn errors_name_the_position_and_the_mistake() {
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
    fn the_depth_of_elements_is_limited() {
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
    fn the_number_of_elements_and_attributes_is_limited_in_calls_but_not_in_replies() {
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
    fn large_documents_are_parsed_in_linear_time() {
        use std::fmt::Write as _;
        const MANY: usize = 50_000; // takes minutes if any step is quadratic
        let mut body = String::from("<methodName xmlns:a='1' ");
        for number in 0..MANY {
            write!(body, "a:b{number}='{number}' ").unwrap();
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

    /// Parses a reply with one value, given the content of its `<value>`.
    fn reply(inside: &str) -> Result<Result<Value, Fault>, ReadError> {
        let body = format!(
            "<?xml version='1.0'?>\n<methodResponse>\n<params>\n<param>\n<value>{inside}</value>\n\
             </param>\n</params>\n</methodResponse>\n"
        );
        response(body.as_bytes())
    }

    #[test]
    fn characters_that_xml_does_not_allow_are_unchanged_in_replies() {
        assert_eq!(
            reply("<string>\u{1b}[1m\0a\r\nb\r&lt;\u{ffff}</string>"),
            Ok(Ok(string("\u{1b}[1m\0a\r\nb\r<\u{ffff}")))
        );
        assert_eq!(reply("<nil/>"), Ok(Ok(Value::Nil)));
        assert_eq!(reply("<int>5</int>"), Ok(Ok(Value::Int(5))));
    }

    #[test]
    fn faults_need_a_number_and_a_text() {
        let body = "<methodResponse><fault><value><struct>\
            <member><name>faultCode</name><value><int>10</int></value></member>\
            <member><name>faultString</name><value><string>BAD_NAME</string></value></member>\
            </struct></value></fault></methodResponse>";
        let fault = Fault::from_reply(10, "BAD_NAME".to_owned());
        assert_eq!(response(body.as_bytes()), Ok(Err(fault)));

        let of_text = body.replace("<int>10</int>", "ten");
        assert_eq!(response(of_text.as_bytes()), Err(ReadError::NoAnswer));
        let too_large = body.replace("10", "4294967296");
        assert_eq!(response(too_large.as_bytes()), Err(ReadError::NoAnswer));
    }

    #[test]
    fn other_documents_are_not_replies() {
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
        fn the_parser_does_not_panic_on_any_bytes(body: Vec<u8>) {
            let _ = (call(&body), response(&body));
        }

        #[test]
        fn the_parser_does_not_panic_on_any_markup(body in "[<>/!?&;#x\\[\\]CDATA\"'= :a-]{0,64}") {
            let _ = (call(body.as_bytes()), response(body.as_bytes()));
        }
    }
}
