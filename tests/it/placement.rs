//! Placed processes, which have another name in the daemon so that others of their group need not restart,
//! and hidden processes, which are configured and were removed. Clients see placed processes as ordinary
//! members, and do not see hidden ones.

mod children;
mod group_calls;
mod untouched;

use std::fs;

use crate::common::dice::{seed, times};
use crate::common::include::{ensure_include_holds, ensure_no_leftovers};
use crate::common::pair::{Answer, Pair};
use crate::common::values::column;
use crate::common::{
    Client, Daemon, Dice, LIMIT, Row, Sidecar, ensure_fault, eventually, items, member, number,
    options, rows, text, texts, value,
};
use anyhow::{Context, Result, ensure};
use supervisor_twiddler::xmlrpc::Value;

const USER: &str = "\
[group:web]
programs = a,b
priority = 5

[program:a]
command = /bin/cat
startsecs = 0

[program:b]
command = /bin/cat
autostart = false
startsecs = 0

[program:lone]
command = /bin/cat
startsecs = 0

[fcgi-program:fast]
socket = unix://%(here)s/fast.sock
command = /bin/sleep 600
startsecs = 0

[eventlistener:ears]
events = TICK_3600
command = /bin/sleep 600
startsecs = 0

[group:empty]
programs =
";

const ADD: &str = "twiddler.addProcessToGroup";
const REMOVE: &str = "twiddler.removeProcessFromGroup";

fn front(body: &str) -> Result<(Daemon, Sidecar, Client)> {
    let daemon = Daemon::start(body)?;
    let sidecar = Sidecar::start(&daemon)?;
    let client = sidecar.client().kept_alive();
    Ok((daemon, sidecar, client))
}

fn program(more: &[(&str, &str)]) -> Value {
    let usual = [
        ("command", "/bin/cat"),
        ("autostart", "false"),
        ("startsecs", "0"),
    ];
    let mut given: Vec<(&str, &str)> = usual
        .into_iter()
        .filter(|(name, _)| more.iter().all(|(other, _)| other != name))
        .collect();
    given.extend_from_slice(more);
    options(&given)
}

fn visible_names(client: &Client) -> Result<Vec<String>> {
    Ok(rows(client)?.iter().map(Row::namespec).collect())
}

fn state(client: &Client, namespec: &str) -> Result<String> {
    let info = client.call("supervisor.getProcessInfo", (namespec,))?;
    Ok(text(member(&info, "statename")?)?.to_owned())
}

fn wait_for(client: &Client, namespec: &str, wanted: &str) -> Result<()> {
    eventually(LIMIT, || {
        let state = state(client, namespec)?;
        ensure!(state == wanted, "{namespec} is {state}, not {wanted}");
        Ok(())
    })
}

/// The name in the daemon of a placed process that clients know as `group:process`.
fn real_name(daemon: &Daemon, group: &str, process: &str) -> Result<String> {
    let begins = format!("{group}~");
    let rows = rows(&daemon.client())?;
    let row = rows
        .iter()
        .find(|row| row.group.starts_with(&begins) && row.name == process)
        .with_context(|| format!("{group}:{process} is not placed: {rows:?}"))?;
    Ok(row.namespec())
}

// --- Groups ---

#[test]
fn one_multicall_may_reload_and_list_the_configuration() -> Result<()> {
    let (_daemon, _sidecar, client) = front("[program:web]\ncommand=/bin/cat\n")?;
    client.call("twiddler.addProgramToGroup", ("web", "job", program(&[])))?;
    let calls = [
        ("supervisor.reloadConfig", params![]),
        ("supervisor.getAllConfigInfo", params![]),
    ];
    let results = client.multicall(&calls)?;
    let listed = column(&results[1], "name")?;
    ensure!(listed == ["job", "web"], "{listed:?}");
    // The multicall does not block later changes.
    client.call("twiddler.addProgramToGroup", ("web", "next", program(&[])))?;
    Ok(())
}

