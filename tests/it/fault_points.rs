//! Failures at each step of a change, each provoked once.
//!
//! One multicall of changes, which are one transaction, is stopped at each failpoint. Then
//!
//! | what goes wrong there | test |
//! | --- | --- |
//! | the proxy dies | `the_proxy_dies_at_each_point` |
//! | the daemon starts again, while the proxy lives or is dead | `the_daemon_starts_again_at_each_point` |
//! | the client hangs up, so that the reply is lost | `the_client_hangs_up_at_each_point` |
//! | the disk is full, or not to be written to | `the_disk_fails_at_each_point` |
//!
//! and at each call that the daemon receives for it:
//!
//! | what goes wrong there | test |
//! | --- | --- |
//! | the proxy dies, and the daemon goes on | `the_proxy_dies_at_each_call_of_the_daemon` |
//! | the daemon refuses the call | `the_daemon_refuses_each_call` |
//! | the daemon dies | `the_daemon_dies_at_each_call` |
//!
//! A removal without a call to the daemon has failpoints of its own:
//! `the_proxy_dies_at_each_point_of_hiding`.
//!
//! The proxy suspends itself, in builds with `src/failpoint.rs`. An extension in the daemon
//! (`[rpcinterface:…]`) does the same there.

use std::fs;
use std::time::Duration;

use crate::common::changes::{Change, Model, USER, View, ensure_daemon_matches, make};
use crate::common::disk::{launcher, limit_files, set_mode};
use crate::common::faults;
use crate::common::include::{ensure_no_leftovers, private_dirs};
use crate::common::stuck::{stopped_or_answered, stopping_sidecar, wait_until_stopped};
use crate::common::values::fault_in;
use crate::common::{
    Client, Connection, Daemon, DaemonOptions, LIMIT, Sidecar, eventually, items, options, value,
};
use anyhow::{Context, Result, ensure};
use supervisor_twiddler::xmlrpc::{Value, read, write};

/// The failpoints of `src/failpoint.rs` that a change passes, in this order. The first few come before the
/// calls to the daemon.
const POINTS: [&str; 11] = [
    "planned",
    "begun",
    IN_NEW_DIRECTORY,
    "written",
    "staged",
    "read",
    "kept without",
    "prepared",
    "answered",
    "taken away",
    "done",
];
/// A failpoint that only a change passes which creates the private directory.
const IN_NEW_DIRECTORY: &str = "linked";
const ONLY_WITH_PERSIST: [&str; 1] = ["kept without"];
/// The last failpoint before the daemon executes the change.
const LAST_BEFORE_CALLS: &str = "prepared";
/// The failpoints between which the disk or the daemon changes. At the others, a restart of the daemon has
/// the same result.
const STATE_CHANGES: [&str; 5] = [
    "staged",
    "kept without",
    LAST_BEFORE_CALLS,
    "answered",
    "done",
];

/// A group of the user's files without a process.
const EMPTY: &str = "dynamic_procs";

/// Long enough for the clean-up process, which takes a second on an idle machine.
const SOON: Duration = Duration::from_secs(5);

/// A daemon that fails on demand, a proxy that stops on demand, and the model of the expected state.
struct Stage {
    daemon: Daemon,
    sidecar: Sidecar,
    model: Model,
    persists: bool,
    /// Whether the changes fill empty groups. For an empty group of the user's files, the proxy probes
    /// first and reads nothing ahead.
    fills: bool,
    /// A number that makes the names of each round unique.
    serial: usize,
}

impl Stage {
    fn set(persists: bool) -> Result<Stage> {
        let body = format!("{}{USER}", faults::SECTION);
        let extension =
            faults::extension(&["reloadConfig", "addProcessGroup", "removeProcessGroup"]);
        let daemon = Daemon::start_with(DaemonOptions {
            body: &body,
            files: &[(faults::FILE, &extension)],
            ..DaemonOptions::default()
        })?;
        let arguments: &[&str] = if persists { &["--persist"] } else { &[] };
        let sidecar = stopping_sidecar(&daemon, arguments, &launcher()?)?;
        Ok(Stage {
            daemon,
            sidecar,
            model: Model::new(),
            persists,
            fills: true,
            serial: 0,
        })
    }

    fn client(&self) -> Client {
        self.sidecar.socket_client()
    }

