//! The verbs of the command line, by the built binary, on real daemons: through the proxy, and directly where
//! a verb needs no `twiddler.*` method. A verb that supervisorctl has is compared with it.

use std::process::{Command, Output};

use crate::common::dice::seed;
use crate::common::sidecar::{twiddler_command, verb_command as command};
use crate::common::terminal::{close_terminal, on_closing_terminal};
use crate::common::{
    Daemon, DaemonOptions, Dice, LIMIT, Process, Sidecar, eventually, member, number, python, run,
    stderr_text, stdout_text,
};
use anyhow::{Context, Result, ensure};

pub const PROGRAMS: &str = "
[group:web]
programs=api,worker

[program:api]
command=cat
startsecs=0

[program:worker]
command=cat
process_name=%(program_name)s_%(process_num)d
numprocs=2
startsecs=0

[program:lone]
command=cat
autostart=false
startsecs=0

[program:broken]
command=/nonexistent/program
autostart=false

[program:short]
command=false
autostart=false
startretries=0
";

fn verb(server: &str, words: &[&str]) -> Result<Output> {
    run(&mut command(server, words))
}

fn code(output: &Output) -> Result<i32> {
    output.status.code().context("ended by a signal")
}

/// The output of a verb that must succeed.
fn printed(server: &str, words: &[&str]) -> Result<String> {
    let output = verb(server, words)?;
    ensure!(code(&output)? == 0, "{words:?}: {}", stderr_text(&output));
    Ok(stdout_text(&output))
}

fn url(daemon: &Daemon) -> String {
    format!("unix://{}", daemon.socket().display())
}

fn proxy_url(sidecar: &Sidecar) -> String {
    format!("unix://{}", sidecar.socket().display())
}

#[test]
fn status_ends_as_supervisorctls_does_and_shows_the_same() -> Result<()> {
    let daemon = Daemon::start(PROGRAMS)?;
    let sidecar = Sidecar::start(&daemon)?;
    daemon.wait_for_state("web:api", "RUNNING")?;
    daemon.wait_for_state("web:worker_1", "RUNNING")?;
    for server in [url(&daemon), proxy_url(&sidecar)] {
        for names in [
            &[][..],
            &["web:*"],
            &["web:api", "web:worker_0"],
            &["lone"],
            &["nobody"],
            &["nobody:*", "web:api"],
            &["nobody", "lone"],
        ] {
            let words: Vec<&str> = ["status"].iter().chain(names).copied().collect();
            let ours = verb(&server, &words)?;
            let theirs = daemon.supervisorctl(&words)?;
            assert_eq!(code(&ours)?, code(&theirs)?, "{words:?}");
            let ours: Vec<_> = states(&stdout_text(&ours)).skip(1).collect();
            let theirs: Vec<_> = states(&stdout_text(&theirs))
                .filter(|(_, state)| state != "ERROR")
                .collect();
            assert_eq!(ours, theirs, "{words:?}");
        }
    }
    Ok(())
}

/// The name and the state in each line of a table.
fn states(text: &str) -> impl Iterator<Item = (String, String)> {
    text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        Some((words.next()?.to_owned(), words.next()?.to_owned()))
    })
}

#[test]
fn globs_select_processes_and_unknown_names_get_a_suggestion() -> Result<()> {
    let daemon = Daemon::start(PROGRAMS)?;
    let server = url(&daemon);
    let names = printed(&server, &["status", "-o", "name", "*worker*"]);
    assert_eq!(names?, "web:worker_0\nweb:worker_1\n");
    let unknown = verb(&server, &["status", "wbe:api"])?;
    assert_eq!(code(&unknown)?, 4);
    let stderr = stderr_text(&unknown);
    ensure!(stderr.contains("did you mean web:api?"), "{stderr}");
    Ok(())
}

