//! Fuzz targets: random and mutate input for all parsers. No input makes them panic, and each target checks
//! its invariants.
//!
//! - `TEST_EFFORT`: a factor for the two seconds of each target (1)
//! - `TEST_SEED`: the seed of the inputs (1)
//! - `TEST_INPUT`: the number of a single input, which a failure prints

use std::io::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use fastrand::Rng;
use http::{Method, Uri};
use supervisor_twiddler::access::basic_auth::Login;
use supervisor_twiddler::access::method_policy::{self, Allow};
use supervisor_twiddler::daemon::conf;
use supervisor_twiddler::namespec::{namespec, split_namespec};
use supervisor_twiddler::pages;
use supervisor_twiddler::program::{Name, Program, Scope};
use supervisor_twiddler::registry::{Event, Member, Registry};
use supervisor_twiddler::translate;
use supervisor_twiddler::xmlrpc::{Fault, MethodCall, Value, read, write};

fn number(name: &str) -> Option<u64> {
    std::env::var(name)
        .ok()
        .map(|text| text.parse().expect("a number"))
}

/// Runs `target` on one input after another. Each input has its own seed.
fn fuzz(name: &str, mut target: impl FnMut(&mut Rng)) {
    let seed = number("TEST_SEED").unwrap_or(1);
    let mut run = |input: u64| {
        let mut rng = Rng::with_seed(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ input);
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| target(&mut rng))) {
            eprintln!("TEST_SEED={seed} TEST_INPUT={input} fails in {name}");
            resume_unwind(panic);
        }
    };
    if let Some(input) = number("TEST_INPUT") {
        return run(input);
    }
    let time = Duration::from_secs(2 * number("TEST_EFFORT").unwrap_or(1));
    let start = Instant::now();
    let mut inputs = 0;
    while start.elapsed() < time {
        for _ in 0..64 {
            run(inputs);
            inputs += 1;
        }
    }
    // The test harness does not capture this, unlike `eprintln`.
    let _ = writeln!(std::io::stderr(), "fuzz {name}: {inputs} inputs");
}

fn pick<'a, T: ?Sized>(rng: &mut Rng, items: &[&'a T]) -> &'a T {
    items[rng.usize(..items.len())]
}

/// Returns one of `corpus` with a few changes: pieces of others, tokens, bytes, deletions and repetitions.
fn mutate(rng: &mut Rng, corpus: &[&str], tokens: &[&str]) -> Vec<u8> {
    let mut bytes = pick(rng, corpus).as_bytes().to_vec();
    for _ in 0..rng.usize(0..6) {
        let at = rng.usize(0..=bytes.len());
        let end = rng.usize(at..=bytes.len().min(at + 40));
        match rng.u8(0..8) {
            0 => drop(bytes.drain(at..end)),
            1 => {
                let piece = bytes[at..end].to_vec();
                let to = rng.usize(0..=bytes.len());
                bytes.splice(to..to, piece);
            }
            2 => {
                let other = pick(rng, corpus).as_bytes();
                let from = rng.usize(0..other.len());
                let until = rng.usize(from..=other.len().min(from + 60));
                bytes.splice(at..end, other[from..until].iter().copied());
            }
            3 if at < bytes.len() => bytes[at] = rng.u8(..),
            4 if at < bytes.len() => bytes[at] ^= 1 << rng.u8(0..8),
            _ => drop(bytes.splice(at..at, pick(rng, tokens).bytes())),
        }
    }
    bytes
}

/// Returns a text of a few tokens.
fn text(rng: &mut Rng, tokens: &[&str]) -> String {
    (0..rng.usize(0..8)).map(|_| pick(rng, tokens)).collect()
}

