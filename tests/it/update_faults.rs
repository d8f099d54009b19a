//! Every step at which an update can fail, made to fail once.
//!
//! | failure | at | test |
//! | --- | --- | --- |
//! | the proxy dies | each point of it | `an_update_is_finished_after_the_proxy_dies_at_each_point` |
//! | the daemon restarts | each point of the proxy | `the_daemon_restarts_at_each_point_of_an_update` |
//! | the daemon refuses it | each call that the daemon gets | `the_daemon_refuses_each_call_of_an_update` |
//! | the daemon dies | each call that the daemon gets | `the_daemon_dies_at_each_call_of_an_update` |
//!
//! The tests `…_of_steps` do the same with `live_update` at the steps of `supervisorctl update`.
//!
//! Only some calls are made to fail, chosen by `TEST_SEED`; with `TEST_EFFORT=24` it is all of them.

use std::collections::{BTreeMap, BTreeSet};
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result, anyhow, ensure};
use supervisor_twiddler::xmlrpc::{Value, read, write};

use crate::common::dice::{seed, times};
use crate::common::faults;
use crate::common::include::ensure_no_leftovers;
use crate::common::judge::{
    Judge, Verdict, ctl, diff, differing, ensure_as_judged, is_running, settled, table,
};
use crate::common::stuck::{stopping_sidecar, wait_until_stopped};
use crate::common::values::sleeping;
use crate::common::{
    Client, Connection, Daemon, DaemonOptions, LIMIT, Reply, Row, Sidecar, eventually, items,
    member, rows, supervisorctl, text, value,
};
use crate::live_update::{FILE, WEB};

/// The points at which the proxy can be stopped, in this order.
const POINTS: [&str; 6] = [
    "update intended",
    "update stopped",
    "update left",
    "update made",
    "update joined",
    "update started",
];

#[test]
fn a_daemon_that_starts_during_a_probe_runs_only_the_files() -> Result<()> {
    for kills_proxy in [false, true] {
        let daemon = Daemon::start_with(DaemonOptions {
            files: &[(FILE, WEB)],
            ..DaemonOptions::default()
        })?;
        let sidecar = stopping_sidecar(&daemon, &[], &[])?;
        let expected: Vec<String> = settled(&sidecar.client())?.into_keys().collect();
        ensure!(diff(&sidecar.client())?.is_empty());
        daemon.write(FILE, &WEB.replace("601", "611"))?;
        let _connection = stop_at(&daemon, &sidecar, "question", ("twiddler.diffConfig", &[]))?;
        daemon.kill_and_start_again()?;
        // The daemon has read the probe, and must not run a process twice because of it.
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
            let processes: Vec<String> = table(&daemon.client())?.into_keys().collect();
            ensure!(
                processes == expected,
                "kills_proxy {kills_proxy}: {processes:?}"
            );
            Ok(())
        })?;
        client.call("twiddler.updateConfig", ())?;
        let left = diff(&client)?;
        ensure!(left.is_empty(), "kills_proxy {kills_proxy}: {left:?}");
        let processes: Vec<String> = settled(&client)?.into_keys().collect();
        ensure!(processes == expected, "{processes:?}");
    }
    Ok(())
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
fn an_update_is_finished_after_the_proxy_dies_at_each_point() -> Result<()> {
    for (number, point) in POINTS.into_iter().enumerate() {
        // The daemon does not start this program by itself.
        let text = WEB.replace("sleep 601", "sleep 601\nautostart = false");
        let daemon = Daemon::start_with(DaemonOptions {
            files: &[(FILE, &text)],
            ..DaemonOptions::default()
        })?;
        let sidecar = stopping_sidecar(&daemon, &[], &[])?;
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
            let b = after.get("web:b").context("web:b is missing")?;
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
fn a_program_whose_options_change_survives_the_death_of_the_proxy_at_each_point() -> Result<()> {
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
        let sidecar = stopping_sidecar(&daemon, &[], &[])?;
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
                let is_changed = ["dyn:own", "web:z"].contains(&name.as_str());
                ensure!(is_changed || is == row, "{name}: {is:?}");
            }
            ensure!(after.len() == before.len(), "{:?}", after.keys());
            Ok(())
        })
        .with_context(|| point.to_owned())?;
        let reply = client.call("twiddler.getProgramOptions", ("web", "z"))?;
        let command = text(member(&reply, "command")?)?;
        ensure!(["/bin/sleep 901", "/bin/sleep 902"].contains(&command));
        // The call can be repeated.
        client.call("twiddler.updateProgram", ("web", "z", sleeping("903")))?;
    }
    Ok(())
}

