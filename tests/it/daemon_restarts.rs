//! The daemon restarts or is away: changes last for its epoch, clients get correct replies, and no call is
//! repeated.
//!
//! `TEST_EFFORT` multiplies how often the daemon is restarted in each way.

use crate::common::changes::{Model, Restart, USER, View};
use crate::common::dice::{seed, times};
use crate::common::{
    Client, Daemon, DaemonOptions, Dice, LIMIT, Reply, Sidecar, Until, eventually, options, rows,
    texts,
};
use anyhow::{Context, Result, bail, ensure};
use supervisor_twiddler::xmlrpc::{Value, write};

/// Few enough for each pull request. 50 give more confidence.
const RESTARTS: usize = 8;

fn sleeper() -> Value {
    options(&[("command", "/bin/sleep 600"), ("autostart", "false")])
}

fn group_names(client: &Client) -> Result<Vec<String>> {
    let names = client.call("twiddler.getGroupNames", ())?;
    Ok(texts(&names)?.into_iter().map(str::to_owned).collect())
}

/// Restarts the daemon during changes, several times. Each time, the first call already shows what its file
/// defines.
fn ensure_restarts_remove_changes(restart: Restart) -> Result<()> {
    let restarts = times(RESTARTS)?;
    let daemon = Daemon::start(USER)?;
    let sidecar = Sidecar::start(&daemon)?;
    let mut dice = Dice::new(seed(11)?);
    for number in 0..restarts {
        let case = || format!("{restart:?} {number}");
        let mut model = Model::new();
        let last = restart
            .make_under_changes(&daemon, &sidecar, &mut model, &mut dice)
            .with_context(case)?;
        let view = View::of(&sidecar.socket_client()).with_context(case)?;
        last.ensure_forgotten(&view, &daemon.client())
            .with_context(case)?;
    }
    Ok(())
}

#[test]
fn after_a_restart_by_call_the_daemon_has_what_its_file_defines() -> Result<()> {
    ensure_restarts_remove_changes(Restart::Call)
}

#[test]
fn after_a_restart_by_hangup_the_daemon_has_what_its_file_defines() -> Result<()> {
    ensure_restarts_remove_changes(Restart::Hangup)
}

#[test]
fn after_a_kill_and_a_start_the_daemon_has_what_its_file_defines() -> Result<()> {
    ensure_restarts_remove_changes(Restart::Kill)
}

#[test]
fn a_restart_is_noticed_while_nobody_calls() -> Result<()> {
    let daemon = Daemon::start(USER)?;
    let sidecar = Sidecar::start(&daemon)?;
    let client = sidecar.client();
    for (number, restart) in (1..).zip(Restart::ALL) {
        client.call("twiddler.addProgramToGroup", ("web", "placed", sleeper()))?;
        client.call("twiddler.removeProcessFromGroup", ("pool", "p0"))?;
        // Directly on the daemon, so that the proxy does not see the call.
        restart.make(&daemon, &daemon.client())?;
        eventually(LIMIT, || {
            let log = sidecar.stderr_text();
            let count = log.matches("supervisord was started again").count();
            ensure!(count == number, "noticed {count} of {number} restarts");
            Ok(())
        })
        .with_context(|| format!("{restart:?}"))?;
    }
    Ok(())
}

/// Calls that may come first after a restart of the daemon.
fn calls() -> Vec<(&'static str, Vec<Value>)> {
    vec![
        ("supervisor.getState", vec![]),
        ("twiddler.getGroupNames", vec![]),
        ("twiddler.addGroup", params!["later", 1]),
        ("supervisor.getAllProcessInfo", vec![]),
        (
            "twiddler.addProgramToGroup",
            params!["web", "later", sleeper()],
        ),
        ("supervisor.getProcessInfo", params!["web:front"]),
        ("twiddler.removeProcessFromGroup", params!["pool", "p0"]),
        ("system.listMethods", vec![]),
        ("twiddler.getAPIVersion", vec![]),
    ]
}

fn ensure_away(client: &Client) -> Result<()> {
    for (method, params) in calls() {
        match client.call(method, params) {
            Err(error) if error.status() == Some(502) => {}
            other => bail!("{method}: {other:?}"),
        }
    }
    let page = client.get("/")?;
    ensure!(page.status == 502, "{page:?}");
    client.wait_for_health(503).map(drop)
}

