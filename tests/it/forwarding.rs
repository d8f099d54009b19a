//! Requests for the daemon are answered as by the daemon itself: status line, header lines with their order and
//! case, and body, for many methods, paths, versions and credentials.
//!
//! Each request is sent to the daemon and to the proxy, followed by a second one over the same connection,
//! which shows bytes that remain after the first reply. [`expected`] has the intended differences and their
//! reasons.

use std::time::Duration;

use crate::common::http::shown;
use crate::common::{
    Addr, Connection, Daemon, DaemonOptions, IntoParams, Reply, Sidecar, Until, Version, basic,
    options, value,
};
use anyhow::{Context, Result, ensure};
use supervisor_twiddler::xmlrpc::write;

const PROGRAMS: &str = "\
[program:web]
command=/bin/cat
startsecs=0
stdout_logfile=%(here)s/web.log

[program:pair]
command=/bin/cat
process_name=%(program_name)s_%(process_num)d
numprocs=2
startsecs=0

[program:idle]
command=/bin/cat
autostart=false
startsecs=0
stdout_logfile=%(here)s/idle.log

[program:silent]
command=/bin/cat
autostart=false
stdout_logfile=NONE
stderr_logfile=NONE

[program:bytes]
command=/bin/cat
autostart=false
stdout_logfile=%(here)s/bytes.log

[program:caf\u{e9}]
command=/bin/cat
startsecs=0
";
const CREDENTIALS: (&str, &str) = ("user", "secret");

// --- Requests ---

/// One request, and how to read its reply.
#[derive(Clone)]
struct Request {
    name: String,
    bytes: Vec<u8>,
    /// The headers of the reply announce a body that does not follow, or must not.
    bodiless: bool,
    /// The reply has times in it, so digits are not compared.
    timed: bool,
    /// The daemon answers without reading the body.
    is_unread: bool,
}

impl Request {
    /// A request with these lines and this body.
    fn new(lines: &[&str], body: &[u8]) -> Self {
        let head = lines.join("\r\n");
        Request {
            name: shown(head.as_bytes()),
            bytes: [head.as_bytes(), b"\r\n\r\n", body].concat(),
            bodiless: head.starts_with("HEAD "),
            timed: lines.first().is_some_and(|line| has_times(line)),
            is_unread: false,
        }
    }

    /// A call with this body.
    fn call(body: &[u8]) -> Self {
        let length = format!("Content-Length: {}", body.len());
        let request = Request::new(&["POST /RPC2 HTTP/1.1", "Host: h", &length], body);
        request.named(format!("call of {}", shown(body)))
    }

    fn named(mut self, name: String) -> Self {
        self.name = name;
        self
    }

    fn timed(mut self) -> Self {
        self.timed = true;
        self
    }

    /// The request with one more header line.
    fn with_header(mut self, line: &str) -> Self {
        if let Some(end) = position(&self.bytes, b"\r\n\r\n") {
            self.bytes
                .splice(end..end, format!("\r\n{line}").into_bytes());
        }
        self.name += line;
        self
    }

    fn bodiless(mut self) -> Self {
        self.bodiless = true;
        self
    }

    fn target(&self) -> &str {
        let mut words = self.bytes.split(|byte| *byte == b' ');
        let target = words.nth(1).unwrap_or_default();
        std::str::from_utf8(target).unwrap_or_default()
    }

    fn is_head(&self) -> bool {
        self.bytes.starts_with(b"HEAD ")
    }

    /// Whether the request has this version and this `Connection` header.
    fn asks(&self, version: &str, connection: &str) -> bool {
        let has = |text: &str| position(&self.bytes, text.as_bytes()).is_some();
        has(&format!(" {version}\r\n")) && has(&format!("\r\nConnection: {connection}\r\n"))
    }
}

