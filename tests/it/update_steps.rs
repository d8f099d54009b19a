//! `supervisorctl update` and clients that do the same in another way: added programs are not lost, and with
//! `live_update` only changed processes restart, also through reverse proxies.

use std::collections::BTreeMap;
use std::fmt::Display;

use anyhow::{Context, Result, ensure};
use supervisor_twiddler::xmlrpc::Value;

use crate::common::reverse_proxy::ReverseProxy;
use crate::common::tools::{self, HAPROXY, NGINX};
use crate::common::values::{items, texts};
use crate::common::view::{Row, rows};
use crate::common::{
    Client, Daemon, DaemonOptions, LIMIT, Sidecar, SidecarOptions, eventually, options,
    stdout_text, supervisorctl, value,
};

const FILE: &str = "conf.d/web.conf";
const WEB: &str = "[group:web]\nprograms=a,b\n\
    [program:a]\ncommand=/bin/sleep 600\nstartsecs=0\n\
    [program:b]\ncommand=/bin/sleep 601\nstartsecs=0\n";

/// A proxy in front of a daemon with two programs of the file, one of which has changed since, and two added
/// programs, one of which runs.
struct Setup {
    daemon: Daemon,
    sidecar: Sidecar,
    before: BTreeMap<String, Row>,
}

impl Setup {
    fn new(arguments: &[&str]) -> Result<Setup> {
        Setup::with(arguments, &[])
    }

    fn with(arguments: &[&str], environment: &[(&str, &str)]) -> Result<Setup> {
        let daemon = Daemon::start_with(DaemonOptions {
            files: &[(FILE, WEB)],
            ..DaemonOptions::default()
        })?;
        let sidecar = Sidecar::start_options(
            &daemon,
            SidecarOptions {
                arguments,
                environment,
                ..SidecarOptions::default()
            },
        )?;
        let client = sidecar.client();
        for (name, starts) in [("runs", "true"), ("rests", "false")] {
            let program = options(&[
                ("command", value("/bin/sleep 900")),
                ("startsecs", value("0")),
                ("autostart", value(starts)),
            ]);
            client.call("twiddler.addProcessToGroup", ("web", name, program))?;
        }
        client.call("twiddler.diffConfig", ())?;
        let before = eventually(LIMIT, || {
            let table = table(&client)?;
            ensure!(table.values().filter(|row| runs(row)).count() == 3);
            Ok(table)
        })?;
        daemon.write(FILE, &WEB.replace("601", "611"))?;
        Ok(Setup {
            daemon,
            sidecar,
            before,
        })
    }

    fn client(&self) -> Client {
        self.sidecar.client()
    }

    /// The processes that have another pid or state than before, or are missing.
    fn changed(&self) -> Result<Vec<String>> {
        let now = table(&self.client())?;
        let differs = |(name, row): &(&String, &Row)| now.get(*name) != Some(*row);
        let differing = self.before.iter().filter(differs);
        Ok(differing.map(|(name, _)| name.clone()).collect())
    }

    /// Ensures that all processes exist, and that those run that ran before.
    fn ensure_all_run(&self) -> Result<()> {
        eventually(LIMIT, || {
            let now = table(&self.client())?;
            for (name, was) in &self.before {
                let is = now.get(name).with_context(|| format!("{name} is lost"))?;
                ensure!(runs(is) == runs(was), "{name}: {was:?}, and now {is:?}");
            }
            ensure!(now.len() == self.before.len(), "{:?}", now.keys());
            Ok(())
        })
    }
}

fn table(client: &Client) -> Result<BTreeMap<String, Row>> {
    let rows = rows(client)?.into_iter();
    Ok(rows.map(|row| (row.namespec(), row)).collect())
}

fn runs(row: &Row) -> bool {
    row.state == "RUNNING"
}

fn ctl(arguments: &[&str], server: impl Display) -> Result<String> {
    Ok(stdout_text(&supervisorctl(arguments, server)?))
}

