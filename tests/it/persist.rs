//! `--persist`: additions come back with the daemon, from one file that it reads itself.
//!
//! `TEST_EFFORT` multiplies how often the daemon is restarted under changes in each way.

use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::{fs, path::PathBuf};

use crate::common::changes::{Model, Restart, USER, View, ensure_daemon_matches, neighbours};
use crate::common::dice::{seed, times};
use crate::common::disk::{launcher, limit_files};
use crate::common::stuck::{stopped_or_answered, stopping_sidecar, wait_until_stopped};
use crate::common::values::{column, fault_in};
use crate::common::{
    Client, Daemon, Dice, LIMIT, Row, Sidecar, SidecarOptions, eventually, items, member, number,
    options, rows, stdout_text, text, texts, value,
};
use anyhow::{Context, Result, ensure};
use supervisor_twiddler::xmlrpc::{Value, write};

/// Few enough for each pull request. 50 give more confidence.
const RESTARTS: usize = 5;
/// The name of the persist file.
const PERSIST_FILE: &str = "zz-twiddler-persist.conf";

fn front() -> Result<(Daemon, Sidecar, Client)> {
    let daemon = Daemon::start(USER)?;
    let sidecar = Sidecar::start_with(&daemon, &["--persist"])?;
    let client = sidecar.socket_client();
    Ok((daemon, sidecar, client))
}

fn persist_path(daemon: &Daemon) -> PathBuf {
    daemon.include_dir().join(PERSIST_FILE)
}

fn persist_file(daemon: &Daemon) -> Result<String> {
    fs::read_to_string(persist_path(daemon)).context("reading the persist file")
}

/// The groups of the file, sorted.
fn groups(text: &str) -> Vec<&str> {
    let groups = text.split("\n\n").map(|group| group.trim_matches('\n'));
    let mut groups: Vec<&str> = groups.filter(|group| !group.is_empty()).collect();
    groups.sort_unstable();
    groups
}

fn sleeper() -> Value {
    options(&[("command", "/bin/sleep 600"), ("startsecs", "0")])
}

fn several() -> Value {
    options(&[
        ("command", value("/bin/sleep 600")),
        ("startsecs", value(0)),
        ("numprocs", value(3)),
        ("process_name", value("%(program_name)s_%(process_num)d")),
    ])
}

/// Makes changes of each kind: an added group with one process and further ones, members of the user's
/// groups, an empty group, and the removal of a user's process.
fn change_all(client: &Client) -> Result<()> {
    client.call("twiddler.addGroup", ("own", 5))?;
    client.call("twiddler.addProgramToGroup", ("own", "first", sleeper()))?;
    client.call("twiddler.addProgramToGroup", ("own", "more", several()))?;
    client.call("twiddler.addGroup", ("nothing", 6))?;
    client.call("twiddler.addProgramToGroup", ("web", "joined", sleeper()))?;
    client.call(
        "twiddler.addProgramToGroup",
        ("dynamic_procs", "ls", several()),
    )?;
    client.call("supervisor.stopProcess", ("web:back",))?;
    client.call("twiddler.removeProcessFromGroup", ("web", "back"))?;
    ensure_all(client)
}

/// Fails unless the daemon has the changes of [`change_all`] and runs the programs.
fn ensure_all(client: &Client) -> Result<()> {
    let running = [
        "dynamic_procs:ls_0",
        "dynamic_procs:ls_1",
        "dynamic_procs:ls_2",
        "own:first",
        "own:more_0",
        "own:more_1",
        "own:more_2",
        "web:front",
        "web:joined",
    ];
    eventually(LIMIT, || {
        let mut rows = rows(client)?;
        rows.retain(|row| row.group != "pool");
        let names: Vec<String> = rows.iter().map(Row::namespec).collect();
        ensure!(names == running, "{names:?}");
        ensure!(rows.iter().all(|row| row.state == "RUNNING"), "{rows:#?}");
        Ok(())
    })?;
    let groups = client.call("twiddler.getGroupNames", ())?;
    ensure!(
        texts(&groups)? == ["dynamic_procs", "nothing", "own", "pool", "web"],
        "{groups:?}"
    );
    let hidden = client.expect_fault("supervisor.getProcessInfo", ("web:back",))?;
    ensure!(hidden.text == "BAD_NAME: web:back", "{hidden:?}");
    Ok(())
}

fn ensure_restarts_keep_all(restart: Restart) -> Result<()> {
    let restarts = times(RESTARTS)?;
    let (daemon, sidecar, _) = front()?;
    let mut dice = Dice::new(seed(21)?);
    let mut model = Model::new();
    for number in 0..restarts {
        let case = || format!("{restart:?} {number}");
        let last = restart
            .make_under_changes(&daemon, &sidecar, &mut model, &mut dice)
            .with_context(case)?;
        let view = View::of(&sidecar.socket_client()).with_context(case)?;
        model
            .apply_those_seen(&last.open, &view)
            .and_then(|()| model.ensure_shown_by(&view))
            .and_then(|()| ensure_daemon_matches(&model, &daemon.client(), &last.open))
            .with_context(|| format!("{last:?}"))
            .with_context(case)?;
    }
    Ok(())
}