const CALLS: &[&str] = &[
    "<?xml version='1.0'?>\n<methodCall>\n<methodName>supervisor.getState</methodName>\n<params>\n</params>\n</methodCall>\n",
    "<methodCall><methodName>twiddler.addProgramToGroup</methodName><params><param><value><string>g</string></value></param><param><value>p</value></param><param><value><struct><member><name>command</name><value>/bin/cat</value></member><member><name>numprocs</name><value><int>2</int></value></member></struct></value></param></params></methodCall>",
    "<methodCall><methodName>system.multicall</methodName><params><param><value><array><data><value><struct><member><name>methodName</name><value>a.b</value></member><member><name>params</name><value><array><data><value><boolean>1</boolean></value><value><double>-1.5e3</double></value><value><nil/></value></data></array></value></member></struct></value></data></array></value></param></params></methodCall>",
    "<methodCall><methodName>x</methodName><params><param><value><base64>AAEC/w==</base64></value></param><param><value><dateTime.iso8601>20240131T23:59:59</dateTime.iso8601></value></param><param><value><i4>-7</i4></value></param></params></methodCall>",
    "<a xmlns='u' xmlns:b='v'><methodName>c</methodName><b:params><x>1</x></b:params><!-- c --><?p i?><![CDATA[d]]></a>",
];
const MARKUP: &[&str] = &[
    "<",
    ">",
    "</",
    "/>",
    "&",
    ";",
    "&lt;",
    "&#13;",
    "&#x1F600;",
    "&#0;",
    "&nbsp;",
    "]]>",
    "<![CDATA[",
    "<!--",
    "-->",
    "<!DOCTYPE a>",
    "<?",
    "?>",
    "<value>",
    "</value>",
    "<int>",
    "</int>",
    "<string>",
    "</string>",
    "<struct>",
    "</struct>",
    "<member>",
    "</member>",
    "<name>",
    "</name>",
    "<array><data>",
    "</data></array>",
    "<params>",
    "</params>",
    "<param>",
    "<methodName>",
    "</methodName>",
    "<fault>",
    "</fault>",
    "<base64>",
    "</base64>",
    "<nil/>",
    "<boolean>",
    "</boolean>",
    "<double>",
    "</double>",
    "xmlns",
    "=",
    "'",
    "\"",
    ":",
    " ",
    "\n",
    "\r",
    "\t",
    "\0",
    "\u{1b}",
    "\u{feff}",
    "\u{ffff}",
    "é",
    "😀",
    "9223372036854775808",
    "-1",
    "1_0",
    "nan",
    "inf",
    "1e309",
    "a.b",
    "AAEC",
];

/// Returns whether a value equals itself after it is written and parsed. NaN equals no value, and names of
/// members are not written as base64.
fn survives_xml(value: &Value) -> bool {
    let name_survives = |name: &str| {
        !name.contains(|letter: char| letter < ' ' || ('\u{fffe}'..='\u{ffff}').contains(&letter))
    };
    match value {
        Value::Double(number) => !number.is_nan(),
        Value::Array(items) => items.iter().all(survives_xml),
        Value::Struct(members) => members
            .iter()
            .all(|(name, value)| name_survives(name) && survives_xml(value)),
        _ => true,
    }
}

#[test]
fn calls_are_read_and_written_back() {
    fuzz("calls", |rng| {
        let body = mutate(rng, CALLS, MARKUP);
        let Ok(call) = read::call(&body) else { return };
        let MethodCall { method, params } = &call;
        if method_policy::is_plain(&body, method) {
            let text = String::from_utf8_lossy(&body).into_owned();
            assert_eq!(text.matches("<methodName").count(), 1);
        }
        if params.iter().all(survives_xml) && !method.contains(|letter: char| letter < ' ') {
            assert_eq!(read::call(&write::call(method, params)).as_ref(), Ok(&call));
        }
    });
}

#[test]
fn replies_are_read_and_written_back() {
    let value = |value: &str| {
        format!(
            "<?xml version='1.0'?>\n<methodResponse>\n<params>\n<param>\n{value}</param>\n</params>\n</methodResponse>\n"
        )
    };
    let corpus = [
        value("<value><string>a</string></value>\n"),
        value("<value><array><data><value><int>1</int></value></data></array></value>\n"),
        String::from_utf8_lossy(&write::fault(&Fault::from_reply(
            10,
            "BAD_NAME: x".to_owned(),
        )))
        .into_owned(),
        String::from_utf8_lossy(&write::response(&infos())).into_owned(),
    ];
    let corpus: Vec<&str> = corpus.iter().map(String::as_str).collect();
    fuzz("replies", |rng| {
        let body = mutate(rng, &corpus, MARKUP);
        match read::response(&body) {
            Ok(Ok(value)) if survives_xml(&value) && !has_return(&value) => {
                assert_eq!(read::response(&write::response(&value)), Ok(Ok(value)));
            }
            Ok(Err(fault)) => assert_eq!(read::response(&write::fault(&fault)), Ok(Err(fault))),
            _ => {}
        }
    });
}

/// Returns whether a member's name has a carriage return. Replies are written as Python writes them, without
/// escaping it, and a parser reads it as a line feed.
fn has_return(value: &Value) -> bool {
    match value {
        Value::Array(items) => items.iter().any(has_return),
        Value::Struct(members) => members
            .iter()
            .any(|(name, value)| name.contains('\r') || has_return(value)),
        _ => false,
    }
}

