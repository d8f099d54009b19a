//! Processes that live in the daemon under another name so that their neighbours stay up, and
//! configured ones that were taken out of their group: clients see ordinary members, or nothing.

mod children;
mod group_calls;
mod untouched;

use std::fs;

use crate::common::dice::{seed, times};
use crate::common::pair::{Answer, Pair};
use crate::common::values::column;
use crate::common::view::ensure_include_holds;
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
/// Somebody makes a group anew straight on the daemon, with a process of its name, from a file that is
/// gone again.
fn make_anew(daemon: &Daemon, group: &str, options: &str) -> Result<()> {
    let file = daemon.include_dir().join("anew.conf");
    fs::write(&file, format!("[program:{group}]\n{options}"))?;
    daemon.call("supervisor.reloadConfig", ())?;
    daemon.call("supervisor.removeProcessGroup", (group,))?;
    daemon.call("supervisor.addProcessGroup", (group,))?;
    Ok(fs::remove_file(&file)?)
}

/// Once the proxy has looked at what the daemon has.
#[test]
fn a_stopped_process_that_somebody_has_put_into_an_added_group_stays() -> Result<()> {
    let (daemon, sidecar, client) = front(USER)?;
    client.call("twiddler.addGroup", ("own", 999))?;
    client.call(ADD, ("web", "gone", program(&[])))?;
    make_anew(&daemon, "own", "command = /bin/cat\nautostart = false\n")?;
    let real = real_name(&daemon, "web", "gone")?;
    let (real, _) = real.split_once(':').context("no group")?;
    daemon.call("supervisor.removeProcessGroup", (real,))?;
    // What is gone as well is said by that look.
    eventually(LIMIT, || {
        let log = sidecar.stderr_text();
        ensure!(log.contains("1 program (web:gone): gone"), "{log}");
        Ok(())
    })?;
    client.call(ADD, ("own", "p", program(&[])))?;
    let shown = shown(&client)?;
    for name in ["own:own", "own:p"] {
        ensure!(shown.iter().any(|one| one == name), "{name} of {shown:?}");
    }
    Ok(())
}

/// Its own process runs on, and what joins lives beside it.
#[test]
fn an_added_group_that_somebody_has_made_anew_is_left_as_it_is() -> Result<()> {
    let (daemon, _sidecar, client) = front(USER)?;
    client.call("twiddler.addGroup", ("own", 999))?;
    make_anew(&daemon, "own", "command = /bin/sleep 600\nstartsecs = 0\n")?;
    wait_for(&client, "own:own", "RUNNING")?;
    let pid = |client: &Client| -> Result<i64> {
        let info = client.call("supervisor.getProcessInfo", ("own:own",))?;
        number(member(&info, "pid")?)
    };
    let before = pid(&client)?;
    let add = || client.call(ADD, ("own", "p", program(&[])));
    // The first call may be the one that finds it out.
    if add().is_err() {
        add()?;
    }
    ensure!(state(&client, "own:p")? == "STOPPED");
    ensure!(pid(&client)? == before);
    Ok(())
}

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
