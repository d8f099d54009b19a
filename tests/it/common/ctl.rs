//! Runs supervisorctl and Python scripts, from the environment of the newest release.

use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context, Result};
use tempfile::NamedTempFile;

use super::process::{run, run_with_input};
use super::provision::{Version, venv};

/// supervisorctl's entry point, with SIGINT enabled: `tail -f` and `fg` end by it. Python leaves SIGINT
/// ignored if it was ignored at the start, as it is for a test run in the background of a shell.
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

/// Runs a Python script to its end, without the caller's environment; `arguments` are its `sys.argv[1:]`.
pub fn run_python(script: &str, arguments: &[&str]) -> Result<Output> {
    run(python_command(script).args(arguments))
}

/// The command of [`run_python`].
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

/// Runs supervisorctl's interactive shell, with these lines on its standard input.
pub fn supervisorctl_shell(lines: &str, server: impl Display) -> Result<Output> {
    let conf = empty_conf()?;
    run_with_input(&mut ctl_command(&conf, server, None), lines.as_bytes())
}

/// The command of supervisorctl with this configuration file. For verbs that do not end, such as `tail -f`,
/// pass it to [`Process::spawn`](super::Process::spawn).
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

/// A configuration file with an empty section. Without it, supervisorctl would read one of this machine.
fn empty_conf() -> Result<NamedTempFile> {
    let conf = NamedTempFile::new()?;
    std::fs::write(conf.path(), "[supervisorctl]\n")
        .context("writing supervisorctl's configuration")?;
    Ok(conf)
}
