//! Where one request ends and the next begins: bodies that the daemon reads or does not read, contradicting
//! lengths, pipelined requests, and sizes.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use crate::common::http::shown;
use crate::common::{
    Addr, Client, Connection, Daemon, DaemonOptions, Reply, Sidecar, Until, basic, exchange,
    member, text,
};
use anyhow::{Context, Result, ensure};
use supervisor_twiddler::xmlrpc::write;

const PROGRAMS: &str = "\
[program:web]
command=/bin/cat
startsecs=0

[program:idle]
command=/bin/cat
autostart=false
startsecs=0

[program:slow]
command=/bin/cat
autostart=false
startsecs=2

[program:big]
command=/bin/cat
autostart=false
stdout_logfile=%(here)s/big.log
";
/// Arguments and replies of this size work with the daemon itself.
const BIG: usize = 8 * 1024 * 1024;
/// How long a test waits for a reply that must not come.
const SILENCE: Duration = Duration::from_millis(300);

fn start() -> Result<(Daemon, Sidecar)> {
    let daemon = Daemon::start(PROGRAMS)?;
    let sidecar = Sidecar::start(&daemon)?;
    Ok((daemon, sidecar))
}

/// A whole request for a call without parameters.
fn call(method: &str) -> Vec<u8> {
    let body = write::call(method, &[]);
    let head = format!(
        "POST /RPC2 HTTP/1.1\r\nHost: h\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    [head.into_bytes(), body].concat()
}

fn ensure_answers(reply: &Reply, wanted: &str) -> Result<()> {
    ensure!(
        reply.status == 200 && reply.text().contains(wanted),
        "not {wanted}: {reply:?}"
    );
    Ok(())
}

fn ensure_status(reply: &Reply, status: u16) -> Result<()> {
    ensure!(reply.status == status, "not {status}: {reply:?}");
    Ok(())
}

/// Ensures that each request gets its own reply: on this connection, if it is still open, and on others.
fn ensure_in_step(sidecar: &Sidecar, connection: &mut Connection) -> Result<()> {
    if !connection.is_closed()? {
        connection.send(&call("supervisor.getAPIVersion"))?;
        match connection.read_reply() {
            Ok(reply) => ensure_answers(&reply, "<string>3.0</string>")?,
            Err(error) if !connection.is_closed()? => return Err(error),
            Err(_) => {}
        }
    }
    for _ in 0..3 {
        let reply = exchange(
            sidecar.tcp_addr(),
            &call("supervisor.getState"),
            Until::Reply,
        )?;
        ensure_answers(&Reply::parse(&reply)?, "statename")?;
    }
    Ok(())
}

// --- Bodies that the daemon does not read ---

/// The daemon itself takes these bodies for the next request.
#[test]
fn a_request_in_a_body_is_never_executed() -> Result<()> {
    let (daemon, sidecar) = start()?;
    let params = [supervisor_twiddler::xmlrpc::Value::from("idle")];
    let body = write::call("supervisor.startProcess", &params);
    let head = format!(
        "POST /RPC2 HTTP/1.1\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    let smuggled = [head.into_bytes(), body].concat();
    let lines = [
        "GET /",
        "GET /RPC2",
        "HEAD /images/icon.png",
        "PUT /RPC2",
        "DELETE /RPC2",
        "OPTIONS *",
        "FOO /nothing",
        "POST /nothing",
        "POST nothing",
        "POST RPC2",
        "POST //RPC2",
        "POST http://h/RPC2",
        "POST http://h/",
        "POST /index.html/x",
        "POST /rpc2",
        "POST /logtail/web",
        "POST /mainlogtail",
        "POST /images/icon.png",
        "CONNECT h:1",
    ];
    for line in lines {
        for (length, sent) in framings(&smuggled) {
            let head = format!("{line} HTTP/1.1\r\nHost: h\r\n{length}\r\n\r\n");
            let mut connection = Connection::open(sidecar.tcp_addr())?;
            connection.send(&[head.as_bytes(), &sent].concat())?;
            let until = if line.starts_with("HEAD") {
                Until::Head
            } else {
                Until::Reply
            };
            let reply = Reply::parse(&connection.read(until)?)?;
            ensure!(
                matches!(reply.status, 200 | 400 | 404 | 411),
                "{line}: {reply:?}"
            );
            ensure_in_step(&sidecar, &mut connection).with_context(|| format!("after {line}"))?;
        }
    }
    ensure!(daemon.state("idle")? == "STOPPED");
    Ok(())
}

/// A body with its length, and in chunks.
fn framings(body: &[u8]) -> [(String, Vec<u8>); 2] {
    let chunked = [
        format!("{:x}\r\n", body.len()).as_bytes(),
        body,
        b"\r\n0\r\n\r\n",
    ]
    .concat();
    [
        (format!("Content-Length: {}", body.len()), body.to_vec()),
        ("Transfer-Encoding: chunked".to_owned(), chunked),
    ]
}

/// If the daemon cannot read the credentials, it answers without reading the body.
#[test]
fn the_body_of_a_call_with_broken_credentials_is_never_executed() -> Result<()> {
    let daemon = Daemon::start_with(DaemonOptions {
        body: PROGRAMS,
        credentials: Some(("user", "secret")),
        ..DaemonOptions::default()
    })?;
    let sidecar = Sidecar::start(&daemon)?;
    let login = basic("user", "secret");
    let params = [supervisor_twiddler::xmlrpc::Value::from("idle")];
    let start = write::call("supervisor.startProcess", &params);
    let body = format!(
        "POST /RPC2 HTTP/1.1\r\nAuthorization: {login}\r\nContent-Length: {}\r\n\r\n",
        start.len()
    );
    let body = [body.into_bytes(), start].concat();
    let length = body.len();
    for (credentials, status) in [
        ("Basic %%%", 500),
        ("Basic gIA6gIA=", 400),
        ("Basic eDp4", 401),
    ] {
        let head = format!(
            "POST /RPC2 HTTP/1.1\r\nHost: h\r\nAuthorization: {credentials}\r\nContent-Length: {length}\r\n\r\n"
        );
        let request = [head.as_bytes(), &body].concat();
        for _ in 0..5 {
            let reply = Reply::parse(&exchange(sidecar.tcp_addr(), &request, Until::Reply)?)?;
            ensure_status(&reply, status)?;
            let version = sidecar.client().call("supervisor.getAPIVersion", ())?;
            ensure!(text(&version)? == "3.0");
        }
    }
    ensure!(daemon.state("idle")? == "STOPPED");
    Ok(())
}

/// A reply of a waiting call has its length in characters instead of bytes. A client of the daemon itself
/// takes the last bytes for the beginning of the next reply. Through the proxy they are lost, but no other
/// reply is affected.
#[test]
fn a_length_in_characters_corrupts_no_other_reply() -> Result<()> {
    // The bytes beyond the announced length must be more than 4 KB, so that the daemon sends them separately.
    let name = "\u{e9}".repeat(60);
    let daemon = Daemon::start(&format!(
        "[program:{name}]\ncommand=/nowhere/nothing\nautostart=false\nnumprocs=40\n\
         process_name=%(program_name)s%(process_num)d\n"
    ))?;
    let sidecar = Sidecar::start(&daemon)?;
    let body = write::call("supervisor.startProcessGroup", &[name.as_str().into()]);
    thread::scope(|scope| {
        let others: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| -> Result<()> {
                    for _ in 0..200 {
                        let version = sidecar.client().call("supervisor.getAPIVersion", ())?;
                        ensure!(text(&version)? == "3.0");
                    }
                    Ok(())
                })
            })
            .collect();
        for _ in 0..20 {
            let reply = sidecar.client().post_call(&body)?;
            ensure_status(&reply, 200)?;
            let is_whole = String::from_utf8_lossy(&reply.body).ends_with("</methodResponse>\n");
            ensure!(!is_whole, "not cut: {reply:?}");
        }
        others.into_iter().try_for_each(|other| {
            other
                .join()
                .map_err(|_| anyhow::anyhow!("a client panicked"))?
        })
    })
}

