//! Hostile and faulty requests: every limit holds, and no request affects other clients.

use std::thread;
use std::time::{Duration, Instant};

use crate::common::{
    Client, Connection, Daemon, Reply, Sidecar, Until, eventually, exchange, options,
    raise_file_limit, text, value,
};
use anyhow::{Context, Result, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use supervisor_twiddler::body::{BODY_PAUSE, FREE_BODY, LARGE_BODY, MAX_BODY};
use supervisor_twiddler::daemon::{Share, SlotLimits};
use supervisor_twiddler::limits::{HEAD_TIME, MAX_CONNECTIONS};
use supervisor_twiddler::server::{MAX_HEAD, MAX_HEADER_LINES};
use supervisor_twiddler::xmlrpc::{Limits, Value, write};

const CAT: &str = "[program:cat]\ncommand = /bin/cat\nautorestart = true\n";
/// How much longer than a time limit a test may take.
const LEEWAY: Duration = Duration::from_secs(20);

fn start_both(body: &str) -> Result<(Daemon, Sidecar)> {
    let daemon = Daemon::start(body)?;
    let sidecar = Sidecar::start(&daemon)?;
    Ok((daemon, sidecar))
}

fn post(sidecar: &Sidecar, body: &[u8]) -> Result<Reply> {
    sidecar.client().post_call(body)
}

fn answers(client: &Client) -> Result<()> {
    let state = client.call("supervisor.getState", ())?;
    ensure!(
        state.get("statename").and_then(Value::as_str) == Some("RUNNING"),
        "{state:?}"
    );
    Ok(())
}

/// Sends as many bytes as the proxy reads, and returns the status of the reply.
fn status_of(sidecar: &Sidecar, request: &[u8]) -> Result<u16> {
    let mut connection = Connection::open(sidecar.tcp_addr())?;
    connection.send(request)?;
    Ok(connection.read_reply()?.status)
}

#[test]
fn bodies_have_a_limit() -> Result<()> {
    let (_daemon, sidecar) = start_both("")?;
    let announced = format!(
        "POST /RPC2 HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n",
        MAX_BODY + 1
    );
    assert_eq!(status_of(&sidecar, announced.as_bytes())?, 413);
    let mut chunked =
        b"POST /RPC2 HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
    chunked.extend(format!("{:x}\r\n", MAX_BODY + 1).bytes());
    chunked.resize(chunked.len() + MAX_BODY + 1, b'x');
    assert_eq!(status_of(&sidecar, &chunked)?, 413);
    let fits = write::call(
        "supervisor.getProcessInfo",
        &[value("x".repeat(8 << 20).as_str())],
    );
    assert_eq!(post(&sidecar, &fits)?.status, 200);
    answers(&sidecar.client())
}

#[test]
fn documents_have_limits() -> Result<()> {
    let (daemon, sidecar) = start_both("")?;
    let deep = |depth: usize| {
        format!(
            "<methodCall><methodName>a.b</methodName>{}{}</methodCall>",
            "<a>".repeat(depth),
            "</a>".repeat(depth)
        )
    };
    let many = format!(
        "<methodCall><methodName>a.b</methodName>{}</methodCall>",
        "<a/>".repeat(Limits::DEFAULT.elements)
    );
    let attributes = format!(
        "<methodCall{}><methodName>a.b</methodName></methodCall>",
        " a=''".repeat(Limits::DEFAULT.elements)
    );
    let entry = options(&[("methodName", "supervisor.getState")]);
    let calls = write::call("system.multicall", &[Value::Array(vec![entry; 10_001])]);
    let entity = "<!DOCTYPE a [<!ENTITY x 'y'>]><methodCall><methodName>supervisor.getState</methodName><params>&x;</params></methodCall>";
    let bomb = "<!DOCTYPE a [<!ENTITY x 'lol'><!ENTITY y '&x;&x;&x;&x;'>]><methodCall><methodName>&y;</methodName></methodCall>";
    let outside = "<!DOCTYPE a SYSTEM 'file:///etc/passwd'><methodCall><methodName>supervisor.getState</methodName></methodCall>";
    for (body, expected) in [
        (deep(Limits::DEFAULT.depth).into_bytes(), 400),
        (deep(100_000).into_bytes(), 400),
        (many.into_bytes(), 413),
        (attributes.into_bytes(), 413),
        (calls, 413),
        (entity.into(), 400),
        (bomb.into(), 400),
        (outside.into(), 400),
        (b"<methodCall><methodName>supervisor.getState</methodName><params>&nbsp;</params></methodCall>".to_vec(), 400),
        (b"<methodCall>".to_vec(), 400),
        (vec![0xff; 100], 400),
        (Vec::new(), 400),
    ] {
        let shown = String::from_utf8_lossy(&body[..body.len().min(80)]).into_owned();
        let reply = post(&sidecar, &body)?;
        assert_eq!(reply.status, expected, "{shown}: {reply:?}");
    }
    // The proxy has forwarded none of the documents.
    assert!(!daemon.log().contains("Traceback"), "{}", daemon.log());
    answers(&sidecar.client())
}

#[test]
fn heads_have_limits() -> Result<()> {
    let (_daemon, sidecar) = start_both("")?;
    let long = format!(
        "GET / HTTP/1.1\r\nHost: localhost\r\nX: {}\r\n\r\n",
        "x".repeat(2 * MAX_HEAD)
    );
    assert_eq!(status_of(&sidecar, long.as_bytes())?, 431);
    // The limit holds to the byte, for heads in one piece, too.
    let frame = "GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nX: \r\n\r\n";
    for (bytes, expected) in [
        (MAX_HEAD, 200),
        (MAX_HEAD + 1, 431),
        (MAX_HEAD * 3 / 2, 431),
    ] {
        let filled = format!("X: {}\r\n", "x".repeat(bytes - frame.len()));
        let head = frame.replace("X: \r\n", &filled);
        assert_eq!(status_of(&sidecar, head.as_bytes())?, expected, "{bytes}");
    }
    let lines = "X: y\r\n".repeat(MAX_HEADER_LINES);
    assert_eq!(
        status_of(
            &sidecar,
            format!("GET / HTTP/1.1\r\nHost: localhost\r\n{lines}\r\n").as_bytes()
        )?,
        431
    );
    let fits = format!(
        "GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nX: {}\r\n\r\n",
        "x".repeat(200 << 10)
    );
    assert_eq!(status_of(&sidecar, fits.as_bytes())?, 200);
    let path = "x".repeat(1 << 20);
    let status = status_of(
        &sidecar,
        format!("GET /{path} HTTP/1.1\r\nHost: localhost\r\n\r\n").as_bytes(),
    )?;
    assert!(matches!(status, 414 | 431), "{status}");
    answers(&sidecar.client())
}

#[test]
fn slow_senders_get_408_and_delay_nobody() -> Result<()> {
    let (_daemon, sidecar) = start_both("")?;
    let addr = sidecar.tcp_addr();
    let slow = |request: &'static str| {
        thread::spawn(move || -> Result<(u16, Duration)> {
            let start = Instant::now();
            let mut connection = Connection::open(addr)?;
            connection.send(request.as_bytes())?;
            let limit = HEAD_TIME.max(BODY_PAUSE) + LEEWAY;
            let reply = Reply::parse(&connection.read_within(limit, Until::Close)?)?;
            Ok((reply.status, start.elapsed()))
        })
    };
    let heads = [
        "P",
        "POST /RPC2 HTTP/1.1\r\n",
        "POST /RPC2 HTTP/1.1\r\nHost: localhost\r\nContent-Le",
        "GET / HTTP/1.1\r\nHost: localhost\r\n",
    ];
    let bodies = [
        "POST /RPC2 HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n",
        "POST /RPC2 HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n<methodCall>",
        "POST /RPC2 HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n<meth",
        "POST /index.html HTTP/1.1\r\nHost: localhost\r\nContent-Length: 7\r\n\r\naction",
    ];
    let slow: Vec<_> = (0..8)
        .flat_map(|_| heads.into_iter().chain(bodies))
        .map(slow)
        .collect();
    let client = sidecar.client();
    let mut meanwhile = 0;
    while !slow.iter().any(thread::JoinHandle::is_finished) {
        let start = Instant::now();
        answers(&client)?;
        ensure!(
            start.elapsed() < Duration::from_secs(5),
            "held up for {:?}",
            start.elapsed()
        );
        meanwhile += 1;
    }
    assert!(meanwhile > 100, "{meanwhile}");
    for slow in slow {
        let (status, time) = slow
            .join()
            .map_err(|_| anyhow::anyhow!("a thread panicked"))??;
        assert_eq!(status, 408);
        assert!(time >= HEAD_TIME.min(BODY_PAUSE), "{time:?}");
    }
    answers(&client)
}

