//! `diff`, `update`, `scale`, `programs`, `set` and `export` on a real daemon.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};

use crate::common::relay::Relay;
use crate::common::schema::ensure_documents;
use crate::common::sidecar::verb_command;
use crate::common::{
    Addr, Daemon, DaemonOptions, LIMIT, Sidecar, eventually, rows, run, stderr_text, stdout_text,
};

const FILE: &str = "conf.d/web.conf";
const WEB: &str = "[group:web]\nprograms=a,b,c\n[program:a]\ncommand=/bin/sleep 600\n\
    [program:b]\ncommand=/bin/sleep 601\nenvironment=TOKEN=\"secret\"\n\
    [program:c]\ncommand=/bin/sleep 602\nnumprocs=2\nprocess_name=%(program_name)s_%(process_num)02d\n\
    [program:lone]\ncommand=/bin/sleep 603\n";

/// Exit status, standard output, standard error.
fn verb(sidecar: &Sidecar, words: &[&str]) -> Result<(i32, String, String)> {
    let output = run(&mut verb_command(Addr::Unix(sidecar.socket()), words))?;
    let code = output.status.code().context("ended by a signal")?;
    Ok((code, stdout_text(&output), stderr_text(&output)))
}

/// Runs a verb, and checks its exit status, its whole standard output, and a part of its standard error.
fn ensure_verb(
    sidecar: &Sidecar,
    words: &[&str],
    code: i32,
    printed: &str,
    stderr: &str,
) -> Result<()> {
    let verb = verb(sidecar, words)?;
    ensure!(
        verb.0 == code && verb.1 == printed && verb.2.contains(stderr),
        "{words:?}: {verb:?}"
    );
    Ok(())
}

fn start() -> Result<(Daemon, Sidecar)> {
    let daemon = Daemon::start_with(DaemonOptions {
        files: &[(FILE, WEB)],
        ..DaemonOptions::default()
    })?;
    let sidecar = Sidecar::start(&daemon)?;
    let running = ["wait", "all", "--for", "running", "--timeout", "30"];
    ensure!(verb(&sidecar, &running)?.0 == 0);
    // The proxy records the sections that the groups were started from.
    ensure_verb(&sidecar, &["diff"], 0, "", "")?;
    Ok((daemon, sidecar))
}

fn pids(sidecar: &Sidecar) -> Result<BTreeMap<String, i64>> {
    let rows = rows(&sidecar.client())?.into_iter();
    Ok(rows.map(|row| (row.namespec(), row.pid)).collect())
}

#[test]
fn an_update_does_what_its_dry_run_says_and_diff_shows_why() -> Result<()> {
    let (daemon, sidecar) = start()?;
    daemon.write(
        FILE,
        &WEB.replace("sleep 601", "sleep 611")
            .replace("secret", "other"),
    )?;
    let (code, block, _) = verb(&sidecar, &["diff"])?;
    ensure!(code == 1, "{block}");
    for line in [
        "changed web:b",
        "- command = /bin/sleep 601",
        "+ command = /bin/sleep 611",
        "~ environment.TOKEN differs; its values are not shown",
        "update would restart web:b",
    ] {
        ensure!(
            block.lines().any(|printed| printed == line),
            "{line}: {block}"
        );
    }
    ensure!(
        !block.contains("secret") && !block.contains("other"),
        "{block}"
    );
    ensure_verb(&sidecar, &["diff", "lone"], 0, "", "")?;
    ensure_verb(&sidecar, &["diff", "nobody"], 2, "", "nobody")?;
    ensure_documents("diff", &verb(&sidecar, &["diff", "-o", "json"])?.1)?;
    let mut before = pids(&sidecar)?;
    let (code, plan, stderr) = verb(&sidecar, &["update", "--dry-run"])?;
    ensure!(
        code == 0 && stderr.contains("nothing was changed"),
        "{stderr}"
    );
    ensure!(plan.starts_with("web:b: restarted\n"), "{plan}");
    ensure!(pids(&sidecar)? == before, "a dry run restarted a process");
    ensure_verb(&sidecar, &["update"], 0, &plan, "")?;
    let mut after = pids(&sidecar)?;
    ensure!(before.remove("web:b") != after.remove("web:b"));
    ensure!(before == after, "{before:?} {after:?}");
    ensure_verb(&sidecar, &["diff"], 0, "", "")?;
    ensure_documents("update", &verb(&sidecar, &["update", "-o", "json"])?.1)?;
    // An invalid file stops no process.
    let before = pids(&sidecar)?;
    daemon.write(FILE, &WEB.replace("sleep 601", "sleep 611\numask=99"))?;
    ensure_verb(&sidecar, &["diff"], 2, "", "are not valid")?;
    ensure_verb(&sidecar, &["update"], 1, "", "are not valid")?;
    ensure!(pids(&sidecar)? == before);
    Ok(())
}

