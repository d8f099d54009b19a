//! Calls on groups or on all processes, with added and hidden ones among them, have the same results in the
//! same order as with the in-process supervisor_twiddler.
//!
//! The random configurations are the same in every run. `TEST_EFFORT` tries more of them, `TEST_SEED` others.

use crate::common::dice::{seed, times};
use crate::common::pair::{Answer, Pair, comparable_answer};
use crate::common::{
    Client, Daemon, DaemonOptions, Dice, LIMIT, Sidecar, eventually, items, member, number,
    options, rows, text,
};
use anyhow::{Context, Result, ensure};
use supervisor_twiddler::xmlrpc::Value;

const ADD: &str = "twiddler.addProgramToGroup";
const REMOVE: &str = "twiddler.removeProcessFromGroup";
/// How many random configurations each run tries.
const CONFIGURATIONS: usize = 6;

/// The names in the reply of a group call, in its order.
fn names(statuses: &Value) -> Result<Vec<String>> {
    items(statuses)?
        .iter()
        .map(|status| Ok(text(member(status, "name")?)?.to_owned()))
        .collect()
}

/// A program that the daemon neither starts by itself nor restarts.
fn by_hand(command: &str, startsecs: &str) -> Value {
    options(&[
        ("command", command),
        ("startsecs", startsecs),
        ("autostart", "false"),
        ("autorestart", "false"),
    ])
}

#[test]
fn programs_that_exit_soon_after_their_start_have_started() -> Result<()> {
    let daemon = Daemon::start(
        "[group:jobs]\nprograms = once,second\n\
         [program:once]\ncommand = /bin/ls /\nstartsecs = 0\nautostart = false\nautorestart = false\n\
         [program:second]\ncommand = /bin/sleep 1.3\nautostart = false\nautorestart = false\n",
    )?;
    let sidecar = Sidecar::start(&daemon)?;
    let client = sidecar.client().with_limit(LIMIT);
    client.call(ADD, ("jobs", "added", by_hand("/bin/ls /", "0")))?;
    for method in ["startProcessGroup", "startAllProcesses"] {
        for round in 0..3 {
            let params = match method {
                "startProcessGroup" => params!["jobs"],
                _ => params![],
            };
            let before = daemon.log().len();
            let started = client.call(&format!("supervisor.{method}"), params)?;
            ensure!(items(&started)?.len() == 3, "{started:?}");
            let log = daemon.log().split_off(before);
            for status in items(&started)? {
                let name = text(member(status, "name")?)?;
                let status = number(member(status, "status")?)?;
                // On a busy machine, a process can exit before the daemon sees it running.
                let expected = if log.contains(&format!("success: {name} ")) {
                    80
                } else {
                    40
                };
                ensure!(
                    status == expected,
                    "{method}, round {round}: {name} {status}"
                );
            }
            eventually(LIMIT, || {
                let rows = rows(&client)?;
                ensure!(rows.iter().all(|row| row.state == "EXITED"), "{rows:?}");
                Ok(())
            })?;
        }
    }
    Ok(())
}

#[test]
fn processes_of_equal_priority_are_in_the_order_of_the_group_and_then_of_addition() -> Result<()> {
    let program = |name: &str| {
        format!("[program:{name}]\ncommand = /bin/cat\nstartsecs = 0\nautostart = false\n")
    };
    let body = format!(
        "[group:g]\nprograms = zeta,mid,alpha\n{}{}{}",
        program("alpha"),
        program("mid"),
        program("zeta")
    );
    let daemon = Daemon::start(&body)?;
    let sidecar = Sidecar::start(&daemon)?;
    let client = sidecar.client();
    for name in ["omega", "beta", "kappa"] {
        client.call(ADD, ("g", name, by_hand("/bin/cat", "0")))?;
    }
    client.call(REMOVE, ("g", "mid"))?;
    client.call(ADD, ("g", "mid", by_hand("/bin/cat", "0")))?;
    let expected = ["zeta", "alpha", "omega", "beta", "kappa", "mid"];
    let started = client.call("supervisor.startProcessGroup", ("g",))?;
    ensure!(names(&started)? == expected, "{started:?}");
    let signalled = client.call("supervisor.signalAllProcesses", ("CONT",))?;
    ensure!(names(&signalled)? == expected, "{signalled:?}");
    Ok(())
}

