//! `twiddler run`: the output, the exit status and Ctrl-C of a command that supervisord runs, and its removal
//! in all cases.

use std::process::Command;
use std::time::Duration;

use crate::common::ctl::python_command;
use crate::common::process::signals_of;
use crate::common::sidecar::verb_command;
use crate::common::terminal::{close_terminal, copy_environment, on_closing_terminal};
use crate::common::wait::eventually;
use crate::common::{
    Addr, Daemon, DaemonOptions, LIMIT, Process, Sidecar, member, number, options, run,
    stderr_text, stdout_text, value,
};
use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A program whose lease nobody holds is removed within this time.
const LEFTOVERS: Duration = Duration::from_secs(60);

const WEB: &str = "
[group:web]
programs=api

[program:api]
command=cat
";

fn twiddler(sidecar: &Sidecar, words: &[&str]) -> Command {
    verb_command(Addr::Unix(sidecar.socket()), words)
}

/// The exit status, the standard output and the standard error of `run`.
fn run_words(sidecar: &Sidecar, words: &[&str]) -> Result<(i32, String, String)> {
    let output = run(&mut twiddler(sidecar, &[&["run"], words].concat()))?;
    let code = output.status.code().context("ended by a signal")?;
    Ok((code, stdout_text(&output), stderr_text(&output)))
}

/// Fails unless the daemon has only the processes of its file.
fn ensure_nothing_left(daemon: &Daemon, sidecar: &Sidecar) -> Result<()> {
    let groups = sidecar.client().call("twiddler.getGroupNames", ())?;
    ensure!(groups == value(vec!["web"]), "{groups:?}");
    let infos = sidecar.client().call("supervisor.getAllProcessInfo", ())?;
    ensure!(infos.as_array().map(<[_]>::len) == Some(1), "{infos:?}");
    ensure!(daemon.state("web:api")? == "RUNNING");
    Ok(())
}

/// The namespec and the pid of the process that a run has started.
fn process_of(sidecar: &Sidecar) -> Result<(String, i64)> {
    eventually(LIMIT, || {
        let infos = sidecar.client().call("supervisor.getAllProcessInfo", ())?;
        for info in infos.as_array().unwrap_or_default() {
            let text = |name: &str| Some(info.get(name)?.as_str()?.to_owned());
            let name = text("name").context("no name")?;
            let pid = number(member(info, "pid")?)?;
            if name != "api" && pid > 0 {
                return Ok((format!("{}:{name}", text("group").unwrap_or_default()), pid));
            }
        }
        anyhow::bail!("no process: {infos:?}")
    })
}

fn runs(pid: i64) -> bool {
    std::path::Path::new(&format!("/proc/{pid}")).exists()
}

fn start() -> Result<(Daemon, Sidecar)> {
    let daemon = Daemon::start(WEB)?;
    let sidecar = Sidecar::start(&daemon)?;
    daemon.wait_for_state("web:api", "RUNNING")?;
    Ok((daemon, sidecar))
}

#[test]
fn output_and_exit_status_are_those_of_the_command() -> Result<()> {
    let (daemon, sidecar) = start()?;
    let script = "echo out 100%; echo err >&2; printf 'a\\377b\\033c'; exit 7";
    let output = run(&mut twiddler(&sidecar, &["run", "--", "sh", "-c", script]))?;
    assert_eq!(output.status.code(), Some(7));
    assert_eq!(output.stdout, b"out 100%\na\xffb\x1bc");
    assert_eq!(stderr_text(&output), "err\n");
    assert_eq!(
        run_words(&sidecar, &["--", "true"])?,
        (0, String::new(), String::new())
    );
    let (code, _, _) = run_words(&sidecar, &["--", "sh", "-c", "kill -SEGV $$"])?;
    assert_eq!(code, 139);
    let (code, _, stderr) = run_words(&sidecar, &["--", "/nonexistent/program"])?;
    assert_eq!(
        (code, stderr.contains("no such file")),
        (127, true),
        "{stderr}"
    );
    let (code, _, stderr) = run_words(&sidecar, &["--", "/etc/passwd"])?;
    assert_eq!(
        (code, stderr.contains("not executable")),
        (126, true),
        "{stderr}"
    );
    ensure_nothing_left(&daemon, &sidecar)
}