fn reverse_proxies(sidecar: &Sidecar) -> Result<Vec<ReverseProxy>> {
    let upstream = sidecar.tcp_addr();
    Ok(vec![
        ReverseProxy::nginx(upstream, "")?,
        ReverseProxy::haproxy(upstream)?,
        ReverseProxy::haproxy_closing(upstream)?,
    ])
}

const UPDATED: &str = "web: stopped\nweb: updated process group\n";

#[test]
fn an_update_through_reverse_proxies_loses_no_added_program() -> Result<()> {
    if !tools::have(&[NGINX, HAPROXY])? {
        return Ok(());
    }
    let setup = Setup::new(&["--persist"])?;
    for (number, front) in reverse_proxies(&setup.sidecar)?.into_iter().enumerate() {
        let seconds = format!("62{number}");
        setup.daemon.write(FILE, &WEB.replace("601", &seconds))?;
        let server = format!("http://{}", front.addr());
        ensure!(ctl(&["update"], &server)? == UPDATED);
        setup.ensure_all_run()?;
        let info = setup.daemon.call("supervisor.getAllConfigInfo", ())?;
        ensure!(format!("{info:?}").contains(&seconds), "{info:?}");
        // A client that stops the whole group, outside an update, stops all of it.
        setup.daemon.write(FILE, &WEB.replace("601", "630"))?;
        ensure!(ctl(&["reread"], &server)? == "web: changed\n");
        ctl(&["stop", "web:*"], &server)?;
        let running = table(&setup.client())?;
        ensure!(!running.values().any(runs), "{running:?}");
        for name in ["web:a", "web:b", "web:runs"] {
            setup.client().call("supervisor.startProcess", (name,))?;
        }
    }
    Ok(())
}

#[test]
fn a_live_update_through_reverse_proxies_restarts_only_changed_processes() -> Result<()> {
    if !tools::have(&[NGINX, HAPROXY])? {
        return Ok(());
    }
    let mut setup = Setup::new(&["--live-update"])?;
    for (number, front) in reverse_proxies(&setup.sidecar)?.into_iter().enumerate() {
        let edited = WEB.replace("601", &format!("62{number}"));
        setup.daemon.write(FILE, &edited)?;
        let server = format!("http://{}", front.addr());
        ensure!(ctl(&["update"], &server)? == UPDATED);
        setup.ensure_all_run()?;
        ensure!(
            setup.changed()? == ["web:b"],
            "{number}: {:?}",
            setup.changed()?
        );
        ensure!(ctl(&["update"], &server)?.is_empty());
        setup.before = table(&setup.client())?;
    }
    Ok(())
}

/// The client opens a connection for each call, and calls `getVersion` between them.
#[test]
fn added_programs_are_added_again_with_a_group_that_is_stopped_removed_and_added() -> Result<()> {
    for arguments in [&[][..], &["--live-update"]] {
        let setup = Setup::new(arguments)?;
        let client = setup.client();
        client.call("supervisor.reloadConfig", ())?;
        for method in ["stopProcessGroup", "removeProcessGroup", "addProcessGroup"] {
            client.call("supervisor.getVersion", ())?;
            client.call(&format!("supervisor.{method}"), ("web",))?;
        }
        setup.ensure_all_run()?;
        let changed = setup.changed()?;
        ensure!(changed == ["web:a", "web:b", "web:runs"], "{changed:?}");
        ensure!(items(&client.call("twiddler.diffConfig", ())?)?.is_empty());
    }
    Ok(())
}

#[test]
fn a_group_that_is_not_added_again_is_removed_and_its_added_programs_are_logged() -> Result<()> {
    for arguments in [&["--persist"][..], &["--live-update"]] {
        let setup = Setup::with(arguments, &[("TEST_WAIT_MS", "700")])?;
        let client = setup.client();
        client.call("supervisor.reloadConfig", ())?;
        client.call("supervisor.stopProcessGroup", ("web",))?;
        client.call("supervisor.removeProcessGroup", ("web",))?;
        let processes = table(&client)?;
        ensure!(processes.contains_key("web:runs"), "{processes:?}");
        let log = setup.sidecar.wait_for_stderr("not added again")?;
        let losses = "web:rests, web:runs";
        ensure!(log.contains("WARN") && log.contains(losses), "{log}");
        for client in [client, setup.daemon.client()] {
            ensure!(table(&client)?.is_empty(), "{:?}", table(&client)?);
        }
        // A later addition adds only the processes of the file.
        let client = setup.client();
        client.call("supervisor.addProcessGroup", ("web",))?;
        let processes: Vec<String> = table(&client)?.into_keys().collect();
        ensure!(processes == ["web:a", "web:b"], "{processes:?}");
    }
    Ok(())
}

