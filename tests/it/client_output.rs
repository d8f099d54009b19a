//! The output of the command line in JSON and in its documentation, and the ways to find a server.

use std::fs;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use crate::common::ctl::python_command;
use crate::common::schema::ensure_documents;
use crate::common::sidecar::{twiddler_command, verb_command};
use crate::common::{
    Daemon, DaemonOptions, LIMIT, Process, Sidecar, SidecarOptions, eventually, run, stderr_text,
    stdout_text,
};
use anyhow::{Context, Result, ensure};

const PROGRAMS: &str = "
[group:web]
programs=api

[program:api]
command=cat
startsecs=0

[program:lone]
command=cat
autostart=false
";

fn verb(server: &str, words: &[&str]) -> Result<Output> {
    run(&mut verb_command(server, words))
}

#[test]
fn json_output_matches_the_schema() -> Result<()> {
    let daemon = Daemon::start(PROGRAMS)?;
    let sidecar = Sidecar::start(&daemon)?;
    daemon.wait_for_state("web:api", "RUNNING")?;
    let server = format!("unix://{}", sidecar.socket().display());
    for (schema, words) in [
        ("status", &["status"][..]),
        ("start", &["start", "lone"]),
        ("restart", &["restart", "web:*", "lone"]),
        ("restart --rolling", &["restart", "web:*", "--rolling", "1"]),
        ("signal", &["signal", "CONT", "web:api"]),
        ("stop", &["stop", "nobody:*", "lone"]),
        (
            "add",
            &[
                "add",
                "web:x",
                "-O",
                "startsecs=0",
                "--",
                "sh",
                "-c",
                "echo x; exec cat",
            ],
        ),
        ("groups", &["groups"]),
        ("add-group", &["add-group", "new"]),
        ("remove-group", &["remove-group", "new"]),
    ] {
        let words = [words, &["-o", "json"]].concat();
        // The words after -- belong to the command.
        let words = match words.iter().position(|word| *word == "--") {
            Some(at) => [&["-o", "json"], &words[..at], &words[at..words.len() - 2]].concat(),
            None => words,
        };
        let output = verb(&server, &words)?;
        ensure_documents(schema, &stdout_text(&output))
            .with_context(|| format!("{words:?}: {}", stderr_text(&output)))?;
    }
    eventually(LIMIT, || {
        let output = verb(&server, &["logs", "web:x", "-o", "json"])?;
        ensure_documents("logs", &stdout_text(&output))
    })?;
    let output = verb(&server, &["remove", "--stop", "web:x", "-o", "json"])?;
    ensure_documents("remove", &stdout_text(&output))
}

/// A full disk and a closed terminal are errors; a closed pipe is none.
#[test]
fn a_failing_output_is_an_error_and_a_closed_pipe_is_none() -> Result<()> {
    let daemon = Daemon::start(PROGRAMS)?;
    let sidecar = Sidecar::start(&daemon)?;
    daemon.wait_for_state("web:api", "RUNNING")?;
    let server = format!("unix://{}", sidecar.socket().display());
    for words in [
        &["status"][..],
        &["status", "-o", "json"],
        &["status", "-o", "name"],
        &["restart", "web:*"],
        &["restart", "web:*", "--rolling", "1"],
        &["groups"],
        &["programs"],
        &["scale", "web:api=1", "-o", "json"],
        &["call", "supervisor.getState"],
        &["run", "--", "echo", "x"],
        &["completions", "bash"],
        &["completions", "fish"],
        &["man"],
        &["--help"],
        &["run", "--help"],
        &["--version"],
    ] {
        let with_output = |output: std::process::Stdio| {
            let mut command = verb_command(&server, words);
            let child = command.stdout(output).stderr(std::process::Stdio::piped());
            Ok::<_, anyhow::Error>(child.spawn()?.wait_with_output()?)
        };
        let full = with_output(fs::File::options().write(true).open("/dev/full")?.into())?;
        let stderr = stderr_text(&full);
        assert_eq!(full.status.code(), Some(1), "{words:?}: {stderr}");
        ensure!(
            stderr.contains("cannot print: No space left"),
            "{words:?}: {stderr}"
        );
        let (reader, writer) = std::io::pipe()?;
        drop(reader);
        let closed = with_output(writer.into())?;
        let stderr = stderr_text(&closed);
        ensure!(!stderr.contains("twiddler:"), "{words:?}: {stderr}");
        // The work was finished all the same.
        assert_eq!(daemon.state("web:api")?, "RUNNING", "{words:?}");
    }
    Ok(())
}

