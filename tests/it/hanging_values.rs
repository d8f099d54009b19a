//! The proxy refuses values that would block the daemon before it asks the daemon, and accepts others.

use std::fs;
use std::os::unix::fs::symlink;
use std::time::{Duration, Instant};

use crate::common::changes::USER;
use crate::common::process::{run, succeeded};
use crate::common::{CallError, Client, Daemon, LIMIT, Sidecar, eventually, options};
use anyhow::{Context, Result, ensure};
use supervisor_twiddler::xmlrpc::Value;

/// How long the daemon may take to answer on a loaded machine; it needs about half a second.
const BUSY: Duration = Duration::from_secs(5);

fn add(client: &Client, name: &str, members: &[(&str, &str)]) -> Result<Value, CallError> {
    client.call(
        "twiddler.addProgramToGroup",
        ("web", name, options(members)),
    )
}

/// Checks that the program is refused with `reason` and that the daemon still answers.
fn ensure_refused(
    daemon: &Daemon,
    client: &Client,
    members: &[(&str, &str)],
    reason: &str,
) -> Result<()> {
    let error = add(client, "refused", members)
        .err()
        .context("it was added")?;
    let fault = error.fault().with_context(|| error.to_string())?;
    ensure!(fault.code == 2 && fault.text.contains(reason), "{fault:?}");
    let since = Instant::now();
    daemon.call("supervisor.getState", ())?;
    ensure!(
        since.elapsed() < BUSY,
        "the daemon was busy for {:?}",
        since.elapsed()
    );
    Ok(())
}

#[test]
fn long_words_and_texts_are_refused() -> Result<()> {
    let daemon = Daemon::start(USER)?;
    let sidecar = Sidecar::start(&daemon)?;
    let client = sidecar.socket_client();
    let word = |kib: usize| "x".repeat(kib * 1024);
    let variables = |kib: usize| format!("A=\"{}\",B=\"{}\"", word(kib / 2), word(kib / 2));
    for (command, environment, reason) in [
        (word(128), String::new(), "a word of 128 KiB"),
        (
            [word(120).as_str(); 8].join(" "),
            String::new(),
            "256 KiB together",
        ),
        (
            "/bin/cat".to_owned(),
            format!("A=\"{}\"", word(300)),
            "256 KiB together",
        ),
        (
            "/bin/cat".to_owned(),
            format!("A=\"{}\"", word(128)),
            "a word of 128 KiB",
        ),
        (
            format!("/bin/cat {}", word(100)),
            variables(200),
            "256 KiB together",
        ),
    ] {
        let members = [("command", command.as_str()), ("environment", &environment)];
        ensure_refused(&daemon, &client, &members, reason)?;
    }
    let many = [
        ("command", format!("/bin/cat {}", word(100))),
        ("numprocs", "50".to_owned()),
        ("process_name", "%(process_num)d".to_owned()),
    ];
    let many: Vec<(&str, &str)> = many
        .iter()
        .map(|(name, text)| (*name, text.as_str()))
        .collect();
    ensure_refused(&daemon, &client, &many, "50 processes")
}

#[test]
fn commands_that_linux_can_execute_are_accepted() -> Result<()> {
    let daemon = Daemon::start(USER)?;
    let sidecar = Sidecar::start(&daemon)?;
    let client = sidecar.socket_client();
    let length = 127 * 1024;
    let command = format!("/bin/sh -c 'sleep 600 # {}'", "x".repeat(length));
    let environment = format!("LONG=\"{}\"", "y".repeat(length - 10));
    let since = Instant::now();
    add(
        &client,
        "long",
        &[("command", &command), ("environment", &environment)],
    )?;
    daemon.call("supervisor.getState", ())?;
    eprintln!(
        "the daemon answers {:?} after the addition",
        since.elapsed()
    );
    crate::common::pages::wait_for_state(&client, "web:long", "RUNNING")?;
    let info = client.call("supervisor.getProcessInfo", ("web:long",))?;
    let pid = crate::common::number(crate::common::member(&info, "pid")?)?;
    let inherited = fs::read(format!("/proc/{pid}/environ"))?;
    ensure!(inherited.windows(5).any(|part| part == b"LONG="));
    Ok(())
}

#[test]
fn logs_that_the_daemon_would_wait_for_are_refused() -> Result<()> {
    let daemon = Daemon::start(USER)?;
    let sidecar = Sidecar::start(&daemon)?;
    let client = sidecar.socket_client();
    let fifo = daemon.dir().join("fifo");
    succeeded(run(std::process::Command::new("mkfifo").arg(&fifo))?)?;
    let link = daemon.dir().join("link.log");
    symlink("fifo", &link)?;
    for path in [&fifo, &link] {
        let path = path.to_string_lossy().into_owned();
        for channel in ["stdout_logfile", "stderr_logfile"] {
            let members = [("command", "/bin/cat"), (channel, path.as_str())];
            ensure_refused(&daemon, &client, &members, "is a FIFO")?;
        }
    }
    let dir = daemon.dir().to_string_lossy().into_owned();
    for process in ["%(program_name)s", "%(process_num)d"] {
        fs::rename(&fifo, daemon.dir().join("0"))?;
        let path = format!("{dir}/{}", process.replace("%(program_name)s", "0"));
        let members = [("command", "/bin/cat"), ("stdout_logfile", path.as_str())];
        ensure_refused(&daemon, &client, &members, "is a FIFO")?;
        fs::rename(daemon.dir().join("0"), &fifo)?;
    }
    Ok(())
}

#[test]
fn log_files_that_are_usual_in_containers_are_accepted() -> Result<()> {
    let daemon = Daemon::start(USER)?;
    let sidecar = Sidecar::start(&daemon)?;
    let client = sidecar.socket_client();
    let link = daemon.dir().join("to-stdout.log");
    symlink("/dev/stdout", &link)?;
    let link = link.to_string_lossy().into_owned();
    let own = daemon.dir().join("own.log").to_string_lossy().into_owned();
    let all = [
        "/dev/null",
        "/dev/stdout",
        "/dev/fd/1",
        "/dev/stderr",
        "syslog",
        "NONE",
        "AUTO",
        &link,
        &own,
    ];
    for (number, path) in all.iter().enumerate() {
        let name = format!("usual{number}");
        let members = [
            ("command", "/bin/cat"),
            ("stdout_logfile", path),
            ("stdout_logfile_maxbytes", "0"),
        ];
        add(&client, &name, &members).with_context(|| (*path).to_owned())?;
        eventually(LIMIT, || {
            let info = client.call("supervisor.getProcessInfo", (format!("web:{name}"),))?;
            let state = crate::common::text(crate::common::member(&info, "statename")?)?.to_owned();
            ensure!(state == "RUNNING", "{path}: {state}");
            Ok(())
        })?;
    }
    Ok(())
}