#[test]
fn a_refused_program_is_not_in_the_list_of_configurations() -> Result<()> {
    let (daemon, _sidecar, client) =
        front("[group:web]\nprograms=front\n[program:front]\ncommand=/bin/cat\n")?;
    // Only the names are compared: after another reading, automatic log files do not have their names yet.
    let configs = |client: &Client| -> Result<Vec<String>> {
        let configs = client.call("supervisor.getAllConfigInfo", ())?;
        let name = |config| {
            Ok(format!(
                "{}:{}",
                text(member(config, "group")?)?,
                text(member(config, "name")?)?
            ))
        };
        items(&configs)?.iter().map(name).collect()
    };
    let ensure_are = |wanted: &[String]| {
        let names = configs(&client)?;
        ensure!(names == wanted, "{names:#?}");
        Ok(())
    };
    let before = configs(&client)?;
    let add = |name: &str| client.call("twiddler.addProgramToGroup", ("web", name, program(&[])));
    let fault =
        client.expect_fault("twiddler.addProgramToGroup", ("web", "front", program(&[])))?;
    ensure!(fault.code == 10, "{fault:?}");
    ensure_are(&before)?;
    let direct = configs(&daemon.client())?;
    ensure!(direct == before, "{direct:?}");
    // The same with a placed process, and after its removal.
    add("job")?;
    let with_job = configs(&client)?;
    client.expect_fault("twiddler.addProgramToGroup", ("web", "front", program(&[])))?;
    ensure_are(&with_job)?;
    client.call("twiddler.removeProcessFromGroup", ("web", "job"))?;
    ensure_are(&before)?;
    add("job")?;
    ensure_are(&with_job)?;
    // Together with a removal, for which the daemon reads nothing.
    let calls = [
        (
            "twiddler.addProgramToGroup",
            params!["web", "front", program(&[])],
        ),
        ("twiddler.removeProcessFromGroup", params!["web", "job"]),
    ];
    client.multicall(&calls)?;
    ensure_are(&before)?;
    let direct = configs(&daemon.client())?;
    ensure!(direct == before, "{direct:?}");
    Ok(())
}

#[test]
fn a_process_joins_any_group_without_a_restart_of_others() -> Result<()> {
    let (daemon, _sidecar, client) = front(USER)?;
    let users = ["web:a", "lone", "fast", "ears"];
    for name in users {
        daemon.wait_for_state(name, "RUNNING")?;
    }
    client.call("twiddler.addGroup", ("added", 1))?;
    let before = rows(&daemon.client())?;
    let placed = [
        ("web", true),
        ("lone", true),
        ("fast", true),
        ("ears", true),
        ("empty", false),
        ("added", false),
    ];
    for (group, is_placed) in placed {
        let name = format!("{group}:p");
        client.call(ADD, (group, "p", program(&[])))?;
        let direct = rows(&daemon.client())?;
        let own = direct.iter().any(|row| row.namespec() == name);
        ensure!(own != is_placed, "{group}: {direct:?}");
        ensure!(visible_names(&client)?.contains(&name));
        ensure!(state(&client, &name)? == "STOPPED");
        client.call("supervisor.startProcess", (&name,))?;
        let info = client.call("supervisor.getProcessInfo", (&name,))?;
        ensure!(text(member(&info, "group")?)? == group, "{info:?}");
        let environ = format!("/proc/{}/environ", number(member(&info, "pid")?)?);
        let wanted = format!("SUPERVISOR_GROUP_NAME={group}");
        eventually(LIMIT, || {
            let environ = fs::read(&environ)?;
            let mut entries = environ.split(|byte| *byte == 0);
            let is_set = entries.any(|entry| entry == wanted.as_bytes());
            ensure!(is_set, "no {wanted} for {name}");
            Ok(())
        })?;
        // A second one is always placed.
        client.call(ADD, (group, "q", program(&[])))?;
        real_name(&daemon, group, "q")?;
    }
    let now = rows(&daemon.client())?;
    for row in &before {
        ensure!(now.contains(row), "{row:?} is not as it was: {now:?}");
    }
    for (group, _) in placed {
        client.call("supervisor.stopProcess", (format!("{group}:p"),))?;
        for process in ["p", "q"] {
            client.call(REMOVE, (group, process))?;
        }
    }
    ensure!(
        rows(&daemon.client())? == before,
        "{:?}",
        rows(&daemon.client())?
    );
    ensure!(rows(&client)? == before);
    ensure_include_holds(&daemon, &[])
}