/// Whether a reply has times in it: the page of all processes, and redirects after actions.
fn has_times(line: &str) -> bool {
    let target = line.split(' ').nth(1).unwrap_or_default();
    let path = target.split(['?', ';', '#']).next().unwrap_or_default();
    path.trim_matches('/').is_empty() || path.contains("ndex.html")
}

// --- Conversations ---

/// The results of a request and of another one after it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Conversation {
    /// None if the connection was closed without a reply.
    reply: Option<Reply>,
    /// The bytes between the two replies.
    leftover: Vec<u8>,
    /// Whether the second request was answered.
    continues: bool,
}

impl Conversation {
    fn hold(addr: &Addr, request: &Request, login: &str) -> Result<Self> {
        let mut connection = Connection::open(addr)?;
        connection.send(&request.bytes)?;
        let until = if request.bodiless {
            Until::Head
        } else {
            Until::Reply
        };
        let reply = match connection.read(until) {
            Ok(bytes) => Some(Reply::parse(&bytes)?),
            Err(_) if connection.is_closed()? => None,
            Err(error) => return Err(error),
        };
        let Some(reply) = reply else {
            return Ok(Conversation {
                reply: None,
                leftover: Vec::new(),
                continues: false,
            });
        };
        // The daemon never reads the next request after a 401, although it does not close the connection.
        if reply.header("connection") == Some("close") {
            return Ok(Conversation {
                reply: Some(reply),
                leftover: Vec::new(),
                continues: false,
            });
        }
        let next = format!("GET /next HTTP/1.1\r\nConnection: close\r\n{login}\r\n");
        connection.send(next.as_bytes())?;
        let mut leftover = connection.read(Until::Close)?;
        let start = position(&leftover, b"HTTP/1.1 404 Not Found\r\n");
        leftover.truncate(start.unwrap_or(leftover.len()));
        Ok(Conversation {
            reply: Some(reply),
            leftover,
            continues: start.is_some(),
        })
    }
}

fn position(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes
        .windows(wanted.len())
        .position(|window| window == wanted)
}

/// The expected results through the proxy: those of the daemon, but for these differences.
fn expected(request: &Request, direct: &Conversation) -> Conversation {
    let mut expected = direct.clone();
    let Some(reply) = &mut expected.reply else {
        return expected;
    };
    // A reply to HEAD has no body, and neither has a 304. A client would take the body that the daemon
    // sends for the beginning of the next reply. A 304 therefore does not announce chunks either.
    if request.is_head() || reply.status == 304 {
        expected.leftover.clear();
        reply
            .header_lines
            .retain(|line| line != "Transfer-Encoding: chunked");
    }
    if request.is_head() && reply.status == 304 {
        reply.header_lines.push("Content-Length: 0".to_owned());
    }
    // The web interface understands HTTP/1.0's keep-alive in lower case only
    // (`supervisor/web.py`, `DeferredWebProducer`).
    let is_sized = reply.header("content-length").is_some();
    if request.asks("HTTP/1.0", "Keep-Alive") && is_sized && reply.header("connection").is_none() {
        reply.header_lines.push("Connection: Keep-Alive".to_owned());
        expected.continues = true;
    }
    *reply = reply.clone().with_proxy_headers(request.target());
    // The daemon closes the connection without the header that HTTP/1.1 requires.
    if request.asks("HTTP/1.1", "close") && reply.header("connection").is_none() {
        reply.header_lines.push("Connection: close".to_owned());
    }
    // The daemon takes the unread body for the next request.
    if request.is_unread {
        expected.leftover.clear();
        expected.continues = true;
    }
    expected
}

/// Fails with the differences, if there are any.
fn compare(request: &Request, direct: &Conversation, proxied: &Conversation) -> Result<()> {
    let expected = comparable(request, expected(request, direct));
    let proxied = comparable(request, proxied.clone());
    ensure!(
        expected == proxied,
        "{}\n--- expected, after the daemon's own:\n{expected:?}\n--- through the proxy:\n{proxied:?}",
        request.name
    );
    Ok(())
}

