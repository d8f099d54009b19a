//! Compares the sidecar with the in-process original: both get the same calls and must send the same
//! replies.
//!
//! Before the comparison, parts that always differ are replaced: directories, pids, times, and the order of
//! the processes of a group.

use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use supervisor_twiddler::xmlrpc::Value;

use super::client::{CallError, Client};
use super::daemon::{Daemon, DaemonOptions, Oracle};
use super::sidecar::Sidecar;
use super::view::rows;

/// A stock daemon behind the sidecar, and a daemon with the in-process original. Both have the same
/// programs.
#[derive(Debug)]
pub struct Pair {
    /// The daemon with the original.
    pub oracle: Oracle,
    /// The sidecar in front of `daemon`.
    pub sidecar: Sidecar,
    /// The stock daemon.
    pub daemon: Daemon,
    _hurry: Hurry,
}

/// Connects to daemons all the time. Their poll then returns at once and not after a second, and they handle
/// events sooner.
#[derive(Debug)]
struct Hurry {
    goes_on: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// The pause between two connections.
const WAKE: Duration = Duration::from_millis(10);

impl Hurry {
    fn up(sockets: Vec<PathBuf>) -> Hurry {
        let goes_on = Arc::new(AtomicBool::new(true));
        let still = Arc::clone(&goes_on);
        let thread = thread::spawn(move || {
            while still.load(Ordering::Relaxed) {
                for socket in &sockets {
                    drop(UnixStream::connect(socket)); // it may be gone already
                }
                thread::sleep(WAKE);
            }
        });
        Hurry {
            goes_on,
            thread: Some(thread),
        }
    }
}

impl Drop for Hurry {
    fn drop(&mut self) {
        self.goes_on.store(false, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The outcome of a call.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    /// A result.
    Value(Value),
    /// A fault: its code and its text.
    Fault(i32, String),
    /// A status other than 200.
    Http(u16),
}

/// The group, the name and the state of a process.
pub type PlainRow = (String, String, String);

impl Pair {
    /// Starts both with these sections.
    pub fn start(body: &str) -> Result<Pair> {
        Pair::start_with(body, "")
    }

    /// Starts both with these sections and this whitelist (empty: all methods).
    pub fn start_with(body: &str, whitelist: &str) -> Result<Pair> {
        let options = DaemonOptions {
            body,
            ..DaemonOptions::default()
        };
        Pair::start_options(options, whitelist)
    }

    /// Like [`Pair::start`], with these options for both daemons.
    pub fn start_options(options: DaemonOptions<'_>, whitelist: &str) -> Result<Pair> {
        let oracle = Oracle::start_with(whitelist, options)?;
        let daemon = Daemon::start_with(options)?;
        let sidecar = Sidecar::start_with(&daemon, &["--whitelist", whitelist])?;
        let sockets = [&*oracle, &daemon].map(|daemon| daemon.socket().to_owned());
        Ok(Pair {
            _hurry: Hurry::up(sockets.into()),
            oracle,
            sidecar,
            daemon,
        })
    }

    /// Waits until a process is in this state in both.
    pub fn both_reach(&self, namespec: &str, state: &str) -> Result<()> {
        self.oracle.wait_for_state(namespec, state)?;
        self.daemon.wait_for_state(namespec, state)
    }

    /// Calls the original.
    pub fn oracle_answer(&self, method: &str, params: &[Value]) -> Result<Answer> {
        answer(&self.oracle.client(), &self.oracle, method, params)
    }

    /// Calls the sidecar.
    pub fn our_answer(&self, method: &str, params: &[Value]) -> Result<Answer> {
        answer(&self.sidecar.client(), &self.daemon, method, params)
    }

    /// Makes the call on both. Fails unless the replies are the same and the processes are the same afterwards.
    pub fn ensure_same(&self, method: &str, params: &[Value]) -> Result<Answer> {
        let oracle_answer = self.oracle_answer(method, params)?;
        let sidecar_answer = self.our_answer(method, params)?;
        ensure!(
            oracle_answer == sidecar_answer,
            "{method}{params:?}\n  there {oracle_answer:?}\n  here  {sidecar_answer:?}"
        );
        self.ensure_same_table()
            .with_context(|| format!("after {method}{params:?}"))?;
        Ok(sidecar_answer)
    }

    /// Makes the call on both. Fails unless these are the replies.
    pub fn ensure_differs(
        &self,
        method: &str,
        params: &[Value],
        oracle_answer: &Answer,
        sidecar_answer: &Answer,
    ) -> Result<()> {
        let outcomes = (
            self.oracle_answer(method, params)?,
            self.our_answer(method, params)?,
        );
        ensure!(
            outcomes == (oracle_answer.clone(), sidecar_answer.clone()),
            "{method}{params:?}\n{outcomes:#?}"
        );
        Ok(())
    }

    /// Fails unless both show the same processes in the same states.
    pub fn ensure_same_table(&self) -> Result<()> {
        let oracle_table = plain_table(&self.oracle.client())?;
        let sidecar_table = plain_table(&self.sidecar.client())?;
        ensure!(
            oracle_table == sidecar_table,
            "there {oracle_table:#?}\nhere {sidecar_table:#?}"
        );
        Ok(())
    }
}

/// The processes and their states, in the order of the reply.
pub fn plain_table(client: &Client) -> Result<Vec<PlainRow>> {
    let rows = rows(client)?;
    let plain = rows.into_iter().map(|row| (row.group, row.name, row.state));
    Ok(plain.collect())
}

/// The outcome without the parts that always differ.
pub fn answer(client: &Client, daemon: &Daemon, method: &str, params: &[Value]) -> Result<Answer> {
    comparable_answer(client.call(method, params), daemon)
}

/// The reply without the parts that always differ. Entries about processes are sorted by name.
pub fn comparable_answer(reply: Result<Value, CallError>, daemon: &Daemon) -> Result<Answer> {
    let dir = daemon.dir().display().to_string();
    Ok(match reply {
        Ok(value) => Answer::Value(comparable(value, &dir)),
        Err(CallError::Fault(fault)) => {
            Answer::Fault(fault.code, comparable_text(&fault.text, &dir))
        }
        Err(CallError::Http(reply)) => Answer::Http(reply.status),
        Err(error) => return Err(error.into()),
    })
}

/// Members that depend on time: only whether they are empty is compared.
const CHANCE: [&str; 4] = ["start", "stop", "pid", "now"];

fn comparable(value: Value, dir: &str) -> Value {
    match value {
        Value::String(text) => Value::String(comparable_text(&text, dir)),
        Value::Array(items) => {
            let items = items.into_iter().map(|item| comparable(item, dir));
            let mut items: Vec<Value> = items.collect();
            if items.iter().all(is_status) {
                items.sort_by_key(|item| format!("{item:?}"));
            }
            Value::Array(items)
        }
        Value::Struct(members) => {
            let mut members: Vec<(String, Value)> = members
                .into_iter()
                .map(|(name, value)| {
                    let value = comparable_member(&name, value, dir);
                    (name, value)
                })
                .collect();
            members.sort_by(|one, other| one.0.cmp(&other.0));
            Value::Struct(members)
        }
        other => other,
    }
}

fn comparable_member(name: &str, value: Value, dir: &str) -> Value {
    match value {
        Value::Int(number) if CHANCE.contains(&name) => Value::Bool(number != 0),
        Value::String(text) if name == "description" => Value::String(timeless(&text)),
        other => comparable(other, dir),
    }
}

/// An entry in the reply of a call on a group or on all processes.
fn is_status(value: &Value) -> bool {
    value.get("status").is_some() && value.get("description").is_some()
}

/// The text without pid, uptime and date.
pub fn timeless(description: &str) -> String {
    let ends_with_time = [" AM", " PM"]
        .iter()
        .any(|half| description.ends_with(half));
    match description {
        text if text.starts_with("pid ") => "pid and uptime".to_owned(),
        _ if ends_with_time => "a date".to_owned(),
        text => text.to_owned(),
    }
}

/// The text without the directory and without the random part of the names of automatic logs.
fn comparable_text(text: &str, dir: &str) -> String {
    let text = text.replace(dir, "DIR");
    match text.split_once("---supervisor-") {
        Some((before, after)) if after.ends_with(".log") => format!("{before}---supervisor-.log"),
        _ => text,
    }
}