#[test]
fn the_daemons_own_names_stay_usable() -> Result<()> {
    let (daemon, _sidecar, client) = front(USER)?;
    client.call(ADD, ("web", "p", program(&[])))?;
    let real = real_name(&daemon, "web", "p")?;
    ensure!(real == "web~000001:p", "{real}");
    client.call("supervisor.startProcess", (&real,))?;
    ensure!(state(&client, "web:p")? == "RUNNING");
    let info = client.call("supervisor.getProcessInfo", (&real,))?;
    ensure!(text(member(&info, "group")?)? == "web~000001", "{info:?}");
    client.call("supervisor.stopProcess", ("web~000001:*",))?;
    ensure!(state(&client, "web:p")? == "STOPPED");
    // For the `twiddler` namespace it is not a group.
    let names = client.call("twiddler.getGroupNames", ())?;
    ensure!(!texts(&names)?.contains(&"web~000001"));
    let unknown = client.expect_fault(ADD, ("web~000001", "x", program(&[])))?;
    ensure_fault(&unknown, 10, "BAD_NAME: group: web~000001")
}

// --- Every method ---

/// A pair with a group that has a running placed process, a stopped placed process, and a hidden process.
fn pair_with_placed_processes() -> Result<Pair> {
    let pair = Pair::start(USER)?;
    pair.both_reach("web:a", "RUNNING")?;
    let loud = "/bin/sh -c 'echo out; echo err >&2; cat'";
    pair.ensure_same(
        "twiddler.addProgramToGroup",
        &params!["web", "p", program(&[("command", loud)])],
    )?;
    pair.ensure_same(
        "twiddler.addProgramToGroup",
        &params!["web", "q", program(&[])],
    )?;
    pair.ensure_same(REMOVE, &params!["web", "b"])?;
    pair.ensure_same("supervisor.startProcess", &params!["web:p"])?;
    for client in [pair.oracle.client(), pair.sidecar.client()] {
        eventually(LIMIT, || {
            let out = client.call("supervisor.readProcessLog", ("web:p", 0, 0))?;
            let err = client.call("supervisor.readProcessStderrLog", ("web:p", 0, 0))?;
            ensure!(
                out == value("out\n") && err == value("err\n"),
                "{out:?} {err:?}"
            );
            Ok(())
        })?;
    }
    Ok(pair)
}

const NAMES: [&str; 11] = [
    "web:p", "web:q", "web:b", "web:a", "web:*", "web:", "web", "p", "web:nope", "nope:p", "lone",
];

#[test]
fn methods_that_take_a_process_answer_as_in_process() -> Result<()> {
    let pair = pair_with_placed_processes()?;
    for method in ["getProcessInfo", "clearProcessLog", "clearProcessLogs"] {
        for name in NAMES {
            pair.ensure_same(&format!("supervisor.{method}"), &params![name])?;
        }
        pair.ensure_same(&format!("supervisor.{method}"), &params![])?;
        pair.ensure_same(&format!("supervisor.{method}"), &params!["web:p", 1, 2])?;
    }
    let pair = pair_with_placed_processes()?;
    let readers = [
        "readProcessLog",
        "readProcessStdoutLog",
        "readProcessStderrLog",
        "tailProcessLog",
        "tailProcessStdoutLog",
        "tailProcessStderrLog",
    ];
    for method in readers {
        let method = format!("supervisor.{method}");
        for name in NAMES {
            for (offset, length) in [(0, 0), (1, 2), (-2, 0), (-1, -1)] {
                pair.ensure_same(&method, &params![name, offset, length])?;
            }
        }
        pair.ensure_same(&method, &params!["web:p"])?;
        pair.ensure_same(&method, &params!["web:p", "0", "3"])?;
    }
    for name in NAMES {
        pair.ensure_same("supervisor.sendProcessStdin", &params![name, "typed\n"])?;
        pair.ensure_same("supervisor.sendProcessStdin", &params![name, 5])?;
    }
    for signal in ["CONT", "18", "NOPE", ""] {
        for name in NAMES {
            pair.ensure_same("supervisor.signalProcess", &params![name, signal])?;
        }
    }
    pair.ensure_same("supervisor.signalProcess", &params!["web:p"])?;
    for name in [
        "web:p", "web:p", "web:q", "web:b", "web:*", "web:*", "web:", "web:nope", "web:a",
    ] {
        pair.ensure_same("supervisor.stopProcess", &params![name])?;
    }
    for name in [
        "web:p", "web:p", "web:b", "web:*", "web:*", "web:", "web:nope", "web:q",
    ] {
        pair.ensure_same("supervisor.startProcess", &params![name])?;
    }
    pair.ensure_same("supervisor.stopProcess", &params!["web:p", true, 1])?;
    pair.ensure_same("supervisor.stopProcess", &params![])?;
    Ok(())
}

