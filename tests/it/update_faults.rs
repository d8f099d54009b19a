//! Every step of an update at which something can go wrong, hit once on purpose.
//!
//! | what goes wrong | at | test |
//! | --- | --- | --- |
//! | the proxy dies | each point of it | `an_update_is_finished_whatever_point_the_proxy_dies_at` |
//! | the daemon starts again | each point of the proxy | `the_daemon_starts_again_at_each_point_of_an_update` |
//! | the daemon refuses it | each call that the daemon gets | `the_daemon_refuses_each_call_of_an_update` |
//! | the daemon dies | each call that the daemon gets | `the_daemon_dies_at_each_call_of_an_update` |
//!
//! The same with `live_update` at the steps of `supervisorctl update`: `…_of_steps`.
//!
//! Of the calls, `TEST_SEED` picks some, and `TEST_EFFORT=24` has all of them.

use std::collections::{BTreeMap, BTreeSet};
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result, anyhow, ensure};
use supervisor_twiddler::xmlrpc::{Value, read, write};

use crate::common::dice::{seed, times};
use crate::common::faults;
use crate::common::judge::{
    Judge, Verdict, ctl, diff, differing, ensure_as_judged, is_running, settled, table,
};
use crate::common::stuck::{GENERATED, wait_until_stopped};
use crate::common::values::sleeping;
use crate::common::{
    Client, Connection, Daemon, DaemonOptions, LIMIT, Reply, Row, Sidecar, SidecarOptions,
    eventually, items, member, rows, supervisorctl, text, value,
};
use crate::live_update::{FILE, WEB};

/// Where the proxy can be stopped on its way, in this order.
const POINTS: [&str; 6] = [
    "update intended",
    "update stopped",
    "update left",
    "update made",
    "update joined",
    "update started",
];

#[test]
fn a_daemon_that_starts_during_a_question_runs_the_files_alone() -> Result<()> {
    for kills_proxy in [false, true] {
        let daemon = Daemon::start_with(DaemonOptions {
            files: &[(FILE, WEB)],
            ..DaemonOptions::default()
        })?;
        let sidecar = stopping(&daemon)?;
        let expected: Vec<String> = settled(&sidecar.client())?.into_keys().collect();
        ensure!(diff(&sidecar.client())?.is_empty());
        daemon.write(FILE, &WEB.replace("601", "611"))?;
        let _connection = stop_at(&daemon, &sidecar, "question", ("twiddler.diffConfig", &[]))?;
        daemon.kill_and_start_again()?;
        // It has met the question, and runs nobody twice for that.
        let running = |row: &Row| (is_running(row)).then(|| row.namespec());
        let twice = rows(&daemon.client())?.iter().filter_map(running).count();
        ensure!(twice <= expected.len(), "{:?}", rows(&daemon.client())?);
        if kills_proxy {
            sidecar.kill()?;
            sidecar.start_again()?;
        } else {
            sidecar.signal("CONT")?
        }
        let client = sidecar.client();
        eventually(LIMIT, || {
            let there: Vec<String> = table(&daemon.client())?.into_keys().collect();
            ensure!(there == expected, "kills_proxy {kills_proxy}: {there:?}");
            Ok(())
        })?;
        client.call("twiddler.updateConfig", ())?;
        let left = diff(&client)?;
        ensure!(left.is_empty(), "kills_proxy {kills_proxy}: {left:?}");
        let there: Vec<String> = settled(&client)?.into_keys().collect();
        ensure!(there == expected, "{there:?}");
    }
    Ok(())
}

/// A proxy in front of the daemon that stops itself where `stop-at` says.
fn stopping(daemon: &Daemon) -> Result<Sidecar> {
    stopping_with(daemon, &[])
}

fn stopping_with(daemon: &Daemon, arguments: &[&str]) -> Result<Sidecar> {
    let stop_at = daemon.dir().join("stop-at").to_string_lossy().into_owned();
    Sidecar::start_options(
        daemon,
        SidecarOptions {
            arguments,
            environment: &[("TEST_STOP_AT", &stop_at)],
            ..SidecarOptions::default()
        },
    )
}