/// The texts are those of supervisorctl, and the exit status is 0 wherever supervisorctl's is.
#[test]
fn start_stop_and_signal_print_the_texts_of_supervisorctl() -> Result<()> {
    let own_daemon = Daemon::start(PROGRAMS)?;
    let theirs = Daemon::start(PROGRAMS)?;
    let sidecar = Sidecar::start(&own_daemon)?;
    let server = proxy_url(&sidecar);
    for words in [
        &["stop", "web:api"][..],
        &["stop", "web:api"],
        &["start", "web:api"],
        &["start", "web:api"],
        &["restart", "web:api", "lone"],
        &["stop", "web:*"],
        &["start", "web:*"],
        &["restart", "web:*"],
        &["stop", "nobody:*"],
        &["start", "nobody"],
        &["start", "broken"],
        &["signal", "USR1", "web:worker_0"],
        &["signal", "NONSENSE", "web:api"],
        &["signal", "HUP", "broken"],
        &["stop", "all"],
        &["start", "lone", "web:*"],
    ] {
        let output = verb(&server, words)?;
        let expected = theirs.supervisorctl(words)?;
        assert_eq!(
            code(&output)? == 0,
            code(&expected)? == 0,
            "{words:?}: {}",
            stderr_text(&output)
        );
        assert_eq!(lines(&output), lines(&expected), "{words:?}");
    }
    Ok(())
}

/// The sorted lines of both outputs, without suggestions.
fn lines(output: &Output) -> Vec<String> {
    let text = stdout_text(output) + &stderr_text(output);
    let mut lines: Vec<String> = text
        .lines()
        .filter(|line| line.contains(": "))
        .map(|line| match line.split_once("; did you mean") {
            Some((line, _)) => format!("{line})"),
            None => line.to_owned(),
        })
        .collect();
    lines.sort();
    lines
}

#[test]
fn json_output_is_the_result_of_the_call() -> Result<()> {
    let daemon = Daemon::start(PROGRAMS)?;
    let server = url(&daemon);
    let table: serde_json::Value =
        serde_json::from_str(&printed(&server, &["call", "supervisor.getAllConfigInfo"])?)?;
    assert_eq!(table.as_array().map(Vec::len), Some(6));
    let status = verb(&server, &["status", "-o", "json", "web:*"])?;
    let status: serde_json::Value = serde_json::from_slice(&status.stdout)?;
    let names: Vec<_> = status
        .as_array()
        .into_iter()
        .flatten()
        .map(|info| info["name"].as_str().unwrap_or_default())
        .collect();
    assert_eq!(names, ["api", "worker_0", "worker_1"]);
    let version = printed(&server, &["call", "supervisor.getSupervisorVersion"])?;
    assert_eq!(version.trim(), daemon.version().number());
    Ok(())
}

/// The stop and the removal succeed at any moment between two restarts.
#[test]
fn a_process_that_keeps_restarting_is_stopped_and_removed() -> Result<()> {
    let daemon = Daemon::start(PROGRAMS)?;
    let sidecar = Sidecar::start(&daemon)?;
    let server = proxy_url(&sidecar);
    for _ in 0..8 {
        for remove in [&["remove", "jobs:echo"][..], &["remove-group", "jobs"]] {
            let options = ["-O", "startsecs=0", "-O", "autorestart=true"];
            let command = ["--create-group", "--", "sleep", "0.02"];
            printed(
                &server,
                &[&["add", "jobs:echo"], &options[..], &command].concat(),
            )?;
            printed(&server, &[remove, &["--stop"]].concat())?;
        }
    }
    Ok(())
}