/// The conversation without dates and, where the reply has times in it, without digits.
fn comparable(request: &Request, mut conversation: Conversation) -> Conversation {
    if let Some(reply) = &mut conversation.reply {
        reply
            .header_lines
            .retain(|line| !line.starts_with("Date: "));
        if request.timed {
            without_digits(reply);
        }
    }
    conversation
}

fn without_digits(reply: &mut Reply) {
    for byte in &mut reply.body {
        if byte.is_ascii_digit() {
            *byte = b'0';
        }
    }
    for line in &mut reply.header_lines {
        if line.starts_with("Location: ") {
            *line = line.replace(|letter: char| letter.is_ascii_digit(), "0");
        }
    }
}

/// A daemon and a proxy in front of it.
struct Pair {
    daemon: Daemon,
    sidecar: Sidecar,
    /// The address of the daemon that the proxy uses too.
    direct: Addr,
    /// A header line for the second request of each conversation.
    login: String,
}

impl Pair {
    /// The daemon listens on a socket, and clients use the proxy's port.
    fn over_socket(options: DaemonOptions<'_>) -> Result<Pair> {
        Pair::start(options)
    }

    /// The daemon listens on a port, and clients use the proxy's socket.
    fn over_port(options: DaemonOptions<'_>) -> Result<Pair> {
        Pair::start(DaemonOptions {
            socket: false,
            tcp: true,
            ..options
        })
    }

    fn start(options: DaemonOptions<'_>) -> Result<Pair> {
        let daemon = Daemon::start_with(DaemonOptions {
            body: PROGRAMS,
            ..options
        })?;
        let login = options
            .credentials
            .map_or(String::new(), |(user, password)| {
                format!("Authorization: {}\r\n", basic(user, password))
            });
        Ok(Pair {
            sidecar: Sidecar::start(&daemon)?,
            direct: daemon.addr(),
            daemon,
            login,
        })
    }

    fn proxied(&self) -> Addr {
        match self.direct {
            Addr::Unix(_) => self.sidecar.tcp_addr().into(),
            Addr::Tcp(_) => self.sidecar.socket().into(),
        }
    }

    fn ensure_same(&self, requests: &[Request]) -> Result<()> {
        let differences: Vec<String> = requests
            .iter()
            .filter_map(|request| self.difference(request).err())
            .map(|error| format!("{error:#}"))
            .collect();
        let (count, all) = (differences.len(), requests.len());
        ensure!(
            count == 0,
            "{count} of {all} differ:\n\n{}",
            differences.join("\n\n")
        );
        Ok(())
    }

    fn difference(&self, request: &Request) -> Result<()> {
        let hold = |addr: &Addr, way: &str| {
            Conversation::hold(addr, request, &self.login)
                .with_context(|| format!("{way}: {}", request.name))
        };
        let direct = hold(&self.direct, "directly")?;
        let proxied = hold(&self.proxied(), "through the proxy")?;
        compare(request, &direct, &proxied)
    }
}

// --- The matrix ---

const METHODS: [&str; 8] = [
    "GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "FOO",
];

