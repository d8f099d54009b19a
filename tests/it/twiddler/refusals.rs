//! Refused calls change nothing.

use std::fs;

use super::{
    BAD_NAME, CANT_REREAD, INCORRECT_PARAMETERS, NOT_IN_WHITELIST, SHUTDOWN_STATE, STILL_RUNNING,
    UNKNOWN_METHOD, USER, USER_GROUPS, ensure_restarts_cleanly, front, group_names, sleeper,
};
use crate::common::include::ensure_include_holds;
use crate::common::{
    Client, Daemon, Picture, Sidecar, ensure_fault, eventually, options, text, texts, value,
};
use anyhow::{Context, Result, ensure};
use supervisor_twiddler::xmlrpc::{Fault, Value};

/// A call that must fail, and its fault.
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

/// Makes each call, and checks after each that nothing has changed.
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
    let wrong_type = [
        value(5),
        value(true),
        value(1.5),
        value(()),
        value(vec![value("g")]),
        sleeper(),
    ];
    for wrong_type in wrong_type {
        let mut wrong = |method, params| {
            calls.push(refused(
                method,
                params,
                INCORRECT_PARAMETERS,
                "INCORRECT_PARAMETERS",
            ));
        };
        wrong("twiddler.addGroup", params![&wrong_type, 1]);
        wrong(
            "twiddler.addProcessToGroup",
            params!["g", &wrong_type, sleeper()],
        );
        wrong("twiddler.removeProcessFromGroup", params![&wrong_type, "p"]);
        wrong("twiddler.removeProcessFromGroup", params!["g", &wrong_type]);
        wrong("twiddler.removeGroup", params![&wrong_type]);
        wrong("twiddler.log", params![&wrong_type]);
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
        // The fault about an unknown group comes before one about invalid options.
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
fn the_daemons_faults_name_the_clients_program() -> Result<()> {
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
    for (entries, reason) in table {
        for group in ["g", "web"] {
            let fault = client.expect_fault(
                "twiddler.addProcessToGroup",
                (group, "ls", options(entries)),
            )?;
            let text = format!("INCORRECT_PARAMETERS: {reason}");
            let ending = format!(" in section 'program:ls' (file: '{main_file}')");
            let well = fault.code == INCORRECT_PARAMETERS
                && fault.text.starts_with(&text)
                && fault.text.ends_with(&ending)
                && !fault.text.contains('~');
            ensure!(
                well,
                "{entries:?} in {group}: {fault:?}\nand not {text}...{ending}"
            );
            ensure_include_holds(&daemon, &[])?;
            before.ensure_same(&Picture::of(&daemon, &USER_GROUPS)?)?;
        }
    }
    ensure_restarts_cleanly(&daemon)
}

#[test]
fn only_whitelisted_methods_can_be_called_and_all_are_listed() -> Result<()> {
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
fn every_call_is_refused_while_the_daemon_shuts_down() -> Result<()> {
    // The process ignores SIGTERM, so the daemon stays in shutdown until the test kills it.
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
fn invalid_user_files_refuse_changes_with_the_daemons_fault() -> Result<()> {
    let (daemon, _sidecar, client) = front()?;
    client.call("twiddler.addGroup", ("g", 1))?;
    client.call("twiddler.addGroup", ("full", 1))?;
    client.call("twiddler.addProcessToGroup", ("full", "own", sleeper()))?;
    let before = Picture::of(&daemon, &USER_GROUPS)?;
    daemon.write("conf.d/broken.conf", "[program:broken]\nautostart = true\n")?;
    let expected: Fault = daemon.expect_fault("supervisor.reloadConfig", ())?;
    ensure!(expected.code == CANT_REREAD, "{expected:?}");
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
        ensure_fault(&fault, expected.code, &expected.text).context(name)?;
        ensure_include_holds(&daemon, &["broken.conf"])?;
        before
            .ensure_same(&Picture::of(&daemon, &USER_GROUPS)?)
            .context(name)?;
        ensure!(group_names(&client)? == ["empty", "full", "g", "lone", "web"]);
    }
    // The fault about invalid options comes first.
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