#[test]
fn a_large_output_arrives_completely_and_in_order() -> Result<()> {
    let (daemon, sidecar) = start()?;
    let (code, out, _) = run_words(&sidecar, &["--", "seq", "1", "300000"])?;
    assert_eq!(code, 0);
    let expected: String = (1..=300_000).map(|number| format!("{number}\n")).collect();
    ensure!(out == expected, "{} of {} bytes", out.len(), expected.len());
    ensure_nothing_left(&daemon, &sidecar)
}

#[test]
fn a_configured_log_is_copied_from_the_start_of_the_run() -> Result<()> {
    let (daemon, sidecar) = start()?;
    let log = daemon.dir().join("own.log");
    let option = format!("stdout_logfile={}", log.display());
    for _ in 0..2 {
        let words = [
            "-O",
            &option,
            "-O",
            "redirect_stderr=true",
            "--",
            "seq",
            "1",
            "3000",
        ];
        let (code, out, stderr) = run_words(&sidecar, &words)?;
        assert_eq!(code, 0, "{stderr}");
        ensure!(
            out.starts_with("1\n2\n") && out.ends_with("2999\n3000\n"),
            "{out}"
        );
        assert_eq!(out.lines().count(), 3000);
    }
    ensure_nothing_left(&daemon, &sidecar)
}

#[test]
fn mistakes_are_reported_before_the_command_runs() -> Result<()> {
    let (daemon, sidecar) = start()?;
    let (code, out, _) = run_words(
        &sidecar,
        &[
            "--group",
            "web",
            "--",
            "sh",
            "-c",
            "echo $SUPERVISOR_GROUP_NAME",
        ],
    )?;
    assert_eq!((code, out.as_str()), (0, "web\n"));
    for (words, code, stderr) in [
        (
            &["--group", "nobody", "--", "true"][..],
            1,
            "no such group: nobody",
        ),
        (
            &["-O", "autorestart=perhaps", "--", "true"],
            1,
            "autorestart",
        ),
        (
            &["-O", "numprocs=2", "--", "true"],
            2,
            "run sets numprocs itself",
        ),
        (
            &["-O", "user=a", "-O", "USER=b", "--", "true"],
            2,
            "user is given twice",
        ),
        (&["--"], 2, "required"),
    ] {
        let (status, _, text) = run_words(&sidecar, words)?;
        assert_eq!(
            (status, text.contains(stderr)),
            (code, true),
            "{words:?}: {text}"
        );
    }
    ensure_nothing_left(&daemon, &sidecar)
}

#[test]
fn ctrl_c_stops_the_process_by_its_own_signal() -> Result<()> {
    let (daemon, sidecar) = start()?;
    let script = "trap 'echo caught; exit 5' USR1; echo ready; while :; do sleep 0.05; done";
    let words = ["run", "-O", "stopsignal=USR1", "--", "sh", "-c", script];
    for signal in ["INT", "TERM", "HUP"] {
        let running = Process::spawn(&mut twiddler(&sidecar, &words))?;
        running.wait_for_stdout("ready\n")?;
        running.signal(signal)?;
        assert_eq!(running.wait()?.code(), Some(5), "{signal}");
        assert_eq!(running.stdout_text(), "ready\ncaught\n");
        ensure_nothing_left(&daemon, &sidecar)?;
    }
    let running = Process::spawn(&mut twiddler(&sidecar, &["run", "--", "cat"]))?;
    process_of(&sidecar)?;
    running.signal("INT")?;
    assert_eq!(running.wait()?.code(), Some(128 + 15));
    ensure_nothing_left(&daemon, &sidecar)
}

#[test]
fn a_second_ctrl_c_kills() -> Result<()> {
    let (daemon, sidecar) = start()?;
    let script = "trap '' TERM; echo ready; while :; do sleep 0.05; done";
    let words = ["run", "-O", "stopwaitsecs=600", "--", "sh", "-c", script];
    let running = Process::spawn(&mut twiddler(&sidecar, &words))?;
    running.wait_for_stdout("ready\n")?;
    running.signal("INT")?;
    running.wait_for_stderr("Ctrl-C again kills it")?;
    running.signal("INT")?;
    assert_eq!(running.wait()?.code(), Some(128 + 9));
    ensure_nothing_left(&daemon, &sidecar)
}