/// After the daemon has accepted the group, another client makes it read files without the group.
#[test]
fn a_group_that_is_refused_after_its_stop_runs_as_before() -> Result<()> {
    let daemon = Daemon::start_with(DaemonOptions {
        files: &[(FILE, WEB)],
        ..DaemonOptions::default()
    })?;
    let sidecar = stopping_sidecar(&daemon, &[], &[])?;
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
    let reply = diff(&client)?;
    ensure!(
        reply.len() == 1 && text(member(&reply[0], "change")?)? == "removed",
        "{reply:?}"
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

/// Each of the two files is an edit of the other with a process of each kind: one is unchanged, one changes,
/// one joins, one leaves, one is adopted, and groups are replaced, added and removed.
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

/// How an edit is applied.
#[derive(Clone, Copy)]
enum By {
    /// `updateConfig`
    Config,
    /// `supervisorctl update` with `live_update`
    Steps,
}

/// The reply to the client that applies an edit.
struct UpdateReply {
    text: String,
    is_answered: bool,
    /// The processes that the reply lists as failed.
    failed: Vec<String>,
}

/// A daemon that fails on demand, and a proxy that stops on demand in front of it.
struct Stage {
    by: By,
    daemon: Daemon,
    sidecar: Sidecar,
    judge: Judge,
    texts: [String; 2],
    /// The processes that a client added.
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
            By::Config => stopping_sidecar(&daemon, &[], &[])?,
            By::Steps => stopping_sidecar(&daemon, &["--live-update"], &[])?,
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

    /// Starts the process that the daemon does not start by itself, and adds a program.
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

    /// Edits the file. Returns the processes before, and the verdict of what an update has to change.
    fn edit(&mut self) -> Result<(Table, Verdict)> {
        self.make_ready()?;
        let before = settled(&self.client())?;
        self.daemon.write(FILE, &self.texts[0])?;
        self.texts.reverse();
        Ok((before, self.judge.update()?))
    }

    /// Starts a client that applies the edit.
    fn send(&self) -> JoinHandle<Result<UpdateReply>> {
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
                Ok(UpdateReply {
                    text: reply.text(),
                    is_answered,
                    failed: failed.unwrap_or_default(),
                })
            }
            By::Steps => {
                let output = supervisorctl(&["update"], addr)?;
                Ok(UpdateReply {
                    text: String::from_utf8_lossy(&output.stdout).into_owned(),
                    is_answered: output.status.success(),
                    failed: Vec::new(),
                })
            }
        })
    }

    /// Applies the edit.
    fn update(&self) -> Result<String> {
        let client = self.client();
        match self.by {
            By::Config => Ok(format!("{:?}", client.call("twiddler.updateConfig", ())?)),
            By::Steps => ctl(&client, &["update"]),
        }
    }

    /// Ensures that every process is as before, or as the file defines it, or is reported as failed, and
    /// that the next update completes. A client that stops between steps leaves the changed processes
    /// stopped.
    fn ensure_consistent(
        &self,
        before: &Table,
        verdict: &Verdict,
        failed: &[String],
    ) -> Result<()> {
        let client = self.client();
        let differing = verdict.changed.keys().chain(verdict.added.keys());
        let differing = differing.chain(&verdict.removed).cloned();
        let failed = match self.by {
            By::Config => failed.to_vec(),
            By::Steps => differing.collect(),
        };
        eventually(LIMIT, || {
            let now = settled(&client)?;
            ensure_each_is_old_or_new(verdict, &self.added, before, &now, &failed)
        })?;
        let reply = self.update()?;
        eventually(LIMIT, || {
            let after = settled(&client)?;
            ensure_as_judged(verdict, &self.added, before, &after)
        })
        .with_context(|| reply)?;
        self.ensure_clean()
    }

    /// Ensures that the daemon runs only the processes of the files.
    fn ensure_only_files(&mut self) -> Result<()> {
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

    /// Ensures that no probe is left in the daemon or the directory, and that nothing differs.
    fn ensure_clean(&self) -> Result<()> {
        let left = diff(&self.client())?;
        ensure!(left.is_empty(), "{left:?}");
        let infos = self.daemon.call("supervisor.getAllConfigInfo", ())?;
        ensure!(!format!("{infos:?}").contains("twiddler~"), "{infos:?}");
        ensure_no_leftovers(&self.daemon)
    }

    fn restart_daemon(&mut self) -> Result<()> {
        if self.daemon.is_alive() {
            self.daemon.kill()?;
        } else {
            self.daemon.end_children()?;
        }
        self.daemon.start_again()
    }
}

