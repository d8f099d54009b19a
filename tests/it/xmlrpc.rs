//! Calls are parsed as the daemon parses them.
//!
//! The test gives thousands of documents, valid and malformed, to the daemon's parser
//! (`tests/it/oracle/xmlrpc_loads.py`) and to the proxy's, and compares the results. The documents are the
//! same in every run; `TEST_EFFORT` makes more and `TEST_SEED` makes others.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::thread;

use crate::common::dice::{Dice, seed, times};
use anyhow::Result;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value as Json, json};
use supervisor_twiddler::xmlrpc::read::{self, ReadError};
use supervisor_twiddler::xmlrpc::{Value, write};

const TAGS: &[&str] = &[
    "x",
    "y",
    "member",
    "name",
    "params",
    "value",
    "string",
    "methodCall",
    "methodName",
    "params",
    "param",
    "value",
    "value",
    "value",
    "int",
    "i4",
    "i8",
    "boolean",
    "string",
    "double",
    "dateTime.iso8601",
    "array",
    "data",
    "struct",
    "member",
    "name",
    "base64",
    "nil",
    "fault",
    "x",
    "p:x",
    "p:int",
    "xml:x",
    "q:value",
    "\u{e9}",
    "a\u{b7}",
];

const TEXTS: &[&str] = &[
    "",
    "",
    " ",
    "\n",
    "a",
    "supervisor.getState",
    "0",
    "1",
    "5",
    "-7",
    " 12\n",
    "1_0",
    "_1",
    "+3",
    "9223372036854775807",
    "-9223372036854775809",
    "99999999999999999999999",
    "007",
    "1.5",
    ".5",
    "1e3",
    "inf",
    "-nan",
    "1e400",
    "1_0.0_1",
    "1_.0",
    "20240131T23:59:59",
    "2024131T1:2:3",
    "20240230T00:00:00",
    "20240131T00:00:60",
    "20241 5t1:2:3",
    "aGk=",
    "aGVs bG8=",
    "/w==",
    "aGk",
    "=",
    "a=GV=s=",
    "&lt;b&gt;",
    "&amp;",
    "&#65;",
    "&#x1f600;",
    "&#13;",
    "\r\n",
    "a\rb",
    "<![CDATA[<&>]]>",
    "<![CDATA[]]>",
    "<!-- c -->",
    "<!---->",
    "<?pi x?>",
    "\u{e9}\u{1f600}",
    "\u{a0}5\u{2003}",
    "\u{85}",
    "]]",
    ">",
    "'\"",
];

const SCALARS: &[(&str, &[&str])] = &[
    (
        "int",
        &[
            "5",
            "-7",
            " 12\n",
            "1_0",
            "007",
            "+3",
            "9223372036854775807",
            "\u{a0}5\u{2003}",
            "&#53;",
        ],
    ),
    ("i4", &["0", "<!--c-->1<?pi x?>2"]),
    (
        "double",
        &[
            "1.5",
            ".5",
            "1e3",
            "inf",
            "-nan",
            "1e400",
            "1_0.0_1",
            "-0.0",
            "1e16",
            "123456789.123456789",
            "2.5e-7",
        ],
    ),
    (
        "dateTime.iso8601",
        &["20240131T23:59:59", "2024131T1:2:3", "20241 5t1:2:3"],
    ),
    ("base64", &["aGk=", "aGVs bG8=", "=", "a=GV=s=", "w6k=", ""]),
    ("boolean", &["0", "1", "", "true", " 1"]),
    ("string", TEXTS),
    ("value", TEXTS),
    ("i8", &["5"]),
    ("nil", &[""]),
];

const ATTRIBUTES: &[&str] = &[
    "a='1'",
    "b=\"2\"",
    "a='<'",
    "a='&lt;>'",
    "a = '&#9;'",
    "xmlns='u'",
    "xmlns=''",
    "xmlns:p='u'",
    "xmlns:p='v'",
    "xmlns:q='u'",
    "p:a='1'",
    "q:a='2'",
    "xml:lang='en'",
    "xmlns:p=''",
    "xmlns:q='a}b'",
    "xmlns:xml='http://www.w3.org/XML/1998/namespace'",
    "a='&b;'",
    "a",
    "a=1",
];

