//! An edited file restarts only the processes that changed.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use anyhow::{Context, Result, ensure};
use supervisor_twiddler::xmlrpc::{Value, write};

use crate::common::faults;
use crate::common::judge::{
    Judge, ctl, diff, differing, ensure_as_judged, ensure_reported, is_running, names, settled,
    table,
};
use crate::common::provision::Version;
use crate::common::values::{items, texts};
use crate::common::view::{Row, rows};
use crate::common::{
    Client, Daemon, DaemonOptions, LIMIT, Sidecar, eventually, member, options, text, value,
};

const ADD: &str = "twiddler.addProgramToGroup";

pub const FILE: &str = "conf.d/web.conf";

pub const WEB: &str = "\
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
fn only_the_edited_program_restarts_and_is_reported() -> Result<()> {
    for version in Version::STOCK {
        let daemon = Daemon::start_with(DaemonOptions {
            version,
            files: &[(FILE, WEB)],
            ..DaemonOptions::default()
        })?;
        let sidecar = Sidecar::start(&daemon)?;
        let client = sidecar.client();
        let before = settled(&client)?;
        ensure!(diff(&client)?.is_empty(), "{:?}", diff(&client)?);
        daemon.write(
            FILE,
            &WEB.replace("secret", "other")
                .replace("sleep 602", "sleep 602 ; c"),
        )?;
        let reported = diff(&client)?;
        ensure!(reported.len() == 1, "{reported:?}");
        ensure!(
            text(member(&reported[0], "change")?)? == "changed",
            "{reported:?}"
        );
        let options = items(member(&reported[0], "options")?)?;
        ensure!(options.len() == 1, "{options:?}");
        ensure!(text(member(&options[0], "name")?)? == "environment.TOKEN");
        ensure!(
            !format!("{reported:?}").contains("other"),
            "a secret in {reported:?}"
        );
        let reply = client.call("twiddler.updateConfig", ())?;
        ensure!(
            texts(member(&reply, "restarted")?)? == ["web:b"],
            "{reply:?}"
        );
        let after = settled(&client)?;
        for (name, row) in &before {
            ensure!(
                (after.get(name) == Some(row)) == (name != "web:b"),
                "{name}: {after:?}"
            );
        }
        ensure!(diff(&client)?.is_empty());
        let ctl = crate::common::supervisorctl(&["reread"], client.addr())?;
        let output = String::from_utf8_lossy(&ctl.stdout).into_owned();
        ensure!(
            output.trim() == "No config updates to processes",
            "{output}"
        );
    }
    Ok(())
}

#[test]
fn an_invalid_file_stops_no_process() -> Result<()> {
    let (daemon, sidecar) = start_pair(&[])?;
    let client = sidecar.client();
    let before = settled(&client)?;
    daemon.write(FILE, &WEB.replace("601", "611\numask = 99"))?;
    let fault = client.expect_fault("twiddler.updateConfig", ())?;
    ensure!(fault.code == 92, "{fault:?}");
    ensure!(table(&client)? == before);
    Ok(())
}

#[test]
fn scales_change_and_survive_the_proxy() -> Result<()> {
    let (_daemon, sidecar) = start_pair(&[])?;
    let client = sidecar.client();
    let before = settled(&client)?;
    let scale = |numprocs: i64| client.call("twiddler.scaleProgram", ("web", "c", numprocs));
    let reply = scale(4)?;
    ensure!(names(&reply, "started")? == ["web:c_02", "web:c_03"].map(str::to_owned).into());
    let reported = diff(&client)?;
    ensure!(
        reported.len() == 1 && text(member(&reported[0], "change")?)? == "scaled",
        "{reported:?}"
    );
    sidecar.kill()?;
    sidecar.start_again()?;
    let client = sidecar.client();
    let reply = client.call("twiddler.updateConfig", ())?;
    ensure!(texts(member(&reply, "restarted")?)?.is_empty(), "{reply:?}");
    ensure!(table(&client)?.len() == before.len() + 2);
    client.call("twiddler.scaleProgram", ("web", "c", 0))?;
    ensure!(
        !table(&client)?
            .keys()
            .any(|name| name.starts_with("web:c_"))
    );
    client.call("twiddler.scaleProgram", ("web", "c", 2))?;
    ensure!(diff(&client)?.is_empty(), "{:?}", diff(&client)?);
    let fault = client.expect_fault("twiddler.scaleProgram", ("web", "a", 2))?;
    ensure!(fault.code == 2, "{fault:?}");
    Ok(())
}