#[test]
fn nothing_is_left_when_the_reader_exits() -> Result<()> {
    let (daemon, sidecar) = start()?;
    let server = format!("unix://{}", sidecar.socket().display());
    let mut shell = Command::new("sh");
    let script = format!(
        "{} run -s {server} -- sh -c 'while echo x; do sleep 0.02; done' | head -n 3",
        env!("CARGO_BIN_EXE_twiddler")
    );
    let output = run(shell.args(["-c", &script]))?;
    assert_eq!(stdout_text(&output), "x\nx\nx\n");
    eventually(LIMIT, || ensure_nothing_left(&daemon, &sidecar))
}

#[test]
fn a_run_stops_its_process_after_its_terminal_is_closed() -> Result<()> {
    let (daemon, sidecar) = start()?;
    let (reader, writer) = std::io::pipe()?;
    drop(reader);
    let mut command = twiddler(&sidecar, &["run", "--", "cat"]);
    command.stdout(std::process::Stdio::null()).stderr(writer);
    let mut running = command.spawn()?;
    process_of(&sidecar)?;
    let pid = Pid::from_raw(running.id().try_into()?);
    kill(pid, Signal::SIGHUP)?;
    assert_eq!(running.wait()?.code(), Some(128 + 15));
    ensure_nothing_left(&daemon, &sidecar)
}

#[test]
fn nothing_is_left_when_the_terminal_is_closed() -> Result<()> {
    let (daemon, sidecar) = start()?;
    let script = "while echo x; do sleep 0.02; done";
    let command = twiddler(&sidecar, &["run", "--", "sh", "-c", script]);
    let running = on_closing_terminal(&command)?;
    process_of(&sidecar)?;
    close_terminal(&running)?;
    assert_eq!(running.wait()?.code(), Some(1));
    ensure_nothing_left(&daemon, &sidecar)
}

#[test]
fn a_run_behind_nohup_outlives_its_terminal() -> Result<()> {
    let (daemon, sidecar) = start()?;
    let script = "trap 'echo caught; exit 5' TERM; while echo on; do sleep 0.05; done";
    let command = twiddler(&sidecar, &["run", "--", "sh", "-c", script]);
    let mut nohup = Command::new("nohup");
    nohup.arg(command.get_program()).args(command.get_args());
    copy_environment(&command, &mut nohup);
    let running = Process::spawn(&mut nohup)?;
    running.wait_for_stdout("on\n")?;
    running.signal("HUP")?;
    let before = running.stdout_text().lines().count();
    eventually(LIMIT, || {
        let now = running.stdout_text().lines().count();
        ensure!(now > before + 10, "{now} lines: {}", running.stderr_text());
        Ok(())
    })?;
    running.signal("TERM")?;
    assert_eq!(running.wait()?.code(), Some(5));
    ensure!(running.stdout_text().ends_with("on\ncaught\n"));
    ensure_nothing_left(&daemon, &sidecar)
}

/// The proxy checks the lease three times while the process runs.
#[test]
fn a_run_may_take_longer_than_a_lease_that_nobody_holds() -> Result<()> {
    let (daemon, sidecar) = start()?;
    let words = ["run", "--", "sh", "-c", "sleep 28; echo done; exit 6"];
    let running = Process::spawn(&mut twiddler(&sidecar, &words))?;
    assert_eq!(running.wait_within(LEFTOVERS)?.code(), Some(6));
    assert_eq!(running.stdout_text(), "done\n");
    ensure_nothing_left(&daemon, &sidecar)
}