#[test]
fn programs_are_added_and_removed() -> Result<()> {
    let daemon = Daemon::start(PROGRAMS)?;
    let sidecar = Sidecar::start(&daemon)?;
    let server = proxy_url(&sidecar);
    let add = [
        "add",
        "jobs:echo",
        "-O",
        "startsecs=0",
        "-O",
        "autorestart=false",
    ];
    let words = [
        "--",
        "sh",
        "-c",
        "echo \"100% of $1\"; cat",
        "x",
        "it's %(here)s",
    ];

    let without_group = verb(&server, &[&add[..], &words].concat())?;
    assert_eq!(code(&without_group)?, 1);
    ensure!(stderr_text(&without_group).contains("no such group: jobs"));

    let with_group = [&add[..], &["--create-group"], &words].concat();
    assert_eq!(printed(&server, &with_group)?, "jobs:echo: added\n");
    printed(
        &server,
        &["wait", "jobs:echo", "--for", "running", "--timeout", "20"],
    )?;
    eventually(LIMIT, || {
        let text = printed(&server, &["logs", "jobs:echo"])?;
        ensure!(text == "100% of it's %(here)s\n", "{text:?}");
        Ok(())
    })?;
    assert_eq!(
        printed(&server, &["groups"])?,
        "broken\njobs\nlone\nshort\nweb\n"
    );

    let running = verb(&server, &["remove", "jobs:echo"])?;
    assert_eq!(code(&running)?, 1);
    ensure!(stderr_text(&running).contains("still running: stop it first, or add --stop"));
    assert_eq!(
        printed(&server, &["rm", "--stop", "jobs:echo"])?,
        "jobs:echo: removed\n"
    );
    assert_eq!(
        printed(&server, &["remove-group", "jobs"])?,
        "jobs: removed\n"
    );
    printed(&server, &["add-group", "jobs", "--priority", "5"])?;
    let again = verb(&server, &["add-group", "jobs"])?;
    assert_eq!(code(&again)?, 1);
    ensure!(stderr_text(&again).contains("there is a group jobs already"));
    Ok(())
}

#[test]
fn a_group_added_for_a_refused_program_is_removed() -> Result<()> {
    let daemon = Daemon::start(PROGRAMS)?;
    let sidecar = Sidecar::start(&daemon)?;
    let server = proxy_url(&sidecar);
    let words = [
        "add",
        "new:x",
        "--create-group",
        "-O",
        "autorestart=perhaps",
        "--",
        "cat",
    ];
    let refused = verb(&server, &words)?;
    assert_eq!(code(&refused)?, 1);
    ensure!(stderr_text(&refused).contains("autorestart"));
    assert_eq!(printed(&server, &["groups"])?, "broken\nlone\nshort\nweb\n");
    Ok(())
}

#[test]
fn numprocs_gives_each_process_a_name() -> Result<()> {
    let daemon = Daemon::start(PROGRAMS)?;
    let sidecar = Sidecar::start(&daemon)?;
    let server = proxy_url(&sidecar);
    printed(&server, &["add", "web:w", "--numprocs", "3", "--", "cat"])?;
    let names = printed(&server, &["status", "-o", "name", "web:w_*"]);
    assert_eq!(names?, "web:w_00\nweb:w_01\nweb:w_02\n");
    Ok(())
}

/// The process gets the same words as the command line, for random words.
#[test]
fn words_of_a_command_arrive_unchanged() -> Result<()> {
    let mut dice = Dice::new(seed(1)?);
    let lists: Vec<Vec<String>> = (0..5000)
        .map(|_| (0..1 + dice.roll(5)).map(|_| word(&mut dice)).collect())
        .collect();
    let commands: Vec<String> = lists
        .iter()
        .map(|words| supervisor_twiddler::client::words::command(words))
        .collect();
    let script = "
import json, shlex, sys
from supervisor.options import expand
for command in json.load(sys.stdin):
    expanded = expand(command, {'here': '/x', 'program_name': 'p'}, 'command')
    print(json.dumps(shlex.split(expanded)))
";
    let input = serde_json::to_vec(&commands)?;
    let mut python = Command::new(python());
    python.args(["-c", script]);
    let output = crate::common::process::run_with_input(&mut python, &input)?;
    let split = stdout_text(&crate::common::process::succeeded(output)?);
    for (line, words) in split.lines().zip(&lists) {
        let arrived: Vec<String> = serde_json::from_str(line)?;
        assert_eq!(arrived, *words);
    }
    assert_eq!(split.lines().count(), lists.len());
    Ok(())
}

