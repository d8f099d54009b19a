//! supervisorctl and Python scripts as clients, from the environment of the newest release.

use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context, Result};
use tempfile::NamedTempFile;

use super::process::{run, run_with_input};
use super::provision::{Version, venv};

/// supervisorctl's own entry point. Python leaves SIGINT ignored where it was so at the start, as
/// it is for a test run in the background of a shell; `tail -f` and `fg` end by it.
const SUPERVISORCTL: &str = "\
import signal, sys
from supervisor.supervisorctl import main
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.argv[0] = 'supervisorctl'
main()";

/// The interpreter that can import `supervisor` 4.3.0.
pub fn python() -> PathBuf {
    venv(Version::default()).python()
}

/// Runs a Python script to its end, in a scrubbed environment; `arguments` are its `sys.argv[1:]`.
pub fn run_python(script: &str, arguments: &[&str]) -> Result<Output> {
    run(python_command(script).args(arguments))
}

/// What [`run_python`] runs.
pub fn python_command(script: &str) -> Command {
    let mut command = venv(Version::default()).bare_command();
    command.args(["-c", script]);
    command
}

/// Runs supervisorctl to its end against this address (an [`Addr`](super::Addr) or a URL).
pub fn supervisorctl(arguments: &[&str], server: impl Display) -> Result<Output> {
    supervisorctl_as(None, arguments, server)
}

/// Like [`supervisorctl`], with credentials.
pub fn supervisorctl_as(
    credentials: Option<(&str, &str)>,
    arguments: &[&str],
    server: impl Display,
) -> Result<Output> {
    let conf = empty_conf()?;
    run(ctl_command(&conf, server, credentials).args(arguments))
}

/// Runs supervisorctl as its own shell, with these lines typed into it.
pub fn supervisorctl_shell(lines: &str, server: impl Display) -> Result<Output> {
    let conf = empty_conf()?;
    run_with_input(&mut ctl_command(&conf, server, None), lines.as_bytes())
}

/// The command that supervisorctl is, with this configuration file; for verbs that do not end,
/// such as `tail -f`, with [`Process::spawn`](super::Process::spawn).
pub fn supervisorctl_command(conf: &Path, server: impl Display) -> Command {
    let mut command = python_command(SUPERVISORCTL);
    command
        .arg("-c")
        .arg(conf)
        .arg("-s")
        .arg(server.to_string());
    command
}

fn ctl_command(
    conf: &NamedTempFile,
    server: impl Display,
    credentials: Option<(&str, &str)>,
) -> Command {
    let mut command = supervisorctl_command(conf.path(), server);
    if let Some((user, password)) = credentials {
        command.args(["-u", user, "-p", password]);
    }
    command
}

/// supervisorctl insists on a file with its section, and would take one of this machine's.
fn empty_conf() -> Result<NamedTempFile> {
    let conf = NamedTempFile::new()?;
    std::fs::write(conf.path(), "[supervisorctl]\n")
        .context("writing supervisorctl's configuration")?;
    Ok(conf)
}
