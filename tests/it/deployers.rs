//! What deployment tools do: the commands of Ansible's `supervisorctl` module, and the calls of
//! supervisorphp's `reloadAndApplyConfig`, on the daemon itself and through the proxy.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, ensure};

use crate::common::judge::{diff, differing, is_running, settled};
use crate::common::values::{items, sleeping, texts};
use crate::common::{
    Addr, Client, Daemon, DaemonOptions, Row, Sidecar, stderr_text, stdout_text, supervisorctl,
    value,
};

const FILE: &str = "conf.d/web.conf";
const WEB: &str = "[group:web]\nprograms=a,b\n\
    [program:a]\ncommand=/bin/sleep 600\nstartsecs=0\n\
    [program:b]\ncommand=/bin/sleep 601\nstartsecs=0\n\
    [program:lone]\ncommand=/bin/sleep 602\nstartsecs=0\n";
const NEW: &str = "[program:new]\ncommand=/bin/sleep 603\nstartsecs=0\n";

/// Who is called, and what restarts where a file has changed.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Server {
    Daemon,
    Proxy,
    Live,
}

/// A server with the file in force, and one more process in the group where that can be.
struct Scene {
    server: Server,
    daemon: Daemon,
    sidecar: Option<Sidecar>,
}

impl Scene {
    fn new(server: Server) -> Result<Scene> {
        let daemon = Daemon::start_with(DaemonOptions {
            files: &[(FILE, WEB)],
            ..DaemonOptions::default()
        })?;
        let arguments: &[&str] = match server {
            Server::Daemon => {
                return Ok(Scene {
                    server,
                    daemon,
                    sidecar: None,
                });
            }
            Server::Proxy => &[],
            Server::Live => &["--live-update"],
        };
        let sidecar = Sidecar::start_with(&daemon, arguments)?;
        let client = sidecar.client();
        client.call(
            "twiddler.addProcessToGroup",
            ("web", "added", sleeping("900")),
        )?;
        diff(&client)?;
        Ok(Scene {
            server,
            daemon,
            sidecar: Some(sidecar),
        })
    }

    fn client(&self) -> Client {
        match &self.sidecar {
            Some(sidecar) => sidecar.client(),
            None => self.daemon.client(),
        }
    }

    fn addr(&self) -> Addr {
        match &self.sidecar {
            Some(sidecar) => sidecar.client().addr().clone(),
            None => self.daemon.addr(),
        }
    }

    fn table(&self) -> Result<BTreeMap<String, Row>> {
        settled(&self.client())
    }

    /// What supervisorctl prints, and its exit status.
    fn ctl(&self, words: &[&str]) -> Result<(String, i32)> {
        let output = supervisorctl(words, self.addr())?;
        let code = output.status.code().context("ended by a signal")?;
        Ok((stdout_text(&output) + &stderr_text(&output), code))
    }

    /// The processes that the module finds under a name; that of a group ends in a colon.
    fn matched(&self, name: &str) -> Result<Vec<(String, String)>> {
        let (said, _) = self.ctl(&["status"])?;
        let mut matched = Vec::new();
        for line in said.lines() {
            let mut words = line.split_whitespace();
            let (Some(process), Some(state)) = (words.next(), words.next()) else {
                continue;
            };
            let is_meant = match name.ends_with(':') {
                true => process.starts_with(name),
                false => process == name,
            };
            if is_meant {
                matched.push((process.to_owned(), state.to_owned()));
            }
        }
        Ok(matched)
    }

    /// `state: present`
    fn present(&self, name: &str) -> Result<bool> {
        if !self.matched(name)?.is_empty() {
            return Ok(false);
        }
        ensure!(self.ctl(&["reread"])?.1 == 0);
        let group = name.trim_end_matches(':');
        let (said, _) = self.ctl(&["add", group])?;
        ensure!(
            said.contains(&format!("{group}: added process group")),
            "{said}"
        );
        Ok(true)
    }

    /// `state: restarted`
    fn restarted(&self, name: &str) -> Result<String> {
        let (said, code) = self.ctl(&["update"])?;
        ensure!(code == 0, "{said}");
        for (process, _) in self.matched(name)? {
            let (said, code) = self.ctl(&["restart", &process])?;
            let expected = format!("{process}: started");
            ensure!(code == 0 && said.contains(&expected), "{process}: {said}");
        }
        Ok(said)
    }

    /// `state: absent`, with `stop_before_removing`
    fn absent(&self, name: &str) -> Result<()> {
        for (process, state) in self.matched(name)? {
            if ["RUNNING", "STARTING"].contains(&state.as_str()) {
                let (said, _) = self.ctl(&["stop", &process])?;
                ensure!(said.contains(&format!("{process}: stopped")), "{said}");
            }
        }
        ensure!(self.ctl(&["reread"])?.1 == 0);
        let group = name.trim_end_matches(':');
        let (said, _) = self.ctl(&["remove", group])?;
        ensure!(
            said.contains(&format!("{group}: removed process group")),
            "{said}"
        );
        Ok(())
    }

    /// supervisorphp's `reloadAndApplyConfig`, a connection for each call.
    fn reload_and_apply(&self) -> Result<()> {
        let client = self.client();
        let call =
            |method: &str, group: &str| client.call(&format!("supervisor.{method}"), (group,));
        let reloaded = client.call("supervisor.reloadConfig", ())?;
        let lists = items(&items(&reloaded)?[0])?.to_vec();
        for group in texts(&lists[1])? {
            call("stopProcessGroup", group)?;
            ensure!(call("removeProcessGroup", group)? == value(true));
            ensure!(call("addProcessGroup", group)? == value(true));
        }
        for group in texts(&lists[2])? {
            call("stopProcessGroup", group)?;
            ensure!(call("removeProcessGroup", group)? == value(true));
        }
        for group in texts(&lists[0])? {
            ensure!(call("addProcessGroup", group)? == value(true));
        }
        Ok(())
    }

