//! `twiddler.log` loses no line while the daemon rotates its log, and writes no line to another file.
//!
//! After a rotation the daemon writes without `O_APPEND`, and would overwrite a line that another process
//! has appended (`supervisor/loggers.py`, `doRollover`).

use std::time::Duration;

use anyhow::{Result, ensure};

use crate::common::leftovers::WorkDir;
use crate::common::*;

const CLIENTS: usize = 3;
const LINES: usize = 40;

#[test]
fn no_line_is_lost_while_the_daemon_rotates_its_log() -> Result<()> {
    let daemon = Daemon::start_with(DaemonOptions {
        extra_supervisord: "logfile_maxbytes=4KB\nlogfile_backups=400\nloglevel=trace\n",
        ..DaemonOptions::default()
    })?;
    let sidecar = Sidecar::start(&daemon)?;
    std::thread::scope(|scope| {
        let writers: Vec<_> = (0..CLIENTS)
            .map(|client| {
                scope.spawn({
                    let sidecar = &sidecar;
                    move || write_lines(sidecar, client)
                })
            })
            .collect();
        writers
            .into_iter()
            .try_for_each(|writer| writer.join().expect("a writer ended"))
    })?;
    // The daemon's next line would overwrite the last line.
    daemon.call("supervisor.getState", ())?;
    eventually(Duration::from_secs(20), || {
        let log = rotated_log(&daemon)?;
        ensure!(log.contains("SIGUSR2") || !daemon.dir().join("supervisord.log.1").exists());
        for (client, line) in (0..CLIENTS).flat_map(|c| (0..LINES).map(move |l| (c, l))) {
            ensure!(
                log.contains(&format!(" INFO line {client}-{line}.\n")),
                "line {client}-{line}"
            );
        }
        Ok(())
    })
}

fn write_lines(sidecar: &Sidecar, client: usize) -> Result<()> {
    let calls = sidecar.client().kept_alive();
    for line in 0..LINES {
        calls.call("twiddler.log", params![format!("line {client}-{line}.")])?;
    }
    Ok(())
}

/// Returns the texts of the log and of its rotated files.
fn rotated_log(daemon: &Daemon) -> Result<String> {
    let mut text = String::new();
    for entry in std::fs::read_dir(daemon.dir())? {
        let entry = entry?;
        if entry
            .file_name()
            .to_string_lossy()
            .starts_with("supervisord.log")
        {
            text += &String::from_utf8_lossy(&std::fs::read(entry.path())?);
        }
    }
    Ok(text)
}

/// For another process than the daemon, these paths are its own output.
#[test]
fn a_log_that_is_the_daemons_own_output_is_a_fault_and_a_note() -> Result<()> {
    let dir = WorkDir::new("twl-")?;
    let link = dir.path().join("link.log");
    std::os::unix::fs::symlink("/dev/stdout", &link)?;
    for log in [
        "/dev/stdout",
        "/dev/stderr",
        "/dev/fd/1",
        &link.to_string_lossy(),
    ] {
        let extra = format!("logfile = {log}\nlogfile_maxbytes = 0");
        let daemon = Daemon::start_with(DaemonOptions {
            extra_supervisord: &extra,
            ..DaemonOptions::default()
        })?;
        let sidecar = Sidecar::start(&daemon)?;
        let fault = sidecar.client().expect_fault("twiddler.log", ("noted",))?;
        let reason = format!(
            "supervisord logs to {log}, which is its own output and another file for every other process"
        );
        ensure_fault(&fault, 30, &format!("FAILED: {reason}"))?;
        ensure!(
            !sidecar.stderr_text().contains("noted"),
            "the line is on the proxy's own output"
        );
        sidecar.stop()?;
        let conf = daemon.conf();
        let output = twiddler(&["check", "-c", &conf.to_string_lossy()])?;
        let note = format!("note     {reason}, so twiddler.log answers a fault\n");
        ensure!(stdout_text(&output).contains(&note), "{output:?}");
    }
    Ok(())
}

#[test]
fn a_line_for_a_discarded_log_is_not_a_fault() -> Result<()> {
    let daemon = Daemon::start_with(DaemonOptions {
        extra_supervisord: "logfile = /dev/null",
        ..DaemonOptions::default()
    })?;
    let sidecar = Sidecar::start(&daemon)?;
    let answer = sidecar.client().call("twiddler.log", ("noted",))?;
    ensure!(answer == value(true), "{answer:?}");
    Ok(())
}

#[test]
fn a_message_is_one_line_of_the_log_whatever_it_holds() -> Result<()> {
    let daemon = Daemon::start("")?;
    let sidecar = Sidecar::start(&daemon)?;
    let forged = "2026-01-01 00:00:00,000 CRIT forged";
    for (end, escaped) in [
        ("\n", "\\n"),
        ("\r\n", "\\r\\n"),
        ("\u{2028}", "\\u2028"),
        ("\u{85}", "\\x85"),
        ("\u{7f}", "\\x7f"),
    ] {
        let message = format!("before{end}{forged}{end}after");
        sidecar.client().call("twiddler.log", (message,))?;
        let expected = format!(" INFO before{escaped}{forged}{escaped}after\n");
        let line = daemon.wait_for_log(&expected)?;
        ensure!(!line.lines().any(|line| line == forged), "{line}");
    }
    Ok(())
}