#[test]
fn many_idle_connections_keep_nobody_out() -> Result<()> {
    raise_file_limit()?;
    let (_daemon, sidecar) = start_both("")?;
    let mut crowd = Vec::new();
    for number in 0..MAX_CONNECTIONS + 100 {
        let mut connection = Connection::open(sidecar.tcp_addr())?;
        if number % 2 == 0 {
            connection.send(b"POST /RPC2 HTTP/1.1\r\nHost: loc")?;
        }
        crowd.push(connection);
    }
    for _ in 0..20 {
        answers(&sidecar.client())?;
    }
    // The oldest connection was closed.
    eventually(crate::common::LIMIT, || {
        let closed = crowd
            .iter_mut()
            .take(200)
            .filter_map(|connection| connection.is_closed().ok());
        ensure!(
            closed.filter(|closed| *closed).count() >= 100,
            "not enough of them made room"
        );
        Ok(())
    })
}

/// The kernel drops a connection for which its queue has no room, and the client tries again after a second.
#[test]
fn many_connections_at_once_wait_until_they_are_accepted() -> Result<()> {
    const CROWD: usize = 1000;
    raise_file_limit()?;
    let (_daemon, sidecar) = start_both("")?;
    let most = std::fs::read_to_string("/proc/sys/net/core/somaxconn")?;
    let crowd = CROWD.min(most.trim().parse()?);
    sidecar.signal("STOP")?;
    let start = Instant::now();
    let waiting: Result<Vec<_>> = (0..crowd)
        .map(|_| Connection::open(sidecar.tcp_addr()))
        .collect();
    let time = start.elapsed();
    sidecar.signal("CONT")?;
    assert_eq!(waiting?.len(), crowd);
    ensure!(time < Duration::from_secs(1), "{time:?}");
    answers(&sidecar.client())
}

