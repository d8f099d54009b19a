//! Makes a daemon refuse a call, or stop or die before it.

use std::fs;

use anyhow::{Context, Result};

use super::daemon::Daemon;

/// The section that loads [`extension`] from [`FILE`].
pub const SECTION: &str = "[rpcinterface:faults]\nsupervisor.rpcinterface_factory = faults:make\n";
/// The file for [`extension`].
pub const FILE: &str = "faults.py";
/// The file with the number of the call and the action.
const ORDER: &str = "fault";

const EXTENSION: &str = r#"
import functools, os, signal
from supervisor.rpcinterface import SupervisorNamespaceRPCInterface as Interface
from supervisor.xmlrpc import Faults, RPCError

FILE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "fault")

def strike(name):
    try:
        with open(FILE) as file:
            count, how = file.read().split()
    except OSError:
        return
    if int(count) > 1:
        with open(FILE, "w") as file:
            file.write("%d %s" % (int(count) - 1, how))
        return
    with open(FILE + "-method", "w") as file:
        file.write(name)
    os.remove(FILE)
    if how == "REFUSE":
        raise RPCError(Faults.FAILED, "told to")
    os.kill(os.getpid(), getattr(signal, "SIG" + how))

def faulty(method):
    @functools.wraps(method)
    def call(self, *args, **kwargs):
        strike(method.__name__)
        return method(self, *args, **kwargs)
    return call

for name in METHODS:
    setattr(Interface, name, faulty(getattr(Interface, name)))

def make(supervisord, **config):
    return object()
"#;

/// An extension of the daemon that counts calls of these methods of `supervisor.*`.
pub fn extension(methods: &[&str]) -> String {
    format!("METHODS = {methods:?}\n{EXTENSION}")
}

/// Schedules an action for the daemon's call with this number, counted from now: `REFUSE`, or a signal.
pub fn strike(daemon: &Daemon, call: usize, how: &str) -> Result<()> {
    daemon.write(ORDER, &format!("{call} {how}"))
}

/// The method of the call at which the last action happened.
pub fn method(daemon: &Daemon) -> Result<String> {
    daemon.read("fault-method")
}

/// Whether the action is still scheduled.
pub fn is_pending(daemon: &Daemon) -> bool {
    daemon.dir().join(ORDER).exists()
}

/// The number of the call at which the action happens, counted from now.
pub fn left(daemon: &Daemon) -> Result<usize> {
    let order = daemon.read(ORDER)?;
    let count = order.split_whitespace().next().context("no number")?;
    Ok(count.parse()?)
}

/// Cancels the action.
pub fn call_off(daemon: &Daemon) {
    let _happened_already = fs::remove_file(daemon.dir().join(ORDER));
}
