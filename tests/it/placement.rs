//! Processes that live in the daemon under another name so that their neighbours stay up, and
//! configured ones that were taken out of their group: clients see ordinary members, or nothing.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use crate::common::ctl::python;
use crate::common::daemon::free_port;
use crate::common::dice::{seed, times};
use crate::common::pair::{Answer, Pair, timeless};
use crate::common::process::lock;
use crate::common::values::column;
use crate::common::view::ensure_include_holds;
use crate::common::{
    Client, Daemon, Dice, LIMIT, Row, Sidecar, SidecarOptions, Version, ensure_fault, eventually,
    infos, items, member, number, options, rows, stdout_text, text, texts, value, venv,
};
use anyhow::{Context, Result, bail, ensure};
use supervisor_twiddler::xmlrpc::{Value, write};

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

fn shown(client: &Client) -> Result<Vec<String>> {
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

/// The daemon's own name for a process that is shown as `group:process`.
fn real_name(daemon: &Daemon, group: &str, process: &str) -> Result<String> {
    let begins = format!("{group}~");
    let rows = rows(&daemon.client())?;
    let found = rows
        .iter()
        .find(|row| row.group.starts_with(&begins) && row.name == process)
        .with_context(|| format!("{group}:{process} is not placed: {rows:?}"))?;
    Ok(found.namespec())
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
    // Nobody waits for ever after it.
    client.call("twiddler.addProgramToGroup", ("web", "next", program(&[])))?;
    Ok(())
}

#[test]
fn a_refused_program_is_not_among_the_configured_ones() -> Result<()> {
    let (daemon, _sidecar, client) =
        front("[group:web]\nprograms=front\n[program:front]\ncommand=/bin/cat\n")?;
    // Not more of it: what is read again has its automatic logs not yet.
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
        let there = configs(&client)?;
        ensure!(there == wanted, "{there:#?}");
        Ok(())
    };
    let before = configs(&client)?;
    let add = |name: &str| client.call("twiddler.addProgramToGroup", ("web", name, program(&[])));
    let fault =
        client.expect_fault("twiddler.addProgramToGroup", ("web", "front", program(&[])))?;
    ensure!(fault.code == 10, "{fault:?}");
    ensure_are(&before)?;
    let there = configs(&daemon.client())?;
    ensure!(there == before, "{there:?}");
    // The same when names are translated anyway, and for a process that has left.
    add("job")?;
    let with_job = configs(&client)?;
    client.expect_fault("twiddler.addProgramToGroup", ("web", "front", program(&[])))?;
    ensure_are(&with_job)?;
    client.call("twiddler.removeProcessFromGroup", ("web", "job"))?;
    ensure_are(&before)?;
    add("job")?;
    ensure_are(&with_job)?;
    // Beside a removal, for which the daemon reads nothing.
    let calls = [
        (
            "twiddler.addProgramToGroup",
            params!["web", "front", program(&[])],
        ),
        ("twiddler.removeProcessFromGroup", params!["web", "job"]),
    ];
    client.multicall(&calls)?;
    ensure_are(&before)?;
    let there = configs(&daemon.client())?;
    ensure!(there == before, "{there:?}");
    Ok(())
}

#[test]
fn a_process_joins_any_group_and_no_neighbour_notices() -> Result<()> {
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
        ensure!(shown(&client)?.contains(&name));
        ensure!(state(&client, &name)? == "STOPPED");
        client.call("supervisor.startProcess", (&name,))?;
        let info = client.call("supervisor.getProcessInfo", (&name,))?;
        ensure!(text(member(&info, "group")?)? == group, "{info:?}");
        let environ = format!("/proc/{}/environ", number(member(&info, "pid")?)?);
        let wanted = format!("SUPERVISOR_GROUP_NAME={group}");
        eventually(LIMIT, || {
            let environ = fs::read(&environ)?;
            let mut entries = environ.split(|byte| *byte == 0);
            let told = entries.any(|entry| entry == wanted.as_bytes());
            ensure!(told, "no {wanted} for {name}");
            Ok(())
        })?;
        // A second one is placed whatever the first was.
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
    // But it is no group of clients.
    let names = client.call("twiddler.getGroupNames", ())?;
    ensure!(!texts(&names)?.contains(&"web~000001"));
    let unknown = client.expect_fault(ADD, ("web~000001", "x", program(&[])))?;
    ensure_fault(&unknown, 10, "BAD_NAME: group: web~000001")
}

