//! Calls on groups and on all processes, with placed processes among them.

use std::time::{Duration, Instant};

use super::{
    ADD, REMOVE, USER, front, pair_with_placed_processes, program, visible_names, wait_for,
};
use crate::common::pair::{Pair, timeless};
use crate::common::values::column;
use crate::common::{
    Client, Daemon, LIMIT, Row, Sidecar, ensure_fault, eventually, items, member, number, rows,
    stdout_text, text, value,
};
use anyhow::{Result, ensure};
use supervisor_twiddler::xmlrpc::Value;

/// Adds twenty processes, half of them as one program and half one by one.
fn add_twenty(client: &Client, more: &[(&str, &str)]) -> Result<()> {
    let ten = [
        &[("numprocs", "10"), ("process_name", "m%(process_num)d")],
        more,
    ]
    .concat();
    client.call(ADD, ("web", "m", program(&ten)))?;
    for index in 0..10 {
        client.call(ADD, ("web", format!("n{index}"), program(more)))?;
    }
    Ok(())
}

const ONE_PROGRAM: &str = "[group:web]\nprograms = a\n[program:a]\ncommand = /bin/cat\nautostart = false\nstartsecs = 1\n";

#[test]
fn a_group_starts_and_stops_all_at_once() -> Result<()> {
    // Each takes a second to start and a second to stop.
    let slow = "/bin/sh -c 'trap \"sleep 1; exit\" TERM; while :; do sleep 0.1; done'";
    let (_daemon, _sidecar, client) = front(ONE_PROGRAM)?;
    add_twenty(
        &client,
        &[
            ("startsecs", "1"),
            ("command", slow),
            ("stopasgroup", "false"),
        ],
    )?;
    let start = Instant::now();
    let started = client.call("supervisor.startProcessGroup", ("web",))?;
    let duration = start.elapsed();
    ensure!(items(&started)?.len() == 21, "{started:?}");
    ensure!(
        duration >= Duration::from_secs(1) && duration < Duration::from_secs(7),
        "{duration:?} to start"
    );
    ensure!(
        rows(&client)?.iter().all(|row| row.state == "RUNNING"),
        "{:?}",
        rows(&client)?
    );
    let start = Instant::now();
    let stopped = client.call("supervisor.stopProcess", ("web:*",))?;
    let duration = start.elapsed();
    ensure!(items(&stopped)?.len() == 21, "{stopped:?}");
    ensure!(duration < Duration::from_secs(10), "{duration:?} to stop");
    ensure!(
        rows(&client)?.iter().all(|row| row.state == "STOPPED"),
        "{:?}",
        rows(&client)?
    );
    Ok(())
}

#[test]
fn a_group_start_without_wait_answers_before_the_processes_run() -> Result<()> {
    let (_daemon, _sidecar, client) = front(ONE_PROGRAM)?;
    add_twenty(&client, &[("startsecs", "600")])?;
    for method in ["startProcessGroup", "startAllProcesses"] {
        let params = if method == "startProcessGroup" {
            params!["web", false]
        } else {
            params![false]
        };
        let started = client.call(&format!("supervisor.{method}"), params)?;
        ensure!(items(&started)?.len() == 21, "{started:?}");
        let up = rows(&client)?
            .iter()
            .filter(|row| row.state == "STARTING")
            .count();
        ensure!(up >= 20, "{up} are STARTING");
        client.call("supervisor.stopAllProcesses", ())?;
    }
    Ok(())
}

/// The names of processes in the order in which the daemon spawned them.
fn spawned(daemon: &Daemon) -> Vec<String> {
    let log = daemon.log();
    let lines = log.lines().filter_map(|line| line.split_once("spawned: '"));
    lines
        .filter_map(|(_, rest)| Some(rest.split_once('\'')?.0.to_owned()))
        .collect()
}