#[test]
fn methods_that_take_a_group_or_all_answer_as_in_process() -> Result<()> {
    let pair = pair_with_placed_processes()?;
    for (verb, more) in [
        ("signal", params!["CONT"]),
        ("signal", params!["NOPE"]),
        ("stop", params![]),
        ("stop", params![]),
        ("start", params![]),
        ("start", params![]),
        ("stop", params![true]),
    ] {
        for group in ["web", "lone", "empty", "nope", "web:p", "p", ""] {
            let params = [params![group], more.clone()].concat();
            pair.ensure_same(&format!("supervisor.{verb}ProcessGroup"), &params)?;
        }
        // The event listener's `sleep` ends in the same way as the others.
        pair.ensure_same(&format!("supervisor.{verb}AllProcesses"), &more)?;
    }
    pair.ensure_same("supervisor.startAllProcesses", &params![])?;
    pair.ensure_same("supervisor.clearAllProcessLogs", &params![])?;
    for method in [
        "startProcessGroup",
        "stopProcessGroup",
        "signalProcessGroup",
        "startAllProcesses",
        "signalAllProcesses",
    ] {
        let method = format!("supervisor.{method}");
        pair.ensure_same(&method, &params!["web", true, 1])?;
    }
    pair.ensure_same("supervisor.startProcessGroup", &params![])?;
    pair.ensure_same("supervisor.getAllProcessInfo", &params![])?;
    Ok(())
}

#[test]
fn failed_starts_have_the_same_faults_as_in_process() -> Result<()> {
    let pair = Pair::start(USER)?;
    let bad = [
        ("nofile", "/no/such/file"),
        ("noexec", "/etc/passwd"),
        ("fails", "/bin/false"),
        ("ends", "/bin/true"),
    ];
    for (name, command) in bad {
        let given = program(&[
            ("command", command),
            ("startsecs", "30"),
            ("startretries", "0"),
            ("autorestart", "false"),
        ]);
        pair.ensure_same("twiddler.addProgramToGroup", &params!["web", name, given])?;
    }
    for (name, _) in bad {
        let name = format!("web:{name}");
        let expected = pair.oracle_answer("supervisor.startProcess", &params![&name])?;
        let actual = pair.our_answer("supervisor.startProcess", &params![&name])?;
        ensure!(expected == actual, "{name}: {expected:?} and {actual:?}");
        ensure!(matches!(actual, Answer::Fault(..)), "{actual:?}");
    }
    for call in ["startProcessGroup", "startProcess"] {
        let name = if call == "startProcess" {
            "web:*"
        } else {
            "web"
        };
        for client in [pair.oracle.client(), pair.sidecar.client()] {
            wait_for(&client, "web:fails", "FATAL")?;
            wait_for(&client, "web:ends", "FATAL")?;
        }
        let method = format!("supervisor.{call}");
        let expected = pair.oracle_answer(&method, &params![name])?;
        let actual = pair.our_answer(&method, &params![name])?;
        ensure!(expected == actual, "{call}: {expected:#?} and {actual:#?}");
        pair.ensure_same("supervisor.stopProcess", &params!["web:a"])?;
    }
    Ok(())
}

