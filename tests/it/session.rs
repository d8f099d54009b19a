//! The session that the project is for, typed into an unmodified XML-RPC client.

use crate::common::process::{run_with_input, succeeded};
use crate::common::{
    Addr, Daemon, DaemonOptions, Sidecar, Version, run_python, stderr_text, stdout_text, value,
    venv,
};
use anyhow::{Context, Result, ensure};

/// Python's own client; for a unix socket with supervisor's transport, as supervisorctl has it.
const SESSION: &str = r#"
import sys, time, xmlrpc.client
from supervisor.xmlrpc import SupervisorTransport

url = sys.argv[1]
if url.startswith("unix:"):
    s = xmlrpc.client.ServerProxy("http://127.0.0.1", transport=SupervisorTransport(None, None, url))
else:
    s = xmlrpc.client.ServerProxy(url)

print(s.twiddler.getAPIVersion())
print(s.twiddler.addGroup('dynamic_procs', 999))
print(s.twiddler.addProcessToGroup('dynamic_procs', 'ls', {'command': 'ls -l', 'autostart': 'false', 'autorestart': 'false', 'startsecs': '0'}))

# A program that ends before supervisord looks at it for the first time is told as fault 40, by the
# daemon itself: then it is started once more.
def start():
    try:
        return s.supervisor.startProcess('dynamic_procs:ls')
    except xmlrpc.client.Fault as fault:
        if fault.faultCode != 40:
            raise
        return None

while (started := start()) is None:
    pass
print(started)

# What `ls` writes reaches its log a moment after it was started.
deadline = time.monotonic() + 30
while not s.supervisor.readProcessLog('dynamic_procs:ls', 0, 50) and time.monotonic() < deadline:
    time.sleep(0.01)
print(repr(s.supervisor.readProcessLog('dynamic_procs:ls', 0, 6)))
"#;

const PRINTED: &str = "1.0\nTrue\nTrue\nTrue\n'total '\n";

fn session(version: Version, addr: impl FnOnce(&Sidecar) -> Addr) -> Result<()> {
    let daemon = Daemon::start_with(DaemonOptions {
        version,
        ..DaemonOptions::default()
    })?;
    let sidecar = Sidecar::start(&daemon)?;
    let output = run_python(SESSION, &[&addr(&sidecar).to_string()])?;
    let (printed, errors) = (stdout_text(&output), stderr_text(&output));
    ensure!(printed == PRINTED, "{printed}\n{errors}");

    daemon.wait_for_state("dynamic_procs:ls", "EXITED")?;
    let listed = stdout_text(&daemon.supervisorctl(&["status", "dynamic_procs:ls"])?);
    ensure!(listed.starts_with("dynamic_procs:ls"), "{listed}");
    ensure!(listed.contains("EXITED"), "{listed}");
    let left = daemon.include_files()?;
    ensure!(left.iter().all(|name| name.starts_with('.')), "{left:?}");
    Ok(())
}

#[test]
fn over_tcp_in_front_of_the_newest_release() -> Result<()> {
    session(Version::V4_3_0, |sidecar| sidecar.tcp_addr().into())
}

#[test]
fn over_a_unix_socket_in_front_of_the_newest_release() -> Result<()> {
    session(Version::V4_3_0, |sidecar| Addr::Unix(sidecar.socket()))
}

#[test]
fn over_tcp_in_front_of_debians_release() -> Result<()> {
    session(Version::V4_2_5, |sidecar| sidecar.tcp_addr().into())
}

#[test]
fn over_a_unix_socket_in_front_of_debians_release() -> Result<()> {
    session(Version::V4_2_5, |sidecar| Addr::Unix(sidecar.socket()))
}

/// Python alone, as it would be on somebody's machine, with this typed into it.
fn python(arguments: &[&str], typed: &str) -> Result<String> {
    let mut command = venv(Version::default()).bare_command();
    command.args(arguments);
    let output = succeeded(run_with_input(&mut command, typed.as_bytes())?)?;
    Ok(stdout_text(&output) + &stderr_text(&output))
}

#[test]
fn the_first_lines_of_the_readme_can_be_pasted() -> Result<()> {
    let daemon = Daemon::start("")?;
    let sidecar = Sidecar::start(&daemon)?;
    let readme = include_str!("../../README.md");
    let (_, block) = readme.split_once("```python\n").context("no block")?;
    let (block, _) = block.split_once("```").context("no end")?;
    let url = format!("http://{}", sidecar.tcp_addr());
    let lines = block.replace("http://localhost:9001", &url);
    ensure!(lines.contains(&url), "{lines}");
    // As a script, and line by line with a prompt, which would say what went wrong and go on.
    for arguments in [&["-"][..], &["-i", "-q"]] {
        let printed = python(arguments, &lines)?;
        ensure!(printed.contains("total "), "{arguments:?} {printed}");
        ensure!(!printed.contains("Traceback"), "{arguments:?} {printed}");
        ensure!(
            sidecar.client().call("twiddler.getGroupNames", ())? == value(Vec::<&str>::new()),
            "{arguments:?} {printed}"
        );
    }
    Ok(())
}

#[test]
fn the_demo_can_be_run_again_and_leaves_nothing() -> Result<()> {
    let daemon = Daemon::start("[program:clock]\ncommand = /bin/cat\n")?;
    daemon.wait_for_state("clock", "RUNNING")?;
    let sidecar = Sidecar::start(&daemon)?;
    let url = format!("http://{}", sidecar.tcp_addr());
    let demo = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/demo.py");
    let groups = || sidecar.client().call("twiddler.getGroupNames", ());
    for _ in 0..2 {
        let printed = python(&[demo, &url], "")?;
        for expected in [
            ">>> s.twiddler.removeProcessFromGroup('dynamic_procs', 'ls')\nTrue",
            ">>> s.twiddler.removeGroup('dynamic_procs')\nTrue",
            "# Nothing else noticed: clock:clock.",
        ] {
            ensure!(printed.contains(expected), "{expected} {printed}");
        }
        assert_eq!(groups()?, value(vec!["clock"]));
    }
    python(&[demo, &url, "--keep"], "")?;
    assert_eq!(groups()?, value(vec!["clock", "dynamic_procs"]));
    python(&[demo, &url, "--restarted"], "")?;
    let printed = python(&[demo, &url], "")?;
    ensure!(printed.contains("which an earlier run left"), "{printed}");
    assert_eq!(groups()?, value(vec!["clock"]));
    Ok(())
}