const PATHS: &[&str] = &[
    "/",
    "//",
    "///index.html",
    "/index.html",
    "/index.html?message=hello%20there",
    "/index.html%3Fmessage=x",
    "/%69ndex.html",
    "/%2569ndex.html",
    "/?message=%3Cb%3E",
    "/#x",
    "/tail.html",
    "/tail.html?processname=bytes&limit=10",
    "/tail.html?processname=nobody",
    "/tail.html?processname=silent",
    "/ok.html",
    "/RPC2",
    "/RPC2/",
    "/RPC2extra",
    "/RPC2/a/b",
    "/RPC2?x",
    "/RPC2?x=%41",
    "/RPC2#x",
    "/%52PC2",
    "/%52%50C2?%",
    "/rpc2",
    "//RPC2",
    "/x/RPC2",
    "/./RPC2",
    "/x/../RPC2",
    "RPC2",
    "http://h/RPC2",
    "http://h/",
    "http://h",
    "https://h:1/images/icon.png",
    "*",
    "/logtail",
    "/logtail/",
    "/logtail/nobody",
    "/logtail/pair",
    "/logtail/pair:nobody",
    "/logtail/silent",
    "/logtail/web/bogus",
    "/logtailx",
    "/%6Cogtail/nobody",
    "//mainlogtail",
    "/stylesheets",
    "/stylesheets/",
    "/stylesheets/supervisor.css",
    "/images",
    "/images?x",
    "/images/icon.png",
    "/images/icon.png?x=1",
    "/images//icon.png",
    "/./images/icon.png",
    "/images/../images/icon.png",
    "/%2e%2e/%2e%2e/etc/passwd",
    "/../../etc/passwd",
    "/images/%69con.png",
    "/nothing",
    "/nothing/%zz/%",
    "/nothing/\u{e9}",
    "/nothing?a={}|\\^`[]\u{e9}",
    "/nothing/{}|\\^[]\"",
    "/index.html?action=bogus",
    "/index.html?processname=nobody&action=start",
    "/twiddler",
    "/Twiddler/health",
];

#[test]
fn every_method_and_path_over_a_socket() -> Result<()> {
    let pair = Pair::over_socket(DaemonOptions::default())?;
    pair.ensure_same(&matrix(&METHODS, &["HTTP/1.1", "Host: h"]))
}

#[test]
fn every_method_and_path_over_tcp_and_with_an_older_release() -> Result<()> {
    let pair = Pair::over_port(DaemonOptions {
        version: Version::V4_2_5,
        ..DaemonOptions::default()
    })?;
    pair.ensure_same(&matrix(&METHODS, &["HTTP/1.1", "Host: h:1"]))
}

/// Requests for all paths; the first line of `head` is the version.
fn matrix(methods: &[&str], head: &[&str]) -> Vec<Request> {
    let requests = methods.iter().flat_map(|method| {
        PATHS.iter().map(move |path| {
            let first = format!("{method} {path} {}", head[0]);
            Request::new(&[&[first.as_str()], &head[1..]].concat(), b"")
        })
    });
    requests.collect()
}

#[test]
fn versions_and_connection_headers() -> Result<()> {
    let heads: [&[&str]; 7] = [
        &["HTTP/1.0"],
        &["HTTP/1.0", "Host: h", "Connection: keep-alive"],
        &["HTTP/1.0", "Connection: Keep-Alive"],
        &["HTTP/1.0", "Connection: close"],
        &["HTTP/1.1"],
        &["HTTP/1.1", "Host: h", "Connection: close"],
        &[
            "HTTP/1.1",
            "Host: h",
            "Connection: keep-alive",
            "Keep-Alive: 5",
        ],
    ];
    let requests: Vec<Request> = heads
        .iter()
        .flat_map(|head| matrix(&["GET", "HEAD", "POST"], head))
        .collect();
    Pair::over_socket(DaemonOptions::default())?.ensure_same(&requests)
}

