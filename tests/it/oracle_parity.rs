//! Compares replies and fault texts with those of supervisor_twiddler 1.0.0, which runs inside another
//! daemon. Both get the same calls and have to return the same answers.

use crate::common::pair::{Answer, Pair, plain_table};
use crate::common::{Daemon, member, number, options, text, value};
use anyhow::{Context, Result, ensure};
use supervisor_twiddler::xmlrpc::Value;

const USER: &str = "\
[group:web]
programs = a,b

[program:a]
command = /bin/sleep 600
startsecs = 0

[program:b]
command = /bin/sleep 600
autostart = false

[program:lone]
command = /bin/sleep 600
autostart = false

[group:empty]
programs =
";

fn start(whitelist: &str) -> Result<Pair> {
    let pair = Pair::start_with(USER, whitelist)?;
    pair.both_reach("web:a", "RUNNING")?;
    Ok(pair)
}

const ADD: &str = "twiddler.addProgramToGroup";
const REMOVE: &str = "twiddler.removeProcessFromGroup";

fn program(more: &[(&str, &str)]) -> Value {
    options(
        &[
            &[("command", "/bin/sleep 600"), ("autostart", "false")],
            more,
        ]
        .concat(),
    )
}

#[test]
fn processes_come_and_go_alike() -> Result<()> {
    let pair = start("")?;
    let same = |method: &str, params: Vec<Value>| pair.ensure_same(method, &params);
    for group in ["web", "lone", "empty"] {
        same(ADD, params![group, "p", program(&[])])?;
        same(ADD, params![group, "p", program(&[])])?;
        same(
            ADD,
            params![
                group,
                "q",
                program(&[
                    ("numprocs", "3"),
                    ("process_name", "%(program_name)s%(process_num)d")
                ])
            ],
        )?;
        same(ADD, params![group, "r", program(&[("process_name", "p")])])?;
        same(
            ADD,
            params![
                group,
                "r",
                program(&[("process_name", "%(group_name)s-%(program_name)s")])
            ],
        )?;
        same(
            "supervisor.startProcess",
            params![format!("{group}:p"), false],
        )?;
        same(REMOVE, params![group, "q1"])?;
        same(REMOVE, params![group, "q1"])?;
        same(REMOVE, params![group, "p"])?;
        same("supervisor.stopProcess", params![format!("{group}:p")])?;
        same(REMOVE, params![group, "p"])?;
        same("supervisor.startProcess", params![format!("{group}:p")])?;
        same(ADD, params![group, "p", program(&[])])?;
    }
    for (group, process) in [
        ("web", "a"),
        ("web", "b"),
        ("web", "nope"),
        ("web", ""),
        ("lone", "lone"),
        ("nope", "a"),
        ("", ""),
    ] {
        same(REMOVE, params![group, process])?;
    }
    same("supervisor.stopProcess", params!["web:a"])?;
    same(REMOVE, params!["web", "a"])?;
    same(ADD, params!["web", "a", program(&[])])?;
    same("supervisor.startProcess", params!["web:a", false])?;
    let groups = |answer: Answer| -> Result<Vec<String>> {
        let Answer::Value(Value::Array(names)) = answer else {
            anyhow::bail!("{answer:?}")
        };
        let mut names = names
            .iter()
            .map(|name| Ok(text(name)?.to_owned()))
            .collect::<Result<Vec<_>>>()?;
        names.sort(); // supervisor_twiddler returns the order of the file
        Ok(names)
    };
    let method = "twiddler.getGroupNames";
    ensure!(groups(pair.our_answer(method, &[])?)? == groups(pair.oracle_answer(method, &[])?)?);
    same("twiddler.getAPIVersion", params![])?;
    Ok(())
}