/// The texts that mutation inserts: parts of XML, and bytes that XML does not allow.
const SHARDS: &[&[u8]] = &[
    b"<",
    b">",
    b"&",
    b";",
    b"/",
    b"'",
    b"\"",
    b"=",
    b" ",
    b"\r",
    b"\n",
    b"\t",
    b"]]>",
    b"--",
    b"-->",
    b"<!--",
    b"<!",
    b"<?",
    b"?>",
    b"<?xml version='1.0'?>",
    b"<?xml version='1.0' encoding='x'?>",
    b"<?XML ?>",
    b"<![CDATA[",
    b"<!DOCTYPE a>",
    b"&lt;",
    b"&#0;",
    b"&#x41;",
    b"&#65534;",
    b"&x;",
    b"&#;",
    b"&#xd800;",
    b"<a>",
    b"</a>",
    b"<a/>",
    b"<value>",
    b"</value>",
    b"<params/>",
    b"<methodName/>",
    b"</methodName>",
    b"</",
    b"/>",
    b" xmlns='u'",
    b" xmlns:p='u'",
    b" a='1'",
    b" a='1' a='2'",
    b"p:",
    b":",
    b"\0",
    b"\x0b",
    b"\x1b",
    b"\x7f",
    b"\xff",
    b"\xc3",
    b"\xc3\xa9",
    b"\xef\xbb\xbf",
    b"\xef\xbf\xbf",
    b"\xf0\x9f\x98\x80",
    b"\xc2\xa0",
    b"\xcc\x80",
    b"0",
    b"9",
    b"_",
    b"-",
    b"+",
    b".",
    b"e",
];

/// Returns calls as clients send them, and unusual ones.
fn corpus() -> Vec<Vec<u8>> {
    let options = Value::Struct(vec![
        ("command".to_owned(), Value::from("/bin/cat <&> \"x\"")),
        ("numprocs".to_owned(), Value::from(3)),
        ("autostart".to_owned(), Value::from(true)),
        ("weight".to_owned(), Value::Double(-0.25)),
        (
            "when".to_owned(),
            Value::DateTime("20240131T23:59:59".to_owned()),
        ),
    ]);
    let inner = Value::Struct(vec![
        (
            "methodName".to_owned(),
            Value::from("supervisor.startProcess"),
        ),
        (
            "params".to_owned(),
            Value::from(vec![Value::from("a:b"), Value::from(false)]),
        ),
    ]);
    let mut corpus = vec![
        write::call("supervisor.getState", &[]),
        write::call(
            "twiddler.addProgramToGroup",
            &[Value::from("g"), Value::from("p"), options],
        ),
        write::call(
            "system.multicall",
            &[Value::from(vec![inner.clone(), inner])],
        ),
        write::call(
            "a.b",
            &[
                Value::Nil,
                Value::from("\u{e9}\u{1f600}"),
                Value::from(vec![]),
            ],
        ),
    ];
    for body in [
        "<?xml version=\"1.0\"?><methodCall><methodName>a.b</methodName></methodCall>",
        "\u{feff}<?xml version=\"1.0\" encoding=\"ISO-8859-1\" standalone='no'?>\r\n<methodCall>\r\n  <methodName>a.b</methodName>\r\n  <params>\r\n    <param><value>bare &amp; text</value></param>\r\n    <param> <value> <i4> 5 </i4> </value> </param>\r\n  </params>\r\n</methodCall>\r\n",
        "<methodCall><methodName>a<!-- c -->.<![CDATA[b]]></methodName><params><param><value><base64>aGVs\nbG8=\n</base64></value></param></params></methodCall><?end?>",
        "<methodCall xmlns:ex='http://ws.apache.org/xmlrpc/namespaces/extensions'><methodName>a.b</methodName><params><param><value><ex:i8>5</ex:i8></value></param><param><value><ex:nil/></value></param></params></methodCall>",
        "<methodCall><methodName>a.b</methodName><params><param><value><struct><member><name>a</name><value>1</value></member><member><name>b</name><value>2</value></member><member><name>a</name><value>3</value></member></struct></value></param></params></methodCall>",
        "<params><value><array><data><value><int>1</int></value><value/></data></array></value><x><methodName>a</methodName></x></params>",
        "<!DOCTYPE a [<!ENTITY b 'c'>]><methodName>&b;</methodName>",
    ] {
        corpus.push(body.into());
    }
    corpus
}

/// Returns a document of random elements, which is well-formed unless one of its texts is not.
fn random_document(dice: &mut Dice) -> Vec<u8> {
    let mut out = String::new();
    out.push_str(dice.pick(&["", "", "", "<?xml version='1.0'?>", "\u{feff}", "\n"]));
    out.push_str(dice.pick(&[
        "<methodCall xmlns:p='u'>",
        "<methodCall xmlns:p='u'>",
        "<methodCall>",
    ]));
    out.push_str("<methodName>a.b</methodName>");
    match dice.roll(3) {
        0 => element(dice, &mut out, 6),
        1 => {
            out.push_str("<params><param><value>");
            element(dice, &mut out, 5);
            out.push_str("</value></param></params>");
        }
        _ => {
            out.push_str("<params>");
            typed(dice, &mut out, 3);
            typed(dice, &mut out, 3);
            out.push_str("</params>");
        }
    }
    out.push_str("</methodCall>");
    out.into_bytes()
}

