//! Compares an update with the verdict of supervisord's own parser.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::{Value as Json, json};
use supervisor_twiddler::xmlrpc::Value;

use super::client::Client;
use super::daemon::Daemon;
use super::provision::venv;
use super::values::{items, member, texts};
use super::view::{Row, rows};
use super::wait::{LIMIT, eventually};

/// supervisord's parser, with the configuration in force.
pub struct Judge {
    child: Child,
    requests: ChildStdin,
    answers: BufReader<ChildStdout>,
    main: String,
}

/// The processes that an update has to keep, replace, add and remove.
#[derive(Debug, Default)]
pub struct Verdict {
    /// Processes that stay untouched.
    pub same: BTreeSet<String>,
    /// Processes that are replaced, each with its `autostart`.
    pub changed: BTreeMap<String, bool>,
    /// Processes that are added, each with its `autostart`.
    pub added: BTreeMap<String, bool>,
    /// Processes that are removed.
    pub removed: BTreeSet<String>,
}

impl Judge {
    /// Starts the parser of this daemon's release, which reads the current files.
    pub fn of(daemon: &Daemon) -> Result<Judge> {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/oracle/compare.py");
        let mut command = venv(daemon.version()).bare_command();
        let mut child = command
            .arg(script)
            .envs(daemon.environment())
            .env("PYTHONPATH", daemon.dir())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let requests = child.stdin.take().context("no standard input")?;
        let answers = BufReader::new(child.stdout.take().context("no standard output")?);
        let main = daemon.conf().to_string_lossy().into_owned();
        let mut judge = Judge {
            child,
            requests,
            answers,
            main,
        };
        judge.start()?;
        Ok(judge)
    }

    fn ask(&mut self, action: &str) -> Result<Json> {
        let request = json!({ "action": action, "main": self.main });
        writeln!(self.requests, "{request}")?;
        let mut answer = String::new();
        self.answers.read_line(&mut answer)?;
        let answer: Json = serde_json::from_str(&answer).context("no answer of the parser")?;
        ensure!(answer.get("fault").is_none(), "the parser says {answer}");
        Ok(answer)
    }

    /// Takes the current files as the configuration in force, after a start of the daemon.
    pub fn start(&mut self) -> Result<()> {
        self.ask("start").map(|_| ())
    }

    /// The verdict about an update to the current files.
    pub fn update(&mut self) -> Result<Verdict> {
        let answer = self.ask("update")?;
        let names = |list: &str| -> BTreeSet<String> {
            let names = answer[list].as_array().into_iter().flatten();
            names.filter_map(Json::as_str).map(str::to_owned).collect()
        };
        let changed = answer["changed"].as_array().into_iter().flatten();
        let added = answer["added"].as_object().into_iter().flatten();
        Ok(Verdict {
            same: names("same"),
            changed: changed
                .filter_map(|pair| Some((pair[0].as_str()?.to_owned(), pair[1].as_bool()?)))
                .collect(),
            added: added
                .filter_map(|(name, starts)| Some((name.clone(), starts.as_bool()?)))
                .collect(),
            removed: names("removed"),
        })
    }
}

