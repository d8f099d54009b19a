//! Losses are logged at once, by name, and do not come back by themselves.

use crate::common::changes::Restart;
use crate::common::{
    Client, Daemon, LIMIT, Sidecar, eventually, options, rows, stdout_text, texts,
};
use anyhow::{Context, Result, ensure};
use supervisor_twiddler::xmlrpc::Value;

const USER: &str = "\
[group:web]
programs = a

[program:a]
command = /bin/sleep 600
startsecs = 0
";

const ADD: &str = "twiddler.addProgramToGroup";

fn sleeper() -> Value {
    options(&[("command", "/bin/sleep 600"), ("startsecs", "0")])
}

/// Adds a group with a process, and a member of a user's group.
fn change(client: &Client) -> Result<()> {
    client.call("twiddler.addGroup", ("dyn", 5))?;
    client.call(ADD, ("dyn", "a", sleeper()))?;
    client.call(ADD, ("web", "c", sleeper()))?;
    Ok(())
}

const ALL: &str = "2 programs (dyn:a, web:c) and 1 group (dyn)";

fn shown(client: &Client) -> Result<Vec<String>> {
    Ok(rows(client)?
        .iter()
        .map(crate::common::Row::namespec)
        .collect())
}

/// The warnings that the proxy has logged so far.
fn warnings(sidecar: &Sidecar) -> Vec<String> {
    let log = sidecar.stderr_text();
    let warnings = log.lines().filter(|line| line.contains(" WARN "));
    warnings.map(str::to_owned).collect()
}

fn wait_for_warnings(sidecar: &Sidecar, text: &str, count: usize) -> Result<()> {
    eventually(LIMIT, || {
        let warnings = warnings(sidecar);
        let matches = warnings.iter().filter(|line| line.contains(text)).count();
        ensure!(
            matches == count,
            "{matches} and not {count} of {text:?} in {warnings:#?}"
        );
        Ok(())
    })
}

#[test]
fn each_call_that_shows_a_loss_makes_the_proxy_log_it() -> Result<()> {
    let daemon = Daemon::start(USER)?;
    let sidecar = Sidecar::start(&daemon)?;
    let client = sidecar.client();
    let calls: [(&str, Vec<Value>); 6] = [
        ("supervisor.getAllProcessInfo", params![]),
        ("supervisor.getProcessInfo", params!["web:c"]),
        ("twiddler.getGroupNames", params![]),
        ("supervisor.reloadConfig", params![]),
        ("twiddler.removeProcessFromGroup", params!["web", "c"]),
        ("twiddler.addProgramToGroup", params!["dyn", "b", sleeper()]),
    ];
    for (number, (method, params)) in (1..).zip(calls) {
        change(&client)?;
        let output = stdout_text(&daemon.supervisorctl(&["update"])?);
        ensure!(output.contains("dyn: removed process group"), "{output}");
        drop(client.call(method, params));
        wait_for_warnings(&sidecar, "dyn:a", number)
            .and_then(|()| wait_for_warnings(&sidecar, "web:c", number))
            .with_context(|| method.to_owned())?;
        let names = client.call("twiddler.getGroupNames", ())?;
        ensure!(texts(&names)? == ["web"], "{method}: {names:?}");
    }
    ensure!(!sidecar.stderr_text().contains("started again"));
    wait_for_warnings(&sidecar, "ran supervisorctl update or remove", 7)?;
    // All of them can be added again, and none comes back by itself, with `--persist` either.
    change(&client)?;
    daemon.supervisorctl(&["update"])?;
    client.call("supervisor.getAllProcessInfo", ())?;
    wait_for_warnings(&sidecar, ALL, 6)?;
    sidecar.stop()?;
    let persisting = Sidecar::start_with(&daemon, &["--persist"])?;
    let there = shown(&persisting.client())?;
    ensure!(there == ["web:a"], "{there:?}");
    let log = persisting.stderr_text();
    ensure!(
        !log.contains("started again") && !log.contains("known"),
        "{log}"
    );
    Ok(())
}

#[test]
fn losses_are_logged_without_a_call() -> Result<()> {
    let daemon = Daemon::start(USER)?;
    let sidecar = Sidecar::start(&daemon)?;
    change(&sidecar.client())?;
    daemon.supervisorctl(&["update"])?;
    wait_for_warnings(&sidecar, ALL, 1)
}

#[test]
fn the_loss_of_one_process_is_logged_without_a_call() -> Result<()> {
    let daemon = Daemon::start(USER)?;
    let sidecar = Sidecar::start(&daemon)?;
    change(&sidecar.client())?;
    let there = shown(&daemon.client())?;
    let real = there.iter().find_map(|name| name.strip_suffix(":c"));
    let real = real.context("web:c is not placed")?;
    for step in ["stopProcessGroup", "removeProcessGroup"] {
        daemon.call(&format!("supervisor.{step}"), (real,))?;
    }
    wait_for_warnings(&sidecar, "1 program (web:c): gone", 1)
}