// --- Lengths ---

#[test]
fn lengths_that_contradict_each_other_are_refused() -> Result<()> {
    let (_daemon, sidecar) = start()?;
    let body = write::call("supervisor.getState", &[]);
    let length = body.len();
    let cases = [
        // Two lengths: the daemon takes the first.
        (
            format!("Content-Length: {length}\r\nContent-Length: 5"),
            400,
        ),
        (
            format!("Content-Length: 5\r\nContent-Length: {length}"),
            400,
        ),
        (format!("Content-Length: {length}, {length}"), 400),
        // The daemon accepts these as numbers.
        (format!("Content-Length: +{length}"), 400),
        (format!("Content-Length: {length}_0"), 400),
        ("Content-Length: -1".to_owned(), 400),
        ("Content-Length: x".to_owned(), 400),
        ("Content-Length:".to_owned(), 400),
        // Beside chunked encoding the length is ignored, and a request without a length gets 411.
        (
            format!("Content-Length: {length}\r\nTransfer-Encoding: chunked"),
            411,
        ),
        (
            format!("Transfer-Encoding: chunked\r\nContent-Length: {length}"),
            411,
        ),
        (
            format!("Transfer-Encoding: identity\r\nContent-Length: {length}"),
            400,
        ),
        // The same length twice counts as one.
        (
            format!("Content-Length: {length}\r\nContent-Length: {length}"),
            200,
        ),
    ];
    for (lines, status) in cases {
        let sent = if lines.contains("chunked") {
            framings(&body)[1].1.clone()
        } else {
            body.clone()
        };
        let head = format!("POST /RPC2 HTTP/1.1\r\nHost: h\r\n{lines}\r\n\r\n");
        let mut connection = Connection::open(sidecar.tcp_addr())?;
        connection.send(&[head.as_bytes(), &sent].concat())?;
        ensure_status(&connection.read_reply()?, status).with_context(|| lines.clone())?;
        if status == 400 {
            ensure!(connection.read(Until::Close)?.is_empty(), "{lines}");
        }
        ensure_in_step(&sidecar, &mut connection).with_context(|| lines)?;
    }
    Ok(())
}