#[test]
fn an_added_program_gets_other_options() -> Result<()> {
    let (_daemon, sidecar) = start_pair(&[])?;
    let client = sidecar.client();
    let given = |command: &str, count: i64| {
        options(&[
            ("command", value(command)),
            ("numprocs", value(count)),
            ("process_name", value("z%(process_num)d")),
        ])
    };
    client.call(
        "twiddler.addProcessToGroup",
        ("web", "z", given("/bin/sleep 9", 2)),
    )?;
    let before = settled(&client)?;
    let update = "twiddler.updateProgram";
    client.call(update, ("web", "z", given("/bin/sleep 9", 3)))?;
    let after = settled(&client)?;
    ensure!(after.get("web:z0") == before.get("web:z0"), "{after:?}");
    ensure!(after.contains_key("web:z2"), "{after:?}");
    client.call(update, ("web", "z", given("/bin/sleep 8", 1)))?;
    let last = settled(&client)?;
    ensure!(last.get("web:a") == before.get("web:a"));
    ensure!(last["web:z0"].pid != after["web:z0"].pid && !last.contains_key("web:z1"));
    let fault = client.expect_fault(update, ("web", "a", given("/bin/sleep 8", 1)))?;
    ensure!(
        fault.code == 2 && fault.text.contains("edit them and update"),
        "{fault:?}"
    );
    let reported = client.call("twiddler.getProgramOptions", ("web", "z"))?;
    ensure!(
        text(member(&reported, "command")?)? == "/bin/sleep 8",
        "{reported:?}"
    );
    Ok(())
}

fn start_pair(arguments: &[&str]) -> Result<(Daemon, Sidecar)> {
    let daemon = Daemon::start_with(DaemonOptions {
        files: &[(FILE, WEB)],
        ..DaemonOptions::default()
    })?;
    let sidecar = Sidecar::start_with(&daemon, arguments)?;
    // The proxy records the sections that the groups were started from.
    sidecar.client().call("twiddler.diffConfig", ())?;
    settled(&sidecar.client())?;
    Ok((daemon, sidecar))
}

#[test]
fn with_live_update_supervisorctl_restarts_only_changed_processes() -> Result<()> {
    let (daemon, sidecar) = start_pair(&["--live-update"])?;
    let client = sidecar.client();
    for seconds in ["611", "612"] {
        let before = settled(&client)?;
        daemon.write(FILE, &WEB.replace("601", seconds))?;
        ensure!(ctl(&client, &["reread"])? == "web: changed\n");
        let output = ctl(&client, &["update"])?;
        ensure!(
            output == "web: stopped\nweb: updated process group\n",
            "{output}"
        );
        let after = settled(&client)?;
        ensure!(differing(&before, &after) == ["web:b"], "{after:?}");
        ensure!(is_running(&after["web:b"]), "{after:?}");
        ensure!(diff(&client)?.is_empty(), "{:?}", diff(&client)?);
        ensure!(ctl(&client, &["update"])?.is_empty());
    }
    // A client that stops the whole group, outside an update, stops all of it.
    let before = settled(&client)?;
    daemon.write(FILE, &WEB.replace("601", "613"))?;
    ctl(&client, &["reread"])?;
    ctl(&client, &["stop", "web:*"])?;
    let after = table(&client)?;
    ensure!(differing(&before, &after).len() == 4, "{after:?}");
    Ok(())
}

#[test]
fn without_live_update_the_whole_group_restarts_and_no_process_is_duplicated() -> Result<()> {
    let (daemon, sidecar) = start_pair(&[])?;
    let client = sidecar.client();
    daemon.write(FILE, &WEB.replace("601", "611"))?;
    client.call("twiddler.updateConfig", ())?;
    let before = settled(&client)?;
    daemon.write(FILE, &WEB.replace("601", "612"))?;
    ctl(&client, &["update"])?;
    let after = settled(&client)?;
    ensure!(differing(&before, &after) == ["web:a", "web:b", "web:c_00", "web:c_01"]);
    let direct = table(&daemon.client())?;
    ensure!(direct.keys().eq(after.keys()), "{:?}", direct.keys());
    ensure!(diff(&client)?.is_empty(), "{:?}", diff(&client)?);
    Ok(())
}