#[test]
fn restarts_by_call_keep_all() -> Result<()> {
    ensure_restarts_keep_all(Restart::Call)
}

#[test]
fn restarts_by_hangup_keep_all() -> Result<()> {
    ensure_restarts_keep_all(Restart::Hangup)
}

#[test]
fn starts_after_a_kill_keep_all() -> Result<()> {
    ensure_restarts_keep_all(Restart::Kill)
}

#[test]
fn the_proxy_may_be_down_while_the_daemon_restarts() -> Result<()> {
    let (daemon, sidecar, client) = front()?;
    change_all(&client)?;
    for (number, restart) in Restart::ALL.into_iter().enumerate() {
        if number == 1 {
            sidecar.kill()?;
        } else {
            sidecar.stop()?;
        }
        restart.make(&daemon, &daemon.client())?;
        // The daemon starts them by itself.
        daemon.wait_for_state("own:first", "RUNNING")?;
        let count = rows(&daemon.client())?.len();
        ensure!(count == 10 + 4, "{count} processes after {restart:?}");
        sidecar.start_again()?;
        ensure_all(&client).with_context(|| format!("{restart:?}"))?;
    }
    Ok(())
}

#[test]
fn a_removed_process_that_the_file_starts_is_stopped_again_while_nobody_calls() -> Result<()> {
    let (daemon, _sidecar, client) = front()?;
    client.call("supervisor.stopProcess", ("web:back",))?;
    client.call("twiddler.removeProcessFromGroup", ("web", "back"))?;
    for restart in Restart::ALL {
        restart.make(&daemon, &daemon.client())?;
        daemon.wait_for_state("web:back", "STOPPED")?;
        daemon.wait_for_state("web:front", "RUNNING")?;
    }
    let shown: Vec<String> = rows(&client)?.iter().map(Row::namespec).collect();
    ensure!(!shown.contains(&"web:back".to_owned()), "{shown:?}");
    Ok(())
}

#[test]
fn a_removed_process_stays_invisible_while_it_takes_long_to_stop_again() -> Result<()> {
    // `sleep` ignores this signal, so the daemon waits before it kills the process.
    let daemon = Daemon::start(
        "[program:stubborn]\ncommand=/bin/sleep 600\nstartsecs=0\nstopsignal=CHLD\nstopwaitsecs=2\n",
    )?;
    let sidecar = Sidecar::start_with(&daemon, &["--persist"])?;
    let client = sidecar.socket_client();
    client.call("supervisor.stopProcess", ("stubborn",))?;
    client.call("twiddler.removeProcessFromGroup", ("stubborn", "stubborn"))?;
    Restart::Kill.make(&daemon, &daemon.client())?;
    let shown = rows(&client)?;
    let there = rows(&daemon.client())?;
    ensure!(
        there.iter().all(|row| row.state == "STOPPING"),
        "{there:#?}"
    );
    ensure!(shown.is_empty(), "{shown:#?}");
    daemon.wait_for_state("stubborn", "STOPPED")?;
    let shown = rows(&client)?;
    ensure!(shown.is_empty(), "{shown:#?}");
    Ok(())
}

#[test]
fn additions_are_written_at_the_end_of_the_persist_file() -> Result<()> {
    let (daemon, _sidecar, client) = front()?;
    let add = |name: &str| client.call("twiddler.addProgramToGroup", ("web", name, sleeper()));
    let inode = || Ok::<_, anyhow::Error>(fs::metadata(persist_path(&daemon))?.ino());
    add("first")?;
    let file = inode()?;
    // More than a page of text.
    for number in 0..30 {
        let before = persist_file(&daemon)?;
        add(&format!("p{number}"))?;
        ensure!(inode()? == file, "p{number}: the file was replaced");
        ensure!(persist_file(&daemon)?.starts_with(&before), "p{number}");
    }
    client.call("supervisor.stopProcess", ("web:p3",))?;
    client.call("twiddler.removeProcessFromGroup", ("web", "p3"))?;
    ensure!(!persist_file(&daemon)?.contains("web:p3\n"));
    let file = inode()?;
    add("p3")?;
    ensure!(inode()? == file, "the file was replaced after a removal");
    // Edits of the file are lost, and nothing else.
    fs::write(persist_path(&daemon), "; nothing\n")?;
    add("last")?;
    daemon.kill_and_start_again()?;
    eventually(LIMIT, || {
        let rows = rows(&client)?;
        let running = rows.iter().filter(|row| row.state == "RUNNING");
        let added =
            running.filter(|row| row.group == "web" && row.name != "front" && row.name != "back");
        ensure!(added.count() == 32, "{rows:#?}");
        Ok(())
    })
}

/// The points that an addition passes from the preparation of the persist file on, if the file grows.
const GROWTH: [&str; 8] = [
    "kept without",
    "prepared",
    "answered",
    "taken away",
    "done",
    "padded",
    "appended",
    "kept",
];

