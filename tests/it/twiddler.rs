//! The `twiddler` namespace: each method, each fault, and that a refused call changes nothing.

mod refusals;
mod values;

use std::fs;

use crate::common::include::ensure_include_holds;
use crate::common::values::{TWIDDLER_METHODS, column, fault_in};
use crate::common::{
    Client, Daemon, DaemonOptions, Sidecar, ensure_fault, eventually, items, member, options, rows,
    text, texts, value,
};
use anyhow::{Context, Result, ensure};
use supervisor_twiddler::xmlrpc::Value;

/// A user's configuration with one group of each kind.
const USER: &str = "\
[group:web]
programs = a,b
priority = 5

[program:a]
command = /bin/sleep 600
startsecs = 0

[program:b]
command = /bin/sleep 600
autostart = false

[program:lone]
command = /bin/sleep 600
startsecs = 0

[group:empty]
programs =
";
const USER_GROUPS: [&str; 3] = ["web", "lone", "empty"];

const UNKNOWN_METHOD: i32 = 1;
const INCORRECT_PARAMETERS: i32 = 2;
const SIGNATURE_UNSUPPORTED: i32 = 4;
const SHUTDOWN_STATE: i32 = 6;
const BAD_NAME: i32 = 10;
const FAILED: i32 = 30;
const STILL_RUNNING: i32 = 91;
const CANT_REREAD: i32 = 92;
const NOT_IN_WHITELIST: i32 = 230;

/// A daemon with [`USER`]'s programs, and the sidecar in front of it.
fn front() -> Result<(Daemon, Sidecar, Client)> {
    let daemon = Daemon::start(USER)?;
    daemon.wait_for_state("web:a", "RUNNING")?;
    daemon.wait_for_state("lone", "RUNNING")?;
    let sidecar = Sidecar::start(&daemon)?;
    let client = sidecar.client().kept_alive();
    Ok((daemon, sidecar, client))
}

fn sleeper() -> Value {
    options(&[
        ("command", "/bin/sleep 600"),
        ("autostart", "false"),
        ("startsecs", "0"),
    ])
}

fn group_names(client: &Client) -> Result<Vec<String>> {
    let names = client.call("twiddler.getGroupNames", ())?;
    Ok(texts(&names)?.into_iter().map(str::to_owned).collect())
}

fn namespecs(client: &Client) -> Result<Vec<String>> {
    Ok(rows(client)?
        .iter()
        .map(crate::common::Row::namespec)
        .collect())
}

/// After a restart, the daemon has only the user's programs.
fn ensure_restarts_cleanly(daemon: &Daemon) -> Result<()> {
    daemon.restart_rpc()?;
    ensure!(namespecs(&daemon.client())? == ["lone:lone", "web:a", "web:b"]);
    daemon.kill_and_start_again()?;
    ensure!(namespecs(&daemon.client())? == ["lone:lone", "web:a", "web:b"]);
    Ok(())
}

// --- What works ---

#[test]
fn the_api_version_is_that_of_the_original() -> Result<()> {
    let (_daemon, _sidecar, client) = front()?;
    let version = client.call("twiddler.getAPIVersion", ())?;
    ensure!(version == value("1.0"), "{version:?}");
    Ok(())
}

#[test]
fn all_groups_are_listed_with_empty_ones() -> Result<()> {
    let (daemon, _sidecar, client) = front()?;
    ensure!(group_names(&client)? == ["empty", "lone", "web"]);
    client.call("twiddler.addGroup", ("added", "7"))?;
    client.call("twiddler.addProcessToGroup", ("web", "c", sleeper()))?;
    client.call("twiddler.addProcessToGroup", ("empty", "c", sleeper()))?;
    ensure!(group_names(&client)? == ["added", "empty", "lone", "web"]);

    // Directly on the daemon.
    daemon.call("supervisor.stopProcess", ("lone",))?;
    daemon.call("supervisor.removeProcessGroup", ("lone",))?;
    ensure!(group_names(&client)? == ["added", "empty", "web"]);
    daemon.write(
        "conf.d/more.conf",
        "[program:more]\ncommand = /bin/sleep 600\n",
    )?;
    daemon.call("supervisor.reloadConfig", ())?;
    daemon.call("supervisor.addProcessGroup", ("more",))?;
    ensure!(group_names(&client)? == ["added", "empty", "more", "web"]);
    Ok(())
}