#[test]
fn programs_are_scaled_and_listed() -> Result<()> {
    let (_daemon, sidecar) = start()?;
    let up = "web:c_02: started\nweb:c_03: started\n";
    ensure_verb(
        &sidecar,
        &["scale", "web:c=+2"],
        0,
        up,
        "2 started, 0 stopped",
    )?;
    // A scaled program is no difference.
    ensure!(verb(&sidecar, &["diff"])?.0 == 0);
    let (_, table, _) = verb(&sidecar, &["programs"])?;
    let line = |program: &str| -> Vec<&str> {
        let mut lines = table.lines().map(|line| line.split_whitespace().collect());
        lines
            .find(|words: &Vec<&str>| words.first() == Some(&program))
            .unwrap_or_default()
    };
    ensure!(
        line("lone") == ["lone", "configured", "program", "1", "lone"],
        "{table}"
    );
    let four = [
        "web:c",
        "configured",
        "program",
        "4",
        "c_00",
        "c_01",
        "c_02",
        "c_03",
    ];
    ensure!(line("web:c") == four, "{table}");
    let down = "web:c_02: stopped\nweb:c_03: stopped\n";
    ensure_verb(
        &sidecar,
        &["scale", "web:c=2"],
        0,
        down,
        "0 started, 2 stopped",
    )?;
    ensure_verb(
        &sidecar,
        &["scale", "web:a=2"],
        1,
        "",
        "process_name has to contain",
    )?;
    let (code, text, stderr) = verb(&sidecar, &["scale", "web:nobody=2"])?;
    ensure!(code == 1 && text.is_empty(), "{text}");
    ensure!(
        stderr == "twiddler: no such program: web:nobody\n",
        "{stderr}"
    );
    // The output is one document even if the last scale fails.
    let several = ["-o", "json", "scale", "web:c=3", "web:a=0", "web:b=2"];
    let (code, text, stderr) = verb(&sidecar, &several)?;
    ensure!(code == 1 && stderr.contains("process_name"), "{stderr}");
    ensure_documents("scale", &text)?;
    let scaled: serde_json::Value = serde_json::from_str(&text)?;
    let expected = serde_json::json!({"started": ["web:c_02"], "stopped": ["web:a"]});
    ensure!(scaled == expected, "{text}");
    ensure_documents("programs", &verb(&sidecar, &["programs", "-o", "json"])?.1)
}

/// A scale is measured by the `numprocs` of the last update, also if the update only removed processes.
#[test]
fn scales_are_measured_by_the_last_update() -> Result<()> {
    let (daemon, sidecar) = start()?;
    let numprocs = |number: u32| {
        let number = format!("numprocs={number}");
        daemon.write(FILE, &WEB.replace("numprocs=2", &number))
    };
    let differs = |old: u32, new: u32, does: &str| {
        let (code, text, _) = verb(&sidecar, &["diff"])?;
        let numbers = format!("- numprocs = {old}\n+ numprocs = {new}\n\nupdate would {does}\n");
        ensure!(
            code == 1 && text == format!("changed web:c\n{numbers}"),
            "{text}"
        );
        Ok(())
    };
    let is_scaled = |old: u32, new: u32| {
        let (code, text, _) = verb(&sidecar, &["diff"])?;
        let numbers = format!("scaled web:c\n- numprocs = {old}\n+ numprocs = {new}\n");
        ensure!(code == 0 && text.starts_with(&numbers), "{text}");
        Ok(())
    };
    numprocs(1)?;
    differs(2, 1, "stop web:c_01")?;
    ensure!(verb(&sidecar, &["update"])?.0 == 0);
    ensure!(verb(&sidecar, &["scale", "web:c=2"])?.0 == 0);
    is_scaled(2, 1)?;
    ensure!(verb(&sidecar, &["scale", "web:c=1"])?.0 == 0);
    ensure_verb(&sidecar, &["diff"], 0, "", "")?;
    numprocs(3)?;
    differs(1, 3, "start web:c_01, web:c_02")?;
    ensure!(verb(&sidecar, &["update"])?.0 == 0);
    ensure!(verb(&sidecar, &["scale", "web:c=4"])?.0 == 0);
    is_scaled(4, 3)?;
    numprocs(5)?;
    differs(3, 5, "start web:c_04")
}