#[test]
fn the_daemon_checks_credentials_for_every_path() -> Result<()> {
    let pair = Pair::over_socket(DaemonOptions {
        credentials: Some(CREDENTIALS),
        ..DaemonOptions::default()
    })?;
    let right = pair.login.trim_end();
    let wrong = format!("Authorization: {}", basic("user", "wrong"));
    let mut requests = Vec::new();
    for login in [right, "X: y"] {
        for version in ["HTTP/1.1", "HTTP/1.0"] {
            requests.extend(matrix(
                &["GET", "HEAD", "POST"],
                &[version, "Host: h", login],
            ));
        }
    }
    let unreadable = [
        "Authorization: Basic %%%",
        "Authorization: Basic dXNlcg==", // no colon inside
        "Authorization: Basic gIA6gIA=", // not UTF-8 inside
    ];
    let odd = [
        &wrong,
        "Authorization: Bearer abc",
        "Authorization: basic dXNlcjpzZWNyZXQ=",
        "Authorization: Basic",
    ];
    for login in odd.into_iter().chain(unreadable) {
        for path in ["/", "/RPC2", "/logtail", "/images/icon.png"] {
            requests.push(Request::new(
                &[&format!("GET {path} HTTP/1.1"), "Host: h", login],
                b"",
            ));
        }
        let mut request = Request::call(&call("supervisor.getState", ())).with_header(login);
        request.is_unread = unreadable.contains(&login);
        requests.push(request);
    }
    requests.push(Request::call(&call("supervisor.getState", ())));
    requests.push(Request::call(&call("supervisor.getState", ())).with_header(right));
    pair.ensure_same(&requests)?;

    let reply = Reply::parse(&crate::common::exchange(
        pair.proxied(),
        b"GET /nothing HTTP/1.1\r\nHost: h\r\n\r\n",
        Until::Reply,
    )?)?;
    let challenge = "WWW-Authenticate: Basic realm=\"default\"";
    ensure!(reply.status == 401 && reply.header_lines.iter().any(|line| line == challenge));
    Ok(())
}

#[test]
fn conditional_requests() -> Result<()> {
    let conditions = [
        "If-Modified-Since: Fri, 01 Jan 2038 00:00:00 GMT",
        "If-Modified-Since: Thu, 01 Jan 1970 00:00:01 GMT",
        "If-Modified-Since: Fri, 01 Jan 2038 00:00:00 GMT; length=1",
        "if-modified-since: rubbish",
        "If-None-Match: *",
        "Range: bytes=0-3",
    ];
    let mut requests = Vec::new();
    for (index, condition) in conditions.iter().enumerate() {
        for method in ["GET", "HEAD"] {
            for version in ["HTTP/1.1", "HTTP/1.0"] {
                let first = format!("{method} /images/icon.png {version}");
                let request = Request::new(&[&first, "Host: h", condition], b"");
                requests.push(if index == 0 {
                    request.bodiless()
                } else {
                    request
                });
            }
        }
    }
    Pair::over_socket(DaemonOptions::default())?.ensure_same(&requests)
}

// --- Calls ---

fn call(method: &str, params: impl IntoParams) -> Vec<u8> {
    write::call(method, &params.into_params())
}

/// Calls that change nothing.
fn calls() -> Vec<Request> {
    let entry = |method: &str| {
        options(&[
            ("methodName", value(method)),
            ("params", value(Vec::<&str>::new())),
        ])
    };
    let named = |method: &str, name: &str| Request::call(&call(method, (name,)));
    let mut requests = vec![
        Request::call(&call("supervisor.getAPIVersion", ())),
        Request::call(&call("supervisor.getState", ())),
        Request::call(&call("supervisor.getPID", ())),
        Request::call(&call("supervisor.getIdentification", ())),
        Request::call(&call("supervisor.getAllProcessInfo", ())).timed(),
        Request::call(&call("supervisor.getAllConfigInfo", ())),
        Request::call(&call("supervisor.reloadConfig", ())),
        Request::call(&call("supervisor.readLog", (0, 40))),
        Request::call(&call("supervisor.readLog", (-5, 5))),
        Request::call(&call("supervisor.startProcess", ("web:*",))),
        Request::call(&call("supervisor.startProcess", ("web", "1"))),
        Request::call(&call("supervisor.startProcess", (5,))),
        Request::call(&call("supervisor.startProcess", ((),))),
        Request::call(&call("supervisor.stopProcessGroup", ("nobody",))),
        Request::call(&call("supervisor.signalProcessGroup", ("pair", "CONT"))),
        Request::call(&call("supervisor.signalProcess", ("idle", "CONT"))),
        Request::call(&call("supervisor.sendProcessStdin", ("idle", "x"))),
        Request::call(&call(
            "supervisor.readProcessStdoutLog",
            ("bytes", "0", "3"),
        )),
        Request::call(&call("supervisor.tailProcessStdoutLog", ("idle", 0, 3))),
        Request::call(&call("supervisor.nothing", ())),
        Request::call(&call("nothing", ())),
        Request::call(&call("no.such.thing", ())),
        Request::call(&call("system.methodHelp", ("supervisor.getState",))),
        Request::call(&call("system.methodSignature", ("supervisor.getState",))),
        Request::call(&call("system.multicall", params![Vec::<&str>::new()])),
        Request::call(&call(
            "system.multicall",
            params![vec![
                entry("supervisor.getState"),
                entry("supervisor.getPID"),
                entry("supervisor.nothing"),
                entry("system.multicall"),
                value("not a struct"),
            ]],
        )),
    ];
    for name in [
        "web",
        "pair:pair_0",
        "pair_0",
        "pair",
        "idle",
        "nobody",
        "caf\u{e9}",
        "a:b:c",
        "",
    ] {
        requests.push(named("supervisor.getProcessInfo", name).timed());
        requests.push(named("supervisor.clearProcessLogs", name));
        requests.push(named("supervisor.tailProcessStderrLog", name));
    }
    requests
}