/// Sends a call, and waits until the proxy has stopped at a point of it.
fn stop_at(
    daemon: &Daemon,
    sidecar: &Sidecar,
    point: &str,
    (method, params): (&str, &[Value]),
) -> Result<Connection> {
    daemon.write("stop-at", point)?;
    let client = sidecar.socket_client();
    let mut connection = client.connect()?;
    let call = write::call(method, params);
    connection.send(&client.request_bytes("POST", "/RPC2", &[], Some(&call)))?;
    wait_until_stopped(sidecar.pid())?;
    Ok(connection)
}

#[test]
fn an_update_is_finished_whatever_point_the_proxy_dies_at() -> Result<()> {
    for (number, point) in POINTS.into_iter().enumerate() {
        // It would not start by itself.
        let text = WEB.replace("sleep 601", "sleep 601\nautostart = false");
        let daemon = Daemon::start_with(DaemonOptions {
            files: &[(FILE, &text)],
            ..DaemonOptions::default()
        })?;
        let sidecar = stopping(&daemon)?;
        sidecar
            .client()
            .call("supervisor.startProcess", ("web:b",))?;
        let before = settled(&sidecar.client())?;
        ensure!(diff(&sidecar.client())?.is_empty());
        daemon.write(FILE, &text.replace("sleep 601", "sleep 611"))?;
        let connection = stop_at(&daemon, &sidecar, point, ("twiddler.updateConfig", &[]))?;
        sidecar.kill()?;
        drop(connection);
        sidecar.start_again()?;
        let client = sidecar.client();
        client.call("twiddler.updateConfig", ())?;
        eventually(LIMIT, || {
            let after = table(&client)?;
            let b = after.get("web:b").context("web:b is gone")?;
            ensure!(is_running(b), "{point}: {b:?}");
            ensure!(b.pid != before["web:b"].pid, "{point}: {b:?}");
            for (name, row) in before.iter().filter(|(name, _)| *name != "web:b") {
                ensure!(after.get(name) == Some(row), "{point}: {name}: {after:?}");
            }
            ensure!(after.len() == before.len(), "{point}: {after:?}");
            Ok(())
        })
        .with_context(|| format!("{number}: {point}"))?;
        let left = diff(&client)?;
        ensure!(left.is_empty(), "{point}: {left:?}");
    }
    Ok(())
}

#[test]
fn a_program_whose_options_change_is_there_whatever_point_the_proxy_dies_at() -> Result<()> {
    for point in [
        "update intended",
        "update stopped",
        "update left",
        "update joined",
        "update started",
    ] {
        let daemon = Daemon::start_with(DaemonOptions {
            files: &[(FILE, WEB)],
            ..DaemonOptions::default()
        })?;
        let sidecar = stopping(&daemon)?;
        let client = sidecar.client();
        client.call("twiddler.addGroup", ("dyn", 5))?;
        client.call(
            "twiddler.addProcessToGroup",
            ("dyn", "own", sleeping("901")),
        )?;
        client.call("twiddler.addProcessToGroup", ("web", "z", sleeping("901")))?;
        let before = settled(&client)?;
        for (group, name) in [("dyn", "own"), ("web", "z")] {
            let params = [value(group), value(name), sleeping("902")];
            let call = ("twiddler.updateProgram", &params[..]);
            let connection = stop_at(&daemon, &sidecar, point, call)?;
            sidecar.kill()?;
            drop(connection);
            sidecar.start_again()?;
        }
        let client = sidecar.client();
        eventually(LIMIT, || {
            let after = table(&client)?;
            for (name, row) in &before {
                let is = after.get(name).with_context(|| format!("{name} is lost"))?;
                ensure!(is_running(is), "{is:?}");
                let is_touched = ["dyn:own", "web:z"].contains(&name.as_str());
                ensure!(is_touched || is == row, "{name}: {is:?}");
            }
            ensure!(after.len() == before.len(), "{:?}", after.keys());
            Ok(())
        })
        .with_context(|| point.to_owned())?;
        let told = client.call("twiddler.getProgramOptions", ("web", "z"))?;
        let command = text(member(&told, "command")?)?;
        ensure!(["/bin/sleep 901", "/bin/sleep 902"].contains(&command));
        // It can be done again.
        client.call("twiddler.updateProgram", ("web", "z", sleeping("903")))?;
    }
    Ok(())
}