#[test]
fn calls_without_a_length_get_411() -> Result<()> {
    let (daemon, sidecar) = start()?;
    let chunked = framings(&write::call("supervisor.getState", &[]));
    for target in ["/RPC2", "/", "/index.html", "/tail.html"] {
        for (line, body) in [
            ("X: y", &Vec::new()),
            ("Transfer-Encoding: chunked", &chunked[1].1),
        ] {
            let head = format!("POST {target} HTTP/1.1\r\nHost: h\r\n{line}\r\n\r\n");
            let direct = exchange(daemon.addr(), head.as_bytes(), Until::Reply)?;
            let mut connection = Connection::open(sidecar.tcp_addr())?;
            connection.send(&[head.as_bytes(), body].concat())?;
            let reply = connection.read_reply()?;
            ensure_status(&reply, 411)?;
            reply.ensure_same_as(&Reply::parse(&direct)?)?;
            ensure_in_step(&sidecar, &mut connection)?;
        }
    }
    Ok(())
}

/// The daemon never answers an empty body, and closes the connection after one that is not UTF-8. Through
/// the proxy both get status 400.
#[test]
fn empty_and_undecodable_bodies_are_answered() -> Result<()> {
    let (daemon, sidecar) = start()?;
    let post = |body: &[u8]| {
        let length = body.len();
        let head = format!("POST /RPC2 HTTP/1.1\r\nHost: h\r\nContent-Length: {length}\r\n\r\n");
        [head.as_bytes(), body].concat()
    };
    let mut direct = Connection::open(daemon.addr())?;
    direct.send(&post(b""))?;
    let latin = "<?xml version='1.0' encoding='iso-8859-1'?><methodCall><methodName>caf";
    let latin = [latin.as_bytes(), b"\xe9</methodName></methodCall>"].concat();
    for body in [b"".as_slice(), &latin, b"\xff"] {
        let mut connection = Connection::open(sidecar.tcp_addr())?;
        connection.send(&post(body))?;
        ensure_status(&connection.read_reply()?, 400)?;
        ensure_in_step(&sidecar, &mut connection)?;
    }
    ensure!(exchange(daemon.addr(), &post(&latin), Until::Close)?.is_empty());
    ensure!(direct.read(Until::Quiet(SILENCE))?.is_empty());
    // A form may be empty.
    let form = b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n";
    let reply = Reply::parse(&exchange(sidecar.tcp_addr(), form, Until::Reply)?)?;
    ensure_answers(&reply, "Supervisor Status")
}