/// Appends an element with a random name and random content.
fn element(dice: &mut Dice, out: &mut String, depth: usize) {
    let tag = dice.pick(TAGS);
    out.push('<');
    out.push_str(tag);
    while dice.roll(30) == 0 {
        out.push(' ');
        out.push_str(dice.pick(ATTRIBUTES));
    }
    out.push('>');
    for _ in 0..dice.roll(4) {
        match dice.roll(4) {
            0 | 1 if dice.roll(2) == 0 => out.push_str(dice.pick(TEXTS)),
            _ if depth == 0 => out.push_str(dice.pick(TEXTS)),
            1 => typed(dice, out, depth - 1),
            _ => element(dice, out, depth - 1),
        }
    }
    out.push_str("</");
    out.push_str(tag);
    out.push('>');
}

/// Appends an element whose content usually fits its name.
fn typed(dice: &mut Dice, out: &mut String, depth: usize) {
    let choice = if depth == 0 { 2 } else { dice.roll(5) };
    match choice {
        0 => {
            out.push_str("<param><array><data>");
            (0..dice.roll(4)).for_each(|_| typed(dice, out, depth - 1));
            out.push_str("</data></array></param>");
        }
        1 => {
            out.push_str("<value><struct>");
            for _ in 0..dice.roll(4) {
                out.push_str("<member>");
                let tag = dice.pick(&[
                    "name", "name", "name", "name", "name", "string", "value", "nil", "boolean",
                ]);
                out.push_str(&format!(
                    "<{tag}>{}</{tag}>",
                    dice.pick(&["a", "b", "1", ""])
                ));
                typed(dice, out, depth - 1);
                out.push_str("</member>");
            }
            out.push_str("</struct></value>");
        }
        _ => {
            let (tag, fitting) = SCALARS[dice.roll(SCALARS.len())];
            let texts = if dice.roll(20) == 0 { TEXTS } else { fitting };
            let text = dice.pick(texts);
            let extra = if dice.roll(8) == 0 {
                dice.pick(&["<x/>", "<!--c-->", "<x>y</x>z"])
            } else {
                ""
            };
            out.push_str(&format!("<{tag}>{text}{extra}</{tag}>"));
        }
    }
}

/// Makes one to three small changes to a document.
fn mutate(dice: &mut Dice, mut body: Vec<u8>, others: &[Vec<u8>]) -> Vec<u8> {
    for _ in 0..=dice.roll(2) {
        let at = dice.roll(body.len() + 1);
        let end = (at + dice.roll(12)).min(body.len());
        match dice.roll(8) {
            0 => body.truncate(at),
            1 => drop(body.drain(at..end)),
            2 => body
                .splice(at..at, dice.pick(SHARDS).to_vec())
                .for_each(drop),
            3 => body
                .splice(at..end, dice.pick(SHARDS).to_vec())
                .for_each(drop),
            4 => {
                let copy = body[at..end].to_vec();
                let to = dice.roll(body.len() + 1);
                body.splice(to..to, copy).for_each(drop);
            }
            5 if at < body.len() => body[at] ^= 1 << dice.roll(8),
            6 => {
                let other = &others[dice.roll(others.len())];
                let from = dice.roll(other.len() + 1);
                let to = (from + dice.roll(40)).min(other.len());
                body.splice(at..at, other[from..to].to_vec()).for_each(drop);
            }
            _ => {
                // Between tags, a change is most likely to be well-formed.
                let gaps: Vec<usize> = (0..body.len()).filter(|at| body[*at] == b'<').collect();
                if !gaps.is_empty() {
                    let at = gaps[dice.roll(gaps.len())];
                    body.splice(at..at, dice.pick(TEXTS).bytes()).for_each(drop);
                }
            }
        }
    }
    body
}

fn documents(count: usize, seed: u64) -> Vec<Vec<u8>> {
    let dice = &mut Dice::new(seed);
    let corpus = corpus();
    let mut documents = corpus.clone();
    while documents.len() < count {
        documents.push(match dice.roll(5) {
            0 | 1 => random_document(dice),
            2 => {
                let body = random_document(dice);
                mutate(dice, body, &corpus)
            }
            _ => {
                let body = corpus[dice.roll(corpus.len())].clone();
                mutate(dice, body, &corpus)
            }
        });
    }
    documents
}