/// Somebody else lets the daemon read files without the group after it was accepted.
#[test]
fn a_group_that_is_refused_after_it_was_stopped_runs_as_before() -> Result<()> {
    let daemon = Daemon::start_with(DaemonOptions {
        files: &[(FILE, WEB)],
        ..DaemonOptions::default()
    })?;
    let sidecar = stopping(&daemon)?;
    let client = sidecar.client();
    ensure!(diff(&client)?.is_empty());
    let before = settled(&client)?;
    daemon.write(FILE, &WEB.replace("603", "613"))?;
    let mut connection = stop_at(
        &daemon,
        &sidecar,
        "update left",
        ("twiddler.updateConfig", &[]),
    )?;
    let (without, _) = WEB.split_once("[program:lone]").context("lone")?;
    daemon.write(FILE, without)?;
    daemon.call("supervisor.reloadConfig", ())?;
    sidecar.signal("CONT")?;
    let reply = connection.read_reply()?.text();
    ensure!(
        reply.contains("skipped") && reply.contains("BAD_NAME"),
        "{reply}"
    );
    let after = settled(&client)?;
    ensure!(differing(&before, &after) == ["lone:lone"], "{after:?}");
    ensure!(is_running(&after["lone:lone"]), "{after:?}");
    let infos = daemon.call("supervisor.getAllConfigInfo", ())?;
    ensure!(!format!("{infos:?}").contains("twiddler~"), "{infos:?}");
    let told = diff(&client)?;
    ensure!(
        told.len() == 1 && text(member(&told[0], "change")?)? == "removed",
        "{told:?}"
    );
    client.call("twiddler.updateConfig", ())?;
    ensure!(!table(&client)?.contains_key("lone:lone"));
    Ok(())
}

/// The daemon's methods that an update calls.
const METHODS: [&str; 10] = [
    "addProcessGroup",
    "getAllConfigInfo",
    "getAllProcessInfo",
    "getProcessInfo",
    "getState",
    "reloadConfig",
    "removeProcessGroup",
    "startProcess",
    "stopProcess",
    "stopProcessGroup",
];

/// Files of which each is an edit of the other that has a process of each kind: one goes on, one changes,
/// one joins, one leaves, one is adopted, and groups are made anew, come and go.
const ONE: &str = "\
[group:web]
programs = a,b,c,d

[program:a]
command = /bin/sleep 600
startsecs = 0

[program:b]
command = /bin/sleep 601
autostart = false
startsecs = 0

[program:c]
command = /bin/sleep 602
numprocs = 2
process_name = %(program_name)s_%(process_num)02d
startsecs = 0

[program:d]
command = /bin/sleep 604
startsecs = 0

[program:lone]
command = /bin/sleep 603
startsecs = 0

[program:old]
command = /bin/sleep 605
startsecs = 0
";

fn other() -> String {
    ONE.replace("a,b,c,d", "a,b,c,e")
        .replace("[program:d]", "[program:e]")
        .replace("600\n", "600\nautorestart = unexpected\n")
        .replace("sleep 601", "sleep 611")
        .replace("sleep 603", "sleep 613")
        .replace("numprocs = 2", "numprocs = 13")
        .replace("[program:old]", "[program:new]")
}

/// How an edit is put in force.
#[derive(Clone, Copy)]
enum By {
    /// `updateConfig`
    Config,
    /// `supervisorctl update` with `live_update`
    Steps,
}

/// What whoever puts an edit in force is told.
struct Told {
    text: String,
    is_answered: bool,
    /// The processes that are said to have failed.
    failed: Vec<String>,
}

