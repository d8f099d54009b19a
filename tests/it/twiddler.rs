//! The `twiddler` namespace: each method, each fault, and that a call that faults changes nothing.

use std::fs;

use crate::common::values::{TWIDDLER_METHODS, column, fault_in};
use crate::common::view::ensure_include_holds;
use crate::common::{
    Client, Daemon, DaemonOptions, Dice, Picture, Sidecar, ensure_fault, eventually, items, member,
    number, options, rows, text, texts, value,
};
use anyhow::{Context, Result, ensure};
use supervisor_twiddler::xmlrpc::{Fault, Value};

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

// --- What works ---

#[test]
fn the_api_version_is_that_of_the_original() -> Result<()> {
    let (_daemon, _sidecar, client) = front()?;
    let version = client.call("twiddler.getAPIVersion", ())?;
    ensure!(version == value("1.0"), "{version:?}");
    Ok(())
}

#[test]
fn groups_are_listed_whoever_made_them_and_empty_ones_too() -> Result<()> {
    let (daemon, _sidecar, client) = front()?;
    ensure!(group_names(&client)? == ["empty", "lone", "web"]);
    client.call("twiddler.addGroup", ("added", "7"))?;
    client.call("twiddler.addProcessToGroup", ("web", "c", sleeper()))?;
    client.call("twiddler.addProcessToGroup", ("empty", "c", sleeper()))?;
    ensure!(group_names(&client)? == ["added", "empty", "lone", "web"]);

    // Behind the proxy's back.
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
fn a_program_with_several_processes_joins_and_leaves_piece_by_piece() -> Result<()> {
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
    let taken = client.expect_fault("twiddler.addProgramToGroup", ("web", "p", &program))?;
    ensure_fault(&taken, BAD_NAME, "BAD_NAME: p_07")?;

    for group in ["g", "web"] {
        for process in ["p_08", "p_07", "p_09"] {
            client.call("twiddler.removeProcessFromGroup", (group, process))?;
            let gone = client.expect_fault("twiddler.removeProcessFromGroup", (group, process))?;
            ensure_fault(&gone, BAD_NAME, &format!("BAD_NAME: {process}"))?;
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
    let gone = client.expect_fault("twiddler.removeGroup", ("g",))?;
    ensure_fault(&gone, BAD_NAME, "BAD_NAME: group: g")?;
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

// --- Faults ---

/// A call that must fault, and how.
struct Refused {
    method: &'static str,
    params: Vec<Value>,
    code: i32,
    text: String,
}

fn refused(
    method: &'static str,
    params: Vec<Value>,
    code: i32,
    text: impl Into<String>,
) -> Refused {
    Refused {
        method,
        params,
        code,
        text: text.into(),
    }
}

/// Makes each call, and looks after each whether everything is as it was.
fn ensure_refused(daemon: &Daemon, client: &Client, calls: &[Refused]) -> Result<()> {
    let (before, groups) = (Picture::of(daemon, &USER_GROUPS)?, group_names(client)?);
    for Refused {
        method,
        params,
        code,
        text,
    } in calls
    {
        let what = || format!("{method}{params:?}");
        let fault = client
            .expect_fault(method, params.clone())
            .with_context(what)?;
        ensure_fault(&fault, *code, text).with_context(what)?;
        ensure_include_holds(daemon, &[]).with_context(what)?;
        before
            .ensure_same(&Picture::of(daemon, &USER_GROUPS)?)
            .with_context(what)?;
        ensure!(group_names(client)? == groups, "{}", what());
    }
    Ok(())
}

/// The daemon starts with what is on disk, and has the user's programs alone.
fn ensure_restarts_cleanly(daemon: &Daemon) -> Result<()> {
    daemon.restart_rpc()?;
    ensure!(namespecs(&daemon.client())? == ["lone:lone", "web:a", "web:b"]);
    daemon.kill_and_start_again()?;
    ensure!(namespecs(&daemon.client())? == ["lone:lone", "web:a", "web:b"]);
    Ok(())
}

#[test]
fn wrong_counts_and_types_are_incorrect_parameters() -> Result<()> {
    let (daemon, _sidecar, client) = front()?;
    client.call("twiddler.addGroup", ("g", 1))?;
    client.call("twiddler.addProcessToGroup", ("web", "c", sleeper()))?;
    let mut calls = Vec::new();
    let some = || [value("g"), value("x"), sleeper(), value("x"), value(1)];
    let counts = [
        ("twiddler.getAPIVersion", 0..=0),
        ("twiddler.getGroupNames", 0..=0),
        ("twiddler.addGroup", 2..=2),
        ("twiddler.addProcessToGroup", 3..=3),
        ("twiddler.addProgramToGroup", 3..=3),
        ("twiddler.removeProcessFromGroup", 2..=2),
        ("twiddler.removeGroup", 1..=1),
        ("twiddler.log", 1..=2),
    ];
    for (method, right) in counts {
        for count in (0..=5).filter(|count| !right.contains(count)) {
            let params = some()[..count].to_vec();
            calls.push(refused(
                method,
                params,
                INCORRECT_PARAMETERS,
                "INCORRECT_PARAMETERS",
            ));
        }
    }
    let odd = [
        value(5),
        value(true),
        value(1.5),
        value(()),
        value(vec![value("g")]),
        sleeper(),
    ];
    for odd in odd {
        let mut wrong = |method, params| {
            calls.push(refused(
                method,
                params,
                INCORRECT_PARAMETERS,
                "INCORRECT_PARAMETERS",
            ));
        };
        wrong("twiddler.addGroup", params![&odd, 1]);
        wrong("twiddler.addProcessToGroup", params!["g", &odd, sleeper()]);
        wrong("twiddler.removeProcessFromGroup", params![&odd, "p"]);
        wrong("twiddler.removeProcessFromGroup", params!["g", &odd]);
        wrong("twiddler.removeGroup", params![&odd]);
        wrong("twiddler.log", params![&odd]);
    }
    for priority in [
        value("high"),
        value(""),
        value(1.5),
        value(true),
        value("1.0"),
        value(()),
        value("3000000000"),
    ] {
        calls.push(refused(
            "twiddler.addGroup",
            params!["new", priority],
            INCORRECT_PARAMETERS,
            "INCORRECT_PARAMETERS: priority must be an integer of at most 32 bits",
        ));
    }
    for wrong in [
        value("command=x"),
        value(()),
        value(vec![value("command")]),
        value(3),
    ] {
        calls.push(refused(
            "twiddler.addProcessToGroup",
            params!["g", "x", wrong],
            INCORRECT_PARAMETERS,
            "INCORRECT_PARAMETERS: the options have to be a struct",
        ));
    }
    for wrong in [value(()), value(vec![value("/bin/cat")]), sleeper()] {
        calls.push(refused(
            "twiddler.addProcessToGroup",
            params!["g", "x", options(&[("command", wrong)])],
            INCORRECT_PARAMETERS,
            "INCORRECT_PARAMETERS: option 'command': has to be a string, a number or a boolean",
        ));
    }
    for level in [
        value("loud"),
        value(""),
        value(25),
        value(-1),
        value(1.5),
        value(()),
        value(vec![value("INFO")]),
    ] {
        calls.push(refused(
            "twiddler.log",
            params!["x", level],
            INCORRECT_PARAMETERS,
            "INCORRECT_PARAMETERS",
        ));
    }
    for method in [
        "twiddler.nope",
        "twiddler.",
        "twiddler._update",
        "twiddler.log.x",
        "twiddler",
        "nope.getAPIVersion",
        "twiddler.GetAPIVersion",
    ] {
        calls.push(refused(method, vec![], UNKNOWN_METHOD, "UNKNOWN_METHOD"));
    }
    ensure_refused(&daemon, &client, &calls)?;
    ensure_restarts_cleanly(&daemon)
}

#[test]
fn names_that_do_not_fit_are_refused() -> Result<()> {
    let (daemon, _sidecar, client) = front()?;
    client.call("twiddler.addGroup", ("g", 1))?;
    client.call("twiddler.addProcessToGroup", ("g", "own", sleeper()))?;
    client.call("twiddler.addProcessToGroup", ("g", "placed", sleeper()))?;
    client.call("supervisor.startProcess", ("g:placed",))?;
    let mut calls = Vec::new();
    for group in ["web", "lone", "empty", "g"] {
        let text = format!("BAD_NAME: {group}");
        calls.push(refused(
            "twiddler.addGroup",
            params![group, 1],
            BAD_NAME,
            text,
        ));
    }
    for name in ["a b", "a:b", "a/b"] {
        let reason = format!(
            "Invalid name: '{name}' because of character: '{}'",
            &name[1..2]
        );
        calls.push(refused(
            "twiddler.addGroup",
            params![name, 1],
            INCORRECT_PARAMETERS,
            format!("INCORRECT_PARAMETERS: {reason}"),
        ));
        calls.push(refused(
            "twiddler.addProcessToGroup",
            params!["g", name, sleeper()],
            INCORRECT_PARAMETERS,
            format!(
                "INCORRECT_PARAMETERS: {reason} in section 'program:{name}' (file: '{}')",
                daemon.conf().display()
            ),
        ));
    }
    for group in ["nope", "a b", "", "web:a", "g~000001x", "*"] {
        let text = format!("BAD_NAME: group: {group}");
        let mut unknown = |method, params| {
            calls.push(refused(method, params, BAD_NAME, text.clone()));
        };
        unknown("twiddler.addProcessToGroup", params![group, "x", sleeper()]);
        // An unknown group counts for more than wrong options.
        unknown(
            "twiddler.addProcessToGroup",
            params![group, "x", options::<&str>(&[])],
        );
        unknown("twiddler.removeProcessFromGroup", params![group, "x"]);
        unknown("twiddler.removeGroup", params![group]);
    }
    for (group, process) in [
        ("web", "a"),
        ("web", "b"),
        ("lone", "lone"),
        ("g", "own"),
        ("g", "placed"),
    ] {
        let text = format!("BAD_NAME: {process}");
        calls.push(refused(
            "twiddler.addProcessToGroup",
            params![group, process, sleeper()],
            BAD_NAME,
            text,
        ));
    }
    for (group, process) in [
        ("web", "nope"),
        ("web", "web"),
        ("empty", "x"),
        ("g", ""),
        ("g", "*"),
        ("lone", "a"),
    ] {
        let text = format!("BAD_NAME: {process}");
        calls.push(refused(
            "twiddler.removeProcessFromGroup",
            params![group, process],
            BAD_NAME,
            text,
        ));
    }
    for (group, process) in [("web", "a"), ("lone", "lone"), ("g", "placed")] {
        let text = format!("STILL_RUNNING: {process}");
        calls.push(refused(
            "twiddler.removeProcessFromGroup",
            params![group, process],
            STILL_RUNNING,
            text.clone(),
        ));
        calls.push(refused(
            "twiddler.removeGroup",
            params![group],
            STILL_RUNNING,
            text,
        ));
    }
    ensure_refused(&daemon, &client, &calls)?;
    ensure_restarts_cleanly(&daemon)
}

#[test]
fn the_daemons_reasons_speak_of_the_clients_program() -> Result<()> {
    let (daemon, _sidecar, client) = front()?;
    client.call("twiddler.addGroup", ("g", 1))?;
    let main_file = daemon.conf().display().to_string();
    let table: &[(&[(&str, &str)], &str)] = &[
        (&[], "program section program:ls does not specify a command"),
        (
            &[("command", "x"), ("autostart", "maybe")],
            "not a valid boolean value: 'maybe'",
        ),
        (
            &[("command", "x"), ("startsecs", "soon")],
            "invalid literal for int() with base 10: 'soon'",
        ),
        (
            &[("command", "x"), ("user", "no-such-user")],
            "Invalid user name no-such-user",
        ),
        (
            &[("command", "x"), ("stopsignal", "NOPE")],
            "value 'NOPE' is not a valid signal name",
        ),
        (
            &[("command", "x"), ("exitcodes", "a")],
            "not a valid list of exit codes: 'a'",
        ),
        (
            &[("command", "x"), ("umask", "9")],
            "9 can not be converted to an octal type",
        ),
        (
            &[("command", "x"), ("environment", "A")],
            "Unexpected end of key/value pairs in value 'A'",
        ),
        (
            &[("command", "x"), ("stdout_logfile", "/no/such/dir/x.log")],
            "The directory named as part of the path /no/such/dir/x.log does not exist",
        ),
        (
            &[("command", "x"), ("numprocs", "2")],
            "%(process_num) must be present within process_name when numprocs > 1",
        ),
        (
            &[("command", "x %(nope)s")],
            "Format string 'x %(nope)s' for 'program:ls.command' contains names ('nope') which cannot be expanded. Available names:",
        ),
        (
            &[("command", "x"), ("directory", "%(nope)s")],
            "Format string '%(nope)s' for 'program:ls.directory' contains names ('nope') which cannot be expanded. Available names:",
        ),
        (
            &[("command", "x %")],
            "Format string 'x %' for 'program:ls.command' is badly formatted: incomplete format",
        ),
        (
            &[("command", "x"), ("process_name", "a b")],
            "Invalid name: 'a b' because of character: ' '",
        ),
    ];
    let before = Picture::of(&daemon, &USER_GROUPS)?;
    for (given, reason) in table {
        for group in ["g", "web"] {
            let fault =
                client.expect_fault("twiddler.addProcessToGroup", (group, "ls", options(given)))?;
            let text = format!("INCORRECT_PARAMETERS: {reason}");
            let ending = format!(" in section 'program:ls' (file: '{main_file}')");
            let well = fault.code == INCORRECT_PARAMETERS
                && fault.text.starts_with(&text)
                && fault.text.ends_with(&ending)
                && !fault.text.contains('~');
            ensure!(
                well,
                "{given:?} in {group}: {fault:?}\nand not {text}...{ending}"
            );
            ensure_include_holds(&daemon, &[])?;
            before.ensure_same(&Picture::of(&daemon, &USER_GROUPS)?)?;
        }
    }
    ensure_restarts_cleanly(&daemon)
}

#[test]
fn only_what_the_whitelist_names_may_be_called_but_all_is_listed() -> Result<()> {
    let daemon = Daemon::start(USER)?;
    let sidecar = Sidecar::start_with(&daemon, &["--whitelist", "getAPIVersion,addGroup"])?;
    let client = sidecar.client();
    client.call("twiddler.getAPIVersion", ())?;
    client.call("twiddler.addGroup", ("g", 1))?;
    let calls = [
        ("getGroupNames", params![]),
        ("addProcessToGroup", params!["g", "p", sleeper()]),
        ("addProgramToGroup", params!["g", "p", sleeper()]),
        ("removeProcessFromGroup", params!["g", "p"]),
        ("removeGroup", params!["g"]),
        ("log", params!["x"]),
    ];
    for (name, params) in calls {
        let fault = client.expect_fault(&format!("twiddler.{name}"), params)?;
        ensure_fault(
            &fault,
            NOT_IN_WHITELIST,
            &format!("NOT_IN_WHITELIST: {name}"),
        )?;
    }
    let listed = client.call("system.listMethods", ())?;
    ensure!(texts(&listed)?.contains(&"twiddler.removeGroup"));
    let help = client.call("system.methodHelp", ("twiddler.removeGroup",))?;
    ensure!(text(&help)?.contains("Remove a process group"));
    let unknown = client.expect_fault("twiddler.nope", ())?;
    ensure_fault(&unknown, UNKNOWN_METHOD, "UNKNOWN_METHOD")
}

#[test]
fn nothing_is_answered_while_the_daemon_shuts_down() -> Result<()> {
    // It is told to end only once the test has seen what it wants.
    let stubborn = "[program:stubborn]\n\
                    command = /bin/sh -c 'trap \"\" TERM; echo up; while :; do sleep 0.1; done'\n\
                    startsecs = 0\nstopwaitsecs = 600\n";
    for how in ["supervisor.shutdown", "supervisor.restart"] {
        let daemon = Daemon::start(stubborn)?;
        let sidecar = Sidecar::start(&daemon)?;
        let client = sidecar.client();
        client.call("twiddler.addGroup", ("g", 1))?;
        eventually(crate::common::LIMIT, || {
            let log = client.call("supervisor.readProcessLog", ("stubborn", 0, 2))?;
            ensure!(log == value("up"), "{log:?}");
            Ok(())
        })?;
        client.call(how, ())?;
        let calls = [
            ("getAPIVersion", params![]),
            ("getGroupNames", params![]),
            ("addGroup", params!["h", 1]),
            ("addProcessToGroup", params!["g", "p", sleeper()]),
            ("addProgramToGroup", params!["nope", "p", sleeper()]),
            ("removeProcessFromGroup", params!["g", "p"]),
            ("removeGroup", params!["g"]),
            ("log", params!["x"]),
        ];
        for (name, params) in calls {
            let fault = client.expect_fault(&format!("twiddler.{name}"), params)?;
            ensure_fault(&fault, SHUTDOWN_STATE, "SHUTDOWN_STATE").context(name)?;
        }
        ensure_include_holds(&daemon, &[])?;
        daemon.kill()?;
    }
    Ok(())
}

#[test]
fn while_the_users_files_are_broken_changes_say_so_and_change_nothing() -> Result<()> {
    let (daemon, _sidecar, client) = front()?;
    client.call("twiddler.addGroup", ("g", 1))?;
    client.call("twiddler.addGroup", ("full", 1))?;
    client.call("twiddler.addProcessToGroup", ("full", "own", sleeper()))?;
    let before = Picture::of(&daemon, &USER_GROUPS)?;
    daemon.write("conf.d/broken.conf", "[program:broken]\nautostart = true\n")?;
    let told: Fault = daemon.expect_fault("supervisor.reloadConfig", ())?;
    ensure!(told.code == CANT_REREAD, "{told:?}");
    let changes = [
        ("addGroup", params!["h", 1]),
        ("addProcessToGroup", params!["g", "p", sleeper()]),
        ("addProcessToGroup", params!["web", "p", sleeper()]),
        ("addProcessToGroup", params!["empty", "p", sleeper()]),
        ("addProcessToGroup", params!["full", "p", sleeper()]),
        ("removeProcessFromGroup", params!["full", "own"]),
    ];
    for (name, params) in changes {
        let fault = client.expect_fault(&format!("twiddler.{name}"), params)?;
        ensure_fault(&fault, told.code, &told.text).context(name)?;
        ensure_include_holds(&daemon, &["broken.conf"])?;
        before
            .ensure_same(&Picture::of(&daemon, &USER_GROUPS)?)
            .context(name)?;
        ensure!(group_names(&client)? == ["empty", "full", "g", "lone", "web"]);
    }
    // Options that are wrong by themselves are wrong first.
    let fault = client.expect_fault(
        "twiddler.addProcessToGroup",
        ("g", "p", options::<&str>(&[])),
    )?;
    ensure!(fault.code == INCORRECT_PARAMETERS, "{fault:?}");

    fs::remove_file(daemon.include_dir().join("broken.conf"))?;
    client.call("twiddler.addProcessToGroup", ("g", "p", sleeper()))?;
    client.call("twiddler.addProcessToGroup", ("web", "p", sleeper()))?;
    client.call("twiddler.removeProcessFromGroup", ("full", "own"))?;
    ensure_restarts_cleanly(&daemon)
}

// --- Who may call ---

fn ensure_shut_out(sidecar: &Sidecar, daemon: &Daemon) -> Result<()> {
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
    ensure_shut_out(sidecar, daemon)?;
    let client = Client::new(sidecar.tcp_addr()).with_credentials("user", password);
    client.call("twiddler.addGroup", ("g", 1))?;
    client.call("twiddler.addProcessToGroup", ("web", "c", sleeper()))?;
    client.call("supervisor.stopAllProcesses", ())?;
    client.call("twiddler.removeProcessFromGroup", ("web", "a"))?;
    client.call("supervisor.startProcessGroup", ("web",))?;
    client.call("supervisor.stopProcessGroup", ("web",))?;
    let shown = namespecs(&client)?;
    ensure!(shown == ["lone:lone", "web:b", "web:c"], "{shown:?}");
    // What one caller was let in with is no help for the next.
    ensure_shut_out(sidecar, daemon)?;
    ensure!(group_names(&client)? == ["empty", "g", "lone", "web"]);
    ensure!(namespecs(&client)? == shown);
    ensure_include_holds(daemon, &[])
}

#[test]
fn strangers_are_kept_out_where_the_proxy_knows_the_password() -> Result<()> {
    let daemon = Daemon::start_with(DaemonOptions {
        body: USER,
        credentials: Some(("user", "pass:w%rd")),
        ..DaemonOptions::default()
    })?;
    let sidecar = Sidecar::start(&daemon)?;
    ensure_only_known_callers(&daemon, &sidecar, "pass:w%rd")
}

/// The proxy starts when the file says this of the password, and the daemon has another mind.
fn only_those_with_the_callers_own_password(in_file_now: &str) -> Result<()> {
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
fn strangers_are_kept_out_where_the_proxy_knows_of_no_password() -> Result<()> {
    only_those_with_the_callers_own_password("")
}

#[test]
fn strangers_are_kept_out_where_the_proxy_knows_the_passwords_hash_alone() -> Result<()> {
    let hash = "e5e9fa1ba31ecd1ae84f75caaa474f3a663f05f4"; // of `secret`
    only_those_with_the_callers_own_password(&format!(
        "username = user\npassword = {{SHA}}{hash}\n"
    ))
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
        // As the daemon reads its own: the types stand in the help.
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
    let ensure_told = |wanted: &str, nth: usize, code: i64, text: &str| -> Result<()> {
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
    ensure_told("twiddler.addGroup", 1, 10, "BAD_NAME: g")?;
    ensure_told("twiddler.nope", 0, 1, "UNKNOWN_METHOD")?;
    ensure_told("supervisor.nope", 0, 1, "UNKNOWN_METHOD")?;
    ensure_told(
        "system.multicall",
        0,
        2,
        "INCORRECT_PARAMETERS: Recursive system.multicall forbidden",
    )?;
    ensure!(*at("twiddler.addProcessToGroup", 0)? == value(true));
    ensure!(*at("twiddler.addProcessToGroup", 1)? == value(true));
    ensure_told("twiddler.addProcessToGroup", 2, 10, "BAD_NAME: p")?;
    ensure!(*at("supervisor.startProcess", 0)? == value(true));
    ensure!(*at("supervisor.startProcess", 1)? == value(true));
    ensure_told("supervisor.startProcess", 2, 60, "ALREADY_STARTED: web:p")?;
    ensure_told("twiddler.removeProcessFromGroup", 0, 91, "STILL_RUNNING: p")?;
    ensure!(*at("supervisor.stopProcess", 0)? == value(true));
    ensure!(*at("twiddler.removeProcessFromGroup", 1)? == value(true));
    ensure_told("supervisor.getProcessInfo", 0, 10, "BAD_NAME: web:p")?;
    ensure!(texts(at("twiddler.getGroupNames", 0)?)? == ["empty", "g", "lone", "web"]);
    ensure_told("twiddler.removeGroup", 0, 91, "STILL_RUNNING: p")?;
    ensure!(column(at("supervisor.stopProcessGroup", 0)?, "name")? == ["p"]);
    ensure!(*at("twiddler.removeGroup", 1)? == value(true));
    ensure!(*at("twiddler.log", 0)? == value(true));
    ensure_told("twiddler.log", 1, 2, "INCORRECT_PARAMETERS")?;
    ensure!(texts(at("system.methodSignature", 0)?)? == ["boolean", "string"]);
    ensure!(*at("supervisor.getAPIVersion", 0)? == value("3.0"));
    ensure!(daemon.log().contains(" INFO mixed in\n"));
    ensure!(namespecs(&daemon.client())? == ["lone:lone", "web:a", "web:b"]);

    // A call without a name is told so in the daemon's words, whatever stands beside it.
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

/// The lines of the daemon's log that hold `wanted`, without their times.
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

// --- Values ---

const LETTERS: &[&str] = &[
    "a",
    "B",
    "7",
    " ",
    "  ",
    "\t",
    "\n",
    "\n\n",
    "\n ",
    ";",
    " ;",
    "#",
    " #",
    "\n#",
    "[",
    "]",
    "\n[program:a]\n",
    "\ncommand=/bin/false",
    "\n[include]\nfiles=/etc/*",
    "=",
    ":",
    "%%",
    "%%(here)s",
    "\\",
    "\"",
    "'",
    ",",
    "~",
    "$",
    "`",
    "&",
    "<",
    ">",
    "]]>",
    "\u{85}",
    "\u{a0}",
    "\u{2028}",
    "\u{3000}",
    "ä",
    "\u{1f600}",
    "-",
    "/",
    "*",
    "{",
    "}",
];

fn hostile(dice: &mut Dice, without: &[char]) -> String {
    let mut text = String::new();
    while text.trim().is_empty() {
        text = (0..1 + dice.roll(12)).map(|_| dice.pick(LETTERS)).collect();
        text.retain(|letter| !without.contains(&letter));
    }
    text
}

/// What the daemon makes of a text that has no expansions in it.
fn expanded(text: &str) -> String {
    text.replace("%%", "%")
}

#[test]
fn a_thousand_hostile_values_arrive_whole() -> Result<()> {
    const BATCHES: usize = 10;
    const BATCH: usize = 100;
    let (daemon, _sidecar, client) = front()?;
    let users = ["web", "lone"];
    let before = Picture::of(&daemon, &users)?;
    client.call("twiddler.addGroup", ("g", 1))?;
    let mut dice = Dice::new(1);
    for batch in 0..BATCHES {
        let programs: Vec<(String, String, String)> = (0..BATCH)
            .map(|index| {
                (
                    format!("h{batch}-{index}"),
                    hostile(&mut dice, &[]),
                    hostile(&mut dice, &[]),
                )
            })
            .collect();
        let calls: Vec<(&str, Vec<Value>)> = programs
            .iter()
            .map(|(name, command, directory)| {
                let given = options(&[
                    ("command", command.as_str()),
                    ("directory", directory),
                    ("autostart", "false"),
                ]);
                ("twiddler.addProcessToGroup", params!["g", name, given])
            })
            .collect();
        for (result, (name, command, directory)) in client.multicall(&calls)?.iter().zip(&programs)
        {
            ensure!(
                *result == value(true),
                "{name}: {result:?} for {command:?} in {directory:?}"
            );
        }
        let configs = daemon.call("supervisor.getAllConfigInfo", ())?;
        for (name, command, directory) in &programs {
            let mut found = items(&configs)?
                .iter()
                .filter(|config| member(config, "name").is_ok_and(|found| found == &value(name)));
            let (Some(config), None) = (found.next(), found.next()) else {
                anyhow::bail!("{name} is not there just once");
            };
            for (option, sent) in [("command", command), ("directory", directory)] {
                let arrived = text(member(config, option)?)?;
                ensure!(
                    arrived == expanded(sent),
                    "{name}: {option} {sent:?} arrived as {arrived:?}"
                );
            }
        }
        let names = group_names(&client)?;
        ensure!(names == ["empty", "g", "lone", "web"], "{names:?}");
    }
    let after = Picture::of(&daemon, &users)?;
    before
        .of_groups(&users)
        .ensure_same(&after.of_groups(&users))?;
    ensure_include_holds(&daemon, &[])?;
    ensure_restarts_cleanly(&daemon)
}

#[test]
fn what_a_child_is_given_is_what_was_sent() -> Result<()> {
    const PROGRAMS: usize = 40;
    let (_daemon, _sidecar, client) = front()?;
    client.call("twiddler.addGroup", ("g", 1))?;
    let mut dice = Dice::new(2);
    for index in 0..PROGRAMS {
        let group = ["g", "web"][index % 2];
        let name = format!("h{index}");
        let arguments: Vec<String> = (0..1 + dice.roll(4))
            .map(|_| hostile(&mut dice, &[]))
            .collect();
        // Nothing can be escaped in a value of `environment`.
        let variable = hostile(&mut dice, &['"', '\'']);
        let quoted: Vec<String> = arguments
            .iter()
            .map(|argument| format!("'{}'", argument.replace('\'', "'\"'\"'")))
            .collect();
        let given = options(&[
            (
                "command",
                format!("/bin/sh -c 'read x' {}", quoted.join(" ")),
            ),
            (
                "environment",
                format!("A=\"{variable}\",B=\"%(program_name)s %(group_name)s\""),
            ),
            ("autostart", "false".to_owned()),
            ("startsecs", "0".to_owned()),
        ]);
        client.call("twiddler.addProcessToGroup", (group, &name, given))?;
        let namespec = format!("{group}:{name}");
        client.call("supervisor.startProcess", (&namespec,))?;
        let info = client.call("supervisor.getProcessInfo", (&namespec,))?;
        let pid = number(member(&info, "pid")?)?;
        let (cmdline, environ) = eventually(crate::common::LIMIT, || {
            let cmdline = fs::read(format!("/proc/{pid}/cmdline"))?;
            ensure!(
                cmdline.starts_with(b"/bin/sh\0"),
                "not yet what it was started as"
            );
            Ok((cmdline, fs::read(format!("/proc/{pid}/environ"))?))
        })?;
        let words = |bytes: &[u8]| -> Vec<String> {
            let text = String::from_utf8_lossy(bytes).into_owned();
            text.trim_end_matches('\0')
                .split('\0')
                .map(str::to_owned)
                .collect()
        };
        let mut expected: Vec<String> = ["/bin/sh", "-c", "read x"].map(str::to_owned).into();
        expected.extend(arguments.iter().map(|argument| expanded(argument)));
        ensure!(
            words(&cmdline) == expected,
            "{:?} and not {expected:?}",
            words(&cmdline)
        );
        let environ = words(&environ);
        for entry in [
            format!("A={}", expanded(&variable)),
            format!("B={name} {group}"),
            format!("SUPERVISOR_GROUP_NAME={group}"),
            format!("SUPERVISOR_PROCESS_NAME={name}"),
        ] {
            ensure!(environ.contains(&entry), "no {entry:?} in {environ:?}");
        }
        client.call("supervisor.stopProcess", (&namespec, false))?;
    }
    Ok(())
}
