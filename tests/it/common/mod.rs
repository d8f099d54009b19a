//! What the integration tests stand on: real daemons, the built binary in front of them, clients.
//!
//! - `provision`: supervisor in virtual environments under `target/test-envs`, made once
//! - `daemon`: [`Daemon`], a supervisord of the test's own; [`Oracle`], one with the in-process extension
//! - `sidecar`: [`Sidecar`], the built binary in front of a [`Daemon`]
//! - `client`: [`Client`], XML-RPC and plain requests over TCP or a unix socket
//! - `http`: bytes on a connection, and replies as they were sent
//! - `values`: XML-RPC values in and out, [`params!`]
//! - `view`: what a daemon shows of its processes, and [`Picture`], to see that nothing has changed
//! - `pair`: the same calls to the sidecar and to an [`Oracle`], whose answers must be the same
//! - `dice`: [`Dice`], random choices that can be made again
//! - `disk`: disks that fail the proxy
//! - `changes`: changes made at random, and what must be there after them
//! - `faults`: a daemon that refuses a call, or stops or dies before it
//! - `judge`: supervisord's own parser, which says what an update has to do
//! - `stuck`: a daemon that is stopped while it reads a generated file
//! - `relay`: [`Relay`](relay::Relay), between the sidecar and a daemon, which drops connections
//! - `ctl`: supervisorctl and Python scripts as clients
//! - `process`: commands that end in time, and child processes that are watched
//! - `leftovers`: temporary directories and whatever still runs on their behalf
//! - `pages`: the daemon's web interface taken apart
//! - `browser`: [`Browser`], a Chromium without a window
//! - `attacks`: what attackers send
//! - `usage`: memory and descriptors of a process
//! - `tools`: programs that not every machine has
//! - `reverse_proxy`: nginx and HAProxy in front of a sidecar
//! - `site`: [`Site`], a web site of somebody else's
//! - `wait`: [`eventually`]
//!
//! Everything is owned: a value that goes out of scope ends its processes and removes its files.
//! What a killed test run leaves behind is ended by a watcher process (see `leftovers`).

// The benchmark uses a part of this module too, and neither exports anything.
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

// For the same reason; one list, so that each module's own imports are still checked.
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
    wait::{LIMIT, bound, eventually, is_alone},
};

/// Set by a program that is no test: nobody is to be shown the logs of what went well.
static QUIET: std::sync::atomic::AtomicBool = std::sync::atomic::AtomicBool::new(false);

/// Shows the logs of daemons and sidecars no more, unless something panics.
pub fn keep_logs_to_yourself() {
    QUIET.store(true, std::sync::atomic::Ordering::Relaxed);
}

/// A test that returns an error does not panic before its values are dropped.
fn shows_logs() -> bool {
    let quiet = QUIET.load(std::sync::atomic::Ordering::Relaxed);
    cfg!(test) && !quiet || std::thread::panicking()
}