#[test]
fn clients_that_expect_100_continue_get_it() -> Result<()> {
    let (_daemon, sidecar) = start()?;
    let body = write::call("supervisor.getState", &[]);
    let length = body.len();
    let mut connection = Connection::open(sidecar.tcp_addr())?;
    let head = format!(
        "POST /RPC2 HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: {length}\r\n\r\n"
    );
    connection.send(head.as_bytes())?;
    let interim = Reply::parse(&connection.read(Until::Head)?)?;
    ensure_status(&interim, 100)?;
    connection.send(&body)?;
    ensure_answers(&connection.read_reply()?, "statename")?;
    ensure_in_step(&sidecar, &mut connection)
}

/// A client that closes its sending side after its request gets its answer.
#[test]
fn clients_that_close_their_sending_side_get_their_answer() -> Result<()> {
    let (daemon, sidecar) = start()?;
    let get = b"GET /nothing HTTP/1.0\r\n\r\n".to_vec();
    for addr in [
        daemon.addr(),
        sidecar.tcp_addr().into(),
        Addr::Unix(sidecar.socket()),
    ] {
        for request in [&get, &call("supervisor.getState")] {
            let mut connection = Connection::open(&addr)?;
            connection.send(request)?;
            connection.finish_sending()?;
            let received = connection.read(Until::Close)?;
            let reply = Reply::parse(&received).with_context(|| format!("{addr}"))?;
            ensure!(matches!(reply.status, 200 | 404), "{reply:?}");
        }
    }
    Ok(())
}

// --- Pipelined requests ---

#[test]
fn requests_sent_together_are_answered_in_order() -> Result<()> {
    let (_daemon, sidecar) = start()?;
    let requests = [
        call("supervisor.getAPIVersion"),
        b"GET /nothing HTTP/1.1\r\nHost: h\r\n\r\n".to_vec(),
        b"GET / HTTP/1.1\r\nHost: h\r\n\r\n".to_vec(),
        call("supervisor.getState"),
        b"POST /RPC2 HTTP/1.1\r\nHost: h\r\nContent-Length: 7\r\n\r\nrubbish".to_vec(),
        b"GET /images/icon.png HTTP/1.1\r\nHost: h\r\n\r\n".to_vec(),
        call("supervisor.getIdentification"),
    ];
    let mut connection = Connection::open(sidecar.tcp_addr())?;
    connection.send(&requests.concat())?;
    let statuses = [200, 404, 200, 200, 400, 200, 200];
    let replies = Reply::parse_all(&connection.read(Until::Replies(statuses.len()))?)?;
    let received: Vec<u16> = replies.iter().map(|reply| reply.status).collect();
    ensure!(received == statuses, "{received:?}");
    ensure_answers(&replies[0], "3.0")?;
    ensure_answers(&replies[3], "statename")?;
    ensure_answers(&replies[6], "<string>supervisor</string>")
}