// --- Removal ---

#[test]
fn clients_do_not_see_a_removed_configured_process() -> Result<()> {
    let (daemon, _sidecar, client) = front(USER)?;
    daemon.wait_for_state("web:a", "RUNNING")?;
    client.call(REMOVE, ("web", "b"))?;
    ensure!(!visible_names(&client)?.contains(&"web:b".to_owned()));
    ensure!(
        visible_names(&daemon.client())?.contains(&"web:b".to_owned()),
        "the daemon lacks the hidden process"
    );
    let again = client.expect_fault(REMOVE, ("web", "b"))?;
    ensure_fault(&again, 10, "BAD_NAME: b")?;
    for method in [
        "startProcess",
        "stopProcess",
        "getProcessInfo",
        "clearProcessLogs",
    ] {
        let fault = client.expect_fault(&format!("supervisor.{method}"), ("web:b",))?;
        ensure_fault(&fault, 10, "BAD_NAME: web:b")?;
    }
    // Calls that start all processes do not start it.
    client.call("supervisor.startProcessGroup", ("web",))?;
    client.call("supervisor.startProcess", ("web:*",))?;
    client.call("supervisor.startAllProcesses", ())?;
    client.multicall(&[
        ("supervisor.startProcess", params!["web:b"]),
        ("supervisor.startAllProcesses", params![]),
    ])?;
    ensure!(daemon.state("web:b")? == "STOPPED");

    // A new process can take its name.
    client.call(ADD, ("web", "b", program(&[("command", "/bin/sleep 600")])))?;
    client.call("supervisor.startProcess", ("web:b",))?;
    ensure!(daemon.state("web:b")? == "STOPPED");
    ensure!(
        visible_names(&client)?
            .iter()
            .filter(|name| *name == "web:b")
            .count()
            == 1
    );
    client.call("supervisor.stopProcessGroup", ("web",))?;
    client.call(REMOVE, ("web", "b"))?;
    ensure!(!visible_names(&client)?.contains(&"web:b".to_owned()));
    Ok(())
}

#[test]
fn a_removed_process_that_is_started_on_the_daemon_is_shown_again() -> Result<()> {
    for look in 0..4 {
        let (daemon, _sidecar, client) = front(USER)?;
        client.call(REMOVE, ("web", "b"))?;
        daemon.call("supervisor.startProcess", ("web:b",))?;
        match look {
            0 => ensure!(visible_names(&client)?.contains(&"web:b".to_owned())),
            1 => ensure!(state(&client, "web:b")? == "RUNNING"),
            2 => {
                let stopped = client.call("supervisor.stopProcessGroup", ("web",))?;
                ensure!(column(&stopped, "name")?.contains(&"b"), "{stopped:?}");
            }
            _ => {
                let taken = client.expect_fault(ADD, ("web", "b", program(&[])))?;
                ensure_fault(&taken, 10, "BAD_NAME: b")?;
            }
        }
        // From then on it is visible, in any state.
        daemon.call("supervisor.startProcess", ("web:b",)).ok();
        client.call("supervisor.stopProcess", ("web:b",))?;
        ensure!(visible_names(&client)?.contains(&"web:b".to_owned()));
        client.call(REMOVE, ("web", "b"))?;
        ensure!(!visible_names(&client)?.contains(&"web:b".to_owned()));
    }
    Ok(())
}

#[test]
fn a_lone_program_can_be_removed_and_its_group_stays() -> Result<()> {
    let (daemon, _sidecar, client) = front(USER)?;
    daemon.wait_for_state("lone", "RUNNING")?;
    client.call("supervisor.stopProcess", ("lone",))?;
    client.call(REMOVE, ("lone", "lone"))?;
    for name in ["lone", "lone:lone"] {
        let fault = client.expect_fault("supervisor.startProcess", (name,))?;
        ensure_fault(&fault, 10, &format!("BAD_NAME: {name}"))?;
    }
    let started = client.call("supervisor.startProcess", ("lone:*",))?;
    ensure!(items(&started)?.is_empty(), "{started:?}");
    let names = client.call("twiddler.getGroupNames", ())?;
    ensure!(texts(&names)?.contains(&"lone"), "{names:?}");
    client.call(ADD, ("lone", "lone", program(&[])))?;
    client.call("supervisor.startProcess", ("lone",))?;
    ensure!(state(&client, "lone")? == "RUNNING");
    ensure!(daemon.state("lone")? == "STOPPED");
    Ok(())
}

