//! The proxy's log: the format of its lines, and the callers that they name.

use crate::common::{Daemon, DaemonOptions, LIMIT, Sidecar, SidecarOptions, eventually, options};
use anyhow::{Context, Result, ensure};
use serde_json::Value as Json;

const ADD: &str = "twiddler.addProgramToGroup";

/// Runs the proxy as systemd does, with a stream of the journal as its standard error.
const AS_A_UNIT: [&str; 3] = [
    "/bin/sh",
    "-c",
    "JOURNAL_STREAM=$(stat -L -c %d:%i /proc/self/fd/2) exec \"$0\" \"$@\"",
];

#[test]
fn json_lines_are_flat() -> Result<()> {
    let daemon = Daemon::start("")?;
    let sidecar = Sidecar::start_with(&daemon, &["--log-format", "json"])?;
    let log = sidecar.wait_for_stderr("in front of supervisord")?;
    let lines = log.lines().map(serde_json::from_str::<Json>);
    for line in lines {
        let line = line?;
        for key in ["timestamp", "level", "message"] {
            ensure!(line[key].is_string(), "no {key}: {line}");
        }
    }
    Ok(())
}

#[test]
fn journald_gets_priorities_and_no_second_time() -> Result<()> {
    let daemon = Daemon::start("")?;
    for format in ["text", "json"] {
        let sidecar = Sidecar::start_options(
            &daemon,
            SidecarOptions {
                launcher: &AS_A_UNIT,
                arguments: &["--log-format", format],
                ..SidecarOptions::default()
            },
        )?;
        let log = sidecar.wait_for_stderr("in front of supervisord")?;
        for line in log.lines() {
            let (priority, line) = line.split_once('>').context("no priority")?;
            let level = match format {
                "json" => {
                    let line: Json = serde_json::from_str(line)?;
                    ensure!(line["timestamp"].is_null(), "{line}");
                    line["level"].as_str().unwrap_or_default().to_owned()
                }
                _ => line
                    .split_whitespace()
                    .next()
                    .unwrap_or_default()
                    .to_owned(),
            };
            let expected = match &*level {
                "WARN" => "<4",
                "INFO" => "<6",
                _ => "no level",
            };
            ensure!(priority == expected, "{log}");
        }
    }
    Ok(())
}

#[test]
fn an_inherited_journal_stream_of_another_process_is_ignored() -> Result<()> {
    let daemon = Daemon::start("")?;
    let sidecar = Sidecar::start_options(
        &daemon,
        SidecarOptions {
            environment: &[("JOURNAL_STREAM", "9:12345")],
            ..SidecarOptions::default()
        },
    )?;
    let log = sidecar.wait_for_stderr("in front of supervisord")?;
    ensure!(log.lines().all(|line| line.starts_with("20")), "{log}");
    Ok(())
}

// --- Who did what ---

const SECRET: &str = "hunter2";

/// The lines of the log that contain this text.
fn lines<'a>(log: &'a str, part: &str) -> Vec<&'a str> {
    log.lines().filter(|line| line.contains(part)).collect()
}

/// Options that are refused, and the reason in the log. The reasons of the proxy are complete, and those of
/// the daemon lack the values.
const REFUSED: &[(&[(&str, &str)], &str)] = &[
    (
        &[("numprocs", "0")],
        "option 'numprocs': has to be from 1 to 1000 peer=",
    ),
    (
        &[("stdout_logfile", "/dev/hunter2")],
        "option 'stdout_logfile': needs stdout_logfile_maxbytes to be 0 for a device peer=",
    ),
    (
        &[("hunter2 x", "1")],
        "option …: not a name that can be written to a file: there is white space in it peer=",
    ),
    (
        &[("environment", "A=\"%(hunter2)s\"")],
        "Format string … for 'environment' contains names (…) which cannot be expanded. Available names: ",
    ),
    (
        &[("stopsignal", "hunter2")],
        "value … is not a valid signal name peer=",
    ),
    (
        &[("stopasgroup", "true"), ("killasgroup", "false")],
        "Cannot set stopasgroup=true and killasgroup=false peer=",
    ),
];

