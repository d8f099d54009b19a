//! Group and all forms over groups with added and hidden processes: what is reported, and in which
//! order, is what the in-process original does.
//!
//! The random configurations are the same in every run. `TEST_EFFORT` asks for more of them,
//! `TEST_SEED` for others.

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

/// The names that a reply of a group call has, in its order.
fn names(statuses: &Value) -> Result<Vec<String>> {
    items(statuses)?
        .iter()
        .map(|status| Ok(text(member(status, "name")?)?.to_owned()))
        .collect()
}

/// A program that is started by hand and stays as it ends.
fn by_hand(command: &str, startsecs: &str) -> Value {
    options(&[
        ("command", command),
        ("startsecs", startsecs),
        ("autostart", "false"),
        ("autorestart", "false"),
    ])
}

#[test]
fn programs_that_end_soon_have_started_well() -> Result<()> {
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
                // On a busy machine one may end before the daemon has come to see it up.
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
fn equal_priorities_are_in_the_order_of_the_group_and_then_of_addition() -> Result<()> {
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
fn the_log_says_who_is_waited_for() -> Result<()> {
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

/// What a program does; its second letter tells.
struct Kind {
    letter: char,
    command: &'static str,
    startsecs: &'static str,
    /// Whether it runs until it is stopped.
    stays: bool,
    /// Whether the daemon knows what became of its start when it has started it.
    known_at_once: bool,
}

/// What becomes of each is the same on a machine that is busy: it lives for good, is up as soon as it
/// is started, or ends long before it would be.
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

/// What the program of this name does.
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

/// A program's options, under a name that says what it does.
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
        // None is killed where the machine stands still.
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

/// The user's file: some groups, some programs without.
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

/// Takes processes out of groups and puts others in.
fn change(pair: &Pair, dice: &mut Dice) -> Result<()> {
    for number in 100..104 + dice.roll(6) {
        let rows = rows(&pair.sidecar.client())?;
        let there = dice.choose(&rows).context("no process is left")?;
        if dice.one_in(3) && rows.len() > 2 {
            pair.ensure_same(REMOVE, &params![&there.group, &there.name])?;
        } else {
            let (name, given) = program(dice, number);
            let given: Vec<_> = given
                .iter()
                .map(|(key, value)| (*key, value.as_str()))
                .collect();
            pair.ensure_same(ADD, &params![&there.group, name, options(&given)])?;
        }
    }
    Ok(())
}

/// Waits until whatever ends by itself has ended, in both.
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

/// What a daemon did to processes, in its order, as its log tells at the level `debug`.
fn deeds(daemon: &Daemon) -> Vec<String> {
    let log = daemon.log();
    let deed = |line: &str| {
        let (what, rest) = ["spawned: '", "killing ", "sending "]
            .iter()
            .find_map(|what| Some((*what, line.split_once(what)?.1)))?;
        let name = rest.split(['\'', ' ']).next()?;
        Some(format!("{what}{name}"))
    };
    log.lines().filter_map(deed).collect()
}

/// What one of the two did and said for a call.
#[derive(Debug, PartialEq)]
struct Seen {
    deeds: Vec<String>,
    answer: Answer,
    /// The reply's processes that are in the order of the deeds, not in that of their ends.
    order: Vec<String>,
}

fn see(client: &Client, daemon: &Daemon, method: &str, params: &[Value]) -> Result<Seen> {
    let before = deeds(daemon).len();
    let reply = client.call(method, params);
    let known_at_once = |name: &String| {
        !method.contains("stop") && kind_of(name).is_some_and(|kind| kind.known_at_once)
    };
    let order = match &reply {
        Ok(statuses) => names(statuses)?.into_iter().filter(known_at_once).collect(),
        Err(_) => Vec::new(),
    };
    Ok(Seen {
        deeds: deeds(daemon).split_off(before),
        answer: comparable_answer(reply, daemon)?,
        order,
    })
}

fn compare(pair: &Pair, method: &str, params: &[Value]) -> Result<()> {
    let theirs = see(&pair.oracle.client(), &pair.oracle, method, params)?;
    let ours = see(&pair.sidecar.client(), &pair.daemon, method, params)?;
    ensure!(theirs == ours, "there {theirs:#?}\nhere {ours:#?}");
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
    // There is always something to start and to stop.
    for method in ["startAllProcesses", "stopAllProcesses"] {
        compare(&pair, &format!("supervisor.{method}"), &[])
            .context(method)
            .with_context(described)?;
    }
    Ok(())
}

#[test]
fn random_groups_are_started_and_stopped_as_in_process() -> Result<()> {
    let first: u64 = seed(1)?;
    let count = times(CONFIGURATIONS)?;
    for seed in (first..).take(count) {
        try_configuration(seed)?;
    }
    Ok(())
}