/// Replaces a group directly on the daemon by one with a process of the same name, from a file that is then
/// deleted.
fn replace_on_daemon(daemon: &Daemon, group: &str, options: &str) -> Result<()> {
    let file = daemon.include_dir().join("anew.conf");
    fs::write(&file, format!("[program:{group}]\n{options}"))?;
    daemon.call("supervisor.reloadConfig", ())?;
    daemon.call("supervisor.removeProcessGroup", (group,))?;
    daemon.call("supervisor.addProcessGroup", (group,))?;
    Ok(fs::remove_file(&file)?)
}

/// The process stays once the proxy has listed the daemon's processes.
#[test]
fn a_stopped_process_that_was_added_on_the_daemon_to_an_added_group_stays() -> Result<()> {
    let (daemon, sidecar, client) = front(USER)?;
    client.call("twiddler.addGroup", ("own", 999))?;
    client.call(ADD, ("web", "gone", program(&[])))?;
    replace_on_daemon(&daemon, "own", "command = /bin/cat\nautostart = false\n")?;
    let real = real_name(&daemon, "web", "gone")?;
    let (real, _) = real.split_once(':').context("no group")?;
    daemon.call("supervisor.removeProcessGroup", (real,))?;
    // The same query finds a loss, which is logged.
    eventually(LIMIT, || {
        let log = sidecar.stderr_text();
        ensure!(log.contains("1 program (web:gone): gone"), "{log}");
        Ok(())
    })?;
    client.call(ADD, ("own", "p", program(&[])))?;
    let visible = visible_names(&client)?;
    for name in ["own:own", "own:p"] {
        ensure!(
            visible.iter().any(|one| one == name),
            "{name} of {visible:?}"
        );
    }
    Ok(())
}

/// The group's own process keeps running, and a new one is placed.
#[test]
fn an_added_group_that_was_replaced_on_the_daemon_is_not_changed() -> Result<()> {
    let (daemon, _sidecar, client) = front(USER)?;
    client.call("twiddler.addGroup", ("own", 999))?;
    replace_on_daemon(&daemon, "own", "command = /bin/sleep 600\nstartsecs = 0\n")?;
    wait_for(&client, "own:own", "RUNNING")?;
    let pid = |client: &Client| -> Result<i64> {
        let info = client.call("supervisor.getProcessInfo", ("own:own",))?;
        number(member(&info, "pid")?)
    };
    let before = pid(&client)?;
    let add = || client.call(ADD, ("own", "p", program(&[])));
    // The first call can fail, if the proxy notices the replacement only then.
    if add().is_err() {
        add()?;
    }
    ensure!(state(&client, "own:p")? == "STOPPED");
    ensure!(pid(&client)? == before);
    Ok(())
}

/// The daemon's groups that no file defines.
fn unfiled_groups(daemon: &Daemon) -> Result<Vec<String>> {
    let lists = daemon.call("supervisor.reloadConfig", ())?;
    let removed = &items(&items(&lists)?[0])?[2];
    Ok(texts(removed)?.into_iter().map(str::to_owned).collect())
}