/// The commands of the documented session, and their output.
fn session() -> Result<Vec<(String, String)>> {
    let text = include_str!("../../docs/command-line.md");
    let (_, block) = text.split_once("```console\n").context("no session")?;
    let (block, _) = block.split_once("```").context("no end of the session")?;
    let mut steps: Vec<(String, String)> = Vec::new();
    for line in block.lines() {
        match (line.strip_prefix("$ "), steps.last_mut()) {
            (Some(command), _) => steps.push((command.to_owned(), String::new())),
            (None, Some((_, printed))) => *printed += &format!("{line}\n"),
            (None, None) => anyhow::bail!("{line:?} belongs to no command"),
        }
    }
    Ok(steps)
}

/// The text without pids, times and widths of columns, which differ.
fn in_general(text: &str) -> String {
    let mut out = String::new();
    for line in text.lines() {
        let words: Vec<String> = line.split_whitespace().map(number_for_numbers).collect();
        out += &(words.join(" ") + "\n");
    }
    out
}

fn number_for_numbers(word: &str) -> String {
    if word.len() > 2 && word.chars().all(|c| c.is_ascii_digit() || c == ':') {
        "N".to_owned()
    } else {
        word.to_owned()
    }
}

#[test]
fn the_documented_session_is_true() -> Result<()> {
    let daemon = Daemon::start(PROGRAMS)?;
    let sidecar = Sidecar::start(&daemon)?;
    daemon.wait_for_state("web:api", "RUNNING")?;
    let binary = std::path::Path::new(env!("CARGO_BIN_EXE_twiddler"));
    let dir = binary.parent().context("no directory")?;
    for (typed, expected) in session()? {
        // The output of a process reaches its log a moment later.
        let is_log = typed.starts_with("twiddler logs");
        eventually(LIMIT, || {
            let mut shell = Command::new("sh");
            let path = format!("{}:/usr/bin:/bin", dir.display());
            let server = format!("unix://{}", sidecar.socket().display());
            shell
                .env_clear()
                .env("PATH", path)
                .env("TWIDDLER_SERVER", server);
            let output = run(shell.args(["-c", &format!("{{ {typed}\n}} 2>&1")]))?;
            let printed = in_general(&stdout_text(&output));
            let differs = printed != in_general(&expected);
            ensure!(!(differs && is_log), "{typed}: {printed}");
            Ok(if differs {
                Err(anyhow::anyhow!("{typed}: {printed}"))
            } else {
                Ok(())
            })
        })??;
    }
    Ok(())
}

#[test]
fn credentials_come_from_the_same_places_as_supervisorctls() -> Result<()> {
    let daemon = Daemon::start_with(DaemonOptions {
        body: PROGRAMS,
        credentials: Some(("user", "s3cret%")),
        ..DaemonOptions::default()
    })?;
    daemon.wait_for_state("web:api", "RUNNING")?;
    let sidecar = Sidecar::start(&daemon)?;
    let conf = daemon.dir().join("client.conf");
    fs::write(&conf, "[supervisorctl]\nusername=user\npassword=s3cret%%\n")?;
    let conf = conf.to_string_lossy().into_owned();
    for server in [daemon.socket().to_path_buf(), sidecar.socket()] {
        let server = format!("unix://{}", server.display());
        for words in [
            &["status", "web:api", "-c", &conf][..],
            &["-c", &conf, "status", "web:api"],
        ] {
            let output = verb(&server, words)?;
            assert_eq!(output.status.code(), Some(0), "{}", stderr_text(&output));
        }
        let mut command = twiddler_command();
        command
            .env("TWIDDLER_SERVER", &server)
            .env("TWIDDLER_CLIENT_USERNAME", "user")
            .env("TWIDDLER_CLIENT_PASSWORD", "s3cret%")
            .args(["status", "web:api"]);
        assert_eq!(run(&mut command)?.status.code(), Some(0));
        let wrong = verb(&server, &["status", "-u", "user", "-p", "other"])?;
        assert_eq!(wrong.status.code(), Some(77));
        let stderr = stdout_text(&wrong) + &stderr_text(&wrong);
        ensure!(
            !stderr.contains("other") && stderr.contains("[supervisorctl]"),
            "{stderr}"
        );
    }
    Ok(())
}

