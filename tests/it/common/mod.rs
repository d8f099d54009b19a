//! The fixtures of the integration tests: real daemons, the built binary in front of them, and clients.
//!
//! - `provision`: creates virtual environments with supervisor under `target/test-envs`
//! - `daemon`: [`Daemon`], a supervisord for one test; [`Oracle`], one with the in-process extension
//! - `sidecar`: [`Sidecar`], the built binary in front of a [`Daemon`]
//! - `client`: [`Client`], XML-RPC calls and plain requests over TCP or a unix socket
//! - `http`: bytes on a connection, and replies byte for byte
//! - `values`: writes and reads XML-RPC values, [`params!`]
//! - `include`: a daemon's include directory, and what a proxy leaves there
//! - `view`: the processes that a daemon shows, and [`Picture`], which shows that nothing has changed
//! - `pair`: makes the same calls to the sidecar and to an [`Oracle`], and compares the replies
//! - `dice`: [`Dice`], random choices that a seed repeats
//! - `disk`: makes the proxy's writes fail
//! - `changes`: random changes, and the expected state after them
//! - `faults`: makes a daemon refuse a call, stop or die
//! - `judge`: supervisord's parser, which says what an update has to do
//! - `stuck`: stops a daemon while it reads a generated file
//! - `relay`: [`Relay`](relay::Relay), which drops connections between the sidecar and a daemon
//! - `ctl`: runs supervisorctl and Python scripts
//! - `process`: runs commands with a time limit, and watches child processes
//! - `leftovers`: temporary directories, and the processes that belong to them
//! - `pages`: parses the daemon's web interface
//! - `browser`: [`Browser`], a headless Chromium
//! - `attacks`: requests of attackers
//! - `usage`: memory and descriptors of a process
//! - `tools`: programs that a machine may lack
//! - `reverse_proxy`: nginx and HAProxy in front of a sidecar
//! - `site`: [`Site`], the web site of an attacker
//! - `wait`: [`eventually`]
//!
//! A value that is dropped ends its processes and removes its files. After a killed test run, a watcher
//! process does so (see `leftovers`).

// The benchmark uses a part of this module, too, and neither crate exports anything.
#![allow(dead_code, unreachable_pub)]

pub mod attacks;
pub mod browser;
pub mod changes;
pub mod client;
pub mod ctl;
pub mod daemon;
pub mod dice;
pub mod disk;
pub mod faults;
pub mod http;
pub mod include;
pub mod judge;
pub mod leftovers;
pub mod pages;
pub mod pair;
pub mod process;
pub mod provision;
pub mod relay;
pub mod reverse_proxy;
pub mod schema;
pub mod sidecar;
pub mod site;
pub mod stuck;
pub mod terminal;
pub mod tools;
pub mod usage;
#[macro_use]
pub mod values;
pub mod view;
pub mod wait;

// The `allow` is here alone, so that the compiler still checks the imports of each module.
#[allow(unused_imports)]
pub use self::{
    attacks::{argon2_of, attributes_of, call_of, crowd, guess, raise_file_limit},
    browser::Browser,
    client::{CallError, Client, basic, ensure_fault},
    ctl::{python, run_python, supervisorctl},
    daemon::{Daemon, DaemonOptions, Oracle},
    dice::Dice,
    http::{Addr, Connection, Reply, Until, exchange},
    process::{Process, run, stderr_text, stdout_text},
    provision::{Venv, Version, venv, with_both_releases},
    sidecar::{Sidecar, SidecarOptions, refused, twiddler},
    usage::{MIB, descriptors, memory, peak_memory},
    values::{
        IntoParams, IntoValue, TWIDDLER_METHODS, items, member, number, options, text, texts, value,
    },
    view::{Picture, Row, infos, rows},
    wait::{LIMIT, eventually, is_alone},
};

/// Set by the benchmark, which does not print the logs of successful runs.
static QUIET: std::sync::atomic::AtomicBool = std::sync::atomic::AtomicBool::new(false);

/// Prints the logs of daemons and sidecars only after a panic.
pub fn silence_logs() {
    QUIET.store(true, std::sync::atomic::Ordering::Relaxed);
}

/// Whether dropped daemons and sidecars print their logs. Tests always do, because a test that returns an
/// error drops its values without a panic.
fn shows_logs() -> bool {
    let quiet = QUIET.load(std::sync::atomic::Ordering::Relaxed);
    cfg!(test) && !quiet || std::thread::panicking()
}
