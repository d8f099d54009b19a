//! Failures of the include directory: full, read-only, missing, obstructed; and a truncated or edited
//! journal. No process in the daemon is lost, and a refused change changes nothing.

use std::collections::BTreeSet;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::Command;

use crate::common::changes::{Change, Model, USER, View, ensure_daemon_matches, make};
use crate::common::disk::{launcher, limit_files, set_mode};
use crate::common::include::{ensure_include_holds, ensure_no_leftovers};
use crate::common::process::run;
use crate::common::stuck::{GENERATED, slow_sections, stop_in_a_change};
use crate::common::{
    CallError, Client, Daemon, Dice, Sidecar, SidecarOptions, options, rows, stderr_text, twiddler,
};
use anyhow::{Context, Result, ensure};
use supervisor_twiddler::xmlrpc::Value;

const FAILED: i32 = 30;
const JOURNAL: &str = ".twiddler-journal";

fn front(arguments: &[&str]) -> Result<(Daemon, Sidecar)> {
    let daemon = Daemon::start(USER)?;
    let sidecar = Sidecar::start_options(
        &daemon,
        SidecarOptions {
            launcher: &launcher()?,
            arguments,
            ..SidecarOptions::default()
        },
    )?;
    Ok((daemon, sidecar))
}

fn sleeper() -> Value {
    options(&[("command", "/bin/sleep 600"), ("autostart", "false")])
}

/// Makes a change that must fail because of the disk, with a fault that names the directory.
fn ensure_refused(
    client: &Client,
    daemon: &Daemon,
    method: &str,
    params: Vec<Value>,
) -> Result<()> {
    let fault = client.expect_fault(method, params)?;
    let dir = daemon.include_dir().to_string_lossy().into_owned();
    let is_clear = fault.code == FAILED && fault.text.contains(&dir);
    ensure!(is_clear, "{method}: fault {}: {}", fault.code, fault.text);
    Ok(())
}

/// Makes one change of each kind that needs the disk. All must be refused.
fn ensure_all_refused(client: &Client, daemon: &Daemon) -> Result<()> {
    let before = rows(&daemon.client())?;
    for (method, params) in [
        ("twiddler.addGroup", params!["another", 1]),
        (
            "twiddler.addProgramToGroup",
            params!["web", "another", sleeper()],
        ),
        (
            "twiddler.addProgramToGroup",
            params!["own", "another", sleeper()],
        ),
        (
            "twiddler.addProgramToGroup",
            params!["dynamic_procs", "another", sleeper()],
        ),
    ] {
        ensure_refused(client, daemon, method, params)?;
    }
    ensure!(
        rows(&daemon.client())? == before,
        "a refused change has changed something"
    );
    let unknown = client.expect_fault("twiddler.removeGroup", ("another",))?;
    ensure!(unknown.code == 10, "{unknown:?}");
    Ok(())
}

/// Makes the same changes, which must all succeed.
fn ensure_all_work(client: &Client) -> Result<()> {
    client.call("twiddler.addGroup", ("another", 1))?;
    client.call("twiddler.removeGroup", ("another",))?;
    for group in ["web", "own", "dynamic_procs"] {
        client.call("twiddler.addProgramToGroup", (group, "another", sleeper()))?;
        client.call("twiddler.removeProcessFromGroup", (group, "another"))?;
    }
    Ok(())
}

/// Makes changes under different limits on the file size, so that different writes fail. Each change must
/// succeed and be visible, or be refused without effect. Then the proxy is killed.
fn ensure_any_write_may_fail(arguments: &[&str]) -> Result<()> {
    let (daemon, sidecar) = front(arguments)?;
    let mut model = Model::new();
    let mut dice = Dice::new(8);
    let (mut successes, mut refused) = (0, 0);
    let journal = daemon.include_dir().join(JOURNAL);
    for round in 0..40 {
        let client = sidecar.socket_client();
        // About the journal's size, so that a write fails in the middle of a change.
        let size = journal.metadata().map_or(0, |metadata| metadata.len());
        let room = [0, 40, 120, 200, 300, 450, 700, 1000][round % 8];
        let limit = if round % 3 == 0 { room } else { size + room };
        limit_files(&sidecar, Some(limit))?;
        for _ in 0..2 {
            let change = model.propose(&mut dice);
            match make(&client, std::slice::from_ref(&change))? {
                None => {
                    model.apply(&change);
                    successes += 1;
                }
                Some(CallError::Fault(fault)) if fault.code == FAILED => {
                    let clear = fault.text.contains("cannot write in the include directory");
                    ensure!(clear, "{fault:?}");
                    refused += 1;
                }
                Some(error) => return Err(error).context(format!("round {round}: {change:?}")),
            }
        }
        limit_files(&sidecar, None)?;
        if round % 2 == 0 {
            sidecar.kill()?;
            sidecar.start_again()?;
        }
        let view = View::of(&sidecar.socket_client())?;
        model
            .ensure_shown_by(&view)
            .and_then(|()| ensure_daemon_matches(&model, &daemon.client(), &[]))
            .with_context(|| format!("round {round}, limit {limit}"))?;
        ensure_no_leftovers(&daemon)?;
    }
    ensure!(
        successes > 10 && refused > 10,
        "{successes} made, {refused} refused"
    );
    Ok(())
}

