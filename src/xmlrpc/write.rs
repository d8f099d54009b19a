//! Writes calls and replies with the same bytes as Python (`xmlrpc.client.dumps`).
//!
//! Line breaks and tags are therefore those of Python. Like Python, it only escapes `&`, `<` and `>`, and
//! writes characters that XML does not allow unchanged: the daemon's replies have such characters in the
//! output of processes. In a call, the daemon would refuse or change them. A string with such a
//! character is therefore written to a call as `<base64>`, which the daemon reads as a string.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::{Fault, Value};
use crate::python::float_repr;

const DECLARATION: &str = "<?xml version='1.0'?>\n";

/// Writes a call. The name of the method is escaped; Python does not escape it.
pub fn call(method: &str, params: &[Value]) -> Vec<u8> {
    let mut out = String::from(DECLARATION);
    out.push_str("<methodCall>\n<methodName>");
    push_escaped(&mut out, method);
    out.push_str("</methodName>\n");
    parameters(&mut out, params, Reader::Daemon);
    out.push_str("</methodCall>\n");
    out.into_bytes()
}

/// Writes a reply with the result of a method.
pub fn response(value: &Value) -> Vec<u8> {
    let mut out = String::from(DECLARATION);
    out.push_str("<methodResponse>\n");
    parameters(&mut out, std::slice::from_ref(value), Reader::Client);
    out.push_str("</methodResponse>\n");
    out.into_bytes()
}

/// Writes a reply with a fault.
pub fn fault(fault: &Fault) -> Vec<u8> {
    let mut out = String::from(DECLARATION);
    out.push_str("<methodResponse>\n<fault>\n<value><struct>\n");
    member(
        &mut out,
        "faultCode",
        &Value::from(fault.code),
        Reader::Client,
    );
    member(
        &mut out,
        "faultString",
        &Value::from(&fault.text[..]),
        Reader::Client,
    );
    out.push_str("</struct></value>\n</fault>\n</methodResponse>\n");
    out.into_bytes()
}

/// Appends a `<value>` element for a reply.
///
/// [`Value::Nil`] is written as Python writes it with `allow_none`. Integers of more than 32 bits, which
/// Python refuses, are written in full.
pub fn value(out: &mut String, value: &Value) {
    value_for(out, value, Reader::Client);
}

/// The recipient of a value.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reader {
    Client,
    Daemon,
}

fn value_for(out: &mut String, value: &Value, reader: Reader) {
    match value {
        Value::Nil => out.push_str("<value><nil/></value>"),
        Value::Bool(truth) => scalar(out, "boolean", if *truth { "1" } else { "0" }),
        Value::Int(number) => scalar(out, "int", &number.to_string()),
        Value::Double(number) => scalar(out, "double", &float_repr(*number)),
        Value::String(text) if reader == Reader::Daemon && !survives_xml(text) => {
            scalar(out, "base64", &STANDARD.encode(text));
        }
        Value::String(text) => scalar(out, "string", text),
        Value::DateTime(text) => scalar(out, "dateTime.iso8601", text),
        Value::Array(items) => {
            out.push_str("<value><array><data>\n");
            items.iter().for_each(|item| value_for(out, item, reader));
            out.push_str("</data></array></value>\n");
        }
        Value::Struct(members) => {
            out.push_str("<value><struct>\n");
            for (name, value) in members {
                member(out, name, value, reader);
            }
            out.push_str("</struct></value>\n");
        }
    }
}

/// Returns whether an XML parser reads the text unchanged.
fn survives_xml(text: &str) -> bool {
    let is_unsafe = |letter: char| {
        letter < ' ' && !matches!(letter, '\t' | '\n') || matches!(letter, '\u{fffe}' | '\u{ffff}')
    };
    !text.contains(is_unsafe)
}

fn parameters(out: &mut String, params: &[Value], reader: Reader) {
    out.push_str("<params>\n");
    for param in params {
        out.push_str("<param>\n");
        value_for(out, param, reader);
        out.push_str("</param>\n");
    }
    out.push_str("</params>\n");
}

fn scalar(out: &mut String, tag: &str, text: &str) {
    out.extend(["<value><", tag, ">"]);
    push_escaped(out, text);
    out.extend(["</", tag, "></value>\n"]);
}

fn member(out: &mut String, name: &str, value: &Value, reader: Reader) {
    out.push_str("<member>\n<name>");
    push_escaped(out, name);
    out.push_str("</name>\n");
    value_for(out, value, reader);
    out.push_str("</member>\n");
}