#[test]
fn an_added_program_is_changed_and_exported_as_supervisord_reads_it() -> Result<()> {
    let (_daemon, sidecar) = start()?;
    ensure_verb(&sidecar, &["export"], 0, "", "nothing was added")?;
    let (code, _, stderr) = verb(&sidecar, &["export", "nobody"])?;
    ensure!(
        code == 1 && stderr == "twiddler: nothing was added to a group nobody\n",
        "{stderr}"
    );
    let add = [
        "add",
        "jobs:z",
        "--create-group",
        "-O",
        "startsecs=0",
        "-O",
        "umask=022",
        "--",
    ];
    let command = ["sh", "-c", "echo '100% ;x'; exec sleep 900"];
    ensure!(verb(&sidecar, &[&add[..], &command].concat())?.0 == 0);
    let before = pids(&sidecar)?;
    let set = ["set", "jobs:z", "stopsignal=INT", "umask="];
    ensure!(verb(&sidecar, &set)?.0 == 0);
    ensure!(pids(&sidecar)?["web:a"] == before["web:a"]);
    let configured = ["set", "web:a", "umask=022"];
    ensure_verb(&sidecar, &configured, 1, "", "edit them and update")?;
    let (code, text, _) = verb(&sidecar, &["export", "jobs"])?;
    ensure!(code == 0, "{text}");
    ensure!(
        text.contains("\nstopsignal=INT") && !text.contains("umask") && !text.contains("numprocs"),
        "{text}"
    );
    ensure_verb(&sidecar, &["export", "-o", "name"], 0, "jobs:z\n", "")?;
    ensure_documents("export", &verb(&sidecar, &["export", "-o", "json"])?.1)?;
    let copy = Daemon::start(&text)?;
    copy.wait_for_state("jobs:z", "RUNNING")?;
    eventually(LIMIT, || {
        let log = copy.call("supervisor.readProcessStdoutLog", params!["jobs:z", 0, 0])?;
        ensure!(log.as_str() == Some("100% ;x\n"), "{log:?}");
        Ok(())
    })
}

/// A program can be removed between the list of programs and the query for its options.
#[test]
fn an_export_skips_a_program_that_is_removed_meanwhile() -> Result<()> {
    for format in ["table", "json"] {
        let (_daemon, sidecar) = start()?;
        for name in ["jobs:gone", "jobs:stays"] {
            let options = ["--create-group", "-O", "autostart=false", "--", "cat"];
            let add = [&["add", name][..], &options].concat();
            ensure!(verb(&sidecar, &add)?.0 == 0);
        }
        let client = sidecar.client();
        let relay = Relay::looking(sidecar.dir(), &sidecar.socket(), move |bytes| {
            let text = String::from_utf8_lossy(bytes);
            if text.contains("getProgramOptions") && text.contains(">gone<") {
                let removed = client.call("twiddler.removeProcessFromGroup", ("jobs", "gone"));
                assert_eq!(removed.ok(), Some(true.into()));
            }
        })?;
        let output = run(&mut verb_command(relay.url(), &["-o", format, "export"]))?;
        let (text, stderr) = (stdout_text(&output), stderr_text(&output));
        assert_eq!(output.status.code(), Some(0), "{stderr}");
        ensure!(text.contains("stays") && !text.contains("gone"), "{text}");
        ensure!(stderr.is_empty(), "{stderr}");
        ensure!(!pids(&sidecar)?.contains_key("jobs:gone"));
    }
    Ok(())
}