/// Adds processes to a running group until the proxy stops at `point`. Returns the namespecs of all of them:
/// the last one has no answer. The persist file grows by each but the first.
fn add_until_stopped(daemon: &Daemon, sidecar: &Sidecar, point: &str) -> Result<Vec<String>> {
    let client = sidecar.socket_client();
    client.call("twiddler.addProgramToGroup", ("web", "p0", sleeper()))?;
    let file = fs::metadata(persist_path(daemon))?.ino();
    daemon.write("stop-at", point)?;
    let mut names = vec!["web:p0".to_owned()];
    // A page is full after some of them.
    for number in 1..40 {
        let name = format!("p{number}");
        let params = [value("web"), value(&*name), sleeper()];
        let call = write::call("twiddler.addProgramToGroup", &params);
        names.push(format!("web:{name}"));
        let mut connection = client.connect()?;
        connection.send(&client.request_bytes("POST", "/RPC2", &[], Some(&call)))?;
        let has_stopped = eventually(LIMIT, || {
            stopped_or_answered(sidecar.pid(), &mut connection)?.context("no answer")
        })?;
        ensure!(
            fs::metadata(persist_path(daemon))?.ino() == file,
            "{name}: written anew"
        );
        if has_stopped {
            return Ok(names);
        }
    }
    anyhow::bail!("it did not stop")
}

/// The running processes among the added ones. The daemon itself has them in groups like `web~000001`.
fn running(client: &Client) -> Result<Vec<String>> {
    let mut rows = rows(client)?;
    rows.retain(|row| {
        row.state == "RUNNING" && row.name.starts_with('p') && row.group.starts_with("web")
    });
    Ok(rows.iter().map(Row::namespec).collect())
}

/// Waits until the processes run that were added before the last one, and maybe that one. The daemon starts
/// the same again.
fn ensure_answered(daemon: &Daemon, client: &Client, names: &[String]) -> Result<()> {
    let (last, answered) = names.split_last().context("no names")?;
    // Recovery decides first whether the last one was added. Until then, it may be shown although it is not in
    // the persist file.
    eventually(LIMIT, || {
        client.call("twiddler.getGroupNames", ())?;
        Ok(())
    })?;
    let seen = eventually(LIMIT, || {
        let seen = running(client)?;
        ensure!(answered.iter().all(|name| seen.contains(name)), "{seen:?}");
        ensure!(
            seen.len() - answered.len() == usize::from(seen.contains(last)),
            "{seen:?}"
        );
        Ok(seen)
    })?;
    daemon.kill_and_start_again()?;
    eventually(LIMIT, || {
        let again = running(&daemon.client())?;
        ensure!(again.len() == seen.len(), "{again:?} was {seen:?}");
        let again = running(client)?;
        ensure!(again == seen, "{again:?} was {seen:?}");
        Ok(())
    })
}

#[test]
fn a_crash_at_any_point_of_an_appended_addition_loses_nothing() -> Result<()> {
    for point in GROWTH {
        for (kills_proxy, kills_daemon) in [(true, false), (false, true), (true, true)] {
            let case = || format!("{point}, proxy {kills_proxy}, daemon {kills_daemon}");
            let daemon = Daemon::start(USER)?;
            let sidecar = stopping_sidecar(&daemon, &["--persist"], &[])?;
            let names = add_until_stopped(&daemon, &sidecar, point).with_context(case)?;
            if kills_proxy {
                sidecar.kill()?;
            }
            if kills_daemon {
                daemon.kill_and_start_again()?;
            }
            if kills_proxy {
                sidecar.start_again()?;
            } else {
                sidecar.signal("CONT")?;
            }
            ensure_answered(&daemon, &sidecar.socket_client(), &names).with_context(case)?;
        }
    }
    Ok(())
}

#[test]
fn a_disk_that_is_full_while_the_persist_file_grows_leaves_it_whole() -> Result<()> {
    let daemon = Daemon::start(USER)?;
    let sidecar = stopping_sidecar(&daemon, &["--persist"], &launcher()?)?;
    let names = add_until_stopped(&daemon, &sidecar, "padded")?;
    // The line breaks before the text are there, and half of the text has room.
    let size = fs::metadata(persist_path(&daemon))?.len();
    limit_files(&sidecar, Some(size + 20))?;
    sidecar.signal("CONT")?;
    let client = sidecar.socket_client();
    eventually(LIMIT, || {
        ensure!(running(&client)?.len() == names.len());
        Ok(())
    })?;
    let text = eventually(LIMIT, || {
        let text = persist_file(&daemon)?;
        ensure!(!text.ends_with("\n\n"), "it has not been cut yet");
        Ok(text)
    })?;
    let last = names.last().context("no names")?;
    ensure!(
        !text.contains(last.as_str()) && text.ends_with('\n'),
        "{text}"
    );
    limit_files(&sidecar, None)?;
    client.call("twiddler.addProgramToGroup", ("web", "p99", sleeper()))?;
    for name in names.iter().map(String::as_str).chain(["web:p99"]) {
        let line = format!("; {name}\n");
        ensure!(persist_file(&daemon)?.matches(&line).count() == 1, "{name}");
    }
    Ok(())
}