    /// The failpoints that a change passes with these options.
    fn points(&self) -> impl Iterator<Item = &'static str> + use<> {
        let persists = self.persists;
        let passed = move |point: &&str| persists || !ONLY_WITH_PERSIST.contains(point);
        POINTS.into_iter().filter(passed)
    }

    /// Makes changes in one call, which must succeed.
    fn make(&mut self, changes: &[Change]) -> Result<()> {
        if changes.is_empty() {
            return Ok(());
        }
        if let Some(error) = make(&self.client(), changes)? {
            return Err(error).with_context(|| format!("{changes:?}"));
        }
        changes.iter().for_each(|change| self.model.apply(change));
        Ok(())
    }

    /// Prepares the groups for one transaction, and returns its changes: one of each kind that needs a call
    /// to the daemon.
    fn prepare_changes(&mut self) -> Result<Vec<Change>> {
        self.clear()?;
        self.serial += 1;
        let serial = self.serial;
        let word = |what: &str| format!("{what}-{serial}");
        let (fills, goes, new) = (word("fills"), word("goes"), word("new"));
        let (member, leaves) = (word("member"), word("leaves"));
        let group = |group: &String| Change::AddGroup {
            group: group.clone(),
        };
        self.make(&[group(&fills), group(&goes), program("pool", &leaves, 1)])?;
        self.make(&[program(&goes, "own", 1), program(&goes, "placed", 2)])?;
        let mut changes = vec![
            program("web", &member, 2),
            group(&new),
            Change::RemoveGroup { group: goes },
            Change::RemoveProcess {
                group: "pool".to_owned(),
                process: leaves,
            },
        ];
        if self.fills {
            changes.push(program(&fills, "first", 1));
            changes.push(program(EMPTY, &word("first"), 1));
        }
        Ok(changes)
    }

    /// Removes the additions of earlier rounds.
    fn clear(&mut self) -> Result<()> {
        let groups: Vec<String> = self.model.groups().map(str::to_owned).collect();
        let added = groups.into_iter().filter(|group| group.contains('-'));
        let mut changes: Vec<Change> = added.map(|group| Change::RemoveGroup { group }).collect();
        for (group, process) in self.model.processes() {
            if ["web", "pool", EMPTY].contains(&group.as_str()) && process.contains('-') {
                changes.push(Change::RemoveProcess { group, process });
            }
        }
        self.make(&changes)
    }

    /// Sends the changes in one call.
    fn send(&self, changes: &[Change]) -> Result<Connection> {
        let entry = |change: &Change| {
            let (method, params) = change.call();
            options(&[
                ("methodName", value(method)),
                ("params", Value::Array(params)),
            ])
        };
        let calls = Value::Array(changes.iter().map(entry).collect());
        let client = self.client();
        let mut connection = client.connect()?;
        let body = write::call("system.multicall", &[calls]);
        connection.send(&client.request_bytes("POST", "/RPC2", &[], Some(&body)))?;
        Ok(connection)
    }

    /// Sends the changes, and waits until the proxy has stopped at the failpoint.
    fn stop_proxy_at(&self, point: &str, changes: &[Change]) -> Result<Connection> {
        if point == IN_NEW_DIRECTORY {
            for dir in private_dirs(&self.daemon)? {
                fs::remove_dir_all(dir)?;
            }
        }
        let file = self.daemon.dir().join("stop-at");
        fs::write(&file, point)?;
        let connection = self.send(changes)?;
        wait_until_stopped(self.sidecar.pid())?;
        Ok(connection)
    }

    fn resume_proxy(&self) -> Result<()> {
        self.sidecar.signal("CONT")
    }

    /// Restarts the daemon, and updates the model.
    fn start_daemon_again(&mut self) -> Result<()> {
        if self.daemon.is_alive() {
            self.daemon.kill()?;
        } else {
            self.daemon.end_children()?;
        }
        self.daemon.start_again()?;
        if !self.persists {
            self.model = Model::new();
        }
        Ok(())
    }

    /// The lines of the persist file, without the proxy's URL.
    fn persist_lines(&self) -> Result<Vec<String>> {
        let text = if self.persists {
            self.daemon.read("conf.d/zz-twiddler-persist.conf")?
        } else {
            String::new()
        };
        let lines = text.lines().filter(|line| !line.starts_with("serverurl"));
        Ok(lines.map(str::to_owned).collect())
    }

    fn start_proxy_again(&self) -> Result<()> {
        if self.sidecar.is_alive() {
            self.sidecar.kill()?;
            // The clean-up process removes the files.
            eventually(SOON, || self.ensure_clean())?;
        }
        self.sidecar.start_again()
    }

    /// Fails unless the daemon has all of these changes, none, or each completely or not at all, as
    /// `expected` says, and nothing else.
    fn ensure(&mut self, changes: &[Change], expected: Expected) -> Result<()> {
        let view = View::of(&self.client())?;
        match expected {
            Expected::All => changes.iter().for_each(|change| self.model.apply(change)),
            Expected::None => {}
            Expected::Each => self.model.apply_those_seen(changes, &view)?,
        }
        self.model.ensure_shown_by(&view)?;
        ensure_daemon_matches(&self.model, &self.daemon.client(), changes)
    }

    /// Fails if the include directory has a file of a change.
    fn ensure_clean(&self) -> Result<()> {
        ensure_no_leftovers(&self.daemon)
    }
}