#[test]
fn on_a_full_disk_changes_are_made_or_refused() -> Result<()> {
    ensure_any_write_may_fail(&[])
}

#[test]
fn on_a_full_disk_changes_that_persist_are_made_or_refused() -> Result<()> {
    ensure_any_write_may_fail(&["--persist"])
}

#[test]
fn a_read_only_directory_refuses_changes_until_it_is_writable() -> Result<()> {
    for arguments in [&[][..], &["--persist"]] {
        let (daemon, sidecar) = front(arguments)?;
        let client = sidecar.client();
        client.call("twiddler.addGroup", ("own", 1))?;
        client.call("twiddler.addProgramToGroup", ("web", "placed", sleeper()))?;
        set_mode(daemon.include_dir(), 0o555)?;
        ensure_all_refused(&client, &daemon)?;
        // Calls that need no disk still work.
        client.call("supervisor.startProcess", ("web:placed",))?;
        client.call("supervisor.stopProcess", ("web:placed",))?;
        set_mode(daemon.include_dir(), 0o755)?;
        ensure_all_work(&client)?;
    }
    Ok(())
}

#[test]
fn a_missing_directory_refuses_changes_until_it_exists_again() -> Result<()> {
    let (daemon, sidecar) = front(&[])?;
    let client = sidecar.client();
    client.call("twiddler.addGroup", ("own", 1))?;
    let (dir, elsewhere) = (daemon.include_dir(), daemon.dir().join("elsewhere"));
    fs::rename(dir, &elsewhere)?;
    ensure_all_refused(&client, &daemon)?;
    fs::rename(&elsewhere, dir)?;
    ensure_all_work(&client)?;
    // Another directory in its place, as after a volume was mounted.
    fs::rename(dir, &elsewhere)?;
    fs::create_dir(dir)?;
    ensure_all_work(&client)?;
    sidecar.kill()?;
    sidecar.start_again()?;
    sidecar.client().call("twiddler.removeGroup", ("own",))?;
    Ok(())
}

/// A script that starts the proxy with the permissions of the systemd unit: it may write only to the
/// include directory that exists when it starts.
const AS_THE_UNIT: &str = r#"
    mount --bind "$0" "$0" && mount --bind "$0/conf.d" "$0/conf.d" || exit
    mount -o remount,ro,bind "$0" && exec "$@"
"#;

#[test]
fn a_recreated_directory_under_the_unit_needs_a_restart_and_the_fault_says_so() -> Result<()> {
    if fs::metadata("/proc/self")?.uid() != 0 {
        ensure!(std::env::var_os("TEST_ALL").is_none(), "needs root");
        eprintln!("left out: only root can mount");
        return Ok(());
    }
    let daemon = Daemon::start(USER)?;
    let dir = daemon.dir().to_string_lossy().into_owned();
    let sidecar = Sidecar::start_options(
        &daemon,
        SidecarOptions {
            launcher: &["unshare", "--mount", "/bin/sh", "-c", AS_THE_UNIT, &dir],
            ..SidecarOptions::default()
        },
    )?;
    let client = sidecar.client();
    client.call("twiddler.addGroup", ("one", 1))?;
    let refused = |advice: &str| -> Result<()> {
        let fault = client.expect_fault("twiddler.addGroup", ("two", 1))?;
        let is_clear = fault.code == FAILED && fault.text.contains(advice);
        ensure!(is_clear, "no {advice}: {fault:?}");
        sidecar.wait_for_stderr(advice)?;
        Ok(())
    };
    fs::remove_dir_all(daemon.include_dir())?;
    refused(&format!(
        "make it again (mkdir {dir}/conf.d), and restart twiddler"
    ))?;
    fs::create_dir(daemon.include_dir())?;
    refused("restart twiddler (systemctl restart twiddler)")?;
    // The advice works. The proxy reads the additions from the daemon.
    sidecar.stop()?;
    sidecar.start_again()?;
    let client = sidecar.client();
    client.call("twiddler.addGroup", ("two", 1))?;
    client.expect_fault("twiddler.addGroup", ("one", 1))?;
    Ok(())
}