    /// Does something, and fails unless exactly these processes are not as before then. Those in
    /// `whole` are there only where groups restart as a whole.
    fn ensure_touched<T>(
        &self,
        act: impl FnOnce() -> Result<T>,
        always: &[&str],
        whole: &[&str],
    ) -> Result<T> {
        let before = self.table()?;
        let done = act()?;
        let after = self.table()?;
        let touched: BTreeSet<String> = differing(&before, &after).into_iter().collect();
        let whole = whole.iter().filter(|_| self.server != Server::Live);
        let meant = always.iter().chain(whole).map(|name| (*name).to_owned());
        let meant: BTreeSet<String> = meant.collect();
        ensure!(touched == meant, "{touched:?} with {:?}", self.server);
        ensure!(after.values().all(is_running), "{after:?}");
        Ok(done)
    }

    /// Fails if anything differs from the file, or the daemon has what nobody sees.
    fn ensure_in_force(&self) -> Result<()> {
        if let Some(sidecar) = &self.sidecar {
            let left = diff(&sidecar.client())?;
            ensure!(left.is_empty(), "{left:?}");
            let running = |client: &Client| -> Result<usize> {
                Ok(settled(client)?
                    .values()
                    .filter(|row| is_running(row))
                    .count())
            };
            ensure!(running(&self.daemon.client())? == running(&sidecar.client())?);
        }
        let (said, _) = self.ctl(&["reread"])?;
        ensure!(said == "No config updates to processes\n", "{said}");
        Ok(())
    }
}

const SERVERS: [Server; 3] = [Server::Daemon, Server::Proxy, Server::Live];

#[test]
fn ansibles_present_adds_what_is_new_and_nothing_else() -> Result<()> {
    for server in SERVERS {
        let scene = Scene::new(server)?;
        // Another group has changed, which is not asked for.
        let edited = WEB.replace("601", "611") + NEW;
        scene.daemon.write(FILE, &edited)?;
        let is_new = scene.ensure_touched(|| scene.present("new"), &["new:new"], &[])?;
        ensure!(is_new, "{server:?}");
        for name in ["new", "web:", "lone"] {
            ensure!(
                !scene.ensure_touched(|| scene.present(name), &[], &[])?,
                "{name}"
            );
        }
        let (said, _) = scene.ctl(&["reread"])?;
        ensure!(said == "web: changed\n", "{server:?}: {said}");
    }
    Ok(())
}

#[test]
fn ansibles_restarted_puts_all_files_in_force_and_restarts_what_is_named() -> Result<()> {
    for server in SERVERS {
        let scene = Scene::new(server)?;
        scene
            .daemon
            .write(FILE, &(WEB.replace("601", "611") + NEW))?;
        let touched = ["lone:lone", "new:new", "web:b"];
        let said = scene.ensure_touched(|| scene.restarted("lone"), &touched, &["web:a"])?;
        ensure!(
            said == "web: stopped\nweb: updated process group\nnew: added process group\n",
            "{server:?}: {said}"
        );
        scene.ensure_in_force()?;
        // Nothing differs: all of the group that is named restarts.
        let mut all = vec!["web:a", "web:b"];
        all.extend(scene.sidecar.is_some().then_some("web:added"));
        scene.ensure_touched(|| scene.restarted("web:"), &all, &[])?;
        scene.ensure_in_force()?;
    }
    Ok(())
}

#[test]
fn ansibles_absent_removes_what_has_left_the_file_and_what_has_not() -> Result<()> {
    for server in SERVERS {
        // What a live update has placed goes with its group.
        let scene = Scene::new(server)?;
        scene.daemon.write(FILE, &WEB.replace("601", "611"))?;
        scene.ctl(&["update"])?;
        let (without, _) = WEB.split_once("[program:lone]").context("lone")?;
        let left = without.replace("601", "612");
        scene.daemon.write(FILE, &left)?;
        scene.ensure_touched(|| scene.absent("lone"), &["lone:lone"], &[])?;
        let (said, _) = scene.ctl(&["reread"])?;
        ensure!(said == "web: changed\n", "{server:?}: {said}");
        scene.absent("web:")?;
        ensure!(scene.table()?.is_empty(), "{:?}", scene.table()?);
        ensure!(settled(&scene.daemon.client())?.is_empty());
        // It is there again when somebody wants it.
        ensure!(scene.present("web:")?);
        let there: Vec<String> = scene.table()?.into_keys().collect();
        ensure!(there == ["web:a", "web:b"], "{server:?}: {there:?}");
        scene.ensure_in_force()?;
    }
    Ok(())
}

#[test]
fn supervisorphp_reloads_and_applies() -> Result<()> {
    for server in SERVERS {
        let scene = Scene::new(server)?;
        let edited = WEB.replace("601", "611").replace("lone", "other") + NEW;
        scene.daemon.write(FILE, &edited)?;
        let touched = ["lone:lone", "new:new", "other:other", "web:b"];
        // What was added cannot be told from the rest where the calls come on connections of their own,
        // and comes back with its group.
        let whole: &[&str] = match server {
            Server::Proxy => &["web:a", "web:added"],
            Server::Daemon | Server::Live => &["web:a"],
        };
        scene.ensure_touched(|| scene.reload_and_apply(), &touched, whole)?;
        scene.ensure_in_force()?;
    }
    Ok(())
}