fn sleeper() -> Value {
    options(&[("command", "/bin/sleep 9000")])
}

#[test]
fn an_added_program_that_the_file_defines_later_runs_once() -> Result<()> {
    for arguments in [&[][..], &["--persist"], &["--live-update"]] {
        let (daemon, sidecar) = start_pair(arguments)?;
        let client = sidecar.client();
        client.call("twiddler.addProcessToGroup", ("web", "z", sleeper()))?;
        client.call("twiddler.addGroup", ("dyn", 5))?;
        client.call("twiddler.addProcessToGroup", ("dyn", "x", sleeper()))?;
        let before = settled(&client)?;
        let web = WEB.replace("a,b,c", "a,b,c,z");
        let z = "\n[program:z]\ncommand = /bin/sleep 9000\n";
        let added = "\n[group:dyn]\nprograms = x,y\n[program:x]\ncommand = /bin/sleep 9000\n[program:y]\ncommand = /bin/sleep 8000\n";
        daemon.write(FILE, &format!("{web}{z}{added}"))?;
        let reported = ctl(&client, &["reread"])?;
        ensure!(
            reported.contains("dyn: changed") && reported.contains("web: changed"),
            "{reported}"
        );
        ctl(&client, &["update"])?;
        let after = settled(&client)?;
        for name in ["web:z", "dyn:x", "lone:lone"] {
            ensure!(
                before.get(name) == after.get(name),
                "{name} with {arguments:?}"
            );
        }
        let names =
            |rows: &BTreeMap<String, Row>| -> Vec<String> { rows.keys().cloned().collect() };
        ensure!(
            names(&after).len() == before.len() + 1,
            "{:?}",
            names(&after)
        );
        let running = table(&daemon.client())?;
        let running = running.values().filter(|row| is_running(row)).count();
        ensure!(running == after.len(), "{running} run with {arguments:?}");
        ensure!(diff(&client)?.is_empty(), "{:?}", diff(&client)?);
        ensure!(ctl(&client, &["reread"])? == "No config updates to processes\n");
        daemon.restart_rpc()?;
        let again = settled(&client)?;
        ensure!(names(&again) == names(&after), "{:?}", names(&again));
        let direct = eventually(LIMIT, || {
            let direct = table(&daemon.client())?;
            ensure!(direct.len() == again.len(), "{:?}", names(&direct));
            Ok(direct)
        })?;
        ensure!(names(&direct) == names(&again));
    }
    Ok(())
}

#[test]
fn a_group_with_an_unknown_baseline_is_not_changed() -> Result<()> {
    let daemon = Daemon::start_with(DaemonOptions {
        files: &[(FILE, WEB)],
        ..DaemonOptions::default()
    })?;
    daemon.write(FILE, &WEB.replace("601", "611"))?;
    let sidecar = Sidecar::start(&daemon)?;
    let client = sidecar.client();
    let before = settled(&client)?;
    let reported = diff(&client)?;
    ensure!(
        reported.len() == 1 && text(member(&reported[0], "change")?)? == "unknown",
        "{reported:?}"
    );
    let reply = client.call("twiddler.updateConfig", ())?;
    let skipped = items(member(&reply, "skipped")?)?;
    ensure!(
        skipped.len() == 1 && text(member(&skipped[0], "group")?)? == "web",
        "{reply:?}"
    );
    ensure!(table(&client)? == before);
    Ok(())
}

/// The file is written with the next step, although the baseline has not changed.
#[test]
fn a_deleted_baseline_file_is_written_again() -> Result<()> {
    let (daemon, sidecar) = start_pair(&[])?;
    let client = sidecar.client();
    ensure!(diff(&client)?.is_empty());
    let file = daemon.include_dir().join(".twiddler-baseline");
    let replace_group = || -> Result<()> {
        client.call("supervisor.reloadConfig", ())?;
        for step in ["stopProcessGroup", "removeProcessGroup", "addProcessGroup"] {
            client.call(&format!("supervisor.{step}"), ("lone",))?;
        }
        Ok(())
    };
    replace_group()?;
    fs::remove_file(&file)?;
    replace_group()?;
    ensure!(file.exists(), "{} does not exist", file.display());
    Ok(())
}