#[test]
fn a_removal_without_a_stop_is_not_deferred() -> Result<()> {
    for arguments in [&[][..], &["--live-update"]] {
        let setup = Setup::new(arguments)?;
        ensure!(ctl(&["reread"], setup.client().addr())? == "web: changed\n");
        for name in ["a", "b", "runs"] {
            ctl(&["stop", &format!("web:{name}")], setup.client().addr())?;
        }
        ctl(&["remove", "web"], setup.client().addr())?;
        ensure!(table(&setup.client())?.is_empty());
        ensure!(table(&setup.daemon.client())?.is_empty());
    }
    Ok(())
}

#[test]
fn steps_in_a_multicall_restart_only_changed_processes() -> Result<()> {
    let setup = Setup::new(&["--live-update"])?;
    let client = setup.client();
    let steps = ["stopProcessGroup", "removeProcessGroup", "addProcessGroup"];
    let call = |name: &str| (format!("supervisor.{name}"), vec![value("web")]);
    let reload = ("supervisor.reloadConfig".to_owned(), vec![]);
    let calls: Vec<(String, Vec<Value>)> = std::iter::once(reload).chain(steps.map(call)).collect();
    let calls: Vec<(&str, Vec<Value>)> = calls
        .iter()
        .map(|(name, params)| (name.as_str(), params.clone()))
        .collect();
    let results = client.multicall(&calls)?;
    ensure!(results[2..] == [value(true), value(true)], "{results:?}");
    setup.ensure_all_run()?;
    ensure!(setup.changed()? == ["web:b"], "{:?}", setup.changed()?);
    Ok(())
}

#[test]
fn methods_about_files_and_programs_work_in_multicalls() -> Result<()> {
    let setup = Setup::new(&[])?;
    let program = options(&[
        ("command", value("/bin/sleep 901")),
        ("startsecs", value("0")),
    ]);
    let results = setup.client().multicall(&[
        ("twiddler.diffConfig", vec![]),
        ("twiddler.updateConfig", vec![]),
        ("twiddler.diffConfig", vec![]),
        ("twiddler.getAllProgramInfo", vec![]),
        ("twiddler.getProgramOptions", vec![value("web"), value("b")]),
        (
            "twiddler.updateProgram",
            vec![value("web"), value("runs"), program],
        ),
        (
            "twiddler.scaleProgram",
            vec![value("web"), value("rests"), value(0)],
        ),
        ("twiddler.updateConfig", vec![value(vec!["nobody"])]),
        ("supervisor.getAllProcessInfo", vec![]),
    ])?;
    let results: Vec<&Value> = results.iter().collect();
    ensure!(items(results[0])?.len() == 1, "{results:?}");
    let restarted = texts(crate::common::member(results[1], "restarted")?)?;
    ensure!(restarted == ["web:b"], "{results:?}");
    ensure!(items(results[2])?.is_empty(), "{results:?}");
    ensure!(items(results[3])?.len() == 4, "{results:?}");
    ensure!(format!("{:?}", results[4]).contains("sleep 611"));
    ensure!(*results[5] == value(true), "{results:?}");
    ensure!(format!("{:?}", results[6]).contains("stopped"));
    ensure!(format!("{:?}", results[7]).contains("BAD_NAME: group: nobody"));
    ensure!(items(results[8])?.len() == 3, "{results:?}");
    eventually(LIMIT, || {
        let changed = setup.changed()?;
        ensure!(changed == ["web:b", "web:rests", "web:runs"], "{changed:?}");
        Ok(())
    })
}