fn info(group: &str, name: &str, state: i64) -> Value {
    let members = [
        ("group", Value::from(group)),
        ("name", Value::from(name)),
        ("state", Value::from(state)),
        ("start", Value::from(7)),
        ("description", Value::from(format!("{group}:{name}"))),
    ];
    Value::Struct(
        members
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value))
            .collect(),
    )
}

fn infos() -> Value {
    Value::Array(vec![
        info("cat", "cat", 20),
        info("g~000001", "a", 20),
        info("g", "h", 0),
        info("g", "b", 100),
        info("twiddler~x", "y", 0),
    ])
}

fn registry() -> Registry {
    let member = |group: &str, process: &str, real: &str| Member {
        group: group.to_owned(),
        process: process.to_owned(),
        real: real.to_owned(),
        index: 0,
        program: None,
        section: None,
        rendered: Default::default(),
    };
    let mut registry = Registry::default();
    for event in [
        Event::Marker("twiddler~x".to_owned()),
        Event::Group {
            name: "g".to_owned(),
            priority: 1,
        },
        Event::Joined(Arc::new(member("g", "b", "g"))),
        Event::Joined(Arc::new(member("g", "a", "g~000001"))),
        Event::Joined(Arc::new(member("cat", "x", "cat~000002"))),
        Event::Hidden {
            group: "g".to_owned(),
            process: "h".to_owned(),
            start: 7,
        },
    ] {
        registry.apply(event);
    }
    registry
}

const WORDS: &[&str] = &[
    "g",
    "a",
    "b",
    "h",
    "x",
    "cat",
    "g~000001",
    "cat~000002",
    "twiddler~x",
    ":",
    "*",
    "",
    "~",
    "g:a",
    "g~000001:a",
    "BAD_NAME: ",
    " ",
    "\0",
    "é",
];

fn odd_value(rng: &mut Rng, depth: u32) -> Value {
    match rng.u8(0..if depth == 0 { 6 } else { 9 }) {
        0 => Value::Nil,
        1 => Value::Bool(rng.bool()),
        2 => Value::Int(*rng.choice(&[0, 7, 20, 100, -1, i64::MAX]).unwrap_or(&0)),
        3 => Value::Double(rng.f64()),
        4 | 5 => Value::String(text(rng, WORDS)),
        6 => Value::Array(
            (0..rng.usize(0..5))
                .map(|_| odd_value(rng, depth - 1))
                .collect(),
        ),
        7 => info(pick(rng, WORDS), pick(rng, WORDS), 20),
        _ => {
            let keys = [
                "group",
                "name",
                "state",
                "start",
                "description",
                "status",
                "faultCode",
                "faultString",
            ];
            let members = (0..rng.usize(0..6))
                .map(|_| (pick(rng, &keys).to_owned(), odd_value(rng, depth - 1)));
            Value::Struct(members.collect())
        }
    }
}

#[test]
fn replies_are_rewritten_to_the_clients_names() {
    let registry = registry();
    fuzz("names", |rng| {
        let bystanders = Value::Array(vec![info("cat", "cat", 20), info("other", "other", 0)]);
        let mut same = bystanders.clone();
        translate::rewrite_infos(&registry, &mut same);
        translate::rewrite_statuses(&registry, &mut same);
        assert_eq!(same, bystanders);

        let original = if rng.bool() {
            infos()
        } else {
            odd_value(rng, 4)
        };
        let mut statuses = original.clone();
        translate::rewrite_statuses(&registry, &mut statuses);
        let mut configs = original.clone();
        translate::rewrite_configs(&registry, &mut configs);
        let mut infos = original.clone();
        translate::rewrite_infos(&registry, &mut infos);
        for list in [statuses, configs, infos] {
            for entry in list.as_array().unwrap_or_default() {
                let group = entry.get("group").and_then(Value::as_str);
                let has_name = entry.get("name").and_then(Value::as_str).is_some();
                let is_real = group.is_some_and(|group| registry.owner(group).is_some());
                assert!(!(has_name && is_real), "{entry:?} of {original:?}");
            }
        }
        translate::rewrite_reloaded(&registry, &mut original.clone());
        let name = text(rng, WORDS);
        if let Some(mapping) = translate::map_name(&registry, &name) {
            let fault = Fault::from_reply(10, format!("BAD_NAME: {}", mapping.real));
            let fault = mapping.rewrite_reply(Err(fault)).unwrap_err();
            assert_eq!(fault.text, format!("BAD_NAME: {name}"));
            let _ = mapping.rewrite_reply(Ok(original));
        }
    });
}