#[test]
fn an_addition_that_the_persist_file_has_no_room_for_is_refused() -> Result<()> {
    let daemon = Daemon::start(USER)?;
    let sidecar = stopping_sidecar(&daemon, &["--persist"], &launcher()?)?;
    let client = sidecar.socket_client();
    let add = |name: &str| client.call("twiddler.addProgramToGroup", ("web", name, sleeper()));
    add("p0")?;
    daemon.write("stop-at", "read")?;
    let params = [value("web"), value("p1"), sleeper()];
    let call = write::call("twiddler.addProgramToGroup", &params);
    let mut connection = client.connect()?;
    connection.send(&client.request_bytes("POST", "/RPC2", &[], Some(&call)))?;
    wait_until_stopped(sidecar.pid())?;
    let size = fs::metadata(persist_path(&daemon))?.len();
    limit_files(&sidecar, Some(size + 20))?;
    sidecar.signal("CONT")?;
    let reply = connection.read_reply()?.text();
    ensure!(reply.contains("faultString"), "{reply}");
    limit_files(&sidecar, None)?;
    ensure!(running(&client)? == ["web:p0"], "{:?}", rows(&client)?);
    add("p1")?;
    ensure!(persist_file(&daemon)?.contains("; web:p1\n"));
    Ok(())
}

#[test]
fn additions_are_in_one_file_that_a_person_can_read() -> Result<()> {
    let (daemon, sidecar, client) = front()?;
    change_all(&client)?;
    crate::common::include::ensure_include_holds(&daemon, &[PERSIST_FILE])?;
    let persist_file = persist_file(&daemon)?;
    ensure!(
        persist_file.starts_with("; Groups and programs that were added"),
        "{persist_file}"
    );
    for line in [
        "[group:own]",
        "[group:nothing]",
        "; web:joined",
        "; own:more_2",
        "priority=5",
    ] {
        ensure!(
            persist_file.lines().any(|there| there == line),
            "no {line} in\n{persist_file}"
        );
    }
    ensure!(
        persist_file.matches("command=/bin/sleep 600").count() == 8,
        "{persist_file}"
    );
    let mode = fs::metadata(persist_path(&daemon))?.permissions().mode();
    ensure!(mode & 0o007 == 0, "all accounts may read it: {mode:o}");
    // The next proxy does not change the file.
    sidecar.stop()?;
    sidecar.start_again()?;
    ensure_all(&sidecar.socket_client())?;
    ensure!(self::persist_file(&daemon)? == persist_file);
    Ok(())
}

#[test]
fn an_update_on_the_daemon_changes_no_addition() -> Result<()> {
    let (daemon, _sidecar, client) = front()?;
    change_all(&client)?;
    for restarted in [false, true] {
        if restarted {
            daemon.restart_rpc()?;
            ensure_all(&client)?;
        }
        let before = rows(&client)?;
        daemon.write(
            "conf.d/new.conf",
            "[program:new]\ncommand = /bin/cat\nstartsecs = 0\n",
        )?;
        let output = stdout_text(&daemon.supervisorctl(&["update"])?);
        ensure!(output.contains("new: added process group"), "{output}");
        for name in ["own", "nothing", "web", "dynamic_procs"] {
            let is_affected = output.lines().any(|line| line.starts_with(name));
            ensure!(!is_affected, "after a restart: {restarted}: {output}");
        }
        fs::remove_file(daemon.dir().join("conf.d/new.conf"))?;
        daemon.supervisorctl(&["update"])?;
        ensure!(
            rows(&client)? == before,
            "{:#?} was\n{before:#?}",
            rows(&client)?
        );
        ensure_all(&client)?;
    }
    Ok(())
}

#[test]
fn removed_programs_do_not_come_back() -> Result<()> {
    let (daemon, sidecar, client) = front()?;
    change_all(&client)?;
    client.call("supervisor.stopAllProcesses", ())?;
    for (group, process) in [
        ("own", "first"),
        ("own", "more_1"),
        ("web", "joined"),
        ("dynamic_procs", "ls_0"),
        ("dynamic_procs", "ls_1"),
        ("dynamic_procs", "ls_2"),
    ] {
        client.call("twiddler.removeProcessFromGroup", (group, process))?;
    }
    client.call("twiddler.removeGroup", ("nothing",))?;
    let expected = [
        "own:more_0",
        "own:more_2",
        "pool:p0",
        "pool:p1",
        "pool:p2",
        "pool:p3",
        "web:front",
    ];
    let ensure_gone = |client: &Client| {
        let shown: Vec<String> = rows(client)?.iter().map(Row::namespec).collect();
        ensure!(shown == expected, "{shown:?}");
        let groups = client.call("twiddler.getGroupNames", ())?;
        ensure!(
            texts(&groups)? == ["dynamic_procs", "own", "pool", "web"],
            "{groups:?}"
        );
        Ok(())
    };
    ensure_gone(&client)?;
    for restart in Restart::ALL {
        restart.make(&daemon, &client)?;
        ensure_gone(&client).with_context(|| format!("{restart:?}"))?;
        sidecar.kill()?;
        restart.make(&daemon, &daemon.client())?;
        sidecar.start_again()?;
        ensure_gone(&client).with_context(|| format!("{restart:?} without the proxy"))?;
    }
    Ok(())
}

