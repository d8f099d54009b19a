//! The command line on a terminal: colours, widths, the spinner, Ctrl-C, and completion in bash, zsh and fish.

use std::process::Command;
use std::time::Duration;

use crate::common::sidecar::{twiddler_command, verb_command};
use crate::common::terminal::{CTRL_C, on_terminal, without_escapes};
use crate::common::tools::{FISH, Tool, ZSH, have};
use crate::common::{Daemon, LIMIT, Process, Sidecar, eventually, run, stderr_text};
use crate::verbs::PROGRAMS;
use anyhow::{Result, ensure};

const SLOW: &str = "
[program:slow]
command=sh -c 'trap \"sleep 2; exit\" TERM; while :; do sleep 0.05; done'
startsecs=0
";

fn twiddler(daemon: &Daemon, words: &[&str]) -> Command {
    verb_command(daemon.addr(), words)
}

/// The output of a verb on a terminal with this many columns.
fn shown(columns: u16, command: &Command) -> Result<String> {
    let terminal = on_terminal(columns, command)?;
    terminal.wait()?;
    Ok(terminal.stdout_text())
}

fn start() -> Result<Daemon> {
    let daemon = Daemon::start(&format!("{PROGRAMS}{SLOW}"))?;
    for name in ["web:api", "web:worker_0", "web:worker_1", "slow"] {
        daemon.wait_for_state(name, "RUNNING")?;
    }
    Ok(daemon)
}

#[test]
fn colours_depend_on_the_terminal_and_on_options() -> Result<()> {
    let daemon = start()?;
    let green = "\u{1b}[38;5;10m";
    let text = shown(100, &twiddler(&daemon, &["status"]))?;
    ensure!(text.contains(green), "{text:?}");
    let mut quiet = twiddler(&daemon, &["status"]);
    let text = shown(100, quiet.env("NO_COLOR", "1"))?;
    ensure!(
        text.contains("RUNNING") && !text.contains('\u{1b}'),
        "{text:?}"
    );
    let mut dumb = twiddler(&daemon, &["status"]);
    let text = shown(100, dumb.env("TERM", "dumb"))?;
    ensure!(
        text.contains("RUNNING") && !text.contains('\u{1b}'),
        "{text:?}"
    );
    let text = shown(100, &twiddler(&daemon, &["status", "--color", "never"]))?;
    ensure!(
        text.contains("RUNNING") && !text.contains('\u{1b}'),
        "{text:?}"
    );
    let mut always = twiddler(&daemon, &["status", "--color", "always"]);
    let text = shown(100, always.env("NO_COLOR", "1"))?;
    ensure!(text.contains(green), "{text:?}");
    Ok(())
}

#[test]
fn tables_fit_the_terminal() -> Result<()> {
    let daemon = start()?;
    for columns in [25, 34, 40, 50, 100] {
        let text = without_escapes(&shown(columns, &twiddler(&daemon, &["status"]))?);
        ensure!(text.contains("web:worker_1"), "{text:?}");
        for line in text.lines() {
            // No column is so narrow that its text is one letter a line.
            let words = line.trim_end().trim_start_matches(' ');
            ensure!(words.len() > 1, "{text}");
            ensure!(
                line.trim_end().chars().count() <= usize::from(columns),
                "{line:?}"
            );
        }
    }
    Ok(())
}

#[test]
fn a_long_wait_shows_its_processes() -> Result<()> {
    let daemon = start()?;
    let text = shown(100, &twiddler(&daemon, &["stop", "slow"]))?;
    ensure!(text.contains("waiting for slow to stop"), "{text:?}");
    ensure!(without_escapes(&text).contains("slow: stopped"), "{text:?}");
    // The spinner does not appear for a quick verb, nor without a terminal.
    let text = shown(100, &twiddler(&daemon, &["stop", "web:api"]))?;
    ensure!(!text.contains("waiting"), "{text:?}");
    run(&mut twiddler(&daemon, &["start", "slow"]))?;
    let output = run(&mut twiddler(&daemon, &["stop", "slow"]))?;
    ensure!(stderr_text(&output).is_empty(), "{}", stderr_text(&output));
    Ok(())
}

#[test]
fn ctrl_c_on_the_terminal_stops_the_process_of_run() -> Result<()> {
    let daemon = start()?;
    let sidecar = Sidecar::start(&daemon)?;
    let server = format!("unix://{}", sidecar.socket().display());
    let script = "trap 'echo caught; exit 5' INT; echo ready; while :; do sleep 0.05; done";
    let words = ["run", "-O", "stopsignal=INT", "--", "sh", "-c", script];
    let command = || {
        let mut command = twiddler(&daemon, &words);
        command.env("TWIDDLER_SERVER", &server);
        command
    };
    let before = sidecar.client().call("twiddler.getGroupNames", ())?;
    let nothing_left = || -> Result<()> {
        let groups = sidecar.client().call("twiddler.getGroupNames", ())?;
        ensure!(groups == before, "{groups:?}");
        Ok(())
    };
    let running = on_terminal(80, &command())?;
    running.wait_for_stdout("ready")?;
    running.write(CTRL_C)?;
    assert_eq!(running.wait()?.code(), Some(5));
    ensure!(running.stdout_text().contains("caught"));
    nothing_left()?;
    // The kill closes the terminal.
    let running = on_terminal(80, &command())?;
    running.wait_for_stdout("ready")?;
    running.kill()?;
    eventually(LIMIT, nothing_left)
}

