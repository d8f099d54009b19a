//! Two proxies in front of one daemon by mistake: the second reports it and ends.

use std::os::unix::fs::{MetadataExt, PermissionsExt};

use crate::common::ctl::python_command;
use crate::common::disk::set_mode;
use crate::common::process::{Process, succeeded};
use crate::common::{Daemon, DaemonOptions, Sidecar, stderr_text, twiddler};
use anyhow::{Context, Result, ensure};

/// Starts a second proxy, which must refuse to start. Returns its messages.
fn ensure_refused(daemon: &Daemon, arguments: &[&str]) -> Result<String> {
    let conf = daemon.conf().to_string_lossy().into_owned();
    let mut all = vec![
        "serve",
        "-c",
        &conf,
        "--allow-open",
        "--listen",
        "127.0.0.1:0",
    ];
    all.extend_from_slice(arguments);
    let ended = twiddler(&all)?;
    let stderr = stderr_text(&ended);
    ensure!(ended.status.code() == Some(2), "{}: {stderr}", ended.status);
    let dir = daemon.include_dir().to_string_lossy().into_owned();
    ensure!(
        stderr.contains("another twiddler") && stderr.contains(&dir),
        "{stderr}"
    );
    ensure!(!stderr.contains("listening"), "{stderr}");
    Ok(stderr)
}

#[test]
fn the_second_names_the_first() -> Result<()> {
    let daemon = Daemon::start("")?;
    let first = Sidecar::start(&daemon)?;
    let holder = format!(
        "another twiddler (pid {}, http://{}",
        first.pid(),
        first.tcp_addr()
    );
    let stderr = ensure_refused(&daemon, &[])?;
    ensure!(stderr.contains(&holder), "{stderr}");
    Ok(())
}

#[test]
fn the_mode_of_a_lock_that_others_could_open_is_corrected() -> Result<()> {
    let daemon = Daemon::start("")?;
    let path = daemon.include_dir().join(".twiddler-lock");
    let mode = || Ok::<_, anyhow::Error>(path.metadata()?.permissions().mode() & 0o777);
    let first = Sidecar::start(&daemon)?;
    ensure!(mode()? == 0o600, "{:o}", mode()?);
    first.stop()?;
    set_mode(&path, 0o666)?;
    first.start_again()?;
    ensure!(mode()? == 0o600, "{:o}", mode()?);
    ensure_refused(&daemon, &[])?;
    Ok(())
}

#[test]
fn the_second_is_refused_and_the_first_goes_on() -> Result<()> {
    let daemon = Daemon::start("")?;
    let first = Sidecar::start(&daemon)?;
    let client = first.client();
    client.call("twiddler.addGroup", ("one", 1))?;
    for arguments in [&[][..], &["--persist"]] {
        ensure_refused(&daemon, arguments)?;
    }
    let dir = daemon.include_dir().to_string_lossy().into_owned();
    ensure_refused(&daemon, &["--include-dir", &dir])?;
    client.call("twiddler.addGroup", ("two", 1))?;
    client.call("twiddler.removeGroup", ("one",))?;
    Ok(())
}

#[test]
fn the_second_is_refused_while_the_first_is_suspended() -> Result<()> {
    let daemon = Daemon::start("")?;
    let first = Sidecar::start(&daemon)?;
    first.signal("STOP")?;
    ensure_refused(&daemon, &[])?;
    first.signal("CONT")?;
    first.client().call("twiddler.addGroup", ("one", 1))?;
    Ok(())
}

#[test]
fn the_lock_of_a_dead_proxy_does_not_block() -> Result<()> {
    let daemon = Daemon::start("")?;
    let first = Sidecar::start(&daemon)?;
    first.client().call("twiddler.addGroup", ("one", 1))?;
    first.kill()?;
    let names = daemon.include_files()?;
    ensure!(names.contains(&".twiddler-lock".to_owned()), "{names:?}");
    let second = Sidecar::start(&daemon)?;
    second
        .client()
        .expect_fault("twiddler.addGroup", ("one", 1))
        .context("what the first has added is known")?;
    ensure_refused(&daemon, &[])?;
    second.stop()?;
    first.start_again()?;
    first.client().call("twiddler.removeGroup", ("one",))?;
    Ok(())
}

