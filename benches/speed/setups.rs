//! What is measured: the proxy and its rivals, each in front of, or inside, a daemon of its own.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use anyhow::{Context, Result, ensure};
use supervisor_twiddler::xmlrpc::Value;

use crate::common::leftovers::WorkDir;
use crate::common::{Addr, Daemon, DaemonOptions, LIMIT, Oracle, Process, Sidecar, eventually};
use crate::wire::{Wire, find, multicall, request};

/// The group that programs are added to. It has a process of the user's, as groups do that
/// somebody adds to.
pub(crate) const GROUP: &str = "web";
pub(crate) const ADD: &str = "twiddler.addProgramToGroup";
pub(crate) const REMOVE: &str = "twiddler.removeProcessFromGroup";

/// Sections of so many programs that are not started: what they do themselves is no matter there.
pub(crate) fn programs(count: usize) -> String {
    (0..count)
        .map(|number| format!("[program:p{number}]\ncommand=/bin/cat\nautostart=false\n"))
        .collect()
}

/// Sections of so many programs that run.
pub(crate) fn running(count: usize) -> String {
    (0..count)
        .map(|number| format!("[program:p{number}]\ncommand=/bin/cat\nstartsecs=0\n"))
        .collect()
}

/// A group with one process.
pub(crate) fn populated_group() -> String {
    format!("[program:{GROUP}]\ncommand=/bin/cat\nautostart=false\n")
}

/// The proxy in front of a stock daemon.
pub(crate) struct Ours {
    pub(crate) sidecar: Sidecar,
    pub(crate) daemon: Daemon,
}

impl Ours {
    pub(crate) fn start(body: &str) -> Result<Ours> {
        Ours::start_with(body, &[])
    }

    /// The same, with further arguments.
    pub(crate) fn start_with(body: &str, arguments: &[&str]) -> Result<Ours> {
        let daemon = Daemon::start_with(DaemonOptions {
            body,
            tcp: true,
            ..DaemonOptions::default()
        })?;
        let sidecar = Sidecar::start_with(&daemon, arguments)?;
        let ours = Ours { sidecar, daemon };
        // So that it knows the daemon before the first turn.
        Wire::open(&ours.addr())?.call(&request("twiddler.getGroupNames", &[]))?;
        Ok(ours)
    }

    /// Where clients connect: over TCP.
    pub(crate) fn addr(&self) -> Addr {
        self.sidecar.tcp_addr().into()
    }
}

/// The original inside a daemon, at its best: over its unix socket.
pub(crate) fn in_process(body: &str) -> Result<Oracle> {
    Oracle::start(body)
}

/// The parameters that add the program of this number, which is not started.
pub(crate) fn addition(number: usize) -> Vec<Value> {
    program(number, &[("command", "/bin/cat"), ("autostart", "false")])
}

/// The same of one that the daemon starts, as it does by default.
pub(crate) fn starting(number: usize) -> Vec<Value> {
    program(number, &[("command", "/bin/cat")])
}

fn program(number: usize, options: &[(&str, &str)]) -> Vec<Value> {
    let options = options.iter();
    let options = options.map(|(name, value)| ((*name).to_owned(), (*value).into()));
    vec![
        GROUP.into(),
        format!("job{number}").into(),
        Value::Struct(options.collect()),
    ]
}

/// The parameters that take it out again.
pub(crate) fn removal(number: usize) -> Vec<Value> {
    vec![GROUP.into(), format!("job{number}").into()]
}

/// Adds these programs in one multicall, and looks whether it worked.
pub(crate) fn populate(addr: &Addr, numbers: std::ops::Range<usize>) -> Result<()> {
    let count = numbers.len();
    let body = multicall(numbers.map(|number| (ADD, addition(number))));
    all_true(&Wire::open(addr)?.value(&body)?, count)
}