#[test]
fn many_additions_and_removals_leave_no_groups_and_no_files() -> Result<()> {
    // Three processes are added and removed in each.
    const ROUNDS: usize = 100;
    let (daemon, _sidecar, client) = front(USER)?;
    let before = visible_names(&daemon.client())?;
    client.call("twiddler.addGroup", ("g", 1))?;
    let everything = unfiled_groups(&daemon)?; // The group, and the epoch marker.
    ensure!(everything.len() == 2, "{everything:?}");
    for round in 0..ROUNDS {
        let group = ["g", "web", "empty", "lone"][round % 4];
        client.call(ADD, (group, "p", program(&[])))?;
        client.call(
            ADD,
            (
                group,
                "q",
                program(&[("numprocs", "2"), ("process_name", "q%(process_num)d")]),
            ),
        )?;
        let order = if round % 3 == 0 {
            ["p", "q0", "q1"]
        } else {
            ["q1", "p", "q0"]
        };
        for process in order {
            client.call(REMOVE, (group, process))?;
        }
        if round % 10 == 0 {
            let name = format!("g{round}");
            client.call("twiddler.addGroup", (&name, 1))?;
            client.call(ADD, (&name, "p", program(&[])))?;
            client.call("twiddler.removeGroup", (&name,))?;
        }
    }
    ensure!(visible_names(&daemon.client())? == before);
    ensure!(unfiled_groups(&daemon)? == everything);
    ensure_include_holds(&daemon, &[])?;
    ensure_no_leftovers(&daemon)?;
    let mut files = daemon.include_files()?;
    files.retain(|name| !name.starts_with(".zz-"));
    let expected = [".twiddler-baseline", ".twiddler-journal", ".twiddler-lock"];
    ensure!(files == expected, "{files:?}");
    Ok(())
}

// --- Real groups ---

fn triple(more: &[(&str, &str)]) -> Value {
    let three = [
        ("numprocs", "3"),
        ("process_name", "%(program_name)s%(process_num)d"),
    ];
    program(&[&three, more].concat())
}

#[test]
fn the_processes_of_a_program_share_a_real_group_and_are_removed_one_by_one() -> Result<()> {
    let (daemon, sidecar, client) = front(USER)?;
    client.call(ADD, ("web", "w", triple(&[("numprocs_start", "4")])))?;
    for name in ["w4", "w5", "w6"] {
        let real = real_name(&daemon, "web", name)?;
        ensure!(real == format!("web~000001:{name}"), "{real}");
    }
    client.call("supervisor.startProcessGroup", ("web",))?;
    let running = client.expect_fault(REMOVE, ("web", "w5"))?;
    ensure_fault(&running, 91, "STILL_RUNNING: w5")?;
    client.call("supervisor.stopProcess", ("web:w5",))?;
    let neighbours = |client: &Client| -> Result<Vec<i64>> {
        let infos =
            ["web:w4", "web:w6"].map(|name| client.call("supervisor.getProcessInfo", (name,)));
        infos
            .into_iter()
            .map(|info| number(member(&info?, "pid")?))
            .collect()
    };
    let before = neighbours(&client)?;
    client.call(REMOVE, ("web", "w5"))?;
    ensure!(neighbours(&client)? == before, "a neighbour restarted");
    let ensure_removed = |client: &Client| -> Result<()> {
        let names = visible_names(client)?;
        ensure!(!names.iter().any(|name| name.ends_with("w5")), "{names:?}");
        for name in ["web:w5", "web~000001:w5"] {
            let fault = client.expect_fault("supervisor.startProcess", (name,))?;
            ensure_fault(&fault, 10, &format!("BAD_NAME: {name}"))?;
        }
        let configs = client.call("supervisor.getAllConfigInfo", ())?;
        ensure!(!column(&configs, "name")?.contains(&"w5"), "{configs:?}");
        let page = client.get("/")?.text();
        ensure!(page.contains("w4") && !page.contains("w5"), "{page}");
        Ok(())
    };
    ensure_removed(&client)?;
    // Calls that start all processes do not start it, also after a restart of the proxy.
    client.call("supervisor.startAllProcesses", ())?;
    client.call("supervisor.startProcess", ("web:*",))?;
    sidecar.kill()?;
    sidecar.start_again()?;
    let client = sidecar.client().kept_alive();
    ensure_removed(&client)?;
    ensure!(daemon.state("web~000001:w5")? == "STOPPED");
    // It stays hidden even if a client starts it by its real name.
    daemon.call("supervisor.startProcess", ("web~000001:w5",))?;
    ensure!(!visible_names(&client)?.contains(&"web:w5".to_owned()));
    // A new process can take its name, in another real group.
    client.call(ADD, ("web", "w5", program(&[])))?;
    ensure!(real_name(&daemon, "web", "w5").is_ok() && state(&client, "web:w5")? == "STOPPED");
    client.call("supervisor.stopAllProcesses", ())?;
    for name in ["w5", "w6"] {
        client.call(REMOVE, ("web", name))?;
    }
    // The last process of a real group cannot be removed while a client has started a hidden one in it. The
    // proxy stops the hidden process.
    let fault = client.expect_fault(REMOVE, ("web", "w4"))?;
    ensure_fault(&fault, 91, "STILL_RUNNING: web~000001:w5")?;
    daemon.wait_for_state("web~000001:w5", "STOPPED")?;
    client.call(REMOVE, ("web", "w4"))?;
    let names = visible_names(&daemon.client())?;
    ensure!(names.iter().all(|name| !name.contains('~')), "{names:?}");
    Ok(())
}