#[test]
fn the_loss_of_one_process_is_logged_and_the_others_stay() -> Result<()> {
    for arguments in [&[][..], &["--persist"]] {
        let daemon = Daemon::start(USER)?;
        let sidecar = Sidecar::start_with(&daemon, arguments)?;
        let client = sidecar.client();
        change(&client)?;
        let there = shown(&daemon.client())?;
        let real = there.iter().find_map(|name| name.strip_suffix(":c"));
        let real = real.context("web:c is not placed")?;
        for step in ["stopProcessGroup", "removeProcessGroup"] {
            daemon.call(&format!("supervisor.{step}"), (real,))?;
        }
        ensure!(shown(&client)? == ["dyn:a", "web:a"]);
        wait_for_warnings(&sidecar, "1 program (web:c): gone", 1)?;
        // It does not come back after a restart of the daemon.
        daemon.kill_and_start_again()?;
        let mut expected = vec!["web:a"];
        if !arguments.is_empty() {
            expected.insert(0, "dyn:a");
        }
        let names = shown(&client)?;
        ensure!(names == expected, "{names:?}");
    }
    Ok(())
}

#[test]
fn a_restart_without_persist_logs_the_losses() -> Result<()> {
    let daemon = Daemon::start(USER)?;
    let sidecar = Sidecar::start(&daemon)?;
    let client = sidecar.client();
    for (number, restart) in (1..).zip(Restart::ALL) {
        change(&client)?;
        restart.make(&daemon, &daemon.client())?;
        wait_for_warnings(&sidecar, "started again without --persist", number)?;
        wait_for_warnings(&sidecar, ALL, number)?;
    }
    Ok(())
}

#[test]
fn a_start_logs_what_is_known_and_the_losses_since() -> Result<()> {
    let daemon = Daemon::start(USER)?;
    let sidecar = Sidecar::start(&daemon)?;
    change(&sidecar.client())?;
    sidecar.kill()?;
    sidecar.start_again()?;
    sidecar.wait_for_stderr(&format!("known from before: {ALL}"))?;
    ensure!(shown(&sidecar.client())?.len() == 3);
    wait_for_warnings(&sidecar, "gone", 0)?;
    // The proxy cannot distinguish an update from a restart.
    for restarts in [false, true] {
        change(&sidecar.client()).ok();
        sidecar.kill()?;
        if restarts {
            daemon.kill_and_start_again()?
        } else {
            drop(daemon.supervisorctl(&["update"])?)
        }
        sidecar.start_again()?;
        wait_for_warnings(
            &sidecar,
            "gone since twiddler last ran",
            1 + usize::from(restarts),
        )?;
        let there = shown(&sidecar.client())?;
        ensure!(there == ["web:a"], "{there:?}");
    }
    wait_for_warnings(&sidecar, ALL, 2)?;
    let log = sidecar.stderr_text();
    ensure!(!log.contains("supervisord was started again:"), "{log}");
    Ok(())
}

#[test]
fn persisted_programs_are_not_reported_as_lost_or_restarted() -> Result<()> {
    let daemon = Daemon::start(USER)?;
    let sidecar = Sidecar::start_with(&daemon, &["--persist"])?;
    change(&sidecar.client())?;
    let before = rows(&sidecar.client())?;
    for proxy_is_up in [true, false] {
        if !proxy_is_up {
            sidecar.kill()?;
        }
        let output = stdout_text(&daemon.supervisorctl(&["update"])?);
        ensure!(output.contains("twiddler~"), "{output}");
        if !proxy_is_up {
            sidecar.start_again()?;
        }
        let client = sidecar.client();
        client.call("supervisor.reloadConfig", ())?;
        // The epoch marker is there again.
        eventually(LIMIT, || {
            let reread = stdout_text(&daemon.supervisorctl(&["reread"])?);
            ensure!(reread.contains("twiddler~"), "{reread}");
            Ok(())
        })?;
        ensure!(rows(&client)? == before, "{:#?}", rows(&client)?);
        let log = sidecar.stderr_text();
        ensure!(
            !log.contains("gone") && !log.contains("was started again"),
            "{log}"
        );
    }
    Ok(())
}

#[test]
fn names_that_the_files_define_too_are_logged() -> Result<()> {
    let daemon = Daemon::start(USER)?;
    let sidecar = Sidecar::start(&daemon)?;
    let client = sidecar.client();
    change(&client)?;
    daemon.write(
        "conf.d/more.conf",
        "[group:web]\nprograms = a,c\n[program:c]\ncommand = /bin/sleep 600\n\
         [group:dyn]\nprograms = y\n[program:y]\ncommand = /bin/sleep 600\n",
    )?;
    client.call("supervisor.reloadConfig", ())?;
    wait_for_warnings(
        &sidecar,
        "web:c was added, and supervisord's files define it now",
        1,
    )?;
    wait_for_warnings(&sidecar, "the group dyn was added", 1)?;
    // The advice works.
    for name in ["dyn:a", "web:c"] {
        client.call("supervisor.stopProcess", (name,))?;
    }
    client.call("twiddler.removeProcessFromGroup", ("web", "c"))?;
    client.call("twiddler.removeGroup", ("dyn",))?;
    daemon.supervisorctl_at(&["update"], sidecar.tcp_addr())?;
    let there = shown(&client)?;
    ensure!(there == ["dyn:y", "web:a", "web:c"], "{there:?}");
    // One warning for each of the two, at the first `reloadConfig` only.
    client.call("supervisor.reloadConfig", ())?;
    wait_for_warnings(&sidecar, "files define it now", 2)
}