fn word(dice: &mut Dice) -> String {
    const LETTERS: [&str; 24] = [
        "a", "b", "/", "-", " ", "'", "\"", "\\", "%", "(", ")", "s", ";", "#", "$", "`", "\t",
        "é", "\u{2028}", "=", "*", "~", "%(here)s", "x",
    ];
    let length = dice.roll(9);
    (0..length)
        .map(|_| LETTERS[dice.roll(LETTERS.len())])
        .collect()
}

const TALKERS: &str = "
[group:talk]
programs=one,two

[program:one]
command=sh -c 'n=0; while read line; do echo one $line; done'
startsecs=0

[program:two]
command=sh -c 'while read line; do echo two $line >&2; echo two $line; done'
startsecs=0

[program:silent]
command=cat
stdout_logfile=NONE
";

fn say(daemon: &Daemon, name: &str, line: &str) -> Result<()> {
    daemon.call(
        "supervisor.sendProcessStdin",
        params![name, format!("{line}\n")],
    )?;
    Ok(())
}

#[test]
fn the_last_lines_of_logs_are_printed() -> Result<()> {
    let daemon = Daemon::start(TALKERS)?;
    let server = url(&daemon);
    for name in ["talk:one", "talk:two"] {
        daemon.wait_for_state(name, "RUNNING")?;
    }
    for number in 0..30 {
        say(&daemon, "talk:one", &number.to_string())?;
    }
    say(&daemon, "talk:two", "x")?;
    eventually(LIMIT, || {
        let text = printed(&server, &["logs", "-n", "2", "talk:one"])?;
        ensure!(text == "one 28\none 29\n", "{text:?}");
        let both = printed(&server, &["logs", "-n", "1", "talk:*"])?;
        ensure!(both == "talk:one | one 29\ntalk:two | two x\n", "{both:?}");
        let plain = printed(&server, &["logs", "--no-prefix", "--stderr", "talk:*"])?;
        ensure!(plain == "two x\n", "{plain:?}");
        Ok(())
    })?;
    assert_eq!(
        printed(&server, &["logs", "-n", "100", "talk:one"])?
            .lines()
            .count(),
        30
    );
    let silent = verb(&server, &["logs", "silent"])?;
    assert_eq!(code(&silent)?, 1);
    ensure!(stderr_text(&silent).contains("silent has no log file"));
    Ok(())
}

#[test]
fn followed_logs_continue_after_restarts_of_process_and_daemon() -> Result<()> {
    let daemon = Daemon::start(TALKERS)?;
    let sidecar = Sidecar::start(&daemon)?;
    let server = proxy_url(&sidecar);
    let following = Process::spawn(&mut command(&server, &["logs", "-f", "talk:*"]))?;
    let stderr = |name: &str, line: &str| -> Result<()> {
        daemon.wait_for_state(&format!("talk:{name}"), "RUNNING")?;
        say(&daemon, &format!("talk:{name}"), line)?;
        following.wait_for_stdout(&format!("talk:{name} | {name} {line}\n"))?;
        Ok(())
    };
    stderr("one", "first")?;
    stderr("two", "first")?;
    printed(&server, &["restart", "talk:one"])?;
    stderr("one", "second")?;
    daemon.restart_rpc()?;
    stderr("one", "third")?;
    stderr("two", "second")?;
    let text = following.stdout_text();
    for line in [
        "one first",
        "two first",
        "one second",
        "one third",
        "two second",
    ] {
        assert_eq!(text.matches(&format!("| {line}\n")).count(), 1, "{text}");
    }
    following.signal("INT")?;
    assert_eq!(following.wait()?.code(), Some(0));
    Ok(())
}