// --- Every method ---

/// A group with a placed process that runs, one that does not, and a configured one taken out.
fn furnished() -> Result<Pair> {
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
fn methods_that_take_a_process_answer_as_for_any_member() -> Result<()> {
    let pair = furnished()?;
    for method in ["getProcessInfo", "clearProcessLog", "clearProcessLogs"] {
        for name in NAMES {
            pair.ensure_same(&format!("supervisor.{method}"), &params![name])?;
        }
        pair.ensure_same(&format!("supervisor.{method}"), &params![])?;
        pair.ensure_same(&format!("supervisor.{method}"), &params!["web:p", 1, 2])?;
    }
    let pair = furnished()?;
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
fn methods_that_take_a_group_or_all_answer_as_for_any_members() -> Result<()> {
    let pair = furnished()?;
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
        // `sleep` of the event listener and the others end alike.
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
fn starts_that_fail_are_told_alike() -> Result<()> {
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
        let theirs = pair.oracle_answer("supervisor.startProcess", &params![&name])?;
        let ours = pair.our_answer("supervisor.startProcess", &params![&name])?;
        ensure!(theirs == ours, "{name}: {theirs:?} and {ours:?}");
        ensure!(matches!(ours, Answer::Fault(..)), "{ours:?}");
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
        let theirs = pair.oracle_answer(&method, &params![name])?;
        let ours = pair.our_answer(&method, &params![name])?;
        ensure!(theirs == ours, "{call}: {theirs:#?} and {ours:#?}");
        pair.ensure_same("supervisor.stopProcess", &params!["web:a"])?;
    }
    Ok(())
}

// --- Removal ---

#[test]
fn a_configured_process_that_was_removed_is_gone_for_clients() -> Result<()> {
    let (daemon, _sidecar, client) = front(USER)?;
    daemon.wait_for_state("web:a", "RUNNING")?;
    client.call(REMOVE, ("web", "b"))?;
    ensure!(!shown(&client)?.contains(&"web:b".to_owned()));
    ensure!(
        shown(&daemon.client())?.contains(&"web:b".to_owned()),
        "it was not to be touched"
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
    // Whatever starts all, does not start it.
    client.call("supervisor.startProcessGroup", ("web",))?;
    client.call("supervisor.startProcess", ("web:*",))?;
    client.call("supervisor.startAllProcesses", ())?;
    client.multicall(&[
        ("supervisor.startProcess", params!["web:b"]),
        ("supervisor.startAllProcesses", params![]),
    ])?;
    ensure!(daemon.state("web:b")? == "STOPPED");

    // Its name is free.
    client.call(ADD, ("web", "b", program(&[("command", "/bin/sleep 600")])))?;
    client.call("supervisor.startProcess", ("web:b",))?;
    ensure!(daemon.state("web:b")? == "STOPPED");
    ensure!(
        shown(&client)?
            .iter()
            .filter(|name| *name == "web:b")
            .count()
            == 1
    );
    client.call("supervisor.stopProcessGroup", ("web",))?;
    client.call(REMOVE, ("web", "b"))?;
    ensure!(!shown(&client)?.contains(&"web:b".to_owned()));
    Ok(())
}

#[test]
fn a_removed_process_that_somebody_starts_directly_shows_again() -> Result<()> {
    for look in 0..4 {
        let (daemon, _sidecar, client) = front(USER)?;
        client.call(REMOVE, ("web", "b"))?;
        daemon.call("supervisor.startProcess", ("web:b",))?;
        match look {
            0 => ensure!(shown(&client)?.contains(&"web:b".to_owned())),
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
        // From then on it is there, whatever its state.
        daemon.call("supervisor.startProcess", ("web:b",)).ok();
        client.call("supervisor.stopProcess", ("web:b",))?;
        ensure!(shown(&client)?.contains(&"web:b".to_owned()));
        client.call(REMOVE, ("web", "b"))?;
        ensure!(!shown(&client)?.contains(&"web:b".to_owned()));
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

/// The daemon's groups that no file defines.
fn unfiled_groups(daemon: &Daemon) -> Result<Vec<String>> {
    let lists = daemon.call("supervisor.reloadConfig", ())?;
    let removed = &items(&items(&lists)?[0])?[2];
    Ok(texts(removed)?.into_iter().map(str::to_owned).collect())
}

#[test]
fn adding_and_removing_for_ever_leaves_nothing_behind() -> Result<()> {
    // Three processes come and go in each.
    const ROUNDS: usize = 100;
    let (daemon, _sidecar, client) = front(USER)?;
    let before = shown(&daemon.client())?;
    client.call("twiddler.addGroup", ("g", 1))?;
    let everything = unfiled_groups(&daemon)?; // the group, and the one by which this life is known
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
    ensure!(shown(&daemon.client())? == before);
    ensure!(unfiled_groups(&daemon)? == everything);
    ensure_include_holds(&daemon, &[])?;
    let left = daemon.include_files()?;
    let ours = [".twiddler-baseline", ".twiddler-journal", ".twiddler-lock"];
    ensure!(left == ours, "{left:?}");
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
fn the_processes_of_a_program_share_a_real_group_and_leave_one_by_one() -> Result<()> {
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
    ensure!(neighbours(&client)? == before, "a neighbour noticed");
    let ensure_gone = |client: &Client| -> Result<()> {
        let names = shown(client)?;
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
    ensure_gone(&client)?;
    // Whatever starts all does not start it, and after a start of the proxy neither.
    client.call("supervisor.startAllProcesses", ())?;
    client.call("supervisor.startProcess", ("web:*",))?;
    sidecar.kill()?;
    sidecar.start_again()?;
    let client = sidecar.client().kept_alive();
    ensure_gone(&client)?;
    ensure!(daemon.state("web~000001:w5")? == "STOPPED");
    // Not even when somebody starts it by its real name.
    daemon.call("supervisor.startProcess", ("web~000001:w5",))?;
    ensure!(!shown(&client)?.contains(&"web:w5".to_owned()));
    // Its name is free, for another real group.
    client.call(ADD, ("web", "w5", program(&[])))?;
    ensure!(real_name(&daemon, "web", "w5").is_ok() && state(&client, "web:w5")? == "STOPPED");
    client.call("supervisor.stopAllProcesses", ())?;
    for name in ["w5", "w6"] {
        client.call(REMOVE, ("web", name))?;
    }
    // The last one does not leave a real group in which somebody has started a hidden one: that is
    // told to stop.
    let kept = client.expect_fault(REMOVE, ("web", "w4"))?;
    ensure_fault(&kept, 91, "STILL_RUNNING: web~000001:w5")?;
    daemon.wait_for_state("web~000001:w5", "STOPPED")?;
    client.call(REMOVE, ("web", "w4"))?;
    let there = shown(&daemon.client())?;
    ensure!(there.iter().all(|name| !name.contains('~')), "{there:?}");
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
        // Exits again and again, and is started each time.
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
fn programs_come_and_go_in_any_order_and_leave_nothing_behind() -> Result<()> {
    const CHANGES: usize = 250;
    let changes = times(CHANGES)?;
    let (daemon, _sidecar, client) = front(USER)?;
    let before = shown(&daemon.client())?;
    let mut dice = Dice::new(seed(5)?);
    let mut there: Vec<(String, String)> = Vec::new();
    client.call("twiddler.addGroup", ("g", 1))?;
    let unfiled = unfiled_groups(&daemon)?;
    for number in 0..changes {
        let comes = number < changes - CHANGES / 2
            && (there.len() < 5 || there.len() < 30 && dice.one_in(2));
        if comes {
            let group = dice.pick(&["web", "lone", "empty", "g"]);
            let name = format!("p{}-", number % 20);
            let count = 1 + dice.roll(5);
            let given = program(&[
                ("numprocs", &count.to_string()),
                ("process_name", "%(program_name)s%(process_num)d"),
            ]);
            let added = client.call(ADD, (group, &name, given));
            let names = (0..count).map(|number| (group.to_owned(), format!("{name}{number}")));
            let taken = names.clone().any(|name| there.contains(&name));
            ensure!(added.is_err() == taken, "{group}:{name}: {added:?}");
            there.extend(names.filter(|_| !taken));
        } else if !there.is_empty() {
            let (group, process) = there.swap_remove(dice.roll(there.len()));
            client.call(REMOVE, (group, process))?;
        }
        let mut names: Vec<String> = there
            .iter()
            .map(|(group, name)| format!("{group}:{name}"))
            .collect();
        names.extend(before.iter().cloned());
        names.sort();
        let mut shown = shown(&client)?;
        shown.sort();
        ensure!(shown == names, "change {number}: {shown:?}\n{names:?}");
    }
    for (group, process) in there {
        client.call(REMOVE, (group, process))?;
    }
    ensure!(shown(&daemon.client())? == before);
    ensure!(unfiled_groups(&daemon)? == unfiled);
    Ok(())
}

// --- Order and time ---

/// Twenty processes, half of them placed at once and half one by one.
fn crowd(client: &Client, more: &[(&str, &str)]) -> Result<()> {
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

const CROWDED: &str = "[group:web]\nprograms = a\n[program:a]\ncommand = /bin/cat\nautostart = false\nstartsecs = 1\n";

#[test]
fn a_group_starts_and_stops_all_at_once() -> Result<()> {
    // Each takes a second to start and a second to stop.
    let slow = "/bin/sh -c 'trap \"sleep 1; exit\" TERM; while :; do sleep 0.1; done'";
    let (_daemon, _sidecar, client) = front(CROWDED)?;
    crowd(
        &client,
        &[
            ("startsecs", "1"),
            ("command", slow),
            ("stopasgroup", "false"),
        ],
    )?;
    let began = Instant::now();
    let started = client.call("supervisor.startProcessGroup", ("web",))?;
    let took = began.elapsed();
    ensure!(items(&started)?.len() == 21, "{started:?}");
    ensure!(
        took >= Duration::from_secs(1) && took < Duration::from_secs(7),
        "{took:?} to start"
    );
    ensure!(
        rows(&client)?.iter().all(|row| row.state == "RUNNING"),
        "{:?}",
        rows(&client)?
    );
    let began = Instant::now();
    let stopped = client.call("supervisor.stopProcess", ("web:*",))?;
    let took = began.elapsed();
    ensure!(items(&stopped)?.len() == 21, "{stopped:?}");
    ensure!(took < Duration::from_secs(10), "{took:?} to stop");
    ensure!(
        rows(&client)?.iter().all(|row| row.state == "STOPPED"),
        "{:?}",
        rows(&client)?
    );
    Ok(())
}

#[test]
fn a_group_that_is_not_waited_for_answers_before_it_is_up() -> Result<()> {
    let (_daemon, _sidecar, client) = front(CROWDED)?;
    crowd(&client, &[("startsecs", "600")])?;
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
        ensure!(up >= 20, "{up} are on their way");
        client.call("supervisor.stopAllProcesses", ())?;
    }
    Ok(())
}

/// The names in the order in which the daemon spawned them.
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
        let (theirs, ours) = (spawned(&pair.oracle), spawned(&pair.daemon));
        ensure!(theirs == ours, "hidden: {hide}\n{theirs:?}\n{ours:?}");
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
    // What was written down is read back.
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
    // Nobody else comes by such a name.
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

// --- Native group calls ---

#[test]
fn the_daemons_group_calls_know_twiddled_groups() -> Result<()> {
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
    let left = shown(&daemon.client())?;
    ensure!(
        left.iter()
            .all(|name| !name.starts_with("web") && !name.starts_with('g')),
        "{left:?}"
    );
    // The file's part of it comes back whole.
    client.call("supervisor.addProcessGroup", ("web",))?;
    ensure!(shown(&client)?.contains(&"web:b".to_owned()));
    ensure!(!shown(&client)?.contains(&"web:placed".to_owned()));
    let fault = client.expect_fault("supervisor.addProcessGroup", ("g",))?;
    ensure_fault(&fault, 10, "BAD_NAME: g")
}

fn ctl(daemon: &Daemon, sidecar: &Sidecar, arguments: &[&str]) -> Result<String> {
    Ok(stdout_text(
        &daemon.supervisorctl_at(arguments, sidecar.tcp_addr())?,
    ))
}

#[test]
fn an_update_leaves_alone_what_was_twiddled_and_applies_what_the_file_says() -> Result<()> {
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
    let ours = |rows: Vec<Row>| -> Vec<Row> {
        rows.into_iter()
            .filter(|row| row.name == "own" || row.name == "placed")
            .collect()
    };
    let before = ours(rows(&client)?);
    ensure!(ctl(&daemon, &sidecar, &["reread"])? == "No config updates to processes\n");
    ensure!(ctl(&daemon, &sidecar, &["update"])?.is_empty());
    ensure!(ours(rows(&client)?) == before);
    ensure!(!shown(&client)?.contains(&"web:b".to_owned()));

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
        ours(rows(&client)?) == before,
        "{:?}\n{before:?}",
        ours(rows(&client)?)
    );
    let now = shown(&client)?;
    ensure!(
        now.contains(&"more:more".to_owned()) && !now.contains(&"ears:ears".to_owned()),
        "{now:?}"
    );
    ensure!(
        now.contains(&"web:b".to_owned()),
        "the file says that it is there: {now:?}"
    );
    ensure!(ctl(&daemon, &sidecar, &["update"])?.is_empty());
    Ok(())
}

#[test]
fn supervisorctl_prints_what_it_prints_before_the_original() -> Result<()> {
    let pair = furnished()?;
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
        let theirs = pair.oracle.supervisorctl(arguments)?;
        let ours = pair
            .daemon
            .supervisorctl_at(arguments, pair.sidecar.tcp_addr())?;
        let (told, tell) = (
            tidy(stdout_text(&theirs), &pair.oracle),
            tidy(stdout_text(&ours), &pair.daemon),
        );
        ensure!(
            told == tell,
            "{arguments:?}\n  there {told:#?}\n  here  {tell:#?}"
        );
        ensure!(
            theirs.status == ours.status,
            "{arguments:?}: {} and {}",
            theirs.status,
            ours.status
        );
    }
    Ok(())
}

// --- Untouched ---

/// Stands between the sidecar and the daemon, and keeps what the sidecar sends.
struct Tap {
    addr: SocketAddr,
    sent: Arc<Mutex<Vec<u8>>>,
}

impl Tap {
    fn before(socket: &Path) -> Result<Tap> {
        let listener = TcpListener::bind(("127.0.0.1", 0))?;
        let addr = listener.local_addr()?;
        let sent = Arc::new(Mutex::new(Vec::new()));
        let (kept, socket) = (Arc::clone(&sent), socket.to_owned());
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if let Ok(daemon) = UnixStream::connect(&socket) {
                    join(&client, &daemon, &kept);
                }
            }
        });
        Ok(Tap { addr, sent })
    }

    fn take(&self) -> Vec<u8> {
        std::mem::take(&mut lock(&self.sent))
    }
}

fn join(client: &TcpStream, daemon: &UnixStream, kept: &Arc<Mutex<Vec<u8>>>) {
    let (Ok(mut from), Ok(mut to)) = (client.try_clone(), daemon.try_clone()) else {
        return;
    };
    let kept = Arc::clone(kept);
    thread::spawn(move || {
        let mut buffer = [0; 8192];
        while let Ok(length @ 1..) = from.read(&mut buffer) {
            lock(&kept).extend_from_slice(&buffer[..length]);
            if to.write_all(&buffer[..length]).is_err() {
                break;
            }
        }
        let _ = to.shutdown(std::net::Shutdown::Both);
    });
    let (Ok(mut from), Ok(mut to)) = (daemon.try_clone(), client.try_clone()) else {
        return;
    };
    thread::spawn(move || {
        let _ = std::io::copy(&mut from, &mut to);
        let _ = to.shutdown(std::net::Shutdown::Both);
    });
}

#[test]
fn what_concerns_no_placed_process_goes_through_byte_for_byte() -> Result<()> {
    let daemon = Daemon::start(USER)?;
    daemon.wait_for_state("web:a", "RUNNING")?;
    let tap = Tap::before(daemon.socket())?;
    let sidecar =
        Sidecar::start_with(&daemon, &["--supervisord", &format!("http://{}", tap.addr)])?;
    let client = sidecar.client();
    client.call("twiddler.addGroup", ("g", 1))?;
    client.call(ADD, ("g", "own", program(&[])))?;
    client.call(ADD, ("web", "placed", program(&[])))?;
    client.call(REMOVE, ("web", "b"))?;
    // With the first call that is passed on, and then once a minute, the proxy asks for the daemon's
    // process, whose limit of open files it minds.
    client.call("supervisor.getState", ())?;
    let mut seen = Vec::new();
    eventually(LIMIT, || {
        seen.extend(tap.take());
        let text = String::from_utf8_lossy(&seen);
        ensure!(text.contains("supervisor.getPID"), "{text}");
        Ok(())
    })?;
    let calls = [
        ("supervisor.getState", params![]),
        ("supervisor.getProcessInfo", params!["web:a"]),
        ("supervisor.getProcessInfo", params!["g:own"]),
        ("supervisor.getProcessInfo", params!["lone"]),
        ("supervisor.getProcessInfo", params!["web~000002:placed"]),
        ("supervisor.startProcess", params!["g:own"]),
        ("supervisor.readProcessLog", params!["g:own", 0, 10]),
        ("supervisor.sendProcessStdin", params!["web:a", "x\n"]),
        ("supervisor.stopProcess", params!["g:own"]),
        ("supervisor.signalProcess", params!["web:a", "CONT"]),
        ("supervisor.startProcessGroup", params!["lone"]),
        ("supervisor.startProcess", params!["lone:*"]),
        ("supervisor.getProcessInfo", params!["nope"]),
        ("supervisor.readLog", params![0, 10]),
        ("supervisor.nope", params!["web:placed"]),
        ("system.methodHelp", params!["supervisor.getState"]),
        ("nope", params![]),
    ];
    for (method, params) in calls {
        // As no library would write it.
        let plain = String::from_utf8(write::call(method, &params))?;
        let odd = plain.replace("<params>", "\n <params >\t<!-- odd -->");
        let whole = [odd.as_bytes(), b"\n\n"].concat();
        tap.take();
        client.request("POST", "/RPC2?x=1", &[("X-Odd", "a  b")], Some(&whole))?;
        let sent = tap.take();
        let mut position = sent.windows(whole.len()).filter(|part| *part == whole);
        ensure!(
            position.next().is_some() && position.next().is_none() && sent.ends_with(&whole),
            "{method}{params:?} was sent as {}",
            String::from_utf8_lossy(&sent)
        );
        ensure!(
            sent.starts_with(b"POST /RPC2?x=1 HTTP/1.1\r\n"),
            "{}",
            String::from_utf8_lossy(&sent)
        );
    }
    // Beside it, to see that the tap would tell.
    tap.take();
    client.call("supervisor.getProcessInfo", ("web:placed",))?;
    let sent = String::from_utf8_lossy(&tap.take()).into_owned();
    if !sent.contains("web~000002:placed") {
        bail!("{sent}");
    }
    Ok(())
}

#[test]
fn lists_are_in_the_daemons_order() -> Result<()> {
    let (_daemon, _sidecar, client) = front(USER)?;
    for name in ["z", "a1", "0", "m"] {
        for group in ["web", "lone", "ears"] {
            client.call(ADD, (group, name, program(&[])))?;
        }
    }
    let names: Vec<(String, String)> = rows(&client)?
        .into_iter()
        .map(|row| (row.group, row.name))
        .collect();
    ensure!(names.is_sorted(), "{names:?}");
    ensure!(infos(&client)?.len() == 5 + 12);
    Ok(())
}

// --- Children that call supervisord ---

/// Says where it was told to call, and the group that it finds itself in there.
const ASKS_ABOUT_ITSELF: &str = "\
import os, time
from supervisor import childutils
told = os.environ
name = told['SUPERVISOR_GROUP_NAME'] + ':' + told['SUPERVISOR_PROCESS_NAME']
try:
    info = childutils.getRPCInterface(told).supervisor.getProcessInfo(name)
    found = info['group'] + ':' + info['name'] + ' ' + info['statename']
except Exception as error:
    found = repr(error)
print(told['SUPERVISOR_SERVER_URL'] + ' ' + found, flush=True)
time.sleep(600)
";

/// Runs [`ASKS_ABOUT_ITSELF`] as a placed process, and waits for what it says.
fn asked_by_child(
    daemon: &Daemon,
    client: &Client,
    name: &str,
    more: &[(&str, &str)],
) -> Result<String> {
    daemon.write("asks.py", ASKS_ABOUT_ITSELF)?;
    let command = format!("{} %(here)s/asks.py", python().display());
    let given = [&[("command", command.as_str())], more].concat();
    client.call(ADD, ("web", name, program(&given)))?;
    real_name(daemon, "web", name)?;
    let namespec = format!("web:{name}");
    client.call("supervisor.startProcess", (&namespec,))?;
    eventually(LIMIT, || {
        let said = client.call("supervisor.readProcessStdoutLog", (&namespec, 0, 1000))?;
        let said = text(&said)?;
        ensure!(said.ends_with('\n'), "it says {said:?} so far");
        Ok(said.trim_end().to_owned())
    })
}

fn serverurls(client: &Client) -> Result<Vec<(String, String)>> {
    let configs = client.call("supervisor.getAllConfigInfo", ())?;
    let row = |config| {
        let name = text(member(config, "name")?)?.to_owned();
        Ok((name, text(member(config, "serverurl")?)?.to_owned()))
    };
    items(&configs)?.iter().map(row).collect()
}

#[test]
fn a_placed_child_finds_itself_where_it_is_told_to_call() -> Result<()> {
    let daemon = Daemon::start("[program:web]\ncommand = /bin/cat\nstartsecs = 0\n")?;
    let both = Sidecar::start(&daemon)?;
    let client = both.client();
    let socket = format!("unix://{}", both.socket().display());
    for (name, serverurl) in [("a", None), ("b", Some(" auto "))] {
        let more: Vec<_> = serverurl
            .map(|text| ("serverurl", text))
            .into_iter()
            .collect();
        let said = asked_by_child(&daemon, &client, name, &more)?;
        ensure!(said == format!("{socket} web:{name} RUNNING"), "{said}");
    }
    both.stop()?;
    let options = SidecarOptions {
        arguments: &["--listen", "127.0.0.1:0"],
        own_listeners: Some(1),
        ..SidecarOptions::default()
    };
    let port = Sidecar::start_options(&daemon, options)?;
    let client = port.client();
    let said = asked_by_child(&daemon, &client, "c", &[])?;
    let url = format!("http://{}", port.tcp_addr());
    ensure!(said == format!("{url} web:c RUNNING"), "{said}");
    let shown = serverurls(&client)?;
    ensure!(
        shown.len() == 4 && shown.iter().all(|(_, url)| url == "none"),
        "{shown:?}"
    );
    Ok(())
}

#[test]
fn a_placed_child_calls_where_its_options_say() -> Result<()> {
    let (daemon, _sidecar, client) = front("[program:web]\ncommand = /bin/cat\n")?;
    let own = format!("unix://{}", daemon.socket().display());
    let said = asked_by_child(&daemon, &client, "option", &[("serverurl", &own)])?;
    ensure!(said.starts_with(&format!("{own} ")), "{said}");
    let variable = format!("SUPERVISOR_SERVER_URL=\"{own}\"");
    let said = asked_by_child(&daemon, &client, "variable", &[("environment", &variable)])?;
    ensure!(said.starts_with(&format!("{own} ")), "{said}");
    let shown = serverurls(&client)?;
    let expected = [
        ("option", own.as_str()),
        ("variable", "none"),
        ("web", "none"),
    ];
    let expected = expected.map(|(name, url)| (name.to_owned(), url.to_owned()));
    ensure!(shown == expected, "{shown:?}");
    Ok(())
}

/// A program that does not live in a real group of the proxy's, and looks for one that does.
#[test]
fn superlances_httpok_restarts_placed_processes() -> Result<()> {
    let (daemon, sidecar, client) = front(USER)?;
    let nobody = free_port()?;
    let python = venv(Version::Superlance).python();
    let urls = [
        format!("http://{}", sidecar.tcp_addr()),
        format!("unix://{}", sidecar.socket().display()),
    ];
    let watched = ["p0", "p1"];
    let mut listeners = String::new();
    for (name, url) in watched.into_iter().zip(urls) {
        client.call(ADD, ("web", name, program(&[("autostart", "true")])))?;
        real_name(&daemon, "web", name)?;
        listeners += &format!(
            "[eventlistener:httpok-{name}]\nevents = TICK_5\n\
             command = {} -m superlance.httpok -t 1 -p web:{name} http://{nobody}/\n\
             environment = SUPERVISOR_SERVER_URL=\"{url}\"\n",
            python.display()
        );
    }
    let before = rows(&client)?;
    daemon.write("conf.d/listeners.conf", &listeners)?;
    client.call("supervisor.reloadConfig", ())?;
    for name in watched {
        client.call("supervisor.addProcessGroup", (format!("httpok-{name}"),))?;
    }
    eventually(LIMIT, || {
        for old in &before {
            let info = client.call("supervisor.getProcessInfo", (old.namespec(),))?;
            let new = Row::read(&info)?;
            let is_watched = watched.contains(&old.name.as_str());
            ensure!(new.state == old.state, "{new:?}");
            ensure!((new.pid != old.pid) == is_watched, "{old:?}\n{new:?}");
        }
        Ok(())
    })
}