#[test]
fn an_update_continues_after_its_client_disconnects() -> Result<()> {
    const SLOW: &str = "[program:slow]\ncommand = /bin/sh -c \"trap 'sleep 1; exit 0' TERM; while :; do sleep 0.1; done\"\n\
        environment = STEP=\"1\"\n";
    let daemon = Daemon::start_with(DaemonOptions {
        files: &[(FILE, SLOW)],
        ..DaemonOptions::default()
    })?;
    let sidecar = Sidecar::start(&daemon)?;
    let client = sidecar.client();
    let slow = "slow:slow";
    let before = settled(&client)?[slow].clone();
    ensure!(diff(&client)?.is_empty());
    daemon.write(FILE, &SLOW.replace("STEP=\"1\"", "STEP=\"2\""))?;
    let caller = sidecar.socket_client();
    let mut connection = caller.connect()?;
    let call = write::call("twiddler.updateConfig", &[]);
    connection.send(&caller.request_bytes("POST", "/RPC2", &[], Some(&call)))?;
    daemon.wait_for_state("slow", "STOPPING")?;
    drop(connection);
    eventually(LIMIT, || {
        let table = table(&client)?;
        let now = table.get(slow).context("the process is missing")?;
        ensure!(is_running(now) && now.pid != before.pid, "{now:?}");
        Ok(())
    })?;
    ensure!(diff(&client)?.is_empty());
    Ok(())
}

#[test]
fn scales_survive_a_daemon_restart_only_with_persist() -> Result<()> {
    let names = |client: &Client| -> Result<Vec<String>> {
        let names = table(client)?.into_keys();
        Ok(names.filter(|name| name.contains(":c_")).collect())
    };
    for (arguments, persists) in [(&["--persist"][..], true), (&[], false)] {
        for numprocs in [1, 4] {
            let (daemon, sidecar) = start_pair(arguments)?;
            let client = sidecar.client();
            client.call("twiddler.scaleProgram", ("web", "c", numprocs))?;
            let scaled = names(&client)?;
            for restarts in [Daemon::restart_rpc, Daemon::kill_and_start_again] {
                restarts(&daemon)?;
                eventually(LIMIT, || {
                    let now = names(&client)?;
                    let expected = if persists { scaled.len() } else { 2 };
                    ensure!(now.len() == expected, "{numprocs} {arguments:?}: {now:?}");
                    let reported = diff(&client)?;
                    ensure!(reported.is_empty() != persists, "{reported:?}");
                    Ok(())
                })?;
            }
        }
    }
    Ok(())
}

#[test]
fn a_program_that_the_file_defines_leaves_the_persist_file_and_starts_once() -> Result<()> {
    let (daemon, sidecar) = start_pair(&["--persist"])?;
    let client = sidecar.client();
    for name in ["z", "other"] {
        client.call("twiddler.addProcessToGroup", ("web", name, sleeper()))?;
    }
    let persist_file = || daemon.read("conf.d/zz-twiddler-persist.conf");
    ensure!(persist_file()?.contains("; web:z\n"), "{}", persist_file()?);
    let web = WEB.replace("a,b,c", "a,b,c,z");
    let z = "\n[program:z]\ncommand = /bin/sleep 9000\n";
    daemon.write(FILE, &format!("{web}{z}"))?;
    // The proxy notices the edit without a call.
    eventually(LIMIT, || {
        let text = persist_file()?;
        ensure!(
            !text.contains("; web:z\n") && text.contains("; web:other\n"),
            "{text}"
        );
        Ok(())
    })?;
    let once = |daemon: &Daemon| -> Result<()> {
        eventually(LIMIT, || {
            let table = table(&daemon.client())?;
            let named = table.values().filter(|row| row.name == "z");
            ensure!(named.count() == 1, "{:?}", table.keys());
            Ok(())
        })
    };
    daemon.kill_and_start_again()?;
    once(&daemon)?;
    settled(&client)?;
    // If the proxy does not run during the edit, the daemon starts both.
    client.call("twiddler.addProcessToGroup", ("web", "y", sleeper()))?;
    sidecar.kill()?;
    let y = "\n[program:y]\ncommand = /bin/sleep 9001\n";
    daemon.write(FILE, &format!("{}{z}{y}", web.replace("b,c,z", "b,c,z,y")))?;
    daemon.kill_and_start_again()?;
    sidecar.start_again()?;
    let log = sidecar.wait_for_stderr("there is only theirs from now on")?;
    ensure!(log.contains("web:y"), "{log}");
    once(&daemon)?;
    eventually(LIMIT, || {
        let direct = table(&daemon.client())?;
        let named = direct.values().filter(|row| row.name == "y");
        let named: Vec<&Row> = named.collect();
        ensure!(named.len() == 1 && named[0].group == "web", "{named:?}");
        Ok(())
    })
}