#[test]
fn processes_of_one_program_are_added_together_and_removed_one_by_one() -> Result<()> {
    let (daemon, _sidecar, client) = front()?;
    let program = options(&[
        ("command", value("/bin/sleep 600")),
        ("numprocs", value(3)),
        ("process_name", value("%(program_name)s_%(process_num)02d")),
        ("numprocs_start", value(7)),
        ("autostart", value(false)),
    ]);
    client.call("twiddler.addGroup", ("g", 1))?;
    for group in ["g", "web"] {
        client.call("twiddler.addProgramToGroup", (group, "p", &program))?;
    }
    let expected = [
        "g:p_07",
        "g:p_08",
        "g:p_09",
        "lone:lone",
        "web:a",
        "web:b",
        "web:p_07",
        "web:p_08",
        "web:p_09",
    ];
    ensure!(namespecs(&client)? == expected, "{:?}", namespecs(&client)?);
    let fault = client.expect_fault("twiddler.addProgramToGroup", ("web", "p", &program))?;
    ensure_fault(&fault, BAD_NAME, "BAD_NAME: p_07")?;

    for group in ["g", "web"] {
        for process in ["p_08", "p_07", "p_09"] {
            client.call("twiddler.removeProcessFromGroup", (group, process))?;
            let fault = client.expect_fault("twiddler.removeProcessFromGroup", (group, process))?;
            ensure_fault(&fault, BAD_NAME, &format!("BAD_NAME: {process}"))?;
        }
    }
    ensure!(namespecs(&client)? == ["lone:lone", "web:a", "web:b"]);
    ensure!(namespecs(&daemon.client())? == ["lone:lone", "web:a", "web:b"]);
    ensure!(group_names(&client)? == ["empty", "g", "lone", "web"]);
    Ok(())
}