/// The daemon itself mixes up both replies.
#[test]
fn a_pipelined_request_after_a_waiting_call_gets_its_reply_in_order() -> Result<()> {
    let (daemon, sidecar) = start()?;
    let body = write::call("supervisor.startProcess", &["slow".into()]);
    let head = format!(
        "POST /RPC2 HTTP/1.1\r\nHost: h\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    let mut connection = Connection::open(sidecar.tcp_addr())?;
    connection.send(&[head.into_bytes(), body, call("supervisor.getAPIVersion")].concat())?;
    daemon.wait_for_state("slow", "STARTING")?;
    let start_of_call = Instant::now();
    sidecar.client().call("supervisor.getAPIVersion", ())?;
    ensure!(
        start_of_call.elapsed() < Duration::from_secs(1) && daemon.state("slow")? == "STARTING"
    );
    let replies = Reply::parse_all(&connection.read(Until::Replies(2))?)?;
    ensure_answers(&replies[0], "<boolean>1</boolean>")?;
    ensure_answers(&replies[1], "<string>3.0</string>")
}

/// No client ever gets the reply to another client.
#[test]
fn many_clients_at_once_get_their_own_replies() -> Result<()> {
    let (_daemon, sidecar) = start()?;
    thread::scope(|scope| {
        let client = |number: usize| {
            let sidecar = &sidecar;
            scope.spawn(move || -> Result<()> {
                let client = match number % 3 {
                    0 => sidecar.client(),
                    1 => sidecar.client().kept_alive(),
                    _ => sidecar.socket_client().kept_alive(),
                };
                for turn in 0..30 {
                    let name = format!("nobody-{number}-{turn}");
                    let fault =
                        client.expect_fault("supervisor.getProcessInfo", (name.as_str(),))?;
                    ensure!(
                        fault.text == format!("BAD_NAME: {name}"),
                        "{name}: {fault:?}"
                    );
                    let page = client.get(&format!("/?message={name}"))?;
                    ensure!(
                        page.status == 200 && page.text().contains(&name),
                        "{name}: {page:?}"
                    );
                }
                Ok(())
            })
        };
        let clients: Vec<_> = (0..8).map(client).collect();
        clients.into_iter().try_for_each(|client| {
            client
                .join()
                .map_err(|_| anyhow::anyhow!("a client panicked"))?
        })
    })
}

// --- Sizes ---

#[test]
fn large_arguments_and_replies() -> Result<()> {
    let (daemon, sidecar) = start()?;
    let log: String = (0..BIG / 8).map(|line| format!("{line:07}\n")).collect();
    fs::write(daemon.dir().join("big.log"), &log)?;
    let reply = sidecar
        .client()
        .call("supervisor.readProcessStdoutLog", ("big", 0, 0))?;
    ensure!(text(&reply)? == log);

    let fault = sidecar
        .client()
        .expect_fault("supervisor.sendProcessStdin", ("idle", "x".repeat(BIG)))?;
    crate::common::ensure_fault(&fault, 70, "NOT_RUNNING: idle")?;
    let name = "n".repeat(BIG);
    let fault = sidecar
        .client()
        .expect_fault("supervisor.getProcessInfo", (name.as_str(),))?;
    ensure!(fault.text == format!("BAD_NAME: {name}"));
    Ok(())
}

#[test]
fn bodies_above_the_limit_are_refused() -> Result<()> {
    let (_daemon, sidecar) = start()?;
    let length = supervisor_twiddler::body::MAX_BODY + 1;
    let head = format!("POST /RPC2 HTTP/1.1\r\nHost: h\r\nContent-Length: {length}\r\n\r\n");
    let request = [head.into_bytes(), vec![b'x'; length]].concat();
    let reply = Reply::parse(&exchange(sidecar.tcp_addr(), &request, Until::Reply)?)?;
    ensure_status(&reply, 413)
}

#[test]
fn large_headers() -> Result<()> {
    let (daemon, sidecar) = start()?;
    let ask = |addr: Addr| -> Result<Reply> {
        let value = "v".repeat(200_000);
        Client::new(addr).request("GET", "/images/icon.png", &[("X-Large", &value)], None)
    };
    let (direct, mut proxied) = (ask(daemon.addr())?, ask(sidecar.tcp_addr().into())?);
    proxied
        .header_lines
        .retain(|line| line != "Connection: close");
    proxied.ensure_same_as(&direct)?;
    // The daemon writes the host into its redirect.
    let host = "h".repeat(50_000); // The daemon cuts a head at 64 KB.
    let request = format!("GET /?action=refresh HTTP/1.1\r\nHost: {host}\r\n\r\n");
    let reply = Reply::parse(&exchange(
        sidecar.tcp_addr(),
        request.as_bytes(),
        Until::Reply,
    )?)?;
    ensure_status(&reply, 301)?;
    let location = reply.header("location").unwrap_or_default();
    ensure!(location.starts_with("./?message=Page%20refreshed"));
    Ok(())
}

#[test]
fn replies_that_are_not_xml_are_forwarded_unchanged() -> Result<()> {
    let (daemon, sidecar) = start()?;
    fs::write(
        daemon.dir().join("big.log"),
        "\u{1b}[31mred\u{0}]]>&\u{1f600}\r\n",
    )?;
    let body = write::call(
        "supervisor.readProcessStdoutLog",
        &["big".into(), 0.into(), 0.into()],
    );
    let (direct, proxied) = (
        daemon.client().post_call(&body)?,
        sidecar.client().post_call(&body)?,
    );
    ensure!(direct.body == proxied.body, "{}", shown(&proxied.body));
    ensure!(
        proxied.content().contains(&0x1b),
        "the log holds no byte that XML forbids"
    );
    let info = sidecar
        .client()
        .call("supervisor.getProcessInfo", ("big",))?;
    ensure!(text(member(&info, "name")?)? == "big");
    Ok(())
}