/// Which of the changes must have happened after a failure.
#[derive(Clone, Copy, Debug)]
enum Expected {
    All,
    None,
    /// Each one completely or not at all.
    Each,
}

impl Expected {
    /// All changes if the failpoint comes after the calls to the daemon, and none otherwise.
    fn at_point(point: &str) -> Expected {
        let place = |wanted: &str| POINTS.iter().position(|point| *point == wanted);
        if place(point) > place(LAST_BEFORE_CALLS) {
            Expected::All
        } else {
            Expected::None
        }
    }
}

fn program(group: &str, name: &str, processes: usize) -> Change {
    let processes = match processes {
        1 => vec![name.to_owned()],
        several => (0..several)
            .map(|number| format!("{name}_{number}"))
            .collect(),
    };
    Change::AddProgram {
        group: group.to_owned(),
        name: name.to_owned(),
        processes,
        command: format!("/bin/echo {group} {name}"),
    }
}
/// Reads the reply: whether each change succeeded.
fn read_results(connection: &mut Connection) -> Result<Vec<bool>> {
    let reply = connection.read_reply()?;
    let answer = read::response(&reply.content())?.with_context(|| reply.text())?;
    Ok(items(&answer)?
        .iter()
        .map(|value| fault_in(value).is_none())
        .collect())
}

/// Runs the case at each failpoint, with and without `--persist`, for changes that fill groups and for
/// others.
fn at_each_point(case: impl Fn(&mut Stage, &str) -> Result<()>) -> Result<()> {
    for persists in [false, true] {
        let mut stage = Stage::set(persists)?;
        for (point, fills) in stage
            .points()
            .flat_map(|point| [(point, true), (point, false)])
        {
            stage.fills = fills;
            case(&mut stage, point)
                .with_context(|| format!("{point}, --persist: {persists}, fills: {fills}"))?;
        }
    }
    Ok(())
}

/// Runs the case at each call that the daemon receives for a change, until the case returns that there was
/// no such call.
fn at_each_call(
    with_and_without: &[bool],
    case: impl Fn(&mut Stage, &[Change], usize) -> Result<bool>,
) -> Result<()> {
    const ENOUGH: usize = 30;
    for persists in with_and_without.iter().copied() {
        let mut stage = Stage::set(persists)?;
        let mut calls = 0;
        for call in 1..ENOUGH {
            let changes = stage.prepare_changes()?;
            let context = || format!("call {call}, --persist: {persists}");
            if !case(&mut stage, &changes, call).with_context(context)? {
                break;
            }
            calls = call;
        }
        // Two readings, three removed groups, two recreated or new ones, and two real groups.
        ensure!((9..ENOUGH - 1).contains(&calls), "{calls} calls");
    }
    Ok(())
}

#[test]
fn the_proxy_dies_at_each_point() -> Result<()> {
    at_each_point(|stage, point| {
        let changes = stage.prepare_changes()?;
        stage.stop_proxy_at(point, &changes)?;
        stage.start_proxy_again()?;
        stage.ensure(&changes, Expected::at_point(point))?;
        stage.ensure_clean()
    })
}

#[test]
fn the_client_hangs_up_at_each_point() -> Result<()> {
    at_each_point(|stage, point| {
        let changes = stage.prepare_changes()?;
        drop(stage.stop_proxy_at(point, &changes)?);
        stage.resume_proxy()?;
        // The worker makes this change after those.
        stage.make(&[Change::AddGroup {
            group: format!("after-{point}").replace(' ', "-"),
        }])?;
        stage.ensure(&changes, Expected::All)?;
        stage.ensure_clean()
    })
}

#[test]
fn the_daemon_starts_again_at_each_point() -> Result<()> {
    at_each_point(|stage, point| {
        let proxy_lives = if STATE_CHANGES.contains(&point) {
            &[true, false][..]
        } else {
            &[true]
        };
        for proxy_lives in proxy_lives.iter().copied() {
            let changes = stage.prepare_changes()?;
            let mut connection = stage.stop_proxy_at(point, &changes)?;
            stage.start_daemon_again()?;
            let mut expected = if stage.persists {
                Expected::Each
            } else {
                Expected::None
            };
            if proxy_lives {
                stage.resume_proxy()?;
                let reply = connection.read_reply()?;
                if stage.persists && reply.status == 200 {
                    expected = Expected::All;
                }
            } else {
                stage.start_proxy_again()?;
            }
            stage
                .ensure(&changes, expected)
                .and_then(|()| stage.ensure_clean())
                .with_context(|| format!("the proxy lives: {proxy_lives}"))?;
        }
        Ok(())
    })
}