#[test]
fn priorities_order_as_in_the_daemon() -> Result<()> {
    let body = "[group:late]\nprograms = l5,l9\npriority = 50\n\
                [program:l5]\ncommand = /bin/cat\nautostart = false\nstartsecs = 0\npriority = 5\n\
                [program:l9]\ncommand = /bin/cat\nautostart = false\nstartsecs = 0\npriority = 900\n\
                [group:early]\nprograms = e5\npriority = 40\n\
                [program:e5]\ncommand = /bin/cat\nautostart = false\nstartsecs = 0\npriority = 5\n";
    for hide in [false, true] {
        let pair = Pair::start(body)?;
        for (group, name, priority) in [
            ("late", "p1", "1"),
            ("late", "p7", "7"),
            ("early", "p9", "9"),
            ("early", "p2", "2"),
            ("late", "p999", "999"),
        ] {
            let given = program(&[("priority", priority)]);
            pair.ensure_same("twiddler.addProgramToGroup", &params![group, name, given])?;
        }
        if hide {
            pair.ensure_same(REMOVE, &params!["late", "l9"])?;
        }
        for (method, params) in [
            ("startProcessGroup", params!["late"]),
            ("startAllProcesses", params![]),
            ("startProcess", params!["early:*"]),
        ] {
            pair.ensure_same(&format!("supervisor.{method}"), &params)?;
            pair.ensure_same("supervisor.stopAllProcesses", &params![])?;
        }
        let (expected, actual) = (spawned(&pair.oracle), spawned(&pair.daemon));
        ensure!(
            expected == actual,
            "hidden: {hide}\n{expected:?}\n{actual:?}"
        );
    }
    Ok(())
}

#[test]
fn a_configured_group_may_have_a_name_that_is_not_ascii() -> Result<()> {
    const GROUP: &str = "test_\u{f6}\u{e4}\u{fc}\u{4e2d}";
    let body = format!("[program:{GROUP}]\ncommand = /bin/cat\nstartsecs = 0\n");
    let (daemon, sidecar, client) = front(&body)?;
    daemon.wait_for_state(GROUP, "RUNNING")?;
    let pid = |client: &Client| {
        let info = client.call("supervisor.getProcessInfo", (GROUP,))?;
        number(member(&info, "pid")?)
    };
    let before = pid(&client)?;
    let tells = program(&[(
        "command",
        "/bin/sh -c 'echo $SUPERVISOR_GROUP_NAME; exec cat'",
    )]);
    client.call(ADD, (GROUP, "x", tells))?;
    client.call(
        ADD,
        (
            GROUP,
            "y",
            program(&[("process_name", "y_%(process_num)d"), ("numprocs", "2")]),
        ),
    )?;
    let started = client.call("supervisor.startProcessGroup", (GROUP,))?;
    ensure!(
        column(&started, "name")? == ["x", "y_0", "y_1"],
        "{started:?}"
    );
    let namespec = format!("{GROUP}:x");
    eventually(LIMIT, || {
        let log = client.call("supervisor.readProcessLog", (&namespec, 0, 100))?;
        ensure!(text(&log)? == format!("{GROUP}\n"), "{log:?}");
        Ok(())
    })?;
    // The proxy reads the name back from its journal.
    sidecar.stop()?;
    sidecar.start_again()?;
    let client = sidecar.client();
    ensure!(pid(&client)? == before, "the neighbour was restarted");
    client.call("supervisor.stopAllProcesses", ())?;
    client.call(REMOVE, (GROUP, "x"))?;
    client.call(REMOVE, (GROUP, GROUP))?;
    let shown: Vec<_> = rows(&client)?
        .into_iter()
        .map(|row| (row.group, row.name))
        .collect();
    ensure!(
        shown == ["y_0", "y_1"].map(|name| (GROUP.to_owned(), name.to_owned())),
        "{shown:?}"
    );
    // New names cannot have such characters.
    for (method, params, code) in [
        (ADD, params!["nobody_\u{f6}", "x", program(&[])], 10),
        (ADD, params![GROUP, "x_\u{f6}", program(&[])], 2),
        ("twiddler.addGroup", params!["\u{f6}", 1], 2),
    ] {
        let fault = client.expect_fault(method, params)?;
        ensure!(fault.code == code, "{method}: {fault:?}");
    }
    Ok(())
}