#[test]
fn wrong_calls_are_refused_alike() -> Result<()> {
    let pair = start("")?;
    let same = |method: &str, params: Vec<Value>| pair.ensure_same(method, &params);
    for method in [
        ADD,
        REMOVE,
        "twiddler.log",
        "twiddler.getAPIVersion",
        "twiddler.getGroupNames",
    ] {
        let good = params!["web", "x", program(&[]), "x", 1];
        let valid_counts = match method {
            ADD => 3..=3,
            REMOVE => 2..=2,
            "twiddler.log" => 1..=2,
            _ => 0..=0,
        };
        for count in (0..=5).filter(|count| !valid_counts.contains(count)) {
            same(method, good[..count].to_vec())?;
        }
    }
    for method in [
        "twiddler.nope",
        "twiddler.",
        "twiddler",
        "twiddler._update",
        "twiddler.log.x",
        "nope.log",
    ] {
        same(method, params![])?;
        same(method, params!["web", "x"])?;
    }
    same(ADD, params!["nope", "x", program(&[])])?;
    same(ADD, params!["nope", "x", options::<&str>(&[])])?;
    same(ADD, params!["web:a", "x", program(&[])])?;
    same(ADD, params!["", "x", program(&[])])?;
    for name in ["a b", "a:b", "a/b", " a:b "] {
        same(ADD, params!["web", name, program(&[])])?;
    }
    Ok(())
}

#[test]
fn the_daemons_reasons_are_returned_alike() -> Result<()> {
    let pair = start("")?;
    let table: &[(&str, &str)] = &[
        ("autostart", "maybe"),
        ("autorestart", "perhaps"),
        ("startsecs", "soon"),
        ("startretries", ""),
        ("priority", "1.5"),
        ("exitcodes", "0,a"),
        ("stopsignal", "NOPE"),
        ("stopwaitsecs", "x"),
        ("umask", "9"),
        ("user", "no-such-user"),
        ("killasgroup", "2"),
        ("redirect_stderr", "si"),
        ("environment", "A"),
        ("environment", "A=%(nope)s"),
        ("environment", "A=\"b"),
        ("directory", "%(nope)s"),
        ("directory", "%(process_num)q"),
        ("command", "x %"),
        ("command", "x %(nope)s"),
        ("command", "x %(process_num)x %(ENV_NOPE)s"),
        ("stdout_logfile", "/no/such/dir/x.log"),
        ("stdout_logfile", "%(nope)s"),
        ("stderr_logfile", "/no/such/dir/x.log"),
        ("stdout_logfile_maxbytes", "many"),
        ("stdout_logfile_backups", "x"),
        ("stdout_capture_maxbytes", "x"),
        ("stdout_events_enabled", "x"),
        ("stderr_syslog", "x"),
        ("numprocs", "2"),
        ("numprocs", "two"),
        ("numprocs_start", "x"),
        ("process_name", "a b"),
        ("process_name", "a:b"),
        ("process_name", "%(nope)s"),
        ("stopasgroup", "true"),
        ("priority", "5"),
        ("x-unknown", "anything %(at)s all"),
        ("serverurl", "AUTO"),
    ];
    let mut failures = Vec::new();
    for (option, text) in table {
        let options = match program(&[]) {
            Value::Struct(mut members) => {
                members.retain(|(name, _)| name != option);
                members.push(((*option).to_owned(), value(*text)));
                Value::Struct(members)
            }
            other => other,
        };
        for group in ["web", "empty"] {
            if let Err(error) = pair.ensure_same(ADD, &params![group, "p", options.clone()]) {
                failures.push(format!("{error:#}"));
            }
            for process in ["p", "%(program_name)s"] {
                pair.oracle_answer(REMOVE, &params![group, process])?;
                pair.our_answer(REMOVE, &params![group, process])?;
            }
        }
    }
    let killed = program(&[("stopasgroup", "true"), ("killasgroup", "false")]);
    pair.ensure_same(ADD, &params!["web", "p", killed])?;
    pair.ensure_same(
        ADD,
        &params!["web", "p", options(&[("autostart", "false")])],
    )?;
    ensure!(failures.is_empty(), "{}", failures.join("\n"));
    Ok(())
}

