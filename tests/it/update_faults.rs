//! Every step of an update at which something can go wrong, hit once on purpose.

use anyhow::{Context, Result, ensure};
use supervisor_twiddler::xmlrpc::{Value, write};

use crate::common::judge::{diff, differing, is_running, settled, table};
use crate::common::stuck::wait_until_stopped;
use crate::common::values::sleeping;
use crate::common::{
    Connection, Daemon, DaemonOptions, LIMIT, Row, Sidecar, SidecarOptions, eventually, member,
    rows, text, value,
};

const FILE: &str = "conf.d/web.conf";

const WEB: &str = "\
[group:web]
programs = a,b,c

[program:a]
command = /bin/sleep 600

[program:b]
command = /bin/sleep 601
environment = TOKEN=\"secret\",MODE=x

[program:c]
command = /bin/sleep 602
numprocs = 2
process_name = %(program_name)s_%(process_num)02d

[program:lone]
command = /bin/sleep 603
";

#[test]
fn a_daemon_that_starts_during_a_question_runs_the_files_alone() -> Result<()> {
    for kills_proxy in [false, true] {
        let daemon = Daemon::start_with(DaemonOptions {
            files: &[(FILE, WEB)],
            ..DaemonOptions::default()
        })?;
        let sidecar = stopping(&daemon)?;
        let expected: Vec<String> = settled(&sidecar.client())?.into_keys().collect();
        ensure!(diff(&sidecar.client())?.is_empty());
        daemon.write(FILE, &WEB.replace("601", "611"))?;
        let _connection = stop_at(&daemon, &sidecar, "question", ("twiddler.diffConfig", &[]))?;
        daemon.kill_and_start_again()?;
        // It has met the question, and runs nobody twice for that.
        let running = |row: &Row| (is_running(row)).then(|| row.namespec());
        let twice = rows(&daemon.client())?.iter().filter_map(running).count();
        ensure!(twice <= expected.len(), "{:?}", rows(&daemon.client())?);
        match kills_proxy {
            true => {
                sidecar.kill()?;
                sidecar.start_again()?;
            }
            false => sidecar.signal("CONT")?,
        }
        let client = sidecar.client();
        eventually(LIMIT, || {
            let there: Vec<String> = table(&daemon.client())?.into_keys().collect();
            ensure!(there == expected, "kills_proxy {kills_proxy}: {there:?}");
            Ok(())
        })?;
        client.call("twiddler.updateConfig", ())?;
        let left = diff(&client)?;
        ensure!(left.is_empty(), "kills_proxy {kills_proxy}: {left:?}");
        let there: Vec<String> = settled(&client)?.into_keys().collect();
        ensure!(there == expected, "{there:?}");
    }
    Ok(())
}

/// A proxy in front of the daemon that stops itself where `stop-at` says.
fn stopping(daemon: &Daemon) -> Result<Sidecar> {
    let stop_at = daemon.dir().join("stop-at").to_string_lossy().into_owned();
    Sidecar::start_options(
        daemon,
        SidecarOptions {
            environment: &[("TEST_STOP_AT", &stop_at)],
            ..SidecarOptions::default()
        },
    )
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
fn an_update_is_finished_whatever_point_the_proxy_dies_at() -> Result<()> {
    const POINTS: [&str; 6] = [
        "update intended",
        "update stopped",
        "update left",
        "update made",
        "update joined",
        "update started",
    ];
    for (number, point) in POINTS.into_iter().enumerate() {
        // It would not start by itself.
        let text = WEB.replace("sleep 601", "sleep 601\nautostart = false");
        let daemon = Daemon::start_with(DaemonOptions {
            files: &[(FILE, &text)],
            ..DaemonOptions::default()
        })?;
        let sidecar = stopping(&daemon)?;
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
            let b = after.get("web:b").context("web:b is gone")?;
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
fn a_program_whose_options_change_is_there_whatever_point_the_proxy_dies_at() -> Result<()> {
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
        let sidecar = stopping(&daemon)?;
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
                let is_touched = ["dyn:own", "web:z"].contains(&name.as_str());
                ensure!(is_touched || is == row, "{name}: {is:?}");
            }
            ensure!(after.len() == before.len(), "{:?}", after.keys());
            Ok(())
        })
        .with_context(|| point.to_owned())?;
        let told = client.call("twiddler.getProgramOptions", ("web", "z"))?;
        let command = text(member(&told, "command")?)?;
        ensure!(["/bin/sleep 901", "/bin/sleep 902"].contains(&command));
        // It can be done again.
        client.call("twiddler.updateProgram", ("web", "z", sleeping("903")))?;
    }
    Ok(())
}

/// Somebody else lets the daemon read files without the group after it was accepted.
#[test]
fn a_group_that_is_refused_after_it_was_stopped_runs_as_before() -> Result<()> {
    let daemon = Daemon::start_with(DaemonOptions {
        files: &[(FILE, WEB)],
        ..DaemonOptions::default()
    })?;
    let sidecar = stopping(&daemon)?;
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
    let told = diff(&client)?;
    ensure!(
        told.len() == 1 && text(member(&told[0], "change")?)? == "removed",
        "{told:?}"
    );
    client.call("twiddler.updateConfig", ())?;
    ensure!(!table(&client)?.contains_key("lone:lone"));
    Ok(())
}