#[test]
fn an_obstacle_refuses_changes_until_it_is_removed() -> Result<()> {
    let (daemon, sidecar) = front(&[])?;
    let client = sidecar.client();
    client.call("twiddler.addGroup", ("own", 1))?;
    let obstacle = daemon.include_dir().join(GENERATED);
    fs::create_dir(&obstacle)?;
    ensure_all_refused(&client, &daemon)?;
    fs::remove_dir(&obstacle)?;
    ensure_no_leftovers(&daemon)?;
    ensure_all_work(&client)
}

#[test]
fn a_file_that_cannot_be_removed_is_logged_and_removed_later() -> Result<()> {
    let daemon = Daemon::start(&(slow_sections() + USER))?;
    let sidecar = Sidecar::start_options(
        &daemon,
        SidecarOptions {
            launcher: &launcher()?,
            ..SidecarOptions::default()
        },
    )?;
    let client = sidecar.client();
    client.call("twiddler.addGroup", ("own", 1))?;
    let (mut call, attempt) = stop_in_a_change(&daemon, &client, |attempt| {
        ("twiddler.addGroup", params![format!("late{attempt}"), 1])
    })?;
    set_mode(daemon.include_dir(), 0o555)?;
    daemon.signal("CONT")?;
    let reply = call.read_reply()?;
    ensure!(reply.text().contains("<boolean>1</boolean>"), "{reply:?}");
    sidecar.wait_for_stderr("a generated file cannot be removed")?;
    set_mode(daemon.include_dir(), 0o755)?;
    // The next generated file replaces it.
    client.call("twiddler.addProgramToGroup", ("web", "another", sleeper()))?;
    ensure_include_holds(&daemon, &[])?;
    client.call("twiddler.removeGroup", (format!("late{attempt}"),))?;
    sidecar.stop()?;
    let names = daemon.include_files()?;
    ensure!(
        !names.iter().any(|name| name.starts_with(".zz-")),
        "{names:?}"
    );
    Ok(())
}

#[test]
fn the_proxy_does_not_start_without_a_writable_directory() -> Result<()> {
    let daemon = Daemon::start(USER)?;
    let dir = daemon.include_dir();
    let conf = daemon.conf().to_string_lossy().into_owned();
    let serve = [
        "serve",
        "-c",
        &conf,
        "--allow-open",
        "--listen",
        "127.0.0.1:0",
    ];
    let ensure_ends = |what: &str, wanted: &str| -> Result<()> {
        let words = launcher()?;
        let mut command = Command::new(words[0]);
        command
            .args(&words[1..])
            .arg(env!("CARGO_BIN_EXE_twiddler"))
            .args(serve);
        let ended = run(&mut command)?;
        let stderr = stderr_text(&ended);
        // Exit code 2 tells a service manager that a restart would fail too.
        ensure!(
            ended.status.code() == Some(2),
            "{what}: {}: {stderr}",
            ended.status
        );
        let named = stderr.contains(&*dir.to_string_lossy()) && stderr.contains(wanted);
        ensure!(named, "{what}: {stderr}");
        Ok(())
    };
    set_mode(dir, 0o555)?;
    ensure_ends("not writable", "may not write")?;
    set_mode(dir, 0o755)?;
    fs::create_dir(dir.join(JOURNAL))?;
    ensure_ends("a directory for a journal", "irectory")?;
    fs::remove_dir(dir.join(JOURNAL))?;
    fs::remove_dir_all(dir)?;
    ensure_ends("missing", "does not exist")?;
    ensure!(twiddler(&["--version"])?.status.success());
    Ok(())
}

/// The group and name of each visible process.
fn shown(client: &Client) -> Result<BTreeSet<(String, String)>> {
    Ok(rows(client)?
        .into_iter()
        .map(|row| (row.group, row.name))
        .collect())
}