#[test]
fn each_change_is_a_line_with_its_caller_and_its_outcome() -> Result<()> {
    let daemon = Daemon::start_with(DaemonOptions {
        credentials: Some(("joe", SECRET)),
        body: "[program:cat]\ncommand = /bin/cat\n",
        ..DaemonOptions::default()
    })?;
    let sidecar = Sidecar::start(&daemon)?;
    let client = sidecar.client();
    let valid = options(&[
        ("command", "/bin/cat"),
        ("autostart", "false"),
        ("environment", "TOKEN=\"hunter2\""),
        ("autostrat", SECRET),
    ]);
    let broken = options(&[("command", "/bin/cat"), ("startsecs", SECRET)]);
    let ill = options(&[("command", "/bin/cat"), ("user", "hunter2\nno-such-user")]);
    client.call("twiddler.addGroup", ("dyn", 1))?;
    client.call(ADD, ("dyn", "a", &valid))?;
    for (method, params) in [
        (ADD, params!["dyn", "a", &valid]),
        (ADD, params!["nowhere", "a", &valid]),
        (ADD, params!["dyn", "b", &broken]),
        (ADD, params!["dyn", "b", &ill]),
        (ADD, params!["dyn", "b c\nd", &valid]),
        (
            "twiddler.removeProcessFromGroup",
            params!["dyn", "no\nbody"],
        ),
        ("twiddler.makeTea", params![]),
    ] {
        client.expect_fault(method, params)?;
    }
    client.call("twiddler.removeProcessFromGroup", ("dyn", "a"))?;
    client.call("twiddler.removeGroup", ("dyn",))?;
    let log = sidecar.wait_for_stderr("removed group dyn")?;
    for (part, count) in [
        ("added group dyn ", 1),
        ("added program dyn:a ", 1),
        ("did not add program dyn:a: BAD_NAME: a ", 1),
        (
            "did not add program nowhere:a: BAD_NAME: group: nowhere ",
            1,
        ),
        (
            "did not add program dyn:b c\\nd: INCORRECT_PARAMETERS: Invalid name: 'b c\\\\nd' because of character: ' ' ",
            1,
        ),
        (
            "did not add program dyn:b: INCORRECT_PARAMETERS: invalid literal for int() with base 10: … ",
            1,
        ),
        (
            "did not add program dyn:b: INCORRECT_PARAMETERS: Invalid user name … ",
            1,
        ),
        (
            "did not remove process dyn:no\\nbody: BAD_NAME: no\\nbody ",
            1,
        ),
        ("refused twiddler.makeTea: UNKNOWN_METHOD ", 1),
        ("removed process dyn:a ", 1),
        ("removed group dyn ", 1),
    ] {
        let lines = lines(&log, part);
        ensure!(lines.len() == count, "{part:?}: {lines:?}\n{log}");
        for line in lines {
            ensure!(line.contains(" INFO "), "{line}");
            for field in ["peer=127.0.0.1:", "user=\"joe\"", "ms="] {
                ensure!(line.contains(field), "no {field}: {line}");
            }
        }
    }
    for (refused, reason) in REFUSED {
        let mut all = vec![("command", "/bin/cat"), ("directory", "/hunter2-%(here)s")];
        all.extend_from_slice(refused);
        client.expect_fault(ADD, ("cat", "c", options(&all)))?;
        let line = format!("did not add program cat:c: INCORRECT_PARAMETERS: {reason}");
        sidecar.wait_for_stderr(&line)?;
    }
    let log = sidecar.stderr_text();
    let misspelt = "program dyn:a: supervisord ignores the option autostrat; write autostart";
    let warned = lines(&log, misspelt);
    ensure!(warned.len() == 1 && warned[0].contains(" WARN "), "{log}");
    ensure!(!log.contains(SECRET), "{log}");
    Ok(())
}

#[test]
fn unauthorized_callers_are_not_named() -> Result<()> {
    let daemon = Daemon::start("")?;
    let sidecar = Sidecar::start(&daemon)?;
    let client = sidecar.client().with_credentials("mallory", SECRET);
    client.call("twiddler.addGroup", ("dyn", 1))?;
    let client = sidecar.socket_client();
    client.call("twiddler.removeGroup", ("dyn",))?;
    let log = sidecar.wait_for_stderr("removed group dyn")?;
    ensure!(!log.contains("mallory"), "{log}");
    let account = format!("peer=uid:{}", nix::unistd::geteuid());
    ensure!(
        lines(&log, "removed group dyn")[0].contains(&account),
        "{log}"
    );
    Ok(())
}