#[test]
fn namespecs_are_split_and_joined() {
    const LETTERS: &[&str] = &["a", "b", ":", "*", " ", "~", "é", "/", "\0", "::", "%"];
    fuzz("namespecs", |rng| {
        let spec = text(rng, LETTERS);
        match split_namespec(&spec) {
            (group, Some(process)) => {
                assert!(
                    !group.contains(':') && !process.is_empty() || spec.is_empty(),
                    "{spec:?}"
                );
                let joined = namespec(group, process);
                assert_eq!(split_namespec(&joined), (group, Some(process)), "{spec:?}");
            }
            (group, None) => assert!(
                spec == format!("{group}:") || spec == format!("{group}:*"),
                "{spec:?}"
            ),
        }
        if let Ok(name) = Name::parse(&spec) {
            assert!(!name.as_str().contains([':', '/', ' ']), "{spec:?}");
        }
    });
}

const OPTIONS: &[&str] = &[
    "command",
    "process_name",
    "numprocs",
    "numprocs_start",
    "directory",
    "umask",
    "priority",
    "autostart",
    "autorestart",
    "startsecs",
    "startretries",
    "exitcodes",
    "stopsignal",
    "stopwaitsecs",
    "stopasgroup",
    "killasgroup",
    "user",
    "redirect_stderr",
    "stdout_logfile",
    "stdout_logfile_maxbytes",
    "stderr_logfile",
    "environment",
    "serverurl",
    "COMMAND",
    "stdout_events_enabled",
    "x",
    "[program:x]",
    "a=b",
];
const OPTION_WORDS: &[&str] = &[
    "/bin/cat",
    "true",
    "false",
    "1",
    "-1",
    "999999999999999999999",
    "TERM",
    "%(program_name)s",
    "%(process_num)02d",
    "%(group_name)s",
    "%(here)s",
    "%(ENV_X)s",
    "%(numprocs)d",
    "%%",
    "%",
    "%s",
    "%(x",
    "%(host_node_name)s",
    ";",
    " ;",
    "#",
    " #",
    "\n",
    "\n[program:evil]\n",
    "\ncommand=/bin/evil",
    "[",
    "]",
    "=",
    ":",
    "\"",
    "'",
    "\\",
    " ",
    "\t",
    "\r",
    "\0",
    "\u{1b}",
    "A=\"b\",C='d'",
    ",",
    "é",
    "\u{a0}",
    "\u{2028}",
    "\u{85}",
    "10MB",
    "AUTO",
    "NONE",
    "0",
    "2",
    "unexpected",
    "syslog",
    "/dev/stdout",
];

#[test]
fn options_are_rendered_as_one_section() {
    let group = Name::parse("g").expect("a name");
    fuzz("options", |rng| {
        let mut members = vec![("command".to_owned(), Value::from("/bin/cat"))];
        for _ in 0..rng.usize(0..4) {
            let option = pick(rng, OPTIONS).to_owned();
            let value = if rng.u8(0..8) == 0 {
                odd_value(rng, 1)
            } else {
                Value::String(text(rng, OPTION_WORDS))
            };
            members.retain(|(name, _)| *name != option);
            members.push((option, value));
        }
        let name = if rng.bool() {
            "p".to_owned()
        } else {
            text(rng, WORDS)
        };
        let options = Value::Struct(members);
        let Ok(program) = Program::parse(&group, &name, &options, "/etc/supervisord.conf") else {
            return;
        };
        for scope in [Scope::All, Scope::One(0)] {
            let section = program.render("zz~000001", scope);
            let mut lines = section.split('\n');
            assert_eq!(lines.next(), Some("[program:zz~000001]"), "{options:?}");
            for line in lines.filter(|line| !line.is_empty()) {
                let is_option = line.split_once('=').is_some_and(|(key, _)| {
                    key.bytes()
                        .all(|byte| byte.is_ascii_lowercase() || byte == b'_')
                });
                assert!(
                    line.starts_with(' ') || is_option,
                    "{line:?} of {options:?}"
                );
            }
            assert!(!section.contains(['\r', '\0']), "{options:?}");
        }
    });
}