#[test]
fn the_log_names_the_stopping_process() -> Result<()> {
    let daemon = Daemon::start("[group:g]\nprograms=\n")?;
    let sidecar = Sidecar::start(&daemon)?;
    let client = sidecar.client().with_limit(LIMIT);
    let stubborn = options(&[
        (
            "command",
            "/bin/sh -c 'trap \"\" TERM; echo trapped; while :; do sleep 0.1; done'",
        ),
        ("stopwaitsecs", "3"),
        ("startsecs", "0"),
        ("autostart", "false"),
        ("autorestart", "false"),
    ]);
    client.call(ADD, ("g", "quick", by_hand("/bin/cat", "0")))?;
    client.call(ADD, ("g", "slow", stubborn))?;
    client.call("supervisor.startProcessGroup", ("g",))?;
    eventually(LIMIT, || {
        let written = client.call("supervisor.readProcessStdoutLog", ("g:slow", 0, 100))?;
        ensure!(text(&written)?.contains("trapped"), "{written:?}");
        Ok(())
    })?;
    client.call("supervisor.stopProcessGroup", ("g",))?;
    let log = daemon.wait_for_log("stopped: slow")?;
    let waiting = log.matches(" INFO waiting for slow to stop\n").count();
    ensure!((1..=3).contains(&waiting), "{waiting} lines\n{log}");
    Ok(())
}

// --- At random ---

/// What a program does. The second letter of its name is the letter of its kind.
struct Kind {
    letter: char,
    command: &'static str,
    startsecs: &'static str,
    /// Whether the process runs until it is stopped.
    stays: bool,
    /// Whether the daemon knows the outcome of a start at once.
    known_at_once: bool,
}

/// The outcome of each kind is the same on a busy machine: the process runs until it is stopped, is running as
/// soon as it is started, or exits long before its `startsecs`.
const KINDS: [Kind; 6] = [
    Kind {
        letter: 'c',
        command: "/bin/cat",
        startsecs: "0",
        stays: true,
        known_at_once: true,
    },
    Kind {
        letter: 's',
        command: "/bin/sleep 0.3",
        startsecs: "0",
        stays: false,
        known_at_once: true,
    },
    Kind {
        letter: 'f',
        command: "/bin/sh -c 'sleep 0.3; exit 3'",
        startsecs: "0",
        stays: false,
        known_at_once: true,
    },
    Kind {
        letter: 'u',
        command: "/bin/cat",
        startsecs: "1",
        stays: true,
        known_at_once: false,
    },
    Kind {
        letter: 'q',
        command: "/bin/sleep 0.2",
        startsecs: "600",
        stays: false,
        known_at_once: false,
    },
    Kind {
        letter: 'n',
        command: "/no/such/file",
        startsecs: "0",
        stays: false,
        known_at_once: true,
    },
];
const LETTERS: [&str; 6] = ["z", "a", "m", "k", "b", "y"];
const PRIORITIES: [&str; 5] = ["999", "999", "999", "5", "1000"];

/// The kind of the program of this name.
fn kind_of(name: &str) -> Option<&'static Kind> {
    let letter = name.chars().nth(1)?;
    KINDS.iter().find(|kind| kind.letter == letter)
}

fn kind(dice: &mut Dice) -> &'static Kind {
    if dice.one_in(2) {
        &KINDS[0]
    } else {
        &KINDS[dice.roll(KINDS.len())]
    }
}

