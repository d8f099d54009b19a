//! What somebody does straight on the daemon after live updates: the next answer is true, and the next
//! update restarts only what changed.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, ensure};

use crate::common::judge::{ctl, diff, differing, is_running, settled, table};
use crate::common::values::{sleeping, texts};
use crate::common::{Client, Daemon, DaemonOptions, LIMIT, Row, Sidecar, eventually, member, text};

const FILE: &str = "conf.d/web.conf";
const WEB: &str = "[group:web]\nprograms=a,b,c\n\
    [program:a]\ncommand=/bin/sleep 600\nstartsecs=0\n\
    [program:b]\ncommand=/bin/sleep 601\nstartsecs=0\n\
    [program:c]\ncommand=/bin/sleep 602\nstartsecs=0\nnumprocs=2\nprocess_name=c%(process_num)d\n\
    [program:lone]\ncommand=/bin/sleep 603\nstartsecs=0\n";
const NEW: &str = "[program:new]\ncommand=/bin/sleep 604\nstartsecs=0\n";

/// A group with one process that an update has placed, one of a scaled program and one that was added.
struct Scene {
    daemon: Daemon,
    sidecar: Sidecar,
    /// What the file says now.
    text: String,
    before: BTreeMap<String, Row>,
}

impl Scene {
    fn new() -> Result<Scene> {
        let daemon = Daemon::start_with(DaemonOptions {
            files: &[(FILE, WEB)],
            ..DaemonOptions::default()
        })?;
        let sidecar = Sidecar::start(&daemon)?;
        let client = sidecar.client();
        diff(&client)?;
        let text = WEB.replace("601", "611");
        daemon.write(FILE, &text)?;
        client.call("twiddler.updateConfig", ())?;
        client.call("twiddler.scaleProgram", ("web", "c", 3))?;
        client.call("twiddler.addProcessToGroup", ("web", "z", sleeping("900")))?;
        let before = settled(&client)?;
        ensure!(before.len() == 7, "{:?}", before.keys());
        Ok(Scene {
            daemon,
            sidecar,
            text,
            before,
        })
    }

    fn client(&self) -> Client {
        self.sidecar.client()
    }

    fn edit(&mut self, old: &str, new: &str) -> Result<()> {
        ensure!(self.text.contains(old), "{}", self.text);
        self.text = self.text.replace(old, new);
        self.daemon.write(FILE, &self.text)
    }

    /// The daemon's group in which it holds a process that clients know by this name.
    fn real(&self, process: &str) -> Result<String> {
        let rows = table(&self.daemon.client())?.into_values();
        let mut rows = rows.filter(|row| row.name == process && is_running(row));
        Ok(rows.next().context("it does not run")?.group)
    }

    fn on_daemon(&self, method: &str, name: &str) -> Result<()> {
        self.daemon.call(&format!("supervisor.{method}"), (name,))?;
        Ok(())
    }

    /// Fails unless `diffConfig` says exactly this of programs: what it is and who would be started and
    /// restarted; and unless an update then does that, and nothing else.
    fn ensure_true(&self, expected: &[(&str, &str, &[&str])]) -> Result<()> {
        let client = self.client();
        let told = eventually(LIMIT, || {
            let told = diff(&client)?;
            let mut found = Vec::new();
            for one in &told {
                let name = format!(
                    "{}:{}",
                    text(member(one, "group")?)?,
                    text(member(one, "program")?)?
                );
                let mut touched = texts(member(one, "start")?)?;
                touched.extend(texts(member(one, "restart")?)?);
                let change = text(member(one, "change")?)?.to_owned();
                let touched = touched.into_iter().map(str::to_owned);
                found.push((change, name, touched.collect::<Vec<String>>()));
            }
            found.retain(|(_, name, _)| !name.ends_with(':'));
            let owned = |(change, name, touched): &(&str, &str, &[&str])| {
                let touched = touched.iter().map(|name| (*name).to_owned());
                ((*change).to_owned(), (*name).to_owned(), touched.collect())
            };
            let expected: Vec<(String, String, Vec<String>)> = expected.iter().map(owned).collect();
            ensure!(found == expected, "{found:?}");
            Ok(told)
        })?;
        let before = settled(&client)?;
        client.call("twiddler.updateConfig", ())?;
        let after = settled(&client)?;
        let touched: BTreeSet<String> = differing(&before, &after).into_iter().collect();
        let meant = expected.iter().flat_map(|(_, _, touched)| *touched);
        let meant: BTreeSet<String> = meant.map(|name| (*name).to_owned()).collect();
        ensure!(
            touched == meant,
            "{touched:?}: {told:?}\n{before:?}\n{after:?}"
        );
        ensure!(after.values().all(is_running), "{after:?}");
        let left = diff(&client)?;
        let is_scaled = left.iter().all(|one| {
            let change = member(one, "change").and_then(text);
            change.is_ok_and(|change| change == "scaled")
        });
        ensure!(is_scaled, "{left:?}");
        // Nobody runs whom clients do not see.
        let direct = table(&self.daemon.client())?;
        let running = direct.values().filter(|row| is_running(row)).count();
        ensure!(
            running == after.len(),
            "{:?}: {:?}",
            direct.keys(),
            after.keys()
        );
        Ok(())
    }