const CONFIGURATIONS: &[&str] = &[
    "[supervisord]\nlogfile=/tmp/a.log ; comment\nloglevel=debug\nenvironment=A=\"b\",C=d\n\n[unix_http_server]\nfile=/tmp/s.sock\nchmod=0700\nusername=u\npassword={SHA}82ab\n",
    "[inet_http_server]\nport=127.0.0.1:9001\nusername = u\npassword = p%%q\n[supervisord]\n[include]\nfiles = conf.d/*.conf %(here)s/*.ini\n  more/*.conf\n",
    "[supervisord]\n[program:a]\ncommand=/bin/cat\nprocess_name=%(program_name)s_%(process_num)02d\nnumprocs=2\n[group:g]\nprograms=a,b\npriority=1\n[eventlistener:e]\nevents=TICK_5\n[fcgi-program:f]\nsocket=tcp://a:1\n",
    "[twiddler]\nlisten = 127.0.0.1:0, unix:///tmp/t.sock\nallow = supervisor.get*\nwhitelist=log\n[supervisord]\n",
];
const CONF_WORDS: &[&str] = &[
    "[",
    "]",
    "=",
    ":",
    ";",
    " ;",
    "#",
    "\n",
    "\n ",
    "\r\n",
    "\t",
    "%",
    "%%",
    "%(here)s",
    "%(ENV_X)s",
    "%(x)s",
    "%(",
    ",",
    "\"",
    "'",
    "[supervisord]\n",
    "[include]\nfiles=",
    "[group:",
    "[program:",
    "*",
    "?",
    "{SHA}",
    "\0",
    "\u{feff}",
    "é",
    "\u{a0}",
    "999999999999999999999",
    "-1",
    "true",
    "port=",
    "file=",
    "syslog",
];

#[test]
fn configurations_are_parsed() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("supervisord.conf");
    fuzz("configurations", |rng| {
        std::fs::write(&file, mutate(rng, CONFIGURATIONS, CONF_WORDS)).expect("a file");
        if let Ok(inspection) = conf::inspect(&file, &|name| (name == "X").then(|| "x".to_owned()))
        {
            for mistake in &inspection.mistakes {
                assert!(
                    mistake.to_string().contains("supervisord.conf"),
                    "{mistake}"
                );
            }
        }
    });
}

#[test]
fn requests_for_pages_are_parsed() {
    const TARGETS: &[&str] = &[
        "/",
        "/index.html?processname=g:a&action=stop",
        "/tail.html?processname=g%3Aa&limit=10",
        "/logtail/g:a/stderr",
        "/mainlogtail",
        "/ok.html",
        "/?action=refresh",
    ];
    const PIECES: &[&str] = &[
        "/",
        "?",
        "&",
        ";",
        "=",
        "%",
        "%61",
        "%3F",
        "%2f",
        "%25",
        "+",
        "action=stopall",
        "PATH_INFO=/",
        "action",
        "processname",
        "g:a",
        "*",
        ":",
        "é",
        "%ff",
        "stop",
        "restart",
    ];
    let registry = registry();
    let reads = Allow::parse(["supervisor.get*", "supervisor.read*"]).expect("patterns");
    fuzz("pages", |rng| {
        let target = mutate(rng, TARGETS, PIECES);
        let body = mutate(
            rng,
            &["action=stop&processname=g:a", "processname=cat"],
            PIECES,
        );
        if let Ok(uri) = Uri::try_from(target) {
            let method = if rng.bool() {
                Method::GET
            } else {
                Method::POST
            };
            let needs = method_policy::page_needs(&method, uri.path(), uri.query(), &body);
            let plain = format!(
                "{}&{}",
                uri.query().unwrap_or_default(),
                String::from_utf8_lossy(&body)
            );
            let acts = plain.split('&').any(|field| field == "action=stopall");
            let is_page = matches!(uri.path(), "/" | "/index.html");
            if acts && is_page {
                assert!(
                    needs.is_none_or(|needs| reads.missing(&needs).is_some()),
                    "{uri}"
                );
            }
            if let Some(request) = pages::PageRequest::read(&method, &uri, Some(&body)) {
                let _ = request.with_process("g~000001:a");
            }
        }
        let page = "<table><tr><td><a href=\"tail.html?processname=g~000001%3Aa\">g~000001:a</a></td><td><a href=\"index.html?processname=g~000001%3Aa&amp;action=stop\">Stop</a></td></tr></table>";
        let page = mutate(rng, &[page], MARKUP);
        let _ = pages::rewrite_status(&registry, &String::from_utf8_lossy(&page));
        let _ = Login::new(
            "u",
            &String::from_utf8_lossy(&mutate(
                rng,
                &[
                    "{SHA}e5e9fa1ba31ecd1ae84f75caaa474f3a663f05f4",
                    "$argon2id$v=19$m=8,t=1,p=1$c2FsdHNhbHQ$aGFzaGhhc2hoYXNo",
                ],
                MARKUP,
            )),
        );
        let _ = Allow::parse([&*text(
            rng,
            &["supervisor", ".", "*", "[", "]", "get", "?", "!", "-", " "],
        )]);
    });
}