/// Whether a multicall answered with nothing but `True`.
pub(crate) fn all_true(answer: &Value, count: usize) -> Result<()> {
    let answers = answer.as_array().unwrap_or_default();
    let first = answers.iter().find(|answer| answer.as_bool() != Some(true));
    ensure!(first.is_none() && answers.len() == count, "{first:?}");
    Ok(())
}

/// HAProxy in front of a daemon's unix socket.
pub(crate) struct HaProxy {
    addr: SocketAddr,
    _process: Process,
    _dir: WorkDir,
}

impl HaProxy {
    /// Starts it; none where it is not installed.
    pub(crate) fn start(daemon: &Daemon) -> Result<Option<HaProxy>> {
        if haproxy_version().is_none() {
            return Ok(None);
        }
        let dir = WorkDir::new("twh-")?;
        let addr = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
        let conf = dir.path().join("haproxy.cfg");
        fs::write(
            &conf,
            format!(
                "global\n  maxconn 256\ndefaults\n  mode http\n  timeout connect 3s\n  \
                 timeout client 60s\n  timeout server 60s\n  http-reuse always\n\
                 frontend clients\n  bind {addr}\n  default_backend daemon\n\
                 backend daemon\n  server supervisord unix@{}\n",
                daemon.socket().display()
            ),
        )?;
        let mut command = Command::new("haproxy");
        command.arg("-db").arg("-f").arg(&conf);
        dir.mark(&mut command);
        let process = Process::spawn(&mut command)?;
        let call = request("supervisor.getState", &[]);
        eventually(LIMIT, || {
            ensure!(process.is_alive(), "it ended: {}", process.stderr_text());
            Wire::open(&addr.into())?.call(&call)
        })
        .context("HAProxy does not answer")?;
        Ok(Some(HaProxy {
            addr,
            _process: process,
            _dir: dir,
        }))
    }

    pub(crate) fn addr(&self) -> Addr {
        self.addr.into()
    }
}

/// `HAProxy version ...`, where it is installed.
pub(crate) fn haproxy_version() -> Option<String> {
    let output = Command::new("haproxy").arg("-v").output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    Some(
        text.split_whitespace()
            .take(3)
            .collect::<Vec<_>>()
            .join(" "),
    )
}

/// Stands between a proxy and its daemon, and counts how often a word goes by. Not for rows in
/// which time is taken.
pub(crate) struct Counter {
    count: Arc<AtomicUsize>,
}

impl Counter {
    /// Listens at `path`, which must not be there, for what is meant for `daemon`.
    pub(crate) fn start(path: &Path, daemon: &Path, word: &'static str) -> Result<Counter> {
        let listener = UnixListener::bind(path)?;
        let count = Arc::new(AtomicUsize::new(0));
        let (counted, daemon) = (count.clone(), daemon.to_owned());
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let Ok(server) = UnixStream::connect(&daemon) else {
                    continue;
                };
                let (Ok(replies), Ok(back)) = (server.try_clone(), client.try_clone()) else {
                    continue;
                };
                let counted = counted.clone();
                thread::spawn(move || relay(client, server, word, &counted));
                thread::spawn(move || relay(replies, back, "", &AtomicUsize::new(0)));
            }
        });
        Ok(Counter { count })
    }

    /// How often it went by since this was last asked.
    pub(crate) fn take(&self) -> usize {
        self.count.swap(0, Ordering::SeqCst)
    }
}

/// Copies until either side ends. A word that comes in two pieces is found all the same.
fn relay(mut from: UnixStream, mut to: UnixStream, word: &str, count: &AtomicUsize) {
    let word = word.as_bytes();
    let mut buffer = [0; 65536];
    let mut seen: Vec<u8> = Vec::new();
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        if !word.is_empty() {
            seen.extend_from_slice(&buffer[..length]);
            while let Some(at) = find(&seen, word) {
                count.fetch_add(1, Ordering::SeqCst);
                seen.drain(..at + word.len());
            }
            seen.drain(..seen.len().saturating_sub(word.len() - 1));
        }
        if to.write_all(&buffer[..length]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(std::net::Shutdown::Both); // it may have ended first
}
