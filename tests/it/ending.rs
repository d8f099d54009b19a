//! `supervisor.shutdown` and `supervisor.restart` through the proxy: added processes stop with their group as
//! in-process, and the daemon's end takes no longer.

use std::time::{Duration, Instant};

use crate::common::pair::Pair;
use crate::common::{
    Addr, CallError, Client, Daemon, DaemonOptions, LIMIT, Sidecar, eventually, options, rows,
    text, value,
};
use anyhow::{Result, ensure};
use supervisor_twiddler::xmlrpc::Value;

const ADD: &str = "twiddler.addProgramToGroup";

/// A command that needs a second to stop, and prints a line as soon as it does.
const SLOW: &str =
    r#"/bin/sh -c 'trap "kill $!; sleep 1; exit 0" TERM; sleep 600 & echo up; wait'"#;

const WEB: &str = "\
[group:web]
programs = a

[program:a]
command = /bin/sleep 600
startsecs = 0
";

fn running(command: &str) -> Value {
    options(&[
        ("command", command),
        ("startsecs", "0"),
        ("autorestart", "true"),
    ])
}

/// Adds so many programs that need a second to stop, and waits until they are ready.
fn add_slow(client: &Client, group: &str, count: usize) -> Result<()> {
    for number in 0..count {
        client.call(ADD, (group, format!("slow{number}"), running(SLOW)))?;
    }
    for number in 0..count {
        let name = format!("{group}:slow{number}");
        eventually(LIMIT, || {
            let log = client.call("supervisor.readProcessStdoutLog", (&name, 0, 10))?;
            ensure!(text(&log)?.contains("up"), "{name}: {log:?}");
            Ok(())
        })?;
    }
    Ok(())
}

fn wait_for_end(daemon: &Daemon) -> Result<()> {
    eventually(LIMIT, || {
        ensure!(!daemon.is_alive(), "supervisord still runs");
        Ok(())
    })
}

/// How long the daemon takes to end after this client has called `shutdown`.
fn time_of_shutdown(client: &Client, daemon: &Daemon) -> Result<Duration> {
    let start = Instant::now();
    let reply = client.call("supervisor.shutdown", ())?;
    ensure!(reply == Value::Bool(true), "{reply:?}");
    wait_for_end(daemon)?;
    Ok(start.elapsed())
}

/// The names of processes in the order in which the daemon killed them, from its log at the level `debug`.
fn killed(daemon: &Daemon) -> Vec<String> {
    let log = daemon.log();
    let lines = log.lines().filter(|line| !line.contains("SIGKILL"));
    lines
        .filter_map(|line| line.split_once("killing ")?.1.split(' ').next())
        .map(str::to_owned)
        .collect()
}

/// How often the daemon has started this program.
fn starts(daemon: &Daemon, name: &str) -> usize {
    daemon.log().matches(&format!("spawned: '{name}'")).count()
}

#[test]
fn a_shutdown_with_many_added_processes_takes_no_longer_than_in_process() -> Result<()> {
    let pair = Pair::start(WEB)?;
    let clients = [pair.oracle.client(), pair.sidecar.client()].map(|it| it.with_limit(LIMIT));
    for client in &clients {
        add_slow(client, "web", 20)?;
    }
    let expected = time_of_shutdown(&clients[0], &pair.oracle)?;
    let actual = time_of_shutdown(&clients[1], &pair.daemon)?;
    eprintln!("there {expected:?}, here {actual:?}");
    ensure!(actual < expected * 2, "there {expected:?}, here {actual:?}");
    // No stopped process was started again meanwhile.
    for number in 0..20 {
        let name = format!("slow{number}");
        ensure!(starts(&pair.daemon, &name) == 1, "{name}");
    }
    Ok(())
}

/// The daemon needs a turn of its loop for each stopped group before the next one.
#[test]
fn stopped_added_processes_do_not_delay_a_shutdown() -> Result<()> {
    let daemon = Daemon::start(WEB)?;
    let sidecar = Sidecar::start(&daemon)?;
    let client = sidecar.client().with_limit(LIMIT);
    for number in 0..20 {
        let program = options(&[("command", "/bin/cat"), ("autostart", "false")]);
        client.call(ADD, ("web", format!("idle{number}"), program))?;
    }
    let took = time_of_shutdown(&client, &daemon)?;
    ensure!(took < Duration::from_secs(5), "{took:?}");
    Ok(())
}

