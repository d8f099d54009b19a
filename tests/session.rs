//! The session that the project is for, typed into an unmodified XML-RPC client.

mod common;

use anyhow::{Result, ensure};
use common::{Addr, Daemon, DaemonOptions, Sidecar, Version, run_python, stderr_text, stdout_text};

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
