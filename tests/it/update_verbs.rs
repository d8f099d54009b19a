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
fn ran(sidecar: &Sidecar, words: &[&str]) -> Result<(i32, String, String)> {
    let output = run(&mut verb_command(Addr::Unix(sidecar.socket()), words))?;
    let code = output.status.code().context("ended by a signal")?;
    Ok((code, stdout_text(&output), stderr_text(&output)))
}

/// What it prints to the letter, and a part of what it says beside that.
fn ensure_ran(
    sidecar: &Sidecar,
    words: &[&str],
    code: i32,
    printed: &str,
    said: &str,
) -> Result<()> {
    let ran = ran(sidecar, words)?;
    ensure!(
        ran.0 == code && ran.1 == printed && ran.2.contains(said),
        "{words:?}: {ran:?}"
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
    ensure!(ran(&sidecar, &running)?.0 == 0);
    // The proxy takes note of what is in force.
    ensure_ran(&sidecar, &["diff"], 0, "", "")?;
    Ok((daemon, sidecar))
}

fn pids(sidecar: &Sidecar) -> Result<BTreeMap<String, i64>> {
    let rows = rows(&sidecar.client())?.into_iter();
    Ok(rows.map(|row| (row.namespec(), row.pid)).collect())
}

#[test]
fn an_update_does_what_its_rehearsal_says_and_diff_shows_why() -> Result<()> {
    let (daemon, sidecar) = start()?;
    daemon.write(
        FILE,
        &WEB.replace("sleep 601", "sleep 611")
            .replace("secret", "other"),
    )?;
    let (code, block, _) = ran(&sidecar, &["diff"])?;
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
    ensure_ran(&sidecar, &["diff", "lone"], 0, "", "")?;
    ensure_ran(&sidecar, &["diff", "nobody"], 2, "", "nobody")?;
    ensure_documents("diff", &ran(&sidecar, &["diff", "-o", "json"])?.1)?;
    let mut before = pids(&sidecar)?;
    let (code, plan, said) = ran(&sidecar, &["update", "--dry-run"])?;
    ensure!(code == 0 && said.contains("nothing was changed"), "{said}");
    ensure!(plan.starts_with("web:b: restarted\n"), "{plan}");
    ensure!(pids(&sidecar)? == before, "a rehearsal restarts nobody");
    ensure_ran(&sidecar, &["update"], 0, &plan, "")?;
    let mut after = pids(&sidecar)?;
    ensure!(before.remove("web:b") != after.remove("web:b"));
    ensure!(before == after, "{before:?} {after:?}");
    ensure_ran(&sidecar, &["diff"], 0, "", "")?;
    ensure_documents("update", &ran(&sidecar, &["update", "-o", "json"])?.1)?;
    // A file that is not valid stops nobody.
    let before = pids(&sidecar)?;
    daemon.write(FILE, &WEB.replace("sleep 601", "sleep 611\numask=99"))?;
    ensure_ran(&sidecar, &["diff"], 2, "", "are not valid")?;
    ensure_ran(&sidecar, &["update"], 1, "", "are not valid")?;
    ensure!(pids(&sidecar)? == before);
    Ok(())
}

#[test]
fn programs_are_scaled_and_listed() -> Result<()> {
    let (_daemon, sidecar) = start()?;
    let up = "web:c_02: started\nweb:c_03: started\n";
    ensure_ran(
        &sidecar,
        &["scale", "web:c=+2"],
        0,
        up,
        "2 started, 0 stopped",
    )?;
    // Scaled on purpose.
    ensure!(ran(&sidecar, &["diff"])?.0 == 0);
    let (_, table, _) = ran(&sidecar, &["programs"])?;
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
    ensure_ran(
        &sidecar,
        &["scale", "web:c=2"],
        0,
        down,
        "0 started, 2 stopped",
    )?;
    ensure_ran(
        &sidecar,
        &["scale", "web:a=2"],
        1,
        "",
        "process_name has to contain",
    )?;
    let (code, text, said) = ran(&sidecar, &["scale", "web:nobody=2"])?;
    ensure!(code == 1 && text.is_empty(), "{text}");
    ensure!(said == "twiddler: no such program: web:nobody\n", "{said}");
    // One document, whatever becomes of the last.
    let several = ["-o", "json", "scale", "web:c=3", "web:a=0", "web:b=2"];
    let (code, text, said) = ran(&sidecar, &several)?;
    ensure!(code == 1 && said.contains("process_name"), "{said}");
    ensure_documents("scale", &text)?;
    let scaled: serde_json::Value = serde_json::from_str(&text)?;
    let expected = serde_json::json!({"started": ["web:c_02"], "stopped": ["web:a"]});
    ensure!(scaled == expected, "{text}");
    ensure_documents("programs", &ran(&sidecar, &["programs", "-o", "json"])?.1)
}

/// An update that only took processes away has changed the number that a scale is measured by.
#[test]
fn numbers_are_those_of_the_last_update() -> Result<()> {
    let (daemon, sidecar) = start()?;
    let numprocs = |number: u32| {
        let number = format!("numprocs={number}");
        daemon.write(FILE, &WEB.replace("numprocs=2", &number))
    };
    let differs = |old: u32, new: u32, does: &str| {
        let (code, text, _) = ran(&sidecar, &["diff"])?;
        let numbers = format!("- numprocs = {old}\n+ numprocs = {new}\n\nupdate would {does}\n");
        ensure!(
            code == 1 && text == format!("changed web:c\n{numbers}"),
            "{text}"
        );
        Ok(())
    };
    let is_scaled = |old: u32, new: u32| {
        let (code, text, _) = ran(&sidecar, &["diff"])?;
        let numbers = format!("scaled web:c\n- numprocs = {old}\n+ numprocs = {new}\n");
        ensure!(code == 0 && text.starts_with(&numbers), "{text}");
        Ok(())
    };
    numprocs(1)?;
    differs(2, 1, "stop web:c_01")?;
    ensure!(ran(&sidecar, &["update"])?.0 == 0);
    ensure!(ran(&sidecar, &["scale", "web:c=2"])?.0 == 0);
    is_scaled(2, 1)?;
    ensure!(ran(&sidecar, &["scale", "web:c=1"])?.0 == 0);
    ensure_ran(&sidecar, &["diff"], 0, "", "")?;
    numprocs(3)?;
    differs(1, 3, "start web:c_01, web:c_02")?;
    ensure!(ran(&sidecar, &["update"])?.0 == 0);
    ensure!(ran(&sidecar, &["scale", "web:c=4"])?.0 == 0);
    is_scaled(4, 3)?;
    numprocs(5)?;
    differs(3, 5, "start web:c_04")
}

#[test]
fn an_added_program_is_changed_and_exported_as_supervisord_reads_it() -> Result<()> {
    let (_daemon, sidecar) = start()?;
    ensure_ran(&sidecar, &["export"], 0, "", "nothing was added")?;
    let (code, _, said) = ran(&sidecar, &["export", "nobody"])?;
    ensure!(
        code == 1 && said == "twiddler: nothing was added to a group nobody\n",
        "{said}"
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
    ensure!(ran(&sidecar, &[&add[..], &command].concat())?.0 == 0);
    let before = pids(&sidecar)?;
    let set = ["set", "jobs:z", "stopsignal=INT", "umask="];
    ensure!(ran(&sidecar, &set)?.0 == 0);
    ensure!(pids(&sidecar)?["web:a"] == before["web:a"]);
    let configured = ["set", "web:a", "umask=022"];
    ensure_ran(&sidecar, &configured, 1, "", "edit them and update")?;
    let (code, text, _) = ran(&sidecar, &["export", "jobs"])?;
    ensure!(code == 0, "{text}");
    ensure!(
        text.contains("\nstopsignal=INT") && !text.contains("umask") && !text.contains("numprocs"),
        "{text}"
    );
    ensure_ran(&sidecar, &["export", "-o", "name"], 0, "jobs:z\n", "")?;
    ensure_documents("export", &ran(&sidecar, &["export", "-o", "json"])?.1)?;
    let copy = Daemon::start(&text)?;
    copy.wait_for_state("jobs:z", "RUNNING")?;
    eventually(LIMIT, || {
        let log = copy.call("supervisor.readProcessStdoutLog", params!["jobs:z", 0, 0])?;
        ensure!(log.as_str() == Some("100% ;x\n"), "{log:?}");
        Ok(())
    })
}

/// A program may go between the list of programs and the question for its options.
#[test]
fn an_export_passes_over_a_program_that_goes_meanwhile() -> Result<()> {
    for format in ["table", "json"] {
        let (_daemon, sidecar) = start()?;
        for name in ["jobs:gone", "jobs:stays"] {
            let options = ["--create-group", "-O", "autostart=false", "--", "cat"];
            let add = [&["add", name][..], &options].concat();
            ensure!(ran(&sidecar, &add)?.0 == 0);
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
        let (text, said) = (stdout_text(&output), stderr_text(&output));
        assert_eq!(output.status.code(), Some(0), "{said}");
        ensure!(text.contains("stays") && !text.contains("gone"), "{text}");
        ensure!(said.is_empty(), "{said}");
        ensure!(!pids(&sidecar)?.contains_key("jobs:gone"));
    }
    Ok(())
}