/// Bodies that no client library writes.
fn odd_bodies() -> Vec<Request> {
    let state = "<methodCall><methodName>supervisor.getState</methodName></methodCall>";
    let with = |params: &str| {
        format!("<methodCall><methodName>supervisor.readLog</methodName>{params}</methodCall>")
    };
    let bodies = [
        state.to_owned(),
        format!("<?xml version=\"1.0\"?>\r\n{state}\r\n"),
        format!("<?xml version='1.0' encoding='iso-8859-1'?>{state}"),
        format!(" {state}"),
        format!(" <?xml version='1.0'?>{state}"),
        format!("{state}rubbish"),
        format!("{state}<x/>"),
        state[..40].to_owned(),
        "rubbish".to_owned(),
        " ".to_owned(),
        "<methodCall/>".to_owned(),
        "<methodCall><methodName/></methodCall>".to_owned(),
        "<methodCall><methodName> supervisor.getState </methodName></methodCall>".to_owned(),
        "<x><methodName>supervisor.getState</methodName></x>".to_owned(),
        with("<params/>"),
        with("<params><param><value>0</value></param></params>"),
        with(
            "<params><param><value><i4>0</i4></value></param><param><value><int>9</int></value></param></params>",
        ),
        with(
            "<params><param><value><nil/></value></param><param><value><int>9</int></value></param></params>",
        ),
        with("<params><param><value><int>x</int></value></param></params>"),
        with(
            "<params><param><value><struct/></value></param><param><value><array><data/></array></value></param></params>",
        ),
    ];
    bodies
        .iter()
        .map(|body| Request::call(body.as_bytes()))
        .collect()
}

/// The same call with other headers, and to other paths under `/RPC2`.
fn odd_heads() -> Vec<Request> {
    let body = call("supervisor.getState", ());
    let length = format!("Content-Length: {}", body.len());
    let small = format!("content-length: {}", body.len());
    let loud = format!("CONTENT-LENGTH: {}", body.len());
    let heads: [&[&str]; 10] = [
        &["POST /RPC2 HTTP/1.1", &length],
        &["POST /RPC2 HTTP/1.1", "Host: h", &small],
        &[
            "POST /RPC2 HTTP/1.1",
            "Host: h",
            &loud,
            "Content-Type: text/xml",
        ],
        &[
            "POST /RPC2 HTTP/1.1",
            "Host: h",
            "Content-Type: application/json",
            &length,
        ],
        &[
            "POST /RPC2 HTTP/1.1",
            "Host: h",
            "Accept-Encoding: gzip",
            &length,
        ],
        &[
            "POST /RPC2 HTTP/1.1",
            "Host: h",
            &length,
            "Connection: close",
        ],
        &["POST /RPC2 HTTP/1.0", &length],
        &["POST /RPC2 HTTP/1.0", &length, "Connection: keep-alive"],
        &["POST /RPC2 HTTP/1.0", &length, "Connection: Keep-Alive"],
        &[
            "POST /RPC2 HTTP/1.1",
            "Host: h",
            "X-Empty: ",
            "X-Twice: a",
            "X-Twice: b",
            &length,
        ],
    ];
    let mut requests: Vec<Request> = heads.iter().map(|head| Request::new(head, &body)).collect();
    let targets = [
        "/RPC2/",
        "/RPC2extra",
        "/RPC2/a/b",
        "/RPC2?x",
        "/RPC2#x",
        "/%52PC2",
        "/RPC2?%zz",
    ];
    for target in targets {
        requests.push(Request::new(
            &[&format!("POST {target} HTTP/1.1"), "Host: h", &length],
            &body,
        ));
    }
    requests
}