#[test]
fn the_program_of_a_killed_command_is_removed_within_a_minute() -> Result<()> {
    let (daemon, sidecar) = start()?;
    let words = ["run", "--", "sh", "-c", "trap '' HUP; exec sleep 1000"];
    let running = Process::spawn(&mut twiddler(&sidecar, &words))?;
    let inside = ["run", "--group", "web", "--", "sleep", "1000"];
    let (_, first) = process_of(&sidecar)?;
    let other = Process::spawn(&mut twiddler(&sidecar, &inside))?;
    eventually(LIMIT, || {
        let infos = sidecar.client().call("supervisor.getAllProcessInfo", ())?;
        ensure!(infos.as_array().map(<[_]>::len) == Some(3), "{infos:?}");
        Ok(())
    })?;
    running.kill()?;
    other.kill()?;
    ensure!(runs(first));
    eventually(LEFTOVERS, || {
        ensure!(!runs(first), "{first} still runs");
        ensure_nothing_left(&daemon, &sidecar)
    })
}

#[test]
fn a_group_without_its_program_is_removed_too() -> Result<()> {
    let (daemon, sidecar) = start()?;
    let client = sidecar.client();
    client.call("twiddler.addGroup", params!["half", 999])?;
    hold_for_an_instant(&sidecar, "half")?;
    eventually(LEFTOVERS, || ensure_nothing_left(&daemon, &sidecar))
}

#[test]
fn a_run_continues_while_the_proxy_restarts() -> Result<()> {
    let (daemon, sidecar) = start()?;
    let go = daemon.dir().join("go");
    let script = format!(
        "echo one; while test ! -e {}; do sleep 0.05; done; echo two; exit 4",
        go.display()
    );
    let running = Process::spawn(&mut twiddler(&sidecar, &["run", "--", "sh", "-c", &script]))?;
    running.wait_for_stdout("one\n")?;
    sidecar.kill()?;
    sidecar.start_again()?;
    std::fs::write(&go, "")?;
    assert_eq!(running.wait()?.code(), Some(4));
    assert_eq!(running.stdout_text(), "one\ntwo\n");
    ensure_nothing_left(&daemon, &sidecar)
}

#[test]
fn a_command_that_is_killed_while_the_proxy_is_down_leaves_nothing() -> Result<()> {
    let (daemon, sidecar) = start()?;
    let running = Process::spawn(&mut twiddler(&sidecar, &["run", "--", "sleep", "1000"]))?;
    let (_, pid) = process_of(&sidecar)?;
    sidecar.kill()?;
    running.kill()?;
    sidecar.start_again()?;
    ensure!(runs(pid));
    eventually(LEFTOVERS, || ensure_nothing_left(&daemon, &sidecar))
}

#[test]
fn a_restart_of_supervisord_ends_the_run() -> Result<()> {
    for arguments in [&[][..], &["--persist"]] {
        let daemon = Daemon::start(WEB)?;
        let sidecar = Sidecar::start_with(&daemon, arguments)?;
        let running = Process::spawn(&mut twiddler(&sidecar, &["run", "--", "sleep", "1000"]))?;
        process_of(&sidecar)?;
        daemon.restart_rpc()?;
        assert_eq!(running.wait()?.code(), Some(1), "{arguments:?}");
        let stderr = running.stderr_text();
        ensure!(stderr.contains("supervisord has started again"), "{stderr}");
        daemon.wait_for_state("web:api", "RUNNING")?;
        eventually(LIMIT, || ensure_nothing_left(&daemon, &sidecar))?;
    }
    Ok(())
}

#[test]
fn concurrent_runs_of_one_command_are_separate() -> Result<()> {
    let (daemon, sidecar) = start()?;
    let many: Vec<Process> = (0..8)
        .map(|number| {
            let script = format!("sleep 0.3; echo {number}; exit {number}");
            Process::spawn(&mut twiddler(&sidecar, &["run", "--", "sh", "-c", &script]))
        })
        .collect::<Result<_>>()?;
    for (number, running) in many.iter().enumerate() {
        assert_eq!(running.wait()?.code(), Some(i32::try_from(number)?));
        assert_eq!(running.stdout_text(), format!("{number}\n"));
    }
    ensure_nothing_left(&daemon, &sidecar)
}

#[test]
fn a_program_with_keep_stays() -> Result<()> {
    let (_daemon, sidecar) = start()?;
    let (code, out, _) = run_words(
        &sidecar,
        &["--keep", "--group", "web", "--", "echo", "kept"],
    )?;
    assert_eq!((code, out.as_str()), (0, "kept\n"));
    let status = stdout_text(&run(&mut twiddler(&sidecar, &["status", "web:echo-*"]))?);
    ensure!(status.contains("EXITED"), "{status}");
    Ok(())
}