#[test]
fn a_changed_group_priority_is_reported_and_restarts_no_process() -> Result<()> {
    let (daemon, sidecar) = start_pair(&["--live-update"])?;
    let client = sidecar.client();
    let before = settled(&client)?;
    let with_priority = |priority: i64| {
        let section = format!("[group:web]\npriority = {priority}\n");
        daemon.write(FILE, &WEB.replace("[group:web]\n", &section))
    };
    with_priority(5)?;
    let reported = diff(&client)?;
    ensure!(reported.len() == 1, "{reported:?}");
    let own = &reported[0];
    ensure!(text(member(own, "program")?)?.is_empty(), "{own:?}");
    ensure!(text(member(own, "change")?)? == "changed", "{own:?}");
    let option = &items(member(own, "options")?)?[0];
    ensure!(text(member(option, "name")?)? == "priority", "{own:?}");
    ensure!(text(member(option, "new")?)? == "5", "{own:?}");
    client.call("twiddler.updateConfig", ())?;
    ensure!(diff(&client)?.is_empty(), "{:?}", diff(&client)?);
    ensure!(ctl(&client, &["reread"])? == "No config updates to processes\n");
    with_priority(6)?;
    ensure!(ctl(&client, &["update"])?.contains("web: updated process group"));
    ensure!(diff(&client)?.is_empty(), "{:?}", diff(&client)?);
    ensure!(table(&client)? == before);
    Ok(())
}

/// Without an option, the proxy uses the directory of the first include pattern.
#[test]
fn groups_in_files_read_after_the_proxys_own_are_known() -> Result<()> {
    const LATER: &str = "more/web.conf";
    for version in Version::STOCK {
        let daemon = Daemon::start_with(DaemonOptions {
            version,
            include: "conf.d/*.conf more/*.conf",
            files: &[(LATER, WEB)],
            ..DaemonOptions::default()
        })?;
        let sidecar = Sidecar::start(&daemon)?;
        let client = sidecar.client();
        let before = settled(&client)?;
        ensure!(diff(&client)?.is_empty(), "{:?}", diff(&client)?);
        // One edit has the same meaning, so that the daemon gets every kind of probe.
        let edited = WEB.replace("601", "611").replace("603", "613");
        daemon.write(
            LATER,
            &edited.replace("sleep 602", "sleep 602\nautostart = 1"),
        )?;
        let reply = client.call("twiddler.updateConfig", ())?;
        ensure!(items(member(&reply, "skipped")?)?.is_empty(), "{reply:?}");
        let after = settled(&client)?;
        let changed = differing(&before, &after);
        ensure!(changed == ["lone:lone", "web:b"], "{changed:?}");
        ensure!(diff(&client)?.is_empty(), "{:?}", diff(&client)?);
        // The proxy does not guess: the daemon has read a text that the proxy does not know.
        sidecar.kill()?;
        daemon.write(LATER, &WEB.replace("600", "610"))?;
        ctl(&daemon.client(), &["update"])?;
        daemon.write(LATER, &WEB.replace("600", "620"))?;
        sidecar.start_again()?;
        let reported = diff(&sidecar.client())?;
        let kinds = reported.iter().map(|one| text(member(one, "change")?));
        let kinds: Vec<&str> = kinds.collect::<Result<_>>()?;
        ensure!(kinds == ["unknown"], "{reported:?}");
    }
    Ok(())
}