#[test]
fn groups_stop_one_after_another_in_the_daemons_order() -> Result<()> {
    let program = |name: &str, priority: u32| {
        format!(
            "[program:{name}]\ncommand = /bin/sleep 600\nstartsecs = 0\npriority = {priority}\n"
        )
    };
    let body = [
        "[group:early]\nprograms = e1,e2\npriority = 5\n".to_owned(),
        "[group:middle]\nprograms = m1,m2\npriority = 50\n".to_owned(),
        "[group:late]\nprograms = l1,l2\npriority = 500\n".to_owned(),
        program("e1", 1),
        program("e2", 2),
        program("m1", 999),
        program("m2", 999),
        program("l1", 7),
        program("l2", 3),
        program("lone", 9),
    ]
    .concat();
    let pair = Pair::start_options(
        DaemonOptions {
            body: &body,
            extra_supervisord: "loglevel = debug",
            ..DaemonOptions::default()
        },
        "",
    )?;
    for (group, name, priority) in [
        ("middle", "mx", 999),
        ("early", "ex", 1),
        ("middle", "my", 7),
        ("late", "lx", 5),
    ] {
        let program = options(&[
            ("command", value("/bin/sleep 600")),
            ("startsecs", value(0)),
            ("priority", value(priority)),
        ]);
        pair.ensure_same(ADD, &params![group, name, program])?;
    }
    for client in [pair.oracle.client(), pair.sidecar.client()] {
        client.call("supervisor.shutdown", ())?;
    }
    wait_for_end(&pair.oracle)?;
    wait_for_end(&pair.daemon)?;
    let (expected, actual) = (killed(&pair.oracle), killed(&pair.daemon));
    ensure!(expected == actual, "there {expected:?}\nhere  {actual:?}");
    // The second group begins to stop when all processes of the first have stopped.
    let log = pair.daemon.log();
    let at = |text: &str| log.find(text).unwrap_or_else(|| panic!("{text} in\n{log}"));
    let last_of_late = ["l1", "l2", "lx"].map(|name| at(&format!("stopped: {name} ")));
    let first_of_middle = ["m1", "m2", "mx", "my"].map(|name| at(&format!("killing {name} ")));
    ensure!(last_of_late.iter().max() < first_of_middle.iter().min());
    Ok(())
}

#[test]
fn a_client_that_may_not_end_the_daemon_stops_no_process() -> Result<()> {
    let daemon = Daemon::start_with(DaemonOptions {
        body: WEB,
        credentials: Some(("user", "secret")),
        ..DaemonOptions::default()
    })?;
    let sidecar = Sidecar::start_with(
        &daemon,
        &["--allow", "supervisor.get*,twiddler.*,supervisor.restart"],
    )?;
    let client = sidecar.client();
    client.call(ADD, ("web", "b", running("/bin/sleep 600")))?;
    let before = rows(&client)?;
    let stranger = Client::new(sidecar.tcp_addr());
    let guesser = Client::new(sidecar.tcp_addr()).with_credentials("user", "guess");
    for method in ["supervisor.shutdown", "supervisor.restart"] {
        for client in [&stranger, &guesser] {
            let calls = [("supervisor.getState", params![]), (method, params![])];
            let statuses = [
                client.call(method, ()).err(),
                client.multicall(&calls).err(),
            ];
            let statuses = statuses.map(|it| it.and_then(|it| it.status()));
            ensure!(statuses == [Some(401); 2], "{method}: {statuses:?}");
        }
    }
    let refused = client.call("supervisor.shutdown", ());
    ensure!(refused.is_err(), "{refused:?}");
    let wrong = client.expect_fault("supervisor.restart", ("now",))?;
    ensure!(wrong.code == 2, "{wrong:?}");
    ensure!(rows(&client)? == before, "a process has stopped");
    let log = daemon.log();
    ensure!(!log.contains("waiting for"), "{log}");
    Ok(())
}

#[test]
fn a_shutdown_in_a_multicall_answers_as_in_process() -> Result<()> {
    let pair = Pair::start(WEB)?;
    let calls = [
        ("supervisor.getPID", params!["too many"]),
        ("supervisor.shutdown", params![]),
        ("supervisor.shutdown", params![]),
        ("supervisor.restart", params![]),
        ("twiddler.getGroupNames", params![]),
        ("supervisor.getProcessInfo", params!["web:b"]),
    ];
    let results = [pair.oracle.client(), pair.sidecar.client()].map(|client| -> Result<_> {
        client.call(ADD, ("web", "b", running("/bin/sleep 600")))?;
        Ok(client.multicall(&calls)?)
    });
    let [expected, actual] = results;
    let (expected, actual) = (expected?, actual?);
    // The in-process supervisor_twiddler does not check the daemon's state, and answers. The proxy returns
    // fault 6.
    ensure!(
        expected[..4] == actual[..4],
        "there {expected:?}\nhere  {actual:?}"
    );
    ensure!(
        expected[5] == actual[5],
        "there {expected:?}\nhere  {actual:?}"
    );
    ensure!(actual[1] == Value::Bool(true), "{actual:?}");
    wait_for_end(&pair.daemon)
}