#[test]
fn of_several_proxies_that_start_together_one_stays() -> Result<()> {
    let daemon = Daemon::start("")?;
    let conf = daemon.conf();
    let all: Vec<Process> = (0..4)
        .map(|_| {
            let mut command = crate::common::sidecar::twiddler_command();
            command
                .args(["serve", "--allow-open", "--listen", "127.0.0.1:0", "-c"])
                .arg(&conf);
            Process::spawn(&mut command)
        })
        .collect::<Result<_>>()?;
    crate::common::eventually(crate::common::LIMIT, || {
        let ended = all.iter().filter(|process| !process.is_alive()).count();
        let listening = all
            .iter()
            .filter(|process| process.stderr_text().contains("listening"))
            .count();
        ensure!(
            (ended, listening) == (3, 1),
            "{ended} ended, {listening} listen"
        );
        Ok(())
    })?;
    for process in all.iter().filter(|process| !process.is_alive()) {
        let status = process.wait()?;
        ensure!(
            status.code() == Some(2),
            "{status}: {}",
            process.stderr_text()
        );
    }
    Ok(())
}

/// Removes the lock file, as somebody might who does not know its purpose.
fn remove_lock(daemon: &Daemon) -> Result<()> {
    Ok(std::fs::remove_file(
        daemon.include_dir().join(".twiddler-lock"),
    )?)
}

#[test]
fn a_removed_lock_is_created_again() -> Result<()> {
    let daemon = Daemon::start("")?;
    let first = Sidecar::start(&daemon)?;
    let holder = format!("pid {}, http://{}", first.pid(), first.tcp_addr());
    // The lock is created again with the next change, and soon without one.
    for changes in [true, false] {
        remove_lock(&daemon)?;
        if changes {
            first.client().call("twiddler.addGroup", ("one", 1))?;
        }
        crate::common::eventually(crate::common::LIMIT, || {
            let names = daemon.include_files()?;
            ensure!(names.contains(&".twiddler-lock".to_owned()), "{names:?}");
            Ok(())
        })?;
        let stderr = ensure_refused(&daemon, &[])?;
        ensure!(stderr.contains(&holder), "{stderr}");
    }
    first.wait_for_stderr("somebody removed the lock in ")?;
    first.client().call("twiddler.removeGroup", ("one",))?;
    Ok(())
}

#[test]
fn the_first_ends_and_says_why_when_another_takes_the_removed_lock() -> Result<()> {
    for changes in [true, false] {
        let (daemon, other) = with_two_directories()?;
        // Also if the other proxy uses another directory of the same daemon.
        let arguments: &[&str] = if changes {
            &[]
        } else {
            &["--include-dir", &other]
        };
        let first = Sidecar::start(&daemon)?;
        first.client().call("twiddler.addGroup", ("one", 1))?;
        remove_lock(&daemon)?;
        let second = Sidecar::start_with(&daemon, arguments)?;
        if changes {
            let answer = first.client().call("twiddler.addGroup", ("two", 1));
            ensure!(answer.is_err(), "two proxies change one daemon");
        }
        let ended = first.wait()?;
        let stderr = first.stderr_text();
        ensure!(ended.code() == Some(1), "{ended}: {stderr}");
        let holder = format!("another twiddler (pid {}, http://", second.pid());
        for part in ["twiddler: somebody removed the lock", &holder] {
            ensure!(stderr.contains(part), "no {part}: {stderr}");
        }
        second.client().call("twiddler.addGroup", ("two", 1))?;
        if changes {
            second.client().call("twiddler.removeGroup", ("one",))?;
        }
    }
    Ok(())
}

/// A program that opens a file under the account `nobody`, and locks it.
const STRANGER: &str = r#"
import fcntl, os, sys
os.setgroups([]); os.setgid(65534); os.setuid(65534)
try:
    fcntl.flock(os.open(sys.argv[1], os.O_RDONLY), fcntl.LOCK_SH)
    print("holds it", flush=True)