impl Drop for Judge {
    fn drop(&mut self) {
        let _gone_already = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// All processes by their namespecs.
pub fn table(client: &Client) -> Result<BTreeMap<String, Row>> {
    let rows = rows(client)?;
    Ok(rows.into_iter().map(|row| (row.namespec(), row)).collect())
}

/// Whether a process is running or starting.
pub fn is_running(row: &Row) -> bool {
    matches!(row.state.as_str(), "STARTING" | "RUNNING" | "BACKOFF")
}

/// Waits until no process is starting or stopping.
pub fn settled(client: &Client) -> Result<BTreeMap<String, Row>> {
    eventually(LIMIT, || {
        let table = table(client)?;
        let busy = table.values().find(|row| row.state == "STARTING");
        ensure!(busy.is_none(), "{busy:?}");
        Ok(table)
    })
}

/// Fails unless the update has done exactly what the verdict says.
pub fn ensure_as_judged(
    verdict: &Verdict,
    added: &BTreeSet<String>,
    before: &BTreeMap<String, Row>,
    after: &BTreeMap<String, Row>,
) -> Result<()> {
    for name in verdict.same.iter().chain(added) {
        let (was, is) = (before.get(name), after.get(name));
        ensure!(was == is, "{name} did not change: {was:?}, and now {is:?}");
    }
    for (name, starts) in &verdict.changed {
        let is = after.get(name).with_context(|| format!("{name} is gone"))?;
        let was = before.get(name);
        let ran = was.is_some_and(is_running);
        ensure!(
            is_running(is) == (ran || *starts),
            "{name} changed, ran {ran}, starts {starts}: {is:?}"
        );
        ensure!(
            !ran || was.map(|was| was.pid) != Some(is.pid),
            "{name} changed and was not restarted: {is:?}"
        );
    }
    for (name, starts) in &verdict.added {
        let is = after
            .get(name)
            .with_context(|| format!("{name} did not come"))?;
        ensure!(
            is_running(is) == *starts,
            "{name} is new, starts {starts}: {is:?}"
        );
    }
    for name in &verdict.removed {
        ensure!(!after.contains_key(name), "{name} is still there");
    }
    ensure_all_known(verdict, added, after)
}

fn ensure_all_known(
    verdict: &Verdict,
    added: &BTreeSet<String>,
    after: &BTreeMap<String, Row>,
) -> Result<()> {
    let expected = verdict.same.iter().chain(verdict.changed.keys());
    let expected = expected.chain(verdict.added.keys()).chain(added);
    let expected: BTreeSet<&String> = expected.collect();
    ensure!(
        expected.iter().copied().eq(after.keys()),
        "{expected:?} are defined: {:?}",
        after.keys()
    );
    Ok(())
}

/// Fails unless the update has replaced exactly the groups that supervisorctl names, and no others have
/// changed.
pub fn ensure_groups_replaced(
    stdout: &str,
    verdict: &Verdict,
    added: &BTreeSet<String>,
    before: &BTreeMap<String, Row>,
    after: &BTreeMap<String, Row>,
) -> Result<()> {
    let named: BTreeSet<&str> = stdout
        .lines()
        .filter_map(|line| line.split(':').next())
        .collect();
    let group = |name: &str| name.split(':').next().unwrap_or_default().to_owned();
    let differing = verdict.changed.keys().chain(verdict.added.keys());
    for name in differing.chain(&verdict.removed) {
        ensure!(
            named.contains(group(name).as_str()),
            "{name} differs: {stdout}"
        );
    }
    for name in &verdict.same {
        let is_alone = !named.contains(group(name).as_str());
        ensure!(
            !is_alone || before.get(name) == after.get(name),
            "{name} did not change: {:?}, and now {:?}",
            before.get(name),
            after.get(name)
        );
    }
    for (name, starts) in verdict.changed.iter().chain(&verdict.added) {
        let is = after.get(name).with_context(|| format!("{name} is gone"))?;
        ensure!(is_running(is) == *starts, "{name} starts {starts}: {is:?}");
    }
    for name in added {
        let is = after.get(name).with_context(|| format!("{name} is lost"))?;
        ensure!(
            before.get(name).map(is_running) == Some(is_running(is)),
            "{is:?}"
        );
    }
    ensure_all_known(verdict, added, after)
}

/// The namespecs in an array of a reply.
pub fn names(reply: &Value, list: &str) -> Result<BTreeSet<String>> {
    let names = texts(member(reply, list)?)?;
    Ok(names.into_iter().map(str::to_owned).collect())
}

/// Fails unless the reply names the changed processes.
pub fn ensure_reported(
    reply: &Value,
    verdict: &Verdict,
    before: &BTreeMap<String, Row>,
) -> Result<()> {
    let ran = |name: &&String| before.get(*name).is_some_and(is_running);
    let restarted: BTreeSet<String> = verdict.changed.keys().filter(ran).cloned().collect();
    let stopped: BTreeSet<String> = verdict.removed.iter().filter(ran).cloned().collect();
    ensure!(
        names(reply, "restarted")? == restarted,
        "{reply:?}: {verdict:?}"
    );
    ensure!(
        names(reply, "stopped")? == stopped,
        "{reply:?}: {verdict:?}"
    );
    ensure!(items(member(reply, "failed")?)?.is_empty(), "{reply:?}");
    ensure!(items(member(reply, "skipped")?)?.is_empty(), "{reply:?}");
    Ok(())
}
/// The reply of `diffConfig`.
pub fn diff(client: &Client) -> Result<Vec<Value>> {
    Ok(items(&client.call("twiddler.diffConfig", ())?)?.to_vec())
}

/// Runs supervisorctl, which must exit with 0.
pub fn ctl(client: &Client, arguments: &[&str]) -> Result<String> {
    let output = super::ctl::supervisorctl(arguments, client.addr())?;
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(output.status.success(), "{arguments:?}: {stdout}");
    Ok(stdout)
}

/// The namespecs of the processes whose rows differ.
pub fn differing(before: &BTreeMap<String, Row>, after: &BTreeMap<String, Row>) -> Vec<String> {
    let names: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    let differs = |name: &&&String| before.get(**name) != after.get(**name);
    names
        .iter()
        .filter(differs)
        .map(|name| (*name).clone())
        .collect()
}
