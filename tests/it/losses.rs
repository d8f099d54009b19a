//! What is lost is said at once, by name, and does not come back by itself.

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

/// A group with a process, and a member of the user's.
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

/// The warnings that it has logged so far.
fn warnings(sidecar: &Sidecar) -> Vec<String> {
    let log = sidecar.stderr_text();
    let warnings = log.lines().filter(|line| line.contains(" WARN "));
    warnings.map(str::to_owned).collect()
}

fn wait_for_warnings(sidecar: &Sidecar, wanted: &str, count: usize) -> Result<()> {
    eventually(LIMIT, || {
        let warnings = warnings(sidecar);
        let found = warnings.iter().filter(|line| line.contains(wanted)).count();
        ensure!(
            found == count,
            "{found} and not {count} of {wanted:?} in {warnings:#?}"
        );
        Ok(())
    })
}

#[test]
fn what_an_update_straight_on_the_daemon_takes_away_is_said_by_whatever_shows_it() -> Result<()> {
    let daemon = Daemon::start(USER)?;
    let sidecar = Sidecar::start(&daemon)?;
    let client = sidecar.client();
    let looks: [(&str, Vec<Value>); 6] = [
        ("supervisor.getAllProcessInfo", params![]),
        ("supervisor.getProcessInfo", params!["web:c"]),
        ("twiddler.getGroupNames", params![]),
        ("supervisor.reloadConfig", params![]),
        ("twiddler.removeProcessFromGroup", params!["web", "c"]),
        ("twiddler.addProgramToGroup", params!["dyn", "b", sleeper()]),
    ];
    for (number, (method, params)) in (1..).zip(looks) {
        change(&client)?;
        let said = stdout_text(&daemon.supervisorctl(&["update"])?);
        ensure!(said.contains("dyn: removed process group"), "{said}");
        drop(client.call(method, params));
        wait_for_warnings(&sidecar, "dyn:a", number)
            .and_then(|()| wait_for_warnings(&sidecar, "web:c", number))
            .with_context(|| method.to_owned())?;
        let names = client.call("twiddler.getGroupNames", ())?;
        ensure!(texts(&names)? == ["web"], "{method}: {names:?}");
    }
    ensure!(!sidecar.stderr_text().contains("started again"));
    wait_for_warnings(&sidecar, "ran supervisorctl update or remove", 7)?;
    // All of it can be added again, and nothing of it comes back by itself, also not where what is
    // added persists.
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
fn what_is_gone_is_said_while_nobody_calls() -> Result<()> {
    let daemon = Daemon::start(USER)?;
    let sidecar = Sidecar::start(&daemon)?;
    change(&sidecar.client())?;
    daemon.supervisorctl(&["update"])?;
    wait_for_warnings(&sidecar, ALL, 1)
}

#[test]
fn a_single_process_that_vanishes_is_said_while_nobody_calls() -> Result<()> {
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
fn a_single_process_that_vanishes_is_said_and_the_others_stay() -> Result<()> {
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
        // It stays away when the daemon starts again.
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
fn a_restart_without_persist_says_what_is_gone() -> Result<()> {
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
fn a_start_says_what_is_known_and_what_is_gone_since() -> Result<()> {
    let daemon = Daemon::start(USER)?;
    let sidecar = Sidecar::start(&daemon)?;
    change(&sidecar.client())?;
    sidecar.kill()?;
    sidecar.start_again()?;
    sidecar.wait_for_stderr(&format!("known from before: {ALL}"))?;
    ensure!(shown(&sidecar.client())?.len() == 3);
    wait_for_warnings(&sidecar, "gone", 0)?;
    // Whether it was an update or a restart cannot be told.
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
fn what_persists_and_is_still_there_is_not_said_to_be_gone_or_restarted() -> Result<()> {
    let daemon = Daemon::start(USER)?;
    let sidecar = Sidecar::start_with(&daemon, &["--persist"])?;
    change(&sidecar.client())?;
    let before = rows(&sidecar.client())?;
    for proxy_is_up in [true, false] {
        if !proxy_is_up {
            sidecar.kill()?;
        }
        let said = stdout_text(&daemon.supervisorctl(&["update"])?);
        ensure!(said.contains("twiddler~"), "{said}");
        if !proxy_is_up {
            sidecar.start_again()?;
        }
        let client = sidecar.client();
        client.call("supervisor.reloadConfig", ())?;
        // What marks this life is there again.
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
fn names_that_the_files_define_too_are_said() -> Result<()> {
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
    // What is advised works.
    for name in ["dyn:a", "web:c"] {
        client.call("supervisor.stopProcess", (name,))?;
    }
    client.call("twiddler.removeProcessFromGroup", ("web", "c"))?;
    client.call("twiddler.removeGroup", ("dyn",))?;
    daemon.supervisorctl_at(&["update"], sidecar.tcp_addr())?;
    let there = shown(&client)?;
    ensure!(there == ["dyn:y", "web:a", "web:c"], "{there:?}");
    // Once for each of the two, at the first reading, and not at the later ones.
    client.call("supervisor.reloadConfig", ())?;
    wait_for_warnings(&sidecar, "files define it now", 2)
}
