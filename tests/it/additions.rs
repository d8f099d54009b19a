//! Right after an addition, a client sees the same as with the original extension.
//!
//! `TEST_EFFORT` multiplies the number of added programs.

use std::thread;

use crate::common::dice::times;
use crate::common::pair::Pair;
use crate::common::values::fault_in;
use crate::common::{
    Client, Daemon, DaemonOptions, LIMIT, Sidecar, items, member, number, options, text, value,
};
use anyhow::{Result, ensure};
use supervisor_twiddler::xmlrpc::Value;

/// If additions did not wait for a turn of the daemon's loop, a client would see a third of these processes
/// too early.
const ADDITIONS: usize = 24;
const ADD: &str = "twiddler.addProgramToGroup";

const USER: &str = "\
[group:web]
programs = a

[program:a]
command = /bin/sleep 600
autostart = false
";

/// A program that is STARTING for a minute.
fn starter() -> Value {
    options(&[("command", "/bin/sleep 600"), ("startsecs", "60")])
}

fn several() -> Value {
    options(&[
        ("command", value("/bin/sleep 600")),
        ("startsecs", value(60)),
        ("numprocs", value(2)),
        ("process_name", value("%(program_name)s-%(process_num)d")),
    ])
}

fn ensure_starting(client: &Client, namespec: &str) -> Result<()> {
    let info = client.call("supervisor.getProcessInfo", (namespec,))?;
    let state = text(member(&info, "statename")?)?;
    ensure!(state == "STARTING", "{namespec} is {state}");
    Ok(())
}

/// Adds, in turn, a member of a group with others, the first one of a group, and a program of two
/// processes. Checks each after its addition.
fn ensure_additions_are_starting(client: &Client, prefix: &str, count: usize) -> Result<()> {
    for number in 0..count {
        let name = format!("{prefix}{number}");
        let namespec = match number % 3 {
            0 => {
                client.call(ADD, ("web", &name, starter()))?;
                format!("web:{name}")
            }
            1 => {
                client.call("twiddler.addGroup", (&name, 999))?;
                client.call(ADD, (&name, "first", starter()))?;
                format!("{name}:first")
            }
            _ => {
                client.call(ADD, ("web", &name, several()))?;
                format!("web:{name}-1")
            }
        };
        ensure_starting(client, &namespec)?;
        let calls = [
            (ADD, params!["web", format!("{name}-m"), starter()]),
            (
                "supervisor.getProcessInfo",
                params![format!("web:{name}-m")],
            ),
        ];
        let results = client.multicall(&calls)?;
        let state = text(member(&results[1], "statename")?)?;
        ensure!(state == "STARTING", "{name}-m is {state} in one multicall");
    }
    Ok(())
}

#[test]
fn no_client_sees_a_process_before_the_daemon_has_started_it() -> Result<()> {
    let additions = times(ADDITIONS)?;
    for arguments in [&[][..], &["--persist"]] {
        let daemon = Daemon::start(USER)?;
        let sidecar = Sidecar::start_with(&daemon, arguments)?;
        ensure_additions_are_starting(&sidecar.socket_client().kept_alive(), "one", additions)?;
        // Several clients, whose additions are batched.
        let clients = 4;
        thread::scope(|scope| -> Result<()> {
            let looking: Vec<_> = (0..clients)
                .map(|number| {
                    let client = sidecar.socket_client();
                    let prefix = format!("many{number}-");
                    scope.spawn(move || {
                        ensure_additions_are_starting(&client, &prefix, additions / clients)
                    })
                })
                .collect();
            looking
                .into_iter()
                .try_for_each(|one| one.join().expect("it does not panic"))
        })?;
    }
    Ok(())
}

#[test]
fn one_multicall_may_add_and_start() -> Result<()> {
    let pair = Pair::start(USER)?;
    let program = |command: &str| {
        options(&[
            ("command", command),
            ("startsecs", "1"),
            ("startretries", "0"),
        ])
    };
    let kinds = [
        ("up", "/bin/sleep 600", params![]),
        ("not-waited-for", "/bin/sleep 600", params![false]),
        ("ends", "/bin/sh -c 'sleep 0.2; exit 1'", params![]),
        ("no-such-file", "/nowhere/at/all", params![]),
    ];
    for (name, command, more) in kinds {
        let calls = [
            (ADD, params!["web", name, program(command)]),
            (
                "supervisor.startProcess",
                [params![format!("web:{name}")], more].concat(),
            ),
            (
                "supervisor.startProcess",
                params![format!("web:{name}"), false],
            ),
        ];
        let results = |client: &Client| -> Result<Vec<Option<(i64, String)>>> {
            let results = client.multicall(&calls)?;
            let fault = |value| fault_in(value).map(|(code, text)| (code, text.to_owned()));
            Ok(results.iter().map(fault).collect())
        };
        let mut expected = results(&pair.oracle.client())?;
        let mut actual = results(&pair.sidecar.client())?;
        if name == "ends" {
            // Between the calls, the daemon may give up on the process and then start it once more.
            expected.truncate(2);
            actual.truncate(2);
        }
        ensure!(
            expected == actual,
            "{name}: there {expected:?}, here {actual:?}"
        );
    }
    // A refused addition does not start the existing process again.
    let calls = [
        (ADD, params!["web", "up", program("/bin/cat")]),
        ("supervisor.startProcess", params!["web:up"]),
    ];
    for client in [pair.oracle.client(), pair.sidecar.client()] {
        let results = client.multicall(&calls)?;
        let codes: Vec<_> = results
            .iter()
            .map(|it| fault_in(it).map(|it| it.0))
            .collect();
        ensure!(codes == [Some(10), Some(60)], "{codes:?}");
    }
    Ok(())
}