#[test]
fn calls_fail_while_the_daemon_is_away_and_the_first_one_after_that_works() -> Result<()> {
    let daemon = Daemon::start(USER)?;
    let sidecar = Sidecar::start(&daemon)?;
    for client in [sidecar.client(), sidecar.client().kept_alive()] {
        for (method, params) in calls() {
            // A placed process, so that the proxy has a registry that becomes outdated.
            client.call("twiddler.addProgramToGroup", ("web", "placed", sleeper()))?;
            daemon.kill()?;
            ensure_away(&client)?;
            daemon.start_again()?;
            let first = client.call(method, params);
            ensure!(first.is_ok(), "{method}: {first:?}");
            let expected = ["dynamic_procs", "later", "pool", "web"];
            let mut names = group_names(&client)?;
            if method != "twiddler.addGroup" {
                ensure!(!names.contains(&"later".to_owned()), "a change was queued");
                names.insert(1, "later".to_owned());
            }
            ensure!(names == expected, "{method}: {names:?}");
        }
    }
    Ok(())
}

#[test]
fn a_proxy_that_started_first_serves_as_soon_as_the_daemon_starts() -> Result<()> {
    let daemon = Daemon::start_with(DaemonOptions {
        body: USER,
        tcp: true,
        ..DaemonOptions::default()
    })?;
    daemon.stop()?;
    for (method, params) in calls() {
        let sidecar = Sidecar::start(&daemon)?;
        let client = sidecar.client();
        sidecar.wait_for_stderr("waiting for supervisord")?;
        ensure_away(&client)?;
        daemon.start_again()?;
        let first = client.call(method, params);
        ensure!(first.is_ok(), "{method}: {first:?}");
        daemon.stop()?;
    }
    Ok(())
}

#[test]
fn a_call_in_flight_when_the_daemon_dies_fails_and_is_not_repeated() -> Result<()> {
    let daemon = Daemon::start(
        "[program:cat]\ncommand = /bin/cat\nstartsecs = 0\nstdout_logfile = cat.log\n\
         [group:web]\nprograms = idle\n\
         [program:idle]\ncommand = /bin/cat\nautostart = false\n",
    )?;
    let sidecar = Sidecar::start(&daemon)?;
    let client = sidecar.client();
    let calls = [
        ("supervisor.sendProcessStdin", params!["cat", "again\n"]),
        ("supervisor.startProcess", params!["web:idle"]),
        ("twiddler.addGroup", params!["again", 1]),
        (
            "twiddler.addProgramToGroup",
            params!["web", "again", sleeper()],
        ),
        ("supervisor.startProcess", params!["web:placed"]),
        ("supervisor.startAllProcesses", vec![]),
    ];
    for (method, params) in calls {
        daemon.wait_for_state("cat", "RUNNING")?;
        client.call("twiddler.addProgramToGroup", ("web", "placed", sleeper()))?;
        daemon.signal("STOP")?;
        let mut call = client.connect()?;
        call.send(&client.request_bytes(
            "POST",
            "/RPC2",
            &[],
            Some(&write::call(method, &params)),
        ))?;
        // The proxy answers this by itself, after it has forwarded the call before it.
        let nonsense = client.raw(b"nonsense\r\n\r\n", Until::Reply)?;
        ensure!(Reply::parse(&nonsense)?.status == 400);
        daemon.kill_and_start_again()?;
        let answer = call.read_reply()?;
        ensure!(answer.status == 502, "{method}: {answer:?}");
        daemon.wait_for_state("cat", "RUNNING")?;
        ensure!(daemon.read("cat.log")?.is_empty(), "{method} was repeated");
        ensure!(
            daemon.state("web:idle")? == "STOPPED",
            "{method} was repeated"
        );
        ensure!(
            group_names(&client)? == ["cat", "web"],
            "{method} was repeated"
        );
        let names: Vec<String> = rows(&client)?
            .iter()
            .map(crate::common::Row::namespec)
            .collect();
        ensure!(
            names == ["cat:cat", "web:idle"],
            "{method} was repeated: {names:?}"
        );
    }
    Ok(())
}