#[test]
fn leases_require_credentials() -> Result<()> {
    let daemon = Daemon::start_with(DaemonOptions {
        body: WEB,
        credentials: Some(("user", "s3cret")),
        ..DaemonOptions::default()
    })?;
    let sidecar = Sidecar::start(&daemon)?;
    daemon.wait_for_state("web:api", "RUNNING")?;
    let mut command = twiddler(
        &sidecar,
        &["run", "-u", "user", "-p", "s3cret", "--", "sleep", "1000"],
    );
    let running = Process::spawn(&mut command)?;
    process_of(&sidecar)?;
    let mut stranger = Command::new("curl");
    stranger.args(["-s", "-o", "/dev/null", "-w", "%{http_code}"]);
    let url = format!("http://{}/twiddler/lease/x", sidecar.tcp_addr());
    assert_eq!(stdout_text(&run(stranger.arg(url))?), "401");
    running.kill()?;
    eventually(LEFTOVERS, || ensure_nothing_left(&daemon, &sidecar))
}

/// How long a command may run after a signal if its server does not answer. It should end after a second.
const LEAVING: Duration = Duration::from_secs(5);

/// Waits until a command catches signals.
fn wait_until_it_catches_signals(pid: u32) -> Result<()> {
    eventually(LIMIT, || {
        let caught = signals_of(pid, "SigCgt")?;
        ensure!(caught.contains(&(Signal::SIGTERM as i32)), "{caught:?}");
        Ok(())
    })
}

#[test]
fn a_signal_ends_a_run_whose_server_does_not_answer() -> Result<()> {
    let (daemon, sidecar) = start()?;
    let words = ["run", "--", "sh", "-c", "echo ready; exec cat"];
    let spawn = || Process::spawn(&mut twiddler(&sidecar, &words));
    let send = |to: &str, signal: &str| match to {
        "proxy" => sidecar.signal(signal),
        _ => daemon.signal(signal),
    };
    for (signal, code) in [("INT", 130), ("TERM", 143), ("HUP", 129)] {
        for server in ["proxy", "supervisord"] {
            send(server, "STOP")?;
            let adding = spawn()?;
            wait_until_it_catches_signals(adding.pid())?;
            adding.signal(signal)?;
            assert_eq!(adding.wait_within(LEAVING)?.code(), Some(code));
            let stderr = adding.stderr_text();
            ensure!(stderr.contains("has not said whether sh-"), "{stderr}");
            ensure!(stderr.contains("the proxy removes it"), "{stderr}");
            send(server, "CONT")?;

            let running = spawn()?;
            running.wait_for_stdout("ready\n")?;
            send(server, "STOP")?;
            running.signal(signal)?;
            assert_eq!(running.wait_within(LEAVING)?.code(), Some(code));
            let stderr = running.stderr_text();
            ensure!(
                stderr.contains("the proxy stops and removes it"),
                "{stderr}"
            );
            send(server, "CONT")?;
        }
    }
    eventually(2 * LEFTOVERS, || ensure_nothing_left(&daemon, &sidecar))
}

#[test]
fn a_signal_ends_a_run_whose_server_has_ended() -> Result<()> {
    let (_daemon, sidecar) = start()?;
    let words = ["run", "--keep", "--", "sh", "-c", "echo ready; exec cat"];
    let running = Process::spawn(&mut twiddler(&sidecar, &words))?;
    running.wait_for_stdout("ready\n")?;
    sidecar.kill()?;
    running.signal("INT")?;
    assert_eq!(running.wait_within(LEAVING)?.code(), Some(130));
    let stderr = running.stderr_text();
    ensure!(stderr.contains("`twiddler remove --stop sh-"), "{stderr}");
    Ok(())
}