#[test]
fn ctrl_c_between_batches_of_a_rolling_restart_is_safe() -> Result<()> {
    let daemon = Daemon::start(
        "[program:roll]\ncommand=cat\nprocess_name=%(process_num)d\nnumprocs=4\nstartsecs=1\n",
    )?;
    for number in 0..4 {
        daemon.wait_for_state(&format!("roll:{number}"), "RUNNING")?;
    }
    let words = ["restart", "roll:*", "--rolling", "1"];
    let rolling = on_terminal(100, &twiddler(&daemon, &words))?;
    rolling.wait_for_stdout("roll:0: restarted")?;
    rolling.write(CTRL_C)?;
    assert_eq!(rolling.wait()?.code(), Some(130));
    let text = without_escapes(&rolling.stdout_text());
    ensure!(text.contains("not restarted: roll:"), "{text:?}");
    for number in 0..4 {
        assert_eq!(daemon.state(&format!("roll:{number}"))?, "RUNNING");
    }
    Ok(())
}

/// The key that deletes the line.
const LINE_AWAY: &str = "\x15";
/// How long one attempt to complete may take.
const ONE_TRY: Duration = Duration::from_secs(4);

/// A shell on a terminal that completes the words of `twiddler`.
struct Shell {
    terminal: Process,
}

impl Shell {
    fn start(daemon: &Daemon, words: &[&str], set_up: &str) -> Result<Self> {
        let mut command = Command::new(words[0]);
        let binary = std::path::Path::new(env!("CARGO_BIN_EXE_twiddler"));
        let dir = binary.parent().unwrap_or(binary);
        let path = std::env::var("PATH").unwrap_or_default();
        command
            .args(&words[1..])
            .env("PATH", format!("{}:{path}", dir.display()))
            .env("HOME", daemon.dir())
            .env(
                "TWIDDLER_SERVER",
                format!("unix://{}", daemon.socket().display()),
            );
        let terminal = on_terminal(200, &command)?;
        // The quotes make the typed text differ from the expected output.
        terminal.write(format!("{set_up}; echo compl''etes\n").as_bytes())?;
        terminal.wait_for_stdout("completes")?;
        Ok(Shell { terminal })
    }

    /// Types words and presses the key for completion until the line contains `expected`. It tries again, because
    /// a busy server may answer too late.
    fn completes(&self, words: &str, expected: &str) -> Result<()> {
        eventually(LIMIT, || {
            let before = self.terminal.stdout_text().len();
            let line = format!("{LINE_AWAY}{words}\t");
            self.terminal.write(line.as_bytes())?;
            eventually(ONE_TRY, || {
                let text = self.terminal.stdout_text();
                let text = without_escapes(&text[before..]);
                ensure!(text.contains(expected), "{words:?}: {text:?}");
                Ok(())
            })
        })
    }

    /// Fails unless the shell lists these candidates.
    fn lists(&self, words: &str, expected: &[&str]) -> Result<()> {
        for expected in expected {
            self.completes(&format!("{words}\t"), expected)?;
        }
        Ok(())
    }
}

fn completes_names(words: &[&str], set_up: &str) -> Result<()> {
    let daemon = start()?;
    let shell = Shell::start(&daemon, words, set_up)?;
    shell.completes("twiddler stat", "status")?;
    shell.completes("twiddler start l", "lone")?;
    shell.completes("twiddler start web:a", "api")?;
    shell.completes("twiddler -o json start lone web:a", "api")?;
    shell.lists("twiddler stop web:worker_", &["worker_0", "worker_1"])
}

fn if_installed(tool: Tool, words: &[&str], set_up: &str) -> Result<()> {
    if have(&[tool])? {
        completes_names(words, set_up)
    } else {
        Ok(())
    }
}

#[test]
fn bash_completes_names_of_the_server() -> Result<()> {
    completes_names(
        &["bash", "--norc", "-i"],
        "source <(twiddler completions bash)",
    )
}

#[test]
fn zsh_completes_names_of_the_server() -> Result<()> {
    let set_up = "autoload -Uz compinit && compinit -u && source <(twiddler completions zsh)";
    if_installed(ZSH, &["zsh", "-f", "-i"], set_up)
}

#[test]
fn fish_completes_names_of_the_server() -> Result<()> {
    let set_up = "twiddler completions fish | source";
    if_installed(FISH, &["fish", "--no-config", "-i"], set_up)
}

/// Completion does not block the shell if the server does not answer.
#[test]
fn completion_gives_up_soon() -> Result<()> {
    let silent = std::net::TcpListener::bind("127.0.0.1:0")?;
    let mut command = twiddler_command();
    let server = format!("http://{}", silent.local_addr()?);
    command
        .env("COMPLETE", "fish")
        .args(["--", "twiddler", "-s", &server, "start", "x"]);
    let completing = Process::spawn(&mut command)?;
    completing.wait_within(Duration::from_secs(5))?;
    Ok(())
}
