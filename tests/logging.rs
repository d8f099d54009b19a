//! The proxy's own log: what its lines look like, and what they say of whom.

mod common;

use anyhow::{Context, Result, ensure};
use common::{Daemon, Sidecar, SidecarOptions};
use serde_json::Value as Json;

/// Runs the proxy as systemd would, with its standard error as a stream of the journal.
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
            let line = line.strip_prefix("<6>").context("no priority")?;
            match format {
                "json" => ensure!(serde_json::from_str::<Json>(line)?["timestamp"].is_null()),
                _ => ensure!(line.trim_start().starts_with("INFO "), "{line}"),
            }
        }
    }
    Ok(())
}

#[test]
fn an_inherited_journal_stream_that_is_not_ours_means_nothing() -> Result<()> {
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