#[test]
fn a_shutdown_continues_after_its_client_disconnects() -> Result<()> {
    let daemon = Daemon::start(WEB)?;
    let sidecar = Sidecar::start(&daemon)?;
    let client = sidecar.client();
    add_slow(&client, "web", 3)?;
    let mut connection = client.connect()?;
    let body = supervisor_twiddler::xmlrpc::write::call("supervisor.shutdown", &[]);
    connection.send(&client.request_bytes("POST", "/RPC2", &[], Some(&body)))?;
    daemon.wait_for_state("web~000001:slow0", "STOPPING")?;
    drop(connection);
    wait_for_end(&daemon)
}

#[test]
fn a_proxy_that_is_stopped_during_a_shutdown_still_ends_the_daemon() -> Result<()> {
    for disconnects in [true, false] {
        let daemon = Daemon::start(WEB)?;
        let sidecar = Sidecar::start(&daemon)?;
        let client = sidecar.client();
        // This process takes longer to stop than the proxy waits.
        let stubborn = SLOW.replace("sleep 1;", "sleep 30;");
        let options = options(&[
            ("command", &*stubborn),
            ("startsecs", "0"),
            ("stopwaitsecs", "8"),
        ]);
        client.call(ADD, ("web", "b", options))?;
        eventually(LIMIT, || {
            let log = client.call("supervisor.readProcessStdoutLog", ("web:b", 0, 10))?;
            ensure!(text(&log)?.contains("up"), "{log:?}");
            Ok(())
        })?;
        let mut connection = client.connect()?;
        let body = supervisor_twiddler::xmlrpc::write::call("supervisor.shutdown", &[]);
        connection.send(&client.request_bytes("POST", "/RPC2", &[], Some(&body)))?;
        daemon.wait_for_state("web~000001:b", "STOPPING")?;
        if disconnects {
            drop(connection);
            sidecar.stop()?;
        } else {
            sidecar.signal("TERM")?;
            let reply = connection.read_reply()?;
            ensure!(reply.status == 200, "{reply:?}");
            ensure!(reply.text().contains("<boolean>1"), "{}", reply.text());
            sidecar.wait()?;
        }
        wait_for_end(&daemon)?;
    }
    Ok(())
}

#[test]
fn a_proxy_that_is_a_program_of_the_daemon_runs_until_it_has_ended_the_daemon() -> Result<()> {
    let binary = env!("CARGO_BIN_EXE_twiddler");
    // The proxy's group stops first.
    let proxy = format!(
        "[program:twiddler]\ncommand = {binary} serve -c %(here)s/supervisord.conf --listen unix://%(here)s/p.sock\nstartsecs = 0\npriority = 1500\n"
    );
    let daemon = Daemon::start(&format!("{WEB}{proxy}"))?;
    let client = daemon.client_at(Addr::Unix(daemon.dir().join("p.sock")));
    eventually(LIMIT, || {
        client.call("twiddler.getAPIVersion", ())?;
        Ok(())
    })?;
    add_slow(&client, "web", 2)?;
    daemon.restart_by(|| {
        let reply = client.call("supervisor.restart", ())?;
        ensure!(reply == Value::Bool(true), "{reply:?}");
        Ok(())
    })?;
    eventually(LIMIT, || {
        client.call("twiddler.getAPIVersion", ())?;
        Ok(())
    })?;
    time_of_shutdown(&client, &daemon)?;
    ensure!(starts(&daemon, "twiddler") == 2, "{}", daemon.log());
    Ok(())
}