#[test]
fn followed_logs_end_when_the_terminal_is_closed() -> Result<()> {
    let daemon = Daemon::start(TALKERS)?;
    daemon.wait_for_state("talk:one", "RUNNING")?;
    let following = on_closing_terminal(&command(url(&daemon), &["logs", "-f", "talk:one"]))?;
    close_terminal(&following)?;
    let status = eventually(LIMIT, || {
        say(&daemon, "talk:one", "line")?;
        following.exit_status().context("it goes on")
    })?;
    assert_eq!(status.code(), Some(1));
    Ok(())
}

#[test]
fn wait_ends_with_the_state_or_the_timeout() -> Result<()> {
    let daemon = Daemon::start(PROGRAMS)?;
    let server = url(&daemon);
    printed(
        &server,
        &["wait", "web:*", "--for", "running", "--timeout", "20"],
    )?;
    printed(&server, &["wait", "lone", "--for", "stopped"])?;
    let late = verb(
        &server,
        &["wait", "lone", "--for", "running", "--timeout", "0.3"],
    )?;
    assert_eq!(code(&late)?, 124);
    ensure!(stderr_text(&late).contains("still waiting for lone"));
    let waiting = Process::spawn(&mut command(&server, &["wait", "lone", "--for", "running"]))?;
    printed(&server, &["start", "lone"])?;
    assert_eq!(waiting.wait()?.code(), Some(0));
    assert_eq!(code(&verb(&server, &["start", "short"])?)?, 1);
    daemon.wait_for_state("short", "FATAL")?;
    let hopeless = verb(&server, &["wait", "short", "--for", "running"])?;
    assert_eq!(code(&hopeless)?, 1);
    ensure!(stderr_text(&hopeless).contains("short is FATAL"));
    Ok(())
}

#[test]
fn rolling_restarts_end_at_the_first_that_does_not_come_up() -> Result<()> {
    let marks = tempfile::tempdir()?;
    let broken = marks.path().join("2");
    let body = format!(
        "
[program:roll]
command=sh -c 'test ! -e {}/%(process_num)d && exec cat'
process_name=%(process_num)d
numprocs=5
startsecs=1
startretries=0
autorestart=false
",
        marks.path().display()
    );
    let daemon = Daemon::start(&body)?;
    let server = url(&daemon);
    printed(
        &server,
        &["wait", "roll:*", "--for", "running", "--timeout", "30"],
    )?;
    let before = pids(&daemon)?;
    std::fs::write(&broken, "")?;
    let output = verb(&server, &["restart", "roll:*", "--rolling", "2"])?;
    let stderr = stderr_text(&output);
    assert_eq!(code(&output)?, 1, "{stderr}");
    assert_eq!(
        stdout_text(&output),
        "roll:0: restarted\nroll:1: restarted\nroll:3: restarted\n"
    );
    ensure!(stderr.contains("roll:2: ERROR"), "{stderr}");
    ensure!(
        stderr.contains("3 restarted, 1 did not come up, 1 not restarted: roll:4"),
        "{stderr}"
    );
    let after = pids(&daemon)?;
    assert_eq!(before[4], after[4]);
    for index in [0, 1, 3] {
        assert_ne!(before[index], after[index]);
    }
    Ok(())
}

fn pids(daemon: &Daemon) -> Result<Vec<i64>> {
    (0..5)
        .map(|index| {
            let info = daemon.call(
                "supervisor.getProcessInfo",
                params![format!("roll:{index}")],
            )?;
            number(member(&info, "pid")?)
        })
        .collect()
}