/// The status of each process, sorted.
fn statuses(result: &Value) -> Result<Vec<(String, String, i64, String)>> {
    let word = |status: &Value, name: &str| {
        Ok::<_, anyhow::Error>(text(member(status, name)?)?.to_owned())
    };
    let mut statuses = items(result)?
        .iter()
        .map(|status| {
            Ok((
                word(status, "group")?,
                word(status, "name")?,
                number(member(status, "status")?)?,
                word(status, "description")?,
            ))
        })
        .collect::<Result<Vec<_>>>()?;
    statuses.sort();
    Ok(statuses)
}

#[test]
fn one_multicall_may_add_and_start_the_group() -> Result<()> {
    let pair = Pair::start(&format!("{USER}[group:fresh]\nprograms =\n"))?;
    let program = |command: &str, startsecs: &str| {
        options(&[
            ("command", command),
            ("startsecs", startsecs),
            ("startretries", "0"),
            ("autorestart", "false"),
        ])
    };
    let kinds = [
        ("up", "/bin/sleep 600", "1"),
        ("job", "/bin/sleep 0.3", "0"),
        ("ends", "/bin/sh -c 'sleep 0.2; exit 1'", "600"),
        ("no-such-file", "/nowhere/at/all", "1"),
    ];
    let starts = [
        ("supervisor.startProcessGroup", true),
        ("supervisor.startProcess", true),
        ("supervisor.startAllProcesses", false),
    ];
    for group in ["fresh", "web"] {
        for (number, (method, takes_group)) in starts.into_iter().enumerate() {
            for (name, command, startsecs) in kinds {
                let name = format!("{name}{number}");
                let whole = match method {
                    "supervisor.startProcess" => params![format!("{group}:*")],
                    _ if takes_group => params![group],
                    _ => params![],
                };
                let calls = [
                    (ADD, params![group, &name, program(command, startsecs)]),
                    (method, whole.clone()),
                ];
                let of_new = |client: &Client| -> Result<Vec<_>> {
                    let results = client.multicall(&calls)?;
                    ensure!(results[0] == Value::Bool(true), "{results:?}");
                    // Processes of earlier rounds may end at any time, and are started again then.
                    let all = statuses(&results[1])?.into_iter();
                    Ok(all
                        .filter(|status| status.0 == group && status.1 == name)
                        .collect())
                };
                let expected = of_new(&pair.oracle.client().with_limit(LIMIT))?;
                let actual = of_new(&pair.sidecar.client().with_limit(LIMIT))?;
                ensure!(
                    expected == actual && actual.len() == 1,
                    "{method} {group}:{name}: there {expected:?}, here {actual:?}"
                );
            }
        }
    }
    // A call on another group gives the daemon time to start the process. Then the second call does not
    // list it.
    let calls = [
        (ADD, params!["web", "last", program("/bin/sleep 600", "0")]),
        ("supervisor.startProcessGroup", params!["fresh", false]),
        ("supervisor.startProcessGroup", params!["web", false]),
    ];
    for client in [pair.oracle.client(), pair.sidecar.client()] {
        let results = client.with_limit(LIMIT).multicall(&calls)?;
        let of = |result: &Value| statuses(result).map(|all| all.iter().any(|it| it.1 == "last"));
        ensure!(!of(&results[1])? && !of(&results[2])?, "{results:?}");
    }
    Ok(())
}

/// The number of requests in the daemon's log.
fn requests(daemon: &Daemon) -> usize {
    daemon.log().matches("XML-RPC method called: ").count()
}

#[test]
fn the_first_process_of_an_empty_group_takes_no_more_requests_than_the_next() -> Result<()> {
    const REQUESTS: usize = 2;
    let daemon = Daemon::start_with(DaemonOptions {
        extra_supervisord: "loglevel=trace\n",
        body: USER,
        ..DaemonOptions::default()
    })?;
    let sidecar = Sidecar::start(&daemon)?;
    let client = sidecar.socket_client();
    let idle = || options(&[("command", "/bin/sleep 600"), ("autostart", "false")]);
    // The first addition also tests how generated files reach the daemon.
    client.call(ADD, ("web", "b", idle()))?;
    // The proxy's own queries may be counted in some of the rounds.
    let mut fewest = [usize::MAX; 2];
    for number in 0..4 {
        let group = format!("g{number}");
        client.call("twiddler.addGroup", (&group, 999))?;
        for (place, fewest) in fewest.iter_mut().enumerate() {
            let before = requests(&daemon);
            client.call(ADD, (&group, format!("p{place}"), idle()))?;
            *fewest = requests(&daemon).saturating_sub(before).min(*fewest);
        }
    }
    ensure!(fewest == [REQUESTS; 2], "{fewest:?} requests");
    Ok(())
}