/// A program's name and options. The name has the letter of its kind.
fn program(dice: &mut Dice, number: usize) -> (String, Vec<(&'static str, String)>) {
    let kind = kind(dice);
    let name = format!("{}{}{number}", dice.pick(&LETTERS), kind.letter);
    let mut given = vec![
        ("command", kind.command.to_owned()),
        ("startsecs", kind.startsecs.to_owned()),
        ("startretries", "0".to_owned()),
        ("autostart", "false".to_owned()),
        ("autorestart", "false".to_owned()),
        ("priority", dice.pick(&PRIORITIES).to_owned()),
        // No process is killed because the machine is slow.
        ("stopwaitsecs", "600".to_owned()),
    ];
    if dice.one_in(4) {
        given.push(("numprocs", "3".to_owned()));
        given.push((
            "process_name",
            "%(program_name)s_%(process_num)d".to_owned(),
        ));
    }
    (name, given)
}

/// The user's file: two groups, and some programs without a group.
fn configuration(dice: &mut Dice) -> String {
    let mut body = String::new();
    let mut number = 0;
    for group in ["one", "two"] {
        let mut members = Vec::new();
        for _ in 0..1 + dice.roll(4) {
            let (name, given) = program(dice, number);
            number += 1;
            body += &section(&name, &given);
            let place = dice.roll(members.len() + 1);
            members.insert(place, name);
        }
        let priority = dice.pick(&PRIORITIES);
        let members = members.join(",");
        body += &format!("[group:{group}]\nprograms = {members}\npriority = {priority}\n");
    }
    for _ in 0..dice.roll(3) {
        let (name, given) = program(dice, number);
        number += 1;
        body += &section(&name, &given);
    }
    body
}

fn section(name: &str, given: &[(&str, String)]) -> String {
    let lines = given
        .iter()
        .map(|(key, value)| format!("{key} = {value}\n"));
    format!("[program:{name}]\n{}", lines.collect::<String>())
}

/// Removes processes from groups, and adds others.
fn change(pair: &Pair, dice: &mut Dice) -> Result<()> {
    for number in 100..104 + dice.roll(6) {
        let rows = rows(&pair.sidecar.client())?;
        let row = dice.choose(&rows).context("no process remains")?;
        if dice.one_in(3) && rows.len() > 2 {
            pair.ensure_same(REMOVE, &params![&row.group, &row.name])?;
        } else {
            let (name, given) = program(dice, number);
            let given: Vec<_> = given
                .iter()
                .map(|(key, value)| (*key, value.as_str()))
                .collect();
            pair.ensure_same(ADD, &params![&row.group, name, options(&given)])?;
        }
    }
    Ok(())
}

/// Waits until all processes that exit by themselves have exited, in both daemons.
fn settle(pair: &Pair) -> Result<()> {
    eventually(LIMIT, || {
        for client in [pair.oracle.client(), pair.sidecar.client()] {
            for row in rows(&client)? {
                let stays = kind_of(&row.name).is_some_and(|kind| kind.stays);
                let is_settled = match &*row.state {
                    "STOPPED" | "EXITED" | "FATAL" => true,
                    "RUNNING" => stays,
                    _ => false,
                };
                ensure!(is_settled, "{row:?}");
            }
        }
        pair.ensure_same_table()
    })
}

/// The actions of a daemon on processes, in their order, from its log at the level `debug`.
fn actions(daemon: &Daemon) -> Vec<String> {
    let log = daemon.log();
    let action = |line: &str| {
        let (what, rest) = ["spawned: '", "killing ", "sending "]
            .iter()
            .find_map(|what| Some((*what, line.split_once(what)?.1)))?;
        let name = rest.split(['\'', ' ']).next()?;
        Some(format!("{what}{name}"))
    };
    log.lines().filter_map(action).collect()
}

/// The actions and the answer of one of the two for a call.
#[derive(Debug, PartialEq)]
struct Outcome {
    actions: Vec<String>,
    answer: Answer,
    /// The processes in the reply that are in the order of the actions, not of their outcomes.
    order: Vec<String>,
}

fn outcome(client: &Client, daemon: &Daemon, method: &str, params: &[Value]) -> Result<Outcome> {
    let before = actions(daemon).len();
    let reply = client.call(method, params);
    let known_at_once = |name: &String| {
        !method.contains("stop") && kind_of(name).is_some_and(|kind| kind.known_at_once)
    };
    let order = match &reply {
        Ok(statuses) => names(statuses)?.into_iter().filter(known_at_once).collect(),
        Err(_) => Vec::new(),
    };
    Ok(Outcome {
        actions: actions(daemon).split_off(before),
        answer: comparable_answer(reply, daemon)?,
        order,
    })
}

fn compare(pair: &Pair, method: &str, params: &[Value]) -> Result<()> {
    let expected = outcome(&pair.oracle.client(), &pair.oracle, method, params)?;
    let actual = outcome(&pair.sidecar.client(), &pair.daemon, method, params)?;
    ensure!(
        expected == actual,
        "in-process {expected:#?}\nproxy {actual:#?}"
    );
    settle(pair)
}

fn try_configuration(seed: u64) -> Result<()> {
    let mut dice = Dice::new(seed);
    let body = configuration(&mut dice);
    let described = || format!("seed {seed}:\n{body}");
    let pair = Pair::start_options(
        DaemonOptions {
            body: &body,
            extra_supervisord: "loglevel = debug",
            ..DaemonOptions::default()
        },
        "",
    )?;
    change(&pair, &mut dice).with_context(described)?;
    for _ in 0..4 {
        let group = dice.pick(&["one", "two"]);
        let (method, params) = match dice.roll(7) {
            0 | 1 => ("startProcessGroup", params![group]),
            2 => ("startAllProcesses", params![]),
            3 => ("stopProcessGroup", params![group]),
            4 => ("stopAllProcesses", params![]),
            5 => ("signalProcessGroup", params![group, "CONT"]),
            _ => ("signalAllProcesses", params!["CONT"]),
        };
        compare(&pair, &format!("supervisor.{method}"), &params)
            .with_context(|| format!("{method}{params:?}"))
            .with_context(described)?;
    }
    // At the end, all are started and stopped.
    for method in ["startAllProcesses", "stopAllProcesses"] {
        compare(&pair, &format!("supervisor.{method}"), &[])
            .context(method)
            .with_context(described)?;
    }
    Ok(())
}

#[test]
fn random_groups_start_and_stop_as_in_the_in_process_twiddler() -> Result<()> {
    let first: u64 = seed(1)?;
    let count = times(CONFIGURATIONS)?;
    for seed in (first..).take(count) {
        try_configuration(seed)?;
    }
    Ok(())
}