#[test]
fn a_rolling_restart_that_is_interrupted_finishes_its_batch() -> Result<()> {
    let daemon = Daemon::start(ROLL)?;
    let server = url(&daemon);
    printed(
        &server,
        &["wait", "roll:*", "--for", "running", "--timeout", "30"],
    )?;
    let rolling = Process::spawn(&mut command(
        &server,
        &["restart", "roll:*", "--rolling", "1"],
    ))?;
    rolling.wait_for_stdout("roll:0: restarted\n")?;
    rolling.signal("INT")?;
    assert_eq!(rolling.wait()?.code(), Some(130));
    let stderr = rolling.stderr_text();
    ensure!(stderr.contains("not restarted: roll:"), "{stderr}");
    for index in 0..5 {
        assert_eq!(daemon.state(&format!("roll:{index}"))?, "RUNNING");
    }
    Ok(())
}

const ROLL: &str = "
[program:roll]
command=cat
process_name=%(process_num)d
numprocs=5
startsecs=1
";

#[test]
fn a_rolling_restart_whose_server_fails_names_the_processes_in_doubt() -> Result<()> {
    for format in ["table", "json"] {
        let daemon = Daemon::start(ROLL)?;
        let sidecar = Sidecar::start(&daemon)?;
        let server = format!("unix://{}", sidecar.socket().display());
        printed(
            &server,
            &["wait", "roll:*", "--for", "running", "--timeout", "30"],
        )?;
        let before = pids(&daemon)?;
        let words = ["-o", format, "restart", "roll:*", "--rolling", "2"];
        let rolling = Process::spawn(&mut command(&server, &words))?;
        eventually(LIMIT, || {
            let now = pids(&daemon)?;
            // The second batch takes a second at least.
            ensure!(now[2] != before[2] && now[3] != before[3], "{now:?}");
            Ok(())
        })?;
        sidecar.kill()?;
        assert_eq!(rolling.wait()?.code(), Some(69));
        let stderr = rolling.stderr_text();
        let summary = "2 restarted, 2 may be stopped: roll:2 roll:3, 1 not restarted: roll:4\n";
        ensure!(
            stderr.contains(summary) && stderr.contains("cannot reach"),
            "{stderr}"
        );
        if format == "json" {
            let json: serde_json::Value = serde_json::from_str(&rolling.stdout_text())?;
            assert_eq!(json["in_doubt"], serde_json::json!(["roll:2", "roll:3"]));
        }
    }
    Ok(())
}

#[test]
fn a_second_signal_ends_a_rolling_restart_whose_server_does_not_answer() -> Result<()> {
    let daemon = Daemon::start(ROLL)?;
    let server = url(&daemon);
    printed(
        &server,
        &["wait", "roll:*", "--for", "running", "--timeout", "30"],
    )?;
    let words = ["restart", "roll:*", "--rolling", "1"];
    let rolling = Process::spawn(&mut command(&server, &words))?;
    rolling.wait_for_stdout("roll:0: restarted\n")?;
    daemon.signal("STOP")?;
    rolling.signal("TERM")?;
    rolling.wait_for_stderr("Ctrl-C again")?;
    rolling.signal("TERM")?;
    let status = rolling.wait()?;
    daemon.signal("CONT")?;
    assert_eq!(status.code(), Some(143));
    let stderr = rolling.stderr_text();
    let summary = "1 restarted, 1 may be stopped: roll:1, 3 not restarted: roll:2 roll:3 roll:4\n";
    ensure!(stderr.contains(summary), "{stderr}");
    Ok(())
}