#[test]
fn options_have_the_same_effect() -> Result<()> {
    let pair = start("")?;
    let script = "env | grep -E \"^(A|SUPERVISOR_(GROUP|PROCESS)_NAME)=\" | sort; umask; pwd; for a; do echo \"<$a>\"; done";
    let table: &[&[(&str, &str)]] = &[
        &[],
        &[("environment", "A=\"1\"")],
        &[(
            "environment",
            "A=\"%(program_name)s %(group_name)s %(process_num)d %(numprocs)d\"",
        )],
        &[("environment", "A=\"x ; y # z\"")],
        &[("environment", "A=1,SUPERVISOR_GROUP_NAME=mine")],
        &[("umask", "027"), ("directory", "/usr")],
        &[("directory", "%(here)s")],
        &[("COMMAND_IGNORED", "x"), ("Environment", "A=upper")],
        &[
            ("numprocs_start", "5"),
            ("process_name", "p"),
            ("environment", "A=%(process_num)03d"),
        ],
        &[
            ("redirect_stderr", "true"),
            ("stdout_logfile_maxbytes", "1MB"),
        ],
    ];
    for more in table {
        let command = format!(
            "/bin/sh -c '{script}' sh 'a b' \"c ; d\" %(program_name)s %(here)s 100%% e\n f [g]"
        );
        let mut members = vec![
            ("command", command.as_str()),
            ("autostart", "false"),
            ("autorestart", "false"),
            ("startsecs", "0"),
        ];
        members.extend_from_slice(more);
        for group in ["web", "empty"] {
            pair.ensure_same(ADD, &params![group, "p", options(&members)])?;
            let name = format!("{group}:p");
            let mut outputs = Vec::new();
            for (client, daemon) in [
                (pair.oracle.client(), &*pair.oracle),
                (pair.sidecar.client(), &pair.daemon),
            ] {
                client.call("supervisor.startProcess", (&name, false))?;
                crate::common::eventually(crate::common::LIMIT, || {
                    let info = client.call("supervisor.getProcessInfo", (&name,))?;
                    ensure!(text(member(&info, "statename")?)? == "EXITED", "{info:?}");
                    ensure!(number(member(&info, "exitstatus")?)? == 0, "{info:?}");
                    Ok(())
                })?;
                let log = client.call("supervisor.readProcessLog", (&name, 0, 0))?;
                outputs.push(text(&log)?.replace(&daemon.dir().display().to_string(), "DIR"));
            }
            ensure!(
                outputs[0] == outputs[1],
                "{more:?}\n  supervisor_twiddler {}\n  proxy               {}",
                outputs[0],
                outputs[1]
            );
            ensure!(outputs[0].contains("<f>\n<[g]>\n"), "{}", outputs[0]);
            pair.ensure_same(REMOVE, &params![group, "p"])?;
        }
    }
    Ok(())
}

#[test]
fn the_log_is_written_alike() -> Result<()> {
    let pair = start("")?;
    let levels = [
        params![],
        params!["INFO"],
        params!["info"],
        params!["Warn"],
        params!["ERRO"],
        params!["CRIT"],
        params!["DEBG"],
        params!["TRAC"],
        params!["BLAT"],
        params![50],
        params![20],
        params![10],
        params![3],
        params!["loud"],
        params![""],
        params![7],
        params![0],
        params![-1],
    ];
    for level in &levels {
        pair.ensure_same(
            "twiddler.log",
            &[params!["said so"], level.clone()].concat(),
        )?;
    }
    for message in [
        "",
        " said so ",
        "said so: ä 100% %(x)s",
        // Only supervisor_twiddler writes a line break as two lines; tests/it/main_log.rs tests the proxy.
        "<said & so>",
    ] {
        pair.ensure_same("twiddler.log", &params![message])?;
    }
    let lines = |daemon: &Daemon| -> Vec<String> {
        let log = daemon.log();
        let lines = log.lines().skip_while(|line| !line.contains("said"));
        let without_time = |line: &str| match line.splitn(3, ' ').nth(2) {
            Some(rest) if line.starts_with("20") => rest.to_owned(),
            _ => line.to_owned(),
        };
        lines.map(without_time).collect()
    };
    ensure!(
        lines(&pair.daemon) == lines(&pair.oracle),
        "{:#?}\n{:#?}",
        lines(&pair.daemon),
        lines(&pair.oracle)
    );

    // The proxy also accepts the names of levels in a configuration file.
    let fault = Answer::Fault(2, "INCORRECT_PARAMETERS".to_owned());
    let success = Answer::Value(value(true));
    for level in ["critical", "error", "debug", "trace", "blather"] {
        pair.ensure_differs("twiddler.log", &params!["x", level], &fault, &success)?;
    }
    Ok(())
}