type Table = BTreeMap<String, Row>;

fn ensure_each_is_old_or_new(
    verdict: &Verdict,
    added: &BTreeSet<String>,
    before: &Table,
    now: &Table,
    failed: &[String],
) -> Result<()> {
    let has_worked = |name: &&String| !failed.contains(name);
    for name in verdict.same.iter().chain(added) {
        let (was, is) = (before.get(name), now.get(name));
        ensure!(was == is, "{name} must not change: {was:?}, and now {is:?}");
    }
    for name in verdict.changed.keys().filter(has_worked) {
        let is = now
            .get(name)
            .with_context(|| format!("{name} is missing"))?;
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

/// The processes that the reply to an update lists as failed.
fn failed(reply: &Reply) -> Result<Vec<String>> {
    let Ok(outcome) = read::response(&reply.content())? else {
        return Ok(Vec::new());
    };
    let failed = items(member(&outcome, "failed")?)?.iter();
    let failed = failed.map(|one| Ok(text(member(one, "name")?)?.to_owned()));
    failed.collect()
}

/// Runs the case for each call that an update makes to the daemon, until the case returns that no call was
/// left. With `TEST_ALL=1`, the reverse edit is tried too.
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
        let reply = wait_for(stage.send())?;
        let struck = !faults::is_pending(&stage.daemon);
        faults::call_off(&stage.daemon);
        stage
            .ensure_consistent(&before, &verdict, &reply.failed)
            .with_context(|| reply.text)?;
        Ok(struck)
    })
}

fn dies_at_each_call(by: By, usual: usize) -> Result<()> {
    at_each_call(by, usual, |stage, call| {
        let (before, verdict) = stage.edit()?;
        faults::strike(&stage.daemon, call, "KILL")?;
        let reply = wait_for(stage.send())?;
        let died = !faults::is_pending(&stage.daemon);
        faults::call_off(&stage.daemon);
        if died {
            stage.restart_daemon()?;
            stage.ensure_only_files()?;
        } else {
            stage.ensure_consistent(&before, &verdict, &[])?
        }
        if died && reply.is_answered {
            // The proxy's own look for losses came between the answer and the end of the order.
            let method = faults::method(&stage.daemon)?;
            ensure!(
                method == "getAllProcessInfo",
                "answered, and died at {method}"
            );
            ensure!(is_all_done(&reply, &verdict), "{}", reply.text);
        } else {
            ensure!(died != reply.is_answered, "{}", reply.text);
        }
        Ok(died)
    })
}

/// Whether an answer speaks of each process that the edit changes, adds and removes, and none has failed.
fn is_all_done(reply: &UpdateReply, verdict: &Verdict) -> bool {
    let changed = verdict.changed.keys().chain(verdict.added.keys());
    let mut names = changed.chain(&verdict.removed);
    reply.failed.is_empty() && names.all(|name| reply.text.contains(&format!(">{name}<")))
}

fn restarts_at_each_point(by: By) -> Result<()> {
    let mut stage = Stage::set(by)?;
    for point in POINTS {
        stage.edit()?;
        stage.daemon.write("stop-at", point)?;
        let sent = stage.send();
        wait_until_stopped(stage.sidecar.pid())?;
        stage.restart_daemon()?;
        stage.sidecar.signal("CONT")?;
        let reply = wait_for(sent)?;
        let now = table(&stage.client())?;
        for name in reply.failed {
            let is = now.get(&name);
            ensure!(!is.is_some_and(is_running), "{point}: {is:?} has failed");
        }
        stage
            .ensure_only_files()
            .with_context(|| format!("{point}: {}", reply.text))?;
    }
    Ok(())
}

fn wait_for(sent: JoinHandle<Result<UpdateReply>>) -> Result<UpdateReply> {
    sent.join().map_err(|_| anyhow!("the client panicked"))?
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
fn the_daemon_restarts_at_each_point_of_an_update() -> Result<()> {
    restarts_at_each_point(By::Config)
}

#[test]
fn the_daemon_restarts_at_each_point_of_steps() -> Result<()> {
    restarts_at_each_point(By::Steps)
}

/// The proxy dies while a client makes the steps.
#[test]
fn steps_are_finished_after_the_proxy_dies_at_each_point() -> Result<()> {
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
            .ensure_consistent(&before, &verdict, &[])
            .with_context(|| point)?;
    }
    Ok(())
}