#[test]
fn calls_over_a_socket() -> Result<()> {
    let pair = Pair::over_socket(DaemonOptions::default())?;
    write_odd_log(&pair)?;
    pair.ensure_same(&calls())?;
    pair.ensure_same(&odd_bodies())?;
    pair.ensure_same(&odd_heads())
}

#[test]
fn calls_over_tcp_and_to_an_older_release() -> Result<()> {
    let pair = Pair::over_port(DaemonOptions {
        version: Version::V4_2_5,
        ..DaemonOptions::default()
    })?;
    write_odd_log(&pair)?;
    pair.ensure_same(&calls())?;
    pair.ensure_same(&odd_bodies())?;
    pair.ensure_same(&odd_heads())
}

/// Writes a log with bytes that XML forbids.
fn write_odd_log(pair: &Pair) -> Result<()> {
    std::fs::write(
        pair.daemon.dir().join("bytes.log"),
        "a\u{1b}[31m]]>&<\u{1f600}\n",
    )?;
    Ok(())
}

// --- The web interface ---

#[test]
fn actions_of_the_web_interface() -> Result<()> {
    let pair = Pair::over_port(DaemonOptions::default())?;
    let get = |query: &str, host: &str| {
        let first = format!("GET /index.html?{query} HTTP/1.1");
        Request::new(&[&first, host], b"").timed()
    };
    let post = |form: &str| {
        let length = format!("Content-Length: {}", form.len());
        let head = ["POST /index.html HTTP/1.1", "Host: h:9", &length];
        Request::new(&head, form.as_bytes()).timed()
    };
    let requests = [
        get("processname=idle&action=start", "Host: example.com:9001"),
        get("processname=idle&action=start", "Host: example.com"),
        get("processname=idle&action=restart", "Host: [::1]:9"),
        get("processname=pair%3Apair_0&action=clearlog", "Host: h"),
        get("action=refresh", "X-Forwarded-Host: other"),
        get("processname=idle&action=stop", "Host: h"),
        get("processname=idle&action=stop", "Host: h"),
        post("processname=idle&action=start"),
        post("processname=idle&action=stop"),
        post("message=hello+there"),
        post("rubbish\u{e9}"),
    ];
    let hold = |addr: Addr| -> Result<Vec<Conversation>> {
        requests
            .iter()
            .map(|request| Conversation::hold(&addr, request, ""))
            .collect()
    };
    let (direct, proxied) = (hold(pair.direct.clone())?, hold(pair.proxied())?);
    for ((request, direct), proxied) in requests.iter().zip(&direct).zip(&proxied) {
        compare(request, direct, proxied)?;
    }
    let location = proxied[0]
        .reply
        .as_ref()
        .and_then(|reply| reply.header("location"));
    ensure!(location == Some("./?message=Process%20idle%20started"));
    Ok(())
}

