//! A daemon that refuses a call on demand, or stops or dies before it.

use std::fs;

use anyhow::{Context, Result};

use super::daemon::Daemon;

/// The section that loads [`extension`] from [`FILE`].
pub const SECTION: &str = "[rpcinterface:faults]\nsupervisor.rpcinterface_factory = faults:make\n";
/// Where [`extension`] is to lie.
pub const FILE: &str = "faults.py";
/// Says at which call it happens, and what.
const ORDER: &str = "fault";

const EXTENSION: &str = r#"
import functools, os, signal
from supervisor.rpcinterface import SupervisorNamespaceRPCInterface as Interface
from supervisor.xmlrpc import Faults, RPCError

FILE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "fault")

def strike():
    try:
        with open(FILE) as file:
            count, how = file.read().split()
    except OSError:
        return
    if int(count) > 1:
        with open(FILE, "w") as file:
            file.write("%d %s" % (int(count) - 1, how))
        return
    os.remove(FILE)
    if how == "REFUSE":
        raise RPCError(Faults.FAILED, "told to")
    os.kill(os.getpid(), getattr(signal, "SIG" + how))

def faulty(method):
    @functools.wraps(method)
    def call(self, *args, **kwargs):
        strike()
        return method(self, *args, **kwargs)
    return call

for name in METHODS:
    setattr(Interface, name, faulty(getattr(Interface, name)))

def make(supervisord, **config):
    return object()
"#;

/// An extension of the daemon's that counts calls of these methods of `supervisor.*`.
pub fn extension(methods: &[&str]) -> String {
    format!("METHODS = {methods:?}\n{EXTENSION}")
}

/// Lets something happen at the daemon's next call of this number: `REFUSE`, or a signal.
pub fn strike(daemon: &Daemon, call: usize, how: &str) -> Result<()> {
    daemon.write(ORDER, &format!("{call} {how}"))
}

/// Whether that is still to come.
pub fn is_pending(daemon: &Daemon) -> bool {
    daemon.dir().join(ORDER).exists()
}

/// At the how manieth call from now on it happens.
pub fn left(daemon: &Daemon) -> Result<usize> {
    let order = daemon.read(ORDER)?;
    let count = order.split_whitespace().next().context("no number")?;
    Ok(count.parse()?)
}

/// It is not to happen any more.
pub fn call_off(daemon: &Daemon) {
    let _happened_already = fs::remove_file(daemon.dir().join(ORDER));
}
