//! An edited file restarts only what changed.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use anyhow::{Context, Result, ensure};
use supervisor_twiddler::xmlrpc::{Value, write};

use crate::common::faults;
use crate::common::judge::{
    Judge, ctl, diff, differing, ensure_as_judged, ensure_told, is_running, names, settled, table,
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
fn only_the_edited_program_restarts_and_the_answer_says_so() -> Result<()> {
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
        let told = diff(&client)?;
        ensure!(told.len() == 1, "{told:?}");
        ensure!(text(member(&told[0], "change")?)? == "changed", "{told:?}");
        let options = items(member(&told[0], "options")?)?;
        ensure!(options.len() == 1, "{options:?}");
        ensure!(text(member(&options[0], "name")?)? == "environment.TOKEN");
        ensure!(
            !format!("{told:?}").contains("other"),
            "a secret in {told:?}"
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
        let said = String::from_utf8_lossy(&ctl.stdout).into_owned();
        ensure!(said.trim() == "No config updates to processes", "{said}");
    }
    Ok(())
}

#[test]
fn a_file_that_is_not_valid_stops_nobody() -> Result<()> {
    let (daemon, sidecar) = started(&[])?;
    let client = sidecar.client();
    let before = settled(&client)?;
    daemon.write(FILE, &WEB.replace("601", "611\numask = 99"))?;
    let fault = client.expect_fault("twiddler.updateConfig", ())?;
    ensure!(fault.code == 92, "{fault:?}");
    ensure!(table(&client)? == before);
    Ok(())
}

#[test]
fn numbers_go_up_and_down_and_survive_the_proxy() -> Result<()> {
    let (_daemon, sidecar) = started(&[])?;
    let client = sidecar.client();
    let before = settled(&client)?;
    let scale = |numprocs: i64| client.call("twiddler.scaleProgram", ("web", "c", numprocs));
    let reply = scale(4)?;
    ensure!(names(&reply, "started")? == ["web:c_02", "web:c_03"].map(str::to_owned).into());
    let told = diff(&client)?;
    ensure!(
        told.len() == 1 && text(member(&told[0], "change")?)? == "scaled",
        "{told:?}"
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
    let (_daemon, sidecar) = started(&[])?;
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
    let told = client.call("twiddler.getProgramOptions", ("web", "z"))?;
    ensure!(
        text(member(&told, "command")?)? == "/bin/sleep 8",
        "{told:?}"
    );
    Ok(())
}

fn started(arguments: &[&str]) -> Result<(Daemon, Sidecar)> {
    let daemon = Daemon::start_with(DaemonOptions {
        files: &[(FILE, WEB)],
        ..DaemonOptions::default()
    })?;
    let sidecar = Sidecar::start_with(&daemon, arguments)?;
    // The proxy takes note of what the groups were started from.
    sidecar.client().call("twiddler.diffConfig", ())?;
    settled(&sidecar.client())?;
    Ok((daemon, sidecar))
}

#[test]
fn with_live_update_supervisorctl_restarts_only_what_changed() -> Result<()> {
    let (daemon, sidecar) = started(&["--live-update"])?;
    let client = sidecar.client();
    for seconds in ["611", "612"] {
        let before = settled(&client)?;
        daemon.write(FILE, &WEB.replace("601", seconds))?;
        ensure!(ctl(&client, &["reread"])? == "web: changed\n");
        let said = ctl(&client, &["update"])?;
        ensure!(
            said == "web: stopped\nweb: updated process group\n",
            "{said}"
        );
        let after = settled(&client)?;
        ensure!(differing(&before, &after) == ["web:b"], "{after:?}");
        ensure!(is_running(&after["web:b"]), "{after:?}");
        ensure!(diff(&client)?.is_empty(), "{:?}", diff(&client)?);
        ensure!(ctl(&client, &["update"])?.is_empty());
    }
    // Somebody who means the whole group gets it.
    let before = settled(&client)?;
    daemon.write(FILE, &WEB.replace("601", "613"))?;
    ctl(&client, &["reread"])?;
    ctl(&client, &["stop", "web:*"])?;
    let after = table(&client)?;
    ensure!(differing(&before, &after).len() == 4, "{after:?}");
    Ok(())
}

#[test]
fn without_it_the_group_restarts_as_a_whole_and_nobody_is_there_twice() -> Result<()> {
    let (daemon, sidecar) = started(&[])?;
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
fn what_was_added_and_comes_into_the_file_is_there_once() -> Result<()> {
    for arguments in [&[][..], &["--persist"], &["--live-update"]] {
        let (daemon, sidecar) = started(arguments)?;
        let client = sidecar.client();
        client.call("twiddler.addProcessToGroup", ("web", "z", sleeper()))?;
        client.call("twiddler.addGroup", ("dyn", 5))?;
        client.call("twiddler.addProcessToGroup", ("dyn", "x", sleeper()))?;
        let before = settled(&client)?;
        let web = WEB.replace("a,b,c", "a,b,c,z");
        let z = "\n[program:z]\ncommand = /bin/sleep 9000\n";
        let added = "\n[group:dyn]\nprograms = x,y\n[program:x]\ncommand = /bin/sleep 9000\n[program:y]\ncommand = /bin/sleep 8000\n";
        daemon.write(FILE, &format!("{web}{z}{added}"))?;
        let told = ctl(&client, &["reread"])?;
        ensure!(
            told.contains("dyn: changed") && told.contains("web: changed"),
            "{told}"
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
fn a_group_whose_start_nobody_saw_is_unknown_and_left_alone() -> Result<()> {
    let daemon = Daemon::start_with(DaemonOptions {
        files: &[(FILE, WEB)],
        ..DaemonOptions::default()
    })?;
    daemon.write(FILE, &WEB.replace("601", "611"))?;
    let sidecar = Sidecar::start(&daemon)?;
    let client = sidecar.client();
    let before = settled(&client)?;
    let told = diff(&client)?;
    ensure!(
        told.len() == 1 && text(member(&told[0], "change")?)? == "unknown",
        "{told:?}"
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

/// It is written again with the next step, though nothing else is known then.
#[test]
fn a_baseline_that_somebody_has_removed_comes_back() -> Result<()> {
    let (daemon, sidecar) = started(&[])?;
    let client = sidecar.client();
    ensure!(diff(&client)?.is_empty());
    let file = daemon.include_dir().join(".twiddler-baseline");
    let make_anew = || -> Result<()> {
        client.call("supervisor.reloadConfig", ())?;
        for step in ["stopProcessGroup", "removeProcessGroup", "addProcessGroup"] {
            client.call(&format!("supervisor.{step}"), ("lone",))?;
        }
        Ok(())
    };
    make_anew()?;
    fs::remove_file(&file)?;
    make_anew()?;
    ensure!(file.exists(), "it is not there");
    Ok(())
}

#[test]
fn an_update_goes_on_when_its_caller_hangs_up() -> Result<()> {
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
        let now = table.get(slow).context("it is taken out")?;
        ensure!(is_running(now) && now.pid != before.pid, "{now:?}");
        Ok(())
    })?;
    ensure!(diff(&client)?.is_empty());
    Ok(())
}

#[test]
fn numbers_survive_the_daemon_with_persist_alone() -> Result<()> {
    let names = |client: &Client| -> Result<Vec<String>> {
        let names = table(client)?.into_keys();
        Ok(names.filter(|name| name.contains(":c_")).collect())
    };
    for (arguments, kept) in [(&["--persist"][..], true), (&[], false)] {
        for numprocs in [1, 4] {
            let (daemon, sidecar) = started(arguments)?;
            let client = sidecar.client();
            client.call("twiddler.scaleProgram", ("web", "c", numprocs))?;
            let scaled = names(&client)?;
            for restarts in [Daemon::restart_rpc, Daemon::kill_and_start_again] {
                restarts(&daemon)?;
                eventually(LIMIT, || {
                    let now = names(&client)?;
                    let expected = if kept { scaled.len() } else { 2 };
                    ensure!(now.len() == expected, "{numprocs} {arguments:?}: {now:?}");
                    let told = diff(&client)?;
                    ensure!(told.is_empty() != kept, "{told:?}");
                    Ok(())
                })?;
            }
        }
    }
    Ok(())
}

#[test]
fn what_the_file_defines_by_now_is_kept_no_longer_and_starts_once() -> Result<()> {
    let (daemon, sidecar) = started(&["--persist"])?;
    let client = sidecar.client();
    for name in ["z", "other"] {
        client.call("twiddler.addProcessToGroup", ("web", name, sleeper()))?;
    }
    let kept = || daemon.read("conf.d/zz-twiddler-persist.conf");
    ensure!(kept()?.contains("; web:z\n"), "{}", kept()?);
    let web = WEB.replace("a,b,c", "a,b,c,z");
    let z = "\n[program:z]\ncommand = /bin/sleep 9000\n";
    daemon.write(FILE, &format!("{web}{z}"))?;
    // Nobody calls.
    eventually(LIMIT, || {
        let kept = kept()?;
        ensure!(
            !kept.contains("; web:z\n") && kept.contains("; web:other\n"),
            "{kept}"
        );
        Ok(())
    })?;
    let once = |daemon: &Daemon| -> Result<()> {
        eventually(LIMIT, || {
            let there = table(&daemon.client())?;
            let named = there.values().filter(|row| row.name == "z");
            ensure!(named.count() == 1, "{:?}", there.keys());
            Ok(())
        })
    };
    daemon.kill_and_start_again()?;
    once(&daemon)?;
    settled(&client)?;
    // Both start where the proxy was away.
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
fn another_priority_of_a_group_is_shown_and_restarts_nobody() -> Result<()> {
    let (daemon, sidecar) = started(&["--live-update"])?;
    let client = sidecar.client();
    let before = settled(&client)?;
    let with_priority = |priority: i64| {
        let section = format!("[group:web]\npriority = {priority}\n");
        daemon.write(FILE, &WEB.replace("[group:web]\n", &section))
    };
    with_priority(5)?;
    let told = diff(&client)?;
    ensure!(told.len() == 1, "{told:?}");
    let own = &told[0];
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

/// Where nobody says which one, the proxy's directory is that of the first pattern.
#[test]
fn groups_of_files_that_are_read_after_the_proxys_own_are_known() -> Result<()> {
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
        // One means the same, so that the daemon is asked for all it can be asked for.
        let edited = WEB.replace("601", "611").replace("603", "613");
        daemon.write(
            LATER,
            &edited.replace("sleep 602", "sleep 602\nautostart = 1"),
        )?;
        let reply = client.call("twiddler.updateConfig", ())?;
        ensure!(items(member(&reply, "skipped")?)?.is_empty(), "{reply:?}");
        let after = settled(&client)?;
        let touched = differing(&before, &after);
        ensure!(touched == ["lone:lone", "web:b"], "{touched:?}");
        ensure!(diff(&client)?.is_empty(), "{:?}", diff(&client)?);
        // What was not seen is not guessed: another text than the proxy knows is in force.
        sidecar.kill()?;
        daemon.write(LATER, &WEB.replace("600", "610"))?;
        ctl(&daemon.client(), &["update"])?;
        daemon.write(LATER, &WEB.replace("600", "620"))?;
        sidecar.start_again()?;
        let told = diff(&sidecar.client())?;
        let kinds = told.iter().map(|one| text(member(one, "change")?));
        let kinds: Vec<&str> = kinds.collect::<Result<_>>()?;
        ensure!(kinds == ["unknown"], "{told:?}");
    }
    Ok(())
}

/// What was put in force without its group being made anew is remembered as long as it is there.
#[test]
fn a_group_that_went_comes_back_by_supervisorctl() -> Result<()> {
    for arguments in [&[][..], &["--live-update"]] {
        let (daemon, sidecar) = started(arguments)?;
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

/// Processes of one group may have been started with different environments, of which each program takes
/// what it does not set itself.
#[test]
fn an_environment_that_comes_back_restarts_who_was_given_another_one() -> Result<()> {
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
        ensure_told(&reply, &verdict, &before)
            .and_then(|()| ensure_as_judged(&verdict, &BTreeSet::new(), &before, &after))
            .with_context(|| text.clone())?;
        let left = diff(&client)?;
        ensure!(left.is_empty(), "{left:?} after {text}");
        before = after;
    }
    Ok(())
}

/// A group of the daemon's that many processes share is stopped and removed as a whole.
#[test]
fn many_that_live_together_stop_and_leave_together() -> Result<()> {
    const QUESTIONS: usize = 1000;
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
        faults::strike(&daemon, QUESTIONS, "REFUSE")?;
        let reply = scale(2)?;
        // Of those that stay the daemon was asked, of one that might be called as the program is, of one
        // of those that go, and of the one that did not run.
        let asked = QUESTIONS - faults::left(&daemon)?;
        ensure!(asked == 5, "{asked} questions about processes");
        faults::call_off(&daemon);
        let ran = (2..16).filter(|number| *number != 5);
        let ran: BTreeSet<String> = ran.map(|number| format!("web:c_{number:02}")).collect();
        ensure!(names(&reply, "stopped")? == ran, "{reply:?}");
        let now = table(&client)?;
        ensure!(now == before, "{:?}", differing(&before, &now));
        ensure!(diff(&client)?.is_empty(), "{:?}", diff(&client)?);
        // Where they share it with one that stays, each goes by itself.
        scale(16)?;
        scale(3)?;
        ensure!(table(&client)?.len() == before.len() + 1);
        scale(2)?;
        ensure!(table(&client)? == before);
    }
    Ok(())
}

/// The daemon's group that was made last of those that hold what clients see in `web`.
fn latest_group(daemon: &Daemon) -> Result<String> {
    let groups = rows(&daemon.client())?.into_iter().map(|row| row.group);
    groups.max().context("no groups")
}

fn remove_straight(daemon: &Daemon, group: &str) -> Result<()> {
    daemon.call("supervisor.stopProcessGroup", (group,))?;
    daemon.call("supervisor.removeProcessGroup", (group,))?;
    Ok(())
}

#[test]
fn a_group_that_somebody_has_removed_on_the_daemon_is_no_obstacle_to_fewer() -> Result<()> {
    let (daemon, sidecar) = started(&[])?;
    let client = sidecar.client();
    let before = settled(&client)?;
    client.call("twiddler.scaleProgram", ("web", "c", 16))?;
    remove_straight(&daemon, &latest_group(&daemon)?)?;
    let reply = client.call("twiddler.scaleProgram", ("web", "c", 2))?;
    ensure!(names(&reply, "stopped")?.is_empty(), "{reply:?}");
    ensure!(table(&client)? == before);
    Ok(())
}

/// Somebody has removed them straight on the daemon a moment ago.
#[test]
fn a_scale_counts_only_those_that_are_there() -> Result<()> {
    let (daemon, sidecar) = started(&[])?;
    let client = sidecar.client();
    let before = settled(&client)?;
    client.call(ADD, ("web", "s", numbered(4, "/bin/sleep 600")))?;
    let real = latest_group(&daemon)?;
    let scale = || client.call("twiddler.scaleProgram", ("web", "s", 6));
    scale()?;
    remove_straight(&daemon, &real)?;
    scale()?;
    let now = settled(&client)?;
    ensure!(now.len() == before.len() + 6, "{now:?}");
    Ok(())
}

/// The daemon does not let the last of them go.
#[test]
fn a_scale_that_leaves_somebody_is_a_fault_and_can_be_repeated() -> Result<()> {
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
    let refusal = client.expect_fault("twiddler.scaleProgram", scale)?;
    ensure!(refusal.code == 30, "{refusal:?}");
    ensure!(table(&client)?.len() == before.len() + 1);
    client.call("twiddler.scaleProgram", scale)?;
    ensure!(table(&client)? == before);
    Ok(())
}

/// The daemon's call for a whole group passes over one that stops already.
#[test]
fn who_stops_already_is_waited_for_and_leaves_with_the_others() -> Result<()> {
    let (daemon, sidecar) = started(&[])?;
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

/// A program of so many processes, of which each is killed two seconds after it was told to stop.
fn numbered(numprocs: i64, command: &str) -> Value {
    options(&[
        ("command", value(command)),
        ("numprocs", value(numprocs)),
        ("process_name", value("%(program_name)s_%(process_num)02d")),
        ("startsecs", value(1)),
        ("stopwaitsecs", value(2)),
    ])
}

/// Many processes of a program are replaced, first in the daemon's own group, then where they live since.
#[test]
fn many_that_changed_are_replaced_together_and_nobody_else() -> Result<()> {
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
        // All of the group.
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
        ensure_told(&reply, &verdict, &before)
            .and_then(|()| ensure_as_judged(&verdict, &BTreeSet::new(), &before, &after))
            .with_context(|| text.clone())?;
        ensure!(diff(&client)?.is_empty(), "{:?}", diff(&client)?);
        let _runs_already = client.call("supervisor.startProcess", ("web:c_07",));
        settled(&client)?;
    }
    Ok(())
}

#[test]
fn a_number_that_goes_back_to_what_the_group_was_started_from_is_shown() -> Result<()> {
    let (daemon, sidecar) = started(&[])?;
    let client = sidecar.client();
    let before = settled(&client)?;
    daemon.write(FILE, &WEB.replace("numprocs = 2", "numprocs = 3"))?;
    client.call("twiddler.updateConfig", ())?;
    daemon.write(FILE, WEB)?;
    for _ in 0..2 {
        let told = diff(&client)?;
        ensure!(told.len() == 1, "{told:?}");
        let options = items(member(&told[0], "options")?)?;
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