/// Returns the daemon's result for each document.
fn daemons_results(documents: &[Vec<u8>]) -> Vec<Json> {
    let script = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/it/oracle/xmlrpc_loads.py"
    );
    let mut oracle = Command::new(crate::common::python())
        .arg(script)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("python with supervisor");
    let mut requests = oracle.stdin.take().expect("piped");
    let lines: Vec<String> = documents.iter().map(|body| STANDARD.encode(body)).collect();
    let writer = thread::spawn(move || {
        for line in lines {
            writeln!(requests, "{line}").expect("the oracle reads");
        }
    });
    let answers = BufReader::new(oracle.stdout.take().expect("piped"));
    let answers: Vec<Json> = answers
        .lines()
        .map(|line| serde_json::from_str(&line.expect("text")).expect("json"))
        .collect();
    writer.join().expect("all requests are written");
    assert!(oracle.wait().expect("the oracle has ended").success());
    assert_eq!(answers.len(), documents.len());
    answers
}

fn tagged(value: &Value) -> Json {
    match value {
        Value::Nil => json!(["nil", null]),
        Value::Bool(truth) => json!(["boolean", truth]),
        Value::Int(number) => {
            let sign = if *number < 0 { "-" } else { "" };
            json!(["int", format!("{sign}{:#x}", number.unsigned_abs())])
        }
        Value::Double(_) => {
            let mut out = String::new();
            write::value(&mut out, value);
            let repr = out.trim_start_matches("<value><double>");
            json!(["double", repr.trim_end_matches("</double></value>\n")])
        }
        Value::String(text) => json!(["string", text]),
        Value::DateTime(_) => json!(["dateTime", null]),
        Value::Array(items) => json!(["array", items.iter().map(tagged).collect::<Vec<_>>()]),
        Value::Struct(members) => {
            let pairs = members.iter();
            let pairs = pairs.map(|(name, value)| json!([["string", name], tagged(value)]));
            json!(["struct", pairs.collect::<Vec<_>>()])
        }
    }
}

/// Removes the values of times: the proxy keeps their text, and the daemon converts them.
fn without_times(answer: &mut Json) {
    if answer[0] == "dateTime" {
        answer[1] = Json::Null;
    }
    if let Some(items) = answer.as_array_mut() {
        items.iter_mut().for_each(without_times);
    }
}

/// Returns why the proxy's result may differ from the daemon's, or `None` if it may not.
fn excuse(body: &[u8], proxys: &Result<Json, ReadError>, daemons: &Json) -> Option<&'static str> {
    let text = String::from_utf8_lossy(body);
    match proxys {
        Err(ReadError::TooDeep(_)) => Some("too deep"),
        Err(ReadError::Malformed { what, .. }) if what.contains("document types") => {
            Some("document type")
        }
        Err(ReadError::Content { element, .. }) if *element == "int" || *element == "double" => {
            let digits = text.chars().any(|c| c.is_numeric() && !c.is_ascii());
            let plain = text.replace('_', "");
            let long = plain
                .split(|c: char| !c.is_ascii_digit())
                .any(|run| run.len() > 18);
            (digits || long).then_some("large integer or foreign digits")
        }
        Err(ReadError::Content { what, .. }) => what
            .contains("name that is not text")
            .then_some("member name that is not text"),
        Ok(_) if daemons["refused"].as_str()?.contains("invalid token") => {
            (!text.is_ascii()).then_some("name in another script")
        }
        _ => None,
    }
}

/// Returns the proxy's result for a document in the oracle's format.
fn proxys_result(body: &[u8]) -> Result<Json, ReadError> {
    let call = read::call(body)?;
    let params: Vec<Json> = call.params.iter().map(tagged).collect();
    Ok(json!({ "method": call.method, "params": params }))
}

/// Returns the category of a document, or the difference between the two results.
fn compare(body: &[u8], mut daemons: Json) -> Result<&'static str, String> {
    let proxys = proxys_result(body);
    if let Some(params) = daemons.get_mut("params") {
        without_times(params);
    }
    match (&proxys, daemons.get("refused")) {
        (Ok(proxys), None) if *proxys == daemons => Ok("both accept"),
        (Err(_), Some(_)) => Ok("both refuse"),
        _ => excuse(body, &proxys, &daemons).ok_or_else(|| {
            let body = body.escape_ascii();
            format!("{body}\n  daemon: {daemons}\n  proxy:  {proxys:?}")
        }),
    }
}

#[test]
fn calls_are_parsed_as_the_daemon_parses_them() -> Result<()> {
    let documents = documents(times(20_000)?, seed(20_260_731)?);
    let mut tally: BTreeMap<&str, usize> = BTreeMap::new();
    let mut differences = Vec::new();
    for (body, daemons) in documents.iter().zip(daemons_results(&documents)) {
        match compare(body, daemons) {
            Ok(category) => *tally.entry(category).or_default() += 1,
            Err(difference) => differences.push(difference),
        }
    }
    println!("{tally:#?}");
    differences.truncate(20);
    assert!(differences.is_empty(), "{}", differences.join("\n"));
    // Most documents are malformed on purpose. Enough of them have to be valid.
    assert!(tally["both accept"] * 5 > documents.len(), "{tally:?}");
    Ok(())
}
