//! Stops a daemon by SIGSTOP while it reads a generated file, and waits for a proxy that stops itself.

use std::fmt::Write;
use std::fs;
use std::time::Instant;

use anyhow::{Result, bail, ensure};
use supervisor_twiddler::xmlrpc::{Value, write};

use super::client::Client;
use super::daemon::Daemon;
use super::http::Connection;
use super::sidecar::{Sidecar, SidecarOptions};
use super::wait::{LIMIT, eventually};

/// The name of the generated file.
pub const GENERATED: &str = "zz-twiddler.conf";

/// The number of programs that make a reading slow.
const PROGRAMS: usize = 400;
/// How many changes are made until the daemon stops before it has read the file.
const ATTEMPTS: usize = 20;

/// Sections that make each reading of the files slow.
pub fn slow_sections() -> String {
    sections(PROGRAMS)
}

/// The sections of this many programs that never run.
pub fn sections(programs: usize) -> String {
    let mut sections = String::new();
    for number in 0..programs {
        let _ = write!(
            sections,
            "[program:slow{number}]\ncommand = /bin/cat\nautostart = false\n\
             stdout_logfile = NONE\nstderr_logfile = NONE\n\n"
        );
    }
    sections
}

/// Sends a change through the proxy, and stops the daemon while the generated file exists. `change` makes
/// the call of each attempt. Returns the connection, on which the reply is pending, and the number of the
/// attempt. The earlier attempts have their replies.
pub fn stop_in_a_change(
    daemon: &Daemon,
    client: &Client,
    change: impl Fn(usize) -> (&'static str, Vec<Value>),
) -> Result<(Connection, usize)> {
    let file = daemon.include_dir().join(GENERATED);
    for attempt in 0..ATTEMPTS {
        let (method, params) = change(attempt);
        let mut call = client.connect()?;
        let body = write::call(method, &params);
        call.send(&client.request_bytes("POST", "/RPC2", &[], Some(&body)))?;
        let deadline = Instant::now() + LIMIT;
        // The file may be a link without a target.
        while file.symlink_metadata().is_err() {
            ensure!(Instant::now() < deadline, "no generated file for {method}");
            std::thread::yield_now(); // it is there for milliseconds
        }
        daemon.signal("STOP")?;
        if file.symlink_metadata().is_ok() && !call.is_closed()? {
            return Ok((call, attempt));
        }
        daemon.signal("CONT")?;
        call.read_reply()?;
    }
    bail!("supervisord was never stopped in time")
}

/// A proxy that stops itself once at the point that the daemon's file `stop-at` names.
pub fn stopping_sidecar(daemon: &Daemon, arguments: &[&str], launcher: &[&str]) -> Result<Sidecar> {
    let stop_at = daemon.dir().join("stop-at").to_string_lossy().into_owned();
    Sidecar::start_options(
        daemon,
        SidecarOptions {
            arguments,
            launcher,
            environment: &[("TEST_STOP_AT", &stop_at)],
            ..SidecarOptions::default()
        },
    )
}

/// Waits until a process has stopped itself at its failpoint.
pub fn wait_until_stopped(pid: u32) -> Result<()> {
    eventually(LIMIT, || {
        ensure!(is_stopped(pid)?, "it has not stopped");
        Ok(())
    })
}

/// Whether a process has stopped, or the answer is there; `None` while neither is so.
pub fn stopped_or_answered(pid: u32, connection: &mut Connection) -> Result<Option<bool>> {
    if is_stopped(pid)? {
        return Ok(Some(true));
    }
    Ok(connection.is_closed()?.then_some(false))
}

fn is_stopped(pid: u32) -> Result<bool> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let state = stat.rsplit_once(") ").map(|(_, state)| state);
    Ok(state.is_some_and(|state| state.starts_with('T')))
}