#[test]
fn the_disk_fails_at_each_point() -> Result<()> {
    at_each_point(|stage, point| {
        for is_full in [true, false] {
            let changes = stage.prepare_changes()?;
            let mut connection = stage.stop_proxy_at(point, &changes)?;
            let dir = stage.daemon.include_dir().to_owned();
            if is_full {
                limit_files(&stage.sidecar, Some(0))?
            } else {
                set_mode(&dir, 0o555)?
            }
            stage.resume_proxy()?;
            let results = read_results(&mut connection)?;
            if is_full {
                limit_files(&stage.sidecar, None)?
            } else {
                set_mode(&dir, 0o755)?
            }
            let successes = results.iter().filter(|result| **result).count();
            let are_equal = successes == 0 || successes == results.len();
            ensure!(are_equal, "full: {is_full}: {results:?}");
            let expected = match successes {
                0 => Expected::None,
                _ => Expected::All,
            };
            stage
                .ensure(&changes, expected)
                .and_then(|()| stage.start_proxy_again())
                .and_then(|()| stage.ensure(&[], Expected::None))
                .and_then(|()| stage.ensure_clean())
                .with_context(|| format!("full: {is_full}"))?;
        }
        if stage.persists && STATE_CHANGES.contains(&point) {
            stage.start_daemon_again()?;
            stage
                .ensure(&[], Expected::None)
                .context("in the next epoch")?;
        }
        Ok(())
    })
}

#[test]
fn the_proxy_dies_at_each_call_of_the_daemon() -> Result<()> {
    at_each_call(&[false, true], |stage, changes, call| {
        faults::strike(&stage.daemon, call, "STOP")?;
        let mut connection = stage.send(changes)?;
        let daemon = stage.daemon.pid();
        let stopped = eventually(LIMIT, || {
            match stopped_or_answered(daemon, &mut connection)? {
                Some(stopped) => Ok(stopped),
                None => anyhow::bail!("neither stopped nor answered"),
            }
        })?;
        if stopped {
            stage.sidecar.kill()?;
            stage.daemon.signal("CONT")?;
            stage.sidecar.start_again()?;
        }
        let expected = if stopped {
            Expected::Each
        } else {
            Expected::All
        };
        stage.ensure(changes, expected)?;
        faults::call_off(&stage.daemon);
        Ok(stopped)
    })
}

#[test]
fn the_daemon_refuses_each_call() -> Result<()> {
    at_each_call(&[false, true], |stage, changes, call| {
        faults::strike(&stage.daemon, call, "REFUSE")?;
        let reply = read_results(&mut stage.send(changes)?)?;
        let has_failed = !faults::is_pending(&stage.daemon);
        faults::call_off(&stage.daemon);
        let executed: Vec<Change> = changes
            .iter()
            .zip(&reply)
            .filter(|(_, result)| **result)
            .map(|(change, _)| change.clone())
            .collect();
        ensure!(has_failed || executed.len() == changes.len(), "{reply:?}");
        stage
            .ensure(&executed, Expected::All)
            .with_context(|| format!("{reply:?}"))?;
        let persist_lines = stage.persist_lines()?;
        stage.start_proxy_again()?;
        stage.ensure(&[], Expected::None)?;
        // A start writes the file from the registry.
        ensure!(
            persist_lines == stage.persist_lines()?,
            "{persist_lines:#?}"
        );
        Ok(has_failed)
    })
}

#[test]
fn the_daemon_dies_at_each_call() -> Result<()> {
    // Without `--persist`, no change survives the daemon.
    at_each_call(&[true], |stage, changes, call| {
        faults::strike(&stage.daemon, call, "KILL")?;
        let reply = stage.send(changes)?.read_reply()?;
        let died = !faults::is_pending(&stage.daemon);
        faults::call_off(&stage.daemon);
        ensure!(died == (reply.status == 502), "{reply:?}");
        if died {
            stage.start_daemon_again()?;
        }
        let expected = if died { Expected::Each } else { Expected::All };
        stage.ensure(changes, expected)?;
        Ok(died)
    })
}

#[test]
fn the_proxy_dies_at_each_point_of_hiding() -> Result<()> {
    let mut stage = Stage::set(false)?;
    stage.make(&[Change::AddGroup {
        group: "needs-a-marker".to_owned(),
    }])?;
    for (point, process) in [("hiding", "p0"), ("done", "p1")] {
        let hide = [Change::RemoveProcess {
            group: "pool".to_owned(),
            process: process.to_owned(),
        }];
        stage.stop_proxy_at(point, &hide)?;
        stage.start_proxy_again()?;
        // Hiding needs no call to the daemon, so recovery completes it.
        stage
            .ensure(&hide, Expected::All)
            .with_context(|| point.to_owned())?;
    }
    Ok(())
}