#[test]
fn a_signal_ends_a_run_that_waits_for_a_slow_stop() -> Result<()> {
    let (daemon, sidecar) = start()?;
    let script = "trap '' TERM; while echo x; do sleep 0.05; done";
    let words = ["run", "-O", "stopwaitsecs=600", "--", "sh", "-c", script];
    let (reader, writer) = std::io::pipe()?;
    let mut command = twiddler(&sidecar, &words);
    let mut running = command
        .stdout(writer)
        .stderr(std::process::Stdio::piped())
        .spawn()?;
    drop(command);
    let (name, _) = process_of(&sidecar)?;
    drop(reader);
    daemon.wait_for_log("waiting for")?;
    ensure!(running.try_wait()?.is_none(), "it does not wait");
    let pid = Pid::from_raw(running.id().try_into()?);
    kill(pid, Signal::SIGINT)?;
    let status = eventually(LEAVING, || running.try_wait()?.context("it still runs"))?;
    assert_eq!(status.code(), Some(128 + 13));
    let mut text = String::new();
    let mut stderr = running.stderr.take().context("no standard error")?;
    std::io::Read::read_to_string(&mut stderr, &mut text)?;
    ensure!(
        text.contains("the proxy stops and removes it"),
        "{name}: {text}"
    );
    Ok(())
}

#[test]
fn a_signal_ends_a_run_whose_reader_is_stuck() -> Result<()> {
    let (daemon, sidecar) = start()?;
    let (_reader, writer) = std::io::pipe()?;
    let mut command = twiddler(&sidecar, &["run", "--", "yes"]);
    let mut running = command.stdout(writer).spawn()?;
    process_of(&sidecar)?;
    let pid = Pid::from_raw(running.id().try_into()?);
    let status = eventually(LIMIT, || {
        kill(pid, Signal::SIGTERM)?;
        running.try_wait()?.context("it still runs")
    })?;
    ensure!(status.code().is_some(), "{status}");
    eventually(LEFTOVERS, || ensure_nothing_left(&daemon, &sidecar))
}

/// Holds a lease for a moment.
fn hold_for_an_instant(sidecar: &Sidecar, name: &str) -> Result<()> {
    let request = format!("GET /twiddler/lease/{name} HTTP/1.1\r\nHost: localhost\r\n\r\n");
    let mut stream = std::net::TcpStream::connect(sidecar.tcp_addr())?;
    std::io::Write::write_all(&mut stream, request.as_bytes())?;
    let mut first = [0; 15];
    std::io::Read::read_exact(&mut stream, &mut first)?;
    assert_eq!(&first, b"HTTP/1.1 200 OK");
    Ok(())
}

#[test]
fn a_lease_ends_whatever_callers_may_do() -> Result<()> {
    let daemon = Daemon::start(WEB)?;
    let allowed = "supervisor.get*,supervisor.tail*,supervisor.startProcess,system.multicall,\
                   twiddler.add*,twiddler.getGroupNames";
    let whitelist = "addGroup,addProcessToGroup,getGroupNames";
    let sidecar = Sidecar::start_with(&daemon, &["--allow", allowed, "--whitelist", whitelist])?;
    daemon.wait_for_state("web:api", "RUNNING")?;
    // An empty group stays when a lease with its name ends, because any caller can hold such a lease.
    sidecar
        .client()
        .call("twiddler.addGroup", params!["kept", 999])?;
    hold_for_an_instant(&sidecar, "kept")?;
    for group in [&[][..], &["--group", "web"]] {
        let words = [&["run"], group, &["--", "sleep", "1000"]].concat();
        let running = Process::spawn(&mut twiddler(&sidecar, &words))?;
        process_of(&sidecar)?;
        running.kill()?;
    }
    eventually(LEFTOVERS, || {
        let infos = daemon.call("supervisor.getAllProcessInfo", ())?;
        ensure!(infos.as_array().map(<[_]>::len) == Some(1), "{infos:?}");
        Ok(())
    })?;
    sidecar.wait_for_stderr("cannot remove what the lease kept has left")?;
    let groups = sidecar.client().call("twiddler.getGroupNames", ())?;
    assert_eq!(groups, value(vec!["kept", "web"]));
    Ok(())
}