/// A daemon that fails on demand, and a proxy that stops on demand in front of it.
struct Stage {
    by: By,
    daemon: Daemon,
    sidecar: Sidecar,
    judge: Judge,
    texts: [String; 2],
    /// What a client has added.
    added: BTreeSet<String>,
}

impl Stage {
    fn set(by: By) -> Result<Stage> {
        let extension = faults::extension(&METHODS);
        let daemon = Daemon::start_with(DaemonOptions {
            body: faults::SECTION,
            files: &[(faults::FILE, &extension), (FILE, ONE)],
            ..DaemonOptions::default()
        })?;
        let sidecar = match by {
            By::Config => stopping(&daemon)?,
            By::Steps => stopping_with(&daemon, &["--live-update"])?,
        };
        let judge = Judge::of(&daemon)?;
        let mut stage = Stage {
            by,
            daemon,
            sidecar,
            judge,
            texts: [other(), ONE.to_owned()],
            added: BTreeSet::new(),
        };
        stage.make_ready()?;
        Ok(stage)
    }

    fn client(&self) -> Client {
        self.sidecar.client()
    }

    /// What does not start by itself runs, and there is one that was added.
    fn make_ready(&mut self) -> Result<()> {
        let client = self.client();
        ensure!(diff(&client)?.is_empty(), "{:?}", diff(&client)?);
        if self.added.is_empty() {
            let z = ("web", "z", sleeping("900"));
            client.call("twiddler.addProcessToGroup", z)?;
            self.added.insert("web:z".to_owned());
        }
        let _runs_already = client.call("supervisor.startProcess", ("web:b",));
        settled(&client).map(drop)
    }

    /// Edits the file, and says what was there before and what is to become of that.
    fn edit(&mut self) -> Result<(Table, Verdict)> {
        self.make_ready()?;
        let before = settled(&self.client())?;
        self.daemon.write(FILE, &self.texts[0])?;
        self.texts.reverse();
        Ok((before, self.judge.update()?))
    }

    /// Lets somebody put the edit in force.
    fn send(&self) -> JoinHandle<Result<Told>> {
        let (by, client, addr) = (
            self.by,
            self.sidecar.socket_client(),
            self.client().addr().clone(),
        );
        thread::spawn(move || match by {
            By::Config => {
                let mut connection = client.connect()?;
                let call = write::call("twiddler.updateConfig", &[]);
                connection.send(&client.request_bytes("POST", "/RPC2", &[], Some(&call)))?;
                let reply = connection.read_reply()?;
                let is_answered = reply.status == 200;
                let failed = is_answered.then(|| failed(&reply)).transpose()?;
                Ok(Told {
                    text: reply.text(),
                    is_answered,
                    failed: failed.unwrap_or_default(),
                })
            }
            By::Steps => {
                let output = supervisorctl(&["update"], addr)?;
                Ok(Told {
                    text: String::from_utf8_lossy(&output.stdout).into_owned(),
                    is_answered: output.status.success(),
                    failed: Vec::new(),
                })
            }
        })
    }

    /// Puts the edit in force.
    fn update(&self) -> Result<String> {
        let client = self.client();
        match self.by {
            By::Config => Ok(format!("{:?}", client.call("twiddler.updateConfig", ())?)),
            By::Steps => ctl(&client, &["update"]),
        }
    }

    /// Every process is as it was or as the file says, or was told to have failed, and the next update
    /// finishes. Whoever makes steps and stops between them leaves stopped what was to change.
    fn ensure_whole(&self, before: &Table, verdict: &Verdict, failed: &[String]) -> Result<()> {
        let client = self.client();
        let differing = verdict.changed.keys().chain(verdict.added.keys());
        let differing = differing.chain(&verdict.removed).cloned();
        let failed = match self.by {
            By::Config => failed.to_vec(),
            By::Steps => differing.collect(),
        };
        eventually(LIMIT, || {
            let now = settled(&client)?;
            ensure_each_is_one_of_both(verdict, &self.added, before, &now, &failed)
        })?;
        let reply = self.update()?;
        eventually(LIMIT, || {
            let after = settled(&client)?;
            ensure_as_judged(verdict, &self.added, before, &after)
        })
        .with_context(|| reply)?;
        self.ensure_clean()
    }

