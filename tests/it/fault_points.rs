//! Every point of a change at which something can go wrong, hit once on purpose.
//!
//! One call of changes, which are one transaction, is stopped at each point of it. Then
//!
//! | what goes wrong there | test |
//! | --- | --- |
//! | the proxy dies | `the_proxy_dies_at_each_point` |
//! | the daemon starts again, while the proxy lives or is dead | `the_daemon_starts_again_at_each_point` |
//! | the client hangs up, so that the reply is lost | `the_client_hangs_up_at_each_point` |
//! | the disk is full, or not to be written to | `the_disk_fails_at_each_point` |
//!
//! and at each call that the daemon gets for it:
//!
//! | what goes wrong there | test |
//! | --- | --- |
//! | the proxy dies, and the daemon goes on | `the_proxy_dies_at_each_call_of_the_daemon` |
//! | the daemon refuses the call | `the_daemon_refuses_each_call` |
//! | the daemon dies | `the_daemon_dies_at_each_call` |
//!
//! A removal that needs nothing of the daemon has points of its own:
//! `the_proxy_dies_at_each_point_of_hiding`.
//!
//! The proxy is stopped by itself, in builds that carry `src/failpoint.rs`; the daemon by an extension of
//! its own kind (`[rpcinterface:…]`).

use std::fs;
use std::time::Duration;

use crate::common::changes::{Change, Model, USER, View, ensure_daemon_matches, make};
use crate::common::disk::{launcher, limit_files, set_mode};
use crate::common::faults;
use crate::common::stuck::{GENERATED, stopped_or_answered, wait_until_stopped};
use crate::common::values::fault_in;
use crate::common::{
    Client, Connection, Daemon, DaemonOptions, LIMIT, Sidecar, SidecarOptions, eventually, items,
    options, value,
};
use anyhow::{Context, Result, ensure};
use supervisor_twiddler::xmlrpc::{Value, read, write};

/// The points of `src/failpoint.rs` that a change passes, in this order. The first few are before the
/// daemon is asked.
const POINTS: [&str; 11] = [
    "planned",
    "begun",
    "written",
    "linked",
    "staged",
    "read",
    "kept without",
    "prepared",
    "answered",
    "taken away",
    "done",
];
const PERSISTS_ALONE: [&str; 1] = ["kept without"];
/// After this one, the daemon has made the change.
const ASKED: &str = "prepared";
/// Points between which the disk or the daemon changes hands: elsewhere nothing more is to be seen
/// of a daemon that starts again.
const TURNS: [&str; 5] = ["staged", "kept without", ASKED, "answered", "done"];

/// A group of the user's files without a process.
const EMPTY: &str = "dynamic_procs";

/// A second, on a machine that is not busy with anything else.
const SOON: Duration = Duration::from_secs(5);

/// A daemon that fails on demand, the proxy in front of it that stops on demand, and what must be
/// there.
struct Stage {
    daemon: Daemon,
    sidecar: Sidecar,
    model: Model,
    persists: bool,
    /// Whether groups get their first processes. Where the user's own does, the daemon is asked before
    /// whether it is empty, and reads nothing ahead.
    fills: bool,
    /// Names are not used twice.
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
        let stop_at = daemon.dir().join("stop-at").to_string_lossy().into_owned();
        let sidecar = Sidecar::start_options(
            &daemon,
            SidecarOptions {
                arguments: if persists { &["--persist"] } else { &[] },
                environment: &[("TEST_STOP_AT", &stop_at)],
                launcher: &launcher()?,
                ..SidecarOptions::default()
            },
        )?;
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