#[test]
fn errors_are_a_sentence_and_a_status() -> Result<()> {
    let daemon = Daemon::start_with(DaemonOptions {
        body: PROGRAMS,
        credentials: Some(("user", "s3cret")),
        ..DaemonOptions::default()
    })?;
    let server = url(&daemon);
    for (server, words, status, stderr) in [
        (
            "unix:///nonexistent/t.sock",
            &["status"][..],
            69,
            "cannot reach unix:///nonexistent/t.sock",
        ),
        (&server, &["status"], 77, "refused the credentials"),
        (
            &server,
            &["groups", "-u", "user", "-p", "s3cret"],
            1,
            "this supervisord has no twiddler.* methods",
        ),
        (
            "ftp://x",
            &["status"],
            2,
            "write http://, https:// or unix://",
        ),
        (&server, &["start"], 2, "required"),
        (
            &server,
            &[
                "-u",
                "user",
                "-p",
                "s3cret",
                "call",
                "supervisor.getProcessInfo",
                "nobody",
            ],
            1,
            "no such process or group: nobody\n",
        ),
        (
            &server,
            &[
                "-u",
                "user",
                "-p",
                "s3cret",
                "call",
                "supervisor.getState",
                "1",
            ],
            1,
            "does not take these arguments for supervisor.getState",
        ),
        (
            &server,
            &["add", "x:y", "-O", "nonsense", "--", "cat"],
            2,
            "KEY=VALUE",
        ),
    ] {
        let output = verb(server, words)?;
        let text = stderr_text(&output);
        assert_eq!(code(&output)?, status, "{words:?}: {text}");
        ensure!(text.contains(stderr), "{words:?}: {text}");
        ensure!(!text.contains("s3cret"), "{text}");
    }
    let before = ["-u", "user", "-p", "s3cret", "status", "web:api"];
    daemon.wait_for_state("web:api", "RUNNING")?;
    ensure!(printed(&server, &before)?.contains("web:api"));
    Ok(())
}

#[test]
fn a_method_that_is_not_allowed_is_named() -> Result<()> {
    let daemon = Daemon::start(PROGRAMS)?;
    let arguments = [
        "--allow",
        "supervisor.get*,twiddler.*",
        "--whitelist",
        "getGroupNames",
    ];
    let sidecar = Sidecar::start_with(&daemon, &arguments)?;
    for (words, method) in [
        (&["logs", "web:api"][..], "supervisor.readProcessStdoutLog"),
        (&["stop", "web:api"], "supervisor.stopProcess"),
        (&["stop", "web:*"], "supervisor.stopProcessGroup"),
        (&["remove", "web:api"], "removeProcessFromGroup"),
        (&["programs"], "getAllProgramInfo"),
    ] {
        let output = verb(&proxy_url(&sidecar), words)?;
        let stderr = stderr_text(&output);
        let sentence = format!("{method} is not allowed here: see allow and whitelist");
        ensure!(
            code(&output)? == 1 && stderr.contains(&sentence),
            "{words:?}: {stderr}"
        );
    }
    Ok(())
}

#[test]
fn colours_are_only_for_terminals_by_default() -> Result<()> {
    let daemon = Daemon::start(PROGRAMS)?;
    let server = url(&daemon);
    daemon.wait_for_state("web:api", "RUNNING")?;
    for (words, colored) in [
        (&["status", "web:api"][..], false),
        (&["status", "web:api", "--color", "always"], true),
        (&["status", "web:api", "--color", "never"], false),
    ] {
        let text = printed(&server, words)?;
        assert_eq!(text.contains('\u{1b}'), colored, "{words:?}: {text:?}");
    }
    Ok(())
}

#[test]
fn completion_offers_the_names_of_the_server() -> Result<()> {
    let daemon = Daemon::start(PROGRAMS)?;
    let complete = |words: &[&str]| -> Result<String> {
        let mut command = twiddler_command();
        command.env("COMPLETE", "fish").arg("--").args(words);
        Ok(stdout_text(&run(&mut command)?))
    };
    let server = url(&daemon);
    let offered = complete(&["twiddler", "-s", &server, "start", "web:w"])?;
    ensure!(
        offered.contains("web:worker_0") && offered.contains("web:worker_1"),
        "{offered}"
    );
    ensure!(!offered.contains("web:api"), "{offered}");
    let after = complete(&["twiddler", "stop", "-s", &server, "lo"])?;
    ensure!(after.contains("lone"), "{after}");
    for shell in ["bash", "zsh", "fish"] {
        let script = stdout_text(&run(twiddler_command().args(["completions", shell]))?);
        ensure!(script.contains("twiddler"), "{shell}: {script}");
    }
    Ok(())
}