    /// The files alone are in force.
    fn ensure_files_alone(&mut self) -> Result<()> {
        self.judge.start()?;
        self.added.clear();
        let same = self.judge.update()?.same;
        let client = self.client();
        for update in [false, true] {
            if update {
                self.update()?;
            }
            eventually(LIMIT, || {
                let now = settled(&client)?;
                ensure!(now.keys().eq(same.iter()), "{:?}", now.keys());
                let rests = |row: &&Row| !is_running(row) && row.name != "b";
                ensure!(now.values().find(rests).is_none(), "{now:?}");
                let left = diff(&client)?;
                ensure!(left.is_empty(), "{left:?}");
                Ok(())
            })
            .with_context(|| format!("after an update: {update}"))?;
        }
        self.ensure_clean()
    }

    /// Nothing of the questions is left, and nothing differs.
    fn ensure_clean(&self) -> Result<()> {
        let left = diff(&self.client())?;
        ensure!(left.is_empty(), "{left:?}");
        let infos = self.daemon.call("supervisor.getAllConfigInfo", ())?;
        ensure!(!format!("{infos:?}").contains("twiddler~"), "{infos:?}");
        let files = self.daemon.include_files()?;
        ensure!(!files.iter().any(|name| name == GENERATED), "{files:?}");
        Ok(())
    }

    fn start_daemon_again(&mut self) -> Result<()> {
        if self.daemon.is_alive() {
            self.daemon.kill()?;
        } else {
            self.daemon.end_children()?;
        }
        self.daemon.start_again()
    }
}

type Table = BTreeMap<String, Row>;

fn ensure_each_is_one_of_both(
    verdict: &Verdict,
    added: &BTreeSet<String>,
    before: &Table,
    now: &Table,
    failed: &[String],
) -> Result<()> {
    let has_worked = |name: &&String| !failed.contains(name);
    for name in verdict.same.iter().chain(added) {
        let (was, is) = (before.get(name), now.get(name));
        ensure!(was == is, "{name} goes on: {was:?}, and now {is:?}");
    }
    for name in verdict.changed.keys().filter(has_worked) {
        let is = now.get(name).with_context(|| format!("{name} is gone"))?;
        ensure!(is_running(is), "{name} was running: {is:?}");
    }
    for name in verdict.removed.iter().filter(has_worked) {
        let is = now.get(name);
        ensure!(is.is_none_or(is_running), "{name} was running: {is:?}");
    }
    for name in verdict.added.keys().filter(has_worked) {
        let is = now.get(name);
        ensure!(is.is_none_or(is_running), "{name} is to run: {is:?}");
    }
    Ok(())
}

/// The processes that an update says to have failed.
fn failed(reply: &Reply) -> Result<Vec<String>> {
    let Ok(outcome) = read::response(&reply.content())? else {
        return Ok(Vec::new());
    };
    let failed = items(member(&outcome, "failed")?)?.iter();
    let failed = failed.map(|one| Ok(text(member(one, "name")?)?.to_owned()));
    failed.collect()
}

/// Runs the case at each call that the daemon gets for an update, until it says that it came to none.
/// The edit goes there; with `TEST_ALL=1` it also goes back.
fn at_each_call(
    by: By,
    usual: usize,
    case: impl Fn(&mut Stage, usize) -> Result<bool>,
) -> Result<()> {
    const ENOUGH: usize = 250;
    let step = (usual / times(1)?).max(1);
    let turns = match std::env::var_os("TEST_ALL") {
        Some(_) => 2,
        None => 1,
    };
    let first = usize::try_from(seed(0)?)? % step;
    for turn in 0..turns {
        let mut stage = Stage::set(by)?;
        if turn == 1 {
            stage.edit()?;
            stage.update()?;
        }
        let mut calls = 0;
        for call in (1 + first..ENOUGH).step_by(step) {
            if !case(&mut stage, call).with_context(|| format!("call {call}, turn {turn}"))? {
                break;
            }
            calls = call;
        }
        ensure!((20..ENOUGH - step).contains(&calls), "{calls} calls");
    }
    Ok(())
}