#[test]
fn a_lease_ends_while_another_one_waits_for_a_slow_stop() -> Result<()> {
    let (daemon, sidecar) = start()?;
    let slow = "trap '' TERM; echo ready; while :; do sleep 0.05; done";
    let words = ["run", "-O", "stopwaitsecs=600", "--", "sh", "-c", slow];
    let slow = Process::spawn(&mut twiddler(&sidecar, &words))?;
    slow.wait_for_stdout("ready\n")?;
    slow.kill()?;
    eventually(LEFTOVERS, || {
        ensure!(daemon.log().contains("waiting for"), "it is not stopped");
        Ok(())
    })?;
    let words = ["run", "--", "sh", "-c", "echo ready; exec cat"];
    let quick = Process::spawn(&mut twiddler(&sidecar, &words))?;
    quick.wait_for_stdout("ready\n")?;
    quick.kill()?;
    eventually(LEFTOVERS, || {
        let infos = sidecar.client().call("supervisor.getAllProcessInfo", ())?;
        ensure!(infos.as_array().map(<[_]>::len) == Some(2), "{infos:?}");
        Ok(())
    })
}

/// Holds a lease, and vanishes when it reads a line: a packet filter drops all packets of the connection, as
/// after a power cut. The other end gets no FIN.
const VANISHING: &str = "
import ctypes, socket, struct, sys
host, port, name = sys.argv[1:]
holder = socket.create_connection((host, int(port)))
holder.sendall(b'GET /twiddler/lease/%s HTTP/1.1\\r\\nHost: localhost\\r\\n\\r\\n' % name.encode())
print(holder.recv(15).decode(), flush=True)
sys.stdin.readline()
SO_ATTACH_FILTER, RETURN = 26, 6
nothing = ctypes.create_string_buffer(struct.pack('HBBI', RETURN, 0, 0, 0))
holder.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack('HP', 1, ctypes.addressof(nothing)))
print('gone', flush=True)
sys.stdin.readline()
";

#[test]
fn a_lease_ends_when_its_holder_vanishes_without_a_fin() -> Result<()> {
    let (daemon, sidecar) = start()?;
    let client = sidecar.client();
    let program = options(&[("command", "sleep 1000"), ("twiddler_lease", "far")]);
    client.call("twiddler.addProcessToGroup", ("web", "far", program))?;
    let address = sidecar.tcp_addr();
    let mut command = python_command(VANISHING);
    command.args([
        &address.ip().to_string(),
        &address.port().to_string(),
        "far",
    ]);
    let holder = Process::spawn(&mut command)?;
    holder.wait_for_stdout("HTTP/1.1 200 OK")?;
    holder.write(b"\n")?;
    holder.wait_for_stdout("gone")?;
    eventually(LEFTOVERS, || ensure_nothing_left(&daemon, &sidecar))
}

#[test]
fn the_program_of_a_process_that_keeps_restarting_is_removed_too() -> Result<()> {
    let (daemon, sidecar) = start()?;
    let script = "echo again; sleep 0.02";
    let words = ["run", "-O", "autorestart=true", "--", "sh", "-c", script];
    let runs: Vec<Process> = (0..6)
        .map(|_| Process::spawn(&mut twiddler(&sidecar, &words)))
        .collect::<Result<_>>()?;
    for running in runs {
        running.wait_for_stdout("again\nagain\n")?;
        running.kill()?;
    }
    eventually(LEFTOVERS, || ensure_nothing_left(&daemon, &sidecar))
}

#[test]
fn a_run_of_a_process_that_keeps_restarting_goes_on_and_can_be_stopped() -> Result<()> {
    let (daemon, sidecar) = start()?;
    let script = "echo again; exit 3";
    let words = ["run", "-O", "autorestart=true", "--", "sh", "-c", script];
    for _ in 0..3 {
        let running = Process::spawn(&mut twiddler(&sidecar, &words))?;
        // Longer than `run` waits for a restart of the process.
        running.wait_for_stdout(&"again\n".repeat(5))?;
        eventually(LIMIT, || {
            let times = running.stdout_text().matches("again").count();
            ensure!(times > 8, "{times}: {}", running.stderr_text());
            Ok(())
        })?;
        running.signal("INT")?;
        running.wait()?;
        ensure_nothing_left(&daemon, &sidecar)?;
    }
    Ok(())
}