#[test]
fn a_refused_program_is_never_written() -> Result<()> {
    let (daemon, sidecar, client) = front()?;
    change_all(&client)?;
    let before = persist_file(&daemon)?;
    let refused = options(&[("command", "/bin/cat"), ("user", "nobody-of-this-name")]);
    for group in ["own", "web", "nothing", "dynamic_procs"] {
        let fault = client.expect_fault(
            "twiddler.addProgramToGroup",
            (group, "bad", refused.clone()),
        )?;
        ensure!(fault.code == 2, "{fault:?}");
        ensure!(persist_file(&daemon)? == before);
    }
    // Nor beside programs that the daemon accepts.
    let calls = [
        (
            "twiddler.addProgramToGroup",
            params!["nothing", "good", sleeper()],
        ),
        ("twiddler.addProgramToGroup", params!["own", "bad", refused]),
    ];
    let results = client.multicall(&calls)?;
    ensure!(
        fault_in(&results[0]).is_none() && fault_in(&results[1]).is_some(),
        "{results:?}"
    );
    let after = persist_file(&daemon)?;
    ensure!(
        after.contains("nothing") && !after.contains("nobody-of-this-name"),
        "{after}"
    );
    sidecar.kill()?;
    daemon.kill_and_start_again()?;
    daemon.wait_for_state("nothing:good", "RUNNING")
}

#[test]
fn the_option_may_be_switched_off_and_on_between_starts() -> Result<()> {
    let daemon = Daemon::start(USER)?;
    let fresh = Model::new();
    let with = |arguments: &[&str]| Sidecar::start_with(&daemon, arguments);
    // On: earlier additions are in the file from now on.
    let off = with(&[])?;
    change_all(&off.client())?;
    ensure!(!persist_path(&daemon).exists());
    off.stop()?;
    let on = with(&["--persist"])?;
    ensure_all(&on.client())?;
    on.stop()?;
    daemon.kill_and_start_again()?;
    let on = with(&["--persist"])?;
    ensure_all(&on.client())?;
    on.stop()?;
    // Off, although the daemon has read the file in between: the additions end with the epoch.
    daemon.restart_by_signal()?;
    let off = with(&[])?;
    ensure_all(&off.client()).context("switched off")?;
    ensure!(!persist_path(&daemon).exists());
    off.kill()?;
    off.start_again()?;
    ensure_all(&off.client()).context("and started again")?;
    daemon.restart_by_signal()?;
    let view = View::of(&off.client())?;
    fresh.ensure_shown_by(&view)
}

#[test]
fn the_persist_file_is_put_aside_without_the_option_and_used_again_if_nothing_changed() -> Result<()>
{
    let daemon = Daemon::start(USER)?;
    let with = |arguments: &[&str]| Sidecar::start_with(&daemon, arguments);
    let aside = daemon.include_dir().join(".twiddler-persist.old");
    let on = with(&["--persist"])?;
    change_all(&on.client())?;
    on.stop()?;
    let persist_file = fs::read(persist_path(&daemon))?;
    // This works while the daemon is away too.
    daemon.kill()?;
    let off = with(&[])?;
    ensure!(!persist_path(&daemon).exists());
    ensure!(fs::read(&aside)? == persist_file, "it was changed");
    let log = off.wait_for_stderr("persist is off")?;
    let line = log
        .lines()
        .find(|line| line.contains("persist is off"))
        .unwrap_or_default();
    let is_complete = line.contains(" WARN ") && line.contains(&*aside.to_string_lossy());
    ensure!(is_complete && line.contains("programs="), "{line}");
    off.stop()?;
    // No client got a reply without these programs: they come back, for the daemon that starts now.
    let on = with(&["--persist"])?;
    ensure!(!aside.exists(), "it is still aside");
    ensure!(
        fs::read(persist_path(&daemon))? == persist_file,
        "it was changed"
    );
    daemon.start_again()?;
    ensure_all(&on.client())?;
    on.stop()?;
    // Now clients get replies without them, so they stay away. This proxy has another address.
    let persist_file = fs::read(persist_path(&daemon))?;
    let off = with(&[])?;
    ensure_all(&off.client())?;
    daemon.kill_and_start_again()?;
    Model::new().ensure_shown_by(&View::of(&off.client())?)?;
    off.stop()?;
    let on = with(&["--persist"])?;
    Model::new().ensure_shown_by(&View::of(&on.client())?)?;
    ensure!(fs::read(&aside)? == persist_file, "it was deleted");
    on.wait_for_stderr("something has changed since")?;
    Ok(())
}