fn refuses_each_call(by: By, usual: usize) -> Result<()> {
    at_each_call(by, usual, |stage, call| {
        let (before, verdict) = stage.edit()?;
        faults::strike(&stage.daemon, call, "REFUSE")?;
        let told = wait_for(stage.send())?;
        let struck = !faults::is_pending(&stage.daemon);
        faults::call_off(&stage.daemon);
        stage
            .ensure_whole(&before, &verdict, &told.failed)
            .with_context(|| told.text)?;
        Ok(struck)
    })
}

fn dies_at_each_call(by: By, usual: usize) -> Result<()> {
    at_each_call(by, usual, |stage, call| {
        let (before, verdict) = stage.edit()?;
        faults::strike(&stage.daemon, call, "KILL")?;
        let told = wait_for(stage.send())?;
        let died = !faults::is_pending(&stage.daemon);
        faults::call_off(&stage.daemon);
        if died {
            stage.start_daemon_again()?;
            stage.ensure_files_alone()?;
        } else {
            stage.ensure_whole(&before, &verdict, &[])?
        }
        ensure!(died != told.is_answered, "{}", told.text);
        Ok(died)
    })
}

fn starts_again_at_each_point(by: By) -> Result<()> {
    let mut stage = Stage::set(by)?;
    for point in POINTS {
        stage.edit()?;
        stage.daemon.write("stop-at", point)?;
        let sent = stage.send();
        wait_until_stopped(stage.sidecar.pid())?;
        stage.start_daemon_again()?;
        stage.sidecar.signal("CONT")?;
        let told = wait_for(sent)?;
        let now = table(&stage.client())?;
        for name in told.failed {
            let is = now.get(&name);
            ensure!(!is.is_some_and(is_running), "{point}: {is:?} has failed");
        }
        stage
            .ensure_files_alone()
            .with_context(|| format!("{point}: {}", told.text))?;
    }
    Ok(())
}

fn wait_for(sent: JoinHandle<Result<Told>>) -> Result<Told> {
    sent.join().map_err(|_| anyhow!("the caller is gone"))?
}

#[test]
fn the_daemon_refuses_each_call_of_an_update() -> Result<()> {
    refuses_each_call(By::Config, 3)
}

#[test]
fn the_daemon_refuses_each_call_of_steps() -> Result<()> {
    refuses_each_call(By::Steps, 12)
}

#[test]
fn the_daemon_dies_at_each_call_of_an_update() -> Result<()> {
    dies_at_each_call(By::Config, 6)
}

#[test]
fn the_daemon_dies_at_each_call_of_steps() -> Result<()> {
    dies_at_each_call(By::Steps, 24)
}

#[test]
fn the_daemon_starts_again_at_each_point_of_an_update() -> Result<()> {
    starts_again_at_each_point(By::Config)
}

#[test]
fn the_daemon_starts_again_at_each_point_of_steps() -> Result<()> {
    starts_again_at_each_point(By::Steps)
}

/// Whoever puts an edit in force loses the proxy on the way.
#[test]
fn steps_are_finished_whatever_point_the_proxy_dies_at() -> Result<()> {
    let mut stage = Stage::set(By::Steps)?;
    for point in POINTS {
        let (before, verdict) = stage.edit()?;
        stage.daemon.write("stop-at", point)?;
        let sent = stage.send();
        wait_until_stopped(stage.sidecar.pid())?;
        stage.sidecar.kill()?;
        wait_for(sent)?;
        stage.sidecar.start_again()?;
        stage
            .ensure_whole(&before, &verdict, &[])
            .with_context(|| point)?;
    }
    Ok(())
}