#[test]
fn a_process_that_the_daemon_is_about_to_start_is_not_removed() -> Result<()> {
    let (_daemon, _sidecar, client) = front(USER)?;
    for round in 0..5 {
        let name = format!("w{round}-");
        client.call(
            ADD,
            (
                "web",
                &name,
                triple(&[("autostart", "true"), ("startsecs", "60")]),
            ),
        )?;
        let early = client.expect_fault(REMOVE, ("web", format!("{name}1")))?;
        ensure_fault(&early, 91, &format!("STILL_RUNNING: {name}1"))?;
        // This process exits again and again, and is restarted each time.
        let name = format!("x{round}-");
        let restless = [
            ("command", "/bin/true"),
            ("autostart", "true"),
            ("autorestart", "true"),
        ];
        client.call(ADD, ("web", &name, triple(&restless)))?;
        let restless = client.expect_fault(REMOVE, ("web", format!("{name}1")))?;
        ensure_fault(&restless, 91, &format!("STILL_RUNNING: {name}1"))?;
    }
    Ok(())
}

#[test]
fn programs_are_added_and_removed_in_any_order_and_leave_no_groups() -> Result<()> {
    const CHANGES: usize = 250;
    let changes = times(CHANGES)?;
    let (daemon, _sidecar, client) = front(USER)?;
    let before = visible_names(&daemon.client())?;
    let mut dice = Dice::new(seed(5)?);
    let mut added: Vec<(String, String)> = Vec::new();
    client.call("twiddler.addGroup", ("g", 1))?;
    let unfiled = unfiled_groups(&daemon)?;
    for number in 0..changes {
        let adds = number < changes - CHANGES / 2
            && (added.len() < 5 || added.len() < 30 && dice.one_in(2));
        if adds {
            let group = dice.pick(&["web", "lone", "empty", "g"]);
            let name = format!("p{}-", number % 20);
            let count = 1 + dice.roll(5);
            let given = program(&[
                ("numprocs", &count.to_string()),
                ("process_name", "%(program_name)s%(process_num)d"),
            ]);
            let answer = client.call(ADD, (group, &name, given));
            let names = (0..count).map(|number| (group.to_owned(), format!("{name}{number}")));
            let is_taken = names.clone().any(|name| added.contains(&name));
            ensure!(answer.is_err() == is_taken, "{group}:{name}: {answer:?}");
            added.extend(names.filter(|_| !is_taken));
        } else if !added.is_empty() {
            let (group, process) = added.swap_remove(dice.roll(added.len()));
            client.call(REMOVE, (group, process))?;
        }
        let mut names: Vec<String> = added
            .iter()
            .map(|(group, name)| format!("{group}:{name}"))
            .collect();
        names.extend(before.iter().cloned());
        names.sort();
        let mut visible = visible_names(&client)?;
        visible.sort();
        ensure!(visible == names, "change {number}: {visible:?}\n{names:?}");
    }
    for (group, process) in added {
        client.call(REMOVE, (group, process))?;
    }
    ensure!(visible_names(&daemon.client())? == before);
    ensure!(unfiled_groups(&daemon)? == unfiled);
    Ok(())
}