/// For a client that names no host, the daemon writes the path of its socket into redirects.
#[test]
fn redirects_do_not_name_the_socket() -> Result<()> {
    let pair = Pair::over_socket(DaemonOptions::default())?;
    for (path, expected) in [
        ("/images", "./images/"),
        ("/index.html?action=refresh", "./?message=Page%20refreshed"),
    ] {
        let request = format!("GET {path} HTTP/1.0\r\n\r\n");
        let ask = |addr| crate::common::exchange(addr, request.as_bytes(), Until::Close);
        let direct = Reply::parse(&ask(pair.direct.clone())?)?;
        let named = direct.header("location").unwrap_or_default();
        ensure!(named.contains("<unix domain socket>"), "{direct:?}");
        for addr in pair.sidecar.addrs() {
            let reply = Reply::parse(&ask(addr)?)?;
            let location = reply.header("location").unwrap_or_default();
            ensure!(location.starts_with(expected), "{reply:?}");
        }
    }
    Ok(())
}

/// Some requests never get an answer, from the daemon as through the proxy.
#[test]
fn requests_that_the_daemon_never_answers_are_not_answered() -> Result<()> {
    let pair = Pair::over_socket(DaemonOptions::default())?;
    for path in ["/index.html;x", "/;x"] {
        for addr in [pair.direct.clone(), pair.proxied()] {
            let mut connection = Connection::open(addr)?;
            connection.send(format!("GET {path} HTTP/1.1\r\nHost: h\r\n\r\n").as_bytes())?;
            let received = connection.read(Until::Quiet(Duration::from_millis(300)))?;
            ensure!(
                received.is_empty() && !connection.is_closed()?,
                "{}",
                shown(&received)
            );
        }
    }
    Ok(())
}

// --- What the proxy refuses by itself ---

/// Targets that HTTP does not allow get a bare 400, and those above 64 KB get 414. The daemon accepts them,
/// or closes the connection.
#[test]
fn invalid_targets_are_refused() -> Result<()> {
    let pair = Pair::over_socket(DaemonOptions::default())?;
    let refused: [&[u8]; 9] = [
        b"/a<b", b"/a>b", b"/a`b", b"/a?\"", b"/a\tb", b"/a\x7fb", b"/a\x01b", b"/\xe9", b"/a b",
    ];
    for target in refused {
        let bytes = [b"GET ", target, b" HTTP/1.1\r\nHost: h\r\n\r\n"].concat();
        let reply = Reply::parse(&crate::common::exchange(
            pair.proxied(),
            &bytes,
            Until::Close,
        )?)?;
        ensure!(reply.status == 400, "{}: {reply:?}", shown(target));
    }
    let long = |length: usize| {
        Request::new(
            &[&format!("GET /{} HTTP/1.1", "x".repeat(length)), "Host: h"],
            b"",
        )
    };
    pair.ensure_same(&[long(1000), long(15_000)])?;
    // The proxy closes the connection after these heads, to free their memory.
    for (length, status) in [(60_000, 404), (100_000, 414)] {
        let reply = crate::common::exchange(pair.proxied(), &long(length).bytes, Until::Close)?;
        let reply = Reply::parse(&reply)?;
        ensure!(reply.status == status, "{length}: {reply:?}");
    }
    Ok(())
}

/// Versions that the daemon repeats as if it supported them, and lines that it takes for requests.
#[test]
fn invalid_versions_are_refused() -> Result<()> {
    let pair = Pair::over_socket(DaemonOptions::default())?;
    for line in [
        "GET / HTTP/2.0",
        "GET / HTTP/3",
        "GET /",
        "GET",
        "",
        "\u{16}\u{3}\u{1}",
    ] {
        let bytes = format!("{line}\r\nHost: h\r\n\r\n");
        let mut connection = Connection::open(pair.proxied())?;
        connection.send(bytes.as_bytes())?;
        let reply = Reply::parse(&connection.read(Until::Close)?)?;
        ensure!(reply.status == 400, "{line}: {reply:?}");
    }
    Ok(())
}