#[test]
fn verbs_speak_tls_to_servers_that_the_system_trusts() -> Result<()> {
    let daemon = Daemon::start(PROGRAMS)?;
    let plain = Sidecar::start(&daemon)?;
    let wrong = verb(&format!("https://{}", plain.tcp_addr()), &["status"])?;
    assert_eq!(wrong.status.code(), Some(69));
    let stderr = stderr_text(&wrong);
    ensure!(
        stderr.contains("does not speak TLS: write http://"),
        "{stderr}"
    );
    drop(plain);
    daemon.wait_for_state("web:api", "RUNNING")?;
    let certificate = rcgen::generate_simple_self_signed(["localhost".to_owned()])?;
    let path = |name: &str| daemon.dir().join(name).to_string_lossy().into_owned();
    let (cert, key) = (path("cert.pem"), path("key.pem"));
    fs::write(&cert, certificate.cert.pem())?;
    fs::write(&key, certificate.signing_key.serialize_pem())?;
    let sidecar = Sidecar::start_options(
        &daemon,
        SidecarOptions {
            arguments: &["--tls-cert", &cert, "--tls-key", &key],
            ..SidecarOptions::default()
        },
    )?;
    let server = format!("https://localhost:{}", sidecar.tcp_addr().port());
    let mut command = twiddler_command();
    command.env("SSL_CERT_FILE", &cert).args(["-s", &server]);
    let words = ["run", "--", "sh", "-c", "echo over TLS; exit 9"];
    let output = run(command.args(words))?;
    assert_eq!(output.status.code(), Some(9), "{}", stderr_text(&output));
    assert_eq!(stdout_text(&output), "over TLS\n");
    let stranger = verb(&server, &["status"])?;
    assert_eq!(stranger.status.code(), Some(69));
    ensure!(
        stderr_text(&stranger).contains("ertificate"),
        "{}",
        stderr_text(&stranger)
    );
    let wrong = verb(&server.replace("https", "http"), &["status"])?;
    assert_eq!(wrong.status.code(), Some(69), "{}", stderr_text(&wrong));
    Ok(())
}

/// Makes the calls of `supervisorctl status` (`supervisorctl.py`, `upcheck` and `do_status`) with its
/// transport, and prints the seconds of each round. A round begins when it reads a line.
const STATUS_CALLS: &str = "
import sys, time, xmlrpc.client
from supervisor.xmlrpc import SupervisorTransport
for line in sys.stdin:
    begun = time.monotonic()
    transport = SupervisorTransport(None, None, sys.argv[1])
    server = xmlrpc.client.ServerProxy('http://127.0.0.1', transport=transport)
    server.supervisor.getVersion()
    server.supervisor.getAllProcessInfo()
    transport.close()
    print(time.monotonic() - begun, flush=True)
";
/// How much longer than the calls a verb may take, with the start and the end of its process.
const MORE: Duration = Duration::from_millis(15);
const ROUNDS: usize = 15;
/// How many series are measured. One without load from other processes is enough.
const SERIES: usize = 10;

#[test]
fn a_verb_takes_little_longer_than_the_calls_of_supervisorctl() -> Result<()> {
    let daemon = Daemon::start(PROGRAMS)?;
    let sidecar = Sidecar::start(&daemon)?;
    daemon.wait_for_state("web:api", "RUNNING")?;
    let server = format!("unix://{}", sidecar.socket().display());
    let mut calls = python_command(STATUS_CALLS);
    let calls = Process::spawn(calls.arg(&server))?;
    let mut best = Duration::MAX;
    for _ in 0..SERIES {
        let mut differences = Vec::new();
        for _ in 0..ROUNDS {
            let calls_time = next_round(&calls)?;
            let mut status = twiddler_command();
            let start = Instant::now();
            // The fixture polls the process, which would add to the time.
            let output = status.args(["-s", &server, "status"]).output()?;
            let verb_time = start.elapsed();
            ensure!(stdout_text(&output).contains("web:api"));
            differences.push(verb_time.saturating_sub(calls_time));
        }
        differences.sort();
        best = best.min(differences[ROUNDS / 2]);
        if best <= MORE {
            return Ok(());
        }
    }
    anyhow::bail!("{best:?} longer")
}

/// The time of the next round.
fn next_round(calls: &Process) -> Result<Duration> {
    let before = calls.stdout_text().lines().count();
    calls.write(b"\n")?;
    let line = eventually(LIMIT, || {
        let text = calls.stdout_text();
        let line = text.lines().nth(before).map(str::to_owned);
        line.context("no answer")
    })?;
    Ok(Duration::from_secs_f64(line.parse()?))
}