/// The baseline keeps sections that an update applied without replacing the group, as long as the group exists.
#[test]
fn supervisorctl_adds_a_removed_group_again() -> Result<()> {
    for arguments in [&[][..], &["--live-update"]] {
        let (daemon, sidecar) = start_pair(arguments)?;
        let client = sidecar.client();
        let [more, other] =
            ["numprocs = 3", "numprocs = 4"].map(|text| WEB.replace("numprocs = 2", text));
        daemon.write(FILE, &more)?;
        client.call("twiddler.updateConfig", ())?;
        let (_, lone) = WEB.split_once("[program:lone]").context("lone")?;
        for text in [format!("[program:lone]{lone}"), more, other] {
            daemon.write(FILE, &text)?;
            ctl(&client, &["update"])?;
            settled(&client)?;
            let left = diff(&client)?;
            ensure!(left.is_empty(), "{arguments:?}: {left:?}");
            let count = table(&client)?
                .keys()
                .filter(|name| name.starts_with("web:c_"))
                .count();
            let expected = [0, 3, 4]
                .into_iter()
                .find(|wanted| text.contains(&format!("numprocs = {wanted}")));
            ensure!(count == expected.unwrap_or(0), "{count} with {arguments:?}");
        }
    }
    Ok(())
}

/// Processes of one group can have been started with different environments. Each program gets the variables
/// that it does not set itself.
#[test]
fn a_restored_environment_restarts_the_processes_that_had_another() -> Result<()> {
    const SECTIONS: &str = "[group:web]\nprograms=a,b,c\n\
        [program:a]\ncommand=/bin/sleep 600\nstartsecs=0\n\
        [program:b]\ncommand=/bin/sleep 60%(ENV_ALL)s\nstartsecs=0\n\
        [program:c]\ncommand=/bin/sleep 600\nstartsecs=0\nenvironment=ALL=\"9\"\n";
    let with = |all: &str, sections: &str| format!("[supervisord]\nenvironment={all}\n{sections}");
    let daemon = Daemon::start_with(DaemonOptions {
        files: &[(FILE, &with("ALL=1", SECTIONS))],
        ..DaemonOptions::default()
    })?;
    let sidecar = Sidecar::start(&daemon)?;
    let client = sidecar.client();
    ensure!(diff(&client)?.is_empty());
    let mut judge = Judge::of(&daemon)?;
    let mut before = settled(&client)?;
    let edited = SECTIONS.replace("sleep 600\nstartsecs=0\nenv", "sleep 601\nstartsecs=0\nenv");
    for text in [
        with("ALL=2", SECTIONS),
        with("ALL='2'", SECTIONS),
        with("ALL=1", SECTIONS),
        with("ALL=2", &edited),
        with("ALL=3", &edited),
        with("ALL=2", SECTIONS),
        with("ALL=1,MORE=x", SECTIONS),
    ] {
        daemon.write(FILE, &text)?;
        let verdict = judge.update()?;
        let reply = client.call("twiddler.updateConfig", ())?;
        let after = settled(&client)?;
        ensure_reported(&reply, &verdict, &before)
            .and_then(|()| ensure_as_judged(&verdict, &BTreeSet::new(), &before, &after))
            .with_context(|| text.clone())?;
        let left = diff(&client)?;
        ensure!(left.is_empty(), "{left:?} after {text}");
        before = after;
    }
    Ok(())
}