    /// Fails unless another edit restarts one process alone.
    fn ensure_next_edit_is_live(&mut self) -> Result<()> {
        self.edit("600", "610")?;
        self.ensure_true(&[("changed", "web:a", &["web:a"])])
    }
}

const SCALED: (&str, &str, &[&str]) = ("scaled", "web:c", &[]);

#[test]
fn after_an_update_straight_on_the_daemon_the_files_are_in_force() -> Result<()> {
    let mut scene = Scene::new()?;
    scene.edit("602", "612")?;
    ctl(&scene.daemon.client(), &["update"])?;
    // It has taken our groups for gone, and made its own anew.
    scene.ensure_true(&[])?;
    let now = settled(&scene.client())?;
    let names: Vec<&str> = now.keys().map(String::as_str).collect();
    ensure!(
        names == ["lone:lone", "web:a", "web:b", "web:c0", "web:c1"],
        "{names:?}"
    );
    ensure!(now["lone:lone"] == scene.before["lone:lone"]);
    scene.ensure_next_edit_is_live()
}

#[test]
fn after_a_restart_straight_on_the_daemon_the_files_are_in_force() -> Result<()> {
    let mut scene = Scene::new()?;
    scene.edit("602", "612")?;
    scene.daemon.restart_rpc()?;
    scene.ensure_true(&[])?;
    scene.ensure_next_edit_is_live()
}

#[test]
fn a_group_that_was_added_straight_on_the_daemon_is_there() -> Result<()> {
    let mut scene = Scene::new()?;
    scene.edit("[program:lone]", &format!("{NEW}[program:lone]"))?;
    scene.daemon.call("supervisor.reloadConfig", ())?;
    scene.on_daemon("addProcessGroup", "new")?;
    scene.ensure_true(&[SCALED])?;
    scene.edit("604", "614")?;
    scene.ensure_true(&[("changed", "new:new", &["new:new"]), SCALED])
}

#[test]
fn a_group_that_was_removed_straight_on_the_daemon_comes_back() -> Result<()> {
    let scene = Scene::new()?;
    scene.on_daemon("stopProcessGroup", "lone")?;
    scene.on_daemon("removeProcessGroup", "lone")?;
    scene.ensure_true(&[("added", "lone:lone", &["lone:lone"]), SCALED])
}

#[test]
fn a_process_of_an_update_that_was_removed_straight_on_the_daemon_comes_back() -> Result<()> {
    let scene = Scene::new()?;
    let real = scene.real("b")?;
    ensure!(real != "web", "{real}");
    scene.on_daemon("stopProcessGroup", &real)?;
    scene.on_daemon("removeProcessGroup", &real)?;
    scene.ensure_true(&[("added", "web:b", &["web:b"]), SCALED])
}

#[test]
fn a_group_that_was_made_anew_straight_on_the_daemon_is_there_once() -> Result<()> {
    let mut scene = Scene::new()?;
    // Somebody makes the daemon's own group anew, which knows nothing of the others.
    scene.daemon.call("supervisor.reloadConfig", ())?;
    for method in ["stopProcessGroup", "removeProcessGroup", "addProcessGroup"] {
        scene.on_daemon(method, "web")?;
    }
    let twice = table(&scene.daemon.client())?;
    ensure!(twice.values().filter(|row| row.name == "b").count() == 2);
    let told = diff(&scene.client())?;
    ensure!(texts(member(&told[0], "stop")?)? == ["web:b"], "{told:?}");
    scene.client().call("twiddler.updateConfig", ())?;
    scene.ensure_true(&[SCALED])?;
    scene.edit("600", "610")?;
    scene.ensure_true(&[("changed", "web:a", &["web:a"]), SCALED])
}

#[test]
fn files_that_were_read_straight_on_the_daemon_are_still_to_be_put_in_force() -> Result<()> {
    let mut scene = Scene::new()?;
    scene.edit("600", "610")?;
    scene.daemon.call("supervisor.reloadConfig", ())?;
    scene.ensure_true(&[("changed", "web:a", &["web:a"]), SCALED])
}