    /// The points that a change passes here.
    fn points(&self) -> impl Iterator<Item = &'static str> + use<> {
        let persists = self.persists;
        let passed = move |point: &&str| persists || !PERSISTS_ALONE.contains(point);
        POINTS.into_iter().filter(passed)
    }

    /// Makes changes, all in one call, that must work.
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

    /// Makes ready for changes that are one transaction, and hands them over: each kind that
    /// asks something of the daemon.
    fn rehearse(&mut self) -> Result<Vec<Change>> {
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

    /// Removes what was added before.
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

    /// Sends the changes, and waits until the proxy has stopped at the point.
    fn stop_proxy_at(&self, point: &str, changes: &[Change]) -> Result<Connection> {
        let file = self.daemon.dir().join("stop-at");
        fs::write(&file, point)?;
        let connection = self.send(changes)?;
        wait_until_stopped(self.sidecar.pid())?;
        Ok(connection)
    }

    fn go_on(&self) -> Result<()> {
        self.sidecar.signal("CONT")
    }

    /// Starts the daemon again, after which it has what it is to have.
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

    /// The lines of what is kept, but for where the proxy listens.
    fn kept(&self) -> Result<Vec<String>> {
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
            // Somebody is left to clean up, and is about to.
            eventually(SOON, || self.ensure_clean())?;
        }
        self.sidecar.start_again()
    }

    /// Fails unless all of these changes hold, or none, or each by itself, and nothing else does.
    fn ensure(&mut self, changes: &[Change], held: Held) -> Result<()> {
        let view = View::of(&self.client())?;
        match held {
            Held::All => changes.iter().for_each(|change| self.model.apply(change)),
            Held::None => {}
            Held::Each => self.model.apply_those_seen(changes, &view)?,
        }
        self.model.ensure_shown_by(&view)?;
        ensure_daemon_matches(&self.model, &self.daemon.client(), changes)
    }

    /// Fails if anything of a change lies in the include directory.
    fn ensure_clean(&self) -> Result<()> {
        let files = self.daemon.include_files()?;
        let left = |name: &&String| name.starts_with(".zz-") || *name == GENERATED;
        ensure!(files.iter().find(left).is_none(), "left behind: {files:?}");
        Ok(())
    }
}

/// What is expected of changes that something went wrong with.
#[derive(Clone, Copy, Debug)]
enum Held {
    All,
    None,
    /// Each whole or not at all.
    Each,
}