#[test]
fn faults_of_the_whitelist_only_differ_in_their_text() -> Result<()> {
    let pair = start("getAPIVersion,log")?;
    pair.ensure_same("twiddler.getAPIVersion", &[])?;
    pair.ensure_same("twiddler.log", &params!["x"])?;
    let calls = [
        ("getGroupNames", params![]),
        ("addProgramToGroup", params!["web", "p", program(&[])]),
        ("removeProcessFromGroup", params!["nope", "p"]),
    ];
    for (name, params) in calls {
        let oracles = Answer::Fault(230, format!("UNKNOWN: {name}"));
        let proxys = Answer::Fault(230, format!("NOT_IN_WHITELIST: {name}"));
        pair.ensure_differs(&format!("twiddler.{name}"), &params, &oracles, &proxys)?;
    }
    pair.ensure_same("twiddler.nope", &[])?;
    pair.ensure_same(REMOVE, &params!["web"])?;
    Ok(())
}

/// supervisor_twiddler accepts these options, which block or end its daemon.
#[test]
fn options_that_harm_the_oracles_daemon_are_refused() -> Result<()> {
    let odd = [value(5), value(true), value(1.5), value(vec![value("x")])];
    for odd in odd {
        let pair = start("")?;
        // The proxy converts numbers and booleans to text, and refuses other values.
        let members = options(&[
            ("command", value("/bin/cat")),
            ("autostart", value(false)),
            ("startsecs", odd.clone()),
        ]);
        let answer = pair.our_answer(ADD, &params!["web", "p", members])?;
        let is_expected = match odd {
            Value::Int(_) => answer == Answer::Value(value(true)),
            _ => {
                matches!(&answer, Answer::Fault(2, text) if text.starts_with("INCORRECT_PARAMETERS: "))
            }
        };
        ensure!(is_expected, "{odd:?}: {answer:?}");
        ensure!(pair.daemon.is_alive());
    }
    let pair = start("")?;
    let harmful: &[(&str, &[(&str, &str)])] = &[
        ("", &[("command", "x")]),
        ("p", &[("command", "x"), ("process_name", "")]),
        ("p", &[("command", "x"), ("process_name", "*")]),
        ("p", &[("command", "x %s")]),
        ("p", &[("command", "x"), ("numprocs", "0")]),
        ("p", &[("command", "x"), ("numprocs", "-1")]),
        (
            "p",
            &[
                ("command", "x"),
                ("numprocs", "2"),
                ("process_name", "%(process_num)c"),
            ],
        ),
        ("p", &[("command", "x"), ("priority", "99999999999")]),
        ("p", &[("command", "x\u{1}")]),
    ];
    for (name, members) in harmful {
        let answer = pair.our_answer(ADD, &params!["web", *name, options(members)])?;
        ensure!(
            matches!(&answer, Answer::Fault(2, text) if text.starts_with("INCORRECT_PARAMETERS"))
                || answer == Answer::Http(400),
            "{name:?} {members:?}: {answer:?}"
        );
        plain_table(&pair.sidecar.client())
            .with_context(|| format!("after {name:?} {members:?}"))?;
        pair.daemon.call("supervisor.getAllConfigInfo", ())?;
    }
    Ok(())
}