/// A real group of many processes is stopped and removed in one call.
#[test]
fn many_processes_of_one_real_group_stop_and_leave_together() -> Result<()> {
    const QUERIES: usize = 1000;
    for arguments in [&[][..], &["--persist"]] {
        let daemon = Daemon::start_with(DaemonOptions {
            body: faults::SECTION,
            files: &[
                (FILE, WEB),
                (faults::FILE, &faults::extension(&["getProcessInfo"])),
            ],
            ..DaemonOptions::default()
        })?;
        let sidecar = Sidecar::start_with(&daemon, arguments)?;
        let client = sidecar.client();
        ensure!(diff(&client)?.is_empty(), "{:?}", diff(&client)?);
        let before = settled(&client)?;
        let scale = |numprocs: i64| client.call("twiddler.scaleProgram", ("web", "c", numprocs));
        scale(16)?;
        settled(&client)?;
        client.call("supervisor.stopProcess", ("web:c_05",))?;
        faults::strike(&daemon, QUERIES, "REFUSE")?;
        let reply = scale(2)?;
        // The daemon is asked about the two that stay, about one that may have the program's name, about one of
        // those that are removed, and about the one that did not run.
        let queries = QUERIES - faults::left(&daemon)?;
        ensure!(queries == 5, "{queries} queries about processes");
        faults::call_off(&daemon);
        let running = (2..16).filter(|number| *number != 5);
        let running: BTreeSet<String> =
            running.map(|number| format!("web:c_{number:02}")).collect();
        ensure!(names(&reply, "stopped")? == running, "{reply:?}");
        let now = table(&client)?;
        ensure!(now == before, "{:?}", differing(&before, &now));
        ensure!(diff(&client)?.is_empty(), "{:?}", diff(&client)?);
        // If one process of the real group stays, the others are removed one by one.
        scale(16)?;
        scale(3)?;
        ensure!(table(&client)?.len() == before.len() + 1);
        scale(2)?;
        ensure!(table(&client)? == before);
    }
    Ok(())
}

/// The real group of `web` that was added last.
fn latest_group(daemon: &Daemon) -> Result<String> {
    let groups = rows(&daemon.client())?.into_iter().map(|row| row.group);
    groups.max().context("no groups")
}

fn remove_on_daemon(daemon: &Daemon, group: &str) -> Result<()> {
    daemon.call("supervisor.stopProcessGroup", (group,))?;
    daemon.call("supervisor.removeProcessGroup", (group,))?;
    Ok(())
}

#[test]
fn a_scale_succeeds_after_a_real_group_was_removed_on_the_daemon() -> Result<()> {
    let (daemon, sidecar) = start_pair(&[])?;
    let client = sidecar.client();
    let before = settled(&client)?;
    client.call("twiddler.scaleProgram", ("web", "c", 16))?;
    remove_on_daemon(&daemon, &latest_group(&daemon)?)?;
    let reply = client.call("twiddler.scaleProgram", ("web", "c", 2))?;
    ensure!(names(&reply, "stopped")?.is_empty(), "{reply:?}");
    ensure!(table(&client)? == before);
    Ok(())
}

/// A client has just removed the others directly on the daemon.
#[test]
fn a_scale_counts_only_existing_processes() -> Result<()> {
    let (daemon, sidecar) = start_pair(&[])?;
    let client = sidecar.client();
    let before = settled(&client)?;
    client.call(ADD, ("web", "s", numbered(4, "/bin/sleep 600")))?;
    let real = latest_group(&daemon)?;
    let scale = || client.call("twiddler.scaleProgram", ("web", "s", 6));
    scale()?;
    remove_on_daemon(&daemon, &real)?;
    scale()?;
    let now = settled(&client)?;
    ensure!(now.len() == before.len() + 6, "{now:?}");
    Ok(())
}

/// The daemon refuses to remove the last one.
#[test]
fn a_scale_that_cannot_remove_a_process_is_a_fault_and_can_be_repeated() -> Result<()> {
    let daemon = Daemon::start_with(DaemonOptions {
        body: faults::SECTION,
        files: &[
            (FILE, WEB),
            (faults::FILE, &faults::extension(&["removeProcessGroup"])),
        ],
        ..DaemonOptions::default()
    })?;
    let sidecar = Sidecar::start(&daemon)?;
    let client = sidecar.client();
    let before = settled(&client)?;
    client.call(ADD, ("web", "s", numbered(3, "/bin/sleep 600")))?;
    settled(&client)?;
    faults::strike(&daemon, 1, "REFUSE")?;
    let scale = ("web", "s", 0);
    let fault = client.expect_fault("twiddler.scaleProgram", scale)?;
    ensure!(fault.code == 30, "{fault:?}");
    ensure!(table(&client)?.len() == before.len() + 1);
    client.call("twiddler.scaleProgram", scale)?;
    ensure!(table(&client)? == before);
    Ok(())
}