except PermissionError:
    print("cannot open it", flush=True)
sys.stdin.read()
"#;

#[test]
fn another_account_cannot_hold_the_lock() -> Result<()> {
    if std::fs::metadata("/proc/self")?.uid() != 0 {
        ensure!(std::env::var_os("TEST_ALL").is_none(), "needs root");
        eprintln!("left out: only root can act as another account");
        return Ok(());
    }
    let daemon = Daemon::start("")?;
    let path = daemon.include_dir().join(".twiddler-lock");
    for dir in [daemon.dir(), daemon.include_dir()] {
        set_mode(dir, 0o755)?;
    }
    let stranger = || -> Result<Process> { Process::spawn(python_command(STRANGER).arg(&path)) };
    // A file of an earlier version.
    std::fs::write(&path, "")?;
    set_mode(&path, 0o644)?;
    let early = stranger()?;
    early.wait_for_stdout("holds it")?;
    let sidecar = Sidecar::start(&daemon)?;
    let late = stranger()?;
    late.wait_for_stdout("cannot open it")?;
    sidecar.stop()?;
    sidecar.start_again()?;
    ensure_refused(&daemon, &[])?;
    Ok(())
}

/// Starts a daemon that includes two directories.
fn with_two_directories() -> Result<(Daemon, String)> {
    let daemon = Daemon::start_with(DaemonOptions {
        include: "conf.d/*.conf more.d/*.conf",
        files: &[("more.d/none.txt", "")],
        ..DaemonOptions::default()
    })?;
    let other = daemon.dir().join("more.d").to_string_lossy().into_owned();
    Ok((daemon, other))
}

#[test]
fn a_proxy_in_another_include_directory_of_the_daemon_is_found() -> Result<()> {
    let (daemon, other) = with_two_directories()?;
    let first = Sidecar::start_with(&daemon, &["--include-dir", &other])?;
    let conf = daemon.conf().to_string_lossy().into_owned();
    let ended = twiddler(&[
        "serve",
        "-c",
        &conf,
        "--listen",
        "127.0.0.1:0",
        "--allow-open",
    ])?;
    let stderr = stderr_text(&ended);
    let holder = format!("another twiddler (pid {}", first.pid());
    ensure!(ended.status.code() == Some(2), "{}: {stderr}", ended.status);
    ensure!(
        stderr.contains(&holder) && stderr.contains(&other),
        "{stderr}"
    );
    // The same in the other direction. The lock of an ended proxy does not block.
    first.stop()?;
    let first = Sidecar::start(&daemon)?;
    let second = Sidecar::start_with(&daemon, &["--include-dir", &other]);
    ensure!(second.is_err(), "a second one started");
    first.client().call("twiddler.addGroup", ("one", 1))?;
    Ok(())
}

#[test]
fn the_marker_of_a_proxy_in_another_directory_is_logged_with_the_remedy() -> Result<()> {
    let (daemon, other) = with_two_directories()?;
    let earlier = Sidecar::start_with(&daemon, &["--include-dir", &other])?;
    earlier.client().call("twiddler.addGroup", ("one", 1))?;
    earlier.stop()?;
    let sidecar = Sidecar::start(&daemon)?;
    sidecar.client().call("twiddler.addGroup", ("two", 1))?;
    let log = sidecar.wait_for_stderr("of another twiddler")?;
    let advice = log
        .split_once("supervisorctl remove ")
        .context("no advice")?
        .1;
    let marker = advice.split_whitespace().next().unwrap_or_default();
    // The advice works, and a restarted proxy logs no further warning.
    succeeded(daemon.supervisorctl(&["remove", marker])?)?;
    sidecar.stop()?;
    sidecar.start_again()?;
    sidecar.client().call("twiddler.addGroup", ("three", 1))?;
    let count = sidecar.stderr_text().matches("of another twiddler").count();
    ensure!(count == 1, "logged {count} times");
    Ok(())
}