#[test]
fn manual_pages_are_written_for_the_program_and_each_verb() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().to_string_lossy().into_owned();
    run(twiddler_command().args(["man", "--dir", &path]))?;
    for page in [
        "twiddler",
        "twiddler-status",
        "twiddler-add-group",
        "twiddler-serve",
    ] {
        let text = std::fs::read_to_string(dir.path().join(format!("man1/{page}.1")))
            .with_context(|| page.to_owned())?;
        ensure!(text.contains(".TH"), "{page}");
    }
    let conf = std::fs::read_to_string(dir.path().join("man5/twiddler.conf.5"))?;
    for key in ["listen", "allow_open", "tls_cert", "persist", "log_level"] {
        let key = format!("\\fB{key}\\fR");
        ensure!(conf.contains(&key), "{key}: {conf}");
    }
    Ok(())
}

/// The output continues behind the lines that the log had before, after a restart, too.
#[test]
fn followed_logs_neither_repeat_nor_lose_lines() -> Result<()> {
    let script = "i=0; while :; do i=$((i+1)); echo line $i; sleep 0.1; done";
    let daemon = Daemon::start(&format!("[program:count]\ncommand=sh -c '{script}'\n"))?;
    let sidecar = Sidecar::start(&daemon)?;
    let server = proxy_url(&sidecar);
    let newest = || -> Result<usize> {
        let text = printed(&server, &["logs", "count", "-n", "1"])?;
        Ok(text.trim().rsplit(' ').next().unwrap_or_default().parse()?)
    };
    let reaches = |number: usize| {
        eventually(LIMIT, || {
            ensure!(newest()? >= number, "not yet");
            Ok(())
        })
    };
    reaches(20)?;
    for lines in ["0", "1", "5", "1000"] {
        let following = ["logs", "-f", "count", "-n", lines];
        let following = Process::spawn(&mut command(&server, &following))?;
        let shows = |number: usize| following.wait_for_stdout(&format!("line {number}\n"));
        // The stream may not have begun yet.
        following.wait_for_stdout("line ")?;
        shows(newest()? + 5)?;
        sidecar.kill()?;
        sidecar.start_again()?;
        let text = shows(newest()? + 5)?;
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        let numbers: Vec<usize> = whole
            .lines()
            .map(|line| Ok(line.trim_start_matches("line ").parse()?))
            .collect::<Result<_>>()?;
        let expected: Vec<usize> = (numbers[0]..).take(numbers.len()).collect();
        assert_eq!(numbers, expected, "-n {lines}");
    }
    Ok(())
}

#[test]
fn many_logs_are_followed_concurrently() -> Result<()> {
    const MANY: usize = 50;
    let body = format!(
        "
[program:many]
command=sh -c 'echo here %(process_num)d; exec cat'
process_name=%(process_num)02d
numprocs={MANY}
startsecs=0
"
    );
    let daemon = Daemon::start(&body)?;
    let sidecar = Sidecar::start(&daemon)?;
    let server = proxy_url(&sidecar);
    printed(
        &server,
        &["wait", "many:*", "--for", "running", "--timeout", "60"],
    )?;
    let following = Process::spawn(&mut command(&server, &["logs", "-f", "many:*"]))?;
    let all_are_here = |times: usize| {
        eventually(LIMIT, || {
            let text = following.stdout_text();
            let lines = text.lines().filter(|line| line.contains("| here ")).count();
            ensure!(lines == times * MANY, "{lines}");
            Ok(())
        })
    };
    all_are_here(1)?;
    printed(&server, &["restart", "many:*"])?;
    all_are_here(2)?;
    daemon.restart_rpc()?;
    all_are_here(3)?;
    following.signal("INT")?;
    following.wait()?;
    Ok(())
}