#[test]
fn each_request_is_a_line_at_debug_without_its_values() -> Result<()> {
    let daemon = Daemon::start("[program:a]\ncommand=/bin/cat\nstartsecs=0\n")?;
    daemon.wait_for_state("a", "RUNNING")?;
    let sidecar = Sidecar::start_with(
        &daemon,
        &[
            "--log-level",
            "debug",
            "--username",
            "joe",
            "--password",
            SECRET,
        ],
    )?;
    let client = sidecar.client().with_credentials("joe", SECRET);
    client.call("supervisor.getProcessInfo", ("a",))?;
    client.call("supervisor.sendProcessStdin", ("a", SECRET))?;
    client.expect_fault("supervisor.startProcess", ("a",))?;
    client.expect_fault("supervisor.getProcessInfo", (SECRET,))?;
    client.get("/tail.html?processname=hunter2")?;
    let log = sidecar.wait_for_stderr("/tail.html")?;
    for (method, outcome) in [
        ("supervisor.getProcessInfo", "status=200 ms="),
        ("supervisor.sendProcessStdin", "status=200 ms="),
        ("supervisor.startProcess", "status=200 fault=60 ms="),
        ("supervisor.getProcessInfo", "status=200 fault=10 ms="),
        ("GET /tail.html", "status=200 ms="),
    ] {
        let expected = format!("user=\"joe\" method=\"{method}\" {outcome}");
        let lines = lines(&log, &expected);
        ensure!(lines.len() == 1, "{expected}\n{log}");
        ensure!(
            lines[0].contains("DEBUG answered peer=127.0.0.1:"),
            "{}",
            lines[0]
        );
    }
    ensure!(!log.contains(SECRET), "{log}");
    Ok(())
}

#[test]
fn a_flood_of_one_warning_is_a_line_and_a_count() -> Result<()> {
    let daemon = Daemon::start("")?;
    let sidecar = Sidecar::start_with(&daemon, &["--username", "joe", "--password", SECRET])?;
    let client = sidecar.client().with_credentials("joe", SECRET);
    let stranger = sidecar.client().with_credentials("joe", "wrong");
    let origin = [("Origin", "http://evil.example")];
    daemon.kill()?;
    for _ in 0..20 {
        ensure!(client.call("supervisor.getState", ()).is_err());
        ensure!(stranger.call("supervisor.getState", ()).is_err());
        let reply = client.request("POST", "/RPC2", &origin, Some(b"<methodCall/>"))?;
        ensure!(reply.status == 403, "{reply:?}");
    }
    let log = sidecar.stderr_text();
    for status in ["401", "403", "502"] {
        let lines = lines(&log, &format!("answered {status}"));
        ensure!(lines.len() == 1, "{lines:#?}\n{log}");
        ensure!(lines[0].contains(" WARN "), "{log}");
    }
    ensure!(
        lines(&log, "answered 403")[0].contains("path=\"/RPC2\" origin=\"http://evil.example\""),
        "{log}"
    );
    ensure!(
        lines(&log, "answered 502")[0].contains("does not answer"),
        "{log}"
    );
    daemon.start_again()?;
    eventually(LIMIT, || Ok(client.call("supervisor.getState", ())?))?;
    let log = sidecar.wait_for_stderr("answered 502: ")?;
    // The counted ones, and the ones while the daemon started.
    let count = lines(&log, "answered 502: ")[0];
    ensure!(count.contains(" times more"), "{count}");
    // The last count is logged at the end.
    sidecar.stop()?;
    let log = sidecar.stderr_text();
    for status in ["401", "403"] {
        ensure!(
            lines(&log, &format!("answered {status}: 19 times more")).len() == 1,
            "{log}"
        );
    }
    ensure!(!log.contains(SECRET) && !log.contains("wrong"), "{log}");
    Ok(())
}