#[test]
fn the_daemons_group_calls_work_on_groups_with_added_processes() -> Result<()> {
    let (daemon, _sidecar, client) = front(USER)?;
    daemon.wait_for_state("web:a", "RUNNING")?;
    client.call("twiddler.addGroup", ("g", 1))?;
    client.call(ADD, ("g", "own", program(&[])))?;
    client.call(ADD, ("g", "placed", program(&[])))?;
    client.call(ADD, ("web", "placed", program(&[])))?;
    client.call(REMOVE, ("web", "b"))?;
    for _ in 0..2 {
        for group in ["g", "web", "lone", "empty"] {
            let fault = client.expect_fault("supervisor.addProcessGroup", (group,))?;
            ensure_fault(&fault, 90, &format!("ALREADY_ADDED: {group}"))?;
        }
        let lists = client.call("supervisor.reloadConfig", ())?;
        let nothing = Vec::<Value>::new;
        ensure!(
            lists == value(vec![vec![nothing(), nothing(), nothing()]]),
            "{lists:?}"
        );
    }
    for name in ["g:placed", "web:placed"] {
        client.call("supervisor.startProcess", (name,))?;
    }
    for group in ["g", "web"] {
        let fault = client.expect_fault("supervisor.removeProcessGroup", (group,))?;
        ensure_fault(&fault, 91, &format!("STILL_RUNNING: {group}"))?;
    }
    let fault = client.expect_fault("supervisor.removeProcessGroup", ("nope",))?;
    ensure_fault(&fault, 10, "BAD_NAME: nope")?;
    client.call("supervisor.stopAllProcesses", ())?;
    for group in ["g", "web"] {
        client.call("supervisor.removeProcessGroup", (group,))?;
        let fault = client.expect_fault("supervisor.removeProcessGroup", (group,))?;
        ensure_fault(&fault, 10, &format!("BAD_NAME: {group}"))?;
    }
    let left = visible_names(&daemon.client())?;
    ensure!(
        left.iter()
            .all(|name| !name.starts_with("web") && !name.starts_with('g')),
        "{left:?}"
    );
    // The group is added again with all processes of the file.
    client.call("supervisor.addProcessGroup", ("web",))?;
    ensure!(visible_names(&client)?.contains(&"web:b".to_owned()));
    ensure!(!visible_names(&client)?.contains(&"web:placed".to_owned()));
    let fault = client.expect_fault("supervisor.addProcessGroup", ("g",))?;
    ensure_fault(&fault, 10, "BAD_NAME: g")
}

fn ctl(daemon: &Daemon, sidecar: &Sidecar, arguments: &[&str]) -> Result<String> {
    Ok(stdout_text(
        &daemon.supervisorctl_at(arguments, sidecar.tcp_addr())?,
    ))
}

#[test]
fn an_update_applies_the_files_and_does_not_change_added_programs() -> Result<()> {
    let (daemon, sidecar, client) = front(USER)?;
    daemon.wait_for_state("web:a", "RUNNING")?;
    client.call("twiddler.addGroup", ("g", 1))?;
    client.call(ADD, ("g", "own", program(&[("autostart", "true")])))?;
    client.call(ADD, ("g", "placed", program(&[("autostart", "true")])))?;
    client.call(ADD, ("web", "placed", program(&[("autostart", "true")])))?;
    client.call(ADD, ("lone", "placed", program(&[])))?;
    client.call(REMOVE, ("web", "b"))?;
    for name in ["g:own", "g:placed", "web:placed"] {
        wait_for(&client, name, "RUNNING")?;
    }
    let added = |rows: Vec<Row>| -> Vec<Row> {
        rows.into_iter()
            .filter(|row| row.name == "own" || row.name == "placed")
            .collect()
    };
    let before = added(rows(&client)?);
    ensure!(ctl(&daemon, &sidecar, &["reread"])? == "No config updates to processes\n");
    ensure!(ctl(&daemon, &sidecar, &["update"])?.is_empty());
    ensure!(added(rows(&client)?) == before);
    ensure!(!visible_names(&client)?.contains(&"web:b".to_owned()));

    // The user changes one group, drops another and adds a third.
    let conf = daemon.read("supervisord.conf")?;
    let changed = conf
        .replace(
            "[program:b]\ncommand = /bin/cat",
            "[program:b]\ncommand = /bin/sleep 601",
        )
        .replace(
            "[eventlistener:ears]\nevents = TICK_3600\ncommand = /bin/sleep 600\nstartsecs = 0\n",
            "",
        );
    ensure!(changed != conf);
    daemon.write("supervisord.conf", &changed)?;
    daemon.write(
        "conf.d/more.conf",
        "[program:more]\ncommand = /bin/cat\nstartsecs = 0\n",
    )?;
    let reread = ctl(&daemon, &sidecar, &["reread"])?;
    ensure!(
        reread == "ears: disappeared\nmore: available\nweb: changed\n",
        "{reread}"
    );
    let update = ctl(&daemon, &sidecar, &["update"])?;
    for line in [
        "ears: stopped\n",
        "ears: removed process group\n",
        "web: updated process group\n",
        "more: added process group\n",
    ] {
        ensure!(update.contains(line), "no {line:?} in {update}");
    }
    ensure!(
        added(rows(&client)?) == before,
        "{:?}\n{before:?}",
        added(rows(&client)?)
    );
    let now = visible_names(&client)?;
    ensure!(
        now.contains(&"more:more".to_owned()) && !now.contains(&"ears:ears".to_owned()),
        "{now:?}"
    );
    ensure!(
        now.contains(&"web:b".to_owned()),
        "the file defines it: {now:?}"
    );
    ensure!(ctl(&daemon, &sidecar, &["update"])?.is_empty());
    Ok(())
}