#[test]
fn the_second_of_two_simultaneous_restarts_gets_a_fault_and_the_daemon_restarts_once() -> Result<()>
{
    let daemon = Daemon::start(WEB)?;
    let sidecar = Sidecar::start(&daemon)?;
    let client = sidecar.client();
    add_slow(&client, "web", 2)?;
    daemon.restart_by(|| {
        std::thread::scope(|scope| -> Result<()> {
            let first = scope.spawn(|| sidecar.client().call("supervisor.restart", ()));
            daemon.wait_for_state("web~000001:slow0", "STOPPING")?;
            let fault = client.expect_fault("supervisor.restart", ())?;
            ensure!(fault.code == 6, "{fault:?}");
            let first = first
                .join()
                .map_err(|_| anyhow::anyhow!("a thread panicked"))?;
            ensure!(first? == Value::Bool(true), "the first failed");
            Ok(())
        })
    })?;
    client.call("twiddler.addGroup", ("one", 1))?;
    ensure!(starts(&daemon, "a") == 2, "{}", daemon.log());
    Ok(())
}

#[test]
fn a_restart_by_another_client_meanwhile_is_not_repeated() -> Result<()> {
    let daemon = Daemon::start(WEB)?;
    let sidecar = Sidecar::start(&daemon)?;
    let client = sidecar.client();
    add_slow(&client, "web", 2)?;
    daemon.restart_by(|| {
        std::thread::scope(|scope| -> Result<()> {
            let first = scope.spawn(|| sidecar.client().call("supervisor.restart", ()));
            daemon.wait_for_state("web~000001:slow0", "STOPPING")?;
            daemon.client().call("supervisor.restart", ())?;
            // The call ends with the fault of a shutdown, or succeeds after the restart.
            let first = first
                .join()
                .map_err(|_| anyhow::anyhow!("a thread panicked"))?;
            ensure!(
                match &first {
                    Ok(reply) => *reply == Value::Bool(true),
                    Err(CallError::Fault(fault)) => fault.code == 6,
                    Err(_) => false,
                },
                "{first:?}"
            );
            Ok(())
        })
    })?;
    client.call("twiddler.addGroup", ("one", 1))?;
    ensure!(starts(&daemon, "a") == 2, "{}", daemon.log());
    Ok(())
}

#[test]
fn calls_during_a_shutdown_get_the_daemons_fault() -> Result<()> {
    let body = format!("{WEB}[program:early]\ncommand = {SLOW}\nstartsecs = 0\npriority = 1\n");
    let daemon = Daemon::start(&body)?;
    let sidecar = Sidecar::start(&daemon)?;
    let client = sidecar.client();
    client.call(ADD, ("web", "b", running("/bin/sleep 600")))?;
    client.call("supervisor.shutdown", ())?;
    for method in ["supervisor.shutdown", "supervisor.restart"] {
        let fault = client.expect_fault(method, ())?;
        ensure!(
            fault.code == 6 && fault.text == "SHUTDOWN_STATE",
            "{fault:?}"
        );
    }
    wait_for_end(&daemon)
}

#[test]
fn after_a_restart_persisted_programs_are_added_again_and_losses_are_logged() -> Result<()> {
    for arguments in [&["--persist"][..], &[]] {
        let daemon = Daemon::start(WEB)?;
        let sidecar = Sidecar::start_with(&daemon, arguments)?;
        let client = sidecar.client();
        client.call("twiddler.addGroup", ("dyn", 5))?;
        client.call(ADD, ("dyn", "x", running("/bin/sleep 600")))?;
        client.call(ADD, ("web", "b", running("/bin/sleep 600")))?;
        client.call(ADD, ("web", "c", running("/bin/sleep 600")))?;
        daemon.restart_by(|| {
            client.call("supervisor.restart", ())?;
            Ok(())
        })?;
        let expected_names: &[&str] = match arguments {
            [] => &["web:a"],
            _ => &["dyn:x", "web:a", "web:b", "web:c"],
        };
        eventually(LIMIT, || {
            let rows = rows(&client)?;
            let names: Vec<String> = rows.iter().map(|row| row.namespec()).collect();
            ensure!(names == expected_names, "{names:?}");
            ensure!(rows.iter().all(|row| row.state == "RUNNING"), "{rows:?}");
            Ok(())
        })?;
        let log = match arguments {
            [] => sidecar.wait_for_stderr("was started again")?,
            _ => sidecar.stderr_text(),
        };
        let is_loss = |line: &&str| line.contains(" WARN ") && line.to_lowercase().contains("gone");
        let warnings: Vec<&str> = log.lines().filter(is_loss).collect();
        match (arguments, &warnings[..]) {
            ([], [warning]) => ensure!(
                ["3 programs", "dyn:x", "web:b", "web:c"]
                    .iter()
                    .all(|word| warning.contains(word)),
                "{warning}"
            ),
            ([], other) => anyhow::bail!("{other:#?}"),
            (_, warnings) => ensure!(warnings.is_empty(), "{warnings:#?}"),
        }
    }
    Ok(())
}