impl Held {
    /// All of those that were stopped at this point, if the daemon was asked before it.
    fn beyond(point: &str) -> Held {
        let place = |wanted: &str| POINTS.iter().position(|point| *point == wanted);
        if place(point) > place(ASKED) {
            Held::All
        } else {
            Held::None
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
/// What the client was told of each change: whether it was made.
fn answers(connection: &mut Connection) -> Result<Vec<bool>> {
    let reply = connection.read_reply()?;
    let answer = read::response(&reply.content())?.with_context(|| reply.text())?;
    Ok(items(&answer)?
        .iter()
        .map(|value| fault_in(value).is_none())
        .collect())
}

/// Runs the case at each point, with and without `--persist`, where a group is filled and where the
/// daemon reads ahead.
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

/// Runs the case at each call that the daemon gets for a change, until it says that it came to none.
fn at_each_call(
    with_and_without: &[bool],
    case: impl Fn(&mut Stage, &[Change], usize) -> Result<bool>,
) -> Result<()> {
    const ENOUGH: usize = 30;
    for persists in with_and_without.iter().copied() {
        let mut stage = Stage::set(persists)?;
        let mut calls = 0;
        for call in 1..ENOUGH {
            let changes = stage.rehearse()?;
            let context = || format!("call {call}, --persist: {persists}");
            if !case(&mut stage, &changes, call).with_context(context)? {
                break;
            }
            calls = call;
        }
        // Two readings, three groups that go, two that are made anew or new, two members' own.
        ensure!((9..ENOUGH - 1).contains(&calls), "{calls} calls");
    }
    Ok(())
}

#[test]
fn the_proxy_dies_at_each_point() -> Result<()> {
    at_each_point(|stage, point| {
        let changes = stage.rehearse()?;
        stage.stop_proxy_at(point, &changes)?;
        stage.start_proxy_again()?;
        stage.ensure(&changes, Held::beyond(point))?;
        stage.ensure_clean()
    })
}

#[test]
fn the_client_hangs_up_at_each_point() -> Result<()> {
    at_each_point(|stage, point| {
        let changes = stage.rehearse()?;
        drop(stage.stop_proxy_at(point, &changes)?);
        stage.go_on()?;
        // Changes are made one after another: this one comes after those.
        stage.make(&[Change::AddGroup {
            group: format!("after-{point}").replace(' ', "-"),
        }])?;
        stage.ensure(&changes, Held::All)?;
        stage.ensure_clean()
    })
}

#[test]
fn the_daemon_starts_again_at_each_point() -> Result<()> {
    at_each_point(|stage, point| {
        let proxy_lives = if TURNS.contains(&point) {
            &[true, false][..]
        } else {
            &[true]
        };
        for proxy_lives in proxy_lives.iter().copied() {
            let changes = stage.rehearse()?;
            let mut connection = stage.stop_proxy_at(point, &changes)?;
            stage.start_daemon_again()?;
            let mut held = if stage.persists {
                Held::Each
            } else {
                Held::None
            };
            if proxy_lives {
                stage.go_on()?;
                let reply = connection.read_reply()?;
                if stage.persists && reply.status == 200 {
                    held = Held::All;
                }
            } else {
                stage.start_proxy_again()?;
            }
            stage
                .ensure(&changes, held)
                .and_then(|()| stage.ensure_clean())
                .with_context(|| format!("the proxy lives: {proxy_lives}"))?;
        }
        Ok(())
    })
}

#[test]
fn the_disk_fails_at_each_point() -> Result<()> {
    at_each_point(|stage, point| {
        for full in [true, false] {
            let changes = stage.rehearse()?;
            let mut connection = stage.stop_proxy_at(point, &changes)?;
            let dir = stage.daemon.include_dir().to_owned();
            if full {
                limit_files(&stage.sidecar, Some(0))?
            } else {
                set_mode(&dir, 0o555)?
            }
            stage.go_on()?;
            let told = answers(&mut connection)?;
            if full {
                limit_files(&stage.sidecar, None)?
            } else {
                set_mode(&dir, 0o755)?
            }
            let made = told.iter().filter(|made| **made).count();
            let whole = made == 0 || made == told.len();
            ensure!(whole, "full: {full}: {told:?}");
            let held = match made {
                0 => Held::None,
                _ => Held::All,
            };
            stage
                .ensure(&changes, held)
                .and_then(|()| stage.start_proxy_again())
                .and_then(|()| stage.ensure(&[], Held::None))
                .and_then(|()| stage.ensure_clean())
                .with_context(|| format!("full: {full}"))?;
        }
        if stage.persists && TURNS.contains(&point) {
            stage.start_daemon_again()?;
            stage.ensure(&[], Held::None).context("in another life")?;
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
        let held = if stopped { Held::Each } else { Held::All };
        stage.ensure(changes, held)?;
        faults::call_off(&stage.daemon);
        Ok(stopped)
    })
}

#[test]
fn the_daemon_refuses_each_call() -> Result<()> {
    at_each_call(&[false, true], |stage, changes, call| {
        faults::strike(&stage.daemon, call, "REFUSE")?;
        let reply = answers(&mut stage.send(changes)?)?;
        let struck = !faults::is_pending(&stage.daemon);
        faults::call_off(&stage.daemon);
        let made: Vec<Change> = changes
            .iter()
            .zip(&reply)
            .filter(|(_, made)| **made)
            .map(|(change, _)| change.clone())
            .collect();
        ensure!(struck || made.len() == changes.len(), "{reply:?}");
        stage
            .ensure(&made, Held::All)
            .with_context(|| format!("{reply:?}"))?;
        let kept = stage.kept()?;
        stage.start_proxy_again()?;
        stage.ensure(&[], Held::None)?;
        // A start writes it from what is known.
        ensure!(kept == stage.kept()?, "{kept:#?}");
        Ok(struck)
    })
}

#[test]
fn the_daemon_dies_at_each_call() -> Result<()> {
    // Without --persist nothing is left then.
    at_each_call(&[true], |stage, changes, call| {
        faults::strike(&stage.daemon, call, "KILL")?;
        let reply = stage.send(changes)?.read_reply()?;
        let died = !faults::is_pending(&stage.daemon);
        faults::call_off(&stage.daemon);
        ensure!(died == (reply.status == 502), "{reply:?}");
        if died {
            stage.start_daemon_again()?;
        }
        let held = if died { Held::Each } else { Held::All };
        stage.ensure(changes, held)?;
        Ok(died)
    })
}

#[test]
fn the_proxy_dies_at_each_point_of_hiding() -> Result<()> {
    let mut stage = Stage::set(false)?;
    stage.make(&[Change::AddGroup {
        group: "marks-the-life".to_owned(),
    }])?;
    for (point, process) in [("hiding", "p0"), ("done", "p1")] {
        let hide = [Change::RemoveProcess {
            group: "pool".to_owned(),
            process: process.to_owned(),
        }];
        stage.stop_proxy_at(point, &hide)?;
        stage.start_proxy_again()?;
        // It needs nothing of the daemon, so what was begun is made.
        stage
            .ensure(&hide, Held::All)
            .with_context(|| point.to_owned())?;
    }
    Ok(())
}