#[test]
fn an_autostarting_program_runs_at_once() -> Result<()> {
    let (_daemon, _sidecar, client) = front()?;
    client.call("twiddler.addGroup", ("g", 1))?;
    let program = options(&[("command", "/bin/sleep 600"), ("startsecs", "0")]);
    for group in ["g", "web", "lone"] {
        client.call("twiddler.addProcessToGroup", (group, "p", &program))?;
        let name = format!("{group}:p");
        eventually(crate::common::LIMIT, || {
            let info = client.call("supervisor.getProcessInfo", (&name,))?;
            let state = text(member(&info, "statename")?)?;
            ensure!(state == "RUNNING", "{name} is {state}");
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn a_removed_group_is_gone_and_its_name_is_free() -> Result<()> {
    let (daemon, _sidecar, client) = front()?;
    client.call("twiddler.addGroup", ("g", 1))?;
    client.call("twiddler.addProcessToGroup", ("g", "p", sleeper()))?;
    client.call("twiddler.addProcessToGroup", ("g", "q", sleeper()))?;
    client.call("supervisor.startProcess", ("g:q",))?;
    client.call("supervisor.startProcess", ("g:p",))?;
    let running = client.expect_fault("twiddler.removeGroup", ("g",))?;
    ensure_fault(&running, STILL_RUNNING, "STILL_RUNNING: p")?;
    client.call("supervisor.stopProcess", ("g:p",))?;
    let running = client.expect_fault("twiddler.removeGroup", ("g",))?;
    ensure_fault(&running, STILL_RUNNING, "STILL_RUNNING: q")?;
    client.call("supervisor.stopProcess", ("g:q",))?;
    client.call("twiddler.removeGroup", ("g",))?;
    let fault = client.expect_fault("twiddler.removeGroup", ("g",))?;
    ensure_fault(&fault, BAD_NAME, "BAD_NAME: group: g")?;
    ensure!(namespecs(&daemon.client())? == ["lone:lone", "web:a", "web:b"]);
    ensure!(group_names(&client)? == ["empty", "lone", "web"]);
    client.call("twiddler.addGroup", ("g", 2))?;
    client.call("twiddler.addProcessToGroup", ("g", "p", sleeper()))?;
    Ok(())
}

#[test]
fn a_group_of_the_users_file_can_be_removed_and_added_again() -> Result<()> {
    let (daemon, _sidecar, client) = front()?;
    client.call("twiddler.addProcessToGroup", ("web", "c", sleeper()))?;
    client.call("supervisor.stopProcess", ("web:a",))?;
    client.call("twiddler.removeGroup", ("web",))?;
    ensure!(namespecs(&daemon.client())? == ["lone:lone"]);
    ensure!(group_names(&client)? == ["empty", "lone"]);
    client.call("supervisor.reloadConfig", ())?;
    client.call("supervisor.addProcessGroup", ("web",))?;
    ensure!(namespecs(&client)? == ["lone:lone", "web:a", "web:b"]);
    Ok(())
}

// --- Who may call ---

fn ensure_strangers_are_rejected(sidecar: &Sidecar, daemon: &Daemon) -> Result<()> {
    let direct = Client::new(daemon.addr());
    let strangers = [
        Client::new(sidecar.tcp_addr()),
        Client::new(sidecar.tcp_addr()).with_credentials("user", "wrong"),
        Client::new(sidecar.socket()),
    ];
    for stranger in strangers {
        let calls = [
            ("twiddler.getAPIVersion", params![]),
            ("twiddler.getGroupNames", params![]),
            ("twiddler.addGroup", params!["h", 1]),
            ("twiddler.addProcessToGroup", params!["web", "p", sleeper()]),
            (
                "twiddler.addProcessToGroup",
                params!["nope", "p", sleeper()],
            ),
            ("twiddler.removeProcessFromGroup", params!["web", "b"]),
            ("twiddler.removeGroup", params!["empty"]),
            ("twiddler.log", params!["x"]),
            ("twiddler.nope", params![]),
            ("system.listMethods", params![]),
            ("system.methodHelp", params!["twiddler.log"]),
            ("supervisor.removeProcessGroup", params!["empty"]),
            ("supervisor.startProcessGroup", params!["web"]),
            ("supervisor.stopAllProcesses", params![]),
            ("supervisor.getAllProcessInfo", params![]),
            (
                "system.multicall",
                params![vec![options(&[
                    ("methodName", value("twiddler.addGroup")),
                    ("params", value(vec![value("h"), value(1)])),
                ])]],
            ),
        ];
        for (method, params) in calls {
            let error = stranger
                .call(method, params)
                .expect_err("a stranger was let in");
            ensure!(error.status() == Some(401), "{method}: {error}");
            if let crate::common::CallError::Http(reply) = error {
                let challenge = direct.post_call(b"<methodCall/>")?;
                ensure!(reply.header("WWW-Authenticate") == challenge.header("WWW-Authenticate"));
                ensure!(reply.body == challenge.body, "{reply:?}");
            }
        }
    }
    Ok(())
}

fn ensure_only_known_callers(daemon: &Daemon, sidecar: &Sidecar, password: &str) -> Result<()> {
    ensure_strangers_are_rejected(sidecar, daemon)?;
    let client = Client::new(sidecar.tcp_addr()).with_credentials("user", password);
    client.call("twiddler.addGroup", ("g", 1))?;
    client.call("twiddler.addProcessToGroup", ("web", "c", sleeper()))?;
    client.call("supervisor.stopAllProcesses", ())?;
    client.call("twiddler.removeProcessFromGroup", ("web", "a"))?;
    client.call("supervisor.startProcessGroup", ("web",))?;
    client.call("supervisor.stopProcessGroup", ("web",))?;
    let shown = namespecs(&client)?;
    ensure!(shown == ["lone:lone", "web:b", "web:c"], "{shown:?}");
    // The credentials of one caller do not authorize another.
    ensure_strangers_are_rejected(sidecar, daemon)?;
    ensure!(group_names(&client)? == ["empty", "g", "lone", "web"]);
    ensure!(namespecs(&client)? == shown);
    ensure_include_holds(daemon, &[])
}

#[test]
fn strangers_are_rejected_if_the_proxy_knows_the_password() -> Result<()> {
    let daemon = Daemon::start_with(DaemonOptions {
        body: USER,
        credentials: Some(("user", "pass:w%rd")),
        ..DaemonOptions::default()
    })?;
    let sidecar = Sidecar::start(&daemon)?;
    ensure_only_known_callers(&daemon, &sidecar, "pass:w%rd")
}

/// The proxy starts with this text about the password in the file, which differs from the daemon's.
fn ensure_only_callers_with_the_password(in_file_now: &str) -> Result<()> {
    let daemon = Daemon::start_with(DaemonOptions {
        body: USER,
        credentials: Some(("user", "secret")),
        ..DaemonOptions::default()
    })?;
    let conf = daemon.read("supervisord.conf")?;
    daemon.write(
        "supervisord.conf",
        &conf.replace("username = user\npassword = secret\n", in_file_now),
    )?;
    let sidecar = Sidecar::start(&daemon)?;
    ensure_only_known_callers(&daemon, &sidecar, "secret")
}

#[test]
fn strangers_are_rejected_if_the_proxy_knows_no_password() -> Result<()> {
    ensure_only_callers_with_the_password("")
}

#[test]
fn strangers_are_rejected_if_the_proxy_knows_only_the_hash_of_the_password() -> Result<()> {
    let hash = "e5e9fa1ba31ecd1ae84f75caaa474f3a663f05f4"; // of `secret`
    ensure_only_callers_with_the_password(&format!("username = user\npassword = {{SHA}}{hash}\n"))
}

// --- Introspection ---

#[test]
fn the_methods_are_listed_and_described_beside_the_daemons() -> Result<()> {
    let (daemon, _sidecar, client) = front()?;
    let listed = client.call("system.listMethods", ())?;
    let names = texts(&listed)?;
    let direct = daemon.call("system.listMethods", ())?;
    let ours: Vec<&str> = names
        .iter()
        .copied()
        .filter(|name| name.starts_with("twiddler."))
        .collect();
    let expected = TWIDDLER_METHODS.map(|name| format!("twiddler.{name}"));
    ensure!(ours == expected, "{ours:?}");
    let mut all = [texts(&direct)?, ours.clone()].concat();
    all.sort_unstable();
    ensure!(names == all, "{names:?}");

    for name in names {
        let help = client.call("system.methodHelp", (name,))?;
        if !ours.contains(&name) {
            ensure!(help == daemon.call("system.methodHelp", (name,))?, "{name}");
            continue;
        }
        // The daemon reads the types from the help text.
        let help = text(&help)?;
        let kind = |line: &str| line.split_whitespace().nth(1).map(str::to_owned);
        let tagged = |tag: &str| -> Vec<String> {
            help.lines()
                .filter(|line| line.trim().starts_with(tag))
                .filter_map(|line| kind(line.trim()))
                .collect()
        };
        let signature = client.call("system.methodSignature", (name,))?;
        ensure!(
            texts(&signature)? == [tagged("@return"), tagged("@param")].concat(),
            "{name}: {signature:?}\n{help}"
        );
    }
    for method in ["system.methodHelp", "system.methodSignature"] {
        for name in ["twiddler.nope", "twiddler", "nope"] {
            let fault = client.expect_fault(method, (name,))?;
            ensure_fault(&fault, SIGNATURE_UNSUPPORTED, "SIGNATURE_UNSUPPORTED")?;
        }
        for params in [params![], params!["twiddler.log", 1]] {
            let fault = client.expect_fault(method, params.clone())?;
            ensure!(fault == daemon.expect_fault(method, params)?);
        }
    }
    let fault = client.expect_fault("system.listMethods", (1, 2))?;
    ensure!(fault == daemon.expect_fault("system.listMethods", (1, 2))?);
    Ok(())
}

#[test]
fn a_multicall_mixes_namespaces_in_order_and_in_the_daemons_forms() -> Result<()> {
    let (daemon, _sidecar, client) = front()?;
    let calls = [
        ("twiddler.getAPIVersion", params![]),
        ("supervisor.getState", params![]),
        ("twiddler.addGroup", params!["g", 1]),
        ("twiddler.addGroup", params!["g", 1]),
        ("twiddler.nope", params![]),
        ("supervisor.nope", params![]),
        ("system.multicall", params![Vec::<Value>::new()]),
        ("twiddler.addProcessToGroup", params!["g", "p", sleeper()]),
        ("twiddler.addProcessToGroup", params!["web", "p", sleeper()]),
        ("twiddler.addProcessToGroup", params!["web", "p", sleeper()]),
        ("supervisor.startProcess", params!["g:p"]),
        ("supervisor.startProcess", params!["web:p"]),
        ("supervisor.startProcess", params!["web:p"]),
        ("twiddler.removeProcessFromGroup", params!["web", "p"]),
        ("supervisor.stopProcess", params!["web:p"]),
        ("twiddler.removeProcessFromGroup", params!["web", "p"]),
        ("supervisor.getProcessInfo", params!["web:p"]),
        ("twiddler.getGroupNames", params![]),
        ("twiddler.removeGroup", params!["g"]),
        ("supervisor.stopProcessGroup", params!["g"]),
        ("twiddler.removeGroup", params!["g"]),
        ("twiddler.log", params!["mixed in"]),
        ("twiddler.log", params![]),
        ("system.methodSignature", params!["twiddler.removeGroup"]),
        ("supervisor.getAPIVersion", params![]),
    ];
    let results = client.multicall(&calls)?;
    ensure!(results.len() == calls.len(), "{results:?}");
    let at = |wanted: &str, nth: usize| -> Result<&Value> {
        let mut positions = calls
            .iter()
            .zip(&results)
            .filter(|((name, _), _)| *name == wanted);
        Ok(positions
            .nth(nth)
            .with_context(|| format!("no {wanted} {nth}"))?
            .1)
    };
    let ensure_fault_at = |wanted: &str, nth: usize, code: i64, text: &str| -> Result<()> {
        let result = at(wanted, nth)?;
        ensure!(
            fault_in(result) == Some((code, text)),
            "{wanted} {nth}: {result:?}"
        );
        Ok(())
    };
    ensure!(*at("twiddler.getAPIVersion", 0)? == value("1.0"));
    ensure!(text(member(at("supervisor.getState", 0)?, "statename")?)? == "RUNNING");
    ensure!(*at("twiddler.addGroup", 0)? == value(true));
    ensure_fault_at("twiddler.addGroup", 1, 10, "BAD_NAME: g")?;
    ensure_fault_at("twiddler.nope", 0, 1, "UNKNOWN_METHOD")?;
    ensure_fault_at("supervisor.nope", 0, 1, "UNKNOWN_METHOD")?;
    ensure_fault_at(
        "system.multicall",
        0,
        2,
        "INCORRECT_PARAMETERS: Recursive system.multicall forbidden",
    )?;
    ensure!(*at("twiddler.addProcessToGroup", 0)? == value(true));
    ensure!(*at("twiddler.addProcessToGroup", 1)? == value(true));
    ensure_fault_at("twiddler.addProcessToGroup", 2, 10, "BAD_NAME: p")?;
    ensure!(*at("supervisor.startProcess", 0)? == value(true));
    ensure!(*at("supervisor.startProcess", 1)? == value(true));
    ensure_fault_at("supervisor.startProcess", 2, 60, "ALREADY_STARTED: web:p")?;
    ensure_fault_at("twiddler.removeProcessFromGroup", 0, 91, "STILL_RUNNING: p")?;
    ensure!(*at("supervisor.stopProcess", 0)? == value(true));
    ensure!(*at("twiddler.removeProcessFromGroup", 1)? == value(true));
    ensure_fault_at("supervisor.getProcessInfo", 0, 10, "BAD_NAME: web:p")?;
    ensure!(texts(at("twiddler.getGroupNames", 0)?)? == ["empty", "g", "lone", "web"]);
    ensure_fault_at("twiddler.removeGroup", 0, 91, "STILL_RUNNING: p")?;
    ensure!(column(at("supervisor.stopProcessGroup", 0)?, "name")? == ["p"]);
    ensure!(*at("twiddler.removeGroup", 1)? == value(true));
    ensure!(*at("twiddler.log", 0)? == value(true));
    ensure_fault_at("twiddler.log", 1, 2, "INCORRECT_PARAMETERS")?;
    ensure!(texts(at("system.methodSignature", 0)?)? == ["boolean", "string"]);
    ensure!(*at("supervisor.getAPIVersion", 0)? == value("3.0"));
    ensure!(daemon.log().contains(" INFO mixed in\n"));
    ensure!(namespecs(&daemon.client())? == ["lone:lone", "web:a", "web:b"]);

    // A call without a name gets the daemon's fault, regardless of the other calls.
    let nameless = value(vec![
        options(&[("methodName", value("twiddler.getAPIVersion"))]),
        options(&[("params", value(Vec::<Value>::new()))]),
    ]);
    let results = client.call("system.multicall", [nameless])?;
    let results = items(&results)?;
    ensure!(results[0] == value("1.0"), "{results:?}");
    ensure!(
        fault_in(&results[1]) == Some((2, "INCORRECT_PARAMETERS: No methodName")),
        "{results:?}"
    );
    Ok(())
}

// --- The log ---

/// The lines of the daemon's log that contain `wanted`, without their times.
fn logged(daemon: &Daemon, wanted: &str) -> Vec<String> {
    let log = daemon.log();
    let lines = log.lines().filter(|line| line.contains(wanted));
    lines
        .map(|line| line.splitn(3, ' ').nth(2).unwrap_or_default().to_owned())
        .collect()
}

#[test]
fn log_lines_look_like_the_daemons_own() -> Result<()> {
    let daemon = Daemon::start_with(DaemonOptions {
        extra_supervisord: "loglevel = blather",
        ..DaemonOptions::default()
    })?;
    let sidecar = Sidecar::start(&daemon)?;
    let client = sidecar.client();
    let levels = [
        ("CRIT", "critical", 50),
        ("ERRO", "error", 40),
        ("WARN", "warn", 30),
        ("INFO", "info", 20),
        ("DEBG", "debug", 10),
        ("TRAC", "trace", 5),
        ("BLAT", "blather", 3),
    ];
    let mut expected = Vec::new();
    for (code, name, number) in levels {
        let ways = [
            value(code),
            value(code.to_lowercase()),
            value(name),
            value(name.to_uppercase()),
            value(number),
        ];
        for level in ways {
            client.call("twiddler.log", (format!("said at {code}"), level))?;
            expected.push(format!("{code} said at {code}"));
        }
    }
    client.call("twiddler.log", ("said at INFO by default",))?;
    expected.push("INFO said at INFO by default".to_owned());
    ensure!(
        logged(&daemon, "said at ") == expected,
        "{:#?}",
        logged(&daemon, "said at ")
    );

    let log = daemon.log();
    let times = log
        .lines()
        .filter(|line| line.contains("said at "))
        .map(|line| line.get(..23).unwrap_or_default());
    for time in times {
        let shape: String = time
            .chars()
            .map(|c| if c.is_ascii_digit() { '0' } else { c })
            .collect();
        ensure!(shape == "0000-00-00 00:00:00,000", "{time}");
    }
    Ok(())
}

#[test]
fn log_lines_below_the_daemons_level_are_left_out() -> Result<()> {
    let daemon = Daemon::start_with(DaemonOptions {
        extra_supervisord: "loglevel = warn",
        ..DaemonOptions::default()
    })?;
    let sidecar = Sidecar::start(&daemon)?;
    for level in ["debug", "info", "warn", "error"] {
        let answer = sidecar.client().call("twiddler.log", ("noted", level))?;
        ensure!(answer == value(true));
    }
    ensure!(logged(&daemon, "noted") == ["WARN noted", "ERRO noted"]);
    Ok(())
}

#[test]
fn a_log_that_cannot_be_reached_is_a_fault_that_says_why() -> Result<()> {
    let daemon = Daemon::start("")?;
    let sidecar = Sidecar::start(&daemon)?;
    let path = daemon.dir().join("supervisord.log");
    fs::remove_file(&path)?;
    let fault = sidecar.client().expect_fault("twiddler.log", ("noted",))?;
    let text = format!(
        "FAILED: cannot write supervisord's log {} from here: No such file or directory (os error 2)",
        path.display()
    );
    ensure_fault(&fault, FAILED, &text)?;
    ensure!(
        !path.exists(),
        "it must not be made: it would not be the daemon's"
    );

    let daemon = Daemon::start_with(DaemonOptions {
        extra_supervisord: "logfile = syslog",
        ..DaemonOptions::default()
    })?;
    let sidecar = Sidecar::start(&daemon)?;
    let fault = sidecar.client().expect_fault("twiddler.log", ("noted",))?;
    ensure_fault(
        &fault,
        FAILED,
        "FAILED: supervisord logs to syslog, which has no file to write to",
    )
}

/// Once it has rotated its log, the daemon no longer appends to it but writes where it stopped
/// (`supervisor/loggers.py`, `doRollover`), over whatever somebody else has put there. So lines are
/// looked for only up to the first rotation.
#[test]
fn lines_can_be_written_while_the_daemon_rotates_its_log() -> Result<()> {
    const LINES: usize = 200;
    let daemon = Daemon::start_with(DaemonOptions {
        extra_supervisord: "logfile_maxbytes = 4KB\nlogfile_backups = 900",
        ..DaemonOptions::default()
    })?;
    let sidecar = Sidecar::start(&daemon)?;
    let first = daemon.dir().join("supervisord.log");
    let before = sidecar.client().call("twiddler.log", ("before",))?;
    ensure!(before == value(true));
    let whole = fs::read_to_string(&first)?;
    std::thread::scope(|scope| -> Result<()> {
        let noise = scope.spawn(|| -> Result<()> {
            // The daemon puts what it cannot read into its log.
            let client = daemon.client();
            for _ in 0..LINES {
                client.post_call(&[b'x'; 400])?;
            }
            Ok(())
        });
        let client = sidecar.client().kept_alive();
        for number in 0..LINES {
            client.call("twiddler.log", (format!("line {number}"),))?;
        }
        noise
            .join()
            .map_err(|_| anyhow::anyhow!("the noise stopped"))?
    })?;
    let mut rotated = Vec::new();
    for entry in fs::read_dir(daemon.dir())? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        let number = name.strip_prefix("supervisord.log.");
        rotated.extend(number.and_then(|number| number.parse::<u32>().ok()));
    }
    let oldest = rotated.iter().max().context("the log was not rotated")?;
    let oldest = daemon.read(format!("supervisord.log.{oldest}"))?;
    ensure!(oldest.starts_with(&whole), "{oldest}");
    Ok(())
}