#[test]
fn a_new_address_of_the_proxy_is_written_and_restarts_no_process() -> Result<()> {
    let daemon = Daemon::start(USER)?;
    let options = SidecarOptions {
        arguments: &["--persist", "--listen", "127.0.0.1:0"],
        own_listeners: Some(1),
        ..SidecarOptions::default()
    };
    let sidecar = Sidecar::start_options(&daemon, options)?;
    let address = || format!("serverurl=http://{}\n", sidecar.tcp_addr());
    let add = |name: &str| {
        let params = ("web", name, several());
        sidecar.client().call("twiddler.addProgramToGroup", params)
    };
    let shows_none = || -> Result<()> {
        let configs = sidecar.client().call("supervisor.getAllConfigInfo", ())?;
        let urls = column(&configs, "serverurl")?;
        ensure!(urls.iter().all(|url| *url == "none"), "{urls:?}");
        Ok(())
    };
    add("one")?;
    let first = address();
    ensure!(persist_file(&daemon)?.matches(&first).count() == 3);
    daemon.restart_by_signal()?;
    shows_none()?;
    let pids = |names: &[String]| -> Result<Vec<i64>> {
        let pid = |name: &String| {
            let info = sidecar
                .client()
                .call("supervisor.getProcessInfo", (name,))?;
            number(member(&info, "pid")?)
        };
        names.iter().map(pid).collect()
    };
    let names: Vec<String> = (0..3).map(|number| format!("web:one_{number}")).collect();
    let before = eventually(LIMIT, || {
        let pids = pids(&names)?;
        ensure!(pids.iter().all(|pid| *pid > 0), "{pids:?}");
        Ok(pids)
    })?;
    sidecar.stop()?;
    sidecar.start_again()?;
    ensure!(address() != first, "the same port");
    add("two")?;
    let text = persist_file(&daemon)?;
    ensure!(
        text.matches(&address()).count() == 6 && !text.contains(&first),
        "{text}"
    );
    shows_none()?;
    let after = pids(&names)?;
    ensure!(after == before, "{before:?} became {after:?}");
    Ok(())
}

#[test]
fn a_lost_journal_loses_no_persisted_program() -> Result<()> {
    let (daemon, sidecar, client) = front()?;
    change_all(&client)?;
    let pids = |client: &Client| -> Result<Vec<i64>> {
        Ok(rows(client)?.iter().map(|row| row.pid).collect())
    };
    let before = pids(&client)?;
    sidecar.kill()?;
    fs::remove_file(daemon.include_dir().join(".twiddler-journal"))?;
    sidecar.start_again()?;
    // Only the journal has the removal of a user's process.
    let shown: Vec<String> = rows(&client)?.iter().map(Row::namespec).collect();
    ensure!(shown.contains(&"web:back".to_owned()), "{shown:?}");
    client.call("twiddler.removeProcessFromGroup", ("web", "back"))?;
    ensure_all(&client)?;
    ensure!(pids(&client)? == before, "a process was restarted");
    sidecar.stop()?;
    daemon.kill_and_start_again()?;
    sidecar.start_again()?;
    ensure_all(&client)
}