/// Damaged versions of a journal, with descriptions.
fn damaged(text: &[u8]) -> Vec<(String, Vec<u8>)> {
    let mut all: Vec<(String, Vec<u8>)> = Vec::new();
    for part in 0..16 {
        let length = text.len() * part / 16;
        all.push((format!("cut after {length} bytes"), text[..length].to_vec()));
    }
    let lines: Vec<&[u8]> = text.split_inclusive(|byte| *byte == b'\n').collect();
    for (number, _) in lines.iter().enumerate() {
        let mut without = lines.clone();
        without.remove(number);
        all.push((format!("without line {number}"), without.concat()));
    }
    all.push((
        "random bytes".to_owned(),
        (0..=255).cycle().take(5000).collect(),
    ));
    all.push((
        "turned around".to_owned(),
        lines.iter().rev().copied().collect::<Vec<_>>().concat(),
    ));
    let mut number = text.to_vec();
    number.extend_from_slice(b"{\"Done\":[{\"Next\":18446744073709551615}]}\n");
    all.push(("the largest number".to_owned(), number));
    let mut deep = vec![b'['; 100_000];
    deep.extend_from_slice(text);
    all.push(("deep nesting".to_owned(), deep));
    all.push(("zeros".to_owned(), vec![0; 4096]));
    all
}

#[test]
fn a_damaged_journal_loses_nothing_that_the_daemon_runs() -> Result<()> {
    let (daemon, sidecar) = front(&[])?;
    let client = sidecar.socket_client();
    client.call("twiddler.addGroup", ("own", 1))?;
    client.call("twiddler.addProgramToGroup", ("own", "first", sleeper()))?;
    for (group, name) in [
        ("own", "second"),
        ("web", "joined"),
        ("dynamic_procs", "ls"),
    ] {
        client.call("twiddler.addProgramToGroup", (group, name, sleeper()))?;
    }
    let before = shown(&client)?;
    let groups = client.call("twiddler.getGroupNames", ())?;
    sidecar.kill()?;
    let path: PathBuf = daemon.include_dir().join(JOURNAL);
    let journal = fs::read(&path)?;
    for (number, (how, text)) in damaged(&journal).into_iter().enumerate() {
        fs::write(&path, &text)?;
        sidecar.start_again().with_context(|| how.clone())?;
        let now = shown(&client)?;
        ensure!(now == before, "{how}: {now:?}");
        ensure!(
            client.call("twiddler.getGroupNames", ())? == groups,
            "{how}"
        );
        // Further changes work.
        let name = format!("more{number}");
        for group in ["own", "web", "dynamic_procs"] {
            let added = client.call("twiddler.addProgramToGroup", (group, &name, sleeper()));
            added.with_context(|| how.clone())?;
        }
        client.call("supervisor.startProcess", ("web:joined",))?;
        client.call("supervisor.stopProcess", ("web:joined",))?;
        for group in ["own", "web", "dynamic_procs"] {
            let removed = client.call("twiddler.removeProcessFromGroup", (group, &name));
            removed.with_context(|| how.clone())?;
        }
        ensure!(shown(&client)? == before, "{how}");
        sidecar.kill()?;
    }
    let log = sidecar.stderr_text();
    ensure!(
        log.contains("a line of the journal cannot be read"),
        "{log}"
    );
    ensure!(!log.contains("panicked"), "{log}");
    Ok(())
}

#[test]
fn a_truncated_line_is_skipped_with_a_warning() -> Result<()> {
    let (daemon, sidecar) = front(&[])?;
    sidecar.client().call("twiddler.addGroup", ("own", 1))?;
    sidecar
        .client()
        .call("twiddler.removeProcessFromGroup", ("pool", "p0"))?;
    sidecar.kill()?;
    let mut journal = OpenOptions::new()
        .append(true)
        .open(daemon.include_dir().join(JOURNAL))?;
    journal.write_all(b"{\"Done\":[{\"Group\":{\"na")?;
    sidecar.start_again()?;
    let mut expected = Model::new();
    expected.apply(&Change::AddGroup {
        group: "own".to_owned(),
    });
    expected.apply(&Change::RemoveProcess {
        group: "pool".to_owned(),
        process: "p0".to_owned(),
    });
    expected.ensure_shown_by(&View::of(&sidecar.client())?)?;
    sidecar.wait_for_stderr("a line of the journal cannot be read")?;
    Ok(())
}