#[test]
fn supervisorctl_prints_the_same_as_with_the_in_process_twiddler() -> Result<()> {
    let pair = pair_with_placed_processes()?;
    pair.ensure_same(
        "twiddler.addProgramToGroup",
        &params!["web", "r", program(&[])],
    )?;
    let tidy = |output: String, daemon: &Daemon| -> Vec<String> {
        let output = output.replace(&daemon.dir().display().to_string(), "DIR");
        let line = |line: &str| -> String {
            let words: Vec<&str> = line.split_whitespace().collect();
            match words.as_slice() {
                [name, state, rest @ ..] if state.chars().all(|c| c.is_ascii_uppercase()) => {
                    format!("{name} {state} {}", timeless(&rest.join(" ")))
                }
                [pid] if pid.parse::<u32>().is_ok_and(|pid| pid > 0) => "a pid".to_owned(),
                words => words.join(" "),
            }
        };
        let mut lines: Vec<String> = output.lines().map(line).collect();
        lines.sort();
        lines
    };
    let sessions: &[&[&str]] = &[
        &["status"],
        &["status", "web:*"],
        &["status", "web:p", "web:b"],
        &["status", "web:"],
        &["status", "nope"],
        &["pid", "web:p"],
        &["pid", "web:q"],
        &["pid", "web:b"],
        &["pid", "all"],
        &["start", "web:q"],
        &["start", "web:q"],
        &["start", "web:b"],
        &["start", "web:*"],
        &["status"],
        &["signal", "CONT", "web:*"],
        &["signal", "CONT", "web:p", "web:b"],
        &["signal", "CONT", "all"],
        &["stop", "web:q"],
        &["stop", "web:q"],
        &["restart", "web:p"],
        &["restart", "web:*"],
        &["status"],
        &["tail", "web:p"],
        &["tail", "web:p", "stderr"],
        &["tail", "-2", "web:p"],
        &["tail", "web:b"],
        &["clear", "web:p"],
        &["clear", "web:b"],
        &["clear", "all"],
        &["stop", "web:*"],
        &["start", "web:p", "web:r"],
        &["stop", "all"],
        &["start", "all"],
        &["restart", "all"],
        &["status"],
        &["add", "web"],
        &["add", "nope"],
        &["remove", "web"],
        &["remove", "nope"],
        &["stop", "web:*"],
        &["remove", "web"],
        &["status"],
        &["reread"],
        &["add", "web"],
        &["status", "web:*"],
        &["version"],
        &["avail", "extra"],
        &["shell"],
    ];
    for arguments in sessions {
        let expected = pair.oracle.supervisorctl(arguments)?;
        let actual = pair
            .daemon
            .supervisorctl_at(arguments, pair.sidecar.tcp_addr())?;
        let (expected_lines, actual_lines) = (
            tidy(stdout_text(&expected), &pair.oracle),
            tidy(stdout_text(&actual), &pair.daemon),
        );
        ensure!(
            expected_lines == actual_lines,
            "{arguments:?}\n  in-process {expected_lines:#?}\n  proxy      {actual_lines:#?}"
        );
        ensure!(
            expected.status == actual.status,
            "{arguments:?}: {} and {}",
            expected.status,
            actual.status
        );
    }
    Ok(())
}
