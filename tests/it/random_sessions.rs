//! Random sessions with the sidecar and with the original extension in the daemon: the same replies, and
//! the same processes after each step.
//!
//! The sessions are the same in every run. `TEST_EFFORT` multiplies their length, and `TEST_SEED` selects
//! others.

use crate::common::dice::{self, times};
use crate::common::pair::{Answer, Pair};
use crate::common::values::fault_in;
use crate::common::{Dice, LIMIT, eventually, options, value};
use anyhow::{Context, Result, ensure};
use supervisor_twiddler::xmlrpc::Value;

const STEPS: usize = 150;

const USER: &str = "\
[group:web]
programs = a,b

[program:a]
command = /bin/cat
autorestart = false
startsecs = 0

[program:b]
command = /bin/cat
autostart = false
autorestart = false
startsecs = 0

[program:lone]
command = /bin/cat
autostart = false
autorestart = false
startsecs = 0

[group:empty]
programs =
";

const GROUPS: [&str; 4] = ["web", "lone", "empty", "nope"];
const PROCESSES: [&str; 8] = ["a", "b", "lone", "p", "q", "r0", "r1", "r2"];
/// A method and its parameters.
type Call = (&'static str, Vec<Value>);

fn program(dice: &mut Dice) -> Value {
    let mut entries = vec![
        ("command", "/bin/cat"),
        ("autostart", "false"),
        ("autorestart", "false"),
        ("startsecs", "0"),
    ];
    match dice.roll(8) {
        0 => entries.push(("numprocs", "3")),
        1 => entries.push(("priority", "7")),
        2 => entries[0].1 = "/no/such/file",
        3 => entries.push(("startretries", "many")),
        _ => {}
    }
    if dice.roll(8) < 3 {
        entries.push(("process_name", "%(program_name)s%(process_num)d"));
    }
    options(&entries)
}

fn namespec(dice: &mut Dice) -> String {
    let group = dice.pick(&GROUPS[..]);
    match dice.roll(12) {
        0 => format!("{group}:*"),
        1 => format!("{group}:"),
        2 => group.to_owned(),
        3 => dice.pick(&PROCESSES[..]).to_owned(),
        _ => format!("{group}:{}", dice.pick(&PROCESSES[..])),
    }
}

/// Only `cat` runs here. It runs until it is stopped, so nothing depends on time.
fn call(dice: &mut Dice) -> Call {
    let group = dice.pick(&GROUPS[..]);
    let process = dice.pick(&PROCESSES[..]);
    let name = namespec(dice);
    let signal = dice.pick(&["CONT", "WINCH", "NOPE", "28"]);
    match dice.roll(34) {
        0..=6 => {
            let name = dice.pick(&["p", "q", "r", "a", "b", "lone", "x y"]);
            (
                "twiddler.addProgramToGroup",
                params![group, name, program(dice)],
            )
        }
        7..=11 => ("twiddler.removeProcessFromGroup", params![group, process]),
        12..=15 => ("supervisor.startProcess", params![name]),
        16..=18 => ("supervisor.stopProcess", params![name]),
        19 => ("supervisor.signalProcess", params![name, signal]),
        20 => ("supervisor.startProcessGroup", params![group]),
        21 => ("supervisor.stopProcessGroup", params![group]),
        22 => ("supervisor.signalProcessGroup", params![group, signal]),
        23 => ("supervisor.startAllProcesses", params![]),
        24 => ("supervisor.stopAllProcesses", params![]),
        25 => ("supervisor.signalAllProcesses", params![signal]),
        26 => ("supervisor.clearAllProcessLogs", params![]),
        27 => ("supervisor.getAllProcessInfo", params![]),
        28 => ("supervisor.getProcessInfo", params![name]),
        29 => ("supervisor.readProcessLog", params![name, 0, 100]),
        30 => ("supervisor.tailProcessStderrLog", params![name, 0, 100]),
        31 => ("supervisor.clearProcessLogs", params![name]),
        32 => ("supervisor.sendProcessStdin", params![name, "x"]),
        _ => ("twiddler.getAPIVersion", params![]),
    }
}

fn multicall(dice: &mut Dice) -> Call {
    let entries: Vec<Value> = (0..2 + dice.roll(6))
        .map(|_| {
            let (method, params) = call(dice);
            options(&[
                ("methodName", value(method)),
                ("params", Value::Array(params)),
            ])
        })
        .collect();
    ("system.multicall", vec![Value::Array(entries)])
}

/// Whether the result depends on time: `cat` writes its output to the log with a delay.
fn depends_on_time(method: &str) -> bool {
    method.contains("Log") && !method.contains("clear")
}

fn step(pair: &Pair, (method, params): &Call) -> Result<()> {
    let compare = || -> Result<()> {
        let expected = answers(&pair.oracle_answer(method, params)?, method, params);
        let actual = answers(&pair.our_answer(method, params)?, method, params);
        ensure!(
            are_alike(&expected, &actual),
            "{method}{params:?}\n  there {expected:?}\n  here  {actual:?}"
        );
        Ok(())
    };
    match compare() {
        Err(_) if depends_on_time(method) => eventually(LIMIT, compare)?,
        compared => compared?,
    }
    pair.ensure_same_table()
        .with_context(|| format!("{method}{params:?}"))
}

/// The answers to a call: one, or one for each entry of a multicall.
fn answers(answer: &Answer, method: &str, params: &[Value]) -> Vec<Answer> {
    let (Answer::Value(Value::Array(answers)), "system.multicall", Some(Value::Array(entries))) =
        (answer, method, params.first())
    else {
        return vec![answer.clone()];
    };
    let method = |entry: &Value| {
        entry
            .get("methodName")
            .and_then(Value::as_str)
            .map(str::to_owned)
    };
    let pairs = answers.iter().zip(entries);
    let one = |(answer, entry): (&Value, &Value)| match fault_in(answer) {
        Some((code, text)) => Answer::Fault(code as i32, text.to_owned()),
        None if depends_on_time(&method(entry).unwrap_or_default()) => Answer::Value(Value::Nil),
        None => Answer::Value(answer.clone()),
    };
    pairs.map(one).collect()
}

/// Returns whether the answers are equivalent. If a program's name is taken and its options are invalid,
/// the original reports the options, and the sidecar reports the name if it would have to query the daemon
/// about the options.
fn are_alike(expected: &[Answer], actual: &[Answer]) -> bool {
    let alike = |(expected, actual): (&Answer, &Answer)| match (expected, actual) {
        (Answer::Fault(2, expected), Answer::Fault(10, actual)) => {
            expected.contains(" in section 'program:") && actual.starts_with("BAD_NAME: ")
        }
        (expected, actual) => expected == actual,
    };
    expected.len() == actual.len() && expected.iter().zip(actual).all(alike)
}

fn session(seed: u64) -> Result<()> {
    let seed = seed + dice::seed(0)?;
    let steps = times(STEPS)?;
    let pair = Pair::start(USER)?;
    pair.both_reach("web:a", "RUNNING")?;
    let mut dice = Dice::new(seed);
    let mut history = Vec::new();
    for number in 0..steps {
        let next = if dice.one_in(6) {
            multicall(&mut dice)
        } else {
            call(&mut dice)
        };
        history.push(format!("{next:?}"));
        step(&pair, &next).with_context(|| {
            let last = history.len().saturating_sub(12);
            format!(
                "seed {seed}, step {number}, after\n{}",
                history[last..].join("\n")
            )
        })?;
    }
    ensure!(
        pair.daemon
            .include_files()?
            .iter()
            .all(|name| name.starts_with('.')),
        "{:?}",
        pair.daemon.include_files()?
    );
    Ok(())
}

#[test]
fn session_1() -> Result<()> {
    session(1)
}

#[test]
fn session_2() -> Result<()> {
    session(2)
}

#[test]
fn session_3() -> Result<()> {
    session(3)
}

#[test]
fn session_4() -> Result<()> {
    session(4)
}