/// Appends the text with its special characters escaped.
fn push_escaped(out: &mut String, text: &str) {
    let mut rest = text;
    while let Some(at) = rest.find(['&', '<', '>']) {
        let (plain, special) = rest.split_at(at);
        out.push_str(plain);
        out.push_str(match special.as_bytes()[0] {
            b'&' => "&amp;",
            b'<' => "&lt;",
            _ => "&gt;",
        });
        rest = &special[1..];
    }
    out.push_str(rest);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::xmlrpc::read;
    use proptest::prelude::*;

    // CPython 3.11 wrote the expected bytes of these tests for the same values.

    #[test]
    fn calls_are_written_as_python_writes_them() {
        assert_eq!(
            String::from_utf8_lossy(&call("supervisor.getState", &[])),
            "<?xml version='1.0'?>\n<methodCall>\n<methodName>supervisor.getState</methodName>\n\
             <params>\n</params>\n</methodCall>\n"
        );
        assert_eq!(
            String::from_utf8_lossy(&call("m", &[Value::Nil, Value::from(true)])),
            "<?xml version='1.0'?>\n<methodCall>\n<methodName>m</methodName>\n<params>\n<param>\n\
             <value><nil/></value></param>\n<param>\n<value><boolean>1</boolean></value>\n\
             </param>\n</params>\n</methodCall>\n"
        );
    }

    #[test]
    fn replies_are_written_as_python_writes_them() {
        assert_eq!(
            String::from_utf8_lossy(&response(&Value::from("1.0"))),
            "<?xml version='1.0'?>\n<methodResponse>\n<params>\n<param>\n\
             <value><string>1.0</string></value>\n</param>\n</params>\n</methodResponse>\n"
        );
        let bad_name = Fault::from_reply(10, "BAD_NAME: <x>".to_owned());
        assert_eq!(
            String::from_utf8_lossy(&fault(&bad_name)),
            "<?xml version='1.0'?>\n<methodResponse>\n<fault>\n<value><struct>\n<member>\n\
             <name>faultCode</name>\n<value><int>10</int></value>\n</member>\n<member>\n\
             <name>faultString</name>\n<value><string>BAD_NAME: &lt;x&gt;</string></value>\n\
             </member>\n</struct></value>\n</fault>\n</methodResponse>\n"
        );
    }

    #[test]
    fn values_are_written_as_python_writes_them() {
        let members = vec![
            ("a<".to_owned(), Value::from(1)),
            ("b".to_owned(), Value::from(false)),
        ];
        for (it, expected) in [
            (
                Value::from("a & <b> \"c\" 'd' \u{e9}\u{1b}\r\n"),
                "<value><string>a &amp; &lt;b&gt; \"c\" 'd' \u{e9}\u{1b}\r\n</string></value>\n",
            ),
            (Value::from(-5), "<value><int>-5</int></value>\n"),
            (
                Value::DateTime("20240131T23:59:59".to_owned()),
                "<value><dateTime.iso8601>20240131T23:59:59</dateTime.iso8601></value>\n",
            ),
            (
                Value::from(vec![Value::from("x"), Value::from(vec![])]),
                "<value><array><data>\n<value><string>x</string></value>\n\
                 <value><array><data>\n</data></array></value>\n</data></array></value>\n",
            ),
            (
                Value::Struct(vec![]),
                "<value><struct>\n</struct></value>\n",
            ),
            (
                Value::Struct(members),
                "<value><struct>\n<member>\n<name>a&lt;</name>\n<value><int>1</int></value>\n\
                 </member>\n<member>\n<name>b</name>\n<value><boolean>0</boolean></value>\n\
                 </member>\n</struct></value>\n",
            ),
        ] {
            assert_eq!(written(&it), expected);
        }
    }

    #[test]
    fn a_method_name_cannot_break_out() {
        let name = "a</methodName><params/>&";
        let body = call(name, &[Value::from(1)]);
        let read = read::call(&body).unwrap();
        assert_eq!(
            (&read.method[..], &read.params[..]),
            (name, &[Value::Int(1)][..])
        );
    }

    fn written(it: &Value) -> String {
        let mut out = String::new();
        value(&mut out, it);
        out
    }

    /// Any value with the text that XML can carry; carriage returns do not survive a call.
    fn any_value() -> impl Strategy<Value = Value> {
        let text = "[ -~\t\n\u{a0}-\u{d7ff}\u{10000}-\u{10ffff}]{0,12}";
        let leaf = prop_oneof![
            Just(Value::Nil),
            any::<bool>().prop_map(Value::Bool),
            any::<i64>().prop_map(Value::Int),
            any::<f64>()
                .prop_filter("comparable", |number| !number.is_nan())
                .prop_map(Value::Double),
            text.prop_map(Value::String),
        ];
        leaf.prop_recursive(4, 24, 6, move |inner| {
            let members = proptest::collection::btree_map(text, inner.clone(), 0..6);
            prop_oneof![
                proptest::collection::vec(inner, 0..6).prop_map(Value::Array),
                members.prop_map(|members| Value::Struct(members.into_iter().collect())),
            ]
        })
    }

    #[test]
    fn strings_that_xml_does_not_allow_are_sent_as_base64() {
        for text in [
            "\0",
            "a\r\nb",
            "\u{1b}[0m",
            "\u{ffff}",
            "plain",
            "\t\n",
            "]]>&<",
        ] {
            let params = [Value::from(text), Value::Array(vec![Value::from(text)])];
            assert_eq!(
                read::call(&call("a.b", &params)).unwrap().params,
                params,
                "{text:?}"
            );
        }
    }

    proptest! {
        #[test]
        fn the_parser_reads_back_every_value(value in any_value()) {
            prop_assert_eq!(read::response(&response(&value)), Ok(Ok(value.clone())));
            let call = read::call(&call("a.b", std::slice::from_ref(&value))).unwrap();
            prop_assert_eq!(call.params, [value]);
        }

        #[test]
        fn the_parser_reads_back_every_fault(code: i32, text: String) {
            let expected = Fault::from_reply(code, text);
            prop_assert_eq!(read::response(&fault(&expected)), Ok(Err(expected)));
        }
    }
}