/// One call of the twiddler namespace.
#[derive(Clone, Copy, Debug)]
enum Step {
    Group(&'static str, i32),
    Add(&'static str, &'static str, &'static str),
    Several(&'static str, &'static str),
    Remove(&'static str, &'static str),
    RemoveGroup(&'static str),
}

impl Step {
    fn make(self, client: &Client) -> Result<()> {
        let add = |group, name, options| {
            client.call("twiddler.addProgramToGroup", (group, name, options))
        };
        let result = match self {
            Step::Group(name, priority) => client.call("twiddler.addGroup", (name, priority)),
            Step::Add(group, name, command) => add(group, name, options(&[("command", command)])),
            Step::Several(group, name) => add(group, name, several()),
            Step::Remove(group, process) => {
                client.call("supervisor.stopProcess", (format!("{group}:{process}"),))?;
                client.call("twiddler.removeProcessFromGroup", (group, process))
            }
            Step::RemoveGroup(name) => {
                client.call("supervisor.stopProcessGroup", (name,))?;
                client.call("twiddler.removeGroup", (name,))
            }
        };
        result.map(drop).with_context(|| format!("{self:?}"))
    }
}

const SLEEP: &str = "/bin/sleep 600";

/// The state in the file that the daemon reads.
const BEFORE: [Step; 15] = [
    Step::Group("other", 1),
    Step::Add("other", "other", SLEEP),
    Step::Add("web", "goes", SLEEP),
    Step::Group("removed", 5),
    Step::Add("removed", "one", SLEEP),
    Step::Add("removed", "two", SLEEP),
    Step::Group("empty", 5),
    Step::Group("fewer", 5),
    Step::Several("fewer", "many"),
    Step::Group("emptied", 5),
    Step::Add("emptied", "one", SLEEP),
    Step::Group("filled", 5),
    Step::Group("another", 5),
    Step::Add("another", "one", SLEEP),
    Step::Group("priority", 5),
];

/// Changes after that: removed, new and different members, groups, programs and priorities.
const LATE: [Step; 13] = [
    Step::Remove("web", "goes"),
    Step::RemoveGroup("removed"),
    Step::RemoveGroup("empty"),
    Step::Remove("fewer", "many_1"),
    Step::Remove("emptied", "one"),
    Step::Add("filled", "one", SLEEP),
    Step::Remove("another", "one"),
    Step::Add("another", "one", "/bin/sleep 700"),
    Step::RemoveGroup("priority"),
    Step::Group("priority", 7),
    Step::Add("priority", "one", SLEEP),
    Step::Add("web", "joins", SLEEP),
    Step::Several("pool", "join"),
];

/// What clients see, and the processes in the daemon, except removed ones that have stopped.
#[derive(Debug, PartialEq)]
struct Seen {
    groups: Vec<String>,
    shown: Vec<String>,
    configs: BTreeMap<String, (i64, String)>,
    there: Vec<String>,
}

fn seen(daemon: &Daemon, client: &Client) -> Result<Seen> {
    let names = |rows: Vec<Row>| rows.iter().map(Row::namespec).collect::<Vec<_>>();
    let shown = names(rows(client)?);
    let mut configs = BTreeMap::new();
    for config in items(&client.call("supervisor.getAllConfigInfo", ())?)? {
        let word = |name| Ok::<_, anyhow::Error>(text(member(config, name)?)?.to_owned());
        let priority = number(member(config, "group_prio")?)?;
        let name = format!("{}:{}", word("group")?, word("name")?);
        configs.insert(name, (priority, word("command")?));
    }
    let groups = client.call("twiddler.getGroupNames", ())?;
    let mut there = rows(&daemon.client())?;
    // On a busy machine, a process may still be starting.
    let runs = |row: &Row| ["STARTING", "RUNNING"].contains(&row.state.as_str());
    there.retain(|row| runs(row) || !row.group.contains('~'));
    Ok(Seen {
        groups: texts(&groups)?.into_iter().map(str::to_owned).collect(),
        shown,
        configs,
        there: names(there),
    })
}

/// Restarts the daemon with an older persist file, while the proxy runs or before it starts. All answered
/// changes must be there afterwards.
fn an_older_file_is_corrected(proxy_is_up: bool) -> Result<()> {
    let (daemon, sidecar, client) = front()?;
    BEFORE.iter().try_for_each(|step| step.make(&client))?;
    let before = fs::read(persist_path(&daemon))?;
    LATE.iter().try_for_each(|step| step.make(&client))?;
    let (expected, after) = (seen(&daemon, &client)?, persist_file(&daemon)?);
    if !proxy_is_up {
        sidecar.kill()?;
    }
    daemon.kill()?;
    fs::write(persist_path(&daemon), before)?;
    daemon.start_again()?;
    if !proxy_is_up {
        sidecar.start_again()?;
    }
    for step in ["corrected", "read again"] {
        let now = seen(&daemon, &client)?;
        ensure!(now == expected, "{step}: {now:#?} was\n{expected:#?}");
        let now = persist_file(&daemon)?;
        ensure!(groups(&now) == groups(&after), "{step}: {now}");
        daemon.wait_for_state("other:other", "RUNNING")?;
        daemon.kill_and_start_again()?;
    }
    Ok(())
}

#[test]
fn a_daemon_that_read_an_older_file_gets_all_answered_changes() -> Result<()> {
    an_older_file_is_corrected(true)
}

#[test]
fn a_daemon_that_read_an_older_file_gets_all_answered_changes_when_the_proxy_starts() -> Result<()>
{
    an_older_file_is_corrected(false)
}

/// Restarts the daemon with an older persist file while the proxy is down. Calls `action` before the proxy
/// starts again.
fn start_both_with(
    daemon: &Daemon,
    sidecar: &Sidecar,
    persist_file: &[u8],
    action: impl FnOnce() -> Result<()>,
) -> Result<()> {
    sidecar.kill()?;
    daemon.kill()?;
    fs::write(persist_path(daemon), persist_file)?;
    daemon.start_again()?;
    action()?;
    sidecar.start_again()
}

#[test]
fn a_failed_correction_is_made_before_the_next_change() -> Result<()> {
    let (daemon, sidecar, client) = front()?;
    client.call("twiddler.addGroup", ("own", 5))?;
    let before = fs::read(persist_path(&daemon))?;
    client.call("twiddler.addProgramToGroup", ("own", "first", sleeper()))?;
    client.call("twiddler.addProgramToGroup", ("web", "joined", sleeper()))?;
    start_both_with(&daemon, &sidecar, &before, || {
        daemon.write("conf.d/broken.conf", "[program:broken]\n")
    })?;
    client.call("supervisor.getProcessInfo", ("web:front",))?;
    let fault = client.expect_fault("twiddler.addGroup", ("more", 1))?;
    ensure!(
        fault.code == 92 && fault.text.contains("broken"),
        "{fault:?}"
    );
    fs::remove_file(daemon.dir().join("conf.d/broken.conf"))?;
    client.call("twiddler.addGroup", ("more", 1))?;
    for name in ["own:first", "web:joined"] {
        let info = client.call("supervisor.getProcessInfo", (name,))?;
        ensure!(text(member(&info, "statename")?)? == "RUNNING", "{info:?}");
    }
    Ok(())
}

#[test]
fn a_program_that_the_daemon_does_not_accept_any_more_is_removed_and_the_others_start() -> Result<()>
{
    let (daemon, sidecar, client) = front()?;
    let logs = daemon.dir().join("logs");
    fs::create_dir(&logs)?;
    let log = logs.join("out").to_string_lossy().into_owned();
    let logging = options(&[("command", SLEEP), ("stdout_logfile", &log)]);
    client.call("twiddler.addGroup", ("own", 5))?;
    let before = fs::read(persist_path(&daemon))?;
    client.call(
        "twiddler.addProgramToGroup",
        ("own", "logs", logging.clone()),
    )?;
    client.call("twiddler.addProgramToGroup", ("web", "logs", logging))?;
    client.call("twiddler.addProgramToGroup", ("web", "joined", sleeper()))?;
    start_both_with(&daemon, &sidecar, &before, || {
        Ok(fs::remove_dir_all(&logs)?)
    })?;
    for restarted in [false, true] {
        let mut shown: Vec<String> = rows(&client)?.iter().map(Row::namespec).collect();
        shown.retain(|name| !name.starts_with("pool"));
        let case = format!("after another restart: {restarted}: {shown:?}");
        ensure!(shown == ["web:back", "web:front", "web:joined"], "{case}");
        daemon.kill_and_start_again()?;
    }
    sidecar.wait_for_stderr("cannot be added again, and is forgotten")?;
    Ok(())
}

/// The files of version 0.1.0, which used a real group for each process, after [`change_all`] without
/// `own:more_1`.
const JOURNAL_0_1_0: &str = include_str!("fixtures/0.1.0/journal");
const PERSIST_FILE_0_1_0: &str = include_str!("fixtures/0.1.0/persist.conf");

#[test]
fn a_persist_file_of_version_0_1_0_is_used() -> Result<()> {
    let start_daemon = |more: &[(&str, &str)]| -> Result<Daemon> {
        let file = format!("conf.d/{PERSIST_FILE}");
        let files = [&[(file.as_str(), PERSIST_FILE_0_1_0)], more].concat();
        Daemon::start_with(crate::common::DaemonOptions {
            body: USER,
            files: &files,
            ..crate::common::DaemonOptions::default()
        })
    };
    let expected = [
        "dynamic_procs:ls_0",
        "dynamic_procs:ls_1",
        "dynamic_procs:ls_2",
        "own:first",
        "own:more_0",
        "own:more_2",
        "web:front",
        "web:joined",
    ];
    let ensure_all = |client: &Client, expected: &[&str]| {
        let mut shown = rows(client)?;
        shown.retain(|row| row.group != "pool");
        let names: Vec<String> = shown.iter().map(Row::namespec).collect();
        ensure!(names == expected, "{names:?}");
        Ok(())
    };
    let marker = "[group:twiddler~59f5-18ebb38fa07c5e87]\nprograms=\n";
    let journal = ("conf.d/.twiddler-journal", JOURNAL_0_1_0);
    let without_back: Vec<&str> = expected.to_vec();
    let mut with_back = expected.to_vec();
    with_back.insert(6, "web:back");
    // In a new epoch, in the same one, and with a lost journal.
    let lives = [
        (vec![journal], &without_back),
        (vec![journal, ("conf.d/marker.conf", marker)], &with_back),
        (vec![], &with_back),
    ];
    for (files, expected) in lives {
        let daemon = start_daemon(&files)?;
        let sidecar = Sidecar::start_with(&daemon, &["--persist"])?;
        let client = sidecar.socket_client();
        ensure_all(&client, expected)?;
        let reread = stdout_text(&daemon.supervisorctl(&["reread"])?);
        ensure!(
            !reread.contains("changed"),
            "the daemon has other ones: {reread}"
        );
        // Remove one of three processes, and add a program.
        client.call("supervisor.stopProcess", ("dynamic_procs:ls_1",))?;
        client.call("twiddler.removeProcessFromGroup", ("dynamic_procs", "ls_1"))?;
        client.call("twiddler.addProgramToGroup", ("web", "new", several()))?;
        let mut expected = expected.clone();
        expected.remove(1);
        expected.extend(["web:new_0", "web:new_1", "web:new_2"]);
        ensure_all(&client, &expected)?;
        daemon.kill_and_start_again()?;
        ensure_all(&client, &expected).context("in the next epoch")?;
    }
    Ok(())
}

#[test]
fn the_changes_of_one_multicall_are_written_once() -> Result<()> {
    let (daemon, _sidecar, client) = front()?;
    change_all(&client)?;
    let before = neighbours(&daemon.client())?;
    // The persist file is written once for each intent in the journal.
    let intents = || -> Result<usize> {
        let journal = fs::read_to_string(daemon.include_dir().join(".twiddler-journal"))?;
        Ok(journal
            .lines()
            .filter(|line| line.starts_with("{\"Begin\""))
            .count())
    };
    let intents_before = intents()?;
    let calls: Vec<(&str, Vec<Value>)> = (0..20)
        .map(|number| {
            let name = format!("many{number}");
            (
                "twiddler.addProgramToGroup",
                params!["web", name, sleeper()],
            )
        })
        .collect();
    let results = client.multicall(&calls)?;
    ensure!(
        results.iter().all(|result| fault_in(result).is_none()),
        "{results:?}"
    );
    ensure!(
        intents()? == intents_before + 1,
        "{}",
        intents()? - intents_before
    );
    ensure!(persist_file(&daemon)?.contains("; web:many19"));
    ensure!(neighbours(&daemon.client())? == before);
    Ok(())
}