/// A call of about this many bytes, which supervisord answers with a short fault.
fn large_call(bytes: usize) -> Vec<u8> {
    write::call("supervisor.getState", &[value("x".repeat(bytes).as_str())])
}

#[test]
fn large_bodies_wait_for_each_other_and_small_ones_do_not() -> Result<()> {
    let (_daemon, sidecar) = start_both("")?;
    let start = Instant::now();
    assert_eq!(post(&sidecar, &large_call(LARGE_BODY))?.status, 200);
    let alone = start.elapsed();
    let body = large_call(MAX_BODY - 1024);
    let head = format!(
        "POST /RPC2 HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    let (most, mut rest) = body.split_at(body.len() - 1024);
    let mut first = Connection::open(sidecar.tcp_addr())?;
    first.send(head.as_bytes())?;
    first.send(most)?;
    let large: Vec<_> = (0..4)
        .map(|_| {
            let client = sidecar.client();
            thread::spawn(move || Ok(client.post_call(&large_call(LARGE_BODY))?.status))
        })
        .collect();
    // One of the others could be answered in this time if it did not wait for the first.
    let start = Instant::now();
    while start.elapsed() < 4 * alone && rest.len() > 1 {
        let (piece, others) = rest.split_at(1);
        first.send(piece)?;
        rest = others;
        answers(&sidecar.client())?;
        let medium = post(&sidecar, &large_call(4 * FREE_BODY))?;
        assert_eq!(medium.status, 200);
    }
    assert!(!large.iter().any(thread::JoinHandle::is_finished));
    first.send(rest)?;
    assert_eq!(first.read_reply()?.status, 200);
    for large in large {
        let status: Result<u16> = large
            .join()
            .map_err(|_| anyhow::anyhow!("a thread panicked"))?;
        assert_eq!(status?, 200);
    }
    Ok(())
}

#[test]
fn followers_of_logs_leave_room_for_calls() -> Result<()> {
    let (_daemon, sidecar) = start_both(CAT)?;
    let client = sidecar.client();
    let mut followers = Vec::new();
    for _ in 0..SlotLimits::of(200).per_client(Share::Tail) {
        let mut connection = Connection::open(sidecar.tcp_addr())?;
        connection.send(b"GET /mainlogtail HTTP/1.1\r\nHost: localhost\r\n\r\n")?;
        assert_eq!(Reply::parse(&connection.read(Until::Head)?)?.status, 200);
        followers.push(connection);
    }
    assert_eq!(client.get("/mainlogtail")?.status, 503);
    answers(&client)?;
    followers.pop();
    eventually(crate::common::LIMIT, || {
        let mut connection = Connection::open(sidecar.tcp_addr())?;
        connection.send(b"GET /mainlogtail HTTP/1.1\r\nHost: localhost\r\n\r\n")?;
        ensure!(
            Reply::parse(&connection.read(Until::Head)?)?.status == 200,
            "still full"
        );
        Ok(())
    })
}

/// A request that must never reach the daemon.
const STOP: &str = "<methodCall><methodName>supervisor.stopAllProcesses</methodName></methodCall>";

#[test]
fn nothing_is_smuggled_past_the_proxy() -> Result<()> {
    let (daemon, sidecar) = start_both(CAT)?;
    daemon.wait_for_state("cat", "RUNNING")?;
    let before = daemon
        .call("supervisor.getProcessInfo", ("cat",))?
        .get("pid")
        .cloned();
    let hidden = format!(
        "POST /RPC2 HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n{STOP}",
        STOP.len()
    );
    let state = "<methodCall><methodName>supervisor.getState</methodName></methodCall>";
    let length = state.len();
    let both = length + hidden.len();
    let chunked = format!("{length:x}\r\n{state}\r\n0\r\n\r\n");
    let heads = [
        // Line ends.
        format!("POST /RPC2 HTTP/1.1\nHost: localhost\nContent-Length: {length}\n\n{state}"),
        format!("POST /RPC2 HTTP/1.1\rHost: localhost\rContent-Length: {length}\r\r{state}"),
        format!(
            "POST /RPC2 HTTP/1.1\r\nHost: localhost\r\nX: y\rContent-Length: 0\r\nContent-Length: {length}\r\n\r\n{state}"
        ),
        format!(
            "POST /RPC2 HTTP/1.1\r\nHost: localhost\r\nX: y\n\nContent-Length: {length}\r\n\r\n{state}"
        ),
        format!(
            "\r\n\r\nPOST /RPC2 HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n{state}"
        ),
        // Folded lines.
        format!(
            "POST /RPC2 HTTP/1.1\r\nHost: localhost\r\nX: y\r\n Content-Length: {both}\r\nContent-Length: {length}\r\n\r\n{state}"
        ),
        format!(
            "POST /RPC2 HTTP/1.1\r\nHost: localhost\r\nContent-Length:\r\n {length}\r\n\r\n{state}"
        ),
        format!(
            "POST /RPC2 HTTP/1.1\r\nHost: localhost\r\n Content-Length: {both}\r\nContent-Length: {length}\r\n\r\n{state}"
        ),
        // Names and values.
        format!(
            "POST /RPC2 HTTP/1.1\r\nHost: localhost\r\nContent-Length : {both}\r\nContent-Length: {length}\r\n\r\n{state}"
        ),
        format!(
            "POST /RPC2 HTTP/1.1\r\nHost: localhost\r\nContent-Length\t: {length}\r\n\r\n{state}"
        ),
        format!(
            "POST /RPC2 HTTP/1.1\r\nHost: localhost\r\nContent Length: {both}\r\nContent-Length: {length}\r\n\r\n{state}"
        ),
        format!(
            "POST /RPC2 HTTP/1.1\r\nHost: localhost\r\nContent-Length: +{length}\r\n\r\n{state}"
        ),
        format!("POST /RPC2 HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n{state}"),
        format!(
            "POST /RPC2 HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0x{length:x}\r\n\r\n{state}"
        ),
        format!(
            "POST /RPC2 HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}, {length}\r\n\r\n{state}"
        ),
        format!(
            "POST /RPC2 HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length};{both}\r\n\r\n{state}"
        ),
        format!(
            "POST /RPC2 HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\nContent-Length: {both}\r\n\r\n{state}"
        ),
        format!(
            "POST /RPC2 HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999999999999\r\n\r\n{state}"
        ),
        format!(
            "POST /RPC2 HTTP/1.1\r\nHost: localhost\r\nX\0: y\r\nContent-Length: {length}\r\n\r\n{state}"
        ),
        format!(
            "POST /RPC2 HTTP/1.1\r\nHost: localhost\r\nX: \0\r\nContent-Length: {length}\r\n\r\n{state}"
        ),
        format!(
            "POST /RPC2 HTTP/1.1\r\nHost: localhost\r\n: y\r\nContent-Length: {length}\r\n\r\n{state}"
        ),
        format!(
            "POST /RPC2 HTTP/1.1\r\nHost: localhost\r\nno colon\r\nContent-Length: {length}\r\n\r\n{state}"
        ),
        format!(
            "POST /RPC2\0 HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n{state}"
        ),
        format!(
            "POST /RPC2 HTTP/1.1\r\nHost: localhost\r\nConnection: Content-Length\r\nContent-Length: {length}\r\n\r\n{state}"
        ),
        // Chunks.
        format!(
            "POST /RPC2 HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\nContent-Length: {length}\r\n\r\n{chunked}"
        ),
        format!(
            "POST /RPC2 HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked, identity\r\n\r\n{chunked}"
        ),
        format!(
            "POST /RPC2 HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: identity\r\nContent-Length: {length}\r\n\r\n{state}"
        ),
        format!(
            "POST /RPC2 HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: xchunked\r\nContent-Length: {length}\r\n\r\n{state}"
        ),
        format!(
            "POST /RPC2 HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding : chunked\r\nContent-Length: {length}\r\n\r\n{state}"
        ),
        format!(
            "POST /RPC2 HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n{chunked}"
        ),
        format!(
            "POST /RPC2 HTTP/1.0\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\nContent-Length: {length}\r\n\r\n{state}"
        ),
        format!(
            "POST /RPC2 HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n{state}\r\n0\r\n\r\n"
        ),
        format!(
            "POST /RPC2 HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n{state}\r\n0\r\n\r\n"
        ),
        format!(
            "POST /RPC2 HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n{length:x};a=\"\n\"\r\n{state}\r\n0\r\n\r\n"
        ),
        String::from(
            "POST /RPC2 HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nContent-Length: 5\r\n\r\n",
        ),
        // Bodies of requests for which the daemon reads no body.
        format!(
            "GET /RPC2 HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n",
            0
        ),
        format!(
            "GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n{hidden}",
            hidden.len()
        ),
        format!(
            "POST /nothing HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n{hidden}",
            hidden.len()
        ),
        format!(
            "DELETE /RPC2 HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n{hidden}",
            hidden.len()
        ),
        format!(
            "POST /logtail/cat HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n{hidden}",
            hidden.len()
        ),
        format!(
            "POST //RPC2 HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n{hidden}",
            hidden.len()
        ),
        format!(
            "POST http://localhost/RPC2 HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n{hidden}",
            hidden.len()
        ),
        // Targets.
        "GET /%0d%0aX:%20y HTTP/1.1\r\nHost: localhost\r\n\r\n".to_owned(),
        "GET /x\ty HTTP/1.1\r\nHost: localhost\r\n\r\n".to_owned(),
        "GET /x y HTTP/1.1\r\nHost: localhost\r\n\r\n".to_owned(),
        "CONNECT localhost:1 HTTP/1.1\r\nHost: localhost\r\n\r\n".to_owned(),
        "GET / HTTP/1.1 \r\nHost: localhost\r\n\r\n".to_owned(),
        "GET / HTTP/2.0\r\nHost: localhost\r\n\r\n".to_owned(),
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned(),
        "GET /\r\n\r\n".to_owned(),
    ];
    for head in &heads {
        let bytes = exchange(
            sidecar.tcp_addr(),
            &[head.as_bytes(), b""].concat(),
            Until::Quiet(Duration::from_millis(300)),
        )?;
        let shown = head.escape_debug().to_string();
        let text = String::from_utf8_lossy(&bytes);
        // Bytes behind the end of a request are no request.
        let accepted = text.matches("HTTP/1.").count() - text.matches("HTTP/1.1 400 ").count();
        assert!(accepted <= 1, "{shown}: {text}");
        ensure!(!text.contains("<boolean>"), "{shown}: {text}");
    }
    answers(&sidecar.client().kept_alive())?;
    answers(&daemon.client())?;
    let after = daemon
        .call("supervisor.getProcessInfo", ("cat",))?
        .get("pid")
        .cloned();
    assert_eq!(before, after, "somebody stopped it");
    Ok(())
}

/// Strings that some parsers cannot read.
fn odd_strings() -> Vec<String> {
    let mut strings: Vec<String> = [
        "",
        " ",
        "\0",
        "\u{1b}[31m",
        "\r",
        "\n",
        "\t",
        "\u{7f}",
        "\u{85}",
        "\u{2028}",
        "\u{feff}",
        "\u{fffd}",
        "a\0b",
        "cat\0",
        "../../etc/passwd",
        "cat:cat",
        "cat:*",
        "*:*",
        ":",
        "::",
        ":cat",
        "cat:",
        "*",
        "%s",
        "%(x)s",
        "{}",
        "{0}",
        "]]>",
        "&lt;",
        "<x>",
        "'\"",
        "\\",
        "é",
        "日本",
        "😀",
        "\u{202e}",
        "nan",
        "-1",
        "HUP",
        "KILL\n",
        "__class__",
        "supervisor.shutdown",
    ]
    .map(str::to_owned)
    .into();
    strings.push("x".repeat(100_000));
    strings
}

/// A value as a client may write it. Strings are in base64, so that every character arrives.
fn encoded(value: &Value) -> String {
    match value {
        Value::String(text) => format!("<value><base64>{}</base64></value>", STANDARD.encode(text)),
        other => {
            let mut out = String::new();
            write::value(&mut out, other);
            out
        }
    }
}

#[test]
fn no_call_harms_the_daemon() -> Result<()> {
    let (daemon, sidecar) = start_both(&format!(
        "{CAT}[eventlistener:listener]\ncommand = /bin/sh -c 'while echo READY; read line; do :; done'\nevents = REMOTE_COMMUNICATION\nbuffer_size = 5\n"
    ))?;
    daemon.wait_for_state("cat", "RUNNING")?;
    let client = sidecar.client().kept_alive();
    let listed = client.call("system.listMethods", ())?;
    // Methods that end the daemon or wait by design are left out.
    let methods: Vec<String> = crate::common::texts(&listed)?
        .into_iter()
        .filter(|name| !matches!(*name, "supervisor.shutdown" | "supervisor.restart"))
        .map(str::to_owned)
        .collect();
    let mut values: Vec<Value> = odd_strings().into_iter().map(Value::from).collect();
    values.extend(
        [
            0,
            1,
            -1,
            i64::MAX,
            i64::MIN,
            i64::from(i32::MAX) + 1,
            1 << 40,
        ]
        .map(Value::from),
    );
    values.extend([
        Value::Nil,
        Value::Bool(true),
        Value::Double(f64::NAN),
        Value::Double(f64::INFINITY),
        Value::Double(-0.5),
        Value::DateTime("20240131T23:59:59".to_owned()),
        Value::Array(vec![]),
        Value::Array(vec![value("cat")]),
        Value::Struct(vec![]),
        Value::Struct(vec![(
            "methodName".to_owned(),
            value("supervisor.getState"),
        )]),
    ]);
    let mut sent = 0;
    for method in &methods {
        for odd in &values {
            for params in [
                vec![odd.clone()],
                vec![value("cat"), odd.clone()],
                vec![odd.clone(), odd.clone(), odd.clone()],
            ] {
                let params: String = params
                    .iter()
                    .map(|param| format!("<param>{}</param>", encoded(param)))
                    .collect();
                let call = format!(
                    "<methodCall><methodName>{method}</methodName><params>{params}</params></methodCall>"
                );
                let reply = client.post_call(call.as_bytes());
                let reply = reply.with_context(|| format!("{method} with {odd:.60?}"))?;
                ensure!(
                    matches!(reply.status, 200 | 400 | 500),
                    "{method} with {odd:.60?}: {reply:?}"
                );
                sent += 1;
            }
        }
    }
    assert!(sent > 5_000, "{sent}");
    assert!(daemon.is_alive() && sidecar.is_alive());
    for reader in [client, daemon.client()] {
        answers(&reader)?;
        for method in [
            "supervisor.getAllProcessInfo",
            "supervisor.getAllConfigInfo",
            "twiddler.getGroupNames",
            "system.listMethods",
        ] {
            if reader.addr() == &daemon.addr() && method.starts_with("twiddler") {
                continue;
            }
            crate::common::items(&reader.call(method, ())?).with_context(|| method.to_owned())?;
        }
        assert_eq!(reader.get("/")?.status, 200);
    }
    let conf_before = daemon.read("supervisord.conf")?;
    assert!(conf_before.contains("[program:cat]"));
    let mut leftovers = daemon.include_files()?;
    leftovers.retain(|name| !name.starts_with('.'));
    assert!(leftovers.is_empty(), "{leftovers:?}");
    daemon.call("supervisor.startProcess", ("cat",)).ok();
    daemon.wait_for_state("cat", "RUNNING")
}

#[test]
fn strings_that_xml_cannot_carry_arrive_in_multicalls_too() -> Result<()> {
    let (daemon, sidecar) = start_both(CAT)?;
    daemon.wait_for_state("cat", "RUNNING")?;
    let client = sidecar.client();
    client.call("twiddler.addGroup", ("g", 999))?;
    let send = params!["cat", Value::from("bell \u{7} and escape \u{1b}[0m\r\n")];
    let list: String = [("supervisor.sendProcessStdin", send), ("twiddler.getAPIVersion", vec![])]
        .iter()
        .map(|(method, params)| {
            let params: String = params.iter().map(encoded).collect();
            format!("<value><struct><member><name>methodName</name><value>{method}</value></member><member><name>params</name><value><array><data>{params}</data></array></value></member></struct></value>")
        })
        .collect();
    let call = format!(
        "<methodCall><methodName>system.multicall</methodName><params><param><value><array><data>{list}</data></array></value></param></params></methodCall>"
    );
    let reply = post(&sidecar, call.as_bytes())?;
    assert!(
        reply.status == 200 && !reply.text().contains("fault"),
        "{reply:?}"
    );
    eventually(crate::common::LIMIT, || {
        let log = client.call("supervisor.readProcessStdoutLog", ("cat", 0, 0))?;
        ensure!(
            text(&log)?.contains("bell \u{7} and escape \u{1b}[0m"),
            "{log:?}"
        );
        Ok(())
    })
}