/// The daemon's call for a whole group skips a process that is already stopping.
#[test]
fn a_stopping_process_is_waited_for_and_removed_with_the_others() -> Result<()> {
    let (daemon, sidecar) = start_pair(&[])?;
    let client = sidecar.client();
    let before = settled(&client)?;
    let stubborn = "/bin/sh -c \"case $SUPERVISOR_PROCESS_NAME in s_00) trap '' TERM;; esac && exec /bin/sleep 600\"";
    client.call(ADD, ("web", "s", numbered(12, stubborn)))?;
    settled(&client)?;
    client.call("supervisor.stopProcess", ("web:s_00", false))?;
    client.call("twiddler.scaleProgram", ("web", "s", 0))?;
    ensure!(
        table(&client)? == before,
        "{:?}",
        differing(&before, &table(&client)?)
    );
    let left = rows(&daemon.client())?;
    ensure!(
        left.iter().all(|row| !row.group.starts_with("web~")),
        "{left:?}"
    );
    Ok(())
}

/// A program of so many processes, each of which is killed two seconds after it is told to stop.
fn numbered(numprocs: i64, command: &str) -> Value {
    options(&[
        ("command", value(command)),
        ("numprocs", value(numprocs)),
        ("process_name", value("%(program_name)s_%(process_num)02d")),
        ("startsecs", value(1)),
        ("stopwaitsecs", value(2)),
    ])
}

/// Many processes of a program are replaced, first in the daemon's own group, then in their real group.
#[test]
fn many_changed_processes_are_replaced_together() -> Result<()> {
    let with = |seconds: &str, autostart: &str| {
        WEB.replace(
            "numprocs = 2",
            &format!("numprocs = 12\nstartsecs = 0\nautostart = {autostart}"),
        )
        .replace("sleep 602", &format!("sleep {seconds}"))
    };
    let daemon = Daemon::start_with(DaemonOptions {
        files: &[(FILE, &with("602", "true"))],
        ..DaemonOptions::default()
    })?;
    let sidecar = Sidecar::start(&daemon)?;
    let client = sidecar.client();
    let mut judge = Judge::of(&daemon)?;
    ensure!(diff(&client)?.is_empty());
    for text in [
        with("612", "true"),
        with("622", "false"),
        // All processes of the group.
        with("632", "true")
            .replace("sleep 600", "sleep 610")
            .replace("sleep 601", "sleep 611"),
    ] {
        client.call("supervisor.stopProcess", ("web:c_07",))?;
        let before = settled(&client)?;
        daemon.write(FILE, &text)?;
        let verdict = judge.update()?;
        let reply = client.call("twiddler.updateConfig", ())?;
        let after = settled(&client)?;
        ensure_reported(&reply, &verdict, &before)
            .and_then(|()| ensure_as_judged(&verdict, &BTreeSet::new(), &before, &after))
            .with_context(|| text.clone())?;
        ensure!(diff(&client)?.is_empty(), "{:?}", diff(&client)?);
        let _runs_already = client.call("supervisor.startProcess", ("web:c_07",));
        settled(&client)?;
    }
    Ok(())
}

#[test]
fn a_numprocs_that_returns_to_the_baseline_is_reported() -> Result<()> {
    let (daemon, sidecar) = start_pair(&[])?;
    let client = sidecar.client();
    let before = settled(&client)?;
    daemon.write(FILE, &WEB.replace("numprocs = 2", "numprocs = 3"))?;
    client.call("twiddler.updateConfig", ())?;
    daemon.write(FILE, WEB)?;
    for _ in 0..2 {
        let reported = diff(&client)?;
        ensure!(reported.len() == 1, "{reported:?}");
        let options = items(member(&reported[0], "options")?)?;
        ensure!(options.len() == 1, "{options:?}");
        let of = |name: &str| Ok::<_, anyhow::Error>(text(member(&options[0], name)?)?.to_owned());
        ensure!(
            [of("name")?, of("old")?, of("new")?] == ["numprocs", "3", "2"],
            "{options:?}"
        );
    }
    client.call("twiddler.updateConfig", ())?;
    ensure!(diff(&client)?.is_empty(), "{:?}", diff(&client)?);
    ensure!(table(&client)? == before);
    Ok(())
}
